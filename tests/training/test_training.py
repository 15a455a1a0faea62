"""The recipes, the loop, and what a run leaves behind."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor, nn

from vgrad_torch import training
from vgrad_torch.distributed.team import Team
from vgrad_torch.errors import UsageError
from vgrad_torch.tensorboard import tags
from vgrad_torch.training import evaluation, recipes
from vgrad_torch.training.nonfinite import find_nonfinite
from vgrad_torch.training.recipes import recipe
from vgrad_torch.watching.watch import watch


def short(tmp_path: Path, **given: Any) -> recipes.TrainConfig:
    return recipe("digits", **{"runs": str(tmp_path), "hidden": (16, 8), "epochs": 2, "init": "he", **given})


def test_recipes_are_those_of_the_documents() -> None:
    circles = recipe("circles")
    assert (circles.hidden, circles.init, circles.batch, circles.epochs) == ((5, 5, 5, 5), "normal", 32, 100)
    model = nn.Linear(2, 1)
    keras = recipes.make_optimizer(model, circles).defaults
    assert (keras["lr"], keras["alpha"], keras["eps"], keras["momentum"]) == (1e-3, 0.9, 1e-7, 0)
    mnist = recipe("mnist")
    assert (mnist.hidden, mnist.init, mnist.batch, mnist.epochs) == ((512, 256, 128, 64, 32, 16), "uniform", 32, 10)
    groups = recipes.make_optimizer(model, mnist).param_groups
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in groups] == [(0.025, 0.9, 1e-5), (0.025, 0.9, 0.0)]
    assert [p.dim() for g in groups for p in g["params"]] == [2, 1]


def test_what_is_given_replaces_the_recipe() -> None:
    config = recipe("circles", act="tanh", lr=0.5, hidden=(3,), seed=7, epochs=None)
    assert (config.act, config.lr, config.hidden, config.epochs) == ("tanh", 0.5, (3,), 100)
    assert config.name == "circles-tanh-normal-s7"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": -1.0}, "lr must be a positive number"),
        ({"lr": math.nan}, "lr must be a positive number"),
        ({"lr": math.inf}, "lr must be a positive number"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"weight_decay": -1e-5}, "weight_decay must be"),
        ({"epochs": 0}, "epochs must be between 1"),
        ({"batch": 0}, "batch must be between 1"),
        ({"every": 0}, "every must be between 1"),
        ({"seed": 2**80}, "seed must be between 0"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"name": "../x"}, "without a slash"),
        ({"name": ""}, "without a slash"),
    ],
)
def test_bad_values_are_refused_in_a_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe("digits", **given)


def test_a_run_leaves_its_checkpoint_its_config_and_one_event_file(tmp_path: Path) -> None:
    result = training.run(short(tmp_path))
    assert result.folder == tmp_path / "digits-relu-he-s0"
    config = json.loads((result.folder / "config.json").read_text())
    assert (config["data"], config["act"], config["hidden"], config["seed"]) == ("digits", "relu", [16, 8], 0)
    names = sorted(path.name for path in result.folder.iterdir())
    assert names[:2] == ["checkpoint.pt", "config.json"]
    assert len(names) == 3
    assert "tfevents" in names[2]


def test_a_second_run_of_the_same_name_gets_a_number(tmp_path: Path) -> None:
    folders = [training.run(short(tmp_path, epochs=1)).folder.name for _ in range(3)]
    assert folders == ["digits-relu-he-s0", "digits-relu-he-s0-2", "digits-relu-he-s0-3"]


def test_the_state_before_training_each_epochs_first_step_and_the_last_step_are_sampled(tmp_path: Path) -> None:
    result = training.run(short(tmp_path))
    assert result.monitor.history.steps == [0, 44]
    assert [epoch.number for epoch in result.epochs] == [0, 1, 2]
    assert [epoch.step for epoch in result.epochs] == [0, 44, 88]


def test_runs_of_one_config_are_equal_bit_for_bit_whatever_is_sampled(tmp_path: Path) -> None:
    def weights(**given: Any) -> list[Tensor]:
        return [p.detach() for p in training.run(short(tmp_path, **given)).model.parameters()]

    plain = weights()
    assert all(torch.equal(a, b) for a, b in zip(plain, weights(every=1), strict=True))
    assert not torch.equal(plain[0], weights(seed=1)[0])


def test_a_small_net_learns_the_digits(tmp_path: Path) -> None:
    result = training.run(short(tmp_path, hidden=(64,), epochs=10))
    assert result.epochs[0].validation.accuracy < 0.3
    assert result.epochs[-1].validation.accuracy > 0.9


def test_scores_are_means_over_all_samples() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    x = torch.tensor([[1.0], [-2.0], [3.0]])
    y = torch.tensor([1, 1, 1])
    score = evaluation.evaluate(model, x, y, evaluation.loss_function(2))
    expected = sum(math.log1p(math.exp(-v)) for v in (1.0, -2.0, 3.0)) / 3
    assert score.loss == pytest.approx(expected, rel=1e-6)
    assert score.accuracy == pytest.approx(2 / 3)


def test_at_most_50_histogram_steps_however_long_the_run() -> None:
    for steps, every in ((44 * 30, 44), (3200, 32), (4680, 1), (1_000_000, 7), (3, 1), (1, 1)):
        sampled, histograms = training.sampling(steps, every, last=True)
        chosen = [step for step in range(steps) if sampled(step) and histograms(step)]
        assert 1 <= len(chosen) <= 50
        assert (chosen[0], chosen[-1]) == (0, steps - 1)


def test_a_nan_loss_stops_the_run_and_names_step_and_layer(tmp_path: Path) -> None:
    with pytest.raises(training.NonFiniteError, match=r"at step 1: .* output of fc\d, in the forward pass"):
        training.run(short(tmp_path, lr=1e20))
    (events,) = (tmp_path / "digits-relu-he-s0").glob("*tfevents*")
    assert events.stat().st_size > 1000


def net_with_a_bad_weight(name: str) -> nn.Sequential:
    model = nn.Sequential()
    for i in range(1, 4):
        model.add_module(f"fc{i}", nn.Linear(4, 4))
    with torch.no_grad():
        weight = model.get_parameter(f"{name}.weight")
        weight[0, 0] = math.nan
    return model


@pytest.mark.parametrize("name", ["fc1", "fc3"])
def test_the_first_non_finite_value_is_found_in_the_weights(name: str) -> None:
    model = net_with_a_bad_weight(name)
    with watch(model, torch.optim.SGD(model.parameters(), lr=0.1)) as monitor:
        monitor.step = 5
        x, y = torch.ones(2, 4), torch.tensor([0, 1])
        words = find_nonfinite(model, nn.functional.cross_entropy, x, y, monitor)
    expected = f"the weight of {name} before the step (1 of 16 values)"
    assert words == f"the loss became nan at step 5: the first non-finite value is in {expected}"


def test_a_loss_that_overflows_by_itself_is_said_to() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with watch(model, torch.optim.SGD(model.parameters(), lr=0.1)) as monitor:
        x, y = torch.ones(2, 4), torch.tensor([0, 1])
        words = find_nonfinite(model, lambda out, y: out.sum() * math.inf, x, y, monitor)
    assert "only the loss is not finite, from finite outputs of up to" in words


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only 1437 samples"):
        training.run(short(tmp_path, batch=5000))


@pytest.mark.parametrize(
    ("given", "size", "words"),
    [
        ({"batch": 33}, 2, "2 processes cannot share a batch of 33 samples in equal parts; choose another --batch"),
        ({"data": "circles"}, 16, "16 processes cannot share an epoch's last batch of 8 samples in equal parts"),
        ({"norm": "batch", "batch": 4}, 4, "batch norm needs two samples in every batch"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(given: dict[str, Any], size: int, words: str) -> None:
    config = recipe(**given)
    with pytest.raises(UsageError, match=words):
        training.set_up(config, team=Team(size=size))
    training.set_up(config)


def test_the_ranks_shares_are_the_batch_dealt_one_by_one() -> None:
    x, y = torch.arange(6.0)[:, None], torch.arange(6)
    shares = [Team(rank=rank, size=3).share(lambda: [(x, y)]) for rank in range(3)]
    assert [[part.tolist() for _, part in share()] for share in shares] == [[[0, 3]], [[1, 4]], [[2, 5]]]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="a file has this name"):
        training.run(short(tmp_path, name="taken"))
    with pytest.raises(UsageError, match="cannot make the folder"):
        training.run(short(tmp_path / "taken"))


def test_another_optimizer_brings_its_own_rate() -> None:
    assert recipe("digits", optimizer="adam").lr == 1e-3
    assert recipe("digits", optimizer="adam", lr=0.5).lr == 0.5
    assert recipe("digits", optimizer="sgd").lr == 0.025
    assert recipe("circles", optimizer="rmsprop").lr == 1e-3


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", " ", "a\\b", "."])
def test_names_that_a_terminal_or_a_disk_cannot_take_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="printable"):
        recipe("digits", name=name)


def test_a_network_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit into memory"):
        training.run(short(tmp_path, hidden=(10**9, 10**9)))


def test_a_network_that_the_last_update_broke_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(training.NonFiniteError, match=r"at step 1: the first .* the output of fc\d"):
        training.run(short(tmp_path, lr=1e20, batch=1437, epochs=1))


# --- dials ----------------------------------------------------------------------------------------------------------


def ends(tmp_path: Path, data: str, **given: Any) -> float:
    result = training.run(recipe(data, **{"runs": str(tmp_path), **given}))
    return result.epochs[-1].train.accuracy


EXPLODES: dict[str, Any] = {"hidden": (32,) * 8, "init": "he", "gain": 2.0, "optimizer": "sgd", "lr": 0.1,
                            "momentum": 0.9, "epochs": 30}  # fmt: skip
FADES: dict[str, Any] = {"act": "sigmoid", "hidden": (32,) * 10, "init": "glorot", "lr": 0.1, "epochs": 10}


def test_an_exploding_net_breaks_and_clipping_fixes_it(tmp_path: Path) -> None:
    with pytest.raises(training.NonFiniteError):
        ends(tmp_path, "circles", **EXPLODES)
    assert ends(tmp_path, "circles", **EXPLODES, clip=1.0) > 0.95


def test_biases_below_zero_kill_relus(tmp_path: Path) -> None:
    calm = {**EXPLODES, "hidden": (32,) * 4, "gain": 1.0, "epochs": 20}
    assert ends(tmp_path, "circles", **calm) > 0.95
    assert ends(tmp_path, "circles", **calm, bias=-1.0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("dials", "fixed"), [({}, False), ({"norm": "layer"}, False), ({"norm": "batch"}, True), ({"residual": True}, True)]
)
def test_what_fixes_deep_sigmoids(dials: dict[str, Any], fixed: bool, tmp_path: Path) -> None:
    accuracy = ends(tmp_path, "digits", **FADES, **dials)
    assert accuracy > 0.9 if fixed else accuracy < 0.2


def test_the_gradient_that_the_optimizer_gets_is_clipped(tmp_path: Path) -> None:
    def norms(**given: Any) -> list[float]:
        history = training.run(short(tmp_path, gain=3.0, every=1, epochs=1, **given)).monitor.history
        layers = [[layer.weight_gradient for layer in snapshot.layers] for snapshot in history]
        return [math.sqrt(sum(g.count * g.rms**2 for g in gradients if g)) for gradients in layers]

    assert max(norms(clip=0.1)) <= 0.1 * (1 + 1e-5)
    assert max(norms()) > 1


def test_dials_are_in_the_name_the_config_and_the_hyperparameters(tmp_path: Path) -> None:
    config = short(tmp_path, hidden=(8, 8), norm="batch", residual=True, gain=2.0, bias=-0.5, clip=1.0, epochs=1)
    assert config.name == "digits-relu-he-batchnorm-residual-gain2-bias-0.5-clip1-s0"
    result = training.run(config)
    written = json.loads((result.folder / "config.json").read_text())
    expected = {"norm": "batch", "residual": True, "gain": 2.0, "bias": -0.5, "clip": 1.0}
    assert {key: written[key] for key in expected} == expected
    assert {key: recipes.hyperparameters(config)[key] for key in expected} == expected
    plain = recipes.hyperparameters(short(tmp_path))
    assert [plain[key] for key in expected] == ["none", False, 1.0, 0.0, 0.0]
    assert "block2.fc2" in dict(result.model.named_modules())


def test_a_first_layer_inside_a_block_is_found(tmp_path: Path) -> None:
    result = training.run(short(tmp_path, hidden=(64, 8), residual=True, epochs=1))
    assert result.monitor.history[0].layers[0].label == "block1.fc1"


def test_evaluation_uses_and_keeps_what_a_batch_norm_gathered() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))
    x, y = torch.randn(7, 2), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    whole = evaluation.evaluate(model, x, y, nn.functional.cross_entropy)
    parts = [evaluation.evaluate(model, x[i : i + 1], y[i : i + 1], nn.functional.cross_entropy) for i in range(7)]
    assert whole.loss == pytest.approx(sum(part.loss for part in parts) / 7, rel=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("data", "batch"), [("digits", 1), ("circles", 999)])
def test_batch_norm_of_a_single_sample_is_refused(data: str, batch: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch norm needs two samples in every batch"):
        training.run(recipe(data, runs=str(tmp_path), norm="batch", batch=batch))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gain": 0.0}, "gain must be a positive number, not 0.0"),
        ({"clip": -1.0}, "clip must be a positive number, not -1.0"),
        ({"clip": math.nan}, "clip must be a positive number, not nan"),
        ({"bias": math.inf}, "bias must be a finite number, not inf"),
        ({"norm": "bacth"}, "unknown norm 'bacth'; did you mean 'batch'"),
    ],
)
def test_bad_dials_are_refused_in_a_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe("digits", **given)


def logged(folder: Path, tag: str) -> list[Any]:
    """(step, tensor) of a tag in a run's event file."""
    log = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return [(event.step, make_ndarray(event.tensor_proto)) for event in log.Tensors(tag)]


