"""A run's row in the HParams tab: what is written when it starts, and when it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
from google.protobuf.struct_pb2 import Value
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from vgrad_torch.tensorboard.summary import plugin_metadata, tensor_value


def session_start(hparams: Mapping[str, object], metrics: Iterable[str]) -> list[Any]:
    """The values that open a row, with the scalar tags `metrics` as columns.

    Hyperparameters that are None are left out. TensorBoard at first shows only those that are marked as differing
    between runs, at most five. The first five are marked so.
    """
    known = {name: _hparam(value) for name, value in hparams.items() if value is not None}
    start = plugin_data_pb2.SessionStartInfo(hparams=known, start_time_secs=time.time())
    return [_value(experiment=_experiment(known, metrics)), _value(session_start_info=start)]


def session_end(status: str) -> Any:
    """The value that completes a row; `status` is SUCCESS or FAILURE."""
    return _value(session_end_info=plugin_data_pb2.SessionEndInfo(status=f"STATUS_{status}", end_time_secs=time.time()))


def _hparam(value: object) -> Any:
    """A finite number as it is, all else as text: JSON has no infinity, and True would be shown as 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return Value(string_value=str(value))
    return Value(number_value=float(value))


def _experiment(hparams: Mapping[str, Any], metrics: Iterable[str]) -> Any:
    kinds = {"number_value": "DATA_TYPE_FLOAT64", "string_value": "DATA_TYPE_STRING"}
    return api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=kinds[value.WhichOneof("kind")], differs=place < 5)
            for place, (name, value) in enumerate(hparams.items())
        ],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics],
    )


def _value(**part: Any) -> Any:
    """One of the HParams tab's three values: experiment, session_start_info or session_end_info."""
    content = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **part)
    (kind,) = part
    described = plugin_metadata(metadata.PLUGIN_NAME, content.SerializeToString())
    return tensor_value(f"_hparams_/{kind}", np.zeros(0, "f4"), described)
