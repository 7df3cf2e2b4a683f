"""Winograd's matrices: short correlations from few products, exactly as they are derived."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from fastconv.cook_toom import LARGEST_TILE, POINTS, SLOTS, input_matrix, output_matrix, slots, weight_matrix


def correlation(m, d, g):
    """``m`` outputs of the correlation of d with g."""
    return [np.dot(d[i : i + len(g)], g) for i in range(m)]


@pytest.mark.parametrize(("m", "r"), [(m, r) for m, r in product(range(1, 5), range(1, 6)) if m + r - 1 <= SLOTS])
def test_correlations(m, r, rng):
    """With all points, and with the first of them: A^T [(G g) * (B^T d)]."""
    n = m + r - 1
    if n < 2:
        return
    for _ in range(10):
        d, g = rng.standard_normal(n), rng.standard_normal(r)
        at_points = weight_matrix(r)[list(slots(n))] @ g
        found = output_matrix(m, n) @ (at_points * (input_matrix(n) @ d))
        np.testing.assert_allclose(found, correlation(m, d, g), atol=1e-12)


@pytest.mark.parametrize("m", range(1, LARGEST_TILE + 1))
def test_gradients_of_weights(m, rng):
    """The transposed identity: G^T [(B^T d) * (A y)] is the correlation of d with y, which is dW."""
    n = m + 2
    d, y = rng.standard_normal(n), rng.standard_normal(m)
    taps = weight_matrix(3)[list(slots(n))]
    found = taps.T @ ((input_matrix(n) @ d) * (output_matrix(m, n).T @ y))
    np.testing.assert_allclose(found, correlation(3, d, y), atol=1e-12)


def test_the_points_are_those_of_all_sizes():
    """Tiles of all sizes share one transformed weight."""
    assert slots(6) == tuple(range(SLOTS))
    assert [slots(n) for n in (3, 4, 5)] == [(0, 1, 5), (0, 1, 2, 5), (0, 1, 2, 3, 5)]
    assert len(set(POINTS)) == len(POINTS)
    for point in POINTS:  # what float32 holds exactly
        assert Fraction(point).denominator <= 8
