"""One look at a model: a forward and a backward pass, the gradients before the optimizer's step, the step itself."""

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
from vgrad_torch.watching import hooks
from vgrad_torch.watching import statistics as stats

Key = tuple[str, int]
"""A layer's name and which call of it, from 1; call 0 stands for what belongs to the layer, not to a call."""
Seen = dict[Key, dict[str, list[stats.Reduction]]]
Numbers = dict[Key, dict[str, Stats]]

_PROBE = 1 << 13  # weights of a layer whose change is measured; of a larger layer, this many evenly spread ones


class Sample:
    """Collects what passes, reduced where it lies; `snapshot` brings the numbers home in one transfer.

    What earlier passes left is dropped when a backward pass begins and no watched weight has a gradient other than
    zero: the gradients were cleared since, so those passes do not belong to the coming step (that of another optimizer,
    say, or one that a gradient scaler skipped). Calls that no backward pass reaches are dropped where other calls of
    the layer are reached: a validation, or what the other network of a GAN was trained by. Passes of one step,
    micro-batches, are pooled; so are several backward passes over one forward pass.

    `quantities` are what is reduced; the update is measured where "weight" is among them. `scale` gives the factor by
    which a gradient scaler multiplied the loss, as a tensor on a device, or None. `held` gives gradients of the model
    that lie elsewhere than on the layers' weights. Of a weight in shards, this rank's is reduced.
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
        """Whether the layers' calls are seen, or the parameters alone."""
        self._quantities = quantities
        self.seconds = 0.0
        """Time spent looking so far, on the host."""
        self._layers = layers
        self._scale = scale
        self._held = held
        self._passes: dict[int, Seen] = {}
        self._closed = -1  # the last forward pass before the parameters were read
        self._left: dict[int, list[Tensor]] = {}  # RMS of the weight gradients that a backward pass found there
        self._parameters: Seen = {}
        self._weights: dict[str, list[nn.Parameter]] = {}
        self._before: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
        self._updates: dict[str, Tensor] = {}
        self._reached: set[hooks.Call] = set()
        self._hooks = hooks.Hooks(layers, self, input_gradients="input_gradient" in quantities)

    def attach(self) -> Sample:
        """Set the hooks; from now on what passes is seen."""
        if self.hooked:
            self._hooks.attach()
        return self

    def detach(self) -> None:
        """Remove the hooks."""
        self._hooks.detach()

    def forget_activation_gradients(self) -> None:
        """Drop output and input gradients, whose scale turned out to be unknown."""
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

    def new_backward(self, turn: int) -> None:
        """Drop the earlier passes if their gradients were cleared; if set to zero, that is known in the end."""
        if turn > self._closed and any(earlier < turn for earlier in self._passes):
            weights = [w for layer in self._layers.values() for w in _weights(layer) if w.requires_grad]
            left = [stats.rms(shards.own(w.grad)) for w in weights if w.grad is not None]
            left += map(stats.rms, self._held())
            if left:
                self._left[turn] = left
            elif weights:
                self._passes = {later: part for later, part in self._passes.items() if later >= turn}

    def see(self, call: hooks.Call, quantity: str, tensor: Tensor) -> None:
        """Reduce a tensor that passes; a gradient without the factor of the gradient scaler.

        After the parameters were read, backward passes are the optimizer's own. A new forward pass says that its step
        raised, and everything begins again.
        """
        if call.turn <= self._closed:
            return
        if self.read:
            self._parameters.clear()
            self._passes.clear()
            self._left.clear()
        start = time.perf_counter()
        entry = self._passes.setdefault(call.turn, {}).setdefault((call.name, call.number), {})
        if quantity != "output":
            self._reached.add(call)
        if quantity not in self._quantities:
            return
        if self._scale is not None and quantity != "output":
            tensor = _wide(tensor) / self._scale(tensor.device)
        reductions = entry.setdefault(quantity, [])
        reductions.append(stats.reduce(tensor, histogram=self.histograms))
        if len(reductions) > 1:
            stats.pool_histograms(reductions)
        self.seconds += time.perf_counter() - start

    def read_parameters(self, scale: Tensor | None = None, trained: Container[int] | None = None) -> None:
        """Reduce weights and weight gradients (over `scale`, if given), and keep what the update is measured by.

        `trained` holds the ids of the parameters whose update is measured; None is all that have a gradient.
        """
        start = time.perf_counter()
        self._closed = max(self._passes, default=-1)
        with torch.no_grad():
            for name, layer in self._layers.items():
                weights = self._weights[name] = _weights(layer)
                self._read_layer(name, weights, scale)
                if "weight" in self._quantities:
                    stepped = [w for w in weights if w.grad is not None and (trained is None or id(w) in trained)]
                    self._before[name] = [(w, _probe(w).clone()) for w in stepped]
        self.seconds += time.perf_counter() - start

    def _read_layer(self, name: str, weights: list[nn.Parameter], scale: Tensor | None) -> None:
        entry = self._parameters[name, 0] = {}
        if "weight" in self._quantities:
            entry["weight"] = [stats.reduce(shards.own(w), histogram=self.histograms) for w in weights]
        if "weight_gradient" in self._quantities:
            gradients = [shards.own(w.grad) for w in weights if w.grad is not None]
            gradients = gradients if scale is None else [_wide(gradient) / scale for gradient in gradients]
            entry["weight_gradient"] = [stats.reduce(g, histogram=self.histograms) for g in gradients]

    def read_update(self, stepped: Callable[[nn.Parameter], Tensor] = lambda weight: weight) -> None:
        """Measure what the optimizer's step changed; call it after the step.

        `stepped` gives the tensor that holds a weight's new values, where that is not the weight itself.
        """
        start = time.perf_counter()
        with torch.no_grad():
            for name, before in self._before.items():
                changes = [_wide(_probe(stepped(w))) - _wide(old) for w, old in before]
                if changes:
                    self._updates[name] = stats.rms(changes[0] if len(changes) == 1 else torch.cat(changes))
        self._before.clear()
        self.seconds += time.perf_counter() - start

    def snapshot(self, step: int) -> Snapshot:
        """Everything seen, as plain numbers, in forward order."""
        start = time.perf_counter()
        parts = [self._parameters, *self._passes.values()]
        reductions = [r for part in parts for entry in part.values() for rs in entry.values() for r in rs]
        left = [rms for found in self._left.values() for rms in found]
        numbers, scalars = stats.fetch(reductions, [*self._updates.values(), *left])
        updates = dict(zip(self._updates, scalars, strict=False))
        home = iter(numbers)
        parameters, *pooled = [_pooled(part, home) for part in parts]
        first = self._first_turn(scalars[len(updates) :])
        turns = {turn: part for turn, part in zip(self._passes, pooled, strict=True) if turn >= first}
        layers = self._assemble(_merged([parameters, *_reached(turns, self._reached)]), updates)
        self.seconds += time.perf_counter() - start
        return Snapshot(step, tuple(with_activation_gains(list(layers))), time.time())

    def _first_turn(self, left: Sequence[float]) -> int:
        """The last forward pass whose backward pass found nothing but zeros in the weight gradients, or 0."""
        numbers = iter(left)
        cleared = [turn for turn, found in self._left.items() if not any(list(islice(numbers, len(found))))]
        return max(cleared, default=0)

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
            weights = self._weights[name]
            seen |= {"update_rms": updates.get(name), "trainable": any(w.requires_grad for w in weights)}
            yield LayerSnapshot(number, name, shards.kind(layer), _size(weights), call, **seen)


