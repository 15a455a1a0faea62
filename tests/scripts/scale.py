"""`make scale`: what watching costs at 70 billion parameters on 1,024 ranks, written into runs/scale/README.md.

Nothing of that size is trained: the decoder lies on the meta device, and `scale_model` makes from it what the package
would send, keep, write and compute. `tests/test_scale.py` holds that against small networks that are really watched.
"""

from __future__ import annotations

import math
import pickle
import platform
import statistics
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tests import ROOT
from tests.scripts import scale_model as made
from tests.scripts.scale_model import Decoder, Work
from vgrad_torch.distributed.joint_snapshot import merged
from vgrad_torch.records import ACTIVATIONS, CODES, History, Snapshot
from vgrad_torch.watching.schedule import sparse_steps
from vgrad_torch.watching.statistics import _DEVICE_BLOCK

PAGE = ROOT / "runs" / "scale" / "README.md"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is assumed; all else is computed."""

    ranks: int = 1024
    tokens: int = 4096
    """Of a step on each rank."""
    dtype: torch.dtype = torch.bfloat16
    memory: float = 3.35e12
    """Bytes a second of a device's own memory: an H100's."""
    network: float = 50e9
    """Bytes a second into each rank: 400 Gbit/s."""
    launch: float = 5e-6
    """Seconds to start a kernel."""
    flops: float = 0.4 * 989e12
    """Of an H100 in bfloat16, of which training gets 40 %."""
    steps: int = 500_000
    every: int = 100


@dataclass(frozen=True, slots=True)
class Cost:
    """A sample, without or with histograms: bytes, and seconds for one of the ranks."""

    sent: int
    logged: int
    profiled: int
    own: int
    """Bytes of a rank's own snapshot on the host."""
    joined: int
    """Bytes of the joined snapshot on the host."""
    work: Work
    merge: float
    """Seconds to unpickle one rank's record of one layer and to put it to the others, on this machine."""

    def gather(self, setting: Setting) -> float:
        """Seconds to receive what all ranks sent."""
        return setting.ranks * self.sent / setting.network

    def merging(self, setting: Setting, layers: int) -> float:
        """Seconds to unpickle all ranks' snapshots and put them together."""
        return self.merge * setting.ranks * layers

    def device(self, setting: Setting) -> float:
        """Seconds of the statistics: the memory's or those to start the kernels, whichever are more."""
        return max(self.work.bytes / setting.memory, self.work.kernels * setting.launch)


