"""Where NaN or infinity appears first."""

from __future__ import annotations

from vgrad_torch.records import LayerSnapshot, Snapshot, Stats
from vgrad_torch.verdict.labels import called


def first_nonfinite(snapshot: Snapshot) -> str | None:
    """Where NaN or infinity is first, in the order of the computation; None if there is none.

    The order is: weights, since an earlier step changed them; outputs in forward order; gradients from the last layer
    to the first.
    """
    for layer in snapshot.layers:
        if count := _nonfinite_count(layer, "weight"):
            return f"the weight of {called(layer.label)} before the step {count}"
    for layer in snapshot.layers:
        if count := _nonfinite_count(layer, "output"):
            return f"the output of {called(layer.label)}, in the forward pass {count}"
    for layer in reversed(snapshot.layers):
        for quantity in ("output_gradient", "weight_gradient", "input_gradient"):
            if count := _nonfinite_count(layer, quantity):
                return f"the {quantity.replace('_', ' ')} of {called(layer.label)}, in the backward pass {count}"
    return None


def _nonfinite_count(layer: LayerSnapshot, quantity: str) -> str:
    """How many values are NaN or infinite, in parentheses; empty if none is."""
    stats: Stats | None = getattr(layer, quantity)
    return f"({stats.nonfinite} of {stats.count} values)" if stats is not None and stats.nonfinite else ""
