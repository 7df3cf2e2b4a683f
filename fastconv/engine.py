"""Direct convolution, between the plan and the kernels: what each pass of a geometry means in tables.

For each pass this file makes the tables that tell the register tiles what to multiply with what, once for each geometry and
memory layout (`fastconv.strips` says how); then it runs the tasks of `fastconv.kernels`, which see arrays and integers only.

A *program* is a task with its tables.  There is a kind for each way to lay channels and pixels into the rows and lanes of a tile.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import bands, depthwise, planes
from .algorithm import Algorithm
from .arrays import LINE, Array
from .geometry import ConvGeometry, ceil_div, even_part
from .kernels.direct import CORRELATE, GATHER, correlate, gather
from .kernels.pack import PANEL, pack_panel
from .kernels.sums import PLANES, sum_of_pixels, sums
from .planes import lanes_are_pixels
from .programs import (
    CHUNK_PIXELS,
    NO_TABLE,
    SERIAL_BYTES,
    Packing,
    Pixels,
    Program,
    StripSums,
    choose_chunks,
    count_tasks,
    forward_axes,
    is_depthwise,
    members_of,
    memory_of,
    output_pixels,
    tap_numbers,
    unpacking,
)
from .simd import FETCH_TERMS, ROWS, VECTORS, lanes
from .strips import (
    FEWEST_PIXELS,
    MOST_PIXELS,
    MOST_SUMMED,
    TASKS,
    Ints,
    Kinds,
    Source,
    Tables,
    by_output,
    by_tap,
    candidate_strips,
    choose_padding,
    choose_summed_strip,
    fill_tiles,
    filled,
    grid_offsets,
    imbalance,
    line_by_line,
    make_source,
    panel_pitch,
    runs_of,
    steps_of_box,
    steps_of_image,
    strip_numbers,
    thinned,
    tile_width,
    whole_lanes,
)

__all__ = ["DIRECT", "adds_to", "describe", "grad_bias", "is_depthwise", "lane_flops", "pools", "sums_gradients"]

STAGE_BYTES, SMALL_STAGE_BYTES = 400 << 10, 32 << 10
"""Most bytes of a panel that a stage of a sum takes: it is to stay in the second-level cache while a strip's pixels pass.  With
one tap pixels pass quickly, each number of the input being used but once for a panel, which then is to stay in the first."""

PACK_TERMS = 64
"""Fewest terms that a task packs of a block of lanes."""

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

CACHE_BYTES, WAY_BYTES, FEWEST_SUMMED = 32 << 10, 4 << 10, 48
"""Bytes of the first-level cache and of a way of it: lines that lie a multiple of these apart share as few places as it has ways.
And fewest pixels to sum over at once, for the sake of that."""

SWAPPED = 0.9
"""Work with channels for lanes, in proportion to that with filters, for which dW of one tap is computed so."""

PANELS_BYTES = 256 << 10
"""Most bytes of the panels that a task of dW sums up at once: as many blocks of filters use a strip of the input while it is in
the cache."""

REPACKED = 64_000
"""Most numbers that tasks pack more than once between them: what one packs for all has to be waited for, and to pass from cache
to cache."""

SOME_TASKS = 8
"""Tasks that dW may be content with, if each then packs its own part of the input: with twice as many, the sums of their chunks
cost half of what that saves."""

ENOUGH_TASKS = 4
"""Tasks that small layers may be content with, if each then packs what it needs of the input itself."""

PACKED, SHARING = 20, 10_000
"""Numbers of a weight that are packed in the time of one of a tile's terms, and how many of these threads wait where they pack it
together."""

NEAR_BYTES, READ_AGAIN = 1 << 19, 9
"""Bytes of a weight that stays in the second-level cache, and numbers of a larger one that a strip reads again in the time of a
term: it comes too slowly for tiles with 16 registers, and for those of few pixels."""

MOST_AT_ONCE = 450
"""Most pixels that may be one strip, however many channels they have, if the weight is so large: tasks, which differ in lanes,
then pack their own part of it, and read it once."""

ENOUGH_BLOCKS, NARROW = 4, 1.05
"""With fewer blocks of lanes, those of half the width are worth a thought; and the time they take in proportion to whole ones."""

FIRST_PANEL = 16
"""Numbers in front of a panel in scratch memory: it does not begin at 0, which stands for none."""

TILE_TERMS = 12
"""Terms that take as long as beginning and ending a tile."""


# ---------------------------------------------------------------------------------------------------------------------
# Programs
# ---------------------------------------------------------------------------------------------------------------------


def _term_rows(depth: int, T: int, depths: int, fast_channels: bool) -> Array:
    """Number the rows of a panel: the row of each (depth, tap), stage by stage of so many depths.

    Neighbours in memory are neighbours in a panel: the channels of a pixel, or the taps of a plane.
    """
    rows = np.empty((depth, T), np.int64)
    for first in range(0, depth, depths):
        taken = min(depths, depth - first)
        order = np.arange(taken * T) + first * T
        rows[first : first + taken] = order.reshape(T, taken).T if fast_channels else order.reshape(taken, T)
    return rows


def _pairs(source: Source, rows: Array, places: list[int], numbers: list[int], depths: int) -> Array:
    """List the pairs of a depth and some taps in the order of their rows: their offsets in the input, and their rows."""
    offsets = source.channels(len(rows))[:, None] + np.array(places, np.int64)
    chosen = rows[:, numbers]
    parts = []
    for first in range(0, len(rows), depths):
        order = np.argsort(chosen[first : first + depths], axis=None)
        taken = (table[first : first + depths].reshape(-1)[order] for table in (offsets, chosen))
        parts.append(np.stack(list(taken), 1))
    return np.concatenate(parts)


def _gather_program(p: Pixels) -> Program:
    """Rows are pixels, lanes are channels."""
    g, axes, itemsize, T = p.g, p.axes, p.itemsize, p.T
    width, depth, groups = tile_width(itemsize), p.depth, p.g.groups
    lane_count, size = p.channels // groups, math.prod(g.weight_shape)
    is_large = size * itemsize > NEAR_BYTES
    at_once = is_large and 0 < math.prod(p.out_shape) <= MOST_AT_ONCE * p.channels
    is_far = is_large and (VECTORS == 2 or at_once)
    # A box lies channels-last but for images of few planes: tiles that read planes as they lie were slower than turning
    # the planes over.
    last = p.in_last or lanes(itemsize) <= p.in_shape[1]

    def work(pixels: int, taps: int) -> int:
        return filled(pixels) * (taps * depth + TILE_TERMS) * groups * ceil_div(lane_count, width) // ROWS

    def owns(strips: int) -> bool:
        return not p.prepared and (strips - 1) * size <= REPACKED

    def try_strip(strip: Ints, pitch: int) -> tuple[float, Ints, int, int, Kinds, bool]:
        strips = math.prod(ceil_div(n, m) for n, m in zip(p.sizes, strip, strict=True))
        parts = min(groups * ceil_div(lane_count, pitch), ceil_div(p.tasks, max(1, strips)))
        cost, kinds, packs = choose_padding(g.batch, axes, strip, by_output, p.in_last == last, work, packing_work)
        if pitch < widest:
            cost *= NARROW
        if not p.prepared:
            cost += size / PACKED * (strips if owns(strips) else 1) + (0 if owns(strips) or p.tasks == 1 else SHARING)
        if is_far and not owns(strips):
            cost += strips * size / READ_AGAIN
        return cost * (1 if p.tasks == 1 else imbalance(strips * parts)), strip, pitch, parts, kinds, packs

    packing_work = math.prod(p.in_shape) // lanes(itemsize) // 6
    least = FEWEST_PIXELS // 2 // math.prod(len(axis.phases) for axis in axes)
    strips = candidate_strips(
        p.sizes, p.in_shape[1] * itemsize * math.prod(p.stride), MOST_PIXELS, p.tasks, max(ROWS, least),
        math.lcm(ROWS, LINE // itemsize) if p.streams and not p.out_last else ROWS,  # parts of planes begin with a line
    )  # fmt: skip
    if at_once:
        strips.append(p.sizes)
    strips = list(dict.fromkeys(map(p.along_windows, strips)))
    widest = panel_pitch(lane_count, itemsize)
    few = p.tasks > 1 and groups * ceil_div(lane_count, width) < ENOUGH_BLOCKS
    pitches = {widest, whole_lanes(ceil_div(widest, 2), itemsize)} if few else {widest}
    tried = (try_strip(strip, pitch) for strip in strips for pitch in sorted(pitches, reverse=True))
    _, strip, pitch, parts, kinds, packs = min(tried, key=lambda result: result[0])
    blocks, padded = ceil_div(lane_count, pitch), whole_lanes(lane_count, itemsize)
    together = (parts - 1) * math.prod(p.in_shape) > REPACKED
    source = make_source(p.in_shape, p.in_last, itemsize, g.batch, axes, strip, last, packs, together)
    stage_bytes = SMALL_STAGE_BYTES if T == max(p.out_step) == 1 else STAGE_BYTES
    stages = max(1, ceil_div(depth * T * pitch * itemsize, stage_bytes))
    depths = max(1, ceil_div(depth, stages))
    rows = _term_rows(depth, T, depths, source.pitches[1] == 1)
    if p.transposed:
        rows = rows[:, ::-1]  # the last tap meets what lies first, and reading in order is faster
    out_steps = steps_of_image(p.out_shape, p.out_last)
    writes = p.writes and not (p.streams and depths < depth)
    steps = out_steps if writes else p.scratch_steps(strip, pitch)
    inside = tuple(s * step for s, step in zip(p.out_step, steps[2:], strict=True))
    tables = Tables()
    numbers = strip_numbers(source, kinds, tables, p.out_shape, out_steps, p.out_step, p.streams)
    pairs: dict[Any, int] = {}
    first_run, runs = [0], []
    for _, segments in kinds.all():
        for phases, run in runs_of(segments):
            taps = tuple(tap for _, _, tap in run[1:])
            met = tap_numbers(g, taps)
            if taps not in pairs:
                table = _pairs(source, rows, [source.place(at) for _, at in met], [n for n, _ in met], depths)
                pairs[taps] = tables.add(table * (1, pitch))
            firsts = (axis.phases[n].first for axis, n in zip(axes, phases, strict=True))
            to = grid_offsets(run, (steps[0], *inside)) + sum(f * s for f, s in zip(firsts, steps[2:], strict=True))
            at = fill_tiles(grid_offsets(run, source.pixel_steps))
            runs.append((pairs[taps], len(met), tables.add(at), tables.add(fill_tiles(to)), at.size))
        first_run.append(len(runs))
    numbers |= {"runs_at": tables.add(first_run), "run_list_at": tables.add(runs)}
    own = owns(source.strips)
    room = whole_lanes(source.box_size + (0 if writes else p.scratch_size(strip, pitch)), 1) + FIRST_PANEL
    told = {"depth": depth, "taps": T, "lane_count": lane_count, "weight_steps": p.weight_steps, "weight_size": size}
    in_order = p.in_order(rows)
    numbers |= {
        "parts": parts, "groups": groups, "pitch": pitch, "group_step": depth * source.pitches[1],
        "stages": max(1, ceil_div(depth, depths)), "depths": depths, "adds": p.adds, "own": room if own else 0,
        "rows_at": tables.add(in_order) if own else 0, **told, **p.window_numbers,
        "passes": FETCH_TERMS * ROWS // T if groups == stages == 1 and source.follows else 0,
    }  # fmt: skip
    packing = None
    if not own:
        chunk = max(1, min(depths, ceil_div(depth, ceil_div(TASKS, groups * blocks))), ceil_div(PACK_TERMS, T))
        packing = Packing(
            pack_panel, groups * blocks * ceil_div(depth, chunk), PANEL.lay(pitch=pitch, chunk=chunk, **told), in_order,
            groups * blocks * depth * T * pitch,
        )  # fmt: skip
    return Program(
        gather, source.strips * parts, GATHER.lay(**numbers), tables.whole(), room + (depths * T * pitch if own else 0),
        p.tasks == 1, source, (groups, lane_count, padded, width), packing,
    )  # fmt: skip


def _program(p: Pixels) -> Program:
    if bands.computes_columns(p):
        return bands.columns_program(p)
    if bands.computes_filters(p):
        return bands.filters_program(p)
    if members_of(p.g, p.itemsize):
        return depthwise.pixels_program(p)
    if lanes_are_pixels(p.g, p.stride, p.channels // p.g.groups, p.itemsize):
        if not p.weight_last:
            return planes.pixels_program(p)
        program = planes.pixels_program(dataclasses.replace(p, weight_last=False))
        return dataclasses.replace(program, turns=(p.g.filters, p.T, p.g.channels // p.g.groups))
    return _gather_program(p)


# ---------------------------------------------------------------------------------------------------------------------
# Equations (1) and (2): pixels
# ---------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _flat(g: ConvGeometry, images_too: bool) -> ConvGeometry:
    """Lay a 1x1 convolution of stride 1 out as one row of pixels, which strips can cut anywhere; also over all images."""
    if math.prod(g.kernel) * math.prod(g.stride) > 1 or g.input != g.output:
        return g
    pixels, batch = math.prod(g.input), g.batch
    if images_too and batch:
        pixels, batch = pixels * batch, 1
    along = (1, 1, pixels)
    return dataclasses.replace(g, batch=batch, input=along, output=along, padding=((0, 0),) * 3)


# ---------------------------------------------------------------------------------------------------------------------
# Equation (3): weights
# ---------------------------------------------------------------------------------------------------------------------


def _reads(grad_last: bool, g: ConvGeometry, itemsize: int) -> bool:
    """Say whether gradients are read as they lie: for few terms, or whole vectors that are not far apart for a tile's width."""
    whole = g.filters // g.groups % lanes(itemsize) == 0
    near = g.filters <= MOST_APART * tile_width(itemsize)
    return grad_last and ((whole and near) or g.channels // g.groups * math.prod(g.kernel) <= READING_TERMS)


def _tile_work(rows: int, lane_count: int, itemsize: int) -> float:
    """Estimate what tiles of so many rows and lanes take for a pixel: half a vector more than those that they have."""
    return filled(rows) * (ceil_div(lane_count, lanes(itemsize)) + ceil_div(lane_count, tile_width(itemsize)) / 2)


def _swaps(g: ConvGeometry, itemsize: int) -> bool:
    """Say whether dW has channels for lanes and filters for rows: of one tap both are the same, and few leave lanes empty."""
    if math.prod(g.kernel) * math.prod(g.stride) > 1 or g.input != g.output or members_of(g, itemsize):
        return False
    channels, filters = g.channels // g.groups, g.filters // g.groups
    return _tile_work(filters, channels, itemsize) < SWAPPED * _tile_work(channels, filters, itemsize)


def _crowds(g: ConvGeometry, itemsize: int) -> bool:
    """Say whether the input of dW is to be packed line by line: tiles of few registers wait for pixels that lie far apart."""
    flat = g.input[0] == g.kernel[0] == 1 and g.padding[0] == (0, 0)
    by_lines = flat and g.groups == 1 and g.channels % (LINE // itemsize) == 0
    return VECTORS == 2 and by_lines and g.channels * itemsize >= CROWDED_BYTES


def _most_summed(pixel_bytes: int) -> int:
    """Return how many pixels of dW are summed over at once, if those of the input lie so far apart.

    With few registers a line of each, and one of its gradients, are to stay in the first-level cache from tile to tile.
    """
    places = CACHE_BYTES // max(LINE, math.gcd(WAY_BYTES, pixel_bytes))
    return MOST_SUMMED if VECTORS == 4 else min(MOST_SUMMED, max(FEWEST_SUMMED, places // 2))


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


def _correlate_program(g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int) -> Program:
    """Rows are pairs of a channel and a tap, lanes are filters."""
    axes, groups, T = tuple(map(thinned, forward_axes(g))), g.groups, math.prod(g.kernel)
    filters, depth, width = g.filters // groups, g.channels // groups, tile_width(itemsize)
    sizes = (g.batch, *g.output)
    crowds, flows = _crowds(g, itemsize), x_last and grad_last and groups == T == 1 and g.input == g.output
    last = x_last or lanes(itemsize) <= g.channels
    step = math.prod(axis.step for axis in axes)
    if crowds or (flows and VECTORS == 2):
        most = FEW_SUMMED // step
    else:
        pixel = g.channels if x_last else steps_of_box((1, g.channels, 1, 1, 1), True, itemsize)[4]
        most = _most_summed(pixel * itemsize) if last and step == 1 else MOST_SUMMED
    strip = choose_summed_strip(sizes, g.channels * itemsize * step, most, count_tasks(g))
    if per_sample:
        strip = (1, *strip[1:])
    counts = [ceil_div(n, m) for n, m in zip(sizes, strip, strict=True)]
    blocks, pitch = groups * ceil_div(filters, width), panel_pitch(filters, itemsize)
    few = blocks * math.prod(sizes) < 4 * CHUNK_PIXELS
    fewest = PART_TILES // 4 if few else PART_TILES
    panel_bytes = depth * T * pitch * itemsize
    per_task = _even_blocks(blocks, PANELS_BYTES // panel_bytes) if math.prod(sizes) >= TASKS * CHUNK_PIXELS else 1
    blocks_of_tasks = ceil_div(blocks, per_task)
    parts = (
        max(1, min(ceil_div(count_tasks(g), blocks), ceil_div(depth * T, ROWS) // fewest, depth))
        if per_task == 1
        else 1
    )
    packers = REPACKED // max(1, math.prod(g.input_shape)) + 1
    if few and packers >= ENOUGH_TASKS:  # a few more would have to wait for what one packs for all
        parts = min(parts, max(1, packers // blocks))
    wanted = count_tasks(g)
    if x_last != last and not per_sample and (blocks_of_tasks * parts - 1) * math.prod(g.input_shape) > REPACKED:
        own_parts = _parts_that_pack(g, math.prod(counts), blocks * panel_bytes, parts)
        if own_parts:
            per_task, blocks_of_tasks, parts, wanted = blocks, 1, own_parts, SOME_TASKS
    depths = ceil_div(depth, parts)
    parts = ceil_div(depth, depths)
    wanted = ceil_div(wanted, blocks_of_tasks * parts)
    if wanted * blocks * panel_bytes > 8 * PANELS_BYTES:  # fewer chunks, whose sums all have to be added up
        wanted = ceil_div(wanted, 2)
    chunks = choose_chunks(math.prod(counts), math.prod(sizes), g.batch, wanted, per_sample)

    def work(pixels: int, taps: int) -> int:
        return filled(taps * depths) * (pixels + TILE_TERMS) * parts * blocks // ROWS

    packing_work = math.prod(g.input_shape) // lanes(itemsize) // 6
    can_read = x_last == last and not crowds
    _, kinds, packs = choose_padding(g.batch, axes, strip, by_tap, can_read, work, packing_work)
    own_depths = depths if packs and blocks_of_tasks == groups == 1 else 0  # each part packs its own
    together = own_depths == 0 and (blocks_of_tasks * parts - 1) * math.prod(g.input_shape) > REPACKED
    source = make_source(
        g.input_shape, x_last, itemsize, g.batch, axes, strip, last, packs, together, channels=own_depths
    )
    if crowds and source.whole:
        source = line_by_line(source, itemsize)
    rows = _term_rows(depth, T, depths, source.pitches[1] == 1)
    reads, whole = _reads(grad_last, g, itemsize), filters % lanes(itemsize) == 0
    out_steps = steps_of_image(g.output_shape, grad_last)
    tables = Tables()
    numbers = strip_numbers(source, kinds, tables, g.output_shape, out_steps, (1, 1, 1))
    local = (math.prod(strip[1:]), math.prod(strip[2:]), strip[3], 1)
    taken: dict[Any, list[int]] = {}
    first_run, runs = [0], []
    for _, segments in kinds.all():
        for _, run in runs_of(segments):
            taps = tuple(tap for _, _, tap in run[1:])
            met = tap_numbers(g, taps)
            if taps not in taken:
                table = _pairs(source, rows, [source.place(at) for _, at in met], [n for n, _ in met], depths)
                taken[taps] = []
                for part in range(parts):
                    mine = table[part * depths * len(met) : (part + 1) * depths * len(met)]
                    at, to = fill_tiles(mine[:, 0]), fill_tiles(mine[:, 1] * pitch)
                    taken[taps] += [tables.add(at), tables.add(to), at.size]
            at = grid_offsets(run, source.pixel_steps)
            pixels = [grid_offsets(run, local) * p for p in (pitch, whole_lanes(filters, itemsize) % width or width)]
            pixels.append(grid_offsets(run, (out_steps[0], *out_steps[2:])) if reads else pixels[0])
            runs.append((*(tables.add(np.stack([at, to], 1)) for to in pixels), at.size, *taken[taps]))
        first_run.append(len(runs))
    numbers |= {"runs_at": tables.add(first_run), "run_list_at": tables.add(runs)}
    each = blocks * depth * T * pitch
    numbers |= {
        "chunks": chunks, "parts": parts, "groups": groups, "lane_count": filters, "pitch": pitch,
        "group_step": depth * source.pitches[1], "depths": depths, "depth": depth, "taps": T, "each": each, "reads": reads,
    }  # fmt: skip
    as_it_lies = source.pitches[1] == 1 and not source.packs and source.whole is None
    follows = as_it_lies and groups == parts == 1 and g.input == g.output
    own = per_sample or chunks == 1
    room = whole_lanes(source.box_size + (0 if reads and whole else math.prod(strip) * width), 1) + FIRST_PANEL
    numbers |= {
        "own": room if own else 0, "rows_at": tables.add(rows) if own else 0, "per_task": per_task, "own_depths": own_depths,
        "coming": axes[0].span * source.steps[2] + axes[1].span * source.steps[3],
        "x_pixel": source.steps[4] if follows else 0,
        "gradient_pixel": filters if follows and reads and blocks_of_tasks == 1 else 0, "sums_at": 0,
    }  # fmt: skip
    packing = None if own else unpacking(chunks, per_sample, groups, rows.reshape(-1), filters, pitch, each, itemsize)
    return Program(
        correlate, chunks * blocks_of_tasks * parts, CORRELATE.lay(**numbers), tables.whole(),
        room + (per_task * depths * T * pitch if own else 0), count_tasks(g) == 1, source, (1, width, width, 0), packing,
        StripSums(CORRELATE.place("sums_at"), math.prod(counts), groups, filters, pitch),
    )  # fmt: skip


def _weights_program(g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int) -> Program:
    if bands.computes_weights(g, x_last, grad_last, itemsize):
        return bands.weights_program(g, per_sample, itemsize)
    if members_of(g, itemsize):
        return depthwise.weights_program(g, per_sample, x_last, grad_last, itemsize)
    if per_sample or not _swaps(g, itemsize):
        return _correlate_program(g, per_sample, x_last, grad_last, itemsize)
    swapped = dataclasses.replace(g, channels=g.filters, filters=g.channels)
    program = _correlate_program(swapped, False, grad_last, x_last, itemsize)
    turns = g.groups, g.channels // g.groups, g.filters // g.groups
    return dataclasses.replace(program, sums=None, turns=turns, swaps=True)


DIRECT = Algorithm(_program, _weights_program, _flat)


def grad_bias(g: ConvGeometry, grad_output: Array, out: Array) -> None:
    """Equation (4)."""
    bind_grad_bias(g, grad_output, out)(out, memory_of(grad_output)[0])


def bind_grad_bias(g: ConvGeometry, grad_output: Array, out: Array) -> Callable[[Array, Array], None]:
    """Return equation (4) as ``run(out, grad_output)`` with flat arrays, for gradients that lie like this one."""
    if memory_of(grad_output)[1]:

        def add_pixels(out: Array, grad_output: Array) -> None:
            out[...] = sum_of_pixels(grad_output.reshape(-1, g.filters))

        return add_pixels
    per_task = min(64, ceil_div(g.filters, TASKS))
    told = PLANES.lay(batch=g.batch, channels=g.filters, pixels=math.prod(g.output), per_task=per_task)
    alone = grad_output.nbytes <= SERIAL_BYTES
    return lambda out, grad_output: sums(ceil_div(g.filters, per_task), told, NO_TABLE, grad_output, out, alone=alone)


# ---------------------------------------------------------------------------------------------------------------------
# What the plan's table asks
# ---------------------------------------------------------------------------------------------------------------------


def describe(computes: str, geometry: ConvGeometry, itemsize: int) -> str:
    """Say how a pass lies in the rows and lanes of a tile, as the end of a sentence."""
    g = geometry.volume
    if members := members_of(g, itemsize):
        lanes_are = "channels, as these do not mix" if members == 1 else f"filters of groups of {members}"
        slides = f"lanes are {lanes_are}, and tiles slide along rows of pixels"
        if bands.computes_weights(g, False, False, itemsize) and (computes != "grad_input" or max(g.stride) == 1):
            return f"{slides}; if NCHW, lanes are pixels, and tiles slide down columns"
        return f"{slides}, packed unless channels-last"
    if computes == "grad_weight":
        lanes_are = "channels" if _swaps(g, itemsize) else "filters"
        return f"tiles of weights times {lanes_are}, summed over pixels"
    what, used, step = ("filters", g.filters, g.stride) if computes == "output" else ("channels", g.channels, (1, 1, 1))
    used //= g.groups
    phases = ", phase by phase" if computes == "grad_input" and max(g.stride) > 1 else ""
    if lanes_are_pixels(g, step, used, itemsize):
        rows = what if used > 1 else f"{what}, or taps,"
        return f"tiles of {rows} times pixels, as so few ({used}) would leave most of {lanes(itemsize)} lanes empty{phases}"
    if computes == "output" and bands.computes_filters(output_pixels(g, False, False, itemsize)):
        return f"tiles of pixels times {what}; if NCHW, of {what} times pixels"
    return f"tiles of pixels times {what}{phases}"


def adds_to(g: ConvGeometry, itemsize: int, channels_last: bool) -> bool:
    """Say whether dX can be added to what is there: where tiles of pixels are written as they lie."""
    g = g.volume
    return channels_last and not (
        members_of(g, itemsize) or lanes_are_pixels(g, (1, 1, 1), g.channels // g.groups, itemsize)
    )


def pools(g: ConvGeometry, itemsize: int) -> bool:
    """Say whether equation (1) can keep the maxima of windows: where pixels lie in scratch memory channels-last."""
    g = g.volume
    return not (members_of(g, itemsize) or lanes_are_pixels(g, g.stride, g.filters // g.groups, itemsize))


def sums_gradients(g: ConvGeometry, itemsize: int) -> bool:
    """Say whether the pass of dW can compute db, too: where its tasks read whole strips of gradients as vectors."""
    return not (members_of(g, itemsize) or _swaps(g.volume, itemsize))


def lane_flops(computes: str, g: ConvGeometry, itemsize: int) -> float:
    """Count the operations that the tiles perform, lanes without a channel included."""
    groups = 1 if members_of(g, itemsize) else g.groups
    used = (g.channels if computes == "grad_input" else g.filters) // groups
    stride = (1, 1, 1) if computes == "grad_input" else g.volume.stride
    if computes == "grad_weight" or not lanes_are_pixels(g, stride, used, itemsize):
        return g.flops / used * whole_lanes(used, itemsize)
    return float(g.flops)
