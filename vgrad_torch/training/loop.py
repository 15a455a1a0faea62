"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import islice

from torch import nn
from torch.optim import Optimizer

from vgrad_torch.distributed.team import ALONE, Batches, Team
from vgrad_torch.training.data import Dataset
from vgrad_torch.training.evaluation import Epoch, LossFunction, epoch_scalars, scores
from vgrad_torch.training.nonfinite import NonFiniteError, find_nonfinite
from vgrad_torch.watching.monitor import Monitor


def train(
    model: nn.Module,
    data: Dataset,
    optimizer: Optimizer,
    monitor: Monitor,
    *,
    loss_fn: LossFunction,
    training_batches: Batches,
    epochs: int,
    on_epoch: Callable[[Epoch], None],
    on_step: Callable[[], None] = lambda: None,
    clip: float | None = None,
    first: int = 1,
    skip: int = 0,
    team: Team = ALONE,
    parallel: nn.Module | None = None,
) -> None:
    """The training loop. It does not call the monitor: hooks take the samples.

    A resumed run begins with the epoch `first` and skips its first `skip` batches, which were trained before. With
    several processes, each calls this with its share of the batches. `parallel` is the model as the `team` trains it;
    only rank 0 evaluates.

    Raises:
        NonFiniteError: the loss is NaN or infinite; no step was taken with it.
    """
    forward = parallel or model
    for number in range(first, epochs + 1):
        start, samples = time.perf_counter(), 0
        for x, y in islice(training_batches(), skip if number == first else 0, None):
            optimizer.zero_grad()
            loss = loss_fn(forward(x), y)
            if not team.all(loss.isfinite()):
                monitor.losses.append(math.nan)  # for the last verdict
                place = None if loss.isfinite() else find_nonfinite(model, loss_fn, x, y, monitor)
                raise NonFiniteError(team.first_message(place))
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            samples += len(x) * team.size
            on_step()
        seconds = time.perf_counter() - start
        score = team.on_rank_0(lambda: scores(model, data, loss_fn))
        epoch = Epoch(number, monitor.step, *score, seconds, samples / seconds)
        monitor.writer.scalars(epoch_scalars(epoch), epoch.step)
        if not math.isfinite(epoch.train.loss):  # after the last update of the epoch
            monitor.losses.append(epoch.train.loss)
            raise NonFiniteError(find_nonfinite(model, loss_fn, data.x_train, data.y_train, monitor))
        on_epoch(epoch)
