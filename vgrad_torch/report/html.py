"""A report or comparison as one HTML file with its figures inside. It loads nothing else.

Its only script is that of the filter in a report on many layers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from vgrad_torch import __version__
from vgrad_torch.errors import UsageError
from vgrad_torch.files import write_whole
from vgrad_torch.records import Snapshot
from vgrad_torch.report import figures
from vgrad_torch.report.comparison import FOLDER_SETTINGS, RUN_HEAD, Comparison, shown_value
from vgrad_torch.report.figures.style import svg
from vgrad_torch.report.layers import STYLE, layer_list, permission, script
from vgrad_torch.report.report import HEAD, Report, cells
from vgrad_torch.verdict.horizons import horizons
from vgrad_torch.verdict.rules import ALARMS
from vgrad_torch.verdict.states import legend


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure of the page: its title, a caption that says what to look at, and the function that draws it."""

    title: str
    caption: str
    draw: Callable[[], Figure]


_MAP = (
    "Each column is a sample and each row a layer, the first one on top. Dark colours are small values. The gradient "
    "starts at the last layer, in the bottom row, and passes upwards. Rows that get darker towards the top show a "
    "vanishing gradient."
)
_TIME = (
    "Each column is a sample and each row a time step of the sequence, the last one at the bottom. The layer can learn "
    "from the time steps below the lines."
)
_PROFILE = (
    "The same values at single steps. A straight line that falls to the left is a gradient that loses the same factor "
    "at every layer."
)
_WATERFALL = (
    "The factor by which each layer's weight and each activation multiplies the gradient at the newest sample, from "
    "the last layer (top) to the first. The longest bars to the left weaken the gradient most. In a model with "
    "branches or residual connections the gradient also arrives on other paths. Then the bars do not add up to the "
    "measured value, which is written below them."
)
_RIDGES = (
    "How the magnitudes of the gradient's entries are distributed in each layer. In a healthy network the ridges of "
    "all layers are at similar magnitudes."
)
_GRADIENTS = "Mean and standard deviation of each layer's weight gradient, and the loss, over the steps."
_WEIGHTS = "Mean and standard deviation of each layer's weights. The lines of a layer that does not learn are flat."


def write(result: Report | Comparison, out: Path) -> None:
    """Write the page into the file `out`; a `UsageError` says why it cannot be written."""
    html = report_page(result) if isinstance(result, Report) else comparison_page(result)
    try:
        write_whole(out, html.encode(errors="replace"))
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}; choose another file with --out") from None


def report_page(report: Report) -> str:
    """The page of one run."""
    sections = [
        _head(report.run.name, report.summary()),
        _verdict(report),
        *_figures(_pictures(report)),
        _section("Layers", layer_list(report.rows, lambda: _table(HEAD, map(cells, report.rows))) + _legend(report)),
        _settings(report),
    ]
    return _page(report.run.name, sections, script(report.rows))


def comparison_page(comparison: Comparison) -> str:
    """The page of several runs, on equal axes."""
    rows = [(key, *values) for key, values in comparison.settings().items()]
    table = _table(("setting", *comparison.reports), rows)
    settings = table if rows else '<p class="quiet">No known setting differs.</p>'
    sections = [
        _head("Comparison", f"{len(comparison.reports)} runs. The gradients are those of the newest sample."),
        _table(RUN_HEAD, comparison.rows()),
        _section("Settings that differ", settings),
        *_figures(_comparison_pictures(comparison.reports)),
        *(_section(name, _verdict(report)) for name, report in comparison.reports.items()),
    ]
    return _page("Comparison", sections)


def _pictures(report: Report) -> Iterator[Picture]:
    history = report.run.history
    first, last = history[0], history[-1]
    ends = {f"step {s.step:,}": s for s in ((first, last) if first is not last else (last,))}
    tag, losses = report.run.losses()
    yield Picture("Gradient by layer and step", _MAP, lambda: figures.flow_map({"": history}))
    if words := " ".join(horizons(last)):
        yield Picture("Gradient through time", f"{words} {_TIME}", lambda: figures.time_map({"": history}))
    yield Picture("Depth profile", _PROFILE, lambda: figures.depth_profile(ends))
    yield Picture("Factors of weights and activations", _WATERFALL, lambda: figures.waterfalls({"": last}))
    with_histograms = {f"step {s.step:,}": s for s in _with_histograms(history)}
    yield Picture("Distribution by layer", _RIDGES, lambda: figures.ridges(with_histograms))
    yield Picture(
        "Gradients over the steps", _GRADIENTS, lambda: figures.gradients({"": history}, {"": losses}, loss=tag)
    )
    yield Picture("Weights over the steps", _WEIGHTS, lambda: figures.weights({"": history}))


