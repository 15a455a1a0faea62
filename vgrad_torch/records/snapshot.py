"""Snapshot: what was measured at one optimizer step, layer by layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vgrad_torch.records.stats import Stats
from vgrad_torch.records.time_profile import TimeProfile

ACTIVATIONS = ("output", "output_gradient", "input_gradient")
"""The tensors of `QUANTITIES` that each call of a layer has."""

QUANTITIES = ("weight", "weight_gradient", *ACTIVATIONS)
"""The five tensors that are measured of a layer."""


@dataclass(frozen=True, slots=True)
class LayerSnapshot:
    """One call of one layer at one step.

    Gradients are those of the loss, without the factor of a gradient scaler. A tensor is also None if `watch`
    was told not to measure it.

    Attributes:
        number: the layer's place in forward order, from 1.
        name: its name in the model.
        kind: its type, such as `Linear`.
        size: inputs x outputs, such as `784x512`; of a convolution channels and kernel, such as `64x128 3x3`; empty
            without a matrix.
        call: 1; 2 for the second call of a layer that is used twice in a step.
        weight: W before the step. All weight matrices of the layer together, or its vectors if it has no matrix; None
            if it has neither.
        weight_gradient: dL/dW as the optimizer is about to use it; None if no weight has a gradient, as in a frozen
            layer.
        output: z = Wx + b; None if the layer was not called.
        output_gradient: dL/dz; None if no gradient arrives at the layer, or if its scale is not known.
        input_gradient: W^T dL/dz, which the layer hands to the layer before it; None if its input needs no gradient, as
            in the first layer of most networks.
        update_rms: RMS of the change of the weight in this step; None if the weight has no gradient or the optimizer
            does not hold it. Of a weight, or a rank's shard of it, with more than 8,192 entries it is estimated from so
            many, spread evenly.
        activation_gain: RMS(output gradient) over RMS(input gradient of the layer that its output goes to), without a
            unit: the effect of the activation. None if one of the two does not exist or the second is 0, or if the
            output goes to several layers or to a junction.
        rank_rms: in data parallel training, for each rank the RMS of its own part of the output gradient, on the same
            scale: with equal batches the RMS of these numbers is `output_gradient.rms`. NaN for a rank without such a
            gradient; empty for a single process. All other statistics are those of the joined batch.
        trainable: whether any weight requires a gradient; None if not known.
        sources: labels of the calls and junctions that the input comes from; empty for a first layer; None if that
            could not be read from the autograd graph.
        time: of a recurrent layer, the gradient at each time step; of a layer that is called in a loop, at each call.
    """

    number: int
    name: str
    kind: str
    size: str
    call: int = 1
    weight: Stats | None = None
    weight_gradient: Stats | None = None
    output: Stats | None = None
    output_gradient: Stats | None = None
    input_gradient: Stats | None = None
    update_rms: float | None = None
    activation_gain: float | None = None
    rank_rms: tuple[float, ...] = ()
    trainable: bool | None = None
    sources: tuple[str, ...] | None = None
    time: TimeProfile | None = None

    @property
    def label(self) -> str:
        """The layer's name; from the second call on with the number of the call: `fc1`, `fc1#2`."""
        return self.name if self.call == 1 else f"{self.name}#{self.call}"

    @property
    def tag(self) -> str:
        """The name in TensorBoard, such as `1-fc1-784x512`."""
        return "-".join(part for part in (str(self.number), self.label, self.size) if part)

    @property
    def update_ratio(self) -> float | None:
        """RMS of the weight's change in this step over RMS of the weight; measured, so it holds for any optimizer.

        None if one of the two does not exist or the weight is zero.
        """
        return _ratio(self.update_rms, _rms(self.weight))

    @property
    def weight_gain(self) -> float | None:
        """RMS(input gradient) / RMS(output gradient): the effect of the weight on the gradient.

        None if one of the two does not exist or the second is 0.
        """
        return _ratio(_rms(self.input_gradient), _rms(self.output_gradient))


def _rms(stats: Stats | None) -> float | None:
    return None if stats is None else stats.rms


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def with_activation_gains(
    layers: Sequence[LayerSnapshot], junctions: Sequence[JunctionSnapshot] = ()
) -> Iterator[LayerSnapshot]:
    """The layers with `activation_gain`. Without known sources, each layer's output goes to the next one."""
    for layer, above in zip(layers, consumers(layers, junctions), strict=True):
        received = None if above is None else _rms(above.input_gradient)
        gain = _ratio(_rms(layer.output_gradient), received)
        yield layer if gain == layer.activation_gain else replace(layer, activation_gain=gain)


def consumers(layers: Sequence[LayerSnapshot], junctions: Sequence[JunctionSnapshot]) -> list[LayerSnapshot | None]:
    """For each layer the only layer that gets its output; None if there are several or none, or if it is a junction."""
    if any(layer.sources is None for layer in layers):
        return [*layers[1:], None][: len(layers)]
    fed = [layer.sources or () for layer in layers] + [junction.sources for junction in junctions]
    used = Counter(source for sources in fed for source in sources)
    alone = {layer.sources[0]: layer for layer in layers if layer.sources and len(layer.sources) == 1}
    return [alone.get(layer.label) if used[layer.label] == 1 else None for layer in layers]


@dataclass(frozen=True, slots=True)
class JunctionSnapshot:
    """A place in the network where the outputs of several layers meet, such as the sum of a residual connection.

    Attributes:
        label: the label of the last layer whose output it gets, and a plus sign: `layer1.0.conv2+`.
        sources: labels of the calls and junctions whose outputs meet.
        gradient_rms: RMS of the gradient that arrives there; NaN if there is none.
        count: the number of entries of this gradient.
    """

    label: str
    sources: tuple[str, ...]
    gradient_rms: float = math.nan
    count: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All watched layers at one optimizer step.

    `snapshot["fc1"]` is the layer with this label.

    Attributes:
        step: the number of optimizer steps before this one; 0 is the untrained model.
        layers: all calls of the watched layers, in forward order.
        wall_time: when the snapshot was made, in seconds since 1970; 0.0 if that is not known.
        junctions: where the outputs of several layers meet, in forward order.
        folded: the number of layers that are not watched because they are not trained.
        graph_problem: why it could not be read which layer feeds which; empty if it could.
    """

    step: int
    layers: tuple[LayerSnapshot, ...]
    wall_time: float = 0.0
    junctions: tuple[JunctionSnapshot, ...] = ()
    folded: int = 0
    graph_problem: str = ""

    def __getitem__(self, label: str) -> LayerSnapshot:
        for layer in self.layers:
            if layer.label == label:
                return layer
        raise KeyError(f"no layer {label!r} in this snapshot; it has {', '.join(x.label for x in self.layers)}")
