"""The command line, the only place that prints: train, preflight, predict, report, ... import what is heavy inside."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vgrad_torch import __version__
from vgrad_torch.choices import UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did its work, 2 with one sentence on stderr if it cannot, 130 after Ctrl-C.

    3 if the verdict is among those of `--fail-on`.
    """
    # Torch's idle threads spin; at OpenMP's default two runs side by side take 50 times longer. Read at torch's import.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end the run
            stream.reconfigure(errors="replace")
    try:
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except UsageError as error:
        print(f"vgrad: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has gone; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"vgrad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nvgrad: stopped", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    about = "See the gradient of a deep network die on its way to the first layer, and what brings it back."
    parser = _Parser(prog="vgrad", description=about)
    parser.add_argument("--version", action="version", version=f"vgrad_torch {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    _add_train(commands)
    _add_preflight(commands)
    _add_predict(commands)
    _add_report(commands)
    _add_compare(commands)
    _add_board(commands)
    return parser


def _add_train(commands: Any) -> None:
    about = "Train a deep MLP, watch every Linear layer, and log its gradients for TensorBoard."
    train = commands.add_parser("train", help="train a network and log its gradients", description=about)
    train.set_defaults(command=_train)
    _add_network(train)
    how = _add_optimizer(train)
    how.add_argument("--clip", type=float, help="largest norm of the gradient; a larger one is scaled down to it")
    how.add_argument("--epochs", type=int, help="passes over the training part")
    look = train.add_argument_group("what to look at, and where to keep it")
    look.add_argument("--every", type=int, help="sample every n-th step (default: the first of each epoch)")
    look.add_argument("--monitor", metavar="PATTERN", help="print step, name and RMS of what matches, 'fc1.*gradient'")
    look.add_argument("--name", help="the run's folder (default: data-act-init-seed)")
    look.add_argument("--runs", help="folder of all runs (default: runs)")


def _add_network(parser: Any) -> None:
    what = parser.add_argument_group("the network (left out: the data set's recipe)")
    what.add_argument("--data", help="digits (default, offline), circles, mnist, fashion-mnist, cifar10")
    what.add_argument(
        "--data-dir", help="folder with the files of mnist, fashion-mnist or cifar10; else they are downloaded"
    )
    what.add_argument("--act", help="activation: sigmoid, tanh, relu (default), leaky_relu, elu, selu, gelu, silu, ...")
    what.add_argument("--init", help="initializer: uniform, normal, xavier, glorot, he, lecun, orthogonal, torch")
    what.add_argument("--hidden", type=_widths, help="widths of the hidden layers, 512,256,128")
    what.add_argument("--norm", help="normalise each hidden layer before its activation: batch, layer")
    what.add_argument(
        "--residual", action="store_const", const=True, help="add its input to each hidden layer as wide as that"
    )
    what.add_argument("--gain", type=float, help="multiplies every weight at the start (default: 1)")
    what.add_argument("--bias", type=float, help="what every bias starts at (default: 0)")


def _add_optimizer(parser: Any) -> Any:
    how = parser.add_argument_group("how it is trained")
    how.add_argument("--optimizer", help="sgd, rmsprop, adam, adamw")
    how.add_argument("--lr", type=float, help="learning rate")
    how.add_argument("--momentum", type=float, help="of sgd")
    how.add_argument("--weight-decay", type=float, help="on weights, not on biases")
    how.add_argument("--batch", type=int, help="samples per step")
    how.add_argument("--seed", type=int, help="of weights and order of samples (default 0)")
    return how


def _add_preflight(commands: Any) -> None:
    about = (
        "Judge a network's gradient from one batch, before it is trained: a built-in one, or your own by the name of a "
        "function that returns (model, loss function, (x, y)) and, if you like, an optimizer behind them."
    )
    preflight = commands.add_parser("preflight", help="judge a network from one batch, untrained", description=about)
    preflight.set_defaults(command=_preflight)
    preflight.add_argument("target", nargs="?", metavar="package.module:function", help="your own model")
    preflight.add_argument("--what-if", action="store_true", help="try what could mend it, and show the best")
    preflight.add_argument(
        "--fail-on",
        metavar="VERDICTS",
        type=_verdicts,
        default=(),
        help="exit code 3 if it is one of vanishing,dead,...",
    )
    _add_network(preflight)
    _add_optimizer(preflight)


def _add_predict(commands: Any) -> None:
    about = "What theory expects of a deep MLP before it is built or trained; takes no data and not a second."
    predict = commands.add_parser("predict", help="what theory expects of a network's gradients", description=about)
    predict.set_defaults(command=_predict)
    predict.add_argument("--act", default="relu", help="activation: sigmoid, tanh, relu (default), ...")
    predict.add_argument("--init", default="uniform", help="initializer: uniform (default), normal, xavier, he, ...")
    predict.add_argument(
        "--widths",
        type=_widths,
        default=(64, 512, 256, 128, 64, 32, 16, 10),
        help="widths from input to output (default: 64,512,256,128,64,32,16,10); output 1 is a sigmoid's",
    )
    predict.add_argument("--batch", type=int, default=32, help="samples the loss is averaged over (default: 32)")
    predict.add_argument("--gain", type=float, default=1.0, help="multiplies every weight (default: 1)")
    predict.add_argument("--bias", type=float, default=0.0, help="value of every bias (default: 0)")
    predict.add_argument(
        "--mean-square",
        type=float,
        default=1.0,
        help="mean of x^2 of the inputs: 1 (default) if standardised, .23 digits, .32 circles, .11 mnist",
    )


def _add_report(commands: Any) -> None:
    about = "The verdict on a logged run, and its pictures in one HTML file that can be sent to others."
    report = commands.add_parser("report", help="verdict and pictures of a logged run", description=about)
    _add_reading(report, 1, "(default: report.html in the run's folder)")


def _add_compare(commands: Any) -> None:
    about = "Logged runs side by side: verdicts, settings that differ, and pictures on equal axes in one HTML file."
    compare = commands.add_parser("compare", help="logged runs side by side", description=about)
    _add_reading(compare, "+", "(default: compare.html)")


def _add_reading(parser: Any, count: int | str, default: str) -> None:
    parser.set_defaults(command=_report, several=count == "+")
    parser.add_argument("runs", type=Path, nargs=count, metavar="run", help="the folder of a run, or its event file")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the HTML file {default}")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON, and draw nothing")


def _add_board(commands: Any) -> None:
    board = commands.add_parser("board", help="open TensorBoard on the runs", description="TensorBoard on localhost.")
    board.set_defaults(command=_board)
    board.add_argument("--runs", default="runs", help="folder of all runs (default: runs)")
    board.add_argument("--port", type=int, default=6006, help="port on localhost (default: 6006)")


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"widths are whole numbers like 512,256,128, not {text!r}") from None


