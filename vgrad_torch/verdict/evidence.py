"""What a verdict is judged by: a few plain numbers from the snapshots of a run, free of loss scale and batch size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from vgrad_torch.records import LayerSnapshot, Snapshot, Stats
from vgrad_torch.verdict.waterfall import reached, waterfall

WINDOW = 20
"""At most so many of the newest samples are judged, and never more than the newer half of them."""
_ENLARGED = 0.75  # set on the calibration's fitting half, among quarters
_UNDERFLOW = 1e-30  # below a gradient as small as this one, zeros are what float32 cannot hold


@dataclass(frozen=True, slots=True)
class Evidence:
    """The judged samples in numbers, medians over them; NaN where a number could not be had.

    First and last layer are those of the first and the last call that a gradient arrived at. Norms are over all
    entries of a batch, so layers of different widths compare: in a network whose weights keep the signal, the norm is
    the same at every layer.

    Attributes:
        step: the newest sample's.
        since: the first sample's, so the only one's if it is the newest, too.
        samples: how many were judged.
        layers: calls of layers whose output gradient was seen, be it zero.
        first: label of the first one where it was not zero everywhere.
        last: label of the last one.
        signal: log10 of the norm of the first layer's output gradient over the last one's; -2 is a hundredth.
        slope: what the signal loses per layer on its way back, log10, fitted to all layers; positive is a loss.
        drive: log10 of what a gradient asks the first weight to change by, relative to that weight, for an error of one
            at each output: norm of gradient over norm of weight, over the norm of one sample's output gradient at the
            last layer.
        lost: `signal` of the first sample, without most of what too small weights took off it. Such weights weaken the
            outputs on their way up as much as the gradient on its way down, and an optimizer whose steps have a size
            of their own, like Adam, soon enlarges them; so three quarters of the outputs' loss (log10 of the RMS of the
            last hidden layer's output over the first one's, if negative) is taken off again.
        residual: RMS of the last layer's output gradient over what it was in the first sample. For cross-entropy and
            squared losses it is the error, and falls with the loss.
        zeros: the largest share of exact zeros in the output gradient of a layer to which the next one hands something
            down; the last layer aside.
        emptiest: label of that layer.
        silent: whether no output of that layer was above zero, so that a relu behind it gives nothing.
        shut: label of the last layer with a gradient whose weight is zero, so that it hands nothing down; or None.
        update: log10 of the first layer's update ratio, the change of the weight in one step over the weight.
        loss: newest losses over the first ones, if the caller had losses.
        chain: whether they are fully connected layers in a row, which is what the verdict is calibrated on.
        tenth: label of the layer, counted from the loss, at which the norm first was a tenth of the last layer's.
        nonfinite: where NaN or infinity stood.
        frozen: labels of layers that do not train: no weight of them requires a gradient, or no optimizer has it.
        cut_off: labels of layers that could train but no gradient arrives at.
        scaled: False if output gradients are missing everywhere although weights have gradients.
    """

    step: int
    since: int
    samples: int
    layers: int
    first: str = ""
    last: str = ""
    signal: float = math.nan
    slope: float = math.nan
    drive: float = math.nan
    lost: float = math.nan
    residual: float = math.nan
    zeros: float = math.nan
    emptiest: str = ""
    silent: bool = False
    shut: str | None = None
    update: float = math.nan
    loss: float = math.nan
    chain: bool = True
    tenth: str | None = None
    nonfinite: str | None = None
    frozen: tuple[str, ...] = ()
    cut_off: tuple[str, ...] = ()
    scaled: bool = True

    @property
    def half_depth(self) -> float:
        """Layers after which half of the signal is lost; infinity if it does not fall."""
        return math.log10(2) / self.slope if self.slope > 0 else math.inf

    @property
    def strength(self) -> float:
        """log10 of `lost` times the fourth root of `drive`: the decades of the one, and a quarter of the other's.

        An optimizer whose steps have a size of their own does not need the gradient to be large. But among networks
        that lost as much, those whose gradient asks for less fail more often.
        """
        return self.lost + self.drive / 4  # a quarter: set on the calibration's fitting half


def window(samples: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """The newest samples, which are judged."""
    return samples[-max(1, min(WINDOW, (len(samples) + 1) // 2)) :]


def norm(stats: Stats | None) -> float:
    """Euclidean norm over all entries; NaN if there are none."""
    return math.nan if stats is None else stats.rms * math.sqrt(stats.count)


def log10(value: float) -> float:
    """The logarithm; minus infinity of zero."""
    return math.log10(value) if value > 0 else -math.inf if value == 0 else math.nan


def signal(snapshot: Snapshot) -> float:
    """log10 of the norm of the first layer's output gradient over the last one's.

    Minus infinity where the gradient fell so far that float32 holds only zeros for the first layer.
    """
    layers = reached(snapshot)
    if len(layers) < 2:
        return math.nan
    return -math.inf if _underflows(snapshot) else log10(_norm(layers[0]) / _norm(layers[-1]))


def slope(snapshot: Snapshot) -> float:
    """Least-squares slope of log10 of the norms over the layers' order."""
    logs = [log10(_norm(layer)) for layer in reached(snapshot)]
    if len(logs) < 2:
        return math.nan
    centre, mean = (len(logs) - 1) / 2, sum(logs) / len(logs)
    return sum((i - centre) * (y - mean) for i, y in enumerate(logs)) / sum((i - centre) ** 2 for i in range(len(logs)))


