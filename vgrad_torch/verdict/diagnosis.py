"""diagnose(): from snapshots to a verdict, with its evidence, its causes and what to do next.

No torch here. evidence.py measures, rules.py decides, and cutoffs.py holds the thresholds.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from vgrad_torch.errors import UsageError
from vgrad_torch.records import Snapshot
from vgrad_torch.verdict.advice import advise
from vgrad_torch.verdict.cutoffs import RECORDS, Record
from vgrad_torch.verdict.evidence import Evidence, gather
from vgrad_torch.verdict.labels import called, enumerated, two_digits
from vgrad_torch.verdict.optimizers import family
from vgrad_torch.verdict.rules import ALARMS, Judgement, judge, period
from vgrad_torch.verdict.states import LayerState, legend, states
from vgrad_torch.verdict.tables import WIDTH, layer_table, wrapped_lines
from vgrad_torch.verdict.waterfall import Factor, Waterfall, waterfall


@dataclass(frozen=True, slots=True)
class Suspect:
    """A factor of the waterfall and its share of the decrease (of an exploding gradient: increase), 0 to 1.

    The share is that of the logarithm.
    """

    factor: Factor
    share: float

    def __str__(self) -> str:
        what = "weight of" if self.factor.kind == "weight" else "activation after"
        return f"the {what} {called(self.factor.layer)} (factor {two_digits(self.factor.gain)}, {self.share:.0%})"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A verdict and its reasons; `str()` is a table of the layers, one paragraph, and the advice on lines of its own.

    In the table, more than 30 layers are grouped by block; `table()` has all of them.

    Attributes:
        verdict: one of `rules.VERDICTS`.
        because: the reason, one or more sentences.
        evidence: the numbers that were judged.
        suspects: the factors of the waterfall that weaken the gradient most (of an exploding gradient: increase it).
        advice: what to do next in sentences, the most promising first.
        layers: the layers in order of their first call.
        confidence: how often this verdict was right on the calibration's test networks; None if none of them was like
            this one.
        optimizer: the name that was given.
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
        """Whether the network will probably not train as it is: most networks with this verdict did not."""
        return self.verdict in ALARMS and (self.confidence is None or self.confidence.share > 0.5)

    def __str__(self) -> str:
        rows = self._table(None)
        return "\n".join([*rows, "", textwrap.fill(self.reasons(), WIDTH), textwrap.fill(" ".join(self.advice), WIDTH)])

    def table(self, layers: str = "") -> str:
        """The table of all layers; or of those in a block or module, such as `h.3`, or with this text in their name."""
        return "\n".join(self._table(layers))

    def _table(self, layers: str | None) -> Iterator[str]:
        yield from layer_table(_HEAD, map(_cells, self.layers), layers, _HOW).lines()
        yield from wrapped_lines(legend(layer.word for layer in self.layers))

    def markdown(self) -> str:
        """The same in Markdown, for TensorBoard's text tab."""
        layers = layer_table(_HEAD, map(_cells, self.layers), how=_HOW)
        rows = [_HEAD, ("---",) * len(_HEAD), *layers.cells()]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        reasons = f"**{self.verdict}**{self.reasons().removeprefix(self.verdict)}"
        below = legend(layer.word for layer in self.layers)
        return "\n\n".join([table, *layers.remarks, reasons, " ".join(self.advice), *below]) + "\n"

    def paragraph(self) -> str:
        """Verdict, reason, confidence, causes and, last, the advice."""
        return " ".join([self.reasons(), *self.advice])

    def reasons(self) -> str:
        """The paragraph without the advice."""
        return " ".join([f"{self.verdict}: {self.because}", *_remarks(self)])


def diagnose(
    history: Iterable[Snapshot],
    *,
    optimizer: str,
    losses: Iterable[float] | None = None,
    constant_loss: float = math.nan,
) -> Diagnosis:
    """The verdict on a run, from its snapshots.

    Args:
        history: snapshots in order of their steps, such as `monitor.history`. The first one shows the initial error.
        optimizer: the name of its class, such as `SGD` or `AdamW`.
        losses: the training losses of any steps, in order. Without them the last layer's gradient stands for the error.
            If the last one is NaN or infinite, the verdict says so.
        constant_loss: the loss of the best constant answer, such as the entropy of the labels or the variance of the
            targets. With it the verdict knows whether the network has learnt more than the average.

    Raises:
        UsageError: the history is empty, or `optimizer` is no name.

    >>> diagnose([Snapshot(0, ())], optimizer="SGD").because
    'No watched layer has an output gradient. A comparison needs two.'
    """
    samples = list(history)
    if not samples:
        raise UsageError("there is no sample to judge; let the monitor see at least one optimizer step")
    if not isinstance(optimizer, str):
        raise UsageError(
            f"optimizer must be the name of its class, such as {type(optimizer).__name__!r}, not an object"
        )
    values = [] if losses is None else [float(loss) for loss in losses]
    evidence = _with_loss(gather(samples, values, float(constant_loss)), values)
    judgement, factors = judge(evidence, optimizer), waterfall(samples[-1])
    return Diagnosis(
        judgement.verdict, judgement.because, evidence,
        suspects=tuple(_suspects(factors, judgement)),
        advice=advise(judgement.verdict, evidence, optimizer, factors),
        layers=tuple(
            states(
                samples[-1], frozen=evidence.frozen, cut_off=evidence.cut_off, all_zero=evidence.zeros == 1.0
            )
        ),
        confidence=_confidence(evidence, judgement, optimizer),
        optimizer=optimizer,
    )  # fmt: skip


