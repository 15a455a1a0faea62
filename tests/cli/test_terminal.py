"""The live picture, on terminals of any size."""

import io

import pytest
from rich.console import Console

from vgrad_torch.cli.terminal import gradient_bars
from vgrad_torch.records import LayerSnapshot, Snapshot, Stats


def stats(rms: float) -> Stats:
    return Stats(4, 0, 0, 0.0, rms, -rms, rms)


def picture(rms: list[float], width: int = 80, height: int = 24, encoding: str = "utf-8") -> list[str]:
    layers = tuple(
        LayerSnapshot(i, f"fc{i}", "Linear", "2x2", weight_gradient=stats(r)) for i, r in enumerate(rms, start=1)
    )
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=out, width=width, height=height, color_system=None)
    console.print(gradient_bars(Snapshot(0, layers), console))
    out.seek(0)
    return [line.rstrip() for line in out.read().splitlines()]


def test_four_cells_are_a_decade() -> None:
    lines = picture([1.0, 1e-1, 1e-5, 1e-10, 1e-30, 0.0])
    assert [line.count("█") for line in lines[:-1]] == [40, 36, 20, 1, 1, 0]
    assert lines[0].endswith("1.0e+00")
    assert lines[-1].split() == ["1e-10", "1", "RMS"]


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_bars_shrink_with_the_terminal_and_stay_in_proportion(width: int) -> None:
    lines = picture([1.0, 1e-5], width=width)
    assert all(len(line) <= width for line in lines)
    assert lines[1].count("█") == pytest.approx(lines[0].count("█") / 2, abs=1)
    assert lines[0].endswith("1.0e+00")


def test_too_many_layers_show_the_first_and_the_last() -> None:
    lines = picture([1e-3] * 100, height=24)
    assert len(lines) <= 20
    assert lines[0].startswith("  fc1 ")
    assert lines[-2].startswith("fc100")


def test_without_unicode_the_bars_are_ascii() -> None:
    lines = picture([1e-5], encoding="ascii")
    assert "####" in lines[0]
    assert lines[0].isascii()
