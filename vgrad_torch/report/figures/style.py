"""The style of all figures: colours that the colour-blind can tell apart, axes, legends, labels and file formats."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec

import matplotlib
from matplotlib import colormaps, font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from vgrad_torch.records import Snapshot

RUNS = ("#0072b2", "#d55e00", "#009e73", "#b5478f", "#b98000", "#3c9fd8", "#7a66cf", "#6b6b6b")
"""A colour for each run (after Okabe and Ito), as in the Gradient Flow tab."""
MARKS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
WEIGHT, ACTIVATION = "#0072b2", "#e69f00"
ZERO, NONFINITE, MISSING = "#000000", "#d50032", "#ececec"
"""Colours that are on no scale: exact zeros, NaN or infinity, not measured."""
TEXT, MUTED, GRID = "#212121", "#5f6368", "#e4e4e4"

_RC: Any = {
    "font.family": ["DejaVu Sans"], "font.size": 9.0, "text.color": TEXT, "text.usetex": False,
    "text.parse_math": False,
    "axes.labelsize": 9.0, "axes.titlesize": 10.0, "axes.titleweight": "normal", "axes.titlelocation": "left",
    "axes.labelcolor": TEXT, "axes.edgecolor": MUTED, "axes.linewidth": 0.8, "axes.facecolor": "white",
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": False,
    "grid.color": GRID, "grid.linewidth": 0.8, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": TEXT, "ytick.labelcolor": TEXT, "xtick.labelsize": 8.0, "ytick.labelsize": 8.0,
    "xtick.direction": "out", "ytick.direction": "out", "lines.linewidth": 1.6, "lines.markersize": 5.0,
    "legend.frameon": False, "legend.fontsize": 8.0, "figure.facecolor": "white", "savefig.facecolor": "white",
    "svg.fonttype": "path", "svg.hashsalt": "vgrad_torch",
}  # fmt: skip

Arguments = ParamSpec("Arguments")


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """A decorator: the function draws in this style, whatever the user's matplotlib settings, which stay unchanged."""

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with matplotlib.rc_context(_RC):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # lays it out while the style is in force
            return figure

    return drawn


