"""The numbers of one run that the Gradient Flow tab draws, by step and layer, thinned so that extremes are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vgrad_torch.tensorboard.plugin.order import forward_order, in_order
from vgrad_torch.tensorboard.tags import Axes, Graph

Array = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

BUCKETS = 480
"""Largest number of columns of a flow map. A run of more steps is thinned to this number."""


_READ = (
    "weight_rms", "weight_nonfinite", "weight_gradient_rms", "weight_gradient_nonfinite",
    "weight_gradient_zero_fraction", "output_rms", "output_nonfinite", "output_gradient_rms",
    "output_gradient_nonfinite", "input_gradient_rms", "update_rms",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """All tensors of one tag: for each statistic in `_READ` its numbers [steps, layers].

    `junctions` are the RMS of the gradients at the junctions of `graph` [steps, junctions].
    """

    layers: list[str]
    steps: Integers
    columns: Mapping[str, Array]
    graph: Graph | None
    junctions: Array

    def column(self, name: str) -> Array:
        """One statistic [steps, layers]; all NaN if the tag does not have it."""
        if name in self.columns:
            return self.columns[name]
        return np.full((len(self.steps), len(self.layers)), np.nan, np.float32)

    def at(self, indices: Integers) -> Table:
        """The table of the steps at these indices only."""
        columns = {name: x[indices] for name, x in self.columns.items()}
        return Table(self.layers, self.steps[indices], columns, self.graph, self.junctions[indices])

    def index(self, step: int) -> int:
        """The index of the latest step at or before `step`; 0 if there is none."""
        return max(int(np.searchsorted(self.steps, step, side="right")) - 1, 0)


def stack(axes: Axes, points: Sequence[tuple[int, npt.NDArray[np.generic]]]) -> Table:
    """One table of all (step, tensor), sorted by step, its layers in forward order.

    A ValueError names a tensor that does not fit `axes`.
    """
    if not points:
        raise ValueError("it holds no sample yet")
    shape = (axes.rows, len(axes.statistics))
    columns_read = {name: axes.statistics.index(name) for name in _READ if name in axes.statistics}
    order = np.argsort([step for step, _ in points], kind="stable")
    columns = np.empty((len(columns_read), len(points), axes.rows), np.float32)
    for i, (step, tensor) in enumerate(points[index] for index in order):
        if tensor.shape != shape or tensor.dtype.kind != "f":
            actual = f"{tensor.dtype} of shape {list(tensor.shape)}"
            raise ValueError(f"the tensor of step {step} is {actual}, not numbers of shape {list(shape)}")
        columns[:, i] = tensor.T[list(columns_read.values())]
    steps = np.array([points[index][0] for index in order], np.int64)
    layers = len(axes.layers)
    places = forward_order(axes)
    of_layers = {name: column[:, places] for name, column in zip(columns_read, columns, strict=True)}
    place = [*columns_read].index("output_gradient_rms") if axes.graph else None
    junctions = np.empty((len(points), 0), np.float32) if place is None else columns[place, :, layers:]
    ordered = in_order(axes)
    return Table(ordered.layers, steps, of_layers, ordered.graph, junctions)


# --- quantities ----------------------------------------------------------------------------------------------------


def _rms(tensor: str) -> Callable[[Table], Array]:
    def values(table: Table) -> Array:
        return _with_nonfinite(table.column(f"{tensor}_rms"), table.column(f"{tensor}_nonfinite") > 0)

    return values


def _update_ratio(table: Table) -> Array:
    """NaN where the weight is zero; infinity where the weight or its gradient holds NaN or infinity."""
    weight, update = table.column("weight_rms").astype(np.float64), table.column("update_rms")
    ratio = np.divide(update, weight, out=np.full(weight.shape, np.nan), where=weight != 0)
    bad_gradient = table.column("weight_gradient_nonfinite") > 0
    return _with_nonfinite(ratio, (table.column("weight_nonfinite") > 0) | (bad_gradient & ~np.isfinite(ratio)))


def _zero_fraction(table: Table) -> Array:
    return table.column("weight_gradient_zero_fraction")


def _with_nonfinite(values: npt.NDArray[np.floating], nonfinite: npt.NDArray[np.bool_]) -> Array:
    """The values as float32, infinity where `nonfinite`."""
    with np.errstate(over="ignore"):
        return np.where(nonfinite, np.inf, values).astype(np.float32)


QUANTITIES: Mapping[str, Callable[[Table], Array]] = {
    "weight_gradient": _rms("weight_gradient"),
    "output_gradient": _rms("output_gradient"),
    "output": _rms("output"),
    "weight": _rms("weight"),
    "update_ratio": _update_ratio,
    "zero_fraction": _zero_fraction,
}
"""Quantity -> its values [steps, layers]: 0 for exact zeros, infinity for NaN or infinity, NaN for not measured."""

_PROFILE_QUANTITIES = {**QUANTITIES, "input_gradient": _rms("input_gradient")}


# --- thinning ------------------------------------------------------------------------------------------------------


def edges(count: int, limit: int = BUCKETS) -> Integers:
    """Where each bucket of `count` steps begins, and the end. The first and the last step each have their own bucket.

    >>> edges(3, 5).tolist(), edges(100, 5).tolist()
    ([0, 1, 2, 3], [0, 1, 34, 66, 99, 100])
    """
    if count <= limit:
        return np.arange(count + 1)
    inner = np.linspace(1, count - 1, limit - 1).round().astype(np.int64)
    return np.concatenate([[0], inner, [count]])


def _representatives(values: Mapping[str, Array], starts: Integers) -> Integers:
    """One step for each bucket: the first of those with the most non-finite and, among these, the most zero layers."""
    zeros = (values["weight_gradient"] == 0).sum(axis=1)
    nonfinite = sum(np.isinf(quantity).sum(axis=1) for quantity in values.values())
    score = nonfinite * (values["weight_gradient"].shape[1] + 1) + zeros
    return np.array([start + score[start:end].argmax() for start, end in pairwise([*starts, len(score)])], np.int64)


@dataclass(frozen=True, slots=True)
class Flow:
    """A run as the tab needs it. A run of up to `BUCKETS` steps is complete; of a longer one the extremes are kept.

    Attributes:
        starts: the first step of each bucket.
        lows: the smallest value of each quantity in each bucket [layers, buckets].
        highs: the largest value likewise.
        profiles: all numbers of one step of each bucket.
        samples: number of steps that were read.
        thinned: whether TensorBoard dropped other steps.
    """

    starts: Integers
    lows: Mapping[str, Array]
    highs: Mapping[str, Array]
    profiles: Table
    samples: int
    thinned: bool

    def profile(self, step: int) -> tuple[int, dict[str, Array]]:
        """The latest step kept at or before `step` (if none, the first), and its quantities, one value a layer."""
        index = self.profiles.index(step)
        return int(self.profiles.steps[index]), at_step(self.profiles, index)


def at_step(table: Table, index: int) -> dict[str, Array]:
    """All quantities of one step, one value a layer."""
    step = table.at(np.array([index]))
    return {name: values(step)[0] for name, values in _PROFILE_QUANTITIES.items()}


def thin(table: Table, *, thinned: bool = False) -> Flow:
    """Sort the steps into buckets and keep the extremes of each, including zeros, NaN and infinities."""
    starts = edges(len(table.steps))[:-1]
    values = {name: quantity(table) for name, quantity in QUANTITIES.items()}
    lows = {name: np.fmin.reduceat(x, starts, axis=0).T for name, x in values.items()}
    highs = {name: np.fmax.reduceat(x, starts, axis=0).T for name, x in values.items()}
    profiles = table.at(_representatives(values, starts))
    return Flow(table.steps[starts], lows, highs, profiles, len(table.steps), thinned)
