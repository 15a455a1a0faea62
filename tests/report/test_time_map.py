"""The gradient through time in the figures and in the report, against autograd."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

from tests.support.recurrent import Reader, train
from vgrad_torch.cli.parser import main
from vgrad_torch.errors import UsageError
from vgrad_torch.records import LayerSnapshot, Snapshot, TimeProfile
from vgrad_torch.report import figures
from vgrad_torch.report.html import report_page
from vgrad_torch.report.report import report
from vgrad_torch.tensorboard.runlog import read
from vgrad_torch.tensorboard.writer import Writer
from vgrad_torch.verdict.horizons import horizons

LENGTHS = [40, 25, 40]
Trained = tuple[Path, list[list[float]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("runs") / "rnn"
    return folder, train(folder, Reader(), LENGTHS)[1]


def colours(figure: Figure) -> Any:
    """[time steps, training steps, RGBA]."""
    (mesh,) = (artist for artist in figure.axes[0].collections if isinstance(artist, QuadMesh))
    return np.asarray(mesh.get_facecolor()).reshape(max(LENGTHS), len(LENGTHS), 4)


def test_the_map_has_the_colours_and_lines_of_what_autograd_says(trained: Trained) -> None:
    folder, exact = trained
    figure = figures.time_map({"": read(folder).history})
    drawn = colours(figure)
    tenths = []
    for column, norms in enumerate(exact):
        back = np.array(norms[::-1]) / norms[-1]
        with np.errstate(divide="ignore"):
            share = np.clip((np.log10(back) + 4) / 4, 0, 1)
        wanted = matplotlib.colormaps["viridis"](share)
        wanted[back == 0] = 0, 0, 0, 1
        np.testing.assert_allclose(drawn[: len(back), column], wanted, atol=0.01)
        tenths.append(int((back < 0.1).argmax()))
    assert np.allclose(drawn[LENGTHS[1] :, 1, :3], 0xEC / 255)
    line = np.asarray(figure.axes[0].lines[0].get_ydata(), np.float64)
    np.testing.assert_allclose(np.expm1(line[::2]), tenths, atol=1e-6)
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert {"rnn", "last", "step", "a tenth is left", "shorter sequence"} <= set(texts)


def snapshot(step: int, *names: str, profile: TimeProfile | None) -> Snapshot:
    layers = (LayerSnapshot(i, name, "RNN", "2x2", time=profile) for i, name in enumerate(names, 1))
    return Snapshot(step, tuple(layers))


def test_zeros_nan_and_names_of_any_kind_can_be_drawn() -> None:
    profile = TimeProfile.of([0.0, math.nan, 3.0, 1.0], 3)
    runs = {name: [snapshot(0, "$x_1$", *"abcdefghij", profile=profile)] for name in ("_a", "$b$")}
    figure = figures.time_map(runs)
    assert len([axis for axis in figure.axes if axis.collections]) >= 16
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"_a, $x_1$", "$b$, g", "exactly zero", "NaN or infinite"} <= texts
    assert "_a, h" not in texts


def test_without_a_profile_there_is_nothing_to_draw() -> None:
    with pytest.raises(UsageError, match="no recurrent layer"):
        figures.time_map({"": [snapshot(0, "fc1", profile=None)]})


def test_the_report_says_how_far_back_the_layer_can_learn(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    folder, exact = trained
    back = np.array(exact[-1][::-1]) / exact[-1][-1]
    tenth, hundredth = (int((back < limit).argmax()) for limit in (0.1, 0.01))
    sentence = f"{tenth} steps back through time, a hundredth after {hundredth}, of 40."
    sentence = f"rnn: a tenth of the gradient is left after {sentence}"
    found = report(folder)
    assert sentence in " ".join(str(found).split())
    page = report_page(found)
    assert "<h2>Gradient through time</h2>" in page
    assert sentence in page
    (time,) = json.loads(json.dumps(found.data()))["time"]
    assert [time[name] for name in ("layer", "steps", "last", "tenth", "hundredth")] == [
        "rnn",
        40,
        39,
        tenth,
        hundredth,
    ]
    assert main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["time"] == [time]


def test_a_report_without_recurrent_layers_says_nothing_about_time(tmp_path: Path) -> None:
    train(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(80, 8), nn.Tanh(), nn.Linear(8, 2)), [10, 10, 10])
    found = report(tmp_path)
    assert found.data()["time"] == []
    assert "through time" not in str(found) + report_page(found)


def test_names_in_the_report_are_escaped_and_many_layers_are_counted(tmp_path: Path) -> None:
    evil = "<script>"
    shown = snapshot(0, evil, *map(str, range(9)), profile=TimeProfile.of([0.05, 1.0], 1))
    lines = horizons(shown)
    assert lines[0].startswith("<script>: a tenth of the gradient is left after 1 step back through time, of 2;")
    assert lines[1].startswith("layer 0: ")
    assert lines[-1] == "2 more layers have a time profile."
    writer = Writer(tmp_path)
    writer.snapshot(shown, histograms=False)
    writer.close()
    page = report_page(report(tmp_path))
    assert "&lt;script&gt;: a tenth of the gradient" in page
    assert "<script>" not in page
