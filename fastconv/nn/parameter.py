"""Parameters: arrays that are trained, with their gradients, and the attributes through which a layer shows them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import Array, as_array, check_dtype, check_shape, float_array

if TYPE_CHECKING:
    from .module import Module

__all__ = ["Parameter", "ParameterData", "ParameterGrad", "written_gradients"]


class Parameter:
    """An array that is trained, and its gradient.

    Parameters
    ----------
    name : str
        What it is called; a container puts its own path in front, as in ``"0.weight"``.
    data : ndarray
        Copied.

    Attributes
    ----------
    data : ndarray
        Always the same array: assigning copies into it, so that optimisers see the change.
    grad : ndarray or None
        Gradient of the shape and dtype of data; None before the first backward pass and after `zero_grad`.  The array
        is the parameter's own: the next backward pass writes to it, so copy what is to be kept.  Assigning copies.

    Examples
    --------
    >>> p = Parameter("weight", np.zeros(2, dtype=np.float32))
    >>> p.add_grad(np.ones(2, dtype=np.float32)); p.add_grad(np.ones(2, dtype=np.float32)); p.grad
    array([2., 2.], dtype=float32)
    >>> p.zero_grad(); p.grad is None
    True
    >>> p.add_grad(np.ones(2, dtype=np.float32)); p.grad
    array([1., 1.], dtype=float32)
    >>> p.data = np.zeros(3, dtype=np.float32)
    Traceback (most recent call last):
        ...
    ValueError: weight has shape (3,): expected (2,)
    """

    __slots__ = ("_buffer", "_data", "_fresh", "name")

    def __init__(self, name: str, data: Array) -> None:
        self.name = name
        self._data = np.array(float_array(name, data), order="C")
        self._buffer: Array | None = None
        self._fresh = False

    @property
    def data(self) -> Array:
        """The values; assigning copies into the same array."""
        return self._data

    @data.setter
    def data(self, value: Array) -> None:
        np.copyto(self._data, self._fitting(value, self.name))

    @property
    def grad(self) -> Array | None:
        """The gradient, None where there is none or it is stale."""
        return self._buffer if self._fresh else None

    @grad.setter
    def grad(self, value: Array | None) -> None:
        if value is None:
            self.zero_grad()
            return
        value = self._fitting(value, f"the gradient of {self.name}")
        np.copyto(self.grad_buffer(accumulate=False), value)
        self._fresh = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data."""
        return self._data.shape

    def zero_grad(self) -> None:
        """Mark the gradient stale: the next backward pass overwrites it instead of adding to it."""
        self._fresh = False

    def grad_buffer(self, *, accumulate: bool) -> Array:
        """Array for a gradient that is written, or added to, in place; call `mark_fresh` when it is complete.

        With ``accumulate``, a stale gradient reads as zeros.
        """
        if self._buffer is None:
            self._buffer = np.empty_like(self._data)
        if accumulate and not self._fresh:
            self._buffer.fill(0)
        return self._buffer

    def mark_fresh(self) -> None:
        """Declare that `grad_buffer` holds the gradient."""
        self._fresh = True

    def add_grad(self, value: Array) -> None:
        """Add to the gradient, or overwrite it where it is stale."""
        if self._fresh and self._buffer is not None:
            self._buffer += self._fitting(value, f"the gradient of {self.name}")
        else:
            self.grad = value

    def _fitting(self, value: Any, name: str) -> Array:
        array = as_array(name, value)
        check_shape(name, array, self._data.shape)
        check_dtype(name, array, self._data.dtype, "its parameter")
        return array

    def __repr__(self) -> str:
        grad = "with" if self._fresh else "without"
        return f"Parameter({self.name!r}, shape={self.shape}, dtype={self._data.dtype}, {grad} gradient)"


@contextlib.contextmanager
def written_gradients(parameters: Sequence[Parameter]) -> Iterator[tuple[list[Array], bool]]:
    """Give a layer its parameters' own arrays to write gradients to, or, with the flag beside them, to add to.

    When the block has ended well, the gradients are fresh.
    """
    accumulate = any(parameter.grad is not None for parameter in parameters)
    yield [parameter.grad_buffer(accumulate=accumulate) for parameter in parameters], accumulate
    for parameter in parameters:
        parameter.mark_fresh()


class ParameterData:
    """Attribute of a layer that reads the data of one of its parameters, None if it has no such parameter."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layer: Module | None, owner: type) -> Any:
        if layer is None:
            return self
        parameter = layer._parameters.get(self.name)
        return None if parameter is None else parameter.data

    def __set__(self, layer: Module, value: Any) -> None:
        self.parameter(layer).data = value

    def parameter(self, layer: Module) -> Parameter:
        """Find the parameter, which must exist to be assigned to."""
        if self.name not in layer._parameters:
            raise ValueError(f"this {type(layer).__name__} was made without {self.name}: nothing can be assigned to it")
        return layer._parameters[self.name]


class ParameterGrad(ParameterData):
    """Attribute of a layer that reads the gradient of one of its parameters, None where there is none."""

    def __get__(self, layer: Module | None, owner: type) -> Any:
        if layer is None:
            return self
        parameter = layer._parameters.get(self.name)
        return None if parameter is None else parameter.grad

    def __set__(self, layer: Module, value: Any) -> None:
        self.parameter(layer).grad = value
