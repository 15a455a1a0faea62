"""A user's own model by name: `package.module:make`, a function that returns model, loss function and batch."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from vgrad_torch.errors import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What `make` returned."""

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    batch: tuple[Any, Any]
    optimizer: Optimizer | None = None


def entry(name: str) -> Entry:
    """Import the module, looking in the current folder first, and call the function.

    Raises:
        UsageError: the name is none, there is no such module or function, it raises, or it returns something else.

    >>> entry("mymodel")
    Traceback (most recent call last):
    vgrad_torch.errors.UsageError: 'mymodel' is not of the form package.module:function
    """
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name) or module_name.startswith("."):
        raise UsageError(f"{name!r} is not of the form package.module:function")
    make = _function(_module(module_name), function_name)
    try:
        made = make()
    except (Exception, SystemExit) as error:
        raise UsageError(f"{name} raised {words(error)}") from error
    return _checked(made, name)


def words(error: BaseException) -> str:
    """An exception in one line."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"there is no module {name}, neither in this folder nor installed") from error
        raise UsageError(f"importing {name} raised {words(error)}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing {name} raised {words(error)}") from error


def _function(module: ModuleType, name: str) -> Callable[[], Any]:
    found: object = getattr(module, name, None)
    if callable(found):
        return found
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, functions, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"the module {module.__name__} has no function {name!r}{hint}")


def _checked(made: Any, name: str) -> Entry:
    parts = made if isinstance(made, tuple) else (made,)
    kinds: tuple[Callable[[Any], bool], ...] = (
        lambda part: isinstance(part, nn.Module), callable,
        lambda part: isinstance(part, tuple | list) and len(part) == 2,
        lambda part: part is None or isinstance(part, Optimizer),
    )  # fmt: skip
    right = len(parts) in (3, 4) and all(fits(part) for fits, part in zip(kinds, parts, strict=False))
    if not right:
        returned = ", ".join(type(part).__name__ for part in parts)
        expected = "a model, a loss function, a batch (x, y) and, if you like, an optimizer"
        raise UsageError(f"{name} must return {expected}; it returned {returned}")
    return Entry(*parts)
