"""History: the snapshots of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from vgrad_torch.records.histogram import Floats
from vgrad_torch.records.snapshot import LayerSnapshot, Snapshot


class History:
    """Snapshots in order of their steps: at most `limit` snapshots, with at most `layers` layers in total.

    When it is full, every second snapshot is dropped, and from then on only every second one is kept. So it covers the
    whole run evenly and its memory is bounded. The newest snapshot is always kept.

    Attributes:
        limit: the largest number of snapshots, beside the newest.
        layers: the largest number of layer calls in these snapshots together; two snapshots are kept in any case.
    """

    def __init__(self, limit: int = 4096, layers: int = 1 << 16) -> None:
        self.limit = limit
        self.layers = layers
        self._kept: list[Snapshot] = []
        self._newest: list[Snapshot] = []  # the newest one, if it is not among the kept ones
        self._kept_layers = 0
        self._stride = 1
        self._seen = 0

    @classmethod
    def restored(cls, snapshots: Sequence[Snapshot], stride: int, seen: int) -> History:
        """The history that held these snapshots and whose `thinned` was (stride, seen)."""
        history = cls()
        history._kept, history._stride, history._seen = list(snapshots), stride, seen
        if seen and (seen - 1) % stride:
            history._newest = [history._kept.pop()]
        history._kept_layers = sum(len(kept.layers) for kept in history._kept)
        return history

    @property
    def thinned(self) -> tuple[int, int]:
        """(stride, seen): every stride-th snapshot is kept, of all that were appended."""
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
        """One statistic over the run, [snapshots, layers]; NaN where it does not exist.

        `quantity` is one of `QUANTITIES`; `statistic` is a field of `Stats`, or `rms` or `zero_fraction`. The layers
        are all labels that occurred: a recurrent layer has fewer calls in a step with short sequences.
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
