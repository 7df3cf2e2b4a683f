"""Data sets and archives: every format reads back what was written, every kind of damage is a DataError of one line."""

from __future__ import annotations

import functools
import gzip
import io
import os
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastconv import archive, data, limits
from fastconv.data import DataError

FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def digits_like(count: int, seed: int = 0, *, height: int = 6, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, height, width), np.uint8), (np.arange(count) % 10).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def idx_folder(folder: Path, *, mark: str = "-", packed: bool = False) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for seed, (part, count) in enumerate({"train": 20, "t10k": 10}.items()):
        images, labels = digits_like(count, seed)
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
        for name, array in ((f"{part}-images{mark}idx3-ubyte", images), (f"{part}-labels{mark}idx1-ubyte", labels)):
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
            else:
                (folder / name).write_bytes(idx(array))
    return arrays


def cifar_folder(folder: Path, count: int = 4) -> list[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    batches = []
    for seed, name in enumerate([f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]):
        records = np.random.default_rng(seed).integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
        batches.append(records)
    return batches


def keras(path: Path, **changes: object) -> Path:
    x_train, y_train = digits_like(20)
    x_test, y_test = digits_like(10, 1)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test} | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def fails(path: Path | None, *parts: str) -> str:
    """The data at `path` cannot be loaded, and one line says why."""
    with pytest.raises(DataError) as caught:
        data.load(path)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text
    return text


def restored(images: np.ndarray, loaded: data.Dataset) -> np.ndarray:
    return images * loaded.std[:, None, None] + loaded.mean[:, None, None]


# What is written comes back


def test_digits_are_split_by_class_and_normalised():
    digits = data.load()
    assert digits.x_train.shape == (1438, 1, 8, 8)
    assert digits.x_test.shape == (359, 1, 8, 8)
    assert digits.x_train.dtype == np.float32
    assert digits.y_train.dtype == np.int64
    assert digits.classes == 10
    assert digits.image_shape == (1, 8, 8)
    assert abs(digits.x_train.mean(dtype=np.float64)) < 1e-6
    assert abs(digits.x_train.std(dtype=np.float64) - 1) < 1e-6
    whole = np.bincount(digits.y_train) + np.bincount(digits.y_test)
    assert np.array_equal(np.bincount(digits.y_test), np.round(whole * 0.2))
    assert data.load().fingerprint == digits.fingerprint
    assert repr(digits) == "digits: 1438 training and 359 test images, 1 x 8 x 8, 10 classes"


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    fails(None, "pip install 'fastconv[train]'", "--data")


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
def test_idx(tmp_path, mark, packed, below):
    arrays = idx_folder(tmp_path / below, mark=mark, packed=packed)
    loaded = data.load(tmp_path)
    np.testing.assert_allclose(restored(loaded.x_train, loaded)[:, 0], arrays["x_train"], atol=1e-3)
    np.testing.assert_allclose(restored(loaded.x_test, loaded)[:, 0], arrays["x_t10k"], atol=1e-3)
    assert np.array_equal(loaded.y_train, arrays["y_train"])
    assert np.array_equal(loaded.y_test, arrays["y_t10k"])
    assert loaded.classes == 10
    assert not loaded.mirror


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path, below):
    batches = cifar_folder(tmp_path / below)
    loaded = data.load(tmp_path)
    train = np.concatenate(batches[:5])
    assert loaded.x_train.shape == (20, 3, 32, 32)
    np.testing.assert_allclose(restored(loaded.x_train, loaded).reshape(20, -1), train[:, 1:], atol=1e-3)
    np.testing.assert_allclose(restored(loaded.x_test, loaded).reshape(4, -1), batches[5][:, 1:], atol=1e-3)
    assert np.array_equal(loaded.y_train, train[:, 0])
    assert loaded.mirror
    planes = train[:, 1:].reshape(20, 3, -1)
    np.testing.assert_allclose(loaded.mean, planes.mean((0, 2)))
    np.testing.assert_allclose(loaded.std, planes.std((0, 2)))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i4", "<f4", ">f8", "f2", "?", ">u2"])
def test_keras_archive(tmp_path, compressed, dtype):
    x, y = digits_like(20)
    x = x.astype(dtype)
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "a.npz", x_train=x, y_train=y[:, None], x_test=x[:10], y_test=y[:10].astype(">i4"))
    loaded = data.load(tmp_path / "a.npz")
    np.testing.assert_allclose(restored(loaded.x_train, loaded)[:, 0], x.astype(np.float64), atol=1e-3)
    assert np.array_equal(loaded.y_train, y)
    assert loaded.classes == 10


