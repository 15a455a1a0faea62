"""Whether a network learns, told from its losses: series made with known noise, and trainings that really happened."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable

import pytest

from vgrad_torch.verdict.outcome import LEARNING, NO_LOSS, NOT_LEARNING, TOO_EARLY, Outcome, outcome

LN10 = math.log(10)


def series(mean: Callable[[float], float], noise: float, steps: int = 500, seed: int = 0) -> list[float]:
    """Losses of `steps` steps; `mean` is given the share of the training that is over."""
    chance = random.Random(seed)
    return [mean(step / steps) + chance.gauss(0, noise) for step in range(steps)]


def word(losses: list[float], constant: float = math.nan) -> str:
    return outcome(losses, len(losses), constant).word


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_noise_alone_is_no_learning(noise: float, seed: int) -> None:
    assert word(series(lambda _: LN10, noise, seed=seed)) == NOT_LEARNING
    assert word(series(lambda _: LN10, noise, seed=seed), constant=LN10) == NOT_LEARNING


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "mean",
    [lambda t: LN10 * (1 - 0.5 * t), lambda t: 0.2 + 2 * math.exp(-9 * t), lambda t: 2.3 - 1.5 * (t > 0.7)],
    ids=["steady", "fast, then flat", "after a plateau"],
)
def test_a_loss_that_falls_beyond_its_noise_is_learning(mean: Callable[[float], float], seed: int) -> None:
    for noise in (0.01, 0.3):
        assert word(series(mean, noise, seed=seed)) == LEARNING
        assert word(series(mean, noise, seed=seed), constant=LN10) == LEARNING


def test_a_fall_to_the_constant_answer_is_no_learning() -> None:
    """A net with large first outputs begins above ln 10, and soon gives every sample the same answer."""
    losses = series(lambda t: LN10 + 0.6 * math.exp(-30 * t), 0.01)
    assert word(losses, constant=LN10) == NOT_LEARNING
    assert str(outcome(losses, 500, LN10)) == (
        f"The loss has only fallen from {outcome(losses, 500).start:.4g} to {outcome(losses, 500).now:.4g}; "
        "the best constant answer gets 2.303."
    )


def test_a_loss_that_jumps_in_the_first_steps_is_compared_with_the_first() -> None:
    """As with a learning rate a thousand times too large: 1.4, then hundreds, then down to 1.9."""
    after = [300 * 0.9**step + 1.9 for step in range(200)]
    for losses in ([1.4, *after], [1.4, 1.1, *after]):
        assert outcome(losses, 200).start == 1.4
        assert word(losses) == NOT_LEARNING


def test_one_low_loss_at_the_start_is_no_jump() -> None:
    """Squared errors of single samples."""
    chance = random.Random(0)
    losses = [0.05, *(math.exp(-3 * step / 500) * chance.gauss(0, 1) ** 2 for step in range(500))]
    assert outcome(losses, 500).start > 0.2
    assert word(losses) == LEARNING


def test_a_loss_that_fell_and_rose_again_is_no_learning() -> None:
    losses = series(lambda t: 0.3 if 0.2 < t < 0.6 else 2.0 if t > 0.2 else LN10, 0.01)
    assert word(losses) == word(losses, LN10) == NOT_LEARNING
    assert re.match(
        r"The loss had fallen from 2\.\d+ to 0\.[23]\d*, and has risen to [12]\.\d+\.", str(outcome(losses, 500))
    )


def test_a_network_that_converged_long_ago_has_learnt_if_the_constant_answer_is_known() -> None:
    losses = series(lambda _: 0.01, 0.001)
    assert word(losses, constant=LN10) == LEARNING
    assert str(outcome(losses, 500, LN10)).endswith("the best constant answer gets 2.303.")


def test_negative_losses_are_losses() -> None:
    assert word(series(lambda t: -5 - 5 * t, 0.1)) == LEARNING
    assert word(series(lambda _: -5, 0.1)) == NOT_LEARNING
    assert word(series(lambda t: 0.5 - t, 0.01)) == LEARNING


def test_few_losses() -> None:
    assert outcome([], 0) == outcome([1.0], 10) == NO_LOSS == Outcome()
    assert outcome([2.3, 2.3, 2.3], 3).word == TOO_EARLY
    assert outcome([2.3, 2.2], 600).word == NOT_LEARNING  # the noise of two losses is not known
    assert outcome([2.3, 0.4], 600).word == LEARNING
    assert outcome([2.3, math.nan, 2.3], 600).word == NOT_LEARNING


def test_a_loss_below_the_constant_that_does_not_fall_has_been_learnt_only_far_below() -> None:
    assert word(series(lambda _: 2.2, 0.01), constant=LN10) == NOT_LEARNING
    assert word(series(lambda _: 1.5, 0.01), constant=LN10) == LEARNING


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_has_not_risen(seed: int) -> None:
    found = outcome(series(lambda _: LN10, 0.3, seed=seed), 500)
    assert not found.risen
    assert "risen" not in str(found)


def test_a_loss_that_stays_where_it_fell_to_is_stuck() -> None:
    assert outcome(series(lambda t: 2.3 if t < 0.3 else 1.2, 0.01), 500).stuck
    assert outcome(series(lambda _: -5.0, 0.01), 500).stuck
    assert not outcome(series(lambda t: 2.3 if t < 0.3 else 0.1, 0.01), 500).stuck