def _verdicts(text: str) -> tuple[str, ...]:
    from vgrad_torch.verdicts import VERDICTS

    found = tuple(word.strip().replace("-", " ").replace("non finite", "non-finite") for word in text.split(","))
    for word in found:
        if word not in VERDICTS:
            raise argparse.ArgumentTypeError(f"unknown verdict {word!r}. Choose from: {', '.join(VERDICTS)}")
    return found


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


def _train(options: argparse.Namespace) -> int:
    pattern = _pattern(options.monitor) if options.monitor else None
    from rich.console import Console

    from vgrad_torch import training

    given = {name: getattr(options, name) for name in _FLAGS if name != "data"}
    config = training.recipe(options.data or "digits", **given)
    console = Console(highlight=False, soft_wrap=not (sys.stdout and sys.stdout.isatty()))
    display = _Display(config, console, pattern)
    try:
        with display:
            result = training.run(
                config, say=display.say, on_start=display.start, on_epoch=display.epoch, on_sample=display.sample
            )
    except training.NonFiniteError as error:
        print(f"vgrad: {error}. Training stopped, the log up to there is kept; try a smaller --lr", file=sys.stderr)
        return 2
    _print_result(result, console)
    if result.monitor.writer.fault:
        print(f"vgrad: the log is not whole: {result.monitor.writer.fault}", file=sys.stderr)
        return 1
    _print_next(options, config, console)
    return 0


