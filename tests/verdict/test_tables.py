"""The tables of layers."""

from vgrad_torch.verdict.tables import layer_table


def test_names_that_would_be_cut_to_the_same_are_told_apart() -> None:
    names = [f"decoder.layers.0.{kind}_attn.in_proj_weight" for kind in ("self", "multihead")]
    head = ("layer", "size", "gradient", "weight gain", "activation gain", "update ratio", "state")
    lines = [*layer_table(head, [(name, "6x18", *["0.123"] * 4, "healthy") for name in names]).lines()]
    assert len({line.split()[0] for line in lines[-2:]}) == 2
    assert max(map(len, lines)) <= 80
