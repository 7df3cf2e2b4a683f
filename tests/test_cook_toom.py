"""Winograd's matrices: short correlations from few products, exactly as they are derived."""

from fractions import Fraction

import numpy as np
import pytest

from fastconv.cook_toom import POINTS, TAPS, input_matrix, output_matrix, points_of, slots, tile_of, weight_matrix
from fastconv.kernels.winograd import points_along

TILES = pytest.mark.parametrize(("m", "r"), [(m, r) for r in TAPS for m in range(1, tile_of(r) + 1)])


def correlation(m, d, g):
    """``m`` outputs of the correlation of d with g."""
    return [np.dot(d[i : i + len(g)], g) for i in range(m)]


@TILES
def test_correlations(m, r, rng):
    """With all points, and with the first of them: A^T [(G g) * (B^T d)]."""
    n = m + r - 1
    for _ in range(10):
        d, g = rng.standard_normal(n), rng.standard_normal(r)
        at_points = weight_matrix(r)[list(slots(n))] @ g
        found = output_matrix(m, n) @ (at_points * (input_matrix(n) @ d))
        np.testing.assert_allclose(found, correlation(m, d, g), atol=1e-12)


@TILES
def test_gradients_of_weights(m, r, rng):
    """The transposed identity: G^T [(B^T d) * (A y)] is the correlation of d with y, which is dW."""
    n = m + r - 1
    d, y = rng.standard_normal(n), rng.standard_normal(m)
    taps = weight_matrix(r)[list(slots(n))]
    found = taps.T @ ((input_matrix(n) @ d) * (output_matrix(m, n).T @ y))
    np.testing.assert_allclose(found, correlation(r, d, y), atol=1e-12)


def test_the_points_are_those_of_all_sizes():
    """Tiles of all sizes share one transformed weight."""
    for taps in TAPS:
        assert slots(tile_of(taps) + taps - 1) == tuple(range(points_of(taps)))
        assert points_along(taps) == points_of(taps) == len(weight_matrix(taps))
    assert [slots(n) for n in (3, 4, 5)] == [(0, 1, 5), (0, 1, 2, 5), (0, 1, 2, 3, 5)]
    assert len(set(POINTS)) == len(POINTS)
    for point in POINTS:  # what float32 holds exactly
        assert Fraction(point).denominator <= 8
