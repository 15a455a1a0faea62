"""preflight: the model is unchanged bit for bit, the numbers are autograd's, the text fits the numbers."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.assertions import assert_matches, chain_oracle, hook_count
from vgrad_torch.errors import UsageError
from vgrad_torch.models.activations import ACTIVATIONS
from vgrad_torch.models.mlp import build_mlp
from vgrad_torch.trials.chains import activation_of
from vgrad_torch.trials.preflight import Preflight, preflight
from vgrad_torch.trials.what_if import what_if
from vgrad_torch.verdict.tables import WIDTH
from vgrad_torch.watching.watch import watch

cross_entropy = nn.functional.cross_entropy


def mlp(widths: list[int], act: str = "relu", init: str = "he", **dials: Any) -> nn.Sequential:
    return build_mlp(widths, act, init, generator=torch.Generator().manual_seed(0), **dials)


def batch(features: int, classes: int = 3, samples: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, features, generator=generator), torch.arange(samples) % classes


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.embed = nn.Embedding(50, 32)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.embed(tokens)).mean(1))
        return out


class ConvBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return x + out


def convolutional() -> nn.Sequential:
    blocks = [ConvBlock(16) for _ in range(4)]
    return nn.Sequential(nn.Conv2d(3, 16, 3), *blocks, nn.Flatten(), nn.Linear(16 * 14 * 14, 3))


class SelfChanging(nn.Module):
    """Changes in its forward pass everything that a module can change in itself."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 3)
        self.norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(()))
        self.calls, self.log, self.broken = 0, ["start"], False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append("called")
        self.count = self.count + 1 + random.random() + np.random.rand()
        self.last = x.mul_(2)
        self.norm.eval()
        self.fc2.bias.data.add_(1)
        self.fc2.bias.requires_grad_(False)
        out: Tensor = self.fc2(self.dropout(self.norm(self.fc1(x))))
        if self.broken:
            raise KeyError("broken")
        return out


def everything(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Everything that preflight might change, in a form that can be compared bit by bit."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = optimizer.state_dict()["state"] if optimizer else {}
    numpy = np.random.get_state(legacy=False)["state"]
    return {
        "tensors": {name: (id(t), t.detach().numpy().tobytes()) for name, t in tensors.items()},
        "gradients": {
            name: p.grad if p.grad is None else (id(p.grad), p.grad.numpy().tobytes())
            for name, p in model.named_parameters()
        },
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: m.training for name, m in model.named_modules()},
        "attributes": {name: list(vars(m)) for name, m in model.named_modules()},
        "hooks": hook_count(model, optimizer),
        "random": (random.getstate(), numpy["key"].tobytes(), numpy["pos"], torch.get_rng_state().numpy().tobytes()),
        "optimizer": {(p, k): np.asarray(v).tobytes() for p, entry in state.items() for k, v in entry.items()},
    }


Case = tuple[nn.Module, tuple[Any, Any], Any]


def case_mlp() -> Case:
    return mlp([4, *[64] * 100, 3]), batch(4), nn.Linear


def case_norms() -> Case:
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    return model, batch(4), nn.Linear


def case_spectral() -> Case:
    first = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 16))
    return nn.Sequential(first, nn.Tanh(), nn.Linear(16, 3)), batch(4), nn.Linear


def case_transformer() -> Case:
    return Transformer(), (torch.arange(64).reshape(8, 8) % 50, torch.arange(8) % 3), nn.Linear


def case_convolutional() -> Case:
    return convolutional(), (torch.randn(8, 3, 16, 16), torch.arange(8) % 3), (nn.Linear, nn.Conv2d)


def case_self_changing() -> Case:
    return SelfChanging(), batch(4), nn.Linear


CASES: list[Callable[[], Case]] = [
    case_mlp, case_norms, case_spectral, case_transformer, case_convolutional, case_self_changing,
]  # fmt: skip


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("with_optimizer", [True, False])
def test_the_model_is_as_it_was_and_it_takes_less_than_five_seconds(
    make: Callable[[], Case], with_optimizer: bool
) -> None:
    torch.manual_seed(0)
    model, (x, y), layers = make()
    first = next(model.parameters())
    first.grad = torch.full_like(first, 7.0)
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()  # so that it has a state
    before, x_before = everything(model, optimizer), x.clone()
    start = time.perf_counter()
    preflight(model, cross_entropy, (x, y), optimizer if with_optimizer else None, layers=layers)
    assert time.perf_counter() - start < 5
    assert everything(model, optimizer) == before
    assert torch.equal(x, x_before)


