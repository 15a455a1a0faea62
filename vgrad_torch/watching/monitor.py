"""watch(): when to look at a training loop, and what becomes of the snapshots."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vgrad_torch.distributed import shards
from vgrad_torch.distributed.ranks import Ranks, merged, without_own
from vgrad_torch.errors import UsageError, choose
from vgrad_torch.records import ACTIVATIONS, QUANTITIES, History, Snapshot
from vgrad_torch.tensorboard import tags
from vgrad_torch.tensorboard.writer import Writer
from vgrad_torch.verdict.diagnosis import Diagnosis, diagnose, first_nonfinite
from vgrad_torch.watching import hooks
from vgrad_torch.watching.sample import Sample
from vgrad_torch.watching.schedule import Budget, Metered, Schedule, every_nth, sparse_steps

_APART = (
    "the ranks cannot put their samples together inside join(), nor after destroy_process_group(): from here on only "
    "weights, weight gradients and updates are shown"
)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a monitor carries from step to step, so that another one can go on; the schedules are not in it.

    `stride` and `seen` are how the history was thinned, `unprofiled` is the last snapshot without a depth profile and
    `profiled` the step of the last with one.
    """

    step: int
    snapshots: tuple[Snapshot, ...]
    stride: int
    seen: int
    losses: tuple[float, ...]
    nonfinite: str | None
    verdict: tuple[str, ...]
    warned: tuple[str, ...]
    unprofiled: Snapshot | None
    profiled: int | None


