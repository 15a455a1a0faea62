"""A sample: the measurements of one optimizer step, from its forward pass to the update of the weights."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import islice
from operator import add
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from vgrad_torch.distributed import shards
from vgrad_torch.records import ACTIVATIONS, QUANTITIES, LayerSnapshot, Snapshot, Stats, with_activation_gains
from vgrad_torch.watching import hooks, statistics

Key = tuple[str, int]
"""A layer's name and which call of it, from 1; call 0 stands for what belongs to the layer, not to a call."""
Reductions = dict[Key, dict[str, list[statistics.Reduction]]]
"""By quantity, still on the device: one reduction for each tensor."""
Numbers = dict[Key, dict[str, Stats]]

_UPDATE_ENTRIES = 1 << 13  # entries of a weight whose update is measured; a larger weight has so many, evenly spread


class Sample:
    """Reduces the tensors of one step to statistics on their device; `snapshot` fetches all numbers in one transfer.

    Only what belongs to the coming optimizer step counts:

    - When a backward pass begins and all gradients of the watched weights are None or zero, the gradients were cleared.
      Then earlier passes belong to another step, of another optimizer or one that a gradient scaler skipped, and are
      dropped.
    - Calls that no backward pass reaches are dropped where other calls of the layer are reached: a validation, or the
      pass that trained the other network of a GAN.
    - The passes of one step (micro-batches) are pooled, and so are several backward passes over one forward pass.

    `quantities` are what is measured; the update is measured with "weight". `scale` gives the factor by which a
    gradient scaler multiplied the loss, as a tensor on a device, or None. `held` gives gradients of the model that lie
    elsewhere than in the weights' `grad`. Of a weight in shards, this rank's shard is reduced.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        histograms: bool = True,
        quantities: Container[str] = QUANTITIES,
        scale: Callable[[torch.device], Tensor] | None = None,
        held: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        self.histograms = histograms
        self.hooked = any(quantity in quantities for quantity in ACTIVATIONS)
        """Whether the layers have hooks; otherwise only parameters are measured."""
        self._quantities = quantities
        self.seconds = 0.0
        """Time that this sample took on the host so far."""
        self._layers = layers
        self._scale = scale
        self._held = held
        self._passes: dict[int, Reductions] = {}
        self._last_pass = -1  # the last forward pass before the parameters were read
        self._gradients_before: dict[int, list[Tensor]] = {}  # RMS of the weight gradients as each backward pass began
        self._parameters: Reductions = {}
        self._weights: dict[str, list[nn.Parameter]] = {}
        self._weights_before: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
        self._updates: dict[str, Tensor] = {}
        self._reached: set[hooks.Call] = set()
        self._hooks = hooks.Hooks(layers, self, input_gradients="input_gradient" in quantities)

    def attach(self) -> Sample:
        """Set the hooks: from now on, tensors are measured."""
        if self.hooked:
            self._hooks.attach()
        return self

    def detach(self) -> None:
        """Remove the hooks."""
        self._hooks.detach()

    def forget_activation_gradients(self) -> None:
        """Drop output and input gradients, because their scale is not known."""
        for entry in (entry for part in self._passes.values() for entry in part.values()):
            entry.pop("output_gradient", None)
            entry.pop("input_gradient", None)

    @property
    def saw_a_forward_pass(self) -> bool:
        """Whether any watched layer was called."""
        return bool(self._passes)

    @property
    def read(self) -> bool:
        """Whether the parameters were read."""
        return bool(self._parameters)

    def begin_backward(self, forward_pass: int) -> None:
        """Drop the earlier passes if the gradients were cleared. Whether they are all zero, `snapshot` finds out."""
        if forward_pass > self._last_pass and any(earlier < forward_pass for earlier in self._passes):
            weights = [w for layer in self._layers.values() for w in _weights(layer) if w.requires_grad]
            gradients = [statistics.rms(shards.own(w.grad)) for w in weights if w.grad is not None]
            gradients += map(statistics.rms, self._held())
            if gradients:
                self._gradients_before[forward_pass] = gradients
            elif weights:
                self._passes = {later: part for later, part in self._passes.items() if later >= forward_pass}

    def observe(self, call: hooks.Call, quantity: str, tensor: Tensor) -> None:
        """Reduce a tensor; of a gradient, without the factor of the gradient scaler.

        Backward passes after the parameters were read belong to the optimizer itself and do not count. A new forward
        pass after that means that the step raised an exception; then the sample begins again.
        """
        if call.forward_pass <= self._last_pass:
            return
        if self.read:
            self._parameters.clear()
            self._passes.clear()
            self._gradients_before.clear()
        start = time.perf_counter()
        entry = self._passes.setdefault(call.forward_pass, {}).setdefault((call.name, call.number), {})
        if quantity != "output":
            self._reached.add(call)
        if quantity not in self._quantities:
            return
        if self._scale is not None and quantity != "output":
            tensor = _wide(tensor) / self._scale(tensor.device)
        reductions = entry.setdefault(quantity, [])
        reductions.append(statistics.reduce(tensor, histogram=self.histograms))
        if len(reductions) > 1:
            statistics.pool_histograms(reductions)
        self.seconds += time.perf_counter() - start

    def read_parameters(self, scale: Tensor | None = None, trained: Container[int] | None = None) -> None:
        """Reduce weights and weight gradients, divided by `scale` if given, and keep weights to measure the update.

        `trained` holds the ids of the parameters whose update is measured; None means all that have a gradient.
        """
        start = time.perf_counter()
        self._last_pass = max(self._passes, default=-1)
        with torch.no_grad():
            for name, layer in self._layers.items():
                weights = self._weights[name] = _weights(layer)
                self._read_layer(name, weights, scale)
                if "weight" in self._quantities:
                    updated = [w for w in weights if w.grad is not None and (trained is None or id(w) in trained)]
                    self._weights_before[name] = [(w, _entries(w).clone()) for w in updated]
        self.seconds += time.perf_counter() - start

    def _read_layer(self, name: str, weights: list[nn.Parameter], scale: Tensor | None) -> None:
        entry = self._parameters[name, 0] = {}
        if "weight" in self._quantities:
            entry["weight"] = [statistics.reduce(shards.own(w), histogram=self.histograms) for w in weights]
        if "weight_gradient" in self._quantities:
            gradients = [shards.own(w.grad) for w in weights if w.grad is not None]
            gradients = gradients if scale is None else [_wide(gradient) / scale for gradient in gradients]
            entry["weight_gradient"] = [statistics.reduce(g, histogram=self.histograms) for g in gradients]

    def read_update(self, after_step: Callable[[nn.Parameter], Tensor] = lambda weight: weight) -> None:
        """Measure by how much the optimizer's step changed the weights; call it after the step.

        `after_step` gives the tensor with a weight's new values, if that is not the weight itself.
        """
        start = time.perf_counter()
        with torch.no_grad():
            for name, before in self._weights_before.items():
                changes = [_wide(_entries(after_step(w))) - _wide(old) for w, old in before]
                if changes:
                    self._updates[name] = statistics.rms(changes[0] if len(changes) == 1 else torch.cat(changes))
        self._weights_before.clear()
        self.seconds += time.perf_counter() - start

    def snapshot(self, step: int) -> Snapshot:
        """All measurements as plain numbers, layers in forward order."""
        start = time.perf_counter()
        parts = [self._parameters, *self._passes.values()]
        reductions = [r for part in parts for entry in part.values() for rs in entry.values() for r in rs]
        gradients = [rms for found in self._gradients_before.values() for rms in found]
        stats, scalars = statistics.fetch(reductions, [*self._updates.values(), *gradients])
        updates = dict(zip(self._updates, scalars, strict=False))
        fetched = iter(stats)
        parameters, *pooled = [_pooled(part, fetched) for part in parts]
        first = self._first_pass(scalars[len(updates) :])
        passes = {number: part for number, part in zip(self._passes, pooled, strict=True) if number >= first}
        layers = self._assemble(_merged([parameters, *_reached(passes, self._reached)]), updates)
        self.seconds += time.perf_counter() - start
        return Snapshot(step, tuple(with_activation_gains(list(layers))), time.time())

    def _first_pass(self, gradients: Sequence[float]) -> int:
        """The last forward pass whose backward pass began with weight gradients that are all zero, or 0."""
        numbers = iter(gradients)
        before = self._gradients_before.items()
        return max((number for number, rms in before if not any(list(islice(numbers, len(rms))))), default=0)

    def _assemble(
        self, measured: Mapping[Key, Mapping[str, Any]], updates: Mapping[str, float]
    ) -> Iterator[LayerSnapshot]:
        calls = [key for key in measured if key[1] > 0]
        if self._hooks.recomputed:  # then the calls were seen in the order of the backward pass
            calls.sort(key=lambda key: (key[1], self._hooks.order[key[0]]))
        numbers: dict[str, int] = {}
        for name, call in _with_uncalled(calls, self._layers):
            layer = self._layers[name]
            number = numbers.setdefault(name, len(numbers) + 1)
            values = {**measured.get((name, 0), {}), **measured.get((name, call), {})}
            weights = self._weights[name]
            values |= {"update_rms": updates.get(name), "trainable": any(w.requires_grad for w in weights)}
            yield LayerSnapshot(number, name, shards.kind(layer), _size(weights), call, **values)


def _pooled(part: Reductions, fetched: Iterator[Stats]) -> Numbers:
    """The statistics of each quantity's tensors taken together; `fetched` holds those of the tensors, in order."""
    return {
        key: {quantity: reduce(add, [next(fetched) for _ in rs]) for quantity, rs in entry.items() if rs}
        for key, entry in part.items()
    }


