"""The gradient of one layer by training step and time step, as the Gradient Flow tab and the figures draw it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vgrad_torch.records import TimeProfile
from vgrad_torch.records.time_profile import POINTS
from vgrad_torch.tensorboard.plugin.flow import Array, Integers, edges

BUCKETS = 240
"""Largest number of columns; of the training steps that share a column one is shown."""

_FLOAT32 = np.finfo(np.float32)


@dataclass(frozen=True, slots=True)
class TimeMap:
    """The gradient at each time step relative to that at the last one.

    Attributes:
        starts: the first training step of each column.
        steps: the training step that is shown in each column.
        profiles: its time profile.
        back: for each row, how many time steps it lies before the last one that the loss depends on.
        values: norms [rows, columns] over the norm at that last step, or over the largest norm where the loss depends
            on several steps. 0 for exact zeros, infinity for NaN or infinity, NaN where the sequence is shorter or
            there is nothing to divide by.
        samples: number of training steps that were read.
    """

    starts: Integers
    steps: Integers
    profiles: tuple[TimeProfile, ...]
    back: Integers
    values: Array
    samples: int


def time_map(points: Sequence[tuple[int, TimeProfile]], limit: int = BUCKETS) -> TimeMap:
    """The map of all (training step, profile), in the order of the steps; a ValueError if there are none."""
    if not points:
        raise ValueError("it holds no sample yet")
    starts = edges(len(points), limit)
    shown = [_worst(points[start:end]) for start, end in pairwise(starts.tolist())]
    profiles = tuple(profile for _, profile in shown)
    stride = max(map(_stride, profiles))
    longest = max(_end(profile) for profile in profiles)
    back = np.arange(0, longest + 1, stride, dtype=np.int64)
    values = np.array([_column(profile, back) for profile in profiles], np.float32).T
    first = np.array([step for step, _ in points], np.int64)[starts[:-1]]
    return TimeMap(first, np.array([step for step, _ in shown], np.int64), profiles, back, values, len(points))


def _worst(points: Sequence[tuple[int, TimeProfile]]) -> tuple[int, TimeProfile]:
    """The first with the most NaN or infinite norms."""
    return max(points, key=lambda point: sum(not math.isfinite(norm) for norm in point[1].gradients))


def _stride(profile: TimeProfile) -> int:
    """How many time steps apart the norms are that a profile keeps."""
    return math.ceil(profile.steps / POINTS)


def _end(profile: TimeProfile) -> int:
    """The last time step that the loss depends on."""
    return profile.steps - 1 if profile.last is None else profile.last


def _column(profile: TimeProfile, back: Integers) -> Array:
    """The relative norm at each of these distances; of the norms that a profile keeps, the nearest one."""
    norms = np.array(profile.gradients, np.float64)
    from_end = np.maximum(back + profile.steps - 1 - _end(profile), 0)
    places = len(norms) - 1 - np.rint(from_end / _stride(profile)).astype(np.int64)
    inside = (back <= _end(profile)) & (places >= 0)
    chosen = np.where(inside, norms[np.maximum(places, 0)], np.nan)
    finite = norms[np.isfinite(norms)]
    reference = finite.max(initial=0.0) if profile.last is None else norms[places[0]]
    known = 0 < reference < math.inf
    relative = chosen / (reference if known else math.nan)
    relative = np.where(relative > 0, np.clip(relative, _FLOAT32.tiny, _FLOAT32.max), relative)
    relative = np.where(chosen == 0, 0.0, relative)
    return np.where(inside & ~np.isfinite(chosen), np.inf, relative).astype(np.float32)
