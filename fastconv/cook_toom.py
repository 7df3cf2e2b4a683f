"""Winograd's minimal filtering: short correlations from few products.

``m`` outputs of a correlation with ``r`` taps are a polynomial product in disguise.  Evaluated at n = m + r - 1 points, it needs
one product a point instead of m*r in all::

    A^T [(G g) * (B^T d)] = correlation of d (n inputs) with g (r taps)

G g are the values of g at the points, A transposes the evaluation of a polynomial of degree m - 1, and B^T is what makes the two
fit: Cook and Toom's construction, transposed.  In two dimensions the three are applied along rows and columns.

The points of smaller n are the first ones of the larger, and infinity.  What belongs to a point but not to the others, the
product of its distances to them, stands in B^T.  So G g has the same values for all m: tiles of several sizes share one
transformed weight, and a size that 4 does not divide ends in a smaller tile.

A filter of stride 2 is the sum of two of stride 1, its *phases*: the even taps meet the even inputs, the odd taps the odd ones.
Three taps are two and one.  The values of both phases are added up at the points, which are those of the longer one, before there
is one transform back.  A phase with a tap less is 0 at infinity, where it is left out: a tile of 5 outputs takes 6 + 5 products
instead of 15, one of 5x5 outputs 121 instead of 225.  The other way, for gradients of inputs, each phase makes every other pixel.

The points are chosen for small errors; ``fastconv bench --errors points`` prints what others would do.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "FILTERS",
    "KERNELS",
    "POINTS",
    "Filter",
    "input_matrix",
    "output_matrix",
    "points_of",
    "slots",
    "tile_of",
    "weight_matrix",
]

Array = np.ndarray[Any, Any]

POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2, 1.0, -1.0)
"""Finite points.  Their products are short fractions, and no power of one is much larger than those of the others.  Up to five
taps have the first five of them, seven taps have all; infinity is the last point."""


def points_of(taps: int) -> int:
    """Count the points along an axis.

    >>> [points_of(taps) for taps in (1, 2, 3, 5, 7)]
    [1, 6, 6, 6, 8]
    """
    return {1: 1, 7: 8}.get(taps, 6)


def tile_of(taps: int) -> int:
    """Count the outputs of the largest tile along an axis.

    >>> [tile_of(taps) for taps in (1, 2, 3, 5, 7)]
    [1, 5, 4, 2, 2]
    """
    return points_of(taps) + 1 - taps


def slots(n: int) -> tuple[int, ...]:
    """Return which of the points a correlation with n inputs uses: the first n - 1, and infinity.

    >>> slots(4), slots(7)
    ((0, 1, 2, 5), (0, 1, 2, 3, 4, 5, 7))
    """
    points = next(points for points in (1, 6, 8) if points >= n)
    return (*range(n - 1), points - 1)


def input_matrix(n: int, points: tuple[float, ...] = POINTS) -> Array:
    """Return B^T for n inputs, of shape (n, n).

    >>> input_matrix(3)  # points 0, 5/8 and infinity
    array([[ 1.   , -1.6  ,  0.   ],
           [ 0.   ,  1.6  ,  0.   ],
           [ 0.   , -0.625,  1.   ]])
    """
    finite = points[: n - 1]
    matrix = np.zeros((n, n))
    for i, point in enumerate(finite):
        others = [other for other in finite if other != point]
        matrix[i, : n - 1] = np.polynomial.polynomial.polyfromroots(others) / np.prod([point - o for o in others])
    matrix[-1] = np.polynomial.polynomial.polyfromroots(finite)
    return matrix + 0.0  # no zero is negative


def output_matrix(m: int, n: int, points: tuple[float, ...] = POINTS) -> Array:
    """Return A^T for m outputs of n inputs, of shape (m, n).

    >>> output_matrix(2, 4)
    array([[ 1.   ,  1.   ,  1.   ,  0.   ],
           [ 0.   ,  0.625, -0.625,  1.   ]])
    """
    return _powers(m, points[: n - 1]).T


def weight_matrix(r: int, points: tuple[float, ...] = POINTS) -> Array:
    """Return G for r taps, of shape (points, r).

    >>> weight_matrix(3)[:2]
    array([[1.      , 0.      , 0.      ],
           [1.      , 0.625   , 0.390625]])
    """
    return _powers(r, points[: points_of(r) - 1])


def _powers(count: int, finite: tuple[float, ...]) -> Array:
    """Evaluate the powers below ``count`` at finite points and at infinity."""
    at_infinity = [0.0] * (count - 1) + [1.0]
    return np.array([[point**power for power in range(count)] for point in finite] + [at_infinity])


@dataclass(frozen=True)
class Filter:
    """So many taps along an axis, and the stride of what they compute.

    >>> Filter(3, 2).phases, Filter(3, 2).points, Filter(3, 2).tile
    ((2, 1), 6, 5)
    """

    taps: int
    stride: int = 1

    @functools.cached_property
    def phases(self) -> tuple[int, ...]:
        """Taps of each phase; the first has most."""
        return tuple(len(range(first, self.taps, self.stride)) for first in range(self.stride))

    @property
    def longest(self) -> Filter:
        """The filter of stride 1 with as many taps as the first phase."""
        return Filter(self.phases[0])

    @property
    def points(self) -> int:
        """Points that the products of all phases are added up at."""
        return points_of(self.phases[0])

    @property
    def tile(self) -> int:
        """Outputs of the largest tile."""
        return tile_of(self.phases[0])

    @property
    def more(self) -> int:
        """What a tile has of inputs more than its outputs times the stride."""
        return self.taps - self.stride

    @functools.cached_property
    def values(self) -> tuple[tuple[int, int], ...]:
        """For each value of a tile's input, phase by phase, its point and the number of the weight that it is multiplied with.

        >>> Filter(3, 2).values[4:8]
        ((4, 4), (5, 5), (0, 6), (1, 6))
        """
        found: list[tuple[int, int]] = []
        weight = 0
        for taps in self.phases:
            points = self.points if taps == self.phases[0] else self.points - 1
            single = taps == 1 < self.phases[0]  # the same at all points
            found += [(point, weight + point * (not single)) for point in range(points)]
            weight += 1 if single else points
        return tuple(found)

    @property
    def weights(self) -> int:
        """Different values of a weight."""
        return 1 + self.values[-1][1]

    def slots(self, m: int) -> tuple[int, ...]:
        """Return which of the values a tile of ``m`` outputs has."""
        used = slots(m + self.phases[0] - 1)
        return tuple(value for value, (point, _) in enumerate(self.values) if point in used)

    def input_matrix(self, m: int) -> Array:
        """Return B^T of all phases of a tile with ``m`` outputs: inputs to values.

        >>> Filter(3, 2).input_matrix(1)  # of the even inputs at points 0 and infinity, of the odd one at 0
        array([[1., 0., 0.],
               [0., 0., 1.],
               [0., 1., 0.]])
        """
        count = self.stride * m + self.more
        matrix = np.zeros((count, count))
        row = 0
        for phase, taps in enumerate(self.phases):
            inputs = m + taps - 1
            block = input_matrix(m + self.phases[0] - 1)[:inputs, :inputs]
            matrix[row : row + inputs, phase :: self.stride] = block
            row += inputs
        return matrix

    def pixel_matrix(self, m: int) -> Array:
        """Return A^T of all phases of the transposed filter: values to ``m`` times the stride of neighbouring pixels.

        Its taps are turned round, and so are the phases of its pixels.

        >>> Filter(3, 2).pixel_matrix(1)
        array([[0., 0., 1.],
               [1., 1., 0.]])
        """
        n = m + self.phases[0] - 1
        matrix = np.zeros((self.stride * m, self.stride * m + self.more))
        column = 0
        for phase, taps in enumerate(self.phases):
            values = m + taps - 1
            matrix[self.stride - 1 - phase :: self.stride, column : column + values] = output_matrix(m, n)[:, :values]
            column += values
        return matrix

    def weight_matrix(self) -> Array:
        """Return G of all phases: taps to weights."""
        longest = weight_matrix(self.phases[0])
        matrix = np.zeros((self.weights, self.taps))
        row = 0
        for phase, taps in enumerate(self.phases):
            rows = longest if taps == self.phases[0] else longest[: -1 if taps > 1 else 1, :taps]
            matrix[row : row + len(rows), phase :: self.stride] = rows
            row += len(rows)
        return matrix


FILTERS = (Filter(3), Filter(5), Filter(7), Filter(1), Filter(3, 2))
"""Filters along an axis.  With a single tap there is nothing to save: a tile is one number, at one point."""

KERNELS = (
    *(
        (down, across)
        for down, across in itertools.product(FILTERS[:4], repeat=2)
        if (down.taps, across.taps) not in ((1, 1), (7, 7))
    ),
    (Filter(3, 2), Filter(3, 2)),
)
"""Filters down and across kernels that there are tiles for; the most frequent first.  Errors of 7x7 would be some 1e-5."""
