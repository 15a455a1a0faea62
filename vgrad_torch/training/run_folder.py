"""The folder of a run: makes a new one, reads an existing one, and knows whether its run is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vgrad_torch.distributed import launch
from vgrad_torch.errors import UsageError
from vgrad_torch.files import decode, encode, write_whole
from vgrad_torch.training import checkpoint_file
from vgrad_torch.training.checkpoint_file import Progress
from vgrad_torch.training.recipes import TrainConfig

CONFIG = "config.json"
"""The file with the config of the run and the version of torch that the run began with."""

_LAUNCH_FILE = ".torchrun"  # holds the id of the torchrun that started the run
_MAY_CHANGE = ("name", "runs", "data_dir")  # folders can be moved, so these fields may change


@dataclass(frozen=True, slots=True, eq=False)
class RunFolder:
    """A run on the disk: its folder, its config, and the state and tensors of its newest checkpoint.

    `progress` is None and `tensors` is empty if the run has no checkpoint yet.
    """

    path: Path
    config: TrainConfig
    progress: Progress | None = None
    tensors: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Make the folder of a new run and write its config. If the name is taken, a number is added to it."""
        runs = Path(config.runs)
        for number in range(1, 10_000):
            folder = runs / (config.name if number == 1 else f"{config.name}-{number}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                if folder.is_dir():
                    continue
                raise UsageError(
                    f"cannot make the folder {folder}: a file has this name; choose another name"
                ) from None
            except OSError as error:
                raise UsageError(f"cannot make the folder {folder}: {error.strerror}; choose another --runs") from None
            write_config(config, folder)
            if launch.started_by_torchrun():
                (folder / _LAUNCH_FILE).write_text(launch.launch_id())
            return cls(folder, config)
        raise UsageError(f"{runs} holds 9,999 runs named {config.name}; delete some, or choose another name")

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Read the run in a folder.

        Raises:
            UsageError: the folder holds no run, or its files are damaged, foreign or of another version.
        """
        config = read_config(path)
        try:
            progress, tensors = checkpoint_file.read(path / checkpoint_file.FILE)
        except FileNotFoundError:
            run = cls(path, config)
            if run.event_files:
                name = checkpoint_file.FILE
                raise UsageError(f"{path} holds no {name}, so this run cannot continue; start a new one") from None
            return run
        for field_name, trained in asdict(progress.config).items():
            if field_name not in _MAY_CHANGE and trained != (now := getattr(config, field_name)):
                raise UsageError(
                    f"{path}/{CONFIG} has {field_name} {now}, but {path}/{checkpoint_file.FILE} has {trained}; put "
                    "it back"
                )
        return cls(path, config, progress, tensors)

    @classmethod
    def of_this_launch(cls, runs: Path) -> RunFolder | None:
        """The run that the same torchrun started before it restarted its processes; None if there is none."""
        marks = (path for path in runs.glob(f"*/{_LAUNCH_FILE}") if path.read_text() == launch.launch_id())
        mark = next(marks, None)
        return None if mark is None else cls.read(mark.parent)

    @property
    def checkpoint(self) -> Path:
        """The path of the checkpoint."""
        return self.path / checkpoint_file.FILE

    @property
    def event_files(self) -> list[Path]:
        """The TensorBoard event files."""
        return sorted(self.path.glob("*tfevents*"))

    @property
    def finished(self) -> bool:
        """Whether all epochs are trained."""
        return self.progress is not None and self.progress.finished

    @property
    def verdict(self) -> str | None:
        """The last verdict in one word; None before the first sample."""
        monitor = self.progress.monitor if self.progress else None
        return monitor.verdict[0] if monitor and monitor.verdict else None


def write_config(config: TrainConfig, folder: Path) -> None:
    """Write the config into the folder of a run."""
    content = {**encode(config), "torch": str(torch.__version__)}
    try:
        write_whole(folder / CONFIG, (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}; choose another --runs") from None


def read_config(folder: Path) -> TrainConfig:
    """Read what `write_config` wrote.

    Raises:
        UsageError: the folder holds no config, or none that this version understands.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_bytes())
        values = {key: value for key, value in content.items() if key != "torch"}
        config: TrainConfig = decode(TrainConfig, values)
    except (FileNotFoundError, NotADirectoryError):
        wanted = "name the folder of a run, as in runs/digits-relu-uniform-s0"
        raise UsageError(f"{folder} holds no {CONFIG}, so it is not a run that can continue; {wanted}") from None
    except (UsageError, OSError, ValueError, AttributeError, RecursionError) as error:
        reason = "it holds no named values" if isinstance(error, AttributeError) else " ".join(str(error).split())
        raise UsageError(f"{path} cannot be used ({reason}): it is damaged, or of another version") from None
    return config
