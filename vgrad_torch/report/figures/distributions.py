"""Distributions in each layer at one step: ridges of magnitudes on a log axis, densities of values on a linear axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vgrad_torch.errors import UsageError
from vgrad_torch.records import Floats, Histogram, LayerSnapshot, Snapshot, Stats
from vgrad_torch.report.figures import style

Transform = Callable[[Floats], Floats]


@style.styled
def ridges(
    runs: Mapping[str, Snapshot], quantity: str = "weight_gradient", *, exponents: range = range(-52, 10, 2),
    width: float = 8.0, height: float | None = None,
) -> Figure:  # fmt: skip
    """The distribution of the magnitudes of a tensor's entries in each layer, on one log axis, the first layer on top.

    A ridge is the share of the entries by log10 of their magnitude, in buckets with edges at 2**e for e in `exponents`.
    Exact zeros have no place on the axis; their share is written beside the ridge. (Glorot and Bengio 2010, figure 7,
    uses a linear axis, where all small gradients look alike.)
    """
    stats = {name: [getattr(layer, quantity) for layer in s.layers] for name, s in runs.items()}
    shares = {name: [_log_shares(x, exponents) for x in layers] for name, layers in stats.items()}
    occupied = [edge for ridges in shares.values() for ridge in ridges if ridge for edge in _occupied(*ridge)]
    if not occupied:
        raise UsageError(f"no histogram of {quantity} was recorded at this step")
    deepest = max(map(len, stats.values()))
    figure, axes = style.panels(len(runs), height or min(0.9 + 0.34 * deepest, 7.0), width=width)
    style.titles(axes, runs)
    for axis, name in zip(axes, runs, strict=True):
        _stack(axis, shares[name], stats[name])
    low, high = min(occupied), max(occupied)
    axes[0].set_xlim(low, high)
    for axis in axes:
        style.decades(axis.xaxis, low, high, 6)
    figure.supxlabel(f"magnitude of the entries of the {quantity.replace('_', ' ')}", fontsize=9)
    style.layers_along_y(axes[0], style.common([style.labels(snapshot) for snapshot in runs.values()]), 24)
    axes[0].set_ylim(deepest - 0.6, -1.3)
    return figure


def _log_shares(stats: Stats | None, exponents: range) -> tuple[Floats, Floats] | None:
    if stats is None or stats.histogram is None:
        return None
    edges, counts = stats.histogram.log10(exponents)
    return edges, counts / max(counts.sum(), 1)


def _occupied(edges: Floats, shares: Floats) -> list[float]:
    """The ends of the part of a ridge where a bucket holds more than a thousandth of the entries."""
    buckets = np.flatnonzero(shares > 1e-3)
    if not buckets.size:
        return []
    return [float(edges[max(buckets[0] - 1, 0)]), float(edges[min(buckets[-1] + 2, len(edges) - 1)])]


def _stack(axis: Axes, ridges: Sequence[tuple[Floats, Floats] | None], stats: Sequence[Stats | None]) -> None:
    highest = max((share.max() for ridge in ridges if ridge is not None for share in ridge[1:]), default=1.0) or 1.0
    colours = style.layer_colours(len(ridges))
    for row, ridge in enumerate(ridges):
        axis.axhline(row, color=style.GRID, linewidth=0.8, zorder=2 * row)
        if ridge is not None:
            edges, shares = ridge
            middle = (edges[:-1] + edges[1:]) / 2
            top = row - 1.25 * shares / highest
            axis.fill_between(middle, row, top, color=colours[row], alpha=0.85, linewidth=0, zorder=2 * row + 1)
            axis.plot(middle, top, color="white", linewidth=0.8, zorder=2 * row + 1)
        _note_zeros(axis, row, stats[row])
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def _note_zeros(axis: Axes, row: int, stats: Stats | None) -> None:
    if stats is not None and stats.zero_fraction >= 0.005:
        axis.annotate(
            f"{stats.zero_fraction:.0%} zeros", (0, row), (3, 2), xycoords=("axes fraction", "data"),
            textcoords="offset points", fontsize=7, color=style.MUTED, zorder=1000,
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.4},
        )  # fmt: skip


@style.styled
def values(
    runs: Mapping[str, Snapshot], quantity: str = "output", *, transform: Transform | None = None, label: str = "",
    width: float = 8.0, height: float = 2.6,
) -> Figure:  # fmt: skip
    """The distribution of a tensor's values in each layer, on a linear axis: Glorot and Bengio 2010, figures 6 and 7.

    The curves are densities of the finite values. `transform`, an increasing function, is applied to the values first:
    `np.tanh` turns outputs into activations.
    """
    figure, axes = style.panels(len(runs), height, width=width)
    deepest = max((len(snapshot.layers) for snapshot in runs.values()), default=0)
    colours = style.layer_colours(deepest)
    style.titles(axes, runs)
    for axis, snapshot in zip(axes, runs.values(), strict=True):
        for layer, colour in zip(snapshot.layers, colours, strict=False):
            _density(axis, layer, quantity, transform, colour)
        axis.grid(axis="y")
        axis.set_xlabel(label or quantity.replace("_", " "))
    axes[0].set_ylabel("density")
    axes[0].set_ylim(bottom=0)
    style.beside(
        axes[min(len(axes), 4) - 1], style.common([style.labels(snapshot) for snapshot in runs.values()]), colours
    )
    return figure


def _density(axis: Axes, layer: LayerSnapshot, quantity: str, transform: Transform | None, colour: Any) -> None:
    stats: Stats | None = getattr(layer, quantity)
    if stats is None or stats.histogram is None or not stats.finite:
        return
    edges, counts = _evenly(stats.histogram, transform)
    axis.stairs(counts / (counts.sum() * np.diff(edges)), edges, color=colour, linewidth=1.3)


def _evenly(histogram: Histogram, transform: Transform | None, bins: int = 41) -> tuple[Floats, Floats]:
    """The counts in bins of equal width. Each bucket is spread over the bins that it overlaps."""
    edges, counts = histogram.values()
    if transform is not None:
        edges = transform(edges)
    even = np.linspace(edges[0], edges[-1], bins + 1)
    below = np.concatenate([[0.0], np.cumsum(counts)])
    unique, first = np.unique(edges, return_index=True)  # saturated values may give equal edges
    cumulated = np.interp(even, unique, below[np.append(first[1:], len(edges)) - 1])
    cumulated[0] = 0.0
    return even, np.diff(cumulated)
