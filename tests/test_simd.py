"""The register tiles against their Python twins, at every vector width, and as machine code for other machines.

What a tile is to read or write lies in islands, with NaN around them where it reads, and MARK where it writes.
"""

import os
import re
import subprocess
import sys
from functools import partial
from itertools import cycle, product

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import config, types

from fastconv import dft, simd
from fastconv.jit import kernel
from fastconv.simd import (
    COLUMNS,
    DOT_FILTERS,
    FEW_ROWS,
    NOWHERE,
    ROWS,
    SHORT,
    SLIDES,
    SPAN,
    VECTORS,
    bare,
    columns,
    copying,
    dot,
    lanes,
    maps,
    outer,
    pooling,
    shift,
    slide,
    spectra,
    sums,
    transpose,
    walk,
    words,
)

compiled = pytest.mark.skipif(bool(config.DISABLE_JIT), reason="without the JIT the twins are all there is")

DTYPES = (np.float32, np.float64)

AWAY = 99999
"""What tables hold where no tile is to look."""

MARK = 2.0**40
"""What outputs hold where no tile is to write; no result is near this."""


@kernel
def run_outer(*arguments):
    simd.outer_tile(*arguments)


@kernel
def run_near(*arguments):
    simd.near_tile(*arguments)


@kernel
def run_far(*arguments):
    simd.far_tile(*arguments)


@kernel
def run_short(*arguments):
    simd.short_tile(*arguments)


@kernel
def run_slide(*arguments):
    simd.slide_tile(*arguments)


@kernel
def run_group_slide(*arguments):
    simd.group_slide_tile(*arguments)


@kernel
def run_sum_slide(*arguments):
    simd.sum_slide_tile(*arguments)


@kernel
def run_sum_group_slide(*arguments):
    simd.sum_group_slide_tile(*arguments)


@kernel
def run_column(*arguments):
    simd.column_tile(*arguments)


@kernel
def run_sum_column(  # by name: the oldest Numba takes a tuple of these for one of another dtype
    taps, stride, planes, rows, count, x, x_at, x_half, x_row, x_plane, row, row_end, gradient, gradient_at, gradient_row,
    gradient_plane, out, out_at, out_plane,
):  # fmt: skip
    simd.sum_column_tile(
        taps, stride, planes, rows, count, x, x_at, x_half, x_row, x_plane, row, row_end, gradient, gradient_at, gradient_row,
        gradient_plane, out, out_at, out_plane,
    )  # fmt: skip


@kernel
def run_bare_column(*arguments):
    simd.bare_column_tile(*arguments)


@kernel
def run_sum_bare_column(  # by name, as above
    taps, stride, planes, rows, count, x, x_at, x_plane, width, left, row, row_end, ahead, gradient, gradient_at, gradient_plane,
    out, out_at, out_plane,
):  # fmt: skip
    simd.sum_bare_column_tile(
        taps, stride, planes, rows, count, x, x_at, x_plane, width, left, row, row_end, ahead, gradient, gradient_at,
        gradient_plane, out, out_at, out_plane,
    )  # fmt: skip


@kernel
def run_shift(*arguments):
    simd.shift_tile(*arguments)


@kernel
def run_sum_shift(  # by name, as above
    width, taps, planes, count, x, x_at, x_plane, gradient, gradient_at, gradient_plane, out, out_at, out_plane
):  # fmt: skip
    simd.sum_shift_tile(
        width, taps, planes, count, x, x_at, x_plane, gradient, gradient_at, gradient_plane, out, out_at, out_plane
    )  # fmt: skip


@kernel
def run_dot(*arguments):
    simd.dot_tile(*arguments)


@kernel
def run_transpose(*arguments):
    simd.transpose_tile(*arguments)


@kernel
def run_transpose_lines(*arguments):
    simd.transpose_lines_tile(*arguments)


@kernel
def run_scatter(*arguments):
    simd.scatter_tile(*arguments)


@kernel
def run_edge(*arguments):
    simd.transpose_edge_tile(*arguments)


@kernel
def run_scatter_edge(*arguments):
    simd.scatter_edge_tile(*arguments)


@kernel
def run_gather(*arguments):
    simd.gather_tile(*arguments)


@kernel
def run_copy_tile(*arguments):
    simd.copy_tile(*arguments)


@kernel
def run_walk(*arguments):
    simd.walk_tile(*arguments)


@kernel
def run_narrow_tile(*arguments):
    simd.narrow_tile(*arguments)


@kernel
def run_take_tile(*arguments):
    simd.take_tile(*arguments)


@kernel
def run_pad_tile(*arguments):
    simd.pad_tile(*arguments)


@kernel
def run_copy(*arguments):
    simd.copy(*arguments)


@kernel
def run_sum(*arguments):
    simd.sum_tile(*arguments)


@kernel
def run_lane_sum(*arguments):
    simd.lane_sum_tile(*arguments)


@kernel
def run_clear(*arguments):
    simd.clear(*arguments)


@kernel
def run_input_map(*arguments):
    simd.input_map(*arguments)


@kernel
def run_output_map(*arguments):
    simd.output_map(*arguments)


@kernel
def run_pool(*arguments):
    simd.pool_tile(*arguments)


@kernel
def run_gradient_map(*arguments):
    simd.gradient_map(*arguments)


@kernel
def run_weight_map(*arguments):
    simd.weight_map(*arguments)


@kernel
def run_weight_gradient_map(*arguments):
    simd.weight_gradient_map(*arguments)


@kernel
def run_evaluate(*arguments):
    simd.evaluate_tile(*arguments)


@kernel
def run_evaluate_taps(*arguments):
    simd.evaluate_taps_tile(*arguments)


@kernel
def run_multiply(*arguments):
    simd.multiply_tile(*arguments)


@kernel
def run_interpolate(*arguments):
    simd.interpolate_tile(*arguments)


MAPS = (
    (run_input_map, maps.INPUT, False),
    (run_output_map, maps.OUTPUT, True),
    (run_gradient_map, maps.GRADIENT, False),
)

PLANE_MAPS = ((run_weight_map, maps.WEIGHT), (run_weight_gradient_map, maps.WEIGHT_GRADIENT))


def islands(draw, dtype, places, width, around=np.nan):
    """Return an array with ``width`` numbers from each place on, and something else around them and far behind."""
    where = np.asarray(places).reshape(-1, 1) + np.arange(width)
    array = np.full(where.max(initial=0) + 500, around, dtype)
    array[where] = draw(where.shape)
    return array


def blank(dtype, places, width):
    """Return an output that holds nothing yet, and where a tile is to write: ``width`` numbers from each place on."""
    written = islands(np.ones, bool, places, width, False)
    return np.full(written.shape, MARK, dtype), written


def integers(rng):
    """Draw numbers whose sums are exact, in whatever order."""
    return lambda shape: rng.integers(-4, 5, shape)


def powers(rng):
    """Draw numbers whose products are exact: with or without FMA, sums in the same order then round alike."""
    return lambda shape: rng.choice([-1, 1], shape) * 2.0 ** rng.integers(-2, 3, shape)


