"""`make calibrate`: train the grid, set the verdict's cut-offs on one half of it, test them on the other.

It can be stopped at any time and goes on where it was. Into runs/calibration it writes `networks.csv`, a row for each
network; `calibration.json`, the cut-offs, the tables and where they come from; `calibration.png`; and below `raw` what
was recorded, which can be deleted afterwards. If the cut-offs differ from those of `vgrad_torch/verdict/cutoffs.py`, it
says so: change that file by hand and run this again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import ROOT
from tests.scripts import calibration_grid as grid
from tests.scripts import calibration_rows as table
from tests.scripts.calibration_rows import Row
from tests.scripts.calibration_tables import EXPLODES, MEASURES, ceiling, half, summary
from vgrad_torch.verdict.cutoffs import CUTOFFS

FOLDER = ROOT / "runs" / "calibration"


def _prepare() -> None:
    """One thread, and no time spent on numbers below 1e-38, which nothing here depends on."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def train(folder: Path, jobs: int) -> None:
    """Train what is not there yet, one process and one thread for each job."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [c for c in grid.configurations() if not (folder / f"{c.name}.npz").exists()]
    start = time.perf_counter()
    with ProcessPoolExecutor(jobs, initializer=_prepare) as pool:
        waiting = [pool.submit(grid.train, configuration, folder) for configuration in missing]
        for done, future in enumerate(as_completed(waiting), 1):
            future.result()
            left = (time.perf_counter() - start) / done * (len(missing) - done)
            print(f"\r{done} of {len(missing)} configurations, {left / 60:.0f} minutes to go ", end="", flush=True)
    print()


def provenance() -> dict[str, Any]:
    """What the networks are, and what they were trained with."""
    return {
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "data": grid.TARGETS,
        "activations": grid.ACTIVATIONS,
        "initializers": grid.INITIALIZERS,
        "hidden_layers": grid.DEPTHS,
        "widths": grid.WIDTHS,
        "rates": grid.RATES,
        "seeds": grid.SEEDS,
        "steps": grid.STEPS,
        "batch": grid.BATCH,
        "early": grid.EARLY[-1],
        "split": "by configuration, the parity of a hash of its name",
    }


def shipped() -> dict[str, dict[str, dict[str, Any]]]:
    """The package's cut-offs in the form of `fit`."""
    return {family: {name: asdict(lines) for name, lines in times.items()} for family, times in CUTOFFS.items()}


def figure(rows: Sequence[Row], path: Path) -> None:
    """The test half: share of networks that fail over the measure, for each optimizer and time, and the lines."""
    from matplotlib.figure import Figure

    chart = Figure(figsize=(11, 5.5), layout="constrained")
    axes = chart.subplots(2, 3)
    for column, family in enumerate(MEASURES):
        chosen = [r for r in half(rows, "test") if r.optimizer == family and r.numbers["start_signal"] <= EXPLODES]
        for line, (moment, name) in enumerate((("start", "start"), ("early", "later"))):
            axis, lines = axes[line][column], CUTOFFS[family][name]
            values = [np.clip(getattr(r.evidence(moment), lines.measure), -12, 2) for r in chosen]
            groups = [
                [v for v, r in zip(values, chosen, strict=True) if r.trains is trains] for trains in (True, False)
            ]
            bins = np.arange(-12, 2.01, 0.5).tolist()
            axis.hist(groups, bins=bins, stacked=True, color=["#4477aa", "#cc6677"], label=["trains", "fails"])
            axis.axvline(lines.vanishing, color="black", linewidth=1.2, label="vanishing")
            axis.axvline(lines.slow, color="black", linewidth=1.2, linestyle=":", label="slow")
            axis.set_title(f"{family}, {'before training' if moment == 'start' else 'at 5 % of training'}", fontsize=10)
            axis.set_xlabel(f"log10 {lines.measure}")
    axes[0][0].set_ylabel("networks")
    axes[1][0].set_ylabel("networks")
    axes[0][0].legend(fontsize=8)
    chart.savefig(path, dpi=90)


def main() -> None:
    """Everything, from the first network to the figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    train(folder / "raw", arguments.jobs)
    table.write(folder / "networks.csv", list(table.recorded(folder / "raw")))
    rows = table.read(folder / "networks.csv")
    found = {"provenance": provenance(), **summary(rows), "ceiling": ceiling(rows)}
    (folder / "calibration.json").write_text(json.dumps(found, indent=1) + "\n")
    figure(rows, folder / "calibration.png")
    print(f"{len(rows)} networks; tables in {folder / 'calibration.json'}")
    if found["cutoffs"] != shipped():
        print(f"vgrad_torch/verdict/cutoffs.py has other cut-offs than these: {json.dumps(found['cutoffs'])}")


if __name__ == "__main__":
    main()
