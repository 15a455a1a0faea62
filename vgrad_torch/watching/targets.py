"""What the best constant answer to the targets of a training would get: the loss that a network must get below."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FEWEST = 50
"""With fewer rows of targets, or fewer than ten for each class, the constant answer would fit them too well."""

_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_OF_MARKS = (nn.BCEWithLogitsLoss, nn.BCELoss)


class Targets:
    """Sums over the targets that a criterion was called with; they stay on their device.

    Known are cross-entropy, binary cross-entropy and squared error without weights and label smoothing, as their best
    constant answers are the shares of the classes and the means. A row of targets is what belongs to one answer of the
    network: a class, or the numbers of a sample. Rows of different sizes have no common constant answer.
    """

    def __init__(self, criterion: nn.Module) -> None:
        self._criterion = criterion if _is_known(criterion) else None
        self._rows = torch.zeros(())
        self._sums: Tensor | None = None
        self._squares: Tensor | None = None

    @torch.no_grad()
    def add(self, output: Tensor, target: Tensor) -> None:
        """Count a batch."""
        if self._criterion is None or target.is_complex():
            return
        if isinstance(self._criterion, _OF_CLASSES):
            rows, sums = _counts(output, target, getattr(self._criterion, "ignore_index", -100))
            squares = None
        else:
            numbers = (target.flatten(1) if target.dim() > 1 else target.reshape(-1, 1)).double()
            rows, sums, squares = torch.tensor(len(numbers)), numbers.sum(0), numbers.square().sum(0)
        if self._sums is not None and self._sums.shape != sums.shape:
            self._criterion = None
            return
        self._rows = rows + self._rows.to(rows.device)
        self._sums = sums if self._sums is None else self._sums + sums
        self._squares = squares if self._squares is None or squares is None else self._squares + squares

    def constant_loss(self) -> float:
        """The loss of the best constant answer; NaN if the targets are too few or the criterion is not known."""
        rows = int(self._rows)
        if self._criterion is None or self._sums is None:
            return math.nan
        classes = len(self._sums) if isinstance(self._criterion, _OF_CLASSES) else 0
        if rows < max(FEWEST, 10 * classes):
            return math.nan
        means = self._sums / rows
        if classes:
            return float(torch.special.entr(means).sum())
        if self._squares is None or isinstance(self._criterion, _OF_MARKS):
            return float((torch.special.entr(means) + torch.special.entr(1 - means)).mean())
        variances = (self._squares / rows - means.square()).clamp_min(0)
        return float(variances.mean())


def _is_known(criterion: nn.Module) -> bool:
    if type(criterion) not in (*_OF_CLASSES, *_OF_MARKS, nn.MSELoss):
        return False
    weighted = any(getattr(criterion, name, None) is not None for name in ("weight", "pos_weight"))
    return not weighted and criterion.reduction != "sum" and not getattr(criterion, "label_smoothing", 0.0)


def _counts(output: Tensor, target: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """The number of rows, and of each class; of targets that are probabilities their sums."""
    classes = output.shape[1 if output.dim() > 1 else 0]
    if target.is_floating_point():
        shares = (target.movedim(1, -1) if target.dim() > 1 else target).reshape(-1, classes).double()
        return torch.tensor(len(shares)), shares.sum(0)
    numbers = target.flatten()
    valid = (numbers != ignored) & (numbers >= 0) & (numbers < classes)
    counts = torch.zeros(classes, dtype=torch.float64, device=target.device)
    counts.scatter_add_(0, torch.where(valid, numbers, 0).long(), valid.double())
    return valid.sum(), counts
