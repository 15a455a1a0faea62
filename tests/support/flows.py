"""Hand-made runs for the Gradient Flow tab, so that every number on its page is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.summary import plugin_metadata, tensor_value
from vgrad_torch.tensorboard.writer import Writer

LAYERS = ("1-fc1-8x6", "2-fc2-6x4", "3-fc3-4x2")
STATISTICS = tuple(tags.COLUMNS)
Table = npt.NDArray[np.float32]
Columns = dict[str, Sequence[float]]

GRADIENTS: Columns = {"weight_gradient_rms": [1e-7, 1e-5, 1e-3], "output_gradient_rms": [2e-6, 1e-4, 0.01]}
GAINS: Columns = {"input_gradient_rms": [np.nan, 2e-5, 1e-3]}
"""The weight gains are 0.2 and 0.1, the activation gains 0.1 and 0.1; their product is 2e-4."""


def table(columns: Columns, layers: int = len(LAYERS)) -> Table:
    """A gradient_flow tensor: NaN but for the columns given, and no non-finite values."""
    tensor = np.full((layers, len(STATISTICS)), np.nan, np.float32)
    for name in STATISTICS:
        if name.endswith("_nonfinite"):
            tensor[:, STATISTICS.index(name)] = 0
    for name, values in columns.items():
        tensor[:, STATISTICS.index(name)] = values
    return tensor


def typical(scale: float = 1.0) -> Table:
    """A vanishing gradient, all of it times `scale`."""
    weights: Columns = {"weight_rms": [0.1, 0.1, 0.2], "update_rms": [1e-6, 1e-5, 1e-4], "output_rms": [1, 2, 3]}
    shares: Columns = {"weight_gradient_zero_fraction": [0.0, 0.5, 1.0]}
    scaled: Columns = {name: [scale * x for x in values] for name, values in (GRADIENTS | GAINS).items()}
    return table(scaled | weights | shares)


def write(
    folder: Path,
    points: Iterable[tuple[int, npt.NDArray[np.generic]]],
    layers: Sequence[str] = LAYERS,
    tag: str = tags.PLUGIN_NAME,
    content: bytes | None = None,
    statistics: Sequence[str] = STATISTICS,
) -> None:
    """Write each (step, tensor) under a tag of the gradient_flow plugin."""
    writer = Writer(folder)
    metadata = plugin_metadata(tags.PLUGIN_NAME, tags.encode_axes(layers, statistics) if content is None else content)
    for step, tensor in points:
        writer._add([tensor_value(tag, tensor, metadata)], step)
    writer.close()


def write_text(folder: Path, tag: str, text: str) -> None:
    """Write a text into a run."""
    writer = Writer(folder)
    writer.text(tag, text)
    writer.close()
