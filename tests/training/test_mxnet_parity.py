"""The MXNet document, from its own initial weights and its batches: see oracles/README.md."""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import vgrad_torch as vg
from tests import ROOT
from vgrad_torch.training import evaluation, recipes

Array = npt.NDArray[Any]
Oracle = dict[str, Array]

WIDTHS = (784, 512, 256, 128, 64, 32, 16, 10)
NAMES = ("fc", "fc0", "fc1", "fc2", "fc3", "fc4", "fc5")
"""MXNet's names for our fc1 ... fc7."""
NETWORKS = [(init, act) for init in ("uniform", "xavier") for act in ("sigmoid", "relu")]
DEVICES = range(4)
SLICE = 32
"""Samples of a batch of 128 that each of the document's four devices gets."""
LAST = len(NAMES) - 1


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    with np.load(ROOT / "tests" / "oracles" / "mxnet_mlp.npz") as file:
        return dict(file)


def batch(oracle: Oracle, number: int, device: int | None = None) -> tuple[Tensor, Tensor]:
    """A batch of 128, or a device's 32 of it. MXNet's iterator takes pixels times 1/256, not 1/255."""
    part = slice(None) if device is None else slice(device * SLICE, (device + 1) * SLICE)
    pixels, labels = oracle["pixels"][number, part], oracle["labels"][number, part]
    return torch.from_numpy(pixels).float() / 256, torch.from_numpy(labels).long()


def network(oracle: Oracle, init: str, act: str) -> nn.Sequential:
    config = recipes.recipe("mnist", init=init, act=act)
    assert (WIDTHS[0], *config.hidden, WIDTHS[-1]) == WIDTHS
    model = vg.build_mlp(WIDTHS, act, init)
    with torch.no_grad():
        for layer, name in zip(linears(model), NAMES, strict=True):
            layer.weight.copy_(torch.from_numpy(oracle[f"{init}_{name}"]))  # MXNet's is (out, in), as ours
    return model


def linears(model: nn.Sequential) -> list[nn.Linear]:
    return [module for module in model if isinstance(module, nn.Linear)]


def summed_loss(output: Tensor, y: Tensor) -> Tensor:
    """MXNet's SoftmaxOutput hands back p - onehot for every sample: the loss is summed, not averaged."""
    return nn.functional.cross_entropy(output, y, reduction="sum")


def gradients(parameters: list[Tensor]) -> list[Array]:
    return [np.array(p.grad.numpy()) for p in parameters if p.grad is not None]


def weights(model: nn.Sequential) -> list[Tensor]:
    return [layer.weight for layer in linears(model)]


def biases(model: nn.Sequential) -> list[Tensor]:
    return [layer.bias for layer in linears(model)]


def look(model: nn.Sequential, x: Tensor, y: Tensor, loss_fn: evaluation.LossFunction = summed_loss) -> vg.Snapshot:
    """What the monitor sees of a step that changes nothing; the gradients stay."""
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    still.zero_grad()
    with vg.watch(model, still, every=1) as monitor:
        loss_fn(model(x), y).backward()
        still.step()
    return monitor.history[0]


def statistics(snapshot: vg.Snapshot, statistic: str) -> Array:
    return np.array([getattr(layer.weight_gradient, statistic) for layer in snapshot.layers])


def assert_statistics(snapshot: vg.Snapshot, oracle: Oracle, run: str, at: tuple[int, int], factor: float = 1) -> None:
    """Of all seven layers' weight gradients, in one batch on one device; ours times `factor`.

    The mean is held to 1e-5 of the std, not of itself: where positive and negative entries cancel it is a small rest
    with their rounding in it. In the last layer they cancel exactly (p - onehot sums to zero over the classes), so
    that the rest there is nothing but rounding and even its sign differs.
    """
    number, device = at
    rms, mean, std = (oracle[f"{run}_{statistic}"][number, :, device] for statistic in ("rms", "mean", "std"))
    np.testing.assert_allclose(statistics(snapshot, "rms") * factor, rms, rtol=1e-5, atol=0)
    np.testing.assert_allclose(statistics(snapshot, "std") * factor, std, rtol=1e-5, atol=0)
    assert (np.abs(statistics(snapshot, "mean") * factor - mean) <= 1e-5 * std).all()


def assert_same(ours: Array, theirs: Array) -> None:
    """Element by element, to 1e-5 of the RMS."""
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))


