"""Depthwise convolution, where every channel is a group with one filter: lanes are channels, and nothing is summed over them.

The tasks are those of `fastconv.kernels.direct`, with tiles that slide along a row of pixels: `gather_depthwise` computes
equations (1) and (2), `correlate_depthwise` equation (3).  A task takes a part of the channels of a strip.  Where images lie
channels-last it reads and writes them as they lie.  Else it packs its box: one vector of channels behind the other, so that a
tile finds neighbouring pixels in neighbouring lines of the cache.

`gather_groups` and `correlate_groups` do the same for groups of a few channels with as many filters, which are the lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..jit import inner_kernel, linked_kernel, unsigned
from ..simd import clear, compact, group_slide_tile, lanes, slide_tile, sum_group_slide_tile, sum_slide_tile
from ..tasks import Task, task
from .direct import STRIPS, count_strips, pixels_of, place_strip, read_strips
from .fields import Fields
from .pack import pack_box, pack_strip, unpack_strip

__all__ = [
    "CORRELATE_DEPTHWISE", "GATHER_DEPTHWISE", "PACK_GROUPS", "SLIDE_RUN", "correlate_depthwise", "correlate_groups",
    "gather_depthwise", "gather_groups", "pack_groups",
]  # fmt: skip

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]

GATHER_DEPTHWISE = Fields("GatherDepthwise", "channels width terms phases parts reads members", STRIPS)
"""Channels, numbers in a row of a panel, its rows, phases, parts of the channels, whether images are read and written as they
lie: then there is one panel, else one for each part; and the channels of a group."""

SLIDE_RUN = Fields("SlideRun", "Z Y X first_z first_y first_x each stride height lines lines_at term")
"""A phase: how many pixels along each axis, its first one, taps of a line, the stride and the rows that the tile slides with,
lines, where tables hold their offsets, and its first term."""

CORRELATE_DEPTHWISE = Fields(
    "CorrelateDepthwise",
    "channels width terms parts reads chunks each row_taps stride height lines lines_at sums_at members",
    STRIPS,
)
"""Channels, numbers in a row of a panel, its rows, parts of the channels, and whether images are read as they lie;
chunks of strips, the distance of their panels, taps of a line, the stride and the rows that a tile slides with, lines, where
tables hold their offsets, where in its room a task sums up a strip, and the channels of a group."""

PACK_GROUPS = Fields("PackGroups", "pitch rows channels members taps weight_steps:4")
"""Numbers in a row of a panel, its rows, the lanes in all, those of a group, the taps, and the distances in the weight of groups,
lanes, channels and taps."""

read_gather, read_correlate, read_groups = GATHER_DEPTHWISE.reader(), CORRELATE_DEPTHWISE.reader(), PACK_GROUPS.reader()
read_run = SLIDE_RUN.row_reader()


def with_name(func: Callable[..., None], name: str, text: str) -> Callable[..., None]:
    """Give a function that is made more than once a name and a text of its own."""
    func.__name__ = func.__qualname__ = name
    func.__doc__ = text
    return func


@inner_kernel
def channels_of(part: int, parts: int, channels: int, width: int, reads: int, n: int) -> tuple[int, int]:
    """First channel of a part, and how many it has: a block, or vectors that are read as they lie.

    The last part has the channels that fill no vector, too: its last vector overlaps the one before it.
    """
    compact()
    if not reads:
        return part * width, min(width, channels - part * width)
    first = channels // n * part // parts * n
    return first, (channels if part == parts - 1 else channels // n * (part + 1) // parts * n) - first


@linked_kernel
def pack_vectors(
    numbers: Array, x: Array, first: int, valid: int, n0: int, z_in: int, y_in: int, x_in: int, room: Array
) -> None:
    """Pack a box of ``valid`` channels from pixel (n0, z_in, y_in, x_in) on: one box for each vector of them."""
    compact()
    n = lanes(x.itemsize)
    s = read_strips(numbers)
    steps, box, box_steps = s.steps, s.box, s.box_steps
    for lane in range(0, valid, n):
        one = (box[0], min(n, valid - lane), box[2], box[3], box[4])
        one_steps = (box_steps[0], 1, box_steps[2], box_steps[3], box_steps[4])
        pack_box(
            x, (first + lane) * steps[1], s.shape, steps, n0, z_in, y_in, x_in, room, lane // n * box_steps[1], one,
            one_steps,
        )  # fmt: skip


def gather_sliding(name: str, tile: Any, text: str) -> Task:
    """Make a task of a tile that computes pixels."""

    def gather(
        task: int, room: Array, numbers: Array, tables: Array, x: Array, panels: Array, start: Array, out: Array
    ) -> None:  # fmt: skip
        s, t = read_strips(numbers), read_gather(numbers)
        shape, steps, box, box_steps = s.shape, s.steps, s.box, s.box_steps
        strip, left, x_step = s.strip, s.left, s.x_step
        out_shape, out_steps, out_step, streams = s.out_shape, s.out_steps, s.out_step, s.streams
        width, terms, parts, reads = t.width, t.terms, t.parts, t.reads
        n = lanes(out.itemsize)
        number, part = divmod(task, parts)
        n0, z0, y0, x0, _ = place_strip(number, numbers, tables)
        first, valid = channels_of(part, parts, t.channels, width, reads, n)
        images = min(strip[0], out_shape[0] - n0)
        corner = n0 * out_steps[0] + out_step[0] * z0 * out_steps[2] + out_step[1] * y0 * out_steps[3]
        corner += out_step[2] * x0 * out_steps[4]
        if reads:
            each, panel, floor = valid, first, width + 1
            image, at, pitches, ends = x, n0 * steps[0] + first, steps, (shape[2], shape[3], shape[4])
            target, to, there = out, corner + first, out_steps
        else:
            each, panel, floor = n, first * terms, parts * width + 1
            z_in, y_in, x_in = x_step[0] * z0 - left[0], x_step[1] * y0 - left[1], x_step[2] * x0 - left[2]
            pack_vectors(numbers, x, first, valid, n0, z_in, y_in, x_in, room)
            image, at, pitches = room, -z_in * box_steps[2] - y_in * box_steps[3] - x_in * box_steps[4], box_steps
            ends = (min(shape[2], z_in + box[2]), min(shape[3], y_in + box[3]), min(shape[4], x_in + box[4]))
            # Results go to scratch, one vector of channels behind the other.
            row = min(out_step[2] * strip[3], out_shape[4]) * n
            plane = min(out_step[1] * strip[2], out_shape[3]) * row
            volume = min(out_step[0] * strip[1], out_shape[2]) * plane
            target, to, there = room, s.box_size, (volume, strip[0] * volume, plane, row, n)
        for p in range(t.phases):
            run = read_run(tables, s.runs_at, p)
            Z, Y, X = min(strip[1], run.Z - z0), min(strip[2], run.Y - y0), min(strip[3], run.X - x0)
            if Z <= 0 or Y <= 0 or X <= 0:
                continue
            column = pitches[4] if run.each > 1 else x_step[2] * pitches[4]
            end = to + run.first_z * there[2] + run.first_y * there[3] + run.first_x * there[4]
            for lane in range(0, valid, each):
                for index in range(images * Z):
                    b, z = divmod(index, Z)
                    tile(
                        run.each, run.stride, run.height, t.members, panels, panel + run.term * width + lane, width, tables,
                        run.lines_at, run.lines, image,
                        at + b * pitches[0] + lane // n * pitches[1], x_step[0] * (z0 + z) * pitches[2], ends[0] * pitches[2],
                        x_step[1] * y0 * pitches[3], x_step[1] * pitches[3], ends[1] * pitches[3], x_step[2] * x0 * pitches[4],
                        column, ends[2] * pitches[4], target,
                        end + b * there[0] + lane // n * there[1] + z * out_step[0] * there[2], out_step[2] * there[4],
                        out_step[1] * there[3], X, Y, each, start, first + lane, floor, streams * reads,
                    )  # fmt: skip
        if not reads:
            for lane in range(0, valid, n):
                unpack_strip(
                    room, to + lane // n * there[1], n, images, (out_step[0] * z0, out_step[1] * y0, out_step[2] * x0), out_step,
                    strip, min(n, valid - lane), out, corner + (first + lane) * out_steps[1], out_shape, out_steps, streams,
                )  # fmt: skip

    return task(with_name(gather, name, text))


def correlate_sliding(name: str, tile: Any, text: str) -> Task:
    """Make a task of a tile that sums over pixels."""

    def correlate(
        task: int, room: Array, numbers: Array, tables: Array, x: Array, gradient: Array, panels: Array, _: Array
    ) -> None:  # fmt: skip
        s, t = read_strips(numbers), read_correlate(numbers)
        shape, steps, box, box_steps, strip = s.shape, s.steps, s.box, s.box_steps, s.strip
        left, x_step, out_shape, out_steps, box_size = s.left, s.x_step, s.out_shape, s.out_steps, s.box_size
        width, terms, parts, reads, chunks, height, sums_at = (
            t.width, t.terms, t.parts, t.reads, t.chunks, t.height, t.sums_at
        )  # fmt: skip
        n = lanes(panels.itemsize)
        chunk, part = divmod(task, parts)
        first, valid = channels_of(part, parts, t.channels, width, reads, n)
        whole = (valid + n - 1) // n * n
        panel = chunk * t.each + (first if reads else first * terms)
        for term in range(terms):
            clear(panels, panel + term * width, panel + term * width + whole)
        strips = count_strips(numbers)
        for number in range(chunk * strips // chunks, (chunk + 1) * strips // chunks):
            n0, z0, y0, x0, _kind = place_strip(number, numbers, tables)
            images, Z, Y, X = pixels_of(numbers, n0, z0, y0, x0)
            corner = (
                n0 * out_steps[0] + z0 * out_steps[2] + y0 * out_steps[3] + x0 * out_steps[4] + first * out_steps[1]
            )
            if reads:
                image, at, pitches, ends = x, n0 * steps[0] + first, steps, (shape[2], shape[3], shape[4])
                each, factors, here, there = valid, gradient, corner, out_steps
            else:
                z_in, y_in, x_in = x_step[0] * z0 - left[0], x_step[1] * y0 - left[1], x_step[2] * x0 - left[2]
                pack_vectors(numbers, x, first, valid, n0, z_in, y_in, x_in, room)
                image, at, pitches = room, -z_in * box_steps[2] - y_in * box_steps[3] - x_in * box_steps[4], box_steps
                ends = (min(shape[2], z_in + box[2]), min(shape[3], y_in + box[3]), min(shape[4], x_in + box[4]))
                pack_strip(
                    gradient, corner, out_shape, out_steps, (images, Z, Y, X), strip, valid, whole, room, box_size
                )
                row = strip[3] * whole
                each, factors, here = n, room, box_size
                there = (strip[1] * strip[2] * row, 1, strip[2] * row, row, whole)
            clear(room, sums_at, sums_at + terms * width)
            tall = Y - Y % height
            column = pitches[4] if t.row_taps > 1 else x_step[2] * pitches[4]
            for lane in range(0, valid, each):
                for index in range(2 * images * Z):
                    # The rows that tall tiles take, and those that are left.
                    b, z = divmod(index // 2, Z)
                    y, rows, taken = (0, tall, height) if index % 2 == 0 else (tall, Y - tall, 1)
                    tile(
                        t.row_taps, t.stride, taken, t.members, tables, t.lines_at, t.lines, image,
                        at + b * pitches[0] + lane // n * pitches[1], x_step[0] * (z0 + z) * pitches[2], ends[0] * pitches[2],
                        x_step[1] * (y0 + y) * pitches[3], x_step[1] * pitches[3], ends[1] * pitches[3],
                        x_step[2] * x0 * pitches[4], column, ends[2] * pitches[4], factors,
                        here + b * there[0] + z * there[2] + y * there[3] + lane, there[4], there[3], room, sums_at + lane, width,
                        X, rows, each,
                    )  # fmt: skip
            for term in range(terms):
                for k in range(whole):
                    panels[unsigned(panel + term * width + k)] += room[unsigned(sums_at + term * width + k)]

    return task(with_name(correlate, name, text))


gather_depthwise = gather_sliding(
    "gather_depthwise",
    slide_tile,
    """out[pixel, lane] = start[lane] + sum over taps t of panels[lane, t] * x[source of pixel + offset of tap t, lane].

    What is less than the floor, the last number of ``start``, becomes that.
    """,
)
gather_groups = gather_sliding(
    "gather_groups",
    group_slide_tile,
    """The same sums, over the channels c of a lane's group, too: of panels[lane, c, t] * x[source of pixel + offset of t, c].""",
)
correlate_depthwise = correlate_sliding(
    "correlate_depthwise",
    sum_slide_tile,
    """panels[s, lane, t] = sum over the pixels of chunk s of gradient[pixel, lane] * x[source of pixel + offset of tap t, lane].

    A task is a chunk of consecutive strips and a part of the channels.  Each strip is summed up by itself first.
    """,
)
correlate_groups = correlate_sliding(
    "correlate_groups",
    sum_group_slide_tile,
    """The same for each channel c of a lane's group: panels[s, lane, c, t], with x[source of pixel + offset of tap t, c].""",
)


@task
def pack_groups(
    task: int, room: Array, numbers: Array, tables: Array, weight: Array, panels: Array, _: Array, __: Array
) -> None:  # fmt: skip
    """Write the taps of a block of lanes into its panel, those of groups one behind the other.

    ``tables`` holds the row of a panel for each (channel, tap).
    """
    told = read_groups(numbers)
    pitch, channels, members, taps = told.pitch, told.channels, told.members, told.taps
    group_step, lane_step, member_step, tap_step = told.weight_steps
    panel = task * told.rows * pitch
    for lane in range(min(pitch, channels - task * pitch)):
        g, a = divmod(task * pitch + lane, members)
        for c in range(members):
            here = g * group_step + a * lane_step + c * member_step
            for t in range(taps):
                panels[unsigned(panel + tables[c * taps + t] * pitch + lane)] = weight[unsigned(here + t * tap_step)]
