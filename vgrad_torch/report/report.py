"""The report on a logged run: verdict, table of the layers, and the same as data for JSON."""

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
from vgrad_torch.verdict.diagnosis import Diagnosis, diagnose
from vgrad_torch.verdict.horizons import horizons, timed_layers
from vgrad_torch.verdict.labels import two_digits
from vgrad_torch.verdict.rules import VERDICTS
from vgrad_torch.verdict.states import LEGEND, legend
from vgrad_torch.verdict.tables import WIDTH, layer_table, wrapped_lines

_UNNAMED = "an optimizer that the log does not name"
_UNCOUNTED = (
    "cannot tell: The number of entries of each gradient is needed, and the log holds neither the batch size nor "
    "histograms. Next: let watch() write histograms, or print monitor.diagnose() in the run."
)

_HOW = "`vgrad report` with `--layers all` lists all layers, with `--layers {}` those of one block."


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict: one of `rules.VERDICTS`, and the paragraph that begins with it.

    `word` is empty where a logged text begins with something else. `logged` says whether the run itself wrote the
    verdict; otherwise it is computed from the log.
    """

    word: str
    paragraph: str
    logged: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A layer: RMS of its weight gradient at the first sample; gradient, gains and update ratio at the newest.

    None where nothing was measured. `nonfinite` is the number of NaN and infinite entries of the newest gradient.
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
    """A run, its verdict and the table of its layers; `str()` is what the terminal shows."""

    run: Run
    verdict: Verdict
    rows: tuple[Row, ...]

    @property
    def file(self) -> Path:
        """The default file of the HTML page."""
        return self.run.folder / "report.html"

    def __str__(self) -> str:
        return self.text()

    def text(self, layers: str | None = None) -> str:
        """What the terminal shows. `layers` says which layers are in the table, see `layer_table`."""
        reasons, next_, advice = self.verdict.paragraph.partition(" Next: ")
        paragraphs = [textwrap.fill(text, WIDTH) for text in (reasons, f"{next_}{advice}".strip()) if text]
        first = [*wrapped_lines([f"{self.run.name}: {self.summary()}"])]
        remarks = wrapped_lines(self.remarks())
        return "\n".join([*first, "", *self.lines(layers), "", *paragraphs, *remarks])

    def lines(self, layers: str | None = None) -> Iterator[str]:
        """The table of the layers, the legend of their states, and how far back recurrent layers can learn from."""
        yield from layer_table(HEAD, map(cells, self.rows), layers, _HOW).lines()
        yield from wrapped_lines(legend(row.state for row in self.rows))
        yield from wrapped_lines(horizons(self.run.history[-1]))

    def summary(self) -> str:
        """One line: samples, steps, layers, loss and accuracy."""
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
        """Sentences about the first NaN or infinity and about the state of the files."""
        nonfinite = self.run.texts.get(FIRST_NONFINITE)
        return [*([f"{nonfinite[0].upper()}{nonfinite[1:]}."] if nonfinite else []), *self.run.notes]

    def data(self) -> dict[str, Any]:
        """The whole report for JSON. Numbers that are not finite are null."""
        tag, losses = self.run.losses()
        data = {
            "run": self.run.name, "verdict": asdict(self.verdict), "samples": self.run.samples,
            "steps": [snapshot.step for snapshot in self.run.history], "layers": [asdict(row) for row in self.rows],
            "loss": {"tag": tag, "points": losses}, "config": dict(self.run.config), "remarks": self.remarks(),
            "validation_accuracy": self.run.scalars.get(ACCURACY_VALIDATION, ()),
            "time": [{"layer": label, **asdict(time)} for label, time in timed_layers(self.run.history[-1])],
        }  # fmt: skip
        finite: dict[str, Any] = _finite(data)
        return finite


def report(path: Path) -> Report:
    """The report on the run in a folder; a `UsageError` says why there is none."""
    return _report(read(path))


def _report(run: Run) -> Report:
    diagnosis = diagnosed(run)
    states = {state.label: state.word for state in diagnosis.layers} if diagnosis else {}
    first = {layer.label: layer for layer in run.history[0].layers}
    rows = tuple(_row(first.get(x.label), x, states.get(x.label, "")) for x in run.history[-1].layers)
    return Report(run, _logged_verdict(run) or _verdict(diagnosis), rows)


def _row(first: LayerSnapshot | None, layer: LayerSnapshot, state: str) -> Row:
    return Row(
        layer.label, layer.size, _gradient(first), _gradient(layer),
        layer.weight_gradient.nonfinite if layer.weight_gradient else 0,
        layer.weight_gain, layer.activation_gain, layer.update_ratio, state,
    )  # fmt: skip


def _gradient(layer: LayerSnapshot | None) -> float | None:
    return layer.weight_gradient.rms if layer and layer.weight_gradient else None


def _logged_verdict(run: Run) -> Verdict | None:
    """The verdict that the run wrote, without its table and legend, which the report has too."""
    if VERDICT not in run.texts:
        return None
    blocks = run.texts[VERDICT].replace("**", "").split("\n\n")
    paragraphs = [" ".join(block.split()) for block in blocks if not block.lstrip().startswith("|")]
    paragraphs = [block for block in paragraphs if block not in LEGEND.values()]
    begin = next((i for i, block in enumerate(paragraphs) if block.partition(":")[0] in VERDICTS), 0)
    paragraph = " ".join(paragraphs[begin:])
    word = paragraph.partition(":")[0]
    return Verdict(word if word in VERDICTS else "", paragraph, logged=True)


def _verdict(diagnosis: Diagnosis | None) -> Verdict:
    if diagnosis is None:
        return Verdict("cannot tell", _UNCOUNTED, logged=False)
    return Verdict(diagnosis.verdict, diagnosis.paragraph(), logged=False)


def diagnosed(run: Run) -> Diagnosis | None:
    """The diagnosis of the logged samples; None where the log does not hold the number of entries of the gradients.

    A layer without any gradient may be frozen or cut off from the loss; the log does not tell which. It is taken for
    frozen. If the verdict depends on that, the verdict is `cannot tell`.
    """
    if not run.counted:
        return None
    no_gradient = tuple(layer.label for layer in run.history[-1].layers if _has_no_gradient(layer))
    history = [_as_frozen(snapshot, no_gradient) for snapshot in run.history]
    losses = [value for _, value in run.scalars.get(LOSS_TRAIN, ())]
    diagnosis = diagnose(history, optimizer=str(run.config.get("optimizer", _UNNAMED)), losses=losses)
    if diagnosis.verdict != "frozen" or not no_gradient:
        return diagnosis
    because = (
        f"The log has no gradient of {', '.join(no_gradient)}. It does not say whether the layers are frozen or cut "
        "off from the loss."
    )
    advice = ("Next: print monitor.diagnose() in the run.",)
    return replace(diagnosis, verdict="cannot tell", because=because, advice=advice)


def _has_no_gradient(layer: LayerSnapshot) -> bool:
    return layer.weight_gradient is None and layer.output_gradient is None and layer.weight is not None


def _as_frozen(snapshot: Snapshot, labels: Sequence[str]) -> Snapshot:
    layers = [replace(layer, trainable=False) if layer.label in labels else layer for layer in snapshot.layers]
    return replace(snapshot, layers=tuple(layers))


# --- tables --------------------------------------------------------------------------------------------------------

HEAD = (
    "layer",
    "size",
    "first gradient RMS",
    "newest gradient RMS",
    "weight gain",
    "activation gain",
    "update ratio",
    "state",
)


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a layer's row, in the order of `HEAD`."""
    gradient = "NaN" if row.nonfinite else digits(row.gradient)
    numbers = (row.weight_gain, row.activation_gain, row.update_ratio)
    return (row.layer, row.size, digits(row.gradient_first), gradient, *map(digits, numbers), row.state)


def digits(value: float | None) -> str:
    """A number in two digits; empty where nothing was measured."""
    return "" if value is None or math.isnan(value) else two_digits(value)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
