"""The time map: the gradient at each step of a sequence, over the training, as colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from vgrad_torch.errors import UsageError
from vgrad_torch.records import Snapshot, TimeProfile
from vgrad_torch.report.figures import style
from vgrad_torch.report.figures.maps import colour_legend, column_edges, draw_cells
from vgrad_torch.tensorboard.plugin import time_map as maps
from vgrad_torch.verdict.horizons import MOST

LIMIT = 4.0
"""Powers of ten around 1 beyond which a share has the colour of the scale's end."""

_LINES: dict[str, tuple[float, ...]] = {"a tenth is left": (), "a hundredth is left": (4, 2.5)}
"""Label of a line -> its dashes."""
_TICKS = [0, *(digit * 10**exponent for exponent in range(7) for digit in (1, 2, 5))]


@style.styled
def time_map(runs: Mapping[str, Iterable[Snapshot]], *, height: float = 2.9, width: float = 8.0) -> Figure:
    """The norm of the gradient at each time step of each layer that has a time profile, relative to the last step.

    The last time step is at the bottom; how far back the others are is drawn on a log axis. Lines show where a tenth
    and a hundredth are left. A cell is black where the gradient is exactly zero, red where it holds NaN or infinity. Of
    more than 240 samples, those that share a column are shown as one of them. At most 8 layers of a run are drawn.
    """
    points = {run: _points(history) for run, history in runs.items()}
    found = [
        ([run, label] if len(points) > 1 else [label], maps.time_map(layer))
        for run, layers in points.items()
        for label, layer in list(layers.items())[:MOST]
    ]
    if not found:
        raise UsageError("there is no recurrent layer, no layer in a loop and no embedding of sequences")
    figure, axes = style.panels(len(found), height, width=width, sharex=False)
    values = np.concatenate([drawn.values.ravel() for _, drawn in found]).astype(np.float64)
    scale = _scale(values)
    for axis, (names, drawn) in zip(axes, found, strict=True):
        _draw(axis, drawn, scale)
        axis.set_title(style.plain(", ".join(names), 76 // min(len(axes), 4)))
    _time_axis(axes[0], max(int(drawn.back[-1]) for _, drawn in found))
    figure.supylabel("time steps before the last", fontsize=9)
    bar = figure.colorbar(ScalarMappable(scale, "viridis"), ax=axes, pad=0.015, aspect=7 * figure.get_figheight())
    style.decades(bar.ax.yaxis, scale.vmin or 0, scale.vmax or 1)
    bar.set_label("gradient / that at the last step")
    bar.outline.set_visible(False)
    handles = [_style(Line2D([], [], label=label), dashes) for label, dashes in _LINES.items()]
    colour_legend(figure, values, "shorter sequence", handles)
    return figure


def _points(history: Iterable[Snapshot]) -> dict[str, list[tuple[int, TimeProfile]]]:
    """The (step, profile) of each layer that has one."""
    found: dict[str, list[tuple[int, TimeProfile]]] = {}
    for snapshot in history:
        for layer in snapshot.layers:
            if layer.time:
                found.setdefault(layer.label, []).append((snapshot.step, layer.time))
    return found


def _scale(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Normalize:
    """The scale for log10 of the shares, with 1 inside and whole decades at its ends."""
    logs = np.log10(values[(values > 0) & np.isfinite(values)])
    low, high = (np.floor(logs.min()), np.ceil(logs.max())) if logs.size else (-1.0, 0.0)
    low, high = max(min(low, 0.0), -LIMIT), min(max(high, 0.0), LIMIT)
    return Normalize(float(low), float(high if high > low else low + 1), clip=True)


def _draw(axis: Axes, drawn: maps.TimeMap, scale: Normalize) -> None:
    edges = column_edges(drawn.starts.tolist(), drawn.steps.tolist())
    stride = int(drawn.back[1]) if len(drawn.back) > 1 else 1
    rows = np.log1p([*drawn.back, drawn.back[-1] + stride])
    draw_cells(axis, edges, rows, drawn.values.astype(np.float64), scale)
    axis.set_xlabel("step")
    for dashes, name in zip(_LINES.values(), ("tenth", "hundredth"), strict=True):
        places = np.array([_place(getattr(profile, name)) for profile in drawn.profiles])
        (line,) = axis.plot(np.repeat(edges, 2)[1:-1], np.repeat(places, 2), linewidth=1.4)
        _style(line, dashes)


def _place(horizon: int | None) -> float:
    return float("nan") if horizon is None else float(np.log1p(horizon))


def _style(line: Line2D, dashes: Sequence[float]) -> Line2D:
    """A white line with a dark edge, which can be seen on every colour."""
    line.set(color="white", clip_on=False, path_effects=[withStroke(linewidth=3.0, foreground="black")])
    if dashes:
        line.set_dashes(dashes)
    return line


def _time_axis(axis: Axes, longest: int) -> None:
    """Ticks in the middle of the rows, without those that would touch."""
    free, places, texts = -1.0, [], []
    for back in _TICKS:
        place = (np.log1p(back) + np.log1p(back + 1)) / 2
        if back <= longest and place > free:
            places.append(place)
            texts.append(f"{back:,}" if back else "last")
            free = place + 0.06 * np.log1p(longest)
    axis.set_yticks(places, texts)
    axis.set_ylim(0, np.log1p(longest + 1))
