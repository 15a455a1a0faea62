"""what_if(): tries remedies on copies of a model, with one forward and backward pass each, and ranks them."""

from __future__ import annotations

import copy
import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vgrad_torch.errors import UsageError
from vgrad_torch.trials.measure import LossFunction, check_arguments, measure
from vgrad_torch.trials.preflight import COLLAPSED
from vgrad_torch.trials.remedies import KINDS, Remedy, remedies, untried
from vgrad_torch.trials.restore import random_states_restored_on_exit
from vgrad_torch.verdict.cutoffs import CUTOFFS
from vgrad_torch.verdict.diagnosis import Diagnosis
from vgrad_torch.verdict.rules import ALARMS, judge
from vgrad_torch.verdict.tables import WIDTH, table
from vgrad_torch.watching.selection import Layers

_WITH_REMEDY = ("vanishing", "exploding", "dead", "slow", "non-finite")


@dataclass(frozen=True, slots=True)
class Trial:
    """A remedy and the verdict on the model that has it.

    Attributes:
        remedy: what was changed.
        diagnosis: the verdict with its evidence; None if the changed model raised an exception.
        spread: as `Preflight.spread`.
        error: the exception in one line; empty if there was none.
    """

    remedy: Remedy
    diagnosis: Diagnosis | None
    spread: float
    error: str = ""

    @property
    def mend(self) -> Remedy:
        """The same as `remedy`, under its old name."""
        return self.remedy

    @property
    def verdict(self) -> str:
        """The verdict in one word, or the exception."""
        return self.diagnosis.verdict if self.diagnosis else f"raises {self.error}"

    @property
    def signal(self) -> float:
        """S: norm of the first layer's output gradient / norm of the last one's; NaN if there is none."""
        return 10.0**self.diagnosis.evidence.signal if self.diagnosis else math.nan


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The result of `what_if`; `str()` is a table and the code of the best remedy.

    Attributes:
        before: the verdict on the unchanged model.
        spread: as `Preflight.spread`, of the unchanged model.
        trials: all remedies that were tried, the best first; empty if the model needs none.
        untried: sentences that say what could not be tried, and why.
    """

    before: Diagnosis
    spread: float
    trials: tuple[Trial, ...]
    untried: tuple[str, ...] = ()

    @property
    def best(self) -> Trial | None:
        """The first trial; None if there is none, or if its verdict is still an alarm."""
        return self.trials[0] if self.trials and _grade(self.trials[0]) < _ALARM else None

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """The result as text: the table, the sentences wrapped to `width`, and the code of the best remedy."""
        if self.before.verdict not in _WITH_REMEDY:
            return textwrap.fill(f"Nothing to fix. {self.before.because}", width)
        rows = [_row("unchanged", self.before, self.spread, self.before.verdict)]
        rows += [_row(t.remedy.name, t.diagnosis, t.spread, t.verdict) for t in self.trials]
        return "\n".join([*table(_HEAD, rows), "", *_paragraphs(self, width)])


def what_if(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: tuple[Any, Any],
    optimizer: Optimizer | None = None,
    *,
    layers: Layers = None,
) -> WhatIf:
    """Try other weights, activations, normalisation and residual connections on copies of a model that needs a remedy.

    The arguments are those of `preflight`, and so are the verdicts: from one batch, before training. New weights are
    drawn from a fixed seed. The model itself does not change; copy the code of the best remedy. For a healthy model
    nothing is tried.

    First in the ranking are models that are healthy with every optimizer, whose gradient grows at most tenfold and
    whose last layer can tell the samples apart; then models that are healthy with this optimizer. Among equals, simpler
    changes come first.

    Raises:
        UsageError: as for `preflight`; or the model cannot be copied.

    >>> from vgrad_torch.models.mlp import build_mlp
    >>> model = build_mlp([4, *[32] * 20, 3], "relu", "glorot", generator=torch.Generator().manual_seed(0))
    >>> x, y = torch.linspace(-1, 1, 32).reshape(8, 4), torch.arange(8) % 3
    >>> result = what_if(model, nn.functional.cross_entropy, (x, y))
    >>> result.before.verdict, result.best.remedy.kind
    ('slow', 'initializer')
    """
    check_arguments(model, batch, optimizer)
    x = batch[0]

    def judge_model(candidate: nn.Module) -> tuple[Diagnosis, float]:
        measured = measure(candidate, loss_fn, batch, layers=layers)
        return measured.diagnosis(optimizer), measured.units.spread

    before, spread = judge_model(model)
    if before.verdict not in _WITH_REMEDY and not before.evidence.shut:
        return WhatIf(before, spread, ())
    trials = [_try(remedy, model, x, judge_model) for remedy in remedies(model, x)]
    return WhatIf(before, spread, tuple(sorted(trials, key=_rank)), tuple(untried(model, x)))


def apply(remedy: Remedy, model: nn.Module, x: Any) -> nn.Module:
    """Run the code of a remedy on this model (not on a copy), with the batch's input x; returns the changed model."""
    scope = {"model": model, "x": x}
    exec(remedy.code, scope)  # text from remedies.py only
    changed = scope["model"]
    assert isinstance(changed, nn.Module)
    return changed


