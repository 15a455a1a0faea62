"""Reads a logged run back from its folder: its samples as records, and everything else that was logged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.util.tensor_util import make_ndarray

from vgrad_torch.errors import UsageError
from vgrad_torch.records import Counts, Floats, Histogram, JunctionSnapshot, LayerSnapshot, Snapshot, Stats, TimeProfile
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.events import Events, Sample, event_files
from vgrad_torch.tensorboard.time_profiles import decode_profile

SAMPLES = 4096
"""Largest number of samples that is kept, as in a monitor's history."""
LAYERS = 1 << 16
"""Largest number of layers in all kept samples together."""


@dataclass(frozen=True, slots=True)
class Logged(Stats):
    """What an event file holds of a tensor. A number that it does not hold is NaN, a count that it does not hold 0."""

    logged_rms: float = math.nan

    @property
    def rms(self) -> float:
        """The RMS as it was written, because mean and std may be missing."""
        return self.logged_rms


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it is in its folder.

    Attributes:
        name: name of the folder.
        folder: where its files are.
        history: the samples in order of their steps; if there are very many, every second, fourth, ...
        samples: their number before any were left out.
        scalars: (step, value) by tag.
        texts: the run's texts by tag: `verdict`, if no sample is newer, and `first_nonfinite`.
        config: `config.json`, or else the hyperparameters in the event file.
        built_in: whether it is a run of `vgrad train`, whose config describes the network.
        notes: sentences about the state of the files.
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
        """Whether the number of entries of each output gradient is known, which comparing layers needs."""
        return all(s is None or s.count for s in (layer.output_gradient for layer in self.history[-1].layers))

    def losses(self) -> tuple[str, tuple[tuple[int, float], ...]]:
        """Tag and points of the training loss: `loss/train`, or else the first tag with `loss` in its name."""
        candidates = [tags.LOSS_TRAIN, *sorted(tag for tag in self.scalars if "loss" in tag.lower())]
        return next(((tag, self.scalars[tag]) for tag in candidates if tag in self.scalars), ("", ()))


def read(path: Path) -> Run:
    """Read a run's folder, or one event file of it. The run may still be going on, or may have been killed.

    Raises:
        UsageError: there are no gradients; the message says what there is instead.
    """
    events = Events()
    for file in event_files(path):
        events.read(file)
    folder = path if path.is_dir() else path.parent
    config = _config(folder, events)
    if not events.samples:
        raise UsageError(_no_samples(path, events))
    samples = max(events.samples.values(), key=len)
    built_in = {"data", "act", "init", "optimizer", "batch"} <= set(config) and isinstance(config["batch"], int)
    history = tuple(_snapshot(sample, built_in, config) for sample in _thinned(samples))
    valid_since = {tags.VERDICT: history[-1].wall_time, tags.FIRST_NONFINITE: history[0].wall_time}
    texts = {tag: text for tag, (time, text) in events.texts.items() if time >= valid_since[tag]}
    scalars = {tag: tuple(points.items()) for tag, points in events.scalars.items()}
    name = folder.resolve().name or str(folder)
    return Run(name, folder, history, len(samples), scalars, texts, config, built_in, tuple(_notes(events, samples)))


def _no_samples(path: Path, events: Events) -> str:
    if events.problems:
        return f"{path} holds no gradients that can be read: {events.problems[0].removesuffix('.')}"
    if not events.all_tags:
        return f"{path} holds no gradients yet: the event file holds nothing but its head"
    shown = ", ".join(sorted(events.all_tags)[:3]) + (", ..." if len(events.all_tags) > 3 else "")
    return (
        f"{path} holds events ({shown}) but no gradients; they come from `vgrad train` or from "
        "watch(model, optimizer, logdir=...)"
    )


def _config(folder: Path, events: Events) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        return events.hparams
    except (OSError, ValueError) as error:
        events.problems.append(f"config.json cannot be read ({error}).")
        return events.hparams
    return config if isinstance(config, dict) else {"config": config}


def _notes(events: Events, samples: list[Sample]) -> Iterator[str]:
    yield from events.problems
    if events.dropped:
        yield f"{events.dropped:,} samples of an earlier run into the same folder are left out."
    others = sum(map(len, events.samples.values())) - len(samples)
    if others:
        yield f"{others:,} samples of another model, or of other layers, are left out. The Gradient Flow tab has them."
    if events.end:
        yield events.end


