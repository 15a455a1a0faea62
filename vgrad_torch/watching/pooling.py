"""Statistics of several tensors taken together: of the tensors of a call, and of the forward passes of a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add

from vgrad_torch.records import Stats
from vgrad_torch.watching import statistics

Key = tuple[str, int]
"""A layer's name and which call of it, from 1; call 0 stands for what belongs to the layer, not to a call."""
Reductions = dict[Key, dict[str, list[statistics.Reduction]]]
"""By quantity, still on the device: one reduction for each tensor."""
Numbers = dict[Key, dict[str, Stats]]


def pooled(part: Reductions, fetched: Iterator[Stats]) -> Numbers:
    """The statistics of each quantity's tensors taken together; `fetched` holds those of the tensors, in order."""
    return {
        key: {quantity: reduce(add, [next(fetched) for _ in rs]) for quantity, rs in entry.items() if rs}
        for key, entry in part.items()
    }


def merged(parts: Iterable[Numbers]) -> Numbers:
    """The parts with the statistics of the same call and quantity taken together."""
    merged: Numbers = {}
    for key, entry in (item for part in parts for item in part.items()):
        values = merged.setdefault(key, {})
        for quantity, stats in entry.items():
            values[quantity] = values[quantity] + stats if quantity in values else stats
    return merged


def joint_rms(parts: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """RMS and number of the entries of several tensors together."""
    count = sum(n for _, n in parts)
    return math.sqrt(sum(rms * rms * n for rms, n in parts) / max(count, 1)), count
