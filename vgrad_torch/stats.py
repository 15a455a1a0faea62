"""Pure reductions on tensors: moments, extremes, zeros, non-finite entries and a log2 histogram, and their way home.

Everything stays on the tensor's device until `fetch`, which makes one transfer for all reductions of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vgrad_torch.records import CODES, Histogram, Stats

Values = npt.NDArray[Any]

_DOT = 1 << 13  # entries that are added up in float32, by one thread; the sums of these are added in double
_BLOCK = 1 << 20  # elements counted at a time: the temporaries stay small, and on a CPU mostly in cache


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """One tensor reduced: `numbers` is float64 [6], zeros, non-finite entries, mean, std, min and max.

    `implied_zeros` are those that a sparse tensor does not store.
    """

    count: int
    numbers: Tensor
    histogram: Tensor | None
    implied_zeros: int = 0


def reduce(tensor: Tensor, *, histogram: bool = True) -> Reduction:
    """Reduce a floating-point tensor of any shape, layout and precision, right from 1e-40 to 1e30.

    Counts and extremes are exact; std is good to 1e-6 of itself and the mean to 2e-7 of the mean magnitude.
    """
    x, implied_zeros = _entries(tensor.detach())
    numbers = _on_cpu(x) if x.device.type == "cpu" else _on_device(x)
    return Reduction(x.numel(), numbers, _bit_histogram(x) if histogram else None, implied_zeros)


def pool_histograms(reductions: list[Reduction]) -> None:
    """Count the last reduction's values in the first one's histogram, and free its own."""
    first, last = reductions[0].histogram, reductions[-1].histogram
    if first is not None and last is not None:
        first += last
        reductions[-1] = replace(reductions[-1], histogram=None)


def rms(tensor: Tensor) -> Tensor:
    """sqrt(mean(x**2)) as a float64 scalar on the tensor's device."""
    x, implied_zeros = _entries(tensor.detach())
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm / math.sqrt(max(x.numel() + implied_zeros, 1))


def fetch(reductions: Sequence[Reduction], scalars: Sequence[Tensor] = ()) -> tuple[list[Stats], list[float]]:
    """Bring reductions and float64 scalars to the host, in one transfer for each device they lie on."""
    parts = [r.numbers for r in reductions]
    parts += [r.histogram.view(torch.float64) for r in reductions if r.histogram is not None]
    parts += [scalar.reshape(1) for scalar in scalars]
    home = iter(_to_host(parts))
    numbers = [next(home) for _ in reductions]
    counts = [None if r.histogram is None else next(home).view(np.int64) for r in reductions]
    stats = [_stats(r, n, c) for r, n, c in zip(reductions, numbers, counts, strict=True)]
    return stats, [float(value[0]) for value in home]


def _entries(tensor: Tensor) -> tuple[Tensor, int]:
    """The stored entries in one dimension, in a dtype that the reductions can take, and how many zeros are implied."""
    implied = 0
    if tensor.layout != torch.strided:
        stored = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
        implied = tensor.numel() - stored.numel()
        tensor = stored
    if tensor.device.type == "mps":  # which has no double precision
        tensor = tensor.cpu()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.reshape(-1), implied


def _on_cpu(tensor: Tensor) -> Tensor:
    """Reading a value costs nothing here, so the rare cases are branches.

    NumPy's loops on one core: waking torch's other threads for each reduction takes longer than the reduction.
    """
    x = tensor.numpy()
    low, high = _extremes(x)
    nonfinite = 0
    if not math.isfinite(high - low):  # one of them is not, or there is no entry
        finite = x[np.isfinite(x)]
        nonfinite, x = len(x) - len(finite), finite
        low, high = _extremes(x)
    if not len(x):
        return torch.tensor([0, nonfinite, *[math.nan] * 4], dtype=torch.float64)
    zeros = np.count_nonzero(x == 0)
    return torch.tensor([zeros, nonfinite, *_moments(x, max(-low, high)), low, high], dtype=torch.float64)


def _extremes(x: Values) -> tuple[float, float]:
    return (float(np.minimum.reduce(x)), float(np.maximum.reduce(x))) if len(x) else (math.nan, math.nan)


def _moments(x: Values, peak: float) -> tuple[float, float]:
    """Mean and population std of values up to `peak`, whose squares shall neither vanish nor overflow."""
    if not 1e-12 < peak < 1e12:
        scale = 2.0 ** -math.frexp(peak)[1]
        mean, std = _moments((x.astype(np.float64) * scale).astype(x.dtype), peak * scale) if peak else (0.0, 0.0)
        return mean / scale, std / scale
    ones = np.ones(min(len(x), _DOT), x.dtype)
    blocks = [x[start : start + _DOT] for start in range(0, len(x), _DOT)]
    mean = math.fsum(float(block.dot(ones[: len(block)])) for block in blocks) / len(x)
    mean_square = math.fsum(float(block.dot(block)) for block in blocks) / len(x)
    variance = mean_square - mean * mean
    if variance < 0.5 * mean_square:  # the mean stands out, and the difference would lose digits
        return float(x.mean(dtype=np.float64)), float(x.std(dtype=np.float64))
    return mean, math.sqrt(variance)


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


def _to_host(parts: Sequence[Tensor]) -> list[np.ndarray]:
    host: list[np.ndarray | None] = [None] * len(parts)
    for device in dict.fromkeys(part.device for part in parts):
        mine = [i for i, part in enumerate(parts) if part.device == device]
        if device.type == "cpu":
            arrays = [parts[i].numpy() for i in mine]
        else:
            sizes = np.cumsum([parts[i].numel() for i in mine])[:-1]
            arrays = np.split(torch.cat([parts[i] for i in mine]).cpu().numpy(), sizes)
        for i, array in zip(mine, arrays, strict=True):
            host[i] = array
    return [array for array in host if array is not None]


def _stats(reduction: Reduction, numbers: np.ndarray, counts: np.ndarray | None) -> Stats:
    zeros, nonfinite, mean, std, low, high = (float(v) for v in numbers)
    histogram = None if counts is None else Histogram.from_dense(counts)
    stats = Stats(reduction.count, int(zeros), int(nonfinite), mean, std, low, high, histogram)
    return stats + _all_zeros(reduction.implied_zeros, histogram is not None) if reduction.implied_zeros else stats


def _all_zeros(count: int, histogram: bool) -> Stats:
    counted = Histogram(np.array([0], np.uint16), np.array([count], np.int64)) if histogram else None
    return Stats(count, count, 0, 0.0, 0.0, 0.0, 0.0, counted)
