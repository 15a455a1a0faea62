"""A large decoder without its memory, and what watching it would make: snapshots, their bytes, traffic on a device."""

from __future__ import annotations

import gc
import math
import pickle
import sys
import tempfile
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vgrad_torch.records import Histogram, LayerSnapshot, Snapshot, Stats
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.writer import Writer
from vgrad_torch.watching import statistics as stats
from vgrad_torch.watching.selection import select
from vgrad_torch.watching.watch import watch

ALLOWED = {"bytes": 0.01, "memory": 0.02, "buckets": 0.12, "traffic": 0.03, "kernels": 0.05}
"""How far the tests let this model be from small networks that are really watched."""


class Block(nn.Module):
    """The matrices of a Llama block: grouped-query attention and a gated MLP."""

    def __init__(self, width: int, hidden: int, keys: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width)
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Every matrix once; in place of the attention, whose products no layer makes, the three are summed."""
        h = self.attention_norm(x)
        mixed = self.q_proj(h) + (self.k_proj(h) + self.v_proj(h)).mean(-1, keepdim=True)
        x = x + self.o_proj(mixed)
        h = self.mlp_norm(x)
        out: Tensor = x + self.down_proj(nn.functional.silu(self.gate_proj(h)) * self.up_proj(h))
        return out


class Decoder(nn.Module):
    """The matrices of a Llama decoder; the values given are those of Llama 3 70B."""

    def __init__(
        self, width: int = 8192, blocks: int = 80, hidden: int = 28672, keys: int = 1024, vocabulary: int = 128256
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.Sequential(*(Block(width, hidden, keys) for _ in range(blocks)))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.lm_head(self.norm(self.layers(self.embed_tokens(tokens))))
        return logits


def watched(model: nn.Module) -> Mapping[str, nn.Linear]:
    """The layers that watch() looks at if it is asked for the Linear layers."""
    modules = {name: layer.module for name, layer in select(model, nn.Linear).layers.items()}
    return {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}


def normal_histogram(count: int) -> Histogram:
    """What `count` values of N(0, 1) fill: the buckets in which at least one is more likely than none."""
    codes, counts = _filled(count)
    return Histogram(codes.copy(), counts.copy())


@cache
def _filled(count: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    edges, _ = Histogram(np.zeros(0, np.uint16), np.zeros(0, np.int64)).magnitudes()
    below = np.array([math.erf(edge / math.sqrt(2)) for edge in edges])
    expected = count * np.diff(below) / 2
    codes = np.flatnonzero(expected > math.log(2))
    counts = np.maximum(np.rint(expected[codes]), 1).astype(np.int64)
    return np.concatenate([codes, codes + 2048]).astype(np.uint16), np.concatenate([counts, counts])


def _normal(count: int, histograms: bool) -> Stats:
    histogram = normal_histogram(count) if histograms else None
    return Stats(count, 0, 0, 1.0 / math.sqrt(count), 1.0, -5.0, 5.0, histogram)


@cache
def wired(blocks: int) -> Snapshot:
    """A sample of a narrow decoder with so many blocks: which layer feeds which does not depend on the widths."""
    model = Decoder(width=2, blocks=blocks, hidden=2, keys=2, vocabulary=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, every=1, layers=nn.Linear, histograms=False) as monitor:
        model(torch.zeros(1, 1, dtype=torch.long)).sum().backward()
        optimizer.step()
    return monitor.history[0]


def snapshot(model: nn.Module, samples: int, *, histograms: bool, ranks: int = 0) -> Snapshot:
    """What a sample of the model would be if all values were normal; `samples` rows go through each layer.

    With `ranks` it is the joined one. Only its size is meant.
    """
    layers = []
    like = wired(len(list(model.children())[1]))  # type: ignore[arg-type]
    for number, (name, layer) in enumerate(watched(model).items(), start=1):
        name = sys.intern(name)  # as in a real one, where each name is one string
        whole, weight = samples * max(ranks, 1), layer.weight.numel()
        counts = {
            "weight": weight, "weight_gradient": weight, "output": whole * layer.out_features,
            "output_gradient": whole * layer.out_features, "input_gradient": whole * layer.in_features,
        }  # fmt: skip
        found = {quantity: _normal(count, histograms) for quantity, count in counts.items()}
        shares = tuple(1.0 + rank / 7 for rank in range(ranks))
        layers.append(
            LayerSnapshot(
                number, name, "Linear", f"{layer.in_features}x{layer.out_features}", 1,
                weight=found["weight"], weight_gradient=found["weight_gradient"], output=found["output"],
                output_gradient=found["output_gradient"], input_gradient=found["input_gradient"],
                update_rms=0.1 / number, activation_gain=like[name].activation_gain and 1.0 / number,
                rank_rms=shares, trainable=True, sources=tuple(map(sys.intern, like[name].sources or ())),
            )
        )  # fmt: skip
    junctions = [
        replace(x, sources=tuple(map(sys.intern, x.sources)), label=sys.intern(x.label), gradient_rms=1.0 / 7, count=1)
        for x in like.junctions
    ]
    return Snapshot(1000, tuple(layers), 1e9 / 7, tuple(junctions))


def sent(mine: Snapshot) -> int:
    """Bytes that a rank gives to the others at a sample: those of `Ranks.gather`."""
    return len(pickle.dumps((mine, None)))


def logged(joined: Snapshot, *, histograms: bool) -> int:
    """Bytes that a sample after the first adds to the event file."""
    with tempfile.TemporaryDirectory() as folder:
        writer, sizes = Writer(folder), []
        for step in (0, 1):
            writer.snapshot(replace(joined, step=step), histograms=histograms, scalars={tags.COST: 0.01})
            sizes.append(_size_of(folder))
        writer.close()
    return sizes[1] - sizes[0]


def profiled(joined: Snapshot) -> int:
    """Bytes of one depth profile."""
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(folder)
        before = _size_of(folder)
        writer.depth_profile(joined)
        after = _size_of(folder)
        writer.close()
    return after - before


def _size_of(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).iterdir())


def held(kept: Snapshot) -> int:
    """Bytes of the host's memory that a snapshot of its own takes, as one that came from other ranks does."""
    packed = pickle.dumps(kept)
    gc.collect()  # and with it Python's lists of free objects, whose memory would not be seen
    tracemalloc.start()
    unpacked = pickle.loads(packed)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del unpacked
    return size


