"""Training one network: the recipe, the explicit loop, and the run that wires data, model, monitor and log together."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vgrad_torch.choices import UsageError, choose
from vgrad_torch.data import Dataset, Progress, batches, load
from vgrad_torch.diagnosis import first_nonfinite
from vgrad_torch.mlp import NORMS, build_mlp
from vgrad_torch.monitor import Monitor, watch
from vgrad_torch.plugin import metadata as names
from vgrad_torch.records import LayerSnapshot, Snapshot
from vgrad_torch.sample import Sample
from vgrad_torch.schedule import Schedule

_MANY = 10**9

LossFunction = Callable[[Tensor, Tensor], Tensor]
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]

_MXNET: Mapping[str, Any] = {
    "hidden": (512, 256, 128, 64, 32, 16), "init": "uniform", "optimizer": "sgd", "lr": 0.025, "momentum": 0.9,
    "weight_decay": 1e-5, "batch": 32, "epochs": 10,
}  # fmt: skip

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "digits": {**_MXNET, "epochs": 30},
    "circles": {
        "hidden": (5, 5, 5, 5), "init": "normal", "optimizer": "rmsprop", "lr": 1e-3, "momentum": 0.0,
        "weight_decay": 0.0, "batch": 32, "epochs": 100,
    },
    "mnist": _MXNET,
    "fashion-mnist": _MXNET,
    "cifar10": _MXNET,
}  # fmt: skip
"""What each data set is trained with unless told otherwise.

`circles` is the Keras document. The others are the MXNet document as each of its four CPUs really trained: MXNet kept
four networks apart, each saw 32 samples of a batch of 128 and stepped by 0.1 * (sum over 32) / 128, which is a rate of
0.025 for the mean over 32. A network here takes all samples, four times as many steps an epoch; so a weight decay of
1e-5 takes as much off a weight in an epoch as theirs. (On whole batches at 0.1, two of five relu networks die.)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """All that decides a run; `recipe` fills it in. Two runs of one config on one machine are equal bit for bit."""

    data: str
    act: str
    init: str
    hidden: tuple[int, ...]
    norm: str | None
    """`batch` or `layer`, see `build_mlp`; so are the next three."""
    residual: bool
    gain: float
    bias: float
    """What every bias starts at."""
    optimizer: str
    lr: float
    momentum: float
    """Used by sgd only."""
    weight_decay: float
    """On weights, not on biases, as in MXNet."""
    clip: float | None
    """Largest norm of the gradient over all parameters; a larger one is scaled down to it before each step."""
    batch: int
    epochs: int
    seed: int
    every: int | None
    """Sample every n-th optimizer step; None is the first step of each epoch, as both documents do."""
    name: str
    """The run's folder below `runs`."""
    runs: str
    data_dir: str | None

    def __post_init__(self) -> None:
        choose(RECIPES, self.data, "data set")
        choose(OPTIMIZERS, self.optimizer, "optimizer")
        if self.norm is not None:
            choose(NORMS, self.norm, "norm")
        limits = {"batch": (1, _MANY), "epochs": (1, _MANY), "every": (1, _MANY), "seed": (0, 2**63 - 1)}
        for field, (least, most) in limits.items():
            value = getattr(self, field)
            if value is not None and not least <= value <= most:
                raise UsageError(f"{field} must be between {least} and {most}, not {value}")
        for width in self.hidden:
            if not 1 <= width <= _MANY:
                raise UsageError(f"hidden widths must be between 1 and {_MANY}, not {width}")
        for field in ("lr", "gain", "clip"):
            value = getattr(self, field)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{field} must be a positive number, not {value}")
        if not math.isfinite(self.bias):
            raise UsageError(f"bias must be a finite number, not {self.bias}")
        for field in ("momentum", "weight_decay"):
            value = getattr(self, field)
            if not 0 <= value < 1:
                raise UsageError(f"{field} must be at least 0 and below 1, not {value}")
        bad = self.name in (".", "..") or set(self.name) & set("/\\")
        if bad or not (self.name.isprintable() and self.name.strip()):
            raise UsageError(
                f"name must be that of a folder: printable, without a slash or backslash, not {self.name!r}"
            )


def recipe(data: str = "digits", **given: Any) -> TrainConfig:
    """The config of a data set's recipe; what is given, and not None, replaces the recipe's value.

    >>> recipe("circles", act="tanh").name
    'circles-tanh-normal-s0'
    """
    values = {**_COMMON, **choose(RECIPES, data, "data set")}
    given = {key: value for key, value in given.items() if value is not None}
    if given.get("optimizer") in _RATES and given["optimizer"] != values["optimizer"]:
        values["lr"] = _RATES[given["optimizer"]]
    values.update(given)
    if values["name"] is None:
        values["name"] = "-".join([data, values["act"], values["init"], *_dials(values), f"s{values['seed']}"])
    return TrainConfig(data=data, **values)


