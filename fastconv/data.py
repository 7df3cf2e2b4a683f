"""Labelled images to train on: scikit-learn's digits, ``.npz`` archives, IDX folders and CIFAR-10's binary files.

Whatever the source, a `Dataset` holds float32 images of shape (N, C, H, W), normalised by the mean and the standard
deviation of the training images, channel by channel, and int64 labels 0 .. classes-1.

A file is believed only as far as its size allows: sizes, magic numbers, counts and labels are checked before memory is
taken, and whatever is wrong ends in a `DataError` of one line that names the file and what was expected.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from fastconv import archive
from fastconv.limits import require_memory

__all__ = ["DataError", "Dataset", "load", "load_cifar10", "load_digits", "load_idx", "load_npz", "stratified_split"]

Array = np.ndarray[Any, Any]

TEST_SHARE = 0.2  # of the images, where a source does not say which are for testing
SPLIT_SEED = 0  # fixed, so that runs with different seeds are tested on the same images
LARGEST_PIXEL = 2.0**32
CHUNK = 1024  # images normalised at a time, in float64

NPZ_KEYS = "x_train, y_train, x_test and y_test, or x and y, or images and labels"


class DataError(ValueError):
    """Images or labels that cannot be used, and why, in one line."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Normalised images with labels, for training and for testing.

    Attributes
    ----------
    name : str
        Where the images come from, for messages.
    x_train, x_test : ndarray of shape (N, C, H, W), float32
    y_train, y_test : ndarray of shape (N,), int64
        Labels 0 .. classes-1.
    classes : int
    mean, std : ndarray of shape (C,), float64
        Of the training images' pixels, before they were normalised.
    mirror : bool
        Whether an image keeps its class when left and right change places: true of photographs, not of digits.
    """

    name: str
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    classes: int
    mean: Array
    std: Array
    mirror: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return cast("tuple[int, int, int]", self.x_train.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all images and labels: two datasets with the same one are the same."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(f"{part.shape}{part.dtype.str}".encode())
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        c, h, w = self.image_shape
        sizes = f"{len(self.x_train)} training and {len(self.x_test)} test images"
        return f"{self.name}: {sizes}, {c} x {h} x {w}, {self.classes} classes"


def load(path: str | Path | None = None) -> Dataset:
    """Load labelled images from wherever `path` points.

    Parameters
    ----------
    path : path or None
        None for scikit-learn's digits; an ``.npz`` archive (`load_npz`); a folder of IDX files (`load_idx`); or a
        folder of CIFAR-10's binary files (`load_cifar10`).  The files may also lie in the subfolders that their usual
        archives make (``raw``, ``MNIST/raw``, ``cifar-10-batches-bin``).

    Raises
    ------
    DataError
        When there is nothing to read at `path`, or what is there is damaged.
    """
    if path is None:
        return load_digits()
    path = Path(path)
    try:
        if path.is_dir():
            for folder in (path, *(path / name for name in ("raw", "MNIST/raw", "FashionMNIST/raw"))):
                if any(folder.glob("train-images*")) or any(folder.glob("t10k-images*")):
                    return load_idx(folder)
            for folder in (path, path / "cifar-10-batches-bin"):
                if any(folder.glob("*_batch*.bin")):
                    return load_cifar10(folder)
            if any(path.glob("data_batch_1")) or path.joinpath("cifar-10-batches-py").exists():
                raise DataError(f"{path}: CIFAR-10 in its Python form is pickled and not read: get the binary version")
        elif path.suffix == ".npz" and path.exists():
            return load_npz(path)
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder")
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror or error}") from None
    raise DataError(
        f"{path}: expected an .npz archive, a folder of IDX files (train-images-idx3-ubyte, ...) "
        "or a folder of CIFAR-10 binary files (data_batch_1.bin, ...)"
    )


def load_digits() -> Dataset:
    """Load scikit-learn's digits: 1797 grey images of 8 x 8 pixels, a fifth of them for testing.

    They come with scikit-learn: nothing is downloaded.

    Raises
    ------
    DataError
        When scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError:
        raise DataError(
            "the default images are scikit-learn's digits, and scikit-learn is not installed: "
            "pip install 'fastconv[train]', or give --data"
        ) from None
    digits = bundled()
    return _split("digits", digits.images[:, None], digits.target.astype(np.int64), 10)


