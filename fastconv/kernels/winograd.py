"""Winograd's convolution: small kernels, 3x3 from 36 products where direct summation needs 144.

The output is cut into tiles, of 4x4 pixels for kernels of 3x3 taps, smaller ones at the end of an axis.  What a tile needs of the
input, and the weight, are evaluated at 6x6 points (`fastconv.cook_toom`); there a convolution is one product for each point,
summed over channels: for each point a matrix product of tiles and channels with channels and filters, which is the register
tile's work.  From the results at the points follow the pixels.  Five taps along an axis have tiles of 2 pixels at as many points,
seven taps at 8 points; one tap has tiles of one pixel, at one point.

With stride 2 a tile's input has *values* of both phases along an axis, 6 + 5 for three taps, and the values at a point are summed
over the phases, too: as over channels.  In equation (2) the input is that of stride 1, and the products are the values of the
phases, from which follow neighbouring pixels.  Below, *steps* are the distances of neighbouring outputs of the stride-1
convolution in an image: the stride on one side, 1 on the other.

`multiply` computes pixels, of equation (1) and, with the weight turned round, of equation (2).  `correlate` computes weights,
equation (3): there the products are summed over tiles, and the points of the weight are summed up to taps at the end.

A task takes a strip of tiles, few enough that what it computes of them stays in the second-level cache.  All lie as
[value, tile, channel], with an odd number of cache lines between values: at a power of two, those of one tile would compete for a
few lines of the cache.

A task's numbers begin with `fastconv.kernels.direct.STRIPS`; a strip has one plane.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import inner_kernel, linked_kernel
from ..simd import (
    MARKS,
    VECTORS,
    clear,
    compact,
    gradient_map,
    input_map,
    lanes,
    line_parts,
    outer_tile,
    output_map,
    pad_tile,
    weight_gradient_map,
    weight_map,
)
from ..tasks import task
from .direct import STRIPS, count_strips, open_strip, place_strip, read_strips
from .fields import Fields
from .pack import copy_columns, pack_depths, pack_strip, unpack_rows, unpack_strip
from .pooling import pool_strip
from .sums import sum_strip

__all__ = [
    "CORRELATE", "CORRELATE_RUN", "MULTIPLY", "MULTIPLY_RUN", "PLACES", "TRANSFORM", "TURN", "correlate", "multiply",
    "transform_weight",
]  # fmt: skip

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]

PLACES = Fields(
    "Places",
    "values_at values products_at products columns_at pixels_at group_step kernel kernel_taps:2 weights:2 tile:2 read_steps:2 "
    "read_more:2 read_values:2 made_steps:2 made_more:2 made_values:2",
    STRIPS,
)
"""Where in a task's room the values of the input begin and their distance, the same of the products, where there is room for a
row of tiles, and for a strip's pixels, the distance in x of groups, the number of the kernel, and then along (columns, rows) its
taps, the different values of its weight, outputs of a tile, and of what is read and what is made their steps, how many numbers a
tile has more than its outputs times the step, and how many values."""

MULTIPLY = Fields(
    "Multiply",
    "first:2 parts by_strips groups stages depths own own_step plane taps_at rows_at pitch depth taps lane_count weight_steps:4 "
    "weight_size window:2 window_steps:3 places_at",
    PLACES,
)
"""Behind PLACES: the first pixel along (columns, rows) of the first tile, parts of the blocks for tasks of their own, whether
neighbours among these have a strip in common, not a part, groups, how many stages a sum has and depths each of them, where in its
room a task evaluates the weight, or 0, the distance of the blocks of lanes that it keeps there, or 0, and of the values of the
weight, where it turns the weight over before, where tables hold the row of each (depth, tap), and numbers in a row of a panel;
then what `pack_depths` takes, and what `pool_strip` does, or 0."""

CORRELATE = Fields(
    "Correlate",
    "gradients_at gradients chunks parts groups depths depth filters pitch each own rows_at taps_at turns_at turn turns sums_at",
    PLACES,
)
"""Behind PLACES: the gradient at the points and the distance of its points, chunks of strips, parts of the depths for tasks of
their own, groups, depths of a part and of a group, filters of a group, numbers in a row of a panel, the distance of chunks'
panels, whether the task writes the weight itself, where tables hold the row of each term, where in its room the taps' gradients
lie, where tables hold the rows of each turn of each part, that of their targets, and how many, depths of a turn, how many turns
a part has at most, and where behind the zeros the sums of gradients go, or 0."""

MULTIPLY_RUN = Fields("MultiplyRun", "rows_at targets_at rows pairs_at phases value weight")
"""For a kind of strips and a product: where tables hold the rows of its tiles and where these go, how many, the pairs of its
phases, how many phases, and the first of its values and of its weights."""

CORRELATE_RUN = Fields("CorrelateRun", "pairs_at pairs value gradient")
"""For a kind of strips and a value of the weight: where tables hold the pairs that it is summed over, how many, and the first
value of both images."""

TURN = Fields("Turn", "rows_at targets_at rows")
"""Where tables hold the rows of a turn of a part and where these go, and how many."""

TRANSFORM = Fields(
    "Transform", "pitch chunk plane kernel kernel_taps:2 weights:2 depth taps lane_count weight_steps:4 weight_size"
)
"""Numbers in a row of a panel, depths of a chunk, the distance of values, the number of the kernel, the taps of a column and of a
row, the different values of both, and what `pack_depths` takes."""

read_places, read_multiply, read_correlate, read_transform = (
    fields.reader() for fields in (PLACES, MULTIPLY, CORRELATE, TRANSFORM)
)
read_multiply_run, read_correlate_run, read_turn = (
    fields.row_reader() for fields in (MULTIPLY_RUN, CORRELATE_RUN, TURN)
)

EXACT = 1 << 20
"""Numbers up to which marks are exact in any dtype."""

DEPTHS = 16
"""Depths of a weight that are turned over at once: their taps fill whole squares of lanes, and stay in the cache."""


@linked_kernel
def transform_tiles(
    gradient: int, image: Array, base: int, distances: Ints, sizes: Ints, tile: Ints, steps: Ints, more: Ints,
    values: Ints, inside: Ints, channels: int, room: Array, columns_at: int, target_at: int, plane: int, pixel: int,
) -> None:  # fmt: skip
    """Evaluate tiles at the points: target[value, tile, channel], the input's or, if it is a ``gradient``, the output's.

    ``sizes`` are (images, rows, columns) of outputs, ``distances`` those of pixels in the image; ``tile``, ``steps``, ``more``
    and ``values`` are what PLACES says of an image that is read: a tile of the input has steps times the outputs and some more
    rows and columns, one of a gradient its outputs.  ``inside`` are the first row and the last + 1, and the first column and the
    last + 1, that exist: the others are 0.  Rows that cannot be read as they lie are copied first.  For values that a small
    tile does not have stands anything.
    """
    compact()
    n = lanes(image.itemsize)
    images, height, width = sizes
    top, bottom, left, right = inside
    step_y, step_x = steps
    reach, beside = (0, 0) if gradient else (more[0], more[1])
    row = (step_x * width + beside) * n
    copied = columns_at + values[0] * row
    t = 0
    for b in range(images):
        for y in range(0, height, tile[0]):
            m_y, y_in = min(tile[0], height - y), step_y * y
            rows = step_y * m_y + reach
            first = base + b * distances[0] + y_in * distances[1] + left * distances[2]
            exist = y_in >= top and y_in + rows <= bottom
            # What the tiles below read and these do not, or rows of the next image, is fetched while these are evaluated.
            below = y + tile[0] < height
            ahead = first + rows * distances[1] if below else base + (b + 1) * distances[0] + left * distances[2]
            fetches = step_y * tile[0] if below or b + 1 < images else 0
            for c in range(0, channels, n):
                whole = exist and channels - c >= n
                source, at, row_step, step = image if whole else room, first + c, distances[1], distances[2]
                if not whole:
                    at, row_step, step = copied, (right - left) * n, n
                    for r in range(rows):
                        to = copied + r * row_step
                        if top <= y_in + r < bottom:
                            pad_tile(
                                image, first + c + r * distances[1], distances[2], room, to, n, right - left, min(n, channels - c)
                            )  # fmt: skip
                        else:
                            clear(room, to, to + row_step)
                to = columns_at + left * n
                if gradient:
                    gradient_map(
                        m_y + more[0], m_y, 1, source, at, row_step, step, room, to, row, n, right - left,
                        image, ahead + c, distances[1], distances[2], fetches,
                    )  # fmt: skip
                else:
                    input_map(
                        rows, rows, step_y, source, at, row_step, step, room, to, row, n, right - left,
                        image, ahead + c, distances[1], distances[2], fetches,
                    )  # fmt: skip
                for value in range(values[0]):
                    to = columns_at + value * row
                    clear(room, to, to + left * n)
                    clear(room, to + right * n, to + row)
                to = target_at + t * pixel + c
                for x in range(0, width, tile[1]):
                    m_x, at = min(tile[1], width - x), columns_at + step_x * x * n
                    if gradient:
                        gradient_map(
                            m_x + more[1], m_x, 1, room, at, n, row, room, to, plane, values[1] * plane, values[0],
                            room, 0, 0, 0, 0,
                        )  # fmt: skip
                    else:
                        columns = step_x * m_x + more[1]
                        input_map(
                            columns, columns, step_x, room, at, n, row, room, to, plane, values[1] * plane, values[0],
                            room, 0, 0, 0, 0,
                        )  # fmt: skip
                    to += pixel
            t += (width + tile[1] - 1) // tile[1]


@linked_kernel
def transform_products(
    room: Array, products_at: int, plane: int, pixel: int, columns_at: int, sizes: Ints, tile: Ints, steps: Ints, more: Ints,
    values: Ints, inside: Ints, valid: int, start: Array, lane: int, zeros: int, out: Array, out_at: int, distances: Ints,
    streams: int,
) -> None:  # fmt: skip
    """Compute the pixels of tiles from their products: out[pixel, lane] for the first ``valid`` lanes.

    ``tile``, ``steps``, ``more`` and ``values`` are what PLACES says of what is made, ``inside`` are the first row and the
    last + 1, and the same of columns, of pixels that exist.  ``start`` holds at ``lane`` what is added to the lanes, and at
    ``zeros`` a tile's zeros and then the floors.  If it ``streams``, pixels go to memory past the caches.
    """
    compact()
    n = lanes(room.itemsize)
    images, height, width = sizes
    top, bottom, left, right = inside
    along = steps[1] * tile[1] * n
    row, edge, floors = values[1] * n, columns_at + steps[0] * tile[0] * values[1] * n, zeros + VECTORS * n
    t = 0
    for b in range(images):
        for y in range(0, height, tile[0]):
            first, rows = steps[0] * y, steps[0] * min(tile[0], height - y)
            for x in range(0, width, tile[1]):
                begin, columns = steps[1] * x, steps[1] * min(tile[1], width - x)
                to = out_at + b * distances[0] + first * distances[1] + begin * distances[2]
                exist = first >= top and first + rows <= bottom and begin >= left and begin + columns <= right
                for c in range(0, valid, n):
                    at = products_at + t * pixel + c
                    output_map(
                        rows, rows + more[0], steps[0], room, at, values[1] * plane, plane, room, columns_at, row, n, values[1],
                        start, zeros, floors, 0,
                    )  # fmt: skip
                    if exist and valid - c >= n:
                        output_map(
                            columns, columns + more[1], steps[1], room, columns_at, n, row, out, to + c, distances[2],
                            distances[1], rows, start, lane + c, floors + 1, streams,
                        )  # fmt: skip
                        continue
                    output_map(
                        columns, columns + more[1], steps[1], room, columns_at, n, row, room, edge, n, along, rows, start,
                        lane + c, floors + 1, 0,
                    )  # fmt: skip
                    skipped = max(0, left - begin)
                    for r in range(max(0, top - first), min(rows, bottom - first)):
                        here, there = edge + r * along + skipped * n, to + c + r * distances[1] + skipped * distances[2]
                        copy_columns(
                            room, here, n, out, there, distances[2], min(columns, right - begin) - skipped, min(n, valid - c), 0
                        )  # fmt: skip
                t += 1


@linked_kernel
def transform_depths(
    sizes: Ints, steps: Ints, size: int, tables: Array, rows_at: int, weight: Array, kernel: int, taps: Ints, weights: Ints,
    g_block: int, first: int, last: int, room: Array, turned_at: int, panels: Array, panel: int, plane: int, pitch: int,
    blocks: int,
) -> None:  # fmt: skip
    """Evaluate the taps of the depths ``first`` to ``last`` - 1 of a block of lanes at the points: panels[value, depth, lane].

    A few depths at a time are turned over, as `pack_depths` does it, which says what ``sizes``, ``steps`` and ``size`` are.
    """
    compact()
    n = lanes(weight.itemsize)
    each = taps[0] * taps[1] * pitch
    for some in range(first, last, DEPTHS):
        turned = turned_at - some * each
        taken = min(some + DEPTHS, last)
        pack_depths(
            sizes, steps, size, tables, rows_at, weight, g_block, some, taken, room, turned, pitch, blocks
        )  # fmt: skip
        for k in range(some, taken):
            weight_map(
                kernel, room, turned + k * each, taps[1] * pitch, pitch, n, panels, panel + (k - first) * pitch,
                weights[1] * plane, plane, n, pitch // n,
            )  # fmt: skip


@task
def transform_weight(
    task: int, room: Array, numbers: Array, tables: Array, weight: Array, panels: Array, _: Array, __: Array
) -> None:  # fmt: skip
    """Evaluate a chunk of the depths of a block of lanes at the points: panels[block, value, depth, lane]."""
    t = read_transform(numbers)
    pitch, chunk, plane, weights, depth, lane_count = t.pitch, t.chunk, t.plane, t.weights, t.depth, t.lane_count
    blocks, chunks = (lane_count + pitch - 1) // pitch, (depth + chunk - 1) // chunk
    g_block, number = divmod(task, chunks)
    first = number * chunk
    transform_depths(
        (depth, t.taps, lane_count), t.weight_steps, t.weight_size, tables, 0, weight, t.kernel, t.kernel_taps, weights,
        g_block, first, min(first + chunk, depth), room, 0, panels,
        g_block * weights[0] * weights[1] * plane + first * pitch, plane, pitch, blocks,
    )  # fmt: skip


@inner_kernel
def is_evaluated(room: Array, number: int) -> bool:
    """Say whether the last one whose values a worker has evaluated had this number: the two last marks tell."""
    return bool(room[MARKS - 1] == number % EXACT + 1 and room[MARKS - 2] == number // EXACT)


@inner_kernel
def mark_evaluated(room: Array, number: int) -> None:
    """Leave the marks for that."""
    room[MARKS - 1], room[MARKS - 2] = number % EXACT + 1, number // EXACT


@inner_kernel
def inside_of(numbers: Array, sizes: Ints, y0: int, x0: int) -> Ints:
    """Return the first row and the last + 1, and the same of columns, of a strip's input that exist: all, where it is packed."""
    compact()
    s, t = read_strips(numbers), read_places(numbers)
    steps, more, left, shape = t.read_steps, t.read_more, s.left, s.shape
    height, width = steps[0] * sizes[1] + more[0], steps[1] * sizes[2] + more[1]
    if s.packs:
        return 0, height, 0, width
    y, x = steps[0] * y0 - left[1], steps[1] * x0 - left[2]
    top, first = min(max(0, -y), height), min(max(0, -x), width)
    return top, max(top, min(height, shape[3] - y)), first, max(first, min(width, shape[4] - x))


