"""Snapshots to TensorBoard: one event per snapshot, on the disk when the call returns, in one file per run.

Logging must not end a training: the first fault (disk full, folder gone) is one RuntimeWarning, then nothing is
written any more. Why events are built here and not by `SummaryWriter.add_scalar`: one event of many values costs a
tenth, and `add_histogram` raises or draws nothing where a gradient has vanished or is NaN.
"""

from __future__ import annotations

import io
import itertools
import math
import numbers
import os
import socket
import struct
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from google.protobuf.struct_pb2 import Value
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util.tensor_util import make_tensor_proto

from vgrad_torch.errors import UsageError
from vgrad_torch.records import Histogram, Snapshot
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.checksum import masked_crc32c
from vgrad_torch.tensorboard.truncation import claim, cut

LOG_EXPONENTS = range(-52, 10, 2)
"""Edges of the log10 histograms are log10(2**e) of these: 30 buckets, the 30 that TensorBoard draws."""

TRACE = 1e-9
"""Share of the values that the outermost buckets of a log10 histogram hold on top of what is in them."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_file_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Position:
    """How far a log has come, so that another writer can go on there.

    `size` bytes of the event file `file` are whole events; `flows` are the sets of layers whose tags are known.
    """

    file: str
    size: int
    flows: tuple[tuple[str, ...], ...]
    in_session: bool
    fault: str | None


class Writer:
    """Writes the events of one run into `logdir`, or `onto` a `SummaryWriter` of the user's; into None nothing."""

    def __init__(self, logdir: str | os.PathLike[str] | None) -> None:
        self._file = None if logdir is None else _open(logdir)
        self._sink: Sink | None = self._file
        self.fault: str | None = None
        """What ended the log before its time."""
        self._flow_tags: dict[tuple[str, ...], str] = {}
        self._in_session = False

    @classmethod
    def onto(cls, summary_writer: Any) -> Writer:
        """Write through a `torch.utils.tensorboard.SummaryWriter`, which stays the user's to flush and close."""
        if not hasattr(summary_writer, "file_writer"):
            kind = type(summary_writer).__name__
            raise UsageError(f"writer must be a torch.utils.tensorboard.SummaryWriter, not {kind}")
        writer = cls(None)
        writer._sink = _Borrowed(summary_writer)
        return writer

    @classmethod
    def continued(cls, folder: Path, position: Position) -> Writer:
        """Go on where another writer was: what its file holds behind that is cut off.

        If that file is gone or damaged, a new one is begun, and `fault` says so.

        Raises:
            UsageError: another process is writing to it, or it cannot be written.
        """
        writer = cls(None)
        whole = cut(folder / position.file, position.size)
        writer._file = writer._sink = _open(folder, position.file if whole else None)
        known_layers = position.flows if whole else ()
        writer._flow_tags = {layers: tags.gradient_flow_tag(n) for n, layers in enumerate(known_layers, 1)}
        writer._in_session = position.in_session
        gone = None if whole else f"what was logged before is missing, as {position.file} is gone or damaged"
        writer.fault = position.fault or gone
        return writer

    def position(self) -> Position | None:
        """How far the log has come, and all of it is on the disk; None if it goes into no file of our own."""
        if self._file is None:
            return None
        if self._sink is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._give_up(error)
        name, flows = os.path.basename(self._file.place), tuple(self._flow_tags)
        return Position(name, self._file.size, flows, self._in_session, self.fault)

    def leave(self) -> None:
        """Write no more, and leave the HParams session open: the run is to go on later."""
        self._in_session = False
        self.close()

    def snapshot(
        self, snapshot: Snapshot, *, histograms: bool, scalars: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Write the layers' scalars and others, gradient_flow and, if asked, the histograms as one event."""
        if self._sink is None:
            return
        more = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        values = [*more, *_layer_scalars(snapshot), *_rank_scalars(snapshot), self._flow(snapshot)]
        if histograms:
            values += _layer_histograms(snapshot)
        self._add(values, snapshot.step, snapshot.wall_time)

    def depth_profile(self, snapshot: Snapshot) -> None:
        """Write the whole net at one step as one ridge: an event per layer, as its step axis is the layer's number."""
        for number, value in _depth_profile(snapshot) if self._sink else ():
            self._add([value], number, snapshot.wall_time)

    def theory(self, layers: Sequence[str], columns: Mapping[str, Sequence[float]]) -> None:
        """Write what theory expects, {statistic: a number for each layer}; `layers` are their tags."""
        with np.errstate(over="ignore"):  # beyond float32 is infinity, which is not drawn
            table = np.array(list(columns.values()), "<f4").T
        self._add([_value(tags.THEORY, table, _metadata(tags.PLUGIN_NAME, tags.encode_axes(layers, columns)))])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write {tag: value}, all at one step; NaN and infinity are written as they are."""
        self._add((Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()), step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Write what the Text tab renders as Markdown, tables included."""
        self._add([_value(tag, markdown, _metadata("text"))], step)

    def layout(self, ranks: int = 1) -> None:
        """Put all layers into one chart per statistic (Custom Scalars); of several layouts in a run the last counts."""
        layout = _layout([*tags.LAYER_SCALARS, *([tags.RANK_SCALARS] if ranks > 1 else [])])
        self._add([_value(CONFIG_SUMMARY_TAG, layout.SerializeToString(), _metadata("custom_scalars"))])

    def hparams(self, hparams: Mapping[str, object], metrics: Iterable[str]) -> None:
        """Open this run's row in the HParams tab, with the scalar tags `metrics` as columns; `close` completes it.

        Give every run the same keys and metrics: TensorBoard takes the columns from one of them, and shows five
        hyperparameters until asked for more. Those are the first five here: they are said to differ between runs.
        """
        given = {name: _hparam(value) for name, value in hparams.items() if value is not None}
        start = plugin_data_pb2.SessionStartInfo(hparams=given, start_time_secs=time.time())
        self._add([_session(experiment=_experiment(given, metrics)), _session(session_start_info=start)])
        self._in_session = True

    def close(self, status: str = "SUCCESS") -> None:
        """End the HParams session, if one was opened, as SUCCESS or FAILURE, and close a file of our own."""
        if self._in_session:
            end = plugin_data_pb2.SessionEndInfo(status=f"STATUS_{status}", end_time_secs=time.time())
            self._add([_session(session_end_info=end)])
        if self._sink is not None:
            self._sink.close()
        self._sink = None

    def _add(self, values: Iterable[Any], step: int = 0, wall_time: float = 0.0) -> None:
        if self._sink is None:
            return
        try:
            self._sink.add(values, step, wall_time or time.time())
        except OSError as error:
            self._give_up(error, f", since step {step}")

    def _give_up(self, error: OSError, since: str = "") -> None:
        broken, self._sink = self._sink, None
        if broken is not None:
            broken.close()
            problem = f"cannot log to {broken.place}: {error.strerror or error}"
            self.fault = f"{problem}{since}"
            warnings.warn(f"{problem}; training goes on without logging", RuntimeWarning, stacklevel=3)

    def _flow(self, snapshot: Snapshot) -> Any:
        """TensorBoard keeps the first metadata of a tag, so each set of layers has a tag of its own."""
        layers = tuple(layer.tag for layer in snapshot.layers)
        known = layers in self._flow_tags
        tag = self._flow_tags.setdefault(layers, tags.gradient_flow_tag(len(self._flow_tags) + 1))
        metadata = None if known else _metadata(tags.PLUGIN_NAME, tags.encode_axes(layers))
        paths = tuple(tags.COLUMNS.values())
        rows = [tags.layer_values(layer, paths) for layer in snapshot.layers]
        with np.errstate(over="ignore"):
            table = np.array(rows, "<f4").reshape(len(layers), len(tags.COLUMNS))
        return _value(tag, table, metadata)


class Sink(Protocol):
    """Where events go; every fault is an OSError."""

    @property
    def place(self) -> str:
        """What to call it in a warning."""

    def add(self, values: Iterable[Any], step: int, wall_time: float) -> None:
        """Write one event."""

    def close(self) -> None:
        """Write no more."""


class _EventFile(io.FileIO):
    """An event file, unbuffered and without a thread: what `add` returned from survives a `kill -9`.

    It is a new one, or the one called `name`, to which is appended. `size` is how much of it are whole events.
    """

    def __init__(self, folder: str, name: str | None = None) -> None:
        os.makedirs(folder, exist_ok=True)
        unique = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_file_numbers)}"
        self.place = os.path.join(folder, name or f"events.out.tfevents.{unique}")
        super().__init__(self.place, "ab" if name else "xb")
        self.size = self.tell()
        try:
            claim(self.fileno())
            if not name:
                self._record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        except OSError:
            self.close()
            raise

    def add(self, values: Iterable[Any], step: int, wall_time: float) -> None:
        if not os.path.samestat(os.stat(self.place), os.fstat(self.fileno())):  # stat raises if the file is gone
            raise FileNotFoundError("the event file was replaced")
        event = Event(step=step, wall_time=wall_time)
        event.summary.value.extend(values)
        self._record(event)

    def write(self, data: Any, /) -> int:
        """Write all of it or raise; the system's own write takes what fits on a disk and says nothing."""
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) :]
        return len(data)

    def _record(self, event: Any) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self.write(length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data)))
        self.size += len(data) + 16