def load_npz(path: str | Path) -> Dataset:
    """Load an ``.npz`` archive of images and labels.

    Parameters
    ----------
    path : path
        An archive with these arrays:

        ``x_train``, ``y_train``, ``x_test``, ``y_test``
            Images and labels, as in Keras's ``mnist.npz``;
        ``x``, ``y`` or ``images``, ``labels``
            the same without a division: every class gives a fifth of its images, chosen by a fixed seed, for testing;
        ``classes``
            optional, an integer: how many classes there are.  Without it, the largest training label says so, and each
            class below it must occur.
        ``layout``
            optional, ``"NCHW"`` or ``"NHWC"``, where the shape leaves it open.

        Images are booleans, integers or floats of shape (N, H, W), (N, C, H, W) or (N, H, W, C); an axis of 1 to 4 is
        taken for the channels.  Labels are integers of shape (N,) or (N, 1).

    Raises
    ------
    DataError
        When the archive is damaged, or its arrays are not such images and labels.
    """
    path = Path(path)
    try:
        arrays = archive.read(path)
    except archive.ArchiveError as error:
        raise DataError(str(error)) from None
    layout = str(arrays["layout"]) if "layout" in arrays else None
    if layout not in (None, "NCHW", "NHWC"):
        raise DataError(f"{path}: layout is {layout!r}, expected 'NCHW' or 'NHWC'")
    classes = None
    if "classes" in arrays:
        given = arrays["classes"]
        if given.dtype.kind not in "iu" or given.size != 1 or not 2 <= int(given.item()) <= 2**20:
            raise DataError(f"{path}: classes must be one integer of at least 2")
        classes = int(given.item())

    def pair(x: str, y: str) -> tuple[Array, Array]:
        images = _images(f"{path}: {x}", arrays[x], layout)
        labels = _labels(f"{path}: {y}", arrays[y])
        if len(images) != len(labels):
            raise DataError(f"{path}: {x} holds {len(images)} images but {y} {len(labels)} labels")
        return images, labels

    def count(y: str, labels: Array) -> int:
        if classes is not None:
            return _check_range(f"{path}: {y}", labels, classes)
        found = np.unique(labels)
        if found[0] >= 0 and found[-1] >= len(found):
            missing = int(np.flatnonzero(found != np.arange(len(found)))[0])
            raise DataError(f"{path}: {y} has label {found[-1]}, but no image has label {missing}")
        return _check_range(f"{path}: {y}", labels, max(2, len(found)))

    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        x_train, y_train = pair("x_train", "y_train")
        x_test, y_test = pair("x_test", "y_test")
        if x_train.shape[1:] != x_test.shape[1:]:
            raise DataError(
                f"{path}: x_train holds images of shape {x_train.shape[1:]} but x_test of {x_test.shape[1:]}"
            )
        total = count("y_train", y_train)
        _check_range(f"{path}: y_test", y_test, total)
        return _dataset(str(path), x_train, y_train, x_test, y_test, total)
    for x, y in (("x", "y"), ("images", "labels")):
        if {x, y} <= arrays.keys():
            images, labels = pair(x, y)
            return _split(str(path), images, labels, count(y, labels))
    raise DataError(f"{path}: expected the arrays {NPZ_KEYS}; found {', '.join(sorted(arrays)[:8]) or 'none'}")


