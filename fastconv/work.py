"""How passes by Winograd's algorithm are cut into strips of tiles, and these into tasks: so that they take the least time."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from .geometry import ceil_div
from .simd import MARKS, lanes
from .strips import Ints, imbalance, panel_pitch, whole_lanes
from .tiles import Form, product_rows

__all__ = ["FEWEST_TILES", "FEW_TASKS", "MOST_TILES", "Work"]

VALUES_BYTES = 5 << 20
"""Most bytes of a strip's input at the points: each is used for as many products as there are filters, so it may stand in the
third-level cache."""

FEWEST_TILES, MOST_TILES = 24, 96
"""Tiles of a strip: enough to use the weight for."""

TILE_TERMS, READING, INPUT, OUTPUT, EVALUATION = 12, 2.8, 2.8, 2.75, 6.7
"""Time, in that of one multiplication of vectors, beside the multiplications: to begin and end a tile; to read a vector of the
weight at a point for a strip; and for each vector that is written where the input, the products or the weight are evaluated."""

PHASES = 2
"""What a vector of the input takes in proportion where it has phases: a row of tiles does not stay in the first-level cache."""

PHASES_BYTES, CROWDED = 5 << 18, 1.25
"""Bytes of the values of all phases that still share the second-level cache with others, and what it takes where they do not."""

NEAR_BYTES, FAR = 5 << 17, 0.15
"""The same bytes without phases, and how much longer it takes if nearly all values stand in the third-level cache."""

MOST_SHARED = 8 << 20
"""Bytes of a weight at the points that the third-level cache keeps for all strips; to read more takes twice the time."""

FEW_TASKS = 4
"""Tasks to cut a pass with several phases into at least: each part of the blocks evaluates the input anew."""

ALONG_ONE_AXIS = 1.2
"""What rows and columns alone take in proportion to the estimate: they have few products for what has to be evaluated."""

SHARING = 60_000
"""The same for what threads wait where they evaluate the weight together: the others' parts lie in the others' caches."""

ENOUGH_TASKS, NARROW = 8, 1.05
"""With fewer tasks, blocks of half the width are worth a thought; and the time they take in proportion to whole ones."""

BY_STRIPS = 3 << 20
"""Most bytes of a weight at the points of which each task had better read another part than the one before it, and find the input
evaluated."""

KEPT, KEPT_BYTES = 0.04, 8 << 20
"""What a pass may take longer for each worker to evaluate what it needs of the weight, and most bytes that all then have beyond
the weight at the points: nobody waits, and caches that are apart keep what is their own."""

REEVALUATED = 40_000
"""Most numbers of a weight that tasks evaluate more than once between them."""


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
    def weight_bytes(self) -> int:
        """Bytes of the weight at the points."""
        return math.prod(self.form.weights) * self.groups * self.depth * self.lane_count * self.itemsize

    def by_strips(self, strip: Ints) -> bool:
        """Say whether tasks that follow each other are parts of a strip, whose input is evaluated once; or strips of a part."""
        return self.split(strip)[1] > 1 and self.weight_bytes <= BY_STRIPS

    def keepers(self, strip: Ints) -> int:
        """Count the workers among which each had better evaluate the blocks of the weight that it comes to; 0 if none.

        Where workers share the parts of the blocks, as many of them as there are parts evaluate the weight once between them.
        """
        parts = 1 if self.by_strips(strip) else self.split(strip)[1]
        if self.prepared or self.form.strides or self.blocks > MARKS - 2:  # the last two are for the input
            return 0
        once = self.weighing[0] * self.depth * self.vectors[1]
        again = min(KEPT * self.cost(strip) / once, KEPT_BYTES / self.weight_bytes)
        return int(parts * (1 + again))

    @property
    def weighing(self) -> tuple[float, float]:
        """Estimate the time to evaluate a vector of the weight for each tap, and to read what came of it."""
        reading = READING * (2 if self.form.strides and self.weight_bytes > MOST_SHARED else 1)
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
