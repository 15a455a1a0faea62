"""Settings for all tests."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the nets here are small, and several tests run at once

import pytest
import torch

torch.set_num_threads(1)

# A shell that starts the tests in the background has SIGINT ignored in them and in all processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = (
    "test_plugin_browser", "test_keras_parity", "test_resume", "test_torchrun", "test_browser", "test_readme",
    "test_sweep", "test_cli", "test_report", "test_distributed", "test_what_if", "test_theory",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one of them at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))
