"""What tasks are told: names and numbers, as Python lays them out and as kernels read them."""

import numpy as np
import pytest

from fastconv.jit import kernel
from fastconv.kernels.fields import Fields

IMAGE = Fields("Image", "channels size:2 last")
STRIP = Fields("Strip", "first rows:3", IMAGE)
VALUES = {"channels": 3, "size": (5, 7), "last": True, "first": -1, "rows": (2, 4, 6)}
LAID = [3, 5, 7, 1, -1, 2, 4, 6]

read_image, read_strip = IMAGE.reader(), STRIP.reader()


@kernel
def read(numbers, out):
    image, strip = read_image(numbers), read_strip(numbers)
    out[0], out[1], out[2], out[3] = image.channels, image.size[0], image.size[1], image.last
    out[4], out[5], out[6], out[7] = strip.first, strip.rows[0], strip.rows[1], strip.rows[2]


def test_numbers_lie_in_the_order_of_names():
    assert STRIP.lay(**dict(reversed(VALUES.items()))).tolist() == LAID


def test_python_and_kernels_read_the_same():
    numbers = STRIP.lay(**VALUES)
    assert numbers.dtype == np.int64
    assert IMAGE.read(numbers)._asdict() == {"channels": 3, "size": (5, 7), "last": 1}
    assert STRIP.read(numbers)._asdict() == {"first": -1, "rows": (2, 4, 6)}
    out = np.zeros(8, np.int64)
    read(numbers, out)
    assert out.tolist() == LAID


ROW = Fields("Row", "at count")

read_row = ROW.row_reader()


@kernel
def read_rows(table, at, out):
    for k in range(len(out)):
        row = read_row(table, at, k)
        out[k, 0], out[k, 1] = row.at, row.count


def test_rows_of_a_table():
    rows = [ROW.row(count=2, at=7), ROW.row(at=-1, count=5)]
    table = np.array([(9, 9), *rows]).reshape(-1)
    assert table.tolist() == [9, 9, 7, 2, -1, 5]
    assert [ROW.read_row(table, 2, k) for k in range(2)] == rows
    out = np.zeros((2, 2), np.int64)
    read_rows(table, 2, out)
    assert out.tolist() == [[7, 2], [-1, 5]]
    with pytest.raises(TypeError, match="more"):
        ROW.row(at=1, count=2, more=3)


def test_place():
    assert [IMAGE.place(name) for name in ("channels", "size", "last")] == [0, 1, 3]
    assert [STRIP.place(name) for name in ("first", "rows")] == [4, 5]


@pytest.mark.parametrize(
    ("change", "named"), [({"rows": (2, 4)}, "rows"), ({"channels": (3, 3)}, "channels"), ({"more": 1}, "more")]
)
def test_wrong_numbers_are_named(change, named):
    with pytest.raises(ValueError, match=rf"Strip is told .*\{{'{named}'\}}"):
        STRIP.lay(**VALUES | change)


@pytest.mark.parametrize("text", ["first first", "first size:2"])
def test_names_come_once(text):
    with pytest.raises(ValueError, match="every name once"):
        Fields("Strip", text, IMAGE)


def test_missing_names_are_named():
    with pytest.raises(ValueError, match=r"\{'first'\}"):
        STRIP.lay(**{name: value for name, value in VALUES.items() if name != "first"})
