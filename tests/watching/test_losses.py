"""The losses that a watched criterion tells, and the best constant answer, against one that is fitted."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import vgrad_torch as vg
from tests.support.assertions import hook_count
from vgrad_torch.errors import UsageError
from vgrad_torch.watching.monitor import Monitor
from vgrad_torch.watching.targets import Targets

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
CLASSES = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(1))


def trained(criterion: nn.Module, target: Tensor, outputs: int, steps: int = 5) -> tuple[Monitor, list[float]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, outputs))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = []
    with vg.watch(model, optimizer, loss_fn=criterion, every=2) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = criterion(model(X), target)
            loss.backward()
            optimizer.step()
            own.append(float(loss.detach()))
            with torch.no_grad():
                criterion(model(X) * 100, target)  # a validation does not count
    assert hook_count(criterion) == 0
    return monitor, own


def test_each_training_loss_is_seen_and_no_other() -> None:
    monitor, own = trained(nn.CrossEntropyLoss(), CLASSES, 3)
    assert monitor.losses == pytest.approx(own)
    shares = torch.bincount(CLASSES).double() / len(CLASSES)
    entropy = -float((shares * shares.log()).sum())
    assert monitor.diagnose().evidence.outcome.constant == pytest.approx(entropy, rel=1e-6)


def test_watching_a_criterion_changes_no_bit() -> None:
    weights = []
    for how in ({}, {"loss_fn": nn.CrossEntropyLoss()}):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
        optimizer = torch.optim.Adam(model.parameters())
        criterion = how.get("loss_fn", nn.CrossEntropyLoss())
        with vg.watch(model, optimizer, every=1, **how):  # type: ignore[arg-type]
            for _ in range(5):
                optimizer.zero_grad()
                criterion(model(X), CLASSES).backward()
                optimizer.step()
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.equal(*weights)


def fitted(criterion: nn.Module, outputs: Callable[[Tensor], Tensor], answer: Tensor, target: Tensor) -> float:
    """The smallest loss of one answer for all samples, found by descent in double precision."""
    answer = answer.double().requires_grad_()
    optimizer = torch.optim.LBFGS([answer], lr=0.5, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = criterion(outputs(answer), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(closure().detach())


NUMBERS = torch.randn(64, 4, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 5.0, 0.1, 3.0]) + 2
MARKS = (torch.rand(64, 4, generator=torch.Generator().manual_seed(3)) < torch.tensor([0.1, 0.5, 0.9, 0.3])).float()
SOFT = torch.rand(64, 3, generator=torch.Generator().manual_seed(4)).softmax(1)
PICTURES = torch.randint(0, 3, (4, 6, 6), generator=torch.Generator().manual_seed(5))
IGNORED = torch.where(torch.arange(64) % 3 == 0, -100, CLASSES)

CASES: dict[str, tuple[nn.Module, Tensor, tuple[int, ...]]] = {
    "classes": (nn.CrossEntropyLoss(), CLASSES, (64, 3)),
    "some classes do not count": (nn.CrossEntropyLoss(), IGNORED, (64, 3)),
    "probabilities": (nn.CrossEntropyLoss(), SOFT, (64, 3)),
    "pixels": (nn.CrossEntropyLoss(), PICTURES, (4, 3, 6, 6)),
    "log-likelihood": (nn.NLLLoss(), CLASSES, (64, 3)),
    "marks": (nn.BCEWithLogitsLoss(), MARKS, (64, 4)),
    "one mark": (nn.BCEWithLogitsLoss(), MARKS[:, 0], (64,)),
    "squared": (nn.MSELoss(), NUMBERS, (64, 4)),
    "one number": (nn.MSELoss(), NUMBERS[:, 1], (64,)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_constant_answer_is_the_best_one(name: str) -> None:
    criterion, target, shape = CASES[name]
    wide = target.double() if target.is_floating_point() else target
    targets = Targets(criterion)
    for _ in range(8):  # so that no rows are too few
        targets.add(torch.zeros(shape), target)
    one = torch.zeros(1, *shape[1:2], *[1] * (len(shape) - 2))

    def outputs(answer: Tensor) -> Tensor:
        constant = answer.log_softmax(1) if isinstance(criterion, nn.NLLLoss) else answer
        return constant.expand(shape)

    assert targets.constant_loss() == pytest.approx(fitted(criterion, outputs, one, wide), rel=1e-5)


def test_probabilities_of_the_output_are_known() -> None:
    targets = Targets(nn.BCELoss())
    targets.add(torch.zeros(80, 1), torch.tensor([[0.0], [0.0], [0.0], [1.0]]).repeat(20, 1))
    assert targets.constant_loss() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.KLDivLoss(),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CosineEmbeddingLoss(),
    ],
)
def test_of_other_criteria_the_constant_answer_is_not_known(criterion: nn.Module) -> None:
    targets = Targets(criterion)
    targets.add(torch.zeros(64, 3), CLASSES)
    assert math.isnan(targets.constant_loss())


def test_rows_of_different_sizes_have_no_common_constant_answer() -> None:
    targets = Targets(nn.MSELoss())
    for length in (3, 4):
        targets.add(torch.zeros(64, length), torch.randn(64, length))
    assert math.isnan(targets.constant_loss())


def test_few_rows_tell_nothing() -> None:
    targets = Targets(nn.MSELoss())
    targets.add(torch.zeros(8), torch.randn(8))
    assert math.isnan(targets.constant_loss())


def test_large_rows_and_many_batches_cost_one_row() -> None:
    targets = Targets(nn.MSELoss())
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        targets.add(torch.zeros(2, 3, 128, 128), torch.randn(2, 3, 128, 128, generator=generator))
    assert targets.constant_loss() == pytest.approx(399 / 400, rel=1e-3)  # of 400 rows; the error is 3e-4 of it


def test_an_empty_batch_is_no_error() -> None:
    trained(nn.MSELoss(), torch.randn(64, 2), 2)
    Targets(nn.MSELoss()).add(torch.zeros(0, 2), torch.zeros(0, 2))


def by_keyword(criterion: nn.Module, output: Tensor) -> Tensor:
    loss: Tensor = criterion(input=output, target=CLASSES)
    return loss


def in_halves(criterion: nn.Module, output: Tensor) -> Tensor:
    loss: Tensor = (criterion(output[:32], CLASSES[:32]) + criterion(output[32:], CLASSES[32:])) / 2
    return loss


@pytest.mark.parametrize("way", [by_keyword, in_halves])
def test_a_step_has_one_loss_however_the_criterion_is_called(way: Callable[[nn.Module, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, criterion, own = nn.Linear(5, 3), nn.CrossEntropyLoss(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vg.watch(model, optimizer, loss_fn=criterion, every=2) as monitor:
        for _ in range(5):
            optimizer.zero_grad()
            loss = way(criterion, model(X))
            loss.backward()
            optimizer.step()
            own.append(float(loss.detach()))
    assert monitor.losses == pytest.approx(own)
    assert not math.isnan(monitor.diagnose().evidence.outcome.constant)


class WithCriterion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.criterion = nn.Linear(5, 3), nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = self.criterion(self.linear(x), CLASSES)
        return loss


def test_the_hook_is_not_copied_or_pickled() -> None:
    model = WithCriterion()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vg.watch(model, optimizer, loss_fn=model.criterion) as monitor:
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for twin in [*twins, model]:
            twin(X).backward()
        optimizer.step()
    assert len(monitor.losses) == 1


def test_a_compiled_criterion_and_functional_transforms_still_work() -> None:
    model, criterion = nn.Linear(5, 3), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vg.watch(model, optimizer, loss_fn=criterion, every=1000) as monitor:
        weights: dict[str, Tensor] = dict(model.named_parameters())

        def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            out: Tensor = criterion(torch.func.functional_call(model, parameters, (x[None],)), y[None])
            return out

        torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, X, CLASSES)
        compiled = torch.compile(lambda x: criterion(model(x), CLASSES), fullgraph=True, backend="eager")
        for _ in range(2):
            criterion(model(X), CLASSES).backward()
            optimizer.step()
        compiled(X).backward()
    assert len(monitor.losses) == 2


def watched_in_vain() -> None:
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with vg.watch(model, optimizer, loss_fn=nn.CrossEntropyLoss()):
        nn.CrossEntropyLoss()(model(X), CLASSES).backward()
        optimizer.step()


def test_a_criterion_that_is_never_called_is_said() -> None:
    with pytest.warns(RuntimeWarning, match=r"loss_fn was never called .* append the losses to monitor\.losses"):
        watched_in_vain()


def test_a_rate_that_is_far_too_small_is_named() -> None:
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    with vg.watch(model, optimizer, loss_fn=criterion, every=10) as monitor:
        for _ in range(100):
            optimizer.zero_grad()
            criterion(model(X), CLASSES).backward()
            optimizer.step()
    result = monitor.diagnose()
    assert result.verdict == "not learning"
    assert result.advice[0].startswith("Next: use a larger learning rate, ")


def test_many_losses_wait_on_the_device_and_none_is_lost() -> None:
    monitor, own = trained(nn.CrossEntropyLoss(), CLASSES, 3, steps=1100)
    assert monitor.losses == pytest.approx(own)


def test_a_function_is_refused_with_the_way_to_go() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"loss_fn must be a module .* append its values to monitor\.losses"):
        vg.watch(model, torch.optim.SGD(model.parameters()), loss_fn=nn.functional.mse_loss)  # type: ignore[arg-type]


def test_a_network_that_learns_no_more_than_the_average_is_noticed() -> None:
    """Targets that have nothing to do with the inputs: the loss falls to their variance, and no further."""
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with vg.watch(model, optimizer, loss_fn=criterion, every=20) as monitor:
        for _ in range(400):
            x = torch.randn(64, 5)
            optimizer.zero_grad()
            criterion(model(x)[:, 0], 3 + torch.randn(64)).backward()
            optimizer.step()
    result = monitor.diagnose()
    assert result.verdict == "not learning"
    assert "The loss has only fallen from" in result.because
    assert "the best constant answer gets" in result.because
