"""build_mlp: its layers, the source of its weights, the arguments it rejects; activations against their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vgrad_torch.errors import UsageError
from vgrad_torch.models.activations import ACTIVATIONS
from vgrad_torch.models.initializers import INITIALIZERS
from vgrad_torch.models.mlp import build_mlp

WIDTHS = [7, 5, 5, 5, 3]

FORMULAS: dict[str, Callable[[float], float]] = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": lambda x: (math.exp(2 * x) - 1) / (math.exp(2 * x) + 1),
    "relu": lambda x: max(x, 0.0),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "elu": lambda x: x if x > 0 else math.exp(x) - 1,
    # alpha and scale of Klambauer et al. 2017, "Self-normalizing neural networks"
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * (math.exp(x) - 1)),
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "softsign": lambda x: x / (1 + abs(x)),
    "identity": lambda x: x,
}


def seeded(seed: int = 1, **options: Any) -> nn.Sequential:
    return build_mlp(WIDTHS, generator=torch.Generator().manual_seed(seed), **options)


def assert_same_parameters(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def test_every_activation_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_its_formula_and_leaves_its_input_alone(name: str) -> None:
    points = [-3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0]
    x = torch.tensor(points, dtype=torch.float64)
    y = ACTIVATIONS[name]()(x)
    np.testing.assert_allclose(y.numpy(), [FORMULAS[name](point) for point in points], rtol=1e-12, atol=1e-12)
    assert x.tolist() == points


def test_names_shapes_and_zero_biases() -> None:
    model = seeded(activation="tanh")
    assert [name for name, _ in model.named_children()] == ["fc1", "act1", "fc2", "act2", "fc3", "act3", "fc4"]
    assert {name: tuple(value.shape) for name, value in model.named_parameters()} == {
        "fc1.weight": (5, 7),
        "fc1.bias": (5,),
        "fc2.weight": (5, 5),
        "fc2.bias": (5,),
        "fc3.weight": (5, 5),
        "fc3.bias": (5,),
        "fc4.weight": (3, 5),
        "fc4.bias": (3,),
    }
    assert all(value.requires_grad and value.is_leaf for value in model.parameters())


@pytest.mark.parametrize("init", INITIALIZERS)
def test_biases_are_zero(init: str) -> None:
    torch.use_deterministic_algorithms(True)  # uninitialised memory is NaN
    try:
        model = seeded(init=init)
    finally:
        torch.use_deterministic_algorithms(False)
    biases = [value for name, value in model.named_parameters() if name.endswith("bias")]
    assert [bias.tolist() for bias in biases] == [[0.0] * 5, [0.0] * 5, [0.0] * 5, [0.0] * 3]


def test_without_bias() -> None:
    assert [name for name, _ in seeded(bias=False).named_parameters()] == [f"fc{n}.weight" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_between_layers_is_the_named_one_and_never_shared(name: str) -> None:
    model = seeded(activation=name)
    between = [child for label, child in model.named_children() if label.startswith("act")]
    assert [type(child) for child in between] == [ACTIVATIONS[name]] * 3
    assert len({id(child) for child in between}) == 3


def test_forward_matches_numpy() -> None:
    model = seeded(activation="sigmoid", init="normal").double()
    x = np.linspace(-1, 1, 4 * 7).reshape(4, 7)
    expected = x
    for number in (1, 2, 3, 4):
        weight = model.get_parameter(f"fc{number}.weight").detach().numpy()
        expected = expected @ weight.T
        if number < 4:
            expected = 1 / (1 + np.exp(-expected))
    y = model(torch.from_numpy(x)).detach().numpy()
    assert y.shape == (4, 3)
    np.testing.assert_allclose(y, expected, rtol=1e-12)


def test_two_widths_are_one_layer() -> None:
    assert [name for name, _ in build_mlp([4, 2]).named_children()] == ["fc1"]


def test_defaults_are_relu_and_he() -> None:
    assert isinstance(seeded().get_submodule("act1"), nn.ReLU)
    assert_same_parameters(seeded(), seeded(init="he"))


@pytest.mark.parametrize("init", INITIALIZERS)
def test_weights_are_the_initializers_draws_first_layer_first(init: str) -> None:
    model, generator = seeded(init=init), torch.Generator().manual_seed(1)
    for number in (1, 2, 3, 4):
        weight = model.get_parameter(f"fc{number}.weight")
        expected = torch.empty_like(weight, requires_grad=False)
        INITIALIZERS[init](expected, generator)
        assert torch.equal(weight, expected)
    assert not torch.equal(model.get_parameter("fc2.weight"), model.get_parameter("fc3.weight"))


def test_the_seed_decides() -> None:
    assert_same_parameters(seeded(), seeded())
    assert not torch.equal(seeded(1).get_parameter("fc1.weight"), seeded(2).get_parameter("fc1.weight"))


@pytest.mark.parametrize("init", INITIALIZERS)
def test_a_generator_leaves_torchs_global_state_alone(init: str) -> None:
    before = torch.get_rng_state()
    seeded(init=init)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("init", INITIALIZERS)
def test_without_a_generator_the_global_state_is_drawn_from_once(init: str) -> None:
    generator = torch.Generator().manual_seed(1)
    expected = build_mlp(WIDTHS, init=init, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert_same_parameters(build_mlp(WIDTHS, init=init), expected)
        assert torch.equal(torch.rand(5), torch.rand(5, generator=generator))


def test_default_device_and_dtype_are_kept() -> None:
    with torch.device("meta"):
        assert {value.device.type for value in build_mlp([4, 3, 2]).parameters()} == {"meta"}
    torch.set_default_dtype(torch.float64)
    try:
        model = build_mlp([4, 3, 2])
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in model.parameters()} == {torch.float64}


def test_numpy_integers_are_widths() -> None:
    layer = build_mlp([*np.array([4, 2])])[0]
    assert isinstance(layer, nn.Linear)
    assert (type(layer.in_features), type(layer.out_features)) == (int, int)


@pytest.mark.parametrize("bad", [0, -3, True, False, 3.0, "5", None, math.nan])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_bad_width_is_named_with_its_position(bad: Any, position: int) -> None:
    widths: list[Any] = [4, 3, 2]
    widths[position] = bad
    with pytest.raises(UsageError) as caught:
        build_mlp(widths)
    assert str(caught.value) == f"widths[{position}] must be a positive integer, not {bad!r}"


@pytest.mark.parametrize("widths", [[], [4], (4,)])
def test_too_few_widths(widths: list[int]) -> None:
    with pytest.raises(UsageError) as caught:
        build_mlp(widths)
    message = f"an MLP needs at least 2 widths, the input's and the output's, but widths is {widths!r}"
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tahn"}, "unknown activation 'tahn'; did you mean 'tanh'? Choose from: sigmoid, tanh, relu, "),
        ({"init": "orthogonl"}, "unknown initializer 'orthogonl'; did you mean 'orthogonal'? Choose from: uniform, "),
    ],
)
def test_unknown_names_and_nothing_is_drawn(options: dict[str, str], message: str) -> None:
    before = torch.get_rng_state()
    with pytest.raises(UsageError) as caught:
        build_mlp([4, 2], **options)  # type: ignore[arg-type]  # mypy takes the dict for bias and generator too
    assert str(caught.value).startswith(message)
    assert torch.equal(torch.get_rng_state(), before)


# --- options --------------------------------------------------------------------------------------------------------


def test_options_at_their_defaults_change_nothing() -> None:
    defaults = seeded(bias_value=0.0, gain=1.0, norm=None, residual=False)
    assert_same_parameters(defaults, seeded())
    assert str(defaults) == str(seeded())


def test_gain_multiplies_every_weight_and_bias_value_sets_every_bias() -> None:
    plain, changed = seeded(), seeded(gain=3.0, bias_value=-0.5)
    for number in (1, 2, 3, 4):
        weight = plain.get_parameter(f"fc{number}.weight")
        assert torch.equal(changed.get_parameter(f"fc{number}.weight"), 3 * weight)
        assert set(changed.get_parameter(f"fc{number}.bias").tolist()) == {-0.5}


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_a_norm_stands_between_each_hidden_layer_and_its_activation(norm: str, kind: type[nn.Module]) -> None:
    model = seeded(norm=norm)
    names = [f"{part}{number}" for number in (1, 2, 3) for part in ("fc", "norm", "act")]
    assert [name for name, _ in model.named_children()] == [*names, "fc4"]
    assert all(type(model.get_submodule(f"norm{number}")) is kind for number in (1, 2, 3))
    x = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    z = model[:2](x).detach().double()
    over = 0 if norm == "batch" else 1
    np.testing.assert_allclose(z.mean(over), 0, atol=1e-6)
    np.testing.assert_allclose(z.square().mean(over), 1, atol=1e-3)
    assert_linears_equal(model, seeded())


def assert_linears_equal(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = ([m.weight for m in net.modules() if isinstance(m, nn.Linear)] for net in (one, other))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_residual_adds_its_input_to_each_hidden_layer_as_wide() -> None:
    model, plain = seeded(activation="tanh", residual=True), seeded(activation="tanh")
    assert [name for name, _ in model.named_children()] == ["fc1", "act1", "block2", "block3", "fc4"]
    assert [name for name, _ in model.get_submodule("block3").named_children()] == ["fc3", "act3"]
    assert_linears_equal(model, plain)
    x = np.linspace(-1, 1, 4 * 7).reshape(4, 7)
    weights = [plain.get_parameter(f"fc{n}.weight").detach().double().numpy() for n in (1, 2, 3, 4)]
    h = np.tanh(x @ weights[0].T)
    for weight in weights[1:3]:
        h = h + np.tanh(h @ weight.T)
    y = model.double()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(y, h @ weights[3].T, rtol=1e-12)


def test_residual_and_norm_go_together_and_the_first_layer_may_be_a_block() -> None:
    model = build_mlp([5, 5, 4, 3], norm="layer", residual=True)
    assert [name for name, _ in model.named_children()] == ["block1", "fc2", "norm2", "act2", "fc3"]
    assert [name for name, _ in model.get_submodule("block1").named_children()] == ["fc1", "norm1", "act1"]


@pytest.mark.parametrize(
    ("widths", "options", "message"),
    [
        (WIDTHS, {"gain": 0.0}, "gain multiplies the weights and must be a positive number, not 0.0"),
        (WIDTHS, {"gain": math.nan}, "gain multiplies the weights and must be a positive number, not nan"),
        (WIDTHS, {"bias_value": math.inf}, "bias_value must be a finite number, and 0 if bias is False, not inf"),
        (WIDTHS, {"bias": False, "bias_value": 1.0}, "bias_value must be a finite number, and 0 if bias is False"),
        (WIDTHS, {"norm": "bacth"}, "unknown norm 'bacth'; did you mean 'batch'? Choose from: batch, layer"),
        ([4, 8, 6, 3], {"residual": True}, "residual needs a hidden layer as wide as the one before it; the hidden"),
        ([4, 4], {"residual": True}, "residual needs a hidden layer as wide as the one before it; the hidden widths"),
    ],
)
def test_options_out_of_range_are_rejected(widths: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_mlp(widths, **options)
    assert str(caught.value).startswith(message)


def depth_factor(**options: Any) -> float:
    """The factor per layer on the norm of the gradient in the backward pass, geometric mean over 19 layers."""
    model = build_mlp([64, *[100] * 20, 10], generator=torch.Generator().manual_seed(0), **options)
    h, outputs = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)), []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, __, z: outputs.append(z))
    loss = nn.functional.cross_entropy(model(h), torch.arange(64) % 10)
    first, last = (float(gradient.norm()) for gradient in torch.autograd.grad(loss, [outputs[0], outputs[19]]))
    return math.exp(math.log(first / last) / 19)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"activation": "tanh", "init": "torch"}, 0.577),  # sqrt(1/3), Glorot and Bengio 2010, equation 15
        ({"activation": "tanh", "init": "torch", "gain": 3**0.5}, 0.917),  # vgrad_torch.theory.prediction
        ({"activation": "tanh", "init": "lecun", "gain": 5 / 3}, 1.10),
        ({"activation": "sigmoid", "init": "glorot"}, 0.236),
        ({"activation": "sigmoid", "init": "glorot", "norm": "layer"}, 0.39),
        ({"activation": "relu", "init": "he", "norm": "batch"}, 1.2),  # sqrt(pi / (pi - 1)), Yang et al. 2019
    ],
)
def test_each_option_changes_the_gradient_as_theory_says(options: dict[str, Any], factor: float) -> None:
    assert depth_factor(**options) == pytest.approx(factor, rel=0.05)


def test_residual_connections_keep_the_gradient_of_sigmoids() -> None:
    assert depth_factor(activation="sigmoid", init="glorot", residual=True) == pytest.approx(1, abs=0.1)
