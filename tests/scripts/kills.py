"""Kills trainings with SIGKILL at random instants, resumes them, and compares the end with an undisturbed run's.

`python -m tests.scripts.kills COUNT SEED` says after each run how often it was killed, and where; it ends with 1 if any
run ended with other weights, another log, or without something that it had logged before it was killed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from vgrad_torch.tensorboard.tags import COST

PLANS = {
    "circles": "--data circles --epochs 12 --every 8 --optimizer adam --norm batch --hidden 16,16 --init he",
    "digits": "--data digits --epochs 6 --every 11 --act sigmoid --hidden 64,32",
}
"""The first shuffles before each epoch and has batch norm and Adam; the second shuffles once and has momentum."""

Event = tuple[Any, ...]


class Process(Protocol):
    """What is needed of a process."""

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def communicate(self, *, timeout: float | None = None) -> tuple[str, str]: ...


def start(*arguments: str) -> Process:
    """Train with one thread, since the order of sums depends on the number of threads; warnings are errors.

    Torch 2.6 itself leaves a temporary folder to the end of the process.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    warnings = ["-W", "error", "-W", "ignore:Implicitly cleaning up:ResourceWarning"]
    command = [sys.executable, *warnings, "-m", "vgrad_torch", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: Process) -> None:
    """Wait until the process has ended; it must have exit code 0 and no output on stderr."""
    out, err = process.communicate(timeout=300)
    if process.returncode or err:
        raise AssertionError(f"exit code {process.returncode}: {err}{out}")


def weights(run: Path) -> dict[str, torch.Tensor]:
    kept: dict[str, torch.Tensor] = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    return kept


def events(run: Path) -> list[Event]:
    """Everything in the event file, in order, without times."""
    (path,) = run.glob("*tfevents*")
    return [each for event in LegacyEventFileLoader(str(path)).Load() for each in _values(event)]


def _values(event: Any) -> Iterator[Event]:
    for value in event.summary.value:
        content = value.metadata.plugin_data.content
        if value.tag == COST:
            yield event.step, COST
        elif value.tag.startswith("_hparams_/session"):
            yield event.step, value.tag, len(content)
        else:
            yield event.step, value.tag, value.SerializeToString()


def difference(run: Path, undisturbed: Path, before: Counter[Event]) -> str:
    """How the run ended differently from the undisturbed one; empty if it did not."""
    mine, other = weights(run), weights(undisturbed)
    if list(mine) != list(other) or not all(torch.equal(mine[name], other[name]) for name in mine):
        return "its weights are others"
    if before - Counter(events(run)):
        return "something that was logged is lost"
    return "" if events(run) == events(undisturbed) else "its log is another"


# --- instants -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A training in the folder `runs`, whose event file will have about `size` bytes."""

    process: Process
    runs: Path
    size: int
    chance: random.Random

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds or the process has ended."""
        while not condition() and self.process.poll() is None:
            time.sleep(0.0005)

    def logged(self) -> int:
        """Bytes of the event file."""
        return sum(path.stat().st_size for path in self.runs.glob("*/*tfevents*"))


def at_start(trial: Trial) -> None:
    """Anywhere in the imports, or as the first files appear."""
    files = ["*", "*/config.json", "*/checkpoint.pt.new", "*/checkpoint.pt", "*/*tfevents*"]
    pattern = trial.chance.choice([None, *files])
    if pattern is None or any(trial.runs.glob("*")):
        time.sleep(trial.chance.uniform(0, 4))
    else:
        trial.wait(lambda: any(trial.runs.glob(pattern)))
        time.sleep(trial.chance.choice([0, 0.002, 0.01]))


def in_training(trial: Trial) -> None:
    """When so many bytes more are logged; of a resumed run, after its log was cut back."""
    before = trial.logged()
    target = before + trial.chance.uniform(0, 0.9) * max(trial.size - before, 0)
    trial.wait(lambda: trial.logged() > target)
    time.sleep(trial.chance.uniform(0, 0.02))


def in_a_checkpoint(trial: Trial) -> None:
    """While a checkpoint is being written, or just then put into its place."""
    in_training(trial)
    trial.wait(lambda: any(trial.runs.glob("*/checkpoint.pt.new")))
    time.sleep(trial.chance.choice([0, 0, 0.001, 0.003]))


INSTANTS = (at_start, in_training, in_a_checkpoint)


def killed(trial: Trial, instant: Callable[[Trial], None]) -> bool:
    """Whether it was still running."""
    instant(trial)
    trial.process.kill()
    trial.process.communicate()
    return trial.process.returncode == -signal.SIGKILL


# --- runs -----------------------------------------------------------------------------------------------------------


def undisturbed(plan: str, runs: Path) -> int:
    """Train without a kill; the bytes of its log."""
    process = start(*PLANS[plan].split(), "--runs", str(runs))
    finish(process)
    return Trial(process, runs, 0, random.Random()).logged()


def survivor(
    plan: str,
    runs: Path,
    kills: list[Any],
    size: int,
    chance: random.Random,
    start: Callable[..., Process] = start,
) -> tuple[Path, list[str]]:
    """A run that is killed at these instants, and resumed each time; and where it was when it was killed."""
    run, where, before = None, [], Counter[Event]()
    for instant in [*kills, None]:
        process = start("--resume", str(run)) if run else start(*PLANS[plan].split(), "--runs", str(runs))
        if instant is None:
            finish(process)
        elif killed(Trial(process, runs, size, chance), instant):
            run = next((path.parent for path in runs.glob("*/config.json")), None)
            logged = events(run) if run and any(run.glob("*tfevents*")) else []
            before |= Counter(logged)
            where.append(f"{instant.__name__} ({len(logged)} values logged)")
    run = next(path.parent for path in runs.glob("*/config.json"))
    if fault := difference(run, next((runs.parent / plan).iterdir()), before):
        raise AssertionError(f"{run}, killed {', '.join(where)}: {fault}")
    return run, where


def main(count: int, seed: int) -> None:
    """Kill `count` times, a run up to four times."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {plan: undisturbed(plan, Path(folder) / plan) for plan in PLANS}
        done = number = 0
        while done < count:
            plan, number = chance.choice(list(PLANS)), number + 1
            kills = chance.choices(INSTANTS, weights=(1, 2, 2), k=min(chance.randint(1, 4), count - done))
            _, where = survivor(plan, Path(folder) / f"run{number}", kills, sizes[plan], chance)
            done += len(where)
            print(f"{done:3d} {plan}: killed {'; '.join(where)}: the same weights, the same log", flush=True)
    print(f"{done} kills with seed {seed}: every run ended as if undisturbed")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
