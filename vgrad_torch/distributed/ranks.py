"""Several processes that train one model: who they are, and their snapshots put together as one."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vgrad_torch.distributed import shards
from vgrad_torch.errors import UsageError
from vgrad_torch.records import ACTIVATIONS, QUANTITIES, LayerSnapshot, Snapshot, Stats, with_activation_gains

Given = TypeVar("Given")

_PATIENCE = 15.0  # seconds


class Ranks:
    """The processes that train a model together: by `DistributedDataParallel`, `fully_shard`, or tensor parallel.

    They meet in the model's own process group, so its time-out holds. Without one: rank 0 of 1, and no group.

    Raises:
        UsageError: the model's parameters are spread over the ranks in a way that is not known.
    """

    def __init__(self, model: nn.Module) -> None:
        parallel = (m for m in model.modules() if isinstance(m, DistributedDataParallel))
        self._model = next(parallel, None)
        self._uneven = False
        self._device = torch.device("cpu") if self._model is None else self._model.device
        mesh = shards.mesh(model)
        if mesh is not None and self._model is not None:
            raise UsageError("watch() takes either DistributedDataParallel or parameters on a device mesh, not both")
        self._group: dist.ProcessGroup | None = None
        if mesh is not None:
            self._group = mesh.get_group()
        elif self._model is not None:
            self._group = self._model.process_group
        self.rank = 0 if self._group is None else dist.get_rank(self._group)
        self.size = 1 if self._group is None else dist.get_world_size(self._group)
        self.tensor_parallel = mesh is not None and not any(map(shards.is_fully_sharded, model.modules()))
        """Whether the ranks share the computation of a layer, so that its output on one of them is not known whole."""

    def can_meet(self) -> bool:
        """Whether each rank comes to every step: not after `destroy_process_group`, nor from a `join()` on.

        Inside `model.join()` the ranks whose batches are used up take no more steps, so that they would be waited for
        in vain, and from then on the ranks number their steps differently.
        """
        self._uneven = self._uneven or (self._model is not None and self._model._join_config.enable)
        return not self._uneven and (self._group is None or dist.is_initialized())

    def gather(self, mine: Given) -> list[Given]:
        """What each rank gave, in their order. A collective call: it waits until every rank has come here."""
        if self.size == 1:
            return [mine]
        gathered: list[Any] = [None] * self.size
        with _waiting(f"rank {self.rank} of {self.size}"), _current(self._device):
            dist.all_gather_object(gathered, mine, group=self._group)
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


def merged(snapshots: Sequence[Snapshot], sharded: Container[str] = ()) -> Snapshot:
    """The snapshots of all ranks as one of their joined batch; weights and their gradients, alike on all, from rank 0.

    Those of the layers named in `sharded` are put together from the ranks' shards. Layers stand in the order of rank 0;
    a call that only another rank saw follows the one before it there.
    """
    order: list[tuple[str, int]] = []
    found = [{(layer.name, layer.call): layer for layer in snapshot.layers} for snapshot in snapshots]
    for of_rank in found:
        if list(of_rank) != order:
            _insert(order, of_rank)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in order), start=1)}
    joined = {key: _merged([of.get(key) for of in found], key[0] in sharded) for key in order}
    layers = [replace(layer, number=numbers[name]) for (name, _), layer in joined.items()]
    return replace(snapshots[0], layers=tuple(with_activation_gains(layers)))


def _insert(order: list[tuple[str, int]], keys: Iterable[tuple[str, int]]) -> None:
    place = 0
    for key in keys:
        if key not in order:
            order.insert(place, key)
        place = order.index(key) + 1


def _merged(of_ranks: Sequence[LayerSnapshot | None], sharded: bool) -> LayerSnapshot:
    there = [layer for layer in of_ranks if layer is not None]
    quantities = QUANTITIES if sharded else ACTIVATIONS
    pooled: dict[str, Any] = {
        quantity: _pooled([getattr(layer, quantity) for layer in there]) for quantity in quantities
    }
    rms = [layer.output_gradient.rms if layer and layer.output_gradient else math.nan for layer in of_ranks]
    pooled["rank_rms"] = tuple(rms) if pooled["output_gradient"] else ()
    if sharded:
        pooled["update_rms"] = _joint_update(there)
    return replace(there[0], **pooled)


def _joint_update(shards: Sequence[LayerSnapshot]) -> float | None:
    """RMS of the change of a weight that lies in shards, from that of each and its size."""
    sizes = [(stats.count, x.update_rms) for x in shards if (stats := x.weight_gradient or x.weight) is not None]
    changes = [(count, rms) for count, rms in sizes if rms is not None and count]
    total = sum(count for count, _ in changes)
    return math.sqrt(sum(count / total * rms * rms for count, rms in changes)) if total else None


def _pooled(stats: Sequence[Stats | None]) -> Stats | None:
    there = [one for one in stats if one is not None]
    return reduce(add, there) if there else None


def without_own(snapshot: Snapshot) -> Snapshot:
    """A rank's snapshot without what is of its own batch alone."""
    nothing: dict[str, Any] = dict.fromkeys((*ACTIVATIONS, "activation_gain"))
    return replace(snapshot, layers=tuple(replace(layer, **nothing) for layer in snapshot.layers))
