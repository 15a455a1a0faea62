"""What the commands do, and all that they print. What is heavy is imported where it is needed."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vgrad_torch.distributed import launch
from vgrad_torch.errors import UsageError
from vgrad_torch.verdict.labels import printable


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"--monitor {text!r} is not a regular expression: {error}") from None


_FLAGS = {
    "data": "DATA", "act": "ACT", "init": "INIT", "hidden": "HIDDEN", "norm": "NORM", "residual": "RESIDUAL",
    "gain": "GAIN", "bias": "BIAS", "optimizer": "OPT", "lr": "LR", "momentum": "MOMENTUM", "weight_decay": "WD",
    "clip": "CLIP", "batch": "BATCH", "epochs": "EPOCHS", "seed": "SEED",
    "every": "EVERY", "name": "NAME", "runs": "RUNS", "data_dir": "DATA_DIR",
}  # fmt: skip
"""Option of `vgrad train` -> variable of `make train`."""


def complain(words: str) -> None:
    """Say on stderr what went wrong; of several processes that torchrun started, one on each host."""
    if launch.speaks_for_its_host():
        print(f"vgrad: {words}", file=sys.stderr)


def _console() -> Any:
    """The terminal; into a file or a pipe a sentence goes as one line."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not (sys.stdout and sys.stdout.isatty()))


def train(options: argparse.Namespace) -> int:
    """Train one network and show how it goes."""
    pattern = _pattern(options.monitor) if options.monitor else None
    with _ending_at_once():
        from vgrad_torch.cli.displays import RunDisplay
        from vgrad_torch.distributed.team import team
        from vgrad_torch.training import loop as training
        from vgrad_torch.training import recipes

    given = {name: getattr(options, name) for name in _FLAGS}
    ranks = team()
    begun = None if options.resume is None else ranks.first(lambda: _begun(options.resume, given))
    if begun is None:
        config = recipes.recipe(**{**given, "data": options.data or "digits"})
        begun = ranks.first(lambda: _cut_short(config, given))
    if begun is not None and begun.finished:  # what was asked for is there: no failure
        print(f"The run {begun.folder} is finished after {begun.config.epochs} epochs; nothing is left to train.")
        return 3 if begun.verdict in options.fail_on else 0
    if begun is not None:
        config, given = begun.config, recipes.departures(begun.config)
    console = _console()
    display = RunDisplay(config, console, pattern)
    try:
        with display:
            result = training.run(
                config, begun=begun, team=ranks,
                say=display.print_line, on_start=display.start, on_epoch=display.epoch, on_sample=display.sample,
            )  # fmt: skip
    except training.Stopped as stopped:
        complain(f"{stopped}; go on with: {_command('train', {'resume': stopped.folder})}")
        return 128 + stopped.number
    except training.NonFiniteError as error:
        complain(f"{error}. Training stopped, the log up to there is kept; try a smaller --lr")
        return 3 if "non-finite" in options.fail_on else 2
    _print_result(result, console)
    if result.monitor.writer.fault:
        print(f"vgrad: the log is not whole: {result.monitor.writer.fault}", file=sys.stderr)
        return 1
    _print_next({**given, "runs": str(result.folder.parent)}, config, console)
    return 3 if result.diagnosis.verdict in options.fail_on else 0


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """Ctrl-C ends the process without a word from Python: modules that are half imported would stumble over it."""

    def end(number: int, frame: object) -> None:
        os.write(2, b"\nvgrad: stopped\n")
        os._exit(128 + number)

    before = signal.signal(signal.SIGINT, end) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _begun(folder: str, given: Mapping[str, Any]) -> Any:
    """The run to go on with; an option beside it must say what its config says, but for where the data are."""
    from dataclasses import replace

    from vgrad_torch.training import checkpoints

    begun = checkpoints.begun(Path(folder))
    for name, value in given.items():
        was = getattr(begun.config, name)
        if value not in (None, was) and name != "data_dir":
            words = f"the run {folder} was begun with {was}, and goes on as it began"
            raise UsageError(f"--{name.replace('_', '-')} {value}: {words}; leave it out, or start a new run")
    return replace(begun, config=replace(begun.config, data_dir=given["data_dir"] or begun.config.data_dir))


def _cut_short(config: Any, given: Mapping[str, Any]) -> Any:
    """The run that torchrun starts these processes anew for, if it had begun."""
    if not launch.restarts():
        return None
    from vgrad_torch.training import loop as training

    folder = training.folder_of_this_launch(Path(config.runs))
    return folder and _begun(str(folder), given)


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
            grid, jobs=jobs, backend=options.backend, say=display.print_line, on_outcome=display.outcome
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
    words = terminal.result_paragraph(result.config, result.epochs, history[0], history[-1], classes)
    console.print(words, markup=False)
    console.print(f"\nThe verdict is {result.diagnosis.paragraph()}", markup=False)
    console.print(f"\nLogged in {result.folder}.", markup=False)


