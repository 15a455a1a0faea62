"""What torchrun tells each process that it starts: which one of how many it is. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A process among those of one run: its number, from 0, of all hosts' together, and among those of its host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def place() -> Place:
    """This process's place; the only one's where torchrun did not start it."""
    if not launched():
        return Place()
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))


def restarts() -> int:
    """How often torchrun has started the processes anew, as one had ended with an error (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def mark() -> str:
    """What all starts of one launch have in common: its id, and the process that starts them."""
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {os.getppid()}"


def speaks_for_its_host() -> bool:
    """Whether this process says what all have to say alike: once on the terminal of each host."""
    return place().local_rank == 0


@contextmanager
def one_voice() -> Iterator[None]:
    """What is printed inside is shown of rank 0 alone."""
    if place().rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield
