"""Checkpoints: whole or not there, refused in a sentence where they are not ours, and no code in them is run."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pickle
import shutil
import signal
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from tests.scripts import fuzz, kills
from tests.support.disk import files_of_at_most
from vgrad_torch import training
from vgrad_torch.cli.parser import main
from vgrad_torch.files import decode, encode, write_whole
from vgrad_torch.records import Histogram, LayerSnapshot, Snapshot, Stats
from vgrad_torch.tensorboard.eventfile import cut
from vgrad_torch.tensorboard.writer import Writer
from vgrad_torch.training import checkpoint_file, checkpoints, recipes
from vgrad_torch.training.recipes import recipe
from vgrad_torch.training.run_folder import RunFolder, write_config
from vgrad_torch.training.signals import StopSignals


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, training.Result]:
    """A run that was killed in its second epoch, and the same run undisturbed."""
    folder = tmp_path_factory.mktemp("runs")

    def copy(snapshot: Snapshot) -> None:
        if snapshot.step == 48:
            shutil.copytree(folder / "run", folder / "killed")

    result = training.run(recipe("circles", epochs=2, every=8, runs=str(folder), name="run"), on_sample=copy)
    return folder / "killed", result


@pytest.fixture
def run(killed: tuple[Path, training.Result], tmp_path: Path) -> Path:
    """A copy of the killed run, to be spoiled."""
    shutil.copytree(killed[0], tmp_path / "run")
    return tmp_path / "run"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence with which `vgrad train` refuses."""
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vgrad: ")
    assert error.count("\n") == 1
    return error


def resume(folder: Path, **given: Any) -> training.Result:
    found = RunFolder.read(folder)
    return training.run(found.config, saved=found, **given)


def final_weights_agree(result: training.Result, other: training.Result) -> bool:
    mine, theirs = result.model.state_dict(), other.model.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in theirs)


# --- what is in it --------------------------------------------------------------------------------------------------


def test_torch_loads_it_without_running_code(killed: tuple[Path, training.Result]) -> None:
    run, result = killed
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    assert set(content) == {"version", "progress", "snapshots", "model", "optimizer", "order", "random"}
    fresh = recipes.make_optimizer(result.model, result.config)
    fresh.load_state_dict(content["optimizer"])
    assert float(fresh.state[next(result.model.parameters())]["step"]) == 32
    assert json.loads(content["progress"])["config"]["act"] == "relu"


def test_it_is_written_at_the_start_after_each_epoch_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, bool, bool]] = []

    def note(path: Path, content: bytes) -> None:
        write_whole(path, content)
        progress = RunFolder.read(path.parent).progress
        assert progress is not None
        written.append((len(progress.epochs) - 1, progress.log is not None, progress.finished))

    monkeypatch.setattr(checkpoints, "write_whole", note)
    training.run(recipe("circles", epochs=2, runs=str(tmp_path)))
    assert written == [
        (0, False, False), (0, True, False), (1, True, False), (2, True, False), (2, True, True),
    ]  # fmt: skip


def test_each_epoch_draws_from_where_the_last_one_left_the_generator(tmp_path: Path) -> None:
    result = training.run(recipe("circles", epochs=3, runs=str(tmp_path)))
    generator = torch.Generator().manual_seed(result.config.seed)
    training.set_up(result.config)  # draws from one of its own
    initial = training.set_up(result.config).generator.get_state()
    generator.set_state(initial)
    for _ in range(3):
        torch.randperm(1000, generator=generator)
    assert torch.equal(RunFolder.read(result.folder).tensors["order"], generator.get_state())


# --- whole or not there ---------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda descriptor: _raise(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def _raise(error: Exception) -> None:
    raise error


def test_a_full_disk_is_one_warning_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    config = recipe("digits", act="tanh", epochs=3, runs=str(tmp_path / "a"), name="run")  # 1.8 MB of a checkpoint
    undisturbed = training.run(config)
    stop = Stop()

    def fill(epoch: Any, monitor: Any) -> None:
        if epoch.number == 2:
            stop.enter(files_of_at_most(1_000_000))

    try:
        with pytest.warns(RuntimeWarning, match=r"cannot write .*checkpoint\.pt: File too large; .* stays") as caught:
            full = training.run(replace(config, runs=str(tmp_path / "b")), on_epoch=fill)
    finally:
        stop.leave()
    assert len(caught) == 1
    assert final_weights_agree(full, undisturbed)
    assert full.monitor.writer.fault is None
    assert sorted(path.name for path in full.folder.iterdir())[:2] == ["checkpoint.pt", "config.json"]
    progress = RunFolder.read(full.folder).progress
    assert progress is not None
    assert (len(progress.epochs), progress.finished) == (2, False)
    assert final_weights_agree(resume(full.folder), undisturbed)


