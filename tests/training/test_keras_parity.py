"""The Keras document, from its own initial weights and batch order, and from ours: see oracles/README.md."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import vgrad_torch as vg
from tests import ROOT
from tests.support.assertions import assert_is_tensor
from vgrad_torch.training import evaluation, recipes
from vgrad_torch.training import loop as training
from vgrad_torch.training.data import Dataset, load

Array = npt.NDArray[Any]
Oracle = dict[str, Array]

ACTIVATIONS = ("sigmoid", "tanh", "relu")
LAYERS = range(1, 6)
EPOCHS, BATCH, PER_EPOCH = 100, 32, 32
STEPS = EPOCHS * PER_EPOCH
RECORDS = [*range(0, STEPS, PER_EPOCH), STEPS - 1]
"""The 101 steps whose gradients the document shows: the first of each epoch, and the very last, of 8 samples."""
RECORDED = 96
"""The steps (3 epochs) whose gradients the oracle holds element by element."""


def oracle_of(name: str) -> Oracle:
    with np.load(ROOT / "tests" / "oracles" / f"keras_{name}.npz") as file:
        return dict(file)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers of 5 units are too small to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load("circles")


def linears(model: nn.Sequential) -> list[nn.Linear]:
    return [module for module in model if isinstance(module, nn.Linear)]


def put(model: nn.Sequential, oracle: Oracle, epoch: int) -> None:
    """Give the model Keras' weights after an epoch (0: the initial ones). Keras' kernel is (in, out), so transposed."""
    with torch.no_grad():
        for number, layer in enumerate(linears(model), start=1):
            layer.weight.copy_(torch.from_numpy(oracle[f"kernels_{number}"][epoch].T))
            layer.bias.copy_(torch.from_numpy(oracle[f"biases_{number}"][epoch]))


def network(oracle: Oracle, act: str) -> tuple[nn.Sequential, Optimizer]:
    config = recipes.recipe("circles", act=act)
    assert (config.hidden, config.init, config.batch, config.epochs) == ((5, 5, 5, 5), "normal", BATCH, EPOCHS)
    model = vg.build_mlp([2, *config.hidden, 1], act, config.init)
    put(model, oracle, 0)
    return model, recipes.make_optimizer(model, config)


def keras_batches(order: Array, data: Dataset) -> training.Batches:
    """One epoch of Keras' batches for each call."""
    epochs = iter(torch.from_numpy(order.astype(np.int64)))
    return lambda: ((data.x_train[part], data.y_train[part]) for part in next(epochs).split(BATCH))


def copies(tensors: list[Tensor]) -> list[Array]:
    return [np.array(tensor.detach().numpy()) for tensor in tensors]


