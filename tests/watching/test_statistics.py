import math

import numpy as np
import pytest
import torch

from vgrad_torch.records import Histogram, Stats
from vgrad_torch.watching import statistics as stats


def reduced(x: torch.Tensor, *, anywhere: bool = False) -> Stats:
    """`anywhere` takes the path of other devices, which a CPU can walk too."""
    reduction = stats.reduce(x)
    if anywhere:
        entries, _ = stats._entries(x)
        counts = stats._bit_histogram(entries).numpy()
        reduction = stats.Reduction(reduction.count, stats._on_device(entries), counts)
    return stats.fetch([reduction])[0][0]


@pytest.fixture(params=[False, True], ids=["cpu", "any device"])
def anywhere(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("scale", [1e-40, 1e-38, 1e-30, 1e-24, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_match_numpy_in_double_from_1e_minus_40_to_1e30(scale: float, offset: float, anywhere: bool) -> None:
    x = (
        (torch.randn(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + offset) * scale
    ).float()
    exact = x.double().numpy()
    got = reduced(x, anywhere=anywhere)
    tolerance = 1e-6 if scale > 1e-39 else 1e-5
    assert got.mean == pytest.approx(exact.mean(), rel=0, abs=2e-7 * np.abs(exact).mean())
    assert got.std == pytest.approx(exact.std(), rel=tolerance)
    assert got.rms == pytest.approx(np.sqrt(np.mean(exact**2)), rel=tolerance)
    assert (got.min, got.max) == (exact.min(), exact.max())
    assert (got.count, got.nonfinite, got.zeros) == (40_000, 0, int((exact == 0).sum()))


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 1e9, 1e30])
@pytest.mark.parametrize("count", [1, 1000, 20_000])
def test_rms_is_right_where_float32_squares_underflow_or_overflow(size: float, count: int) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(0)) * size
    assert float(stats.rms(x)) == pytest.approx(np.sqrt(np.mean(x.double().numpy() ** 2)), rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rms_of_what_is_not_finite_is_not(value: float) -> None:
    assert not np.isfinite(float(stats.rms(torch.tensor([1.0, value]))))


@pytest.mark.parametrize("constant", [0.1, -3e-39, 7.0])
def test_a_constant_has_no_spread(constant: float, anywhere: bool) -> None:
    x = torch.full((999,), constant)
    got = reduced(x, anywhere=anywhere)
    assert got.std <= 2e-7 * abs(constant)
    assert got.mean == pytest.approx(float(x[0]), rel=1e-12)


def test_non_finite_entries_are_counted_and_left_out(anywhere: bool) -> None:
    x = torch.tensor([1.0, math.nan, -2.0, math.inf, 0.0, -math.inf, -0.0])
    got = reduced(x, anywhere=anywhere)
    assert (got.count, got.nonfinite, got.finite, got.zeros) == (7, 3, 4, 2)
    assert got.mean == pytest.approx(-0.25)
    assert got.std == pytest.approx(np.std([1, -2, 0, 0]))
    assert (got.min, got.max) == (-2.0, 1.0)
    assert got.histogram is not None
    assert got.histogram.counts.sum() == 4


@pytest.mark.parametrize("x", [torch.full((5,), math.nan), torch.empty(0), torch.empty(0, 3)])
def test_nothing_finite_gives_nan_and_no_error(x: torch.Tensor, anywhere: bool) -> None:
    got = reduced(x, anywhere=anywhere)
    assert math.isnan(got.mean)
    assert math.isnan(got.std)
    assert math.isnan(got.min)
    assert math.isnan(got.max)
    assert got.nonfinite == x.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_is_reduced_as_its_own_values(dtype: torch.dtype) -> None:
    x = torch.randn(300, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    got = reduced(x)
    exact = x.double().numpy()
    assert got.mean == pytest.approx(exact.mean(), rel=0, abs=2e-7 * np.abs(exact).mean())
    assert got.std == pytest.approx(exact.std(), rel=1e-6)


def test_double_values_below_float32_keep_their_moments() -> None:
    x = torch.tensor([1e-60, -3e-60], dtype=torch.float64)
    got = reduced(x)
    assert got.mean == pytest.approx(-1e-60)
    assert got.zeros == 0


def test_sparse_gradients_count_the_zeros_they_do_not_store() -> None:
    dense = torch.zeros(50, 4)
    dense[[3, 7]] = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    sparse = stats.fetch([stats.reduce(dense.to_sparse(1))])[0][0]
    plain = reduced(dense)
    assert (sparse.count, sparse.zeros) == (plain.count, plain.zeros) == (200, 192)
    assert sparse.rms == pytest.approx(plain.rms)
    assert sparse.histogram is not None
    assert plain.histogram is not None
    np.testing.assert_array_equal(sparse.histogram.dense(), plain.histogram.dense())


@pytest.mark.parametrize("strided", ["channels_last", "expanded", "transposed"])
def test_memory_order_does_not_matter(strided: str) -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(4))
    view = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "expanded": x[:, :1].expand(2, 3, 4, 5),
        "transposed": x.transpose(0, 3),
    }[strided]
    assert reduced(view).mean == pytest.approx(view.double().mean().item())


def test_histogram_buckets_agree_with_comparisons_against_their_edges() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.cat([torch.randn(3000, generator=generator) * 10.0**e for e in (-42, -30, -8, 0, 6, 30)])
    x[::100] = 0
    histogram = reduced(x).histogram
    assert histogram is not None
    edges, counts = histogram.magnitudes()
    expected, _ = np.histogram(x.abs().double().numpy(), bins=np.append(edges[:-1], np.inf))
    np.testing.assert_array_equal(counts, expected)
    positive = int((x > 0).sum())
    assert histogram.dense()[1:2040].sum() == pytest.approx(positive, abs=int((x.abs() < 2e-39).sum()))


def test_log10_view_counts_what_lies_between_its_edges() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(6)) * 1e-4
    histogram = reduced(x).histogram
    assert histogram is not None
    edges, counts = histogram.log10(range(-52, 10, 2))
    assert len(edges) == 31
    expected, _ = np.histogram(np.log10(x.abs().double().numpy()), bins=edges)
    np.testing.assert_array_equal(counts, expected)


