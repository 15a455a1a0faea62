"""Two short real trainings: what their event files hold is what was seen, and every tab of TensorBoard draws it.

The pictures of the tabs are kept in the folder VGRAD_SCREENSHOTS, if that is set.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
import pytest
from selenium import webdriver
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tests.support import browser
from vgrad_torch import training
from vgrad_torch.records import LayerSnapshot
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.histograms import LOG_EXPONENTS
from vgrad_torch.training import recipes

Runs = Mapping[str, training.Result]
Floats = npt.NDArray[np.float64]

ACTIVATIONS = ("sigmoid", "relu")
LAYERS = ["1-fc1-64x512", "2-fc2-512x256", "3-fc3-256x128", "4-fc4-128x64", "5-fc5-64x32", "6-fc6-32x16", "7-fc7-16x10"]
EPOCH_TAGS = ["accuracy/train", "accuracy/validation", "loss/train", "loss/validation"]
SCALAR_TAGS = [tags.COST, *EPOCH_TAGS, *(f"{group}/{layer}" for group in tags.LAYER_SCALARS for layer in LAYERS)]
HISTOGRAMS = (*tags.LAYER_HISTOGRAMS, tags.GRADIENT_LOG10)
PROFILE = "depth_profile/step_000000"
SERVERS = {"rust": [], "python": ["--load_fast=false"]}  # the two programs that can read the files for TensorBoard
PAGE_OF_CARDS = 12  # that many of a group are drawn until asked for more


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    return {act: training.run(recipes.recipe(act=act, epochs=7, runs=str(folder))) for act in ACTIVATIONS}


# --- the event file ------------------------------------------------------------------------------------------------


def read(result: training.Result) -> Any:
    everything = {"scalars": 0, "tensors": 0, "histograms": 0}
    return EventAccumulator(str(result.folder), size_guidance=everything).Reload()


def profiles(log: Any) -> list[str]:
    return [tag for tag in log.Tags()["tensors"] if tag.startswith("depth_profile/")]


def number(layer: LayerSnapshot, path: str) -> float:
    quantity, _, statistic = path.partition(".")
    value = getattr(layer, quantity)
    if statistic and value is not None:
        value = getattr(value, statistic)
    return math.nan if value is None else float(value)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_scalars_of_the_event_file_are_the_history(runs: Runs, act: str) -> None:
    result = runs[act]
    log = read(result)
    assert sorted(log.Tags()["scalars"]) == sorted(SCALAR_TAGS)
    snapshots = list(result.monitor.history)
    assert len(snapshots) == 7
    assert [layer.tag for layer in snapshots[0].layers] == LAYERS
    for group, path in tags.LAYER_SCALARS.items():
        for place, tag in enumerate(LAYERS):
            exact = [number(snapshot.layers[place], path) for snapshot in snapshots]
            exact = [math.log10(value) for value in exact] if "log10" in group else exact
            points = log.Scalars(f"{group}/{tag}")
            assert [point.step for point in points] == result.monitor.history.steps
            assert [point.value for point in points] == np.array(exact, "f4").tolist()


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_epochs_of_the_event_file_are_the_results(runs: Runs, act: str) -> None:
    log = read(runs[act])
    epochs = runs[act].epochs
    assert len(epochs) == 8
    for tag in EPOCH_TAGS:
        quantity, part = tag.split("/")
        exact = [(epoch.step, np.float32(operator.attrgetter(f"{part}.{quantity}")(epoch))) for epoch in epochs]
        assert [(point.step, point.value) for point in log.Scalars(tag)] == exact


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradient_flow_of_the_event_file_is_the_history(runs: Runs, act: str) -> None:
    log, history = read(runs[act]), runs[act].monitor.history
    axes = tags.decode_axes(log.SummaryMetadata("gradient_flow").plugin_data.content)
    assert axes.layers == LAYERS
    assert set(axes.statistics) == set(tags.COLUMNS)
    points = log.Tensors("gradient_flow")
    assert [(point.step, point.wall_time) for point in points] == [(x.step, x.wall_time) for x in history]
    for point, snapshot in zip(points, history, strict=True):
        exact = [[number(layer, tags.COLUMNS[column]) for column in axes.statistics] for layer in snapshot.layers]
        np.testing.assert_array_equal(make_ndarray(point.tensor_proto), np.array(exact, "f4"))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_histograms_of_the_event_file_are_the_history(runs: Runs, act: str) -> None:
    log, history = read(runs[act]), runs[act].monitor.history
    for place, tag in enumerate(LAYERS):
        for group, quantity in tags.LAYER_HISTOGRAMS.items():
            points = log.Tensors(f"{group}/{tag}")
            assert [point.step for point in points] == history.steps
            for point, snapshot in zip(points, history, strict=True):
                edges, counts = getattr(snapshot.layers[place], quantity).histogram.values()
                assert_histogram(point, edges, counts)
        points = log.Tensors(f"gradient_log10/{tag}")
        assert [point.step for point in points] == history.steps
        for point, snapshot in zip(points, history, strict=True):
            assert_histogram(point, *log10_of(snapshot.layers[place]))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_depth_profiles_of_the_event_file_are_the_history(runs: Runs, act: str) -> None:
    log, history = read(runs[act]), runs[act].monitor.history
    snapshots = {tags.depth_profile_tag(snapshot.step): snapshot for snapshot in history}
    found = profiles(log)
    assert len(found) > 2
    assert found[0] == PROFILE
    for tag in found:
        points = log.Tensors(tag)
        assert [point.step for point in points] == [1, 2, 3, 4, 5, 6, 7]
        for point, layer in zip(points, snapshots[tag].layers, strict=True):
            edges, counts = log10_of(layer)
            assert_histogram(point, edges, counts / counts.sum())


def log10_of(layer: LayerSnapshot) -> tuple[Floats, npt.NDArray[np.int64]]:
    assert layer.weight_gradient is not None
    assert layer.weight_gradient.histogram is not None
    return layer.weight_gradient.histogram.log10(LOG_EXPONENTS)


def assert_histogram(point: Any, edges: Floats, counts: npt.NDArray[Any]) -> None:
    assert counts.sum() > 0
    rows = make_ndarray(point.tensor_proto)
    np.testing.assert_allclose(
        rows, np.stack([edges[:-1], edges[1:], counts], axis=1), rtol=2e-9, atol=1e-9 * counts.sum()
    )


# --- what TensorBoard draws ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module", params=SERVERS)
def page(
    request: pytest.FixtureRequest, chrome: webdriver.Chrome, runs: Runs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[browser.Page]:
    folder = tmp_path_factory.mktemp("board")
    pictures = Path(os.environ.get("VGRAD_SCREENSHOTS") or folder) / request.param
    logdir = runs["relu"].folder.parent
    with browser.tensorboard(logdir, folder / "tensorboard.log", *SERVERS[request.param]) as address:
        for result in runs.values():
            wait_until_loaded(address, result)
        yield browser.Page(chrome, address, pictures)


def wait_until_loaded(address: str, result: training.Result) -> None:
    """The last epoch's scalars are near the end of the file."""
    run, last = result.folder.name, "loss/train"
    listed = browser.eventually(
        lambda: browser.fetch(f"{address}data/plugin/scalars/tags").get(run, {}), lambda listed: last in listed
    )
    assert last in listed
    query = urlencode({"run": run, "tag": last})
    count = len(result.epochs)
    points = browser.eventually(
        lambda: browser.fetch(f"{address}data/plugin/scalars/scalars?{query}"), lambda points: len(points) == count
    )
    assert len(points) == count


def run_names(runs: Runs) -> list[str]:
    return sorted(result.folder.name for result in runs.values())


def groups_of(names: list[str], cards_per_tag: int = 1) -> list[str]:
    """What the headings say: `gradient_mean 7`, of a single card `watch`."""
    groups = [name.partition("/")[0] for name in names]
    counts = {group: groups.count(group) * cards_per_tag for group in groups}
    return sorted(f"{group} {count}" if count > 1 else group for group, count in counts.items())


OPEN_GROUPS = """
for (const group of all('tf-category-paginated-view')) {
  const heading = all('button.heading', group)[0], cards = all('iron-collapse', group)[0];
  if (heading && cards && !cards.opened) heading.click();
}
return texts('button.heading');
"""

CARDS = """
return all('%s').map(card => ({
  tag: (texts('.heading-label', card).find(label => label.startsWith('tag:')) || texts('.heading-label.name', card)[0])
    .replace('tag: ', ''),
  run: texts('.heading-right', card)[0] || null,
  shapes: shapes('%s', card)
}));
"""


def is_drawn(shape: str | None) -> bool:
    """A path with some extent, all of it numbers."""
    return bool(shape) and "L" in str(shape) and "NaN" not in str(shape)


def cards_when_drawn(page: browser.Page, card: str, shape: str, count: int, shapes: int) -> Any:
    """All cards, once there are `count` of them with at least `shapes` drawn shapes each."""

    def complete(cards: Any) -> bool:
        return len(cards) == count and all(sum(map(is_drawn, card["shapes"])) >= shapes for card in cards)

    cards = page.wait(CARDS % (card, shape), complete)
    assert len(cards) == count
    for entry in cards:
        assert sum(map(is_drawn, entry["shapes"])) >= shapes, entry
    return cards


