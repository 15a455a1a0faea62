"""The package works without the modules that only Unix has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import ROOT

UNIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog")

PROGRAM = f"""
import importlib, pathlib, sys
sys.modules.update(dict.fromkeys({UNIX_ONLY!r}))  # an import of them raises ImportError
import vgrad_torch
from vgrad_torch.cli import main
root = pathlib.Path(vgrad_torch.__file__).parent
for path in sorted(root.rglob("*.py")):
    name = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert main(["train", "--epochs", "1", "--name", "a", "--runs", sys.argv[1]]) == 0
assert main(["train", "--resume", sys.argv[1] + "/a"]) == 0
from vgrad_torch.sweep import grid
outcomes = grid.run(grid.grid({{"act": ["relu"]}}, seeds=1, runs=sys.argv[1], name="b", epochs=1))
assert [outcome.error for outcome in outcomes] == [None]
"""


def test_without_unix_modules_the_package_is_imported_and_trains(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
