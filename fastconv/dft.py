"""Correlations of seven taps through discrete Fourier transforms of twelve numbers, or of ten or sixteen.

Seven outputs y of a correlation with seven taps w see thirteen inputs x.  If the inputs came round after twelve, y would follow
from the transforms of both, number by number, y = F^-1 (F x * conj F w), but for what the last output sees too much and too
little::

    y[n] = sum over k < 7 of  w[k] * x[(n + k) mod 12]  + (w[6] * (x[12] - x[0])  if n = 6)

An image that is no wider than seven is in the middle of the inputs: three in front and three behind do not exist, and are 0.
Then inputs may come round after ten, and nothing is seen too much or too little.  So are the fourteen of an image that is no
wider than that, where sixteen are enough for as many outputs: the first and the last one see a product too much each.

Transforms of 2m real numbers are two real and m - 1 complex numbers, so that there are 2 + 2*5 + 1 = 13 *values* for twelve,
2 + 2*4 = 10 for ten and 2 + 2*7 + 2 = 18 for sixteen.  A complex product takes three multiplications, (p - iq) (u - iv) =
(pu - qv) - i ((p + q)(u + v) - pu - qv): 2 + 3*5 + 1 = 18 products, or 2 + 3*4 = 14, where direct summation has 49, and
2 + 3*7 + 2 = 25 where it has 98.  Taps have values for each of these.  Products, too, are 13, 10 or 18 values, and can be added
up as such.

Twelve is three times four, and ten is two times five, which share no factor: the transform is three of four numbers, then four of
three numbers, or five of two and two of five, and nothing is multiplied in between (Good and Thomas).  That of sixteen halves
them until four are left (Cooley and Tukey).  No factor is larger than 2, so that rounding errors are those of direct sums.

Functions take what can be added and subtracted, numbers, arrays or code, and are told how to ``multiply_add``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["EDGE", "INPUTS", "SIXTEEN", "SPAN", "TAPS", "TEN", "TWELVE", "Transform"]

TAPS, SPAN, INPUTS = 7, 7, 13
"""Taps of a row, outputs of a tile, and inputs that these see."""

EDGE = TAPS // 2
"""Padding on each side of an image that keeps its size: as many rows and columns of tiles at its edge do not exist."""

MultiplyAdd = Callable[[Any, float, Any], Any]
"""``multiply_add(a, factor, b)`` is a*factor + b, or a*factor if b is None."""

Pairs = Sequence[tuple[Any, Any]]
"""Complex numbers: (p, q) is p - iq."""


class Wrap(NamedTuple):
    """A product that comes out wrong where inputs come round: of an ``output`` and a ``tap``.

    It sees the input ``seen`` and has missed the one named ``missed``, or what is 0, if that is None.
    """

    output: int
    tap: int
    missed: int | None
    seen: int


@dataclass(frozen=True)
class Transform:
    """A way to compute correlations, through transforms of so many numbers.

    Parameters
    ----------
    points : int
        Numbers of a transform.
    span : int
        Outputs of a tile.
    inputs : range
        Those of the inputs that these see which may be other than 0.
    wraps : tuple of Wrap
        What is mended after all.
    forward : callable
        Returns of so many real numbers, of which None is 0, the two numbers of their transform that are real, and the complex
        ones, but for those that follow from these.
    back : callable
        Returns ``span`` of the numbers that have this transform, times ``points``.
    """

    points: int
    span: int
    inputs: range
    wraps: tuple[Wrap, ...]
    forward: Callable[[Sequence[Any], MultiplyAdd], tuple[list[Any], list[tuple[Any, Any]]]]
    back: Callable[[Sequence[Any], Pairs, MultiplyAdd], list[Any]]

    @property
    def window(self) -> int:
        """Inputs that the outputs see."""
        return self.span + TAPS - 1

    @property
    def singles(self) -> int:
        """Values that are real."""
        return 2 + len(self.wraps)

    @property
    def pairs(self) -> int:
        """Complex values, which are pairs behind the real ones."""
        return self.points // 2 - 1

    @property
    def values(self) -> int:
        """Values of inputs and of products."""
        return self.singles + 2 * self.pairs

    @property
    def tap_values(self) -> int:
        """Values of taps."""
        return self.singles + 3 * self.pairs

    def evaluate(self, inputs: Sequence[Any], multiply_add: MultiplyAdd) -> list[Any]:
        """Return the values of the inputs that a tile sees; None is 0.

        >>> values = TWELVE.evaluate([1.0] * 13, lambda a, factor, b: a * factor + (b or 0.0))
        >>> [n for n, value in enumerate(values) if value]  # all are one frequency
        [0]
        """
        places = (n if n in self.inputs else n + self.points for n in range(self.points))
        singles, pairs = self.forward([inputs[n] if n in self.inputs else None for n in places], multiply_add)
        minus, _ = _with(multiply_add)
        for wrap in self.wraps:
            singles.append(minus(None if wrap.missed is None else inputs[wrap.missed], inputs[wrap.seen]))
        return [*singles, *(n for pair in pairs for n in pair)]

    def evaluate_taps(self, taps: Sequence[Any], multiply_add: MultiplyAdd) -> list[Any]:
        """Return the values of 7 taps.

        A transform's conjugate is that of the numbers in the other direction.

        >>> TWELVE.evaluate_taps([12.0] * 7, lambda a, factor, b: a * factor + (b or 0.0))[:3]
        [7.0, 1.0, 12.0]
        """
        turned: list[Any] = [None] * self.points
        for k, tap in enumerate(taps):
            turned[-k % self.points] = multiply_add(tap, 1 / self.points, None)
        singles, pairs = self.forward(turned, multiply_add)
        singles += [taps[wrap.tap] for wrap in self.wraps]
        return [*singles, *(n for u, v in pairs for n in (u, v, u + v))]

    def multiply(self, values: Sequence[Any], taps: Sequence[Any]) -> list[Any]:
        """Return the values of the products.

        >>> add = lambda a, factor, b: a * factor + (b or 0.0)
        >>> inputs, taps = [0.0] * 6 + [1.0] + [0.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
        >>> for way in (TWELVE, TEN):
        ...     products = way.multiply(way.evaluate(inputs, add), way.evaluate_taps(taps, add))
        ...     [round(y, 12) for y in way.interpolate(products, add)]
        [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
        [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
        """
        singles = self.singles
        products = [a * b for a, b in zip(values[:singles], taps[:singles], strict=True)]
        for n in range(self.pairs):
            (p, q), (u, v, both) = values[singles + 2 * n :][:2], taps[singles + 3 * n :][:3]
            products += [p * u - q * v, (p + q) * both - p * u - q * v]
        return products

    def interpolate(self, products: Sequence[Any], multiply_add: MultiplyAdd) -> list[Any]:
        """Return the outputs from the values of products.

        >>> TWELVE.interpolate([1.0] + [0.0] * 12, lambda a, factor, b: a * factor + b)
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
        """
        pairs = [(products[n], products[n + 1]) for n in range(self.singles, self.values, 2)]
        outputs = self.back(products[:2], pairs, multiply_add)
        for n, wrap in enumerate(self.wraps):
            outputs[wrap.output] += products[2 + n]
        return outputs


def _plus(a: Any, b: Any) -> Any:
    """Return a + b, of which any may be None: 0."""
    return b if a is None else a if b is None else a + b


def _with(multiply_add: MultiplyAdd) -> tuple[Callable[[Any, Any], Any], Callable[[Any, float, Any], Any]]:
    """Return ``minus(a, b)`` and ``add(a, factor, b)``: a - b and a*factor + b, of which a or b may be None: 0."""

    def minus(a: Any, b: Any) -> Any:
        return a if b is None else multiply_add(b, -1.0, None) if a is None else a - b

    def add(a: Any, factor: float, b: Any) -> Any:
        return b if a is None else multiply_add(a, factor, b)

    return minus, add


def _halves(numbers: Sequence[Any], multiply_add: MultiplyAdd) -> tuple[list[Any], list[Any]]:
    """Return the sums and the differences of the first half and the other one, of which any may be None: 0."""
    minus, _ = _with(multiply_add)
    pairs = list(zip(numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :], strict=True))
    return [_plus(a, b) for a, b in pairs], [minus(a, b) for a, b in pairs]


HEIGHT = math.sqrt(0.75)
"""The height of a triangle whose sides are 1."""


def _forward_twelve(x: Sequence[Any], multiply_add: MultiplyAdd) -> tuple[list[Any], list[tuple[Any, Any]]]:
    minus, add = _with(multiply_add)
    # Transforms of four numbers: two real numbers each, and a complex one.
    sums, differences, real, imaginary = [], [], [], []
    for n in range(3):
        one, two, three, four = (x[(4 * n + 3 * k) % 12] for k in range(4))
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


def _back_twelve(singles: Sequence[Any], pairs: Pairs, multiply_add: MultiplyAdd) -> list[Any]:
    # Transforms back of three, of those that real numbers had, and of those of complex ones.
    threes = []
    for single, (p, q) in zip(singles, pairs[:2], strict=True):
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
    return outputs


MIDDLE, APART = -0.25, math.sqrt(5) / 4
"""The cosines of a fifth of a turn and of two are MIDDLE + APART and MIDDLE - APART."""

SINES = math.sin(0.4 * math.pi), math.sin(0.8 * math.pi)
"""Those of a fifth of a turn, and of two."""


def _forward_ten(x: Sequence[Any], multiply_add: MultiplyAdd) -> tuple[list[Any], list[tuple[Any, Any]]]:
    minus, add = _with(multiply_add)
    # Transforms of two numbers.
    even, odd = ([x[(first + 6 * n) % 10] for n in range(5)] for first in (0, 5))
    sums, differences = _halves([*even, *odd], multiply_add)
    # Transforms of five of each.
    singles, pairs = [], []
    for a, b, c, d, e in (sums, differences):
        near, far, near_turned, far_turned = _plus(b, e), _plus(c, d), minus(b, e), minus(c, d)
        both, between = _plus(near, far), minus(near, far)
        singles.append(_plus(a, both))
        rest = add(both, MIDDLE, a)
        for apart, (one, two) in ((APART, SINES), (-APART, (SINES[1], -SINES[0]))):
            pairs.append((add(between, apart, rest), add(far_turned, two, add(near_turned, one, None))))
    return singles, pairs


def _back_ten(singles: Sequence[Any], pairs: Pairs, multiply_add: MultiplyAdd) -> list[Any]:
    # Transforms back of five.
    fives = []
    for single, (one_p, one_q), (two_p, two_q) in zip(singles, pairs[::2], pairs[1::2], strict=True):
        both, between = one_p + two_p, one_p - two_p
        rest = multiply_add(both, 2 * MIDDLE, single)
        real = [multiply_add(between, factor, rest) for factor in (2 * APART, -2 * APART)]
        imaginary = [
            multiply_add(two_q, 2 * two, multiply_add(one_q, 2 * one, None))
            for one, two in (SINES, (SINES[1], -SINES[0]))
        ]
        near, far = zip(real, imaginary, strict=True)
        fives.append(
            (multiply_add(both, 2.0, single), near[0] + near[1], far[0] + far[1], far[0] - far[1], near[0] - near[1])
        )
    # And of two: those outputs that are asked for.
    return [fives[0][n % 5] - fives[1][n % 5] if n % 2 else fives[0][n % 5] + fives[1][n % 5] for n in range(SPAN)]


SIXTEENTHS = [(math.cos(n * math.pi / 8), math.sin(n * math.pi / 8)) for n in range(8)]
"""Cosines and sines of sixteenths of a turn."""


def _forward_sixteen(x: Sequence[Any], multiply_add: MultiplyAdd) -> tuple[list[Any], list[tuple[Any, Any]]]:
    minus, add = _with(multiply_add)

    sums, differences = _halves(x, multiply_add)
    # Even frequencies: a transform of eight.
    sums, (a, b, c, d) = _halves(sums, multiply_add)
    (even, odd), (p, q) = _halves(sums, multiply_add)
    near, far, diagonal = minus(b, d), _plus(b, d), math.sqrt(0.5)
    singles = [_plus(even, odd), minus(even, odd)]
    pairs = [
        (add(near, diagonal, a), add(far, diagonal, c)),
        (add(near, -diagonal, a), add(far, diagonal, minus(None, c))),
        (p, q),
    ]
    # Odd ones: a transform of four complex numbers, which are turned first.
    turned = []
    for n, (p, q) in enumerate(zip(differences[:4], differences[4:], strict=True)):
        cosine, sine = SIXTEENTHS[n]
        if n == 0:
            turned.append((p, q))
        elif n == 2:
            turned.append((add(minus(p, q), diagonal, None), add(_plus(p, q), diagonal, None)))
        else:
            turned.append((add(q, -sine, add(p, cosine, None)), add(q, cosine, add(p, sine, None))))
    return singles, [*pairs, *_four(turned, 1, multiply_add)]


def _four(numbers: Pairs, direction: int, multiply_add: MultiplyAdd) -> list[tuple[Any, Any]]:
    """Return the transform of four complex numbers, or, if ``direction`` is -1, that in the other direction."""
    minus, _ = _with(multiply_add)
    (a_p, a_q), (b_p, b_q), (c_p, c_q), (d_p, d_q) = numbers
    even, odd = (_plus(a_p, c_p), _plus(a_q, c_q)), (_plus(b_p, d_p), _plus(b_q, d_q))
    (p, q), (r, t) = (minus(a_p, c_p), minus(a_q, c_q)), (minus(b_p, d_p), minus(b_q, d_q))
    one, three = (minus(p, t), _plus(q, r)), (_plus(p, t), minus(q, r))
    zero, two = (_plus(even[0], odd[0]), _plus(even[1], odd[1])), (minus(even[0], odd[0]), minus(even[1], odd[1]))
    return [zero, one, two, three] if direction > 0 else [zero, three, two, one]


def _back_sixteen(singles: Sequence[Any], pairs: Pairs, multiply_add: MultiplyAdd) -> list[Any]:
    (two_p, two_q), (six_p, six_q), (four_p, four_q) = pairs[:3]
    # What even frequencies give comes again after eight numbers.
    sums, differences = singles[0] + singles[1], singles[0] - singles[1]
    quarters = [
        multiply_add(number, factor, single)
        for number, factor, single in (
            (four_p, 2.0, sums), (four_q, 2.0, differences), (four_p, -2.0, sums), (four_q, -2.0, differences)
        )
    ]  # fmt: skip
    near, far, diagonal = two_p - six_p, two_q + six_q, math.sqrt(2)
    eighths = [(two_p + six_p, 2.0), (far + near, diagonal), (two_q - six_q, 2.0), (far - near, diagonal)]
    even = [
        multiply_add(number, sign * factor, quarter)
        for sign in (1, -1)
        for (number, factor), quarter in zip(eighths, quarters, strict=True)
    ]
    # What odd ones give is that with the other sign.
    outputs = []
    turned = _four(pairs[3:], -1, multiply_add)
    for n in range(14):
        (p, q), (cosine, sine), sign = turned[n % 4], SIXTEENTHS[n % 8], 2.0 if n < 8 else -2.0
        if n % 8 in (2, 6):
            outputs.append(multiply_add(q + p if n % 8 == 2 else q - p, sign * diagonal / 2, even[n % 8]))
        elif n % 4 == 0:
            outputs.append(multiply_add(q if n % 8 else p, sign, even[n % 8]))
        else:
            outputs.append(multiply_add(p, sign * cosine, multiply_add(q, sign * sine, even[n % 8])))
    return outputs


TWELVE = Transform(12, SPAN, range(INPUTS), (Wrap(6, 6, 12, 0),), _forward_twelve, _back_twelve)
"""Of any inputs."""

TEN = Transform(10, SPAN, range(EDGE, INPUTS - EDGE), (), _forward_ten, _back_ten)
"""Of inputs of which three in front and three behind are 0."""

SIXTEEN = Transform(
    16,
    2 * SPAN,
    range(EDGE, EDGE + 2 * SPAN),
    (Wrap(0, 0, None, 16), Wrap(13, 6, None, 3)),
    _forward_sixteen,
    _back_sixteen,
)
"""The same, of a tile that is two wide."""
