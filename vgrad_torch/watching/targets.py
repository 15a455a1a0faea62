"""What the best constant answer to the targets of a training would get: the loss that a network must get below."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

ENTRIES = 1 << 16
"""The largest number of entries of the targets that are kept."""
FEWEST = 50
"""With fewer rows, or fewer than ten for each class, a constant answer would fit the rows too well: it is not known."""

_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_OF_PROBABILITIES = (nn.BCEWithLogitsLoss, nn.BCELoss)
_OF_NUMBERS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


class Targets:
    """Rows of targets that a criterion was called with, evenly thinned out if they become too many.

    A row is what belongs to one answer of the network: a class, or the numbers of a sample.
    """

    def __init__(self, criterion: nn.Module) -> None:
        known = type(criterion) in (*_OF_CLASSES, *_OF_PROBABILITIES, *_OF_NUMBERS)
        self._criterion = copy.deepcopy(criterion) if known and _is_plain(criterion) else None
        self._classes = 0
        self._kept: list[Tensor] = []
        self._stride = 1

    @torch.no_grad()
    def see(self, output: Tensor, target: Tensor) -> None:
        """Keep some rows of a batch."""
        if self._criterion is None:
            return
        if isinstance(self._criterion, _OF_CLASSES):
            classes = output.shape[1 if output.dim() > 1 else 0]
            rows = _classes_last(target, output)
            other = self._classes not in (0, classes)
            self._classes = classes
        else:
            rows = target.flatten(1) if target.dim() > 1 else target.reshape(-1, 1)
            other = False
        other |= bool(self._kept) and self._kept[0].shape[1:] != rows.shape[1:]
        if other or len(rows) == 0 or rows[0].numel() * max(self._classes, 1) > ENTRIES // FEWEST:
            self._criterion = None  # several kinds of targets have no common constant answer; large rows are too few
            return
        self._kept.append(rows[:: self._stride].clone())
        while len(self._kept) > 1 and self._entries() > ENTRIES:
            self._kept, self._stride = [torch.cat(self._kept)[::2].clone()], min(2 * self._stride, 1 << 30)

    def _entries(self) -> int:
        return sum(part.numel() for part in self._kept) * max(self._classes, 1)

    @torch.no_grad()
    def constant_loss(self) -> float:
        """The loss of the best constant answer to these rows; NaN if they are too few or the criterion is not known."""
        if self._criterion is None or not self._kept:
            return math.nan
        rows = self._valid(torch.cat(self._kept))
        if len(rows) < max(FEWEST, 10 * self._classes):
            return math.nan
        return min(self._loss(answer, rows) for answer in self._answers(rows))

    def _answers(self, rows: Tensor) -> list[Tensor]:
        """Constant outputs of the network, one of which is the best."""
        if self._classes:
            counts = rows.sum(0) if rows.dim() > 1 else torch.bincount(rows, minlength=self._classes)
            return [(counts.double() / counts.sum()).clamp_min(1e-12).log()]
        mean = rows.double().mean(0)
        match self._criterion:
            case nn.BCEWithLogitsLoss():
                return [torch.logit(mean, eps=1e-12)]
            case nn.BCELoss():
                return [mean]
        return [mean, rows.double().median(0).values]

    def _valid(self, classes: Tensor) -> Tensor:
        """The rows that count: those of classes without the ones that are ignored."""
        if not self._classes or classes.dim() > 1:
            return classes
        ignored = getattr(self._criterion, "ignore_index", -100)
        return classes[(classes != ignored) & (classes >= 0) & (classes < self._classes)]

    def _loss(self, answer: Tensor, rows: Tensor) -> float:
        assert self._criterion is not None
        outputs = answer.expand(len(rows), -1)
        targets = rows if self._classes and rows.dim() == 1 else rows.to(outputs.dtype)
        return float(self._criterion.double()(outputs, targets).mean())


def _is_plain(criterion: nn.Module) -> bool:
    """Whether the best constant answer is the mean, the median, or the classes' frequencies."""
    weighted = any(getattr(criterion, name, None) is not None for name in ("weight", "pos_weight"))
    return not weighted and criterion.reduction != "sum" and not getattr(criterion, "label_smoothing", 0.0)


def _classes_last(target: Tensor, output: Tensor) -> Tensor:
    """Class numbers [rows], or probabilities [rows, classes]."""
    if not target.is_floating_point():
        return target.reshape(-1)
    if target.dim() < 2:
        return target[None]
    return target.movedim(1, -1).reshape(-1, output.shape[1])
