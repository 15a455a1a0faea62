"""The summary of a sweep: a row for each combination of values over its seeds, as a table, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from vgrad_torch.sweep.outcome import Outcome

AXES = ("data", "act", "init", "norm", "gain", "optimizer", "lr")
"""The fields of a config that can have several values in a sweep."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over the seeds, the smallest and the largest value; NaN if there are no values.

    >>> str(Spread.of([0.5, 0.25, 1.0, math.nan]))
    '0.5 (0.25..1)'
    """

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of the values that are not NaN."""
        known = [value for value in values if not math.isnan(value)]
        return cls(statistics.median(known), min(known), max(known)) if known else cls(*[math.nan] * 3)

    def text(self, form: str, between: str = " ") -> str:
        """The three numbers in a format, the last two in brackets."""
        if math.isnan(self.median):
            return "-"
        return f"{self.median:{form}}{between}({self.least:{form}}..{self.largest:{form}})"

    def __str__(self) -> str:
        return self.text(".3g")


@dataclass(frozen=True, slots=True)
class Row:
    """The runs that differ only in the seed. The numbers are of those that did not fail."""

    axes: Mapping[str, Any]
    """A value for each of `AXES`."""
    seeds: int
    failed: int
    accuracy: Spread
    """Of the validation part after the last epoch."""
    loss: Spread
    """Mean over the training part after the last epoch."""
    gradient_start: Spread
    """log10 of the RMS of the first layer's weight gradient, before training; -inf where it is zero."""
    gradient_end: Spread
    """The same at the last sample, where it also falls because the network has learned."""
    verdicts: Mapping[str, int]
    """Verdict -> number of runs, the most frequent first."""


SPREADS = ("accuracy", "loss", "gradient_start", "gradient_end")
"""The fields of a `Row` that are a `Spread`."""


def rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """A row for each combination of values, in the order of the runs."""
    groups: dict[tuple[Any, ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(tuple(getattr(outcome.config, axis) for axis in AXES), []).append(outcome)
    return [_row(dict(zip(AXES, values, strict=True)), group) for values, group in groups.items()]


def _row(axes: Mapping[str, Any], group: Sequence[Outcome]) -> Row:
    verdicts = Counter(outcome.verdict for outcome in group if outcome.verdict)
    return Row(
        axes, len(group), sum(outcome.error is not None for outcome in group),
        Spread.of(outcome.accuracy for outcome in group), Spread.of(outcome.loss for outcome in group),
        Spread.of(_log10(outcome.gradient_start) for outcome in group),
        Spread.of(_log10(outcome.gradient_end) for outcome in group),
        dict(sorted(verdicts.items(), key=lambda item: (-item[1], item[0]))),
    )  # fmt: skip


def _log10(value: float) -> float:
    return -math.inf if value == 0 else math.log10(value)


def as_csv(table: Sequence[Row]) -> str:
    """A line for each row; the verdicts as in `vanishing 4, slow 1`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    fields = [f"{name}_{part}" for name in SPREADS for part in ("median", "least", "largest")]
    writer.writerow([*AXES, "seeds", "failed", *fields, "verdicts"])
    for row in table:
        axes = ["none" if row.axes[axis] is None else row.axes[axis] for axis in AXES]
        verdicts = ", ".join(f"{verdict} {count}" for verdict, count in row.verdicts.items())
        numbers = [f"{value:.9g}" for name in SPREADS for value in dataclasses.astuple(getattr(row, name))]
        writer.writerow([*axes, row.seeds, row.failed, *numbers, verdicts])
    return file.getvalue()


def as_json(table: Sequence[Row], outcomes: Iterable[Outcome]) -> str:
    """The rows and all runs; null for a number that is not finite."""
    cells = [{"run": outcome.config.name, **dataclasses.asdict(outcome)} for outcome in outcomes]
    content = {"rows": [dataclasses.asdict(row) for row in table], "cells": cells}
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def varying(table: Sequence[Row]) -> list[str]:
    """The axes to show: activation, weights, and every axis with more than one value."""
    return [axis for axis in AXES if axis in ("act", "init") or len({row.axes[axis] for row in table}) > 1]


def as_table(table: Sequence[Row]) -> Table:
    """The rows for a terminal: the median over the seeds, in brackets the smallest and the largest value."""
    caption = "Median (smallest..largest) of the seeds; gradient: log10 of the RMS of the first layer's weight gradient"
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1), caption=caption, caption_justify="left")
    axes = varying(table)
    for axis in axes:
        shown.add_column(f"\n{axis}", no_wrap=True)
    for column in ("validation\naccuracy", "training\nloss", "gradient\nat the start", "gradient\nat the end"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("\nverdicts", no_wrap=True)
    forms = dict(zip(SPREADS, (".2f", ".3g", ".1f", ".1f"), strict=True))
    for row in table:
        values = [getattr(row, name).text(form, between="\n") for name, form in forms.items()]
        counted = [f"{verdict} {count}" for verdict, count in row.verdicts.items()]
        failed = [f"({row.failed} failed)"] if row.failed else []
        shown.add_row(*(Text(name_of(row.axes[axis])) for axis in axes), *values, "\n".join([*counted, *failed]))
    return shown


def name_of(value: object) -> str:
    """The name of a value.

    >>> name_of(0.1), name_of(None), name_of("relu")
    ('0.1', 'none', 'relu')
    """
    return repr(value).removesuffix(".0") if isinstance(value, float) else "none" if value is None else str(value)
