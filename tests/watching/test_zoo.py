import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import vgrad_torch as vg
from tests.support.assertions import assert_is_tensor, hook_count
from tests.support.zoo import (
    MODELS,
    ORDERS,
    SEQUENCES,
    STEPS,
    TRAININGS,
    UNKNOWN_SCALE,
    Case,
    Train,
    TrapSGD,
    X,
    Y,
    attempt,
    chain,
    clipped,
    fused,
    game,
    gan,
    growing,
    interleaved,
    like,
    oracle,
    over_time,
    plain,
    playing,
    repeating,
    scaled,
    several_losses,
    sgd,
    supervised,
    trapped,
    two_monitors,
    two_optimizers,
    with_curvature,
)
from tests.support.zoo_architectures import ARCHITECTURES
from vgrad_torch.records import QUANTITIES, Snapshot
from vgrad_torch.watching.selection import select

CASES = {**MODELS, **TRAININGS, **ARCHITECTURES}


@dataclass
class Trained:
    state: dict[str, Tensor]
    random: Tensor
    hooks: int
    monitors: list[vg.Monitor]


def trained(case: Case, every: int | None) -> Trained:
    """The case's training, watched at every n-th step, or with None not watched."""
    torch.manual_seed(0)
    model = case.make()
    optimizers: list[Optimizer] = []
    monitors: list[vg.Monitor] = []

    def watch(watched: nn.Module, optimizer: Optimizer, **options: Any) -> AbstractContextManager[Any]:
        optimizers.append(optimizer)
        if every is None:
            return nullcontext()
        monitors.append(vg.watch(watched, optimizer, every=every, layers=options.pop("layers", case.layers), **options))
        return monitors[-1]

    case.train(model, watch)
    hooks = hook_count(model) + sum(hook_count(nn.Identity(), optimizer) for optimizer in optimizers)
    return Trained(model.state_dict(), torch.get_rng_state(), hooks, monitors)


def assert_shows(snapshot: Snapshot, truth: Mapping[str, Mapping[str, Tensor | None]], rel: float) -> None:
    called = [layer for layer in snapshot.layers if layer.output is not None]
    assert [layer.label for layer in called] == list(truth)
    for layer in called:
        for quantity in QUANTITIES:
            expected = truth[layer.label][quantity]
            if expected is None:
                assert getattr(layer, quantity) is None, (layer.label, quantity)
            else:
                assert getattr(layer, quantity) is not None, (layer.label, quantity)
                assert_is_tensor(getattr(layer, quantity), expected, rel)


@lru_cache
def difference_of_a_compiled_step() -> float:
    """How far weights of about 0.5 are apart after a compiled and an uncompiled step of torch's own, without watching.

    It is 0 with torch 2.13. With torch 2.6 the compiled step rounds differently, and sampled steps run uncompiled.
    """
    ends = []
    for compiled_step in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 50), nn.Tanh(), nn.Linear(50, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step = torch.compile(optimizer.step, backend="eager") if compiled_step else optimizer.step
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(4, 6)).square().mean().backward()
            step()
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    return float((ends[0] - ends[1]).abs().max())


TORCH = pytest.mark.filterwarnings(  # its own, of a layer compiled alone and of a compiled optimizer
    "ignore:The .grad attribute of a Tensor that is not a leaf", "ignore:`torch.jit", "ignore:LSTM with projections"
)


@TORCH
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_watching_changes_no_bit_and_leaves_no_hook(case: Case, every: int) -> None:
    plain = trained(case, None)
    if case.warns:
        with pytest.warns(RuntimeWarning, match=case.warns):
            watched = trained(case, every)
    else:
        watched = trained(case, every)
    rounding = difference_of_a_compiled_step() if case is CASES["compiled optimizer"] else 0.0
    torch.testing.assert_close(watched.state, plain.state, rtol=0, atol=10 * rounding, equal_nan=True)
    assert torch.equal(watched.random, plain.random)
    assert watched.hooks == plain.hooks
    assert not case.samples or all(len(monitor.history) for monitor in watched.monitors)


@TORCH
@pytest.mark.parametrize("case", [c for c in CASES.values() if c.loss], ids=[n for n, c in CASES.items() if c.loss])
def test_the_first_snapshot_is_what_autograd_says(case: Case) -> None:
    torch.manual_seed(0)
    model = (case.simple or case.make)()
    assert case.loss is not None
    truth = oracle(model, case.loss, case.layers, case.double)
    assert_shows(trained(case, 1).monitors[0].history[0], truth, case.rel)


