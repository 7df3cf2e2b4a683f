"""Convolutions, their gradients, transposed forms and tangents, in one to three dimensions.

Names, order and meaning of the arguments follow ``torch.nn.functional``.  Arrays have a batch axis or not: X (N, n_ch, h, w)
or (n_ch, h, w).  The 1-D, 2-D and 3-D functions differ in the number of spatial axes only; the 2-D ones hold the
documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import passes
from .arrays import Array, as_array
from .geometry import conv_geometry, smallest_input
from .passes import ConvGrads
from .plan import choose
from .prepared import PreparedWeight

__all__ = [
    "ConvGrads",
    "conv1d",
    "conv1d_backward",
    "conv1d_jvp",
    "conv2d",
    "conv2d_backward",
    "conv2d_jvp",
    "conv3d",
    "conv3d_backward",
    "conv3d_jvp",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "conv_transpose3d",
    "conv_transpose3d_backward",
    "prepare",
]


# ---------------------------------------------------------------------------------------------------------------------
# Weights that are used often
# ---------------------------------------------------------------------------------------------------------------------


def prepare(
    weight: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    input_shape: Sequence[int] | None = None,
) -> PreparedWeight:
    """Take a snapshot of a weight that keeps what kernels make of it.

    Before a convolution its weight is packed, or evaluated at Winograd's points.  That takes as long as the rest where images
    are small and few; a prepared weight has it done once.

    Parameters
    ----------
    weight : array of shape (n_f, n_ch / groups, *kernel)
        Filters, with one to three kernel axes.  Copied: later changes do not reach the snapshot.
    stride, padding, dilation, groups
        As in `conv2d`.
    input_shape : sequence of int, optional
        (n_ch, *spatial) or (N, n_ch, *spatial).  If given, what `conv2d` and `conv2d_backward` need for images of this shape is
        made now; else, and for other shapes, when it is first needed.

    Returns
    -------
    PreparedWeight
        Accepted wherever a weight is, by every algorithm.

    Raises
    ------
    TypeError, ValueError
        As `conv2d` would.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> weight = fastconv.prepare(np.ones((16, 16, 3, 3), np.float32), padding=1, input_shape=(1, 16, 7, 7))
    >>> x = np.ones((1, 16, 7, 7), np.float32)
    >>> float(fastconv.conv2d(x, weight, padding=1)[0, 0, 0, 0])  # four taps meet the image
    64.0
    """
    array = as_array("weight", weight)
    if array.ndim not in (3, 4, 5):
        raise ValueError(
            f"weight has shape {array.shape}: expected 3, 4 or 5 axes (n_f, n_ch / groups, kernel depth, height, width)"
        )
    shape = input_shape
    if shape is None:  # to check the other arguments
        shape = smallest_input(array.shape, padding, dilation, groups)
    geometry = conv_geometry(shape, array.shape, stride, padding, dilation, groups, x_name="input_shape")
    prepared = PreparedWeight(array)
    if input_shape is not None:
        for computes in ("output", "grad_input"):
            row = choose(computes, geometry, prepared.dtype)
            if row.prepare is not None:
                row.prepare(geometry, prepared)
    return prepared


# ---------------------------------------------------------------------------------------------------------------------
# Two dimensions
# ---------------------------------------------------------------------------------------------------------------------


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out: Array | None = None,
    relu: bool = False,
    algorithm: str = "auto",
) -> Array:
    """Convolve images with filters: equation (1) of `fastconv.reference`.

    As everywhere in deep learning this is a cross-correlation: the filters are not flipped.

    Parameters
    ----------
    x : array of shape (N, n_ch, h, w) or (n_ch, h, w)
        Images.  float32 and float64 run the fast kernels; float16, integers and complex numbers run the reference's loops.
    weight : array of shape (n_f, n_ch / groups, f_r, f_c)
        Filters, of the same dtype.
    bias : array of shape (n_f,) or (n_f, 1, 1, 1), optional
        Added to every output of its filter.
    stride, dilation : int or (int, int)
        Distance of neighbouring outputs, and of neighbouring taps, in pixels.
    padding : int, (int, int), ((top, bottom), (left, right)), "valid" or "same"
        Zeros around each image.  "same" keeps its size, and needs stride 1.
    groups : int
        Splits channels and filters into groups that do not see each other.
    out : ndarray, optional
        Where to write the result; it must not overlap an input.
    relu : bool
        Replace outputs less than 0 by 0 as they are written, as a rectifier behind the convolution would; NaN stays NaN.
    algorithm : str
        "auto", or the name of a row of the plan's table; see `explain`.

    Returns
    -------
    ndarray of shape (N, n_f, h_new, w_new) or (n_f, h_new, w_new)
        O, with h_new = floor((h + top + bottom - dilation*(f_r - 1) - 1) / stride) + 1; int64 if the inputs are integers.

    Raises
    ------
    TypeError
        If something is no array, dtypes differ, a parameter is no integer, or ``relu`` is asked of complex numbers.
    ValueError
        If shapes do not fit, the output would be empty, ``out`` cannot take it, or the algorithm cannot do it.
    MemoryError
        If the output, copies of inputs or scratch memory are larger than what is free; nothing is allocated then.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv2d
    >>> x = np.arange(16.0).reshape(1, 4, 4)
    >>> conv2d(x, np.ones((1, 1, 3, 3)), stride=1)
    array([[[45., 54.],
            [81., 90.]]])
    """
    return passes.conv(2, x, weight, bias, stride, padding, dilation, groups, out, relu, algorithm)


def conv2d_backward(
    grad_output: Any,
    x: Any,
    weight: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    output_mask: Sequence[bool] = (True, True, True),
    bias_shape: Sequence[int] | None = None,
    out: ConvGrads | None = None,
    accumulate: bool = False,
    per_sample: bool = False,
    algorithm: str = "auto",
) -> ConvGrads:
    """Compute the gradients of a loss with respect to input, weight and bias: equations (2) to (4).

    Parameters
    ----------
    grad_output : array of shape (N, n_f, h_new, w_new) or (n_f, h_new, w_new)
        dL/dO.
    x, weight, stride, padding, dilation, groups
        As `conv2d` had them.
    output_mask : (bool, bool, bool)
        Which of dX, dW and db to compute.
    bias_shape : tuple of int, optional
        (n_f,), the default, or (n_f, 1, 1, 1).
    out : ConvGrads of ndarrays, optional
        Where to write the gradients, None where ``output_mask`` is False.
    accumulate : bool
        Add to ``out`` instead of writing it.
    per_sample : bool
        Keep dW of each image apart: its shape is then (N, n_f, n_ch / groups, f_r, f_c).
    algorithm : str
        As in `conv2d`.

    Returns
    -------
    ConvGrads
        (input, weight, bias); None for those that ``output_mask`` leaves out.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv2d_backward
    >>> grads = conv2d_backward(np.ones((1, 1, 1)), np.arange(9.0).reshape(1, 3, 3), np.ones((1, 1, 2, 2)), stride=2)
    >>> grads.input
    array([[[1., 1., 0.],
            [1., 1., 0.],
            [0., 0., 0.]]])
    >>> grads.weight, grads.bias
    (array([[[[0., 1.],
             [3., 4.]]]]), array([1.]))
    """
    return passes.backward(
        2, grad_output, x, weight, stride, padding, dilation, groups,
        output_mask, bias_shape, out, accumulate, per_sample, algorithm,
    )  # fmt: skip


def conv_transpose2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Array:
    """Apply the transpose of a convolution: equation (2) as a forward pass, often called deconvolution.

    Parameters
    ----------
    x : array of shape (N, n_in, h, w) or (n_in, h, w)
        Images.
    weight : array of shape (n_in, n_out / groups, f_r, f_c)
        Filters of the convolution that is transposed.
    bias : array of shape (n_out,) or (n_out, 1, 1, 1), optional
        Added to every output of its channel.
    stride, padding, groups, dilation
        Of the convolution that is transposed, so that padding makes the output smaller.
    output_padding : int or (int, int)
        Rows and columns to add at the end, for strides where several input sizes lead to one output size.

    Returns
    -------
    ndarray of shape (N, n_out, h_new, w_new) or (n_out, h_new, w_new)
        With h_new = (h - 1)*stride - 2*padding + dilation*(f_r - 1) + output_padding + 1.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv2d`, and if ``output_padding`` is not smaller than the stride or the dilation.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv_transpose2d
    >>> conv_transpose2d(np.ones((1, 1, 2)), np.array([[[[1.0, 2.0]]]]), stride=(1, 2))
    array([[[1., 2., 1., 2.]]])
    """
    return passes.transpose(2, x, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d_backward(
    grad_output: Any,
    x: Any,
    weight: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    output_mask: Sequence[bool] = (True, True, True),
    bias_shape: Sequence[int] | None = None,
) -> ConvGrads:
    """Compute the gradients of `conv_transpose2d`; dX is a convolution of ``grad_output``, equation (1).

    Parameters
    ----------
    grad_output : array of shape (N, n_out, h_new, w_new) or (n_out, h_new, w_new)
        dL/dO.
    x, weight, stride, padding, output_padding, groups, dilation
        As `conv_transpose2d` had them.
    output_mask : (bool, bool, bool)
        Which of dX, dW and db to compute.
    bias_shape : tuple of int, optional
        (n_out,), the default, or (n_out, 1, 1, 1).

    Returns
    -------
    ConvGrads
        (input, weight, bias); None for those that ``output_mask`` leaves out.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv_transpose2d_backward
    >>> x, weight = np.ones((1, 1, 2)), np.array([[[[1.0, 2.0]]]])
    >>> conv_transpose2d_backward(np.ones((1, 1, 4)), x, weight, stride=(1, 2)).input
    array([[[3., 3.]]])
    """
    return passes.transpose_backward(
        2, grad_output, x, weight, stride, padding, output_padding, groups, dilation, output_mask, bias_shape
    )


def conv2d_jvp(
    x: Any,
    weight: Any,
    x_tangent: Any = None,
    weight_tangent: Any = None,
    bias_tangent: Any = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Apply the derivative of `conv2d` to tangents (forward mode): conv(dx, w) + conv(x, dw) + db, as it is bilinear.

    Parameters
    ----------
    x, weight, stride, padding, dilation, groups
        As in `conv2d`.
    x_tangent, weight_tangent : array, optional
        Tangents, shaped as x and weight; zero if not given.
    bias_tangent : array of shape (n_f,) or (n_f, 1, 1, 1), optional
        Tangent of the bias; zero if not given.

    Returns
    -------
    ndarray
        Tangent of the output, shaped as the output.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv2d`, and if a tangent has another shape than what it is a tangent of.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv2d_jvp
    >>> conv2d_jvp(np.ones((1, 2, 2)), np.ones((1, 1, 2, 2)), weight_tangent=np.full((1, 1, 2, 2), 0.5))
    array([[[2.]]])
    """
    return passes.jvp(2, x, weight, x_tangent, weight_tangent, bias_tangent, stride, padding, dilation, groups)


# ---------------------------------------------------------------------------------------------------------------------
# One dimension
# ---------------------------------------------------------------------------------------------------------------------


def conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out: Array | None = None,
    relu: bool = False,
    algorithm: str = "auto",
) -> Array:
    """Convolve sequences with filters: `conv2d` with one spatial axis.

    x has shape (N, n_ch, length) or (n_ch, length),
    weight (n_f, n_ch / groups, ...) with as many kernel axes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv1d
    >>> conv1d(np.arange(5.0).reshape(1, 5), np.ones((1, 1, 3)))
    array([[3., 6., 9.]])
    """
    return passes.conv(1, x, weight, bias, stride, padding, dilation, groups, out, relu, algorithm)


def conv1d_backward(
    grad_output: Any,
    x: Any,
    weight: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    output_mask: Sequence[bool] = (True, True, True),
    bias_shape: Sequence[int] | None = None,
    out: ConvGrads | None = None,
    accumulate: bool = False,
    per_sample: bool = False,
    algorithm: str = "auto",
) -> ConvGrads:
    """Compute the gradients of `conv1d`: `conv2d_backward` with one spatial axis.

    grad_output has the shape of `conv1d`'s output, x and weight the shapes they had there.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv1d_backward
    >>> conv1d_backward(np.ones((1, 2)), np.arange(4.0).reshape(1, 4), np.ones((1, 1, 2)), stride=2)
    ConvGrads(input=array([[1., 1., 1., 1.]]), weight=array([[[2., 4.]]]), bias=array([2.]))
    """
    return passes.backward(
        1, grad_output, x, weight, stride, padding, dilation, groups,
        output_mask, bias_shape, out, accumulate, per_sample, algorithm,
    )  # fmt: skip


def conv_transpose1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Array:
    """Apply the transpose of `conv1d`: `conv_transpose2d` with one spatial axis.

    x has shape (N, n_in, length) or (n_in, length),
    weight (n_in, n_out / groups, ...) with as many kernel axes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv_transpose1d
    >>> conv_transpose1d(np.ones((1, 2)), np.array([[[1.0, 2.0]]]), stride=2)
    array([[1., 2., 1., 2.]])
    """
    return passes.transpose(1, x, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose1d_backward(
    grad_output: Any,
    x: Any,
    weight: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    output_mask: Sequence[bool] = (True, True, True),
    bias_shape: Sequence[int] | None = None,
) -> ConvGrads:
    """Compute the gradients of `conv_transpose1d`: `conv_transpose2d_backward` with one spatial axis.

    grad_output has the shape of `conv_transpose1d`'s output, x and weight the shapes they had there.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv_transpose1d_backward
    >>> conv_transpose1d_backward(np.ones((1, 4)), np.ones((1, 2)), np.array([[[1.0, 2.0]]]), stride=2).input
    array([[3., 3.]])
    """
    return passes.transpose_backward(
        1, grad_output, x, weight, stride, padding, output_padding, groups, dilation, output_mask, bias_shape
    )


def conv1d_jvp(
    x: Any,
    weight: Any,
    x_tangent: Any = None,
    weight_tangent: Any = None,
    bias_tangent: Any = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Apply the derivative of `conv1d` to tangents: `conv2d_jvp` with one spatial axis.

    Tangents have the shapes of what they are tangents of.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv1d_jvp
    >>> conv1d_jvp(np.ones((1, 2)), np.ones((1, 1, 2)), x_tangent=np.full((1, 2), 0.5))
    array([[1.]])
    """
    return passes.jvp(1, x, weight, x_tangent, weight_tangent, bias_tangent, stride, padding, dilation, groups)


