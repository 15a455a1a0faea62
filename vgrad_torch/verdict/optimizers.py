"""Optimizers in families, each with cut-offs of its own."""

from __future__ import annotations

from collections.abc import Mapping

FAMILIES: Mapping[str, str] = {
    "sgd": "sgd", "asgd": "sgd",
    "adam": "adam", "adamw": "adam", "nadam": "adam", "radam": "adam", "adamax": "adam", "sparseadam": "adam",
    "adagrad": "adam", "adadelta": "adam",
    "rmsprop": "rmsprop",
}  # fmt: skip
"""Optimizer class, in lower case -> the family whose cut-offs judge it.

SGD steps by the size of the gradient. The others choose the size of their steps themselves, so they train with a
gradient that is a hundred times smaller.
"""

NAMES = {"sgd": "SGD", "adam": "Adam", "rmsprop": "RMSprop"}
"""Optimizer family -> its name in sentences."""


def family(optimizer: str) -> str | None:
    """The family of an optimizer, by the name of its class; None if it was not calibrated.

    >>> family("AdamW"), family("LBFGS")
    ('adam', None)
    """
    return FAMILIES.get(optimizer.lower())
