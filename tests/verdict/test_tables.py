"""The tables of layers as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
import torch
from torch import nn

import vgrad_torch as vg
from vgrad_torch.errors import UsageError
from vgrad_torch.verdict.tables import LayerTable, layer_table

HEAD = ("layer", "size", "gradient", "weight gain", "activation gain", "update ratio", "state")
INSIDE = ("self_attention.query_projection.base_layer", "self_attention.value_projection", "layer_norm", "mlp.fc1")
LONG = "base_model.model.vision_tower.encoder.layers"
MANY = ["base_model.model.patch_embedding", *(f"{LONG}.{i}.{name}" for i in range(75) for name in INSIDE), "head"]


def table_of(
    names: Iterable[str], states: Mapping[str, str] | None = None, layers: str | None = None, how: str = ""
) -> LayerTable:
    """The table of layers that are healthy, but for the `states`; the n-th has the gradient n / 1000."""
    rows = [
        (name, "1024x1024 3x3", f"{number / 1000:.2g}", *["1.2e-05"] * 3, (states or {}).get(name, "healthy"))
        for number, name in enumerate(names, start=1)
    ]
    return layer_table(HEAD, rows, layers, how)


def rows_of(table: LayerTable) -> list[tuple[str, int, int]]:
    return [(row.name, row.count, row.depth) for row in table.rows]


def test_names_that_would_be_cut_to_the_same_are_told_apart() -> None:
    names = [f"decoder.layers.0.{kind}_attn.in_proj_weight" for kind in ("self", "multihead")]
    lines = [*layer_table(HEAD, [(name, "6x18", *["0.123"] * 4, "healthy") for name in names]).lines()]
    assert len({line.split()[0] for line in lines[-2:]}) == 2
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("states", [{}, {f"{LONG}.7.mlp.fc1": "weak", f"{LONG}.9.layer_norm": "dead"}])
def test_many_layers_with_long_names_are_few_lines(states: Mapping[str, str]) -> None:
    lines = [*table_of(MANY, states).lines()]
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 30


def test_a_block_with_an_alarm_is_opened_and_the_others_are_together() -> None:
    table = table_of(MANY, {f"{LONG}.7.mlp.fc1": "weak"}, how="See {}.")
    assert rows_of(table) == [
        ("base_model.model.patch_embedding", 1, 0), ("layers.0 to layers.6", 28, 0), ("layers.7", 4, 0),
        *((name, 1, 1) for name in INSIDE), ("layers.8 to layers.74", 268, 0), ("head", 1, 0),
    ]  # fmt: skip
    assert [row.cells[-1] for row in table.rows] == [
        "healthy", "healthy", "weak", "healthy", "healthy", "healthy", "weak", "healthy", "healthy",
    ]  # fmt: skip
    assert [row.cells[1] for row in table.rows][:4] == ["0.001", "0.002", "0.03", "0.03"]  # of a block the smallest
    assert table.remarks == (
        "'base_model.model.vision_tower.encoder.' is left out at the beginning of all names but "
        "base_model.model.patch_embedding and head.",
        "A row of several layers has the smallest number of each column and the worst state.",
        "See layers.7.",
    )


@pytest.mark.parametrize("state", ["unused", "frozen"])
def test_a_state_that_is_no_alarm_opens_no_block(state: str) -> None:
    table = table_of(MANY, {f"{LONG}.7.mlp.fc1": state})
    assert [row.name for row in table.rows][1:-1] == ["layers.0 to layers.6", "layers.7", "layers.8 to layers.74"]
    assert table.rows[2].cells[-1] == state


def test_up_to_thirty_layers_are_not_grouped() -> None:
    names = [f"h.{i}.{name}" for i in range(15) for name in ("q", "k")]
    assert [row.name for row in table_of(names).rows] == names
    assert rows_of(table_of([*names, "head"])) == [("h.0 to h.14", 30, 0), ("head", 1, 0)]
    assert len(table_of([*names, "head"], layers="").rows) == 31


def test_an_unknown_block_is_one_sentence() -> None:
    with pytest.raises(UsageError) as error:
        table_of(MANY, layers="layers.99")
    assert str(error.value) == (
        "no layer's name contains 'layers.99'; the blocks are layers.0, layers.1, layers.2, ..."
    )
    with pytest.raises(UsageError) as error:
        table_of(["fc1", "fc2"], layers="h.3")
    assert str(error.value) == "no layer's name contains 'h.3'"


class Residual(nn.Module):
    """Forty small blocks of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(40))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.h:
            x = x + block(x)
        return x


def test_a_diagnosis_lists_one_block() -> None:
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with vg.watch(model, optimizer, every=1, histograms=False) as monitor:
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    diagnosis = monitor.diagnose()
    listed = [line.split()[0] for line in diagnosis.table("h.3").splitlines() if line.startswith("h.")]
    assert listed == ["h.3.0", "h.3.2"]  # not those of h.30
    assert sum(line.startswith("h.") for line in diagnosis.table().splitlines()) == 80
    assert len(str(diagnosis).splitlines()) <= 60
    with pytest.raises(
        UsageError, match=r"^no layer's name contains 'h\.77'; the blocks are h\.0, h\.1, h\.2, \.\.\.$"
    ):
        diagnosis.table("h.77")
