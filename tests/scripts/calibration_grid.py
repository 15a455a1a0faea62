"""The grid that the verdict is calibrated on: its configurations, and the training of one configuration's networks."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn import datasets, preprocessing
from torch import Tensor

from tests.scripts.ensemble import Ensemble, Look
from vgrad_torch.models.mlp import build_mlp
from vgrad_torch.training.data import load

ACTIVATIONS = ("sigmoid", "tanh", "relu", "gelu", "selu", "softsign")
INITIALIZERS = ("uniform", "normal", "glorot", "he", "orthogonal", "torch")
DEPTHS = ((2, 3, 4), (5, 6, 8), (10, 12, 14), (16, 18, 20))
"""Hidden layers; of each group, as of the widths, a configuration has the one that its name hashes to."""
WIDTHS = (8, 16, 32, "64-16")
"""Of the hidden layers; the last is a pyramid."""
TARGETS = {"circles": 0.9, "digits": 0.8, "wine": 0.95}
"""Training accuracy that counts as success."""
RATES = {
    "sgd": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "rmsprop": (1e-4, 3e-4, 1e-3, 3e-3),
}
"""A network that succeeds at any of these rates succeeds; SGD has a momentum of 0.9."""
SEEDS = (0, 1, 2)
STEPS, BATCH = 3000, 32
EARLY = tuple(range(0, STEPS // 20 + 1, STEPS // 100))
"""Steps that are looked at from the start to 5 % of training; later every `EVERY`-th."""
EVERY, LAST = 100, 5


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything about a network but optimizer, learning rate and seed."""

    data: str
    act: str
    init: str
    depth: int
    width: str

    @property
    def name(self) -> str:
        return f"{self.data}_{self.act}_{self.init}_{self.depth}_{self.width}"

    @property
    def half(self) -> str:
        """Which half it belongs to: `fit` sets the cut-offs, `test` tests them."""
        return ("fit", "test")[_hash(self.name) % 2]

    def widths(self, inputs: int, outputs: int) -> list[int]:
        """Units of all layers, input and output included."""
        first, *rest = [float(width) for width in self.width.split("-")]
        last = rest[0] if rest else first
        hidden = [round(first * (last / first) ** (i / (self.depth - 1))) for i in range(self.depth)]
        return [inputs, *hidden, outputs]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def configurations() -> list[Configuration]:
    """All of the grid, in an order in which any beginning of it is a fair sample."""
    found = []
    for data in TARGETS:
        for act in ACTIVATIONS:
            for init in INITIALIZERS:
                for group in DEPTHS:
                    pick = _hash(f"{data} {act} {init} {group}")
                    depth, width = group[pick % 3], WIDTHS[pick // 3 % 4]
                    found.append(Configuration(data, act, init, depth, str(width)))
    return sorted(found, key=lambda configuration: _hash(configuration.name + " order"))


@cache
def data(name: str) -> tuple[Tensor, Tensor]:
    """The samples trained on, and their classes. Wine is standardised."""
    if name != "wine":
        dataset = load(name)
        return dataset.x_train, dataset.y_train
    x, y = datasets.load_wine(return_X_y=True)
    return torch.tensor(preprocessing.scale(x), dtype=torch.float32), torch.tensor(y)


def members() -> list[tuple[str, float, int]]:
    """Optimizer, learning rate and seed of each member of a configuration's ensemble."""
    return [(optimizer, rate, seed) for optimizer, rates in RATES.items() for rate in rates for seed in SEEDS]


def build(configuration: Configuration) -> Ensemble:
    """The ensemble of a configuration, untrained."""
    x, y = data(configuration.data)
    classes = int(y.max()) + 1
    widths = configuration.widths(x.shape[1], classes if classes > 2 else 1)
    models = [
        build_mlp(widths, configuration.act, configuration.init, generator=torch.Generator().manual_seed(seed))
        for _, _, seed in members()
    ]
    return Ensemble(models, [(name, [rate for rate in rates for _ in SEEDS]) for name, rates in RATES.items()])


class Training:
    """One configuration's training, and what was seen of it."""

    def __init__(self, configuration: Configuration) -> None:
        self.x, self.y = data(configuration.data)
        self.target = TARGETS[configuration.data]
        self.ensemble = build(configuration)
        everyone = members()
        self.nets = [(optimizer, seed) for optimizer, _, seed in everyone]
        self.looks: list[list[tuple[int, npt.NDArray[np.float64]]]] = [[] for _ in everyone]
        self.until = np.full(len(everyone), STEPS)
        self.success = np.full(len(everyone), -1)
        self.accuracy = np.zeros(len(everyone))

    def run(self) -> None:
        """Train until every network succeeded, broke or used up its steps."""
        generator = torch.Generator().manual_seed(0)
        for step in range(STEPS + 1):
            batch = torch.randint(len(self.x), (BATCH,), generator=generator)
            evaluated = (step >= EARLY[-1] and (step - EARLY[-1]) % EVERY == 0) or step == STEPS
            if step in EARLY or evaluated:
                if evaluated:
                    self._evaluate(step)
                look = self.ensemble.looked_step(self.x[batch], self.y[batch])
                self._note(step, look)
                if evaluated:
                    self._stop(step, look)
            else:
                self.ensemble.step(self.x[batch], self.y[batch])
            if not len(self.ensemble.members):
                return

    def _evaluate(self, step: int) -> None:
        """A network that reaches the target trains on until three times the steps, its rivals at other rates stop."""
        self.accuracy[self.ensemble.members.numpy()] = self.ensemble.accuracies(self.x, self.y).numpy()
        for member in self.ensemble.members.tolist():
            rivals = [net == self.nets[member] for net in self.nets]
            if self.accuracy[member] >= self.target and self.success[rivals].max() < 0:
                self.success[member] = step
                self.until[rivals] = step
                self.until[member] = min(STEPS, max(3 * step, step + 5 * EVERY))

    def _note(self, step: int, look: Look) -> None:
        rows = torch.cat([look.numbers.flatten(2), look.updates[:, :, None]], 2)
        losses = look.loss[:, None, None].expand(-1, rows.shape[1], 1)
        for member, row in zip(self.ensemble.members.tolist(), torch.cat([rows, losses], 2).numpy(), strict=True):
            self.looks[member].append((step, row))

    def _stop(self, step: int, look: Look) -> None:
        running = torch.tensor([self.until[member] > step for member in self.ensemble.members.tolist()])
        kept = running & look.loss.isfinite()
        if not kept.all():
            self.ensemble.keep(kept)


def train(configuration: Configuration, folder: Path) -> None:
    """Train a configuration, unless its file is there, and write what was seen."""
    path = folder / f"{configuration.name}.npz"
    if path.exists():
        return
    training = Training(configuration)
    training.run()
    kept = [[look for i, look in enumerate(s) if look[0] <= EARLY[-1] or i >= len(s) - LAST] for s in training.looks]
    longest = max(map(len, kept))
    steps = np.array([[step for step, _ in looks] + [-1] * (longest - len(looks)) for looks in kept])
    numbers = np.full((*steps.shape, *kept[0][0][1].shape), np.nan)
    for member, looks in enumerate(kept):
        numbers[member, : len(looks)] = [row for _, row in looks]
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez_compressed(file, steps=steps, numbers=numbers, success=training.success, accuracy=training.accuracy)
    part.replace(path)
