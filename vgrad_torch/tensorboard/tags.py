"""The names that the writer and the readers of an event file share: tags, and what gradient_flow's columns hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

PLUGIN_NAME = "gradient_flow"
VERSION = 1

_COLUMNS = (
    "weight.rms", "weight.mean", "weight.std",
    "weight_gradient.rms", "weight_gradient.mean", "weight_gradient.std",
    "weight_gradient.zero_fraction", "weight_gradient.nonfinite",
    "output.rms", "output.mean", "output.std", "output.zero_fraction", "output.nonfinite",
    "output_gradient.rms", "output_gradient.zero_fraction", "output_gradient.nonfinite",
    "input_gradient.rms", "update_rms", "activation_gain", "weight.nonfinite",
)  # fmt: skip

COLUMNS = {path.replace(".", "_"): path for path in _COLUMNS}
"""Column of the gradient_flow tensor [layers, columns] -> where its number is in a `LayerSnapshot` (see `number`)."""

LAYER_SCALARS = {
    "gradient_log10_rms": "weight_gradient.rms",
    "gradient_mean": "weight_gradient.mean",
    "gradient_std": "weight_gradient.std",
    "weight_mean": "weight.mean",
    "weight_std": "weight.std",
    "update_log10_ratio": "update_ratio",
    "zero_fraction": "weight_gradient.zero_fraction",
}
"""Scalar of a layer -> where it is in a `LayerSnapshot`; where the name says log10, log10 of it is written.

The layout of the Custom Scalars tab has the same order: what shows a vanishing gradient comes first.
"""

NONFINITE = "nonfinite"
"""Scalar of a layer: NaN and infinities in its weight gradient, written only where there are any."""

RANK_SCALARS = "output_gradient_log10_rms_rank"
"""Scalars of data parallel training: log10 of each rank's part in the first layer's output gradient, RMS.

What goes astray on one rank, in whichever layer, has passed through all layers when it comes to the first.
"""

COST = "watch/share_of_time"
"""Scalar: what watching cost up to this sample, as a share of the wall time."""

FIRST_NONFINITE = "first_nonfinite"
"""Text: at which sampled step, and where in it, NaN or infinity was first seen."""

VERDICT = "verdict"
"""Text: the verdict as Markdown, table and paragraph, where it changed and at the end; the Gradient Flow tab shows its
first sentence beside the run's name and unfolds the rest."""

THEORY = f"{PLUGIN_NAME}_theory"
"""Tensor [layers, statistics] of what theory predicts, encoded like `gradient_flow`; drawn as a line of its own."""

LAYER_HISTOGRAMS = {
    "gradient": "weight_gradient",
    "weight": "weight",
    "output": "output",
    "output_gradient": "output_gradient",
}
"""Histogram of a layer, of values with their sign -> the quantity in a `LayerSnapshot`."""

GRADIENT_LOG10 = "gradient_log10"
"""Histogram of a layer: log10 of the weight gradient's magnitudes."""

LOSS_TRAIN, LOSS_VALIDATION = "loss/train", "loss/validation"
ACCURACY_TRAIN, ACCURACY_VALIDATION = "accuracy/train", "accuracy/validation"


class Axes(NamedTuple):
    """What the rows and the columns of a gradient_flow tensor are."""

    layers: list[str]
    statistics: list[str]


def encode(layers: Sequence[str], statistics: Iterable[str] = COLUMNS) -> bytes:
    """The plugin data of a tag of ours whose rows are `layers` (their tags) and whose columns are `statistics`.

    A gradient_flow tag has all columns; `THEORY` has those of `COLUMNS` that the theory speaks of.
    """
    return json.dumps({"version": VERSION, "layers": list(layers), "statistics": list(statistics)}).encode()


def decode(content: bytes) -> Axes:
    """What `encode` wrote, in this or an earlier version of the package.

    >>> decode(encode(["1-fc1-784x512"], ["output_rms"]))
    Axes(layers=['1-fc1-784x512'], statistics=['output_rms'])
    """
    data = json.loads(content)
    if data["version"] > VERSION:
        raise ValueError(f"gradient_flow was written in version {data['version']} of its format, this reads {VERSION}")
    axes = Axes(data["layers"], data["statistics"])
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in axes):
        raise ValueError("layers and statistics must be lists of names")
    return axes


def number(layer: object, path: str) -> float:
    """The number at `path` in a `LayerSnapshot`; NaN where that or its quantity is None.

    >>> from vgrad_torch.records import LayerSnapshot
    >>> layer = LayerSnapshot(1, "fc1", "Linear", "784x512", update_rms=0.5)
    >>> number(layer, "update_rms"), number(layer, "weight_gradient.rms")
    (0.5, nan)
    """
    return float(numbers(layer, (path,))[0])


def numbers(layer: object, paths: tuple[str, ...]) -> list[float]:
    """The same of many paths."""
    found = []
    for quantity, statistic in _split(paths):
        value = getattr(layer, quantity)
        if statistic and value is not None:
            value = getattr(value, statistic)
        found.append(math.nan if value is None else value)
    return found


@lru_cache
def _split(paths: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(quantity, statistic) for quantity, _, statistic in (path.partition(".") for path in paths)]


def layer_tag(group: str, layer: str) -> str:
    """`gradient/1-fc1-784x512`: a name of this module, then the layer's; TensorBoard groups at the first slash."""
    return f"{group}/{layer}"


def rank_tag(layer: str, rank: int) -> str:
    """`output_gradient_log10_rms_rank/1-fc1-784x512-rank0`."""
    return layer_tag(RANK_SCALARS, f"{layer}-rank{rank}")


def depth_profile_tag(step: int) -> str:
    """`depth_profile/step_000100`: the histogram whose step axis is the layer's number."""
    return f"depth_profile/step_{step:06d}"


def flow_tag(index: int) -> str:
    """`gradient_flow`; for the second set of layers in a run `gradient_flow_2`, ..., as a tag keeps its metadata."""
    return PLUGIN_NAME if index == 1 else f"{PLUGIN_NAME}_{index}"
