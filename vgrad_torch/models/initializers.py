"""The initializers by name. Each fills a weight of shape [fan_out, fan_in] in place. Biases are not initialised here.

The variance of the weights decides what happens to the gradient. A layer y = Wx with independent weights of mean zero
multiplies mean(x**2) by fan_in * var(w) in the forward pass, and the mean square of the gradient by fan_out * var(w) in
the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Initializer = Callable[[Tensor, torch.Generator | None], None]
"""Fills a weight [fan_out, fan_in] in place, without recording it in the autograd graph.

Draws from the generator, or from torch's global random state if the generator is None.
"""


def uniform(weight: Tensor, generator: torch.Generator | None) -> None:
    """U(-0.1, 0.1), variance 1/300 for every width: MXNet's `Uniform(0.1)`."""
    nn.init.uniform_(weight, -0.1, 0.1, generator)


def normal(weight: Tensor, generator: torch.Generator | None) -> None:
    """N(0, 1), variance 1 for every width: Keras' `RandomNormal(mean=0, stddev=1)`."""
    nn.init.normal_(weight, 0.0, 1.0, generator)


def xavier(weight: Tensor, generator: torch.Generator | None) -> None:
    """U(-b, b), b = sqrt(2.34 / fan_in), variance 0.78 / fan_in.

    MXNet's `Xavier(rnd_type="uniform", factor_type="in", magnitude=2.34)`. Glorot and Bengio's paper and most
    libraries mean another law by "Xavier"; that one is `glorot` here.
    """
    bound = math.sqrt(2.34 / weight.shape[1])
    nn.init.uniform_(weight, -bound, bound, generator)


def glorot(weight: Tensor, generator: torch.Generator | None) -> None:
    """U(-b, b), b = sqrt(6 / (fan_in + fan_out)), variance 2 / (fan_in + fan_out).

    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", equation 16;
    Keras' default, `glorot_uniform`.
    """
    nn.init.xavier_uniform_(weight, generator=generator)


def he(weight: Tensor, generator: torch.Generator | None) -> None:
    """N(0, 2 / fan_in): keeps the scale of a signal through ReLU layers, each of which halves its mean square.

    He et al. 2015, "Delving deep into rectifiers", equation 10. Not truncated. Keras' `he_normal` has the same variance
    and is truncated.
    """
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)


def lecun(weight: Tensor, generator: torch.Generator | None) -> None:
    """N(0, 1 / fan_in): keeps the scale of a signal where the activation has slope one. SELU needs this law.

    LeCun et al. 1998, "Efficient BackProp". Not truncated. Keras' `lecun_normal` is truncated.
    """
    nn.init.kaiming_normal_(weight, nonlinearity="linear", generator=generator)


def orthogonal(weight: Tensor, generator: torch.Generator | None) -> None:
    """Random orthonormal rows (columns, if there are more rows than columns); variance 1 / max(fan_in, fan_out).

    Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks". A square
    weight keeps the length of every signal, in the forward and in the backward pass.
    """
    nn.init.orthogonal_(weight, generator=generator)


def pytorch(weight: Tensor, generator: torch.Generator | None) -> None:
    """U(-b, b), b = 1 / sqrt(fan_in), variance 1 / (3 fan_in): the weight law of `nn.Linear.reset_parameters`.

    PyTorch draws the biases from this law, too. Here they all start at one value, as for every other initializer.
    """
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


INITIALIZERS: dict[str, Initializer] = {
    "uniform": uniform,
    "normal": normal,
    "xavier": xavier,
    "glorot": glorot,
    "he": he,
    "lecun": lecun,
    "orthogonal": orthogonal,
    "torch": pytorch,
}
