"""What the functions of all dimensions share: check the arguments, plan, run.

A pass is equation (1), (2), (3) or (4) for one geometry.  `run_pass` runs one whose arguments have been checked.  `conv`,
`backward`, `transpose`, `transpose_backward` and `jvp` take what their namesakes in `fastconv.ops` take, behind the number of
spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .arrays import (
    Array,
    as_array,
    check_out,
    common_dtype,
    empty,
    finish,
    is_channels_last,
    plain,
    result_dtype,
    sum_dtype,
    target,
)
from .calls import Bound, Form, apart, bind, factors, flat, form_of, recall, remember
from .geometry import ConvGeometry, checked_shape, conv_geometry, geometry_of, transposed_geometry
from .limits import SMALL, require_memory
from .plan import Row, choose
from .prepared import PreparedWeight

__all__ = [
    "ConvGrads",
    "Operand",
    "backward",
    "bias_geometry",
    "bias_values",
    "check_grad_output",
    "conv",
    "jvp",
    "row_for",
    "run_pass",
    "shapes_3d",
    "transpose",
    "transpose_backward",
]


class ConvGrads(NamedTuple):
    """Gradients of a convolution; None where ``output_mask`` leaves one out.

    Attributes
    ----------
    input : ndarray or None
        dL/dX, shaped as x.
    weight : ndarray or None
        dL/dW, shaped as weight, or (N, *weight.shape) per sample.
    bias : ndarray or None
        dL/db, of shape (n_f,) or as ``bias_shape`` says.
    """

    input: Array | None
    weight: Array | None
    bias: Array | None


# ---------------------------------------------------------------------------------------------------------------------
# One pass
# ---------------------------------------------------------------------------------------------------------------------


class Operand(NamedTuple):
    """An array and the shape that kernels know it by.

    Of images it also holds the number of spatial axes, else 0; of a weight that was prepared, what it was prepared to.
    """

    array: Array
    shape: tuple[int, ...]
    ndim: int = 0
    prepared: PreparedWeight | None = None


def run_pass(
    computes: str,
    geometry: ConvGeometry,
    dtype: np.dtype[Any],
    inputs: Sequence[Operand],
    like: Array,
    shape: Sequence[int],
    final_shape: Sequence[int],
    *,
    bias: Array | None = None,
    strides: tuple[int, ...] | None = None,
    form: Form | None = None,
) -> Array:
    """Run the row that "auto" chooses, and hand out a new array.

    ``shape`` is that of the kernel's result, ``final_shape`` that of the caller's, ``like`` an array whose memory layout the
    result takes; ``strides`` say the same more exactly.  The ``bias`` is an array for equation (4), if `sums_bias` says that
    equation (3) computes it, too.  With its ``form`` the call is remembered, if it may be, as a `Bound` that takes all inputs
    and this bias.
    """
    told = (computes, geometry, dtype, inputs, like, shape, final_shape)
    result, bound = _run_and_bind(*told, bias=bias, strides=strides)
    if bound is not None:
        remember(form, bound)
    return result


def sums_bias(
    geometry: ConvGeometry, dtype: np.dtype[Any], inputs: Sequence[Operand], shape: Sequence[int], algorithm: str = "auto",
    out: Array | None = None,
) -> bool:  # fmt: skip
    """Say whether the chosen row of equation (3) reads the gradients once, and computes equation (4), too, as most do."""
    row, _ = row_for("grad_weight", geometry, dtype, inputs, shape, algorithm, out)
    return row.sums(geometry, sum_dtype(dtype).itemsize)


def _run_and_bind(
    computes: str, geometry: ConvGeometry, dtype: np.dtype[Any], inputs: Sequence[Operand], like: Array, shape: Sequence[int],
    final_shape: Sequence[int], algorithm: str = "auto", out: Array | None = None, accumulate: bool = False,
    relu: bool = False, bias: Array | None = None, strides: tuple[int, ...] | None = None,
) -> tuple[Array, Bound | None]:  # fmt: skip
    """Return what was done, too, to do it again with other arrays; None if that had better be checked each time.

    The ``bias`` is an array for equation (4), of a row that sums gradients.
    """
    summed = sum_dtype(dtype)
    row, needed = row_for(computes, geometry, dtype, inputs, shape, algorithm, out)
    like = like if out is None else out
    ndim = geometry.ndim if computes != "grad_bias" and is_channels_last(like, geometry.ndim) else 0
    kept = ndim if row.channels_last else 0
    adds = accumulate and row.adds(geometry, summed.itemsize, kept > 0)
    result = target(computes, out, shape, summed, accumulate and not adds, kept, inputs[0].array)
    adds = adds and np.may_share_memory(result, like)
    arrays = [
        prepared if prepared is not None and row.prepare and prepared.dtype == summed
        else plain(array, known, summed, axes if row.channels_last else 0)
        for array, known, axes, prepared in inputs
    ]  # fmt: skip
    floors = relu and row.floors
    more: tuple[Any, ...] = (0.0,) if floors else (True,) if adds else () if bias is None else (bias,)
    row.run(geometry.volume, *arrays, result, *more)
    if relu and not floors:
        np.maximum(result, 0, out=result)
    final = finish(result, out, final_shape, result_dtype(dtype), accumulate and not adds, ndim)
    if strides is not None and final.strides != strides:  # only those of axes with one element, which lead nowhere
        final = np.lib.stride_tricks.as_strided(final, strides=strides)
    if relu != floors:
        return final, None
    given = [array if prepared is None else prepared for array, _, _, prepared in inputs]
    added = accumulate and not adds
    returned = result.reshape(final_shape) if added else final
    floor = 0.0 if floors else None
    return final, bind(row, geometry.volume, given, arrays, result, returned, floor, adds, added, needed)


def row_for(
    computes: str, geometry: ConvGeometry, dtype: np.dtype[Any], inputs: Sequence[Operand], shape: Sequence[int],
    algorithm: str, out: Array | None,
) -> tuple[Row, int]:  # fmt: skip
    """Choose the row for a pass that there is memory for; return how many bytes it needs, too."""
    summed = sum_dtype(dtype)
    needed = _memory_for(shape if out is None else (0,), inputs, summed)
    if needed >= SMALL:
        require_memory(f"{computes} of shape {tuple(shape)}", needed)  # before a row is asked what it would do
    row = choose(computes, geometry, dtype, algorithm)
    if needed >= SMALL:
        needed += row.scratch(geometry, summed.itemsize)
        require_memory(f"{computes} of shape {tuple(shape)}, with scratch memory,", needed)
    return row, needed


def _memory_for(shape: Sequence[int], inputs: Sequence[Operand], dtype: np.dtype[Any]) -> int:
    """Bytes of a result, and of copies of the inputs that do not lie as kernels want them."""
    size = math.prod(shape)
    for array, _, ndim, _ in inputs:
        if array.dtype != dtype or not (array.flags.c_contiguous or (ndim and is_channels_last(array, ndim))):
            size += array.size
    return size * dtype.itemsize


def shapes_3d(geometry: ConvGeometry) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of x, weight and output with three spatial axes."""
    g = geometry.volume
    return g.input_shape, g.weight_shape, g.output_shape


