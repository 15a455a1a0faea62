"""Schedules: functions that are called once for each step, in order, and return whether to sample the step."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable

Schedule = Callable[[int], bool]


def every_nth(n: int) -> Schedule:
    """Step 0 and every n-th step after it."""
    return lambda step: step % n == 0


def sparse_steps(ratio: float = 1.5) -> Schedule:
    """Many steps at first, then fewer: each sampled step is `ratio` times the one before.

    With 1.5 these are 0, 1, 2, 3, 5, 8, ...: fewer than 50 in a hundred million steps. TensorBoard keeps about 50 steps
    of a histogram, so it drops none.

    >>> due = sparse_steps()
    >>> [step for step in range(100) if due(step)]
    [0, 1, 2, 3, 5, 8, 12, 18, 27, 41, 62, 93]
    """
    next_step = 0.0

    def due(step: int) -> bool:
        nonlocal next_step
        if step < next_step:
            return False
        next_step = max(step + 1.0, step * ratio)
        return True

    return due


class Metered:
    """A schedule that measures the time its samples take.

    The cost of a sampled step is its time minus the median time of the last steps without a sample. This difference is
    noisy, so the cost is at least the time charged for the sample. A step may be slow for other reasons, so the cost is
    at most four times the charged time.
    """

    def __init__(self, due: Schedule) -> None:
        self.spent = 0.0
        """Seconds that the samples cost so far."""
        self._due = due
        self._charged = 0.0
        self._sampled = False
        self._unsampled: deque[float] = deque(maxlen=31)
        self._started = self._last_call = time.perf_counter()

    @property
    def share(self) -> float:
        """The cost of the samples so far, this step included, as a share of the wall time: 0 to 1."""
        now = time.perf_counter()
        return min((self.spent + self._cost(now - self._last_call)) / max(now - self._started, 1e-9), 1.0)

    def charge(self, seconds: float) -> None:
        """Add to the time that the sample of this step took."""
        self._charged += seconds

    def __call__(self, step: int) -> bool:
        """Whether to sample this step."""
        now = time.perf_counter()
        took, self._last_call = now - self._last_call, now
        if self._sampled:
            self.spent += self._cost(took)
        elif step:
            self._unsampled.append(took)
        self._charged = 0.0
        self._sampled = self._due(step)
        return self._sampled

    def _cost(self, took: float) -> float:
        return min(max(took - self._usual(took), self._charged), 4 * self._charged)

    def _usual(self, otherwise: float) -> float:
        """The median time of steps without a sample, in seconds; `otherwise` if there was none."""
        return statistics.median(self._unsampled) if self._unsampled else otherwise


class Budget(Metered):
    """Samples step 0, then a step whenever all samples so far cost at most a share of the wall time.

    Several processes must sample the same steps, but their clocks differ. They set `agreed` to the forecast of one of
    them. Then the share is kept if the coming steps take as long as the steps before.
    """

    def __init__(self, share: float) -> None:
        super().__init__(self._within)
        self.agreed: int | None = None
        """The next step to sample; None: decide by the clock."""
        self._share = share

    def forecast(self, step: int) -> int:
        """At the end of a sampled step: the next step at which the samples so far will cost no more than the share."""
        if not self._share:
            return sys.maxsize
        now = time.perf_counter()
        took = now - self._last_call
        wanted = (self.spent + self._cost(took)) / self._share
        missing = wanted - (now - self._started)
        return step + max(math.ceil(missing / self._usual(took - self._charged)), 1)

    def _within(self, step: int) -> bool:
        if self.agreed is not None:
            return step >= self.agreed
        return self.spent <= self._share * (self._last_call - self._started)
