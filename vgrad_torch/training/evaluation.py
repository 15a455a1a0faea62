"""Loss functions, the scores of the training and the validation part, and the record of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vgrad_torch.tensorboard import tags
from vgrad_torch.training.data import Dataset, batches

LossFunction = Callable[[Tensor, Tensor], Tensor]


def loss_function(classes: int) -> LossFunction:
    """Cross-entropy over the classes' logits; for two classes that of the sigmoid of one logit."""
    if classes > 2:
        return nn.functional.cross_entropy
    return lambda output, y: nn.functional.binary_cross_entropy_with_logits(output[:, 0], y.to(output.dtype))


def constant_loss(data: Dataset) -> float:
    """The loss of the best constant answer: the entropy of the training part's labels."""
    shares = torch.bincount(data.y_train.flatten().long()).double() / len(data.y_train)
    return float(torch.special.entr(shares).sum())


@dataclass(frozen=True, slots=True)
class Score:
    """Mean loss and accuracy (0 to 1) over all samples of a part of the data."""

    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """The scores after an epoch (0: before training). `seconds` is the time of training, without evaluation."""

    number: int
    step: int
    train: Score
    validation: Score
    seconds: float = math.nan
    samples_per_second: float = math.nan


def scores(model: nn.Module, data: Dataset, loss_fn: LossFunction) -> tuple[Score, Score]:
    """Score of the training part and of the validation part."""
    return (
        evaluate(model, data.x_train, data.y_train, loss_fn),
        evaluate(model, data.x_validation, data.y_validation, loss_fn),
    )


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFunction) -> Score:
    """Score of a model on some samples; for two classes a positive logit means class 1.

    The model is in evaluation mode meanwhile: batch norm uses its running statistics and does not change them.
    """
    loss = correct = 0.0
    training = model.training
    model.eval()
    for xs, ys in batches(x, y, 4096):
        output = model(xs)
        predicted = output.argmax(1) if output.shape[1] > 1 else (output[:, 0] > 0).long()
        loss += float(loss_fn(output, ys)) * len(xs)
        correct += int((predicted == ys).sum())
    model.train(training)
    return Score(loss / len(x), correct / len(x))


def epoch_scalars(epoch: Epoch) -> dict[str, float]:
    """The scores of an epoch by their TensorBoard tags."""
    return {
        tags.LOSS_TRAIN: epoch.train.loss,
        tags.LOSS_VALIDATION: epoch.validation.loss,
        tags.ACCURACY_TRAIN: epoch.train.accuracy,
        tags.ACCURACY_VALIDATION: epoch.validation.accuracy,
    }
