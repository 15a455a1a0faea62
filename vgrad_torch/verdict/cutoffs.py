"""The thresholds of the verdict, and how often it was right: set and tested on the networks of `make calibrate`.

3,888 fully connected networks (circles, digits, wine; six activations, six initialisers, 2 to 20 hidden layers of 8 to
64 units; SGD with momentum, Adam, RMSprop; three seeds), each trained for up to 3,000 steps at four to six learning
rates. A network trains if it reaches the target accuracy of its data at any of these rates. Half of the configurations
set the thresholds; the other half gave `RECORDS`. `runs/calibration/` holds the networks and the tables; a test judges
the networks again and compares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

EARLY = 150
"""Steps, 5 % of the calibration's training. From this step on it matters that the error has not fallen."""

KEPT = (0.1, 30.0)
"""All 235 networks of the grid whose ratio of norms, first layer over last layer, was between these trained."""


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """Thresholds for one family of optimizers at one time. `measure` is the attribute of `Evidence` that is compared.

    Below `vanishing` networks rarely train; below `slow` some networks do not train.
    """

    measure: str
    vanishing: float
    slow: float


@dataclass(frozen=True, slots=True)
class Record:
    """How often a verdict was right, of the calibration's test networks that got it."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """The share of right verdicts; NaN if no network got it."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share, by Wilson's formula.

        >>> [round(bound, 3) for bound in Record(98, 100).interval]
        [0.93, 0.994]
        """
        return wilson(self.right, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.right} of {self.total}, {self.share:.0%} ({low:.0%} to {high:.0%})"


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (E. B. Wilson 1927, JASA 22:209)."""
    if not total:
        return 0.0, 1.0
    share, spread = hits / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


CUTOFFS: Mapping[str, Mapping[str, Cutoffs]] = {
    "sgd": {"start": Cutoffs("drive", -4.0, -3.5), "later": Cutoffs("drive", -4.2, -3.7)},
    "adam": {"start": Cutoffs("strength", -5.8, -2.8), "later": Cutoffs("strength", -5.7, -2.5)},
    "rmsprop": {"start": Cutoffs("strength", -5.6, -2.7), "later": Cutoffs("strength", -5.3, -3.0)},
}
"""`start` is before step `EARLY`, `later` from there on."""

EXPLODING: Mapping[str, float] = {"sgd": 1.5, "adam": 3.0, "rmsprop": 3.0}
"""`signal` above which the gradient explodes. With small steps some of these networks still train:
in the fitting half 27 of 64 with SGD, 17 of 39 with Adam."""
DEAD = 0.95
"""`zeros` above which a layer is dead."""
REACHES = -1.0
"""`signal` above which the first layer receives enough, whatever the other measures are. Of the fitting half's networks
between this and 1.5 before training, 728 of 744 trained."""
LEARNING = 0.7
"""`residual` below which the error has fallen: then the network learns, whatever its gradients are."""
OTHER_NETWORKS = 1.0
"""Decades beyond `CUTOFFS.vanishing` or `EXPLODING` that these two verdicts need for a case that the calibration does
not have: layers that are not fully connected or not in a row, or a single sample after step 0."""
WEAK = 0.01
"""A layer is weak if its weight gets less than this share of the gradient, for its size, that the best of its kind
gets (see `states.weak_layers`), and less than `CUTOFFS` ask for. In 14 networks of other architectures that trained,
none got less than 0.08."""
LARGE_STEP = 0.5
"""Change of a weight in one step, relative to its size, above which steps are too large. In the same networks the
largest step of any layer was 0.14; with a thousandfold learning rate the median layer's largest was 0.6 to 53."""
SMALL_STEP = 1e-5
"""Change of a weight in one step, relative to its size, below which a thousand steps change nothing: 1 % at most."""
SHORT, SHORT_UNPROVEN = 0.5, 0.1
"""The gradient vanishes through time if a hundredth of it is left after this share of the sequence: the first if the
losses are known and do not fall, or no longer, the second if they are not known."""
LONG_SEQUENCE = 20
"""Time steps from which on this matters."""
GROWTH = 100.0
"""Growth of the gradient on the way back through time above which it explodes."""

RECORDS: Mapping[tuple[str, str, str], Record] = {
    ("sgd", "start", "exploding"): Record(51, 58),
    ("sgd", "start", "healthy"): Record(371, 391),
    ("sgd", "start", "slow"): Record(19, 29),
    ("sgd", "start", "vanishing"): Record(176, 185),
    ("sgd", "later", "dead"): Record(13, 13),
    ("sgd", "later", "healthy"): Record(384, 420),
    ("sgd", "later", "non-finite"): Record(30, 30),
    ("sgd", "later", "slow"): Record(15, 23),
    ("sgd", "later", "vanishing"): Record(170, 177),
    ("adam", "start", "exploding"): Record(15, 39),
    ("adam", "start", "healthy"): Record(449, 465),
    ("adam", "start", "slow"): Record(52, 80),
    ("adam", "start", "vanishing"): Record(70, 79),
    ("adam", "later", "dead"): Record(6, 7),
    ("adam", "later", "exploding"): Record(11, 15),
    ("adam", "later", "healthy"): Record(494, 513),
    ("adam", "later", "slow"): Record(31, 58),
    ("adam", "later", "vanishing"): Record(66, 70),
    ("rmsprop", "start", "exploding"): Record(15, 39),
    ("rmsprop", "start", "healthy"): Record(435, 458),
    ("rmsprop", "start", "slow"): Record(55, 86),
    ("rmsprop", "start", "vanishing"): Record(69, 80),
    ("rmsprop", "later", "dead"): Record(7, 7),
    ("rmsprop", "later", "exploding"): Record(11, 15),
    ("rmsprop", "later", "healthy"): Record(501, 535),
    ("rmsprop", "later", "slow"): Record(13, 32),
    ("rmsprop", "later", "vanishing"): Record(67, 74),
}
"""(Optimizer family, time, verdict) -> record, with the networks that explode. The verdicts vanishing, exploding, dead
and non-finite are right if the network does not train; healthy and slow are right if it trains."""
