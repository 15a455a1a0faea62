"""The figures show what the records hold: the artists' data are read back and compared."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text

import vgrad_torch as vg
from tests.tensorboard.test_writer import stats_of
from tests.training.test_keras_parity import PER_EPOCH, RECORDS, keras_batches, network, oracle_of
from vgrad_torch import training
from vgrad_torch.errors import UsageError
from vgrad_torch.records import History, LayerSnapshot, Snapshot
from vgrad_torch.report import figures
from vgrad_torch.report.figures import style
from vgrad_torch.training import evaluation
from vgrad_torch.training.data import load

Array = npt.NDArray[np.float32]
NAMES = ("fc1", "fc2", "fc3")


def entries(scale: float, seed: int, size: int = 400) -> Array:
    return np.random.default_rng(seed).normal(0.3 * scale, scale, size).astype(np.float32)


def layer(number: int, gradient: Array, name: str = "") -> LayerSnapshot:
    """Output gradients of 10**(number - 4); the weight multiplies the gradient by a fifth, the activation by a half."""
    rms = 10.0 ** (min(number, 5) - 4)
    return LayerSnapshot(
        number, name or f"fc{number}", "Linear", "4x3",
        weight=stats_of(entries(0.1 * number, number)), weight_gradient=stats_of(gradient),
        output=stats_of(entries(1.0, 20 + number)), output_gradient=stats_of(np.full(12, rms, "f4")),
        input_gradient=stats_of(np.full(12, rms / 5, "f4")), activation_gain=0.5 if number < 3 else None,
    )  # fmt: skip


def snapshot(step: int = 0, scale: float = 1.0, names: Sequence[str] = NAMES) -> Snapshot:
    gradients = [entries(scale * 1e-3 ** min(i, 5), 100 * step + i) for i in range(len(names), 0, -1)]
    return Snapshot(step, tuple(layer(i, g, name) for i, (g, name) in enumerate(zip(gradients, names, strict=True), 1)))


def with_gradients(*gradients: Array, step: int = 0) -> Snapshot:
    return Snapshot(step, tuple(layer(i, gradient) for i, gradient in enumerate(gradients, 1)))


HISTORY = [snapshot(step, 1 + step / 10) for step in (0, 8, 16, 24)]


def series(quantity: str, statistic: str) -> npt.NDArray[np.float64]:
    history = History()
    for each in HISTORY:
        history.append(each)
    return history.series(quantity, statistic)


def lines(axis: Axes) -> npt.NDArray[np.float64]:
    """[points, lines]."""
    return np.array([line.get_ydata() for line in axis.lines], np.float64).T


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def test_weights_are_drawn_by_mean_and_std_over_epochs() -> None:
    figure = figures.weights({"a": HISTORY}, steps_per_epoch=8)
    mean, std = figure.axes
    np.testing.assert_array_equal(lines(mean), series("weight", "mean"))
    np.testing.assert_array_equal(lines(std), series("weight", "std"))
    assert np.asarray(mean.lines[0].get_xdata()).tolist() == [0, 1, 2, 3]
    assert [text for text in texts(figure) if text.startswith("fc")] == list(NAMES)


def test_gradients_and_loss_are_drawn_and_a_zero_std_is_left_out_of_the_log_axis() -> None:
    dead = with_gradients(entries(1, 1), np.zeros(9, "f4"), entries(1, 2), step=32)
    figure = figures.gradients({"a": [*HISTORY, dead]}, {"a": [(0, 0.7), (24, 0.5)]})
    mean, std, loss = figure.axes
    np.testing.assert_array_equal(lines(mean)[:-1], series("weight_gradient", "mean"))
    np.testing.assert_array_equal(lines(std)[:-1], series("weight_gradient", "std"))
    assert np.isnan(lines(std)[-1]).tolist() == [False, True, False]
    assert std.get_yscale() == "log"
    assert loss.lines[0].get_xydata().tolist() == [[0, 0.7], [24, 0.5]]  # type: ignore[union-attr]


def test_several_runs_have_a_column_each_on_equal_axes() -> None:
    figure = figures.gradients({"a": HISTORY, "b": [snapshot(3, 100.0)]}, {"a": [(0, 0.7)]})
    assert len(figure.axes) == 6
    for left, right in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        assert left.get_ylim() == right.get_ylim()
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == ["a", "b"]


def test_the_depth_profile_is_log10_of_the_rms_with_marks_for_zero_and_nan() -> None:
    odd = with_gradients(np.zeros(9, "f4"), entries(1e-4, 5), np.array([np.nan, 1.0], "f4"))
    figure = figures.depth_profile({"a": HISTORY[0], "odd": odd})
    (axis,) = figure.axes
    whole, partial, zero, nan = axis.lines
    expected = [math.log10(x.weight_gradient.rms) for x in HISTORY[0].layers if x.weight_gradient]
    assert np.asarray(whole.get_ydata()).tolist() == pytest.approx(expected)
    assert np.isnan(np.asarray(partial.get_ydata(), float)).tolist() == [True, False, True]
    low, high = axis.get_ylim()
    assert np.asarray(zero.get_xdata()).tolist() == [0]
    assert low < float(np.asarray(zero.get_ydata())[0]) < min(expected)
    assert np.asarray(nan.get_xdata()).tolist() == [2]
    assert max(*expected) < float(np.asarray(nan.get_ydata())[0]) < high
    assert {"zero", "NaN"} <= set(texts(figure))


def colours(axis: Axes) -> npt.NDArray[np.float64]:
    """[layers, columns, rgb]."""
    (mesh,) = (each for each in axis.collections if isinstance(each, QuadMesh))
    layers = np.asarray(mesh.get_coordinates()).shape[0] - 1
    return np.asarray(mesh.get_facecolor()).reshape(layers, -1, 4)[..., :3]


def test_a_cell_of_the_flow_map_has_viridis_colour_of_log10_rms() -> None:
    runs = {"a": HISTORY, "b": [with_gradients(*[np.full(5, x, "f4") for x in (1e-10, 1e-5, 1.0)])]}
    figure = figures.flow_map(runs)
    viridis = matplotlib.colormaps["viridis"]
    a, b = figure.axes[:2]
    rms = series("weight_gradient", "rms").T
    low = -10  # whole decades that hold all values, those of b among them; the highest is 1
    np.testing.assert_allclose(colours(b)[:, 0], [viridis(x)[:3] for x in (0.0, 0.5, 1.0)], atol=0.005)
    np.testing.assert_allclose(colours(a), viridis((np.log10(rms) - low) / -low)[..., :3], atol=0.005)


def test_zeros_nan_and_what_was_not_measured_have_colours_of_their_own() -> None:
    odd = with_gradients(np.zeros(9, "f4"), np.array([np.inf, 1.0], "f4"), entries(1, 1))
    frozen = replace(odd, layers=(*odd.layers[:2], replace(odd.layers[2], weight_gradient=None)))
    figure = figures.flow_map({"a": [frozen]})
    expected = [to_rgb(c) for c in (style.ZERO, style.NONFINITE, style.MISSING)]
    np.testing.assert_allclose(colours(figure.axes[0])[:, 0], expected, atol=0.003)
    assert {"exactly zero", "NaN or infinite", "not measured"} <= set(texts(figure))
    assert not {"exactly zero", "NaN or infinite", "not measured"} & set(texts(figures.flow_map({"a": HISTORY})))


def test_runs_that_name_their_layers_differently_share_numbers() -> None:
    runs = {"a": HISTORY, "b": [snapshot(0, 1.0, ("stem", "head"))]}
    axis = figures.flow_map(runs).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["1", "2", "3"]
    assert colours(figures.flow_map(runs).axes[1]).shape[0] == 2
    last = {name: history[0] for name, history in runs.items()}
    axis = figures.depth_profile(last).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "3"]
    assert len(figures.waterfalls(last).axes) == len(figures.ridges(last).axes) == 2


def test_a_long_run_is_thinned_and_its_one_nan_stays() -> None:
    usual = with_gradients(*[np.full(2, 1e-3, "f4")] * 3)
    steps = [replace(usual, step=step) for step in range(2000)]
    steps[1234] = with_gradients(np.array([1.0, np.nan], "f4"), *[np.full(2, 1e-3, "f4")] * 2, step=1234)
    shown = colours(figures.flow_map({"a": steps}).axes[0])
    assert shown.shape[:2] == (3, 480)
    red: npt.NDArray[np.bool_] = np.abs(shown - to_rgb(style.NONFINITE)).max(axis=2) < 0.003
    assert red.sum() == 1
    assert red[0, round(1234 / 2000 * 480) - 2 : round(1234 / 2000 * 480) + 3].any()


def bars(axis: Axes) -> list[tuple[float, float]]:
    return [(p.get_x(), p.get_width()) for p in axis.patches if isinstance(p, Rectangle)]


def test_the_waterfall_goes_from_the_loss_to_layer_1_factor_by_factor() -> None:
    figure = figures.waterfalls({"a": HISTORY[0], "b": HISTORY[1]})
    axis = figure.axes[0]
    gains = [math.log10(x) for x in (0.2, 0.5, 0.2, 0.5)]  # weight of 3, activation of 2, weight of 2, activation of 1
    assert [width for _, width in bars(axis)] == pytest.approx(gains, rel=1e-6)
    assert [left for left, _ in bars(axis)] == pytest.approx([0, *np.cumsum(gains)[:-1]])
    words = [label.get_text() for label in axis.get_yticklabels()]
    assert words == ["fc3 weight", "fc2 activation", "fc2 weight", "fc1 activation"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert axis.get_xlabel() == ""
    branch = replace(HISTORY[0].layers[0], output_gradient=stats_of(np.full(12, 0.05, "f4")))
    branched = figures.waterfalls({"a": Snapshot(0, (branch, *HISTORY[0].layers[1:]))})
    assert branched.axes[0].get_xlabel() == "measured: 0.5"
    with pytest.raises(UsageError, match="two layers"):
        figures.waterfalls({"a": Snapshot(0, HISTORY[0].layers[:1])})


def test_a_ridge_is_the_share_of_the_entries_by_magnitude() -> None:
    gradient = entries(1e-3, 7)
    zeros = np.concatenate([entries(1e-6, 8, 300), np.zeros(100, "f4")])
    figure = figures.ridges({"a": with_gradients(gradient, zeros, entries(1.0, 9))}, exponents=range(-40, 10, 2))
    ridges = [each for each in figure.axes[0].collections if isinstance(each, PolyCollection)]
    assert len(ridges) == 3
    counts, _ = np.histogram(np.log2(np.abs(gradient.astype(np.float64))), bins=range(-40, 10, 2))
    outline = np.asarray(ridges[0].get_paths()[0].vertices)
    heights = {round(x, 6): -y for x, y in outline if y < 0}
    middles = (np.arange(-40, 8, 2) + 1) * math.log10(2)
    expected = {round(float(x), 6): n for x, n in zip(middles, counts, strict=True) if n}
    assert heights.keys() == expected.keys()
    scale = {x: heights[x] / expected[x] for x in expected}
    assert max(scale.values()) == pytest.approx(min(scale.values()))
    assert "25% zeros" in texts(figure)
    with pytest.raises(UsageError, match="no histogram"):
        figures.ridges({"a": Snapshot(0, (replace(HISTORY[0].layers[0], weight_gradient=None),))})


def test_densities_of_activations_are_those_of_tanh_of_the_outputs() -> None:
    figure = figures.values({"a": HISTORY[0]}, "output", transform=np.tanh)
    (first, *_) = (patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch))
    density, edges, _ = first.get_data()
    assert (density * np.diff(edges)).sum() == pytest.approx(1)
    activations = np.tanh(entries(1.0, 21).astype(np.float64))
    below = np.interp(0.25, edges, np.concatenate([[0], np.cumsum(density * np.diff(edges))]))
    assert below == pytest.approx((activations < 0.25).mean(), abs=0.03)
    mean = (density * np.diff(edges) * (edges[1:] + edges[:-1]) / 2).sum()
    assert mean == pytest.approx(activations.mean(), abs=0.03)


def test_losses_are_drawn_as_they_are_on_a_log_axis_where_they_span_decades() -> None:
    figure = figures.losses({"a": [(0, 2.0), (10, 0.01)], "b": [(0, 2.0)]})
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[0, 2.0], [10, 0.01]]  # type: ignore[union-attr]
    assert figure.axes[0].get_yscale() == "log"
    assert figures.losses({"a": [(0, 0.7), (10, 0.6)]}).axes[0].get_yscale() == "linear"


def test_the_data_are_drawn_point_by_point() -> None:
    x, y = np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 2
    points = [each for each in figures.circles(x, y).axes[0].collections if isinstance(each, PathCollection)]
    np.testing.assert_array_equal(points[0].get_offsets(), x[y == 0])
    np.testing.assert_array_equal(points[1].get_offsets(), x[y == 1])


def every(runs: Mapping[str, Sequence[Snapshot]]) -> Iterator[Figure]:
    """All figures of some runs."""
    last = {name: history[-1] for name, history in runs.items()}
    yield figures.flow_map(runs)
    yield figures.depth_profile(last)
    yield figures.waterfalls(last)
    yield figures.ridges(last)
    yield figures.values(last)
    yield figures.weights(runs)
    yield figures.gradients(runs, {name: [(0.0, 1.0)] for name in runs}, loss="$loss_")
    yield figures.losses({name: [(0.0, 1.0)] for name in runs})


STRANGE = ("_hidden", "$x_{", "<img src=x onerror=alert(1)>", "\u5c42\x00\n", "a" * 300, "\\frac", "%s {0}", "")


def test_names_of_any_kind_are_drawn_as_they_are_and_give_no_warning() -> None:
    histories = {f"{name}{i}": [snapshot(0, 1.0, STRANGE)] for i, name in enumerate(STRANGE)}
    for figure in every(dict(list(histories.items())[1:2])):
        assert style.png(figure, 40).startswith(b"\x89PNG")
    figure = figures.depth_profile({"a": HISTORY[0], **{name: each[0] for name, each in histories.items()}})
    assert {"_hidden0", "$x_{1"} <= set(texts(figure))


def test_two_hundred_layers_can_be_drawn() -> None:
    deep = {"deep": [snapshot(0, 1.0, [f"encoder.layers.{i}.mlp" for i in range(200)])]}
    for figure in every(deep):
        assert max(figure.get_size_inches()) <= 8


def test_pictures_are_the_same_bytes_again_and_leave_the_users_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"text.usetex": True, "axes.grid": True, "font.size": 30.0}):
        strange = style.svg(figures.depth_profile({"a": HISTORY[0]}))
    assert style.svg(figures.depth_profile({"a": HISTORY[0]})) == strange
    assert dict(matplotlib.rcParams) == before


def test_figures_need_neither_torch_nor_pyplot() -> None:
    code = (
        "import sys, vgrad_torch.report.figures; print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def keras() -> tuple[dict[str, Any], vg.Monitor, list[float]]:
    """The package's training on the weights and batches of Keras' sigmoid network, sampled as the document does."""
    oracle = oracle_of("manual_sigmoid")
    model, optimizer = network(oracle, "sigmoid")
    data, losses = load("circles"), list[float]()
    bce = evaluation.loss_function(data.classes)

    def loss_fn(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = bce(output, y)
        if loss.requires_grad:
            losses.append(float(loss.detach()))
        return loss

    with vg.watch(model, optimizer, every=lambda step: step in RECORDS, histograms=False) as monitor:
        training.train(
            model, data, optimizer, monitor, loss_fn=loss_fn, epochs=100,
            training_batches=keras_batches(oracle["order"], data), on_epoch=lambda _: None,
        )  # fmt: skip
    return oracle, monitor, losses


def test_the_documents_figures_show_what_keras_measured(keras: tuple[dict[str, Any], vg.Monitor, list[float]]) -> None:
    oracle, monitor, losses = keras
    recorded = [(float(step), losses[step]) for step in RECORDS]
    weights = figures.weights({"sigmoid": monitor.history}, steps_per_epoch=PER_EPOCH)
    gradients = figures.gradients({"sigmoid": monitor.history}, {"sigmoid": recorded}, steps_per_epoch=PER_EPOCH)
    for axis, name in zip(weights.axes, ("w_mean", "w_std"), strict=True):  # Keras' last is of one step later
        np.testing.assert_allclose(lines(axis)[:100], oracle[name][:100], rtol=1e-5, atol=2e-6)
    mean, std, loss = gradients.axes
    np.testing.assert_allclose(lines(mean), oracle["grad_mean"], atol=1e-6)
    np.testing.assert_allclose(lines(std), oracle["grad_std"], rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(lines(loss)[:, 0], oracle["loss_step"][RECORDS], atol=1e-6)
    assert np.asarray(std.lines[0].get_xdata()).tolist()[:3] == [0, 1, 2]
