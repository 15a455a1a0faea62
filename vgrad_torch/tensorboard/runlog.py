"""A run read back from its folder: samples as records, and what else was logged, of whole runs and of parts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.util.tensor_util import make_ndarray

from vgrad_torch.errors import UsageError
from vgrad_torch.records import Counts, Floats, Histogram, LayerSnapshot, Snapshot, Stats
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.events import Events, Sample, event_files

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
        texts: what the run wrote of itself, by tag: `verdict`, if no sample is newer, and `first_nonfinite`.
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
        candidates = [tags.LOSS_TRAIN, *sorted(tag for tag in self.scalars if "loss" in tag.lower())]
        return next(((tag, self.scalars[tag]) for tag in candidates if tag in self.scalars), ("", ()))


def read(path: Path) -> Run:
    """Read a run's folder, or one event file of it; also of a run that is going on, or that was killed.

    Raises:
        UsageError: there is nothing of the package's to be read; the message says what there is instead.
    """
    files = event_files(path)
    found = Events()
    for file in files:
        found.read(file)
    folder = path if path.is_dir() else path.parent
    config = _config(folder, found)
    if not found.samples:
        raise UsageError(_nothing(path, found))
    samples = max(found.samples.values(), key=len)
    built_in = {"data", "act", "init", "optimizer", "batch"} <= set(config) and isinstance(config["batch"], int)
    history = tuple(_snapshot(sample, built_in, config) for sample in _thinned(samples))
    since = {tags.VERDICT: history[-1].wall_time, tags.FIRST_NONFINITE: history[0].wall_time}
    texts = {tag: text for tag, (time, text) in found.texts.items() if time >= since[tag]}
    scalars = {tag: tuple(points.items()) for tag, points in found.scalars.items()}
    name = folder.resolve().name or str(folder)
    return Run(name, folder, history, len(samples), scalars, texts, config, built_in, tuple(_notes(found, samples)))


def _nothing(path: Path, found: Events) -> str:
    if found.problems:
        return f"{path} holds no gradients that can be read: {found.problems[0].removesuffix('.')}"
    if not found.all_tags:
        return f"{path} holds no gradients yet: nothing was written but the head of the event file"
    shown = ", ".join(sorted(found.all_tags)[:3]) + (", ..." if len(found.all_tags) > 3 else "")
    return (
        f"{path} holds events ({shown}) but no gradients; they come from `vgrad train` or from "
        "watch(model, optimizer, logdir=...)"
    )


def _config(folder: Path, found: Events) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        return found.hparams
    except (OSError, ValueError) as error:
        found.problems.append(f"config.json cannot be read ({error}).")
        return found.hparams
    return config if isinstance(config, dict) else {"config": config}


def _notes(found: Events, samples: list[Sample]) -> Iterator[str]:
    yield from found.problems
    if found.dropped:
        yield f"{found.dropped:,} samples of an earlier run into the same folder are left out."
    others = sum(map(len, found.samples.values())) - len(samples)
    if others:
        yield f"{others:,} samples of another model, or of other layers, are left out; the tab in TensorBoard has them."
    if found.end:
        yield found.end


def _thinned(samples: list[Sample]) -> list[Sample]:
    """All of them, or every second, fourth, ... and the newest."""
    layers = max(len(sample.axes.layers) for sample in samples)
    most = max(min(SAMPLES, LAYERS // max(layers, 1)), 2)
    stride = 1
    while -(-len(samples) // stride) > most:
        stride *= 2
    kept = samples[::stride]
    return kept if kept[-1] is samples[-1] else [*kept, samples[-1]]


def _snapshot(sample: Sample, built_in: bool, config: Mapping[str, Any]) -> Snapshot:
    paths = [tags.COLUMNS.get(column) for column in sample.axes.statistics]
    rows = make_ndarray(sample.tensor).astype(np.float64)
    if rows.shape != (len(sample.axes.layers), len(paths)):
        raise UsageError(f"the sample of step {sample.step} does not fit its description; is the event file damaged?")
    batch = config["batch"] if built_in else 0
    layers = [
        _layer(tag, {p: float(x) for p, x in zip(paths, row, strict=True) if p}, sample, batch, built_in)
        for tag, row in zip(sample.axes.layers, rows, strict=True)
    ]
    return Snapshot(sample.step, tuple(layers), sample.wall_time)


def _layer(tag: str, numbers: Mapping[str, float], sample: Sample, batch: int, built_in: bool) -> LayerSnapshot:
    """A layer from its row. What `vgrad train` trains are `Linear` layers; of others the kind is not in the file."""
    number, name, call, size = tags.parse_layer(tag)
    fan_in, fan_out = map(int, size.split("x")) if size else (0, 0)
    counts = {quantity: sample.counts.get(tags.layer_tag(x, tag)) for x, quantity in tags.LAYER_HISTOGRAMS.items()}
    weights = counts["weight"] or fan_in * fan_out
    outputs = counts["output_gradient"] or counts["output"] or batch * fan_out
    gradient = _stats(numbers, "weight_gradient", weights, _histogram(sample.histograms.get(tag)))
    update, gain = numbers.get("update_rms", math.nan), numbers.get("activation_gain", math.nan)
    return LayerSnapshot(
        number, name, "Linear" if built_in else "", size, call,
        weight=_stats(numbers, "weight", weights),
        weight_gradient=gradient,
        output=_stats(numbers, "output", outputs),
        output_gradient=_stats(numbers, "output_gradient", outputs),
        input_gradient=_stats(numbers, "input_gradient", outputs * fan_in // fan_out if fan_out else 0),
        update_rms=None if math.isnan(update) else update,
        activation_gain=None if math.isnan(gain) else gain,
    )  # fmt: skip


def _stats(numbers: Mapping[str, float], quantity: str, count: int, histogram: Histogram | None = None) -> Stats | None:
    """None where the quantity was not there: then not even its non-finite entries were counted."""

    def of(statistic: str) -> float:
        return numbers.get(f"{quantity}.{statistic}", math.nan)

    if math.isnan(of("rms")) and math.isnan(of("nonfinite")):
        return None
    zeros, bad = (0.0 if math.isnan(each) else each for each in (of("zero_fraction"), of("nonfinite")))
    count = max(count, int(bad))  # no histogram is written of a tensor without a finite entry
    return Logged(
        count, round(zeros * count), int(bad), of("mean"), of("std"), math.nan, math.nan, histogram, of("rms")
    )


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
