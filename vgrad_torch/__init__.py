"""vgrad_torch: see the gradient of a PyTorch network die on its way to the first layer, and what brings it back.

The public names are loaded on first use, so that `import vgrad_torch` is quick and pulls in neither torch nor
matplotlib; TensorBoard imports this package at its start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vgrad_torch.checkup import preflight as preflight
    from vgrad_torch.diagnosis import Diagnosis as Diagnosis
    from vgrad_torch.diagnosis import diagnose as diagnose
    from vgrad_torch.mlp import build_mlp as build_mlp
    from vgrad_torch.monitor import Monitor as Monitor
    from vgrad_torch.monitor import watch as watch
    from vgrad_torch.records import History as History
    from vgrad_torch.records import Snapshot as Snapshot
    from vgrad_torch.theory import predict as predict
    from vgrad_torch.whatif import what_if as what_if

__version__ = "0.1.0"

_HOME = {
    "build_mlp": "mlp",
    "watch": "monitor",
    "Monitor": "monitor",
    "History": "records",
    "Snapshot": "records",
    "Diagnosis": "diagnosis",
    "diagnose": "diagnosis",
    "predict": "theory",
    "preflight": "checkup",
    "what_if": "whatif",
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
