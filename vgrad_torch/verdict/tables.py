"""Tables of text, at most `WIDTH` columns wide. A table of many layers has one row for each block of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from vgrad_torch.errors import UsageError
from vgrad_torch.verdict.blocks import MANY, Blocks, Group, blocks, chosen, shortened

WIDTH = 80
"""Columns of the terminal that tables and paragraphs fill."""

Cells = Sequence[str]

_LEFT_ALIGNED = ("run", "setting", "layer", "size", "state", "change", "verdict")
_WORST_IS_LARGEST = ("dead", "saturated")

_SEVERITY = (
    "non-finite", "no gradient", "dead", "large steps", "zero gradient", "weak", "unused", "frozen", "healthy", "",
)  # fmt: skip
"""States of layers, the worst first."""
_QUIET = _SEVERITY[_SEVERITY.index("unused") :]

_OPENED = 36
"""Largest number of layers that are listed in blocks with an alarm; the other blocks are one row each."""

_SHORT = 16
"""Letters that a name has at least before a column is left out for it."""


def table(head: Cells, rows: Iterable[Cells]) -> Iterator[str]:
    """Lines with aligned columns, words to the left and numbers to the right."""
    cells = [*rows]
    one_line = [*_lines(head, cells, 2, wrapped=False)]
    return iter(one_line if _fits(one_line) else [*_lines(head, cells, 2, wrapped=True)])


def _fits(lines: Iterable[str]) -> bool:
    return max(map(len, lines)) <= WIDTH


def _lines(head: Cells, cells: Sequence[Cells], gap: int, *, wrapped: bool) -> Iterator[str]:
    widths = _widths(head, cells, wrapped=wrapped)
    heads = [textwrap.wrap(name, width) for name, width in zip(head, widths, strict=True)]
    deep = max(map(len, heads))
    above = [[""] * (deep - len(lines)) + lines for lines in heads]
    for row in [*zip(*above, strict=True), *cells]:
        yield (" " * gap).join(map(_aligned, head, row, widths)).rstrip()


def _widths(head: Cells, cells: Sequence[Cells], *, wrapped: bool) -> list[int]:
    columns = zip(head, *cells, strict=True)
    return [max(map(len, [*(name.split() if wrapped else [name]), *column]), default=0) for name, *column in columns]


def _aligned(head: str, cell: str, width: int) -> str:
    return cell.ljust(width) if head in _LEFT_ALIGNED else cell.rjust(width)


def wrapped_lines(sentences: Iterable[str]) -> Iterator[str]:
    """The lines of sentences, each of which begins on a new line."""
    return (line for sentence in sentences for line in textwrap.wrap(sentence, WIDTH))


# --- layers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table of layers: one layer, or `count` of them.

    `name` is the layer's name, or that of a block; `depth` is 1 for a layer that is listed below its block.
    """

    name: str
    count: int
    cells: Cells
    depth: int = 0


