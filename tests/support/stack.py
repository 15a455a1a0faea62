"""MLPs of one shape trained side by side, in one tensor for each weight: many replays for the time of one."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Array = npt.NDArray[Any]
Epoch = Iterable[tuple[Tensor, Tensor]]
"""Batches of inputs, [batch, in] for all members or [members, batch, in], and labels, [batch] or [members, batch]."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""The loss of each sample [members, batch], from logits and labels of that shape."""


class Stack(nn.Module):
    """Models of one shape. The gradient of a member is that of its own loss, since no member uses another's weights."""

    def __init__(self, models: Sequence[nn.Sequential]) -> None:
        super().__init__()
        layers = [[module for module in model if isinstance(module, nn.Linear)] for model in models]
        self.weights = nn.ParameterList(
            torch.stack([x.weight.detach() for x in same]) for same in zip(*layers, strict=True)
        )
        self.biases = nn.ParameterList(
            torch.stack([x.bias.detach()[None] for x in same]) for same in zip(*layers, strict=True)
        )
        self.activation = next(module for module in models[0] if not isinstance(module, nn.Linear))

    def forward(self, x: Tensor) -> Tensor:
        """The one logit of each sample, [members, batch]."""
        h = x.expand(len(self.weights[0]), *x.shape[-2:])
        for weight, bias in zip(self.weights, self.biases, strict=True):
            z = torch.baddbmm(bias, h, weight.mT)
            h = self.activation(z)
        return z[:, :, 0]


@dataclass
class Trace:
    """What a training of a stack leaves. The members are the last axis of every array but `kernels` and `entries`."""

    losses: list[Array] = field(default_factory=list)
    """Of every step: [members]."""
    means: list[Array] = field(default_factory=list)
    stds: list[Array] = field(default_factory=list)
    """Of the weight gradients at the kept steps: [layers, members]."""
    entries: list[list[Array]] = field(default_factory=list)
    """The gradients of weight and bias of the first steps, entry by entry: one [members, entries] for each layer."""
    kernels: list[list[Array]] = field(default_factory=list)
    biases: list[list[Array]] = field(default_factory=list)
    """Before the training and after each epoch: one [members, out, in], or [members, 1, out], for each layer."""


def train(
    stack: Stack, optimizer: Optimizer, epochs: Iterable[Epoch], loss: Loss, *, kept: Container[int], entries: int = 0
) -> Trace:
    """Train all members. Keep statistics of the gradients at some steps, and the first gradients entry by entry."""
    trace = Trace()
    _keep_weights(stack, trace)
    for epoch in epochs:
        for x, y in epoch:
            optimizer.zero_grad()
            logits = stack(x)
            value = loss(logits, y.to(logits.dtype).expand_as(logits)).mean(1)
            value.sum().backward()
            trace.losses.append(value.detach().numpy())
            if len(trace.losses) - 1 in kept:
                _keep_gradients(stack, trace, entries)
            optimizer.step()
        _keep_weights(stack, trace)
    return trace


def _keep_gradients(stack: Stack, trace: Trace, entries: int) -> None:
    gradients = [gradient_of(weight).double().clone() for weight in stack.weights]
    trace.means.append(np.stack([g.mean((1, 2)).numpy() for g in gradients]))
    trace.stds.append(np.stack([g.std((1, 2), correction=0).numpy() for g in gradients]))
    if len(trace.entries) < entries:
        pairs = zip(gradients, map(gradient_of, stack.biases), strict=True)
        trace.entries.append([torch.cat([w.flatten(1), b.flatten(1)], 1).numpy() for w, b in pairs])


def _keep_weights(stack: Stack, trace: Trace) -> None:
    trace.kernels.append([weight.detach().numpy().copy() for weight in stack.weights])
    trace.biases.append([bias.detach().numpy().copy() for bias in stack.biases])


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
