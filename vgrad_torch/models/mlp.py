"""build_mlp: the fully connected network, its layers named fc1, act1, fc2, ... in forward order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vgrad_torch.errors import UsageError, checked_widths, choose
from vgrad_torch.models.activations import ACTIVATIONS
from vgrad_torch.models.initializers import INITIALIZERS, Initializer

NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
"""Normalisations by name, each made for a width: over the samples of a batch, or over the units of a sample."""


class Residual(nn.Sequential):
    """Layers with a connection around them: their output plus their input."""

    def forward(self, x: Any) -> Tensor:
        """The sum."""
        out = x
        for module in self:
            out = module(out)
        total: Tensor = x + out
        return total


def build_mlp(
    widths: Sequence[int],
    activation: str = "relu",
    init: str = "he",
    *,
    bias: bool = True,
    bias_value: float = 0.0,
    gain: float = 1.0,
    norm: str | None = None,
    residual: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Linear layers of these widths, input and output included, with an activation between any two of them.

    Weights are drawn once, first layer first, from `generator` and nothing else, or from torch's global state where
    there is none.

    Args:
        widths: input and output included.
        activation: a key of `ACTIVATIONS`.
        init: a key of `INITIALIZERS`.
        bias: whether the layers have biases.
        bias_value: what every bias starts at.
        gain: multiplies every weight once it is drawn.
        norm: `batch` or `layer` puts a normalisation, norm1, norm2, ..., between each hidden layer and its activation.
        residual: a hidden layer as wide as its input becomes, with its activation, a block2, block3, ... that adds its
            input to its output; its parts are then block2.fc2, block2.act2.
        generator: what the weights are drawn from.

    Raises:
        UsageError: an unknown name, a width or number that makes no sense, `residual` where no two widths agree.

    >>> build_mlp([2, 5, 1], activation="tanh", init="normal")
    Sequential(
      (fc1): Linear(in_features=2, out_features=5, bias=True)
      (act1): Tanh()
      (fc2): Linear(in_features=5, out_features=1, bias=True)
    )
    """
    new_activation = choose(ACTIVATIONS, activation, "activation")
    initialize = choose(INITIALIZERS, init, "initializer")
    new_norm = choose(NORMS, norm, "norm") if norm is not None else None
    *hidden, last = pairwise(checked_widths(widths))
    _check_dials(hidden, bias, bias_value, gain, residual)
    model = nn.Sequential()
    for number, (fan_in, fan_out) in enumerate(hidden, start=1):
        block = _block_of(model, number, residual and fan_in == fan_out)
        block.add_module(f"fc{number}", _linear(fan_in, fan_out, bias, bias_value))
        if new_norm is not None:
            block.add_module(f"norm{number}", new_norm(fan_out))
        block.add_module(f"act{number}", new_activation())
    model.add_module(f"fc{len(hidden) + 1}", _linear(*last, bias, bias_value))
    _draw(model, initialize, gain, generator)
    return model


def _block_of(model: nn.Sequential, number: int, residual: bool) -> nn.Sequential:
    """Where the layer with this number goes: the model itself, or a new block in it."""
    if not residual:
        return model
    block = Residual()
    model.add_module(f"block{number}", block)
    return block


def _linear(fan_in: int, fan_out: int, bias: bool, bias_value: float) -> nn.Linear:
    """A layer made on the meta device, so that nn.Linear's own draw costs neither time nor random numbers."""
    layer = nn.Linear(fan_in, fan_out, bias=bias, device="meta").to_empty(device=torch.get_default_device())
    if bias:
        nn.init.constant_(layer.bias, bias_value)
    return layer


@torch.no_grad()
def _draw(model: nn.Module, initialize: Initializer, gain: float, generator: torch.Generator | None) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            initialize(layer.weight, generator)
            layer.weight.mul_(gain)


def _check_dials(hidden: Sequence[tuple[int, int]], bias: bool, bias_value: float, gain: float, residual: bool) -> None:
    if not math.isfinite(bias_value) or (bias_value and not bias):
        raise UsageError(f"bias_value must be a finite number, and 0 where bias is False, not {bias_value}")
    if not (math.isfinite(gain) and gain > 0):
        raise UsageError(f"gain multiplies the weights and must be a positive number, not {gain}")
    if residual and not any(fan_in == fan_out for fan_in, fan_out in hidden):
        widths = "-".join(str(fan_out) for _, fan_out in hidden) or "none"
        raise UsageError(
            f"residual needs a hidden layer as wide as the one before it; the hidden widths are {widths}, take 64,64,64"
        )
