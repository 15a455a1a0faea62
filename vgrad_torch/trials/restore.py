"""restored_on_exit(): restores a model's weights, buffers, gradients, modes, attributes and the random states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def restored_on_exit(model: nn.Module) -> Iterator[None]:
    """Restore parameters, buffers, gradients, modes, hooks, attributes and random states, also after an exception.

    Inside the block no parameter has a gradient. Tensors and gradients keep their identity; tensors get the same values
    back, bit for bit. Dicts, lists and sets among a module's attributes get their contents back, one level deep: a
    change in a list inside a list stays.
    """
    parameters = list(model.parameters())
    values = [(tensor, tensor.detach().clone()) for tensor in [*parameters, *model.buffers()]]
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in parameters]
    attributes = [_Attributes(module) for module in model.modules()]
    try:
        with random_states_restored_on_exit():
            for parameter in parameters:
                parameter.grad = None
            yield
    finally:
        for saved in attributes:
            saved.restore()
        for tensor, value in values:
            if not torch.equal(tensor, value):
                tensor.data.copy_(value)  # through `data`: autograd must not count this as a change of the tensor
        for parameter, gradient, requires_grad in gradients:
            parameter.grad = gradient
            parameter.requires_grad_(requires_grad)


class _Attributes:
    """The attributes of a module (hooks and modes are among them), with the contents of its dicts, lists and sets."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values = dict(vars(module))
        self._contents = [(x, x.copy()) for x in self._values.values() if isinstance(x, dict | list | set)]

    def restore(self) -> None:
        """Undo all changes."""
        container: Any
        for container, content in self._contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
        vars(self._module).clear()
        vars(self._module).update(self._values)


@contextmanager
def random_states_restored_on_exit() -> Iterator[None]:
    """Restore the random states of Python, NumPy, torch on the CPU and, if it is in use, torch on CUDA."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda)
