"""The data sets: circles, digits, MNIST, Fashion-MNIST and CIFAR-10, each as four tensors."""

from __future__ import annotations

import socket
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets, model_selection
from torch import Tensor

from vgrad_torch.errors import UsageError, choose
from vgrad_torch.training.image_files import (
    CIFAR_ARCHIVE,
    IDX_FILES,
    Part,
    checked_labels,
    error_text,
    idx_path,
    read_cifar10,
    read_idx_part,
    shape_text,
    wrong_content,
)

PrintLine = Callable[[str], None]
"""Called with a line of text before slow work."""

_UNREACHABLE = (OSError, EOFError, zlib.error, HTTPException, ValueError)  # ValueError: a wrong checksum or bad JSON


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A classification problem: a part to train on and a part to validate on.

    Attributes:
        name: its key in `DATASETS`.
        x_train: float32 [n, features]; images are flattened and their pixels lie in [0, 1].
        y_train: int64 [n], the class of each sample, 0..classes-1 (0 and 1 for circles too).
        x_validation: like `x_train`, of other samples.
        y_validation: like `y_train`.
        classes: the number of classes.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_validation: Tensor
    y_validation: Tensor
    classes: int

    def to(self, device: torch.device) -> Dataset:
        """A copy on a device."""
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


def load(name: str, data_dir: Path | None = None, print_line: PrintLine = lambda line: None) -> Dataset:
    """Load a data set by name.

    Args:
        name: a key of `DATASETS`.
        data_dir: the folder with the files of an image data set, or with a folder `name` that holds them. None
            downloads them from openml.org. `circles` and `digits` need no files.
        print_line: called with a line of text before slow work.

    Raises:
        UsageError: no such data set, a missing or damaged file, no network.
    """
    return choose(DATASETS, name, "data set")(data_dir, print_line)


def _dataset(name: str, train: Part, validation: Part, classes: int = 10, scale: float = 255) -> Dataset:
    """A data set with values divided by `scale`: 255 brings pixels to [0, 1], while MXNet's reader divides by 256."""
    x_train, x_validation = (torch.from_numpy(x).to(torch.float32).div_(scale) for x, _ in (train, validation))
    y_train, y_validation = (torch.from_numpy(y.astype(np.int64)) for _, y in (train, validation))
    return Dataset(name, x_train, y_train, x_validation, y_validation, classes)


def _circles(data_dir: Path | None, print_line: PrintLine) -> Dataset:
    """Two noisy rings, radius 1 (class 0) and 0.5 (class 1), 1,000 points, as in the Keras tutorial.

    The training part is the tutorial's data: np.random.seed(42), make_circles(1000, factor=0.5, noise=0.1). The
    tutorial evaluates on its training data; the validation part here is a second sample of the same distribution.
    """
    draw = partial(datasets.make_circles, n_samples=1000, factor=0.5, noise=0.1)
    return _dataset("circles", draw(random_state=42), draw(random_state=43), classes=2, scale=1)


def _digits(data_dir: Path | None, print_line: PrintLine) -> Dataset:
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


def _mnist(name: str, data_dir: Path | None, print_line: PrintLine) -> Dataset:
    """Grey images in IDX files: `train` for training, `t10k` for validation."""
    if data_dir is None:
        return _openml(name, print_line)
    folder = _folder(data_dir, name)
    train, validation = read_idx_part(folder, "train"), read_idx_part(folder, "t10k")
    pixels, expected = validation[0].shape[1], train[0].shape[1]
    if pixels != expected:
        path = idx_path(folder, "t10k-images-idx3-ubyte")
        raise wrong_content(path, f"images of {pixels:,} pixels", f"{expected:,} as in the training images")
    return _dataset(name, train, validation)


def _cifar10(data_dir: Path | None, print_line: PrintLine) -> Dataset:
    """Colour images of 3 x 32 x 32: the binary version from https://www.cs.toronto.edu/~kriz/cifar.html.

    The five data batches are trained on, the test batch is validated on.
    """
    if data_dir is None:
        return _openml("cifar10", print_line)
    folder = _folder(data_dir, "cifar10")
    *train, validation = read_cifar10(folder)
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*train, strict=True))
    return _dataset("cifar10", (pixels, labels), validation)


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
    "mnist": _Source("mnist_784", 60_000, 10_000, 784, 130, IDX_FILES),
    "fashion-mnist": _Source("Fashion-MNIST", 60_000, 10_000, 784, 155, IDX_FILES),
    "cifar10": _Source("CIFAR_10", 50_000, 10_000, 3072, 660, CIFAR_ARCHIVE),
}


def _openml(name: str, print_line: PrintLine) -> Dataset:
    """Fetch a data set with scikit-learn, which keeps the file and checks its MD5 sum."""
    source = _SOURCES[name]
    try:
        cache = datasets.get_data_home()
        print_line(
            f"{name} from openml.org: downloading about {source.megabytes} MB, once, into {cache}; "
            "then a minute to read"
        )
        pixels, labels = _fetch(source.name)
    except _UNREACHABLE as error:
        remedy = f"give --data-dir FOLDER that holds {source.files}, or use DATA=digits, which works offline"
        raise UsageError(f"{name} could not be downloaded ({error_text(error)}); {remedy}") from error
    shape = (source.train + source.validation, source.features)
    if pixels.shape != shape or len(labels) != shape[0]:
        raise wrong_content(
            f"{name} in {cache}", f"{shape_text(pixels.shape)} pixels, {len(labels):,} labels", shape_text(shape)
        )
    labels = checked_labels(f"{name} in {cache}", labels)
    train, validation = slice(source.train), slice(source.train, None)
    return _dataset(name, (pixels[train], labels[train]), (pixels[validation], labels[validation]))


def _fetch(name: str) -> Part:
    """Download without warnings about retries, and with a time-out of 30 s."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        with warnings.catch_warnings(action="ignore"):
            bunch = datasets.fetch_openml(name, version=1, as_frame=False, parser="liac-arff", n_retries=1, delay=0.1)
    finally:
        socket.setdefaulttimeout(before)
    return bunch.data.astype(np.uint8), bunch.target.astype(np.uint8)


DATASETS: Mapping[str, Callable[[Path | None, PrintLine], Dataset]] = {
    "circles": _circles,
    "digits": _digits,
    "mnist": partial(_mnist, "mnist"),
    "fashion-mnist": partial(_mnist, "fashion-mnist"),
    "cifar10": _cifar10,
}
"""Name -> the function that loads the data set from a folder."""
