"""The tensors in what a layer takes and returns, and where they are in the autograd graph. No hooks here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from vgrad_torch.watching import autograd

Edge = tuple[Node, int]
"""Where a gradient arrives in the autograd graph: a node, and which of its inputs."""


def tensors(x: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a layer takes or returns: also inside tuples, dicts and dataclasses."""
    if isinstance(x, Tensor):
        if x.is_floating_point() or x.is_complex():
            yield x
    elif isinstance(x, Mapping):
        yield from (tensor for value in x.values() for tensor in tensors(value))
    elif isinstance(x, tuple | list):
        yield from (tensor for value in x for tensor in tensors(value))
    elif is_dataclass(x) and not isinstance(x, type):
        yield from (tensor for field in fields(x) for tensor in tensors(getattr(x, field.name, None)))


def edges(inputs: Any) -> Iterator[Edge]:
    """Where the graph enters inputs. Of a view also its base, since an in-place operation becomes the base's node."""
    for x in tensors(inputs):
        for tensor in (x, autograd.viewed(x)):
            if tensor is not None and tensor.requires_grad:
                yield tensor.grad_fn or get_gradient_edge(tensor)[0], tensor.output_nr


def hookable(output: Tensor, first_node: int) -> Tensor:
    """The tensor to hook for an output's gradient: the output, or the tensor that the layer made it a view of.

    An in-place operation on a view cuts the view itself out of the graph, so that a hook on it is never called. The
    output of a Linear for an input of three dimensions is such a view.
    """
    base = autograd.viewed(output)
    made_here = base is not None and base.grad_fn is not None and autograd.node_number(base.grad_fn) >= first_node
    return base if base is not None and made_here else output


def nodes_at_inputs(
    outputs: Iterable[Tensor], input_edges: set[Edge], first_node: int
) -> dict[Edge, dict[Node, list[int]]]:
    """For each input the nodes of the graph that use it inside the layer, each with the places of its gradient."""
    nodes: dict[Edge, dict[Node, list[int]]] = {}
    ahead = [tensor.grad_fn for tensor in outputs if input_edges]
    visited: set[Node] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in visited or autograd.node_number(node) < first_node:  # made before the call
            continue
        visited.add(node)
        for place, edge in enumerate(node.next_functions):
            if edge in input_edges:
                nodes.setdefault(edge, {}).setdefault(node, []).append(place)
            else:
                ahead.append(edge[0])
    return nodes
