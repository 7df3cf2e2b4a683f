"""fastconv under PyTorch: convolutions that its autograd knows, and `convert`, which puts them into a model.

>>> import torch
>>> import fastconv.torch
>>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
>>> model = fastconv.torch.convert(model)
>>> model(torch.zeros(1, 3, 32, 32)).shape
torch.Size([1, 8, 32, 32])

A convolution is a form that is linear in each of three arrays: X, W and dO.  Leave one of them out, and what is left of the form
is an array of its kind: O from (X, W), dX from (dO, W), dW from (dO, X), equations (1) to (3).  So three operators are closed
under differentiation, in reverse and in forward mode: the derivatives of each are made of the three.

They are there twice, with the same formulas.  ``torch.ops.fastconv.*`` are operators of PyTorch's dispatcher, with kernels for
CPUs and for fake tensors and, by ``register_autograd``, a backward pass: these `torch.compile` traces.  Around each stands a
``torch.autograd.Function``, which also knows forward mode and `torch.func.vmap`; the compiler refuses those.  What has no
kernel here is left to PyTorch, with one warning that says why.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from .geometry import ConvGeometry, conv_geometry, named_padding, output_size, padding_pairs, per_axis
from .ops import Operand, run_pass, shapes_3d

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convert",
    "revert",
]

Ints = tuple[int, ...]

# ---------------------------------------------------------------------------------------------------------------------
# Kernels of the three operators
# ---------------------------------------------------------------------------------------------------------------------

OPERANDS = {"output": ("x", "weight"), "grad_input": ("grad_output", "weight"), "grad_weight": ("grad_output", "x")}
"""What each operator is linear in.  Their names are those of `fastconv.plan.PASSES`."""

RESULTS = {"output": "grad_output", "grad_input": "x", "grad_weight": "weight"}
"""What has the shape of each operator's result."""

COMPUTES = {result: computes for computes, result in RESULTS.items()}

