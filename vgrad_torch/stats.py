"""Pure reductions on tensors: moments, extremes, zeros, non-finite entries and a log2 histogram, and their way home.

Everything stays on the tensor's device until `fetch`, which makes one transfer for all reductions of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vgrad_torch.records import CODES, Histogram, Stats

Values = npt.NDArray[Any]

_PRECISE = (torch.float32, torch.float64)
_DOT = 1 << 13  # entries of a dot product: BLAS takes one thread for it, and float32 is precise enough
_ONES = {np.dtype(kind): np.ones(_DOT, kind) for kind in (np.float32, np.float64)}
_BLOCK = 1 << 18  # entries looked at in one go: they stay in a core's cache from one pass to the next


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """One tensor reduced: `numbers` is float64 [6], zeros, non-finite entries, mean, std, min and max.

    `implied_zeros` are those that a sparse tensor does not store.
    """

    count: int
    numbers: Tensor | Values
    histogram: Tensor | None
    implied_zeros: int = 0


def reduce(tensor: Tensor, *, histogram: bool = True) -> Reduction:
    """Reduce a floating-point tensor of any shape, layout and precision, right from 1e-40 to 1e30.

    Counts and extremes are exact; std is good to 1e-6 of itself and the mean to 2e-7 of the mean magnitude.
    """
    x, implied_zeros = _entries(tensor)
    numbers = _on_cpu(x.numpy()) if x.device.type == "cpu" else _on_device(x)
    return Reduction(x.numel(), numbers, _bit_histogram(x) if histogram else None, implied_zeros)


def pool_histograms(reductions: list[Reduction]) -> None:
    """Count the last reduction's values in the first one's histogram, and free its own."""
    first, last = reductions[0].histogram, reductions[-1].histogram
    if first is not None and last is not None:
        first += last
        reductions[-1] = replace(reductions[-1], histogram=None)


def rms(tensor: Tensor) -> Tensor:
    """sqrt(mean(x**2)) as a float64 scalar on the tensor's device."""
    x, implied_zeros = _entries(tensor)
    count = max(x.numel() + implied_zeros, 1)
    if x.device.type == "cpu":
        with np.errstate(over="ignore", invalid="ignore"):
            squares = _dot(x.numpy())
        if 1e-20 < squares < 1e20:  # else some may have vanished, or overflowed
            return torch.tensor(math.sqrt(squares / count), dtype=torch.float64)
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm / math.sqrt(count)


def fetch(reductions: Sequence[Reduction], scalars: Sequence[Tensor] = ()) -> tuple[list[Stats], list[float]]:
    """Bring reductions and float64 scalars to the host, in one transfer for each device they lie on."""
    parts: list[Tensor | Values] = [r.numbers for r in reductions]
    parts += [r.histogram.view(torch.float64) for r in reductions if r.histogram is not None]
    parts += [scalar.reshape(1) for scalar in scalars]
    home = _to_host(parts)
    numbers = [next(home) for _ in reductions]
    counts = [None if r.histogram is None else next(home).view(np.int64) for r in reductions]
    stats = [_stats(r, n, c) for r, n, c in zip(reductions, numbers, counts, strict=True)]
    return stats, [float(value[0]) for value in home]


def _entries(tensor: Tensor) -> tuple[Tensor, int]:
    """The stored entries in one dimension, in a dtype that the reductions can take, and how many zeros are implied."""
    implied = 0
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        stored = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
        implied = tensor.numel() - stored.numel()
        tensor = stored
    if tensor.is_mps:  # which has no double precision
        tensor = tensor.cpu()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dtype not in _PRECISE:
        tensor = tensor.float()
    return tensor.reshape(-1), implied


def _on_cpu(x: Values) -> Values:
    """Blocks that stay in the cache, through NumPy's loops on one core.

    Waking torch's other threads for each reduction takes longer than the reduction.
    """
    if len(x) <= _BLOCK:
        return np.array(_block(x))
    blocks = [x[start : start + _BLOCK] for start in range(0, len(x), _BLOCK)]
    zeros, nonfinite, mean, std, low, high = np.array([_block(block) for block in blocks]).T
    finite = np.array([len(block) for block in blocks]) - nonfinite
    if not finite.any():
        return np.array([0, nonfinite.sum(), *[math.nan] * 4])
    share = (finite / finite.sum())[finite > 0]
    mean, std = mean[finite > 0], std[finite > 0]
    total = share.dot(mean)
    std = math.sqrt(share.dot(std**2 + (mean - total) ** 2))
    return np.array([zeros.sum(), nonfinite.sum(), total, std, np.nanmin(low), np.nanmax(high)])


