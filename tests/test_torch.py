"""Under PyTorch: operators by PyTorch's own checks, its samples, its transforms, and what is left to PyTorch or refused."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from numba import config

torch = pytest.importorskip("torch")

from under_torch import COMPILED, OURS, leaf, left  # noqa: E402

import fastconv  # noqa: E402
from fastconv import calls  # noqa: E402
from fastconv import torch as ft  # noqa: E402
from fastconv.torch import functions, operators  # noqa: E402

F = torch.nn.functional

# PyTorch's own code warns of what will be deprecated in it.
pytestmark = [
    pytest.mark.usefixtures("pytorch"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning"),
]


# x, weight, and what follows the bias; the bias has as many numbers as there are outputs.
SMALL = {
    "conv1d": [((2, 4, 7), (6, 2, 3), (2, 1, 1, 2)), ((3, 6), (2, 3, 2), (1, "same", 2, 1))],
    "conv2d": [
        ((2, 2, 5, 4), (3, 2, 3, 2), (1, 0, 1, 1)),
        ((2, 4, 5, 6), (4, 2, 3, 3), ((2, 1), (1, 2), (1, 2), 2)),
        ((2, 3, 4, 4), (3, 1, 3, 3), (1, 1, 1, 3)),
        ((2, 5, 4), (2, 2, 2, 3), (1, "same", 1, 1)),
    ],
    "conv3d": [((1, 2, 3, 4, 3), (2, 1, 2, 3, 2), (1, (0, 1, 1), 1, 2))],
    "conv_transpose1d": [((2, 4, 4), (4, 3, 3), (2, 1, 1, 2, 1)), ((2, 3), (2, 2, 2), (1, 0, 2, 1, 4))],
    "conv_transpose2d": [
        ((2, 2, 3, 4), (2, 3, 3, 2), (1, 0, 0, 1, 1)),
        ((1, 4, 3, 3), (4, 2, 3, 3), ((2, 1), 1, (1, 0), 2, (1, 2))),
        ((4, 3, 2), (4, 1, 2, 2), (3, 0, 2, 4, 1)),
    ],
    "conv_transpose3d": [((1, 2, 2, 3, 2), (2, 2, 2, 2, 1), (2, 0, (1, 0, 0), 1, 1))],
}
CALLS = [(name, *call) for name, calls in SMALL.items() for call in calls]
EACH = pytest.mark.parametrize(("name", "x", "weight", "rest"), CALLS, ids=[f"{c[0]}-{i}" for i, c in enumerate(CALLS)])


def operands(name, x, weight, rest, **options):
    groups = rest[3]
    outputs = weight[1] * groups if "transpose" in name else weight[0]
    last = options.pop("last", False)
    return (
        leaf(*x, last=last and len(x) == len(weight), **options),
        leaf(*weight, last=last, **options),
        leaf(outputs, **options),
    )


@EACH
def test_values_and_gradients_are_those_of_pytorch(name, x, weight, rest):
    tensors = operands(name, x, weight, rest)
    ours, theirs = OURS[name](*tensors, *rest), by_pytorch(name, *tensors, *rest)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    grad = torch.randn_like(theirs)
    for own, other in zip(*(torch.autograd.grad(y, tensors, grad) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-11)


def by_pytorch(name, *arguments):
    with warnings.catch_warnings():  # it says that it copies an image for unequal padding
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
        return getattr(F, name)(*arguments)


# ---------------------------------------------------------------------------------------------------------------------
# By PyTorch's own checks
# ---------------------------------------------------------------------------------------------------------------------


@EACH
def test_gradcheck(name, x, weight, rest):
    """Reverse and forward mode, alone and under vmap, against differences."""
    tensors = operands(name, x, weight, rest)
    torch.autograd.gradcheck(
        lambda *t: OURS[name](*t, *rest),
        tensors,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=config.DISABLE_JIT,
    )


@EACH
def test_gradgradcheck(name, x, weight, rest):
    """Double backward, also forward over reverse."""
    tensors = operands(name, x, weight, rest)
    torch.autograd.gradgradcheck(
        lambda *t: OURS[name](*t, *rest), tensors, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True
    )


OPERATORS = [
    ("output", (2, 4, 5, 6), (6, 2, 3, 3), (3, 6)),
    ("grad_input", (2, 6, 3, 6), (6, 2, 3, 3), (5, 6)),
    ("grad_weight", (2, 6, 3, 6), (2, 4, 5, 6), (3, 3)),
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("computes", "a", "b", "size"), OPERATORS, ids=[o[0] for o in OPERATORS])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_opcheck(ndim, computes, a, b, size, dtype, last):
    """Schema, registration for autograd, fake tensors, and tracing with unknown sizes."""

    def cut(shape, front):
        return (*shape[:front], *((1,) * (ndim - 2)), *shape[front:][max(0, 2 - ndim) :])

    stride, sides, dilation = (2, 1)[-ndim:], (1, 1, 1, 1)[-2 * ndim :], (1, 1)[-ndim:]
    if ndim == 3:
        stride, sides, dilation = (1, *stride), (0, 0, *sides), (1, *dilation)
    tensors = [leaf(*cut(shape, 2), dtype=dtype, last=last and ndim > 1) for shape in (a, b)]
    bias = {"output": leaf(6, dtype=dtype), "grad_input": leaf(4, dtype=dtype)}.get(computes)
    arguments = (*tensors, bias, cut(size, 0), last and ndim > 1, stride, sides, dilation, 2)
    torch.library.opcheck(operators.OPERATORS[computes], arguments)


def samples(name, dtype, requires_grad):
    pytest.importorskip("expecttest", reason="PyTorch's own tests need it")
    from torch.testing._internal.common_methods_invocations import op_db

    op = next(op for op in op_db if op.name == f"nn.functional.{name}")
    return list(op.sample_inputs("cpu", dtype, requires_grad=requires_grad))


def evaluated(function, sample, dtype, change=lambda tensor: tensor):
    """Return a sample's value and gradients and, in double precision, the gradients of these."""

    def changed(value):
        return change(value.detach().to(dtype)).requires_grad_() if isinstance(value, torch.Tensor) else value

    call, named = [changed(v) for v in (sample.input, *sample.args)], {k: changed(v) for k, v in sample.kwargs.items()}
    leaves = [t for t in (*call, *named.values()) if isinstance(t, torch.Tensor)]
    y = function(*call, **named)
    results = [y]
    if y.numel():
        twice = dtype == torch.float64
        results += torch.autograd.grad(y, leaves, torch.ones_like(y), create_graph=twice)
        if twice:
            total = sum((g * g).sum() for g in results[1:])
            results += torch.autograd.grad(total, leaves, materialize_grads=True)
    return [r.detach() for r in results]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", OURS)
