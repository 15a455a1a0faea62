"""The back end of the Gradient Flow tab, through real event files and a real data provider, without a browser."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.data import server_ingester
from tensorboard.plugins import base_plugin
from tensorboard.util import grpc_util
from werkzeug.test import Client, TestResponse

from tests import ROOT
from tests.support import flows
from tests.support.flows import LAYERS, table, typical, write
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.plugin import flow, loader, reader
from vgrad_torch.tensorboard.plugin.routes import STATIC, GradientFlow

Numbers = dict[str, np.ndarray]


class Board:
    """A client of the plugin for one log folder; it decodes the responses."""

    def __init__(self, provider: Any, limit: int | None = 0, **static: Path) -> None:
        made = base_plugin.TBContext(data_provider=provider, sampling_hints={tags.PLUGIN_NAME: limit})
        self._apps = GradientFlow(made, **static).get_plugin_apps()

    def get(self, route: str, **query: object) -> TestResponse:
        return Client(self._apps[f"/{route}"]).get("/", query_string=query)

    def series(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.get("runs").data)["series"]
        return found

    def unpack(self, route: str, **query: object) -> tuple[dict[str, Any], Numbers]:
        reply = self.get(route, **query)
        assert reply.status_code == 200, reply.text
        return unpack(reply.data)

    def flow(self, quantity: str = "weight_gradient", **query: object) -> tuple[dict[str, Any], Numbers]:
        return self.unpack("flow", **{"run": "a", "tag": "gradient_flow", "quantity": quantity} | query)

    def profile(self, step: int, **query: object) -> tuple[int, Numbers]:
        head, numbers = self.unpack("profile", **{"run": "a", "tag": "gradient_flow", "step": step} | query)
        return head["step"], numbers


def unpack(content: bytes) -> tuple[dict[str, Any], Numbers]:
    """Decode a response without the package's own code. No byte may be left."""
    length = int.from_bytes(content[:4], "little")
    assert length % 4 == 0
    head = json.loads(content[4 : 4 + length])
    rest, numbers = np.frombuffer(content[4 + length :], "<f4"), {}
    for name, *shape in head.pop("arrays"):
        numbers[name], rest = rest[: math.prod(shape)].reshape(shape), rest[math.prod(shape) :]
    assert rest.size == 0
    return head, numbers


def python_server(logdir: Path) -> Any:
    multiplexer = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={tags.PLUGIN_NAME: 0})
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    return data_provider.MultiplexerDataProvider(multiplexer, str(logdir))


