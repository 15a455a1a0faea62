"""What is written comes back from TensorBoard's own reader; faults are one warning; nothing is lost on kill -9."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.distribution.compressor import compress_histogram
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util.tensor_util import make_ndarray

from tests import ROOT
from tests.support.disk import files_of_at_most
from vgrad_torch.errors import UsageError
from vgrad_torch.records import Histogram, LayerSnapshot, Snapshot, Stats
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.histograms import LOG_EXPONENTS
from vgrad_torch.tensorboard.writer import Writer
from vgrad_torch.watching.watch import watch

Array = npt.NDArray[np.float32]

LOG_EDGES = np.array(LOG_EXPONENTS) * math.log10(2)


def stats_of(x: Array) -> Stats:
    finite = x[np.isfinite(x)].astype(np.float64)
    codes = x.astype("<f4").view(np.uint32) >> 20
    mean, std, low, high = (finite.mean(), finite.std(), finite.min(), finite.max()) if finite.size else (math.nan,) * 4
    histogram = Histogram.from_dense(np.bincount(codes, minlength=4096))
    return Stats(
        x.size, int((x == 0).sum()), x.size - finite.size, float(mean), float(std), float(low), float(high), histogram
    )


def normal(scale: float, size: int = 1000, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


def layer_of(number: int = 1, name: str = "fc1", gradient: Array | None = None) -> LayerSnapshot:
    return LayerSnapshot(
        number, name, "Linear", "4x3",
        weight=stats_of(normal(0.1, seed=number)),
        weight_gradient=stats_of(normal(1e-3**number, seed=10 + number) if gradient is None else gradient),
        output=stats_of(normal(1.0, seed=20 + number)),
        output_gradient=stats_of(normal(1e-2, seed=30 + number)),
        input_gradient=stats_of(normal(1e-3, seed=40 + number)),
        update_rms=1e-4 * number,
        activation_gain=0.25,
    )  # fmt: skip


def net(step: int = 0, layers: int = 2) -> Snapshot:
    return Snapshot(step, tuple(layer_of(n, f"fc{n}") for n in range(1, layers + 1)), 1234.5)


def read(folder: Path) -> Any:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0}).Reload()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def events(folder: Path) -> list[Any]:
    (path,) = files(folder)
    return list(event_file_loader.LegacyEventFileLoader(str(path)).Load())


def rows_of(run: Any, tag: str, index: int = 0) -> npt.NDArray[Any]:
    rows: npt.NDArray[Any] = make_ndarray(run.Tensors(tag)[index].tensor_proto)
    return rows


def write(folder: Path, *snapshots: Snapshot, histograms: bool = True, depth_profile: bool = True) -> Any:
    writer = Writer(folder)
    for snapshot in snapshots:
        writer.snapshot(snapshot, histograms=histograms)
        if depth_profile:
            writer.depth_profile(snapshot)
    writer.close()
    return read(folder)


def keep_writing(writer: Writer) -> None:
    for step in range(3):
        writer.snapshot(net(step), histograms=True)
        writer.depth_profile(net(step))
        writer.scalars({"a": 1.0}, step)
        writer.text("verdict", "")
    writer.close()


def assert_one_warning(writer: Writer, match: str) -> None:
    with pytest.warns(RuntimeWarning, match=match) as caught:
        keep_writing(writer)
    (warning,) = caught
    assert str(warning.message).endswith("; training goes on without logging")


# --- what is in an event -------------------------------------------------------------------------------------------


def test_every_tag_of_a_snapshot_is_there(tmp_path: Path) -> None:
    written = write(tmp_path, net(100)).Tags()
    scalars = "gradient_mean gradient_std gradient_log10_rms weight_mean weight_std update_log10_ratio zero_fraction"
    histograms = "gradient gradient_log10 weight output output_gradient"
    layers = ["1-fc1-4x3", "2-fc2-4x3"]
    assert set(written["scalars"]) == {f"{group}/{layer}" for group in scalars.split() for layer in layers}
    assert set(written["tensors"]) == {f"{group}/{layer}" for group in histograms.split() for layer in layers} | {
        "gradient_flow",
        "depth_profile/step_000100",
    }


def test_scalars_are_the_snapshots_numbers(tmp_path: Path) -> None:
    gradient = np.concatenate([normal(1e-6, 900), np.zeros(100, np.float32)])
    run = write(tmp_path, Snapshot(7, (layer_of(gradient=gradient),), 1234.5))
    layer = layer_of(gradient=gradient)
    assert layer.weight is not None
    exact = gradient.astype(np.float64)
    expected = {
        "gradient_mean": exact.mean(),
        "gradient_std": exact.std(),
        "gradient_log10_rms": math.log10(math.sqrt((exact**2).mean())),
        "weight_mean": layer.weight.mean,
        "weight_std": layer.weight.std,
        "update_log10_ratio": math.log10(1e-4 / layer.weight.rms),
        "zero_fraction": 0.1,
    }
    for group, value in expected.items():
        (point,) = run.Scalars(f"{group}/1-fc1-4x3")
        assert (point.step, point.wall_time) == (7, 1234.5)
        assert point.value == pytest.approx(value, rel=2e-7), group


@pytest.mark.parametrize(
    ("group", "quantity"),
    [("gradient", 11), ("weight", 1), ("output", 21), ("output_gradient", 31)],
)
def test_histogram_counts_are_numpys_on_the_same_edges(tmp_path: Path, group: str, quantity: int) -> None:
    scale = {"gradient": 1e-3, "weight": 0.1, "output": 1.0, "output_gradient": 1e-2}[group]
    values = normal(scale, seed=quantity)
    rows = rows_of(write(tmp_path, net()), f"{group}/1-fc1-4x3")
    assert rows.dtype == np.float64
    np.testing.assert_array_equal(rows[1:, 0], rows[:-1, 1])
    edges = np.append(rows[:, 0], rows[-1, 1])
    np.testing.assert_array_equal(rows[:, 2], np.histogram(values, edges)[0])
    assert rows[:, 2].sum() == values.size


def test_log10_histogram_has_fixed_edges_and_numpys_counts(tmp_path: Path) -> None:
    run = write(tmp_path, net())
    for number in (1, 2):
        rows = rows_of(run, f"gradient_log10/{number}-fc{number}-4x3")
        assert rows.shape == (30, 3)
        np.testing.assert_array_equal(np.append(rows[:, 0], rows[-1, 1]), LOG_EDGES)
        magnitudes = np.abs(normal(1e-3**number, seed=10 + number)).astype(np.float64)
        np.testing.assert_array_equal(untraced(rows), np.histogram(magnitudes, 2.0 ** np.array(LOG_EXPONENTS))[0])


def test_log10_histogram_keeps_what_lies_beyond_its_ends(tmp_path: Path) -> None:
    gradient = np.array([1e-30, 1e-30, 1e30, 0.0], np.float32)
    rows = rows_of(write(tmp_path, Snapshot(0, (layer_of(gradient=gradient),))), "gradient_log10/1-fc1-4x3")
    counts = untraced(rows)
    assert (counts[0], counts[-1], counts.sum()) == (2, 1, 3)


def test_depth_profile_has_the_layer_number_as_step_and_adds_up_to_one(tmp_path: Path) -> None:
    run = write(tmp_path, net(20), net(1_234_567))
    assert "depth_profile/step_1234567" in run.Tags()["tensors"]
    points = run.Tensors("depth_profile/step_000020")
    assert [(point.step, point.wall_time) for point in points] == [(1, 1234.5), (2, 1234.5)]
    for index, number in enumerate((1, 2)):
        rows = rows_of(run, "depth_profile/step_000020", index)
        whole = rows_of(run, f"gradient_log10/{number}-fc{number}-4x3")
        np.testing.assert_allclose(rows, whole / [1, 1, whole[:, 2].sum()], rtol=1e-15)


def untraced(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Counts without the trace in the outermost buckets."""
    counts = np.round(rows[:, 2])
    np.testing.assert_array_equal(np.flatnonzero(counts != rows[:, 2]), [0, len(rows) - 1])
    np.testing.assert_allclose(counts, rows[:, 2], rtol=0, atol=1.1e-9 * counts.sum())
    return counts