def _pooled(part: Seen, home: Iterator[Stats]) -> Numbers:
    return {
        key: {quantity: reduce(add, [next(home) for _ in rs]) for quantity, rs in entry.items() if rs}
        for key, entry in part.items()
    }


def _merged(parts: Iterable[Numbers]) -> Numbers:
    found: Numbers = {}
    for key, entry in (item for part in parts for item in part.items()):
        merged = found.setdefault(key, {})
        for quantity, value in entry.items():
            merged[quantity] = merged[quantity] + value if quantity in merged else value
    return found


def _reached(turns: Mapping[int, Numbers], reached: set[hooks.Call]) -> Iterator[Numbers]:
    """The passes without the calls that no backward pass reached, if another call of the layer was reached."""
    names = {call.name for call in reached if call.turn in turns}
    for turn, part in turns.items():
        calls: Counter[str] = Counter()
        kept: Numbers = {}
        for (name, number), entry in part.items():
            if name not in names or hooks.Call(turn, name, number) in reached:
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
    """A layer's own weight matrices (a recurrent layer has several); for a layer that has none, its vectors.

    Of a parametrized weight (weight_norm, spectral_norm) what is trained in its place.
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
    """Fan-in x fan-out of the weight, `784x512`; empty for a layer without a matrix."""
    fans = [(math.prod(w.shape[1:]), len(w)) for w in weights if w.dim() >= 2]
    fan = next((fan for fan in fans if fan[0] > 1), fans[0] if fans else None)  # weight_norm's magnitudes come first
    return "" if fan is None else f"{fan[0]}x{fan[1]}"


def _wide(x: Tensor) -> Tensor:
    """In a precision in which a difference or a quotient is not rounded away."""
    return x.float() if x.dtype.itemsize < 4 else x


def _probe(weight: Tensor) -> Tensor:
    """All entries of a weight, or of a large one some 8,192 evenly spread over rows and columns."""
    weight = shards.own(weight)
    flat = weight.detach().reshape(-1)
    stride = math.ceil(flat.numel() / _PROBE)
    while stride > 1 and math.gcd(stride, math.prod(weight.shape[1:])) > 1:  # else the same columns of each row
        stride += 1
    return flat[::stride] if stride > 1 else flat
