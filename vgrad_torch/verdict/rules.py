"""judge: from evidence to one word, the first of an ordered list of rules that applies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vgrad_torch.verdict.cutoffs import CUTOFFS, DEAD, EARLY, EXPLODING, LEARNING, REACHES, Cutoffs
from vgrad_torch.verdict.evidence import Evidence
from vgrad_torch.verdict.words import called, listed

FAMILIES: Mapping[str, str] = {
    "sgd": "sgd", "asgd": "sgd",
    "adam": "adam", "adamw": "adam", "nadam": "adam", "radam": "adam", "adamax": "adam", "sparseadam": "adam",
    "adagrad": "adam", "adadelta": "adam",
    "rmsprop": "rmsprop",
}  # fmt: skip
"""Optimizers by the name of their class: whose cut-offs they are judged by. SGD steps by the size of the gradient, the
others by a size of their own, so they train through a gradient that is a hundred times weaker."""

ALARMS = frozenset({"no gradient", "non-finite", "exploding", "dead", "vanishing"})
"""Verdicts that say that the network will not train as it is."""

_MARGIN = 1.0  # decades by which a network of another kind than the calibration's must be beyond a line


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict in one word of `VERDICTS`, and the reason as half a sentence."""

    verdict: str
    because: str


Rule = Callable[[Evidence, str], str | None]
"""Gives the reason if the rule applies, for the optimizer's family."""


def family(optimizer: str) -> str | None:
    """The family an optimizer belongs to, by its class's name; None if it was not calibrated.

    >>> family("AdamW"), family("LBFGS")
    ('adam', None)
    """
    return FAMILIES.get(optimizer.lower())


def judge(evidence: Evidence, optimizer: str) -> Judgement:
    """The verdict. An optimizer that was not calibrated is told what holds for all that were, if they agree."""
    known = family(optimizer)
    found = [_judge(evidence, name) for name in ([known] if known else CUTOFFS)]
    if len({judgement.verdict for judgement in found}) == 1:
        note = "" if known else f" ({optimizer} was not calibrated, but all that were agree)"
        return Judgement(found[0].verdict, found[0].because + note)
    words = ", ".join(f"{name} {judgement.verdict}" for name, judgement in zip(CUTOFFS, found, strict=True))
    return Judgement("cannot tell", f"{optimizer} was not calibrated, and the others do not agree: {words}")


def _judge(evidence: Evidence, optimizer: str) -> Judgement:
    for verdict, rule in RULES:
        if because := rule(evidence, optimizer):
            return Judgement(verdict, because)
    raise AssertionError("the last rule always applies")


def period(evidence: Evidence) -> str:
    """`start` or `later`, from step `EARLY` on: then it counts that the error has not fallen."""
    return "start" if evidence.step < EARLY else "later"


def cutoffs(evidence: Evidence, optimizer: str) -> Cutoffs:
    """The lines for a family of optimizers at the time of the evidence."""
    return CUTOFFS[optimizer][period(evidence)]


def learning(evidence: Evidence) -> bool:
    """Whether the error has fallen since the first sample, by the caller's losses or by the last layer's gradient."""
    return evidence.residual < LEARNING or evidence.loss < LEARNING


def arrives(evidence: Evidence) -> bool:
    """Whether there is no need to ask for more: it learns, or the gradient reaches the first layer."""
    return learning(evidence) or evidence.signal > REACHES


def _no_gradient(evidence: Evidence, _: str) -> str | None:
    if not evidence.cut_off:
        return None
    return f"no gradient arrives at {listed(evidence.cut_off)}, cut off from the loss or not used"


def _nonfinite(evidence: Evidence, _: str) -> str | None:
    return f"NaN or infinity stands in {evidence.nonfinite}" if evidence.nonfinite else None


def _all_but_one_frozen(evidence: Evidence, optimizer: str) -> str | None:
    """Where only the last layer trains, there is no way down to judge."""
    return _frozen(evidence, optimizer) if evidence.layers == 1 else None


def _blind(evidence: Evidence, _: str) -> str | None:
    if not evidence.scaled:
        return "output gradients are missing; was watch() given the gradient scaler?"
    if evidence.layers < 2:
        return (
            f"a gradient was seen at {evidence.layers or 'none'} of the watched layers, and two are needed to compare"
        )
    return None


def _exploding(evidence: Evidence, optimizer: str) -> str | None:
    if learning(evidence) or not evidence.signal > EXPLODING[optimizer] + _margin(evidence):
        return None
    return f"the first layer's gradient is {_times(evidence.signal)} times the last one's, {_fallen(evidence)}"


