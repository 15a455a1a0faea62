"""Tensors and plain values in a file that shows whether it is whole, and that is read without running code from it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vgrad_torch.errors import UsageError


def seal(content: Mapping[str, Any]) -> bytes:
    """What `torch.load` reads, and the SHA-256 of it behind."""
    written = io.BytesIO()
    torch.save(dict(content), written)
    return written.getvalue() + hashlib.sha256(written.getbuffer()).digest()


def unseal(sealed: bytes) -> Mapping[str, Any]:
    """What was sealed; no code in it is ever run.

    Raises:
        ValueError: it is not whole, or was never sealed.
        Exception: of any kind, from torch, if it was sealed by someone else's hand.
    """
    content, digest = sealed[:-32], sealed[-32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged, or was not written by vgrad train")
    loaded: Mapping[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return loaded


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn whatever torch says of a file that is not ours into one sentence."""
    try:
        yield
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path} cannot be used: {words[:200]}") from error
