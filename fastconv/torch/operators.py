"""The three operators under every convolution, and their derivatives.

A convolution is a form that is linear in each of three arrays: X, W and dO.  Leave one of them out, and what is left of the form
is an array of its kind: O from (X, W), dX from (dO, W), dW from (dO, X), equations (1) to (3).  So three operators are closed
under differentiation, in reverse and in forward mode: the derivatives of each are made of the three.

They are there twice, with the same formulas.  ``torch.ops.fastconv.*`` are operators of PyTorch's dispatcher, with kernels for
CPUs and for fake tensors and, by ``register_autograd``, a backward pass: these `torch.compile` traces.  Around each stands a
``torch.autograd.Function``, which also knows forward mode and `torch.func.vmap`; the compiler refuses those.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch.autograd import forward_ad

from ..calls import Form, flat, form_of, recall, remember
from ..geometry import ConvGeometry, conv_geometry
from ..passes import Operand, run_pass, shapes_3d, sums_bias
from .layout import LIKE, Ints, lies_channels_last, memory_format, steps_of

__all__ = ["DTYPES", "FUNCTIONS", "OPERATORS"]

# ---------------------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------------------

OPERANDS = {"output": ("x", "weight"), "grad_input": ("grad_output", "weight"), "grad_weight": ("grad_output", "x")}
"""What each operator is linear in.  Their names are those of `fastconv.plan.PASSES`."""

RESULTS = {"output": "grad_output", "grad_input": "x", "grad_weight": "weight"}
"""What has the shape of each operator's result."""

COMPUTES = {result: computes for computes, result in RESULTS.items()}

