"""The data sets: circles, digits, IDX files (MNIST, Fashion-MNIST) and CIFAR-10, each as four tensors."""

from __future__ import annotations

import gzip
import math
import socket
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn import datasets, model_selection
from torch import Tensor

from vgrad_torch.errors import UsageError, choose

Bytes = npt.NDArray[np.uint8]
Part = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Samples as rows of features (pixels 0..255 for the image files), and the class of each."""
Progress = Callable[[str], None]
"""Takes one line of text about work that takes a while."""

_UNREADABLE = (OSError, EOFError, zlib.error, tarfile.TarError)  # a cut, damaged or forbidden file
_UNREACHABLE = (OSError, EOFError, zlib.error, HTTPException, ValueError)  # ValueError: a wrong checksum or bad JSON


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A classification problem: a part to train on and a part to validate on.

    Attributes:
        name: its key in `DATASETS`.
        x_train: float32 [n, features]; images are flattened and their pixels lie in [0, 1].
        y_train: int64 [n], the class of each sample, 0..classes-1 (0 and 1 for circles too).
        x_validation: like `x_train`, of samples that are not trained on.
        y_validation: like `y_train`.
        classes: how many classes there are.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_validation: Tensor
    y_validation: Tensor
    classes: int

    def to(self, device: torch.device) -> Dataset:
        """The same on a device."""
        parts = ("x_train", "y_train", "x_validation", "y_validation")
        return replace(self, **{part: getattr(self, part).to(device) for part in parts})


def batches(
    x: Tensor, y: Tensor, size: int, *, generator: torch.Generator | None = None, drop_last: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut samples into batches: one pass over the data, every sample at most once.

    Args:
        x: samples [n, ...].
        y: their labels [n].
        size: samples per batch.
        generator: a CPU generator that shuffles, the same order on every device; None keeps the order of `x`.
        drop_last: leave out the last batch if it is smaller than `size` (no batch at all if n < size).

    Yields:
        The samples and the labels of one batch, on the device of `x`.
    """
    if size < 1:
        raise UsageError(f"the batch size must be 1 or more, not {size}")
    order = None if generator is None else torch.randperm(len(x), generator=generator).to(x.device)
    for start in range(0, len(x) - len(x) % size if drop_last else len(x), size):
        part = slice(start, start + size) if order is None else order[start : start + size]
        yield x[part], y[part]


def load(name: str, data_dir: Path | None = None, say: Progress = lambda line: None) -> Dataset:
    """Load a data set by name.

    Args:
        name: a key of `DATASETS`.
        data_dir: the folder that holds the files of an image data set, or a folder called `name` that does; None
            fetches them from openml.org. `circles` and `digits` need no files and do not look at it.
        say: is told before work that takes a while.

    Raises:
        UsageError: no such data set, a missing or damaged file, no network.
    """
    return choose(DATASETS, name, "data set")(data_dir, say)


def _dataset(name: str, train: Part, validation: Part, classes: int = 10, scale: float = 255) -> Dataset:
    """Divide by `scale`: 255 takes pixels to [0, 1] (the MXNet tutorial's reader divides by 256)."""
    x_train, x_validation = (torch.from_numpy(x).to(torch.float32).div_(scale) for x, _ in (train, validation))
    y_train, y_validation = (torch.from_numpy(y.astype(np.int64)) for _, y in (train, validation))
    return Dataset(name, x_train, y_train, x_validation, y_validation, classes)


def _circles(data_dir: Path | None, say: Progress) -> Dataset:
    """Two noisy rings, radius 1 (class 0) and 0.5 (class 1), 1,000 points, as in the Keras tutorial.

    The training part is the tutorial's data: np.random.seed(42), make_circles(1000, factor=0.5, noise=0.1). The
    tutorial evaluates on its training data; the validation part here is a second draw of the same law.
    """
    draw = partial(datasets.make_circles, n_samples=1000, factor=0.5, noise=0.1)
    return _dataset("circles", draw(random_state=42), draw(random_state=43), classes=2, scale=1)


def _digits(data_dir: Path | None, say: Progress) -> Dataset:
    """Handwritten digits of 8x8 pixels that come with scikit-learn, 1,437 to train on and 360 to validate on.

    Both parts hold the classes in the same shares, and they do not depend on the run's seed. Grey levels are 0..16.
    """
    x, y = datasets.load_digits(return_X_y=True)
    parts = model_selection.train_test_split(x, y, test_size=360, stratify=y, random_state=0)
    return _dataset("digits", parts[::2], parts[1::2], scale=16)


