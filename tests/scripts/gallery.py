"""`make gallery`: train the networks of both tutorials, and networks with fixes, from fixed seeds, and draw them.

Writes to runs/gallery: the pictures, a screenshot of the Gradient Flow tab, `captions.json` with the measured numbers,
and a README.md that shows all of it. Takes two minutes on two cores. The screenshot needs chromium and chromedriver;
without them the old one stays. `--data-dir` names a folder with MNIST's four files; without it the networks of the
MXNet tutorial are trained on the digits that come with scikit-learn.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import vgrad_torch as vg
from tests import ROOT
from tests.support import browser
from vgrad_torch import training
from vgrad_torch.records import Snapshot, Stats
from vgrad_torch.report import figures
from vgrad_torch.report.figures import style
from vgrad_torch.training import recipes
from vgrad_torch.training.data import load

FOLDER = ROOT / "runs" / "gallery"
WIDTH = 8.0  # inches, 1,200 pixels


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, the name of its file, and a caption: sentences with measured numbers."""

    name: str
    title: str
    caption: str
    drawing: Figure | Image.Image


Results = Mapping[str, training.Result]


def train(runs: Path, nets: Mapping[str, Mapping[str, Any]], data: str, **common: Any) -> dict[str, training.Result]:
    """Train a network for each recipe, with seed 0."""
    return {
        name: training.run(recipes.recipe(data, runs=str(runs), name=name, seed=0, **{**common, **given}))
        for name, given in nets.items()
    }


def samples(results: Results) -> dict[str, list[Snapshot]]:
    return {name: list(result.monitor.history) for name, result in results.items()}


def firsts(results: Results) -> dict[str, Snapshot]:
    return {name: result.monitor.history[0] for name, result in results.items()}


def rms(stats: Stats | None) -> float:
    return stats.rms if stats else float("nan")


def accuracy(result: training.Result) -> float:
    return result.epochs[-1].validation.accuracy


