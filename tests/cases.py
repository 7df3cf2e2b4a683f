"""The one list of cases that the tests of every kernel run over, and what the reference says of each."""

import functools
import itertools
import zlib
from dataclasses import dataclass

import numpy as np
from numba import config

from fastconv import reference
from fastconv.geometry import conv_geometry

PASSES = ("output", "grad_input", "grad_weight", "grad_bias")

INTERPRETED = bool(config.DISABLE_JIT)
"""Whether kernels run as plain Python, thousands of times slower, to show which of their lines no test reaches."""


def in_turn(choices, turn):
    """All choices that share their lines of code; where kernels are interpreted, the one whose turn it is."""
    return (choices[turn % len(choices)],) if INTERPRETED else choices


@dataclass(frozen=True)
class Case:
    """A convolution.  ``batch`` None stands for arrays without a batch axis, ``padding`` holds (left, right) pairs."""

    batch: int | None
    channels: int
    filters: int
    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def __str__(self):
        def by(values):
            return "x".join(map(str, values))

        padding = "_".join(
            f"{left}{right}" if max(left, right) < 10 else f"{left}-{right}" for left, right in self.padding
        )
        batch = "" if self.batch is None else f"{self.batch}x"
        return (
            f"{batch}{self.channels}@{by(self.sizes)}-{self.filters}@{by(self.kernel)}"
            f"-s{by(self.stride)}-p{padding}-d{by(self.dilation)}-g{self.groups}"
        )

    @property
    def ndim(self):
        return len(self.sizes)

    @property
    def x_shape(self):
        return (() if self.batch is None else (self.batch,)) + (self.channels, *self.sizes)

    @property
    def weight_shape(self):
        return (self.filters, self.channels // self.groups, *self.kernel)

    @property
    def parameters(self):
        """The arguments after x and weight, by name."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @functools.cached_property
    def geometry(self):
        return conv_geometry(self.x_shape, self.weight_shape, **self.parameters)

    @property
    def output_shape(self):
        return self.geometry.output_shape if self.batch is not None else self.geometry.output_shape[1:]

    @property
    def seed(self):
        return zlib.crc32(str(self).encode())


def simple(ndim, *, batch=2, channels=2, filters=3, size=5, kernel=3, stride=1, padding=0, dilation=1, groups=1):
    """Make a case from numbers that hold for every axis; a tuple holds one for each."""

    def each(value):
        return value if isinstance(value, tuple) else (value,) * ndim

    pairs = tuple(p if isinstance(p, tuple) else (p, p) for p in each(padding))
    return Case(batch, channels, filters, each(size), each(kernel), each(stride), pairs, each(dilation), groups)


def product():
    """Every one of 1-3 D x stride 1-3 x dilation 1-3 x padding (none, symmetric, not) x groups (one, some, depthwise).

    Kernels and odd sizes go round with the case, and so do batches of 1, 2, 3 and none.
    """
    kernels = {
        1: [(3,), (2,), (5,), (1,)],
        2: [(3, 3), (2, 3), (3, 1), (1, 2), (5, 2)],
        3: [(2, 3, 2), (1, 2, 3), (3, 2, 1), (2, 1, 2)],
    }
    sizes = {1: [(9,), (17,), (7,)], 2: [(7, 9), (5, 11), (9, 5)], 3: [(5, 3, 7), (3, 5, 5), (5, 5, 3)]}
    batches, counts = (2, 1, None, 3), {"one": [(3, 2, 1), (1, 3, 1)], "some": [(4, 6, 2), (6, 3, 3)]}
    counts["depthwise"] = [(3, 3, 3), (3, 6, 3), (5, 5, 5)]
    everything = itertools.product((1, 2, 3), (1, 2, 3), (1, 2, 3), ("none", "both", "unequal"), tuple(counts))
    for turn, (ndim, stride, dilation, padding, groups) in enumerate(everything):
        # Steps without a common divisor, so that every combination of two of these is met.
        kernel = kernels[ndim][turn % len(kernels[ndim])]
        size = list(sizes[ndim][turn // 2 % 3])
        pairs = {
            "none": [(0, 0)] * ndim,
            "both": [(1 + (turn + axis) % 2,) * 2 for axis in range(ndim)],
            "unequal": [((turn + axis) % 3, (turn + axis + 1 + turn // 3 % 2) % 3) for axis in range(ndim)],
        }[padding]
        for axis in range(ndim):  # the smallest odd size that the kernel fits into
            while size[axis] + sum(pairs[axis]) < dilation * (kernel[axis] - 1) + 1:
                size[axis] += 2
        channels, filters, groups = counts[groups][turn // 3 % len(counts[groups])]
        batch = batches[turn // 5 % len(batches)]
        yield Case(
            batch, channels, filters, tuple(size), kernel, (stride,) * ndim, tuple(pairs), (dilation,) * ndim, groups
        )


SPECIAL = (
    # Lanes are the filters of groups of four and eight.
    simple(2, batch=2, channels=20, filters=20, size=(4, 6), kernel=(2, 3), padding=1, groups=5),
    simple(2, batch=1, channels=24, filters=24, size=(5, 4), kernel=3, stride=2, padding=1, groups=3),
    *(simple(ndim, batch=0) for ndim in (1, 2, 3)),
    *(simple(ndim, batch=0, size=1, kernel=1) for ndim in (1, 2)),
    *(simple(ndim, batch=None, padding=1) for ndim in (1, 2, 3)),
    *(simple(ndim, size=1, kernel=1) for ndim in (1, 2, 3)),  # a single pixel
    *(simple(ndim, size=1, kernel=3, padding=1) for ndim in (1, 2, 3)),  # a kernel larger than the image
    *(simple(ndim, size=3, kernel=5, padding=(((1, 2),) + ((2, 1),) * (ndim - 1))) for ndim in (1, 2, 3)),
    *(simple(ndim, size=7, kernel=1, stride=2) for ndim in (1, 2, 3)),  # a phase without a tap
    *(simple(ndim, size=7, kernel=2, stride=3, padding=((1, 0),) * ndim) for ndim in (1, 2, 3)),  # stride > kernel
    *(simple(ndim, size=8, kernel=2, stride=5) for ndim in (1, 2)),
    *(simple(ndim, size=3, kernel=3, padding=4) for ndim in (1, 2)),  # outputs that see padding only
    *(simple(ndim, size=3, kernel=2, padding=((5, 0),) * ndim, stride=2) for ndim in (1, 2)),
    *(simple(ndim, size=2, kernel=2, padding=((0, 7),) * ndim, dilation=3) for ndim in (1, 2)),
    simple(2, size=(5, 9), kernel=(1, 7), padding=(0, 3)),
    simple(2, size=(9, 5), kernel=(7, 1), padding=(3, 0)),
    simple(2, size=(11, 6), kernel=(3, 2), stride=(2, 3), dilation=(3, 1), padding=((1, 2), (0, 1))),
    simple(2, size=(6, 13), kernel=(2, 4), stride=(3, 1), dilation=(1, 2), padding=((2, 0), (1, 3))),
    simple(2, size=12, kernel=3, stride=4, dilation=2, padding=1),  # stride and dilation with a common divisor
    simple(2, size=13, kernel=3, stride=6, dilation=4, padding=((3, 2), (2, 3))),
    simple(1, size=21, kernel=4, stride=4, dilation=6, padding=((3, 5),)),
    simple(3, size=(4, 5, 6), kernel=(1, 3, 2), stride=(1, 2, 3), dilation=(3, 2, 1), padding=((0, 1), (2, 0), (1, 1))),
    simple(3, size=(3, 1, 1), kernel=(3, 1, 1), padding=((1, 1), (0, 0), (0, 0))),
    # Lengths on both sides of what kernels collect, unroll and turn into vectors.
    *(simple(1, batch=1, channels=c, filters=2, size=3, kernel=1) for c in (63, 64, 65, 130)),
    *(simple(1, batch=1, channels=2, filters=f, size=3, kernel=1) for f in (63, 64, 65, 130)),
    *(simple(1, batch=1, channels=1, filters=2, size=n, kernel=3, padding=1) for n in (15, 16, 17, 31, 33, 67)),
    *(simple(1, batch=1, channels=1, filters=2, size=n, kernel=3, stride=2, padding=1) for n in (31, 33, 67)),
    simple(2, batch=1, channels=5, filters=2, size=(11, 3), kernel=3, padding=1),
    simple(2, batch=1, channels=5, filters=17, size=(4, 18), kernel=(3, 5), padding=1),
    simple(2, batch=1, channels=16, filters=16, size=6, kernel=3, padding=1),
    simple(2, batch=1, channels=17, filters=33, size=5, kernel=1),
    simple(2, batch=1, channels=300, filters=33, size=3, kernel=1),
    simple(2, batch=1, channels=20, filters=20, size=7, kernel=3, padding=1, groups=20),
    # Groups that do not fill vectors, which all of them do.
    *(
        simple(2, channels=4, filters=f, size=(5, n), kernel=k, groups=2)
        for f in (40, 48)
        for n in (4, 6)
        for k in (1, 3)
    ),
    # Channels that do not mix: those that fill no vector, or a part of the last; rows of all lengths.
    *(simple(2, channels=c, filters=c, size=(8, 9), kernel=3, padding=1, groups=c) for c in (3, 16, 35, 65)),
    *(simple(2, channels=c, filters=c, size=(9, 10), kernel=5, stride=2, padding=2, groups=c) for c in (1, 17, 72)),
    *(
        simple(2, batch=1, channels=17, filters=17, size=(1 + n % 7, n), kernel=k, stride=s, padding=k // 2, groups=17)
        for n, k, s in zip(range(1, 21), itertools.cycle((3, 5, 7)), itertools.cycle((1, 1, 1, 2)))
    ),
    # Rows of so many taps that they are lines of fewer, which some share, and phases of such; blocks of channels.
    *(
        simple(2, channels=c, filters=c, size=(10, 13), kernel=k, stride=s, padding=(k[0] // 2, k[1] // 2), groups=c)
        for c, k, s in (
            (17, (9, 9), 1),
            (17, (11, 11), 1),
            (20, (2, 6), 1),
            (20, (2, 13), 1),
            (35, (3, 9), 2),
            (16, (3, 11), 2),
            (18, (1, 15), 1),
        )
    ),
    simple(2, channels=272, filters=272, size=(3, 11), kernel=(1, 11), padding=(0, 5), groups=272),
    # The same where no tile slides down columns of planes, and planes with padding of all kinds, of which one does.
    *(simple(2, channels=c, filters=c, size=(8, 9), kernel=(3, 5), padding=1, groups=c) for c in (3, 16, 35, 65)),
    *(
        simple(2, channels=5, filters=5, size=(9, n), kernel=k, stride=s, padding=((p, k), (1, p)), groups=5)
        for n, k, s, p in ((8, 3, 1, 0), (9, 3, 2, 4), (16, 5, 1, 1), (21, 5, 2, 0), (17, 7, 1, 9), (12, 7, 2, 2))
    ),
    simple(3, batch=2, channels=3, filters=3, size=(2, 5, 9), kernel=(1, 3, 3), padding=(0, 1, 1), groups=3),
    # Planes that tiles read as they lie, of one column and more, and bands of them; with all kinds of padding.
    *(
        simple(2, batch=b, channels=c, filters=c, size=size, kernel=k, padding=p, groups=c)
        for b, c, size, k, p in (
            (2, 3, (5, 1), 3, 1),
            (2, 17, (9, 9), 3, 0),
            (1, 5, (7, 33), 3, ((2, 0), (0, 2))),
            (3, 4, (6, 18), 5, ((0, 4), (5, 1))),
            (2, 3, (11, 47), 7, 3),
            (1, 2, (300, 70), 3, 1),
            (2, 5, (3, 20), 3, 4),
        )
    ),
    *(
        simple(2, batch=b, channels=c, filters=c, size=size, kernel=k, stride=2, padding=p, groups=c)
        for b, c, size, k, p in (
            (2, 3, (5, 2), 3, 1),
            (2, 17, (14, 14), 5, 2),
            (1, 5, (8, 66), 3, ((2, 0), (0, 2))),
            (3, 4, (7, 37), 5, ((0, 4), (5, 1))),
            (2, 3, (15, 71), 7, 3),
            (1, 2, (300, 41), 3, 1),
            (2, 5, (4, 9), 3, 4),
        )
    ),
    # Planes that tiles hold as a whole, and some that they do not: too high, or with padding that is not the same on both sides.
    *(
        simple(2, batch=b, channels=c, filters=c, size=size, kernel=k, padding=p, groups=c)
        for b, c, size, k, p in (
            (3, 5, 7, 3, 1),
            (2, 19, (9, 7), 5, 2),
            (1, 33, 7, 7, 3),
            (2, 3, (3, 8), 3, 1),
            (2, 17, 8, 5, 2),
            (5, 4, 4, 5, 2),
            (1, 18, (5, 4), 3, 1),
            (2, 6, (4, 5), 3, 1),
            (3, 2, 6, 7, 3),
            (2, 5, (10, 7), 3, 1),
            (2, 5, 7, 3, ((0, 2), (1, 1))),
            (2, 5, (2, 6), 5, 2),
        )
    ),
    # 7x7: one tile of rows that are transformed, parts of one, or several; padding of all kinds.
    *(
        simple(2, batch=b, channels=c, filters=c, size=size, kernel=7, padding=p, groups=c)
        for b, c, size, p in (
            (2, 3, (7, 7), 3),
            (1, 35, (14, 9), 3),
            (3, 17, (1, 22), ((3, 3), (2, 3))),
            (1, 16, (15, 5), ((0, 6), (1, 9))),
            (2, 20, (9, 8), 0),
            (1, 33, (3, 2), 5),
            (2, 18, (6, 25), ((9, 4), (6, 0))),
            (1, 5, (20, 21), ((13, 0), (0, 12))),
            (2, 18, (23, 7), ((2, 3), 3)),
            (1, 35, (9, 4), (3, (5, 1))),
            (1, 17, (12, 6), ((2, 1), (3, 0))),
            (3, 4, (16, 5), ((0, 6), (2, 4))),
            (2, 17, (14, 14), 3),
            (1, 35, (9, 12), ((2, 4), (4, 3))),
            (2, 3, (20, 11), ((6, 0), (1, 6))),
        )
    ),
    simple(3, batch=2, channels=18, filters=18, size=(3, 8, 15), kernel=(1, 7, 7), padding=(0, 3, 3), groups=18),
    # Few channels, and rows of outputs that fill lines of the cache: filters are the rows of tiles.
    *(
        simple(2, channels=c, filters=f, size=(9, n), kernel=k, stride=s, padding=p)
        for c, f, n, k, s, p in (
            (3, 11, 32, 3, 1, 1),
            (1, 33, 16, (5, 3), 1, (7, 1)),
            (4, 9, 63, 3, 2, ((0, 2), (1, 1))),
            (2, 17, 32, (3, 2), 2, ((1, 0), (0, 0))),
        )
    ),
    simple(2, channels=3, filters=10, size=(9, 34), kernel=(2, 3), dilation=(2, 1)),
    # Few filters: dW has pixels for lanes, which fill vectors or do not.
    *(
        simple(2, batch=b, channels=c, filters=f, size=(n, m), kernel=k, stride=s, padding=p)
        for b, c, f, n, m, k, s, p in (
            (2, 1, 1, 16, 16, (1, 3), 1, (0, 1)),
            (1, 2, 2, 19, 33, 3, 1, ((0, 2), (3, 0))),
            (3, 1, 3, 12, 48, 5, 1, 2),
            (2, 3, 4, 11, 20, (4, 2), 2, (1, 0)),
            (1, 5, 7, 33, 31, 3, 2, 1),
            (2, 20, 3, 14, 15, 3, 1, ((6, 0), (0, 4))),
        )
    ),
    # 3x3 with stride 1: tiles of all sizes along each axis, padding that no tap needs, several strips, panels and stages.
    *(simple(2, batch=1, channels=3, filters=5, size=(n, 10 - n), kernel=3, padding=1) for n in range(1, 10)),
    *(simple(2, channels=16, filters=18, size=(6, 5), kernel=3, padding=((0, p), (p, 1))) for p in (0, 2, 3, 5)),
    simple(2, batch=9, channels=2, filters=3, size=15, kernel=3),
    # The same of other kernels that are cut into tiles.
    *(
        simple(2, batch=1, channels=3, filters=5, size=(n, 10 - n), kernel=k, padding=2)
        for n in (1, 4, 8)
        for k in ((5, 5), (3, 5))
    ),
    *(
        simple(2, channels=5, filters=18, size=(6, 7), kernel=k, padding=(k[0] - 1, k[1] // 2))
        for k in ((1, 3), (3, 1), (1, 5))
    ),
    *(
        simple(2, channels=18, filters=5, size=(9, 4), kernel=k, padding=(k[0] // 2, k[1]))
        for k in ((5, 1), (1, 7), (7, 1), (7, 3))
    ),
    *(simple(1, batch=2, channels=3, filters=17, size=n, kernel=k, padding=2) for k, n in ((3, 29), (5, 30), (7, 23))),
    # 3x3 with stride 2: the same, from an even or an odd row and column on, and pixels that no output sees.
    *(
        simple(2, batch=1, channels=3, filters=5, size=(n, 26 - n), kernel=3, stride=2, padding=((p, 1), (1 - p, q)))
        for n, p, q in zip(range(2, 24), itertools.cycle((0, 1)), itertools.cycle((0, 1, 2)))
    ),
    *(
        simple(2, channels=16, filters=18, size=(8, 7), kernel=3, stride=2, padding=((p, 1), (0, p)))
        for p in (2, 3, 4, 5)
    ),
    simple(2, batch=9, channels=2, filters=3, size=15, kernel=3, stride=2, padding=1),
    simple(2, batch=2, channels=12, filters=8, size=(9, 12), kernel=3, stride=2, padding=1, groups=4),
    simple(2, batch=1, channels=2, filters=2, size=(5, 150), kernel=3, padding=1),
    # One channel of a group: planes that fill a vector or do not, taps of several phases, and rows that no tap leads into.
    *(
        simple(2, channels=1, filters=18, size=size, kernel=k, stride=s, padding=p)
        for size, k, s, p in (
            ((9, 20), 3, 1, 0),
            ((8, 7), 3, 1, 1),
            ((40, 3), (5, 2), 1, 2),
            ((1, 33), (1, 4), 1, 0),
            ((4, 5), 2, 2, 0),
            ((11, 13), 3, 2, 1),
            ((12, 18), 5, (2, 1), (0, 2)),
            ((4, 4), 3, 1, 2),
        )
    ),
    simple(2, channels=3, filters=15, size=(10, 9), kernel=3, dilation=(2, 1), padding=1, groups=3),
    simple(2, channels=36, filters=2, size=(9, 14), kernel=(3, 5), dilation=2, padding=(2, 3), groups=2),
    simple(2, batch=1, channels=20, filters=1, size=(4, 30), kernel=3, padding=((70, 50), (1, 0))),
    simple(1, channels=20, filters=1, size=45, kernel=3, padding=1),
    # Numbers that 32 bits would not hold.
    simple(1, size=5, kernel=2, stride=2**31 - 1),
    simple(1, size=5, kernel=2, dilation=2**31 - 1, padding=((2**31 - 1, 2),), stride=2),
    simple(2, size=5, kernel=(2, 1), stride=(2**30, 1), padding=((2**30 - 2, 2**30), (0, 0))),
)

# Several panels and stages: minutes where kernels are interpreted.
LARGE = (
    # dW packs parts of planes, every second number of rows, or every second row.
    simple(2, batch=2, channels=70, filters=200, size=26, kernel=1, stride=2),
    simple(2, batch=2, channels=40, filters=30, size=(9, 7), kernel=1, stride=(2, 1)),
    simple(2, batch=2, channels=40, filters=30, size=(9, 7), kernel=1, stride=(1, 2)),
    simple(2, batch=2, channels=200, filters=70, size=26, kernel=1, stride=2),
    simple(2, batch=3, channels=130, filters=150, size=(13, 15), kernel=1),
    simple(2, batch=1, channels=520, filters=520, size=14, kernel=3, padding=1, groups=520),
    simple(2, batch=2, channels=20, filters=20, size=(31, 40), kernel=3, stride=(1, 2), padding=1, groups=20),
    simple(2, batch=1, channels=520, filters=520, size=14, kernel=(3, 5), padding=1, groups=520),
    # Tasks of dW that take several groups, or parts of one, and pack the input of each.
    simple(2, batch=2, channels=82, filters=10, size=27, kernel=3, stride=2, padding=1, groups=2),
    simple(2, batch=2, channels=30, filters=12, size=(64, 66), kernel=3, padding=1, groups=3),
    simple(2, batch=2, channels=30, filters=12, size=(131, 130), kernel=3, stride=2, padding=1, groups=3),
    # Volumes whose strips meet so much of each other's input that it is packed as a whole.
    simple(3, batch=1, channels=36, filters=9, size=(7, 12, 70), kernel=3, padding=1),
    # Pixels that lie 2 KiB apart, which taller tiles read.
    *(simple(2, batch=1, channels=512, filters=512, size=(5, 9), kernel=k, padding=k // 2, groups=512) for k in (5, 7)),
    # 7x7 whose rows are transformed: strips of several images, or of parts of one; parts of the channels.
    simple(2, batch=35, channels=20, filters=20, size=7, kernel=7, padding=3, groups=20),
    simple(2, batch=7, channels=70, filters=70, size=(40, 6), kernel=7, padding=3, groups=70),
    simple(2, batch=9, channels=70, filters=70, size=14, kernel=7, padding=3, groups=70),
    simple(2, batch=1, channels=20, filters=20, size=(300, 13), kernel=7, padding=3, groups=20),
    simple(2, batch=40, channels=272, filters=272, size=(12, 14), kernel=7, padding=3, groups=272),
    simple(2, batch=3, channels=150, filters=150, size=(29, 40), kernel=7, padding=3, groups=150),
    simple(2, batch=1, channels=34, filters=34, size=(60, 220), kernel=7, padding=((3, 0), (6, 3)), groups=34),
    simple(3, batch=2, channels=80, filters=80, size=(2, 21, 30), kernel=(1, 7, 7), padding=(0, 3, 3), groups=80),
    # Planes that are cut into bands, or taken together; sums of chunks of images; and volumes.
    simple(2, batch=6, channels=3, filters=3, size=64, kernel=3, padding=1, groups=3),
    simple(2, batch=2, channels=3, filters=3, size=(191, 71), kernel=5, stride=2, padding=(2, 3), groups=3),
    simple(2, batch=1, channels=2, filters=2, size=(170, 33), kernel=7, padding=((3, 9), (0, 2)), groups=2),
    simple(2, batch=3, channels=150, filters=150, size=(7, 9), kernel=3, padding=2, groups=150),
    simple(2, batch=3, channels=150, filters=150, size=(13, 11), kernel=3, stride=2, padding=(1, 0), groups=150),
    simple(3, batch=2, channels=20, filters=20, size=(3, 20, 18), kernel=(1, 5, 5), padding=(0, 2, 1), groups=20),
    simple(2, batch=2, channels=3, filters=70, size=(70, 64), kernel=3, padding=1),
    simple(2, batch=2, channels=3, filters=70, size=(71, 64), kernel=7, stride=2, padding=3),
    simple(2, batch=3, channels=12, filters=140, size=(13, 6), kernel=3, padding=1, groups=2),
    simple(2, batch=2, channels=1, filters=5, size=(80, 130), kernel=3, padding=1),
    simple(2, batch=1, channels=70, filters=4, size=(90, 61), kernel=3, stride=2, padding=1),
    simple(2, batch=2, channels=1, filters=20, size=(70, 60), kernel=3, padding=((1, 0), (0, 1))),
    simple(2, batch=1, channels=40, filters=1, size=(80, 50), kernel=5, padding=2),
    simple(
        2, batch=1, channels=220, filters=1, size=(91, 3), kernel=3, padding=1
    ),  # the last strip's rows fill no vector
    simple(2, batch=1, channels=300, filters=20, size=7, kernel=3, padding=1),
    simple(2, batch=2, channels=140, filters=70, size=(9, 5), kernel=3, padding=1),
    simple(2, batch=3, channels=150, filters=20, size=(13, 10), kernel=(5, 5), padding=2),
    simple(2, batch=3, channels=150, filters=20, size=(13, 22), kernel=3, stride=2, padding=1),
    simple(2, batch=2, channels=20, filters=140, size=(60, 9), kernel=3, stride=2, padding=1, groups=2),
    simple(2, batch=2, channels=70, filters=140, size=(9, 25), kernel=(1, 7), padding=(0, 3), groups=2),
    # Lanes are the filters of groups of four and eight, see also SPECIAL.
    simple(2, batch=2, channels=68, filters=68, size=(23, 17), kernel=3, padding=1, groups=17),
    simple(2, batch=3, channels=72, filters=72, size=(9, 30), kernel=3, stride=2, padding=1, groups=9),
    simple(2, batch=1, channels=136, filters=136, size=(15, 14), kernel=3, padding=2, dilation=2, groups=17),
    simple(2, batch=2, channels=20, filters=20, size=(12, 9), kernel=5, stride=(1, 2), padding=2, groups=5),
    simple(2, batch=2, channels=24, filters=24, size=(8, 9), kernel=(2, 3), groups=3),
    simple(2, batch=2, channels=40, filters=40, size=(8, 9), kernel=1, groups=5),
    # dW of one tap has channels for lanes; gradients that fill no vectors are read as they lie but in the last strip.
    simple(2, batch=3, channels=144, filters=6, size=(40, 41), kernel=1, groups=2),
    simple(2, batch=4, channels=75, filters=24, size=(28, 27), kernel=1),
    simple(2, batch=4, channels=24, filters=75, size=(28, 27), kernel=1),
    # dW of few filters walks along pixels: channels side by side, or those of the taps of a row, with edges and without.
    simple(2, batch=3, channels=3, filters=16, size=(19, 21), stride=2, padding=1),
    simple(2, batch=2, channels=3, filters=8, size=(9, 150), kernel=(2, 5), padding=(1, 2)),
    simple(2, batch=2, channels=35, filters=13, size=(12, 9), padding=1),
    simple(2, batch=2, channels=34, filters=16, size=(9, 10), padding=1, groups=2),
    simple(2, batch=2, channels=3, filters=6, size=(9, 12), padding=2, dilation=2),
    simple(3, batch=2, channels=9, filters=5, size=(4, 5, 6), padding=1, stride=(1, 2, 1)),
    simple(2, batch=3, channels=5, filters=7, size=(36, 40), kernel=1),  # planes of few channels, cut into rows of 480
    simple(2, batch=3, channels=12, filters=4, size=(1, 577), kernel=1),  # which cannot be cut
    simple(1, batch=2, channels=3, filters=20, size=1000, kernel=1),  # but not into whole vectors
    simple(2, batch=3, channels=17, filters=35, size=(16, 15), padding=1),  # neither whole vectors nor whole squares
    simple(2, batch=2, channels=7, filters=12, size=(18, 17), padding=1),
    # With 16 registers dW packs channels line by line, where a pixel's fill lines and are many.
    simple(2, batch=2, channels=144, filters=40, size=(13, 11), kernel=3, padding=1),
    simple(2, batch=3, channels=128, filters=70, size=(15, 12), kernel=(3, 2), stride=2, padding=((2, 0), (1, 3))),
    simple(2, batch=2, channels=160, filters=40, size=(12, 19), kernel=3, stride=(1, 2), dilation=2),
    simple(2, batch=3, channels=256, filters=48, size=(17, 9), kernel=1),
    simple(2, batch=2, channels=256, filters=48, size=(23, 18), kernel=1, stride=2),
    simple(3, batch=1, channels=128, filters=70, size=(1, 20, 17), kernel=(1, 3, 3), stride=(3, 1, 1), padding=1),
    simple(1, batch=2, channels=128, filters=70, size=205, kernel=4, padding=2),
    # Few pixels and a large weight: with 16 registers all pixels are one strip, and tasks pack their own part of the weight.
    simple(2, batch=3, channels=150, filters=130, size=(7, 9), kernel=3, padding=1),
    simple(2, batch=2, channels=200, filters=90, size=(13, 12), kernel=3, stride=2, padding=1),
    simple(2, batch=2, channels=520, filters=300, size=(5, 7), kernel=1),
    simple(2, batch=1, channels=100, filters=300, size=(8, 6), kernel=(3, 5), padding=(1, 2), groups=2),
    simple(2, batch=0, channels=150, filters=130, size=(7, 9), kernel=3, padding=1),
)

CASES = tuple(dict.fromkeys((*product(), *SPECIAL, *(() if INTERPRETED else LARGE))))


def random_cases(count, seed=0):
    """Larger cases, for tests marked long."""
    rng = np.random.default_rng(seed)
    cases = []
    while len(cases) < count:
        ndim = int(rng.integers(1, 4))
        largest = {1: 200, 2: 40, 3: 14}[ndim]
        groups = int(rng.choice((1, 1, 2, 3, 8)))
        channels, filters = (int(n) * groups for n in rng.integers(1, 25 // groups + 1, 2))

        def draw(low, high, ndim=ndim):
            return tuple(int(n) for n in rng.integers(low, high + 1, ndim))

        kernel, stride, dilation = draw(1, 7), draw(1, 5), draw(1, 4)
        if ndim == 2 and len(cases) % 2:  # the most frequent of all
            kernel, stride, dilation = (3, 3), (1, 1), (1, 1)
        case = Case(
            int(rng.integers(1, 6)), channels, filters, draw(1, largest), kernel, stride,
            tuple(zip(draw(0, 6), draw(0, 6), strict=True)), dilation, groups,
        )  # fmt: skip
        fits = all(
            n + sum(p) > d * (f - 1)
            for n, f, d, p in zip(case.sizes, case.kernel, case.dilation, case.padding, strict=True)
        )
        if fits and case.geometry.flops < 2e8:
            cases.append(case)
    return tuple(cases)


def integers(rng, shape, dtype=np.float64, largest=4):
    """Small integers, so that every sum of products is exact in every dtype, in whatever order."""
    return rng.integers(-largest, largest + 1, shape).astype(dtype)


@functools.lru_cache(maxsize=4)
def data(case, dtype="float64"):
    """x, weight, bias and grad_output of a case, the same in every dtype."""
    rng = np.random.default_rng(case.seed)
    shapes = (case.x_shape, case.weight_shape, (case.filters,), case.output_shape)
    arrays = tuple(integers(rng, shape, dtype) for shape in shapes)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def inputs_of(computes, x, weight, bias, grad_output):
    """What a row of the plan's table takes, in its order."""
    return {
        "output": (x, weight, bias),
        "grad_input": (grad_output, weight),
        "grad_weight": (grad_output, x),
        "grad_bias": (grad_output,),
    }[computes]


def shapes_3d(case):
    """Shapes of x, weight, bias and grad_output as rows know them."""
    g = case.geometry.volume
    return g.input_shape, g.weight_shape, (g.filters,), g.output_shape


def result_shape(computes, case, sums=1):
    """Shape of what a row writes."""
    x, weight, bias, output = shapes_3d(case)
    return {"output": output, "grad_input": x, "grad_weight": (sums, *weight), "grad_bias": bias}[computes]


@functools.lru_cache(maxsize=len(PASSES) * len(CASES))  # every row comes back to every case
def expected(computes, case, sums=1):
    """What the reference's kernel says, called without anything in between, in float64."""
    arrays = (array.reshape(shape) for array, shape in zip(data(case), shapes_3d(case), strict=True))
    inputs = (array.copy() for array in inputs_of(computes, *arrays))
    out = np.full(result_shape(computes, case, sums), np.nan)
    g = case.geometry.volume
    kernel = getattr(reference, f"general_{computes}")
    if computes == "grad_bias":
        kernel(*inputs, out)
    else:
        kernel(*inputs, out, g.stride, tuple(left for left, _ in g.padding), g.dilation, g.groups)
    out.flags.writeable = False
    return out
