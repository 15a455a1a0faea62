"""Pictures over the steps of training: each layer's weights and gradients, and the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vgrad_torch.choices import UsageError
from vgrad_torch.figures.style import GRID, RUNS, beside, layer_colours, log_axis, new_figure, step_axis, styled
from vgrad_torch.records import Floats, History, Snapshot

Points = Sequence[tuple[float, float]]
"""Pairs of a step and a value, in the order of the steps."""


@styled
def weights(history: Iterable[Snapshot], *, steps_per_epoch: int | None = None) -> Figure:
    """Mean and standard deviation of each layer's weights over the steps (over epochs, if it is said how long one is).

    The standard deviation is the population's. Raises a `UsageError` where no weight was measured.
    """
    kept = _history(history)
    steps, label = _steps(kept, steps_per_epoch)
    figure = new_figure(8.0, 4.4)
    axes = figure.subplots(2, 1, sharex=True)
    for axis, statistic, words in zip(axes, ("mean", "std"), ("mean", "standard deviation"), strict=True):
        _lines(axis, steps, kept.series("weight", statistic))
        axis.set_ylabel(f"{words}\nof the weights")
    beside(axes[0], _labels(kept), layer_colours(len(_labels(kept))))
    step_axis(axes[1], label)
    return figure


@styled
def gradients(
    history: Iterable[Snapshot], losses: Points = (), *, steps_per_epoch: int | None = None, loss: str = "loss"
) -> Figure:
    """Mean and standard deviation of each layer's weight gradient, the latter on a log axis; below them the loss.

    A standard deviation of exactly zero has no place on a log axis and is left out.
    """
    kept = _history(history)
    steps, label = _steps(kept, steps_per_epoch)
    figure = new_figure(8.0, 6.2 if losses else 4.4)
    axes = list(figure.subplots(3 if losses else 2, 1, sharex=True))
    _lines(axes[0], steps, kept.series("weight_gradient", "mean"))
    axes[0].set_ylabel("mean\nof the gradient")
    _lines(axes[1], steps, _positive(kept.series("weight_gradient", "std")))
    log_axis(axes[1])
    axes[1].set_ylabel("standard deviation\nof the gradient")
    if losses:
        axes[2].plot([step / (steps_per_epoch or 1) for step, _ in losses], [value for _, value in losses], "#444444")
        axes[2].grid(axis="y")
        axes[2].set_ylabel(loss)
    beside(axes[0], _labels(kept), layer_colours(len(_labels(kept))))
    step_axis(axes[-1], label)
    return figure


@styled
def losses(runs: Mapping[str, Points], *, label: str = "training loss", height: float = 2.6) -> Figure:
    """The loss, or another number of the whole network, of several runs in one picture; log where it spans decades."""
    figure = new_figure(8.0, height)
    axis = figure.subplots()
    for place, points in enumerate(runs.values()):
        axis.plot([step for step, _ in points], [value for _, value in points], color=RUNS[place % len(RUNS)])
    seen = [value for points in runs.values() for _, value in points if np.isfinite(value)]
    if seen and min(seen) > 0 and max(seen) > 20 * min(seen):
        log_axis(axis)
    axis.grid(axis="y")
    axis.set_ylabel(label)
    step_axis(axis)
    if len(runs) > 1:
        beside(axis, list(runs), [RUNS[i % len(RUNS)] for i in range(len(runs))])
    return figure


def _history(snapshots: Iterable[Snapshot]) -> History:
    kept = History()
    for snapshot in snapshots:
        kept.append(snapshot)
    if not len(kept):
        raise UsageError("there is no sample to draw")
    return kept


def _steps(history: History, steps_per_epoch: int | None) -> tuple[list[float], str]:
    if steps_per_epoch is None:
        return [float(step) for step in history.steps], "step"
    return [step / steps_per_epoch for step in history.steps], "epoch"


def _labels(history: History) -> list[str]:
    return list({layer.label: None for snapshot in history for layer in snapshot.layers})


def _lines(axis: Axes, steps: Sequence[float], series: Floats) -> None:
    """A line for each layer; a mark where there is one sample alone. Very many points are drawn as pixels."""
    many = series.size > 20_000
    for column, colour in zip(series.T, layer_colours(series.shape[1]), strict=True):
        axis.plot(steps, column, color=colour, linewidth=1.4, marker="o" if len(steps) == 1 else "", rasterized=many)
    axis.grid(axis="y", color=GRID)


def _positive(series: Floats) -> Floats:
    return np.where(series > 0, series, np.nan)
