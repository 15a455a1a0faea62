"""What test_sharded.py runs on each rank: models whose parameters lie in shards, watched, and what they leave."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import vgrad_torch as vg
from tests.support.parallel import STEPS, X, Y, chain, sgd
from vgrad_torch.distributed import shards
from vgrad_torch.errors import UsageError


def each_layer(model: nn.Module, **options: Any) -> nn.Module:
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **options)
    return cast(nn.Module, fully_shard(model, **options))


def tensor_parallel(model: nn.Module) -> nn.Module:
    """The last layer is whole on each rank."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(model, mesh, {"fc1": ColwiseParallel(), "module": RowwiseParallel()})


@dataclass(frozen=True)
class Sharding:
    """How a model is spread over the ranks, and how its batch: in micro-batches, over the ranks or whole on each."""

    spread: Callable[[nn.Module], nn.Module]
    micro: int = 1
    reduced_at_once: bool = True
    dtype: torch.dtype = torch.float64
    joined: bool = True


SHARDINGS = {
    "each layer": Sharding(each_layer),
    "each layer, float32": Sharding(each_layer, dtype=torch.float32),
    "all in one": Sharding(lambda model: cast(nn.Module, fully_shard(model))),
    "kept gathered": Sharding(lambda model: each_layer(model, reshard_after_forward=False), micro=2),
    "micro-batches": Sharding(each_layer, micro=2),
    "reduced in the end": Sharding(each_layer, micro=2, reduced_at_once=False),
    "offloaded": Sharding(lambda model: each_layer(model, offload_policy=CPUOffloadPolicy(pin_memory=False))),
    "tensor parallel": Sharding(tensor_parallel, joined=False),
}
HALF = Sharding(
    lambda model: each_layer(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32)),
    micro=2,
    reduced_at_once=False,
    dtype=torch.float32,
)


def rows(sharding: Sharding) -> Sequence[slice]:
    """The micro-batches of this rank."""
    size = dist.get_world_size() if sharding.joined else 1
    each = len(X) // size // sharding.micro
    first = dist.get_rank() * each * sharding.micro if sharding.joined else 0
    return [slice(first + i * each, first + (i + 1) * each) for i in range(sharding.micro)]


def loss(model: nn.Module, part: slice, dtype: torch.dtype) -> Tensor:
    return nn.functional.cross_entropy(model(X[part].to(dtype)), Y[part])


def trained(sharding: Sharding, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Some steps, with an evaluation before each, which leaves the outer parameters gathered."""
    parts = rows(sharding)
    for _ in range(STEPS):
        with torch.no_grad():
            model(X[:5].to(sharding.dtype))
        optimizer.zero_grad()
        for number, part in enumerate(parts, start=1):
            if not sharding.reduced_at_once:
                model.set_requires_gradient_sync(number == len(parts))  # type: ignore[operator]
            (loss(model, part, sharding.dtype) / len(parts)).backward()
        optimizer.step()


def local(model: nn.Module) -> list[Tensor]:
    parameters = (p.detach() for p in model.parameters())
    return [p.to_local() if isinstance(p, DTensor) else p for p in parameters]


def watched_and_not(sharding: Sharding) -> dict[str, Any]:
    """The snapshots of a training, and this rank's weights after it when watched and when not."""
    watched, free = (sharding.spread(chain().to(sharding.dtype)) for _ in range(2))
    optimizer = sgd(watched)
    with torch.no_grad():
        watched(X[:5].to(sharding.dtype))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with vg.watch(watched, optimizer, every=1, histograms=lambda step: True) as monitor:
            trained(sharding, watched, optimizer)
    trained(sharding, free, sgd(free))
    words = [str(w.message) for w in caught if "shown" in str(w.message)]
    return {"snapshots": list(monitor.history), "watched": local(watched), "free": local(free), "warnings": words}


def each_linear(model: nn.Module) -> nn.Module:
    """So that a block has no parameters of its own to gather."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, reshard_after_forward=True)
    return model


def blocks(spread: Callable[[nn.Module], nn.Module]) -> list[vg.Snapshot]:
    """Watched are blocks that end with an activation, which knows nothing of shards."""
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 3)]
    model = spread(nn.Sequential(*parts).double())
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1, layers=r"^\d$") as monitor:
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
    return list(monitor.history)


def after_the_group() -> list[int]:
    """The steps that were sampled, of which the last was taken when the ranks could not meet any more."""
    model = each_layer(chain())
    optimizer = sgd(model)
    with warnings.catch_warnings(), vg.watch(model, optimizer, every=1) as monitor:
        warnings.simplefilter("ignore")
        loss(model, slice(0, 24), torch.float32).backward()
        optimizer.step()
        dist.destroy_process_group()
        optimizer.step()
    return monitor.history.steps


def parts() -> dict[str, Tensor]:
    """What this rank counts of a matrix that is placed in all ways; of the partial one each rank has a share."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = torch.arange(12.0).reshape(3, 4)
    ways: dict[str, Placement] = {"rows": Shard(0), "columns": Shard(1), "replicated": Replicate()}
    spread = {name: distribute_tensor(whole, mesh, [way]) for name, way in ways.items()}
    spread["partial"] = DTensor.from_local(whole / dist.get_world_size(), mesh, [Partial()])
    return {name: shards.own(tensor).flatten() for name, tensor in spread.items()}


def refused(spread: Callable[[nn.Module], nn.Module], **options: Any) -> str:
    model = spread(chain())
    try:
        vg.watch(model, sgd(model), **options)
    except UsageError as error:
        return str(error)
    return ""


def on_two_meshes(model: nn.Module) -> nn.Module:
    """The first layer on all ranks, the last on this one alone."""
    alone = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    fully_shard(model.get_submodule("fc1"))
    fully_shard(model.get_submodule("fc3"), mesh=dist.device_mesh.DeviceMesh.from_group(alone, "cpu"))
    return model


def on_a_square(model: nn.Module) -> nn.Module:
    shape = (dist.get_world_size() // 2, 2)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards"))
    return cast(nn.Module, fully_shard(model, mesh=mesh))


def beside_data_parallel(model: nn.Module) -> nn.Module:
    """The first layer in shards, the others whole on each rank."""
    fully_shard(model.get_submodule("fc1"))
    layers = [model.get_submodule("fc1"), DistributedDataParallel(model.get_submodule("fc3"))]
    return nn.Sequential(*layers)


def fsdp1(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def seen() -> dict[str, Any]:
    found: dict[str, Any] = {name: watched_and_not(sharding) for name, sharding in SHARDINGS.items()}
    found["half"] = watched_and_not(HALF)
    found["parts"] = parts()
    found["refused"] = {
        spread.__name__: refused(spread) for spread in (on_two_meshes, on_a_square, beside_data_parallel, fsdp1)
    }
    found["refused"]["outputs"] = refused(tensor_parallel, quantities=("output", "input_gradient"))
    found["blocks"] = blocks(each_linear)
    found["after_the_group"] = after_the_group()
    return found


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    (folder / f"rank{rank}.pkl").write_bytes(pickle.dumps(seen()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
