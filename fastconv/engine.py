"""Direct convolution, between the plan and the kernels: what a geometry means in offsets.

For each pass this file cuts the output into strips and makes the offset tables that tell the register tiles what to multiply
with what, once for each geometry and memory layout; then it calls the kernels (`fastconv.kernels.pack` and
`fastconv.kernels.direct`), which see arrays and integers only.

Two tables say it all: where in the input the pixels of a strip lie, and how far from there the pairs of a channel and a tap
lead.  Stride, dilation, padding, groups, layout and dimension are in these numbers.

A depthwise convolution, where every channel is a group with one filter, is the same with other lanes: a vector of channels
is multiplied with a vector of weights, and nothing is summed over channels.  To the drivers it is one group without depth.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import config

from .arrays import Array
from .geometry import ConvGeometry, ceil_div, phase_taps
from .kernels.direct import PHASE, correlate, gather
from .kernels.pack import pack_boxes, pack_panels, unpack_panels
from .kernels.sums import sums
from .scratch import buffer
from .simd import ROWS, VECTORS, lanes

__all__ = ["grad_bias", "grad_input", "grad_weight", "is_depthwise", "lane_flops", "output", "scratch_bytes"]

Ints = tuple[int, ...]

TASKS = 16
"""Tasks to split a pass into at least, where it has the work: the split must not ask for the number of cores."""

FEWEST_PIXELS, MOST_PIXELS, MOST_SUMMED = 96, 384, 256
"""Pixels of a strip: enough to use a panel for, few enough to share among cores; and where they are summed over, so few that
their part of a block of filters, 64 bytes a pixel with AVX2, stays in the first-level cache."""

STRIP_BYTES = 2**18
"""Most bytes of input in a strip, without what its neighbours need too: it is to stay in the second-level cache."""

DEPTHS = 64
"""Channels of a pixel that a sum takes in turn, before it goes on to the next tap: four lines of the cache.  To sum the
taps of one channel first is slower, and whole pixels at once would have packing write to places all over a panel."""

PACK_DEPTHS = 32
"""Depths of the weight that a task packs, of all lanes."""

CHUNK_PIXELS = 256
"""Fewest pixels per chunk of dW: each chunk has sums of its own, which must not cost more than they save."""

SERIAL_FLOPS, SERIAL_BYTES = 1_000_000, 100_000
"""Up to this much arithmetic, or copying, a kernel runs on the calling thread alone: waking others takes longer."""


def is_depthwise(g: ConvGeometry) -> bool:
    """Say whether every channel is a group of its own, with one filter."""
    return g.groups == g.channels == g.filters > 1


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def _share(alone: bool, kernel: Any, tasks: int, *arguments: Any) -> None:
    """Run all tasks of a kernel: on the calling thread alone, or on all threads."""
    (kernel.alone if alone else kernel)(tasks, *arguments)


def _share_scratch(alone: bool, kernel: Any, tasks: int, size: int, dtype: Any, *arguments: Any) -> None:
    """Run all tasks of a kernel as `_share` does, with scratch memory of ``size`` numbers for each thread."""
    threads = 1 if alone else min(config.NUMBA_NUM_THREADS, tasks)
    scratch = buffer("strips", threads * size, dtype).reshape(threads, size)
    _share(alone, kernel, tasks, scratch, *arguments)


def _small(array: Array) -> bool:
    return array.nbytes <= SERIAL_BYTES


def _memory(array: Array) -> tuple[Array, bool]:
    """Return an image's memory as a flat array, and whether it lies channels-last, as every image of one pixel does."""
    if array.flags.c_contiguous:
        return array.reshape(-1), math.prod(array.shape[2:]) == 1
    return array.transpose(0, 2, 3, 4, 1).reshape(-1), True


def _image_steps(shape: Ints, channels_last: bool) -> Ints:
    """Distance of neighbours along (batch, channels, depth, height, width) in an image of this shape."""
    _, C, D, H, W = shape
    if channels_last:
        return (D * H * W * C, 1, H * W * C, W * C, C)
    return (C * D * H * W, D * H * W, H * W, W, 1)