def _thinned(samples: list[Sample]) -> list[Sample]:
    """All samples, or every second, fourth, ... and the newest one."""
    layers = max(len(sample.axes.layers) for sample in samples)
    limit = max(min(SAMPLES, LAYERS // max(layers, 1)), 2)
    stride = 1
    while -(-len(samples) // stride) > limit:
        stride *= 2
    kept = samples[::stride]
    return kept if kept[-1] is samples[-1] else [*kept, samples[-1]]


def _snapshot(sample: Sample, built_in: bool, config: Mapping[str, Any]) -> Snapshot:
    paths = [tags.COLUMNS.get(column) for column in sample.axes.statistics]
    rows = make_ndarray(sample.tensor).astype(np.float64)
    if rows.shape != (sample.axes.rows, len(paths)):
        raise UsageError(f"the sample of step {sample.step} does not fit its description; is the event file damaged?")
    batch = config["batch"] if built_in else 0
    layers = [
        _layer(tag, {p: float(x) for p, x in zip(paths, row, strict=True) if p}, sample, batch, built_in)
        for tag, row in zip(sample.axes.layers, rows, strict=False)
    ]
    graph = sample.axes.graph
    if graph is None or graph.problem:
        folded, problem = (graph.folded, graph.problem) if graph else (0, "")
        return Snapshot(sample.step, tuple(layers), sample.wall_time, folded=folded, graph_problem=problem)
    wired = [replace(layer, sources=sources) for layer, sources in zip(layers, graph.sources, strict=False)]
    met = zip(graph.junctions, graph.sources[len(layers) :], _met(rows[len(layers) :], paths), strict=True)
    junctions = tuple(JunctionSnapshot(label, sources, rms) for label, sources, rms in met)
    return Snapshot(sample.step, tuple(wired), sample.wall_time, junctions, graph.folded)


def _met(rows: Floats, paths: Sequence[str | None]) -> list[float]:
    """The RMS of the gradient at each junction, from its row."""
    column = paths.index("output_gradient.rms") if "output_gradient.rms" in paths else None
    return [math.nan if column is None else float(row[column]) for row in rows]


def _layer(tag: str, row: Mapping[str, float], sample: Sample, batch: int, built_in: bool) -> LayerSnapshot:
    """A layer from its row. `vgrad train` trains `Linear` layers; for other runs the kind is not in the file."""
    number, name, call, size = tags.parse_layer(tag)
    channels, _, kernel = size.partition(" ")
    fan_in, fan_out = map(int, channels.split("x")) if channels else (0, 0)
    histograms = tags.LAYER_HISTOGRAMS.items()
    counts = {quantity: sample.counts.get(tags.layer_tag(group, tag)) for group, quantity in histograms}
    weights = counts["weight"] or fan_in * fan_out * math.prod(map(int, kernel.split("x") if kernel else []))
    outputs = counts["output_gradient"] or counts["output"] or batch * fan_out
    gradient = _stats(row, "weight_gradient", weights, _histogram(sample.histograms.get(tag)))
    update, gain = row.get("update_rms", math.nan), row.get("activation_gain", math.nan)
    return LayerSnapshot(
        number, name, "Linear" if built_in else "", size, call,
        weight=_stats(row, "weight", weights),
        weight_gradient=gradient,
        output=_stats(row, "output", outputs),
        output_gradient=_stats(row, "output_gradient", outputs),
        input_gradient=_stats(row, "input_gradient", outputs * fan_in // fan_out if fan_out else 0),
        update_rms=None if math.isnan(update) else update,
        activation_gain=None if math.isnan(gain) else gain,
        time=_time(sample, tag),
    )  # fmt: skip


def _time(sample: Sample, tag: str) -> TimeProfile | None:
    if tag not in sample.times:
        return None
    try:
        return decode_profile(make_ndarray(sample.times[tag]))
    except ValueError as error:
        raise UsageError(f"the sample of step {sample.step} cannot be read: {error}") from error


def _stats(row: Mapping[str, float], quantity: str, count: int, histogram: Histogram | None = None) -> Stats | None:
    """The statistics of one tensor; None where the row has neither its RMS nor its number of non-finite entries."""

    def value(statistic: str) -> float:
        return row.get(f"{quantity}.{statistic}", math.nan)

    if math.isnan(value("rms")) and math.isnan(value("nonfinite")):
        return None
    zeros, nonfinite = (0.0 if math.isnan(x) else x for x in (value("zero_fraction"), value("nonfinite")))
    count = max(count, int(nonfinite))  # no histogram is written of a tensor without a finite entry
    return Logged(
        count, round(zeros * count), int(nonfinite), value("mean"), value("std"), math.nan, math.nan, histogram,
        value("rms"),
    )  # fmt: skip


def _histogram(value: Any) -> Histogram | None:
    """A log10 histogram as a histogram of magnitudes, which places all entries of a bucket at its lower edge.

    Rounding removes the `TRACE` that was added to the outermost buckets.
    """
    if value is None:
        return None
    rows: Floats = make_ndarray(value.tensor)
    codes = (np.round(rows[:, 0] / math.log10(2)).astype(np.int64) + 127) * 8
    counts: Counts = np.round(rows[:, 2]).astype(np.int64)
    return Histogram(codes[counts > 0].astype(np.uint16), counts[counts > 0])
