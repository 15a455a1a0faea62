"""Pictures over the depth of a network at one step: the profile of its gradient, and the waterfall of its gains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vgrad_torch.errors import UsageError, choose
from vgrad_torch.records import Floats, Snapshot, Stats
from vgrad_torch.report.figures import style
from vgrad_torch.report.figures.maps import QUANTITIES
from vgrad_torch.verdict.waterfall import Factor, Waterfall, waterfall


@style.styled
def depth_profile(
    runs: Mapping[str, Snapshot], quantity: str = "weight_gradient", *, height: float = 3.2, width: float = 8.0
) -> Figure:
    """RMS by layer on a log axis, first layer left, one line for each entry of `runs`.

    Where all is exactly zero a mark stands at the foot of the picture, where NaN or infinity is in the tensor one at
    its head: neither has a place on the axis.
    """
    words = choose(QUANTITIES, quantity, "quantity")
    figure = style.new_figure(width, height)
    axis = figure.subplots()
    every = {name: _rms(snapshot, quantity) for name, snapshot in runs.items()}
    low, high = style.span(math.log10(v) for values in every.values() for v in values if 0 < v < math.inf)
    for place, values in enumerate(every.values()):
        _profile(axis, values, place, (low, high))
    axis.set_ylim(low, high)
    style.decades(axis.yaxis, low, high)
    axis.grid(axis="y")
    style.layers_along_x(axis, style.common([style.labels(snapshot) for snapshot in runs.values()]))
    axis.set_xlabel("layer, the first one left")
    axis.set_ylabel(words)
    if len(runs) > 1:
        colours = [style.RUNS[i % len(style.RUNS)] for i in range(len(runs))]
        style.legend(axis, list(runs), colours, style.MARKS, loc="upper left", bbox_to_anchor=(1.0, 1.03))
    return figure


def _profile(axis: Axes, values: Sequence[float], place: int, ends: tuple[float, float]) -> None:
    colour, mark = style.RUNS[place % len(style.RUNS)], style.MARKS[place % len(style.MARKS)]
    on_scale = [math.log10(v) if 0 < v < math.inf else math.nan for v in values]
    axis.plot(range(len(values)), on_scale, color=colour, marker=mark if len(values) <= 40 else "")
    air = 0.03 * (ends[1] - ends[0])
    for wanted, height, words in ((0.0, ends[0] + air, "zero"), (math.inf, ends[1] - air, "NaN")):
        for layer in (i for i, v in enumerate(values) if v == wanted):
            axis.plot([layer], [height], marker="X", color=colour, linestyle="", markersize=8)
            axis.annotate(words, (layer, height), (6, 0), textcoords="offset points", va="center", fontsize=8)


def _rms(snapshot: Snapshot, quantity: str) -> list[float]:
    """Infinity where NaN or infinity stood, NaN where nothing was measured."""
    found: list[Stats | None] = [getattr(layer, quantity) for layer in snapshot.layers]
    return [math.nan if s is None else math.inf if s.nonfinite else s.rms for s in found]


@style.styled
def waterfalls(runs: Mapping[str, Snapshot], *, width: float = 8.0) -> Figure:
    """By which factor each weight and each activation multiplies the gradient, from the loss down to the first layer.

    Each bar goes from what is left above it to what is left below it; 1 is the RMS of the last layer's output gradient.
    Where the layers are no chain, as around branches, the bars do not add up to what arrives; that is then written.
    Raises a `UsageError` where none has two layers with a gradient.
    """
    found = {name: fall for name, snapshot in runs.items() if (fall := waterfall(snapshot))}
    falls = {name: factors for name, fall in found.items() if (factors := _drawable(fall))}
    if not falls:
        raise UsageError("a waterfall needs the output and input gradients of two layers")
    longest = max(map(len, falls.values()))
    figure, axes = style.panels(len(falls), min(1.0 + 0.23 * longest, 6.5), width=width)
    style.titles(axes, falls)
    for axis, (name, factors) in zip(axes, falls.items(), strict=True):
        _fall(axis, factors)
        if not found[name].chain:
            axis.set_xlabel(f"no chain: {style.number(found[name].ratio)} arrives")
    low, high = style.span([x for factors in falls.values() for x in _left(factors)])
    high += 0.12 * (high - low)  # room for the numbers
    axes[0].set_xlim(low, high)
    for axis in axes:
        style.decades(axis.xaxis, low, high, 5)
    figure.supxlabel("output gradient, over that of the last layer", fontsize=9)
    words = style.common([[f"{factor.layer} {factor.kind}" for factor in factors] for factors in falls.values()])
    axes[0].set_yticks(*style.layer_ticks(words, 28, 26))
    axes[0].set_ylim(len(words) - 0.4, -0.6)
    kinds = {"weight": style.WEIGHT, "activation": style.ACTIVATION}
    patches = [Patch(color=colour, label=f"{kind} gain") for kind, colour in kinds.items()]
    figure.legend(handles=patches, loc="outside upper right", ncols=2)
    return figure


def _drawable(fall: Waterfall) -> list[Factor]:
    """Those that have a place on a log axis."""
    return [factor for factor in fall.factors if 0 < factor.gain < math.inf]


def _left(factors: Sequence[Factor]) -> Floats:
    """log10 of the product of the first factors, from none of them to all."""
    return np.concatenate([[0.0], np.cumsum(np.log10([factor.gain for factor in factors]))])


def _fall(axis: Axes, factors: Sequence[Factor]) -> None:
    left = _left(factors)
    axis.axvline(0, color=style.MUTED, linewidth=0.8, zorder=0.6)
    for row, factor in enumerate(factors):
        colour = style.WEIGHT if factor.kind == "weight" else style.ACTIVATION
        axis.barh(row, left[row + 1] - left[row], left=left[row], height=0.72, color=colour)
        if len(factors) <= 24:
            axis.annotate(
                f"\N{MULTIPLICATION SIGN}{factor.gain:.2g}", (max(left[row : row + 2]), row), (3, 0),
                textcoords="offset points", va="center", fontsize=7, color=style.MUTED,
                bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6},
            )  # fmt: skip
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
