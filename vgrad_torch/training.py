"""Training one network: the explicit loop, and the run that wires data, model, monitor and log together."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vgrad_torch.choices import UsageError
from vgrad_torch.data import Dataset, Progress, batches, load
from vgrad_torch.diagnosis import Diagnosis, first_nonfinite
from vgrad_torch.evaluation import Epoch, LossFunction, epoch_scalars, loss_function, scores
from vgrad_torch.mlp import build_mlp
from vgrad_torch.monitor import Monitor, watch
from vgrad_torch.plain_mlp import expected
from vgrad_torch.plugin import metadata as names
from vgrad_torch.recipes import TrainConfig, hyperparameters, make_optimizer
from vgrad_torch.records import LayerSnapshot, Snapshot
from vgrad_torch.sample import Sample
from vgrad_torch.schedule import Schedule
from vgrad_torch.team import ALONE, Team
from vgrad_torch.team import Batches as Batches
from vgrad_torch.theory import Prediction


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
    clip: float | None = None,
    team: Team = ALONE,
    parallel: nn.Module | None = None,
) -> None:
    """The training loop. The monitor needs no call in it: its hooks look, on the steps it chose.

    Of several processes each calls this with its share of the batches, and `parallel` is the model as their `team`
    trains it; rank 0 alone evaluates.

    Raises:
        NonFiniteError: when the loss is NaN or infinite; the step that would have followed is not taken.
    """
    forward = parallel or model
    for number in range(1, epochs + 1):
        start, samples = time.perf_counter(), 0
        for x, y in training_batches():
            optimizer.zero_grad()
            loss = loss_fn(forward(x), y)
            if not team.all(loss.isfinite()):
                found = None if loss.isfinite() else find_nonfinite(model, loss_fn, x, y, monitor)
                raise NonFiniteError(team.said(found))
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            samples += len(x) * team.size
        seconds = time.perf_counter() - start
        score = team.first(lambda: scores(model, data, loss_fn))
        epoch = Epoch(number, monitor.step, *score, seconds, samples / seconds)
        monitor.writer.scalars(epoch_scalars(epoch), epoch.step)
        if not math.isfinite(epoch.train.loss):  # the epoch's last update did it
            raise NonFiniteError(find_nonfinite(model, loss_fn, data.x_train, data.y_train, monitor))
        on_epoch(epoch)


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
    say: Progress = lambda line: None,
    on_start: Callable[[Path, Epoch], None] = lambda folder, epoch: None,
    on_epoch: Callable[[Epoch, Monitor], None] = lambda epoch, monitor: None,
    on_sample: Callable[[Snapshot], None] | None = None,
    team: Team = ALONE,
) -> Result:
    """Train as `config` says and log into a new folder; `say`, `on_start`, `on_epoch`, `on_sample` are for showing it.

    A team shares each batch, and rank 0 writes.

    Raises:
        UsageError: the config asks for what cannot be had.
        NonFiniteError: the loss became NaN or infinite; the log up to there is kept.
    """
    team.check_alike({**dataclasses.asdict(config), "data_dir": None, "runs": None})  # each host has its own
    setup = team.together(lambda: set_up(config, say, team))
    data, model, optimizer, loss_fn, steps = setup.data, setup.model, setup.optimizer, setup.loss_fn, setup.steps
    folder = team.first(lambda: new_folder(config))
    parallel = team.parallel(model)
    keras = config.data == "circles"
    sampled, histograms = sampling(config.epochs * steps, config.every or steps, last=keras)
    epochs = [Epoch(0, 0, *team.first(lambda: scores(model, data, loss_fn)))]
    options: dict[str, Any] = {"every": sampled, "histograms": histograms, "on_sample": on_sample}
    with team.together(lambda: watch(parallel, optimizer, logdir=folder, **options)) as monitor:
        tags = layer_tags(model)
        first = names.layer_tag("gradient_log10_rms", tags[0])
        monitor.writer.hparams(hyperparameters(config), [*epoch_scalars(epochs[0]), first])
        monitor.writer.scalars(epoch_scalars(epochs[0]), 0)
        if theory := expected(model, data.x_train[: config.batch]):
            monitor.writer.theory(tags, theory_columns(theory))
        monitor.losses.append(epochs[0].train.loss)
        on_start(folder, epochs[0])

        def record(epoch: Epoch) -> None:
            epochs.append(epoch)
            monitor.losses.append(epoch.train.loss)
            on_epoch(epoch, monitor)

        train(
            model, data, optimizer, monitor, loss_fn=loss_fn, epochs=config.epochs, clip=config.clip,
            training_batches=team.share(setup.batches), on_epoch=record, team=team, parallel=parallel,
        )  # fmt: skip
    return Result(config, folder, model, monitor, epochs, monitor.diagnose())


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


def set_up(config: TrainConfig, say: Progress = lambda line: None, team: Team = ALONE) -> Setup:
    """Load the data, draw the weights, make the optimizer and the order of the samples, which a team then shares."""
    with team.host_by_host():
        data = load(config.data, Path(config.data_dir) if config.data_dir else None, say).to(team.device)
    generator = torch.Generator().manual_seed(config.seed)
    widths = [data.x_train.shape[1], *config.hidden, data.classes if data.classes > 2 else 1]
    model = _built(widths, config, generator).to(team.device)
    optimizer = make_optimizer(model, config)
    return Setup(data, model, loss_function(data.classes), optimizer, *feeding(config, data, generator, team.size))


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
        _write_config(config, folder)
        return folder
    raise UsageError(f"{runs} holds 9,999 runs named {config.name}; clear some, or choose another name")


def _write_config(config: TrainConfig, folder: Path) -> None:
    content = {**dataclasses.asdict(config), "torch": str(torch.__version__)}
    try:
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}; choose another --runs") from None


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