def histogram_tags(runs: Runs) -> list[str]:
    """Both runs took theirs at the same steps."""
    first, second = (profiles(read(result)) for result in runs.values())
    assert first == second
    return [*first, *(f"{group}/{layer}" for group in sorted(HISTOGRAMS) for layer in LAYERS)]


def histogram_cards(runs: Runs) -> list[tuple[str, str]]:
    """One card for each tag and run; of a group of many the first page."""
    cards = [(tag, run) for tag in histogram_tags(runs) for run in run_names(runs)]
    groups = itertools.groupby(cards, lambda card: card[0].partition("/")[0])
    return [card for _, group in groups for card in itertools.islice(group, PAGE_OF_CARDS)]


@pytest.mark.browser
def test_scalars_tab_draws_each_tag_for_both_runs(page: browser.Page) -> None:
    page.open("scalars")
    lines = ".line-plot:not(.ghost) path.line"
    cards_when_drawn(page, "tf-scalar-card", lines, 2 + len(LAYERS), shapes=2)
    page.picture("scalars")
    assert page.wait(OPEN_GROUPS) == groups_of(SCALAR_TAGS)
    cards = cards_when_drawn(page, "tf-scalar-card", lines, len(SCALAR_TAGS), shapes=2)
    assert [card["tag"] for card in cards] == sorted(SCALAR_TAGS)


@pytest.mark.browser
def test_time_series_tab_draws_scalars_and_depth_profiles(page: browser.Page, runs: Runs) -> None:
    page.open("timeseries")
    expected = sorted([*groups_of(histogram_tags(runs), 2), *groups_of(SCALAR_TAGS)])
    groups = page.wait(
        "return all('.group-title-wrapper').map(g => `${texts('.group-title', g)} ${texts('.group-card-count', g)}`)",
        lambda groups: len(groups) == len(expected),
    )
    assert groups == [f"{group} cards" if " " in group else f"{group} " for group in expected]
    scalars = page.wait(
        "return all('scalar-card')"
        ".map(card => [all('tb-truncated-path', card)[0].title, texts('tb-data-table', card)])",
        lambda cards: len(cards) == 2 and all(run in str(card) for card in cards for run in run_names(runs)),
    )
    assert [title for title, _ in scalars] == ["accuracy/train", "accuracy/validation"]
    for title, (table,) in scalars:
        part = title.partition("/")[2]
        for result in runs.values():
            accuracy = getattr(result.epochs[-1], part).accuracy
            assert re.search(rf"{result.folder.name} [\d.]+ {accuracy:.4g} {result.epochs[-1].step} ", table)
    ridges = page.wait(
        "return all('histogram-card').slice(0, 2).map(card => [all('tb-truncated-path', card)[0].title,"
        " text(all('card-run-name-component', card)[0]), shapes('tb-histogram path:not(.domain)', card)])",
        lambda cards: len(cards) == 2 and all(len(shapes) == 7 for _, _, shapes in cards),
    )
    assert sorted((tag, run) for tag, run, _ in ridges) == [(PROFILE, run) for run in run_names(runs)]
    for _, _, shapes in ridges:
        assert [is_drawn(shape) for shape in shapes] == [True] * 7
    assert_lines_have_the_runs_colours(page)