class _Borrowed:
    """A user's SummaryWriter. Its thread hands a fault to whoever adds next, as whatever exception that was."""

    def __init__(self, summary_writer: Any) -> None:
        self._writer = summary_writer
        self.place = "your SummaryWriter"

    def add(self, values: Iterable[Any], step: int, wall_time: float) -> None:
        if self._writer.file_writer is None:
            raise OSError("it is closed")
        try:
            self._writer.file_writer.add_summary(Summary(value=values), step, wall_time)
        except Exception as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        """Leave it open: it is not ours."""


def _open(logdir: str | os.PathLike[str], name: str | None = None) -> _EventFile:
    folder = os.path.abspath(logdir)
    try:
        return _EventFile(folder, name)
    except OSError as error:
        raise UsageError(f"cannot write to the log folder {folder}: {error.strerror}; choose another one") from error


def _layer_scalars(snapshot: Snapshot) -> Iterator[Any]:
    """Non-finite numbers and log10(0) are left out: one NaN blanks a chart."""
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


def _rank_scalars(snapshot: Snapshot) -> Iterator[Any]:
    """Of the first layer that has an output gradient."""
    first = next((layer for layer in snapshot.layers if layer.rank_rms), None)
    for rank, rms in enumerate(first.rank_rms if first else ()):
        if first and 0 < rms < math.inf:
            yield Summary.Value(tag=tags.rank_tag(first.tag, rank), simple_value=math.log10(rms))


