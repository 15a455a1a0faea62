"""The processes that train one network together: how they meet, agree and end, and each one's share of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vgrad_torch.distributed import launch
from vgrad_torch.errors import UsageError

Made = TypeVar("Made")
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others before it gives up; rank 0 may be downloading a data set meanwhile."""

_LAST_WORDS = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of one run as one of them sees them; `ALONE` is a process of its own.

    What is said of all ranks is a collective call: each must come to it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    joined: bool = False
    """Whether there is a process group."""

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model as all ranks train it: its gradients are those of the mean of their losses.

        A batch norm sees each rank's own samples; the running statistics are those of rank 0.
        """
        if not self.joined:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def share(self, batches: Batches) -> Batches:
        """This rank's part of each batch: every size-th sample, dealt as `DistributedSampler` does."""
        if self.size == 1:
            return batches
        return lambda: ((x[self.rank :: self.size], y[self.rank :: self.size]) for x, y in batches())

    def gather(self, mine: Made) -> list[Made]:
        """What each rank gave, in their order."""
        if not self.joined:
            return [mine]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, mine)
        return cast(list[Made], gathered)

    def all(self, flag: Tensor) -> bool:
        """Whether a condition holds on every rank."""
        if not self.joined:
            return bool(flag)
        least = flag.to(torch.int32)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return bool(least)

    def said(self, words: str | None) -> str | None:
        """What the lowest rank that has something to say says, on all; by its number, unless all say the same."""
        words_of = self.gather(words)
        speaker = next((rank for rank, said in enumerate(words_of) if said), None)
        if speaker is None:
            return None
        return words_of[speaker] if len(set(words_of)) == 1 else f"on rank {speaker}: {words_of[speaker]}"

    def together(self, work: Callable[[], Made]) -> Made:
        """What this rank makes of it, if none is refused it.

        Raises:
            UsageError: one was; on all ranks the same.
        """
        if not self.joined:
            return work()
        made, fault = _tried(work)
        if fault := self.said(fault):
            raise UsageError(fault)
        return cast(Made, made)

    def first(self, work: Callable[[], Made]) -> Made:
        """What rank 0 makes of it, on all ranks.

        Raises:
            UsageError: rank 0 was refused it; on all ranks the same.
        """
        if not self.joined:
            return work()
        made, fault = self.gather(_tried(work) if self.rank == 0 else (None, None))[0]
        if fault:
            raise UsageError(fault)
        return cast(Made, made)

    def check_alike(self, options: Mapping[str, object]) -> None:
        """Whether all ranks were given the same.

        Raises:
            UsageError: one was not; on all ranks the same.
        """
        of_rank = self.gather(options)
        for rank, given in enumerate(of_rank):
            for name in (name for name in options if given[name] != of_rank[0][name]):
                raise UsageError(
                    f"rank {rank} was given {name} {given[name]}, but rank 0 {of_rank[0][name]}; give all the same"
                )

    @contextmanager
    def host_by_host(self) -> Iterator[None]:
        """One process of each host goes through the block before the others: it downloads, they find the files."""
        if self.joined and self.local_rank > 0:
            dist.barrier()
        try:
            yield
        finally:
            if self.joined and self.local_rank == 0:
                dist.barrier()


def _tried(work: Callable[[], Made]) -> tuple[Made | None, str | None]:
    try:
        return work(), None
    except UsageError as error:
        return None, str(error)


ALONE = Team()


def team() -> Team:
    """This process's team: those that torchrun started, inside `gathered`; else it is alone."""
    if not (launch.launched() and dist.is_initialized()):
        return ALONE
    place = launch.place()
    return Team(place.rank, place.size, place.local_rank, _device(place), joined=True)


def _device(place: launch.Place) -> torch.device:
    """A GPU of its own, if each process of this host can have one."""
    enough = torch.cuda.device_count() >= place.local_size
    return torch.device("cuda", place.local_rank) if enough else torch.device("cpu")


@contextmanager
def gathered() -> Iterator[None]:
    """The processes that torchrun started have a process group inside the block: NCCL's on GPUs, else gloo's.

    They leave it together, as torchrun ends all others when one ends with an error.
    """
    device = _device(launch.place())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))  # type: ignore[attr-defined]
    # the addresses of those that ended are still in the store
    fresh = dist.PrefixStore(f"start {launch.restarts()}", store)  # type: ignore[attr-defined]
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield
        dist.barrier(async_op=True).wait(_LAST_WORDS)
    except BaseException as error:
        if device.type == "cpu":  # NCCL's would wait for those that do not come
            dist.destroy_process_group()
        if isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise ConnectionError(_lost(error)) from error
        raise
    dist.destroy_process_group()


def _lost(error: RuntimeError) -> str:
    place = launch.place()
    reason = str(error).split("] ", 1)[-1].split(". This")[0]
    return (
        f"rank {place.rank} of {place.size} lost the others, {reason}; the one that ended first, and how, is in what "
        "torchrun reports"
    )