def first(train: Train, make: Callable[[], nn.Module] = chain, **kw: Any) -> Snapshot:
    return trained(Case(make, train, **kw), 1).monitors[0].history[0]


def given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("clear", ["own", "all", "late"])
@pytest.mark.parametrize("order", ORDERS)
def test_each_network_of_a_gan_is_shown_by_its_own_loss(order: tuple[str, str], clear: str, set_to_none: bool) -> None:
    monitors = trained(Case(gan, playing(order, clear, set_to_none)), 1).monitors
    shown = dict(zip(("generator", "discriminator"), monitors, strict=True))
    model = made(gan)
    states: list[dict[str, Tensor]] = [copy.deepcopy(model.state_dict())]
    playing(order, clear, set_to_none, lambda who: states.append(copy.deepcopy(model.state_dict())))(
        model, lambda *_, **__: nullcontext()
    )
    for turn, state in enumerate(states[:-1]):
        who = order[turn % 2]
        model.load_state_dict(state)
        whole = oracle(model, partial(game, who=who), r"\.[02]$", double=True)
        mine = {label.removeprefix(f"{who}."): entry for label, entry in whole.items() if label.startswith(who)}
        assert_shows(shown[who].history[turn // 2], mine, rel=1e-4)


def test_micro_batches_of_a_pipeline_are_shown_with_their_own_gradients() -> None:
    truth = oracle(made(chain), supervised, nn.Linear, double=True)
    layers = first(interleaved).layers
    assert sorted(layer.label for layer in layers) == ["0", "0#2", "2", "2#2", "4", "4#2"]
    for name, entry in truth.items():
        calls = [layer for layer in layers if layer.name == name]
        for quantity in ("output", "output_gradient", "input_gradient"):
            seen = [stats for layer in calls if (stats := getattr(layer, quantity)) is not None]
            assert bool(seen) == (entry[quantity] is not None)
            if seen:
                assert_is_tensor(sum(seen[1:], seen[0]), given(entry[quantity]), rel=1e-4)
        assert_is_tensor(calls[0].weight_gradient, given(entry["weight_gradient"]), rel=1e-4)


def test_several_backward_passes_over_one_graph_are_pooled() -> None:
    snapshot = first(several_losses)
    truths = [
        oracle(made(chain), loss, nn.Linear, double=True)
        for loss in (supervised, lambda model: model(like(model, X)).square().mean())
    ]
    for name, layer in zip(truths[0], snapshot.layers, strict=True):
        both = [truth[name] for truth in truths]
        gradients = [entry["weight_gradient"] for entry in both if entry["weight_gradient"] is not None]
        assert_is_tensor(layer.weight_gradient, torch.stack(gradients).sum(0), rel=1e-4)
        assert_is_tensor(layer.output, given(both[0]["output"]), rel=1e-4)
        deltas = [entry["output_gradient"] for entry in both if entry["output_gradient"] is not None]
        assert_is_tensor(layer.output_gradient, torch.cat(deltas), rel=1e-4)


def test_a_clipped_gradient_is_shown_clipped_and_its_activations_not() -> None:
    snapshot = first(clipped)
    truth = oracle(made(chain), supervised, nn.Linear, double=True)
    model = made(chain)
    supervised(model).backward()
    factor = 0.01 / nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
    for layer in snapshot.layers:
        entry = truth[layer.name]
        assert_is_tensor(layer.weight_gradient, given(entry["weight_gradient"]) * factor, rel=1e-3)
        assert_is_tensor(layer.output_gradient, given(entry["output_gradient"]), rel=1e-4)


@pytest.mark.parametrize("make", [sgd, fused(torch.optim.Adam)])
def test_without_the_scaler_gradients_of_activations_are_left_out_and_those_of_weights_right(make: Any) -> None:
    truth = oracle(made(chain), supervised, nn.Linear, double=True)
    with pytest.warns(RuntimeWarning, match=UNKNOWN_SCALE) as warned:
        snapshot = first(scaled(known=False, make=make))
    assert len(warned) == 1
    for layer in snapshot.layers:
        assert (layer.output_gradient, layer.input_gradient) == (None, None)
        assert_is_tensor(layer.output, given(truth[layer.name]["output"]), rel=1e-4)
        assert_is_tensor(layer.weight_gradient, given(truth[layer.name]["weight_gradient"]), rel=1e-4)


@pytest.mark.parametrize("make", [sgd, fused(torch.optim.Adam)])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_skipped_step_gives_no_sample_and_leaves_nothing_in_the_next(make: Any, set_to_none: bool) -> None:
    case = Case(chain, scaled(make=make, overflow=(1,), set_to_none=set_to_none))
    (monitor,) = trained(case, 1).monitors
    assert len(monitor.history) == 3
    assert monitor.nonfinite is None
    for layer in monitor.history[1].layers:
        assert layer.output is not None
        assert layer.output.count == 12 * int(layer.size.split("x")[1])


def test_two_monitors_see_the_same() -> None:
    linears, more = trained(Case(chain, two_monitors), 1).monitors
    for few, many in zip(linears.history, more.history, strict=True):
        assert [layer.label for layer in many.layers] == ["0", "1", "2", "3", "4"]
        assert [layer.output_gradient and layer.output_gradient.rms for layer in many.layers[::2]] == [
            layer.output_gradient and layer.output_gradient.rms for layer in few.layers
        ]


def test_of_two_optimizers_each_shows_its_own_update() -> None:
    first, rest = trained(Case(chain, two_optimizers), 1).monitors
    for a, b in zip(first.history, rest.history, strict=True):
        assert [layer.update_rms is not None for layer in a.layers] == [True, False, False]
        assert [layer.update_rms is not None for layer in b.layers] == [False, True, True]
        assert [layer.weight_gradient for layer in a.layers] != [None] * 3


def test_a_parameter_added_later_has_an_update_from_then_on() -> None:
    (monitor,) = trained(Case(chain, growing), 1).monitors
    (first, *_), (second, *_) = monitor.history[0].layers, monitor.history[1].layers
    assert (first.update_rms is None, second.update_rms is None) == (True, False)


def test_a_step_that_failed_leaves_nothing_in_the_next() -> None:
    for where in ("forward", "backward", "step"):
        (monitor,) = trained(Case(trapped, repeating(where)), 1).monitors
        assert monitor.history.steps == list(range(STEPS))
        for layer in monitor.history[1].layers:
            assert layer.label == layer.name
            assert layer.output is not None
            assert layer.output.count == 12 * int(layer.size.split("x")[1])


def test_a_step_called_by_a_step_is_one_step() -> None:
    torch.optim.SGD(chain().parameters())  # torch hooks a class's step when it is first used
    (monitor,) = trained(Case(chain, with_curvature), 1).monitors
    assert monitor.history.steps == list(range(STEPS))


def attempt_twice(model: nn.Module, optimizer: Optimizer, where: str) -> None:
    attempt(model, optimizer, None)
    attempt(model, optimizer, where)


@pytest.mark.parametrize("where", ["forward", "backward", "step"])
def test_an_error_that_ends_the_loop_leaves_no_hook(where: str) -> None:
    model = made(trapped)
    optimizer = TrapSGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=where), vg.watch(model, optimizer, every=1):
        attempt_twice(model, optimizer, where)
    assert hook_count(model, optimizer) == 0
    assert stance() == "default"


def compiled(model: nn.Module, backend: Any = "eager") -> nn.Module:
    fast: Any = torch.compile(model, backend=backend)
    assert isinstance(fast, nn.Module)
    return fast


def stance() -> str:
    return str(torch._dynamo.eval_frame._stance.stance)


def test_between_samples_what_was_compiled_runs_compiled() -> None:
    torch._dynamo.reset()
    graphs, runs = 0, 0

    def backend(module: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1

        def run(*args: Any) -> Any:
            nonlocal runs
            runs += 1
            return module.forward(*args)

        return run

    model = made(chain)
    fast = compiled(model, backend)
    supervised(fast).backward()
    optimizer = sgd(model)
    assert (graphs, runs) == (1, 1)
    with vg.watch(fast, optimizer, every=2) as a, vg.watch(model, optimizer, every=4) as b:
        for _ in range(8):
            optimizer.zero_grad()
            supervised(fast).backward()
            optimizer.step()
        assert (graphs, runs) == (1, 5)
    assert [layer.label for layer in a.history[0].layers] == ["0", "2", "4"]
    assert (a.history.steps, b.history.steps) == ([0, 2, 4, 6], [0, 4])
    assert stance() == "default"
    supervised(fast)
    assert (graphs, runs) == (1, 6)


def test_an_error_in_a_compiled_model_brings_compiling_back() -> None:
    torch._dynamo.reset()
    model = made(chain)
    fast = compiled(model)
    optimizer = sgd(model)
    outer, inner = vg.watch(fast, optimizer, every=1), vg.watch(fast, optimizer, every=1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), outer, inner:
        fast(X[:, :5])
    assert stance() == "default"


def test_the_stance_comes_back_in_whatever_order_the_monitors_end() -> None:
    model = made(chain)
    one, two = vg.watch(model, sgd(model), every=1), vg.watch(model, sgd(model), every=1)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert stance() == "force_eager"
    two.__exit__(None, None, None)
    assert stance() == "default"


class Breaks(torch.autograd.Function):
    """The identity, with a NaN in what comes out of it: forward or backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: bool) -> Tensor:
        ctx.forward = forward
        return x * torch.nan if forward else x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] if ctx.forward else gradients[0] * torch.nan, None


@pytest.mark.parametrize(
    ("born", "words"),
    [
        ("forward", "the output of c, in the forward pass (36 of 36 values)"),
        ("backward", "the output gradient of b, in the backward pass (48 of 48 values)"),
        ("weight", "the weight of b before the step (1 of 20 values)"),
        ("loss", "the output gradient of c, in the backward pass (36 of 36 values)"),
    ],
)
def test_where_the_first_nan_was_born_is_said_once(born: str, words: str) -> None:
    def run(watched: bool) -> tuple[Any, nn.Module]:
        model = made(lambda: nn.Sequential(OrderedDict(a=nn.Linear(6, 5), b=nn.Linear(5, 4), c=nn.Linear(4, 3))))
        optimizer = sgd(model)
        with vg.watch(model, optimizer, every=1) if watched else nullcontext() as monitor:
            for step in range(4):
                optimizer.zero_grad()
                h = model.get_submodule("b")(model.get_submodule("a")(X))
                if step == 1 and born in ("forward", "backward"):
                    h = Breaks.apply(h, born == "forward")  # type: ignore[no-untyped-call]
                loss = nn.functional.cross_entropy(model.get_submodule("c")(h), Y)
                (loss * torch.nan if (step, born) == (1, "loss") else loss).backward()
                optimizer.step()
                if (step, born) == (0, "weight"):
                    with torch.no_grad():
                        model.get_parameter("b.weight")[2, 3] = torch.inf
        return monitor, model

    with pytest.warns(RuntimeWarning) as warned:
        monitor, watched = run(True)
    assert [str(w.message) for w in warned] == [monitor.nonfinite]
    assert monitor.nonfinite == f"step 1, the first sampled step with NaN or infinity: in {words}"
    assert len(monitor.history) == 4
    torch.testing.assert_close(watched.state_dict(), run(False)[1].state_dict(), rtol=0, atol=0, equal_nan=True)


def test_the_update_of_bfloat16_weights_is_not_rounded() -> None:
    model = made(lambda: chain().bfloat16())
    before = {name: p.detach().double() for name, p in model.named_parameters()}
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        supervised(model).backward()
        optimizer.step()
    for layer in monitor.history[0].layers:
        name = f"{layer.name}.weight"
        change = model.get_parameter(name).detach().double() - before[name]
        assert layer.update_rms == pytest.approx(change.square().mean().sqrt().item(), rel=1e-6)


def test_sequences_of_any_length_have_a_series(tmp_path: Path) -> None:
    model = made(over_time)
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1, logdir=tmp_path) as monitor:
        for length in (2, 4, 3):
            optimizer.zero_grad()
            model(SEQUENCES[:length]).square().mean().backward()
            optimizer.step()
    series = monitor.history.series("output", "rms")
    assert series.shape == (3, 8)
    assert (~np.isnan(series)).sum(1).tolist() == [4, 8, 6]


def test_a_copy_says_nothing_and_loads_without_this_package(tmp_path: Path) -> None:
    model = made(chain)
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        torch.save(model, tmp_path / "model.pt")
        supervised(copy.deepcopy(model)).backward()
        supervised(model).backward()
        optimizer.step()
    assert b"vgrad" not in (tmp_path / "model.pt").read_bytes()
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded(X), made(chain)(X))
    assert [layer.label for layer in monitor.history[0].layers] == ["0", "2", "4"]


def test_a_parametrized_weight_is_shown_by_what_is_trained() -> None:
    (layer, _) = first(plain(supervised), CASES["weight_norm"].make).layers
    assert (layer.kind, layer.size) == ("ParametrizedLinear", "6x5")
    assert layer.weight is not None
    assert layer.weight.count == 5 + 30


def test_a_compiled_layer_keeps_its_name() -> None:
    assert list(select(compiled(nn.Sequential(compiled(nn.Linear(2, 2))))).layers) == ["0"]
    assert list(select(compiled(nn.Linear(2, 2))).layers) == ["Linear"]
