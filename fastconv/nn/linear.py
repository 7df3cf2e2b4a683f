"""The fully connected layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from .checks import Array, check_dtype, float_array, float_dtype, integer
from .convolution import uniform
from .elementwise import passed
from .generator import generator
from .module import Layer
from .parameter import ParameterData, ParameterGrad, written_gradients

__all__ = ["Linear"]


class Linear(Layer):
    """y = x @ weight.T + bias, for x of shape (..., in_features), with any axes in front.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype : float32 or float64
        Of the parameters, and so of every array that goes in or comes out.
    rng : int, numpy.random.Generator or None
        A seed or a generator for the initial values, which are uniform in +-1/sqrt(in_features), as PyTorch's; None is
        the default generator, see `manual_seed`.

    Attributes
    ----------
    weight : ndarray of shape (out_features, in_features)
    bias : ndarray of shape (out_features,), or None
    grad_weight, grad_bias : ndarray of the parameter's shape, or None
        None before the first backward pass and after `zero_grad`.  See `Parameter`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value.

    Examples
    --------
    >>> layer = Linear(3, 2)
    >>> layer
    Linear(in_features=3, out_features=2, bias=True)
    >>> layer(np.ones((5, 3), dtype=np.float32)).shape
    (5, 2)
    """

    weight = ParameterData("weight")
    bias = ParameterData("bias")
    grad_weight = ParameterGrad("weight")
    grad_bias = ParameterGrad("bias")

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        super().__init__()
        self.in_features = integer("in_features", in_features)
        self.out_features = integer("out_features", out_features)
        self.dtype = float_dtype(dtype)
        numbers = generator(rng)
        shape = (self.out_features, self.in_features)
        self._add_parameter("weight", uniform(numbers, shape, self.in_features, self.dtype))
        if bias:
            self._add_parameter("bias", uniform(numbers, shape[:1], self.in_features, self.dtype))

    def _checked(self, x: Array) -> Array:
        x = float_array("x", x)
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(f"x has shape {x.shape}: expected (..., {self.in_features})")
        check_dtype("x", x, self.dtype, "the layer")
        return x

    def _forward(self, x: Array, with_relu: bool = False) -> tuple[Array, tuple[Any, ...]]:
        # A linear layer is equation (1) for images of one pixel: its bits, too, do not depend on the number of threads.
        pixels = x.reshape(-1, self.in_features, 1)
        output = ops.conv1d(pixels, self.weight[..., np.newaxis], self.bias, relu=with_relu)
        output = output.reshape(*x.shape[:-1], self.out_features)
        return output, (x, output if with_relu else None)

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array | None:
        x, relu = kept
        if relu is not None:
            grad_output = passed(grad_output, relu)
        rows, weight = grad_output.reshape(-1, self.out_features, 1), self.weight[..., np.newaxis]
        call = (rows, x.reshape(-1, self.in_features, 1), weight)
        dx = ops.conv1d_backward(*call, output_mask=(True, False, False)).input if input_grad else None
        with written_gradients(list(self._parameters.values())) as (grads, accumulate):
            out = ops.ConvGrads(None, grads[0][..., np.newaxis], grads[1] if len(grads) == 2 else None)
            ops.conv1d_backward(*call, output_mask=(False, True, len(grads) == 2), out=out, accumulate=accumulate)
        return None if dx is None else dx.reshape(x.shape)

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
