"""Direct convolution, between the plan and the kernels: what a geometry means in offsets.

For each pass this file makes the offset tables that tell the register tiles what to multiply with what (once for each
geometry), packs the operands (`fastconv.kernels.pack`) and calls a driver (`fastconv.kernels.direct`).  Kernels see arrays
and integers only.

A depthwise convolution, where every channel is a group with one filter, is the same with other lanes: a vector of channels
is multiplied with a vector of weights, and nothing is summed over channels.  To the drivers it is one group without depth.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Array
from .geometry import ConvGeometry, ceil_div, phase_taps
from .kernels.direct import correlate, correlate_tasks, gather, gather_tasks
from .kernels.pack import (
    pack_images,
    pack_images_tasks,
    pack_panels,
    pack_panels_tasks,
    unpack_images,
    unpack_images_tasks,
    unpack_panels,
    unpack_panels_tasks,
)
from .kernels.sums import sums, sums_tasks
from .scratch import buffer
from .simd import ROWS, VECTORS, lanes

__all__ = ["grad_bias", "grad_input", "grad_weight", "is_depthwise", "lane_flops", "output", "scratch_bytes"]

Ints = tuple[int, ...]

CHUNK = 64 * ROWS
"""Pixels in a task of `gather`: enough to load a panel for, few enough to share among cores."""

CHUNK_TERMS = 128
"""Longest plain run of additions in `gather`: a longer sum is taken in chunks of at most this many terms."""

CHUNK_PIXELS = 128
"""Pixels that `correlate` adds in registers before it touches memory: the longest plain run in dW, where rows are not longer."""

SERIAL_FLOPS, SERIAL_BYTES = 1_000_000, 100_000
"""Up to this much arithmetic, or copying, a kernel runs on the calling thread alone: waking others takes longer."""

TASKS = 16
"""Tasks that `correlate` is split into if there are fewer blocks of filters: the split must not ask for the number of cores."""


def is_depthwise(g: ConvGeometry) -> bool:
    """Say whether every channel is a group of its own, with one filter."""
    return g.groups == g.channels == g.filters > 1


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """An image channels-last with padding: ``left`` in front of each axis, ``sizes`` with padding, ``channels`` a pixel."""

    left: Ints
    sizes: Ints
    channels: int

    @property
    def steps(self) -> Ints:
        """Distance of neighbours along batch, depth, height and width."""
        _, h, w = self.sizes
        return (math.prod(self.sizes) * self.channels, h * w * self.channels, w * self.channels, self.channels)

    def strided(self, stride: Ints) -> Ints:
        """Distance along batch, depth, height and width of pixels a stride apart."""
        batch, *steps = self.steps
        return (batch, *(s * step for s, step in zip(stride, steps, strict=True)))

    def at(self, place: Ints) -> int:
        """Offset of a pixel of the first image, counted from the padding's corner."""
        return sum(p * step for p, step in zip(place, self.steps[1:], strict=True))

    def elements(self, batch: int) -> int:
        """Count the numbers in a packed batch."""
        return batch * math.prod(self.sizes) * self.channels

    def pack(self, name: str, x: Array, shape: Ints, channels_last: bool, slack: int) -> Array:
        """Return the packed batch with ``slack`` numbers behind it, or x itself if it is one and needs none."""
        if channels_last and shape[2:] == self.sizes and not slack:
            return x
        size = self.elements(shape[0])
        out = buffer(name, size + slack, x.dtype)
        out[size:] = 0
        tasks = shape[0] * self.sizes[0] * self.sizes[1]
        _share(_small(out), pack_images, pack_images_tasks, tasks, x, channels_last, shape, out, self.sizes, self.left)
        return out


def _share(
    alone: bool, parallel: Callable[..., None], serial: Callable[..., None], tasks: int, *arguments: Any
) -> None:
    """Run all tasks of a kernel: on the calling thread alone, or on all threads."""
    if alone:
        serial(0, tasks, *arguments)
    else:
        parallel(tasks, *arguments)


def _small(array: Array) -> bool:
    return array.nbytes <= SERIAL_BYTES


def _memory(array: Array) -> tuple[Array, bool]:
    """Return an image's memory as a flat array, and whether it lies channels-last."""
    if array.flags.c_contiguous:
        return array.reshape(-1), False
    return array.transpose(0, 2, 3, 4, 1).reshape(-1), True


def _table(values: Any) -> Array:
    return np.array(values, np.int64).reshape(-1)


def _width(itemsize: int) -> int:
    """Lanes in the widest tile."""
    return VECTORS * lanes(itemsize)


