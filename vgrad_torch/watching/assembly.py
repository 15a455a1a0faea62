"""From the numbers of a sample to the layers of a snapshot: which calls count, their numbers, and what feeds them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from vgrad_torch.records import JunctionSnapshot, LayerSnapshot, Stats, TimeProfile, last_alone
from vgrad_torch.watching import graph
from vgrad_torch.watching.graph import Call, Graph
from vgrad_torch.watching.hooks import Hooks
from vgrad_torch.watching.layer import Layer
from vgrad_torch.watching.pooling import Key, Numbers, merged
from vgrad_torch.watching.wiring import JunctionGradient, wired

LOOP = 16
"""Calls of a layer in one forward pass from which on it counts as called in a loop; a recurrent cell always does."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of a sample.

    Attributes:
        parameters: of the weights, by name and call 0.
        passes: of the calls in each forward pass.
        updates: RMS of the weights' change by name.
        reached: the calls that a backward pass reached.
        junctions: the gradients at junctions.
        over_time: the norms of the gradient at each step of a recurrent layer's `input` and `output`, or of an
            embedding's output (`positions`).
    """

    parameters: Numbers
    passes: Mapping[int, Numbers]
    updates: Mapping[str, float]
    reached: set[Call]
    junctions: Mapping[graph.Junction, JunctionGradient]
    over_time: Mapping[Call, Mapping[str, Sequence[float]]] = field(default_factory=dict)


def assemble(
    measured: Measured, layers: Mapping[str, Layer], hooks: Hooks
) -> tuple[list[LayerSnapshot], tuple[JunctionSnapshot, ...]]:
    """The layers in forward order, and the junctions between them.

    Calls that no backward pass reaches are left out where other calls of the layer are reached. All calls of a layer in
    a loop are one entry.
    """
    names = {call.name for call in measured.reached if call.forward_pass in measured.passes}
    kept = [call for call in _calls(measured.passes) if call.name not in names or call in measured.reached]
    keys = _numbered(kept, _looped(kept, layers))
    numbers = merged([measured.parameters, *({key: measured.passes[c[0]][c[1:]]} for c, key in keys.items())])
    order = list(dict.fromkeys(keys[call] for call in sorted(keys, key=lambda call: hooks.graph.position.get(call, 0))))
    if hooks.recomputed:  # then the calls were seen in the order of the backward pass
        order.sort(key=lambda key: (key[1], hooks.order[key[0]]))
    found = [
        _layer(place, key, layers[key[0]], numbers, measured.updates, hooks)
        for place, key in _places(_with_uncalled(order, layers))
    ]
    if hooks.recomputed or not keys:
        return found, ()
    newest = max(call.forward_pass for call in keys)
    labels = {(layer.name, layer.call): layer.label for layer in found}
    wires, junctions = wired({call: labels[key] for call, key in keys.items()}, hooks.graph, measured.junctions)
    times = dict(_times(measured, keys, hooks.graph, newest))
    return [replace(x, sources=wires.get(x.label, ()), time=times.get((x.name, x.call))) for x in found], junctions


def _calls(passes: Mapping[int, Numbers]) -> Iterator[Call]:
    return (Call(number, *key) for number, part in passes.items() for key in part)


def _looped(calls: Sequence[Call], layers: Mapping[str, Layer]) -> set[str]:
    """The layers whose calls are one entry."""
    counts = Counter((call.forward_pass, call.name) for call in calls)
    cells = {call.name for call in calls if isinstance(layers[call.name].module, nn.RNNCellBase)}
    return cells | {name for (_, name), count in counts.items() if count > LOOP}


def _numbered(calls: Sequence[Call], looped: set[str]) -> dict[Call, Key]:
    """Name and number of each call, from 1 in each forward pass; all calls of a layer in a loop are number 1."""
    counts: Counter[tuple[int, str]] = Counter()
    keys = {}
    for call in calls:
        counts[call.forward_pass, call.name] += 1
        keys[call] = call.name, 1 if call.name in looped else counts[call.forward_pass, call.name]
    return keys


def _with_uncalled(calls: Sequence[Key], layers: Mapping[str, Layer]) -> Iterator[Key]:
    """The calls in their order; a layer that was not called follows its neighbour in the model.

    Without a layer whose weights all belong to a called one too, such as an embedding that two parts of a model share.
    """
    last_call = {name: place for place, (name, _) in enumerate(calls)}
    used = {id(weight) for name in last_call for weight in layers[name].weights()}
    followers: dict[str | None, list[Key]] = {}
    neighbour: str | None = None
    for name, layer in layers.items():
        if name in last_call:
            neighbour = name
        elif not {id(weight) for weight in layer.weights()} <= used:
            followers.setdefault(neighbour, []).append((name, 1))
    yield from followers.get(None, [])
    for place, key in enumerate(calls):
        yield key
        if last_call[key[0]] == place:
            yield from followers.get(key[0], [])


def _places(keys: Iterator[Key]) -> Iterator[tuple[int, Key]]:
    """Each key with the number of its layer, from 1."""
    numbers: dict[str, int] = {}
    for key in keys:
        yield numbers.setdefault(key[0], len(numbers) + 1), key


def _layer(
    place: int, key: Key, layer: Layer, numbers: Numbers, updates: Mapping[str, float], hooks: Hooks
) -> LayerSnapshot:
    name, call = key
    stats: dict[str, Stats] = {**numbers.get((name, 0), {}), **numbers.get(key, {})}
    return LayerSnapshot(
        place, name, layer.kind, layer.size(hooks.flows[name]), call,
        weight=stats.get("weight"),
        weight_gradient=stats.get("weight_gradient"),
        output=stats.get("output"),
        output_gradient=stats.get("output_gradient"),
        input_gradient=stats.get("input_gradient"),
        update_rms=updates.get(name),
        trainable=layer.trainable(),
    )  # fmt: skip


# --- time ------------------------------------------------------------------------------------------------------------


def _times(
    measured: Measured, keys: Mapping[Call, Key], wires: Graph, newest: int
) -> Iterator[tuple[Key, TimeProfile]]:
    """The profile of each recurrent layer, embedding and layer in a loop, from the newest forward pass."""
    for call, found in measured.over_time.items():
        if call in keys and "input" in found:
            last = last_alone(found["output"]) if "output" in found else len(found["input"]) - 1
            yield keys[call], TimeProfile.of(found["input"], last)
        elif call in keys and "positions" in found:
            yield keys[call], TimeProfile.of(found["positions"], None)
    loops: dict[Key, list[Call]] = {}
    for call, key in keys.items():
        if call.forward_pass == newest:
            loops.setdefault(key, []).append(call)
    for key, calls in loops.items():
        if len(calls) > 1:
            yield key, TimeProfile.of(*_over_calls(calls, measured, wires))


def _over_calls(calls: Sequence[Call], measured: Measured, wires: Graph) -> tuple[list[float], int | None]:
    """The norm of the output gradient at each call, and the only call whose output leaves the loop, if there is one."""
    stats = [measured.passes[call.forward_pass][call[1:]].get("output_gradient") for call in calls]
    norms = [x.rms * math.sqrt(x.count) if x else 0.0 for x in stats]
    names = {call.name for call in calls}
    leaves = {call for call in calls if _leaves(call, names, wires)}
    return norms, len(calls) - 1 if leaves <= {calls[-1]} else None


def _leaves(call: Call, names: set[str], wires: Graph) -> bool:
    """Whether a call's output goes to a layer outside these, directly or through junctions."""
    ahead: list[graph.Vertex] = [call]
    seen = set(ahead)
    while ahead:
        for vertex in wires.consumers(ahead.pop()):
            if isinstance(vertex, Call) and vertex.name not in names:
                return True
            if isinstance(vertex, graph.Junction) and vertex not in seen:
                seen.add(vertex)
                ahead.append(vertex)
    return False
