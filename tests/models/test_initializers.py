"""The initializers against their closed forms, on a weight whose fan_in and fan_out differ."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from vgrad_torch.models.initializers import INITIALIZERS

Floats = npt.NDArray[np.float64]

FAN_OUT, FAN_IN = 600, 800
COUNT = FAN_OUT * FAN_IN

BOUNDS = {
    "uniform": 0.1,
    "xavier": 0.05408326913195984,  # sqrt(2.34 / 800)
    "glorot": 0.06546536707079771,  # sqrt(6 / 1400)
    "torch": 0.035355339059327376,  # 1 / sqrt(800)
}
VARIANCES = {"normal": 1.0, "he": 0.0025, "lecun": 0.00125}  # 2 / 800 and 1 / 800


def drawn(name: str, shape: tuple[int, int] = (FAN_OUT, FAN_IN), seed: int = 1) -> Tensor:
    weight = torch.full(shape, math.nan)
    INITIALIZERS[name](weight, torch.Generator().manual_seed(seed))
    return weight


def values(weight: Tensor) -> Floats:
    return weight.double().numpy().ravel()


def kolmogorov_smirnov(sample: Floats, cdf: Callable[[Floats], Floats]) -> float:
    """Largest distance between the sample's distribution function and `cdf`."""
    expected = cdf(np.sort(sample))
    below, above = np.arange(len(sample)) / len(sample), np.arange(1, len(sample) + 1) / len(sample)
    return float(max((expected - below).max(), (above - expected).max()))


KS_LIMIT = 1.95 / math.sqrt(COUNT)  # exceeded by one sample in a thousand


def normal_cdf(std: float) -> Callable[[Floats], Floats]:
    return lambda x: np.array([0.5 * math.erfc(-value / (std * math.sqrt(2))) for value in x])


def test_every_initializer_is_checked_here() -> None:
    assert {*BOUNDS, *VARIANCES, "orthogonal"} == set(INITIALIZERS)


@pytest.mark.parametrize(("name", "bound"), BOUNDS.items())
def test_uniform_laws(name: str, bound: float) -> None:
    sample = values(drawn(name))
    assert 0.99 * bound < np.abs(sample).max() <= bound * (1 + 1e-7)  # float32 may round the bound up
    assert abs(sample.mean()) < 4 * bound / math.sqrt(3 * COUNT)
    # the fourth moment of a uniform law is 9/5 var**2, so the standard error of its variance is var * sqrt(0.8 / n)
    assert abs(sample.var() / (bound**2 / 3) - 1) < 4 * math.sqrt(0.8 / COUNT)
    assert kolmogorov_smirnov(sample, lambda x: np.clip((x / bound + 1) / 2, 0, 1)) < KS_LIMIT


@pytest.mark.parametrize(("name", "variance"), VARIANCES.items())
def test_normal_laws(name: str, variance: float) -> None:
    sample = values(drawn(name))
    assert abs(sample.mean()) < 4 * math.sqrt(variance / COUNT)
    assert abs(sample.var() / variance - 1) < 4 * math.sqrt(2 / COUNT)
    assert kolmogorov_smirnov(sample, normal_cdf(math.sqrt(variance))) < KS_LIMIT
    assert np.abs(sample).max() > 4 * math.sqrt(variance)  # not truncated: of 480,000 about 30 lie beyond


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (70, 70), (1, 9), (9, 1)])
def test_orthogonal_has_orthonormal_rows_or_columns(shape: tuple[int, int]) -> None:
    weight = drawn("orthogonal", shape).double().numpy()
    gram = weight @ weight.T if shape[0] <= shape[1] else weight.T @ weight
    np.testing.assert_allclose(gram, np.eye(min(shape)), rtol=0, atol=1e-5)


def test_orthogonal_spreads_over_all_entries() -> None:
    """An entry of a uniformly drawn orthogonal matrix is nearly normal. The identity is orthogonal, but fails this."""
    assert kolmogorov_smirnov(values(drawn("orthogonal")), normal_cdf(1 / math.sqrt(FAN_IN))) < KS_LIMIT


@pytest.mark.parametrize("name", INITIALIZERS)
def test_only_the_generator_decides(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.empty(20, 30), torch.empty(20, 30)
    before = torch.get_rng_state()
    INITIALIZERS[name](first, generator)
    INITIALIZERS[name](second, generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, drawn(name, (20, 30)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, drawn(name, (20, 30), seed=2))


@pytest.mark.parametrize("name", INITIALIZERS)
def test_without_a_generator_torchs_global_state_decides(name: str) -> None:
    weight = torch.empty(20, 30)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        INITIALIZERS[name](weight, None)
    assert torch.equal(weight, drawn(name, (20, 30)))


@pytest.mark.parametrize("name", INITIALIZERS)
def test_autograd_does_not_record_it(name: str) -> None:
    weight = nn.Parameter(torch.full((20, 30), math.nan))
    INITIALIZERS[name](weight, torch.Generator().manual_seed(1))
    assert weight.is_leaf
    assert weight.requires_grad
    assert torch.equal(weight.detach(), drawn(name, (20, 30)))


def test_torch_draws_what_a_linear_layer_of_pytorch_draws() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = nn.Linear(30, 20).weight
    assert torch.equal(drawn("torch", (20, 30)), theirs)
