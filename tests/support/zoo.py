"""The zoo: awkward models and training loops, and an oracle that needs no hook."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
import warnings
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from vgrad_torch.watching.selection import Layers, select

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(2))
SEQUENCES = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(3))
TOKENS = torch.randint(0, 9, (4, 5), generator=torch.Generator().manual_seed(4))
IMAGES = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(5))

STEPS = 4
Watch = Callable[..., AbstractContextManager[Any]]
Loss = Callable[[nn.Module], Tensor]
Train = Callable[[nn.Module, Watch], None]


def like(model: nn.Module, x: Tensor) -> Tensor:
    """In the precision of the model."""
    return x.to(next(model.parameters()).dtype)


def supervised(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(like(model, X)), Y)


def on(x: Tensor) -> Loss:
    """A loss of whatever the model makes of x."""
    return lambda model: total(model(like(model, x) if x.is_floating_point() else x))


def total(output: Any) -> Tensor:
    parts = [t.sin().mean() for t in tensors(output) if t.numel()]
    return torch.stack([p.float() if p.dtype.itemsize < 4 else p for p in parts]).sum()


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


def plain(loss: Loss, make: Callable[[nn.Module], Optimizer] = sgd) -> Train:
    """The loop of the tutorials."""

    def train(model: nn.Module, watch: Watch) -> None:
        optimizer = make(model)
        with watch(model, optimizer):
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss(model).backward()
                optimizer.step()

    return train


@dataclass(frozen=True)
class Case:
    """A model and its training; with `loss` its first snapshot is compared with the oracle, in double if `double`.

    `simple` makes the same net without the trick, for the oracle.
    """

    make: Callable[[], nn.Module]
    train: Train
    layers: Layers = nn.Linear
    loss: Loss | None = None
    simple: Callable[[], nn.Module] | None = None
    double: bool = True
    rel: float = 1e-4
    warns: str | None = None
    samples: bool = True


def case(
    make: Callable[[], nn.Module], loss: Loss, optimizer: Callable[[nn.Module], Optimizer] = sgd, **kw: Any
) -> Case:
    return Case(make, plain(loss, optimizer), loss=loss, **kw)


# --- the oracle ------------------------------------------------------------------------------------------------------


def mapped(f: Callable[[Tensor], Tensor], x: Any) -> Any:
    """Each floating-point tensor in a structure replaced."""
    if isinstance(x, Tensor):
        return f(x) if x.is_floating_point() or x.is_complex() else x
    if isinstance(x, dict | UserDict):
        return type(x)({key: mapped(f, value) for key, value in x.items()})
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(mapped(f, value) for value in x))
    if isinstance(x, tuple | list):
        return type(x)(mapped(f, value) for value in x)
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{field.name: mapped(f, getattr(x, field.name)) for field in fields(x)})
    return x


def tensors(x: Any) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    mapped(lambda tensor: found.setdefault(id(tensor), tensor), x)
    return list(found.values())


def weights(layer: nn.Module) -> list[Tensor]:
    """A layer's own matrices (or what its parametrized ones are made of), or else its vectors."""
    own: dict[str, Tensor] = {x: p for x, p in layer.named_parameters() if re.fullmatch(r"(parametri.*\.)?[^.]*", x)}
    matrices = [p for p in own.values() if p.dim() > 1]
    return matrices or list(own.values())


@dataclass
class Recorded:
    label: str
    layer: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]


