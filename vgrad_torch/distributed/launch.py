"""What torchrun tells each of its processes through environment variables. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """The rank of a process among all processes of a run, and among those of its host; both count from 0."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def started_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def place() -> Place:
    """The place of this process; rank 0 of 1 if torchrun did not start it."""
    if not started_by_torchrun():
        return Place()
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))


def restart_count() -> int:
    """How often torchrun restarted the processes after one ended with an error (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_id() -> str:
    """What identifies one launch of torchrun over its restarts: its id and the process id of torchrun."""
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {os.getppid()}"


def prints_for_host() -> bool:
    """Whether this process prints for its host, so that a message appears once on each terminal."""
    return place().local_rank == 0


@contextmanager
def only_rank_0_prints() -> Iterator[None]:
    """Inside the block, the standard output of all ranks but 0 is discarded."""
    if place().rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield
