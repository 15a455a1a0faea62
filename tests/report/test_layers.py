"""The layers of a report as HTML: a table of few; of many, blocks that open and a box that filters them."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from tests.support import browser
from vgrad_torch.report.layers import STYLE, layer_list, permission, script
from vgrad_torch.report.report import Row

INSIDE = ("attn", "Mlp")
NAMES = ["stem", *(f"net.h.{i}.{name}" for i in range(20) for name in INSIDE), "net.head"]
EVIL = '"><script>alert(1)</script>'


def rows_of(names: list[str], states: dict[str, str] | None = None) -> list[Row]:
    """A row for each layer; the n-th has the gradient n / 100."""
    return [
        Row(name, "4x4", 0.5, number / 100, 0, None, None, 1e-3, (states or {}).get(name, "healthy"))
        for number, name in enumerate(names, start=1)
    ]


class Page(HTMLParser):
    """What a browser makes of the list: its elements, and the text of each row by the block that it is in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: list[tuple[bool, list[list[str]]]] = []  # whether it is open, and its rows, the summary first
        self.alone: list[list[str]] = []
        self._inside = False
        self.feed(text.partition("<script>")[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append((tag, given))
        if tag == "details":
            self.blocks.append(("open" in given, []))
            self._inside = True
        if given.get("role") == "row":
            (self.blocks[-1][1] if self._inside else self.alone).append([])

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "details"

    def handle_data(self, data: str) -> None:
        rows = self.blocks[-1][1] if self._inside else self.alone
        if rows:
            rows[-1].append(data)


def page(names: list[str], states: dict[str, str] | None = None) -> Page:
    return Page(layer_list(rows_of(names, states), lambda: "the table"))


def test_few_layers_are_the_table_and_need_no_script() -> None:
    rows = rows_of(NAMES[:30])
    assert layer_list(rows, lambda: "the table") == "the table"
    assert (script(rows), permission(script(rows))) == ("", "")


def test_many_layers_are_blocks_with_the_smallest_numbers_and_the_worst_state() -> None:
    found = page(NAMES, {"net.h.3.Mlp": "weak", "net.h.5.attn": "unused"})
    assert [row[0] for row in found.alone] == ["layer", "stem", "head"]
    assert [rows[0][0] for _, rows in found.blocks] == [f"h.{i}" for i in range(20)]
    assert all([row[0] for row in rows[1:]] == [*INSIDE] for _, rows in found.blocks)
    assert [number for number, (is_open, _) in enumerate(found.blocks) if is_open] == [3]  # an alarm
    _, (summary, attn, mlp) = found.blocks[3]
    assert (summary[1], summary[-1], attn[-1], mlp[-1]) == ("2 layers", "weak", "healthy", "weak")
    assert "0.08" in summary
    assert "0.08" in attn
    assert "0.09" in mlp
    names = [given["data-name"] for _, given in found.elements if "data-name" in given]
    assert names == NAMES


def test_a_box_filters_the_layers_and_only_its_script_may_run() -> None:
    rows = rows_of(NAMES)
    text = layer_list(rows, lambda: "the table")
    assert "is left out at the beginning of all names but stem." in text
    elements = page(NAMES).elements
    assert ("label", {"for": "filter"}) in elements
    assert [given["type"] for tag, given in elements if tag == "input" and given["id"] == "filter"] == ["search"]
    (inside,) = re.findall(r"<script>(.*)</script>", text, re.DOTALL)
    assert inside == script(rows)
    assert "of 42 layers" in inside
    digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
    assert permission(inside) == f"; script-src 'sha256-{digest}'"


def test_without_blocks_many_layers_are_rows_with_a_filter() -> None:
    found = page([f"layer_{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(31)])
    assert not found.blocks
    assert len(found.alone) == 32
    assert any(given.get("id") == "filter" for _, given in found.elements)


def test_hostile_names_are_text() -> None:
    strange = [EVIL, "&lt;b&gt;", "\u202etfel", "a\x07\n", "n" * 5000]
    names = [*strange, *(f"{EVIL}{i}.{name}" for i in range(10) for name in ("a", "b", "c"))]
    found = page(names, {EVIL: "<b>bold</b>"})
    assert {tag for tag, _ in found.elements} == {"p", "label", "input", "span", "div", "details", "summary"}
    assert [given["data-name"] for _, given in found.elements if "data-name" in given] == names
    assert [row[0] for row in found.alone[1:]] == strange
    assert found.alone[1][-1] == "<b>bold</b>"
    assert [rows[0][0] for _, rows in found.blocks] == [f"{EVIL}{i}" for i in range(10)]


@pytest.mark.browser
def test_the_filter_in_a_browser(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    text = layer_list(rows_of(NAMES), lambda: "")
    file.write_text(f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{text}")
    with browser.chromium(tmp_path / "profile") as chrome:
        chrome.get(file.as_uri())
        shown = browser.Page(chrome, "", tmp_path)
        box = chrome.find_element(By.ID, "filter")

        def names() -> list[str]:
            found: list[str] = shown.ask(
                "return all('.layers .name').filter(name => name.checkVisibility()).map(text).slice(1)"
            )
            return found

        closed = ["stem", *(f"h.{i}" for i in range(20)), "head"]
        assert names() == closed
        chrome.find_element(By.CSS_SELECTOR, "summary").click()
        opened = ["stem", "h.0", *INSIDE, *closed[2:]]
        assert names() == opened
        every = [name for i in range(20) for name in (f"h.{i}", "Mlp")]
        for typed, found, number in (
            ("MLP", every, 20), ("h.7.m", ["h.7", "Mlp"], 1), ("h.*", [], 0), ("<b>", [], 0), ("  ", opened, None),
        ):  # fmt: skip
            box.clear()
            box.send_keys(typed)
            assert names() == found, typed
            assert shown.ask("return texts('#found')") == ["" if number is None else f"{number} of 42 layers"]
