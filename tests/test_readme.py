"""The README's example runs as it is printed, and prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from tests import ROOT

NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?")
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_prints_what_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = re.findall(r"```(?:python|text)\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README.md", "exec"), {})
    assert len(output.getvalue().split()) == len(printed.split()) > 100
    for ours, shown in zip(output.getvalue().split(), printed.split(), strict=True):
        assert NUMBER.sub("#", ours) == NUMBER.sub("#", shown)
        for mine, theirs in zip(NUMBER.findall(ours), NUMBER.findall(shown), strict=True):
            assert float(mine) == pytest.approx(float(theirs), rel=0.06)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150
