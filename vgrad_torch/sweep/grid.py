"""A sweep: a run for every combination of some values and seeds, in parallel; a killed sweep can continue."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from vgrad_torch.errors import UsageError, choose
from vgrad_torch.models.activations import ACTIVATIONS
from vgrad_torch.models.initializers import INITIALIZERS
from vgrad_torch.sweep import heatmap, summary
from vgrad_torch.sweep.outcome import Outcome, finished_outcome, train_run
from vgrad_torch.sweep.summary import AXES, name_of
from vgrad_torch.training import recipes
from vgrad_torch.training.data import PrintLine, load
from vgrad_torch.training.recipes import TrainConfig


@dataclass(frozen=True, slots=True)
class Sweep:
    """The configs of all runs, in the order of the axes, seeds last. Each run has its own folder in `folder`."""

    folder: Path
    configs: tuple[TrainConfig, ...]

    def finished(self) -> list[Outcome]:
        """The outcomes of the finished runs.

        Raises:
            UsageError: the folder holds runs of another sweep, or other runs.
        """
        return [outcome for config in self.configs if (outcome := finished_outcome(config)) is not None]


def grid(
    axes: Mapping[str, Sequence[Any]], seeds: int = 5, *, name: str | None = None, runs: str = "runs", **rest: Any
) -> Sweep:
    """All combinations of the axes' values, each with the seeds 0, 1, ...; `rest` are single values for all.

    Raises:
        UsageError: a value is not allowed.

    >>> sweep = grid({"act": ["sigmoid", "relu"], "lr": [0.1, 0.01]}, seeds=3)
    >>> sweep.folder.name, len(sweep.configs), sweep.configs[-1].name
    ('sweep-digits-sigmoid+relu-uniform-lr0.1+0.01', 12, 'digits-relu-uniform-lr0.01-s2')
    """
    if seeds < 1:
        raise UsageError(f"seeds must be a whole number from 1, not {seeds}")
    given = {axis: list(dict.fromkeys(values)) for axis, values in axes.items() if values}
    points = [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]
    configs = [recipes.recipe(**rest, **point, seed=seed) for point in points for seed in range(seeds)]
    for config in configs:
        choose(ACTIVATIONS, config.act, "activation")
        choose(INITIALIZERS, config.init, "initializer")
    name = name or f"sweep-{_named(configs, given)}"
    dataclasses.replace(configs[0], name=name)  # checks the name
    folder = Path(runs) / name
    replace = dataclasses.replace
    named = (replace(c, name=f"{_named([c], given)}-s{c.seed}", runs=str(folder)) for c in configs)
    return Sweep(folder, tuple(named))


def _named(configs: Sequence[TrainConfig], given: Mapping[str, object]) -> str:
    """A name from the values: always data, activation and weights, the other axes if they were given."""
    parts = []
    for axis in AXES:
        values = "+".join(dict.fromkeys(name_of(getattr(config, axis)) for config in configs))
        if axis in AXES[:3]:
            parts.append(values)
        elif axis in given:
            parts.append(f"{axis}{values}")
    return "-".join(parts)


def run(
    sweep: Sweep,
    *,
    jobs: int = 1,
    backend: str = "loky",
    print_line: PrintLine = lambda line: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Train the runs that are not finished, `jobs` at a time, and return the outcomes of all runs in order.

    Args:
        sweep: made by `grid`.
        jobs: the number of processes, each with one thread. The outcomes do not depend on it.
        backend: a key of `BACKENDS`: joblib's own processes, or those of dask or ray if installed.
        print_line: called with a line for each download.
        on_outcome: called with each new outcome.

    Raises:
        UsageError: the folder holds something else, or a backend or a data set is not available.
    """
    if jobs < 1:
        raise UsageError(f"jobs must be a whole number from 1, not {jobs}")
    pool = choose(BACKENDS, backend, "backend")
    done = {outcome.config.name: outcome for outcome in sweep.finished()}
    missing = [config for config in sweep.configs if config.name not in done]
    for data, folder in dict.fromkeys((config.data, config.data_dir) for config in missing):
        load(data, Path(folder) if folder else None, print_line)  # before several workers need it at once
    for outcome in _outcomes(missing, jobs, pool) if missing else ():
        on_outcome(outcome)
        done[outcome.config.name] = outcome
    return [done[config.name] for config in sweep.configs]


def _outcomes(configs: Sequence[TrainConfig], jobs: int, pool: Pool) -> Iterator[Outcome]:
    """Outcomes in the order in which the runs end. Each run is a task, as some take much longer than others."""
    parent = os.getpid() if pool is _loky else None
    with pool(jobs) as return_as:
        parallel = joblib.Parallel(batch_size=1, return_as=return_as)
        try:
            yield from parallel(joblib.delayed(train_run)(config, parent) for config in configs)
        except TerminatedWorkerError:
            raise UsageError(
                "a process of the sweep was killed, perhaps for lack of memory. Finished runs are kept: start the same "
                "command again with fewer --jobs"
            ) from None


def write(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[Path]:
    """Write sweep.csv, sweep.json and sweep.png into the sweep's folder."""
    table = summary.rows(outcomes)
    paths = [sweep.folder / f"sweep.{kind}" for kind in ("csv", "json", "png")]
    paths[0].write_text(summary.as_csv(table))
    paths[1].write_text(summary.as_json(table, outcomes))
    heatmap.figure(table).savefig(paths[2], dpi=120)
    return paths


def cores() -> int:
    """The number of cores that this process may use."""
    return int(joblib.cpu_count())


Pool = Callable[[int], AbstractContextManager[str]]
"""A context that sets joblib up for a number of jobs and gives the form in which it returns results."""


@contextmanager
def _loky(jobs: int) -> Iterator[str]:
    with joblib.parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=1):
        yield "generator_unordered"


@contextmanager
def _dask(jobs: int) -> Iterator[str]:
    distributed = _needed("distributed", "dask[distributed]")
    with (
        distributed.Client(n_workers=jobs, threads_per_worker=1, dashboard_address=None),
        joblib.parallel_config(backend="dask"),
    ):
        yield "generator_unordered"


@contextmanager
def _ray(jobs: int) -> Iterator[str]:
    ray = _needed("ray", "ray")
    _needed("ray.util.joblib", "ray").register_ray()
    ray.init(num_cpus=jobs, include_dashboard=False)
    try:
        with joblib.parallel_config(backend="ray", n_jobs=jobs):
            yield "list"
    finally:
        ray.shutdown()


def _needed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"this backend is not installed ({error}); pip install '{package}', or leave out --backend"
        ) from None


BACKENDS: Mapping[str, Pool] = {"loky": _loky, "dask": _dask, "ray": _ray}
"""Name -> how the processes of a sweep are started."""
