"""Convolutions and transposed convolutions as layers: equations (1)-(4) of `fastconv.reference` with parameters."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..arrays import empty, is_channels_last
from ..geometry import geometry_of, per_axis
from ..limits import require_memory
from ..pooled import conv2d_max_pool
from ..prepared import PreparedWeight
from .checks import Array, check_dtype, check_spatial, float_array, float_dtype, integer
from .elementwise import passed
from .generator import generator
from .module import Layer
from .parameter import ParameterData, ParameterGrad, written_gradients
from .pooling import MaxPool2d

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d"]

Pairs = tuple[tuple[int, int], ...]


def uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, dtype: np.dtype[Any]) -> Array:
    """PyTorch's default for weights and biases: uniform between -1/sqrt(fan_in) and 1/sqrt(fan_in)."""
    require_memory(f"a parameter of shape {shape}", 2 * 8 * math.prod(shape))
    bound = 1 / math.sqrt(fan_in)
    return rng.uniform(-bound, bound, shape).astype(dtype)


class _Weighted(Layer):
    """What convolutions and transposed convolutions share: the parameters and the checks."""

    ndim: ClassVar[int]
    weight = ParameterData("weight")
    bias = ParameterData("bias")
    grad_weight = ParameterGrad("weight")
    grad_bias = ParameterGrad("bias")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        dilation: Any,
        groups: int,
        dtype: Any,
    ) -> None:
        super().__init__()
        self.in_channels = integer("in_channels", in_channels)
        self.out_channels = integer("out_channels", out_channels)
        self.kernel_size = per_axis("kernel_size", kernel_size, self.ndim, 1)
        self.stride = per_axis("stride", stride, self.ndim, 1)
        self.dilation = per_axis("dilation", dilation, self.ndim, 1)
        self.groups = integer("groups", groups)
        self.dtype = float_dtype(dtype)
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise ValueError(f"groups is {self.groups}: expected a divisor of {name}, which is {channels}")

    def _initialise(self, shape: tuple[int, ...], bias: bool, rng: Any) -> None:
        numbers = generator(rng)
        fan_in = math.prod(shape[1:])
        self._add_parameter("weight", uniform(numbers, shape, fan_in, self.dtype))
        if bias:
            self._add_parameter("bias", uniform(numbers, (self.out_channels,), fan_in, self.dtype))

    def _checked(self, x: Array) -> Array:
        x = float_array("x", x)
        check_spatial(x, self.ndim, self.in_channels)
        check_dtype("x", x, self.dtype, "the layer")
        return x

    def _sample_axes(self) -> int:
        return self.ndim + 1

    def extra_repr(self) -> str:
        """Arguments to show in the repr; those with PyTorch's defaults are left out, as there."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += self._padding_repr()
        if self.dilation != (1,) * self.ndim:
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        return text

    def _padding_repr(self) -> str:
        return ""


class Convolution(_Weighted):
    """Base of the convolution layers: shapes (n_ch, *spatial) or (N, n_ch, *spatial), without padding.

    Parameters
    ----------
    in_channels, out_channels : int
        n_ch and n_f.
    kernel_size : int or one int per axis
    stride, dilation : int or one int per axis
    groups : int
        Divides both channel counts.
    bias : bool
        Whether to add b.
    dtype : float32 or float64
        Of the parameters, and so of every array that goes in or comes out.
    rng : int, numpy.random.Generator or None
        A seed or a generator for the initial values, which are uniform in +-1/sqrt(n_ch / groups * taps), as PyTorch's;
        None is the default generator, see `manual_seed`.

    Attributes
    ----------
    weight : ndarray of shape (n_f, n_ch / groups, *kernel)
    bias : ndarray of shape (n_f,), or None
    grad_weight, grad_bias : ndarray of the parameter's shape, or None
        None before the first backward pass and after `zero_grad`.  See `Parameter`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value, or is ``padding``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
        rng: Any = None,
        **unknown: Any,
    ) -> None:
        name = type(self).__name__
        if "padding" in unknown or "padding_mode" in unknown:
            raise TypeError(
                f"{name} takes no padding: put an nn.ZeroPad{self.ndim}d (or a ReflectionPad, ReplicationPad, "
                f"CircularPad) in front of it, or call fastconv.conv{self.ndim}d, which has a padding argument"
            )
        if unknown:
            raise TypeError(f"{name} got an unexpected keyword argument {next(iter(unknown))!r}")
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups, dtype)
        if not isinstance(bias, (bool, np.bool_)):
            raise TypeError(f"bias is {bias!r}: expected True or False")
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self._initialise(shape, bool(bias), rng)
        self._prepared: PreparedWeight | None = None

    def _weight_of_forward(self) -> Array | PreparedWeight:
        """Return the weight; in evaluation what was prepared of it, as long as it is the same bit for bit."""
        if self.training:
            self._prepared = None
            weight: Array = self.weight
            return weight
        if self._prepared is None or not self._prepared.holds(self.weight):
            self._prepared = PreparedWeight(self.weight)
        return self._prepared

    def _forward(
        self, x: Array, padding: Pairs | None = None, channels_last: bool = False, with_relu: bool = False,
        pool: MaxPool2d | None = None,
    ) -> tuple[Array, tuple[Any, ...]]:  # fmt: skip
        """Compute equation (1) with zeros around x, one (left, right) pair per axis, without making the padded array.

        With ``channels_last``, the output of a batch lies so in memory, however x does.  With a ``pool``, the result is its.
        """
        padding, out = padding or ((0, 0),) * self.ndim, None
        if pool is not None:
            return self._pooled(x, padding, with_relu, pool)
        if channels_last and x.ndim == self.ndim + 2 and not is_channels_last(x, self.ndim):
            shape = self.weight.shape
            geometry = geometry_of(x.shape, shape, self.stride, padding, self.dilation, self.groups, self.ndim)
            n, channels, *sizes = geometry.output_shape
            out = np.moveaxis(empty("the output", (n, *sizes, channels), x.dtype), -1, 1)
        conv = getattr(ops, f"conv{self.ndim}d")
        call = (self._weight_of_forward(), self.bias, self.stride, padding, self.dilation, self.groups)
        output = conv(x, *call, out=out, relu=with_relu)
        return output, (x, padding, output if with_relu else None, None)

    def _pooled(self, x: Array, padding: Pairs, with_relu: bool, pool: MaxPool2d) -> tuple[Array, tuple[Any, ...]]:
        """Compute the output of the pool behind, at once if that can be."""
        call = (self.bias, self.stride, padding, self.dilation, self.groups)
        if x.ndim == self.ndim + 2 and pool.window is not None:
            shape = geometry_of(x.shape, self.weight.shape, *call[1:], self.ndim).output_shape
            windows = pool.windows(shape)
            pooled = conv2d_max_pool(x, self._weight_of_forward(), *call, pool.window, with_relu)
            if pooled is not None:
                maxima, where = pooled
                return np.moveaxis(maxima, -1, 1), (x, padding, None, (pool, (shape, windows, where, True)))
        output, _ = self._forward(x, padding, channels_last=True)
        maxima, kept = pool._forward(output, with_relu)
        return maxima, (x, padding, None, (pool, kept))

    def _backward(
        self, grad_output: Array, *kept: Any, input_grad: bool, added: Array | None = None
    ) -> Array | None:  # fmt: skip
        """Compute equations (2) to (4); dX is added to an array that is ``added``, in place."""
        x, padding, relu, pooled = kept
        if pooled is not None:
            pool, of_pool = pooled
            grad_output = pool._backward(grad_output, *of_pool, input_grad=True)
        if relu is not None:
            grad_output = passed(grad_output, relu)
        backward = getattr(ops, f"conv{self.ndim}d_backward")
        call = (grad_output, x, self.weight, self.stride, padding, self.dilation, self.groups)
        dx: Array | None = None
        if input_grad:
            into = None if added is None else ops.ConvGrads(added, None, None)
            dx = backward(*call, output_mask=(True, False, False), out=into, accumulate=into is not None).input
        # Equations (3) and (4) write, or add, to the parameters' own arrays.
        with written_gradients(list(self._parameters.values())) as (grads, accumulate):
            out = ops.ConvGrads(None, grads[0], grads[1] if len(grads) == 2 else None)
            backward(*call, output_mask=(False, True, len(grads) == 2), out=out, accumulate=accumulate)
        return dx


