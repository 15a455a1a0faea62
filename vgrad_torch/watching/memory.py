"""The state of a monitor, which a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass

from vgrad_torch.records import Snapshot


@dataclass(frozen=True, slots=True)
class Memory:
    """The state of a monitor between two steps, from which another one can continue; without the schedules.

    `stride` and `seen` say how the history was thinned. `unprofiled` is the last snapshot whose depth profile is not
    written yet, `profiled` the step of the last one whose profile is. `verdict` is the last one in the log.
    """

    step: int
    snapshots: tuple[Snapshot, ...]
    stride: int
    seen: int
    losses: tuple[float, ...]
    nonfinite: str | None
    verdict: tuple[str, ...]
    warned: tuple[str, ...]
    unprofiled: Snapshot | None
    profiled: int | None
