"""One test body over every row of the plan's table and every case: a new row is tested by being in the table."""

import math

import numpy as np
import pytest
from cases import (
    CASES,
    INTERPRETED,
    LARGE,
    PASSES,
    Case,
    data,
    expected,
    in_turn,
    inputs_of,
    integers,
    random_cases,
    result_shape,
    shapes_3d,
    simple,
)

import fastconv
from fastconv import depthwise, engine, plan, programs, scratch
from fastconv.algorithm import _plan_pixels
from fastconv.kernels.pack import pack_image
from fastconv.programs import NO_TABLE
from fastconv.simd import NOWHERE
from fastconv.strips import pack_whole, steps_of_image

FLOATS = ("float32", "float64")
MARGIN = 512
"""Elements of NaN on both sides of every array that a row is given."""
MOST_FILLED = 1 << 16
"""Bytes of a scratch buffer that is poisoned by being filled."""
MOST_SCRATCH = 1 << 30
"""Bytes of scratch memory: rows may take as much as the machine has, of which tests would touch all."""


def is_new(algorithm, case):
    """The plain loops know no panels or stages: of large cases they would see nothing that they do not of small ones."""
    return algorithm != "reference" or case not in LARGE


def combinations(cases):
    return [
        pytest.param(row, case, in_turn(dtypes, case.seed), id=f"{row.computes}-{row.algorithm}-{case}")
        for row in plan.TABLE
        for case in cases
        if is_new(row.algorithm, case)
        if (dtypes := [name for name in FLOATS if row.unable(case.geometry, np.dtype(name)) is None])
    ]


def in_margins(arrays):
    """Copy arrays into one buffer, each with a margin of NaN on both sides; return them, the buffer and who owns what."""
    buffer = np.full(sum(array.size + MARGIN for array in arrays) + MARGIN, np.nan, arrays[0].dtype)
    owned = np.zeros(buffer.size, bool)
    views, at = [], MARGIN
    for array in arrays:
        memory = buffer[at : at + array.size]
        if array.flags.c_contiguous:
            view = memory.reshape(array.shape)
        else:  # channels-last
            n, c, *sizes = array.shape
            view = np.moveaxis(memory.reshape(n, *sizes, c), -1, 1)
        view[...] = array
        owned[at : at + array.size] = True
        views.append(view)
        at += array.size + MARGIN
    return views, buffer, owned


def channels_last(array):
    """Lay out (N, C, *spatial) as (N, *spatial, C)."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def memories(row):
    """Which of a row's arrays lie channels-last: images read, weights and images written apart, for rows that take such views."""
    if not getattr(row, "channels_last", False):
        return [()]
    images = [(), ("in", "out"), ("in",), ("out",)]
    return images if row.computes == "grad_weight" else [*images, ("in", "out", "weight"), ("weight",)]


