"""Correlations of seven taps through discrete Fourier transforms of twelve numbers.

Seven outputs y of a correlation with seven taps w see thirteen inputs x.  If the inputs came round after twelve, y would follow
from the transforms of both, number by number, y = F^-1 (F x * conj F w), but for what the last output sees too much and too
little::

    y[n] = sum over k < 7 of  w[k] * x[(n + k) mod 12]  + (w[6] * (x[12] - x[0])  if n = 6)

Transforms of real numbers are two real and five complex numbers, so that there are 2 + 2*5 + 1 = 13 *values*.  A complex product
takes three multiplications, (p - iq) (u - iv) = (pu - qv) - i ((p + q)(u + v) - pu - qv): 2 + 3*5 + 1 = 18 products, where direct
summation has 49.  Taps have values for each of these.  Products, too, are 13 values, and can be added up as such.

Twelve is three times four, which share no factor: the transform is three of four numbers, then four of three numbers, and nothing
is multiplied in between (Good and Thomas).  No factor is larger than 2, so that rounding errors are those of direct sums.

The functions below take what can be added and subtracted, numbers, arrays or code, and are told how to ``multiply_add``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "EDGE", "INPUTS", "PAIRS", "SINGLES", "SPAN", "TAPS", "TAP_VALUES", "VALUES", "evaluate", "evaluate_taps", "interpolate",
    "multiply",
]  # fmt: skip

TAPS, SPAN, INPUTS = 7, 7, 13
"""Taps of a row, outputs of a tile, and inputs that these see."""

EDGE = TAPS // 2
"""Padding on each side of an image that keeps its size: as many rows and columns of tiles at its edge do not exist."""

SINGLES, PAIRS = 3, 5
"""Values that are real, and complex ones, which are pairs behind them."""

VALUES, TAP_VALUES = SINGLES + 2 * PAIRS, SINGLES + 3 * PAIRS
"""Values of inputs and of products, and those of taps: 13 and 18."""

POINTS, HEIGHT = 12, math.sqrt(0.75)
"""Numbers of a transform, and the height of a triangle whose sides are 1."""

MultiplyAdd = Callable[[Any, float, Any], Any]
"""``multiply_add(a, factor, b)`` is a*factor + b, or a*factor if b is None."""


def _plus(a: Any, b: Any) -> Any:
    """Return a + b, of which any may be None: 0."""
    return b if a is None else a if b is None else a + b


def _minus(a: Any, b: Any, multiply_add: MultiplyAdd) -> Any:
    """Return a - b, of which any may be None: 0."""
    return a if b is None else multiply_add(b, -1.0, None) if a is None else a - b


def _transform(x: Sequence[Any], multiply_add: MultiplyAdd) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Return the two real numbers p of a transform of 12 numbers, and the pairs (p, q) of its complex ones p - iq; None is 0."""

    def minus(a: Any, b: Any) -> Any:
        return _minus(a, b, multiply_add)

    def add(a: Any, factor: float, b: Any) -> Any:
        return b if a is None else multiply_add(a, factor, b)

    # Transforms of four numbers: two real numbers each, and a complex one.
    sums, differences, real, imaginary = [], [], [], []
    for n in range(3):
        one, two, three, four = (x[(4 * n + 3 * k) % POINTS] for k in range(4))
        even, odd = _plus(one, three), _plus(two, four)
        sums.append(_plus(even, odd))
        differences.append(minus(even, odd))
        real.append(minus(one, three))
        imaginary.append(minus(two, four))
    # Transforms of three of each.
    singles, pairs = [], []
    for a, b, c in (sums, differences):
        singles.append(_plus(a, _plus(b, c)))
        pairs.append((add(_plus(b, c), -0.5, a), add(minus(b, c), HEIGHT, None)))
    (p, p_rest, p_turned), (q, q_rest, q_turned) = (
        (_plus(a, _plus(b, c)), add(_plus(b, c), -0.5, a), minus(b, c)) for a, b, c in (real, imaginary)
    )
    for factor in (HEIGHT, -HEIGHT):
        pairs.append((add(q_turned, -factor, p_rest), add(p_turned, factor, q_rest)))
    return singles, [*pairs, (p, q)]


