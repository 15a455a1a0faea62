"""Training one network: the explicit loop, and the run that wires data, model, monitor and log together."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vgrad_torch.distributed import launch
from vgrad_torch.distributed.team import ALONE, Team
from vgrad_torch.distributed.team import Batches as Batches
from vgrad_torch.errors import UsageError
from vgrad_torch.models.mlp import build_mlp
from vgrad_torch.records import LayerSnapshot, Snapshot
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.writer import Position, Writer
from vgrad_torch.theory.prediction import Prediction
from vgrad_torch.training.checkpoints import Begun, Checkpoints
from vgrad_torch.training.data import Dataset, Progress, batches, load
from vgrad_torch.training.evaluation import Epoch, LossFunction, epoch_scalars, loss_function, scores
from vgrad_torch.training.recipes import TrainConfig, hyperparameters, make_optimizer, write_config
from vgrad_torch.training.signals import Wish
from vgrad_torch.trials.chains import predict_model
from vgrad_torch.verdict.diagnosis import Diagnosis
from vgrad_torch.verdict.nonfinite import first_nonfinite
from vgrad_torch.watching.monitor import Monitor
from vgrad_torch.watching.sample import Sample
from vgrad_torch.watching.schedule import Schedule
from vgrad_torch.watching.watch import watch

_LAUNCH = ".torchrun"  # in a run's folder: which launch of torchrun began it


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
    """The training loop. The monitor needs no call in it: its hooks look, on the steps it chose.

    A run that goes on begins with the epoch `first`, of which `skip` batches were trained on before. Of several
    processes each calls this with its share of the batches, and `parallel` is the model as their `team` trains it;
    rank 0 alone evaluates.

    Raises:
        NonFiniteError: when the loss is NaN or infinite; the step that would have followed is not taken.
    """
    forward = parallel or model
    for number in range(first, epochs + 1):
        start, samples = time.perf_counter(), 0
        for x, y in islice(training_batches(), skip if number == first else 0, None):
            optimizer.zero_grad()
            loss = loss_fn(forward(x), y)
            if not team.all(loss.isfinite()):
                monitor.losses.append(math.nan)  # the verdict on the run is on its way out
                found = None if loss.isfinite() else find_nonfinite(model, loss_fn, x, y, monitor)
                raise NonFiniteError(team.said(found))
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            samples += len(x) * team.size
            on_step()
        seconds = time.perf_counter() - start
        score = team.first(lambda: scores(model, data, loss_fn))
        epoch = Epoch(number, monitor.step, *score, seconds, samples / seconds)
        monitor.writer.scalars(epoch_scalars(epoch), epoch.step)
        if not math.isfinite(epoch.train.loss):  # the epoch's last update did it
            monitor.losses.append(epoch.train.loss)
            raise NonFiniteError(find_nonfinite(model, loss_fn, data.x_train, data.y_train, monitor))
        on_epoch(epoch)


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the training behind a step; `run` can go on from there. `number` is the signal's."""

    def __init__(self, number: int, folder: Path, step: int) -> None:
        super().__init__(number, folder, step)
        self.number, self.folder, self.step = number, folder, step

    def __str__(self) -> str:
        return f"stopped after step {self.step:,}"


class NonFiniteError(ArithmeticError):
    """Training met NaN or infinity; the message says at which step and in which layer it stood first."""


def find_nonfinite(model: nn.Module, loss_fn: LossFunction, x: Tensor, y: Tensor, monitor: Monitor) -> str:
    """Repeat the forward pass of the step whose loss was not finite, and say where the first such value stands."""
    sample = Sample(monitor.layers, histograms=False)
    sample.attach()
    try:
        loss = loss_fn(model(x), y)
        sample.read_parameters()
    finally:
        sample.detach()
    snapshot = sample.snapshot(monitor.step)
    where = first_nonfinite(snapshot)
    words = (
        f"the first non-finite value stands in {where}"
        if where
        else f"it arises in the loss itself, {_largest(snapshot)}"
    )
    return f"the loss became {float(loss.detach()):g} at step {snapshot.step}: {words}"