def _merged(parts: Iterable[Numbers]) -> Numbers:
    """The parts with the statistics of the same call and quantity taken together."""
    merged: Numbers = {}
    for key, entry in (item for part in parts for item in part.items()):
        values = merged.setdefault(key, {})
        for quantity, stats in entry.items():
            values[quantity] = values[quantity] + stats if quantity in values else stats
    return merged


def _reached(passes: Mapping[int, Numbers], reached: set[hooks.Call]) -> Iterator[Numbers]:
    """The passes without calls that no backward pass reached, if another call of the same layer was reached."""
    names = {call.name for call in reached if call.forward_pass in passes}
    for forward_pass, part in passes.items():
        calls: Counter[str] = Counter()
        kept: Numbers = {}
        for (name, number), entry in part.items():
            if name not in names or hooks.Call(forward_pass, name, number) in reached:
                calls[name] += 1
                kept[name, calls[name]] = entry
        yield kept


def _with_uncalled(calls: list[Key], names: Mapping[str, nn.Module]) -> Iterator[Key]:
    """The calls in their order; a layer that was not called follows its neighbour in the model."""
    last_call = {name: place for place, (name, _) in enumerate(calls)}
    followers: dict[str | None, list[Key]] = {}
    neighbour: str | None = None
    for name in names:
        if name in last_call:
            neighbour = name
        else:
            followers.setdefault(neighbour, []).append((name, 1))
    yield from followers.get(None, [])
    for place, key in enumerate(calls):
        yield key
        if last_call[key[0]] == place:
            yield from followers.get(key[0], [])


