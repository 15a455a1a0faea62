"""Hooks on layers for the length of one sample: which tensor was seen where, in which direction. No statistics here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from vgrad_torch.distributed import shards
from vgrad_torch.errors import UsageError

Layers = type[nn.Module] | tuple[type[nn.Module], ...] | str | Callable[[str, nn.Module], bool]
"""Which layers to watch: a type, several types, a regular expression over names, or a function of name and module."""

Edge = tuple[Node, int]
"""Where a gradient arrives in the autograd graph: a node, and which of its inputs."""


def select(model: nn.Module, layers: Layers = nn.Linear) -> dict[str, nn.Module]:
    """The watched layers by their names in `named_modules`, without the parts that torch.compile and data parallel add.

    A model that is a layer itself gets its type's name.

    Raises:
        UsageError: if no layer is left to watch, or the regular expression is none.
    """
    modules = {_plain(name, model): m for name, m in model.named_modules()}
    if isinstance(layers, str):
        try:
            pattern = re.compile(layers)
        except re.error as error:
            raise UsageError(f"{layers!r} is not a regular expression over layer names: {error}") from None
        chosen = {name: m for name, m in modules.items() if name and pattern.search(name)}
    elif isinstance(layers, type) or (isinstance(layers, tuple) and all(isinstance(t, type) for t in layers)):
        chosen = {name: m for name, m in modules.items() if isinstance(m, layers)}
    elif callable(layers):
        chosen = {name: m for name, m in modules.items() if layers(name, m)}
    else:
        kinds = "a type, a tuple of types, a regular expression, or a function of (name, module)"
        raise UsageError(f"layers must be {kinds}, not {layers!r}")
    if not chosen:
        kinds = ", ".join(sorted({type(m).__name__ for m in modules.values()}))
        raise UsageError(
            f"the model has no layer that matches {_words(layers)}; its modules are of type {kinds}. Choose "
            "by layers=, a type or a regular expression over names (on the command line --layers and the expression)"
        )
    return {name or shards.kind(m): m for name, m in chosen.items()}


def _words(layers: Layers) -> str:
    """What was asked for.

    >>> _words(nn.Linear), _words((nn.Linear, nn.Conv2d)), _words("conv.*")
    ('Linear', 'Linear or Conv2d', "'conv.*'")
    """
    if isinstance(layers, tuple):
        return " or ".join(map(_words, layers))
    return layers.__name__ if isinstance(layers, type) else repr(layers)


def _plain(name: str, model: nn.Module) -> str:
    """A module's name without what torch.compile and DistributedDataParallel put into it."""
    parts = name.split(".")
    holders = (model.get_submodule(".".join(parts[:i])) for i in range(len(parts)))
    return ".".join(part for part, holder in zip(parts, holders, strict=True) if not _is_wrapped(part, holder))


def _is_wrapped(part: str, holder: nn.Module) -> bool:
    return part == "_orig_mod" or isinstance(holder, DistributedDataParallel)


class Call(NamedTuple):
    """One call of one layer: `number` counts the calls of a layer in a forward pass from 1, `turn` the passes."""

    turn: int
    name: str
    number: int


class Observer(Protocol):
    """What `Hooks` reports to."""

    def new_backward(self, turn: int) -> None:
        """A backward pass over a forward pass begins; no gradient of it has reached a watched weight yet."""

    def see(self, call: Call, quantity: str, tensor: Tensor) -> None:
        """A tensor that passes: of which call, and which quantity (a word of `QUANTITIES`)."""


