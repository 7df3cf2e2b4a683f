"""Winograd's convolution, between the plan and the kernels: what each pass of a 3x3 geometry means in tables.

`fastconv.engine` does the same for direct convolution.  Strips are cut along whole tiles; what else they are is the same.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .algorithm import Algorithm
from .arrays import Array
from .cook_toom import LARGEST_TILE, SLOTS, slots
from .geometry import ConvGeometry, ceil_div
from .kernels import winograd as kernels
from .kernels.pack import unpack_panel
from .programs import (
    Packing,
    Pixels,
    Program,
    choose_chunks,
    count_tasks,
    forward_axes,
    grad_input_pixels,
    is_depthwise,
    output_pixels,
)
from .simd import ROWS, lanes
from .strips import (
    TASKS,
    Axis,
    Ints,
    Kinds,
    Source,
    Tables,
    by_output,
    fill_tiles,
    find_kinds,
    imbalance,
    lay_numbers,
    make_source,
    panel_pitch,
    steps_of_image,
    strip_numbers,
    tile_width,
    whole_lanes,
)

__all__ = ["WINOGRAD", "describe", "nanoseconds", "objection"]

POINTS = SLOTS * SLOTS
TAPS = kernels.TAPS * kernels.TAPS

VALUES_BYTES = 5 << 20
"""Most bytes of a strip's input at the points: each is used for as many products as there are filters, so it may stand in the
third-level cache."""

FEWEST_TILES, MOST_TILES = 24, 96
"""Tiles of a strip: enough to use the weight for."""

MOST_DEPTHS = 64
"""Channels of a task of dW: their sums at all points are read and written for each strip."""

MOST_SCRATCH = 4
"""Scratch memory in proportion to the arrays of a call; where two threads would need more, "auto" does not take these rows."""

STAGE_BYTES = 512 << 10
"""Most bytes of a weight at the points that a task evaluates at once."""

TILE_TERMS, READING, INPUT, OUTPUT, EVALUATION = 12, 100, 170, 110, 360
"""Time, in that of one multiplication of vectors, beside the multiplications: to begin and end a tile; to read a vector of the
weight at all points for a strip; to evaluate a tile's vector of the input, or of the products; and one of the weight."""

REEVALUATED = 40_000
"""Most numbers of a weight that tasks evaluate more than once between them."""


def objection(g: ConvGeometry) -> str | None:
    """Say why Winograd's algorithm is not for a geometry; None if it is."""
    g = g.volume
    if g.kernel != (1, 3, 3) or max(g.stride) > 1 or max(g.dilation[1:]) > 1 or g.padding[0] != (0, 0):
        return "it computes 3x3 kernels with stride 1 and dilation 1 only"
    if is_depthwise(g):
        return "channels do not mix, so there is no matrix product"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Strips of tiles
# ---------------------------------------------------------------------------------------------------------------------


def tile_sizes(n: int) -> list[int]:
    """Cut ``n`` outputs into tiles: the largest, and what is left.

    >>> tile_sizes(14)
    [4, 4, 4, 2]
    """
    return [min(LARGEST_TILE, n - first) for first in range(0, n, LARGEST_TILE)]


def tiles_at(sizes: tuple[int, int, int]) -> Array:
    """Count for each point the tiles of (images, rows, columns) that use it, as an array of tile numbers each."""
    images, height, width = sizes
    used = [np.array([slot in slots(m + 2) for m in tile_sizes(n) for slot in range(SLOTS)]) for n in (height, width)]
    rows, columns = (table.reshape(-1, SLOTS).T for table in used)
    return np.broadcast_to(
        rows[:, None, None, :, None] & columns[None, :, None, None, :],
        (SLOTS, SLOTS, images, rows.shape[1], columns.shape[1]),
    ).reshape(POINTS, -1)


@functools.lru_cache(maxsize=1024)
def product_rows(images: int, height: int, width: int) -> int:
    """Count the rows of the tiles that multiply a strip: at all points, filled up to whole tiles."""
    counts = tiles_at((images, height, width)).sum(1)
    return int(sum(ceil_div(int(count), ROWS) * ROWS for count in counts))


