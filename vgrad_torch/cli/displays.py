"""The progress of a run or a sweep: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vgrad_torch.cli import terminal

if TYPE_CHECKING:  # training does not import the sweep
    from vgrad_torch.records import Snapshot
    from vgrad_torch.sweep.grid import Sweep
    from vgrad_torch.sweep.outcome import Outcome
    from vgrad_torch.training.evaluation import Epoch
    from vgrad_torch.training.recipes import TrainConfig
    from vgrad_torch.watching.monitor import Monitor


class RunDisplay:
    """The progress of a run. `pattern` selects the statistics that are printed for each sample."""

    def __init__(self, config: TrainConfig, console: Console, pattern: re.Pattern[str] | None) -> None:
        self._config = config
        self._console = console
        self._pattern = pattern
        self._verdict = ""
        self._live = Live(console=console, refresh_per_second=8) if console.is_terminal else None

    def __enter__(self) -> None:
        if self._live is not None:
            self._live.start()

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def print_line(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False)

    def start(self, folder: Path, epoch: Epoch) -> None:
        """Show the run's folder, its settings and its first state."""
        resumed = f" continues after epoch {epoch.number}" if epoch.number else ""
        self.print_line(f"run {folder}{resumed}: {_summary(self._config)}")
        self._show(epoch, None)

    def epoch(self, epoch: Epoch, monitor: Monitor) -> None:
        """Show an epoch, and the verdict if it changed."""
        self._show(epoch, monitor.history[-1])
        diagnosis = monitor.diagnose()
        if diagnosis.verdict != self._verdict:
            self._verdict = diagnosis.verdict
            self.print_line(f"verdict at step {diagnosis.evidence.step:,}: {diagnosis.verdict}. {diagnosis.because}")

    def _show(self, epoch: Epoch, snapshot: Snapshot | None) -> None:
        if self._live is None:
            self.print_line(terminal.epoch_line(epoch, self._config.epochs, snapshot))
        else:
            self._live.update(terminal.live_picture(epoch, self._config.epochs, snapshot, self._console))

    def sample(self, snapshot: Snapshot) -> None:
        """Print the statistics of a sample that match the pattern."""
        if self._pattern is None:
            return
        lines = list(terminal.monitor_lines(snapshot, self._pattern))
        if not lines and snapshot.step == 0:
            example = f"{snapshot.layers[0].label}.weight_gradient"
            self.print_line(f"--monitor {self._pattern.pattern!r} matches nothing; names look like {example}")
        for line in lines:
            self.print_line(line)


class SweepDisplay:
    """The progress of a sweep: a bar on a terminal, a line for each network elsewhere. Failures are always printed."""

    def __init__(self, grid: Sweep, console: Console) -> None:
        finished = grid.finished()
        self._console = console
        self._failed = sum(outcome.error is not None for outcome in finished)
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
        self._progress = Progress(*columns, console=console, speed_estimate_period=600, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=len(grid.configs), completed=len(finished))
        self._started = time.monotonic()
        self._new = 0
        self._describe()
        earlier = f", {len(finished)} of them already trained" if finished else ""
        self.print_line(f"sweep {grid.folder}: {len(grid.configs)} networks{earlier}")

    def __enter__(self) -> SweepDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def print_line(self, line: str) -> None:
        """Print a line, above the bar."""
        self._progress.console.print(line, markup=False)

    def outcome(self, outcome: Outcome) -> None:
        """Count a finished network and print its line."""
        self._new += 1
        self._failed += outcome.error is not None
        self._progress.advance(self._task)
        self._describe()
        name = outcome.config.name
        if outcome.error is not None:
            self.print_line(f"{self._counts()}  {name} failed: {outcome.error}")
        elif not self._console.is_terminal:
            self.print_line(f"{self._counts()}  {name}: accuracy {outcome.accuracy:.3f}, {outcome.verdict}")

    def _describe(self) -> None:
        self._progress.update(self._task, description=self._counts())

    def _counts(self) -> str:
        task = self._progress.tasks[0]
        done, total = int(task.completed), int(task.total or 0)
        counts = f"{done}/{total} done, {self._failed} failed"
        if not self._new or self._console.is_terminal:
            return counts
        left = (time.monotonic() - self._started) / self._new * (total - done)
        return f"{counts}, {left:.0f} s left"


def _summary(config: TrainConfig) -> str:
    widths = "-".join(str(width) for width in config.hidden) or "none"
    options = {
        f"{config.norm} norm": config.norm, "residual": config.residual, f"gain {config.gain:g}": config.gain != 1,
        f"biases {config.bias:g}": config.bias, f"gradient clipped to {config.clip}": config.clip,
    }  # fmt: skip
    parts = [
        config.data, f"hidden layers {widths}", config.act, f"{config.init} weights",
        *(text for text, is_set in options.items() if is_set),
        f"{config.optimizer} lr {config.lr:g}", f"batch {config.batch}", f"{config.epochs} epochs",
        f"seed {config.seed}",
    ]  # fmt: skip
    return ", ".join(parts)
