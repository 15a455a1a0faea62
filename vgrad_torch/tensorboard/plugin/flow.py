"""What the Gradient Flow tab draws of one run: numbers per step and layer, thinned so that what is extreme stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vgrad_torch.tensorboard.tags import Axes

Array = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

BUCKETS = 480
"""Columns of a flow map at most; a run of more steps is thinned to so many."""


_READ = (
    "weight_rms", "weight_nonfinite", "weight_gradient_rms", "weight_gradient_nonfinite",
    "weight_gradient_zero_fraction", "output_rms", "output_nonfinite", "output_gradient_rms",
    "output_gradient_nonfinite", "input_gradient_rms", "update_rms",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """The tensors of one tag put together: of each statistic that is read here its numbers [steps, layers]."""

    layers: list[str]
    steps: Integers
    columns: Mapping[str, Array]

    def column(self, name: str) -> Array:
        """One statistic [steps, layers]; NaN where the tag does not have it."""
        if name in self.columns:
            return self.columns[name]
        return np.full((len(self.steps), len(self.layers)), np.nan, np.float32)

    def at(self, places: Integers) -> Table:
        """These steps alone, by their places."""
        return Table(self.layers, self.steps[places], {name: x[places] for name, x in self.columns.items()})

    def place(self, step: int) -> int:
        """Where the latest step at or before `step` is; the first, if there is none."""
        return max(int(np.searchsorted(self.steps, step, side="right")) - 1, 0)


def stack(axes: Axes, points: Sequence[tuple[int, npt.NDArray[np.generic]]]) -> Table:
    """One table of all (step, tensor), in the order of the steps; a ValueError says which tensor does not fit."""
    if not points:
        raise ValueError("it holds no sample yet")
    shape = (len(axes.layers), len(axes.statistics))
    places = {name: axes.statistics.index(name) for name in _READ if name in axes.statistics}
    order = np.argsort([step for step, _ in points], kind="stable")
    columns = np.empty((len(places), len(points), len(axes.layers)), np.float32)
    for i, (step, tensor) in enumerate(points[place] for place in order):
        if tensor.shape != shape or tensor.dtype.kind != "f":
            found = f"{tensor.dtype} of shape {list(tensor.shape)}"
            raise ValueError(f"the tensor of step {step} is {found}, not numbers of shape {list(shape)}")
        columns[:, i] = tensor.T[list(places.values())]
    steps = np.array([points[place][0] for place in order], np.int64)
    return Table(axes.layers, steps, dict(zip(places, columns, strict=True)))


# --- quantities ----------------------------------------------------------------------------------------------------


def _rms(tensor: str) -> Callable[[Table], Array]:
    def values(table: Table) -> Array:
        return _marked(table.column(f"{tensor}_rms"), table.column(f"{tensor}_nonfinite") > 0)

    return values


def _update_ratio(table: Table) -> Array:
    """Undefined where the weight is zero; infinite where NaN or infinity stood in the weight or in its gradient."""
    weight, update = table.column("weight_rms").astype(np.float64), table.column("update_rms")
    ratio = np.divide(update, weight, out=np.full(weight.shape, np.nan), where=weight != 0)
    bad_gradient = table.column("weight_gradient_nonfinite") > 0
    return _marked(ratio, (table.column("weight_nonfinite") > 0) | (bad_gradient & ~np.isfinite(ratio)))


def _zero_fraction(table: Table) -> Array:
    return table.column("weight_gradient_zero_fraction")


def _marked(values: npt.NDArray[np.floating], nonfinite: npt.NDArray[np.bool_]) -> Array:
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
"""What can be shown -> its values [steps, layers]: 0 exact zeros, infinity NaN or infinities, NaN not measured."""

_OF_A_PROFILE = {**QUANTITIES, "input_gradient": _rms("input_gradient")}


# --- thinning ------------------------------------------------------------------------------------------------------


def edges(count: int, most: int = BUCKETS) -> Integers:
    """Where the buckets of `count` steps begin, and the end; the first and the last step have one for themselves.

    >>> edges(3, 5).tolist(), edges(100, 5).tolist()
    ([0, 1, 2, 3], [0, 1, 34, 66, 99, 100])
    """
    if count <= most:
        return np.arange(count + 1)
    inner = np.linspace(1, count - 1, most - 1).round().astype(np.int64)
    return np.concatenate([[0], inner, [count]])


def _telling(values: Mapping[str, Array], starts: Integers) -> Integers:
    """A step of each bucket that stands for it: the first of those with most non-finite, then most zero layers."""
    zeros = (values["weight_gradient"] == 0).sum(axis=1)
    nonfinite = sum(np.isinf(each).sum(axis=1) for each in values.values())
    score = nonfinite * (values["weight_gradient"].shape[1] + 1) + zeros
    return np.array([a + score[a:b].argmax() for a, b in pairwise([*starts, len(score)])], np.int64)


@dataclass(frozen=True, slots=True)
class Flow:
    """A run as the tab needs it.

    `starts` is the first step of each bucket, `lows` and `highs` hold the smallest and the largest value of each
    quantity in it [layers, buckets], and `profiles` one whole step of each bucket. Of a run of up to `BUCKETS` steps
    that is every number there is. `samples` counts the steps that were read, `thinned` says whether TensorBoard held
    back others.
    """

    starts: Integers
    lows: Mapping[str, Array]
    highs: Mapping[str, Array]
    profiles: Table
    samples: int
    thinned: bool

    def profile(self, step: int) -> tuple[int, dict[str, Array]]:
        """The latest step kept at or before `step` (or else the first), and its quantities, one value a layer."""
        place = self.profiles.place(step)
        return int(self.profiles.steps[place]), at_step(self.profiles, place)


def at_step(table: Table, place: int) -> dict[str, Array]:
    """All quantities of one step, one value a layer."""
    one = table.at(np.array([place]))
    return {name: values(one)[0] for name, values in _OF_A_PROFILE.items()}


def thin(table: Table, *, thinned: bool = False) -> Flow:
    """Sort the steps into buckets of which the extremes are kept, zeros, NaN and infinities among them."""
    starts = edges(len(table.steps))[:-1]
    every = {name: values(table) for name, values in QUANTITIES.items()}
    lows = {name: np.fmin.reduceat(values, starts, axis=0).T for name, values in every.items()}
    highs = {name: np.fmax.reduceat(values, starts, axis=0).T for name, values in every.items()}
    profiles = table.at(_telling(every, starts))
    return Flow(table.steps[starts], lows, highs, profiles, len(table.steps), thinned)