@task
def multiply(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, weight: Array, start: Array, out: Array
) -> None:  # fmt: skip
    """out[pixel, g, lane] = start[g, lane] + the convolution of x with the weight, or the floor, if that is less.

    A task is a strip and a part of the blocks of lanes.  ``weight`` are panels, evaluated at the points; where no other task
    needs them they are evaluated here, some depths at a time.  Or a worker evaluates each block when it first comes to it, and
    keeps it: its marks, at the beginning of the room, say which ones it has, and which strip's input.
    """
    s, p, t = read_strips(numbers), read_places(numbers), read_multiply(numbers)
    strip, out_shape, out_steps, packs, streams = s.strip, s.out_shape, s.out_steps, s.packs, s.streams
    values_at, values, products_at, products, columns_at, pixels_at, weights, tile, made_steps, made_more, made_values = (
        p.values_at, p.values, p.products_at, p.products, p.columns_at, p.pixels_at, p.weights, p.tile, p.made_steps,
        p.made_more, p.made_values,
    )  # fmt: skip
    first_pixel, parts, groups, stages, depths, own, own_step, plane, pitch, depth, lane_count, window = (
        t.first, t.parts, t.groups, t.stages, t.depths, t.own, t.own_step, t.plane, t.pitch, t.depth, t.lane_count, t.window
    )  # fmt: skip
    planes = made_values[0] * made_values[1]
    strips = count_strips(numbers)
    part, number = (task % parts, task // parts) if t.by_strips else (task // strips, task % strips)
    n0, z0, y0, x0, kind = place_strip(number, numbers, tables)
    evaluated = groups == 1 and is_evaluated(room, number)  # by the task before this one, for another part
    base = 0 if evaluated else open_strip(numbers, x, n0, z0, y0, x0, room[MARKS:], 0)
    # The first pixel of the strip need not exist, and outputs that end in some that do not are counted.
    first_y, first_x = first_pixel[0] + made_steps[0] * y0, first_pixel[1] + made_steps[1] * x0
    sizes = (
        min(strip[0], out_shape[0] - n0),
        min(strip[2], (out_shape[3] - first_y + made_steps[0] - 1) // made_steps[0]),
        min(strip[3], (out_shape[4] - first_x + made_steps[1] - 1) // made_steps[1]),
    )
    exist = (
        max(0, -first_y), min(made_steps[0] * sizes[1], out_shape[3] - first_y),
        max(0, -first_x), min(made_steps[1] * sizes[2], out_shape[4] - first_x),
    )  # fmt: skip
    rows, columns = exist[1] - exist[0], exist[3] - exist[2]
    inside = inside_of(numbers, sizes, y0, x0)
    writes = out_steps[1] == 1 and not window[0] and not (streams and line_parts() > 1)  # pixels as they lie
    image, image_steps = room[MARKS:] if packs else x, s.box_steps if packs else s.steps
    n = lanes(out.itemsize)
    pixel, blocks = (depth + n - 1) // n * n, (lane_count + pitch - 1) // pitch
    padded = (lane_count + n - 1) // n * n
    zeros = groups * padded
    corner = n0 * out_steps[0] + z0 * out_steps[2] + first_y * out_steps[3] + first_x * out_steps[4]
    panels = room if own else weight
    transformed = 0 if evaluated else -1
    for g_block in range(part * groups * blocks // parts, (part + 1) * groups * blocks // parts):
        g, block = divmod(g_block, blocks)
        if g != transformed:
            transform_tiles(
                0, image, base + g * p.group_step, (image_steps[0], image_steps[3], image_steps[4]), sizes, tile,
                p.read_steps, p.read_more, p.read_values, inside, depth, room, columns_at,
                values_at, values, pixel,
            )  # fmt: skip
            transformed = g
            mark_evaluated(room, number)
        valid = min(pitch, lane_count - block * pitch)
        whole = (valid + n - 1) // n * n
        for stage in range(stages):
            taken = min(depths, depth - stage * depths)
            panel = own + g_block * own_step if own else g_block * weights[0] * weights[1] * plane
            if own and not (own_step and room[g_block]):
                transform_depths(
                    (depth, t.taps, lane_count), t.weight_steps, t.weight_size, tables, t.rows_at, weight, p.kernel,
                    p.kernel_taps, weights, g_block, stage * depths, stage * depths + taken, room, t.taps_at, room, panel, plane,
                    pitch, blocks,
                )  # fmt: skip
                if own_step:
                    room[g_block] = 1
            for product in range(planes):
                run = read_multiply_run(tables, s.run_list_at, planes * kind + product)
                outer_tile(
                    panels, panel + run.weight * plane, tables, run.pairs_at + 2 * stage * depths * run.phases,
                    taken * run.phases, room, values_at + run.value * values, run.rows_at, room,
                    products_at + product * products, run.targets_at, run.rows, start, zeros, zeros + VECTORS * n, stage,
                    whole, 0,
                )  # fmt: skip
        lane = g * padded + block * pitch
        if writes:
            transform_products(
                room, products_at, products, pitch, columns_at, sizes, tile, made_steps, made_more, made_values, exist, valid,
                start, lane, zeros, out, corner + g * lane_count + block * pitch, (out_steps[0], out_steps[3], out_steps[4]),
                streams,
            )  # fmt: skip
        else:
            transform_products(
                room, products_at, products, pitch, columns_at, sizes, tile, made_steps, made_more, made_values, exist, whole,
                start, lane, zeros, room, pixels_at - (exist[0] * columns + exist[2]) * pitch,
                (rows * columns * pitch, columns * pitch, pitch), 0,
            )  # fmt: skip
            if window[0]:
                pool_strip(
                    room, pixels_at, pitch, sizes[0], (rows, columns), (rows, columns), valid, out, (n0, first_y, first_x),
                    g * lane_count + block * pitch, window, t.window_steps, t.places_at, start, zeros + VECTORS * n + 1,
                )  # fmt: skip
                continue
            unpack_strip(
                room, pixels_at, pitch, sizes[0], (z0, first_y + exist[0], first_x + exist[2]), (1, 1, 1),
                (strip[0], 1, rows, columns), valid, out,
                corner + exist[0] * out_steps[3] + exist[2] * out_steps[4] + (g * lane_count + block * pitch) * out_steps[1],
                out_shape, out_steps, streams,
            )  # fmt: skip


@task
def correlate(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, gradient: Array, out: Array, zeros: Array
) -> None:  # fmt: skip
    """out[s, g, lane, k] = the gradient of the weight's terms, summed over the tiles of chunk s.

    A task is a chunk of consecutive strips, a block of filters and a part of the depths.  ``out`` are panels; or the weight, if
    there is one chunk for each, which the task then writes itself.  The sums of a single strip are turned to taps as they come,
    some depths at a time; its gradients, at the points, are there for the next task, another part of the depths.

    Behind the ``zeros`` is room for equation (4), if that is asked for: those that have the first depths also sum the gradients.
    """
    s, p, t = read_strips(numbers), read_places(numbers), read_correlate(numbers)
    strip, packs, out_shape, out_steps = s.strip, s.packs, s.out_shape, s.out_steps
    values_at, values, products_at, products, columns_at, pixels_at, taps, weights, tile = (
        p.values_at, p.values, p.products_at, p.products, p.columns_at, p.pixels_at, p.kernel_taps, p.weights, p.tile
    )  # fmt: skip
    gradients_at, gradients, chunks, parts, groups, depths, depth, filters, pitch, own, turn = (
        t.gradients_at, t.gradients, t.chunks, t.parts, t.groups, t.depths, t.depth, t.filters, t.pitch, t.own, t.turn
    )  # fmt: skip
    terms, planes = taps[0] * taps[1], weights[0] * weights[1]
    n = lanes(out.itemsize)
    blocks = (filters + pitch - 1) // pitch
    rest, part = divmod(task, parts)
    chunk, g_block = divmod(rest, groups * blocks)
    g, block = divmod(g_block, blocks)
    taken = min(depths, depth - part * depths)
    valid = min(pitch, filters - block * pitch)
    whole = (valid + n - 1) // n * n
    pixel = (depths + n - 1) // n * n
    strips = count_strips(numbers)
    first, last = chunk * strips // chunks, (chunk + 1) * strips // chunks
    for number in range(first, last):
        n0, z0, y0, x0, kind = place_strip(number, numbers, tables)
        base = open_strip(numbers, x, n0, z0, y0, x0, room[MARKS:], 0) + g * p.group_step + part * depths
        sizes = (min(strip[0], out_shape[0] - n0), min(strip[2], out_shape[3] - y0), min(strip[3], out_shape[4] - x0))
        image, steps = room[MARKS:] if packs else x, s.box_steps if packs else s.steps
        transform_tiles(
            0, image, base, (steps[0], steps[3], steps[4]), sizes, tile, p.read_steps, p.read_more,
            p.read_values, inside_of(numbers, sizes, y0, x0), taken, room, columns_at, values_at, values, pixel,
        )  # fmt: skip
        at = n0 * out_steps[0] + z0 * out_steps[2] + y0 * out_steps[3] + x0 * out_steps[4]
        at += (g * filters + block * pitch) * out_steps[1]
        image, image_steps = gradient, (out_steps[0], out_steps[3], out_steps[4])
        four_sizes, stored = (sizes[0], 1, sizes[1], sizes[2]), valid
        mark = number * groups * blocks + g_block
        evaluated = is_evaluated(room, mark)  # by the task before this one, for another part
        if out_steps[1] != 1:
            if not evaluated:
                pack_strip(gradient, at, out_shape, out_steps, four_sizes, strip, valid, whole, room, pixels_at)
            at, image, stored = pixels_at, room, whole
            image_steps = (strip[2] * strip[3] * whole, strip[3] * whole, whole)
        if not evaluated:
            transform_tiles(
                1, image, at, image_steps, sizes, tile, p.made_steps, p.made_more, p.made_values, (0, sizes[1], 0, sizes[2]),
                stored, room, columns_at, gradients_at, gradients, pitch,
            )  # fmt: skip
            mark_evaluated(room, mark)
        if t.sums_at and part == 0:
            sum_strip(
                image, at, four_sizes, (image_steps[0], image_steps[1], image_steps[1], image_steps[2]), stored, zeros, t.sums_at,
                mark, pitch,
            )  # fmt: skip
        for some in range(0, taken, turn):
            rows = read_turn(tables, t.turns_at, part * t.turns + some // turn)
            for product in range(planes):
                run = read_correlate_run(tables, s.run_list_at, planes * kind + product)
                outer_tile(
                    room, gradients_at + run.gradient * gradients, tables, run.pairs_at, run.pairs, room,
                    values_at + run.value * values, rows.rows_at, room, products_at + product * products,
                    rows.targets_at, rows.rows, zeros, 0, (pitch + n - 1) // n * n, number - first, whole, 0,
                )  # fmt: skip
            if number < last - 1:
                continue
            summed, row = min(turn, taken - some), (part * depths + some) * terms
            panels = room if own else out
            panel = t.taps_at if own else chunk * t.each + g_block * depth * terms * pitch + row * pitch
            for k in range(summed):
                weight_gradient_map(
                    p.kernel, room, products_at + k * pitch, weights[1] * products, products, n, panels,
                    panel + k * terms * pitch, taps[1] * pitch, pitch, n, whole // n,
                )  # fmt: skip
            if own:
                to = (g * filters + block * pitch) * depth * terms + row
                unpack_rows(room, t.taps_at, pitch, valid, out, to, depth * terms, tables, t.rows_at, summed * terms)
