"""The budget, on a clock of the test's own."""

import pytest

from vgrad_torch import schedule


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(("own", "hidden"), [(0.010, 0.0), (0.010, 0.015), (0.0004, 0.0002)])
def test_the_budget_holds_also_for_costs_that_are_not_charged(
    own: float, hidden: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    due = schedule.Budget(0.02)
    samples = 0
    for step in range(20_000):
        if due(step):
            samples += 1
            due.charge(own)
            clock.now += own + hidden
        clock.now += 0.001
    overhead = samples * (own + hidden) / clock.now
    assert 0.015 < overhead < 0.0215


def test_one_slow_step_does_not_end_the_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    due = schedule.Budget(0.02)
    sampled = []
    for step in range(5000):
        if due(step):
            sampled.append(step)
            due.charge(0.001)
            clock.now += 100.0 if step == 0 else 0.001  # compiling, say
        clock.now += 0.001
    assert len(sampled) > 50


def test_the_first_step_is_always_sampled() -> None:
    assert schedule.Budget(0.0)(0)