def test_log10_view_puts_what_is_beyond_its_ends_into_the_outer_buckets() -> None:
    histogram = reduced(torch.tensor([1e-30, 1e-20, 1.0, 1e20, 0.0])).histogram
    assert histogram is not None
    _, counts = histogram.log10(range(-52, 10, 2))
    assert (counts[0], counts[-1], counts.sum()) == (2, 1, 4)


def test_value_view_keeps_sign_and_total() -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(7)) * 1e-6 + 2e-7
    histogram = reduced(x).histogram
    assert histogram is not None
    edges, counts = histogram.values()
    assert np.all(np.diff(edges) > 0)
    assert counts.sum() == 4000
    expected, _ = np.histogram(x.double().numpy(), bins=edges)
    np.testing.assert_array_equal(counts[edges[:-1] >= 0], expected[edges[:-1] >= 0])


def test_large_tensors_are_counted_in_blocks() -> None:
    x = torch.randn(stats._BLOCK * 2 + 17, generator=torch.Generator().manual_seed(8))
    histogram = reduced(x).histogram
    assert histogram is not None
    assert histogram.counts.sum() == x.numel()
    codes = (x.numpy().view(np.uint32) >> 20).astype(np.int64)
    np.testing.assert_array_equal(histogram.dense(), np.bincount(codes, minlength=4096))


def test_merged_statistics_are_those_of_the_joined_tensor() -> None:
    generator = torch.Generator().manual_seed(9)
    parts = [torch.randn(n, generator=generator) * s + m for n, s, m in [(100, 1, 0), (37, 1e-3, 5), (1, 1, 9)]]
    parts.append(torch.tensor([math.nan]))
    merged = sum(stats.fetch([stats.reduce(p) for p in parts])[0][1:], stats.fetch([stats.reduce(parts[0])])[0][0])
    whole = reduced(torch.cat(parts))
    for name in ("count", "zeros", "nonfinite", "mean", "std", "min", "max"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-6), name
    assert merged.histogram is not None
    assert whole.histogram is not None
    np.testing.assert_array_equal(merged.histogram.dense(), whole.histogram.dense())


def test_merging_tiny_numbers_does_not_underflow() -> None:
    a, b = (stats.fetch([stats.reduce(torch.tensor(v))])[0][0] for v in ([1e-38, 3e-38], [-2e-38, 5e-38]))
    assert (a + b).std == pytest.approx(
        np.std(np.array([1e-38, 3e-38, -2e-38, 5e-38], np.float32).astype(float)), rel=1e-6
    )


def test_one_transfer_brings_every_bit_of_the_parts() -> None:
    counts = torch.arange(-2, 4096)
    parts = [torch.tensor(2.5, dtype=torch.float64), counts.view(torch.float64), torch.ones(6, dtype=torch.float64)]
    scalar, bits, ones = stats._transferred(parts)
    assert scalar.item() == 2.5
    np.testing.assert_array_equal(bits.view(np.int64), counts)
    assert ones.tolist() == [1.0] * 6


def test_what_lies_elsewhere_counts_its_histogram_alike() -> None:
    x = torch.randn(stats._BLOCK + 9, generator=torch.Generator().manual_seed(11))
    x[::5] = torch.tensor([0.0, -0.0, math.nan, -math.inf, 1e-42]).repeat(len(x))[: len(x[::5])]
    here, there = reduced(x).histogram, reduced(x, anywhere=True).histogram
    assert here is not None
    assert there is not None
    np.testing.assert_array_equal(here.dense(), there.dense())


def test_fetch_returns_scalars_beside_the_statistics() -> None:
    got, scalars, _ = stats.fetch([stats.reduce(torch.ones(3))], [stats.rms(torch.full((4,), 2.0))])
    assert got[0].mean == 1.0
    assert scalars == [2.0]


def test_empty_histogram_is_valid() -> None:
    edges, counts = Histogram(np.array([], np.uint16), np.array([], np.int64)).values()
    assert len(edges) == len(counts) + 1
    assert counts.sum() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_synchronises_before_fetch() -> None:
    x = torch.randn(100_000, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        reduction = stats.reduce(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert stats.fetch([reduction])[0][0].std == pytest.approx(x.double().std(correction=0).item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["normal", "two values"])
def test_large_tensors_lose_no_digits(kind: str) -> None:
    x = torch.randn(10_000_000, generator=torch.Generator().manual_seed(10))
    x = x * 0.1 if kind == "normal" else x.sign() * 0.1
    got = stats.fetch([stats.reduce(x, histogram=False)])[0][0]
    assert got.std == pytest.approx(x.double().std(correction=0).item(), rel=1e-6)
    assert got.mean == pytest.approx(x.double().mean().item(), abs=2e-8)
