"""The command line: vgrad train, vgrad board. The only place that prints; heavy imports wait inside the commands."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from vgrad_torch import __version__
from vgrad_torch.choices import UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did its work, 2 with one sentence on stderr if it cannot, 130 after Ctrl-C."""
    # Torch's idle threads spin; at OpenMP's default two runs side by side take 50 times longer. Read at torch's import.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    try:
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except UsageError as error:
        print(f"vgrad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nvgrad: stopped; what was logged so far is kept", file=sys.stderr)
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
    _add_board(commands)
    return parser


def _add_train(commands: Any) -> None:
    about = "Train a deep MLP, watch every Linear layer, and log its gradients for TensorBoard."
    train = commands.add_parser("train", help="train a network and log its gradients", description=about)
    train.set_defaults(command=_train)
    what = train.add_argument_group("what to train (left out: the data set's recipe)")
    what.add_argument(
        "--data", default="digits", help="digits (default, offline), circles, mnist, fashion-mnist, cifar10"
    )
    what.add_argument("--act", help="activation: sigmoid, tanh, relu (default), leaky_relu, elu, selu, gelu, silu, ...")
    what.add_argument("--init", help="initializer: uniform, normal, xavier, glorot, he, lecun, orthogonal, torch")
    what.add_argument("--hidden", type=_widths, help="widths of the hidden layers, 512,256,128")
    how = train.add_argument_group("how")
    how.add_argument("--optimizer", help="sgd, rmsprop, adam, adamw")
    how.add_argument("--lr", type=float, help="learning rate")
    how.add_argument("--momentum", type=float, help="of sgd")
    how.add_argument("--weight-decay", type=float, help="on weights, not on biases")
    how.add_argument("--batch", type=int, help="samples per step")
    how.add_argument("--epochs", type=int, help="passes over the training part")
    how.add_argument("--seed", type=int, help="of weights and order of samples (default 0)")
    look = train.add_argument_group("what to look at, and where to keep it")
    look.add_argument("--every", type=int, help="sample every n-th step (default: the first of each epoch)")
    look.add_argument("--monitor", metavar="PATTERN", help="print step, name and RMS of what matches, 'fc1.*gradient'")
    look.add_argument("--name", help="the run's folder (default: data-act-init-seed)")
    look.add_argument("--runs", help="folder of all runs (default: runs)")
    look.add_argument(
        "--data-dir", help="folder with the files of mnist, fashion-mnist or cifar10; else they are downloaded"
    )


def _add_board(commands: Any) -> None:
    board = commands.add_parser("board", help="open TensorBoard on the runs", description="TensorBoard on localhost.")
    board.set_defaults(command=_board)
    board.add_argument("--runs", default="runs", help="folder of all runs (default: runs)")
    board.add_argument("--port", type=int, default=6006, help="port on localhost (default: 6006)")


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise argparse.ArgumentTypeError(f"widths are whole numbers like 512,256,128, not {text!r}") from None


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"--monitor {text!r} is not a regular expression: {error}") from None


_CONFIG = (
    "act", "init", "hidden", "optimizer", "lr", "momentum", "weight_decay", "batch", "epochs", "seed", "every", "name",
    "runs", "data_dir",
)  # fmt: skip


def _train(options: argparse.Namespace) -> int:
    pattern = _pattern(options.monitor) if options.monitor else None
    from rich.console import Console

    from vgrad_torch import training

    config = training.recipe(options.data, **{name: getattr(options, name) for name in _CONFIG})
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        result = _shown(config, console, pattern)
    except training.NonFiniteError as error:
        print(f"vgrad: {error}. Training stopped, the log up to there is kept; try a smaller --lr", file=sys.stderr)
        return 2
    _print_result(result, console)
    return 0


def _shown(config: Any, console: Any, pattern: re.Pattern[str] | None) -> Any:
    """Train with a live picture on a terminal, with plain lines elsewhere."""
    from rich.live import Live

    from vgrad_torch import terminal, training

    def say(line: str) -> None:
        console.print(line, markup=False)

    def on_sample(snapshot: Any) -> None:
        for line in terminal.monitor_lines(snapshot, pattern) if pattern else ():
            say(line)

    def start(folder: Any, epoch: Any) -> None:
        say(f"run {folder}: {_summary(config)}")
        show(epoch, None)

    def show(epoch: Any, monitor: Any) -> None:
        latest = monitor.history[-1] if monitor is not None and len(monitor.history) else None
        if live is None:
            say(terminal.epoch_line(epoch, config.epochs, latest))
        else:
            live.update(terminal.live_picture(epoch, config.epochs, latest))

    live = Live(console=console, refresh_per_second=8) if console.is_terminal else None
    with live or _Nothing():
        return training.run(config, say=say, on_start=start, on_epoch=show, on_sample=on_sample)


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _summary(config: Any) -> str:
    widths = "-".join(str(width) for width in config.hidden)
    return (
        f"{config.data}, hidden layers {widths}, {config.act}, {config.init} weights, "
        f"{config.optimizer} lr {config.lr:g}, batch {config.batch}, {config.epochs} epochs, seed {config.seed}"
    )


def _print_result(result: Any, console: Any) -> None:
    from vgrad_torch import terminal

    history = result.monitor.history
    console.print()
    console.print(terminal.layer_table(history[-1]))
    classes = result.model[-1].out_features if result.model[-1].out_features > 1 else 2
    words = terminal.result_paragraph(result.config, result.epochs, history[0], history[-1], classes)
    console.print(words, markup=False)
    console.print(f"\nLogged in {result.folder}. Next:", markup=False)
    for command, meaning in _next(result.config):
        console.print(f"  {command:<44} {meaning}", markup=False)


def _next(config: Any) -> list[tuple[str, str]]:
    other = {"sigmoid": "relu"}.get(config.act, "sigmoid")
    suggestions = [("make board", "see the histograms in TensorBoard")]
    data = "" if config.data == "digits" else f" DATA={config.data}"
    suggestions.append((f"make train ACT={other}{data}", f"the same with {other}"))
    if config.init != "he":
        suggestions.append((f"make train ACT=relu INIT=he{data}", "relu with weights made for it"))
    return suggestions


def _board(options: argparse.Namespace) -> int:
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port must be between 0 and 65535, not {options.port}")
    if not os.path.isdir(options.runs):
        raise UsageError(f"there is no folder {options.runs}; make a run first: vgrad train --act relu")
    program = [sys.executable, "-m", "tensorboard.main", "--logdir", options.runs, "--host", "localhost"]
    os.execv(sys.executable, [*program, "--port", str(options.port)])