@pytest.mark.parametrize("tag", ["gradient_log10/1-fc1-4x3", "depth_profile/step_000000"])
def test_distributions_of_log10_histograms_lie_where_the_values_are(tmp_path: Path, tag: str) -> None:
    """TensorBoard's own percentiles; it would stretch the lowest occupied bucket down to the end of the axis."""
    gradient = np.full(100, 1e-3, np.float32)
    run = write(tmp_path, Snapshot(0, (layer_of(gradient=gradient),)))
    low, *inner, high = (value for _, value in compress_histogram(rows_of(run, tag)))
    assert -3.1 < min(inner) <= max(inner) < -2.4
    assert (low, high) == pytest.approx((LOG_EDGES[0], LOG_EDGES[-1]))


@pytest.mark.parametrize("tag", ["gradient_log10/1-fc1-4x3", "depth_profile/step_000000"])
def test_distribution_of_an_all_zero_gradient_is_at_the_lower_end(tmp_path: Path, tag: str) -> None:
    run = write(tmp_path, Snapshot(0, (layer_of(gradient=np.zeros(50, np.float32)),)))
    *lines, _ = (value for _, value in compress_histogram(rows_of(run, tag)))
    assert max(lines) <= LOG_EDGES[1]


def test_histograms_are_charts_of_tensorboards_histogram_plugin(tmp_path: Path) -> None:
    run = write(tmp_path, net())
    for tag in ("gradient/1-fc1-4x3", "gradient_log10/1-fc1-4x3", "depth_profile/step_000000"):
        metadata = run.SummaryMetadata(tag)
        assert (metadata.plugin_data.plugin_name, metadata.data_class) == ("histograms", 2)


