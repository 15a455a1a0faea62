"""The activations by name. Each entry makes a new module that does not work in place, with PyTorch's defaults."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,  # slope 0.01 below zero
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,  # x * Phi(x), not the tanh approximation
    "silu": nn.SiLU,
    "softsign": nn.Softsign,
    "identity": nn.Identity,
}
