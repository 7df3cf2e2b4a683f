"""Winograd's matrices: short correlations from few products, exactly as they are derived."""

from fractions import Fraction

import numpy as np
import pytest

from fastconv.cook_toom import FILTERS, POINTS, Filter, input_matrix, output_matrix, points_of, slots, tile_of

ALL = (*FILTERS, Filter(2), Filter(5, 2), Filter(4, 2))
TILES = pytest.mark.parametrize(("f", "m"), [(f, m) for f in ALL for m in range(1, f.tile + 1)], ids=str)


def correlation(m, d, g, stride=1):
    """``m`` outputs of the correlation of d with g."""
    return [np.dot(d[stride * i : stride * i + len(g)], g) for i in range(m)]


def at_points(f, m, products):
    """Add the products of all values of a tile up at its points."""
    used = slots(m + f.phases[0] - 1)
    sums = dict.fromkeys(used, 0.0)
    for slot, product in zip(f.slots(m), products, strict=True):
        sums[f.values[slot][0]] += product
    return [sums[point] for point in used]


def weights_of(f, m):
    """Number for each value of a tile the weight that it is multiplied with."""
    return [f.values[slot][1] for slot in f.slots(m)]


@TILES
def test_correlations(f, m, rng):
    """With all points, and with the first of them: A^T [(G g) * (B^T d)], summed over phases."""
    for _ in range(10):
        d, g = rng.standard_normal(f.stride * m + f.more), rng.standard_normal(f.taps)
        products = (f.weight_matrix() @ g)[weights_of(f, m)] * (f.input_matrix(m) @ d)
        found = output_matrix(m, m + f.phases[0] - 1) @ at_points(f, m, products)
        np.testing.assert_allclose(found, correlation(m, d, g, f.stride), atol=1e-12)


@TILES
def test_gradients_of_weights(f, m, rng):
    """The transposed identity: G^T [(B^T d) * (A y)] is the correlation of d with y, which is dW."""
    n = m + f.phases[0] - 1
    d, y = rng.standard_normal(f.stride * m + f.more), rng.standard_normal(m)
    gradient = dict(zip(slots(n), output_matrix(m, n).T @ y, strict=True))
    sums = np.zeros(f.weights)
    for slot, value in zip(f.slots(m), f.input_matrix(m) @ d, strict=True):
        point, weight = f.values[slot]
        sums[weight] += value * gradient[point]
    wanted = [np.dot(d[k : k + f.stride * m : f.stride][:m], y) for k in range(f.taps)]
    np.testing.assert_allclose(f.weight_matrix().T @ sums, wanted, atol=1e-12)


@TILES
def test_gradients_of_inputs(f, m, rng):
    """Pixels side by side, of all phases, from the gradients that meet them: the middle of a longer row."""
    n = m + f.phases[0] - 1
    y, g = rng.standard_normal(n), rng.standard_normal(f.taps)
    values = dict(zip(slots(n), input_matrix(n) @ y, strict=True))
    weights = f.weight_matrix() @ g[::-1]
    products = [values[f.values[slot][0]] * weights[f.values[slot][1]] for slot in f.slots(m)]
    pixels = np.zeros(f.stride * (n - 1) + f.taps)
    for i, value in enumerate(y):
        pixels[f.stride * i : f.stride * i + f.taps] += value * g
    first = f.stride * (f.phases[0] - 1) + (f.taps % f.stride or f.stride) - f.stride
    np.testing.assert_allclose(f.pixel_matrix(m) @ products, pixels[first : first + f.stride * m], atol=1e-12)


def test_the_points_are_those_of_all_sizes():
    """Tiles of all sizes share one transformed weight."""
    for f in ALL:
        assert slots(f.tile + f.phases[0] - 1) == tuple(range(f.points))
        assert f.slots(f.tile) == tuple(range(len(f.values)))
        assert f.weights == len(f.weight_matrix())
    for taps in (1, 2, 3, 5, 7):
        assert Filter(taps).points == points_of(taps) == Filter(taps).weights
        assert Filter(taps).tile == tile_of(taps)
    assert [slots(n) for n in (3, 4, 5)] == [(0, 1, 5), (0, 1, 2, 5), (0, 1, 2, 3, 5)]
    assert len(set(POINTS)) == len(POINTS)
    for point in POINTS:  # what float32 holds exactly
        assert Fraction(point).denominator <= 8
