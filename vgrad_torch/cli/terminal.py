"""What the terminal shows of a run or a prediction: pictures, tables and sentences. Nothing is printed here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vgrad_torch.records import QUANTITIES, LayerSnapshot, Snapshot
from vgrad_torch.theory.criticality import Criticality
from vgrad_torch.theory.prediction import Prediction
from vgrad_torch.verdict.cutoffs import KEPT

if TYPE_CHECKING:  # a prediction is shown without loading torch
    from vgrad_torch.training.evaluation import Epoch
    from vgrad_torch.training.recipes import TrainConfig

_DECADES = (-10.0, 0.0)  # the bars' axis, log10 of the RMS
_WIDTH = 40


def epoch_line(epoch: Epoch, epochs: int, snapshot: Snapshot | None) -> str:
    """One epoch in one line: losses, accuracies, the gradient of the first and last layer, and speed."""
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


def live_picture(epoch: Epoch, epochs: int, snapshot: Snapshot | None, console: Console) -> RenderableType:
    """Progress, the numbers of the epoch, and a bar for each layer; fitted to the size of the terminal."""
    speed = "" if math.isnan(epoch.samples_per_second) else f"  {epoch.samples_per_second:,.0f} samples/s"
    head = Table.grid(padding=(0, 2))
    head.add_row(f"epoch {epoch.number}/{epochs}{speed}", ProgressBar(total=epochs, completed=epoch.number, width=24))
    score = (
        f"loss {epoch.train.loss:.4f} (validation {epoch.validation.loss:.4f})"
        f"  accuracy {epoch.train.accuracy:.3f} ({epoch.validation.accuracy:.3f})"
    )
    bars = [] if snapshot is None else [gradient_bars(snapshot, console)]
    return Group(head, score, *bars)


def gradient_bars(snapshot: Snapshot, console: Console) -> RenderableType:
    """A bar for each layer, first layer on top: RMS of the weight gradient on a log axis from 1e-10 to 1.

    If the terminal is too low for all layers, it shows the first and the last ones.
    """
    longest = max(len(layer.label) for layer in snapshot.layers)
    width = min(max(console.width - longest - 10, 8), _WIDTH)
    full, empty = ("#", ".") if console.options.ascii_only else ("█", "·")
    grid = Table.grid(padding=(0, 1))
    for layer in _first_and_last(snapshot.layers, max(console.height - 6, 2)):
        if layer is None:
            grid.add_row("...")
            continue
        rms = layer.weight_gradient.rms if layer.weight_gradient else math.nan
        grid.add_row(Text(layer.label, justify="right"), _bar(rms, width, full, empty), _rms(layer))
    low, high = _DECADES
    axis = f"1e{low:.0f}".ljust(width - 1) + f"{10**high:.0f}"
    grid.add_row("", Text(axis, style="dim"), Text("RMS", style="dim"))
    return grid


def _first_and_last(layers: Sequence[LayerSnapshot], most: int) -> list[LayerSnapshot | None]:
    """All layers; or `most` entries from both ends, with None for the layers that are left out."""
    if len(layers) <= most:
        return list(layers)
    top = most // 2
    return [*layers[:top], None, *layers[len(layers) - (most - top - 1) :]]


def _bar(rms: float, width: int, full: str, empty: str) -> Text:
    if not rms > 0:
        return Text(empty * width, style="dim")
    low, high = _DECADES
    share = min(max((math.log10(rms) - low) / (high - low), 0.0), 1.0)
    cells = max(round(share * width), 1)
    bar = Text(full * cells, style="red" if share < 0.4 else "yellow" if share < 0.6 else "green")
    return bar.append(empty * (width - cells), style="dim")


def _rms(layer: LayerSnapshot) -> str:
    return "none" if layer.weight_gradient is None else f"{layer.weight_gradient.rms:.1e}"


def layer_table(snapshot: Snapshot) -> Table:
    """One sample, layer by layer: the weight gradient, the gains of weight and activation, and the update ratio."""
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
    """The result of the run in a few sentences with measured numbers."""
    start, end = epochs[0], epochs[-1]
    result = (
        f"After {_count(end.number, 'epoch')} ({_count(end.step, 'step')}) {config.act} with {config.init} weights "
        f"classifies {end.validation.accuracy:.1%} of the validation part correctly, {end.train.accuracy:.1%} of the "
        f"training part; guessing gives {1 / classes:.0%}. The training loss went from {start.train.loss:.4g} to "
        f"{end.train.loss:.4g}."
    )
    later = [] if last is first else [_first_and_last_gradient(last, f"At step {last.step:,}")]
    return " ".join([result, _first_and_last_gradient(first, "Before training"), *later])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _first_and_last_gradient(snapshot: Snapshot, when: str) -> str:
    bottom, top = snapshot.layers[0], snapshot.layers[-1]
    if bottom is top and bottom.weight_gradient:
        return f"{when} the gradient RMS of {bottom.label} was {bottom.weight_gradient.rms:.1e}."
    if bottom.weight_gradient is None or top.weight_gradient is None:
        return f"{when} the first or the last layer had no gradient."
    low, high = bottom.weight_gradient.rms, top.weight_gradient.rms
    if not low or not high:
        return f"{when} the gradient RMS of {bottom.label} was {low:.1e} and of {top.label} {high:.1e}."
    relation = f"{high / low:,.2g} times smaller than" if low < high else f"{low / high:,.2g} times larger than"
    return f"{when} the gradient RMS of {bottom.label} was {low:.1e}, {relation} {top.label}'s {high:.1e}."


def monitor_lines(snapshot: Snapshot, pattern: re.Pattern[str]) -> Iterator[str]:
    """As MXNet's Monitor prints it: step, `layer.quantity` and RMS of every quantity that matches the pattern."""
    for layer in snapshot.layers:
        for quantity in QUANTITIES:
            name = f"{layer.label}.{quantity}"
            stats = getattr(layer, quantity)
            if stats is not None and pattern.match(name):
                yield f"step {snapshot.step:>7}  {name:<28} {stats.rms:.6g}"