def _largest(snapshot: Snapshot) -> str:
    output = snapshot.layers[-1].output
    size = f" of up to {max(abs(output.min), abs(output.max)):.2g}" if output else ""
    return f"from finite outputs{size}"


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: where it lies, its model, what was seen."""

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
    begun: Begun | None = None,
    say: Progress = lambda line: None,
    on_start: Callable[[Path, Epoch], None] = lambda folder, epoch: None,
    on_epoch: Callable[[Epoch, Monitor], None] = lambda epoch, monitor: None,
    on_sample: Callable[[Snapshot], None] | None = None,
    team: Team = ALONE,
) -> Result:
    """Train as `config` says and log into a new folder; `say`, `on_start`, `on_epoch`, `on_sample` are for showing it.

    Or go on with a run that was `begun`: it ends with the very weights and log that it would have had uninterrupted.
    A team shares each batch, and rank 0 writes.

    Raises:
        UsageError: the config asks for what cannot be had, or the checkpoint does not fit it.
        NonFiniteError: the loss became NaN or infinite; the log up to there is kept.
        Stopped: Ctrl-C or SIGTERM came, and the step is finished and kept.
    """
    team.check_alike({**dataclasses.asdict(config), "data_dir": None, "runs": None})  # each host has its own
    setup = team.together(lambda: set_up(config, say, team))
    data, model, optimizer, loss_fn, steps = setup.data, setup.model, setup.optimizer, setup.loss_fn, setup.steps
    folder = team.first(lambda: begun.folder if begun else new_folder(config))
    checkpoints = Checkpoints(folder, config, data, model, optimizer, setup.generator, keeps=team.rank == 0)
    done = team.together(lambda: checkpoints.restore(begun)) if begun else None
    parallel = team.parallel(model)
    epochs = list(done.epochs) if done else [Epoch(0, 0, *team.first(lambda: scores(model, data, loss_fn)))]
    if not done:
        checkpoints.save(epochs)  # before the log is begun: who finds it knows that the log may be begun anew
    sampled, histograms = sampling(config.epochs * steps, config.every or steps, last=config.data == "circles")
    writer = team.together(lambda: _writer(folder, done.log if done else None, team))
    monitor = watch(parallel, optimizer, writer=writer, every=sampled, histograms=histograms, on_sample=on_sample)
    if done and done.monitor:
        monitor.restore(done.monitor)

    def record(epoch: Epoch) -> None:
        epochs.append(epoch)
        monitor.losses.append(epoch.train.loss)
        monitor.diagnose()
        on_epoch(epoch, monitor)
        checkpoints.save(epochs, monitor)

    def stop_if_asked() -> None:
        if not team.all(torch.tensor(wish.number is None, device=team.device)):
            checkpoints.save(epochs, monitor, inside=True)
            raise Stopped(next(filter(None, team.gather(wish.number))), folder, monitor.step)

    with monitor, _left_open(writer), Wish() as wish:
        if not done:
            begin_log(monitor, setup, config, epochs[0])
            checkpoints.save(epochs, monitor)
        on_start(folder, epochs[-1])
        train(
            model, data, optimizer, monitor, loss_fn=loss_fn, epochs=config.epochs, clip=config.clip,
            training_batches=team.share(setup.batches), first=len(epochs), skip=monitor.step - epochs[-1].step,
            on_epoch=record, on_step=stop_if_asked, team=team, parallel=parallel,
        )  # fmt: skip
    checkpoints.save(epochs, monitor, finished=True)
    return Result(config, folder, model, monitor, epochs, monitor.diagnose())


@contextmanager
def _left_open(writer: Writer) -> Iterator[None]:
    """What ends the run where it can go on later writes no end into the log; a loss that is not finite is one."""
    try:
        yield
    except NonFiniteError:
        raise
    except BaseException:
        writer.leave()
        raise


def _writer(folder: Path, log: Position | None, team: Team) -> Writer:
    if team.rank > 0:
        return Writer(None)
    return Writer.continued(folder, log) if log else Writer(folder)


def begin_log(monitor: Monitor, setup: Setup, config: TrainConfig, epoch: Epoch) -> None:
    """Write what stands before all samples."""
    layers = layer_tags(setup.model)
    first = tags.layer_tag("gradient_log10_rms", layers[0])
    monitor.writer.layout(monitor.ranks.size)
    monitor.writer.hparams(hyperparameters(config), [*epoch_scalars(epoch), first])
    monitor.writer.scalars(epoch_scalars(epoch), 0)
    if theory := predict_model(setup.model, setup.data.x_train[: config.batch]):
        monitor.writer.theory(layers, theory_columns(theory))
    monitor.losses.append(epoch.train.loss)


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What a run begins with: nothing is trained, nothing written."""

    data: Dataset
    model: nn.Sequential
    loss_fn: LossFunction
    optimizer: Optimizer
    steps: int
    """Optimizer steps of an epoch."""
    batches: Batches
    generator: torch.Generator
    """What the batches' order is drawn from."""


