"""Finding the layer in which the first NaN or infinity appears."""

from __future__ import annotations

from torch import Tensor, nn

from vgrad_torch.records import Snapshot
from vgrad_torch.training.evaluation import LossFunction
from vgrad_torch.verdict.nonfinite import first_nonfinite
from vgrad_torch.watching.monitor import Monitor
from vgrad_torch.watching.sample import Sample
from vgrad_torch.watching.selection import Selection


class NonFiniteError(ArithmeticError):
    """NaN or infinity ended the training. The message says at which step and in which layer it was first."""


def find_nonfinite(model: nn.Module, loss_fn: LossFunction, x: Tensor, y: Tensor, monitor: Monitor) -> str:
    """Repeat the forward pass of the step whose loss was not finite, and say where the first such value is."""
    sample = Sample(Selection(monitor.layers), histograms=False)
    sample.attach()
    try:
        loss = loss_fn(model(x), y)
        sample.read_parameters()
    finally:
        sample.detach()
    snapshot = sample.snapshot(monitor.step)
    place = first_nonfinite(snapshot)
    first = (
        f"the first non-finite value is in {place}" if place else f"only the loss is not finite, {_largest(snapshot)}"
    )
    return f"the loss became {float(loss.detach()):g} at step {snapshot.step}: {first}"


def _largest(snapshot: Snapshot) -> str:
    output = snapshot.layers[-1].output
    size = f" of up to {max(abs(output.min), abs(output.max)):.2g}" if output else ""
    return f"from finite outputs{size}"
