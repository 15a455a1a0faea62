"""The Gradient Flow tab as its user sees it: a real TensorBoard over runs of known numbers, in headless Chromium."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests import ROOT
from tests.support import browser, flows, recurrent
from tests.support.flows import LAYERS, typical, write
from vgrad_torch.records import LayerSnapshot, Snapshot, Stats, TimeProfile, with_activation_gains
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.time_profiles import LAYOUT, encode_layout, encode_profile
from vgrad_torch.tensorboard.writer import Writer
from vgrad_torch.verdict.waterfall import waterfall

pytestmark = pytest.mark.browser

SERVERS = {"rust": [], "python": ["--load_fast=false"]}
SCALES = {0: 1.0, 10: 3.0, 20: 10.0}  # the gradients of run `a` at its steps; those of run `b` are half of that
THEORY = np.array([[1e-7], [1e-6], [1e-5]], "f4")
TIMES = "\N{MULTIPLICATION SIGN}"
EVIL_RUN = "<img src=x onerror=alert(1)>"
EVIL_LAYER = '"><script>document.title="pwned"</script>'


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


class Tab:
    """The Gradient Flow tab of one TensorBoard."""

    def __init__(self, chrome: webdriver.Chrome, address: str, logdir: Path, pictures: Path) -> None:
        self.chrome, self.address, self.logdir = chrome, address, logdir
        self.page = browser.Page(chrome, address, pictures)
        self.ask, self.wait = self.page.ask, self.page.wait

    def open(self, *, dark: bool = False) -> None:
        """Load the page again, and enter its frame when everything is drawn."""
        self.chrome.switch_to.default_content()
        self.chrome.get("about:blank")
        self.chrome.get(f"{self.address}?darkMode={str(dark).lower()}#gradient_flow")
        self.enter()

    def enter(self) -> None:
        self.chrome.switch_to.frame(self.wait("return all('iframe').find(f => f.src.includes('gradient_flow'))"))
        self.wait("return all('main').some(main => main.ariaBusy === 'false')")

    def find(self, selector: str) -> Any:
        return self.chrome.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        """Click an element; again if the page was drawn anew in between."""

        def clicked() -> bool:
            try:
                self.find(selector).click()
            except StaleElementReferenceException:
                return False
            return True

        assert browser.eventually(clicked, bool)

    def maps(self) -> list[str]:
        """Runs whose map is drawn."""
        found: list[str] = self.ask(
            "return all('#maps .card').filter(c => all('canvas', c).length).map(c => text(all('h3', c)[0]))"
        )
        return found

    def numbers(self) -> dict[str, list[str]]:
        """The table of numbers: run -> the text of each layer."""
        rows = self.ask("return all('#numbers tr').map(row => texts('th, td', row))")
        return {run: list(column) for run, *column in zip(*rows, strict=True)} if rows else {}

    def numbers_when(self, run: str, values: list[str]) -> list[str]:
        found: list[str] = browser.eventually(lambda: self.numbers().get(run, []), lambda found: found == values)
        return found

    def open_numbers(self) -> None:
        self.wait("return all('#profile .mark').length")
        self.ask("all('#numbers')[0].open = true")

    def step(self) -> str:
        return str(self.ask("return texts('#steps output')[0]"))

    def sentences_of_all(self) -> dict[str, str]:
        """The same with all runs chosen."""
        self.ask("all('#runs input').filter(box => !box.checked).forEach(box => box.click())")
        return self.sentences()

    def sentences(self) -> dict[str, str]:
        """The waterfall's sentences for each run."""
        cards = self.wait("return all('#waterfalls .card').map(c => [text(all('h3', c)[0]), texts('.words', c)[0]])")
        return dict(cards)


@pytest.fixture(scope="module", params=SERVERS)
def tab(
    request: pytest.FixtureRequest, chrome: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tab]:
    folder = tmp_path_factory.mktemp("board")
    logdir = folder / "runs"
    write(logdir / "a", [(step, typical(scale)) for step, scale in SCALES.items()])
    write(logdir / "b", [(step, typical(scale / 2)) for step, scale in SCALES.items()])
    write(logdir / "a", [(0, THEORY)], tag=tags.THEORY, statistics=["weight_gradient_rms"])
    verdict = "| layer |\n| --- |\n| fc1 |\n\n**vanishing**: <b>fc1</b> gets none. Take relu."
    flows.write_text(logdir / "a", tags.VERDICT, verdict)
    plain = Writer(logdir / "plain")
    plain.scalars({"loss": 1.0}, 0)
    plain.close()
    pictures = Path(os.environ.get("VGRAD_SCREENSHOTS") or folder) / request.param
    with browser.tensorboard(logdir, folder / "tensorboard.log", *SERVERS[request.param]) as address:
        wait_until_loaded(address, 2)
        yield Tab(chrome, address, logdir, pictures)