class Conv1d(Convolution):
    """Convolution of signals, (n_ch, w) or (N, n_ch, w).  Parameters: see `Convolution`.

    Examples
    --------
    >>> Conv1d(2, 4, 5, stride=2)(np.ones((2, 9), dtype=np.float32)).shape
    (4, 3)
    """

    ndim = 1


class Conv2d(Convolution):
    """Convolution of images, (n_ch, h, w) or (N, n_ch, h, w).  Parameters: see `Convolution`.

    Examples
    --------
    >>> layer = Conv2d(1, 32, 3, rng=0)
    >>> layer
    Conv2d(1, 32, kernel_size=(3, 3), stride=(1, 1))
    >>> layer(np.ones((8, 1, 28, 28), dtype=np.float32)).shape
    (8, 32, 26, 26)
    >>> layer.backward(np.ones((8, 32, 26, 26), dtype=np.float32)).shape
    (8, 1, 28, 28)
    >>> layer.grad_weight.shape, layer.grad_bias.shape
    ((32, 1, 3, 3), (32,))
    >>> Conv2d(1, 32, 3, padding=1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    TypeError: Conv2d takes no padding: put an nn.ZeroPad2d ... in front of it, or call fastconv.conv2d, ...
    """

    ndim = 2


class Conv3d(Convolution):
    """Convolution of volumes, (n_ch, d, h, w) or (N, n_ch, d, h, w).  Parameters: see `Convolution`.

    Examples
    --------
    >>> Conv3d(1, 2, (1, 3, 3), bias=False)
    Conv3d(1, 2, kernel_size=(1, 3, 3), stride=(1, 1, 1), bias=False)
    """

    ndim = 3