class Recorder:
    """Every call of the watched layers of a model, by replacing their `forward`.

    Each takes copies of its inputs and returns copies of its outputs, so that neither an in-place operation nor another
    user of the same tensor gets in between: then `torch.autograd.grad` is the truth.
    """

    def __init__(self, model: nn.Module, layers: Layers) -> None:
        self.calls: list[Recorded] = []
        self.layers = {name: layer.module for name, layer in select(model, layers).layers.items()}
        for name, layer in self.layers.items():
            layer.forward = partial(self._call, name, layer, layer.forward)

    def _call(self, name: str, layer: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        copies: dict[int, Tensor] = {}
        held: list[Tensor] = []

        def copied(x: Tensor) -> Tensor:
            held.append(x)
            return copies.setdefault(id(x), x.clone() if x.requires_grad else x)

        args, kwargs = mapped(copied, args), mapped(copied, kwargs)
        inputs = [x.clone() if x.requires_grad else x for x in copies.values()]  # what an in-place layer may change
        again = {id(x): y for x, y in zip(copies.values(), inputs, strict=True)}
        args, kwargs = mapped(lambda x: again[id(x)], args), mapped(lambda x: again[id(x)], kwargs)
        outputs = forward(*args, **kwargs)
        label = numbered(name, [call.label for call in self.calls])
        self.calls.append(Recorded(label, layer, list(copies.values()), tensors(outputs)))
        return mapped(lambda x: x.clone(), outputs)

    def truth(self, loss: Tensor) -> dict[str, dict[str, Tensor | None]]:
        """For each call the tensors behind the five quantities, flat; None where there is none.

        Without the calls of a layer that the loss does not depend on, if it depends on others.
        """
        found = {
            call.label: {
                "weight": flat(weights(call.layer)),
                "weight_gradient": flat(gradients(loss, weights(call.layer))),
                "output": flat(call.outputs),
                "output_gradient": flat(gradients(loss, call.outputs)),
                "input_gradient": flat(gradients(loss, call.inputs)),
            }
            for call in list(self.calls)
        }
        names = {label: label.split("#")[0] for label in found}
        reached = {names[label] for label, entry in found.items() if entry["output_gradient"] is not None}
        kept: dict[str, dict[str, Tensor | None]] = {}
        for label, entry in found.items():
            if entry["output_gradient"] is not None or names[label] not in reached:
                kept[numbered(names[label], kept)] = entry
        return kept


def numbered(name: str, labels: Iterable[str]) -> str:
    number = sum(label.split("#")[0] == name for label in labels) + 1
    return name if number == 1 else f"{name}#{number}"


def gradients(loss: Tensor, sources: Sequence[Tensor]) -> list[Tensor]:
    wanted = [x for x in sources if x.requires_grad]
    found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True) if wanted else ()
    return [g.to_dense() for g in found if g is not None]


def flat(found: Iterable[Tensor]) -> Tensor | None:
    real = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in found]
    return torch.cat([x.detach().reshape(-1) for x in real]) if real else None


def oracle(model: nn.Module, loss: Loss, layers: Layers, double: bool) -> dict[str, dict[str, Tensor | None]]:
    twin = copy.deepcopy(model)
    if double:
        twin = twin.double()
    recorder = Recorder(twin, layers)
    return recorder.truth(loss(twin))


# --- models ----------------------------------------------------------------------------------------------------------


def chain(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 3))


def inplace() -> nn.Module:
    return chain(lambda: nn.ReLU(inplace=True))


class Net(nn.Module):
    """Layers by name, and a function of them and the input as forward."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def L(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs)


def reused() -> nn.Module:
    return Net(lambda m, x: m.last(torch.tanh(m.first(torch.tanh(m.first(x))))), first=L(6, 6), last=L(6, 3))


def shared() -> nn.Module:
    """One module at two places of the model; `named_modules` knows it by the first."""
    block = nn.Sequential(L(6, 6), nn.Tanh())
    return nn.Sequential(OrderedDict(a=block, b=nn.Sequential(block, L(6, 3))))


def over_time() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = torch.zeros(x.shape[1], 6, dtype=x.dtype)
        for step in x:
            h = torch.tanh(m.inner(h) + m.outer(step))
        return h

    return Net(forward, inner=L(6, 6), outer=L(6, 6))


def packed() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = pack_padded_sequence(m.below(x), torch.tensor([5, 3, 2, 1]))
        out, _ = m.rnn(h)
        return pad_packed_sequence(out)[0]

    return Net(forward, below=L(6, 6), rnn=nn.GRU(6, 4))


class Gated(nn.Module):
    """Uses its input twice."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = L(6, 9), L(6, 9), L(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def residual(*blocks: nn.Module) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = m.below(x)
        for block in m.blocks:
            out = block(h)
            h = h + (out[0] if isinstance(out, tuple) else out)
        return h

    return Net(forward, below=L(6, 6), blocks=nn.ModuleList(blocks))


