"""The sources of each layer in a snapshot: the calls and junctions of the sample, named by their labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vgrad_torch.records import JunctionSnapshot, LayerSnapshot
from vgrad_torch.watching import graph

JunctionGradient = tuple[float, int]
"""RMS and number of entries of the gradient that arrives at a junction."""


def wired(
    layers: Sequence[LayerSnapshot],
    calls: Mapping[graph.Call, str],
    wires: graph.Graph,
    gradients: Mapping[graph.Junction, JunctionGradient],
) -> tuple[list[LayerSnapshot], tuple[JunctionSnapshot, ...]]:
    """The layers with their sources, and the junctions that feed them.

    `calls` are the calls that the layers show, with their labels. A junction that only one of them reaches is none. One
    that no layer gets its input from is left out, and its sources are those of the junction behind it: a loop over time
    has very many.
    """
    meaning: dict[graph.Vertex, tuple[str, ...]] = {call: (label,) for call, label in calls.items()}
    sources: dict[str, tuple[str, ...]] = {}
    junctions: dict[str, JunctionSnapshot] = {}
    order = sorted(wires.sources, key=lambda vertex: wires.position.get(vertex, 0))
    entered = {source for vertex in order if vertex in calls for source in wires.sources[vertex]}
    for vertex in order:
        found = tuple(dict.fromkeys(label for x in wires.sources[vertex] for label in meaning.get(x, ())))
        if isinstance(vertex, graph.Call):
            if vertex in calls:
                sources[calls[vertex]] = tuple(label for label in found if label != calls[vertex])
            else:  # a call that is not shown
                meaning[vertex] = found
        elif len(found) > 1 and vertex in entered:
            label = _unique(f"{found[-1].rstrip('+')}+", junctions)
            junctions[label] = JunctionSnapshot(label, found, *gradients.get(vertex, (math.nan, 0)))
            meaning[vertex] = (label,)
        else:
            meaning[vertex] = found
    return [replace(x, sources=sources.get(x.label, ())) for x in layers], tuple(junctions.values())


def _unique(label: str, taken: Mapping[str, object]) -> str:
    while label in taken:
        label += "+"
    return label