class _Display:
    """A run while it goes on: a live picture on a terminal, plain lines elsewhere."""

    def __init__(self, config: Any, console: Any, pattern: re.Pattern[str] | None) -> None:
        from rich.live import Live

        self._config = config
        self._console = console
        self._pattern = pattern
        self._live = Live(console=console, refresh_per_second=8) if console.is_terminal else None

    def __enter__(self) -> None:
        if self._live is not None:
            self._live.start()

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False)

    def start(self, folder: Any, epoch: Any) -> None:
        self.say(f"run {folder}: {_summary(self._config)}")
        self._show(epoch, None)

    def epoch(self, epoch: Any, monitor: Any) -> None:
        self._show(epoch, monitor.history[-1])

    def _show(self, epoch: Any, snapshot: Any) -> None:
        from vgrad_torch import terminal

        if self._live is None:
            self.say(terminal.epoch_line(epoch, self._config.epochs, snapshot))
        else:
            self._live.update(terminal.live_picture(epoch, self._config.epochs, snapshot, self._console))

    def sample(self, snapshot: Any) -> None:
        from vgrad_torch import terminal

        if self._pattern is None:
            return
        lines = list(terminal.monitor_lines(snapshot, self._pattern))
        if not lines and snapshot.step == 0:
            names = f"{snapshot.layers[0].label}.weight_gradient"
            self.say(f"--monitor {self._pattern.pattern!r} matches nothing; names are like {names}")
        for line in lines:
            self.say(line)


def _summary(config: Any) -> str:
    widths = "-".join(str(width) for width in config.hidden) or "none"
    dials = {
        f"{config.norm} norm": config.norm, "residual": config.residual, f"gain {config.gain:g}": config.gain != 1,
        f"biases {config.bias:g}": config.bias, f"gradient clipped to {config.clip}": config.clip,
    }  # fmt: skip
    parts = [
        config.data, f"hidden layers {widths}", config.act, f"{config.init} weights",
        *(words for words, turned in dials.items() if turned),
        f"{config.optimizer} lr {config.lr:g}", f"batch {config.batch}", f"{config.epochs} epochs",
        f"seed {config.seed}",
    ]  # fmt: skip
    return ", ".join(parts)


def _print_result(result: Any, console: Any) -> None:
    from vgrad_torch import terminal

    history = result.monitor.history
    console.print()
    console.size = (max(console.width, 80), console.height)  # a table that wraps can be read, one that is cut cannot
    console.print(terminal.layer_table(history[-1]))
    classes = result.model[-1].out_features if result.model[-1].out_features > 1 else 2
    words = terminal.result_paragraph(result.config, result.epochs, history[0], history[-1], classes)
    console.print(words, markup=False)
    console.print(f"\nLogged in {result.folder}.", markup=False)


def _print_next(options: argparse.Namespace, config: Any, console: Any) -> None:
    """What to type next: this run's command with another activation or other weights."""
    other = {"sigmoid": "relu"}.get(config.act, "sigmoid")
    rows = [(_command("board", {"runs": options.runs}), "see the histograms in TensorBoard")]
    given = {name: getattr(options, name) for name in _FLAGS if name != "name"}
    rows.append((_command("train", {**given, "act": other}), f"the same with {other}"))
    if config.init != "he":
        rows.append((_command("train", {**given, "act": "relu", "init": "he"}), "relu with weights made for it"))
    console.print("Next:", markup=False)
    width = max(len(command) for command, _ in rows)
    for command, meaning in rows:
        console.print(f"  {command:<{width}}  {meaning}", markup=False)