def assert_lines_have_the_runs_colours(page: browser.Page) -> None:
    """Here lines are no shapes but pixels of a canvas."""
    colours = page.ask("return all('.run-color-swatch').map(e => getComputedStyle(e).backgroundColor)")
    assert len(set(colours)) == 2
    boxes = page.ask(
        "return all('scalar-card canvas').map(e => e.getBoundingClientRect()).map(b => [b.x, b.y, b.width, b.height])"
    )
    assert len(boxes) == 2

    def coloured_pixels() -> list[int]:
        pixels = page.picture("timeseries")
        counts = []
        for x, y, width, height in np.array(boxes, int):
            chart = pixels[y : y + height, x : x + width]
            for colour in colours:
                rgb = np.array([int(part) for part in re.findall(r"\d+", colour)][:3]) / 255
                counts.append(int((np.abs(chart - rgb).max(axis=2) < 0.1).sum()))
        return counts

    counts = browser.eventually(coloured_pixels, lambda counts: min(counts) > 50)
    assert min(counts) > 50, counts


@pytest.mark.browser
@pytest.mark.parametrize(
    ("tab", "card", "drawn", "shapes"),
    [
        ("histograms", "tf-histogram-loader", "path.outline", 7),
        ("distributions", "tf-distribution-loader", "path.area", 8),
    ],
)
def test_histograms_are_drawn_of_each_tag_and_run(
    page: browser.Page, runs: Runs, tab: str, card: str, drawn: str, shapes: int
) -> None:
    page.open(tab)
    expected = histogram_cards(runs)
    in_two_groups = sum(tag.startswith(("depth_profile/", "gradient/")) for tag, _ in expected)
    cards_when_drawn(page, card, drawn, in_two_groups, shapes=shapes)
    page.picture(tab)
    assert page.wait(OPEN_GROUPS) == groups_of(histogram_tags(runs), 2)
    cards = cards_when_drawn(page, card, drawn, len(expected), shapes=shapes)
    assert [(each["tag"], each["run"]) for each in cards] == expected


@pytest.mark.browser
def test_hparams_tab_has_a_row_for_each_run(page: browser.Page, runs: Runs) -> None:
    page.open("hparams")
    look = "return all('tf-hparams-table-view').flatMap(table => texts('vaadin-grid-cell-content', table))"
    wanted = run_names(runs)
    cells = [cell for cell in page.wait(look, lambda cells: all(run in cells for run in wanted)) if cell]
    page.picture("hparams")
    hyperparameters = ["act", "data", "init", "lr", "optimizer"]
    metrics = ["loss/train", "loss/validation", "accuracy/train", "accuracy/validation"]
    metrics += ["gradient_log10_rms/1-fc1-64x512"]
    assert cells[:12] == ["Trial ID", "Show Metrics", *hyperparameters, *metrics]
    for act, result in runs.items():
        start = cells.index(result.folder.name)
        config = result.config
        assert cells[start + 1 : start + 6] == [act, "digits", config.init, f"{config.lr:.6f}", config.optimizer]
        last = result.epochs[-1]
        gradient = result.monitor.history[-1].layers[0].weight_gradient
        assert gradient is not None
        numbers = [last.train.loss, last.validation.loss, last.train.accuracy, last.validation.accuracy]
        numbers += [math.log10(gradient.rms)]
        assert [float(cell) for cell in cells[start + 6 : start + 11]] == pytest.approx(numbers, rel=1e-4)


