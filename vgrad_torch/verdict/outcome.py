"""The outcome of a training: whether the network learns, judged by its losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from vgrad_torch.verdict.labels import four_digits

WINDOW = 20
"""The largest number of losses whose median is compared; never more than a fifth of all losses."""
SURE = 3.0
"""A fall counts if it is larger than this many standard errors."""
FALL = 0.1
"""A fall from the first losses counts if it is larger than this share of them."""
FALL_OF_FEW, FEW = 0.3, 5
"""The share where fewer losses than these are known, whose noise cannot be told."""
BELOW_CONSTANT = 0.02
"""A loss counts as below that of the best constant answer if it is lower by more than this share. Then a fall from the
first losses counts if it is larger than this share, too."""
FAR_BELOW = 0.8
"""A loss below this share of what the best constant answer gets has been learnt, perhaps before the first loss."""
STILL, STILL_FROM_START = 0.02, 0.05
"""A loss that fell by more than the first share since the middle of the training is still falling; then a fall from the
first losses counts if it is larger than the second share."""
EARLY = 50
"""Steps before which a loss that has not fallen says nothing."""

LEARNING, NOT_LEARNING, TOO_EARLY, UNKNOWN = "learning", "not learning", "too early to say", "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the network learns.

    It learns if the newest losses are below the first ones by more than `FALL`, or still fall. If it is known what the
    best constant answer gets, they must be below that, and either far below it or below the first ones. Each fall must
    be larger than the noise of the losses.

    Attributes:
        word: `learning`, `not learning`, `too early to say`, or `unknown` if fewer than two losses are known.
        start: the median of the first losses; the first loss alone if those that follow jump above it.
        now: the median of the newest losses.
        noise: the standard error of `now`.
        constant: the loss of the best constant answer; NaN if it is not known.
        best: the smallest median of successive losses.
        stuck: whether the loss no longer falls, and has not lost nine tenths of what it was at the start.
    """

    word: str = UNKNOWN
    start: float = math.nan
    now: float = math.nan
    noise: float = math.nan
    constant: float = math.nan
    best: float = math.nan
    stuck: bool = False

    @property
    def risen(self) -> bool:
        """Whether the loss has lost more than half of its fall again."""
        top = self.start if math.isnan(self.constant) else max(self.start, self.constant)
        had_fallen = _falls(top, self.best, 2 * self.noise, FALL)  # the smallest of many medians is low by chance, too
        return had_fallen and self.now - self.best > max(2 * SURE * self.noise, (top - self.best) / 2)

    def __str__(self) -> str:
        """What was compared, one sentence.

        >>> str(outcome([2.31, 2.1, 1.4, 0.9, 0.5, 0.3], 600, constant=2.303))
        'The loss has fallen from 2.31 to 0.3; the best constant answer gets 2.303.'
        >>> str(outcome([2.31, 2.30, 2.31, 2.32, 2.30, 2.31], 600))
        'The loss has not fallen: it was 2.31 and is 2.31.'
        """
        if self.word == UNKNOWN:
            return "No loss was seen."
        start, now = four_digits(self.start), four_digits(self.now)
        constant = "" if math.isnan(self.constant) else f"; the best constant answer gets {four_digits(self.constant)}"
        if self.word == LEARNING and self.now < self.start:
            return f"The loss has fallen from {start} to {now}{constant}."
        if self.word == LEARNING:
            return f"The loss is {now}{constant}."
        if self.risen:
            return f"The loss had fallen from {start} to {four_digits(self.best)}, and has risen to {now}{constant}."
        if _falls(self.start, self.now, self.noise, BELOW_CONSTANT):
            return f"The loss has only fallen from {start} to {now}{constant}."
        clearly = "clearly " if self.now < self.start else ""
        return f"The loss has not {clearly}fallen: it was {start} and is {now}{constant}."


NO_LOSS = Outcome()
"""The outcome of a training whose losses are not known."""


def outcome(losses: Sequence[float], step: int, constant: float = math.nan) -> Outcome:
    """The outcome by the losses of any steps, in order, up to `step`; `constant` is that of the best constant answer.

    >>> outcome([2.4, 2.31, 2.303, 2.303, 2.303, 2.303], 600).word
    'not learning'
    """
    known = [loss for loss in losses if math.isfinite(loss)]
    if len(known) < 2:
        return NO_LOSS
    count = _count(known)
    start, now, noise = _start(known, count), median(known[-count:]), standard_error(known, count)
    middle = median(known[len(known) // 2 :][:count])
    still = len(known) >= FEW and _falls(middle, now, noise, STILL)
    if math.isnan(constant):
        share = FALL_OF_FEW if len(known) < FEW else FALL
        learns = _falls(start, now, noise, share) or (still and _falls(start, now, noise, STILL_FROM_START))
    else:
        fallen = now < FAR_BELOW * constant or _falls(start, now, noise, BELOW_CONSTANT)
        learns = fallen and _falls(constant, now, noise, BELOW_CONSTANT)
    stuck = not still and start - now < 0.9 * abs(start)
    found = Outcome(LEARNING, start, now, noise, constant, _best(known, count), stuck)
    if learns and not found.risen:
        return found
    return replace(found, word=TOO_EARLY if max(step, len(losses)) < EARLY else NOT_LEARNING)


def _count(losses: Sequence[float]) -> int:
    """How many of the first and of the newest losses are compared."""
    return max(1, min(WINDOW, len(losses) // 5))


def _start(losses: Sequence[float], count: int) -> float:
    """The median of the first losses; if nearly all that follow the first one jump far above it, the first one."""
    first, *rest = losses[: max(count, 4)]
    jumped = sorted(rest)[len(rest) // 10] > first and median(rest) > 2 * first > 0
    return first if jumped else median(losses[:count])


def _best(losses: Sequence[float], count: int) -> float:
    """The smallest median of successive losses."""
    return min(median(losses[place : place + count]) for place in range(0, len(losses) - count + 1, count))


def standard_error(losses: Sequence[float], count: int) -> float:
    """Of a median of `count` losses, from the second differences of the newer half, in which a trend cancels.

    The standard deviation of a loss is taken as 1.48 / sqrt(6) of the median absolute second difference, and the
    standard error of a median as 1.25 times that of a mean.
    """
    newer = losses[len(losses) // 2 :]
    bends = [
        abs(before - 2 * middle + after) for before, middle, after in zip(newer, newer[1:], newer[2:], strict=False)
    ]
    return 1.25 * 1.48 / math.sqrt(6 * count) * median(bends) if bends else 0.0


def _falls(before: float, now: float, noise: float, share: float) -> bool:
    return before - now > max(SURE * noise, share * abs(before))
