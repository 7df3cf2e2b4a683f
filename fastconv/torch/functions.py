"""Convolutions of tensors, for whom PyTorch's autograd, its transforms and its compiler are no strangers.

What has no kernel here is left to PyTorch, with one warning that says why.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..geometry import named_padding, output_size, padding_pairs, per_axis
from .layout import Ints, lies_channels_last
from .operators import DTYPES, FUNCTIONS, OPERATORS

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolve",
    "objection",
]

PLAIN = (torch.Tensor, nn.Parameter)
"""Classes of tensors that most are of."""


class _Call(NamedTuple):
    """What a convolution's arguments amount to: the result's spatial shape, and what the operators take."""

    size: Ints
    stride: Ints
    sides: Ints
    dilation: Ints


def _call(
    ndim: int, x: Ints, weight: Ints, bias: Ints | None, stride: Any, padding: Any, dilation: Any, groups: Any, extra: Any
) -> _Call:  # fmt: skip
    """Check shapes and parameters; ``extra`` is the output_padding of a transposed convolution, None for another one.

    The text of an error names the arguments of the public functions.
    """
    if len(weight) != ndim + 2:
        raise ValueError(f"weight has shape {tuple(weight)}: expected {ndim + 2} axes")
    if len(x) not in (ndim + 1, ndim + 2):
        raise ValueError(f"x has shape {tuple(x)}: expected {ndim + 1} or {ndim + 2} axes")
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"groups is {groups!r}: expected an int")
    if groups < 1 or weight[0] % groups:
        raise ValueError(f"groups is {groups}: expected a divisor of {weight[0]}, the first axis of weight")
    channels, filters, kernel = weight[1] * groups, weight[0], tuple(weight[2:])
    if extra is not None:
        channels, filters = filters, channels
    if x[-ndim - 1] != channels:
        raise ValueError(
            f"x has {x[-ndim - 1]} channels: weight of shape {tuple(weight)} expects {channels} (groups={groups})"
        )
    if bias is not None and tuple(bias) != (filters,):
        raise ValueError(f"bias has shape {tuple(bias)}: expected {(filters,)}")
    stride, dilation = per_axis("stride", stride, ndim, 1), per_axis("dilation", dilation, ndim, 1)
    if isinstance(padding, str):
        if extra is not None:
            raise TypeError(
                f"padding is {padding!r}: expected an int, one per axis, or one (left, right) pair per axis"
            )
        padding = named_padding(padding, kernel, stride, dilation)
    pairs = padding_pairs(padding, ndim)
    sides = tuple(side for pair in pairs for side in pair)
    axes = zip(x[-ndim:], kernel, stride, dilation, pairs, strict=True)
    if extra is None:
        size = tuple(output_size(n, f, s, d, *pair) for n, f, s, d, pair in axes)
        if min(size) < 1:
            raise ValueError(f"x has shape {tuple(x)}: with padding {pairs} it is smaller than the kernel {kernel}")
        return _Call(size, stride, sides, dilation)
    extra = per_axis("output_padding", extra, ndim, 0)
    for e, s, d in zip(extra, stride, dilation, strict=True):
        if e >= max(s, d):
            raise ValueError(f"output_padding is {e}: expected less than the stride {s} or the dilation {d}")
    size = tuple(
        (n - 1) * s - sum(pair) + d * (f - 1) + e + 1 for (n, f, s, d, pair), e in zip(axes, extra, strict=True)
    )
    if min(size) < 1:
        raise ValueError(f"padding is {padding}: it leaves an output of size {size}, expected at least 1")
    return _Call(size, stride, sides, dilation)


_known_call = functools.lru_cache(maxsize=4096, typed=True)(_call)


def objection(**tensors: Any) -> str | None:
    """Say why there is no kernel for some tensors; None if there is."""
    if torch.jit.is_tracing():
        return "torch.jit.trace cannot follow a call"
    for name, tensor in tensors.items():
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}: expected a torch.Tensor")
        kind = type(tensor)
        if kind not in PLAIN and kind.__torch_function__ is not torch._C._disabled_torch_function_impl:
            return f"a {kind.__name__} has rules of its own for PyTorch's functions"
        if not tensor.is_cpu:
            return f"there is no kernel for the device {tensor.device.type}"
        if tensor.layout is not torch.strided or tensor.is_nested:
            return f"there is no kernel for the layout {'nested' if tensor.is_nested else tensor.layout}"
        if tensor.dtype not in DTYPES:
            return f"there is no kernel for {tensor.dtype}"
        if tensor.numel() == 0 and 0 in tensor.shape[1:]:
            return "there is no kernel for a tensor of which more than the batch is empty"
    if torch.is_autocast_enabled("cpu"):
        return f"autocast is on, and there is no kernel for {torch.get_autocast_dtype('cpu')}"
    return None


_warned: set[str] = set()


def _warn(function: str, reason: str) -> None:
    """Say, once for each reason, that PyTorch computes a call."""
    if not torch.compiler.is_compiling() and reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"{function} is left to PyTorch: {reason}", stacklevel=4)


def convolve(
    ndim: int, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any, extra: Any = None
) -> Any:  # fmt: skip
    """Convolve or, with ``extra`` as its output_padding, apply a transposed convolution."""
    if (reason := objection(x=x, weight=weight, bias=bias)) is not None:
        name = f"conv{ndim}d" if extra is None else f"conv_transpose{ndim}d"
        _warn(name, reason)
        rest = (stride, padding, dilation, groups) if extra is None else (stride, padding, extra, groups, dilation)
        return getattr(F, name)(x, weight, bias, *rest)
    computes = "output" if extra is None else "grad_input"
    shapes = x.shape, weight.shape, None if bias is None else bias.shape
    described = (ndim, *shapes, stride, padding, dilation, groups, extra)
    if torch.compiler.is_compiling():  # the compiler takes neither caches nor autograd.Functions with a forward mode
        operator, call = OPERATORS[computes], _call(*described)
    else:
        operator = FUNCTIONS[computes]
        try:
            call = _known_call(*described)
        except TypeError:  # a list is no key
            call = _call(*described)
    images = x if x.dim() == ndim + 2 else x.unsqueeze(0)
    last = lies_channels_last(images) or lies_channels_last(weight)
    result = operator(images, weight, bias, call.size, last, call.stride, call.sides, call.dilation, groups)
    return result if images is x else result.squeeze(0)


# ---------------------------------------------------------------------------------------------------------------------
# For one, two and three spatial axes
# ---------------------------------------------------------------------------------------------------------------------

SHAPES = {1: ("Sequences", "n", "f"), 2: ("Images", "h, w", "f_r, f_c"), 3: ("Volumes", "d, h, w", "f_d, f_r, f_c")}
"""What is convolved with so many spatial axes, the sizes of what goes in and those of a filter."""

CONVOLUTION = """Convolve with filters: ``torch.nn.functional.{name}`` on fastconv's kernels.

    Parameters
    ----------
    x : Tensor of shape (N, n_ch, {sizes}) or (n_ch, {sizes}), float32 or float64
        {images}.  The result lies channels-last if they or the weight do.
    weight : Tensor of shape (n_f, n_ch / groups, {taps})
        Filters.
    bias : Tensor of shape (n_f,), optional
        Added to every output of its filter.
    stride, padding, dilation, groups
        As in `fastconv.{name}`.

    Returns
    -------
    Tensor of shape (N, n_f, ...) or (n_f, ...)
