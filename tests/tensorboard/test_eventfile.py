"""The checksum against TensorBoard's own, and against bits."""

import numpy as np
import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as tensorboards

from vgrad_torch.tensorboard.eventfile import crc32c, masked_crc32c


def bit_by_bit(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize("length", [*range(20), 255, 256, 257, 4095, 16_383, 16_388, 70_001])
def test_any_length(length: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, length, np.uint8).tobytes()
    assert crc32c(data) == bit_by_bit(data)
    assert masked_crc32c(data) == tensorboards(data)


def test_zeros_and_ones() -> None:
    for data in (bytes(1000), b"\xff" * 1000, bytes(3), b"\xff" * 2):
        assert masked_crc32c(data) == tensorboards(data)