def drive(snapshot: Snapshot) -> float:
    """See `Evidence.drive`. The batch's size is that of the last layer's output over its units."""
    layers = reached(snapshot)
    trained = [layer for layer in layers if layer.weight_gradient is not None]
    if not trained or layers[-1].output_gradient is None:
        return math.nan
    units = layers[-1].size.rpartition("x")[2]
    batch = layers[-1].output_gradient.count / int(units) if units.isdigit() else math.nan
    error = _norm(layers[-1]) * math.sqrt(batch)  # each sample's gradient is 1 / batch of its own
    return log10(_over(norm(trained[0].weight_gradient), norm(trained[0].weight) * error))


def lost(snapshot: Snapshot) -> float:
    """See `Evidence.lost`."""
    outputs = [layer.output.rms for layer in reached(snapshot)[:-1] if layer.output is not None]
    forward = log10(outputs[-1] / outputs[0]) if outputs and outputs[0] else math.nan
    return signal(snapshot) - _ENLARGED * min(forward, 0.0)


def zeros(snapshot: Snapshot) -> float:
    """See `Evidence.zeros`; 0 where the gradient is too small for float32."""
    layer = emptiest(snapshot)
    return 0.0 if _underflows(snapshot) else _empty_share(layer) if layer else math.nan


def emptiest(snapshot: Snapshot) -> LayerSnapshot | None:
    """The layer with the largest share of exact zeros in its output gradient, see `Evidence.zeros`."""
    layers = [layer for layer in snapshot.layers if layer.output_gradient is not None]
    fed = [layer for layer, above in pairwise(layers) if _hands_down(above)]
    return max(fed, key=_empty_share, default=None)


def _empty_share(layer: LayerSnapshot) -> float:
    return layer.output_gradient.zero_fraction if layer.output_gradient else 0.0


def _hands_down(layer: LayerSnapshot) -> bool:
    return layer.input_gradient is None or layer.input_gradient.zero_fraction < 1.0


def update(snapshot: Snapshot) -> float:
    """log10 of the update ratio of the first layer that has one."""
    ratios = [layer.update_ratio for layer in snapshot.layers if layer.update_ratio is not None]
    return log10(ratios[0]) if ratios else math.nan


def residual(snapshot: Snapshot) -> float:
    """RMS of the last layer's output gradient."""
    found = _with_output_gradient(snapshot)
    return found[-1].rms if found else math.nan


def gather(samples: Sequence[Snapshot], losses: Sequence[float] = ()) -> Evidence:
    """The evidence of a run's samples, at least one; `losses` are of any steps, in order."""
    judged = window(samples)
    newest = judged[-1]
    layers, worst = reached(newest), emptiest(newest)
    return Evidence(
        step=newest.step,
        since=samples[0].step,
        samples=len(judged),
        layers=len(_with_output_gradient(newest)),
        first=layers[0].label if layers else "",
        last=layers[-1].label if layers else "",
        signal=_median(signal, judged),
        slope=_median(slope, judged),
        drive=_median(drive, judged),
        lost=lost(samples[0]),
        residual=_over(_median(residual, judged), residual(samples[0])),
        zeros=_median(zeros, judged),
        emptiest=worst.label if worst else "",
        silent=worst is not None and worst.output is not None and worst.output.max <= 0,
        shut=next((layer.label for layer in reversed(layers) if layer.weight and not layer.weight.rms), None),
        update=_median(update, judged),
        loss=_loss(losses),
        chain=_is_chain(newest),
        tenth=_tenth(layers),
        nonfinite=next((where for s in judged if (where := first_nonfinite(s))), None),
        frozen=tuple(_frozen(newest)),
        cut_off=tuple(_cut_off(judged)),
        scaled=bool(_with_output_gradient(newest)) or not any(layer.weight_gradient for layer in newest.layers),
    )


