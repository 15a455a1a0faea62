"""The processes that train one network: their process group, their collective calls, and the share of each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vgrad_torch.distributed import launch
from vgrad_torch.errors import UsageError

Value = TypeVar("Value")
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others, for example while rank 0 downloads a data set."""

_END_TIMEOUT = timedelta(seconds=30)
_ERROR_TIMEOUT = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of one run, seen from one of them. `ALONE` is a single process.

    Every method that mentions all ranks is a collective call: each rank must call it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    joined: bool = False
    """Whether there is a process group."""

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model for all ranks: its gradients are those of the mean of the ranks' losses.

        Batch norm uses each rank's own samples; the running statistics are those of rank 0.
        """
        if not self.joined:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def share(self, batches: Batches) -> Batches:
        """This rank's part of each batch: every size-th sample, as `DistributedSampler` does it."""
        if self.size == 1:
            return batches
        return lambda: ((x[self.rank :: self.size], y[self.rank :: self.size]) for x, y in batches())

    def gather(self, own: Value) -> list[Value]:
        """The values of all ranks, in order."""
        if not self.joined:
            return [own]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, own)
        return cast(list[Value], gathered)

    def all(self, flag: Tensor) -> bool:
        """Whether a condition holds on every rank."""
        if not self.joined:
            return bool(flag)
        least = flag.to(torch.int32)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return bool(least)

    def first_message(self, message: str | None) -> str | None:
        """The message of the lowest rank that has one, on all ranks; with the rank, unless all messages are equal."""
        messages = self.gather(message)
        rank = next((rank for rank, message in enumerate(messages) if message), None)
        if rank is None:
            return None
        return messages[rank] if len(set(messages)) == 1 else f"on rank {rank}: {messages[rank]}"

    def on_all_ranks(self, work: Callable[[], Value]) -> Value:
        """The result of `work` on this rank, if it succeeds on all ranks.

        Raises:
            UsageError: it was raised on a rank; then the same error is raised on all.
        """
        if not self.joined:
            return work()
        result, fault = _tried(work)
        if fault := self.first_message(fault):
            raise UsageError(fault)
        return cast(Value, result)

    def on_rank_0(self, work: Callable[[], Value]) -> Value:
        """The result of `work` on rank 0, on all ranks.

        Raises:
            UsageError: it was raised on rank 0; then the same error is raised on all.
        """
        if not self.joined:
            return work()
        result, fault = self.gather(_tried(work) if self.rank == 0 else (None, None))[0]
        if fault:
            raise UsageError(fault)
        return cast(Value, result)

    def check_equal(self, options: Mapping[str, object]) -> None:
        """Check that all ranks have the same options.

        Raises:
            UsageError: they differ; then the same error is raised on all.
        """
        by_rank = self.gather(options)
        for rank, given in enumerate(by_rank):
            for name in (name for name in options if given[name] != by_rank[0][name]):
                raise UsageError(
                    f"rank {rank} has {name} {given[name]}, but rank 0 has {by_rank[0][name]}; start all with the same"
                )

    @contextmanager
    def one_per_host_first(self) -> Iterator[None]:
        """One process of each host runs the block before the others, so that only one downloads files."""
        if self.joined and self.local_rank > 0:
            dist.barrier()
        try:
            yield
        finally:
            if self.joined and self.local_rank == 0:
                dist.barrier()


def _tried(work: Callable[[], Value]) -> tuple[Value | None, str | None]:
    try:
        return work(), None
    except UsageError as error:
        return None, str(error)


ALONE = Team()


def team() -> Team:
    """The team of this process: inside `process_group` all processes of torchrun, otherwise this one alone."""
    if not (launch.started_by_torchrun() and dist.is_initialized()):
        return ALONE
    place = launch.place()
    return Team(place.rank, place.size, place.local_rank, _device(place), joined=True)


def _device(place: launch.Place) -> torch.device:
    """A GPU for this process alone, if the host has one for each process; otherwise the CPU."""
    enough = torch.cuda.device_count() >= place.local_size
    return torch.device("cuda", place.local_rank) if enough else torch.device("cpu")


@contextmanager
def process_group() -> Iterator[None]:
    """Inside the block the processes of torchrun have a process group: NCCL on GPUs, otherwise gloo.

    They leave it together, because torchrun ends all others when one ends with an error.
    """
    device = _device(launch.place())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))  # type: ignore[attr-defined]
    # the store still holds the addresses of processes that ended
    fresh = dist.PrefixStore(f"start {launch.restart_count()}", store)  # type: ignore[attr-defined]
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield
        dist.barrier(async_op=True).wait(_END_TIMEOUT)
    except BaseException as error:
        if device.type == "cpu":  # NCCL would wait for missing processes
            if isinstance(error, UsageError):  # mostly raised on all ranks, see `on_all_ranks`
                with suppress(RuntimeError):
                    dist.barrier(async_op=True).wait(_ERROR_TIMEOUT)
            dist.destroy_process_group()
        if isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise ConnectionError(_lost(error)) from error
        raise
    dist.destroy_process_group()


def _lost(error: RuntimeError) -> str:
    place = launch.place()
    reason = str(error).split("] ", 1)[-1].split(". This")[0]
    return (
        f"rank {place.rank} of {place.size} lost the connection to the others, {reason}; torchrun reports which "
        "process ended first, and how"
    )