def wait_until_loaded(address: str, series: int) -> None:
    def stamps() -> list[str]:
        found = browser.fetch(f"{address}data/plugin/gradient_flow/runs")["series"]
        return [entry["stamp"] for entry in found]

    last: list[str] = []
    for _ in range(150):
        seen = stamps()
        if len(seen) == series and seen == last:
            return
        last = seen
        time.sleep(0.2)
    pytest.fail(f"TensorBoard did not read the runs: {last}")


# --- what is drawn -------------------------------------------------------------------------------------------------


def test_the_tab_is_there_by_itself_and_shows_both_runs(tab: Tab) -> None:
    tab.chrome.get(tab.address)
    assert tab.wait(
        "return texts('.mat-mdc-tab-header, .mat-tab-list, mat-tab-group').join(' ')",
        lambda text: "gradient flow" in text.lower(),
    )
    tab.open()
    assert tab.wait("return all('#maps canvas').length", lambda count: count == 2) == 2
    assert tab.maps() == ["a", "b"]
    assert tab.wait("return texts('#runs label')") == ["a", "b"]
    assert tab.ask("return all('#maps .card').map(c => texts('.name', c))") == [["fc1fc1", "fc2fc2", "fc3fc3"]] * 2
    tab.page.picture("gradient_flow")


def test_the_verdict_is_shown_as_text_and_unfolds(tab: Tab) -> None:
    tab.open()
    assert tab.wait("return texts('#maps .note')") == ["vanishing: <b>fc1</b> gets none. Take relu."]
    assert tab.ask("return texts('#maps .note strong')") == ["vanishing"]
    summary = tab.find("#maps .note summary")
    assert summary.text == "vanishing: <b>fc1</b> gets none."
    height = tab.find("#maps .note").size["height"]
    summary.click()
    assert tab.find("#maps .note").size["height"] > height


def test_cells_have_the_colours_of_one_scale_for_all_runs(tab: Tab) -> None:
    tab.open()
    tab.wait("return all('#maps canvas').length", lambda count: count == 2)
    ends = tab.ask("return texts('#legend .ramp span')")
    assert ends == ["1e-8", "1e-6", "1e-4", "1e-2"]
    pixels = tab.ask("""
        return all('#maps canvas').map(canvas => [0, 1, 2].map(row => [0, 1, 2].map(column => [...canvas
            .getContext('2d').getImageData((column + .5) * canvas.width / 3, (row + .5) * canvas.height / 3, 1, 1)
            .data])));""")
    viridis = matplotlib.colormaps["viridis"]
    for share, cells in zip((1, 0.5), pixels, strict=True):
        for layer, gradient in enumerate(flows.GRADIENTS["weight_gradient_rms"]):
            for column, scale in enumerate(SCALES.values()):
                place = (math.log10(gradient * scale * share) + 8) / 6  # from 1e-8 to 1e-2
                exact = 255 * np.array(viridis(place))
                np.testing.assert_allclose(cells[layer][column], exact, atol=3)


def test_hovering_a_cell_shows_its_value(tab: Tab) -> None:
    tab.open()
    tab.wait("return all('#maps .area').length", lambda count: count == 2)
    area = tab.find("#maps .area")
    ActionChains(tab.chrome).move_to_element_with_offset(area, 0, int(area.size["height"] / 3)).perform()
    assert tab.wait("return all('#tip').map(tip => tip.textContent)") == ["fc3\n3-fc3-4x2\nstep 10: 3e-3"]


def test_the_slider_moves_the_profile(tab: Tab) -> None:
    tab.open()
    tab.open_numbers()
    assert tab.step() == "20 of 20"
    assert tab.numbers_when("a", ["1e-6", "1e-4", "0.01"])
    slider = tab.find("#step")
    slider.send_keys(Keys.ARROW_LEFT)
    assert tab.step() == "10 of 20"
    assert tab.numbers_when("a", ["3e-7", "3e-5", "3e-3"]) == ["3e-7", "3e-5", "3e-3"]
    assert tab.numbers()["b"] == ["1.5e-7", "1.5e-5", "1.5e-3"]
    slider.send_keys(Keys.HOME)
    assert tab.numbers_when("b", ["5e-8", "5e-6", "5e-4"]) == ["5e-8", "5e-6", "5e-4"]
    assert slider.get_attribute("aria-valuetext") == "step 0"


def profile_heights(tab: Tab) -> list[float]:
    return [
        float(re.findall(r",([\d.]+)\)", move)[0])
        for move in tab.ask("return all('#profile .mark').map(m => m.getAttribute('transform'))")
    ]


