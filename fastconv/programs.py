"""Programs: a task with all that it is told but the arrays of a call, and what all ways to compute a pass have in common."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arrays import LINE, Array
from .geometry import ConvGeometry, ceil_div, phase_taps, tap_range
from .kernels.layout import turn
from .kernels.pack import SUMS, pack_image, unpack_panel
from .kernels.sums import add_strips
from .prepared import PreparedWeight
from .scratch import aligned, buffer
from .simd import MEMBERS, lanes
from .strips import TASKS, Axis, AxisPhase, Ints, Source, steps_of_image
from .tasks import Task
from .threads import sharing

__all__ = [
    "CHUNK_PIXELS", "FIRST_PANEL", "NO_TABLE", "REPACKED", "SERIAL_BYTES", "TILE_TERMS", "Keeping", "Packing", "Pixels",
    "Program", "StripSums", "choose_chunks", "count_tasks", "forward_axes", "grad_input_pixels", "is_depthwise", "list_pairs",
    "members_of", "memory_of", "met_share", "output_pixels", "tap_numbers", "term_rows", "unpacking",
]  # fmt: skip

SERIAL_FLOPS, SERIAL_BYTES = 1_000_000, 100_000
"""Up to this much arithmetic, or copying, tasks run on the calling thread alone: waking others takes longer."""

STREAM_BYTES = 6_000_000
"""Fewest bytes of an output that goes to memory past the caches, which would read what it replaces before.  Of a smaller one what
comes next finds more in the caches than that costs."""

SHORT_SUM, FAR_BYTES = 25, 28_000_000
"""Terms of sums as short as these outputs come faster than memory takes them, which then go there only if they and the input have
so many bytes: of fewer, caches hold most of what they replace."""

CHUNK_PIXELS = 256
"""Fewest pixels per chunk of dW: each chunk has sums of its own, which must not cost more than they save."""

REPACKED = 64_000
"""Most numbers that tasks pack more than once between them: what one packs for all has to be waited for, and to pass from cache
to cache."""

FIRST_PANEL = 16
"""Numbers in front of a panel in scratch memory: it does not begin at 0, which stands for none."""

TILE_TERMS = 12
"""Terms that take as long as beginning and ending a tile."""

NO_TABLE = np.zeros(1, np.int64)


def is_depthwise(g: ConvGeometry) -> bool:
    """Say whether every channel is a group of its own, with one filter."""
    return g.groups == g.channels == g.filters > 1


def members_of(g: ConvGeometry, itemsize: int) -> int:
    """Count the channels of a group, if these and its filters are so few that tiles slide over pixels; 0 if they do not."""
    if is_depthwise(g):
        return 1
    members = g.channels // g.groups
    slides = g.groups > 1 and g.channels == g.filters and members in MEMBERS and members <= lanes(itemsize)
    return members if slides else 0


def met_share(g: ConvGeometry) -> float:
    """Return the share of the taps of all outputs that lead into the input."""
    share = 1.0
    for n, n_out, f, s, d, (left, _) in zip(g.input, g.output, g.kernel, g.stride, g.dilation, g.padding, strict=True):
        ranges = (tap_range(k, n, n_out, s, d, left) for k in range(f))
        share *= max(1, sum(max(0, last - first + 1) for first, last in ranges)) / (n_out * f)
    return share


def count_tasks(g: ConvGeometry) -> int:
    """Count the tasks to cut a pass into at least: one, if it runs on the calling thread alone."""
    return 1 if g.flops <= SERIAL_FLOPS else TASKS


@dataclass(frozen=True)
class Packing:
    """What turns a weight into panels before a program, or panels into a weight after it.

    Attributes
    ----------
    task, tasks, numbers, table
        What it runs, how often, and what it is told.
    panels : int
        Numbers in the panels.
    room : int
        Numbers of scratch memory for each thread.
    halved : (int, array of shape (n, 2))
        Numbers in a row of the panels, and pairs of rows that share what the first one has: each gets half of it.  Two halves add
        up to what the whole would, whatever they are multiplied by, where 0 instead of one would not for Inf.
    """

    task: Task
    tasks: int
    numbers: Array
    table: Array
    panels: int
    room: int = 0
    halved: tuple[int, Array] = (1, np.empty((0, 2), np.int64))

    def __post_init__(self) -> None:
        # A kernel takes an array as its address: of a view that steps back, that of its last number.
        object.__setattr__(self, "table", np.ascontiguousarray(self.table, np.int64))

    @functools.cached_property
    def key(self) -> tuple[str, bytes, bytes, bytes]:
        """What tells it from others whose panels differ."""
        return self.task.__name__, self.numbers.tobytes(), self.table.tobytes(), self.halved[1].tobytes()

    def run(self, source: Array, target: Array) -> None:
        """Run all tasks."""
        alone = max(source.nbytes, target.nbytes) <= SERIAL_BYTES
        self.task(self.tasks, self.numbers, self.table, source, target, room=self.room, alone=alone)
        pitch, pairs = self.halved
        if pairs.size:
            rows, (first, second) = target.reshape(-1, pitch), pairs.T
            with np.errstate(all="ignore"):  # behind the lanes that exist is anything
                rows[first] /= 2
            rows[second] = rows[first]


def unpacking(
    chunks: int, per_sample: bool, groups: int, rows: Array, filters: int, pitch: int, each: int, itemsize: int,
    panel_rows: int = 0,
) -> Packing:  # fmt: skip
    """Return what adds up the chunks' panels, in their order, and turns them to weights, or turns those of each sample.

    ``rows`` are the rows of the terms, ``filters`` those of a group, ``each`` the numbers in the panels of a chunk.  A panel has
    as many rows, unless told to have more.
    """
    sums, units = (1, chunks * groups) if per_sample else (chunks, groups)
    blocks, terms, n = units * ceil_div(filters, pitch), len(rows), lanes(itemsize)
    each_takes = n * ceil_div(ceil_div(terms, n), ceil_div(2 * TASKS, blocks))
    told = SUMS.lay(
        sums=sums, each=each, lane_count=filters, terms=terms, pitch=pitch, rows=panel_rows or terms, chunk=each_takes
    )
    return Packing(unpack_panel, blocks * ceil_div(terms, each_takes), told, rows, chunks * each)


@dataclass(frozen=True)
class StripSums:
    """Sums of the gradients of each strip, which the tasks of equation (3) take for equation (4) if they are told to.

    Attributes
    ----------
    told_at : int
        Where a program's numbers say where these go; it is 0 if nowhere.
    strips, groups, filters, pitch : int
        Strips, groups, filters of a group, and those of a block, up to whole vectors.
    """

    told_at: int
    strips: int
    groups: int
    filters: int
    pitch: int

    def slots(self, itemsize: int) -> tuple[int, int, int]:
        """Shape of the slots of a strip: [group, block, lane], of which a vector's lanes in front are not used."""
        return self.groups, ceil_div(self.filters, self.pitch), lanes(itemsize) + self.pitch

    def size(self, itemsize: int) -> int:
        """Count the numbers of all slots."""
        return self.strips * math.prod(self.slots(itemsize))

    def add_up(self, sums: Array, sums_at: int, out: Array) -> None:
        """Add up what tasks have left."""
        slots = self.slots(out.itemsize)
        total = np.zeros(math.prod(slots), np.float64)
        add_strips(sums, sums_at, self.strips, total)
        used = total.reshape(slots)[:, :, lanes(out.itemsize) :].reshape(self.groups, -1)
        out.reshape(self.groups, self.filters)[...] = used[:, : self.filters]


