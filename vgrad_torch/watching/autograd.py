"""All private functions of torch that this package uses, and all walks over Python's frames.

PyTorch may change these without notice. All of them exist in torch 2.6, the oldest version that is supported, and in
2.13. Where one is missing, the call raises a `UsageError` that names it and the installed torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from vgrad_torch.distributed import shards
from vgrad_torch.errors import UsageError


def _missing(name: str) -> UsageError:
    return UsageError(
        f"torch {torch.__version__} has no {name}, which vgrad_torch needs; use a torch version that vgrad_torch was "
        "tested with (2.6 to 2.13)"
    )


def _private(path: str) -> Callable[..., Any]:
    """A private function of torch, looked up once; where it is missing, a function that raises the `UsageError`."""
    owner: Any = torch
    try:
        for part in path.split("."):
            owner = getattr(owner, part)
    except AttributeError:

        def absent(*_: object) -> Any:
            raise _missing(f"torch.{path}")

        return absent
    found: Callable[..., Any] = owner
    return found


_graph_task_id = _private("_C._current_graph_task_id")
_will_execute = _private("_C._will_engine_execute_node")
_sequence_number = _private("_C._autograd._get_sequence_nr")
_interpreter_stack = _private("_C._functorch.peek_interpreter_stack")


# --- the autograd engine ---------------------------------------------------------------------------------------------


def backward_id() -> int:
    """The number of the backward pass that runs in this thread; -1 if none runs.

    By torch._C._current_graph_task_id.
    """
    task: int = _graph_task_id()
    return task


def in_backward() -> bool:
    """Whether this code runs inside a backward pass, as the forward pass that activation checkpointing repeats does."""
    return backward_id() != -1


def will_run(node: Node) -> bool:
    """Whether the backward pass that runs will pass through a node, or has done so.

    By torch._C._will_engine_execute_node, which raises RuntimeError for a leaf of which `autograd.grad` takes the
    gradient: such a leaf is reached.
    """
    try:
        return bool(_will_execute(node))
    except RuntimeError:
        return True


def next_node_number() -> int:
    """The number that the next node of this thread's autograd graph gets. By torch._C._autograd._get_sequence_nr."""
    number: int = _sequence_number()
    return number


def node_number(node: Node) -> int:
    """The number of a node: the nodes of a thread are numbered in the order of their creation. By Node._sequence_nr."""
    try:
        number: int = node._sequence_nr()
    except AttributeError:
        raise _missing("Node._sequence_nr") from None
    return number


def leaf(node: Node) -> Tensor | None:
    """The tensor whose gradient this node of the graph accumulates; None for a node that computes.

    By the attribute `variable`, which torch documents for the node of a leaf.
    """
    return node.variable if type(node).__name__ == "AccumulateGrad" else None  # type: ignore[attr-defined]


def viewed(x: Tensor) -> Tensor | None:
    """The tensor that `x` is a view of, if it has the same number of entries. By Tensor._is_view and Tensor._base."""
    try:
        base = x._base if x.layout == torch.strided and x._is_view() else None
    except AttributeError:
        raise _missing("Tensor._is_view or Tensor._base") from None
    return base if base is not None and base.numel() == x.numel() else None


def in_functional_transform() -> bool:
    """Whether this code runs inside torch.func (grad, vmap), whose tensors have no values that could be read.

    By torch._C._functorch.peek_interpreter_stack.
    """
    return _interpreter_stack() is not None


# --- modules ---------------------------------------------------------------------------------------------------------


def forward_hooks(module: nn.Module) -> Iterator[dict[int, Any]]:
    """The tables of a module's forward pre-hooks and forward hooks. By Module._forward_pre_hooks and _forward_hooks."""
    try:
        yield module._forward_pre_hooks
        yield module._forward_hooks
    except AttributeError:
        raise _missing("Module._forward_hooks") from None


