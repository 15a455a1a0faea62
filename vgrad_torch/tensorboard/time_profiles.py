"""The time profiles of a sample as TensorBoard values, and back.

Each is one float32 tensor of `HEAD` and the profile's norms: at most 261 numbers, about 1,200 bytes with its tag and
metadata. The numbers of `HEAD` are in the tensor because a tag keeps its first metadata, and sequences may differ in
length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vgrad_torch.records import Snapshot, TimeProfile
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.summary import plugin_metadata, tensor_value

HEAD = ("steps", "last", "tenth", "hundredth", "growth")
"""The fields of a `TimeProfile` that a tensor begins with. NaN stands for None."""


class Layout(NamedTuple):
    """What a tensor holds: the fields that it begins with; the norms follow."""

    head: tuple[str, ...]


LAYOUT = Layout(HEAD)
"""What this version writes."""


def encode_layout(layout: Layout) -> bytes:
    """The plugin data of a time profile's tag."""
    return json.dumps({"version": tags.VERSION, "head": layout.head}).encode()


def decode_layout(content: bytes) -> Layout:
    """The inverse of `encode_layout`; a ValueError says what is wrong.

    >>> decode_layout(encode_layout(LAYOUT)).head
    ('steps', 'last', 'tenth', 'hundredth', 'growth')
    """
    data = json.loads(content)
    if not isinstance(data, dict) or data.get("version") != tags.VERSION:
        raise ValueError("the time profile is in an unknown version of its format")
    head = data.get("head")
    if not isinstance(head, list) or not set(HEAD) <= set(map(str, head)):
        raise ValueError(f"the time profile lacks one of {', '.join(HEAD)}")
    return Layout(tuple(map(str, head)))


def time_values(snapshot: Snapshot) -> Iterator[Any]:
    """A value for each layer that has a time profile."""
    metadata = plugin_metadata(tags.PLUGIN_NAME, encode_layout(LAYOUT))
    for layer in snapshot.layers:
        if layer.time is not None:
            yield tensor_value(tags.time_tag(layer.tag), encode_profile(layer.time), metadata)


def encode_profile(profile: TimeProfile) -> npt.NDArray[np.float32]:
    """`HEAD` and the norms as one tensor. A norm that float32 cannot hold becomes 0 or infinity."""
    head = (getattr(profile, name) for name in HEAD)
    with np.errstate(over="ignore", under="ignore"):
        return np.array([*(math.nan if x is None else x for x in head), *profile.gradients], "<f4")


def decode_profile(tensor: npt.NDArray[np.generic], layout: Layout = LAYOUT) -> TimeProfile:
    """The inverse of `encode_profile`; a ValueError says what is wrong.

    >>> decode_profile(encode_profile(TimeProfile((0.25, 1.0), 2, last=1, growth=0.25)))
    TimeProfile(gradients=(0.25, 1.0), steps=2, last=1, tenth=None, hundredth=None, growth=0.25)
    """
    if tensor.ndim != 1 or tensor.dtype.kind != "f" or tensor.size <= len(layout.head):
        raise ValueError(f"a time profile is {tensor.dtype} of shape {list(tensor.shape)}, not a row of numbers")
    numbers = [float(x) for x in tensor.astype(np.float64)]
    head = dict(zip(layout.head, numbers, strict=False))
    if any(math.isinf(head[name]) for name in HEAD[:-1]):
        raise ValueError("a time profile's numbers of steps are infinite")
    whole = {name: None if math.isnan(head[name]) else int(head[name]) for name in HEAD[1:-1]}
    norms = tuple(numbers[len(layout.head) :])
    last, steps = whole["last"], head["steps"]
    if not steps >= len(norms) or (last is not None and not 0 <= last < steps):
        raise ValueError("a time profile's numbers of steps do not fit each other")
    return TimeProfile(norms, int(steps), last, whole["tenth"], whole["hundredth"], head["growth"])