DTYPES: dict[Any, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
"""What there are kernels for."""


def _shape_of(computes: str, a: Sequence[int], b: Sequence[int], size: Sequence[int], groups: int) -> Ints:
    """Return the shape of a result from those of the operands, and from its spatial part."""
    if computes == "output":
        return (a[0], b[0], *size)
    if computes == "grad_input":
        return (a[0], b[1] * groups, *size)
    return (a[1], b[1] // groups, *size)


class _Pass(NamedTuple):
    """What `fastconv.passes.run_pass` is told about a pass beside its arrays."""

    geometry: ConvGeometry
    operands: tuple[tuple[Ints, int], tuple[Ints, int]]
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
    known = {"x": (x_shape, g.ndim), "weight": (weight_shape, g.ndim), "grad_output": (output_shape, g.ndim)}
    shape = (1, *weight_shape) if computes == "grad_weight" else known[RESULTS[computes]][0]
    return _Pass(g, (known[operands[0]], known[operands[1]]), shape, result)


APART = "apart"
"""What is remembered of equation (3) where its row does not compute equation (4), too."""


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
    computes: str, a: Any, b: Any, bias: Any, size: Sequence[int], channels_last: bool,
    stride: Sequence[int], sides: Sequence[int], dilation: Sequence[int], groups: int, sums: Any = None,
) -> Any:  # fmt: skip
    """Run one pass on CPU tensors: their memory is NumPy's, and the result's memory is PyTorch's.

    With equation (3), ``sums`` get the gradient of a bias.
    """
    dtype = DTYPES.get(a.dtype)
    if dtype is None or b.dtype != a.dtype or (bias is not None and bias.dtype != a.dtype):
        names = ", ".join(str(t.dtype) for t in (a, b, bias) if t is not None)
        raise TypeError(f"tensors have dtypes {names}: expected torch.float32 or torch.float64 for all")
    _keep_to_threads()
    values = sums if sums is not None else bias if computes == "output" else None
    arrays = [None if t is None else _array(t) for t in (a, b, values)]
    spec = (tuple(size), tuple(stride), tuple(sides), tuple(dilation), groups)
    form = form_of(arrays, (channels_last, sums is not None), (computes, *spec))
    bound, known = recall(form), None
    if bound is None:
        known = _pass(computes, a.shape, b.shape, *spec)
        if sums is not None and not sums_bias(known.geometry, dtype, _operands(arrays, known), known.shape):
            bound = APART
            remember(form, bound)
    if bound is APART:
        torch.sum(a.detach(), _all_but_channels(a), out=sums)
        return _compute(computes, a, b, None, size, channels_last, stride, sides, dilation, groups)
    if known is None:
        result = bound(*(array if array is None else flat(array) for array in arrays))
    else:
        result = _run(computes, dtype, arrays, channels_last, known, form)
    result = torch.from_numpy(result)
    if computes == "grad_input" and bias is not None:
        result += bias.detach().view(-1, *(1,) * len(size))
    return result


def _operands(arrays: Sequence[Any], known: _Pass) -> list[Operand]:
    return [Operand(array, *operand) for array, operand in zip(arrays, known.operands, strict=False)]


def _run(
    computes: str, dtype: np.dtype[Any], arrays: Sequence[Any], channels_last: bool, known: _Pass, form: Form | None
) -> Any:  # fmt: skip
    """Run a pass that has not been run before, or cannot be remembered."""
    operands, values, g = _operands(arrays, known), arrays[2], known.geometry
    if computes == "output":
        operands.append(Operand(np.zeros(g.filters, dtype) if values is None else values, (g.filters,)))
    like, strides = LIKE[g.ndim, channels_last], None
    if 1 in known.final_shape:  # NumPy has no rule for the step of a single element, but whoever reads steps later has
        strides = tuple(step * dtype.itemsize for step in steps_of(known.final_shape, channels_last))
    return run_pass(
        computes, g, dtype, operands, like, known.shape, known.final_shape, strides=strides, form=form,
        bias=values if computes == "grad_weight" else None,
    )  # fmt: skip


def _all_but_channels(tensor: Any) -> Ints:
    return 0, *range(2, tensor.ndim)


def _array(tensor: Any) -> Any:
    return tensor.detach().numpy()


def _empty(
    computes: str, a: Any, b: Any, bias: Any, size: Sequence[int], channels_last: bool, stride: Any,
    sides: Any, dilation: Any, groups: int,
) -> Any:  # fmt: skip
    """Return what `_compute` does, without values."""
    shape = _shape_of(computes, a.shape, b.shape, size, groups)
    layout = memory_format(len(shape), channels_last)
    return torch.empty(shape, dtype=a.dtype, device=a.device, memory_format=layout)


LIBRARY = torch.library.Library("fastconv", "DEF")
OPERATORS: dict[str, Callable[..., Any]] = {}


def _define(computes: str) -> None:
    first, second = OPERANDS[computes]
    LIBRARY.define(
        f"{computes}(Tensor {first}, Tensor {second}, Tensor? bias, SymInt[] size, bool channels_last, "
        "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups) -> Tensor",
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
    if ctx.bias and needed[2] and needed[1] and computes == "output" and apply is FUNCTIONS and _is_final(grad, a):
        grads[2] = torch.empty(grad.shape[1], dtype=grad.dtype)  # in the pass of the weight's gradient
    for place, (name, like) in enumerate(zip(OPERANDS[computes], (a, b), strict=True)):
        if needed[place]:
            target = COMPUTES[name]
            first, second = OPERANDS[target]
            run = apply[target]
            if target == "grad_weight" and grads[2] is not None:
                run = functools.partial(_compute, target, sums=grads[2])
            grads[place] = run(known[first], known[second], None, like.shape[2:], lies_channels_last(like), *spec)
    if ctx.bias and needed[2] and grads[2] is None:
        grads[2] = grad.sum(_all_but_channels(grad))
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


def _is_final(*tensors: Any) -> bool:
    """Say whether nobody will differentiate, transform or see what is computed: it may be done in another way."""
    return (
        not torch._C._are_functorch_transforms_active()
        and not torch.is_grad_enabled()
        and forward_ad._current_level < 0
        and _unobserved(*tensors)
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
