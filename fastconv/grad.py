"""The gradients of a convolution one by one, with the names and arguments of ``torch.nn.grad``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import Array, as_array, common_dtype
from .calls import factors, flat, form_of, recall
from .geometry import conv_geometry
from .passes import Operand, bias_geometry, check_grad_output, run_pass, shapes_3d
from .prepared import PreparedWeight

__all__ = [
    "conv1d_bias",
    "conv1d_input",
    "conv1d_weight",
    "conv2d_bias",
    "conv2d_input",
    "conv2d_weight",
    "conv3d_bias",
    "conv3d_input",
    "conv3d_weight",
]


def _grad_input(
    ndim: int, input_size: Any, weight: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Array:
    form = form_of((weight, grad_output), (), ("conv_input", ndim, input_size, stride, padding, dilation, groups))
    if (bound := recall(form)) is not None:
        result: Array = bound(flat(grad_output), factors(weight))
        return result
    prepared = weight if isinstance(weight, PreparedWeight) else None
    weight, grad_output = as_array("weight", weight), as_array("grad_output", grad_output)
    dtype = common_dtype(weight=weight, grad_output=grad_output)
    geometry = conv_geometry(
        input_size, weight.shape, stride, padding, dilation, groups, ndim=ndim, x_name="input_size"
    )
    batched = len(input_size) == ndim + 2
    check_grad_output(grad_output, geometry, batched)
    x_shape, weight_shape, output_shape = shapes_3d(geometry)
    inputs = [Operand(grad_output, output_shape, ndim), Operand(weight, weight_shape, ndim, prepared)]
    return run_pass("grad_input", geometry, dtype, inputs, grad_output, x_shape, tuple(input_size), form=form)


def _grad_weight(
    ndim: int, x: Any, weight_size: Any, grad_output: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Array:
    form = form_of((x, grad_output), (), ("conv_weight", ndim, weight_size, stride, padding, dilation, groups))
    if (bound := recall(form)) is not None:
        result: Array = bound(flat(grad_output), flat(x))
        return result
    x, grad_output = as_array("input", x), as_array("grad_output", grad_output)
    dtype = common_dtype(input=x, grad_output=grad_output)
    geometry = conv_geometry(
        x.shape, weight_size, stride, padding, dilation, groups, ndim=ndim, x_name="input", weight_name="weight_size"
    )
    check_grad_output(grad_output, geometry, x.ndim == ndim + 2)
    x_shape, weight_shape, output_shape = shapes_3d(geometry)
    inputs = [Operand(grad_output, output_shape, ndim), Operand(x, x_shape, ndim)]
    like = np.empty(geometry.weight_shape, dtype)
    shape = geometry.weight_shape
    return run_pass("grad_weight", geometry, dtype, inputs, like, (1, *weight_shape), shape, form=form)


def _grad_bias(ndim: int, grad_output: Any) -> Array:
    form = form_of((grad_output,), (), ("conv_bias", ndim))
    if (bound := recall(form)) is not None:
        result: Array = bound(flat(grad_output))
        return result
    grad_output = as_array("grad_output", grad_output)
    if grad_output.ndim not in (ndim + 1, ndim + 2):
        raise ValueError(f"grad_output has shape {grad_output.shape}: expected {ndim + 1} or {ndim + 2} axes")
    shape = grad_output.shape if grad_output.ndim == ndim + 2 else (1, *grad_output.shape)
    if min(shape[1:]) < 1:
        raise ValueError(f"grad_output has shape {grad_output.shape}: only the batch may be empty")
    batch, filters, *sizes = shape
    geometry = bias_geometry(batch, filters, sizes)
    dtype = common_dtype(grad_output=grad_output)
    _, _, output_shape = shapes_3d(geometry)
    inputs = [Operand(grad_output, output_shape, ndim)]
    return run_pass("grad_bias", geometry, dtype, inputs, grad_output, (filters,), (filters,), form=form)


def conv2d_input(
    input_size: Sequence[int],
    weight: Any,
    grad_output: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Compute dX: equation (2).

    Parameters
    ----------
    input_size : sequence of int
        Shape of x, (N, n_ch, h, w) or (n_ch, h, w).
    weight : array of shape (n_f, n_ch / groups, f_r, f_c)
        Filters.
    grad_output : array of shape (N, n_f, h_new, w_new) or (n_f, h_new, w_new)
        dL/dO.
    stride, padding, dilation, groups
        As in `fastconv.conv2d`.

    Returns
    -------
    ndarray of shape ``input_size``
        dL/dX.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `fastconv.conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import grad
    >>> grad.conv2d_input((1, 1, 3), np.array([[[[1.0, 2.0]]]]), np.ones((1, 1, 2)))
    array([[[1., 3., 2.]]])
    """
    return _grad_input(2, input_size, weight, grad_output, stride, padding, dilation, groups)