# ---------------------------------------------------------------------------------------------------------------------
# Three dimensions
# ---------------------------------------------------------------------------------------------------------------------


def conv3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    out: Array | None = None,
    relu: bool = False,
    algorithm: str = "auto",
) -> Array:
    """Convolve volumes with filters: `conv2d` with three spatial axes.

    x has shape (N, n_ch, depth, height, width) or (n_ch, depth, height, width),
    weight (n_f, n_ch / groups, ...) with as many kernel axes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv3d
    >>> conv3d(np.ones((1, 2, 3, 3)), np.ones((1, 1, 2, 2, 2)))
    array([[[[8., 8.],
             [8., 8.]]]])
    """
    return passes.conv(3, x, weight, bias, stride, padding, dilation, groups, out, relu, algorithm)


def conv3d_backward(
    grad_output: Any,
    x: Any,
    weight: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    output_mask: Sequence[bool] = (True, True, True),
    bias_shape: Sequence[int] | None = None,
    out: ConvGrads | None = None,
    accumulate: bool = False,
    per_sample: bool = False,
    algorithm: str = "auto",
) -> ConvGrads:
    """Compute the gradients of `conv3d`: `conv2d_backward` with three spatial axes.

    grad_output has the shape of `conv3d`'s output, x and weight the shapes they had there.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv3d_backward
    >>> conv3d_backward(np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 2)), np.ones((1, 1, 1, 1, 2))).input
    array([[[[1., 1.]]]])
    """
    return passes.backward(
        3, grad_output, x, weight, stride, padding, dilation, groups,
        output_mask, bias_shape, out, accumulate, per_sample, algorithm,
    )  # fmt: skip


