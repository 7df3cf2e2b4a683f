"""Winograd's convolution, between the plan and the kernels: what each pass with a small kernel means in tables.

`fastconv.engine` does the same for direct convolution.  Strips are cut along whole tiles; what else they are is the same.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .algorithm import Algorithm
from .arrays import Array
from .cook_toom import can_be_cut, points_of, slots, tile_of
from .geometry import ConvGeometry, ceil_div
from .kernels import winograd as kernels
from .kernels.pack import unpack_panel
from .programs import (
    CHUNK_PIXELS,
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
from .simd import lanes
from .strips import (
    TASKS,
    Axis,
    Ints,
    Kinds,
    Source,
    Tables,
    by_output,
    fill_tiles,
    filled,
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

VALUES_BYTES = 5 << 20
"""Most bytes of a strip's input at the points: each is used for as many products as there are filters, so it may stand in the
third-level cache."""

FEWEST_TILES, MOST_TILES = 24, 96
"""Tiles of a strip: enough to use the weight for."""

MOST_DEPTHS = 64
"""Channels of a task of dW: their sums at all points are read and written for each strip."""

TURN = 32
"""Depths of a task of dW that are summed up to taps at once where it has a single strip: their sums stay near."""

MOST_SCRATCH = 4
"""Scratch memory in proportion to the arrays of a call; where two threads would need more, "auto" does not take these rows."""

STAGE_BYTES, LEAST_STAGE_BYTES = 512 << 10, 64 << 10
"""Most bytes of a weight at the points that a task evaluates at once; and where scratch memory is short."""

TILE_TERMS, READING, INPUT, OUTPUT, EVALUATION = 12, 2.8, 2.8, 2.75, 6.7
"""Time, in that of one multiplication of vectors, beside the multiplications: to begin and end a tile; to read a vector of the
weight at a point for a strip; and for each vector that is written where the input, the products or the weight are evaluated."""

ALONG_ONE_AXIS = 1.2
"""What rows and columns alone take in proportion to the estimate: they have few products for what has to be evaluated."""

SHARING = 60_000
"""The same for what threads wait where they evaluate the weight together: the others' parts lie in the others' caches."""

ENOUGH_TASKS, NARROW = 8, 1.05
"""With fewer tasks, blocks of half the width are worth a thought; and the time they take in proportion to whole ones."""

REEVALUATED = 40_000
"""Most numbers of a weight that tasks evaluate more than once between them."""


def objection(g: ConvGeometry) -> str | None:
    """Say why Winograd's algorithm is not for a geometry; None if it is."""
    g = g.volume
    if (
        g.kernel[0] > 1
        or not can_be_cut(*g.kernel[1:])
        or max(g.stride) > 1
        or max(g.dilation[1:]) > 1
        or g.padding[0] != (0, 0)
    ):
        return "it computes kernels of 1, 3, 5 or 7 rows and columns, but not 7 of both, with stride 1 and dilation 1"
    if is_depthwise(g):
        return "channels do not mix, so there is no matrix product"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Strips of tiles
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """Tiles for a kernel of so many taps down its columns and across its rows.

    >>> Form(5, 3).points, Form(5, 3).tile
    ((6, 6), (2, 4))
    """

    down: int
    across: int

    @property
    def terms(self) -> int:
        """Taps of the kernel."""
        return self.down * self.across

    @property
    def points(self) -> tuple[int, int]:
        """Points along (columns, rows)."""
        return points_of(self.down), points_of(self.across)

    @property
    def tile(self) -> tuple[int, int]:
        """(rows, columns) of the largest tile."""
        return tile_of(self.down), tile_of(self.across)

    @property
    def written(self) -> tuple[int, int, int]:
        """Vectors that maps write: for a tile of the input, one of the products, and a depth of the weight."""
        (points_y, points_x), (tile_y, tile_x) = self.points, self.tile
        return points_y * (tile_x + points_x), tile_y * (points_x + tile_x), points_y * (self.across + points_x)

    def count(self, height: int, width: int) -> int:
        """Count the tiles of an image."""
        return ceil_div(height, self.tile[0]) * ceil_div(width, self.tile[1])


def form_of(g: ConvGeometry) -> Form:
    """Return the tiles for a geometry."""
    return Form(*g.kernel[1:])


def tile_sizes(n: int, taps: int) -> list[int]:
    """Cut ``n`` outputs into tiles: the largest, and what is left.

    >>> tile_sizes(14, taps=3)
    [4, 4, 4, 2]
    """
    return [min(tile_of(taps), n - first) for first in range(0, n, tile_of(taps))]