def _folder(data_dir: Path, name: str) -> Path:
    """`data_dir`, or the folder called `name` in it if there is one."""
    if not data_dir.is_dir():
        fault = "is a file" if data_dir.exists() else "does not exist"
        raise UsageError(f"the data folder {data_dir} {fault}; name the folder that holds the {name} files")
    return data_dir / name if (data_dir / name).is_dir() else data_dir


def _bad(path: Path | str, found: str, expected: str) -> UsageError:
    return UsageError(f"{path}: found {found}, expected {expected}; download this file again")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say which file cannot be read to its end, and why."""
    try:
        yield
    except _UNREADABLE as error:
        raise UsageError(f"{path} cannot be read ({_reason(error)}); download this file again") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _at_most(read: Callable[[int], bytes], limit: int) -> bytearray:
    """Up to `limit` bytes, in pieces of a megabyte: a huge limit costs no more memory than there is content."""
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
        content = _at_most(read, size + 1)  # one more: is there more, and is the checksum right?
    if len(content) != size:
        found = f"{len(content):,} bytes" if len(content) < size else "more bytes"
        raise _bad(path, f"{found} of {kind}", f"the {size:,} that its header announces ({_times(shape)})")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _idx_shape(path: Path, header: bytearray, kind: str, dimensions: int) -> tuple[int, ...]:
    magic = bytes([0, 0, 8, dimensions])
    if header[:4] != magic:
        raise _bad(path, f"0x{header[:4].hex()} at its start", f"0x{magic.hex()}, an IDX file of {kind}")
    if len(header) < 4 + 4 * dimensions:
        raise _bad(path, f"a header of {len(header)} bytes", f"one of {4 + 4 * dimensions}")
    shape = tuple(int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4))
    if not math.prod(shape):
        raise _bad(path, f"no {kind} ({_times(shape)})", "at least one")
    return shape


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _checked_labels(path: Path | str, labels: Bytes) -> Bytes:
    if labels.max() > 9:
        raise _bad(path, f"the label {labels.max()}", "labels from 0 to 9")
    return labels


_IDX_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"


def _idx_path(folder: Path, name: str) -> Path:
    """Where the file is: gzipped or not, spelled as published or with the dot that some archives put in."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for path in (folder / spelling, folder / f"{spelling}.gz"):
            if path.exists():
                return path
    raise UsageError(f"there is no {name} or {name}.gz in {folder}; this folder must hold {_IDX_FILES}")


