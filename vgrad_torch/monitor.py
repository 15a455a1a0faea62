"""watch(): when to look, what one look collects, and the snapshot it becomes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vgrad_torch import hooks, stats
from vgrad_torch.choices import UsageError
from vgrad_torch.records import History, LayerSnapshot, Snapshot
from vgrad_torch.writer import Writer

Schedule = Callable[[int], bool]


class Sample:
    """One look at a model: a forward and a backward pass, the gradients before the optimizer's step, the step itself.

    Tensors are reduced where they lie as they pass; `snapshot` brings the numbers home in one transfer.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, histograms: bool = True) -> None:
        self._layers = layers
        self._histograms = histograms
        self._seen: dict[tuple[str, int], dict[str, list[stats.Reduction]]] = {}
        self._before: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._updates: dict[str, Tensor] = {}
        self._hooks = hooks.Hooks(layers, self._see)
        self.seconds = 0.0
        """Time spent looking so far, on the host."""

    def attach(self) -> Sample:
        """Set the hooks; from now on what passes is seen."""
        self._hooks.attach()
        return self

    def detach(self) -> None:
        """Remove the hooks."""
        self._hooks.detach()

    def _see(self, name: str, call: int, quantity: str, tensor: Tensor) -> None:
        start = time.perf_counter()
        entry = self._seen.setdefault((name, call), {})
        entry.setdefault(quantity, []).append(stats.reduce(tensor, histogram=self._histograms))
        self.seconds += time.perf_counter() - start

    def read_parameters(self) -> None:
        """Reduce weights and weight gradients as they stand, and keep the weights to measure the update by."""
        start = time.perf_counter()
        with torch.no_grad():
            for name, layer in self._layers.items():
                self._read_layer(name, list(_weights(layer)))
        self.seconds += time.perf_counter() - start

    def _read_layer(self, name: str, weights: list[nn.Parameter]) -> None:
        entry = self._seen.setdefault((name, 0), {})
        entry["weight"] = [stats.reduce(w, histogram=self._histograms) for w in weights]
        gradients = [w.grad for w in weights if w.grad is not None]
        entry["weight_gradient"] = [stats.reduce(g, histogram=self._histograms) for g in gradients]
        self._before[name] = [(w, w.detach().clone()) for w in weights if w.grad is not None]

    def read_update(self) -> None:
        """Measure what the optimizer's step changed; call it after the step."""
        start = time.perf_counter()
        with torch.no_grad():
            for name, before in self._before.items():
                changes = [(w - old).reshape(-1) for w, old in before]
                if changes:
                    self._updates[name] = stats.rms(torch.cat(changes))
        self._before.clear()
        self.seconds += time.perf_counter() - start

    def snapshot(self, step: int) -> Snapshot:
        """Everything seen, as plain numbers, in forward order."""
        start = time.perf_counter()
        flat = [(key, quantity, r) for key, seen in self._seen.items() for quantity, rs in seen.items() for r in rs]
        numbers, updates = stats.fetch([r for _, _, r in flat], list(self._updates.values()))
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for (key, quantity, _), value in zip(flat, numbers, strict=True):
            merged = found.setdefault(key, {})
            merged[quantity] = merged[quantity] + value if quantity in merged else value
        layers = self._assemble(found, dict(zip(self._updates, updates, strict=True)))
        self.seconds += time.perf_counter() - start
        return Snapshot(step, tuple(_with_activation_gains(layers)), time.time())

    def _assemble(
        self, found: Mapping[tuple[str, int], Mapping[str, Any]], updates: Mapping[str, float]
    ) -> Iterator[LayerSnapshot]:
        for number, (name, call) in enumerate(self._forward_order(), start=1):
            layer = self._layers[name]
            seen = {**found.get((name, 0), {}), **found.get((name, call), {})}
            yield LayerSnapshot(
                number, name, type(layer).__name__, _size(layer), call, update_rms=updates.get(name), **seen
            )

    def _forward_order(self) -> list[tuple[str, int]]:
        """Calls in the order they were made; a layer that was not called follows its neighbour in the model."""
        order = [key for key in self._seen if key[1] > 0]
        called = {name for name, _ in order}
        neighbour: str | None = None
        for name in self._layers:
            if name not in called:
                place = max((i for i, key in enumerate(order) if key[0] == neighbour), default=-1)
                order.insert(place + 1, (name, 1))
            neighbour = name
        return order


def _with_activation_gains(layers: Iterator[LayerSnapshot]) -> Iterator[LayerSnapshot]:
    """RMS(output gradient) of a layer over RMS(input gradient) of the one above it."""
    entries = list(layers)
    for layer, above in zip(entries, [*entries[1:], None], strict=True):
        handed_down = above.input_gradient.rms if above and above.input_gradient else 0.0
        gain = layer.output_gradient.rms / handed_down if layer.output_gradient and handed_down else None
        yield replace(layer, activation_gain=gain)


def _weights(layer: nn.Module) -> Iterator[nn.Parameter]:
    """A layer's own weight matrices (a recurrent layer has several); for a layer that has none, its vectors."""
    own = list(layer.parameters(recurse=False))
    matrices = [p for p in own if p.dim() >= 2]
    yield from matrices or own


def _size(layer: nn.Module) -> str:
    """Fan-in x fan-out of the weight, `784x512`; empty for a layer without a matrix."""
    weight = next((w for w in _weights(layer) if w.dim() >= 2), None)
    return "" if weight is None else f"{weight[0].numel()}x{weight.shape[0]}"


