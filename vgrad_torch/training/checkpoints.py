"""Checkpoints: they save the newest state of a run and restore it, so that it continues as if never interrupted."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vgrad_torch.errors import UsageError
from vgrad_torch.files import encode, write_whole
from vgrad_torch.records import Snapshot
from vgrad_torch.tensorboard.eventfile import cut
from vgrad_torch.training.checkpoint_file import VERSION, DataMark, Progress, pack, usable
from vgrad_torch.training.data import Dataset
from vgrad_torch.training.evaluation import Epoch
from vgrad_torch.training.recipes import TrainConfig, make_optimizer
from vgrad_torch.training.run_folder import RunFolder
from vgrad_torch.watching.memory import Memory
from vgrad_torch.watching.monitor import Monitor

_MANY_STEPS = 1e15


class Checkpoints:
    """Saves the newest state of a run and restores it.

    Of several processes, only the one with `saves` writes; all restore.
    """

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        data: Dataset,
        model: nn.Module,
        optimizer: Optimizer,
        generator: torch.Generator,
        *,
        saves: bool = True,
    ) -> None:
        self._run = run
        self._saves = saves
        self._config = config
        self._data = DataMark.of(data)
        self._model = model
        self._optimizer = optimizer
        self._generator = generator
        self._order = generator.get_state()  # at the start of the epoch: the epoch's batches follow from it
        self._texts: dict[int, str] = {}  # step -> snapshot as JSON
        self._warned = False

    def save(
        self,
        epochs: Sequence[Epoch],
        monitor: Monitor | None = None,
        *,
        mid_epoch: bool = False,
        finished: bool = False,
    ) -> None:
        """Replace the checkpoint by a new one. `mid_epoch` means that the current epoch is not finished.

        If the disk is full or gone, the user is warned once, and the last checkpoint stays.
        """
        if not self._saves:
            return
        if not mid_epoch:
            self._order = self._generator.get_state()
        log = monitor.writer.position() if monitor else None
        memory = monitor.memory if monitor else None
        without_snapshots = memory and replace(memory, snapshots=())
        progress = Progress(self._config, self._data, tuple(epochs), log, without_snapshots, finished)
        content = {
            "version": VERSION,
            "progress": json.dumps(encode(progress)),
            "snapshots": self._as_json(memory.snapshots if memory else ()),
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "order": self._order,
            "random": torch.get_rng_state(),
        }
        try:
            write_whole(self._run.checkpoint, pack(content))
        except OSError as error:
            self._warn(error)

    def restore(self) -> Progress | None:
        """Restore model, optimizer and random states; None if the run had not begun to train.

        Raises:
            UsageError: the checkpoint does not fit the config, or the data have changed.
        """
        progress, tensors = self._run.progress, self._run.tensors
        if progress is None or progress.monitor is None:
            for path in self._run.event_files if self._saves else ():
                cut(path, 0)  # raises if another process is writing to it
                path.unlink()
            return None
        if progress.data != self._data:
            sizes = f"which was trained on {progress.data}, not on {self._data}"
            same = "which was trained on other samples of the same number"
            difference = same if str(progress.data) == str(self._data) else sizes
            raise UsageError(f"the data set is no longer that of {self._run.path}, {difference}; put it back")
        with usable(self._run.checkpoint):
            self._check(progress, progress.monitor)
            self._model.load_state_dict(tensors["model"])
            self._optimizer.load_state_dict(self._checked(tensors["optimizer"]))
            self._generator.set_state(tensors["order"])
            self._order = tensors["order"]
            torch.set_rng_state(tensors["random"])
        return progress

    def _as_json(self, snapshots: Iterable[Snapshot]) -> list[str]:
        """Each snapshot as JSON. It is made once, since each checkpoint may hold thousands of snapshots."""
        self._texts = {x.step: self._texts.get(x.step) or json.dumps(encode(x)) for x in snapshots}
        return list(self._texts.values())

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            fault = f"cannot write {self._run.checkpoint}: {error.strerror or error}"
            warnings.warn(f"{fault}; training continues, the last checkpoint stays", RuntimeWarning, stacklevel=3)

    def _check(self, progress: Progress, memory: Memory) -> None:
        """Raise ValueError if the parts of the checkpoint do not fit together."""
        layers = [m for m in self._model.modules() if isinstance(m, nn.Linear)]
        for snapshot in (*memory.snapshots, *([memory.unprofiled] if memory.unprofiled else [])):
            if [layer.size for layer in snapshot.layers] != [f"{m.in_features}x{m.out_features}" for m in layers]:
                raise ValueError(f"its snapshot of step {snapshot.step} is of another network")
        if not (0 < len(progress.epochs) <= self._config.epochs + 1 and progress.epochs[-1].step <= memory.step):
            raise ValueError("its epochs and its step do not fit together")
        name = progress.log.file if progress.log else ""
        if not (name.isprintable() and PurePath(name).name == name and (not name or "tfevents" in name)):
            raise ValueError("its event file is not one of this folder")
        if memory.stride < 1 or not len(memory.snapshots) <= memory.seen or (memory.seen and not memory.snapshots):
            raise ValueError("its history is not whole")

    def _checked(self, state: Any) -> Any:
        """The state of the optimizer, if the config's optimizer can have such a state."""
        if state["param_groups"] != self._optimizer.state_dict()["param_groups"]:
            raise ValueError("it is of another optimizer")
        shapes = [p.shape for group in self._optimizer.param_groups for p in group["params"]]
        expected = _state_after_a_step(self._config)
        for place, values in state["state"].items():
            kinds = {name: _kind(value, shapes[place]) for name, value in values.items()}
            if kinds != expected:
                raise ValueError(f"it is of another optimizer: parameter {place} has {kinds}, not {expected}")
            if not all(0 <= float(x) < _MANY_STEPS for x in values.values() if isinstance(x, Tensor) and x.dim() == 0):
                raise ValueError(f"its step count of parameter {place} is wrong")
        copied = {
            place: {k: v if v is None else v.clone() for k, v in x.items()} for place, x in state["state"].items()
        }
        return {"state": copied, "param_groups": state["param_groups"]}


def _state_after_a_step(config: TrainConfig) -> dict[str, str]:
    """The state of a parameter in this config's optimizer, from one step of a small layer."""
    layer = nn.Linear(3, 2)
    optimizer = make_optimizer(layer, config)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {name: _kind(value, layer.weight.shape) for name, value in optimizer.state[layer.weight].items()}


def _kind(value: Any, shape: torch.Size) -> str:
    """The kind of a value in an optimizer's state of a parameter with this shape."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return type(value).__name__
    like = "one" if value.dim() == 0 else "each" if value.shape == shape else str(list(value.shape))
    return f"{like} {value.dtype}"
