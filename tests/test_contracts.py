"""Promises about the package itself: which way imports run, and what importing it pulls in."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vgrad_torch"

LEVELS = [
    {"checksum", "choices", "launch", "untouched", "words", "files", "plain", "signals"},
    {"shards", "truncation", "seals"},
    {"records", "stats", "schedule", "initializers", "activations", "hooks", "data", "plugin", "plugin.metadata"},
    {"moments"},
    {"propagation", "criticality"},
    {"theory"},
    {"mlp", "writer", "sample", "team", "units", "entry", "distributed", "waterfall", "cutoffs", "plugin.flow"},
    {"evidence", "one_pass", "plain_mlp", "plugin.reader", "events", "figures.style"},
    {"verdicts", "plugin.routes", "runlog", "figures.data", "figures.maps", "figures.steps"},
    {"advice", "plugin.loader", "figures.depth"},
    {"diagnosis", "figures.distributions"},
    {"monitor", "checkup", "mends", "figures"},
    {"whatif", "report"},
    {"evaluation", "recipes", "comparison"},
    {"checkpoints"},
    {"training", "page"},
    {"terminal", "cells"},
    {"summary"},
    {"heatmap"},
    {"sweep"},
    {"displays"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
ALLOWED_ACROSS = {("stats", "records")}  # a reduction becomes a record
VERDICT = (".waterfall", ".evidence", ".cutoffs", ".verdicts", ".advice", ".diagnosis")
PLUGIN = (".plugin.metadata", ".plugin.routes", ".plugin.loader")
PLAIN = [
    f"vgrad_torch{name}"
    for name in (
        "",
        ".records",
        *VERDICT,
        ".schedule",
        ".choices",
        ".words",
        ".launch",
        ".theory",
        ".runlog",
        ".comparison",
        ".commands",
        ".cli",
        *PLUGIN,
    )
]


def modules() -> dict[str, Path]:
    found = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in found.items() if name != "__init__"}


def imported(path: Path) -> set[str]:
    """Package modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vgrad_torch":
            inside = (node.module or "").removeprefix("vgrad_torch").lstrip(".")
            known = modules()
            for alias in node.names:
                full = f"{inside}.{alias.name}".lstrip(".")
                names.add(full if full in known else inside)
    return names - {""}


def level(name: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if name in names)


def test_every_module_has_its_level() -> None:
    assert set(modules()) == set().union(*LEVELS)


@pytest.mark.parametrize("name", sorted(set().union(*LEVELS)))
def test_imports_only_run_downwards(name: str) -> None:
    for other in imported(modules()[name]):
        assert level(other) < level(name) or (name, other) in ALLOWED_ACROSS, f"{name} imports {other}"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(m for m in sys.modules if '.' not in m))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", PLAIN)
def test_the_plain_half_imports_neither_torch_nor_matplotlib(module: str) -> None:
    assert not loaded_after(f"import {module}") & {"torch", "matplotlib", "sklearn", "rich"}


def test_that_check_can_fail() -> None:
    assert "torch" in loaded_after("import vgrad_torch.stats")


def test_help_does_not_load_torch() -> None:
    statement = "import vgrad_torch.cli\ntry: vgrad_torch.cli.main(['train', '--help'])\nexcept SystemExit: pass\n"
    code = f"import sys; {statement}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_public_names_are_there() -> None:
    import vgrad_torch

    for name in vgrad_torch.__all__:
        assert getattr(vgrad_torch, name).__doc__
    assert set(vgrad_torch.__all__) <= set(dir(vgrad_torch))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vgrad_torch.nonsense  # noqa: B018
