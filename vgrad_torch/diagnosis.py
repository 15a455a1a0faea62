"""From snapshots to words. Plain numbers in, no torch."""

from __future__ import annotations

from vgrad_torch.records import LayerSnapshot, Snapshot, Stats


def first_nonfinite(snapshot: Snapshot) -> str | None:
    """Where NaN or infinity stood first in a step, in the order it is computed; None if there is none.

    Weights come first (an earlier step made them), then outputs in forward order, then the gradients of each layer from
    the last to the first.
    """
    for layer in snapshot.layers:
        if words := _bad(layer, "weight", f"the weight of {layer.label} as the step began"):
            return words
    for layer in snapshot.layers:
        if words := _bad(layer, "output", f"the output of {layer.label}, in the forward pass"):
            return words
    for layer in reversed(snapshot.layers):
        for quantity in ("output_gradient", "weight_gradient", "input_gradient"):
            name = quantity.replace("_", " ")
            if words := _bad(layer, quantity, f"the {name} of {layer.label}, in the backward pass"):
                return words
    return None


def _bad(layer: LayerSnapshot, quantity: str, words: str) -> str | None:
    stats: Stats | None = getattr(layer, quantity)
    return f"{words} ({stats.nonfinite} of {stats.count} values)" if stats is not None and stats.nonfinite else None
