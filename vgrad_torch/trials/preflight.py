"""preflight(): one batch before training, and what it says about the gradient; the model is left as it was."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vgrad_torch.records import Snapshot
from vgrad_torch.theory.prediction import Prediction
from vgrad_torch.trials.chains import expected
from vgrad_torch.trials.measure import LossFunction, measure
from vgrad_torch.trials.units import LayerUnits
from vgrad_torch.verdict.diagnosis import Diagnosis, LayerState, diagnose, table
from vgrad_torch.verdict.rules import family, judge, two_digits
from vgrad_torch.verdict.waterfall import Waterfall, waterfall
from vgrad_torch.verdict.words import listed
from vgrad_torch.watching.hooks import Layers


@dataclass(frozen=True, slots=True)
class Preflight:
    """What one batch showed; `str()` is a table of the layers and two paragraphs.

    Attributes:
        diagnosis: the verdict with its evidence, who is to blame and what to do next.
        snapshot: every layer's statistics, as `watch` would take them at step 0.
        predicted: what theory expects of weights of this RMS and inputs of this size; None where the model is no
            nn.Sequential of Linear layers with one and the same known activation between them.
        units: dead and saturated units of each call of a layer.
        spread: ||x - mean of x over the batch|| / ||x|| of the last layer's input; near 0 all samples look alike to it.
        loss: of the batch.
        steps: for SGD and a mean loss, how many steps the plateau of a sigmoid or tanh network lasts about, 20 / (S *
            lr / (1 - momentum)), where S is the norm of the first layer's output gradient over the last one's. 18
            networks of the calibration's grid took 0.03 to 7 times as many; relu-like ones take fewer, down to a
            hundredth. None for others, without an optimizer, and for a healthy network or one that has no plateau.
        otherwise: the verdict for Adam, where none was given and SGD was assumed; else None.
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
        """One of `verdicts.VERDICTS`."""
        return self.diagnosis.verdict

    @property
    def waterfall(self) -> Waterfall | None:
        """Every factor on the gradient's way from the last layer to the first."""
        return waterfall(self.snapshot)

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = 100) -> str:
        """The table and, wrapped to a width, the paragraphs."""
        words = [self.diagnosis.paragraph(), " ".join(_remarks(self))]
        return "\n".join([*_table(self), *("\n" + textwrap.fill(text, width) for text in words if text)])


def preflight(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: tuple[Any, Any],
    optimizer: Optimizer | None = None,
    *,
    layers: Layers = nn.Linear,
) -> Preflight:
    """Say before training whether a gradient will reach the first layer, from one forward and backward pass.

    The model runs in the modes it is in; afterwards it, the optimizer, the batch and all random states are as before.

    Args:
        model: any module.
        loss_fn: called with the model's output and the batch's target; returns one number.
        batch: input and target. The model is called with the input; with each of its entries if it is a tuple, by
            their names if it is a dict.
        optimizer: what you will train with. A copy of it takes one step on copies of its parameters, for the update
            ratios. Left out, the verdict is that for SGD.
        layers: which layers to look at, see `watch`.

    Raises:
        UsageError: the batch is no pair or empty, the loss no number, nothing requires a gradient, or the optimizer is
            another model's or cannot take a step. Whatever the model raises is passed on.

    >>> import torch
    >>> from vgrad_torch.models.mlp import build_mlp
    >>> model = build_mlp([4, *[32] * 20, 3], "sigmoid", "glorot", generator=torch.Generator().manual_seed(0))
    >>> x, y = torch.linspace(-1, 1, 32).reshape(8, 4), torch.arange(8) % 3
    >>> preflight(model, nn.functional.cross_entropy, (x, y)).verdict
    'vanishing'
    """
    snapshot, units, loss = measure(model, loss_fn, batch, optimizer, layers=layers)
    name = "SGD" if optimizer is None else type(optimizer).__name__
    diagnosis = diagnose([snapshot], optimizer=name, losses=[loss])
    return Preflight(
        diagnosis, snapshot, expected(model, batch[0]), units.found(), units.spread, loss,
        steps=_plateau(diagnosis, optimizer),
        otherwise=judge(diagnosis.evidence, "Adam").verdict if optimizer is None else None,
    )  # fmt: skip


_PLATEAU = ("slow", "vanishing", "cannot tell", "frozen")


