"""What test_distributed.py runs on each rank: trainings on a rank's part of a batch, which leave what they saw."""

from __future__ import annotations

import os
import pickle
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import vgrad_torch as vg
from vgrad_torch.distributed import ranks as distributed

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(1)).double()
Y = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(2))
STEPS = 3
TIMEOUT = 3

Parts = Sequence[Sequence[slice]]
"""Which rows of X each rank takes in a step, one slice for each micro-batch."""


def chain() -> nn.Sequential:
    """One of the layers is really called module."""
    torch.manual_seed(0)
    layers = {"fc1": nn.Linear(6, 8), "act1": nn.Sigmoid(), "module": nn.Linear(8, 7), "act2": nn.Tanh()}
    return nn.Sequential(OrderedDict(layers, fc3=nn.Linear(7, 3)))


class Branching(nn.Module):
    """A small batch also goes through `extra`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.extra, self.above = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.below(x).tanh()
        return self.above(self.extra(h).tanh() if len(x) < 12 else h)  # type: ignore[no-any-return]


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = chain()
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.inner, x, use_reentrant=False))  # type: ignore[no-any-return]


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


@dataclass(frozen=True)
class Training:
    """A model, how its batch is spread over the ranks, and how it is wrapped."""

    build: Callable[[], nn.Module] = chain
    parts: Parts = ((slice(0, 12),), (slice(12, 24),))
    options: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[nn.Module], nn.Module] = lambda model: model
    dtype: torch.dtype = torch.float64

    def model(self) -> nn.Module:
        return self.build().to(self.dtype)

    def wrapped(self) -> nn.Module:
        return self.finish(DistributedDataParallel(self.model(), **self.options))

    def loss(self, model: nn.Module, rows: slice) -> Tensor:
        return nn.functional.cross_entropy(model(X[rows].to(self.dtype)), Y[rows])


TRAININGS = {
    "plain": Training(),
    "float32": Training(dtype=torch.float32),
    "micro-batches": Training(
        parts=((slice(0, 6), slice(6, 12)), (slice(12, 18), slice(18, 24))), options={"gradient_as_bucket_view": True}
    ),
    "uneven, unused": Training(
        Branching, ((slice(0, 16),), (slice(16, 24),)), options={"find_unused_parameters": True}
    ),
    "checkpointed, static": Training(Checkpointed, options={"static_graph": True}),
    "compiled": Training(finish=compiled),
}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-3)


def step(training: Training, model: nn.Module, optimizer: torch.optim.Optimizer, rows: Sequence[slice]) -> None:
    """One step of a rank; all but the last micro-batch without communication."""
    optimizer.zero_grad()
    for index, part in enumerate(rows):
        with model.no_sync() if index + 1 < len(rows) else nullcontext():  # type: ignore[operator]
            (training.loss(model, part) / len(rows)).backward()
    optimizer.step()


def watched_and_not(name: str, rank: int) -> dict[str, Any]:
    """The snapshots of a training, and the weights it ends with when watched and when not."""
    training = TRAININGS[name]
    watched, free = training.wrapped(), training.wrapped()
    optimizer = sgd(watched)
    with vg.watch(watched, optimizer, every=1, histograms=lambda step: True) as monitor:
        for _ in range(STEPS):
            step(training, watched, optimizer, training.parts[rank])
    optimizer = sgd(free)
    for _ in range(STEPS):
        step(training, free, optimizer, training.parts[rank])
    return {"snapshots": list(monitor.history), "watched": watched.state_dict(), "free": free.state_dict()}


def budget(rank: int) -> list[int]:
    """The ranks' clocks differ, and so would their own decisions."""
    training = TRAININGS["plain"]
    model = training.wrapped()
    optimizer = sgd(model)
    with vg.watch(model, optimizer, budget=0.2, histograms=False) as monitor:
        for index in range(300):
            if index % 7 == rank:
                time.sleep(0.001)
            step(training, model, optimizer, training.parts[rank])
    return monitor.history.steps


def raising(rank: int) -> list[int]:
    """A callback that raises on rank 1, where the loop goes on nevertheless."""

    def fail(snapshot: vg.Snapshot) -> None:
        if rank == 1:
            raise KeyError(snapshot.step)

    training = TRAININGS["plain"]
    model = training.wrapped()
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=2, on_sample=fail) as monitor:
        for _ in range(5):
            with suppress(KeyError):
                step(training, model, optimizer, training.parts[rank])
    return monitor.history.steps


