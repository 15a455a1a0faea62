"""Units that are dead or saturated, and whether a batch's samples still differ: what a layer's average hides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vgrad_torch.watching import hooks

SATURATED: Mapping[type[nn.Module], float] = {nn.Sigmoid: 5.98, nn.Tanh: 2.99}
"""|z| beyond which the slope of an activation is below a hundredth of its largest."""


@dataclass(frozen=True, slots=True)
class LayerUnits:
    """One call of a layer over a whole batch.

    Attributes:
        label: of the call, `fc1`, `fc1#2`.
        dead: share of units (of a convolution: channels) whose output gradient is zero for every sample; None where
            there is no gradient.
        saturated: share of entries, at the activation behind the layer, where a sigmoid's or tanh's slope is below a
            hundredth of its largest; None behind others, and where they are called as functions.
    """

    label: str
    dead: float | None
    saturated: float | None


class Units:
    """Watches layers and activations of a model from `attach` until `detach`."""

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._activations = [m for m in model.modules() if type(m) in SATURATED]
        self._hooks = hooks.Hooks(layers, self, input_gradients=False)
        self._handles: list[RemovableHandle] = []
        self._dead: dict[str, float | None] = {}
        self._saturated: dict[str, float] = {}
        self.spread = math.nan
        """||x - mean of x over the batch|| / ||x|| of the last layer's input; 0 where all samples look alike to it."""

    def attach(self) -> None:
        """Set the hooks."""
        self._hooks.attach()
        self._handles += [layer.register_forward_pre_hook(self._enter) for layer in self._layers.values()]
        self._handles += [m.register_forward_pre_hook(self._activate) for m in self._activations]

    def detach(self) -> None:
        """Remove the hooks."""
        self._hooks.detach()
        for handle in self._handles:
            handle.remove()

    def found(self) -> tuple[LayerUnits, ...]:
        """What was seen, in the order of the calls."""
        return tuple(LayerUnits(label, dead, self._saturated.get(label)) for label, dead in self._dead.items())

    def new_backward(self, turn: int) -> None:
        """Nothing is to be done: there is one pass."""

    def see(self, call: hooks.Call, quantity: str, tensor: Tensor) -> None:
        """Note a call, and the units of an output gradient that are zero for all samples."""
        label = call.name if call.number == 1 else f"{call.name}#{call.number}"
        self._dead.setdefault(label, None)
        if quantity == "output_gradient":
            zero = _by_unit(self._layers[call.name], tensor) == 0
            self._dead[label] = float(zero.all(0).float().mean())

    def _enter(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point() and inputs[0].dim() > 1:
            self.spread = _spread(inputs[0].detach())

    def _activate(self, activation: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._dead and isinstance(inputs[0], Tensor):
            label = next(reversed(self._dead))
            self._saturated[label] = float((inputs[0].detach().abs() > SATURATED[type(activation)]).float().mean())


def _by_unit(layer: nn.Module, tensor: Tensor) -> Tensor:
    """The entries as [samples and places, units]; a convolution's units are its channels."""
    weight = getattr(layer, "weight", None)
    kernel = weight.dim() - 2 if isinstance(weight, Tensor) else 0
    units = tensor.movedim(-1 - kernel, -1) if 0 < kernel < tensor.dim() else tensor
    return units.reshape(-1, units.shape[-1])


def _spread(x: Tensor) -> float:
    """NaN for a single sample.

    >>> import torch
    >>> round(_spread(torch.tensor([[1.0, 1.0], [1.0, -1.0]])) ** 2, 6)
    0.5
    """
    if len(x) < 2:
        return math.nan
    wide = x.double()
    norm = float(wide.norm())
    return float((wide - wide.mean(0)).norm()) / norm if norm else math.nan