def bias_geometry(batch: int, filters: int, sizes: Sequence[int]) -> ConvGeometry:
    """Describe a 1x1 convolution with outputs of these sizes: their sums do not depend on where they come from."""
    return conv_geometry((batch, 1, *sizes), (filters, 1) + (1,) * len(sizes))


# ---------------------------------------------------------------------------------------------------------------------
# The functions
# ---------------------------------------------------------------------------------------------------------------------


def conv(
    ndim: int,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    out: Array | None = None,
    relu: bool = False,
    algorithm: str = "auto",
) -> Array:
    """Convolve: equation (1), with the bias, and 0 for results less than that if ``relu`` says so."""
    form = form_of((x, weight, bias, out), (relu,), (ndim, stride, padding, dilation, groups, algorithm))
    if (bound := recall(form)) is not None and (out is None or apart((out,), x, weight, bias)):
        result: Array = bound(flat(x), factors(weight), None if bias is None else flat(bias), out=out)
        return result
    prepared = weight if isinstance(weight, PreparedWeight) else None
    x, weight, bias = as_array("x", x), as_array("weight", weight), _optional("bias", bias)
    dtype = common_dtype(x=x, weight=weight, bias=bias)
    if _flag("relu", relu) and dtype.kind == "c":
        raise TypeError(f"relu is True, the arrays are {dtype}: expected real numbers, which have a sign")
    geometry = geometry_of(x.shape, weight.shape, stride, padding, dilation, groups, ndim)
    final_shape = _final(geometry.output_shape, x.ndim == ndim + 2)
    values = bias_values(bias, geometry.filters, ndim, dtype)
    if out is not None:
        check_out("out", out, final_shape, result_dtype(dtype), _given(x=x, weight=weight, bias=bias))
    x_shape, weight_shape, output_shape = shapes_3d(geometry)
    inputs = [
        Operand(x, x_shape, ndim),
        Operand(weight, weight_shape, ndim, prepared),
        Operand(values, (geometry.filters,)),
    ]
    result, bound = _run_and_bind(
        "output", geometry, dtype, inputs, x, output_shape, final_shape, algorithm, out, relu=relu
    )  # fmt: skip
    if bound is not None:
        remember(form, bound)
    return result


