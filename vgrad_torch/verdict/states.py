"""The state of each layer: what its own weights are asked to change, compared with other layers of its kind."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vgrad_torch.records import LayerSnapshot, Snapshot, Stats
from vgrad_torch.verdict.cutoffs import CUTOFFS, LARGE_STEP, WEAK
from vgrad_torch.verdict.waterfall import path, waterfall


@dataclass(frozen=True, slots=True)
class LayerState:
    """One line of the table: a call of a layer in the newest sample.

    Attributes:
        label: name and call.
        size: see `LayerSnapshot.size`.
        word: `healthy`; `weak`, see `WEAK` in cutoffs; `large steps`, see `LARGE_STEP` there; `dead`, `zero
            gradient`, `frozen`, `no gradient`, `unused`, `non-finite`; empty if the weight gradient was not measured.
        gradient: norm of its output gradient relative to that of the last layer.
        weight_gain: see `LayerSnapshot.weight_gain`.
        activation_gain: see `LayerSnapshot.activation_gain`.
        update_ratio: see `LayerSnapshot.update_ratio`.
    """

    label: str
    size: str
    word: str
    gradient: float | None
    weight_gain: float | None
    activation_gain: float | None
    update_ratio: float | None


def states(
    snapshot: Snapshot, *, frozen: Sequence[str], cut_off: Sequence[str], all_zero: bool
) -> Iterator[LayerState]:
    """The state of each call. `all_zero` says whether a gradient of exact zeros is no underflow of float32."""
    layers = path(snapshot)
    last = norm(layers[-1].output_gradient) if layers else None
    weak = {layer.label for layer in weak_layers(snapshot)}
    for layer in snapshot.layers:
        gradient = norm(layer.output_gradient) / last if last and layer.output_gradient else None
        word = "frozen" if layer.label in frozen else "no gradient" if layer.label in cut_off else ""
        yield LayerState(
            layer.label, layer.size, _word(layer, word, layer.label in weak, all_zero), gradient,
            layer.weight_gain, layer.activation_gain, layer.update_ratio,
        )  # fmt: skip


def _word(layer: LayerSnapshot, known: str, weak: bool, all_zero: bool) -> str:
    quantities = (layer.weight, layer.output, layer.output_gradient, layer.weight_gradient)
    if any(stats.nonfinite for stats in quantities if stats):
        return "non-finite"
    if known:
        return known
    if unused(layer):
        return "unused"
    if layer.output_gradient is None and layer.weight_gradient is None:
        return ""
    if all_zero and layer.output_gradient and layer.output_gradient.zero_fraction == 1.0:
        return "dead" if layer.output and layer.output.max <= 0 else "zero gradient"
    large = (step := relative_step(layer)) is not None and step > LARGE_STEP
    return "large steps" if large else "weak" if weak else "healthy"


def unused(layer: LayerSnapshot) -> bool:
    """Whether the forward pass did not use a layer although others were used."""
    return layer.output is None and layer.output_gradient is None and layer.weight_gradient is None


LEGEND: Mapping[str, str] = {
    "weak": f"weak: for its size, it gets less than {WEAK:.0%} of the gradient of others like it.",
    "large steps": f"large steps: the last step changed the weights by more than {LARGE_STEP:g} of their size.",
    "dead": "dead: no output is above zero, so the activation passes no gradient on.",
    "zero gradient": "zero gradient: exactly zero in this sample, as below a dead layer or a weight of zero.",
    "unused": "unused: the forward pass did not use this layer.",
}
"""State of a layer -> its rule, for the states that need one."""


def legend(words: Iterable[str]) -> Iterator[str]:
    """The lines below a table of layers that explain its states."""
    present = set(words)
    return (line for word, line in LEGEND.items() if word in present)


# --- comparison ------------------------------------------------------------------------------------------------------


def role(layer: LayerSnapshot) -> tuple[str, str]:
    """What layers must have in common to be compared: the name without numbers, and the type.

    >>> role(LayerSnapshot(1, "h.3.attn.c_proj", "Conv1D", "64x64"))
    ('h..attn.c_proj', 'Conv1D')
    """
    return re.sub(r"\d+", "", layer.name), layer.kind


def weak_layers(snapshot: Snapshot) -> list[LayerSnapshot]:
    """The layers whose weights get much less gradient, for their size and for an error of one, than their like.

    In a chain they are compared with the best one of their kind. Elsewhere, if there are more than three, they are
    compared with the second best: one block with tiny weights, and so with a large gradient for its size, does not make
    all others weak.
    """
    unit = error(snapshot)
    found = {layer.label: asked for layer in snapshot.layers if (asked := asked_change(layer, unit)) is not None}
    like: dict[tuple[str, str], list[float]] = defaultdict(list)
    for layer in snapshot.layers:
        if layer.label in found:
            like[role(layer)].append(found[layer.label])
    factors = waterfall(snapshot)
    in_a_row = factors is not None and factors.chain
    usual = {role: sorted(asked, reverse=True)[len(asked) > 3 and not in_a_row] for role, asked in like.items()}
    needed = 10 ** CUTOFFS["sgd"]["start"].slow
    return [
        layer
        for layer in snapshot.layers
        if layer.label in found and found[layer.label] < min(needed, WEAK * usual[role(layer)])
    ]


def asked_change(layer: LayerSnapshot, unit: float) -> float | None:
    """norm(weight gradient) / norm(weight), divided by the `error` of the snapshot; None if that is not known."""
    if layer.weight_gradient is None or layer.weight is None or not layer.weight.rms or not unit > 0:
        return None
    return norm(layer.weight_gradient) / (norm(layer.weight) * unit)


def error(snapshot: Snapshot) -> float:
    """The norm of one sample's output gradient at the last layer; NaN if it is not known.

    The batch size is the size of the last layer's output divided by its units.
    """
    layers = path(snapshot)
    if not layers or layers[-1].output_gradient is None:
        return math.nan
    units = units_of(layers[-1].size)
    batch = layers[-1].output_gradient.count / units if units else math.nan
    return norm(layers[-1].output_gradient) * math.sqrt(batch)  # the loss is a mean over the batch


def relative_step(layer: LayerSnapshot) -> float | None:
    """RMS of the weight's change in this step, relative to the weight; None if it is not known.

    A weight that is nearly zero, as that of a branch that begins at zero, counts as `small_weight`.
    """
    if layer.update_rms is None or layer.weight is None:
        return None
    size = max(layer.weight.rms, small_weight(layer))
    return layer.update_rms / size if size else None


def small_weight(layer: LayerSnapshot) -> float:
    """RMS below which a weight is nearly zero: a tenth of 1 / sqrt(fan-in); 0 if the fan-in is not known."""
    fan_in = fan_in_of(layer.size)
    return 0.1 / math.sqrt(fan_in) if fan_in else 0.0


def norm(stats: Stats | None) -> float:
    """Euclidean norm over all entries; NaN if there are none."""
    return math.nan if stats is None else stats.rms * math.sqrt(stats.count)


def units_of(size: str) -> int:
    """The number of outputs in a layer's size, 0 if it has none.

    >>> units_of("784x512"), units_of("64x128 3x3"), units_of("")
    (512, 128, 0)
    """
    return int(size.partition(" ")[0].rpartition("x")[2] or 0)


def fan_in_of(size: str) -> int:
    """The number of inputs of each unit in a layer's size, 0 if it has none.

    >>> fan_in_of("784x512"), fan_in_of("64x128 3x3"), fan_in_of("")
    (784, 576, 0)
    """
    channels, _, kernel = size.partition(" ")
    return int(channels.partition("x")[0] or 0) * math.prod(map(int, kernel.split("x") if kernel else ()))
