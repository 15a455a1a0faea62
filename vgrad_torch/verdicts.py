"""judge: from evidence to one word, the first of an ordered list of rules that applies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vgrad_torch.cutoffs import CUTOFFS, DEAD, EARLY, EXPLODING, LEARNING, Cutoffs
from vgrad_torch.evidence import Evidence

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
        return found[0]
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
    return evidence.residual < LEARNING or evidence.loss < LEARNING**2


def _no_gradient(evidence: Evidence, _: str) -> str | None:
    if not evidence.cut_off:
        return None
    return f"no gradient arrives at {_names(evidence.cut_off)}, cut off from the loss or not used"


def _nonfinite(evidence: Evidence, _: str) -> str | None:
    return f"NaN or infinity stands in {evidence.nonfinite}" if evidence.nonfinite else None


def _blind(evidence: Evidence, _: str) -> str | None:
    if not evidence.scaled:
        return "output gradients are missing; was watch() given the gradient scaler?"
    if evidence.layers < 2:
        return (
            f"a gradient was seen at {evidence.layers or 'none'} of the watched layers, and two are needed to compare"
        )
    return None


def _exploding(evidence: Evidence, optimizer: str) -> str | None:
    if learning(evidence) or not evidence.signal > EXPLODING[optimizer]:
        return None
    return f"the first layer's gradient is {_times(evidence.signal)} times the last one's, and the error has not fallen"


def _dead(evidence: Evidence, _: str) -> str | None:
    if learning(evidence) or not ((evidence.zeros > DEAD and evidence.chain) or evidence.zeros == 1.0):
        return None  # elsewhere zeros have other reasons: a transformer that answers with one of its tokens, say
    return f"{evidence.zeros:.0%} of a layer's output gradient is exactly zero, and the error has not fallen"


def _vanishing(evidence: Evidence, optimizer: str) -> str | None:
    lines = cutoffs(evidence, optimizer)
    if learning(evidence) or not getattr(evidence, lines.measure) < lines.vanishing - _margin(evidence):
        return None
    return f"{_weak(evidence)}; below {_line(lines, lines.vanishing)} hardly a network trains with {_NAMES[optimizer]}"


def _uncertain(evidence: Evidence, optimizer: str) -> str | None:
    lines = cutoffs(evidence, optimizer)
    value = getattr(evidence, lines.measure)
    if learning(evidence) or value >= lines.slow:
        return None
    if math.isnan(value):
        return "the first layer's weight, or its gradient, is not there to be compared"
    if evidence.step == evidence.since > 0:
        return f"{_weak(evidence)}, but the only sample is of step {evidence.step}: is the error falling?"
    if not evidence.chain:
        return f"{_weak(evidence)}, but the lines were set on fully connected layers in a row, which these are not"
    return None


def _slow(evidence: Evidence, optimizer: str) -> str | None:
    lines = cutoffs(evidence, optimizer)
    if learning(evidence) or not getattr(evidence, lines.measure) < lines.slow:
        return None
    return f"{_weak(evidence)}; with {_NAMES[optimizer]} some such networks train, slowly, and some do not"


def _frozen(evidence: Evidence, _: str) -> str | None:
    return f"{_names(evidence.frozen)} do not train; the others are healthy" if evidence.frozen else None


def _healthy(evidence: Evidence, _: str) -> str | None:
    return "the error is falling" if learning(evidence) else "the gradient reaches the first layer"


RULES: Sequence[tuple[str, Rule]] = (
    ("no gradient", _no_gradient),
    ("non-finite", _nonfinite),
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


def _margin(evidence: Evidence) -> float:
    sure = evidence.chain and not evidence.step == evidence.since > 0
    return 0.0 if sure else _MARGIN


def _weak(evidence: Evidence) -> str:
    """The two measures in words."""
    return (
        f"of the gradient at {evidence.last} {_times(evidence.signal)} is left at {evidence.first}"
        f" (and per unit of error it asks {evidence.first}'s weight to change by {_times(evidence.drive)} of itself)"
    )


def _line(lines: Cutoffs, value: float) -> str:
    return f"{_times(value)} of {'the latter' if lines.measure == 'drive' else 'the former'}"


def _times(log: float) -> str:
    """A factor from its logarithm, two digits.

    >>> _times(-3.5), _times(2), _times(-math.inf)
    ('0.00032', '100', '0')
    """
    return f"{10**log:.2g}" if log > -300 else "0"


def _names(labels: Sequence[str]) -> str:
    """The labels, of many the first three.

    >>> _names(["a", "b"]), _names(["a", "b", "c", "d"])
    ('a, b', 'a, b, c and 1 more')
    """
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(labels[:3]) + more
