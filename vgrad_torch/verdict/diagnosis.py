"""From snapshots to words: diagnose() gives the verdict with its evidence, who is to blame, and what to do next.

Plain numbers in, no torch. What is measured stands in evidence.py, the rules in verdicts.py, their lines in cutoffs.py.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from vgrad_torch.errors import UsageError
from vgrad_torch.records import LayerSnapshot, Snapshot
from vgrad_torch.verdict.advice import ADVICE
from vgrad_torch.verdict.cutoffs import RECORDS, Record
from vgrad_torch.verdict.evidence import Evidence, first_nonfinite, gather, norm
from vgrad_torch.verdict.rules import ALARMS, Judgement, family, judge, period, two_digits
from vgrad_torch.verdict.waterfall import Factor, Waterfall, reached, waterfall
from vgrad_torch.verdict.words import called

__all__ = ["Diagnosis", "LayerState", "Suspect", "diagnose", "first_nonfinite"]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A factor of the waterfall and its share, 0 to 1, of all weakening (if the gradient explodes: strengthening).

    The share is of the logarithm.
    """

    factor: Factor
    share: float

    def __str__(self) -> str:
        what = "weight of" if self.factor.kind == "weight" else "activation behind"
        return f"the {what} {called(self.factor.layer)} (x {two_digits(self.factor.gain)}, {self.share:.0%})"