def scaled(rank: int) -> dict[str, Any]:
    """A gradient scaler, which skips the step in which rank 1 has an infinite loss."""
    training = TRAININGS["float32"]
    model = training.wrapped()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with vg.watch(model, optimizer, every=1, scaler=scaler) as monitor:
        for index in range(4):
            optimizer.zero_grad()
            loss = training.loss(model, training.parts[rank][0])
            scaler.scale(loss * (float("inf") if (index, rank) == (1, 1) else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
    return {"snapshots": list(monitor.history), "steps": monitor.step}


def two_models(rank: int) -> list[list[str]]:
    """Two monitors, whose samples fall into the same round."""
    trainings = [TRAININGS["plain"], TRAININGS["uneven, unused"]]
    models = [training.wrapped() for training in trainings]
    optimizers = [sgd(model) for model in models]
    with vg.watch(models[0], optimizers[0], every=1) as first, vg.watch(models[1], optimizers[1], every=2) as second:
        for _ in range(STEPS):
            for training, model, optimizer in zip(trainings, models, optimizers, strict=True):
                step(training, model, optimizer, training.parts[rank])
    return [[f"{s.step} {' '.join(x.name for x in s.layers)}" for s in m.history] for m in (first, second)]


def log(rank: int, folder: Path) -> None:
    """The same folder on both ranks, one of its own for each, and a SummaryWriter on both."""
    from torch.utils.tensorboard import SummaryWriter

    training = TRAININGS["plain"]
    model = training.wrapped()
    optimizer = sgd(model)
    writer = SummaryWriter(folder / f"user{rank}")
    with (
        vg.watch(model, optimizer, logdir=folder / "same", every=1),
        vg.watch(model, optimizer, logdir=folder / f"own{rank}", every=1),
        vg.watch(model, optimizer, writer=writer, every=1),
    ):
        for _ in range(STEPS):
            step(training, model, optimizer, training.parts[rank])
    writer.close()


def join(rank: int) -> dict[str, Any]:
    """Rank 1 has fewer batches, twice over."""
    training = TRAININGS["plain"]
    model = training.wrapped()
    optimizer = sgd(model)
    with warnings.catch_warnings(record=True) as caught, vg.watch(model, optimizer, every=1) as monitor:
        warnings.simplefilter("always")
        for _ in range(2):
            with model.join():  # type: ignore[operator]
                for _ in range(4 if rank == 0 else 2):
                    step(training, model, optimizer, training.parts[rank])
    return {"snapshots": list(monitor.history), "warnings": [str(w.message) for w in caught]}


def destroyed(rank: int) -> dict[str, Any]:
    """The process group ends before the block does; then each process trains on alone."""
    training = TRAININGS["plain"]
    model = training.wrapped()
    optimizer = sgd(model)
    with warnings.catch_warnings(record=True) as caught, vg.watch(model, optimizer, every=1) as monitor:
        warnings.simplefilter("always")
        step(training, model, optimizer, training.parts[rank])
        dist.destroy_process_group()
        for _ in range(STEPS):
            step(training, model.module, optimizer, training.parts[rank])  # type: ignore[arg-type]
    return {"snapshots": list(monitor.history), "warnings": [str(w.message) for w in caught]}


def leaves(monitor: vg.Monitor, optimizer: torch.optim.Optimizer) -> None:
    """Watch no longer, and train on."""
    monitor.__exit__(None, None, None)


def dies(monitor: vg.Monitor, optimizer: torch.optim.Optimizer) -> None:
    """End between the backward pass and the meeting of the ranks."""
    optimizer.register_step_pre_hook(lambda *_: os._exit(7))


def lost(folder: Path) -> None:
    """Rank 1 does not come to the second sample; rank 0 leaves what its error said, and after how long."""
    rank = dist.get_rank()
    distributed._WARN_AFTER = TIMEOUT / 2
    for way in (leaves, dies):
        dist.barrier()  # in the default group, which has more patience
        training = Training(options={"process_group": dist.new_group(timeout=timedelta(seconds=TIMEOUT))})
        model = training.wrapped()
        optimizer = sgd(model)
        with vg.watch(model, optimizer, every=1) as monitor, warnings.catch_warnings(record=True) as caught:
            step(training, model, optimizer, training.parts[rank])
            if rank == 1:
                way(monitor, optimizer)
            started = time.monotonic()
            try:
                step(training, model, optimizer, training.parts[rank])
            except RuntimeError as error:
                waited = time.monotonic() - started
                told = {"waited": waited, "notes": error.__notes__, "warnings": [str(w.message) for w in caught]}
                (folder / f"{way.__name__}.pkl").write_bytes(pickle.dumps(told))
    os._exit(0)  # the default group is broken, and closing it would wait


def seen(rank: int, folder: Path) -> dict[str, Any]:
    from tests.support import shared_runs  # with the data sets, for which not every script has the time

    found: dict[str, Any] = {name: watched_and_not(name, rank) for name in TRAININGS}
    for scene in (budget, raising, scaled, two_models, join):
        found[scene.__name__] = scene(rank)
    log(rank, folder)
    found |= shared_runs.seen(rank, folder)
    found["destroyed"] = destroyed(rank)
    return found


def main(folder: Path, what: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    if what == "lost":
        lost(folder)
    rank = dist.get_rank()
    (folder / f"rank{rank}.pkl").write_bytes(pickle.dumps(seen(rank, folder)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