_COMMON: Mapping[str, Any] = {
    "act": "relu", "norm": None, "residual": False, "gain": 1.0, "bias": 0.0, "clip": None, "seed": 0, "every": None,
    "name": None, "runs": "runs", "data_dir": None,
}  # fmt: skip


def _dials(values: Mapping[str, Any]) -> Iterator[str]:
    """What a run's name says of the dials that are not where they usually are.

    >>> recipe("digits", norm="batch", residual=True, gain=2.0).name
    'digits-relu-uniform-batchnorm-residual-gain2-s0'
    """
    if values["norm"]:
        yield f"{values['norm']}norm"
    if values["residual"]:
        yield "residual"
    yield from (f"{key}{values[key]:g}" for key in ("gain", "bias", "clip") if values[key] != _COMMON[key])


OPTIMIZERS: Mapping[str, Callable[[list[dict[str, Any]], TrainConfig], Optimizer]] = {
    "sgd": lambda groups, config: torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum),
    "rmsprop": lambda groups, config: torch.optim.RMSprop(groups, lr=config.lr, alpha=0.9, eps=1e-7),
    "adam": lambda groups, config: torch.optim.Adam(groups, lr=config.lr, eps=1e-7),
    "adamw": lambda groups, config: torch.optim.AdamW(groups, lr=config.lr),
}
"""rmsprop and adam with Keras' constants; torch's own for RMSprop invert what the Keras document shows."""


_RATES = {"sgd": 0.025, "rmsprop": 1e-3, "adam": 1e-3, "adamw": 1e-3}
"""Learning rates for an optimizer that is not the recipe's."""


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The config's optimizer, with weight decay on the weight matrices alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return choose(OPTIMIZERS, config.optimizer, "optimizer")(groups, config)


def loss_function(classes: int) -> LossFunction:
    """Cross-entropy over the classes' logits; for two classes that of the sigmoid of one logit."""
    if classes > 2:
        return nn.functional.cross_entropy
    return lambda output, y: nn.functional.binary_cross_entropy_with_logits(output[:, 0], y.to(output.dtype))


@dataclass(frozen=True, slots=True)
class Score:
    """Mean loss and share of right answers over all samples of a part of the data."""

    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """How the network stands after an epoch (0: before any training). `seconds` are of training, not of evaluation."""

    number: int
    step: int
    train: Score
    validation: Score
    seconds: float = math.nan
    samples_per_second: float = math.nan


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
) -> None:
    """The training loop. The monitor needs no call in it: its hooks look, on the steps it chose.

    Raises:
        NonFiniteError: when the loss is NaN or infinite; the step that would have followed is not taken.
    """
    for number in range(1, epochs + 1):
        start, samples = time.perf_counter(), 0
        for x, y in training_batches():
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            if not loss.isfinite():
                raise NonFiniteError(find_nonfinite(model, loss_fn, x, y, monitor))
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            samples += len(x)
        seconds = time.perf_counter() - start
        epoch = Epoch(number, monitor.step, *scores(model, data, loss_fn), seconds, samples / seconds)
        monitor.writer.scalars(epoch_scalars(epoch), epoch.step)
        if not math.isfinite(epoch.train.loss):  # the epoch's last update did it
            raise NonFiniteError(find_nonfinite(model, loss_fn, data.x_train, data.y_train, monitor))
        on_epoch(epoch)


def scores(model: nn.Module, data: Dataset, loss_fn: LossFunction) -> tuple[Score, Score]:
    """Score of the training part and of the validation part."""
    return (
        evaluate(model, data.x_train, data.y_train, loss_fn),
        evaluate(model, data.x_validation, data.y_validation, loss_fn),
    )


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFunction) -> Score:
    """Score of a model on some samples; for two classes a positive logit means class 1.

    The model is in evaluation mode meanwhile: a batch norm uses, and keeps, what it gathered in training.
    """
    loss = hits = 0.0
    training = model.training
    model.eval()
    for xs, ys in batches(x, y, 4096):
        output = model(xs)
        guess = output.argmax(1) if output.shape[1] > 1 else (output[:, 0] > 0).long()
        loss += float(loss_fn(output, ys)) * len(xs)
        hits += int((guess == ys).sum())
    model.train(training)
    return Score(loss / len(x), hits / len(x))


def epoch_scalars(epoch: Epoch) -> dict[str, float]:
    """What TensorBoard gets of an epoch."""
    return {
        names.LOSS_TRAIN: epoch.train.loss,
        names.LOSS_VALIDATION: epoch.validation.loss,
        names.ACCURACY_TRAIN: epoch.train.accuracy,
        names.ACCURACY_VALIDATION: epoch.validation.accuracy,
    }


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