def test_gradient_flow_is_the_snapshot_bit_for_bit(tmp_path: Path) -> None:
    tiny = Stats(10, 4, 1, 0.0, 1e-40, 0.0, 1e-40)
    layers = (layer_of(1), LayerSnapshot(2, "fc2", "Linear", "3x2", weight_gradient=tiny))
    run = write(tmp_path, Snapshot(3, layers))
    table = rows_of(run, "gradient_flow")
    assert table.dtype == np.float32
    axes = tags.decode_axes(run.SummaryMetadata("gradient_flow").plugin_data.content)
    assert axes.layers == ["1-fc1-4x3", "2-fc2-3x2"]
    second = dict(zip(axes.statistics, table[1], strict=True))
    known = {
        "weight_gradient_rms": 1e-40,
        "weight_gradient_mean": 0.0,
        "weight_gradient_std": 1e-40,
        "weight_gradient_zero_fraction": 0.4,
        "weight_gradient_nonfinite": 1.0,
    }
    assert {k: v for k, v in second.items() if not np.isnan(v)} == {k: np.float32(v) for k, v in known.items()}
    first, layer = dict(zip(axes.statistics, table[0], strict=True)), layers[0]
    assert not np.isnan(table[0]).any()
    for quantity in ("weight", "weight_gradient", "output", "output_gradient", "input_gradient"):
        stats: Stats = getattr(layer, quantity)
        assert first[f"{quantity}_rms"] == np.float32(stats.rms)
    assert first["update_rms"] == np.float32(1e-4)
    assert first["activation_gain"] == np.float32(0.25)
    assert first["output_std"] == np.float32(normal(1.0, seed=21).astype(np.float64).std())


def test_gradient_flow_columns_are_those_that_readers_know() -> None:
    assert list(tags.COLUMNS) == [
        "weight_rms", "weight_mean", "weight_std",
        "weight_gradient_rms", "weight_gradient_mean", "weight_gradient_std",
        "weight_gradient_zero_fraction", "weight_gradient_nonfinite",
        "output_rms", "output_mean", "output_std", "output_zero_fraction", "output_nonfinite",
        "output_gradient_rms", "output_gradient_zero_fraction", "output_gradient_nonfinite",
        "input_gradient_rms", "update_rms", "activation_gain", "weight_nonfinite",
    ]  # fmt: skip