def test_a_click_on_the_map_moves_the_profile(tab: Tab) -> None:
    tab.open()
    tab.open_numbers()
    area = tab.find("#maps .area")
    before = profile_heights(tab)
    ActionChains(tab.chrome).move_to_element_with_offset(area, -int(area.size["width"] / 3), 0).click().perform()
    assert tab.step() == "0 of 20"
    assert tab.numbers_when("a", ["1e-7", "1e-5", "1e-3"]) == ["1e-7", "1e-5", "1e-3"]
    after = profile_heights(tab)
    ticks = tab.ask("return all('#profile .tick').map(t => [text(t), Number(t.getAttribute('y'))])")
    places = dict(ticks)
    decade = places["1e-7"] - places["1e-6"]
    assert np.subtract(after, before).tolist() == pytest.approx([decade] * 6, abs=0.2)  # a tenth of it is a decade down
    assert after[:3] == pytest.approx([places["1e-7"], places["1e-5"], places["1e-3"]], abs=0.2)


def test_theory_is_a_dashed_line_through_its_own_numbers(tab: Tab) -> None:
    tab.open()
    (line,) = tab.wait("return all('#profile path.theory').map(path => [path, path.getAttribute('d')])")
    assert line[0].value_of_css_property("stroke-dasharray") != "none"
    ticks = dict(tab.ask("return all('#profile .tick').map(t => [text(t), Number(t.getAttribute('y'))])"))
    heights = [float(y) for y in re.findall(r",([\d.]+)", line[1])]
    assert heights == pytest.approx([ticks["1e-7"], ticks["1e-6"], ticks["1e-5"]], abs=0.1)
    assert tab.ask("return texts('#profile .muted')[0]").endswith("Dashed: theory, before training.")
    tab.click("input[value=weight]")
    assert tab.wait("return all('#profile path.theory').length", lambda count: count == 0) == 0


def verdicts_shares(og: Sequence[float], ig: Sequence[float]) -> dict[str, float]:
    """The share of each kind of factor in the decrease, as the verdict computes it from the same gradients."""

    def seen(rms: float) -> Stats | None:
        return None if math.isnan(rms) else Stats(1, 0, 0, rms, 0.0, rms, rms)

    layers = [
        LayerSnapshot(i, name, "Linear", "2x2", output_gradient=seen(out), input_gradient=seen(into))
        for i, (name, out, into) in enumerate(zip(NAMES, og, ig, strict=True), start=1)
    ]
    found = waterfall(Snapshot(0, tuple(with_activation_gains(layers))))
    assert found is not None
    shares = dict.fromkeys(("weight", "activation"), 0.0)
    for factor, share in found.shares():
        shares[factor.kind] += share
    return shares


@pytest.mark.parametrize("case", ["both take", "weights give", "one weight gives"])
def test_the_shares_of_the_tab_are_those_of_the_verdict(case: str) -> None:
    og, ig, _, sentence = WATERFALLS[case]
    shares = sorted(verdicts_shares(og, ig).values(), reverse=True)
    assert re.findall(r"\d+ %", sentence) == [f"{100 * share:.0f} %" for share in shares]


def test_the_waterfall_shows_each_factor_and_its_share(tab: Tab) -> None:
    tab.open()
    sentences = tab.sentences()
    assert set(sentences) == {"a", "b"}
    og, ig = flows.GRADIENTS["output_gradient_rms"], flows.GAINS["input_gradient_rms"]
    weights = math.log10(ig[2] / og[2]) + math.log10(ig[1] / og[1])
    activations = math.log10(og[1] / ig[2]) + math.log10(og[0] / ig[1])
    assert weights + activations == pytest.approx(math.log10(og[0] / og[2]))
    share = round(100 * verdicts_shares(og, ig)["activation"])
    assert sentences["a"] == (
        "The RMS of the gradient at fc1 is 2e-4 of that at fc3 "
        f"(weights {TIMES}{10**weights:.2g}, activations {TIMES}{10**activations:.2g}). "
        f"Share of this decrease: activations {share} %, weights {100 - share} %."
    )
    bars = tab.ask("""
        return all('#waterfalls .card')[0] && all('rect.factor', all('#waterfalls .card')[0])
            .map(bar => [bar.className.baseVal, Number(bar.getAttribute('height'))])""")
    ticks = tab.ask("return all('.tick', all('#waterfalls .card')[0]).map(t => Number(t.getAttribute('y')))")
    decade = ticks[0] - ticks[1]
    factors = [("weight", 0.1), ("activation", 0.1), ("weight", 0.2), ("activation", 0.1)]
    assert [kind for kind, _ in bars] == [f"factor {kind}" for kind, _ in factors]
    assert [height / decade for _, height in bars] == pytest.approx([-math.log10(f) for _, f in factors], abs=0.02)


