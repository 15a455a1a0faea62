"""What watching costs: how it grows, what it keeps in memory, and that the run says so."""

import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import vgrad_torch as vg
from vgrad_torch.errors import UsageError
from vgrad_torch.records import QUANTITIES
from vgrad_torch.tensorboard import tags


def stack(layers: int, width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Gradients do not vanish in it, so that all layers take the same way."""
    model = vg.build_mlp([width] * (layers + 1), "identity", "orthogonal", generator=torch.Generator().manual_seed(0))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    first = model[0]  # type: ignore[index]
    model(torch.ones(8, first.in_features)).square().mean().backward()
    optimizer.step()


def calls_of_a_sample(layers: int, quantities: tuple[str, ...]) -> int:
    """Python and C functions that a sampled step calls more than a bare one: what time would say if it were quiet."""
    model, optimizer = stack(layers)
    count = 0

    def tick(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    def counted() -> int:
        nonlocal count
        count = 0
        sys.setprofile(tick)
        step(model, optimizer)
        sys.setprofile(None)
        return count

    step(model, optimizer)
    bare = counted()
    with vg.watch(model, optimizer, every=1, quantities=quantities):
        counted()
        return counted() - bare


@pytest.mark.parametrize("quantities", [QUANTITIES, ("weight_gradient",)], ids=["all", "weight gradients"])
def test_cost_grows_with_the_layers_and_no_faster(quantities: tuple[str, ...]) -> None:
    few, many = calls_of_a_sample(50, quantities), calls_of_a_sample(500, quantities)
    assert few > 50
    assert 5 < many / few < 10.5


def test_a_sample_of_a_large_layer_copies_no_more_than_a_part_of_it() -> None:
    """The largest temporary is a block's, or the entries that the update is measured by."""
    model = nn.Sequential(nn.Linear(2000, 2000), nn.Linear(2000, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vg.watch(model, optimizer, every=1, histograms=False):
        step(model, optimizer)
        tracemalloc.start()
        step(model, optimizer)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 0.25 * 4 * 2000 * 2000


def test_the_run_says_what_watching_cost(tmp_path: Path) -> None:
    model, optimizer = stack(3)
    with vg.watch(model, optimizer, logdir=tmp_path, every=2) as monitor:
        for _ in range(20):
            step(model, optimizer)
        assert 0 < monitor.cost < 1
    log = EventAccumulator(str(tmp_path)).Reload()
    points = log.Scalars(tags.COST)
    assert [point.step for point in points] == list(range(0, 20, 2))
    assert all(0 < point.value <= 1 for point in points)


def test_chosen_quantities_and_no_others() -> None:
    model, optimizer = stack(3)
    with vg.watch(model, optimizer, every=1) as everything:
        step(model, optimizer)
    for chosen in [(quantity,) for quantity in QUANTITIES] + [("output", "input_gradient")]:
        model, optimizer = stack(3)
        with vg.watch(model, optimizer, every=1, quantities=chosen) as monitor:
            hooked = any(layer._forward_hooks for layer in model)  # type: ignore[attr-defined]
            assert hooked == (not {"weight", "weight_gradient"} >= set(chosen))
            step(model, optimizer)
        for seen, all_of_it in zip(monitor.history[0].layers, everything.history[0].layers, strict=True):
            assert seen.label == all_of_it.label
            assert (seen.update_rms is not None) == ("weight" in chosen)
            for quantity in QUANTITIES:
                expected = getattr(all_of_it, quantity) if quantity in chosen else None
                got = getattr(seen, quantity)
                assert (got and got.rms) == (expected and expected.rms)


@pytest.mark.parametrize("quantities", ["weight", (), ("weights",)])
def test_unknown_quantities_are_refused(quantities: tuple[str, ...]) -> None:
    model, optimizer = stack(2)
    with pytest.raises(UsageError, match=r"weight_gradient, output, output_gradient, input_gradient"):
        vg.watch(model, optimizer, quantities=quantities)