class Monitor:
    """Looks at the watched layers at sampled optimizer steps, and keeps and logs what it saw. Made by `watch`.

    `history` holds the snapshots, `step` counts the optimizer steps so far, `layers` are the watched modules by name,
    `writer` takes what else belongs into the log. On steps that are not sampled the model carries no hook at all.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        optimizer: Optimizer,
        *,
        writer: Writer,
        every: int | Schedule | None,
        histograms: bool | Schedule,
        budget: float,
        on_sample: Callable[[Snapshot], None] | None,
    ) -> None:
        self.history = History()
        self.step = 0
        self.writer = writer
        self._optimizer = optimizer
        self.layers = layers
        self._every = every
        self._budget = budget
        self._histograms = sparse_steps() if histograms is True else histograms or (lambda step: False)
        self._depth_profiles = sparse_steps(ratio=2.0)
        self._on_sample = on_sample
        self._sample: Sample | None = None
        self._with_histograms = False
        self._unprofiled: Snapshot | None = None  # the last one with histograms, until its depth profile is written
        self._handles: list[Any] = []
        self._spent = 0.0
        self._started = 0.0

    def __enter__(self) -> Monitor:
        self._started = time.perf_counter()
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]
        self._begin_if_due()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._end()
        self._write_depth_profile()
        self.writer.close("SUCCESS" if kind is None else "FAILURE")

    def _begin_if_due(self) -> None:
        if self._due():
            self._with_histograms = self._histograms(self.step)
            self._sample = Sample(self.layers, histograms=self._with_histograms).attach()

    def _due(self) -> bool:
        if isinstance(self._every, int):
            return self.step % self._every == 0
        if self._every is not None:
            return self._every(self.step)
        return self._spent <= self._budget * (time.perf_counter() - self._started)

    def _write_depth_profile(self) -> None:
        if self._unprofiled is not None:
            self.writer.depth_profile(self._unprofiled)
            self._unprofiled = None

    def _end(self) -> None:
        if self._sample is not None:
            self._sample.detach()
            self._sample = None

    def _before_step(self, *_: object) -> None:
        if self._sample is not None:
            self._sample.read_parameters()

    def _after_step(self, *_: object) -> None:
        if self._sample is not None:
            self._take(self._sample)
        self.step += 1
        self._begin_if_due()

    def _take(self, sample: Sample) -> None:
        self._end()
        sample.read_update()
        snapshot = sample.snapshot(self.step)
        start = time.perf_counter()
        self.history.append(snapshot)
        self.writer.snapshot(snapshot, histograms=self._with_histograms)
        if self._with_histograms:
            self._unprofiled = snapshot
            if self._depth_profiles(self.step):
                self._write_depth_profile()
        self._spent += sample.seconds + time.perf_counter() - start
        if self._on_sample is not None:
            self._on_sample(snapshot)


def sparse_steps(ratio: float = 1.5) -> Schedule:
    """A schedule that says yes at first, then ever more rarely: each yes comes at `ratio` times the step of the last.

    With 1.5 that is 0, 1, 2, 3, 5, 8, ... and under 50 times in a hundred million steps, so that TensorBoard, which
    keeps about 50 steps of a histogram, drops none.

    >>> due = sparse_steps()
    >>> [step for step in range(100) if due(step)]
    [0, 1, 2, 3, 5, 8, 12, 18, 27, 41, 62, 93]
    """
    next_step = 0.0

    def due(step: int) -> bool:
        nonlocal next_step
        if step < next_step:
            return False
        next_step = max(step + 1.0, step * ratio)
        return True

    return due


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    logdir: str | Path | None = None,
    writer: Any = None,
    every: int | Schedule | None = None,
    layers: hooks.Layers = nn.Linear,
    histograms: bool | Schedule = True,
    budget: float = 0.02,
    on_sample: Callable[[Snapshot], None] | None = None,
) -> Monitor:
    """Watch the gradients of a model through a training loop of your own; training is not changed by a bit.

    Args:
        model: any module; its layers are named as `model.named_modules()` names them.
        optimizer: the one that trains it. A sample is one of its steps: weight gradients are read just before it
            (accumulated, and clipped if you clip), the update is measured across it.
        logdir: folder for a TensorBoard event file. With neither this nor `writer`, only `history` is kept.
        writer: your own `SummaryWriter`, used instead of `logdir`; it is not closed.
        every: sample every n-th optimizer step, from step 0 on, or the steps that a function of the step says yes to.
            None thins the samples so that looking costs at most `budget` of the wall time.
        layers: which modules: a type, a tuple of types, a regular expression over names, or a function of
            (name, module).
        histograms: False for none, True for a schedule of at most about 50 steps, or a function of the step.
        budget: share of the wall time that `every=None` may cost, 0 to 1.
        on_sample: called with each snapshot.

    Raises:
        UsageError: no layer matches `layers`, `every` is below 1, or the folder cannot be written.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with watch(model, optimizer, every=1) as monitor:
    ...     for _ in range(2):
    ...         loss = model(torch.ones(4, 2)).square().mean()
    ...         loss.backward()
    ...         optimizer.step()
    >>> [(layer.name, layer.weight_gradient.count) for layer in monitor.history[0].layers]
    [('0', 6), ('2', 3)]
    """
    if isinstance(every, int) and every < 1:
        raise UsageError(f"every must be 1 or more, or None to keep to the budget, not {every}")
    chosen = hooks.select(model, layers)
    sink = Writer(logdir) if writer is None else Writer.onto(writer)
    if writer is None:
        sink.layout()
    return Monitor(
        chosen, optimizer, writer=sink, every=every, histograms=histograms, budget=budget, on_sample=on_sample
    )