def listed(words: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {text}" for name, text in words.items())


# --- the Keras tutorial --------------------------------------------------------------------------------------------


def keras(runs: Path) -> Iterator[Picture]:
    """The data, and sigmoid, tanh, relu: weights, gradients and loss over the epochs."""
    data = load("circles")
    x, y = data.x_train.numpy(), data.y_train.numpy()
    counts = " and ".join(f"{int((y == label).sum())} of class {label}" for label in (0, 1))
    caption = f"Two circles with noise: {counts}."
    yield Picture("circles-data", "The data of the Keras tutorial", caption, figures.circles(x, y))
    results = train(runs, {act: {"act": act} for act in ("sigmoid", "tanh", "relu")}, "circles")
    histories, per_epoch = samples(results), -(-len(x) // 32)
    moved = {name: _moved(result) for name, result in results.items()}
    yield Picture(
        "circles-weights", "Weights of 2-5-5-5-5-1 networks, N(0, 1) at the start",
        f"Standard deviation of the first and the last layer's weights, before and after: {listed(moved)}.",
        figures.weights(histories, steps_per_epoch=per_epoch),
    )  # fmt: skip
    losses = {name: [(e.step, e.train.loss) for e in result.epochs] for name, result in results.items()}
    ends = {name: _gradients_and_end(result) for name, result in results.items()}
    yield Picture(
        "circles-gradients", "Their gradients and losses",
        f"Median standard deviation of the first layer's gradient over the last one's, and accuracy on the training "
        f"data after 100 epochs: {listed(ends)}.",
        figures.gradients(histories, losses, steps_per_epoch=per_epoch, loss="training loss"),
    )  # fmt: skip


def _moved(result: training.Result) -> str:
    series = result.monitor.history.series("weight", "std")
    (first, _), (last, end) = (series[0, [0, -1]], series[-1, [0, -1]])
    return f"{first:.2f} to {last:.2f} and {series[0, -1]:.2f} to {end:.2f}"


def _gradients_and_end(result: training.Result) -> str:
    first, last = np.median(result.monitor.history.series("weight_gradient", "std"), axis=0)[[0, -1]]
    return f"{first / last:.2g}, {result.epochs[-1].train.accuracy:.1%}"


# --- the MXNet tutorial --------------------------------------------------------------------------------------------


def mxnet(runs: Path, data: str, data_dir: str | None) -> Iterator[Picture]:
    """Uniform and xavier weights, sigmoid and relu: gradient over the training, over the depth, and its waterfall."""
    networks = {f"{act}, {init}": {"act": act, "init": init} for act, init in product(("sigmoid", "relu"), INITS)}
    results = train(runs, networks, data, data_dir=data_dir)
    before = {name: f"{rms(s.layers[0].weight_gradient):.1e}" for name, s in firsts(results).items()}
    ends = {name: f"{accuracy(result):.1%}" for name, result in results.items()}
    yield Picture(
        "mxnet-flow", f"The networks of the MXNet tutorial, on {data}",
        f"First layer on top. Validation accuracy at the end: {listed(ends)}.", figures.flow_map(samples(results)),
    )  # fmt: skip
    right = {name: [(e.step, e.validation.accuracy) for e in result.epochs] for name, result in results.items()}
    yield Picture(
        "mxnet-accuracy", "How well they learn",
        f"Guessing gives 10 %. At the end: {listed(ends)}.",
        figures.losses(right, label="validation accuracy"),
    )  # fmt: skip
    yield Picture(
        "mxnet-profile", "The same before training",
        f"RMS of the first layer's gradient: {listed(before)}.", figures.depth_profile(firsts(results)),
    )  # fmt: skip
    yield Picture(
        "mxnet-waterfall", "How much each weight and each activation takes away",
        f"All activations together multiply the gradient by {listed(_activations(results))}.",
        figures.waterfalls(firsts(results)),
    )  # fmt: skip


INITS = ("uniform", "xavier")


def _activations(results: Results) -> dict[str, str]:
    gains = {name: [x.activation_gain for x in s.layers if x.activation_gain] for name, s in firsts(results).items()}
    return {name: f"{np.prod(found):.1e}" for name, found in gains.items()}


# --- Glorot and Bengio ---------------------------------------------------------------------------------------------


def glorot() -> Iterator[Picture]:
    """Their figures 6 and 7: a tanh network of five hidden layers of 1,000 units, one step before any training."""
    snapshots = {"standard": _tanh("torch"), "normalised": _tanh("glorot")}
    hidden = {name: replace(s, layers=s.layers[:-1]) for name, s in snapshots.items()}
    outputs = {name: _from_to(s, "output") for name, s in hidden.items()}
    backs = {name: _from_to(s, "output_gradient") for name, s in hidden.items()}
    yield Picture(
        "glorot-activations", "Activations of a tanh network before training (Glorot and Bengio's figure 6)",
        "Standard: U(-1/sqrt(n), 1/sqrt(n)), which PyTorch has to this day. Standard deviation of tanh's input, first "
        f"to last hidden layer: {listed(outputs)}.",
        figures.values(hidden, "output", transform=np.tanh, label="activation"),
    )  # fmt: skip
    yield Picture(
        "glorot-gradients", "Their back-propagated gradients (figure 7, on a log axis)",
        f"Standard deviation of the output gradient, first to last hidden layer: {listed(backs)}.",
        figures.ridges(hidden, "output_gradient", exponents=range(-52, 10)),
    )  # fmt: skip


def _tanh(init: str) -> Snapshot:
    data = load("digits")
    model = vg.build_mlp([64, *[1000] * 5, 10], "tanh", init, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with vg.watch(model, optimizer, every=1) as monitor:
        nn.functional.cross_entropy(model(data.x_train[:300]), data.y_train[:300]).backward()
        optimizer.step()
    return monitor.history[0]


def _from_to(snapshot: Snapshot, quantity: str) -> str:
    first, last = (getattr(snapshot.layers[place], quantity).std for place in (0, -1))
    return f"{first:.2g} to {last:.2g}"


# --- fixes ---------------------------------------------------------------------------------------------------------

FIXES: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"init": "uniform"},
    "he": {"init": "he"},
    "orthogonal": {"init": "orthogonal"},
    "batch norm": {"init": "uniform", "norm": "batch"},
    "residual": {"init": "uniform", "residual": True},
}


def fixes(runs: Path) -> Iterator[Picture]:
    """One deep relu network whose gradient vanishes, and the same network with four fixes."""
    results = train(runs, FIXES, "digits", act="relu", hidden=(64,) * 12, epochs=10, every=8)
    ends = {name: f"{accuracy(result):.1%}" for name, result in results.items()}
    before = {name: f"{rms(s.layers[0].weight_gradient):.1e}" for name, s in firsts(results).items()}
    yield Picture(
        "fixes-flow", "A relu network of 12 hidden layers of 64 units, as it is and with four fixes",
        f"Batch norm and residual connections are added to the network with uniform weights. Validation accuracy after "
        f"10 epochs: {listed(ends)}.",
        figures.flow_map(samples(results), height=2.9),
    )  # fmt: skip
    yield Picture(
        "fixes-profile", "The same before training",
        f"RMS of the first layer's gradient: {listed(before)}.", figures.depth_profile(firsts(results)),
    )  # fmt: skip


# --- the picture on top of the README ------------------------------------------------------------------------------

README: Mapping[str, Mapping[str, Any]] = {
    "sigmoid": {"act": "sigmoid", "init": "uniform"},
    "relu": {"act": "relu", "init": "uniform"},
    "relu, he weights": {"act": "relu", "init": "he"},
}


def readme(runs: Path) -> Iterator[Picture]:
    """The README's seven-layer network in three versions, before training. The titles say how well each one learned."""
    results = train(runs, README, "digits")
    figure = figures.ridges(firsts(results), exponents=range(-52, 10), height=4.4)
    for axis, (name, result) in zip(figure.axes, results.items(), strict=True):
        for note in list(axis.texts):  # the shares of exact zeros
            note.remove()
        axis.set_title(name, loc="left", fontsize=13, fontweight="bold", pad=22)
        words = f"after training {accuracy(result):.0%} right"
        axis.text(0, 1.03, words, transform=axis.transAxes, fontsize=9.5, color=style.MUTED)
    _way(figure)
    sizes = {
        name: " and ".join(f"{rms(s.layers[place].weight_gradient):.1e}" for place in (0, -1))
        for name, s in firsts(results).items()
    }
    ends = {name: f"{accuracy(result):.1%}" for name, result in results.items()}
    yield Picture(
        "readme", "What each layer gets of the gradient, before training",
        f"The magnitudes of the weight gradient's entries, without exact zeros, in seven layers; the gradient comes "
        f"from below. RMS at fc1 and at fc7: {listed(sizes)}. Validation accuracy after training: {listed(ends)}.",
        figure,
    )  # fmt: skip
    shown = [name for name in README if name != "relu"]
    if shot := screenshot(runs, shown):
        yield Picture(
            "tab", "The Gradient Flow tab in TensorBoard",
            f"Two of these runs. The verdicts at the end: {listed({n: results[n].diagnosis.verdict for n in shown})}.",
            shot,
        )  # fmt: skip


def screenshot(runs: Path, shown: Sequence[str]) -> Image.Image | None:
    """The Gradient Flow tab over some runs as a browser shows it; None where there is no chromium."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print("No chromium or chromedriver: the screenshot of the tab is not made again.", flush=True)
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for run in shown:
            (folder / "runs").mkdir(exist_ok=True)
            (folder / "runs" / run).symlink_to(runs / run)
        log = folder / "tensorboard.log"
        with browser.tensorboard(folder / "runs", log) as address, browser.chromium(folder / "profile") as chrome:
            chrome.set_window_size(1400, 1160)
            page = browser.Page(chrome, address, folder)
            page.open("gradient_flow")
            chrome.switch_to.frame(page.wait("return all('iframe').find(f => f.src.includes('gradient_flow'))"))
            page.wait(f"return all('#maps canvas').length === {len(shown)} && all('#profile .mark').length > 0")
            page.wait("return all('main').every(main => main.ariaBusy === 'false')")
            chrome.switch_to.default_content()
            return Image.open(io.BytesIO(chrome.get_screenshot_as_png()))


def _way(figure: Figure) -> None:
    """An arrow from the loss, below, to the first layer."""
    axis = figure.axes[0]
    how: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "axes fraction", "annotation_clip": False}
    arrow = {"arrowstyle": "-|>", "color": style.MUTED, "linewidth": 1.2}
    axis.annotate("", (-0.2, 0.86), (-0.2, 0.04), arrowprops=arrow, **how)
    axis.annotate(
        "the gradient's way", (-0.24, 0.45), (-0.24, 0.45), rotation=90, ha="right", va="center", fontsize=9,
        color=style.MUTED, **how,
    )  # fmt: skip


def save(picture: Picture) -> int:
    """Write the picture with 256 colours, which are enough for it; the size in bytes."""
    drawing = picture.drawing
    image = Image.open(io.BytesIO(style.png(drawing))) if isinstance(drawing, Figure) else drawing
    file = FOLDER / f"{picture.name}.png"
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    return file.stat().st_size


def pictures(data_dir: str | None) -> Iterator[Picture]:
    """All of them, in the order of the page."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        yield from readme(runs / "readme")
        yield from keras(runs / "keras")
        yield from mxnet(runs / "mxnet", "mnist" if data_dir else "digits", data_dir)
        yield from glorot()
        yield from fixes(runs / "fixes")


def main() -> None:
    """Draw everything, and write the captions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", help="folder with MNIST's files; else the digits of scikit-learn are used")
    options = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    captions: dict[str, dict[str, str]] = {}
    for picture in pictures(options.data_dir):
        size = save(picture)
        captions[f"{picture.name}.png"] = {"title": picture.title, "caption": picture.caption}
        print(f"{picture.name}.png, {size / 1000:.0f} kB: {picture.caption}", flush=True)
    made = f"Made by `make gallery`, torch {torch.__version__} on {platform.machine()}; the numbers are measured."
    sections = [f"## {c['title']}\n\n![{c['title']}]({name})\n\n{c['caption']}\n" for name, c in captions.items()]
    (FOLDER / "captions.json").write_text(json.dumps(captions, indent=1) + "\n")
    (FOLDER / "README.md").write_text("\n".join(["# Gallery\n", f"{made}\n", *sections]))


if __name__ == "__main__":
    main()