def load_idx(folder: str | Path) -> Dataset:
    """Load a folder of IDX files, as MNIST and Fashion-MNIST have them.

    Parameters
    ----------
    folder : path
        A folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``; each may have a dot for the second hyphen, and may be compressed (``.gz``).

    Raises
    ------
    DataError
        When a file is missing, truncated or too long, is not what its name says, or has labels beyond 9.
    """
    folder = Path(folder)

    def pair(part: str) -> tuple[Array, Array]:
        images_path, labels_path = _find_idx(folder, f"{part}-images", 3), _find_idx(folder, f"{part}-labels", 1)
        images = _images(str(images_path), _read_idx(images_path, 3))
        labels = _labels(str(labels_path), _read_idx(labels_path, 1))
        _check_range(str(labels_path), labels, 10)
        if len(images) != len(labels):
            raise DataError(f"{labels_path}: {len(labels)} labels, but {images_path.name} has {len(images)} images")
        return images, labels

    x_train, y_train = pair("train")
    x_test, y_test = pair("t10k")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(f"{folder}: training images are {x_train.shape[2:]} pixels, test images {x_test.shape[2:]}")
    return _dataset(str(folder), x_train, y_train, x_test, y_test, 10)


def _find_idx(folder: Path, stem: str, ndim: int) -> Path:
    names = [f"{stem}{mark}idx{ndim}-ubyte{suffix}" for mark in "-." for suffix in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder / names[0]}: no such file (nor {names[1]}, nor with a dot for the second hyphen)")