def _try(
    remedy: Remedy, model: nn.Module, x: Any, judge_model: Callable[[nn.Module], tuple[Diagnosis, float]]
) -> Trial:
    try:
        model_copy, x_copy = copy.deepcopy((model, x))
    except Exception as error:
        raise UsageError(f"the model cannot be copied, so nothing can be tried on it: {error}") from error
    with random_states_restored_on_exit():
        torch.manual_seed(0)
        try:
            return Trial(remedy, *judge_model(apply(remedy, model_copy, x_copy)))
        except Exception as error:  # not every model works with every change; the table shows the exception
            return Trial(remedy, None, math.nan, f"{type(error).__name__}: {error}".partition("\n")[0])


_ALARM = 4
_LARGEST_SIGNAL = 10.0  # tanh with weights from N(0, 1), 14 layers of 8, has 29 and does not train


def _grade(trial: Trial) -> int:
    """0: healthy with every optimizer, not collapsed, not growing. 1: healthy with this optimizer. From 4: no help."""
    if trial.diagnosis is None:
        return _ALARM + 1
    if trial.verdict in ALARMS:
        return _ALARM
    if trial.verdict == "healthy":
        verdicts = (judge(trial.diagnosis.evidence, name).verdict for name in CUTOFFS)
        safe = not trial.spread < COLLAPSED and not trial.signal > _LARGEST_SIGNAL
        return int(not safe or any(verdict != "healthy" for verdict in verdicts))
    return 2 if trial.verdict == "slow" else 3


def _rank(trial: Trial) -> tuple[float, ...]:
    """Sort key. Among equals first those that need no batch, then those whose gradient changes least with depth."""
    distance = abs(trial.diagnosis.evidence.signal) if trial.diagnosis else 0.0
    kind = KINDS.index(trial.remedy.kind)
    grade = _grade(trial)
    return (grade, distance) if grade == _ALARM else (grade, kind, "lsuv" in trial.remedy.name, distance)


_HEAD = ("change", "gradient", "drive", "spread", "verdict")


def _row(name: str, diagnosis: Diagnosis | None, spread: float, verdict: str) -> tuple[str, ...]:
    if diagnosis is None:
        return name, "", "", "", verdict
    numbers = (10.0**diagnosis.evidence.signal, 10.0**diagnosis.evidence.drive, spread)
    return name, *(f"{number:.2g}" for number in numbers), verdict


def _paragraphs(result: WhatIf, width: int) -> Iterator[str]:
    legend = (
        "gradient: its norm at the first layer, relative to its norm at the last layer. drive: the size of the first "
        "layer's weight gradient, relative to the weights and to the error at the outputs. spread: how much the "
        "inputs of the last layer differ between samples, relative to their size. "
        f"The verdict is for {result.before.optimizer}. "
        "Networks that are also healthy with other optimizers and that tell the samples apart come first; among them, "
        "the simpler changes."
    )
    yield textwrap.fill(legend, width)
    if result.before.verdict == "exploding":
        yield ""
        yield "To train the unchanged network, clip the gradient before each step:"
        yield "    nn.utils.clip_grad_norm_(model.parameters(), 1.0)"
    for sentence in result.untried:
        yield ""
        yield textwrap.fill(sentence, width)
    yield ""
    if result.best is None:
        yield "None of these changes would fix the gradient."
        return
    yield f"Best change: {result.best.remedy.name}. Put this code before the optimizer is created:"
    yield ""
    yield textwrap.indent(result.best.remedy.code.rstrip(), "    ")