def _slack(lane_count: int, itemsize: int) -> int:
    """Numbers that a tile may read behind the last pixel, whose lanes it loads as whole vectors."""
    return 0 if lane_count % lanes(itemsize) == 0 else _width(itemsize)


# ---------------------------------------------------------------------------------------------------------------------
# Equations (1) and (2): pixels
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Phase:
    """Output pixels that meet the same taps: all of them in equation (1), one residue class in equation (2).

    ``taps`` are the numbers of the taps in the weight; ``offsets`` lead to the runs of ``run`` factors, ``step`` apart, that
    a sum takes from the packed image, ``rows`` to the runs in the panel.  ``first`` and ``sizes`` say where the pixels lie.
    """

    taps: Array
    offsets: Array
    rows: Array
    run: int
    step: int
    first: Ints
    sizes: Ints


def _phase(
    packed: Packed, places: list[Ints], taps: list[int], innermost: int, depth: int, groups: int, depthwise: bool,
    width: int, first: Ints, sizes: Ints,
) -> _Phase:  # fmt: skip
    """Turn the places of taps in the packed image into runs; the last ``innermost`` of them differ in the column only."""
    offsets = [packed.at(place) for place in places]
    rows = [offsets[i : i + innermost] for i in range(0, len(offsets), innermost)]
    distances = {b - a for row in rows for a, b in itertools.pairwise(row)}
    run, step = depth, 1
    if depthwise:  # the taps of a row, one column after another
        offsets, run, step = [row[0] for row in rows], innermost, min(distances, default=1)
    elif groups == 1 and distances <= {depth}:  # the channels of neighbouring columns follow each other in memory
        offsets, run = [row[0] for row in rows], depth * innermost
    starts = _table(range(0, len(offsets) * run * width, run * width))
    return _Phase(_table(taps), _table(offsets), starts, run, step, first, sizes)


@dataclass(frozen=True)
class _Gather:
    """Tables of equation (1) or (2): the padded image to pack, and the phases; ``whole`` if these cover every pixel."""

    packed: Packed
    phases: tuple[_Phase, ...]
    whole: bool


@functools.lru_cache(maxsize=512)
def _plan_output(g: ConvGeometry, width: int) -> _Gather:
    packed = Packed(
        tuple(left for left, _ in g.padding),
        tuple(n + left + right for n, (left, right) in zip(g.input, g.padding, strict=True)),
        g.channels,
    )
    places = [
        tuple(d * k for d, k in zip(g.dilation, tap, strict=True)) for tap in itertools.product(*map(range, g.kernel))
    ]
    phase = _phase(
        packed, places, list(range(len(places))), g.kernel[2], g.channels // g.groups, g.groups, is_depthwise(g), width,
        (0, 0, 0), g.output,
    )  # fmt: skip
    return _Gather(packed, (phase,), True)


