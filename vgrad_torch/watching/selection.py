"""Which layers of a model are watched, and under which names."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vgrad_torch.distributed import shards
from vgrad_torch.errors import UsageError

Layers = type[nn.Module] | tuple[type[nn.Module], ...] | str | Callable[[str, nn.Module], bool]
"""Which layers to watch: a type, several types, a regular expression over names, or a function of name and module."""


def select(model: nn.Module, layers: Layers = nn.Linear) -> dict[str, nn.Module]:
    """The watched layers by their names in `named_modules`, without the parts that torch.compile and DDP add.

    A model that is a single layer is named after its type.

    Raises:
        UsageError: no layer matches, or the regular expression is not valid.
    """
    modules = {_plain_name(name, model): m for name, m in model.named_modules()}
    matches = _filter(layers)
    chosen = {name: m for name, m in modules.items() if matches(name, m)}
    if not chosen:
        kinds = ", ".join(sorted({type(m).__name__ for m in modules.values()}))
        raise UsageError(
            f"the model has no layer that matches {_describe(layers)}; its modules are of type {kinds}. Choose "
            "layers with layers=, a type or a regular expression over names (on the command line: --layers)"
        )
    return {name or shards.kind(m): m for name, m in chosen.items()}


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
    allowed = "a type, a tuple of types, a regular expression, or a function of (name, module)"
    raise UsageError(f"layers must be {allowed}, not {layers!r}")


def _describe(layers: Layers) -> str:
    """What was asked for, for a message.

    >>> _describe(nn.Linear), _describe((nn.Linear, nn.Conv2d)), _describe("conv.*")
    ('Linear', 'Linear or Conv2d', "'conv.*'")
    """
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
