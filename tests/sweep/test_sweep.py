"""A sweep: what it makes of a grid, that a killed one goes on, and that a cell does not depend on how it was made."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from joblib.externals.loky import reusable_executor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import ROOT
from tests.support.warm import VGRAD, WarmProcess
from vgrad_torch import training
from vgrad_torch.cli.parser import main
from vgrad_torch.errors import UsageError
from vgrad_torch.sweep import grid as sweep
from vgrad_torch.sweep import heatmap, summary
from vgrad_torch.sweep import outcome as outcomes
from vgrad_torch.training import recipes

SMALL: dict[str, Any] = {"hidden": (4,), "epochs": 1}


def small(runs: Path, seeds: int = 1, name: str = "s", **axes: Any) -> sweep.Sweep:
    return sweep.grid({"data": ["circles"], **axes}, seeds, name=name, runs=str(runs), **SMALL)


def test_the_grid_is_the_product_of_the_axes_and_the_seeds(tmp_path: Path) -> None:
    grid = small(tmp_path, 2, act=["relu", "tanh", "relu"], norm=[None, "batch"], lr=[0.1])
    assert [(c.act, c.norm, c.lr, c.seed) for c in grid.configs] == [
        (act, norm, 0.1, seed) for act in ("relu", "tanh") for norm in (None, "batch") for seed in (0, 1)
    ]
    assert len({config.name for config in grid.configs}) == 8
    assert grid.configs[-1].name == "circles-tanh-normal-normbatch-lr0.1-s1"
    assert {config.epochs for config in grid.configs} == {1}


def test_a_cell_is_an_ordinary_run_and_its_numbers_are_those_of_that_run(tmp_path: Path) -> None:
    grid = small(tmp_path, act=["tanh"])
    (outcome,) = sweep.run(grid)
    (config,) = grid.configs
    alone = training.run(recipes.recipe("circles", act="tanh", **SMALL, runs=str(tmp_path / "alone")))
    last, history = alone.epochs[-1], alone.monitor.history
    assert (outcome.accuracy, outcome.loss) == (last.validation.accuracy, last.train.loss)
    gradients = [snapshot.layers[0].weight_gradient for snapshot in (history[0], history[-1])]
    assert [outcome.gradient_start, outcome.gradient_end] == [g.rms for g in gradients if g]
    assert outcome.verdict == alone.monitor.diagnose().verdict
    mine, theirs = (EventAccumulator(str(folder)).Reload() for folder in (outcomes.run_folder(config), alone.folder))
    assert mine.Tags()["scalars"] == theirs.Tags()["scalars"]
    assert json.loads((outcomes.run_folder(config) / "config.json").read_text())["act"] == "tanh"


def test_hparams_tell_the_cells_apart(tmp_path: Path) -> None:
    """As the HParams tab reads them: by the plugin's own context, from the events of all cells together."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    sweep.run(small(tmp_path, 2, act=["relu", "tanh"]))
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    provider = MultiplexerDataProvider(events, str(tmp_path))
    context = backend_context.Context(TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=[api_pb2.STATUS_SUCCESS], include_metrics=True
    )
    ids = RequestContext(), ""
    experiment = context.experiment_from_metadata(*ids, True, context.hparams_metadata(*ids), [])
    groups = list_session_groups.Handler(*ids[:1], context, ids[1], request).run().session_groups
    assert {"act", "init", "lr", "seed"} <= {info.name for info in experiment.hparam_infos}
    seen = {(g.hparams["act"].string_value, g.hparams["seed"].number_value) for g in groups}
    assert seen == {("relu", 0), ("relu", 1), ("tanh", 0), ("tanh", 1)}
    assert all(group.metric_values for group in groups)


def test_a_failed_cell_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    grid = sweep.grid({"lr": [1e20, 0.025]}, 1, name="s", runs=str(tmp_path), epochs=1)
    failed, fine = sweep.run(grid)
    assert failed.error is not None
    assert failed.error.startswith("the loss became nan at step 1: the first non-finite value is in")
    assert (failed.verdict, failed.finished, fine.error) == ("non-finite", True, None)
    bad, good = summary.rows([failed, fine])
    assert (bad.failed, good.failed, bad.verdicts) == (1, 0, {"non-finite": 1})
    assert math.isnan(bad.accuracy.median)
    again = sweep.run(grid, on_outcome=lambda outcome: pytest.fail("trained again"))
    assert [outcome.error for outcome in again] == [failed.error, None]