@dataclass
class Replay:
    """The package's training on Keras' initial weights and batches, watched at every step."""

    oracle: Oracle
    model: nn.Sequential
    monitor: vg.Monitor
    before: evaluation.Score
    epochs: list[evaluation.Epoch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    kernel_gradients: list[list[Array]] = field(default_factory=list)
    bias_gradients: list[list[Array]] = field(default_factory=list)
    kernels: list[list[Array]] = field(default_factory=list)
    """After each epoch; these are in torch's order, (out, in)."""
    biases: list[list[Array]] = field(default_factory=list)


@pytest.fixture(scope="module", params=ACTIVATIONS)
def replay(request: pytest.FixtureRequest, data: Dataset) -> Replay:
    act = str(request.param)
    oracle = oracle_of(f"manual_{act}")
    model, optimizer = network(oracle, act)
    layers, bce = linears(model), evaluation.loss_function(data.classes)

    def loss_fn(output: Tensor, y: Tensor) -> Tensor:
        loss = bce(output, y)
        if loss.requires_grad:  # not when an epoch's score is taken
            seen.losses.append(float(loss.detach()))
        return loss

    def before_step(*_: object) -> None:
        if len(seen.kernel_gradients) < RECORDED:
            seen.kernel_gradients.append(copies([x.weight.grad for x in layers if x.weight.grad is not None]))
            seen.bias_gradients.append(copies([x.bias.grad for x in layers if x.bias.grad is not None]))

    def on_epoch(epoch: evaluation.Epoch) -> None:
        seen.epochs.append(epoch)
        seen.kernels.append(copies([x.weight for x in layers]))
        seen.biases.append(copies([x.bias for x in layers]))

    optimizer.register_step_pre_hook(before_step)
    with vg.watch(model, optimizer, every=1, histograms=False) as monitor:
        seen = Replay(oracle, model, monitor, evaluation.scores(model, data, bce)[0])
        training.train(
            model, data, optimizer, monitor, loss_fn=loss_fn, epochs=EPOCHS,
            training_batches=keras_batches(oracle["order"], data), on_epoch=on_epoch,
        )  # fmt: skip
    assert len(seen.losses) == len(monitor.history) == STEPS
    return seen


def assert_gradients(ours: Array, keras: Array) -> None:
    """Of one layer, [step, entry]: to 1e-5 of the largest gradient at that step, to 1.5e-6, and exact where it is 0.

    Keras 2.7 takes log(p + 1e-7) of the probability p of the true class, the package log(p) from the logit: that
    alone changes a sample's gradient by 1e-7 / p, 3e-6 of it where the published ReLU network starts out with
    p = 0.03 and gradients of 0.8. (Measured: up to 1.3e-6 there, 3.6e-7 for tanh, 7.5e-8 for sigmoid; with Keras'
    formula in torch it is 6e-8 for ReLU's first step.)
    """
    error = np.abs(ours.astype(np.float64) - keras).max(1)
    assert (error <= 1e-5 * np.abs(keras).max(1)).all()
    assert error.max() <= 1.5e-6


def test_the_data_are_those_of_the_document(data: Dataset) -> None:
    oracle = oracle_of("circles")
    np.testing.assert_allclose(data.x_train.numpy(), oracle["X"], rtol=0, atol=2e-7)
    np.testing.assert_array_equal(data.y_train.numpy(), oracle["y"])


def test_loss_of_every_step(replay: Replay) -> None:
    np.testing.assert_allclose(replay.losses, replay.oracle["loss_step"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("epoch", "tolerance"), [(3, 1e-6), (100, 1e-5)])
def test_weights_after(replay: Replay, epoch: int, tolerance: float) -> None:
    for number in LAYERS:
        kernel, bias = replay.kernels[epoch - 1][number - 1], replay.biases[epoch - 1][number - 1]
        np.testing.assert_allclose(kernel.T, replay.oracle[f"kernels_{number}"][epoch], rtol=0, atol=tolerance)
        np.testing.assert_allclose(bias, replay.oracle[f"biases_{number}"][epoch], rtol=0, atol=tolerance)


@pytest.mark.parametrize("number", LAYERS)
def test_gradients_element_by_element(replay: Replay, number: int) -> None:
    ours = [
        np.concatenate([kernels[number - 1].T.ravel(), biases[number - 1]])
        for kernels, biases in zip(replay.kernel_gradients, replay.bias_gradients, strict=True)
    ]
    kernels, biases = (replay.oracle[f"{kind}_gradients_{number}"] for kind in ("kernel", "bias"))
    assert_gradients(np.stack(ours), np.hstack([kernels.reshape(RECORDED, -1), biases]))


@pytest.mark.parametrize("number", LAYERS)
def test_the_monitor_sees_keras_gradients(replay: Replay, number: int) -> None:
    keras = replay.oracle[f"kernel_gradients_{number}"].astype(np.float64).reshape(RECORDED, -1)
    expected = {
        "mean": keras.mean(1),
        "std": keras.std(1),
        "rms": np.sqrt(np.square(keras).mean(1)),
        "min": keras.min(1),
        "max": keras.max(1),
        "zero_fraction": (keras == 0).mean(1),
    }
    largest = np.abs(keras).max(1)
    for statistic, values in expected.items():
        ours = replay.monitor.history.series("weight_gradient", statistic)[:RECORDED, number - 1]
        error = np.abs(ours - values)
        assert (error <= 1e-5 * largest).all(), statistic
        assert error.max() <= 1.5e-6, statistic


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_with_keras_own_formula_of_the_loss_the_recorded_gradients_agree_to_1e_minus_6(act: str, data: Dataset) -> None:
    oracle = oracle_of(f"manual_{act}")
    model, optimizer = network(oracle, act)

    def keras_loss(output: Tensor, y: Tensor) -> Tensor:
        p = torch.sigmoid(output[:, 0]).clamp(1e-7, 1 - 1e-7)
        return -torch.where(y == 1, torch.log(p + 1e-7), torch.log(1 - p + 1e-7)).mean()

    with vg.watch(model, optimizer, every=1, histograms=False) as monitor:
        training.train(
            model, data, optimizer, monitor, loss_fn=keras_loss, epochs=RECORDED // 32,
            training_batches=keras_batches(oracle["order"], data), on_epoch=lambda epoch: None,
        )  # fmt: skip
    for number in LAYERS:
        keras = oracle[f"kernel_gradients_{number}"].astype(np.float64).reshape(RECORDED, -1)
        for statistic, values in (
            ("mean", keras.mean(1)),
            ("std", keras.std(1)),
            ("min", keras.min(1)),
            ("max", keras.max(1)),
        ):
            ours = monitor.history.series("weight_gradient", statistic)[:, number - 1]
            np.testing.assert_allclose(ours, values, rtol=0, atol=1e-6)


def test_the_101_records_of_the_document(replay: Replay) -> None:
    """Mean and population std of each layer's gradient, to 1e-6 and 5e-5 of its RMS; for ReLU to 5e-4 of it.

    Over 3,200 steps rounding adds up to weights that are up to 6e-6 apart (as in every other replay of these runs),
    and the gradient of a fitted network is the small sum of larger ones of both signs: ReLU's last, of the 8 samples
    left over, is 3e-5 and comes out 2.8e-4 off, tanh's 1e-5, sigmoid's 4e-5 at a step where it passes through zero.
    The 10 first records agree to 5e-5 of the RMS for all three.
    """
    assert replay.monitor.history.steps == list(range(STEPS))
    rms = np.hypot(replay.oracle["grad_mean"], replay.oracle["grad_std"])
    loose = 5e-4 if replay.model[1].__class__ is nn.ReLU else 5e-5
    for statistic in ("mean", "std"):
        ours = replay.monitor.history.series("weight_gradient", statistic)[RECORDS]
        error = np.abs(ours - replay.oracle[f"grad_{statistic}"])
        relative = np.divide(error, rms, out=np.where(error > 0, np.inf, 0.0), where=rms > 0)
        assert relative[:10].max() <= 5e-5
        assert relative.max() <= loose
        assert error.max() <= 2e-6


def test_the_weight_statistics_of_each_epoch(replay: Replay) -> None:
    """The first of them are Keras' of epoch -1. What the monitor shows of a step are the weights before it."""
    for statistic in ("mean", "std"):
        ours = replay.monitor.history.series("weight", statistic)[::PER_EPOCH]
        after = [getattr(np.asarray(kernel, np.float64), statistic)() for kernel in replay.kernels[-1]]
        keras = replay.oracle[f"w_{statistic}"]
        np.testing.assert_allclose(np.vstack([ours, after]), keras, rtol=0, atol=2e-6)
        np.testing.assert_allclose(ours[0], keras[0], rtol=0, atol=3e-7)


def test_the_first_snapshot_holds_the_initial_weights(replay: Replay) -> None:
    first = replay.monitor.history[0]
    assert first.step == 0
    assert [layer.tag for layer in first.layers] == [
        "1-fc1-2x5", "2-fc2-5x5", "3-fc3-5x5", "4-fc4-5x5", "5-fc5-5x1",
    ]  # fmt: skip
    for number, layer in enumerate(first.layers, start=1):
        assert_is_tensor(layer.weight, torch.from_numpy(replay.oracle[f"kernels_{number}"][0]))


def test_accuracy_and_loss_before_and_after(replay: Replay) -> None:
    """The document prints .500 to .652 for sigmoid, .502 to .994 for tanh, .503 to .995 for ReLU."""
    last = replay.epochs[-1]
    assert (last.number, last.step) == (EPOCHS, STEPS)
    assert round(replay.before.accuracy, 3) == float(replay.oracle["acc_before"])
    assert round(last.train.accuracy, 3) == float(replay.oracle["acc_after"])
    assert last.train.loss == pytest.approx(float(replay.oracle["full_loss_after"]), abs=1e-6)


def test_a_run_samples_the_101_records() -> None:
    """By its schedule here; that a whole run's 32 batches an epoch lead to it is asserted with the bands below."""
    sampled, _ = training.sampling(STEPS, PER_EPOCH, last=True)
    assert [step for step in range(STEPS) if sampled(step)] == RECORDS


@pytest.mark.parametrize(("act", "low", "high"), [("sigmoid", 0.95, 1.0), ("relu", 0.4, 0.6)])
def test_torchs_own_rmsprop_would_invert_the_document(act: str, low: float, high: float, data: Dataset) -> None:
    """With lr=1e-2, alpha=.99, eps=1e-8 the sigmoid network learns (.995) and the ReLU network does not (.500)."""
    oracle = oracle_of(f"manual_{act}")
    model, _ = network(oracle, act)
    optimizer = torch.optim.RMSprop(model.parameters())
    epochs: list[evaluation.Epoch] = []
    with vg.watch(model, optimizer, every=STEPS, histograms=False) as monitor:
        training.train(
            model, data, optimizer, monitor, loss_fn=evaluation.loss_function(2), epochs=EPOCHS,
            training_batches=keras_batches(oracle["order"], data), on_epoch=epochs.append,
        )  # fmt: skip
    assert low <= epochs[-1].train.accuracy <= high


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_the_weight_capture_of_the_fitted_networks(act: str, data: Dataset) -> None:
    """Keras' 101 captured weights, shown by the monitor. The training between them was recorded without batch order."""
    oracle = oracle_of(f"fit_{act}")
    model, _ = network(oracle, act)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    with vg.watch(model, still, every=1, histograms=False) as monitor:
        for epoch in range(EPOCHS + 1):
            put(model, oracle, epoch)
            still.zero_grad()
            model(data.x_train[:BATCH]).sum().backward()
            still.step()
    for statistic in ("mean", "std"):
        ours = monitor.history.series("weight", statistic)
        np.testing.assert_allclose(ours, oracle[f"w_{statistic}"], rtol=0, atol=4e-7)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_the_score_of_the_fitted_networks(act: str, data: Dataset) -> None:
    """The published 0.6649572 / .588, 0.0129180 / .993 and 0.0168959 / .994, from Keras' final weights."""
    oracle = oracle_of(f"fit_{act}")
    model, _ = network(oracle, act)
    loss_fn = evaluation.loss_function(2)
    assert round(evaluation.scores(model, data, loss_fn)[0].accuracy, 3) == float(oracle["acc_before"])
    put(model, oracle, EPOCHS)
    score, _ = evaluation.scores(model, data, loss_fn)
    assert round(score.accuracy, 3) == float(oracle["acc_after"])
    assert score.loss == pytest.approx(float(oracle["evaluate_loss"]), abs=3e-7)


SEEDS = range(10)
FIVE_LAYERS = {act: {"act": act} for act in ACTIVATIONS}
BASELINES = {
    "2-5-1 relu": {"act": "relu", "hidden": (5,)},
    "2-5-1 sigmoid": {"act": "sigmoid", "hidden": (5,)},
    "2-5-5-5-1 sigmoid": {"act": "sigmoid", "hidden": (5, 5, 5)},
}


@dataclass(frozen=True)
class Outcome:
    """What is kept of a run: the final score, the sampled steps, and the gradients' std [record, layer]."""

    score: evaluation.Score
    steps: list[int]
    std: Array


def outcome(config: recipes.TrainConfig) -> Outcome:
    result = training.run(config)
    history = result.monitor.history
    return Outcome(result.epochs[-1].train, history.steps, history.series("weight_gradient", "std"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    """All runs of our own, 10 seeds each, as many at a time as there are cores; of a baseline only the end counts."""
    runs = str(tmp_path_factory.mktemp("runs"))
    networks = FIVE_LAYERS | {
        name: {**given, "init": "glorot", "optimizer": "adam", "every": STEPS} for name, given in BASELINES.items()
    }
    configs = [
        recipes.recipe("circles", seed=seed, runs=runs, name=f"{name} {seed}", **given)
        for name, given in networks.items()
        for seed in SEEDS
    ]
    workers = min(os.cpu_count() or 1, 8)
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        done = list(pool.map(outcome, configs))
    return {name: done[i * len(SEEDS) : (i + 1) * len(SEEDS)] for i, name in enumerate(networks)}


def median_within(values: list[float], band: tuple[float, float]) -> bool:
    """The median over our 10 seeds lies between the smallest and the largest of Keras' seeds."""
    assert len(values) == len(SEEDS)
    return band[0] <= float(np.median(values)) <= band[1]


@pytest.mark.parametrize(
    ("act", "accuracy", "loss"),
    [
        ("sigmoid", (0.542, 0.834), (0.578, 0.684)),
        ("tanh", (0.991, 0.996), (0.0117, 0.0251)),
        ("relu", (0.953, 0.996), (0.0107, 0.204)),
    ],
)
def test_final_scores_lie_in_keras_band(
    outcomes: dict[str, list[Outcome]], act: str, accuracy: tuple[float, float], loss: tuple[float, float]
) -> None:
    assert median_within([run.score.accuracy for run in outcomes[act]], accuracy)
    assert median_within([run.score.loss for run in outcomes[act]], loss)


@pytest.mark.parametrize(
    ("act", "first_record", "run"),
    [
        ("sigmoid", (0.010, 0.131), (0.024, 0.128)),
        ("tanh", (0.58, 2.2), (2.6, 12.5)),
        ("relu", (0.11, 15.0), (1.2, 15.0)),
    ],
)
def test_first_layer_over_last_lies_in_keras_band(
    outcomes: dict[str, list[Outcome]], act: str, first_record: tuple[float, float], run: tuple[float, float]
) -> None:
    """Std of the first layer's gradient over the last layer's: untrained, and of the medians over a run's records."""
    assert all(x.steps == RECORDS for x in outcomes[act])
    assert median_within([x.std[0, 0] / x.std[0, -1] for x in outcomes[act]], first_record)
    medians = [np.median(x.std, axis=0) for x in outcomes[act]]
    assert median_within([float(median[0] / median[-1]) for median in medians], run)


@pytest.mark.parametrize(
    ("name", "accuracy", "loss"),
    [
        ("2-5-1 relu", (0.762, 0.992), (0.173, 0.521)),
        ("2-5-1 sigmoid", (0.448, 0.897), (0.641, 0.693)),
        ("2-5-5-5-1 sigmoid", (0.398, 0.615), (0.658, 0.693)),
    ],
)
def test_baselines_lie_in_keras_band(
    outcomes: dict[str, list[Outcome]], name: str, accuracy: tuple[float, float], loss: tuple[float, float]
) -> None:
    """Keras 2.7 and 3.15 train these by one rule (Adam, Glorot uniform), so their bands are of 20 seeds, 10 of each."""
    assert median_within([run.score.accuracy for run in outcomes[name]], accuracy)
    assert median_within([run.score.loss for run in outcomes[name]], loss)


def test_the_recipe_is_the_documents() -> None:
    config = recipes.recipe("circles", act="tanh")
    assert (config.optimizer, config.lr, config.momentum, config.weight_decay) == ("rmsprop", 1e-3, 0.0, 0.0)
    optimizer = recipes.make_optimizer(nn.Sequential(nn.Linear(2, 5)), config)
    for group in optimizer.param_groups:
        assert (group["alpha"], group["eps"], group["centered"]) == (0.9, 1e-7, False)
