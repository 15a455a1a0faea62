"""Checkpoints: a run's newest state in its folder, from which it goes on as if nothing had interrupted it."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vgrad_torch.errors import UsageError
from vgrad_torch.files import decode, encode, write_whole
from vgrad_torch.records import Snapshot
from vgrad_torch.tensorboard.eventfile import cut
from vgrad_torch.tensorboard.writer import Position
from vgrad_torch.training.data import Dataset
from vgrad_torch.training.evaluation import Epoch
from vgrad_torch.training.recipes import TrainConfig, make_optimizer, read_config
from vgrad_torch.training.seals import seal, unseal, usable
from vgrad_torch.watching.memory import Memory
from vgrad_torch.watching.monitor import Monitor

FILE = "checkpoint.pt"
VERSION = 1
_MANY = 1e15

_PLACES = ("name", "runs", "data_dir")  # of a config: where things lie, which may change


@dataclass(frozen=True, slots=True)
class DataMark:
    """What a data set is known again by; `checksum` is the CRC-32 of its tensors, one after the other."""

    training: int
    validation: int
    features: int
    checksum: int

    @staticmethod
    def of(data: Dataset) -> DataMark:
        """The mark of this one."""
        checksum = 0
        for tensor in (data.x_train, data.y_train, data.x_validation, data.y_validation):
            checksum = zlib.crc32(tensor.cpu().contiguous().numpy().data, checksum)
        return DataMark(len(data.x_train), len(data.x_validation), data.x_train.shape[1], checksum)

    def __str__(self) -> str:
        return f"{self.training:,} samples of {self.features:,} features to train on, {self.validation:,} to validate"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come, but for its tensors. `log` and `monitor` are None before either began."""

    config: TrainConfig
    data: DataMark
    epochs: tuple[Epoch, ...]
    log: Position | None
    monitor: Memory | None
    finished: bool


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """A run that was begun, as its folder has it. Killed before its first checkpoint, it has no progress."""

    folder: Path
    config: TrainConfig
    progress: Progress | None
    tensors: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.progress is not None and self.progress.finished

    @property
    def verdict(self) -> str | None:
        """The last one, in a word."""
        monitor = self.progress.monitor if self.progress else None
        return monitor.verdict[0] if monitor and monitor.verdict else None


def begun(folder: Path) -> Begun:
    """Read a run's config and its checkpoint.

    Raises:
        UsageError: there is none, or it is damaged, foreign or of another version.
    """
    config = read_config(folder)
    path = folder / FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if logs(folder):
            raise UsageError(f"{folder} holds no {FILE}, so that run cannot go on; start a new one") from None
        return Begun(folder, config, None, {})
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    with usable(path):
        tensors = unseal(content)
        if tensors["version"] != VERSION:
            raise ValueError(f"it is of version {tensors['version']!r}, this reads {VERSION}")
        progress: Progress = decode(Progress, json.loads(tensors["progress"]))
        if progress.monitor is not None:
            snapshots = tuple(decode(Snapshot, json.loads(text)) for text in tensors["snapshots"])
            progress = replace(progress, monitor=replace(progress.monitor, snapshots=snapshots))
    _check_config(config, progress.config, folder)
    return Begun(folder, config, progress, tensors)


def logs(folder: Path) -> list[Path]:
    """The event files of a run."""
    return sorted(folder.glob("*tfevents*"))


def _check_config(config: TrainConfig, trained: TrainConfig, folder: Path) -> None:
    """That config.json says what the checkpoint was trained with."""
    for field, value in asdict(trained).items():
        if field not in _PLACES and value != (found := getattr(config, field)):
            raise UsageError(f"{folder}/config.json has {field} {found}, but {folder}/{FILE} has {value}; put it back")


