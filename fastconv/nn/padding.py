"""Padding as layers of its own: zeros, reflections, copies of the edge, or the opposite side.

A layer takes PyTorch's order: last axis first, left before right, so ``(left, right, top, bottom)`` in two dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from ..padding import pad, pad_backward
from .checks import Array, check_spatial, float_array, integer
from .module import Layer

__all__ = [
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
]


class Padding(Layer):
    """Base of the padding layers: shapes (n_ch, *spatial) or (N, n_ch, *spatial), float32 or float64.

    Parameters
    ----------
    padding : int or sequence of int
        For every side, or two for each spatial axis from the last to the first: ``(left, right)``,
        ``(left, right, top, bottom)``, ``(left, right, top, bottom, front, back)``.  At least 0.

    Attributes
    ----------
    padding : tuple of int
        As above, always one value per side.

    Raises
    ------
    TypeError, ValueError
        If padding has another form.
    """

    ndim: ClassVar[int]
    mode: ClassVar[str]

    def __init__(self, padding: Any) -> None:
        super().__init__()
        sides = 2 * self.ndim
        if isinstance(padding, (tuple, list)):
            if len(padding) != sides:
                expected = ", ".join(("left", "right", "top", "bottom", "front", "back")[:sides])
                raise ValueError(f"padding has {len(padding)} values: expected one int, or {sides} as ({expected})")
            self.padding = tuple(integer("padding", side, 0) for side in padding)
        else:
            self.padding = (integer("padding", padding, 0),) * sides

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The (left, right) pair of each spatial axis, first axis first."""
        return tuple((self.padding[i], self.padding[i + 1]) for i in range(2 * self.ndim - 2, -1, -2))

    def _checked(self, x: Array) -> Array:
        x = float_array("x", x)
        check_spatial(x, self.ndim)
        return x

    def _forward(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        return pad(x, self.pairs, mode=self.mode), (x.shape,)

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array:
        (shape,) = kept
        return pad_backward(grad_output, shape, self.pairs, mode=self.mode)

    def _sample_axes(self) -> int:
        return self.ndim + 1

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return repr(self.padding)


class ZeroPadding(Padding):
    """Zeros around the image; in a `Sequential`, a convolution that follows takes them over without a copy."""

    mode = "zeros"


class ZeroPad1d(ZeroPadding):
    """Zeros on both sides of (n_ch, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> import numpy as np
    >>> ZeroPad1d((1, 2))(np.array([[1.0, 2.0, 3.0]]))
    array([[0., 1., 2., 3., 0., 0.]])
    """

    ndim = 1


class ZeroPad2d(ZeroPadding):
    """Zeros on both sides of (n_ch, h, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> ZeroPad2d(1)
    ZeroPad2d((1, 1, 1, 1))
    """

    ndim = 2


class ZeroPad3d(ZeroPadding):
    """Zeros on both sides of (n_ch, d, h, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> ZeroPad3d(1)
    ZeroPad3d((1, 1, 1, 1, 1, 1))
    """

    ndim = 3


class ReflectionPad1d(Padding):
    """Reflections at the edges, the edge itself not repeated, around (n_ch, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> import numpy as np
    >>> ReflectionPad1d((1, 2))(np.array([[1.0, 2.0, 3.0]]))
    array([[2., 1., 2., 3., 2., 1.]])
    """

    ndim = 1
    mode = "reflect"


class ReflectionPad2d(Padding):
    """Reflections at the edges, the edge itself not repeated, around (n_ch, h, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> ReflectionPad2d(1)
    ReflectionPad2d((1, 1, 1, 1))
    """

    ndim = 2
    mode = "reflect"


class ReflectionPad3d(Padding):
    """Reflections at the edges, the edge itself not repeated, around (n_ch, d, h, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> ReflectionPad3d(1)
    ReflectionPad3d((1, 1, 1, 1, 1, 1))
    """

    ndim = 3
    mode = "reflect"


class ReplicationPad1d(Padding):
    """The edge repeated around (n_ch, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> import numpy as np
    >>> ReplicationPad1d((1, 2))(np.array([[1.0, 2.0, 3.0]]))
    array([[1., 1., 2., 3., 3., 3.]])
    """

    ndim = 1
    mode = "replicate"


class ReplicationPad2d(Padding):
    """The edge repeated around (n_ch, h, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> ReplicationPad2d(1)
    ReplicationPad2d((1, 1, 1, 1))
    """

    ndim = 2
    mode = "replicate"


class ReplicationPad3d(Padding):
    """The edge repeated around (n_ch, d, h, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> ReplicationPad3d(1)
    ReplicationPad3d((1, 1, 1, 1, 1, 1))
    """

    ndim = 3
    mode = "replicate"


class CircularPad1d(Padding):
    """The opposite side, as if the image were periodic, around (n_ch, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> import numpy as np
    >>> CircularPad1d((1, 2))(np.array([[1.0, 2.0, 3.0]]))
    array([[3., 1., 2., 3., 1., 2.]])
    """

    ndim = 1
    mode = "circular"


class CircularPad2d(Padding):
    """The opposite side, as if the image were periodic, around (n_ch, h, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> CircularPad2d(1)
    CircularPad2d((1, 1, 1, 1))
    """

    ndim = 2
    mode = "circular"


class CircularPad3d(Padding):
    """The opposite side, as if the image were periodic, around (n_ch, d, h, w) images.

    Parameters: see `Padding`.

    Examples
    --------
    >>> CircularPad3d(1)
    CircularPad3d((1, 1, 1, 1, 1, 1))
    """

    ndim = 3
    mode = "circular"


def total_pairs(pads: Iterable[Padding]) -> tuple[tuple[int, int], ...]:
    """Add up what layers one behind the other put around each axis; of no layer that is nothing at all.

    Examples
    --------
    >>> total_pairs([ZeroPad2d(1), ZeroPad2d((0, 1, 0, 2))])
    ((1, 3), (1, 2))
    """
    axes = zip(*(pad.pairs for pad in pads), strict=True)
    return tuple((sum(left for left, _ in axis), sum(right for _, right in axis)) for axis in axes)
