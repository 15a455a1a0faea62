"""The scalars of each layer and of each rank as TensorBoard values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary

from vgrad_torch.records import Snapshot
from vgrad_torch.tensorboard import tags

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def layer_scalars(snapshot: Snapshot) -> Iterator[Any]:
    """The scalars of each layer. Non-finite numbers and log10(0) are left out: one NaN blanks a chart."""
    paths = tuple(tags.LAYER_SCALARS.values())
    for layer in snapshot.layers:
        tag = layer.tag
        for group, value in zip(tags.LAYER_SCALARS, tags.layer_values(layer, paths), strict=True):
            if "log10" in group:
                value = math.log10(value) if value > 0 else math.nan
            if abs(value) <= _FLOAT32_MAX:
                yield Summary.Value(tag=tags.layer_tag(group, tag), simple_value=value)
        if layer.weight_gradient and layer.weight_gradient.nonfinite:
            yield Summary.Value(tag=tags.layer_tag(tags.NONFINITE, tag), simple_value=layer.weight_gradient.nonfinite)


def rank_scalars(snapshot: Snapshot) -> Iterator[Any]:
    """The scalars of each rank, from the first layer that has an output gradient."""
    first = next((layer for layer in snapshot.layers if layer.rank_rms), None)
    for rank, rms in enumerate(first.rank_rms if first else ()):
        if first and 0 < rms < math.inf:
            yield Summary.Value(tag=tags.rank_tag(first.tag, rank), simple_value=math.log10(rms))
