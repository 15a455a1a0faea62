"""`vgrad train` under torchrun, as a user starts it: two processes, two hosts, and what ends them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tests import ROOT
from tests.support.warm import VGRAD, WarmProcess, started_ranks
from vgrad_torch.cli.parser import main
from vgrad_torch.tensorboard import tags

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TRAIN = ["-m", "--", "vgrad_torch", "train", "--act", "sigmoid"]


def logged(runs: Path) -> dict[str, Any]:
    """Tag -> the tensors or scalars of all steps, of the one run in a folder."""
    (folder,) = runs.iterdir()
    log = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    tensors = {tag: [make_ndarray(e.tensor_proto) for e in log.Tensors(tag)] for tag in log.Tags()["tensors"]}
    return tensors | {tag: [e.value for e in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("alone")
    assert main(["train", "--act", "sigmoid", "--epochs", "2", "--runs", str(runs)]) == 0
    return logged(runs)


def assert_same_log(runs: Path, alone: dict[str, Any]) -> None:
    """The log of two processes is that of one, and has a line for each rank in the first layer."""
    found = logged(runs)
    assert set(found) - set(alone) == {f"output_gradient_log10_rms_rank/1-fc1-64x512-rank{rank}" for rank in (0, 1)}
    sizes = [column for column, name in enumerate(tags.COLUMNS) if not name.endswith("_mean")]  # some are rounding
    for tag in (tags.LOSS_TRAIN, tags.LOSS_VALIDATION, tags.PLUGIN_NAME):
        assert len(found[tag]) == len(alone[tag]) > 1
        one, other = (np.array(values[tag]) for values in (found, alone))
        if tag == tags.PLUGIN_NAME:
            one, other = one[..., sizes], other[..., sizes]
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_two_processes_train_as_one_and_end_alike(alone: dict[str, Any], tmp_path: Path) -> None:
    """Torchrun looks at them so rarely that both have usually ended by themselves; if not, it ends one with SIGTERM."""
    torchrun = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--monitor-interval", "3"]
    options = ["--monitor", "fc1.weight_gr", "--fail-on", "vanishing", "--epochs", "2", "--runs", str(tmp_path)]
    done = subprocess.run([*torchrun, *TRAIN, *options], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert len(re.findall(r"^run ", done.stdout, re.M)) == 1
    assert len(re.findall(r"^step +\d+  fc1\.weight_gradient", done.stdout, re.M)) == 2
    assert "Next:" in done.stdout
    assert_same_log(tmp_path, alone)
    assert done.returncode == 1
    codes = re.findall(r"exitcode +: (-?\d+)", done.stderr)
    assert "3" in codes
    assert set(codes) <= {"3", f"{-signal.SIGTERM}"}
    assert "Warning" not in done.stderr


def test_make_starts_as_many_processes_as_asked() -> None:
    makefile = ROOT / "Makefile"
    command = ["make", "-n", "-f", str(makefile), "train", "ACT=relu"]
    shown = [
        subprocess.run([*command, *given], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        for given in ([], ["NPROC=4"])
    ]
    assert ["torchrun" in line for line in shown] == [False, True]
    assert re.search(
        r'torchrun --standalone "--nproc-per-node=\$VGRAD_NPROC" -m -- vgrad_torch train .*--act', shown[1]
    )


# --- each process by itself, without torchrun around them -----------------------------------------------------------


@pytest.fixture
def started() -> Iterator[Any]:
    """Starts two processes as torchrun would, and ends them with the test."""
    with ExitStack() as stack:

        def start(*arguments: str) -> list[WarmProcess]:
            processes = started_ranks(2, VGRAD, *TRAIN[3:], *arguments)
            for process in processes:
                stack.callback(process.kill)
            return processes

        yield start


def ends(processes: Sequence[subprocess.Popen[str] | WarmProcess]) -> list[tuple[int | None, str, str]]:
    """Exit code, output and complaints of each."""
    said = [process.communicate(timeout=60) for process in processes]
    return [(p.returncode, *words) for p, words in zip(processes, said, strict=True)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "1", "--runs", __file__], f"cannot make the folder {__file__}/digits-sigmoid-uniform-s0: Not a"),
        (["--momentum", "fast"], "invalid float value: 'fast'; see"),
    ],
)
def test_a_refusal_is_one_sentence_and_exit_code_2_of_each(arguments: list[str], words: str, started: Any) -> None:
    first, second = ends(started(*arguments))
    assert words in first[2]
    assert first[:2] == (2, ""), first[2]
    assert (first[2][:7], first[2].count("\n")) == ("vgrad: ", 1)
    assert second == (2, "", "")


def until(process: subprocess.Popen[str], words: str) -> None:
    """Read what a process prints until it says something."""
    assert process.stdout is not None
    assert any(words in line for line in process.stdout)


# --- torchrun and its end -------------------------------------------------------------------------------------------


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_torchrun_names_a_killed_process_and_leaves_none(tmp_path: Path) -> None:
    """It looks so seldom that the other one, too, has time to say what it noticed."""
    torchrun = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--monitor-interval", "3"]
    command = [*torchrun, *TRAIN, "--epochs", "1000", "--runs", str(tmp_path)]
    with (
        subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as launcher,
        ExitStack() as stack,
    ):
        stack.callback(launcher.terminate)
        until(launcher, "epoch    1/1000")
        workers = children(launcher.pid)
        ranks = [Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in workers]
        (victim,) = (pid for pid, place in zip(workers, ranks, strict=True) if b"RANK=1" in place)
        started = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        _, error = launcher.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert launcher.returncode == 1
    assert re.search(r"rank +: 1 \(local_rank: 1\)\n +exitcode +: -9 (.*\n)*.*SIGKILL", error)
    assert re.findall(
        r"^vgrad: (rank 0 of 2 lost the connection to the others, [^;]+); torchrun reports which process", error, re.M
    )
    assert "[rank0]: Traceback" not in error
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


# --- two hosts ------------------------------------------------------------------------------------------------------


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them; .1 and .2 are their addresses."""
    both = [f"vgrad{os.getpid()}{end}" for end in "ab"]
    with ExitStack() as stack:
        try:
            for name in both:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            ip("link", "add", "cable", "netns", both[0], "type", "veth", "peer", "name", "cable", "netns", both[1])
            for number, name in enumerate(both, start=1):
                ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
                ip("-n", name, "link", "set", "cable", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces need Linux, iproute2 and root: {error}")
        yield both


def test_two_hosts_train_as_one_process(hosts: list[str], alone: dict[str, Any], tmp_path: Path) -> None:
    """Only the first host can be reached by its address; each would else offer the other its own localhost."""
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.77.0.1", "--master-port", "29500"]
    with ExitStack() as stack:
        launchers = []
        for number, host in enumerate(hosts):
            there = ["ip", "netns", "exec", host, *TORCHRUN, *meet, "--node-rank", str(number)]
            launcher = subprocess.Popen(
                [*there, *TRAIN, "--epochs", "2", "--runs", str(tmp_path / host)],
                env=ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "cable"}, stdout=-1, stderr=-1, text=True,
            )  # fmt: skip
            launchers.append(stack.enter_context(launcher))
            stack.callback(launcher.terminate)
        first, second = ends(launchers)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "Logged in" in first[1]
    assert second[1] == ""
    assert_same_log(tmp_path / hosts[0], alone)
    assert not (tmp_path / hosts[1]).exists()


def test_a_restart_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    options = ["--act", "sigmoid", "--epochs", "12"]
    assert main(["train", *options, "--runs", str(tmp_path / "alone")]) == 0
    torchrun = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.1"]
    command = [*torchrun, "-m", "--", "vgrad_torch", "train", *options, "--runs", str(tmp_path / "killed")]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, env=ENVIRONMENT, **pipes) as process:
        until(process, "epoch  3/12")
        os.kill(children(process.pid)[1], signal.SIGKILL)
        rest, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "epoch 12/12" in rest
    one, other = logged(tmp_path / "killed"), logged(tmp_path / "alone")
    assert len(one[tags.LOSS_TRAIN]) == 13
    np.testing.assert_allclose(one[tags.LOSS_TRAIN], other[tags.LOSS_TRAIN], rtol=1e-5)
    assert len(one[tags.PLUGIN_NAME]) == 12
