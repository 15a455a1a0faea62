"""An event file cut back to an earlier end, and the claim of the one process that writes to it."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import BinaryIO

from vgrad_torch.errors import UsageError
from vgrad_torch.tensorboard.checksum import masked_crc32c

if sys.platform != "win32":
    import fcntl


def claim(descriptor: int) -> None:
    """Let no other process claim this file until it is closed, as far as its file system knows of claims.

    Raises:
        BlockingIOError: another process has it.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without claims
            return


def cut(path: Path, size: int) -> bool:
    """Cut off what stands behind the first `size` bytes, in place, so that a TensorBoard that has it open reads on.

    Returns:
        False, and the file untouched, if it is not there or does not begin with whole events of that many bytes.

    Raises:
        UsageError: another process is writing to it, or it cannot be written.
    """
    try:
        with path.open("r+b") as file:
            claim(file.fileno())
            if not _is_an_end(file, size):
                return False
            file.truncate(size)
            os.fsync(file.fileno())
            return True
    except FileNotFoundError:
        return False
    except BlockingIOError:
        raise UsageError(f"another process is training {path.parent}; end that one first") from None
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror}") from error


def _is_an_end(file: BinaryIO, size: int) -> bool:
    """Whether events end there: each is 8 bytes of its length, 4 of their checksum, the event, 4 of its checksum."""
    at = 0
    while at < size <= os.fstat(file.fileno()).st_size:
        file.seek(at)
        header = file.read(12)
        if len(header) < 12 or struct.unpack("<I", header[8:])[0] != masked_crc32c(header[:8]):
            return False
        at += 16 + int.from_bytes(header[:8], "little")
    return at == size
