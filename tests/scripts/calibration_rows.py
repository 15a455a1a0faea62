"""The networks of the calibration as rows: from what was recorded to `networks.csv`, and from there to evidence."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.scripts.calibration_grid import BATCH, EARLY, RATES, SEEDS, Configuration, configurations, data, members
from tests.scripts.ensemble import NUMBERS, QUANTITIES
from vgrad_torch.records import LayerSnapshot, Snapshot, Stats
from vgrad_torch.verdict.evidence import Evidence, gather, window
from vgrad_torch.verdict.measures import log10
from vgrad_torch.verdict.states import norm

Numbers = npt.NDArray[np.float64]

TIMES = ("start", "early", "end")
"""Before training, at 5 % of it, and at its end."""
FIELDS = {
    "start": ("signal", "drive", "lost", "zeros"),
    **dict.fromkeys(("early", "end"), ("signal", "drive", "residual", "zeros")),
}
"""What a row keeps of the evidence; `lost` stays what it was, and the residual at the start is 1."""
PUBLISHED = ("mean_abs", "first_norm", "norm_ratio", "total_norm")
"""log10 of what published rules look at, of weight gradients: the smallest mean |g| of a layer, the first layer's norm,
that over the last one's, the norm of all."""
STEPS = {"start": 0, "early": EARLY[-1], "end": 3000}


@dataclass(frozen=True, slots=True)
class Row:
    """One network: `trains` if it reached the target at any rate, `rate` is that one, or else the best it had.

    `accuracy` is the training accuracy when its training ended at this rate. `numbers` are the columns of its evidence
    and of the published rules, by `<time>_<name>`; NaN if not finite.
    """

    configuration: Configuration
    optimizer: str
    seed: int
    rate: float
    trains: bool
    accuracy: float
    numbers: dict[str, float]

    def evidence(self, time: str) -> Evidence:
        """The evidence at a time, as `gather` made it."""
        found: dict[str, Any] = {field: self.numbers[f"{time}_{field}"] for field in FIELDS[time]}
        found["lost"] = self.numbers["start_lost"]
        broken = "a layer" if math.isnan(found["zeros"]) else None  # a gradient that is zero everywhere has no signal
        return Evidence(STEPS[time], 0, 1, self.configuration.depth + 1, nonfinite=broken, **{"residual": 1.0, **found})


def columns() -> list[str]:
    """Names of a row's numbers."""
    evidence = [f"{time}_{field}" for time in TIMES for field in FIELDS[time]]
    return evidence + [f"{time}_{name}" for time in ("start", "early") for name in PUBLISHED]


def recorded(folder: Path) -> Iterator[Row]:
    """The rows of all configurations that were trained."""
    for configuration in configurations():
        path = folder / f"{configuration.name}.npz"
        if path.exists():
            with np.load(path) as found:
                yield from _networks(configuration, dict(found))


def _networks(configuration: Configuration, found: dict[str, npt.NDArray[np.float64]]) -> Iterator[Row]:
    everyone = members()
    for optimizer in RATES:
        for seed in SEEDS:
            rivals = [i for i, (name, _, s) in enumerate(everyone) if (name, s) == (optimizer, seed)]
            best = max(rivals, key=lambda i: (found["success"][i] >= 0, found["accuracy"][i]))
            samples, mean_abs = _samples(configuration, found["steps"][best], found["numbers"][best])
            yield Row(
                configuration, optimizer, seed, everyone[best][1], bool(found["success"][best] >= 0),
                round(float(found["accuracy"][best]), 3), _row_numbers(samples, mean_abs),
            )  # fmt: skip