@pytest.mark.browser
def test_custom_scalars_tab_draws_all_layers_in_one_chart(page: browser.Page) -> None:
    page.open("custom_scalars")
    card, lines = "tf-custom-scalar-multi-line-chart-card", ".line-plot:not(.ghost) path.line"
    expected = {"loss": 4, "accuracy": 4, **dict.fromkeys(tags.LAYER_SCALARS, 2 * len(LAYERS))}

    def drawn(cards: Any) -> dict[str, int]:
        return {card["tag"]: sum(map(is_drawn, card["shapes"])) for card in cards}

    cards = page.wait(CARDS % (card, lines), lambda cards: drawn(cards) == expected)
    page.picture("custom_scalars")
    assert drawn(cards) == expected
    assert [entry["tag"] for entry in cards] == list(expected)
    assert page.ask("return texts('button.heading')") == ["training 2", "layers 7"]


# --- the depth profile: the layers as one ridge --------------------------------------------------------------------

RIDGE = """
return all('tf-histogram-loader').filter(card => texts('.heading-label.name', card)[0] === '%s').map(card => ({
  run: texts('.heading-right', card)[0],
  ticks: all('.axis.x .tick', card).map(tick => [text(tick), tick.getAttribute('transform')]),
  numbers: texts('.axis.y:not(.slice) .tick', card),
  layers: all('g.histogram', card).map(layer => [layer, all('path.outline', layer)[0]]).map(([layer, outline]) =>
    [layer.getAttribute('transform'), outline.getAttribute('transform'), outline.getAttribute('d')]),
}));
"""


def is_ridge(ridge: Any) -> bool:
    """All layers stand where they belong; a chart is built in several steps."""
    parts = [part for tick in ridge["ticks"] for part in tick] + [part for layer in ridge["layers"] for part in layer]
    return len(ridge["layers"]) == len(LAYERS) and all(parts) and is_drawn(ridge["layers"][-1][2])


def floats(text: str) -> list[float]:
    return [float(part) for part in re.findall(r"-?\d[\d.]*(?:e-?\d+)?", text.replace("\N{MINUS SIGN}", "-"))]


def centers(ridge: Any) -> list[float]:
    """Where each layer's hill stands on the axis as it is drawn, from the back to the front."""
    labels, places = zip(*((floats(label)[0], floats(move)[0]) for label, move in ridge["ticks"]), strict=True)
    slope, origin = np.polyfit(places, labels, 1)
    found = []
    for _, scaling, outline in sorted(ridge["layers"], key=lambda layer: floats(layer[0])[1]):
        x, y = np.array(floats(outline)).reshape(-1, 2).T
        height = y.max() - y
        assert height.max() > 10
        found.append(float(origin + slope * floats(scaling)[0] * np.average(x, weights=height)))
    return found


def mean_exponents(result: training.Result) -> list[float]:
    """Mean of log10 |gradient| of each layer before training, from the exact buckets that were recorded."""
    means = []
    for layer in result.monitor.history[0].layers:
        assert layer.weight_gradient is not None
        assert layer.weight_gradient.histogram is not None
        edges, counts = layer.weight_gradient.histogram.magnitudes()
        occupied = np.flatnonzero(counts[1:]) + 1
        middles = (edges[occupied] + edges[occupied + 1]) / 2
        means.append(float(np.average(np.log10(middles), weights=counts[occupied])))
    return means


@pytest.mark.browser
def test_depth_profile_is_drawn_as_a_ridge_that_marches_left(page: browser.Page, runs: Runs) -> None:
    page.open("histograms")
    ridges = page.wait(RIDGE % PROFILE, lambda ridges: len(ridges) == 2 and all(map(is_ridge, ridges)))
    assert sorted(ridge["run"] for ridge in ridges) == run_names(runs)
    assert [ridge["numbers"] for ridge in ridges] == [["1", "2", "3", "4", "5", "6", "7"]] * 2
    by_run = {ridge["run"]: centers(ridge) for ridge in ridges}
    drawn = {act: by_run[result.folder.name] for act, result in runs.items()}
    for act, result in runs.items():
        assert drawn[act] == pytest.approx(mean_exponents(result), abs=0.35)
    assert drawn["sigmoid"] == sorted(drawn["sigmoid"])
    assert drawn["sigmoid"][-1] - drawn["sigmoid"][0] >= 4
    assert max(drawn["relu"]) - min(drawn["relu"]) < 2
