"""What to do next, for each verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from statistics import median

from vgrad_torch.verdict.evidence import Evidence
from vgrad_torch.verdict.rules import ALARMS, family, judge, two_digits
from vgrad_torch.verdict.waterfall import Factor, Waterfall

Advice = Callable[[Evidence, str, Waterfall | None], Iterator[str]]
"""Sentences, the most promising first, for the evidence, the optimizer's name and the way back."""

_LARGE_UPDATE = -1.0  # log10: a step that changes a weight by more than a tenth of itself
_SIGMOID = 0.3  # a sigmoid's slope is at most 0.25
_RELU = 0.6  # above it an activation does what relu does, which leaves 0.71, or less harm
_DEEP = 8  # layers


def _vanishing(evidence: Evidence, optimizer: str, falls: Waterfall | None) -> Iterator[str]:
    first, *others = _against_weakening(evidence, falls)
    yield f"Next: {first}"
    yield from (sentence[0].upper() + sentence[1:] for sentence in others)
    if evidence.chain and family(optimizer) == "sgd" and judge(evidence, "adam").verdict not in ALARMS:
        yield "Adam, whose steps do not shrink with the gradient, trained networks like this one."


_LARGER = "initialise with larger weights (he for relu, glorot or orthogonal for tanh)."


def _against_weakening(evidence: Evidence, falls: Waterfall | None) -> Iterator[str]:
    """What is against those who took most of it; at least one sentence."""
    shares = falls.shares() if falls else []
    gain = _typical_activation(falls)
    if gain < _SIGMOID:
        yield f"take another activation, relu with he weights, say; this one leaves {two_digits(gain)} at each layer."
    elif gain < _RELU:
        yield f"the activations, which leave {two_digits(gain)}, are off or saturated: put normalisation before them."
    if _of_weights(shares) >= 0.5:
        yield _LARGER
    elif gain >= _RELU:
        yield "residual connections or batch normalisation; weights and activation are made for each other already."
        return
    elif not shares:
        yield "look at activation and initial weights (he for relu, glorot or orthogonal for tanh)."
    if evidence.chain and evidence.layers > _DEEP:
        yield f"a chain of {evidence.layers} layers is helped by residual connections or batch normalisation, too."


def _typical_activation(falls: Waterfall | None) -> float:
    gains = [factor.gain for factor in falls.factors if factor.kind == "activation"] if falls else []
    return median(gains) if gains else math.nan


def _of_weights(shares: list[tuple[Factor, float]]) -> float:
    return sum(share for factor, share in shares if factor.kind == "weight")


def _exploding(evidence: Evidence, _: str, falls: Waterfall | None) -> Iterator[str]:
    if evidence.update > _LARGE_UPDATE:
        yield "Next: clip the gradient before each step, torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)."
        yield "Or take a tenth of the learning rate."
    else:
        yield "Next: the steps are small enough to train on as it is; clipping would only slow it down."
    growth = falls.growth() if falls else []
    if not growth or _of_weights(growth) >= 0.5:
        yield "Weights of a smaller variance (he for relu, glorot for tanh) remove the cause."
    else:
        yield "It grows between the layers: normalisation without residual connections around it does that when deep."


def _dead(evidence: Evidence, _: str, __: Waterfall | None) -> Iterator[str]:
    rate = " and take a tenth of the learning rate" if evidence.step > 0 else ""
    yield f"Next: set the biases to zero or above{rate}; a weight that is zero everywhere lets nothing through either."
    yield "leaky_relu, elu and gelu pass a gradient on both sides of zero."


def _nonfinite(evidence: Evidence, _: str, __: Waterfall | None) -> Iterator[str]:
    look = "look for NaN and infinity in the data, and for log(0) and division by zero in the loss."
    if evidence.step > 0:
        yield f"Next: take a tenth of the learning rate or clip the gradient; {look}"
        return
    yield f"Next: {look}"
    yield "Or the weights are so large that the signal overflows: initialise for the activation (he for relu)."


def _no_gradient(_: Evidence, __: str, ___: Waterfall | None) -> Iterator[str]:
    yield "Next: look for detach(), no_grad() or .data between these layers and the loss, or a branch it does not use."
    yield "If it is meant to be so, set requires_grad_(False)."


def _slow(_: Evidence, __: str, ___: Waterfall | None) -> Iterator[str]:
    yield "Next: give it more steps or a larger learning rate, and ask again."
    yield "If the error does not fall, do as for a vanishing gradient: another initialiser, another activation."


def _frozen(_: Evidence, __: str, ___: Waterfall | None) -> Iterator[str]:
    yield "Next: nothing, if you froze them; else set requires_grad_(True) and give them to the optimizer."


def _healthy(_: Evidence, __: str, ___: Waterfall | None) -> Iterator[str]:
    yield "Next: nothing as to the gradient; if the network does not train, look at learning rate, data and loss."


def _cannot_tell(evidence: Evidence, _: str, __: Waterfall | None) -> Iterator[str]:
    if not evidence.scaled:
        yield "Next: pass the scaler, watch(..., scaler=scaler)."
    elif evidence.layers < 2:
        yield "Next: look at more layers: layers=... in Python, --layers on the command line."
    elif evidence.step == evidence.since:
        yield "Next: let it take more steps and ask again."
    else:
        yield "Next: see whether the loss falls; if it does not, compare another initialiser or activation."


ADVICE: Mapping[str, Advice] = {
    "vanishing": _vanishing,
    "exploding": _exploding,
    "dead": _dead,
    "non-finite": _nonfinite,
    "no gradient": _no_gradient,
    "slow": _slow,
    "frozen": _frozen,
    "healthy": _healthy,
    "cannot tell": _cannot_tell,
}
"""By verdict."""
