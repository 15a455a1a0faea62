"""Histogram: the values of one tensor, counted in buckets that are the same for every tensor and every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint16]

CODES = 4096
"""The number of buckets: one for each sign, exponent and top 3 bits of the mantissa of a float32, so 8 an octave."""

_MAGNITUDE_EDGES: Floats = (np.arange(2041, dtype=np.uint32) << 20).view(np.float32).astype(np.float64)
_MAGNITUDES = np.arange(CODES) & 2047
_FINITE = _MAGNITUDES < 2040
_OCTAVES = 6  # of `values`: everything below 2**-6 of the largest value is in one bucket


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """The number of values in each bucket that is not empty; exact.

    The code of a value is the upper 12 bits of its float32. Code c < 2040 stands for [edge(c), edge(c+1)), code
    2048 + c for the same range with a minus sign. Codes 0 and 2048 hold the zeros and everything below 1.5e-39. NaN and
    infinity are not counted here but in `Stats.nonfinite`.
    """

    codes: Codes
    """The codes of the buckets that are not empty, in ascending order, uint16 [buckets]."""
    counts: Counts
    """The number of values in each of them, int64 [buckets]."""

    @staticmethod
    def from_dense(counts: Counts) -> Histogram:
        """From the counts of all 4,096 codes."""
        codes = ((counts != 0) & _FINITE).nonzero()[0]
        return Histogram(codes.astype(np.uint16), counts[codes].astype(np.int64, copy=False))

    def dense(self) -> Counts:
        """The counts of all 4,096 codes."""
        counts = np.zeros(CODES, np.int64)
        counts[self.codes] = self.counts
        return counts

    def magnitudes(self) -> tuple[Floats, Counts]:
        """The histogram of |x|: edges [2041] in ascending order from 0, and counts [2040]."""
        dense = self.dense()
        return _MAGNITUDE_EDGES.copy(), dense[:2040] + dense[2048:4088]

    def log10(self, exponents: range) -> tuple[Floats, Counts]:
        """The histogram of log10 |x| without zeros: edges and counts; the edges are 2**e for e in `exponents`.

        The first and the last bucket also hold everything beyond the edges.

        >>> edges, counts = Histogram(np.array([0, 1016], np.uint16), np.array([3, 5])).log10(range(-4, 6, 2))
        >>> np.round(edges, 2).tolist(), counts.tolist()  # three zeros, five values in [1, 1.125)
        ([-1.2, -0.6, 0.0, 0.6, 1.2], [0, 0, 5, 0])
        """
        edges, buckets = _log10_buckets(exponents)
        return edges, self._in(buckets, len(edges))[:-1]

    def values(self) -> tuple[Floats, Counts]:
        """The histogram of x: edges and counts; 8 buckets an octave near the extremes, one bucket around zero."""
        top = int((self.codes & 2047).max()) + 1 if len(self.codes) else 8 * 127
        edges, buckets = _value_buckets(top)
        return edges, self._in(buckets, len(edges) - 1)

    def _in(self, buckets: Codes, length: int) -> Counts:
        """The counts in larger buckets; `buckets` gives the bucket of each code."""
        return np.bincount(buckets[self.codes], self.counts, length).astype(np.int64)  # doubles: exact below 2**53

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram.from_dense(self.dense() + other.dense())


@lru_cache(256)
def _value_buckets(top: int) -> tuple[Floats, Codes]:
    """Edges for `values` if the largest magnitude has a code just below `top`, and the bucket of each code."""
    low = max(top - 8 * _OCTAVES, 1)
    edges = _MAGNITUDE_EDGES[low : top + 1]
    from_middle = np.clip(_MAGNITUDES - low + 1, 0, top - low) * np.repeat([1, -1], CODES // 2)
    return _read_only(np.concatenate([-edges[::-1], edges])), (from_middle + (top - low)).astype(np.uint16)


@lru_cache(16)
def _log10_buckets(exponents: range) -> tuple[Floats, Codes]:
    """Edges for `log10`, and the bucket of each code; zeros get a bucket behind the last one."""
    inner = [(e + 127) * 8 for e in exponents[1:-1]]
    buckets = np.searchsorted(inner, _MAGNITUDES, "right")
    buckets[_MAGNITUDES == 0] = len(exponents) - 1
    return _read_only(np.array([e * math.log10(2) for e in exponents])), buckets.astype(np.uint16)


def _read_only(edges: Floats) -> Floats:
    """Protect edges from changes, since all histograms share them."""
    edges.flags.writeable = False
    return edges