def lined(array, at):
    """Return a copy whose number ``at`` begins a line of the cache."""
    room = np.empty(array.size + words.LINE, array.dtype)
    first = -(room.ctypes.data // room.itemsize + at) % (words.LINE // room.itemsize)
    copy = room[first : first + array.size]
    copy[:] = array
    return copy


def compare(run, twin, arguments, out, written, line=0):
    """Compare what a tile and its twin make of ``out``, one of the arguments, and see that both write what is due.

    Its number ``line`` begins a line of the cache.
    """
    results = lined(out, line), out.copy()
    for tile, result in zip((run, twin), results, strict=True):
        tile(*(result if argument is out else argument for argument in arguments))
    np.testing.assert_array_equal(*results)
    np.testing.assert_array_equal(results[0] != MARK, written)
    assert np.isfinite(results[0]).all()


def in_order(names, **arguments):
    """Return the arguments of a tile in the order of its list of names."""
    assert set(names.split(", ")) == set(arguments)
    return [arguments[name] for name in names.split(", ")]


# ---------------------------------------------------------------------------------------------------------------------
# The tiles
# ---------------------------------------------------------------------------------------------------------------------


def with_floor(start, floor):
    """Put a floor behind what sums begin with: behind its last number, and where that is."""
    return np.append(start, start.dtype.type(floor)), start.size


def sums_of(rng, dtype, number, width, valid, count, add, more=3):
    """Draw what an outer tile is given for a number of rows, where to write, and what is written.

    Vectors and rows lie anywhere, ``more`` than a width apart, and the last row comes twice.
    """
    pitch = width + more
    order = rng.permutation(number)
    order[-1] = order[-min(2, number // 2)]
    rows, targets = rng.permutation(3 * number)[order], order * pitch
    pairs = np.stack([rng.integers(0, 200, count), rng.permutation(count) * pitch], 1)
    tables = np.concatenate([[AWAY], pairs.reshape(-1), [AWAY], rows, [AWAY], targets, [AWAY]])
    rows_at = 2 + 2 * count
    out = islands(rng.standard_normal, dtype, 5 + targets, valid, MARK)
    written = out != MARK
    if not add:
        out[:] = MARK
    start, floor_at = with_floor(islands(rng.standard_normal, dtype, 4, width), rng.choice([-np.inf, 0]))
    arguments = {
        "vectors": islands(rng.standard_normal, dtype, 2 + pairs[:, 1], width),
        "vector_at": 2,
        "tables": tables,
        "pairs_at": 1,
        "count": count,
        "scalars": islands(powers(rng), dtype, 3 + np.add.outer(rows, pairs[:, 0]), 1),
        "scalar_at": 3,
        "rows_at": rows_at,
        "out": out,
        "out_at": 5,
        "targets_at": rows_at + rows.size + 1,
        "rows": number,
        "start": start,
        "start_at": 4,
        "floor_at": floor_at,
        "add": add,
        "valid": valid,
    }
    return arguments, out, written


def check_outer(dtype):
    """Every number of lanes; sums that are short, and that are taken in chunks; tiles of six rows and of four."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    width = VECTORS * n
    cases = [*product(range(1, width + 1), (0, 1, 4, 5), (0, 1))]
    cases += product(
        (1, n, width), (outer.TERMS - 1, outer.TERMS, outer.TERMS + 1, 2 * outer.TERMS, 2 * outer.TERMS + 3), (0, 1)
    )
    for number, (valid, count, add) in zip(cycle((12, 4, 8, 10, 14, 6, 16)), cases, strict=False):
        for streams, more in product((0, 1), (3, n)):  # rows begin with a line, or some do not
            arguments, *results = sums_of(rng, dtype, number, width, valid, count, add, more)
            given = [*in_order(outer.TILE, **arguments), streams]
            compare(run_outer, outer._tile_twin, given, *results, line=arguments["out_at"])
            arrays = arguments["scalars"], arguments["vectors"]
            coming = (arrays[0], 3, 12, arrays[1], -(2**40), -1)  # it need not exist
            for run, some in ((run_near, coming[:3]), (run_near, coming[3:]), (run_far, coming)):
                arguments, *results = sums_of(rng, dtype, number, width, valid, count, add, more)
                given = [*in_order(outer.TILE, **arguments), streams, *some]
                compare(run, outer._tile_twin, given, *results, line=arguments["out_at"])


def check_short(dtype):
    """Every number of rows, of all lanes or some."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for height, vectors in (*SHORT.items(), (ROWS, VECTORS)):
        width = vectors * n
        for valid, count, add in product((1, n + 1, width), (0, 1, 4, 5, 2 * outer.TERMS + 3), (0, 1)):
            arguments, *results = sums_of(rng, dtype, 2 * height, width, valid, count, add)
            compare(run_short, outer._short_tile_twin, [height, *in_order(outer.TILE, **arguments)], *results)


def sliding(n):
    """All kinds of sliding tiles, and numbers of channels that they can take."""
    plain = tuple((kind, channels) for kind in slide.KINDS for channels in (n, 2 * n + 1))
    groups = tuple((kind, channels) for kind in slide.GROUP_KINDS if kind[3] <= n for channels in (n, 2 * n + kind[3]))
    return plain, groups


def image(draw, rng, dtype, kind, count, groups, rows, channels):
    """Draw an image for a sliding tile, with places on all sides of those that exist."""
    taps, stride, height, members = kind
    reach = taps if height > 1 else 1
    lines, x_step = groups * reach, channels + 2
    width = (count - 1) * stride + taps - 1  # one column in front of it is met, and one behind
    y_row = width * x_step + 4
    plane = 5 * y_row + 6
    shifts = rng.integers(-1, 2, (groups, 3)).repeat(reach, 0)
    shifts[:, 1] += np.arange(lines) % reach if height > 1 else 0
    offsets = shifts * (plane, y_row, x_step)
    z, y, column = plane, y_row * rng.integers(-1, 2), -x_step
    ends = 2 * plane, 4 * y_row, width * x_step
    along = (
        z + offsets[:, 0, None, None, None],
        (y + np.arange(rows) * y_row)[:, None, None] + offsets[:, 1, None, None, None],
        column + x_step * np.add.outer(stride * np.arange(count), np.arange(taps)) + offsets[:, 2, None, None, None],
    )
    exist = [(places >= 0) & (places < end) for places, end in zip(along, ends, strict=True)]
    places = sum(np.broadcast_arrays(*along))[np.logical_and.reduce(np.broadcast_arrays(*exist))]
    return {
        "taps": taps,
        "stride": stride,
        "height": height,
        "members": members,
        "tables": np.concatenate([[AWAY], offsets.reshape(-1)]),
        "lines_at": 1,
        "lines": lines,
        "x": islands(draw, dtype, 3 + places, channels),
        "x_at": 3,
        "z": z,
        "z_end": ends[0],
        "y": y,
        "y_row": y_row,
        "y_end": ends[1],
        "column": column,
        "x_step": x_step,
        "x_end": ends[2],
        "count": count,
        "rows": rows,
        "channels": channels,
    }


def check_slide(dtype):
    """Every kind of row, whole and partial spans, and a last vector that overlaps."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    plain, grouped = sliding(n)
    cases = [*product((*plain, *grouped), (1, SPAN, SPAN + 2), (0, 1, 2), (0, 1, 4))]
    many = [(kind, (slide.MANY + 1) * n + kind[3]) for kind, _ in (*plain[-2:], *grouped[-1:])]
    cases += product(many, (SPAN,), (1,), (2,))  # does not begin with a line
    streaming = product((*plain, *((kind, 2 * n) for kind, _ in plain[::2]), *grouped), (1, SPAN + 2), (1, 2), (1, 4))
    streaming = *streaming, *product(((kind, (slide.MANY + 1) * n) for kind, _ in plain), (SPAN,), (1,), (2,))
    for streams, ((kind, channels), count, groups, rows) in (*product((0,), cases), *product((1,), streaming)):
        given = image(rng.standard_normal, rng, dtype, kind, count, groups, rows, channels)
        pitch, out_step = channels + 1, n * (channels // n + 2) if streams else channels + 3
        out_row = count * out_step + (n if streams else 5)
        places = np.add.outer(np.arange(rows) * out_row, np.arange(count) * out_step)
        out, written = blank(dtype, 4 + places, channels)
        start, floor_at = with_floor(islands(rng.standard_normal, dtype, [5], channels), rng.choice([-np.inf, 0]))
        arguments = in_order(
            slide.SLIDE,
            **given,
            weights=islands(powers(rng), dtype, 2 + np.arange(given["lines"] * kind[0] * kind[3]) * pitch, channels),
            weights_at=2,
            pitch=pitch,
            out=out,
            out_at=4,
            out_step=out_step,
            out_row=out_row,
            start=start,
            start_at=5,
            floor_at=floor_at,
            streams=streams,
        )
        run = run_group_slide if kind[3] > 1 else run_slide
        compare(run, slide._slide_twin, arguments, out, written, line=4)


def check_sum_slide(dtype):
    """Every kind of row, with whole spans and single pixels; these sums are in an order of their own."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    plain, grouped = sliding(n)
    cases = [*product((*plain, *grouped), (1, SPAN, SPAN + 2), (0, 1, 2), (0, 1, 2))]
    many = [(kind, (slide.MANY + 1) * n + kind[3]) for kind, _ in (*plain[-2:], *grouped[-1:])]
    cases += product(many, (SPAN,), (1,), (1,))
    for (kind, channels), count, groups, blocks in cases:
        rows = blocks * kind[2]
        given = image(integers(rng), rng, dtype, kind, count, groups, rows, channels)
        pitch, gradient_step = channels + 3, channels + 1
        gradient_row = count * gradient_step + 5
        places = np.add.outer(np.arange(rows) * gradient_row, np.arange(count) * gradient_step)
        out = islands(integers(rng), dtype, 4 + np.arange(given["lines"] * kind[0] * kind[3]) * pitch, channels, MARK)
        arguments = in_order(
            slide.SUM_SLIDE,
            **given,
            gradient=islands(integers(rng), dtype, 3 + places, channels),
            gradient_at=3,
            gradient_step=gradient_step,
            gradient_row=gradient_row,
            out=out,
            out_at=4,
            pitch=pitch,
        )
        run = run_sum_group_slide if kind[3] > 1 else run_sum_slide
        compare(run, slide._sum_slide_twin, arguments, out, out != MARK)


def falling(n):
    """List what tiles that slide down columns are given: (taps, stride), pixels, rows, planes, and rows of the input cut off."""
    counts = (1, n - 1, n, 3 * n, 7 * n + 2)
    cases = [*product(COLUMNS, counts, (1, 4), (2,), ((0, 0), (1, 2), (4, 4)))]
    return [*cases, *product(COLUMNS[:3], (n + 1,), (9,), (1, 3), ((2, 1),))]


def rows_of_planes(draw, dtype, kind, count, rows, planes, cut):
    """Draw the rows that exist of those that outputs meet: some are cut off above, and below."""
    (taps, stride), (above, below) = kind, cut
    row_end = max(1, stride * (rows - 1) + taps - above - below)
    x_half = count + taps // stride + 2
    x_row = stride * x_half + 1
    x_plane = row_end * x_row + 5
    widths = [count + (taps - 1 - odd) // stride for odd in range(stride)]
    places = [
        plane * x_plane + row * x_row + odd * x_half + np.arange(width)
        for plane, row, (odd, width) in product(range(planes), range(row_end), enumerate(widths))
    ]
    return {
        "taps": taps, "stride": stride, "planes": planes, "rows": rows, "x": islands(draw, dtype, 3 + np.concatenate(places), 1),
        "x_at": 3, "x_half": x_half, "x_row": x_row, "x_plane": x_plane, "row": -above, "row_end": row_end,
    }  # fmt: skip


def check_column(dtype):
    """All kinds, with rows that fill vectors and such that do not, one behind the other: the next one is written later."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for kind, count, rows, planes, cut in falling(n):
        whole, (taps, _) = -(-count // n) * n, kind
        given = rows_of_planes(rng.standard_normal, dtype, kind, whole, rows, planes, cut)
        down, across = [(taps, 1), (-taps, -1), (1, taps)][int(rng.integers(3))]
        first = max(0, (1 - taps) * (down + across))
        places = np.add.outer(np.arange(planes) * (rows * count), np.arange(rows) * count)
        out, written = blank(dtype, 4 + places, whole)
        start, floor_at = with_floor(islands(rng.standard_normal, dtype, [5], planes), rng.choice([-np.inf, 0]))
        arguments = in_order(
            columns.COLUMN, **given, count=count,
            weights=islands(powers(rng), dtype, 2 + np.arange(planes) * (taps * taps + 1), taps * taps), weights_at=2 + first,
            down=down, across=across, weights_plane=taps * taps + 1, out=out, out_at=4, out_row=count, out_plane=rows * count,
            start=start, start_at=5, floor_at=floor_at,
        )  # fmt: skip
        compare(run_column, columns._column_twin, arguments, out, written)


def check_sum_column(dtype):
    """The same, where nothing is behind the last pixel of a row."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for kind, count, rows, planes, cut in falling(n):
        terms = kind[0] ** 2
        given = rows_of_planes(integers(rng), dtype, kind, count, rows, planes, cut)
        gradient_row, gradient_plane, out_plane = count + 3, rows * (count + 3) + 1, terms * n + 2
        places = np.add.outer(np.arange(planes) * gradient_plane, np.arange(rows) * gradient_row)
        out = islands(integers(rng), dtype, 4 + np.arange(planes) * out_plane, terms * n, MARK)
        arguments = in_order(
            columns.SUM_COLUMN, **given, count=count, gradient=islands(integers(rng), dtype, 3 + places, count), gradient_at=3,
            gradient_row=gradient_row, gradient_plane=gradient_plane, out=out, out_at=4, out_plane=out_plane,
        )  # fmt: skip
        compare(run_sum_column, columns._sum_column_twin, arguments, out, out != MARK)


def check_walk(dtype):
    """Every number of rows, lines of some pixels or none, that lie apart: what lies around these is NaN."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for height, (lines, pixels) in product(range(1, walk.MOST_SIDE + 1), ((1, 1), (2, 5), (0, 3), (3, 0))):
        of_vectors, of_scalars = ((pixels * size + 5, size) for size in (n + 3, height + 2))
        arrays = []
        for (line, step), size in ((of_vectors, n), (of_scalars, height)):
            places = np.add.outer(np.arange(lines) * line, np.arange(pixels) * step)
            arrays.append(islands(integers(rng), dtype, 3 + places, size))
        out = islands(integers(rng), dtype, 4 + np.arange(height) * (n + 1), n, MARK)
        arguments = in_order(
            walk.WALK, height=height, lines=lines, columns=pixels, vectors=arrays[0], vector_at=3, vector_line=of_vectors[0],
            vector_step=of_vectors[1], scalars=arrays[1], scalar_at=3, scalar_line=of_scalars[0], scalar_step=of_scalars[1],
            ahead=10**12, out=out, out_at=4, out_step=n + 1,
        )  # fmt: skip
        compare(run_walk, walk._walk_tile_twin, arguments, out, out != MARK)


def bare_planes(draw, dtype, kinds):
    """List what tiles of bare planes are given: columns and rows that lie around a plane, inside of it, or apart from it."""
    n = lanes(np.dtype(dtype).itemsize)
    for (taps, stride), count, rows in product(kinds, (1, n - 1, n, 3 * n + 2), (1, 5)):
        met = stride * count
        widths = (met, met + taps - 1, met, max(1, met - 3), met + 9, 2)
        lefts = (0, 0, taps // 2, taps + 1, -2, n + 9)
        heights = ((0, 9), (-1, rows), (-taps, 3), (2, 2), (1 - taps, 1), (0, rows))
        for width, left, (row, row_end), planes in zip(widths, lefts, heights, cycle((1, 3)), strict=False):
            x_plane = row_end * width + 2
            yield {
                "taps": taps, "stride": stride, "planes": planes, "rows": rows, "count": count,
                "x": islands(draw, dtype, 3 + np.arange(planes) * x_plane, row_end * width), "x_at": 3, "x_plane": x_plane,
                "width": width, "left": left, "row": row, "row_end": row_end, "ahead": 10**12,
            }  # fmt: skip


def check_bare_column(dtype):
    """All numbers of taps, with planes of all sizes; what is fetched need not exist."""
    rng = np.random.default_rng(0)
    for given in bare_planes(integers(rng), dtype, simd.BARE):
        taps, planes, count = given["taps"], given["planes"], given["rows"] * given["count"]
        down, across = [(taps, 1), (-taps, -1), (1, taps)][int(rng.integers(3))]
        out, written = blank(dtype, 4 + np.arange(planes) * (count + 1), count)
        start, floor_at = with_floor(islands(integers(rng), dtype, [5], planes), rng.choice([-np.inf, 0]))
        arguments = in_order(
            bare.COLUMN, **given, weights=islands(powers(rng), dtype, 2 + np.arange(planes) * (taps * taps + 1), taps * taps),
            weights_at=2 + max(0, (1 - taps) * (down + across)), down=down, across=across, weights_plane=taps * taps + 1, out=out,
            out_at=4, out_plane=count + 1, start=start, start_at=5, floor_at=floor_at,
        )  # fmt: skip
        compare(run_bare_column, bare._column_twin, arguments, out, written)


def check_sum_bare_column(dtype):
    """The same planes times gradients."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for given in bare_planes(integers(rng), dtype, simd.SUM_BARE):
        terms, planes, count = given["taps"] ** 2, given["planes"], given["rows"] * given["count"]
        out = islands(integers(rng), dtype, 4 + np.arange(planes) * (terms * n + 2), terms * n, MARK)
        arguments = in_order(
            bare.SUM_COLUMN, **given, gradient=islands(integers(rng), dtype, 3 + np.arange(planes) * (count + 1), count),
            gradient_at=3, gradient_plane=count + 1, out=out, out_at=4, out_plane=terms * n + 2,
        )  # fmt: skip
        compare(run_sum_bare_column, bare._sum_column_twin, arguments, out, out != MARK)


def whole_planes(draw, dtype):
    """List what tiles that hold planes are given: their width, taps, planes and pixels, and where these lie."""
    itemsize = np.dtype(dtype).itemsize
    for width, taps in shift.SHIFTS:
        for height, planes in product((1, width - 1, width, width + 1, 2 * width), (1, 3)):
            count = height * width
            if simd.holds_plane(width, taps, count, itemsize):
                places = 3 + np.arange(planes) * (count + 2)
                yield {
                    "width": width, "taps": taps, "planes": planes, "count": count, "x": islands(draw, dtype, places, count),
                    "x_at": 3, "x_plane": count + 2,
                }  # fmt: skip


def check_shift(dtype):
    """All kinds, with planes that fill their vectors and such that do not; taps in order, and the last one first."""
    rng = np.random.default_rng(0)
    for given in whole_planes(integers(rng), dtype):
        taps, planes, count = (given[name] for name in ("taps", "planes", "count"))
        down, across = [(taps, 1), (-taps, -1), (1, taps)][int(rng.integers(3))]
        out, written = blank(dtype, 4 + np.arange(planes) * (count + 1), count)
        start, floor_at = with_floor(islands(integers(rng), dtype, [5], planes), rng.choice([-np.inf, 0]))
        arguments = in_order(
            shift.SHIFT, **given, weights=islands(powers(rng), dtype, 2 + np.arange(planes) * (taps * taps + 1), taps * taps),
            weights_at=2 + max(0, (1 - taps) * (down + across)), down=down, across=across, weights_plane=taps * taps + 1, out=out,
            out_at=4, out_plane=count + 1, start=start, start_at=5, floor_at=floor_at,
        )  # fmt: skip
        compare(run_shift, shift._shift_twin, arguments, out, written)


def check_sum_shift(dtype):
    """The same planes times gradients."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for given in whole_planes(integers(rng), dtype):
        terms, planes, count = given["taps"] ** 2, given["planes"], given["count"]
        out = islands(integers(rng), dtype, 4 + np.arange(planes) * (terms * n + 2), terms * n, MARK)
        places = 3 + np.arange(planes) * (count + 1)
        arguments = in_order(
            shift.SUM_SHIFT, **given, gradient=islands(integers(rng), dtype, places, count), gradient_at=3,
            gradient_plane=count + 1, out=out, out_at=4, out_plane=terms * n + 2,
        )  # fmt: skip
        compare(run_sum_shift, shift._sum_shift_twin, arguments, out, out != MARK)


def check_dot(dtype):
    """All numbers of filters and of terms that are taken at once, whole vectors and parts of them, of which NaNs are left out."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for filters, terms, count in product(range(1, DOT_FILTERS + 1), (1, 2, 9, 25), (1, n - 1, n, 2 * n, 2 * n + 3)):
        rows = int(rng.integers(1, 5))
        x_row, gradient_row, gradient_plane, out_pitch = count + 4, count + 2, rows * (count + 2) + 1, terms * n + 3
        offsets = rng.permutation(3 * terms)[:terms]
        places = np.add.outer(offsets, np.arange(rows) * x_row) + 2
        of_gradients = np.add.outer(np.arange(filters) * gradient_plane, np.arange(rows) * gradient_row) + 3
        out = islands(integers(rng), dtype, 4 + np.arange(filters) * out_pitch, terms * n, MARK)
        arguments = in_order(
            dot.DOT, filters=filters, terms=terms, rows=rows, count=count, x=islands(integers(rng), dtype, places, count), x_at=2,
            x_row=x_row, tables=np.concatenate([[AWAY], offsets]), offsets_at=1,
            gradient=islands(integers(rng), dtype, of_gradients, count), gradient_at=3, gradient_row=gradient_row,
            gradient_plane=gradient_plane, out=out, out_at=4, out_pitch=out_pitch,
        )  # fmt: skip
        compare(run_dot, dot._dot_twin, arguments, out, out != MARK)


def check_transpose(dtype):
    """The four kinds and their twins against NumPy; with and without columns that are left out."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    runs = {"plain": run_transpose, "lines": run_transpose_lines, "scatter": run_scatter, "gather": run_gather}
    line = words.LINE // np.dtype(dtype).itemsize
    cases = [*product(runs, (0, 1, 3), (n,), (1,)), *product(["scatter"], (1, 3), range(1, n), (1,))]
    for kind, squares, kept, more in (*cases, ("lines", 3, n, line)):  # columns begin with a line, or some do not
        rows_of, step = line if kind == "lines" else n, 4 * line + more
        size = squares * n
        rows = rng.permutation(2 * size)[:size]
        keeps = np.arange(size) % n < kept
        table = np.concatenate([[AWAY], rows])
        source = rng.integers(0, 100, 1 + (2 * size + line) * step).astype(dtype)
        out = np.full(2 + (2 * size + line) * step, MARK, dtype)
        expected = out.copy()
        grid, into = source[1:].reshape(-1, step), expected[2:].reshape(-1, step)
        if kind in ("plain", "lines"):
            into[:size, :rows_of] = grid[:rows_of, :size].T
        elif kind == "scatter":
            into[rows[keeps], :n] = grid[:n, :size].T[keeps]
        else:
            into[:n, :size] = grid[rows, :n].T
        given = {"scatter": (table, 1, kept), "gather": (table, 1)}.get(kind, ())
        for tile in (runs[kind], transpose._transpose_twin(kind)):
            result = lined(out, 2)
            tile(source, 1, step, result, 2, step, squares, *given)
            np.testing.assert_array_equal(result, expected, err_msg=f"{kind}, {squares} squares, {kept} kept")


def check_transpose_edge(dtype):
    """Fewer rows than lanes, columns that end anywhere, and both; what lies beside them is NaN, and stays as it is."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for rows, kept in product(range(1, n + 1), (1, 2, n - 1, n, 2 * n + 3)):
        source_step, out_step, squares = kept + 3, rows + 2, -(-kept // n)
        source = islands(rng.standard_normal, dtype, 3 + np.arange(rows) * source_step, kept)
        out, written = blank(dtype, 7 + np.arange(kept) * out_step, rows)
        arguments = source, 3, source_step, out, 7, out_step, squares
        compare(run_edge, transpose._transpose_twin("edge"), (*arguments, kept, rows), out, written)
        places = rng.permutation(2 * kept)[:kept]
        out, written = blank(dtype, 7 + places * out_step, rows)
        arguments = source, 3, source_step, out, 7, out_step, squares, np.concatenate([[AWAY], places]), 1
        compare(run_scatter_edge, transpose._transpose_twin("scatter_edge"), (*arguments, kept, rows), out, written)


def check_copy(dtype):
    """Copying whole vectors, every second number, rows up to whole vectors, copying, and clearing."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for vectors, rows in product(range(1, VECTORS + 1), (0, 1, 4)):
        width, row = vectors * n, np.arange(rows)
        source_step, out_step = width + 1, width + (2 if rows < 4 else n)  # rows begin with a line, or some do not
        source = islands(rng.standard_normal, dtype, 3 + row * source_step, width)
        out, written = blank(dtype, 7 + row * out_step, width)
        for streams in (0, 1):
            arguments = source, 3, source_step, out, 7, out_step, rows, vectors, streams
            compare(run_copy_tile, copying._copy_tile_twin, arguments, out, written, line=7)
    for count, rows in product(range(1, 3 * n + 2), (0, 1, 4)):
        source_step, out_step, row = 2 * count + 1, count + 2, np.arange(rows)
        source = islands(rng.standard_normal, dtype, 3 + row * source_step, 2 * count - 1)
        out, written = blank(dtype, 7 + row * out_step, count)
        arguments = source, 3, source_step, out, 7, out_step, rows, count, 5 * source_step
        compare(run_take_tile, partial(copying._take_tile_twin, 2), arguments, out, written)
        source = islands(rng.standard_normal, dtype, 3 + row * source_step, count)
        arguments = source, *arguments[1:-1]
        compare(run_narrow_tile, partial(copying._take_tile_twin, 1), arguments, out, written)
        whole = -(-count // n) * n
        out, written = blank(dtype, 7 + row * (whole + 2), whole)
        arguments = source, 3, source_step, out, 7, whole + 2, rows, count
        compare(run_pad_tile, copying._pad_tile_twin, arguments, out, written)
    for count in (0, 1, n, 3 * n + 1):
        source = islands(rng.standard_normal, dtype, 3, count)
        out, written = blank(dtype, 7, count)
        compare(run_copy, copying._copy_twin, (source, 3, out, 7, count), out, written)
        compare(run_clear, copying._clear_twin, (out, 7, 7 + count), out, written)


def check_sum(dtype):
    """Sums over pixels, in one order: rows with and without groups of neighbours, and no pixel at all."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for sizes in ((1, 1, 1, 8), (2, 3, 2, 21), (1, 1, 4, 7), (2, 0, 3, 5), (1, 2, 1, 1)):
        steps = (2000, 600, 23 * (n + 1), n + 1)
        pixels = sum(np.ogrid[tuple(slice(0, size * step, step) for size, step in zip(sizes, steps, strict=True))])
        source = islands(rng.standard_normal, dtype, 3 + pixels, n)
        out, written = blank(dtype, 7, n)
        compare(run_sum, sums._sum_tile_twin, (source, 3, *sizes, *steps, out, 7), out, written)
        result = out.copy()
        run_sum(source, 3, *sizes, *steps, result, 7)
        terms = source[3 + pixels.reshape(-1, 1) + np.arange(n)].astype(np.float64)
        wanted = terms.sum(0)
        # Each number is rounded with its neighbours three times, and the result once.
        bound = np.finfo(dtype).eps / 2 * (3 * np.abs(terms).sum(0) + np.abs(wanted))
        assert dtype == np.float64 or (np.abs(result[7 : 7 + n] - wanted) <= bound).all()


def check_lane_sum(dtype):
    """As many vectors as lanes, fewer and more, and none."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for count in (0, 1, n - 1, n, 2 * n + 3):
        source = islands(rng.standard_normal, dtype, 3, count * n)
        out, written = blank(dtype, 7, count)
        compare(run_lane_sum, sums._lane_sum_twin, (source, 3, count, out, 7), out, written)
        result = out.copy()
        run_lane_sum(source, 3, count, result, 7)
        terms = source[3 : 3 + count * n].astype(np.float64).reshape(count, n)
        bound = np.log2(n) * np.finfo(dtype).eps / 2 * np.abs(terms).sum(1)
        assert (np.abs(result[7 : 7 + count] - terms.sum(1)) <= bound).all()


def check_maps(dtype):
    """Each map and its twin against NumPy, which multiplies in double precision."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for (run, of_sizes, starts), count, streams in product(MAPS, (0, 1, 5), (0, 1)):
        apart = n * (1 + streams) if streams else n + 3  # turns begin with a line, or some do not
        for size, (matrix, inputs, outputs) in of_sizes.items():
            turn = np.arange(count)[:, None]
            source_places = turn * (7 * n) + np.array(inputs) * (40 * n)
            target_places = turn * apart + np.array(outputs) * (9 * n)
            source = islands(rng.standard_normal, dtype, 3 + source_places.reshape(-1), n)
            start, floor_at = with_floor(islands(rng.standard_normal, dtype, [5], n), rng.choice([-np.inf, 0]))
            out, written = blank(dtype, 2 + target_places.reshape(-1), n)
            read = source[(3 + source_places)[:, :, None] + np.arange(n)].astype(np.float64)
            wanted = matrix @ read
            if starts:
                wanted = np.maximum(wanted + start[5 : 5 + n], start[floor_at])
            scale = abs(matrix) @ abs(read) + 5
            for tile in (run, maps._map_twin(of_sizes, starts)):
                result = lined(out, 2)
                tile(
                    *size, source, 3, 40 * n, 7 * n, result, 2, 9 * n, apart, count,
                    *((start, 5, floor_at, streams) if starts else (source, 10**12, 2 * n, n, 3)),
                )  # fmt: skip
                np.testing.assert_array_equal(result != MARK, written)
                found = result[(2 + target_places)[:, :, None] + np.arange(n)]
                assert (abs(found - wanted) <= 8 * np.finfo(dtype).eps * scale).all(), (run, size)


UNSEEN = 200  # no place of these windows


def check_pool(dtype):
    """Windows of all kinds, with numbers that are equal and some that are none."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    sizes = ((1, 1), (2, 2), (3, 2), (1, 5))
    for (rows, width), count, valid, floor in product(sizes, (0, 1, 5), (1, n - 1, n, 3 * n), (-np.inf, 0)):
        pitch, step, stored = n + 3, n + 5, min(n, valid)
        places = np.add.outer(np.arange(rows) * (9 * width * pitch), np.arange(count * width) * pitch)
        source = islands(lambda shape: rng.choice([-2.0, 0, 1, 3, np.nan], shape), dtype, 3 + places, n)
        start, floor_at = with_floor(islands(rng.standard_normal, dtype, [5], n), floor)
        written = np.zeros(2 + count * step + n + 4, bool)
        written[2 + np.arange(count)[:, None] * step + np.arange(stored)] = True
        results = [(np.full(written.size, MARK, dtype), np.full(written.size, UNSEEN, np.uint8)) for _ in range(2)]
        for tile, (maxima, found) in zip((run_pool, pooling._pool_twin), results, strict=True):
            tile(
                source, 3, 9 * width * pitch, pitch, width * pitch, rows, width, width + 2, maxima, 2, step, found, 2,
                start, floor_at, NOWHERE, count, valid,
            )  # fmt: skip
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(maxima != MARK, written)
        np.testing.assert_array_equal(found != UNSEEN, written)
        windows = source[3 + places[:, :, None] + np.arange(stored)].reshape(rows, count, width, stored)
        wanted = np.maximum(windows.max((0, 2)), floor)
        np.testing.assert_array_equal(maxima[written].reshape(count, stored), wanted)


def check_plane_maps(dtype):
    """The same of maps along columns and rows."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    for (run, planes), count in product(PLANE_MAPS, (0, 1, 3)):
        for number, (down, across) in planes.items():
            turn = np.arange(count)[:, None, None]
            read_places, written_places = (
                turn * (n + 3) + np.arange(height)[:, None] * (200 * n) + np.arange(width) * (9 * n)
                for height, width in zip(down.shape[::-1], across.shape[::-1], strict=True)
            )
            source = islands(rng.standard_normal, dtype, 3 + read_places.reshape(-1), n)
            out, written = blank(dtype, 2 + written_places.reshape(-1), n)
            read = source[(3 + read_places)[..., None] + np.arange(n)].astype(np.float64)
            wanted, scale = (
                np.einsum("ai,tijl,bj->tabl", a, r, b)
                for a, r, b in ((down, read, across), (abs(down), abs(read), abs(across)))
            )
            for tile in (run, maps._plane_twin(planes)):
                result = out.copy()
                tile(number, source, 3, 200 * n, 9 * n, n + 3, result, 2, 200 * n, 9 * n, n + 3, count)
                np.testing.assert_array_equal(result != MARK, written)
                found = result[(2 + written_places)[..., None] + np.arange(n)]
                assert (abs(found - wanted) <= 16 * np.finfo(dtype).eps * scale).all(), (run, number)


def matrix_of(function, count):
    """Return the matrix of a function of `fastconv.dft`."""
    return np.array(function(list(np.eye(count)), spectra._multiply_add_arrays))


def check_evaluate(dtype):
    """Values of rows, all of which exist or some, against NumPy in double precision."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    kinds = ((run_evaluate, spectra.OF_INPUTS), (run_evaluate_taps, spectra.OF_TAPS))
    for (run, rows_of), points, rows in product(kinds, spectra.TRANSFORMS, (0, 1, 7)):
        twin, of = spectra._evaluate_twin(rows_of), rows_of[points]
        count, results = of.count, of.results
        matrix = matrix_of(of.evaluate, count)
        scale = abs(matrix)
        if rows_of is spectra.OF_TAPS:  # each third value of a pair is the sum of the others, which may be larger
            both = range(spectra.TRANSFORMS[points].singles + 2, results, 3)
            scale[both] += scale[[n - 1 for n in both]] + scale[[n - 2 for n in both]]
        for first, last in (
            (0, count),
            (3, count),
            (0, count - 3),
            (3, count - 3),
            (2, 5),
            (-4, count + 9),
            (3, 3),
            (9, 2),
        ):
            row = np.arange(rows)[:, None]
            exist = np.array([k for k in of.may_exist if first <= k < last], int)
            places = 3 + row * 900 + np.arange(count) * (n + 5)
            source = islands(rng.standard_normal, dtype, places[:, exist], n)
            out, written = blank(dtype, 2 + row * (results * n), results * n)
            read = np.zeros((rows, count, n))
            read[:, exist] = source[places[:, exist, None] + np.arange(n)]
            for tile in (run, twin):
                result = out.copy()
                tile(points, source, 3, 900, n + 5, first, last, result, 2, rows)
                np.testing.assert_array_equal(result != MARK, written)
                found = result[2 : 2 + rows * results * n].reshape(rows, results, n)
                bound = 8 * np.finfo(dtype).eps * (scale @ abs(read))
                assert (abs(found - matrix @ read) <= bound).all(), (points, count, first, last)


def check_multiply(dtype):
    """Sums over rows of values, all of which exist or some; in the place of the upper ones, too."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    kinds = product(spectra.TRANSFORMS.values(), (0, 3), (0, 3), (0, 1), (False, True))
    for transform, above, below, adds, in_place in kinds:
        if in_place and adds and above:
            continue  # the upper values are added to, and some are none
        size = dft.SPAN * transform.values * n
        values = integers(rng)((2 * dft.TAPS, transform.values, n)).astype(dtype)
        values[:above], values[dft.INPUTS - below :] = np.nan, np.nan
        taps = integers(rng)((dft.TAPS, transform.tap_values, n)).astype(dtype)
        there = np.nan_to_num(values)
        wanted = np.array([
            sum(np.array(transform.multiply(list(there[y + r]), list(taps[r]))) for r in range(dft.TAPS))
            for y in range(dft.SPAN)
        ])  # fmt: skip
        wanted += adds * (there[: dft.SPAN] if in_place else dtype(MARK))
        for tile in (run_multiply, spectra._multiply_twin):
            upper, lower = values[: dft.TAPS].reshape(-1).copy(), values[dft.TAPS :].reshape(-1)
            out, at = (upper, 0) if in_place else (np.full(size + 9, MARK, dtype), 5)
            tile(
                transform.points, above, below, adds, upper, 0, lower, 0, taps.reshape(-1), 0, taps.reshape(-1), 10**12, 3 * n,
                n, 11, out, 10**12, 5 * n, n, 7, out, at,
            )  # fmt: skip
            np.testing.assert_array_equal(out[at : at + size].reshape(wanted.shape), wanted)
            assert in_place or ((out[:5] == MARK).all() and (out[-4:] == MARK).all())


def check_interpolate(dtype):
    """Outputs of rows, all columns or some of them, against NumPy in double precision."""
    rng, n = np.random.default_rng(0), lanes(np.dtype(dtype).itemsize)
    kinds = product(spectra.TRANSFORMS.values(), (1, 3, 7, 14), (0, 1, 7), (0, 1), (-np.inf, 0))
    for transform, columns_, rows, streams, floor in kinds:
        values, columns_ = transform.values, min(columns_, transform.span)
        matrix = matrix_of(transform.interpolate, values)
        apart = 2 * n if streams else n + 3  # outputs begin with a line, or some do not
        source = islands(rng.standard_normal, dtype, [3], max(1, rows) * values * n)
        products = source[3 : 3 + rows * values * n].reshape(rows, values, n).astype(np.float64)
        start, floor_at = with_floor(islands(rng.standard_normal, dtype, [5], n), floor)
        places = 2 + np.arange(rows)[:, None] * (40 * n) + np.arange(columns_) * apart
        out, written = blank(dtype, places.reshape(-1), n)
        wanted = np.maximum((matrix @ products + start[5 : 5 + n])[:, :columns_], floor)
        scale = (abs(matrix) @ abs(products) + 5)[:, :columns_]
        for tile in (run_interpolate, spectra._interpolate_twin):
            result = lined(out, 2)
            tile(transform.points, source, 3, start, 5, floor_at, result, 2, 40 * n, apart, columns_, rows, streams)
            np.testing.assert_array_equal(result != MARK, written)
            found = result[places[..., None] + np.arange(n)]
            assert (abs(found - wanted) <= 8 * np.finfo(dtype).eps * scale).all()


CHECKS = (
    check_outer,
    check_short,
    check_slide,
    check_sum_slide,
    check_column,
    check_sum_column,
    check_bare_column,
    check_sum_bare_column,
    check_shift,
    check_sum_shift,
    check_dot,
    check_transpose,
    check_transpose_edge,
    check_walk,
    check_copy,
    check_sum,
    check_lane_sum,
    check_maps,
    check_plane_maps,
    check_pool,
    check_evaluate,
    check_multiply,
    check_interpolate,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("check", CHECKS)
def test_tile(check, dtype):
    check(dtype)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("vector_bytes", [width for width in (16, 32, 64) if width != words.VECTOR_BYTES])
def test_other_widths(vector_bytes):
    """LLVM splits vectors that are wider than this machine's: slow, but the same code path.

    Without its optimizations, which take half of the time and are not what is tested.
    """
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, test_simd as t\n"
        "import fastconv\n"
        "[check(dtype) for check in t.CHECKS for dtype in t.DTYPES]\n"
        "x, w = np.arange(2*5*7*6.).reshape(2, 5, 7, 6) % 7, np.arange(9*5*9.).reshape(9, 5, 3, 3) % 5\n"
        "g = np.arange(2*9*4*3.).reshape(2, 9, 4, 3) % 6\n"
        "for a, b in zip(*(fastconv.conv2d_backward(g, x, w, 2, 1, algorithm=a) for a in ('direct', 'reference'))):\n"
        "    np.testing.assert_array_equal(a, b)\n"
        "a, b = (fastconv.conv2d(x, w, None, 2, 1, algorithm=a) for a in ('direct', 'reference'))\n"
        "np.testing.assert_array_equal(a, b)\n"
        "print(t.lanes(1))\n"
    )
    environment = {**os.environ, "FASTCONV_VECTOR_BYTES": str(vector_bytes), "NUMBA_OPT": "0"}
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", script, here], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == vector_bytes


# ---------------------------------------------------------------------------------------------------------------------
# Machine code
# ---------------------------------------------------------------------------------------------------------------------

X86 = r"vfmadd\w+\s.*%{}mm", r"vmov\w+\s+%{}mm\d+, -?\w*\(%rsp\)"
NEON = r"fmla\s+v\d+\.", r"st\w+\s+q\d+.*\[sp\W"
MACHINES = {
    # triple, CPU, features, bytes of a vector, vectors in a row, and how a product and a vector put on the stack look
    "AVX-512": ("x86_64-unknown-linux-gnu", "skylake-avx512", "", 64, 4, *(line.format("z") for line in X86)),
    "AVX2": ("x86_64-unknown-linux-gnu", "haswell", "", 32, 2, *(line.format("y") for line in X86)),
    "NEON": ("aarch64-unknown-linux-gnu", "generic", "+neon", 16, 4, *NEON),
}


MACHINE = pytest.mark.parametrize("machine", [pytest.param(name, marks=pytest.mark.slow) for name in MACHINES])


def emit_for(machine, monkeypatch):
    """Have tiles emitted with the vectors of a machine; return the bytes of one, and how many there are in a row."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    vector_bytes, vectors = MACHINES[machine][3:5]
    monkeypatch.setattr(words, "VECTOR_BYTES", vector_bytes)
    monkeypatch.setattr(words, "MASKS", vector_bytes == 64)
    return vector_bytes, vectors


def assembly(machine, write, n_args, *arguments):
    """Return the lines of a tile's machine code."""
    triple, cpu, features = MACHINES[machine][:3]
    module = ir.Module()
    module.triple = triple
    function, _ = words.private_function(module, "tile", n_args)
    function.linkage = ""
    write(function, *arguments)
    target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)
    module.data_layout = str(target.target_data)  # as Numba does: without it stacks are aligned to whatever lies there
    parsed = llvm.parse_assembly(str(module))
    optimise(parsed, target)
    assert target.emit_object(parsed)
    return target.emit_assembly(parsed).splitlines()


def assemble(machine, write, n_args, *arguments):
    """Return a tile's products for a machine, and what it spills among them: vectors stored on the stack."""
    product_line, spill_line = MACHINES[machine][5:]
    lines = assembly(machine, write, n_args, *arguments)
    products = [n for n, line in enumerate(lines) if re.search(product_line, line)]
    among = lines[products[0] : products[-1]] if products else []
    return len(products), [line for line in among if re.search(spill_line, line)]


def optimise(module, target):
    """Run LLVM's usual passes, as Numba does."""
    if hasattr(llvm, "create_pass_builder"):
        builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(3))
        builder.getModulePassManager().run(module, builder)
    else:
        manager, builder = llvm.create_module_pass_manager(), llvm.create_pass_manager_builder()
        builder.opt_level = 3
        builder.populate(manager)
        manager.run(module)


@pytest.mark.parametrize("dtype", [types.float32, pytest.param(types.float64, marks=pytest.mark.long)], ids=str)
@MACHINE
def test_machine_code(machine, dtype, monkeypatch):
    """The tiles assemble for each kind of machine, with accumulators in registers: none is spilled among the products.

    Not so where LLVM has no register to spare: with 16 of them, three short rows, rows of three taps and more, the gradients of
    two rows, the mask of the lanes that count, one vector of columns of three taps with a stride, and maps of five values that
    fetch ahead; with 32, one of 25 sums and six vectors, and more of these on NEON, which multiplies nothing in memory, and
    has no other registers for masks.  The LLVM of the oldest Numba spills a vector of sums of tall tiles and of groups, too, with
    16 registers one more of 25 sums, some of other maps that fetch ahead, one of near tiles, two of far ones, and on NEON three
    of 27 sums with a mask.  Products of spectra hold 14 sums while they form seven more; of planes of which 25 and 49 taps meet
    parts, some of these are kept.
    """
    old = llvm.llvm_version_info < (15,)
    vector_bytes, vectors = emit_for(machine, monkeypatch)
    tiles = [(height, vectors, n_args) for height in (ROWS, FEW_ROWS) for n_args in (13, 15, 17)]
    monkeypatch.setattr(slide, "MEMBERS_AT_ONCE", vectors)
    short = [(height, vectors if height == FEW_ROWS else width, 13) for height, width in SHORT.items()]
    for height, width, n_args in (*tiles, *short):
        products, spills = assemble(machine, outer._write_tile, n_args, dtype, height, width)
        assert products == 3 * height * width  # two terms in a turn, and one that may be left
        few = {15: 1, 17: 2}.get(n_args, 0) if old else 0
        assert len(spills) <= few or (machine == "AVX2" and height == 3), (height, width, n_args)
    groups = [kind for kind in slide.GROUP_KINDS if kind[3] <= vector_bytes // (dtype.bitwidth // 8)]
    tall = [(3, 1, 3, 1), (5, 1, 2, 1), (7, 1, 2, 1)][vectors == 2 :]
    kinds = [*((*kind, 1, 1) for kind in SLIDES), *tall, *groups]
    for kind in kinds:
        _, spills = assemble(machine, slide._write_slide_tile, 22, dtype, *kind)
        assert not spills or (machine == "AVX2" and kind[0] >= 3), kind
    for kind in kinds:
        _, spills = assemble(machine, slide._write_sum_slide_tile, 19, dtype, *kind)
        crowded = machine == "AVX2" and kind[2] == 2
        one = (machine == "AVX2" and "vmovdqu" in spills[0]) if spills else False  # the mask: its lanes are integers
        assert not spills or crowded or (len(spills) == 1 and (one or (old and kind[2:] != (1, 1)))), kind
    monkeypatch.setattr(columns, "REGISTERS", 8 * vectors)
    for kind in COLUMNS:
        for width in columns._widths(*kind):
            products, spills = assemble(machine, columns._write_columns, 13, dtype, *kind, width)
            assert products >= kind[0] ** 2 * width  # LLVM may repeat some
            one = machine == "NEON" or (machine == "AVX2" and kind == (3, 2))  # the first multiplies nothing in memory
            assert len(spills) <= one, (kind, width)
        for lines in set(columns.lines_at_once(kind[0])):
            products, spills = assemble(machine, columns.write_sum_lines, 11, dtype, *kind, lines)
            assert products >= kind[0] * lines
            assert len(spills) <= (20 if machine == "NEON" else 1 + old), (kind, lines)
    for kind in simd.BARE if machine == "AVX-512" else ():
        products, spills = assemble(machine, bare._write_columns, 15, dtype, *kind)
        assert products >= kind[0] * (kind[0] - 1)
        assert len(spills) <= (6 if kind[0] == 5 else 0)  # of 25 factors and five sums
    for kind in simd.SUM_BARE if machine == "AVX-512" else ():
        for lines in set(columns.lines_at_once(kind[0])):
            products, spills = assemble(machine, columns.write_sum_lines, 14, dtype, *kind, lines, True)
            assert products >= kind[0] * lines
            assert len(spills) <= (kind == (5, 2)), (kind, lines)
    for kind in shift.SHIFTS if machine == "AVX-512" else ():
        if simd.holds_plane(*kind, 0, dtype.bitwidth // 8):
            for write, n_args, most in ((shift._write_shift, 12, 13), (shift._write_sum_shift, 8, 42)):
                _, spills = assemble(machine, write, n_args, dtype, *kind)
                assert len(spills) <= (0 if kind[1] == 3 else most), kind
    for filters, height, whole in product(
        range(1, DOT_FILTERS + 1), (9, 3, 1) if vectors == 4 else (3, 1), (True, False)
    ):
        products, spills = assemble(machine, dot._write_products, 10, dtype, filters, height, whole)
        assert products >= filters * height
        masked = machine == "NEON" and not whole  # the mask takes a register, of which 31 are taken
        assert len(spills) <= masked * (3 if old else 1), (filters, height, whole)
    for rows in range(1, (16 if vectors == 4 else 12) + 1):
        products, spills = assemble(machine, walk._write_walk_tile, 11, dtype, rows)
        assert products >= rows
        assert not spills, rows
    for _, of_sizes, starts in MAPS:
        for size, map_ in of_sizes.items():
            _, spills = assemble(machine, maps._write_map, 10 if starts else 11, dtype, map_, starts)
            assert not spills or (not starts and (old or (machine == "AVX2" and size == (5, 5, 1)))), size
    for transform, above, below, adds in product(spectra.TRANSFORMS.values(), (0, 3), (0, 3), (0, 1)):
        products, spills = assemble(machine, spectra._write_multiply_tile, 12, dtype, transform, above, below, adds)
        met = dft.TAPS * dft.SPAN - sum(range(above + 1)) - sum(range(below + 1))
        once = {1, 2} if transform is dft.TEN else {1}  # LLVM may repeat a loop over two single values
        assert products in {(n + 3) * (met - dft.SPAN) for n in once}  # of single values and of a pair
        assert len(spills) <= {"AVX-512": 0, "AVX2": 17, "NEON": 4}[machine], (above, below, adds)
    for _, planes in PLANE_MAPS:
        _, spills = assemble(machine, maps._write_plane_map, 9, dtype, *planes[0])
        assert len(spills) <= 10  # of 18 vectors between columns and rows


@MACHINE
def test_totals_lie_in_lines(machine, monkeypatch):
    """The stack begins with a vector where one is kept there: it would else lie in two lines of the cache more often than not."""
    vector_bytes, vectors = emit_for(machine, monkeypatch)
    lines = assembly(machine, outer._write_tile, 13, types.float32, ROWS, vectors)
    aligned = re.findall(r"andq\s+\$-(\d+), %rsp", "\n".join(lines))
    assert aligned == [str(vector_bytes)] * (vector_bytes > words.STACK_BYTES)


MASKED = r"maskmov|\) *\{%k"


@MACHINE
def test_sums_are_stored_whole(machine, monkeypatch):
    """Where vectors overlap, LLVM makes no masked stores of what is chosen lane by lane: with AVX2 they take twelve cycles."""
    vector_bytes, vectors = emit_for(machine, monkeypatch)
    monkeypatch.setattr(slide, "MEMBERS_AT_ONCE", vectors)
    for kind in (
        *((*kind, 1, 1) for kind in SLIDES),
        *(kind for kind in slide.GROUP_KINDS if kind[3] <= vector_bytes // 4),
    ):
        lines = assembly(machine, slide._write_sum_slide_tile, 19, types.float32, *kind)
        assert not any(re.search(MASKED, line) for line in lines), kind
    for kind in COLUMNS:
        lines = assembly(machine, columns.write_sum_lines, 11, types.float32, *kind, 1)
        assert not any(re.search(MASKED, line) for line in lines), kind


@MACHINE
def test_outputs_are_streamed(machine, monkeypatch):
    """Tiles of outputs have stores that pass the caches by, where vectors that follow each other fill lines of them."""
    vector_bytes, vectors = emit_for(machine, monkeypatch)
    size, map_ = next(iter(maps.OUTPUT.items()))
    parts = words.LINE // vector_bytes
    for stores, write, n_args, *arguments in (
        (ROWS * vectors, outer._write_tile, 13, ROWS, vectors),
        (SPAN * parts, slide._write_slide_tile, 22, 3, 2, 1, 1),
        (words.LINE // 4, transpose._write_transpose_tile, 8, "lines"),
        (size[0] * (parts == 1), maps._write_map, 10, map_, True),
    ):
        lines = assembly(machine, write, n_args, types.float32, *arguments)
        found = sum("vmovnt" in line or "stnp" in line for line in lines)
        assert stores - (machine == "NEON") <= found <= stores  # LLVM has none for an address with an index
