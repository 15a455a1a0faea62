"""The command line's words: which commands and options there are, and which exit code an error becomes."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from vgrad_torch import __version__
from vgrad_torch.cli import commands
from vgrad_torch.distributed import launch
from vgrad_torch.errors import UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did its work, 2 with one sentence on stderr if it cannot, 130 after Ctrl-C, 143 SIGTERM.

    3 if the verdict is among those of `--fail-on`.
    """
    # Torch's idle threads spin; at OpenMP's default two runs side by side take 50 times longer. Read at torch's import.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end the run
            stream.reconfigure(errors="replace")
    try:
        with _company(), launch.one_voice():
            return _command(arguments)
    except BrokenPipeError:  # whoever read the output has gone; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"vgrad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        if launch.speaks_for_its_host():
            print("\nvgrad: stopped", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)


_LONGEST = 250  # bytes; file systems hold 255, and a second run's name ends in -2


def _company() -> AbstractContextManager[None]:
    """Of the other processes, if torchrun started several."""
    if not launch.launched():
        return nullcontext()
    from vgrad_torch.distributed.team import gathered

    return gathered()


def _command(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        if launch.launched() and command is not commands.train:
            raise UsageError("torchrun is for vgrad train; start this command by itself")
        return command(options)
    except UsageError as error:
        commands.complain(str(error))
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    about = "See the gradient of a deep network die on its way to the first layer, and what brings it back."
    parser = _Parser(prog="vgrad", description=about)
    parser.add_argument("--version", action="version", version=f"vgrad_torch {__version__}")
    parsers = parser.add_subparsers(metavar="command", required=True)
    _add_train(parsers)
    _add_sweep(parsers)
    _add_preflight(parsers)
    _add_predict(parsers)
    _add_report(parsers)
    _add_compare(parsers)
    _add_board(parsers)
    return parser


def _add_train(parsers: Any) -> None:
    about = "Train a deep MLP, watch every Linear layer, and log its gradients for TensorBoard."
    train = parsers.add_parser("train", help="train a network and log its gradients", description=about)
    train.set_defaults(command=commands.train)
    _add_network(train)
    how = _add_optimizer(train)
    how.add_argument("--clip", type=float, help="largest norm of the gradient; a larger one is scaled down to it")
    how.add_argument("--epochs", type=int, help="passes over the training part")
    look = train.add_argument_group("what to look at, and where to keep it")
    look.add_argument("--every", type=int, help="sample every n-th step (default: the first of each epoch)")
    look.add_argument("--monitor", metavar="PATTERN", help="print step, name and RMS of what matches, 'fc1.*gradient'")
    _add_fail_on(look)
    look.add_argument("--name", type=_name, help="the run's folder (default: data-act-init-seed)")
    look.add_argument("--runs", type=_folder, help="folder of all runs (default: runs)")
    look.add_argument("--resume", metavar="RUN", help="go on with the run in this folder, where it was interrupted")


def _add_sweep(parsers: Any) -> None:
    about = "Train every combination of some values with several seeds. A sweep that was stopped goes on where it was."
    sweep = parsers.add_parser(
        "sweep", help="train a grid of networks and compare them", description=about, allow_abbrev=False
    )
    sweep.set_defaults(command=commands.sweep, axes=tuple(_SWEPT))
    axes = sweep.add_argument_group("the grid: one value each, or several as in sigmoid,tanh,relu")
    for axis, (of, words) in _SWEPT.items():
        axes.add_argument(f"--{axis}", type=_listed(of), default=(), metavar=f"{axis.upper()},...", help=words)
    axes.add_argument("--seeds", type=int, default=5, help="networks of each combination (default: 5)")
    rest = sweep.add_argument_group("what all of them have in common (left out: the data set's recipe)")
    rest.add_argument("--hidden", type=_widths, help="widths of the hidden layers, 512,256,128")
    for flag, of in (("bias", float), ("momentum", float), ("weight-decay", float), ("clip", float)):
        rest.add_argument(f"--{flag}", type=of)
    for flag in ("batch", "epochs", "every"):
        rest.add_argument(f"--{flag}", type=int)
    rest.add_argument("--residual", action="store_const", const=True)
    rest.add_argument("--data-dir", help="folder with the files of mnist, fashion-mnist or cifar10")
    how = sweep.add_argument_group("how it is done, and where it is kept")
    how.add_argument("--jobs", type=int, help="networks trained side by side (default: as many as there are cores)")
    how.add_argument("--backend", default="loky", help="joblib's: loky (default, built in); dask, ray where installed")
    how.add_argument("--name", help="the sweep's folder (default: from the grid)")
    how.add_argument("--runs", default="runs", help="folder of all runs (default: runs)")


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
    how.add_argument("--batch", type=int, help="samples per step; several processes share them")
    how.add_argument("--seed", type=int, help="of weights and order of samples (default 0)")
    return how


def _add_preflight(parsers: Any) -> None:
    about = (
        "Judge a network's gradient from one batch, before it is trained: a built-in one, or your own by the name of a "
        "function that returns (model, loss function, (x, y)) and, if you like, an optimizer behind them."
    )
    preflight = parsers.add_parser("preflight", help="judge a network from one batch, untrained", description=about)
    preflight.set_defaults(command=commands.preflight)
    preflight.add_argument("target", nargs="?", metavar="package.module:function", help="your own model")
    preflight.add_argument("--what-if", action="store_true", help="try what could mend it, and show the best")
    preflight.add_argument(
        "--layers", metavar="PATTERN", help="look at the modules whose name it matches, 'conv|head' (default: Linear)"
    )
    _add_fail_on(preflight)
    _add_network(preflight)
    _add_optimizer(preflight)


def _add_fail_on(parser: Any) -> None:
    about = "exit code 3 if the verdict (the last one) is one of vanishing,exploding,dead,...; any: of all bad ones"
    parser.add_argument("--fail-on", metavar="VERDICTS", type=_verdicts, default=(), help=about)


def _add_predict(parsers: Any) -> None:
    about = "What theory expects of a deep MLP before it is built or trained; takes no data and not a second."
    predict = parsers.add_parser("predict", help="what theory expects of a network's gradients", description=about)
    predict.set_defaults(command=commands.predict)
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


def _add_report(parsers: Any) -> None:
    about = "The verdict on a logged run, and its pictures in one HTML file that can be sent to others."
    report = parsers.add_parser("report", help="verdict and pictures of a logged run", description=about)
    _add_reading(report, 1, "(default: report.html in the run's folder)")


def _add_compare(parsers: Any) -> None:
    about = "Logged runs side by side: verdicts, settings that differ, and pictures on equal axes in one HTML file."
    compare = parsers.add_parser("compare", help="logged runs side by side", description=about)
    _add_reading(compare, "+", "(default: compare.html)")


def _add_reading(parser: Any, count: int | str, default: str) -> None:
    parser.set_defaults(command=commands.report, several=count == "+")
    parser.add_argument("runs", type=Path, nargs=count, metavar="run", help="the folder of a run, or its event file")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the HTML file {default}")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON, and draw nothing")


