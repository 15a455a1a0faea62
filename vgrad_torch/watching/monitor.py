"""The monitor: samples some steps of a training loop, keeps what was measured, and logs it."""

from __future__ import annotations

import math
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
from vgrad_torch.records import History, Snapshot
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.writer import Writer
from vgrad_torch.verdict.diagnosis import Diagnosis, diagnose
from vgrad_torch.verdict.nonfinite import first_nonfinite
from vgrad_torch.watching import autograd
from vgrad_torch.watching.closures import closure_of, with_closure
from vgrad_torch.watching.layer import Layer
from vgrad_torch.watching.losses import Losses
from vgrad_torch.watching.memory import Memory
from vgrad_torch.watching.profiles import DepthProfiles
from vgrad_torch.watching.sample import Sample
from vgrad_torch.watching.schedule import Budget, Metered, Schedule
from vgrad_torch.watching.selection import Selection


class Monitor:
    """Samples optimizer steps, keeps the snapshots and logs them. `watch` makes one; use it in a `with` block.

    Attributes:
        history: the snapshots so far; of several ranks the same on each.
        constant_loss: the loss of the best constant answer, such as the entropy of the labels, if you know it; else
            NaN, and the criterion that was passed to `watch` tells it.
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
        losses: Losses,
    ) -> None:
        self.history = History()
        self.constant_loss = math.nan
        self._losses = losses
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
        self._profiles = DepthProfiles(writer)
        self._on_sample = on_sample
        self._sample: Sample | None = None
        self.nonfinite: str | None = None
        self._written: tuple[str, ...] = ()  # the last verdict in the log: the word, and step and text
        self._warned: set[str] = set()
        self._scaler = scaler
        self._handles: list[Any] = []
        self._entered = False

    def __enter__(self) -> Monitor:
        if self._entered:
            raise UsageError("a monitor can be entered only once; call watch() again for another one")
        self._entered = True
        self._losses.attach()
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
        self._losses.detach()
        if self.step and (missed := self._losses.missed()):
            self._warn_once(missed)
        self._end()
        try:
            self._profiles.write_waiting()
            if self.history:
                self._write_verdict(self._judged())
        finally:
            self.writer.close("SUCCESS" if kind is None else "FAILURE")

    @property
    def losses(self) -> list[float]:
        """The training losses in order: those of the criterion that was passed to `watch`, or those that you append."""
        return self._losses.values

    @property
    def memory(self) -> Memory:
        """What `restore` needs; valid between two steps."""
        return Memory(
            self.step, tuple(self.history), *self.history.thinned, tuple(self.losses), self.nonfinite, self._written,
            tuple(sorted(self._warned)), self._profiles.waiting, self._profiles.written,
        )  # fmt: skip

    def restore(self, memory: Memory) -> None:
        """Continue, once entered, where the monitor with this memory stopped; both need the same schedules."""
        self.step, self.nonfinite, self._written = memory.step, memory.nonfinite, memory.verdict
        self.history = History.restored(memory.snapshots, memory.stride, memory.seen)
        self.losses[:], self._warned = memory.losses, set(memory.warned)
        self._profiles.restore(memory.unprofiled, memory.profiled)

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
        constant = self._losses.constant_loss() if math.isnan(self.constant_loss) else self.constant_loss
        name = type(self._optimizer).__name__
        return diagnose(self.history, optimizer=name, losses=self.losses, constant_loss=constant)

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
        closure = closure_of(args, kwargs)
        if closure is None:
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

        return with_closure(args, kwargs, watched)

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
        self._losses.end_step()
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
        if sample.missed_forward_pass(snapshot):
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
        if histograms and self._profiles.take(snapshot, self.step):
            self.diagnose()
