"""Remedies for a network, as lines of code. The same lines are tried on a copy of the model and shown to the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vgrad_torch.models.activations import ACTIVATIONS
from vgrad_torch.models.initializers import INITIALIZERS
from vgrad_torch.theory.criticality import critical_variances
from vgrad_torch.trials.chains import activation_of
from vgrad_torch.trials.measure import call_order

KINDS = ("initializer", "activation", "activation and initializer", "norm", "residual")
"""Kinds of remedies, the simplest change first."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change of a model.

    Attributes:
        name: what it is called in the table.
        kind: one of `KINDS`.
        code: Python code that uses `model` and, for LSUV, the batch's input `x`. It may assign a new `model`.
        flags: options of `vgrad train` that make the same change to a network of `build_mlp`; None as a value means
            that the option must be left out. None if there are no such options.
    """

    name: str
    kind: str
    code: str
    flags: Mapping[str, str | bool | None] | None


def remedies(model: nn.Module, x: Any) -> Iterator[Remedy]:
    """All remedies that can be applied to this model, called with the input x."""
    initializers, hidden = _initializers(model, x), _hidden_activations(model, x)
    for name, code in initializers.items():
        yield Remedy(name, "initializer", _IMPORT + code, _init_flags(name))
    present = sorted({type(m).__name__ for m in hidden.values()})
    for name, partner in (_ACTIVATIONS_TO_TRY if present else {}).items():
        new = type(ACTIVATIONS[name]()).__name__
        if present != [new]:
            code = _IMPORT + _swap_code(model, hidden, new)
            yield Remedy(name, "activation", code, {"act": name})
            flags = (init_flags := _init_flags(partner)) and {"act": name, **init_flags}
            if partner in initializers:
                both = code + initializers[partner]
                yield Remedy(f"{name} and {partner}", "activation and initializer", both, flags)
    plain = activation_of(model) is not None
    if isinstance(model, nn.Sequential) and sum(isinstance(m, nn.Linear) for m in model) > 1:
        for name, norm in {"batch": "BatchNorm1d", "layer": "LayerNorm"}.items():
            yield Remedy(f"{name} norm", "norm", _IMPORT + _NORM.format(norm=norm), {"norm": name} if plain else None)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if plain and any(m.in_features == m.out_features for m in linears[:-1]):
        yield Remedy("residual", "residual", _IMPORT + _RESIDUAL, {"residual": True})
        code = _IMPORT + _NORM.format(norm="BatchNorm1d") + _RESIDUAL
        yield Remedy("residual and batch norm", "residual", code, {"residual": True, "norm": "batch"})


def untried(model: nn.Module, x: Any) -> Iterator[str]:
    """One sentence for each kind of remedy that cannot be tried on this model, with the reason."""
    if any(map(_has_computed_weight, model.modules())):
        yield "No other initial weights were tried, because the model computes weights from other parameters."
    if not _hidden_activations(model, x):
        yield "No other activation was tried, because the model calls no known activation module before its last layer."


def _has_computed_weight(module: nn.Module) -> bool:
    """Whether the weight is computed from other parameters, as by weight_norm; initialising it has no effect then."""
    return isinstance(module, _WEIGHTED) and "weight" not in dict(module.named_parameters(recurse=False))


def _hidden_activations(model: nn.Module, x: Any) -> dict[str, nn.Module]:
    """Name -> module, of the activations called before the last layer. Later ones belong to the loss."""
    known = {name: m for name, m in model.named_modules(remove_duplicate=False) if type(m) in _ACTIVATION_TYPES}
    order = call_order(model, x, {*known.values(), *(m for m in model.modules() if isinstance(m, _WEIGHTED))})
    last = max((i for i, module in enumerate(order) if isinstance(module, _WEIGHTED)), default=0)
    return {name: m for name, m in known.items() if m in order[:last]}


def _swap_code(model: nn.Module, hidden: Mapping[str, nn.Module], new: str) -> str:
    """Code that replaces the hidden activations, but no others of the same types."""
    types = {type(m) for m in hidden.values()}
    modules = model.named_modules(remove_duplicate=False)
    others = [name for name, m in modules if type(m) in types and name not in hidden]
    condition = f" and name not in {others}" if others else ""
    return _SWAP.format(old=_class_or_tuple(sorted(t.__name__ for t in types)), condition=condition, new=new)


def _init_flags(name: str) -> dict[str, str | bool | None] | None:
    return {"init": name, "gain": None, "bias": None} if name in INITIALIZERS else None


def _initializers(model: nn.Module, x: Any) -> Mapping[str, str]:
    """Name -> code; empty if the model computes weights from other parameters."""
    if any(map(_has_computed_weight, model.modules())):
        return {}
    present = sorted({type(m).__name__ for m in model.modules() if type(m) in _WEIGHTED})
    functions = {"he": "kaiming_normal_", "glorot": "xavier_uniform_", "orthogonal": "orthogonal_"}
    loop = _EACH.format(types=_class_or_tuple(present))
    codes = {
        name: f"{loop}        nn.init.{function}(layer.weight)\n{_NO_BIAS}" for name, function in functions.items()
    }
    activation = activation_of(model)
    for variance in critical_variances(activation)[-1:] if activation else ():
        codes[f"weights of variance {variance:.3g} / fan-in"] = loop + _SCALE.format(variance=variance)
    arguments = "**x" if isinstance(x, Mapping) else "*x" if isinstance(x, tuple) else "x"
    orthogonal = loop + "        nn.init.orthogonal_(layer.weight)\n"
    codes["lsuv"] = _IMPORT_TORCH + orthogonal + _NO_BIAS + _LSUV.format(arguments=arguments)
    return codes


def _class_or_tuple(names: list[str]) -> str:
    """The second argument of isinstance, as code."""
    classes = ", ".join(f"nn.{name}" for name in names) or "nn.Linear"
    return f"({classes})" if len(names) > 1 else classes


_ACTIVATION_TYPES = {type(make()) for make in ACTIVATIONS.values()} - {nn.Identity}
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ACTIVATIONS_TO_TRY = {"relu": "he", "tanh": "orthogonal", "gelu": "lsuv"}
"""Activation -> the initializer that suits it."""

_IMPORT = "from torch import nn\n"
_IMPORT_TORCH = "import torch\n"
_EACH = """\
for layer in model.modules():
    if isinstance(layer, {types}):
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
            stds = []
            hook = layer.register_forward_hook(lambda layer, x, output: stds.append(output.std()))
            with torch.no_grad():
                model({arguments})
            hook.remove()
            if not stds or not 0 < stds[0] < float("inf") or abs(stds[0] - 1) < 0.1:
                break
            layer.weight.data /= stds[0]
"""
_SWAP = """\
for name, module in list(model.named_modules(remove_duplicate=False)):
    if isinstance(module, {old}){condition}:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.{new}())
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