def test_that_check_can_fail() -> None:
    model, (x, y), _ = case_self_changing()
    before = everything(model)
    cross_entropy(model(x), y).backward()
    after = everything(model)
    assert [key for key in before if before[key] != after[key]] == [
        "tensors", "gradients", "flags", "modes", "attributes", "random",
    ]  # fmt: skip


def test_the_model_is_as_it_was_when_it_raises() -> None:
    model = SelfChanging()
    model.broken = True
    before, log = everything(model), model.log
    with pytest.raises(KeyError, match="broken"):
        preflight(model, cross_entropy, batch(4))
    assert everything(model) == before
    assert model.log is log
    assert (model.log, model.calls) == (["start"], 0)
    assert not hasattr(model, "last")


def test_modes_and_frozen_parameters_are_used_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[1].eval()
    model[0].requires_grad_(False)
    before = everything(model)
    result = preflight(model, cross_entropy, batch(4))
    assert everything(model) == before
    assert result.diagnosis.evidence.folded == 1
    assert preflight(model, cross_entropy, batch(4), layers=nn.Linear).diagnosis.evidence.frozen == ("0",)


def test_a_graph_that_waits_for_its_backward_pass_still_works() -> None:
    model, (x, y), _ = case_norms()
    model.eval()
    loss = cross_entropy(model(x), y)
    preflight(model, cross_entropy, (x, y))
    loss.backward()


def test_neither_the_inputs_gradient_nor_that_of_the_loss_functions_parameters_is_touched() -> None:
    weight = nn.Parameter(torch.ones(3))
    x, y = batch(4)
    x.requires_grad_()
    preflight(mlp([4, 8, 3]), lambda out, y: cross_entropy(out * weight, y), (x, y))
    assert x.grad is None
    assert weight.grad is None


def test_the_snapshot_matches_autograd() -> None:
    model, (x, y) = mlp([4, 16, 8, 3], "tanh", "glorot"), batch(4)
    result = preflight(model, cross_entropy, (x, y))
    assert_matches(result.snapshot, chain_oracle(model, x, lambda out: cross_entropy(out, y)))
    assert result.loss == pytest.approx(cross_entropy(model(x), y).item())
    assert result.waterfall is not None
    assert result.waterfall.chain


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    ],
)
def test_the_update_ratio_is_that_of_the_next_real_step(make: Callable[..., torch.optim.Optimizer]) -> None:
    model, (x, y) = mlp([4, 16, 3]), batch(4)
    optimizer = make(model.parameters())
    for _ in range(2):  # the second step meets a state
        result = preflight(model, cross_entropy, (x, y), optimizer)
        old = copy.deepcopy(model)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        for name in ("fc1", "fc2"):
            weight, before = (m.get_parameter(f"{name}.weight").detach().double() for m in (model, old))
            ratio = float((weight - before).norm() / before.norm())
            assert result.snapshot[name].update_ratio == pytest.approx(ratio, rel=1e-4)


def test_a_layer_that_the_optimizer_does_not_have_is_frozen() -> None:
    model = mlp([4, 8, 3])
    optimizer = torch.optim.SGD(model.get_submodule("fc2").parameters(), lr=0.1)
    assert preflight(model, cross_entropy, batch(4), optimizer).diagnosis.evidence.frozen == ("fc1",)


def test_an_optimizer_whose_step_needs_a_closure_is_refused_and_nothing_is_left() -> None:
    model = mlp([4, 8, 3])
    before = everything(model)
    with pytest.raises(UsageError, match=r"cannot take a step with LBFGS .*leave the optimizer out"):
        preflight(model, cross_entropy, batch(4), torch.optim.LBFGS(model.parameters()))
    assert everything(model) == before


def test_dead_units_are_those_whose_gradient_is_zero_for_every_sample() -> None:
    model, (x, y) = mlp([4, 16, 16, 3], bias_value=-1.0), batch(4)
    result = preflight(model, cross_entropy, (x, y))
    outputs = []
    h = x
    for module in model:
        h = module(h)
        if isinstance(module, nn.Linear):
            h.retain_grad()
            outputs.append(h)
    cross_entropy(h, y).backward()
    shares = [(np.abs(z.grad.numpy()).sum(0) == 0).mean() for z in outputs if z.grad is not None]
    assert [unit.dead for unit in result.units] == pytest.approx(shares)
    assert 0 < shares[0] < 1


def test_a_convolutions_units_are_its_channels() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 2))
    conv = model[0]
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    with torch.no_grad():
        conv.bias.copy_(torch.tensor([-100.0, 100.0, 100.0, 100.0]))
    data = torch.randn(5, 1, 6, 6), torch.arange(5) % 2
    result = preflight(model, cross_entropy, data, layers=(nn.Linear, nn.Conv2d))
    assert [unit.dead for unit in result.units] == [0.25, 0.0]