def tiles_at(sizes: tuple[int, int, int], form: Form) -> Array:
    """Count for each point the tiles of (images, rows, columns) that use it, as an array of tile numbers each."""
    images, *pixels = sizes
    used = [
        np.array([[slot in slots(m + taps - 1) for m in tile_sizes(n, taps)] for slot in range(points_of(taps))])
        for n, taps in zip(pixels, (form.down, form.across), strict=True)
    ]
    tiles = used[0][:, None, None, :, None] & used[1][None, :, None, None, :]
    return np.repeat(tiles, images, axis=2).reshape(math.prod(form.points), -1)


@functools.lru_cache(maxsize=1024)
def product_rows(images: int, height: int, width: int, form: Form) -> int:
    """Count the rows of the tiles that multiply a strip: at all points, filled up to whole tiles."""
    counts = tiles_at((images, height, width), form).sum(1)
    return sum(filled(int(count)) for count in counts)


@dataclass(frozen=True)
class Work:
    """What a pass has to do, and how long that takes, in the time of one multiplication of vectors.

    Attributes
    ----------
    form : Form
        The tiles.
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
    narrow : bool
        Whether blocks have half as many lanes as they could.
    """

    form: Form
    sizes: Ints
    depth: int
    lane_count: int
    groups: int
    itemsize: int
    tasks: int
    prepared: bool = False
    narrow: bool = False

    @property
    def pitch(self) -> int:
        """Lanes of a block, up to whole vectors."""
        pitch = panel_pitch(self.lane_count, self.itemsize)
        return whole_lanes(ceil_div(pitch, 2), self.itemsize) if self.narrow else pitch

    @property
    def blocks(self) -> int:
        """Blocks of lanes of all groups."""
        return self.groups * ceil_div(self.lane_count, self.pitch)

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
            and (self.split(strip)[0] - 1) * self.groups * self.depth * self.lane_count * self.form.terms <= REEVALUATED
        )

    def cost(self, strip: Ints) -> float:
        """Estimate the time of all tasks."""
        strips, parts = self.split(strip)
        tiles = strips * strip[0] * self.form.count(*strip[2:])
        summed, computed = self.vectors
        of_input, of_products, of_weight = self.form.written
        rows = product_rows(strip[0], strip[2], strip[3], self.form)
        work: float = strips * rows * (self.depth + TILE_TERMS) * computed
        work += tiles * (INPUT * of_input * summed * parts + OUTPUT * of_products * computed)
        evaluating, reading = EVALUATION * of_weight, READING * math.prod(self.form.points)
        each = strips * evaluating if self.owns(strip) else strips * reading + evaluating * (not self.prepared)
        work += each * self.depth * computed + SHARING * (not self.owns(strip) and not self.prepared)
        return work * (ALONG_ONE_AXIS if 1 in self.form.points else 1.0) * (NARROW if self.narrow else 1.0)

    def time(self, strip: Ints) -> float:
        """Estimate the time of all tasks, and of the threads that have none."""
        return self.cost(strip) * (imbalance(math.prod(self.split(strip))) if self.tasks > 1 else 1.0)

    def best(self) -> Work:
        """Choose the width of blocks: narrow ones make more tasks where there are few."""
        if self.tasks == 1 or math.prod(self.split(self.strip())) >= ENOUGH_TASKS:
            return self
        narrow = dataclasses.replace(self, narrow=True)
        return min(self, narrow, key=lambda work: work.time(work.strip()))

    def strip(self, most: int = MOST_TILES) -> Ints:
        """Choose the (images, 1, rows, columns) of a strip that takes the least time: whole rows of tiles if it can.

        It has ``most`` tiles or less.
        """
        batch, _, height, width = self.sizes
        bytes_of_tile = math.prod(self.form.points) * whole_lanes(self.depth, self.itemsize) * self.itemsize
        most = max(FEWEST_TILES, min(most, VALUES_BYTES // bytes_of_tile))
        tile_y, tile_x = self.form.tile
        down, along = ceil_div(height, tile_y), ceil_div(width, tile_x)
        choices = {
            (b, 1, min(tile_y * y, height), min(tile_x * x, width))
            for x in parts_of(along)
            for y in (parts_of(down) if x == along else {1})
            for b in (parts_of(batch) if y == down and x == along else {1})
            if b * y * x <= most
        }
        return min(sorted(choices, reverse=True), key=self.time)


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


def rows_of_tiles(form: Form, strip: Ints) -> int:
    """Vectors to turn a row of tiles into, and to copy one of the input to; at least those of a tile of products twice."""
    points_y, points_x = form.points
    return 2 * points_y * (strip[3] + form.across - 1) + points_y * points_x


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
    work = Work(form_of(p.g), sizes, p.depth, p.channels // p.g.groups, p.g.groups, p.itemsize, p.tasks, p.prepared)
    return work.best()


def in_proportion(program: Program, g: ConvGeometry, itemsize: int) -> bool:
    """Say whether scratch memory is no more than it may be, supposing two threads."""
    return program.scratch_bytes(itemsize, threads=2) <= MOST_SCRATCH * g.bytes(itemsize)


def _multiply_program(p: Pixels) -> Program:
    """Evaluate the weight in large stages, in small ones, or of narrow blocks: what scratch memory allows."""
    work = work_of(p)
    narrow = dataclasses.replace(work, narrow=True)
    choices = ((work, STAGE_BYTES), (work, LEAST_STAGE_BYTES), (narrow, LEAST_STAGE_BYTES))
    programs = []
    for choice in choices:
        programs.append(_cut_program(p, *choice))
        if in_proportion(programs[-1], p.g, p.itemsize):
            return programs[-1]
    return programs[0]


def _cut_program(p: Pixels, work: Work, stage_bytes: int) -> Program:
    g, itemsize, depth, groups = p.g, p.itemsize, p.depth, p.g.groups
    n = lanes(itemsize)
    lane_count = p.channels // groups
    pitch, blocks = work.pitch, work.blocks // groups
    form, strip = work.form, work.strip()
    points = math.prod(form.points)
    _, parts = work.split(strip)
    kinds, source = _kinds_and_source(g, p.axes, p.in_shape, p.in_last, itemsize, strip, parts > 1)
    tables = Tables()
    out_steps = steps_of_image(p.out_shape, p.out_last)
    numbers = strip_numbers(source, kinds, tables, p.out_shape, out_steps, (1, 1, 1))
    pixel = whole_lanes(depth, itemsize)
    lists = []
    for _, segments in kinds.all():
        for used in tiles_at(sizes_of(segments), form):
            tiles = np.flatnonzero(used)
            at = fill_tiles(tiles * pixel)
            lists.append((tables.add(at), tables.add(fill_tiles(tiles * pitch)), at.size))
    numbers |= {"runs_at": 0, "run_list_at": tables.add(lists)}
    count = strip[0] * form.count(*strip[2:])
    values, products = odd_lines(count * pixel, itemsize), odd_lines(count * pitch, itemsize)
    size, own = math.prod(g.weight_shape), work.owns(strip)
    depths = min(depth, max(n, stage_bytes // (points * pitch * itemsize) // n * n)) if own else depth
    plane = odd_lines(depths * pitch, itemsize)
    room = Room(source.box_size)
    # The row of each (depth, tap): in the order in which the input meets the taps.
    order = [[k for k, _ in axis.phases[0].taps] for axis in p.axes[1:]]
    place = np.empty(g.kernel[1:], np.int64)
    for (y, k_y), (x, k_x) in itertools.product(*(enumerate(taps) for taps in order)):
        place[k_y, k_x] = form.across * y + x
    rows = np.arange(depth)[:, None] * form.terms + place.reshape(-1)
    told = (depth, form.terms, lane_count, *p.weight_steps, size)
    numbers |= {
        "values_at": room.take(points * values), "values": values,
        "products_at": room.take(points * products), "products": products,
        "columns_at": room.take(rows_of_tiles(form, strip) * n),
        "pixels_at": room.take(0 if p.out_last else math.prod(strip) * pitch),
        "pairs_at": tables.add(np.arange(depth)[:, None] * (1, pitch)), "group_step": depth * source.pitches[1],
        "down": form.down, "across": form.across, "parts": parts, "groups": groups,
        "stages": ceil_div(depth, depths), "depths": depths,
        "own": room.take(points * plane) if own else 0, "plane": plane,
        "taps_at": room.take(form.terms * kernels.DEPTHS * pitch if own else 0),
        "rows_at": tables.add(rows) if own else 0, "pitch": pitch, "told": told,
    }  # fmt: skip
    packing = None
    if not own:
        chunk = max(kernels.DEPTHS, ceil_div(depth, ceil_div(TASKS, groups * blocks)))
        packing = Packing(
            kernels.transform_weight, groups * blocks * ceil_div(depth, chunk),
            np.array((pitch, chunk, plane, form.down, form.across, *told), np.int64),
            rows.reshape(-1), groups * blocks * points * plane, form.terms * kernels.DEPTHS * pitch,
        )  # fmt: skip
    return Program(
        kernels.multiply, source.strips * parts, lay_numbers(**numbers), tables.whole(), room.size, p.tasks == 1, source,
        (groups, lane_count, whole_lanes(lane_count, itemsize), tile_width(itemsize)), packing,
    )  # fmt: skip


def _weights_program(g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int) -> Program:
    """Take strips, then depths, so few that scratch memory stays in proportion, supposing two threads."""
    tiles = [(most, MOST_DEPTHS) for most in range(MOST_TILES, FEWEST_TILES, -FEWEST_TILES)]
    for most, depths in (*tiles, *((FEWEST_TILES, MOST_DEPTHS >> n) for n in range(3))):
        program = _correlate_program(g, per_sample, x_last, grad_last, itemsize, most, depths)
        if in_proportion(program, g, itemsize):
            break
    return program


def _correlate_program(
    g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int, most: int, most_depths: int
) -> Program:  # fmt: skip
    axes, groups, n = forward_axes(g), g.groups, lanes(itemsize)
    filters, depth, pitch = g.filters // groups, g.channels // groups, panel_pitch(g.filters // groups, itemsize)
    blocks = groups * ceil_div(filters, tile_width(itemsize))
    sizes = (max(1, g.batch), *g.output)
    parts = ceil_div(depth, most_depths)
    if count_tasks(g) > 1 and blocks * parts * (math.prod(sizes) // CHUNK_PIXELS) < 2:
        parts = max(parts, min(2, ceil_div(depth, n)))  # there would be one task
    depths = ceil_div(depth, parts)
    parts = ceil_div(depth, depths)
    form = form_of(g)
    points = math.prod(form.points)
    strip = Work(form, sizes, depths, filters, 1, itemsize, 1).strip(most)
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
        for used in tiles_at(sizes_of(segments), form):
            tiles = np.flatnonzero(used)
            lists.append((tables.add(tiles[:, None] * (pixel, pitch)), tiles.size))
    turn = min(depths, TURN) if per_chunk == 1 else depths
    turns = ceil_div(depths, turn)
    rows_of_turns = []
    for part, some in itertools.product(range(parts), range(turns)):
        left = min(depths, depth - part * depths) - some * turn
        rows = fill_tiles(np.arange(max(1, min(turn, left))))
        rows_of_turns.append((tables.add(some * turn + rows), tables.add(rows * pitch), rows.size))
    numbers |= {"runs_at": 0, "run_list_at": tables.add(lists)}
    count = strip[0] * form.count(*strip[2:])
    values, gradients, products = (odd_lines(size, itemsize) for size in (count * pixel, count * pitch, turn * pitch))
    each = blocks * depth * form.terms * pitch
    sums_of, units = (1, chunks * groups) if per_sample else (chunks, groups)
    own = chunks == 1
    room = Room(source.box_size)
    taps = turn * form.terms * pitch if own else 0
    values_at = room.take(max(points * values, taps if turns == 1 else 0))  # the last taps lie where the values did
    numbers |= {
        "values_at": values_at, "values": values,
        "products_at": room.take(points * products), "products": products,
        "columns_at": room.take(rows_of_tiles(form, strip) * n),
        "pixels_at": room.take(0 if grad_last else math.prod(strip) * pitch),
        "pairs_at": 0, "group_step": depth * source.pitches[1],
        "down": form.down, "across": form.across,
        "gradients_at": room.take(points * gradients), "gradients": gradients, "per_chunk": per_chunk, "parts": parts,
        "groups": groups, "depths": depths, "depth": depth, "filters": filters, "pitch": pitch, "each": each, "own": own,
        "rows_at": tables.add(np.arange(turn * form.terms)), "taps_at": values_at if turns == 1 else room.take(taps),
        "turns_at": tables.add(rows_of_turns), "turn": turn, "turns": turns,
    }  # fmt: skip
    packing = None
    if not own:
        terms = depth * form.terms
        told = np.array((sums_of, each, filters, terms, pitch), np.int64)
        packing = Packing(unpack_panel, units * ceil_div(filters, n), told, np.arange(terms), chunks * each)
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
    form = form_of(geometry.volume)
    (tile_y, tile_x), (points_y, points_x) = form.tile, form.points
    tiles = f"tiles of {tile_y}x{tile_x} pixels at {points_y}x{points_x} points"
    return f"{tiles}, summed over tiles" if computes == "grad_weight" else tiles


@functools.lru_cache(maxsize=4096)
def nanoseconds(computes: str, geometry: ConvGeometry, itemsize: int) -> float:
    """Estimate the time of a pass, in the measure of the direct rows' estimate; no time is short if it takes too much memory."""
    g = geometry.volume
    if computes == "grad_weight":
        channels, filters = g.channels // g.groups, g.filters // g.groups
        work = Work(form_of(g), (max(1, g.batch), *g.output), channels, filters, g.groups, itemsize, count_tasks(g))
    else:
        work = work_of((grad_input_pixels if computes == "grad_input" else output_pixels)(g, True, True, itemsize))
    if WINOGRAD.scratch_bytes(computes, g, itemsize, threads=2) > MOST_SCRATCH * g.bytes(itemsize):
        return math.inf
    strip = work.strip()
    tasks = math.prod(work.split(strip))
    return 30_000 + 0.3 * work.cost(strip) * (ceil_div(tasks, 2) * 2 / tasks)
