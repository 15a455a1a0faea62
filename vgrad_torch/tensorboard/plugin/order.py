"""The order of the layers in the Gradient Flow tab, and how the page groups them by block."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vgrad_torch.tensorboard.tags import Axes, layer_label
from vgrad_torch.verdict.blocks import MANY, blocks


def forward_order(axes: Axes) -> npt.NDArray[np.int64]:
    """The places of the layers in an order in which each one comes after all that feed it.

    Of the layers that may come next, it is the one that was logged first. Without a graph the order is that of the log.

    >>> from vgrad_torch.tensorboard.tags import Graph
    >>> graph = Graph((("b",), (), ("a",), ("a", "b")), ("+",), 0)
    >>> forward_order(Axes(["1-a", "2-b", "3-c"], [], graph)).tolist()
    [1, 0, 2]
    """
    labels = [layer_label(layer) for layer in axes.layers]
    if axes.graph is None or axes.graph.problem:
        return np.arange(len(labels))
    places = {label: place for place, label in enumerate([*labels, *axes.graph.junctions])}
    waiting: dict[int, int] = {}
    feeds: dict[int, list[int]] = {place: [] for place in range(axes.rows)}
    for place, sources in enumerate(axes.graph.sources):
        known = {places[source] for source in sources if source in places} - {place}
        waiting[place] = len(known)
        for source in known:
            feeds[source].append(place)
    found = _sorted(waiting, feeds, len(labels))
    return np.array(found + sorted({*range(len(labels))} - {*found}), np.int64)  # the second part: if it is no graph


def _sorted(waiting: dict[int, int], feeds: dict[int, list[int]], layers: int) -> list[int]:
    """The layers that can be sorted; those after a circle are left out. Junctions come as soon as they can."""

    def urgency(place: int) -> tuple[bool, int]:
        return place < layers, place

    ready = [urgency(place) for place, number in waiting.items() if number == 0]
    heapq.heapify(ready)
    found = []
    while ready:
        is_layer, place = heapq.heappop(ready)
        if is_layer:
            found.append(place)
        for consumer in feeds[place]:
            waiting[consumer] -= 1
            if waiting[consumer] == 0:
                heapq.heappush(ready, urgency(consumer))
    return found


def in_order(axes: Axes) -> Axes:
    """The axes with the layers in forward order."""
    order = forward_order(axes).tolist()
    graph = axes.graph
    if graph and not graph.problem:
        graph = graph._replace(sources=(*(graph.sources[i] for i in order), *graph.sources[len(order) :]))
    return axes._replace(layers=[axes.layers[i] for i in order], graph=graph)


def grouping(layers: Sequence[str]) -> dict[str, Any]:
    """What the page needs to group layers, given by their tags: their names, blocks, and a sentence about both.

    `names` lack the shared prefix if there are more than `MANY` layers. A block is its name, the places of its first
    layer and after its last one, and the names of the layers in it.
    """
    labels = [layer_label(layer) for layer in layers]
    if len(labels) <= MANY:
        return {"labels": labels, "names": labels, "blocks": [], "grouped": ""}
    found = blocks(labels)
    groups = [
        {"name": group.name, "start": group.start, "end": group.end, "inside": group.inside}
        for group in found.groups
        if group.inside
    ]
    return {"labels": labels, "names": found.names, "blocks": groups, "grouped": found.remark()}