def test_gradient_flow_metadata_name_the_plugin_and_are_written_once(tmp_path: Path) -> None:
    metadata = write(tmp_path, net(0), net(1)).SummaryMetadata("gradient_flow")
    assert (metadata.plugin_data.plugin_name, metadata.data_class) == ("gradient_flow", 2)
    sent = [v.HasField("metadata") for e in events(tmp_path) for v in e.summary.value if v.tag == "gradient_flow"]
    assert sent == [True, False]


def test_other_layers_get_another_gradient_flow_tag(tmp_path: Path) -> None:
    run = write(tmp_path, net(0, layers=2), net(1, layers=3), net(2, layers=2), net(3, layers=1))
    content = {}
    for tag in ("gradient_flow", "gradient_flow_2", "gradient_flow_3"):
        axes = tags.decode_axes(run.SummaryMetadata(tag).plugin_data.content)
        content[tag] = [(p.step, len(make_ndarray(p.tensor_proto)), len(axes.layers)) for p in run.Tensors(tag)]
    assert content == {
        "gradient_flow": [(0, 2, 2), (2, 2, 2)],
        "gradient_flow_2": [(1, 3, 3)],
        "gradient_flow_3": [(3, 1, 1)],
    }


def test_metadata_of_a_later_format_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2 of its format, this reads 1"):
        tags.decode_axes(tags.encode_axes(["1-fc1"]).replace(b'"version": 1', b'"version": 2'))


def test_a_snapshot_is_one_event(tmp_path: Path) -> None:
    write(tmp_path, net(0), net(1), net(2), depth_profile=False)
    assert [event.step for event in events(tmp_path) if event.HasField("summary")] == [0, 1, 2]


def test_histograms_and_depth_profile_only_when_asked(tmp_path: Path) -> None:
    assert write(tmp_path, net(0), histograms=False, depth_profile=False).Tags()["tensors"] == ["gradient_flow"]


def test_a_snapshot_without_a_time_gets_the_present_one(tmp_path: Path) -> None:
    (point,) = write(tmp_path, Snapshot(0, (layer_of(),))).Scalars("weight_std/1-fc1-4x3")
    assert point.wall_time > 1.7e9


# --- values no chart can draw --------------------------------------------------------------------------------------


def test_all_zero_gradient(tmp_path: Path) -> None:
    run = write(tmp_path, Snapshot(0, (layer_of(gradient=np.zeros(50, np.float32)),)))
    scalars = run.Tags()["scalars"]
    assert "gradient_log10_rms/1-fc1-4x3" not in scalars
    assert run.Scalars("zero_fraction/1-fc1-4x3")[0].value == 1
    ((left, right, count),) = rows_of(run, "gradient/1-fc1-4x3")
    assert count == 50
    assert -1e-30 < left < 0 < right < 1e-30
    for tag in ("gradient_log10/1-fc1-4x3", "depth_profile/step_000000"):
        rows = rows_of(run, tag)
        assert rows.shape == (30, 3)
        assert rows[:, 2].sum() < 1e-8


@pytest.mark.parametrize("gradient", [np.full(50, np.nan, np.float32), np.zeros(0, np.float32)], ids=["nan", "empty"])
def test_gradient_without_a_finite_entry(tmp_path: Path, gradient: Array) -> None:
    run = write(tmp_path, Snapshot(0, (layer_of(gradient=gradient),)))
    written = run.Tags()
    assert "gradient/1-fc1-4x3" not in written["tensors"]
    assert not {"gradient_mean/1-fc1-4x3", "gradient_std/1-fc1-4x3", "gradient_log10_rms/1-fc1-4x3"} & set(
        written["scalars"]
    )
    assert "weight_std/1-fc1-4x3" in written["scalars"]
    assert rows_of(run, "gradient_log10/1-fc1-4x3")[:, 2].sum() < 1e-8
    if gradient.size:
        assert run.Scalars("nonfinite/1-fc1-4x3")[0].value == 50
    else:
        assert "nonfinite/1-fc1-4x3" not in written["scalars"]


