"""Hooks on layers during one sample: they catch outputs, output gradients and input gradients. No statistics here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from vgrad_torch.distributed import shards
from vgrad_torch.watching import autograd, sequences
from vgrad_torch.watching.gradient_sum import GradientSum
from vgrad_torch.watching.graph import Call, Graph, Junction, Vertex
from vgrad_torch.watching.layer import Flow, Layer
from vgrad_torch.watching.tensors import Edge, edges, hookable, nodes_at_inputs, tensors


class Observer(Protocol):
    """What `Hooks` reports to."""

    def begin_backward(self, forward_pass: int) -> None:
        """A backward pass over this forward pass begins. No gradient has reached a watched weight yet."""

    def observe(self, call: Call, quantity: str, tensor: Tensor) -> None:
        """A tensor of a call: its output, output gradient or input gradient; `quantity` is a word of `QUANTITIES`."""

    def observe_junction(self, junction: Junction, gradient: Tensor) -> None:
        """The gradient that arrives where the outputs of several layers meet."""

    def observe_over_time(self, call: Call, where: str, norms: Tensor) -> None:
        """The norm of the gradient at each step of a recurrent layer's `input` or `output`, or an embedding's output.

        `where` is `input`, `output` or `positions`.
        """


class Hooks:
    """Watches the given layers from `attach` until `detach`, and reports tensors to the observer.

    The output gradient is caught by a hook on the output tensor, which a forward hook sets, so an in-place activation
    after the layer does not matter. The input gradient is caught by hooks on the nodes of the autograd graph that the
    layer adds to its input. So it is this layer's own contribution W^T delta, also where other layers use the same
    input. Input, output and graph are read and never replaced: no bit of the computation changes.

    Not reported: forward passes without gradients (evaluation) or inside torch.func, a forward pass that activation
    checkpointing repeats, and backward passes that bring the layer's weights no gradient (of a gradient penalty).

    A bare parameter has no call of its own, and some modules are not called because another one uses their weight. The
    nodes of the autograd graph that use these matrices are found from what comes behind them; the gradient that arrives
    at such a node is the output gradient.

    The hooks sit on the layers, because torch.compile's modules warn of global ones. They are not copied or
    pickled with a model. With `input_gradients=False` there are no hooks for input gradients.

    `order` ranks the layers by their first call. `flows` has the numbers of features that went through a layer.
    `graph` says which call feeds which. `recomputed` says that some layers were seen in a repeated forward pass only;
    then the graph is incomplete.
    """

    def __init__(self, layers: Mapping[str, Layer], observer: Observer, *, input_gradients: bool = True) -> None:
        self.order: dict[str, int] = {}
        self.flows: dict[str, Flow] = {name: Flow() for name in layers}
        matrices = {id(w): name for name, layer in layers.items() for w in layer.weights() if w.dim() >= 2}
        self.graph = Graph(self, matrices)
        self.recomputed = False
        self._layers = layers
        self._positions = sequences.positions_dimension(layer.module for layer in layers.values())
        self._uses: dict[str, Call] = {}  # layer whose matrix is used -> the call that this belongs to
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
        """Set two hooks on each layer, and on each module that computes with bare parameters."""
        callers: dict[nn.Module, list[str]] = {}
        for name, layer in self._layers.items():
            if layer.matrix is None:
                self._hook(layer.module, partial(self._before_forward, name), partial(self._after_forward, name))
            else:
                callers.setdefault(layer.caller or layer.module, []).append(name)
        for module, names in callers.items():
            self._hook(module, partial(self._before_caller, names), self._after_caller)

    def _hook(self, module: nn.Module, before: Callable[..., Any], after: Callable[..., None]) -> None:
        self._handles.append(module.register_forward_pre_hook(UncopiedHook(before), with_kwargs=True))
        self._handles.append(module.register_forward_hook(UncopiedHook(after)))

    def detach(self) -> None:
        """Remove all hooks, also those on tensors and nodes of a graph that still exists."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._observer = None

    def _before_forward(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self.order.setdefault(name, len(self.order))
        call = self._count_call(name)
        if call is None:
            self._open_calls[name].append(None)
            return None
        inputs, first_node = set(edges((args, kwargs))), autograd.next_node_number()
        self.graph.enter(call, (node for node, _ in inputs))
        self._open_calls[name].append(_OpenCall(call, first_node, inputs if self._input_gradients else set()))
        if not (self._input_gradients and isinstance(module, nn.RNNBase)):
            return None
        observed = sequences.observed(module, args, partial(self._catch_over_time, call))
        return observed and (observed, kwargs)

    def _after_forward(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        opened = self._open_calls[name].pop() if self._open_calls[name] else None
        if opened is None:
            return
        outputs = list({id(tensor): tensor for tensor in tensors(output)}.values())
        self.flows[name].see(next(tensors(args), None), next(iter(outputs), None))
        self.graph.leave(opened.call, outputs, opened.first_node)
        for tensor in outputs:
            self._report(opened.call, "output", tensor)
            if tensor.requires_grad:
                catch = partial(self._catch_gradient, opened.call, "output_gradient")
                self._handles.append(hookable(tensor, opened.first_node).register_hook(catch))
        over_time = self._observe_over_time(opened.call, module, args, outputs)
        for edge, nodes in nodes_at_inputs(outputs, opened.input_edges, opened.first_node).items():
            catch = partial(self._catch_gradient, opened.call, "input_gradient")
            if edge == over_time and isinstance(module, nn.RNNBase):
                catch = partial(self._catch_at_sequence, opened.call, module, args)
            total = GradientSum(list(nodes), catch)
            for node, places in nodes.items():
                self._handles.append(node.register_hook(partial(total.add, places)))

    def _before_caller(self, names: Sequence[str], *_: Any) -> None:
        for name in names:
            self.order.setdefault(name, len(self.order))
            if call := self._count_call(name):
                self._uses[name] = call

    def _after_caller(self, _: nn.Module, args: Any, output: Any) -> None:
        if torch.is_grad_enabled() and not autograd.in_backward():
            self.graph.follow(tensors(output))

    # --- part of `graph.Builder` ---

    def use_matrix(self, name: str, node: Node, data: Sequence[int]) -> Call:
        """Watch a node that uses a bare parameter; `data` are the places of its other inputs."""
        self.order.setdefault(name, len(self.order))
        call = self._uses.setdefault(name, Call(self._forward_pass, name, 1))
        self._handles.append(node.register_prehook(partial(self._catch_at_matrix, call)))
        if self._input_gradients and data:
            total = GradientSum([node], partial(self._catch_gradient, call, "input_gradient"))
            self._handles.append(node.register_hook(partial(total.add, list(data))))
        return call

    def join(self, node: Node, sources: Sequence[Vertex]) -> Junction:
        """Watch a node where the outputs of several layers meet."""
        junction = Junction(self._forward_pass, autograd.node_number(node))
        self._handles.append(node.register_prehook(partial(self._catch_at_junction, junction, self._named(sources[0]))))
        return junction

    def _named(self, vertex: Vertex) -> str:
        """The name of a layer that feeds this vertex, or is it."""
        while isinstance(vertex, Junction):
            vertex = next(iter(self.graph.sources[vertex]))
        return vertex.name

    def _catch_at_matrix(self, call: Call, gradients: Sequence[Tensor | None]) -> None:
        if gradients[0] is not None:
            self.flows[call.name].see(None, gradients[0])
        self._catch_gradient(call, "output_gradient", gradients[0])

    def _catch_at_junction(self, junction: Junction, name: str, gradients: Sequence[Tensor | None]) -> None:
        if self._observer is not None and gradients[0] is not None and self._reaches_weights(name):
            self._observer.observe_junction(junction, gradients[0])

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
            self._uses.clear()
            self._seen_in_forward.clear()

    def _catch_gradient(self, call: Call, quantity: str, gradient: Tensor | None) -> None:
        if gradient is None or self._observer is None or not self._reaches_weights(call.name):
            return
        if not self._backward_began:
            self._backward_began = True
            self._observer.begin_backward(call.forward_pass)
        self._report(call, quantity, gradient)

    def _observe_over_time(self, call: Call, module: nn.Module, args: Any, outputs: Sequence[Tensor]) -> Edge | None:
        """Watch a recurrent layer's output, and say where its input is in the graph, if it requires a gradient.

        Of an embedding the output is watched.
        """
        if isinstance(module, nn.Embedding) and self._positions is not None:
            sequences.observe_positions(self._positions, args, outputs, partial(self._catch_over_time, call))
        if not (self._input_gradients and isinstance(module, nn.RNNBase)):
            return None
        sequences.observe_output(module, args, outputs, partial(self._catch_over_time, call))
        return next(edges(sequences.sequence(args)), None)

    def _catch_at_sequence(self, call: Call, module: nn.RNNBase, args: Any, gradient: Tensor) -> None:
        self._catch_gradient(call, "input_gradient", gradient)
        self._catch_over_time(call, "input", sequences.norms(module, gradient, args))

    def _catch_over_time(self, call: Call, where: str, norms: Tensor) -> None:
        if self._observer is not None and self._reaches_weights(call.name):
            self._observer.observe_over_time(call, where, norms)

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


class UncopiedHook:
    """A hook that is not copied or pickled with its module: the copy gets one that does nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        """What the hook does."""
        return self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # takes anything, returns None, and loads without this package


def remove_all(model: nn.Module) -> None:
    """Remove the hooks that any `Hooks` set on the model's layers, so that no observer gets what follows."""
    for module in model.modules():
        for table in autograd.forward_hooks(module):
            for key in [key for key, hook in table.items() if isinstance(hook, UncopiedHook)]:
                del table[key]


class _OpenCall(NamedTuple):
    """A call that has begun: the number of the next node of the graph, and the edges that lead to its inputs."""

    call: Call
    first_node: int
    input_edges: set[Edge]


def _brings_gradient(layer: Layer) -> bool:
    """Whether the running backward pass brings the layer's weights a gradient; one for the input alone does not.

    For a weight in shards the answer is always yes: the graph holds other tensors, from which it was gathered.
    """
    own = layer.module.parameters() if layer.matrix is None else layer.weights()
    weights = [w for w in own if w.requires_grad]
    return not weights or any(shards.is_spread(w) or autograd.will_run(get_gradient_edge(w)[0]) for w in weights)
