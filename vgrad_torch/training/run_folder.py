"""The folder of a run: it is made here, and here is asked what it holds and whether the run is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vgrad_torch.distributed import launch
from vgrad_torch.errors import UsageError
from vgrad_torch.training import checkpoint_file
from vgrad_torch.training.checkpoint_file import Progress
from vgrad_torch.training.recipes import TrainConfig, read_config, write_config

_LAUNCH_FILE = ".torchrun"  # holds the id of the torchrun that began the run
_PLACES = ("name", "runs", "data_dir")  # fields of a config that may change, as folders can be moved


@dataclass(frozen=True, slots=True, eq=False)
class RunFolder:
    """A run on the disk: folder, config, and the state and tensors of its newest checkpoint.

    `progress` is None, and `tensors` is empty, if the run was killed before its first checkpoint.
    """

    path: Path
    config: TrainConfig
    progress: Progress | None = None
    tensors: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Make the folder of a new run, with a number after the name if the name is taken, and write its config."""
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
            if launch.launched():
                (folder / _LAUNCH_FILE).write_text(launch.mark())
            return cls(folder, config)
        raise UsageError(f"{runs} holds 9,999 runs named {config.name}; delete some, or choose another name")

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """The run in a folder.

        Raises:
            UsageError: there is none, or its files are damaged, foreign or of another version.
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
            if field_name not in _PLACES and trained != (now := getattr(config, field_name)):
                raise UsageError(
                    f"{path}/config.json has {field_name} {now}, but {path}/{checkpoint_file.FILE} has {trained}; put "
                    "it back"
                )
        return cls(path, config, progress, tensors)

    @classmethod
    def of_this_launch(cls, runs: Path) -> RunFolder | None:
        """The run that an earlier start of the same torchrun began; None if it began none."""
        marks = (path for path in runs.glob(f"*/{_LAUNCH_FILE}") if path.read_text() == launch.mark())
        mark = next(marks, None)
        return None if mark is None else cls.read(mark.parent)

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint is."""
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
