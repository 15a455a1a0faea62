"""Hooks on layers for the length of one sample: which tensor was seen where, in which direction. No statistics here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from vgrad_torch.choices import UsageError

Layers = type[nn.Module] | tuple[type[nn.Module], ...] | str | Callable[[str, nn.Module], bool]
"""Which layers to watch: a type, several types, a regular expression over names, or a function of name and module."""


def select(model: nn.Module, layers: Layers = nn.Linear) -> dict[str, nn.Module]:
    """The watched layers by the names that `named_modules` gives them; a model that is a layer itself gets its type's.

    Raises:
        UsageError: if no layer is left to watch, or the regular expression is none.
    """
    if isinstance(layers, str):
        try:
            pattern = re.compile(layers)
        except re.error as error:
            raise UsageError(f"{layers!r} is not a regular expression over layer names: {error}") from None
        chosen = {name: m for name, m in model.named_modules() if name and pattern.search(name)}
    elif isinstance(layers, type) or (isinstance(layers, tuple) and all(isinstance(t, type) for t in layers)):
        chosen = {name: m for name, m in model.named_modules() if isinstance(m, layers)}
    elif callable(layers):
        chosen = {name: m for name, m in model.named_modules() if layers(name, m)}
    else:
        kinds = "a type, a tuple of types, a regular expression, or a function of (name, module)"
        raise UsageError(f"layers must be {kinds}, not {layers!r}")
    if not chosen:
        kinds = ", ".join(sorted({type(m).__name__ for _, m in model.named_modules()}))
        raise UsageError(f"the model has no layer that matches layers={layers!r}; its modules are of type {kinds}")
    return {name.replace("_orig_mod.", "") or type(m).__name__: m for name, m in chosen.items()}  # torch.compile's


class Observer(Protocol):
    """What `Hooks` reports to."""

    def new_pass(self) -> None:
        """A forward pass begins after a backward pass: of a micro-batch, say, or of the step after a skipped one."""

    def new_backward(self) -> None:
        """A backward pass begins; no gradient of it has reached a parameter of the watched layers yet."""

    def see(self, name: str, call: int, quantity: str, tensor: Tensor) -> None:
        """A layer's name, which call of it in this pass (from 1), the quantity (a word of `QUANTITIES`), the tensor."""


class Hooks:
    """Watches the given layers from `attach` until `detach`, and tells the observer each tensor that passes.

    The output gradient is taken by a hook on the output tensor (set from a forward hook, so that an in-place
    activation behind it does no harm). The input gradient is this layer's own contribution W^T delta, also where
    others use the same input: the layer is handed a view of its input, and the hook sits on that view. Neither
    changes a bit of what is computed. Forward passes without gradients (evaluation) are not seen, nor is a forward
    pass that activation checkpointing repeats.

    The hooks are torch's global ones, filtered by layer, so that a model that is copied or pickled meanwhile takes none
    along. They see the tensors among a layer's positional arguments; a layer called by keyword has no input gradient.

    `order` ranks the layers by their first call, `recomputed` is whether some were seen only in a repeated pass.
    """

    def __init__(self, layers: Mapping[str, nn.Module], observer: Observer) -> None:
        self.order: dict[str, int] = {}
        self.recomputed = False
        self._names = {id(layer): name for name, layer in layers.items()}
        self._observer: Observer | None = observer
        self._handles: list[RemovableHandle] = []
        self._calls: Counter[str] = Counter()
        self._seen_outright: set[str] = set()
        self._entered: dict[str, bool] = {}
        self._went_back = False

    def attach(self) -> None:
        """Set the hooks; they run at each module's call, and see those of the watched layers."""
        self._handles = [register_module_forward_pre_hook(self._before), register_module_forward_hook(self._after)]

    def detach(self) -> None:
        """Remove all hooks; what still hangs on tensors of a kept graph falls silent."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._observer = None

    def _before(self, module: nn.Module, args: Any) -> Any:
        name = self._names.get(id(module))
        if name is None:
            return None
        self.order.setdefault(name, len(self.order))
        self._entered[name] = self._enter(name)
        if not self._entered[name]:
            return None
        call = self._calls[name]
        views: dict[int, Tensor] = {}  # one for each tensor, as some layers ask whether two arguments are the same
        return tuple(self._tap_input(name, call, x, views) for x in args)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        name = self._names.get(id(module))
        if name is None or not self._entered.get(name):
            return
        call = self._calls[name]
        for tensor in filter(_is_float, tree_leaves(output)):
            self._tell(name, call, "output", tensor)
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: self._back(name, call, "output_gradient", gradient))

    def _enter(self, name: str) -> bool:
        """Whether to see this call; counts it. The first forward pass after a backward pass counts from 1 again.

        Inside a backward pass, checkpointing repeats a forward pass. If that was seen before, this one is not; if it
        ran without gradients (the reentrant form), this one is the one to see.
        """
        if not _recomputing():
            self._start_pass_after_backward()
        if not torch.is_grad_enabled():
            return False
        if not _recomputing():
            self._seen_outright.add(name)
        elif name in self._seen_outright:
            return False
        else:
            self.recomputed = True
        self._calls[name] += 1
        return True

    def _start_pass_after_backward(self) -> None:
        if self._went_back and self._observer is not None:
            self._went_back = False
            self._calls.clear()
            self._seen_outright.clear()
            self._observer.new_pass()

    def _tap_input(self, name: str, call: int, x: Any, views: dict[int, Tensor]) -> Any:
        if not (_is_float(x) and x.requires_grad):
            return x
        if id(x) not in views:
            views[id(x)] = x.view_as(x)
            views[id(x)].register_hook(lambda gradient: self._back(name, call, "input_gradient", gradient))
        return views[id(x)]

    def _back(self, name: str, call: int, quantity: str, gradient: Tensor) -> None:
        if not self._went_back and self._observer is not None:
            self._went_back = True
            self._observer.new_backward()
        self._tell(name, call, quantity, gradient)

    def _tell(self, name: str, call: int, quantity: str, tensor: Tensor) -> None:
        if self._observer is not None:
            self._observer.see(name, call, quantity, tensor)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _recomputing() -> bool:
    """Whether this forward pass runs inside a backward pass, as activation checkpointing does it."""
    return torch._C._current_graph_task_id() != -1
