import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vgrad_torch as vg
from tests.support.assertions import assert_is_tensor, assert_matches, chain_oracle, hook_count
from vgrad_torch.errors import UsageError
from vgrad_torch.records import LayerSnapshot
from vgrad_torch.watching.schedule import sparse_steps

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(2))


def loss_fn(output: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, Y)


def chain(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 3))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model(X)).backward()
        optimizer.step()


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.ReLU, lambda: nn.ReLU(inplace=True)])
@pytest.mark.parametrize("x_requires_grad", [False, True])
def test_every_quantity_equals_autograd(activation: Callable[[], nn.Module], x_requires_grad: bool) -> None:
    model = chain(activation)
    x = X.clone().requires_grad_(x_requires_grad)
    oracle = chain_oracle(model, x, loss_fn)
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        loss_fn(model(x)).backward()
        optimizer.step()
    assert_matches(monitor.history[0], oracle)


def test_gains_multiply_to_the_ratio_of_first_to_last_output_gradient() -> None:
    model = chain(nn.Sigmoid)
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        train(model, optimizer, 1)
    layers = monitor.history[0].layers
    product = 1.0
    for layer in layers[:-1]:
        assert layer.activation_gain is not None
        product *= layer.activation_gain
    for layer in layers[1:]:
        assert layer.weight_gain is not None
        product *= layer.weight_gain
    assert layers[0].output_gradient is not None
    assert layers[-1].output_gradient is not None
    assert product == pytest.approx(layers[0].output_gradient.rms / layers[-1].output_gradient.rms, rel=1e-9)
    assert layers[0].weight_gain is None
    assert layers[-1].activation_gain is None


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
        lambda p: torch.optim.Adam(p, lr=1e-2),
        lambda p: torch.optim.RMSprop(p, lr=1e-3, alpha=0.9, eps=1e-7),
    ],
)
def test_the_update_is_what_the_optimizer_changed(make: Callable[..., torch.optim.Optimizer]) -> None:
    model = chain()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    before = [m.weight.detach().clone() for m in model if isinstance(m, nn.Linear)]
    with vg.watch(model, optimizer, every=1) as monitor:
        train(model, optimizer, 1)
    after = [m.weight.detach() for m in model if isinstance(m, nn.Linear)]
    for layer, old, new in zip(monitor.history[0].layers, before, after, strict=True):
        change = (new - old).double().square().mean().sqrt().item()
        assert layer.update_rms == pytest.approx(change, rel=1e-6)
        assert layer.update_ratio == pytest.approx(change / old.double().square().mean().sqrt().item(), rel=1e-6)


def test_the_state_before_training_is_the_first_sample() -> None:
    model = chain()
    initial = [m.weight.detach().clone() for m in model if isinstance(m, nn.Linear)]
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=2) as monitor:
        train(model, optimizer, 5)
    assert monitor.history.steps == [0, 2, 4]
    for layer, weight in zip(monitor.history[0].layers, initial, strict=True):
        assert_is_tensor(layer.weight, weight)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("activation", [nn.Sigmoid, lambda: nn.ReLU(inplace=True), nn.Dropout])
def test_watching_changes_no_bit_of_the_training_nor_the_random_state(
    activation: Callable[[], nn.Module], every: int
) -> None:
    def run(watched: bool) -> tuple[list[Tensor], Tensor]:
        model = chain(activation)
        optimizer = sgd(model)
        torch.manual_seed(7)
        if watched:
            with vg.watch(model, optimizer, every=every):
                train(model, optimizer, 10)
        else:
            train(model, optimizer, 10)
        return [p.detach() for p in model.parameters()], torch.get_rng_state()

    (plain, plain_state), (watched, watched_state) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert torch.equal(plain_state, watched_state)


def test_unsampled_steps_carry_no_hook_on_the_model() -> None:
    model = chain()
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=2):
        assert hook_count(model) == 6
        train(model, optimizer, 1)
        assert hook_count(model) == 0
        train(model, optimizer, 1)
        assert hook_count(model) == 6


