"""What could mend a network, as lines of code: they are tried as they stand, and shown to be copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vgrad_torch.models.activations import ACTIVATIONS
from vgrad_torch.models.initializers import INITIALIZERS
from vgrad_torch.theory.criticality import critical_variances
from vgrad_torch.trials.chains import activation_of
from vgrad_torch.trials.measure import calls

KINDS = ("initializer", "activation", "activation and initializer", "norm", "residual")
"""Simplest first."""


@dataclass(frozen=True, slots=True)
class Mend:
    """A change of a model. `code` needs `model` and, for LSUV, the batch's input `x`, and may set `model` anew.

    `flags` are the options of `vgrad train` that do the same to a network of `build_mlp`, those to be left out with
    None; None if none do.
    """

    name: str
    kind: str
    code: str
    flags: Mapping[str, str | bool | None] | None


def mends(model: nn.Module, x: Any) -> Iterator[Mend]:
    """All that can be done with a model as it is built; `x` is the input it is called with."""
    plain, weights, hidden = activation_of(model) is not None, _weights(model, x), _hidden_activations(model, x)
    yield from (Mend(name, "initializer", _IMPORT + code, _init(name)) for name, code in weights.items())
    present = sorted({type(m).__name__ for m in hidden.values()})
    for name, partner in (_PARTNERS if present else {}).items():
        if present != [_class(name)]:
            swapped = _IMPORT + _swap(model, hidden, _class(name))
            yield Mend(name, "activation", swapped, {"act": name})
            flags = (both := _init(partner)) and {"act": name, **both}
            if partner in weights:
                yield Mend(f"{name} and {partner}", "activation and initializer", swapped + weights[partner], flags)
    if isinstance(model, nn.Sequential) and sum(isinstance(m, nn.Linear) for m in model) > 1:
        for name, norm in {"batch": "BatchNorm1d", "layer": "LayerNorm"}.items():
            yield Mend(f"{name} norm", "norm", _IMPORT + _NORM.format(norm=norm), {"norm": name} if plain else None)
    if plain and any(m.in_features == m.out_features for m in list(_linears(model))[:-1]):
        yield Mend("residual", "residual", _IMPORT + _RESIDUAL, {"residual": True})
        both_ways = _IMPORT + _NORM.format(norm="BatchNorm1d") + _RESIDUAL
        yield Mend("residual and batch norm", "residual", both_ways, {"residual": True, "norm": "batch"})


def untried(model: nn.Module, x: Any) -> Iterator[str]:
    """What cannot be tried with a model, and why; a sentence for each."""
    if any(_computed(m) for m in model.modules()):
        yield "No other initial weights were tried, as this model computes weights from other parameters."
    if not _hidden_activations(model, x):
        yield "No other activation was tried, as no known one is called, as a module of its own, before the last layer."


def _computed(module: nn.Module) -> bool:
    """Whether the weight is made anew from other parameters, as weight_norm does: to initialise it does nothing."""
    return isinstance(module, _WEIGHTED) and "weight" not in dict(module.named_parameters(recurse=False))


def _hidden_activations(model: nn.Module, x: Any) -> dict[str, nn.Module]:
    """Names and modules of the activations that are called before the last layer; what comes after is the loss's."""
    known = {name: m for name, m in model.named_modules(remove_duplicate=False) if type(m) in _TYPES}
    order = calls(model, x, {*known.values(), *(m for m in model.modules() if isinstance(m, _WEIGHTED))})
    last = max((i for i, module in enumerate(order) if isinstance(module, _WEIGHTED)), default=0)
    return {name: m for name, m in known.items() if m in order[:last]}


def _swap(model: nn.Module, hidden: Mapping[str, nn.Module], new: str) -> str:
    """Code that puts another activation in the hidden ones' places, and spares the others of their types."""
    types = {type(m) for m in hidden.values()}
    modules = model.named_modules(remove_duplicate=False)
    spared = [name for name, m in modules if type(m) in types and name not in hidden]
    but = f" and name not in {spared}" if spared else ""
    return _SWAP.format(old=_either(sorted(t.__name__ for t in types)), but=but, new=new)