def conv_transpose3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Array:
    """Apply the transpose of `conv3d`: `conv_transpose2d` with three spatial axes.

    x has shape (N, n_in, depth, height, width) or (n_in, depth, height, width),
    weight (n_in, n_out / groups, ...) with as many kernel axes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv_transpose3d
    >>> conv_transpose3d(np.ones((1, 1, 1, 2)), np.array([[[[[1.0, 2.0]]]]]), stride=(1, 1, 2))
    array([[[[1., 2., 1., 2.]]]])
    """
    return passes.transpose(3, x, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d_backward(
    grad_output: Any,
    x: Any,
    weight: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    output_mask: Sequence[bool] = (True, True, True),
    bias_shape: Sequence[int] | None = None,
) -> ConvGrads:
    """Compute the gradients of `conv_transpose3d`: `conv_transpose2d_backward` with three spatial axes.

    grad_output has the shape of `conv_transpose3d`'s output, x and weight the shapes they had there.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv_transpose3d_backward
    >>> conv_transpose3d_backward(np.ones((1, 1, 1, 2)), np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1, 2))).input
    array([[[[2.]]]])
    """
    return passes.transpose_backward(
        3, grad_output, x, weight, stride, padding, output_padding, groups, dilation, output_mask, bias_shape
    )


def conv3d_jvp(
    x: Any,
    weight: Any,
    x_tangent: Any = None,
    weight_tangent: Any = None,
    bias_tangent: Any = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Apply the derivative of `conv3d` to tangents: `conv2d_jvp` with three spatial axes.

    Tangents have the shapes of what they are tangents of.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import conv3d_jvp
    >>> conv3d_jvp(np.ones((1, 1, 1, 2)), np.ones((1, 1, 1, 1, 2)), x_tangent=np.full((1, 1, 1, 2), 0.5))
    array([[[[1.]]]])
    """
    return passes.jvp(3, x, weight, x_tangent, weight_tangent, bias_tangent, stride, padding, dilation, groups)
