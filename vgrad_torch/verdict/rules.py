"""The rules: each verdict has one, and `judge` gives the verdict of the first rule that applies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vgrad_torch.verdict import outcome
from vgrad_torch.verdict.cutoffs import (
    CUTOFFS,
    DEAD,
    EARLY,
    EXPLODING,
    GROWTH,
    LARGE_STEP,
    LEARNING,
    LONG_SEQUENCE,
    OTHER_NETWORKS,
    REACHES,
    SHORT,
    SHORT_UNPROVEN,
    Cutoffs,
)
from vgrad_torch.verdict.evidence import Evidence
from vgrad_torch.verdict.labels import called, enumerated, listed, power_of_ten, two_digits
from vgrad_torch.verdict.optimizers import NAMES, family

ALARMS = frozenset(
    {
        "no gradient", "non-finite", "steps too large", "exploding", "dead", "vanishing", "vanishing through time",
        "exploding through time", "not learning",
    }
)  # fmt: skip
"""Verdicts that say that the network will not train as it is."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, one of `VERDICTS`, and the reason in one or more sentences."""

    verdict: str
    because: str


Rule = Callable[[Evidence, str], str | None]
"""The reason if the rule applies, else None; for an optimizer family."""


def judge(evidence: Evidence, optimizer: str) -> Judgement:
    """The verdict. An optimizer that was not calibrated gets the verdict of all calibrated ones, if they agree."""
    known = family(optimizer)
    judgements = [_judge(evidence, name) for name in ([known] if known else CUTOFFS)]
    first = judgements[0]
    if len({judgement.verdict for judgement in judgements}) == 1:
        calibrated = enumerated([NAMES[name] for name in CUTOFFS])
        note = "" if known else f" {optimizer} was not calibrated, but the verdict is the same for {calibrated}."
        return Judgement(first.verdict, first.because + note)
    verdicts = ", ".join(f"{NAMES[name]} {result.verdict}" for name, result in zip(CUTOFFS, judgements, strict=True))
    return Judgement(
        "cannot tell",
        f"{optimizer} was not calibrated, and the calibrated optimizers have different verdicts: {verdicts}.",
    )


def _judge(evidence: Evidence, optimizer: str) -> Judgement:
    for verdict, rule in RULES:
        if because := rule(evidence, optimizer):
            return Judgement(verdict, because)
    raise AssertionError("the last rule always applies")


def period(evidence: Evidence) -> str:
    """`start`, or `later` from step `EARLY` on. From then on it matters that the error has not fallen."""
    return "start" if evidence.step < EARLY else "later"


def cutoffs(evidence: Evidence, optimizer: str) -> Cutoffs:
    """The thresholds for a family of optimizers at the time of the evidence."""
    return CUTOFFS[optimizer][period(evidence)]


def learning(evidence: Evidence) -> bool:
    """Whether the network learns, by its losses; if they are not known, by the last layer's gradient."""
    if evidence.outcome.word == outcome.UNKNOWN:
        return evidence.residual < LEARNING
    return evidence.outcome.word == outcome.LEARNING


def arrives(evidence: Evidence) -> bool:
    """Whether no other rule is needed: the network learns, or the gradient reaches the first layer."""
    return learning(evidence) or evidence.signal > REACHES


def _no_gradient(evidence: Evidence, _: str) -> str | None:
    if not evidence.cut_off:
        return None
    receives, them = ("receives", "it") if len(evidence.cut_off) == 1 else ("receive", "them")
    return f"{listed(evidence.cut_off)} {receives} no gradient. The loss does not depend on {them}."


def _nonfinite(evidence: Evidence, _: str) -> str | None:
    return f"NaN or infinity was found in {evidence.nonfinite}." if evidence.nonfinite else None


def _all_but_one_frozen(evidence: Evidence, optimizer: str) -> str | None:
    """If only one layer trains, there is nothing between layers to judge."""
    if evidence.outcome.word == outcome.NOT_LEARNING:
        return None
    if evidence.layers == 1 and evidence.folded:
        others = "1 other layer is" if evidence.folded == 1 else f"{evidence.folded} other layers are"
        return f"Only {called(evidence.last)} is trained; {others} not."
    return _frozen(evidence, optimizer) if evidence.layers == 1 else None


