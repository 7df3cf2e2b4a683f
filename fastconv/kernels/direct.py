"""Direct convolution on the register tile, lanes along channels.

Two drivers serve all three passes.  `gather` computes pixels: a row of the tile is an output pixel, its lanes are a block of
output channels, and the sum runs over pairs of an input channel and a tap; with the weight packed one way this is equation
(1), with the other, phase by phase, it is equation (2).  `correlate` computes weights: a row is a pair of a channel and a
tap, its lanes are a block of filters, and the sum runs over pixels: equation (3).  What is what is said by the offset tables
that `fastconv.engine` makes.

In a depthwise convolution each lane has a channel of its own: ``block_step``, elsewhere 0, then leads from one block's
channels to the next, and the pointwise tile multiplies.

The output's pixels are cut into strips, (images, planes, rows, columns), small enough that what a strip needs of the input,
its box with the padding, stays in the second-level cache.  A driver packs the box, unless the input can be read as it lies,
and computes all of its task's lanes from it.

Each driver stands twice: as a range of tasks, and as a parallel loop over all of them.  Problems too small to be worth waking
other threads for run the first, with the same result.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import kernel, parallel_kernel, prange, signed, thread_number
from ..simd import ROWS, VECTORS, lanes, outer_tile, pointwise_tile
from .pack import pack_box, pack_lanes, unpack_lanes

__all__ = ["PHASE", "correlate", "correlate_tasks", "gather", "gather_tasks"]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]

PHASE = ("terms", "pairs_at", "pixels_at", "panel_at", "depth", "height", "width", "strip_z", "strip_y", "strip_x")
"""What a row of ``phases`` says of a phase: the number of its pairs, where its part of each table and its panels begin, its
pixels along each axis of the whole output, and of a whole strip."""


@kernel
def strip_at(number: int, counts: Ints, strip: Ints) -> tuple[int, int, int, int]:
    """First image, plane, row and column of a strip."""
    rest, x = divmod(number, counts[3])
    rest, y = divmod(rest, counts[2])
    n, z = divmod(rest, counts[1])
    return n * strip[0], z * strip[1], y * strip[2], x * strip[3]


@kernel
def runs(images: int, z: int, y: int, x: int, strip: Ints) -> tuple[int, int, int, int]:
    """Join the rows of a strip, where nothing is cut off between them, to (images, planes, rows) of runs of so many pixels."""
    if x < strip[2]:
        return images, z, y, x
    if y < strip[1]:
        return images, z, 1, y * x
    if z < strip[0]:
        return images, 1, 1, z * y * x
    return 1, 1, 1, images * z * y * x


@parallel_kernel
def gather(
    tasks: int, scratch: Array, x: Array, panels: Array, start: Array, out: Array, shape: Ints, steps: Ints, packs: bool,
    box: Ints, box_steps: Ints, left: Ints, x_step: Ints, strip: Ints, counts: Ints, parts: int, pairs: Array, phases: Array,
    sources: Array, targets: Array, groups: int, lane_count: int, group_step: int, block_step: int, out_shape: Ints,
    out_steps: Ints, out_step: Ints,
) -> None:  # fmt: skip
    """All tasks of `gather_tasks`, shared among the threads, each of which has a row of ``scratch``."""
    for task in prange(tasks):
        gather_tasks(
            signed(task), signed(task) + 1, scratch[thread_number()], x, panels, start, out, shape, steps, packs, box, box_steps,
            left, x_step, strip, counts, parts, pairs, phases, sources, targets, groups, lane_count, group_step, block_step,
            out_shape, out_steps, out_step,
        )  # fmt: skip


@kernel
def gather_tasks(
    begin: int, end: int, scratch: Array, x: Array, panels: Array, start: Array, out: Array, shape: Ints, steps: Ints,
    packs: bool, box: Ints, box_steps: Ints, left: Ints, x_step: Ints, strip: Ints, counts: Ints, parts: int, pairs: Array,
    phases: Array, sources: Array, targets: Array, groups: int, lane_count: int, group_step: int, block_step: int,
    out_shape: Ints, out_steps: Ints, out_step: Ints,
) -> None:  # fmt: skip
    """out[pixel, g, lane] = start[g, lane] + sum over pairs k of panels[g, lane, k] * x[source of pixel + offset of pair k].

    A task is a strip and a part of the blocks of lanes.  Where the output is not channels-last, a block's pixels are written
    to scratch and transposed from there.
    """
    n = lanes(out.itemsize)
    width = VECTORS * n
    blocks = (lane_count + width - 1) // width
    padded = (lane_count + n - 1) // n * n
    box_size = box[0] * box_steps[0] if packs else 0
    out_last = out_steps[1] == 1
    ends = np.empty(2 * ROWS, np.int64)
    for task in range(begin, end):
        number, part = divmod(task, parts)
        n0, z0, y0, x0 = strip_at(number, counts, strip)
        images = min(strip[0], out_shape[0] - n0)
        z_in, y_in, x_in = x_step[0] * z0 - left[0], x_step[1] * y0 - left[1], x_step[2] * x0 - left[2]
        if packs:
            pack_box(x, shape, steps, n0, z_in, y_in, x_in, scratch, 0, box, box_steps)
            image, base = scratch, 0
        else:
            image, base = x, n0 * steps[0] + z_in * steps[2] + y_in * steps[3] + x_in * steps[4]
        z_out, y_out, x_out = out_step[0] * z0, out_step[1] * y0, out_step[2] * x0
        corner = n0 * out_steps[0] + z_out * out_steps[2] + y_out * out_steps[3] + x_out * out_steps[4]
        for g_block in range(part * groups * blocks // parts, (part + 1) * groups * blocks // parts):
            g, block = divmod(g_block, blocks)
            valid = min(width, lane_count - block * width)
            pitch = (valid + n - 1) // n * n
            lane = g * padded + block * width
            source = base + g * group_step + block * block_step
            to, target = (out, corner + g * lane_count + block * width) if out_last else (scratch, box_size)
            stored = valid if out_last else pitch  # in scratch there is room for whole vectors
            for p in range(phases.shape[0]):
                terms, pairs_at, pixels_at = phases[p, 0], phases[p, 1], phases[p, 2]
                panel = phases[p, 3] + lane * terms
                along = (phases[p, 7], phases[p, 8], phases[p, 9])
                z, y, x_ = (
                    min(along[0], phases[p, 4] - z0),
                    min(along[1], phases[p, 5] - y0),
                    min(along[2], phases[p, 6] - x0),
                )
                if z <= 0 or y <= 0 or x_ <= 0:
                    continue
                b_runs, z_runs, y_runs, run = runs(images, z, y, x_, along)
                for i in range(b_runs * z_runs * y_runs):
                    rest, row = divmod(i, y_runs)
                    b, plane = divmod(rest, z_runs)
                    at = pixels_at + ((b * along[0] + plane) * along[1] + row) * along[2]
                    whole = run // ROWS
                    if block_step == 0:
                        outer_tile(
                            panels, panel, pairs, pairs_at, terms, image, source, sources, at, to, target, targets, at, whole,
                            start, lane, 0, stored,
                        )  # fmt: skip
                    else:
                        pointwise_tile(
                            panels, panel, pairs, pairs_at, terms, image, source, sources, at, to, target, targets, at, whole,
                            start, lane, 0, stored,
                        )  # fmt: skip
                    if whole * ROWS < run:  # the last tile is filled up with copies of the last pixel
                        for m in range(ROWS):
                            pixel = at + min(whole * ROWS + m, run - 1)
                            ends[m], ends[ROWS + m] = sources[pixel], targets[pixel]
                        if block_step == 0:
                            outer_tile(
                                panels, panel, pairs, pairs_at, terms, image, source, ends, 0, to, target, ends, ROWS, 1,
                                start, lane, 0, stored,
                            )  # fmt: skip
                        else:
                            pointwise_tile(
                                panels, panel, pairs, pairs_at, terms, image, source, ends, 0, to, target, ends, ROWS, 1,
                                start, lane, 0, stored,
                            )  # fmt: skip
            if not out_last:
                channel = corner + (g * lane_count + block * width) * out_steps[1]
                sizes = (
                    min(out_step[0] * strip[1], out_shape[2]), min(out_step[1] * strip[2], out_shape[3]),
                    min(out_step[2] * strip[3], out_shape[4]),
                )  # fmt: skip
                z, y = min(sizes[0], out_shape[2] - z_out), min(sizes[1], out_shape[3] - y_out)
                x_ = min(sizes[2], out_shape[4] - x_out)
                for b in range(images):
                    for plane in range(z):
                        rows, run = (1, y * x_) if x_ == out_shape[4] else (y, x_)
                        for row in range(rows):
                            unpack_lanes(
                                scratch, box_size + ((b * sizes[0] + plane) * sizes[1] + row) * sizes[2] * width, width, run,
                                valid, out, channel + b * out_steps[0] + plane * out_steps[2] + row * out_steps[3], out_steps[1],
                            )  # fmt: skip


@parallel_kernel
def correlate(
    tasks: int, scratch: Array, x: Array, gradient: Array, out_steps: Ints, panels: Array, start: Array, shape: Ints,
    steps: Ints, packs: bool, box: Ints, box_steps: Ints, left: Ints, x_step: Ints, strip: Ints, counts: Ints,
    strips_each: int, parts: int, pairs: Array, sources: Array, targets: Array, terms: int, out_shape: Ints, groups: int,
    filters: int, group_step: int, block_step: int, each: int,
) -> None:  # fmt: skip
    """All tasks of `correlate_tasks`, shared among the threads, each of which has a row of ``scratch``."""
    for task in prange(tasks):
        correlate_tasks(
            signed(task), signed(task) + 1, scratch[thread_number()], x, gradient, out_steps, panels, start, shape, steps, packs,
            box, box_steps, left, x_step, strip, counts, strips_each, parts, pairs, sources, targets, terms, out_shape, groups,
            filters, group_step, block_step, each,
        )  # fmt: skip


@kernel
def correlate_tasks(
    begin: int, end: int, scratch: Array, x: Array, gradient: Array, out_steps: Ints, panels: Array, start: Array, shape: Ints,
    steps: Ints, packs: bool, box: Ints, box_steps: Ints, left: Ints, x_step: Ints, strip: Ints, counts: Ints,
    strips_each: int, parts: int, pairs: Array, sources: Array, targets: Array, terms: int, out_shape: Ints, groups: int,
    filters: int, group_step: int, block_step: int, each: int,
) -> None:  # fmt: skip
    """panels[s, g, lane, k] = sum over the pixels of chunk s of gradient[pixel, g, lane] * x[source of pixel + offset of pair k].

    A chunk is ``strips_each`` consecutive strips; a task is a chunk and a part of the blocks of filters.  ``terms`` is the
    number of pairs, whose table is filled up to whole tiles.
    """
    n = lanes(panels.itemsize)
    width = VECTORS * n
    blocks = (filters + width - 1) // width
    padded = (filters + n - 1) // n * n
    box_size = box[0] * box_steps[0] if packs else 0
    strips = counts[0] * counts[1] * counts[2] * counts[3]
    tiles = pairs.size // ROWS
    along = (strip[1], strip[2], strip[3])
    for task in range(begin, end):
        s, part = divmod(task, parts)
        for number in range(s * strips_each, min((s + 1) * strips_each, strips)):
            n0, z0, y0, x0 = strip_at(number, counts, strip)
            images = min(strip[0], out_shape[0] - n0)
            z, y, x_ = (
                min(strip[1], out_shape[2] - z0),
                min(strip[2], out_shape[3] - y0),
                min(strip[3], out_shape[4] - x0),
            )
            z_in, y_in, x_in = x_step[0] * z0 - left[0], x_step[1] * y0 - left[1], x_step[2] * x0 - left[2]
            if packs:
                pack_box(x, shape, steps, n0, z_in, y_in, x_in, scratch, 0, box, box_steps)
                image, base = scratch, 0
            else:
                image, base = x, n0 * steps[0] + z_in * steps[2] + y_in * steps[3] + x_in * steps[4]
            corner = n0 * out_steps[0] + z0 * out_steps[2] + y0 * out_steps[3] + x0 * out_steps[4]
            b_runs, z_runs, y_runs, run = runs(images, z, y, x_, along)
            # Rows that follow each other in the gradient too are packed together.
            rows, pixels = (1, y * x_) if x_ == out_shape[4] else (y, x_)
            add = number - s * strips_each
            for g_block in range(part * groups * blocks // parts, (part + 1) * groups * blocks // parts):
                g, block = divmod(g_block, blocks)
                valid = min(width, filters - block * width)
                pitch = (valid + n - 1) // n * n
                for b in range(images):
                    for plane in range(z):
                        for row in range(rows):
                            at = corner + b * out_steps[0] + plane * out_steps[2] + row * out_steps[3]
                            pack_lanes(
                                gradient, at + (g * filters + block * width) * out_steps[1], out_steps[1], out_steps[4], pixels,
                                valid, pitch, scratch, box_size + ((b * along[0] + plane) * along[1] + row) * along[2] * pitch,
                            )  # fmt: skip
                source = base + g * group_step + block * block_step
                panel = s * each + (g * padded + block * width) * terms
                target = 0 if pitch == width else pairs.size
                for i in range(b_runs * z_runs * y_runs):
                    rest, row = divmod(i, y_runs)
                    b, plane = divmod(rest, z_runs)
                    at = ((b * along[0] + plane) * along[1] + row) * along[2]
                    if block_step == 0:
                        outer_tile(
                            scratch, box_size + at * pitch, sources, at, run, image, source, pairs, 0, panels, panel, targets,
                            target, tiles, start, 0, add + i, pitch,
                        )  # fmt: skip
                    else:
                        pointwise_tile(
                            scratch, box_size + at * pitch, sources, at, run, image, source, pairs, 0, panels, panel, targets,
                            target, tiles, start, 0, add + i, pitch,
                        )  # fmt: skip
