"""Where NaN or infinity appears first."""

from __future__ import annotations

from vgrad_torch.records import LayerSnapshot, Snapshot, Stats


def first_nonfinite(snapshot: Snapshot) -> str | None:
    """Where NaN or infinity is first, in the order of the computation; None if there is none.

    Weights come first, since an earlier step made them; then outputs in forward order; then gradients from the last
    layer to the first.
    """
    for layer in snapshot.layers:
        if place := _bad(layer, "weight", f"the weight of {layer.label} before the step"):
            return place
    for layer in snapshot.layers:
        if place := _bad(layer, "output", f"the output of {layer.label}, in the forward pass"):
            return place
    for layer in reversed(snapshot.layers):
        for quantity in ("output_gradient", "weight_gradient", "input_gradient"):
            name = quantity.replace("_", " ")
            if place := _bad(layer, quantity, f"the {name} of {layer.label}, in the backward pass"):
                return place
    return None


def _bad(layer: LayerSnapshot, quantity: str, place: str) -> str | None:
    stats: Stats | None = getattr(layer, quantity)
    return f"{place} ({stats.nonfinite} of {stats.count} values)" if stats is not None and stats.nonfinite else None
