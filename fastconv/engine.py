"""Direct convolution, between the plan and the kernels: what a geometry means in offsets.

For each pass this file packs the operands (`fastconv.kernels.pack`), makes the offset tables that tell the register tile
what to multiply with what, and calls a driver (`fastconv.kernels.direct`).  Kernels see arrays and integers only.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Array
from .geometry import ConvGeometry, ceil_div, phase_taps
from .kernels.direct import correlate, gather
from .kernels.pack import pack_images, pack_panels, unpack_images, unpack_panels
from .scratch import buffer
from .simd import ROWS, VECTORS, lanes

__all__ = ["grad_input", "grad_weight", "lane_flops", "output", "scratch_bytes"]

Ints = tuple[int, ...]

CHUNK = 64 * ROWS
"""Pixels in a task of `gather`: enough to load a panel for, few enough to share among cores."""

CHUNK_PIXELS = 512
"""Pixels that `correlate` adds in registers before it touches memory; also the longest plain run of additions in dW."""


def _width(itemsize: int) -> int:
    """Lanes in the widest tile."""
    return VECTORS * lanes(itemsize)


def _table(values: Any) -> Array:
    return np.array(values, np.int64).reshape(-1)


@dataclass(frozen=True)
class Packed:
    """A packed image: channels-last, with padding.

    Attributes
    ----------
    left : tuple of int
        Padding in front of each axis.
    sizes : tuple of int
        Padded depth, height and width.
    channels : int
        Channels of a pixel.
    """

    left: Ints
    sizes: Ints
    channels: int

    @property
    def steps(self) -> Ints:
        """Distance of neighbours along batch, depth, height and width."""
        _, h, w = self.sizes
        return (math.prod(self.sizes) * self.channels, h * w * self.channels, w * self.channels, self.channels)

    def elements(self, batch: int) -> int:
        """Numbers in the packed batch."""
        return batch * math.prod(self.sizes) * self.channels

    def at(self, place: Ints) -> int:
        """Offset of a pixel of the first image, counted from the padding's corner."""
        return sum(p * step for p, step in zip(place, self.steps[1:], strict=True))

    def pack(self, name: str, x: Array, shape: Ints, channels_last: bool, slack: int = 0) -> Array:
        """Return the packed batch, x itself if it is one already and has no padding."""
        if channels_last and shape[2:] == self.sizes and not slack:
            return x
        out = buffer(name, self.elements(shape[0]) + slack, x.dtype)
        pack_images(x, channels_last, shape, out, self.sizes, self.left)
        return out


def _memory(array: Array) -> tuple[Array, bool]:
    """Return an image's memory as a flat array, and whether it lies channels-last."""
    if array.flags.c_contiguous:
        return array.reshape(-1), False
    return array.transpose(0, 2, 3, 4, 1).reshape(-1), True


def _runs(offsets: list[int], depth: int, innermost: int, joined: bool) -> tuple[list[int], int]:
    """Join taps whose channels follow each other in memory: return the remaining offsets and the length of each run."""
    rows = [offsets[i : i + innermost] for i in range(0, len(offsets), innermost)]
    if joined and all(b - a == depth for row in rows for a, b in itertools.pairwise(row)):
        return [row[0] for row in rows], depth * innermost
    return offsets, depth


# ---------------------------------------------------------------------------------------------------------------------
# Equation (1)
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Output:
    packed: Packed
    offsets: Array
    run: int
    taps: Array


@functools.lru_cache(maxsize=512)
def _plan_output(g: ConvGeometry) -> _Output:
    packed = Packed(
        tuple(left for left, _ in g.padding),
        tuple(n + left + right for n, (left, right) in zip(g.input, g.padding, strict=True)),
        g.channels,
    )
    depth = g.channels // g.groups
    offsets = [
        packed.at(tuple(d * k for d, k in zip(g.dilation, tap, strict=True)))
        for tap in itertools.product(*map(range, g.kernel))
    ]
    runs, run = _runs(offsets, depth, g.kernel[2], g.groups == 1)
    return _Output(packed, _table(runs), run, np.arange(math.prod(g.kernel)))


