"""The evidence for a verdict: a few numbers from the snapshots of a run, independent of loss scale and batch size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, starmap
from statistics import median

from vgrad_torch.records import LayerSnapshot, Snapshot
from vgrad_torch.verdict import measures
from vgrad_torch.verdict.nonfinite import first_nonfinite
from vgrad_torch.verdict.outcome import NO_LOSS, Outcome, outcome
from vgrad_torch.verdict.states import norm, small_weight, unused
from vgrad_torch.verdict.waterfall import path, waterfall

WINDOW = 20
"""The number of newest samples that are judged; never more than half of all samples."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Medians over the judged samples. NaN where a number does not exist.

    First and last layer are those of the first and last call that received a gradient. Norms are over all entries of a
    batch, so layers of different widths can be compared: if the weights keep the signal, the norm is the same
    everywhere.

    Attributes:
        step: the step of the newest sample.
        since: the step of the first sample; the same as `step` if there is only one.
        samples: the number of judged samples.
        layers: the number of layer calls with an output gradient, which may be zero.
        first: label of the first layer whose gradient was not zero everywhere.
        last: label of the last one.
        signal: log10 of norm(output gradient of the first layer) / norm(output gradient of the last layer). -2 is a
            hundredth.
        slope: decrease of the signal for each layer on the way back, in log10, fitted to all layers; positive is a
            decrease.
        drive: log10 of the change that the gradient asks of the first weight, relative to that weight, for an error of
            one at each output: norm(gradient) / norm(weight), over the norm of one sample's output gradient at the last
            layer.
        lost: `signal` of the first sample without most of the effect of small weights. Small weights weaken outputs as
            much as gradients, and an optimizer that chooses the size of its steps itself, like Adam, soon enlarges
            them. So three quarters of the outputs' decrease (log10 of RMS(last hidden output) / RMS(first output), if
            negative) are added back.
        residual: RMS of the last layer's output gradient over that of the first sample. For cross-entropy and squared
            losses this is the error, and falls with the loss.
        zeros: the largest share of exact zeros in a layer's output gradient, if the next layer passes a gradient on;
            without the last layer.
        emptiest: label of that layer.
        silent: whether no output of that layer was above zero, so that a relu after it gives nothing.
        shut: label of the last layer on the path whose weight is zero, or began at zero and is still small, so that it
            passes almost no gradient on; or None.
        update: log10 of the first layer's update ratio (change of the weight in one step over the weight).
        largest_step: change of the weights in one step, relative to their size (see `states.relative_step`): the median
            over the layers, of the sample, or of the steps between two samples, where it is largest.
        largest_step_layer: label of the layer that changed most in that step.
        outcome: whether the network learns, by its losses.
        time: the recurrent layer whose gradient vanishes or explodes first through time; None if there is none or the
            loss depends on several time steps.
        chain: whether the layers are fully connected and in a row, like those of the calibration.
        tenth: label of the layer, counted from the loss, where the norm is first below a tenth of the last layer's.
        nonfinite: where NaN or infinity was found first, if it is still there.
        frozen: labels of layers that do not train: no weight requires a gradient, or no optimizer has it.
        folded: number of layers that are not watched because they are not trained.
        cut_off: labels of layers that could train but receive no gradient.
        scaled: False if output gradients are missing everywhere although weights have gradients and outputs were seen.
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
    largest_step: float = math.nan
    largest_step_layer: str = ""
    outcome: Outcome = NO_LOSS
    time: LayerSnapshot | None = None
    chain: bool = True
    tenth: str | None = None
    nonfinite: str | None = None
    frozen: tuple[str, ...] = ()
    folded: int = 0
    cut_off: tuple[str, ...] = ()
    scaled: bool = True

    @property
    def half_depth(self) -> float:
        """The number of layers after which half of the signal is left; infinity if it does not fall."""
        return math.log10(2) / self.slope if self.slope > 0 else math.inf

    @property
    def strength(self) -> float:
        """log10 of `lost` times the fourth root of `drive`, for optimizers that choose the size of their steps.

        They do not need a large gradient. But among networks with the same `lost`, those with a smaller `drive` fail
        more often.
        """
        return self.lost + self.drive / 4  # a quarter: set on the calibration's fitting half


