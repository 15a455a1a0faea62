"""Compares logged runs: one line of numbers for each, and the settings that differ."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress, count
from pathlib import Path
from typing import Any

from vgrad_torch.report.report import Report, digits, report
from vgrad_torch.tensorboard.tags import ACCURACY_VALIDATION
from vgrad_torch.verdict.tables import WIDTH, table

RUN_HEAD = ("run", "verdict", "steps", "first layer gradient RMS", "first / last layer", "loss", "validation accuracy")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Reports by the name of the run; `str()` is what the terminal shows."""

    reports: Mapping[str, Report]
    file: Path = Path("compare.html")

    def __str__(self) -> str:
        lines = [*table(RUN_HEAD, self.rows()), ""]
        settings = self.settings()
        if settings:
            lines += table(("setting", *self.reports), [(key, *values) for key, values in settings.items()])
        else:
            lines.append("The settings do not differ, or are not known.")
        for name, entry in self.reports.items():
            lines += ["", textwrap.fill(f"{name}: {entry.verdict.paragraph}", WIDTH), *entry.remarks()]
        return "\n".join(lines)

    def rows(self) -> list[tuple[str, ...]]:
        """One row for each run, in the order of `RUN_HEAD`."""
        return [(name, *_run_cells(entry)) for name, entry in self.reports.items()]

    def settings(self) -> dict[str, tuple[str, ...]]:
        """The settings that differ, see `differences`."""
        return differences({name: entry.run.config for name, entry in self.reports.items()})

    def data(self) -> dict[str, Any]:
        """The data of each report for JSON."""
        return {name: entry.data() for name, entry in self.reports.items()}


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare the runs in these folders. A name that occurs again gets a number: `relu (2)`."""
    reports: dict[str, Report] = {}
    for path in paths:
        result = report(path)
        numbered = (f"{result.run.name} ({number})" for number in count(2))
        reports[next(name for name in chain([result.run.name], numbered) if name not in reports)] = result
    return Comparison(reports)


def _run_cells(entry: Report) -> tuple[str, ...]:
    """The cells of a run's row after its name. The gradients are those of the newest sample."""
    first, last = entry.rows[0].gradient, entry.rows[-1].gradient
    _, losses = entry.run.losses()
    accuracy = entry.run.scalars.get(ACCURACY_VALIDATION)
    return (
        entry.verdict.word or "see its report", f"{entry.run.history[-1].step:,}", digits(first),
        digits(first / last if first is not None and last else None),
        f"{losses[-1][1]:.4g}" if losses else "", f"{accuracy[-1][1]:.1%}" if accuracy else "",
    )  # fmt: skip


FOLDER_SETTINGS = ("name", "runs", "data_dir")
"""Settings with names of folders. A page that is sent to others does not show them."""


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The settings that are not the same in all runs, each with its value in every run; empty where a run lacks it.

    A run without known settings is not compared with the others.

    >>> differences({"a": {"act": "relu", "lr": 0.1, "name": "a"}, "b": {"act": "tanh", "lr": 0.1, "name": "b"}})
    {'act': ('relu', 'tanh')}
    """
    keys = [key for key in {key: None for config in configs.values() for key in config} if key not in FOLDER_SETTINGS]
    shown = {key: tuple(shown_value(config.get(key, "")) for config in configs.values()) for key in keys}
    known = [bool(config) for config in configs.values()]
    return {key: values for key, values in shown.items() if len(set(compress(values, known))) > 1}


def shown_value(value: Any) -> str:
    """A setting in a few characters.

    >>> shown_value([512, 256]), shown_value(None), shown_value(0.025)
    ('512-256', 'none', '0.025')
    """
    if isinstance(value, list):
        return "-".join(map(str, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
