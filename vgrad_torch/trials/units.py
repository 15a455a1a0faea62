"""Dead and saturated units, and how much the samples of a batch differ: an average over a layer hides both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vgrad_torch.watching import hooks
from vgrad_torch.watching.graph import Call, Junction
from vgrad_torch.watching.layer import Layer

SATURATED: Mapping[type[nn.Module], float] = {nn.Sigmoid: 5.98, nn.Tanh: 2.99}
"""Activation -> the |z| beyond which its slope is below a hundredth of its largest slope."""


@dataclass(frozen=True, slots=True)
class LayerUnits:
    """The units of one call of a layer, over a whole batch.

    Attributes:
        label: label of the call, `fc1`, `fc1#2`.
        dead: share of units (of a convolution: of channels) whose output gradient is zero for every sample; None if
            there is no gradient.
        saturated: share of entries of the following activation where the slope of a sigmoid or tanh is below a
            hundredth of its largest slope; None for other activations and for those called as functions.
    """

    label: str
    dead: float | None
    saturated: float | None


class Units:
    """Observes the layers and activations of a model from `attach` until `detach`."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Layer]) -> None:
        self._layers = layers
        self._activations = [m for m in model.modules() if type(m) in SATURATED]
        self._hooks = hooks.Hooks(layers, self, input_gradients=False)
        self._handles: list[RemovableHandle] = []
        self._dead: dict[str, float | None] = {}
        self._saturated: dict[str, float] = {}
        self.spread = math.nan
        """||x - mean of x over the batch|| / ||x|| of the last layer's input x; 0 if it is the same for all samples."""

    def attach(self) -> None:
        """Set the hooks."""
        self._hooks.attach()
        self._handles += [layer.module.register_forward_pre_hook(self._before_layer) for layer in self._layers.values()]
        self._handles += [m.register_forward_pre_hook(self._before_activation) for m in self._activations]

    def detach(self) -> None:
        """Remove the hooks."""
        self._hooks.detach()
        for handle in self._handles:
            handle.remove()

    def by_call(self) -> tuple[LayerUnits, ...]:
        """The result, one entry for each call of a layer, in the order of the calls."""
        return tuple(LayerUnits(label, dead, self._saturated.get(label)) for label, dead in self._dead.items())

    def begin_backward(self, forward_pass: int) -> None:
        """Part of `hooks.Observer`. Nothing to do, because there is only one pass."""

    def observe(self, call: Call, quantity: str, tensor: Tensor) -> None:
        """Part of `hooks.Observer`. Note the call, and the share of units whose output gradient is zero."""
        label = call.name if call.number == 1 else f"{call.name}#{call.number}"
        self._dead.setdefault(label, None)
        if quantity == "output_gradient":
            zero = _by_unit(self._layers[call.name].module, tensor) == 0
            self._dead[label] = float(zero.all(0).float().mean())

    def observe_junction(self, junction: Junction, gradient: Tensor) -> None:
        """Part of `hooks.Observer`. Nothing to do."""

    def observe_over_time(self, call: Call, where: str, norms: Tensor) -> None:
        """Part of `hooks.Observer`. Nothing to do."""

    def _before_layer(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point() and inputs[0].dim() > 1:
            self.spread = _spread(inputs[0].detach())

    def _before_activation(self, activation: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._dead and isinstance(inputs[0], Tensor):
            label = next(reversed(self._dead))
            self._saturated[label] = float((inputs[0].detach().abs() > SATURATED[type(activation)]).float().mean())


def _by_unit(layer: nn.Module, tensor: Tensor) -> Tensor:
    """The entries as [samples and positions, units]. The units of a convolution are its channels."""
    kernel = len(layer.kernel_size) if isinstance(layer, nn.modules.conv._ConvNd) else 0
    units = tensor.movedim(-1 - kernel, -1) if 0 < kernel < tensor.dim() else tensor
    return units.reshape(-1, units.shape[-1])


def _spread(x: Tensor) -> float:
    """See `Units.spread`; NaN for a single sample.

    >>> import torch
    >>> round(_spread(torch.tensor([[1.0, 1.0], [1.0, -1.0]])) ** 2, 6)
    0.5
    """
    if len(x) < 2:
        return math.nan
    wide = x.double()
    norm = float(wide.norm())
    return float((wide - wide.mean(0)).norm()) / norm if norm else math.nan
