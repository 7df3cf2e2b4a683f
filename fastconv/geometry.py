"""The shape of a convolution: one frozen value, checked once, and the index ranges that follow from it.

Everything here is 0-based.  Along one axis let ``n`` be the input size, ``f`` the kernel size, ``s`` the stride, ``d``
the dilation and ``P``, ``Q`` the padding on the left and on the right.  Output ``i`` reads input ``p`` through tap
``k`` where

    p = s*i + d*k - P

and every range below is this equation solved for one of its letters.  Lower bounds round up, upper bounds round down,
both are clamped to the array.  `fastconv.reference` holds the same ranges in the 1-based indices of the source, written
independently; a test compares the two.

The functions marked ``@shared`` are called by Python and by compiled kernels alike.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .jit import shared

__all__ = [
    "ConvGeometry",
    "ceil_div",
    "checked_shape",
    "conv_geometry",
    "even_part",
    "gather_range",
    "is_exact",
    "named_padding",
    "output_size",
    "padding_pairs",
    "per_axis",
    "phase_taps",
    "tap_range",
    "transposed_geometry",
]

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]

LARGEST = 2**31 - 1
"""Largest size, stride, dilation or padding along an axis, so that no index computation leaves 64 bits."""


@shared
def ceil_div(a: int, b: int) -> int:
    """Round ``a / b`` up, for any ``a`` and positive ``b``."""
    return -((-a) // b)


def even_part(n: int, largest: int) -> int:
    """Return the size of the parts that n is cut into: as few as can be, of about one size, at least 1.

    >>> even_part(9, 4), even_part(14, 4)
    (3, 4)
    """
    return ceil_div(n, max(1, ceil_div(n, largest))) or 1


@shared
def output_size(n: int, f: int, s: int, d: int, left: int, right: int) -> int:
    """Count the outputs along an axis; below 1 if the kernel is larger than the padded input.

    >>> output_size(7, 3, 2, 1, 0, 0)
    3
    """
    return (n + left + right - d * (f - 1) - 1) // s + 1


@shared
def tap_range(k: int, n: int, n_out: int, s: int, d: int, left: int) -> tuple[int, int]:
    """First and last output that reads inside the input through tap ``k`` (equations 1 and 3).

    From ``0 <= s*i + d*k - P <= n - 1``.  The range is empty where the first is larger than the last.
    """
    return max(0, ceil_div(left - d * k, s)), min(n_out - 1, (n - 1 + left - d * k) // s)


@shared
def gather_range(p: int, f: int, n_out: int, s: int, d: int, left: int) -> tuple[int, int]:
    """First and last output whose window reaches over input ``p``: i_lower..i_upper of equation (2).

    From ``0 <= p + P - s*i <= d*(f - 1)``.  With a dilation, only those ``i`` count where ``d`` divides the distance.
    """
    return max(0, ceil_div(p + left - d * (f - 1), s)), min(n_out - 1, (p + left) // s)


@shared
def phase_taps(p: int, s: int, d: int, left: int) -> tuple[int, int]:
    """First tap and tap step that lead from any output to input ``p``; the first is -1 if none does.

    ``p + P = s*i + d*k`` has a solution only where ``g = gcd(s, d)`` divides ``p + P``; then ``k`` runs over one residue
    class modulo ``s/g``.  So dX falls apart into the phases ``p mod s``: each is a stride-1 convolution of dO with a
    subset of the taps, and no loop has to test divisibility.

    >>> [phase_taps(p, 2, 1, 1) for p in range(2)]  # 3x3, stride 2, padding 1: tap 1, then taps 0 and 2
    [(1, 2), (0, 2)]
    """
    # Extended Euclid: on exit g = gcd(s, d) and inverse * d = g (mod s).
    g, rest, inverse, nxt = s, d % s, 0, 1
    while rest != 0:
        q = g // rest
        g, rest = rest, g - q * rest
        inverse, nxt = nxt, inverse - q * nxt
    if (p + left) % g != 0:
        return -1, 1
    step = s // g
    return ((p + left) // g % step) * (inverse % step) % step, step


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution's sizes, all of them valid.  Make one with `conv_geometry` or `transposed_geometry`.

    Attributes
    ----------
    batch, channels, filters, groups : int
        N, n_ch, n_f and the number of groups; ``batch`` may be 0.
    input, kernel, output : tuple of int
        Spatial sizes, one per axis.
    stride, dilation : tuple of int
        One per axis.
    padding : tuple of (int, int)
        Left and right, one pair per axis.
    """

    batch: int
    channels: int
    filters: int
    groups: int
    input: Ints
    kernel: Ints
    output: Ints
    stride: Ints
    dilation: Ints
    padding: Pairs

    @functools.cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in dataclasses.fields(self)))

    def __hash__(self) -> int:  # of what never changes: plans are looked up by it
        return self._hash

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 1 to 3."""
        return len(self.input)

    @functools.cached_property
    def input_shape(self) -> Ints:
        """Shape (N, n_ch, *spatial) of X and dX."""
        return (self.batch, self.channels, *self.input)

    @functools.cached_property
    def weight_shape(self) -> Ints:
        """Shape (n_f, n_ch / groups, *kernel) of W and dW."""
        return (self.filters, self.channels // self.groups, *self.kernel)

    @functools.cached_property
    def output_shape(self) -> Ints:
        """Shape (N, n_f, *spatial) of O and dO."""
        return (self.batch, self.filters, *self.output)

    @functools.cached_property
    def flops(self) -> int:
        """Floating-point operations of one pass, a multiplication and an addition counting as two.

        Taps that fall on padding count too, as is the custom; all three passes have the same number.
        """
        return 2 * math.prod(self.output_shape) * math.prod(self.weight_shape[1:])

    def bytes(self, itemsize: int) -> int:
        """Bytes of X, W and O together: the least that a pass moves."""
        return itemsize * (math.prod(self.input_shape) + math.prod(self.weight_shape) + math.prod(self.output_shape))

    @property
    def unseen(self) -> Ints:
        """Trailing input rows, columns, ... that no output sees, one count per axis; dX is 0 there.

        >>> conv_geometry((1, 8, 8), (1, 1, 3, 3), stride=2).unseen
        (1, 1)
        """
        unseen = []
        for n, f, o, s, d, (left, _) in zip(
            self.input, self.kernel, self.output, self.stride, self.dilation, self.padding, strict=True
        ):
            last_seen = -1
            # The last tap through which the last output reads inside the input, and those after it, until they repeat.
            start = min(max(0, (n - 1 + left - s * (o - 1)) // d), f - 1)
            for k in range(start, min(f, start + s // math.gcd(s, d) + 1)):
                first, last = tap_range(k, n, o, s, d, left)
                if first <= last:
                    last_seen = max(last_seen, s * last + d * k - left)
                if last_seen == n - 1:
                    break
            unseen.append(n - 1 - last_seen)
        return tuple(unseen)

    @functools.cached_property
    def volume(self) -> ConvGeometry:
        """The same convolution with axes of size 1 put in front, so that kernels are written for three axes only."""
        if self.ndim == 3:
            return self
        ones = (1,) * (3 - self.ndim)
        return ConvGeometry(
            self.batch,
            self.channels,
            self.filters,
            self.groups,
            ones + self.input,
            ones + self.kernel,
            ones + self.output,
            ones + self.stride,
            ones + self.dilation,
            ((0, 0),) * len(ones) + self.padding,
        )


def conv_geometry(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    ndim: int | None = None,
    x_name: str = "x",
    weight_name: str = "weight",
) -> ConvGeometry:
    """Check the arguments of a convolution and describe it.

    Parameters
    ----------
    x_shape : sequence of int
        (n_ch, *spatial) or (N, n_ch, *spatial).
    weight_shape : sequence of int
        (n_f, n_ch / groups, *kernel).
    stride, dilation : int or sequence of int
        One for all axes, or one per axis; at least 1.
    padding : int, sequence of int, sequence of (int, int), "valid" or "same"
        One for all sides, one per axis, or one (left, right) pair per axis; at least 0.
    groups : int
        Divides n_ch and n_f.
    ndim : int, optional
        Number of spatial axes that weight must have; taken from weight if not given.
    x_name, weight_name : str
        What error messages call the two.

    Raises
    ------
    TypeError
        If a parameter is no integer (or no sequence of integers).
    ValueError
        If sizes do not fit each other, or the output would be empty.

    Examples
    --------
    >>> conv_geometry((8, 3, 32, 32), (16, 3, 3, 3), padding="same").output_shape
    (8, 16, 32, 32)
    >>> conv_geometry((4, 9, 9), (8, 3, 3, 3))
    Traceback (most recent call last):
        ...
    ValueError: weight has 3 input channels, x has 4 (groups=1): expected weight of shape (8, 4, 3, 3)
    """
    x_shape, weight_shape = checked_shape(x_name, x_shape), checked_shape(weight_name, weight_shape)
    if ndim is None:
        ndim = len(weight_shape) - 2
    if ndim not in (1, 2, 3):
        raise ValueError(
            f"{weight_name} has shape {weight_shape}: expected 3, 4 or 5 axes (n_f, n_ch / groups, kernel)"
        )
    stride, dilation = per_axis("stride", stride, ndim, 1), per_axis("dilation", dilation, ndim, 1)
    if type(groups) is not int:
        groups = _integer("groups", groups)
    if not isinstance(padding, str):
        padding = padding_pairs(padding, ndim)
    return _checked_geometry(x_shape, weight_shape, stride, padding, dilation, groups, ndim, x_name, weight_name)


def smallest_input(weight_shape: Ints, padding: Any = 0, dilation: Any = 1, groups: Any = 1) -> Ints:
    """Return the shape (n_ch, *spatial) of the smallest image that a kernel fits into.

    Examples
    --------
    >>> smallest_input((16, 3, 3, 3)), smallest_input((16, 3, 3, 3), padding=1, dilation=2, groups=4)
    ((3, 3, 3), (12, 3, 3))
    """
    filters, group_channels, *kernel = weight_shape
    steps = per_axis("dilation", dilation, len(kernel), 1)
    extents = [d * (f - 1) + 1 for d, f in zip(steps, kernel, strict=True)]
    if isinstance(padding, str):
        pads = [extent - 1 if padding == "same" else 0 for extent in extents]
    else:
        pads = [before + after for before, after in padding_pairs(padding, len(kernel))]
    sizes = (max(1, extent - pad) for extent, pad in zip(extents, pads, strict=True))
    channels = group_channels * max(1, _integer("groups", groups))
    return tuple(min(n, LARGEST) for n in (channels, *sizes))


def geometry_of(
    x_shape: Ints, weight_shape: Ints, stride: Any, padding: Any, dilation: Any, groups: Any, ndim: int
) -> ConvGeometry:
    """`conv_geometry` for the shapes of arrays; with plain ints and tuples of them, what was checked once is known."""
    if is_exact((stride, padding, dilation, groups)):
        return _geometry_of(x_shape, weight_shape, stride, padding, dilation, groups, ndim)
    return conv_geometry(x_shape, weight_shape, stride, padding, dilation, groups, ndim=ndim)


def is_exact(values: tuple[Any, ...]) -> bool:
    """Say whether all are ints, strings or tuples of them: what equals others, as 1.0 equals 1, could be of another kind."""
    for value in values:
        kind = type(value)
        if kind is not int and kind is not str and not (kind is tuple and is_exact(value)):
            return False
    return True


@functools.lru_cache(maxsize=1024)
def _geometry_of(x_shape: Ints, weight_shape: Ints, *parameters: Any) -> ConvGeometry:
    *parameters_of_all_axes, ndim = parameters
    return conv_geometry(x_shape, weight_shape, *parameters_of_all_axes, ndim=ndim)


@functools.lru_cache(maxsize=1024)
def _checked_geometry(
    x_shape: Ints,
    weight_shape: Ints,
    stride: Ints,
    padding: str | Pairs,
    dilation: Ints,
    groups: int,
    ndim: int,
    x_name: str,
    weight_name: str,
) -> ConvGeometry:
    axes = ("depth", "height", "width")[3 - ndim :]
    spatial = ", ".join(axes)
    if len(weight_shape) != ndim + 2:
        raise ValueError(
            f"{weight_name} has shape {weight_shape}: expected {ndim + 2} axes (n_f, n_ch / groups, kernel {spatial})"
        )
    if len(x_shape) not in (ndim + 1, ndim + 2):
        raise ValueError(f"{x_name} has shape {x_shape}: expected (n_ch, {spatial}) or (N, n_ch, {spatial})")
    batch = x_shape[0] if len(x_shape) == ndim + 2 else 1
    channels, *sizes = x_shape[-ndim - 1 :]
    filters, group_channels, *kernel = weight_shape
    if min(channels, *sizes) < 1:
        raise ValueError(f"{x_name} has shape {x_shape}: only the batch may be empty")
    if min(weight_shape) < 1:
        raise ValueError(f"{weight_name} has shape {weight_shape}: no axis may be empty")
    if max(*x_shape, *weight_shape) > LARGEST:
        raise ValueError(f"{x_name} {x_shape} and {weight_name} {weight_shape}: no axis may be larger than {LARGEST}")
    if groups < 1:
        raise ValueError(f"groups is {groups}: expected at least 1")
    if channels % groups:
        raise ValueError(f"groups is {groups}: expected a divisor of the {channels} channels of {x_name}")
    if filters % groups:
        raise ValueError(f"groups is {groups}: expected a divisor of the {filters} filters of {weight_name}")
    if group_channels * groups != channels:
        raise ValueError(
            f"{weight_name} has {group_channels} input channels, {x_name} has {channels} (groups={groups}): "
            f"expected {weight_name} of shape {(filters, channels // groups, *kernel)}"
        )
    if isinstance(padding, str):
        padding = named_padding(padding, kernel, stride, dilation)
    output = []
    for axis, n, f, s, d, (left, right) in zip(axes, sizes, kernel, stride, dilation, padding, strict=True):
        n_out = output_size(n, f, s, d, left, right)
        if n_out < 1:
            raise ValueError(
                f"{weight_name} reaches over {d * (f - 1) + 1} along the {axis} (kernel {f}, dilation {d}), {x_name} has "
                f"{n} + {left} + {right} with its padding: expected a smaller kernel or more padding"
            )
        output.append(n_out)
    return ConvGeometry(
        batch, channels, filters, groups, tuple(sizes), tuple(kernel), tuple(output), stride, dilation, padding
    )


def transposed_geometry(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    ndim: int,
) -> ConvGeometry:
    """Describe the convolution whose dX is this transposed convolution.

    Its filters are the channels of ``x``, its input is the transposed convolution's output:
    ``n_out = (n - 1)*s - P - Q + d*(f - 1) + output_padding + 1``.

    Parameters
    ----------
    x_shape : sequence of int
        (n_in, *spatial) or (N, n_in, *spatial).
    weight_shape : sequence of int
        (n_in, n_out / groups, *kernel).
    stride, padding, output_padding, dilation : int or sequence of int
        As in `torch.nn.functional.conv_transpose2d`; padding may be (left, right) pairs.
    groups : int
        Divides both channel counts.
    ndim : int
        Number of spatial axes.

    Raises
    ------
    TypeError, ValueError
        As `conv_geometry`, and if ``output_padding`` is not smaller than the stride or the dilation.
    """
    x_shape, weight_shape = checked_shape("x", x_shape), checked_shape("weight", weight_shape)
    strides, dilations = per_axis("stride", stride, ndim, 1), per_axis("dilation", dilation, ndim, 1)
    if isinstance(padding, str):
        raise TypeError(f"padding is {padding!r}: expected an int, one per axis, or one (left, right) pair per axis")
    pairs = padding_pairs(padding, ndim)
    extra = per_axis("output_padding", output_padding, ndim, 0)
    groups = _integer("groups", groups)
    if len(weight_shape) != ndim + 2:
        raise ValueError(f"weight has shape {weight_shape}: expected {ndim + 2} axes (n_in, n_out / groups, kernel)")
    if len(x_shape) not in (ndim + 1, ndim + 2):
        raise ValueError(f"x has shape {x_shape}: expected {ndim + 1} axes (n_in, ...) or {ndim + 2} (N, n_in, ...)")
    if min(x_shape[-ndim - 1 :]) < 1:
        raise ValueError(f"x has shape {x_shape}: only the batch may be empty")
    if min(weight_shape) < 1:
        raise ValueError(f"weight has shape {weight_shape}: no axis may be empty")
    if groups < 1 or weight_shape[0] % groups:
        raise ValueError(f"groups is {groups}: expected a divisor of the {weight_shape[0]} input channels of weight")
    if x_shape[-ndim - 1] != weight_shape[0]:
        expected = (x_shape[-ndim - 1], *weight_shape[1:])
        raise ValueError(
            f"weight has {weight_shape[0]} input channels, x has {x_shape[-ndim - 1]}: expected weight of shape {expected}"
        )
    sizes = []
    for n, f, s, d, (left, right), e in zip(
        x_shape[-ndim:], weight_shape[2:], strides, dilations, pairs, extra, strict=True
    ):
        if e >= max(s, d):
            raise ValueError(f"output_padding is {e}: expected less than the stride {s} or the dilation {d}")
        n_out = (n - 1) * s - left - right + d * (f - 1) + e + 1
        if n_out < 1:
            raise ValueError(f"padding is {padding}: it leaves an output of size {n_out}, expected at least 1")
        sizes.append(n_out)
    batch = x_shape[: -ndim - 1]
    geometry = conv_geometry(
        (*batch, weight_shape[1] * groups, *sizes), weight_shape, strides, pairs, dilations, groups, x_name="output"
    )
    # With e >= s (possible where d > s) the convolution back would have more outputs than x has: it is cut to x's size.
    return ConvGeometry(
        geometry.batch, geometry.channels, geometry.filters, groups, geometry.input, geometry.kernel,
        x_shape[-ndim:], strides, dilations, pairs,
    )  # fmt: skip


def per_axis(name: str, value: Any, ndim: int, least: int) -> Ints:
    """Turn an int, or one int per axis, into a tuple with one int per axis, each at least ``least``."""
    if type(value) is int:
        values: Ints = (value,) * ndim
    elif hasattr(value, "__index__") and not isinstance(value, bool):
        values = (_integer(name, value),) * ndim
    else:
        values = tuple(_integer(name, v) for v in _sequence(name, value, "an int or one int per axis"))
        if len(values) == 1:
            values *= ndim
    if len(values) != ndim:
        raise ValueError(f"{name} has {len(values)} values: expected 1 or {ndim}")
    for v in values:
        _bounded(name, v, least)
    return values


def padding_pairs(padding: Any, ndim: int) -> Pairs:
    """Turn an int, one int per axis or one pair per axis into one (left, right) pair per axis, none negative."""
    expected = "an int, one int per axis, one (left, right) pair per axis, 'valid' or 'same'"
    if type(padding) is int:
        _bounded("padding", padding, 0)
        return ((padding, padding),) * ndim
    if hasattr(padding, "__index__") and not isinstance(padding, bool):
        return padding_pairs(_integer("padding", padding), ndim)
    sides = []
    for side in _sequence("padding", padding, expected):
        if hasattr(side, "__index__"):
            sides.append((_integer("padding", side),) * 2)
        else:
            pair = tuple(_integer("padding", v) for v in _sequence("padding", side, expected))
            if len(pair) != 2:
                raise ValueError(f"padding holds {side!r}: expected a (left, right) pair")
            sides.append((pair[0], pair[1]))
    if len(sides) == 1:
        sides *= ndim
    if len(sides) != ndim:
        raise ValueError(f"padding has {len(sides)} values: expected 1 or {ndim}")
    for left, right in sides:
        _bounded("padding", left, 0)
        _bounded("padding", right, 0)
    return tuple(sides)


def named_padding(name: str, kernel: Sequence[int], stride: Ints, dilation: Ints) -> Pairs:
    """Turn "valid" or "same" into one (left, right) pair per axis."""
    if name == "valid":
        return ((0, 0),) * len(stride)
    if name != "same":
        raise ValueError(f"padding is {name!r}: expected 'valid', 'same' or numbers")
    if max(stride) > 1:
        raise ValueError(
            f"padding is 'same', stride is {stride}: expected stride 1, other strides have no such padding"
        )
    totals = [d * (f - 1) for d, f in zip(dilation, kernel, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def checked_shape(name: str, shape: Sequence[int]) -> Ints:
    """Turn a sequence of sizes into a tuple of ints, none negative."""
    if type(shape) is tuple and all(type(n) is int and 0 <= n <= LARGEST for n in shape):
        return shape
    if isinstance(shape, (str, bytes, bytearray, memoryview)) or not isinstance(shape, Sequence):
        raise TypeError(f"{name} is {reprlib.repr(shape)}: expected a shape, a tuple of ints")
    sizes = tuple(_integer(name, n) for n in shape)
    for n in sizes:
        _bounded(name, n, 0)
    return sizes


def _sequence(name: str, value: Any, expected: str) -> Sequence[Any]:
    if isinstance(value, (tuple, list)):
        return value
    raise TypeError(f"{name} is {reprlib.repr(value)}: expected {expected}")


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: expected an int")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} holds {value!r}: expected an int") from None


def _bounded(name: str, value: int, least: int) -> None:
    if not least <= value <= LARGEST:
        raise ValueError(f"{name} is {value}: expected {least} to {LARGEST}")
