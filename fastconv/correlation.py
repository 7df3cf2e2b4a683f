"""Equation (3) on register tiles, between the plan and the kernels: rows are pairs of a channel and a tap, lanes are filters.

`fastconv.engine` has the other passes where channels mix.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import LINE, Array
from .geometry import ConvGeometry, ceil_div, even_part
from .kernels.direct import CORRELATE, CORRELATE_RUN, ROWS_OF_PART, SIDE, correlate
from .programs import (
    CHUNK_PIXELS,
    FIRST_PANEL,
    REPACKED,
    TILE_TERMS,
    Program,
    StripSums,
    choose_chunks,
    count_tasks,
    forward_axes,
    list_pairs,
    members_of,
    tap_numbers,
    term_rows,
    unpacking,
)
from .simd import MOST_SIDE, ROWS, VECTORS, lanes
from .strips import (
    MOST_SUMMED,
    TASKS,
    Axis,
    Ints,
    Kinds,
    Source,
    Tables,
    by_output,
    by_tap,
    choose_padding,
    choose_summed_strip,
    fill_tiles,
    filled,
    grid_offsets,
    line_by_line,
    make_source,
    panel_pitch,
    repeats,
    runs_of,
    steps_of_box,
    steps_of_image,
    strip_numbers,
    thinned,
    tile_width,
    whole_lanes,
)

__all__ = ["swaps", "weights_program"]

PART_TILES = 48
"""Fewest tiles per part of dW's rows: each part reads the gradients anew."""

MOST_APART = 2
"""Widths of a tile between neighbouring pixels whose gradients are read as they lie: lines that far apart compete for few places
in the cache.  Where few terms meet a gradient, that costs less than to pack it."""

READING_TERMS = 32 * VECTORS
"""Most terms of a weight for which gradients are read as they lie, however far apart: to pack them takes longer than it saves."""

CROWDED_BYTES, FEW_SUMMED = 512, 128
"""Bytes of a pixel from which on dW with 16 registers does not read it as it lies, and most pixels of the input in a strip then;
and where with these the next strip is fetched while tiles are at this one: both are to stay in the second-level cache.

A tile takes six channels of each pixel.  Pixels so far apart compete for few places in the first-level cache, and lines come from
the second-level one too slowly for tiles of six cycles a pixel: they do not wait for those that lie `line_by_line`.
"""

AGAIN = 64
"""Fewest terms of a weight for which the gradients of a strip are to stay in the first-level cache from tile to tile; twice as
many, if the input is packed strip by strip: from long strips that takes less time."""

CACHE_BYTES, WAY_BYTES, FEWEST_SUMMED = 32 << 10, 4 << 10, 48
"""Bytes of the first-level cache and of a way of it: lines that lie a multiple of these apart share as few places as it has ways.
And fewest pixels to sum over at once, for the sake of that."""

LEAST_SIDE, MOST_WALKED = 6, 64
"""Fewest numbers that lie side by side for tiles that walk along pixels with one vector; most channels, if there is one tap."""

WALKS_PACK = 100
"""Time that packing what these read takes in that of packing it for others: a copy of it takes as long as they do."""

SWAPPED = 0.9
"""Work with channels for lanes, in proportion to that with filters, for which dW of one tap is computed so."""

PANELS_BYTES = 256 << 10
"""Most bytes of the panels that a task of dW sums up at once: as many blocks of filters use a strip of the input while it is in
the cache."""

SOME_TASKS = 8
"""Tasks that dW may be content with, if each then packs its own part of the input: with twice as many, the sums of their chunks
cost half of what that saves."""

ENOUGH_TASKS = 4
"""Tasks that small layers may be content with, if each then packs what it needs of the input itself."""


