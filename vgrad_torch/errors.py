"""Errors of the user: one sentence that says what was wrong and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TypeVar

Choice = TypeVar("Choice")


class UsageError(ValueError):
    """A request that cannot be fulfilled; the message says in one sentence what was wrong and what is allowed."""


def choose(table: Mapping[str, Choice], name: str, what: str) -> Choice:
    """`table[name]`, or a `UsageError` that lists the names and suggests the nearest one.

    >>> choose({"relu": 1, "tanh": 2}, "tahn", "activation")
    Traceback (most recent call last):
    vgrad_torch.errors.UsageError: unknown activation 'tahn'; did you mean 'tanh'? Choose from: relu, tanh
    """
    if name in table:
        return table[name]
    nearest = difflib.get_close_matches(str(name).lower(), table, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}? " if nearest else ". "
    raise UsageError(f"unknown {what} {name!r}{hint}Choose from: {', '.join(table)}")


def checked_widths(widths: Sequence[int]) -> list[int]:
    """The widths of an MLP with input and output, or a `UsageError` that names the wrong one."""
    for position, width in enumerate(widths):
        if not _is_positive_integer(width):
            raise UsageError(f"widths[{position}] must be a positive integer, not {width!r}")
    if len(widths) < 2:
        raise UsageError(f"an MLP needs at least 2 widths, the input's and the output's, but widths is {widths!r}")
    return [int(width) for width in widths]


def _is_positive_integer(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) > 0
