"""When to look: schedules are functions that are asked once for each step, in order, and say yes or no."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

Schedule = Callable[[int], bool]


def every_nth(n: int) -> Schedule:
    """Step 0 and every n-th after it."""
    return lambda step: step % n == 0


def sparse_steps(ratio: float = 1.5) -> Schedule:
    """Yes at first, then ever more rarely: each yes comes at `ratio` times the step of the last.

    With 1.5 that is 0, 1, 2, 3, 5, 8, ... and under 50 times in a hundred million steps, so that TensorBoard, which
    keeps about 50 steps of a histogram, drops none.

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


class Budget:
    """Yes as long as all yeses together cost at most a share of the wall time.

    A sampled step costs what it took longer than the median of the last unsampled ones; but at least what was charged
    for it, since the difference is noisy, and at most four times that, since a step may be slow for its own reasons.
    """

    def __init__(self, share: float) -> None:
        self.spent = 0.0
        """Seconds that the sampled steps cost so far."""
        self._share = share
        self._charged = 0.0
        self._sampled = False
        self._unsampled: deque[float] = deque(maxlen=31)
        self._started = self._asked = time.perf_counter()

    def charge(self, seconds: float) -> None:
        """Say how long the looking at this step took."""
        self._charged += seconds

    def __call__(self, step: int) -> bool:
        """Whether to look at this step; step 0 always."""
        now = time.perf_counter()
        took, self._asked = now - self._asked, now
        if self._sampled:
            usual = statistics.median(self._unsampled) if self._unsampled else took
            self.spent += min(max(took - usual, self._charged), 4 * self._charged)
        elif step:
            self._unsampled.append(took)
        self._charged = 0.0
        self._sampled = self.spent <= self._share * (now - self._started)
        return self._sampled
