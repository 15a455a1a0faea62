"""Assertions of this subject: what the monitor saw against what autograd says."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module

from vgrad_torch.records import Snapshot, Stats

Loss = Callable[[Tensor], Tensor]


def assert_is_tensor(stats: Stats | None, tensor: Tensor, rel: float = 1e-6) -> None:
    """`stats` are those of `tensor`, by NumPy in double precision."""
    assert stats is not None
    exact = tensor.detach().double().numpy()
    assert stats.count == exact.size
    assert stats.nonfinite == 0
    assert stats.zeros == int((exact == 0).sum())
    assert stats.mean == pytest.approx(exact.mean(), rel=rel, abs=rel * np.abs(exact).mean())
    assert stats.std == pytest.approx(exact.std(), rel=rel)
    assert stats.rms == pytest.approx(np.sqrt(np.mean(exact**2)), rel=rel)
    assert (stats.min, stats.max) == pytest.approx((exact.min(), exact.max()), rel=rel)


def chain_oracle(model: nn.Sequential, x: Tensor, loss: Loss) -> dict[str, dict[str, Tensor]]:
    """Every quantity of every Linear of a chain by `torch.autograd.grad`, on a copy without in-place operations."""
    twin = copy.deepcopy(model)
    seen: dict[str, dict[str, Tensor]] = {}
    h = x
    for name, child in twin.named_children():
        if isinstance(child, nn.ReLU):
            child.inplace = False
        if isinstance(child, nn.Linear):
            seen[name] = {"input": h}
        h = child(h)
        if isinstance(child, nn.Linear):
            seen[name] |= {"output": h, "weight": child.weight}
    value = loss(h)
    for entry in seen.values():
        for source, gradient in (
            ("output", "output_gradient"),
            ("weight", "weight_gradient"),
            ("input", "input_gradient"),
        ):
            if entry[source].requires_grad:
                (entry[gradient],) = torch.autograd.grad(value, [entry[source]], retain_graph=True)
        del entry["input"]
    return seen


def assert_matches(snapshot: Snapshot, oracle: dict[str, dict[str, Tensor]]) -> None:
    """The snapshot holds what the oracle holds, no more and no less."""
    assert [layer.name for layer in snapshot.layers] == list(oracle)
    for layer in snapshot.layers:
        for quantity in ("weight", "weight_gradient", "output", "output_gradient", "input_gradient"):
            if quantity in oracle[layer.name]:
                assert_is_tensor(getattr(layer, quantity), oracle[layer.name][quantity])
            else:
                assert getattr(layer, quantity) is None, (layer.name, quantity)


def hook_count(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """All hooks of any kind on a model, its parameters and its optimizer."""
    own = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    count = len(module._global_forward_pre_hooks) + len(module._global_forward_hooks)
    count += sum(len(getattr(m, kind)) for m in model.modules() for kind in own)
    count += sum(len(p._backward_hooks or {}) for p in model.parameters())
    if optimizer is not None:
        count += len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
    return count
