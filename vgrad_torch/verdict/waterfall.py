"""The waterfall: the factors by which weights and activations multiply the gradient, from the last layer to the first.

A weight multiplies the RMS of the gradient by the weight gain of its layer, the activation before it by its activation
gain. If the layers form a chain, the product of all factors is the ratio of the first layer's RMS to the last layer's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vgrad_torch.records import LayerSnapshot, Snapshot, Stats

EXACT = 1e-5
"""The largest relative difference between the product of a chain's factors and the measured ratio."""
_STEEPEST = 1.8  # no common activation has a slope above SELU's 1.76


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor. `kind` is `weight` (the weight of `layer`) or `activation` (the activation after `layer`)."""

    layer: str
    kind: str
    gain: float


@dataclass(frozen=True, slots=True)
class Waterfall:
    """All factors in order from the last layer to the first.

    `ratio` is RMS(output gradient of the first layer) / RMS(output gradient of the last layer). `chain` says that the
    product of the factors is this ratio, and that there is no sign of another path around a layer. If there is one (a
    branch or a residual connection), its gradient is part of the activation's factor, which can then be larger than
    any slope.
    """

    factors: tuple[Factor, ...]
    ratio: float
    chain: bool

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
    """The factors of one snapshot, or None if fewer than two layers have an output gradient.

    Layers without a gradient, such as frozen ones at the beginning, are left out. A layer without one in the middle, or
    a gradient that is zero everywhere, breaks the chain.

    >>> def gradient(rms): return Stats(1, 0, 0, rms, 0.0, rms, rms)
    >>> first = LayerSnapshot(1, "fc1", "Linear", "2x2", output_gradient=gradient(0.1), activation_gain=0.5)
    >>> last = LayerSnapshot(2, "fc2", "Linear", "2x1", output_gradient=gradient(1.0), input_gradient=gradient(0.2))
    >>> result = waterfall(Snapshot(0, (first, last)))
    >>> [(factor.layer, factor.kind, factor.gain) for factor in result.factors], result.chain
    ([('fc2', 'weight', 0.2), ('fc1', 'activation', 0.5)], True)
    """
    layers = reached(snapshot)
    if len(layers) < 2:
        return None
    factors = tuple(_factors(layers))
    found = Waterfall(factors, _rms(layers[0]) / _rms(layers[-1]), chain=False)
    complete = len(factors) == 2 * (len(layers) - 1) and math.isclose(found.product, found.ratio, rel_tol=EXACT)
    return Waterfall(factors, found.ratio, complete and all(_simple(*pair) for pair in pairwise(layers)))


def reached(snapshot: Snapshot) -> list[LayerSnapshot]:
    """The layers with a gradient that is finite and not zero everywhere, in the order of their first call."""
    return [layer for layer in snapshot.layers if 0 < _rms(layer) < math.inf]


def _factors(layers: Sequence[LayerSnapshot]) -> Iterator[Factor]:
    for above, layer in pairwise(reversed(layers)):
        if above.weight_gain is not None and layer.activation_gain is not None:
            yield Factor(above.label, "weight", above.weight_gain)
            yield Factor(layer.label, "activation", layer.activation_gain)


def _simple(layer: LayerSnapshot, above: LayerSnapshot) -> bool:
    """Whether `above` may get its input from this layer alone, by a function of each entry."""
    same = layer.output_gradient and above.input_gradient and layer.output_gradient.count == above.input_gradient.count
    return bool(same) and (layer.activation_gain or 0.0) < _STEEPEST


def _shares(parts: Sequence[tuple[Factor, float]]) -> list[tuple[Factor, float]]:
    positive = [(factor, part) for factor, part in parts if part > 0]
    total = sum(part for _, part in positive)
    return sorted(((factor, part / total) for factor, part in positive), key=lambda item: -item[1])


def _rms(layer: LayerSnapshot) -> float:
    stats: Stats | None = layer.output_gradient
    return stats.rms if stats else math.nan