class Monitor:
    """Looks at the watched layers at sampled optimizer steps, and keeps and logs what it saw. Made by `watch`.

    `history` holds the snapshots, `step` counts the optimizer steps so far, `layers` are the watched modules by name,
    `writer` takes what else belongs into the log, `nonfinite` says where NaN or infinity first stood (or None).
    `ranks` are the processes that train the model together; the history is the same on each. `losses` are those
    of the training, in order, if you append any (one each epoch is enough): the verdict then sees by them whether the
    network learns. On steps that are not sampled the model carries no hook at all.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
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
        self.layers = layers
        self._sharded = {name for name, m in layers.items() if any(map(shards.is_spread, m.parameters()))}
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
        self._written: tuple[str, ...] = ()  # the last verdict in the log, in a word and whole
        self._warned: set[str] = set()
        self._scaler = scaler
        self._unprofiled: Snapshot | None = None  # the last one with histograms, until its depth profile is written
        self._profiled: int | None = None
        self._handles: list[Any] = []
        self._entered = False

    def __enter__(self) -> Monitor:
        if self._entered:
            raise UsageError("this monitor was entered before; call watch() again for another one")
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
        """All that `restore` needs, between two steps."""
        return Memory(
            self.step, tuple(self.history), *self.history.thinned, tuple(self.losses), self.nonfinite, self._written,
            tuple(sorted(self._warned)), self._unprofiled, self._profiled,
        )  # fmt: skip

    def restore(self, memory: Memory) -> None:
        """Go on, once entered, as the monitor would have whose memory this is; the schedules must be alike."""
        self.step, self.nonfinite, self._written = memory.step, memory.nonfinite, memory.verdict
        self.history = History.restored(memory.snapshots, memory.stride, memory.seen)
        self.losses, self._warned = list(memory.losses), set(memory.warned)
        self._unprofiled, self._profiled = memory.unprofiled, memory.profiled
        if memory.profiled is not None:  # of what was asked before, the schedule keeps no more than this
            self._depth_profiles(memory.profiled)

    @property
    def cost(self) -> float:
        """What watching cost so far, as a share of the wall time: 0 to 1."""
        return self._due.share

    def diagnose(self) -> Diagnosis:
        """The verdict on what was sampled so far; `str()` of it is a table of the layers and a paragraph.

        It is written to the log where it differs from the last one, and at the end.

        Raises:
            UsageError: nothing was sampled yet.
        """
        found = self._judged()
        if found.verdict not in self._written[:1]:
            self._write_verdict(found)
        return found

    def _judged(self) -> Diagnosis:
        return diagnose(self.history, optimizer=type(self._optimizer).__name__, losses=self.losses)

    def _write_verdict(self, found: Diagnosis) -> None:
        """What already stands there is not written again."""
        before, self._written = self._written, (found.verdict, f"{found.evidence.step}: {found.markdown()}")
        if self._written != before:
            self.writer.text(tags.VERDICT, found.markdown(), found.evidence.step)

    def _begin_if_due(self) -> None:
        if self._due(self.step):
            self._begin(histograms=self._histograms(self.step))

    def _begin(self, *, histograms: bool) -> Sample:
        scale = None if self._scaler is None and self.ranks.size == 1 else self._loss_scale
        held = partial(shards.held_gradients, self._model)
        self._sample = Sample(
            self.layers, histograms=histograms, quantities=self._quantities, scale=scale, held=held
        ).attach()
        _EAGER.enter()
        return self._sample

    def _end(self) -> None:
        if self._sample is not None:
            self._sample.detach()
            self._sample = None
            _EAGER.leave()

    def _loss_scale(self, device: torch.device) -> Tensor:
        """How many times too large this process has a gradient: by its scaler, and as the loss is the ranks' mean."""
        scale: Tensor = torch.full((), float(self.ranks.size), device=device)
        return scale if self._scaler is None else self._scaler.scale(scale)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read the parameters; where the optimizer is given a closure, after its first call."""
        sample = self._sample
        if sample is None or _in_its_own_step(optimizer):
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._read(sample, optimizer)
            return None
        if sample.read:  # the step before raised
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
        """With `fused=True` a gradient scaler leaves the division by its scale to the optimizer."""
        sample.read_parameters(getattr(optimizer, "grad_scale", None), _trained_by(optimizer))
        if self._scaler is None and _in_a_gradient_scaler():
            sample.forget_activation_gradients()
            self._warn_once(
                "a GradScaler that watch() was not given scales the loss, so output and input gradients are left out; "
                "pass it: watch(..., scaler=scaler)"
            )

    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        if _in_its_own_step(optimizer):
            return
        try:
            if self._sample is not None and self._sample.read:
                self._take(self._sample)
        finally:  # `on_sample` may raise on one rank only, and all must number their steps alike
            self.step += 1
            if self._sample is None:
                self._begin_if_due()

    def _take(self, sample: Sample) -> None:
        self._end()
        sample.read_update()
        own = None if _skipped(self._optimizer) else sample.snapshot(self.step)
        self._due.charge(sample.seconds)
        start = time.perf_counter()
        snapshot = own if self.ranks.size == 1 else self._joined(own)
        if snapshot is None:
            return
        self.history.append(snapshot)
        self._notice(snapshot, sample)
        self._log(snapshot, sample.histograms)
        self._due.charge(time.perf_counter() - start)
        if self._on_sample is not None:
            self._on_sample(snapshot)

    def _joined(self, own: Snapshot | None) -> Snapshot | None:
        """The snapshot of all ranks, and a word on when to look next, as their clocks differ: rank 0 has it."""
        if not self.ranks.can_meet():
            self._agree(2 * self.step + 1)
            self._warn_once(_APART)
            return None if self._sharded else own and without_own(own)
        given = self.ranks.gather((own, None if self._budget is None else self._budget.forecast(self.step)))
        self._agree(given[0][1])
        snapshots = [snapshot for snapshot, _ in given if snapshot is not None]
        return merged(snapshots, self._sharded) if len(snapshots) == self.ranks.size else None

    def _agree(self, step: int | None) -> None:
        if self._budget is not None:
            self._budget.agreed = step

    def _notice(self, snapshot: Snapshot, sample: Sample) -> None:
        """Say once what the user must know."""
        if self.nonfinite is None and (where := first_nonfinite(snapshot)):
            self.nonfinite = f"step {snapshot.step}, the first sampled step with NaN or infinity: in {where}"
            self.writer.text(tags.FIRST_NONFINITE, self.nonfinite, snapshot.step)
            self._warn_once(self.nonfinite)
        unseen = all(getattr(layer, quantity) is None for layer in snapshot.layers for quantity in ACTIVATIONS)
        if sample.hooked and not sample.saw_a_forward_pass and unseen:
            self._warn_once(
                f"no forward pass of a watched layer was seen at step {snapshot.step}, only its parameters; "
                "was the model's call compiled as part of a function, or made without calling the layers?"
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


def _trained_by(optimizer: Optimizer) -> set[int]:
    """The ids of an optimizer's parameters."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer left its step out because a gradient scaler found infinity."""
    found: Tensor | None = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