"""

TRANSPOSED = """Apply the transpose of a convolution: ``torch.nn.functional.{name}`` on fastconv's kernels.

    Parameters
    ----------
    x : Tensor of shape (N, n_in, {sizes}) or (n_in, {sizes}), float32 or float64
        {images}.  The result lies channels-last if they or the weight do.
    weight : Tensor of shape (n_in, n_out / groups, {taps})
        Filters of the convolution that is transposed.
    bias : Tensor of shape (n_out,), optional
        Added to every output of its channel.
    stride, padding, output_padding, groups, dilation
        As in `fastconv.{name}`.

    Returns
    -------
    Tensor of shape (N, n_out, ...) or (n_out, ...)
"""

REST = """        It can be differentiated in reverse and in forward mode, as often as wanted.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the text names it.

    Warns
    -----
    UserWarning
        Once for each reason, if there is no kernel for the tensors: PyTorch then computes the call.

    Examples
    --------
    >>> import torch
    >>> from fastconv.torch import {name}
"""


def _named(function: Callable[..., Any], name: str, ndim: int, text: str, example: str) -> Callable[..., Any]:
    """Give a function a name and its documentation."""
    images, sizes, taps = SHAPES[ndim]
    function.__name__ = function.__qualname__ = name
    function.__doc__ = (text + REST).format(name=name, images=images, sizes=sizes, taps=taps) + f"    {example}\n    "
    return function


def _convolution(ndim: int, example: str) -> Callable[..., Any]:
    def function(
        x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Any:
        return convolve(ndim, x, weight, bias, stride, padding, dilation, groups)

    return _named(function, f"conv{ndim}d", ndim, CONVOLUTION, example)


def _transposed(ndim: int, example: str) -> Callable[..., Any]:
    def function(
        x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
        groups: int = 1, dilation: Any = 1,
    ) -> Any:  # fmt: skip
        return convolve(ndim, x, weight, bias, stride, padding, dilation, groups, output_padding)

    return _named(function, f"conv_transpose{ndim}d", ndim, TRANSPOSED, example)


conv1d = _convolution(
    1,
    """>>> conv1d(torch.arange(5.0).reshape(1, 5), torch.ones(1, 1, 3))
    tensor([[3., 6., 9.]])""",
)
conv2d = _convolution(
    2,
    """>>> x = torch.ones(1, 1, 3, 3, requires_grad=True)
    >>> y = conv2d(x, torch.ones(1, 1, 2, 2), stride=2)
    >>> y.backward(torch.ones_like(y))
    >>> x.grad
    tensor([[[[1., 1., 0.],
              [1., 1., 0.],
              [0., 0., 0.]]]])""",
)
conv3d = _convolution(
    3,
    """>>> conv3d(torch.ones(1, 2, 2, 3), torch.ones(1, 1, 2, 2, 2))
    tensor([[[[8., 8.]]]])""",
)
conv_transpose1d = _transposed(
    1,
    """>>> conv_transpose1d(torch.ones(1, 2), torch.tensor([[[1.0, 2.0]]]), stride=2)
    tensor([[1., 2., 1., 2.]])""",
)
conv_transpose2d = _transposed(
    2,
    """>>> conv_transpose2d(torch.ones(1, 1, 2), torch.tensor([[[[1.0, 2.0]]]]), stride=(1, 2))
    tensor([[[1., 2., 1., 2.]]])""",
)
conv_transpose3d = _transposed(
    3,
    """>>> conv_transpose3d(torch.ones(1, 1, 1, 2), torch.tensor([[[[[1.0, 2.0]]]]]), stride=(1, 1, 2))
    tensor([[[[1., 2., 1., 2.]]]])""",
)
