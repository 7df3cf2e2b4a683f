"""The sliding tiles: vectors times vectors, where channels do not mix.

They read images as they lie, or from a box in scratch.  A *line* is a row of taps: it leads from an output's place to an input's
by an offset along each of three axes.  A place along an axis that is none of the image's is left out, so that padding is neither
stored nor multiplied.  Channels are taken a vector at a time; the last vector overlaps the one before it, if need be, so that
nothing beside the channels is read or written.

They do the same where channels mix in groups that share a vector: what a member of each group has is spread over the lanes of its
group.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from ..jit import VECTORS
from .words import I64, LINE, Array, Words, call_first, passed_arguments, private_function, tile_intrinsic

__all__ = [
    "GROUPED",
    "MEMBERS",
    "SLIDES",
    "SPAN",
    "TALL",
    "group_slide_tile",
    "slide_tile",
    "sum_group_slide_tile",
    "sum_slide_tile",
]

SPAN = 7
"""Neighbouring pixels that a sliding tile computes at once: 7 accumulators, up to 7 taps and a pixel of the input are 15
registers, and the sizes of common images (7, 14, 28, 56, 112) are multiples of it."""

SLIDES = ((1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (3, 2), (5, 2), (7, 2))
"""(taps in a row, stride) of the sliding tiles: each pixel is loaded once for all taps and outputs that it meets.  All other
kernels are taken as rows of one tap."""

TALL = {3: 3, 5: 2, 7: 2} if VECTORS == 4 else {5: 2, 7: 2}
"""Rows of outputs that a tall tile of so many by so many taps computes at once, or rows of gradients that it sums up.