def prediction_table(prediction: Prediction, console: Console) -> Table:
    """What theory expects of each layer. The bar is the output gradient's norm divided by the largest, 1e-10 to 1."""
    title = f"{prediction.activation}, {prediction.init} weights: expected before training"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("layer", no_wrap=True)
    for column in (
        "output\nRMS",
        "output\ngradient\nRMS",
        "gradient\nnorm",
        "relative\nto last",
        "weight\ngradient\nRMS",
        "chi_1",
    ):
        table.add_column(column, justify="left" if "norm" in column else "right", no_wrap=True, vertical="bottom")
    largest = max(layer.output_gradient_norm for layer in prediction.layers)
    full, empty = ("#", ".") if console.options.ascii_only else ("█", "·")
    for layer in prediction.layers:
        table.add_row(
            f"{layer.name} {layer.fan_in}x{layer.fan_out}", f"{layer.output_rms:.2g}",
            f"{layer.output_gradient_rms:.1e}", _bar(layer.output_gradient_norm / largest, 16, full, empty),
            f"{layer.output_gradient_norm / prediction.layers[-1].output_gradient_norm:.1e}",
            f"{layer.weight_gradient_rms:.1e}", _number(layer.chi, ".3f"),
        )  # fmt: skip
    return table


def prediction_paragraph(prediction: Prediction) -> str:
    """How the gradient changes with depth, how deep such a network could be, and which weights keep the gradient."""
    return " ".join(
        [_expected_ratio(prediction), _infinite_depth(prediction.criticality), _critical(prediction.criticality)]
    )


def _expected_ratio(prediction: Prediction) -> str:
    first, last = prediction.layers[0].name, prediction.layers[-1].name
    if first == last:
        return "A single layer passes no gradient to others."
    ratio = prediction.norm_ratio
    word = "falls" if ratio < KEPT[0] else "grows" if ratio > KEPT[1] else "keeps its size"
    return (
        f"The gradient {word} from {last} to {first}: {first} is expected to receive {ratio:.2g} of the gradient "
        f"that {last} receives. One network in three differs from this by more than a factor of "
        f"{10 ** min(prediction.scatter, 300):.2g}."
    )


def _infinite_depth(criticality: Criticality) -> str:
    limit = {0.0: "vanishes", math.inf: "grows without bound"}
    signal = limit.get(criticality.fixed_point, f"settles at a variance of q* = {criticality.fixed_point:.2g}")
    layers = f"With infinitely many layers like these (sigma_w^2 = {criticality.variance:.3g})"
    factor = f"each layer multiplies the gradient's squared norm by chi_1 = {criticality.chi:.3g}"
    start = f"{layers}, the signal {signal}; {factor}"
    if math.isinf(criticality.depth_scale):
        return f"{start}. This is critical: a gradient passes through any number of layers."
    return (
        f"{start}. The depth scale xi is {criticality.depth_scale:.2g} layers, and about "
        f"6 xi = {6 * criticality.depth_scale:.2g} layers can be trained."
    )


def _critical(criticality: Criticality) -> str:
    if not criticality.critical_variances:
        return "With this bias no weights are critical."
    which = ("for small signals ", "for large signals ") if len(criticality.critical_variances) > 1 else ("",)
    points = [
        f"{variance:.3g} {signals}(weights {gain:.2g} times as large)"
        for variance, gain, signals in zip(
            criticality.critical_variances, criticality.critical_gains, which, strict=True
        )
    ]
    return f"chi_1 would be 1 at sigma_w^2 = {', '.join(points)}."