def _block(x: Values) -> tuple[float, ...]:
    """Zeros, non-finite entries, mean, std, min, max. Reading a value costs nothing here: rare cases are branches."""
    low, high = _extremes(x)
    nonfinite = 0
    if not math.isfinite(high - low):  # one of them is not, or there is no entry
        finite = x[np.isfinite(x)]
        nonfinite, x = len(x) - len(finite), finite
        low, high = _extremes(x)
    if not len(x):
        return 0, nonfinite, math.nan, math.nan, math.nan, math.nan
    zeros = int(np.count_nonzero(x == 0)) if low <= 0 <= high else 0
    return zeros, nonfinite, *_moments(x, max(-low, high)), low, high


def _extremes(x: Values) -> tuple[float, float]:
    return (float(np.minimum.reduce(x)), float(np.maximum.reduce(x))) if len(x) else (math.nan, math.nan)


def _moments(x: Values, peak: float) -> tuple[float, float]:
    """Mean and population std of values up to `peak`, whose squares shall neither vanish nor overflow."""
    if not 1e-12 < peak < 1e12:
        scale = 2.0 ** -math.frexp(peak)[1]
        mean, std = _moments((x.astype(np.float64) * scale).astype(x.dtype), peak * scale) if peak else (0.0, 0.0)
        return mean / scale, std / scale
    mean, mean_square = _sum(x) / len(x), _dot(x) / len(x)
    variance = mean_square - mean * mean
    if variance < 0.5 * mean_square:  # the mean stands out, and the difference would lose digits
        return float(x.mean(dtype=np.float64)), float(x.std(dtype=np.float64))
    return mean, math.sqrt(variance)


def _sum(x: Values) -> float:
    return _blas(x, lambda part: _ONES[x.dtype][: part.shape[-1]])


def _dot(x: Values) -> float:
    return _blas(x, lambda part: part)


def _blas(x: Values, factor: Callable[[Values], Values]) -> float:
    """The sum of x times a factor: dot products of some thousand entries in their own precision, added in double."""
    whole = len(x) // _DOT * _DOT
    rest = x[whole:]
    total = float(rest.dot(factor(rest)))
    if whole:
        rows = x[:whole].reshape(-1, 1, _DOT)
        total += float(np.matmul(rows, factor(rows).reshape(-1, _DOT, 1)).sum(dtype=np.float64))
    return total


def _on_device(x: Tensor) -> Tensor:
    """The same numbers without looking at any of them: no branch on data, no synchronisation."""
    finite = x.isfinite()
    count = finite.sum()
    wide = x.double()
    mean = wide.where(finite, 0.0).sum() / count
    std = (wide - mean).where(finite, 0.0).square().sum().div(count).sqrt()
    infinity = torch.full((), math.inf, dtype=torch.float64, device=x.device)
    low = torch.cat([wide.where(finite, infinity), infinity[None]]).amin()
    high = torch.cat([wide.where(finite, -infinity), -infinity[None]]).amax()
    nan = torch.full_like(infinity, math.nan)
    low, high = low.where(count > 0, nan), high.where(count > 0, nan)
    zeros = (x == 0).sum()
    return torch.stack([zeros.double(), (x.numel() - count).double(), mean, std, low, high])


def _bit_histogram(x: Tensor) -> Tensor:
    """Count the upper 12 bits of each float32, int64 [4096]: exact, 8 buckets to the octave (see `Histogram`)."""
    counts = torch.zeros(CODES, dtype=torch.int64, device=x.device)
    for block in x.float().split(_BLOCK):
        codes = (block.view(torch.int32) >> 20) & (CODES - 1)
        if x.device.type == "cpu":
            counts += torch.bincount(codes, minlength=CODES)
        else:  # bincount would read the largest code back to the host
            counts.scatter_add_(0, codes.long(), torch.ones_like(codes, dtype=torch.int64))
    return counts


def _to_host(parts: Sequence[Tensor | Values]) -> Iterator[Values]:
    """The parts as arrays, in their order."""
    away = [part for part in parts if isinstance(part, Tensor) and part.device.type != "cpu"]
    home: dict[int, Values] = {}
    for device in dict.fromkeys(part.device for part in away):
        mine = [part for part in away if part.device == device]
        sizes = np.cumsum([len(part) for part in mine])[:-1]
        arrays = np.split(torch.cat(mine).cpu().numpy(), sizes)
        home.update(zip(map(id, mine), arrays, strict=True))
    for part in parts:
        if isinstance(part, Tensor):
            yield home[id(part)] if id(part) in home else part.numpy()
        else:
            yield part


def _stats(reduction: Reduction, numbers: Values, counts: Values | None) -> Stats:
    zeros, nonfinite, mean, std, low, high = numbers.tolist()
    histogram = None if counts is None else Histogram.from_dense(counts)
    stats = Stats(reduction.count, int(zeros), int(nonfinite), mean, std, low, high, histogram)
    return stats + _all_zeros(reduction.implied_zeros, histogram is not None) if reduction.implied_zeros else stats


def _all_zeros(count: int, histogram: bool) -> Stats:
    counted = Histogram(np.array([0], np.uint16), np.array([count], np.int64)) if histogram else None
    return Stats(count, count, 0, 0.0, 0.0, 0.0, 0.0, counted)
