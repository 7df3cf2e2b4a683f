"""Direct convolution to few channels, between the plan and the kernels: lanes are pixels of planes.

Rows of the tiles are the channels; or, where a group has but one, the taps.  `fastconv.engine` does the same for more.
"""

from __future__ import annotations

import math

import numpy as np

from .geometry import ConvGeometry, ceil_div
from .jit import MASKS
from .kernels.direct import PLANES, PLANES_RUN, TAP, TAPS, TAPS_RUN, gather_planes, gather_taps
from .programs import Pixels, Program, members_of, tap_numbers
from .simd import ROWS, SHORT, VECTORS, lanes
from .strips import (
    MOST_PIXELS,
    Ints,
    Tables,
    by_output,
    choose_strip,
    fill_tiles,
    filled,
    find_kinds,
    make_source,
    runs_of,
    steps_of_image,
    strip_numbers,
    tile_width,
)

__all__ = ["few_lanes_do", "lanes_are_pixels", "pixels_program"]

PARTS_BYTES = 320 << 10
"""Most bytes of the taps' parts of a strip: they are to stay in the second-level cache."""


def lanes_are_pixels(g: ConvGeometry, step: Ints, channels: int, itemsize: int) -> bool:
    """Say whether a pass computes so few channels that pixels had better be the lanes."""
    return not members_of(g, itemsize) and max(step) == 1 and 2 * channels <= lanes(itemsize)


def few_lanes_do(taps: int) -> bool:
    """Say whether pixels that lie channels-last are not worth turning over for that: with one tap, if masks store few lanes."""
    return taps == 1 and MASKS


def _height(channels: int) -> int:
    """Choose the rows of tiles for so many channels, of which as few as can be are none."""
    if channels in SHORT:
        return channels
    return min(ROWS, max(SHORT), key=lambda height: ceil_div(channels, height) * height)


def _channels_program(p: Pixels) -> Program:
    """Rows are channels, lanes are pixels."""
    g, axes, itemsize, depth, groups = p.g, p.axes, p.itemsize, p.depth, p.g.groups
    lane_count = p.channels // groups
    height = _height(lane_count)
    width = SHORT.get(height, VECTORS) * lanes(itemsize)
    strip = _strip_of_planes(p)
    kinds = find_kinds(g.batch, axes, strip, (False,) * 3, by_output)
    source = make_source(p.in_shape, p.in_last, itemsize, g.batch, axes, strip, False, True, False, slack=2 * width)
    *_, rows_of_box, columns = source.box
    plane = ceil_div((strip[1] * rows_of_box) * columns, width) * width + width
    tables = Tables()
    out_steps = steps_of_image(p.out_shape, p.out_last)
    numbers = strip_numbers(source, kinds, tables, p.out_shape, out_steps, p.out_step)
    lane_step = p.weight_steps[1]
    tiles = ceil_div(lane_count, height)
    rows_at = tables.add(fill_tiles(np.arange(lane_count) * lane_step, height))
    targets_at = tables.add(np.arange(tiles * height) * plane)
    first_run, runs = [0], []
    for _, segments in kinds.all():
        for phases, run in runs_of(segments):
            met = tap_numbers(g, [tap for _, _, tap in run[1:]])
            k = np.arange(depth)[:, None]
            offsets = k * p.weight_steps[2] + np.array([n for n, _ in met], np.int64)
            columns_of = k * source.pitches[1] + np.array([source.place(at) for _, at in met], np.int64)
            pairs_at = tables.add(np.stack([offsets.reshape(-1), columns_of.reshape(-1)], 1))
            firsts = [axis.phases[n].first for axis, n in zip(axes, phases, strict=True)]
            extents = [b - a for a, b, _ in run[1:]]
            runs.append(
                PLANES_RUN.row(
                    pairs_at=pairs_at, terms=depth * len(met), rows_at=rows_at, targets_at=targets_at, first_z=firsts[0],
                    first_y=firsts[1], first_x=firsts[2], Z=extents[0], Y=extents[1], X=extents[2],
                )
            )  # fmt: skip
        first_run.append(len(runs))
    numbers |= {"runs_at": tables.add(first_run), "run_list_at": tables.add(runs)}
    numbers |= {
        "groups": groups, "lane_count": lane_count, "group_step": depth * source.pitches[1], "height": height,
        "width": width, "plane": plane, "weight_step": p.weight_steps[0],
    }  # fmt: skip
    return Program(
        gather_planes, source.strips, PLANES.lay(**numbers), tables.whole(), source.box_size + tiles * height * plane,
        p.tasks == 1, source, (groups, lane_count, lane_count, width),
    )  # fmt: skip