def test_a_cell_that_could_not_be_kept_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(outcomes, "_sync", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        (outcome,) = sweep.run(grid)
    assert (outcome.finished, outcome.error) == (False, "[Errno 28] No space left on device")
    assert grid.finished() == []
    (outcome,) = sweep.run(grid)
    assert outcome.error is None
    assert len(list(outcomes.run_folder(grid.configs[0]).glob("events*"))) == 1


COMMAND = ["sweep", "--data", "circles", "--act", "relu,tanh", "--seeds", "3", "--epochs", "12", "--name", "s"]


def start(runs: Path, *more: str) -> WarmProcess:
    return WarmProcess(VGRAD, [*COMMAND, "--runs", str(runs), *more], new_session=True)


def wait_for(files: Path, pattern: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(files.glob(pattern))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(process_group: int) -> bool:
    try:
        os.killpg(process_group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_sweep_goes_on_and_neither_that_nor_the_jobs_change_its_table(tmp_path: Path) -> None:
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    first = start(killed, "--jobs", "2")
    wait_for(killed, "s/*/result.json", 2)
    wait_for(killed, "s/*/config.json", 3)
    first.kill()
    first.communicate()
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("s/*/result.json")}
    assert len(finished) < 6
    for runs in (killed, alone):  # on one thread, in one process, and the first with what two processes made
        assert main([*COMMAND, "--jobs", "1", "--runs", str(runs)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    names = ["sweep.csv", "sweep.json"]
    ends = [[(runs / "s" / name).read_text().replace(str(runs), "") for name in names] for runs in (killed, alone)]
    assert ends[0] == ends[1]
    for cell in killed.glob("s/circles*"):
        assert len(list(cell.glob("events*"))) == 1
        points = EventAccumulator(str(cell)).Reload().Scalars("loss/train")
        steps = [point.step for point in points]
        assert len(steps) == 13
        assert steps == sorted(set(steps))
    wait_until_gone(first.pid)


def test_make_hands_its_values_on() -> None:
    command = [
        "make",
        "-n",
        "sweep",
        "ACT=sigmoid,tanh",
        "SEEDS=3",
        "JOBS=2",
        "LR=0.1,0.01",
        "PYTHON=" + sys.executable,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert re.search(r"vgrad sweep .*--act=.*--lr=.*--seeds=.*--jobs=.*--runs=", done.stdout)


def wait_until_gone(process_group: int) -> None:
    deadline = time.monotonic() + 20
    while alive(process_group):
        assert time.monotonic() < deadline, "processes of a killed sweep live on"
        time.sleep(0.05)


def test_ctrl_c_is_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    process = start(tmp_path, "--jobs", "2", "--epochs", "1000")
    wait_for(tmp_path, "s/*/config.json", 1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "\nvgrad: stopped\n")
    wait_until_gone(process.pid)
    assert not list(tmp_path.glob("s/*/result.json"))


def test_another_config_in_the_same_folder_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    sweep.run(small(tmp_path, act=["relu"]))
    other = sweep.grid(
        {"data": ["circles"], "act": ["tanh", "relu"]}, 1, name="s", runs=str(tmp_path), hidden=(4,), epochs=2
    )
    with pytest.raises(UsageError, match=r"relu-normal-s0 belongs to another sweep: its epochs is 1, not 2;"):
        sweep.run(other)
    assert not outcomes.run_folder(other.configs[0]).exists()


def test_more_seeds_and_values_go_on_with_what_is_there(tmp_path: Path) -> None:
    sweep.run(small(tmp_path, act=["relu"]))
    new: list[str] = []
    sweep.run(small(tmp_path, 2, act=["tanh", "relu"]), on_outcome=lambda outcome: new.append(outcome.config.name))
    assert new == ["circles-tanh-normal-s0", "circles-tanh-normal-s1", "circles-relu-normal-s1"]


def test_a_moved_sweep_is_recognised(tmp_path: Path) -> None:
    sweep.run(small(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    assert len(small(tmp_path / "there").finished()) == 1


def test_runs_that_no_sweep_made_are_never_touched(tmp_path: Path) -> None:
    grid = small(tmp_path)
    training.run(grid.configs[0])
    before = sorted(outcomes.run_folder(grid.configs[0]).iterdir())
    with pytest.raises(UsageError, match=r"s/circles-relu-normal-s0 is not a run of a sweep; choose another --name"):
        sweep.run(grid)
    assert sorted(outcomes.run_folder(grid.configs[0]).iterdir()) == before


def test_a_result_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    grid = small(tmp_path)
    sweep.run(grid)
    (outcomes.run_folder(grid.configs[0]) / outcomes.RESULT).write_text("{}")
    with pytest.raises(UsageError, match=r"cannot read .*result.json; delete that folder"):
        grid.finished()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--act", "relu,tahn"], "unknown activation 'tahn'; did you mean 'tanh'?"),
        (["--init", "he,hee"], "unknown initializer 'hee'; did you mean 'he'?"),
        (["--norm", "none,bach"], "unknown norm 'bach'; did you mean 'batch'?"),
        (["--lr", "0.1,fast"], "values must be numbers separated by commas, like 0.1,0.01, not '0.1,fast'"),
        (["--lr", "0.1,-1"], "lr must be a positive number, not -1.0"),
        (["--seeds", "0"], "seeds must be a whole number from 1, not 0"),
        (["--seed", "3"], "unrecognized arguments: --seed 3"),
        (["--jobs", "0"], "jobs must be a whole number from 1, not 0"),
        (["--backend", "dsak"], "unknown backend 'dsak'; did you mean 'dask'? Choose from: loky, dask, ray"),
        (["--name", "a/b"], "name must be that of a folder"),
        (["--data", "mnist", "--data-dir", "/nonexistent"], "/nonexistent does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_trained(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "--runs", str(tmp_path), *arguments]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_backend_that_is_not_installed_is_one_sentence(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, {"dask": "distributed", "ray": "ray"}[backend], None)
    with pytest.raises(UsageError, match=rf"^this backend is not installed .*; pip install '{backend}.*--backend$"):
        sweep.run(small(tmp_path), backend=backend)


def test_a_killed_worker_is_one_sentence_and_the_finished_cells_are_kept(tmp_path: Path) -> None:
    def kill(outcome: outcomes.Outcome) -> None:
        for worker in list(reusable_executor._executor._processes):
            os.kill(worker, signal.SIGKILL)

    grid = small(tmp_path, 6)
    with pytest.raises(UsageError, match=r"was killed, perhaps for lack of memory. Finished runs are kept"):
        sweep.run(grid, jobs=2, on_outcome=kill)
    assert 1 <= len(grid.finished()) < 6


def outcome(act: str, seed: int, accuracy: float, gradient: float, error: str | None = None) -> outcomes.Outcome:
    config = recipes.recipe("digits", act=act, seed=seed)
    return outcomes.Outcome(config, accuracy, 2 * accuracy, gradient, gradient / 10, "healthy", error)


def test_the_numbers_of_a_row_by_hand() -> None:
    row, zero = summary.rows(
        [outcome("relu", seed, 0.1 * seed, 10.0**-seed) for seed in (1, 4, 2)] + [outcome("tanh", 0, 0.5, 0.0)]
    )
    assert (row.accuracy.median, row.accuracy.least, row.accuracy.largest) == (0.2, 0.1, 0.4)
    assert (row.gradient_start.median, row.gradient_start.least, row.gradient_end.largest) == (-2, -4, -2)
    assert zero.gradient_start.median == -math.inf
    (line, dead) = csv.DictReader(summary.as_csv([row, zero]).splitlines())
    assert (line["act"], line["norm"], line["seeds"], line["loss_median"]) == ("relu", "none", "3", "0.4")
    assert (line["verdicts"], dead["gradient_start_median"]) == ("healthy 3", "-inf")
    content = json.loads(summary.as_json([row, zero], []))
    assert content["rows"][1]["gradient_start"]["median"] is None


def test_the_picture_has_a_field_for_each_combination_and_says_what_failed() -> None:
    nan = math.nan
    table = summary.rows(
        [
            outcome("relu", 0, 0.9, 0.01),
            outcome("relu", 1, 0.7, 0.01),
            outcome("tanh", 0, nan, nan, "the loss became nan"),
        ]
    )
    left, right = heatmap.figure(table).axes
    assert [text.get_text() for text in left.texts] == ["0.80", "0.70 to 0.90", "1 of 1 failed"]
    assert [text.get_text() for text in right.texts] == ["-2.0", "-2.0 to -2.0", "1 of 1 failed"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["relu", "tanh"]
    field = left.images[0].get_array()
    assert field is not None
    assert field[0, 0] == pytest.approx(0.8)
