"""Logged runs side by side: a line of numbers each, and what differs in their settings."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, count
from pathlib import Path
from typing import Any

from vgrad_torch.report.report import Report, digits, report
from vgrad_torch.tensorboard.tags import ACCURACY_VALIDATION
from vgrad_torch.verdict.diagnosis import table

RUN_HEAD = ("run", "verdict", "steps", "first layer's gradient", "over the last's", "loss", "validation accuracy")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs by name, side by side; `str()` is what the terminal shows."""

    reports: Mapping[str, Report]
    file: Path = Path("compare.html")

    def __str__(self) -> str:
        lines = [*table(RUN_HEAD, self.rows()), ""]
        settings = self.settings()
        if settings:
            lines += table(("setting", *self.reports), [(key, *values) for key, values in settings.items()])
        else:
            lines.append("Their settings do not differ, or are not known.")
        for name, each in self.reports.items():
            lines += ["", textwrap.fill(f"{name}: {each.verdict.paragraph}", 100), *each.remarks()]
        return "\n".join(lines)

    def rows(self) -> list[tuple[str, ...]]:
        """A line of each run under `RUN_HEAD`."""
        return [(name, *_run_cells(each)) for name, each in self.reports.items()]

    def settings(self) -> dict[str, tuple[str, ...]]:
        """What differs in their settings, see `differences`."""
        return differences({name: each.run.config for name, each in self.reports.items()})

    def data(self) -> dict[str, Any]:
        """Of each run what JSON can hold."""
        return {name: each.data() for name, each in self.reports.items()}


def compare(paths: Sequence[Path]) -> Comparison:
    """Read runs; one whose name was there already gets a number behind it."""
    found: dict[str, Report] = {}
    for each in map(report, paths):
        names = (f"{each.run.name} ({number})" for number in count(2))
        name = each.run.name if each.run.name not in found else next(name for name in names if name not in found)
        found[name] = each
    return Comparison(found)


def _run_cells(found: Report) -> tuple[str, ...]:
    """All but the name; the gradients are those of the newest sample."""
    first, last = found.rows[0].gradient, found.rows[-1].gradient
    _, losses = found.run.losses()
    accuracy = found.run.scalars.get(ACCURACY_VALIDATION)
    return (
        found.verdict.word or "see its report", f"{found.run.history[-1].step:,}", digits(first),
        digits(first / last if first is not None and last else None),
        f"{losses[-1][1]:.4g}" if losses else "", f"{accuracy[-1][1]:.1%}" if accuracy else "",
    )  # fmt: skip


PLACES = ("name", "runs", "data_dir")
"""Settings that say where a run lies, not what it is; a page that is sent to others does not show them."""


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The settings that not all runs have alike, each with its value in every run; empty where a run lacks it.

    A run whose settings are not known is no reason to list all those of the others.

    >>> differences({"a": {"act": "relu", "lr": 0.1, "name": "a"}, "b": {"act": "tanh", "lr": 0.1, "name": "b"}})
    {'act': ('relu', 'tanh')}
    """
    keys = [key for key in {key: None for config in configs.values() for key in config} if key not in PLACES]
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
