"""The README's example, its output and its commands are what a reader gets."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from vgrad_torch.cli import commands, main

NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?")
README = (ROOT / "README.md").read_text()
BLOCKS = [line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
INLINE = [command for command in re.findall(r"`((?:make|vgrad) [^`]*)`", README) if "..." not in command]


def test_the_example_runs_and_prints_what_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README.md", "exec"), {})
    assert len(output.getvalue().split()) == len(printed.split()) > 100
    for ours, shown in zip(output.getvalue().split(), printed.split(), strict=True):
        assert NUMBER.sub("#", ours) == NUMBER.sub("#", shown)
        for mine, theirs in zip(NUMBER.findall(ours), NUMBER.findall(shown), strict=True):
            assert float(mine) == pytest.approx(float(theirs), rel=0.06)


def test_the_commands_in_blocks_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = [shlex.split(line) for line in BLOCKS if line.startswith("vgrad ")]
    assert len(typed) >= 5
    for _, *arguments in typed:
        assert main(arguments) == 0, arguments


@pytest.mark.parametrize("command", dict.fromkeys([*BLOCKS, *INLINE]))
def test_every_command_is_known(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = shlex.split(command)
    typed = arguments if program == "vgrad" else given_by_make(arguments, tmp_path)
    for name in ("train", "sweep", "preflight", "predict", "report", "board"):
        monkeypatch.setattr(commands, name, lambda options: 0)
    assert typed is None or main(typed) == 0


def given_by_make(arguments: list[str], folder: Path) -> list[str] | None:
    """The arguments that make gives to vgrad; None if the target starts another program."""
    record = f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv[1:], open({str(folder / 'given')!r}, 'w'))\n"
    for name in ("vgrad", "torchrun"):
        (folder / name).write_text(record)
        (folder / name).chmod(0o755)
    old = [option for name in ("installed", "installed-dev") for option in ("-o", f".venv/{name}")]
    started = ["train", "sweep", "preflight", "board"]
    dry = [] if {*arguments} & {*started} else ["-n"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *old, *dry, f"BIN={folder}", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment, timeout=60)
    if dry:
        return None
    given: list[str] = json.loads((folder / "given").read_text())
    return given[given.index("vgrad_torch") + 1 :] if "vgrad_torch" in given else given


def test_the_first_command_trains_a_network(tmp_path: Path) -> None:
    first = shlex.split(BLOCKS[0])
    (tmp_path / "vgrad").write_text(f'#!/bin/sh\nexec {sys.executable} -m vgrad_torch "$@"\n')
    (tmp_path / "vgrad").chmod(0o755)
    command = [*first, "-o", ".venv/installed", f"BIN={tmp_path}", f"RUNS={tmp_path / 'runs'}"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    assert "vanishing" in done.stdout.lower()
    assert list((tmp_path / "runs").glob("*/*tfevents*"))


def test_pictures_are_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert len(pictures) == 2
    for picture in pictures:
        assert (ROOT / picture).stat().st_size > 1000


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_no_paragraph_is_longer_than_five_lines() -> None:
    prose = re.sub(r"```.*?```|^#.*$", "", README, flags=re.DOTALL | re.MULTILINE)
    for paragraph in prose.split("\n\n"):
        lines = paragraph.strip().splitlines()
        assert len(lines) <= 5 or lines[0].startswith("|"), lines[0]
