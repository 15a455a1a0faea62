"""Loads a user's own model by `package.module:function`; the function returns model, loss function and batch."""

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
class UserModel:
    """What the user's function returned: the arguments of `preflight`."""

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    batch: tuple[Any, Any]
    optimizer: Optimizer | None = None


def load_user_model(target: str) -> UserModel:
    """Import the module (the current folder comes first on the path) and call the function.

    Raises:
        UsageError: the target has another form, the module or function does not exist, the function raises, or it
            returns something else.

    >>> load_user_model("mymodel")
    Traceback (most recent call last):
    vgrad_torch.errors.UsageError: 'mymodel' is not of the form package.module:function
    """
    module_name, colon, function_name = target.partition(":")
    if not (colon and module_name and function_name) or module_name.startswith("."):
        raise UsageError(f"{target!r} is not of the form package.module:function")
    function = _function(_module(module_name), function_name)
    try:
        returned = function()
    except (Exception, SystemExit) as error:
        raise UsageError(f"{target} raised {one_line(error)}") from error
    return _checked(returned, target)


def one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message."""
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
        raise UsageError(f"importing {name} raised {one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing {name} raised {one_line(error)}") from error


def _function(module: ModuleType, name: str) -> Callable[[], Any]:
    function: object = getattr(module, name, None)
    if callable(function):
        return function
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise UsageError(f"the module {module.__name__} has no function {name!r}{hint}")


def _checked(returned: Any, target: str) -> UserModel:
    parts = returned if isinstance(returned, tuple) else (returned,)
    checks: tuple[Callable[[Any], bool], ...] = (
        lambda part: isinstance(part, nn.Module), callable,
        lambda part: isinstance(part, tuple | list) and len(part) == 2,
        lambda part: part is None or isinstance(part, Optimizer),
    )  # fmt: skip
    if len(parts) not in (3, 4) or not all(check(part) for check, part in zip(checks, parts, strict=False)):
        kinds = ", ".join(type(part).__name__ for part in parts)
        expected = "a model, a loss function, a batch (x, y) and optionally an optimizer"
        raise UsageError(f"{target} must return {expected}; it returned {kinds}")
    return UserModel(*parts)
