"""Networks of the calibration grid that fail, trained again with the first advice of what_if.

`python -m tests.scripts.advice` prints a row for each. A network fails, or trains, as in the calibration: at all, or
at any, of the learning rates of its optimizer it stays below, or reaches, the target within 3,000 steps. This takes
some minutes. `python -m tests.scripts.advice 1 40` takes the first forty in another order.
"""

from __future__ import annotations

import copy
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.scripts import calibration_grid as grid
from tests.scripts.calibration_grid import Configuration
from tests.scripts.ensemble import Ensemble
from vgrad_torch.models.mlp import build_mlp
from vgrad_torch.training.evaluation import LossFunction, evaluate, loss_function
from vgrad_torch.trials.what_if import WhatIf, apply, what_if

FAILING = ("vanishing", "exploding", "dead")
OPTIMIZERS: Mapping[str, Callable[[Iterator[nn.Parameter], float], Optimizer]] = {
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
    "rmsprop": lambda parameters, rate: torch.optim.RMSprop(parameters, lr=rate),
}
"""As the ensemble's."""


@dataclass(frozen=True, slots=True)
class Net:
    """A network of the grid, untrained, with its data and what it is to be trained with."""

    configuration: Configuration
    optimizer: str
    model: nn.Sequential
    x: Tensor
    y: Tensor
    loss_fn: LossFunction

    @property
    def rates(self) -> tuple[float, ...]:
        """The middle ones first, which succeed most often."""
        rates = grid.RATES[self.optimizer]
        return tuple(sorted(rates, key=lambda rate: abs(rates.index(rate) - len(rates) // 2)))

    def advice(self) -> WhatIf:
        """what_if on the first batch of its training."""
        batch = next(batches(self))
        optimizer = OPTIMIZERS[self.optimizer](self.model.parameters(), self.rates[0])
        return what_if(self.model, self.loss_fn, batch, optimizer)


def net(configuration: Configuration, optimizer: str) -> Net:
    """Seed 0 of a configuration."""
    x, y = grid.data(configuration.data)
    classes = int(y.max()) + 1
    widths = configuration.widths(x.shape[1], classes if classes > 2 else 1)
    generator = torch.Generator().manual_seed(0)
    model = build_mlp(widths, configuration.act, configuration.init, generator=generator)
    return Net(configuration, optimizer, model, x, y, loss_function(classes))


def nets(seed: int) -> Iterator[Net]:
    """All networks of the grid with all optimizers, shuffled."""
    pairs = [(configuration, optimizer) for configuration in grid.configurations() for optimizer in grid.RATES]
    random.Random(seed).shuffle(pairs)
    return (net(*pair) for pair in pairs)


def batches(net: Net) -> Iterator[tuple[Tensor, Tensor]]:
    """Those of the calibration, without end."""
    generator = torch.Generator().manual_seed(0)
    while True:
        chosen = torch.randint(len(net.x), (grid.BATCH,), generator=generator)
        yield net.x[chosen], net.y[chosen]


def fails(net: Net) -> bool:
    """Whether it stays below the target at every rate, all trained side by side."""
    ensemble = Ensemble([net.model] * len(net.rates), [(net.optimizer, net.rates)])
    for step, (x, y) in zip(range(grid.STEPS + 1), batches(net), strict=False):
        if step % grid.EVERY == 0 and ensemble.accuracies(net.x, net.y).max() >= grid.TARGETS[net.configuration.data]:
            return False
        ensemble.step(x, y)
    return True


def trains(
    net: Net, model: nn.Module, rates: Sequence[float] | None = None, steps: int = grid.STEPS
) -> tuple[float, int] | None:
    """The first rate at which this model, in the net's place, reaches the target, and after how many steps."""
    for rate in rates or net.rates:
        twin = copy.deepcopy(model)
        optimizer = OPTIMIZERS[net.optimizer](twin.parameters(), rate)
        for step, (x, y) in zip(range(steps + 1), batches(net), strict=False):
            good = grid.TARGETS[net.configuration.data]
            if step % grid.EVERY == 0 and evaluate(twin, net.x, net.y, net.loss_fn).accuracy >= good:
                return rate, step
            optimizer.zero_grad()
            net.loss_fn(twin(x), y).backward()
            optimizer.step()
    return None


def with_advice(net: Net, advice: WhatIf) -> nn.Module:
    """A copy of the net with the first advice applied."""
    assert advice.best is not None
    torch.manual_seed(1)  # not the weights that the advice was judged by
    return apply(advice.best.remedy, copy.deepcopy(net.model), next(batches(net))[0])


def main(seed: int = 0, wanted: int = 20) -> None:
    """Print the table of the first so many in the order of a seed."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    start, trained, tried = time.perf_counter(), 0, 0
    for candidate in nets(seed):
        advice = candidate.advice()
        if advice.before.verdict not in FAILING or not fails(candidate):
            continue
        found = trains(candidate, with_advice(candidate, advice)) if advice.best else None
        tried, trained = tried + 1, trained + (found is not None)
        change = advice.best.remedy.name if advice.best else "no advice"
        outcome = f"trains at {found[0]:g} after {found[1]} steps" if found else "FAILS"
        name = f"{candidate.configuration.name} {candidate.optimizer}"
        print(f"{name:<42} {advice.before.verdict:<10} {change:<32} {outcome}", flush=True)
        if tried == wanted:
            break
    print(f"{trained} of {tried} train with the first advice ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
