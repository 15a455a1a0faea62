"""Hooks on layers during one sample: they catch outputs, output gradients and input gradients. No statistics here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from vgrad_torch.distributed import shards
from vgrad_torch.watching import autograd

Edge = tuple[Node, int]
"""Where a gradient arrives in the autograd graph: a node, and which of its inputs."""


class Call(NamedTuple):
    """One call of one layer.

    `forward_pass` counts the forward passes of the sample from 0, `number` the calls of this layer in it from 1.
    """

    forward_pass: int
    name: str
    number: int


class Observer(Protocol):
    """What `Hooks` reports to."""

    def begin_backward(self, forward_pass: int) -> None:
        """A backward pass over this forward pass begins. No gradient has reached a watched weight yet."""

    def observe(self, call: Call, quantity: str, tensor: Tensor) -> None:
        """A tensor of a call: its output, output gradient or input gradient; `quantity` is a word of `QUANTITIES`."""


class Hooks:
    """Watches the given layers from `attach` until `detach`, and reports tensors to the observer.

    The output gradient is caught by a hook on the output tensor, which a forward hook sets, so an in-place activation
    behind the layer does no harm. The input gradient is caught by hooks on the nodes of the autograd graph that the
    layer adds to its input. So it is this layer's own contribution W^T delta, also where other layers use the same
    input. Input, output and graph are read and never replaced: no bit of the computation changes.

    Not reported: forward passes without gradients (evaluation) or inside torch.func, a forward pass that activation
    checkpointing repeats, and backward passes that bring the layer's weights no gradient (of a gradient penalty).

    The hooks sit on the layers, because torch.compile's modules warn of global ones. A copied or pickled model does not
    take them along. With `input_gradients=False` there are no hooks for input gradients.

    `order` ranks the layers by their first call. `recomputed` says that some layers were seen in a repeated forward
    pass only.
    """

    def __init__(self, layers: Mapping[str, nn.Module], observer: Observer, *, input_gradients: bool = True) -> None:
        self.order: dict[str, int] = {}
        self.recomputed = False
        self._layers = layers
        self._observer: Observer | None = observer
        self._input_gradients = input_gradients
        self._handles: list[RemovableHandle] = []
        self._calls: Counter[str] = Counter()
        self._seen_in_forward: set[str] = set()
        self._open_calls: dict[str, list[_OpenCall | None]] = {name: [] for name in layers}
        self._forward_pass = 0
        self._backward_began = False
        self._backward_id = -1
        self._reached: dict[str, bool] = {}

    def attach(self) -> None:
        """Set two hooks on each layer."""
        for name, layer in self._layers.items():
            before, after = _Hook(partial(self._before_forward, name)), _Hook(partial(self._after_forward, name))
            self._handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(layer.register_forward_hook(after))

    def detach(self) -> None:
        """Remove all hooks, also those on tensors and nodes of a graph that still exists."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._observer = None

    def _before_forward(self, name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        self.order.setdefault(name, len(self.order))
        call = self._count_call(name)
        edges = set(_edges((args, kwargs))) if call and self._input_gradients else set()
        self._open_calls[name].append(call and _OpenCall(call, autograd.next_node_number(), edges))

    def _after_forward(self, name: str, _: nn.Module, args: Any, output: Any) -> None:
        opened = self._open_calls[name].pop() if self._open_calls[name] else None
        if opened is None:
            return
        outputs = {id(tensor): tensor for tensor in _tensors(output)}.values()
        for tensor in outputs:
            self._report(opened.call, "output", tensor)
            if tensor.requires_grad:
                catch = partial(self._catch_gradient, opened.call, "output_gradient")
                self._handles.append(_hookable(tensor, opened.first_node).register_hook(catch))
        for nodes in _nodes_at_inputs(outputs, opened).values():
            total = _GradientSum(list(nodes), partial(self._catch_gradient, opened.call, "input_gradient"))
            for node, places in nodes.items():
                self._handles.append(node.register_hook(partial(total.add, places)))

    def _count_call(self, name: str) -> Call | None:
        """Number this call, or return None if it is not reported.

        Inside a backward pass, activation checkpointing repeats a forward pass. If that pass was seen before, the
        repetition is not reported. If it ran without gradients (checkpointing's reentrant form), the repetition is.
        """
        recomputing = autograd.in_backward()
        if not recomputing:
            self._begin_forward_pass_after_backward()
        if not torch.is_grad_enabled() or autograd.in_functional_transform():
            return None
        if not recomputing:
            self._seen_in_forward.add(name)
        elif name in self._seen_in_forward:
            return None
        else:
            self.recomputed = True
        self._calls[name] += 1
        return Call(self._forward_pass, name, self._calls[name])

    def _begin_forward_pass_after_backward(self) -> None:
        if self._backward_began:
            self._backward_began = False
            self._forward_pass += 1
            self._calls.clear()
            self._seen_in_forward.clear()

    def _catch_gradient(self, call: Call, quantity: str, gradient: Tensor | None) -> None:
        if gradient is None or self._observer is None or not self._reaches_weights(call.name):
            return
        if not self._backward_began:
            self._backward_began = True
            self._observer.begin_backward(call.forward_pass)
        self._report(call, quantity, gradient)

    def _reaches_weights(self, name: str) -> bool:
        """Whether the running backward pass brings a layer's weights a gradient; computed once for each pass."""
        backward_id = autograd.backward_id()
        if backward_id != self._backward_id:
            self._backward_id, self._reached = backward_id, {}
        if name not in self._reached:
            self._reached[name] = _brings_gradient(self._layers[name])
        return self._reached[name]

    def _report(self, call: Call, quantity: str, tensor: Tensor) -> None:
        if self._observer is not None:
            self._observer.observe(call, quantity, tensor)


class _Hook:
    """A hook that is not copied or pickled with its module: the copy gets one that does nothing."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # takes anything, returns None, and loads without this package


def remove_all(model: nn.Module) -> None:
    """Remove the hooks that any `Hooks` set on the model's layers, so that no observer gets what follows."""
    for module in model.modules():
        for table in autograd.forward_hooks(module):
            for key in [key for key, hook in table.items() if isinstance(hook, _Hook)]:
                del table[key]


class _OpenCall(NamedTuple):
    """A call that has begun: the number of the next node of the graph, and the edges that lead to its inputs."""

    call: Call
    first_node: int
    input_edges: set[Edge]


class _GradientSum:
    """The sum of the gradients that the nodes at one input hand back in one backward pass, reported when complete."""

    def __init__(self, nodes: list[Node], report: Callable[[Tensor], None]) -> None:
        self._nodes = nodes
        self._report = report
        self._backward_id = -1
        self._missing = 0
        self._sum: Tensor | None = None

    def add(self, places: list[int], grad_inputs: tuple[Tensor | None, ...], _: Any) -> None:
        backward_id = autograd.backward_id()
        if self._backward_id != backward_id:
            self._backward_id, self._sum = backward_id, None
            self._missing = sum(map(autograd.will_run, self._nodes))
        for gradient in (grad_inputs[place] for place in places):
            if gradient is not None:
                self._sum = gradient if self._sum is None else self._sum + gradient.detach()
        self._missing -= 1
        if self._missing == 0 and self._sum is not None:
            total, self._sum = self._sum, None
            self._report(total)


def _tensors(x: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a layer takes or returns: also inside tuples, dicts and dataclasses."""
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
    """Where the graph enters inputs. Of a view also its base, since an in-place operation becomes the base's node."""
    for x in _tensors(inputs):
        for tensor in (x, autograd.viewed(x)):
            if tensor is not None and tensor.requires_grad:
                yield tensor.grad_fn or get_gradient_edge(tensor)[0], tensor.output_nr


def _hookable(output: Tensor, first_node: int) -> Tensor:
    """The tensor to hook for an output's gradient: the output, or the tensor that the layer made it a view of.

    An in-place operation on a view cuts the view itself out of the graph, so that a hook on it is never called. The
    output of a Linear for an input of three dimensions is such a view.
    """
    base = autograd.viewed(output)
    made_here = base is not None and base.grad_fn is not None and autograd.node_number(base.grad_fn) >= first_node
    return base if base is not None and made_here else output


def _nodes_at_inputs(outputs: Iterable[Tensor], opened: _OpenCall) -> dict[Edge, dict[Node, list[int]]]:
    """For each input the nodes of the graph that use it inside the layer, each with the places of its gradient."""
    nodes: dict[Edge, dict[Node, list[int]]] = {}
    ahead = [tensor.grad_fn for tensor in outputs if opened.input_edges]
    visited: set[Node] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in visited or autograd.node_number(node) < opened.first_node:  # made before the call
            continue
        visited.add(node)
        for place, edge in enumerate(node.next_functions):
            if edge in opened.input_edges:
                nodes.setdefault(edge, {}).setdefault(node, []).append(place)
            else:
                ahead.append(edge[0])
    return nodes


def _brings_gradient(layer: nn.Module) -> bool:
    """Whether the running backward pass brings the layer's weights a gradient; one for the input alone does not.

    For a weight in shards the answer is always yes: the graph holds other tensors, from which it was gathered.
    """
    weights = [w for w in layer.parameters() if w.requires_grad]
    return not weights or any(shards.is_spread(w) or autograd.will_run(get_gradient_edge(w)[0]) for w in weights)