@dataclass(frozen=True)
class Work:
    """What a pass has to do, and how long that takes, in the time of one multiplication of vectors.

    Attributes
    ----------
    sizes : tuple of int
        Output pixels along (images, depth, height, width).
    depth, lane_count, groups : int
        Channels that are summed up, and those that are computed, of a group; groups.
    itemsize : int
        Bytes of a number.
    tasks : int
        Tasks to cut the pass into at least.
    prepared : bool
        Whether the weight at the points is there already.
    """

    sizes: Ints
    depth: int
    lane_count: int
    groups: int
    itemsize: int
    tasks: int
    prepared: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of lanes of all groups."""
        return self.groups * ceil_div(self.lane_count, tile_width(self.itemsize))

    @property
    def vectors(self) -> tuple[int, int]:
        """Vectors of the channels that are summed up, and of those that are computed, of all groups."""
        n = lanes(self.itemsize)
        return self.groups * ceil_div(self.depth, n), self.groups * ceil_div(self.lane_count, n)

    def split(self, strip: Ints) -> tuple[int, int]:
        """Count the strips, and the parts of the blocks that are tasks of their own."""
        strips = math.prod(ceil_div(n, m) for n, m in zip(self.sizes, strip, strict=True))
        return strips, min(self.blocks, ceil_div(self.tasks, strips))

    def owns(self, strip: Ints) -> bool:
        """Say whether tasks evaluate the weight themselves: few or none would do so again."""
        return (
            not self.prepared
            and (self.split(strip)[0] - 1) * self.groups * self.depth * self.lane_count * TAPS <= REEVALUATED
        )

    def cost(self, strip: Ints) -> float:
        """Estimate the time of all tasks."""
        strips, parts = self.split(strip)
        tiles = strips * strip[0] * len(tile_sizes(strip[2])) * len(tile_sizes(strip[3]))
        summed, computed = self.vectors
        work = strips * product_rows(strip[0], strip[2], strip[3]) * (self.depth + TILE_TERMS) * computed
        work += tiles * (INPUT * summed * parts + OUTPUT * computed)
        each = strips * EVALUATION if self.owns(strip) else strips * READING + EVALUATION * (not self.prepared)
        return work + each * self.depth * computed

    def strip(self, most: int = MOST_TILES) -> Ints:
        """Choose the (images, 1, rows, columns) of a strip that takes the least time: whole rows of tiles if it can.

        It has ``most`` tiles or less.
        """
        batch, _, height, width = self.sizes
        bytes_of_tile = POINTS * whole_lanes(self.depth, self.itemsize) * self.itemsize
        most = max(FEWEST_TILES, min(most, VALUES_BYTES // bytes_of_tile))
        along, down = len(tile_sizes(width)), len(tile_sizes(height))
        choices = {
            (b, 1, min(LARGEST_TILE * y, height), min(LARGEST_TILE * x, width))
            for x in parts_of(along)
            for y in (parts_of(down) if x == along else {1})
            for b in (parts_of(batch) if y == down and x == along else {1})
            if b * y * x <= most
        }

        def time(strip: Ints) -> float:
            return self.cost(strip) * (imbalance(math.prod(self.split(strip))) if self.tasks > 1 else 1.0)

        return min(sorted(choices, reverse=True), key=time)


def parts_of(n: int) -> set[int]:
    """Sizes of about equal parts of n."""
    return {ceil_div(n, k) for k in range(1, n + 1)}


def _kinds_and_source(
    g: ConvGeometry, axes: tuple[Axis, ...], shape: Ints, last: bool, itemsize: int, strip: Ints, together: bool
) -> tuple[Kinds, Source]:
    kinds = find_kinds(g.batch, axes, strip, (False,) * 3, by_output)
    return kinds, make_source(shape, last, itemsize, g.batch, axes, strip, True, not last, together)


def sizes_of(segments: Any) -> tuple[int, int, int]:
    """(images, rows, columns) of a kind of strips."""
    images, _, rows, columns = (along[0][0][1] for along in segments)
    return images, rows, columns


def odd_lines(count: int, itemsize: int) -> int:
    """Round up to an odd number of cache lines."""
    line = 64 // itemsize
    return (ceil_div(count, line) | 1) * line


class Room:
    """Lays parts of a task's scratch memory one behind the other, from the beginning of a cache line on."""

    def __init__(self, size: int) -> None:
        self.size = ceil_div(size, 16) * 16

    def take(self, count: int) -> int:
        """Return where a part begins."""
        at = self.size
        self.size += ceil_div(count, 16) * 16
        return at


# ---------------------------------------------------------------------------------------------------------------------
# Programs
# ---------------------------------------------------------------------------------------------------------------------


