"""What mean-field theory says of an MLP before it is built: each layer's signal and gradient, from widths and laws.

Independent weights of mean zero make every pre-activation a Gaussian whose variance follows from that of the layer
below, and hand every gradient down with a factor of its own (Poole et al. 2016; Schoenholz et al. 2017, "Deep
information propagation"). The numbers are RMS over draws of the weights; one net scatters around them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vgrad_torch.errors import UsageError, checked_widths, choose
from vgrad_torch.theory.activations import ACTIVATIONS, Activation, Floats, gaussian_rms, rms
from vgrad_torch.theory.criticality import Criticality, criticality
from vgrad_torch.theory.propagation import Gradient, Inputs, Stage, backward, forward

VARIANCES: dict[str, Callable[[int, int], float]] = {
    "uniform": lambda fan_in, fan_out: 0.01 / 3,
    "normal": lambda fan_in, fan_out: 1.0,
    "xavier": lambda fan_in, fan_out: 0.78 / fan_in,
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, fan_out: 2 / fan_in,
    "lecun": lambda fan_in, fan_out: 1 / fan_in,
    "orthogonal": lambda fan_in, fan_out: 1 / max(fan_in, fan_out),
    "torch": lambda fan_in, fan_out: 1 / (3 * fan_in),
}
"""Variance of a weight by fan-in and fan-out, for the names of `initializers.INITIALIZERS`."""


_RANGE = (1e-120, 1e120)
"""Standard deviations of weights whose squares and products a double holds."""


@dataclass(frozen=True, slots=True)
class LayerPrediction:
    """One layer, in the words of a snapshot; gradients are of the mean loss over a batch.

    Attributes:
        name: fc1, fc2, ...
        fan_in: columns of the weight.
        fan_out: rows of the weight.
        weight_rms: standard deviation of the weight's law.
        output_rms: of the pre-activation z.
        output_gradient_rms: of dL/dz, over all samples and units of a batch.
        output_gradient_norm: of dL/dz, the root of the sum over them: what vanishing is judged by where widths differ.
        weight_gradient_rms: of dL/dW. Without data the samples' gradients count as uncorrelated: measured up to 1.5 too
            large and 2.5 too small (5 for N(0, 1) weights), mostly by much the same factor at every layer.
        weight_gain: RMS(input gradient) / RMS(output gradient).
        activation_gain: RMS of the activation's derivative at this layer's output; None for the last layer.
        chi: chi_1 at this layer, the factor on the squared norm of the output gradient from the layer above to this
            one; below one it shrinks, above one it grows. None for the last layer.
    """

    name: str
    fan_in: int
    fan_out: int
    weight_rms: float
    output_rms: float
    output_gradient_rms: float
    output_gradient_norm: float
    weight_gradient_rms: float
    weight_gain: float
    activation_gain: float | None
    chi: float | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A net before it is built.

    Attributes:
        activation: its name.
        init: name of the weights' law; `given` where their standard deviations were.
        layers: first layer first.
        criticality: where the signal would settle, and chi_1 and depth scale there, if the net went on for ever. Its
            sigma_w**2 is the geometric mean over the layers from the second on.
        scatter: standard deviation, over draws of the weights, of log10 RMS of the first layer's output gradient; right
            to a factor of 2. Orthogonal weights scatter less, dead layers of relu (log10 of zero) are left out.
    """

    activation: str
    init: str
    layers: tuple[LayerPrediction, ...]
    criticality: Criticality
    scatter: float

    @property
    def norm_ratio(self) -> float:
        """S: norm of the first layer's output gradient over that of the last. Small: vanishing. Large: exploding."""
        return self.layers[0].output_gradient_norm / self.layers[-1].output_gradient_norm


def predict(
    widths: Sequence[int],
    activation: str = "relu",
    init: str | Sequence[float] = "he",
    *,
    gain: float = 1.0,
    bias: float = 0.0,
    batch: int = 32,
    mean_square: float | npt.ArrayLike = 1.0,
    data: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
) -> Prediction:
    """Predict every layer of `build_mlp(widths, activation, init)` under cross-entropy (of a sigmoid if one output).

    Args:
        widths: input and output included.
        activation: a key of `moments.ACTIVATIONS`.
        init: a key of `VARIANCES`; or the standard deviation of each layer's weights, such as their measured RMS.
        gain: multiplies every weight.
        bias: value of every bias.
        batch: samples the loss is averaged over.
        mean_square: mean(x**2) of an input, 1 if standardised, .11 for MNIST in [0, 1]; or one for each of many inputs.
        data: a batch (x [samples, features], y [samples], classes from 0) in place of the two above. Then the weight
            gradients count how features and gradients correlate between samples: right to 1.3, relu with he to 1.8.

    Raises:
        UsageError: an unknown name, a width, number or batch that makes no sense, a signal or gradient beyond
            1e300, weights beyond 1e-120 to 1e120.

    >>> net = predict([784, 512, 256, 128, 64, 32, 16, 10], "sigmoid", "uniform", mean_square=0.112)
    >>> print(f"{net.layers[0].weight_gradient_rms:.2e} {net.norm_ratio:.1e}")
    1.29e-08 5.2e-06
    """
    law = choose(ACTIVATIONS, activation, "activation")
    fans = list(pairwise(checked_widths(widths)))
    _check_numbers(gain, bias, batch, fans[-1][1])
    stds = [gain * std for std in _deviations(init, fans)]
    if not _RANGE[0] < min(stds) <= max(stds) < _RANGE[1]:
        raise UsageError(f"weights must be between {_RANGE[0]:g} and {_RANGE[1]:g} in size; take another gain")
    inputs = Inputs(_checked_squares(mean_square)) if data is None else _batch(*data, fans[0][0], fans[-1][1])
    size = batch if data is None else len(inputs.squares)
    try:
        with np.errstate(over="raise"):
            stages = list(forward(fans, stds, law, bias, inputs))
            gradients = list(backward(stages, law, bias, inputs.labels))[::-1]
            layers = tuple(_layer(n, stages, gradients, bias, size) for n in range(len(fans)))
    except FloatingPointError as error:
        raise UsageError("the gradient grows beyond 1e300; take fewer layers or a smaller gain") from error
    typical = math.exp(np.mean([math.log(stage.fan_in * stage.std**2) for stage in stages[1:] or stages]))
    fate = criticality(activation, typical, bias=bias, start=rms(stages[0].scale) ** 2)
    return Prediction(activation, init if isinstance(init, str) else "given", layers, fate, _scatter(stages, law, bias))


