"""The parts that every TensorBoard value is built from: its tensor or text, and the metadata that name its plugin."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.util.tensor_util import make_tensor_proto


def tensor_value(tag: str, content: object, metadata: Any) -> Any:
    """A value of one tag: an array, bytes or a text."""
    return Summary.Value(tag=tag, tensor=make_tensor_proto(content), metadata=metadata)


@lru_cache
def plugin_metadata(plugin: str, content: bytes = b"") -> Any:
    """Metadata of a tag that `plugin` shows. Without the data class TensorBoard does not list the tag."""
    data = SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    return SummaryMetadata(data_class=DATA_CLASS_TENSOR, plugin_data=data)


def decode_text(array: Any) -> str:
    """The text that a text tensor holds; empty if the tensor is empty."""
    first = np.asarray(array).ravel()[:1].tolist()
    return "".join(part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in first)
