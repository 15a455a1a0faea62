"""What a run needs before its first step: data, model, optimizer, batches, and the steps to sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from vgrad_torch.distributed.team import ALONE, Batches, Team
from vgrad_torch.errors import UsageError
from vgrad_torch.models.mlp import build_mlp
from vgrad_torch.training.data import Dataset, PrintLine, batches, load
from vgrad_torch.training.evaluation import LossFunction, loss_function
from vgrad_torch.training.recipes import TrainConfig, make_optimizer
from vgrad_torch.watching.schedule import Schedule


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What a run begins with. Nothing is trained or written yet."""

    data: Dataset
    model: nn.Sequential
    loss_fn: LossFunction
    optimizer: Optimizer
    steps: int
    """Optimizer steps of one epoch."""
    batches: Batches
    generator: torch.Generator
    """It shuffles the batches."""


def set_up(config: TrainConfig, print_line: PrintLine = lambda line: None, team: Team = ALONE) -> Setup:
    """Load the data, draw the weights, make the optimizer and the batches; several processes share each batch."""
    with team.one_per_host_first():
        data = load(config.data, Path(config.data_dir) if config.data_dir else None, print_line).to(team.device)
    generator = torch.Generator().manual_seed(config.seed)
    widths = [data.x_train.shape[1], *config.hidden, data.classes if data.classes > 2 else 1]
    model = _build_model(widths, config, generator).to(team.device)
    optimizer = make_optimizer(model, config)
    steps, batches_of_epoch = epoch_batches(config, data, generator, team.size)
    return Setup(data, model, loss_function(data.classes), optimizer, steps, batches_of_epoch, generator)


def _build_model(widths: list[int], config: TrainConfig, generator: torch.Generator) -> nn.Sequential:
    try:
        return build_mlp(
            widths, config.act, config.init, norm=config.norm, residual=config.residual, gain=config.gain,
            bias_value=config.bias, generator=generator,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:  # torch's allocator raises RuntimeError
        raise UsageError(f"a network of widths {widths} does not fit into memory; choose smaller widths") from error


def epoch_batches(
    config: TrainConfig, data: Dataset, generator: torch.Generator, processes: int = 1
) -> tuple[int, Batches]:
    """Steps of an epoch, and the batches of an epoch in the order of the recipe's tutorial.

    Keras (circles) shuffles for each epoch and also trains on the smaller last batch. MXNet's MNISTIter (all other
    data) shuffles once and drops it, so the first step of every epoch sees the same samples.
    """
    x, y, size = data.x_train, data.y_train, config.batch
    rest = len(x) % size if config.data == "circles" else 0
    _check_shares(config, {size, rest or size}, processes)
    if config.data == "circles":
        return math.ceil(len(x) / size), lambda: batches(x, y, size, generator=generator)
    if len(x) < size:
        raise UsageError(f"batch is {size}, but there are only {len(x)} samples to train on")
    order = torch.randperm(len(x), generator=generator)
    x, y = x[order], y[order]
    return len(x) // size, lambda: batches(x, y, size, drop_last=True)


def _check_shares(config: TrainConfig, sizes: set[int], processes: int) -> None:
    for size in sizes:
        if size % processes:
            which = "a batch" if size == config.batch else "an epoch's last batch"
            raise UsageError(
                f"{processes} processes cannot share {which} of {size} samples in equal parts; choose another --batch "
                "or another number of processes"
            )
    if config.norm == "batch" and processes in sizes:
        raise UsageError(
            f"batch norm needs two samples in every batch, but with batch {config.batch} one batch has a single sample"
        )


def sampling(steps: int, every: int, *, last: bool, most: int = 50) -> tuple[Schedule, Schedule]:
    """The steps to sample in a run of known length, and those with histograms.

    Samples are taken at every n-th step and, as in the Keras tutorial, at the `last` one. At most 50 of them have
    histograms, spread evenly, since TensorBoard drops some of a larger number.

    >>> sampled, histograms = sampling(1000, 10, last=True, most=4)
    >>> [step for step in range(1000) if sampled(step) and histograms(step)]
    [0, 340, 680, 999]
    """
    final = steps - 1 if last else -1
    stride = every * math.ceil(math.ceil(steps / every) / (most - 1))
    return lambda step: step % every == 0 or step == final, lambda step: step % stride == 0 or step == final
