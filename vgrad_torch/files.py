"""Files that are either complete or absent, locks on files, and dataclasses as JSON."""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file, so that at any instant the disk holds either the old content or the new one.

    Raises:
        OSError: the content could not be written; the old one is unchanged.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk. On Windows a folder cannot be opened; there the system writes them."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock(descriptor: int, *, wait: bool) -> None:
    """Lock an open file for this process until it is closed or the process ends.

    On Windows, and on file systems without locks, nothing is locked: there the user has to take care that no two
    processes write to the same run.

    Raises:
        BlockingIOError: another process has locked it, and `wait` is False.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def encode(value: Any) -> Any:
    """A value as JSON can hold it: dicts and lists instead of dataclasses, tuples and arrays.

    >>> from vgrad_torch.records import Stats
    >>> stats = Stats(2, 0, 0, 1.5, 0.5, 1.0, 2.0)
    >>> encode(stats)
    {'count': 2, 'zeros': 0, 'nonfinite': 0, 'mean': 1.5, 'std': 0.5, 'min': 1.0, 'max': 2.0, 'histogram': None}
    >>> decode(Stats, encode(stats)) == stats
    True
    """
    if dataclasses.is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [encode(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def decode(kind: Any, value: object, name: str = "it") -> Any:
    """The value of type `kind` that `encode` made into `value`; it is checked against its annotations.

    `kind` is a dataclass, int, float, str, bool, `X | None`, a tuple or an array. Fields that are missing have their
    defaults, so older files can be read.

    Raises:
        ValueError: it is not of this type; the message uses `name`.

    >>> decode(tuple[float, ...], [1, "2"], "losses")
    Traceback (most recent call last):
    ValueError: losses[1] must be a number, not '2'
    """
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, name)
    if origin is UnionType:
        (other,) = set(get_args(kind)) - {NoneType}
        return None if value is None else decode(other, value, name)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, not {reprlib.repr(value)}")
        return tuple(decode(get_args(kind)[0], each, f"{name}[{place}]") for place, each in enumerate(value))
    if origin is np.ndarray:
        return _array(get_args(get_args(kind)[1])[0], value, name)
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be {_TYPE_NAMES[kind]}, not {reprlib.repr(value)}")
    return value


def _dataclass(kind: Any, value: object, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must hold named values, not {reprlib.repr(value)}")
    fields = _fields(kind)
    for missing in fields.keys() - value.keys() - _optional(kind):
        raise ValueError(f"{name} lacks {missing!r}")
    for unknown in value.keys() - fields.keys():
        raise ValueError(f"{name} has {reprlib.repr(unknown)}, which is unknown")
    return kind(**{field: decode(hint, value[field], field) for field, hint in fields.items() if field in value})


@lru_cache
def _fields(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass and their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@lru_cache
def _optional(kind: Any) -> frozenset[str]:
    """The names of the fields with a default; a file of an earlier version may lack them."""
    return frozenset(field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING)


def _array(dtype: Any, value: object, name: str) -> Any:
    numbers = decode(tuple[int, ...], value, name)
    limits = np.iinfo(dtype)
    if not all(limits.min <= number <= limits.max for number in numbers):
        raise ValueError(f"{name} must be numbers from {limits.min} to {limits.max}")
    return np.array(numbers, dtype)
