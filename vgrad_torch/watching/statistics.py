"""Statistics of tensors: moments, extremes, zeros, non-finite entries and a log2 histogram.

Everything stays on the tensor's device until `fetch`, which makes one transfer for all reductions of a sample.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vgrad_torch.records import CODES, Histogram, Stats

Values = npt.NDArray[Any]
Numbers = tuple[float, ...]

_PRECISE = (torch.float32, torch.float64)
_DOT = 1 << 13  # entries of a dot product: BLAS takes one thread for it, and float32 is precise enough
_ONES = {np.dtype(kind): np.ones(_DOT, kind) for kind in (np.float32, np.float64)}
_BLOCK = 1 << 17  # entries reduced together: they stay in a core's cache from one pass to the next
_DEVICE_BLOCK = 1 << 24  # entries: fewer kernels to start, and 300 MB for their codes


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """The statistics of one tensor, still on its device.

    `numbers` are zeros, non-finite entries, mean, std, min, max; on a device a float64 tensor [6]. `implied_zeros` is
    the number of zeros that a sparse tensor does not store.
    """

    count: int
    numbers: Tensor | Numbers
    histogram: Tensor | Values | None
    implied_zeros: int = 0


def reduce(tensor: Tensor, *, histogram: bool = True) -> Reduction:
    """Reduce a floating-point tensor of any shape, layout and precision; correct from 1e-40 to 1e30.

    Counts and extremes are exact. The relative error of std is at most 1e-6; the error of the mean is at most 2e-7
    times the mean magnitude.
    """
    x, implied_zeros = _entries(tensor)
    if x.device.type == "cpu":
        return Reduction(x.numel(), *_on_cpu(x.numpy(), histogram), implied_zeros)
    return Reduction(x.numel(), _on_device(x), _bit_histogram(x) if histogram else None, implied_zeros)


def pool_histograms(reductions: list[Reduction]) -> None:
    """Add the last reduction's histogram to the first one's, and free it."""
    first, last = reductions[0].histogram, reductions[-1].histogram
    if first is not None and last is not None:
        first += last
        reductions[-1] = replace(reductions[-1], histogram=None)


def rms(tensor: Tensor) -> Tensor:
    """sqrt(mean(x**2)) as a float64 scalar on the tensor's device."""
    x, implied_zeros = _entries(tensor)
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm / math.sqrt(max(x.numel() + implied_zeros, 1))


def fetch(
    reductions: Sequence[Reduction], scalars: Sequence[Tensor] = (), vectors: Sequence[Tensor] = ()
) -> tuple[list[Stats], list[float], list[list[float]]]:
    """Copy reductions, scalars and vectors to the host, in one transfer for each device."""
    numbers = [r.numbers for r in reductions]
    counts = [r.histogram.view(torch.float64) if isinstance(r.histogram, Tensor) else r.histogram for r in reductions]
    on_host = _on_host([*numbers, *counts, *scalars, *vectors])
    stats = [_stats(r, on_host(n), on_host(c)) for r, n, c in zip(reductions, numbers, counts, strict=True)]
    return stats, [on_host(scalar).item() for scalar in scalars], [on_host(vector).tolist() for vector in vectors]


def _entries(tensor: Tensor) -> tuple[Tensor, int]:
    """The stored entries in one dimension, as float32 or float64, and the number of implied zeros."""
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


def _on_cpu(x: Values, histogram: bool) -> tuple[Numbers, Values | None]:
    """Reduce block by block, so that a block stays in the cache, with NumPy on one core.

    To start torch's other threads for each reduction would take longer than the reduction.
    """
    if len(x) <= _BLOCK:
        counts = _counts(x) if histogram else None
        return _block(x, counts), counts
    parts, total = [], np.zeros(CODES, np.int64) if histogram else None
    for start in range(0, len(x), _BLOCK):
        numbers, counts = _on_cpu(x[start : start + _BLOCK], histogram)
        parts.append((min(_BLOCK, len(x) - start), *numbers))
        if total is not None and counts is not None:
            total += counts
    return _joined(parts), total


def _joined(parts: Sequence[Numbers]) -> Numbers:
    """The numbers of several blocks together; each part begins with the block's length."""
    count, zeros, nonfinite, mean, std, low, high = np.array(parts).T
    finite = count - nonfinite
    if not finite.any():
        return 0, nonfinite.sum(), math.nan, math.nan, math.nan, math.nan
    share = (finite / finite.sum())[finite > 0]
    mean, std = mean[finite > 0], std[finite > 0]
    total = share.dot(mean)
    std = math.sqrt(share.dot(std**2 + (mean - total) ** 2))
    return zeros.sum(), nonfinite.sum(), total, std, np.nanmin(low), np.nanmax(high)