def _layer_histograms(snapshot: Snapshot) -> Iterator[Any]:
    """A tensor without a finite entry is left out: it would stretch the axis, which all steps share."""
    for layer in snapshot.layers:
        tag = layer.tag
        for group, quantity in tags.LAYER_HISTOGRAMS.items():
            stats = getattr(layer, quantity)
            if stats and stats.finite and stats.histogram:
                yield _histogram(tags.layer_tag(group, tag), *stats.histogram.values())
        if layer.weight_gradient and layer.weight_gradient.histogram:
            log10 = _log10(layer.weight_gradient.histogram)
            yield _histogram(tags.layer_tag(tags.GRADIENT_LOG10, tag), *log10)


def _depth_profile(snapshot: Snapshot) -> Iterator[tuple[int, Any]]:
    """Each layer's number and the log10 histogram of its gradient, as shares; next to nothing where it is all 0."""
    for number, layer in enumerate(snapshot.layers, start=1):
        if layer.weight_gradient and layer.weight_gradient.histogram:
            edges, counts = _log10(layer.weight_gradient.histogram)
            yield number, _histogram(tags.depth_profile_tag(snapshot.step), edges, counts / max(counts.sum(), 1))


def _log10(histogram: Histogram) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The log10 histogram, with a trace in its outermost buckets.

    Without it TensorBoard's Distributions tab stretches the lowest occupied bucket down to the end of the axis, and
    puts a gradient that is all zero at the top of it.
    """
    edges, counts = histogram.log10(LOG_EXPONENTS)
    traced = counts.astype(np.float64)
    traced[0] += TRACE * max(counts.sum(), 1)
    traced[-1] += TRACE * counts.sum()
    return edges, traced


def _layout(groups: Iterable[str]) -> Any:
    def chart(title: str) -> Any:  # tags are regular expressions
        return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"{title}/.*"]))

    layers = [chart(group) for group in groups]
    training = [chart(tag.partition("/")[0]) for tag in (tags.LOSS_TRAIN, tags.ACCURACY_TRAIN)]
    categories = {"training": training, "layers": layers}
    return layout_pb2.Layout(category=[layout_pb2.Category(title=k, chart=v) for k, v in categories.items()])


def _hparam(value: object) -> Any:
    """A finite number as it is; all else as text: infinity, which JSON lacks, and True, which would be shown as 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
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


def _session(**part: Any) -> Any:
    """One of the HParams tab's three values: experiment, session_start_info, session_end_info."""
    content = plugin_data_pb2.HParamsPluginData(version=hparams_metadata.PLUGIN_DATA_VERSION, **part)
    (kind,) = part
    metadata = _metadata(hparams_metadata.PLUGIN_NAME, content.SerializeToString())
    return _value(f"_hparams_/{kind}", np.zeros(0, "f4"), metadata)


def _histogram(tag: str, edges: npt.NDArray[np.float64], counts: npt.NDArray[Any]) -> Any:
    """Rows of left, right, count. The last bucket of all ends at infinity, which no chart can draw."""
    rows = np.empty((len(counts), 3), "<f8")
    rows[:, 0], rows[:, 1], rows[:, 2] = edges[:-1], edges[1:], counts
    rows[0, 0], rows[-1, 1] = max(edges[0], -_FLOAT32_MAX), min(edges[-1], _FLOAT32_MAX)
    tensor = TensorProto(dtype=DT_DOUBLE, tensor_shape=_shape(rows.shape), tensor_content=rows.tobytes())
    return Summary.Value(tag=tag, tensor=tensor, metadata=_metadata("histograms"))


@lru_cache
def _shape(sizes: tuple[int, ...]) -> Any:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])


def _value(tag: str, content: object, metadata: Any) -> Any:
    return Summary.Value(tag=tag, tensor=make_tensor_proto(content), metadata=metadata)


@lru_cache
def _metadata(plugin: str, content: bytes = b"") -> Any:
    """Without the data class TensorBoard does not list the tag."""
    data = SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    return SummaryMetadata(data_class=DATA_CLASS_TENSOR, plugin_data=data)