class _Eager:
    """Runs what torch.compile compiled without its graphs while any sample is open: those never call a later hook."""

    def __init__(self) -> None:
        self._open = 0
        self._stance: AbstractContextManager[Any] = nullcontext()

    def enter(self) -> None:
        self._open += 1
        if self._open == 1 and "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")

    def leave(self) -> None:
        self._open -= 1
        if not self._open:
            self._stance.__exit__(None, None, None)
            self._stance = nullcontext()


_EAGER = _Eager()  # the stance is torch's, and there is one


def _in_its_own_step(optimizer: Optimizer) -> bool:
    """Whether the step whose hooks run was called by a step of the same optimizer: by `super().step()`, say."""
    frame, steps = sys._getframe(), 0
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_qualname.endswith("profile_hook_step.<locals>.wrapper"):  # torch's, which runs the hooks
            steps += frame.f_locals.get("self") is optimizer
    return steps > 1


def _in_a_gradient_scaler() -> bool:
    """Whether a GradScaler's step is among the callers."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "step" and isinstance(frame.f_locals.get("self"), torch.amp.GradScaler):
            return bool(frame.f_locals["self"].is_enabled())
    return False


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    logdir: str | Path | None = None,
    writer: Any = None,
    every: int | Schedule | None = None,
    layers: hooks.Layers = nn.Linear,
    histograms: bool | Schedule = True,
    quantities: Collection[str] = QUANTITIES,
    scaler: Any = None,
    budget: float = 0.02,
    on_sample: Callable[[Snapshot], None] | None = None,
) -> Monitor:
    """Watch the gradients of a model through a training loop of your own; training is not changed by a bit.

    Under `DistributedDataParallel` give the wrapped model, and call this on every rank with the same arguments: a
    sample is a collective call, so that a rank that does not come, or leaves the block earlier, is waited for until the
    process group's time-out. A snapshot is then of the joined batch (and the same on every rank): of the mean of the
    ranks' losses, which is what their averaged gradients are of, also where batches differ in size. `rank_rms` tells
    the ranks apart. Rank 0 alone writes and warns. Inside `model.join()`, where ranks drop out, and after it, only
    weights, weight gradients and updates are shown.

    So it is for a model that `fully_shard` (FSDP2) spread over a device mesh of one dimension: weights, their gradients
    and updates are put together from the ranks' shards, each entry counted once. Shard the model, make the optimizer,
    then watch. Of a tensor parallel model only these are shown. Meshes of two dimensions and FSDP1 are refused.

    Args:
        model: any module; its layers are named as `model.named_modules()` names them, without what
            `torch.compile` and `DistributedDataParallel` put in front.
        optimizer: the one that trains it. A sample is one of its steps: weight gradients are read just before it
            (accumulated, and clipped if you clip), the update is measured across it.
        logdir: folder for a TensorBoard event file. With neither this nor `writer`, only `history` is kept.
        writer: your own `SummaryWriter`, used instead of `logdir`; it is not closed. Or a `Writer`, which is.
        every: sample every n-th optimizer step, from step 0 on, or the steps that a function of the step says yes to.
            None thins the samples so that looking costs at most `budget` of the wall time; of several ranks, rank 0
            says at each sample at which step comes the next, by its own clock.
        layers: which modules: a type, a tuple of types, a regular expression over names, or a function of
            (name, module).
        histograms: False for none, True for a schedule of at most about 50 steps, or a function of the step.
        quantities: which of "weight", "weight_gradient", "output", "output_gradient", "input_gradient" to measure;
            `("weight_gradient",)` alone is cheapest and needs no hook on the layers. The update goes with "weight".
        scaler: the `torch.amp.GradScaler` of your loop, if it has one, so that gradients are shown without its scale. A
            step that it skips gives no sample.
        budget: share of the wall time that `every=None` may cost, 0 to 1.
        on_sample: called with each snapshot, on every rank.

    Raises:
        UsageError: no layer matches `layers`, an argument is not what it must be, the folder cannot be written, or the
            parameters are spread over the ranks in a way that is not known.

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
    _check(model, optimizer, logdir, writer, every, histograms, budget)
    _check_quantities(quantities)
    chosen = hooks.select(model, layers)
    ranks = Ranks(model)
    if ranks.tensor_parallel:
        quantities = _of_parameters(quantities, warn=ranks.rank == 0)
    sink = _sink(logdir, writer, ranks)
    if isinstance(every, int):
        due: Schedule = every_nth(every)
    else:
        due = Budget(budget) if every is None else every
    if isinstance(histograms, bool):
        histograms = sparse_steps() if histograms else lambda step: False
    return Monitor(
        model,
        chosen,
        optimizer,
        ranks=ranks,
        writer=sink,
        every=due,
        histograms=histograms,
        quantities=quantities,
        scaler=scaler,
        on_sample=on_sample,
    )


