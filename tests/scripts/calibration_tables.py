"""What follows from the rows of the calibration: the cut-offs, and the tables of right and wrong verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.scripts import calibration_rows as table
from tests.scripts.calibration_grid import TARGETS
from tests.scripts.calibration_rows import Row
from vgrad_torch.verdict.cutoffs import DEAD, wilson
from vgrad_torch.verdict.rules import ALARMS, arrives, judge

MEASURES = {"sgd": "drive", "adam": "strength", "rmsprop": "strength"}
FALSE_ALARMS = {"start": 0.03, "early": 0.02}
"""Share of the networks that train which may be flagged. The lines are set on the fitting half, a standard error of the
share below it: a line at the limit would break it every second time on others. Those of `drive` are set at half of it,
since a higher one catches next to nothing more."""
CAUGHT = 0.95
"""Share of its networks that fail which lie below the line to slow, unless that line would be above `SLOWEST`."""
SLOWEST = -1.0
EXPLODES = 1.5
"""Networks whose signal before training is above it are left out where missed failures are counted."""

Rule = Callable[[Row, str], bool]

PUBLISHED: Mapping[str, Rule] = {
    "SageMaker VanishingGradient, a layer's mean |g| < 1e-7": lambda row, t: row.numbers[f"{t}_mean_abs"] < -7,
    "AUTOTRAINER, first over last norm < 1e-3 and first < 1e-4": lambda row, t: (
        row.numbers[f"{t}_norm_ratio"] < -3 and row.numbers[f"{t}_first_norm"] < -4
    ),
    "grad-watch, a layer's mean |g| < 1e-6": lambda row, t: row.numbers[f"{t}_mean_abs"] < -6,
    "gradscope, a layer's norm (here the first one's) < 1e-8": lambda row, t: row.numbers[f"{t}_first_norm"] < -8,
    "trainpulse, total norm < 1e-7": lambda row, t: row.numbers[f"{t}_total_norm"] < -7,
    "output gradient, first over last norm < 1e-3": lambda row, t: row.numbers[f"{t}_signal"] < -3,
}
"""Rules of other tools on the same networks. Each sees what a broken network shows too: NaN is no alarm."""


def flagged(row: Row, time: str) -> bool:
    """Whether the package's verdict says that the network will not train."""
    return judge(row.evidence(time), row.optimizer).verdict in ALARMS


def confusion(rows: Sequence[Row], time: str, rule: Rule) -> dict[str, Any]:
    """What a rule says of networks that fail (recall) and of those that train (false alarms).

    `stuck` are the failing ones that had not learnt half of it either: the others are slow or have too large steps.
    """
    fails, trains = [row for row in rows if not row.trains], [row for row in rows if row.trains]
    stuck = [row for row in fails if not learnt(row)]
    caught, alarms = sum(rule(row, time) for row in fails), sum(rule(row, time) for row in trains)
    return {
        "stuck": len(stuck), "stuck_recall": share(sum(rule(row, time) for row in stuck), len(stuck)),
        "failing": len(fails), "caught": caught, "recall": share(caught, len(fails)),
        "training": len(trains), "false_alarms": alarms, "false_alarm_share": share(alarms, len(trains)),
    }  # fmt: skip


def share(hits: int, total: int) -> list[float]:
    """A share with its 95 % interval."""
    return [round(value, 4) for value in (hits / total if total else 0.0, *wilson(hits, total))]


def quiet(rows: Sequence[Row]) -> list[Row]:
    """Those that do not explode at the start."""
    return [row for row in rows if row.numbers["start_signal"] <= EXPLODES]


def half(rows: Sequence[Row], name: str) -> list[Row]:
    """Those of one half of the configurations."""
    return [row for row in rows if row.configuration.half == name]