def _weights(layer: nn.Module) -> list[nn.Parameter]:
    """A layer's own weight matrices (a recurrent layer has several); if it has none, its vectors.

    For a parametrized weight (weight_norm, spectral_norm), the parameters that are trained instead of it.
    """
    own = list(layer.parameters(recurse=False))
    if is_parametrized(layer):
        own += [
            p
            for listed in cast(nn.ModuleDict, layer.parametrizations).values()
            for p in listed.parameters(recurse=False)
        ]
    return [p for p in own if p.dim() >= 2] or own


def _size(weights: list[nn.Parameter]) -> str:
    """Fan-in x fan-out of the weight, such as `784x512`; empty for a layer without a matrix."""
    fans = [(math.prod(w.shape[1:]), len(w)) for w in weights if w.dim() >= 2]
    fan = next((fan for fan in fans if fan[0] > 1), fans[0] if fans else None)  # weight_norm's magnitudes come first
    return "" if fan is None else f"{fan[0]}x{fan[1]}"


def _wide(x: Tensor) -> Tensor:
    """In float32 at least, so that a difference or a quotient is not lost to rounding."""
    return x.float() if x.dtype.itemsize < 4 else x


def _entries(weight: Tensor) -> Tensor:
    """All entries of a weight; of a large weight about 8,192 entries, spread evenly over rows and columns."""
    weight = shards.own(weight)
    flat = weight.detach().reshape(-1)
    stride = math.ceil(flat.numel() / _UPDATE_ENTRIES)
    while stride > 1 and math.gcd(stride, math.prod(weight.shape[1:])) > 1:  # or each row gives the same columns
        stride += 1
    return flat[::stride] if stride > 1 else flat
