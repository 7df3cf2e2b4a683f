"""Winograd's convolution, between the plan and the kernels: what each pass with a small kernel means in tables.

`fastconv.engine` does the same for direct convolution.  Strips are cut along whole tiles; what else they are is the same.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np

from . import bands
from .algorithm import Algorithm
from .cook_toom import KERNELS, Filter
from .geometry import ConvGeometry, ceil_div
from .kernels import winograd as kernels
from .programs import (
    CHUNK_PIXELS,
    Keeping,
    Packing,
    Pixels,
    Program,
    StripSums,
    choose_chunks,
    count_tasks,
    forward_axes,
    grad_input_pixels,
    is_depthwise,
    met_share,
    output_pixels,
    unpacking,
)
from .simd import MARKS, VECTORS, lanes, line_parts
from .simd.words import LINE
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
    make_source,
    panel_pitch,
    steps_of_image,
    strip_numbers,
    tile_width,
    whole_lanes,
)
from .tiles import cells, form_of, meetings_of, phases_of, rows_of_tiles, tiles_at
from .work import FEW_TASKS, FEWEST_TILES, MOST_TILES, Work

__all__ = ["WINOGRAD", "describe", "nanoseconds", "objection", "sums_gradients"]

MOST_DEPTHS = 64
"""Channels of a task of dW: their sums at all points are read and written for each strip."""

PACKED_AGAIN = VECTORS
"""Parts of the blocks for which tasks still pack the input of their strips themselves: with more of them, and with as many narrow
ones, it is packed once, as a whole."""

TURN = 32
"""Depths of a task of dW that are summed up to taps at once where it has a single strip: their sums stay near."""

MOST_SCRATCH = 4
"""Scratch memory in proportion to the arrays of a call; where two threads would need more, "auto" does not take these rows."""

STAGE_BYTES, LEAST_STAGE_BYTES = 512 << 10, 64 << 10
"""Most bytes of a weight at the points that a task evaluates at once; and where scratch memory is short."""

LONG_STAGES = 32
"""Tiles of a strip from which on stages are twice as long, as sums are read and written in each: of blocks of wide tiles, whose
stages have few depths."""

MULTIPLICATION = 0.3 / LINE
"""Nanoseconds for each byte of vectors that are multiplied, which are at most a line of the cache wide: half as wide ones take
half as long.  Not so for rows and columns alone, which with narrow vectors were slower than direct sums as often as not."""

GRADIENTS = 1.1
"""What equations (2) and (3) take in proportion to their estimate where filters have phases: their sums are short, and many."""

FEW_REGISTERS = {"output": 1.25, "grad_input": 1.2, "grad_weight": 1.5}
"""What passes with a stride take more then where the register tile has few vectors, as direct sums lose less by that."""

TASK_FLOPS = 150_000_000
"""Arithmetic that is worth a task of equation (3), if there are FEW_TASKS: each turns its sums at the points to taps, which then
are added up."""


PLAIN_SUMS = 1.5
"""By how much direct sums over lanes of pixels may seem to take longer than tiles of few channels, and still take less time."""


def objection(g: ConvGeometry) -> str | None:
    """Say why Winograd's algorithm is not for a geometry; None if it is."""
    g = g.volume
    filters = tuple(map(Filter, g.kernel[1:], g.stride[1:]))
    if g.kernel[0] * g.stride[0] > 1 or filters not in KERNELS or max(g.dilation[1:]) > 1 or g.padding[0] != (0, 0):
        return (
            "it computes kernels of 1, 3, 5 or 7 rows and columns, but not 7 of both, with stride 1, and 3x3 with stride 2, with "
            "dilation 1"
        )
    if is_depthwise(g):
        return "channels do not mix, so there is no matrix product"
    return None


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
    form, lane_count = form_of(p.g, p.transposed), p.channels // p.g.groups
    window = p.window if p.window[0] else (1, 1)
    work = Work(form, sizes, p.depth, lane_count, p.g.groups, p.itemsize, p.tasks, p.prepared, window=window)
    return work.best()