def fit(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """The cut-offs that the fitting half asks for, by family and time, in the form of `CUTOFFS`."""
    return {
        family: {
            name: _fit(quiet([row for row in half(rows, "fit") if row.optimizer == family]), time, MEASURES[family])
            for name, time in (("start", "start"), ("later", "early"))
        }
        for family in MEASURES
    }


def _fit(rows: Sequence[Row], time: str, measure: str) -> dict[str, Any]:
    undecided = [(row, row.evidence(time)) for row in rows]
    undecided = [(row, e) for row, e in undecided if not e.nonfinite and not e.zeros > DEAD and not arrives(e)]
    training = sorted(getattr(e, measure) for row, e in undecided if row.trains)
    failing = sorted(getattr(e, measure) for row, e in undecided if not row.trains)
    allowed = _allowed(FALSE_ALARMS[time], sum(row.trains for row in rows), measure)
    vanishing = training[allowed] if allowed < len(training) else 0.0
    slow = failing[min(int(CAUGHT * len(failing)), len(failing) - 1)]
    return {"measure": measure, "vanishing": _down(vanishing), "slow": max(min(_down(slow), SLOWEST), _down(vanishing))}


def _allowed(limit: float, networks: int, measure: str) -> int:
    """How many false alarms a line may give among so many networks that train."""
    below = limit / 2 if measure == "drive" else math.sqrt(limit * (1 - limit) / networks)
    return int((limit - below) * networks)


def _down(value: float) -> float:
    return float(np.floor(value * 10) / 10)


def tables(rows: Sequence[Row]) -> dict[str, Any]:
    """Recall and false alarms of the package's verdict and of the published rules, networks that explode left out."""
    found: dict[str, Any] = {}
    for part in ("test", "fit"):
        for family in MEASURES:
            chosen = quiet([row for row in half(rows, part) if row.optimizer == family])
            for time in ("start", "early"):
                rules = {"vgrad_torch": flagged, **PUBLISHED} if part == "test" else {"vgrad_torch": flagged}
                found[f"{part} {family} {time}"] = {name: confusion(chosen, time, r) for name, r in rules.items()}
    return found


def verdicts(rows: Sequence[Row]) -> dict[str, dict[str, list[int]]]:
    """For each optimizer and time the verdicts of all test networks: how many got it, and how many of them train."""
    found: dict[str, dict[str, list[int]]] = {}
    for row in half(rows, "test"):
        for time in ("start", "early"):
            counts = found.setdefault(f"{row.optimizer} {time}", {})
            count = counts.setdefault(judge(row.evidence(time), row.optimizer).verdict, [0, 0])
            count[0] += 1
            count[1] += row.trains
    return {key: dict(sorted(counts.items())) for key, counts in found.items()}


def finished(rows: Sequence[Row]) -> dict[str, Any]:
    """Flags at the end of trainings that succeeded and ended with the target's accuracy or more, over both halves."""
    good = [row for row in rows if row.trains and row.accuracy >= TARGETS[row.configuration.data]]
    return {
        "networks": len(good),
        "flagged": sum(flagged(row, "end") for row in good),
        "lowest_signal": min(row.numbers["end_signal"] for row in good),
    }


def ceiling(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Recall, at the false alarms that are allowed, of two learned rules on all recorded numbers, cross-validated.

    They learn from eight parts of the configurations of both halves and judge the ninth: about the best that any rule
    on these numbers can do, and they may use what depends on the loss's scale.
    """
    found: dict[str, dict[str, float]] = {}
    for family in MEASURES:
        chosen = quiet([row for row in rows if row.optimizer == family])
        fails = np.array([not row.trains for row in chosen])
        groups = [row.configuration.name for row in chosen]
        for time, names in (("start", ("start_",)), ("early", ("start_", "early_"))):
            columns = [name for name in table.columns() if name.startswith(names)]
            numbers = [[min(max(row.numbers[name], -12.0), 12.0) for name in columns] for row in chosen]
            x = np.nan_to_num(np.array(numbers), nan=-12.0)
            for name, model in _LEARNED.items():
                score = cross_val_predict(model, x, fails, groups=groups, cv=GroupKFold(9), method="predict_proba")[
                    :, 1
                ]
                recall = round(_recall_at(score, fails, FALSE_ALARMS[time]), 4)
                found.setdefault(f"{family} {time}", {})[name] = recall
    return found


_LEARNED = {
    "boosted trees": GradientBoostingClassifier(n_estimators=100, max_depth=3, subsample=0.7, random_state=0),
    "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
}


def _recall_at(score: Any, fails: Any, false_alarms: float) -> float:
    negatives = np.sort(score[~fails])[::-1]
    return float((score[fails] > negatives[int(false_alarms * len(negatives))]).mean())


def learnt(row: Row) -> bool:
    """Whether a network that failed came half-way from guessing to the target."""
    guessing = {"circles": 0.5, "digits": 0.1, "wine": 0.4}[row.configuration.data]
    return row.accuracy > (guessing + TARGETS[row.configuration.data]) / 2


def mistakes(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """What the test half's errors have in common: activation, initialiser and data set of missed and false alarms."""
    found: dict[str, dict[str, int]] = {}
    for row in quiet(half(rows, "test")):
        for time in ("start", "early"):
            if flagged(row, time) == row.trains:
                kind = "false alarm" if row.trains else "missed, half learnt" if learnt(row) else "missed"
                counts = found.setdefault(f"{row.optimizer} {time} {kind}", {})
                key = f"{row.configuration.data} {row.configuration.act} {row.configuration.init}"
                counts[key] = counts.get(key, 0) + 1
    return {key: dict(sorted(counts.items(), key=lambda item: -item[1])) for key, counts in sorted(found.items())}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """All that follows from the rows; the slow part, `ceiling`, is apart."""
    return {
        "networks": len(rows),
        "configurations": len({row.configuration for row in rows}),
        "trains": sum(row.trains for row in rows),
        "cutoffs": fit(rows),
        "tables": tables(rows),
        "verdicts": verdicts(rows),
        "finished": finished(rows),
        "mistakes": mistakes(rows),
    }
