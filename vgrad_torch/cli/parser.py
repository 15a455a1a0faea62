"""The commands and options of the command line, and the exit code for each error."""

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
    """Run one command and return its exit code.

    0: success. 1: incomplete, such as a sweep with failed networks or a log with a write error. 2: an error, with one
    sentence on stderr. 3: the verdict is one of `--fail-on`. 130: stopped by Ctrl-C. 143: stopped by SIGTERM.
    """
    # Idle OpenMP threads spin. With the default, two runs at the same time take 50 times longer. Torch reads this value
    # when it is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not raise
            stream.reconfigure(errors="replace")
    try:
        with _process_group(), launch.only_rank_0_prints():
            return _run_command(arguments)
    except BrokenPipeError:  # the reader of the output has ended; without this Python reports it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"vgrad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        if launch.prints_for_host():
            print("\nvgrad: stopped", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)


_LONGEST_NAME = 250  # bytes; file systems allow 255, and the name of a second run gets -2 at its end


def _process_group() -> AbstractContextManager[None]:
    """Connects the processes of a run if torchrun started several."""
    if not launch.started_by_torchrun():
        return nullcontext()
    from vgrad_torch.distributed.team import process_group

    return process_group()


def _run_command(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        if launch.started_by_torchrun() and command is not commands.train:
            raise UsageError("torchrun works with vgrad train only; start this command without torchrun")
        return command(options)
    except UsageError as error:
        commands.complain(str(error))
        return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    about = "Shows the gradient that each layer of a deep network receives, and how to fix it where it vanishes."
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
    about = "Train a deep MLP, and log the gradients of every Linear layer for TensorBoard."
    train = parsers.add_parser("train", help="train a network and log its gradients", description=about)
    train.set_defaults(command=commands.train)
    _add_network(train)
    training = _add_training(train)
    training.add_argument("--clip", type=float, help="largest norm of the gradient; larger gradients are scaled down")
    training.add_argument("--epochs", type=int, help="number of passes over the training data")
    logging = train.add_argument_group("logging")
    logging.add_argument("--every", type=int, help="sample every n-th step (default: the first of each epoch)")
    monitor = "print step, name and RMS of the statistics whose name matches, as in 'fc1.*gradient'"
    logging.add_argument("--monitor", metavar="PATTERN", help=monitor)
    _add_fail_on(logging)
    logging.add_argument("--name", type=_name, help="folder of the run (default: data-act-init-seed)")
    logging.add_argument("--runs", type=_folder, help="folder of all runs (default: runs)")
    logging.add_argument("--resume", metavar="RUN", help="continue the interrupted run in this folder")


def _add_sweep(parsers: Any) -> None:
    about = (
        "Train every combination of the given values with several seeds. A stopped sweep continues when started again."
    )
    sweep = parsers.add_parser(
        "sweep", help="train a grid of networks and compare them", description=about, allow_abbrev=False
    )
    sweep.set_defaults(command=commands.sweep, axes=tuple(_AXES))
    axes = sweep.add_argument_group("the grid (one value for each option, or several as in sigmoid,tanh,relu)")
    for axis, (parse, text) in _AXES.items():
        axes.add_argument(f"--{axis}", type=_list_of(parse), default=(), metavar=f"{axis.upper()},...", help=text)
    axes.add_argument("--seeds", type=int, default=5, help="networks for each combination (default: 5)")
    shared = sweep.add_argument_group("settings of all networks (default: the recipe of the data set)")
    shared.add_argument("--hidden", type=_widths, help="widths of the hidden layers, 512,256,128")
    for flag in ("bias", "momentum", "weight-decay", "clip"):
        shared.add_argument(f"--{flag}", type=float)
    for flag in ("batch", "epochs", "every"):
        shared.add_argument(f"--{flag}", type=int)
    shared.add_argument("--residual", action="store_const", const=True)
    shared.add_argument("--data-dir", help="folder with the files of mnist, fashion-mnist or cifar10")
    execution = sweep.add_argument_group("execution and output")
    execution.add_argument("--jobs", type=int, help="networks trained at the same time (default: number of cores)")
    execution.add_argument("--backend", default="loky", help="of joblib: loky (default, built in), dask or ray")
    execution.add_argument("--name", help="folder of the sweep (default: made from the grid)")
    execution.add_argument("--runs", default="runs", help="folder of all runs (default: runs)")


def _add_network(parser: Any) -> None:
    network = parser.add_argument_group("network (default: the recipe of the data set)")
    network.add_argument("--data", help="digits (default, offline), circles, mnist, fashion-mnist, cifar10")
    data_dir = "folder with the files of mnist, fashion-mnist or cifar10 (default: download them)"
    network.add_argument("--data-dir", help=data_dir)
    activations = "activation: sigmoid, tanh, relu (default), leaky_relu, elu, selu, gelu, silu, ..."
    network.add_argument("--act", help=activations)
    network.add_argument("--init", help="initializer: uniform, normal, xavier, glorot, he, lecun, orthogonal, torch")
    network.add_argument("--hidden", type=_widths, help="widths of the hidden layers, 512,256,128")
    network.add_argument("--norm", help="normalisation before each hidden activation: batch, layer")
    residual = "add a residual connection around each hidden layer that is as wide as its input"
    network.add_argument("--residual", action="store_const", const=True, help=residual)
    network.add_argument("--gain", type=float, help="factor on every initial weight (default: 1)")
    network.add_argument("--bias", type=float, help="initial value of every bias (default: 0)")


def _add_training(parser: Any) -> Any:
    training = parser.add_argument_group("training")
    training.add_argument("--optimizer", help="sgd, rmsprop, adam, adamw")
    training.add_argument("--lr", type=float, help="learning rate")
    training.add_argument("--momentum", type=float, help="momentum of sgd")
    training.add_argument("--weight-decay", type=float, help="weight decay, on weights only, not on biases")
    training.add_argument("--batch", type=int, help="samples per step; several processes share them")
    training.add_argument("--seed", type=int, help="random seed of the weights and of the sample order (default: 0)")
    return training


def _add_preflight(parsers: Any) -> None:
    about = (
        "Judge the gradient of a network from one batch, before training. The network is a built-in one, or your own: "
        "give the name of a function that returns (model, loss function, (x, y)), or these and an optimizer."
    )
    preflight = parsers.add_parser(
        "preflight", help="judge a network from one batch, before training", description=about
    )
    preflight.set_defaults(command=commands.preflight)
    preflight.add_argument(
        "target", nargs="?", metavar="package.module:function", help="function that returns your own model"
    )
    preflight.add_argument("--what-if", action="store_true", help="try changes of the network, and show the best one")
    preflight.add_argument(
        "--layers", metavar="PATTERN", help="watch modules whose name matches 'conv|head' (default: all with a matrix)"
    )
    _add_fail_on(preflight)
    _add_network(preflight)
    _add_training(preflight)


def _add_fail_on(parser: Any) -> None:
    about = "exit with code 3 if the last verdict is one of these, as in vanishing,dead; any: every bad verdict"
    parser.add_argument("--fail-on", metavar="VERDICTS", type=_verdicts, default=(), help=about)


def _add_predict(parsers: Any) -> None:
    about = "What theory predicts for a deep MLP before it is built. Needs no data and takes less than a second."
    predict = parsers.add_parser(
        "predict", help="what theory predicts for the gradients of a network", description=about
    )
    predict.set_defaults(command=commands.predict)
    predict.add_argument("--act", default="relu", help="activation: sigmoid, tanh, relu (default), ...")
    predict.add_argument("--init", default="uniform", help="initializer: uniform (default), normal, xavier, he, ...")
    predict.add_argument(
        "--widths",
        type=_widths,
        default=(64, 512, 256, 128, 64, 32, 16, 10),
        help="widths from input to output (default: 64,512,256,128,64,32,16,10); one output means a sigmoid",
    )
    predict.add_argument("--batch", type=int, default=32, help="number of samples in the mean loss (default: 32)")
    predict.add_argument("--gain", type=float, default=1.0, help="factor on every weight (default: 1)")
    predict.add_argument("--bias", type=float, default=0.0, help="value of every bias (default: 0)")
    predict.add_argument(
        "--mean-square",
        type=float,
        default=1.0,
        help="mean of x^2 over the inputs: 1 (default) if standardised, .23 digits, .32 circles, .11 mnist",
    )


def _add_report(parsers: Any) -> None:
    about = "Print the verdict on a logged run, and write its figures into one HTML file."
    report = parsers.add_parser("report", help="verdict and figures of a logged run", description=about)
    _add_report_options(report, 1, "(default: report.html in the run's folder)")
    about = "print only the layers of this block, or with this in their name; all: do not group layers by block"
    report.add_argument("--layers", metavar="NAME", help=about)


def _add_compare(parsers: Any) -> None:
    about = "Compare logged runs: verdicts, settings that differ, and figures with the same axes in one HTML file."
    compare = parsers.add_parser("compare", help="compare logged runs", description=about)
    _add_report_options(compare, "+", "(default: compare.html)")


def _add_report_options(parser: Any, count: int | str, default: str) -> None:
    parser.set_defaults(command=commands.report, several=count == "+")
    parser.add_argument("runs", type=Path, nargs=count, metavar="run", help="folder of a run, or its event file")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"HTML file to write {default}")
    parser.add_argument("--json", action="store_true", help="print everything as JSON and draw no figures")


