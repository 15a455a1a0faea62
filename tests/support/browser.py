"""Context managers: a real TensorBoard, and a headless Chromium that also searches shadow roots."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests import ROOT
from vgrad_torch.tensorboard.tags import PLUGIN_NAME

PATIENCE = 30.0
"""Seconds to wait for TensorBoard and its pages."""

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1600,1200",
)  # fmt: skip

_LIBRARY = """
const children = node => [...(node.shadowRoot ? node.shadowRoot.children : []), ...node.children];
function all(selector, root = document.body) {
  const found = [];
  (function walk(node) {
    for (const child of children(node)) { if (child.matches(selector)) found.push(child); walk(child); }
  })(root);
  return found;
}
const text = element => element.textContent.replace(/\\s+/g, ' ').trim();
const texts = (selector, root) => all(selector, root).map(text);
const shapes = (selector, root) => all(selector, root).map(path => path.getAttribute('d'));
"""


def eventually(look: Callable[[], Any], good: Callable[[Any], object]) -> Any:
    """Look again until the result is good, and return it; after `PATIENCE` seconds return the last result as it is."""
    deadline = time.monotonic() + PATIENCE
    while not good(result := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return result


def with_plugin(folder: Path) -> dict[str, str]:
    """An environment in which TensorBoard finds the Gradient Flow tab, also where the package is not installed."""
    if any(entry.name == PLUGIN_NAME for entry in entry_points(group="tensorboard_plugins")):
        return dict(os.environ)
    project = ROOT
    (entry,) = tomllib.loads((project / "pyproject.toml").read_text())["project"]["entry-points"].items()
    described = folder / "vgrad_torch-0.dist-info"
    described.mkdir(parents=True, exist_ok=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: vgrad-torch\nVersion: 0\n")
    lines = [f"{name} = {value}\n" for name, value in entry[1].items()]
    (described / "entry_points.txt").write_text(f"[{entry[0]}]\n{''.join(lines)}")
    path = [str(project), str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


@contextmanager
def tensorboard(logdir: Path, log: Path, *flags: str, folder: Path | None = None) -> Iterator[str]:
    """Start TensorBoard in `folder` on a free port of localhost; yields its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "localhost", "--port", "0"]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*command, *flags], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True, env=with_plugin(log.parent / "plugin"), cwd=folder,
        )  # fmt: skip
    try:
        address = eventually(lambda: re.search(r"http://localhost:\d+/", log.read_text()), lambda match: match)
        assert address, f"TensorBoard did not start:\n{log.read_text()}"
        yield address[0]
    finally:
        _end(process)


def content(url: str) -> bytes:
    """TensorBoard's answer in bytes; an HTTP error is raised."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=PATIENCE) as reply:
        answer: bytes = reply.read()
    return answer


def fetch(url: str) -> Any:
    """TensorBoard's answer, decoded from JSON."""
    return json.loads(content(url))


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with an empty profile; the test is skipped where there is none."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("browser test skipped: needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    service = Service(executable_path=driver, popen_kw={"start_new_session": True})
    try:
        chrome = webdriver.Chrome(options=options, service=service)
        try:
            chrome.set_page_load_timeout(PATIENCE)
            chrome.set_script_timeout(PATIENCE)
            yield chrome
        finally:
            chrome.quit()
    finally:
        if hasattr(service, "process"):
            _end(service.process)


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process and all processes that it started: by SIGTERM, after 10 seconds by SIGKILL."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Page:
    """A tab of TensorBoard in the browser, as a user sees it."""

    def __init__(self, chrome: webdriver.Chrome, address: str, pictures: Path) -> None:
        self._chrome = chrome
        self._address = address
        self._pictures = pictures

    def open(self, tab: str) -> None:
        """Load the page again and show this tab."""
        self._chrome.get("about:blank")
        self._chrome.get(f"{self._address}#{tab}")

    def ask(self, script: str) -> Any:
        """Run a script that has `all(selector, root)`, `texts` and `shapes`, which look into shadow roots too."""
        return self._chrome.execute_script(_LIBRARY + script)

    def wait(self, script: str, good: Callable[[Any], object] = bool) -> Any:
        """Ask until the answer is good; after `PATIENCE` seconds return the last answer as it is."""
        return eventually(lambda: self.ask(script), good)

    def picture(self, name: str) -> np.ndarray:
        """The window as pixels [height, width, RGB], from 0 to 1; also written to a file."""
        png = self._chrome.get_screenshot_as_png()
        self._pictures.mkdir(parents=True, exist_ok=True)
        (self._pictures / f"{name}.png").write_bytes(png)
        pixels: np.ndarray = matplotlib.image.imread(io.BytesIO(png))[:, :, :3]
        return pixels