def in_proportion(program: Program, g: ConvGeometry, itemsize: int) -> bool:
    """Say whether scratch memory is no more than it may be, supposing two threads."""
    return program.scratch_bytes(itemsize, threads=2) <= MOST_SCRATCH * g.bytes(itemsize)


def pixels_of(p: Pixels) -> Pixels:
    """Describe equation (2) by as many pixels as the stride at a time."""
    return dataclasses.replace(p, axes=cells(p.g)[0]) if p.transposed else p


def _multiply_program(p: Pixels) -> Program:
    """Evaluate the weight in large stages, in small ones, or of narrow blocks: what scratch memory allows."""
    p = pixels_of(p)
    work = work_of(p)
    choices = (work, False), (work, True), (dataclasses.replace(work, narrow=True), True)
    programs = []
    for choice in choices:
        program = _cut_program(p, *choice)
        programs.append(dataclasses.replace(program, keeping=None))
        for smaller in (program, programs[-1]):
            if in_proportion(smaller, p.g, p.itemsize):
                return smaller
    return programs[0]


def _cut_program(p: Pixels, work: Work, short: bool) -> Program:
    """Cut the pass into strips, of whose weight ``short`` stages need the least scratch memory."""
    g, itemsize, depth, groups = p.g, p.itemsize, p.depth, p.g.groups
    n = lanes(itemsize)
    lane_count = p.channels // groups
    pitch, blocks = work.pitch, work.blocks // groups
    form, strip = work.form, work.strip()
    planes, weights = math.prod(form.read.values), math.prod(form.weights)
    _, parts = work.split(strip)
    kinds, source = _kinds_and_source(g, p.axes, p.in_shape, p.in_last, itemsize, strip, parts > PACKED_AGAIN)
    first = cells(g)[1] if p.transposed else (0, 0, 0)
    tables = Tables()
    out_steps = steps_of_image(p.out_shape, p.out_last)
    in_parts = line_parts() > 1
    if in_parts:
        # Such vectors become lines in scratch.  That saves less than it takes in planes, or of pixels apart.
        streams = p.streams and not (form.strides or not p.out_last or line_parts() > VECTORS)
    else:
        # Where tasks compute parts of each pixel, a core would fetch others' ahead, which these then miss.
        streams = p.streams or (parts > 1 and p.out_last and p.can_stream)
    numbers = strip_numbers(source, kinds, tables, p.out_shape, out_steps, (1, 1, 1), streams)
    writes = p.writes and not (streams and in_parts)
    pixel = whole_lanes(depth, itemsize)
    count = strip[0] * form.count(*strip[2:])
    values, products = odd_lines(count * pixel, itemsize), odd_lines(count * pitch, itemsize)
    size, own = math.prod(g.weight_shape), work.owns(strip)
    is_long = form.strides or (VECTORS > 2 and count >= LONG_STAGES)
    stage_bytes = LEAST_STAGE_BYTES if short else STAGE_BYTES * (2 if is_long else 1)
    depths = min(depth, max(n, stage_bytes // (weights * pitch * itemsize) // n * n)) if own else depth
    plane = odd_lines(depths * pitch, itemsize)
    # Of each product the pairs of a phase and a depth, stage by stage, how many phases, and the first of its values and weights.
    terms = np.stack([np.arange(depth), np.arange(depth) % depths * pitch], 1)
    summed = []
    for phases in phases_of(form):
        offsets = (np.array(phases) - phases[0]) * (values, plane)
        pairs = [offsets[:, None] + terms[some : some + depths] for some in range(0, depth, depths)]
        value, weight = phases[0]
        at = tables.add(np.concatenate([stage.reshape(-1, 2) for stage in pairs]))
        summed.append({"pairs_at": at, "phases": len(phases), "value": value, "weight": weight})
    lists = []
    laid: dict[bytes, dict[str, int]] = {}  # most points are used by the same tiles
    for _, segments in kinds.all():
        tiles = tiles_at(sizes_of(segments), form)
        for (points, _), summing in zip(form.made.planes, summed, strict=True):
            key = tiles[points].tobytes()
            if key not in laid:
                used = fill_tiles(np.flatnonzero(tiles[points]))
                laid[key] = {
                    "rows_at": tables.add(used * pixel),
                    "targets_at": tables.add(used * pitch),
                    "rows": used.size,
                }
            lists.append(kernels.MULTIPLY_RUN.row(**laid[key], **summing))
    numbers |= {"runs_at": 0, "run_list_at": tables.add(lists)}
    room = Room(MARKS + source.box_size)
    # The row of each (depth, tap): in the order in which the input meets the taps.
    place = np.arange(form.terms)[:: -1 if p.transposed else 1]
    in_order = p.in_order(np.arange(depth)[:, None] * form.terms + place)
    told = {
        "depth": depth, "taps": form.terms, "lane_count": lane_count, "weight_steps": p.weight_steps, "weight_size": size,
    }  # fmt: skip
    numbers |= {
        "values_at": room.take(planes * values), "values": values,
        "products_at": room.take(math.prod(form.made.values) * products), "products": products,
        "columns_at": room.take(rows_of_tiles(form, strip) * n),
        "pixels_at": room.take(0 if writes else math.prod(strip) * math.prod(form.made.steps) * pitch),
        "group_step": depth * source.pitches[1], **form.numbers(),
        "first": first[1:], "parts": parts, "by_strips": work.by_strips(strip), "groups": groups,
        "stages": ceil_div(depth, depths), "depths": depths,
        "own": room.take(weights * plane) if own else 0, "own_step": 0, "plane": plane,
        "taps_at": room.take(form.terms * kernels.DEPTHS * pitch if own else 0),
        "rows_at": tables.add(in_order), "pitch": pitch, **told, **p.window_numbers,
    }  # fmt: skip
    packing = keeping = None
    if not own:
        if keepers := work.keepers(strip):
            larger = Room(room.size)
            kept = {"own": larger.take(groups * blocks * weights * plane), "own_step": weights * plane}
            kept["taps_at"] = larger.take(form.terms * kernels.DEPTHS * pitch)
            keeping = Keeping(keepers, kernels.MULTIPLY.lay(**(numbers | kept)), larger.size)
        chunk = max(kernels.DEPTHS, ceil_div(depth, ceil_div(TASKS, groups * blocks)))
        packing = Packing(
            kernels.transform_weight, groups * blocks * ceil_div(depth, chunk),
            kernels.TRANSFORM.lay(
                pitch=pitch, chunk=chunk, plane=plane, kernel=form.number, kernel_taps=form.taps, weights=form.weights, **told
            ),
            in_order, groups * blocks * weights * plane, form.terms * kernels.DEPTHS * pitch,
        )  # fmt: skip
    return Program(
        kernels.multiply, source.strips * parts, kernels.MULTIPLY.lay(**numbers), tables.whole(), room.size, p.tasks == 1, source,
        (groups, lane_count, whole_lanes(lane_count, itemsize), tile_width(itemsize)), packing, keeping=keeping,
    )  # fmt: skip


def _weights_program(g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int) -> Program:
    """Take strips, then depths, so few that scratch memory stays in proportion, supposing two threads; or sum directly."""
    if _sums_directly(g, x_last, grad_last, itemsize):
        return bands.filter_weights_program(g, per_sample, itemsize)
    tiles = [(most, MOST_DEPTHS) for most in range(MOST_TILES, FEWEST_TILES, -FEWEST_TILES)]
    for most, depths in (*tiles, *((FEWEST_TILES, MOST_DEPTHS >> n) for n in range(3))):
        program = _correlate_program(g, per_sample, x_last, grad_last, itemsize, most, depths)
        if in_proportion(program, g, itemsize):
            break
    return program


def _work_of_weights(g: ConvGeometry, itemsize: int) -> Work:
    """Describe the work of equation (3)."""
    channels, filters = g.channels // g.groups, g.filters // g.groups
    return Work(form_of(g), (max(1, g.batch), *g.output), channels, filters, g.groups, itemsize, count_tasks(g))


@functools.lru_cache(maxsize=1024)
def _sums_directly(g: ConvGeometry, x_last: bool, grad_last: bool, itemsize: int) -> bool:
    """Say whether equation (3) of NCHW images takes less time where pixels are lanes and nothing is turned over."""
    if not bands.computes_filter_weights(g, x_last, grad_last, itemsize):
        return False
    work = _work_of_weights(g, itemsize)
    turned = work.cost(work.strip()) + bands.turning_work(g, itemsize)
    return bands.filter_weights_work(g, itemsize) < PLAIN_SUMS * turned


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
    if form.strides and count_tasks(g) > 1:  # tiles are large, and there may be few strips of them
        most = min(most, ceil_div(sizes[0] * form.count(*sizes[2:]) * blocks * parts, FEW_TASKS))
    strip = Work(form, sizes, depths, filters, 1, itemsize, 1).strip(most)
    if per_sample:
        strip = (1, *strip[1:])
    counts = [ceil_div(a, b) for a, b in zip(sizes, strip, strict=True)]
    strips = math.prod(counts)
    wanted = ceil_div(min(count_tasks(g), max(FEW_TASKS, g.flops // TASK_FLOPS)), blocks * parts)
    chunks = choose_chunks(strips, math.prod(sizes), g.batch, wanted, per_sample)
    kinds, source = _kinds_and_source(g, axes, g.input_shape, x_last, itemsize, strip, blocks * parts > 1)
    tables = Tables()
    numbers = strip_numbers(source, kinds, tables, g.output_shape, steps_of_image(g.output_shape, grad_last), (1, 1, 1))
    pixel = whole_lanes(depths, itemsize)
    turn = min(depths, TURN) if chunks == strips else depths
    turns = ceil_div(depths, turn)
    rows_of_turns = []
    for part, some in itertools.product(range(parts), range(turns)):
        left = min(depths, depth - part * depths) - some * turn
        rows = fill_tiles(np.arange(max(1, min(turn, left))))
        rows_of_turns.append(
            kernels.TURN.row(
                rows_at=tables.add(some * turn + rows), targets_at=tables.add(rows * pitch), rows=rows.size
            )
        )
    count = strip[0] * form.count(*strip[2:])
    values, gradients, products = (odd_lines(size, itemsize) for size in (count * pixel, count * pitch, turn * pitch))
    # Of each value of the weight the pairs that it is summed over, how many, and the first of the values of both images.
    lists = []
    laid: dict[Any, Ints] = {}
    for _, segments in kinds.all():
        tiles = tiles_at(sizes_of(segments), form).reshape(math.prod(form.points), -1)
        for met in meetings_of(form):
            offsets = (np.array(met) - met[0]) * (values, gradients)
            key = offsets.tobytes(), *(tiles[point].tobytes() for _, point in met)
            if key not in laid:
                all_pairs = np.concatenate(
                    [
                        offset + np.flatnonzero(tiles[point])[:, None] * (pixel, pitch)
                        for offset, (_, point) in zip(offsets, met, strict=True)
                    ]
                )
                laid[key] = tables.add(all_pairs), len(all_pairs)
            pairs_at, pairs = laid[key]
            value, gradient = met[0]
            lists.append(kernels.CORRELATE_RUN.row(pairs_at=pairs_at, pairs=pairs, value=value, gradient=gradient))
    numbers |= {"runs_at": 0, "run_list_at": tables.add(lists)}
    each = blocks * depth * form.terms * pitch
    own = chunks == 1
    room = Room(MARKS + source.box_size)
    taps = turn * form.terms * pitch if own else 0
    planes = math.prod(form.read.values) * values
    values_at = room.take(max(planes, taps) if turns == 1 else planes)  # the last taps lie where the values did
    numbers |= {
        "values_at": values_at, "values": values,
        "products_at": room.take(math.prod(form.weights) * products), "products": products,
        "columns_at": room.take(rows_of_tiles(form, strip) * n),
        "pixels_at": room.take(0 if grad_last else math.prod(strip) * pitch),
        "group_step": depth * source.pitches[1], **form.numbers(),
        "gradients_at": room.take(math.prod(form.points) * gradients), "gradients": gradients, "chunks": chunks,
        "parts": parts, "groups": groups, "depths": depths, "depth": depth, "filters": filters, "pitch": pitch, "each": each,
        "own": own, "rows_at": tables.add(np.arange(turn * form.terms)),
        "taps_at": values_at if turns == 1 else room.take(taps),
        "turns_at": tables.add(rows_of_turns), "turn": turn, "turns": turns, "sums_at": 0,
    }  # fmt: skip
    rows = np.arange(depth * form.terms)
    packing = None if own else unpacking(chunks, per_sample, groups, rows, filters, pitch, each, itemsize)
    return Program(
        kernels.correlate, chunks * blocks * parts, kernels.CORRELATE.lay(**numbers), tables.whole(), room.size,
        count_tasks(g) == 1, source, (1, pitch, whole_lanes(pitch, itemsize), 0), packing,
        StripSums(kernels.CORRELATE.place("sums_at"), strips, groups, filters, pitch),
    )  # fmt: skip


WINOGRAD = Algorithm(_multiply_program, _weights_program)


# ---------------------------------------------------------------------------------------------------------------------
# What the plan's table asks
# ---------------------------------------------------------------------------------------------------------------------


def describe(computes: str, geometry: ConvGeometry, itemsize: int) -> str:
    """Say how a pass is computed, as the end of a sentence."""
    form = form_of(geometry.volume, computes == "grad_input")
    (tile_y, tile_x), (steps_y, steps_x), (more_y, more_x) = form.tile, form.made.steps, form.plain.more
    tiles = f"tiles of {tile_y * steps_y}x{tile_x * steps_x} pixels at {tile_y + more_y}x{tile_x + more_x} points"
    phases = len(form.down.phases), len(form.across.phases)
    if max(phases) > 1:
        tiles += f" of {phases[0]}x{phases[1]} phases"
    if computes != "grad_weight":
        return tiles
    planes = "; if NCHW, direct sums" if _sums_directly(geometry.volume, False, False, itemsize) else ""
    return f"{tiles}, summed over tiles{planes}"


def sums_gradients(g: ConvGeometry, itemsize: int) -> bool:
    """Say whether the pass of dW can compute db, too: a vector that is not whole is read from lanes before it."""
    return g.filters // g.groups >= lanes(itemsize)


@functools.lru_cache(maxsize=4096)
def nanoseconds(computes: str, geometry: ConvGeometry, itemsize: int) -> float:
    """Estimate the time of a pass, in the measure of the direct rows' estimate; no time is short if it takes too much memory."""
    g = geometry.volume
    if computes == "grad_weight":
        work = _work_of_weights(g, itemsize)
    else:
        describe = grad_input_pixels if computes == "grad_input" else output_pixels
        work = work_of(pixels_of(describe(g, True, True, itemsize)))
    if WINOGRAD.scratch_bytes(computes, g, itemsize, threads=2) > MOST_SCRATCH * g.bytes(itemsize):
        return math.inf
    strip = work.strip()
    tasks = math.prod(work.split(strip))
    width = LINE if 1 in work.form.points else lanes(itemsize) * itemsize
    time = MULTIPLICATION * width * work.cost(strip) * (ceil_div(tasks, 2) * 2 / tasks)
    if work.form.strides:  # direct sums leave out taps on padding, of which their estimate does not tell
        time *= (1.0 if computes == "output" else GRADIENTS) / met_share(g)
        if VECTORS < 4:
            time *= FEW_REGISTERS[computes]
    if computes == "grad_input":  # tiles that end in pixels that do not exist are copied
        time *= math.prod(s * n for s, n in zip(work.form.made.steps, work.sizes[2:], strict=True)) / math.prod(
            g.input[1:]
        )
    return 30_000 + time