def check_row(row, case, dtype, sums=1):
    arrays = [array.reshape(shape) for array, shape in zip(data(case, dtype), shapes_3d(case), strict=True)]
    for number, last in in_turn(tuple(enumerate(memories(row))), case.seed // 2):
        x, weight, bias, grad_output = arrays
        poison = np.full(result_shape(row.computes, case, sums), np.nan, dtype)
        if "in" in last:
            x, grad_output = channels_last(arrays[0]), channels_last(arrays[3])
        if "weight" in last:
            weight = channels_last(weight)
        if "out" in last and row.computes in ("output", "grad_input"):
            poison = channels_last(poison)
        inputs = inputs_of(row.computes, x, weight, bias, grad_output)
        if (case.seed + number) % 2 and row.sums(case.geometry.volume, poison.itemsize):
            outs = [poison, np.full(case.filters, np.nan, dtype)]
        else:
            outs = [poison]
        views, buffer, owned = in_margins([*inputs, *outs])
        inputs, (out, *biases) = views[: len(inputs)], views[len(inputs) :]
        before = [array.tobytes() for array in inputs]
        poison_scratch()
        floors = [0.0] if row.floors and (case.seed + number) % 2 else []
        row.run(case.geometry.volume, *inputs, out, *biases, *floors)
        assert np.isnan(buffer[~owned]).all(), "it wrote outside its output"
        assert [array.tobytes() for array in inputs] == before, "it changed an input"
        wanted = expected(row.computes, case, sums)
        check_values(row, out, np.maximum(wanted, 0) if floors else wanted)
        for array in biases:  # its sums are exact even where the weight's are not
            np.testing.assert_array_equal(array, expected("grad_bias", case))


def check_values(row, out, wanted):
    # NaN in the result is what was not written, or was read outside the inputs.
    assert np.isfinite(out).all()
    if row.exact:
        np.testing.assert_array_equal(out, wanted, strict=out.dtype == wanted.dtype)
    elif out.size:
        assert np.abs(out - wanted).max() <= row.largest_error(out.dtype) * np.abs(wanted).max()


def poison_scratch():
    """Fill the scratch memory that kernels use again from call to call; a large buffer goes, and is poisoned when it is new."""
    buffers = scratch._local.__dict__.get("buffers", {})
    for key, array in list(buffers.items()):
        if array.nbytes > MOST_FILLED:
            del buffers[key]
        else:
            array[...] = np.nan if array.dtype.kind in "fc" else -1


@pytest.fixture(autouse=True)
def _new_scratch_is_poisoned(monkeypatch):
    def poisoned(name, shape, dtype):
        if math.prod(shape) * np.dtype(dtype).itemsize > MOST_SCRATCH:
            pytest.skip("it takes more scratch memory than a test should")
        return np.full(shape, np.nan if np.dtype(dtype).kind in "fc" else -1, dtype)

    monkeypatch.setattr(scratch, "empty", poisoned)
    monkeypatch.setattr(scratch, "GAP_BYTES", 1 << 12)  # all of it is poisoned


@pytest.mark.parametrize("images", [1, 5, 40])
@pytest.mark.parametrize("channels", [16, 21])
def test_images_are_packed_as_a_whole_by_bands_of_rows(images, channels, rng):
    """One row for few images, some for more, and all rows of each for many."""
    shape, left = (images, channels, 1, 9, 14), (0, 1, 2)
    box = (images, channels, 1, 12, 17)
    tasks, size, told = pack_whole(shape, steps_of_image(shape, False), left, box, steps_of_image(box, True))
    assert tasks == {1: 12, 5: 5 * 6, 40: 40}[images]
    x, out = rng.standard_normal(shape).astype(np.float32), np.full(size, np.nan, np.float32)
    pack_image(tasks, told, NO_TABLE, x.reshape(-1), out)
    wanted = np.pad(x[:, :, 0], ((0, 0), (0, 0), (1, 2), (2, 1))).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(out.reshape(wanted.shape), wanted)


def test_the_table():
    assert {row.computes for row in plan.TABLE} == set(PASSES) == set(plan.PASSES)
    for computes in PASSES:
        rows = [row for row in plan.TABLE if row.computes == computes]
        assert rows[-1].algorithm == "reference"
        assert rows[-1].exact
        assert len({row.algorithm for row in rows}) == len(rows)


@pytest.mark.parametrize("row", plan.TABLE, ids=lambda row: f"{row.computes}-{row.algorithm}")
def test_every_row_meets_cases(row):
    """A row that objects to everything would pass without being run."""
    assert sum(row.unable(case.geometry, np.dtype("float32")) is None for case in CASES) >= 10


@pytest.mark.parametrize(("row", "case", "dtypes"), combinations(CASES))
def test_row(row, case, dtypes):
    for dtype in dtypes:
        check_row(row, case, dtype)


@pytest.mark.parametrize("case", [case for case in CASES if case.batch is not None][::7], ids=str)
@pytest.mark.parametrize("row", [row for row in plan.TABLE if row.computes == "grad_weight"], ids=lambda r: r.algorithm)
def test_per_sample_row(row, case):
    if row.unable(case.geometry, np.dtype("float32")) is None:
        check_row(row, case, "float32", sums=case.batch)


@pytest.mark.parametrize("itemsize", [4, 8])
def test_what_is_said_of_planes_is_what_runs(itemsize):
    """Of NCHW images whose channels do not mix: which tiles compute each pass."""
    says = {"columns": "slide down columns", "shifted": "hold whole planes"}
    for case in CASES:
        g = case.geometry.volume
        if not programs.is_depthwise(g):
            continue
        tasks = {
            "output": engine._program(programs.output_pixels(g, False, False, itemsize)),
            "grad_input": engine._program(programs.grad_input_pixels(g, False, False, itemsize)),
            "grad_weight": engine._weights_program(g, False, False, False, itemsize),
        }
        for computes, program in tasks.items():
            due = says.get(program.task.__name__.split("_")[1])
            said = engine.describe(computes, case.geometry, itemsize)
            assert [words for words in says.values() if words in said] == [due] * (due is not None), (case, computes)


STREAMED = (
    simple(2, channels=32, filters=16, size=16, padding=1),
    simple(2, channels=16, filters=80, size=(8, 20), padding=1, stride=2),
    simple(2, channels=272, filters=176, size=(4, 8), kernel=1),  # sums in several stages
    simple(2, channels=16, filters=32, size=12, kernel=1, stride=2),
    simple(2, channels=64, filters=32, size=8, kernel=(5, 3), padding=(2, 1), groups=2),
    simple(2, channels=48, filters=48, size=(4, 12), padding=1, groups=48),
    simple(2, channels=32, filters=32, size=16, kernel=7, padding=3, groups=32),
    simple(2, channels=16, filters=16, size=15, kernel=5, padding=2, stride=2, groups=16),
    simple(2, channels=40, filters=24, size=(4, 8), padding=1),  # of which some pixels begin with a line
    simple(1, channels=16, filters=16, size=64, kernel=3),
    simple(3, channels=16, filters=32, size=(3, 4, 8), padding=1, stride=(1, 2, 1)),
)


@pytest.mark.parametrize("dtype", FLOATS[:1] if INTERPRETED else FLOATS)
@pytest.mark.parametrize(
    ("row", "case"),
    [
        pytest.param(row, case, id=f"{row.computes}-{row.algorithm}-{case}")
        for row in plan.TABLE
        for case in (STREAMED[::3] if INTERPRETED else STREAMED)
        if len(memories(row)) > 1 and row.computes in ("output", "grad_input")
    ],
)
def test_large_outputs_pass_the_caches(row, case, dtype, monkeypatch, request):
    """As if all outputs were large, and begin with a line of the cache: to the same bits, and nothing else is written."""
    if (objection := row.objection(case.geometry, np.dtype(dtype))) is not None:
        pytest.skip(objection)
    request.addfinalizer(_plan_pixels.cache_clear)
    arrays = [array.reshape(shape) for array, shape in zip(data(case, dtype), shapes_3d(case), strict=True)]
    shape = result_shape(row.computes, case)
    for last in memories(row):
        x, weight, bias, grad_output = arrays
        if "in" in last:
            x, grad_output = channels_last(x), channels_last(grad_output)
        if "weight" in last:
            weight = channels_last(weight)
        results = []
        for least in (10**12, 0):
            monkeypatch.setattr(programs, "STREAM_BYTES", least)
            monkeypatch.setattr(programs, "FAR_BYTES", least)
            monkeypatch.setattr(depthwise, "PHASES_BYTES", least)
            _plan_pixels.cache_clear()
            room = scratch.aligned(math.prod(shape) + 2 * MARGIN, np.dtype(dtype))
            room[:] = np.nan
            order = (0, *range(2, len(shape)), 1) if "out" in last else range(len(shape))
            memory = room[MARGIN:-MARGIN].reshape([shape[axis] for axis in order])
            out = np.moveaxis(memory, -1, 1) if "out" in last else memory
            poison_scratch()
            row.run(case.geometry.volume, *inputs_of(row.computes, x, weight, bias, grad_output), out)
            assert np.isnan(room[:MARGIN]).all(), "it wrote in front of its output"
            assert np.isnan(room[-MARGIN:]).all(), "it wrote behind its output"
            check_values(row, out, expected(row.computes, case))
            results.append(out.tobytes())
        assert results[0] == results[1]


def test_what_passes_the_caches():
    """Large images whose pixels, or planes, share no line of the cache; not what sums are added to, or short sums of less."""

    def streams(channels, size, last=True, adds=False, filters=32):
        geometry = simple(2, channels=channels, filters=filters, size=size, kernel=1).geometry.volume
        return programs.grad_input_pixels(geometry, last, last, 4, adds=adds).streams

    assert streams(64, 160)
    assert streams(64, 160, last=False)
    assert streams(64 + 1, 160, last=False)
    assert not streams(64, 16)
    assert not streams(64, 160, adds=True)
    assert not streams(64 + 1, 160)
    assert not streams(64, 161, last=False)
    assert not streams(64, 160, filters=16)
    assert streams(64, 160, filters=16, last=False)
    assert streams(64, 240, filters=16)


@pytest.mark.long
@pytest.mark.parametrize(("row", "case", "dtypes"), combinations(random_cases(40 if INTERPRETED else 400)))
def test_row_on_random_case(row, case, dtypes):
    for dtype in dtypes:
        check_row(row, case, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# The same through the public functions, with arrays of every kind.
# ---------------------------------------------------------------------------------------------------------------------


class ByInterface:
    """Offers an array by __array_interface__ alone."""

    def __init__(self, array):
        self.owner = array
        self.__array_interface__ = array.__array_interface__


class ByDLPack:
    """Offers an array by __dlpack__ alone."""

    def __init__(self, array):
        self.owner = array

    def __dlpack__(self, **keywords):
        return self.owner.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.owner.__dlpack_device__()


def every_other(array):
    """Lay out an array with a gap beside each element; the gap holds NaN."""
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


LAYOUTS = {
    "plain": lambda a: a.copy(),
    "gaps": every_other,
    "backwards": lambda a: a[..., ::-1].copy()[..., ::-1],
    "all-backwards": lambda a: np.flip(np.flip(a).copy()),
    "read-only": read_only,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "Fortran": lambda a: np.asfortranarray(a.copy()),
    "channels-last": lambda a: np.moveaxis(
        np.moveaxis(a, 1 if a.ndim > 1 else 0, -1).copy(), -1, 1 if a.ndim > 1 else 0
    ),
    "misaligned": misaligned,
    "subclass": lambda a: a.copy().view(np.memmap),
    "interface": lambda a: ByInterface(a.copy()),
    "dlpack": lambda a: ByDLPack(a.copy()),
}

ALGORITHMS = ("auto", *dict.fromkeys(row.algorithm for row in plan.TABLE))


def rows_of(algorithm):
    """Return the row of each pass that an algorithm names; a sum (grad_bias) is left to any."""
    rows = {row.computes: row for row in plan.TABLE if row.algorithm == algorithm}
    if "grad_bias" not in rows:
        rows["grad_bias"] = plan.TABLE[-1]
    return rows


def check_public(case, dtype, algorithm, layouts):
    fastconv.set_precision("highest")  # so that what "auto" takes can be compared exactly
    x, weight, bias, grad_output = (
        LAYOUTS[name](array) for name, array in zip(layouts, data(case, dtype), strict=True)
    )
    owners = [getattr(array, "owner", array) for array in (x, weight, bias, grad_output)]
    before = [array.tobytes() for array in owners]
    forward = getattr(fastconv, f"conv{case.ndim}d")
    backward = getattr(fastconv, f"conv{case.ndim}d_backward")
    dtype = np.dtype(dtype)
    out = np.full(case.output_shape, np.nan, dtype)
    outs = fastconv.ConvGrads(
        *(np.full(shape, np.nan, dtype) for shape in (case.x_shape, case.weight_shape, (case.filters,)))
    )
    poison_scratch()
    asked, rows = case.parameters | {"algorithm": algorithm}, rows_of(algorithm)
    able = {
        computes: algorithm == "auto" or (computes in rows and rows[computes].objection(case.geometry, dtype) is None)
        for computes in PASSES
    }
    if able["output"]:
        assert forward(x, weight, bias, **asked, out=out) is out
        fresh = [forward(x, weight, bias, **asked) for _ in range(2)]  # the second by what is known of the first
        assert all(array.dtype == dtype and array.strides == fresh[0].strides for array in fresh)
        for result in (out, *fresh):
            wanted = expected("output", case).reshape(case.output_shape)
            check_values(rows.get("output", plan.TABLE[-1]), result, wanted)
    mask = tuple(able[computes] for computes in PASSES[1:])
    outs = fastconv.ConvGrads(*(array if wanted else None for array, wanted in zip(outs, mask, strict=True)))
    written = backward(grad_output, x, weight, **asked, output_mask=mask, out=outs)
    fresh = (backward(grad_output, x, weight, **asked, output_mask=mask) for _ in range(2))
    for computes, place, result, *new in zip(PASSES[1:], outs, written, *fresh, strict=True):
        assert place is result
        if place is not None:
            assert all(array.dtype == dtype and array.strides == new[0].strides for array in new)
            for array in (result, *new):
                wanted = expected(computes, case).reshape(array.shape)
                check_values(rows.get(computes, plan.TABLE[-1]), array, wanted)
    assert [array.tobytes() for array in owners] == before, "a call changed an input"


@pytest.mark.parametrize(
    ("algorithm", "number"),
    [
        pytest.param(algorithm, number, id=f"{algorithm}-{case}")
        for number, case in enumerate(CASES)
        for algorithm in in_turn(ALGORITHMS, number)
        if is_new(algorithm, case)
    ],
)
def test_public(algorithm, number):
    """Layouts and dtypes go round with the case: four neighbouring layouts for the four arrays."""
    names = tuple(LAYOUTS)
    layouts = [names[(number + turn * 5) % len(names)] for turn in range(4)]
    check_public(CASES[number], FLOATS[number % 2], algorithm, layouts)


TYPICAL = (
    simple(1, size=11, padding=((1, 2),), stride=2),
    simple(2, channels=4, filters=6, size=(7, 5), padding=1, groups=2),
    simple(2, batch=None, size=(5, 6), dilation=2, padding=((2, 1), (0, 2))),
    simple(3, size=(3, 4, 5), kernel=2, stride=(1, 2, 1)),
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", TYPICAL, ids=str)
def test_layout(case, layout):
    number = tuple(LAYOUTS).index(layout)
    for algorithm in in_turn(ALGORITHMS, number):
        for dtype in in_turn(FLOATS, number):
            check_public(case, dtype, algorithm, [layout] * 4)


@pytest.mark.parametrize(
    "layout", ["gaps", "backwards", "all-backwards", "Fortran", "channels-last", "misaligned", "subclass"]
)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", TYPICAL, ids=str)
def test_layout_of_out(case, layout, dtype, rng):
    """Results are written through any layout, and only to its own elements."""
    x, weight, bias, grad_output = data(case, dtype)
    forward = getattr(fastconv, f"conv{case.ndim}d")
    backward = getattr(fastconv, f"conv{case.ndim}d_backward")
    out = LAYOUTS[layout](integers(rng, case.output_shape, dtype))
    shapes = (case.x_shape, case.weight_shape, (case.filters,))
    first = [integers(rng, shape, dtype) for shape in shapes]
    outs = fastconv.ConvGrads(*(LAYOUTS[layout](array) for array in first))
    wanted = [expected("output", case).reshape(case.output_shape)]
    wanted += [expected(computes, case).reshape(shape) for computes, shape in zip(PASSES[1:], shapes, strict=True)]
    assert forward(x, weight, bias, **case.parameters, out=out) is out
    np.testing.assert_array_equal(out, wanted[0])
    backward(grad_output, x, weight, **case.parameters, out=outs, accumulate=True)
    for array, start, result in zip(outs, first, wanted[1:], strict=True):
        np.testing.assert_array_equal(array, start + result)
    backward(grad_output, x, weight, **case.parameters, out=outs)
    for array, result in zip((out, *outs), wanted, strict=True):
        np.testing.assert_array_equal(array, result)
        if layout == "gaps":
            assert np.isnan(array.base[..., 1::2]).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", [case for case in CASES if case.batch], ids=str)
def test_gradients_are_added_to_what_lies_channels_last(case, dtype, rng):
    if (objection := plan.ROWS["grad_input", "direct"].objection(case.geometry, np.dtype(dtype))) is not None:
        pytest.skip(objection)
    x, weight, _, grad_output = data(case, dtype)
    backward = getattr(fastconv, f"conv{case.ndim}d_backward")
    first = integers(rng, case.x_shape, dtype)
    into = fastconv.ConvGrads(LAYOUTS["channels-last"](first), None, None)
    backward(
        grad_output, x, weight, **case.parameters, algorithm="direct", output_mask=(True, False, False), out=into,
        accumulate=True,
    )  # fmt: skip
    np.testing.assert_array_equal(into.input, first + expected("grad_input", case).reshape(case.x_shape))


WINDOWS = (2, 2), (3, 1), (1, 2), (2, 5)

# Strips of these are cut between windows: in rows and columns, or between images.
POOLED = [
    Case(*numbers)
    for numbers in (
        (5, 3, 40, (70, 45), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        (2, 8, 70, (131, 37), (3, 3), (2, 2), ((1, 0), (0, 1)), (1, 1)),
        (1, 5, 33, (7, 3001), (1, 3), (1, 1), ((0, 0), (1, 1)), (1, 1)),
        (70, 20, 36, (13, 14), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)),
        (3, 32, 64, (60, 61), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 2),
        (3, 9, 24, (40, 41), (5, 3), (1, 1), ((4, 0), (0, 2)), (1, 2)),
    )
]


@pytest.mark.parametrize(
    ("row", "case"),
    [
        pytest.param(row, case, id=f"{row.algorithm}-{case}")
        for row in (plan.ROWS["output", "direct"], plan.ROWS["output", "winograd"])
        for case in [*(case for case in CASES if case.ndim == 2 and case.batch), *POOLED[: 2 if INTERPRETED else None]]
        if row.unable(case.geometry, np.dtype(np.float64)) is None
    ],
)
def test_maxima_of_windows(row, case):
    for window in in_turn(WINDOWS, case.seed):
        check_maxima(row, case, window)


def check_maxima(row, case, window):
    """Also where a window or a strip is cut; places are those of the row's own output, and nothing else is written."""
    dtype = np.dtype(FLOATS[(case.seed + window[1]) % 2])
    geometry = case.geometry.volume
    batch, filters, _, height, width = geometry.output_shape
    shape = (batch, height // window[0], width // window[1], filters)
    count = math.prod(shape)
    if not (count and row.pools(geometry, dtype.itemsize)):
        return
    arrays = [array.reshape(shape) for array, shape in zip(data(case, dtype), shapes_3d(case), strict=True)]
    for number, x in enumerate((arrays[0], channels_last(arrays[0]))):
        floor = 0.0 if number else -math.inf
        laid = channels_last(np.full(geometry.output_shape, np.nan, dtype))
        row.run(geometry, x, *arrays[1:3], laid, floor)
        blank = np.full(count + -(-count // dtype.itemsize), np.nan, dtype)
        (x, weight, bias, out), buffer, owned = in_margins([x, *arrays[1:3], blank])
        poison_scratch()
        run = row.bind(geometry, x, weight, out, window=window)
        run(out, programs.memory_of(x)[0], weight.reshape(-1), bias, floor)
        assert np.isnan(buffer[~owned]).all(), "it wrote outside its output"
        pixels = laid[:, :, 0, : shape[1] * window[0], : shape[2] * window[1]]
        taps = pixels.reshape(batch, filters, shape[1], window[0], shape[2], window[1]).transpose(0, 2, 4, 1, 3, 5)
        taps = taps.reshape(*shape, -1)
        maxima = out[:count].reshape(shape)
        places = out.view(np.uint8)[count * dtype.itemsize :][:count].reshape(shape)
        assert (places < taps.shape[-1] if floor else (places == NOWHERE) == (maxima == 0)).all()
        if row.exact:
            np.testing.assert_array_equal(maxima, taps.max(-1))
            np.testing.assert_array_equal(places[places != NOWHERE], taps.argmax(-1)[places != NOWHERE])
        else:  # other strips may be cut into other tiles, which round in other ways
            bound = row.largest_error(dtype) * abs(taps).max()
            found = np.take_along_axis(taps, (places % NOWHERE)[..., None], -1)[..., 0]
            assert (abs(maxima - taps.max(-1)) <= bound).all()
            assert (abs(maxima - found)[places != NOWHERE] <= bound).all()


def test_no_copy_where_none_is_needed():
    """A row gets the very memory of plain arrays, read-only ones and those of other libraries."""
    from fastconv.arrays import as_array, plain, target

    array = np.ones((1, 2, 3, 3), np.float32)
    for name in ("plain", "read-only", "interface", "dlpack", "subclass"):
        given = LAYOUTS[name](array)
        owner = getattr(given, "owner", given)
        flat = plain(as_array("x", given), array.shape, array.dtype)
        assert type(flat) is np.ndarray
        assert np.shares_memory(flat, np.asarray(owner)), name
        assert flat.flags.carray
    for name in ("gaps", "backwards", "big-endian", "misaligned"):
        given = LAYOUTS[name](array)
        assert not np.shares_memory(plain(as_array("x", given), array.shape, array.dtype), given), name
    out = np.empty((2, 3, 3), np.float32)
    assert np.shares_memory(target("out", out, (1, 2, 1, 3, 3), out.dtype, False), out)
