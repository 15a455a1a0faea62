"""A run on a terminal: the live picture, the table of layers, the result in words. Nothing is printed here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vgrad_torch.records import QUANTITIES, LayerSnapshot, Snapshot
from vgrad_torch.training import Epoch, TrainConfig

_DECADES = (-10.0, 0.0)  # the bars' axis, log10 of the RMS
_WIDTH = 40


def epoch_line(epoch: Epoch, epochs: int, snapshot: Snapshot | None) -> str:
    """One epoch in one plain line: losses, accuracies, speed, and the gradient of the first and last layer."""
    parts = [
        f"epoch {epoch.number:>{len(str(epochs))}}/{epochs}",
        f"loss {epoch.train.loss:.4f} (validation {epoch.validation.loss:.4f})",
        f"accuracy {epoch.train.accuracy:.3f} ({epoch.validation.accuracy:.3f})",
    ]
    if snapshot is not None:
        first, last = snapshot.layers[0], snapshot.layers[-1]
        parts.append(f"gradient {first.label} {_rms(first)} {last.label} {_rms(last)}")
    if not math.isnan(epoch.seconds):
        parts.append(f"{epoch.seconds:.2f} s, {epoch.samples_per_second:,.0f} samples/s")
    return "  ".join(parts)


def live_picture(epoch: Epoch, epochs: int, snapshot: Snapshot | None) -> RenderableType:
    """Progress, the epoch's numbers, and a bar per layer: log10 of the weight gradient's RMS from 1e-10 to 1."""
    head = Table.grid(padding=(0, 2))
    head.add_row(
        f"epoch {epoch.number}/{epochs}",
        ProgressBar(total=epochs, completed=epoch.number, width=24),
        f"loss {epoch.train.loss:.4f}",
        f"accuracy {epoch.train.accuracy:.3f} train, {epoch.validation.accuracy:.3f} validation",
        "" if math.isnan(epoch.samples_per_second) else f"{epoch.samples_per_second:,.0f} samples/s",
    )
    return head if snapshot is None else Group(head, gradient_bars(snapshot))


def gradient_bars(snapshot: Snapshot) -> RenderableType:
    """The small picture of the gradient's way down: one bar per layer, first layer on top, 4 cells to a decade."""
    grid = Table.grid(padding=(0, 1))
    for layer in snapshot.layers:
        rms = layer.weight_gradient.rms if layer.weight_gradient else math.nan
        grid.add_row(Text(layer.label, justify="right"), _bar(rms), _rms(layer))
    grid.add_row(
        "", Text("1e-10" + " " * (_WIDTH - 6) + "1", style="dim"), Text("RMS of the weight gradient", style="dim")
    )
    return grid


def _bar(rms: float) -> Text:
    if not rms > 0:
        return Text("·" * _WIDTH, style="dim")
    low, high = _DECADES
    share = min(max((math.log10(rms) - low) / (high - low), 0.0), 1.0)
    cells = max(round(share * _WIDTH), 1)
    return Text("█" * cells, style="red" if share < 0.4 else "yellow" if share < 0.6 else "green").append(
        "·" * (_WIDTH - cells), style="dim"
    )


def _rms(layer: LayerSnapshot) -> str:
    return "none" if layer.weight_gradient is None else f"{layer.weight_gradient.rms:.1e}"


def layer_table(snapshot: Snapshot) -> Table:
    """One sample, layer by layer: the weight gradient, and what weight and activation do to the signal going back."""
    title = f"The layers at step {snapshot.step:,}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1))
    table.add_column("layer", no_wrap=True)
    for column in ("gradient\nRMS", "\nmean", "\nstd", "weight\ngain", "activation\ngain", "update\nratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in snapshot.layers:
        gradient = layer.weight_gradient
        numbers = (gradient.rms, gradient.mean, gradient.std) if gradient else (None, None, None)
        table.add_row(
            Text(f"{layer.label} {layer.size}"), *(_number(n, ".1e") for n in numbers),
            _number(layer.weight_gain, ".3f"), _number(layer.activation_gain, ".3f"),
            _number(layer.update_ratio, ".1e"),
        )  # fmt: skip
    return table


def _number(value: float | None, form: str) -> str:
    if value is None or math.isnan(value):
        return "-"
    return format(value, form if abs(value) < 1e3 else ".1e")


def result_paragraph(
    config: TrainConfig, epochs: Sequence[Epoch], first: Snapshot, last: Snapshot, classes: int
) -> str:
    """What came of the run, in a few sentences of plain words and measured numbers."""
    start, end = epochs[0], epochs[-1]
    learned = (
        f"After {end.number} epochs ({end.step:,} steps) {config.act} with {config.init} weights classifies "
        f"{end.validation.accuracy:.1%} of the validation part and {end.train.accuracy:.1%} of the training part; "
        f"guessing gives {1 / classes:.0%}. The training loss went from {start.train.loss:.4g} to {end.train.loss:.4g}."
    )
    return " ".join([learned, _fading(first, "Before training"), _fading(last, f"At step {last.step:,}")])


def _fading(snapshot: Snapshot, when: str) -> str:
    bottom, top = snapshot.layers[0], snapshot.layers[-1]
    if bottom.weight_gradient is None or top.weight_gradient is None:
        return f"{when} the first or the last layer had no gradient."
    low, high = bottom.weight_gradient.rms, top.weight_gradient.rms
    if not low or not high:
        return f"{when} the gradient RMS of {bottom.label} was {low:.1e} and of {top.label} {high:.1e}."
    relation = f"{high / low:,.2g} times smaller than" if low < high else f"{low / high:,.2g} times larger than"
    return f"{when} the gradient RMS of {bottom.label} was {low:.1e}, {relation} {top.label}'s {high:.1e}."


def monitor_lines(snapshot: Snapshot, pattern: re.Pattern[str]) -> Iterator[str]:
    """The heir of MXNet's Monitor: step, `layer.quantity` and RMS of all that the pattern matches from its start."""
    for layer in snapshot.layers:
        for quantity in QUANTITIES:
            name = f"{layer.label}.{quantity}"
            stats = getattr(layer, quantity)
            if stats is not None and pattern.match(name):
                yield f"step {snapshot.step:>7}  {name:<28} {stats.rms:.6g}"