def _strip_of_planes(p: Pixels) -> Ints:
    return choose_strip(p.sizes, p.in_shape[1] * p.itemsize, MOST_PIXELS * VECTORS, p.tasks)


def _parts_pitch(p: Pixels, strip: Ints) -> int:
    """Numbers of a part, that is of the input's rows that a strip meets: an odd number of lines, as in `steps_of_box`."""
    *_, height, columns = p.in_shape
    line = 64 // p.itemsize
    pixels = max(min(height, strip[2] + p.axes[1].span) * columns, columns + lanes(p.itemsize))
    return (ceil_div(pixels, line) | 1) * line


def _by_taps(p: Pixels) -> bool:
    """Say whether taps had better be the rows: with one channel as a row, a tile loads a vector for each multiplication.

    Planes have to lie as such.  Parts are to stay in the second-level cache, and strips to share few of their rows.
    """
    if p.in_last or p.T == 1 or p.channels > p.g.groups or max(p.in_shape[2], p.out_shape[2], p.g.kernel[0]) > 1:
        return False
    strip = _strip_of_planes(p)
    fits = filled(p.T) * _parts_pitch(p, strip) * p.itemsize <= PARTS_BYTES and p.axes[1].span <= strip[2]
    return fits and strip[3] == p.sizes[3] and math.prod(p.in_shape[2:]) >= lanes(p.itemsize)


def _taps_program(p: Pixels) -> Program:
    """Rows are taps, lanes are pixels of the input."""
    g, axes, itemsize, depth, groups = p.g, p.axes, p.itemsize, p.depth, p.g.groups
    strip, width, down = _strip_of_planes(p), tile_width(itemsize), axes[1]
    pitch = _parts_pitch(p, strip)
    kinds = find_kinds(g.batch, axes, strip, (False,) * 3, by_output)
    source = make_source(p.in_shape, False, itemsize, g.batch, axes, strip, False, False, False)
    tables = Tables()
    numbers = strip_numbers(source, kinds, tables, p.out_shape, steps_of_image(p.out_shape, p.out_last), p.out_step)
    rows, k = fill_tiles(np.arange(p.T)), np.arange(depth)
    first_run, runs = [0], []
    for _, segments in kinds.all():
        for phases, run in runs_of(segments):
            met = tap_numbers(g, [tap for _, _, tap in run[1:]])
            taps_at = tables.add([TAP.row(part_at=n * pitch, y=y, x=x) for n, (_, (_, y), (_, x)) in met])
            _, first_y, first_x = (axis.phases[n].first for axis, n in zip(axes, phases, strict=True))
            _, Y, X = (b - a for a, b, _ in run[1:])
            runs.append(TAPS_RUN.row(taps_at=taps_at, taps=len(met), first_y=first_y, first_x=first_x, Y=Y, X=X))
        first_run.append(len(runs))
    numbers |= {"runs_at": tables.add(first_run), "run_list_at": tables.add(runs)}
    numbers |= {
        "groups": groups, "group_step": depth * source.pitches[1], "weight_step": p.weight_steps[0], "depth": depth,
        "pairs_at": tables.add(np.stack([k * p.weight_steps[2], k * source.pitches[1]], 1)), "rows_at": tables.add(rows),
        "targets_at": tables.add(rows * pitch), "rows": rows.size, "pitch": pitch, "above": down.left,
        "below": max(down.shifts),
    }  # fmt: skip
    return Program(
        gather_taps, source.strips, TAPS.lay(**numbers), tables.whole(), rows.size * pitch + strip[3], p.tasks == 1, source,
        (groups, 1, 1, width),
    )  # fmt: skip


def pixels_program(p: Pixels) -> Program:
    """Take channels or taps as rows."""
    return _taps_program(p) if _by_taps(p) else _channels_program(p)
