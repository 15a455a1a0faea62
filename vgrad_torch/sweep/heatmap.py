"""A sweep as a picture: activation by weights, one map for accuracy and one for the first layer's gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vgrad_torch.sweep.summary import Row, name_of, varying

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS: Mapping[str, tuple[str, float, float, str]] = {
    "accuracy": ("accuracy of the validation part, after training", 0.0, 1.0, ".2f"),
    "gradient_start": ("log10 RMS of the first layer's weight gradient, before training", -8.0, 0.0, ".1f"),
}
"""Field of a row -> title, ends of the colours, format."""


def figure(table: Sequence[Row]) -> Figure:
    """Two maps; a pair below the other for each combination of what else the sweep varied.

    A field says the median over the seeds and, smaller, the least and the largest value; how many seeds failed, if any.
    """
    from matplotlib.figure import Figure

    others = [axis for axis in varying(table) if axis not in ("act", "init")]
    parts: dict[tuple[Any, ...], list[Row]] = {}
    for row in table:
        parts.setdefault(tuple(row.axes[axis] for axis in others), []).append(row)
    acts, inits = (list(dict.fromkeys(row.axes[axis] for row in table)) for axis in ("act", "init"))
    size = (2 * (1.3 + 1.15 * max(len(inits), 3)), len(parts) * (1.3 + 0.62 * max(len(acts), 2)))
    chart = Figure(figsize=size, layout="constrained")
    for line, (values, part) in zip(chart.subplots(len(parts), 2, squeeze=False), parts.items(), strict=True):
        words = ", ".join(f"{axis} {name_of(value)}" for axis, value in zip(others, values, strict=True))
        for axes, field in zip(line, _PANELS, strict=True):
            _map(axes, part, field, acts, inits)
            axes.set_title("\n".join(filter(None, [_PANELS[field][0], words])), fontsize=9)
    return chart


def _map(axes: Axes, part: Sequence[Row], field: str, acts: Sequence[str], inits: Sequence[str]) -> None:
    _, low, high, form = _PANELS[field]
    values = [[math.nan] * len(inits) for _ in acts]
    for row in part:
        y, x = acts.index(row.axes["act"]), inits.index(row.axes["init"])
        values[y][x] = max(getattr(row, field).median, low - 1) if row.failed < row.seeds else math.nan
        share = (values[y][x] - low) / (high - low)
        _write(axes, x, y, row, field, form, "black" if not share < 0.5 else "white")
    axes.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    axes.set_facecolor("0.9")
    axes.hlines([y - 0.5 for y in range(1, len(acts))], -0.5, len(inits) - 0.5, color="white", linewidth=2)
    axes.vlines([x - 0.5 for x in range(1, len(inits))], -0.5, len(acts) - 0.5, color="white", linewidth=2)
    axes.set_xticks(range(len(inits)), inits)
    axes.set_yticks(range(len(acts)), acts)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)


def _write(axes: Axes, x: int, y: int, row: Row, field: str, form: str, color: str) -> None:
    spread = getattr(row, field)
    failed = f"{row.failed} of {row.seeds} failed" if row.failed else ""
    if math.isnan(spread.median):
        axes.text(x, y, failed, ha="center", va="center", fontsize=7, color="black")
        return
    axes.text(x, y - 0.08, f"{spread.median:{form}}", ha="center", va="center", fontsize=11, color=color)
    lines = [f"{spread.least:{form}} to {spread.largest:{form}}"] if row.seeds - row.failed > 1 else []
    axes.text(
        x, y + 0.27, "\n".join([*lines, *filter(None, [failed])]), ha="center", va="center", fontsize=7, color=color
    )
