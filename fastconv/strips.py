"""Strips: how a pass is cut, and how what a pixel meets becomes offsets.

The pixels of a pass are cut into strips, (images, planes, rows, columns), few enough that what they need of the input stays in
the second-level cache.  Two offsets say the rest: where in the input a pixel of a strip lies, and how far from there a pair of
a channel and a tap leads.  Stride, dilation, padding, groups, layout and dimension are in these numbers.

Pixels at an edge meet fewer taps; they are *runs* of their own, so that padding costs neither memory nor multiplications.
Where that would leave too many tiles half filled, padding is zeros that are multiplied like any other number.  Strips that
meet the edges alike are of one *kind*, and share their tables.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import LINE, Array
from .geometry import ceil_div, even_part
from .kernels.pack import IMAGE
from .simd import FEW_ROWS, ROWS, VECTORS, lanes

Ints = tuple[int, ...]

TASKS = 16
"""Tasks to split a pass into at least, where it has the work: the split must not ask for the number of cores."""

MANY_TASKS = 32
"""The same where tasks do no more than to pack an image: the last ones to come to an end are to be short."""

FEWEST_PIXELS, MOST_PIXELS, MOST_SUMMED = 96, 384, 256
"""Pixels of a strip: enough to use a panel for, few enough to share among cores; and where they are summed over, so few that
their part of a block of filters, 64 bytes a pixel with AVX2, stays in the first-level cache."""

MOST_REPEATED = 5
"""How often strips may pack a pixel of the input in the mean: to write it once more, and read it again, takes as long."""

STRIP_BYTES = 2**19
"""Most bytes of input in a strip, without what its neighbours need too: it is to stay in the second-level cache."""


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def steps_of_image(shape: Ints, channels_last: bool) -> Ints:
    """Distance of neighbours along (batch, channels, depth, height, width) in an image of this shape."""
    _, C, D, H, W = shape
    if channels_last:
        return (D * H * W * C, 1, H * W * C, W * C, C)
    return (C * D * H * W, D * H * W, H * W, W, 1)


def steps_of_box(box: Ints, channels_last: bool, itemsize: int) -> Ints:
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


def tile_width(itemsize: int) -> int:
    """Lanes in the widest tile."""
    return VECTORS * lanes(itemsize)


def whole_lanes(count: int, itemsize: int) -> int:
    """Numbers in the vectors that hold so many lanes."""
    return ceil_div(count, lanes(itemsize)) * lanes(itemsize)


def panel_pitch(count: int, itemsize: int) -> int:
    """Numbers in a row of a panel that has so many lanes."""
    return min(tile_width(itemsize), whole_lanes(count, itemsize))


def panel_of_lines(count: int, itemsize: int) -> int:
    """Numbers in a row of a panel that has all lanes: an odd number of lines, as in `steps_of_box`."""
    line = 64 // itemsize
    return (ceil_div(whole_lanes(count, itemsize), line) | 1) * line


class Tables:
    """Tables that are laid one behind the other; equal ones once."""

    def __init__(self) -> None:
        self.parts: list[Array] = []
        self.size = 0
        self.known: dict[bytes, int] = {}

    def add(self, values: Any) -> int:
        """Lay a table down and return where it begins."""
        table = np.ascontiguousarray(values, np.int64).reshape(-1)
        key = table.tobytes()
        at = self.known.get(key)
        if at is None:
            at = self.known[key] = self.size
            self.parts.append(table)
            self.size += table.size
        return at

    def whole(self) -> Array:
        """All tables as one array, which is never empty."""
        return np.concatenate([*self.parts, np.zeros(1, np.int64)])


# ---------------------------------------------------------------------------------------------------------------------
# Axes, phases and kinds of strips
# ---------------------------------------------------------------------------------------------------------------------

Taps = tuple[tuple[int, int], ...]
"""Taps along an axis: the number of each, and how far the input that it meets lies from that which the pixel begins at."""


@dataclass(frozen=True)
class AxisPhase:
    """Outputs along an axis that stand in one relation to their taps: output t, of ``count``, meets ``step*t + shift``.

    Equation (1) has one phase, equation (2) one for each residue: its first output is ``first``.
    """

    first: int
    count: int
    taps: Taps


@dataclass(frozen=True)
class Axis:
    """How outputs along an axis meet an input of size ``n``, which is each ``every``-th number of an array."""

    n: int
    step: int
    phases: tuple[AxisPhase, ...]
    every: int = 1

    @functools.cached_property
    def shifts(self) -> list[int]:
        """Where the taps of all phases lead."""
        return [shift for phase in self.phases for _, shift in phase.taps] or [0]

    @property
    def left(self) -> int:
        """How far in front of the first output's input its taps reach."""
        return -min(self.shifts)

    @property
    def span(self) -> int:
        """How far apart the taps of a pixel reach."""
        return max(self.shifts) - min(self.shifts)

    @property
    def grid(self) -> int:
        """Outputs of the phase that has most, which is the first."""
        return self.phases[0].count

    @property
    def pads(self) -> bool:
        """Whether any tap leads out of the input."""
        return min(self.shifts) < 0 or self.step * (self.grid - 1) + max(self.shifts) >= self.n

    def meets(self, t: int, shift: int) -> bool:
        """Whether output t has an input at a shift."""
        return 0 <= self.step * t + shift < self.n


