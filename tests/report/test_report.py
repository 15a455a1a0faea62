"""`vgrad report` and `vgrad compare` on complete, killed, damaged and strange runs: a right answer or one sentence."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vgrad_torch as vg
from tests.support.flows import table, typical, write, write_text
from vgrad_torch import training
from vgrad_torch.cli.parser import main
from vgrad_torch.errors import UsageError
from vgrad_torch.records import LayerSnapshot
from vgrad_torch.report.report import diagnosed, report
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.histograms import LOG_EXPONENTS
from vgrad_torch.tensorboard.runlog import read
from vgrad_torch.tensorboard.writer import Writer
from vgrad_torch.training import recipes
from vgrad_torch.verdict.diagnosis import diagnose
from vgrad_torch.verdict.labels import two_digits


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(runs: Path) -> training.Result:
    """A run of `vgrad train` that does not learn."""
    return training.run(recipes.recipe("digits", act="sigmoid", epochs=4, runs=str(runs), name="sigmoid"))


@pytest.fixture(scope="module")
def other(runs: Path) -> training.Result:
    return training.run(recipes.recipe("digits", act="relu", init="he", epochs=2, runs=str(runs), name="relu"))


def watched(folder: Path, steps: int = 3, model: nn.Module | None = None, **how: Any) -> vg.Monitor:
    """A training loop as a user would write it."""
    torch.manual_seed(0)
    model = model or vg.build_mlp([6, 8, 8, 3], "tanh", "glorot")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    with vg.watch(model, optimizer, every=1, **({"logdir": folder} | how)) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.rand(16, 6)), torch.randint(3, (16,))).backward()
            optimizer.step()
    return monitor


def event_file(folder: Path) -> Path:
    (file,) = folder.glob("*tfevents*")
    return file


def copied(folder: Path, into: Path) -> Path:
    """A copy without the page that an earlier test may have made."""
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*.html"))
    return into


# --- what is read --------------------------------------------------------------------------------------------------


def assert_same(found: LayerSnapshot, seen: LayerSnapshot) -> None:
    """All that an event file keeps of a layer, in float32."""
    assert (found.number, found.name, found.kind, found.size, found.call) == (
        seen.number, seen.name, seen.kind, seen.size, seen.call,
    )  # fmt: skip
    paths = (*tags.COLUMNS.values(), "weight_gain", "update_ratio")
    for path, mine, theirs in zip(paths, tags.layer_values(found, paths), tags.layer_values(seen, paths), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6, nan_ok=True), path
    for quantity in ("weight", "weight_gradient", "output", "output_gradient", "input_gradient"):
        mine, theirs = getattr(found, quantity), getattr(seen, quantity)
        assert (mine is None) == (theirs is None)
        assert mine is None or mine.count == theirs.count


def test_a_run_is_read_back_as_it_was_seen(trained: training.Result) -> None:
    run = read(trained.folder)
    history = trained.monitor.history
    assert [s.step for s in run.history] == history.steps
    for found, seen in zip(run.history, history, strict=True):
        for mine, theirs in zip(found.layers, seen.layers, strict=True):
            assert_same(mine, theirs)
    losses = dict(run.scalars[tags.LOSS_TRAIN])
    assert losses == pytest.approx({epoch.step: epoch.train.loss for epoch in trained.epochs})
    assert (run.config["act"], run.notes, run.samples) == ("sigmoid", (), 4)


def test_its_log_histograms_are_read_back_exactly(trained: training.Result) -> None:
    found, seen = read(trained.folder).history[0], trained.monitor.history[0]
    for mine, theirs in zip(found.layers, seen.layers, strict=True):
        assert mine.weight_gradient
        assert mine.weight_gradient.histogram
        assert theirs.weight_gradient
        assert theirs.weight_gradient.histogram
        edges, counts = mine.weight_gradient.histogram.log10(LOG_EXPONENTS)
        np.testing.assert_array_equal(counts, theirs.weight_gradient.histogram.log10(LOG_EXPONENTS)[1])
        assert len(edges) == len(LOG_EXPONENTS)


def test_the_verdict_on_the_log_is_the_verdict_in_the_run(trained: training.Result) -> None:
    losses = [epoch.train.loss for epoch in trained.epochs]
    expected = diagnose(trained.monitor.history, optimizer="sgd", losses=losses)
    found = diagnosed(read(trained.folder))
    assert found is not None
    assert found.verdict == expected.verdict == "vanishing"
    assert found.paragraph() == expected.paragraph()
    assert [row.state for row in report(trained.folder).rows] == [layer.word for layer in expected.layers]


def test_a_verdict_that_the_run_wrote_is_shown_as_it_is(trained: training.Result, tmp_path: Path) -> None:
    written = replace(trained.monitor.diagnose(), because="the run says so")
    for number, text in enumerate((written.markdown(), str(written), f"{written.markdown()}\n\nAnd more.")):
        folder = copied(trained.folder, tmp_path / str(number))
        write_text(folder, tags.VERDICT, text)
        found = report(folder).verdict
        assert (found.word, found.logged) == ("vanishing", True)
        assert found.paragraph == written.paragraph() + (" And more." if number == 2 else "")
    write_text(folder, tags.VERDICT, "All is well, I think.")
    assert report(folder).verdict.word == ""
    assert report(folder).verdict.paragraph == "All is well, I think."


def test_a_verdict_older_than_the_newest_sample_is_not_shown(tmp_path: Path) -> None:
    write_text(tmp_path, tags.VERDICT, "**exploding**: long ago")
    watched(tmp_path)
    assert report(tmp_path).verdict.word == "healthy"


def test_a_users_loop_and_its_summary_writer_are_read_together(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        monitor = watched(tmp_path)  # an event file of its own beside the writer's
        for step in range(3):
            writer.add_scalar("Loss/fit", 2.0 - step, step)
    assert len(list(tmp_path.glob("*tfevents*"))) == 2
    run = read(tmp_path)
    assert [s.step for s in run.history] == monitor.history.steps
    assert run.losses() == ("Loss/fit", ((0, 2.0), (1, 1.0), (2, 0.0)))
    found = report(tmp_path)
    assert found.verdict.word == monitor.diagnose().verdict == "healthy"


def test_a_run_written_to_a_users_summary_writer_is_read_too(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        monitor = watched(tmp_path, logdir=None, writer=writer)
    found = read(tmp_path).history[-1]
    for mine, theirs in zip(found.layers, monitor.history[-1].layers, strict=True):
        assert_same(replace(mine, kind="Linear"), theirs)


def test_the_first_nan_is_reported_whatever_came_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = vg.build_mlp([6, 8, 8, 3], "relu", "he")
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
        watched(tmp_path, model=model)
    found = report(tmp_path)
    assert found.verdict.word == "non-finite"
    assert found.remarks()[0].startswith("Step 0, the first sampled step with NaN or infinity: in the weight of fc1")
    assert main(["report", str(tmp_path)]) == 0
    assert "NaN" in capsys.readouterr().out


def test_a_resumed_run_goes_on_and_what_an_earlier_one_left_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, [(step, typical(1.0)) for step in range(0, 100, 10)])
    write(tmp_path, [(step, typical(2.0)) for step in range(50, 80, 10)])
    for file, number in zip(sorted(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns), (9, 10), strict=True):
        file.rename(tmp_path / f"events.out.tfevents.1700000000.host.77.{number}")
    run = read(tmp_path)
    assert [s.step for s in run.history] == list(range(0, 80, 10))
    rms = [s.layers[0].weight_gradient.rms for s in run.history if s.layers[0].weight_gradient]
    assert rms == pytest.approx([1e-7] * 5 + [2e-7] * 3)
    assert run.notes == ("5 samples of an earlier run into the same folder are left out.",)


def test_a_run_of_very_many_samples_is_thinned(tmp_path: Path) -> None:
    write(tmp_path, [(step, typical()) for step in range(5000)])
    run = read(tmp_path)
    assert run.samples == 5000
    assert [s.step for s in run.history] == [*range(0, 5000, 2), 4999]


def test_without_a_batch_size_no_verdict_is_given(tmp_path: Path) -> None:
    write(tmp_path, [(0, typical()), (10, typical())])
    found = report(tmp_path)
    assert (found.verdict.word, found.verdict.logged) == ("cannot tell", False)
    assert "the log holds neither the batch size nor histograms" in found.verdict.paragraph
    assert found.rows[0].gradient == pytest.approx(1e-7)


def test_layers_without_a_gradient_may_be_frozen_or_cut_off(tmp_path: Path) -> None:
    model = vg.build_mlp([6, 8, 8, 8, 3], "tanh", "glorot")
    model[0].requires_grad_(False)
    watched(tmp_path, model=model, layers=nn.Linear)
    found = diagnosed(read(tmp_path))
    assert found is not None
    assert found.verdict == "cannot tell"
    assert "The log has no gradient of fc1. It does not say whether" in found.paragraph()


def test_layers_of_another_kind_have_their_own_numbers_of_entries(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    monitor = watched(tmp_path, model=model, layers=(nn.Conv1d, nn.Linear))
    for mine, theirs in zip(read(tmp_path).history[-1].layers, monitor.history[-1].layers, strict=True):
        for quantity in ("weight", "weight_gradient", "output", "output_gradient"):
            assert getattr(mine, quantity).count == getattr(theirs, quantity).count
        assert mine.kind == ""


def test_steps_of_a_recurrent_layer_are_one_run_however_many_there_are(tmp_path: Path) -> None:
    cell, head = nn.Linear(8, 8), nn.Linear(8, 2)
    model = nn.ModuleDict({"cell": cell, "head": head})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with vg.watch(model, optimizer, every=1, logdir=tmp_path) as monitor:
        for length in (3, 5, 2, 3):
            optimizer.zero_grad()
            x = torch.rand(16, 8)
            for _ in range(length):
                x = torch.tanh(cell(x))
            head(x).square().mean().backward()
            optimizer.step()
    run = read(tmp_path)
    assert [len(s.layers) for s in run.history] == [len(s.layers) for s in monitor.history] == [4, 6, 3, 4]
    assert run.notes == ()
    assert main(["report", str(tmp_path)]) == 0


def test_another_model_in_the_folder_is_left_out(tmp_path: Path) -> None:
    watched(tmp_path, steps=4)
    watched(tmp_path, model=vg.build_mlp([6, 5, 3]))
    run = read(tmp_path)
    assert (run.samples, len(run.history[-1].layers)) == (4, 3)
    assert run.notes[0].startswith("3 samples of another model, or of other layers, are left out")


def test_a_run_that_ended_with_an_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(training.NonFiniteError):
        training.run(recipes.recipe("digits", lr=1e20, runs=str(tmp_path), name="nan"))
    assert "The run ended with an error; the result of its last step is not in the log." in read(tmp_path / "nan").notes


def test_an_optimizer_that_is_not_named_is_said_to_be_so(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    watched(tmp_path, model=vg.build_mlp([6, *[8] * 7, 3], "sigmoid", "glorot", generator=generator))
    found = diagnosed(read(tmp_path))
    assert found is not None
    assert found.verdict == "cannot tell"
    assert "an optimizer that the log does not name was not calibrated" in found.because


# --- runs that are not whole ---------------------------------------------------------------------------------------

_ENDLESS = """
import sys, torch
import vgrad_torch as vg
from torch import nn
model = vg.build_mlp([6, 8, 8, 3], "sigmoid", "uniform")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with vg.watch(model, optimizer, every=1, logdir=sys.argv[1]) as monitor:
    while True:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.rand(16, 6)), torch.randint(3, (16,))).backward()
        optimizer.step()
        if monitor.step == 30:
            print("running", flush=True)
