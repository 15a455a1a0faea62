"""The graph that is read from autograd, against graphs written by hand, and the product of factors along a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import vgrad_torch as vg
from vgrad_torch.records import Snapshot
from vgrad_torch.verdict.waterfall import waterfall

WIDTH = 6
X = torch.randn(5, 4, WIDTH, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(2))

Graph = dict[str, tuple[str, ...]]
"""A layer or a junction -> what it gets its input from."""


class Net(nn.Module):
    """Layers by name, and a function of them and the input as forward."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.run(self, x)
        return out


def linears(names: str) -> dict[str, nn.Module]:
    return {name: nn.Linear(WIDTH, WIDTH) for name in names}


def attention(m: Any, x: Tensor) -> Tensor:
    out: Tensor = torch.softmax(m.q(x) @ m.k(x).transpose(-1, -2), -1) @ m.v(x)
    return out


def unet() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = torch.relu(m.a(x))
        b = torch.relu(m.b(F.max_pool2d(a, 2)))
        out: Tensor = m.d(torch.cat([m.c(b), a], 1))
        return out

    down = {"a": nn.Conv2d(2, 4, 3, padding=1), "b": nn.Conv2d(4, 8, 3, padding=1)}
    return Net(forward, **down, c=nn.ConvTranspose2d(8, 4, 2, 2), d=nn.Conv2d(8, 2, 1))


def residual(m: Any, x: Tensor) -> Tensor:
    e = m.e(x)
    s = e + m.b(torch.relu(m.a(e)))
    out: Tensor = m.y(s + m.d(torch.relu(m.c(s))))
    return out


class Bare(nn.Module):
    """A model that computes with parameters and has no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(WIDTH, WIDTH) / 2) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first) * self.scale @ self.second.T


GRAPHS: dict[str, tuple[Callable[[], nn.Module], Tensor, Graph]] = {
    "chain": (
        lambda: Net(lambda m, x: m.c(torch.tanh(m.b(torch.tanh(m.a(x))))), **linears("abc")), X,
        {"a": (), "b": ("a",), "c": ("b",)},
    ),
    "in-place activation": (
        lambda: Net(lambda m, x: m.b(torch.relu_(m.a(x))), **linears("ab")), X, {"a": (), "b": ("a",)},
    ),
    "residual chain": (
        lambda: Net(residual, **linears("eabcdy")), X,
        {"e": (), "a": ("e",), "b": ("a",), "b+": ("e", "b"),
         "c": ("b+",), "d": ("c",), "d+": ("b+", "d"), "y": ("d+",)},
    ),
    "two parallel branches": (
        lambda: Net(lambda m, x: m.y(torch.relu(m.b(h := m.a(x))) + torch.tanh(m.c(h))), **linears("abcy")), X,
        {"a": (), "b": ("a",), "c": ("a",), "c+": ("b", "c"), "y": ("c+",)},
    ),
    "q, k and v": (
        lambda: Net(lambda m, x: m.o(attention(m, torch.tanh(m.e(x)))), **linears("eqkvo")), X,
        {"e": (), "q": ("e",), "k": ("e",), "v": ("e",), "v+": ("q", "k", "v"), "o": ("v+",)},
    ),
    "U-Net's skip": (unet, IMAGES, {"a": (), "b": ("a",), "c": ("b",), "a+": ("c", "a"), "d": ("a+",)}),
    "shared layer": (
        lambda: Net(lambda m, x: m.b(torch.tanh(m.a(torch.tanh(m.a(x))))), **linears("ab")), X,
        {"a": (), "a#2": ("a",), "b": ("a#2",)},
    ),
    "two heads": (
        lambda: Net(lambda m, x: m.b(h := m.a(x)) + m.c(h), **linears("abc")), X, {"a": (), "b": ("a",), "c": ("a",)},
    ),
    "bare parameters": (Bare, X, {"first": (), "second": ("first",)}),
    "multi-head attention": (
        lambda: Net(lambda m, x: m.y(m.att(h := m.e(x), h, h)[0]), e=nn.Linear(WIDTH, WIDTH), y=nn.Linear(WIDTH, 2),
                    att=nn.MultiheadAttention(WIDTH, 2)), X,
        {"e": (), "att.in_proj_weight": ("e",), "att.out_proj": ("att.in_proj_weight",), "y": ("att.out_proj",)},
    ),
    "a weight that another module uses": (
        lambda: Net(lambda m, x: m.b(F.linear(x, m.a.weight).tanh()), **linears("ab")), X, {"a": (), "b": ("a",)},
    ),
    "a loop over time": (
        lambda: Net(looped, wx=nn.Linear(WIDTH, WIDTH), cell=nn.RNNCell(WIDTH, WIDTH), y=nn.Linear(WIDTH, 2)), X,
        {"wx": (), "cell": ("wx",), "y": ("cell",)},
    ),
}  # fmt: skip


def looped(m: Any, x: Tensor) -> Tensor:
    h = torch.zeros(4, WIDTH)
    for step in m.wx(x)[:3]:
        h = m.cell(step, h)
    out: Tensor = m.y(h)
    return out


def watched(model: nn.Module, x: Tensor) -> Snapshot:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with vg.watch(model, optimizer, every=1, histograms=False) as monitor:
        model(x).square().mean().backward()
        optimizer.step()
    return monitor.history[0]


def graph(snapshot: Snapshot) -> Graph:
    found = {layer.label: layer.sources for layer in snapshot.layers}
    found |= {junction.label: junction.sources for junction in snapshot.junctions}
    return {label: sources for label, sources in found.items() if sources is not None}


def same(a: Graph, b: Graph) -> bool:
    """Equal but for the order of sources."""
    return a.keys() == b.keys() and all(set(a[label]) == set(b[label]) for label in a)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_graph_is_the_one_written_down(name: str) -> None:
    make, x, expected = GRAPHS[name]
    torch.manual_seed(0)
    found = graph(watched(make(), x))
    assert same(found, expected), found


@pytest.mark.parametrize("name", GRAPHS)
def test_the_product_along_the_path_is_the_ratio_that_autograd_gives(name: str) -> None:
    make, x, _ = GRAPHS[name]
    torch.manual_seed(0)
    model = make()
    found = waterfall(watched(model, x))
    assert found is not None
    first, last = found.path[-1], found.path[0]
    if name in ("bare parameters", "multi-head attention", "a weight that another module uses", "a loop over time"):
        assert found.product == pytest.approx(found.ratio, rel=1e-9)  # layers whose outputs are not to be had here
        return
    torch.manual_seed(0)
    gradients = autograd_rms(make(), x)
    assert found.product == pytest.approx(gradients[first] / gradients[last], rel=1e-5)


def autograd_rms(model: nn.Module, x: Tensor) -> dict[str, float]:
    """RMS of the gradient at each call's output, in double precision, by `torch.autograd.grad`."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            label = name if name not in outputs else f"{name}#2"
            outputs[label] = output
            return output.clone()  # what follows may change it in place

        return hook

    model = model.double()
    for name, module in model.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(keep(name))
    loss = model(x.double()).square().mean()
    found = torch.autograd.grad(loss, list(outputs.values()))
    return {label: float(g.square().mean().sqrt()) for label, g in zip(outputs, found, strict=True)}


