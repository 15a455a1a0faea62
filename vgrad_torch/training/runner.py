"""run(): one run from its config to its verdict, with data, model, monitor, log and checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vgrad_torch.distributed.team import ALONE, Team
from vgrad_torch.records import LayerSnapshot, Snapshot
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.writer import Position, Writer
from vgrad_torch.theory.prediction import Prediction
from vgrad_torch.training.checkpoints import Checkpoints
from vgrad_torch.training.data import PrintLine
from vgrad_torch.training.evaluation import Epoch, constant_loss, epoch_scalars, scores
from vgrad_torch.training.loop import train
from vgrad_torch.training.nonfinite import NonFiniteError
from vgrad_torch.training.recipes import TrainConfig, hyperparameters
from vgrad_torch.training.run_folder import RunFolder
from vgrad_torch.training.setup import Setup, sampling, set_up
from vgrad_torch.training.signals import StopSignals
from vgrad_torch.trials.chains import predict_model
from vgrad_torch.verdict.diagnosis import Diagnosis
from vgrad_torch.watching.monitor import Monitor
from vgrad_torch.watching.watch import watch


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the training after a step; `run` can continue there. `number` is that of the signal."""

    def __init__(self, number: int, folder: Path, step: int) -> None:
        super().__init__(number, folder, step)
        self.number, self.folder, self.step = number, folder, step

    def __str__(self) -> str:
        return f"stopped after step {self.step:,}"


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: its folder, model, monitor, scores and verdict."""

    config: TrainConfig
    folder: Path
    model: nn.Sequential
    monitor: Monitor
    epochs: list[Epoch]
    """The first entry is the state before training."""
    diagnosis: Diagnosis
    """The verdict at the end."""


def run(
    config: TrainConfig,
    *,
    saved: RunFolder | None = None,
    print_line: PrintLine = lambda line: None,
    on_start: Callable[[Path, Epoch], None] = lambda folder, epoch: None,
    on_epoch: Callable[[Epoch, Monitor], None] = lambda epoch, monitor: None,
    on_sample: Callable[[Snapshot], None] | None = None,
    team: Team = ALONE,
) -> Result:
    """Train by a config and log into a new folder, or resume a `saved` run.

    A resumed run ends with the weights and log of one that was never interrupted. `print_line`, `on_start`,
    `on_epoch` and `on_sample` show the progress. A team shares each batch, and rank 0 writes.

    Raises:
        UsageError: the config cannot be fulfilled, or the checkpoint does not fit it.
        NonFiniteError: the loss became NaN or infinite; the log up to there is kept.
        Stopped: Ctrl-C or SIGTERM came; the step is finished and saved.
    """
    team.check_equal({**dataclasses.asdict(config), "data_dir": None, "runs": None})  # these may differ between hosts
    setup = team.on_all_ranks(lambda: set_up(config, print_line, team))
    data, model, optimizer, loss_fn = setup.data, setup.model, setup.optimizer, setup.loss_fn
    folder = saved or team.on_rank_0(lambda: RunFolder.create(config))
    checkpoints = Checkpoints(folder, config, data, model, optimizer, setup.generator, saves=team.rank == 0)
    progress = team.on_all_ranks(checkpoints.restore) if saved else None
    parallel = team.parallel(model)
    epochs = list(progress.epochs) if progress else [Epoch(0, 0, *team.on_rank_0(lambda: scores(model, data, loss_fn)))]
    if not progress:
        checkpoints.save(epochs)  # before the log: without a log in the checkpoint, a restart may begin the log again
    writer = team.on_all_ranks(lambda: _open_writer(folder.path, progress.log if progress else None, team))
    monitor = _watched(setup, config, parallel, writer, on_sample)
    if progress and progress.monitor:
        monitor.restore(progress.monitor)

    def record(epoch: Epoch) -> None:
        epochs.append(epoch)
        monitor.losses.append(epoch.train.loss)
        monitor.diagnose()
        on_epoch(epoch, monitor)
        checkpoints.save(epochs, monitor)

    def stop_if_asked() -> None:
        if not team.all(torch.tensor(signals.number is None, device=team.device)):
            checkpoints.save(epochs, monitor, mid_epoch=True)
            raise Stopped(next(filter(None, team.gather(signals.number))), folder.path, monitor.step)

    with monitor, _resumable_log(writer), StopSignals() as signals:
        if not progress:
            begin_log(monitor, setup, config, epochs[0])
            checkpoints.save(epochs, monitor)
        on_start(folder.path, epochs[-1])
        train(
            model, data, optimizer, monitor, loss_fn=loss_fn, epochs=config.epochs, clip=config.clip,
            training_batches=team.share(setup.batches), first=len(epochs), skip=monitor.step - epochs[-1].step,
            on_epoch=record, on_step=stop_if_asked, team=team, parallel=parallel,
        )  # fmt: skip
    checkpoints.save(epochs, monitor, finished=True)
    return Result(config, folder.path, model, monitor, epochs, monitor.diagnose())


def _watched(
    setup: Setup, config: TrainConfig, parallel: nn.Module, writer: Writer, on_sample: Callable[[Snapshot], None] | None
) -> Monitor:
    """The monitor of a run. It knows what the best constant answer to the labels would get."""
    steps = setup.steps
    sampled, histograms = sampling(config.epochs * steps, config.every or steps, last=config.data == "circles")
    monitor = watch(parallel, setup.optimizer, writer=writer, every=sampled, histograms=histograms, on_sample=on_sample)
    monitor.constant_loss = constant_loss(setup.data)
    return monitor


@contextmanager
def _resumable_log(writer: Writer) -> Iterator[None]:
    """Leave the log open if the run can be resumed. A run with a loss that is not finite cannot be."""
    try:
        yield
    except NonFiniteError:
        raise
    except BaseException:
        writer.leave()
        raise


def _open_writer(folder: Path, log: Position | None, team: Team) -> Writer:
    if team.rank > 0:
        return Writer(None)
    return Writer.continued(folder, log) if log else Writer(folder)


def begin_log(monitor: Monitor, setup: Setup, config: TrainConfig, epoch: Epoch) -> None:
    """Write what precedes the first sample: layout, hyperparameters, first scores and the theory's prediction."""
    layers = layer_tags(setup.model)
    first = tags.layer_tag("gradient_log10_rms", layers[0])
    monitor.writer.layout(monitor.ranks.size)
    monitor.writer.hparams(hyperparameters(config), [*epoch_scalars(epoch), first])
    monitor.writer.scalars(epoch_scalars(epoch), 0)
    if theory := predict_model(setup.model, setup.data.x_train[: config.batch]):
        monitor.writer.theory(layers, theory_columns(theory))
    monitor.losses.append(epoch.train.loss)


def layer_tags(model: nn.Sequential) -> list[str]:
    """The names of the Linear layers in TensorBoard, first layer first."""
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    return [
        LayerSnapshot(number, name, "Linear", f"{m.in_features}x{m.out_features}").tag
        for number, (name, m) in enumerate(linears, start=1)
    ]


def theory_columns(theory: Prediction) -> dict[str, list[float]]:
    """A prediction as columns of the tensor that the Gradient Flow tab reads."""
    layers = theory.layers
    shared = ("weight_rms", "output_rms", "output_gradient_rms", "weight_gradient_rms")
    columns = {name: [float(getattr(layer, name)) for layer in layers] for name in shared}
    columns["input_gradient_rms"] = [layer.output_gradient_rms * layer.weight_gain for layer in layers]
    return columns
