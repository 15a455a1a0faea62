"""What to do next, for each verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from vgrad_torch.verdict.cutoffs import SMALL_STEP
from vgrad_torch.verdict.evidence import Evidence
from vgrad_torch.verdict.labels import two_digits
from vgrad_torch.verdict.optimizers import family
from vgrad_torch.verdict.outcome import LEARNING
from vgrad_torch.verdict.rules import ALARMS, judge
from vgrad_torch.verdict.waterfall import Factor, Waterfall

_LARGE_UPDATE = -1.0  # log10: a step that changes a weight by more than a tenth of its size
_SIGMOID = 0.3  # a sigmoid's slope is at most 0.25
_RELU = 0.6  # an activation above it keeps about as much as relu (0.71), or more
_DEEP = 8  # layers

_USUAL_STEP = 1e-3  # change of the weights in a step, relative to their size
_LARGER = "use larger initial weights (he for relu, glorot or orthogonal for tanh)."
_LOOK_FOR_NAN = "look for NaN and infinity in the data, and for log(0) and division by zero in the loss."

_SAME_FOR_ALL: Mapping[str, Sequence[str]] = {
    "no gradient": (
        "Next: look for detach(), no_grad() or .data between the layer and the loss, or for a branch that the loss "
        "does not use.",
        "If this is intended, set requires_grad_(False).",
    ),
    "steps too large": (
        "Next: use a hundredth of the learning rate.",
        "If that is not enough, clip the gradient: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).",
    ),
    "exploding through time": (
        "Next: clip the gradient before each step: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).",
        "Begin with orthogonal recurrent weights (torch.nn.init.orthogonal_).",
        "Or cut the sequences into shorter pieces (truncated backpropagation: detach the state between them).",
    ),
    "slow": (
        "Next: train for more steps or with a larger learning rate, and ask again.",
        "If the error does not fall, use another initializer or another activation, as for a vanishing gradient.",
    ),
    "not learning": (
        "Next: see whether the network can learn one small batch by heart: train on the same 16 samples, 200 steps.",
        "If it cannot, try a tenth and ten times the learning rate, and look at the loss, the labels and the range of "
        "the inputs. If it can, look at the data: labels, shuffling, noise.",
    ),
    "frozen": (
        "Next: nothing, if this is intended. If not, set requires_grad_(True) and pass the weights to the optimizer.",
    ),
    "healthy": (
        "Next: the gradient needs no change. If the network does not learn, check learning rate, data and loss.",
    ),
}
"""Verdict -> its advice, where it depends on nothing else."""


def advise(verdict: str, evidence: Evidence, optimizer: str, factors: Waterfall | None) -> tuple[str, ...]:
    """Sentences, the most promising first. The first one begins with `Next:`."""
    match verdict:
        case "vanishing":
            return tuple(_vanishing(evidence, optimizer, factors))
        case "exploding":
            return tuple(_exploding(evidence, factors))
        case "vanishing through time":
            return tuple(_through_time(evidence))
        case "dead":
            return tuple(_dead(evidence))
        case "non-finite":
            return tuple(_nonfinite(evidence))
        case "not learning" if 0 < evidence.largest_step < SMALL_STEP:
            return (_with_small_steps(evidence.largest_step),)
        case "healthy" if evidence.outcome.word == LEARNING:
            return ("Next: go on training.",)
        case "cannot tell":
            return (_cannot_tell(evidence),)
    return tuple(_SAME_FOR_ALL[verdict])


def _with_small_steps(step: float) -> str:
    return (
        f"Next: use a larger learning rate, {two_digits(_USUAL_STEP / step)} times the present one: a step changes the "
        f"weights by at most {two_digits(step)} of their size, and {_USUAL_STEP:g} is usual."
    )


def _vanishing(evidence: Evidence, optimizer: str, factors: Waterfall | None) -> Iterator[str]:
    first, *others = _against_weakening(evidence, factors)
    yield f"Next: {first}"
    yield from (sentence[0].upper() + sentence[1:] for sentence in others)
    if evidence.chain and family(optimizer) == "sgd" and judge(evidence, "adam").verdict not in ALARMS:
        yield "Adam trained networks like this one, because its steps do not shrink with the gradient."


def _against_weakening(evidence: Evidence, factors: Waterfall | None) -> Iterator[str]:
    """Changes to the factors that weaken the gradient most; at least one sentence."""
    shares = factors.shares() if factors else []
    gain = _typical_activation(factors)
    if gain < _SIGMOID:
        kept = f"the present one keeps {two_digits(gain)} of the gradient at each layer."
        yield f"use another activation, for example relu with he weights; {kept}"
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


def _typical_activation(factors: Waterfall | None) -> float:
    gains = [factor.gain for factor in factors.factors if factor.kind == "activation"] if factors else []
    return median(gains) if gains else math.nan


def _of_weights(shares: Sequence[tuple[Factor, float]]) -> float:
    return sum(share for factor, share in shares if factor.kind == "weight")


def _exploding(evidence: Evidence, factors: Waterfall | None) -> Iterator[str]:
    if evidence.update > _LARGE_UPDATE:
        yield "Next: clip the gradient before each step: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)."
        yield "Or use a tenth of the learning rate."
    else:
        yield "Next: continue training. The steps are small enough; clipping would only make the training slower."
    growth = factors.growth() if factors else []
    if not growth or _of_weights(growth) >= 0.5:
        yield "Initial weights of a smaller variance (he for relu, glorot for tanh) remove the cause."
    else:
        yield "The gradient grows between layers, as in deep networks with normalisation and no residual connections."


def _through_time(evidence: Evidence) -> Iterator[str]:
    kind = evidence.time.kind if evidence.time else ""
    if kind.startswith("LSTM"):
        yield "Next: begin with a forget-gate bias of 1 to 3: rnn.bias_hh_l0.data[hidden : 2 * hidden] = 3."
    elif kind.startswith("GRU"):
        yield "Next: begin with an update-gate bias of 1 to 3: rnn.bias_hh_l0.data[hidden : 2 * hidden] = 3."
    else:
        yield "Next: use nn.LSTM or nn.GRU in place of nn.RNN, and begin the LSTM with a forget-gate bias of 1 to 3."
    yield "Begin with orthogonal recurrent weights: torch.nn.init.orthogonal_(rnn.weight_hh_l0)."
    yield "Or shorten the gradient's path: shorter sequences, a loss at more time steps, or attention over all of them."


def _dead(evidence: Evidence) -> Iterator[str]:
    rate = " and use a tenth of the learning rate" if evidence.step > 0 else ""
    yield f"Next: set the biases to zero or above{rate}."
    yield "Or use leaky_relu, elu or gelu, which pass a gradient on both sides of zero."
    yield "Check the weights too: a weight that is zero everywhere has the same effect."


def _nonfinite(evidence: Evidence) -> Iterator[str]:
    if evidence.step > 0:
        yield "Next: use a tenth of the learning rate or clip the gradient."
        yield f"L{_LOOK_FOR_NAN[1:]}"
    else:
        yield f"Next: {_LOOK_FOR_NAN}"
        yield "If the outputs overflow, use smaller initial weights (he for relu, glorot for tanh)."


def _cannot_tell(evidence: Evidence) -> str:
    if not evidence.scaled:
        return "Next: pass the scaler: watch(..., scaler=scaler)."
    if evidence.layers < 2:
        return "Next: watch more layers: layers=... in Python, --layers on the command line."
    if evidence.step == evidence.since:
        return "Next: train for more steps and ask again."
    return "Next: check whether the loss falls. If it does not, try another initializer or activation."