class Attention(nn.Module):
    """Self attention: torch computes it in another way where query, key and value are one object."""

    def __init__(self, *, by_keyword: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.by_keyword = by_keyword

    def forward(self, x: Tensor) -> Tensor:
        given = {"query": x, "key": x, "value": x}
        out: Tensor = self.attention(**given)[0] if self.by_keyword else self.attention(*given.values())[0]
        return out


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


class Structured(nn.Module):
    """Takes and returns a dict, a nest of tuples or a dataclass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = L(6, 4), L(4, 3)

    def forward(self, x: Any) -> Any:
        (given,) = tensors(x)
        h = torch.tanh(self.a(given))
        kinds: dict[str, Any] = {
            "dict": {"logits": self.b(h), "hidden": [h]},
            "userdict": UserDict({"logits": self.b(h), "hidden": [h]}),
            "tuple": (self.b(h), (h, None)),
            "dataclass": Output(self.b(h), h),
        }
        return kinds[self.kind]


def structured(kind: str) -> nn.Module:
    pack: dict[str, Callable[[Tensor], Any]]
    pack = {"dict": lambda h: {"x": h}, "userdict": lambda h: {"x": h}, "tuple": lambda h: (h,), "dataclass": Output}
    return Net(lambda m, x: m.inner(pack[kind](torch.tanh(m.below(x)))), below=L(6, 6), inner=Structured(kind))


class Caching(nn.Module):
    """Appends to a list that its caller keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = L(6, 6)

    def forward(self, x: Tensor, cache: list[Tensor]) -> Tensor:
        cache.append(self.linear(x))
        return cache[-1]


def caching() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        cache: list[Tensor] = []
        for _ in range(3):
            x = m.layer(x, cache)
        return torch.stack(cache).sum(0)

    return Net(forward, layer=Caching())


class Halves(nn.Module):
    """Two outputs of one node of the graph; the second one gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = L(6, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, second = self.linear(x).chunk(2, -1)
        return first, second


class Positions(nn.Module):
    """Returns its parameter as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6))

    def forward(self) -> Tensor:
        return self.table


class Tree(nn.Module):
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = L(6, 6)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        below = self(x, depth - 1) if depth else x
        return torch.tanh(self.linear(below))


def tied() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        return m.decoder(torch.tanh(m.middle(m.embedding(x))))

    net = Net(forward, embedding=nn.Embedding(9, 6), middle=L(6, 6), decoder=nn.Linear(6, 9, bias=False))
    net.decoder.weight = net.embedding.weight  # type: ignore[union-attr]
    return net


def sparse() -> nn.Module:
    return Net(lambda m, x: m.head(m.embedding(x)), embedding=nn.Embedding(9, 6, sparse=True), head=L(6, 3))


def sparse_optimizer(model: nn.Module) -> Optimizer:
    return torch.optim.SparseAdam(model.get_submodule("embedding").parameters(), lr=0.1)


def convolutions() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def encoder(dropout: float = 0.0) -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def frozen() -> nn.Module:
    net = chain()
    net[0].requires_grad_(False)
    net[2].requires_grad_(False)
    return nn.Sequential(OrderedDict(start=L(6, 6), rest=net))


def unused() -> nn.Module:
    return Net(lambda m, x: m.used(x), used=L(6, 3), idle=L(6, 3), aside=L(6, 3))


def aside() -> nn.Module:
    """`aside` is called, but no loss depends on it."""

    def forward(m: Any, x: Tensor) -> Any:
        m.aside(x)
        return m.used(x)

    return Net(forward, used=L(6, 3), aside=L(6, 3))


def with_own_hooks() -> nn.Module:
    net = chain()
    net[2].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    net[0].register_forward_hook(lambda module, args, output: None)
    net[4].register_full_backward_hook(lambda module, before, after: None)
    net.get_parameter("4.weight").register_hook(lambda gradient: gradient * 0.5)
    return net


def partly_evaluating() -> nn.Module:
    net = nn.Sequential(L(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), L(5, 3))
    net[1].eval()
    net[3].eval()
    return net


def twice_once_without_gradients() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        with torch.no_grad():
            target = m.layer(x * 2)
        return m.layer(x) - target

    return Net(forward, layer=L(6, 3))


def checkpointed(reentrant: bool | None) -> nn.Module:
    """In both forms of activation checkpointing, and with None without it."""

    def forward(m: Any, x: Tensor) -> Any:
        h = m.first(x)
        for part in (lambda h: torch.relu_(m.b(torch.tanh(m.a(h)))), lambda h: torch.relu_(m.d(torch.tanh(m.c(h))))):
            h = part(h) if reentrant is None else checkpoint(part, h, use_reentrant=reentrant)  # type: ignore[no-untyped-call]
        return m.last(h)

    return Net(forward, first=L(6, 6), a=L(6, 5), b=L(5, 6), c=L(6, 5), d=L(5, 6), last=L(6, 3))


def complex_numbers() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = m.b(m.a(x.to(torch.complex64)))
        return torch.view_as_real(h)

    return Net(forward, a=nn.Linear(6, 4, dtype=torch.complex64), b=nn.Linear(4, 3, dtype=torch.complex64))


def on_complex(model: nn.Module) -> Tensor:
    return total(model(X))


def by_function(model: nn.Module) -> Tensor:
    output = torch.func.functional_call(model, dict(model.named_parameters()), (like(model, X),))
    return F.cross_entropy(output, Y)


