"""preflight(): judges the gradient of a model from one batch, before training, and leaves the model as it was."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, zip_longest
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vgrad_torch.records import Snapshot
from vgrad_torch.theory.prediction import Prediction
from vgrad_torch.trials.chains import predict_model
from vgrad_torch.trials.measure import LossFunction, measure
from vgrad_torch.trials.units import LayerUnits
from vgrad_torch.verdict.diagnosis import Diagnosis
from vgrad_torch.verdict.labels import listed, two_digits
from vgrad_torch.verdict.optimizers import family
from vgrad_torch.verdict.rules import judge
from vgrad_torch.verdict.states import LayerState, legend
from vgrad_torch.verdict.tables import WIDTH, layer_table, wrapped_lines
from vgrad_torch.verdict.waterfall import Waterfall, waterfall
from vgrad_torch.watching.selection import Layers


@dataclass(frozen=True, slots=True)
class Preflight:
    """The result of `preflight`; `str()` is a table of the layers, the reasons, and what to do next.

    Attributes:
        diagnosis: the verdict, its evidence, its causes and what to do next.
        snapshot: the statistics of every layer, as `watch` would take them at step 0.
        predicted: what theory predicts for weights of this RMS and inputs of this size; None unless the model is an
            nn.Sequential of Linear layers with the same known activation between all of them.
        units: dead and saturated units of each call of a layer.
        spread: ||x - mean of x over the batch|| / ||x|| of the last layer's input x. Near 0, the last layer cannot tell
            the samples apart.
        loss: the loss of the batch.
        steps: estimated number of steps before a sigmoid or tanh network starts to learn with SGD and a mean loss:
            20 / (S * lr / (1 - momentum)), where S is the norm of the first layer's output gradient / norm of the last
            one's. 18 networks of the calibration grid took 0.03 to 7 times this number; relu-like networks take fewer
            steps, down to a hundredth. None for other optimizers or without one, and for verdicts without a plateau.
        otherwise: the verdict for Adam if no optimizer was given and SGD was assumed; else None.
    """

    diagnosis: Diagnosis
    snapshot: Snapshot
    predicted: Prediction | None
    units: tuple[LayerUnits, ...]
    spread: float
    loss: float
    steps: float | None
    otherwise: str | None

    @property
    def verdict(self) -> str:
        """One of `verdict.rules.VERDICTS`."""
        return self.diagnosis.verdict

    @property
    def waterfall(self) -> Waterfall | None:
        """Every factor on the gradient between the last layer and the first."""
        return waterfall(self.snapshot)

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """The table, and the paragraphs wrapped to a width; the advice is the last one."""
        paragraphs = [self.diagnosis.reasons(), " ".join(_remarks(self)), " ".join(self.diagnosis.advice)]
        return "\n".join([*_table(self, None), *("\n" + textwrap.fill(text, width) for text in paragraphs if text)])

    def table(self, layers: str = "") -> str:
        """The table of all layers; or of those in a block or module, such as `h.3`, or with this text in their name."""
        return "\n".join(_table(self, layers))


def preflight(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: tuple[Any, Any],
    optimizer: Optimizer | None = None,
    *,
    layers: Layers = None,
) -> Preflight:
    """Judge before training whether the gradient reaches the first layer, from one forward and one backward pass.

    The model runs in its current modes (train or eval). Afterwards the model, the optimizer, the batch and all random
    states are as before.

    Args:
        model: any module.
        loss_fn: called with the model's output and the batch's target; returns one number.
        batch: input and target. The model is called with the input. The entries of a tuple become arguments, those of
            a dict keyword arguments.
        optimizer: the optimizer that you will train with. A copy of it takes one step on copies of its parameters, to
            measure the update ratios. Without an optimizer the verdict is for SGD.
        layers: which layers to look at, see `watch`.

    Raises:
        UsageError: the batch is empty or not a pair, the loss is not a number, no parameter requires a gradient, or the
            optimizer belongs to another model or cannot take a step. Exceptions of the model are passed on.

    >>> import torch
    >>> from vgrad_torch.models.mlp import build_mlp
    >>> model = build_mlp([4, *[32] * 20, 3], "sigmoid", "glorot", generator=torch.Generator().manual_seed(0))
    >>> x, y = torch.linspace(-1, 1, 32).reshape(8, 4), torch.arange(8) % 3
    >>> preflight(model, nn.functional.cross_entropy, (x, y)).verdict
    'vanishing'
    """
    measured = measure(model, loss_fn, batch, optimizer, layers=layers)
    diagnosis = measured.diagnosis(optimizer)
    return Preflight(
        diagnosis,
        measured.snapshot,
        predict_model(model, batch[0]),
        measured.units.by_call(),
        measured.units.spread,
        measured.loss,
        steps=_plateau(diagnosis, optimizer),
        otherwise=judge(diagnosis.evidence, "Adam").verdict if optimizer is None else None,
    )


_WITH_PLATEAU = ("slow", "vanishing", "cannot tell", "frozen")


def _plateau(diagnosis: Diagnosis, optimizer: Optimizer | None) -> float | None:
    """See `Preflight.steps`."""
    signal = diagnosis.evidence.signal
    if optimizer is None or family(diagnosis.optimizer) != "sgd" or diagnosis.verdict not in _WITH_PLATEAU:
        return None
    group = optimizer.param_groups[0]
    lr, damping = float(group["lr"]), 1 - float(group.get("momentum", 0.0))
    return 20 * damping / (lr * 10.0**signal) if lr > 0 and damping > 0 and signal > -math.inf else None


_HEAD = ("layer", "size", "gradient", "expected", "weight gain", "activation gain", "dead", "saturated",
         "update ratio", "state")  # fmt: skip
_HOW = 'On the result of preflight, `.table()` lists all layers and `.table("{}")` those of one block.'


def _table(result: Preflight, layers: str | None) -> Iterator[str]:
    """The table of the layers without its empty columns, and the legend of their states; see `layer_table`."""
    predicted = _predicted_norms(result)
    units = {unit.label: unit for unit in result.units}
    rows = [_row(layer, units.get(layer.label), predicted.get(layer.label)) for layer in result.diagnosis.layers]
    filled = [any(column) for column in zip_longest(*rows)]
    shown = [[*compress(row, filled)] for row in rows]
    yield from layer_table([*compress(_HEAD, filled)], shown, layers, _HOW).lines()
    yield from wrapped_lines(legend(layer.word for layer in result.diagnosis.layers))


def _predicted_norms(result: Preflight) -> dict[str, float]:
    """Label -> predicted norm of the layer's output gradient, relative to the last layer's."""
    if result.predicted is None or len(result.predicted.layers) != len(result.snapshot.layers):
        return {}
    last = result.predicted.layers[-1].output_gradient_norm
    pairs = zip(result.snapshot.layers, result.predicted.layers, strict=True)
    return {layer.label: predicted.output_gradient_norm / last for layer, predicted in pairs} if last else {}


def _row(layer: LayerState, units: LayerUnits | None, predicted: float | None) -> tuple[str, ...]:
    dead, saturated = (units.dead, units.saturated) if units else (None, None)
    return (
        layer.label, layer.size, _digits(layer.gradient), _digits(predicted), _digits(layer.weight_gain),
        _digits(layer.activation_gain), _percent(dead), _percent(saturated), _digits(layer.update_ratio), layer.word,
    )  # fmt: skip


def _digits(value: float | None) -> str:
    return "" if value is None else two_digits(value)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


COLLAPSED = 0.05
"""Below this spread the last layer cannot tell the samples apart."""


def _remarks(result: Preflight) -> Iterator[str]:
    if result.otherwise is not None:
        yield f"No optimizer was given, so the verdict is for SGD. The verdict for Adam is: {result.otherwise}."
    evidence, layers = result.diagnosis.evidence, result.snapshot.layers
    from_first_layer = bool(layers) and not evidence.folded and evidence.first == layers[0].label
    if result.predicted is not None and from_first_layer and evidence.signal > -math.inf:
        factor = 10 ** min(result.predicted.scatter, 300)
        yield (
            f"For weights of this size, theory predicts that {result.predicted.norm_ratio:.2g} of the gradient reaches "
            f"the first layer. One network in three differs from that by more than a factor of {factor:.2g}."
        )
    yield from _unit_remarks(result.units[:-1])
    if result.spread < COLLAPSED:
        yield (
            f"All samples look nearly the same to the last layer: its inputs differ by {result.spread:.1g} of their "
            "size. At first it can learn only the mean of the targets; for classes, that is how frequent each one is."
        )
    if result.steps is not None:
        yield (
            f"At this learning rate the network would start to learn after {_rounded(result.steps)} steps. This "
            "estimate is for sigmoid and tanh networks with a mean loss, and can be wrong by a factor of ten. "
            "Relu-like networks need fewer steps."
        )


def _unit_remarks(hidden: Sequence[LayerUnits]) -> Iterator[str]:
    dead = [units.label for units in hidden if (units.dead or 0) > 0.5]
    if dead:
        yield f"More than half of the units are dead in {listed(dead)}: their gradient is zero for every sample."
    saturated = [units.label for units in hidden if (units.saturated or 0) > 0.5]
    if saturated:
        yield f"More than half of the activations are saturated after {listed(saturated)}."


def _rounded(steps: float) -> str:
    """A number of steps to one digit.

    >>> _rounded(12345.0), _rounded(7e20)
    ('about 10,000', 'more than ten million')
    """
    return "more than ten million" if steps > 1e7 else f"about {float(f'{max(steps, 1):.1g}'):,.0f}"
