"""Direct convolution, between the plan and the kernels: what each pass of a geometry means in tables.

For each pass this file makes the tables that tell the register tiles what to multiply with what, once for each geometry and
memory layout (`fastconv.strips` says how); then it runs the tasks of `fastconv.kernels`, which see arrays and integers only.

A *program* is a task with its tables.  There is a kind for each way to lay channels and pixels into the rows and lanes of a tile:
here that with pixels for rows and channels for lanes; `fastconv.correlation`, `fastconv.planes`, `fastconv.depthwise` and
`fastconv.bands` have the others.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import bands, depthwise, planes
from .algorithm import Algorithm
from .arrays import LINE, Array
from .correlation import swaps, weights_program
from .geometry import ConvGeometry, ceil_div
from .kernels.direct import GATHER, GATHER_RUN, gather
from .kernels.pack import PANEL, pack_panel
from .kernels.sums import PLANES, sum_of_pixels, sums
from .planes import few_lanes_do, lanes_are_pixels
from .programs import (
    FIRST_PANEL,
    NO_TABLE,
    REPACKED,
    SERIAL_BYTES,
    TILE_TERMS,
    Packing,
    Pixels,
    Program,
    grad_input_pixels,
    is_depthwise,
    list_pairs,
    members_of,
    memory_of,
    output_pixels,
    tap_numbers,
    term_rows,
)
from .simd import FETCH_BYTES, ROWS, VECTORS, lanes
from .strips import (
    FEWEST_PIXELS,
    MOST_PIXELS,
    TASKS,
    Ints,
    Kinds,
    Tables,
    by_output,
    candidate_strips,
    choose_padding,
    fill_tiles,
    filled,
    grid_offsets,
    imbalance,
    make_source,
    panel_pitch,
    repeats,
    runs_of,
    steps_of_image,
    strip_numbers,
    tile_width,
    whole_lanes,
)

__all__ = ["DIRECT", "adds_to", "describe", "grad_bias", "is_depthwise", "lane_flops", "pools", "sums_gradients"]

STAGE_BYTES, SMALL_STAGE_BYTES = 400 << 10, 32 << 10
"""Most bytes of a panel that a stage of a sum takes: it is to stay in the second-level cache while a strip's pixels pass.  With
one tap pixels pass quickly, each number of the input being used but once for a panel, which then is to stay in the first."""

PACK_TERMS = 64
"""Fewest terms that a task packs of a block of lanes."""

PACKED, SHARING = 20, 10_000
"""Numbers of a weight that are packed in the time of one of a tile's terms, and how many of these threads wait where they pack it
together."""

PASSED_ON = 6
"""Time to pack an image as a whole, for parts of the lanes, in that of packing it strip by strip: threads wait for each other,
and read what the other has packed, which takes long where they share no cache."""

NEAR_BYTES, READ_AGAIN, READ_ALONG = 1 << 19, 9, 100
"""Bytes of a weight that stays in the second-level cache, and numbers of a larger one that a strip reads again in the time of a
term: where it comes too slowly, for tiles with 16 registers and for those of few pixels, and where it comes in the meantime."""

MOST_AT_ONCE = 450
"""Most pixels that may be one strip, however many channels they have, if the weight is so large: tasks, which differ in lanes,
then pack their own part of it, and read it once."""

ENOUGH_BLOCKS, NARROW = 4, 1.05
"""With fewer blocks of lanes, those of half the width are worth a thought; and the time they take in proportion to whole ones."""


# ---------------------------------------------------------------------------------------------------------------------
# Equations (1) and (2): pixels
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """How pixels are cut into tasks.

    Attributes
    ----------
    strip, kinds, packs
        (images, planes, rows, columns) of a strip, which pixels meet the same taps, and whether its input is packed.
    pitch, parts : int
        Lanes of a block, and parts of the blocks for tasks of their own.
    own : bool
        Whether each task packs the panels that it needs.
    """

    strip: Ints
    kinds: Kinds
    packs: bool
    pitch: int
    parts: int
    own: bool


def _cut(p: Pixels, last: bool) -> Cut:
    """Choose the strips and blocks that are estimated to take least time, if what is read lies channels-``last`` or not."""
    g, itemsize = p.g, p.itemsize
    width, lane_count, size = tile_width(itemsize), p.channels // g.groups, math.prod(g.weight_shape)
    is_large = size * itemsize > NEAR_BYTES
    at_once = is_large and 0 < math.prod(p.out_shape) <= MOST_AT_ONCE * p.channels
    is_far = is_large and (VECTORS == 2 or at_once)
    widest = panel_pitch(lane_count, itemsize)
    packing_work = math.prod(p.in_shape) // lanes(itemsize) // 6

    def run_work(pixels: int, taps: int) -> int:
        return filled(pixels) * (taps * p.depth + TILE_TERMS) * g.groups * ceil_div(lane_count, width) // ROWS

    def try_strip(strip: Ints, pitch: int) -> Iterator[tuple[float, Cut]]:
        strips = math.prod(ceil_div(n, m) for n, m in zip(p.sizes, strip, strict=True))
        own = not p.prepared and (strips - 1) * size <= REPACKED
        work, kinds, packs = choose_padding(
            g.batch, p.axes, strip, by_output, p.in_last == last, run_work, packing_work
        )
        most = min(g.groups * ceil_div(lane_count, pitch), ceil_div(p.tasks, max(1, strips)))
        for parts in dict.fromkeys((most, 1) if packs and 2 * strips >= p.tasks else (most,)):
            cost = work + (PASSED_ON * packing_work if packs and parts > 1 else 0)
            if pitch < widest:
                cost *= NARROW
            if not p.prepared:
                cost += size / PACKED * (strips if own else 1) + (0 if own or p.tasks == 1 else SHARING)
            if is_large and not own:
                cost += strips * size / (READ_AGAIN if is_far else READ_ALONG)
            yield cost * (1 if p.tasks == 1 else imbalance(strips * parts)), Cut(strip, kinds, packs, pitch, parts, own)

    least = FEWEST_PIXELS // 2 // math.prod(len(axis.phases) for axis in p.axes)
    strips = candidate_strips(
        p.sizes, p.in_shape[1] * itemsize * math.prod(p.stride), MOST_PIXELS, p.tasks, max(ROWS, least),
        math.lcm(ROWS, LINE // itemsize) if p.streams and not p.out_last else ROWS,  # parts of planes begin with a line
    )  # fmt: skip
    if at_once:
        strips.append(p.sizes)
    strips = list(dict.fromkeys(map(p.along_windows, strips)))
    few = p.tasks > 1 and g.groups * ceil_div(lane_count, width) < ENOUGH_BLOCKS
    pitches = {widest, whole_lanes(ceil_div(widest, 2), itemsize)} if few else {widest}
    pairs = itertools.product(strips, sorted(pitches, reverse=True))
    tried = itertools.chain.from_iterable(itertools.starmap(try_strip, pairs))
    return min(tried, key=lambda result: result[0])[1]


def _gather_program(p: Pixels) -> Program:
    """Rows are pixels, lanes are channels."""
    g, axes, itemsize, T = p.g, p.axes, p.itemsize, p.T
    depth, groups, lane_count, size = p.depth, g.groups, p.channels // g.groups, math.prod(g.weight_shape)
    # A box lies channels-last but for images of few planes: tiles that read planes as they lie were slower than turning
    # the planes over.
    last = p.in_last or lanes(itemsize) <= p.in_shape[1]
    cut = _cut(p, last)
    strip, kinds, pitch, parts, own = cut.strip, cut.kinds, cut.pitch, cut.parts, cut.own
    blocks, padded = ceil_div(lane_count, pitch), whole_lanes(lane_count, itemsize)
    together = (parts - 1) * math.prod(p.in_shape) > REPACKED or repeats(axes, strip)
    source = make_source(p.in_shape, p.in_last, itemsize, g.batch, axes, strip, last, cut.packs, together)
    stage_bytes = SMALL_STAGE_BYTES if T == max(p.out_step) == 1 else STAGE_BYTES
    stages = max(1, ceil_div(depth * T * pitch * itemsize, stage_bytes))
    depths = max(1, ceil_div(depth, stages))
    rows = term_rows(depth, T, depths, source.pitches[1] == 1)
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
                table = list_pairs(source, rows, [source.place(at) for _, at in met], [n for n, _ in met], depths)
                pairs[taps] = tables.add(table * (1, pitch))
            firsts = (axis.phases[n].first for axis, n in zip(axes, phases, strict=True))
            to = grid_offsets(run, (steps[0], *inside)) + sum(f * s for f, s in zip(firsts, steps[2:], strict=True))
            at = fill_tiles(grid_offsets(run, source.pixel_steps))
            runs.append(
                GATHER_RUN.row(
                    pairs_at=pairs[taps], terms=len(met), rows_at=tables.add(at), targets_at=tables.add(fill_tiles(to)),
                    rows=at.size,
                )
            )  # fmt: skip
        first_run.append(len(runs))
    numbers |= {"runs_at": tables.add(first_run), "run_list_at": tables.add(runs)}
    room = whole_lanes(source.box_size + (0 if writes else p.scratch_size(strip, pitch)), 1) + FIRST_PANEL
    told = {"depth": depth, "taps": T, "lane_count": lane_count, "weight_steps": p.weight_steps, "weight_size": size}
    in_order = p.in_order(rows)
    numbers |= {
        "parts": parts, "groups": groups, "pitch": pitch, "group_step": depth * source.pitches[1],
        "stages": max(1, ceil_div(depth, depths)), "depths": depths, "adds": p.adds, "own": room if own else 0,
        "rows_at": tables.add(in_order) if own else 0, **told, **p.window_numbers,
        "passes": FETCH_BYTES // itemsize * (ROWS // T) if groups == stages == 1 and source.follows else 0,
    }  # fmt: skip
    packing = None
    if not own:
        chunk = max(1, min(depths, ceil_div(depth, ceil_div(TASKS, groups * blocks))), ceil_div(PACK_TERMS, T))
        packing = Packing(
            pack_panel, groups * blocks * ceil_div(depth, chunk), PANEL.lay(pitch=pitch, rows=depth * T, chunk=chunk, **told),
            in_order, groups * blocks * depth * T * pitch,
        )  # fmt: skip
    return Program(
        gather, source.strips * parts, GATHER.lay(**numbers), tables.whole(), room + (depths * T * pitch if own else 0),
        p.tasks == 1, source, (groups, lane_count, padded, tile_width(itemsize)), packing,
    )  # fmt: skip


def _program(p: Pixels) -> Program:
    if bands.computes_whole(p):
        return bands.whole_program(p)
    if bands.computes_columns(p):
        return bands.columns_program(p)
    if bands.computes_filters(p):
        return bands.filters_program(p)
    if members_of(p.g, p.itemsize):
        return depthwise.pixels_program(p)
    as_they_lie = p.in_last and p.out_last and few_lanes_do(p.T)
    if lanes_are_pixels(p.g, p.stride, p.channels // p.g.groups, p.itemsize) and not as_they_lie:
        if not p.weight_last:
            return planes.pixels_program(p)
        program = planes.pixels_program(dataclasses.replace(p, weight_last=False))
        return dataclasses.replace(program, turns=(p.g.filters, p.T, p.g.channels // p.g.groups))
    return _gather_program(p)


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


def _sums_planes(g: ConvGeometry, x_last: bool, grad_last: bool, itemsize: int) -> bool:
    """Say whether lanes are pixels of planes in equation (3): not if channels fill more lanes than filters do."""
    return bands.computes_filter_weights(g, x_last, grad_last, itemsize) and not swaps(g, itemsize)


def _weights_program(g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int) -> Program:
    if bands.computes_whole_weights(g, x_last, grad_last, itemsize):
        return bands.whole_weights_program(g, per_sample, itemsize)
    if bands.computes_weights(g, x_last, grad_last, itemsize):
        return bands.weights_program(g, per_sample, itemsize)
    if _sums_planes(g, x_last, grad_last, itemsize):
        return bands.filter_weights_program(g, per_sample, itemsize)
    if members_of(g, itemsize):
        return depthwise.weights_program(g, per_sample, x_last, grad_last, itemsize)
    if per_sample or not swaps(g, itemsize):
        return weights_program(g, per_sample, x_last, grad_last, itemsize)
    swapped = dataclasses.replace(g, channels=g.filters, filters=g.channels)
    program = weights_program(swapped, False, grad_last, x_last, itemsize)
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
        if computes == "grad_weight":
            whole, falls = (
                says(g, False, False, itemsize) for says in (bands.computes_whole_weights, bands.computes_weights)
            )
        else:
            pixels = (output_pixels if computes == "output" else grad_input_pixels)(g, False, False, itemsize)
            whole, falls = bands.computes_whole(pixels), bands.computes_columns(pixels)
        if whole or falls:
            does = "hold whole planes" if whole else "slide down columns"
            return f"{slides}; if NCHW, lanes are pixels, and tiles {does}"
        return f"{slides}, packed unless channels-last"
    if computes == "grad_weight":
        lanes_are = "channels" if swaps(g, itemsize) else "filters"
        planes = "; if NCHW, lanes are pixels" if _sums_planes(g, False, False, itemsize) else ""
        return f"tiles of weights times {lanes_are}, summed over pixels{planes}"
    what, used, step = ("filters", g.filters, g.stride) if computes == "output" else ("channels", g.channels, (1, 1, 1))
    used //= g.groups
    phases = ", phase by phase" if computes == "grad_input" and max(g.stride) > 1 else ""
    if lanes_are_pixels(g, step, used, itemsize):
        rows = what if used > 1 else f"{what}, or taps,"
        last = f"; if channels-last, of pixels times {what}" if few_lanes_do(math.prod(g.kernel)) else ""
        return f"tiles of {rows} times pixels, as so few ({used}) would leave most of {lanes(itemsize)} lanes empty{phases}{last}"
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
    return not (members_of(g, itemsize) or swaps(g.volume, itemsize))


def lane_flops(computes: str, g: ConvGeometry, itemsize: int) -> float:
    """Count the operations that the tiles perform, lanes without a channel included."""
    groups = 1 if members_of(g, itemsize) else g.groups
    used = (g.channels if computes == "grad_input" else g.filters) // groups
    stride = (1, 1, 1) if computes == "grad_input" else g.volume.stride
    if computes == "grad_weight" or not lanes_are_pixels(g, stride, used, itemsize):
        return g.flops / used * whole_lanes(used, itemsize)
    return float(g.flops)
