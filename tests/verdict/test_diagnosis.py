"""The verdict on small networks that watch() saw: each word where it belongs, and nowhere else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vgrad_torch as vg
from vgrad_torch.errors import UsageError
from vgrad_torch.records import LayerSnapshot, Snapshot, Stats
from vgrad_torch.verdict.advice import advise
from vgrad_torch.verdict.cutoffs import CUTOFFS, EARLY
from vgrad_torch.verdict.diagnosis import Diagnosis, diagnose
from vgrad_torch.verdict.evidence import gather
from vgrad_torch.verdict.labels import two_digits
from vgrad_torch.verdict.rules import VERDICTS
from vgrad_torch.verdict.waterfall import waterfall
from vgrad_torch.watching.selection import Layers

CrossEntropy = nn.functional.cross_entropy


def mlp(depth: int, act: str, init: str, *, width: int = 16, seed: int = 0) -> nn.Sequential:
    return vg.build_mlp([8] + [width] * depth + [3], act, init, generator=torch.Generator().manual_seed(seed))


def batch(size: int = 32) -> tuple[Tensor, Tensor]:
    """Three classes that a line separates."""
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


def watched(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 1,
    *,
    loss_of: Callable[[Tensor, Tensor], Tensor] = CrossEntropy,
    data: tuple[Tensor, Tensor] | None = None,
    every: int = 1,
    layers: Layers = None,
) -> list[Snapshot]:
    x, y = data or batch()
    with vg.watch(model, optimizer, every=every, histograms=False, layers=layers) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()
    return list(monitor.history)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def after(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1, every: int = 1) -> Diagnosis:
    return diagnose(watched(model, optimizer, steps, every=every), optimizer=type(optimizer).__name__)


@pytest.mark.parametrize("steps", [1, EARLY + 30])
def test_a_deep_sigmoid_network_vanishes_with_sgd(steps: int) -> None:
    model = mlp(8, "sigmoid", "torch")
    result = after(model, sgd(model), steps, every=10)
    assert result.verdict == "vanishing"
    assert result.alarm
    assert result.evidence.signal < -5
    assert result.evidence.tenth == "fc7"
    activations = sum(suspect.share for suspect in result.suspects if suspect.factor.kind == "activation")
    assert 0.5 < activations < 0.8  # sigmoid's slope of a quarter at most, against weights of 0.58 a layer
    assert result.layers[0].word == "weak"


def test_a_deeper_one_vanishes_with_adam_too() -> None:
    model = mlp(14, "sigmoid", "torch")
    assert after(model, adam(model)).verdict == "vanishing"


def test_the_optimizer_counts() -> None:
    model = mlp(12, "relu", "torch")
    samples = watched(model, sgd(model))
    verdicts = {name: diagnose(samples, optimizer=name).verdict for name in ("SGD", "AdamW")}
    assert verdicts["SGD"] == "vanishing"
    assert verdicts["AdamW"] in ("slow", "healthy")
    assert "Adam trained networks like this one" in diagnose(samples, optimizer="SGD").paragraph()


@pytest.mark.parametrize(("act", "init"), [("relu", "he"), ("tanh", "glorot"), ("selu", "lecun")])
@pytest.mark.parametrize("steps", [1, 20])
def test_what_keeps_the_signal_is_healthy(act: str, init: str, steps: int) -> None:
    model = mlp(6, act, init, width=32)
    result = after(model, sgd(model, 0.01), steps)
    assert result.verdict == "healthy"
    assert not result.suspects
    assert all(layer.word == "healthy" for layer in result.layers)


def test_a_converged_network_is_healthy_though_its_gradients_are_tiny() -> None:
    model = mlp(3, "relu", "he", width=32)
    samples = watched(model, torch.optim.Adam(model.parameters(), lr=0.01), 6000, every=100)
    tiny = [layer.weight_gradient.rms for layer in samples[-1].layers if layer.weight_gradient]
    assert max(tiny) < 1e-7  # where every absolute rule fires
    for optimizer in ("SGD", "Adam", "RMSprop"):
        assert diagnose(samples, optimizer=optimizer).verdict == "healthy"


def test_given_losses_decide_whether_it_learns() -> None:
    model = mlp(8, "sigmoid", "torch")
    samples = watched(model, sgd(model))
    assert diagnose(samples, optimizer="SGD", losses=[1.0] * 10).verdict == "vanishing"
    assert diagnose(samples, optimizer="SGD", losses=[1.0, 0.9, 0.7, 0.5, 0.3]).verdict == "healthy"


@pytest.mark.parametrize("place", [0, 2])
def test_a_frozen_layer_is_frozen(place: int) -> None:
    model = mlp(4, "relu", "he")
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    linears[place].requires_grad_(False)
    result = diagnose(watched(model, sgd(model), layers=nn.Linear), optimizer="SGD")
    assert result.verdict == "frozen"
    assert result.evidence.frozen == (f"fc{place + 1}",)
    assert not result.evidence.cut_off
    assert [layer.word for layer in result.layers].count("frozen") == 1


def test_where_only_the_last_layer_trains_the_others_are_frozen() -> None:
    model = mlp(3, "sigmoid", "torch")
    for layer in list(model)[:-1]:
        layer.requires_grad_(False)
    optimizer = torch.optim.SGD(list(model)[-1].parameters(), lr=0.01)
    result = diagnose(watched(model, optimizer, layers=nn.Linear), optimizer="SGD")
    assert (result.verdict, result.evidence.frozen) == ("frozen", ("fc1", "fc2", "fc3"))
    result = diagnose(watched(model, optimizer), optimizer="SGD")
    assert (result.verdict, result.because) == ("frozen", "Only fc4 is trained; 3 other layers are not.")


def test_layers_that_are_not_trained_are_counted_and_not_shown() -> None:
    model = mlp(3, "relu", "he")
    model[0].requires_grad_(False)
    result = diagnose(watched(model, sgd(model)), optimizer="SGD")
    assert (result.verdict, result.evidence.folded) == ("healthy", 1)
    assert [layer.label for layer in result.layers] == ["fc2", "fc3", "fc4"]
    assert "1 layer that is not trained is not shown." in result.reasons()


def test_a_layer_that_the_optimizer_does_not_have_is_frozen() -> None:
    model = mlp(3, "relu", "he")
    others = [p for name, p in model.named_parameters() if not name.startswith("fc2")]
    result = diagnose(watched(model, torch.optim.SGD(others, lr=0.01)), optimizer="SGD")
    assert (result.verdict, result.evidence.frozen) == ("frozen", ("fc2",))


class Branches(nn.Module):
    """Two ways to the output; the first can be cut off, or be left out."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.top = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 3)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.top(torch.relu(self.cut(self.one(x)) + self.two(x)))
        return out


