"""The budget, on a clock of the test's own."""

import pytest

from vgrad_torch.watching import schedule


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


@pytest.mark.parametrize(("own", "hidden"), [(0.010, 0.0), (0.010, 0.015), (0.0004, 0.0002)])
def test_the_budget_holds_where_processes_agree_on_the_steps_ahead(
    own: float, hidden: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`due` forecasts, `other` has a clock of its own and follows."""
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    due, other = schedule.Budget(0.02), schedule.Budget(0.5)
    due.agreed = other.agreed = 0
    samples = 0
    for step in range(20_000):
        look = due(step)
        assert other(step) == look
        clock.now += 0.001
        if look:
            samples += 1
            due.charge(own / 2)
            clock.now += own + hidden
            due.agreed = other.agreed = due.forecast(step)
            due.charge(own / 2)  # of what comes after the agreement
    cost = own + hidden
    assert 0.015 < samples * cost / clock.now < 0.02 + 2 * cost / clock.now  # two samples came too early


def test_the_agreed_steps_follow_a_loop_that_becomes_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    due = schedule.Budget(0.02)
    due.agreed, samples = 0, 0
    for step in range(20_000):
        look = due(step)
        clock.now += 1.0 if step == 0 else 0.1 if step < 100 else 0.001
        if look:
            samples += 1
            due.charge(0.01)
            clock.now += 0.01
            due.agreed = due.forecast(step)
    assert 0.015 < samples * 0.01 / clock.now < 0.022


def test_a_budget_of_nothing_forecasts_no_further_step() -> None:
    due = schedule.Budget(0.0)
    due.agreed = 0
    assert due(0)
    due.agreed = due.forecast(0)
    assert not any(due(step) for step in range(1, 100))


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
