"""The gradient of one input of a layer, which several nodes of the autograd graph may hand back in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from vgrad_torch.watching import autograd


class GradientSum:
    """The sum of the gradients that the nodes at one input hand back in one backward pass, reported when complete.

    A single node is not kept: its hook refers to this object, and the graph would then live until the hook is removed.
    """

    def __init__(self, nodes: list[Node], report: Callable[[Tensor], None]) -> None:
        self._nodes = nodes if len(nodes) > 1 else []
        self._report = report
        self._backward_id = -1
        self._missing = 0
        self._sum: Tensor | None = None

    def add(self, places: list[int], grad_inputs: tuple[Tensor | None, ...], _: Any) -> None:
        """Add what a node hands back at these places; called by a hook on the node."""
        backward_id = autograd.backward_id()
        if self._backward_id != backward_id:
            self._backward_id, self._sum = backward_id, None
            self._missing = sum(map(autograd.will_run, self._nodes)) if self._nodes else 1
        for gradient in (grad_inputs[place] for place in places):
            if gradient is not None:
                self._sum = gradient if self._sum is None else self._sum + gradient.detach()
        self._missing -= 1
        if self._missing == 0 and self._sum is not None:
            total, self._sum = self._sum, None
            self._report(total)