def evaluate(inputs: Sequence[Any], multiply_add: MultiplyAdd) -> list[Any]:
    """Return the 13 values of 13 inputs; None is 0.

    >>> values = evaluate([1.0] * 13, lambda a, factor, b: a * factor + (b or 0.0))
    >>> [n for n, value in enumerate(values) if value]  # all are one frequency
    [0]
    """
    singles, pairs = _transform(inputs[:POINTS], multiply_add)
    return [*singles, _minus(inputs[POINTS], inputs[0], multiply_add), *(n for pair in pairs for n in pair)]


def evaluate_taps(taps: Sequence[Any], multiply_add: MultiplyAdd) -> list[Any]:
    """Return the 18 values of 7 taps.

    A transform's conjugate is that of the numbers in the other direction.

    >>> evaluate_taps([12.0] * 7, lambda a, factor, b: a * factor + (b or 0.0))[:3]
    [7.0, 1.0, 12.0]
    """
    turned: list[Any] = [None] * POINTS
    for k, tap in enumerate(taps):
        turned[-k % POINTS] = multiply_add(tap, 1 / POINTS, None)
    singles, pairs = _transform(turned, multiply_add)
    return [*singles, taps[-1], *(n for u, v in pairs for n in (u, v, u + v))]


def multiply(values: Sequence[Any], taps: Sequence[Any]) -> list[Any]:
    """Return the 13 values of the products.

    >>> add = lambda a, factor, b: a * factor + (b or 0.0)
    >>> inputs, taps = [0.0] * 6 + [1.0] + [0.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    >>> products = multiply(evaluate(inputs, add), evaluate_taps(taps, add))
    >>> [round(y, 12) for y in interpolate(products, add)]
    [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    """
    products = [a * b for a, b in zip(values[:SINGLES], taps[:SINGLES], strict=True)]
    for n in range(PAIRS):
        (p, q), (u, v, both) = values[SINGLES + 2 * n :][:2], taps[SINGLES + 3 * n :][:3]
        products += [p * u - q * v, (p + q) * both - p * u - q * v]
    return products


def interpolate(products: Sequence[Any], multiply_add: MultiplyAdd) -> list[Any]:
    """Return 7 outputs from the 13 values of products.

    >>> interpolate([1.0] + [0.0] * 12, lambda a, factor, b: a * factor + b)
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    pairs = [products[n : n + 2] for n in range(SINGLES, VALUES, 2)]
    # Transforms back of three, of those that real numbers had, and of those of complex ones.
    threes = []
    for single, (p, q) in zip(products[:2], pairs[:2], strict=True):
        rest = single - p
        threes.append(
            (multiply_add(p, 2.0, single), multiply_add(q, 2 * HEIGHT, rest), multiply_add(q, -2 * HEIGHT, rest))
        )
    (one_p, one_q), (two_p, two_q), (p, q) = pairs[2:]
    both_p, both_q, apart_p, apart_q = one_p + two_p, one_q + two_q, one_p - two_p, one_q - two_q
    rest_p, rest_q = multiply_add(both_p, -0.5, p), multiply_add(both_q, -0.5, q)
    real = (p + both_p, multiply_add(apart_q, HEIGHT, rest_p), multiply_add(apart_q, -HEIGHT, rest_p))
    imaginary = (q + both_q, multiply_add(apart_p, -HEIGHT, rest_q), multiply_add(apart_p, HEIGHT, rest_q))
    # And of four: those outputs that are asked for.
    outputs = []
    for n in range(SPAN):
        even, odd = threes[0][n % 3], threes[1][n % 3]
        parts, factor = ((real, 2.0), (imaginary, 2.0), (real, -2.0), (imaginary, -2.0))[3 * n % 4]
        outputs.append(multiply_add(parts[n % 3], factor, even - odd if n % 2 else even + odd))
    return [*outputs[:-1], outputs[-1] + products[SINGLES - 1]]
