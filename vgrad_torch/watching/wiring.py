"""The sources of each layer in a snapshot: the calls and junctions of the sample, named by their labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from vgrad_torch.records import JunctionSnapshot
from vgrad_torch.watching import graph

JunctionGradient = tuple[float, int]
"""RMS and number of entries of the gradient that arrives at a junction."""

Sources = dict[str, tuple[str, ...]]
"""Label -> labels of what feeds it."""


def wired(
    calls: Mapping[graph.Call, str], wires: graph.Graph, gradients: Mapping[graph.Junction, JunctionGradient]
) -> tuple[Sources, tuple[JunctionSnapshot, ...]]:
    """The sources of the calls that a snapshot shows, given with their labels, and the junctions that feed them.

    Calls with the same label in a forward pass are a loop: only what was there before it counts as a source. A junction
    that only one of the shown calls reaches is none. One that no layer gets its input from is left out, and its sources
    are those of the junction behind it.
    """
    order = sorted(wires.sources, key=lambda vertex: wires.position.get(vertex, 0))
    begun: dict[tuple[int, str], int] = {}
    for vertex in order:
        if isinstance(vertex, graph.Call) and vertex in calls:
            begun.setdefault((vertex.forward_pass, calls[vertex]), wires.position.get(vertex, 0))
    meaning: dict[graph.Vertex, tuple[str, ...]] = {call: (label,) for call, label in calls.items()}
    sources: Sources = dict.fromkeys(calls.values(), ())
    junctions: dict[str, JunctionSnapshot] = {}
    entered = {source for vertex in order if vertex in calls for source in wires.sources[vertex]}
    for vertex in order:
        label = calls.get(vertex) if isinstance(vertex, graph.Call) else None
        since = math.inf if label is None else begun[vertex.forward_pass, label]
        found = dict.fromkeys(_labels(vertex, wires, meaning, since))
        if label is not None:
            sources[label] = tuple(dict.fromkeys([*sources[label], *(x for x in found if x != label)]))
        elif isinstance(vertex, graph.Junction) and len(found) > 1 and vertex in entered:
            name = _unique(f"{[*found][-1].rstrip('+')}+", junctions)
            junctions[name] = JunctionSnapshot(name, tuple(found), *gradients.get(vertex, (math.nan, 0)))
            meaning[vertex] = (name,)
        else:
            meaning[vertex] = tuple(found)
    return sources, tuple(_used(junctions, sources))


def _labels(
    vertex: graph.Vertex, wires: graph.Graph, meaning: Mapping[graph.Vertex, tuple[str, ...]], since: float
) -> Iterator[str]:
    """What feeds a vertex; of a loop that began at `since`, what was there before."""
    for source in wires.sources[vertex]:
        if wires.position.get(source, 0) <= since:
            yield from meaning.get(source, ())


def _used(junctions: Mapping[str, JunctionSnapshot], sources: Sources) -> list[JunctionSnapshot]:
    """The junctions that feed a shown layer, in forward order."""
    wanted = {source for found in sources.values() for source in found}
    kept = []
    for junction in reversed(list(junctions.values())):  # from the loss: each one before those that feed it
        if junction.label in wanted:
            wanted.update(junction.sources)
            kept.append(junction)
    return kept[::-1]


def _unique(label: str, taken: Mapping[str, object]) -> str:
    while label in taken:
        label += "+"
    return label