DTYPES: dict[Any, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
"""What there are kernels for."""

PLAIN = (torch.Tensor, nn.Parameter)
"""Classes of tensors that most are of."""

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""What PyTorch calls channels-last, by the number of axes; there is none for one spatial axis."""

LIKE = {
    (ndim, last): np.empty((2,) * (ndim + 2)).transpose((0, ndim + 1, *range(1, ndim + 1)) if last else None)
    for ndim in (1, 2, 3)
    for last in (False, True)
}
"""Arrays whose layouts results take."""


def _shape_of(computes: str, a: Sequence[int], b: Sequence[int], size: Sequence[int], groups: int) -> Ints:
    """Return the shape of a result from those of the operands, and from its spatial part."""
    if computes == "output":
        return (a[0], b[0], *size)
    if computes == "grad_input":
        return (a[0], b[1] * groups, *size)
    return (a[1], b[1] // groups, *size)


class _Pass(NamedTuple):
    """What `fastconv.ops.run_pass` is told about a pass beside its arrays."""

    geometry: ConvGeometry
    known: tuple[tuple[Ints, int], tuple[Ints, int]]
    shape: Ints
    final_shape: Ints


@functools.lru_cache(maxsize=4096)
def _pass(computes: str, a: Ints, b: Ints, size: Ints, stride: Ints, sides: Ints, dilation: Ints, groups: int) -> _Pass:
    """Check the arguments of an operator."""
    operands = OPERANDS[computes]
    for name, shape in zip(operands, (a, b), strict=True):
        if len(shape) != len(size) + 2:
            raise ValueError(f"{name} has shape {tuple(shape)}: expected {len(size) + 2} axes")
    result = _shape_of(computes, a, b, size, groups)
    shapes = {operands[0]: tuple(a), operands[1]: tuple(b), RESULTS[computes]: result}
    padding = tuple(zip(sides[::2], sides[1::2], strict=True))
    g = conv_geometry(shapes["x"], shapes["weight"], stride, padding, dilation, groups, ndim=len(size))
    n, filters, *output = shapes["grad_output"]
    # A transposed convolution may leave out the last outputs, where its output_padding is larger than the stride.
    if (n, filters) != g.output_shape[:2] or not all(0 < o <= most for o, most in zip(output, g.output, strict=True)):
        raise ValueError(f"grad_output has shape {shapes['grad_output']}: expected {g.output_shape}")
    g = dataclasses.replace(g, output=tuple(output))
    x_shape, weight_shape, output_shape = shapes_3d(g)
    known = {"x": (x_shape, g.ndim), "weight": (weight_shape, 0), "grad_output": (output_shape, g.ndim)}
    shape = (1, *weight_shape) if computes == "grad_weight" else known[RESULTS[computes]][0]
    return _Pass(g, (known[operands[0]], known[operands[1]]), shape, result)


class _Threads(threading.local):
    """How many threads PyTorch had when a thread last told the kernels."""

    count = 0


_threads = _Threads()


def _keep_to_threads() -> None:
    """Let kernels use as many threads as PyTorch; Numba counts them for each calling thread."""
    count = torch.get_num_threads()
    if count != _threads.count:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        torch.set_num_threads(count)  # when Numba starts its threads, it sets PyTorch's number, too
        _threads.count = count


def _compute(
    computes: str, a: Any, b: Any, bias: Any, size: Sequence[int], channels_last: bool, stride: Sequence[int],
    sides: Sequence[int], dilation: Sequence[int], groups: int,
) -> Any:  # fmt: skip
    """Run one pass on CPU tensors: their memory is NumPy's, and the result's memory is PyTorch's."""
    geometry, known, shape, final_shape = _pass(
        computes, a.shape, b.shape, tuple(size), tuple(stride), tuple(sides), tuple(dilation), groups
    )
    dtype = DTYPES.get(a.dtype)
    if dtype is None or b.dtype != a.dtype or (bias is not None and bias.dtype != a.dtype):
        names = ", ".join(str(t.dtype) for t in (a, b, bias) if t is not None)
        raise TypeError(f"tensors have dtypes {names}: expected torch.float32 or torch.float64 for all")
    _keep_to_threads()
    operands = [Operand(_array(a), *known[0]), Operand(_array(b), *known[1])]
    if computes == "output":
        values = np.zeros(geometry.filters, dtype) if bias is None else _array(bias)
        operands.append(Operand(values, (geometry.filters,)))
    like = LIKE[len(size), channels_last]
    result = torch.from_numpy(run_pass(computes, geometry, dtype, operands, like, shape, final_shape))
    if 1 in final_shape:  # NumPy has no rule for the step of a single element, but whoever reads steps later has
        result = result.as_strided(final_shape, _steps(final_shape, channels_last))
    if computes == "grad_input" and bias is not None:
        result += bias.detach().view(-1, *(1,) * len(size))
    return result


@functools.lru_cache(maxsize=1024)
def _steps(shape: Ints, channels_last: bool) -> Ints:
    """Return the strides that PyTorch gives a new tensor."""
    memory_format = FORMATS[len(shape)] if channels_last else torch.contiguous_format
    steps: Ints = torch.empty(shape, device="meta", memory_format=memory_format).stride()
    return steps


def _array(tensor: Any) -> Any:
    return tensor.detach().numpy()


def _empty(
    computes: str, a: Any, b: Any, bias: Any, size: Sequence[int], channels_last: bool, stride: Any, sides: Any,
    dilation: Any, groups: int,
) -> Any:  # fmt: skip
    """Return what `_compute` does, without values."""
    shape = _shape_of(computes, a.shape, b.shape, size, groups)
    memory_format = FORMATS[len(shape)] if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=a.dtype, device=a.device, memory_format=memory_format)


LIBRARY = torch.library.Library("fastconv", "DEF")
OPERATORS: dict[str, Callable[..., Any]] = {}


def _define(computes: str) -> None:
    first, second = OPERANDS[computes]
    LIBRARY.define(
        f"{computes}(Tensor {first}, Tensor {second}, Tensor? bias, SymInt[] size, bool channels_last, SymInt[] stride, "
        "SymInt[] padding, SymInt[] dilation, SymInt groups) -> Tensor",
        tags=[torch.Tag.pt2_compliant_tag],
    )
    name = f"fastconv::{computes}"
    LIBRARY.impl(computes, functools.partial(_compute, computes), "CPU")
    torch.library.register_fake(name, functools.partial(_empty, computes), lib=LIBRARY)
    OPERATORS[computes] = getattr(torch.ops.fastconv, computes).default


for _name in OPERANDS:
    _define(_name)

# ---------------------------------------------------------------------------------------------------------------------
# Their derivatives
# ---------------------------------------------------------------------------------------------------------------------


