"""More of the zoo: small forms of architectures that people train, watched with the default layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.zoo import IMAGES, SEQUENCES, TOKENS, Case, L, Loss, Net, X, case, on, plain, sgd, supervised

CLASSES = torch.tensor([0, 1, 2, 0])


def classified(x: Tensor) -> Loss:
    """Cross-entropy of the model's answer to four samples."""

    def loss(model: nn.Module) -> Tensor:
        given = x.to(next(model.parameters()).dtype) if x.is_floating_point() else x
        return F.cross_entropy(model(given), CLASSES)

    return loss


# --- convolutions ----------------------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, kernel: int = 3, **how: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **how)


def basic_block() -> nn.Module:
    """Of a ResNet: the skip has a convolution of its own."""

    def forward(m: Any, x: Tensor) -> Any:
        h = m.norm1(m.conv1(x)).relu()
        h = (m.norm2(m.conv2(h)) + m.skip(x)).relu()
        return m.head(h.mean((2, 3)))

    return Net(
        forward, conv1=conv(1, 4, stride=2), norm1=nn.BatchNorm2d(4), conv2=conv(4, 4), norm2=nn.BatchNorm2d(4),
        skip=nn.Conv2d(1, 4, 1, stride=2), head=L(4, 3),
    )  # fmt: skip


def dense_block() -> nn.Module:
    """Each layer gets the outputs of all before it."""

    def forward(m: Any, x: Tensor) -> Any:
        one = m.conv1(x).relu()
        two = m.conv2(torch.cat([x, one], 1)).relu()
        three = m.conv3(torch.cat([x, one, two], 1)).relu()
        return m.head(three.mean((2, 3)))

    return Net(forward, conv1=conv(1, 2), conv2=conv(3, 2), conv3=conv(5, 4), head=L(4, 3))


def separable() -> nn.Module:
    """Depthwise, pointwise, dilated and grouped convolutions."""
    return nn.Sequential(
        conv(1, 4), nn.SiLU(), conv(4, 4, groups=4), nn.Conv2d(4, 6, 1), nn.SiLU(),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), L(6, 3),
    )  # fmt: skip


def squeeze_and_excite() -> nn.Module:
    """A branch that scales the channels of the other."""

    def forward(m: Any, x: Tensor) -> Any:
        h = m.conv(x).relu()
        gate = torch.sigmoid(m.up(m.down(h.mean((2, 3))).relu()))
        return m.head((h * gate[:, :, None, None]).mean((2, 3)))

    return Net(forward, conv=conv(1, 4), down=L(4, 2), up=L(2, 4), head=L(4, 3))


def unet() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        one = m.down(x).relu()
        two = m.bottom(F.max_pool2d(one, 2)).relu()
        return m.up(torch.cat([one, m.raising(two)], 1))

    return Net(
        forward, down=conv(1, 3), bottom=conv(3, 4), raising=nn.ConvTranspose2d(4, 3, 2, stride=2), up=conv(6, 1)
    )


def over_words() -> nn.Module:
    """Convolutions of one dimension over embedded tokens."""

    def forward(m: Any, x: Tensor) -> Any:
        return m.head(m.conv(m.embed(x).mT).relu().amax(2))

    return Net(forward, embed=nn.Embedding(9, 6), conv=nn.Conv1d(6, 5, 3, padding=1), head=L(5, 3))


def volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 2, 2), nn.ELU(), nn.ConvTranspose3d(2, 1, 2))


# --- recurrence ------------------------------------------------------------------------------------------------------


def reader(make: Callable[[], nn.RNNBase], width: int) -> nn.Module:
    """Embedded tokens, a recurrent layer, and a head on its last output."""

    def forward(m: Any, x: Tensor) -> Any:
        return m.head(m.rnn(m.embed(x))[0][:, -1])

    return Net(forward, embed=nn.Embedding(9, 6), rnn=make(), head=L(width, 3))


def cells(kind: Callable[[int, int], nn.RNNCellBase]) -> nn.Module:
    """A cell that is called for each step."""

    def forward(m: Any, x: Tensor) -> Any:
        state: Any = None
        for step in x.unbind(1):
            state = m.cell(step, state)
        return m.head(state[0] if isinstance(state, tuple) else state)

    return Net(forward, cell=kind(6, 5), head=L(5, 3))


