"""Named choices: find one in its table, or say in one sentence what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

Choice = TypeVar("Choice")


class UsageError(ValueError):
    """What the user asked for cannot be done; the message is one sentence that says what can be."""


def choose(table: Mapping[str, Choice], name: str, what: str) -> Choice:
    """Return `table[name]`, or raise a `UsageError` that lists the names and offers the nearest one.

    >>> choose({"relu": 1, "tanh": 2}, "tahn", "activation")
    Traceback (most recent call last):
    vgrad_torch.choices.UsageError: unknown activation 'tahn'; did you mean 'tanh'? Choose from: relu, tanh
    """
    if name in table:
        return table[name]
    nearest = difflib.get_close_matches(str(name).lower(), table, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}? " if nearest else ". "
    raise UsageError(f"unknown {what} {name!r}{hint}Choose from: {', '.join(table)}")