@dataclass(frozen=True)
class Weights:
    """What equation (3) is asked for: all filters' gradients of a ``depth`` of channels and T taps, summed over ``sizes``.

    ``x_last`` and ``grad_last`` say whether its inputs lie channels-last, ``per_sample`` that each image has sums of its own.
    """

    g: ConvGeometry
    per_sample: bool
    x_last: bool
    grad_last: bool
    itemsize: int

    @property
    def depth(self) -> int:
        """Count the channels of a group."""
        return self.g.channels // self.g.groups

    @property
    def filters(self) -> int:
        """Count the filters of a group."""
        return self.g.filters // self.g.groups

    @property
    def T(self) -> int:
        """Count the taps."""
        return math.prod(self.g.kernel)

    @property
    def sizes(self) -> Ints:
        """Images, planes, rows and columns that are summed over."""
        return (self.g.batch, *self.g.output)

    @functools.cached_property
    def axes(self) -> tuple[Axis, ...]:
        """How outputs meet inputs along each axis."""
        return tuple(map(thinned, forward_axes(self.g)))

    @property
    def last(self) -> bool:
        """Whether tiles find the input channels-last: as it lies, or packed so."""
        return self.x_last or lanes(self.itemsize) <= self.g.channels

    @property
    def reads(self) -> bool:
        """Whether gradients are read as they lie: for few terms, or whole vectors that are not far apart for a tile's width."""
        near = self.g.filters <= MOST_APART * tile_width(self.itemsize)
        return self.grad_last and ((self.whole and near) or self.depth * self.T <= READING_TERMS)

    @property
    def whole(self) -> bool:
        """Whether a group's filters fill whole vectors."""
        return self.filters % lanes(self.itemsize) == 0

    @property
    def crowds(self) -> bool:
        """Whether the input is to be packed line by line: tiles of few registers wait for pixels that lie far apart."""
        g = self.g
        flat = g.input[0] == g.kernel[0] == 1 and g.padding[0] == (0, 0)
        by_lines = flat and g.groups == 1 and g.channels % (LINE // self.itemsize) == 0
        return VECTORS == 2 and by_lines and g.channels * self.itemsize >= CROWDED_BYTES

    @property
    def walks(self) -> bool:
        """Whether tiles have one vector and rows that lie side by side: channels of a pixel, or few ones of all taps of a row."""
        g = self.g
        side = self.depth * (g.kernel[2] if g.dilation[2] == g.groups == 1 and self.depth < LEAST_SIDE else 1)
        waits = self.T == 1 and self.depth > MOST_WALKED  # for memory, not for tiles
        return self.last and side >= LEAST_SIDE and self.filters <= lanes(self.itemsize) and not waits

    @property
    def most(self) -> int:
        """Most pixels that are summed over at once."""
        g, step = self.g, math.prod(axis.step for axis in self.axes)
        flows = self.x_last and self.grad_last and g.groups == self.T == 1 and g.input == g.output
        if self.crowds or (flows and VECTORS == 2):
            return FEW_SUMMED // step
        if VECTORS == 4 or not self.last or step > 1:
            again = self.depth * self.T >= (AGAIN if self.x_last == self.last else 2 * AGAIN)
            return _fitting(self.itemsize) if again else MOST_SUMMED
        pixel = g.channels if self.x_last else steps_of_box((1, g.channels, 1, 1, 1), True, self.itemsize)[4]
        return _most_summed(pixel * self.itemsize)


@dataclass(frozen=True)
class Cut:
    """How equation (3) is cut into tasks.

    Attributes
    ----------
    strip, counts : tuple of int
        (images, planes, rows, columns) of a strip, and how many there are along these.
    chunks : int
        Runs of consecutive strips, each with sums of its own.
    blocks, per_task : int
        Blocks of filters, and how many of them a task takes.
    parts, depths : int
        Parts of the depths, and how many depths each has.
    """

    strip: Ints
    counts: Ints
    chunks: int
    blocks: int
    per_task: int
    parts: int
    depths: int

    @property
    def groups_of_blocks(self) -> int:
        """Count the tasks that share the blocks of filters."""
        return ceil_div(self.blocks, self.per_task)

    @property
    def sharers(self) -> int:
        """Count the tasks that need the same strip of the input."""
        return self.groups_of_blocks * self.parts


def _tile_work(rows: int, lane_count: int, itemsize: int) -> float:
    """Estimate what tiles of so many rows and lanes take for a pixel: half a vector more than those that they have."""
    return filled(rows) * (ceil_div(lane_count, lanes(itemsize)) + ceil_div(lane_count, tile_width(itemsize)) / 2)


def swaps(g: ConvGeometry, itemsize: int) -> bool:
    """Say whether dW has channels for lanes and filters for rows: of one tap both are the same, and few leave lanes empty."""
    if math.prod(g.kernel) * math.prod(g.stride) > 1 or g.input != g.output or members_of(g, itemsize):
        return False
    channels, filters = g.channels // g.groups, g.filters // g.groups
    return _tile_work(filters, channels, itemsize) < SWAPPED * _tile_work(channels, filters, itemsize)


def _fitting(itemsize: int) -> int:
    """Return of how many pixels gradients stay in the first-level cache; an eighth of it is left for lines of the input."""
    return min(MOST_SUMMED, (CACHE_BYTES - CACHE_BYTES // 8) // (tile_width(itemsize) * itemsize))


def _most_summed(pixel_bytes: int) -> int:
    """Return how many pixels of dW are summed over at once, if those of the input lie so far apart.

    With few registers a line of each, and one of its gradients, are to stay in the first-level cache from tile to tile.
    """
    places = CACHE_BYTES // max(LINE, math.gcd(WAY_BYTES, pixel_bytes))
    return min(MOST_SUMMED, max(FEWEST_SUMMED, places // 2))


def _even_blocks(blocks: int, most: int) -> int:
    """Return how many blocks a task of dW takes, of the ``most`` that it may: as many as all others, if it is more than half.

    >>> _even_blocks(8, 3), _even_blocks(8, 7), _even_blocks(7, 3), _even_blocks(7, 0)
    (2, 4, 3, 1)
    """
    most = max(1, min(blocks, most))
    even = max(n for n in range(1, most + 1) if blocks % n == 0)
    return even if 2 * even > most else even_part(blocks, most)


def _parts_that_pack(g: ConvGeometry, strips: int, panels_bytes: int, parts: int) -> int:
    """Count the parts of the depths for tasks that take all blocks of filters, and pack their own part of the input.

    The input then does not pass through memory once more, as it does if it is packed as a whole; but each part packs the
    gradients anew.  0 if that is not worth it.
    """
    if math.prod(g.kernel) * g.groups > 1:
        return 0
    chunks = max(1, min(strips, SOME_TASKS, g.batch * math.prod(g.output) // CHUNK_PIXELS))
    own = max(ceil_div(panels_bytes, PANELS_BYTES), ceil_div(SOME_TASKS, chunks))
    worth = own <= g.channels and (own - parts) * math.prod(g.output_shape) <= 2 * math.prod(g.input_shape)
    return own if worth else 0


def _cut(w: Weights) -> Cut:
    """Cut equation (3): into blocks of filters and parts of the depths first, and into chunks where these are too few tasks."""
    g, depth, wanted = w.g, w.depth, count_tasks(w.g)
    pixels, size = math.prod(w.sizes), math.prod(g.input_shape)
    channels = g.channels if w.x_last else depth  # that lie together: what is packed is so group by group
    strip = choose_summed_strip(
        w.sizes, channels * w.itemsize * math.prod(axis.step for axis in w.axes), w.most, wanted
    )
    if w.per_sample:
        strip = (1, *strip[1:])
    counts = tuple(ceil_div(n, m) for n, m in zip(w.sizes, strip, strict=True))
    blocks = g.groups * ceil_div(w.filters, tile_width(w.itemsize))
    panel_bytes = depth * w.T * panel_pitch(w.filters, w.itemsize) * w.itemsize
    few = blocks * pixels < 4 * CHUNK_PIXELS
    per_task, parts = 1, 1
    if pixels >= TASKS * CHUNK_PIXELS:
        per_task = _even_blocks(blocks, PANELS_BYTES // panel_bytes)
    if per_task == 1:
        most = ceil_div(depth * w.T, ROWS) // (PART_TILES // 4 if few else PART_TILES)
        parts = max(1, min(ceil_div(wanted, blocks), most, depth))
    packers = REPACKED // max(1, size) + 1
    if few and packers >= ENOUGH_TASKS:  # a few more would have to wait for what one packs for all
        parts = min(parts, max(1, packers // blocks))
    sharers = ceil_div(blocks, per_task) * parts
    if w.x_last != w.last and not w.per_sample and (sharers - 1) * size > REPACKED:
        own_parts = _parts_that_pack(g, math.prod(counts), blocks * panel_bytes, parts)
        if own_parts:
            per_task, parts, sharers, wanted = blocks, own_parts, own_parts, SOME_TASKS
    depths = ceil_div(depth, parts)
    parts = ceil_div(depth, depths)
    wanted = ceil_div(wanted, ceil_div(blocks, per_task) * parts)
    if wanted * blocks * panel_bytes > 8 * PANELS_BYTES:  # fewer chunks, whose sums all have to be added up
        wanted = ceil_div(wanted, 2)
    chunks = choose_chunks(math.prod(counts), pixels, g.batch, wanted, w.per_sample)
    return Cut(strip, counts, chunks, blocks, per_task, parts, depths)


def _find_input(w: Weights, cut: Cut) -> tuple[Kinds, Source]:
    """Choose how tasks find the input, and which pixels meet the same taps."""
    g = w.g

    def work(pixels: int, taps: int) -> int:
        return filled(taps * cut.depths) * (pixels + TILE_TERMS) * cut.parts * cut.blocks // ROWS

    packing_work = math.prod(g.input_shape) // lanes(w.itemsize) // 6 * (WALKS_PACK if w.walks else 1)
    can_read = w.x_last == w.last and not w.crowds
    # Taps of a row that meet other pixels are not side by side.
    cut_by = by_output if w.walks else by_tap
    _, kinds, packs = choose_padding(g.batch, w.axes, cut.strip, cut_by, can_read, work, packing_work)
    # Tasks pack their own part of the depths, group by group, where no two need the same.
    again = packs and repeats(w.axes, cut.strip)
    own = (
        packs and not again and (cut.groups_of_blocks == 1 or (g.groups > 1 and cut.blocks <= g.groups * cut.per_task))
    )
    together = again or (not own and (cut.sharers - 1) * math.prod(g.input_shape) > REPACKED)
    source = make_source(
        g.input_shape, w.x_last, w.itemsize, g.batch, w.axes, cut.strip, w.last, packs, together,
        channels=cut.depths if own else 0,
    )  # fmt: skip
    return kinds, line_by_line(source, w.itemsize) if w.crowds and source.whole else source


def _sides(rows: Array, pitch: int) -> list[Any]:
    """Cut (offset, row) where rows do not lie side by side, and then evenly into tiles."""
    sides = []
    for same in np.split(rows, np.flatnonzero((np.diff(rows, axis=0) != 1).any(1)) + 1):
        for tile in np.array_split(same, ceil_div(len(same), MOST_SIDE)) if len(same) else ():
            sides.append(SIDE.row(offset=tile[0, 0], target=tile[0, 1] * pitch, height=len(tile)))
    return sides


def _lay_runs(w: Weights, cut: Cut, source: Source, kinds: Kinds, rows: Array, tables: Tables) -> dict[str, int]:
    """Lay down for each kind of strips its runs, and for each of these its pixels and the rows of tiles, part by part."""
    pitch, width = panel_pitch(w.filters, w.itemsize), tile_width(w.itemsize)
    lying = steps_of_image(w.g.output_shape, w.grad_last)
    local = (math.prod(cut.strip[1:]), math.prod(cut.strip[2:]), cut.strip[3], 1)
    parts_at: dict[Any, int] = {}
    first_run, runs = [0], []
    for _, segments in kinds.all():
        for _, run in runs_of(segments):
            taps = tuple(tap for _, _, tap in run[1:])
            met = tap_numbers(w.g, taps)
            if taps not in parts_at:
                table = list_pairs(source, rows, [source.place(at) for _, at in met], [n for n, _ in met], cut.depths)
                parts = []
                for part in range(cut.parts):
                    mine = table[part * cut.depths * len(met) : (part + 1) * cut.depths * len(met)]
                    at, to = fill_tiles(mine[:, 0]), fill_tiles(mine[:, 1] * pitch)
                    sides = _sides(mine, pitch) if w.walks else []
                    parts.append(
                        ROWS_OF_PART.row(
                            rows_at=tables.add(at), targets_at=tables.add(to), rows=at.size, sides_at=tables.add(sides),
                            sides=len(sides),
                        )
                    )  # fmt: skip
                parts_at[taps] = tables.add(parts)
            at = grid_offsets(run, source.pixel_steps)
            pixels = [
                grid_offsets(run, local) * p for p in (pitch, whole_lanes(w.filters, w.itemsize) % width or width)
            ]
            pixels.append(grid_offsets(run, (lying[0], *lying[2:])) if w.reads else pixels[0])
            packed, last, read = (tables.add(np.stack([at, to], 1)) for to in pixels)
            images, planes, lines, columns = (b - a for a, b, _ in run)
            runs.append(
                CORRELATE_RUN.row(
                    pairs_at=packed, last_pairs_at=last, lying_pairs_at=read, pixels=at.size, parts_at=parts_at[taps],
                    images=images, planes=planes, lines=lines, columns=columns, first=at[0], first_packed=pixels[0][0],
                    first_lying=pixels[2][0],
                )
            )  # fmt: skip
        first_run.append(len(runs))
    return {"runs_at": tables.add(first_run), "run_list_at": tables.add(runs)}


def weights_program(g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int) -> Program:
    """Compute equation (3) where channels mix."""
    w = Weights(g, per_sample, x_last, grad_last, itemsize)
    T, depth, filters, width, pitch = w.T, w.depth, w.filters, tile_width(itemsize), panel_pitch(w.filters, itemsize)
    cut = _cut(w)
    kinds, source = _find_input(w, cut)
    rows = term_rows(depth, T, cut.depths, source.pitches[1] == 1)
    tables = Tables()
    numbers = strip_numbers(source, kinds, tables, g.output_shape, steps_of_image(g.output_shape, grad_last), (1, 1, 1))
    numbers |= _lay_runs(w, cut, source, kinds, rows, tables)
    own = per_sample or cut.chunks == 1
    room = whole_lanes(source.box_size + (0 if w.reads and w.whole else math.prod(cut.strip) * width), 1) + FIRST_PANEL
    each = cut.blocks * depth * T * pitch
    as_it_lies = source.pitches[1] == 1 and not source.packs and source.whole is None
    follows = as_it_lies and g.groups == cut.parts == 1 and g.input == g.output
    numbers |= {
        "chunks": cut.chunks, "parts": cut.parts, "groups": g.groups, "lane_count": filters, "pitch": pitch,
        "group_step": depth * source.pitches[1], "depths": cut.depths, "depth": depth, "taps": T, "each": each,
        "reads": w.reads, "own": room if own else 0, "rows_at": tables.add(rows) if own else 0, "per_task": cut.per_task,
        "own_box": source.box[1] < g.channels,
        "coming": w.axes[0].span * source.steps[2] + w.axes[1].span * source.steps[3],
        "x_pixel": source.steps[4] if follows else 0,
        "gradient_pixel": filters if follows and w.reads and cut.groups_of_blocks == 1 else 0, "walks": w.walks,
        "walk": source.pixel_steps, "sums_at": 0,
    }  # fmt: skip
    packing = (
        None if own else unpacking(cut.chunks, per_sample, g.groups, rows.reshape(-1), filters, pitch, each, itemsize)
    )
    return Program(
        correlate, cut.chunks * cut.sharers, CORRELATE.lay(**numbers), tables.whole(),
        room + (cut.per_task * cut.depths * T * pitch if own else 0), count_tasks(g) == 1, source, (1, width, width, 0), packing,
        StripSums(CORRELATE.place("sums_at"), math.prod(cut.counts), g.groups, filters, pitch),
    )  # fmt: skip
