"""Depthwise convolution through Fourier transforms, between the plan and the kernels: 7x7 taps, as large images models have them.

`fastconv.depthwise` does the same for direct sums; strips here have as many rows and columns as tiles, or a multiple.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from . import depthwise
from .algorithm import Algorithm
from .dft import SIXTEEN, SPAN, TAPS, TEN, TWELVE, Transform
from .geometry import ConvGeometry, ceil_div, even_part
from .kernels.fourier import CORRELATE_FOURIER, GATHER_FOURIER, correlate_fourier, gather_fourier
from .programs import (
    Pixels,
    Program,
    choose_chunks,
    count_tasks,
    forward_axes,
    is_depthwise,
    met_share,
    unpacking,
)
from .simd import lanes
from .strips import (
    Ints,
    Tables,
    by_output,
    by_tap,
    find_kinds,
    make_source,
    steps_of_image,
    strip_numbers,
    whole_lanes,
)

__all__ = ["FOURIER", "describe", "nanoseconds", "objection"]


READ_BYTES, PACKED_BYTES = 640 << 10, 192 << 10
"""Most bytes of a strip's part of the input, which is to stay in the second-level cache; of one that is packed fewer, as its box
and the results share that."""

LEAST_TILES, MOST_TILES = 16, 64
"""Fewest tiles of a strip, if there are so many: each task evaluates the taps that it needs.  And most of one that is read as it
lies, vector by vector, where more gain nothing."""

MOST_STREAMED = 1 << 10
"""Most bytes of a pixel whose vectors, written one by one, go to memory past the caches: farther apart that takes longer than to
fetch the lines that are to be written."""

NARROW = (TEN, SIXTEEN)
"""Transforms for images that are no wider than a tile, the narrowest first."""

OUTPUT, PADDED = 0.165, 0.4
"""Nanoseconds for each byte of a vector of outputs, where direct sums of 49 products are supposed to take 0.245; and the power of
the share of taps that meet the input with which these are the better, the less it is: they leave out taps on padding."""

WIDE = 64
"""Columns from which on strips of equation (3) have few rows, so that many rows of inputs are evaluated more than once."""


def objection(g: ConvGeometry) -> str | None:
    """Say why the algorithm is not for a geometry; None if it is."""
    g = g.volume
    if not is_depthwise(g):
        return "it convolves every channel by itself: groups have to be as many as channels and filters"
    if g.kernel != (1, TAPS, TAPS) or max(g.stride) > 1 or max(g.dilation) > 1 or g.padding[0] != (0, 0):
        return f"it computes kernels of {TAPS}x{TAPS} taps, with stride 1 and dilation 1"
    return None


def _cut(sizes: Ints, channels: int, itemsize: int, tasks: int, reads: bool) -> tuple[Ints, int, int]:
    """Choose (images, planes, rows, columns) of a strip, channels of a part, and how many parts there are.

    Strips are whole images, or as many rows as tiles have, or more; of large images that are read as they lie columns, as tall as
    can be: of each column of tiles six rows more are evaluated.
    """
    images, planes, rows, columns = sizes
    down, across, tile = ceil_div(rows, SPAN), ceil_div(columns, SPAN), SPAN * SPAN * itemsize
    tiles = min(MOST_TILES, max(LEAST_TILES, READ_BYTES // (tile * channels)))
    together = 1
    if planes == 1:
        wanted = ceil_div(images, tasks)
        if reads:
            wanted = min(wanted, tiles // max(1, down * across))
        together = max(1, min(images, max(wanted, ceil_div(LEAST_TILES, max(1, down * across)))))
    strips = ceil_div(images, together) * planes
    if reads:
        parts = depthwise.channel_parts(tasks, strips, channels, itemsize)
        width = whole_lanes(ceil_div(channels, parts), itemsize)
    else:
        parts = max(ceil_div(tasks, max(1, strips)), channels * together * rows * columns * itemsize // PACKED_BYTES)
        width = whole_lanes(ceil_div(channels, max(1, parts)), itemsize)
        parts = ceil_div(channels, width)
        tiles = max(1, PACKED_BYTES // (tile * width))
    if down * across <= tiles or together > 1:
        return (together, 1, rows, columns), width, parts
    beside = even_part(across, max(min(2, across), tiles // down)) if reads else across
    below = even_part(down, max(1, tiles // beside))
    return (1, 1, min(rows, SPAN * below), min(columns, SPAN * beside)), width, parts


def _transform(computes: str, g: ConvGeometry) -> Transform:
    """Choose the transform of rows for a pass.

    Rows that are no wider than a tile, and in the middle of what that sees, need fewer points.
    """
    left, met, computed = g.padding[2][0], g.input[2], g.output[2]
    if computes == "grad_input":
        left, met, computed = TAPS - 1 - left, computed, met
    for transform in (TEN,) if computes == "grad_weight" else NARROW:
        if computed <= transform.span and transform.inputs.start <= left and left + met <= transform.inputs.stop:
            return transform
    return TWELVE


def _pixels_program(p: Pixels) -> Program:
    """Lanes are channels."""
    g, axes, itemsize, channels = p.g, p.axes, p.itemsize, p.channels
    n = lanes(itemsize)
    reads = p.in_last and p.out_last and channels >= n
    strip, width, parts = _cut(p.sizes, channels, itemsize, p.tasks, reads)
    kinds = find_kinds(g.batch, axes, strip, (False,) * 3, by_output)
    source = make_source(p.in_shape, p.in_last, itemsize, g.batch, axes, strip, True, not reads, False, channels=n)
    source = depthwise.vector_by_vector(source)
    tables = Tables()
    boxes = 0 if reads else width // n * source.box_steps[1]
    out_steps = steps_of_image(p.out_shape, p.out_last)
    past = p.streams and (not reads or channels * itemsize <= MOST_STREAMED)
    numbers = strip_numbers(source, kinds, tables, p.out_shape, out_steps, p.out_step, past)
    taps_at = boxes + (0 if reads else strip[0] * p.scratch_steps(strip, width)[0])
    transform = _transform("grad_input" if p.transposed else "output", g)
    taps, each = TAPS * transform.tap_values * n, TAPS * transform.values * n
    place = np.arange(TAPS * TAPS)[:: -1 if p.transposed else 1]
    numbers |= {"box_size": boxes, "runs_at": 0, "run_list_at": 0}
    numbers |= {
        "channels": channels, "width": width, "parts": parts, "reads": reads, "awaits": p.streams and not past,
        "points": transform.points, "span": transform.span, "values": transform.values,
        "taps_at": taps_at, "values_at": taps_at + taps,
        "places_at": tables.add(place), "weight_steps": p.weight_steps, "weight_size": math.prod(g.weight_shape),
    }  # fmt: skip
    return Program(
        gather_fourier, source.strips * parts, GATHER_FOURIER.lay(**numbers), tables.whole(), taps_at + taps + 2 * each,
        p.tasks == 1, source, (1, channels, whole_lanes(channels, itemsize), 0),
    )  # fmt: skip


def _weights_program(g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int) -> Program:
    """Lanes are channels.

    Images that lie channels-last are summed over directly: two of them, whose pixels lie far apart, were read too slowly.
    """
    if x_last and grad_last:
        return depthwise.weights_program(g, per_sample, x_last, grad_last, itemsize)
    axes, channels, n, tasks = forward_axes(g), g.channels, lanes(itemsize), count_tasks(g)
    strip, width, parts = _cut((g.batch, *g.output), channels, itemsize, tasks, False)
    if per_sample:
        strip = (1, *strip[1:])
    counts = [ceil_div(size, part) for size, part in zip((g.batch, *g.output), strip, strict=True)]
    chunks = choose_chunks(
        math.prod(counts), g.batch * math.prod(g.output), g.batch, ceil_div(tasks, parts), per_sample
    )
    kinds = find_kinds(g.batch, axes, strip, (False,) * 3, by_tap)
    source = depthwise.vector_by_vector(
        make_source(g.input_shape, x_last, itemsize, g.batch, axes, strip, True, True, False, channels=n)
    )
    tables = Tables()
    numbers = strip_numbers(source, kinds, tables, g.output_shape, steps_of_image(g.output_shape, grad_last), (1, 1, 1))
    boxes, terms = width // n * source.box_steps[1], TAPS * TAPS
    transform = _transform("grad_weight", g)
    taps, each = TAPS * transform.tap_values * n, TAPS * transform.values * n
    taps_at = boxes + math.prod(strip) * width
    numbers |= {"box_size": boxes, "runs_at": 0, "run_list_at": 0}
    numbers |= {
        "channels": channels, "width": width, "parts": parts, "chunks": chunks, "each": parts * terms * width,
        "points": transform.points, "values": transform.values, "tap_values": transform.tap_values,
        "gradients_at": boxes, "taps_at": taps_at, "values_at": taps_at + taps, "sums_at": taps_at + taps + 2 * each,
    }  # fmt: skip
    return Program(
        correlate_fourier, chunks * parts, CORRELATE_FOURIER.lay(**numbers), tables.whole(), taps_at + taps + 3 * each,
        tasks == 1, source, (1, 0, 0, n),
        unpacking(chunks, per_sample, 1, np.arange(terms), channels, width, parts * terms * width, itemsize),
    )  # fmt: skip


FOURIER = Algorithm(_pixels_program, _weights_program)


def describe(computes: str, geometry: ConvGeometry, itemsize: int) -> str:
    """Say how a pass is computed, as the end of a sentence."""
    transform = _transform(computes, geometry.volume)
    tile = f"{SPAN}x{transform.span}"
    about = (
        f"lanes are channels, and tiles of {tile} pixels are rows of {transform.values} values of Fourier transforms"
    )
    return f"{about}; if channels-last, direct sums" if computes == "grad_weight" else about


@functools.lru_cache(maxsize=4096)
def nanoseconds(computes: str, geometry: ConvGeometry, itemsize: int) -> float:
    """Estimate the time of a pass, in the measure of the direct rows' estimate."""
    g = geometry.volume
    rows, columns = g.input[1:] if computes == "grad_input" else g.output[1:]
    transform = _transform(computes, g)
    tiles = g.batch * g.output[0] * ceil_div(rows, SPAN) * ceil_div(columns, transform.span)
    products = (
        transform.tap_values * SPAN / TWELVE.tap_values
    )  # as many of these take as long as SPAN outputs of TWELVE
    time = OUTPUT * tiles * SPAN * products * whole_lanes(g.channels, itemsize) * itemsize / met_share(g) ** PADDED
    if computes == "grad_weight":
        time *= max(1, columns / WIDE)
    return 20_000 + float(time)
