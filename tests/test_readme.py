"""The README's example runs as it is printed, and prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example_runs_and_prints_what_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = re.findall(r"```(?:python|text)\n(.*?)```", README, re.DOTALL)[:2]
    monkeypatch.chdir(tmp_path)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README.md", "exec"), {})
    names = [line.split()[0] for line in output.getvalue().splitlines()]
    assert names == [line.split()[0] for line in printed.splitlines()]
    for ours, shown in zip(output.getvalue().splitlines(), printed.splitlines(), strict=True):
        for a, b in zip(ours.split()[1:], shown.split()[1:], strict=True):
            assert float(a) == pytest.approx(float(b), rel=0.06)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150
