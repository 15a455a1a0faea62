"""What there is to say of a logged run: verdict, table of the layers, plain data for machines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vgrad_torch.records import LayerSnapshot, Snapshot
from vgrad_torch.tensorboard.runlog import Run, read
from vgrad_torch.tensorboard.tags import ACCURACY_VALIDATION, FIRST_NONFINITE, LOSS_TRAIN, VERDICT
from vgrad_torch.verdict.diagnosis import Diagnosis, diagnose, table
from vgrad_torch.verdict.rules import VERDICTS, two_digits

_UNNAMED = "an optimizer that the log does not name"
_UNCOUNTED = (
    "cannot tell: the log says neither how large the batches were nor, as it holds no histograms, how many entries the "
    "gradients have. Next: let watch() write histograms, or print monitor.diagnose() in the run."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of `verdicts.VERDICTS` and the paragraph that begins with it; empty where a logged text begins otherwise.

    `logged` says that the run wrote it itself; else it was found now, from what the log holds.
    """

    word: str
    paragraph: str
    logged: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A layer: RMS of its weight gradient at the first and the newest sample, its gains and its update at the newest.

    None is what was not measured; `nonfinite` counts NaN and infinities of the newest gradient.
    """

    layer: str
    size: str
    gradient_first: float | None
    gradient: float | None
    nonfinite: int
    weight_gain: float | None
    activation_gain: float | None
    update_ratio: float | None
    state: str


@dataclass(frozen=True, slots=True)
class Report:
    """A run with its verdict; `str()` is what the terminal shows."""

    run: Run
    verdict: Verdict
    rows: tuple[Row, ...]

    @property
    def file(self) -> Path:
        """Where its page belongs, unless told otherwise."""
        return self.run.folder / "report.html"

    def __str__(self) -> str:
        paragraph = textwrap.fill(self.verdict.paragraph, 100)
        return "\n".join([f"{self.run.name}: {self.summary()}", "", *self.lines(), "", paragraph, *self.remarks()])

    def lines(self) -> Iterator[str]:
        """The table of the layers."""
        return table(HEAD, map(cells, self.rows))

    def summary(self) -> str:
        """How much was seen, and what came of it."""
        first, last = self.run.history[0], self.run.history[-1]
        parts = [f"{_count(self.run.samples, 'sample')} of step {first.step:,}"]
        if last.step > first.step:
            parts = [f"{_count(self.run.samples, 'sample')} of steps {first.step:,} to {last.step:,}"]
        parts.append(_count(len(last.layers), "layer"))
        tag, losses = self.run.losses()
        if losses:
            parts.append(f"{tag} from {losses[0][1]:.4g} to {losses[-1][1]:.4g}")
        accuracy = self.run.scalars.get(ACCURACY_VALIDATION)
        if accuracy:
            parts.append(f"validation accuracy {accuracy[-1][1]:.1%}")
        return ", ".join(parts)

    def remarks(self) -> list[str]:
        """What else must be known, a sentence each."""
        where = self.run.texts.get(FIRST_NONFINITE)
        return [*([f"{where[0].upper()}{where[1:]}."] if where else []), *self.run.notes]

    def data(self) -> dict[str, Any]:
        """All of it as JSON can hold it; what is not a finite number is null."""
        tag, losses = self.run.losses()
        found = {
            "run": self.run.name, "verdict": asdict(self.verdict), "samples": self.run.samples,
            "steps": [snapshot.step for snapshot in self.run.history], "layers": [asdict(row) for row in self.rows],
            "loss": {"tag": tag, "points": losses}, "config": dict(self.run.config), "remarks": self.remarks(),
            "validation_accuracy": self.run.scalars.get(ACCURACY_VALIDATION, ()),
        }  # fmt: skip
        clean: dict[str, Any] = _clean(found)
        return clean


def report(path: Path) -> Report:
    """Read a run's folder, judge it, tabulate its layers; a `UsageError` says why that cannot be done."""
    return _report(read(path))