class Checkpoints:
    """Saves one run's newest state, and puts it back. Of several processes one `keeps` them, and all put them back."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        data: Dataset,
        model: nn.Module,
        optimizer: Optimizer,
        generator: torch.Generator,
        *,
        keeps: bool = True,
    ) -> None:
        self._path = folder / FILE
        self._keeps = keeps
        self._config = config
        self._data = DataMark.of(data)
        self._model = model
        self._optimizer = optimizer
        self._generator = generator
        self._order = generator.get_state()  # as the epoch began: what follows from it are the epoch's batches
        self._texts: dict[int, str] = {}  # of the snapshots, by step
        self._warned = False

    def save(
        self, epochs: Sequence[Epoch], monitor: Monitor | None = None, *, inside: bool = False, finished: bool = False
    ) -> None:
        """Put a checkpoint into the place of the last one; `inside` says that an epoch is not at its end.

        A disk that is full, or gone, is one warning, and the last checkpoint stays.
        """
        if not self._keeps:
            return
        if not inside:
            self._order = self._generator.get_state()
        log = monitor.writer.position() if monitor else None
        memory = monitor.memory if monitor else None
        bare = memory and replace(memory, snapshots=())
        content = {
            "version": VERSION,
            "progress": json.dumps(encode(Progress(self._config, self._data, tuple(epochs), log, bare, finished))),
            "snapshots": self._written(memory.snapshots if memory else ()),
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "order": self._order,
            "random": torch.get_rng_state(),
        }
        try:
            write_whole(self._path, seal(content))
        except OSError as error:
            self._warn(error)

    def restore(self, begun: Begun) -> Progress | None:
        """Put model, optimizer and random states back; None if the run had not begun to train.

        Raises:
            UsageError: the checkpoint does not fit the config, or the data are others.
        """
        progress, kept = begun.progress, begun.tensors
        if progress is None or progress.monitor is None:
            for path in logs(begun.folder) if self._keeps else ():
                cut(path, 0)  # raises if another process is writing to it
                path.unlink()
            return None
        if progress.data != self._data:
            was = f"which was trained on {progress.data}, not on {self._data}"
            same = "which was trained on other samples of the same number"
            changed = same if str(progress.data) == str(self._data) else was
            raise UsageError(f"the data set is no longer that of {begun.folder}, {changed}; put it back")
        with usable(self._path):
            self._check(progress, progress.monitor)
            self._model.load_state_dict(kept["model"])
            self._optimizer.load_state_dict(self._checked(kept["optimizer"]))
            self._generator.set_state(kept["order"])
            self._order = kept["order"]
            torch.set_rng_state(kept["random"])
        return progress

    def _written(self, snapshots: Iterable[Snapshot]) -> list[str]:
        """Each snapshot as JSON; made once, as there may be thousands at every checkpoint."""
        self._texts = {x.step: self._texts.get(x.step) or json.dumps(encode(x)) for x in snapshots}
        return list(self._texts.values())

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            words = f"cannot write {self._path}: {error.strerror or error}; training goes on, the last checkpoint stays"
            warnings.warn(words, RuntimeWarning, stacklevel=3)

    def _check(self, progress: Progress, memory: Memory) -> None:
        """That the parts fit together."""
        layers = [m for m in self._model.modules() if isinstance(m, nn.Linear)]
        for snapshot in (*memory.snapshots, *([memory.unprofiled] if memory.unprofiled else [])):
            if [layer.size for layer in snapshot.layers] != [f"{m.in_features}x{m.out_features}" for m in layers]:
                raise ValueError(f"its snapshot of step {snapshot.step} is of another network")
        if not (0 < len(progress.epochs) <= self._config.epochs + 1 and progress.epochs[-1].step <= memory.step):
            raise ValueError("its epochs and its step do not fit together")
        name = progress.log.file if progress.log else ""
        if not (name.isprintable() and Path(name).name == name and (not name or "tfevents" in name)):
            raise ValueError("its event file is not one of this folder")
        if memory.stride < 1 or not len(memory.snapshots) <= memory.seen or (memory.seen and not memory.snapshots):
            raise ValueError("its history is not whole")

    def _checked(self, state: Any) -> Any:
        """An optimizer's state, if it is one that ours can have."""
        if state["param_groups"] != self._optimizer.state_dict()["param_groups"]:
            raise ValueError("it is of another optimizer")
        shapes = [p.shape for group in self._optimizer.param_groups for p in group["params"]]
        expected = _after_a_step(self._config)
        for place, of_one in state["state"].items():
            found = {name: _outline(value, shapes[place]) for name, value in of_one.items()}
            if found != expected:
                raise ValueError(f"it is of another optimizer: parameter {place} has {found}, not {expected}")
            if not all(0 <= float(x) < _MANY for x in of_one.values() if isinstance(x, Tensor) and x.dim() == 0):
                raise ValueError(f"it counts the steps of parameter {place} wrongly")
        copied = {
            place: {k: v if v is None else v.clone() for k, v in x.items()} for place, x in state["state"].items()
        }
        return {"state": copied, "param_groups": state["param_groups"]}


def _after_a_step(config: TrainConfig) -> dict[str, str]:
    """What this config's optimizer keeps of a parameter, by a trial."""
    trial = nn.Linear(3, 2)
    optimizer = make_optimizer(trial, config)
    trial(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {name: _outline(value, trial.weight.shape) for name, value in optimizer.state[trial.weight].items()}


def _outline(value: Any, shape: torch.Size) -> str:
    """What kind of value an optimizer keeps of a parameter of this shape."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return type(value).__name__
    like = "one" if value.dim() == 0 else "each" if value.shape == shape else str(list(value.shape))
    return f"{like} {value.dtype}"
