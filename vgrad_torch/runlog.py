"""A run read back from its folder: samples as records, scalars, texts, settings. TensorBoard's reader opens the files.

A folder may hold several event files: a run that was resumed, a `SummaryWriter` beside the monitor. Their events are
put together; where a step comes again, what was written later counts, and what an earlier run into the same folder left
from that step on is dropped.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from vgrad_torch.choices import UsageError
from vgrad_torch.plugin import metadata as names
from vgrad_torch.records import Counts, Floats, Histogram, LayerSnapshot, Snapshot, Stats

SAMPLES = 4096
"""Samples kept at most, as a monitor's history does; `LAYERS` of them in all."""
LAYERS = 1 << 16


@dataclass(frozen=True, slots=True)
class Logged(Stats):
    """What an event file keeps of a tensor: what it does not keep is NaN, and a count that it does not tell is 0."""

    logged_rms: float = math.nan

    @property
    def rms(self) -> float:
        """As it was written; mean and std may be missing."""
        return self.logged_rms


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its folder holds it.

    Attributes:
        name: the folder's.
        folder: where its files are.
        history: the samples in order of their steps; of very many, every second, fourth, ...
        samples: how many there were.
        scalars: (step, value) by tag.
        texts: the newest text of each tag of the package's that is not older than the newest sample.
        config: `config.json`, or else the hyperparameters in the event file.
        built_in: whether it is a run of `vgrad train`, whose config says what the network is.
        notes: what a reader must know of the files, sentence by sentence.
    """

    name: str
    folder: Path
    history: tuple[Snapshot, ...]
    samples: int
    scalars: Mapping[str, tuple[tuple[int, float], ...]]
    texts: Mapping[str, str]
    config: Mapping[str, Any]
    built_in: bool
    notes: tuple[str, ...]

    @property
    def counted(self) -> bool:
        """Whether it is known how many entries the outputs have, without which layers do not compare."""
        return all(s is None or s.count for s in (layer.output_gradient for layer in self.history[-1].layers))

    def losses(self) -> tuple[str, tuple[tuple[int, float], ...]]:
        """The training loss and its tag: the package's own, or else the first whose name has `loss` in it."""
        tags = [names.LOSS_TRAIN, *sorted(tag for tag in self.scalars if "loss" in tag.lower())]
        return next(((tag, self.scalars[tag]) for tag in tags if tag in self.scalars), ("", ()))


def read(path: Path) -> Run:
    """Read a run's folder, or one event file of it; also of a run that is going on, or that was killed.

    Raises:
        UsageError: there is nothing of the package's to be read; the message says what there is instead.
    """
    files = _event_files(path)
    found = _Found()
    for file in files:
        found.read(file)
    folder = path if path.is_dir() else path.parent
    config = _config(folder, found)
    if not found.samples:
        raise UsageError(_nothing(path, found))
    layers, samples = max(found.samples.items(), key=lambda item: len(item[1]))
    built_in = {"data", "act", "init", "optimizer", "batch"} <= set(config)
    history = tuple(_snapshot(sample, built_in, config) for sample in _thinned(samples, len(layers)))
    texts = {tag: text for tag, (time, text) in found.texts.items() if time >= history[-1].wall_time}
    scalars = {tag: tuple(points.items()) for tag, points in found.scalars.items()}
    name = folder.resolve().name or str(folder)
    return Run(name, folder, history, len(samples), scalars, texts, config, built_in, tuple(_notes(found, samples)))


@dataclass(frozen=True, slots=True)
class _Sample:
    """A gradient_flow tensor, not yet decoded; `counts` are the entries of output gradients by layer tag."""

    step: int
    wall_time: float
    axes: names.Axes
    tensor: Any
    counts: Mapping[str, int]
    histograms: Mapping[str, Any]


