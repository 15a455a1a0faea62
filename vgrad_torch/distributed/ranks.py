"""The ranks that train one model, and their snapshots combined into one."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vgrad_torch.distributed import shards
from vgrad_torch.errors import UsageError

Value = TypeVar("Value")

_WARN_AFTER = 15.0  # seconds

RANKS_APART = (
    "inside join() and after destroy_process_group() the ranks cannot combine their samples: from now on only weights, "
    "weight gradients and updates are shown"
)
"""What a user is told when `Ranks.all_take_part` becomes false."""


class Ranks:
    """The processes that train a model together: by `DistributedDataParallel`, `fully_shard`, or tensor parallel.

    They use the model's own process group and its time-out. Without a group this is rank 0 of 1.

    Raises:
        UsageError: the parameters are spread over the ranks in a way that is not supported.
    """

    def __init__(self, model: nn.Module) -> None:
        parallel = (m for m in model.modules() if isinstance(m, DistributedDataParallel))
        self.data_parallel = next(parallel, None)
        """The wrapped model of data parallel training, or None."""
        self._uneven = False
        self._device = torch.device("cpu") if self.data_parallel is None else self.data_parallel.device
        mesh = shards.mesh(model)
        if mesh is not None and self.data_parallel is not None:
            raise UsageError("watch() takes either DistributedDataParallel or parameters on a device mesh, not both")
        self._group: dist.ProcessGroup | None = None
        if mesh is not None:
            self._group = mesh.get_group()
        elif self.data_parallel is not None:
            self._group = self.data_parallel.process_group
        self.rank = 0 if self._group is None else dist.get_rank(self._group)
        self.size = 1 if self._group is None else dist.get_world_size(self._group)
        self.tensor_parallel = mesh is not None and not any(map(shards.is_fully_sharded, model.modules()))
        """Whether the ranks share the computation of a layer, so that each rank has only a part of its output."""

    def all_take_part(self, *, joining: bool = False) -> bool:
        """Whether every rank takes part in every step: not after `destroy_process_group`, and not from a `join()` on.

        Inside `model.join()` ranks without further batches take no more steps. The others would wait for them without
        end, and from then on the ranks count their steps differently. `joining` says that this is inside a `join()`.
        """
        self._uneven = self._uneven or joining
        return not self._uneven and (self._group is None or dist.is_initialized())

    def gather(self, own: Value) -> list[Value]:
        """The values of all ranks, in order. A collective call: it waits until every rank has called it."""
        if self.size == 1:
            return [own]
        gathered: list[Any] = [None] * self.size
        with _waiting(f"rank {self.rank} of {self.size}"), _current(self._device):
            dist.all_gather_object(gathered, own, group=self._group)
        return cast(list[Value], gathered)


@contextmanager
def _waiting(rank: str) -> Iterator[None]:
    """Explain a long wait: by a warning after a while, and by a note on the error of the time-out."""
    message = (
        f"{rank} waits for the samples of the others: every rank must enter watch() with the same schedule, and leave "
        "it after the same step"
    )
    timer = threading.Timer(_WARN_AFTER, warnings.warn, (message, RuntimeWarning))
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:
        error.add_note(message)
        raise
    finally:
        timer.cancel()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make the model's device the current one, which NCCL uses to gather objects."""
    if device.type == "cpu":
        return nullcontext()
    return cast(AbstractContextManager[Any], torch.get_device_module(device).device(device))
