"""Correlations through Fourier transforms of twelve numbers, in exact and in rounded arithmetic."""

import numpy as np
import pytest

from fastconv import dft
from fastconv.dft import INPUTS, SPAN, TAP_VALUES, TAPS, VALUES, evaluate, evaluate_taps, interpolate, multiply


def multiply_add(a, factor, b):
    product = a * (a.dtype.type(factor) if isinstance(a, np.generic) else factor)
    return product if b is None else product + b


def correlate(x, w):
    return interpolate(multiply(evaluate(x, multiply_add), evaluate_taps(w, multiply_add)), multiply_add)


def test_correlations(rng):
    for _ in range(20):
        x, w = rng.standard_normal(INPUTS), rng.standard_normal(TAPS)
        np.testing.assert_allclose(correlate(list(x), list(w)), np.correlate(x, w), atol=1e-13)


@pytest.mark.parametrize("n", range(INPUTS))
@pytest.mark.parametrize("k", range(TAPS))
def test_each_product_counts_once(n, k):
    """Of an input and a tap which are 1: that of output n - k, if there is such a one."""
    wanted = [float(y == n - k) for y in range(SPAN)]
    np.testing.assert_allclose(correlate(list(np.eye(INPUTS)[n]), list(np.eye(TAPS)[k])), wanted, atol=1e-15)


@pytest.mark.parametrize(("first", "last"), [(0, 13), (3, 13), (0, 10), (3, 10), (5, 6), (0, 0)])
def test_what_is_none_is_zero(first, last, rng):
    x = rng.standard_normal(INPUTS)
    x[:first], x[last:] = 0, 0
    some = [value if first <= n < last else None for n, value in enumerate(x)]
    with_none = [0.0 if value is None else value for value in evaluate(some, multiply_add)]
    np.testing.assert_allclose(with_none, evaluate(list(x), multiply_add), atol=1e-15)


def test_values_are_those_of_fourier_transforms(rng):
    x, w = rng.standard_normal(INPUTS), rng.standard_normal(TAPS)
    values, taps = evaluate(list(x), multiply_add), evaluate_taps(list(w), multiply_add)
    assert (len(values), len(taps)) == (VALUES, TAP_VALUES)
    spectrum, of_taps = np.fft.fft(x[:12]), np.fft.fft(w, 12).conj() / 12
    places = (4, 10, 1, 5, 9)  # of the complex ones: those whose remainders by 3 and by 4 they belong to
    found = [values[n] - 1j * values[n + 1] for n in range(3, VALUES, 2)]
    np.testing.assert_allclose(found, spectrum[list(places)], atol=1e-12)
    np.testing.assert_allclose(
        [taps[n] - 1j * taps[n + 1] for n in range(3, TAP_VALUES, 3)], of_taps[list(places)], atol=1e-12
    )
    np.testing.assert_allclose(values[:3], [spectrum[0].real, spectrum[6].real, x[12] - x[0]], atol=1e-12)
    np.testing.assert_allclose(taps[:3], [of_taps[0].real, of_taps[6].real, w[6]], atol=1e-12)


def test_errors_are_those_of_direct_sums(rng):
    """Of seven rows of taps, about those of adding the 49 products one by one."""
    rows = [(rng.standard_normal(INPUTS), rng.standard_normal(TAPS)) for _ in range(TAPS * 300)]
    ours, direct = [], []
    for first in range(0, len(rows), TAPS):
        exact, sums, one_by_one = np.zeros(SPAN), [np.float32(0)] * VALUES, [np.float32(0)] * SPAN
        for x, w in rows[first : first + TAPS]:
            x, w = x.astype(np.float32), w.astype(np.float32)
            exact += np.correlate(x.astype(np.float64), w.astype(np.float64))
            products = multiply(evaluate(list(x), multiply_add), evaluate_taps(list(w), multiply_add))
            sums = [total + product for total, product in zip(sums, products, strict=True)]
            for k in range(TAPS):
                one_by_one = [total + x[y + k] * w[k] for y, total in enumerate(one_by_one)]
        ours.append(np.subtract(interpolate(sums, multiply_add), exact))
        direct.append(np.subtract(one_by_one, exact))
    assert np.linalg.norm(ours) < 1.1 * np.linalg.norm(direct)
    assert np.abs(ours).max() < 1.5 * np.abs(direct).max()


def test_functions_keep_their_kind(rng):
    """What is given in single precision stays so, and arrays are taken as numbers are."""
    x, w = rng.standard_normal((INPUTS, 3)).astype(np.float32), rng.standard_normal((TAPS, 3)).astype(np.float32)

    def of_arrays(a, factor, b):
        product = a * a.dtype.type(factor)
        return product if b is None else product + b

    products = multiply(evaluate(list(x), of_arrays), evaluate_taps(list(w), of_arrays))
    outputs = np.array(interpolate(products, of_arrays))
    assert outputs.dtype == np.float32
    for lane in range(3):
        np.testing.assert_allclose(outputs[:, lane], np.correlate(x[:, lane], w[:, lane]), atol=1e-5)
    assert dft.SPAN + dft.TAPS - 1 == dft.INPUTS
