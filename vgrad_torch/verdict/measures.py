"""Numbers of one snapshot that the evidence is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

from vgrad_torch.records import LayerSnapshot, Snapshot, Stats
from vgrad_torch.verdict.states import asked_change, error, norm, relative_step, small_weight
from vgrad_torch.verdict.waterfall import path

_ENLARGED = 0.75  # set on the calibration's fitting half, among quarters
_UNDERFLOW = 1e-30  # a gradient below this is surrounded by zeros that float32 cannot hold


def log10(value: float) -> float:
    """The logarithm; minus infinity of zero."""
    return math.log10(value) if value > 0 else -math.inf if value == 0 else math.nan


def signal(snapshot: Snapshot) -> float:
    """log10 of the norm of the first layer's output gradient over the last one's.

    Minus infinity if the gradient is so small that float32 holds only zeros for the first layer.
    """
    layers = path(snapshot)
    if len(layers) < 2:
        return math.nan
    return -math.inf if _underflows(snapshot) else log10(_norm(layers[0]) / _norm(layers[-1]))


def slope(snapshot: Snapshot) -> float:
    """Least-squares slope of log10 of the norms over the layers' order."""
    logs = [log10(_norm(layer)) for layer in path(snapshot)]
    if len(logs) < 2:
        return math.nan
    centre, mean = (len(logs) - 1) / 2, sum(logs) / len(logs)
    return sum((i - centre) * (y - mean) for i, y in enumerate(logs)) / sum((i - centre) ** 2 for i in range(len(logs)))


def drive(snapshot: Snapshot) -> float:
    """See `Evidence.drive`."""
    trained = [layer for layer in path(snapshot) if layer.weight_gradient is not None]
    asked = asked_change(trained[0], error(snapshot)) if trained else None
    return math.nan if asked is None else log10(asked)


def lost(snapshot: Snapshot) -> float:
    """See `Evidence.lost`."""
    outputs = [layer.output.rms for layer in path(snapshot)[:-1] if layer.output is not None]
    forward = log10(outputs[-1] / outputs[0]) if outputs and outputs[0] else math.nan
    return signal(snapshot) - _ENLARGED * min(forward, 0.0)


def zeros(snapshot: Snapshot) -> float:
    """See `Evidence.zeros`; 0 if the gradient is too small for float32."""
    layer = emptiest(snapshot)
    return 0.0 if _underflows(snapshot) else _empty_share(layer) if layer else math.nan


def emptiest(snapshot: Snapshot) -> LayerSnapshot | None:
    """The layer with the largest share of exact zeros in its output gradient, see `Evidence.zeros`."""
    layers = [layer for layer in snapshot.layers if layer.output_gradient is not None]
    fed = [layer for layer, above in pairwise(layers) if _passes_gradient_on(above)]
    return max(fed, key=_empty_share, default=None)


def _empty_share(layer: LayerSnapshot) -> float:
    return layer.output_gradient.zero_fraction if layer.output_gradient else 0.0


def _passes_gradient_on(layer: LayerSnapshot) -> bool:
    return layer.input_gradient is None or layer.input_gradient.zero_fraction < 1.0


def update(snapshot: Snapshot) -> float:
    """log10 of the update ratio of the first layer that has one."""
    ratios = [layer.update_ratio for layer in snapshot.layers if layer.update_ratio is not None]
    return log10(ratios[0]) if ratios else math.nan


def residual(snapshot: Snapshot) -> float:
    """RMS of the last layer's output gradient."""
    gradients = with_output_gradient(snapshot)
    return gradients[-1].rms if gradients else math.nan


def with_output_gradient(snapshot: Snapshot) -> list[Stats]:
    """The output gradients of the layers that have one."""
    return [layer.output_gradient for layer in snapshot.layers if layer.output_gradient is not None]


def _norm(layer: LayerSnapshot) -> float:
    return norm(layer.output_gradient)


def median_step(snapshot: Snapshot) -> tuple[float, str]:
    """The median relative step over the layers, and the label of the layer with the largest; (0, "") if unknown."""
    return _median_and_largest((step, x.label) for x in snapshot.layers if (step := relative_step(x)) is not None)


def median_growth(before: Snapshot, after: Snapshot) -> tuple[float, str]:
    """The same from how much the weights' RMS changed between two samples, for each step: a lower bound."""
    sizes = {x.label: max(x.weight.rms, small_weight(x)) for x in before.layers if x.weight}
    steps = max(after.step - before.step, 1)
    return _median_and_largest(
        (abs(x.weight.rms - sizes[x.label]) / (steps * sizes[x.label]), x.label)
        for x in after.layers
        if x.weight and sizes.get(x.label)
    )


def _median_and_largest(steps: Iterable[tuple[float, str]]) -> tuple[float, str]:
    finite = sorted((step, label) for step, label in steps if math.isfinite(step))
    return (finite[(len(finite) - 1) // 2][0], finite[-1][1]) if finite else (0.0, "")


def _underflows(snapshot: Snapshot) -> bool:
    layers = path(snapshot)
    below = snapshot.layers[: snapshot.layers.index(layers[0])] if layers else ()
    vanished = any(layer.output_gradient is not None for layer in below)
    return vanished and layers[0].output_gradient is not None and layers[0].output_gradient.rms < _UNDERFLOW