class Traffic(TorchDispatchMode):
    """Counts what an eager device would do: bytes read and written, kernels started, most memory taken at a time.

    Each operation reads its inputs and writes its outputs once; a view costs nothing; the memory of the tensors
    `outside` is not counted. On the meta device nothing is computed.
    """

    def __init__(self, *outside: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._outside = {tensor.untyped_storage()._cdata for tensor in outside}
        self.bytes = self.kernels = self.peak = 0
        self._live: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation."""
        out = func(*args, **(kwargs or {}))
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not func.is_view and "alias" not in str(func) and "detach" not in str(func):
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.itemsize for x in [*given, *results])
            self.kernels += 1
        for tensor in results:
            self._hold(tensor)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._outside:
            return
        self._live[key] += 1
        self._sizes[key] = storage.nbytes()
        weakref.finalize(tensor, self._release, key)
        self.peak = max(self.peak, sum(self._sizes[k] for k, count in self._live.items() if count > 0))

    def _release(self, key: int) -> None:
        self._live[key] -= 1


@dataclass(frozen=True, slots=True)
class Work:
    """What the statistics of tensors make a device do; of several tensors together the peak is the largest's."""

    bytes: float
    kernels: float
    peak: float

    @classmethod
    def total(cls, parts: Iterable[Work]) -> Work:
        """One after the other."""
        found = list(parts)
        return cls(sum(w.bytes for w in found), sum(w.kernels for w in found), max(w.peak for w in found))


def _reduce(count: int, dtype: torch.dtype, histograms: bool, scaled: bool) -> Work:
    x = torch.empty(count, dtype=dtype, device="meta")
    factor = torch.empty((), device="meta")
    with Traffic(x) as traffic:
        if scaled:  # as `Sample.see` takes a gradient scaler's factor out, and that of the ranks' mean
            stats.reduce((x.float() if x.itemsize < 4 else x) / factor, histogram=histograms)
        else:
            stats.reduce(x, histogram=histograms)
    return Work(traffic.bytes, traffic.kernels, traffic.peak)


@cache
def _line(dtype: torch.dtype, histograms: bool, scaled: bool) -> tuple[Work, Work]:
    """What a tensor costs in any case, and what each of its entries does, from two sizes."""
    small, large = (1 << 22), (1 << 23)
    first, second = (_reduce(size, dtype, histograms, scaled) for size in (small, large))
    slope = [(getattr(second, f) - getattr(first, f)) / (large - small) for f in ("bytes", "kernels", "peak")]
    base = [getattr(first, f) - s * small for f, s in zip(("bytes", "kernels", "peak"), slope, strict=True)]
    return Work(*base), Work(*slope)


def reduction(count: int, dtype: torch.dtype, *, histograms: bool, scaled: bool = False) -> Work:
    """What the statistics of one tensor cost a device that is not a CPU."""
    base, slope = _line(dtype, histograms, scaled)
    return Work(base.bytes + slope.bytes * count, base.kernels + slope.kernels * count, base.peak + slope.peak * count)


def statistics(model: nn.Module, samples: int, dtype: torch.dtype, *, histograms: bool) -> Iterator[tuple[str, Work]]:
    """The five quantities of every watched layer on one of several ranks."""
    for layer in watched(model).values():
        weight = layer.weight.numel()
        for quantity, count, scaled in (
            ("weight", weight, False), ("weight_gradient", weight, False),
            ("output", samples * layer.out_features, False),
            ("output_gradient", samples * layer.out_features, True),
            ("input_gradient", samples * layer.in_features, True),
        ):  # fmt: skip
            yield quantity, reduction(count, dtype, histograms=histograms, scaled=scaled)
