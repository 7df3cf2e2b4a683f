"""Depthwise convolution of planes, between the plan and the kernels: lanes are pixels of a row.

Arrays that are NCHW are read and written as they lie.  `fastconv.depthwise` does the rest of what does not mix channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .geometry import ConvGeometry, ceil_div
from .kernels.columns import correlate_columns, gather_columns
from .programs import Packing, Pixels, Program, choose_chunks, count_tasks, forward_axes, is_depthwise, unpacking
from .simd import COLUMNS, lanes
from .strips import Axis, Ints, Tables, lay_numbers, make_source, whole_lanes

__all__ = ["fits", "pixels_program", "takes", "weights_program"]

BAND_BYTES = 32 << 10
"""Most bytes of the rows that a band of a plane reads and writes in scratch: they are to stay near."""

TOGETHER_BYTES = 16 << 10
"""Most bytes of planes that are taken together: they are to stay in the first-level cache."""

SUM_BYTES = 96 << 10
"""Most bytes of the sums of a part of the channels: each has a vector for each tap."""

FEWEST_ROWS = 4
"""Fewest filters' heights of a band: its first rows are computed for nothing, or read again."""


def _falls(axes: Sequence[Axis], out: Ints, itemsize: int) -> bool:
    """Say whether tiles slide down the columns of planes: taps of squares, side by side, and rows that fill half a vector."""
    plane, *both = axes
    if any(len(axis.phases) > 1 for axis in axes) or plane.step > 1 or [s for _, s in plane.phases[0].taps] != [0]:
        return False
    shifts = [[shift for _, shift in axis.phases[0].taps] for axis in both]
    kinds = {(len(along), axis.step) for along, axis in zip(shifts, both, strict=True)}
    together = all(along == list(range(along[0], along[0] + len(along))) for along in shifts if along)
    return (
        len(kinds) == 1 and kinds <= set(COLUMNS) and together and 2 * out[-1] >= lanes(itemsize) and plane.n == out[-3]
    )


def fits(p: Pixels) -> bool:
    """Say whether this computes equation (1) or (2)."""
    planes = is_depthwise(p.g) and not (p.in_last or p.out_last or p.adds)
    return planes and _falls(p.axes, p.out_shape, p.itemsize)


def takes(g: ConvGeometry, x_last: bool, grad_last: bool, itemsize: int) -> bool:
    """Say whether this computes equation (3)."""
    return is_depthwise(g) and not (x_last or grad_last) and _falls(forward_axes(g), g.output_shape, itemsize)


