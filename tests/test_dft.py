"""Correlations through Fourier transforms of twelve, ten and sixteen numbers, in exact and in rounded arithmetic."""

import numpy as np
import pytest

from fastconv.dft import INPUTS, SIXTEEN, SPAN, TAPS, TEN, TWELVE

ALL = (TWELVE, TEN, SIXTEEN)
EACH = pytest.mark.parametrize("transform", ALL, ids=["twelve", "ten", "sixteen"])


def multiply_add(a, factor, b):
    product = a * (a.dtype.type(factor) if isinstance(a, np.generic | np.ndarray) else factor)
    return product if b is None else product + b


def inputs_of(transform, rng, dtype=float):
    """Numbers where they may be other than 0."""
    x = np.zeros(transform.window, dtype)
    x[transform.inputs] = rng.standard_normal(len(transform.inputs))
    return x


def products_of(transform, x, w):
    return transform.multiply(transform.evaluate(x, multiply_add), transform.evaluate_taps(w, multiply_add))


def correlate(transform, x, w):
    return transform.interpolate(products_of(transform, x, w), multiply_add)


def test_counts():
    assert (TWELVE.values, TWELVE.tap_values, TWELVE.inputs) == (13, 18, range(13))
    assert (TEN.values, TEN.tap_values, TEN.inputs) == (10, 14, range(3, 10))
    assert (SIXTEEN.values, SIXTEEN.tap_values, SIXTEEN.inputs) == (18, 25, range(3, 17))
    assert [transform.window for transform in ALL] == [INPUTS, INPUTS, INPUTS + SPAN]


@EACH
def test_correlations(transform, rng):
    for _ in range(20):
        x, w = inputs_of(transform, rng), rng.standard_normal(TAPS)
        np.testing.assert_allclose(correlate(transform, list(x), list(w)), np.correlate(x, w), atol=1e-13)


@pytest.mark.parametrize(("transform", "n"), [(each, n) for each in ALL for n in each.inputs])
@pytest.mark.parametrize("k", range(TAPS))
def test_each_product_counts_once(transform, n, k):
    """Of an input and a tap which are 1: that of output n - k, if there is such a one."""
    wanted = [float(y == n - k) for y in range(transform.span)]
    found = correlate(transform, list(np.eye(transform.window)[n]), list(np.eye(TAPS)[k]))
    np.testing.assert_allclose(found, wanted, atol=1e-15)


@EACH
@pytest.mark.parametrize(("first", "last"), [(0, 20), (3, 20), (0, 10), (3, 10), (5, 6), (16, 17), (0, 0)])
def test_what_is_none_is_zero(transform, first, last, rng):
    x = inputs_of(transform, rng)
    x[:first], x[last:] = 0, 0
    some = [value if first <= n < last and n in transform.inputs else None for n, value in enumerate(x)]
    with_none = [0.0 if value is None else value for value in transform.evaluate(some, multiply_add)]
    np.testing.assert_allclose(with_none, transform.evaluate(list(x), multiply_add), atol=1e-15)


@pytest.mark.parametrize(
    ("transform", "places"), [(TWELVE, [4, 10, 1, 5, 9]), (TEN, [2, 4, 7, 9]), (SIXTEEN, [2, 6, 4, 1, 5, 9, 13])]
)
def test_values_are_those_of_fourier_transforms(transform, places, rng):
    """``places`` are those of the complex values: those whose remainders by 3 and by 4, or by 2 and by 5, they belong to."""
    x, w = inputs_of(transform, rng), rng.standard_normal(TAPS)
    values, taps = transform.evaluate(list(x), multiply_add), transform.evaluate_taps(list(w), multiply_add)
    assert (len(values), len(taps)) == (transform.values, transform.tap_values)
    points, singles = transform.points, transform.singles
    around = sum(np.pad(x, (0, 2 * points - len(x))).reshape(2, points)) if points == 16 else x[:points]
    spectrum, of_taps = np.fft.fft(around), np.fft.fft(w, points).conj() / points
    found = [values[n] - 1j * values[n + 1] for n in range(singles, transform.values, 2)]
    np.testing.assert_allclose(found, spectrum[places], atol=1e-12)
    found = [taps[n] - 1j * taps[n + 1] for n in range(singles, transform.tap_values, 3)]
    np.testing.assert_allclose(found, of_taps[places], atol=1e-12)
    real, wraps = [0, points // 2], transform.wraps
    missed = [(0 if wrap.missed is None else x[wrap.missed]) - x[wrap.seen] for wrap in wraps]
    np.testing.assert_allclose(values[:singles], [*spectrum[real].real, *missed], atol=1e-12)
    np.testing.assert_allclose(taps[:singles], [*of_taps[real].real, *(w[wrap.tap] for wrap in wraps)], atol=1e-12)


@EACH
def test_errors_are_those_of_direct_sums(transform, rng):
    """Of seven rows of taps, about those of adding the products one by one: for ten numbers 1.03 to 1.12 times, by the seed."""
    rows = [(inputs_of(transform, rng), rng.standard_normal(TAPS)) for _ in range(TAPS * 300)]
    ours, direct = [], []
    for first in range(0, len(rows), TAPS):
        exact, sums = np.zeros(transform.span), [np.float32(0)] * transform.values
        one_by_one = [np.float32(0)] * transform.span
        for x, w in rows[first : first + TAPS]:
            x, w = x.astype(np.float32), w.astype(np.float32)
            exact += np.correlate(x.astype(np.float64), w.astype(np.float64))
            products = products_of(transform, list(x), list(w))
            sums = [total + product for total, product in zip(sums, products, strict=True)]
            for k in range(TAPS):
                one_by_one = [total + x[y + k] * w[k] for y, total in enumerate(one_by_one)]
        ours.append(np.subtract(transform.interpolate(sums, multiply_add), exact))
        direct.append(np.subtract(one_by_one, exact))
    assert np.linalg.norm(ours) < (1.2 if transform is TEN else 1.1) * np.linalg.norm(direct)
    assert np.abs(ours).max() < 1.5 * np.abs(direct).max()


@EACH
def test_functions_keep_their_kind(transform, rng):
    """What is given in single precision stays so, and arrays are taken as numbers are."""
    x = np.stack([inputs_of(transform, rng, np.float32) for _ in range(3)], axis=1)
    w = rng.standard_normal((TAPS, 3)).astype(np.float32)
    outputs = np.array(correlate(transform, list(x), list(w)))
    assert outputs.dtype == np.float32
    for lane in range(3):
        np.testing.assert_allclose(outputs[:, lane], np.correlate(x[:, lane], w[:, lane]), atol=1e-5)