@dataclass(frozen=True, slots=True)
class LayerTable:
    """A table of layers as rows, with sentences about what is not shown in it."""

    head: Cells
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The table as text and the sentences, each line at most `WIDTH` wide."""
        yield from _fitted(self.head, self.rows)
        yield from wrapped_lines(self.remarks)

    def cells(self) -> Iterator[Cells]:
        """The cells of each row; the second one of a row of several layers says how many they are."""
        return (_with_size(row) for row in self.rows)


def layer_table(head: Cells, rows: Iterable[Cells], layers: str | None = None, how: str = "") -> LayerTable:
    """A table of layers, whose cells are strings; the first one is the label, the second one the size.

    Args:
        head: the names of the columns, `layer`, `size`, columns of numbers, and `state` if it is known.
        rows: the cells of each layer, in forward order.
        layers: which layers to list: a block, or a part of their names; empty for all. With None, more than `MANY`
            layers are grouped: each block is one row, and blocks with an alarm are opened.
        how: says how to see all layers, with the name of a block in place of `{}`.

    Raises:
        UsageError: no layer has this name.
    """
    cells = [tuple(row) for row in rows]
    labels = [row[0] for row in cells]
    found = blocks(labels)
    if layers is None and len(cells) > MANY and found.found:
        return _grouped(head, cells, found, how)
    places = chosen(found, labels, layers) if layers else [*range(len(cells))]
    if layers and not places:
        known = ", ".join([group.name for group in found.groups if group.inside][:3])
        raise UsageError(f"no layer's name contains {layers!r}" + (f"; the blocks are {known}, ..." if known else ""))
    listed = tuple(Row(labels[i], 1, cells[i][1:]) for i in places)
    if not found.prefix or _fit_uncut(head, listed):
        return LayerTable(head, listed, ())
    short = tuple(Row(found.names[i], 1, cells[i][1:]) for i in places)
    return LayerTable(head, short, tuple(filter(None, [found.remark()])))


def _grouped(head: Cells, cells: Sequence[Cells], found: Blocks, how: str) -> LayerTable:
    words = [row[-1] if head[-1] == "state" else "" for row in cells]
    opened = _opened(found.groups, words)
    rows: list[Row] = []
    for key, run in groupby(found.groups, lambda group: _key(group, opened, words)):
        groups = [*run]
        if not key:
            rows += [Row(group.name, 1, cells[group.start][1:]) for group in groups]
            continue
        first, last = groups[0], groups[-1]
        name = first.name if first is last else f"{first.name} to {last.name}"
        members = cells[first.start : last.end]
        rows.append(Row(name, len(members), extremes(head, members)[1:]))
        if first in opened:
            inside = zip(first.inside, members, strict=True)
            rows += [Row(layer, 1, row[1:], depth=1) for layer, row in inside]
    example = next((row.name for row in rows if row.count > 1 and " to " not in row.name), None)
    block = example or next(group.name for group in found.groups if group.inside)
    largest = " and ".join(name for name in head if name in _WORST_IS_LARGEST)
    smallest = "A row of several layers has the smallest number of each column"
    rule = f"{smallest}{f', the largest of {largest},' if largest else ''} and the worst state."
    return LayerTable(head, tuple(rows), tuple(filter(None, [found.remark(), rule, how.replace("{}", block)])))


def _key(group: Group, opened: Sequence[Group], words: Sequence[str]) -> str:
    """Blocks with the same key are one row: those that are not opened and have the same worst state."""
    if not group.inside:
        return ""
    return f"opened {group.start}" if group in opened else f"closed, {worst(words[group.start : group.end])}"


def _opened(groups: Sequence[Group], words: Sequence[str]) -> list[Group]:
    """The blocks with an alarm, the worst first, up to `_OPENED` layers."""
    ranked = [(severity(worst(words[group.start : group.end])), group) for group in groups if group.inside]
    alarming = [group for rank, group in sorted(ranked, key=lambda item: item[0]) if rank < severity(_QUIET[0])]
    opened: list[Group] = []
    listed = 0
    for group in alarming:
        listed += group.end - group.start
        if listed > _OPENED and opened:
            break
        opened.append(group)
    return opened


def severity(word: str) -> int:
    """The place of a state among all, 0 for the worst."""
    return _SEVERITY.index(word) if word in _SEVERITY else 0


def worst(words: Iterable[str]) -> str:
    """The worst of several states.

    >>> worst(["healthy", "weak", "frozen"])
    'weak'
    """
    return min(words, key=severity)


def alarming(words: Iterable[str]) -> bool:
    """Whether one of the states is an alarm."""
    return worst(words) not in _QUIET


def extremes(head: Cells, rows: Sequence[Cells]) -> tuple[str, ...]:
    """One row for several layers: the smallest number of each column, and the worst state; no name and no size.

    >>> head = ("layer", "size", "gradient", "dead", "state")
    >>> extremes(head, [("a", "2x2", "0.1", "5%", "weak"), ("b", "2x2", "3e-05", "10%", "healthy")])
    ('', '', '3e-05', '10%', 'weak')
    """
    return tuple(_extreme(name, column) for name, column in zip(head, zip(*rows, strict=True), strict=True))


def _extreme(name: str, column: Cells) -> str:
    known = [cell for cell in column if cell]
    if name == "state":
        return worst(column)
    if name in ("layer", "size") or not known:
        return ""
    if "NaN" in known:
        return "NaN"
    pick = max if name in _WORST_IS_LARGEST else min
    return pick(known, key=lambda cell: float(cell.rstrip("%")))


def _with_size(row: Row) -> tuple[str, ...]:
    name = "  " * row.depth + row.name
    return (name, f"{row.count} layers", *row.cells[1:]) if row.count > 1 else (name, *row.cells)


def _without_size(row: Row) -> tuple[str, ...]:
    name = "  " * row.depth + row.name
    return (f"{name} ({row.count})" if row.count > 1 else name, *row.cells[1:])


def _fit_uncut(head: Cells, rows: Sequence[Row]) -> bool:
    """Whether the table has room for all names and columns."""
    return _fits(_lines(head, [_with_size(row) for row in rows], 2, wrapped=True))


def _fitted(head: Cells, rows: Sequence[Row]) -> list[str]:
    """The lines of the table. If they are too wide, the head is wrapped, the size left out, and names are shortened.

    The size is also left out where shortened names would be the same.
    """
    sized = len(head) > 1 and head[1] == "size"
    lines: list[str] = []
    for size, wrapped, gap in ((True, False, 2), (True, True, 2), (False, True, 2), (False, True, 1)):
        if not size and not sized:
            continue
        names = head if size else (head[0], *head[2:])
        cells = [_with_size(row) if size and sized else _without_size(row) for row in rows]
        used = sum(_widths(names, cells, wrapped=wrapped)[1:]) + gap * (len(names) - 1)
        longest = max((len(row[0]) for row in cells), default=0)
        room = max(WIDTH - used, 8)
        cut = [(shortened(row[0], room), *row[1:]) for row in cells]
        lines = [*_lines(names, cut, gap, wrapped=wrapped)]
        unique = len({row[0] for row in cut}) == len({row[0] for row in cells})
        if room >= min(longest, _SHORT) and unique and _fits(lines):
            break
    return lines