def run(
    config: TrainConfig,
    *,
    say: Progress = lambda line: None,
    on_start: Callable[[Path, Epoch], None] = lambda folder, epoch: None,
    on_epoch: Callable[[Epoch, Monitor], None] = lambda epoch, monitor: None,
    on_sample: Callable[[Snapshot], None] | None = None,
) -> Result:
    """Train as `config` says and log into a new folder; `say`, `on_start`, `on_epoch`, `on_sample` are for showing it.

    Raises:
        UsageError: the config asks for what cannot be had.
        NonFiniteError: the loss became NaN or infinite; the log up to there is kept.
    """
    setup = set_up(config, say)
    data, model, optimizer, loss_fn, steps = setup.data, setup.model, setup.optimizer, setup.loss_fn, setup.steps
    folder = new_folder(config)
    keras = config.data == "circles"
    sampled, histograms = sampling(config.epochs * steps, config.every or steps, last=keras)
    epochs = [Epoch(0, 0, *scores(model, data, loss_fn))]
    with watch(model, optimizer, logdir=folder, every=sampled, histograms=histograms, on_sample=on_sample) as monitor:
        monitor.writer.hparams(hyperparameters(config), [*epoch_scalars(epochs[0]), _first_layer_tag(model)])
        monitor.writer.scalars(epoch_scalars(epochs[0]), 0)
        on_start(folder, epochs[0])

        def record(epoch: Epoch) -> None:
            epochs.append(epoch)
            on_epoch(epoch, monitor)

        train(
            model, data, optimizer, monitor, loss_fn=loss_fn, epochs=config.epochs, clip=config.clip,
            training_batches=setup.batches,
            on_epoch=record,
        )  # fmt: skip
    return Result(config, folder, model, monitor, epochs)


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


def set_up(config: TrainConfig, say: Progress = lambda line: None) -> Setup:
    """Load the data, draw the weights, make the optimizer and the order of the samples."""
    data = load(config.data, Path(config.data_dir) if config.data_dir else None, say)
    generator = torch.Generator().manual_seed(config.seed)
    widths = [data.x_train.shape[1], *config.hidden, data.classes if data.classes > 2 else 1]
    model = _built(widths, config, generator)
    optimizer = make_optimizer(model, config)
    return Setup(data, model, loss_function(data.classes), optimizer, *feeding(config, data, generator))


def _built(widths: list[int], config: TrainConfig, generator: torch.Generator) -> nn.Sequential:
    try:
        return build_mlp(
            widths, config.act, config.init, norm=config.norm, residual=config.residual, gain=config.gain,
            bias_value=config.bias, generator=generator,
        )  # fmt: skip
    except (RuntimeError, MemoryError) as error:  # torch's allocator raises RuntimeError
        raise UsageError(f"a network of widths {widths} does not fit into memory; take smaller ones") from error


def feeding(config: TrainConfig, data: Dataset, generator: torch.Generator) -> tuple[int, Batches]:
    """Steps per epoch, and the batches of an epoch in the order of the recipe's document.

    Keras (circles) shuffles anew for each epoch and trains on the smaller last batch too. MXNet's MNISTIter (all else)
    shuffles once and drops it, so that the first step of every epoch sees the same samples.
    """
    x, y, size = data.x_train, data.y_train, config.batch
    if config.norm == "batch" and 1 in (size, len(x) % size if config.data == "circles" else 0):
        raise UsageError(f"batch norm needs two samples in every batch, and with batch {size} one has a single one")
    if config.data == "circles":
        return math.ceil(len(x) / size), lambda: batches(x, y, size, generator=generator)
    if len(x) < size:
        raise UsageError(f"batch is {size}, but there are only {len(x)} samples to train on")
    order = torch.randperm(len(x), generator=generator)
    x, y = x[order], y[order]
    return len(x) // size, lambda: batches(x, y, size, drop_last=True)


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


def hyperparameters(config: TrainConfig) -> dict[str, object]:
    """The config's part that TensorBoard's HParams tab compares runs by."""
    shown = ("data", "act", "init", "optimizer", "lr", "momentum", "weight_decay", "batch", "epochs", "seed")
    return {
        **{key: getattr(config, key) for key in shown}, "hidden": "-".join(map(str, config.hidden)),
        "norm": config.norm or "none", "residual": config.residual, "gain": config.gain, "bias": config.bias,
        "clip": config.clip or 0.0,
    }  # fmt: skip


def _first_layer_tag(model: nn.Sequential) -> str:
    name, first = next((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear))
    layer = LayerSnapshot(1, name, "Linear", f"{first.in_features}x{first.out_features}")
    return names.layer_tag("gradient_log10_rms", layer.tag)
