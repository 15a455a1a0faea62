"""What test_distributed.py runs on each rank: whole runs that share their batches, and what the ranks agree on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vgrad_torch as vg
from tests.support.parallel import X, Y, chain, sgd
from vgrad_torch import training
from vgrad_torch.distributed.team import team
from vgrad_torch.errors import UsageError
from vgrad_torch.training.data import Dataset
from vgrad_torch.training.recipes import recipe

RUNS: dict[str, dict[str, Any]] = {
    "digits": {"data": "digits", "hidden": (16, 8), "init": "he", "epochs": 2, "clip": 0.5},
    "circles": {"data": "circles", "act": "tanh", "epochs": 2},
}
"""The last batch of an epoch of circles is a smaller one."""
NORMALISED = {"data": "digits", "hidden": (16, 8), "norm": "batch", "epochs": 2}


def run_of(folder: Path, **given: Any) -> dict[str, Any]:
    """What a run makes of its config, alone or in a team."""
    result = training.run(recipe(**given, runs=str(folder)), team=team())
    return {
        "weights": result.model.state_dict(),
        "epochs": [(epoch.step, epoch.train, epoch.validation) for epoch in result.epochs],
        "snapshots": list(result.monitor.history),
        "verdict": result.diagnosis.verdict,
        "folder": result.folder.name,
    }


def broken(rank: int) -> str:
    """A loss that is infinite on rank 1 alone."""
    data = Dataset("mine", X.float(), Y, X.float(), Y, 3)
    model = chain()
    optimizer = sgd(model)
    crew = team()
    parallel = crew.parallel(model)
    x = data.x_train.clone()
    x[1] = torch.inf
    with vg.watch(parallel, optimizer) as monitor:
        try:
            training.train(
                model, data, optimizer, monitor, loss_fn=nn.functional.cross_entropy, epochs=1,
                training_batches=crew.share(lambda: [(x, data.y_train)]), on_epoch=lambda epoch: None, team=crew,
                parallel=parallel,
            )  # fmt: skip
        except training.NonFiniteError as error:
            return str(error)
    return ""


def words(rank: int, folder: Path) -> dict[str, Any]:
    """What the ranks agree on, and how each is told that one of them was refused something."""
    crew = team()

    def refuse(who: int) -> int:
        if rank == who:
            raise UsageError(f"not here, {rank}")
        return rank

    def refusal(of: Callable[[Callable[[], int]], int | None], who: int) -> str | int | None:
        try:
            return of(lambda: refuse(who))
        except UsageError as error:
            return str(error)

    with crew.one_per_host_first():
        came = sorted(path.name for path in folder.glob("came*"))
        (folder / f"came{rank}").write_text("")
    return {
        "together": [refusal(crew.on_all_ranks, who) for who in (0, 1, 2)],
        "first": [refusal(crew.on_rank_0, who) for who in (0, 1)],
        "alike": crew.first_message("the same"),
        "options": refusal(lambda _: crew.check_equal({"seed": 0, "lr": 0.1 * rank}), 0),
        "all": [crew.all(torch.tensor(flag)) for flag in (True, rank == 0)],
        "came": came,
    }


def seen(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: run_of(folder / "runs", **given) for name, given in RUNS.items()}
    found["normalised"] = run_of(folder / "runs", **NORMALISED)
    found["broken"] = broken(rank)
    found["words"] = words(rank, folder)
    return found