@pytest.mark.parametrize(("act", "line"), [("sigmoid", 5.98), ("tanh", 2.99)])
def test_saturation_is_the_share_beyond_a_hundredth_of_the_slope(act: str, line: float) -> None:
    model, (x, y) = mlp([4, 32, 3], act, "normal", gain=3.0), batch(4)
    z = model.get_submodule("fc1")(x).detach()
    slope = torch.autograd.functional.jacobian(lambda u: ACTIVATIONS[act]()(u).sum(), z)
    assert isinstance(slope, Tensor)
    share = float((slope < 0.01 * (0.25 if act == "sigmoid" else 1.0)).float().mean())
    result = preflight(model, cross_entropy, (x, y))
    assert result.units[0].saturated == pytest.approx(share, abs=0.002)
    assert float((z.abs() > line).float().mean()) == result.units[0].saturated
    assert 0.05 < share < 0.95
    assert result.units[1].saturated is None


def test_the_spread_is_that_of_the_last_hidden_layers_output() -> None:
    model, (x, y) = mlp([4, 16, 16, 3], "sigmoid", "glorot"), batch(4)
    h = model[:-1](x).detach().double().numpy()
    expected = np.linalg.norm(h - h.mean(0)) / np.linalg.norm(h)
    assert preflight(model, cross_entropy, (x, y)).spread == pytest.approx(expected, rel=1e-6)
    assert math.isnan(preflight(model, cross_entropy, (x[:1], y[:1])).spread)


@pytest.mark.parametrize("act", ["relu", "tanh", "sigmoid", "gelu"])
@pytest.mark.parametrize("init", ["uniform", "glorot", "he", "torch"])
def test_the_prediction_from_the_measured_weights_matches_the_measurement(act: str, init: str) -> None:
    model, (x, y) = mlp([20, *[128] * 6, 10], act, init), batch(20, 10, 64)
    result = preflight(model, cross_entropy, (x, y))
    assert result.predicted is not None
    scatter = max(4 * result.predicted.scatter, 0.05)
    assert math.log10(result.predicted.norm_ratio) == pytest.approx(result.diagnosis.evidence.signal, abs=scatter)


def test_the_prediction_uses_the_size_of_the_weights_not_their_law() -> None:
    model, data = mlp([20, *[128] * 6, 10], "tanh", "he", gain=0.5), batch(20, 10)
    result, other = (preflight(m, cross_entropy, data).predicted for m in (model, mlp([20, *[128] * 6, 10], "tanh")))
    assert result is not None
    assert other is not None
    assert result.norm_ratio < 0.1 * other.norm_ratio


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (mlp([4, 8, 3], "gelu"), "gelu"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)), "relu"),
        (nn.Sequential(nn.Linear(4, 8), nn.GELU("tanh"), nn.Linear(8, 3)), None),
        (nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 3)), None),
        (nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(inplace=True), nn.Linear(8, 3)), "leaky_relu"),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), None),
        (mlp([4, 8, 3], norm="batch"), None),
        (mlp([4, 8, 8, 3], residual=True), None),
        (nn.Sequential(nn.Linear(4, 3)), None),
        (nn.Linear(4, 3), None),
    ],
)
def test_which_models_are_plain_mlps(model: nn.Module, name: str | None) -> None:
    assert activation_of(model) == name
    result = preflight(model, cross_entropy, batch(4))
    assert (result.predicted is None) == (name is None)


def failing() -> Preflight:
    return preflight(mlp([20, *[64] * 20, 10], "sigmoid", "glorot"), cross_entropy, batch(20, 10))


def test_the_text_for_a_sigmoid_net_names_causes_and_the_verdict_for_adam() -> None:
    result = failing()
    assert (result.verdict, result.steps) == ("vanishing", None)
    words = " ".join(str(result).split())
    assert "Weights cause " in words
    assert "No optimizer was given, so the verdict is for SGD. The verdict for Adam is: vanishing." in words
    assert "All samples look nearly the same to the last layer" in words
    assert "For weights of this size, theory predicts that " in words
    assert max(map(len, str(result).splitlines())) <= WIDTH
    head = " ".join(str(result).partition("\nfc1 ")[0].split())
    assert head == "weight activation layer size gradient expected gain gain dead saturated state"


