"""The runs of a sweep: ordinary runs, each in its own folder. A finished run has one more file, its outcome."""

from __future__ import annotations

import dataclasses
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

from vgrad_torch import training
from vgrad_torch.errors import UsageError
from vgrad_torch.files import lock, write_whole
from vgrad_torch.training.recipes import TrainConfig

RESULT = "result.json"
"""The file in the folder of a finished run: its config and its outcome. It is written last."""

LOCKS = ".cells"
"""The folder beside the runs: a file for each run that a sweep began, locked while a process trains it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run. If it failed, the numbers are NaN, and `error` says in a sentence what happened."""

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
    """False if another try may succeed, for example after a full disk: such a run is trained again."""


def run_folder(config: TrainConfig) -> Path:
    """The folder of a run."""
    return Path(config.runs) / config.name


def finished_outcome(config: TrainConfig) -> Outcome | None:
    """The outcome of a finished run; None if it was not begun or not finished.

    Raises:
        UsageError: the folder holds something else.
    """
    folder = run_folder(config)
    try:
        content = json.loads((folder / RESULT).read_text())
        kept, outcome = content["config"], _outcome_of(config, content["outcome"])
    except FileNotFoundError:
        if folder.exists() and not _lock_file(folder).exists():
            raise UsageError(f"{folder} is not a run of a sweep; choose another --name for the sweep") from None
        return None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"cannot read {folder / RESULT}; delete that folder, or choose another --name") from None
    for field, value in _comparable(config).items():
        if kept.get(field) != value:
            raise UsageError(
                f"{folder} belongs to another sweep: its {field} is {kept.get(field)}, not {value}; "
                "choose another --name, or delete that folder"
            )
    return outcome


def train_run(config: TrainConfig, parent: int | None = None) -> Outcome:
    """Train a run from the start on one thread, unless it is finished. An exception becomes the outcome's `error`.

    `parent` is a process id: when that process ends, this one ends too.
    """
    if parent not in (None, os.getpid()):
        _end_with(parent)
    try:
        with _locked(run_folder(config)):
            return finished_outcome(config) or _trained(config)
    except (UsageError, OSError, RuntimeError, MemoryError) as error:
        return Outcome(config, verdict="", error=f"{error}" or type(error).__name__, finished=False)


def _trained(config: TrainConfig) -> Outcome:
    folder = run_folder(config)
    if folder.exists():
        shutil.rmtree(folder)
    with _one_thread(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # of NaN and of an incomplete log, which are part of the outcome
        try:
            outcome = _outcome(training.run(config))
        except training.NonFiniteError as error:
            outcome = Outcome(config, error=str(error))
    if outcome.finished:
        _write_outcome(folder, outcome)
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
    """The config as JSON, without the folders of runs and data, which may have been moved."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return {key: value for key, value in values.items() if key not in ("runs", "data_dir")}


_NUMBERS = ("accuracy", "loss", "gradient_start", "gradient_end")


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON, without its config; None for a number that is not finite."""
    values = {key: getattr(outcome, key) for key in _NUMBERS}
    numbers = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return {**numbers, "verdict": outcome.verdict, "error": outcome.error}


def _outcome_of(config: TrainConfig, content: Mapping[str, Any]) -> Outcome:
    accuracy, loss, start, end = (math.nan if content[key] is None else float(content[key]) for key in _NUMBERS)
    return Outcome(config, accuracy, loss, start, end, str(content["verdict"]), content["error"])


def _write_outcome(folder: Path, outcome: Outcome) -> None:
    """Mark a run as finished, after all its files are on the disk."""
    content = {"config": _comparable(outcome.config), "outcome": as_json(outcome), "torch": str(torch.__version__)}
    for path in folder.iterdir():
        _sync(path)
    write_whole(folder / RESULT, (json.dumps(content, indent=2) + "\n").encode())


def _sync(path: Path) -> None:
    """Write a file's content to the disk."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock_file(folder: Path) -> Path:
    return folder.parent / LOCKS / folder.name


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process trains this run, and lock it; the lock ends with this process."""
    path = _lock_file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        lock(file.fileno(), wait=True)
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch: sums depend on the number of threads, and the runs share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_watched: set[int | None] = set()


def _end_with(parent: int | None) -> None:
    """End this process when its parent ends, since a killed parent cannot end it."""
    if parent not in _watched:
        _watched.add(parent)
        threading.Thread(target=_wait_for_end, args=(parent,), daemon=True).start()


def _wait_for_end(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
