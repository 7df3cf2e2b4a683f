"""Winograd's convolution: small kernels with stride 1, 3x3 from 36 products where direct summation needs 144.

The output is cut into tiles, of 4x4 pixels for kernels of 3x3 taps, smaller ones at the end of an axis.  What a tile needs of the
input, and the weight, are evaluated at 6x6 points (`fastconv.cook_toom`); there a convolution is one product for each point,
summed over channels: for each point a matrix product of tiles and channels with channels and filters, which is the register
tile's work.  From the results at the points follow the pixels.  Five taps along an axis have tiles of 2 pixels at as many points,
seven taps at 8 points; one tap has tiles of one pixel, at one point.

`multiply` computes pixels, of equation (1) and, with the weight turned round, of equation (2).  `correlate` computes weights,
equation (3): there the products are summed over tiles, and the points of the weight are summed up to taps at the end.

A task takes a strip of tiles, few enough that what it computes of them stays in the second-level cache.  All lie as
[point, tile, channel], with an odd number of cache lines between points: at a power of two, those of one tile would compete for a
few lines of the cache.

A task's numbers begin with what `fastconv.kernels.direct.STRIPS` names; a strip has one plane.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import kernel
from ..simd import (
    VECTORS,
    clear,
    compact,
    gradient_map,
    input_map,
    lanes,
    outer_tile,
    output_map,
    weight_gradient_map,
    weight_map,
)
from ..tasks import task
from .direct import OWN, open_strip, place_strip
from .pack import copy_columns, five, four, pack_depths, pack_strip, unpack_rows, unpack_strip

__all__ = ["CORRELATE", "MULTIPLY", "PLACES", "correlate", "multiply", "transform_weight"]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]

PLACES = (
    "values_at", "values", "products_at", "products", "columns_at", "pixels_at", "pairs_at", "group_step", "down", "across"
)  # fmt: skip
"""Where in a task's room the input at the points begins and the distance of its points, the same of the products, where there
is room for a row of tiles, and for a strip's pixels, where tables hold the pairs, the distance in x of groups, and the taps of a
column and of a row of the kernel."""

MULTIPLY = ("parts", "groups", "stages", "depths", "own", "plane", "taps_at", "rows_at", "pitch")
"""Behind PLACES: parts of the blocks for tasks of their own, groups, how many stages a sum has and depths each of them, where in
its room a task evaluates the weight, or 0, the distance of the points of the weight, where it turns the weight over before,
where tables hold the row of each (depth, tap), and numbers in a row of a panel; then what `pack_depths` takes."""

CORRELATE = (
    "gradients_at", "gradients", "per_chunk", "parts", "groups", "depths", "depth", "filters", "pitch", "each", "own", "rows_at",
    "taps_at", "turns_at", "turn", "turns",
)  # fmt: skip
"""Behind PLACES: the gradient at the points and the distance of its points, strips of a chunk, parts of the depths for tasks of
their own, groups, depths of a part and of a group, filters of a group, numbers in a row of a panel, the distance of chunks'
panels, whether the task writes the weight itself, where tables hold the row of each term, where in its room the taps' gradients
lie, where tables hold the rows of each turn of each part, that of their targets, and how many, depths of a turn, and how many
turns a part has at most."""

DEPTHS = 16
"""Depths of a weight that are turned over at once: their taps fill whole squares of lanes, and stay in the cache."""


@kernel
def points_along(taps: int) -> int:
    """Count the points along an axis, as `fastconv.cook_toom.points_of` does."""
    compact()
    return 1 if taps == 1 else 8 if taps == 7 else 6


@kernel
def transform_tiles(
    gradient: bool, image: Array, base: int, steps: Ints, sizes: Ints, taps: Ints, inside: Ints, channels: int, room: Array,
    columns_at: int, target_at: int, plane: int, pixel: int,
) -> None:  # fmt: skip
    """Evaluate tiles at the points: target[point, tile, channel], the input's or, if it is a ``gradient``, the output's.

    ``sizes`` are (images, rows, columns) of output pixels, ``steps`` their distances in the image, ``taps`` those of a column
    and of a row of the kernel: a tile of the input has as many rows and columns more, less one.  ``inside`` are the first row
    and the last + 1, and the first column and the last + 1, that exist: the others are 0.  Rows that cannot be read as they lie
    are copied first.  At points that a small tile does not use stands anything.
    """
    compact()
    n = lanes(image.itemsize)
    images, height, width = sizes
    top, bottom, left, right = inside
    more_y, more_x = taps[0] - 1, taps[1] - 1
    points_y, points_x = points_along(taps[0]), points_along(taps[1])
    tile_y, tile_x = points_y - more_y, points_x - more_x
    reach = 0 if gradient else more_y
    row = (width + (0 if gradient else more_x)) * n
    copied = columns_at + points_y * row
    t = 0
    for b in range(images):
        for y in range(0, height, tile_y):
            m_y = min(tile_y, height - y)
            first = base + b * steps[0] + y * steps[1] + left * steps[2]
            exist = y >= top and y + m_y + reach <= bottom
            for c in range(0, channels, n):
                whole = exist and channels - c >= n
                source, at, row_step, step = image if whole else room, first + c, steps[1], steps[2]
                if not whole:
                    at, row_step, step = copied, (right - left) * n, n
                    for r in range(m_y + reach):
                        to = copied + r * row_step
                        if top <= y + r < bottom:
                            copy_columns(
                                image, first + c + r * steps[1], steps[2], room, to, n, right - left, min(n, channels - c)
                            )  # fmt: skip
                        else:
                            clear(room, to, to + row_step)
                to = columns_at + left * n
                if gradient:
                    gradient_map(m_y + more_y, m_y, source, at, row_step, step, room, to, row, n, right - left)
                else:
                    input_map(m_y + more_y, m_y + more_y, source, at, row_step, step, room, to, row, n, right - left)
                for point in range(points_y):
                    to = columns_at + point * row
                    clear(room, to, to + left * n)
                    clear(room, to + right * n, to + row)
                to = target_at + t * pixel + c
                for x in range(0, width, tile_x):
                    m_x, at = min(tile_x, width - x), columns_at + x * n
                    if gradient:
                        gradient_map(
                            m_x + more_x, m_x, room, at, n, row, room, to, plane, points_x * plane, points_y
                        )  # fmt: skip
                    else:
                        input_map(
                            m_x + more_x, m_x + more_x, room, at, n, row, room, to, plane, points_x * plane, points_y
                        )  # fmt: skip
                    to += pixel
            t += (width + tile_x - 1) // tile_x


@kernel
def transform_products(
    room: Array, products_at: int, plane: int, pixel: int, columns_at: int, sizes: Ints, taps: Ints, valid: int, start: Array,
    lane: int, zeros: int, out: Array, out_at: int, steps: Ints,
) -> None:  # fmt: skip
    """Compute the pixels of tiles from their products at the points: out[pixel, lane] for the first ``valid`` lanes.

    ``start`` holds at ``lane`` what is added to the lanes, and at ``zeros`` a tile's zeros and then the floors.
    """
    compact()
    n = lanes(room.itemsize)
    images, height, width = sizes
    more_y, more_x = taps[0] - 1, taps[1] - 1
    points_y, points_x = points_along(taps[0]), points_along(taps[1])
    tile_y, tile_x = points_y - more_y, points_x - more_x
    row, edge, floors = points_x * n, columns_at + tile_y * points_x * n, zeros + VECTORS * n
    t = 0
    for b in range(images):
        for y in range(0, height, tile_y):
            m_y = min(tile_y, height - y)
            for x in range(0, width, tile_x):
                m_x = min(tile_x, width - x)
                to = out_at + b * steps[0] + y * steps[1] + x * steps[2]
                for c in range(0, valid, n):
                    at = products_at + t * pixel + c
                    output_map(
                        m_y, m_y + more_y, room, at, points_x * plane, plane, room, columns_at, row, n, points_x, start, zeros,
                        floors,
                    )  # fmt: skip
                    if valid - c >= n:
                        output_map(
                            m_x, m_x + more_x, room, columns_at, n, row, out, to + c, steps[2], steps[1], m_y, start, lane + c,
                            floors + 1,
                        )  # fmt: skip
                        continue
                    output_map(
                        m_x, m_x + more_x, room, columns_at, n, row, room, edge, n, tile_x * n, m_y, start, lane + c, floors + 1
                    )  # fmt: skip
                    for r in range(m_y):
                        here, there = edge + r * tile_x * n, to + c + r * steps[1]
                        copy_columns(room, here, n, out, there, steps[2], m_x, valid - c)
                t += 1


@kernel
def transform_depths(
    numbers: Array, at: int, tables: Array, rows_at: int, weight: Array, taps: Ints, g_block: int, first: int, last: int,
    room: Array, turned_at: int, panels: Array, panel: int, plane: int, pitch: int, blocks: int,
) -> None:  # fmt: skip
    """Evaluate the taps of the depths ``first`` to ``last`` - 1 of a block of lanes at the points: panels[point, depth, lane].

    A few depths at a time are turned over, as `pack_depths` does it.
    """
    compact()
    n = lanes(weight.itemsize)
    points_x, each = points_along(taps[1]), taps[0] * taps[1] * pitch
    for some in range(first, last, DEPTHS):
        turned = turned_at - some * each
        taken = min(some + DEPTHS, last)
        pack_depths(numbers, at, tables, rows_at, weight, g_block, some, taken, room, turned, pitch, blocks)
        for k in range(some, taken):
            weight_map(
                taps[0], taps[1], room, turned + k * each, taps[1] * pitch, pitch, n, panels, panel + (k - first) * pitch,
                points_x * plane, plane, n, pitch // n,
            )  # fmt: skip


@task
def transform_weight(
    task: int, room: Array, numbers: Array, tables: Array, weight: Array, panels: Array, _: Array, __: Array
) -> None:  # fmt: skip
    """Evaluate a chunk of the depths of a block of lanes at the points: panels[block, point, depth, lane].

    ``numbers`` are the numbers in a row of a panel, the depths of a chunk, the distance of points, the taps of a column and of a
    row of the kernel, and what `pack_depths` takes.
    """
    pitch, chunk, plane, taps, depth, lane_count = (
        numbers[0], numbers[1], numbers[2], (numbers[3], numbers[4]), numbers[5], numbers[7]
    )  # fmt: skip
    blocks, chunks = (lane_count + pitch - 1) // pitch, (depth + chunk - 1) // chunk
    g_block, number = divmod(task, chunks)
    first = number * chunk
    transform_depths(
        numbers, 5, tables, 0, weight, taps, g_block, first, min(first + chunk, depth), room, 0, panels,
        g_block * points_along(taps[0]) * points_along(taps[1]) * plane + first * pitch, plane, pitch, blocks,
    )  # fmt: skip


@kernel
def inside_of(numbers: Array, sizes: Ints, taps: Ints, y0: int, x0: int) -> Ints:
    """Return the first row and the last + 1, and the same of columns, of a strip's input that exist: all, where it is packed."""
    compact()
    height, width = sizes[1] + taps[0] - 1, sizes[2] + taps[1] - 1
    if numbers[34]:
        return 0, height, 0, width
    y, x = y0 - numbers[29], x0 - numbers[30]
    top, left = min(max(0, -y), height), min(max(0, -x), width)
    return top, max(top, min(height, numbers[3] - y)), left, max(left, min(width, numbers[4] - x))