def _init(name: str) -> dict[str, str | bool | None] | None:
    return {"init": name, "gain": None, "bias": None} if name in INITIALIZERS else None


def _weights(model: nn.Module, x: Any) -> Mapping[str, str]:
    """Initializers by name; none where weights are computed from other parameters."""
    if any(_computed(m) for m in model.modules()):
        return {}
    present = sorted({type(m).__name__ for m in model.modules() if type(m) in _WEIGHTED})
    names = {"he": "kaiming_normal_", "glorot": "xavier_uniform_", "orthogonal": "orthogonal_"}
    loop = _EACH.format(kinds=_either(present))
    found = {name: f"{loop}        nn.init.{function}(layer.weight)\n{_NO_BIAS}" for name, function in names.items()}
    name = activation_of(model)
    for variance in critical_variances(name)[-1:] if name else ():
        found[f"weights of variance {variance:.3g} / fan-in"] = loop + _SCALE.format(variance=variance)
    arguments = "**x" if isinstance(x, Mapping) else "*x" if isinstance(x, tuple) else "x"
    found["lsuv"] = "".join([_IMPORT_TORCH, loop, "        nn.init.orthogonal_(layer.weight)\n", _NO_BIAS,
                             _LSUV.format(arguments=arguments)])  # fmt: skip
    return found


def _linears(model: nn.Module) -> Iterator[nn.Linear]:
    return (m for m in model.modules() if isinstance(m, nn.Linear))


def _class(name: str) -> str:
    return type(ACTIVATIONS[name]()).__name__


def _either(names: list[str]) -> str:
    """A class, or a tuple of classes, for isinstance."""
    found = ", ".join(f"nn.{name}" for name in names) or "nn.Linear"
    return f"({found})" if len(names) > 1 else found


_TYPES = {type(make()) for make in ACTIVATIONS.values()} - {nn.Identity}
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PARTNERS = {"relu": "he", "tanh": "orthogonal", "gelu": "lsuv"}
"""Activations to be tried, each with the initializer made for it."""

_IMPORT = "from torch import nn\n"
_IMPORT_TORCH = "import torch\n"
_EACH = """\
for layer in model.modules():
    if isinstance(layer, {kinds}):
"""
_NO_BIAS = """\
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
"""
_SCALE = """\
        nn.init.normal_(layer.weight, std=({variance:.4g} / layer.weight[0].numel()) ** 0.5)
"""
_LSUV = """\
        for attempt in range(10):  # rescale until the output, for the batch x, has a standard deviation of one
            seen = []
            hook = layer.register_forward_hook(lambda layer, x, output: seen.append(output.std()))
            with torch.no_grad():
                model({arguments})
            hook.remove()
            if not seen or not 0 < seen[0] < float("inf") or abs(seen[0] - 1) < 0.1:
                break
            layer.weight.data /= seen[0]
"""
_SWAP = """\
for name, module in list(model.named_modules(remove_duplicate=False)):
    if isinstance(module, {old}){but}:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, nn.{new}())
"""
_NORM = """\
last = [layer for layer in model if isinstance(layer, nn.Linear)][-1]
layers = {{}}
for name, layer in model._modules.items():
    layers[name] = layer
    if isinstance(layer, nn.Linear) and layer is not last:
        layers[f"norm_{{name}}"] = nn.{norm}(layer.out_features).to(layer.weight)
model = nn.Sequential()
for name, layer in layers.items():
    model.add_module(name, layer)
"""
_RESIDUAL = """\
class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


layers = list(model)
starts = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
model = nn.Sequential(*layers[: starts[0]])
for start, end in zip(starts, starts[1:]):
    same = layers[start].in_features == layers[start].out_features
    model.append((Residual if same else nn.Sequential)(*layers[start:end]))
model.append(layers[-1])
"""