def _add_board(parsers: Any) -> None:
    board = parsers.add_parser(
        "board", help="open TensorBoard on the runs", description="Start TensorBoard on localhost."
    )
    board.set_defaults(command=commands.board)
    board.add_argument("--runs", type=_folder, default="runs", help="folder of all runs (default: runs)")
    board.add_argument("--port", type=int, default=6006, help="port on localhost (default: 6006)")


_AXES: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "data": (str, "digits (default, offline), circles, mnist, fashion-mnist, cifar10"),
    "act": (str, "sigmoid, tanh, relu (default), leaky_relu, elu, selu, gelu, silu, softsign, identity"),
    "init": (str, "uniform, normal, xavier, glorot, he, lecun, orthogonal, torch"),
    "norm": (lambda text: None if text == "none" else text, "none (default), batch, layer"),
    "gain": (float, "factor on every initial weight (default: 1)"),
    "optimizer": (str, "sgd, rmsprop, adam, adamw"),
    "lr": (float, "learning rate"),
}
"""Axis of a sweep -> the function that parses one of its values, and the help text."""


def _list_of(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse_list(text: str) -> tuple[Any, ...]:
        try:
            return tuple(parse(part.strip()) for part in text.split(","))
        except ValueError:
            message = f"values must be numbers separated by commas, like 0.1,0.01, not {text!r}"
            raise argparse.ArgumentTypeError(message) from None

    return parse_list


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"widths must be whole numbers like 512,256,128, not {text!r}") from None


def _verdicts(text: str) -> tuple[str, ...]:
    from vgrad_torch.verdict.rules import ALARMS, VERDICTS

    known = {"any": tuple(ALARMS), **{verdict.replace("-", " "): (verdict,) for verdict in VERDICTS}}
    names = [name for part in text.split(",") if (name := part.strip().lower().replace("-", " "))]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"unknown verdict {name!r}. Choose from: any, {', '.join(VERDICTS)}")
    if not names:
        raise argparse.ArgumentTypeError(f"give one or more of: any, {', '.join(VERDICTS)}")
    return tuple(verdict for name in names for verdict in known[name])


def _folder(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the path of the folder must not be empty; `.` is the current folder")
    return text


def _name(text: str) -> str:
    if len(os.fsencode(text)) > _LONGEST_NAME:
        raise argparse.ArgumentTypeError(
            f"the name of a folder has at most {_LONGEST_NAME} bytes, this one has {len(os.fsencode(text))}"
        )
    return text