def backward(
    ndim: int,
    grad_output: Any,
    x: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    output_mask: Sequence[bool],
    bias_shape: Sequence[int] | None,
    out: ConvGrads | None,
    accumulate: bool,
    per_sample: bool,
    algorithm: str,
) -> ConvGrads:
    """Compute what ``output_mask`` asks for of equations (2), (3) and (4)."""
    form = None
    if type(output_mask) is tuple and (out is None or (isinstance(out, tuple) and len(out) == 3)):
        flags = (accumulate, per_sample, bias_shape is None, out is None, *output_mask)
        values = (ndim, stride, padding, dilation, groups, algorithm, () if bias_shape is None else bias_shape)
        into = (None, None, None) if out is None else out
        form = form_of((grad_output, x, weight, *into), flags, values)
        if (bound := recall(form)) is not None and (out is None or apart(into, grad_output, x, weight)):
            gradient, (grad_input, grad_weight, grad_bias, together) = flat(grad_output), bound
            dx = None if grad_input is None else grad_input(gradient, factors(weight), out=into[0])
            if together:
                return ConvGrads(dx, *grad_weight.with_another(grad_bias, gradient, flat(x), outs=into[1:]))
            return ConvGrads(
                dx,
                None if grad_weight is None else grad_weight(gradient, flat(x), out=into[1]),
                None if grad_bias is None else grad_bias(gradient, out=into[2]),
            )
    prepared = weight if isinstance(weight, PreparedWeight) else None
    grad_output, x, weight = as_array("grad_output", grad_output), as_array("x", x), as_array("weight", weight)
    dtype = common_dtype(x=x, weight=weight, grad_output=grad_output)
    geometry = geometry_of(x.shape, weight.shape, stride, padding, dilation, groups, ndim)
    batched = x.ndim == ndim + 2
    check_grad_output(grad_output, geometry, batched)
    mask = _output_mask(output_mask)
    accumulate, per_sample = _flag("accumulate", accumulate), _flag("per_sample", per_sample)
    sums = geometry.batch if per_sample else 1
    shapes = (
        _final(geometry.input_shape, batched),
        ((sums,) if per_sample else ()) + geometry.weight_shape,
        _bias_shape(bias_shape, geometry.filters, ndim),
    )
    if accumulate and out is None:
        raise ValueError("accumulate is True, out is None: expected the arrays to add to")
    given = _given(x=x, weight=weight, grad_output=grad_output)
    outs = _check_outs(out, mask, shapes, result_dtype(dtype), given)
    x_shape, weight_shape, output_shape = shapes_3d(geometry)
    gradient = Operand(grad_output, output_shape, ndim)
    passes = (
        ("grad_input", [gradient, Operand(weight, weight_shape, ndim, prepared)], x, x_shape),
        ("grad_weight", [gradient, Operand(x, x_shape, ndim)], weight, (sums, *weight_shape)),
        ("grad_bias", [gradient], grad_output, (geometry.filters,)),
    )

    def run(number: int, bias: Array | None = None) -> tuple[Array | None, Bound | None]:
        if not mask[number]:
            return None, None
        (computes, inputs, like, shape), out = passes[number], outs[number]
        told = (computes, geometry, dtype, inputs, like, shape, shapes[number], algorithm, out, accumulate)
        return _run_and_bind(*told, bias=bias)

    done, summed = [run(0)], sum_dtype(dtype)
    _, inputs, _, shape = passes[1]
    together = mask[1] and mask[2] and sums_bias(geometry, dtype, inputs, shape, algorithm, outs.weight)
    if together:
        bias = target("grad_bias", outs.bias, (geometry.filters,), summed, accumulate)
        grad_weight, bound = run(1, bias)
        grad_bias = finish(bias, outs.bias, shapes[2], result_dtype(dtype), accumulate)
        summed_bias = bias.reshape(shapes[2]) if accumulate else grad_bias
        if not np.may_share_memory(summed_bias, bias):
            bound = None
        done += [
            (grad_weight, bound),
            (grad_bias, bound and Bound("grad_bias", bound.run, summed_bias, accumulate)),
        ]
    else:
        done += [run(1), run(2)]
    grads, bounds = zip(*done, strict=True)
    if all((bound is not None) == wanted for bound, wanted in zip(bounds, mask, strict=True)):
        remember(form, (*bounds, together))
    return ConvGrads(*grads)