def _add_board(parsers: Any) -> None:
    board = parsers.add_parser("board", help="open TensorBoard on the runs", description="TensorBoard on localhost.")
    board.set_defaults(command=commands.board)
    board.add_argument("--runs", type=_folder, default="runs", help="folder of all runs (default: runs)")
    board.add_argument("--port", type=int, default=6006, help="port on localhost (default: 6006)")


_SWEPT: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "data": (str, "digits (default, offline), circles, mnist, fashion-mnist, cifar10"),
    "act": (str, "sigmoid, tanh, relu (default), leaky_relu, elu, selu, gelu, silu, softsign, identity"),
    "init": (str, "uniform, normal, xavier, glorot, he, lecun, orthogonal, torch"),
    "norm": (lambda word: None if word == "none" else word, "none (default), batch, layer"),
    "gain": (float, "multiplies every weight at the start (default: 1)"),
    "optimizer": (str, "sgd, rmsprop, adam, adamw"),
    "lr": (float, "learning rate"),
}
"""Axis of a sweep -> how to read one of its values, what they are."""


def _listed(of: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def values(text: str) -> tuple[Any, ...]:
        try:
            return tuple(of(part.strip()) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"values are numbers with commas between, 0.1,0.01, not {text!r}"
            ) from None

    return values


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"widths are whole numbers like 512,256,128, not {text!r}") from None


def _verdicts(text: str) -> tuple[str, ...]:
    from vgrad_torch.verdict.rules import ALARMS, VERDICTS

    known = {"any": tuple(ALARMS), **{verdict.replace("-", " "): (verdict,) for verdict in VERDICTS}}
    found = [word for part in text.split(",") if (word := part.strip().lower().replace("-", " "))]
    for word in found:
        if word not in known:
            raise argparse.ArgumentTypeError(f"unknown verdict {word!r}. Choose from: any, {', '.join(VERDICTS)}")
    if not found:
        raise argparse.ArgumentTypeError(f"name one or more of: any, {', '.join(VERDICTS)}")
    return tuple(verdict for word in found for verdict in known[word])


def _folder(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it must be a folder's path, not empty; `.` is the folder you are in")
    return text


def _name(text: str) -> str:
    if len(os.fsencode(text)) > _LONGEST:
        raise argparse.ArgumentTypeError(
            f"a folder's name has at most {_LONGEST} bytes, this one {len(os.fsencode(text))}"
        )
    return text