def fail(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with vg.watch(model, optimizer, every=1):
        model(X)
        raise RuntimeError("the loop broke")


def test_an_exception_in_the_loop_leaves_no_hook_behind() -> None:
    model = chain()
    optimizer = sgd(model)
    with pytest.raises(RuntimeError, match="the loop broke"):
        fail(model, optimizer)
    assert hook_count(model, optimizer) == 0


def test_evaluation_between_steps_is_not_seen() -> None:
    model = chain()
    optimizer = sgd(model)
    oracle = chain_oracle(model, X, loss_fn)
    with vg.watch(model, optimizer, every=1) as monitor:
        with torch.no_grad():
            model(X * 100)
        loss = loss_fn(model(X))
        loss.backward()
        with torch.no_grad():
            model(X * 100)
        optimizer.step()
    assert_matches(monitor.history[0], oracle)


def test_micro_batches_are_pooled_and_their_gradient_accumulated() -> None:
    model = chain()
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        for part in (slice(0, 8), slice(8, 16)):
            (nn.functional.cross_entropy(model(X[part]), Y[part]) / 2).backward()
        optimizer.step()
    model = chain()
    oracle = chain_oracle(model, X, loss_fn)
    (snapshot,) = monitor.history
    assert [layer.label for layer in snapshot.layers] == ["0", "2", "4"]
    for layer in snapshot.layers:
        assert_is_tensor(layer.output, oracle[layer.name]["output"], rel=1e-5)
        assert_is_tensor(layer.output_gradient, oracle[layer.name]["output_gradient"], rel=1e-4)
        assert_is_tensor(layer.weight_gradient, oracle[layer.name]["weight_gradient"], rel=1e-4)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))
        return out


def test_a_layer_used_twice_has_an_entry_for_each_call() -> None:
    torch.manual_seed(0)
    model = Twice()
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        train(model, optimizer, 1)
    torch.manual_seed(0)
    twin = Twice()
    z1 = twin.first(X)
    z2 = twin.first(torch.tanh(z1))
    loss = loss_fn(twin.last(torch.tanh(z2)))
    d1, d2, dw = torch.autograd.grad(loss, [z1, z2, twin.first.weight])
    snapshot = monitor.history[0]
    assert [layer.label for layer in snapshot.layers] == ["first", "first#2", "last"]
    assert_is_tensor(snapshot["first"].output_gradient, d1)
    assert_is_tensor(snapshot["first#2"].output_gradient, d2)
    assert_is_tensor(snapshot["first"].weight_gradient, dw)