@task
def multiply(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, weight: Array, start: Array, out: Array
) -> None:  # fmt: skip
    """out[pixel, g, lane] = start[g, lane] + the convolution of x with the weight, or the floor, if that is less.

    A task is a strip and a part of the blocks of lanes.  ``weight`` are panels, evaluated at the points; where no other task
    needs them they are evaluated here, some depths at a time.
    """
    values_at, values, products_at, products, columns_at, pixels_at, pairs_at, group_step = (
        numbers[OWN], numbers[OWN + 1], numbers[OWN + 2], numbers[OWN + 3], numbers[OWN + 4], numbers[OWN + 5],
        numbers[OWN + 6], numbers[OWN + 7],
    )  # fmt: skip
    taps = numbers[OWN + 8], numbers[OWN + 9]
    parts, groups, stages, depths, own, plane, taps_at, rows_at, pitch, depth, lane_count = (
        numbers[OWN + 10], numbers[OWN + 11], numbers[OWN + 12], numbers[OWN + 13], numbers[OWN + 14], numbers[OWN + 15],
        numbers[OWN + 16], numbers[OWN + 17], numbers[OWN + 18], numbers[OWN + 19], numbers[OWN + 21],
    )  # fmt: skip
    points = points_along(taps[0]) * points_along(taps[1])
    strip, out_shape, out_steps = four(numbers, 20), five(numbers, 40), five(numbers, 45)
    number, part = divmod(task, parts)
    n0, z0, y0, x0, kind = place_strip(number, numbers, tables)
    base = open_strip(numbers, x, n0, z0, y0, x0, room)
    sizes = (min(strip[0], out_shape[0] - n0), min(strip[2], out_shape[3] - y0), min(strip[3], out_shape[4] - x0))
    inside = inside_of(numbers, sizes, taps, y0, x0)
    packs, out_last = numbers[34], out_steps[1] == 1
    image, image_steps = room if packs else x, five(numbers, 15 if packs else 5)
    n = lanes(out.itemsize)
    pixel, blocks = (depth + n - 1) // n * n, (lane_count + pitch - 1) // pitch
    padded = (lane_count + n - 1) // n * n
    zeros = groups * padded
    corner = n0 * out_steps[0] + z0 * out_steps[2] + y0 * out_steps[3] + x0 * out_steps[4]
    columns, rows = min(strip[3], out_shape[4]), min(strip[2], out_shape[3])
    panels = room if own else weight
    transformed = -1
    for g_block in range(part * groups * blocks // parts, (part + 1) * groups * blocks // parts):
        g, block = divmod(g_block, blocks)
        if g != transformed:
            transform_tiles(
                False, image, base + g * group_step, (image_steps[0], image_steps[3], image_steps[4]), sizes, taps, inside,
                depth, room, columns_at, values_at, values, pixel,
            )  # fmt: skip
            transformed = g
        valid = min(pitch, lane_count - block * pitch)
        whole = (valid + n - 1) // n * n
        for stage in range(stages):
            taken = min(depths, depth - stage * depths)
            panel = own if own else g_block * points * plane
            if own:
                transform_depths(
                    numbers, OWN + 19, tables, rows_at, weight, taps, g_block, stage * depths, stage * depths + taken, room,
                    taps_at, room, own, plane, pitch, blocks,
                )  # fmt: skip
            for point in range(points):
                at = numbers[54] + 3 * (points * kind + point)
                outer_tile(
                    panels, panel + point * plane, tables, pairs_at, taken, room, values_at + point * values + stage * depths,
                    tables[at], room, products_at + point * products, tables[at + 1], tables[at + 2], start, zeros,
                    zeros + VECTORS * n, stage, whole,
                )  # fmt: skip
        lane = g * padded + block * pitch
        if out_last:
            transform_products(
                room, products_at, products, pitch, columns_at, sizes, taps, valid, start, lane, zeros, out,
                corner + g * lane_count + block * pitch, (out_steps[0], out_steps[3], out_steps[4]),
            )  # fmt: skip
        else:
            transform_products(
                room, products_at, products, pitch, columns_at, sizes, taps, whole, start, lane, zeros, room, pixels_at,
                (rows * columns * pitch, columns * pitch, pitch),
            )  # fmt: skip
            unpack_strip(
                room, pixels_at, pitch, sizes[0], (z0, y0, x0), (1, 1, 1), strip, valid, out,
                corner + (g * lane_count + block * pitch) * out_steps[1], out_shape, out_steps,
            )  # fmt: skip


@task
def correlate(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, gradient: Array, out: Array, zeros: Array
) -> None:  # fmt: skip
    """out[s, g, lane, k] = the gradient of the weight's terms, summed over the tiles of chunk s.

    A task is a chunk of consecutive strips, a block of filters and a part of the depths.  ``out`` are panels; or the weight, if
    there is one chunk for each, which the task then writes itself.  The sums of a single strip are turned to taps as they come,
    some depths at a time.
    """
    values_at, values, products_at, products, columns_at, pixels_at, _, group_step = (
        numbers[OWN], numbers[OWN + 1], numbers[OWN + 2], numbers[OWN + 3], numbers[OWN + 4], numbers[OWN + 5],
        numbers[OWN + 6], numbers[OWN + 7],
    )  # fmt: skip
    taps = numbers[OWN + 8], numbers[OWN + 9]
    gradients_at, gradients, per_chunk, parts, groups, depths, depth, filters, pitch, each, own, rows_at, taps_at = (
        numbers[OWN + 10], numbers[OWN + 11], numbers[OWN + 12], numbers[OWN + 13], numbers[OWN + 14], numbers[OWN + 15],
        numbers[OWN + 16], numbers[OWN + 17], numbers[OWN + 18], numbers[OWN + 19], numbers[OWN + 20], numbers[OWN + 21],
        numbers[OWN + 22],
    )  # fmt: skip
    turns_at, turn, turns = numbers[OWN + 23], numbers[OWN + 24], numbers[OWN + 25]
    points_x, terms = points_along(taps[1]), taps[0] * taps[1]
    points = points_along(taps[0]) * points_x
    strip, counts = four(numbers, 20), four(numbers, 24)
    out_shape, out_steps = five(numbers, 40), five(numbers, 45)
    n = lanes(out.itemsize)
    blocks = (filters + pitch - 1) // pitch
    rest, part = divmod(task, parts)
    s, g_block = divmod(rest, groups * blocks)
    g, block = divmod(g_block, blocks)
    taken = min(depths, depth - part * depths)
    valid = min(pitch, filters - block * pitch)
    whole = (valid + n - 1) // n * n
    pixel = (depths + n - 1) // n * n
    strips = counts[0] * counts[1] * counts[2] * counts[3]
    first, last = s * per_chunk, min((s + 1) * per_chunk, strips)
    for number in range(first, last):
        n0, z0, y0, x0, kind = place_strip(number, numbers, tables)
        base = open_strip(numbers, x, n0, z0, y0, x0, room) + g * group_step + part * depths
        sizes = (min(strip[0], out_shape[0] - n0), min(strip[2], out_shape[3] - y0), min(strip[3], out_shape[4] - x0))
        packs = numbers[34]
        image, steps = room if packs else x, five(numbers, 15 if packs else 5)
        transform_tiles(
            False, image, base, (steps[0], steps[3], steps[4]), sizes, taps, inside_of(numbers, sizes, taps, y0, x0), taken,
            room, columns_at, values_at, values, pixel,
        )  # fmt: skip
        at = n0 * out_steps[0] + z0 * out_steps[2] + y0 * out_steps[3] + x0 * out_steps[4]
        at += (g * filters + block * pitch) * out_steps[1]
        image, image_steps = gradient, (out_steps[0], out_steps[3], out_steps[4])
        if out_steps[1] != 1:
            four_sizes = (sizes[0], 1, sizes[1], sizes[2])
            pack_strip(gradient, at, out_shape, out_steps, four_sizes, strip, valid, whole, room, pixels_at)
            at, image = pixels_at, room
            image_steps = (strip[2] * strip[3] * whole, strip[3] * whole, whole)
        transform_tiles(
            True, image, at, image_steps, sizes, taps, (0, sizes[1], 0, sizes[2]), whole if out_steps[1] != 1 else valid,
            room, columns_at, gradients_at, gradients, pitch,
        )  # fmt: skip
        for some in range(0, taken, turn):
            rows = turns_at + 3 * (part * turns + some // turn)
            for point in range(points):
                at = numbers[54] + 2 * (points * kind + point)
                outer_tile(
                    room, gradients_at + point * gradients, tables, tables[at], tables[at + 1], room, values_at + point * values,
                    tables[rows], room, products_at + point * products, tables[rows + 1], tables[rows + 2], zeros, 0,
                    (pitch + n - 1) // n * n, number - first, whole,
                )  # fmt: skip
            if number < last - 1:
                continue
            summed, row = min(turn, taken - some), (part * depths + some) * terms
            panels = room if own else out
            panel = taps_at if own else s * each + g_block * depth * terms * pitch + row * pitch
            for k in range(summed):
                weight_gradient_map(
                    taps[0], taps[1], room, products_at + k * pitch, points_x * products, products, n, panels,
                    panel + k * terms * pitch, taps[1] * pitch, pitch, n, whole // n,
                )  # fmt: skip
            if own:
                to = (g * filters + block * pitch) * depth * terms + row
                unpack_rows(room, taps_at, pitch, valid, out, to, depth * terms, tables, rows_at, summed * terms)