@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels")])
def test_archive_without_a_division_is_split_by_class(tmp_path, keys):
    x, y = digits_like(50)
    np.savez(tmp_path / "a.npz", **dict(zip(keys, (x, y), strict=True)))
    loaded = data.load(tmp_path / "a.npz")
    assert np.bincount(loaded.y_test).tolist() == [1] * 10
    assert np.bincount(loaded.y_train).tolist() == [4] * 10
    both = np.concatenate([restored(loaded.x_train, loaded), restored(loaded.x_test, loaded)])[:, 0]
    assert sorted(both.sum((1, 2)).round().astype(int)) == sorted(x.sum((1, 2), dtype=int))


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((20, 7, 6), None, (1, 7, 6)),
        ((20, 3, 7, 6), None, (3, 7, 6)),
        ((20, 7, 6, 3), None, (3, 7, 6)),
        ((20, 7, 6, 1), None, (1, 7, 6)),
        ((20, 3, 4, 3), "NCHW", (3, 4, 3)),
        ((20, 3, 4, 2), "NHWC", (2, 3, 4)),
        ((20, 9, 8, 8), "NCHW", (9, 8, 8)),
    ],
)
def test_layouts(tmp_path, shape, layout, expected):
    x = np.random.default_rng(0).integers(0, 256, shape)
    extra = {} if layout is None else {"layout": layout}
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2, **extra)
    assert data.load(tmp_path / "a.npz").image_shape == expected


def test_classes_may_be_said(tmp_path):
    assert data.load(keras(tmp_path / "a.npz", classes=12)).classes == 12


def test_a_constant_channel_becomes_zeros(tmp_path):
    x = np.full((20, 3, 5, 5), 7.0)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2)
    assert not data.load(tmp_path / "a.npz").x_train.any()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0.05, 0.95), st.integers(0, 99))
def test_stratified_split_takes_every_image_once(labels, share, seed):
    labels = np.array(labels)
    first, second = data.stratified_split(labels, share, seed)
    assert np.array_equal(np.sort(np.concatenate([first, second])), np.arange(len(labels)))
    for label in np.unique(labels):
        count = (labels == label).sum()
        assert (labels[first] == label).any()
        assert (labels[second] == label).sum() == min(max(1, round(share * count)), count - 1)


# What is wrong is said, in one line


def test_paths_that_hold_nothing(tmp_path):
    fails(tmp_path / "absent", "absent: no such file or folder")
    fails(tmp_path / "absent.npz", "absent.npz: no such file or folder")
    fails(tmp_path, str(tmp_path), "expected an .npz archive")
    (tmp_path / "a.txt").write_text("text")
    fails(tmp_path / "a.txt", "a.txt", "expected an .npz archive")
    (tmp_path / "cifar-10-batches-py").mkdir()
    fails(tmp_path, "pickled", "binary version")


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    fails(tmp_path / "a.npz", "no such file")
    idx_folder(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    fails(tmp_path, "train-images-idx3-ubyte: no such file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_that_may_not_be_read(tmp_path):
    keras(tmp_path / "a.npz").chmod(0)
    fails(tmp_path / "a.npz", "a.npz", "Permission denied")
    idx_folder(tmp_path / "idx")
    (tmp_path / "idx" / "t10k-labels-idx1-ubyte").chmod(0)
    fails(tmp_path / "idx", "t10k-labels-idx1-ubyte", "Permission denied")
    cifar_folder(tmp_path / "cifar")
    (tmp_path / "cifar" / "data_batch_2.bin").chmod(0)
    fails(tmp_path / "cifar", "cifar", "Permission denied")


IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        (IMAGES, lambda b: b[:-1], ["promises 600 bytes", "holds 599"]),
        (IMAGES, lambda b: b + b"\0", ["promises 600 bytes", "holds more"]),
        (IMAGES, lambda b: b[:9], ["ends after 9 bytes"]),
        (IMAGES, lambda b: b"", ["ends after 0 bytes"]),
        (IMAGES, lambda b: b"\0\0\x08\x01" + b[4:], ["magic number 00000801, expected 00000803"]),
        (IMAGES, lambda b: b"\0\0\x0d\x03" + b[4:], ["magic number 00000d03, expected 00000803"]),
        (IMAGES, lambda b: b[:4] + bytes(4) + b[8:], ["holds no images"]),
        (IMAGES, lambda b: b[:4] + bytes(12), ["holds no images"]),
        (IMAGES, lambda b: b[:4] + b"\xff" * 12 + b[16:], ["promises", "holds 600 bytes"]),
        (LABELS, lambda b: b[:20] + b"\x0b" + b[21:], ["label 11 at image 12", "0 to 9"]),
        (LABELS, lambda b: b"\0\0\x08\x01\0\0\0\x13" + b[9:], ["19 labels", "has 20 images"]),
        (LABELS, lambda b: b"\0\0\x08\x01\0\0\0\0", ["holds no labels"]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx(tmp_path, name, change, parts, packed):
    idx_folder(tmp_path, packed=packed)
    path = tmp_path / (f"{name}.gz" if packed else name)
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    path.write_bytes(gzip.compress(change(content), mtime=0) if packed else change(content))
    fails(tmp_path, str(path), *parts)


def test_idx_with_a_file_missing(tmp_path):
    idx_folder(tmp_path)
    (tmp_path / LABELS).unlink()
    fails(tmp_path, f"{LABELS}: no such file", f"{LABELS}.gz")


def test_idx_with_other_test_images(tmp_path):
    idx_folder(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(digits_like(10, height=7)[0]))
    fails(tmp_path, "(6, 5)", "(7, 5)")


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b[:-9],
        lambda b: b[:40] + b"????" + b[44:],
        lambda b: b[:10] + b"\xff" + b[11:],
        lambda b: b"",
        lambda b: b[3:],
    ],
)
def test_damaged_gzip(tmp_path, change):
    idx_folder(tmp_path, packed=True)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(change(path.read_bytes()))
    fails(tmp_path, str(path))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda b: b[:-1], ["12291 bytes", "records of 3073"]),
        (lambda b: b[:-3073], ["9219 bytes", "as many as in the other files"]),
        (lambda b: b"", ["0 bytes"]),
        (lambda b: b[:3073] + b"\x0a" + b[3074:], ["label 10 at image 1", "0 to 9"]),
    ],
)
@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
def test_damaged_cifar10(tmp_path, name, change, parts):
    cifar_folder(tmp_path)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    fails(tmp_path, name, *parts)