def test_some_nonfinite_entries_are_counted_and_the_rest_is_drawn(tmp_path: Path) -> None:
    gradient = np.array([np.nan, np.inf, -np.inf, 3.0e38, 3.4e38, -1.0], np.float32)
    run = write(tmp_path, Snapshot(0, (layer_of(gradient=gradient),)))
    assert run.Scalars("nonfinite/1-fc1-4x3")[0].value == 3
    rows = rows_of(run, "gradient/1-fc1-4x3")
    assert np.isfinite(rows).all()
    assert rows[:, 2].sum() == 3


def test_numbers_beyond_float32_are_left_out_and_do_not_raise(tmp_path: Path) -> None:
    huge = Stats(10, 0, 0, 1e200, 1e-200, 1e200, 1e200)
    run = write(tmp_path, Snapshot(0, (LayerSnapshot(1, "fc1", "Linear", "", weight=huge),)))
    assert run.Tags()["scalars"] == ["weight_std/1-fc1"]
    assert np.isinf(rows_of(run, "gradient_flow")[0, 0])


def test_a_layer_without_any_statistics(tmp_path: Path) -> None:
    run = write(tmp_path, Snapshot(0, (LayerSnapshot(1, "fc1", "Linear", ""),)), Snapshot(1, ()))
    assert run.Tags()["scalars"] == []
    assert np.isnan(rows_of(run, "gradient_flow")).all()
    assert rows_of(run, "gradient_flow_2").shape == (0, len(tags.COLUMNS))


# --- scalars, text, layout, hparams --------------------------------------------------------------------------------