With 32 registers one of three taps has 3x7 accumulators, nine taps and a pixel.  It loads 45 pixels for 189 products, not 27 for
63.  One that sums has accumulators for as many lines of taps as rows: a row of the input meets no others.  With 16 registers
there are too few, but where pixels lie 2 KiB apart nearly all loads are from the second-level cache, as those of a vector of
channels share two sets of the first: fewer of them are worth it even then."""

MANY = 16
"""Vectors of channels from which on one more is worth it, if the others then do not lie in two lines of the cache each: in an
array that does not begin with a line."""

MANY_TAPS = 5
"""Taps in a row from which on loads, not what is written to memory, decide how vectors of channels are cut."""

MEMBERS = (4, 8)
"""Channels of a group over which tiles slide, too, and as many filters: lanes are filters, and each takes the channels of its
group one by one.  Groups do not cross vectors."""

GROUPED = ((1, 1), (2, 1), (3, 1), (3, 2))
"""(taps in a row, stride) of the sliding tiles for such groups."""

MEMBERS_AT_ONCE = VECTORS
"""Channels of a group that a tile takes at once: with three taps in a row their weights are 12 registers of 32, or 6 of 16."""

KINDS = (*((*kind, 1, 1) for kind in SLIDES), *((taps, 1, height, 1) for taps, height in TALL.items()))
"""The sliding tiles of channels that do not mix: taps in a row, stride, rows of outputs, and channels of a group."""

GROUP_KINDS = tuple((*kind, 1, members) for members in MEMBERS for kind in GROUPED)
"""The same of those for groups."""

IMAGE = "lines, x, x_at, z, z_end, y, y_row, y_end, column, x_step, x_end"
IMAGE_PASSED = "lines x+x_at z z_end y y_row y_end column x_step x_end"

SLIDE = (
    f"taps, stride, height, members, weights, weights_at, pitch, tables, lines_at, {IMAGE}, out, out_at, out_step, "
    "out_row, count, rows, channels, start, start_at, floor_at, streams"
)

SUM_SLIDE = (
    f"taps, stride, height, members, tables, lines_at, {IMAGE}, gradient, gradient_at, gradient_step, gradient_row, "
    "out, out_at, pitch, count, rows, channels"
)


class _Walk:
    """Emits the loops over the lines of taps, the rows that they lead to, and the pixels of a row, as far as these exist.

    Each is a generator: what is emitted at a turn is what the loop repeats.
    """

    def __init__(self, w: Words, taps: int, stride: int, height: int, members: int, args: Sequence[Any]) -> None:
        self.b, self.w, self.taps, self.stride, self.height, self.members = w.b, w, taps, stride, height, members
        self.table, self.lines, self.x, self.z, self.z_end, self.y, self.y_row, self.y_end = args[:8]
        self.column, self.x_step, self.x_end = args[8:]
        self.reach = taps if height > 1 else 1  # lines that follow each other at the distance of rows
        self.rows = self.reach + height - 1  # of the input, which these meet
        self.next = TALL.get(taps, 1) if stride == members == 1 else 1  # rows of a tall tile, or of what it has left

    def exists(self, place: Any, end: Any) -> Any:
        """Say whether a place along an axis does: as an unsigned number, less than 0 is very large."""
        return self.b.icmp_unsigned("<", place, end)

    def places(self, line: Any, row: Any, first: Any) -> list[Any]:
        """Return where a line leads to along each axis from the first pixel of a row of outputs."""
        at = self.b.add(self.table, self.b.mul(line, I64(24)))
        offsets = [self.w.load(self.b.add(at, I64(8 * axis)), I64) for axis in range(3)]
        return [self.b.add(place, offset) for place, offset in zip((self.z, row, first), offsets, strict=True)]

    def groups(self, row: Any, first: Any) -> Iterator[tuple[Any, list[Any]]]:
        """Visit the lines that are taken together: the number of the first, and where it leads to."""
        with cgutils.for_range(self.b, self.b.sdiv(self.lines, I64(self.reach))) as group:
            line = self.b.mul(group.index, I64(self.reach))
            places = self.places(line, row, first)
            meets = self.exists(places[0], self.z_end)
            if self.height == 1:
                meets = self.b.and_(meets, self.exists(places[1], self.y_end))
            with self.b.if_then(meets, likely=True):
                yield line, places

    @contextlib.contextmanager
    def row(self, number: int, source: Any, places: list[Any]) -> Iterator[tuple[Any, list[tuple[int, int]]]]:
        """Visit a row of those that a group meets, if it exists: its address, and the rows of outputs and the lines that meet it.

        Line k of the group and row r of outputs meet row r + k.
        """
        plane, above, _ = places
        here = self.b.add(above, self.b.mul(self.y_row, I64(number)))
        with self.b.if_then(self.exists(here, self.y_end), likely=True):
            met = [(r, number - r) for r in range(self.height) if 0 <= number - r < self.reach]
            yield self.w.at(source, self.b.add(plane, here)), met

    def pixels(self, address: Any, place: Any, span: int) -> Iterator[tuple[Any, list[tuple[int, int]]]]:
        """Visit the pixels of a row: each, and the pairs of an output, of ``span``, and a tap that meet there."""
        for j in range((span - 1) * self.stride + self.taps):
            meets = [(m, j - m * self.stride) for m in range(span) if 0 <= j - m * self.stride < self.taps]
            if meets:
                with self.b.if_then(self.exists(place, self.x_end), likely=True):
                    yield self.w.load(self.w.at(address, place), self.w.vector), meets
            place = self.b.add(place, self.x_step)

    def shift(self, channels: Any) -> Any:
        """Return by how many lanes vectors had better begin earlier: then they lie in one line of the cache each, not in two.

        0 if they do anyway, or are so few that one more is not worth it.
        """
        apart = self.b.and_(self.b.udiv(self.x, I64(self.w.size)), I64(self.w.lanes - 1))
        return self.b.select(self.b.icmp_signed("<", channels, I64(MANY * self.w.lanes)), I64(0), apart)

    def vectors(self, channels: Any, in_order: Any = None) -> Iterator[tuple[Any, Any]]:
        """Visit the vectors of channels: the first channel of each, and the first that is not one of those before it.

        The last one overlaps the one before it, if need be.  If there are many, the second one overlaps the first so that all
        but two lie in one line of the cache of the input; not if they are to be ``in_order``.
        """
        b, n = self.b, I64(self.w.lanes)
        lane, until = self.w.variable(I64), self.w.variable(I64)
        shift = self.shift(channels) if self.members == 1 else I64(0)
        if in_order is not None:
            shift = b.select(in_order, I64(0), shift)
        b.store(b.sub(I64(0), shift), lane)
        b.store(I64(0), until)
        last = b.sub(channels, n)
        with self.w.repeat(lambda: b.icmp_signed("<", b.load(lane), channels)):
            at = b.select(b.icmp_signed("<", b.load(lane), last), b.load(lane), last)
            at = b.select(b.icmp_signed("<", at, I64(0)), I64(0), at)
            yield at, b.load(until)
            b.store(b.add(at, n), until)
            b.store(b.add(b.load(lane), n), lane)

    def fetch(self, row: Any, first: Any, channels: Any, offset: Any) -> None:
        """Have the rows that the next outputs add brought into the cache, or a vector's share of them."""
        for n in range(max(self.height, self.stride)):
            needs = I64(n if self.stride > 1 else 0)
            with self.b.if_then(self.b.icmp_signed(">", self.lines, needs), likely=True):
                self.fetch_all(self.row_ahead(n, row, first, channels, offset))

    def fetch_all(self, addresses: list[Any]) -> None:
        """Have what lies at some addresses brought into the cache."""
        for at in addresses:
            self.w.prefetch(at)

    def row_ahead(self, n: int, row: Any, first: Any, channels: Any, offset: Any) -> list[Any]:
        """Return a vector's share of row ``n`` of those that the next outputs add.

        After the last row of an image comes the first one of the next, where images follow each other.
        """
        b = self.b
        line = b.sub(self.lines, I64(1 + n if self.stride > 1 else 1))
        place = functools.reduce(b.add, self.places(line, row, first))
        ahead = b.mul(self.y_row, I64(1 if self.stride > 1 else self.next + n))
        return self.share(self.w.at(self.x, b.add(place, ahead)), self.x_step, SPAN * self.stride, channels, offset)

    def share(self, at: Any, step: Any, pixels: int, channels: Any, offset: Any) -> list[Any]:
        """Return the addresses of a vector's share of some pixels of a row.

        Where pixels follow each other that is as much, but what lies together: memory gives neighbouring lines sooner.
        """
        b = self.b
        follow = b.icmp_signed("==", step, channels)
        at = b.add(at, b.select(follow, b.mul(offset, I64(pixels)), offset))
        step = b.select(follow, I64(self.w.bytes), b.mul(step, I64(self.w.size)))
        return [b.add(at, b.mul(step, I64(n))) for n in range(pixels)]


