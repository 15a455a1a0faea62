"""The layout of the Custom Scalars tab: one chart for each statistic, with a line for each layer."""

from __future__ import annotations

from typing import Any

from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG

from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.summary import plugin_metadata, tensor_value


def layout_value(ranks: int) -> Any:
    """The layout; with several ranks there is a chart of these too. Of several layouts in a run the last one counts."""
    training = [tag.partition("/")[0] for tag in (tags.LOSS_TRAIN, tags.ACCURACY_TRAIN)]
    layers = [*tags.LAYER_SCALARS, *([tags.RANK_SCALARS] if ranks > 1 else [])]
    categories = [
        layout_pb2.Category(title=title, chart=map(_chart, groups))
        for title, groups in (("training", training), ("layers", layers))
    ]
    layout = layout_pb2.Layout(category=categories)
    return tensor_value(CONFIG_SUMMARY_TAG, layout.SerializeToString(), plugin_metadata("custom_scalars"))


def _chart(group: str) -> Any:
    """A chart of all tags of a group, by a regular expression."""
    return layout_pb2.Chart(title=group, multiline=layout_pb2.MultilineChartContent(tag=[f"{group}/.*"]))
