"""The evidence for a verdict: a few numbers from the snapshots of a run, independent of loss scale and batch size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from vgrad_torch.records import LayerSnapshot, Snapshot, Stats
from vgrad_torch.verdict.nonfinite import first_nonfinite
from vgrad_torch.verdict.waterfall import path, waterfall

WINDOW = 20
"""The number of newest samples that are judged; never more than half of all samples."""
_ENLARGED = 0.75  # set on the calibration's fitting half, among quarters
_UNDERFLOW = 1e-30  # a gradient below this is surrounded by zeros that float32 cannot hold


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
        shut: label of the last layer with a gradient whose weight is zero, so that it passes no gradient on; or None.
        update: log10 of the first layer's update ratio (change of the weight in one step over the weight).
        loss: the newest losses over the first ones, if losses are known.
        chain: whether the layers are fully connected and in a row, like those of the calibration.
        tenth: label of the layer, counted from the loss, where the norm is first below a tenth of the last layer's.
        nonfinite: where NaN or infinity was found.
        frozen: labels of layers that do not train: no weight requires a gradient, or no optimizer has it.
        folded: number of layers that are not watched because they are not trained.
        cut_off: labels of layers that could train but receive no gradient.
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


def norm(stats: Stats | None) -> float:
    """Euclidean norm over all entries; NaN if there are none."""
    return math.nan if stats is None else stats.rms * math.sqrt(stats.count)


def log10(value: float) -> float:
    """The logarithm; minus infinity of zero."""
    return math.log10(value) if value > 0 else -math.inf if value == 0 else math.nan


def signal(snapshot: Snapshot) -> float:
    """log10 of the norm of the first layer's output gradient over the last one's.

    Minus infinity if the gradient is so small that float32 holds only zeros for the first layer.
    """
    layers = path(snapshot)
    if len(layers) < 2:
        return math.nan
    return -math.inf if _underflows(snapshot) else log10(_norm(layers[0]) / _norm(layers[-1]))


def slope(snapshot: Snapshot) -> float:
    """Least-squares slope of log10 of the norms over the layers' order."""
    logs = [log10(_norm(layer)) for layer in path(snapshot)]
    if len(logs) < 2:
        return math.nan
    centre, mean = (len(logs) - 1) / 2, sum(logs) / len(logs)
    return sum((i - centre) * (y - mean) for i, y in enumerate(logs)) / sum((i - centre) ** 2 for i in range(len(logs)))


def drive(snapshot: Snapshot) -> float:
    """See `Evidence.drive`. The batch size is the size of the last layer's output divided by its units."""
    layers = path(snapshot)
    trained = [layer for layer in layers if layer.weight_gradient is not None]
    if not trained or layers[-1].output_gradient is None:
        return math.nan
    units = units_of(layers[-1].size)
    batch = layers[-1].output_gradient.count / units if units else math.nan
    error = _norm(layers[-1]) * math.sqrt(batch)  # the loss is a mean: a sample's gradient is divided by the batch size
    return log10(_over(norm(trained[0].weight_gradient), norm(trained[0].weight) * error))


def units_of(size: str) -> int:
    """The number of outputs in a layer's size, 0 if it has none.

    >>> units_of("784x512"), units_of("64x128 3x3"), units_of("")
    (512, 128, 0)
    """
    return int(size.partition(" ")[0].rpartition("x")[2] or 0)


def lost(snapshot: Snapshot) -> float:
    """See `Evidence.lost`."""
    outputs = [layer.output.rms for layer in path(snapshot)[:-1] if layer.output is not None]
    forward = log10(outputs[-1] / outputs[0]) if outputs and outputs[0] else math.nan
    return signal(snapshot) - _ENLARGED * min(forward, 0.0)


def zeros(snapshot: Snapshot) -> float:
    """See `Evidence.zeros`; 0 if the gradient is too small for float32."""
    layer = emptiest(snapshot)
    return 0.0 if _underflows(snapshot) else _empty_share(layer) if layer else math.nan


def emptiest(snapshot: Snapshot) -> LayerSnapshot | None:
    """The layer with the largest share of exact zeros in its output gradient, see `Evidence.zeros`."""
    layers = [layer for layer in snapshot.layers if layer.output_gradient is not None]
    fed = [layer for layer, above in pairwise(layers) if _passes_gradient_on(above)]
    return max(fed, key=_empty_share, default=None)


def _empty_share(layer: LayerSnapshot) -> float:
    return layer.output_gradient.zero_fraction if layer.output_gradient else 0.0


def _passes_gradient_on(layer: LayerSnapshot) -> bool:
    return layer.input_gradient is None or layer.input_gradient.zero_fraction < 1.0


def update(snapshot: Snapshot) -> float:
    """log10 of the update ratio of the first layer that has one."""
    ratios = [layer.update_ratio for layer in snapshot.layers if layer.update_ratio is not None]
    return log10(ratios[0]) if ratios else math.nan


def residual(snapshot: Snapshot) -> float:
    """RMS of the last layer's output gradient."""
    gradients = _with_output_gradient(snapshot)
    return gradients[-1].rms if gradients else math.nan


def gather(samples: Sequence[Snapshot], losses: Sequence[float] = ()) -> Evidence:
    """The evidence from at least one sample; `losses` are those of any steps, in order."""
    judged = window(samples)
    newest = judged[-1]
    layers, worst = path(newest), emptiest(newest)
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
        nonfinite=next((place for s in judged if (place := first_nonfinite(s))), None),
        frozen=tuple(_frozen(newest)),
        folded=newest.folded,
        cut_off=tuple(_cut_off(judged)),
        scaled=bool(_with_output_gradient(newest)) or not any(layer.weight_gradient for layer in newest.layers),
    )


def _with_output_gradient(snapshot: Snapshot) -> list[Stats]:
    return [layer.output_gradient for layer in snapshot.layers if layer.output_gradient is not None]


def _norm(layer: LayerSnapshot) -> float:
    return norm(layer.output_gradient)


def _median(measure: Callable[[Snapshot], float], samples: Iterable[Snapshot]) -> float:
    values = [value for value in map(measure, samples) if not math.isnan(value)]
    return median(values) if values else math.nan


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _loss(losses: Sequence[float]) -> float:
    """Median of the newest fifth (at most 20) over that of as many first losses; NaN if any is not in (0, inf)."""
    if not all(0 < loss < math.inf for loss in losses):
        return math.nan
    count = max(1, min(WINDOW, len(losses) // 5))
    return _over(median(losses[-count:]), median(losses[:count])) if len(losses) > 1 else math.nan


def _underflows(snapshot: Snapshot) -> bool:
    layers = path(snapshot)
    below = snapshot.layers[: snapshot.layers.index(layers[0])] if layers else ()
    vanished = any(layer.output_gradient is not None for layer in below)
    return vanished and layers[0].output_gradient is not None and layers[0].output_gradient.rms < _UNDERFLOW


def _tenth(layers: Sequence[LayerSnapshot]) -> str | None:
    return next((layer.label for layer in reversed(layers) if _norm(layer) < 0.1 * _norm(layers[-1])), None)


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
    if layer.trainable is False or layer.weight is None:
        return False
    return layer.output_gradient is None and (layer.weight_gradient is None or not layer.weight_gradient.rms)
