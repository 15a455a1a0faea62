"""Many networks of one shape trained side by side: each member has its own weights, optimizer and learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

QUANTITIES = ("weight", "weight_gradient", "output", "output_gradient")
NUMBERS = ("zeros", "nonfinite", "mean", "std", "mean_abs")

Activation = Callable[[Tensor], Tensor]
Rule = Callable[["Block", Tensor], Tensor]
"""An optimizer's direction [members, parameters] from the gradient; the step is minus the learning rate times it."""


class Block:
    """The members that one optimizer trains: their learning rates and what the optimizer remembers, [members, ...]."""

    def __init__(self, optimizer: str, rates: Tensor, parameters: int) -> None:
        self.optimizer = optimizer
        self.rates = rates
        self.steps = 0
        self.first = torch.zeros(len(rates), parameters)
        self.second = torch.zeros(len(rates), parameters)

    def update(self, parameters: Tensor, gradients: Tensor) -> None:
        """One step of every member, in place."""
        self.steps += 1
        parameters.addcmul_(RULES[self.optimizer](self, gradients), self.rates[:, None], value=-1)

    def keep(self, members: Tensor) -> None:
        """Forget the other members."""
        self.rates, self.first, self.second = self.rates[members], self.first[members], self.second[members]


def _sgd(block: Block, gradients: Tensor) -> Tensor:
    """torch.optim.SGD(momentum=0.9)."""
    return block.first.mul_(0.9).add_(gradients)


def _adam(block: Block, gradients: Tensor) -> Tensor:
    """torch.optim.Adam with torch's defaults."""
    block.first.lerp_(gradients, 0.1)
    block.second.mul_(0.999).addcmul_(gradients, gradients, value=0.001)
    deviation = (block.second / (1 - 0.999**block.steps)).sqrt_().add_(1e-8)
    return block.first.div(1 - 0.9**block.steps).div_(deviation)


def _rmsprop(block: Block, gradients: Tensor) -> Tensor:
    """torch.optim.RMSprop with torch's defaults."""
    block.second.mul_(0.99).addcmul_(gradients, gradients, value=0.01)
    return gradients / block.second.sqrt().add_(1e-8)


RULES: dict[str, Rule] = {"sgd": _sgd, "adam": _adam, "rmsprop": _rmsprop}


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What `watch` would measure of each member at one step: `numbers` is [members, layers, quantities, NUMBERS].

    `updates` is the RMS of the weight's change, [members, layers]; `loss` that of the batch, [members].
    """

    numbers: Tensor
    updates: Tensor
    loss: Tensor


class Ensemble:
    """The stack. A member's weights lie in one row of `flat`, layer after layer; `members` are those still trained."""

    def __init__(self, models: Sequence[nn.Sequential], blocks: Sequence[tuple[str, Sequence[float]]]) -> None:
        """`blocks` names an optimizer and its members' learning rates, in the order of the models."""
        linears = [module for module in models[0] if isinstance(module, nn.Linear)]
        self.activation: Activation = next(module for module in models[0] if not isinstance(module, nn.Linear))
        self.widths = [linears[0].in_features, *(linear.out_features for linear in linears)]
        self.flat = torch.stack([nn.utils.parameters_to_vector(model.parameters()).detach() for model in models])
        self.blocks = [Block(name, torch.tensor(rates), self.flat.shape[1]) for name, rates in blocks]
        self.members = torch.arange(len(models))
        self._view()

    def _view(self) -> None:
        """Each weight [members, out, in] and bias [members, 1, out] as a leaf over the rows of `flat`."""
        self.parameters: list[Tensor] = []
        start = 0
        for fan_in, fan_out in pairwise(self.widths):
            for shape in ((fan_out, fan_in), (1, fan_out)):
                size = shape[0] * shape[1]
                part = self.flat[:, start : start + size].view(-1, *shape)
                self.parameters.append(part.detach().requires_grad_())
                start += size

    def keep(self, kept: Tensor) -> None:
        """Go on with some members only; `kept` is a mask over `members`."""
        start = 0
        for block in self.blocks:
            end = start + len(block.rates)
            block.keep(kept[start:end])
            start = end
        self.members, self.flat = self.members[kept], self.flat[kept]
        self._view()

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Each layer's output [members, batch, out] for inputs [batch, in] that all members share."""
        outputs: list[Tensor] = []
        h = x.expand(len(self.members), *x.shape)
        for weight, bias in zip(self.parameters[::2], self.parameters[1::2], strict=True):
            outputs.append(torch.baddbmm(bias, h, weight.mT))
            h = self.activation(outputs[-1])
        return outputs

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step of every member on its own mean loss."""
        total = losses(self.outputs(x)[-1], y).sum()
        self._update(torch.autograd.grad(total, self.parameters))

    def _update(self, gradients: Sequence[Tensor]) -> None:
        row = torch.cat([gradient.flatten(1) for gradient in gradients], 1)
        start = 0
        for block in self.blocks:
            end = start + len(block.rates)
            block.update(self.flat[start:end], row[start:end])
            start = end

    def looked_step(self, x: Tensor, y: Tensor) -> Look:
        """A step whose numbers are kept."""
        outputs = self.outputs(x)
        loss = losses(outputs[-1], y)
        found = torch.autograd.grad(loss.sum(), [*self.parameters, *outputs])
        gradients, deltas = found[: len(self.parameters)], found[len(self.parameters) :]
        before = [weight.detach().clone() for weight in self.parameters[::2]]
        tensors = zip(before, gradients[::2], outputs, deltas, strict=True)
        numbers = torch.stack([torch.stack([_numbers(t.detach()) for t in layer], 1) for layer in tensors], 1)
        self._update(gradients)
        after = [weight.detach() for weight in self.parameters[::2]]
        updates = [(b.double() - a.double()).square().mean((1, 2)).sqrt() for a, b in zip(before, after, strict=True)]
        return Look(numbers, torch.stack(updates, 1), loss.detach())

    @torch.no_grad()
    def accuracies(self, x: Tensor, y: Tensor) -> Tensor:
        """Share of right answers of each member."""
        logits = self.outputs(x)[-1]
        guess = logits.argmax(2) if logits.shape[2] > 1 else (logits[:, :, 0] > 0).long()
        return (guess == y).double().mean(1)


def losses(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each member, [members]; for one logit that of its sigmoid."""
    members, batch, classes = logits.shape
    if classes == 1:
        target = y.to(logits.dtype).expand(members, batch)
        return functional.binary_cross_entropy_with_logits(logits[:, :, 0], target, reduction="none").mean(1)
    flat = functional.cross_entropy(logits.flatten(0, 1), y.repeat(members), reduction="none")
    return flat.view(members, batch).mean(1)


def _numbers(tensor: Tensor) -> Tensor:
    """NUMBERS of each member, [members, 5]; where an entry is not finite, the means and std are NaN."""
    x = tensor.flatten(1).double()
    std, mean = torch.std_mean(x, 1, correction=0)
    return torch.stack([(x == 0).sum(1), (~x.isfinite()).sum(1), mean, std, x.abs().mean(1)], 1)
