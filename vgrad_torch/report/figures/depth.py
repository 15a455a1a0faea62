"""Figures over the depth of a network at one step: the profile of its gradient, and the waterfall of its gains."""

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
    """RMS by layer on a log axis, the first layer on the left, one line for each entry of `runs`.

    Two kinds of values have no place on the axis. A mark at the bottom shows a tensor that is exactly zero, a mark at
    the top one that holds NaN or infinity.
    """
    label = choose(QUANTITIES, quantity, "quantity")
    figure = style.new_figure(width, height)
    axis = figure.subplots()
    profiles = {name: _rms(snapshot, quantity) for name, snapshot in runs.items()}
    low, high = style.span(math.log10(v) for values in profiles.values() for v in values if 0 < v < math.inf)
    for run, values in enumerate(profiles.values()):
        _draw_profile(axis, values, run, (low, high))
    axis.set_ylim(low, high)
    style.decades(axis.yaxis, low, high)
    axis.grid(axis="y")
    style.layers_along_x(axis, style.common([style.labels(snapshot) for snapshot in runs.values()]))
    axis.set_xlabel("layer, the first on the left")
    axis.set_ylabel(label)
    if len(runs) > 1:
        colours = [style.RUNS[i % len(style.RUNS)] for i in range(len(runs))]
        style.legend(axis, list(runs), colours, style.MARKS, loc="upper left", bbox_to_anchor=(1.0, 1.03))
    return figure


def _draw_profile(axis: Axes, values: Sequence[float], run: int, ends: tuple[float, float]) -> None:
    colour, mark = style.RUNS[run % len(style.RUNS)], style.MARKS[run % len(style.MARKS)]
    on_scale = [math.log10(v) if 0 < v < math.inf else math.nan for v in values]
    axis.plot(range(len(values)), on_scale, color=colour, marker=mark if len(values) <= 40 else "")
    margin = 0.03 * (ends[1] - ends[0])
    for special, height, label in ((0.0, ends[0] + margin, "zero"), (math.inf, ends[1] - margin, "NaN")):
        for layer in (i for i, v in enumerate(values) if v == special):
            axis.plot([layer], [height], marker="X", color=colour, linestyle="", markersize=8)
            axis.annotate(label, (layer, height), (6, 0), textcoords="offset points", va="center", fontsize=8)


def _rms(snapshot: Snapshot, quantity: str) -> list[float]:
    """RMS of each layer: infinity where the tensor holds NaN or infinity, NaN where nothing was measured."""
    every: list[Stats | None] = [getattr(layer, quantity) for layer in snapshot.layers]
    return [math.nan if s is None else math.inf if s.nonfinite else s.rms for s in every]


@style.styled
def waterfalls(runs: Mapping[str, Snapshot], *, width: float = 8.0) -> Figure:
    """The factor by which each weight and each activation multiplies the gradient, from the last layer to the first.

    A bar goes from the gradient before a factor to the gradient after it; 1 is the RMS of the last layer's output
    gradient. Where the layers are not a chain, as in a model with branches, the factors do not multiply to the first
    layer's gradient; its measured value is then written below the axis.

    Raises:
        UsageError: no run has two layers with a gradient.
    """
    waterfalls = {name: result for name, snapshot in runs.items() if (result := waterfall(snapshot))}
    drawable = {name: factors for name, result in waterfalls.items() if (factors := _drawable(result))}
    if not drawable:
        raise UsageError("a waterfall needs the output and input gradients of two layers")
    longest = max(map(len, drawable.values()))
    figure, axes = style.panels(len(drawable), min(1.0 + 0.23 * longest, 6.5), width=width)
    style.titles(axes, drawable)
    for axis, (name, factors) in zip(axes, drawable.items(), strict=True):
        _draw_bars(axis, factors)
        if not waterfalls[name].chain:
            axis.set_xlabel(f"measured: {style.number(waterfalls[name].ratio)}")
    low, high = style.span([x for factors in drawable.values() for x in _levels(factors)])
    high += 0.12 * (high - low)  # room for the numbers
    axes[0].set_xlim(low, high)
    for axis in axes:
        style.decades(axis.xaxis, low, high, 5)
    figure.supxlabel("output gradient / output gradient of the last layer", fontsize=9)
    rows = style.common([[f"{factor.layer} {factor.kind}" for factor in factors] for factors in drawable.values()])
    axes[0].set_yticks(*style.layer_ticks(rows, 28, 26))
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    kinds = {"weight": style.WEIGHT, "activation": style.ACTIVATION}
    patches = [Patch(color=colour, label=f"{kind} gain") for kind, colour in kinds.items()]
    figure.legend(handles=patches, loc="outside upper right", ncols=2)
    return figure


def _drawable(result: Waterfall) -> list[Factor]:
    """The factors that have a place on a log axis."""
    return [factor for factor in result.factors if 0 < factor.gain < math.inf]


def _levels(factors: Sequence[Factor]) -> Floats:
    """log10 of the product of the first factors, from none of them to all."""
    return np.concatenate([[0.0], np.cumsum(np.log10([factor.gain for factor in factors]))])


def _draw_bars(axis: Axes, factors: Sequence[Factor]) -> None:
    levels = _levels(factors)
    axis.axvline(0, color=style.MUTED, linewidth=0.8, zorder=0.6)
    for row, factor in enumerate(factors):
        colour = style.WEIGHT if factor.kind == "weight" else style.ACTIVATION
        axis.barh(row, levels[row + 1] - levels[row], left=levels[row], height=0.72, color=colour)
        if len(factors) <= 24:
            axis.annotate(
                f"\N{MULTIPLICATION SIGN}{factor.gain:.2g}", (max(levels[row : row + 2]), row), (3, 0),
                textcoords="offset points", va="center", fontsize=7, color=style.MUTED,
                bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6},
            )  # fmt: skip
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