@dataclass(frozen=True, slots=True)
class LayerState:
    """One line of the table: a call of a layer in the newest sample.

    `gradient` is the norm of its output gradient over that of the last layer, `word` is `healthy`, `weak` (below a
    hundredth), `strong` (above a hundred), `dead`, `frozen`, `no gradient` or `non-finite`.
    """

    label: str
    size: str
    word: str
    gradient: float | None
    weight_gain: float | None
    activation_gain: float | None
    update_ratio: float | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A verdict and what it rests on; `str()` is a table of the layers and one paragraph.

    Attributes:
        verdict: one of `verdicts.VERDICTS`.
        because: the reason, half a sentence.
        evidence: the numbers that were judged.
        suspects: which factors of the waterfall weaken the gradient most (strengthen it, if it explodes).
        advice: what to do next, sentence by sentence, the most promising first.
        layers: the layers in order of their first call.
        confidence: how often this verdict was right on the calibration's test networks; None where none of them was
            like this one.
        optimizer: as it was given.
    """

    verdict: str
    because: str
    evidence: Evidence
    suspects: tuple[Suspect, ...]
    advice: tuple[str, ...]
    layers: tuple[LayerState, ...]
    confidence: Record | None
    optimizer: str

    @property
    def alarm(self) -> bool:
        """Whether it says that the network will not train as it is: most that got this verdict did not."""
        return self.verdict in ALARMS and (self.confidence is None or self.confidence.share > 0.5)

    def __str__(self) -> str:
        return "\n".join([*table(_HEAD, map(_cells, self.layers)), "", textwrap.fill(self.paragraph(), 100)])

    def markdown(self) -> str:
        """The same for TensorBoard's text tab."""
        rows = [_HEAD, ("---",) * len(_HEAD), *(_cells(layer) for layer in self.layers)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return f"{table}\n\n**{self.verdict}**{self.paragraph().removeprefix(self.verdict)}\n"

    def paragraph(self) -> str:
        """Verdict, reason, suspects, confidence and advice."""
        end = "" if self.because.endswith("?") else "."
        return " ".join([f"{self.verdict}: {self.because}{end}", *_remarks(self), *self.advice])


def diagnose(history: Iterable[Snapshot], *, optimizer: str, losses: Iterable[float] | None = None) -> Diagnosis:
    """Say what a run's snapshots say about its gradient.

    Args:
        history: samples in order of their steps, such as `monitor.history`; the first one shows what the error was.
        optimizer: the name of its class, `SGD`, `AdamW`.
        losses: the training losses of any steps in order, if you have them; without them the last layer's gradient
            stands for the error. A last one that is NaN or infinite is told as such.

    Raises:
        UsageError: the history is empty, or `optimizer` is no name.

    >>> diagnose([Snapshot(0, ())], optimizer="SGD").because
    'a gradient was seen at none of the watched layers, and two are needed to compare'
    """
    samples = list(history)
    if not samples:
        raise UsageError("there is no sample to judge; let the monitor see at least one optimizer step")
    if not isinstance(optimizer, str):
        raise UsageError(f"optimizer must be the name of a class, {type(optimizer).__name__!r}, say, not an object")
    values = [] if losses is None else [float(loss) for loss in losses]
    evidence = _with_loss(gather(samples, values), values)
    found, falls = judge(evidence, optimizer), waterfall(samples[-1])
    return Diagnosis(
        found.verdict, found.because, evidence,
        suspects=tuple(_suspects(falls, found)),
        advice=tuple(ADVICE[found.verdict](evidence, optimizer, falls)),
        layers=tuple(_states(samples[-1], evidence)),
        confidence=_confidence(evidence, found, optimizer),
        optimizer=optimizer,
    )  # fmt: skip


def _with_loss(evidence: Evidence, losses: Sequence[float]) -> Evidence:
    """A loss is computed after the outputs and before the gradients: it is named before these."""
    forward = evidence.nonfinite and "backward" not in evidence.nonfinite
    if forward or not losses or math.isfinite(losses[-1]):
        return evidence
    return replace(evidence, nonfinite=f"the loss, which is {losses[-1]:g}")


def _confidence(evidence: Evidence, found: Judgement, optimizer: str) -> Record | None:
    known = family(optimizer)
    return RECORDS.get((known, period(evidence), found.verdict)) if known and evidence.chain else None


def _suspects(falls: Waterfall | None, found: Judgement) -> list[Suspect]:
    if falls is None or found.verdict not in ("vanishing", "slow", "cannot tell", "exploding", "dead"):
        return []
    shares = falls.growth() if found.verdict == "exploding" else falls.shares()
    return [Suspect(factor, share) for factor, share in shares]


def _states(snapshot: Snapshot, evidence: Evidence) -> Iterator[LayerState]:
    layers = reached(snapshot)
    last = norm(layers[-1].output_gradient) if layers else None
    for layer in snapshot.layers:
        gradient = norm(layer.output_gradient) / last if last and layer.output_gradient else None
        yield LayerState(
            layer.label, layer.size, _word(layer, gradient, evidence), gradient,
            layer.weight_gain, layer.activation_gain, layer.update_ratio,
        )  # fmt: skip


def _word(layer: LayerSnapshot, gradient: float | None, evidence: Evidence) -> str:
    quantities = (layer.weight, layer.output, layer.output_gradient, layer.weight_gradient)
    if any(stats.nonfinite for stats in quantities if stats):
        return "non-finite"
    if layer.label in evidence.cut_off:
        return "no gradient"
    if layer.label in evidence.frozen:
        return "frozen"
    if gradient is None:
        return ""
    if layer.output_gradient and layer.output_gradient.zero_fraction == 1.0 and evidence.zeros == 1.0:
        return "dead"
    return "weak" if gradient < 0.01 else "strong" if gradient > 100 else "healthy"


def _of_itself(ratio: float) -> str:
    """A change relative to what is changed.

    >>> _of_itself(0.00321), _of_itself(35123.0)
    ('0.0032 of itself', '35,000 times its size')
    """
    return f"{two_digits(ratio)} of itself" if ratio < 1 else f"{float(two_digits(ratio)):,g} times its size"


_WORDS = ("run", "setting", "layer", "size", "state", "change", "verdict")
_HEAD = ("layer", "size", "gradient", "weight gain", "activation gain", "update ratio", "state")


def _cells(layer: LayerState) -> tuple[str, ...]:
    numbers = (layer.gradient, layer.weight_gain, layer.activation_gain, layer.update_ratio)
    return (layer.label, layer.size, *("" if x is None else two_digits(x) for x in numbers), layer.word)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of aligned columns, words to the left and numbers to the right."""
    cells = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ("  ".join(map(_aligned, head, row, widths)).rstrip() for row in cells)


def _aligned(head: str, cell: str, width: int) -> str:
    return cell.ljust(width) if head in _WORDS else cell.rjust(width)


def _remarks(found: Diagnosis) -> Iterator[str]:
    evidence = found.evidence
    if found.verdict in ("vanishing", "slow") and evidence.slope > 0:
        tenth = f"; at {called(evidence.tenth)} a tenth is left" if evidence.tenth else ""
        yield f"Every {two_digits(evidence.half_depth)} layers halve it{tenth}."
    if found.suspects:
        weights = sum(suspect.share for suspect in found.suspects if suspect.factor.kind == "weight")
        largest = ", ".join(map(str, found.suspects[:3]))
        yield f"Most of it is due to {largest}; in all {weights:.0%} to weights, {1 - weights:.0%} to activations."
    if found.verdict in ("vanishing", "slow", "exploding") and evidence.update > -99:
        yield f"A step changes the first weight that trains by {_of_itself(10**evidence.update)}."
    if not evidence.chain and not math.isnan(evidence.signal):
        yield "First and last are meant in the order of the calls; no network like this one was in the calibration."
    if found.confidence is not None:
        outcome = "did not train" if found.verdict in ALARMS else "trained"
        yield f"Of the calibration's test networks with this verdict {found.confidence} {outcome}."