def _lies_channels_last(tensor: Any) -> bool:
    """Say whether PyTorch takes a tensor's strides for channels-last ones."""
    sizes, steps = tensor.shape, tensor.stride()
    if len(sizes) not in FORMATS or steps[-1] < steps[1] or steps[1] == 0:  # nearly all that do not
        return False
    least = 0
    for axis in (1, *range(len(sizes) - 1, 1, -1), 0):
        if sizes[axis] == 0 or steps[axis] < least or (axis == 0 and least == steps[1]):
            return False
        least = steps[axis] * max(sizes[axis], 1)
    return True


def _setup(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    """Keep what derivatives need."""
    a, b, ctx.bias, ctx.size, ctx.channels_last, *ctx.spec = inputs
    ctx.bias = ctx.bias is not None
    ctx.save_for_backward(a, b)
    ctx.save_for_forward(a, b)
    ctx.set_materialize_grads(False)


def _backward(apply: dict[str, Callable[..., Any]], computes: str, ctx: Any, grad: Any) -> tuple[Any, ...]:
    """Return the gradients of an operator's operands: each is what the other operand and the result's gradient make."""
    spec, (a, b), needed = ctx.spec, ctx.saved_tensors, ctx.needs_input_grad
    grads: list[Any] = [None] * (5 + len(spec))
    if grad is None:
        return tuple(grads)
    known = {OPERANDS[computes][0]: a, OPERANDS[computes][1]: b, RESULTS[computes]: grad}
    for place, (name, like) in enumerate(zip(OPERANDS[computes], (a, b), strict=True)):
        if needed[place]:
            target = COMPUTES[name]
            first, second = OPERANDS[target]
            last = _lies_channels_last(like)
            grads[place] = apply[target](known[first], known[second], None, like.shape[2:], last, *spec)
    if ctx.bias and needed[2]:
        grads[2] = grad.sum((0, *range(2, grad.dim())))
    return tuple(grads)


def _tangent(apply: dict[str, Callable[..., Any]], computes: str, ctx: Any, *tangents: Any) -> Any:
    """Return the tangent of an operator's result: it is linear in each operand."""
    a, b = ctx.saved_tensors
    bias, rest = tangents[2], (ctx.size, ctx.channels_last, *ctx.spec)
    terms: list[Any] = []
    for operands in ((tangents[0], b), (a, tangents[1])):
        if operands[0] is not None and operands[1] is not None:
            terms.append(apply[computes](*operands, None if terms else bias, *rest))
    if not terms:
        shape = _shape_of(computes, a.shape, b.shape, ctx.size, ctx.spec[-1])
        return None if bias is None else bias.view(-1, *(1,) * len(ctx.size)).expand(shape).clone()
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


def _batched(
    apply: dict[str, Callable[..., Any]], computes: str, info: Any, in_dims: Sequence[Any], a: Any, b: Any, bias: Any,
    size: Sequence[int], channels_last: bool, stride: Any, sides: Any, dilation: Any, groups: int,
) -> tuple[Any, int | None]:  # fmt: skip
    """Compute many results at once (`torch.func.vmap`): as more images of one convolution, or as groups of its channels."""
    rest = (size, channels_last, stride, sides, dilation)
    many, name = info.batch_size, OPERANDS[computes]
    if in_dims[2] is not None:  # each has a bias of its own
        result, axis = _batched(apply, computes, info, (*in_dims[:2], None), a, b, None, *rest, groups)
        result = result if axis is None else result.movedim(axis, 0)
        return result + bias.movedim(in_dims[2], 0).reshape(many, 1, -1, *(1,) * len(size)), 0
    if in_dims[0] is in_dims[1] is None:
        return apply[computes](a, b, bias, *rest, groups), None
    if in_dims[1] is None and computes != "grad_weight":
        images = a.movedim(in_dims[0], 0)
        return apply[computes](images.flatten(0, 1), b, bias, *rest, groups).unflatten(0, (many, -1)), 0
    first, second = (
        t.expand(many, *t.shape) if axis is None else t.movedim(axis, 0)
        for t, axis in zip((a, b), in_dims, strict=False)
    )
    folded = (
        t.flatten(0, 1) if operand == "weight" else t.movedim(0, 1).flatten(1, 2)
        for t, operand in zip((first, second), name, strict=True)
    )
    bias = None if bias is None else bias.repeat(many)
    result = apply[computes](*folded, bias, *rest, many * groups)
    axis = 0 if computes == "grad_weight" else 1
    return result.unflatten(axis, (many, -1)), axis


KEYS = torch._C._dispatch_keys(torch.empty(0, device="cpu"))
"""What the dispatcher does for a tensor in CPU memory that is nothing else: not fake, batched, wrapped or to be negated."""


def _unobserved(*tensors: Any) -> bool:
    """Say whether nothing but PyTorch's dispatcher stands between a call and its kernel: to pass it by saves 10 us."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and not torch.autograd._profiler_enabled()
        and all(t is None or torch._C._dispatch_keys(t) == KEYS for t in tensors)
    )


FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""The operators with all their derivatives, for whoever is not a compiler."""


def _differentiate(computes: str) -> None:
    operator = OPERATORS[computes]

    def forward(a: Any, b: Any, bias: Any, *rest: Any) -> Any:
        if _unobserved(a, b, bias):
            return _compute(computes, a, b, bias, *rest)
        with torch._C._AutoDispatchBelowAutograd():  # what follows differentiates
            return operator(a, b, bias, *rest)

    rules: dict[str, Any] = {
        "forward": forward,
        "setup_context": _setup,
        "backward": functools.partial(_backward, FUNCTIONS, computes),
        "jvp": functools.partial(_tangent, FUNCTIONS, computes),
        "vmap": functools.partial(_batched, FUNCTIONS, computes),
    }
    function: Any = type(
        computes, (torch.autograd.Function,), {name: staticmethod(rule) for name, rule in rules.items()}
    )
    # What Function.apply does when no transform of torch.func is active, less 30 us for looking at forward's signature.
    apply = super(torch.autograd.Function, function).apply

    def call(*operands: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return function.apply(*operands)
        if not torch.is_grad_enabled() and forward_ad._current_level < 0:
            return forward(*operands)
        return apply(*operands)

    FUNCTIONS[computes] = call
    name = f"fastconv::{computes}"
    backward = functools.partial(_backward, OPERATORS, computes)
    torch.library.register_autograd(name, backward, setup_context=_setup, lib=LIBRARY)
    torch.library.register_vmap(name, functools.partial(_batched, OPERATORS, computes), lib=LIBRARY)


for _name in OPERANDS:
    _differentiate(_name)

# ---------------------------------------------------------------------------------------------------------------------
# Convolutions
# ---------------------------------------------------------------------------------------------------------------------


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


def _objection(**tensors: Any) -> str | None:
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


def _apply(
    computes: str, ndim: int, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any,
    extra: Any = None,
) -> Any:  # fmt: skip
    """Check the arguments of a convolution or, with ``extra``, of a transposed one, and call its operator."""
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
    last = _lies_channels_last(images) or _lies_channels_last(weight)
    result = operator(images, weight, bias, call.size, last, call.stride, call.sides, call.dilation, groups)
    return result if images is x else result.squeeze(0)


def _conv(ndim: int, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    if (reason := _objection(x=x, weight=weight, bias=bias)) is not None:
        _warn(f"conv{ndim}d", reason)
        return getattr(F, f"conv{ndim}d")(x, weight, bias, stride, padding, dilation, groups)
    return _apply("output", ndim, x, weight, bias, stride, padding, dilation, groups)


def _conv_transpose(
    ndim: int, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any, groups: int, dilation: Any
) -> Any:  # fmt: skip
    if (reason := _objection(x=x, weight=weight, bias=bias)) is not None:
        _warn(f"conv_transpose{ndim}d", reason)
        function = getattr(F, f"conv_transpose{ndim}d")
        return function(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _apply("grad_input", ndim, x, weight, bias, stride, padding, dilation, groups, output_padding)


def conv2d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """Convolve images with filters: ``torch.nn.functional.conv2d`` on fastconv's kernels.

    Parameters
    ----------
    x : Tensor of shape (N, n_ch, h, w) or (n_ch, h, w), float32 or float64
        Images.  The result lies channels-last if they or the weight do.
    weight : Tensor of shape (n_f, n_ch / groups, f_r, f_c)
        Filters.
    bias : Tensor of shape (n_f,), optional
        Added to every output of its filter.
    stride, padding, dilation, groups
        As in `fastconv.conv2d`.

    Returns
    -------
    Tensor of shape (N, n_f, h_new, w_new) or (n_f, h_new, w_new)
        It can be differentiated in reverse and in forward mode, as often as wanted.

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
    >>> from fastconv.torch import conv2d
    >>> x = torch.ones(1, 1, 3, 3, requires_grad=True)
    >>> y = conv2d(x, torch.ones(1, 1, 2, 2), stride=2)
    >>> y.backward(torch.ones_like(y))
    >>> x.grad
    tensor([[[[1., 1., 0.],
              [1., 1., 0.],
              [0., 0., 0.]]]])
    """
    return _conv(2, x, weight, bias, stride, padding, dilation, groups)


def conv1d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """Convolve sequences with filters: `conv2d` with one spatial axis.

    Examples
    --------
    >>> import torch
    >>> from fastconv.torch import conv1d
    >>> conv1d(torch.arange(5.0).reshape(1, 5), torch.ones(1, 1, 3))
    tensor([[3., 6., 9.]])
    """
    return _conv(1, x, weight, bias, stride, padding, dilation, groups)


def conv3d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    """Convolve volumes with filters: `conv2d` with three spatial axes.

    Examples
    --------
    >>> import torch
    >>> from fastconv.torch import conv3d
    >>> conv3d(torch.ones(1, 2, 2, 3), torch.ones(1, 1, 2, 2, 2))
    tensor([[[[8., 8.]]]])
    """
    return _conv(3, x, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    """Apply the transpose of a convolution: ``torch.nn.functional.conv_transpose2d`` on fastconv's kernels.

    Parameters
    ----------
    x : Tensor of shape (N, n_in, h, w) or (n_in, h, w), float32 or float64
        Images.  The result lies channels-last if they or the weight do.
    weight : Tensor of shape (n_in, n_out / groups, f_r, f_c)
        Filters of the convolution that is transposed.
    bias : Tensor of shape (n_out,), optional
        Added to every output of its channel.
    stride, padding, output_padding, groups, dilation
        As in `fastconv.conv_transpose2d`.

    Returns
    -------
    Tensor of shape (N, n_out, h_new, w_new) or (n_out, h_new, w_new)
        It can be differentiated as that of `conv2d`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; the text names it.

    Warns
    -----
    UserWarning
        As `conv2d`.

    Examples
    --------
    >>> import torch
    >>> from fastconv.torch import conv_transpose2d
    >>> conv_transpose2d(torch.ones(1, 1, 2), torch.tensor([[[[1.0, 2.0]]]]), stride=(1, 2))
    tensor([[[1., 2., 1., 2.]]])
    """
    return _conv_transpose(2, x, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose1d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    """Apply the transpose of `conv1d`: `conv_transpose2d` with one spatial axis.

    Examples
    --------
    >>> import torch
    >>> from fastconv.torch import conv_transpose1d
    >>> conv_transpose1d(torch.ones(1, 2), torch.tensor([[[1.0, 2.0]]]), stride=2)
    tensor([[1., 2., 1., 2.]])
    """
    return _conv_transpose(1, x, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    """Apply the transpose of `conv3d`: `conv_transpose2d` with three spatial axes.

    Examples
    --------
    >>> import torch
    >>> from fastconv.torch import conv_transpose3d
    >>> conv_transpose3d(torch.ones(1, 1, 1, 2), torch.tensor([[[[[1.0, 2.0]]]]]), stride=(1, 1, 2))
    tensor([[[[1., 2., 1., 2.]]]])
    """
    return _conv_transpose(3, x, weight, bias, stride, padding, output_padding, groups, dilation)


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------


LEAST_FLOPS = 4_000_000
"""Operations of a pass from which on `convert`'s layers compute it: below, PyTorch's smaller costs of a call decide.
It was set by what ``fastconv bench --overhead`` and ``--models`` print; with 10 MFLOP, ConvNeXt's small layers lost."""


class _Converted:
    """What all layers share: one is PyTorch's own in all but who computes it."""

    least_flops = LEAST_FLOPS

    def _get_name(self) -> str:
        return f"fastconv.{type(self).__name__}"

    def _is_small(self: Any, x: Any, positions: int) -> bool:
        """Say whether a pass in single precision, with filters at every so many-th position, is too small to be taken."""
        if self.least_flops == 0 or x.dtype is not torch.float32:
            return False
        return bool(2 * x.numel() * self.weight.numel() < self.least_flops * self.in_channels * positions)


class _Conv(_Converted):
    def _conv_forward(self: Any, input: Any, weight: Any, bias: Any) -> Any:
        if self._is_small(input, math.prod(self.stride)):
            return super()._conv_forward(input, weight, bias)  # type: ignore[misc]
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return _conv(len(self.kernel_size), input, weight, bias, self.stride, padding, self.dilation, self.groups)


class _ConvTranspose(_Converted):
    def forward(self: Any, input: Any, output_size: Any = None) -> Any:
        if self._is_small(input, 1):
            return super().forward(input, output_size)  # type: ignore[misc]
        ndim = len(self.kernel_size)
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, ndim, self.dilation
        )
        return _conv_transpose(
            ndim, input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )


class Conv1d(_Conv, nn.Conv1d):  # type: ignore[misc]
    """``torch.nn.Conv1d`` on fastconv's kernels."""


class Conv2d(_Conv, nn.Conv2d):  # type: ignore[misc]
    """``torch.nn.Conv2d`` on fastconv's kernels."""


class Conv3d(_Conv, nn.Conv3d):  # type: ignore[misc]
    """``torch.nn.Conv3d`` on fastconv's kernels."""


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose1d`` on fastconv's kernels."""


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose2d`` on fastconv's kernels."""


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose3d`` on fastconv's kernels."""


LAYERS = {
    getattr(nn, layer.__name__): layer
    for layer in (Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
}
"""What `convert` makes of PyTorch's layers."""


def convert(model: Any, *, least_flops: int = LEAST_FLOPS, verbose: bool = False) -> Any:
    """Let fastconv compute a model's convolutions, in place.

    A layer changes its class and nothing else: parameters, buffers, hooks, dtype, memory layout and the names in
    ``state_dict`` stay as they are, and optimisers that hold the parameters go on.  A layer that is given so little, in
    single precision, that PyTorch computes it faster still lets PyTorch do so.

    Parameters
    ----------
    model : torch.nn.Module
        Of its layers, those that are exactly ``nn.Conv1d`` to ``3d`` or ``nn.ConvTranspose1d`` to ``3d`` are converted.
    least_flops : int
        Operations of a pass from which on a layer computes it itself; 0 for every call.
    verbose : bool
        Print a line for each convolution: converted, or left to PyTorch and why.

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    TypeError, ValueError
        If the model is no module, or ``least_flops`` no number of at least 0.

    Examples
    --------
    >>> import torch
    >>> from fastconv.torch import convert
    >>> convert(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 1).half()), verbose=True)
    0: converted, but for calls of less than 4.0 MFLOP
    1: left to PyTorch: there is no kernel for torch.float16
    Sequential(
      (0): fastconv.Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Conv2d(8, 8, kernel_size=(1, 1), stride=(1, 1))
    )
    """
    if isinstance(least_flops, bool) or not isinstance(least_flops, int):
        raise TypeError(f"least_flops is {least_flops!r}: expected an int")
    if least_flops < 0:
        raise ValueError(f"least_flops is {least_flops}: expected at least 0")
    rule = f", but for calls of less than {least_flops / 1e6:.1f} MFLOP" if least_flops else ""
    for name, module in _modules(model):
        reason = _reason_to_leave(module)
        if reason is None:
            module.__class__ = LAYERS[type(module)]
            if least_flops != LEAST_FLOPS:
                module.least_flops = least_flops
        if verbose:
            print(f"{name or 'the model'}: {f'converted{rule}' if reason is None else f'left to PyTorch: {reason}'}")
    return model


def revert(model: Any) -> Any:
    """Undo `convert`: give every layer its own class back, in place.

    Parameters
    ----------
    model : torch.nn.Module
        Converted, trained, loaded or not.

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    TypeError
        If it is no module.

    Examples
    --------
    >>> import torch
    >>> from fastconv.torch import convert, revert
    >>> revert(convert(torch.nn.Conv2d(3, 8, 3)))
    Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    originals = {layer: original for original, layer in LAYERS.items()}
    for _, module in _modules(model):
        module.__class__ = originals.get(type(module), type(module))
        module.__dict__.pop("least_flops", None)
    return model


def _modules(model: Any) -> list[tuple[str, Any]]:
    """List a model's convolutions."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    return [(name, module) for name, module in model.named_modules() if isinstance(module, tuple(LAYERS))]


def _reason_to_leave(module: Any) -> str | None:
    kind = type(module)
    if kind in LAYERS.values():
        return "it is converted already"
    if kind not in LAYERS:
        return f"it is a {kind.__name__}, which may compute something else than {kind.__mro__[1].__name__}"
    return _objection(weight=module.weight, bias=module.bias)
