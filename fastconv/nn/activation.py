"""Layers without parameters that act on each element or only on the shape: ReLU, Dropout, Flatten."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .checks import Array, integer, number
from .elementwise import dropped, passed, rectified
from .generator import generator
from .layout import images_of, lie_channels_last, pixels_of
from .module import Layer

__all__ = ["Dropout", "Flatten", "ReLU"]


class ReLU(Layer):
    """max(x, 0) of each element, any shape.  A NaN stays NaN; the gradient at 0 is 0.

    Examples
    --------
    >>> relu = ReLU()
    >>> relu(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    >>> relu.backward(np.array([5.0, 5.0, 5.0]))
    array([0., 0., 5.])
    """

    def _forward(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        output = rectified(x)
        return output, (output,)

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array:
        (output,) = kept
        return passed(grad_output, output)

    def _sample_axes(self) -> None:
        return None


class Dropout(Layer):
    """In training, zero each element with probability p and scale the others by 1/(1 - p); otherwise, nothing.

    Each call draws two keys; what becomes of an element follows from these and its place in x, not from threads or memory layout.

    Parameters
    ----------
    p : float
        Between 0 and 1.
    rng : int, numpy.random.Generator or None
        A seed or a generator; None is the default generator at the time of each call, see `manual_seed`.

    Raises
    ------
    TypeError, ValueError
        If p is no number between 0 and 1, or rng no generator.

    Examples
    --------
    >>> dropout = Dropout(0.5, rng=0)
    >>> dropout(np.ones(6))
    array([0., 2., 2., 2., 0., 0.])
    >>> dropout.eval()(np.ones(6))
    array([1., 1., 1., 1., 1., 1.])
    """

    def __init__(self, p: float = 0.5, rng: Any = None) -> None:
        super().__init__()
        self.p = number("p", p, 0.0, 1.0)
        self.rng = None if rng is None else generator(rng)

    def _forward(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        if not self.training:
            return x, ()
        keys = generator(self.rng).integers(2**32, size=2, dtype=np.uint64)
        output, mask = dropped(x, self.p, self._scale, keys)
        return output, (mask,)

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array:
        (mask,) = kept
        return passed(grad_output, mask, self._scale)

    @property
    def _scale(self) -> float:
        return 1 / (1 - self.p) if self.p < 1 else 0.0

    def _sample_axes(self) -> None:
        return None

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return f"p={self.p}"


class Flatten(Layer):
    """Join neighbouring axes into one; a view where possible.

    On its own it takes the first axis for the batch, as in PyTorch; inside a `Sequential` that gets one sample without
    a batch axis, it joins all axes of the sample.

    Parameters
    ----------
    start_dim, end_dim : int
        First and last axis to join; negative ones count from the end.

    Raises
    ------
    TypeError, ValueError
        If an axis is no int; on a call, if it does not exist.

    Examples
    --------
    >>> Flatten()(np.zeros((2, 3, 4, 5))).shape
    (2, 60)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = integer("start_dim", start_dim, -64)
        self.end_dim = integer("end_dim", end_dim, -64)

    def _forward(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        first, last = (dim + x.ndim if dim < 0 else dim for dim in (self.start_dim, self.end_dim))
        if not 0 <= first <= last < x.ndim:
            raise ValueError(f"x has shape {x.shape}: expected axes {self.start_dim} to {self.end_dim} to exist")
        joined = math.prod(x.shape[first : last + 1])
        if x.ndim == 4 and first < 2 <= last and lie_channels_last(x):
            x = images_of(pixels_of(x), x.shape, last=False)
        return x.reshape(*x.shape[:first], joined, *x.shape[last + 1 :]), (x.shape,)

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array:
        (shape,) = kept
        return grad_output.reshape(shape)

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        first, last = self.start_dim, self.end_dim
        return "" if (first, last) == (1, -1) else f"start_dim={first}, end_dim={last}"