def _members_at_once(members: int) -> list[range]:
    """List the channels of a group that are taken together."""
    return [range(first, min(first + MEMBERS_AT_ONCE, members)) for first in range(0, members, MEMBERS_AT_ONCE)]


def _write_slide_tile(function: Any, dtype: Any, taps: int, stride: int, height: int, members: int) -> None:
    """Emit the sliding tile for SPAN pixels of ``height`` rows at once."""
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    weights, pitch, *image, out, out_step, out_row, count, rows, channels, start, floor, streams = function.args
    pitch, out_step, out_row = (b.mul(step, I64(w.size)) for step in (pitch, out_step, out_row))
    walk = _Walk(w, taps, stride, height, members, image)
    acc = [[w.variable(w.vector) for _ in range(SPAN)] for _ in range(height)]
    done = w.variable(I64)
    least = w.splat(w.load(floor, w.scalar))
    # Only whole lines of the cache go past it: vectors then begin where lines of the output do, but not if many taps load vectors
    # that would lie in two lines of the input each.  Where a vector is part of a line, lines are held until all their parts can
    # follow each other: what is written in between would end them early.
    parts = LINE // w.bytes
    if taps >= MANY_TAPS:
        streams = b.select(b.icmp_signed("==", walk.shift(channels), I64(0)), streams, I64(0))
    by_lines = b.icmp_signed("!=", streams, I64(0))
    if parts > 1:
        by_lines = w.fill_lines([out, out_step, out_row, b.mul(channels, I64(w.size))], streams)
        held = b.ptrtoint(cgutils.alloca_once(b, ir.ArrayType(w.vector, height * SPAN * parts)), I64)

    def add_row(line: Any, places: list[Any], factors: Any, address: Any, met: list[tuple[int, int]]) -> None:
        for some in _members_at_once(members):
            at = [b.add(factors, b.mul(b.add(line, I64(k)), b.mul(pitch, I64(taps * members)))) for _, k in met]
            numbers = range(some[0] * taps, (some[-1] + 1) * taps)
            these = [[w.load(b.add(here, b.mul(pitch, I64(n))), w.vector) for n in numbers] for here in at]
            for pixel, meets in walk.pixels(address, places[2], SPAN):
                for i, member in enumerate(some):
                    value = w.spread(pixel, members, member)
                    for (r, _), column in zip(met, these, strict=True):
                        for m, c in meets:
                            b.store(w.multiply_add(column[i * taps + c], value, b.load(acc[r][m])), acc[r][m])

    def compute(row: Any, first: Any, offset: Any) -> None:
        source, factors = b.add(walk.x, offset), b.add(weights, offset)
        bias = w.load(b.add(start, offset), w.vector)
        for a in itertools.chain(*acc):
            b.store(bias, a)
        for line, places in walk.groups(row, first):
            for number in range(walk.rows):
                with walk.row(number, source, places) as (address, met):
                    add_row(line, places, factors, address, met)
        walk.fetch(row, first, channels, offset)

    def outputs(there: Any, rest: Any, left: Any) -> Iterator[tuple[int, int, Any]]:
        """Visit the outputs that exist: the row and the pixel of each, and where it goes."""
        for m in range(SPAN):
            with b.if_then(b.icmp_signed(">", rest, I64(m)), likely=True):
                for r in range(height):
                    with b.if_then(b.icmp_signed(">", left, I64(r)), likely=True):
                        yield r, m, b.add(there, b.add(b.mul(out_row, I64(r)), b.mul(out_step, I64(m))))

    def result(r: int, m: int) -> Any:
        return w.at_least(b.load(acc[r][m]), least)

    def place(r: int, m: int, part: Any) -> Any:
        return b.add(held, b.add(I64((r * SPAN + m) * LINE), b.mul(part, I64(w.bytes))))

    def store(there: Any, offset: Any, rest: Any, left: Any) -> None:
        there = b.add(there, offset)
        if parts == 1:
            for put in w.stores([there, out_step, out_row], streams):
                for r, m, end in outputs(there, rest, left):
                    put(result(r, m), end)
            return
        with b.if_else(by_lines) as (lines, vectors):
            with lines:
                part = b.urem(b.udiv(offset, I64(w.bytes)), I64(parts))
                for r, m in itertools.product(range(height), range(SPAN)):
                    w.store(result(r, m), place(r, m, part))
                with b.if_then(b.icmp_signed("==", part, I64(parts - 1))):
                    for r, m, end in outputs(there, rest, left):
                        for p in range(parts):
                            w.stream(w.load(place(r, m, I64(p)), w.vector), b.add(end, I64((p - parts + 1) * w.bytes)))
            with vectors:
                for r, m, end in outputs(there, rest, left):
                    w.store(result(r, m), end)

    with cgutils.for_range_slice(b, I64(0), rows, I64(height)) as (upper, _):
        row = b.add(walk.y, b.mul(upper, walk.y_row))
        b.store(I64(0), done)
        with w.repeat(lambda: b.icmp_signed("<", b.load(done), count)):
            first = b.add(walk.column, b.mul(b.load(done), b.mul(walk.x_step, I64(stride))))
            there = b.add(b.add(out, b.mul(upper, out_row)), b.mul(b.load(done), out_step))
            for lane, _ in walk.vectors(channels, by_lines):
                offset = b.mul(lane, I64(w.size))
                compute(row, first, offset)
                store(there, offset, b.sub(count, b.load(done)), b.sub(rows, upper))
            b.store(b.add(b.load(done), I64(SPAN)), done)
    b.ret_void()


