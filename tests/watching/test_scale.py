"""The model behind runs/scale/README.md against small networks that are really watched."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import vgrad_torch as vg
from tests.scripts import scale, scale_model
from tests.scripts.scale_model import ALLOWED, Decoder, Traffic
from vgrad_torch.distributed.joint_snapshot import merged
from vgrad_torch.records import QUANTITIES, Snapshot
from vgrad_torch.watching import statistics as stats
from vgrad_torch.watching.sample import Sample
from vgrad_torch.watching.selection import select

SIZES = {
    "wide": {"width": 256, "blocks": 1, "hidden": 512, "keys": 64, "vocabulary": 1000},
    "middle": {"width": 64, "blocks": 4, "hidden": 128, "keys": 16, "vocabulary": 300},
    "deep": {"width": 32, "blocks": 12, "hidden": 64, "keys": 8, "vocabulary": 100},
}
BATCH, LENGTH = 4, 64


def watched_decoder(size: dict[str, int], folder: Path, histograms: bool) -> tuple[nn.Module, Snapshot, int]:
    """A decoder, its snapshot at the fourth step, and the bytes which that step's sample added to the log."""
    torch.manual_seed(0)
    model = Decoder(**size)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, size["width"] ** -0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    written: list[int] = []

    def look(_: Snapshot) -> None:
        written.append(sum(path.stat().st_size for path in folder.iterdir()))

    with vg.watch(
        model, optimizer, logdir=folder, every=1, layers=nn.Linear, histograms=lambda step: histograms, on_sample=look
    ) as monitor:
        for _ in range(4):  # a depth profile goes with the first three
            tokens = torch.randint(size["vocabulary"], (BATCH, LENGTH))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
            optimizer.step()
        return model, monitor.history[-1], written[3] - written[2]


@pytest.mark.parametrize("size", SIZES)
def test_numbers_take_the_bytes_of_a_watched_network(size: str, tmp_path: Path) -> None:
    model, real, written = watched_decoder(SIZES[size], tmp_path, histograms=False)
    made = scale_model.snapshot(model, BATCH * LENGTH, histograms=False)
    assert scale_model.sent(made) == pytest.approx(len(pickle.dumps((real, None))), rel=ALLOWED["bytes"])
    assert scale_model.logged(made, histograms=False) == pytest.approx(written, rel=ALLOWED["bytes"])
    joined = scale_model.snapshot(model, BATCH * LENGTH, histograms=False, ranks=256)
    assert scale_model.held(joined) == pytest.approx(scale_model.held(merged([real] * 256)), rel=ALLOWED["memory"])


@pytest.mark.parametrize("size", SIZES)
def test_histograms_take_the_bytes_of_a_watched_network(size: str, tmp_path: Path) -> None:
    """Ten bytes a bucket; how many buckets there are depends on the values, which here are not quite normal."""
    model, real, written = watched_decoder(SIZES[size], tmp_path, histograms=True)
    made = scale_model.snapshot(model, BATCH * LENGTH, histograms=True)
    assert scale_model.logged(made, histograms=True) == pytest.approx(written, rel=ALLOWED["bytes"])
    fixed = scale_model.sent(made) - 10 * buckets(made)
    assert fixed + 10 * buckets(real) == pytest.approx(len(pickle.dumps((real, None))), rel=ALLOWED["bytes"])
    assert buckets(made) == pytest.approx(buckets(real), rel=ALLOWED["buckets"])


def buckets(snapshot: Snapshot) -> int:
    found = (getattr(layer, quantity) for layer in snapshot.layers for quantity in QUANTITIES)
    return sum(len(stats.histogram.codes) for stats in found if stats)


def test_the_buckets_that_normal_values_fill() -> None:
    for count in (1 << 10, 1 << 16, 1 << 22):
        (real,), *_ = stats.fetch([stats.reduce(torch.randn(count, generator=torch.Generator().manual_seed(0)))])
        assert real.histogram is not None
        assert len(scale_model.normal_histogram(count).codes) == pytest.approx(len(real.histogram.codes), rel=0.04)


def test_traffic_by_hand() -> None:
    x = torch.empty(1000, device="meta")
    with Traffic(x) as traffic:
        wide = x.view(10, 100).double()  # reads 4 bytes of each entry and writes 8
        low = wide.amin()  # reads 8, writes 8 in all
        del wide
        high = x.amax()
    assert traffic.bytes == 12_000 + 8_008 + 4_004
    assert (traffic.kernels, traffic.peak) == (3, 8_008)
    assert low.dtype is not high.dtype


@contextmanager
def sampled(model: nn.Module, ranks: int) -> Iterator[None]:
    """What `watch()` does at a sample, from the forward pass to the optimizer's step."""
    sample = Sample(select(model, nn.Linear), scale=lambda device: torch.full((), float(ranks), device=device)).attach()
    yield
    sample.read_parameters()
    sample.detach()


def test_the_work_on_a_device_is_that_of_a_sample() -> None:
    """Of a model on the meta device, where forward and backward pass run and nothing is computed."""
    with torch.device("meta"):
        model = Decoder(width=1024, blocks=1, hidden=2048, keys=256, vocabulary=4000).bfloat16()
        tokens = torch.zeros(BATCH, LENGTH, dtype=torch.long)

    def passes() -> Traffic:
        traffic = Traffic()
        with traffic:
            model(tokens).float().square().mean().backward()
        return traffic

    bare = passes()
    model.zero_grad()
    with Traffic() as traffic, sampled(model, ranks=8):
        model(tokens).float().square().mean().backward()
    parts = scale_model.statistics(model, BATCH * LENGTH, torch.bfloat16, histograms=True)
    work = scale_model.Work.total(part for _, part in parts)
    assert work.bytes == pytest.approx(traffic.bytes - bare.bytes, rel=ALLOWED["traffic"])
    assert work.kernels == pytest.approx(traffic.kernels - bare.kernels, rel=ALLOWED["kernels"])


def test_the_decoder_has_the_parameters_of_llama_3_70b() -> None:
    with torch.device("meta"):
        model = Decoder()
    assert sum(parameter.numel() for parameter in model.parameters()) == 70_553_706_496
    assert len(scale_model.watched(model)) == 7 * 80 + 1


def test_the_page_is_made_whole_and_its_sums_are_right() -> None:
    """Of a cost whose numbers are simple, as the real one takes seconds."""
    work = scale_model.Work(bytes=3.35e12, kernels=1000, peak=4e9)
    cost = scale.Cost(sent=1000, logged=2000, profiled=10, own=4000, joined=8000, work=work, merge=1e-6)
    case = scale.Case(scale.Setting(), 10**9, 100, 9 * 10**8, 2 * 10**9, cost, cost)
    words = scale.page(case)
    assert cost.gather(case.setting) == pytest.approx(1024 * 1000 / 50e9)
    assert case.total(cost) == pytest.approx(1024 * 1000 / 50e9 + 1e-6 * 1024 * 100 + 1.0)
    for row in (
        "| each rank receives | 1.0 MB | 1.0 MB |",
        "| in all | 1.0 GB | 1.0 GB |",
        "| **time in all** | **1.1 s** | **1.1 s** |",
        "| a tree | numbers only | 10 kB | 0 us | 1.0 ms |",
        "| reduced tensors | numbers only | 29 kB | 1 us | none in Python |",
    ):
        assert row in words
    assert "are 5,000 samples" in words
    assert all(len(line) <= 120 for line in words.splitlines())
