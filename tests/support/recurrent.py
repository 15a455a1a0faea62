"""Recurrent networks that read a sequence, with the loss at its last step, and their gradients by autograd alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vgrad_torch as vg


class Reader(nn.Module):
    """A recurrent layer over a sequence, and a head on its last output."""

    def __init__(self, kind: Callable[..., nn.RNNBase] = nn.RNN, scale: float = 1.0, forget: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = kind(8, 32, batch_first=True), nn.Linear(32, 2)
        with torch.no_grad():
            for name, parameter in self.rnn.named_parameters():
                if "weight_hh" in name:
                    parameter.mul_(scale)
                if forget and "bias_hh" in name:
                    parameter[32:64] = forget

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0][:, -1])
        return out


def batches(lengths: Sequence[int], size: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch of sequences of each of these lengths."""
    generator = torch.Generator().manual_seed(1)
    for steps in lengths:
        yield torch.randn(size, steps, 8, generator=generator), torch.randint(0, 2, (size,), generator=generator)


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """The norm of dL/dx_t at each step."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), [x])
    return [float(step.norm()) for step in gradient.double().unbind(1)]


def train(folder: Path, model: nn.Module, lengths: Sequence[int], **how: Any) -> tuple[vg.Monitor, list[list[float]]]:
    """A training step for each length; the monitor, and what `gradients` says at each step of a copy of the model."""
    optimizer, twin, exact = torch.optim.Adam(model.parameters()), copy.deepcopy(model), []
    with vg.watch(model, optimizer, every=1, logdir=folder, **how) as monitor:
        for x, y in batches(lengths):
            twin.load_state_dict(model.state_dict())
            exact.append(gradients(twin, x, y))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return monitor, exact
