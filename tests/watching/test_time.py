"""The gradient through time, against `torch.autograd.grad` step by step, and what may not change by measuring it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import vgrad_torch as vg
from vgrad_torch.records import LayerSnapshot, TimeProfile

STEPS = 200


class Reader(nn.Module):
    """A recurrent layer over a sequence, and a head on its last output."""

    def __init__(
        self, kind: Callable[..., nn.RNNBase], scale: float = 1.0, forget: float | None = None, **how: Any
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(8, 32, **{"batch_first": True, **how})
        self.head = nn.Linear(32, 2)
        with torch.no_grad():
            for name, parameter in self.rnn.named_parameters():
                if "weight_hh" in name:
                    parameter.mul_(scale)
                if forget is not None and "bias_hh" in name:
                    parameter[32:64] = forget

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0][:, -1])
        return out


def batch(steps: int = STEPS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, steps, 8, generator=generator), torch.randint(0, 2, (16,), generator=generator)


def watched(model: nn.Module, x: Tensor, y: Tensor, **how: Any) -> list[LayerSnapshot]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with vg.watch(model, optimizer, every=1, **how) as monitor:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return list(monitor.history[0].layers)


def profile(layer: LayerSnapshot) -> TimeProfile:
    assert layer.time is not None
    return layer.time


def truth(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """The norm of dL/dx_t at each step, in double precision."""
    x = x.double().requires_grad_()
    loss = nn.functional.cross_entropy(model.double()(x), y)
    (gradient,) = torch.autograd.grad(loss, [x])
    model.float()
    return [float(step.norm()) for step in gradient.unbind(1)]


MODELS: dict[str, Callable[[], Reader]] = {
    "RNN": lambda: Reader(nn.RNN),
    "RNN, recurrent weights x 0.1": lambda: Reader(nn.RNN, 0.1),
    "RNN, recurrent weights x 3": lambda: Reader(nn.RNN, 3.0),
    "LSTM": lambda: Reader(nn.LSTM),
    "LSTM, forget bias 3": lambda: Reader(nn.LSTM, forget=3.0),
    "GRU": lambda: Reader(nn.GRU),
    "two layers": lambda: Reader(nn.GRU, num_layers=2),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_profile_is_what_autograd_says(name: str) -> None:
    """Weights x 3 make the network chaotic: rounding grows with the gradient, so the sequence is short there."""
    steps = 12 if "x 3" in name else 60
    (x, y), model = batch(steps), MODELS[name]()
    exact = truth(model, x, y)
    found = profile(watched(model, x, y)[0])
    assert (found.steps, found.last) == (steps, steps - 1)
    assert list(found.gradients) == pytest.approx(exact, rel=1e-3, abs=1e-30)
    back = [gradient / exact[-1] for gradient in exact[::-1]]
    for horizon, limit in ((found.tenth, 0.1), (found.hundredth, 0.01)):
        wanted = next((k for k, share in enumerate(back) if share < limit), None)
        assert horizon == wanted


@pytest.mark.parametrize(("name", "tenth", "hundredth"), [("RNN", 3, 8), ("LSTM", 5, 10), ("GRU", 4, 9)])
def test_how_far_back_the_usual_layers_learn(name: str, tenth: int, hundredth: int) -> None:
    """The horizon of one network depends on its weights: within a fifth, or one step."""
    found = profile(watched(MODELS[name](), *batch())[0])
    for horizon, wanted in ((found.tenth, tenth), (found.hundredth, hundredth)):
        assert horizon is not None
        assert abs(horizon - wanted) <= max(1.0, 0.2 * wanted)


def test_a_large_forget_bias_makes_the_horizon_much_longer() -> None:
    plain, biased = (profile(watched(MODELS[name](), *batch())[0]) for name in ("LSTM", "LSTM, forget bias 3"))
    assert plain.tenth is not None
    assert (biased.tenth or STEPS) > 5 * plain.tenth


def test_recurrent_weights_that_are_too_large_explode() -> None:
    assert profile(watched(MODELS["RNN, recurrent weights x 3"](), *batch())[0]).growth > 1e3


def test_measuring_asks_for_a_gradient_and_changes_no_bit() -> None:
    x, y = batch(20)
    for make in MODELS.values():
        free, seen = make(), make()
        nn.functional.cross_entropy(free(x), y).backward()
        watched(seen, x, y)
        for a, b in zip(free.parameters(), seen.parameters(), strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert torch.equal(a.grad, b.grad)
        assert x.grad is None
        assert not x.requires_grad
        assert not seen.rnn._forward_pre_hooks


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(9, 8), nn.GRU(8, 32), nn.Linear(40, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        _, h = self.rnn(x)
        out: Tensor = self.head(torch.cat([h[0], x[-1]], 1))
        return out


def test_an_input_that_others_use_too_counts_through_the_layer_alone() -> None:
    torch.manual_seed(0)
    tokens, y = torch.randint(0, 9, (15, 4)), torch.tensor([0, 1, 0, 1])
    found = profile(next(layer for layer in watched(Embedded(), tokens, y) if layer.name == "rnn"))
    assert (found.steps, found.last) == (15, 14)
    torch.manual_seed(0)
    torch.randint(0, 9, (15, 4))
    model = Embedded().double()
    x = model.embed(tokens)
    through = x.detach().requires_grad_()
    _, h = model.rnn(through)
    nn.functional.cross_entropy(model.head(torch.cat([h[0], x[-1]], 1)), y).backward()
    assert through.grad is not None
    assert list(found.gradients) == pytest.approx([float(g.norm()) for g in through.grad], rel=1e-4)


class Tokens(nn.Module):
    """An embedding, and attention over all positions."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.head, self.batch_dimension = nn.Linear(8, 2), 0 if batch_first else 1

    def forward(self, tokens: Tensor) -> Tensor:
        return self.after(self.embed(tokens))

    def after(self, x: Tensor) -> Tensor:
        attended = self.attention(x, x, x, need_weights=False)[0]
        out: Tensor = self.head(attended.select(1 - self.batch_dimension, 0))
        return out


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_embedding_has_a_profile_over_positions(batch_first: bool) -> None:
    torch.manual_seed(0)
    model, y = Tokens(batch_first=batch_first), torch.tensor([0, 1, 0, 1])
    tokens = torch.randint(0, 9, (4, 7) if batch_first else (7, 4))
    found = profile(watched(model, tokens, y)[0])
    assert (found.steps, found.last) == (7, None)
    x = model.double().embed(tokens).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model.after(x), y), [x])
    exact = [float(g.norm()) for g in gradient.unbind(1 if batch_first else 0)]
    assert list(found.gradients) == pytest.approx(exact, rel=1e-4)