class ConvTranspose2d(_Weighted):
    """The gradient of a convolution with respect to its input, as a layer: it enlarges images.

    Shapes (in_channels, h, w) or (N, in_channels, h, w), to
    ``h_new = (h - 1)*stride - 2*padding + dilation*(kernel_size - 1) + output_padding + 1``.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
    stride : int or (int, int)
    padding : int or (int, int)
        Rows and columns cut off each side of the output: here it is no zeros, so it is no layer of its own.
    output_padding : int or (int, int)
        Rows and columns added at the bottom and the right; smaller than the stride or the dilation.
    groups : int
        Divides both channel counts.
    bias : bool
    dilation : int or (int, int)
    dtype : float32 or float64
    rng : int, numpy.random.Generator or None
        As for `Conv2d`; the initial values are uniform in +-1/sqrt(out_channels / groups * taps), as PyTorch's.

    Attributes
    ----------
    weight : ndarray of shape (in_channels, out_channels / groups, *kernel)
    bias : ndarray of shape (out_channels,), or None
    grad_weight, grad_bias : ndarray of the parameter's shape, or None

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value.

    Examples
    --------
    >>> layer = ConvTranspose2d(8, 4, 2, stride=2)
    >>> layer
    ConvTranspose2d(8, 4, kernel_size=(2, 2), stride=(2, 2))
    >>> layer(np.ones((8, 5, 5), dtype=np.float32)).shape
    (4, 10, 10)
    """

    ndim = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        *,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups, dtype)
        if not isinstance(bias, (bool, np.bool_)):
            raise TypeError(f"bias is {bias!r}: expected True or False")
        self.padding = per_axis("padding", padding, self.ndim, 0)
        self.output_padding = per_axis("output_padding", output_padding, self.ndim, 0)
        for extra, step, dilated in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra >= max(step, dilated):
                raise ValueError(
                    f"output_padding is {extra}: expected less than the stride {step} or dilation {dilated}"
                )
        self._initialise((self.in_channels, self.out_channels // self.groups, *self.kernel_size), bool(bias), rng)

    def _geometry(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.output_padding, self.groups, self.dilation

    def _forward(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        return ops.conv_transpose2d(x, self.weight, self.bias, *self._geometry()), (x,)

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array | None:
        (x,) = kept
        mask = (input_grad, True, "bias" in self._parameters)
        grads = ops.conv_transpose2d_backward(grad_output, x, self.weight, *self._geometry(), output_mask=mask)
        for name, grad in (("weight", grads.weight), ("bias", grads.bias)):
            if grad is not None:
                self._parameters[name].add_grad(grad)
        return grads.input

    def _padding_repr(self) -> str:
        text = f", padding={self.padding}" if any(self.padding) else ""
        return text + (f", output_padding={self.output_padding}" if any(self.output_padding) else "")