class Stop:
    """A block that one function begins and another one ends."""

    def __init__(self) -> None:
        self._block: Any = None

    def enter(self, block: Any) -> None:
        self._block = block
        block.__enter__()

    def leave(self) -> None:
        if self._block:
            self._block.__exit__(None, None, None)


def test_a_log_that_cannot_reach_the_disk_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path)
    writer.scalars({"a": 1.0}, 0)
    before = writer.position()
    assert before is not None
    assert before.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", lambda descriptor: _raise(OSError(errno.EIO, "Input/output error")))
    with pytest.warns(RuntimeWarning, match="cannot log to .*: Input/output error; training goes on"):
        after = writer.position()
    assert after is not None
    assert (after.size, after.fault is None) == (before.size, False)
    writer.scalars({"a": 1.0}, 1)
    assert writer.position() == after


def test_what_was_logged_before_a_fault_is_kept_and_the_fault_is_remembered(tmp_path: Path) -> None:
    config = recipe("digits", hidden=(16,), epochs=4, every=4, runs=str(tmp_path))
    stop = Stop()

    def fill(epoch: Any, monitor: Any) -> None:
        if epoch.number == 2:
            (path,) = Path(config.runs, config.name).glob("*tfevents*")
            stop.enter(files_of_at_most(path.stat().st_size + 20_000))
        if epoch.number == 3:
            raise KeyboardInterrupt

    try:
        with pytest.warns(RuntimeWarning, match="cannot"), pytest.raises(KeyboardInterrupt):
            training.run(config, on_epoch=fill)
    finally:
        stop.leave()
    folder = Path(config.runs, config.name)
    progress = RunFolder.read(folder).progress
    assert progress is not None
    assert len(progress.epochs) == 3  # the disk was full for the next checkpoint too, or the run had ended
    assert final_weights_agree(resume(folder), training.run(replace(config, name="undisturbed")))
    assert kills.events(folder) == kills.events(Path(config.runs, "undisturbed"))


# --- refused --------------------------------------------------------------------------------------------------------


def other_version(path: Path) -> None:
    content = dict(checkpoint_file.unpack(path.read_bytes()))
    path.write_bytes(checkpoint_file.pack({**content, "version": 2}))


def of_another_optimizer(path: Path) -> None:
    content = dict(checkpoint_file.unpack(path.read_bytes()))
    for state in content["optimizer"]["state"].values():
        state["momentum_buffer"] = state.pop("square_avg")
    path.write_bytes(checkpoint_file.pack(content))


def that_counts_no_steps(path: Path) -> None:
    content = dict(checkpoint_file.unpack(path.read_bytes()))
    for state in content["optimizer"]["state"].values():
        state["step"].fill_(-1e30)
    path.write_bytes(checkpoint_file.pack(content))


def of_another_network(path: Path) -> None:
    content = dict(checkpoint_file.unpack(path.read_bytes()))
    content["model"] = {name: value[:1] for name, value in content["model"].items()}
    path.write_bytes(checkpoint_file.pack(content))


