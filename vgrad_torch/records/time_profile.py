"""TimeProfile: how large the gradient is at each time step of a sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

POINTS = 256
"""The largest number of points that a profile keeps."""


@dataclass(frozen=True, slots=True)
class TimeProfile:
    """The norm of the gradient at each step of a sequence.

    Of a recurrent layer it is the gradient of the layer's input, of an embedding that of its output at each position,
    and of a layer that is called in a loop that of the output of each call.

    Where the loss depends on the last time step alone, the gradient at an earlier step has come all the way
    back through time. Then `horizon` says how far back the layer can learn from.

    Attributes:
        gradients: norms in the order of time, at most `POINTS` of them, evenly spread over the sequence.
        steps: the number of time steps.
        last: the last step that the loss depends on directly, from 0; None if it depends on several steps.
        tenth: how many steps before `last` the gradient is first below a tenth of that at `last`; None if it never is,
            or if `last` is None.
        hundredth: the same for a hundredth.
        growth: the largest gradient before `last` over that at `last`; NaN if `last` is None or 0.

    Source: Bengio, Simard and Frasconi 1994 (doi:10.1109/72.279181); Pascanu, Mikolov and Bengio 2013
    (arXiv:1211.5063).
    """

    gradients: tuple[float, ...]
    steps: int
    last: int | None = None
    tenth: int | None = None
    hundredth: int | None = None
    growth: float = math.nan

    @classmethod
    def of(cls, gradients: Sequence[float], last: int | None) -> TimeProfile:
        """The profile of all time steps.

        >>> TimeProfile.of([0.005, 0.05, 0.5, 1.0], last=3)
        TimeProfile(gradients=(0.005, 0.05, 0.5, 1.0), steps=4, last=3, tenth=2, hundredth=3, growth=0.5)
        """
        stride = math.ceil(len(gradients) / POINTS)
        kept = tuple(gradients[::-1][::stride][::-1])
        if last is None or not 0 < gradients[last] < math.inf:
            return cls(kept, len(gradients), last)
        back = [gradients[place] / gradients[last] for place in range(last, -1, -1)]
        tenth, hundredth = (
            next((steps for steps, share in enumerate(back) if share < limit), None) for limit in (0.1, 0.01)
        )
        return cls(kept, len(gradients), last, tenth, hundredth, max(back[1:], default=math.nan))

    def step(self, place: int) -> int:
        """The time step of an entry of `gradients`, from 0.

        >>> TimeProfile.of([1.0] * 600, None).step(0), TimeProfile.of([1.0] * 600, None).step(199)
        (2, 599)
        """
        return self.steps - 1 - (len(self.gradients) - 1 - place) * math.ceil(self.steps / POINTS)

    @classmethod
    def joined(cls, profiles: Sequence[TimeProfile]) -> TimeProfile | None:
        """The profile of several ranks' batches together; None without any.

        If their sequences have different lengths or more than `POINTS` steps, it is the first rank's.
        """
        if not profiles:
            return None
        first = profiles[0]
        alike = len({(profile.steps, profile.last) for profile in profiles}) == 1
        if len(profiles) == 1 or not alike or first.steps > POINTS:
            return first
        return cls.of([math.hypot(*norms) for norms in zip(*(p.gradients for p in profiles), strict=True)], first.last)


def last_alone(direct: Sequence[float]) -> int | None:
    """The only step that the loss depends on directly; None if there are several or none.

    >>> last_alone([0.0, 0.0, 0.3]), last_alone([0.1, 0.0, 0.3])
    (2, None)
    """
    steps = [step for step, gradient in enumerate(direct) if gradient]
    return steps[0] if len(steps) == 1 else None