def _plane_numbers(axes: Sequence[Axis], in_shape: Ints, out_shape: Ints, itemsize: int, tasks: int) -> dict[str, Any]:
    """Return what `fastconv.kernels.columns.PLANES` names, but for the parts."""
    images, channels, depth, height, width = in_shape
    *_, rows, columns = out_shape
    _, down, across = (axis.phases[0].taps for axis in axes)
    taps, stride, top, left = len(down), axes[1].step, -down[0][1], -across[0][1]
    # Whole vectors of outputs read so many columns, from the first that is padding on.
    read = whole_lanes(columns, itemsize) + (taps - 1) // stride
    before = whole_lanes(max(0, left), itemsize) if stride == 1 else 0
    half = whole_lanes(read, itemsize)
    pitch = max(before + whole_lanes(width, itemsize), whole_lanes(before - left + read, itemsize))
    pitch = pitch if stride == 1 else 2 * half
    most = max(FEWEST_ROWS * taps, BAND_BYTES // (itemsize * (stride * pitch + columns)))
    bands = max(ceil_div(rows, most), min(ceil_div(tasks, max(1, images * channels)), rows // (FEWEST_ROWS * taps)))
    band = ceil_div(rows, bands)
    box = min(height, stride * (band - 1) + taps) * pitch
    together = max(1, TOGETHER_BYTES // (itemsize * (box + rows * columns))) if depth == bands == 1 else 1
    return {
        "images": images, "channels": channels, "depth": depth, "height": height, "width": width, "rows": rows,
        "columns": columns, "top": top, "left": left, "taps": taps, "stride": stride, "before": before, "half": half,
        "pitch": pitch, "plane": box, "band": band, "together": min(channels, together),
    }  # fmt: skip


def _boxes(numbers: dict[str, Any]) -> int:
    """Numbers of scratch memory for planes of the input: whole lines."""
    return ceil_div(numbers["together"] * numbers["plane"], 16) * 16


def pixels_program(p: Pixels) -> Program:
    """Compute equation (1), or (2) of stride 1."""
    numbers = _plane_numbers(p.axes, p.in_shape, p.out_shape, p.itemsize, p.tasks)
    images, channels, columns, band = (numbers[name] for name in ("images", "channels", "columns", "band"))
    bands = images * ceil_div(numbers["rows"], band)
    parts = min(channels, ceil_div(2 * p.tasks, max(1, bands))) if p.tasks > 1 else 1
    boxes = _boxes(numbers)
    _, down, across = ([tap for tap, _ in axis.phases[0].taps] for axis in p.axes)
    _, channel_step, _, tap_step = p.weight_steps
    line = p.g.kernel[2]
    numbers |= {
        "parts": parts, "weights_at": (down[0] * line + across[0]) * tap_step, "channel_step": channel_step,
        "down": (down[1] - down[0]) * line * tap_step, "across": (across[1] - across[0]) * tap_step, "result_at": boxes,
        "streams": p.streams,
    }  # fmt: skip
    source = make_source(
        p.in_shape, False, p.itemsize, images, p.axes, (1, 1, band, max(1, columns)), False, False, False
    )  # fmt: skip
    return Program(
        gather_columns, bands * parts, lay_numbers(**numbers), Tables().whole(),
        boxes + ceil_div(band * columns + lanes(p.itemsize), 16) * 16, p.tasks == 1, source, (1, channels, channels, 0),
    )  # fmt: skip


def weights_program(g: ConvGeometry, per_sample: bool, itemsize: int) -> Program:
    """Compute equation (3)."""
    axes, tasks, n = forward_axes(g), count_tasks(g), lanes(itemsize)
    numbers = _plane_numbers(axes, g.input_shape, g.output_shape, itemsize, tasks)
    channels, rows, columns, band, taps = (numbers[name] for name in ("channels", "rows", "columns", "band", "taps"))
    terms, per_image = taps * taps, ceil_div(rows, band)
    parts = min(channels, max(tasks, ceil_div(channels * terms * n * itemsize, SUM_BYTES)))
    pixels = g.batch * math.prod(g.output)
    wanted = ceil_div(tasks, parts)
    chunks, per_chunk = choose_chunks(g.batch * per_image, per_image, pixels, g.batch, wanted, per_sample)
    size = channels * terms
    adds = chunks > 1 and not per_sample
    each = whole_lanes(size, itemsize) if adds else size
    packing: Packing | None = None
    if adds:  # all weights are lanes of one term
        packing = unpacking(chunks, False, 1, np.zeros(1, np.int64), size, each, each, itemsize)
    boxes, gradient_row = _boxes(numbers), whole_lanes(columns, itemsize)
    sums_at = boxes + ceil_div(numbers["together"] * band * gradient_row, 16) * 16
    numbers |= {
        "parts": parts, "per_chunk": per_chunk, "each": each, "gradient_at": boxes, "gradient_row": gradient_row,
        "sums_at": sums_at,
    }  # fmt: skip
    source = make_source(
        g.input_shape, False, itemsize, g.batch, axes, (1, 1, band, max(1, columns)), False, False, False
    )
    return Program(
        correlate_columns, chunks * parts, lay_numbers(**numbers), Tables().whole(),
        sums_at + 2 * n * whole_lanes(ceil_div(channels, parts) * terms, itemsize), tasks == 1, source, (1, 0, 0, 0), packing,
    )  # fmt: skip
