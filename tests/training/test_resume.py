"""A run that was interrupted and resumed ends as one that never was: with the same weights, log and verdict."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch

from tests import ROOT
from tests.scripts import kills
from tests.support import browser
from tests.support.warm import VGRAD, WarmProcess
from vgrad_torch import training
from vgrad_torch.cli.parser import main
from vgrad_torch.errors import UsageError
from vgrad_torch.files import encode, lock
from vgrad_torch.records import Snapshot
from vgrad_torch.tensorboard.tags import COST
from vgrad_torch.training.evaluation import Epoch
from vgrad_torch.training.recipes import TrainConfig, differences, recipe
from vgrad_torch.training.run_folder import RunFolder, read_config, write_config

PLANS: dict[str, dict[str, Any]] = {
    "shuffled for each epoch, Adam, batch norm": {
        "data": "circles", "epochs": 4, "every": 7, "optimizer": "adam", "norm": "batch", "init": "he",
    },
    "shuffled once, momentum, clipped": {"data": "digits", "epochs": 3, "every": 11, "hidden": (16, 8), "clip": 0.5},
    "RMSprop, vanishing": {"data": "circles", "epochs": 3, "every": 10, "act": "sigmoid", "hidden": (8,) * 6},
    "AdamW, residual": {
        "data": "digits", "epochs": 2, "every": 20, "optimizer": "adamw", "hidden": (16, 16), "residual": True,
    },
}  # fmt: skip


def config_of(plan: str, runs: Path) -> TrainConfig:
    return recipe(runs=str(runs), name="run", **PLANS[plan])


def watched(config: TrainConfig) -> tuple[training.Result, list[Path]]:
    """An undisturbed run, and a copy of its folder from each sample on: what a kill would have left at that moment."""
    folder, copies = Path(config.runs) / config.name, []

    def copy(snapshot: Snapshot) -> None:
        copies.append(Path(config.runs) / f"killed-at-{snapshot.step}")
        shutil.copytree(folder, copies[-1])

    return training.run(config, on_sample=copy), copies


def resumed(folder: Path, **given: Any) -> training.Result:
    run = RunFolder.read(folder)
    return training.run(run.config, saved=run, **given)


def seen(result: training.Result) -> list[Any]:
    """All that the monitor kept, but for times."""
    return [encode(replace(snapshot, wall_time=0.0)) for snapshot in result.monitor.history]


def scored(result: training.Result) -> list[Any]:
    return [replace(epoch, seconds=0.0, samples_per_second=0.0) for epoch in result.epochs]


def assert_same(result: training.Result, undisturbed: training.Result) -> None:
    mine, other = result.model.state_dict(), undisturbed.model.state_dict()
    assert list(mine) == list(other)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert kills.events(result.folder) == kills.events(undisturbed.folder)
    assert seen(result) == seen(undisturbed)
    assert scored(result) == scored(undisturbed)
    assert (result.monitor.losses, result.monitor.step) == (undisturbed.monitor.losses, undisturbed.monitor.step)
    assert str(result.diagnosis) == str(undisturbed.diagnosis)
    kept, whole = (RunFolder.read(each.folder) for each in (result, undisturbed))
    assert kept.progress is not None
    assert kept.progress.finished
    states = kept.tensors["optimizer"]["state"], whole.tensors["optimizer"]["state"]
    assert plain_state(states[0]) == plain_state(states[1])
    assert torch.equal(kept.tensors["order"], whole.tensors["order"])


def plain_state(state: dict[int, dict[str, Any]]) -> Any:
    return {place: {name: value.tolist() for name, value in values.items()} for place, values in state.items()}


@pytest.mark.parametrize("plan", PLANS)
def test_a_run_killed_at_any_sample_ends_like_one_that_was_not(plan: str, tmp_path: Path) -> None:
    undisturbed, copies = watched(config_of(plan, tmp_path))
    assert len(copies) >= 5
    for copy in [copies[0], copies[1], copies[-1], *random.Random(0).sample(copies[2:-1], 2)]:
        assert_same(resumed(copy), undisturbed)


def test_what_a_kill_left_is_less_than_the_whole(tmp_path: Path) -> None:
    undisturbed, copies = watched(config_of("shuffled for each epoch, Adam, batch norm", tmp_path))
    assert 10 < len(kills.events(copies[3])) < len(kills.events(undisturbed.folder))
    progress = RunFolder.read(copies[-1]).progress
    assert progress is not None
    assert not progress.finished
    assert len(progress.epochs) == 4


def test_half_an_event_at_the_end_is_cut_off(tmp_path: Path) -> None:
    undisturbed, copies = watched(config_of("shuffled once, momentum, clipped", tmp_path))
    (log,) = copies[-1].glob("*tfevents*")
    with log.open("ab") as file:
        file.write(log.read_bytes()[-1000:-17])
    assert_same(resumed(copies[-1]), undisturbed)


def test_torchs_own_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    config = config_of("shuffled for each epoch, Adam, batch norm", tmp_path)

    def run(drawn: list[float], epochs: int, resume: bool, name: str) -> None:
        def draw(epoch: Epoch, monitor: Any) -> None:
            drawn.append(float(torch.rand(())))
            if epoch.number == epochs:
                signal.raise_signal(signal.SIGTERM)

        with suppress(training.Stopped):
            kept = RunFolder.read(tmp_path / name) if resume else None
            training.run(replace(config, name=name), saved=kept, on_epoch=draw)

    whole: list[float] = []
    parts: list[float] = []
    for drawn, epochs, resume, name in (
        (whole, 4, False, "whole"),
        (parts, 2, False, "parts"),
        (parts, 4, True, "parts"),
    ):
        torch.manual_seed(0 if not resume else 1)
        run(drawn, epochs, resume, name)
    assert len(whole) == 4
    assert parts == whole


def test_a_run_interrupted_again_and_again_ends_all_the_same(tmp_path: Path) -> None:
    config = config_of("shuffled for each epoch, Adam, batch norm", tmp_path)
    undisturbed, _ = watched(config)
    again = replace(config, name="again")
    with pytest.raises(training.Stopped):
        training.run(again, on_sample=stop_at(0))
    steps = []
    while True:
        try:
            result = resumed(tmp_path / "again", on_sample=stop_at(0))
        except training.Stopped:
            steps.append(RunFolder.read(tmp_path / "again").progress)
        else:
            break
    assert len(steps) == len(undisturbed.monitor.history) - 1
    assert_same(result, undisturbed)


def test_the_history_goes_on_thinned_as_it_was() -> None:
    from vgrad_torch.records import History

    for count in (0, 1, 5, 9, 17, 40):
        whole = History(limit=8)
        for step in range(count):
            whole.append(Snapshot(step, ()))
        restored = History.restored(list(whole), *whole.thinned)
        restored.limit = 8
        for step in range(count, 60):
            for history in (whole, restored):
                history.append(Snapshot(step, ()))
            assert restored.steps == whole.steps


# --- signals --------------------------------------------------------------------------------------------------------


def stop_at(step: int, number: int = signal.SIGTERM) -> Callable[[Snapshot], None]:
    """From this sampled step on, a signal comes while a sample is taken."""

    def stop(snapshot: Snapshot) -> None:
        if snapshot.step >= step:
            signal.raise_signal(number)

    return stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("plan", ["shuffled for each epoch, Adam, batch norm", "shuffled once, momentum, clipped"])
def test_a_signal_ends_the_run_behind_its_step_which_is_kept(plan: str, number: int, tmp_path: Path) -> None:
    config = config_of(plan, tmp_path)
    undisturbed = training.run(config)
    step = undisturbed.monitor.history[-3].step
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(training.Stopped, match=rf"stopped after step {step + 1}$") as stopped:
        training.run(replace(config, name="stopped"), on_sample=stop_at(step, number))
    assert stopped.value.number == number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    progress = RunFolder.read(tmp_path / "stopped").progress
    assert progress is not None
    assert progress.monitor is not None
    assert progress.monitor.step == step + 1
    logged = kills.events(tmp_path / "stopped")  # no end of it: neither a verdict nor the last depth profile
    assert logged == kills.events(undisturbed.folder)[: len(logged)]
    assert_same(resumed(tmp_path / "stopped"), undisturbed)


def test_a_signal_at_an_epochs_last_step_loses_no_score(tmp_path: Path) -> None:
    config = recipe("digits", hidden=(8,), epochs=2, every=43, runs=str(tmp_path))  # an epoch has 44 steps
    undisturbed = training.run(config)
    with pytest.raises(training.Stopped, match="after step 44"):
        training.run(replace(config, name="stopped"), on_sample=stop_at(43))
    assert_same(resumed(tmp_path / "stopped"), undisturbed)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    def insist(snapshot: Snapshot) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        training.run(recipe("circles", epochs=1, runs=str(tmp_path)), on_sample=insist)
    assert not isinstance(stopped.value, training.Stopped)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_says_how_to_continue(
    number: int, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_run = training.run
    monkeypatch.delenv("VGRAD_MAKE", raising=False)
    monkeypatch.setattr(training, "run", lambda *a, **k: plain_run(*a, **{**k, "on_sample": stop_at(32, number)}))
    assert main(["train", "--data", "circles", "--epochs", "3", "--name", "x", "--runs", str(tmp_path)]) == code
    error = capsys.readouterr().err
    assert error == f"vgrad: stopped after step 33; continue with: vgrad train --resume {tmp_path / 'x'}\n"
    monkeypatch.setattr(training, "run", plain_run)
    assert main(["train", "--resume", str(tmp_path / "x")]) == 0
    printed = capsys.readouterr().out
    assert f"run {tmp_path / 'x'} continues after epoch 1: circles, hidden layers 5-5-5-5" in printed
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("epoch ")] == ["1/3", "2/3", "3/3"]
    assert f"vgrad train --data circles --act sigmoid --epochs 3 --runs {tmp_path} " in printed
    assert main(["train", "--resume", str(tmp_path / "x")]) == 0
    finished = f"The run {tmp_path / 'x'} is finished after 3 epochs; nothing is left to train.\n"
    assert capsys.readouterr().out == finished


# --- the log --------------------------------------------------------------------------------------------------------


def test_an_event_file_that_is_gone_is_begun_again_and_reported(tmp_path: Path) -> None:
    undisturbed, copies = watched(config_of("shuffled once, momentum, clipped", tmp_path))
    for path in copies[-1].glob("*tfevents*"):
        path.unlink()
    result = resumed(copies[-1])
    assert "what was logged before is missing, as events.out" in str(result.monitor.writer.fault)
    whole, rest = kills.events(undisturbed.folder), kills.events(copies[-1])
    assert 0 < len(rest) < len(whole)
    assert [event[:2] for event in rest] == [event[:2] for event in whole[-len(rest) :]]


def test_two_processes_cannot_train_one_run(tmp_path: Path) -> None:
    _, copies = watched(config_of("shuffled once, momentum, clipped", tmp_path))
    (log,) = copies[-1].glob("*tfevents*")
    with log.open("rb") as file:
        lock(file.fileno(), wait=False)
        size = log.stat().st_size
        with pytest.raises(UsageError, match="another process is training"):
            resumed(copies[-1])
        assert log.stat().st_size == size
    resumed(copies[-1])


Scalar = Callable[[str, str], list[list[float]]]


@contextmanager
def open_board(runs: Path, work: Path, *flags: str) -> Iterator[Scalar]:
    """A TensorBoard that reloads every second; gives the function (run, tag) -> [step, value] pairs of a scalar."""
    with browser.tensorboard(runs, work / "log", "--reload_interval=1", "--reload_multifile=false", *flags) as address:

        def scalar(run: str, tag: str) -> list[list[float]]:
            url = f"{address}data/plugin/scalars/scalars?run={run}&tag={quote(tag, safe='')}"
            try:
                return [point[1:] for point in browser.fetch(url)]
            except OSError:  # not yet there
                return []

        yield scalar


def shown(scalar: Scalar, run: str, tag: str, count: int) -> list[list[float]]:
    """The points of a tag, once there are so many."""
    points: list[list[float]] = browser.eventually(lambda: scalar(run, tag), lambda points: len(points) >= count)
    return points


@pytest.mark.parametrize("flags", [[], ["--load_fast=false"]], ids=["rust", "python"])
def test_a_tensorboard_that_is_open_meanwhile_shows_one_run_without_doubled_points(
    flags: list[str], tmp_path: Path
) -> None:
    config = recipe("digits", hidden=(16, 8), epochs=3, every=4, runs=str(tmp_path / "work"), name="run")
    undisturbed, copies = watched(config)
    counts = Counter(tag for _, tag, *_ in kills.events(undisturbed.folder))
    tags = [tag for tag in counts if tag.startswith(("gradient_log10_rms/", "loss/", COST))]
    assert sorted(counts[tag] for tag in tags) == [4, 4, 33, 33, 33, 33]
    live = tmp_path / "runs"
    shutil.copytree(copies[-3], live / "killed")
    with open_board(live, tmp_path, *flags) as scalar:
        assert len(shown(scalar, "killed", COST, 31)) == 31
        assert_same(resumed(live / "killed"), undisturbed)
        shutil.copytree(undisturbed.folder, live / "undisturbed")
        for tag in tags:
            assert_shown_alike(scalar, tag, counts[tag])
        time.sleep(2)  # nor does it change its mind
        assert_shown_alike(scalar, COST, 33)
    with open_board(live, tmp_path, *flags) as scalar:
        for tag in tags:
            assert_shown_alike(scalar, tag, counts[tag])


def assert_shown_alike(scalar: Scalar, tag: str, count: int) -> None:
    mine, whole = shown(scalar, "killed", tag, count), shown(scalar, "undisturbed", tag, count)
    assert [step for step, _ in mine] == [step for step, _ in whole]
    assert len(mine) == count
    assert tag == COST or mine == whole


# --- options --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.run(recipe("circles", epochs=1, runs=str(tmp_path_factory.mktemp("runs")))).folder


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--lr", "0.5"], "--lr 0.5: the run {run} was started with 0.001 and continues with it; leave it out"),
        (["--epochs", "50"], "--epochs 50: the run {run} was started with 1 and continues with it"),
        (["--data", "digits"], "--data digits: the run {run} was started with circles"),
        (["--weight-decay", "0.1"], "--weight-decay 0.1: the run"),
        (["--residual"], "--residual True: the run"),
        (["--runs", "elsewhere"], "--runs elsewhere: the run"),
    ],
)
def test_options_that_contradict_the_run_are_refused(
    given: list[str], words: str, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(short), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vgrad: " + words.format(run=short))
    assert error.count("\n") == 1


def test_options_that_say_the_same_are_taken(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(short), "--lr", "0.001", "--data-dir", "anywhere"]) == 0
    assert "is finished after 1 epochs" in capsys.readouterr().out


def test_make_hands_the_run_on_and_no_folder_of_runs_beside_it() -> None:
    makefile = ROOT / "Makefile"

    def shown(*given: str) -> str:
        command = ["make", "-n", "-f", str(makefile), "train", *given]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    assert '${VGRAD_RESUME:+"--resume=$VGRAD_RESUME"}' in shown("RESUME=runs/x")
    assert "--runs=" not in shown("RESUME=runs/x")
    for given in ([], ["RESUME="]):
        assert "--runs=" in shown(*given)


def test_a_config_is_its_differences_from_the_recipe(tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [
        {"data": "circles", "optimizer": "sgd"},
        {"hidden": (3, 4), "norm": "batch"},
        {"name": "mine"},
    ]
    for given in cases:
        config = recipe(**given)
        assert recipe(**differences(config)) == config
        write_config(config, tmp_path)
        assert read_config(tmp_path) == config


def start(*arguments: str) -> WarmProcess:
    return WarmProcess(VGRAD, ["train", *arguments], strict=True)


def test_runs_killed_with_sigkill_end_as_if_undisturbed(tmp_path: Path) -> None:
    chance = random.Random(7)
    assert main(["train", *kills.PLANS["circles"].split(), "--runs", str(tmp_path / "circles")]) == 0
    (log,) = tmp_path.glob("circles/*/*tfevents*")
    size = log.stat().st_size
    instants = [kills.in_training, kills.in_a_checkpoint]
    _, where = kills.survivor("circles", tmp_path / "run", instants, size, chance, start=start)
    assert where