def test_the_verdict_is_for_the_optimizers_family() -> None:
    model, data = mlp([20, *[64] * 6, 10], "sigmoid", "he"), batch(20, 10)
    sgd = preflight(model, cross_entropy, data)
    adam = preflight(model, cross_entropy, data, torch.optim.AdamW(model.parameters()))
    assert sgd.verdict == "vanishing"
    assert adam.verdict == sgd.otherwise != "vanishing"
    assert (adam.otherwise, adam.steps) == (None, None)


@pytest.mark.parametrize("place", ["before the pass", "between", "after"])
def test_a_monitor_at_work_does_not_see_preflight(place: str) -> None:
    data = batch(4)

    def watched(checked: bool) -> list[Any]:
        model = mlp([4, 8, 3])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        other = (2 * data[0], data[1])
        with watch(model, optimizer, every=1, histograms=False) as monitor:
            for _ in range(2):
                optimizer.zero_grad()
                for now in ("before the pass", "between", "after"):
                    if checked and place == now:
                        preflight(model, cross_entropy, other, optimizer)
                    if now == "before the pass":
                        loss = cross_entropy(model(data[0]), data[1])
                    elif now == "between":
                        loss.backward()
                optimizer.step()
        return [snapshot.layers for snapshot in monitor.history]

    assert watched(True) == watched(False)


def test_compiled_models_work() -> None:
    model, data = mlp([4, 8, 3]), batch(4)
    compiled: Any = torch.compile(model, backend="eager")
    compiled(data[0])
    layers = preflight(compiled, cross_entropy, data).snapshot.layers
    assert layers == preflight(model, cross_entropy, data).snapshot.layers
    assert layers[0].output_gradient is not None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_plateau_of_a_failing_network(momentum: float) -> None:
    model, (x, y) = mlp([4, *[16] * 8, 3], "sigmoid", "glorot"), batch(4)
    oracle = chain_oracle(model, x, lambda out: cross_entropy(out, y))
    ratio = float(oracle["fc1"]["output_gradient"].norm() / oracle["fc9"]["output_gradient"].norm())
    result = preflight(model, cross_entropy, (x, y), torch.optim.SGD(model.parameters(), lr=0.02, momentum=momentum))
    assert result.steps == pytest.approx(20 * (1 - momentum) / (0.02 * ratio), rel=1e-5)
    assert "This estimate is for sigmoid and tanh networks" in " ".join(str(result).split())


def test_no_plateau_is_predicted_for_a_healthy_network_or_a_momentum_of_one() -> None:
    for act, init, momentum in (("relu", "he", 0.0), ("sigmoid", "glorot", 1.0)):
        model = mlp([4, *[16] * 4, 3], act, init)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=momentum)
        assert preflight(model, cross_entropy, batch(4), optimizer).steps is None


def test_a_very_long_plateau_has_no_number() -> None:
    model = mlp([4, *[16] * 20, 3], "sigmoid", "glorot")
    result = preflight(model, cross_entropy, batch(4), torch.optim.SGD(model.parameters(), lr=0.02))
    assert "after more than ten million steps" in " ".join(str(result).split())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_of_nan_or_infinity_is_reported_although_the_gradients_are_finite(value: float) -> None:
    result = preflight(mlp([4, 8, 3]), lambda out, y: cross_entropy(out, y) + value, batch(4))
    assert result.verdict == "non-finite"
    assert result.diagnosis.evidence.nonfinite == f"the loss, which is {value:g}"
    assert not any("learning rate" in sentence for sentence in result.diagnosis.advice)


def test_a_logarithm_of_zero_in_the_loss_is_named_before_the_nonfinite_gradients() -> None:
    result = preflight(mlp([4, 8, 3]), lambda out, y: (0 * out).abs().log().mean(), batch(4))
    assert result.diagnosis.evidence.nonfinite == "the loss, which is -inf"
    gradient = result.snapshot["fc2"].output_gradient
    assert gradient is not None
    assert gradient.nonfinite


def test_nan_in_the_input_is_named_before_the_loss() -> None:
    x, y = batch(4)
    result = preflight(mlp([4, 8, 3]), cross_entropy, (x * math.nan, y))
    assert "the output of fc1" in str(result.diagnosis.evidence.nonfinite)
    assert result.diagnosis.advice[0].startswith("Next: look for NaN and infinity in the data")