def held_gradients(model: nn.Module) -> Iterator[Tensor]:
    """This rank's part of the gradients that `fully_shard` keeps in other places than `parameter.grad`.

    While layers are gathered, the sharded parameters are not visible in the module, and neither are the gradients of
    micro-batches that are not reduced yet. By FSDPModule._get_fsdp_state. Its parameter group is `_fsdp_param_group`;
    some newer versions have a list, `_fsdp_param_groups`.
    """
    for module in filter(shards.is_fully_sharded, model.modules()):
        try:
            state = module._get_fsdp_state()  # type: ignore[operator]
            groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
            parameters = [p for group in groups if group is not None for p in group.fsdp_params]
            held = [gradient for p in parameters for gradient in _gradients_of(p)]
        except AttributeError:
            raise _missing("FSDPModule._get_fsdp_state()._fsdp_param_group") from None
        yield from (shards.own(gradient) for gradient in held if gradient is not None)


def _gradients_of(parameter: Any) -> list[Tensor | None]:
    """Of one of fully_shard's parameters: of its shard, of the accumulated micro-batches, of the gathered weight."""
    gathered = getattr(parameter, "_unsharded_param", None)  # exists after the first forward pass
    in_weight = None if gathered is None else gathered.grad
    return [parameter.sharded_param.grad, parameter.unsharded_accumulated_grad, in_weight]


def in_join(model: DistributedDataParallel | None) -> bool:
    """Whether this code runs inside `model.join()`. By DistributedDataParallel._join_config."""
    try:
        return model is not None and bool(model._join_config.enable)
    except AttributeError:
        raise _missing("DistributedDataParallel._join_config") from None


# --- torch.compile ---------------------------------------------------------------------------------------------------


def eager() -> AbstractContextManager[Any]:
    """Runs what torch.compile compiled without its graphs, because a graph does not call hooks that are added later.

    By torch.compiler.set_stance, public since torch 2.6. As long as torch._dynamo is not imported, nothing is compiled.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class EagerMode:
    """`eager()` for as long as any sample is open: the stance belongs to the process, the samples to the monitors."""

    def __init__(self) -> None:
        self._samples = 0
        self._stance: AbstractContextManager[Any] = nullcontext()

    def enter(self) -> None:
        """A sample begins."""
        self._samples += 1
        if self._samples == 1:
            self._stance = eager()

    def leave(self) -> None:
        """A sample ends."""
        self._samples -= 1
        if self._samples == 0:
            self._stance.__exit__(None, None, None)
            self._stance = nullcontext()


EAGER_MODE = EagerMode()


# --- optimizers and gradient scalers ---------------------------------------------------------------------------------


def skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer skipped its step because a gradient scaler found infinity.

    By `optimizer.found_inf`, which a GradScaler sets on fused optimizers; where it does not, nothing was skipped.
    """
    found: Tensor | None = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def gradient_scale(optimizer: Optimizer) -> Tensor | None:
    """The factor that a fused optimizer still has to divide its gradients by; None if they are already unscaled.

    By `optimizer.grad_scale`, which a GradScaler sets on fused optimizers.
    """
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    return scale


def _callers() -> Iterator[FrameType]:
    """The frames of the callers, innermost first. By sys._getframe, which CPython and PyPy have."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        yield frame
        frame = frame.f_back


def in_nested_step(optimizer: Optimizer) -> bool:
    """Whether this step of the optimizer was called by another step of it, such as `super().step()`.

    By the frames of the wrapper that runs torch's step hooks, `profile_hook_step.<locals>.wrapper`. Under another name
    they are not found, and every step counts as an outer one.
    """
    name = "profile_hook_step.<locals>.wrapper"
    wrappers = (frame for frame in _callers() if frame.f_code.co_qualname.endswith(name))
    return sum(frame.f_locals.get("self") is optimizer for frame in wrappers) > 1


def in_gradient_scaler() -> bool:
    """Whether an enabled GradScaler's `step` is among the callers."""
    for frame in _callers():
        scaler = frame.f_locals.get("self") if frame.f_code.co_name == "step" else None
        if isinstance(scaler, torch.amp.GradScaler):
            return bool(scaler.is_enabled())
    return False
