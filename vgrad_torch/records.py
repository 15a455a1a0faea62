"""What the monitor saw, as plain numbers: Histogram, Stats, LayerSnapshot, Snapshot, History. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import overload

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Codes = npt.NDArray[np.uint16]

ACTIVATIONS = ("output", "output_gradient", "input_gradient")
"""Those of `QUANTITIES` that pass a layer in each of its calls."""

QUANTITIES = ("weight", "weight_gradient", *ACTIVATIONS)
"""The five tensors a layer is measured by, in the words of the README."""

CODES = 4096
"""Histogram buckets: sign, exponent and the top 3 bits of the mantissa of a float32, 8 buckets to the octave."""

_MAGNITUDE_EDGES: Floats = (np.arange(2041, dtype=np.uint32) << 20).view(np.float32).astype(np.float64)
_MAGNITUDES = np.arange(CODES) & 2047
_FINITE = _MAGNITUDES < 2040
_OCTAVES = 6  # of the signed view: what is smaller than 2**-6 of the largest value shares one bucket


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """How many values fell into each occupied bucket; exact, and the same buckets for every tensor and every step.

    A bucket's `code` is the upper 12 bits of the float32: code c < 2040 counts values in [edge(c), edge(c+1)), code
    2048 + c the same with a minus sign. Code 0 (and 2048) holds the zeros and what is below 1.5e-39; NaN and the
    infinities have codes that are left out here (`Stats.nonfinite` counts them).
    """

    codes: Codes
    counts: Counts

    @staticmethod
    def from_dense(counts: Counts) -> Histogram:
        """Keep the occupied buckets of an array of 4,096 counts."""
        codes = ((counts != 0) & _FINITE).nonzero()[0]
        return Histogram(codes.astype(np.uint16), counts[codes].astype(np.int64, copy=False))

    def dense(self) -> Counts:
        """Counts of all 4,096 buckets."""
        counts = np.zeros(CODES, np.int64)
        counts[self.codes] = self.counts
        return counts

    def magnitudes(self) -> tuple[Floats, Counts]:
        """Edges (2,041, from 0 up) and counts (2,040) of |x|."""
        dense = self.dense()
        return _MAGNITUDE_EDGES.copy(), dense[:2040] + dense[2048:4088]

    def log10(self, exponents: range) -> tuple[Floats, Counts]:
        """Edges and counts of log10 |x|: buckets cut at 2**e for e in `exponents`, both ends open, zeros left out.

        >>> edges, counts = Histogram(np.array([0, 1016], np.uint16), np.array([3, 5])).log10(range(-4, 6, 2))
        >>> np.round(edges, 2).tolist(), counts.tolist()  # three zeros, five values in [1, 1.125)
        ([-1.2, -0.6, 0.0, 0.6, 1.2], [0, 0, 5, 0])
        """
        edges, buckets = _log10_buckets(exponents)
        return edges, self._in(buckets, len(edges))[:-1]

    def values(self) -> tuple[Floats, Counts]:
        """Edges and counts of x with its sign: 8 buckets to the octave near the extremes, one bucket around zero."""
        top = int((self.codes & 2047).max()) + 1 if len(self.codes) else 8 * 127
        edges, buckets = _value_buckets(top)
        return edges, self._in(buckets, len(edges) - 1)

    def _in(self, buckets: Codes, length: int) -> Counts:
        """Counts of coarser buckets, of which each code belongs to one."""
        return np.bincount(buckets[self.codes], self.counts, length).astype(np.int64)  # doubles: exact below 2**53

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram.from_dense(self.dense() + other.dense())


@lru_cache(256)
def _value_buckets(top: int) -> tuple[Floats, Codes]:
    """Edges of the signed view whose largest magnitude has a code just below `top`, and the bucket of each code."""
    low = max(top - 8 * _OCTAVES, 1)
    edges = _MAGNITUDE_EDGES[low : top + 1]
    from_middle = np.clip(_MAGNITUDES - low + 1, 0, top - low) * np.repeat([1, -1], CODES // 2)
    return _fixed(np.concatenate([-edges[::-1], edges])), (from_middle + (top - low)).astype(np.uint16)


@lru_cache(16)
def _log10_buckets(exponents: range) -> tuple[Floats, Codes]:
    """Edges, and the bucket of each code; that of the zeros is one more than there are."""
    inner = [(e + 127) * 8 for e in exponents[1:-1]]
    buckets = np.searchsorted(inner, _MAGNITUDES, "right")
    buckets[_MAGNITUDES == 0] = len(exponents) - 1
    return _fixed(np.array([e * math.log10(2) for e in exponents])), buckets.astype(np.uint16)


def _fixed(edges: Floats) -> Floats:
    """Not to be written to, as all histograms share them."""
    edges.flags.writeable = False
    return edges


@dataclass(frozen=True, slots=True)
class Stats:
    """One tensor in numbers. Mean, std, extremes are of the finite entries (NaN if there is none).

    `std` is the population's (divided by n, as NumPy's and Keras'), `zeros` counts exact zeros (of either sign),
    `nonfinite` NaN and infinities, `count` all entries.
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
        """sqrt(mean(x**2)), what MXNet's Monitor prints as norm / sqrt(size)."""
        return math.hypot(self.mean, self.std)

    @property
    def zero_fraction(self) -> float:
        """Share of exact zeros, 0 to 1; NaN for an empty tensor."""
        return self.zeros / self.count if self.count else math.nan

    @property
    def finite(self) -> int:
        """How many entries are finite."""
        return self.count - self.nonfinite

    def __add__(self, other: Stats) -> Stats:
        """The statistics of both tensors put together (Chan, Golub and LeVeque's update of mean and variance).

        The histograms are added where both have one; else the first one's stands for both.

        >>> Stats(1, 0, 0, 1.0, 0.0, 1.0, 1.0) + Stats(1, 0, 0, 3.0, 0.0, 3.0, 3.0)
        Stats(count=2, zeros=0, nonfinite=0, mean=2.0, std=1.0, min=1.0, max=3.0, histogram=None)
        """
        if not other.finite:
            mean, std, low, high = self.mean, self.std, self.min, self.max
        elif not self.finite:
            mean, std, low, high = other.mean, other.std, other.min, other.max
        else:
            mine = self.finite / (self.finite + other.finite)
            gap = other.mean - self.mean
            mean = self.mean + gap * (1 - mine)
            within = math.hypot(self.std * math.sqrt(mine), other.std * math.sqrt(1 - mine))
            std = math.hypot(within, gap * math.sqrt(mine * (1 - mine)))
            low, high = min(self.min, other.min), max(self.max, other.max)
        both = self.histogram + other.histogram if self.histogram and other.histogram else self.histogram
        return Stats(
            self.count + other.count, self.zeros + other.zeros, self.nonfinite + other.nonfinite,
            mean, std, low, high, both,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerSnapshot:
    """One call of one layer at one step; a quantity that was not there (a frozen layer's gradient, say) is None.

    `number` counts the layers in forward order from 1; `call` is 2 for the second call of a layer that is used twice in
    a step. `update_rms` is the RMS of what the optimizer added to the weight in this step; of a weight (or a rank's
    shard of it) of more than 8,192 entries it is estimated from so many, evenly spread. `activation_gain` is
    RMS(output gradient) over RMS(input gradient of the next entry), which is what the activation does where the layers
    form a chain. `trainable` says whether any of its weights requires a gradient, which one of a frozen layer does not;
    None if it is not known.

    In data parallel training the statistics are those of all ranks' batches joined. `rank_rms` holds, by rank, the RMS
    of the rank's own part of the output gradient, on the same scale: where batches are equal, the RMS of these numbers
    is `output_gradient.rms`. NaN for a rank that has no such gradient; empty where one process trains.
    """

    number: int
    name: str
    kind: str
    size: str
    call: int = 1
    weight: Stats | None = None
    weight_gradient: Stats | None = None
    output: Stats | None = None
    output_gradient: Stats | None = None
    input_gradient: Stats | None = None
    update_rms: float | None = None
    activation_gain: float | None = None
    rank_rms: tuple[float, ...] = ()
    trainable: bool | None = None

    @property
    def label(self) -> str:
        """The layer's name in its model; from its second call on with the call's number: `fc1`, `fc1#2`."""
        return self.name if self.call == 1 else f"{self.name}#{self.call}"

    @property
    def tag(self) -> str:
        """The name in TensorBoard: `1-fc1-784x512`."""
        return "-".join(part for part in (str(self.number), self.label, self.size) if part)

    @property
    def update_ratio(self) -> float | None:
        """RMS of the weight's change in this step over RMS of the weight; measured, so right for every optimizer."""
        return _ratio(self.update_rms, _rms(self.weight))

    @property
    def weight_gain(self) -> float | None:
        """RMS(input gradient) / RMS(output gradient): what the weight does to the signal on its way back."""
        return _ratio(_rms(self.input_gradient), _rms(self.output_gradient))


def _rms(stats: Stats | None) -> float | None:
    return None if stats is None else stats.rms


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def with_activation_gains(layers: Sequence[LayerSnapshot]) -> Iterator[LayerSnapshot]:
    """Fill in `activation_gain`: RMS(output gradient) of a layer over RMS(input gradient) of the one above it."""
    for layer, above in zip(layers, [*layers, None][1:], strict=True):
        handed_down = None if above is None else _rms(above.input_gradient)
        gain = _ratio(_rms(layer.output_gradient), handed_down)
        yield layer if gain == layer.activation_gain else replace(layer, activation_gain=gain)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All layers at one optimizer step, in forward order. `step` counts the steps already done: 0 is untrained."""

    step: int
    layers: tuple[LayerSnapshot, ...]
    wall_time: float = 0.0

    def __getitem__(self, label: str) -> LayerSnapshot:
        for layer in self.layers:
            if layer.label == label:
                return layer
        raise KeyError(f"no layer {label!r} in this snapshot; it has {', '.join(x.label for x in self.layers)}")


class History:
    """Snapshots in order of their steps, at most `limit` of them, and at most `layers` layers in all of them together.

    When it is full every second snapshot is dropped and from then on only every second is kept, so that it covers the
    whole run evenly, however long the run and however deep the network. The newest is always there.
    """

    def __init__(self, limit: int = 4096, layers: int = 1 << 16) -> None:
        self.limit = limit
        self.layers = layers
        self._kept: list[Snapshot] = []
        self._newest: list[Snapshot] = []  # if it is not among the kept ones
        self._kept_layers = 0
        self._stride = 1
        self._seen = 0

    @classmethod
    def restored(cls, snapshots: Sequence[Snapshot], stride: int, seen: int) -> History:
        """The history that held these and was `thinned` like this."""
        history = cls()
        history._kept, history._stride, history._seen = list(snapshots), stride, seen
        if seen and (seen - 1) % stride:
            history._newest = [history._kept.pop()]
        history._kept_layers = sum(len(kept.layers) for kept in history._kept)
        return history

    @property
    def thinned(self) -> tuple[int, int]:
        """Every how many-th snapshot is kept, and how many there were."""
        return self._stride, self._seen

    def append(self, snapshot: Snapshot) -> None:
        """Add the next snapshot."""
        if self._seen % self._stride == 0:
            self._kept.append(snapshot)
            self._kept_layers += len(snapshot.layers)
        if len(self._kept) > self.limit or (self._kept_layers > self.layers and len(self._kept) > 2):
            del self._kept[1::2]
            self._kept_layers = sum(len(kept.layers) for kept in self._kept)
            self._stride *= 2
        self._newest = [snapshot] if self._seen % self._stride else []
        self._seen += 1

    def series(self, quantity: str, statistic: str) -> Floats:
        """One statistic over the run, [snapshots, layers]; NaN where it was not there.

        `quantity` is one of `QUANTITIES` with a field of `Stats` (or `rms`, `zero_fraction`) as statistic. The layers
        are all that were ever seen, by their labels: a recurrent one has fewer calls in a step of short sequences.
        """
        labels = {layer.label: None for snapshot in self for layer in snapshot.layers}
        rows = [{x.label: _number(x, quantity, statistic) for x in snapshot.layers} for snapshot in self]
        return np.array([[row.get(label, math.nan) for label in labels] for row in rows])

    @property
    def steps(self) -> list[int]:
        """The optimizer steps that were sampled."""
        return [snapshot.step for snapshot in self]

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._kept) + len(self._newest)

    @overload
    def __getitem__(self, index: int) -> Snapshot: ...
    @overload
    def __getitem__(self, index: slice) -> list[Snapshot]: ...
    def __getitem__(self, index: int | slice) -> Snapshot | list[Snapshot]:
        return self._all()[index]

    def _all(self) -> list[Snapshot]:
        return self._kept + self._newest


def _number(layer: LayerSnapshot, quantity: str, statistic: str) -> float:
    stats = getattr(layer, quantity)
    return math.nan if stats is None else float(getattr(stats, statistic))
