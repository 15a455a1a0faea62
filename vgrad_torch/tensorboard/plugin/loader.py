"""The entry point that TensorBoard imports at its start: it must never fail, or no tab at all would open."""

from __future__ import annotations

import logging
from typing import Any

from tensorboard.plugins import base_plugin

from vgrad_torch.tensorboard.tags import PLUGIN_NAME

SAMPLES = 10_000
"""Samples of a tag that TensorBoard keeps, unless told otherwise by --samples_per_plugin; its own default is 10 or 100.

What it drops, it drops at random.
"""


class Loader(base_plugin.TBLoader):  # type: ignore[misc]
    """Makes the Gradient Flow tab, or leaves it out with one line in TensorBoard's log."""

    def fix_flags(self, flags: Any) -> None:
        """Have TensorBoard keep `SAMPLES` samples, if the user did not ask for another number."""
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault(PLUGIN_NAME, SAMPLES)

    def load(self, context: Any) -> Any:
        """The plugin, or None where it cannot be made: TensorBoard then goes on without it."""
        try:
            from vgrad_torch.tensorboard.plugin.routes import GradientFlow

            return GradientFlow(context)
        except Exception as error:  # whatever it is, it must not cost the user the other tabs
            logging.getLogger("tensorboard").warning("the Gradient Flow tab is left out: %s", error)
            return None
