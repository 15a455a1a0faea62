"""The losses of a training, and what the best constant answer to its targets would get."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vgrad_torch.watching import autograd
from vgrad_torch.watching.hooks import UncopiedHook
from vgrad_torch.watching.targets import Targets
from vgrad_torch.watching.tensors import tensors

FIRST_CALLS, EVERY = 50, 20
"""The targets of the first calls are read, and then those of every 20th one."""
JOINED = 1000
"""Losses on a device that are put into one tensor."""


class Losses:
    """The losses that are appended, or those that a criterion returns, if there is one: a hook on it sees them.

    A loss of the criterion counts if it requires a gradient, so those of a validation do not. The losses between two
    optimizer steps, as of micro-batches or several heads, are one loss: their mean. Nothing is fetched from the device
    before it is asked for, and no bit of the training changes. Calls in compiled code and in torch.func are not seen.
    """

    def __init__(self, criterion: nn.Module | None) -> None:
        self._criterion = criterion
        self._targets = None if criterion is None else Targets(criterion)
        self._values: list[float] = []
        self._calls = 0
        self._of_step: list[Tensor] = []
        self._on_device: list[Tensor] = []
        self._handle: RemovableHandle | None = None

    def missed(self) -> str:
        """What is wrong if there is a criterion, and no loss of it was seen; else empty."""
        if self._criterion is None or self._calls:
            return ""
        return (
            "loss_fn was never called in a way that watch() sees, so no losses are known; pass the criterion that the "
            "loop calls, or append the losses to monitor.losses"
        )

    def attach(self) -> None:
        """Set the hook on the criterion."""
        if self._criterion is not None:
            self._handle = self._criterion.register_forward_hook(UncopiedHook(self._after), with_kwargs=True)

    def detach(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.end_step()

    def _after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling() or autograd.in_functional_transform():
            return
        loss = next((x for x in tensors(output) if x.requires_grad), None)
        if loss is None or loss.is_complex():
            return
        self._of_step.append(loss.detach().float().mean())
        self._calls += 1
        pair = [*args, *(kwargs[name] for name in ("input", "target") if name in kwargs)][:2]
        read = self._calls <= FIRST_CALLS or self._calls % EVERY == 0
        if self._targets is not None and read and len(pair) == 2 and all(isinstance(x, Tensor) for x in pair):
            self._targets.add(*(x.detach() for x in pair))

    def end_step(self) -> None:
        """The losses since the last step become one."""
        if self._of_step:
            device = self._of_step[0].device
            self._on_device.append(torch.stack([loss.to(device) for loss in self._of_step]).mean()[None])
            self._of_step.clear()
        if len(self._on_device) > JOINED:
            self._on_device = [torch.cat(self._on_device)]

    @property
    def values(self) -> list[float]:
        """The losses of all steps so far, in order; those on a device are fetched in one transfer."""
        if self._on_device:
            self._values += torch.cat(self._on_device).tolist()
            self._on_device.clear()
        return self._values

    def constant_loss(self) -> float:
        """The loss of the best constant answer to the targets so far; NaN if it is not known."""
        return math.nan if self._targets is None else self._targets.constant_loss()
