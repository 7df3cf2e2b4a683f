"""Winograd's minimal filtering: short correlations from few products.

``m`` outputs of a correlation with ``r`` taps are a polynomial product in disguise.  Evaluated at n = m + r - 1 points, it needs
one product a point instead of m*r in all::

    A^T [(G g) * (B^T d)] = correlation of d (n inputs) with g (r taps)

G g are the values of g at the points, A transposes the evaluation of a polynomial of degree m - 1, and B^T is what makes the two
fit: Cook and Toom's construction, transposed.  In two dimensions the three are applied along rows and columns.

The points of smaller n are the first ones of the larger, and infinity.  What belongs to a point but not to the others, the
product of its distances to them, stands in B^T.  So G g has the same values for all m: tiles of several sizes share one
transformed weight, and a size that 4 does not divide ends in a smaller tile.

The points are chosen for small errors; ``fastconv bench --errors points`` prints what others would do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "POINTS",
    "TAPS",
    "can_be_cut",
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

TAPS = (3, 5, 7, 1)
"""How many taps there may be along an axis.  With one there is nothing to save: a tile is one number, at one point."""


def points_of(taps: int) -> int:
    """Count the points along an axis.

    >>> [points_of(taps) for taps in TAPS]
    [6, 6, 8, 1]
    """
    return {1: 1, 7: 8}.get(taps, 6)


def tile_of(taps: int) -> int:
    """Count the outputs of the largest tile along an axis.

    >>> [tile_of(taps) for taps in TAPS]
    [4, 2, 2, 1]
    """
    return points_of(taps) + 1 - taps


def can_be_cut(down: int, across: int) -> bool:
    """Say whether there are tiles that spare multiplications for so many taps down and across.  Errors of 7x7 would be some 1e-5.

    >>> can_be_cut(5, 1), can_be_cut(1, 1), can_be_cut(4, 4)
    (True, False, False)
    """
    return down in TAPS and across in TAPS and (down, across) not in ((1, 1), (7, 7))


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