@pytest.mark.parametrize("cut", [Tensor.detach, torch.zeros_like])
@pytest.mark.parametrize("to_none", [True, False])
def test_a_branch_that_is_cut_off_gets_no_gradient(cut: Callable[[Tensor], Tensor], to_none: bool) -> None:
    model = Branches(cut)
    optimizer = sgd(model, 0.01)
    if not to_none:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    result = after(model, optimizer)
    assert result.verdict == "no gradient"
    assert result.evidence.cut_off == ("one",)
    assert [layer.word for layer in result.layers] == ["no gradient", "healthy", "healthy"]


def test_branches_that_get_a_gradient_are_healthy() -> None:
    model = Branches(nn.Identity())
    result = after(model, sgd(model, 0.01))
    assert result.verdict == "healthy"
    assert not result.evidence.chain


def with_bias(model: nn.Sequential, bias: float) -> nn.Sequential:
    """All hidden units' biases, as the dial of dying ReLUs has them."""
    with torch.no_grad():
        for layer in list(model)[:-1]:
            if isinstance(layer, nn.Linear):
                layer.bias.fill_(bias)
    return model


def circles(depth: int) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    model = vg.build_mlp([2] + [32] * depth + [1], "relu", "he", generator=torch.Generator().manual_seed(0))
    angle = torch.linspace(0, 4 * math.pi, 64)
    radius = torch.tensor([1.0, 0.5]).repeat(32)
    return model, (torch.stack([radius * angle.cos(), radius * angle.sin()], 1), torch.tensor([0.0, 1.0]).repeat(32))


