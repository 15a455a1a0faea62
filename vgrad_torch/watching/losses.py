"""The losses of a training, and what the best constant answer to its targets would get."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vgrad_torch.watching.targets import Targets

READ = 50
"""Calls whose targets are read; later ones are read on sampled steps only."""
WAITING = 1000
"""Losses that wait on their device before they are put into one tensor."""


class Losses:
    """The losses that are appended, or those that a criterion returns, if there is one: a hook on it sees them.

    A loss of the criterion counts if it requires a gradient, so those of a validation do not. Nothing is fetched from
    the device before it is asked for, and no bit of the training changes.
    """

    def __init__(self, criterion: nn.Module | None) -> None:
        self.sampling = False
        self._criterion = criterion
        self._targets = None if criterion is None else Targets(criterion)
        self._values: list[float] = []
        self._calls = 0
        self._waiting: list[Tensor] = []
        self._handle: RemovableHandle | None = None

    def attach(self) -> None:
        """Set the hook on the criterion."""
        if self._criterion is not None:
            self._handle = self._criterion.register_forward_hook(torch.compiler.disable(self._after))

    def detach(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _after(self, _: nn.Module, args: tuple[Any, ...], loss: Any) -> None:
        if not (isinstance(loss, Tensor) and loss.requires_grad):
            return
        self._waiting.append(loss.detach().float().mean())
        if len(self._waiting) > WAITING:
            self._waiting = [torch.cat([each.flatten() for each in self._waiting])]
        self._calls += 1
        pair = args[:2]
        read = (self.sampling or self._calls <= READ) and len(pair) == 2 and all(isinstance(x, Tensor) for x in pair)
        if read and self._targets is not None:
            self._targets.see(*(x.detach() for x in pair))

    @property
    def values(self) -> list[float]:
        """All losses so far, in order. Those that wait on a device are fetched in one transfer."""
        if self._waiting:
            self._values += torch.cat([each.flatten() for each in self._waiting]).tolist()
            self._waiting.clear()
        return self._values

    def constant_loss(self) -> float:
        """The loss of the best constant answer to the targets so far; NaN if it is not known."""
        return math.nan if self._targets is None else self._targets.constant_loss()