class Hooks:
    """Watches the given layers from `attach` until `detach`, and tells the observer each tensor that passes.

    The output gradient is taken by a hook on the output tensor (set from a forward hook, so that an in-place
    activation behind it does no harm), the input gradient by hooks on the nodes of the autograd graph that the layer
    put onto its input: so it is this layer's own contribution W^T delta, also where others use the same input. The
    layer's input, its output and the graph are read, never replaced: not a bit of what is computed changes.

    Not seen: forward passes without gradients (evaluation) or inside torch.func; a forward pass that activation
    checkpointing repeats; backward passes that bring the layer's weights no gradient (a gradient penalty's).

    The hooks sit on the layers (torch.compile's modules warn of global ones), and a model that is copied or pickled
    meanwhile does not take them along.

    Without `input_gradients` no hook is set for those.

    `order` ranks the layers by their first call, `recomputed` is whether some were seen only in a repeated pass.
    """

    def __init__(self, layers: Mapping[str, nn.Module], observer: Observer, *, input_gradients: bool = True) -> None:
        self.order: dict[str, int] = {}
        self.recomputed = False
        self._layers = layers
        self._observer: Observer | None = observer
        self._input_gradients = input_gradients
        self._handles: list[RemovableHandle] = []
        self._calls: Counter[str] = Counter()
        self._seen_outright: set[str] = set()
        self._entered: dict[str, list[_Entry | None]] = {name: [] for name in layers}
        self._turn = 0
        self._went_back = False
        self._task = -1
        self._reached: dict[str, bool] = {}

    def attach(self) -> None:
        """Set two hooks on each layer."""
        for name, layer in self._layers.items():
            before, after = _Hook(partial(self._before, name)), _Hook(partial(self._after, name))
            self._handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(layer.register_forward_hook(after))

    def detach(self) -> None:
        """Remove all hooks, also those on tensors and nodes of a graph that is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._observer = None

    def _before(self, name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        self.order.setdefault(name, len(self.order))
        call = self._enter(name)
        edges = set(_edges((args, kwargs))) if call and self._input_gradients else set()
        self._entered[name].append(call and _Entry(call, torch._C._autograd._get_sequence_nr(), edges))

    def _after(self, name: str, _: nn.Module, args: Any, output: Any) -> None:
        entry = self._entered[name].pop() if self._entered[name] else None
        if entry is None:
            return
        outputs = {id(tensor): tensor for tensor in _tensors(output)}.values()
        for tensor in outputs:
            self._tell(entry.call, "output", tensor)
            if tensor.requires_grad:
                told = partial(self._back, entry.call, "output_gradient")
                self._handles.append(_origin(tensor, entry.since).register_hook(told))
        for users in _users(outputs, entry).values():
            total = _Total(list(users), partial(self._back, entry.call, "input_gradient"))
            for node, places in users.items():
                self._handles.append(node.register_hook(partial(total.add, places)))

    def _enter(self, name: str) -> Call | None:
        """Count this call, if it is to be seen. The first forward pass after a backward pass counts from 1 again.

        Inside a backward pass, checkpointing repeats a forward pass. If that was seen before, this one is not; if it
        ran without gradients (the reentrant form), this one is the one to see.
        """
        if not _recomputing():
            self._start_pass_after_backward()
        if not torch.is_grad_enabled() or _transforming():
            return None
        if not _recomputing():
            self._seen_outright.add(name)
        elif name in self._seen_outright:
            return None
        else:
            self.recomputed = True
        self._calls[name] += 1
        return Call(self._turn, name, self._calls[name])

    def _start_pass_after_backward(self) -> None:
        if self._went_back:
            self._went_back = False
            self._turn += 1
            self._calls.clear()
            self._seen_outright.clear()

    def _back(self, call: Call, quantity: str, gradient: Tensor | None) -> None:
        if gradient is None or self._observer is None or not self._is_reached(call.name):
            return
        if not self._went_back:
            self._went_back = True
            self._observer.new_backward(call.turn)
        self._tell(call, quantity, gradient)

    def _is_reached(self, name: str) -> bool:
        """Whether the backward pass that runs brings a layer's weights a gradient; asked once for each pass."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self._reached = task, {}
        if name not in self._reached:
            self._reached[name] = _reaches(self._layers[name])
        return self._reached[name]

    def _tell(self, call: Call, quantity: str, tensor: Tensor) -> None:
        if self._observer is not None:
            self._observer.see(call, quantity, tensor)


class _Hook:
    """A hook that is not copied or pickled with its module: the copy gets one that does nothing."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # takes anything, returns None, and loads without this package


def remove_all(model: nn.Module) -> None:
    """Remove the hooks that any `Hooks` set on the model's layers, so that nobody sees what passes."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook)]:
                del hooks[key]


class _Entry(NamedTuple):
    """A call that has begun: the number of the next node of the graph, and the edges that lead to its inputs."""

    call: Call
    since: int
    edges: set[Edge]