def _sink(logdir: str | Path | None, writer: Any, ranks: Ranks) -> Writer:
    """Where the log goes; of several ranks' only that of rank 0."""
    borrowed = writer if writer is None or isinstance(writer, Writer) else Writer.onto(writer)
    if ranks.rank > 0:
        return Writer(None)
    if borrowed is not None:
        return borrowed
    own = Writer(logdir)
    own.layout(ranks=ranks.size)
    return own


def _of_parameters(quantities: Collection[str], *, warn: bool) -> Collection[str]:
    """What can be measured where the ranks share the computation of a layer."""
    left = [quantity for quantity in quantities if quantity not in ACTIVATIONS]
    if not left:
        raise UsageError(f"under tensor parallel {', '.join(quantities)} cannot be measured; weight_gradient can")
    if warn and len(left) < len(quantities):
        warnings.warn(
            "under tensor parallel a rank has but a part of a layer's output: only weights, weight gradients and "
            "updates are shown",
            RuntimeWarning,
            stacklevel=3,
        )
    return left


def _check_quantities(quantities: Collection[str]) -> None:
    if isinstance(quantities, str) or not quantities:
        raise UsageError(f"quantities must be one or more of {', '.join(QUANTITIES)}, in a tuple, not {quantities!r}")
    for quantity in quantities:
        choose(dict.fromkeys(QUANTITIES), quantity, "quantity")


def _check(
    model: object, optimizer: object, logdir: object, writer: object, every: object, histograms: object, budget: float
) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"watch(model, optimizer) needs a torch.nn.Module first, not {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"watch(model, optimizer) needs a torch optimizer second, not {type(optimizer).__name__}")
    if _trained_by(optimizer).isdisjoint(map(id, shards.parameters(model))):
        raise UsageError("the optimizer holds no parameter of the model; give the one that trains it")
    if not (every is None or callable(every) or (type(every) is int and every >= 1)):
        raise UsageError(f"every must be a whole number from 1, a function of the step, or None, not {every!r}")
    if not (isinstance(histograms, bool) or callable(histograms)):
        raise UsageError(f"histograms must be True, False or a function of the step, not {histograms!r}")
    if not budget >= 0:
        raise UsageError(f"budget must be a share of the wall time, 0.02 for 2 %, not {budget!r}")
    if writer is not None and logdir is not None:
        raise UsageError("give watch() a logdir or a writer, not both")
    if logdir is not None and not (isinstance(logdir, str | Path) and str(logdir)):
        raise UsageError(f"logdir must be the path of a folder, not {logdir!r}")