def _read_idx(path: Path, ndim: int) -> Array:
    """Read an IDX file of bytes: 0, 0, 8 (unsigned bytes), number of axes, their sizes as big-endian uint32, data."""
    kind = "images" if ndim == 3 else "labels"
    start = 4 + 4 * ndim
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = archive.read_exactly(cast(archive.Readable, stream), start)
            if len(header) < start:
                raise DataError(f"{path}: ends after {len(header)} bytes, within the header of an IDX file")
            if header[:4] != bytes((0, 0, 8, ndim)):
                expected = f"0000080{ndim}"
                raise DataError(
                    f"{path}: magic number {header[:4].hex()}, expected {expected} (IDX {kind} of unsigned bytes)"
                )
            shape = tuple(int.from_bytes(header[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim))
            size = math.prod(shape)
            data = archive.read_exactly(cast(archive.Readable, stream), size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error})") from None
    except MemoryError as error:
        raise DataError(f"{path}: holds more than memory does ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if size == 0:
        raise DataError(f"{path}: holds no {kind} (the header says {shape})")
    if len(data) != size:
        found = f"{len(data)} bytes" if len(data) < size else "more"
        raise DataError(f"{path}: the header promises {size} bytes of {kind} {shape}, the file holds {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def load_cifar10(folder: str | Path) -> Dataset:
    """Load CIFAR-10's binary version.

    Parameters
    ----------
    folder : path
        A folder with ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``: records of one label and
        3 x 32 x 32 pixels, equally many in each file (10,000 in the original).

    Raises
    ------
    DataError
        When a file is missing or truncated, or has labels beyond 9.
    """
    folder = Path(folder)
    record = 1 + 3 * 32 * 32
    paths = [folder / f"data_batch_{i}.bin" for i in range(1, 6)] + [folder / "test_batch.bin"]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    sizes = [path.stat().st_size for path in paths]
    largest = max(sizes)
    for path, size in zip(paths, sizes, strict=True):
        if size == 0 or size % record or size != largest:
            raise DataError(
                f"{path}: {size} bytes, expected records of {record} bytes, as many as in the other files "
                f"(the largest has {largest})"
            )
    try:
        require_memory("images", 2 * sum(sizes))
        records = [np.fromfile(path, np.uint8, size) for path, size in zip(paths, sizes, strict=True)]
    except MemoryError as error:
        raise DataError(f"{folder}: holds more than memory does ({error})") from None
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from None
    for path, data in zip(paths, records, strict=True):
        _check_range(str(path), _labels(str(path), data[::record]), 10)
    parts = [data.reshape(-1, record) for data in records]
    train = np.concatenate(parts[:5])

    def pair(data: Array) -> tuple[Array, Array]:
        return data[:, 1:].reshape(-1, 3, 32, 32), data[:, 0].astype(np.int64)

    return _dataset("CIFAR-10", *pair(train), *pair(parts[5]), 10, mirror=True)


def stratified_split(labels: Array, share: float = TEST_SHARE, seed: int = SPLIT_SEED) -> tuple[Array, Array]:
    """Divide images at random, but so that every class gives the same share.

    Parameters
    ----------
    labels : ndarray of shape (N,), integers
    share : float
        How much of each class the second part gets, rounded; a class of two or more images keeps at least one in each
        part, a class of one keeps it in the first.
    seed : int

    Returns
    -------
    first, second : ndarray of int64
        Indices in rising order.

    Examples
    --------
    >>> first, second = stratified_split(np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]))
    >>> len(first), len(second)
    (8, 2)
    """
    generator = np.random.default_rng(seed)
    taken = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        taken[members[:count]] = True
    return np.flatnonzero(~taken), np.flatnonzero(taken)


def _split(name: str, images: Array, labels: Array, classes: int) -> Dataset:
    train, test = stratified_split(labels)
    if len(test) == 0:
        raise DataError(f"{name}: {len(images)} images are too few to set some aside for testing")
    return _dataset(name, images[train], labels[train], images[test], labels[test], classes)


def _images(where: str, images: Array, layout: str | None = None) -> Array:
    """Check an array of images and return it as (N, C, H, W), in its own dtype."""
    if images.dtype.kind not in "biuf":
        raise DataError(f"{where} has dtype {images.dtype}, expected integers or floats")
    if images.ndim not in (3, 4):
        raise DataError(f"{where} has shape {images.shape}, expected (N, H, W), (N, C, H, W) or (N, H, W, C)")
    if images.size == 0:
        raise DataError(f"{where} has shape {images.shape}: there is no image in it")
    if images.ndim == 3:
        images = images[:, None]
    else:
        first, last = 1 <= images.shape[1] <= 4, 1 <= images.shape[3] <= 4
        if layout is None and first == last:
            raise DataError(
                f"{where} has shape {images.shape}, and it is not clear which axis is the channels: "
                "add layout='NCHW' or layout='NHWC' to the archive"
            )
        if layout == "NHWC" or (layout is None and last):
            images = images.transpose(0, 3, 1, 2)
    if images.dtype.kind == "f":
        for part in _chunks(images):
            if not np.isfinite(part).all():
                raise DataError(f"{where} holds NaN or infinite pixels")
            if float(np.abs(part).max()) > LARGEST_PIXEL:
                raise DataError(f"{where} holds pixels beyond {LARGEST_PIXEL:.0e}")
    return images


def _labels(where: str, labels: Array) -> Array:
    """Check an array of labels, but for their range, and return it as (N,), int64."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{where} has shape {labels.shape} and dtype {labels.dtype}, expected integer labels (N,)")
    if len(labels) == 0:
        raise DataError(f"{where} holds no label")
    if labels.dtype.kind == "u" and labels.max() > 2**62:
        raise DataError(f"{where} has label {labels.max()}")
    return labels.astype(np.int64)


def _check_range(where: str, labels: Array, classes: int) -> int:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(f"{where} has label {labels[wrong[0]]} at image {wrong[0]}, expected 0 to {classes - 1}")
    return classes


def _chunks(images: Array) -> Iterator[Array]:
    for start in range(0, len(images), CHUNK):
        yield images[start : start + CHUNK]


def _dataset(
    name: str, x_train: Array, y_train: Array, x_test: Array, y_test: Array, classes: int, *, mirror: bool = False
) -> Dataset:
    """Normalise checked images of shape (N, C, H, W) by the training images' mean and standard deviation."""
    pixels = x_train[:, 0].size
    axes = (0, 2, 3)
    mean = sum(part.sum(axes, dtype=np.float64) for part in _chunks(x_train)) / pixels
    centre = mean[:, None, None]
    variance = sum(np.square(part - centre).sum(axes) for part in _chunks(x_train)) / pixels
    std = np.sqrt(variance)
    std[std == 0] = 1  # a channel that never changes becomes zeros

    def normalise(images: Array) -> Array:
        result = np.empty(images.shape, np.float32)
        with np.errstate(over="ignore"):
            for source, target in zip(_chunks(images), _chunks(result), strict=True):
                target[:] = (source - centre) / std[:, None, None]
        if not np.isfinite(result).all():
            raise DataError(f"{name}: pixels of the test images lie far outside the range of the training images")
        return result

    return Dataset(name, normalise(x_train), y_train, normalise(x_test), y_test, classes, mean, std, mirror)