def _slide_twin(
    taps: int, stride: int, height: int, members: int, weights: Array, weights_at: int, pitch: int, tables: Array,
    lines_at: int, lines: int, x: Array, x_at: int, z: int, z_end: int, y: int, y_row: int, y_end: int, column: int, x_step: int,
    x_end: int, out: Array, out_at: int, out_step: int, out_row: int, count: int, rows: int, channels: int, start: Array,
    start_at: int, floor_at: int, streams: int,
) -> None:  # fmt: skip
    """The sliding tile in plain Python."""
    offsets = tables[lines_at : lines_at + 3 * lines].reshape(-1, 3)
    for row, m in itertools.product(range(rows), range(count)):
        acc = start[start_at : start_at + channels].copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for line, some, c in itertools.product(range(lines), _members_at_once(members), range(taps)):
                plane, above, beside = (int(offset) for offset in offsets[line])
                places = z + plane, y + row * y_row + above, column + (m * stride + c) * x_step + beside
                exists = all(0 <= place < end for place, end in zip(places, (z_end, y_end, x_end), strict=True))
                for member in some if exists else ():
                    at, weight = x_at + sum(places), weights_at + ((line * members + member) * taps + c) * pitch
                    pixel = x[at : at + channels][np.arange(channels) // members * members + member]
                    acc += weights[weight : weight + channels] * pixel
        end = out_at + row * out_row + m * out_step
        out[end : end + channels] = np.where(acc < start[floor_at], start[floor_at], acc)


def _call_slides(
    builder: Any, named: dict[str, tuple[Any, Any]], w: Words, name: str, write: Callable[..., None], passed: list[Any],
    kinds: tuple[tuple[int, ...], ...],
) -> None:  # fmt: skip
    """Emit the sliding tiles of these kinds, and the call of the one whose first arguments are those of its kind."""
    calls = []
    for kind in [kind for kind in kinds if kind[-1] <= w.lanes][::-1]:
        condition = ir.Constant(ir.IntType(1), 1)
        for (_, given), value in zip(named.values(), kind, strict=False):
            condition = builder.and_(condition, builder.icmp_signed("==", given, I64(value)))
        function, new = private_function(builder.module, f"{name}_{w.suffix}_{'x'.join(map(str, kind))}", len(passed))
        if new:
            write(function, *kind)
        calls.append((condition, function))
    call_first(builder, calls, passed)


def _call_slide(context: Any, builder: Any, named: dict[str, tuple[Any, Any]], grouped: bool) -> None:
    names = (
        f"weights+weights_at pitch tables+lines_at {IMAGE_PASSED} out+out_at out_step out_row count rows channels start+start_at "
        "start+floor_at streams"
    )
    dtype, w, passed = passed_arguments(context, builder, named, names)
    kinds = GROUP_KINDS if grouped else KINDS
    _call_slides(builder, named, w, "slide_tile", lambda f, *kind: _write_slide_tile(f, dtype, *kind), passed, kinds)


def _write_sum_slide_tile(function: Any, dtype: Any, taps: int, stride: int, height: int, members: int) -> None:
    """Emit the tile that sums the products of pixels and gradients for each tap.

    The gradients of SPAN pixels of ``height`` rows, or of one, stay in registers while the lines pass.  What the next tile takes
    is fetched meanwhile, pixel by pixel where that is much: all at once it would wait for room in the queue to memory, and what
    follows with it.  Products are added up before they are added to what is there: one by one they had more than twice PyTorch's
    error.  Of a vector whose first lanes another has done ``before``, these add nothing: if what is there were chosen instead,
    LLVM would make masked stores of that, which with AVX2 take twelve cycles each: a third of the speed.
    """
    b = ir.IRBuilder(function.append_basic_block("entry"))
    w = Words(b, dtype)
    *image, gradient, gradient_pitch, gradient_row, out, pitch, count, rows, channels = function.args
    pitch, gradient_step, gradient_row = (b.mul(step, I64(w.size)) for step in (pitch, gradient_pitch, gradient_row))
    walk = _Walk(w, taps, stride, height, members, image)
    acc = [[w.variable(w.vector) for _ in range(taps * min(members, MEMBERS_AT_ONCE))] for _ in range(walk.reach)]
    done = w.variable(I64)
    zero = ir.Constant(w.vector, [0.0] * w.lanes)
    coming: list[Any] = []  # addresses to fetch from

    def add_row(
        span: int, places: list[Any], factors: list[list[Any]], some: range, address: Any, met: list[tuple[int, int]]
    ) -> None:  # fmt: skip
        for pixel, meets in walk.pixels(address, places[2], span):
            for i, member in enumerate(some):
                value = w.spread(pixel, members, member)
                for (r, k), (m, c) in itertools.product(met, meets):
                    a = acc[k][i * taps + c]
                    b.store(w.multiply_add(factors[r][m], value, b.load(a)), a)
            walk.fetch_all(coming[:1])
            del coming[:1]

    def add_sums(sums: list[Any], ends: list[Any], before: Any) -> None:
        with b.if_then(b.icmp_signed(">", before, I64(0)), likely=False):
            new = w.from_lane(before)
            for a in sums:
                b.store(b.select(new, b.load(a), zero), a)
        for end, a in zip(ends, sums, strict=True):
            w.store(b.fadd(w.load(end, w.vector), b.load(a)), end)

    def gradients_ahead(there: Any, offset: Any) -> list[Any]:
        starts = (b.add(there, b.mul(gradient_row, I64(walk.next + r))) for r in range(height))
        return [at for start in starts for at in walk.share(start, gradient_pitch, SPAN, channels, offset)]

    def add_products(span: int, row: Any, first: Any, offset: Any, there: Any, before: Any) -> None:
        source, here, sums = (b.add(address, offset) for address in (walk.x, there, out))
        each = [
            [b.add(here, b.add(b.mul(gradient_row, I64(r)), b.mul(gradient_step, I64(m)))) for m in range(span)]
            for r in range(height)
        ]
        factors = [[w.load(at, w.vector) for at in along] for along in each]
        if span > 1 and height > 1:
            rows_ahead = (walk.row_ahead(n, row, first, channels, offset) for n in range(height))
            coming.extend([*itertools.chain(*rows_ahead), *gradients_ahead(there, offset)])
        for line, places in walk.groups(row, first):
            for some in _members_at_once(members):
                at = b.add(sums, b.mul(line, b.mul(pitch, I64(taps * members))))
                numbers = range(some[0] * taps, some[0] * taps + walk.reach * taps * len(some))
                ends = [b.add(at, b.mul(pitch, I64(n))) for n in numbers]
                for number in range(walk.rows):  # the first that line ``number`` meets
                    if number < walk.reach:
                        for a in acc[number]:
                            b.store(zero, a)
                    with walk.row(number, source, places) as (address, met):
                        add_row(span, places, factors, some, address, met)
                    k = number - height + 1  # the line that meets no other
                    if k >= 0:
                        add_sums(acc[k], ends[k * taps * len(some) : (k + 1) * taps * len(some)], before)
        assert not coming  # tiles meet more pixels than they fetch lines
        if span > 1 and height == 1:
            walk.fetch(row, first, channels, offset)
            walk.fetch_all(gradients_ahead(there, offset))

    with cgutils.for_range_slice(b, I64(0), rows, I64(height)) as (upper, _):
        row = b.add(walk.y, b.mul(upper, walk.y_row))
        b.store(I64(0), done)
        for span in (SPAN, 1):
            with w.repeat(lambda: b.icmp_signed("<=", b.add(b.load(done), I64(span)), count)):  # noqa: B023
                first = b.add(walk.column, b.mul(b.load(done), b.mul(walk.x_step, I64(stride))))
                there = b.add(b.add(gradient, b.mul(upper, gradient_row)), b.mul(b.load(done), gradient_step))
                for lane, until in walk.vectors(channels):
                    offset = b.mul(lane, I64(w.size))
                    add_products(span, row, first, offset, there, b.sub(until, lane))
                b.store(b.add(b.load(done), I64(span)), done)
    b.ret_void()


def _sum_slide_twin(
    taps: int, stride: int, height: int, members: int, tables: Array, lines_at: int, lines: int, x: Array, x_at: int, z: int,
    z_end: int, y: int, y_row: int, y_end: int, column: int, x_step: int, x_end: int, gradient: Array, gradient_at: int,
    gradient_step: int, gradient_row: int, out: Array, out_at: int, pitch: int, count: int, rows: int, channels: int,
) -> None:  # fmt: skip
    """The tile that sums over pixels in plain Python."""
    offsets = tables[lines_at : lines_at + 3 * lines].reshape(-1, 3)
    for line, member, c in itertools.product(range(lines), range(members), range(taps)):
        plane, above, beside = (int(offset) for offset in offsets[line])
        acc = np.zeros(channels, out.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            for row, m in itertools.product(range(rows), range(count)):
                places = z + plane, y + row * y_row + above, column + (m * stride + c) * x_step + beside
                if all(0 <= place < end for place, end in zip(places, (z_end, y_end, x_end), strict=True)):
                    at, there = x_at + sum(places), gradient_at + row * gradient_row + m * gradient_step
                    pixel = x[at : at + channels][np.arange(channels) // members * members + member]
                    acc += gradient[there : there + channels] * pixel
            end = out_at + ((line * members + member) * taps + c) * pitch
            out[end : end + channels] += acc


def _call_sum_slide(context: Any, builder: Any, named: dict[str, tuple[Any, Any]], grouped: bool) -> None:
    names = f"tables+lines_at {IMAGE_PASSED} gradient+gradient_at gradient_step gradient_row out+out_at pitch count rows channels"
    dtype, w, passed = passed_arguments(context, builder, named, names)
    kinds = GROUP_KINDS if grouped else KINDS
    _call_slides(
        builder, named, w, "sum_slide_tile", lambda f, *kind: _write_sum_slide_tile(f, dtype, *kind), passed, kinds
    )


slide_tile, group_slide_tile = (
    _slide_twin if config.DISABLE_JIT else tile_intrinsic(SLIDE, functools.partial(_call_slide, grouped=grouped))
    for grouped in (False, True)
)
"""Channels of ``count`` neighbouring pixels of each row, where each channel has weights of its own::

    out[row, m] = start + sum over lines and c < taps of  weights[line*taps + c] * x[place of (row, m), line and c]

where a place is the sum of three, each of which has to be at least 0 and less than its end, or the product is left out::

    z + offset[line, 0]    y + row*y_row + offset[line, 1]    column + (m*stride + c)*x_step + offset[line, 2]

With groups of ``members`` channels it is the sum over these, too, of weights[(line*members + member)*taps + c] times what that
member of each channel's group has there.

Parameters
----------
taps, stride, height, members : int
    One of SLIDES, 1 and 1, or taps of TALL, 1, its height and 1; of `group_slide_tile` one of GROUPED, 1 and one of MEMBERS.
    The lines of tall tiles come in groups, as many as taps, each y_row behind the one before it.
weights, weights_at, pitch : flat array, offset and distance
    The channels' factors for each tap.
tables, lines_at, lines : flat int64 array, offset and int
    For each line of taps its offset along each axis.
x, x_at : flat array and offset
    The input, and what places are counted from.
z, z_end, y, y_row, y_end, column, x_step, x_end : int
    The first output's place along each axis, how far the next one's lies behind it, and the ends of the places that exist.
out, out_at, out_step, out_row : flat array, offset and distances
    Where the pixels go.
count, rows : int
    Pixels of a row, and rows.
channels : int
    At least as many as a vector has lanes.
start, start_at, floor_at : flat array and offsets
    What each channel's sums begin with, and a number: what is less becomes that.
streams : int
    If not 0, outputs go to memory past the caches, where they can.
"""

sum_slide_tile, sum_group_slide_tile = (
    _sum_slide_twin
    if config.DISABLE_JIT
    else tile_intrinsic(SUM_SLIDE, functools.partial(_call_sum_slide, grouped=grouped))
    for grouped in (False, True)
)
"""The products of the same pixels with gradients, summed over rows and pixels for each line and tap, to what ``out`` holds::

    out[line*taps + c] += sum over row < rows and m < count of  gradient[row, m] * x[place of (row, m), line and c]

and to out[(line*members + member)*taps + c] those with what a member of each channel's group has.  ``rows`` are a multiple of
``height``.
"""