def test_the_verdict_is_logged_where_it_changes_and_at_the_end(tmp_path: Path) -> None:
    deep = training.run(short(tmp_path, act="sigmoid", init="uniform", hidden=(32,) * 8, epochs=4))
    words = [(step, str(text.item())) for step, text in logged(deep.folder, tags.VERDICT)]
    assert [step for step, _ in words] == [0, 132]
    assert all("**vanishing**" in text for _, text in words)
    assert deep.diagnosis.verdict == "vanishing"
    learns = training.run(short(tmp_path, hidden=(64,), epochs=8))
    assert learns.diagnosis.verdict == "healthy"
    outcome = learns.diagnosis.evidence.outcome
    assert (outcome.start, outcome.now) == (learns.epochs[0].train.loss, learns.epochs[-1].train.loss)
    assert "**healthy**" in str(logged(learns.folder, tags.VERDICT)[-1][1].item())


def test_theory_stands_beside_what_was_measured(tmp_path: Path) -> None:
    result = training.run(short(tmp_path, act="tanh", init="glorot", hidden=(256,) * 4, epochs=1))
    (theory,) = [table for _, table in logged(result.folder, tags.THEORY)]
    first = result.monitor.history[0]
    for column, quantity in enumerate(("weight", "output", "output_gradient")):
        measured = [getattr(layer, quantity).rms for layer in first.layers]
        assert theory[:, column] == pytest.approx(measured, rel=0.4)
    inputs = [layer.input_gradient.rms for layer in first.layers[1:] if layer.input_gradient]
    assert theory[1:, 4] == pytest.approx(inputs, rel=0.4)
    log = EventAccumulator(str(result.folder)).Reload()
    described = [log.SummaryMetadata(tag).plugin_data.content for tag in (tags.THEORY, tags.PLUGIN_NAME)]
    assert len({tuple(tags.decode_axes(content).layers) for content in described}) == 1


def test_of_a_network_that_theory_does_not_know_no_line_is_drawn(tmp_path: Path) -> None:
    result = training.run(short(tmp_path, norm="layer", epochs=1))
    assert tags.THEORY not in EventAccumulator(str(result.folder)).Reload().Tags()["tensors"]


def test_a_run_that_ends_in_nan_is_not_logged_as_healthy(tmp_path: Path) -> None:
    with pytest.raises(training.NonFiniteError):
        training.run(short(tmp_path, lr=3e3, epochs=3, name="nan"))
    assert "**non-finite**" in str(logged(tmp_path / "nan", tags.VERDICT)[-1][1].item())


def test_a_stop_can_be_handed_from_one_process_to_another(tmp_path: Path) -> None:
    found = pickle.loads(pickle.dumps(training.Stopped(15, tmp_path, 1234)))
    assert (found.number, found.folder, str(found)) == (15, tmp_path, "stopped after step 1,234")
