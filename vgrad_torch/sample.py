"""One look at a model: a forward and a backward pass, the gradients before the optimizer's step, the step itself."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vgrad_torch import hooks, stats
from vgrad_torch.records import LayerSnapshot, Snapshot

Key = tuple[str, int]
"""A layer's name and which call of it, from 1; call 0 stands for what belongs to the layer, not to a call."""
Seen = dict[Key, dict[str, list[stats.Reduction]]]

_PROBE = 1 << 16  # weights of a layer whose change is measured; of a larger layer, this many evenly spread ones


class Sample:
    """Collects what passes, reduced where it lies; `snapshot` brings the numbers home in one transfer.

    What earlier passes left is dropped when a backward pass begins and no watched weight has a gradient: the gradients
    were cleared since, so those passes do not belong to the coming step (that of another optimizer, say, or one that a
    gradient scaler skipped). Passes of one step, micro-batches, are pooled.

    `scale` gives the factor by which a gradient scaler multiplied the loss, as a tensor on a device, or None. `trained`
    holds the ids of the parameters whose update is measured; None is all that have a gradient.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        histograms: bool = True,
        scale: Callable[[torch.device], Tensor] | None = None,
        trained: Container[int] | None = None,
    ) -> None:
        self.histograms = histograms
        self.seconds = 0.0
        """Time spent looking so far, on the host."""
        self._layers = layers
        self._scale = scale
        self._trained = trained
        self._passes: list[Seen] = [{}]
        self._parameters: Seen = {}
        self._before: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._updates: dict[str, Tensor] = {}
        self._hooks = hooks.Hooks(layers, self)

    def attach(self) -> Sample:
        """Set the hooks; from now on what passes is seen."""
        self._hooks.attach()
        return self

    def detach(self) -> None:
        """Remove the hooks."""
        self._hooks.detach()

    def forget_activation_gradients(self) -> None:
        """Drop output and input gradients, whose scale turned out to be unknown."""
        for entry in (entry for part in self._passes for entry in part.values()):
            entry.pop("output_gradient", None)
            entry.pop("input_gradient", None)

    @property
    def saw_a_forward_pass(self) -> bool:
        """Whether any watched layer was called."""
        return any(self._passes)

    @property
    def read(self) -> bool:
        """Whether the parameters were read."""
        return bool(self._parameters)

    def new_pass(self) -> None:
        """Keep what follows apart from what was seen before."""
        self._passes.append({})

    def new_backward(self) -> None:
        """Drop the earlier passes if their gradients were cleared."""
        weights = [w for layer in self._layers.values() for w in _weights(layer)]
        if weights and all(w.grad is None for w in weights):
            del self._passes[:-1]

    def see(self, name: str, call: int, quantity: str, tensor: Tensor) -> None:
        """Reduce a tensor that passes; a gradient without the factor of the gradient scaler."""
        start = time.perf_counter()
        if self._scale is not None and quantity.endswith("gradient"):
            tensor = tensor.float() / self._scale(tensor.device)
        entry = self._passes[-1].setdefault((name, call), {})
        reductions = entry.setdefault(quantity, [])
        reductions.append(stats.reduce(tensor, histogram=self.histograms))
        if len(reductions) > 1:
            stats.pool_histograms(reductions)
        self.seconds += time.perf_counter() - start

    def read_parameters(self, scale: Tensor | None = None) -> None:
        """Reduce weights and weight gradients (over `scale`, if given), and keep what the update is measured by."""
        start = time.perf_counter()
        with torch.no_grad():
            for name, layer in self._layers.items():
                self._read_layer(name, list(_weights(layer)), scale)
        self.seconds += time.perf_counter() - start

    def _read_layer(self, name: str, weights: list[nn.Parameter], scale: Tensor | None) -> None:
        gradients = [w.grad if scale is None else w.grad.float() / scale for w in weights if w.grad is not None]
        self._parameters[name, 0] = {
            "weight": [stats.reduce(w, histogram=self.histograms) for w in weights],
            "weight_gradient": [stats.reduce(g, histogram=self.histograms) for g in gradients],
        }
        self._before[name] = [(w, _probe(w).clone()) for w in weights if self._is_stepped(w)]

    def _is_stepped(self, weight: nn.Parameter) -> bool:
        return weight.grad is not None and (self._trained is None or id(weight) in self._trained)

    def read_update(self) -> None:
        """Measure what the optimizer's step changed; call it after the step."""
        start = time.perf_counter()
        with torch.no_grad():
            for name, before in self._before.items():
                changes = [(_probe(w) - old).float() for w, old in before]
                if changes:
                    self._updates[name] = stats.rms(changes[0] if len(changes) == 1 else torch.cat(changes))
        self._before.clear()
        self.seconds += time.perf_counter() - start

    def snapshot(self, step: int) -> Snapshot:
        """Everything seen, as plain numbers, in forward order."""
        start = time.perf_counter()
        seen = [*self._passes, self._parameters]
        flat = [
            (key, quantity, r) for part in seen for key, e in part.items() for quantity, rs in e.items() for r in rs
        ]
        numbers, updates = stats.fetch([r for _, _, r in flat], list(self._updates.values()))
        found: dict[Key, dict[str, Any]] = {}
        for (key, quantity, _), value in zip(flat, numbers, strict=True):
            merged = found.setdefault(key, {})
            merged[quantity] = merged[quantity] + value if quantity in merged else value
        layers = self._assemble(_with_backward(found), dict(zip(self._updates, updates, strict=True)))
        self.seconds += time.perf_counter() - start
        return Snapshot(step, tuple(_with_activation_gains(list(layers))), time.time())

    def _assemble(
        self, found: Mapping[Key, Mapping[str, Any]], updates: Mapping[str, float]
    ) -> Iterator[LayerSnapshot]:
        calls = [key for key in found if key[1] > 0]
        if self._hooks.recomputed:  # then they were seen in the order of the backward pass
            calls.sort(key=lambda key: (key[1], self._hooks.order[key[0]]))
        numbers: dict[str, int] = {}
        for name, call in _with_uncalled(calls, self._layers):
            layer = self._layers[name]
            number = numbers.setdefault(name, len(numbers) + 1)
            seen = {**found.get((name, 0), {}), **found.get((name, call), {})}
            yield LayerSnapshot(
                number, name, type(layer).__name__, _size(layer), call, update_rms=updates.get(name), **seen
            )