class Branches(nn.Module):
    """Two layers share an input with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(6, 6)
        self.left = nn.Linear(6, 6)
        self.right = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.below(x))
        out: Tensor = self.head(h + torch.tanh(self.left(h)) * self.right(h))
        return out


def test_where_layers_share_an_input_each_has_its_own_input_gradient() -> None:
    torch.manual_seed(0)
    model = Branches()
    weight = model.left.weight.detach().clone()
    optimizer = sgd(model)
    seen: dict[str, Tensor] = {}

    def backward_hook(module: nn.Module, grad_input: Any, grad_output: Any) -> None:
        seen.update(input=grad_input[0], output=grad_output[0])

    model.left.register_full_backward_hook(backward_hook)
    with vg.watch(model, optimizer, every=1) as monitor:
        train(model, optimizer, 1)
    left = monitor.history[0]["left"]
    assert_is_tensor(left.input_gradient, seen["output"] @ weight, rel=1e-5)
    assert_is_tensor(left.input_gradient, seen["input"], rel=1e-6)


def test_frozen_and_unused_layers_have_no_gradient() -> None:
    model = chain()
    model.add_module("unused", nn.Linear(3, 3))
    assert isinstance(model[0], nn.Linear)
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with vg.watch(model, optimizer, every=1, layers=nn.Linear) as monitor:
        loss_fn(model[:5](X)).backward()
        optimizer.step()
    frozen, *_, unused = monitor.history[0].layers
    assert (frozen.weight_gradient, frozen.output_gradient, frozen.update_rms) == (None, None, None)
    assert frozen.output is not None
    assert (unused.name, unused.output, unused.weight_gradient) == ("unused", None, None)
    assert unused.weight is not None


def test_layers_can_be_chosen_by_type_name_or_function() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    optimizer = sgd(model)

    def names(layers: object) -> list[str]:
        with vg.watch(model, optimizer, every=1, layers=layers) as monitor:  # type: ignore[arg-type]
            loss_fn(model(X[:, None])).backward()
            optimizer.step()
        return [f"{x.name}:{x.kind}:{x.size}" for x in monitor.history[0].layers]

    assert names(nn.Linear) == ["2:Linear:8x3"]
    assert names((nn.Linear, nn.Conv1d)) == ["0:Conv1d:1x2 3", "2:Linear:8x3"]
    assert names("^0$") == ["0:Conv1d:1x2 3"]
    assert names(None) == ["0:Conv1d:1x2 3", "2:Linear:8x3"]
    assert names(lambda name, module: name == "2") == ["2:Linear:8x3"]


@pytest.mark.parametrize(("layers", "words"), [(nn.Conv2d, "Linear"), ("fc9", "no layer"), ("(", "regular expression")])
def test_layers_that_match_nothing_are_refused_in_a_sentence(layers: object, words: str) -> None:
    model = chain()
    with pytest.raises(UsageError, match=words):
        vg.watch(model, sgd(model), layers=layers)  # type: ignore[arg-type]


def test_non_finite_gradients_are_counted_not_fatal() -> None:
    model = chain()
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        (loss_fn(model(X)) * math.nan).backward()
        with pytest.warns(RuntimeWarning, match="output gradient of layer 4"):
            optimizer.step()
    assert monitor.nonfinite is not None
    assert monitor.nonfinite.startswith(
        "step 0, the first sampled step with NaN or infinity: in the output gradient of layer 4, in the"
    )
    layer = monitor.history[0].layers[0]
    assert layer.weight_gradient is not None
    assert layer.weight_gradient.nonfinite == 30


def test_without_every_the_monitor_keeps_to_its_budget() -> None:
    model = chain()
    optimizer = sgd(model)
    with vg.watch(model, optimizer, budget=0.0) as monitor:
        train(model, optimizer, 50)
    assert monitor.history.steps == [0]
    with vg.watch(model, optimizer, budget=1e9) as monitor:
        train(model, optimizer, 50)
    assert monitor.history.steps == list(range(50))


def test_history_of_a_deep_network_is_bounded_by_its_layers() -> None:
    history = vg.History(layers=10_000)
    layers = vg.Snapshot(0, tuple(LayerSnapshot(n, f"fc{n}", "Linear", "1x1") for n in range(1, 301))).layers
    for step in range(5000):
        history.append(vg.Snapshot(step, layers))
    assert history.steps[0] == 0
    assert history.steps[-1] == 4999
    assert 10 <= len(history) <= 34
    assert len(set(np.diff(history.steps[:-1]))) == 1


def test_history_stays_bounded_and_covers_the_whole_run() -> None:
    history = vg.History(limit=100)
    for step in range(10_000):
        history.append(vg.Snapshot(step, ()))
        assert history.steps[-1] == step
    assert len(history) <= 101
    assert history.steps[0] == 0
    assert len({b - a for a, b in zip(history.steps, history.steps[1:-1], strict=False)}) == 1


def test_histogram_schedule_stays_under_50_steps() -> None:
    due = sparse_steps()
    assert sum(due(step) for step in range(1_000_000)) < 50


def test_callback_gets_each_snapshot() -> None:
    model = chain()
    optimizer = sgd(model)
    seen: list[int] = []
    with vg.watch(model, optimizer, every=3, on_sample=lambda snapshot: seen.append(snapshot.step)):
        train(model, optimizer, 7)
    assert seen == [0, 3, 6]


def test_a_copy_or_pickle_made_while_a_sample_is_open_takes_no_hook_along() -> None:
    model = chain()
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        copied = copy.deepcopy(model)
        pickle.loads(pickle.dumps(model))
        loss_fn(copied(X)).backward()
        train(model, optimizer, 1)
    (snapshot,) = monitor.history
    assert [layer.label for layer in snapshot.layers] == ["0", "2", "4"]
    assert snapshot.layers[0].output is not None
    assert snapshot.layers[0].output.count == 16 * 5


def test_a_monitor_is_entered_once() -> None:
    model = chain()
    with vg.watch(model, sgd(model)) as monitor, pytest.raises(UsageError, match="entered only once"):
        monitor.__enter__()


def test_a_closure_is_watched_at_its_first_call() -> None:
    model = chain()
    oracle = chain_oracle(model, X, loss_fn)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model(X))
        loss.backward()
        return loss

    with vg.watch(model, optimizer, every=1) as monitor:
        optimizer.step(closure)
    assert_matches(monitor.history[0], oracle)
    assert hook_count(model, optimizer) == 0


MODEL = chain()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": None}, "torch.nn.Module first, not NoneType"),
        ({"optimizer": None}, "torch optimizer second, not NoneType"),
        ({"optimizer": sgd(chain())}, "holds no parameter of the model"),
        ({"every": 0}, "every must be a whole number from 1"),
        ({"every": 1.5}, "every must be a whole number from 1"),
        ({"every": True}, "every must be a whole number from 1"),
        ({"layers": ["fc1"]}, "layers must be a type"),
        ({"histograms": 5}, "histograms must be True, False or a function"),
        ({"budget": math.nan}, "budget must be a share"),
        ({"budget": -1}, "budget must be a share"),
        ({"budget": "2 %"}, "budget must be a share"),
        ({"budget": True}, "budget must be a share"),
        ({"scaler": 1024.0}, "scaler must be the torch.amp.GradScaler"),
        ({"on_sample": "print"}, "on_sample must be a function"),
        ({"quantities": 5}, "quantities must be one or more of"),
        ({"logdir": ""}, "logdir must be the path"),
        ({"logdir": "x", "writer": object()}, "not both"),
        ({"writer": object()}, "must be a torch.utils.tensorboard.SummaryWriter"),
    ],
)
def test_what_watch_cannot_take_is_said_in_a_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        vg.watch(**{"model": MODEL, "optimizer": sgd(MODEL), **given})


def test_an_optimizer_step_with_other_arguments_is_left_alone() -> None:
    class Scaled(torch.optim.SGD):
        def step(self, factor: float, closure: Any = None) -> Any:  # type: ignore[override]
            assert factor == 0.5
            return super().step(closure)

    model = chain()
    optimizer = Scaled(model.parameters(), lr=0.1)
    with vg.watch(model, optimizer, every=1) as monitor:
        loss_fn(model(X)).backward()
        optimizer.step(0.5)
    assert len(monitor.history) == 1


def test_a_forward_pass_without_backward_is_not_a_call() -> None:
    model = chain()
    oracle = chain_oracle(model, X, loss_fn)
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        model(X * 100)
        loss_fn(model(X)).backward()
        optimizer.step()
    assert_matches(monitor.history[0], oracle)


def test_of_two_optimizers_each_monitor_measures_its_own_update() -> None:
    model = chain()
    linears = [m for m in model if isinstance(m, nn.Linear)]
    low = torch.optim.SGD(linears[0].parameters(), lr=0.1)
    high = torch.optim.SGD([p for m in linears[1:] for p in m.parameters()], lr=0.1)
    with vg.watch(model, low, every=1) as monitor:
        loss_fn(model(X)).backward()
        high.step()
        low.step()
    first, *others = monitor.history[0].layers
    assert first.update_rms
    assert [layer.update_rms for layer in others] == [None, None]


def test_a_parametrized_weight_stands_for_what_it_is_made_from() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3))
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        train(model, optimizer, 1)
    assert monitor.history[0].layers[0].weight_gradient is not None
    assert monitor.history[0].layers[0].weight_gradient.count == 35


def test_a_layer_gets_the_very_same_tensor_where_it_was_given_it_twice() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, query: Tensor, key: Tensor, cache: list[Tensor]) -> Tensor:
            assert query is key
            cache.append(query)
            out: Tensor = self.fc(query)
            return out

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Same()
            self.cache: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x, x, self.cache)
            return out

    model = Outer()
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1, layers="inner$"):
        loss_fn(model(X.clone().requires_grad_())).backward()
        optimizer.step()
    assert len(model.cache) == 1


def test_the_monitor_says_what_it_makes_of_its_samples() -> None:
    model = vg.build_mlp([8, *[8] * 20, 4], "sigmoid", "uniform", generator=torch.Generator().manual_seed(0))
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        with pytest.raises(UsageError, match="there is no sample to judge"):
            monitor.diagnose()
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.rand(16, 8)), torch.arange(16) % 4).backward()
            optimizer.step()
    assert monitor.diagnose().verdict == "vanishing"
    assert str(monitor.diagnose()).startswith("layer")


def test_losses_tell_the_verdict_that_a_network_learns() -> None:
    model = vg.build_mlp([8, *[8] * 20, 4], "sigmoid", "uniform", generator=torch.Generator().manual_seed(0))
    optimizer = sgd(model)
    with vg.watch(model, optimizer, every=1) as monitor:
        for loss in (2.0, 1.0, 0.2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.rand(16, 8)), torch.arange(16) % 4).backward()
            optimizer.step()
            monitor.losses.append(loss)
    assert monitor.diagnose().verdict == "healthy"


@pytest.mark.parametrize(("histograms", "steps"), [(True, [0, 2]), (False, [2])])
def test_a_verdict_is_written_once_at_a_step(
    histograms: bool, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vg.build_mlp([8, *[8] * 20, 4], "sigmoid", "uniform", generator=torch.Generator().manual_seed(0))
    optimizer = sgd(model)
    written: list[int] = []
    with vg.watch(model, optimizer, every=1, histograms=histograms) as monitor:
        monkeypatch.setattr(monitor.writer, "text", lambda tag, markdown, step: written.append(step))
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.rand(16, 8)), torch.arange(16) % 4).backward()
            optimizer.step()
    assert written == steps
