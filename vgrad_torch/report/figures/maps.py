"""The flow map: one number of every layer at every step as a colour, with one scale for all runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vgrad_torch.errors import UsageError, choose
from vgrad_torch.records import Floats, Snapshot
from vgrad_torch.report.figures import style
from vgrad_torch.tensorboard.plugin.flow import edges

QUANTITIES = {
    "weight_gradient": "RMS of the weight gradient",
    "output_gradient": "RMS of the output gradient",
    "output": "RMS of the output",
    "weight": "RMS of the weight",
}
"""Quantity -> its label."""


@style.styled
def flow_map(
    runs: Mapping[str, Iterable[Snapshot]],
    quantity: str = "weight_gradient",
    *,
    height: float = 2.7,
    width: float = 8.0,
) -> Figure:
    """RMS by layer (the first on top) and step, as colours on one log scale.

    A cell is black where the tensor is exactly zero, red where it holds NaN or infinity, grey where nothing was
    measured. With more than 480 samples, several share a column, which shows red if one of them is red, or else the
    smallest value. All runs share one scale of steps, except those of less than a fifth of the longest.
    """
    label = choose(QUANTITIES, quantity, "quantity")
    maps = {name: _Map(list(history), quantity) for name, history in runs.items()}
    if not maps or not all(len(run.steps) for run in maps.values()):
        raise UsageError("there is no sample to draw")
    scale = _scale([run.values for run in maps.values()])
    figure, axes = style.panels(len(maps), height, width=width, sharex=False)
    style.titles(axes, maps)
    longest = max(run.length for run in maps.values())
    for axis, run in zip(axes, maps.values(), strict=True):
        _draw(axis, run, scale)
        axis.set_xlim(run.edges[0], run.edges[0] + (longest if 5 * run.length >= longest else run.length))
    style.layers_along_y(axes[0], style.common([run.names for run in maps.values()]))
    figure.supxlabel("step", fontsize=9)
    bar = figure.colorbar(ScalarMappable(scale, "viridis"), ax=axes, pad=0.015, aspect=7 * figure.get_figheight())
    style.decades(bar.ax.yaxis, scale.vmin or 0, scale.vmax or 1)
    bar.set_label(label)
    bar.outline.set_visible(False)
    colour_legend(figure, np.concatenate([run.values.ravel() for run in maps.values()]))
    return figure


class _Map:
    """One run as [layers, columns]: 0 for exact zeros, infinity for NaN or infinity, NaN for not measured."""

    def __init__(self, samples: Sequence[Snapshot], quantity: str) -> None:
        labels = {layer.label: None for sample in samples for layer in sample.layers}
        values = np.full((len(samples), len(labels)), np.nan)
        columns = {label: i for i, label in enumerate(labels)}
        for row, sample in enumerate(samples):
            for layer in sample.layers:
                stats = getattr(layer, quantity)
                if stats is not None:
                    values[row, columns[layer.label]] = np.inf if stats.nonfinite else stats.rms
        starts = edges(len(samples))[:-1] if samples else np.zeros(0, np.int64)
        self.names = list(labels)
        self.steps = [sample.step for sample in samples]
        self.values = _smallest(values, starts).T if samples else values.T
        self.edges = column_edges([self.steps[start] for start in starts], self.steps)
        self.length = float(self.edges[-1] - self.edges[0])


def _smallest(values: Floats, starts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
    """The smallest value of each bucket; infinity where one of them is infinite."""
    least = np.fmin.reduceat(values, starts, axis=0)
    nonfinite = np.logical_or.reduceat(np.isinf(values), starts, axis=0)
    return np.where(nonfinite, np.inf, least)


def column_edges(firsts: Sequence[int], steps: Sequence[int]) -> Floats:
    """The edges of the columns on the step axis. The last column is as wide as the distance of the last two steps."""
    if not firsts:
        return np.zeros(1)
    last = steps[-1] + max((steps[-1] - steps[-2]) if len(steps) > 1 else 1, 1)
    return np.array([*firsts, last], np.float64)


def _scale(maps: Sequence[Floats]) -> Normalize:
    """The scale for log10 of all finite values above zero, with whole decades at its ends."""
    every = np.concatenate([values.ravel() for values in maps])
    logs = np.log10(every[(every > 0) & np.isfinite(every)])
    low, high = (np.floor(logs.min()), np.ceil(logs.max())) if logs.size else (-1.0, 0.0)
    return Normalize(float(low), float(max(high, low + 1)))


def _draw(axis: Axes, run: _Map, scale: Normalize) -> None:
    draw_cells(axis, run.edges, np.arange(len(run.names) + 1) - 0.5, run.values, scale)


def draw_cells(axis: Axes, x: Floats, y: npt.NDArray[Any], values: Floats, scale: Normalize) -> None:
    """Draw cells with these edges, in the colours of log10 of the values, and an axis of steps."""
    with np.errstate(divide="ignore"):
        logs = np.log10(values)
    colours = np.asarray(ScalarMappable(scale, "viridis").to_rgba(np.nan_to_num(logs, posinf=0, neginf=0)))
    for cells, colour in (
        (values == 0, style.ZERO),
        (np.isinf(values), style.NONFINITE),
        (np.isnan(values), style.MISSING),
    ):
        colours[cells, :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    axis.pcolormesh(x, y, colours, rasterized=True)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.tick_params(length=0)
    style.step_axis(axis, "")


def colour_legend(figure: Figure, values: Floats, missing: str = "not measured", lines: Sequence[Any] = ()) -> None:
    """Add a legend of the colours off the scale that occur, after `lines`."""
    kinds = {
        "exactly zero": (style.ZERO, (values == 0).any()),
        "NaN or infinite": (style.NONFINITE, np.isinf(values).any()),
        missing: (style.MISSING, np.isnan(values).any()),
    }
    patches = [Patch(color=colour, label=label) for label, (colour, occurs) in kinds.items() if occurs]
    if lines or patches:
        figure.legend(handles=[*lines, *patches], loc="outside lower right", ncols=5)
