"""The ranks that train one model, and their snapshots combined into one."""

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

Value = TypeVar("Value")

_WARN_AFTER = 15.0  # seconds


class Ranks:
    """The processes that train a model together: by `DistributedDataParallel`, `fully_shard`, or tensor parallel.

    They use the model's own process group and its time-out. Without a group this is rank 0 of 1.

    Raises:
        UsageError: the parameters are spread over the ranks in a way that is not supported.
    """

    def __init__(self, model: nn.Module) -> None:
        parallel = (m for m in model.modules() if isinstance(m, DistributedDataParallel))
        self.data_parallel = next(parallel, None)
        """The wrapped model of data parallel training, or None."""
        self._uneven = False
        self._device = torch.device("cpu") if self.data_parallel is None else self.data_parallel.device
        mesh = shards.mesh(model)
        if mesh is not None and self.data_parallel is not None:
            raise UsageError("watch() takes either DistributedDataParallel or parameters on a device mesh, not both")
        self._group: dist.ProcessGroup | None = None
        if mesh is not None:
            self._group = mesh.get_group()
        elif self.data_parallel is not None:
            self._group = self.data_parallel.process_group
        self.rank = 0 if self._group is None else dist.get_rank(self._group)
        self.size = 1 if self._group is None else dist.get_world_size(self._group)
        self.tensor_parallel = mesh is not None and not any(map(shards.is_fully_sharded, model.modules()))
        """Whether the ranks share the computation of a layer, so that each rank has only a part of its output."""

    def all_take_part(self, *, joining: bool = False) -> bool:
        """Whether every rank takes part in every step: not after `destroy_process_group`, and not from a `join()` on.

        Inside `model.join()` ranks without further batches take no more steps. The others would wait for them without
        end, and from then on the ranks count their steps differently. `joining` says that this is inside a `join()`.
        """
        self._uneven = self._uneven or joining
        return not self._uneven and (self._group is None or dist.is_initialized())

    def gather(self, own: Value) -> list[Value]:
        """The values of all ranks, in order. A collective call: it waits until every rank has called it."""
        if self.size == 1:
            return [own]
        gathered: list[Any] = [None] * self.size
        with _waiting(f"rank {self.rank} of {self.size}"), _current(self._device):
            dist.all_gather_object(gathered, own, group=self._group)
        return cast(list[Value], gathered)


@contextmanager
def _waiting(rank: str) -> Iterator[None]:
    """Explain a long wait: by a warning after a while, and by a note on the error of the time-out."""
    message = (
        f"{rank} waits for the samples of the others: every rank must enter watch() with the same schedule, and leave "
        "it after the same step"
    )
    timer = threading.Timer(_WARN_AFTER, warnings.warn, (message, RuntimeWarning))
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:
        error.add_note(message)
        raise
    finally:
        timer.cancel()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make the model's device the current one, which NCCL uses to gather objects."""
    if device.type == "cpu":
        return nullcontext()
    return cast(AbstractContextManager[Any], torch.get_device_module(device).device(device))


def merged(snapshots: Sequence[Snapshot], sharded: Container[str] = ()) -> Snapshot:
    """One snapshot of the joined batch from those of all ranks.

    Weights and their gradients are equal on all ranks and taken from rank 0; those of the layers named in `sharded` are
    combined from the ranks' shards. The layers have the order of rank 0. A call that only another rank saw follows the
    call that precedes it there.
    """
    order: list[tuple[str, int]] = []
    by_rank = [{(layer.name, layer.call): layer for layer in snapshot.layers} for snapshot in snapshots]
    for calls in by_rank:
        if list(calls) != order:
            _insert(order, calls)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in order), start=1)}
    joined = {key: _merged([calls.get(key) for calls in by_rank], key[0] in sharded) for key in order}
    layers = [replace(layer, number=numbers[name]) for (name, _), layer in joined.items()]
    return replace(snapshots[0], layers=tuple(with_activation_gains(layers)))


def _insert(order: list[tuple[str, int]], keys: Iterable[tuple[str, int]]) -> None:
    place = 0
    for key in keys:
        if key not in order:
            order.insert(place, key)
        place = order.index(key) + 1


def _merged(of_ranks: Sequence[LayerSnapshot | None], sharded: bool) -> LayerSnapshot:
    known = [layer for layer in of_ranks if layer is not None]
    quantities = QUANTITIES if sharded else ACTIVATIONS
    pooled: dict[str, Any] = {
        quantity: _pooled([getattr(layer, quantity) for layer in known]) for quantity in quantities
    }
    rms = [layer.output_gradient.rms if layer and layer.output_gradient else math.nan for layer in of_ranks]
    pooled["rank_rms"] = tuple(rms) if pooled["output_gradient"] else ()
    if sharded:
        pooled["update_rms"] = _joint_update(known)
    return replace(known[0], **pooled)


def _joint_update(shards: Sequence[LayerSnapshot]) -> float | None:
    """RMS of the change of a weight that is spread in shards, from those of the shards and their sizes."""
    sizes = [(stats.count, x.update_rms) for x in shards if (stats := x.weight_gradient or x.weight) is not None]
    changes = [(count, rms) for count, rms in sizes if rms is not None and count]
    total = sum(count for count, _ in changes)
    return math.sqrt(sum(count / total * rms * rms for count, rms in changes)) if total else None


def _pooled(stats: Sequence[Stats | None]) -> Stats | None:
    known = [part for part in stats if part is not None]
    return reduce(add, known) if known else None


def without_own(snapshot: Snapshot) -> Snapshot:
    """A snapshot without the tensors that belong to this rank's own batch."""
    nothing: dict[str, Any] = dict.fromkeys((*ACTIVATIONS, "activation_gain"))
    return replace(snapshot, layers=tuple(replace(layer, **nothing) for layer in snapshot.layers))
