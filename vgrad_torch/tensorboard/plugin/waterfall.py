"""The waterfall of the Gradient Flow tab: the bars and sentences that the page shows for one step of one run.

The factors and their shares are those of `verdict.waterfall`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import Any

from vgrad_torch.records import JunctionSnapshot, LayerSnapshot, Snapshot, Stats
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.plugin.order import grouping
from vgrad_torch.verdict.labels import called
from vgrad_torch.verdict.waterfall import Factor, Waterfall, reached, waterfall

TIMES = "\N{MULTIPLICATION SIGN}"
_NAMES = {
    "weight": "weights",
    "activation": "activations",
    "stream": "residual sums and joins",
    "unsplit": "not split",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One factor on the gradient's way from layer `start` to layer `end`, by their places in forward order.

    They are equal for a weight. The gradient is `before` and `after` the factor, relative to that at the last layer.
    """

    start: int
    end: int
    before: float
    after: float
    factor: Factor


def waterfall_view(
    layers: Sequence[str],
    output_gradients: Sequence[float],
    input_gradients: Sequence[float],
    graph: tags.Graph | None = None,
    junctions: Sequence[float] = (),
) -> dict[str, Any]:
    """What the page draws, as JSON can hold it: `text`, `bars` from the last layer to the first, `levels`, `blocks`.

    `levels` are the output gradients of the path's layers, [layer, value relative to the last layer]. `blocks` are the
    bars of each block that is not opened: for each kind one, the product of its factors. The arguments are
    the layers' tags and the RMS of their gradients, infinity where there is NaN or infinity, NaN where nothing was
    measured; and the graph with the RMS of the gradients at its junctions.
    """
    snapshot = _snapshot(layers, output_gradients, input_gradients, graph, junctions)
    places = {layer.label: place for place, layer in enumerate(snapshot.layers)}
    measured = [layer for layer in snapshot.layers if layer.output_gradient]
    found = waterfall(snapshot if graph else replace(snapshot, layers=_until_it_stops(snapshot.layers)))
    path = [places[label] for label in found.path] if found else []
    bars = list(_bars(found, places)) if found else []
    levels = [[index, _rounded(output_gradients[index] / output_gradients[path[0]])] for index in path]
    groups = grouping(layers)["blocks"]
    text = _text(measured, reached(snapshot), found, snapshot.graph_problem)
    return {"text": text, "bars": [_drawn(bar, snapshot.layers) for bar in bars], "levels": levels,
            "blocks": [[*_together(group, bars)] for group in groups]}  # fmt: skip


def _snapshot(
    layers: Sequence[str],
    output_gradients: Sequence[float],
    input_gradients: Sequence[float],
    graph: tags.Graph | None,
    junctions: Sequence[float],
) -> Snapshot:
    """The layers with the two gradients alone; an input gradient that gives no factor is left out."""

    def stats(rms: float) -> Stats:
        return Stats(1, 0, 0, rms, 0.0, rms, rms)

    bare = [
        LayerSnapshot(
            index, tags.layer_label(tag), "", "",
            output_gradient=None if math.isnan(output) else stats(output),
            input_gradient=stats(input_) if 0 < input_ < math.inf else None,
            sources=graph.sources[index] if graph and not graph.problem else None,
        )
        for index, (tag, output, input_) in enumerate(zip(layers, output_gradients, input_gradients, strict=True))
    ]  # fmt: skip
    if graph is None or graph.problem:
        return Snapshot(0, tuple(bare), graph_problem=graph.problem if graph else "")
    met = zip(graph.junctions, graph.sources[len(bare) :], junctions, strict=True)
    return Snapshot(0, tuple(bare), junctions=tuple(JunctionSnapshot(*junction) for junction in met))


def _until_it_stops(layers: Sequence[LayerSnapshot]) -> tuple[LayerSnapshot, ...]:
    """Of layers in a row those behind the last one whose gradient is zero or not finite."""

    def goes_on(layer: LayerSnapshot) -> bool:
        return layer.output_gradient is None or 0 < layer.output_gradient.rms < math.inf

    return tuple(takewhile(goes_on, layers[::-1]))[::-1]


def _bars(found: Waterfall, places: Mapping[str, int]) -> Iterator[Bar]:
    level, steps = 1.0, pairwise(places[label] for label in found.path)
    above = below = 0
    split = False
    for factor in found.factors:
        if not split:
            above, below = next(steps)
        split = factor.kind == "weight"
        yield Bar(above, above if split else below, level, level * factor.gain, factor)
        level *= factor.gain


