"""Sentences about how far back through time the gradient of a layer reaches."""

from __future__ import annotations

import math

from vgrad_torch.records import Snapshot, TimeProfile
from vgrad_torch.verdict.labels import called, two_digits

GROWN = 10.0
"""The growth from which on it is mentioned."""


MOST = 8
"""The largest number of layers that are listed or drawn."""


def timed_layers(snapshot: Snapshot) -> list[tuple[str, TimeProfile]]:
    """Label and time profile of each layer that has one."""
    return [(layer.label, layer.time) for layer in snapshot.layers if layer.time]


def horizons(snapshot: Snapshot) -> list[str]:
    """The sentence of each layer that has a time profile; of more than `MOST`, the first ones and their number."""
    timed = timed_layers(snapshot)
    words = [horizon(label, time) for label, time in timed[:MOST]]
    return words if len(timed) <= MOST else [*words, f"{len(timed) - MOST:,} more layers have a time profile."]


def horizon(label: str, profile: TimeProfile) -> str:
    """After how many steps a tenth and a hundredth of the gradient are left.

    >>> horizon("rnn", TimeProfile.of([0.1**step for step in range(200)][::-1], 199))
    'rnn: a tenth of the gradient is left after 2 steps back through time, a hundredth after 3, of 200.'
    >>> horizon("rnn", TimeProfile.of([0.05, 0.5, 1.0], 2))
    'rnn: a tenth of the gradient is left after 2 steps back through time, of 3; it does not fall to a hundredth.'
    >>> horizon("rnn", TimeProfile.of([50.0, 1.0], 1))
    'rnn: the gradient does not fall to a tenth in 2 time steps; it grows 50 times on its way back.'
    >>> horizon("wte", TimeProfile.of([4.0, 1.0], None))
    'wte: the loss depends on several of the 2 steps. The gradient is largest at step 0; at step 1 it is 0.25 of that.'
    """
    return f"{called(label)}: {_words(profile)}."


def _words(profile: TimeProfile) -> str:
    if profile.last is None:
        return f"the loss depends on several of the {profile.steps:,} steps{_extremes(profile)}"
    if profile.steps == 1:
        return "there is one time step, so no horizon can be told"
    if profile.tenth is None and math.isnan(profile.growth) and profile.last:
        return "no horizon can be told, as a gradient is NaN or infinite, or that at the last time step is zero"
    grown = f"; it grows {two_digits(profile.growth)} times on its way back" if profile.growth >= GROWN else ""
    if profile.tenth is None:
        return f"the gradient does not fall to a tenth in {profile.steps:,} time steps{grown}"
    tenth = f"a tenth of the gradient is left after {_steps(profile.tenth)} back through time"
    if profile.hundredth is None:
        return f"{tenth}, of {profile.steps:,}; it does not fall to a hundredth{grown.replace('; it', ' and')}"
    return f"{tenth}, a hundredth after {profile.hundredth:,}, of {profile.steps:,}{grown}"


def _extremes(profile: TimeProfile) -> str:
    """Where the gradient is largest and where it is smallest, if that is known."""
    norms = profile.gradients
    if len(norms) < 2 or not 0 < max(norms) < math.inf or math.isnan(sum(norms)):
        return ""
    most, least = (norms.index(pick(norms)) for pick in (max, min))
    share = two_digits(norms[least] / norms[most])
    largest = f". The gradient is largest at step {profile.step(most):,}"
    return f"{largest}; at step {profile.step(least):,} it is {share} of that"


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number:,} steps"