@dataclass(frozen=True)
class Keeping:
    """What a program is told where few enough workers share it for each to pack what it needs of the weight, and keep it.

    Attributes
    ----------
    workers : int
        Most workers for which that is so.
    numbers, room
        Numbers of the task, and of its scratch memory.
    """

    workers: int
    numbers: Array
    room: int


@dataclass(frozen=True)
class Program:
    """A task and all that it is told but the arrays of a call.

    Attributes
    ----------
    task, tasks, numbers, tables, room, alone
        What it runs, how often, with which numbers and tables, and with how much scratch memory for each thread; and
        whether on the calling thread alone.
    source : Source
        How it finds its input.
    start : tuple of int
        Groups, lanes of a group, numbers for these, and zeros behind them, that sums begin with.
    packing : Packing or None
        None if the tasks take the weight as it lies, or each has panels of its own.
    sums : StripSums or None
        Of equation (3), where tasks can sum gradients, too.
    turns : tuple of int or None
        Matrices, rows and columns of a weight that has to be turned over: before equation (1) or (2), or after equation (3), if
        it lies channels-last, or if this ``swaps``.
    swaps : bool
        Whether the tasks of equation (3) take the input for the gradients and these for the input.
    keeping : Keeping or None
        What takes the place of the packing where there are few workers.
    starts : dict
        What sums begin with where there is no bias, by dtype and floor.
    """

    task: Task
    tasks: int
    numbers: Array
    tables: Array
    room: int
    alone: bool
    source: Source
    start: tuple[int, int, int, int]
    packing: Packing | None = None
    sums: StripSums | None = None
    turns: tuple[int, int, int] | None = None
    swaps: bool = False
    keeping: Keeping | None = None
    starts: dict[tuple[str, float], Array] = field(default_factory=dict, compare=False)

    def pixels(
        self, out: Array, x: Array, weight: Array | PreparedWeight, bias: Array | None = None, floor: float = -math.inf
    ) -> None:  # fmt: skip
        """Compute equation (1) or (2) with flat arrays; what is less than the floor becomes that."""
        start = self.begin(bias, out.dtype, floor)
        kept = self.kept()
        if kept is None or isinstance(weight, PreparedWeight):
            numbers, room, factors = self.numbers, self.room, self.factors(weight)
        else:
            numbers, room, factors = kept.numbers, kept.room, self.turned(weight)
        self.run(numbers, self.prepared(x), factors, start, out, room=room)

    def weights(self, out: Array, grad_output: Array, x: Array, grad_bias: Array | None = None) -> None:
        """Compute equation (3) with flat arrays, and of a program with ``sums`` equation (4), if there is an array for it."""
        if self.swaps:
            x, grad_output = grad_output, x
        target = out if self.turns is None else buffer("weight", out.size, out.dtype)
        panels = target if self.packing is None else buffer("panels", self.packing.panels, out.dtype)
        start, numbers, sums = self.begin(None, out.dtype), self.numbers, self.sums
        if grad_bias is not None and sums is not None:
            zeros, sums_at = start, ceil_div(start.size, lanes(out.itemsize)) * lanes(out.itemsize)
            start = buffer("start", sums_at + sums.size(out.itemsize), out.dtype)
            start[: zeros.size] = zeros
            numbers = numbers.copy()
            numbers[sums.told_at] = sums_at
        self.run(numbers, self.prepared(x), grad_output, panels, start, room=self.room)
        if self.packing is not None:
            self.packing.run(panels, target)
        if self.turns is not None:
            self.turn(target, out)
        if grad_bias is not None and sums is not None:
            sums.add_up(start, sums_at, grad_bias)

    def channels_last(self, filters: int, depth: int, taps: int) -> Program:
        """Let equation (3) write weights of so many filters, depths and taps channels-last.

        Panels are turned to weights in the order of these, if depths are neighbours there; to read rows that lie apart takes
        longer than to turn the weights over.
        """
        turned = dataclasses.replace(self, turns=(filters, depth, taps))
        if self.packing is None or self.packing.table.size < depth * taps:  # the tasks have turned them over
            return turned
        rows = self.packing.table.reshape(depth, taps)
        if depth > 1 and np.median(np.diff(rows[:, 0])) != 1:
            return turned
        return dataclasses.replace(self, packing=dataclasses.replace(self.packing, table=rows.T.reshape(-1)))

    def prepared(self, x: Array) -> Array:
        """Return the input as the tasks take it: as it is, or packed as a whole."""
        if self.source.whole is None:
            return x
        tasks, size, told = self.source.whole
        packed = buffer("image", size, x.dtype)
        pack_image(tasks, told, NO_TABLE, x, packed, alone=packed.nbytes <= SERIAL_BYTES)
        return packed

    def factors(self, weight: Array | PreparedWeight) -> Array:
        """Return the weight as the tasks take it: as it lies, or packed, here or before."""
        packing = self.packing
        if isinstance(weight, PreparedWeight):
            return weight.flat if packing is None else weight.panels(packing.key, packing.panels, packing.run)
        weight = self.turned(weight)
        if packing is None:
            return weight
        panels = buffer("panels", packing.panels, weight.dtype)
        packing.run(weight, panels)
        return panels

    def turned(self, weight: Array) -> Array:
        """Return a weight in the order in which the tasks take it."""
        if self.turns is None:
            return weight
        turned = buffer("weight", weight.size, weight.dtype)
        self.turn(weight, turned)
        return turned

    def kept(self, threads: int = 0) -> Keeping | None:
        """Return what workers are told that keep what they pack of the weight, if so many do; all, if not told how many."""
        keeping = self.keeping
        return None if keeping is None or min(threads or sharing(), self.tasks) > keeping.workers else keeping

    def turn(self, source: Array, target: Array) -> None:
        """Turn the matrices of a weight over."""
        assert self.turns is not None
        matrices, rows, columns = self.turns
        turn(source.reshape(matrices, rows, columns), target.reshape(matrices, columns, rows))

    def run(self, numbers: Array, *arrays: Array, room: int) -> None:
        """Run all tasks."""
        self.task(self.tasks, numbers, self.tables, *arrays, room=room, alone=self.alone)

    def scratch_bytes(self, itemsize: int, threads: int = 0) -> int:
        """Count the scratch memory of a call: panels, the packed input, sums, a weight turned over, and rooms for its workers."""
        image = self.source.whole[1] if self.source.whole else 0
        workers = 1 if self.alone else min(threads or sharing(), self.tasks)
        kept = self.kept(threads)
        panels = self.packing.panels if self.packing and kept is None else 0
        room = self.room if kept is None else kept.room
        sums = self.sums.size(itemsize) if self.sums else 0
        turned = math.prod(self.turns) if self.turns else 0
        return int(itemsize * (panels + image + sums + turned + workers * room))

    def begin(self, bias: Array | None, dtype: np.dtype[Any], floor: float = -math.inf) -> Array:
        """Return what sums begin with: the bias or zeros, up to whole vectors, and a tile's zeros.

        Behind that are two floors, of what is stored: that of sums that are not done, and that of results.
        """
        groups, used, padded, zeros = self.start
        without = self.starts.get((dtype.char, floor))
        if without is None:
            without = aligned(groups * padded + zeros + 2, dtype)
            without[:] = 0
            without[-2:] = -math.inf, floor
            self.starts[dtype.char, floor] = without
        if bias is None:
            return without
        start = buffer("start", without.size, dtype)
        start[:] = without
        start[: groups * padded].reshape(groups, padded)[:, :used] = bias.reshape(groups, used)
        return start