def window(samples: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """The samples that are judged: the newest ones."""
    return samples[-max(1, min(WINDOW, (len(samples) + 1) // 2)) :]


def gather(samples: Sequence[Snapshot], losses: Sequence[float] = (), constant_loss: float = math.nan) -> Evidence:
    """The evidence from at least one sample; `losses` are those of any steps, in order.

    Samples in which a weight that began at zero is still small say little, so the others are judged, if there are any.
    """
    zero = {layer.label for layer in samples[0].layers if layer.weight and not layer.weight.rms}
    open_samples = [sample for sample in samples if not _closed(sample, zero)] or samples
    judged = window(open_samples)
    newest = judged[-1]
    layers, worst = path(newest), measures.emptiest(newest)
    steps = [*map(measures.median_step, samples), *starmap(measures.median_growth, pairwise(samples))]
    largest_step, largest_step_layer = max(steps)
    return Evidence(
        step=newest.step,
        since=samples[0].step,
        samples=len(judged),
        layers=len(measures.with_output_gradient(newest)),
        first=layers[0].label if layers else "",
        last=layers[-1].label if layers else "",
        signal=_median(measures.signal, judged),
        slope=_median(measures.slope, judged),
        drive=_median(measures.drive, judged),
        lost=measures.lost(open_samples[0]),
        residual=_over(_median(measures.residual, judged), measures.residual(samples[0])),
        zeros=_median(measures.zeros, judged),
        emptiest=worst.label if worst else "",
        silent=worst is not None and worst.output is not None and worst.output.max <= 0,
        shut=_closed(newest, zero),
        update=_median(measures.update, judged),
        largest_step=largest_step,
        largest_step_layer=largest_step_layer,
        outcome=outcome(losses, samples[-1].step, constant_loss),
        time=_time(newest),
        chain=_is_chain(newest),
        tenth=_tenth(layers),
        nonfinite=_birthplace(samples) if any(map(first_nonfinite, judged)) else None,
        frozen=tuple(_frozen(newest)),
        folded=newest.folded,
        cut_off=tuple(_cut_off(judged)),
        scaled=bool(measures.with_output_gradient(newest))
        or not any(x.weight_gradient and x.output for x in newest.layers),
    )


def _closed(snapshot: Snapshot, zero: Container[str]) -> str | None:
    """The last layer on the path whose weight is zero, or nearly zero if it is one of those that began at `zero`."""
    for layer in reversed(path(snapshot)):
        if layer.weight and (not layer.weight.rms or (layer.label in zero and layer.weight.rms < small_weight(layer))):
            return layer.label
    return None


def _median(measure: Callable[[Snapshot], float], samples: Iterable[Snapshot]) -> float:
    values = [value for value in map(measure, samples) if not math.isnan(value)]
    return median(values) if values else math.nan


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _time(snapshot: Snapshot) -> LayerSnapshot | None:
    """The recurrent layer with the shortest horizon, or else with the largest growth."""
    known = [(layer, layer.time) for layer in snapshot.layers if layer.time and layer.time.last is not None]
    short = [(layer, time) for layer, time in known if time.hundredth is not None]
    if short:
        return min(short, key=lambda item: (item[1].hundredth or 0) / item[1].steps)[0]
    return max(known, key=lambda item: item[1].growth, default=(None, None))[0]


def _birthplace(samples: Sequence[Snapshot]) -> str | None:
    """Where NaN or infinity was found in the first sample that has any; of several samples also when."""
    for sample in samples:
        if place := first_nonfinite(sample):
            return place if sample is samples[-1] else f"{place}, first at step {sample.step}"
    return None


def _tenth(layers: Sequence[LayerSnapshot]) -> str | None:
    return next(
        (
            layer.label
            for layer in reversed(layers)
            if norm(layer.output_gradient) < 0.1 * norm(layers[-1].output_gradient)
        ),
        None,
    )


def _is_chain(snapshot: Snapshot) -> bool:
    factors = waterfall(snapshot)
    return factors is not None and factors.chain and {layer.kind for layer in path(snapshot)} == {"Linear"}


def _frozen(snapshot: Snapshot) -> Iterator[str]:
    """Layers without a weight that requires a gradient, or that are missing in the optimizer that moves the others."""
    stepped = any(layer.update_rms is not None for layer in snapshot.layers)
    for layer in snapshot.layers:
        outside = stepped and layer.weight_gradient is not None and layer.update_rms is None
        if layer.trainable is False or outside:
            yield layer.label


def _cut_off(samples: Sequence[Snapshot]) -> Iterator[str]:
    """Layers that received no gradient in any of the samples."""
    everywhere = Counter(layer.label for snapshot in samples for layer in snapshot.layers if _without_gradient(layer))
    return (layer.label for layer in samples[-1].layers if everywhere[layer.label] == len(samples))


def _without_gradient(layer: LayerSnapshot) -> bool:
    if layer.trainable is False or layer.weight is None or unused(layer):
        return False
    return layer.output_gradient is None and (layer.weight_gradient is None or not layer.weight_gradient.rms)
