"""Direct convolution on the register tile, lanes along channels.

Two drivers serve all three passes.  `gather` computes pixels: a row of the tile is an output pixel, its lanes are a block of
output channels, and the sum runs over pairs of an input channel and a tap; with the weight packed one way this is equation
(1), with the other, phase by phase, it is equation (2).  `correlate` computes weights: a row is a pair of a channel and a
tap, its lanes are a block of filters, and the sum runs over pixels: equation (3).  What is what is said by the offset tables
that `fastconv.engine` makes.

In a depthwise convolution each lane has a channel of its own: ``block_step``, elsewhere None, then leads from one block's
channels to the next, and the pointwise tile multiplies.  (Numba compiles a kernel for each of the two.)

The output's pixels are cut into strips, (images, planes, rows, columns), small enough that what a strip needs of the input,
its box with the padding, stays in the second-level cache.  A driver packs the box, unless the input can be read as it lies,
and computes all of its task's lanes from it.

Each worker, a thread, has a row of scratch memory and an equal share of the tasks, in their order; what a task computes does
not depend on who does it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import kernel, parallel_kernel, prange, signed
from ..simd import ROWS, VECTORS, compact, lanes, outer_tile, pointwise_tile
from .pack import pack_box, pack_lanes, transpose

__all__ = ["PHASE", "correlate", "gather"]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]

PHASE = ("terms", "pairs_at", "pixels_at", "panel_at", "depth", "height", "width", "strip_z", "strip_y", "strip_x")
"""What a row of ``phases`` says of a phase: the number of its pairs, where its part of each table and its panels begin, its
pixels along each axis of the whole output, and of a whole strip."""


@kernel
def open_strip(
    number: int, counts: Ints, strip: Ints, x: Array, shape: Ints, steps: Ints, packs: bool, box: Ints, box_steps: Ints,
    left: Ints, x_step: Ints, room: Array,
) -> tuple[int, int, int, int, int]:  # fmt: skip
    """First image, plane, row and column of a strip, and where its input begins: in x, or in its box, which is packed here."""
    compact()
    rest, column = divmod(number, counts[3])
    rest, row = divmod(rest, counts[2])
    image, plane = divmod(rest, counts[1])
    n, z, y, x0 = image * strip[0], plane * strip[1], row * strip[2], column * strip[3]
    z_in, y_in, x_in = x_step[0] * z - left[0], x_step[1] * y - left[1], x_step[2] * x0 - left[2]
    if packs:
        pack_box(x, shape, steps, n, z_in, y_in, x_in, room, 0, box, box_steps)
        return n, z, y, x0, 0
    return n, z, y, x0, n * steps[0] + z_in * steps[2] + y_in * steps[3] + x_in * steps[4]


@kernel
def runs(images: int, z: int, y: int, x: int, strip: Ints) -> tuple[int, int, int, int]:
    """Join the rows of a strip, where nothing is cut off between them, to (images, planes, rows) of runs of so many pixels."""
    compact()
    if x < strip[2]:
        return images, z, y, x
    if y < strip[1]:
        return images, z, 1, y * x
    if z < strip[0]:
        return images, 1, 1, z * y * x
    return 1, 1, 1, images * z * y * x


@kernel
def compute_pixels(
    block_step: int | None, panels: Array, panel: int, pairs: Array, pairs_at: int, terms: int, x: Array, source: int,
    sources: Array, out: Array, target: int, targets: Array, at: int, pixels: int, start: Array, lane: int, valid: int,
) -> None:  # fmt: skip
    """A block of lanes of a run of pixels, numbered from ``at`` on in their tables."""
    compact()
    tiles = pixels // ROWS
    if block_step is None:
        outer_tile(
            panels, panel, pairs, pairs_at, terms, x, source, sources, at, out, target, targets, at, tiles, start, lane, 0,
            valid,
        )  # fmt: skip
    else:
        pointwise_tile(
            panels, panel, pairs, pairs_at, terms, x, source, sources, at, out, target, targets, at, tiles, start, lane, 0,
            valid,
        )  # fmt: skip
    if tiles * ROWS < pixels:  # the last tile is filled up with copies of the last pixel
        ends = np.empty(2 * ROWS, np.int64)
        for m in range(ROWS):
            pixel = at + min(tiles * ROWS + m, pixels - 1)
            ends[m], ends[ROWS + m] = sources[pixel], targets[pixel]
        if block_step is None:
            outer_tile(
                panels, panel, pairs, pairs_at, terms, x, source, ends, 0, out, target, ends, ROWS, 1, start, lane, 0, valid
            )  # fmt: skip
        else:
            pointwise_tile(
                panels, panel, pairs, pairs_at, terms, x, source, ends, 0, out, target, ends, ROWS, 1, start, lane, 0, valid
            )  # fmt: skip


@parallel_kernel
def gather(
    tasks: int, scratch: Array, x: Array, panels: Array, start: Array, out: Array, shape: Ints, steps: Ints, packs: bool,
    box: Ints, box_steps: Ints, left: Ints, x_step: Ints, strip: Ints, counts: Ints, parts: int, pairs: Array, phases: Array,
    sources: Array, targets: Array, groups: int, lane_count: int, group_step: int, block_step: int | None, out_shape: Ints,
    out_steps: Ints, out_step: Ints,
) -> None:  # fmt: skip
    """out[pixel, g, lane] = start[g, lane] + sum over pairs k of panels[g, lane, k] * x[source of pixel + offset of pair k].

    A task is a strip and a part of the blocks of lanes.  Where the output is not channels-last, a block's pixels are written
    to scratch and transposed from there.
    """
    workers = scratch.shape[0]
    for index in prange(workers):
        worker = signed(index)
        room = scratch[worker]
        n = lanes(out.itemsize)
        width = VECTORS * n
        blocks = (lane_count + width - 1) // width
        padded = (lane_count + n - 1) // n * n
        box_size = box[0] * box_steps[0] if packs else 0
        out_last = out_steps[1] == 1
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            number, part = divmod(task, parts)
            n0, z0, y0, x0, base = open_strip(
                number, counts, strip, x, shape, steps, packs, box, box_steps, left, x_step, room
            )  # fmt: skip
            images = min(strip[0], out_shape[0] - n0)
            z_out, y_out, x_out = out_step[0] * z0, out_step[1] * y0, out_step[2] * x0
            corner = n0 * out_steps[0] + z_out * out_steps[2] + y_out * out_steps[3] + x_out * out_steps[4]
            for g_block in range(part * groups * blocks // parts, (part + 1) * groups * blocks // parts):
                g, block = divmod(g_block, blocks)
                valid = min(width, lane_count - block * width)
                stored = valid if out_last else (valid + n - 1) // n * n  # in scratch there is room for whole vectors
                lane = g * padded + block * width
                source = base + g * group_step
                if block_step is not None:
                    source += block * block_step
                target = corner + g * lane_count + block * width if out_last else box_size
                for p in range(phases.shape[0]):
                    along = (phases[p, 7], phases[p, 8], phases[p, 9])
                    z, y = min(along[0], phases[p, 4] - z0), min(along[1], phases[p, 5] - y0)
                    columns = min(along[2], phases[p, 6] - x0)
                    if z <= 0 or y <= 0 or columns <= 0:
                        continue
                    b_runs, z_runs, y_runs, run = runs(images, z, y, columns, along)
                    for i in range(b_runs * z_runs * y_runs):
                        rest, row = divmod(i, y_runs)
                        b, plane = divmod(rest, z_runs)
                        at = phases[p, 2] + ((b * along[0] + plane) * along[1] + row) * along[2]
                        compute_pixels(
                            block_step, panels, phases[p, 3] + lane * phases[p, 0], pairs, phases[p, 1], phases[p, 0],
                            room if packs else x, source, sources, out if out_last else room, target, targets, at, run, start,
                            lane, stored,
                        )  # fmt: skip
                if not out_last:
                    channel = corner + (g * lane_count + block * width) * out_steps[1]
                    unpack_strip(
                        room, box_size, width, images, (z_out, y_out, x_out), out_step, strip, valid, out, channel, out_shape,
                        out_steps,
                    )  # fmt: skip


@kernel
def unpack_strip(
    pixels: Array, pixels_at: int, pitch: int, images: int, first: Ints, out_step: Ints, strip: Ints, valid: int, out: Array,
    channel: int, out_shape: Ints, out_steps: Ints,
) -> None:  # fmt: skip
    """Transpose a block of lanes of a strip from scratch into the planes of an NCHW output; ``first`` is its first pixel."""
    compact()
    _, _, D, H, W = out_shape
    Z, Y, X = min(out_step[0] * strip[1], D), min(out_step[1] * strip[2], H), min(out_step[2] * strip[3], W)
    z, y, x = min(Z, D - first[0]), min(Y, H - first[1]), min(X, W - first[2])
    rows, run = (1, y * x) if x == W else (y, x)
    for b in range(images):
        for plane in range(z):
            for row in range(rows):
                transpose(
                    pixels, pixels_at + ((b * Z + plane) * Y + row) * X * pitch, pitch, run, valid, out,
                    channel + b * out_steps[0] + plane * out_steps[2] + row * out_steps[3], out_steps[1],
                )  # fmt: skip


@parallel_kernel
def correlate(
    tasks: int, scratch: Array, x: Array, gradient: Array, out_steps: Ints, panels: Array, start: Array, shape: Ints,
    steps: Ints, packs: bool, box: Ints, box_steps: Ints, left: Ints, x_step: Ints, strip: Ints, counts: Ints,
    strips_each: int, parts: int, pairs: Array, sources: Array, targets: Array, terms: int, out_shape: Ints, groups: int,
    filters: int, group_step: int, block_step: int | None, each: int,
) -> None:  # fmt: skip
    """panels[s, g, lane, k] = sum over the pixels of chunk s of gradient[pixel, g, lane] * x[source of pixel + offset of pair k].

    A chunk is ``strips_each`` consecutive strips; a task is a chunk and a part of the blocks of filters.  ``terms`` is the
    number of pairs, whose table is filled up to whole tiles.
    """
    workers = scratch.shape[0]
    for index in prange(workers):
        worker = signed(index)
        room = scratch[worker]
        n = lanes(panels.itemsize)
        width = VECTORS * n
        blocks = (filters + width - 1) // width
        padded = (filters + n - 1) // n * n
        box_size = box[0] * box_steps[0] if packs else 0
        strips = counts[0] * counts[1] * counts[2] * counts[3]
        tiles = pairs.size // ROWS
        along = (strip[1], strip[2], strip[3])
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            s, part = divmod(task, parts)
            for number in range(s * strips_each, min((s + 1) * strips_each, strips)):
                n0, z0, y0, x0, base = open_strip(
                    number, counts, strip, x, shape, steps, packs, box, box_steps, left, x_step, room
                )  # fmt: skip
                images = min(strip[0], out_shape[0] - n0)
                z, y = min(strip[1], out_shape[2] - z0), min(strip[2], out_shape[3] - y0)
                columns = min(strip[3], out_shape[4] - x0)
                corner = n0 * out_steps[0] + z0 * out_steps[2] + y0 * out_steps[3] + x0 * out_steps[4]
                b_runs, z_runs, y_runs, run = runs(images, z, y, columns, along)
                for g_block in range(part * groups * blocks // parts, (part + 1) * groups * blocks // parts):
                    g, block = divmod(g_block, blocks)
                    valid = min(width, filters - block * width)
                    pitch = (valid + n - 1) // n * n
                    pack_strip(
                        gradient, corner + (g * filters + block * width) * out_steps[1], out_shape, out_steps, images, z, y,
                        columns, along, valid, pitch, room, box_size,
                    )  # fmt: skip
                    source = base + g * group_step
                    if block_step is not None:
                        source += block * block_step
                    panel = s * each + (g * padded + block * width) * terms
                    target = 0 if pitch == width else pairs.size
                    for i in range(b_runs * z_runs * y_runs):
                        rest, row = divmod(i, y_runs)
                        b, plane = divmod(rest, z_runs)
                        at = ((b * along[0] + plane) * along[1] + row) * along[2]
                        add = number - s * strips_each + i
                        image = room if packs else x
                        if block_step is None:
                            outer_tile(
                                room, box_size + at * pitch, sources, at, run, image, source, pairs, 0, panels, panel, targets,
                                target, tiles, start, 0, add, pitch,
                            )  # fmt: skip
                        else:
                            pointwise_tile(
                                room, box_size + at * pitch, sources, at, run, image, source, pairs, 0, panels, panel, targets,
                                target, tiles, start, 0, add, pitch,
                            )  # fmt: skip


@kernel
def pack_strip(
    gradient: Array, corner: int, shape: Ints, steps: Ints, images: int, z: int, y: int, x: int, along: Ints, valid: int,
    pitch: int, out: Array, out_at: int,
) -> None:  # fmt: skip
    """Pack a block of lanes of the (images, z, y, x) pixels of a strip, whose rows lie as in one of ``along``."""
    compact()
    rows, pixels = (1, y * x) if x == shape[4] else (y, x)  # rows that follow each other are packed together
    for b in range(images):
        for plane in range(z):
            for row in range(rows):
                pack_lanes(
                    gradient, corner + b * steps[0] + plane * steps[2] + row * steps[3], steps[1], steps[4], pixels, valid,
                    pitch, out, out_at + ((b * along[0] + plane) * along[1] + row) * along[2] * pitch,
                )  # fmt: skip
