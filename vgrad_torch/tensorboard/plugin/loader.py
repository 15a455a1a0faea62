"""The entry point that TensorBoard imports when it starts. It must never fail, or no tab at all would open."""

from __future__ import annotations

import logging
from typing import Any

from tensorboard.plugins import base_plugin

from vgrad_torch.tensorboard.tags import PLUGIN_NAME

SAMPLES = 10_000
"""Samples of a tag that TensorBoard keeps unless --samples_per_plugin says otherwise; its own default is 10 or 100.

It drops samples at random.
"""


class Loader(base_plugin.TBLoader):  # type: ignore[misc]
    """Makes the Gradient Flow tab. If that fails, the tab is left out, with one line in TensorBoard's log."""

    def fix_flags(self, flags: Any) -> None:
        """Let TensorBoard keep `SAMPLES` samples, unless the user asked for another number."""
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault(PLUGIN_NAME, SAMPLES)

    def load(self, context: Any) -> Any:
        """The plugin; None where it cannot be made, and TensorBoard then goes on without it."""
        try:
            from vgrad_torch.tensorboard.plugin.routes import GradientFlow

            return GradientFlow(context)
        except Exception as error:  # no error of this tab may stop the other tabs
            logging.getLogger("tensorboard").warning("the Gradient Flow tab is left out: %s", error)
            return None