def _box_steps(box: Ints, channels_last: bool, itemsize: int) -> Ints:
    """Distance of neighbours in a packed box.

    Planes, or pixels of many channels, lie an odd number of cache lines apart: at a power of two, all that a tile reads at
    once would compete for a few lines of the cache.
    """
    _, C, D, H, W = box
    line = 64 // itemsize
    if channels_last:
        pixel = (ceil_div(C, line) | 1) * line if 4 * line < C else C
        return (D * H * W * pixel, 1, H * W * pixel, W * pixel, pixel)
    plane = (ceil_div(D * H * W, line) | 1) * line
    return (C * plane, plane, H * W, W, 1)


def _table(values: Any) -> Array:
    return np.array(values, np.int64).reshape(-1)


def _width(itemsize: int) -> int:
    """Lanes in the widest tile."""
    return VECTORS * lanes(itemsize)


def _whole(count: int, itemsize: int) -> int:
    """Numbers in the vectors that hold so many lanes."""
    return ceil_div(count, lanes(itemsize)) * lanes(itemsize)


@functools.lru_cache(maxsize=256)
def _flat(g: ConvGeometry, images_too: bool) -> ConvGeometry:
    """Lay a 1x1 convolution of stride 1 out as one row of pixels, which strips can cut anywhere; also over all images."""
    if math.prod(g.kernel) * math.prod(g.stride) > 1 or g.input != g.output:
        return g
    pixels, batch = math.prod(g.input), g.batch
    if images_too:
        pixels, batch = pixels * batch, min(1, batch)
    along = (1, 1, pixels)
    return dataclasses.replace(g, batch=batch, input=along, output=along, padding=((0, 0),) * 3)


# ---------------------------------------------------------------------------------------------------------------------
# Strips
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """How the kernels find the input of a strip of (images, planes, rows, columns).

    Strips stand ``counts`` along each axis.  A strip that begins at pixel p begins at pixel ``step*p - left`` of an input with
    ``shape`` and ``steps``.  If it ``packs``, that part is copied, with padding, into a ``box`` with distances ``box_steps``.
    If ``whole`` is given, (shape, steps, left) of the input with its padding, the input is first packed into that: several
    tasks need each strip.
    """

    strip: Ints
    counts: Ints
    shape: Ints
    steps: Ints
    left: Ints
    step: Ints
    packs: bool
    box: Ints
    box_steps: Ints
    slack: int
    whole: tuple[Ints, Ints, Ints] | None

    @property
    def strips(self) -> int:
        """Count the strips."""
        return math.prod(self.counts)

    @property
    def pitches(self) -> Ints:
        """Distance of neighbours in what the tiles read."""
        return self.box_steps if self.packs else self.steps

    @property
    def box_size(self) -> int:
        """Numbers of scratch memory for a box."""
        return self.box[0] * self.box_steps[0] + self.slack if self.packs else 0

    def pixels(self, sizes: Ints) -> Array:
        """Where the pixels of a strip of ``sizes`` (images, planes, rows, columns) lie."""
        batch, _, *steps = self.pitches
        along = (batch, *(s * step for s, step in zip(self.step, steps, strict=True)))
        return _offsets(sizes, along)

    def pairs(self, depth: int, places: list[Ints]) -> tuple[Array, Array]:
        """How far the pairs of a channel and a tap lie from a pixel, and the row of that table for each (channel, tap).

        Neighbours in memory are neighbours in the table: the taps of a plane, or DEPTHS channels of a pixel.
        """
        _, channel, *steps = self.pitches
        taps = np.array([sum(p * step for p, step in zip(place, steps, strict=True)) for place in places], np.int64)
        offsets = (np.arange(depth)[:, None] * channel + taps).reshape(-1)
        numbers = np.arange(offsets.size).reshape(depth, -1)
        order = numbers.reshape(-1)
        if channel == 1:
            order = np.concatenate([numbers[k : k + DEPTHS].T.reshape(-1) for k in range(0, depth, DEPTHS)])
        rows = np.empty_like(order)
        rows[order] = np.arange(order.size)
        return offsets[order], rows.reshape(depth, -1)

    def arguments(self) -> tuple[Any, ...]:
        """What the drivers are told."""
        return (
            self.shape,
            self.steps,
            self.packs,
            self.box,
            self.box_steps,
            self.left,
            self.step,
            self.strip,
            self.counts,
        )


