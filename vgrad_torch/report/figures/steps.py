"""Figures over the steps of training: each layer's weights and gradients, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vgrad_torch.errors import UsageError
from vgrad_torch.records import Floats, History, Snapshot
from vgrad_torch.report.figures import style

Points = Sequence[tuple[float, float]]
"""Pairs of step and value, in the order of the steps."""
Runs = Mapping[str, Iterable[Snapshot]]


@style.styled
def weights(runs: Runs, *, steps_per_epoch: int | None = None) -> Figure:
    """Mean and standard deviation of each layer's weights over the steps, a column for each run.

    The standard deviation is the population's. With `steps_per_epoch` the axis counts epochs.
    """
    grid = _Grid(runs, steps_per_epoch, rows=2)
    grid.draw(0, "mean\nof the weights", "weight", "mean")
    grid.draw(1, "standard deviation\nof the weights", "weight", "std")
    return grid.figure


@style.styled
def gradients(
    runs: Runs, losses: Mapping[str, Points] = MappingProxyType({}), *, steps_per_epoch: int | None = None,
    loss: str = "loss",
) -> Figure:  # fmt: skip
    """Mean and standard deviation of each layer's weight gradient, the latter on a log axis; below them the loss.

    A standard deviation of exactly zero has no place on a log axis and is left out. `losses` is {run: points}.
    """
    grid = _Grid(runs, steps_per_epoch, rows=3 if any(losses.values()) else 2)
    grid.draw(0, "mean\nof the gradient", "weight_gradient", "mean")
    grid.draw(1, "standard deviation\nof the gradient", "weight_gradient", "std", _positive)
    style.log_axis(grid.axes[1][0])
    if any(losses.values()):
        for axis, name in zip(grid.axes[2], runs, strict=True):
            points = losses.get(name, ())
            axis.plot([step / (steps_per_epoch or 1) for step, _ in points], [x for _, x in points], "#444444")
            axis.grid(axis="y")
        grid.axes[2][0].set_ylabel(style.plain(loss))
    return grid.figure


class _Grid:
    """A grid of axes: a column for each run, a row with one scale for each statistic."""

    def __init__(self, runs: Runs, steps_per_epoch: int | None, rows: int) -> None:
        self.histories = {name: _history(snapshots) for name, snapshots in runs.items()}
        self.steps_per_unit = steps_per_epoch or 1
        self.figure = style.new_figure(8.0, 1.9 * rows + 0.5)
        self.axes: list[list[Axes]] = self.figure.subplots(
            rows, len(self.histories), sharex="col", sharey="row", squeeze=False
        ).tolist()
        self.labels = _labels(self.histories.values())
        style.titles(self.axes[0], runs)
        for axis in self.axes[-1]:
            style.step_axis(axis, "step" if steps_per_epoch is None else "epoch")
        style.beside(self.axes[0][-1], self.labels, style.layer_colours(len(self.labels)))

    def draw(
        self, row: int, label: str, quantity: str, statistic: str, transform: Callable[[Floats], Floats] = lambda x: x
    ) -> None:
        """Draw a line for each layer, a mark if there is only one sample. Very many points are drawn as pixels."""
        for axis, history in zip(self.axes[row], self.histories.values(), strict=True):
            series = transform(history.series(quantity, statistic))
            steps = [step / self.steps_per_unit for step in history.steps]
            look: dict[str, Any] = {"marker": "o" if len(steps) == 1 else "", "rasterized": series.size > 20_000}
            for column, colour in zip(series.T, style.layer_colours(series.shape[1]), strict=True):
                axis.plot(steps, column, color=colour, linewidth=1.3, **look)
            axis.grid(axis="y")
            style.numbers(axis)
        self.axes[row][0].set_ylabel(label)


@style.styled
def losses(runs: Mapping[str, Points], *, label: str = "training loss", height: float = 2.6) -> Figure:
    """The loss, or another number of the network, of several runs in one figure; on a log axis if it spans decades."""
    figure = style.new_figure(8.0, height)
    axis = figure.subplots()
    colours = [style.RUNS[i % len(style.RUNS)] for i in range(len(runs))]
    for i, points in enumerate(runs.values()):
        line = style.LINES[i % len(style.LINES)]
        axis.plot([step for step, _ in points], [value for _, value in points], color=colours[i], linestyle=line)
    finite = [value for points in runs.values() for _, value in points if np.isfinite(value)]
    style.numbers(axis)
    if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
        style.log_axis(axis)
    axis.grid(axis="y")
    axis.set_ylabel(label)
    style.step_axis(axis)
    if len(runs) > 1:
        style.beside(axis, list(runs), colours, style.LINES)
    return figure


def _history(snapshots: Iterable[Snapshot]) -> History:
    history = History()
    for snapshot in snapshots:
        history.append(snapshot)
    if not len(history):
        raise UsageError("there is no sample to draw")
    return history


def _labels(histories: Iterable[History]) -> list[str]:
    return style.common(
        [[*{label: None for sample in history for label in style.labels(sample)}] for history in histories]
    )


def _positive(series: Floats) -> Floats:
    return np.where(series > 0, series, np.nan)