def _not_measured(evidence: Evidence, _: str) -> str | None:
    if evidence.outcome.word in (outcome.LEARNING, outcome.NOT_LEARNING):
        return None
    if not evidence.scaled:
        return "The output gradients are missing. Was the gradient scaler passed to watch()?"
    if evidence.layers < 2:
        which = "Only one watched layer" if evidence.layers == 1 else "No watched layer"
        return f"{which} has an output gradient. A comparison needs two."
    return None


def _steps_too_large(evidence: Evidence, _: str) -> str | None:
    if learning(evidence) or not (evidence.largest_step > LARGE_STEP and evidence.step > evidence.since):
        return None
    times = two_digits(evidence.largest_step)
    return (
        f"A step changed the weights of the median layer by {times} of their size, most in "
        f"{called(evidence.largest_step_layer)}; up to {LARGE_STEP:g} is usual. {_when(evidence)}"
    )


def _stuck(evidence: Evidence) -> bool:
    """Whether the network does not learn, or has stopped learning."""
    return not learning(evidence) or evidence.outcome.stuck


def _through_time(evidence: Evidence, _: str) -> str | None:
    layer = evidence.time
    if layer is None or layer.time is None or layer.time.hundredth is None or not _stuck(evidence):
        return None
    time = layer.time
    share = SHORT_UNPROVEN if evidence.outcome.word == outcome.UNKNOWN else SHORT
    if time.steps < LONG_SEQUENCE or layer.time.hundredth > share * time.steps:
        return None
    return (
        f"In {called(layer.label)}, a tenth of the gradient is left after {time.tenth} steps back through time and a "
        f"hundredth after {time.hundredth}, of {time.steps}. The layer learns almost nothing from earlier steps. "
        f"{_when(evidence)}"
    )


def _growing_through_time(evidence: Evidence, _: str) -> str | None:
    layer = evidence.time
    if layer is None or layer.time is None or not layer.time.growth > GROWTH or not _stuck(evidence):
        return None
    return (
        f"In {called(layer.label)}, the gradient grows {two_digits(layer.time.growth)} times on its way back through "
        f"{layer.time.steps} time steps. {_when(evidence)}"
    )


def _exploding(evidence: Evidence, optimizer: str) -> str | None:
    limit = EXPLODING[optimizer] + _margin(evidence)
    if learning(evidence) or not evidence.signal > limit:
        return None
    first, last = called(evidence.first), called(evidence.last)
    times = f"{first} receives {power_of_ten(evidence.signal)} times the gradient that {last} receives"
    return f"{times}; the limit for {NAMES[optimizer]} is {power_of_ten(limit)}. {_when(evidence)}"


def _dead(evidence: Evidence, _: str) -> str | None:
    elsewhere = evidence.zeros == 1.0 and evidence.silent  # a transformer that answers with one token has zeros, too
    learns = learning(evidence) and not (elsewhere and evidence.outcome.stuck)
    if learns or not ((evidence.zeros > DEAD and evidence.chain) or elsewhere):
        return None
    layer = called(evidence.emptiest) or "a layer"
    return f"{evidence.zeros:.0%} of the output gradient of {layer} is exactly zero. {_when(evidence)}"


def _vanishing(evidence: Evidence, optimizer: str) -> str | None:
    limits = cutoffs(evidence, optimizer)
    if arrives(evidence) or not getattr(evidence, limits.measure) < limits.vanishing - _margin(evidence):
        return None
    below = f"below {power_of_ten(limits.vanishing)}, networks rarely train with {NAMES[optimizer]}"
    return f"{_compared(evidence, limits.measure)}; {below}."


def _not_learning(evidence: Evidence, _: str) -> str | None:
    return str(evidence.outcome) if evidence.outcome.word == outcome.NOT_LEARNING else None


def _still_zero(evidence: Evidence, _: str) -> str | None:
    if evidence.shut is None or arrives(evidence):
        return None
    return f"The weight of {called(evidence.shut)} is still zero or nearly zero, so almost no gradient passes it yet."