def output(g: ConvGeometry, x: Array, weight: Array, bias: Array, out: Array) -> None:
    """Equation (1): lanes are filters, scalars are the pixels under the taps."""
    plan = _plan_output(g)
    (x, x_last), (out, out_last), weight = _memory(x), _memory(out), weight.reshape(-1)
    depth, filters = g.channels // g.groups, g.filters // g.groups
    taps = plan.taps.size
    width = _width(x.itemsize)
    blocks = ceil_div(filters, width)
    image = plan.packed.pack("image", x, g.input_shape, x_last)
    panels = buffer("panels", g.groups * blocks * taps * depth * width, x.dtype)
    pack_panels(weight, panels, g.groups, filters * depth * taps, width, filters, depth * taps, depth, taps, plan.taps)
    start = buffer("start", g.groups * blocks * width, x.dtype)
    start.reshape(g.groups, -1)[:, :filters] = bias.reshape(g.groups, filters)
    start.reshape(g.groups, -1)[:, filters:] = 0
    target = out if out_last else buffer("pixels", out.size, x.dtype)
    image_steps = plan.packed.steps
    steps = (image_steps[0], *(s * step for s, step in zip(g.stride, image_steps[1:], strict=True)))
    gather(
        panels, _table(range(0, taps * depth * width, plan.run * width)), plan.offsets, plan.run, image, 0, steps, depth,
        target, 0, _pixel_steps(g.output, g.filters), (g.batch, *g.output), g.groups, filters, width, start, CHUNK,
    )  # fmt: skip
    if not out_last:
        _unpack(target, g.output_shape, out)


def _pixel_steps(sizes: Ints, channels: int) -> Ints:
    return Packed((0, 0, 0), sizes, channels).steps


def _unpack(packed: Array, shape: Ints, out: Array) -> None:
    """Copy channels-last pixels into an array of this (N, C, ...) shape."""
    pixels = math.prod(shape[2:])
    unpack_images(packed, shape[0], pixels, shape[1], out, 256)


# ---------------------------------------------------------------------------------------------------------------------
# Equation (2)
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Phase:
    """One residue class of input pixels: a stride-1 convolution of dO with some of the taps."""

    first: Ints
    sizes: Ints
    offsets: Array
    run: int
    taps: Array


@dataclass(frozen=True)
class _GradInput:
    packed: Packed
    phases: tuple[_Phase, ...]
    whole: bool