def test_an_embedding_of_single_tokens_has_no_profile() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 2))
    layers = watched(model, torch.randint(0, 9, (4,)), torch.tensor([0, 1, 0, 1]))
    assert [layer.time for layer in layers] == [None, None]


def test_a_loss_on_every_step_has_no_horizon() -> None:
    torch.manual_seed(0)
    model = nn.RNN(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with vg.watch(model, optimizer, every=1) as monitor:
        model(torch.randn(20, 3, 8))[0].square().mean().backward()
        optimizer.step()
    found = profile(monitor.history[0].layers[0])
    assert (found.steps, found.last, found.tenth, found.hundredth) == (20, None, None, None)


def test_packed_sequences_have_a_profile() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, torch.tensor([9, 7, 4]), batch_first=True)
            out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
            return self.head(out[:, 3])  # type: ignore[no-any-return]

    x, y = torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 0])
    exact = truth(Packed(), x, y)
    found = profile(watched(Packed(), x, y)[0])
    assert (found.steps, found.last) == (9, 3)
    assert list(found.gradients) == pytest.approx(exact, rel=1e-4, abs=1e-12)


class Loop(nn.Module):
    """A cell that is called once for each step."""

    def __init__(self, kind: Callable[..., nn.RNNCellBase] = nn.RNNCell) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head = kind(8, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for step in x.unbind(1):
            h = self.cell(step, h)
        out: Tensor = self.head(h if isinstance(h, Tensor) else h[0])  # type: ignore[index]
        return out


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_in_a_loop_is_one_row_with_a_profile_over_its_calls(kind: type[nn.RNNCellBase]) -> None:
    layers = watched(Loop(kind), *batch())
    assert [(layer.label, layer.sources) for layer in layers] == [("cell", ()), ("head", ("cell",))]
    found = profile(layers[0])
    assert (found.steps, found.last) == (STEPS, STEPS - 1)
    assert found.tenth is not None
    assert 1 <= found.tenth <= 15


def test_the_profile_over_calls_is_that_of_autograd() -> None:
    (x, y), model = batch(30), Loop()
    found = profile(watched(model, x, y)[0])
    model = Loop().double()
    states: list[Tensor] = []
    h = None
    for step in x.double().unbind(1):
        h = model.cell(step, h)
        states.append(h)
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model.head(h), y), states)
    assert list(found.gradients) == pytest.approx([float(g.norm()) for g in gradients], rel=1e-4)


def test_a_profile_of_a_long_sequence_is_bounded() -> None:
    found = TimeProfile.of([float(i) for i in range(1, 10_001)], 9_999)
    assert len(found.gradients) <= 256
    assert found.gradients[-1] == 10_000
    assert (found.steps, found.tenth, found.hundredth) == (10_000, 9_001, 9_901)


@pytest.mark.parametrize("steps", [16, 17, 40])
def test_a_network_by_hand_that_loops_over_shared_layers_is_judged(steps: int) -> None:
    torch.manual_seed(0)
    inner, over, head = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 1)
    model = nn.ModuleList([inner, over, head])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vg.watch(model, optimizer, every=1) as monitor:
        state = torch.zeros(8, 16)
        for _ in range(steps):
            state = torch.tanh(inner(torch.randn(8, 4)) + over(state))
        head(state).square().mean().backward()
        optimizer.step()
    assert monitor.diagnose().verdict