def _report(run: Run) -> Report:
    found = diagnosed(run)
    states = {state.label: state.word for state in found.layers} if found else {}
    first = {layer.label: layer for layer in run.history[0].layers}
    rows = tuple(_row(first.get(x.label), x, states.get(x.label, "")) for x in run.history[-1].layers)
    return Report(run, _logged(run) or _verdict(found), rows)


def _row(first: LayerSnapshot | None, layer: LayerSnapshot, state: str) -> Row:
    return Row(
        layer.label, layer.size, _gradient(first), _gradient(layer),
        layer.weight_gradient.nonfinite if layer.weight_gradient else 0,
        layer.weight_gain, layer.activation_gain, layer.update_ratio, state,
    )  # fmt: skip


def _gradient(layer: LayerSnapshot | None) -> float | None:
    return layer.weight_gradient.rms if layer and layer.weight_gradient else None


def _logged(run: Run) -> Verdict | None:
    """The verdict that the run wrote; without its table, which is here anyway."""
    if VERDICT not in run.texts:
        return None
    blocks = run.texts[VERDICT].replace("**", "").split("\n\n")
    words = [" ".join(block.split()) for block in blocks if not block.lstrip().startswith("|")]
    begin = next((place for place, block in enumerate(words) if block.partition(":")[0] in VERDICTS), 0)
    paragraph = " ".join(words[begin:])
    word = paragraph.partition(":")[0]
    return Verdict(word if word in VERDICTS else "", paragraph, logged=True)


def _verdict(found: Diagnosis | None) -> Verdict:
    if found is None:
        return Verdict("cannot tell", _UNCOUNTED, logged=False)
    return Verdict(found.verdict, found.paragraph(), logged=False)


def diagnosed(run: Run) -> Diagnosis | None:
    """The diagnosis of what the log holds; None where it does not tell how many entries the gradients have.

    A layer without any gradient may be frozen or cut off from the loss, which the log does not tell apart: it is taken
    for frozen, and where the verdict hangs on it, it is that one cannot tell.
    """
    if not run.counted:
        return None
    without = tuple(layer.label for layer in run.history[-1].layers if _has_no_gradient(layer))
    history = [_as_frozen(snapshot, without) for snapshot in run.history]
    losses = [value for _, value in run.scalars.get(LOSS_TRAIN, ())]
    found = diagnose(history, optimizer=str(run.config.get("optimizer", _UNNAMED)), losses=losses)
    if found.verdict != "frozen" or not without:
        return found
    because = f"The log has no gradient of {', '.join(without)}. It does not say whether they are frozen or cut off."
    return replace(
        found, verdict="cannot tell", because=because, advice=("Next: print monitor.diagnose() in the run.",)
    )


def _has_no_gradient(layer: LayerSnapshot) -> bool:
    return layer.weight_gradient is None and layer.output_gradient is None and layer.weight is not None


def _as_frozen(snapshot: Snapshot, without: Sequence[str]) -> Snapshot:
    layers = [replace(layer, trainable=False) if layer.label in without else layer for layer in snapshot.layers]
    return replace(snapshot, layers=tuple(layers))


# --- tables --------------------------------------------------------------------------------------------------------

HEAD = (
    "layer",
    "size",
    "gradient RMS at first",
    "gradient RMS",
    "weight gain",
    "activation gain",
    "update ratio",
    "state",
)


def cells(row: Row) -> tuple[str, ...]:
    """A layer's line under `HEAD`."""
    gradient = "NaN" if row.nonfinite else digits(row.gradient)
    numbers = (row.weight_gain, row.activation_gain, row.update_ratio)
    return (row.layer, row.size, digits(row.gradient_first), gradient, *map(digits, numbers), row.state)


def digits(value: float | None) -> str:
    """Two digits; nothing where nothing was measured."""
    return "" if value is None or math.isnan(value) else two_digits(value)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _clean(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list | tuple) else value