def _offsets(sizes: Ints, steps: Ints) -> Array:
    """Offsets of all places of a grid in order."""
    result = np.zeros(1, np.int64)
    for n, step in zip(sizes, steps, strict=True):
        result = (result[:, None] + step * np.arange(n)).reshape(-1)
    return result


def _strip(sizes: Ints, pixel_bytes: int, most: int) -> Ints:
    """Choose (images, planes, rows, columns) of a strip, of all pixels with ``sizes``: whole rows, planes, images if it can."""
    if math.prod(sizes) == 0:
        return (1, 1, 1, 1)
    least, most = FEWEST_PIXELS, min(most, max(ROWS, STRIP_BYTES // pixel_bytes))
    wanted = min(max(math.prod(sizes) // TASKS, least), most)
    strip = [1, 1, 1, 1]
    for axis in (3, 2, 1, 0):
        inside, n = math.prod(strip), sizes[axis]
        if n * inside <= wanted:
            strip[axis] = max(1, n)
            continue
        # About the wanted size, whichever fills tiles best and shares evenly.
        about = max(1, round(wanted / inside))
        step = ROWS if axis == 3 and about >= ROWS else 1
        choices = range(ceil_div(max(1, 2 * about // 3), step) * step, max(1, min(n, 4 * about // 3)) + 1, step)
        strip[axis] = min(
            choices or (min(about, n),), key=lambda size: (_waste(n, size, inside, math.prod(sizes[:axis])), -size)
        )
        break
    return tuple(strip)


def _waste(n: int, size: int, inside: int, others: int) -> float:
    """Work per pixel, of the busiest of two or four threads, if n*inside pixels are cut into strips of a size."""
    whole, rest = divmod(n, size)
    tiles = others * (whole * ceil_div(size * inside, ROWS) + ceil_div(rest * inside, ROWS))
    strips = others * (whole + (rest > 0))
    tasks = strips * ceil_div(TASKS, strips)  # few strips are shared by tasks that compute different lanes
    return tiles * ROWS / (n * inside * others) * sum(ceil_div(tasks, t) * t / tasks for t in (2, 4))


def _source(
    shape: Ints, channels_last: bool, itemsize: int, sizes: Ints, step: Ints, left: Ints, span: Ints, strip: Ints,
    tasks_each: int, depthwise: bool,
) -> _Source:  # fmt: skip
    """Describe how an image of this shape is read, for ``tasks_each`` tasks that compute different lanes of a strip.

    ``sizes`` are all pixels to compute, which lie ``step`` apart in the input, ``span`` is how far a pixel's taps reach, ``left``
    the padding in front of the first.
    """
    _, C, *inside = shape
    # A box lies channels-last but for images of few planes: tiles that read planes as they lie were slower than turning
    # the planes over.  In a depthwise convolution lanes are channels of the input.
    last = channels_last or depthwise or lanes(itemsize) <= C
    slack = _width(itemsize) if depthwise and C % lanes(itemsize) else 0

    def box(sizes: Ints) -> Ints:
        extents = ((n - 1) * s + reach + 1 for n, s, reach in zip(sizes[1:], step, span, strict=True))
        return (sizes[0], C, *extents)

    part, everything = box(strip), box(sizes)
    pads = any(left) or any(n > m for n, m in zip(everything[2:], inside, strict=True))
    packs = pads or slack > 0 or last != channels_last
    counts = tuple(ceil_div(n, m) for n, m in zip(sizes, strip, strict=True))
    steps, whole = _image_steps(shape, channels_last), None
    if packs and tasks_each > 1:
        whole = (everything, _box_steps(everything, last, itemsize), left)
        shape, steps, left, packs = everything, whole[1], (0, 0, 0), False
    part_steps = _box_steps(part, last, itemsize)
    return _Source(strip, counts, shape, steps, left, step, packs, part, part_steps, slack, whole)


def _prepared(source: _Source, x: Array, shape: Ints, channels_last: bool) -> Array:
    """Return the input as the drivers take it: as it is, or packed as a whole."""
    if source.whole is None:
        return x
    box, steps, left = source.whole
    packed = buffer("image", box[0] * steps[0] + source.slack, x.dtype)
    packed[box[0] * steps[0] :] = 0
    _share(
        _small(packed), pack_boxes, box[0] * box[2] * box[3],
        x, shape, _image_steps(shape, channels_last), left, packed, box, steps,
    )  # fmt: skip
    return packed


# ---------------------------------------------------------------------------------------------------------------------
# Equations (1) and (2): pixels
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Phase:
    """Output pixels that meet the same taps: all of them in equation (1), one residue class in equation (2).

    ``taps`` are the numbers of the taps in the weight, ``places`` lead to their factors from where a strip's input begins,
    ``first`` and ``sizes`` say where the pixels lie.
    """

    taps: list[int]
    places: list[Ints]
    first: Ints
    sizes: Ints


@dataclass(frozen=True)
class _Pass:
    """What a driver and the packing of its panels are told, beside the arrays of a call."""

    source: _Source
    alone: bool
    tasks: int
    scratch: int
    arguments: tuple[Any, ...]
    panel_tasks: int
    panel_size: int
    panel_arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _Gather(_Pass):
    """Equation (1) or (2): ``start_shape`` are the groups, and the lanes of each up to whole vectors."""

    lane_count: int
    start_shape: tuple[int, int]


def _plan_gather(
    g: ConvGeometry, in_shape: Ints, in_last: bool, in_step: Ints, left: Ints, span: Ints, phases: list[_Phase],
    channels: int, depth: int, weight_steps: Ints, out_shape: Ints, out_last: bool, out_step: Ints, itemsize: int,
) -> _Gather:  # fmt: skip
    """Cut the output into strips and make the tables of a pass that computes ``channels`` from sums of ``depth``.

    ``in_step``, ``left`` and ``span`` say what the pixels of the phases, of which the first has most, need: see `_source`.
    ``weight_steps`` are the distances of groups, lanes and depths in the weight.
    """
    width, T = _width(itemsize), math.prod(g.kernel)
    depthwise = is_depthwise(g)
    groups = 1 if depthwise else g.groups
    lane_count = channels // groups
    sizes = (g.batch, *phases[0].sizes)
    strip = _strip(sizes, in_shape[1] * itemsize * math.prod(in_step), MOST_PIXELS)
    strips = math.prod(ceil_div(n, m) for n, m in zip(sizes, strip, strict=True))
    parts = min(groups * ceil_div(lane_count, width), ceil_div(TASKS, max(1, strips)))
    source = _source(in_shape, in_last, itemsize, sizes, in_step, left, span, strip, parts, depthwise)
    out_steps = _image_steps(out_shape, out_last)
    # Within a strip, output pixels lie as in the output, or else one after another in scratch.
    extents = tuple(min(s * n, m) for s, n, m in zip(out_step, source.strip[1:], out_shape[2:], strict=True))
    steps = out_steps if out_last else _image_steps((1, width, *extents), True)
    along = (steps[0], *(s * step for s, step in zip(out_step, steps[2:], strict=True)))
    rows, pairs, sources, targets = [], [_table([])], [_table([])], [_table([])]
    panel_of, terms_of, row_of = np.zeros(T, np.int64), np.zeros(T, np.int64), np.full((depth, T), -1)
    pairs_at = pixels_at = panel_at = 0
    for phase in phases:
        strip = (source.strip[0], *map(min, source.strip[1:], phase.sizes))
        terms = depth * len(phase.taps)
        offsets, row_of[:, phase.taps] = source.pairs(depth, phase.places)
        pairs.append(offsets)
        sources.append(source.pixels(strip))
        targets.append(_offsets(strip, along) + sum(p * s for p, s in zip(phase.first, steps[2:], strict=True)))
        rows.append((terms, pairs_at, pixels_at, panel_at, *phase.sizes, *strip[1:]))
        panel_of[phase.taps], terms_of[phase.taps] = panel_at, terms
        pairs_at, pixels_at = pairs_at + terms, pixels_at + math.prod(strip)
        panel_at += groups * _whole(lane_count, itemsize) * terms
    return _Gather(
        source,
        g.flops <= SERIAL_FLOPS,
        source.strips * parts,
        source.box_size + (0 if out_last else source.strip[0] * math.prod(extents) * width),
        (
            *source.arguments(), parts, np.concatenate(pairs), np.array(rows, np.int64).reshape(-1, len(PHASE)),
            np.concatenate(sources), np.concatenate(targets), groups, lane_count,
            0 if depthwise else depth * source.pitches[1], width if depthwise else None, out_shape, out_steps, out_step,
        ),
        groups * ceil_div(depth, PACK_DEPTHS),
        panel_at,
        (weight_steps, depth, PACK_DEPTHS, T, lane_count, panel_of, terms_of, row_of.reshape(-1)),
        lane_count,
        (groups, _whole(lane_count, itemsize)),
    )  # fmt: skip


def _taps(g: ConvGeometry) -> list[Ints]:
    """Where the taps lie in the padded image, from a pixel's first."""
    return [
        tuple(d * k for d, k in zip(g.dilation, tap, strict=True)) for tap in itertools.product(*map(range, g.kernel))
    ]


def _reach(g: ConvGeometry) -> tuple[Ints, Ints]:
    """Padding in front, and how far a pixel's taps reach."""
    return tuple(left for left, _ in g.padding), tuple(d * (f - 1) for d, f in zip(g.dilation, g.kernel, strict=True))


@functools.lru_cache(maxsize=256)
def _plan_output(g: ConvGeometry, x_last: bool, out_last: bool, itemsize: int) -> _Gather:
    taps, depth = _taps(g), g.channels // g.groups
    phase = _Phase(list(range(len(taps))), taps, (0, 0, 0), g.output)
    filters = g.filters // (1 if is_depthwise(g) else g.groups)
    weight_steps = (filters * depth * len(taps), depth * len(taps), len(taps))
    return _plan_gather(
        g, g.input_shape, x_last, g.stride, *_reach(g), [phase], g.filters, depth, weight_steps, g.output_shape, out_last,
        (1, 1, 1), itemsize,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _plan_grad_input(g: ConvGeometry, grad_last: bool, out_last: bool, itemsize: int) -> _Gather:
    # Along each axis, for each phase: its first pixel, its number of pixels t, and for each of its taps k the output
    # i = t + shift that it leads to.
    axes: list[list[tuple[int, int, list[tuple[int, int]]]]] = []
    for n, f, s, d, (front, _) in zip(g.input, g.kernel, g.stride, g.dilation, g.padding, strict=True):
        phases = []
        for p in range(min(s, n)):
            k0, step = phase_taps(p, s, d, front)
            taps = [(k, (p + front - d * k) // s) for k in range(max(0, k0), f, step) if k0 >= 0]
            phases.append((p, ceil_div(n - p, s), taps[::-1]))  # so that shifts ascend
        axes.append(phases)
    shifts = [[shift for _, _, taps in phases for _, shift in taps] for phases in axes]
    left = tuple(-min(along, default=0) for along in shifts)
    span = tuple(max(along, default=0) - min(along, default=0) for along in shifts)
    _, height, columns = g.kernel
    result = []
    for along in itertools.product(*axes):
        meet = list(itertools.product(*(taps for _, _, taps in along)))
        places = [tuple(i + before for (_, i), before in zip(at, left, strict=True)) for at in meet]
        taps_met = [(kz * height + ky) * columns + kx for (kz, _), (ky, _), (kx, _) in meet]
        result.append(_Phase(taps_met, places, tuple(p for p, _, _ in along), tuple(count for _, count, _ in along)))
    T, depth = math.prod(g.kernel), g.filters // g.groups
    channels = g.channels // (1 if is_depthwise(g) else g.groups)
    return _plan_gather(
        g, g.output_shape, grad_last, (1, 1, 1), left, span, result, g.channels, depth,
        (depth * channels * T, T, channels * T), g.input_shape, out_last, g.stride, itemsize,
    )  # fmt: skip


def output(g: ConvGeometry, x: Array, weight: Array, bias: Array, out: Array) -> None:
    """Equation (1): lanes are filters, factors are the pixels under the taps."""
    (x, x_last), (memory, out_last) = _memory(x), _memory(out)
    g = _flat(g, x_last and out_last)
    plan = _plan_output(g, x_last, out_last, out.itemsize)
    groups, whole = plan.start_shape
    start = buffer("start", groups * whole, out.dtype)
    if plan.lane_count == whole:
        start[:] = bias
    else:
        start.reshape(groups, whole)[:, : plan.lane_count] = bias.reshape(groups, plan.lane_count)
        start.reshape(groups, whole)[:, plan.lane_count :] = 0
    _gather(plan, x, g.input_shape, x_last, weight, start, memory)


def grad_input(g: ConvGeometry, grad_output: Array, weight: Array, out: Array) -> None:
    """Equation (2), phase by phase: lanes are input channels, factors are pixels of dO."""
    (grad_output, grad_last), (memory, out_last) = _memory(grad_output), _memory(out)
    g = _flat(g, grad_last and out_last)
    plan = _plan_grad_input(g, grad_last, out_last, out.itemsize)
    start = buffer("start", math.prod(plan.start_shape), out.dtype)
    start[:] = 0
    _gather(plan, grad_output, g.output_shape, grad_last, weight, start, memory)


def _gather(plan: _Gather, x: Array, shape: Ints, x_last: bool, weight: Array, start: Array, out: Array) -> None:
    """Pack the weight and compute all pixels."""
    if out.size == 0:
        return
    panels = buffer("panels", plan.panel_size, out.dtype)
    _share(
        _small(panels), pack_panels, plan.panel_tasks, weight.reshape(-1), panels, *plan.panel_arguments
    )  # fmt: skip
    _share_scratch(
        plan.alone, gather, plan.tasks, plan.scratch, out.dtype,
        _prepared(plan.source, x, shape, x_last), panels, start, out, *plan.arguments,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Equation (3): weights
# ---------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _plan_grad_weight(g: ConvGeometry, per_sample: bool, x_last: bool, itemsize: int) -> _Pass:
    depthwise = is_depthwise(g)
    groups = 1 if depthwise else g.groups
    filters, depth, width = g.filters // groups, g.channels // g.groups, _width(itemsize)
    sizes = (g.batch, *g.output)
    strip = _strip(sizes, g.channels * itemsize * math.prod(g.stride), MOST_SUMMED)
    if per_sample:
        strip = (1, *strip[1:])
    counts = [ceil_div(n, m) for n, m in zip(sizes, strip, strict=True)]
    chunks = max(1, g.batch) if per_sample else max(1, min(math.prod(counts), TASKS, math.prod(sizes) // CHUNK_PIXELS))
    strips_each = max(1, ceil_div(math.prod(counts), chunks))
    chunks = max(1, ceil_div(math.prod(counts), strips_each))
    parts = min(groups * ceil_div(filters, width), ceil_div(TASKS, chunks))
    source = _source(g.input_shape, x_last, itemsize, sizes, g.stride, *_reach(g), strip, parts, depthwise)
    pairs, rows = source.pairs(depth, _taps(g))
    filled = np.minimum(np.arange(ceil_div(pairs.size, ROWS) * ROWS), pairs.size - 1)  # up to a whole tile
    narrow = _whole(filters, itemsize) % width or width
    each = groups * _whole(filters, itemsize) * pairs.size
    sums_of, units = (1, chunks * groups) if per_sample else (chunks, groups)
    return _Pass(
        source,
        g.flops <= SERIAL_FLOPS,
        chunks * parts,
        source.box_size + math.prod(strip) * width,
        (
            *source.arguments(), strips_each, parts, pairs[filled], source.pixels(strip),
            np.concatenate((filled * width, filled * narrow)), pairs.size, g.output_shape, groups, filters,
            0 if depthwise else depth * source.pitches[1], width if depthwise else None, each,
        ),
        units * ceil_div(filters, lanes(itemsize)),
        chunks * each,
        (sums_of, filters, rows.reshape(-1), each),
    )  # fmt: skip


def grad_weight(g: ConvGeometry, grad_output: Array, x: Array, out: Array) -> None:
    """Equation (3): lanes are filters, factors are the channels of the pixels under the taps."""
    if g.batch == 0 or out.size == 0:
        out[...] = 0
        return
    (grad_output, grad_last), (x, x_last) = _memory(grad_output), _memory(x)
    per_sample = out.shape[0] > 1
    g = _flat(g, grad_last and x_last and not per_sample)
    plan = _plan_grad_weight(g, per_sample, x_last, out.itemsize)
    panels = buffer("panels", plan.panel_size, out.dtype)
    zeros = buffer("start", _width(out.itemsize), out.dtype)
    zeros[:] = 0
    _share_scratch(
        plan.alone, correlate, plan.tasks, plan.scratch, out.dtype,
        _prepared(plan.source, x, g.input_shape, x_last), grad_output, _image_steps(g.output_shape, grad_last), panels,
        zeros, *plan.arguments,
    )  # fmt: skip
    _share(
        _small(panels), unpack_panels, plan.panel_tasks, panels, out.reshape(-1), *plan.panel_arguments
    )  # fmt: skip


def grad_bias(g: ConvGeometry, grad_output: Array, out: Array) -> None:
    """Equation (4)."""
    grad_output, last = _memory(grad_output)
    per_task = min(64, ceil_div(g.filters, TASKS))
    _share(
        _small(grad_output), sums, ceil_div(g.filters, per_task),
        grad_output, last, g.batch, g.filters, math.prod(g.output), per_task, out,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# What the plan's table asks
# ---------------------------------------------------------------------------------------------------------------------


def _lane_count(computes: str, g: ConvGeometry) -> int:
    """Channels that stand side by side in the tile's lanes."""
    return (g.channels if computes == "grad_input" else g.filters) // (1 if is_depthwise(g) else g.groups)


def lane_flops(computes: str, g: ConvGeometry, itemsize: int) -> float:
    """Count the operations that the tiles perform, lanes without a channel included."""
    used, n = _lane_count(computes, g), lanes(itemsize)
    return g.flops / used * ceil_div(used, n) * n


def scratch_bytes(computes: str, geometry: ConvGeometry, itemsize: int) -> int:
    """Bytes of scratch memory that a pass needs when all arrays are NCHW."""
    if computes == "grad_bias":
        return 0
    g = geometry.volume
    plan: _Pass
    if computes == "grad_weight":
        plan = _plan_grad_weight(g, False, False, itemsize)
    else:
        plan = (_plan_grad_input if computes == "grad_input" else _plan_output)(g, False, False, itemsize)
    source, size, strips = plan.source, plan.panel_size, plan.scratch
    whole = int(source.whole[0][0] * source.whole[1][0]) if source.whole else 0
    return itemsize * (size + whole + int(config.NUMBA_NUM_THREADS) * strips)
