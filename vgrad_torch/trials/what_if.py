"""what_if(): the mends of a network tried on copies of it, one forward and backward pass each, and ranked."""

from __future__ import annotations

import copy
import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vgrad_torch.errors import UsageError
from vgrad_torch.trials.measure import LossFunction, check, measure
from vgrad_torch.trials.preflight import COLLAPSED
from vgrad_torch.trials.remedies import KINDS, Mend, mends, untried
from vgrad_torch.trials.restore import random_states
from vgrad_torch.verdict.cutoffs import CUTOFFS
from vgrad_torch.verdict.diagnosis import Diagnosis, diagnose, table
from vgrad_torch.verdict.rules import ALARMS, judge
from vgrad_torch.watching.hooks import Layers

_MENDABLE = ("vanishing", "exploding", "dead", "slow", "non-finite")


@dataclass(frozen=True, slots=True)
class Trial:
    """A mend, and the verdict on the network that has it; `error` says why there is none. `spread` as `Preflight`'s."""

    mend: Mend
    diagnosis: Diagnosis | None
    spread: float
    error: str = ""

    @property
    def verdict(self) -> str:
        """In one word."""
        return self.diagnosis.verdict if self.diagnosis else f"raises {self.error}"

    @property
    def signal(self) -> float:
        """S: norm of the first layer's output gradient over the last one's; NaN where there is none."""
        return 10.0**self.diagnosis.evidence.signal if self.diagnosis else math.nan


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What was tried, best first; nothing where the network is not ill. `str()` is a table and the best one's code.

    `untried` says, in sentences, what could not be tried and why.
    """

    before: Diagnosis
    spread: float
    trials: tuple[Trial, ...]
    untried: tuple[str, ...] = ()

    @property
    def best(self) -> Trial | None:
        """The simplest mend that makes the network healthy; else the one that comes nearest, if it is no alarm."""
        return self.trials[0] if self.trials and _grade(self.trials[0]) < _HOPELESS else None

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = 100) -> str:
        """The table, sentences wrapped to a width, and the code."""
        if self.before.verdict not in _MENDABLE:
            return textwrap.fill(f"Nothing to mend: {self.before.because}.", width)
        before = _row("as it is", self.before, self.spread, self.before.verdict)
        rows = [before, *(_row(t.mend.name, t.diagnosis, t.spread, t.verdict) for t in self.trials)]
        return "\n".join([*table(_HEAD, rows), "", *_advice(self, width)])


def what_if(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: tuple[Any, Any],
    optimizer: Optimizer | None = None,
    *,
    layers: Layers = nn.Linear,
) -> WhatIf:
    """Try other weights, activations, normalisation and residual connections on copies of a model that is ill.

    The verdict is from one batch before training, as that of `preflight`, whose arguments these are. New weights are
    drawn from a fixed seed. The ranking prefers a network that is healthy whatever the optimizer, whose gradient grows
    no more than tenfold and whose last layer can tell the samples apart; then one that is healthy with this optimizer;
    among these the simpler change. Nothing is changed; the best one's code is for you to copy. A healthy network is
    left in peace.

    Raises:
        UsageError: as `preflight`; or the model cannot be copied.

    >>> from vgrad_torch.models.mlp import build_mlp
    >>> model = build_mlp([4, *[32] * 20, 3], "relu", "glorot", generator=torch.Generator().manual_seed(0))
    >>> x, y = torch.linspace(-1, 1, 32).reshape(8, 4), torch.arange(8) % 3
    >>> found = what_if(model, nn.functional.cross_entropy, (x, y))
    >>> found.before.verdict, found.best.mend.kind
    ('slow', 'initializer')
    """
    check(model, batch, optimizer)
    name = "SGD" if optimizer is None else type(optimizer).__name__
    before, spread = _judged(model, loss_fn, batch, name, layers)
    if before.verdict not in _MENDABLE and not before.evidence.shut:
        return WhatIf(before, spread, ())
    trials = [_tried(mend, model, loss_fn, batch, name, layers) for mend in mends(model, batch[0])]
    return WhatIf(before, spread, tuple(sorted(trials, key=_rank)), tuple(untried(model, batch[0])))


def apply(mend: Mend, model: nn.Module, x: Any) -> nn.Module:
    """Run a mend's code on this model, with the batch's input `x`; returns the mended model."""
    scope = {"model": model, "x": x}
    exec(mend.code, scope)  # the text is that of mends.py
    mended = scope["model"]
    assert isinstance(mended, nn.Module)
    return mended


def _judged(
    model: nn.Module, loss_fn: LossFunction, batch: tuple[Any, Any], name: str, layers: Layers
) -> tuple[Diagnosis, float]:
    snapshot, units, loss = measure(model, loss_fn, batch, layers=layers)
    return diagnose([snapshot], optimizer=name, losses=[loss]), units.spread


def _tried(
    mend: Mend, model: nn.Module, loss_fn: LossFunction, batch: tuple[Any, Any], name: str, layers: Layers
) -> Trial:
    try:
        twin, x = copy.deepcopy((model, batch[0]))
    except Exception as error:
        raise UsageError(f"the model cannot be copied, so nothing can be tried on it: {error}") from error
    with random_states():
        torch.manual_seed(0)
        try:
            return Trial(mend, *_judged(apply(mend, twin, x), loss_fn, batch, name, layers))
        except Exception as error:  # the user's model may not bear every change, which is shown
            return Trial(mend, None, math.nan, f"{type(error).__name__}: {error}".partition("\n")[0])


_HOPELESS = 4
_LARGEST = 10.0  # of S: tanh on weights drawn from N(0, 1), 14 layers of 8, has 29 and does not train


def _grade(trial: Trial) -> int:
    """0 is healthy whatever the optimizer, neither collapsed nor growing; 1 is healthy with this one."""
    if trial.diagnosis is None:
        return _HOPELESS + 1
    if trial.verdict in ALARMS:
        return _HOPELESS
    if trial.verdict == "healthy":
        others = (judge(trial.diagnosis.evidence, name).verdict for name in CUTOFFS)
        safe = not trial.spread < COLLAPSED and not trial.signal > _LARGEST
        return int(not safe or any(verdict != "healthy" for verdict in others))
    return 2 if trial.verdict == "slow" else 3


def _rank(trial: Trial) -> tuple[float, ...]:
    """Of equals one that needs no batch, then the one whose gradient keeps its size best."""
    distance = abs(trial.diagnosis.evidence.signal) if trial.diagnosis else 0.0
    kind = KINDS.index(trial.mend.kind)
    grade = _grade(trial)
    return (grade, distance) if grade == _HOPELESS else (grade, kind, "lsuv" in trial.mend.name, distance)


_HEAD = ("change", "gradient", "asked", "spread", "verdict")


def _row(name: str, found: Diagnosis | None, spread: float, verdict: str) -> tuple[str, ...]:
    if found is None:
        return name, "", "", "", verdict
    numbers = (10.0**found.evidence.signal, 10.0**found.evidence.drive, spread)
    return name, *(f"{number:.2g}" for number in numbers), verdict


def _advice(found: WhatIf, width: int) -> Iterator[str]:
    yield textwrap.fill(
        "gradient: its norm at the first layer over that at the last. asked: what an error of one at each output asks "
        "the first weight to change by, relative to it. spread: by how much of itself the last layer's input differs "
        f"between samples. The verdict is for {found.before.optimizer}; first come those that are healthy with other "
        "optimizers too and tell samples apart, the simpler ones before the others.", width,
    )  # fmt: skip
    if found.before.verdict == "exploding":
        yield ""
        yield "To train it as it is, clip before each step: nn.utils.clip_grad_norm_(model.parameters(), 1.0)."
    for sentence in found.untried:
        yield ""
        yield textwrap.fill(sentence, width)
    yield ""
    if found.best is None:
        yield "None of these would mend it."
        return
    yield f"{found.best.mend.name}, to be put before the optimizer is made:"
    yield ""
    yield textwrap.indent(found.best.mend.code.rstrip(), "    ")
