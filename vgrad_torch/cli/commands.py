"""The commands and what they print. Slow imports are inside the functions that need them."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vgrad_torch.cli.suggestions import FLAGS, command_line, print_next
from vgrad_torch.distributed import launch
from vgrad_torch.errors import UsageError
from vgrad_torch.verdict.labels import printable
from vgrad_torch.verdict.tables import WIDTH


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"--monitor {text!r} is not a regular expression: {error}") from None


def complain(message: str) -> None:
    """Print an error on stderr; of the processes of torchrun, only one on each host prints."""
    if launch.prints_for_host():
        print(f"vgrad: {message}", file=sys.stderr)


def _console() -> Any:
    """The terminal. In a file or a pipe, a paragraph is one line."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not (sys.stdout and sys.stdout.isatty()))


def train(options: argparse.Namespace) -> int:
    """Train one network and show the progress."""
    pattern = _pattern(options.monitor) if options.monitor else None
    with _exit_at_once():
        from vgrad_torch import training
        from vgrad_torch.cli.displays import RunDisplay
        from vgrad_torch.distributed.team import team
        from vgrad_torch.training import recipes

    given = {name: getattr(options, name) for name in FLAGS}
    ranks = team()
    saved = None if options.resume is None else ranks.on_rank_0(lambda: _saved_run(Path(options.resume), given))
    if saved is None:
        config = recipes.recipe(**{**given, "data": options.data or "digits"})
        saved = ranks.on_rank_0(lambda: _restarted_run(config, given))
    if saved is not None and saved.finished:  # not an error: the run is already complete
        print(f"The run {saved.path} is finished after {saved.config.epochs} epochs; nothing is left to train.")
        return 3 if saved.verdict in options.fail_on else 0
    if saved is not None:
        config, given = saved.config, recipes.differences(saved.config)
    console = _console()
    display = RunDisplay(config, console, pattern)
    try:
        with display:
            result = training.run(
                config, saved=saved, team=ranks,
                print_line=display.print_line, on_start=display.start, on_epoch=display.epoch, on_sample=display.sample,
            )  # fmt: skip
    except training.Stopped as stopped:
        complain(f"{stopped}; continue with: {command_line('train', {'resume': stopped.folder})}")
        return 128 + stopped.number
    except training.NonFiniteError as error:
        complain(f"{error}. The training stopped, and the log up to there is kept; try a smaller --lr")
        return 3 if "non-finite" in options.fail_on else 2
    _print_result(result, console)
    if result.monitor.writer.fault:
        print(f"vgrad: the log is not complete: {result.monitor.writer.fault}", file=sys.stderr)
        return 1
    print_next({**given, "runs": str(result.folder.parent)}, config, console)
    return 3 if result.diagnosis.verdict in options.fail_on else 0


@contextmanager
def _exit_at_once() -> Iterator[None]:
    """Ctrl-C ends the process at once, without exceptions in modules that are only half imported."""

    def end(number: int, frame: object) -> None:
        os.write(2, b"\nvgrad: stopped\n")
        os._exit(128 + number)

    before = signal.signal(signal.SIGINT, end) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _saved_run(path: Path, given: Mapping[str, Any]) -> Any:
    """The run to continue. Options given with --resume must equal its config, except --data-dir."""
    from dataclasses import replace

    from vgrad_torch.training.run_folder import RunFolder

    saved = RunFolder.read(path)
    for name, value in given.items():
        was = getattr(saved.config, name)
        if value not in (None, was) and name != "data_dir":
            reason = f"the run {path} was started with {was} and continues with it"
            raise UsageError(f"--{name.replace('_', '-')} {value}: {reason}; leave it out, or start a new run")
    return replace(saved, config=replace(saved.config, data_dir=given["data_dir"] or saved.config.data_dir))


def _restarted_run(config: Any, given: Mapping[str, Any]) -> Any:
    """The run that this torchrun started before it restarted its processes; None if there is none."""
    if not launch.restart_count():
        return None
    from vgrad_torch.training.run_folder import RunFolder

    saved = RunFolder.of_this_launch(Path(config.runs))
    return saved and _saved_run(saved.path, given)


def sweep(options: argparse.Namespace) -> int:
    """Train a grid of networks and compare them."""
    from vgrad_torch.cli.displays import SweepDisplay
    from vgrad_torch.sweep import grid as sweeps
    from vgrad_torch.sweep import summary

    rest = ("hidden", "bias", "momentum", "weight_decay", "clip", "batch", "epochs", "every", "residual", "data_dir")
    axes = {axis: getattr(options, axis) for axis in options.axes}
    given = {name: getattr(options, name) for name in rest}
    grid = sweeps.grid(axes, options.seeds, name=options.name, runs=options.runs, **given)
    console = _console()
    with SweepDisplay(grid, console) as display:
        jobs = sweeps.cores() if options.jobs is None else options.jobs
        outcomes = sweeps.run(
            grid, jobs=jobs, backend=options.backend, print_line=display.print_line, on_outcome=display.outcome
        )
    console.size = (max(console.width, 105), console.height)
    console.print(summary.as_table(summary.rows(outcomes)))
    for path in sweeps.write(grid, outcomes):
        console.print(f"Written: {path}", markup=False)
    return 0 if all(outcome.finished for outcome in outcomes) else 1