def _idx_part(folder: Path, part: str) -> Part:
    paths = [_idx_path(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    images, labels = _idx(paths[0], "images", 3), _idx(paths[1], "labels", 1)
    if len(images) != len(labels):
        raise _bad(
            paths[1], f"{len(labels):,} labels", f"one for each of the {len(images):,} images in {paths[0].name}"
        )
    return images.reshape(len(images), -1), _checked_labels(paths[1], labels)


def _mnist(name: str, data_dir: Path | None, say: Progress) -> Dataset:
    """Grey images in IDX files: `train` to train on, `t10k` to validate on."""
    if data_dir is None:
        return _openml(name, say)
    folder = _folder(data_dir, name)
    train, validation = _idx_part(folder, "train"), _idx_part(folder, "t10k")
    pixels, expected = validation[0].shape[1], train[0].shape[1]
    if pixels != expected:
        path = _idx_path(folder, "t10k-images-idx3-ubyte")
        raise _bad(path, f"images of {pixels:,} pixels", f"{expected:,} as in the training images")
    return _dataset(name, train, validation)


_CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_CIFAR_FOLDER, _CIFAR_ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
_CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then 32x32 red, green and blue pixels, row by row
_CIFAR_LIMIT = 10_000 * _CIFAR_RECORD  # bytes in each published file


def _cifar10(data_dir: Path | None, say: Progress) -> Dataset:
    """Colour images of 3 x 32 x 32: the binary version from https://www.cs.toronto.edu/~kriz/cifar.html.

    The five data batches are trained on, the test batch is validated on.
    """
    if data_dir is None:
        return _openml("cifar10", say)
    folder = _folder(data_dir, "cifar10")
    inner, archive = folder / _CIFAR_FOLDER, folder / _CIFAR_ARCHIVE
    bare = inner if inner.is_dir() else folder
    zipped = archive.exists() and bare == folder and not (folder / _CIFAR_FILES[0]).exists()
    *train, validation = _cifar_members(archive) if zipped else [_cifar_file(bare / name) for name in _CIFAR_FILES]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    return _dataset("cifar10", (pixels, labels), validation)


def _cifar_file(path: Path) -> Part:
    if not path.exists():
        wanted = f"{', '.join(_CIFAR_FILES)}, or {_CIFAR_ARCHIVE}"
        raise UsageError(f"there is no {path.name} in {path.parent}; this folder must hold {wanted}")
    with _reading(path), path.open("rb") as file:
        return _cifar_part(path, _at_most(file.read, _CIFAR_LIMIT + 1))


def _cifar_members(archive: Path) -> list[Part]:
    """The six files from the archive, by name, in one pass; nothing is written to disk."""
    wanted = [f"{_CIFAR_FOLDER}/{name}" for name in _CIFAR_FILES]
    parts: dict[str, Part] = {}
    with _reading(archive), gzip.open(archive) as plain, tarfile.open(fileobj=plain, mode="r:") as tar:
        for member in tar:
            if member.name in wanted and member.isfile() and (file := tar.extractfile(member)):
                parts[member.name] = _cifar_part(archive / member.name, _at_most(file.read, _CIFAR_LIMIT + 1))
        _at_most(plain.read, 1 << 20)  # the padding, and with the end of the file its checksum
    if missing := [name for name in wanted if name not in parts]:
        raise _bad(archive, f"no {missing[0]} in it", "the binary version of CIFAR-10")
    return [parts[name] for name in wanted]


def _cifar_part(path: Path, content: bytearray) -> Part:
    if not 0 < len(content) <= _CIFAR_LIMIT or len(content) % _CIFAR_RECORD:
        found = f"{len(content):,} bytes" if len(content) <= _CIFAR_LIMIT else f"more than {_CIFAR_LIMIT:,} bytes"
        raise _bad(path, found, f"1 to 10,000 records of {_CIFAR_RECORD:,} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
    return records[:, 1:], _checked_labels(path, records[:, 0])


@dataclass(frozen=True, slots=True)
class _Source:
    """A data set on openml.org, version 1: `train` samples to train on, then `validation` samples.

    `megabytes` is about the size of its file, which is text; `files` is what a data folder holds instead.
    """

    name: str
    train: int
    validation: int
    features: int
    megabytes: int
    files: str


_SOURCES = {
    "mnist": _Source("mnist_784", 60_000, 10_000, 784, 130, _IDX_FILES),
    "fashion-mnist": _Source("Fashion-MNIST", 60_000, 10_000, 784, 155, _IDX_FILES),
    "cifar10": _Source("CIFAR_10", 50_000, 10_000, 3072, 660, _CIFAR_ARCHIVE),
}


def _openml(name: str, say: Progress) -> Dataset:
    """Fetch a data set with scikit-learn, which keeps the file and checks its MD5 sum."""
    source = _SOURCES[name]
    try:
        home = datasets.get_data_home()
        say(
            f"{name} from openml.org: downloading about {source.megabytes} MB, once, into {home}; then a minute to read"
        )
        pixels, labels = _fetch(source.name)
    except _UNREACHABLE as error:
        remedy = f"give --data-dir FOLDER that holds {source.files}, or take DATA=digits, which works offline"
        raise UsageError(f"{name} could not be downloaded ({_reason(error)}); {remedy}") from error
    shape = (source.train + source.validation, source.features)
    if pixels.shape != shape or len(labels) != shape[0]:
        raise _bad(f"{name} in {home}", f"{_times(pixels.shape)} pixels, {len(labels):,} labels", _times(shape))
    labels = _checked_labels(f"{name} in {home}", labels)
    train, validation = slice(source.train), slice(source.train, None)
    return _dataset(name, (pixels[train], labels[train]), (pixels[validation], labels[validation]))


def _fetch(name: str) -> Part:
    """Without warnings about retries, and with 30 s of patience for a network that does not answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        with warnings.catch_warnings(action="ignore"):
            bunch = datasets.fetch_openml(name, version=1, as_frame=False, parser="liac-arff", n_retries=1, delay=0.1)
    finally:
        socket.setdefaulttimeout(before)
    return bunch.data.astype(np.uint8), bunch.target.astype(np.uint8)


DATASETS: Mapping[str, Callable[[Path | None, Progress], Dataset]] = {
    "circles": _circles,
    "digits": _digits,
    "mnist": partial(_mnist, "mnist"),
    "fashion-mnist": partial(_mnist, "fashion-mnist"),
    "cifar10": _cifar10,
}
"""Every data set by name: what `load` calls with the data folder and the progress line."""