def test_an_optimizer_that_raises_is_named() -> None:
    model = mlp([4, 8, 3])
    with pytest.raises(UsageError, match=r"cannot take a step with SparseAdam .*leave the optimizer out"):
        preflight(model, cross_entropy, batch(4), torch.optim.SparseAdam(model.parameters()))


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [("adam", "optimizer must be a torch optimizer or left out, not 'adam'"),
     (torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), "the optimizer holds no parameter of the model")],
)  # fmt: skip
@pytest.mark.parametrize("function", [preflight, what_if])
def test_another_models_optimizer_is_rejected(function: Callable[..., Any], optimizer: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        function(mlp([4, 8, 3]), cross_entropy, batch(4), optimizer)


def test_there_is_no_prediction_for_a_model_with_shared_weights() -> None:
    shared = nn.Linear(4, 4)
    result = preflight(nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 3)), cross_entropy, batch(4))
    assert result.predicted is None
    one = nn.Tanh()
    model = nn.Sequential(nn.Linear(4, 4), one, nn.Linear(4, 4), one, nn.Linear(4, 3))
    assert preflight(model, cross_entropy, batch(4)).predicted is not None


def test_the_prediction_for_the_first_layer_is_left_out_if_that_layer_is_frozen() -> None:
    model = mlp([20, *[64] * 10, 10], "sigmoid", "glorot")
    assert "theory predicts that" in " ".join(str(preflight(model, cross_entropy, batch(20, 10))).split())
    model.get_submodule("fc1").requires_grad_(False)
    assert "theory predicts that" not in " ".join(str(preflight(model, cross_entropy, batch(20, 10))).split())


def test_the_text_fits_a_width() -> None:
    result = failing()
    head, paragraphs = result.text(60).split("\n\n", 1)
    assert max(map(len, paragraphs.splitlines())) <= 60
    assert head == str(result).split("\n\n", 1)[0]


def test_the_text_names_layers_with_dead_and_saturated_units() -> None:
    dead = preflight(mlp([4, *[32] * 4, 3], bias_value=-3.0), cross_entropy, batch(4))
    assert "More than half of the units are dead" in " ".join(str(dead).split())
    saturated = preflight(mlp([64, *[64] * 3, 3], "tanh", "normal"), cross_entropy, batch(64))
    assert "More than half of the activations are saturated after fc1, fc2 and fc3." in " ".join(str(saturated).split())


def test_inputs_may_be_tuples_and_dicts() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out: Tensor = self.fc2(torch.tanh(self.fc1(a - b)))
            return out

    torch.manual_seed(0)
    model, (x, y) = Two(), batch(4)
    result = [preflight(model, cross_entropy, (form, y)).loss for form in ((x, 2 * x), {"b": 2 * x, "a": x})]
    assert result == [cross_entropy(model(x, 2 * x), y).item()] * 2


def test_under_no_grad_and_in_inference_mode_too() -> None:
    model, data = mlp([4, 8, 3]), batch(4)
    expected = preflight(model, cross_entropy, data).snapshot.layers
    with torch.no_grad():
        assert preflight(model, cross_entropy, data).snapshot.layers == expected
    with torch.inference_mode():
        assert preflight(model, cross_entropy, data).snapshot.layers == expected


@pytest.mark.parametrize(
    ("model", "loss_fn", "data", "words"),
    [
        (mlp([4, 8, 3]), cross_entropy, batch(4)[0], "batch must be a pair of input and target"),
        (mlp([4, 8, 3]), lambda out, y: out, batch(4), r"one number.*not a tensor of shape \[32, 3\]"),
        (mlp([4, 8, 3]), lambda out, y: 1.0, batch(4), "one number.*not float"),
        (mlp([4, 8, 3]), lambda out, y: out.detach().sum(), batch(4), "does not depend on any parameter"),
        (mlp([4, 8, 3]).requires_grad_(False), cross_entropy, batch(4), "no parameter of the model requires"),
        (nn.Sequential(nn.Linear(4, 3)).double(), cross_entropy, (torch.ones(0, 4), torch.ones(0)), "batch is empty"),
        (lambda x: x, cross_entropy, batch(4), "the model must be a torch.nn.Module, not function"),
        (nn.Sequential(nn.PReLU()), cross_entropy, batch(4), "two dimensions; its modules .* PReLU.*--layers"),
    ],
)
def test_bad_input_is_rejected_in_a_sentence(model: Any, loss_fn: Any, data: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        preflight(model, loss_fn, data)


def test_lazy_layers_are_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    with pytest.raises(UsageError, match="lazy layers without weights"):
        preflight(model, cross_entropy, batch(4))


def test_a_signal_beyond_float32_is_non_finite() -> None:
    result = preflight(mlp([64, *[64] * 60, 3], "relu", "normal"), cross_entropy, batch(64))
    assert result.verdict == "non-finite"
    assert "non-finite" in str(result)


def test_the_public_name_is_the_function() -> None:
    import vgrad_torch as vg

    assert vg.preflight is preflight
