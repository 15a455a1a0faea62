"""measure(): one forward and backward pass through a model, and a step of a copied optimizer, that leave no trace."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from vgrad_torch.errors import UsageError
from vgrad_torch.records import Snapshot
from vgrad_torch.trials.restore import untouched
from vgrad_torch.trials.units import Units
from vgrad_torch.watching.hooks import Layers, remove_all, select
from vgrad_torch.watching.sample import Sample

LossFunction = Callable[[Any, Any], Tensor]


def measure(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: tuple[Any, Any],
    optimizer: Optimizer | None = None,
    *,
    layers: Layers = nn.Linear,
) -> tuple[Snapshot, Units, float]:
    """Snapshot, units and loss of a batch; the arguments are those of `preflight`."""
    check(model, batch, optimizer)
    watched = select(model, layers)
    sample, units = Sample(watched, histograms=False), Units(model, watched)
    with torch.inference_mode(False), torch.enable_grad(), untouched(model), _uncompiled():
        x, y = _copied(batch[0]), _copied(batch[1])
        remove_all(model)  # a monitor's, which `untouched` puts back
        try:
            sample.attach()
            units.attach()
            loss = _number(loss_fn(called(model, x), y))
            loss.backward(inputs=[p for p in model.parameters() if p.requires_grad])
            _step(sample, optimizer)
        finally:
            sample.detach()
            units.detach()
        return sample.snapshot(0), units, float(loss.detach())


def called(model: nn.Module, x: Any) -> Any:
    """The model's output for an input: a tuple is its arguments, a dict its arguments by name."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def calls(model: nn.Module, x: Any, modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of the modules that the model calls for an input, in order; the model is left as it was."""
    order: list[nn.Module] = []
    with torch.inference_mode(False), torch.no_grad(), untouched(model), _uncompiled():
        for module in modules:
            module.register_forward_pre_hook(lambda module, _: order.append(module))
        called(model, _copied(x))
    return order


def check(model: object, batch: object, optimizer: object) -> None:
    """Raise a `UsageError` where one of these is not what `preflight` can work with."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"the model must be a torch.nn.Module, not {_kind(model)}")
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise UsageError("batch must be a pair of input and target, (x, y)")
    sizes = [tensor.numel() for tensor in _tensors(batch[0])]
    if sizes and not any(sizes):
        raise UsageError("the batch is empty, give at least one sample")
    parameters = list(model.parameters())
    if any(isinstance(p, UninitializedParameter) for p in parameters):
        raise UsageError("the model has lazy layers without weights; call it once with a batch before")
    if not any(p.requires_grad for p in parameters):
        raise UsageError("no parameter of the model requires a gradient, so there is none to look at")
    if not (optimizer is None or isinstance(optimizer, Optimizer)):
        raise UsageError(f"optimizer must be a torch optimizer or left out, not {_kind(optimizer)}")
    if optimizer is not None and {id(p) for p in _held(optimizer)}.isdisjoint(map(id, parameters)):
        raise UsageError("the optimizer holds no parameter of the model; give the one that trains it, or none")


def _kind(thing: object) -> str:
    return repr(thing) if isinstance(thing, str | type) else type(thing).__name__


def _held(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Mapping | tuple | list):
        for part in x.values() if isinstance(x, Mapping) else x:
            yield from _tensors(part)


def _copied(x: Any) -> Any:
    """The same with copies of its tensors: a model that works in place on its input does not touch the batch."""
    if isinstance(x, Tensor):
        return x.detach().clone().requires_grad_(x.requires_grad)
    if isinstance(x, Mapping):
        return {key: _copied(value) for key, value in x.items()}
    return type(x)(map(_copied, x)) if type(x) in (tuple, list) else x


def _number(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(f"loss_fn must return a tensor of one number, the mean loss of the batch, not {what}")
    if not loss.requires_grad:
        raise UsageError("the loss does not depend on any parameter that requires a gradient; look for detach()")
    return loss.reshape(())


def _uncompiled() -> Any:
    """What torch.compile made runs without its graphs, in which no hook is called."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _step(sample: Sample, optimizer: Optimizer | None) -> None:
    """Read the parameters; and what a copy of the optimizer does to copies of them."""
    if optimizer is None:
        sample.read_parameters(trained=())
        return
    own = _held(optimizer)
    sample.read_parameters(trained={id(p) for p in own})
    twin = copy.deepcopy(optimizer)
    stepped = _held(twin)
    for parameter, after in zip(own, stepped, strict=True):
        after.grad = None if parameter.grad is None else parameter.grad.clone()
    try:
        twin.step()
    except Exception as error:
        words = f"{type(error).__name__}: {error}".partition("\n")[0]
        name = type(optimizer).__name__
        raise UsageError(f"preflight cannot take a step with {name} ({words}); leave the optimizer out") from error
    places = {id(parameter): after for parameter, after in zip(own, stepped, strict=True)}
    sample.read_update(lambda weight: places[id(weight)])
