"""Command lines that are suggested to the user, for make or for vgrad."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any

FLAGS = {
    "data": "DATA", "act": "ACT", "init": "INIT", "hidden": "HIDDEN", "norm": "NORM", "residual": "RESIDUAL",
    "gain": "GAIN", "bias": "BIAS", "optimizer": "OPT", "lr": "LR", "momentum": "MOMENTUM", "weight_decay": "WD",
    "clip": "CLIP", "batch": "BATCH", "epochs": "EPOCHS", "seed": "SEED",
    "every": "EVERY", "name": "NAME", "runs": "RUNS", "data_dir": "DATA_DIR",
}  # fmt: skip
"""Option of `vgrad train` -> variable of `make train`."""


def command_line(name: str, options: Mapping[str, Any]) -> str:
    """A command line for make if make started this process, else for vgrad; defaults are left out."""
    words = ["make" if "VGRAD_MAKE" in os.environ else "vgrad", name]
    if name == "train" and words[0] == "make" and "VGRAD_NPROC" in os.environ:
        words.append(f"NPROC={shlex.quote(os.environ['VGRAD_NPROC'])}")
    defaults = {"data": "digits", "runs": "runs"}
    for option, value in options.items():
        if value is None or value == defaults.get(option):
            continue
        variable = FLAGS.get(option, option.upper())
        if value is True:
            words.append(f"{variable}=1" if words[0] == "make" else f"--{option}")
            continue
        text = shlex.quote(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
        words.append(f"{variable}={text}" if words[0] == "make" else f"--{option.replace('_', '-')} {text}")
    return " ".join(words)


def print_next(given: Mapping[str, Any], config: Any, console: Any) -> None:
    """Suggest commands: this one with another activation or other weights, and the board."""
    other = {"sigmoid": "relu"}.get(config.act, "sigmoid")
    rows = [(command_line("board", {"runs": given["runs"]}), "see the histograms in TensorBoard")]
    given = {name: given.get(name) for name in FLAGS if name != "name"}
    if config.hidden:
        rows.append((command_line("train", {**given, "act": other}), f"the same with {other}"))
    if config.hidden and config.init != "he":
        rows.append((command_line("train", {**given, "act": "relu", "init": "he"}), "relu with weights made for it"))
    console.print("Next:", markup=False)
    width = max(len(command) for command, _ in rows)
    for command, meaning in rows:
        console.print(f"  {command:<{width}}  {meaning}", markup=False)