def tap_numbers(
    g: ConvGeometry, along: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    """Combine taps along each axis: the number of each combination in the weight, and its parts."""
    _, height, width = g.kernel
    return [((z[0] * height + y[0]) * width + x[0], (z, y, x)) for z, y, x in itertools.product(*along)]


@dataclass(frozen=True)
class Pixels:
    """What equations (1) and (2) have in common: a pass that computes pixels of ``channels`` from sums of ``depth``.

    The weight may lie channels-last (``weight_last``); if it is ``prepared``, its panels are kept from call to call.  If it
    ``adds``, the sums are added to what is there.  Equation (2) is ``transposed``.  With a ``window``, rows and columns of
    pixels, the maxima of windows side by side are stored, channels-last, and behind them their places.
    """

    g: ConvGeometry
    axes: tuple[Axis, ...]
    in_shape: Ints
    in_last: bool
    out_shape: Ints
    out_last: bool
    out_step: Ints
    channels: int
    depth: int
    itemsize: int
    prepared: bool = False
    adds: bool = False
    transposed: bool = False
    window: tuple[int, int] = (0, 0)
    weight_last: bool = False

    @property
    def T(self) -> int:
        """Count the taps."""
        return math.prod(self.g.kernel)

    @property
    def weight_steps(self) -> Ints:
        """Distances of groups, lanes, depths and taps in the weight."""
        count = self.channels // (1 if is_depthwise(self.g) else self.g.groups)
        channels = count if self.transposed else self.depth  # of a filter
        channel, tap = (1, channels) if self.weight_last else (self.T, 1)
        lane, depth = (channel, channels * self.T) if self.transposed else (channels * self.T, channel)
        return count * self.depth * self.T, lane, depth, tap

    def in_order(self, rows: Array) -> Array:
        """List the rows of a panel of all [depth, tap] in the order of these terms in memory."""
        return (rows.T if self.weight_last else rows).reshape(-1)

    @property
    def can_stream(self) -> bool:
        """Whether the output can go to memory past the caches: pixels, or planes, that share no line, and are written once."""
        together = self.channels if self.out_last else math.prod(self.out_shape[2:])
        return self.window == (0, 0) and together * self.itemsize % LINE == 0 and not self.adds

    @property
    def streams(self) -> bool:
        """Whether the output goes there: one that the caches would not hold."""
        size = math.prod(self.out_shape)
        # Planes of sums over one tap are turned over, and depthwise ones read as much as they write.
        is_quick = self.depth * self.T <= SHORT_SUM and (self.out_last or self.T > 1) and not is_depthwise(self.g)
        is_near = is_quick and (size + math.prod(self.in_shape)) * self.itemsize < FAR_BYTES
        return self.can_stream and size * self.itemsize >= STREAM_BYTES and not is_near

    @property
    def writes(self) -> bool:
        """Whether tiles of pixels are written to the output as they lie."""
        return self.out_last and self.window == (0, 0)

    @property
    def window_numbers(self) -> dict[str, Any]:
        """Return what `fastconv.kernels.pooling.pool_strip` is told."""
        if self.window == (0, 0):
            return {"window": (0, 0), "window_steps": (0, 0, 0), "places_at": 0}
        height, width = (n // m for n, m in zip(self.out_shape[3:], self.window, strict=True))
        steps = (height * width * self.channels, width * self.channels, self.channels)
        return {"window": self.window, "window_steps": steps, "places_at": self.g.batch * steps[0] * self.itemsize}

    def along_windows(self, strip: Ints) -> Ints:
        """Cut rows and columns of a strip between windows only."""
        whole = (
            [ceil_div(n, m) * m for n, m in zip(strip[2:], self.window, strict=True)] if self.window[0] else strip[2:]
        )
        return (*strip[:2], *(min(n, most) for n, most in zip(whole, self.sizes[2:], strict=True)))

    @property
    def tasks(self) -> int:
        """Count the tasks to cut the pass into at least."""
        return count_tasks(self.g)

    @property
    def sizes(self) -> Ints:
        """Pixels along each axis."""
        return (self.g.batch, *(axis.grid for axis in self.axes))

    @property
    def stride(self) -> Ints:
        """Distance in the input of neighbouring pixels."""
        return tuple(axis.step for axis in self.axes)

    def scratch_steps(self, strip: Ints, pitch: int) -> Ints:
        """Distance of neighbours in scratch, where a strip's part of the output lies pixel by pixel."""
        extents = tuple(min(s * n, m) for s, n, m in zip(self.out_step, strip[1:], self.out_shape[2:], strict=True))
        return steps_of_image((1, pitch, *extents), True)

    def scratch_size(self, strip: Ints, pitch: int) -> int:
        """Numbers of scratch memory that a strip's part of the output takes."""
        return strip[0] * self.scratch_steps(strip, pitch)[0]


def memory_of(array: Array) -> tuple[Array, bool]:
    """Return an image's memory as a flat array, and whether it lies channels-last, as every image of one pixel does."""
    if array.flags.c_contiguous:
        return array.reshape(-1), math.prod(array.shape[2:]) == 1
    return array.transpose(0, 2, 3, 4, 1).reshape(-1), True


def forward_axes(g: ConvGeometry) -> tuple[Axis, ...]:
    """Output t meets input s*t + d*k - P through tap k."""
    return tuple(
        Axis(n, s, (AxisPhase(0, n_out, tuple((k, d * k - left) for k in range(f))),))
        for n, n_out, f, s, d, (left, _) in zip(
            g.input, g.output, g.kernel, g.stride, g.dilation, g.padding, strict=True
        )
    )


def output_pixels(
    g: ConvGeometry, x_last: bool, out_last: bool, itemsize: int, prepared: bool = False, window: tuple[int, int] = (0, 0),
    weight_last: bool = False,
) -> Pixels:  # fmt: skip
    """Describe equation (1)."""
    return Pixels(
        g, forward_axes(g), g.input_shape, x_last, g.output_shape, out_last, (1, 1, 1), g.filters, g.channels // g.groups,
        itemsize, prepared, window=window, weight_last=weight_last,
    )  # fmt: skip


def grad_input_pixels(
    g: ConvGeometry, grad_last: bool, out_last: bool, itemsize: int, prepared: bool = False, adds: bool = False,
    weight_last: bool = False,
) -> Pixels:  # fmt: skip
    """Describe equation (2), phase by phase.

    Pixels of dX in one residue class are a phase: pixel p = s*t + first meets output t + shift through tap k.
    """
    axes = []
    for n, n_out, f, s, d, (left, _) in zip(g.input, g.output, g.kernel, g.stride, g.dilation, g.padding, strict=True):
        phases = []
        for p in range(min(s, n)):
            k0, step = phase_taps(p, s, d, left)
            taps = [(k, (p + left - d * k) // s) for k in range(max(0, k0), f, step) if k0 >= 0]
            phases.append(AxisPhase(p, ceil_div(n - p, s), tuple(taps[::-1])))  # so that shifts ascend
        axes.append(Axis(n_out, 1, tuple(phases)))
    return Pixels(
        g, tuple(axes), g.output_shape, grad_last, g.input_shape, out_last, g.stride, g.channels, g.filters // g.groups,
        itemsize, prepared, adds, True, weight_last=weight_last,
    )  # fmt: skip


def choose_chunks(strips: int, pixels: int, batch: int, wanted: int, per_sample: bool) -> int:
    """Choose how many chunks of consecutive strips have sums of their own: the images, or as many as share the work evenly."""
    return max(1, batch if per_sample else min(strips, wanted, pixels // CHUNK_PIXELS))


def term_rows(depth: int, T: int, depths: int, fast_channels: bool) -> Array:
    """Number the rows of a panel: the row of each (depth, tap), stage by stage of so many depths.

    Neighbours in memory are neighbours in a panel: the channels of a pixel, or the taps of a plane.
    """
    rows = np.empty((depth, T), np.int64)
    for first in range(0, depth, depths):
        taken = min(depths, depth - first)
        order = np.arange(taken * T) + first * T
        rows[first : first + taken] = order.reshape(T, taken).T if fast_channels else order.reshape(taken, T)
    return rows


def list_pairs(source: Source, rows: Array, places: list[int], numbers: list[int], depths: int) -> Array:
    """List the pairs of a depth and some taps in the order of their rows: their offsets in the input, and their rows."""
    offsets = source.channels(len(rows))[:, None] + np.array(places, np.int64)
    chosen = rows[:, numbers]
    parts = []
    for first in range(0, len(rows), depths):
        order = np.argsort(chosen[first : first + depths], axis=None)
        taken = (table[first : first + depths].reshape(-1)[order] for table in (offsets, chosen))
        parts.append(np.stack(list(taken), 1))
    return np.concatenate(parts)