def jagged(model: nn.Module) -> Tensor:
    x = like(model, X)
    nested = torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 4, 5, 12]))
    out: Tensor = model(nested).values()
    return F.cross_entropy(out, Y)


MODELS = {
    "in-place activation": case(inplace, supervised),
    "in-place activation on a view": case(inplace, on(SEQUENCES)),
    "in-place layer watched": case(inplace, supervised, layers=nn.ReLU),
    "in-place layer watched, on a view": case(inplace, on(SEQUENCES), layers=nn.ReLU),
    "re-used module": case(reused, supervised),
    "one module at two places": case(shared, supervised),
    "module that calls itself": case(Tree, on(X), layers=nn.Linear),
    "LSTM": case(lambda: nn.LSTM(6, 4, num_layers=2), on(SEQUENCES), layers=(nn.LSTM,)),
    "GRU of packed sequences": case(packed, on(SEQUENCES), layers=(nn.GRU, nn.Linear)),
    "bidirectional LSTM in a residual": case(
        lambda: residual(nn.LSTM(6, 3, bidirectional=True)), on(SEQUENCES), layers=nn.LSTM
    ),
    "Linear in a loop over time": case(over_time, on(SEQUENCES)),
    "Bilinear": case(
        lambda: Net(lambda m, x: m.both(m.a(x), m.b(x)), a=L(6, 4), b=L(6, 5), both=nn.Bilinear(4, 5, 3)),
        supervised, layers=(nn.Linear, nn.Bilinear),
    ),
    "Bilinear of a tensor with itself, in a residual": case(
        lambda: residual(Net(lambda m, x: m.both(x, x), both=nn.Bilinear(6, 6, 6))), on(X), layers=nn.Bilinear
    ),
    "gated block in a residual": case(lambda: residual(Gated(), Gated(), Gated()), on(X), layers=r"^blocks\.\d$"),
    "dict in and out": case(lambda: structured("dict"), on(X), layers=Structured),
    "mapping in and out": case(lambda: structured("userdict"), on(X), layers=Structured),
    "tuples in and out": case(lambda: structured("tuple"), on(X), layers=Structured),
    "dataclass in and out": case(lambda: structured("dataclass"), on(X), layers=Structured),
    "list that the layer appends to": Case(caching, plain(on(X)), layers=Caching),
    "half of the outputs used": case(
        lambda: Net(lambda m, x: m.head(m.halves(m.below(x))[0]), below=L(6, 6), halves=Halves(), head=L(4, 3)),
        supervised, layers=(Halves, nn.Linear), 
    ),
    "layer that returns its parameter": Case(
        lambda: Net(lambda m, x: m.head(x + m.positions()), positions=Positions(), head=L(6, 3)),
        plain(supervised), layers=(Positions, nn.Linear),
    ),
    "frozen layers": case(frozen, supervised),
    "layer without gradient": case(aside, supervised),
    "tied weights": case(tied, on(TOKENS), layers=(nn.Embedding, nn.Linear)),
    "sparse embedding": case(sparse, on(TOKENS), sparse_optimizer, layers=nn.Embedding),
    "channels_last": case(
        convolutions, on(IMAGES.to(memory_format=torch.channels_last)), layers=(nn.Conv2d, nn.Linear), rel=1e-3
    ),
    "MultiheadAttention": case(
        lambda: residual(Attention(), Attention(by_keyword=True)),
        on(SEQUENCES), layers=nn.MultiheadAttention,
    ),
    "transformer, its Linears": case(encoder, on(SEQUENCES), layers=r"linear\d$", rel=1e-3),
    "transformer, its blocks": case(encoder, on(SEQUENCES), layers=nn.TransformerEncoderLayer, rel=1e-3),
    "transformer with dropout": Case(partial(encoder, 0.1), plain(on(SEQUENCES))),
    "float64": case(lambda: chain().double(), supervised, rel=1e-6),
    "bfloat16": case(lambda: chain().bfloat16(), supervised, double=False, rel=1e-6),
    "float16": case(lambda: chain().half(), supervised, double=False, rel=1e-6),
    "complex": case(complex_numbers, on_complex, double=False, rel=1e-5),
    "empty batch": Case(chain, plain(lambda model: model(X[:0]).sum())),
    "weight_norm": case(
        lambda: nn.Sequential(parametrizations.weight_norm(L(6, 5)), nn.Tanh(), L(5, 3)), supervised
    ),
    "spectral_norm": case(
        lambda: nn.Sequential(parametrizations.spectral_norm(L(6, 5)), nn.Tanh(), L(5, 3)), supervised
    ),
    "nested Sequential": case(lambda: nn.Sequential(nn.Sequential(nn.Sequential(chain()))), supervised),
    "a model that is a Linear": case(lambda: L(6, 3), supervised),
    "hooks of the user": Case(with_own_hooks, plain(supervised)),
    "parts in evaluation mode": case(partly_evaluating, supervised),
    "called with and without gradients": case(twice_once_without_gradients, on(X)),
    "checkpoint": case(partial(checkpointed, False), supervised, simple=partial(checkpointed, None)),
    "checkpoint, reentrant": case(partial(checkpointed, True), supervised, simple=partial(checkpointed, None)),
    "functional_call": case(chain, by_function),
    "jagged nested tensor": Case(inplace, plain(jagged)),
    "dropout": Case(lambda: chain(lambda: nn.Dropout(0.3)), plain(supervised)),
}  # fmt: skip


