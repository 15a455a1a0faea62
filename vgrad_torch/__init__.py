"""vgrad_torch: see the gradient of a PyTorch network die on its way to the first layer, and what brings it back.

The public names are loaded on first use, so that `import vgrad_torch` is quick and pulls in neither torch nor
matplotlib; TensorBoard imports this package at its start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vgrad_torch.models.mlp import build_mlp as build_mlp
    from vgrad_torch.records import History as History
    from vgrad_torch.records import Snapshot as Snapshot
    from vgrad_torch.theory.prediction import predict as predict
    from vgrad_torch.trials.preflight import preflight as preflight
    from vgrad_torch.trials.what_if import what_if as what_if
    from vgrad_torch.verdict.diagnosis import Diagnosis as Diagnosis
    from vgrad_torch.verdict.diagnosis import diagnose as diagnose
    from vgrad_torch.watching.monitor import Monitor as Monitor
    from vgrad_torch.watching.watch import watch as watch

__version__ = "0.1.0"

_HOME = {
    "build_mlp": "models.mlp",
    "watch": "watching.watch",
    "Monitor": "watching.monitor",
    "History": "records",
    "Snapshot": "records",
    "Diagnosis": "verdict.diagnosis",
    "diagnose": "verdict.diagnosis",
    "predict": "theory.prediction",
    "preflight": "trials.preflight",
    "what_if": "trials.what_if",
}

__all__ = [
    "Diagnosis", "History", "Monitor", "Snapshot", "build_mlp", "diagnose", "predict", "preflight", "watch", "what_if",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vgrad_torch' has no attribute {name!r}")
    return getattr(import_module(f"vgrad_torch.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
