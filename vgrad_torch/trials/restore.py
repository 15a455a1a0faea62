"""untouched: whatever is done with a model inside the block, it is afterwards as it was before."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back parameters, buffers, gradients, modes, hooks, attributes and random states, also when the block raises.

    Inside, no parameter has a gradient. Tensors and gradients keep their identity, tensors get their values back bit
    for bit. Of attributes, containers are put back one level deep: a list that a module appends to, not a list inside.
    """
    parameters = list(model.parameters())
    values = [(tensor, tensor.detach().clone()) for tensor in [*parameters, *model.buffers()]]
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in parameters]
    attributes = [_Attributes(module) for module in model.modules()]
    try:
        with random_states():
            for parameter in parameters:
                parameter.grad = None
            yield
    finally:
        for kept in attributes:
            kept.put_back()
        for tensor, value in values:
            _put_back(tensor, value)
        for parameter, gradient, requires_grad in gradients:
            parameter.grad = gradient
            parameter.requires_grad_(requires_grad)


def _put_back(tensor: Tensor, value: Tensor) -> None:
    """Through `data`, so that a graph which waits for its backward pass does not take it for a change."""
    if not torch.equal(tensor, value):
        tensor.data.copy_(value)


class _Attributes:
    """What a module's own dictionary held, with the contents of the dicts, lists and sets in it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values = dict(vars(module))
        self._contents = [(x, x.copy()) for x in self._values.values() if isinstance(x, dict | list | set)]

    def put_back(self) -> None:
        """Put it all back."""
        for container, content in self._contents:
            container.clear()
            _fill(container, content)
        vars(self._module).clear()
        vars(self._module).update(self._values)


def _fill(container: Any, content: Iterable[Any]) -> None:
    container.extend(content) if isinstance(container, list) else container.update(content)


@contextmanager
def random_states() -> Iterator[None]:
    """Those of Python, NumPy, torch's CPU and, where it is in use, CUDA."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda)
