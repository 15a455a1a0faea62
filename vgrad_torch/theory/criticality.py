"""Where the signal of an endless MLP settles, whether the gradient grows or fades there, and which weights keep it.

Poole et al. 2016, "Exponential expressivity in deep neural networks through transient chaos"; Schoenholz et al. 2017,
"Deep information propagation". Throughout, `variance` is sigma_w**2, the variance of a weight times its fan-in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vgrad_torch.errors import choose
from vgrad_torch.theory.activations import ACTIVATIONS, Activation, Function, gaussian_rms

_SMALL, _LARGE = 1e-24, 1e24  # q that stand for its limits, zero and infinity


@dataclass(frozen=True, slots=True)
class Criticality:
    """The fate of signal and gradient in an MLP of endless depth.

    Attributes:
        variance: sigma_w**2, the variance of a weight times its fan-in.
        fixed_point: q*, the variance of a pre-activation where it settles; 0.0 and inf where it vanishes or explodes.
        chi: chi_1 at q*, the factor per layer on the squared norm of the gradient.
        critical_variances: sigma_w**2 for which chi_1 is one. Two where small signals need another one than large
            ones (gelu, silu): the first is for q* = 0, the second for q* without bound. None for some biases.
    """

    variance: float
    fixed_point: float
    chi: float
    critical_variances: tuple[float, ...]

    @property
    def depth_scale(self) -> float:
        """1 / |ln chi_1|, xi in the papers: layers in which the squared norm of the gradient changes by a factor e.

        Infinite where chi_1 is one. Forward, two samples become alike (chi < 1) or unlike (chi > 1) over as many
        layers; up to about 6 xi of them can be trained (Schoenholz et al. 2017).
        """
        exponent = abs(math.log(self.chi)) if self.chi > 0 else math.inf
        return 1 / exponent if exponent > 1e-6 else math.inf

    @property
    def critical_gains(self) -> tuple[float, ...]:
        """What the weights would have to be multiplied by to be critical."""
        return tuple(math.sqrt(critical / self.variance) for critical in self.critical_variances)


def criticality(activation: str, variance: float, *, bias: float = 0.0, start: float = 1.0) -> Criticality:
    """Follow a signal of variance `start` to where it settles.

    Args:
        activation: a key of `moments.ACTIVATIONS`.
        variance: sigma_w**2, the variance of a weight times its fan-in.
        bias: value of every bias.
        start: variance of the pre-activations of the first layer.

    >>> relu = criticality("relu", 1.0)
    >>> relu.fixed_point, round(relu.chi, 6), round(relu.critical_gains[0] ** 2, 6)
    (0.0, 0.5, 2.0)
    """
    law = choose(ACTIVATIONS, activation, "activation")
    q = _fixed_point(lambda q: variance * _square(law.value, q, bias), min(max(start, 1e-6), 1e6))
    chi = variance * _square(law.slope, min(max(q, _SMALL), _LARGE), bias)
    return Criticality(variance, q, chi, critical_variances(activation, bias))


def critical_variances(activation: str, bias: float = 0.0) -> tuple[float, ...]:
    """The sigma_w**2 for which chi_1 is one at the fixed point, see `Criticality`.

    A fixed point q has sigma_w**2 = q / E phi**2, so there chi_1 = q E phi'**2 / E phi**2. Where that is one from the
    limit q = 0 on (phi(bias) = 0), the limit is the answer; else the first q where it passes one.

    >>> [round(variance, 3) for variance in critical_variances("gelu")]
    [4.0, 2.0]
    """
    law = choose(ACTIVATIONS, activation, "activation")
    small, large = (_limit(law, q, bias) for q in (_SMALL, _LARGE))
    if small is not None:
        return (small, large) if large is not None and large < small * (1 - 1e-6) else (small,)
    inner = _root(lambda q: _chi(law, q, bias) - 1, 1e-6, 1e6)
    if inner is not None:
        return (_stationary(law, inner, bias),)
    return (large,) if large is not None and large > _stationary(law, 1.0, bias) else ()


def _square(function: Function, q: float, bias: float) -> float:
    return float(gaussian_rms(function, np.array([math.sqrt(q)]), bias)[0] ** 2)


def _stationary(law: Activation, q: float, bias: float) -> float:
    """The sigma_w**2 that has q as its fixed point."""
    square = _square(law.value, q, bias)
    return q / square if square else math.inf


def _chi(law: Activation, q: float, bias: float) -> float:
    """chi_1 with the weights that have q as their fixed point; infinite where no weights have."""
    variance = _stationary(law, q, bias)
    return variance if variance == math.inf else variance * _square(law.slope, q, bias)


def _limit(law: Activation, q: float, bias: float) -> float | None:
    """The critical sigma_w**2 at a q that stands for a limit, if chi_1 tends to one there."""
    return _stationary(law, q, bias) if abs(_chi(law, q, bias) - 1) < 1e-6 else None


def _fixed_point(step: Callable[[float], float], start: float) -> float:
    """Where the signal stands still, going from `start` the way `step` goes."""
    drift = step(start) / start - 1
    if abs(drift) < 1e-9:
        return start
    end, limit = (_LARGE, math.inf) if drift > 0 else (_SMALL, 0.0)
    q = _root(lambda q: step(q) / q - 1, start, end)
    return limit if q is None or not 1e-9 < q < 1e15 else q


def _root(function: Callable[[float], float], start: float, end: float) -> float | None:
    """The zero nearest to `start` on the way to `end`, found octave by octave, then by bisection of the logarithm."""
    grid = np.geomspace(start, end, 2 + int(abs(math.log2(end / start))))
    positive = [function(q) > 0 for q in grid]
    if all(positive) or not any(positive):
        return None
    turn = positive.index(not positive[0])
    low, high = float(grid[turn - 1]), float(grid[turn])
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if (function(middle) > 0) == positive[0] else (low, middle)
    return math.sqrt(low * high)
