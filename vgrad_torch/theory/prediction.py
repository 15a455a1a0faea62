"""predict(): mean-field theory of an MLP before it is built. Signal and gradient of each layer, from widths and laws.

With independent weights of mean zero every pre-activation is Gaussian, and its variance follows from the variance at
the layer below. Each layer multiplies the mean square of the gradient by a factor of its own (Poole et al. 2016;
Schoenholz et al. 2017, "Deep information propagation"). All numbers are RMS over draws of the weights; a single network
scatters around them.
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
"""Variance of a weight as a function of fan-in and fan-out, for the names of `initializers.INITIALIZERS`."""


_RANGE = (1e-120, 1e120)
"""Standard deviations of weights for which squares and products stay in the range of a double."""


@dataclass(frozen=True, slots=True)
class LayerPrediction:
    """One layer. The names are those of a snapshot; gradients are of the mean loss over a batch.

    Attributes:
        name: fc1, fc2, ...
        fan_in: columns of the weight.
        fan_out: rows of the weight.
        weight_rms: standard deviation of the weight's law.
        output_rms: RMS of the pre-activation z.
        output_gradient_rms: RMS of dL/dz over all samples and units of a batch.
        output_gradient_norm: Euclidean norm of dL/dz over all samples and units. Layers of different widths compare by
            the norm.
        weight_gradient_rms: RMS of dL/dW. Without data the gradients of the samples count as uncorrelated. Measured,
            this is up to a factor of 1.5 too large and 2.5 too small (5 for N(0, 1) weights), with nearly the same
            factor at every layer in most networks.
        weight_gain: RMS(input gradient) / RMS(output gradient).
        activation_gain: RMS of the activation's derivative at this layer's output; None for the last layer.
        chi: chi_1 at this layer, the factor on the squared norm of the output gradient from the layer above to this
            one. Below one the gradient shrinks, above one it grows. None for the last layer.
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
    """The prediction for one network.

    Attributes:
        activation: name of the activation.
        init: name of the weights' law; `given` if standard deviations were passed.
        layers: the layers, first layer first.
        criticality: fixed point, chi_1 and depth scale of an infinitely deep network with these weights. Its
            sigma_w**2 is the geometric mean over all layers but the first.
        scatter: standard deviation, over draws of the weights, of the log10 of the RMS of the first layer's output
            gradient. Correct to a factor of 2. Orthogonal weights scatter less. Draws with a dead relu layer (log10 of
            zero) do not count.
    """

    activation: str
    init: str
    layers: tuple[LayerPrediction, ...]
    criticality: Criticality
    scatter: float

    @property
    def norm_ratio(self) -> float:
        """S: norm of the first layer's output gradient / norm of the last one's. Small: vanishing. Large: exploding."""
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
    """Predict every layer of `build_mlp(widths, activation, init)` with a cross-entropy loss.

    One output means binary cross-entropy behind a sigmoid; several mean softmax cross-entropy.

    Args:
        widths: number of units of every layer, input and output included.
        activation: a key of `theory.activations.ACTIVATIONS`.
        init: a key of `VARIANCES`; or the standard deviation of each layer's weights, such as their measured RMS.
        gain: factor on every weight.
        bias: value of every bias.
        batch: number of samples that the loss is averaged over.
        mean_square: mean(x**2) of an input, 1 if standardised, .11 for MNIST in [0, 1]; or one value for each input.
        data: a batch (x [samples, features], y [samples], classes from 0) that replaces `batch` and `mean_square`. The
            weight gradients then include the correlations between samples, and are correct to a factor of 1.3 (relu
            with he: 1.8).

    Raises:
        UsageError: a name is unknown; a width, number or batch is out of range; signal or gradient grow beyond 1e300;
            weights are smaller than 1e-120 or larger than 1e120.

    >>> net = predict([784, 512, 256, 128, 64, 32, 16, 10], "sigmoid", "uniform", mean_square=0.112)
    >>> print(f"{net.layers[0].weight_gradient_rms:.2e} {net.norm_ratio:.1e}")
    1.29e-08 5.2e-06
    """
    phi = choose(ACTIVATIONS, activation, "activation")
    fans = list(pairwise(checked_widths(widths)))
    _check_numbers(gain, bias, batch, fans[-1][1])
    stds = [gain * std for std in _deviations(init, fans)]
    if not _RANGE[0] < min(stds) <= max(stds) < _RANGE[1]:
        raise UsageError(f"weights must be between {_RANGE[0]:g} and {_RANGE[1]:g} in size; use another gain")
    inputs = Inputs(_checked_squares(mean_square)) if data is None else _batch(*data, fans[0][0], fans[-1][1])
    size = batch if data is None else len(inputs.squares)
    try:
        with np.errstate(over="raise"):
            stages = list(forward(fans, stds, phi, bias, inputs))
            gradients = list(backward(stages, phi, bias, inputs.labels))[::-1]
            layers = tuple(_layer(n, stages, gradients, bias, size) for n in range(len(fans)))
    except FloatingPointError as error:
        raise UsageError("the gradient grows beyond 1e300; use fewer layers or a smaller gain") from error
    typical = math.exp(np.mean([math.log(stage.fan_in * stage.std**2) for stage in stages[1:] or stages]))
    limit = criticality(activation, typical, bias=bias, start=rms(stages[0].scale) ** 2)
    init_name = init if isinstance(init, str) else "given"
    return Prediction(activation, init_name, layers, limit, _scatter(stages, phi, bias))


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
        weight_gradient_rms=gradient.weight / (math.sqrt(batch) if stage.correlations is None else 1),
        weight_gain=math.sqrt(stage.fan_out) * stage.std,
        activation_gain=slope if above else None,
        chi=above.fan_in * (above.std * slope) ** 2 if above else None,
    )


def _scatter(stages: Sequence[Stage], phi: Activation, bias: float) -> float:
    """See `Prediction.scatter`.

    Each hidden layer multiplies the squared norm by a mean of n terms, the squares of W^T delta times phi'**2. So the
    sum of 1/n over the layers decides (Hanin 2018, "Which neural net architectures give rise to exploding and vanishing
    gradients?"). We added the factor 1 / (K - 1): K classes give K - 1 nearly independent gradients. It agrees with
    measurements.
    """
    variance = sum((3 * _kurtosis(stage, phi, bias) - 1) / stage.fan_out for stage in stages[:-1])
    return math.log10(math.e) / 2 * math.sqrt(variance / max(stages[-1].fan_out - 1, 1))


def _kurtosis(stage: Stage, phi: Activation, bias: float) -> float:
    """E phi'**4 / (E phi'**2)**2 at a layer. 1 for a constant slope, 2 for relu."""
    scale = np.array([rms(stage.scale)])
    square = float(gaussian_rms(phi.slope, scale, bias)[0] ** 2)
    fourth = float(gaussian_rms(lambda u: phi.slope(u) ** 2, scale, bias)[0] ** 2)
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
        raise UsageError("mean_square must be a number from 0 up (the mean of x**2), or a list of such numbers")
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