def test_cifar10_with_a_file_missing(tmp_path):
    cifar_folder(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    fails(tmp_path, "data_batch_4.bin: no such file")


X, Y = digits_like(20)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"y_train": None}, ["expected the arrays x_train, y_train", "found x_test"]),
        ({"y_train": Y[:19]}, ["x_train holds 20 images but y_train 19 labels"]),
        ({"y_test": Y}, ["x_test holds 10 images but y_test 20 labels"]),
        ({"y_test": Y[:10] + 1}, ["y_test has label 10 at image 9, expected 0 to 9"]),
        ({"y_train": Y.astype(int) - 1}, ["y_train has label -1 at image 0"]),
        ({"y_train": np.where(Y == 3, 200, Y)}, ["y_train has label 200", "no image has label 3"]),
        ({"y_train": Y.astype(float)}, ["y_train has shape (20,) and dtype float64, expected integer"]),
        ({"y_train": np.eye(10, dtype=int)[Y]}, ["y_train has shape (20, 10)", "expected integer labels (N,)"]),
        ({"y_train": np.full(20, 2**63, np.uint64)}, ["label 9223372036854775808"]),
        ({"y_test": Y[:0]}, ["y_test holds no label"]),
        ({"x_train": X[:0]}, ["x_train has shape (0, 6, 5): there is no image"]),
        ({"x_train": X[0]}, ["x_train has shape (6, 5), expected (N, H, W)"]),
        ({"x_train": X[:, None, None]}, ["expected (N, H, W)"]),
        ({"x_train": X.astype(complex)}, ["dtype complex128, expected integers or floats"]),
        ({"x_train": X.astype(str)}, ["dtype <U3, expected integers or floats"]),
        ({"x_train": np.where(X > 250, np.nan, X)}, ["x_train holds NaN or infinite"]),
        ({"x_test": np.full((10, 6, 5), np.inf)}, ["x_test holds NaN or infinite"]),
        ({"x_test": np.full((10, 6, 5), 1e300)}, ["x_test holds pixels beyond"]),
        ({"x_test": X[:10, :5]}, ["x_train holds images of shape (1, 6, 5) but x_test of (1, 5, 5)"]),
        ({"x_train": X * 1e-100, "x_test": X[:10] * 1e7}, ["far outside the range"]),
        ({"x_train": X.reshape(20, 3, 5, 2)}, ["not clear which axis is the channels", "layout="]),
        ({"layout": "HWCN"}, ["layout is 'HWCN'"]),
        ({"classes": 5}, ["y_train has label 5 at image 5, expected 0 to 4"]),
        ({"classes": 2.5}, ["classes must be one integer"]),
        ({"classes": [10, 10]}, ["classes must be one integer"]),
        ({"x_train": X.astype(object)}, ["nothing is unpickled"]),
    ],
)
def test_wrong_arrays(tmp_path, changes, parts):
    path = keras(tmp_path / "a.npz", **changes)
    fails(path, str(path), *parts)


