"""measure(): a forward and a backward pass and a step of a copied optimizer, after which the model is as before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from vgrad_torch.errors import UsageError
from vgrad_torch.records import Snapshot
from vgrad_torch.trials.restore import restored_on_exit
from vgrad_torch.trials.units import Units
from vgrad_torch.verdict.diagnosis import Diagnosis, diagnose
from vgrad_torch.watching.autograd import eager
from vgrad_torch.watching.hooks import remove_all
from vgrad_torch.watching.sample import Sample
from vgrad_torch.watching.selection import Layers, select

LossFunction = Callable[[Any, Any], Tensor]
"""Maps the model's output and the batch's target to one number."""


class Measurement(NamedTuple):
    """What one batch shows of a model."""

    snapshot: Snapshot
    units: Units
    loss: float

    def diagnosis(self, optimizer: Optimizer | None) -> Diagnosis:
        """The verdict for this optimizer; for SGD if it is None."""
        name = "SGD" if optimizer is None else type(optimizer).__name__
        return diagnose([self.snapshot], optimizer=name, losses=[self.loss])


def measure(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: tuple[Any, Any],
    optimizer: Optimizer | None = None,
    *,
    layers: Layers = None,
) -> Measurement:
    """Run a batch through a model; the arguments are those of `preflight`. Without optimizer no step is taken."""
    check_arguments(model, batch, optimizer)
    watched = select(model, layers)
    sample, units = Sample(watched, histograms=False), Units(model, watched.layers)
    with torch.inference_mode(False), torch.enable_grad(), restored_on_exit(model), eager():
        x, y = _copy_tensors(batch[0]), _copy_tensors(batch[1])
        remove_all(model)  # the hooks of a monitor; `restored_on_exit` puts them back
        try:
            sample.attach()
            units.attach()
            loss = _checked_loss(loss_fn(call_model(model, x), y))
            loss.backward(inputs=[p for p in model.parameters() if p.requires_grad])
            _read_parameters(sample, optimizer)
        finally:
            sample.detach()
            units.detach()
        return Measurement(sample.snapshot(0), units, float(loss.detach()))


def call_model(model: nn.Module, x: Any) -> Any:
    """The model's output. The entries of a tuple become arguments, those of a dict keyword arguments."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def call_order(model: nn.Module, x: Any, modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of the given modules that the model calls for the input x, in order. The model is left as it was."""
    order: list[nn.Module] = []
    with torch.inference_mode(False), torch.no_grad(), restored_on_exit(model), eager():
        for module in modules:
            module.register_forward_pre_hook(lambda module, _: order.append(module))
        call_model(model, _copy_tensors(x))
    return order


def check_arguments(model: object, batch: object, optimizer: object) -> None:
    """Raise a `UsageError` for arguments that `preflight` and `what_if` cannot use."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"the model must be a torch.nn.Module, not {_describe(model)}")
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise UsageError("batch must be a pair of input and target, (x, y)")
    sizes = [tensor.numel() for tensor in _tensors(batch[0])]
    if sizes and not any(sizes):
        raise UsageError("the batch is empty; pass at least one sample")
    parameters = list(model.parameters())
    if any(isinstance(p, UninitializedParameter) for p in parameters):
        raise UsageError("the model has lazy layers without weights; call the model once with a batch first")
    if not any(p.requires_grad for p in parameters):
        raise UsageError("no parameter of the model requires a gradient, so there is no gradient to measure")
    if not (optimizer is None or isinstance(optimizer, Optimizer)):
        raise UsageError(f"optimizer must be a torch optimizer or left out, not {_describe(optimizer)}")
    if optimizer is not None and {id(p) for p in _parameters_of(optimizer)}.isdisjoint(map(id, parameters)):
        raise UsageError("the optimizer holds no parameter of the model; pass the optimizer of this model, or none")


def _describe(value: object) -> str:
    return repr(value) if isinstance(value, str | type) else type(value).__name__


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Mapping | tuple | list):
        for part in x.values() if isinstance(x, Mapping) else x:
            yield from _tensors(part)


def _copy_tensors(x: Any) -> Any:
    """The same structure with copied tensors, because a model may change its input in place."""
    if isinstance(x, Tensor):
        return x.detach().clone().requires_grad_(x.requires_grad)
    if isinstance(x, Mapping):
        return {key: _copy_tensors(value) for key, value in x.items()}
    return type(x)(map(_copy_tensors, x)) if type(x) in (tuple, list) else x


def _checked_loss(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        kind = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(f"loss_fn must return a tensor of one number, the mean loss of the batch, not {kind}")
    if not loss.requires_grad:
        raise UsageError("the loss does not depend on any parameter that requires a gradient; look for detach()")
    return loss.reshape(())


def _read_parameters(sample: Sample, optimizer: Optimizer | None) -> None:
    """Read weights and their gradients, and how a step of a copy of the optimizer would change the weights."""
    if optimizer is None:
        sample.read_parameters(trained=())
        return
    parameters = _parameters_of(optimizer)
    sample.read_parameters(trained={id(p) for p in parameters})
    optimizer_copy = copy.deepcopy(optimizer)
    parameter_copies = _parameters_of(optimizer_copy)
    for parameter, duplicate in zip(parameters, parameter_copies, strict=True):
        duplicate.grad = None if parameter.grad is None else parameter.grad.clone()
    try:
        optimizer_copy.step()
    except Exception as error:
        message = f"{type(error).__name__}: {error}".partition("\n")[0]
        name = type(optimizer).__name__
        raise UsageError(f"preflight cannot take a step with {name} ({message}); leave the optimizer out") from error
    copy_of = {id(parameter): duplicate for parameter, duplicate in zip(parameters, parameter_copies, strict=True)}
    sample.read_update(lambda weight: copy_of[id(weight)])
