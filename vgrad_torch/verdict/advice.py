"""What to do next, for each verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from statistics import median

from vgrad_torch.verdict.evidence import Evidence
from vgrad_torch.verdict.rules import ALARMS, family, judge, two_digits
from vgrad_torch.verdict.waterfall import Factor, Waterfall

Advice = Callable[[Evidence, str, Waterfall | None], Iterator[str]]
"""Sentences, the most promising first, from the evidence, the optimizer's name and the waterfall."""

_LARGE_UPDATE = -1.0  # log10: a step that changes a weight by more than a tenth of itself
_SIGMOID = 0.3  # a sigmoid's slope is at most 0.25
_RELU = 0.6  # an activation above it keeps about as much as relu (0.71), or more
_DEEP = 8  # layers


def _vanishing(evidence: Evidence, optimizer: str, falls: Waterfall | None) -> Iterator[str]:
    first, *others = _against_weakening(evidence, falls)
    yield f"Next: {first}"
    yield from (sentence[0].upper() + sentence[1:] for sentence in others)
    if evidence.chain and family(optimizer) == "sgd" and judge(evidence, "adam").verdict not in ALARMS:
        yield "Adam trained networks like this one, because its steps do not shrink with the gradient."


_LARGER = "use larger initial weights (he for relu, glorot or orthogonal for tanh)."


def _against_weakening(evidence: Evidence, falls: Waterfall | None) -> Iterator[str]:
    """Fixes for the factors that weaken the gradient most; at least one sentence."""
    shares = falls.shares() if falls else []
    gain = _typical_activation(falls)
    if gain < _SIGMOID:
        kept = f"The present one keeps {two_digits(gain)} of the gradient at each layer."
        yield f"use another activation, for example relu with he weights. {kept}"
    elif gain < _RELU:
        kept = f"They keep only {two_digits(gain)} of the gradient, so many of their units are off or saturated."
        yield f"put normalisation before the activations. {kept}"
    if _of_weights(shares) >= 0.5:
        yield _LARGER
    elif gain >= _RELU:
        yield "add residual connections or batch normalisation. Weights and activation already fit each other."
        return
    elif not shares:
        yield "check the activation and the initial weights (he for relu, glorot or orthogonal for tanh)."
    if evidence.chain and evidence.layers > _DEEP:
        yield f"residual connections or batch normalisation also help in a chain of {evidence.layers} layers."


def _typical_activation(falls: Waterfall | None) -> float:
    gains = [factor.gain for factor in falls.factors if factor.kind == "activation"] if falls else []
    return median(gains) if gains else math.nan


def _of_weights(shares: list[tuple[Factor, float]]) -> float:
    return sum(share for factor, share in shares if factor.kind == "weight")


def _exploding(evidence: Evidence, _: str, falls: Waterfall | None) -> Iterator[str]:
    if evidence.update > _LARGE_UPDATE:
        yield "Next: clip the gradient before each step: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)."
        yield "Or use a tenth of the learning rate."
    else:
        yield "Next: go on training. The steps are small enough; clipping would only make them slower."
    growth = falls.growth() if falls else []
    if not growth or _of_weights(growth) >= 0.5:
        yield "Initial weights of a smaller variance (he for relu, glorot for tanh) remove the cause."
    else:
        yield "The gradient grows between layers, as in deep networks with normalisation and no residual connections."


def _dead(evidence: Evidence, _: str, __: Waterfall | None) -> Iterator[str]:
    rate = " and use a tenth of the learning rate" if evidence.step > 0 else ""
    yield f"Next: set the biases to zero or above{rate}. A weight that is zero everywhere has the same effect."
    yield "Or use leaky_relu, elu or gelu, which pass a gradient on both sides of zero."


def _nonfinite(evidence: Evidence, _: str, __: Waterfall | None) -> Iterator[str]:
    look = "ook for NaN and infinity in the data, and for log(0) and division by zero in the loss."
    if evidence.step > 0:
        yield f"Next: use a tenth of the learning rate or clip the gradient. L{look}"
        return
    yield f"Next: l{look}"
    yield "If the outputs overflow, use smaller initial weights (he for relu, glorot for tanh)."


def _no_gradient(_: Evidence, __: str, ___: Waterfall | None) -> Iterator[str]:
    yield "Next: look for detach(), no_grad() or .data between the layer and the loss, or a branch that is not used."
    yield "If this is intended, set requires_grad_(False)."


def _slow(_: Evidence, __: str, ___: Waterfall | None) -> Iterator[str]:
    yield "Next: train for more steps or with a larger learning rate, and ask again."
    yield "If the error does not fall, use another initializer or another activation, as for a vanishing gradient."


def _frozen(_: Evidence, __: str, ___: Waterfall | None) -> Iterator[str]:
    yield "Next: nothing, if this is intended. If not, set requires_grad_(True) and pass the weights to the optimizer."


def _healthy(_: Evidence, __: str, ___: Waterfall | None) -> Iterator[str]:
    yield "Next: the gradient needs no change. If the network does not learn, check learning rate, data and loss."


def _cannot_tell(evidence: Evidence, _: str, __: Waterfall | None) -> Iterator[str]:
    if not evidence.scaled:
        yield "Next: pass the scaler: watch(..., scaler=scaler)."
    elif evidence.layers < 2:
        yield "Next: watch more layers: layers=... in Python, --layers on the command line."
    elif evidence.step == evidence.since:
        yield "Next: train for more steps and ask again."
    else:
        yield "Next: check whether the loss falls. If it does not, try another initializer or activation."


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
"""Verdict -> its advice."""