def test_samples_of_pytorch(name):
    """PyTorch's list of samples for its own operators: values, gradients and, in double precision, double backward.

    In single precision the error of a sum of n products is at most n + 1 roundings of the sum of their absolute values.
    """
    ours, theirs = OURS[name], getattr(F, name)
    found = samples(name, torch.float64, True)
    assert len(found) >= 5
    for sample in found:
        exact = evaluated(theirs, sample, torch.float64)
        torch.testing.assert_close(evaluated(ours, sample, torch.float64), exact)
        sizes, terms = (evaluated(theirs, sample, torch.float64, change) for change in (torch.abs, torch.ones_like))
        for own, right, size, n in zip(evaluated(ours, sample, torch.float32), exact, sizes, terms, strict=False):
            assert ((own - right).abs() <= (n + 1) * torch.finfo(torch.float32).eps / 2 * size).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_samples_in_other_dtypes(name, dtype):
    for sample in samples(name, dtype, False):
        call = (sample.input, *sample.args)
        own, other = (f(*call, **sample.kwargs) for f in (OURS[name], getattr(F, name)))
        torch.testing.assert_close(own, other, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Transforms
# ---------------------------------------------------------------------------------------------------------------------


def test_torch_func(rng):
    x, weight, bias = (torch.tensor(rng.standard_normal(s)) for s in ((4, 3, 6, 5), (6, 3, 3, 3), (6,)))
    tangents = tuple(torch.tensor(rng.standard_normal(t.shape)) for t in (x, weight, bias))

    def both(transform):
        for_ours, for_theirs = (transform(f) for f in (ft.conv2d, F.conv2d))
        torch.testing.assert_close(for_ours, for_theirs, rtol=1e-10, atol=1e-10)

    def loss(f):
        return lambda *t: (f(*t, padding=1) ** 2).sum()

    each = (0, None, None)
    both(lambda f: torch.func.grad(loss(f), argnums=(0, 1, 2))(x, weight, bias))
    both(lambda f: torch.func.jvp(lambda *t: f(*t, stride=2), (x, weight, bias), tangents))
    both(lambda f: torch.func.vmap(lambda x: f(x, weight, bias))(x))
    both(lambda f: torch.func.vmap(torch.func.grad(loss(f), argnums=1), each)(x, weight, bias))  # per sample
    both(lambda f: torch.func.jacrev(lambda w: f(x[:1], w))(weight))
    both(lambda f: torch.func.jacfwd(lambda w: f(x[:1], w))(weight))
    both(lambda f: torch.func.hessian(lambda b: loss(f)(x[:1], weight, b))(bias))
    weights, biases = torch.stack([weight, -weight, 2 * weight]), torch.stack([bias, bias, -bias])
    both(lambda f: torch.func.vmap(f, (None, 0, 0))(x, weights, biases))
    both(lambda f: torch.func.vmap(f, (None, 1, None))(x, weights.movedim(0, 1), bias))
    both(lambda f: torch.func.vmap(torch.func.vmap(f, (0, None, None)), (None, 0, 0))(x, weights, biases))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_vmap_over_everything_with_groups(groups):
    x, weight, bias = torch.randn(3, 2, 4, 6), torch.randn(3, 8, 4 // groups, 3), torch.randn(3, 8)
    for axes in ((0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0), (0, None, 0)):
        tensors = [t if axis == 0 else t[0] for t, axis in zip((x, weight, bias), axes, strict=True)]
        ours, theirs = (
            torch.func.vmap(lambda *t, f=f: f(*t, groups=groups), axes)(*tensors) for f in (ft.conv1d, F.conv1d)
        )
        torch.testing.assert_close(ours, theirs)


def test_forward_mode_without_gradients():
    forward_ad = torch.autograd.forward_ad
    x, weight, tangent = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(1, 2, 5, 5)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.unpack_dual(ft.conv2d(forward_ad.make_dual(x, tangent), weight))
        torch.testing.assert_close(dual.tangent, F.conv2d(tangent, weight))


def test_what_is_not_needed_is_not_computed(computed):
    x, weight = torch.randn(1, 2, 5, 5), leaf(3, 2, 3, 3, dtype=torch.float32)
    ft.conv2d(x, weight).sum().backward()
    assert computed == ["output", "grad_weight"]
    computed.clear()
    ft.conv2d(x.requires_grad_(), weight.detach()).sum().backward()
    assert computed == ["output", "grad_input"]


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def test_no_copies(monkeypatch):
    """Kernels see the tensors' memory, and what they return is the tensor's, whether a call is known or not."""
    seen = []
    run_pass, known = operators.run_pass, calls.Bound.__call__

    def checked(computes, geometry, dtype, inputs, *rest, **options):
        result = run_pass(computes, geometry, dtype, inputs, *rest, **options)
        seen.append(([operand.array.ctypes.data for operand in inputs], result.ctypes.data))
        return result

    def remembered(self, *inputs):
        result = known(self, *inputs)
        seen.append(([array.ctypes.data for array in inputs if array is not None], result.ctypes.data))
        return result

    x, weight = leaf(2, 3, 8, 8, dtype=torch.float32, last=True), leaf(4, 3, 3, 3, dtype=torch.float32)
    monkeypatch.setattr(calls, "_calls", {})
    monkeypatch.setattr(operators, "run_pass", checked)
    monkeypatch.setattr(calls.Bound, "__call__", remembered)
    for _ in range(2):
        x.grad = weight.grad = None
        y = ft.conv2d(x, weight)
        y.backward(grad := torch.randn_like(y))
        assert [given[:2] for given, _ in seen] == [
            [x.data_ptr(), weight.data_ptr()],
            [grad.data_ptr(), weight.data_ptr()],
            [grad.data_ptr(), x.data_ptr()],
        ]
        assert [made for _, made in seen] == [y.data_ptr(), x.grad.data_ptr(), weight.grad.data_ptr()]
        seen.clear()
        monkeypatch.setattr(operators, "run_pass", None)


@pytest.mark.parametrize("groups", [1, 8])
def test_known_calls_give_gradients_of_a_bias(groups, monkeypatch):
    """Whether the row of the weight's computes them, too, or not: nothing is checked anew."""
    monkeypatch.setattr(calls, "_calls", {})
    leaves = leaf(2, 8, 6, 5), leaf(8, 8 // groups, 3, 3), leaf(8)
    results = []
    for _ in range(3):
        y = ft.conv2d(*leaves, groups=groups)
        results.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
        monkeypatch.setattr(operators, "run_pass", None)
    for found in results[1:]:
        for a, b in zip(results[0], found, strict=True):
            assert torch.equal(a, b)
    torch.testing.assert_close(results[0][3], torch.full((8,), 24.0, dtype=results[0][3].dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (1, 1, 3, 3), (1, 2, 3, 3), (3, 1, 4, 4)])
def test_known_calls_give_the_same(shape, last, dtype, monkeypatch):
    """Values and strides, also of axes with one element, which NumPy has no rule for."""
    monkeypatch.setattr(calls, "_calls", {})
    for bias in (None, torch.ones(4, dtype=dtype)):
        given = leaf(*shape, dtype=dtype, last=last), leaf(4, shape[1], 3, 3, dtype=dtype, last=last)
        transposed = given[0], leaf(shape[1], 4, 3, 3, dtype=dtype)
        for function, leaves in ((ft.conv2d, given), (ft.conv_transpose2d, transposed)):
            leaves = (*leaves, *([] if bias is None else [bias.requires_grad_()]))
            theirs, results = getattr(F, function.__name__)(*leaves), []
            for _ in range(2):
                y = function(*leaves)
                assert y.stride() == theirs.stride()
                results.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
            assert calls._calls
            for a, b in zip(*results, strict=True):
                assert torch.equal(a, b)
                assert a.stride() == b.stride()
                assert a.data_ptr() != b.data_ptr()
            torch.testing.assert_close(results[1][0], theirs)


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("last", [False, True])
def test_gradients_of_a_bias_come_with_those_of_the_weight(last, groups, monkeypatch):
    """In one pass where nothing else looks at the backward pass, and where the row for the weight can."""
    x, weight, bias = (torch.randint(-3, 4, shape).float() for shape in ((5, 8, 9, 7), (8, 8 // groups, 3, 3), (8,)))
    x = x.to(memory_format=torch.channels_last) if last else x
    grad = torch.randint(-3, 4, (5, 8, 5, 4)).float()
    given = []

    def spy(computes, *rest, **options):
        given.append((computes, options.get("bias") is not None))
        return run_pass(computes, *rest, **options)

    run_pass = operators.run_pass
    monkeypatch.setattr(operators, "run_pass", spy)
    for create_graph in (False, True):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = ft.conv2d(*leaves, stride=2, padding=1, groups=groups)
        given.clear()
        calls._calls.clear()
        found = torch.autograd.grad(y, leaves, grad, create_graph=create_graph)
        assert given == [("grad_input", False), ("grad_weight", groups == 1 and not create_graph)]
        wanted = torch.autograd.grad(F.conv2d(*leaves, stride=2, padding=1, groups=groups), leaves, grad)
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other)
    given.clear()
    y = ft.conv2d(x, weight, leaves[2], stride=2, padding=1, groups=groups)
    torch.testing.assert_close(torch.autograd.grad(y, leaves[2], grad)[0], wanted[2], rtol=0, atol=0)
    assert given == [("output", False)]


LAYOUTS = [
    ((2, 3, 6, 5), (4, 3, 3, 3), False, False), ((2, 3, 6, 5), (4, 3, 3, 3), True, False),
    ((2, 3, 6, 5), (4, 3, 3, 3), False, True), ((2, 3, 6, 5), (4, 3, 3, 3), True, True),
    ((2, 8, 3, 3), (4, 8, 3, 3), True, False), ((2, 8, 1, 1), (4, 8, 1, 1), True, False),
    ((1, 3, 6, 5), (1, 3, 3, 3), True, True), ((2, 3, 4, 6, 5), (4, 3, 3, 3, 3), True, False),
    ((3, 6, 5), (4, 3, 3, 3), False, False), ((2, 3, 6), (4, 3, 3), False, False),
]  # fmt: skip


@pytest.mark.parametrize(("x", "weight", "x_last", "weight_last"), LAYOUTS)
def test_strides_are_those_of_pytorch(x, weight, x_last, weight_last):
    """Of the output and of all gradients; and fake tensors have those of real ones."""
    name = f"conv{len(weight) - 2}d"
    tensors = (leaf(*x, dtype=torch.float32, last=x_last), leaf(*weight, dtype=torch.float32, last=weight_last))
    y, theirs = OURS[name](*tensors), getattr(F, name)(*tensors)
    assert y.stride() == theirs.stride()
    y.backward(torch.randn_like(y))
    assert [t.grad.stride() for t in tensors] == [t.stride() for t in tensors]
    with torch._subclasses.FakeTensorMode() as mode:
        fake = OURS[name](*map(mode.from_tensor, tensors))
    assert (fake.shape, fake.stride()) == (y.shape, y.stride())


def test_results_outlive_what_they_came_from():
    x = torch.ones(64, 8, 32, 32)
    kept = [ft.conv2d(x, torch.full((8, 8, 1, 1), float(i))) for i in range(4)]  # large enough for the pool of memory
    for i, y in enumerate(kept):
        assert (y == 8 * i).all()


# ---------------------------------------------------------------------------------------------------------------------
# What has no kernel here, and what is wrong
# ---------------------------------------------------------------------------------------------------------------------


def test_other_dtypes_are_left_to_pytorch():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    for dtype in (torch.bfloat16, torch.complex64):
        call = x.to(dtype), weight.to(dtype)
        y = left("conv2d", f"there is no kernel for {dtype}", lambda call=call: ft.conv2d(*call))
        torch.testing.assert_close(y, F.conv2d(*call))


def test_other_tensors_are_left_to_pytorch():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 3, 3, 3)
    y = left("conv_transpose2d", "the device meta", lambda: ft.conv_transpose2d(x.to("meta"), weight.to("meta")))
    assert y.shape == (1, 3, 7, 7)
    with pytest.warns(UserWarning, match="the layout torch.sparse_coo"), pytest.raises(RuntimeError):
        ft.conv2d(x.to_sparse(), weight)
    assert left("conv2d", "more than the batch is empty", lambda: ft.conv2d(x[:, :0], weight[:, :0])).numel() == 0
    assert ft.conv2d(x[:0], weight.movedim(0, 1)).shape == (0, 3, 3, 3)

    class Mine(torch.Tensor):
        """A tensor that keeps its class."""

    mine = left("conv2d", "a Mine has rules of its own", lambda: ft.conv2d(x.as_subclass(Mine), weight.movedim(0, 1)))
    assert type(mine) is Mine


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantised_weights_are_left_to_pytorch():
    quantised = torch.quantize_per_tensor(torch.ones(3, 2, 3, 3), 0.1, 0, torch.qint8)
    assert "there is no kernel for torch.qint8" in functions.objection(
        x=torch.ones(1, 2, 5, 5), weight=quantised, bias=None
    )


WRONG = [
    ("conv2d", ((2, 3, 5, 5), (4, 2, 3, 3)), {}, r"x has 3 channels: weight of shape \(4, 2, 3, 3\) expects 2"),
    ("conv2d", ((2, 3), (4, 3, 3, 3)), {}, r"x has shape \(2, 3\): expected 3 or 4 axes"),
    ("conv2d", ((2, 3, 5, 5), (4, 3, 3)), {}, r"weight has shape \(4, 3, 3\): expected 4 axes"),
    ("conv2d", ((2, 3, 5, 5), (4, 3, 3, 3), (3,)), {}, r"bias has shape \(3,\): expected \(4,\)"),
    ("conv2d", ((2, 3, 5, 5), (4, 3, 7, 7)), {}, r"x has shape \(2, 3, 5, 5\): .* smaller than the kernel \(7, 7\)"),
    ("conv2d", ((2, 3, 5, 5), (4, 3, 3, 3)), {"stride": 0}, "stride is 0"),
    ("conv2d", ((2, 3, 5, 5), (4, 3, 3, 3)), {"groups": 3}, "groups is 3: expected a divisor of 4"),
    ("conv2d", ((2, 3, 5, 5), (4, 3, 3, 3)), {"padding": "full"}, "padding is 'full': expected"),
    (
        "conv_transpose2d",
        ((2, 4, 5, 5), (4, 3, 3, 3)),
        {"output_padding": 1},
        "output_padding is 1: expected less than",
    ),
    (
        "conv_transpose2d",
        ((2, 3, 5, 5), (4, 3, 3, 3)),
        {},
        r"x has 3 channels: weight of shape \(4, 3, 3, 3\) expects 4",
    ),
    ("conv_transpose2d", ((2, 4, 1, 1), (4, 3, 1, 1)), {"padding": 3}, "padding is 3: it leaves an output of size"),
]


@pytest.mark.parametrize(("name", "shapes", "parameters", "text"), WRONG)
def test_wrong_shapes_and_parameters(name, shapes, parameters, text):
    with pytest.raises(ValueError, match=text):
        OURS[name](*(torch.ones(shape) for shape in shapes), **parameters)


def test_wrong_types():
    x, weight = torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3)
    for call, text in (
        (lambda: ft.conv2d(x.numpy(), weight), "x is a ndarray: expected a torch.Tensor"),
        (lambda: ft.conv2d(x, None), "weight is a NoneType: expected a torch.Tensor"),
        (lambda: ft.conv2d(x, weight.double()), "tensors have dtypes torch.float32, torch.float64: expected"),
        (lambda: ft.conv2d(x, weight, stride=1.5), "stride is 1.5: expected an int or one int per axis"),
        (lambda: ft.conv2d(x, weight, groups=True), "groups is True: expected an int"),
        (lambda: ft.conv_transpose2d(x, weight.movedim(0, 1), padding="same"), "padding is 'same': expected an int"),
        (lambda: ft.convert(x), "model is a Tensor: expected a torch.nn.Module"),
    ):
        with pytest.raises(TypeError, match=text):
            call()


def test_wrong_calls_of_operators_read_nothing():
    """Whoever calls them past the functions meets the same checks."""
    x, weight = torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3)
    spec = ([1, 1], [0, 0, 0, 0], [1, 1])
    for size, groups in (([4, 3], 1), ([3, 3], 2), ([3, 3, 3], 1), ([0, 3], 1)):
        with pytest.raises(ValueError, match="expected"):
            torch.ops.fastconv.output(x, weight, None, size, False, *spec, groups)


@COMPILED
def test_threads_are_those_of_pytorch():
    """The kernels keep to PyTorch's number of threads."""
    import numba

    x, weight = torch.randn(8, 16, 32, 32), torch.randn(16, 16, 3, 3)
    wanted = ft.conv2d(x, weight)
    for count in (1, torch.get_num_threads()):
        torch.set_num_threads(count)
        assert torch.equal(ft.conv2d(x, weight), wanted)
        assert numba.get_num_threads() == min(count, config.NUMBA_NUM_THREADS)


@COMPILED
def test_the_number_of_threads_survives_the_first_call():
    """Numba starts its threads then, and would set PyTorch's number to its own."""
    program = """if True:
        import torch
        torch.set_num_threads(1)
        from fastconv.torch import conv2d
        conv2d(torch.ones(8, 16, 32, 32), torch.ones(16, 16, 3, 3))
        import numba
        print(torch.get_num_threads(), numba.get_num_threads())
    """
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["1", "1"]


def test_whoever_watches_sees_the_operators():
    """Profilers, tracers and modes, and tensors that PyTorch has to prepare first."""
    x, weight = leaf(1, 2, 5, 5, dtype=torch.float32), leaf(3, 2, 3, 3, dtype=torch.float32)
    with torch.autograd.profiler.profile() as profile:
        ft.conv2d(x, weight).sum().backward()
    names = {event.name for event in profile.function_events}
    assert {"fastconv::output", "fastconv::grad_input", "fastconv::grad_weight"} <= names
    from torch.fx.experimental.proxy_tensor import make_fx

    x, weight, other = x.detach(), weight.detach(), torch.randn(1, 2, 5, 5)
    assert "fastconv.output" in make_fx(lambda x: ft.conv2d(x, weight))(x).code
    with pytest.warns(UserWarning, match="conv2d is left to PyTorch: torch.jit.trace cannot follow"):
        traced = torch.jit.trace(lambda x: ft.conv2d(x, weight), x)
    torch.testing.assert_close(traced(other), ft.conv2d(other, weight))
    negative = torch.randn(1, 2, 5, 5, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(ft.conv2d(negative, weight), F.conv2d(negative, weight))


def test_precision_and_plan_are_the_librarys(monkeypatch):
    """A call goes through the plan's table: what computes it is what `fastconv.explain` says."""
    chosen = []
    from fastconv import passes

    choose = passes.choose
    monkeypatch.setattr(passes, "choose", lambda *call: chosen.append(choose(*call)) or chosen[-1])
    x, weight = leaf(2, 16, 12, 12, dtype=torch.float32), leaf(16, 16, 3, 3, dtype=torch.float32)
    ft.conv2d(x, weight).sum().backward()
    plan = fastconv.explain(x.shape, weight.shape)
    assert [row.algorithm for row in chosen] == [getattr(plan, row.computes).algorithm for row in chosen]
    assert {row.computes for row in chosen} == {"output", "grad_input", "grad_weight"}
    np.testing.assert_array_equal(ft.conv2d(x, weight).detach(), fastconv.conv2d(x.detach(), weight.detach()))
