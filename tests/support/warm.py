"""Python processes that start in a tenth of a second: forked from one that has imported torch and the package.

A new process takes seconds to import them. Each command is also started as a user would, by at least one test.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import socket
import sys
import tempfile
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests import ROOT

VGRAD = "vgrad_torch"
"""The program of `python -m vgrad_torch`."""

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.support.imports"])


class WarmProcess:
    """`python -m module arguments`, or a script; it has the methods of `subprocess.Popen` that tests need.

    `strict` is `-W error`; `new_session` makes it the leader of a process group.
    """

    def __init__(
        self,
        program: str | Path,
        arguments: Sequence[str],
        environment: Mapping[str, str] = os.environ,
        *,
        strict: bool = False,
        new_session: bool = False,
    ) -> None:
        self._folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, self._folder)
        how = (program, list(arguments), dict(environment), self._paths, strict, new_session)
        self._process = _SERVER.Process(target=_run, args=how)
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(ROOT)  # for the server, which starts with the first process
        try:
            self._process.start()
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before

    @property
    def _paths(self) -> list[str]:
        return [os.path.join(self._folder, name) for name in ("stdout", "stderr")]

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it has ended; what it wrote to stdout and stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"{self._read()} after {timeout} s")
        return self._read()

    def _read(self) -> tuple[str, str]:
        out, err = (Path(path).read_text(encoding="utf-8") if Path(path).exists() else "" for path in self._paths)
        return out, err


def _run(
    program: str | Path, arguments: list[str], environment: dict[str, str], paths: list[str], strict: bool, lead: bool
) -> None:
    """What the new process does."""
    if "vgrad_torch.training" not in sys.modules:
        raise AssertionError("the process is not warm")
    if lead:
        os.setsid()
    for number, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    if strict:
        warnings.simplefilter("error")
    sys.argv = [str(program), *arguments]
    if isinstance(program, Path):
        runpy.run_path(str(program), run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


# --- ranks -----------------------------------------------------------------------------------------------------------


def started_ranks(count: int, program: str | Path, *arguments: str) -> list[WarmProcess]:
    """The processes that torchrun would start, without torchrun around them."""
    place = {
        "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
    }  # fmt: skip
    return [
        WarmProcess(program, arguments, {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]


def run_ranks(count: int, program: Path, *arguments: str) -> None:
    """Start the ranks and wait for them; each must end with exit code 0."""
    processes = started_ranks(count, program, *arguments)
    said = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, said


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])