@contextmanager
def rust_server(logdir: Path, work: Path) -> Iterator[Any]:
    port = work / "port"
    command = [
        server_ingester.get_server_binary().path, f"--logdir={logdir}", "--reload=once", "--port=0",
        f"--port-file={port}", f"--samples-per-plugin={tags.PLUGIN_NAME}=all",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            assert eventually(lambda: port.exists() and port.read_text().endswith("\n"))
            address = f"localhost:{int(port.read_text())}"
            ingester = server_ingester.ExistingServerDataIngester(
                address, channel_creds_type=grpc_util.ChannelCredsType.LOCAL
            )
            provider, slow = ingester.data_provider, python_server(logdir)
            assert eventually(lambda: listing(provider) == listing(slow))
            yield provider
        finally:
            process.kill()


def eventually(good: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not (found := good()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def listing(provider: Any) -> Any:
    found = [
        provider.list_tensors(context.RequestContext(), experiment_id="", plugin_name=name)
        for name in (tags.PLUGIN_NAME, "text")
    ]
    return [{run: {tag: x.max_step for tag, x in listed.items()} for run, listed in runs.items()} for runs in found]


@pytest.fixture(params=["python", "rust"])
def board(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Board]]:
    """Opens a log folder with each of the two programs that can read it for TensorBoard."""
    with ExitStack() as stack:

        def opened(logdir: Path, **options: Any) -> Board:
            if request.param == "python":
                return Board(python_server(logdir), **options)
            return Board(stack.enter_context(rust_server(logdir, tmp_path_factory.mktemp("rust"))), **options)

        yield opened


Opened = Callable[..., Board]


# --- what is in the answers ----------------------------------------------------------------------------------------


def test_series_are_listed_with_their_layers_and_notes(board: Opened, tmp_path: Path) -> None:
    write(tmp_path / "b", [(0, typical())])
    write(tmp_path / "a", [(0, typical()), (7, typical())])
    flows.write_text(tmp_path / "a", tags.VERDICT, "vanishing: **fc1**")
    flows.write_text(tmp_path / "a", "other", "not ours")
    first, second = board(tmp_path).series()
    assert (first["run"], first["tag"], first["layers"]) == ("a", "gradient_flow", list(LAYERS))
    assert first["notes"] == {"verdict": "vanishing: **fc1**"}
    assert (second["run"], second["notes"], second["problem"]) == ("b", {}, "")
    assert first["stamp"] != second["stamp"]


def test_without_data_the_list_is_empty(board: Opened, tmp_path: Path) -> None:
    flows.write_text(tmp_path / "a", tags.VERDICT, "healthy")
    assert board(tmp_path).series() == []


def test_a_short_run_comes_whole(board: Opened, tmp_path: Path) -> None:
    steps = [0, 1, 5, 100]
    write(tmp_path / "a", [(step, typical(1 + step)) for step in steps])
    opened = board(tmp_path)
    head, numbers = opened.flow()
    assert head == {"starts": steps, "steps": steps, "samples": 4, "thinned": False, "complete": True}
    exact = np.array([[g * (1 + step) for step in steps] for g in flows.GRADIENTS["weight_gradient_rms"]], "f4")
    np.testing.assert_array_equal(numbers["low"], exact)
    np.testing.assert_array_equal(numbers["high"], exact)


QUANTITIES: flows.Columns = {
    "weight_gradient": [1e-7, 1e-5, 1e-3],
    "output_gradient": [2e-6, 1e-4, 0.01],
    "input_gradient": [math.nan, 2e-5, 1e-3],
    "output": [1, 2, 3],
    "weight": [0.1, 0.1, 0.2],
    "update_ratio": [1e-5, 1e-4, 5e-4],
    "zero_fraction": [0, 0.5, 1],
}


def test_a_profile_is_all_quantities_of_the_latest_step_at_or_before(board: Opened, tmp_path: Path) -> None:
    write(tmp_path / "a", [(10, typical()), (20, typical(3))])
    opened = board(tmp_path)
    for asked, shown in {0: 10, 10: 10, 19: 10, 20: 20, 999: 20}.items():
        step, numbers = opened.profile(asked)
        assert step == shown
        assert numbers["weight"].tolist() == pytest.approx([0.1, 0.1, 0.2])
        assert numbers["output_gradient"][0] == pytest.approx(2e-6 if shown == 10 else 6e-6)
    numbers = opened.profile(10)[1]
    assert set(numbers) == set(QUANTITIES)
    for name, exact in QUANTITIES.items():
        np.testing.assert_allclose(numbers[name], exact, rtol=1e-6)
        if name in flow.QUANTITIES:
            np.testing.assert_array_equal(opened.flow(name)[1]["low"][:, 0], numbers[name])


def test_a_profile_comes_with_the_waterfall_of_its_step(board: Opened, tmp_path: Path) -> None:
    layers = ["1-fc1-8x6", "2-2-6x4", "3-cell#2-4x2"]  # a name that is a number, and a second call
    write(tmp_path / "a", [(0, typical()), (9, typical(3))], layers)
    opened = board(tmp_path)
    assert opened.series()[0]["names"] == ["fc1", "2", "cell#2"]
    times = "\N{MULTIPLICATION SIGN}"
    for step in (0, 9):
        waterfall = opened.unpack("profile", run="a", tag="gradient_flow", step=step)[0]["waterfall"]
        assert waterfall["text"].startswith("The RMS of the gradient at fc1 is 2e-4 of that at cell#2 ")
        bars = [(bar["kind"], bar["start"], bar["end"], bar["number"], bar["tip"]) for bar in waterfall["bars"]]
        assert bars == [
            ("weight", 2, 2, f"{times}0.1", f"weights of cell#2: {times}0.1"),
            ("activation", 2, 1, f"{times}0.1", f"activation between layer 2 and cell#2: {times}0.1"),
            ("weight", 1, 1, f"{times}0.2", f"weights of layer 2: {times}0.2"),
            ("activation", 1, 0, f"{times}0.1", f"activation between fc1 and layer 2: {times}0.1"),
        ]
        levels = [1, 0.1, 0.01, 0.002, 0.0002]
        assert [bar["before"] for bar in waterfall["bars"]] == pytest.approx(levels[:-1], rel=1e-5)
        assert [bar["after"] for bar in waterfall["bars"]] == pytest.approx(levels[1:], rel=1e-5)
        assert waterfall["levels"] == [[2, 1], [1, pytest.approx(0.01)], [0, pytest.approx(2e-4)]]


def test_zeros_nonfinite_and_missing_are_told_apart(board: Opened, tmp_path: Path) -> None:
    columns: flows.Columns = {
        "weight_gradient_rms": [0.0, 1e-45, 1.0], "weight_gradient_nonfinite": [0, 0, 2],
        "weight_rms": [0.0, math.nan, math.inf], "weight_nonfinite": [0, 3, 0],
        "update_rms": [1.0, 1.0, math.nan],
    }  # fmt: skip
    write(tmp_path / "a", [(0, table(columns))])
    _, numbers = board(tmp_path).profile(0)
    nan, inf = math.nan, math.inf
    np.testing.assert_array_equal(numbers["weight_gradient"], np.array([0, 1e-45, inf], "f4"))
    np.testing.assert_array_equal(numbers["weight"], [0, inf, inf])
    np.testing.assert_array_equal(numbers["update_ratio"], [nan, inf, inf])
    np.testing.assert_array_equal(numbers["output"], [nan, nan, nan])


def test_an_older_tag_with_fewer_statistics_is_shown(board: Opened, tmp_path: Path) -> None:
    tensor = np.array([[1e-7], [1e-5], [1e-3]], "f4")
    write(tmp_path / "a", [(0, tensor)], statistics=["weight_gradient_rms"])
    _, numbers = board(tmp_path).profile(0)
    np.testing.assert_array_equal(numbers["weight_gradient"], tensor[:, 0])
    assert np.isnan(numbers["output_gradient"]).all()


def test_a_run_without_layers_is_empty_not_broken(board: Opened, tmp_path: Path) -> None:
    write(tmp_path / "a", [(0, table({}, layers=0)), (3, table({}, layers=0))], layers=[])
    opened = board(tmp_path)
    head, numbers = opened.flow()
    assert (head["starts"], numbers["low"].shape) == ([0, 3], (0, 2))
    assert opened.profile(3)[1]["weight"].shape == (0,)


def test_theory_of_the_same_layers_comes_with_the_profile(board: Opened, tmp_path: Path) -> None:
    write(tmp_path / "a", [(0, typical()), (9, typical())])
    for tag, layers, step, value in (
        (tags.THEORY, LAYERS[:2], 0, 5.0),
        (f"{tags.THEORY}_2", LAYERS, 5, 7.0),
    ):
        tensor = np.full((len(layers), 1), value, "f4")
        write(tmp_path / "a", [(step, tensor)], layers, tag, statistics=["output_gradient_rms"])
    opened = board(tmp_path)
    assert [series["tag"] for series in opened.series()] == ["gradient_flow"]
    for step in (0, 9):
        predicted = {name: line.tolist() for name, line in opened.profile(step)[1].items() if name.startswith("theory")}
        assert predicted == {"theory.output_gradient": [7, 7, 7]}


def test_a_theory_that_does_not_fit_is_left_out_with_a_message(board: Opened, tmp_path: Path) -> None:
    write(tmp_path / "a", [(0, typical())])
    write(tmp_path / "a", [(0, np.ones((3, 2), "f4"))], LAYERS, tags.THEORY, statistics=["output_rms"])
    head, numbers = board(tmp_path).unpack("profile", run="a", tag="gradient_flow", step=0)
    assert head["problem"].startswith(
        "The line of the theory is left out: the tensor of step 0 is float32 of shape [3, 2]"
    )
    assert not any(name.startswith("theory") for name in numbers)


# --- thinning ------------------------------------------------------------------------------------------------------

LONG = 3000


def long_run(steps: int = LONG) -> list[tuple[int, np.ndarray]]:
    """Noise over many steps, with one NaN, one zero, one largest and one smallest value at known places."""
    rng = np.random.default_rng(0)
    points = [(10 * i, typical(10 ** rng.normal())) for i in range(steps)]
    gradient, nonfinite = (names_of.index(f"weight_gradient_{x}") for x in ("rms", "nonfinite"))
    points[1234][1][1, nonfinite] = 1
    points[1500][1][0, gradient] = 0
    points[1717][1][2, gradient] = 1e9
    points[1919][1][2, gradient] = 1e-30
    return points


names_of = list(tags.COLUMNS)


def test_thinning_keeps_every_extreme(board: Opened, tmp_path: Path) -> None:
    points = long_run()
    write(tmp_path / "a", points)
    head, numbers = board(tmp_path).flow()
    starts = np.array(head["starts"])
    assert head["samples"] == LONG
    assert len(starts) == flow.BUCKETS
    assert (starts[0], starts[-1]) == (0, 10 * (LONG - 1))
    values = np.array([tensor[:, names_of.index("weight_gradient_rms")] for _, tensor in points])
    values[1234, 1] = math.inf
    ends = [*starts[1:], math.inf]
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        inside = [value for (step, _), value in zip(points, values, strict=True) if start <= step < end]
        np.testing.assert_array_equal(numbers["low"][:, i], np.min(inside, axis=0))
        np.testing.assert_array_equal(numbers["high"][:, i], np.max(inside, axis=0))
    assert (numbers["low"].min(), numbers["low"][2].min()) == (0, np.float32(1e-30))
    assert (np.isinf(numbers["high"]).sum(), numbers["high"][2].max()) == (1, np.float32(1e9))


def test_the_step_shown_for_a_bucket_is_the_one_with_zeros_or_nan(board: Opened, tmp_path: Path) -> None:
    write(tmp_path / "a", long_run())
    head, _ = board(tmp_path).flow()
    assert {0, 12340, 15000, 10 * (LONG - 1)} <= set(head["steps"])
    for start, step, end in zip(head["starts"], head["steps"], [*head["starts"][1:], math.inf], strict=True):
        assert start <= step < end


def test_a_preview_is_quick_and_says_so(board: Opened, tmp_path: Path) -> None:
    write(tmp_path / "a", [(i, typical()) for i in range(LONG)])
    opened = board(tmp_path)
    head, _ = opened.flow(preview=1)
    assert (head["samples"], head["complete"]) == (reader.PREVIEW, False)
    assert opened.flow()[0]["samples"] == LONG
    head, _ = opened.flow(preview=1)  # by now everything is known
    assert (head["samples"], head["complete"]) == (LONG, True)


def test_the_answer_says_whether_tensorboard_dropped_steps(tmp_path: Path) -> None:
    write(tmp_path / "a", [(i, typical()) for i in range(20)])
    provider = python_server(tmp_path)
    assert Board(provider, limit=20).flow()[0]["thinned"] is True
    assert Board(provider, limit=21).flow()[0]["thinned"] is False
    assert Board(provider, limit=0).flow()[0]["thinned"] is False


def test_a_run_too_large_for_one_message_is_thinned_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", [(i, typical()) for i in range(50)])
    monkeypatch.setattr(reader, "MESSAGE", 7 * (4 * len(LAYERS) * len(tags.COLUMNS) + 64))
    head, _ = Board(python_server(tmp_path)).flow()
    assert (head["samples"], head["thinned"]) == (7, True)


def test_a_run_still_written_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "a", [(0, typical())])
    multiplexer = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={tags.PLUGIN_NAME: 0})
    opened = Board(data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path)))
    found = []
    for step in (1, 2):
        multiplexer.AddRunsFromDirectory(str(tmp_path)).Reload()
        found.append(opened.flow()[0]["starts"])
        write(tmp_path / "a", [(step, typical())])
        time.sleep(1.1)  # a new file's name begins with the second
    assert found == [[0], [0, 1]]


