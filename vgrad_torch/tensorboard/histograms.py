"""Histograms as TensorBoard values: of each layer, and of the whole network at one step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE

from vgrad_torch.records import Floats, Histogram, Snapshot
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.summary import plugin_metadata

LOG_EXPONENTS = range(-52, 10, 2)
"""The edges of the log10 histograms are log10(2**e) for these e: 30 buckets, as many as TensorBoard draws."""

TRACE = 1e-9
"""Share of the values that is added to each outermost bucket of a log10 histogram.

Without it TensorBoard's Distributions tab stretches the lowest occupied bucket down to the end of the axis, and draws a
gradient that is all zero at the top.
"""

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def layer_histograms(snapshot: Snapshot) -> Iterator[Any]:
    """The histograms of each layer; none of a tensor without a finite entry, which would stretch the common axis."""
    for layer in snapshot.layers:
        tag = layer.tag
        for group, quantity in tags.LAYER_HISTOGRAMS.items():
            stats = getattr(layer, quantity)
            if stats and stats.finite and stats.histogram:
                yield _value(tags.layer_tag(group, tag), *stats.histogram.values())
        if layer.weight_gradient and layer.weight_gradient.histogram:
            yield _value(tags.layer_tag(tags.GRADIENT_LOG10, tag), *_log10(layer.weight_gradient.histogram))


def depth_profile(snapshot: Snapshot) -> Iterator[tuple[int, Any]]:
    """Number and log10 histogram of the weight gradient of each layer, as shares of its entries that are not 0."""
    for number, layer in enumerate(snapshot.layers, start=1):
        if layer.weight_gradient and layer.weight_gradient.histogram:
            edges, counts = _log10(layer.weight_gradient.histogram)
            yield number, _value(tags.depth_profile_tag(snapshot.step), edges, counts / max(counts.sum(), 1))


def _log10(histogram: Histogram) -> tuple[Floats, Floats]:
    """Edges and counts, with a `TRACE` in the outermost buckets."""
    edges, counts = histogram.log10(LOG_EXPONENTS)
    traced = counts.astype(np.float64)
    traced[0] += TRACE * max(counts.sum(), 1)
    traced[-1] += TRACE * counts.sum()
    return edges, traced


def _value(tag: str, edges: Floats, counts: npt.NDArray[Any]) -> Any:
    """Rows of left edge, right edge, count. Infinite edges become finite, as no chart can draw them."""
    rows = np.empty((len(counts), 3), "<f8")
    rows[:, 0], rows[:, 1], rows[:, 2] = edges[:-1], edges[1:], counts
    rows[0, 0], rows[-1, 1] = max(edges[0], -_FLOAT32_MAX), min(edges[-1], _FLOAT32_MAX)
    tensor = TensorProto(dtype=DT_DOUBLE, tensor_shape=_shape(rows.shape), tensor_content=rows.tobytes())
    return Summary.Value(tag=tag, tensor=tensor, metadata=plugin_metadata("histograms"))


@lru_cache
def _shape(sizes: tuple[int, ...]) -> Any:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])
