"""Event files: the checksum of an event, and an event file cut back to an earlier end.

The checksum is CRC-32C, computed on NumPy arrays some hundred times as fast as by a loop over the bytes. It is linear
over bits: tables give the effect of each byte of 64 words at the end of the 64, and these effects are combined into one
word. The same is done with 64 such words, until one is left.
"""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from vgrad_torch.errors import UsageError
from vgrad_torch.files import lock


def cut(path: Path, size: int) -> bool:
    """Cut an event file to its first `size` bytes, in place, so that a TensorBoard that has it open reads on.

    Returns:
        False, and the file is unchanged, if it does not exist or if no event ends there.

    Raises:
        UsageError: another process is writing to it, or it cannot be written.
    """
    try:
        with path.open("r+b") as file:
            lock(file.fileno(), wait=False)
            if not _ends_event(file, size):
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


def _ends_event(file: BinaryIO, size: int) -> bool:
    """Whether an event ends there. An event: 8 bytes with its length, 4 bytes checksum, the data, 4 bytes checksum."""
    position = 0
    while position < size <= os.fstat(file.fileno()).st_size:
        file.seek(position)
        header = file.read(12)
        if len(header) < 12 or struct.unpack("<I", header[8:])[0] != masked_crc32c(header[:8]):
            return False
        position += 16 + int.from_bytes(header[:8], "little")
    return position == size


Words = npt.NDArray[np.uint32]

_CASTAGNOLI = 0x82F63B78  # the polynomial, lowest power first
_ALL = 0xFFFFFFFF
_GROUP = 64  # words
_PLACES = np.arange(4 * _GROUP) * 256  # of the bytes' tables
_BYTE: Words = np.arange(256, dtype=np.uint32)


def masked_crc32c(data: bytes) -> int:
    """The checksum as TensorFlow's record files store it: CRC-32C, rotated, plus a constant.

    >>> hex(crc32c(b"123456789"))  # the check value of the CRC catalogue
    '0xe3069283'
    """
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _ALL


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of any number of bytes."""
    whole = len(data) // 4 * 4
    register = _ALL
    if whole >= 4 * _GROUP:
        words = np.frombuffer(data, "<u4", whole // 4).copy()
        words[0] ^= register
        register = _after_zeros(_folded(words), 4)
    else:
        whole = 0
    for byte in data[whole:]:
        register = _after_zeros(register ^ byte, 1)
    return register ^ _ALL


def _after_zeros(register: int, steps: int) -> int:
    """The register after so many zero bytes."""
    for _ in range(steps):
        register = _TABLE[register & 255] ^ register >> 8
    return register


def _folded(words: Words) -> int:
    """One word with the same effect as all words."""
    level = 0
    while len(words) > 1:
        missing = -len(words) % _GROUP
        if missing:  # zeros in front change nothing
            words = np.concatenate([np.zeros(missing, np.uint32), words])
        places = words.view(np.uint8).reshape(-1, 4 * _GROUP) + _PLACES
        words = np.bitwise_xor.reduce(_tables(level)[0].take(places), axis=1)
        level += 1
    return int(words[0])


@lru_cache
def _tables(level: int) -> tuple[Words, Words]:
    """The effect of each byte of a group of words that are 64**level words apart, and of a byte before the group."""
    step = _tables(level - 1)[1] if level else _one_word_later()
    tables = [_BYTE << np.arange(0, 32, 8, dtype=np.uint32)[:, None]]
    for _ in range(_GROUP):
        tables.append(_moved(tables[-1], step))
    return np.concatenate(tables[-2::-1]).ravel(), tables[-1]


def _one_word_later() -> Words:
    words = _BYTE << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    for _ in range(4):
        words = np.array(_TABLE, np.uint32)[words & 255] ^ words >> 8
    return words


def _moved(words: Words, step: Words) -> Words:
    moved: Words = step[0][words & 255] ^ step[1][words >> 8 & 255] ^ step[2][words >> 16 & 255] ^ step[3][words >> 24]
    return moved


def _one_byte_later() -> list[int]:
    table = _BYTE
    one = np.uint32(1)
    for _ in range(8):
        table = table >> one ^ (table & one) * np.uint32(_CASTAGNOLI)
    return [int(entry) for entry in table]


_TABLE = _one_byte_later()
