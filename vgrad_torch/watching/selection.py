"""Which layers of a model are watched, and under which names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from vgrad_torch.errors import UsageError
from vgrad_torch.watching.layer import Layer, own_parameters

Layers = type[nn.Module] | tuple[type[nn.Module], ...] | str | Callable[[str, nn.Module], bool] | None
"""Which layers to watch: a type, several types, a regular expression over names, or a function of name and module.

None stands for every module with a weight of two or more dimensions that is trained, see `select`.
"""

_WHOLE = (
    nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
"""Modules with all their weights in one layer. Other modules with several matrices have one layer for each matrix."""


class Selection(NamedTuple):
    """The watched layers by name, and those that are not watched because they are not trained."""

    layers: Mapping[str, Layer]
    frozen: Mapping[str, Layer] = MappingProxyType({})

    def thawed(self) -> Selection:
        """The same, with those watched that are trained by now."""
        trained = {name: layer for name, layer in self.frozen.items() if _is_trained(layer)}
        if not trained:
            return self
        frozen = {name: layer for name, layer in self.frozen.items() if name not in trained}
        return Selection({**self.layers, **trained}, frozen)


def select(model: nn.Module, layers: Layers = None) -> Selection:
    """The watched layers by their names in `named_modules`, without the parts that torch.compile and DDP add.

    With `layers=None`: every module that owns a weight of two or more dimensions, except normalisation. Linear,
    convolutions, embeddings and recurrent layers are one layer each, and so is any module with a single matrix and no
    submodules. A module that computes with several parameters of its own (as MultiheadAttention does) has one layer for
    each matrix, named after the parameter. Modules of which no parameter requires a gradient are not watched: they are
    listed in `frozen`.

    A model that is a single layer is named after its type.

    Raises:
        UsageError: no layer matches, or the regular expression is not valid.
    """
    modules = {_plain_name(name, model): m for name, m in model.named_modules()}
    found = _with_weights(modules) if layers is None else _matching(modules, layers)
    if not found:
        kinds = ", ".join(sorted({type(m).__name__ for m in modules.values()}))
        raise UsageError(
            f"the model has no layer that matches {_describe(layers)}; its modules are of type {kinds}. Choose "
            "layers with layers=, a type or a regular expression over names (on the command line: --layers)"
        )
    named = {name or layer.kind: layer for name, layer in found.items()}
    if layers is not None:
        return Selection(named)
    thawed = Selection({}, named).thawed()
    return thawed if thawed.layers else Selection(named)


def _is_trained(layer: Layer) -> bool:
    own = own_parameters(layer.module) if layer.matrix is None else layer.weights()
    return any(parameter.requires_grad for parameter in own)


# --- default layers --------------------------------------------------------------------------------------------------


def _with_weights(modules: Mapping[str, nn.Module]) -> dict[str, Layer]:
    found: dict[str, Layer] = {}
    for name, module in modules.items():
        caller = None if _has_forward(module) else _caller(name, modules)
        found.update((key, layer) for key, layer in _layers_of(name, module, caller) if key not in found)
    return found


def _has_forward(module: nn.Module) -> bool:
    """Whether a module can be called; a ParameterList only holds parameters."""
    return type(module).forward is not nn.Module.forward


def _caller(name: str, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The nearest module above that can be called."""
    while name:
        name = name.rpartition(".")[0]
        if name in modules and _has_forward(modules[name]):
            return modules[name]
    return None


def _layers_of(name: str, module: nn.Module, caller: nn.Module | None = None) -> Iterator[tuple[str, Layer]]:
    """The layers that a module consists of itself, without its submodules; `caller` uses it if it cannot be called."""
    if caller is not None:
        yield from _bare(name, module, caller)
    elif isinstance(module, nn.MultiheadAttention):
        yield from _bare(name, module)
        # its forward pass does not call out_proj, it only uses the weight
        yield f"{name}.out_proj".lstrip("."), Layer(module.out_proj, "weight", caller=module)
    elif isinstance(module, _WHOLE):
        yield name, Layer(module)
    elif "Norm" not in type(module).__name__:
        matrices = [p for p in own_parameters(module) if _is_matrix(p)]
        if len(matrices) == 1 and not any(map(own_parameters, module.children())):
            yield name, Layer(module)
        else:
            yield from _bare(name, module)


def _bare(name: str, module: nn.Module, caller: nn.Module | None = None) -> Iterator[tuple[str, Layer]]:
    for parameter_name, parameter in module.named_parameters(recurse=False):
        if _is_matrix(parameter):
            yield f"{name}.{parameter_name}".lstrip("."), Layer(module, parameter_name, caller)


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter has two dimensions or more. A class token of the shape [1, 1, width] is a vector."""
    if isinstance(parameter, UninitializedParameter):
        return True
    return parameter.dim() == 2 or sum(size > 1 for size in parameter.shape) >= 2


# --- with a choice ---------------------------------------------------------------------------------------------------


def _matching(modules: Mapping[str, nn.Module], layers: Layers) -> dict[str, Layer]:
    matches = _filter(layers)
    found = {name: Layer(module) for name, module in modules.items() if matches(name, module)}
    if isinstance(layers, str):  # a regular expression also finds bare parameters
        taken = {layer.module for layer in found.values()}
        bare = {k: x for k, x in _with_weights(modules).items() if x.matrix and x.module not in taken}
        found |= {name: layer for name, layer in bare.items() if matches(name, layer.module)}
    return found


def _filter(layers: Layers) -> Callable[[str, nn.Module], bool]:
    if isinstance(layers, str):
        try:
            pattern = re.compile(layers)
        except re.error as error:
            raise UsageError(f"{layers!r} is not a regular expression over layer names: {error}") from None
        return lambda name, _: bool(name and pattern.search(name))
    if isinstance(layers, type) or (isinstance(layers, tuple) and all(isinstance(t, type) for t in layers)):
        return lambda _, module: isinstance(module, layers)
    if callable(layers):
        return layers
    allowed = "a type, a tuple of types, a regular expression, a function of (name, module), or None"
    raise UsageError(f"layers must be {allowed}, not {layers!r}")


def _describe(layers: Layers) -> str:
    """What was asked for, for a message.

    >>> _describe(nn.Linear), _describe((nn.Linear, nn.Conv2d)), _describe("conv.*"), _describe(None)
    ('Linear', 'Linear or Conv2d', "'conv.*'", 'a module with a weight of two dimensions')
    """
    if layers is None:
        return "a module with a weight of two dimensions"
    if isinstance(layers, tuple):
        return " or ".join(map(_describe, layers))
    return layers.__name__ if isinstance(layers, type) else repr(layers)


def _plain_name(name: str, model: nn.Module) -> str:
    """A module's name without the parts that torch.compile and DistributedDataParallel add."""
    parts = name.split(".")
    holders = (model.get_submodule(".".join(parts[:i])) for i in range(len(parts)))
    return ".".join(part for part, holder in zip(parts, holders, strict=True) if not _is_added(part, holder))


def _is_added(part: str, holder: nn.Module) -> bool:
    return part == "_orig_mod" or isinstance(holder, DistributedDataParallel)  # torch.compile's name is _orig_mod
