"""build_mlp(): a fully connected network whose layers are named fc1, act1, fc2, ... in forward order."""

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
"""Name -> normalisation of that width: `batch` over the samples of a batch, `layer` over the units of a sample."""


class Residual(nn.Sequential):
    """Modules in a row with a residual connection around them."""

    def forward(self, x: Any) -> Tensor:
        """The modules' output plus their input."""
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
    """Build a fully connected network: Linear layers with an activation between each two of them.

    Each weight is drawn once, in forward order. Only `generator` is used for that; without one, torch's global random
    state.

    Args:
        widths: number of units of every layer, input and output included.
        activation: a key of `ACTIVATIONS`.
        init: a key of `INITIALIZERS`.
        bias: whether the layers have biases.
        bias_value: initial value of every bias.
        gain: every weight is multiplied by this number after it is drawn.
        norm: `batch` or `layer` adds a normalisation (norm1, norm2, ...) before the activation of each hidden layer.
        residual: puts each hidden layer that is as wide as its input into a block (block2, block3, ...) with a residual
            connection around it. The layers in it are named block2.fc2, block2.act2.
        generator: the source of the random weights.

    Raises:
        UsageError: a name is unknown, a width or number is out of range, or `residual` is set and no hidden layer is as
            wide as its input.

    >>> build_mlp([2, 5, 1], activation="tanh", init="normal")
    Sequential(
      (fc1): Linear(in_features=2, out_features=5, bias=True)
      (act1): Tanh()
      (fc2): Linear(in_features=5, out_features=1, bias=True)
    )
    """
    make_activation = choose(ACTIVATIONS, activation, "activation")
    initialize = choose(INITIALIZERS, init, "initializer")
    make_norm = choose(NORMS, norm, "norm") if norm is not None else None
    *hidden, last = pairwise(checked_widths(widths))
    _check_options(hidden, bias, bias_value, gain, residual)
    model = nn.Sequential()
    for number, (fan_in, fan_out) in enumerate(hidden, start=1):
        block = model
        if residual and fan_in == fan_out:
            block = Residual()
            model.add_module(f"block{number}", block)
        block.add_module(f"fc{number}", _linear(fan_in, fan_out, bias, bias_value))
        if make_norm is not None:
            block.add_module(f"norm{number}", make_norm(fan_out))
        block.add_module(f"act{number}", make_activation())
    model.add_module(f"fc{len(hidden) + 1}", _linear(*last, bias, bias_value))
    _initialize(model, initialize, gain, generator)
    return model


def _linear(fan_in: int, fan_out: int, bias: bool, bias_value: float) -> nn.Linear:
    """A layer with uninitialised weights on the current default device.

    The layer is created on the meta device, where nn.Linear's own initialisation takes no time and no random numbers.
    """
    device = torch.empty(0).device  # torch.get_default_device() ignores `with torch.device(...)` in torch 2.6
    layer = nn.Linear(fan_in, fan_out, bias=bias, device="meta").to_empty(device=device)
    if bias:
        nn.init.constant_(layer.bias, bias_value)
    return layer


@torch.no_grad()
def _initialize(model: nn.Module, initialize: Initializer, gain: float, generator: torch.Generator | None) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            initialize(layer.weight, generator)
            layer.weight.mul_(gain)


def _check_options(
    hidden: Sequence[tuple[int, int]], bias: bool, bias_value: float, gain: float, residual: bool
) -> None:
    if not math.isfinite(bias_value) or (bias_value and not bias):
        raise UsageError(f"bias_value must be a finite number, and 0 if bias is False, not {bias_value}")
    if not (math.isfinite(gain) and gain > 0):
        raise UsageError(f"gain multiplies the weights and must be a positive number, not {gain}")
    if residual and not any(fan_in == fan_out for fan_in, fan_out in hidden):
        widths = "-".join(str(fan_out) for _, fan_out in hidden) or "none"
        raise UsageError(
            f"residual needs a hidden layer as wide as the one before it; the hidden widths are {widths}. Try 64,64,64"
        )