def thinned(axis: Axis) -> Axis:
    """Leave out inputs that no output meets, if those that are met lie evenly apart, from the first on."""
    every = math.gcd(axis.step, *(b - a for a, b in itertools.pairwise(axis.shifts)))
    if every == 1 or axis.shifts[0] % every:
        return axis
    phases = tuple(
        dataclasses.replace(phase, taps=tuple((k, shift // every) for k, shift in phase.taps)) for phase in axis.phases
    )
    return Axis(ceil_div(axis.n, every), axis.step // every, phases, every)


Segment = tuple[int, int, Taps]
"""Outputs from one up to another of a strip along an axis, and taps."""


def by_output(axis: Axis, phase: AxisPhase, first: int, last: int) -> tuple[Segment, ...]:
    """Cut the outputs ``first`` to ``last`` - 1 where the taps that lead into the input change."""
    if axis.meets(first, min(axis.shifts)) and axis.meets(last - 1, max(axis.shifts)):
        return ((0, last - first, phase.taps),)
    segments: list[Segment] = []
    for t in range(first, last):
        taps = tuple(tap for tap in phase.taps if axis.meets(t, tap[1]))
        if segments and segments[-1][2] == taps:
            segments[-1] = (segments[-1][0], t + 1 - first, taps)
        else:
            segments.append((t - first, t + 1 - first, taps))
    return tuple(segments)


def by_tap(axis: Axis, phase: AxisPhase, first: int, last: int) -> tuple[Segment, ...]:
    """Gather the taps that lead into the input from the same outputs of ``first`` to ``last`` - 1."""
    ranges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for tap in phase.taps:
        low = max(first, ceil_div(-tap[1], axis.step))
        high = min(last, (axis.n - 1 - tap[1]) // axis.step + 1)
        if low < high:
            ranges.setdefault((low - first, high - first), []).append(tap)
    return tuple((*ends, tuple(taps)) for ends, taps in ranges.items())


@dataclass(frozen=True)
class Kinds:
    """The kinds of strips along each of (images, depth, height, width).

    ``of`` holds for each strip along an axis the number of its kind; ``runs`` for each kind along an axis and each phase its
    segments.  Of images a segment is the only one.
    """

    of: tuple[Ints, ...]
    segments: tuple[tuple[tuple[tuple[Segment, ...], ...], ...], ...]

    def all(self) -> Iterator[tuple[Ints, tuple[tuple[tuple[Segment, ...], ...], ...]]]:
        """All combinations: their numbers along the axes, and their segments."""
        for numbers in itertools.product(*(range(len(along)) for along in self.segments)):
            yield numbers, tuple(along[k] for along, k in zip(self.segments, numbers, strict=True))

    def work(self, runs: Callable[[int, int], int]) -> int:
        """Sum ``runs(pixels, taps)`` over the runs of all strips."""
        counts = [[of.count(k) for k in range(len(along))] for of, along in zip(self.of, self.segments, strict=True)]
        return sum(
            math.prod(count[k] for count, k in zip(counts, numbers, strict=True))
            * sum(
                runs(math.prod(b - a for a, b, _ in run), math.prod(len(taps) for _, _, taps in run[1:]))
                for _, run in runs_of(segments)
            )
            for numbers, segments in self.all()
        )


def runs_of(segments: tuple[tuple[tuple[Segment, ...], ...], ...]) -> Iterator[tuple[Ints, tuple[Segment, ...]]]:
    """All runs of a kind: the phase along each of (depth, height, width), and the segment along each of the four axes."""
    images, *axes = segments
    for phases in itertools.product(*(range(len(along)) for along in axes)):
        for run in itertools.product(images[0], *(along[p] for along, p in zip(axes, phases, strict=True))):
            yield phases, run


def find_kinds(
    batch: int, axes: Sequence[Axis], strip: Ints, split: Sequence[bool], cut: Callable[..., tuple[Segment, ...]]
) -> Kinds:  # fmt: skip
    """Find the kinds of strips; along the axes that are not split, all pixels take all taps."""
    of, segments = [], []
    known: dict[Any, int] = {}
    numbers = []
    for first in range(0, max(batch, 1), strip[0]):
        image = (((0, min(strip[0], max(batch, 1) - first), ()),),)
        numbers.append(known.setdefault(image, len(known)))
    of.append(tuple(numbers))
    segments.append(tuple(known))
    for axis, size, splits in zip(axes, strip[1:], split, strict=True):
        known, numbers = {}, []
        for first in range(0, axis.grid, size):
            along: list[tuple[Segment, ...]] = []
            for phase in axis.phases:
                last = min(first + size, phase.count)
                if last <= first:
                    along.append(())
                elif splits:
                    along.append(cut(axis, phase, first, last))
                else:
                    along.append(((0, last - first, phase.taps),))
            numbers.append(known.setdefault(tuple(along), len(known)))
        of.append(tuple(numbers))
        segments.append(tuple(known))
    return Kinds(tuple(of), tuple(segments))


def grid_offsets(sizes: Sequence[Segment], steps: Ints) -> Array:
    """Offsets of all places in a run of pixels, in order."""
    result = np.zeros(1, np.int64)
    for (first, last, _), step in zip(sizes, steps, strict=True):
        result = (result[:, None] + step * np.arange(first, last)).reshape(-1)
    return result


def filled(rows: int) -> int:
    """Count the rows of a column of outer tiles that has room for so many.

    >>> [filled(rows) for rows in (0, 1, 5, 6, 49)]
    [0, 4, 6, 6, 50]
    """
    return max(FEW_ROWS, ceil_div(rows, 2) * 2) if rows else 0


def fill_tiles(offsets: Array, height: int = 0) -> Array:
    """Fill a table of rows up to a column of outer tiles, or to whole tiles of a height, with copies of the last."""
    rows = ceil_div(offsets.size, height) * height if height else filled(offsets.size)
    return offsets[np.minimum(np.arange(rows), offsets.size - 1)]


# ---------------------------------------------------------------------------------------------------------------------
# Strips
# ---------------------------------------------------------------------------------------------------------------------


def choose_strip(sizes: Ints, pixel_bytes: int, most: int, tasks: int, height: int = ROWS) -> Ints:
    """Choose (images, planes, rows, columns) of a strip, of all pixels with ``sizes``: whole rows, planes, images if it can.

    If it cuts rows, then to a multiple of a ``height``.
    """
    if math.prod(sizes) == 0:
        return (1, 1, 1, 1)
    least, most = FEWEST_PIXELS, min(most, max(ROWS, STRIP_BYTES // pixel_bytes))
    wanted = min(max(ceil_div(math.prod(sizes), tasks), least), most)
    strip = [1, 1, 1, 1]
    for axis in (3, 2, 1, 0):
        inside, n = math.prod(strip), sizes[axis]
        if n * inside <= wanted:
            strip[axis] = max(1, n)
            continue
        # About the wanted size, whichever fills tiles best and shares evenly.
        about = max(1, round(wanted / inside))
        step = height if axis == 3 and about >= height else 1
        choices = range(ceil_div(max(1, 2 * about // 3), step) * step, max(1, min(n, 4 * about // 3)) + 1, step)
        strip[axis] = min(
            choices or (min(about, n),), key=lambda size: (_waste(n, size, inside, math.prod(sizes[:axis])), -size)
        )
        break
    return tuple(strip)


def choose_summed_strip(sizes: Ints, pixel_bytes: int, most: int, tasks: int) -> Ints:
    """Choose (images, planes, rows, columns) of a strip that is summed over: whole rows, planes, images, or even parts of one.

    >>> choose_summed_strip((4, 1, 56, 56), 256, 64, 16), choose_summed_strip((4, 1, 28, 28), 256, 256, 8)
    ((1, 1, 1, 56), (1, 1, 7, 28))
    """
    wanted = min(max(ceil_div(math.prod(sizes), tasks), FEWEST_PIXELS), most, max(1, STRIP_BYTES // pixel_bytes))
    strip = [1, 1, 1, 1]
    for axis in (3, 2, 1, 0):
        inside = math.prod(strip)
        strip[axis] = even_part(sizes[axis], max(1, wanted // inside))
        if strip[axis] < sizes[axis]:
            break
    return tuple(strip)


def candidate_strips(
    sizes: Ints, pixel_bytes: int, most: int, tasks: int, least: int, height: int = ROWS
) -> list[Ints]:  # fmt: skip
    """List strips worth a try: that of `choose_strip`, and those that cut an axis, or images, into equal parts."""
    found = [choose_strip(sizes, pixel_bytes, most, tasks, height)]
    most = min(most + most // 6, max(ROWS, STRIP_BYTES // pixel_bytes))
    for axis in (2, 1, 0):
        inside, n = math.prod(sizes[axis + 1 :]), sizes[axis]
        parts = range(1, n + 1) if n <= 64 else ()
        for size in sorted({ceil_div(n, k) for k in parts}):
            if least <= size * inside <= most:
                found.append((*(1,) * axis, size, *sizes[axis + 1 :]))
    return list(dict.fromkeys(found))


def imbalance(tasks: int) -> float:
    """Time that so many equal tasks take on two or four threads, beside what they would take if any part could be shared."""
    return sum(ceil_div(tasks, t) * t / tasks for t in (2, 4)) / 2 if tasks else 1.0


def _waste(n: int, size: int, inside: int, others: int) -> float:
    """Work per pixel, of the busiest of two or four threads, if n*inside pixels are cut into strips of a size."""
    whole, rest = divmod(n, size)
    rows = others * (whole * filled(size * inside) + filled(rest * inside))
    strips = others * (whole + (rest > 0))
    tasks = strips * ceil_div(TASKS, strips)  # few strips are shared by tasks that compute different lanes
    return rows / (n * inside * others) * imbalance(tasks)


@dataclass(frozen=True)
class Source:
    """How the tasks find the input of a strip of (images, planes, rows, columns).

    If it ``packs``, the strip's part of the input is copied, with padding, into a ``box`` with distances ``box_steps``.  If
    ``whole`` is given, the input with its padding is first packed as a whole, as several tasks need each strip: it holds the
    tasks that this takes, the numbers that are written, and what `fastconv.kernels.pack.pack_image` is told.  ``lefts`` is the
    padding in front of what was packed so.  With a ``line`` only so many channels of a pixel lie together, and each plane holds
    these.
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
    whole: tuple[int, int, Array] | None
    lefts: Ints = (0, 0, 0)
    line: int = 0

    @property
    def strips(self) -> int:
        """Count the strips."""
        return math.prod(self.counts)

    @property
    def pitches(self) -> Ints:
        """Distance of neighbours in what the tiles read."""
        return self.box_steps if self.packs else self.steps

    @property
    def follows(self) -> bool:
        """Whether pixels of a strip, and then those of the next, are read as they follow each other in memory."""
        rows = self.shape[2] * self.shape[3] == self.step[2] == 1 and not (self.packs or self.line)
        return rows and self.steps[1] == 1 and self.steps[4] == self.shape[1]

    @property
    def box_size(self) -> int:
        """Numbers of scratch memory for a box, whole cache lines."""
        return ceil_div(self.box[0] * self.box_steps[0] + self.slack, 16) * 16 if self.packs else 0

    @property
    def pixel_steps(self) -> Ints:
        """Distance in what the tiles read of neighbouring (images, planes, rows, columns) of a strip."""
        batch, _, *steps = self.pitches
        return (batch, *(s * step for s, step in zip(self.step, steps, strict=True)))

    def place(self, along: Sequence[tuple[int, int]]) -> int:
        """How far a tap, given by its (number, shift) along each axis, lies from where the input of a pixel begins."""
        return sum(
            (shift + left) * step for (_, shift), left, step in zip(along, self.lefts, self.pitches[2:], strict=True)
        )

    def channels(self, count: int) -> Array:
        """List how far each of so many channels lies from the first one of its pixel."""
        channel = np.arange(count)
        if not self.line:
            return channel * self.pitches[1]
        return channel // self.line * self.pitches[2] + channel % self.line


def make_source(
    shape: Ints, channels_last: bool, itemsize: int, batch: int, axes: Sequence[Axis], strip: Ints, last: bool, packs: bool,
    together: bool, channels: int = 0, slack: int = 0,
) -> Source:  # fmt: skip
    """Describe how an image of this shape is read.

    ``last`` says how a box lies, ``together`` whether several tasks need each strip, ``channels`` how many a box holds, if not
    all.
    """
    step, left = tuple(axis.step for axis in axes), tuple(axis.left for axis in axes)
    sizes = (batch, *(axis.grid for axis in axes))

    def box(sizes: Ints) -> Ints:
        extents = ((n - 1) * axis.step + axis.span + 1 for n, axis in zip(sizes[1:], axes, strict=True))
        return (sizes[0], channels or shape[1], *extents)

    part = box(strip)
    counts = tuple(ceil_div(n, m) for n, m in zip(sizes, strip, strict=True))
    every = (1, 1, *(axis.every for axis in axes))
    steps = tuple(step * e for step, e in zip(steps_of_image(shape, channels_last), every, strict=True))
    shape, lefts = tuple(ceil_div(n, e) for n, e in zip(shape, every, strict=True)), left
    whole: tuple[int, int, Array] | None = None
    if packs and together:
        everything = box(sizes)
        inside = steps_of_box(everything, last, itemsize)
        whole = pack_whole(shape, steps, left, everything, inside)
        shape, steps, left, packs = everything, inside, (0, 0, 0), False
    return Source(
        strip, counts, shape, steps, left, step, packs, part, steps_of_box(part, last, itemsize), slack, whole, lefts
    )


def pack_whole(shape: Ints, steps: Ints, left: Ints, box: Ints, box_steps: Ints) -> tuple[int, int, Array]:
    """Say how an image is packed as a whole, as `Source` says it: by as many rows at once as leave tasks for many threads.

    Rows that follow each other are turned over as one run of pixels, narrow ones hardly more slowly than wide ones.
    """
    images, _, planes, height, _ = box
    rows = ceil_div(height, ceil_div(MANY_TASKS, max(1, images * planes)))
    numbers = IMAGE.lay(shape=shape, steps=steps, left=left, box=box, box_steps=box_steps, rows=rows)
    return images * planes * ceil_div(height, rows), images * box_steps[0], numbers


def repeats(axes: Sequence[Axis], strip: Ints) -> bool:
    """Say whether strips meet each pixel of the input so often that it had better be packed but once, as a whole.

    >>> axes = [Axis(n, 1, (AxisPhase(0, n, ((0, -1), (1, 0), (2, 1))),)) for n in (32, 64, 64)]
    >>> repeats(axes, (1, 1, 2, 64)), repeats(axes, (1, 1, 8, 64))
    (True, False)
    """
    met = every = 1
    for axis, size in zip(axes, strip[1:], strict=True):
        met *= ceil_div(axis.grid, size) * ((size - 1) * axis.step + axis.span + 1)
        every *= (axis.grid - 1) * axis.step + axis.span + 1
    return met > MOST_REPEATED * every


def line_by_line(source: Source, itemsize: int) -> Source:
    """Let as many channels as fill a line of the cache be a plane of their own, in an image that is packed as a whole.

    A tile that reads few channels of many pixels then finds them in lines that follow each other.  There are no other planes.
    """
    assert source.whole is not None
    told = IMAGE.read(source.whole[2])
    images, channels, _, rows, columns = told.box
    line = LINE // itemsize
    planes, plane = channels // line, rows * columns * line
    inside = (planes * plane, 1, plane, columns * line, line)
    # The image's planes are of so many channels, too.
    batch, _, _, *size = told.shape
    image, channel, _, *steps = told.steps
    shape, steps = (batch, line, planes, *size), (image, channel, channel * line, *steps)
    whole = pack_whole(shape, steps, told.left, (images, line, planes, rows, columns), inside)
    return dataclasses.replace(source, steps=inside, whole=whole, line=line)


def strip_numbers(
    source: Source, kinds: Kinds, tables: Tables, out_shape: Ints, out_steps: Ints, out_step: Ints,
    streams: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return the numbers that `fastconv.kernels.direct.STRIPS` names, but for the last two."""
    places, times = [], 1
    for of, along in reversed(list(zip(kinds.of, kinds.segments, strict=True))):
        places.append(tables.add(np.array(of) * times))
        times *= len(along)
    return {
        "shape": source.shape, "steps": source.steps, "box": source.box, "box_steps": source.box_steps, "strip": source.strip,
        "counts": source.counts, "left": source.left, "x_step": source.step, "packs": source.packs,
        "box_size": source.box_size, "kinds_at": tuple(reversed(places)), "out_shape": out_shape, "out_steps": out_steps,
        "out_step": out_step, "streams": streams,
    }  # fmt: skip


def choose_padding(
    batch: int, axes: Sequence[Axis], strip: Ints, cut: Callable[..., tuple[Segment, ...]], can_read: bool,
    runs: Callable[[int, int], int], packing: int,
) -> tuple[float, Kinds, bool]:  # fmt: skip
    """Choose whether pixels at the edges are runs of their own, and whether the input is packed with its padding.

    ``runs(pixels, taps)`` is the work of a run, ``packing`` that of packing the input.  Without packing, which is possible if
    it ``can_read`` the input as it lies, edges have to be runs of their own.  Returns the work, too.
    """
    pads = [axis.pads for axis in axes]
    if not any(pads):
        kinds = find_kinds(batch, axes, strip, pads, cut)
        return kinds.work(runs), kinds, not can_read
    best: tuple[float, Kinds, bool] | None = None
    for split in itertools.product(*((False, True) if p else (False,) for p in pads)):
        kinds = find_kinds(batch, axes, strip, split, cut)
        work = kinds.work(runs)
        for packs in (False, True):
            if packs or (can_read and list(split) == pads):
                cost = work + packing * packs
                if best is None or cost < best[0]:
                    best = (cost, kinds, packs)
    assert best is not None
    return best
