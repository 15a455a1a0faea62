"""Dataclasses as what JSON can hold, and back: each value is held against its annotation."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def plain(value: Any) -> Any:
    """Dicts, lists, numbers, text and None instead of dataclasses, tuples and arrays.

    >>> from vgrad_torch.records import Stats
    >>> stats = Stats(2, 0, 0, 1.5, 0.5, 1.0, 2.0)
    >>> plain(stats)
    {'count': 2, 'zeros': 0, 'nonfinite': 0, 'mean': 1.5, 'std': 0.5, 'min': 1.0, 'max': 2.0, 'histogram': None}
    >>> typed(Stats, plain(stats)) == stats
    True
    """
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def typed(kind: Any, value: object, name: str = "it") -> Any:
    """What `plain` made into this, of type `kind`: a dataclass, int, float, str, bool, `X | None`, a tuple or an array.

    Raises:
        ValueError: it is not of that type; the message calls it `name`.

    >>> typed(tuple[float, ...], [1, "2"], "losses")
    Traceback (most recent call last):
    ValueError: losses[1] must be a number, not '2'
    """
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, name)
    if origin is UnionType:
        (other,) = set(get_args(kind)) - {NoneType}
        return None if value is None else typed(other, value, name)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, not {reprlib.repr(value)}")
        return tuple(typed(get_args(kind)[0], each, f"{name}[{place}]") for place, each in enumerate(value))
    if origin is np.ndarray:
        return _array(get_args(get_args(kind)[1])[0], value, name)
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be {_WORDS[kind]}, not {reprlib.repr(value)}")
    return value


def _dataclass(kind: Any, value: object, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must hold named values, not {reprlib.repr(value)}")
    fields = _fields(kind)
    for missing in fields.keys() - value.keys():
        raise ValueError(f"{name} lacks {missing!r}")
    for unknown in value.keys() - fields.keys():
        raise ValueError(f"{name} has {reprlib.repr(unknown)}, which is unknown")
    return kind(**{field: typed(hint, value[field], field) for field, hint in fields.items()})


@lru_cache
def _fields(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass by their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _array(dtype: Any, value: object, name: str) -> Any:
    numbers = typed(tuple[int, ...], value, name)
    limits = np.iinfo(dtype)
    if not all(limits.min <= number <= limits.max for number in numbers):
        raise ValueError(f"{name} must be numbers from {limits.min} to {limits.max}")
    return np.array(numbers, dtype)
