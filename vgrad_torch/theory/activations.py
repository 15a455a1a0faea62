"""The activations as NumPy functions, and their moments for a Gaussian pre-activation u = scale * Z + shift.

Z is a standard Gaussian. `scale` holds one standard deviation per sample, `shift` is the mean of u.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Function = Callable[[Floats], Floats]


class Activation(NamedTuple):
    """An activation phi and its derivative."""

    value: Function
    slope: Function


def _sigmoid(u: Floats) -> Floats:
    small = np.exp(-np.abs(u))
    return np.asarray(np.where(u > 0, 1.0, small) / (1 + small))


def _sigmoid_slope(u: Floats) -> Floats:
    small = np.exp(-np.abs(u))
    return np.asarray(small / (1 + small) ** 2)


def _exponential_linear(scale: float, alpha: float) -> Activation:
    def value(u: Floats) -> Floats:
        return scale * np.where(u > 0, u, alpha * np.expm1(np.minimum(u, 0)))

    def slope(u: Floats) -> Floats:
        return scale * np.where(u > 0, 1.0, alpha * np.exp(np.minimum(u, 0)))

    return Activation(value, slope)


def _rectifier(negative_slope: float) -> Activation:
    return Activation(lambda u: np.where(u > 0, u, negative_slope * u), lambda u: np.where(u > 0, 1.0, negative_slope))


_erf: Function = np.vectorize(math.erf, otypes=[np.float64])


def _normal_cdf(u: Floats) -> Floats:
    """The probability that a standard Gaussian is below u."""
    return (1 + _erf(u / math.sqrt(2))) / 2


def _normal_density(u: Floats) -> Floats:
    return np.exp(-(np.minimum(np.abs(u), 40.0) ** 2) / 2) / math.sqrt(2 * math.pi)


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation(_sigmoid, _sigmoid_slope),
    "tanh": Activation(np.tanh, lambda u: 4 * _sigmoid_slope(2 * u)),
    "relu": _rectifier(0.0),
    "leaky_relu": _rectifier(0.01),
    "elu": _exponential_linear(1.0, 1.0),
    "selu": _exponential_linear(1.0507009873554805, 1.6732632423543772),
    "gelu": Activation(lambda u: u * _normal_cdf(u), lambda u: _normal_cdf(u) + u * _normal_density(u)),
    "silu": Activation(lambda u: u * _sigmoid(u), lambda u: _sigmoid(u) + u * _sigmoid_slope(u)),
    "softsign": Activation(lambda u: u / (1 + np.abs(u)), lambda u: 1 / (1 + np.abs(u)) ** 2),
    "identity": Activation(lambda u: u, np.ones_like),
}
"""The names and parameters of `models.activations.ACTIVATIONS`. Derivatives at a kink are the ones PyTorch uses."""

_REACH = 10.0  # standard deviations on both sides; the probability beyond is 1e-23
_PANEL_NODES, _PANEL_WEIGHTS = np.polynomial.legendre.leggauss(16)


def nodes(scale: Floats, shift: float = 0.0) -> tuple[Floats, Floats]:
    """Quadrature points and weights for the mean of f(scale * Z + shift) over a standard Gaussian Z.

    Gauss-Legendre quadrature on panels of width one or less. One panel edge lies at u = 0, where some activations have
    a kink, and the panels get narrower towards that edge. The result has ten correct digits from scale 1e-150, where
    only phi'(0) counts, to 1e+100, where a sigmoid is a step.

    Returns:
        z and weights, both of shape [len(scale), nodes]. The weights of a row sum to one.
    """
    safe = np.maximum(scale, 1e-300)[:, None]
    powers = 2.0 ** np.arange(-2, max(math.ceil(math.log2(safe.max() * 2 * _REACH)), -1) + 1)
    u_edges = np.concatenate([-powers[::-1], [0.0], powers])
    with np.errstate(over="ignore"):  # an edge far outside
        z_edges = np.clip((u_edges - shift) / safe, -_REACH, _REACH)
    even = np.broadcast_to(np.arange(-_REACH, _REACH + 1), (len(scale), int(2 * _REACH) + 1))
    edges = np.sort(np.concatenate([even, z_edges], axis=1), axis=1)[:, :, None]
    half = np.diff(edges, axis=1) / 2
    z = (edges[:, :-1] + half + half * _PANEL_NODES).reshape(len(scale), -1)
    return z, (half * _PANEL_WEIGHTS).reshape(z.shape) * _normal_density(z)


def gaussian_rms(function: Function, scale: Floats, shift: float = 0.0) -> Floats:
    """sqrt(E f(scale * Z + shift)**2) for each scale; shape [samples].

    >>> gaussian_rms(ACTIVATIONS["relu"].value, np.array([1.0, 1e-40])) ** 2 * [1, 1e80]
    array([0.5, 0.5])
    """
    z, weights = nodes(scale, shift)
    return _rms(function(scale[:, None] * z + shift), weights)


def _rms(values: Floats, weights: Floats) -> Floats:
    """Weighted RMS along the last axis. Scaling by the largest value keeps the squares in the range of a double."""
    largest = np.abs(values).max(axis=-1)
    unit = values / np.where(largest > 0, largest, 1.0)[..., None]
    return np.asarray(largest * np.sqrt((weights * unit**2).sum(axis=-1)))


def rms(values: Floats) -> float:
    """sqrt(mean(x**2)) of all values, correct from 1e-300 to 1e+300."""
    flat = values.ravel()
    return float(_rms(flat, np.full(flat.shape, 1 / flat.size)))


_ORDER = 63  # of the last Hermite polynomial; all higher even orders count as 64, all higher odd ones as 65


def cosine_map(function: Function, scale: Floats, cosine: Floats, shift: float = 0.0) -> Floats:
    """Uncentred correlations of f(u) between samples, from the correlations of their Gaussian pre-activations u.

    With the coefficients a_k of f in normalised Hermite polynomials, E f(u) f(v) = sum_k a_k(u) a_k(v) cosine**k
    (Mehler's formula). So one table of coefficients [samples, k] is enough for all pairs. Orders above 63 are pooled.
    The error is at most 1e-4 for a continuous f, and .014 for a step function at correlations of .99.

    Args:
        function: f, an activation or its derivative.
        scale: standard deviations of u, [samples].
        cosine: correlations of u - shift between samples, [samples, samples].
        shift: mean of u.

    Returns:
        E f(u) f(v) / sqrt(E f(u)**2 E f(v)**2), [samples, samples]. The diagonal is one.
    """
    coefficients = _hermite_coefficients(function, scale, shift)
    power = np.ones_like(cosine)
    total = np.zeros_like(cosine)
    for column in np.concatenate([coefficients, _pooled_orders(coefficients)], axis=1).T:
        total += np.outer(column, column) * power
        power = power * cosine
    return total


def _pooled_orders(coefficients: Floats) -> Floats:
    """Coefficients for all higher orders together, even and odd, [samples, 2]: each row of coefficients has length one.

    The rest is split into even and odd as the last two orders are.
    """
    rest = np.maximum(1 - (coefficients**2).sum(axis=1, keepdims=True), 0)
    last = coefficients[:, -2:] ** 2 + 1e-300
    return np.asarray(np.sqrt(rest * last / last.sum(axis=1, keepdims=True)))


def _hermite_coefficients(function: Function, scale: Floats, shift: float) -> Floats:
    """E f(scale * Z + shift) h_k(Z) / RMS of f, for k = 0..63; [samples, k]. No row is longer than one."""
    z, weights = nodes(scale, shift)
    values = function(scale[:, None] * z + shift)
    norms = _rms(values, weights)
    values = values / np.where(norms > 0, norms, 1.0)[:, None] * weights
    previous, polynomial = np.zeros_like(z), np.ones_like(z)
    coefficients = []
    for k in range(_ORDER + 1):
        coefficients.append((values * polynomial).sum(axis=1))
        previous, polynomial = polynomial, (z * polynomial - math.sqrt(k) * previous) / math.sqrt(k + 1)
    return np.stack(coefficients, axis=1)