def transpose(
    ndim: int,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Array:
    """Convolve transposed: equation (2) of the convolution whose weight this is, plus the bias."""
    form = form_of((x, weight, bias), (), ("transpose", ndim, stride, padding, output_padding, groups, dilation))
    if (bound := recall(form)) is not None:
        result: Array = bound(flat(x), factors(weight))
        return result if bias is None else np.add(result, bias.reshape(-1, *(1,) * ndim), out=result)
    prepared = weight if isinstance(weight, PreparedWeight) else None
    x, weight, bias = as_array("x", x), as_array("weight", weight), _optional("bias", bias)
    dtype = common_dtype(x=x, weight=weight, bias=bias)
    geometry = transposed_geometry(x.shape, weight.shape, stride, padding, output_padding, groups, dilation, ndim=ndim)
    values = bias_values(bias, geometry.channels, ndim, dtype)
    final_shape = _final(geometry.input_shape, x.ndim == ndim + 2)
    x_shape, weight_shape, output_shape = shapes_3d(geometry)
    inputs = [Operand(x, output_shape, ndim), Operand(weight, weight_shape, ndim, prepared)]
    result = run_pass("grad_input", geometry, dtype, inputs, x, x_shape, final_shape, form=form)
    if bias is not None:
        result += values.reshape((geometry.channels,) + (1,) * ndim).astype(result.dtype, copy=False)
    return result


def transpose_backward(
    ndim: int,
    grad_output: Any,
    x: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
    output_mask: Sequence[bool],
    bias_shape: Sequence[int] | None,
) -> ConvGrads:
    """Compute what ``output_mask`` asks for of the transposed convolution's gradients, by equations (1), (3) and (4)."""
    form = None
    if type(output_mask) is tuple:
        values = (ndim, stride, padding, output_padding, groups, dilation, () if bias_shape is None else bias_shape)
        form = form_of(
            (grad_output, x, weight), (bias_shape is None, *output_mask), ("transpose_backward", *values)
        )  # fmt: skip
        if (bounds := recall(form)) is not None:
            inputs = [(flat(grad_output), factors(weight)), (flat(x), flat(grad_output)), (flat(grad_output),)]
            return ConvGrads(*(bound and bound(*arrays) for bound, arrays in zip(bounds, inputs, strict=True)))
    prepared = weight if isinstance(weight, PreparedWeight) else None
    grad_output, x, weight = as_array("grad_output", grad_output), as_array("x", x), as_array("weight", weight)
    dtype = common_dtype(x=x, weight=weight, grad_output=grad_output)
    geometry = transposed_geometry(x.shape, weight.shape, stride, padding, output_padding, groups, dilation, ndim=ndim)
    batched = x.ndim == ndim + 2
    _check_shape(grad_output, _final(geometry.input_shape, batched))
    mask = _output_mask(output_mask)
    shapes = (
        _final(geometry.output_shape, batched), geometry.weight_shape, _bias_shape(bias_shape, geometry.channels, ndim)
    )  # fmt: skip
    x_shape, weight_shape, output_shape = shapes_3d(geometry)
    gradient, no_bias = Operand(grad_output, x_shape, ndim), np.zeros(geometry.filters, dtype)
    # Equation (4) of the transposed convolution, whose output is the geometry's input.
    sums = bias_geometry(geometry.batch, geometry.channels, geometry.input)
    weights = [gradient, Operand(weight, weight_shape, ndim, prepared), Operand(no_bias, no_bias.shape)]
    images = [Operand(x, output_shape, ndim), gradient]
    passes = (
        ("output", geometry, weights, x, output_shape),
        ("grad_weight", geometry, images, weight, (1, *weight_shape)),
        ("grad_bias", sums, [gradient], grad_output, (geometry.channels,)),
    )
    done = [
        _run_and_bind(computes, g, dtype, inputs, like, shape, final_shape) if wanted else (None, None)
        for wanted, (computes, g, inputs, like, shape), final_shape in zip(mask, passes, shapes, strict=True)
    ]
    grads, bounds = zip(*done, strict=True)
    if all((bound is not None) == wanted for bound, wanted in zip(bounds, mask, strict=True)):
        remember(form, bounds)
    return ConvGrads(*grads)


def jvp(
    ndim: int,
    x: Any,
    weight: Any,
    x_tangent: Any,
    weight_tangent: Any,
    bias_tangent: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Array:
    """Add up the tangents of x, weight and bias as equation (1), which is linear in each, takes them to the output."""
    x, weight = as_array("x", x), as_array("weight", weight)
    tangents = [
        _optional("x_tangent", x_tangent), _optional("weight_tangent", weight_tangent), _optional("bias_tangent", bias_tangent)
    ]  # fmt: skip
    dtype = common_dtype(
        x=x, weight=weight, x_tangent=tangents[0], weight_tangent=tangents[1], bias_tangent=tangents[2]
    )
    geometry = geometry_of(x.shape, weight.shape, stride, padding, dilation, groups, ndim)
    for name, tangent, primal in (("x_tangent", tangents[0], x), ("weight_tangent", tangents[1], weight)):
        if tangent is not None and tangent.shape != primal.shape:
            raise ValueError(f"{name} has shape {tangent.shape}: expected {primal.shape}")
    if tangents[2] is not None:
        bias_values(tangents[2], geometry.filters, ndim, dtype, "bias_tangent")
    result: Array | None = None
    for a, b in ((tangents[0], weight), (x, tangents[1])):
        if a is not None and b is not None:
            term = conv(ndim, a, b, tangents[2] if result is None else None, stride, padding, dilation, groups)
            result = term if result is None else np.add(result, term, out=result)
    if result is None:
        require_memory("the tangent", math.prod(geometry.output_shape) * result_dtype(dtype).itemsize)
        result = np.zeros(_final(geometry.output_shape, x.ndim == ndim + 2), result_dtype(dtype))
        if tangents[2] is not None:
            result += tangents[2].reshape((geometry.filters,) + (1,) * ndim).astype(result.dtype, copy=False)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Their arguments
# ---------------------------------------------------------------------------------------------------------------------


def _optional(name: str, value: Any) -> Array | None:
    return None if value is None else as_array(name, value)


def _given(**arrays: Array | None) -> dict[str, Array]:
    return {name: array for name, array in arrays.items() if array is not None}


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}: expected a bool")
    return bool(value)


def _final(shape: tuple[int, ...], batched: bool) -> tuple[int, ...]:
    return shape if batched else shape[1:]


def bias_values(bias: Array | None, filters: int, ndim: int, dtype: np.dtype[Any], name: str = "bias") -> Array:
    """Return the bias as (n_f,), zeros if there is none."""
    if bias is None:
        zeros = empty("a bias", (filters,), dtype)
        zeros.fill(0)
        return zeros
    if bias.shape not in _bias_shapes(filters, ndim):
        expected = " or ".join(map(str, _bias_shapes(filters, ndim)))
        raise ValueError(f"{name} has shape {bias.shape}: expected {expected}")
    return bias


def _bias_shapes(filters: int, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (filters,), (filters,) + (1,) * (ndim + 1)


def _bias_shape(bias_shape: Any, filters: int, ndim: int) -> tuple[int, ...]:
    allowed = _bias_shapes(filters, ndim)
    if bias_shape is None:
        return allowed[0]
    shape = checked_shape("bias_shape", bias_shape)
    if shape not in allowed:
        raise ValueError(f"bias_shape is {bias_shape}: expected {' or '.join(map(str, allowed))}")
    return shape


def check_grad_output(grad_output: Array, geometry: ConvGeometry, batched: bool) -> None:
    """Check the shape of a convolution's dO.

    Raises
    ------
    ValueError
        If it is another than the output's.
    """
    _check_shape(grad_output, _final(geometry.output_shape, batched))


def _check_shape(grad_output: Array, expected: tuple[int, ...]) -> None:
    if grad_output.shape != expected:
        raise ValueError(f"grad_output has shape {grad_output.shape}: expected {expected}")


def _output_mask(mask: Any) -> tuple[bool, bool, bool]:
    if not isinstance(mask, (tuple, list)) or not all(isinstance(m, (bool, np.bool_)) for m in mask):
        raise TypeError(f"output_mask is {mask!r}: expected three bools, for input, weight and bias")
    if len(mask) != 3:
        raise ValueError(f"output_mask has {len(mask)} values: expected three, for input, weight and bias")
    return bool(mask[0]), bool(mask[1]), bool(mask[2])


def _check_outs(
    out: Any, mask: Sequence[bool], shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any], inputs: dict[str, Array]
) -> ConvGrads:
    """Check ``out`` of a backward function: a triple with an array for every gradient that is asked for."""
    if out is None:
        return ConvGrads(None, None, None)
    if not isinstance(out, tuple) or len(out) != 3:
        raise TypeError(
            f"out is a {type(out).__name__}: expected a ConvGrads of arrays, None where output_mask is False"
        )
    arrays = dict(inputs)
    for field, wanted, array, shape in zip(ConvGrads._fields, mask, out, shapes, strict=True):
        if wanted != (array is not None):
            what = "an array" if wanted else "None"
            raise ValueError(f"out.{field} is {'None' if array is None else 'an array'}: output_mask asks for {what}")
        if wanted:
            check_out(f"out.{field}", array, shape, dtype, arrays)
            arrays[f"out.{field}"] = array
    return ConvGrads(*out)
