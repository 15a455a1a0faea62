"""One cell of a sweep: an ordinary run in a folder of its own, and the file in it that says it is finished."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vgrad_torch.errors import UsageError
from vgrad_torch.files import write_whole
from vgrad_torch.training import loop as training
from vgrad_torch.training.recipes import TrainConfig

RESULT = "result.json"
"""In the folder of a finished cell: its config and what came of it. It appears whole, and last."""

CLAIMS = ".cells"
"""Beside the cells' folders: a file for each cell that a sweep ever began, locked while one works on it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a cell; the numbers of one that failed are NaN, and `error` says in a sentence what happened."""

    config: TrainConfig
    accuracy: float = math.nan
    """Of the validation part after the last epoch, 0 to 1."""
    loss: float = math.nan
    """Mean over the training part after the last epoch."""
    gradient_start: float = math.nan
    """RMS of the first layer's weight gradient at step 0."""
    gradient_end: float = math.nan
    """The same at the last sample."""
    verdict: str = "non-finite"
    error: str | None = None
    finished: bool = True
    """False where another try may end otherwise (the disk was full, say): such a cell is made again."""


def folder(config: TrainConfig) -> Path:
    """Where a cell's run lies."""
    return Path(config.runs) / config.name


def found(config: TrainConfig) -> Outcome | None:
    """The outcome of a finished cell; None if it is not there or half done.

    Raises:
        UsageError: the folder holds something else than this cell.
    """
    place = folder(config)
    try:
        content = json.loads((place / RESULT).read_text())
        theirs, outcome = content["config"], _outcome_of(config, content["outcome"])
    except FileNotFoundError:
        if place.exists() and not _claim(place).exists():
            raise UsageError(f"{place} is not of a sweep; choose another --name for the sweep") from None
        return None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"cannot read {place / RESULT}; delete that folder, or choose another --name") from None
    for field, mine in _comparable(config).items():
        if theirs.get(field) != mine:
            raise UsageError(
                f"{place} is of another sweep, with {field} {theirs.get(field)} where this one has {mine}; "
                "choose another --name, or delete that folder"
            )
    return outcome


def make(config: TrainConfig, parent: int | None = None) -> Outcome:
    """Train a cell, on one thread and from the start, unless it is finished; what it raises becomes its `error`.

    `parent` is the process whose end ends this one.
    """
    if parent not in (None, os.getpid()):
        _end_with(parent)
    try:
        with _claimed(folder(config)):
            return found(config) or _made(config)
    except (UsageError, OSError, RuntimeError, MemoryError) as error:
        return Outcome(config, verdict="", error=f"{error}" or type(error).__name__, finished=False)


def _made(config: TrainConfig) -> Outcome:
    place = folder(config)
    if place.exists():
        shutil.rmtree(place)
    with _one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of NaN and of a broken log, which the outcome speaks of
        try:
            outcome = _outcome(training.run(config))
        except training.NonFiniteError as error:
            outcome = Outcome(config, error=str(error))
    if outcome.finished:
        _mark(place, outcome)
    return outcome


def _outcome(result: training.Result) -> Outcome:
    if result.monitor.writer.fault:
        return Outcome(result.config, verdict="", error=result.monitor.writer.fault, finished=False)
    last, history = result.epochs[-1], result.monitor.history
    start, end = (layers[0].weight_gradient for layers in (history[0].layers, history[-1].layers))
    return Outcome(
        result.config, last.validation.accuracy, last.train.loss,
        start.rms if start else math.nan, end.rms if end else math.nan, result.diagnosis.verdict,
    )  # fmt: skip


def _comparable(config: TrainConfig) -> Mapping[str, Any]:
    """The config as JSON has it, without where runs and data lie: they may have been moved."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return {key: value for key, value in values.items() if key not in ("runs", "data_dir")}


_NUMBERS = ("accuracy", "loss", "gradient_start", "gradient_end")


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome without its config, as JSON can hold it: None for a number that is not finite."""
    values = {key: getattr(outcome, key) for key in _NUMBERS}
    numbers = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return {**numbers, "verdict": outcome.verdict, "error": outcome.error}


def _outcome_of(config: TrainConfig, content: Mapping[str, Any]) -> Outcome:
    accuracy, loss, start, end = (math.nan if content[key] is None else float(content[key]) for key in _NUMBERS)
    return Outcome(config, accuracy, loss, start, end, str(content["verdict"]), content["error"])


def _mark(place: Path, outcome: Outcome) -> None:
    """Say that a cell is finished, once all that it wrote is on the disk."""
    content = {"config": _comparable(outcome.config), "outcome": as_json(outcome), "torch": str(torch.__version__)}
    for path in place.iterdir():
        _to_disk(path)
    write_whole(place / RESULT, (json.dumps(content, indent=2) + "\n").encode())


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _claim(place: Path) -> Path:
    return place.parent / CLAIMS / place.name


@contextmanager
def _claimed(place: Path) -> Iterator[None]:
    """Wait until no other process works on the cell, and keep them off; the lock ends with the process that has it."""
    claim = _claim(place)
    claim.parent.mkdir(parents=True, exist_ok=True)
    with claim.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them; and the cells share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_watched: set[int | None] = set()


def _end_with(parent: int | None) -> None:
    """End this process as soon as its parent is gone, which a killed one cannot ask for."""
    if parent not in _watched:
        _watched.add(parent)
        threading.Thread(target=_outlive, args=(parent,), daemon=True).start()


def _outlive(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
