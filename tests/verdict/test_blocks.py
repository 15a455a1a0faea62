"""Blocks are found from the names of the layers, whatever these are."""

from __future__ import annotations

import pytest

from vgrad_torch.verdict.blocks import Blocks, blocks, chosen


def groups(found: Blocks) -> list[tuple[str, tuple[str, ...]]]:
    return [(group.name, group.inside) for group in found.groups]


def named(container: str, count: int, *inside: str) -> list[str]:
    return [f"{container}{i}.{name}" for i in range(count) for name in inside]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["fc"],
        [str(i) for i in range(40)],
        [f"fc{i}" for i in range(40)],
        ["cell", *(f"cell#{i}" for i in range(2, 40))],
        ["", ".", "..", "a.", ".a", "#", "#2", "a#b"],
        named("net.", 20, "weight"),
    ],
)
def test_names_without_blocks_stand_alone(names: list[str]) -> None:
    found = blocks(names)
    assert not found.found
    assert [(group.start, group.end) for group in found.groups] == [(i, i + 1) for i in range(len(names))]
    if found.prefix:
        assert [found.prefix + name for name in found.names] == names


def test_blocks_named_by_numbers_alone() -> None:
    assert groups(blocks(named("", 3, "0", "2"))) == [(str(i), ("0", "2")) for i in range(3)]


def test_a_prefix_is_left_out_if_almost_all_names_have_it() -> None:
    found = blocks(["wte", *named("transformer.h.", 20, "q", "k"), "lm_head"])
    assert (found.prefix, found.exceptions) == ("transformer.", ("wte", "lm_head"))
    assert groups(found)[:2] == [("wte", ()), ("h.0", ("q", "k"))]
    assert found.remark() == "'transformer.' is left out at the beginning of all names but wte and lm_head."
    assert blocks(named("h.", 3, "q", "k")).remark() == ""


def test_blocks_whose_name_has_letters_need_three_layers() -> None:
    assert groups(blocks(named("block", 3, "a", "b", "c"))) == [(f"block{i}", ("a", "b", "c")) for i in range(3)]
    assert not blocks(named("block", 3, "a", "b")).found


def test_a_shared_module_that_is_called_twice_is_a_block_for_each_call() -> None:
    once = named("h.", 3, "q", "k")
    names = [*once, *(f"{name}#2" for name in once)]
    found = blocks(names)
    assert groups(found) == [
        *((f"h.{i}", ("q", "k")) for i in range(3)),
        *((f"h.{i}#2", ("q#2", "k#2")) for i in range(3)),
    ]
    assert [names[i] for i in chosen(found, names, "h.1#2")] == ["h.1.q#2", "h.1.k#2"]
    assert [names[i] for i in chosen(found, names, "h.1.q")] == ["h.1.q", "h.1.q#2"]


def test_a_block_that_is_left_and_entered_again_is_two_groups() -> None:
    found = blocks(["h.0.q", "h.0.k", "h.1.q", "h.1.k", "norm", "h.0.q#2", "h.0.k#2"])
    assert [(group.name, group.start, group.end) for group in found.groups] == [
        ("h.0", 0, 2), ("h.1", 2, 4), ("norm", 4, 5), ("h.0#2", 5, 7),
    ]  # fmt: skip


def test_of_nested_blocks_the_innermost_is_taken() -> None:
    names = [f"stages.{i}.blocks.{j}.{name}" for i in range(2) for j in range(2) for name in ("conv", "fc1", "fc2")]
    places = ("stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0", "stages.1.blocks.1")
    found = blocks(names)
    assert [(found.prefix + name, inside) for name, inside in groups(found)] == [
        (place, ("conv", "fc1", "fc2")) for place in places
    ]


def test_what_is_chosen() -> None:
    names = named("net.h.", 31, "attn", "fc")
    found = blocks(names)
    for text, wanted in (
        ("h.3", ["net.h.3.attn", "net.h.3.fc"]), ("net.h.3", ["net.h.3.attn", "net.h.3.fc"]),
        ("h.30.fc", ["net.h.30.fc"]), ("H.30.F", ["net.h.30.fc"]), ("attn", names[::2]), ("h.*", []), ("zz", []),
    ):  # fmt: skip
        assert [names[i] for i in chosen(found, names, text)] == wanted, text