def first_nonfinite(snapshot: Snapshot) -> str | None:
    """Where NaN or infinity stood first in a step, in the order it is computed; None if there is none.

    Weights come first (an earlier step made them), then outputs in forward order, then the gradients of each layer from
    the last to the first.
    """
    for layer in snapshot.layers:
        if words := _bad(layer, "weight", f"the weight of {layer.label} as the step began"):
            return words
    for layer in snapshot.layers:
        if words := _bad(layer, "output", f"the output of {layer.label}, in the forward pass"):
            return words
    for layer in reversed(snapshot.layers):
        for quantity in ("output_gradient", "weight_gradient", "input_gradient"):
            name = quantity.replace("_", " ")
            if words := _bad(layer, quantity, f"the {name} of {layer.label}, in the backward pass"):
                return words
    return None


def _bad(layer: LayerSnapshot, quantity: str, words: str) -> str | None:
    stats: Stats | None = getattr(layer, quantity)
    return f"{words} ({stats.nonfinite} of {stats.count} values)" if stats is not None and stats.nonfinite else None


def _with_output_gradient(snapshot: Snapshot) -> list[Stats]:
    return [layer.output_gradient for layer in snapshot.layers if layer.output_gradient is not None]


def _norm(layer: LayerSnapshot) -> float:
    return norm(layer.output_gradient)


def _median(measure: Callable[[Snapshot], float], samples: Iterable[Snapshot]) -> float:
    found = [value for value in map(measure, samples) if not math.isnan(value)]
    return median(found) if found else math.nan


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _loss(losses: Sequence[float]) -> float:
    """The newest fifth (at most 20) over the first few, medians; NaN where one is not positive and finite."""
    if not all(0 < loss < math.inf for loss in losses):
        return math.nan
    count = max(1, min(WINDOW, len(losses) // 5))
    return _over(median(losses[-count:]), median(losses[:count])) if len(losses) > 1 else math.nan


def _underflows(snapshot: Snapshot) -> bool:
    layers = reached(snapshot)
    below = snapshot.layers[: snapshot.layers.index(layers[0])] if layers else ()
    vanished = any(layer.output_gradient is not None for layer in below)
    return vanished and layers[0].output_gradient is not None and layers[0].output_gradient.rms < _UNDERFLOW


def _tenth(layers: Sequence[LayerSnapshot]) -> str | None:
    return next((layer.label for layer in reversed(layers) if _norm(layer) < 0.1 * _norm(layers[-1])), None)


def _is_chain(snapshot: Snapshot) -> bool:
    found = waterfall(snapshot)
    return found is not None and found.chain and {layer.kind for layer in reached(snapshot)} == {"Linear"}


def _frozen(snapshot: Snapshot) -> Iterator[str]:
    """Layers no weight of which requires a gradient, or that the optimizer which moves others does not have."""
    stepped = any(layer.update_rms is not None for layer in snapshot.layers)
    for layer in snapshot.layers:
        outside = stepped and layer.weight_gradient is not None and layer.update_rms is None
        if layer.trainable is False or outside:
            yield layer.label


def _cut_off(samples: Sequence[Snapshot]) -> Iterator[str]:
    """Layers that no gradient arrived at in any of the samples."""
    everywhere = Counter(layer.label for snapshot in samples for layer in snapshot.layers if _without_gradient(layer))
    return (layer.label for layer in samples[-1].layers if everywhere[layer.label] == len(samples))


def _without_gradient(layer: LayerSnapshot) -> bool:
    if layer.trainable is False or layer.weight is None:
        return False
    return layer.output_gradient is None and (layer.weight_gradient is None or not layer.weight_gradient.rms)
