"""Depthwise convolution, between the plan and the kernels: channels do not mix, so they are the lanes.

So are the filters of groups that have few channels, and as many filters: each lane then takes the channels of its group in turn.

`fastconv.engine` does the same where they do.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from .arrays import Array
from .geometry import ConvGeometry, ceil_div
from .kernels.depthwise import (
    CORRELATE_DEPTHWISE,
    GATHER_DEPTHWISE,
    PACK_GROUPS,
    SLIDE_RUN,
    correlate_depthwise,
    correlate_groups,
    gather_depthwise,
    gather_groups,
    pack_groups,
)
from .kernels.pack import PANEL, pack_panel
from .programs import (
    CHUNK_PIXELS,
    Packing,
    Pixels,
    Program,
    choose_chunks,
    count_tasks,
    forward_axes,
    members_of,
    tap_numbers,
    unpacking,
)
from .simd import GROUPED, SLIDES, SPAN, TALL, VECTORS, lanes, line_parts
from .strips import (
    STRIP_BYTES,
    Ints,
    Source,
    Tables,
    Taps,
    by_output,
    by_tap,
    choose_strip,
    find_kinds,
    make_source,
    panel_of_lines,
    steps_of_image,
    strip_numbers,
    whole_lanes,
)

__all__ = ["channel_parts", "pixels_program", "vector_by_vector", "weights_program"]

BLOCK_BYTES = 1024
"""Bytes of a pixel that a task of a depthwise convolution packs: what is turned over must fit a cache."""

MOST_SLID = 1024
"""Most pixels of a depthwise strip that is summed over as it lies: the sums of strips are added up apart."""

PART_VECTORS = 4
"""Fewest vectors of channels that a task of a depthwise convolution reads as they lie."""

MOST_STREAMED = 3072 // line_parts()
"""Most bytes of a pixel that goes to memory past the caches: lines of pixels further apart take longer that way."""

PHASES_BYTES = 16 << 20
"""Fewest bytes of an output that goes to memory past the caches where phases write it, each some pixels of a row: that takes
longer than what is written side by side, and smaller outputs may stay in the third-level cache."""

STARTING = 5
"""For how many products of vectors beginning a line lasts; the line itself takes at least as long as to load what it meets."""

CROWDED_BYTES = 2048
"""Pixels that lie a multiple of so many bytes apart share two sets of the first-level cache."""

DEPTHWISE_PIXELS, DEPTHWISE_BYTES = 392, 392 << 10
"""Most pixels of a depthwise strip, and bytes of a block of them: their box and the results share the second-level cache."""


def _neighbours(taps: Taps, distance: int) -> bool:
    """Say whether taps along an axis lead to inputs at a distance of each other."""
    return all(b - a == distance for (_, a), (_, b) in itertools.pairwise(taps))


def _slide(taps: Sequence[Taps], step: Ints, members: int, pixel_bytes: int, sums: bool) -> tuple[int, int, int]:
    """Choose the tile that slides over lines of these taps, or ``sums`` over pixels: its taps in a row, stride and rows.

    A row of taps is cut into lines of those that take the least time in all, the last of which may begin with taps of the one
    before it: not so for groups, where many products follow a tap's load.  Tall tiles whose accumulators, taps or gradients do
    not fit into registers are worth it only where those of one row would find nothing in the first-level cache.
    """
    _, above, beside = taps

    def takes(each: int) -> int:
        loads = each + min(SPAN * each, (SPAN - 1) * step[2] + each)
        return ceil_div(len(beside), each) * (max(SPAN * each, loads) + STARTING)

    kinds = SLIDES if members == 1 else GROUPED
    known = [
        n for n, stride in kinds if stride == step[2] and (n <= len(beside) if members == 1 else len(beside) % n == 0)
    ]
    each = min([1, *known], key=takes)
    if each < 2 or not _neighbours(beside, 1):
        return 1, 1, 1
    square = len(above) == len(beside) == each and _neighbours(above, step[1])
    fits = (sums or each < 7) if VECTORS == 4 else (sums and each < 7)
    tall = members == step[2] == 1 and square and (fits or pixel_bytes % CROWDED_BYTES == 0)
    return each, step[2], TALL.get(each, 1) if tall else 1


def _starts(taps: int, each: int) -> list[int]:
    """List where in a row of taps lines of so many begin: one behind the other, but the last one where it ends the row.

    >>> _starts(11, 4), _starts(0, 1)
    ([0, 4, 7], [])
    """
    return [min(start, taps - each) for start in range(0, taps, each)]


def _lines(taps: Sequence[Taps], each: int, source: Source) -> list[list[int]]:
    """List how far each line of ``each`` taps leads along each axis."""
    plane, above, beside = taps
    begins = [beside[start] for start in _starts(len(beside), each)]
    return [
        [shift * pitch for (_, shift), pitch in zip(along, source.pitches[2:], strict=True)]
        for along in itertools.product(plane, above, begins)
    ]


def channel_parts(tasks: int, strips: int, channels: int, itemsize: int) -> int:
    """Count the parts of the channels that are read as they lie, so that there are enough tasks."""
    return max(1, min(ceil_div(tasks, max(1, strips)), channels // (PART_VECTORS * lanes(itemsize))))


def _block(channels: int, itemsize: int) -> tuple[int, int]:
    """Channels of a block that is packed, whole vectors in blocks of about one size, and most pixels of a strip."""
    blocks = ceil_div(channels * itemsize, BLOCK_BYTES)
    width = whole_lanes(ceil_div(channels, blocks), itemsize)
    return width, min(DEPTHWISE_PIXELS, DEPTHWISE_BYTES // (width * itemsize))


def vector_by_vector(source: Source) -> Source:
    """Let the vectors of channels of a box lie one behind the other, an odd number of lines apart."""
    image, _, *steps = steps_of_image(source.box, True)
    line = source.box[1]
    return dataclasses.replace(source, box_steps=(image, (source.box[0] * image // line | 1) * line, *steps))


def _rows_of(taps: Sequence[Taps], each: int, members: int) -> tuple[Array, Array]:
    """Number the rows of a panel for [member, tap], where lines of so many taps come for one member after the other.

    The last line may share taps with the one before it: returned are the rows that taps have in the first line that has them, and
    pairs of rows, of these and of those in the second.
    """
    n = len(taps[2])
    starts = _starts(n, each)
    shape = (len(taps[0]) * len(taps[1]), len(starts), members, each)
    rows = np.arange(math.prod(shape)).reshape(shape).transpose(2, 0, 1, 3)  # [member, row of taps, line, tap]
    row_of = np.empty((*rows.shape[:2], n), np.int64)
    for k in reversed(range(len(starts))):
        row_of[..., starts[k] : starts[k] + each] = rows[:, :, k]
    again, pairs = len(starts) * each - n, np.empty((0, 2), np.int64)
    if again:
        pairs = np.stack([rows[:, :, -2, each - again :], rows[:, :, -1, :again]], -1).reshape(-1, 2)
    return row_of.reshape(members, -1), pairs


def pixels_program(p: Pixels) -> Program:
    """Lanes are channels, which do not mix, or the filters of groups."""
    g, axes, itemsize, T = p.g, p.axes, p.itemsize, p.T
    members = members_of(g, itemsize)
    reads = p.in_last and p.out_last and p.channels >= lanes(itemsize)
    if reads:
        # Phases write between each other's pixels, which are to stay in the second-level cache meanwhile.  With one, only the
        # rows that a tile slides along are: strips are long, as they read rows that others read, too.
        between = math.prod(p.out_step)
        strip_bytes = p.channels * itemsize * (math.prod(p.stride) + between)
        strip = choose_strip(p.sizes, strip_bytes if between > 1 else ceil_div(strip_bytes, 8), STRIP_BYTES, p.tasks)
        strips = math.prod(ceil_div(n, m) for n, m in zip(p.sizes, strip, strict=True))
        parts = channel_parts(p.tasks, strips, p.channels, itemsize)
        width = panel_of_lines(p.channels, itemsize)
    else:
        width, most = _block(p.channels, itemsize)
        parts = ceil_div(p.channels, width)
        strip = choose_strip(p.sizes, width * itemsize * math.prod(p.stride), most, p.tasks)
    kinds = find_kinds(g.batch, axes, strip, (False,) * 3, by_output)
    source = make_source(
        p.in_shape, p.in_last, itemsize, g.batch, axes, strip, True, not reads, False, channels=lanes(itemsize)
    )
    source = vector_by_vector(source)
    tables = Tables()
    boxes = 0 if reads else width // lanes(itemsize) * source.box_steps[1]
    out_steps = steps_of_image(p.out_shape, p.out_last)
    far = p.out_last and p.channels * itemsize > MOST_STREAMED
    near = math.prod(p.out_step) > 1 and math.prod(p.out_shape) * itemsize < PHASES_BYTES
    streams = p.streams and not (far or near)
    numbers = strip_numbers(source, kinds, tables, p.out_shape, out_steps, p.out_step, streams)
    rows, shared, runs, term = np.full((members, T), -1, np.int64), [], [], 0
    for phases in itertools.product(*(axis.phases for axis in axes)):
        taps = tuple(phase.taps for phase in phases)
        each, stride, height = _slide(taps, p.stride, members, source.pitches[4] * itemsize, sums=False)
        met = tap_numbers(g, taps)
        lines, (first, both) = _lines(taps, each, source), _rows_of(taps, each, members)
        rows[:, [n for n, _ in met]] = term + first
        shared.append(term + both)
        z, y, x = phases
        runs.append(
            SLIDE_RUN.row(
                Z=z.count, Y=y.count, X=x.count, first_z=z.first, first_y=y.first, first_x=x.first, each=each, stride=stride,
                height=height, lines=len(lines), lines_at=tables.add(lines), term=term,
            )
        )  # fmt: skip
        term += members * each * len(lines)
    terms = term + int(np.count_nonzero(rows < 0))  # and taps that no phase meets
    rows[rows < 0] = np.arange(term, terms)
    numbers |= {"box_size": boxes, "runs_at": tables.add(runs), "run_list_at": 0}
    numbers |= {
        "channels": p.channels, "width": width, "terms": terms, "phases": len(runs), "parts": parts, "reads": reads,
        "members": members,
    }  # fmt: skip
    panels = 1 if reads else parts
    halved = np.concatenate([panel * terms + pairs for panel in range(panels) for pairs in shared])
    if members == 1:
        pack, told = pack_panel, PANEL.lay(
            pitch=width, rows=terms, chunk=1, depth=1, taps=T, lane_count=p.channels, weight_steps=p.weight_steps,
            weight_size=math.prod(g.weight_shape),
        )  # fmt: skip
    else:
        pack, told = pack_groups, PACK_GROUPS.lay(
            pitch=width, rows=terms, channels=p.channels, members=members, taps=T, weight_steps=p.weight_steps
        )  # fmt: skip
    return Program(
        gather_depthwise if members == 1 else gather_groups, source.strips * parts, GATHER_DEPTHWISE.lay(**numbers),
        tables.whole(), 0 if reads else boxes + strip[0] * p.scratch_steps(strip, width)[0], p.tasks == 1, source,
        (1, p.channels, panels * width, 0),
        Packing(pack, panels, told, rows.reshape(-1), panels * terms * width, halved=(width, halved)),
    )  # fmt: skip


def weights_program(g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int) -> Program:
    """Lanes are channels, which do not mix, or the filters of groups."""
    axes, channels, members = forward_axes(g), g.channels, members_of(g, itemsize)
    tasks, pixels = count_tasks(g), g.batch * math.prod(g.output)
    reads = x_last and grad_last and channels >= lanes(itemsize)
    sizes, lane_bytes = (g.batch, *g.output), itemsize * math.prod(g.stride)
    if reads:
        strip = choose_strip(sizes, ceil_div(channels * lane_bytes, 4), MOST_SLID, tasks)
        parts = channel_parts(tasks, pixels // CHUNK_PIXELS, channels, itemsize)
        width = panel_of_lines(channels, itemsize)
    else:
        width, most = _block(channels, itemsize)
        parts = ceil_div(channels, width)
        strip = choose_strip(sizes, width * lane_bytes, most, tasks)
    if per_sample:
        strip = (1, *strip[1:])
    counts = [ceil_div(n, m) for n, m in zip(sizes, strip, strict=True)]
    chunks = choose_chunks(math.prod(counts), pixels, g.batch, ceil_div(tasks, parts), per_sample)
    kinds = find_kinds(g.batch, axes, strip, (False,) * 3, by_tap)
    source = make_source(
        g.input_shape, x_last, itemsize, g.batch, axes, strip, True, not reads, False, channels=lanes(itemsize)
    )
    source = vector_by_vector(source)
    tables = Tables()
    numbers = strip_numbers(source, kinds, tables, g.output_shape, steps_of_image(g.output_shape, grad_last), (1, 1, 1))
    taps = tuple(axis.phases[0].taps for axis in axes)
    row_taps, stride, height = _slide(taps, g.stride, members, source.pitches[4] * itemsize, sums=True)
    lines, (rows, _) = _lines(taps, row_taps, source), _rows_of(taps, row_taps, members)
    terms = members * row_taps * len(lines)
    panels = 1 if reads else parts
    boxes = 0 if reads else width // lanes(itemsize) * source.box_steps[1]
    sums_at = boxes + (0 if reads else math.prod(strip) * width)
    numbers |= {"box_size": boxes, "runs_at": 0, "run_list_at": 0}
    numbers |= {
        "channels": channels, "width": width, "terms": terms, "parts": parts, "reads": reads, "chunks": chunks,
        "each": panels * terms * width, "row_taps": row_taps, "stride": stride, "height": height, "lines": len(lines),
        "lines_at": tables.add(lines), "sums_at": sums_at, "members": members,
    }  # fmt: skip
    return Program(
        correlate_depthwise if members == 1 else correlate_groups, chunks * parts, CORRELATE_DEPTHWISE.lay(**numbers),
        tables.whole(), sums_at + terms * width, tasks == 1, source, (1, 0, 0, 0),
        unpacking(chunks, per_sample, 1, rows.reshape(-1), channels, width, panels * terms * width, itemsize, terms),
    )  # fmt: skip
