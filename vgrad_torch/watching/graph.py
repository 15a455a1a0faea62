"""Which layer's output reaches which layer's input, read from the autograd graph while the forward pass builds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.autograd.graph import Node

from vgrad_torch.watching import autograd


class Call(NamedTuple):
    """One call of one layer.

    `forward_pass` counts the forward passes of the sample from 0, `number` the calls of this layer in it from 1.
    """

    forward_pass: int
    name: str
    number: int


class Junction(NamedTuple):
    """A node of the autograd graph where the outputs of several layers meet: a sum, a product, a concatenation."""

    forward_pass: int
    node: int


Vertex = Call | Junction


class _Matrices(NamedTuple):
    """What a node stands for that only bare parameters reach: their names."""

    names: tuple[str, ...]


class Builder(Protocol):
    """What `Graph` asks for while it walks."""

    def use_matrix(self, name: str, node: Node, data: Sequence[int]) -> Call:
        """A node uses a bare parameter; `data` are the places of its other inputs. The call it belongs to."""

    def join(self, node: Node, sources: Sequence[Vertex]) -> Junction:
        """These vertices meet at a node."""


class Graph:
    """The vertices that feed each vertex, over all forward passes of a sample.

    Each node of the autograd graph is visited once. Nodes are remembered by their numbers, so no node and no tensor is
    kept alive. A vertex for each junction keeps the number of edges proportional to the number of nodes, also where a
    residual stream carries the outputs of all layers before.

    `matrices` are the weights by their ids, each with the name of its layer. One that is used outside a call of its
    layer counts as a call.

    `sources` has the direct sources of each vertex. `position` orders the vertices as the forward pass made them.
    """

    def __init__(self, builder: Builder, matrices: Mapping[int, str]) -> None:
        self.sources: dict[Vertex, dict[Vertex, None]] = {}
        self.position: dict[Vertex, int] = {}
        self._builder = builder
        self._matrices = matrices
        self._consumers: dict[Vertex, list[Vertex]] | None = None  # made once the sample is complete
        self._meaning: dict[int, Vertex | _Matrices | None] = {}

    def enter(self, call: Call, inputs: Iterable[Node]) -> None:
        """A call begins. These nodes made its inputs."""
        self.sources.setdefault(call, {})
        for node in inputs:
            meaning = self._resolve(node)
            if not isinstance(meaning, _Matrices | None):
                self._feed(call, meaning)

    def leave(self, call: Call, outputs: Iterable[Tensor], first_node: int) -> None:
        """A call ends. It has made these tensors; nodes from `first_node` on are its own."""
        self.position.setdefault(call, autograd.next_node_number())
        for tensor in outputs:
            for x in (tensor, autograd.viewed(tensor)):
                if x is not None and x.grad_fn is not None and (n := autograd.node_number(x.grad_fn)) >= first_node:
                    self._meaning[n] = call

    def follow(self, outputs: Iterable[Tensor]) -> None:
        """Find the bare parameters that were used on the way to these tensors."""
        for tensor in outputs:
            if tensor.grad_fn is not None:
                self._resolve(tensor.grad_fn)

    def consumers(self, vertex: Vertex) -> Sequence[Vertex]:
        """What gets its input from a vertex."""
        if self._consumers is None:
            self._consumers = {}
            for consumer, sources in self.sources.items():
                for source in sources:
                    self._consumers.setdefault(source, []).append(consumer)
        return self._consumers.get(vertex, ())

    def _feed(self, vertex: Vertex, source: Vertex) -> None:
        if source != vertex:  # a bare parameter may be used several times in one call
            self.sources[vertex][source] = None

    def _resolve(self, node: Node) -> Vertex | _Matrices | None:
        """What the tensor that this node made comes from. Without recursion, because graphs are deep."""
        ahead = [node]
        while ahead:
            current = ahead[-1]
            leaf = autograd.leaf(current)
            number = autograd.node_number(current)
            if leaf is not None or number in self._meaning:
                ahead.pop()
                continue
            children = [child for child, _ in current.next_functions if child is not None]
            missing = [c for c in children if autograd.leaf(c) is None and autograd.node_number(c) not in self._meaning]
            if missing:
                ahead += missing
            else:
                self._meaning[number] = self._combined(current)
                ahead.pop()
        return self._known(node)

    def _known(self, node: Node | None) -> Vertex | _Matrices | None:
        if node is None:
            return None
        leaf = autograd.leaf(node)
        if leaf is None:
            return self._meaning[autograd.node_number(node)]
        name = self._matrices.get(id(leaf))
        return None if name is None else _Matrices((name,))

    def _combined(self, node: Node) -> Vertex | _Matrices | None:
        """What a node stands for whose inputs are known."""
        inputs = [self._known(child) for child, _ in node.next_functions]
        vertices = list(dict.fromkeys(x for x in inputs if isinstance(x, Call | Junction)))
        names = tuple(dict.fromkeys(name for x in inputs if isinstance(x, _Matrices) for name in x.names))
        if names and (len(inputs) == 1 or (len(names) > 1 and not vertices)):
            return _Matrices(names)  # a transposed or converted matrix, or one made of several
        if names:
            data = [place for place, x in enumerate(inputs) if isinstance(x, Call | Junction)]
            calls = [self._builder.use_matrix(name, node, data) for name in names]
            for call in calls:
                self.sources.setdefault(call, {})
                self.position.setdefault(call, autograd.node_number(node))
                for vertex in vertices:
                    self._feed(call, vertex)
            return calls[-1]
        if len(vertices) < 2:
            return vertices[0] if vertices else None
        junction = self._builder.join(node, vertices)
        self.sources[junction] = dict.fromkeys(vertices)
        self.position[junction] = autograd.node_number(node)
        return junction