# --- bad data and bad requests -------------------------------------------------------------------------------------

BAD_TENSORS = {
    "rank": (np.zeros(3, "f4"), "float32 of shape [3], not numbers of shape [3, 20]"),
    "shape": (np.zeros((2, 20), "f4"), "float32 of shape [2, 20], not"),
    "text": (np.full((3, 20), b"x"), "of shape [3, 20], not numbers"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_a_malformed_tensor_is_one_sentence_and_costs_no_other_run(board: Opened, tmp_path: Path, kind: str) -> None:
    tensor, words = BAD_TENSORS[kind]
    write(tmp_path / "a", [(0, typical()), (5, tensor)])
    write(tmp_path / "b", [(0, typical())])
    opened = board(tmp_path)
    reply = opened.get("flow", run="a", tag="gradient_flow", quantity="weight")
    assert reply.status_code == 400
    assert reply.text.startswith("this run cannot be shown: the tensor of step 5 is ")
    assert words in reply.text
    assert opened.flow(run="b")[0]["samples"] == 1


BAD_CONTENTS = [b"", b"{", b"[]", b"{}", b'{"version": 99}', b'{"version": "1"}',
                b'{"version": 1, "layers": 3, "statistics": []}', b'{"version": 1, "layers": [1], "statistics": []}',
                b'{"version": 1, "layers": "abc", "statistics": []}', b"\xff"]  # fmt: skip


@pytest.mark.parametrize("content", BAD_CONTENTS)
def test_a_malformed_description_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a", [(0, typical())], content=content)
    write(tmp_path / "b", [(0, typical())])
    opened = Board(python_server(tmp_path))
    first, second = opened.series()
    assert first["problem"].startswith("this run cannot be shown: its description was not written by vgrad_torch (")
    assert second["problem"] == ""
    reply = opened.get("flow", run="a", tag="gradient_flow", quantity="weight")
    assert (reply.status_code, reply.text) == (400, first["problem"])


def test_requests_for_what_is_not_there_are_refused(board: Opened, tmp_path: Path) -> None:
    write(tmp_path / "a", [(0, typical())])
    opened = board(tmp_path)
    there: dict[str, object] = {"run": "a", "tag": "gradient_flow", "quantity": "weight", "step": 0}
    for route, change, status in (
        ("flow", {"run": "nowhere"}, 404),
        ("flow", {"run": ""}, 404),
        ("flow", {"tag": "nothing"}, 404),
        ("flow", {"tag": ""}, 404),
        ("flow", {"quantity": "nonsense"}, 400),
        ("profile", {"step": "x"}, 400),
        ("profile", {"run": "nowhere"}, 404),
    ):
        assert opened.get(route, **there | change).status_code == status, (route, change)


# --- the page's files ----------------------------------------------------------------------------------------------


def test_files_are_a_fixed_table(tmp_path: Path) -> None:
    opened = Board(None)
    assert set(opened._apps) == {f"/{name}" for name in STATIC} | {"/runs", "/flow", "/profile", "/time"}
    for name, kind in STATIC.items():
        reply = opened.get(name, file="../routes.py", path="/etc/passwd")
        assert (reply.status_code, reply.mimetype) == (200, kind)
        assert reply.data == (Path(reader.__file__).parent / "static" / name).read_bytes()


def test_every_file_of_the_page_is_in_the_table_and_asks_no_other_host() -> None:
    folder = Path(reader.__file__).parent / "static"
    assert {path.name for path in folder.iterdir()} == set(STATIC)
    for path in folder.iterdir():
        text = path.read_text()
        assert "innerHTML" not in text
        assert "insertAdjacentHTML" not in text
        assert set(re.findall(r"https?://[^\s'\"]*", text)) <= {"http://www.w3.org/2000/svg"}


def test_a_missing_file_is_a_message(tmp_path: Path) -> None:
    for name in STATIC.keys() - {"scales.js"}:
        (tmp_path / name).write_text("export function render() {}")
    opened = Board(None, static=tmp_path)
    assert "scales.js is missing" in opened.get("index.js").text
    assert opened.get("scales.js").status_code == 404
    assert opened.get("data.js").status_code == 200


# --- the entry point -----------------------------------------------------------------------------------------------


def test_flags_keep_many_samples_unless_the_user_says_otherwise() -> None:
    for given, kept in (({}, loader.SAMPLES), ({"gradient_flow": 5}, 5), ({"gradient_flow": 0}, 0)):
        flags = argparse.Namespace(samples_per_plugin=dict(given))
        loader.Loader().fix_flags(flags)
        assert flags.samples_per_plugin == {"gradient_flow": kept}
    loader.Loader().fix_flags(argparse.Namespace())


def test_the_loader_makes_the_plugin() -> None:
    plugin = loader.Loader().load(base_plugin.TBContext())
    assert (plugin.plugin_name, plugin.frontend_metadata().tab_name) == ("gradient_flow", "Gradient Flow")


@pytest.mark.parametrize("broken", ["numpy", "werkzeug", "vgrad_torch.tensorboard.plugin.routes"])
def test_a_broken_installation_costs_only_this_tab(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.startswith("vgrad_torch.tensorboard.plugin.r")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, broken, None)
    monkeypatch.setattr(logging.getLogger("tensorboard"), "propagate", True)
    assert loader.Loader().load(base_plugin.TBContext()) is None
    assert "the Gradient Flow tab is left out: " in caplog.text


def test_the_entry_point_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["tensorboard_plugins"] == {
        "gradient_flow": "vgrad_torch.tensorboard.plugin.loader:Loader"
    }
    module, _, name = "vgrad_torch.tensorboard.plugin.loader:Loader".partition(":")
    assert issubclass(getattr(importlib.import_module(module), name), base_plugin.TBLoader)
