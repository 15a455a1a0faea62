"""Stats: the statistics of one tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vgrad_torch.records.histogram import Histogram


@dataclass(frozen=True, slots=True)
class Stats:
    """The statistics of one tensor. Mean, std, min and max are of its finite entries; NaN if there are none.

    They have the unit of the tensor.

    Attributes:
        count: the number of all entries.
        zeros: the number of exact zeros of either sign.
        nonfinite: the number of NaN and infinities.
        mean: the mean.
        std: the standard deviation of the population (divided by n, as in NumPy and Keras).
        min: the smallest entry.
        max: the largest entry.
        histogram: the distribution; None on steps without histograms.
    """

    count: int
    zeros: int
    nonfinite: int
    mean: float
    std: float
    min: float
    max: float
    histogram: Histogram | None = None

    @property
    def rms(self) -> float:
        """The root mean square, sqrt(mean(x**2)). MXNet's Monitor prints it as norm / sqrt(size)."""
        return math.hypot(self.mean, self.std)

    @property
    def zero_fraction(self) -> float:
        """The share of exact zeros, 0 to 1; NaN for an empty tensor."""
        return self.zeros / self.count if self.count else math.nan

    @property
    def finite(self) -> int:
        """The number of finite entries."""
        return self.count - self.nonfinite

    def __add__(self, other: Stats) -> Stats:
        """The statistics of the entries of both tensors (Chan, Golub and LeVeque's update of mean and variance).

        The histograms are added if both have one. Otherwise the sum has the first one's.

        >>> Stats(1, 0, 0, 1.0, 0.0, 1.0, 1.0) + Stats(1, 0, 0, 3.0, 0.0, 3.0, 3.0)
        Stats(count=2, zeros=0, nonfinite=0, mean=2.0, std=1.0, min=1.0, max=3.0, histogram=None)
        """
        if not other.finite:
            mean, std, low, high = self.mean, self.std, self.min, self.max
        elif not self.finite:
            mean, std, low, high = other.mean, other.std, other.min, other.max
        else:
            weight = self.finite / (self.finite + other.finite)
            gap = other.mean - self.mean
            mean = self.mean + gap * (1 - weight)
            within = math.hypot(self.std * math.sqrt(weight), other.std * math.sqrt(1 - weight))
            std = math.hypot(within, gap * math.sqrt(weight * (1 - weight)))
            low, high = min(self.min, other.min), max(self.max, other.max)
        both = self.histogram + other.histogram if self.histogram and other.histogram else self.histogram
        return Stats(
            self.count + other.count, self.zeros + other.zeros, self.nonfinite + other.nonfinite,
            mean, std, low, high, both,
        )  # fmt: skip
