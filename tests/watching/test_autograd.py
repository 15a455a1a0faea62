"""What happens where torch lacks a private function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import vgrad_torch as vg
from vgrad_torch.errors import UsageError
from vgrad_torch.watching import autograd

FUNCTIONS: dict[str, tuple[str, Callable[[], object]]] = {
    "backward_id": ("_graph_task_id", autograd.backward_id),
    "will_run": ("_will_execute", lambda: autograd.will_run(torch.ones(1, requires_grad=True).exp().grad_fn)),  # type: ignore[arg-type]
    "next_node_number": ("_sequence_number", autograd.next_node_number),
    "in_functional_transform": ("_interpreter_stack", autograd.in_functional_transform),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_missing_function_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, call = FUNCTIONS[name]
    monkeypatch.setattr(autograd, attribute, autograd._private("_C._no_such_function"))
    with pytest.raises(UsageError, match=rf"torch {torch.__version__.split('+')[0]}.* has no torch._C._no_such_func"):
        call()


def test_a_missing_method_of_nodes_or_tensors_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        layout = torch.strided

    with pytest.raises(UsageError, match=r"has no Node\._sequence_nr"):
        autograd.node_number(Bare())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"has no Tensor\._is_view"):
        autograd.viewed(Bare())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"has no Module\._forward_hooks"):
        list(autograd.forward_hooks(Bare()))  # type: ignore[arg-type]


def test_a_watched_training_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "_sequence_number", autograd._private("_C._autograd._gone"))
    model = nn.Sequential(nn.Linear(2, 2))
    with (
        vg.watch(model, torch.optim.SGD(model.parameters()), every=1),
        pytest.raises(UsageError, match=r"has no torch\._C\._autograd\._gone, which vgrad_torch needs"),
    ):
        model(torch.ones(1, 2, requires_grad=True))


def test_the_functions_say_what_is_true() -> None:
    seen: list[int] = []
    x = torch.ones(3, requires_grad=True)
    first = autograd.next_node_number()
    y = x.exp()
    node = y.grad_fn
    assert node is not None
    assert autograd.node_number(node) == first
    assert autograd.next_node_number() == first + 1
    y.register_hook(lambda gradient: seen.append(autograd.backward_id()))
    assert not autograd.in_backward()
    y.sum().backward()
    assert len(seen) == 1
    assert seen[0] >= 0
    assert autograd.viewed(x.view(3, 1)) is x
    assert autograd.viewed(x[:2]) is None
    inside: list[bool] = []

    def function(x: Tensor) -> Tensor:
        inside.append(autograd.in_functional_transform())
        return x.sum()

    torch.func.grad(function)(torch.ones(2))
    assert inside == [True]
    assert not autograd.in_functional_transform()
