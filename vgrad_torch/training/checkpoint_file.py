"""The checkpoint file: what it holds, a checksum that shows whether it is complete, and no code that could run."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vgrad_torch.errors import UsageError
from vgrad_torch.files import decode
from vgrad_torch.records import Snapshot
from vgrad_torch.tensorboard.writer import Position
from vgrad_torch.training.data import Dataset
from vgrad_torch.training.evaluation import Epoch
from vgrad_torch.training.recipes import TrainConfig
from vgrad_torch.watching.memory import Memory

FILE = "checkpoint.pt"
VERSION = 1


@dataclass(frozen=True, slots=True)
class DataMark:
    """What identifies a data set; `checksum` is the CRC-32 of its tensors, one after the other."""

    training: int
    validation: int
    features: int
    checksum: int

    @staticmethod
    def of(data: Dataset) -> DataMark:
        """The mark of a data set."""
        checksum = 0
        for tensor in (data.x_train, data.y_train, data.x_validation, data.y_validation):
            checksum = zlib.crc32(tensor.cpu().contiguous().numpy().data, checksum)
        return DataMark(len(data.x_train), len(data.x_validation), data.x_train.shape[1], checksum)

    def __str__(self) -> str:
        return f"{self.training:,} samples of {self.features:,} features to train on, {self.validation:,} to validate"


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a run without its tensors. `log` and `monitor` are None before they began."""

    config: TrainConfig
    data: DataMark
    epochs: tuple[Epoch, ...]
    log: Position | None
    monitor: Memory | None
    finished: bool


def pack(content: Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint: what `torch.load` reads, then the SHA-256 of it."""
    file = io.BytesIO()
    torch.save(dict(content), file)
    return file.getvalue() + hashlib.sha256(file.getbuffer()).digest()


def unpack(packed: bytes) -> Mapping[str, Any]:
    """The content of a checkpoint. No code in it is ever run.

    Raises:
        ValueError: the checksum is wrong: the file is incomplete, or `pack` did not make it.
        Exception: of any kind, from torch, if another program wrote the file with a right checksum.
    """
    content, digest = packed[:-32], packed[-32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged, or was not written by vgrad train")
    loaded: Mapping[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return loaded


def read(path: Path) -> tuple[Progress, Mapping[str, Any]]:
    """The state in a checkpoint file, and everything in it by name, tensors included.

    Raises:
        FileNotFoundError: there is none.
        UsageError: it cannot be read, is damaged, or is of another version.
    """
    try:
        packed = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    with usable(path):
        content = unpack(packed)
        if content["version"] != VERSION:
            raise ValueError(f"it is of version {content['version']!r}, this reads {VERSION}")
        progress: Progress = decode(Progress, json.loads(content["progress"]))
        if progress.monitor is not None:
            snapshots = tuple(decode(Snapshot, json.loads(text)) for text in content["snapshots"])
            progress = replace(progress, monitor=replace(progress.monitor, snapshots=snapshots))
    return progress, content


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn every exception from a file that vgrad did not write into a `UsageError` of one sentence."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path} cannot be used: {reason[:200]}") from error
