"""The flow map: one number of every layer at every step as a colour, several runs side by side on one scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
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
"""What can be shown -> its name."""


@style.styled
def flow_map(
    runs: Mapping[str, Iterable[Snapshot]],
    quantity: str = "weight_gradient",
    *,
    height: float = 2.7,
    width: float = 8.0,
) -> Figure:
    """RMS by layer (first on top) and step, on one log scale of colours; what has no place on it has one of its own.

    A cell is black where a value is exactly zero, red where NaN or infinity stood in the tensor, grey where nothing was
    measured. Of more than 480 samples, several share a column: red if one is, or else the smallest of them.
    The steps are on one scale too, but for runs of less than a fifth of the longest.
    """
    words = choose(QUANTITIES, quantity, "quantity")
    maps = {name: _Map(list(history), quantity) for name, history in runs.items()}
    if not maps or not all(len(each.steps) for each in maps.values()):
        raise UsageError("there is no sample to draw")
    scale = _scale([each.values for each in maps.values()])
    figure, axes = style.panels(len(maps), height, width=width, sharex=False)
    style.titles(axes, maps)
    for axis, each in zip(axes, maps.values(), strict=True):
        _draw(axis, each, scale)
    longest = max(each.length for each in maps.values())
    for axis, each in zip(axes, maps.values(), strict=True):
        axis.set_xlim(each.ends[0], each.ends[0] + (longest if 5 * each.length >= longest else each.length))
    style.layers_along_y(axes[0], style.common([each.names for each in maps.values()]))
    figure.supxlabel("step", fontsize=9)
    bar = figure.colorbar(ScalarMappable(scale, "viridis"), ax=axes, pad=0.015, aspect=7 * figure.get_figheight())
    style.decades(bar.ax.yaxis, scale.vmin or 0, scale.vmax or 1)
    bar.set_label(words)
    bar.outline.set_visible(False)
    _explain(figure, np.concatenate([each.values.ravel() for each in maps.values()]))
    return figure


class _Map:
    """One run as [layers, columns]: 0 exact zeros, infinity NaN or infinities, NaN not measured."""

    def __init__(self, samples: Sequence[Snapshot], quantity: str) -> None:
        labels = {layer.label: None for sample in samples for layer in sample.layers}
        every = np.full((len(samples), len(labels)), np.nan)
        order = {label: place for place, label in enumerate(labels)}
        for row, sample in enumerate(samples):
            for layer in sample.layers:
                stats = getattr(layer, quantity)
                if stats is not None:
                    every[row, order[layer.label]] = np.inf if stats.nonfinite else stats.rms
        starts = edges(len(samples))[:-1] if samples else np.zeros(0, np.int64)
        self.names = list(labels)
        self.steps = [sample.step for sample in samples]
        self.values = _smallest(every, starts).T if samples else every.T
        """[layers, columns]."""
        self.ends = _ends([self.steps[start] for start in starts], self.steps)
        self.length = float(self.ends[-1] - self.ends[0])


def _smallest(every: Floats, starts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
    least = np.fmin.reduceat(every, starts, axis=0)
    bad = np.logical_or.reduceat(np.isinf(every), starts, axis=0)
    return np.where(bad, np.inf, least)


def _ends(firsts: Sequence[int], steps: Sequence[int]) -> Floats:
    """Where the columns begin and end on the step axis; the last is as wide as the one before."""
    if not firsts:
        return np.zeros(1)
    last = steps[-1] + max((steps[-1] - steps[-2]) if len(steps) > 1 else 1, 1)
    return np.array([*firsts, last], np.float64)


def _scale(maps: Sequence[Floats]) -> Normalize:
    """log10 of the values that have a place on it; whole decades at its ends."""
    every = np.concatenate([values.ravel() for values in maps])
    logs = np.log10(every[(every > 0) & np.isfinite(every)])
    low, high = (np.floor(logs.min()), np.ceil(logs.max())) if logs.size else (-1.0, 0.0)
    return Normalize(float(low), float(max(high, low + 1)))


def _draw(axis: Axes, each: _Map, scale: Normalize) -> None:
    with np.errstate(divide="ignore"):
        logs = np.log10(each.values)
    colours = np.asarray(ScalarMappable(scale, "viridis").to_rgba(np.nan_to_num(logs, posinf=0, neginf=0)))
    for place, colour in (
        (each.values == 0, style.ZERO),
        (np.isinf(each.values), style.NONFINITE),
        (np.isnan(each.values), style.MISSING),
    ):
        colours[place, :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    axis.pcolormesh(each.ends, np.arange(len(each.names) + 1) - 0.5, colours, rasterized=True)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.tick_params(length=0)
    style.step_axis(axis, "")


def _explain(figure: Figure, values: Floats) -> None:
    """Name the colours off the scale that are there."""
    found = {
        "exactly zero": (style.ZERO, (values == 0).any()),
        "NaN or infinite": (style.NONFINITE, np.isinf(values).any()),
        "not measured": (style.MISSING, np.isnan(values).any()),
    }
    patches = [Patch(color=colour, label=words) for words, (colour, there) in found.items() if there]
    if patches:
        figure.legend(handles=patches, loc="outside lower right", ncols=3)
