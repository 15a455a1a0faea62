"""What the best constant answer to the targets of a training would get: the loss that a network must get below."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

ENTRIES = 1 << 16
"""The largest number of entries of the targets that are kept."""

_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_OF_PROBABILITIES = (nn.BCEWithLogitsLoss, nn.BCELoss)
_OF_NUMBERS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


class Targets:
    """Rows of targets that a criterion was called with, evenly thinned out if they become too many.

    A row is what belongs to one answer of the network: a class, or the numbers of a sample.
    """

    def __init__(self, criterion: nn.Module) -> None:
        known = type(criterion) in (*_OF_CLASSES, *_OF_PROBABILITIES, *_OF_NUMBERS)
        self._criterion = copy.deepcopy(criterion) if known and criterion.reduction != "sum" else None
        self._classes = 0
        self._kept: list[Tensor] = []
        self._stride = 1

    @torch.no_grad()
    def see(self, output: Tensor, target: Tensor) -> None:
        """Keep some rows of a batch."""
        if self._criterion is None:
            return
        if isinstance(self._criterion, _OF_CLASSES):
            self._classes = output.shape[1 if output.dim() > 1 else 0]
            rows = _classes_last(target, output)
        else:
            rows = target.reshape(len(target), -1) if target.dim() else target.reshape(1, 1)
        if self._kept and self._kept[0].shape[1:] != rows.shape[1:]:
            self._kept.clear()  # samples of another shape have another constant answer
        self._kept.append(rows[:: self._stride].clone())
        while len(self._kept) > 1 and sum(part.numel() for part in self._kept) > ENTRIES:
            self._kept, self._stride = [torch.cat(self._kept)[::2].clone()], 2 * self._stride

    @torch.no_grad()
    def constant_loss(self) -> float:
        """The loss of the best constant answer to these rows; NaN without any, or if the criterion is not known.

        With weights of classes or samples, the answer is the best one without them.
        """
        if self._criterion is None or not self._kept:
            return math.nan
        rows = torch.cat(self._kept)
        return min(self._loss(answer, rows) for answer in self._answers(rows))

    def _answers(self, rows: Tensor) -> list[Tensor]:
        """Constant outputs of the network, one of which is the best."""
        if self._classes:
            counts = rows.sum(0) if rows.dim() > 1 else torch.bincount(self._valid(rows), minlength=self._classes)
            return [(counts.double() / counts.sum()).clamp_min(1e-12).log()]
        mean = rows.double().mean(0)
        match self._criterion:
            case nn.BCEWithLogitsLoss():
                return [torch.logit(mean, eps=1e-12)]
            case nn.BCELoss():
                return [mean]
        return [mean, rows.double().median(0).values]

    def _valid(self, classes: Tensor) -> Tensor:
        """The classes that count."""
        ignored = getattr(self._criterion, "ignore_index", -100)
        return classes[(classes != ignored) & (classes >= 0) & (classes < self._classes)]

    def _loss(self, answer: Tensor, rows: Tensor) -> float:
        assert self._criterion is not None
        outputs = answer.expand(len(rows), -1)
        targets = rows if self._classes and rows.dim() == 1 else rows.to(outputs.dtype)
        return float(self._criterion.double()(outputs, targets).mean())


def _classes_last(target: Tensor, output: Tensor) -> Tensor:
    """Class numbers [rows], or probabilities [rows, classes]."""
    if not target.is_floating_point():
        return target.reshape(-1)
    if target.dim() < 2:
        return target[None]
    return target.movedim(1, -1).reshape(-1, output.shape[1])
