"""Promises about the package itself: which way imports run, and what importing it pulls in."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "vgrad_torch"

FLOORS = [
    {"records", "errors", "files"},
    {"models", "theory", "distributed", "verdict"},
    {"tensorboard"},
    {"watching"},
    {"trials"},
    {"training"},
    {"sweep", "report"},
    {"cli"},
    {"__main__"},
]
"""The rooms of the package, lowest first. A room may import only what lies on floors below its own."""
PLAIN = ["records", "errors", "files", "verdict", "verdict.diagnosis", "distributed.launch", "theory"]
PLAIN += ["theory.prediction", "tensorboard", "tensorboard.tags", "tensorboard.runlog", "tensorboard.plugin.routes"]
PLAIN += ["tensorboard.plugin.loader", "report", "report.comparison", "cli", "cli.commands"]
"""Modules that import neither torch nor matplotlib."""


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


def room(module: str) -> str:
    return module.split(".")[0]


def floor(module: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_every_room_has_its_floor() -> None:
    assert set(map(room, modules())) == set().union(*FLOORS)


@pytest.mark.parametrize("name", sorted(modules()))
def test_rooms_import_only_what_lies_below(name: str) -> None:
    for other in imported(modules()[name]):
        assert room(other) == room(name) or floor(other) < floor(name), f"{name} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    ahead = {name: imported(path) - {name} for name, path in modules().items()}
    list(TopologicalSorter(ahead).static_order())  # raises CycleError


def test_no_room_hides_a_public_function() -> None:
    import vgrad_torch

    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()} | {path.stem for path in PACKAGE.glob("*.py")}
    assert not rooms & {*vgrad_torch.__all__, "rehearse", "read", "flat", "figure"}


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(m for m in sys.modules if '.' not in m))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", PLAIN)
def test_the_plain_half_imports_neither_torch_nor_matplotlib(module: str) -> None:
    assert not loaded_after(f"import vgrad_torch.{module}") & {"torch", "matplotlib", "sklearn", "rich"}


def test_that_check_can_fail() -> None:
    assert "torch" in loaded_after("import vgrad_torch.watching.statistics")


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


PRIVATE = {
    "_C", "_base", "_is_view", "_sequence_nr", "_getframe", "_get_fsdp_state", "_fsdp_param_group", "_unsharded_param",
    "_join_config",
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_optimizer_step_pre_hooks", "_parameters", "_buffers",
}  # fmt: skip
"""Attributes that torch, or CPython, does not promise."""


def private_uses(source: str) -> list[str]:
    """Private attributes that a module reads from others: those of PRIVATE, and `torch._anything`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            of_torch = (
                isinstance(node.value, ast.Name)
                and node.value.id == "torch"
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
            )
            of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
            if of_torch or (node.attr in PRIVATE and not of_self):
                found.append(f"line {node.lineno}: {node.attr}")
    return found


@pytest.mark.parametrize("name", sorted(set(modules()) - {"watching.autograd"}))
def test_only_one_module_uses_private_functions_of_torch(name: str) -> None:
    assert private_uses(modules()[name].read_text()) == []


def test_private_functions_are_noticed() -> None:
    found = private_uses("import torch\ntorch._C._current_graph_task_id()\nx._base")
    assert sorted(found) == ["line 2: _C", "line 3: _base"]
    assert private_uses(modules()["watching.autograd"].read_text())


def test_modules_and_functions_are_short() -> None:
    for name, path in modules().items():
        source = path.read_text()
        assert len(source.splitlines()) <= 300, name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                assert node.end_lineno - node.lineno < 60, f"{name}.{node.name}"


def test_the_package_has_few_rooms() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 18, sorted(entries)