@functools.lru_cache(maxsize=512)
def _plan_grad_input(g: ConvGeometry) -> _GradInput:
    # Along each axis, for each phase: its first pixel, its number of pixels, and its taps with i - t (i = t + shift).
    axes: list[list[tuple[int, int, list[tuple[int, int]]]]] = []
    for n, f, s, d, (left, _) in zip(g.input, g.kernel, g.stride, g.dilation, g.padding, strict=True):
        phases = []
        for p in range(min(s, n)):
            k0, step = phase_taps(p, s, d, left)
            taps = [(k, (p + left - d * k) // s) for k in range(max(0, k0), f, step) if k0 >= 0]
            phases.append((p, ceil_div(n - p, s), taps[::-1]))  # shifts ascend
        axes.append(phases)
    # dO is padded as far as any tap of any phase reaches beyond it.
    reach = [
        (
            max(0, *(-shift for _, _, taps in phases for _, shift in taps), 0),
            max(0, *(count - 1 + shift - (n_out - 1) for _, count, taps in phases for _, shift in taps), 0),
        )
        for n_out, phases in zip(g.output, axes, strict=True)
    ]
    packed = Packed(
        tuple(left for left, _ in reach),
        tuple(n + left + right for n, (left, right) in zip(g.output, reach, strict=True)),
        g.filters,
    )
    depth = g.filters // g.groups
    _, height, width = g.kernel
    result = []
    for along in itertools.product(*axes):
        places = list(itertools.product(*(taps for _, _, taps in along)))
        if not places:
            continue
        offsets = [packed.at(tuple(i + left for (_, i), left in zip(at, packed.left, strict=True))) for at in places]
        runs, run = _runs(offsets, depth, len(along[2][2]), g.groups == 1)
        numbers = _table([(kz * height + ky) * width + kx for (kz, _), (ky, _), (kx, _) in places])
        first, sizes = tuple(p for p, _, _ in along), tuple(count for _, count, _ in along)
        result.append(_Phase(first, sizes, _table(runs), run, numbers))
    return _GradInput(packed, tuple(result), len(result) == math.prod(len(phases) for phases in axes))


def grad_input(g: ConvGeometry, grad_output: Array, weight: Array, out: Array) -> None:
    """Equation (2), phase by phase: lanes are input channels, scalars are pixels of dO."""
    plan = _plan_grad_input(g)
    (grad_output, grad_last), (out, out_last), weight = _memory(grad_output), _memory(out), weight.reshape(-1)
    depth, channels = g.filters // g.groups, g.channels // g.groups
    kernel = math.prod(g.kernel)
    width = _width(out.itemsize)
    blocks = ceil_div(channels, width)
    image = plan.packed.pack("image", grad_output, g.output_shape, grad_last)
    target = out if out_last else buffer("pixels", out.size, out.dtype)
    if not plan.whole:
        target[:] = 0
    start = buffer("start", g.groups * blocks * width, out.dtype)
    start[:] = 0
    all_steps = _pixel_steps(g.input, g.channels)
    steps = (all_steps[0], *(s * step for s, step in zip(g.stride, all_steps[1:], strict=True)))
    for phase in plan.phases:
        taps = phase.taps.size
        panels = buffer("panels", g.groups * blocks * taps * depth * width, out.dtype)
        pack_panels(
            weight,
            panels,
            g.groups,
            depth * channels * kernel,
            width,
            channels,
            kernel,
            depth,
            channels * kernel,
            phase.taps,
        )
        at = sum(p * step for p, step in zip(phase.first, all_steps[1:], strict=True))
        gather(
            panels, _table(range(0, taps * depth * width, phase.run * width)), phase.offsets, phase.run, image, 0,
            plan.packed.steps, depth, target, at, steps, (g.batch, *phase.sizes), g.groups, channels, width, start, CHUNK,
        )  # fmt: skip
    if not out_last:
        _unpack(target, g.input_shape, out)


# ---------------------------------------------------------------------------------------------------------------------
# Equation (3)
# ---------------------------------------------------------------------------------------------------------------------


def grad_weight(g: ConvGeometry, grad_output: Array, x: Array, out: Array) -> None:
    """Equation (3): lanes are filters, scalars are the channels of the pixels under the taps."""
    plan = _plan_output(g)
    sums = out.shape[0]
    (grad_output, grad_last), (x, x_last) = _memory(grad_output), _memory(x)
    depth, filters = g.channels // g.groups, g.filters // g.groups
    taps = plan.taps.size
    width = _width(out.itemsize)
    blocks = ceil_div(filters, width)
    image = plan.packed.pack("image", x, g.input_shape, x_last)
    # A tile reads whole vectors: after the last pixel there must be room for the lanes that it does not use.
    whole = Packed((0, 0, 0), g.output, g.filters)
    slack = 0 if filters % lanes(out.itemsize) == 0 else width
    gradient = whole.pack("gradient", grad_output, g.output_shape, grad_last, slack)
    image_steps, steps = plan.packed.steps, whole.steps
    N, D, H, W = g.batch, *g.output
    n, z, y = np.ogrid[:N, :D, :H]
    vector_table = _table(n * steps[0] + z * steps[1] + y * steps[2])
    strided = (image_steps[0], *(s * step for s, step in zip(g.stride, image_steps[1:], strict=True)))
    scalar_table = _table(n * strided[0] + z * strided[1] + y * strided[2])
    pairs = taps * depth
    panels = buffer("panels", sums * g.groups * blocks * pairs * width, out.dtype)
    zeros = buffer("start", width, out.dtype)
    zeros[:] = 0
    if N == 0:
        out[:] = 0
        return
    units = sums * g.groups * blocks
    parts = max(1, min(ceil_div(16, units), ceil_div(pairs, ROWS)))
    rows_per_task = ceil_div(ceil_div(pairs, parts), ROWS) * ROWS
    tap_offsets = _table(
        [
            plan.packed.at(tuple(d * k for d, k in zip(g.dilation, tap, strict=True)))
            for tap in itertools.product(*map(range, g.kernel))
        ]
    )
    correlate(
        gradient, vector_table, steps[3], image, scalar_table, strided[3], W, sums, g.groups, filters, width, tap_offsets,
        depth, panels, zeros, max(1, CHUNK_PIXELS // W), rows_per_task,
    )  # fmt: skip
    unpack_panels(panels, out.reshape(-1), sums, g.groups, width, filters, depth, taps)


def lane_flops(computes: str, g: ConvGeometry, itemsize: int) -> float:
    """Operations that the tiles perform, lanes without a channel included."""
    of = (g.channels if computes == "grad_input" else g.filters) // g.groups
    return (
        g.flops
        / of
        * ceil_div(of, lanes(itemsize))
        * lanes(itemsize)
        / math.prod(g.stride if computes == "grad_input" else (1,))
    )


def scratch_bytes(computes: str, g: ConvGeometry, itemsize: int) -> int:
    """Bytes of scratch memory that a pass needs when all arrays are NCHW."""
    g = g if g.ndim == 3 else g.as_3d()
    width = _width(itemsize)
    weight = math.prod(g.weight_shape)
    if computes == "output":
        lanes_of, pixels = g.filters // g.groups, math.prod(g.output_shape)
        packed = _plan_output(g).packed.elements(g.batch)
    elif computes == "grad_input":
        lanes_of, pixels = g.channels // g.groups, math.prod(g.input_shape)
        packed = _plan_grad_input(g).packed.elements(g.batch)
    else:
        lanes_of, pixels = g.filters // g.groups, math.prod(g.output_shape)
        packed = _plan_output(g).packed.elements(g.batch)
    panels = weight // lanes_of * ceil_div(lanes_of, width) * width
    return itemsize * (packed + pixels + panels)
