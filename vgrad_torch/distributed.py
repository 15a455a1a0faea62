"""Data parallel training: which processes train one model together, and their snapshots put together as one."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vgrad_torch.records import ACTIVATIONS, LayerSnapshot, Snapshot, Stats, with_activation_gains

Given = TypeVar("Given")

_PATIENCE = 15.0  # seconds


class Ranks:
    """The processes that train a `DistributedDataParallel` model together. Without one: rank 0 of 1, and no group.

    They meet in the model's own process group, so its time-out holds.
    """

    def __init__(self, model: nn.Module) -> None:
        parallel = (m for m in model.modules() if isinstance(m, DistributedDataParallel))
        self._model = next(parallel, None)
        self._uneven = False
        self.rank = 0
        self.size = 1
        if self._model is not None:
            self.rank = dist.get_rank(self._model.process_group)
            self.size = dist.get_world_size(self._model.process_group)

    def can_meet(self) -> bool:
        """Whether each rank comes to every step: not after `destroy_process_group`, nor from a `join()` on.

        Inside `model.join()` the ranks whose batches are used up take no more steps, so that they would be waited for
        in vain, and from then on the ranks number their steps differently.
        """
        self._uneven = self._uneven or (self._model is not None and self._model._join_config.enable)
        return not self._uneven and (self._model is None or dist.is_initialized())

    def gather(self, mine: Given) -> list[Given]:
        """What each rank gave, in their order. A collective call: it waits until every rank has come here."""
        if self._model is None or self.size == 1:
            return [mine]
        gathered: list[Any] = [None] * self.size
        with _waiting(f"rank {self.rank} of {self.size}"), _current(self._model.device):
            dist.all_gather_object(gathered, mine, group=self._model.process_group)
        return cast(list[Given], gathered)


@contextmanager
def _waiting(who: str) -> Iterator[None]:
    """Say what is waited for: after a while in a warning, and with the error that the time-out ends it by."""
    words = (
        f"{who} waits for the samples of the others: every rank must enter watch() with the same schedule, and leave "
        "it after the same step"
    )
    timer = threading.Timer(_PATIENCE, warnings.warn, (words, RuntimeWarning))
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:
        error.add_note(words)
        raise
    finally:
        timer.cancel()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make the model's device the one that NCCL takes for what is gathered."""
    if device.type == "cpu":
        return nullcontext()
    return cast(AbstractContextManager[Any], torch.get_device_module(device).device(device))


def merged(snapshots: Sequence[Snapshot]) -> Snapshot:
    """The snapshots of all ranks as one of their joined batch; weights and their gradients, alike on all, from rank 0.

    Layers stand in the order of rank 0; a call that only another rank saw follows the one before it there.
    """
    order: list[tuple[str, int]] = []
    found = [{(layer.name, layer.call): layer for layer in snapshot.layers} for snapshot in snapshots]
    for of_rank in found:
        if list(of_rank) != order:
            _insert(order, of_rank)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in order), start=1)}
    layers = [replace(_merged([of.get(key) for of in found]), number=numbers[key[0]]) for key in order]
    return replace(snapshots[0], layers=tuple(with_activation_gains(layers)))


def _insert(order: list[tuple[str, int]], keys: Iterable[tuple[str, int]]) -> None:
    place = 0
    for key in keys:
        if key not in order:
            order.insert(place, key)
        place = order.index(key) + 1


def _merged(of_ranks: Sequence[LayerSnapshot | None]) -> LayerSnapshot:
    there = [layer for layer in of_ranks if layer is not None]
    pooled = {quantity: _pooled([getattr(layer, quantity) for layer in there]) for quantity in ACTIVATIONS}
    rms = [layer.output_gradient.rms if layer and layer.output_gradient else math.nan for layer in of_ranks]
    return replace(there[0], **pooled, rank_rms=tuple(rms) if pooled["output_gradient"] else ())  # type: ignore[arg-type]


def _pooled(stats: Sequence[Stats | None]) -> Stats | None:
    there = [one for one in stats if one is not None]
    return reduce(add, there) if there else None


def without_own(snapshot: Snapshot) -> Snapshot:
    """A rank's snapshot without what is of its own batch alone."""
    nothing: dict[str, Any] = dict.fromkeys((*ACTIVATIONS, "activation_gain"))
    return replace(snapshot, layers=tuple(replace(layer, **nothing) for layer in snapshot.layers))
