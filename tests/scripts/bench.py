"""make bench: what a step costs when it is watched, as a ratio to the bare step, beside what people do today.

All rows of a table are timed in one process in turn, round after round, so that what else the machine does hits all of
them alike; a ratio is the median over the rounds, with the quartiles beside it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

import vgrad_torch as vg

Step = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Workload:
    """A network, what it is fed, and how many of its steps make a round."""

    title: str
    build: Callable[[], nn.Module]
    batch: tuple[Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int

    def fresh(self) -> tuple[nn.Module, Optimizer, Step]:
        """A network of its own, its optimizer, and one bare training step."""
        torch.manual_seed(0)
        model = self.build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            self.loss(model(self.batch[0]), self.batch[1]).backward()
            optimizer.step()

        return model, optimizer, step


class Transformer(nn.Module):
    """A causal language model: 6 blocks of width 352, 4 heads, a vocabulary of 2,000."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2000, 352)
        block = nn.TransformerEncoderLayer(352, 4, 4 * 352, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 6, enable_nested_tensor=False)
        self.head = nn.Linear(352, 2000)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        logits: Tensor = self.head(self.blocks(self.embedding(tokens), mask=mask, is_causal=True))
        return logits.flatten(0, 1)


def mxnet_net() -> Workload:
    """The MXNet document's network at batch 128."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(128, 784, generator=generator), torch.randint(10, (128,), generator=generator)
    widths = [784, 512, 256, 128, 64, 32, 16, 10]
    title = "784-512-256-128-64-32-16-10, batch 128"
    return Workload(title, lambda: vg.build_mlp(widths, "relu", "he"), batch, nn.functional.cross_entropy, 25)


def transformer() -> Workload:
    """About 10 million parameters, 8 sequences of 64 tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2000, (8, 65), generator=generator)
    batch = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()
    million = sum(p.numel() for p in Transformer().parameters()) / 1e6
    title = f"transformer of {million:.1f} million parameters, 8 x 64 tokens"
    return Workload(title, Transformer, batch, nn.functional.cross_entropy, 4)


@contextmanager
def watched(workload: Workload, **options: Any) -> Iterator[Step]:
    """A step under watch(), logging into a folder as a user would."""
    model, optimizer, step = workload.fresh()
    with tempfile.TemporaryDirectory() as folder, vg.watch(model, optimizer, logdir=folder, **options):
        yield step


@contextmanager
def bare(workload: Workload) -> Iterator[Step]:
    """The step alone."""
    yield workload.fresh()[2]


@contextmanager
def norms(workload: Workload) -> Iterator[Step]:
    """The norm of each weight's gradient, brought home, and one scalar written for each."""
    model, _, step = workload.fresh()
    weights = [(name, p) for name, p in model.named_parameters() if name.endswith("weight")]
    count = 0
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:

        def look() -> None:
            nonlocal count
            step()
            found = torch.stack(list(torch._foreach_norm([p.grad for _, p in weights if p.grad is not None]))).tolist()
            for (name, _), norm in zip(weights, found, strict=True):
                writer.add_scalar(f"norm/{name}", norm, count)
            count += 1

        yield look


@contextmanager
def add_histogram_loop(workload: Workload) -> Iterator[Step]:
    """What tutorials show: add_histogram for each parameter and its gradient."""
    model, _, step = workload.fresh()
    count = 0
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:

        def look() -> None:
            nonlocal count
            step()
            for name, p in model.named_parameters():
                writer.add_histogram(name, p, count)
                writer.add_histogram(f"{name}.grad", p.grad, count)
            count += 1

        yield look


@contextmanager
def wandb_watch(workload: Workload) -> Iterator[Step]:
    """wandb.watch of gradients and parameters at every step, offline."""
    wandb = importlib.import_module("wandb")

    model, _, step = workload.fresh()
    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(dir=folder, mode="offline", settings=wandb.Settings(silent=True, console="off"))
        wandb.watch(model, log="all", log_freq=1)

        def look() -> None:
            step()
            run.log({"seen": 1})

        yield look
        wandb.unwatch(model)
        run.finish()


ROWS: dict[str, Callable[[Workload], Any]] = {
    "bare": bare,
    "watch, every step, default histograms": lambda w: watched(w, every=1),
    "watch, every step, histograms of everything": lambda w: watched(w, every=1, histograms=lambda step: True),
    "watch, every step, no histograms": lambda w: watched(w, every=1, histograms=False),
    "watch, every step, weight gradients with histograms": lambda w: watched(
        w, every=1, quantities=("weight_gradient",), histograms=lambda step: True
    ),
    "watch, every step, weight gradients, no histograms": lambda w: watched(
        w, every=1, quantities=("weight_gradient",), histograms=False
    ),
    "norms of the weight gradients and add_scalar": norms,
    "add_histogram loop": add_histogram_loop,
    "wandb.watch, offline": wandb_watch,
}