@pytest.mark.parametrize(("init", "act"), NETWORKS)
@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_a_device(oracle: Oracle, init: str, act: str, device: int) -> None:
    """The first batch: statistics of every layer, entries where the oracle has them."""
    run = f"{init}_{act}"
    model = network(oracle, init, act)
    snapshot = look(model, *batch(oracle, 0, device))
    assert [layer.tag for layer in snapshot.layers] == [
        f"{i}-fc{i}-{fan_in}x{fan_out}" for i, (fan_in, fan_out) in enumerate(pairwise(WIDTHS), start=1)
    ]
    assert_statistics(snapshot, oracle, run, (0, device))
    first, *_, last = gradients(weights(model))
    assert_same(first[:4, 300:420], oracle[f"{run}_fc_corner"][0, device])
    assert_same(last, oracle[f"{run}_fc5_gradients"][0, device])
    their_biases = np.split(oracle[f"{run}_bias_gradients"][0, device], np.cumsum(WIDTHS[4:7]))
    for ours, theirs in zip(gradients(biases(model))[3:], their_biases, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize(("init", "act"), NETWORKS)
def test_the_values_that_mxnets_monitor_printed(oracle: Oracle, init: str, act: str) -> None:
    """norm(g) / sqrt(g.size) of the first layer; MXNet's own float32 sum is up to 1.2e-4 off, hence 2e-4."""
    model = network(oracle, init, act)
    ours = [statistics(look(model, *batch(oracle, 0, device)), "rms")[0] for device in DEVICES]
    np.testing.assert_allclose(ours, oracle[f"{init}_{act}_monitor"], rtol=2e-4, atol=0)


@pytest.mark.parametrize(("init", "act"), NETWORKS)
def test_the_mean_loss_has_a_32nd_of_it(oracle: Oracle, init: str, act: str) -> None:
    """The package trains on the mean over a batch, so for the same 32 samples it shows what MXNet shows over 32."""
    loss_fn = evaluation.loss_function(WIDTHS[-1])
    model = network(oracle, init, act)
    for device in DEVICES:
        snapshot = look(model, *batch(oracle, 0, device), loss_fn)
        assert_statistics(snapshot, oracle, f"{init}_{act}", (0, device), factor=SLICE)


@pytest.mark.parametrize(("init", "act"), NETWORKS)
def test_a_whole_batch_has_the_mean_of_its_slices(oracle: Oracle, init: str, act: str) -> None:
    """All 128 samples in one batch have the devices' four sums over 128."""
    model = network(oracle, init, act)
    look(model, *batch(oracle, 0), evaluation.loss_function(WIDTHS[-1]))
    assert_same(gradients(weights(model))[LAST], oracle[f"{init}_{act}_fc5_gradients"][0].sum(0) / 128)


RULES = {
    "a 128th of the sum": ({"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-5}, 128),
    "the mean of 32": ({"lr": 0.025, "momentum": 0.9, "weight_decay": 4e-5}, SLICE),
}
"""How the document's devices train, as it says it and for a mean loss: constants, and what divides the summed loss.

A rate of .1 on a 128th of the sum is one of .025 on the mean of 32. The decay is multiplied by the rate, so a quarter
of the rate takes four times the decay.
"""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("init", "act"), NETWORKS)
@pytest.mark.parametrize("device", DEVICES)
def test_five_steps_of_a_device(oracle: Oracle, init: str, act: str, device: int, rule: str) -> None:
    """The document's devices never meet: each trains its own replica, with its own momentum, on its 32 samples."""
    run = f"{init}_{act}"
    constants, divisor = RULES[rule]
    config = recipes.recipe("mnist", init=init, act=act, **constants)
    model = network(oracle, init, act)
    optimizer = recipes.make_optimizer(model, config)
    with vg.watch(model, optimizer, every=1, histograms=False) as monitor:
        for number in range(5):
            x, y = batch(oracle, number, device)
            optimizer.zero_grad()
            (summed_loss(model(x), y) / divisor).backward()
            seen, seen_biases = gradients(weights(model))[LAST], gradients(biases(model))[3:]
            optimizer.step()
            assert_same(seen * divisor, oracle[f"{run}_fc5_gradients"][number, device])
            assert_same(np.concatenate(seen_biases) * divisor, oracle[f"{run}_bias_gradients"][number, device])
    for number, snapshot in enumerate(monitor.history):
        assert_statistics(snapshot, oracle, run, (number, device), factor=divisor)
    after = weights(model)[LAST].detach().numpy()
    np.testing.assert_allclose(after, oracle[f"{run}_fc5_after_5"][device], rtol=0, atol=5e-8)
