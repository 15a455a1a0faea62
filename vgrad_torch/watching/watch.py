"""watch(): the one line that a training loop needs.

Several processes: under `DistributedDataParallel` pass the wrapped model, and call `watch` on every rank with the same
arguments. A sample is a collective call: if a rank does not take part or leaves the block earlier, the others wait for
it until the process group's time-out. A snapshot is that of the joined batch and the same on every rank: of the mean of
the ranks' losses, to which their averaged gradients belong, also where batches differ in size. `rank_rms` shows the
ranks one by one. Only rank 0 writes and warns. Inside `model.join()`, where ranks drop out, and after it, only weights,
weight gradients and updates are shown.

A model that `fully_shard` (FSDP2) spread over a device mesh of one dimension works the same way: weights, their
gradients and updates are combined from the ranks' shards, each entry once. First shard the model, then make the
optimizer, then watch. Of a tensor parallel model only weights, weight gradients and updates are shown. Meshes of two
dimensions and FSDP1 are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vgrad_torch.distributed import shards
from vgrad_torch.distributed.ranks import Ranks
from vgrad_torch.errors import UsageError, choose
from vgrad_torch.records import ACTIVATIONS, QUANTITIES, Snapshot
from vgrad_torch.tensorboard.writer import Writer
from vgrad_torch.watching.losses import Losses
from vgrad_torch.watching.monitor import Monitor
from vgrad_torch.watching.schedule import Budget, Schedule, every_nth, sparse_steps
from vgrad_torch.watching.selection import Layers, select


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    logdir: str | Path | None = None,
    writer: Any = None,
    every: int | Schedule | None = None,
    layers: Layers = None,
    histograms: bool | Schedule = True,
    quantities: Collection[str] = QUANTITIES,
    scaler: Any = None,
    budget: float = 0.02,
    on_sample: Callable[[Snapshot], None] | None = None,
    loss_fn: nn.Module | None = None,
) -> Monitor:
    """Watch a model in your own training loop: use the returned monitor in a `with` block around the loop.

    Watching changes no bit of the training. For several processes see this module's docstring.

    Args:
        model: any module. Layers have their names in `model.named_modules()`, without what torch.compile and DDP add.
        optimizer: the one that trains it. Gradients are read just before its step, the update is measured across it.
        logdir: folder for a TensorBoard event file. Without `logdir` and `writer`, only `history` is kept.
        writer: your `SummaryWriter`, which stays open at the end, or a `Writer`, which is closed.
        every: sample every n-th step, or the steps for which a function of the step is true. None: as many steps as
            cost at most `budget`.
        layers: a type, a tuple of types, a regular expression over names, or a function of (name, module). None: every
            module with a weight of two dimensions or more that is trained, except normalisation, see `select`.
        histograms: False, True (at most about 50 steps of a run), or a function of the step.
        quantities: which of "weight", "weight_gradient", "output", "output_gradient", "input_gradient" to measure.
            `("weight_gradient",)` alone is cheapest and needs no hooks on layers. "weight" includes the update.
        scaler: the `torch.amp.GradScaler` of your loop. Gradients are shown without its scale; a step that it skips
            gives no sample.
        budget: the share of the wall time that `every=None` may cost, 0 to 1.
        on_sample: called with each snapshot, on every rank.
        loss_fn: the criterion of your loop, if it is a module such as `nn.CrossEntropyLoss()`. Then `monitor.losses`
            holds the loss of each step, and the verdict knows what the best constant answer to the targets gets. If
            your loss is a function or compiled, append the losses to `monitor.losses`.

    Raises:
        UsageError: no layer matches `layers`, an argument is wrong, or the folder cannot be written.
    """
    _check(model, optimizer, logdir, writer, every, histograms, budget)
    _check_quantities(quantities)
    _check_parts_of_the_loop(scaler, on_sample, loss_fn)
    chosen = select(model, layers)
    ranks = Ranks(model)
    if ranks.tensor_parallel:
        quantities = _of_parameters(quantities, warn=ranks.rank == 0)
    due = every_nth(every) if isinstance(every, int) else every or Budget(budget)
    if isinstance(histograms, bool):
        histograms = sparse_steps() if histograms else lambda step: False
    log = _log(logdir, writer, ranks)
    return Monitor(
        model, chosen, optimizer, ranks=ranks, writer=log, every=due, histograms=histograms, quantities=quantities,
        scaler=scaler, on_sample=on_sample, losses=Losses(loss_fn),
    )  # fmt: skip


def _log(logdir: str | Path | None, writer: Any, ranks: Ranks) -> Writer:
    """Where the samples are written; on other ranks than 0 nowhere."""
    given = writer if writer is None or isinstance(writer, Writer) else Writer.onto(writer)
    if ranks.rank > 0:
        return Writer(None)
    if given is not None:
        return given
    own = Writer(logdir)
    own.layout(ranks=ranks.size)
    return own


def _of_parameters(quantities: Collection[str], *, warn: bool) -> Collection[str]:
    """The quantities that can be measured where the ranks share the computation of a layer."""
    left = [quantity for quantity in quantities if quantity not in ACTIVATIONS]
    if not left:
        raise UsageError(f"under tensor parallel {', '.join(quantities)} cannot be measured; weight_gradient can")
    if warn and len(left) < len(quantities):
        warnings.warn(
            "under tensor parallel a rank has only a part of a layer's output, so only weights, weight gradients and "
            "updates are shown",
            RuntimeWarning,
            stacklevel=3,
        )
    return left


def _check_parts_of_the_loop(scaler: object, on_sample: object, loss_fn: object) -> None:
    if not (scaler is None or callable(getattr(scaler, "scale", None))):
        raise UsageError(f"scaler must be the torch.amp.GradScaler of your loop, not {scaler!r}")
    if not (on_sample is None or callable(on_sample)):
        raise UsageError(f"on_sample must be a function of a snapshot, not {on_sample!r}")
    if not (loss_fn is None or (isinstance(loss_fn, nn.Module) and not isinstance(loss_fn, torch.jit.ScriptModule))):
        raise UsageError(
            f"loss_fn must be a module such as torch.nn.CrossEntropyLoss(), not {loss_fn!r}; if your loss is a "
            "function, append its values to monitor.losses"
        )


def _check_quantities(quantities: Collection[str]) -> None:
    if isinstance(quantities, str) or not (isinstance(quantities, Collection) and quantities):
        raise UsageError(f"quantities must be one or more of {', '.join(QUANTITIES)}, in a tuple, not {quantities!r}")
    for quantity in quantities:
        choose(dict.fromkeys(QUANTITIES), quantity, "quantity")


def _check(
    model: object, optimizer: object, logdir: object, writer: object, every: object, histograms: object, budget: object
) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"watch(model, optimizer) needs a torch.nn.Module first, not {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"watch(model, optimizer) needs a torch optimizer second, not {type(optimizer).__name__}")
    own = {id(p) for p in shards.parameters(model)}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise UsageError("the optimizer holds no parameter of the model; pass the optimizer that trains it")
    if not (every is None or callable(every) or (type(every) is int and every >= 1)):
        raise UsageError(f"every must be a whole number from 1, a function of the step, or None, not {every!r}")
    if not (isinstance(histograms, bool) or callable(histograms)):
        raise UsageError(f"histograms must be True, False or a function of the step, not {histograms!r}")
    if isinstance(budget, bool) or not (isinstance(budget, int | float) and budget >= 0):
        raise UsageError(f"budget must be a share of the wall time, such as 0.02 for 2 %, not {budget!r}")
    if writer is not None and logdir is not None:
        raise UsageError("pass watch() a logdir or a writer, not both")
    if logdir is not None and not (isinstance(logdir, str | Path) and str(logdir)):
        raise UsageError(f"logdir must be the path of a folder, not {logdir!r}")