def with_a_log_elsewhere(path: Path) -> None:
    content = dict(checkpoint_file.unpack(path.read_bytes()))
    elsewhere = path.parent.parent / "precious-tfevents"
    elsewhere.write_bytes(b"precious")
    progress = json.loads(content["progress"])
    progress["log"] |= {"file": "../precious-tfevents", "size": 0}
    content["progress"] = json.dumps(progress)
    path.write_bytes(checkpoint_file.pack(content))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "it is damaged, or was not written by vgrad train"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it is damaged, or"),
    "a bit": (lambda path: path.write_bytes(b"p" + path.read_bytes()[1:]), "it is damaged, or"),
    "torch's": (lambda path: torch.save({"model": torch.zeros(3)}, path), "it is damaged, or"),
    "pickled": (lambda path: path.write_bytes(fuzz.sealed(pickle.dumps([1, 2]))), "cannot be used: "),
    "keys": (lambda path: path.write_bytes(checkpoint_file.pack({"model": 1})), "cannot be used: 'version'"),
    "version": (other_version, "it is of version 2, this reads 1"),
    "optimizer": (of_another_optimizer, "it is of another optimizer: parameter 0 has {"),
    "steps": (that_counts_no_steps, "its step count of parameter 0 is wrong"),
    "network": (of_another_network, "Error(s) in loading state_dict for Sequential: size mismatch for"),
    "elsewhere": (with_a_log_elsewhere, "its event file is not one of this folder"),
    "folder": (a_folder, "checkpoint.pt cannot be read: Is a directory"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_checkpoint_that_is_not_ours_is_refused(case: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, words = SPOILED[case]
    log = kills.events(run)
    spoil(run / "checkpoint.pt")
    assert words in refused(capsys, "--resume", str(run))
    assert kills.events(run) == log
    precious = run.parent / "precious-tfevents"
    assert not precious.exists() or precious.read_bytes() == b"precious"


def edited(**changes: Any) -> Callable[[Path], object]:
    """Config.json with some fields changed, or taken out where they are `...`."""

    def edit(path: Path) -> None:
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return edit


CONFIGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "holds no config.json, so it is not a run that can continue; name the folder of a run"),
    "no JSON": (lambda path: path.write_text("{"), "cannot be used (Expecting property name"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe\xff"), "cannot be used ("),
    "a list": (lambda path: path.write_text("[1]"), "cannot be used (it holds no named values)"),
    "deep": (lambda path: path.write_text("[" * 100_000), "cannot be used ("),
    "a folder": (a_folder, "cannot be used ([Errno 21] Is a directory"),
    "a field less": (edited(residual=...), "(it lacks 'residual'): it is damaged, or of another version"),
    "a field more": (edited(dropout=0.1), "(it has 'dropout', which is unknown): it is damaged, or of another"),
    "another type": (edited(batch="32"), "(batch must be a whole number, not '32')"),
    "another type inside": (edited(hidden=[5, 5.5]), "(hidden[1] must be a whole number, not 5.5)"),
    "a bad value": (edited(lr=-1), "(lr must be a positive number, not -1.0)"),
    "a bad name": (edited(optimizer="sdg"), "(unknown optimizer 'sdg'; did you mean 'sgd'?"),
    "not what was trained": (edited(lr=0.5), "/config.json has lr 0.5, but"),
    "nor what was trained": (edited(hidden=[5, 5]), "/config.json has hidden (5, 5), but"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_not_the_runs_is_refused(case: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, words = CONFIGS[case]
    spoil(run / "config.json")
    assert words in refused(capsys, "--resume", str(run))


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file", tmp_path / "nowhere", tmp_path / ("x" * 300)):
        assert "config.json" in refused(capsys, "--resume", str(place))


def test_a_run_with_a_log_but_without_a_checkpoint_is_refused_and_left(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoint.pt").unlink()
    log = kills.events(run)
    assert "holds no checkpoint.pt, so this run cannot continue; start a new one" in refused(
        capsys, "--resume", str(run)
    )
    assert kills.events(run) == log


def test_a_run_killed_before_its_log_begins_at_the_start(killed: tuple[Path, training.Result], tmp_path: Path) -> None:
    undisturbed = killed[1]
    for name in ("config only", "first checkpoint", "log begun"):
        folder = tmp_path / name
        folder.mkdir()
        write_config(undisturbed.config, folder)
        if name != "config only":
            setup = training.set_up(undisturbed.config)
            checkpoints.Checkpoints(
                RunFolder(folder, undisturbed.config),
                undisturbed.config,
                setup.data,
                setup.model,
                setup.optimizer,
                setup.generator,
            ).save(undisturbed.epochs[:1])
        if name == "log begun":
            writer = Writer(folder)
            writer.layout()
            writer.close()
        result = resume(folder)
        assert final_weights_agree(result, undisturbed)
        assert kills.events(folder) == kills.events(undisturbed.folder)


# --- the data -------------------------------------------------------------------------------------------------------


def mnist(folder: Path, count: int, value: int = 200) -> Path:
    """Four files of so many images of 2 x 2 pixels."""
    folder.mkdir(exist_ok=True)
    for part in ("train", "t10k"):
        pixels = (np.arange(4 * count, dtype=np.uint8) % value).tobytes()
        labels = bytes(n % 10 for n in range(count))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 2, 2) + pixels)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    return folder


def test_data_that_are_no_longer_what_they_were_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mnist(tmp_path / "data", 60)
    options = ["--data", "mnist", "--data-dir", str(folder), "--hidden", "4", "--batch", "10", "--epochs", "3"]
    with monkeypatch.context() as patched:
        plain_run = training.run
        stop = {"on_sample": lambda snapshot: signal.raise_signal(signal.SIGTERM) if snapshot.step == 6 else None}
        patched.setattr(training, "run", lambda *a, **k: plain_run(*a, **{**k, **stop}))
        assert main(["train", *options, "--name", "run", "--runs", str(tmp_path)]) == 143
    capsys.readouterr()
    run = str(tmp_path / "run")
    mnist(folder, 61)
    assert (
        f"the data set is no longer that of {run}, which was trained on 60 samples of 4 features to train on, "
        "60 to validate, not on 61 samples of 4 features to train on, 61 to validate; put it back"
    ) in refused(capsys, "--resume", run)
    mnist(folder, 60, value=100)
    assert "which was trained on other samples of the same number; put it back" in refused(capsys, "--resume", run)
    shutil.rmtree(folder)
    assert f"the data folder {folder} does not exist" in refused(capsys, "--resume", run)
    moved = mnist(tmp_path / "moved", 60)
    assert main(["train", "--resume", run, "--data-dir", str(moved)]) == 0


# --- parts ----------------------------------------------------------------------------------------------------------


def test_a_snapshot_comes_back_from_json() -> None:
    histogram = Histogram(np.array([1, 4000], np.uint16), np.array([2, 2**40], np.int64))
    stats = Stats(5, 1, 2, 0.1, math.inf, -1e-300, 1e300, histogram)
    layer = LayerSnapshot(1, "fc", "Linear", "2x3", 2, stats, rank_rms=(0.1, 0.2), trainable=True)
    snapshot = Snapshot(7, (layer, replace(layer, trainable=None, weight=None)), 0.1)
    back = decode(Snapshot, json.loads(json.dumps(encode(snapshot))))
    assert encode(back) == encode(snapshot)
    early = {"step": 3, "wall_time": 1.0, "layers": [{"number": 1, "name": "fc", "kind": "Linear", "size": "2x1"}]}
    assert decode(Snapshot, early) == Snapshot(3, (LayerSnapshot(1, "fc", "Linear", "2x1"),), 1.0)  # an old file
    assert back.layers[1] == snapshot.layers[1]
    kept = back.layers[0].weight.histogram
    assert (kept.codes.dtype, kept.counts.dtype) == (np.uint16, np.int64)
    assert kept.dense().sum() == 2 + 2**40


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (int, True, "it must be a whole number, not True"),
        (int, 1.0, "it must be a whole number, not 1.0"),
        (float, 2**60, "it must be a number, not 1152921504606846976"),
        (bool, 1, "it must be true or false, not 1"),
        (tuple[str, ...], "abc", "it must be a list, not 'abc'"),
        (Stats | None, 3, "it must hold named values, not 3"),
        (Histogram, {"codes": [70000], "counts": [1]}, "codes must be numbers from 0 to 65535"),
        (Histogram, {"codes": [0.5], "counts": [1]}, r"codes\[0\] must be a whole number, not 0.5"),
        (Snapshot, {"layers": []}, "it lacks 'step'"),
    ],
)
def test_what_is_of_another_type_is_refused(kind: Any, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode(kind, value)


def test_a_file_is_only_cut_where_an_event_ends(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    ends = [0]
    for step in range(4):
        position = writer.position()
        assert position is not None
        ends.append(position.size)
        writer.scalars({"a": 1.0}, step)
    writer.close()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    ends.append(len(whole))
    for size in range(-1, ends[-1] + 5):
        path.write_bytes(whole)
        boundary = size in ends
        assert cut(path, size) is boundary
        assert path.stat().st_size == (size if boundary else len(whole))
    assert not cut(tmp_path / "nothing", 0)
    path.write_bytes(b"\0" * 100)
    assert not cut(path, 16)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def enter() -> None:
        with StopSignals() as signals:
            seen.append((signals.number, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


# --- fuzz -----------------------------------------------------------------------------------------------------------


def test_mutated_files_do_no_harm(tmp_path: Path) -> None:
    found = fuzz.fuzz(6 * len(fuzz.TRIALS), 0, tmp_path)
    assert found.total() == 6 * len(fuzz.TRIALS)
    assert found["code_in_a_pickle", "refused"] == 6


def test_the_fuzz_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(sealed: bytes) -> Any:
        return torch.load(io.BytesIO(sealed[:-32]), weights_only=False)

    def forge() -> None:
        for number in range(10):
            fuzz.outcome("code_in_a_pickle", fuzz.Trial(tmp_path / f"{number}", Random(number)), whole)

    def wait() -> None:
        with fuzz.patience():
            signal.raise_signal(signal.SIGALRM)

    whole = fuzz.originals(tmp_path)
    monkeypatch.setattr(checkpoint_file, "unpack", careless)
    with pytest.raises(AssertionError, match="code from a file was run"):
        forge()
    with pytest.raises(TimeoutError):
        wait()