@dataclass(slots=True)
class _Found:
    """What the event files hold, as they are read one after the other."""

    samples: dict[tuple[str, ...], list[_Sample]] = field(default_factory=dict)
    scalars: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    texts: dict[str, tuple[float, str]] = field(default_factory=dict)
    hparams: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0
    problems: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    _axes: dict[str, names.Axes] = field(default_factory=dict)
    _counts: Mapping[str, int] = field(default_factory=dict)

    def read(self, file: Path) -> None:
        """Take all events of a file, up to where it is damaged or not yet written."""
        whole = file.stat().st_size
        seen = 0
        for record in RawEventFileLoader(str(file)).Load():
            seen += len(record) + 16  # a length of 8 bytes and two checksums of 4
            event = Event.FromString(record)
            self._take(event)
        if not seen:
            self.problems.append(f"{file.name} is {'damaged or no event file' if whole else 'empty'}.")
        elif seen < whole:
            rest = f"The last {whole - seen:,} bytes of {file.name} cannot be read"
            self.problems.append(f"{rest}: cut off, damaged, or being written.")

    def _take(self, event: Any) -> None:
        values = {value.tag: value for value in event.summary.value}
        self.tags |= values.keys()
        self._count(values)
        for tag, value in values.items():
            plugin = value.metadata.plugin_data
            if plugin.plugin_name == names.PLUGIN_NAME or tag in self._axes:
                self._take_flow(tag, value, event, values)
            elif value.HasField("simple_value") or plugin.plugin_name == "scalars" or tag in self.scalars:
                self._take_scalar(tag, value, event.step)
            elif tag in (names.VERDICT, names.FIRST_NONFINITE):
                self.texts[tag] = event.wall_time, _text(value)
            elif tag == hparams_metadata.SESSION_START_INFO_TAG:
                self.hparams |= _hparams(plugin.content)

    def _take_flow(self, tag: str, value: Any, event: Any, values: Mapping[str, Any]) -> None:
        if tag.startswith(names.THEORY):
            return
        if value.metadata.plugin_data.content:
            try:
                self._axes[tag] = names.decode(value.metadata.plugin_data.content)
            except (KeyError, ValueError, TypeError) as error:
                self.problems.append(f"{tag} cannot be read: its description is not ours ({error}).")
                return
        if tag not in self._axes:
            return
        axes = self._axes[tag]
        histograms = {x: values[y] for x in axes.layers if (y := names.layer_tag(names.GRADIENT_LOG10, x)) in values}
        samples = self.samples.setdefault(tuple(axes.layers), [])
        kept = [sample for sample in samples if sample.step < event.step] if _again(samples, event.step) else samples
        self.dropped += len(samples) - len(kept)
        kept.append(_Sample(event.step, event.wall_time, axes, value.tensor, self._counts, histograms))
        self.samples[tuple(axes.layers)] = kept

    def _take_scalar(self, tag: str, value: Any, step: int) -> None:
        number = value.simple_value if value.HasField("simple_value") else float(make_ndarray(value.tensor))
        points = self.scalars[tag]
        if points and step < next(reversed(points)):
            self.scalars[tag] = points = {s: x for s, x in points.items() if s < step}
        points[step] = number

    def _count(self, values: Mapping[str, Any]) -> None:
        """How many entries an output gradient has, from its histogram; it holds until there is another one."""
        group = names.layer_tag("output_gradient", "")
        new = {
            tag.removeprefix(group): int(make_ndarray(value.tensor)[:, 2].sum())
            for tag, value in values.items()
            if tag.startswith(group) and value.HasField("tensor") and len(value.tensor.tensor_shape.dim) == 2
        }
        if new:
            self._counts = {**self._counts, **new}


def _again(samples: list[_Sample], step: int) -> bool:
    return bool(samples) and samples[-1].step >= step