def test_too_few_images_to_split(tmp_path):
    np.savez(tmp_path / "a.npz", x=X[:2], y=Y[:2])
    fails(tmp_path / "a.npz", "2 images are too few")


# Truncated anywhere, or with any byte changed: a DataError or sound arrays, nothing else


@functools.cache
def samples() -> dict[str, bytes]:
    """One small file of each kind, and under what name `load` is to find it."""
    stream, packed = io.BytesIO(), io.BytesIO()
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:10].astype(">f4"), "y_test": Y[:10]}
    np.savez(stream, **arrays)
    np.savez_compressed(packed, **arrays)
    return {
        "stored.npz": stream.getvalue(),
        "deflated.npz": packed.getvalue(),
        IMAGES: idx(X),
        LABELS: idx(Y),
        f"{IMAGES}.gz": gzip.compress(idx(X), mtime=0),
        "data_batch_1.bin": np.full(4 * 3073, 5, np.uint8).tobytes(),
    }


def check_damaged(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    if not name.endswith(".npz"):
        (cifar_folder if name.endswith(".bin") else idx_folder)(folder)
        if name.endswith(".gz"):
            (folder / name.removesuffix(".gz")).unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        loaded = data.load(path if name.endswith(".npz") else folder)
    except DataError as error:
        text = str(error)
    else:
        check_sound(loaded)
        return
    assert "\n" not in text
    assert str(folder) in text or name in text


def check_sound(loaded: data.Dataset) -> None:
    for x, y in ((loaded.x_train, loaded.y_train), (loaded.x_test, loaded.y_test)):
        assert x.dtype == np.float32
        assert x.ndim == 4
        assert np.isfinite(x).all()
        assert len(x) == len(y) > 0
        assert y.min() >= 0
        assert y.max() < loaded.classes


@given(st.sampled_from(sorted(samples())), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURES)
def test_any_damage_is_a_data_error_or_sound_arrays(tmp_path, name, draw):
    content = bytearray(samples()[name])
    # Headers and zip directories are where damage is interesting: half of the positions lie there.
    places = st.integers(0, len(content) - 1) | st.integers(0, 200) | st.integers(len(content) - 500, len(content) - 1)
    position = draw.draw(places) % len(content)
    if draw.draw(st.booleans()):
        del content[position:]
    else:
        content[position] ^= draw.draw(st.integers(1, 255))
    check_damaged(tmp_path, name, bytes(content))


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(samples()))
def test_every_truncation_and_every_flipped_byte(tmp_path, name):
    content = samples()[name]
    # A batch of CIFAR-10 is the same again and again: the ends of its records, and some places between.
    positions = [i for i in range(len(content)) if not name.endswith(".bin") or i % 3073 < 3 or i % 401 == 0]
    for position in positions:
        check_damaged(tmp_path, name, content[:position])
        for mask in (1, 0x80, 0xFF):
            changed = bytearray(content)
            changed[position] ^= mask
            check_damaged(tmp_path, name, bytes(changed))


# Nothing is allocated on a header's word


