"""The gradient through time in the log: what is written, how large it is, and that it is read back as it was seen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch import nn

import vgrad_torch as vg
from tests.support.flows import LAYERS, typical, write
from tests.support.recurrent import Reader, train
from tests.tensorboard.test_plugin import Board, python_server
from vgrad_torch.errors import UsageError
from vgrad_torch.records import LayerSnapshot, Snapshot, TimeProfile
from vgrad_torch.report.report import diagnosed
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.plugin.time_map import time_map
from vgrad_torch.tensorboard.runlog import read
from vgrad_torch.tensorboard.summary import plugin_metadata, tensor_value
from vgrad_torch.tensorboard.time_profiles import HEAD, LAYOUT, Layout, decode_layout, decode_profile, encode_layout
from vgrad_torch.tensorboard.time_profiles import encode_profile as encode
from vgrad_torch.tensorboard.writer import Writer

LENGTHS = [40, 25, 300, 40]
RNN = "1-rnn-8x32"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[vg.Monitor, list[list[float]], Path]:
    folder = tmp_path_factory.mktemp("run")
    return *train(folder, Reader(nn.RNN), LENGTHS), folder


Trained = tuple[vg.Monitor, list[list[float]], Path]


def test_the_log_holds_what_autograd_says_in_sequences_of_any_length(trained: Trained) -> None:
    _, exact, folder = trained
    events = EventAccumulator(str(folder), {"tensors": 0}).Reload()
    tag = tags.time_tag(RNN)
    assert decode_layout(events.SummaryMetadata(tag).plugin_data.content).head == HEAD
    written = [make_ndarray(event.tensor_proto) for event in events.Tensors(tag)]
    assert [event.step for event in events.Tensors(tag)] == list(range(len(LENGTHS)))
    for tensor, norms, length in zip(written, exact, LENGTHS, strict=True):
        assert tensor.dtype == np.float32
        assert tensor[:2].tolist() == [length, length - 1]
        back = np.array(norms[::-1]) / norms[-1]
        assert tensor[2:4].tolist() == [int((back < limit).argmax()) for limit in (0.1, 0.01)]
        kept = norms[::-1][:: 1 if length <= 256 else 2][::-1]
        np.testing.assert_allclose(tensor[len(HEAD) :], kept, rtol=1e-4, atol=1e-35)


def test_it_is_read_back_as_it_was_seen_and_judged_as_in_the_run(trained: Trained) -> None:
    monitor, _, folder = trained
    run = read(folder)
    for found, seen in zip(run.history, monitor.history, strict=True):
        assert [layer.time is None for layer in found.layers] == [False, True]
        mine, theirs = found["rnn"].time, seen["rnn"].time
        assert mine is not None
        assert theirs is not None
        for name in HEAD[:-1]:
            assert getattr(mine, name) == getattr(theirs, name)
        assert mine.growth == pytest.approx(theirs.growth, rel=1e-6)
        np.testing.assert_allclose(mine.gradients, theirs.gradients, rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize(("scale", "verdict"), [(1.0, "vanishing through time"), (3.0, "exploding through time")])
def test_the_verdict_on_the_log_is_that_of_the_run(scale: float, verdict: str, tmp_path: Path) -> None:
    monitor, _ = train(tmp_path, Reader(nn.RNN, scale), [200] * 12)
    live, found = monitor.diagnose(), diagnosed(read(tmp_path))
    assert found is not None
    assert found.verdict == live.verdict == verdict
    assert live.because.partition(". ")[0] == found.because.partition(". ")[0]


def test_a_sample_takes_little_space_whatever_the_length(tmp_path: Path) -> None:
    """A tensor is at most 261 float32 numbers; tag, metadata and step come on top."""
    profile = TimeProfile.of([1.0 + i for i in range(10_000)], 9_999)
    sizes = []
    for name, time in (("with", profile), ("without", None)):
        writer = Writer(tmp_path / name)
        writer.snapshot(Snapshot(0, (LayerSnapshot(1, "rnn", "RNN", "8x32", time=time),)), histograms=False)
        writer.close()
        sizes.append(sum(file.stat().st_size for file in (tmp_path / name).iterdir()))
    assert encode(profile).nbytes <= 4 * 261
    assert sizes[0] - sizes[1] < 1300


def test_nothing_is_written_without_a_recurrent_layer(tmp_path: Path) -> None:
    train(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(80, 2)), [10, 10])
    assert not [tag for tag in EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"] if tag.startswith(tags.TIME)]
    assert read(tmp_path).history[0].layers[0].time is None


def test_norms_that_float32_cannot_hold_and_unknown_numbers_come_back() -> None:
    profile = TimeProfile((1e-60, 0.0, 1e60, float("nan"), 1.0), 5)
    found = decode_profile(encode(profile))
    np.testing.assert_array_equal(found.gradients, [0, 0, np.inf, np.nan, 1])
    assert (found.steps, found.last, found.tenth, found.hundredth) == (5, None, None, None)
    assert np.isnan(found.growth)


BAD = {
    "no norm": np.zeros(5, "f4"),
    "a table": np.zeros((2, 9), "f4"),
    "text": np.array([b"x"] * 9),
    "fewer steps than norms": np.array([2, 1, 1, 1, 1, 1, 1, 1], "f4"),
    "last beyond the end": np.array([2, 2, 1, 1, 1, 1, 1], "f4"),
    "no number of steps": np.array([np.nan, 1, 1, 1, 1, 1], "f4"),
    "infinite": np.array([np.inf, 1, 1, 1, 1, 1], "f4"),
    "infinite horizon": np.array([2, 1, np.inf, 1, 1, 1], "f4"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_malformed_profile_is_one_sentence(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="time profile"):
        decode_profile(BAD[kind])
    writer = Writer(tmp_path)
    values = [writer._gradient_flow(Snapshot(0, (LayerSnapshot(1, "rnn", "RNN", "8x32"),)))]
    values.append(tensor_value(tags.time_tag(RNN), BAD[kind], plugin_metadata(tags.PLUGIN_NAME, b"{}")))
    writer._add(values, 0)
    writer.close()
    with pytest.raises(UsageError, match="the sample of step 0 cannot be read: a time profile"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"version": 9}', b'{"version": 1, "head": ["steps"]}'])
def test_a_malformed_layout_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"time profile|Expecting"):
        decode_layout(content)
    assert decode_layout(encode_layout(Layout((*HEAD, "more")))).head == (*HEAD, "more")


# --- the Gradient Flow tab -------------------------------------------------------------------------------------------


def test_the_server_sends_what_autograd_says(trained: Trained) -> None:
    _, exact, folder = trained
    board = Board(python_server(folder.parent))
    series = next(entry for entry in board.series() if entry["run"] == folder.name)
    assert series["timed"] == [RNN]
    head, numbers = board.unpack("time", run=folder.name, layer=RNN)
    assert (head["steps"], head["starts"], head["lengths"]) == ([0, 1, 2, 3], [0, 1, 2, 3], LENGTHS)
    assert (head["back"][0], head["back"][1], head["back"][-1]) == (0, 2, 298)
    for column, norms in enumerate(exact):
        relative = np.array(norms[::-1]) / norms[-1]
        wanted = np.full(len(head["back"]), np.nan)
        wanted[: len(relative[::2])] = relative[::2]
        np.testing.assert_allclose(numbers["values"][:, column], wanted, rtol=1e-4, atol=1e-35)
        tenth, hundredth = ((relative < limit).argmax() for limit in (0.1, 0.01))
        assert (head["tenths"][column], head["hundredths"][column]) == (tenth, hundredth)
        assert head["words"][column] == (
            f"rnn: a tenth of the gradient is left after {tenth} steps back through time, a hundredth after "
            f"{hundredth}, of {len(norms)}."
        )


def test_a_layer_without_a_profile_is_refused_and_a_malformed_one_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "a", [(0, typical())], [RNN, *LAYERS[1:]])
    write(tmp_path / "a", [(0, np.zeros(3, "f4"))], tag=tags.time_tag(RNN), content=encode_layout(LAYOUT))
    write(tmp_path / "a", [(0, np.zeros(3, "f4"))], tag=tags.time_tag(LAYERS[1]), content=b"{}")
    board = Board(python_server(tmp_path))
    assert board.series()[0]["timed"] == [RNN, LAYERS[1]]
    for query, status in (({"layer": LAYERS[2]}, 404), ({"layer": RNN, "run": "b"}, 404), ({}, 404)):
        assert board.get("time", **{"run": "a"} | query).status_code == status
    for layer in (RNN, LAYERS[1]):
        reply = board.get("time", run="a", layer=layer)
        assert reply.status_code == 400
        assert reply.text.startswith(f"the gradient through time of {layer} cannot be shown: ")


def test_of_the_steps_of_a_column_the_one_with_nan_is_shown() -> None:
    points = [(10 * i, TimeProfile.of([0.1, 1.0], 1)) for i in range(1000)]
    points[500] = 5000, TimeProfile((math.nan, 1.0), 2, 1)
    found = time_map(points)
    assert found.values.shape == (2, 240)
    assert 5000 in found.steps
    assert np.isinf(found.values).sum() == 1
    assert (found.starts[0], found.starts[-1], found.samples) == (0, 9990, 1000)


MAPS = {
    "several steps": (TimeProfile.of([1.0, 4.0, 2.0], None), [0.5, 1, 0.25]),
    "last in the middle": (TimeProfile.of([0.1, 2.0, 0.0], 1), [1, 0.05]),
    "zero at the last": (TimeProfile.of([0.1, 0.0], 1), [0, np.nan]),
    "infinite": (TimeProfile((math.inf, 0.0, 2.0), 3, 2), [1, 0, np.inf]),
    "beyond float32": (
        TimeProfile((1e-60, 1e60, 1.0), 3, 2),
        [1, float(np.finfo("f4").max), float(np.finfo("f4").tiny)],
    ),
}


@pytest.mark.parametrize("kind", MAPS)
def test_values_are_relative_to_the_last_step(kind: str) -> None:
    profile, values = MAPS[kind]
    np.testing.assert_allclose(time_map([(0, profile)]).values[:, 0], values, rtol=1e-6)


def test_what_a_long_profile_keeps_is_placed_where_it_was() -> None:
    """A horizon that is told in steps must be where the map's values cross a tenth."""
    for steps in (255, 256, 257, 1000, 99_999):
        profile = TimeProfile.of([10 ** (-0.01 * step) for step in range(steps)][::-1], steps - 1)
        found = time_map([(0, profile)])
        assert profile.tenth is not None
        crossing = found.back[int((found.values[:, 0] < 0.1).argmax())]
        assert 0 <= crossing - profile.tenth < steps / 256 + 1
        assert found.back[-1] < steps
        assert not np.isnan(found.values).any()
