"""The gradient at each step of a sequence: of a recurrent layer or an embedding. Their kernels are not touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Report = Callable[[str, Tensor], None]
"""Called with `input`, `output` or `positions` and the norms of the gradient at each step, float64 [steps]."""


def observed(layer: nn.RNNBase, args: tuple[Any, ...], report: Report) -> tuple[Any, ...] | None:
    """The arguments with an input that requires a gradient, and a hook on it that reports the gradient.

    The layer gets a view of the input: the same values in the same memory, and not a bit of the weights' gradients
    changes. The view's gradient is dropped as soon as it is reported. None if the input requires a gradient anyway: a
    view of it could change the order in which gradients are added; or if there is no gradient at all.
    """
    data = sequence(args)
    if data is None or data.requires_grad or not any(p.requires_grad for p in layer.parameters()):
        return None
    view = data.detach().requires_grad_()
    view.register_hook(lambda gradient: report("input", norms(layer, gradient, args)))
    view.register_post_accumulate_grad_hook(_drop)
    x = args[0]
    return (x._replace(data=view) if isinstance(x, PackedSequence) else view), *args[1:]


def sequence(args: tuple[Any, ...]) -> Tensor | None:
    """The values of a recurrent layer's input."""
    x = args[0] if args else None
    data = x.data if isinstance(x, PackedSequence) else x
    return data if isinstance(data, Tensor) else None


def observe_output(layer: nn.RNNBase, args: tuple[Any, ...], outputs: Sequence[Tensor], report: Report) -> None:
    """Report the gradient that the loss hands to each time step of the layer's output directly."""
    if args and outputs and outputs[0].requires_grad:
        outputs[0].register_hook(lambda gradient: report("output", norms(layer, gradient, args)))


def positions_dimension(modules: Iterable[nn.Module]) -> int | None:
    """The dimension of a batch of sequences that is the position, by the `batch_first` of these modules.

    1 if no module has this attribute, None if they contradict each other.
    """
    found = {bool(module.batch_first) for module in modules if hasattr(module, "batch_first")} or {True}
    return int(found.pop()) if len(found) == 1 else None


def observe_positions(dimension: int, args: tuple[Any, ...], outputs: Sequence[Tensor], report: Report) -> None:
    """Report the gradient at each position of an embedding's output, if its input is a batch of sequences."""
    x = args[0] if args else None
    if isinstance(x, Tensor) and x.dim() == 2 and x.shape[dimension] > 1 and outputs and outputs[0].requires_grad:
        outputs[0].register_hook(lambda gradient: report("positions", vector_norm(gradient, dim=(1 - dimension, 2))))


def vector_norm(gradient: Tensor, dim: Sequence[int]) -> Tensor:
    """The norm over these dimensions, in float64."""
    found: Tensor = torch.linalg.vector_norm(gradient, dim=list(dim), dtype=torch.float64)
    return found


def _drop(leaf: Tensor) -> None:
    leaf.grad = None


def norms(layer: nn.RNNBase, gradient: Tensor, args: tuple[Any, ...]) -> Tensor:
    """The norm of a gradient at each time step, float64 [steps]; a packed input knows the lengths of the sequences."""
    x = args[0]
    if isinstance(x, PackedSequence):
        squares = torch.linalg.vector_norm(gradient, dim=1, dtype=torch.float64).square()
        return torch.stack([part.sum() for part in squares.split(x.batch_sizes.tolist())]).sqrt()
    time = 1 if layer.batch_first and gradient.dim() == 3 else 0
    return vector_norm(gradient, [dim for dim in range(gradient.dim()) if dim != time])
