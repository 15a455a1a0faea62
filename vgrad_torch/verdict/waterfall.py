"""The waterfall: the factors by which the gradient is multiplied on its way from the last layer to the first.

The way follows the strongest path through the network: from the first layer upwards, each time to the vertex that hands
back the largest gradient. A weight multiplies the RMS of the gradient by the weight gain of its layer, the activation
behind a layer by its activation gain. Between two layers with a junction in between, such as the sums of a residual
stream, there is one factor for all of it. The product of all factors is the ratio of the first layer's RMS to the last
layer's.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from vgrad_torch.records import JunctionSnapshot, LayerSnapshot, Snapshot, Stats

EXACT = 1e-5
"""The largest relative difference between the product of a chain's factors and the measured ratio."""
_STEEPEST = 1.8  # no common activation has a slope above SELU's 1.76

Vertex = LayerSnapshot | JunctionSnapshot


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor. `kind` says what it belongs to.

    `weight`: the weight of `layer`. `activation`: the activation after `layer`. `stream`: everything between `layer`
    and the next layer of the path, where outputs of other layers are added or multiplied. `unsplit`: as `activation`,
    together with the weight of the layer behind it, whose input gradient was not measured.
    """

    layer: str
    kind: str
    gain: float


@dataclass(frozen=True, slots=True)
class Waterfall:
    """All factors in order from the last layer to the first.

    `path` has the labels of the layers that it passes, also from the last to the first. `ratio` is RMS(output gradient
    of the first layer) / RMS(output gradient of the last layer). `chain` says that the network is these layers in a row
    and nothing else, with a function of each entry in between.
    """

    factors: tuple[Factor, ...]
    ratio: float
    chain: bool
    path: tuple[str, ...] = ()

    @property
    def product(self) -> float:
        """All gains multiplied."""
        return math.prod(factor.gain for factor in self.factors)

    def shares(self) -> list[tuple[Factor, float]]:
        """The factors below 1, each with its share of the decrease (of its logarithm), largest first.

        Of equal shares the layer nearer to the loss comes first.
        """
        return _shares([(factor, -math.log(factor.gain)) for factor in self.factors if factor.gain > 0])

    def growth(self) -> list[tuple[Factor, float]]:
        """The factors above 1, each with its share of the increase, largest first."""
        return _shares([(factor, math.log(factor.gain)) for factor in self.factors if factor.gain > 0])


def waterfall(snapshot: Snapshot) -> Waterfall | None:
    """The factors of one snapshot, or None if fewer than two layers of a path have an output gradient.

    None also if the graph could not be read. In a log from before it was read, the layers count as a row.

    >>> def gradient(rms): return Stats(1, 0, 0, rms, 0.0, rms, rms)
    >>> first = LayerSnapshot(1, "fc1", "Linear", "2x2", output_gradient=gradient(0.1))
    >>> last = LayerSnapshot(2, "fc2", "Linear", "2x1", output_gradient=gradient(1.0), input_gradient=gradient(0.2))
    >>> result = waterfall(Snapshot(0, (first, last)))
    >>> [(factor.layer, factor.kind, factor.gain) for factor in result.factors], result.chain
    ([('fc2', 'weight', 0.2), ('fc1', 'activation', 0.5)], True)
    """
    layers = path(snapshot)
    if len(layers) < 2 or snapshot.graph_problem:
        return None
    factors = tuple(_factors(layers, _neighbours(snapshot)))
    found = Waterfall(factors, _rms(layers[0]) / _rms(layers[-1]), False, tuple(x.label for x in reversed(layers)))
    chain = _is_chain(snapshot, layers)
    return Waterfall(factors, found.ratio, chain, found.path)


def graph_known(snapshot: Snapshot) -> bool:
    """Whether it is known which layer feeds which."""
    return all(layer.sources is not None for layer in snapshot.layers)


def reached(snapshot: Snapshot) -> list[LayerSnapshot]:
    """The layers with a gradient that is finite and not zero everywhere, in the order of their first call."""
    return [layer for layer in snapshot.layers if 0 < _rms(layer) < math.inf]


def path(snapshot: Snapshot) -> list[LayerSnapshot]:
    """The layers on the strongest path, from the first, which is farthest from the loss, to the last.

    All layers that are reached, if the graph is not known.
    """
    layers = reached(snapshot)
    if not graph_known(snapshot) or not layers:
        return layers
    vertices: dict[str, Vertex] = {}
    vertices.update((junction.label, junction) for junction in snapshot.junctions)
    vertices.update((layer.label, layer) for layer in layers)
    consumers: dict[str, list[str]] = {label: [] for label in vertices}
    for label, vertex in vertices.items():
        for source in vertex.sources or ():
            consumers.setdefault(source, []).append(label)
    consumers = _without_cycles({x: [c for c in consumers[x] if c in vertices] for x in vertices})
    distance = _distances(vertices, consumers)
    found = [max(layers, key=lambda layer: distance[layer.label])]  # of equal ones, the first
    ahead = [vertices[x] for x in consumers[found[0].label] if distance[x] > 0]
    while ahead:
        vertex = max(ahead, key=_handed_back)
        if isinstance(vertex, LayerSnapshot):
            found.append(vertex)
        ahead = [vertices[x] for x in consumers[vertex.label] if distance[x] > 0]
    return found


def _without_cycles(consumers: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The same without an edge of each cycle: all calls of a layer in a loop are one vertex, which may feed itself."""
    kept = {label: list(ahead) for label, ahead in consumers.items()}
    while True:
        try:
            TopologicalSorter(kept).prepare()
        except CycleError as error:
            consumer, label, *_ = error.args[1]
            kept[label].remove(consumer)
        else:
            return kept


