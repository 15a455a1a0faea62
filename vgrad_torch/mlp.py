"""build_mlp: the fully connected network, its layers named fc1, act1, fc2, ... in forward order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from vgrad_torch.activations import ACTIVATIONS
from vgrad_torch.choices import checked_widths, choose
from vgrad_torch.initializers import INITIALIZERS, Initializer


def build_mlp(
    widths: Sequence[int],
    activation: str = "relu",
    init: str = "he",
    *,
    bias: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Linear layers of these widths, input and output included, with an activation between any two of them.

    Weights are drawn once, first layer first, from `generator` and nothing else, or from torch's global state where
    there is none; biases are zero. The names are the keys of `ACTIVATIONS` and `INITIALIZERS`.

    >>> build_mlp([2, 5, 1], activation="tanh", init="normal")
    Sequential(
      (fc1): Linear(in_features=2, out_features=5, bias=True)
      (act1): Tanh()
      (fc2): Linear(in_features=5, out_features=1, bias=True)
    )
    """
    new_activation = choose(ACTIVATIONS, activation, "activation")
    initialize = choose(INITIALIZERS, init, "initializer")
    model = nn.Sequential()
    for number, (fan_in, fan_out) in enumerate(pairwise(checked_widths(widths)), start=1):
        if number > 1:
            model.add_module(f"act{number - 1}", new_activation())
        model.add_module(f"fc{number}", _linear(fan_in, fan_out, bias, initialize, generator))
    return model


def _linear(
    fan_in: int, fan_out: int, bias: bool, initialize: Initializer, generator: torch.Generator | None
) -> nn.Linear:
    """A layer made on the meta device, so that nn.Linear's own draw costs neither time nor random numbers."""
    layer = nn.Linear(fan_in, fan_out, bias=bias, device="meta").to_empty(device=torch.get_default_device())
    initialize(layer.weight, generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