def set_up(config: TrainConfig, say: Progress = lambda line: None, team: Team = ALONE) -> Setup:
    """Load the data, draw the weights, make the optimizer and the order of the samples, which a team then shares."""
    with team.host_by_host():
        data = load(config.data, Path(config.data_dir) if config.data_dir else None, say).to(team.device)
    generator = torch.Generator().manual_seed(config.seed)
    widths = [data.x_train.shape[1], *config.hidden, data.classes if data.classes > 2 else 1]
    model = _built(widths, config, generator).to(team.device)
    optimizer = make_optimizer(model, config)
    feeds = feeding(config, data, generator, team.size)
    return Setup(data, model, loss_function(data.classes), optimizer, *feeds, generator)


def _built(widths: list[int], config: TrainConfig, generator: torch.Generator) -> nn.Sequential:
    try:
        return build_mlp(
            widths, config.act, config.init, norm=config.norm, residual=config.residual, gain=config.gain,
            bias_value=config.bias, generator=generator,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:  # torch's allocator raises RuntimeError
        raise UsageError(f"a network of widths {widths} does not fit into memory; take smaller ones") from error


def feeding(config: TrainConfig, data: Dataset, generator: torch.Generator, processes: int = 1) -> tuple[int, Batches]:
    """Steps per epoch, and the batches of an epoch in the order of the recipe's document.

    Keras (circles) shuffles anew for each epoch and trains on the smaller last batch too. MXNet's MNISTIter (all else)
    shuffles once and drops it, so that the first step of every epoch sees the same samples.
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
            f"batch norm needs two samples in every batch, and with batch {config.batch} one has a single one"
        )


def sampling(steps: int, every: int, *, last: bool, most: int = 50) -> tuple[Schedule, Schedule]:
    """When to sample in a run of known length, and at which samples to take histograms.

    Samples are every n-th step and, as in the Keras document, the `last` one. Histograms are at most 50 of them, evenly
    spread: of more, TensorBoard would drop some.

    >>> sampled, histograms = sampling(1000, 10, last=True, most=4)
    >>> [step for step in range(1000) if sampled(step) and histograms(step)]
    [0, 340, 680, 999]
    """
    final = steps - 1 if last else -1
    stride = every * math.ceil(math.ceil(steps / every) / (most - 1))
    return lambda step: step % every == 0 or step == final, lambda step: step % stride == 0 or step == final


def new_folder(config: TrainConfig) -> Path:
    """Make the run's folder, with a number behind the name if that is taken, and write config.json into it."""
    runs = Path(config.runs)
    for number in range(1, 10_000):
        folder = runs / (config.name if number == 1 else f"{config.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue
            raise UsageError(f"cannot make the folder {folder}: a file is in its way; choose another name") from None
        except OSError as error:
            raise UsageError(f"cannot make the folder {folder}: {error.strerror}; choose another --runs") from None
        write_config(config, folder)
        if launch.launched():
            (folder / _LAUNCH).write_text(launch.mark())
        return folder
    raise UsageError(f"{runs} holds 9,999 runs named {config.name}; clear some, or choose another name")


def folder_of_this_launch(runs: Path) -> Path | None:
    """The folder that `new_folder` made for the processes which torchrun now starts anew; None if it made none."""
    return next((path.parent for path in runs.glob(f"*/{_LAUNCH}") if path.read_text() == launch.mark()), None)


def layer_tags(model: nn.Sequential) -> list[str]:
    """What the Linear layers are called in TensorBoard, first layer first."""
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    return [
        LayerSnapshot(number, name, "Linear", f"{m.in_features}x{m.out_features}").tag
        for number, (name, m) in enumerate(linears, start=1)
    ]


def theory_columns(theory: Prediction) -> dict[str, list[float]]:
    """A prediction as columns of the Gradient Flow tab's tensor."""
    layers = theory.layers
    shared = ("weight_rms", "output_rms", "output_gradient_rms", "weight_gradient_rms")
    columns = {name: [float(getattr(layer, name)) for layer in layers] for name in shared}
    columns["input_gradient_rms"] = [layer.output_gradient_rms * layer.weight_gain for layer in layers]
    return columns