def _print_next(given: Mapping[str, Any], config: Any, console: Any) -> None:
    """What to type next: this run's command with another activation or other weights."""
    other = {"sigmoid": "relu"}.get(config.act, "sigmoid")
    rows = [(_command("board", {"runs": given["runs"]}), "see the histograms in TensorBoard")]
    given = {name: given.get(name) for name in _FLAGS if name != "name"}
    if config.hidden:
        rows.append((_command("train", {**given, "act": other}), f"the same with {other}"))
    if config.hidden and config.init != "he":
        rows.append((_command("train", {**given, "act": "relu", "init": "he"}), "relu with weights made for it"))
    console.print("Next:", markup=False)
    width = max(len(command) for command, _ in rows)
    for command, meaning in rows:
        console.print(f"  {command:<{width}}  {meaning}", markup=False)


def _command(name: str, options: Mapping[str, Any]) -> str:
    """A command line of make's, if make started this, else of vgrad's; what the recipe has anyway is left out."""
    words = ["make" if "VGRAD_MAKE" in os.environ else "vgrad", name]
    if name == "train" and words[0] == "make" and "VGRAD_NPROC" in os.environ:
        words.append(f"NPROC={shlex.quote(os.environ['VGRAD_NPROC'])}")
    defaults = {"data": "digits", "runs": "runs"}
    for option, value in options.items():
        if value is None or value == defaults.get(option):
            continue
        variable = _FLAGS.get(option, option.upper())
        if value is True:
            words.append(f"{variable}=1" if words[0] == "make" else f"--{option}")
            continue
        text = shlex.quote(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
        words.append(f"{variable}={text}" if words[0] == "make" else f"--{option.replace('_', '-')} {text}")
    return " ".join(words)


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
    """Judge a network from one batch and, if asked, try what could mend it."""
    names = [name for name in _FLAGS if hasattr(options, name)]
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    layers: Mapping[str, Any] = {} if options.layers is None else {"layers": options.layers}
    if options.target is None:
        found, tried = _preflight_recipe(options.what_if, given, layers)
    else:
        found, tried = _preflight_entry(options.target, options.what_if, given, layers)
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    print(found.text(width))
    if tried is not None:
        print(f"\nWhat if\n\n{tried.text(width)}")
    if tried is not None and options.target is None and tried.best is not None and tried.best.remedy.flags is not None:
        print(f"\nOr: {_command('train', {**given, **tried.best.remedy.flags})}")
    return 3 if found.verdict in options.fail_on else 0


def _preflight_recipe(ask: bool, given: Mapping[str, Any], layers: Mapping[str, Any]) -> tuple[Any, Any]:
    from vgrad_torch.training import loop as training
    from vgrad_torch.training import recipes
    from vgrad_torch.trials import preflight as checkup
    from vgrad_torch.trials import what_if as whatif

    setup = training.set_up(recipes.recipe(**given), lambda line: print(line, file=sys.stderr))
    parts = setup.model, setup.loss_fn, next(iter(setup.batches())), setup.optimizer
    return checkup.preflight(*parts, **layers), whatif.what_if(*parts, **layers) if ask else None


def _preflight_entry(target: str, ask: bool, given: Mapping[str, Any], layers: Mapping[str, Any]) -> tuple[Any, Any]:
    from vgrad_torch.cli.user_model import load_user_model, one_line
    from vgrad_torch.trials import preflight as checkup
    from vgrad_torch.trials import what_if as whatif

    if given:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} is for built-in networks; {target} brings its own")
    user = load_user_model(target)
    parts = user.model, user.loss_fn, user.batch, user.optimizer
    try:
        return checkup.preflight(*parts, **layers), whatif.what_if(*parts, **layers) if ask else None
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"the model or loss function of {target} raised {one_line(error)}") from error


def report(options: argparse.Namespace) -> int:
    """Show the verdict on a logged run, or on several, and write the pictures into a file."""
    from vgrad_torch.report import comparison
    from vgrad_torch.report import report as reports

    found: Any = comparison.compare(options.runs) if options.several else reports.report(options.runs[0])
    if options.json:
        print(json.dumps(found.data(), indent=1))
        return 0
    from vgrad_torch.report import html

    print(printable(str(found)))
    out = options.out or found.file
    html.write(found, out)
    print(f"\nPictures: {out}")
    return 0


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("localhost", port)) != 0


def board(options: argparse.Namespace) -> int:
    """Become TensorBoard."""
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
