"""Which models the theory is about, and what it expects of one of them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vgrad_torch.errors import UsageError
from vgrad_torch.models.activations import ACTIVATIONS
from vgrad_torch.theory.prediction import Prediction, predict


def expected(model: nn.Module, x: Any) -> Prediction | None:
    """What theory expects of a plain MLP for the input x, from the RMS of its weights; None for any other model.

    None also where a layer is used twice: nets whose layers share weights scatter up to ten times as far, in decades,
    around what is expected of independent ones. Biases count by their mean: random ones around zero are as good as zero
    where the gradient is concerned.
    """
    activation = activation_of(model)
    if activation is None or _tied(model) or not isinstance(x, Tensor) or not x.isfinite().all():
        return None
    linears = [module for module in model.children() if isinstance(module, nn.Linear)]
    weights = [float(layer.weight.detach().double().square().mean().sqrt()) for layer in linears]
    biases = [layer.bias.detach().double().flatten().cpu() for layer in linears if layer.bias is not None]
    bias = float(torch.cat(biases).mean()) if biases else 0.0
    if not all(0 < rms < math.inf for rms in weights) or not math.isfinite(bias):
        return None
    squares = x.detach().double().flatten(1).square().mean(1).cpu().numpy()
    widths = [linears[0].in_features, *(layer.out_features for layer in linears)]
    try:
        return predict(widths, activation, weights, bias=bias, batch=len(x), mean_square=squares)
    except UsageError:  # a signal beyond what a double holds, or too many outputs
        return None


def _tied(model: nn.Module) -> bool:
    names = [name for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)]
    return len(names) > sum(isinstance(m, nn.Linear) for m in model.modules())


def activation_of(model: nn.Module) -> str | None:
    """Name of the activation of a plain MLP: an nn.Sequential of Linear, activation, Linear, ..., Linear.

    A Flatten may come first. None for any other model, for several activations, and for a single layer.
    """
    children = list(model) if isinstance(model, nn.Sequential) else []
    if children and isinstance(children[0], nn.Flatten):
        children = children[1:]
    linears, between = children[::2], children[1::2]
    if len(children) < 3 or len(children) % 2 == 0 or not all(type(m) is nn.Linear for m in linears):
        return None
    if any(a.out_features != b.in_features for a, b in pairwise(linears)):
        return None
    names = {_name(activation) for activation in between}
    return names.pop() if len(names) == 1 else None


def _name(module: nn.Module) -> str | None:
    """The key in `ACTIVATIONS` of a module that does what its entry does."""
    settings = module.extra_repr().replace("inplace=True", "").rstrip(", ")
    for name, make in ACTIVATIONS.items():
        if type(module) is type(make()) and settings == make().extra_repr():
            return name
    return None
