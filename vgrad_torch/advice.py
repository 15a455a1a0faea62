"""What to do next, for each verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from vgrad_torch.evidence import Evidence
from vgrad_torch.verdicts import ALARMS, family, judge

Advice = Callable[[Evidence, str], Iterator[str]]
"""Sentences, the most promising first, for the evidence and the optimizer's name."""

_LARGE_UPDATE = -1.0  # log10: a step that changes a weight by more than a tenth of itself


def _vanishing(evidence: Evidence, optimizer: str) -> Iterator[str]:
    yield "Next: initialise for the activation (he for relu, glorot or orthogonal for tanh)."
    yield "Hidden sigmoids lose three quarters of the gradient or more at every layer; take relu."
    if family(optimizer) == "sgd" and judge(evidence, "adam").verdict not in ALARMS:
        yield "Adam, whose steps do not shrink with the gradient, trained networks like this one."
    yield "A deep network needs residual connections or batch normalisation."


def _exploding(evidence: Evidence, _: str) -> Iterator[str]:
    if evidence.update > _LARGE_UPDATE:
        yield "Next: clip the gradient before each step, torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)."
        yield "Or take a tenth of the learning rate."
    else:
        yield "Next: the steps are small enough to train on as it is; clipping would only slow it down."
    yield "Weights of a smaller variance (he for relu, glorot for tanh) remove the cause."


def _dead(_: Evidence, __: str) -> Iterator[str]:
    yield "Next: set the biases to zero or above and take a tenth of the learning rate."
    yield "leaky_relu, elu and gelu pass a gradient on both sides of zero."


def _nonfinite(_: Evidence, __: str) -> Iterator[str]:
    yield "Next: take a tenth of the learning rate or clip the gradient."
    yield "Look for infinity in the data, and for log(0) and division by zero in the loss."


def _no_gradient(_: Evidence, __: str) -> Iterator[str]:
    yield "Next: look for detach(), no_grad() or .data between these layers and the loss, or a branch it does not use."
    yield "If it is meant to be so, set requires_grad_(False)."


def _slow(_: Evidence, __: str) -> Iterator[str]:
    yield "Next: give it more steps or a larger learning rate, and ask again."
    yield "If the error does not fall, do as for a vanishing gradient: another initialiser, another activation."


def _frozen(_: Evidence, __: str) -> Iterator[str]:
    yield "Next: nothing, if you froze them; else set requires_grad_(True) and give them to the optimizer."


def _healthy(_: Evidence, __: str) -> Iterator[str]:
    yield "Next: nothing as to the gradient; if the network does not train, look at learning rate, data and loss."


def _cannot_tell(evidence: Evidence, _: str) -> Iterator[str]:
    if not evidence.scaled:
        yield "Next: pass the scaler, watch(..., scaler=scaler)."
    elif evidence.layers < 2:
        yield "Next: watch more layers, watch(..., layers=...)."
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