"""


def test_a_run_is_reported_while_it_goes_on_and_after_kill_9(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", _ENDLESS, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "running\n"
        assert main(["report", str(folder), "--json"]) == 0
        process.send_signal(signal.SIGKILL)
    first = json.loads(capsys.readouterr().out)["samples"]
    assert main(["report", str(folder)]) == 0
    (second,) = re.findall(r"(\d[\d,]*) samples of steps 0 to", capsys.readouterr().out)
    assert 30 <= first <= int(second.replace(",", ""))
    assert (folder / "report.html").stat().st_size > 50_000


def test_a_file_cut_off_anywhere_gives_what_is_before_the_cut(trained: training.Result, tmp_path: Path) -> None:
    folder = copied(trained.folder, tmp_path / "run")
    whole = event_file(folder).read_bytes()
    for share in (0.95, 0.6, 0.3):
        event_file(folder).write_bytes(whole[: int(len(whole) * share)])
        run = read(folder)
        assert 0 < run.samples <= 4
        assert any(note.endswith("cannot be read: cut off, damaged, or being written.") for note in run.notes)
        assert "The log has no end: the run was stopped or is still going on." in run.notes
        for mine, theirs in zip(run.history[-1].layers, trained.monitor.history[run.samples - 1].layers, strict=True):
            assert_same(mine, theirs)


def empty(folder: Path) -> None:
    """Nothing in it."""


def scalars(folder: Path) -> None:
    writer = Writer(folder)
    for step in range(3):
        writer.scalars({"train/loss": 1.0, "lr": 0.1}, step)
    writer.close()


def garbage(folder: Path) -> None:
    (folder / "events.out.tfevents.1.host").write_bytes(bytes(range(256)) * 40)


def zero_bytes(folder: Path) -> None:
    (folder / "events.out.tfevents.1.host").touch()


def head_only(folder: Path) -> None:
    Writer(folder).close()


def of_the_future(folder: Path) -> None:
    write(folder, [(0, typical())], content=b'{"version": 99, "layers": [], "statistics": []}')


def of_another_shape(folder: Path) -> None:
    write(folder, [(0, table({}, layers=2))])


def runs_below(folder: Path) -> None:
    scalars(folder / "a")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (empty, "holds no event file; give the folder of a run"),
        (scalars, "holds events (lr, train/loss) but no gradients; they come from `vgrad train` or from watch("),
        (garbage, "events.out.tfevents.1.host is damaged or no event file"),
        (zero_bytes, "events.out.tfevents.1.host is empty"),
        (head_only, "holds no gradients yet"),
        (of_the_future, "written in version 99 of its format, this reads 1"),
        (of_another_shape, "the sample of step 0 does not fit its description"),
        (runs_below, "holds no event file; runs are below it: "),
        (None, "there is no folder"),
    ],
)
@pytest.mark.parametrize("command", ["report", "compare"])
def test_what_cannot_be_reported_is_one_sentence(
    command: str, make: Callable[[Path], None] | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    if make is not None:
        folder.mkdir()
        make(folder)
    assert main([command, str(folder), "--out", str(tmp_path / "page.html")]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("vgrad: ")
    assert (printed.err.count("\n"), printed.out) == (1, "")
    assert not (tmp_path / "page.html").exists()


def test_a_file_that_cannot_be_written_is_one_sentence(
    trained: training.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["report", str(trained.folder), "--out", str(tmp_path / "file" / "page.html")]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"vgrad: cannot write .*page.html: Not a directory; choose another file with --out\n", error)


def test_a_damaged_config_is_a_remark(trained: training.Result, tmp_path: Path) -> None:
    folder = copied(trained.folder, tmp_path / "run")
    (folder / "config.json").write_text("{")
    run = read(folder)
    assert any(note.startswith("config.json cannot be read") for note in run.notes)
    assert (run.config["act"], run.config["batch"]) == ("sigmoid", 32)  # the event file's hyperparameters


# --- what is shown -------------------------------------------------------------------------------------------------


def test_a_report_is_a_table_a_paragraph_and_one_file(
    trained: training.Result, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(trained.folder)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    first = trained.monitor.history[-1].layers[0].weight_gradient
    assert first
    assert re.search(rf"^fc1 +64x512 +\S+ +{two_digits(first.rms)} ", printed.out, re.MULTILINE)
    assert "\nvanishing: fc1 receives " in printed.out
    assert printed.out.splitlines()[0].startswith("sigmoid: 4 samples of steps 0 to 132, 7 layers, loss/train from 2.3")
    page = (trained.folder / "report.html").read_text()
    assert page.count("<img ") == 6
    assert "Left out" not in page
    assert "vanishing" in page
    assert f"<td>{two_digits(first.rms)}</td>" in page


def test_the_page_asks_for_nothing_from_outside(trained: training.Result) -> None:
    assert main(["report", str(trained.folder)]) == 0
    page = (trained.folder / "report.html").read_text()
    outside = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|<iframe|src=\"(?!\")", outside)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert len(page) < 1_000_000


def test_names_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "<img src=x onerror=alert(1)>"
    folder = tmp_path / evil
    layers = (f"1-{evil}-8x6", "2-$x_{-6x4", "3-</style><script>-4x2")
    write(folder, [(0, typical()), (10, typical())], layers=layers)
    (folder / "config.json").write_text(json.dumps({"<b>": "<i>&amp;"}))
    write_text(folder, tags.FIRST_NONFINITE, "<script>alert(2)</script>")
    assert main(["report", str(folder)]) == 0
    assert main(["compare", str(folder), str(folder), "--out", str(tmp_path / "c.html")]) == 0
    for page in ((folder / "report.html").read_text(), (tmp_path / "c.html").read_text()):
        assert not re.search(r"<(script|i|b)>|<img src=x", page)
        assert page.count("</style>") == 1
        assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "&lt;/style&gt;&lt;script&gt;" in (folder / "report.html").read_text()
    capsys.readouterr()


def test_a_log_without_gains_or_histograms_has_the_other_pictures(tmp_path: Path) -> None:
    write(tmp_path, [(0, table({"weight_gradient_rms": [1e-7, 1e-5, 1e-3]}))])
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Left out: a waterfall needs the output and input gradients of two layers." in page
    assert "Left out: no histogram of weight_gradient was recorded at this step." in page
    assert "cannot tell" in page
    assert page.count("<img ") == 4


def test_json_holds_everything_and_nothing_that_json_lacks(
    trained: training.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "nan"
    write(folder, [(0, table({"weight_gradient_rms": [np.nan, np.inf, 1.0], "weight_gradient_nonfinite": [3, 2, 0]}))])
    for run in (trained.folder, folder):
        assert main(["report", str(run), "--json"]) == 0
        data = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert not (folder / "report.html").exists()
    assert [layer["gradient"] for layer in data["layers"]] == [None, None, 1.0]
    assert [layer["nonfinite"] for layer in data["layers"]] == [3, 2, 0]
    assert data["verdict"]["word"] in ("non-finite", "cannot tell")
    assert main(["compare", str(trained.folder), str(folder), "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["sigmoid"]["verdict"]["word"] == "vanishing"
    assert both["sigmoid"]["config"]["act"] == "sigmoid"
    assert [layer["layer"] for layer in both["sigmoid"]["layers"]] == [f"fc{i}" for i in range(1, 8)]


def test_compare_puts_runs_side_by_side_with_what_differs(
    trained: training.Result, other: training.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["compare", str(trained.folder), str(other.folder), str(other.folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^sigmoid +vanishing +132 .* 2\.3\d* +1\d\.\d%$", printed, re.MULTILINE)
    assert re.search(r"^relu \(2\) +healthy +44 ", printed, re.MULTILINE)
    rows = [line.split() for line in printed.splitlines()]
    assert ["act", "sigmoid", "relu", "relu"] in rows
    assert ["init", "uniform", "he", "he"] in rows
    assert not [row for row in rows if row[:1] in (["batch"], ["name"], ["runs"])]
    page = out.read_text()
    assert page.count("<img ") == 6
    assert ("healthy" in page, "vanishing" in page) == (True, True)


def test_reports_need_no_torch_and_json_no_matplotlib(trained: training.Result, tmp_path: Path) -> None:
    code = (
        "import sys; from vgrad_torch.cli.parser import main; assert main(sys.argv[1:]) == 0; "
        "print([m for m in ('torch', 'matplotlib', 'sklearn', 'tensorflow') if m in sys.modules])"
    )
    folder, out = str(trained.folder), str(tmp_path / "page.html")
    for arguments, loaded in (
        (["report", folder, "--json"], "[]"),
        (["compare", folder, "--out", out], "['matplotlib']"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == loaded


def test_a_deep_network_takes_seconds_and_not_too_many_bytes(tmp_path: Path) -> None:
    names_of_layers = [f"{i}-encoder.{i}.mlp-4x4" for i in range(1, 201)]
    tensor = np.tile(typical()[1:2], (200, 1))
    write(tmp_path, [(step, tensor) for step in range(40)], layers=names_of_layers)
    start = time.process_time()
    assert main(["report", str(tmp_path)]) == 0
    assert time.process_time() - start < 60
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_an_event_file_can_be_named_itself(trained: training.Result, tmp_path: Path) -> None:
    run = read(event_file(trained.folder))
    assert (run.name, run.samples) == ("sigmoid", 4)
    with pytest.raises(UsageError, match="there is no folder"):
        read(tmp_path / "nothing")


def test_a_model_that_is_one_layer_cannot_be_judged(tmp_path: Path) -> None:
    watched(tmp_path, model=nn.Linear(6, 3))
    found = report(tmp_path)
    assert [(row.layer, row.size) for row in found.rows] == [("Linear", "6x3")]
    assert found.verdict.word == "cannot tell"