def binary(output: Tensor, y: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(output[:, 0], y)


@pytest.mark.parametrize(("bias", "dead"), [(0.0, False), (-0.3, False), (-1.0, True), (-2.0, True)])
@pytest.mark.parametrize("steps", [1, 40])
def test_the_dial_of_dying_relus(bias: float, dead: bool, steps: int) -> None:
    model, data = circles(4)
    samples = watched(with_bias(model, bias), sgd(model, 0.01), steps, loss_of=binary, data=data)
    result = diagnose(samples, optimizer="SGD")
    assert (result.verdict == "dead") is dead, result
    assert result.alarm is dead


def doubled(model: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def test_twice_he_explodes_and_is_to_be_clipped_at_a_large_rate_only() -> None:
    paragraphs = {}
    for lr in (0.1, 0.001):
        model, data = circles(8)
        optimizer = torch.optim.SGD(doubled(model).parameters(), lr=lr)
        result = diagnose(watched(model, optimizer, loss_of=binary, data=data), optimizer="SGD")
        assert result.verdict == "exploding"
        assert result.suspects[0].factor.kind == "weight"
        assert result.suspects[0].factor.gain > 2
        large = [layer.word == "large steps" for layer in result.layers]
        assert large == [(layer.update_ratio or 0) > 0.5 for layer in result.layers]
        assert any(large) == (lr == 0.1)
        paragraphs[lr] = result.paragraph()
    assert "clip_grad_norm_" in paragraphs[0.1]
    assert "clip_grad_norm_" not in paragraphs[0.001]


def test_nan_is_non_finite_and_the_place_is_named() -> None:
    model = mlp(3, "relu", "he")
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.nan
    with pytest.warns(RuntimeWarning, match="NaN"):
        samples = watched(model, sgd(model))
    result = diagnose(samples, optimizer="SGD")
    assert result.verdict == "non-finite"
    assert "the weight of fc1" in result.because
    assert result.layers[0].word == "non-finite"


def test_a_gradient_that_float32_cannot_hold_has_vanished_not_died() -> None:
    model = mlp(80, "sigmoid", "torch")
    samples = watched(model, adam(model))
    first = samples[0].layers[0].output_gradient
    assert first is not None
    assert first.rms == 0
    assert diagnose(samples, optimizer="Adam").verdict == "vanishing"


class Residual(nn.Module):
    """Blocks x + W act(W x), as deep as one likes."""

    def __init__(self, blocks: int, act: nn.Module) -> None:
        super().__init__()
        self.stem, self.head, self.act = nn.Linear(8, 16), nn.Linear(16, 3), act
        self.lower = nn.ModuleList(nn.Linear(16, 16) for _ in range(blocks))
        self.upper = nn.ModuleList(nn.Linear(16, 16) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.stem(x)
        for lower, upper in zip(self.lower, self.upper, strict=True):
            h = h + upper(self.act(lower(h)))
        out: Tensor = self.head(h)
        return out


def test_residual_connections_carry_the_gradient_through_sigmoids() -> None:
    torch.manual_seed(0)
    model = Residual(12, nn.Sigmoid())
    result = after(model, sgd(model, 0.01))
    assert result.verdict == "healthy"
    assert not result.evidence.chain
    assert (result.evidence.first, result.evidence.last) == ("stem", "head")
    assert result.confidence is None
    assert "order of the calls" in result.paragraph()


class Shortcut(nn.Module):
    """A deep body, and a way around it that its first layer has no part in."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.body, self.side, self.head = mlp(depth, "sigmoid", "glorot")[:-1], nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x) + self.side(x))
        return out


@pytest.mark.parametrize(("depth", "verdict"), [(1, "healthy"), (6, "cannot tell"), (16, "vanishing")])
def test_outside_what_was_calibrated_only_the_clear_cases_are_judged(depth: int, verdict: str) -> None:
    torch.manual_seed(0)
    model = Shortcut(depth)
    result = after(model, sgd(model, 0.01))
    assert not result.evidence.chain
    assert result.verdict == verdict


def test_convolutions_are_no_fully_connected_layers() -> None:
    torch.manual_seed(0)
    stack = [module for n in (1, 8, 8) for module in (nn.Conv2d(n, 8, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*stack, nn.Flatten(), nn.Linear(8 * 16, 3))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    optimizer = sgd(model, 0.01)
    kinds = (nn.Conv2d, nn.Linear)
    with vg.watch(model, optimizer, every=1, layers=kinds, histograms=False) as monitor:
        CrossEntropy(model(torch.randn(32, 1, 4, 4)), batch()[1]).backward()
        optimizer.step()
    result = diagnose(monitor.history, optimizer="SGD")
    assert (result.verdict, result.evidence.chain, result.confidence) == ("healthy", False, None)


def test_a_first_weight_of_zeros_gives_no_number_and_no_error() -> None:
    model = mlp(8, "sigmoid", "torch")
    with torch.no_grad():
        next(model.parameters()).zero_()
    result = after(model, sgd(model))
    assert math.isnan(result.evidence.drive)
    assert result.verdict == "cannot tell"


def test_too_little_to_judge() -> None:
    with pytest.raises(UsageError, match="no sample"):
        diagnose([], optimizer="SGD")
    model = nn.Linear(8, 3)
    result = after(model, sgd(model))
    assert result.verdict == "cannot tell"
    assert "A comparison needs two." in result.because


def test_one_late_sample_does_not_say_whether_the_error_falls() -> None:
    model = mlp(6, "sigmoid", "glorot")
    optimizer = sgd(model, 1e-6)
    x, y = batch()
    with vg.watch(model, optimizer, every=lambda step: step == 5, histograms=False) as monitor:
        for _ in range(6):
            optimizer.zero_grad()
            CrossEntropy(model(x), y).backward()
            optimizer.step()
    result = diagnose(monitor.history, optimizer="SGD")
    assert (len(monitor.history), result.verdict) == (1, "cannot tell")
    assert "only sample" in result.because


def test_without_the_gradient_scaler_there_is_nothing_to_judge() -> None:
    model = mlp(4, "sigmoid", "glorot")
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu")
    x, y = batch()
    with vg.watch(model, optimizer, every=1, histograms=False) as monitor:
        scaler.scale(CrossEntropy(model(x), y)).backward()
        with pytest.warns(RuntimeWarning, match="scaler"):
            scaler.step(optimizer)
    result = diagnose(monitor.history, optimizer="SGD")
    assert result.verdict == "cannot tell"
    assert "scaler" in result.because


def scaled(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, y: factor * CrossEntropy(output, y)


NETS: Sequence[tuple[str, str, int]] = [("sigmoid", "torch", 8), ("sigmoid", "glorot", 3), ("relu", "he", 6)]


@pytest.mark.parametrize(("act", "init", "depth"), NETS)
@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_the_scale_of_the_loss_does_not_matter(
    act: str, init: str, depth: int, factor: float, optimizer: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    twins = [mlp(depth, act, init) for _ in range(2)]
    plain, other = (
        watched(model, optimizer(model), loss_of=scaled(f)) for model, f in zip(twins, (1.0, factor), strict=True)
    )
    one, two = gather(plain), gather(other)
    assert (two.signal, two.drive, two.slope) == pytest.approx((one.signal, one.drive, one.slope), abs=1e-3)
    assert two.strength == pytest.approx(one.strength, abs=1e-3)
    for name in ("SGD", "Adam"):
        assert diagnose(plain, optimizer=name).verdict == diagnose(other, optimizer=name).verdict


@pytest.mark.parametrize(("act", "init", "depth"), NETS)
def test_a_batch_twice_as_large_does_not_matter(act: str, init: str, depth: int) -> None:
    x, y = batch()
    twice = torch.cat([x, x]), torch.cat([y, y])
    twins = [mlp(depth, act, init) for _ in range(2)]
    plain, other = (watched(model, sgd(model), data=data) for model, data in zip(twins, ((x, y), twice), strict=True))
    one, two = gather(plain), gather(other)
    assert (two.signal, two.drive, two.strength) == pytest.approx((one.signal, one.drive, one.strength), abs=1e-4)
    assert diagnose(plain, optimizer="SGD").verdict == diagnose(other, optimizer="SGD").verdict


@pytest.mark.parametrize(("act", "init", "depth"), NETS)
def test_neither_do_other_samples_in_a_larger_batch(act: str, init: str, depth: int) -> None:
    models = [mlp(depth, act, init) for _ in (32, 64, 256)]
    result = [watched(m, sgd(m), data=batch(size)) for m, size in zip(models, (32, 64, 256), strict=True)]
    assert len({diagnose(samples, optimizer="SGD").verdict for samples in result}) == 1
    assert len({diagnose(samples, optimizer="Adam").verdict for samples in result}) == 1


@pytest.mark.parametrize(("act", "init", "depth"), NETS)
def test_a_gradient_scaler_does_not_matter(act: str, init: str, depth: int) -> None:
    plain = mlp(depth, act, init)
    one = after(plain, sgd(plain))
    model = mlp(depth, act, init)
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu")
    x, y = batch()
    with vg.watch(model, optimizer, every=1, histograms=False, scaler=scaler) as monitor:
        scaler.scale(CrossEntropy(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    two = diagnose(monitor.history, optimizer="SGD")
    assert two.verdict == one.verdict
    assert two.evidence.signal == pytest.approx(one.evidence.signal, abs=1e-4)


def test_an_optimizer_that_was_not_calibrated_gets_the_verdict_on_which_all_others_agree() -> None:
    weak, clear, good = mlp(12, "relu", "torch"), mlp(20, "sigmoid", "torch"), mlp(6, "relu", "he")
    verdicts = [diagnose(watched(m, sgd(m)), optimizer="LBFGS").verdict for m in (weak, clear, good)]
    assert verdicts == ["cannot tell", "vanishing", "healthy"]


@pytest.mark.parametrize("act", ["sigmoid", "tanh", "relu", "selu", "gelu"])
@pytest.mark.parametrize("depth", [1, 4, 12])
def test_the_factors_of_a_chain_multiply_up_to_the_measured_ratio(act: str, depth: int) -> None:
    model = mlp(depth, act, "glorot")
    (sample,) = watched(model, sgd(model))
    result = waterfall(sample)
    assert result is not None
    assert result.chain
    assert result.product == pytest.approx(result.ratio, rel=1e-5)
    kinds = [(factor.layer, factor.kind) for factor in result.factors]
    expected = [step for n in range(depth + 1, 1, -1) for step in ((f"fc{n}", "weight"), (f"fc{n - 1}", "activation"))]
    assert kinds == expected
    x, y = batch()
    h, outputs = x, []
    for module in mlp(depth, act, "glorot"):
        h = module(h)
        if isinstance(module, nn.Linear):
            outputs.append(h)
    first, last = torch.autograd.grad(CrossEntropy(h, y), [outputs[0], outputs[-1]])
    exact = float(first.double().square().mean().sqrt() / last.double().square().mean().sqrt())
    assert result.ratio == pytest.approx(exact, rel=1e-5)
    falling = [share for _, share in result.shares()]
    assert sum(falling) == pytest.approx(1.0) or not falling
    assert falling == sorted(falling, reverse=True)


def test_a_way_around_a_layer_is_no_chain() -> None:
    torch.manual_seed(0)
    model = Residual(3, nn.Tanh())
    result = waterfall(watched(model, sgd(model))[0])
    assert result is not None
    assert not result.chain


def test_the_table_and_the_paragraph() -> None:
    model = mlp(8, "sigmoid", "torch")
    result = after(model, sgd(model))
    text = str(result)
    table, paragraph = text.split("\n\n")
    *rows, legend = table.splitlines()
    assert len(rows) == 1 + len(result.layers)
    assert legend == "weak: for its size, it gets less than 1% of the gradient of others like it."
    asked = [layer.update_ratio or 0 for layer in result.layers]  # SGD's first step is proportional to the gradient
    weak = [row.endswith(" weak") for row in rows[1:]]
    assert weak == sorted(weak, reverse=True)  # the first layers
    assert all(ratio < 0.01 * max(asked) for ratio, is_weak in zip(asked, weak, strict=True) if is_weak)
    assert paragraph.replace("\n", " ") == result.paragraph()
    assert paragraph.startswith("vanishing: ")
    assert "\nNext: " in paragraph
    assert result.confidence is not None
    record = result.confidence
    trained = f"{record.total - record.right} of {record.total} test networks with this verdict trained: "
    assert f"{trained}{1 - record.share:.0%} (95% interval: " in result.paragraph()
    markdown = result.markdown()
    assert markdown.count("\n| ") == 1 + len(result.layers)
    assert "**vanishing**: " in markdown
    assert markdown.endswith(f"\n\n{legend}\n")


def test_every_verdict_has_its_advice() -> None:
    model = mlp(2, "relu", "he")
    evidence = after(model, sgd(model)).evidence
    for verdict in VERDICTS:
        assert advise(verdict, evidence, "SGD", None)[0].startswith("Next: ")


def test_large_steps_are_explained_too() -> None:
    model = doubled(mlp(12, "relu", "he"))
    rows = str(after(model, sgd(model))).split("\n\n")[0].splitlines()
    assert rows[-1] == "large steps: the last step changed the weights by more than 0.5 of their size."


def stats_of(rms: float, count: int = 64, zeros: int = 0) -> Stats:
    return Stats(count, zeros, 0, 0.0, rms, -rms, rms)


@pytest.mark.parametrize(("act", "init", "depth"), NETS)
def test_strength_is_what_autograd_gives(act: str, init: str, depth: int) -> None:
    model, (x, y) = mlp(depth, act, init), batch()
    h, outputs = x, []
    for module in model:
        h = module(h)
        if isinstance(module, nn.Linear):
            outputs.append(h)
    weight = next(model.parameters())
    result = torch.autograd.grad(CrossEntropy(h, y), [outputs[0], outputs[-1], weight])
    first, last, asked = (float(gradient.double().norm()) for gradient in result)
    upwards = float(outputs[-2].detach().norm() / outputs[0].detach().norm())  # all hidden layers are equally wide
    drive = asked / (float(weight.detach().double().norm()) * last * math.sqrt(len(x)))
    expected = first / last / min(upwards, 1.0) ** 0.75 * drive**0.25
    assert after(model, adam(model)).evidence.strength == pytest.approx(math.log10(expected), abs=1e-4)


def test_the_reason_names_the_compared_number_and_the_threshold() -> None:
    model = mlp(14, "sigmoid", "torch")
    result = after(model, adam(model))
    numbers = [two_digits(10**value) for value in (result.evidence.lost, result.evidence.strength)]
    assert f"times {numbers[0]} (what fc1 received at step 0" in result.because
    line = two_digits(10 ** CUTOFFS["adam"]["start"].vanishing)
    assert f"is {numbers[1]}; below {line}, networks rarely train with Adam." in result.because


def test_norms_not_rms_are_compared() -> None:
    """A pyramid: a wide first layer has a small RMS and the same norm."""
    wide = LayerSnapshot(1, "fc1", "Linear", "4x400", output_gradient=stats_of(0.1, 6400))
    narrow = LayerSnapshot(2, "fc2", "Linear", "400x4", output_gradient=stats_of(1.0, 64))
    assert gather([Snapshot(0, (wide, narrow))]).signal == pytest.approx(0.0)


def test_medians_of_the_newest_half_are_judged() -> None:
    def at(step: int, first: float) -> Snapshot:
        layers = (
            LayerSnapshot(1, "fc1", "Linear", "4x4", output_gradient=stats_of(first)),
            LayerSnapshot(2, "fc2", "Linear", "4x4", output_gradient=stats_of(1.0)),
        )
        return Snapshot(step, layers)

    result = gather([at(0, 1e-9), at(1, 1e-9), at(2, 1e-9), at(3, 0.1), at(4, 1e-9), at(5, 0.1)])
    assert (result.samples, result.step, result.since) == (3, 5, 0)
    assert result.signal == pytest.approx(-1.0)


class Block(nn.Module):
    """A residual block whose branch begins as zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.b(torch.relu(self.a(x)))
        return x + branch


class Experts(nn.Module):
    """Three experts; one of them gets all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        used = torch.tensor([1.0, 0.0, 0.0])
        return torch.tanh(
            torch.stack([expert(x) * share for expert, share in zip(self.experts, used, strict=True)]).sum(0)
        )


def zero_head() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (lambda: nn.Sequential(nn.Linear(16, 16), Block(), Block(), nn.Linear(16, 4)), "healthy"),
        (lambda: nn.Sequential(nn.Linear(16, 16), nn.Tanh(), Experts(), nn.Linear(16, 4)), "healthy"),
        (zero_head, "cannot tell"),
    ],
)
def test_zeros_that_no_activation_made_are_not_dead_units(make: Callable[[], nn.Module], verdict: str) -> None:
    torch.manual_seed(0)
    model = make()
    result = diagnose(watched(model, sgd(model, 0.1), data=(torch.rand(32, 16), torch.arange(32) % 4)), optimizer="SGD")
    assert result.verdict == verdict, result
    assert result.because.startswith("The weight of layer 4 is still zero") == (verdict == "cannot tell")


class Adapted(nn.Module):
    """A layer that is not trained, and a low-rank branch whose second matrix begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)
        self.base.requires_grad_(False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.base(x) + self.b(self.a(x)))


@pytest.mark.parametrize("optimizer", [sgd, lambda model: torch.optim.Adam(model.parameters(), lr=3e-3)])
@pytest.mark.parametrize(
    "make",
    [zero_head, lambda: nn.Sequential(*(Adapted() for _ in range(4)), nn.Linear(16, 4))],
    ids=["zero head", "adapters"],
)
def test_a_network_that_begins_with_zeros_is_judged_once_it_can_be(make: Any, optimizer: Any) -> None:
    """Its first gradients are zero or tiny, which is no fault. No sample of the training is an alarm."""
    torch.manual_seed(0)
    model = make()
    x = torch.randn(64, 16)
    samples = watched(model, optimizer(model), 200, data=(x, x[:, :4].argmax(1)), every=5)
    name = type(optimizer(model)).__name__
    verdicts = [diagnose(samples[: count + 1], optimizer=name) for count in range(len(samples))]
    assert {result.verdict for result in verdicts} <= {"cannot tell", "healthy"}
    assert verdicts[0].verdict == "cannot tell"
    assert verdicts[-1].verdict == "healthy"
    assert math.isfinite(verdicts[-1].evidence.signal)


def test_a_deep_sigmoid_network_with_a_zero_head_vanishes_all_the_same() -> None:
    model = mlp(10, "sigmoid", "torch")
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]
    samples = watched(model, sgd(model), 100, every=5)
    assert diagnose(samples[:1], optimizer="SGD").verdict == "cannot tell"
    result = diagnose(samples, optimizer="SGD")
    assert result.verdict == "vanishing"
    assert result.evidence.first == "fc1"


def test_a_dead_layer_is_named() -> None:
    model, data = circles(4)
    result = diagnose(watched(with_bias(model, -2.0), sgd(model, 0.01), loss_of=binary, data=data), optimizer="SGD")
    assert re.search(
        r"of the output gradient of fc\d is exactly zero\. This is the state before training\.", result.because
    )


def test_known_losses_count_more_than_the_gradient_at_the_output() -> None:
    """With Adam at a rate of 1 the gradient at the output falls, and the loss does not."""
    model, data = circles(4)
    samples = watched(model, torch.optim.Adam(model.parameters(), lr=0.01), 300, every=20, loss_of=binary, data=data)
    assert diagnose(samples, optimizer="Adam").evidence.residual < 0.7
    assert diagnose(samples, optimizer="Adam").verdict == "healthy"
    result = diagnose(samples, optimizer="Adam", losses=[2.30, 2.31] * 150)
    assert (result.verdict, result.alarm) == ("not learning", True)
    assert "The loss has not fallen: it was 2.305 and is 2.305." in result.because


def test_an_exploding_gradient_is_no_alarm_where_most_such_networks_trained() -> None:
    model, data = circles(20)
    optimizer = torch.optim.Adam(doubled(model).parameters(), lr=0.001)
    result = diagnose(watched(model, optimizer, loss_of=binary, data=data), optimizer="Adam")
    assert result.verdict == "exploding"
    assert result.confidence
    assert result.confidence.share < 0.5
    assert not result.alarm
    assert "24 of 39 test networks with this verdict trained: 62%" in result.paragraph()


def test_numbers_for_names_are_called_layers_in_sentences() -> None:
    model = nn.Sequential(*mlp(8, "sigmoid", "torch"))
    result = after(model, sgd(model))
    assert "; layer 12 receives less than a tenth." in result.paragraph()
    assert re.search(r"The largest causes are the \w+ (of|after) layer \d+ \(factor ", result.paragraph())
    assert result.layers[0].label == "0"


def advice(act: str, init: str, *, depth: int = 30, width: int = 8, gain: float = 1.0) -> str:
    """The advice for the first of twenty networks whose gradient vanishes or explodes."""
    for seed in range(20):
        model = vg.build_mlp(
            [8] + [width] * depth + [3], act, init, generator=torch.Generator().manual_seed(seed), gain=gain
        )
        result = after(model, torch.optim.SGD(model.parameters(), lr=0.1))
        if result.verdict in ("vanishing", "exploding"):
            return " ".join(result.advice)
    raise AssertionError("no gradient vanishes or explodes")


WEIGHTS, ACTIVATION = "larger initial weights (he for relu", "se another activation, for example relu with he weights"


@pytest.mark.parametrize(
    ("act", "init", "gain", "present", "absent"),
    [
        ("relu", "he", 0.3, [WEIGHTS], [ACTIVATION]),
        ("relu", "he", 0.9, ["residual connections or batch normalisation. Weights"], [WEIGHTS, ACTIVATION]),
        ("sigmoid", "he", 1.0, [ACTIVATION, "the present one keeps 0.2"], [WEIGHTS]),
        ("sigmoid", "uniform", 0.3, [ACTIVATION, "Use " + WEIGHTS], []),
        ("tanh", "glorot", 0.3, [WEIGHTS], [ACTIVATION, "saturated"]),
        ("tanh", "normal", 1.0, ["of a smaller variance (he for relu"], [WEIGHTS, ACTIVATION]),
    ],
)
def test_the_advice_is_against_the_suspects(
    act: str, init: str, gain: float, present: list[str], absent: list[str]
) -> None:
    text = advice(act, init, gain=gain)
    assert [part for part in present if part not in text] == []
    assert [part for part in absent if part in text] == []


def test_batch_norm_not_the_weights_is_blamed_for_an_explosion_behind_it() -> None:
    torch.manual_seed(0)
    parts = [part for n in range(60) for part in (nn.Linear(32 if n else 8, 32), nn.BatchNorm1d(32), nn.ReLU())]
    model = nn.Sequential(*parts, nn.Linear(32, 3))
    result = after(model, sgd(model))
    assert result.verdict == "exploding"
    assert "normalisation and no residual connections" in result.advice[-1]
    assert "smaller variance" not in result.paragraph()


def test_the_learning_rate_is_not_to_blame_before_the_first_step() -> None:
    def at(step: int) -> Diagnosis:
        bad = Stats(4, 0, 4, math.nan, math.nan, math.nan, math.nan)
        return diagnose([Snapshot(step, (LayerSnapshot(1, "fc1", "Linear", "2x2", output=bad),))], optimizer="SGD")

    assert "learning rate" not in at(0).paragraph()
    assert "learning rate" in at(5).paragraph()


def test_losses_may_be_an_array_and_the_last_may_be_nan() -> None:
    model = mlp(2, "relu", "he")
    samples = watched(model, sgd(model))
    good: Any = np.array([1.0, 0.5])
    bad: Any = torch.tensor([1.0, math.inf])
    assert diagnose(samples, optimizer="SGD", losses=good).verdict == "healthy"
    assert diagnose(samples, optimizer="SGD", losses=bad).verdict == "non-finite"


def test_the_optimizer_is_to_be_named() -> None:
    model = mlp(2, "relu", "he")
    optimizer: Any = sgd(model)
    with pytest.raises(UsageError, match="optimizer must be the name of its class, such as 'SGD', not an object"):
        diagnose(watched(model, optimizer), optimizer=optimizer)
