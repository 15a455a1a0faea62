"""The figure of the circles data set: the classes that a network of two inputs learns."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from matplotlib.figure import Figure

from vgrad_torch.report.figures.style import MARKS, RUNS, legend, new_figure, styled


@styled
def circles(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Figure:
    """Points `x` [n, 2] in the plane, with a colour and a mark for each class `y` [n]."""
    figure = new_figure(4.2, 4.0)
    axis = figure.subplots()
    classes = sorted({int(label) for label in y})
    for label in classes:
        colour, mark = RUNS[label % len(RUNS)], MARKS[label % len(MARKS)]
        axis.scatter(x[y == label, 0], x[y == label, 1], s=9, color=colour, marker=mark, linewidths=0)
    axis.set_aspect("equal")
    axis.set_xlabel("first input")
    axis.set_ylabel("second input")
    legend(axis, [f"class {label}" for label in classes], RUNS, MARKS, lines=[""], loc="upper right")
    return figure
