"""Direct convolution on the register tiles.

Four tasks serve all passes in which channels mix.  `gather` computes pixels: a row of the tile is an output pixel, its lanes
are a block of output channels, and the sum runs over pairs of an input channel and a tap; with the weight packed one way this
is equation (1), with the other, phase by phase, it is equation (2).  `gather_planes` does the same for few output channels:
they are the rows, and lanes are pixels; `gather_taps` for one, where the rows are taps.  `correlate` computes weights: a row is
a pair of a channel and a tap, its lanes are a block of filters, and the sum runs over pixels: equation (3).  What is what is
said by the tables that `fastconv.engine` and `fastconv.correlation` make.

The output's pixels are cut into strips, (images, planes, rows, columns), few enough that what they need of the input stays in
the second-level cache.  Strips of one *kind* meet the padding alike, and share their tables: a kind is a list of *runs*, pixels
that meet the same taps.

A task's numbers are `fastconv.kernels.fields.Fields`: STRIPS, and then its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import inner_kernel, linked_kernel, unsigned
from ..simd import (
    FEW_VECTORS,
    ROWS,
    TERMS,
    TURN,
    VECTORS,
    clear,
    compact,
    far_tile,
    lanes,
    near_tile,
    outer_tile,
    short_tile,
    walk_tile,
)
from ..tasks import task
from .fields import Fields
from .pack import pack_box, pack_depths, pack_strip, unpack_rows, unpack_strip
from .pooling import pool_strip
from .sums import sum_strip

__all__ = ["CORRELATE", "GATHER", "PLANES", "STRIPS", "TAPS", "correlate", "gather", "gather_planes", "gather_taps"]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]

STRIPS = Fields(
    "Strips",
    "shape:5 steps:5 box:5 box_steps:5 strip:4 counts:4 left:3 x_step:3 packs box_size kinds_at:4 out_shape:5 out_steps:5 "
    "out_step:3 streams runs_at run_list_at",
)
"""The input and its steps, the box of a strip and its steps, a strip and how many there are along (images, planes, rows,
columns), the padding in front, the distance in the input of neighbouring outputs, whether a strip's box is packed, its size,
where tables hold for each strip along each axis its part of the kind, the output, its steps, the distance in it of neighbouring
pixels of a strip, whether it goes to memory past the caches, and where tables hold for each kind its first run, and the runs."""

GATHER = Fields(
    "Gather",
    "parts groups pitch group_step stages depths adds own rows_at depth taps lane_count weight_steps:4 weight_size window:2 "
    "window_steps:3 places_at passes",
    STRIPS,
)
"""Parts of the lanes for tasks of their own, groups, numbers in a row of a panel, the distance in x of groups, how many stages a
sum has and depths each of them, whether sums are added to what is there, where in its room a task packs its panels, or 0, then
what `pack_depths` takes, what `pool_strip` does, or 0, and how many numbers of x a tile passes between fetches, if it reads all
that lies there, else 0."""

PLANES = Fields("Planes", "groups lane_count group_step height width plane weight_step", STRIPS)
"""Groups, channels of each, the distance in x of groups, rows and lanes of a tile, numbers of a plane in scratch, and the
distance in the weight of groups."""

TAPS = Fields("Taps", "groups group_step weight_step depth pairs_at rows_at targets_at rows pitch above below", STRIPS)
"""Groups, the distance in x and in the weight of groups, depths, where tables hold the pairs, rows and targets of tiles, how many
rows these have, the distance of parts, and how many rows of the input above and below its own a strip meets."""

CORRELATE = Fields(
    "Correlate",
    "chunks parts groups lane_count pitch group_step depths depth taps each reads own rows_at per_task own_box coming x_pixel "
    "gradient_pixel walks walk:4 sums_at",
    STRIPS,
)
"""Chunks of strips, parts of the rows for tasks of their own, groups, filters of each, numbers in a row of a panel, the
distance in x of groups, depths of a part, depths in all, taps, the distance of chunks' panels, whether gradients are read as
they lie, where in its room a task has its panels, or 0, where tables hold the row of each term, blocks of a task, whether a box
holds the depths of a part and a group only, how far behind the first row that a pixel meets the last one lies, how many numbers
of the input and of the gradients lie between pixels, if those of the next strip are behind these, else 0, whether tiles walk
along pixels and how far these lie apart in the input, and where behind the zeros the sums of gradients go, or 0."""

GATHER_RUN = Fields("GatherRun", "pairs_at terms rows_at targets_at rows")
"""Pixels that meet the same taps: where tables hold their pairs, how many, their rows and where these go, and how many."""

PLANES_RUN = Fields("PlanesRun", "pairs_at terms rows_at targets_at first_z first_y first_x Z Y X")
"""A phase: its pairs, how many, its rows and where these go, its first pixel and how many along each axis."""

TAPS_RUN = Fields("TapsRun", "taps_at taps first_y first_x Y X")
"""A phase: where tables hold its taps, how many, its first pixel and how many along each axis."""

TAP = Fields("Tap", "part_at y x")
"""Where scratch memory holds the products of a tap, and how far it leads down and across."""

CORRELATE_RUN = Fields(
    "CorrelateRun",
    "pairs_at last_pairs_at lying_pairs_at pixels parts_at images planes lines columns first first_packed first_lying",
)
"""Taps that meet the same pixels: the pairs of these with gradients that are packed, in whole blocks of filters and in the last,
or read as they lie, how many, and where tables hold for each part its rows; and along each axis how many pixels, and how far the
first of these lies in the input, among gradients that are packed, and as they lie."""

ROWS_OF_PART = Fields("RowsOfPart", "rows_at targets_at rows sides_at sides")
"""Where tables hold the rows of tiles and where these go, and how many; and where those that lie side by side."""

SIDE = Fields("Side", "offset target height")
"""How far rows that lie side by side lie from a pixel, where the first of them goes, and how many."""

AHEAD = 4096
"""Bytes between what is fetched of an image from memory and what tiles read of it."""

read_strips, read_gather, read_planes, read_taps, read_correlate = (
    fields.reader() for fields in (STRIPS, GATHER, PLANES, TAPS, CORRELATE)
)
read_gather_run, read_planes_run, read_taps_run, read_tap, read_correlate_run, read_rows, read_side = (
    fields.row_reader() for fields in (GATHER_RUN, PLANES_RUN, TAPS_RUN, TAP, CORRELATE_RUN, ROWS_OF_PART, SIDE)
)


@inner_kernel
def count_strips(numbers: Array) -> int:
    """Count the strips of an output."""
    counts = read_strips(numbers).counts
    return counts[0] * counts[1] * counts[2] * counts[3]  # type: ignore[no-any-return]


@inner_kernel
def place_strip(number: int, numbers: Array, tables: Array) -> tuple[int, int, int, int, int]:
    """First image, plane, row and column of a strip, and its kind."""
    compact()
    s = read_strips(numbers)
    strip, counts, kinds_at = s.strip, s.counts, s.kinds_at
    rest, column = divmod(number, counts[3])
    rest, row = divmod(rest, counts[2])
    image, plane = divmod(rest, counts[1])
    kind = (
        tables[kinds_at[0] + image]
        + tables[kinds_at[1] + plane]
        + tables[kinds_at[2] + row]
        + tables[kinds_at[3] + column]
    )
    return image * strip[0], plane * strip[1], row * strip[2], column * strip[3], kind


@inner_kernel
def pixels_of(numbers: Array, n0: int, z0: int, y0: int, x0: int) -> tuple[int, int, int, int]:
    """Images, planes, rows and columns of the strip that begins there: the last ones may be smaller."""
    compact()
    s = read_strips(numbers)
    strip, out_shape = s.strip, s.out_shape
    return (
        min(strip[0], out_shape[0] - n0), min(strip[1], out_shape[2] - z0), min(strip[2], out_shape[3] - y0),
        min(strip[3], out_shape[4] - x0),
    )  # fmt: skip


@inner_kernel
def open_strip(numbers: Array, x: Array, n: int, z: int, y: int, x0: int, room: Array, first: int) -> int:
    """Where the input of a strip begins: in x, or in its box, which holds the channels from ``first`` on and is packed here."""
    s = read_strips(numbers)
    shape, steps, box, box_steps, left, x_step = s.shape, s.steps, s.box, s.box_steps, s.left, s.x_step
    z_in, y_in, x_in = x_step[0] * z - left[0], x_step[1] * y - left[1], x_step[2] * x0 - left[2]
    base: int = n * steps[0] + z_in * steps[2] + y_in * steps[3] + x_in * steps[4]
    if s.packs:
        part = (box[0], min(box[1], shape[1] - first), box[2], box[3], box[4])
        pack_box(x, first * steps[1], shape, steps, n, z_in, y_in, x_in, room, 0, part, box_steps)
        base = -first * box_steps[1]
    return base


@task
def gather(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, weight: Array, start: Array, out: Array
) -> None:  # fmt: skip
    """out[pixel, g, lane] = start[g, lane] + sum over pairs k of panels[g, lane, k] * x[source of pixel + offset of pair k].

    What is less than the floor, the last number of ``start``, becomes that.  If it ``adds``, out[pixel, g, lane] is a term, too.

    A task is a strip and a part of the blocks of lanes.  Sums are taken in stages, whose part of a panel stays in the cache
    while all pixels of the strip pass; a panel that no other task needs is packed here, else ``weight`` are all panels.  Where
    the output is not channels-last, or is to go past the caches after several stages, a block's pixels are written to scratch and
    turned over, or copied, from there.
    """
    s, t = read_strips(numbers), read_gather(numbers)
    strip, out_shape, out_steps, out_step, box_size, packs, streams = (
        s.strip, s.out_shape, s.out_steps, s.out_step, s.box_size, s.packs, s.streams
    )  # fmt: skip
    parts, groups, pitch, group_step, stages, depths, adds, own, depth, taps, lane_count, window, passes = (
        t.parts, t.groups, t.pitch, t.group_step, t.stages, t.depths, t.adds, t.own, t.depth, t.taps, t.lane_count, t.window,
        t.passes,
    )  # fmt: skip
    part, number = divmod(task, count_strips(numbers))  # neighbours share a part of the weight
    n0, z0, y0, x0, kind = place_strip(number, numbers, tables)
    base = open_strip(numbers, x, n0, z0, y0, x0, room, 0)
    n = lanes(out.itemsize)
    blocks = (lane_count + pitch - 1) // pitch
    padded = (lane_count + n - 1) // n * n
    writes = out_steps[1] == 1 and (stages == 1 or not streams) and not window[0]  # pixels as they lie
    first_run, last_run = tables[s.runs_at + kind], tables[s.runs_at + kind + 1]
    z_out, y_out, x_out = out_step[0] * z0, out_step[1] * y0, out_step[2] * x0
    corner = n0 * out_steps[0] + z_out * out_steps[2] + y_out * out_steps[3] + x_out * out_steps[4]
    image = room if packs else x
    pixels = out if writes else room
    panels = room if own else weight
    first_block, ahead = part * groups * blocks // parts, AHEAD // x.itemsize
    for g_block in range(first_block, (part + 1) * groups * blocks // parts):
        g, block = divmod(g_block, blocks)
        valid = min(pitch, lane_count - block * pitch)
        stored = valid if writes else (valid + n - 1) // n * n  # in scratch there is room for whole vectors
        target = corner + g * lane_count + block * pitch if writes else box_size
        panel = g_block * depth * taps * pitch
        for stage in range(stages):
            lane = g * padded + block * pitch if stage == 0 else groups * padded  # then begin with zeros
            floor = groups * padded + VECTORS * n + (stage == stages - 1)
            taken = min(depths, depth - stage * depths)
            if own:
                panel = own - stage * depths * taps * pitch
                pack_depths(
                    (depth, taps, lane_count), t.weight_steps, t.weight_size, tables, t.rows_at, weight, g_block,
                    stage * depths, stage * depths + taken, room, panel, pitch, blocks,
                )  # fmt: skip
            for number_of_run in range(first_run, last_run):
                run = read_gather_run(tables, s.run_list_at, number_of_run)
                terms = run.terms
                if adds and terms == 0:
                    continue
                if passes and g_block == first_block:  # the others find in the caches what this one reads
                    near_tile(
                        panels, panel, tables, run.pairs_at, taken * terms, image, base, run.rows_at, pixels, target,
                        run.targets_at, run.rows, start, lane, floor, adds, stored, streams * writes, image, base + ahead, passes,
                    )  # fmt: skip
                    continue
                outer_tile(
                    panels, panel, tables, run.pairs_at + 2 * stage * depths * terms, taken * terms, image,
                    base + g * group_step, run.rows_at, pixels, target, run.targets_at, run.rows, start, lane, floor,
                    stage + adds, stored, streams * writes,
                )  # fmt: skip
        if window[0]:
            pool_strip(
                room, box_size, pitch, min(strip[0], out_shape[0] - n0), (strip[2], strip[3]),
                (min(strip[2], out_shape[3] - y_out), min(strip[3], out_shape[4] - x_out)), valid, out, (n0, y_out, x_out),
                g * lane_count + block * pitch, window, t.window_steps, t.places_at, start, groups * padded + VECTORS * n + 1,
            )  # fmt: skip
        elif not writes:
            unpack_strip(
                room, box_size, pitch, min(strip[0], out_shape[0] - n0), (z_out, y_out, x_out), out_step,
                (strip[0], strip[1], strip[2], strip[3]), valid, out,
                corner + (g * lane_count + block * pitch) * out_steps[1], out_shape, out_steps, streams,
            )  # fmt: skip


@task
def gather_planes(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, weight: Array, start: Array, out: Array
) -> None:  # fmt: skip
    """The same sums with output channels as rows and pixels as lanes; ``start`` are the bias, a tile's zeros, and the floors.

    A strip's box is packed plane by plane, and its pixels are computed as one run, ends of rows included: what stands between
    the rows of the box is left in scratch.  The weight is read as it lies.
    """
    s, t = read_strips(numbers), read_planes(numbers)
    box, box_steps, strip, box_size, out_shape, out_steps, out_step = (
        s.box, s.box_steps, s.strip, s.box_size, s.out_shape, s.out_steps, s.out_step
    )  # fmt: skip
    groups, lane_count, height, width, plane = t.groups, t.lane_count, t.height, t.width, t.plane
    n0, z0, y0, x0, kind = place_strip(task, numbers, tables)
    open_strip(numbers, x, n0, z0, y0, x0, room, 0)
    rows, floor = (lane_count + height - 1) // height * height, start[groups * lane_count + width + 1]
    for b in range(min(strip[0], out_shape[0] - n0)):
        for g in range(groups):
            for number in range(tables[s.runs_at + kind], tables[s.runs_at + kind + 1]):
                run = read_planes_run(tables, s.run_list_at, number)
                Z, Y, X = run.Z, run.Y, run.X
                pixels = ((Z - 1) * box[3] + Y - 1) * box[4] + X
                for q in range(0, pixels, width):
                    short_tile(
                        height, room, b * box_steps[0] + g * t.group_step + q, tables, run.pairs_at, run.terms, weight,
                        g * t.weight_step, run.rows_at, room, box_size + q, run.targets_at, rows, start,
                        groups * lane_count, groups * lane_count + width, 0, width,
                    )  # fmt: skip
                to = (n0 + b) * out_steps[0] + (out_step[0] * z0 + run.first_z) * out_steps[2]
                to += (out_step[1] * y0 + run.first_y) * out_steps[3] + (out_step[2] * x0 + run.first_x) * out_steps[4]
                for m in range(lane_count):
                    bias = start[g * lane_count + m]
                    for z in range(Z):
                        for y in range(Y):
                            spread_row(
                                room, box_size + m * plane + (z * box[3] + y) * box[4], X, bias, floor, out,
                                to + (g * lane_count + m) * out_steps[1] + z * out_step[0] * out_steps[2]
                                + y * out_step[1] * out_steps[3],
                                out_step[2] * out_steps[4],
                            )  # fmt: skip


@task
def gather_taps(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, weight: Array, start: Array, out: Array
) -> None:  # fmt: skip
    """The same sums for one output channel of a group, with taps as rows and pixels of the input as lanes.

    parts[tap, q] = sum over k of weight[g, k, tap] * x[g, k, q],
    out[pixel, g] = start[g] + sum over taps of parts[tap, source of pixel + offset of tap].

    Planes are read as they lie, and each number of them once; taps that lead out of a row are left out of the second sum.
    """
    s, t = read_strips(numbers), read_taps(numbers)
    shape, steps, strip = s.shape, s.steps, s.strip
    out_shape, out_steps, out_step = s.out_shape, s.out_steps, s.out_step
    groups, rows, pitch = t.groups, t.rows, t.pitch
    n0, _, y0, _, kind = place_strip(task, numbers, tables)
    n = lanes(out.itemsize)
    width, H, W = VECTORS * n, shape[3], shape[4]
    floor = start[groups + width + 1]
    first, last = max(0, y0 - t.above), min(H, y0 + strip[2] + t.below)
    last = max(last, min(H, first + (n + W - 1) // W))  # at least a vector, of which the plane has one
    first = max(0, min(first, last - (n + W - 1) // W))
    pixels, sums = (last - first) * W, rows * pitch
    for b in range(min(strip[0], out_shape[0] - n0)):
        for g in range(groups):
            done = 0
            while done < pixels:
                valid = min(width, (pixels - done) // n * n)
                at = done if valid > 0 else pixels - n  # the last vector overlaps
                valid = max(valid, n)
                outer_tile(
                    x, (n0 + b) * steps[0] + g * t.group_step + first * W + at, tables, t.pairs_at, t.depth, weight,
                    g * t.weight_step, t.rows_at, room, at, t.targets_at, rows, start, groups, groups + width, 0, valid, 0,
                )  # fmt: skip
                done = at + valid
            for number in range(tables[s.runs_at + kind], tables[s.runs_at + kind + 1]):
                run = read_taps_run(tables, s.run_list_at, number)
                Y, X = run.Y, run.X
                to = (n0 + b) * out_steps[0] + g * out_steps[1] + run.first_x * out_steps[4]
                for y in range(Y):
                    clear(room, sums, sums + X)
                    for k in range(run.taps):
                        tap = read_tap(tables, run.taps_at, k)
                        row, shift = y0 + y + tap.y, tap.x
                        if row >= 0 and row < H:
                            left, right = max(0, -shift), min(X, W - shift)
                            add_row(
                                room, tap.part_at + (row - first) * W + left + shift, right - left, room, sums + left
                            )  # fmt: skip
                    spread_row(
                        room, sums, X, start[g], floor, out,
                        to + (out_step[1] * (y0 + y) + run.first_y) * out_steps[3], out_step[2] * out_steps[4],
                    )  # fmt: skip


@inner_kernel
def add_row(row: Array, row_at: int, count: int, sums: Array, sums_at: int) -> None:
    """sums[k] += row[k] for k < count."""
    for k in range(count):
        sums[unsigned(sums_at + k)] += row[unsigned(row_at + k)]


@inner_kernel
def spread_row(
    row: Array, row_at: int, count: int, bias: float, floor: float, out: Array, out_at: int, out_step: int
) -> None:  # fmt: skip
    """out[k*out_step] = row[k] + bias, or the floor, if that is less, for k < count."""
    if out_step == 1:
        for k in range(count):
            value = row[unsigned(row_at + k)] + bias
            out[unsigned(out_at + k)] = floor if value < floor else value
    else:
        for k in range(count):
            value = row[unsigned(row_at + k)] + bias
            out[unsigned(out_at + k * out_step)] = floor if value < floor else value


@linked_kernel
def walk(
    vectors: Array, vector_at: int, vector_steps: Ints, scalars: Array, scalar_at: int, scalar_steps: Ints, extents: Ints,
    tables: Array, sides_at: int, sides: int, out: Array, out_at: int, pitch: int,
) -> None:  # fmt: skip
    """Add the products of a run of pixels to the rows of a panel, side by side; so many at a time as may be added up plainly."""
    images, planes, lines, columns = extents
    most = max(1, TERMS // columns)
    for index in range(images * planes * ((lines + most - 1) // most)):
        rest, some = divmod(index, (lines + most - 1) // most)
        image, plane = divmod(rest, planes)
        line = some * most
        for column in range(0, columns, TERMS):
            at = vector_at + image * vector_steps[0] + plane * vector_steps[1] + line * vector_steps[2]
            here = scalar_at + image * scalar_steps[0] + plane * scalar_steps[1] + line * scalar_steps[2]
            at, here = at + column * vector_steps[3], here + column * scalar_steps[3]
            rows, taken = min(most, lines - line), min(TERMS, columns - column)
            for number in range(sides):
                side = read_side(tables, sides_at, number)
                walk_tile(
                    side.height, rows, taken, vectors, at, vector_steps[2], vector_steps[3], scalars, here + side.offset,
                    scalar_steps[2], scalar_steps[3], rows * taken * scalar_steps[3], out, out_at + side.target, pitch,
                )  # fmt: skip


@task
def correlate(
    task: int, room: Array, numbers: Array, tables: Array, x: Array, gradient: Array, out: Array, zeros: Array
) -> None:  # fmt: skip
    """out[s, g, lane, k] = sum over the pixels of chunk s of gradient[pixel, g, lane] * x[source of pixel + offset of pair k].

    A task is a chunk of consecutive strips, some blocks of filters, and a part of the depths.  ``out`` are panels; or the weight,
    if there is one chunk for each: the task then has panels of its own, and turns them over at the end.

    Behind the ``zeros`` is room for equation (4), if that is asked for: those that have the first depths also sum the gradients.
    """
    s, t = read_strips(numbers), read_correlate(numbers)
    strip, packs, box_size = s.strip, s.packs, s.box_size
    out_shape, out_steps = s.out_shape, s.out_steps
    chunks, parts, groups, filters, pitch, depths, depth, taps, own, per_task = (
        t.chunks, t.parts, t.groups, t.lane_count, t.pitch, t.depths, t.depth, t.taps, t.own, t.per_task
    )  # fmt: skip
    n = lanes(out.itemsize)
    width = VECTORS * n
    blocks = (filters + width - 1) // width
    rest, part = divmod(task, parts)
    chunk, number = divmod(rest, (groups * blocks + per_task - 1) // per_task)
    first_block, last_block = number * per_task, min((number + 1) * per_task, groups * blocks)
    before, terms = part * depths * taps, min(depths, depth - part * depths) * taps
    panels = room if own else out
    # Panels of blocks that follow each other lie one behind the other; rows are counted from the first part's.
    size = (depths if own else depth) * taps * pitch
    panel = own - before * pitch if own else chunk * t.each + first_block * size
    for at in range(panel, panel + (last_block - first_block) * size, size):
        clear(panels, at + before * pitch, at + (before + terms) * pitch)
    image = room if packs else x
    strips = count_strips(numbers)
    for number in range(chunk * strips // chunks, (chunk + 1) * strips // chunks):
        n0, z0, y0, x0, kind = place_strip(number, numbers, tables)
        base, opened = 0, -1
        corner = n0 * out_steps[0] + z0 * out_steps[2] + y0 * out_steps[3] + x0 * out_steps[4]
        sizes = (
            min(strip[0], out_shape[0] - n0), min(strip[1], out_shape[2] - z0), min(strip[2], out_shape[3] - y0),
            min(strip[3], out_shape[4] - x0),
        )  # fmt: skip
        for g_block in range(first_block, last_block):
            g, block = divmod(g_block, blocks)
            first = (g * depth + part * depths) * t.own_box
            if first != opened:
                base, opened = open_strip(numbers, x, n0, z0, y0, x0, room, first), first
            valid = min(width, filters - block * width)
            whole = (valid + n - 1) // n * n
            lane = corner + (g * filters + block * width) * out_steps[1]
            # Vectors that are not whole may be read as they lie but at the array's end.
            last = (sizes[0] - 1) * out_steps[0] + (sizes[1] - 1) * out_steps[2] + (sizes[2] - 1) * out_steps[3]
            last += lane + (sizes[3] - 1) * out_steps[4]
            reading = t.reads != 0 and last + whole <= out_shape[0] * out_steps[0]
            if not reading:
                pack_strip(gradient, lane, out_shape, out_steps, sizes, strip, valid, whole, room, box_size)
                lane = box_size
            vectors = gradient if reading else room
            local = (strip[1] * strip[2] * strip[3] * whole, strip[2] * strip[3] * whole, strip[3] * whole, whole)
            lying = (out_steps[0], out_steps[2], out_steps[3], out_steps[4])
            for number_of_run in range(tables[s.runs_at + kind], tables[s.runs_at + kind + 1]):
                run = read_correlate_run(tables, s.run_list_at, number_of_run)
                mine = read_rows(tables, run.parts_at, part)
                if t.walks:
                    walk(
                        vectors, lane + (run.first_lying if reading else run.first_packed), lying if reading else local, image,
                        base + g * t.group_step + run.first, t.walk, (run.images, run.planes, run.lines, run.columns), tables,
                        mine.sides_at, mine.sides, panels, panel + (g_block - first_block) * size, pitch,
                    )  # fmt: skip
                    continue
                pairs = run.lying_pairs_at if reading else run.pairs_at if whole == pitch else run.last_pairs_at
                # Each block fetches its share of the next strip.
                pixels, share, shares = run.pixels, g_block - first_block, last_block - first_block
                turns = shares * max(1, pixels // (1 if whole > FEW_VECTORS * n else TURN) * (mine.rows // ROWS))
                far_tile(
                    vectors, lane, tables, pairs, pixels, image, base + g * t.group_step, mine.rows_at, panels,
                    panel + share * size, mine.targets_at, mine.rows, zeros, 0, width, 1, whole, 0,
                    image, base + t.coming + pixels * t.x_pixel * (shares + share) // shares,
                    (pixels * t.x_pixel + turns - 1) // turns,
                    gradient, corner + pixels * t.gradient_pixel * (shares + share) // shares,
                    (pixels * t.gradient_pixel + turns - 1) // turns,
                )  # fmt: skip
            if t.sums_at and part == 0:
                sum_strip(
                    vectors, lane, sizes, lying if reading else local, whole, zeros, t.sums_at,
                    number * groups * blocks + g_block, pitch,
                )  # fmt: skip
    for g_block in range(first_block, last_block if own else first_block):
        g, block = divmod(g_block, blocks)
        to = ((chunk * groups + g) * filters + block * width) * depth * taps + before
        unpack_rows(
            panels, panel + (g_block - first_block) * size, pitch, min(width, filters - block * width), out, to, depth * taps,
            tables, t.rows_at + before, terms,
        )  # fmt: skip