def _command(name: str, options: Mapping[str, Any]) -> str:
    """A command line of make's, if make started this, else of vgrad's; what the recipe has anyway is left out."""
    words = ["make" if "VGRAD_MAKE" in os.environ else "vgrad", name]
    defaults = {"data": "digits", "runs": "runs"}
    for option, value in options.items():
        if value is None or value == defaults.get(option):
            continue
        if value is True:
            words.append(f"{_FLAGS[option]}=1" if words[0] == "make" else f"--{option}")
            continue
        text = shlex.quote(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
        words.append(f"{_FLAGS[option]}={text}" if words[0] == "make" else f"--{option.replace('_', '-')} {text}")
    return " ".join(words)


def _predict(options: argparse.Namespace) -> int:
    from rich.console import Console

    from vgrad_torch import terminal, theory

    prediction = theory.predict(
        options.widths, options.act, options.init,
        gain=options.gain, bias=options.bias, batch=options.batch, mean_square=options.mean_square,
    )  # fmt: skip
    console = Console(highlight=False, soft_wrap=not (sys.stdout and sys.stdout.isatty()))
    console.size = (max(console.width, 80), console.height)
    console.print(terminal.prediction_table(prediction, console))
    console.print(terminal.prediction_paragraph(prediction), markup=False)
    return 0


def _preflight(options: argparse.Namespace) -> int:
    names = [name for name in _FLAGS if hasattr(options, name)]
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.target is None:
        found, tried = _preflight_recipe(options.what_if, given)
    else:
        found, tried = _preflight_entry(options.target, options.what_if, given)
    print(found)
    if tried is not None:
        print(f"\nWhat if\n\n{tried}")
    if tried is not None and options.target is None and tried.best is not None and tried.best.mend.flags is not None:
        print(f"\nOr: {_command('train', {**given, **tried.best.mend.flags})}")
    return 3 if found.verdict in options.fail_on else 0


def _preflight_recipe(ask: bool, given: Mapping[str, Any]) -> tuple[Any, Any]:
    from vgrad_torch import checkup, training, whatif

    setup = training.set_up(training.recipe(**given), lambda line: print(line, file=sys.stderr))
    parts = setup.model, setup.loss_fn, next(iter(setup.batches())), setup.optimizer
    return checkup.preflight(*parts), whatif.what_if(*parts) if ask else None


def _preflight_entry(target: str, ask: bool, given: Mapping[str, Any]) -> tuple[Any, Any]:
    from vgrad_torch import checkup, whatif
    from vgrad_torch.entry import entry, words

    if given:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} is for built-in networks; {target} brings its own")
    made = entry(target)
    parts = made.model, made.loss_fn, made.batch, made.optimizer
    try:
        return checkup.preflight(*parts), whatif.what_if(*parts) if ask else None
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"the model or loss function of {target} raised {words(error)}") from error


def _report(options: argparse.Namespace) -> int:
    from vgrad_torch import comparison, report

    found: Any = comparison.compare(options.runs) if options.several else report.report(options.runs[0])
    if options.json:
        print(json.dumps(found.data(), indent=1))
        return 0
    from vgrad_torch import page

    print(found)
    out = options.out or found.file
    page.write(found, out)
    print(f"\nPictures: {out}")
    return 0


def _board(options: argparse.Namespace) -> int:
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port must be between 0 and 65535, not {options.port}")
    if not os.path.isdir(options.runs):
        raise UsageError(f"there is no folder {options.runs}; make a run first: vgrad train --act relu")
    program = [sys.executable, "-m", "tensorboard.main", "--logdir", options.runs, "--host", "localhost"]
    os.execv(sys.executable, [*program, "--port", str(options.port)])