# --- training loops --------------------------------------------------------------------------------------------------


def accumulating(model: nn.Module, watch: Watch) -> None:
    optimizer = sgd(model)
    with watch(model, optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            for half in (slice(0, 6), slice(6, 12)):
                (F.cross_entropy(model(X[half]), Y[half]) / 2).backward()
            optimizer.step()


def interleaved(model: nn.Module, watch: Watch) -> None:
    """As pipelines do it: the next micro-batch goes forward before the last one has come back."""
    optimizer = sgd(model)
    with watch(model, optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            waiting: list[Tensor] = []
            for third in (slice(0, 4), slice(4, 8), slice(8, 12)):
                waiting.append(F.cross_entropy(model(X[third]), Y[third]) / 3)
                if len(waiting) > 1:
                    waiting.pop(0).backward()
            waiting.pop().backward()
            optimizer.step()


def several_losses(model: nn.Module, watch: Watch) -> None:
    optimizer = sgd(model)
    with watch(model, optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            output = model(X)
            F.cross_entropy(output, Y).backward(retain_graph=True)
            output.square().mean().backward()
            optimizer.step()


def with_zeros(model: nn.Module, watch: Watch) -> None:
    optimizer = sgd(model)
    with watch(model, optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=False)
            supervised(model).backward()
            optimizer.step()


def by_closure(make: Callable[[nn.Module], Optimizer], by_keyword: bool = False) -> Train:
    def train(model: nn.Module, watch: Watch) -> None:
        optimizer = make(model)

        def closure() -> float:
            optimizer.zero_grad()
            loss = supervised(model)
            loss.backward()
            return loss.item()

        with watch(model, optimizer):
            for _ in range(STEPS):
                if by_keyword:
                    optimizer.step(closure=closure)
                else:
                    optimizer.step(closure)

    return train


def clipped(model: nn.Module, watch: Watch) -> None:
    optimizer = sgd(model)
    with watch(model, optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            supervised(model).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()


def autocast(model: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return supervised(model)


def scaled(
    *,
    known: bool = True,
    make: Callable[[nn.Module], Optimizer] = sgd,
    overflow: Sequence[int] = (),
    set_to_none: bool = True,
    unscale: bool = False,
    loss: Loss = supervised,
) -> Train:
    """With a gradient scaler, which skips the steps of `overflow`."""

    def train(model: nn.Module, watch: Watch) -> None:
        optimizer = make(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        with watch(model, optimizer, scaler=scaler if known else None):
            for step in range(STEPS):
                optimizer.zero_grad(set_to_none=set_to_none)
                value = scaler.scale(loss(model) * (math.inf if step in overflow else 1.0))
                value.backward()
                if unscale:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()

    return train


def fused(kind: type[Optimizer]) -> Callable[[nn.Module], Optimizer]:
    return lambda model: kind(model.parameters(), lr=0.1, fused=True)  # type: ignore[call-arg]


def with_validation(model: nn.Module, watch: Watch) -> None:
    """Which forgot `torch.no_grad`."""
    optimizer = sgd(model)
    with watch(model, optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(X * 100)
            supervised(model).backward()
            model(X * 100)
            optimizer.step()


def penalized(model: nn.Module) -> Tensor:
    """The gradient penalty of a Wasserstein GAN."""
    x = like(model, X).clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    value: Tensor = supervised(model) + (slope.norm(dim=1) - 1).square().mean()
    return value


def physics(model: nn.Module) -> Tensor:
    """u'' = -u at points, and u = 1 on a boundary."""
    x = like(model, X).clone().requires_grad_()
    u = model(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    value: Tensor = (second.sum(1) + u.sum(1)).square().mean() + (model(x.detach() * 0) - 1).square().mean()
    return value


def attacked(model: nn.Module, by_backward: bool) -> Tensor:
    x = like(model, X).clone()
    for _ in range(2):
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(model(x), Y)
        if by_backward:
            loss.backward()
            assert x.grad is not None
            slope = x.grad
        else:
            (slope,) = torch.autograd.grad(loss, x)
        x = x + 0.1 * slope.sign()
    return x.detach()


def adversarial(by_backward: bool) -> Train:
    def train(model: nn.Module, watch: Watch) -> None:
        optimizer = sgd(model)
        with watch(model, optimizer):
            for _ in range(STEPS):
                x = attacked(model, by_backward)
                optimizer.zero_grad()
                F.cross_entropy(model(x), Y).backward()
                optimizer.step()

    return train


def on_attacked(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(attacked(copy.deepcopy(model), by_backward=False)), Y)


def by_grad(model: nn.Module, watch: Watch) -> None:
    optimizer = sgd(model)
    trained = list(model.parameters())
    with watch(model, optimizer):
        for _ in range(STEPS):
            for p, g in zip(trained, torch.autograd.grad(supervised(model), trained), strict=True):
                p.grad = g
            optimizer.step()


def by_func(model: nn.Module, watch: Watch) -> None:
    optimizer = sgd(model)
    trained: dict[str, Tensor] = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (X,)), Y)

    with watch(model, optimizer):
        for _ in range(STEPS):
            for name, g in torch.func.grad(loss)(trained).items():
                trained[name].grad = g
            optimizer.step()


def with_gradients_of_each_example(model: nn.Module, watch: Watch) -> None:
    """Beside the ordinary backward pass."""
    optimizer = sgd(model)

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
    with watch(model, optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            each({name: p.detach() for name, p in model.named_parameters()}, X, Y)
            supervised(model).backward()
            optimizer.step()


class Curvature(torch.optim.SGD):
    """Goes back through the graph of the gradient inside its step, as AdaHessian does."""

    def step(self, closure: Any = None) -> Any:
        trained = [p for group in self.param_groups for p in group["params"]]
        with torch.enable_grad():
            slopes = [p.grad for p in trained]
            probes = [torch.ones_like(p) for p in trained]
            curvatures = torch.autograd.grad(slopes, trained, probes)
        for p, curvature in zip(trained, curvatures, strict=True):
            p.grad = p.grad.detach() / (1 + curvature.abs())
        return super().step(closure)


def with_curvature(model: nn.Module, watch: Watch) -> None:
    optimizer = Curvature(model.parameters(), lr=0.1)
    with watch(model, optimizer), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward.. with create_graph")
        for _ in range(STEPS):
            optimizer.zero_grad()
            supervised(model).backward(create_graph=True)
            optimizer.step()
        optimizer.zero_grad()


class Trap(nn.Module):
    """Raises once when it is set: on the way forward or back."""

    def __init__(self) -> None:
        super().__init__()
        self.forward_set = self.backward_set = False

    def forward(self, x: Tensor) -> Tensor:
        if self.forward_set:
            self.forward_set = False
            raise RuntimeError("forward")
        if self.backward_set:
            self.backward_set = False
            x.register_hook(self._raise)
        return x

    def _raise(self, _: Tensor) -> None:
        raise RuntimeError("backward")


class TrapSGD(torch.optim.SGD):
    set = False

    def step(self, closure: Any = None) -> Any:
        if self.set:
            self.set = False
            raise RuntimeError("step")
        return super().step(closure)


def trapped() -> nn.Module:
    return nn.Sequential(OrderedDict(a=L(6, 5), tanh=nn.Tanh(), trap=Trap(), b=L(5, 4), c=L(4, 3)))


def attempt(model: nn.Module, optimizer: Optimizer, where: str | None) -> None:
    """One step, which fails somewhere."""
    trap = model.get_submodule("trap")
    trap.forward_set, trap.backward_set, optimizer.set = where == "forward", where == "backward", where == "step"  # type: ignore[assignment, attr-defined]
    optimizer.zero_grad()
    supervised(model).backward()
    optimizer.step()


def repeating(where: str) -> Train:
    def train(model: nn.Module, watch: Watch) -> None:
        optimizer = TrapSGD(model.parameters(), lr=0.1)
        with watch(model, optimizer):
            for _ in range(STEPS):
                with suppress(RuntimeError):
                    attempt(model, optimizer, where)
                attempt(model, optimizer, None)

    return train


def again(model: nn.Module, watch: Watch) -> None:
    optimizer = sgd(model)
    for _ in range(3):
        with watch(model, optimizer):
            supervised(model).backward()
            optimizer.step()
        optimizer.zero_grad()
        supervised(model).backward()
        optimizer.step()
        optimizer.zero_grad()


def two_monitors(model: nn.Module, watch: Watch) -> None:
    optimizer = sgd(model)
    with watch(model, optimizer), watch(model, optimizer, layers=(nn.Linear, nn.Tanh)):
        for _ in range(STEPS):
            optimizer.zero_grad()
            supervised(model).backward()
            optimizer.step()


def two_optimizers(model: nn.Module, watch: Watch) -> None:
    first = torch.optim.SGD(model.get_submodule("0").parameters(), lr=0.1)
    rest = torch.optim.Adam([*model.get_submodule("2").parameters(), *model.get_submodule("4").parameters()])
    with watch(model, first), watch(model, rest):
        for _ in range(STEPS):
            model.zero_grad()
            supervised(model).backward()
            first.step()
            rest.step()


def growing(model: nn.Module, watch: Watch) -> None:
    optimizer = torch.optim.SGD(model.get_submodule("4").parameters(), lr=0.1)
    with watch(model, optimizer):
        for step in range(STEPS):
            if step == 1:
                optimizer.add_param_group({"params": model.get_submodule("0").parameters(), "lr": 0.01})
            model.zero_grad()
            supervised(model).backward()
            optimizer.step()


def copied(model: nn.Module, watch: Watch) -> None:
    optimizer = sgd(model)
    with watch(model, optimizer):
        average = torch.optim.swa_utils.AveragedModel(model)
        for _ in range(STEPS):
            optimizer.zero_grad()
            supervised(copy.deepcopy(model)).backward()
            supervised(model).backward()
            pickle.loads(pickle.dumps(model.state_dict()))
            torch.save(model, io.BytesIO())
            optimizer.step()
            average.update_parameters(model)
        supervised(average).backward()


def compiled(how: str, backend: Any) -> Train:
    """Run before it is watched, so that what was compiled knows of no hook."""

    def train(model: nn.Module, watch: Watch) -> None:
        torch._dynamo.reset()
        run: Callable[[], Tensor] = lambda: supervised(model)  # noqa: E731
        watched = model
        if how == "model":
            watched = torch.compile(model, backend=backend)  # type: ignore[assignment]
            run = lambda: supervised(watched)  # noqa: E731
        elif how == "function":
            run = torch.compile(run, backend=backend)
        elif how == "in place":
            model.compile(backend=backend)
        elif how == "layer":
            model[2] = torch.compile(model[2], backend=backend)  # type: ignore[index, operator]
        optimizer = sgd(model)
        advance: Callable[[], Any] = lambda: optimizer.step()  # noqa: E731
        if how == "optimizer":
            advance = torch.compile(advance, backend=backend)
        for _ in range(2):
            run().backward()
            optimizer.zero_grad()
        with watch(watched, optimizer):
            for _ in range(STEPS):
                optimizer.zero_grad()
                run().backward()
                advance()

    return train


def loop(train: Train, make: Callable[[], nn.Module] = chain, loss: Loss | None = supervised, **kw: Any) -> Case:
    return Case(make, train, loss=loss, **kw)


UNKNOWN_SCALE = "a GradScaler scales the loss, but watch.. does not know it"
TRAININGS = {
    "accumulated gradients": loop(accumulating),
    "accumulated gradients, interleaved": loop(interleaved, loss=None),
    "accumulated gradients, checkpoint": loop(
        accumulating, partial(checkpointed, False), simple=partial(checkpointed, None)
    ),
    "accumulated gradients, checkpoint, reentrant": loop(
        accumulating, partial(checkpointed, True), simple=partial(checkpointed, None), layers="^[abcd]$"
    ),
    "several losses over one graph": loop(several_losses, loss=None),
    "zero_grad with zeros": loop(with_zeros),
    "SGD with a closure": loop(by_closure(sgd)),
    "Adam with a closure by keyword": loop(by_closure(lambda m: torch.optim.Adam(m.parameters()), by_keyword=True)),
    "LBFGS": loop(by_closure(lambda m: torch.optim.LBFGS(m.parameters(), max_iter=5))),
    "LBFGS by keyword": loop(by_closure(lambda m: torch.optim.LBFGS(m.parameters(), max_iter=5), by_keyword=True)),
    "clipped": loop(clipped, loss=None),
    "autocast": loop(plain(autocast), loss=autocast, double=False, rel=1e-6),
    "scaler": loop(scaled()),
    "scaler, unscale_": loop(scaled(unscale=True)),
    "scaler, skipped steps": loop(scaled(overflow=(0, 2))),
    "scaler, skipped steps, zero_grad with zeros": loop(scaled(overflow=(0, 2), set_to_none=False)),
    "scaler, autocast": loop(scaled(loss=autocast), loss=autocast, double=False, rel=1e-6),
    "scaler, fused SGD": loop(scaled(make=fused(torch.optim.SGD))),
    "scaler, fused Adam": loop(scaled(make=fused(torch.optim.Adam))),
    "scaler, fused Adam, skipped steps": loop(scaled(make=fused(torch.optim.Adam), overflow=(0, 1))),
    "scaler, fused Adam, unscale_": loop(scaled(make=fused(torch.optim.Adam), unscale=True)),
    "scaler in float64": loop(scaled(make=fused(torch.optim.SGD)), lambda: chain().double(), rel=1e-9),
    "scaler not given": loop(scaled(known=False), loss=None, warns=UNKNOWN_SCALE),
    "scaler not given, fused": loop(scaled(known=False, make=fused(torch.optim.Adam)), loss=None, warns=UNKNOWN_SCALE),
    "validation with gradients": loop(with_validation),
    "gradient penalty": loop(plain(penalized), loss=penalized),
    "second derivatives": loop(plain(physics), loss=physics),
    "adversarial by grad": loop(adversarial(by_backward=False), loss=on_attacked),
    "adversarial by backward": loop(adversarial(by_backward=True), loss=on_attacked),
    "autograd.grad of the weights": loop(by_grad),
    "torch.func.grad": loop(by_func, loss=None, warns="no forward pass of a watched layer was seen"),
    "gradients of each example": loop(with_gradients_of_each_example),
    "optimizer that goes back itself": loop(with_curvature),
    "forward fails and is repeated": loop(repeating("forward"), trapped),
    "backward fails and is repeated": loop(repeating("backward"), trapped),
    "step fails and is repeated": loop(repeating("step"), trapped, loss=None),
    "watched again": loop(again),
    "two monitors": loop(two_monitors),
    "two optimizers": loop(two_optimizers),
    "parameters added later": loop(growing),
    "copied and pickled": loop(copied),
    "compiled model": loop(compiled("model", "eager")),
    "compiled model, aot": loop(compiled("model", "aot_eager")),
    "compiled function": loop(compiled("function", "aot_eager")),
    "compiled in place": loop(compiled("in place", "eager")),
    "compiled layer": loop(compiled("layer", "eager")),
    "compiled optimizer": loop(compiled("optimizer", "eager")),
}


# --- two networks ----------------------------------------------------------------------------------------------------


def gan() -> nn.Module:
    generator = nn.Sequential(L(6, 6), nn.Tanh(), L(6, 6))
    return nn.ModuleDict({"generator": generator, "discriminator": nn.Sequential(L(6, 5), nn.LeakyReLU(), L(5, 1))})


def game(model: nn.Module, who: str) -> Tensor:
    """The loss of one of the two; the generator goes forward with gradients for both."""
    generator, discriminator = model.get_submodule("generator"), model.get_submodule("discriminator")
    fake = generator(like(model, X) * 2)
    if who == "generator":
        return F.softplus(-discriminator(fake)).mean()
    return F.softplus(-discriminator(like(model, X))).mean() + F.softplus(discriminator(fake.detach())).mean()


def playing(
    order: Sequence[str], clear: str, set_to_none: bool, after: Callable[[str], None] = lambda who: None
) -> Train:
    """`clear` is when gradients are cleared: `own` or `all` before a forward pass, `late` before the backward pass."""

    def train(model: nn.Module, watch: Watch) -> None:
        optimizers = {name: sgd(part) for name, part in model.named_children()}
        parts = dict(model.named_children())
        with (
            watch(parts["generator"], optimizers["generator"]),
            watch(parts["discriminator"], optimizers["discriminator"]),
        ):
            for _ in range(STEPS):
                for who in order:
                    for name, optimizer in optimizers.items():
                        if clear == "all" or (clear == "own" and name == who):
                            optimizer.zero_grad(set_to_none)
                    loss = game(model, who)
                    if clear == "late":
                        optimizers[who].zero_grad(set_to_none)
                    loss.backward()
                    optimizers[who].step()
                    after(who)

    return train


ORDERS = (("discriminator", "generator"), ("generator", "discriminator"))
TRAININGS |= {
    f"GAN, {order[0]} first, {clear} zero_grad to {None if set_to_none else 0}": loop(
        playing(order, clear, set_to_none), gan, loss=None
    )
    for order in ORDERS
    for clear in ("own", "all", "late")
    for set_to_none in (True, False)
}
