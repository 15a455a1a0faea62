"""With default arguments, watch() sees all of fifteen real architectures, right, and raises no false alarm."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vgrad_torch as vg
from tests.extras.architectures import ARCHITECTURES, Training, made
from vgrad_torch.records import LayerSnapshot
from vgrad_torch.verdict.rules import ALARMS
from vgrad_torch.watching.monitor import Monitor

STEPS, EVERY = 100, 20
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft uses it
QUANTITIES = ("weight_gradient", "output_gradient", "input_gradient")


def step(training: Training) -> float:
    training.optimizer.zero_grad()
    loss = training.loss()
    loss.backward()
    training.optimizer.step()
    return loss.item()


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def watched(request: pytest.FixtureRequest) -> tuple[str, Training, Monitor]:
    """A training of `STEPS` steps that was watched, and its name."""
    torch.set_num_threads(1)
    training = made(request.param)
    with vg.watch(training.model, training.optimizer, every=EVERY, histograms=False) as monitor:
        for _ in range(STEPS):
            monitor.losses.append(step(training))
    return request.param, training, monitor


def test_every_matrix_that_is_trained_is_seen(watched: tuple[str, Training, Monitor]) -> None:
    _, training, monitor = watched
    trained = {id(p): name for name, p in training.model.named_parameters() if p.grad is not None and is_matrix(p)}
    seen = [weight for layer in monitor.layers.values() for weight in layer.weights()]
    assert [name for key, name in trained.items() if key not in set(map(id, seen))] == []
    assert all(weight.grad is not None and weight.dim() >= 2 for weight in seen)
    newest = monitor.history[-1]
    assert newest.graph_problem == ""
    assert all(layer.size and layer.weight_gradient for layer in newest.layers)
    frozen = [p for p in training.model.parameters() if not p.requires_grad and is_matrix(p)]
    assert newest.folded == len(frozen)


def is_matrix(parameter: Tensor) -> bool:
    """Not a vector such as a class token of 1 x 1 x width. Norm layers have vectors only."""
    return sum(size > 1 for size in parameter.shape) >= 2


def test_a_network_that_learns_raises_no_alarm(watched: tuple[str, Training, Monitor]) -> None:
    name, _, monitor = watched
    assert monitor.losses[-1] < (0.95 if name == "lora" else 0.5) * monitor.losses[0]
    for count in range(1, len(monitor.history) + 1):
        monitor_until = list(monitor.history)[:count]
        losses = monitor.losses[: EVERY * (count - 1) + 1]
        result = vg.diagnose(monitor_until, optimizer=type(watched[1].optimizer).__name__, losses=losses)
        assert result.verdict not in ALARMS, result
        words = {layer.word for layer in result.layers}
        assert words <= ({"healthy", "zero gradient"} if count == 1 else {"healthy"}), result
    assert monitor.diagnose().verdict == "healthy"


def test_watching_changes_no_bit_and_leaves_no_hook(watched: tuple[str, Training, Monitor]) -> None:
    name, training, _ = watched
    free = made(name)
    before = hooks_of(free.model)
    for _ in range(STEPS):
        step(free)
    for (key, mine), theirs in zip(training.model.state_dict().items(), free.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), key
    assert hooks_of(training.model) == before
    assert not training.optimizer._optimizer_step_pre_hooks


# --- numbers ---------------------------------------------------------------------------------------------------------

Numbers = dict[tuple[str, str], tuple[float, float, float]]
"""(layer, quantity) -> mean, standard deviation, RMS."""


def summary(tensors: list[Tensor]) -> tuple[float, float, float]:
    x = torch.cat([tensor.double().flatten() for tensor in tensors])
    return x.mean().item(), x.std(correction=0).item(), x.square().mean().sqrt().item()


def by_autograd(training: Training, names: list[str], weights: dict[str, list[str]]) -> Numbers:
    """The numbers of one backward pass, by hooks on tensors alone. Each layer gets a copy of its input of its own."""
    caught: dict[tuple[str, str], list[Tensor]] = {}
    handles = []

    def catcher(key: tuple[str, str]) -> Callable[[Tensor], None]:
        return lambda gradient: caught.setdefault(key, []).append(gradient.detach().clone())

    def before(name: str) -> Callable[..., Any]:
        def copied(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not args or not isinstance(args[0], Tensor) or not args[0].requires_grad:
                return None
            own = args[0].clone()
            own.register_hook(catcher((name, "input_gradient")))
            return own, *args[1:]

        return copied

    def after(name: str) -> Callable[..., Any]:
        def caught_output(_: nn.Module, __: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                return None
            own = output.clone()  # what comes behind may work in place
            own.register_hook(catcher((name, "output_gradient")))
            return own

        return caught_output

    for name in names:
        module = training.model.get_submodule(name)
        handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    training.model.zero_grad()
    training.loss().backward()
    for handle in handles:
        handle.remove()
    parameters = dict(training.model.named_parameters())
    for name in names:
        caught[name, "weight_gradient"] = [parameters[key].grad for key in weights[name]]  # type: ignore[misc]
    return {key: summary(tensors) for key, tensors in caught.items()}


def spread(layers: tuple[LayerSnapshot, ...], model: nn.Module) -> list[str]:
    """Five layers over the depth that are modules and called once."""
    modules = dict(model.named_modules())
    twice = {layer.name for layer in layers if layer.call > 1}
    usable = [layer.name for layer in layers if layer.name in modules and layer.name not in twice and layer.output]
    return sorted({usable[round(place * (len(usable) - 1) / 4)] for place in range(5)}, key=usable.index)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_five_layers_are_what_autograd_says_in_double_precision(name: str) -> None:
    """The bound is ten times what float32 alone changes, by the same autograd in both precisions."""
    training, oracle = made(name), made(name)
    in_double(oracle)
    with vg.watch(training.model, training.optimizer, every=1, histograms=False) as monitor:
        step(training)
    snapshot = monitor.history[0]
    names = spread(snapshot.layers, training.model)
    own = {id(p): key for key, p in training.model.named_parameters()}
    weights = {layer: [own[id(weight)] for weight in monitor.layers[layer].weights()] for layer in names}
    exact = by_autograd(oracle, names, weights)
    rough = by_autograd(made(name), names, weights)
    rounding = max(difference(rough[key], exact[key]) for key in exact)
    compared = 0
    for layer in names:
        for quantity in QUANTITIES:
            stats = getattr(snapshot[layer], quantity)
            if stats is None or (layer, quantity) not in exact:
                continue
            mine = (stats.mean, stats.std, stats.rms)
            assert difference(mine, exact[layer, quantity]) <= 10 * rounding + 1e-6, (layer, quantity)
            compared += 1
    assert compared >= 2 * len(names) - 1
    assert rounding < 1e-2


def difference(mine: tuple[float, ...], wanted: tuple[float, ...]) -> float:
    """The largest difference, relative to the RMS."""
    return max(abs(a - b) for a, b in zip(mine, wanted, strict=True)) / wanted[-1] if wanted[-1] else math.hypot(*mine)


def in_double(training: Training) -> None:
    """The model in double precision, and its made data with it."""
    training.model.double()
    closure = training.loss.__closure__ or ()
    for cell in closure:
        if isinstance(cell.cell_contents, Tensor) and cell.cell_contents.is_floating_point():
            cell.cell_contents = cell.cell_contents.double()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_sample_costs_a_few_steps_at_most(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps with and without a sample in turns. These models are tiny, so calls count and not arithmetic."""
    training = made(name)
    times: dict[bool, list[float]] = {True: [], False: []}
    with vg.watch(training.model, training.optimizer, every=2, histograms=False):
        for count in range(24):
            start = time.perf_counter()
            step(training)
            times[count % 2 == 0].append(time.perf_counter() - start)
    ratios = [sample / bare for sample, bare in zip(times[True][2:], times[False][2:], strict=True)]
    with capsys.disabled():
        print(f"\n{name}: {median(ratios):.2f} bare steps a sampled one ({min(ratios):.2f} to {max(ratios):.2f})")
    assert median(ratios) < 10
