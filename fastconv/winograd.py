"""Winograd's convolution, between the plan and the kernels: what each pass with a small kernel means in tables.

`fastconv.engine` does the same for direct convolution.  Strips are cut along whole tiles; what else they are is the same.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .algorithm import Algorithm
from .arrays import Array
from .cook_toom import KERNELS, Filter, slots
from .geometry import ConvGeometry, ceil_div, tap_range
from .kernels import winograd as kernels
from .programs import (
    CHUNK_PIXELS,
    Packing,
    Pixels,
    Program,
    StripSums,
    choose_chunks,
    count_tasks,
    forward_axes,
    grad_input_pixels,
    is_depthwise,
    output_pixels,
    unpacking,
)
from .simd import lanes
from .simd.words import LINE
from .strips import (
    TASKS,
    Axis,
    AxisPhase,
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

__all__ = ["WINOGRAD", "describe", "nanoseconds", "objection", "sums_gradients"]

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

PHASES = 2
"""What a vector of the input takes in proportion where it has phases: a row of tiles does not stay in the first-level cache."""

PHASES_BYTES, CROWDED = 5 << 18, 1.25
"""Bytes of the values of all phases that still share the second-level cache with others, and what it takes where they do not."""

NEAR_BYTES, FAR = 5 << 17, 0.15
"""The same bytes without phases, and how much longer it takes if nearly all values stand in the third-level cache."""

MULTIPLICATION = 0.3 / LINE
"""Nanoseconds for each byte of vectors that are multiplied, which are at most a line of the cache wide: half as wide ones take
half as long.  Not so for rows and columns alone, which with narrow vectors were slower than direct sums as often as not."""

MOST_SHARED = 8 << 20
"""Bytes of a weight at the points that the third-level cache keeps for all strips; to read more takes twice the time."""

GRADIENTS = 1.1
"""What equations (2) and (3) take in proportion to their estimate where filters have phases: their sums are short, and many."""

FEW_TASKS = 4
"""Tasks to cut such a pass into at least: each part of the blocks evaluates the input anew."""

TASK_FLOPS = 150_000_000
"""Arithmetic that is worth a task of equation (3), if there are FEW_TASKS: each turns its sums at the points to taps, which then
are added up."""

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
    filters = tuple(map(Filter, g.kernel[1:], g.stride[1:]))
    if g.kernel[0] * g.stride[0] > 1 or filters not in KERNELS or max(g.dilation[1:]) > 1 or g.padding[0] != (0, 0):
        return (
            "it computes kernels of 1, 3, 5 or 7 rows and columns, but not 7 of both, with stride 1, and 3x3 with stride 2, with "
            "dilation 1"
        )
    if is_depthwise(g):
        return "channels do not mix, so there is no matrix product"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Strips of tiles
# ---------------------------------------------------------------------------------------------------------------------


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

    @property
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

    @property
    def strides(self) -> bool:
        """Whether any filter has several phases."""
        return self.strided != self.plain

    @property
    def reads_phases(self) -> bool:
        """Whether what tiles read has values of several phases."""
        return self.strides and not self.transposed

    @property
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
        numbers = {"kernel": self.number, "terms": self.taps, "weights": self.weights, "tile": self.tile}
        for name, side in (("read", self.read), ("made", self.made)):
            numbers |= {f"{name}_steps": side.steps, f"{name}_more": side.more, f"{name}_values": side.values}
        return numbers


def form_of(g: ConvGeometry, transposed: bool = False) -> Form:
    """Return the tiles for a geometry."""
    down, across = map(Filter, g.kernel[1:], g.stride[1:])
    _, height, width = (axis.grid for axis in cells(g)[0]) if transposed else g.output
    return Form(down, across, (even_tile(height, down.tile), even_tile(width, across.tile)), transposed)


def even_tile(n: int, largest: int) -> int:
    """Return the size of the tiles that n outputs are cut into: as few as can be, of about one size.

    >>> even_tile(9, 4), even_tile(14, 4)
    (3, 4)
    """
    return ceil_div(n, max(1, ceil_div(n, largest))) or 1


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
    window : tuple of int
        Rows and columns between whose multiples strips are cut only.
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
    window: tuple[int, int] = (1, 1)

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
        if not self.form.reads_phases:
            return strips, min(self.blocks, ceil_div(self.tasks, strips))
        each = max(1, self.blocks // ceil_div(min(self.tasks, FEW_TASKS), strips))  # blocks of a part
        return strips, ceil_div(self.blocks, each)

    def owns(self, strip: Ints) -> bool:
        """Say whether tasks evaluate the weight themselves: few or none would do so again."""
        strips, size = self.split(strip)[0], self.groups * self.depth * self.lane_count * self.form.terms
        again, (evaluating, reading) = strips - 1, self.weighing
        few = again * size <= REEVALUATED or (self.form.strides and again * evaluating < strips * reading)
        return few and not self.prepared

    @property
    def weighing(self) -> tuple[float, float]:
        """Estimate the time to evaluate a vector of the weight for each tap, and to read what came of it."""
        size = math.prod(self.form.weights) * self.groups * self.depth * self.lane_count * self.itemsize
        reading = READING * (2 if self.form.strides and size > MOST_SHARED else 1)
        return EVALUATION * self.form.written[2], reading * math.prod(self.form.strided.values)

    def cost(self, strip: Ints) -> float:
        """Estimate the time of all tasks."""
        strips, parts = self.split(strip)
        tiles = strips * strip[0] * self.form.count(*strip[2:])
        summed, computed = self.vectors
        of_input, of_products, _ = self.form.written
        begun, summed_up = product_rows(strip[0], strip[2], strip[3], self.form)
        work: float = strips * (summed_up * self.depth + begun * TILE_TERMS) * computed
        inputs = INPUT * (PHASES if self.form.reads_phases else 1)
        work += tiles * (inputs * of_input * summed * parts + OUTPUT * of_products * computed)
        evaluating, reading = self.weighing
        each = strips * evaluating if self.owns(strip) else strips * reading + evaluating * (not self.prepared)
        work += each * self.depth * computed + SHARING * (not self.owns(strip) and not self.prepared)
        return work * (ALONG_ONE_AXIS if 1 in self.form.points else 1.0) * (NARROW if self.narrow else 1.0)

    @property
    def bytes_of_tile(self) -> int:
        """Bytes of the values of a tile's input."""
        return math.prod(self.form.read.values) * whole_lanes(self.depth, self.itemsize) * self.itemsize

    def time(self, strip: Ints) -> float:
        """Estimate the time of all tasks, and of the threads that have none; strips whose values crowd a cache take longer."""
        size = strip[0] * self.form.count(*strip[2:]) * self.bytes_of_tile
        shared = imbalance(math.prod(self.split(strip))) if self.tasks > 1 else 1.0
        if self.form.reads_phases:
            return self.cost(strip) * shared * (CROWDED if size > PHASES_BYTES else 1.0)
        return self.cost(strip) * shared * (1 + FAR * max(0.0, 1 - NEAR_BYTES / size))

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
        most = max(FEWEST_TILES, min(most, VALUES_BYTES // self.bytes_of_tile))
        tile_y, tile_x = self.form.tile
        down, along = ceil_div(height, tile_y), ceil_div(width, tile_x)
        choices = {
            (b, 1, min(tile_y * y, height), min(tile_x * x, width))
            for x in parts_of(along)
            for y in (parts_of(down) if x == along else {1})
            for b in (parts_of(batch) if y == down and x == along else {1})
            if b * y * x <= most and self.cuts_between((tile_y * y, tile_x * x))
        }
        return min(sorted(choices, reverse=True) or [(1, 1, height, width)], key=self.time)

    def cuts_between(self, strip: tuple[int, int]) -> bool:
        """Say whether strips of so many rows and columns end where a window or the image does."""
        return all(n >= most or n % m == 0 for n, most, m in zip(strip, self.sizes[2:], self.window, strict=True))


def parts_of(n: int) -> set[int]:
    """Sizes of about equal parts of n."""
    return {ceil_div(n, k) for k in range(1, n + 1)}


def _kinds_and_source(
    g: ConvGeometry, axes: tuple[Axis, ...], shape: Ints, last: bool, itemsize: int, strip: Ints, together: bool
) -> tuple[Kinds, Source]:
    kinds = find_kinds(g.batch, axes, strip, (False,) * 3, by_output)
    return kinds, make_source(shape, last, itemsize, g.batch, axes, strip, True, not last, together)


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


def meetings_of(form: Form) -> list[list[tuple[int, int]]]:
    """List for each value of the weight the values of the input and points of the gradient whose products it is the sum of."""
    met: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for value, ((y, x), weight) in enumerate(form.strided.planes):
        met.setdefault(weight, []).append((value, y * form.points[1] + x))
    return [met[weight] for weight in sorted(met)]


def sizes_of(segments: Any) -> tuple[int, int, int]:
    """(images, rows, columns) of a kind of strips."""
    images, _, rows, columns = (along[0][0][1] for along in segments)
    return images, rows, columns


def odd_lines(count: int, itemsize: int) -> int:
    """Round up to an odd number of cache lines."""
    line = 64 // itemsize
    return (ceil_div(count, line) | 1) * line


def rows_of_tiles(form: Form, strip: Ints) -> int:
    """Vectors to turn a row of tiles into, and to copy one of what is read to; or those of a tile of products, and its pixels."""
    (steps_y, steps_x), (read, _), (_, made) = form.made.steps, form.read.values, form.made.values
    pixels_y, pixels_x = steps_y * form.tile[0], steps_x * form.tile[1]
    gradient = 2 * form.points[0] * strip[3]
    return max(2 * read * (form.read.steps[1] * strip[3] + form.read.more[1]), gradient, pixels_y * (made + pixels_x))


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
    narrow = dataclasses.replace(work, narrow=True)
    choices = (
        (work, STAGE_BYTES * (2 if work.form.strides else 1)), (work, LEAST_STAGE_BYTES), (narrow, LEAST_STAGE_BYTES)
    )  # fmt: skip
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
    planes, weights = math.prod(form.read.values), math.prod(form.weights)
    _, parts = work.split(strip)
    kinds, source = _kinds_and_source(g, p.axes, p.in_shape, p.in_last, itemsize, strip, parts > 1)
    first = cells(g)[1] if p.transposed else (0, 0, 0)
    tables = Tables()
    out_steps = steps_of_image(p.out_shape, p.out_last)
    numbers = strip_numbers(source, kinds, tables, p.out_shape, out_steps, (1, 1, 1), p.streams)
    pixel = whole_lanes(depth, itemsize)
    count = strip[0] * form.count(*strip[2:])
    values, products = odd_lines(count * pixel, itemsize), odd_lines(count * pitch, itemsize)
    size, own = math.prod(g.weight_shape), work.owns(strip)
    depths = min(depth, max(n, stage_bytes // (weights * pitch * itemsize) // n * n)) if own else depth
    plane = odd_lines(depths * pitch, itemsize)
    # Of each product the pairs of a phase and a depth, stage by stage, how many phases, and the first of its values and weights.
    terms = np.stack([np.arange(depth), np.arange(depth) % depths * pitch], 1)
    summed = []
    for phases in phases_of(form):
        offsets = (np.array(phases) - phases[0]) * (values, plane)
        pairs = [offsets[:, None] + terms[some : some + depths] for some in range(0, depth, depths)]
        summed.append((tables.add(np.concatenate([stage.reshape(-1, 2) for stage in pairs])), len(phases), *phases[0]))
    lists = []
    for _, segments in kinds.all():
        tiles = tiles_at(sizes_of(segments), form)
        for (points, _), summing in zip(form.made.planes, summed, strict=True):
            used = np.flatnonzero(tiles[points])
            at = fill_tiles(used * pixel)
            lists.append((tables.add(at), tables.add(fill_tiles(used * pitch)), at.size, *summing))
    numbers |= {"runs_at": 0, "run_list_at": tables.add(lists)}
    room = Room(source.box_size)
    # The row of each (depth, tap): in the order in which the input meets the taps.
    place = np.arange(form.terms)[:: -1 if p.transposed else 1]
    in_order = p.in_order(np.arange(depth)[:, None] * form.terms + place)
    told = (depth, form.terms, lane_count, *p.weight_steps, size)
    numbers |= {
        "values_at": room.take(planes * values), "values": values,
        "products_at": room.take(math.prod(form.made.values) * products), "products": products,
        "columns_at": room.take(rows_of_tiles(form, strip) * n),
        "pixels_at": room.take(0 if p.writes else math.prod(strip) * math.prod(form.made.steps) * pitch),
        "group_step": depth * source.pitches[1], **form.numbers(),
        "first": first[1:], "parts": parts, "groups": groups,
        "stages": ceil_div(depth, depths), "depths": depths,
        "own": room.take(weights * plane) if own else 0, "plane": plane,
        "taps_at": room.take(form.terms * kernels.DEPTHS * pitch if own else 0),
        "rows_at": tables.add(in_order) if own else 0, "pitch": pitch, "told": told, **p.window_numbers,
    }  # fmt: skip
    packing = None
    if not own:
        chunk = max(kernels.DEPTHS, ceil_div(depth, ceil_div(TASKS, groups * blocks)))
        packing = Packing(
            kernels.transform_weight, groups * blocks * ceil_div(depth, chunk),
            np.array((pitch, chunk, plane, form.number, *form.taps, *form.weights, *told), np.int64),
            in_order, groups * blocks * weights * plane, form.terms * kernels.DEPTHS * pitch,
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
    if form.strides and count_tasks(g) > 1:  # tiles are large, and there may be few strips of them
        most = min(most, ceil_div(sizes[0] * form.count(*sizes[2:]) * blocks * parts, FEW_TASKS))
    strip = Work(form, sizes, depths, filters, 1, itemsize, 1).strip(most)
    if per_sample:
        strip = (1, *strip[1:])
    counts = [ceil_div(a, b) for a, b in zip(sizes, strip, strict=True)]
    strips = math.prod(counts)
    wanted = ceil_div(min(count_tasks(g), max(FEW_TASKS, g.flops // TASK_FLOPS)), blocks * parts)
    chunks, per_chunk = choose_chunks(strips, math.prod(counts[1:]), math.prod(sizes), g.batch, wanted, per_sample)
    kinds, source = _kinds_and_source(g, axes, g.input_shape, x_last, itemsize, strip, blocks * parts > 1)
    tables = Tables()
    numbers = strip_numbers(source, kinds, tables, g.output_shape, steps_of_image(g.output_shape, grad_last), (1, 1, 1))
    pixel = whole_lanes(depths, itemsize)
    turn = min(depths, TURN) if per_chunk == 1 else depths
    turns = ceil_div(depths, turn)
    rows_of_turns = []
    for part, some in itertools.product(range(parts), range(turns)):
        left = min(depths, depth - part * depths) - some * turn
        rows = fill_tiles(np.arange(max(1, min(turn, left))))
        rows_of_turns.append((tables.add(some * turn + rows), tables.add(rows * pitch), rows.size))
    count = strip[0] * form.count(*strip[2:])
    values, gradients, products = (odd_lines(size, itemsize) for size in (count * pixel, count * pitch, turn * pitch))
    # Of each value of the weight the pairs that it is summed over, how many, and the first of the values of both images.
    lists = []
    for _, segments in kinds.all():
        tiles = tiles_at(sizes_of(segments), form).reshape(math.prod(form.points), -1)
        for met in meetings_of(form):
            offsets = (np.array(met) - met[0]) * (values, gradients)
            pairs = np.concatenate(
                [
                    offset + np.flatnonzero(tiles[point])[:, None] * (pixel, pitch)
                    for offset, (_, point) in zip(offsets, met, strict=True)
                ]
            )
            lists.append((tables.add(pairs), len(pairs), *met[0]))
    numbers |= {"runs_at": 0, "run_list_at": tables.add(lists)}
    each = blocks * depth * form.terms * pitch
    own = chunks == 1
    room = Room(source.box_size)
    taps = turn * form.terms * pitch if own else 0
    planes = math.prod(form.read.values) * values
    values_at = room.take(max(planes, taps) if turns == 1 else planes)  # the last taps lie where the values did
    numbers |= {
        "values_at": values_at, "values": values,
        "products_at": room.take(math.prod(form.weights) * products), "products": products,
        "columns_at": room.take(rows_of_tiles(form, strip) * n),
        "pixels_at": room.take(0 if grad_last else math.prod(strip) * pitch),
        "group_step": depth * source.pitches[1], **form.numbers(),
        "gradients_at": room.take(math.prod(form.points) * gradients), "gradients": gradients, "per_chunk": per_chunk,
        "parts": parts, "groups": groups, "depths": depths, "depth": depth, "filters": filters, "pitch": pitch, "each": each,
        "own": own, "rows_at": tables.add(np.arange(turn * form.terms)),
        "taps_at": values_at if turns == 1 else room.take(taps),
        "turns_at": tables.add(rows_of_turns), "turn": turn, "turns": turns, "sums_at": 0,
    }  # fmt: skip
    rows = np.arange(depth * form.terms)
    packing = None if own else unpacking(chunks, per_sample, groups, rows, filters, pitch, each, itemsize)
    return Program(
        kernels.correlate, chunks * blocks * parts, lay_numbers(**numbers), tables.whole(), room.size, count_tasks(g) == 1,
        source, (1, pitch, whole_lanes(pitch, itemsize), 0), packing, StripSums(strips, groups, filters, pitch),
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
    return f"{tiles}, summed over tiles" if computes == "grad_weight" else tiles


def sums_gradients(g: ConvGeometry, itemsize: int) -> bool:
    """Say whether the pass of dW can compute db, too: a vector that is not whole is read from lanes before it."""
    return g.filters // g.groups >= lanes(itemsize)


@functools.lru_cache(maxsize=4096)
def nanoseconds(computes: str, geometry: ConvGeometry, itemsize: int) -> float:
    """Estimate the time of a pass, in the measure of the direct rows' estimate; no time is short if it takes too much memory."""
    g = geometry.volume
    if computes == "grad_weight":
        channels, filters = g.channels // g.groups, g.filters // g.groups
        work = Work(form_of(g), (max(1, g.batch), *g.output), channels, filters, g.groups, itemsize, count_tasks(g))
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
    if computes == "grad_input":  # tiles that end in pixels that do not exist are copied
        time *= math.prod(s * n for s, n in zip(work.form.made.steps, work.sizes[2:], strict=True)) / math.prod(
            g.input[1:]
        )
    return 30_000 + time


def met_share(g: ConvGeometry) -> float:
    """Return the share of the taps of all outputs that lead into the input."""
    share = 1.0
    for n, n_out, f, s, d, (left, _) in zip(g.input, g.output, g.kernel, g.stride, g.dilation, g.padding, strict=True):
        ranges = (tap_range(k, n, n_out, s, d, left) for k in range(f))
        share *= max(1, sum(max(0, last - first + 1) for first, last in ranges)) / (n_out * f)
    return share