@functools.lru_cache(maxsize=512)
def _plan_grad_input(g: ConvGeometry, width: int) -> _Gather:
    # Along each axis, for each phase: its first pixel, its number of pixels t, and for each of its taps k the output
    # i = t + shift that it leads to.
    axes: list[list[tuple[int, int, list[tuple[int, int]]]]] = []
    for n, f, s, d, (left, _) in zip(g.input, g.kernel, g.stride, g.dilation, g.padding, strict=True):
        phases = []
        for p in range(min(s, n)):
            k0, step = phase_taps(p, s, d, left)
            taps = [(k, (p + left - d * k) // s) for k in range(max(0, k0), f, step) if k0 >= 0]
            phases.append((p, ceil_div(n - p, s), taps[::-1]))  # so that shifts ascend
        axes.append(phases)
    # dO is padded as far as any tap of any phase reaches beyond it.
    reach = [
        (
            max((-shift for _, _, taps in phases for _, shift in taps if shift < 0), default=0),
            max(0, max((count + shift - n_out for _, count, taps in phases for _, shift in taps), default=0)),
        )
        for n_out, phases in zip(g.output, axes, strict=True)
    ]
    packed = Packed(
        tuple(left for left, _ in reach),
        tuple(n + left + right for n, (left, right) in zip(g.output, reach, strict=True)),
        g.filters,
    )
    _, height, columns = g.kernel
    result = []
    for along in itertools.product(*axes):
        meet = list(itertools.product(*(taps for _, _, taps in along)))
        if not meet:
            continue
        places = [tuple(i + left for (_, i), left in zip(at, packed.left, strict=True)) for at in meet]
        taps_met = [(kz * height + ky) * columns + kx for (kz, _), (ky, _), (kx, _) in meet]
        phase = _phase(
            packed, places, taps_met, len(along[2][2]), g.filters // g.groups, g.groups, is_depthwise(g), width,
            tuple(p for p, _, _ in along), tuple(count for _, count, _ in along),
        )  # fmt: skip
        result.append(phase)
    return _Gather(packed, tuple(result), len(result) == math.prod(len(phases) for phases in axes))


def output(g: ConvGeometry, x: Array, weight: Array, bias: Array, out: Array) -> None:
    """Equation (1): lanes are filters, factors are the pixels under the taps."""
    depthwise = is_depthwise(g)
    groups = 1 if depthwise else g.groups
    depth, filters, kernel = g.channels // g.groups, g.filters // groups, math.prod(g.kernel)
    width = _width(x.itemsize)
    start = buffer("start", groups * ceil_div(filters, width) * width, x.dtype).reshape(groups, -1)
    start[:, :filters] = bias.reshape(groups, filters)
    start[:, filters:] = 0
    _gather(
        g.batch, _plan_output(g, width), g.output_shape, (1, 1, 1), x, g.input_shape, g.stride, start.reshape(-1),
        weight.reshape(-1), out, groups, filters, depth, depthwise,
        (filters * depth * kernel, depth * kernel, kernel),
    )  # fmt: skip


def grad_input(g: ConvGeometry, grad_output: Array, weight: Array, out: Array) -> None:
    """Equation (2), phase by phase: lanes are input channels, factors are pixels of dO."""
    depthwise = is_depthwise(g)
    groups = 1 if depthwise else g.groups
    depth, channels, kernel = g.filters // g.groups, g.channels // groups, math.prod(g.kernel)
    width = _width(out.itemsize)
    start = buffer("start", groups * ceil_div(channels, width) * width, out.dtype)
    start[:] = 0
    _gather(
        g.batch, _plan_grad_input(g, width), g.input_shape, g.stride, grad_output, g.output_shape, (1, 1, 1), start,
        weight.reshape(-1), out, groups, channels, depth, depthwise,
        (depth * channels * kernel, kernel, channels * kernel),
    )  # fmt: skip


def _gather(
    batch: int, plan: _Gather, shape: Ints, out_stride: Ints, x: Array, x_shape: Ints, x_stride: Ints, start: Array,
    weight: Array, out: Array, groups: int, lane_count: int, depth: int, depthwise: bool, weight_steps: Ints,
) -> None:  # fmt: skip
    """Pack the image and, for each phase, the weight; compute the phase's pixels, ``out_stride`` apart.

    ``weight_steps`` are the distances of groups, lanes and depth in the weight.
    """
    (x, x_last), (out, out_last) = _memory(x), _memory(out)
    width = _width(out.itemsize)
    blocks = ceil_div(lane_count, width)
    group_step, lane_step, depth_step = weight_steps
    image = plan.packed.pack("image", x, x_shape, x_last, _slack(lane_count, out.itemsize) if depthwise else 0)
    pixels = Packed((0, 0, 0), shape[2:], shape[1])
    target = out if out_last else buffer("pixels", out.size, out.dtype)
    if not plan.whole:
        target[:] = 0
    for phase in plan.phases:
        taps = phase.taps.size
        panels = buffer("panels", groups * blocks * taps * depth * width, out.dtype)
        _share(
            _small(panels), pack_panels, pack_panels_tasks, groups * blocks * VECTORS,
            weight, panels, group_step, width, lane_count, lane_step, depth, depth_step, phase.taps,
        )  # fmt: skip
        count = batch * math.prod(phase.sizes)
        _share(
            count * panels.size * 2 <= SERIAL_FLOPS, gather, gather_tasks, groups * blocks * ceil_div(count, CHUNK),
            panels, phase.rows, phase.offsets, phase.step, phase.run, image, plan.packed.strided(x_stride), depth,
            width if depthwise else 0, target, pixels.at(phase.first), pixels.strided(out_stride), (batch, *phase.sizes),
            groups, lane_count, width, start, CHUNK,
            max(1, CHUNK_TERMS // phase.run), CHUNK_TERMS,
        )  # fmt: skip
    if not out_last:
        count = math.prod(shape[2:])
        _share(
            _small(out), unpack_images, unpack_images_tasks, batch * ceil_div(count, CHUNK),
            target, count, shape[1], out, CHUNK,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Equation (3): weights
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Correlate:
    """Tables of equation (3): the images to pack, and the runs of ``count`` pixels that a sum takes from them."""

    packed: Packed
    gradient: Packed
    taps: Array
    gradient_runs: Array
    gradient_step: int
    image_runs: Array
    image_step: int
    count: int


@functools.lru_cache(maxsize=512)
def _plan_grad_weight(g: ConvGeometry) -> _Correlate:
    packed, gradient = _plan_output(g, 1).packed, Packed((0, 0, 0), g.output, g.filters)
    taps = [
        packed.at(tuple(d * k for d, k in zip(g.dilation, tap, strict=True)))
        for tap in itertools.product(*map(range, g.kernel))
    ]
    image_steps, gradient_steps = packed.strided(g.stride), gradient.steps
    sizes = [g.batch, *g.output]
    # Short rows that follow each other evenly in both images are joined.
    count, axes = sizes[3], 3
    while axes and sizes[axes - 1] * count <= CHUNK_PIXELS and count * image_steps[3] == image_steps[axes - 1]:
        axes -= 1
        count *= sizes[axes]
    runs = np.zeros((2, 1), np.int64)
    for n, image_step, gradient_step in zip(sizes[:axes], image_steps, gradient_steps, strict=False):
        steps = np.array([[gradient_step], [image_step]])
        runs = (runs[:, :, None] + (steps * np.arange(n))[:, None, :]).reshape(2, -1)
    return _Correlate(
        packed, gradient, _table(taps), _table(runs[0]), gradient_steps[3], _table(runs[1]), image_steps[3], count
    )


def grad_weight(g: ConvGeometry, grad_output: Array, x: Array, out: Array) -> None:
    """Equation (3): lanes are filters, factors are the channels of the pixels under the taps."""
    if g.batch == 0:
        out[...] = 0
        return
    sums = out.shape[0]
    plan = _plan_grad_weight(g)
    if sums > 1 and plan.gradient_runs.size % sums:  # images have been joined that belong to different sums
        for n in range(sums):
            one = _one_image(g)
            grad_weight(one, grad_output[n : n + 1], x[n : n + 1], out[n : n + 1])
        return
    (grad_output, grad_last), (x, x_last) = _memory(grad_output), _memory(x)
    depthwise = is_depthwise(g)
    groups = 1 if depthwise else g.groups
    depth, filters = g.channels // g.groups, g.filters // groups
    taps = plan.taps.size
    width = _width(out.itemsize)
    blocks = ceil_div(filters, width)
    slack = _slack(filters, out.itemsize)
    image = plan.packed.pack("image", x, g.input_shape, x_last, slack if depthwise else 0)
    gradient = plan.gradient.pack("gradient", grad_output, g.output_shape, grad_last, slack)
    pairs = taps * depth
    panels = buffer("panels", sums * groups * blocks * pairs * width, out.dtype)
    zeros = buffer("start", width, out.dtype)
    zeros[:] = 0
    parts = max(1, min(ceil_div(TASKS, sums * groups * blocks), ceil_div(pairs, ROWS)))
    rows = ceil_div(ceil_div(pairs, parts), ROWS) * ROWS
    _share(
        g.flops <= SERIAL_FLOPS, correlate, correlate_tasks, sums * groups * blocks * ceil_div(pairs, rows),
        gradient, plan.gradient_runs, plan.gradient_step, image, plan.image_runs, plan.image_step, plan.count, sums, groups,
        filters, width, plan.taps, depth, panels, zeros, max(1, CHUNK_PIXELS // plan.count),
        rows, width if depthwise else 0,
    )  # fmt: skip
    _share(
        _small(panels), unpack_panels, unpack_panels_tasks, sums * groups * filters,
        panels, out.reshape(-1), width, filters, depth, taps,
    )  # fmt: skip


def grad_bias(g: ConvGeometry, grad_output: Array, out: Array) -> None:
    """Equation (4)."""
    grad_output, last = _memory(grad_output)
    per_task = min(64, ceil_div(g.filters, TASKS))
    _share(
        _small(grad_output), sums, sums_tasks, ceil_div(g.filters, per_task),
        grad_output, last, g.batch, g.filters, math.prod(g.output), per_task, out,
    )  # fmt: skip


@functools.lru_cache(maxsize=512)
def _one_image(g: ConvGeometry) -> ConvGeometry:
    return ConvGeometry(
        1, g.channels, g.filters, g.groups, g.input, g.kernel, g.output, g.stride, g.dilation, g.padding
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
    width = _width(itemsize)
    used = _lane_count(computes, g)
    plan = (_plan_grad_input if computes == "grad_input" else _plan_output)(g, width)
    pixels = math.prod(g.input_shape if computes == "grad_input" else g.output_shape)
    panels = math.prod(g.weight_shape) // used * ceil_div(used, width) * width
    return itemsize * (plan.packed.elements(g.batch) + pixels + panels)
