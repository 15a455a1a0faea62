"""What a run is: its config, each data set's recipe for one, and the optimizer that a config asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vgrad_torch.errors import UsageError, choose
from vgrad_torch.files import encode
from vgrad_torch.models.mlp import NORMS

_MANY = 10**9

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
"""The settings that each data set is trained with by default.

`circles` is the Keras document. The others are the MXNet document as each of its four CPUs really trained: MXNet kept
four networks apart, each saw 32 samples of a batch of 128 and stepped by 0.1 * (sum over 32) / 128, which is a rate of
0.025 for the mean over 32. A network here takes all samples, four times as many steps an epoch; so a weight decay of
1e-5 shrinks a weight as much per epoch as theirs. (On whole batches at 0.1, two of five relu networks die.)
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
    """The value that every bias starts at."""
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
        values["name"] = "-".join([data, values["act"], values["init"], *_name_parts(values), f"s{values['seed']}"])
    return TrainConfig(data=data, **values)


_COMMON: Mapping[str, Any] = {
    "act": "relu", "norm": None, "residual": False, "gain": 1.0, "bias": 0.0, "clip": None, "seed": 0, "every": None,
    "name": None, "runs": "runs", "data_dir": None,
}  # fmt: skip


def differences(config: TrainConfig) -> dict[str, Any]:
    """The values in which a config differs from its data set's recipe; `recipe` makes the same config of them.

    >>> differences(recipe("circles", act="tanh", lr=0.5))
    {'data': 'circles', 'act': 'tanh', 'lr': 0.5}
    """
    usual, values = encode(recipe(config.data, optimizer=config.optimizer)), encode(config)
    usual["optimizer"] = recipe(config.data).optimizer
    usual["name"] = recipe(**{key: value for key, value in values.items() if key != "name"}).name
    return {key: getattr(config, key) for key, value in values.items() if key == "data" or value != usual[key]}


def _name_parts(values: Mapping[str, Any]) -> Iterator[str]:
    """The parts of a run's name for settings that differ from the usual ones.

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
"""rmsprop and adam have Keras' constants. With torch's own for RMSprop, the result is the opposite of that which the
Keras document shows.
"""


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


def hyperparameters(config: TrainConfig) -> dict[str, object]:
    """The config's part that TensorBoard's HParams tab compares runs by."""
    shown = ("data", "act", "init", "optimizer", "lr", "momentum", "weight_decay", "batch", "epochs", "seed")
    return {
        **{key: getattr(config, key) for key in shown}, "hidden": "-".join(map(str, config.hidden)),
        "norm": config.norm or "none", "residual": config.residual, "gain": config.gain, "bias": config.bias,
        "clip": config.clip or 0.0,
    }  # fmt: skip