def _with_loss(evidence: Evidence, losses: Sequence[float]) -> Evidence:
    """The evidence with a loss that is NaN: it comes after the outputs and before the gradients."""
    forward = evidence.nonfinite and "backward" not in evidence.nonfinite
    if forward or not losses or math.isfinite(losses[-1]):
        return evidence
    return replace(evidence, nonfinite=f"the loss, which is {losses[-1]:g}")


def _confidence(evidence: Evidence, judgement: Judgement, optimizer: str) -> Record | None:
    known = family(optimizer)
    return RECORDS.get((known, period(evidence), judgement.verdict)) if known and evidence.chain else None


def _suspects(factors: Waterfall | None, judgement: Judgement) -> list[Suspect]:
    if factors is None or judgement.verdict not in ("vanishing", "slow", "cannot tell", "exploding", "dead"):
        return []
    shares = factors.growth() if judgement.verdict == "exploding" else factors.shares()
    return [Suspect(factor, share) for factor, share in shares]


def _of_their_size(ratio: float) -> str:
    """A change of weights, relative to the weights.

    >>> _of_their_size(0.00321), _of_their_size(35123.0)
    ('0.0032 of their size', '35,000 times their size')
    """
    return f"{two_digits(ratio)} of their size" if ratio < 1 else f"{float(two_digits(ratio)):,g} times their size"


_HEAD = ("layer", "size", "gradient", "weight gain", "activation gain", "update ratio", "state")
_HOW = 'On a diagnosis, `.table()` lists all layers and `.table("{}")` those of one block.'


def _cells(layer: LayerState) -> tuple[str, ...]:
    numbers = (layer.gradient, layer.weight_gain, layer.activation_gain, layer.update_ratio)
    return (layer.label, layer.size, *("" if x is None else two_digits(x) for x in numbers), layer.word)


def _remarks(diagnosis: Diagnosis) -> Iterator[str]:
    """Sentences about the calibration, the decrease over the depth, its causes and the update."""
    evidence, verdict = diagnosis.evidence, diagnosis.verdict
    if diagnosis.confidence is not None:
        yield _success_rate(diagnosis.confidence, alarm=verdict in ALARMS)
    if verdict in ("vanishing", "slow") and evidence.slope > 0:
        tenth = f"; {called(evidence.tenth)} receives less than a tenth" if evidence.tenth else ""
        yield f"On average, each layer passes on {two_digits(10**-evidence.slope)} of the gradient{tenth}."
    if diagnosis.suspects:
        yield from _causes(diagnosis.suspects, "increase" if verdict == "exploding" else "decrease")
    if verdict in ("vanishing", "slow", "exploding") and evidence.update > -99:
        yield f"One step changes the weights of the first trained layer by {_of_their_size(10**evidence.update)}."
    if evidence.folded and verdict != "frozen":
        many = f"{evidence.folded} layers that are not trained are"
        yield f"{'1 layer that is not trained is' if evidence.folded == 1 else many} not shown."
    if not evidence.chain and verdict not in _NOT_COMPARED and not math.isnan(evidence.signal):
        first, last = called(evidence.first), called(evidence.last)
        yield f"In the order of the calls, {first} is the first layer and {last} the last."
        if verdict != "cannot tell":
            yield "No network like this one was calibrated."


_NOT_COMPARED = ("no gradient", "non-finite", "frozen")


def _success_rate(record: Record, *, alarm: bool) -> str:
    """How many of the calibration's test networks with the verdict trained; with an alarm, those are the wrong ones."""
    trained = Record(record.total - record.right, record.total) if alarm else record
    low, high = trained.interval
    return (
        f"In the calibration, {trained.right} of {trained.total} test networks with this verdict trained: "
        f"{trained.share:.0%} (95% interval: {low:.0%} to {high:.0%})."
    )


def _causes(suspects: Sequence[Suspect], change: str) -> Iterator[str]:
    weights = sum(suspect.share for suspect in suspects if suspect.factor.kind == "weight")
    yield f"Weights cause {weights:.0%} of the gradient's {change} and activations {1 - weights:.0%}."
    largest = [str(suspect) for suspect in suspects[:3]]
    causes = "largest causes are" if len(largest) > 1 else "largest cause is"
    yield f"The {causes} {enumerated(largest)}."