def _print_result(result: Any, console: Any) -> None:
    from vgrad_torch.cli import terminal

    history = result.monitor.history
    console.print()
    console.size = (max(console.width, 80), console.height)  # a table that wraps can be read, one that is cut cannot
    console.print(terminal.layer_table(history[-1]))
    classes = result.model[-1].out_features if result.model[-1].out_features > 1 else 2
    paragraph = terminal.result_paragraph(result.config, result.epochs, history[0], history[-1], classes)
    console.print(paragraph, markup=False)
    console.print(f"\nThe verdict is {result.diagnosis.reasons()}", markup=False)
    console.print(" ".join(result.diagnosis.advice), markup=False)
    console.print(f"\nLogged in {result.folder}.", markup=False)


def predict(options: argparse.Namespace) -> int:
    """Show what theory expects."""
    from vgrad_torch.cli import terminal
    from vgrad_torch.theory import prediction as theory

    prediction = theory.predict(
        options.widths, options.act, options.init,
        gain=options.gain, bias=options.bias, batch=options.batch, mean_square=options.mean_square,
    )  # fmt: skip
    console = _console()
    console.size = (max(console.width, 80), console.height)
    console.print(terminal.prediction_table(prediction, console))
    console.print(terminal.prediction_paragraph(prediction), markup=False)
    return 0


def preflight(options: argparse.Namespace) -> int:
    """Check a network on one batch and, if asked, try fixes."""
    names = [name for name in FLAGS if hasattr(options, name)]
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    layers: Mapping[str, Any] = {} if options.layers is None else {"layers": options.layers}
    if options.target is None:
        checked, fixes = _preflight_recipe(options.what_if, given, layers)
    else:
        checked, fixes = _preflight_user_model(options.target, options.what_if, given, layers)
    width = min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH)
    print(checked.text(width))
    if fixes is not None:
        print(f"\nWhat if\n\n{fixes.text(width)}")
    if options.target is None and fixes is not None and fixes.best is not None and fixes.best.remedy.flags is not None:
        print(f"\nOr: {command_line('train', {**given, **fixes.best.remedy.flags})}")
    return 3 if checked.verdict in options.fail_on else 0


def _preflight_recipe(what_if: bool, given: Mapping[str, Any], layers: Mapping[str, Any]) -> tuple[Any, Any]:
    from vgrad_torch import training
    from vgrad_torch.training import recipes
    from vgrad_torch.trials import preflight as checkup
    from vgrad_torch.trials import what_if as whatif

    setup = training.set_up(recipes.recipe(**given), lambda line: print(line, file=sys.stderr))
    parts = setup.model, setup.loss_fn, next(iter(setup.batches())), setup.optimizer
    return checkup.preflight(*parts, **layers), whatif.what_if(*parts, **layers) if what_if else None


def _preflight_user_model(
    target: str, what_if: bool, given: Mapping[str, Any], layers: Mapping[str, Any]
) -> tuple[Any, Any]:
    from vgrad_torch.cli.user_model import load_user_model, one_line
    from vgrad_torch.trials import preflight as checkup
    from vgrad_torch.trials import what_if as whatif

    if given:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} is for built-in networks; {target} brings its own")
    user = load_user_model(target)
    parts = user.model, user.loss_fn, user.batch, user.optimizer
    try:
        return checkup.preflight(*parts, **layers), whatif.what_if(*parts, **layers) if what_if else None
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"the model or loss function of {target} raised {one_line(error)}") from error


def report(options: argparse.Namespace) -> int:
    """Show the verdict on one or several logged runs, and write the pictures into a file."""
    from vgrad_torch.report import comparison
    from vgrad_torch.report import report as reports

    result: Any = comparison.compare(options.runs) if options.several else reports.report(options.runs[0])
    if options.json:
        print(json.dumps(result.data(), indent=1))
        return 0
    from vgrad_torch.report import html

    layers = None if options.several else options.layers
    print(printable(str(result) if layers is None else result.text("" if layers == "all" else layers)))
    out = options.out or result.file
    html.write(result, out)
    print(f"\nPictures: {out}")
    return 0


def _is_free(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) != 0


def board(options: argparse.Namespace) -> int:
    """Replace this process by TensorBoard."""
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port must be between 0 and 65535, not {options.port}")
    if not os.path.isdir(options.runs):
        raise UsageError(f"there is no folder {options.runs}; make a run first: vgrad train --act relu")
    if not _is_free(options.port):
        raise UsageError(
            f"port {options.port} is in use; choose another: --port {options.port + 1}, make board PORT=..."
        )
    program = [sys.executable, "-m", "tensorboard.main", "--logdir", options.runs, "--host", "localhost"]
    os.execv(sys.executable, [*program, "--port", str(options.port)])