def test_scalars_share_an_event(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.scalars({tags.LOSS_TRAIN: 0.5, tags.ACCURACY_VALIDATION: 0.75}, 12)
    writer.scalars({tags.LOSS_TRAIN: math.nan}, 13)
    writer.close()
    run = read(tmp_path)
    assert [(point.step, point.value) for point in run.Scalars("accuracy/validation")] == [(12, 0.75)]
    assert math.isnan(run.Scalars("loss/train")[1].value)
    assert len(events(tmp_path)) == 3


def test_text_is_markdown_of_the_text_plugin(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.text("verdict", "| a |\n|---|\n| ä |", 5)
    writer.close()
    run = read(tmp_path)
    assert rows_of(run, "verdict").item() == "| a |\n|---|\n| ä |".encode()
    assert run.SummaryMetadata("verdict").plugin_data.plugin_name == "text"
    assert run.Tensors("verdict")[0].step == 5


def test_layout_has_a_chart_of_all_layers_for_each_statistic(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.layout()
    writer.close()
    run = read(tmp_path)
    tag = "custom_scalars__config__"
    assert run.SummaryMetadata(tag).plugin_data.plugin_name == "custom_scalars"
    layout = layout_pb2.Layout.FromString(rows_of(run, tag).item())
    lines = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert lines == {title: [f"{title}/.*"] for title in ("loss", "accuracy", *tags.LAYER_SCALARS)}


def test_ranks_have_a_chart_where_there_are_several(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.layout(ranks=2)
    writer.close()
    layout = layout_pb2.Layout.FromString(rows_of(read(tmp_path), "custom_scalars__config__").item())
    titles = [chart.title for category in layout.category for chart in category.chart]
    assert tags.RANK_SCALARS in titles


def test_each_rank_has_a_scalar_of_the_first_layer_that_has_a_gradient(tmp_path: Path) -> None:
    frozen, first, second = (layer_of(number, f"fc{number}") for number in (1, 2, 3))
    first, second = replace(first, rank_rms=(1e-3, math.nan, 0.0, 1e-5)), replace(second, rank_rms=(1.0,) * 4)
    run = write(tmp_path, Snapshot(0, (frozen, first, second)))
    found = {tag: run.Scalars(tag)[0].value for tag in run.Tags()["scalars"] if "rank" in tag}
    group = "output_gradient_log10_rms_rank/2-fc2-4x3-rank"
    assert found == pytest.approx({f"{group}0": -3, f"{group}3": -5})


def test_hparams_are_in_the_same_run_and_file(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    values = {"lr": 0.1, "depth": np.int64(7), "act": "relu", "bias": True, "clip": math.inf, "seed": None}
    writer.hparams(values, [tags.LOSS_TRAIN, tags.ACCURACY_VALIDATION])
    writer.snapshot(net(), histograms=False)
    writer.close("FAILURE")
    run = read(tmp_path)

    def content(tag: str) -> bytes:
        data: bytes = run.SummaryMetadata(tag).plugin_data.content
        return data

    experiment = hparams_metadata.parse_experiment_plugin_data(content(hparams_metadata.EXPERIMENT_TAG))
    assert [metric.name.tag for metric in experiment.metric_infos] == ["loss/train", "accuracy/validation"]
    assert {info.name: info.type for info in experiment.hparam_infos} == {
        "lr": 3, "depth": 3, "act": 1, "bias": 1, "clip": 1,
    }  # fmt: skip
    start = hparams_metadata.parse_session_start_info_plugin_data(content(hparams_metadata.SESSION_START_INFO_TAG))
    sent = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    assert sent == {"lr": 0.1, "depth": 7, "act": "relu", "bias": "True", "clip": "inf"}
    end = hparams_metadata.parse_session_end_info_plugin_data(content(hparams_metadata.SESSION_END_INFO_TAG))
    assert end.status == 2
    assert len(files(tmp_path)) == 1


def test_no_session_end_without_hparams(tmp_path: Path) -> None:
    assert hparams_metadata.SESSION_END_INFO_TAG not in write(tmp_path, net()).Tags()["tensors"]


# --- a user's SummaryWriter ----------------------------------------------------------------------------------------


@contextmanager
def summary_writer(folder: Path) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter

    user = SummaryWriter(str(folder))
    yield user
    user.close()


def test_onto_a_summary_writer_is_its_file_and_leaves_it_open(tmp_path: Path) -> None:
    write(tmp_path / "own", net(4))
    with summary_writer(tmp_path / "user") as user:
        user.add_scalar("mine", 1.0, 0)
        writer = Writer.onto(user)
        writer.hparams({"lr": 0.1}, ["mine"])
        writer.snapshot(net(4), histograms=True)
        writer.depth_profile(net(4))
        writer.close()
        user.add_scalar("mine", 2.0, 1)
    own, user_run = read(tmp_path / "own"), read(tmp_path / "user")
    assert len(files(tmp_path / "user")) == 1
    assert [point.value for point in user_run.Scalars("mine")] == [1.0, 2.0]
    assert set(own.Tags()["scalars"]) < set(user_run.Tags()["scalars"])
    assert user_run.Tensors("gradient_flow")[0].wall_time == 1234.5
    for tag in own.Tags()["tensors"]:
        np.testing.assert_array_equal(rows_of(own, tag), rows_of(user_run, tag))


def test_onto_a_closed_summary_writer_warns_once_and_makes_no_file(tmp_path: Path) -> None:
    with summary_writer(tmp_path) as user:
        writer = Writer.onto(user)
    assert_one_warning(writer, "cannot log to your SummaryWriter: it is closed; training goes on without logging")
    assert len(files(tmp_path)) == 1


def test_onto_a_summary_writer_whose_thread_died() -> None:
    def add_summary(*_: object) -> None:
        raise RuntimeError("worker died")

    writer = Writer.onto(SimpleNamespace(file_writer=SimpleNamespace(add_summary=add_summary)))
    assert_one_warning(writer, "cannot log to your SummaryWriter: worker died; training goes on without logging")


def test_onto_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match=r"must be a torch\.utils\.tensorboard\.SummaryWriter, not str"):
        Writer.onto("runs/mine")


# --- faults --------------------------------------------------------------------------------------------------------


def test_folder_removed_is_one_warning(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run")
    writer.snapshot(net(), histograms=False)
    shutil.rmtree(tmp_path / "run")
    assert_one_warning(writer, r"cannot log to .*/run/events.*: No such file or directory")
    assert not (tmp_path / "run").exists()


def test_file_replaced_is_one_warning(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    (path,) = files(tmp_path)
    shutil.copy(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    assert_one_warning(writer, "the event file was replaced")


def test_changed_working_directory_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = Writer("run")
    monkeypatch.chdir("/")
    writer.snapshot(net(), histograms=False)
    writer.close()
    assert "gradient_flow" in read(tmp_path / "run").Tags()["tensors"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_disk_full_is_one_warning_and_what_was_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path)
    writer.snapshot(net(0), histograms=True)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._sink.fileno())  # type: ignore[union-attr]
    monkeypatch.setattr(os, "fstat", lambda _: files(tmp_path)[0].stat())
    assert_one_warning(writer, "No space left on device")
    os.close(full)
    assert [p.step for p in read(tmp_path).Tensors("gradient_flow")] == [0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True)
    if not made or made.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_training_goes_on_when_its_disk_is_full(small_disk: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with watch(model, optimizer, logdir=small_disk, every=1, histograms=False) as monitor:
            for _ in range(200):
                optimizer.zero_grad()
                model(torch.ones(8, 4)).square().mean().backward()
                optimizer.step()
    assert [str(warning.message) for warning in warned] == [
        f"cannot log to {files(small_disk)[0]}: No space left on device; training goes on without logging"
    ]
    assert len(monitor.history) == 200
    steps = [point.step for point in read(small_disk).Tensors("gradient_flow")]
    assert steps == list(range(len(steps)))
    assert 5 < len(steps) < 200


def test_half_a_record_hides_nothing_that_came_before(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for step in range(3):
        writer.snapshot(net(step), histograms=True)
    (path,) = files(tmp_path)
    size = path.stat().st_size
    with files_of_at_most(size + 1000), pytest.warns(RuntimeWarning, match="File too large; training goes on"):
        writer.snapshot(net(3), histograms=True)
    keep_writing(writer)  # there is room again, but nothing may follow half a record
    assert path.stat().st_size == size + 1000
    assert [p.step for p in read(tmp_path).Tensors("gradient_flow")] == [0, 1, 2]


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_folder_that_cannot_be_is_refused_in_one_sentence(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write to the log folder .*/file.*; choose another one$"):
        Writer(tmp_path / folder)


def test_disk_full_at_the_start_is_refused(tmp_path: Path) -> None:
    with files_of_at_most(0), pytest.raises(UsageError, match="File too large; choose another one"):
        Writer(tmp_path)


def test_two_writers_in_one_folder_have_two_files(tmp_path: Path) -> None:
    for _ in range(2):
        Writer(tmp_path).close()
    assert len(files(tmp_path)) == 2


def test_nothing_is_lost_on_kill_9(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from tests.tensorboard.test_writer import Writer, net\n"
        "writer = Writer(sys.argv[1])\n"
        "for step in range(5): writer.snapshot(net(step), histograms=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    run = read(tmp_path)
    assert [point.step for point in run.Tensors("gradient_flow")] == [0, 1, 2, 3, 4]
    assert len(run.Tensors("output_gradient/2-fc2-4x3")) == 5


# --- nothing to write to -------------------------------------------------------------------------------------------


def test_null_writer_takes_everything_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = Writer(None)
    with warnings.catch_warnings(record=True) as caught:
        writer.layout()
        writer.hparams({"lr": 0.1}, ["loss/train"])
        writer.snapshot(net(), histograms=True)
        writer.depth_profile(net())
        writer.scalars({"loss/train": 1.0}, 0)
        writer.text("verdict", "healthy")
        writer.close()
    assert caught == []
    assert files(tmp_path) == []


def test_close_twice_and_write_after_close_do_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.close()
    size = files(tmp_path)[0].stat().st_size
    writer.snapshot(net(), histograms=True)
    writer.close()
    assert files(tmp_path)[0].stat().st_size == size
