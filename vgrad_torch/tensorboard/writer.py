"""Writes snapshots to a TensorBoard event file: one event for each snapshot, on the disk when the call returns.

Logging must not end a training: at the first fault (disk full, folder gone) the writer gives one RuntimeWarning and
writes nothing more. Events are built here and not by `SummaryWriter.add_scalar`, because one event of many values costs
a tenth, and `add_histogram` raises or draws nothing where a gradient has vanished or is NaN.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import socket
import struct
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from vgrad_torch.errors import UsageError
from vgrad_torch.files import lock
from vgrad_torch.records import Snapshot
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.eventfile import cut, masked_crc32c
from vgrad_torch.tensorboard.histograms import depth_profile, layer_histograms
from vgrad_torch.tensorboard.hparams import session_end, session_start
from vgrad_torch.tensorboard.layout import layout_value
from vgrad_torch.tensorboard.scalars import layer_scalars, rank_scalars
from vgrad_torch.tensorboard.summary import plugin_metadata, tensor_value
from vgrad_torch.tensorboard.time_profiles import time_values

_file_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Position:
    """How much of a log is written, so that another writer can continue it.

    The first `size` bytes of the event file `file` are whole events. `flows` are the sets of layers that have a
    gradient_flow tag, `in_session` says whether the HParams session is open, `fault` is that of the writer.
    """

    file: str
    size: int
    flows: tuple[tuple[str, ...], ...]
    in_session: bool
    fault: str | None


class Writer:
    """Writes the events of one run into the folder `logdir`; writes nothing if that is None."""

    def __init__(self, logdir: str | os.PathLike[str] | None) -> None:
        self._file = None if logdir is None else _open(logdir)
        self._sink: Sink | None = self._file
        self.fault: str | None = None
        """Why the log ended early, or None."""
        self._flow_tags: dict[tuple[str, ...], str] = {}
        self._in_session = False

    @classmethod
    def onto(cls, summary_writer: Any) -> Writer:
        """A writer that writes through the user's `torch.utils.tensorboard.SummaryWriter` and does not close it."""
        if not hasattr(summary_writer, "file_writer"):
            kind = type(summary_writer).__name__
            raise UsageError(f"writer must be a torch.utils.tensorboard.SummaryWriter, not {kind}")
        writer = cls(None)
        writer._sink = _Borrowed(summary_writer)
        return writer

    @classmethod
    def continued(cls, folder: Path, position: Position) -> Writer:
        """A writer that continues the event file of another one; what that file holds after `position` is cut off.

        If the file is gone or damaged, a new one is begun, and `fault` says so.

        Raises:
            UsageError: another process is writing to it, or it cannot be written.
        """
        writer = cls(None)
        whole = cut(folder / position.file, position.size)
        writer._file = writer._sink = _open(folder, position.file if whole else None)
        known_layers = position.flows if whole else ()
        writer._flow_tags = {layers: tags.gradient_flow_tag(n) for n, layers in enumerate(known_layers, 1)}
        writer._in_session = position.in_session
        missing = None if whole else f"what was logged before is missing, as {position.file} is gone or damaged"
        writer.fault = position.fault or missing
        return writer

    def position(self) -> Position | None:
        """How much is written, after a sync to the disk; None where the writer has no file of its own."""
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
        """Close the file and leave the HParams session open, as the run will be resumed."""
        self._in_session = False
        self.close()

    def snapshot(
        self, snapshot: Snapshot, *, histograms: bool, scalars: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Write one event: `scalars`, those of the layers, gradient_flow, time profiles and, if asked, histograms."""
        if self._sink is None:
            return
        given = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        values = [*given, *layer_scalars(snapshot), *rank_scalars(snapshot), self._gradient_flow(snapshot)]
        values += time_values(snapshot)
        if histograms:
            values += layer_histograms(snapshot)
        self._add(values, snapshot.step, snapshot.wall_time)

    def depth_profile(self, snapshot: Snapshot) -> None:
        """Write one step as a histogram over depth: one event for each layer, whose step is the layer's number."""
        for number, value in depth_profile(snapshot) if self._sink else ():
            self._add([value], number, snapshot.wall_time)

    def theory(self, layers: Sequence[str], columns: Mapping[str, Sequence[float]]) -> None:
        """Write what theory predicts, {statistic: a number for each layer}; `layers` are their tags."""
        with np.errstate(over="ignore"):  # beyond float32 is infinity, which is not drawn
            table = np.array(list(columns.values()), "<f4").T
        metadata = plugin_metadata(tags.PLUGIN_NAME, tags.encode_axes(layers, columns))
        self._add([tensor_value(tags.THEORY, table, metadata)])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write {tag: value}, all at one step; NaN and infinity are written as they are."""
        self._add((Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()), step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Write a text for the Text tab, which renders Markdown and its tables."""
        self._add([tensor_value(tag, markdown, plugin_metadata("text"))], step)

    def layout(self, ranks: int = 1) -> None:
        """Write the layout of the Custom Scalars tab: one chart for each statistic, with all layers."""
        self._add([layout_value(ranks)])

    def hparams(self, hparams: Mapping[str, object], metrics: Iterable[str]) -> None:
        """Open this run's row in the HParams tab, with the scalar tags `metrics` as columns; `close` completes it.

        Give every run the same hyperparameters and metrics, as TensorBoard takes the columns from one of the runs.
        """
        self._add(session_start(hparams, metrics))
        self._in_session = True

    def close(self, status: str = "SUCCESS") -> None:
        """End the HParams session, if one was opened, as SUCCESS or FAILURE, and close a file of our own."""
        if self._in_session:
            self._add([session_end(status)])
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
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()
            problem = f"cannot log to {sink.place}: {error.strerror or error}"
            self.fault = f"{problem}{since}"
            warnings.warn(f"{problem}; training goes on without logging", RuntimeWarning, stacklevel=3)

    def _gradient_flow(self, snapshot: Snapshot) -> Any:
        """The tensor of the Gradient Flow tab, under one tag for each set of layers: a tag keeps its first metadata."""
        layers = tuple(layer.tag for layer in snapshot.layers)
        junctions = tuple(junction.label for junction in snapshot.junctions)
        known = (*layers, *junctions) in self._flow_tags
        tag = self._flow_tags.setdefault((*layers, *junctions), tags.gradient_flow_tag(len(self._flow_tags) + 1))
        axes = None if known else tags.encode_axes(layers, graph=_graph(snapshot))
        paths = tuple(tags.COLUMNS.values())
        rows = [tags.layer_values(layer, paths) for layer in snapshot.layers]
        with np.errstate(over="ignore"):
            table = np.full((len(layers) + len(junctions), len(tags.COLUMNS)), math.nan, "<f4")
            table[: len(layers)] = np.array(rows).reshape(len(layers), len(tags.COLUMNS))
            column = paths.index("output_gradient.rms")
            table[len(layers) :, column] = [junction.gradient_rms for junction in snapshot.junctions]
        return tensor_value(tag, table, axes and plugin_metadata(tags.PLUGIN_NAME, axes))


def _graph(snapshot: Snapshot) -> tags.Graph | None:
    """The graph of the layers; None if it is not known, or if the layers are in a row and all are trained."""
    sources = [layer.sources for layer in snapshot.layers]
    in_a_row = [(), *((layer.label,) for layer in snapshot.layers)][: len(sources)]
    if snapshot.graph_problem:
        return tags.Graph((), (), snapshot.folded, snapshot.graph_problem)
    known = [found for found in sources if found is not None]
    if len(known) < len(sources) or (known == in_a_row and not snapshot.folded):
        return None
    known += [junction.sources for junction in snapshot.junctions]
    return tags.Graph(tuple(known), tuple(x.label for x in snapshot.junctions), snapshot.folded)


class Sink(Protocol):
    """What events are written to. Every fault raises an OSError."""

    @property
    def place(self) -> str:
        """Its name in a warning."""

    def add(self, values: Iterable[Any], step: int, wall_time: float) -> None:
        """Write one event."""

    def close(self) -> None:
        """Close the log."""


class _EventFile(io.FileIO):
    """An event file without a buffer or a thread: an event survives `kill -9` as soon as `add` has returned.

    The file is a new one, or an existing one called `name`, to which events are appended. Its first `size` bytes are
    whole events.
    """

    def __init__(self, folder: str, name: str | None = None) -> None:
        os.makedirs(folder, exist_ok=True)
        unique = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_file_numbers)}"
        self.place = os.path.join(folder, name or f"events.out.tfevents.{unique}")
        super().__init__(self.place, "ab" if name else "xb")
        self.size = self.tell()
        try:
            lock(self.fileno(), wait=False)
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
        """Write all of `data` or raise. The system's own write may write a part, as where a disk is full."""
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
    """A user's SummaryWriter. If its thread has failed, the next call raises that thread's exception."""

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
        """Leave it open: it belongs to the user."""


def _open(logdir: str | os.PathLike[str], name: str | None = None) -> _EventFile:
    folder = os.path.abspath(logdir)
    try:
        return _EventFile(folder, name)
    except OSError as error:
        raise UsageError(f"cannot write to the log folder {folder}: {error.strerror}; choose another one") from error
