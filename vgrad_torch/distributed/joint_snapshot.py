"""The snapshots of several ranks combined into one of the joined batch."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

from vgrad_torch.records import (
    ACTIVATIONS,
    QUANTITIES,
    JunctionSnapshot,
    LayerSnapshot,
    Snapshot,
    Stats,
    TimeProfile,
    with_activation_gains,
)


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
    junctions = tuple(_merged_junctions(snapshots))
    problem = next((snapshot.graph_problem for snapshot in snapshots if snapshot.graph_problem), "")
    return replace(
        snapshots[0],
        layers=tuple(with_activation_gains(layers, junctions)),
        junctions=junctions,
        graph_problem=problem,
    )


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
    sources = None if any(x.sources is None for x in known) else _union(x.sources or () for x in known)
    return replace(known[0], **pooled, sources=sources, time=TimeProfile.joined([x.time for x in known if x.time]))


def _merged_junctions(snapshots: Sequence[Snapshot]) -> Iterator[JunctionSnapshot]:
    """Each junction that a rank saw, with the sources that it has on any rank."""
    by_label: dict[str, list[JunctionSnapshot]] = {}
    for junction in (junction for snapshot in snapshots for junction in snapshot.junctions):
        by_label.setdefault(junction.label, []).append(junction)
    for label, found in by_label.items():
        count = sum(junction.count for junction in found)
        squares = sum(junction.gradient_rms**2 * junction.count for junction in found if junction.count)
        rms = math.sqrt(squares / count) if count else math.nan
        yield JunctionSnapshot(label, _union(junction.sources for junction in found), rms, count)


def _union(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label for part in parts for label in part))


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
