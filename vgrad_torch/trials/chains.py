"""Plain MLPs: which models the theory covers, and what it predicts for one of them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vgrad_torch.errors import UsageError
from vgrad_torch.models.activations import ACTIVATIONS
from vgrad_torch.theory.prediction import Prediction, predict


def predict_model(model: nn.Module, x: Any) -> Prediction | None:
    """What theory predicts for a plain MLP with the input x, from the RMS of its weights; None for other models.

    None also if a layer is used twice: networks with shared weights scatter up to ten times as far around the
    prediction, in decades, as networks with independent weights. Only the mean of the biases counts: random biases with
    mean zero have no more effect on the gradient than biases of zero.
    """
    activation = activation_of(model)
    if activation is None or _shares_layers(model) or not isinstance(x, Tensor) or not x.isfinite().all():
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
    except UsageError:  # the signal is outside the range of a double, or there are too many outputs
        return None


def _shares_layers(model: nn.Module) -> bool:
    names = [name for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)]
    return len(names) > sum(isinstance(m, nn.Linear) for m in model.modules())


def activation_of(model: nn.Module) -> str | None:
    """Name of the activation of a plain MLP: an nn.Sequential of Linear, activation, Linear, ..., Linear.

    A Flatten may come first. None for other models, for different activations in one model, and for a single layer.
    """
    children = list(model) if isinstance(model, nn.Sequential) else []
    if children and isinstance(children[0], nn.Flatten):
        children = children[1:]
    linears, between = children[::2], children[1::2]
    if len(children) < 3 or len(children) % 2 == 0 or not all(type(m) is nn.Linear for m in linears):
        return None
    if any(a.out_features != b.in_features for a, b in pairwise(linears)):
        return None
    names = {_activation_name(module) for module in between}
    return names.pop() if len(names) == 1 else None


def _activation_name(module: nn.Module) -> str | None:
    """The key in `ACTIVATIONS` whose module has the same type and settings; None if there is none."""
    settings = module.extra_repr().replace("inplace=True", "").rstrip(", ")
    for name, make in ACTIVATIONS.items():
        if type(module) is type(make()) and settings == make().extra_repr():
            return name
    return None