def work_of(p: Pixels) -> Work:
    """Say what equation (1) or (2) has to do."""
    sizes = (max(1, p.sizes[0]), *p.sizes[1:])
    return Work(sizes, p.depth, p.channels // p.g.groups, p.g.groups, p.itemsize, p.tasks, p.prepared)


def _multiply_program(p: Pixels) -> Program:
    g, itemsize, depth, groups = p.g, p.itemsize, p.depth, p.g.groups
    n = lanes(itemsize)
    lane_count = p.channels // groups
    pitch = panel_pitch(lane_count, itemsize)
    blocks = ceil_div(lane_count, tile_width(itemsize))
    work = work_of(p)
    strip = work.strip()
    _, parts = work.split(strip)
    kinds, source = _kinds_and_source(g, p.axes, p.in_shape, p.in_last, itemsize, strip, parts > 1)
    tables = Tables()
    out_steps = steps_of_image(p.out_shape, p.out_last)
    numbers = strip_numbers(source, kinds, tables, p.out_shape, out_steps, (1, 1, 1))
    pixel = whole_lanes(depth, itemsize)
    lists = []
    for _, segments in kinds.all():
        for used in tiles_at(sizes_of(segments)):
            tiles = np.flatnonzero(used)
            at = fill_tiles(tiles * pixel)
            lists.append((tables.add(at), tables.add(fill_tiles(tiles * pitch)), at.size // ROWS))
    numbers |= {"runs_at": 0, "run_list_at": tables.add(lists)}
    count = strip[0] * len(tile_sizes(strip[2])) * len(tile_sizes(strip[3]))
    values, products = odd_lines(count * pixel, itemsize), odd_lines(count * pitch, itemsize)
    size, own = math.prod(g.weight_shape), work.owns(strip)
    depths = min(depth, max(n, STAGE_BYTES // (POINTS * pitch * itemsize) // n * n)) if own else depth
    plane = odd_lines(depths * pitch, itemsize)
    room = Room(source.box_size)
    # The row of each (depth, tap): in the order in which the input meets the taps.
    order = [[k for k, _ in axis.phases[0].taps] for axis in p.axes[1:]]
    place = np.empty((3, 3), np.int64)
    for (y, k_y), (x, k_x) in itertools.product(*(enumerate(taps) for taps in order)):
        place[k_y, k_x] = 3 * y + x
    rows = np.arange(depth)[:, None] * TAPS + place.reshape(-1)
    told = (depth, TAPS, lane_count, *p.weight_steps, size)
    numbers |= {
        "values_at": room.take(POINTS * values), "values": values,
        "products_at": room.take(POINTS * products), "products": products,
        "columns_at": room.take(max(2 * SLOTS * (strip[3] + 2) * n + SLOTS * SLOTS * n, kernels.TAPS * SLOTS * pitch)),
        "pixels_at": room.take(0 if p.out_last else math.prod(strip) * pitch),
        "pairs_at": tables.add(np.arange(depth)[:, None] * (1, pitch)), "group_step": depth * source.pitches[1],
        "parts": parts, "groups": groups, "stages": ceil_div(depth, depths), "depths": depths,
        "own": room.take(POINTS * plane) if own else 0, "plane": plane,
        "taps_at": room.take(TAPS * kernels.DEPTHS * pitch if own else 0),
        "rows_at": tables.add(rows) if own else 0, "pitch": pitch, "told": told,
    }  # fmt: skip
    packing = None
    if not own:
        chunk = max(kernels.DEPTHS, ceil_div(depth, ceil_div(TASKS, groups * blocks)))
        packing = Packing(
            kernels.transform_weight, groups * blocks * ceil_div(depth, chunk), np.array((pitch, chunk, plane, *told), np.int64),
            rows.reshape(-1), groups * blocks * POINTS * plane, (TAPS * kernels.DEPTHS + kernels.TAPS * SLOTS) * pitch,
        )  # fmt: skip
    return Program(
        kernels.multiply, source.strips * parts, lay_numbers(**numbers), tables.whole(), room.size, p.tasks == 1, source,
        (groups, lane_count, whole_lanes(lane_count, itemsize), tile_width(itemsize)), packing,
    )  # fmt: skip


def _weights_program(g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int) -> Program:
    """Take strips so large that scratch memory stays in proportion, supposing two threads."""
    for most in range(MOST_TILES, FEWEST_TILES - 1, -FEWEST_TILES):
        program = _correlate_program(g, per_sample, x_last, grad_last, itemsize, most)
        if program.scratch_bytes(itemsize, threads=2) <= MOST_SCRATCH * g.bytes(itemsize):
            break
    return program


def _correlate_program(
    g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int, most: int
) -> Program:  # fmt: skip
    axes, groups, n = forward_axes(g), g.groups, lanes(itemsize)
    filters, depth, pitch = g.filters // groups, g.channels // groups, panel_pitch(g.filters // groups, itemsize)
    blocks = groups * ceil_div(filters, tile_width(itemsize))
    sizes = (max(1, g.batch), *g.output)
    depths = ceil_div(depth, ceil_div(depth, MOST_DEPTHS))
    parts = ceil_div(depth, depths)
    strip = Work(sizes, depths, filters, 1, itemsize, 1).strip(most)
    if per_sample:
        strip = (1, *strip[1:])
    counts = [ceil_div(a, b) for a, b in zip(sizes, strip, strict=True)]
    strips = math.prod(counts)
    wanted = ceil_div(count_tasks(g), blocks * parts)
    chunks, per_chunk = choose_chunks(strips, math.prod(counts[1:]), math.prod(sizes), g.batch, wanted, per_sample)
    kinds, source = _kinds_and_source(g, axes, g.input_shape, x_last, itemsize, strip, blocks * parts > 1)
    tables = Tables()
    numbers = strip_numbers(source, kinds, tables, g.output_shape, steps_of_image(g.output_shape, grad_last), (1, 1, 1))
    pixel = whole_lanes(depths, itemsize)
    lists = []
    for _, segments in kinds.all():
        for used in tiles_at(sizes_of(segments)):
            tiles = np.flatnonzero(used)
            lists.append((tables.add(tiles[:, None] * (pixel, pitch)), tiles.size))
    rows_of_parts = []
    for part in range(parts):
        rows = fill_tiles(np.arange(min(depths, depth - part * depths)))
        rows_of_parts.append((tables.add(rows), tables.add(rows * pitch), rows.size // ROWS))
    numbers |= {"runs_at": 0, "run_list_at": tables.add(lists)}
    count = strip[0] * len(tile_sizes(strip[2])) * len(tile_sizes(strip[3]))
    values, gradients, products = (odd_lines(size, itemsize) for size in (count * pixel, count * pitch, depths * pitch))
    each = blocks * depth * TAPS * pitch
    sums_of, units = (1, chunks * groups) if per_sample else (chunks, groups)
    own = chunks == 1
    room = Room(source.box_size)
    values_at = room.take(max(POINTS * values, depths * TAPS * pitch if own else 0))  # at the end the taps lie there
    numbers |= {
        "values_at": values_at, "values": values,
        "products_at": room.take(POINTS * products), "products": products,
        "columns_at": room.take(2 * SLOTS * (strip[3] + 2) * n),
        "pixels_at": room.take(0 if grad_last else math.prod(strip) * pitch),
        "pairs_at": 0, "group_step": depth * source.pitches[1],
        "gradients_at": room.take(POINTS * gradients), "gradients": gradients, "per_chunk": per_chunk, "parts": parts,
        "groups": groups, "depths": depths, "depth": depth, "filters": filters, "pitch": pitch, "each": each, "own": own,
        "rows_at": tables.add(np.arange(depths * TAPS)), "taps_at": values_at if own else 0,
        "parts_at": tables.add(rows_of_parts),
    }  # fmt: skip
    packing = None
    if not own:
        told = np.array((sums_of, each, filters, depth * TAPS, pitch), np.int64)
        packing = Packing(unpack_panel, units * ceil_div(filters, n), told, np.arange(depth * TAPS), chunks * each)
    return Program(
        kernels.correlate, chunks * blocks * parts, lay_numbers(**numbers), tables.whole(), room.size, count_tasks(g) == 1,
        source, (1, pitch, whole_lanes(pitch, itemsize), 0), packing,
    )  # fmt: skip


WINOGRAD = Algorithm(_multiply_program, _weights_program)


# ---------------------------------------------------------------------------------------------------------------------
# What the plan's table asks
# ---------------------------------------------------------------------------------------------------------------------


def describe(computes: str, geometry: ConvGeometry, itemsize: int) -> str:
    """Say how a pass is computed, as the end of a sentence."""
    tiles = f"tiles of {LARGEST_TILE}x{LARGEST_TILE} pixels at {SLOTS}x{SLOTS} points"
    return f"{tiles}, summed over tiles" if computes == "grad_weight" else tiles


@functools.lru_cache(maxsize=4096)
def nanoseconds(computes: str, geometry: ConvGeometry, itemsize: int) -> float:
    """Estimate the time of a pass, in the measure of the direct rows' estimate; no time is short if it takes too much memory."""
    g = geometry.volume
    if computes == "grad_weight":
        channels, filters = g.channels // g.groups, g.filters // g.groups
        work = Work((max(1, g.batch), *g.output), channels, filters, g.groups, itemsize, count_tasks(g))
    else:
        work = work_of((grad_input_pixels if computes == "grad_input" else output_pixels)(g, True, True, itemsize))
    if WINOGRAD.scratch_bytes(computes, g, itemsize, threads=2) > MOST_SCRATCH * g.bytes(itemsize):
        return math.inf
    strip = work.strip()
    tasks = math.prod(work.split(strip))
    return 30_000 + 0.3 * work.cost(strip) * (ceil_div(tasks, 2) * 2 / tasks)