def _deviations(init: str | Sequence[float], fans: Sequence[tuple[int, int]]) -> list[float]:
    if isinstance(init, str):
        variance = choose(VARIANCES, init, "initializer")
        return [math.sqrt(variance(*fan)) for fan in fans]
    if len(init) != len(fans) or not all(0 < std < math.inf for std in init):
        raise UsageError(f"init must be a name or {len(fans)} positive numbers, one for each layer, not {list(init)}")
    return list(init)


def _layer(
    index: int, stages: Sequence[Stage], gradients: Sequence[Gradient], bias: float, batch: int
) -> LayerPrediction:
    stage, gradient = stages[index], gradients[index]
    above = stages[index + 1] if index + 1 < len(stages) else None
    slope, delta = rms(stage.slope), rms(gradient.output) / batch
    return LayerPrediction(
        name=f"fc{index + 1}",
        fan_in=stage.fan_in,
        fan_out=stage.fan_out,
        weight_rms=stage.std,
        output_rms=math.hypot(rms(stage.scale), bias),
        output_gradient_rms=delta,
        output_gradient_norm=delta * math.sqrt(batch * stage.fan_out),
        weight_gradient_rms=gradient.weight / (math.sqrt(batch) if stage.alike is None else 1),
        weight_gain=math.sqrt(stage.fan_out) * stage.std,
        activation_gain=slope if above else None,
        chi=above.fan_in * (above.std * slope) ** 2 if above else None,
    )


def _scatter(stages: Sequence[Stage], law: Activation, bias: float) -> float:
    """Each hidden layer multiplies the squared norm by a mean of n terms: the squares of W^T delta, times phi'**2.

    Hanin 2018, "Which neural net architectures give rise to exploding and vanishing gradients?": the sum of 1/n
    decides. That K classes hand down K - 1 nearly independent gradients is our addition; measurements agree.
    """
    variance = sum((3 * _kurtosis(stage, law, bias) - 1) / stage.fan_out for stage in stages[:-1])
    return math.log10(math.e) / 2 * math.sqrt(variance / max(stages[-1].fan_out - 1, 1))


def _kurtosis(stage: Stage, law: Activation, bias: float) -> float:
    """E phi'**4 / (E phi'**2)**2 at a layer: 1 for a constant slope, 2 for relu."""
    scale = np.array([rms(stage.scale)])
    square = float(gaussian_rms(law.slope, scale, bias)[0] ** 2)
    fourth = float(gaussian_rms(lambda u: law.slope(u) ** 2, scale, bias)[0] ** 2)
    return fourth / square**2 if square else 1.0


def _check_numbers(gain: float, bias: float, batch: int, outputs: int) -> None:
    if not 0 < gain < math.inf:
        raise UsageError(f"gain multiplies the weights and must be a positive number, not {gain}")
    if not math.isfinite(bias):
        raise UsageError(f"bias must be a finite number, not {bias}")
    if outputs > 10**6:
        raise UsageError(f"a prediction needs at most 1,000,000 outputs, not {outputs:,}")
    if batch < 1:
        raise UsageError(f"the batch size must be 1 or more, not {batch}")


def _checked_squares(mean_square: npt.ArrayLike) -> Floats:
    squares = np.atleast_1d(np.asarray(mean_square, np.float64))
    if squares.ndim != 1 or not squares.size or not (np.isfinite(squares) & (squares >= 0)).all():
        raise UsageError("mean_square must be a number from 0 up, the mean of x**2, or a list of such numbers")
    return squares


def _batch(x: npt.ArrayLike, y: npt.ArrayLike, features: int, outputs: int) -> Inputs:
    samples, labels = np.asarray(x, np.float64), np.asarray(y)
    if samples.ndim != 2 or not len(samples) or samples.shape[1] != features or not np.isfinite(samples).all():
        raise UsageError(f"x must hold finite numbers [samples, {features}], its shape is {list(samples.shape)}")
    classes = range(max(outputs, 2))
    if labels.shape != samples.shape[:1] or not np.isin(labels, classes).all():
        raise UsageError(f"y must hold {len(samples)} classes from 0 to {classes[-1]}, one for each row of x")
    squares = (samples**2).mean(axis=1)
    unit = samples / np.sqrt(np.where(squares > 0, squares, 1.0))[:, None]
    return Inputs(squares, unit @ unit.T / features, labels.astype(np.int64))