def _plateau(diagnosis: Diagnosis, optimizer: Optimizer | None) -> float | None:
    """A plateau of SGD lasts about 20 / (lr S) steps; with momentum lr / (1 - momentum) is the rate that counts."""
    signal = diagnosis.evidence.signal
    if optimizer is None or family(diagnosis.optimizer) != "sgd" or diagnosis.verdict not in _PLATEAU:
        return None
    group = optimizer.param_groups[0]
    rate, left = float(group["lr"]), 1 - float(group.get("momentum", 0.0))
    return 20 * left / (rate * 10.0**signal) if rate > 0 and left > 0 and signal > -math.inf else None


_HEAD = ("layer", "size", "gradient", "expected", "weight gain", "activation gain", "dead", "saturated",
         "update ratio", "state")  # fmt: skip


def _table(found: Preflight) -> Iterator[str]:
    """Without the columns in which nothing stands."""
    expected = _expected(found)
    units = {unit.label: unit for unit in found.units}
    rows = [_cells(layer, units.get(layer.label), expected.get(layer.label)) for layer in found.diagnosis.layers]
    kept = [any(cells) for cells in zip_longest(*rows)]
    return table(_filled(_HEAD, kept), [_filled(row, kept) for row in rows])


def _filled(row: tuple[str, ...], kept: list[bool]) -> list[str]:
    return [cell for cell, keep in zip(row, kept, strict=True) if keep]


def _expected(found: Preflight) -> dict[str, float]:
    """The norms of the output gradients over the last one's, by label."""
    if found.predicted is None or len(found.predicted.layers) != len(found.snapshot.layers):
        return {}
    last = found.predicted.layers[-1].output_gradient_norm
    pairs = zip(found.snapshot.layers, found.predicted.layers, strict=True)
    return {layer.label: predicted.output_gradient_norm / last for layer, predicted in pairs} if last else {}


def _cells(layer: LayerState, units: LayerUnits | None, expected: float | None) -> tuple[str, ...]:
    dead, saturated = (units.dead, units.saturated) if units else (None, None)
    return (
        layer.label, layer.size, _digits(layer.gradient), _digits(expected), _digits(layer.weight_gain),
        _digits(layer.activation_gain), _percent(dead), _percent(saturated), _digits(layer.update_ratio), layer.word,
    )  # fmt: skip


def _digits(value: float | None) -> str:
    return "" if value is None else two_digits(value)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _remarks(found: Preflight) -> Iterator[str]:
    if found.otherwise is not None:
        yield f"Judged for SGD, as no optimizer was given; for Adam the verdict is: {found.otherwise}."
    whole = bool(found.snapshot.layers) and found.diagnosis.evidence.first == found.snapshot.layers[0].label
    if found.predicted is not None and whole and found.diagnosis.evidence.signal > -math.inf:
        yield (
            f"Weights of this size were expected to leave {found.predicted.norm_ratio:.2g} at the first layer (one net "
            f"in three is off by more than a factor of {10 ** min(found.predicted.scatter, 300):.2g})."
        )
    yield from _unit_remarks(found)
    if found.spread < COLLAPSED:
        yield (
            f"To the last layer all samples look alike: they differ by {found.spread:.1g} of its input, so what it can "
            "learn first is the targets' mean; of classes, how frequent they are."
        )
    if found.steps is not None:
        yield (
            f"At this learning rate it would start to learn after {_many(found.steps)} steps by the plateau law of "
            "sigmoid and tanh networks with a mean loss, give or take a factor of ten; relu-like ones need fewer."
        )


def _many(steps: float) -> str:
    """A rough number in words.

    >>> _many(12345.0), _many(7e20)
    ('about 10,000', 'more than ten million')
    """
    return "more than ten million" if steps > 1e7 else f"about {float(f'{max(steps, 1):.1g}'):,.0f}"


COLLAPSED = 0.05
"""A spread below which samples look alike to the last layer."""
_MANY_UNITS = 0.5


def _unit_remarks(found: Preflight) -> Iterator[str]:
    hidden = found.units[:-1]
    dead = [unit.label for unit in hidden if (unit.dead or 0) > _MANY_UNITS]
    if dead:
        yield f"More than half of the units are dead, zero for every sample of this batch, in {listed(dead)}."
    saturated = [unit.label for unit in hidden if (unit.saturated or 0) > _MANY_UNITS]
    if saturated:
        yield f"More than half of the activations are saturated behind {listed(saturated)}."
