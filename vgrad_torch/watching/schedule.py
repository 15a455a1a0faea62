"""When to look: schedules are functions that are asked once for each step, in order, and say yes or no."""

from __future__ import annotations

import math
import statistics
import sys
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


class Metered:
    """A schedule that knows what its yeses cost, in wall time.

    A sampled step costs what it took longer than the median of the last unsampled ones; but at least what was charged
    for it, since the difference is noisy, and at most four times that, since a step may be slow for its own reasons.
    """

    def __init__(self, due: Schedule) -> None:
        self.spent = 0.0
        """Seconds that the sampled steps cost so far."""
        self._due = due
        self._charged = 0.0
        self._sampled = False
        self._unsampled: deque[float] = deque(maxlen=31)
        self._started = self._asked = time.perf_counter()

    @property
    def share(self) -> float:
        """What sampling cost so far, this step included, as a share of the wall time: 0 to 1."""
        now = time.perf_counter()
        return min((self.spent + self._cost(now - self._asked)) / max(now - self._started, 1e-9), 1.0)

    def charge(self, seconds: float) -> None:
        """Say how long the looking at this step took."""
        self._charged += seconds

    def __call__(self, step: int) -> bool:
        """Whether to look at this step."""
        now = time.perf_counter()
        took, self._asked = now - self._asked, now
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
        """Seconds that an unsampled step takes; `otherwise` if there was none."""
        return statistics.median(self._unsampled) if self._unsampled else otherwise


class Budget(Metered):
    """Yes as long as all yeses together cost at most a share of the wall time; to step 0 always.

    Processes that must look at the same steps cannot each go by a clock: they set `agreed` to what one of them
    forecast. Then the share is kept as well as the steps ahead are like those before.
    """

    def __init__(self, share: float) -> None:
        super().__init__(self._within)
        self.agreed: int | None = None
        """The next step to say yes to; None leaves it to the clock."""
        self._share = share

    def forecast(self, step: int) -> int:
        """Asked at the end of a sampled step: the step by which the samples so far will be within the share."""
        if not self._share:
            return sys.maxsize
        now = time.perf_counter()
        took = now - self._asked
        wanted = (self.spent + self._cost(took)) / self._share
        missing = wanted - (now - self._started)
        return step + max(math.ceil(missing / self._usual(took - self._charged)), 1)

    def _within(self, step: int) -> bool:
        if self.agreed is not None:
            return step >= self.agreed
        return self.spent <= self._share * (self._asked - self._started)