def _comparison_pictures(reports: Mapping[str, Report]) -> Iterator[Picture]:
    histories = {name: report.run.history for name, report in reports.items()}
    first = {name: history[0] for name, history in histories.items()}
    last = {name: history[-1] for name, history in histories.items()}
    losses = {name: report.run.losses()[1] for name, report in reports.items()}
    yield Picture("Gradient by layer and step", _MAP, lambda: figures.flow_map(histories))
    yield Picture("Depth profile of the first sample", _PROFILE, lambda: figures.depth_profile(first))
    yield Picture("Depth profile of the newest sample", _PROFILE, lambda: figures.depth_profile(last))
    yield Picture("Factors of weights and activations", _WATERFALL, lambda: figures.waterfalls(last))
    with_histograms = {name: kept[-1] for name, history in histories.items() if (kept := _with_histograms(history))}
    yield Picture("Distribution by layer", _RIDGES, lambda: figures.ridges(with_histograms))
    if any(losses.values()):
        yield Picture("Loss", "The training loss of the log.", lambda: figures.losses(losses))


def _with_histograms(history: Sequence[Snapshot]) -> list[Snapshot]:
    """The first and the newest sample whose weight gradients have histograms."""
    samples = [s for s in history if any(x.weight_gradient and x.weight_gradient.histogram for x in s.layers)]
    return [samples[0], samples[-1]] if len(samples) > 1 else samples


def _figures(pictures: Iterable[Picture]) -> Iterator[str]:
    """A section for each picture; where one cannot be drawn, the section says why."""
    for picture in pictures:
        try:
            data = base64.b64encode(svg(picture.draw())).decode()
            body = f'<img alt="{escape(picture.title)}" src="data:image/svg+xml;base64,{data}">'
            yield _section(picture.title, f"<figure>{body}<figcaption>{escape(picture.caption)}</figcaption></figure>")
        except UsageError as error:
            yield _section(picture.title, f'<p class="quiet">Left out: {escape(str(error))}.</p>')


def _head(name: str, summary: str) -> str:
    return f'<h1>{escape(name)}</h1><p class="quiet">{escape(summary)}</p>'


def _verdict(report: Report) -> str:
    word = report.verdict.word
    kind = "alarm" if word in ALARMS else "well" if word == "healthy" else "unsure"
    text = report.verdict.paragraph.removeprefix(f"{word}: ") if word else report.verdict.paragraph
    origin = "was written by the run" if report.verdict.logged else "was computed from the log"
    remarks = "".join(f'<p class="quiet">{escape(remark)}</p>' for remark in report.remarks())
    badge = f"<strong>{escape(word or 'verdict')}</strong>"
    paragraph = escape(text[:1].upper() + text[1:])
    body = f'{badge}<p>{paragraph}</p><p class="quiet">This verdict {origin}.</p>'
    return f'<div class="verdict {kind}">{body}</div>{remarks}'


def _legend(report: Report) -> str:
    lines = legend(row.state for row in report.rows)
    return "".join(f'<p class="quiet">{escape(line)}</p>' for line in lines)


def _settings(report: Report) -> str:
    rows = [(key, shown_value(value)) for key, value in report.run.config.items() if key not in FOLDER_SETTINGS]
    if not rows:
        return _section("Settings", '<p class="quiet">The log holds no settings.</p>')
    return _section("Settings", _table(("setting", "value"), rows))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


_LEFT = ("run", "verdict", "setting", "value", "layer", "size", "state")
_SHORT = ("size", "state")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    kinds = ["short" if name in _SHORT else "left" if name in _LEFT or head[0] == "setting" else "" for name in head]
    left = [f' class="{kind}"' if kind else "" for kind in kinds]
    names = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(head, left, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, left, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


_STYLE = """
body { margin: 0; background: #fff; color: #212121; font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 880px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { font-size: 26px; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; font-weight: 600; margin: 36px 0 10px; overflow-wrap: anywhere; }
p { margin: 6px 0; overflow-wrap: anywhere; }
.quiet, figcaption { color: #5f6368; font-size: 13px; }
.verdict { margin: 22px 0 8px; padding: 12px 16px; border-left: 6px solid; border-radius: 4px; background: #f7f7f7; }
.verdict strong { font-size: 19px; }
.alarm { border-color: #b3261e; } .well { border-color: #009e73; } .unsure { border-color: #b98000; }
figure { margin: 0; } img { width: 100%; height: auto; display: block; } figcaption { margin-top: 4px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 14px 4px 0; text-align: right; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
th { font-weight: 600; color: #5f6368; } .left, .short { text-align: left; } .short { white-space: nowrap; }
td.left { overflow-wrap: anywhere; } td.left:first-child { min-width: 170px; }
footer { margin-top: 40px; color: #5f6368; font-size: 12px; }
@media print { section { break-inside: avoid; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def _page(title: str, sections: Iterable[str], script: str = "") -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}{permission(script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}{STYLE if script else ''}</style></head>"
        f"<body><main>{''.join(sections)}<footer>vgrad_torch {__version__}</footer></main></body></html>\n"
    )