class _Total:
    """The sum of what the nodes that use an input hand back to it in one backward pass, told when it is complete."""

    def __init__(self, nodes: list[Node], tell: Callable[[Tensor], None]) -> None:
        self._nodes = nodes
        self._tell = tell
        self._task = -1
        self._missing = 0
        self._sum: Tensor | None = None

    def add(self, places: list[int], grad_inputs: tuple[Tensor | None, ...], _: Any) -> None:
        if self._task != torch._C._current_graph_task_id():
            self._task, self._sum = torch._C._current_graph_task_id(), None
            self._missing = sum(map(_runs, self._nodes))
        for gradient in (grad_inputs[place] for place in places):
            if gradient is not None:
                self._sum = gradient if self._sum is None else self._sum + gradient.detach()
        self._missing -= 1
        if self._missing == 0 and self._sum is not None:
            total, self._sum = self._sum, None
            self._tell(total)


def _tensors(x: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a layer takes or returns: tuples, dicts and dataclasses of them."""
    if isinstance(x, Tensor):
        if x.is_floating_point() or x.is_complex():
            yield x
    elif isinstance(x, Mapping):
        yield from (tensor for value in x.values() for tensor in _tensors(value))
    elif isinstance(x, tuple | list):
        yield from (tensor for value in x for tensor in _tensors(value))
    elif is_dataclass(x) and not isinstance(x, type):
        yield from (tensor for field in fields(x) for tensor in _tensors(getattr(x, field.name, None)))


def _edges(inputs: Any) -> Iterator[Edge]:
    """Where the graph enters inputs; for a view also its base, which an in-place operation would be put onto."""
    for x in _tensors(inputs):
        for tensor in (x, _base(x)):
            if tensor is not None and tensor.requires_grad:
                yield tensor.grad_fn or get_gradient_edge(tensor)[0], tensor.output_nr


def _origin(output: Tensor, since: int) -> Tensor:
    """What to hook for an output's gradient: itself, or what the layer made it a view of.

    An in-place operation on a view (a Linear's output for an input of three dimensions is one) cuts the view itself
    out of the graph, and a hook on it would never be called.
    """
    base = _base(output)
    own = base is not None and base.grad_fn is not None and base.grad_fn._sequence_nr() >= since
    return base if base is not None and own else output


def _base(x: Tensor) -> Tensor | None:
    """What x is a view of, if that has the same entries."""
    base = x._base if x.layout == torch.strided and x._is_view() else None
    return base if base is not None and base.numel() == x.numel() else None


def _users(outputs: Iterable[Tensor], entry: _Entry) -> dict[Edge, dict[Node, list[int]]]:
    """For each input the nodes of the graph that use it inside the layer, each with the places of its gradient."""
    found: dict[Edge, dict[Node, list[int]]] = {}
    ahead = [tensor.grad_fn for tensor in outputs if entry.edges]
    visited: set[Node] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in visited or node._sequence_nr() < entry.since:  # older than the layer's call
            continue
        visited.add(node)
        for place, edge in enumerate(node.next_functions):
            if edge in entry.edges:
                found.setdefault(edge, {}).setdefault(node, []).append(place)
            else:
                ahead.append(edge[0])
    return found


def _reaches(layer: nn.Module) -> bool:
    """Whether the backward pass that runs brings the layer's weights a gradient; one for the input alone does not.

    A weight in shards says nothing: those that it was gathered from and into are other tensors of the graph.
    """
    weights = [w for w in layer.parameters() if w.requires_grad]
    return not weights or any(shards.is_spread(w) or _runs(get_gradient_edge(w)[0]) for w in weights)


def _runs(node: Node) -> bool:
    """Whether the backward pass that runs will come, or has come, through a node."""
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # a weight of which autograd.grad takes the gradient
        return True


def _recomputing() -> bool:
    """Whether this forward pass runs inside a backward pass, as activation checkpointing does it."""
    return bool(torch._C._current_graph_task_id() != -1)


def _transforming() -> bool:
    """Whether this forward pass runs inside torch.func (grad, vmap), whose tensors have no values to look at."""
    return torch._C._functorch.peek_interpreter_stack() is not None
