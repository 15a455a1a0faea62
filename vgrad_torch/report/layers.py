"""The layers of a report as HTML: a table; of many layers, blocks that open, with a box that filters them by name."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from html import escape

from vgrad_torch.report.report import HEAD, Row, cells
from vgrad_torch.verdict.blocks import MANY, Blocks, Group, blocks
from vgrad_torch.verdict.tables import alarming, extremes

STYLE = """
.layers { font-size: 13px; font-variant-numeric: tabular-nums; min-width: 720px; margin-top: 10px; }
.layers [role=row] {
  display: grid; grid-template-columns: minmax(0, 2.4fr) 1.3fr repeat(5, 1fr) 1fr; gap: 10px; padding: 4px 0;
  border-bottom: 1px solid #e4e4e4; text-align: right;
}
.layers [role=row] > * { overflow-wrap: anywhere; min-width: 0; }
.layers .first { font-weight: 600; color: #5f6368; }
.layers .name { padding-left: 18px; position: relative; } .layers details .inside .name { padding-left: 36px; }
.layers summary { list-style: none; cursor: pointer; } .layers summary::-webkit-details-marker { display: none; }
.layers summary .name { font-weight: 600; }
.layers summary .name::before { content: "\\25b8"; position: absolute; left: 2px; }
.layers details[open] > summary .name::before { content: "\\25be"; }
.layers summary:hover { background: #f7f7f7; } .layers .bad { color: #b3261e; }
.filter { display: flex; gap: 10px; align-items: center; font-size: 13px; }
.filter input { font: inherit; padding: 4px 8px; width: 260px; }
[hidden] { display: none !important; }
"""

SCRIPT = """
const box = document.getElementById('filter'), list = document.querySelector('.layers');
const details = [...list.querySelectorAll('details')];
let before = null;
box.addEventListener('input', () => {
  const words = box.value.trim().toLowerCase();
  before = before || new Map(details.map(block => [block, block.open]));
  let found = 0;
  for (const row of list.querySelectorAll('[data-name]')) {
    row.hidden = !row.dataset.name.toLowerCase().includes(words);
    found += !row.hidden;
  }
  for (const block of details) {
    block.hidden = !block.querySelector('[data-name]:not([hidden])');
    block.open = words ? !block.hidden : before.get(block);
  }
  if (!words) before = null;
  document.getElementById('found').textContent = words ? `${found} of FOUND layers` : '';
});
"""


def layer_list(rows: Sequence[Row], table: Callable[[], str]) -> str:
    """The layers; up to `MANY` of them as `table()` makes them."""
    if len(rows) <= MANY:
        return table()
    found = blocks([row.layer for row in rows])
    remark = f'<p class="quiet">{escape(found.remark())}</p>' if found.remark() else ""
    rule = ""
    if found.found:
        rule = (
            '<p class="quiet">A block has the smallest number of each column and the worst state of its layers. Click '
            "to open it.</p>"
        )
    head = _cells("div", HEAD, "columnheader")
    body = "".join(_group(group, found, rows) for group in found.groups)
    box = (
        '<p class="filter"><label for="filter">Layers with</label><input type="search" id="filter" autocomplete="off" '
        'placeholder="part of a name"><span id="found" role="status"></span></p>'
    )
    listed = f'<div class="layers" role="table"><div class="first" role="row">{head}</div>{body}</div>'
    return f'{remark}{rule}{box}<div class="wide">{listed}</div><script>{script(rows)}</script>'


def script(rows: Sequence[Row]) -> str:
    """The script of the box that filters; empty where there is no box."""
    return SCRIPT.replace("FOUND", str(len(rows))) if len(rows) > MANY else ""


def permission(text: str) -> str:
    """What the page's policy says about its script: only this text may run."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"; script-src 'sha256-{digest}'" if text else ""


def _group(group: Group, found: Blocks, rows: Sequence[Row]) -> str:
    members = rows[group.start : group.end]
    if not group.inside:
        return _row(members[0], group.name, "alone")
    states = [row.state for row in members]
    _, _, *rest = extremes(HEAD, [cells(row) for row in members])
    summary = _cells("span", (group.name, f"{len(members)} layers", *rest), "cell")
    inside = "".join(_row(*pair, "inside") for pair in zip(members, group.inside, strict=True))
    is_open = " open" if alarming(states) else ""
    return f'<details{is_open}><summary><span role="row">{summary}</span></summary>{inside}</details>'


def _row(row: Row, name: str, kind: str) -> str:
    shown = _cells("div", (name, *cells(row)[1:]), "cell")
    return f'<div class="{kind}" role="row" data-name="{escape(row.layer)}" title="{escape(row.layer)}">{shown}</div>'


def _cells(element: str, texts: Sequence[str], role: str) -> str:
    return "".join(_cell(element, *pair, role) for pair in zip(HEAD, texts, strict=True))


def _cell(element: str, head: str, text: str, role: str) -> str:
    kinds = [*(["left"] if head in ("layer", "size", "state") else []), *(["name"] if head == "layer" else [])]
    if head == "state" and role == "cell" and alarming([text]):
        kinds.append("bad")
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f'<{element}{kind} role="{role}">{escape(text)}</{element}>'