def _uncertain(evidence: Evidence, optimizer: str) -> str | None:
    limits = cutoffs(evidence, optimizer)
    value = getattr(evidence, limits.measure)
    if arrives(evidence) or value >= limits.slow:
        return None
    if math.isnan(value):
        return "The first layer's weight or its gradient was not measured, so the layers cannot be compared."
    if evidence.step == evidence.since > 0:
        return (
            f"{_compared(evidence, limits.measure)}. The only sample is from step {evidence.step}, so it is unknown "
            "whether the error falls."
        )
    if not evidence.chain:
        return (
            f"{_compared(evidence, limits.measure)}. This would be too little for fully connected layers in a row; "
            "other networks were not calibrated."
        )
    return None


def _slow(evidence: Evidence, optimizer: str) -> str | None:
    limits = cutoffs(evidence, optimizer)
    if arrives(evidence) or not getattr(evidence, limits.measure) < limits.slow:
        return None
    return (
        f"{_compared(evidence, limits.measure)}; between {power_of_ten(limits.vanishing)} and "
        f"{power_of_ten(limits.slow)}, networks train slowly with {NAMES[optimizer]}, and some do not train."
    )


def _frozen(evidence: Evidence, _: str) -> str | None:
    if not evidence.frozen:
        return None
    return f"The optimizer does not train {listed(evidence.frozen)}. Nothing is wrong with the other layers."


def _healthy(evidence: Evidence, _: str) -> str | None:
    if evidence.outcome.word == outcome.LEARNING:
        return str(evidence.outcome)
    if learning(evidence):
        return "The error at the output is falling."
    early = " It is too early to say whether the loss falls." if evidence.outcome.word == outcome.TOO_EARLY else ""
    return f"The gradient reaches the first layer.{early}"


RULES: Sequence[tuple[str, Rule]] = (
    ("no gradient", _no_gradient),
    ("non-finite", _nonfinite),
    ("frozen", _all_but_one_frozen),
    ("cannot tell", _not_measured),
    ("steps too large", _steps_too_large),
    ("exploding through time", _growing_through_time),
    ("exploding", _exploding),
    ("dead", _dead),
    ("vanishing through time", _through_time),
    ("vanishing", _vanishing),
    ("not learning", _not_learning),
    ("cannot tell", _still_zero),
    ("cannot tell", _uncertain),
    ("slow", _slow),
    ("frozen", _frozen),
    ("healthy", _healthy),
)
"""Verdict and rule; the first rule that applies decides."""

VERDICTS = tuple(dict.fromkeys(verdict for verdict, _ in RULES))


def _when(evidence: Evidence) -> str:
    """What is known of the error at the time of the evidence."""
    if evidence.outcome.word in (outcome.LEARNING, outcome.NOT_LEARNING):
        return str(evidence.outcome)
    if evidence.step > evidence.since:
        return "The error has not fallen."
    return f"This is the state at step {evidence.step}." if evidence.step else "This is the state before training."


def _margin(evidence: Evidence) -> float:
    """Safety margin in decades: 0 for networks like the calibrated ones, else `OTHER_NETWORKS`."""
    sure = evidence.chain and not evidence.step == evidence.since > 0
    return 0.0 if sure else OTHER_NETWORKS


def _compared(evidence: Evidence, measure: str) -> str:
    """How much of the gradient the first layer receives, and the number that is compared with the threshold.

    Without a full stop.
    """
    first, last, signal = called(evidence.first), called(evidence.last), power_of_ten(evidence.signal)
    received = f"{first} receives {signal} of the gradient that {last} receives"
    trained = "the first trained layer" if evidence.first in evidence.frozen else first
    change = f"Relative to the error, {trained}'s weights would change by {power_of_ten(evidence.drive)} of their size"
    if measure == "drive":
        return f"{received}. {change}"
    when = f"at step {evidence.since}, corrected for small weights"
    start = f"{power_of_ten(evidence.lost)} (what {first} received {when})"
    return f"{received}. {change}. The fourth root of this number, times {start}, is {power_of_ten(evidence.strength)}"