def _dead(evidence: Evidence, _: str) -> str | None:
    elsewhere = evidence.zeros == 1.0 and evidence.silent  # a transformer that answers with one token has zeros, too
    if learning(evidence) or not ((evidence.zeros > DEAD and evidence.chain) or elsewhere):
        return None
    share = f"{evidence.zeros:.0%} of the output gradient of {called(evidence.emptiest) or 'a layer'}"
    return f"{share} is exactly zero, {_fallen(evidence)}"


def _vanishing(evidence: Evidence, optimizer: str) -> str | None:
    lines = cutoffs(evidence, optimizer)
    if arrives(evidence) or not getattr(evidence, lines.measure) < lines.vanishing - _margin(evidence):
        return None
    line = f"below {_times(lines.vanishing)} hardly a network trains with {_NAMES[optimizer]}"
    return f"{_weak(evidence, lines.measure)}; {line}"


def _uncertain(evidence: Evidence, optimizer: str) -> str | None:
    lines = cutoffs(evidence, optimizer)
    value = getattr(evidence, lines.measure)
    if arrives(evidence) or value >= lines.slow:
        return None
    if math.isnan(value) and evidence.shut:
        return f"the weight of {called(evidence.shut)} is zero, so no gradient passes it yet"
    if math.isnan(value):
        return "the first layer's weight, or its gradient, is not there to be compared"
    if evidence.step == evidence.since > 0:
        return (
            f"{_weak(evidence, lines.measure)}, but the only sample is of step {evidence.step}: is the error falling?"
        )
    if not evidence.chain:
        return f"{_weak(evidence, lines.measure)}, but only fully connected layers in a row were calibrated"
    return None


def _slow(evidence: Evidence, optimizer: str) -> str | None:
    lines = cutoffs(evidence, optimizer)
    if arrives(evidence) or not getattr(evidence, lines.measure) < lines.slow:
        return None
    line = f"between {_times(lines.vanishing)} and {_times(lines.slow)} networks train slowly with {_NAMES[optimizer]}"
    return f"{_weak(evidence, lines.measure)}; {line}, and some do not"


def _frozen(evidence: Evidence, _: str) -> str | None:
    return f"not trained: {listed(evidence.frozen)}; nothing is wrong with the others" if evidence.frozen else None


def _healthy(evidence: Evidence, _: str) -> str | None:
    return "the error is falling" if learning(evidence) else "the gradient reaches the first layer"


RULES: Sequence[tuple[str, Rule]] = (
    ("no gradient", _no_gradient),
    ("non-finite", _nonfinite),
    ("frozen", _all_but_one_frozen),
    ("cannot tell", _blind),
    ("exploding", _exploding),
    ("dead", _dead),
    ("vanishing", _vanishing),
    ("cannot tell", _uncertain),
    ("slow", _slow),
    ("frozen", _frozen),
    ("healthy", _healthy),
)
"""In this order."""

VERDICTS = tuple(dict.fromkeys(verdict for verdict, _ in RULES))

_NAMES = {"sgd": "SGD", "adam": "Adam", "rmsprop": "RMSprop"}


def _fallen(evidence: Evidence) -> str:
    if evidence.step > evidence.since:
        return "and the error has not fallen"
    return f"at step {evidence.step}" if evidence.step else "before the first step"


def _margin(evidence: Evidence) -> float:
    sure = evidence.chain and not evidence.step == evidence.since > 0
    return 0.0 if sure else _MARGIN


def _weak(evidence: Evidence, measure: str) -> str:
    """The gradient's way in words, ending with the measure that is compared."""
    left = f"of the gradient at {called(evidence.last)} {_times(evidence.signal)} is left at {called(evidence.first)}"
    asked = f"per unit of error it asks the first weight to change by {_times(evidence.drive)} of itself"
    start = f"{_times(evidence.lost)} left at the start without what small weights take off"
    words = {
        "drive": asked,
        "strength": f"{asked}; the fourth root of that, times {start}, is {_times(evidence.strength)}",
    }
    return f"{left}, {words[measure]}"


def two_digits(value: float) -> str:
    """A number as short as two digits of it can be.

    >>> two_digits(3.24e-4), two_digits(251.3), two_digits(0.0)
    ('0.00032', '250', '0')
    """
    return f"{float(f'{value:.2g}'):g}"


def _times(log: float) -> str:
    """A factor, from its logarithm."""
    return two_digits(10**log)
