"""When a monitor writes depth profiles: rarely, and of the last snapshot with histograms at the end."""

from __future__ import annotations

from vgrad_torch.records import Snapshot
from vgrad_torch.tensorboard.writer import Writer
from vgrad_torch.watching.schedule import sparse_steps


class DepthProfiles:
    """Writes depth profiles at steps that become sparser.

    Attributes:
        waiting: the last snapshot with histograms; None once its profile is written.
        written: the step of the last snapshot whose profile was written when it was taken.
    """

    def __init__(self, writer: Writer) -> None:
        self.waiting: Snapshot | None = None
        self.written: int | None = None
        self._writer = writer
        self._due = sparse_steps(ratio=2.0)

    def restore(self, waiting: Snapshot | None, written: int | None) -> None:
        """Continue where others stopped."""
        self.waiting, self.written = waiting, written
        if written is not None:  # the schedule remembers no more than the last step with a profile
            self._due(written)

    def take(self, snapshot: Snapshot, step: int) -> bool:
        """Write the profile of a snapshot if it is due; whether it was."""
        self.waiting = snapshot
        if not self._due(step):
            return False
        self.written = step
        self.write_waiting()
        return True

    def write_waiting(self) -> None:
        """Write the profile of the last snapshot with histograms, unless it was written."""
        if self.waiting is not None:
            self._writer.depth_profile(self.waiting)
            self.waiting = None