def test_a_residual_stream_is_followed_past_its_branches() -> None:
    make, x, _ = GRAPHS["residual chain"]
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        model.a.weight.mul_(1e-3)  # type: ignore[union-attr, operator]
        model.c.weight.mul_(1e-3)  # type: ignore[union-attr, operator]
    snapshot = watched(model, x)
    found = waterfall(snapshot)
    assert found is not None
    assert (found.path, [factor.kind for factor in found.factors]) == (("y", "e"), ["weight", "stream"])
    assert found.factors[1].gain == pytest.approx(1, rel=1e-2)  # nearly all comes through the skips
    for junction in snapshot.junctions:
        assert junction.gradient_rms == pytest.approx(snapshot["e"].output_gradient.rms, rel=1e-2)  # type: ignore[union-attr]


def test_the_generator_of_a_gan_is_read_without_its_critic() -> None:
    torch.manual_seed(0)
    make, critic = GRAPHS["chain"][0], GRAPHS["chain"][0]()
    generator = make()
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.01)
    with vg.watch(generator, optimizer, every=1) as monitor:
        critic(generator(X).detach()).mean().backward()
        optimizer.zero_grad()
        (-critic(generator(X)).mean()).backward()
        optimizer.step()
    assert graph(monitor.history[0]) == GRAPHS["chain"][2]


def test_hundreds_of_layers_on_one_stream_have_edges_in_proportion() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        for layer in m.children():
            x = x + torch.tanh(layer(x))
        return x

    def edges(count: int) -> int:
        model = Net(forward, **{f"l{i}": nn.Linear(WIDTH, WIDTH) for i in range(count)})
        return sum(map(len, graph(watched(model, X)).values()))

    assert edges(600) - edges(400) == edges(400) - edges(200)


def test_where_the_graph_cannot_be_read_there_is_no_waterfall() -> None:
    layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    model = Net(lambda m, x: checkpoint(m.layers, x, use_reentrant=True), layers=layers)
    snapshot = watched(model, X.clone().requires_grad_())
    assert snapshot.graph_problem.startswith("activation checkpointing")
    assert waterfall(snapshot) is None


def test_the_graph_is_not_kept_alive() -> None:
    """A validation that forgets no_grad() may run between two steps; its tensors must go as they would unwatched."""
    model = GRAPHS["residual chain"][0]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    gone: list[bool] = []

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.mark = Mark()
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0]

    class Mark:
        def __del__(self) -> None:
            gone.append(True)

    with vg.watch(model, optimizer, every=1):
        model(Kept.apply(X.clone().requires_grad_()))  # type: ignore[no-untyped-call]
        assert gone