def cost(model: Decoder, setting: Setting, *, histograms: bool) -> Cost:
    """What one sample costs."""
    own = made.snapshot(model, setting.tokens, histograms=histograms)
    joined = made.snapshot(model, setting.tokens, histograms=histograms, ranks=setting.ranks)
    parts = made.statistics(model, setting.tokens, setting.dtype, histograms=histograms)
    return Cost(
        made.sent(own), made.logged(joined, histograms=histograms), made.profiled(joined), made.held(own),
        made.held(joined), Work.total(work for _, work in parts), _merge_seconds(own),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """The decoder in its setting, and what its samples cost."""

    setting: Setting
    parameters: int
    layers: int
    weights: int
    """Entries of the watched weights."""
    values: int
    """Entries of all tensors that a sample reduces on a rank."""
    plain: Cost
    full: Cost
    """With histograms."""

    @classmethod
    def of(cls, setting: Setting) -> Case:
        """Of the 70 billion."""
        with torch.device("meta"):
            model = Decoder()
        watched = made.watched(model).values()
        weights = sum(layer.weight.numel() for layer in watched)
        passing = setting.tokens * sum(2 * layer.out_features + layer.in_features for layer in watched)
        plain, full = (cost(model, setting, histograms=histograms) for histograms in (False, True))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return cls(setting, parameters, len(watched), weights, 2 * weights + passing, plain, full)

    @property
    def step(self) -> float:
        """Seconds of a training step."""
        return 6 * self.parameters * self.setting.tokens / self.setting.flops

    def total(self, cost: Cost) -> float:
        """Seconds of a sample."""
        return cost.gather(self.setting) + cost.merging(self.setting, self.layers) + cost.device(self.setting)


def _merge_seconds(own: Snapshot, ranks: int = 16, layers: int = 57) -> float:
    part = Snapshot(own.step, own.layers[:layers], own.wall_time)
    packed, seconds = pickle.dumps(part), []
    for _ in range(5):
        start = time.process_time()
        merged([pickle.loads(packed) for _ in range(ranks)])
        seconds.append(time.process_time() - start)
    return statistics.median(seconds) / (ranks * layers)


def amount(size: float) -> str:
    """Bytes with a decimal prefix.

    >>> amount(1234), amount(15.4e9), amount(12)
    ('1.2 kB', '15 GB', '12 B')
    """
    power = min(int(math.log10(max(size, 1)) // 3), 5)
    number = size / 1000**power
    return f"{number:.{int(power > 0 and number < 9.95)}f} {('', 'k', 'M', 'G', 'T', 'P')[power]}B"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(39e-6), duration(0.0042), duration(0.3), duration(4.4), duration(720)
    ('39 us', '4.2 ms', '300 ms', '4.4 s', '12 min')
    """
    if seconds < 0.95e-3:
        return f"{1e6 * seconds:.0f} us"
    if seconds < 0.95:
        return f"{1000 * seconds:.{int(seconds < 0.0095)}f} ms"
    return f"{seconds:.2g} s" if seconds < 95 else f"{seconds / 60:.0f} min"


def text(words: str, indent: str = "") -> str:
    """A paragraph, its lines broken anew; of an item of a list the later ones are indented."""
    return textwrap.fill(" ".join(words.split()), 120, subsequent_indent=indent)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def page(case: Case) -> str:
    """The whole page."""
    parts = [
        _head(case),
        "## A sample", _sample(case),
        "## What does not scale", _limits(case),
        "## What would", _better(case),
        "## The log and the memory of a run", _run(case),
        "## How far this can be trusted", _trust(),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _head(case: Case) -> str:
    setting = case.setting
    return "\n".join([
        f"# What watching costs at {case.parameters / 1e9:.1f} billion parameters on {setting.ranks:,} ranks\n",
        text(f"""Made by `make scale`; the figures are computed, and nothing of this size was trained. The network is a
        decoder of the shape of Llama 3 70B on the meta device; its {case.layers} Linear layers are watched.
        Assumed:"""),
        "",
        text("""- Every rank holds the whole model, as under `DistributedDataParallel`: the dearest case. A model of
        this size must be sharded, by `fully_shard` say. Then a rank looks at its shards: the work on the weights is
        divided by their number; the layers, and what is sent and written for each, stay.""", "  "),
        text(f"""- {setting.tokens:,} tokens a step on each rank, in {str(setting.dtype).removeprefix("torch.")}. A step
        takes {duration(case.step)}: 6 x parameters x tokens, at {setting.flops / 1e12:.0f} TFLOP/s.""", "  "),
        text(f"""- {setting.memory / 1e12:.2f} TB/s of device memory, {setting.network / 1e9:.0f} GB/s of network
        into each rank, {setting.launch * 1e6:.0f} microseconds to start a kernel.""", "  "),
        "- All values are normal, which says how many buckets of a histogram they fill.",
    ])  # fmt: skip


def _sample(case: Case) -> str:
    setting, both = case.setting, (case.plain, case.full)
    rows = [
        ["a rank sends", *(amount(c.sent) for c in both)],
        ["each rank receives", *(amount(c.sent * setting.ranks) for c in both)],
        ["in all", *(amount(c.sent * setting.ranks**2) for c in both)],
        ["time to receive it", *(duration(c.gather(setting)) for c in both)],
        ["host memory of all ranks' snapshots, on each rank", *(amount(c.own * setting.ranks) for c in both)],
        ["time to unpickle and merge them, on each rank", *(duration(c.merging(setting, case.layers)) for c in both)],
        ["rank 0 writes", *(amount(c.logged) for c in both)],
        ["device memory read and written for the statistics", *(amount(c.work.bytes) for c in both)],
        ["time of that", *(duration(c.work.bytes / setting.memory) for c in both)],
        ["kernels", *(f"{c.work.kernels:,.0f}" for c in both)],
        ["time to start them", *(duration(c.work.kernels * setting.launch) for c in both)],
        ["device memory for temporaries", *(amount(c.work.peak) for c in both)],
        ["**time in all**", *(f"**{duration(case.total(c))}**" for c in both)],
        ["one in so many steps is 2 % of the time", *(f"{case.total(c) / 0.02 / case.step:,.0f}" for c in both)],
    ]
    return table(["one sample", "numbers only", "with histograms"], rows)


def _limits(case: Case) -> str:
    setting, plain, full = case.setting, case.plain, case.full
    once = 2 * case.weights * setting.dtype.itemsize / setting.memory
    return "\n".join([
        text(f"""1. **Merging.** `all_gather_object` brings the pickled snapshot of every rank to every rank, and
        each puts all of them together in Python: {setting.ranks:,} snapshots arrive where one is needed. With
        histograms {amount(full.sent * setting.ranks)} come to lie on the device (NCCL moves objects there) and
        {amount(full.own * setting.ranks)} on the host, and merging takes
        {duration(full.merging(setting, case.layers))}. Weights and their gradients, alike on all ranks, are sent along
        and thrown away.""", "   "),
        text(f"""2. **The statistics on a device.** They are separate operations, mostly in double precision:
        {plain.work.bytes / case.values:.0f} bytes of traffic for each of {case.values / 1e9:.0f} billion values, and
        {amount(plain.work.peak)} of temporaries for the largest layer. To read the {setting.dtype.itemsize} bytes of
        each weight and gradient once would take {duration(once)}. Histograms start kernels for every {_DEVICE_BLOCK:,}
        values, and to start {full.work.kernels:,.0f} of them takes
        {duration(full.work.kernels * setting.launch)}.""", "   "),
        text(f"""3. **`rank_rms`.** {setting.ranks:,} numbers for each layer are {1 - plain.own / plain.joined:.0%} of a
        joined snapshot's memory without histograms.""", "   "),
    ])  # fmt: skip


def _better(case: Case) -> str:
    setting, rows = case.setting, []
    for name, c, width in (("numbers only", case.plain, 6 * 8), ("with histograms", case.full, 6 * 8 + CODES * 8)):
        rounds = math.ceil(math.log2(setting.ranks))
        fixed = 2 * len(ACTIVATIONS) * case.layers * width
        ways = [("as it is", c.sent * setting.ranks, setting.ranks), ("a tree", c.sent * rounds, rounds)]
        rows += [
            [way, name, amount(size), duration(size / setting.network), duration(c.merge * merges * case.layers)]
            for way, size, merges in ways
        ]
        rows.append(["reduced tensors", name, amount(fixed), duration(fixed / setting.network), "none in Python"])
    head = ["", "", "into the busiest rank", "time", "merging there"]
    words = f"""*A tree*: two ranks' snapshots become one, {math.ceil(math.log2(setting.ranks))} rounds of it, with
    the merge that there is. *Reduced tensors*: for each of the {len(ACTIVATIONS)} activation quantities of a layer
    six float64, and {CODES:,} int64 with histograms, all-reduced in a ring (sums of counts, values and squares on a
    scale agreed on; minima and maxima apart). For that all ranks must see the same calls in the same order. The RMS
    of every rank's output gradients, gathered at rank 0, are {amount(8 * setting.ranks * case.layers)} more; those
    of one layer {amount(8 * setting.ranks)}."""
    return f"{table(head, rows)}\n\n{text(words)}"


def _run(case: Case) -> str:
    setting = case.setting
    sampled = range(0, setting.steps, setting.every)
    due, profile = sparse_steps(), sparse_steps(ratio=2.0)
    histograms = [step for step in sampled if due(step)]
    profiles = sum(profile(step) for step in histograms)
    numbers = len(sampled) - len(histograms)
    log = numbers * case.plain.logged + len(histograms) * case.full.logged + profiles * case.full.profiled
    kept = History().layers // case.layers
    held = kept * case.plain.joined + min(kept, len(histograms)) * (case.full.joined - case.plain.joined)
    bare = held - kept * (case.plain.joined - case.plain.own)
    return text(f"""{setting.steps:,} steps, one in {setting.every} sampled, are {len(sampled):,} samples,
    {len(histograms)} of them with histograms, and {profiles} depth profiles of {amount(case.full.profiled)}: an event
    file of {amount(log)}. The history keeps at most {History().layers:,} layers, {kept} snapshots here: up to
    {amount(held)} of host memory on each rank, as each has it; without `rank_rms` {amount(bare)}.""")


def _trust() -> str:
    allowed = {what: f"{share:.0%}" for what, share in made.ALLOWED.items()}
    return text(f"""The bytes come from the package's own pickling and writing of a snapshot of this size. Against small
    decoders that are really watched the tests allow {allowed["bytes"]} ({allowed["memory"]} for memory), with
    histograms {allowed["bytes"]} at the same number of filled buckets, and {allowed["buckets"]} for that number, as
    real values are not quite normal. Traffic and kernels are those of the package's operations, counted one by one
    on the meta device; against a whole sample of a small decoder the tests allow {allowed["traffic"]} and
    {allowed["kernels"]}. Seconds on a device are these counts over the assumed speeds: no device was used. Caches
    would make them shorter, contended additions to a histogram longer. The seconds of merging are CPU time measured
    on one core ({platform.machine()}) with 16 ranks and 57 layers, and multiplied.""")


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(Case.of(Setting())))
    print(PAGE.read_text())