def _drawn(bar: Bar, layers: Sequence[LayerSnapshot]) -> dict[str, Any]:
    """A bar with its number and the words shown when the mouse is over it."""
    above, below = (called(layers[index].label) for index in (bar.start, bar.end))
    number = f"{TIMES}{_number(math.log10(bar.factor.gain))}"
    what = {
        "weight": f"weights of {above}",
        "activation": f"activation between {below} and {above}",
        "stream": f"all ways between {below} and {above} together",
        "unsplit": f"weights and activations between {below} and {above} together",
    }[bar.factor.kind]
    ends = {"before": _rounded(bar.before), "after": _rounded(bar.after)}
    indices = {"start": bar.start, "end": bar.end}
    return {"kind": bar.factor.kind, **indices, **ends, "number": number, "tip": f"{what}: {number}"}


def _together(group: Mapping[str, Any], bars: Sequence[Bar]) -> Iterator[dict[str, Any]]:
    """A bar for each kind of factor in a block; the activation or sum behind its last layer counts as in it."""
    own = [bar for bar in bars if group["start"] <= bar.end < group["end"]]
    level = own[0].before if own else 1.0
    for kind in ("unsplit", "stream", "activation", "weight"):
        gains = [bar.factor.gain for bar in own if bar.factor.kind == kind]
        if not gains:
            continue
        after = level * math.prod(gains)
        number = f"{TIMES}{_number(sum(map(math.log10, gains)))}"
        many = "1 factor" if len(gains) == 1 else f"{len(gains)} factors"
        tip = f"{_NAMES[kind]} in {called(group['name'])}, {many}: {number}"
        yield {"kind": kind, "before": _rounded(level), "after": _rounded(after), "number": number, "tip": tip}
        level = after


# --- sentences -----------------------------------------------------------------------------------------------------


def _text(
    measured: Sequence[LayerSnapshot], alive: Sequence[LayerSnapshot], found: Waterfall | None, problem: str
) -> str:
    if not measured:
        return "No output gradient was measured at this step."
    sentences = []
    if found:
        last, first = (called(found.path[end]) for end in (0, -1))
        sentences += [_product(first, last, found.factors), _shares(found.factors)]
    elif len(measured) == 1:
        sentences.append(f"Only {called(measured[0].label)} has an output gradient, so there is nothing to compare.")
    elif problem:
        sentences.append(f"The graph could not be read, so there is no waterfall: {problem}.")
    stopped = [layer for layer in measured if layer not in alive]
    if stopped:
        sentences.append(_stop(stopped[-1]))
    return " ".join(sentences)


def _product(first: str, last: str, factors: Sequence[Factor]) -> str:
    logs = _logs_by_kind(factors)
    total = sum(logs.values())
    ratio = _number(total) + (" of" if total < 0 else " times")
    parts = ", ".join(f"{_NAMES[kind]} {TIMES}{_number(log)}" for kind, log in logs.items())
    return f"The RMS of the gradient at {first} is {ratio} that at {last} ({parts})."


def _shares(factors: Sequence[Factor]) -> str:
    """How much of the decrease or increase each kind of factor causes, in percent of the logarithm."""
    logs = _logs_by_kind(factors)
    total = sum(logs.values())
    if abs(total) < math.log10(2):
        return "This is a change by less than a factor of 2."
    if logs.keys() == {"unsplit"}:
        return "Without input gradients, weights and activations cannot be told apart."
    whole = Waterfall(tuple(factors), 10**total, chain=False)
    shares = dict.fromkeys(logs, 0.0)
    for factor, share in whole.shares() if total < 0 else whole.growth():
        shares[factor.kind] += share
    percent = {kind: round(100 * share) for kind, share in shares.items()}
    largest, *_ = kinds = sorted(percent, key=lambda kind: -percent[kind])
    percent[largest] += 100 - sum(percent.values())
    parts = [f"{_NAMES[kind]} {percent[kind]}\N{NO-BREAK SPACE}%" for kind in kinds]
    return f"Share of this {'decrease' if total < 0 else 'increase'}: {', '.join(parts)}."


def _stop(layer: LayerSnapshot) -> str:
    zero = layer.output_gradient is not None and layer.output_gradient.rms == 0
    gradient = "is exactly zero" if zero else "holds NaN or infinity"
    return f"The gradient of {called(layer.label)} {gradient}, so there are no factors from there on."


def _logs_by_kind(factors: Sequence[Factor]) -> dict[str, float]:
    """log10 of the product of the factors of each kind."""
    kinds = dict.fromkeys(factor.kind for factor in factors)
    return {kind: sum(math.log10(factor.gain) for factor in factors if factor.kind == kind) for kind in kinds}


def _number(log: float) -> str:
    """10**log in two digits, as the page writes numbers.

    >>> [_number(math.log10(x)) for x in (0.19, 42, 1.4e-6, 1e-4, 996)], _number(-400.0)
    (['0.19', '42', '1.4e-6', '1e-4', '1e3'], '1e-400')
    """
    if math.log10(0.00995) <= log < math.log10(995):
        return f"{float(f'{10**log:.2g}'):g}"
    mantissa, _, exponent = f"{10 ** (log % 1):.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent) + math.floor(log)}"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