def _block(x: Values, counts: Values | None) -> Numbers:
    """Zeros, non-finite entries, mean, std, min, max. Rare cases are branches: on a CPU these are cheap."""
    if len(x):
        low, high = float(np.minimum.reduce(x)), float(np.maximum.reduce(x))
        if 1e-12 < max(-low, high) < 1e12:  # then no square that matters underflows or overflows; false for NaN
            total, squares = _sums(x)
            mean, mean_square = total / len(x), squares / len(x)
            variance = mean_square - mean * mean
            if variance > 0.5 * mean_square:  # otherwise the mean is large, and the difference loses digits
                some = low <= 0 <= high and (counts is None or counts[0] + counts[CODES // 2])
                zeros = int(np.count_nonzero(x == 0)) if some else 0
                return zeros, 0, mean, math.sqrt(variance), low, high
    return _block_in_double(x)


def _block_in_double(x: Values) -> Numbers:
    finite = x[np.isfinite(x)].astype(np.float64)
    nonfinite = len(x) - len(finite)
    if not len(finite):
        return 0, nonfinite, math.nan, math.nan, math.nan, math.nan
    low, high = float(np.minimum.reduce(finite)), float(np.maximum.reduce(finite))
    zeros, scale = int(np.count_nonzero(finite == 0)), max(-low, high) or 1.0
    finite /= scale  # squares of doubles can underflow and overflow, too
    mean = float(np.add.reduce(finite)) / len(finite)
    finite -= mean
    std = math.sqrt(np.add.reduce(finite * finite) / len(finite))
    return zeros, nonfinite, mean * scale, std * scale, low, high


def _sums(x: Values) -> tuple[float, float]:
    """The sums of x and of its squares: dot products of 8,192 entries in their own precision, added in double."""
    ones = _ONES[x.dtype]
    if len(x) <= _DOT:
        return float(x.dot(ones[: len(x)])), float(x.dot(x))
    total, squares = _sums(x[len(x) // _DOT * _DOT :])
    rows = x[: len(x) // _DOT * _DOT].reshape(-1, 1, _DOT)
    total += float(np.matmul(rows, ones[:, None]).sum(dtype=np.float64))
    return total, squares + float(np.matmul(rows, rows.reshape(-1, _DOT, 1)).sum(dtype=np.float64))


def _on_device(x: Tensor) -> Tensor:
    """The same numbers as `_block`, without a branch on data, so without synchronisation."""
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


def _counts(x: Values) -> Values:
    """The histogram of a block: for each code, the upper 12 bits of a float32, the number of values. int64 [4096]."""
    single = x if x.dtype == np.float32 else torch.from_numpy(x).float().numpy()
    codes = np.right_shift(single.view(np.uint32), 20, out=_scratch(threading.get_ident())[: len(x)])
    counts: Values = torch.bincount(torch.from_numpy(codes.view(np.int32)), minlength=CODES).numpy()
    return counts


@lru_cache(16)
def _scratch(thread: int) -> npt.NDArray[np.uint32]:
    """Memory that a thread uses again and again: allocating it takes longer than filling it."""
    return np.empty(_BLOCK, np.uint32)


def _bit_histogram(x: Tensor) -> Tensor:
    """The same as `_counts` on a device, where `bincount` would copy the largest code to the host."""
    counts = torch.zeros(CODES, dtype=torch.int64, device=x.device)
    for block in x.float().split(_DEVICE_BLOCK):
        codes = (block.view(torch.int32) >> 20) & (CODES - 1)
        counts.scatter_add_(0, codes.long(), torch.ones_like(codes, dtype=torch.int64))
    return counts


def _on_host(parts: Sequence[Any]) -> Callable[[Any], Any]:
    """A function that gives the host's copy of a part that lies on a device, and any other part itself."""
    remote = [part for part in parts if isinstance(part, Tensor) and part.device.type != "cpu"]
    copies: dict[int, Values] = {}
    for device in dict.fromkeys(part.device for part in remote):
        same = [part for part in remote if part.device == device]
        copies.update(zip(map(id, same), _transferred(same), strict=True))
    return lambda part: copies.get(id(part), part)


def _transferred(parts: Sequence[Tensor]) -> list[Values]:
    joined = torch.cat([part.reshape(-1) for part in parts]).cpu().numpy()
    return np.split(joined, np.cumsum([part.numel() for part in parts])[:-1])


def _stats(reduction: Reduction, numbers: Iterable[float], counts: Values | None) -> Stats:
    zeros, nonfinite, mean, std, low, high = map(float, numbers)
    histogram = None if counts is None else Histogram.from_dense(counts.view(np.int64))
    stats = Stats(reduction.count, int(zeros), int(nonfinite), mean, std, low, high, histogram)
    return stats + _all_zeros(reduction.implied_zeros, histogram is not None) if reduction.implied_zeros else stats


def _all_zeros(count: int, histogram: bool) -> Stats:
    counted = Histogram(np.array([0], np.uint16), np.array([count], np.int64)) if histogram else None
    return Stats(count, count, 0, 0.0, 0.0, 0.0, 0.0, counted)