def conv2d_weight(
    input: Any,
    weight_size: Sequence[int],
    grad_output: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Compute dW: equation (3).

    Parameters
    ----------
    input : array of shape (N, n_ch, h, w) or (n_ch, h, w)
        X.
    weight_size : sequence of int
        Shape of the weight, (n_f, n_ch / groups, f_r, f_c).
    grad_output : array of shape (N, n_f, h_new, w_new) or (n_f, h_new, w_new)
        dL/dO.
    stride, padding, dilation, groups
        As in `fastconv.conv2d`.

    Returns
    -------
    ndarray of shape ``weight_size``
        dL/dW.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `fastconv.conv2d_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import grad
    >>> grad.conv2d_weight(np.array([[[1.0, 2.0, 4.0]]]), (1, 1, 1, 2), np.ones((1, 1, 2)))
    array([[[[3., 6.]]]])
    """
    return _grad_weight(2, input, weight_size, grad_output, stride, padding, dilation, groups)


def conv2d_bias(grad_output: Any) -> Array:
    """Compute db: equation (4).

    Parameters
    ----------
    grad_output : array of shape (N, n_f, h_new, w_new) or (n_f, h_new, w_new)
        dL/dO.

    Returns
    -------
    ndarray of shape (n_f,)
        dL/db.

    Raises
    ------
    TypeError, ValueError
        If it is no array or has too few or too many axes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import grad
    >>> grad.conv2d_bias(np.ones((2, 3, 3)))
    array([9., 9.])
    """
    return _grad_bias(2, grad_output)


def conv1d_input(
    input_size: Sequence[int],
    weight: Any,
    grad_output: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Compute dX: `conv2d_input` with one spatial axis.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import grad
    >>> grad.conv1d_input((1, 3), np.array([[[1.0, 2.0]]]), np.ones((1, 2)))
    array([[1., 3., 2.]])
    """
    return _grad_input(1, input_size, weight, grad_output, stride, padding, dilation, groups)


def conv1d_weight(
    input: Any,
    weight_size: Sequence[int],
    grad_output: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Compute dW: `conv2d_weight` with one spatial axis.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import grad
    >>> grad.conv1d_weight(np.array([[1.0, 2.0, 4.0]]), (1, 1, 2), np.ones((1, 2)))
    array([[[3., 6.]]])
    """
    return _grad_weight(1, input, weight_size, grad_output, stride, padding, dilation, groups)


def conv1d_bias(grad_output: Any) -> Array:
    """Compute db: `conv2d_bias` with one spatial axis.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import grad
    >>> grad.conv1d_bias(np.ones((2, 3)))
    array([3., 3.])
    """
    return _grad_bias(1, grad_output)


def conv3d_input(
    input_size: Sequence[int],
    weight: Any,
    grad_output: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Compute dX: `conv2d_input` with three spatial axes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import grad
    >>> grad.conv3d_input((1, 1, 1, 3), np.array([[[[[1.0, 2.0]]]]]), np.ones((1, 1, 1, 2)))
    array([[[[1., 3., 2.]]]])
    """
    return _grad_input(3, input_size, weight, grad_output, stride, padding, dilation, groups)


def conv3d_weight(
    input: Any,
    weight_size: Sequence[int],
    grad_output: Any,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """Compute dW: `conv2d_weight` with three spatial axes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import grad
    >>> grad.conv3d_weight(np.array([[[[1.0, 2.0, 4.0]]]]), (1, 1, 1, 1, 2), np.ones((1, 1, 1, 2)))
    array([[[[[3., 6.]]]]])
    """
    return _grad_weight(3, input, weight_size, grad_output, stride, padding, dilation, groups)


def conv3d_bias(grad_output: Any) -> Array:
    """Compute db: `conv2d_bias` with three spatial axes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import grad
    >>> grad.conv3d_bias(np.ones((2, 3, 3, 3)))
    array([27., 27.])
    """
    return _grad_bias(3, grad_output)
