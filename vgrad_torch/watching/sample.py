"""A sample: the measurements of one optimizer step, from its forward pass to the update of the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from vgrad_torch.distributed import shards
from vgrad_torch.records import (
    ACTIVATIONS,
    QUANTITIES,
    Snapshot,
    with_activation_gains,
)
from vgrad_torch.watching import hooks, statistics
from vgrad_torch.watching.assembly import Measured, assemble
from vgrad_torch.watching.graph import Call, Junction
from vgrad_torch.watching.pooling import Reductions, joint_rms, pooled
from vgrad_torch.watching.selection import Selection

_RECOMPUTED = "activation checkpointing computes the layers again, apart from each other"
_UPDATE_ENTRIES = 1 << 13  # the update of a larger weight is measured at this many entries, evenly spread


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
        layers: Selection,
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
        self._layers = layers.layers
        self._folded = len(layers.frozen)
        self._scale = scale
        self._held = held
        self._passes: dict[int, Reductions] = {}
        self._last_pass = -1  # the last forward pass before the parameters were read
        self._gradients_before: dict[int, list[Tensor]] = {}  # RMS of the weight gradients as each backward pass began
        self._parameters: Reductions = {}
        self._weights: dict[str, list[nn.Parameter]] = {}
        self._weights_before: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
        self._updates: dict[str, Tensor] = {}
        self._reached: set[Call] = set()
        self._junctions: dict[Junction, list[tuple[Tensor, int]]] = {}  # RMS of the gradients, numbers of entries
        self._over_time: dict[Call, dict[str, Tensor]] = {}
        self._hooks = hooks.Hooks(layers.layers, self, input_gradients="input_gradient" in quantities)

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

    def missed_forward_pass(self, snapshot: Snapshot) -> bool:
        """Whether the layers have hooks, and no call of any layer was seen."""
        seen = any(getattr(layer, quantity) for layer in snapshot.layers for quantity in ACTIVATIONS)
        return self.hooked and not self._passes and not seen

    @property
    def read(self) -> bool:
        """Whether the parameters were read."""
        return bool(self._parameters)

    def begin_backward(self, forward_pass: int) -> None:
        """Drop the earlier passes if the gradients were cleared. Whether they are all zero, `snapshot` finds out."""
        if forward_pass > self._last_pass and any(earlier < forward_pass for earlier in self._passes):
            weights = [w for layer in self._layers.values() for w in layer.weights() if w.requires_grad]
            gradients = [statistics.rms(shards.own(w.grad)) for w in weights if w.grad is not None]
            gradients += map(statistics.rms, self._held())
            if gradients:
                self._gradients_before[forward_pass] = gradients
            elif weights:
                self._passes = {later: part for later, part in self._passes.items() if later >= forward_pass}

    def observe(self, call: Call, quantity: str, tensor: Tensor) -> None:
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

    def observe_junction(self, junction: Junction, gradient: Tensor) -> None:
        """Note the gradient that arrives where the outputs of several layers meet."""
        if self.read or "output_gradient" not in self._quantities:
            return
        start = time.perf_counter()
        rms = statistics.rms(gradient)
        scaled = rms if self._scale is None else rms / self._scale(rms.device)
        self._junctions.setdefault(junction, []).append((scaled, gradient.numel()))
        self.seconds += time.perf_counter() - start

    def observe_over_time(self, call: Call, where: str, norms: Tensor) -> None:
        """Keep the norms of the gradient at each time step; those of several backward passes are put together."""
        if self.read or call.forward_pass <= self._last_pass:
            return
        scaled = norms if self._scale is None else norms / self._scale(norms.device)
        found = self._over_time.setdefault(call, {})
        found[where] = torch.hypot(found[where], scaled) if where in found else scaled

    def read_parameters(self, scale: Tensor | None = None, trained: Container[int] | None = None) -> None:
        """Reduce weights and weight gradients, divided by `scale` if given, and keep weights to measure the update.

        `trained` holds the ids of the parameters whose update is measured; None means all that have a gradient.
        """
        start = time.perf_counter()
        self._last_pass = max(self._passes, default=-1)
        with torch.no_grad():
            for name, layer in self._layers.items():
                weights = self._weights[name] = layer.weights()
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
        layers, junctions = assemble(self._fetched(), self._layers, self._hooks)
        self.seconds += time.perf_counter() - start
        return Snapshot(
            step, tuple(with_activation_gains(layers, junctions)), time.time(), junctions, self._folded,
            _RECOMPUTED if self._hooks.recomputed else "",
        )  # fmt: skip

    def _fetched(self) -> Measured:
        """All measurements on the host, without the forward passes that belong to another step."""
        parts = [self._parameters, *self._passes.values()]
        reductions = [r for part in parts for entry in part.values() for rs in entry.values() for r in rs]
        gradients = [rms for found in self._gradients_before.values() for rms in found]
        met = [rms for found in self._junctions.values() for rms, _ in found]
        over_time = [norms for found in self._over_time.values() for norms in found.values()]
        stats, scalars, vectors = statistics.fetch(reductions, [*self._updates.values(), *gradients, *met], over_time)
        numbers, profiles, fetched = iter(scalars), iter(vectors), iter(stats)
        updates = {name: next(numbers) for name in self._updates}
        parameters, *of_passes = [pooled(part, fetched) for part in parts]
        first = self._first_pass(numbers)
        return Measured(
            parameters,
            {number: part for number, part in zip(self._passes, of_passes, strict=True) if number >= first},
            updates,
            self._reached,
            {x: joint_rms([(next(numbers), count) for _, count in found]) for x, found in self._junctions.items()},
            {call: {where: next(profiles) for where in found} for call, found in self._over_time.items()},
        )

    def _first_pass(self, gradients: Iterator[float]) -> int:
        """The last forward pass whose backward pass began with weight gradients that are all zero, or 0."""
        before = self._gradients_before.items()
        return max((number for number, rms in before if not any(list(islice(gradients, len(rms))))), default=0)


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
