"""From snapshots to words. Plain numbers in, no torch."""

from __future__ import annotations

from vgrad_torch.records import LayerSnapshot, Snapshot, Stats


def first_nonfinite(snapshot: Snapshot) -> str | None:
    """Where NaN or infinity stood first in a step, in the order it is computed; None if there is none.

    Weights come first (they were made by the step before), then outputs in forward order, then gradients from the last
    layer to the first.
    """
    made = f"after the update of step {snapshot.step - 1}" if snapshot.step else "before training"
    forward, backward = snapshot.layers, snapshot.layers[::-1]
    return (
        _first(forward, "weight", f"the weight of {{}} {made}")
        or _first(forward, "output", "the output of {}, in the forward pass")
        or _first(backward, "output_gradient", "the output gradient of {}, in the backward pass")
        or _first(backward, "input_gradient", "the input gradient of {}, in the backward pass")
        or _first(backward, "weight_gradient", "the weight gradient of {}, in the backward pass")
    )


def _first(layers: tuple[LayerSnapshot, ...], quantity: str, words: str) -> str | None:
    for layer in layers:
        stats: Stats | None = getattr(layer, quantity)
        if stats is not None and stats.nonfinite:
            return f"{words.format(layer.label)} ({stats.nonfinite} of {stats.count} values)"
    return None
