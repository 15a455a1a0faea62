"""Fixed points of the signal in an infinitely deep MLP, and the weight variance that keeps the gradient's size there.

Poole et al. 2016, "Exponential expressivity in deep neural networks through transient chaos"; Schoenholz et al. 2017,
"Deep information propagation". In this module `variance` is sigma_w**2, the variance of a weight times its fan-in, q is
the variance of a pre-activation, and phi is the activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vgrad_torch.errors import choose
from vgrad_torch.theory.activations import ACTIVATIONS, Activation, Function, gaussian_rms

_SMALL, _LARGE = 1e-24, 1e24  # values of q that stand for its limits, zero and infinity


@dataclass(frozen=True, slots=True)
class Criticality:
    """What becomes of signal and gradient in an MLP of infinite depth.

    Attributes:
        variance: sigma_w**2, the variance of a weight times its fan-in.
        fixed_point: q*, the variance of a pre-activation after many layers; 0.0 if the signal vanishes, inf if it
            grows without bound.
        chi: chi_1 at q*, the factor per layer on the squared norm of the gradient.
        critical_variances: the sigma_w**2 for which chi_1 is one. There are two if small signals need another value
            than large ones (gelu, silu): the first is for q* = 0, the second for q* = inf. Empty for some biases.
    """

    variance: float
    fixed_point: float
    chi: float
    critical_variances: tuple[float, ...]

    @property
    def depth_scale(self) -> float:
        """1 / |ln chi_1|, xi in the papers: layers over which the squared gradient norm changes by a factor e.

        Infinite if chi_1 is one. In the forward pass, two samples become more similar (chi < 1) or less similar
        (chi > 1) at the same rate. Networks of up to about 6 xi layers can be trained (Schoenholz et al. 2017).
        """
        exponent = abs(math.log(self.chi)) if self.chi > 0 else math.inf
        return 1 / exponent if exponent > 1e-6 else math.inf

    @property
    def critical_gains(self) -> tuple[float, ...]:
        """The factors on the weights that would make chi_1 one."""
        return tuple(math.sqrt(critical / self.variance) for critical in self.critical_variances)


def criticality(activation: str, variance: float, *, bias: float = 0.0, start: float = 1.0) -> Criticality:
    """Find the fixed point that a signal of variance `start` reaches, and chi_1 there.

    Args:
        activation: a key of `theory.activations.ACTIVATIONS`.
        variance: sigma_w**2, the variance of a weight times its fan-in.
        bias: value of every bias.
        start: variance of the pre-activations of the first layer.

    >>> relu = criticality("relu", 1.0)
    >>> relu.fixed_point, round(relu.chi, 6), round(relu.critical_gains[0] ** 2, 6)
    (0.0, 0.5, 2.0)
    """
    phi = choose(ACTIVATIONS, activation, "activation")
    q = _fixed_point(lambda q: variance * _mean_square(phi.value, q, bias), min(max(start, 1e-6), 1e6))
    chi = variance * _mean_square(phi.slope, min(max(q, _SMALL), _LARGE), bias)
    return Criticality(variance, q, chi, critical_variances(activation, bias))


def critical_variances(activation: str, bias: float = 0.0) -> tuple[float, ...]:
    """The values of sigma_w**2 for which chi_1 is one at the fixed point, see `Criticality`.

    At a fixed point q, sigma_w**2 = q / E phi**2 and therefore chi_1 = q E phi'**2 / E phi**2. If chi_1 tends to one
    for q -> 0 (that is, if phi(bias) = 0), this limit is the answer. Otherwise it is the first q where chi_1 crosses 1.

    >>> [round(variance, 3) for variance in critical_variances("gelu")]
    [4.0, 2.0]
    """
    phi = choose(ACTIVATIONS, activation, "activation")
    small, large = (_critical_limit(phi, q, bias) for q in (_SMALL, _LARGE))
    if small is not None:
        return (small, large) if large is not None and large < small * (1 - 1e-6) else (small,)
    inner = _root(lambda q: _chi(phi, q, bias) - 1, 1e-6, 1e6)
    if inner is not None:
        return (_variance_at(phi, inner, bias),)
    return (large,) if large is not None and large > _variance_at(phi, 1.0, bias) else ()


def _mean_square(function: Function, q: float, bias: float) -> float:
    """E f(u)**2 for u ~ N(bias, q)."""
    return float(gaussian_rms(function, np.array([math.sqrt(q)]), bias)[0] ** 2)


def _variance_at(phi: Activation, q: float, bias: float) -> float:
    """The sigma_w**2 for which q is a fixed point; infinite if there is none."""
    square = _mean_square(phi.value, q, bias)
    return q / square if square else math.inf


def _chi(phi: Activation, q: float, bias: float) -> float:
    """chi_1 for the weights whose fixed point is q; infinite if there are no such weights."""
    variance = _variance_at(phi, q, bias)
    return variance if variance == math.inf else variance * _mean_square(phi.slope, q, bias)


def _critical_limit(phi: Activation, q: float, bias: float) -> float | None:
    """The critical sigma_w**2 at a q that stands for a limit; None if chi_1 does not tend to one there."""
    return _variance_at(phi, q, bias) if abs(_chi(phi, q, bias) - 1) < 1e-6 else None


def _fixed_point(step: Callable[[float], float], start: float) -> float:
    """The first q with step(q) = q in the direction in which `step` moves `start`."""
    drift = step(start) / start - 1
    if abs(drift) < 1e-9:
        return start
    end, limit = (_LARGE, math.inf) if drift > 0 else (_SMALL, 0.0)
    q = _root(lambda q: step(q) / q - 1, start, end)
    return limit if q is None or not 1e-9 < q < 1e15 else q


def _root(function: Callable[[float], float], start: float, end: float) -> float | None:
    """The zero nearest to `start` between `start` and `end`; None if the sign does not change.

    The search goes octave by octave, then by bisection on a log scale.
    """
    grid = np.geomspace(start, end, 2 + int(abs(math.log2(end / start))))
    positive = [function(q) > 0 for q in grid]
    if all(positive) or not any(positive):
        return None
    change = positive.index(not positive[0])
    low, high = float(grid[change - 1]), float(grid[change])
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if (function(middle) > 0) == positive[0] else (low, middle)
    return math.sqrt(low * high)
