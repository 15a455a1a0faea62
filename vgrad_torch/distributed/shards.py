"""Parameters that lie in parts on several ranks, as DTensors: by fully_shard (FSDP2) or tensor parallel."""

from __future__ import annotations

import sys
from typing import Any, cast

from torch import Tensor, nn

from vgrad_torch.errors import UsageError


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor. Its module takes a second to import; who has one has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to the module itself."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def kind(module: nn.Module) -> str:
    """A module's type in words, without the one that `fully_shard` puts in front."""
    return (type(module).__bases__[-1] if is_fully_sharded(module) else type(module)).__name__


def own(tensor: Tensor) -> Tensor:
    """What this rank counts of a parameter or its gradient; the parts of all ranks hold each entry once.

    That is its shard; of what all ranks have alike, rank 0 counts everything and the others nothing. Of a gradient
    that is still to be summed over the ranks, likewise the sum: a collective call.
    """
    if not is_spread(tensor):
        return tensor
    spread = cast(Any, tensor.detach())
    (placement,) = spread.placements
    if placement.is_shard():
        return cast(Tensor, spread.to_local())
    whole = cast(Tensor, spread.full_tensor())
    return whole if spread.device_mesh.get_local_rank() == 0 else whole.flatten()[:0]


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """The model's parameters as an optimizer knows them: what `fully_shard` left gathered lies in shards again."""
    for module in model.modules():
        if is_fully_sharded(module):
            cast(Any, module).reshard()
    return list(model.parameters())


def mesh(model: nn.Module) -> Any:
    """The device mesh that the model's parameters are spread over; None where each rank has them whole.

    Raises:
        UsageError: they lie on a mesh of two dimensions, on several meshes, or in FSDP1's flat parameters.
    """
    _refuse_fsdp1(model)
    meshes = {cast(Any, p).device_mesh for p in parameters(model) if is_spread(p)}
    if len(meshes) > 1:
        raise UsageError(
            "watch() puts together parameters that are spread over one device mesh; this model's lie on "
            f"{len(meshes)} different ones"
        )
    found = meshes.pop() if meshes else None
    if found is not None and found.ndim > 1:
        sizes = " x ".join(map(str, found.shape))
        raise UsageError(
            f"watch() puts together parameters on a device mesh of one dimension; this model's has {found.ndim} "
            f"({sizes}): use fully_shard without replicas, or tensor parallel alone"
        )
    return found


def _refuse_fsdp1(model: nn.Module) -> None:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in model.modules()):
        raise UsageError(
            "watch() does not see layers inside FullyShardedDataParallel; shard the model by "
            "torch.distributed.fsdp.fully_shard instead"
        )
