"""Convolution of planes as they lie, in bands of rows, between the plan and the kernels: lanes are pixels of a row.

Depthwise layers of NCHW arrays turn nothing over here, and small planes are taken as a whole; `fastconv.depthwise` has the
others.  Nor do the first layers of networks, which make many channels of few, and dW of few filters.  `fastconv.engine` has the
rest of what mixes channels, `fastconv.planes` what makes few of many.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import LINE
from .geometry import ConvGeometry, ceil_div
from .kernels.bands import (
    CORRELATE_COLUMNS,
    CORRELATE_FILTERS,
    CORRELATE_SHIFTED,
    GATHER_COLUMNS,
    GATHER_FILTERS,
    GATHER_SHIFTED,
    correlate_columns,
    correlate_filters,
    correlate_shifted,
    gather_columns,
    gather_filters,
    gather_shifted,
)
from .programs import (
    Packing,
    Pixels,
    Program,
    StripSums,
    choose_chunks,
    count_tasks,
    forward_axes,
    is_depthwise,
    tap_numbers,
    unpacking,
)
from .simd import BARE, COLUMNS, SUM_BARE, holds_plane, lanes
from .strips import Axis, Ints, Source, Tables, fill_tiles, make_source, tile_width, whole_lanes

__all__ = [
    "columns_program", "computes_columns", "computes_filter_weights", "computes_filters", "computes_weights", "computes_whole",
    "computes_whole_weights", "filter_weights_program", "filter_weights_work", "filters_program", "turning_work",
    "weights_program", "whole_program", "whole_weights_program",
]  # fmt: skip

BAND_BYTES, MOST_BYTES, BARE_BYTES = 32 << 10, 512 << 10, 256 << 10
"""Most bytes of the rows that a band of a plane reads and writes in scratch: they are to stay near; and of FEWEST_ROWS; and of
results of what is read as it lies."""

TOGETHER_BYTES = 16 << 10
"""Most bytes of planes that are taken together: they are to stay in the first-level cache."""

AHEAD_BYTES = 8 << 10
"""Fewest bytes between what tiles read of bare planes and what is fetched meanwhile: the next band, if that is more."""

SUM_BYTES, NEAR_SUM_BYTES = 96 << 10, 24 << 10
"""Most bytes of the sums of a part of the channels, each of which has a vector for each tap; and where it has little else to do
than to add to them: they are to stay in the first-level cache."""

MOST_CHANNELS, MOST_TERMS = 4, 160
"""Most channels and terms of sums for which filters are the rows of tiles: rows of pixels then go to memory at once, while others
are summed up.  With more, that costs more than to turn over what had filters for lanes."""

MOST_SUMMED = 128
"""Longest plain run of additions for a filter's weights: a longer sum is taken in chunks, whose sums are added one by one."""

NEAR_WORK, FAR_WORK, STARTING = 1.3, 2.6, 10
"""What a product of vectors takes with pixels for lanes, where what a task keeps stays in the second-level cache or not, and for
how many of them beginning and ending a tile lasts."""

NARROW_WORK, WIDE_WORK, PACKING = 1.4, 1.1, 11
"""What it takes with filters for lanes, of which there are fewer than a vector has, or more; and turning a vector over."""

LEAST_ROW, WIDEST_ROW = 16, 512
"""Pixels of a row that planes are cut into where there is one tap."""

Kinds = tuple[tuple[int, int], ...]

NARROW: Kinds = tuple(kind for kind in SUM_BARE if kind[0] == 3)
"""Taps and strides, along rows and columns, of planes as narrow as can be, whose weights are summed up as these lie: with more
taps, to turn them over took less time."""

FEWEST_ROWS = 4
"""Fewest filters' heights of a band: its first rows are computed for nothing, or read again."""