# --- attention -------------------------------------------------------------------------------------------------------


class FusedAttention(nn.Module):
    """Query, key and value from one bare matrix, as in many repositories."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(width, 3 * width) / width**0.5)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (x @ self.qkv).chunk(3, -1)
        attended: Tensor = self.out(F.scaled_dot_product_attention(q, k, v))
        return attended


def separate_attention() -> nn.Module:
    """Query, key and value are three layers beside each other."""

    def forward(m: Any, x: Tensor) -> Any:
        h = m.embed(x)
        h = h + m.out(F.scaled_dot_product_attention(m.q(h), m.k(h), m.v(h)))
        return m.head(m.norm(h).mean(1))

    return Net(
        forward, embed=nn.Embedding(9, 6), q=L(6, 6), k=L(6, 6), v=L(6, 6), out=L(6, 6), norm=nn.LayerNorm(6),
        head=L(6, 3),
    )  # fmt: skip


def decoder_only() -> nn.Module:
    """A language model whose head has the embedding's weight, with positions that are learnt."""

    def forward(m: Any, x: Tensor) -> Any:
        h = m.tokens(x) + m.positions(torch.arange(x.shape[1]))
        h = h + m.attention(m.norm1(h))
        h = h + m.down(F.gelu(m.up(m.norm2(h))))
        return F.linear(h, m.tokens.weight)

    return Net(
        forward, tokens=nn.Embedding(9, 6), positions=nn.Embedding(5, 6), norm1=nn.LayerNorm(6),
        attention=FusedAttention(), norm2=nn.LayerNorm(6), up=L(6, 12), down=L(12, 6),
    )  # fmt: skip


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(6, 2, 1, 1, 8, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.transformer(x, x[:, :2])
        return out


# --- matrices without a layer of torch --------------------------------------------------------------------------------


class Transposed(nn.Module):
    """Hugging Face's Conv1D: a linear layer whose weight is [in, out]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 2), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Adapted(nn.Module):
    """A frozen layer and a low-rank adapter beside it, of which one half begins at zero."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = L(inputs, outputs).requires_grad_(False)
        self.a, self.b = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.b(self.a(x))
        return out


class Experts(nn.Module):
    """Each sample goes to one of four experts, which are slices of one bare tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = L(6, 4), nn.Parameter(torch.randn(4, 6, 3) / 2)

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.router(x).softmax(1).max(1)
        out: Tensor = torch.einsum("bi,bio->bo", x, self.experts[chosen]) * share[:, None]
        return out


class Separate(nn.Module):
    """One layer for each expert; one of them gets no sample."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(L(6, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        half = len(x) // 2
        return torch.cat([self.experts[0](x[:half]), self.experts[1](x[half:])])


class Handwritten(nn.Module):
    """An MLP of bare parameters in a list and in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterList(torch.randn(*size) / 2 for size in [(5, 6), (4, 5)])
        self.last = nn.ParameterDict({"head": torch.randn(3, 4)})

    def forward(self, x: Tensor) -> Tensor:
        for matrix in self.matrices:
            x = F.linear(torch.tanh(x), matrix)
        out: Tensor = F.linear(x, self.last["head"])
        return out


def hypernetwork() -> nn.Module:
    """A layer makes the weight of another."""

    def forward(m: Any, x: Tensor) -> Any:
        weight = m.maker(x.mean(0)).view(3, 6)
        return F.linear(m.below(x).tanh(), weight)

    return Net(forward, maker=L(6, 18), below=L(6, 6))


# --- several inputs and losses ---------------------------------------------------------------------------------------


def siamese() -> nn.Module:
    """One encoder for both halves of the batch."""

    def forward(m: Any, x: Tensor) -> Any:
        one, other = (m.encode(half).tanh() for half in x.chunk(2))
        return (one - other).square().sum(1)

    return Net(forward, encode=L(6, 4))


def autoencoder() -> nn.Module:
    """Variational: it draws random numbers in the forward pass."""

    def forward(m: Any, x: Tensor) -> Any:
        mean, log_variance = m.mean(x), m.log_variance(x)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return m.decode(z), mean.square() + log_variance.exp() - log_variance

    return Net(forward, mean=L(6, 2), log_variance=L(6, 2), decode=L(2, 6))


def two_heads() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = m.trunk(x).relu()
        return m.classes(h), m.value(h)

    return Net(forward, trunk=L(6, 5), classes=L(5, 3), value=L(5, 1))


def highway() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        gate = torch.sigmoid(m.gate(x))
        return m.head(gate * m.change(x).tanh() + (1 - gate) * x)

    return Net(forward, gate=L(6, 6), change=L(6, 6), head=L(6, 3))


def bags() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(9, 6), nn.Tanh(), L(6, 3))


def default(make: Callable[[], nn.Module], loss: Loss, **how: Any) -> Case:
    """With the layers that `watch` chooses, compared with autograd."""
    return case(make, loss, layers=None, **how)


def unchanged(make: Callable[[], nn.Module], loss: Loss) -> Case:
    """With the layers that `watch` chooses, some of which are bare matrices or random: the oracle cannot see these."""
    return Case(make, plain(loss, sgd), layers=None)


ARCHITECTURES = {
    "block of a ResNet": default(basic_block, classified(IMAGES), rel=1e-3),
    "block of a DenseNet": default(dense_block, classified(IMAGES), rel=1e-3),
    "separable convolutions": default(separable, classified(IMAGES), rel=1e-3),
    "squeeze and excite": default(squeeze_and_excite, classified(IMAGES), rel=1e-3),
    "U-Net": default(unet, on(IMAGES), rel=1e-3),
    "convolutions over words": default(over_words, classified(TOKENS), rel=1e-3),
    "convolutions of volumes": default(volumes, on(torch.randn(2, 1, 3, 3, 3)), rel=1e-3),
    "embedding and LSTM": default(
        lambda: reader(lambda: nn.LSTM(6, 5, num_layers=2, batch_first=True), 5), classified(TOKENS), rel=1e-3
    ),
    "embedding and bidirectional GRU": default(
        lambda: reader(lambda: nn.GRU(6, 4, bidirectional=True, batch_first=True), 8), classified(TOKENS), rel=1e-3
    ),
    "LSTM with a projection": default(
        lambda: reader(lambda: nn.LSTM(6, 5, proj_size=3, batch_first=True), 3), classified(TOKENS), rel=1e-3
    ),
    "LSTMCell in a loop": unchanged(lambda: cells(nn.LSTMCell), classified(SEQUENCES[:4])),
    "GRUCell in a loop": unchanged(lambda: cells(nn.GRUCell), classified(SEQUENCES[:4])),
    "RNNCell in a loop": unchanged(lambda: cells(nn.RNNCell), classified(SEQUENCES[:4])),
    "attention of three layers": default(separate_attention, classified(TOKENS), rel=1e-3),
    "attention with one bare matrix": unchanged(FusedAttention, on(SEQUENCES)),
    "decoder-only language model": unchanged(decoder_only, on(TOKENS)),
    "encoder and decoder": unchanged(EncoderDecoder, on(SEQUENCES)),
    "layer with a transposed weight": default(
        lambda: nn.Sequential(Transposed(6, 5), nn.GELU(), Transposed(5, 3)), supervised
    ),
    "low-rank adapters": default(
        lambda: nn.Sequential(Adapted(6, 5), nn.Tanh(), Adapted(5, 3)), supervised
    ),
    "experts in one bare tensor": unchanged(Experts, supervised),
    "experts, one without a sample": unchanged(Separate, supervised),
    "bare matrices in a list": unchanged(Handwritten, supervised),
    "layer that makes a weight": default(hypernetwork, supervised),
    "Siamese network": default(siamese, on(X)),
    "variational autoencoder": unchanged(autoencoder, on(X)),
    "two heads": default(two_heads, on(X)),
    "highway layer": default(highway, supervised),
    "EmbeddingBag": default(bags, classified(TOKENS)),
}  # fmt: skip