def header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def lying_zip(member: bytes, claimed: int | None = None, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of one member whose directory entry (and local header) claim `claimed` bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive_file:
        archive_file.writestr(zipfile.ZipInfo("x.npy"), member, compress_type=compression)
    content = bytearray(stream.getvalue())
    if claimed is not None:
        content[22:26] = claimed.to_bytes(4, "little")
        directory = content.index(b"PK\x01\x02")
        content[directory + 24 : directory + 28] = claimed.to_bytes(4, "little")
    return bytes(content)


TEN_GIGABYTES = (10 * 2**30 // 8,)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npz", lying_zip(header(TEN_GIGABYTES) + bytes(100))),
        ("a.npz", lying_zip(header((2**29 - 16,)) + bytes(100), 2**32 - 128 + 0)),
        ("a.npz", lying_zip(header((2**29 - 16,)), 2**32 - 128 + 128 - 128, compression=zipfile.ZIP_DEFLATED)),
        ("a.npz", lying_zip(header((-1,)) + bytes(8))),
        ("a.npz", lying_zip(header((2**40, 2**40)))),
        ("a.npz", lying_zip(header((2**40,), "<U0"))),
        ("a.npz", lying_zip(header((0, 2**62, 2**62)))),
        (IMAGES, bytes((0, 0, 8, 3)) + b"\0\0\x28\0" + b"\0\0\x04\0" * 2 + bytes(80)),
        (f"{IMAGES}.gz", gzip.compress(bytes((0, 0, 8, 3)) + b"\0\0\x28\0" + b"\0\0\x04\0" * 2 + bytes(80), mtime=0)),
        (IMAGES, bytes((0, 0, 8, 3)) + b"\0\0\0\0" + b"\xff" * 8),
    ],
)
def test_no_memory_for_false_claims(tmp_path, name, content):
    if name != "a.npz":
        idx_folder(tmp_path)
        (tmp_path / IMAGES).unlink()
    path = tmp_path / name
    path.write_bytes(content)
    tracemalloc.start()
    try:
        fails(path if name == "a.npz" else tmp_path, name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


# Archives


ARRAYS = {
    "0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.array(7),
    "text": np.array('{"a": 1}'),
    "empty": np.empty((0, 3)),
    "flags": np.array([True, False]),
    "complex": np.array([1j]),
}


def test_archive_round_trip(tmp_path):
    archive.write(tmp_path / "a.npz", ARRAYS)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as theirs:
        ours = archive.read(tmp_path / "a.npz")
        assert list(ours) == list(ARRAYS) == theirs.files
        for name, array in ARRAYS.items():
            for other in (ours[name], theirs[name]):
                assert other.dtype == array.dtype
                assert np.array_equal(other, array)
            assert ours[name].flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_equal_arrays_make_equal_files(tmp_path):
    archive.write(tmp_path / "a.npz", ARRAYS)
    archive.write(tmp_path / "b.npz", ARRAYS)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def write_half(path: Path) -> None:
    with archive.atomic_file(path) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt


def test_a_failed_write_leaves_the_old_file(tmp_path):
    archive.write(tmp_path / "a.npz", ARRAYS)
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(ValueError, match="pickle"):
        archive.write(tmp_path / "a.npz", {"x": np.zeros(3), "y": np.array([object()])})
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    others = ["a.npz", ".a.npz", "a.tmp", ".a.npz.tmp", "a.npz.12-0123abcd.tmp"]
    for name in [*others, ".a.npz.12-0123abcd.tmp", ".history.json.1-00000000.tmp"]:
        (tmp_path / name).touch()
    assert archive.remove_leftovers(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_archive_members_that_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    cases = {
        "nothing is unpickled": lying_zip(header((1,), "|O") + bytes(8)),
        "compressed in a way": lying_zip(header((1,)) + bytes(8), compression=zipfile.ZIP_BZIP2),
        "unknown .npy version (9, 0)": lying_zip(b"\x93NUMPY\x09\x00" + bytes(20)),
        "which is not the size of its data": lying_zip(header((2,)) + bytes(8)),
    }
    for text, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(archive.ArchiveError) as caught:
            archive.read(path)
        assert text in str(caught.value)
    with zipfile.ZipFile(path, "w") as twice:
        twice.writestr("x.npy", header((1,)) + bytes(8))
        twice.writestr("x", header((1,)) + bytes(8))
    with pytest.raises(archive.ArchiveError, match="holds 'x' twice"):
        archive.read(path)


# Files that hold very much


def bomb(folder: Path, name: str) -> Path:
    """A small file, or one that takes no room on disk, that holds 64 MiB; return what is to be loaded."""
    zeros = bytes(64 * 2**20)
    if name == "npz":
        np.savez_compressed(folder / "a.npz", x=np.zeros((2**16, 32, 32), np.uint8), y=np.zeros(2**16, np.uint8))
        return folder / "a.npz"
    if name == "idx.gz":
        idx_folder(folder)
        (folder / IMAGES).unlink()
        head = bytes((0, 0, 8, 3)) + (2**16).to_bytes(4, "big") + (32).to_bytes(4, "big") * 2
        (folder / f"{IMAGES}.gz").write_bytes(gzip.compress(head + zeros, mtime=0))
        return folder
    cifar_folder(folder)
    for path in folder.glob("*.bin"):
        os.truncate(path, 3073 * 4000)
    return folder


@pytest.mark.parametrize("name", ["npz", "idx.gz", "cifar"])
def test_files_that_hold_more_than_memory(tmp_path, monkeypatch, name):
    path = bomb(tmp_path, name)
    monkeypatch.setattr(limits, "_known", (-np.inf, 0))
    monkeypatch.setattr(limits, "free_memory", lambda: 2**24)
    tracemalloc.start()
    try:
        fails(path, "holds more than memory does", "are free")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