def _falls(axes: Sequence[Axis], out: Ints, itemsize: int, narrow: Kinds) -> bool:
    """Say whether tiles slide down the columns of planes: taps of squares, side by side, and rows that fill half a vector.

    With taps and a stride that are among ``narrow``, rows may be narrower.
    """
    plane, *both = axes
    if any(len(axis.phases) > 1 for axis in axes) or plane.step > 1 or [s for _, s in plane.phases[0].taps] != [0]:
        return False
    shifts = [[shift for _, shift in axis.phases[0].taps] for axis in both]
    kinds = {(len(along), axis.step) for along, axis in zip(shifts, both, strict=True)}
    together = all(along == list(range(along[0], along[0] + len(along))) for along in shifts if along)
    wide = 2 * out[-1] >= lanes(itemsize) or kinds <= set(narrow)
    return len(kinds) == 1 and kinds <= set(COLUMNS) and together and wide and plane.n == out[-3]


def _shifts(axes: Sequence[Axis], in_shape: Ints, out_shape: Ints, itemsize: int) -> bool:
    """Say whether tiles hold whole planes: as large as outputs are, with as many taps to the left as to the right."""
    *_, depth, height, width = in_shape
    plane, *both = axes
    shifts = [[[shift for _, shift in phase.taps] for phase in axis.phases] for axis in axes]
    taps = len(shifts[2][0])
    same = [list(range(-(taps // 2), taps // 2 + 1))]
    if in_shape != out_shape or depth > 1 or shifts != [[[0]], same, same] or any(axis.step > 1 for axis in axes):
        return False
    return holds_plane(width, taps, height * width, itemsize)


def computes_whole(p: Pixels) -> bool:
    """Say whether `whole_program` computes equation (1) or (2)."""
    planes = is_depthwise(p.g) and not (p.in_last or p.out_last or p.adds)
    return planes and _shifts(p.axes, p.in_shape, p.out_shape, p.itemsize)


def computes_whole_weights(g: ConvGeometry, x_last: bool, grad_last: bool, itemsize: int) -> bool:
    """Say whether `whole_weights_program` computes equation (3)."""
    planes = is_depthwise(g) and not (x_last or grad_last)
    return planes and _shifts(forward_axes(g), g.input_shape, g.output_shape, itemsize)


def computes_columns(p: Pixels) -> bool:
    """Say whether `columns_program` computes equation (1) or (2)."""
    planes = is_depthwise(p.g) and not (p.in_last or p.out_last or p.adds)
    return planes and _falls(p.axes, p.out_shape, p.itemsize, BARE)


def computes_filters(p: Pixels) -> bool:
    """Say whether `filters_program` computes equation (1): few channels that mix, and rows that fill lines of the cache."""
    plane, down, across = p.axes
    planes = not (p.in_last or p.out_last or p.transposed or p.window[0]) and p.g.groups == max(p.g.dilation) == 1
    flat = p.in_shape[2] == p.out_shape[2] == p.g.kernel[0] == 1 and plane.left == 0
    few = p.depth <= MOST_CHANNELS and 1 < p.T <= MOST_TERMS // p.depth and 2 * p.channels > lanes(p.itemsize)
    return planes and flat and few and down.step == across.step <= 2 and p.out_shape[4] * p.itemsize % LINE == 0


def computes_weights(g: ConvGeometry, x_last: bool, grad_last: bool, itemsize: int) -> bool:
    """Say whether `weights_program` computes equation (3)."""
    return is_depthwise(g) and not (x_last or grad_last) and _falls(forward_axes(g), g.output_shape, itemsize, NARROW)


def computes_filter_weights(g: ConvGeometry, x_last: bool, grad_last: bool, itemsize: int) -> bool:
    """Say whether `filter_weights_program` computes equation (3): where it is estimated to take less time than filters as lanes.

    These are turned over first, which few terms do not make worth while, and few filters leave lanes empty; so do narrow images
    where pixels are lanes.
    """
    g = _folded(g)
    plane, down, across = forward_axes(g)
    planes = not (x_last or grad_last) and g.groups == max(g.dilation) == 1
    flat = g.input[0] == g.output[0] == g.kernel[0] == 1 and plane.left == 0
    whole = [len(axis.phases[0].taps) for axis in (down, across)] == list(g.kernel[1:])
    if not (planes and flat and whole and down.step == across.step <= 2):
        return False
    filters, terms = g.filters, g.channels * math.prod(g.kernel)
    with_filters = (WIDE_WORK if filters > lanes(itemsize) else NARROW_WORK) + PACKING / terms
    products = math.prod(g.output_shape) / filters * terms * ceil_div(filters, lanes(itemsize))
    return filter_weights_work(g, itemsize) < products * with_filters


def _folded(g: ConvGeometry) -> ConvGeometry:
    """Cut planes that one tap takes as a row of pixels into shorter rows, for bands: if that can be, of whole vectors."""
    pixels = g.input[-1]
    if math.prod(g.kernel) > 1 or g.input != g.output or g.input[:2] != (1, 1) or pixels <= WIDEST_ROW:
        return g
    widths = (width for width in range(LEAST_ROW, WIDEST_ROW + 1) if pixels % width == 0)
    width = max(widths, key=lambda width: (width % LEAST_ROW == 0, width), default=pixels)
    along = (1, pixels // width, width)
    return dataclasses.replace(g, input=along, output=along)


def filter_weights_work(g: ConvGeometry, itemsize: int) -> float:
    """Estimate the time of `filter_weights_program` in that of one multiplication of vectors."""
    n, terms = lanes(itemsize), g.channels * math.prod(g.kernel)
    axes = forward_axes(g)
    numbers = _band_numbers(axes, g.input_shape, g.output_shape, itemsize, count_tasks(g), pads=True)
    vectors = ceil_div(g.output[2], n)
    near = itemsize * (g.channels * numbers["plane"] + g.filters * terms * n) <= MOST_BYTES
    work = (NEAR_WORK if near else FAR_WORK) + STARTING / (vectors * numbers["band"])
    return float(math.prod(g.output_shape[:-1]) * terms * vectors * work)


def turning_work(g: ConvGeometry, itemsize: int) -> float:
    """Estimate the time to turn over the images and gradients of equation (3) in that of one multiplication of vectors."""
    pixels = g.batch * math.prod(g.input), g.batch * math.prod(g.output)
    vectors = (ceil_div(channels, lanes(itemsize)) for channels in (g.channels, g.filters))
    return float(PACKING * sum(math.prod(pair) for pair in zip(pixels, vectors, strict=True)))


def _band_numbers(
    axes: Sequence[Axis], in_shape: Ints, out_shape: Ints, itemsize: int, tasks: int, bare: Kinds = (), pads: bool = False
) -> dict[str, Any]:  # fmt: skip
    """Return what `fastconv.kernels.bands.BANDS` names, but for the parts; a box ``pads`` rows that do not exist, or has none.

    With taps and a stride that are among ``bare``, planes are read as they lie, and there is no box at all.
    """
    images, channels, depth, height, width = in_shape
    *_, rows, columns = out_shape
    _, down, across = axes
    stride, left, taps = down.step, across.left, down.span + 1
    # Whole vectors of outputs read so many columns, from the first that is padding on.
    read = whole_lanes(columns, itemsize) + across.span // stride
    before = whole_lanes(max(0, left), itemsize) if stride == 1 else 0
    half = whole_lanes(read, itemsize)
    pitch = max(before + whole_lanes(width, itemsize), whole_lanes(before - left + read, itemsize))
    pitch = pitch if stride == 1 else 2 * half
    is_bare = (taps, stride) in bare
    row_bytes = itemsize * (stride * pitch * (channels + 1) if pads else stride * pitch + columns)
    if is_bare:
        row_bytes = itemsize * columns
    most = max(
        1, (BARE_BYTES if is_bare else BAND_BYTES) // row_bytes, min(FEWEST_ROWS * taps, MOST_BYTES // row_bytes)
    )
    wanted = ceil_div(tasks, max(1, images if pads else images * channels))
    bands = max(ceil_div(rows, most), min(wanted, rows // (FEWEST_ROWS * taps)))
    band = ceil_div(rows, bands)
    met = stride * (band - 1) + taps
    box = 0 if is_bare else (met if pads else min(height, met)) * pitch
    together = channels if is_bare else max(1, TOGETHER_BYTES // (itemsize * (box + rows * columns)))
    return {
        "images": images, "channels": channels, "depth": depth, "height": height, "width": width, "rows": rows,
        "columns": columns, "top": down.left, "left": left, "taps": taps, "stride": stride, "before": before, "half": half,
        "pitch": pitch, "plane": box, "band": band, "together": min(channels, together) if depth == bands == 1 else 1,
        "edge": before - left if stride == 1 else 0, "bare": is_bare,
        "ahead": max(stride * band * width, AHEAD_BYTES // itemsize),
    }  # fmt: skip


def _place(numbers: dict[str, Any], channel: int, y: int, x: int) -> int:
    """How far what a tap of a channel meets lies in scratch from where the first output's padding begins."""
    column, odd = divmod(x + numbers["left"], numbers["stride"])
    return int(channel * numbers["plane"] + (y + numbers["top"]) * numbers["pitch"] + column + odd * numbers["half"])


def _boxes(numbers: dict[str, Any]) -> int:
    """Numbers of scratch memory for planes of the input: whole lines."""
    return ceil_div(numbers["together"] * numbers["plane"], 16) * 16


def _source(axes: Sequence[Axis], in_shape: Ints, band: int, itemsize: int) -> Source:
    """Describe the input of so many rows of outputs, which tasks copy themselves, or read as it lies."""
    strip = (1, 1, band, max(1, axes[2].grid))
    return make_source(in_shape, False, itemsize, in_shape[0], axes, strip, False, False, False)


def _factor_numbers(p: Pixels) -> dict[str, int]:
    """Say where the weight's factors lie for tiles that meet them in order: dX meets the last one first."""
    _, down, across = ([tap for tap, _ in axis.phases[0].taps] for axis in p.axes)
    _, channel_step, _, tap_step = p.weight_steps
    line = p.g.kernel[2]
    return {
        "weights_at": (down[0] * line + across[0]) * tap_step, "channel_step": channel_step,
        "down": (down[1] - down[0]) * line * tap_step, "across": (across[1] - across[0]) * tap_step,
    }  # fmt: skip


def _whole_numbers(shape: Ints, taps: int, parts: int) -> dict[str, int]:
    """Return what `fastconv.kernels.bands.WHOLE` names."""
    images, channels, _, height, width = shape
    return {
        "images": images, "channels": channels, "size": height * width, "width": width, "taps": taps,
        "parts": min(channels, parts),
    }  # fmt: skip


def whole_program(p: Pixels) -> Program:
    """Compute equation (1) or (2) of channels that do not mix: tiles hold whole planes."""
    images, channels, *_ = p.in_shape
    parts = ceil_div(2 * p.tasks, max(1, images)) if p.tasks > 1 else 1
    numbers = _whole_numbers(p.in_shape, p.g.kernel[2], parts) | _factor_numbers(p)
    source = _source(p.axes, p.in_shape, p.out_shape[3], p.itemsize)
    return Program(
        gather_shifted, images * numbers["parts"], GATHER_SHIFTED.lay(**numbers), Tables().whole(), 0, p.tasks == 1, source,
        (1, channels, channels, 0),
    )  # fmt: skip


def columns_program(p: Pixels) -> Program:
    """Compute equation (1), or (2) of stride 1, of channels that do not mix: tiles slide down columns."""
    numbers = _band_numbers(p.axes, p.in_shape, p.out_shape, p.itemsize, p.tasks, BARE)
    images, channels, columns, band = (numbers[name] for name in ("images", "channels", "columns", "band"))
    # A plane's bands follow each other, where there are enough planes for all tasks.
    shares = ceil_div(numbers["rows"], band) if images * channels < p.tasks else 1
    tasks = images * shares
    parts = min(channels, ceil_div(2 * p.tasks, max(1, tasks))) if p.tasks > 1 else 1
    boxes = _boxes(numbers)
    numbers |= _factor_numbers(p) | {"parts": parts, "result_at": boxes, "streams": p.streams, "shares": shares}
    source = _source(p.axes, p.in_shape, band, p.itemsize)
    return Program(
        gather_columns, tasks * parts, GATHER_COLUMNS.lay(**numbers), Tables().whole(),
        boxes + ceil_div(band * columns + lanes(p.itemsize), 16) * 16, p.tasks == 1, source, (1, channels, channels, 0),
    )  # fmt: skip


def filters_program(p: Pixels) -> Program:
    """Compute equation (1) of few channels that mix: filters are the rows of tiles."""
    numbers = _band_numbers(p.axes, p.in_shape, p.out_shape, p.itemsize, p.tasks, pads=True)
    images, channels, band = (numbers[name] for name in ("images", "channels", "band"))
    filters, tables = p.channels, Tables()
    _, _, depth_step, tap_step = p.weight_steps
    pairs = [
        (c * depth_step + n * tap_step, _place(numbers, c, y, x))
        for c in range(channels)
        for n, (_, (_, y), (_, x)) in tap_numbers(p.g, [axis.phases[0].taps for axis in p.axes])
    ]
    terms = len(pairs) + 1
    pairs.append((terms - 1, channels * numbers["plane"]))
    rows = fill_tiles(np.arange(filters))
    boxes = ceil_div((channels + 1) * numbers["plane"] + 2 * tile_width(p.itemsize), 16) * 16
    numbers |= {
        "parts": 1, "filters": filters, "terms": terms, "pairs_at": tables.add(pairs), "rows_at": tables.add(rows * terms),
        "targets_at": tables.add(rows * math.prod(p.out_shape[2:])), "tiles": rows.size, "weight_step": p.weight_steps[1],
        "panel_at": boxes, "streams": p.streams,
    }  # fmt: skip
    source = _source(p.axes, p.in_shape, band, p.itemsize)
    return Program(
        gather_filters, images * ceil_div(numbers["rows"], band), GATHER_FILTERS.lay(**numbers), tables.whole(),
        boxes + filters * terms, p.tasks == 1, source, (1, filters, filters, tile_width(p.itemsize)),
    )  # fmt: skip


def weights_program(g: ConvGeometry, per_sample: bool, itemsize: int) -> Program:
    """Compute equation (3) of channels that do not mix."""
    axes, tasks, n = forward_axes(g), count_tasks(g), lanes(itemsize)
    numbers = _band_numbers(axes, g.input_shape, g.output_shape, itemsize, tasks, SUM_BARE)
    channels, columns, band, taps = (numbers[name] for name in ("channels", "columns", "band", "taps"))
    terms = taps * taps
    parts = min(channels, max(tasks, ceil_div(channels * terms * n * itemsize, SUM_BYTES)))
    boxes, gradient_row = _boxes(numbers), whole_lanes(columns, itemsize)
    packed = 0 if numbers["bare"] else numbers["together"]
    sums_at = boxes + ceil_div(packed * band * gradient_row, 16) * 16
    bands = g.batch * ceil_div(numbers["rows"], band)
    summed, packing = _chunks_of_bands(g, bands, ceil_div(tasks, parts), per_sample, channels * terms, itemsize)
    numbers |= summed | {"parts": parts, "gradient_at": boxes, "gradient_row": gradient_row, "sums_at": sums_at}
    source = _source(axes, g.input_shape, band, itemsize)
    return Program(
        correlate_columns, summed["chunks"] * parts, CORRELATE_COLUMNS.lay(**numbers), Tables().whole(),
        sums_at + n * ceil_div(channels, parts) * terms, tasks == 1, source, (1, 0, 0, 0), packing,
    )  # fmt: skip


def whole_weights_program(g: ConvGeometry, per_sample: bool, itemsize: int) -> Program:
    """Compute equation (3) of channels that do not mix: tiles hold whole planes."""
    tasks, n, channels, taps = count_tasks(g), lanes(itemsize), g.channels, g.kernel[2]
    parts = max(tasks, ceil_div(channels * taps * taps * n * itemsize, NEAR_SUM_BYTES))
    numbers = _whole_numbers(g.input_shape, taps, parts)
    parts, terms = numbers["parts"], taps * taps
    summed, packing = _chunks_of_bands(g, g.batch, ceil_div(tasks, parts), per_sample, channels * terms, itemsize)
    source = _source(forward_axes(g), g.input_shape, g.output[1], itemsize)
    return Program(
        correlate_shifted, summed["chunks"] * parts, CORRELATE_SHIFTED.lay(**numbers, **summed), Tables().whole(),
        n * ceil_div(channels, parts) * terms, tasks == 1, source, (1, 0, 0, 0), packing,
    )  # fmt: skip


def filter_weights_program(g: ConvGeometry, per_sample: bool, itemsize: int) -> Program:
    """Compute equation (3) of few filters: lanes are pixels."""
    g = _folded(g)
    axes, tasks, n = forward_axes(g), count_tasks(g), lanes(itemsize)
    numbers = _band_numbers(axes, g.input_shape, g.output_shape, itemsize, tasks, pads=True)
    channels, columns, band = (numbers[name] for name in ("channels", "columns", "band"))
    _, down, across = axes
    filters, tables = g.filters, Tables()
    taps = [(y, x) for _, y in down.phases[0].taps for _, x in across.phases[0].taps]
    offsets = [_place(numbers, c, y, x) for c in range(channels) for y, x in taps]
    terms, sums_at = len(offsets), ceil_div(channels * numbers["plane"] + n, 16) * 16
    bands = g.batch * ceil_div(numbers["rows"], band)
    summed, packing = _chunks_of_bands(g, bands, tasks, per_sample, filters * terms, itemsize)
    numbers |= summed | {
        "parts": 1, "filters": filters, "terms": terms, "offsets_at": tables.add(offsets),
        "most": max(1, MOST_SUMMED // ceil_div(columns, n)), "sums_at": sums_at, "biases_at": 0,
    }  # fmt: skip
    source = _source(axes, g.input_shape, band, itemsize)
    return Program(
        correlate_filters, summed["chunks"], CORRELATE_FILTERS.lay(**numbers), tables.whole(),
        sums_at + n * (filters * terms + 1), tasks == 1, source, (1, 0, 0, 0), packing,
        StripSums(CORRELATE_FILTERS.place("biases_at"), bands, 1, filters, whole_lanes(filters, itemsize)),
    )  # fmt: skip


def _chunks_of_bands(
    g: ConvGeometry, bands: int, wanted: int, per_sample: bool, size: int, itemsize: int
) -> tuple[dict[str, int], Packing | None]:
    """Cut the bands of equation (3) into chunks, with ``size`` sums each: what tasks are told, and what adds these up."""
    chunks = choose_chunks(bands, g.batch * math.prod(g.output), g.batch, wanted, per_sample)
    if per_sample or chunks == 1:
        return {"chunks": chunks, "each": size}, None
    each = whole_lanes(size, itemsize)  # all weights are lanes of one term
    packing = unpacking(chunks, False, 1, np.zeros(1, np.int64), size, each, each, itemsize)
    return {"chunks": chunks, "each": each}, packing