NAMES = ["fc1", "fc2", "fc3"]
RECEIVES = "The RMS of the gradient at fc1 is {} that at fc3 ({})."
NAN, INF = math.nan, math.inf
WATERFALLS: dict[str, tuple[list[float], list[float], str, str]] = {
    "both take": ([1e-4, 1e-2, 1], [NAN, 1e-3, 1e-1], RECEIVES.format("1e-4 of", "weights *0.01, activations *0.01"),
                  "Share of this decrease: weights 50 %, activations 50 %."),
    "weights give": ([1e-4, 1e-2, 1], [NAN, 0.1, 10], RECEIVES.format("1e-4 of", "weights *100, activations *1e-6"),
                     "Share of this decrease: activations 100 %, weights 0 %."),
    "one weight gives": ([1e-4, 1e-2, 1], [NAN, 1e-3, 10], RECEIVES.format("1e-4 of", "weights *1, activations *1e-4"),
                         "Share of this decrease: activations 80 %, weights 20 %."),
    "both give": ([100, 10, 1], [NAN, 50, 5], RECEIVES.format("100 times", "weights *25, activations *4"),
                  "Share of this increase: weights 70 %, activations 30 %."),
    "little change": ([0.8, 1, 1], [NAN, 1, 1], RECEIVES.format("0.8 of", "weights *1, activations *0.8"),
                      "This is a change by less than a factor of 2."),
    "a hole": ([1e-4, NAN, 1], [NAN, NAN, 0.1], RECEIVES.format("1e-4 of", "not split *1e-4"),
               "Without input gradients, weights and activations cannot be told apart."),
    "half known": ([1e-4, 1e-2, 1], [NAN, NAN, 0.1],
                   RECEIVES.format("1e-4 of", "weights *0.1, activations *0.1, not split *0.01"),
                   "Share of this decrease: not split 50 %, weights 25 %, activations 25 %."),
    "zero": ([0, 0, 1], [NAN, 0, 0], "The gradient of fc2 is exactly zero, so there are no factors from there on.", ""),
    "infinite": ([1, INF, 1], [NAN, 1, 1],
                 "The gradient of fc2 holds NaN or infinity, so there are no factors from there on.", ""),
    "the last is infinite": ([1, 1, INF], [NAN, 1, 1],
                             "The gradient of fc3 holds NaN or infinity, so there are no factors from there on.", ""),
    "one": ([NAN, 1, NAN], [NAN] * 3, "Only fc2 has an output gradient, so there is nothing to compare.", ""),
    "none": ([NAN] * 3, [NAN] * 3, "No output gradient was measured at this step.", ""),
}  # fmt: skip


def shown(text: str) -> str:
    return text.replace(TIMES, "*").replace("\N{NO-BREAK SPACE}", " ")


def test_the_page_shows_the_sentences_of_each_waterfall(chrome: webdriver.Chrome, tmp_path: Path) -> None:
    for case, (og, ig, *_) in WATERFALLS.items():
        columns: Any = {"output_gradient_rms": og, "input_gradient_rms": ig}
        write(tmp_path / "runs" / case, [(0, flows.table(columns))])
    for tab in board(chrome, tmp_path, len(WATERFALLS), "rust"):
        tab.open()
        sentences = browser.eventually(tab.sentences_of_all, lambda sentences: len(sentences) == len(WATERFALLS))
        expected = {case: f"{first} {second}".rstrip() for case, (_, _, first, second) in WATERFALLS.items()}
        assert {case: shown(text) for case, text in sentences.items()} == expected


def test_other_quantities_and_runs_can_be_chosen(tab: Tab) -> None:
    tab.open()
    tab.open_numbers()
    tab.click("input[value=zero_fraction]")
    assert tab.numbers_when("a", ["0 %", "50 %", "100 %"]) == ["0 %", "50 %", "100 %"]
    tab.find("input[value=update_ratio]").send_keys(Keys.SPACE)
    assert tab.numbers_when("a", ["1e-5", "1e-4", "5e-4"]) == ["1e-5", "1e-4", "5e-4"]
    tab.click("#runs input")
    assert tab.wait("return texts('#maps h3')", lambda runs: runs == ["b"]) == ["b"]
    assert set(tab.sentences()) == {"b"}


