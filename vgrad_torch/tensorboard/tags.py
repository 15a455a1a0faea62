"""The names of all TensorBoard tags, and what the columns of the gradient_flow tensor hold.

The writer and the readers of an event file share this module.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

# --- scalars -------------------------------------------------------------------------------------------------------

LOSS_TRAIN, LOSS_VALIDATION = "loss/train", "loss/validation"
ACCURACY_TRAIN, ACCURACY_VALIDATION = "accuracy/train", "accuracy/validation"

LAYER_SCALARS = {
    "gradient_log10_rms": "weight_gradient.rms",
    "gradient_mean": "weight_gradient.mean",
    "gradient_std": "weight_gradient.std",
    "weight_mean": "weight.mean",
    "weight_std": "weight.std",
    "update_log10_ratio": "update_ratio",
    "zero_fraction": "weight_gradient.zero_fraction",
}
"""Scalar of each layer -> path of its value in a `LayerSnapshot`. A name with log10 means that log10 of it is written.

The Custom Scalars tab shows its charts in this order: the one that shows a vanishing gradient is first.
"""

NONFINITE = "nonfinite"
"""Scalar of each layer: number of NaN and infinite entries of its weight gradient. Written only where it is not 0."""

RANK_SCALARS = "output_gradient_log10_rms_rank"
"""Scalars of data parallel training, one for each rank: log10 RMS of its part of the first layer's output gradient.

This gradient has passed through all other layers, so a fault on one rank shows here, whichever layer it is in.
"""

COST = "watch/share_of_time"
"""Scalar: the share of the wall time so far that watching took."""

# --- texts ---------------------------------------------------------------------------------------------------------

VERDICT = "verdict"
"""Text: table and paragraph of the verdict in Markdown. Written when the verdict changes and at the end.

The Gradient Flow tab shows its first sentence beside the run's name; a click shows the rest.
"""

FIRST_NONFINITE = "first_nonfinite"
"""Text: the first sampled step with NaN or infinity, and which tensor had it."""

# --- histograms ----------------------------------------------------------------------------------------------------

LAYER_HISTOGRAMS = {
    "gradient": "weight_gradient",
    "weight": "weight",
    "output": "output",
    "output_gradient": "output_gradient",
}
"""Histogram of each layer, of signed values -> the quantity in a `LayerSnapshot`."""

GRADIENT_LOG10 = "gradient_log10"
"""Histogram of each layer: log10 of the magnitudes of the weight gradient's entries."""

# --- tensors of the Gradient Flow tab ------------------------------------------------------------------------------

PLUGIN_NAME = "gradient_flow"
"""Name of the TensorBoard plugin, and tag of the tensor [layers, columns] that holds a sample's numbers."""

THEORY = f"{PLUGIN_NAME}_theory"
"""Tensor [layers, columns] with the values that theory predicts, encoded like gradient_flow; drawn as a dashed line."""

TIME = f"{PLUGIN_NAME}_time"
"""Tensor of each layer that has a time profile: the gradient at each time step, see `time_profiles`."""

VERSION = 1
"""Version of the plugin data that `encode_axes` writes."""

_PATHS = (
    "weight.rms", "weight.mean", "weight.std",
    "weight_gradient.rms", "weight_gradient.mean", "weight_gradient.std",
    "weight_gradient.zero_fraction", "weight_gradient.nonfinite",
    "output.rms", "output.mean", "output.std", "output.zero_fraction", "output.nonfinite",
    "output_gradient.rms", "output_gradient.zero_fraction", "output_gradient.nonfinite",
    "input_gradient.rms", "update_rms", "activation_gain", "weight.nonfinite",
)  # fmt: skip

COLUMNS = {path.replace(".", "_"): path for path in _PATHS}
"""Column of the gradient_flow tensor -> path of its value in a `LayerSnapshot`, see `layer_values`."""


# --- tags of one layer, rank, step or set of layers ----------------------------------------------------------------

_SIZE = r"\d+x\d+(?: \d+(?:x\d+)*)?"
_LAYER_TAG = re.compile(rf"(\d+)(?:-(.*?))??(?:#(\d+))?(?:-({_SIZE}))?", re.DOTALL)


def layer_tag(group: str, layer: str) -> str:
    """`gradient/1-fc1-784x512`: a name from this module, then the layer's. TensorBoard groups by the first part."""
    return f"{group}/{layer}"


class LayerTag(NamedTuple):
    """The parts of a layer's own tag, such as `3-cell#2-8x8`; see `LayerSnapshot.tag`."""

    number: int
    name: str
    call: int
    size: str


def parse_layer(layer: str) -> LayerTag:
    """Number, name, call and size of a layer from its tag.

    >>> [tuple(parse_layer(tag)) for tag in ("1-fc1-784x512", "2-head", "3-cell#2-8x8", "1-8x8", "4-conv-3x64 7x7")]
    [(1, 'fc1', 1, '784x512'), (2, 'head', 1, ''), (3, 'cell', 2, '8x8'), (1, '', 1, '8x8'), (4, 'conv', 1, '3x64 7x7')]
    """
    match = _LAYER_TAG.fullmatch(layer)
    if match is None:
        return LayerTag(0, layer, 1, "")
    return LayerTag(int(match[1]), match[2] or "", int(match[3] or 1), match[4] or "")


