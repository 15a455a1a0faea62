"""The memory horizon before training tells which lengths of a sequence can be learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import vgrad_torch as vg
from vgrad_torch.records import TimeProfile
from vgrad_torch.verdict.diagnosis import Diagnosis

LENGTHS = (5, 30, 60)
SEEDS = 3
WIDTH = 32


class Recurrent(nn.Module):
    """A recurrent layer and a head that sees its last time step. `bias` is that of the forget or the update gate."""

    def __init__(self, cell: str, inputs: int, outputs: int, bias: float) -> None:
        super().__init__()
        self.rnn = getattr(nn, cell)(inputs, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, outputs)
        with torch.no_grad():
            if bias:
                self.rnn.bias_hh_l0[WIDTH : 2 * WIDTH] = bias

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.rnn(x)[0][:, -1])
        return answer


def copying(length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise, and which of four classes was shown at the first step."""
    x = torch.randn(32, length, 4, generator=generator) / 10
    y = torch.randint(4, (32,), generator=generator)
    x[torch.arange(32), 0, y] += 1
    return x, y


def adding(length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random numbers, and the sum of two of them that are marked: one in the first tenth, and the last one."""
    values = torch.rand(32, length, generator=generator)
    marks = torch.zeros(32, length)
    marks[torch.arange(32), torch.randint(0, max(length // 10, 1), (32,), generator=generator)] = 1
    marks[:, -1] = 1
    return torch.stack([values, marks], -1), (values * marks).sum(1, keepdim=True)


@dataclass(frozen=True)
class Task:
    """`chance` is the loss of the best answer without the early step."""

    batch: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: int
    outputs: int
    chance: float


TASKS = {
    "copying": Task(copying, nn.functional.cross_entropy, 4, 4, 1.386),  # log 4
    "adding": Task(adding, nn.functional.mse_loss, 2, 1, 1 / 12),  # the variance of the early number
}


def trained(
    task: Task, cell: str, bias: float, length: int, seed: int, steps: int
) -> tuple[TimeProfile, bool, Diagnosis]:
    """The first sample's profile, whether the network learned, and the verdict at the end.

    Training ends as soon as the network has learned.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Recurrent(cell, task.inputs, task.outputs, bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3 if cell == "GRU" else 3e-3)
    learned = False
    with vg.watch(model, optimizer, every=20, histograms=False) as monitor:
        while not learned and monitor.step < steps:
            x, y = task.batch(length, generator)
            optimizer.zero_grad()
            loss = task.loss(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.losses.append(loss.item())
            learned = len(monitor.losses) > 40 and sum(monitor.losses[-20:]) / 20 < task.chance / 2
    profile = monitor.history[0]["rnn"].time
    assert profile is not None
    return profile, learned, monitor.diagnose()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("name", "cell", "bias", "steps"),
    [("copying", "RNN", 0, 300), ("copying", "LSTM", 3, 300), ("adding", "RNN", 0, 400), ("adding", "GRU", 3, 600)],
)
def test_the_horizon_tells_which_length_can_be_learnt(
    name: str, cell: str, bias: float, steps: int, length: int
) -> None:
    """Most networks learn if more than a hundredth of the gradient reaches the first step, else most do not."""
    found = [trained(TASKS[name], cell, bias, length, seed, steps) for seed in range(SEEDS)]
    reaches = {profile.hundredth is None for profile, _, _ in found}
    assert len(reaches) == 1
    assert (sum(learned for _, learned, _ in found) > SEEDS / 2) == reaches.pop()
    named = sum(diagnosis.verdict == "vanishing through time" for _, _, diagnosis in found)
    assert not any(learned and diagnosis.alarm for _, learned, diagnosis in found)
    if name == "copying":  # in the other task the loss falls in any case, since half of the sum is near
        assert (named > SEEDS / 2) == (sum(learned for _, learned, _ in found) < SEEDS / 2)
