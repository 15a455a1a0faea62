"""Mean-field propagation through a random network: the signal forward and the gradient backward, per sample.

phi is the activation, u a pre-activation, delta the gradient of a sample's own loss with respect to u.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vgrad_torch.errors import UsageError
from vgrad_torch.theory.activations import ACTIVATIONS, Activation, Floats, cosine_map, gaussian_rms, rms

Labels = npt.NDArray[np.int64]

_DRAWS = 4096  # draws of the logits, shared among the samples; the error is .3 %


class Inputs(NamedTuple):
    """What is known about the inputs. Arrays are [samples], `correlations` is [samples, samples]."""

    squares: Floats  # mean(x**2) of each sample
    correlations: Floats | None = None  # between samples; None if unknown
    labels: Labels | None = None


class Stage(NamedTuple):
    """A layer in the forward pass. Arrays are [samples]."""

    fan_in: int
    fan_out: int
    std: float  # standard deviation of a weight
    input_rms: Floats
    scale: Floats  # standard deviation of the pre-activation
    slope: Floats  # RMS of the activation's derivative at the pre-activation
    correlations: Floats | None  # of the layer's input between samples; [samples, samples]


class Gradient(NamedTuple):
    """A layer in the backward pass."""

    output: Floats  # RMS of delta, [samples]
    weight: float  # RMS of dL/dW; if correlations are unknown, for a batch of one


def forward(
    fans: Sequence[tuple[int, int]], stds: Sequence[float], phi: Activation, bias: float, inputs: Inputs
) -> Iterator[Stage]:
    """Yield the layers, first layer first: q_l = fan_in var(w) E phi(u_(l-1))**2, where u ~ N(bias, q)."""
    input_rms, correlations = np.sqrt(inputs.squares), inputs.correlations
    for number, ((fan_in, fan_out), std) in enumerate(zip(fans, stds, strict=True), start=1):
        scale = math.sqrt(fan_in) * std * input_rms
        if not scale.max() < 1e300:
            raise UsageError(f"the signal grows beyond 1e300 at layer {number}; use fewer layers or a smaller gain")
        yield Stage(fan_in, fan_out, std, input_rms, scale, gaussian_rms(phi.slope, scale, bias), correlations)
        if correlations is not None:
            correlations = cosine_map(phi.value, scale, correlations, bias)
        input_rms = gaussian_rms(phi.value, scale, bias)


def backward(stages: Sequence[Stage], phi: Activation, bias: float, labels: Labels | None) -> Iterator[Gradient]:
    """Yield the layers, last layer first: E delta_(l-1)**2 = fan_out var(w) E phi'(u_(l-1))**2 E delta_l**2.

    At the last layer delta is p - y, the predicted probabilities minus the targets.
    """
    delta, correlations = _residuals(stages[-1], bias, labels)
    for stage, below in zip(reversed(stages), [*stages[-2::-1], None], strict=True):
        yield Gradient(delta, _mean_rms(delta * stage.input_rms, correlations, stage.correlations))
        if below is not None:
            delta = math.sqrt(stage.fan_out) * stage.std * below.slope * delta
        if below is not None and correlations is not None and below.correlations is not None:
            correlations = correlations * cosine_map(phi.slope, below.scale, below.correlations, bias)


def _residuals(last: Stage, bias: float, labels: Labels | None) -> tuple[Floats, Floats | None]:
    if labels is None or last.correlations is None:
        return expected_residuals(last.scale, last.fan_out, bias), None
    return batch_residuals(last.scale, last.correlations, labels, last.fan_out, bias)


def _mean_rms(products: Floats, deltas: Floats | None, inputs: Floats | None) -> float:
    """RMS of the mean over the batch of per-sample weight gradients, whose RMS are `products`.

    The correlations of delta and of the inputs decide how much they cancel. Without them: RMS of a single sample's.
    """
    if deltas is None or inputs is None:
        return rms(products)
    largest = products.max() or 1.0
    unit = products / largest
    return float(largest * np.sqrt(np.maximum(unit @ (deltas * inputs) @ unit, 0)) / len(unit))


def expected_residuals(scale: Floats, outputs: int, bias: float = 0.0) -> Floats:
    """RMS of p - y over a sample's outputs, for logits `bias` + `scale` * Z that are independent of the label y.

    With K classes this is sqrt((E sum_k p_k**2 + 1 - 2/K) / K), at least sqrt(K - 1) / K for any weights.

    >>> expected_residuals(np.array([1e-3]), 10).round(4), expected_residuals(np.array([1e-3]), 1).round(4)
    (array([0.3]), array([0.5]))
    """
    if outputs == 1:  # both classes are equally likely
        positive, negative = (gaussian_rms(ACTIVATIONS["sigmoid"].value, scale, shift) for shift in (-bias, bias))
        return np.asarray(np.sqrt((positive**2 + negative**2) / 2))
    count = max(min(_DRAWS, 10**7 // outputs) // len(scale), 1)
    draws = np.random.default_rng(0).standard_normal((count, len(scale), outputs))
    squares = (_probabilities(scale[:, None] * draws) ** 2).sum(axis=2).mean(axis=0)
    return np.asarray(np.sqrt((squares + 1 - 2 / outputs) / outputs))


def batch_residuals(
    scale: Floats, correlations: Floats, labels: Labels, outputs: int, bias: float = 0.0
) -> tuple[Floats, Floats]:
    """RMS of each sample's p - y [samples], and the uncentred correlations of p - y between samples.

    `correlations` are those of one logit between samples, [samples, samples]. The residuals of samples with equal
    logits cancel if the classes of a batch are balanced, and add up if the network is sure of one class.
    """
    values, vectors = np.linalg.eigh(correlations)
    root = vectors * np.sqrt(np.maximum(values, 0))
    draws = np.random.default_rng(0).standard_normal((_DRAWS // 8, len(scale), outputs))
    residuals = _probabilities(scale[:, None] * (root @ draws) + bias) - _targets(labels, outputs)
    products = np.tensordot(residuals, residuals, ([0, 2], [0, 2])) / residuals[:, 0].size
    residual_rms = np.sqrt(np.diag(products))
    safe = np.where(residual_rms > 0, residual_rms, 1.0)
    return residual_rms, products / np.outer(safe, safe)


def _targets(labels: Labels, outputs: int) -> Floats:
    return labels[:, None].astype(np.float64) if outputs == 1 else np.eye(outputs)[labels]


def _probabilities(logits: Floats) -> Floats:
    if logits.shape[-1] == 1:
        return ACTIVATIONS["sigmoid"].value(logits)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
