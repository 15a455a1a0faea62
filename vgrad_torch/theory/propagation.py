"""The signal on its way through a random net and the gradient on its way back, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vgrad_torch.errors import UsageError
from vgrad_torch.theory.activations import ACTIVATIONS, Activation, Floats, cosine_map, gaussian_rms, rms

Labels = npt.NDArray[np.int64]

_DRAWS = 4096  # of logits, shared among the samples: right to .3 %


class Inputs(NamedTuple):
    """What goes in; arrays are [samples], `alike` is [samples, samples]."""

    squares: Floats  # mean(x**2) of each sample
    alike: Floats | None = None  # correlations between samples, where known
    labels: Labels | None = None


class Stage(NamedTuple):
    """A layer on the way forward; arrays are [samples]."""

    fan_in: int
    fan_out: int
    std: float  # of a weight
    fed: Floats  # RMS of the layer's input
    scale: Floats  # standard deviation of its pre-activation
    slope: Floats  # RMS of the activation's derivative there
    alike: Floats | None  # correlations of the input between samples


class Gradient(NamedTuple):
    """A layer on the way back."""

    output: Floats  # RMS of d loss / dz, the samples' own losses
    weight: float  # RMS of dL/dW; where correlations are unknown, for a batch of one


def forward(
    fans: Sequence[tuple[int, int]], stds: Sequence[float], law: Activation, bias: float, inputs: Inputs
) -> Iterator[Stage]:
    """The first layer first. q_l = fan_in var(w) E phi(u_(l-1))**2, where u ~ N(bias, q); `fed` is the RMS of phi."""
    fed, alike = np.sqrt(inputs.squares), inputs.alike
    for number, ((fan_in, fan_out), std) in enumerate(zip(fans, stds, strict=True), start=1):
        scale = math.sqrt(fan_in) * std * fed
        if not scale.max() < 1e300:
            raise UsageError(f"the signal grows beyond 1e300 at layer {number}; take fewer layers or a smaller gain")
        yield Stage(fan_in, fan_out, std, fed, scale, gaussian_rms(law.slope, scale, bias), alike)
        if alike is not None:
            alike = cosine_map(law.value, scale, alike, bias)
        fed = gaussian_rms(law.value, scale, bias)


def backward(stages: Sequence[Stage], law: Activation, bias: float, labels: Labels | None) -> Iterator[Gradient]:
    """The last layer first. E delta_(l-1)**2 = fan_out var(w) E phi'(u_(l-1))**2 E delta_l**2, from p - y on."""
    delta, alike = _at_the_logits(stages[-1], bias, labels)
    for stage, below in zip(reversed(stages), [*stages[-2::-1], None], strict=True):
        yield Gradient(delta, _pooled(delta * stage.fed, alike, stage.alike))
        if below is not None:
            delta = math.sqrt(stage.fan_out) * stage.std * below.slope * delta
        if below is not None and alike is not None and below.alike is not None:
            alike = alike * cosine_map(law.slope, below.scale, below.alike, bias)


def _at_the_logits(last: Stage, bias: float, labels: Labels | None) -> tuple[Floats, Floats | None]:
    if labels is None or last.alike is None:
        return expected_residuals(last.scale, last.fan_out, bias), None
    return batch_residuals(last.scale, last.alike, labels, last.fan_out, bias)


def _pooled(products: Floats, deltas: Floats | None, inputs: Floats | None) -> float:
    """RMS of the mean of weight gradients whose RMS are `products`; without correlations, RMS of a single one."""
    if deltas is None or inputs is None:
        return rms(products)
    largest = products.max() or 1.0
    unit = products / largest
    return float(largest * np.sqrt(np.maximum(unit @ (deltas * inputs) @ unit, 0)) / len(unit))


def expected_residuals(scale: Floats, outputs: int, bias: float = 0.0) -> Floats:
    """RMS over outputs of a sample's p - y, where logits are `bias` + `scale` * Z and y does not depend on them.

    With many classes it is sqrt((E sum_k p_k**2 + 1 - 2/K) / K), which no weights bring below sqrt(K - 1) / K.

    >>> expected_residuals(np.array([1e-3]), 10).round(4), expected_residuals(np.array([1e-3]), 1).round(4)
    (array([0.3]), array([0.5]))
    """
    if outputs == 1:  # one class is as likely as the other
        right, wrong = (gaussian_rms(ACTIVATIONS["sigmoid"].value, scale, shift) for shift in (-bias, bias))
        return np.asarray(np.sqrt((right**2 + wrong**2) / 2))
    count = max(min(_DRAWS, 10**7 // outputs) // len(scale), 1)
    draws = np.random.default_rng(0).standard_normal((count, len(scale), outputs))
    certainty = (_probabilities(scale[:, None] * draws) ** 2).sum(axis=2).mean(axis=0)
    return np.asarray(np.sqrt((certainty + 1 - 2 / outputs) / outputs))


def batch_residuals(
    scale: Floats, alike: Floats, labels: Labels, outputs: int, bias: float = 0.0
) -> tuple[Floats, Floats]:
    """RMS of each sample's p - y, and how the samples' residuals correlate (uncentred), [samples, samples].

    `alike` holds the correlations of one logit between samples. The residuals of samples with equal logits cancel
    where the classes of a batch are balanced, and add up where the net is sure of one class.
    """
    values, vectors = np.linalg.eigh(alike)
    root = vectors * np.sqrt(np.maximum(values, 0))
    draws = np.random.default_rng(0).standard_normal((_DRAWS // 8, len(scale), outputs))
    residuals = _probabilities(scale[:, None] * (root @ draws) + bias) - _targets(labels, outputs)
    products = np.tensordot(residuals, residuals, ([0, 2], [0, 2])) / residuals[:, 0].size
    size = np.sqrt(np.diag(products))
    safe = np.where(size > 0, size, 1.0)
    return size, products / np.outer(safe, safe)


def _targets(labels: Labels, outputs: int) -> Floats:
    return labels[:, None].astype(np.float64) if outputs == 1 else np.eye(outputs)[labels]


def _probabilities(logits: Floats) -> Floats:
    if logits.shape[-1] == 1:
        return ACTIVATIONS["sigmoid"].value(logits)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
