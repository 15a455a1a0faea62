"""Reads all event files of a run: gradient_flow tensors, scalars, texts and hyperparameters.

A folder may hold several files: of a run that was resumed, or of a `SummaryWriter` beside the monitor. Where a step
occurs twice, the later one counts, and everything that an earlier run into the folder wrote from that step on is
dropped.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from vgrad_torch.errors import UsageError
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.summary import decode_text

_COUNTED_PREFIXES = tuple(tags.layer_tag(group, "") for group in tags.LAYER_HISTOGRAMS)


@dataclass(frozen=True, slots=True)
class Sample:
    """A gradient_flow tensor, not yet decoded, and the histograms of the weight gradients, by layer tag.

    `times` are the tensors of the time profiles, by layer tag.
    `counts` is the number of entries of each tensor, by the tag of its histogram.
    """

    step: int
    wall_time: float
    axes: tags.Axes
    tensor: Any
    counts: Mapping[str, int]
    histograms: Mapping[str, Any]
    times: Mapping[str, Any]


@dataclass(slots=True)
class Events:
    """What the event files hold; `read` adds a file."""

    samples: dict[tuple[str, ...], list[Sample]] = field(default_factory=dict)
    scalars: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    texts: dict[str, tuple[float, str]] = field(default_factory=dict)
    hparams: dict[str, Any] = field(default_factory=dict)
    status: int | None = None
    """How the run ended: a `Status` of the HParams plugin; None where the log does not say."""
    dropped: int = 0
    """Samples of an earlier run into the same folder."""
    problems: list[str] = field(default_factory=list)
    all_tags: set[str] = field(default_factory=set)
    _axes: dict[str, tags.Axes] = field(default_factory=dict)
    _counts: Mapping[str, int] = field(default_factory=dict)

    def read(self, file: Path) -> None:
        """Add all events of a file, up to where it is damaged or not yet written."""
        size = file.stat().st_size
        bytes_read = 0
        for record in RawEventFileLoader(str(file)).Load():
            bytes_read += len(record) + 16  # a length of 8 bytes and two checksums of 4
            self._add(Event.FromString(record))
        if not bytes_read:
            self.problems.append(f"{file.name} is {'damaged or no event file' if size else 'empty'}.")
        elif bytes_read < size:
            rest = f"The last {size - bytes_read:,} bytes of {file.name} cannot be read"
            self.problems.append(f"{rest}: cut off, damaged, or being written.")

    def _add(self, event: Any) -> None:
        values = {value.tag: value for value in event.summary.value}
        self.all_tags |= values.keys()
        self._count(values)
        for tag, value in values.items():
            plugin = value.metadata.plugin_data
            if plugin.plugin_name == tags.PLUGIN_NAME or tag in self._axes:
                self._add_sample(tag, value, event, values)
            elif value.HasField("simple_value") or plugin.plugin_name == "scalars" or tag in self.scalars:
                self._add_scalar(tag, value, event.step)
            elif tag in (tags.VERDICT, tags.FIRST_NONFINITE):
                self.texts[tag] = event.wall_time, decode_text(make_ndarray(value.tensor))
            elif tag == hparams_metadata.SESSION_START_INFO_TAG:
                self.hparams |= _hparams(plugin.content)
                self.status = None  # a resumed run has not ended yet
            elif tag == hparams_metadata.SESSION_END_INFO_TAG:
                self.status = HParamsPluginData.FromString(plugin.content).session_end_info.status

    def _add_sample(self, tag: str, value: Any, event: Any, values: Mapping[str, Any]) -> None:
        if tag.startswith((tags.THEORY, tags.TIME)):
            return
        if value.metadata.plugin_data.content:
            try:
                self._axes[tag] = tags.decode_axes(value.metadata.plugin_data.content)
            except (KeyError, ValueError, TypeError) as error:
                self.problems.append(f"{tag} cannot be read: its description was not written by vgrad_torch ({error}).")
                return
        if tag not in self._axes:
            return
        axes = self._axes[tag]
        histogram_tags = {layer: tags.layer_tag(tags.GRADIENT_LOG10, layer) for layer in axes.layers}
        histograms = {layer: values[name] for layer, name in histogram_tags.items() if name in values}
        time_tags = {layer: tags.time_tag(layer) for layer in axes.layers}
        times = {layer: values[name].tensor for layer, name in time_tags.items() if name in values}
        layers = tuple(dict.fromkeys(map(tags.without_call, axes.layers)))  # the number of calls may change
        samples = self.samples.setdefault(layers, [])
        if samples and samples[-1].step >= event.step:
            self.samples[layers] = earlier = [sample for sample in samples if sample.step < event.step]
            self.dropped += len(samples) - len(earlier)
        sample = Sample(event.step, event.wall_time, axes, value.tensor, self._counts, histograms, times)
        self.samples[layers].append(sample)

    def _add_scalar(self, tag: str, value: Any, step: int) -> None:
        number = value.simple_value if value.HasField("simple_value") else float(make_ndarray(value.tensor))
        points = self.scalars[tag]
        if points and step < next(reversed(points)):
            self.scalars[tag] = points = {s: x for s, x in points.items() if s < step}
        points[step] = number

    def _count(self, values: Mapping[str, Any]) -> None:
        """Take the number of a tensor's entries from its histogram; it is valid until the next histogram."""
        new = {
            tag: int(make_ndarray(value.tensor)[:, 2].sum())
            for tag, value in values.items()
            if tag.startswith(_COUNTED_PREFIXES) and len(value.tensor.tensor_shape.dim) == 2
        }
        if new:
            self._counts = {**self._counts, **new}

    @property
    def end(self) -> str | None:
        """A sentence about the run's end, unless it ended well."""
        if self.status == api_pb2.STATUS_FAILURE:
            return "The run ended with an error; the result of its last step is not in the log."
        if self.hparams and self.status is None:
            return "The log has no end: the run was stopped or is still going on."
        return None


def event_files(path: Path) -> list[Path]:
    """The event files of a folder, or the file itself, oldest first: their names hold the time, then a number."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}; give the folder of a run, such as runs/mine")
    files = sorted(path.glob("*tfevents*"), key=lambda file: _by_numbers(file.name))
    if files:
        return files
    runs = sorted({str(file.parent) for file in path.glob("*/*tfevents*")})
    listed = f"; runs are below it: {', '.join(runs[:3])}{', ...' if len(runs) > 3 else ''}" if runs else ""
    raise UsageError(f"{path} holds no event file{listed or '; give the folder of a run, such as runs/mine'}")


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """A key that puts `events.9` before `events.10`."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _hparams(content: bytes) -> dict[str, Any]:
    start = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind") or "string_value") for name, value in start.items()}