# --- light and dark ------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one: str, other: str) -> float:
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_can_be_read(tab: Tab, dark: bool) -> None:
    tab.open(dark=dark)
    tab.wait("return all('#waterfalls rect.factor').length")
    tab.page.picture(f"gradient_flow_{'dark' if dark else 'light'}")
    assert tab.ask("return document.documentElement.classList.contains('dark')") is dark
    style = "return getComputedStyle(all('%s')[0])['%s']"
    card, page = (tab.ask(style % (where, "backgroundColor")) for where in (".card", "main, body"))
    page = tab.ask("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(page) < 0.1) is dark
    for selector, what, ground in (
        ("h2", "color", page), ("header .muted", "color", page), (".words", "color", card),
        (".card .tick", "fill", card), (".card .name", "fill", card),
    ):  # fmt: skip
        assert contrast(tab.ask(style % (selector, what)), ground) > 4.5, selector
    for selector in ("path.line", "rect.weight", "rect.activation"):
        what = "stroke" if "line" in selector else "fill"
        least = 3 if selector != "rect.activation" or dark else 2  # orange on white; the factor is written beside it
        assert contrast(tab.ask(style % (selector, what)), card) > least, selector


def test_a_change_of_theme_is_followed(tab: Tab) -> None:
    tab.open()
    tab.wait("return all('#maps canvas').length")
    tab.ask("parent.document.body.classList.add('dark-mode')")
    assert tab.wait("return document.documentElement.classList.contains('dark')")


# --- data that grow, hurt, or are missing --------------------------------------------------------------------------


def press_reload(tab: Tab) -> None:
    tab.chrome.switch_to.default_content()
    tab.ask("all('button.reload-button')[0].click()")
    tab.enter()


def test_reload_picks_up_new_steps(tab: Tab) -> None:
    tab.open()
    tab.open_numbers()
    assert tab.step() == "20 of 20"
    write(tab.logdir / "a", [(30, typical(100))])

    def reloaded() -> str:
        press_reload(tab)
        return tab.step()

    assert browser.eventually(reloaded, lambda step: step == "30 of 30") == "30 of 30"
    assert tab.numbers_when("a", ["1e-5", "1e-3", "0.1"]) == ["1e-5", "1e-3", "0.1"]
    assert "b: step 20" in tab.ask("return texts('#profile .muted')[0]")


def board(chrome: webdriver.Chrome, folder: Path, series: int, server: str, cwd: Path | None = None) -> Iterator[Tab]:
    with browser.tensorboard(folder / "runs", folder / "log", *SERVERS[server], folder=cwd) as address:
        wait_until_loaded(address, series)
        yield Tab(chrome, address, folder / "runs", folder)


@pytest.fixture(params=SERVERS)
def awkward(request: pytest.FixtureRequest, chrome: webdriver.Chrome, tmp_path: Path) -> Iterator[Tab]:
    """Runs with hostile names, a malformed tensor, zeros and NaN."""
    runs = tmp_path / "runs"
    write(runs / EVIL_RUN, [(0, typical())], [EVIL_LAYER, *LAYERS[1:]])
    flows.write_text(runs / EVIL_RUN, tags.VERDICT, f"{EVIL_RUN}{EVIL_LAYER}")
    write(runs / "malformed", [(0, np.zeros(4, "f4"))])
    write(runs / "undescribed", [(0, typical())], content=b"{}")
    holes: flows.Columns = {"weight_gradient_rms": [0.0, math.nan, 1e-3], "weight_gradient_nonfinite": [0, 0, 1]}
    write(runs / "zeros", [(0, flows.table({**holes, "output_gradient_rms": [0.0, 1e-3, 1e-2]}))])
    yield from board(chrome, tmp_path, 4, request.param)


def test_hostile_names_are_text_and_broken_runs_cost_no_other(awkward: Tab) -> None:
    awkward.open()
    assert awkward.wait("return all('#maps canvas').length", lambda count: count == 2) == 2
    awkward.page.picture("awkward")
    assert awkward.maps() == [EVIL_RUN, "zeros"]
    assert awkward.ask("return document.querySelectorAll('#page img, #page script').length") == 0
    assert awkward.ask("return [document.title, parent.document.title]") == ["", "TensorBoard"]
    assert EVIL_LAYER in awkward.ask("return all('#maps .name title').map(t => t.textContent)")
    assert awkward.wait("return texts('#maps .note')") == [f"{EVIL_RUN}{EVIL_LAYER}"]
    problems = awkward.ask("return texts('#maps .problem')")
    assert [problem.partition(":")[0] for problem in problems] == ["this run cannot be shown"] * 2
    assert "float32 of shape [4], not numbers of shape [3, 20]" in problems[0]
    assert "description was not written by vgrad_torch" in problems[1]
    assert EVIL_LAYER in awkward.sentences()[EVIL_RUN]


def test_zeros_and_nonfinite_have_their_own_colours(awkward: Tab) -> None:
    awkward.open()
    awkward.wait("return all('#maps canvas').length", lambda count: count == 2)
    rows = awkward.ask("""
        const canvas = all('#maps canvas')[1];
        return [0, 1, 2].map(row => [...canvas.getContext('2d')
            .getImageData(0, Math.round(row * canvas.height / 3) + 2, canvas.width, 10).data]);""")
    commonest = []
    for row in rows:
        colours, counts = np.unique(np.array(row).reshape(-1, 4), axis=0, return_counts=True)
        commonest.append(colours[counts.argmax()].tolist())
    assert commonest == [[0, 0, 0, 255], [0, 0, 0, 0], [213, 0, 50, 255]]
    keys = awkward.ask("return texts('#legend .key')")
    assert keys == ["exactly zero", "NaN or infinite", "not measured"]
    assert awkward.sentences()["zeros"] == (
        f"The RMS of the gradient at fc2 is 0.1 of that at fc3 (not split {TIMES}0.1). "
        "Without input gradients, weights and activations cannot be told apart. "
        "The gradient of fc1 is exactly zero, so there are no factors from there on."
    )


def test_without_data_the_tab_says_how_to_make_some(chrome: webdriver.Chrome, tmp_path: Path) -> None:
    writer = Writer(tmp_path / "runs" / "plain")
    writer.scalars({"loss": 1.0}, 0)
    writer.close()
    for tab in board(chrome, tmp_path, 0, "rust"):
        tab.open()
        empty = tab.wait("return texts('#empty:not([hidden])')")
        assert "vgrad train --act sigmoid" in empty[0]
        assert tab.ask("return all('#page:not([hidden])').length") == 0
        write(tmp_path / "runs" / "a", [(0, typical())])
        press_reload(tab)
        assert browser.eventually(tab.maps, lambda runs: runs == ["a"]) == ["a"]


def test_a_missing_file_of_the_page_is_a_message(chrome: webdriver.Chrome, tmp_path: Path) -> None:
    package = ROOT / "vgrad_torch"
    shutil.copytree(package, tmp_path / "copy" / "vgrad_torch")
    (tmp_path / "copy" / "vgrad_torch" / "tensorboard" / "plugin" / "static" / "charts.js").unlink()
    write(tmp_path / "runs" / "a", [(0, typical())])
    for tab in board(chrome, tmp_path, 1, "rust", tmp_path / "copy"):
        chrome.switch_to.default_content()
        chrome.get(f"{tab.address}#gradient_flow")
        chrome.switch_to.frame(tab.wait("return all('iframe').find(f => f.src.includes('gradient_flow'))"))
        words = tab.wait("return document.body.textContent", lambda text: "missing" in text)
        assert "charts.js is missing" in words


# --- how much TensorBoard keeps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(("flags", "kept"), [([], 300), (["--samples_per_plugin", "gradient_flow=50"], 50)])
def test_tensorboard_keeps_all_steps_unless_a_flag_says_otherwise(
    tmp_path: Path, server: str, flags: list[str], kept: int
) -> None:
    write(tmp_path / "runs" / "a", [(step, typical()) for step in range(300)])
    with browser.tensorboard(tmp_path / "runs", tmp_path / "log", *SERVERS[server], *flags) as address:
        wait_until_loaded(address, 1)
        url = f"{address}data/plugin/gradient_flow/flow?run=a&tag=gradient_flow&quantity=weight"
        head = json.JSONDecoder().raw_decode(browser.content(url)[4:].decode("latin-1"))[0]
    assert (head["samples"], head["thinned"]) == (kept, kept == 50)


# --- the gradient through time -------------------------------------------------------------------------------------


def test_the_gradient_through_time_is_drawn_as_autograd_says(chrome: webdriver.Chrome, tmp_path: Path) -> None:
    lengths = [40, 25, 40]
    _, exact = recurrent.train(tmp_path / "runs" / "rnn", recurrent.Reader(), lengths)
    write(tmp_path / "runs" / "mlp", [(0, typical())])
    for tab in board(chrome, tmp_path, 2, "rust"):
        tab.open()
        assert tab.wait("return all('#times canvas').length") == 1
        assert tab.ask("return texts('#times h3')") == ["rnn"]
        back = [np.array(norms[::-1]) / norms[-1] for norms in exact]
        tenth, hundredth = (int((back[-1] < limit).argmax()) for limit in (0.1, 0.01))
        assert tab.ask("return texts('#times .words')") == [
            f"rnn: a tenth of the gradient is left after {tenth} steps back through time, a hundredth after "
            f"{hundredth}, of 40."
        ]
        assert tab.ask("return texts('#time .ramp span')") == ["1e-4", "1e-3", "1e-2", "1e-1", "1"]
        places = [math.log(k + 1.5) / math.log(41) for k in range(12)]
        pixels = tab.ask(
            f"const places = {json.dumps(places)};"
            + """
            const canvas = all('#times canvas')[0];
            return places.map(place => [0, 1, 2].map(column => [...canvas.getContext('2d').getImageData(
                (column + .5) * canvas.width / 3, (1 - place) * canvas.height, 1, 1).data]));"""
        )
        for k, row in enumerate(pixels):
            for column, colour in enumerate(row):
                share = max(0.0, (math.log10(back[column][k]) + 4) / 4)
                np.testing.assert_allclose(colour, 255 * np.array(matplotlib.colormaps["viridis"](share)), atol=4)
        beyond = (
            "const [c] = all('#times canvas'); return [...c.getContext('2d').getImageData(c.width / 2, 5, 1, 1).data]"
        )
        assert tab.ask(beyond) == [0, 0, 0, 0]  # the sequence of the second step is shorter
        check_horizons(tab, back)
        area = tab.find("#times .area")
        height = area.size["height"]
        ActionChains(tab.chrome).move_to_element_with_offset(area, 0, int(height * (0.5 - places[5]))).perform()
        value = float(f"{back[1][5]:.2g}")
        tip = tab.wait("return all('#tip:not([hidden])').map(tip => tip.textContent)")
        assert tip[0].startswith("rnn\nstep 1\ntime step 20 of 25, 5 back: ")
        assert float(tip[0].rpartition(" ")[2]) == pytest.approx(value)
        tab.page.picture("time")


def check_horizons(tab: Tab, back: Sequence[np.ndarray]) -> None:
    """The lines are where a tenth and a hundredth are left."""
    for kind, limit in (("tenth", 0.1), ("hundredth", 0.01)):
        (path,) = tab.ask(f"return shapes('#times .horizon.{kind}')")
        height = 200.0
        drawn = [float(y) for y in re.findall(r"(?:,|V)([\d.]+)", path)]
        wanted = [height * (1 - math.log(1 + int((each < limit).argmax())) / math.log(41)) for each in back]
        assert drawn == pytest.approx(wanted, abs=0.01)


def test_the_map_through_time_is_left_out_without_such_layers_and_names_are_text(
    chrome: webdriver.Chrome, tmp_path: Path
) -> None:
    for name, content in (("a", encode_layout(LAYOUT)), ("b", b"{}")):
        write(tmp_path / "runs" / name, [(0, typical())], [EVIL_LAYER, *LAYERS[1:]])
        tensor = encode_profile(TimeProfile.of([0.0, 0.1, math.nan, 1.0], 3))
        write(tmp_path / "runs" / name, [(0, tensor)], tag=tags.time_tag(EVIL_LAYER), content=content)
    for tab in board(chrome, tmp_path, 2, "rust"):
        tab.open()
        assert tab.wait("return all('#times canvas').length") == 1
        assert tab.ask("return texts('#times .words')") == [
            f"{EVIL_LAYER}: a tenth of the gradient is left after 3 steps back through time, a hundredth after 3, of 4."
        ]
        assert tab.ask("return texts('#times .problem')")[0].startswith(
            f"the gradient through time of {EVIL_LAYER} cannot"
        )
        assert tab.ask("return texts('#time .key')")[-2:] == ["exactly zero", "NaN or infinite"]
        assert tab.ask("return document.querySelectorAll('#page img, #page script').length") == 0
        assert tab.ask("return [document.title, parent.document.title]") == ["", "TensorBoard"]
        tab.ask("all('#runs input').forEach(box => box.click())")
        assert tab.wait("return all('#time[hidden]').length", lambda found: found == 1) == 1


# --- many layers ---------------------------------------------------------------------------------------------------

BLOCKS = 11
INSIDE = ["attn", "mlp.in", "mlp.out"]
FLOWN = ["stem", *(f"h.{i}.{name}" for i in range(BLOCKS) for name in INSIDE), "head"]
EVIL_BLOCK = "<img src=x onerror=alert(1)>"
STRANGE = [EVIL_LAYER, "a" * 5000, "\u202etfel\u05d0", "a\x00\x07\n\tb", "&lt;b&gt;", "$&"]
HOSTILE = [*STRANGE, *(f"{EVIL_BLOCK}{i}.{name}" for i in range(9) for name in INSIDE)]


def write_many(folder: Path, names: Sequence[str]) -> None:
    """A run of layers that feed each other in this order but were logged in the reverse one; the n-th has n * 1e-3."""
    sources = [(), *((name,) for name in names[:-1])]
    graph = tags.Graph(tuple(sources[::-1]), (), 0)
    layers = [f"{number}-{name}-4x4" for number, name in enumerate(names[::-1], start=1)]
    values = [1e-3 * number for number in range(len(names), 0, -1)]
    content = tags.encode_axes(layers, flows.STATISTICS, graph)
    write(folder, [(0, flows.table({"weight_gradient_rms": values}, len(names)))], content=content)


@pytest.fixture(scope="module")
def many(chrome: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """Two runs of so many layers that they are grouped by block."""
    folder = tmp_path_factory.mktemp("many")
    write_many(folder / "runs" / "big", FLOWN)
    write_many(folder / "runs" / "hostile", HOSTILE)
    verdict = "| layer |\n| --- |\n\n'x.' is left out at the beginning of all names.\n\n**weak**: no. Next: go."
    flows.write_text(folder / "runs" / "big", tags.VERDICT, verdict)
    yield from board(chrome, folder, 2, "rust")


def names_in_map(tab: Tab, run: str = "big") -> list[str]:
    found: list[str] = tab.ask(
        f"const card = all('#maps .card').find(card => card.dataset.run === {json.dumps(run)});"
        "return all('.name', card).map(name => name.firstChild.data)"
    )
    return found


def rows(*opened: str) -> list[str]:
    """The names of the rows of the run `big`."""
    found = ["stem"]
    for block in (f"h.{i}" for i in range(BLOCKS)):
        found += [f"▾ {block}", *INSIDE] if block in opened else [f"▸ {block}"]
    return [*found, "head"]


def focused(tab: Tab) -> list[str]:
    """The section, block and state of the name that has the focus."""
    found: list[str] = tab.ask(
        "const element = document.activeElement;"
        "return [element.closest('section')?.id, element.dataset.block, element.ariaExpanded]"
    )
    return found


def test_a_block_opens_on_a_click_and_stays_open(many: Tab) -> None:
    many.open()
    assert names_in_map(many) == rows()  # in the order of the graph
    assert many.ask("return texts('#maps .toggle title').slice(0, 2)") == [
        "h.0: 3 layers. Click to open.", "h.1: 3 layers. Click to open.",
    ]  # fmt: skip
    assert many.ask("return texts('#maps .card')[0]").startswith("bigweak: no. Next: go.")
    many.click("#maps [data-block='h.1']")
    assert names_in_map(many) == rows("h.1")
    press_reload(many)
    assert names_in_map(many) == rows("h.1")
    many.click("#maps [data-block='h.1']")
    assert names_in_map(many) == rows()
    many.click("#open-all")
    assert names_in_map(many) == rows(*(f"h.{i}" for i in range(BLOCKS)))


def test_the_keyboard_opens_a_block_and_keeps_its_focus(many: Tab) -> None:
    many.open()
    many.open_numbers()
    for section, place, key, state in (
        ("flow", "maps", Keys.ENTER, "true"),
        ("profile", "numbers", Keys.SPACE, "false"),
    ):
        assert many.wait(f"const [name] = all('#{place} [data-block=\"h.3\"]'); name?.focus(); return name")
        ActionChains(many.chrome).send_keys(key).perform()
        assert focused(many) == [section, "h.3", state]
        assert many.ask(f"return all('#{place}')[0].contains(document.activeElement)")
        opened = ["h.3"] if state == "true" else []
        assert many.numbers()["layer"] == names_in_map(many) == rows(*opened)
        medians = ["0.012", "0.011", "0.012", "0.013", "0.015"] if opened else ["0.012", "0.015"]
        assert many.numbers()["big"][3:][: len(medians) + 1] == ["9e-3", *medians]


def test_the_filter_shows_the_layers_with_a_text(many: Tab) -> None:
    many.open()
    box = many.find("#filter")
    for typed, found in (
        ("MLP.in", [f"h.{i}.mlp.in" for i in range(BLOCKS)]), ("h.1.", [f"h.1.{name}" for name in INSIDE]), ("h.*", []),
        ("(", []), ("<b>", []), (" ", rows()),
    ):  # fmt: skip
        box.clear()
        box.send_keys(typed)
        assert names_in_map(many) == found, typed
        card = many.ask("return texts('#maps .card')[0]")
        assert ("No layer has this in its name." in card) is (not found)
        assert many.ask("return document.activeElement.id") == "filter"
    assert many.ask("return document.querySelectorAll('#page b').length") == 0


def test_hostile_names_of_many_layers_are_text(many: Tab) -> None:
    many.open()
    names = names_in_map(many, "hostile")
    assert names[1] == "a" * 11 + "…" + "a" * 12
    assert names[2:6] == STRANGE[2:]
    assert names[6:] == [f"▸ <img src=…r=alert(1)>{i}" for i in range(9)]
    many.ask("all('#maps .toggle').at(-1).dispatchEvent(new MouseEvent('click'))")
    assert names_in_map(many, "hostile")[-3:] == INSIDE
    tips = many.ask("return all('#maps .name title').map(title => title.textContent)")
    assert {*STRANGE, f"{EVIL_BLOCK}8: 3 layers. Click to close."} <= {*tips}
    many.find("#filter").send_keys(EVIL_BLOCK[:8])
    assert len(names_in_map(many, "hostile")) == 27
    assert many.ask("return document.querySelectorAll('#page img, #page script, #page b').length") == 0
    assert many.ask("return [document.title, parent.document.title]") == ["", "TensorBoard"]
    assert many.ask("return document.documentElement.scrollWidth <= window.innerWidth")