def _event_files(path: Path) -> list[Path]:
    """In the order they were begun: their names start with the time."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}; give the folder of a run, such as runs/mine")
    files = sorted(path.glob("*tfevents*"))
    if files:
        return files
    below = sorted({str(file.parent) for file in path.glob("*/*tfevents*")})
    more = f"; runs are below it: {', '.join(below[:3])}{', ...' if len(below) > 3 else ''}" if below else ""
    raise UsageError(f"{path} holds no event file{more or '; give the folder of a run, such as runs/mine'}")


def _nothing(path: Path, found: _Found) -> str:
    if found.problems:
        return f"{path} holds no gradients that can be read: {found.problems[0].removesuffix('.')}"
    if not found.tags:
        return f"{path} holds no gradients yet: nothing was written but the head of the event file"
    shown = ", ".join(sorted(found.tags)[:3]) + (", ..." if len(found.tags) > 3 else "")
    return (
        f"{path} holds events ({shown}) but no gradients; they come from `vgrad train` or from "
        "watch(model, optimizer, logdir=...)"
    )


def _config(folder: Path, found: _Found) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        return found.hparams
    except (OSError, ValueError) as error:
        found.problems.append(f"config.json cannot be read ({error}).")
        return found.hparams
    return config if isinstance(config, dict) else {"config": config}


def _notes(found: _Found, samples: list[_Sample]) -> Iterator[str]:
    yield from found.problems
    if found.dropped:
        yield f"{found.dropped:,} samples of an earlier run into the same folder are left out."
    others = sum(map(len, found.samples.values())) - len(samples)
    if others:
        yield f"{others:,} samples of other sets of layers are left out; TensorBoard's Gradient Flow tab shows them."
    if found.hparams and hparams_metadata.SESSION_END_INFO_TAG not in found.tags:
        yield "The log has no end: the run was stopped, or is still going on."


def _thinned(samples: list[_Sample], layers: int) -> list[_Sample]:
    """All of them, or every second, fourth, ... and the newest."""
    most = max(min(SAMPLES, LAYERS // max(layers, 1)), 2)
    stride = 1
    while -(-len(samples) // stride) > most:
        stride *= 2
    kept = samples[::stride]
    return kept if kept[-1] is samples[-1] else [*kept, samples[-1]]


_TAG = re.compile(r"(\d+)(?:-(.*?))??(?:#(\d+))?(?:-(\d+x\d+))?", re.DOTALL)


def _snapshot(sample: _Sample, built_in: bool, config: Mapping[str, Any]) -> Snapshot:
    paths = [names.COLUMNS.get(column) for column in sample.axes.statistics]
    rows = make_ndarray(sample.tensor).astype(np.float64)
    if rows.shape != (len(sample.axes.layers), len(paths)):
        raise UsageError(f"the sample of step {sample.step} does not fit its description; is the event file damaged?")
    batch = int(config["batch"]) if built_in else 0
    layers = [
        _layer(tag, {p: float(x) for p, x in zip(paths, row, strict=True) if p}, sample, batch, built_in)
        for tag, row in zip(sample.axes.layers, rows, strict=True)
    ]
    return Snapshot(sample.step, tuple(layers), sample.wall_time)


def _layer(tag: str, numbers: Mapping[str, float], sample: _Sample, batch: int, built_in: bool) -> LayerSnapshot:
    """A layer from its row. What `vgrad train` trains are `Linear` layers; of others the kind is not in the file."""
    number, name, call, size = _parts(tag)
    fan_in, fan_out = map(int, size.split("x")) if size else (0, 0)
    outputs = sample.counts.get(tag, batch * fan_out)
    inputs = outputs * fan_in // fan_out if fan_out else 0
    gradient = _stats(numbers, "weight_gradient", fan_in * fan_out, _histogram(sample.histograms.get(tag)))
    update, gain = numbers.get("update_rms", math.nan), numbers.get("activation_gain", math.nan)
    return LayerSnapshot(
        number, name, "Linear" if built_in else "", size, call,
        weight=_stats(numbers, "weight", fan_in * fan_out),
        weight_gradient=gradient,
        output=_stats(numbers, "output", outputs),
        output_gradient=_stats(numbers, "output_gradient", outputs),
        input_gradient=_stats(numbers, "input_gradient", inputs),
        update_rms=None if math.isnan(update) else update,
        activation_gain=None if math.isnan(gain) else gain,
    )  # fmt: skip


def _parts(tag: str) -> tuple[int, str, int, str]:
    """Number, name, call and size of a layer's tag.

    >>> _parts("1-fc1-784x512"), _parts("2-head"), _parts("3-cell#2-8x8"), _parts("1-8x8")
    ((1, 'fc1', 1, '784x512'), (2, 'head', 1, ''), (3, 'cell', 2, '8x8'), (1, '', 1, '8x8'))
    """
    match = _TAG.fullmatch(tag)
    if match is None:
        return 0, tag, 1, ""
    return int(match[1]), match[2] or "", int(match[3] or 1), match[4] or ""


def _stats(numbers: Mapping[str, float], quantity: str, count: int, histogram: Histogram | None = None) -> Stats | None:
    """None where the quantity was not there: then not even its non-finite entries were counted."""

    def of(statistic: str) -> float:
        return numbers.get(f"{quantity}.{statistic}", math.nan)

    if math.isnan(of("rms")) and math.isnan(of("nonfinite")):
        return None
    zeros, nonfinite = of("zero_fraction"), of("nonfinite")
    return Logged(
        count, 0 if math.isnan(zeros) else round(zeros * count), 0 if math.isnan(nonfinite) else int(nonfinite),
        of("mean"), of("std"), math.nan, math.nan, histogram, of("rms"),
    )  # fmt: skip


def _histogram(value: Any) -> Histogram | None:
    """A log10 histogram as buckets of magnitudes: all that it counts between two edges lies at the lower one.

    The outermost buckets hold a trace more than was counted, far less than one entry; rounding takes it off.
    """
    if value is None:
        return None
    rows: Floats = make_ndarray(value.tensor)
    codes = (np.round(rows[:, 0] / math.log10(2)).astype(np.int64) + 127) * 8
    counts: Counts = np.round(rows[:, 2]).astype(np.int64)
    return Histogram(codes[counts > 0].astype(np.uint16), counts[counts > 0])


def _hparams(content: bytes) -> dict[str, Any]:
    start = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind") or "string_value") for name, value in start.items()}


def _text(value: Any) -> str:
    first = make_ndarray(value.tensor).ravel()[:1].tolist()
    return "".join(part.decode(errors="replace") if isinstance(part, bytes) else str(part) for part in first)