def png(figure: Figure, dpi: float = 150) -> bytes:
    """The figure as PNG, `dpi` pixels to the inch."""
    return _saved(figure, format="png", dpi=dpi, metadata={"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure as SVG. Letters are drawn as lines, so no font is needed. The same figure gives the same bytes."""
    return _saved(figure, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})


def _saved(figure: Figure, **how: Any) -> bytes:
    with matplotlib.rc_context(_RC):
        file = io.BytesIO()
        figure.savefig(file, **how)
        return file.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(count: int, height: float, *, width: float = 8.0, sharex: bool = True) -> tuple[Figure, list[Axes]]:
    """`count` axes side by side on equal scales; more than five are drawn in rows of four."""
    columns = count if count <= 5 else 4
    rows = -(-count // columns)
    figure = new_figure(width, height * rows)
    grid = figure.subplots(rows, columns, sharex=sharex, sharey=True, squeeze=False)
    axes = [axis for row in grid for axis in row]
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def layer_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Viridis colours from dark, the first layer, to light, the last."""
    return [colormaps["viridis"](0.92 * i / max(count - 1, 1)) for i in range(count)]


@functools.cache
def _glyphs() -> frozenset[int]:
    path = font_manager.findfont("DejaVu Sans")
    return frozenset(ft2font.FT2Font(path).get_charmap())


def plain(name: str, most: int = 24) -> str:
    """A name as it can be drawn: letters that the font lacks become `?`, a long name keeps its end.

    >>> plain("encoder.layers.11.mlp.dense_in", 12), plain("tab" + chr(9))
    ('…lp.dense_in', 'tab?')
    """
    drawable = "".join(c if c.isprintable() and ord(c) in _glyphs() else "?" for c in name)
    return drawable if len(drawable) <= most else f"…{drawable[1 - most :]}"


def titles(axes: Sequence[Axes], names: Iterable[str]) -> None:
    """Write the runs' names above their axes, shortened to fit; a single run needs none."""
    for axis, name in zip(axes, names, strict=True) if len(axes) > 1 else ():
        axis.set_title(plain(name, 76 // min(len(axes), 5)))


def legend(
    axis: Axes, names: Sequence[str], colours: Sequence[Any], marks: str = "", lines: Sequence[Any] = "-", **where: Any
) -> None:
    """A legend of lines, marks or both. Of more than twelve names it shows some at equal distances."""
    stride = max(1, -(-(len(names) - 1) // 11))
    kept = [i for i in range(len(names)) if i % stride == 0]
    handles = [
        Line2D([], [], color=colours[i], marker=marks[i % len(marks)] if marks else "", linestyle=lines[i % len(lines)])
        for i in kept
    ]
    result = axis.legend(handles, [" "] * len(kept), **where)  # a name that begins with _ would be left out
    for text, i in zip(result.get_texts(), kept, strict=True):
        text.set_text(plain(names[i], 32))


def beside(axis: Axes, names: Sequence[str], colours: Sequence[Any], lines: Sequence[Any] = "-") -> None:
    """A legend to the right of the axes."""
    legend(axis, names, colours, lines=lines, loc="upper left", bbox_to_anchor=(1.0, 1.03), handlelength=2.0)


def step_axis(axis: Axes, label: str = "step") -> None:
    """An axis of whole numbers along x."""
    axis.set_xlabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def labels(snapshot: Snapshot) -> list[str]:
    """The layers' labels in forward order."""
    return [layer.label for layer in snapshot.layers]


def common(names_by_run: Sequence[Sequence[str]]) -> list[str]:
    """Names for an axis that several runs share: those of the deepest run, or numbers if the runs' names differ.

    >>> common([["fc1", "fc2"], ["fc1"]]), common([["fc1", "fc2"], ["head"]])
    (['fc1', 'fc2'], ['1', '2'])
    """
    longest = max(names_by_run, key=len, default=[])
    if all(list(names) == list(longest[: len(names)]) for names in names_by_run):
        return list(longest)
    return [str(number) for number in range(1, len(longest) + 1)]


def layer_ticks(names: Sequence[str], most: int, letters: int = 14) -> tuple[list[int], list[str]]:
    """Places and names of at most `most` layers, with the first and the last."""
    if len(names) <= most:
        kept = list(range(len(names)))
    else:
        kept = sorted({round(i * (len(names) - 1) / (most - 1)) for i in range(most)})
    return kept, [plain(names[i], letters) for i in kept]


def layers_along_x(axis: Axes, names: Sequence[str]) -> None:
    """Layers by name along x, the first on the left; long names are rotated."""
    places, texts = layer_ticks(names, 16)
    rotate = sum(map(len, texts)) > 60
    kwargs: dict[str, Any] = {"rotation": 40, "ha": "right"} if rotate else {}
    axis.set_xticks(places, texts, **kwargs)
    axis.set_xlim(-0.5, len(names) - 0.5)


def layers_along_y(axis: Axes, names: Sequence[str], most: int = 16) -> None:
    """Layers by name along y, the first on top."""
    axis.set_yticks(*layer_ticks(names, most, 20))
    axis.set_ylim(len(names) - 0.5, -0.5)


_LOG_LEAST = 0.1


def decades(axis: Any, low: float, high: float, most: int = 7) -> None:
    """Ticks of an axis of log10 values: at most `most` powers of ten; on a short axis also 2 and 5 times these."""
    first, last = math.ceil(low), math.floor(high)
    stride = next((n for n in (1, 2, 3, 5, 10, 20) if (last - first) / n < most), 40)
    multiples = (1, 2, 5) if high - low < 2 else (1,)
    every = [e + math.log10(m) for e in range(first - 1, last + 1) if e % stride == 0 for m in multiples]
    axis.set_major_locator(FixedLocator([place for place in every if low <= place <= high]))
    axis.set_major_formatter(FuncFormatter(lambda e, _: number(10**e, _LOG_LEAST)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def number(value: float, least: float = 1e-3) -> str:
    """A tick's label in at most three digits; a number smaller than `least` is written with its power of ten.

    >>> number(1e-7), number(1.0), number(0.05), number(-1.5e-4), number(2000.0)
    ('1e-7', '1', '0.05', '-1.5e-4', '2000')
    """
    if least * (1 - 1e-9) <= abs(value) < 10_000 or abs(value) < 1e-300:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def numbers(axis: Axes, least: float = 1e-3) -> None:
    """Write the labels along y with `number`."""
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: number(y, least)))


def log_axis(axis: Axes) -> None:
    """A log axis along y, labelled with `number`."""
    axis.set_yscale("log")
    axis.yaxis.set_minor_formatter(NullFormatter())
    numbers(axis, _LOG_LEAST)


def span(values: Iterable[float], least: float = 1.0) -> tuple[float, float]:
    """The ends of an axis for log10 values, with a margin, at least `least` decades apart.

    >>> span([-3.0, -1.0])
    (-3.12, -0.88)
    """
    known = list(values)
    low, high = (min(known), max(known)) if known else (-1.0, 0.0)
    margin = max(0.06 * (high - low), (least - (high - low)) / 2)
    return low - margin, high + margin
