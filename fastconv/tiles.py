"""Tiles of Winograd's algorithm: which pixels, points and values each has, for every kernel and on both sides of a stride."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Array
from .cook_toom import KERNELS, Filter, slots
from .geometry import ConvGeometry, ceil_div, even_part
from .strips import Axis, AxisPhase, Ints, filled

__all__ = [
    "Form",
    "Side",
    "cells",
    "form_of",
    "meetings_of",
    "phases_of",
    "product_rows",
    "rows_of_tiles",
    "tiles_at",
]


@dataclass(frozen=True)
class Side:
    """What a tile has along (columns, rows) of what is read or made: ``steps`` times its outputs and ``more``.

    ``points`` holds for each of its values the number of its point, ``weights`` that of the weight it is multiplied with.
    """

    steps: tuple[int, int]
    more: tuple[int, int]
    points: tuple[Ints, Ints]
    weights: tuple[Ints, Ints]

    @property
    def values(self) -> tuple[int, int]:
        """Values along (columns, rows)."""
        return len(self.points[0]), len(self.points[1])

    @functools.cached_property
    def planes(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """The points and the weights, along (columns, rows), of each of all values."""
        along = (zip(points, weights, strict=True) for points, weights in zip(self.points, self.weights, strict=True))
        return [((y[0], x[0]), (y[1], x[1])) for y, x in itertools.product(*along)]


def side_of(*filters: Filter) -> Side:
    """Return what a tile has of the strided side of filters down and across a kernel."""
    points, weights = (tuple(tuple(value[n] for value in f.values) for f in filters) for n in (0, 1))
    steps, more = (filters[0].stride, filters[1].stride), (filters[0].more, filters[1].more)
    return Side(steps, more, (points[0], points[1]), (weights[0], weights[1]))


@dataclass(frozen=True)
class Form:
    """Tiles of (rows, columns) of outputs for filters down and across a kernel.

    If it is ``transposed``, for equation (2), pixels are what is strided.

    >>> Form(Filter(5), Filter(3), (2, 4)).points
    (6, 6)
    >>> Form(Filter(3, 2), Filter(3, 2), (5, 5)).read.values
    (11, 11)
    """

    down: Filter
    across: Filter
    tile: tuple[int, int]
    transposed: bool = False

    @property
    def number(self) -> int:
        """Number of the kernel."""
        return KERNELS.index((self.down, self.across))

    @property
    def taps(self) -> tuple[int, int]:
        """Taps along (columns, rows)."""
        return self.down.taps, self.across.taps

    @property
    def terms(self) -> int:
        """Taps of the kernel."""
        return math.prod(self.taps)

    @property
    def points(self) -> tuple[int, int]:
        """Points along (columns, rows)."""
        return self.down.points, self.across.points

    @property
    def weights(self) -> tuple[int, int]:
        """Different values of the weight along (columns, rows)."""
        return self.down.weights, self.across.weights

    @functools.cached_property
    def strided(self) -> Side:
        """The side whose tiles have values of all phases."""
        return side_of(self.down, self.across)

    @functools.cached_property
    def plain(self) -> Side:
        """The side whose tiles have values at the points."""
        return side_of(self.down.longest, self.across.longest)

    @property
    def read(self) -> Side:
        """What tiles read of the input."""
        return self.plain if self.transposed else self.strided

    @property
    def made(self) -> Side:
        """What tiles make."""
        return self.strided if self.transposed else self.plain

    @functools.cached_property
    def strides(self) -> bool:
        """Whether any filter has several phases."""
        return self.strided != self.plain

    @property
    def reads_phases(self) -> bool:
        """Whether what tiles read has values of several phases."""
        return self.strides and not self.transposed

    @functools.cached_property
    def written(self) -> tuple[int, int, int]:
        """Vectors that maps write: for a tile of the input, one of the products, and a depth of the weight."""
        (read_y, read_x), (_, made_x), (weights_y, weights_x) = self.read.values, self.made.values, self.weights
        (tile_y, tile_x), across = self.tile, self.across.taps
        tile_y, tile_x = tile_y * self.made.steps[0], tile_x * self.read.steps[1]
        return read_y * (tile_x + read_x), tile_y * (made_x + tile_x), weights_y * (across + weights_x)

    def count(self, height: int, width: int) -> int:
        """Count the tiles of so many outputs."""
        return ceil_div(height, self.tile[0]) * ceil_div(width, self.tile[1])

    def numbers(self) -> dict[str, Any]:
        """Return what `fastconv.kernels.winograd.PLACES` names of the form."""
        numbers = {"kernel": self.number, "kernel_taps": self.taps, "weights": self.weights, "tile": self.tile}
        for name, side in (("read", self.read), ("made", self.made)):
            numbers |= {f"{name}_steps": side.steps, f"{name}_more": side.more, f"{name}_values": side.values}
        return numbers


def cells(g: ConvGeometry) -> tuple[tuple[Axis, ...], Ints]:
    """Describe equation (2): how as many pixels as the stride, side by side, meet the gradients, and the first pixel of all.

    The pixels of a phase that has a tap less lie in front of those of the first, of whose gradients they do not meet the last.
    """
    axes, pixels = [], []
    for n, n_out, f, s, (left, _) in zip(g.input, g.output, g.kernel, g.stride, g.padding, strict=True):
        last = f % s or s  # pixels behind that which the first tap of a gradient meets, and this one
        first_output = ceil_div(left + 1 - last, s)
        first = s * first_output - left + last - s
        reach = Filter(f, s).phases[0] - 1
        taps = ((0, first_output - reach), (reach, first_output))
        axes.append(Axis(n_out, 1, (AxisPhase(0, ceil_div(n - first, s), taps),)))
        pixels.append(first)
    return tuple(axes), tuple(pixels)


def form_of(g: ConvGeometry, transposed: bool = False) -> Form:
    """Return the tiles for a geometry."""
    _, height, width = (axis.grid for axis in cells(g)[0]) if transposed else g.output
    return _form(g.kernel[1:], g.stride[1:], (height, width), transposed)


@functools.lru_cache(maxsize=1024)
def _form(kernel: tuple[int, int], stride: tuple[int, int], sizes: tuple[int, int], transposed: bool) -> Form:
    down, across = map(Filter, kernel, stride)
    return Form(down, across, (even_part(sizes[0], down.tile), even_part(sizes[1], across.tile)), transposed)


def tile_sizes(n: int, tile: int) -> list[int]:
    """Cut ``n`` outputs into tiles: the largest, and what is left.

    >>> tile_sizes(14, 4)
    [4, 4, 4, 2]
    """
    return [min(tile, n - first) for first in range(0, n, tile)]


def tiles_at(sizes: tuple[int, int, int], form: Form) -> Array:
    """Say which of the tiles of (images, rows, columns) use a point: an array [y, x, tile]."""
    images, *pixels = sizes
    down, across = (
        np.array([[point in slots(m + f.phases[0] - 1) for m in tile_sizes(n, tile)] for point in range(f.points)])
        for n, f, tile in zip(pixels, (form.down, form.across), form.tile, strict=True)
    )
    tiles = down[:, None, None, :, None] & across[None, :, None, None, :]
    return np.repeat(tiles, images, axis=2).reshape(*form.points, -1)


@functools.lru_cache(maxsize=1024)
def product_rows(images: int, height: int, width: int, form: Form) -> tuple[int, int]:
    """Count the rows of the tiles that multiply a strip, filled up to whole tiles: those begun, and those of all phases."""
    counts = tiles_at((images, height, width), form).sum(2)
    begun, summed = (
        sum(filled(int(counts[points])) for points, _ in side.planes) for side in (form.made, form.strided)
    )
    return begun, summed


@functools.lru_cache(maxsize=256)
def phases_of(form: Form) -> list[list[tuple[int, int]]]:
    """List for each product the values of the input and of the weight that it is the sum of: those of all phases at its point."""

    def number(of: Iterable[tuple[int, int]], along: tuple[int, int]) -> list[int]:
        return [y * along[1] + x for y, x in of]

    weights = number((weight for _, weight in form.strided.planes), form.weights)
    if form.transposed:
        points = number((point for point, _ in form.strided.planes), form.points)
        return [[pair] for pair in zip(points, weights, strict=True)]
    return [
        [(value, weights[value]) for value, (point, _) in enumerate(form.strided.planes) if point == made]
        for made, _ in form.plain.planes
    ]


@functools.lru_cache(maxsize=256)
def meetings_of(form: Form) -> list[list[tuple[int, int]]]:
    """List for each value of the weight the values of the input and points of the gradient whose products it is the sum of."""
    met: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for value, ((y, x), weight) in enumerate(form.strided.planes):
        met.setdefault(weight, []).append((value, y * form.points[1] + x))
    return [met[weight] for weight in sorted(met)]


def rows_of_tiles(form: Form, strip: Ints) -> int:
    """Vectors to turn a row of tiles into, and to copy one of what is read to; or those of a tile of products, and its pixels."""
    (steps_y, steps_x), (read, _), (_, made) = form.made.steps, form.read.values, form.made.values
    pixels_y, pixels_x = steps_y * form.tile[0], steps_x * form.tile[1]
    gradient = 2 * form.points[0] * strip[3]
    return max(2 * read * (form.read.steps[1] * strip[3] + form.read.more[1]), gradient, pixels_y * (made + pixels_x))