def _row_numbers(samples: Sequence[Snapshot], mean_abs: Numbers) -> dict[str, float]:
    early = [sample for sample in samples if sample.step <= EARLY[-1]]
    times = {"start": samples[:1], "early": early, "end": samples}
    numbers: dict[str, float] = {}
    for time, seen in times.items():
        evidence = gather(seen)
        numbers |= {f"{time}_{field}": _finite(getattr(evidence, field), evidence) for field in FIELDS[time]}
        if time != "end":
            judged = window(seen)
            smallest = [float(row) for row in mean_abs[len(seen) - len(judged) : len(seen)]]
            numbers |= {f"{time}_{name}": value for name, value in _published(judged, smallest).items()}
    return {name: round_off(value) for name, value in numbers.items()}


def _finite(value: float, evidence: Evidence) -> float:
    return math.nan if evidence.nonfinite else value


def round_off(value: float) -> float:
    """To three digits, at most two behind the point; what is below -99 counts as that."""
    return math.nan if math.isnan(value) else round(float(f"{max(value, -99.0):.3g}"), 2)


def _published(samples: Sequence[Snapshot], mean_abs: Sequence[float]) -> dict[str, float]:
    gradients = [[norm(layer.weight_gradient) for layer in sample.layers] for sample in samples]
    values = {
        "mean_abs": mean_abs,
        "first_norm": [row[0] for row in gradients],
        "norm_ratio": [row[0] / row[-1] if row[-1] else math.nan for row in gradients],
        "total_norm": [math.hypot(*row) for row in gradients],
    }
    return {name: log10(median(found)) for name, found in values.items()}


def _samples(configuration: Configuration, steps: Numbers, numbers: Numbers) -> tuple[list[Snapshot], Numbers]:
    """The snapshots as `watch` would have made them, and the smallest mean |g| of each."""
    x, y = data(configuration.data)
    classes = int(y.max()) + 1
    widths = configuration.widths(x.shape[1], classes if classes > 2 else 1)
    seen = [
        Snapshot(int(step), tuple(_layer(number, widths, row) for number, row in enumerate(layers, 1)))
        for step, layers in zip(steps, numbers, strict=True)
        if step >= 0
    ]
    place = QUANTITIES.index("weight_gradient") * len(NUMBERS) + NUMBERS.index("mean_abs")
    return seen, numbers[: len(seen), :, place].min(1)


def _layer(number: int, widths: Sequence[int], row: Numbers) -> LayerSnapshot:
    fan_in, fan_out = widths[number - 1 : number + 1]
    counts = {"weight": fan_in * fan_out, "output": BATCH * fan_out}
    stats: dict[str, Any] = {}
    for i, quantity in enumerate(QUANTITIES):
        zeros, nonfinite, mean, std, _ = (float(value) for value in row[i * len(NUMBERS) : (i + 1) * len(NUMBERS)])
        count = counts[quantity.removesuffix("_gradient")]
        stats[quantity] = Stats(count, int(zeros), int(nonfinite), mean, std, math.nan, math.nan)
    return LayerSnapshot(number, f"fc{number}", "Linear", f"{fan_in}x{fan_out}", **stats, update_rms=float(row[-2]))


def write(path: Path, rows: Sequence[Row]) -> None:
    """The rows as CSV; an empty cell is NaN."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["data", "act", "init", "depth", "width", "optimizer", "seed", "rate", "trains", "accuracy", *columns()]
        )
        for row in rows:
            c, cells = row.configuration, [_cell(row.numbers[name]) for name in columns()]
            own = [c.data, c.act, c.init, c.depth, c.width, row.optimizer, row.seed, row.rate]
            writer.writerow([*own, int(row.trains), row.accuracy, *cells])


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:g}"


def read(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return [_row(line) for line in csv.DictReader(file)]


def _row(line: dict[str, str]) -> Row:
    configuration = Configuration(line["data"], line["act"], line["init"], int(line["depth"]), line["width"])
    numbers = {name: float(line[name]) if line[name] else math.nan for name in columns()}
    own = (line["optimizer"], int(line["seed"]), float(line["rate"]), line["trains"] == "1", float(line["accuracy"]))
    return Row(configuration, *own, numbers)
