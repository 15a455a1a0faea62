"""Broken twins of the fifteen architectures: those that do not train are noticed, those that do are left in peace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn

import vgrad_torch as vg
from tests.extras.architectures import ARCHITECTURES, Training, made
from vgrad_torch.verdict.diagnosis import Diagnosis
from vgrad_torch.verdict.rules import ALARMS

STEPS, EVERY = 60, 10
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft uses it
    pytest.mark.filterwarnings("ignore:.*with NaN or infinity:RuntimeWarning"),  # what a broken twin is expected to say
]


# --- faults ----------------------------------------------------------------------------------------------------------


def with_sigmoid(training: Training) -> int:
    """In place of relu, gelu and silu; how many."""
    count = 0
    for module in list(training.model.modules()):
        for name, child in list(module.named_children()):
            if any(kind in type(child).__name__ for kind in ("ReLU", "GELU", "SiLU")):
                setattr(module, name, nn.Sigmoid())
                count += 1
        if getattr(module, "activation", None) is nn.functional.relu:
            module.activation = torch.sigmoid  # type: ignore[assignment]
            count += 1
    return count


def without_norms(training: Training) -> int:
    """Nothing in place of normalisation; how many. Mamba reads the weight of its norms."""
    if type(training.model).__name__ == "MambaForCausalLM":
        return 0
    count = 0
    for module in list(training.model.modules()):
        for name, child in list(module.named_children()):
            if "Norm" in type(child).__name__ and not list(child.children()):
                setattr(module, name, nn.Identity())
                count += 1
    return count


def scaled(factor: float) -> Callable[[Training], int]:
    def scale(training: Training) -> int:
        weights = [p for p in training.model.parameters() if p.dim() > 1]
        with torch.no_grad():
            for weight in weights:
                weight.mul_(factor)
        return len(weights)

    return scale


def at_a_thousand_times_the_rate(training: Training) -> int:
    for group in training.optimizer.param_groups:
        group["lr"] *= 1000
    return 1


FAULTS: Mapping[str, Callable[[Training], int]] = {
    "sigmoid": with_sigmoid,
    "no normalisation": without_norms,
    "weights x 0.01": scaled(0.01),
    "weights x 10": scaled(10.0),
    "rate x 1000": at_a_thousand_times_the_rate,
}


def trained(training: Training) -> tuple[list[float], Diagnosis]:
    with vg.watch(training.model, training.optimizer, every=EVERY, histograms=False) as monitor:
        for _ in range(STEPS):
            training.optimizer.zero_grad()
            loss = training.loss()
            loss.backward()
            training.optimizer.step()
            monitor.losses.append(loss.item())
    return monitor.losses, monitor.diagnose()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_twin_that_does_not_train_is_noticed_and_one_that_does_is_left_in_peace(name: str, fault: str) -> None:
    training = made(name)
    if not FAULTS[fault](training):
        return  # this architecture has none of these parts
    losses, diagnosis = trained(training)
    if not losses[-1] < 0.95 * losses[0]:
        assert diagnosis.verdict in ALARMS, (losses[:: STEPS // 6], str(diagnosis))
        assert diagnosis.alarm
        if fault == "rate x 1000":
            assert diagnosis.verdict in ("steps too large", "non-finite", "dead")
    elif losses[-1] < 0.5 * losses[0]:
        assert diagnosis.verdict == "healthy", (losses[:: STEPS // 6], str(diagnosis))


# --- one block -------------------------------------------------------------------------------------------------------

MIDDLE: Mapping[str, str] = {
    "resnet18": "layer2.1",
    "vgg11": "features.11",
    "convnext": "stages.2.blocks.0",
    "vit": "blocks.3",
    "mixer": "blocks.3",
    "gpt2": "transformer.h.2",
    "llama": "model.layers.2",
    "bert": "bert.encoder.layer.2",
    "t5": "decoder.block.1",
    "mamba": "backbone.layers.2",
    "lora": "base_model.model.model.layers.2",
    "lstm": "middle",
    "gru": "middle",
    "transformer": "transformer.encoder.layers.1",
    "unet": "bottom",
}
"""A block in the middle of each architecture."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_block_in_which_nan_is_born_is_named(name: str) -> None:
    training = made(name)
    block = training.model.get_submodule(MIDDLE[name])
    weight = next(p for p in block.parameters() if p.dim() > 1 and p.requires_grad)
    with torch.no_grad():
        weight.view(-1)[0] = math.nan
    _, diagnosis = trained(training)
    assert diagnosis.verdict == "non-finite"
    assert f" {MIDDLE[name].removeprefix('base_model.model.')}" in diagnosis.because.replace("base_model.model.", "")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_block_that_is_cut_off_is_named(name: str) -> None:
    """Its branch no longer reaches the loss: every weight of it is frozen in the graph, though not by intention."""
    training = made(name)
    block = training.model.get_submodule(MIDDLE[name])
    inside = {f"{MIDDLE[name]}.{key}".removesuffix(".") for key, _ in block.named_modules()}
    for module in block.modules():
        if not list(module.children()) and list(module.parameters()):
            module.register_forward_hook(lambda module, args, output: detached(output))
    _, diagnosis = trained(training)
    assert diagnosis.verdict == "no gradient", str(diagnosis)
    words = {layer.label.partition("#")[0]: layer.word for layer in diagnosis.layers}
    mine = {word for label, word in words.items() if label in inside}
    assert "no gradient" in mine
    assert mine <= {"no gradient", "unused"}, str(diagnosis)


def detached(output: object) -> object:
    if isinstance(output, torch.Tensor):
        return output.detach()
    return type(output)(map(detached, output)) if isinstance(output, tuple) else output
