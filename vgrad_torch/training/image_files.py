"""The files of image data sets: IDX (MNIST, Fashion-MNIST) and the binary version of CIFAR-10."""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgrad_torch.errors import UsageError

Bytes = npt.NDArray[np.uint8]
Part = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Samples as rows of features (of images: pixels 0..255), and the class of each."""

_UNREADABLE = (OSError, EOFError, zlib.error, tarfile.TarError)  # a cut, damaged or forbidden file


def wrong_content(path: Path | str, found: str, expected: str) -> UsageError:
    """The error of a file whose content is not as expected."""
    return UsageError(f"{path}: found {found}, expected {expected}; download this file again")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error while reading a file into one sentence."""
    try:
        yield
    except _UNREADABLE as error:
        raise UsageError(f"{path} cannot be read ({error_text(error)}); download this file again") from error


def error_text(error: BaseException) -> str:
    """The message of an exception in one line, or its type."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _at_most(read: Callable[[int], bytes], limit: int) -> bytearray:
    """Up to `limit` bytes, read in pieces of a megabyte, so that memory is needed only for the actual content."""
    content = bytearray()
    while piece := read(min(limit - len(content), 1 << 20)):
        content += piece
    return content


def _idx(path: Path, kind: str, dimensions: int) -> Bytes:
    """Read an IDX file of unsigned bytes, gzipped or not, into an array of its dimensions.

    The format (http://yann.lecun.com/exdb/mnist): the bytes 0, 0, 8 and the number of dimensions; each dimension in 4
    bytes, the highest first; the content.
    """
    with _reading(path), path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        read = gzip.GzipFile(fileobj=plain).read if zipped else plain.read
        shape = _idx_shape(path, _at_most(read, 4 + 4 * dimensions), kind, dimensions)
        size = math.prod(shape)
        content = _at_most(read, size + 1)  # one byte more, which also checks the checksum at the end
    if len(content) != size:
        found = f"{len(content):,} bytes" if len(content) < size else "more bytes"
        raise wrong_content(path, f"{found} of {kind}", f"the {size:,} that its header announces ({shape_text(shape)})")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _idx_shape(path: Path, header: bytearray, kind: str, dimensions: int) -> tuple[int, ...]:
    magic = bytes([0, 0, 8, dimensions])
    if header[:4] != magic:
        raise wrong_content(path, f"0x{header[:4].hex()} at its start", f"0x{magic.hex()}, an IDX file of {kind}")
    if len(header) < 4 + 4 * dimensions:
        raise wrong_content(path, f"a header of {len(header)} bytes", f"one of {4 + 4 * dimensions}")
    shape = tuple(int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4))
    if not math.prod(shape):
        raise wrong_content(path, f"no {kind} ({shape_text(shape)})", "at least one")
    return shape


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as text, such as `60000 x 28 x 28`."""
    return " x ".join(map(str, shape))


def checked_labels(path: Path | str, labels: Bytes) -> Bytes:
    """The labels, if all are from 0 to 9; else a `UsageError`."""
    if labels.max() > 9:
        raise wrong_content(path, f"the label {labels.max()}", "labels from 0 to 9")
    return labels


IDX_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"


def idx_path(folder: Path, name: str) -> Path:
    """The path of a file: gzipped or not, with the published name or with the dot of some archives."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for path in (folder / spelling, folder / f"{spelling}.gz"):
            if path.exists():
                return path
    raise UsageError(f"there is no {name} or {name}.gz in {folder}; this folder must hold {IDX_FILES}")


def read_idx_part(folder: Path, part: str) -> Part:
    """Images and labels of one part, `train` or `t10k`, from a folder with IDX files."""
    paths = [idx_path(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    images, labels = _idx(paths[0], "images", 3), _idx(paths[1], "labels", 1)
    if len(images) != len(labels):
        raise wrong_content(
            paths[1], f"{len(labels):,} labels", f"one for each of the {len(images):,} images in {paths[0].name}"
        )
    return images.reshape(len(images), -1), checked_labels(paths[1], labels)


_CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_CIFAR_FOLDER, CIFAR_ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
_CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then 32x32 red, green and blue pixels, row by row
_CIFAR_LIMIT = 10_000 * _CIFAR_RECORD  # bytes in each published file


def _cifar_file(path: Path) -> Part:
    if not path.exists():
        wanted = f"{', '.join(_CIFAR_FILES)}, or {CIFAR_ARCHIVE}"
        raise UsageError(f"there is no {path.name} in {path.parent}; this folder must hold {wanted}")
    with _reading(path), path.open("rb") as file:
        return _cifar_part(path, _at_most(file.read, _CIFAR_LIMIT + 1))


def _cifar_members(archive: Path) -> list[Part]:
    """The six files in the archive, by name, read in one pass; nothing is written to the disk."""
    wanted = [f"{_CIFAR_FOLDER}/{name}" for name in _CIFAR_FILES]
    parts: dict[str, Part] = {}
    with _reading(archive), gzip.open(archive) as plain, tarfile.open(fileobj=plain, mode="r:") as tar:
        for member in tar:
            if member.name in wanted and member.isfile() and (file := tar.extractfile(member)):
                parts[member.name] = _cifar_part(archive / member.name, _at_most(file.read, _CIFAR_LIMIT + 1))
        _at_most(plain.read, 1 << 20)  # the padding; at the end of the file the checksum is checked
    if missing := [name for name in wanted if name not in parts]:
        raise wrong_content(archive, f"no {missing[0]} in it", "the binary version of CIFAR-10")
    return [parts[name] for name in wanted]


def _cifar_part(path: Path, content: bytearray) -> Part:
    if not 0 < len(content) <= _CIFAR_LIMIT or len(content) % _CIFAR_RECORD:
        found = f"{len(content):,} bytes" if len(content) <= _CIFAR_LIMIT else f"more than {_CIFAR_LIMIT:,} bytes"
        raise wrong_content(path, found, f"1 to 10,000 records of {_CIFAR_RECORD:,} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
    return records[:, 1:], checked_labels(path, records[:, 0])


def read_cifar10(folder: Path) -> list[Part]:
    """The five training batches and the test batch, from files or from the archive."""
    inner, archive = folder / _CIFAR_FOLDER, folder / CIFAR_ARCHIVE
    bare = inner if inner.is_dir() else folder
    zipped = archive.exists() and bare == folder and not (folder / _CIFAR_FILES[0]).exists()
    return _cifar_members(archive) if zipped else [_cifar_file(bare / name) for name in _CIFAR_FILES]