def _distances(vertices: Mapping[str, Vertex], consumers: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The number of layers on the longest way from each vertex to the loss, itself included; 0 where none has one."""
    distance: dict[str, int] = {}
    for label in TopologicalSorter(consumers).static_order():
        ahead = max((distance[x] for x in consumers[label]), default=0)
        distance[label] = ahead + isinstance(vertices[label], LayerSnapshot)
    return distance


def _handed_back(vertex: Vertex) -> float:
    """RMS of the gradient that a vertex hands to those that feed it."""
    if isinstance(vertex, JunctionSnapshot):
        return 0.0 if math.isnan(vertex.gradient_rms) else vertex.gradient_rms
    return vertex.input_gradient.rms if vertex.input_gradient else 0.0


def _neighbours(snapshot: Snapshot) -> set[tuple[str, str]]:
    """The pairs of layers of which the first one alone, as far as is known, feeds the second one."""
    if graph_known(snapshot):
        return {
            (layer.sources[0], layer.label) for layer in snapshot.layers if layer.sources and len(layer.sources) == 1
        }
    return {(layer.label, above.label) for layer, above in pairwise(snapshot.layers)}


def _factors(layers: Sequence[LayerSnapshot], neighbours: Container[tuple[str, str]]) -> Iterator[Factor]:
    for above, layer in pairwise(reversed(layers)):
        handed = above.input_gradient.rms if above.input_gradient else 0.0
        direct = (layer.label, above.label) in neighbours
        if 0 < handed < math.inf and (direct or layer.sources is not None):
            yield Factor(above.label, "weight", handed / _rms(above))
            yield Factor(layer.label, "activation" if direct else "stream", _rms(layer) / handed)
        else:
            yield Factor(layer.label, "unsplit", _rms(layer) / _rms(above))


def _is_chain(snapshot: Snapshot, layers: Sequence[LayerSnapshot]) -> bool:
    """Whether the reached layers are in a row, each with the next one alone behind it."""
    if graph_known(snapshot) and (snapshot.junctions or len(layers) < len(reached(snapshot))):
        return False
    return all(_follows(*pair) for pair in pairwise(layers))


def _follows(layer: LayerSnapshot, above: LayerSnapshot) -> bool:
    """Whether `above` may get its input from this layer alone, by a function of each entry."""
    if not (layer.output_gradient and above.input_gradient):
        return False
    same = layer.output_gradient.count == above.input_gradient.count
    return same and _rms(layer) < _STEEPEST * above.input_gradient.rms


def _shares(parts: Sequence[tuple[Factor, float]]) -> list[tuple[Factor, float]]:
    positive = [(factor, part) for factor, part in parts if part > 0]
    total = sum(part for _, part in positive)
    return sorted(((factor, part / total) for factor, part in positive), key=lambda item: -item[1])


def _rms(layer: LayerSnapshot) -> float:
    stats: Stats | None = layer.output_gradient
    return stats.rms if stats else math.nan