def _with_backward(found: dict[Key, dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """Without the calls that no backward pass came to, of a layer with others that it did, counted anew.

    A validation pass that was not told `no_grad` is such a call.
    """
    learning = {name for (name, call), seen in found.items() if call and "output_gradient" in seen}
    kept: dict[Key, dict[str, Any]] = {}
    calls: Counter[str] = Counter()
    for (name, call), seen in found.items():
        if call and name in learning:
            if "output_gradient" not in seen:
                continue
            calls[name] += 1
            call = calls[name]
        kept[name, call] = seen
    return kept


def _with_uncalled(calls: list[Key], names: Mapping[str, nn.Module]) -> list[Key]:
    """The calls in their order; a layer that was not called follows its neighbour in the model."""
    order = list(calls)
    called = {name for name, _ in order}
    neighbour: str | None = None
    for name in names:
        if name not in called:
            place = max((i for i, key in enumerate(order) if key[0] == neighbour), default=-1)
            order.insert(place + 1, (name, 1))
        neighbour = name
    return order


def _with_activation_gains(layers: list[LayerSnapshot]) -> Iterator[LayerSnapshot]:
    """RMS(output gradient) of a layer over RMS(input gradient) of the one above it."""
    for layer, above in zip(layers, [*layers[1:], None], strict=True):
        handed_down = above.input_gradient.rms if above and above.input_gradient else 0.0
        gain = layer.output_gradient.rms / handed_down if layer.output_gradient and handed_down else None
        yield replace(layer, activation_gain=gain)


def _weights(layer: nn.Module) -> Iterator[nn.Parameter]:
    """A layer's own weight matrices (a recurrent layer has several); for a layer that has none, its vectors.

    A weight that is parametrized (weight_norm, spectral_norm) stands for the parameters it is made from.
    """
    own = list(layer.parameters(recurse=False))
    if parametrize.is_parametrized(layer):
        own += layer.parametrizations.parameters()  # type: ignore[union-attr]
    matrices = [p for p in own if p.dim() >= 2]
    yield from matrices or own


def _size(layer: nn.Module) -> str:
    """Fan-in x fan-out of the weight, `784x512`; empty for a layer without a matrix."""
    weight = next((w for w in _weights(layer) if w.dim() >= 2), None)
    return "" if weight is None else f"{math.prod(weight.shape[1:])}x{weight.shape[0]}"


def _probe(weight: Tensor) -> Tensor:
    """All entries of a weight, or of a large one some 65,536 evenly spread over rows and columns."""
    flat = weight.detach().reshape(-1)
    stride = math.ceil(flat.numel() / _PROBE)
    while stride > 1 and math.gcd(stride, math.prod(weight.shape[1:])) > 1:  # else the same columns of each row
        stride += 1
    return flat[::stride] if stride > 1 else flat