def seconds(step: Step, times: int) -> float:
    """Median time of a step."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def mean_seconds(step: Step, times: int) -> float:
    """Mean time of a step: where only some steps are sampled, the median would leave those out."""
    start = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - start) / times


def compare(workload: Workload, rounds: int, console: Console) -> None:
    """Time all rows in turn and print the table."""
    rows = dict(ROWS)
    if importlib.util.find_spec("wandb") is None:
        del rows["wandb.watch, offline"]
        console.print("wandb is not installed, so its row is left out (pip install wandb)")
    taken: dict[str, list[float]] = {name: [] for name in rows}
    with ExitStack() as stack:
        steps = {name: stack.enter_context(row(workload)) for name, row in rows.items()}
        for step in steps.values():
            mean_seconds(step, 3)
        for _ in track(range(rounds), workload.title, console=console):
            for name, step in steps.items():
                taken[name].append(mean_seconds(step, 1 if "loop" in name else workload.steps))
    table = Table("row", "ms a step", "times bare", "quartiles", title=workload.title, title_justify="left")
    for name, times in taken.items():
        ratios = [t / b for t, b in zip(times, taken["bare"], strict=True)]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        table.add_row(name, f"{statistics.median(times) * 1e3:.2f}", f"{middle:.2f}", f"{low:.2f} .. {high:.2f}")
    console.print(table)


def thinned(workload: Workload, steps: int, rounds: int, console: Console) -> None:
    """`every=None` against bare, in long stretches: the budget is a share of the wall time."""
    ratios = []
    for _ in track(range(rounds), "every=None", console=console):
        pair = []
        for row in (bare, watched):
            with row(workload) as step:
                mean_seconds(step, 20 if row is bare else 1)
                pair.append(mean_seconds(step, steps))
        ratios.append(pair[1] / pair[0])
    shown = ", ".join(f"{ratio:.3f}" for ratio in sorted(ratios))
    console.print(f"watch, every=None, {steps} steps, {rounds} rounds: {shown}; median {statistics.median(ratios):.3f}")


def cost_of_a_sample(widths: list[int], batch: int, times: int) -> tuple[int, float]:
    """Parameters, and the seconds that a sampled step takes longer than a bare one."""
    x = torch.rand(batch, widths[0])
    y = torch.randint(widths[-1], (batch,))
    workload = Workload("", lambda: vg.build_mlp(widths, "relu", "he"), (x, y), nn.functional.cross_entropy, 1)
    differences = []
    with bare(workload) as plain, watched(workload, every=1, histograms=lambda step: True) as seen:
        seconds(plain, 2), seconds(seen, 2)
        for _ in range(times):
            differences.append(seconds(seen, 3) - seconds(plain, 3))
    return sum(a * b for a, b in pairwise(widths)), statistics.median(differences)


def growth(console: Console) -> None:
    """How the cost of a sample grows with parameters and with layers."""
    table = Table("parameters", "ms a sample", "ns a parameter", title="4 layers, batch 8", title_justify="left")
    found = []
    for exponent in (5, 6, 7, 8):
        width = round(math.sqrt(10**exponent / 4))
        parameters, cost = cost_of_a_sample([width] * 5, 8, 5 if exponent < 8 else 3)
        found.append((parameters, cost))
        table.add_row(f"{parameters:.1e}", f"{cost * 1e3:.1f}", f"{cost / parameters * 1e9:.1f}")
    console.print(table)
    slope = np.polyfit(np.log([p for p, _ in found]), np.log([c for _, c in found]), 1)[0]
    last = math.log(found[-1][1] / found[-2][1]) / math.log(found[-1][0] / found[-2][0])
    console.print(f"slope of log time over log parameters {slope:.2f}; of the last decade {last:.2f}")
    table = Table("layers", "ms a sample", "us a layer", title="width 16, batch 8", title_justify="left")
    for layers in (10, 100, 1000):
        cost = cost_of_a_sample([16] * (layers + 1), 8, 5)[1]
        table.add_row(str(layers), f"{cost * 1e3:.1f}", f"{cost / layers * 1e6:.0f}")
    console.print(table)


def main() -> None:
    """Run the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tables", nargs="*", default=[], help="mlp transformer thinned growth (default: all)")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    console = Console(width=120)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    tables: dict[str, Callable[[], None]] = {
        "mlp": lambda: compare(mxnet_net(), options.rounds, console),
        "transformer": lambda: compare(transformer(), max(options.rounds // 2, 1), console),
        "thinned": lambda: thinned(mxnet_net(), 2000, 5, console),
        "growth": lambda: growth(console),
    }
    warnings.simplefilter("ignore")
    for name in options.tables or tables:
        tables[name]()


if __name__ == "__main__":
    main()