def layer_label(layer: str) -> str:
    """The layer's name and call from its tag; the tag itself where it has no name.

    >>> layer_label("1-fc1-784x512"), layer_label("3-cell#2-8x8"), layer_label("1-8x8")
    ('fc1', 'cell#2', '1-8x8')
    """
    _, name, call, _ = parse_layer(layer)
    return (name if call == 1 else f"{name}#{call}") or layer


def without_call(layer: str) -> str:
    """The layer's tag without the number of its call.

    >>> without_call("1-cell#2-8x8"), without_call("2-head-8x2")
    ('1-cell-8x8', '2-head-8x2')
    """
    return re.sub(rf"#\d+(?=$|-{_SIZE}$)", "", layer)


def rank_tag(layer: str, rank: int) -> str:
    """`output_gradient_log10_rms_rank/1-fc1-784x512-rank0`."""
    return layer_tag(RANK_SCALARS, f"{layer}-rank{rank}")


def depth_profile_tag(step: int) -> str:
    """`depth_profile/step_000100`: a histogram whose step axis counts layers."""
    return f"depth_profile/step_{step:06d}"


def time_tag(layer: str) -> str:
    """`gradient_flow_time/1-rnn-8x32`."""
    return layer_tag(TIME, layer)


def gradient_flow_tag(index: int) -> str:
    """`gradient_flow`, then `gradient_flow_2`, ...: each set of layers has its own, as a tag's metadata is fixed."""
    return PLUGIN_NAME if index == 1 else f"{PLUGIN_NAME}_{index}"


# --- rows and columns of the tensors -------------------------------------------------------------------------------


class Graph(NamedTuple):
    """Which layer feeds which: for each row the labels of its sources, and the labels of the junctions.

    The rows are the layers, then the junctions, of which the tensor has the gradient's RMS in `output_gradient_rms`.
    `folded` is the number of layers that are not watched because they are not trained. `problem` says why the graph
    could not be read; then there are no sources and no junctions.
    """

    sources: tuple[tuple[str, ...], ...]
    junctions: tuple[str, ...]
    folded: int
    problem: str = ""


class Axes(NamedTuple):
    """What the rows and the columns of a gradient_flow tensor are. The graph is None for layers in a row."""

    layers: list[str]
    statistics: list[str]
    graph: Graph | None = None

    @property
    def rows(self) -> int:
        """The number of rows: layers and junctions."""
        return len(self.layers) + (len(self.graph.junctions) if self.graph else 0)


def encode_axes(layers: Sequence[str], statistics: Iterable[str] = COLUMNS, graph: Graph | None = None) -> bytes:
    """The plugin data of a tensor whose rows are `layers` (their tags) and whose columns are `statistics`.

    A gradient_flow tensor has all `COLUMNS`; a `THEORY` tensor has those that theory predicts.
    """
    axes = {"version": VERSION, "layers": list(layers), "statistics": list(statistics)}
    return json.dumps({**axes, **(graph._asdict() if graph else {})}).encode()


def decode_axes(content: bytes) -> Axes:
    """The inverse of `encode_axes`; also reads what earlier versions of the package wrote.

    >>> decode_axes(encode_axes(["1-fc1-784x512"], ["output_rms"]))
    Axes(layers=['1-fc1-784x512'], statistics=['output_rms'], graph=None)
    """
    data = json.loads(content)
    if data["version"] > VERSION:
        raise ValueError(f"gradient_flow was written in version {data['version']} of its format, this reads {VERSION}")
    names = [data["layers"], data["statistics"], data.get("junctions", []), *data.get("sources", [])]
    if not all(isinstance(row, list) and all(isinstance(name, str) for name in row) for row in names):
        raise ValueError("layers, statistics, junctions and sources must be lists of names")
    if "sources" not in data:
        return Axes(data["layers"], data["statistics"])
    problem = str(data.get("problem", ""))
    graph = Graph(tuple(map(tuple, data["sources"])), tuple(data["junctions"]), int(data["folded"]), problem)
    axes = Axes(data["layers"], data["statistics"], graph)
    if len(graph.sources) != (0 if problem else axes.rows):
        raise ValueError(f"it has {axes.rows} rows and the sources of {len(graph.sources)}")
    return axes


def layer_values(layer: object, paths: tuple[str, ...]) -> list[float]:
    """The values at `paths` in a `LayerSnapshot`; NaN where a value or its quantity is None.

    >>> from vgrad_torch.records import LayerSnapshot
    >>> layer = LayerSnapshot(1, "fc1", "Linear", "784x512", update_rms=0.5)
    >>> layer_values(layer, ("update_rms", "weight_gradient.rms"))
    [0.5, nan]
    """
    values = []
    for quantity, statistic in _split(paths):
        value = getattr(layer, quantity)
        if statistic and value is not None:
            value = getattr(value, statistic)
        values.append(math.nan if value is None else value)
    return values


@lru_cache
def _split(paths: tuple[str, ...]) -> list[tuple[str, str]]:
    """Quantity and statistic of each path."""
    return [(quantity, statistic) for quantity, _, statistic in (path.partition(".") for path in paths)]
