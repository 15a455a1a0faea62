"""The monitor: samples some steps of a training loop, keeps what was measured, and logs it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vgrad_torch.distributed import shards
from vgrad_torch.distributed.joint_snapshot import merged, without_own
from vgrad_torch.distributed.ranks import RANKS_APART, Ranks
from vgrad_torch.errors import UsageError
from vgrad_torch.records import ACTIVATIONS, History, Snapshot
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.writer import Writer
from vgrad_torch.verdict.diagnosis import Diagnosis, diagnose
from vgrad_torch.verdict.nonfinite import first_nonfinite
from vgrad_torch.watching import autograd
from vgrad_torch.watching.layer import Layer
from vgrad_torch.watching.memory import Memory
from vgrad_torch.watching.sample import Sample
from vgrad_torch.watching.schedule import Budget, Metered, Schedule, sparse_steps
from vgrad_torch.watching.selection import Selection


class Monitor:
    """Samples optimizer steps, keeps the snapshots and logs them. `watch` makes one; use it in a `with` block.

    Attributes:
        history: the snapshots so far; of several ranks the same on each.
        losses: the losses of the training, in order, if you append them (one for each epoch is enough). With them the
            verdict knows whether the network learns.
        step: the number of optimizer steps so far.
        writer: the log; use it for your own scalars and texts.
        nonfinite: where NaN or infinity was seen first, or None.
        ranks: the processes that train the model together.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Selection,
        optimizer: Optimizer,
        *,
        ranks: Ranks,
        writer: Writer,
        every: Schedule,
        histograms: Schedule,
        quantities: Collection[str],
        scaler: Any,
        on_sample: Callable[[Snapshot], None] | None,
    ) -> None:
        self.history = History()
        self.losses: list[float] = []
        self.step = 0
        self.writer = writer
        self.ranks = ranks
        self._optimizer = optimizer
        self._model = model
        self._selection = layers
        self._sharded = {name for name, x in layers.layers.items() if any(map(shards.is_spread, x.module.parameters()))}
        self._due = every if isinstance(every, Metered) else Metered(every)
        self._budget = every if isinstance(every, Budget) else None
        if ranks.size > 1:
            self._agree(0)
        self._histograms = histograms
        self._quantities = quantities
        self._depth_profiles = sparse_steps(ratio=2.0)
        self._on_sample = on_sample
        self._sample: Sample | None = None
        self.nonfinite: str | None = None
        self._written: tuple[str, ...] = ()  # the last verdict in the log: the word, and step and text
        self._warned: set[str] = set()
        self._scaler = scaler
        self._unprofiled: Snapshot | None = None  # the last one with histograms; None once its profile is written
        self._profiled: int | None = None
        self._handles: list[Any] = []
        self._entered = False

    def __enter__(self) -> Monitor:
        if self._entered:
            raise UsageError("a monitor can be entered only once; call watch() again for another one")
        self._entered = True
        self._handles = [
            self._optimizer.register_step_pre_hook(torch.compiler.disable(self._before_step)),
            self._optimizer.register_step_post_hook(torch.compiler.disable(self._after_step)),
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
        try:
            self._write_depth_profile()
            if self.history:
                self._write_verdict(self._judged())
        finally:
            self.writer.close("SUCCESS" if kind is None else "FAILURE")

    @property
    def memory(self) -> Memory:
        """What `restore` needs; valid between two steps."""
        return Memory(
            self.step, tuple(self.history), *self.history.thinned, tuple(self.losses), self.nonfinite, self._written,
            tuple(sorted(self._warned)), self._unprofiled, self._profiled,
        )  # fmt: skip

    def restore(self, memory: Memory) -> None:
        """Continue, once entered, where the monitor with this memory stopped; both need the same schedules."""
        self.step, self.nonfinite, self._written = memory.step, memory.nonfinite, memory.verdict
        self.history = History.restored(memory.snapshots, memory.stride, memory.seen)
        self.losses, self._warned = list(memory.losses), set(memory.warned)
        self._unprofiled, self._profiled = memory.unprofiled, memory.profiled
        if memory.profiled is not None:  # the schedule remembers no more than the last step with a profile
            self._depth_profiles(memory.profiled)

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The watched layers by name."""
        return self._selection.layers

    @property
    def frozen(self) -> Mapping[str, Layer]:
        """The layers that are not watched because they are not trained; from the next sample on, those that are."""
        return self._selection.frozen

    @property
    def cost(self) -> float:
        """The cost of watching so far, as a share of the wall time: 0 to 1."""
        return self._due.share

    def diagnose(self) -> Diagnosis:
        """The verdict on the samples so far; `str()` of it is a table of the layers and a paragraph.

        The log gets it when it differs from the last one, and at the end.

        Raises:
            UsageError: nothing was sampled yet.
        """
        diagnosis = self._judged()
        if diagnosis.verdict not in self._written[:1]:
            self._write_verdict(diagnosis)
        return diagnosis

    def _judged(self) -> Diagnosis:
        return diagnose(self.history, optimizer=type(self._optimizer).__name__, losses=self.losses)

    def _write_verdict(self, diagnosis: Diagnosis) -> None:
        """Log a verdict, unless the same one at the same step is the last in the log."""
        step, text = diagnosis.evidence.step, diagnosis.markdown()
        before, self._written = self._written, (diagnosis.verdict, f"{step}: {text}")
        if self._written != before:
            self.writer.text(tags.VERDICT, text, step)

    def _begin_if_due(self) -> None:
        if self._due(self.step):
            self._begin(histograms=self._histograms(self.step))

    def _begin(self, *, histograms: bool) -> Sample:
        scale = None if self._scaler is None and self.ranks.size == 1 else self._loss_scale
        held = partial(autograd.held_gradients, self._model)
        self._selection = self._selection.thawed()
        self._sample = Sample(
            self._selection, histograms=histograms, quantities=self._quantities, scale=scale, held=held
        ).attach()
        autograd.EAGER_MODE.enter()
        return self._sample

    def _end(self) -> None:
        if self._sample is not None:
            self._sample.detach()
            self._sample = None
            autograd.EAGER_MODE.leave()

    def _loss_scale(self, device: torch.device) -> Tensor:
        """The factor by which gradients are too large here: the scaler's, times the ranks, whose mean is the loss."""
        scale: Tensor = torch.full((), float(self.ranks.size), device=device)
        return scale if self._scaler is None else self._scaler.scale(scale)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Measure the parameters; if the optimizer gets a closure, after the first call of the closure."""
        sample = self._sample
        if sample is None or autograd.in_nested_step(optimizer):
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._read(sample, optimizer)
            return None
        if sample.read:  # the step before raised an exception
            self._end()
            sample = self._begin(histograms=sample.histograms)

        def watched() -> Any:
            loss = closure()
            if not sample.read:
                self._read(sample, optimizer)
                sample.detach()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": watched}
        return (args[0], watched, *args[2:]), kwargs

    def _read(self, sample: Sample, optimizer: Optimizer) -> None:
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        sample.read_parameters(autograd.gradient_scale(optimizer), trained)
        if self._scaler is None and autograd.in_gradient_scaler():
            sample.forget_activation_gradients()
            self._warn_once(
                "a GradScaler scales the loss, but watch() does not know it, so output and input gradients are left "
                "out; pass it: watch(..., scaler=scaler)"
            )

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        if autograd.in_nested_step(optimizer):
            return
        try:
            if self._sample is not None and self._sample.read:
                self._take(self._sample)
        finally:  # `on_sample` may raise on one rank only, but all ranks must count the same steps
            self.step += 1
            if self._sample is None:
                self._begin_if_due()

    def _take(self, sample: Sample) -> None:
        self._end()
        sample.read_update()
        own = None if autograd.skipped(self._optimizer) else sample.snapshot(self.step)
        self._due.charge(sample.seconds)
        start = time.perf_counter()
        snapshot = own if self.ranks.size == 1 else self._joined(own)
        if snapshot is None:
            return
        self.history.append(snapshot)
        self._warn(snapshot, sample)
        self._log(snapshot, sample.histograms)
        self._due.charge(time.perf_counter() - start)
        if self._on_sample is not None:
            self._on_sample(snapshot)

    def _joined(self, own: Snapshot | None) -> Snapshot | None:
        """The snapshot of all ranks. Their clocks differ, so rank 0 also says which step they sample next."""
        if not self.ranks.all_take_part(joining=autograd.in_join(self.ranks.data_parallel)):
            self._agree(2 * self.step + 1)
            self._warn_once(RANKS_APART)
            return None if self._sharded else own and without_own(own)
        gathered = self.ranks.gather((own, None if self._budget is None else self._budget.forecast(self.step)))
        self._agree(gathered[0][1])
        snapshots = [snapshot for snapshot, _ in gathered if snapshot is not None]
        return merged(snapshots, self._sharded) if len(snapshots) == self.ranks.size else None

    def _agree(self, step: int | None) -> None:
        if self._budget is not None:
            self._budget.agreed = step

    def _warn(self, snapshot: Snapshot, sample: Sample) -> None:
        """Warn once of NaN and infinity, and of forward passes that the hooks did not see."""
        if self.nonfinite is None and (place := first_nonfinite(snapshot)):
            self.nonfinite = f"step {snapshot.step}, the first sampled step with NaN or infinity: in {place}"
            self.writer.text(tags.FIRST_NONFINITE, self.nonfinite, snapshot.step)
            self._warn_once(self.nonfinite)
        unseen = all(getattr(layer, quantity) is None for layer in snapshot.layers for quantity in ACTIVATIONS)
        if sample.hooked and not sample.saw_a_forward_pass and unseen:
            self._warn_once(
                f"at step {snapshot.step} no forward pass of a watched layer was seen, so only parameters are shown; "
                "is the model called inside a compiled function, or without calling its layers?"
            )

    def _warn_once(self, message: str) -> None:
        if self.ranks.rank == 0 and message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _log(self, snapshot: Snapshot, histograms: bool) -> None:
        self.writer.snapshot(snapshot, histograms=histograms, scalars={tags.COST: self.cost})
        if histograms:
            self._unprofiled = snapshot
            if self._depth_profiles(self.step):
                self._profiled = self.step
                self._write_depth_profile()
                self.diagnose()

    def _write_depth_profile(self) -> None:
        if self._unprofiled is not None:
            self.writer.depth_profile(self._unprofiled)
            self._unprofiled = None
