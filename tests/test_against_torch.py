"""The same calls in PyTorch: names, order and meaning of arguments, values, and errors at most twice as large."""

import warnings

import numpy as np
import pytest
from cases import CASES, simple
from numba import config

import fastconv
from fastconv import grad, plan

torch = pytest.importorskip("torch")
F = torch.nn.functional

ALGORITHMS = ("auto", *dict.fromkeys(row.algorithm for row in plan.TABLE))
# PyTorch knows neither unequal padding (without a layer of its own), nor empty outputs of every kind.
SYMMETRIC = [
    case
    for case in CASES
    if all(left == right for left, right in case.padding) and case.batch != 0 and max(case.stride + case.dilation) < 100
]


def of_torch(case):
    return tuple(left for left, _ in case.padding)


def numbers(rng, case, dtype=np.float64):
    shapes = (case.x_shape, case.weight_shape, (case.filters,), case.output_shape)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def by_torch(case, x, weight, bias, grad_output, dtype=None):
    x, weight, bias, grad_output = (torch.tensor(a, dtype=dtype) for a in (x, weight, bias, grad_output))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    # By position: the order of the arguments is part of what is compared.
    output = getattr(F, f"conv{case.ndim}d")(x, weight, bias, case.stride, of_torch(case), case.dilation, case.groups)
    return [t.detach().numpy() for t in (output, *torch.autograd.grad(output, leaves, grad_output))]


def by_fastconv(case, x, weight, bias, grad_output, **keywords):
    parameters = (case.stride, of_torch(case), case.dilation, case.groups)
    output = getattr(fastconv, f"conv{case.ndim}d")(x, weight, bias, *parameters, **keywords)
    return [output, *getattr(fastconv, f"conv{case.ndim}d_backward")(grad_output, x, weight, *parameters, **keywords)]


@pytest.mark.parametrize("case", SYMMETRIC[::2], ids=str)
def test_convolution(case, rng):
    arrays = numbers(rng, case)
    for result, wanted in zip(by_fastconv(case, *arrays), by_torch(case, *arrays), strict=True):
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gradients_one_by_one(ndim, rng):
    case = simple(ndim, channels=4, filters=6, size=8, stride=2, padding=1, groups=2)
    x, weight, _, g = numbers(rng, case)
    for what, arguments in (("input", (x.shape, weight, g)), ("weight", (x, weight.shape, g))):
        tensors = (torch.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments)
        wanted = getattr(torch.nn.grad, f"conv{ndim}d_{what}")(*tensors, 2, 1, 1, 2)
        result = getattr(grad, f"conv{ndim}d_{what}")(*arguments, 2, 1, 1, 2)
        np.testing.assert_allclose(result, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [2, None])
@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "groups", "dilation"),
    [(1, 0, 0, 1, 1), (2, 1, 1, 2, 1), (3, 2, 2, 4, 2), (1, 1, 1, 1, 3), (2, 0, 2, 1, 4)],
)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_transposed(ndim, stride, padding, output_padding, groups, dilation, batch, rng):
    lead = () if batch is None else (batch,)
    x, weight = rng.standard_normal((*lead, 4) + (3,) * ndim), rng.standard_normal((4, 2) + (3,) * ndim)
    bias = rng.standard_normal(2 * groups)
    arguments = (stride, padding, output_padding, groups, dilation)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    wanted = getattr(F, f"conv_transpose{ndim}d")(*leaves, *arguments)
    result = getattr(fastconv, f"conv_transpose{ndim}d")(x, weight, bias, *arguments)
    np.testing.assert_allclose(result, wanted.detach(), rtol=1e-11, atol=1e-11)
    g = rng.standard_normal(result.shape)
    grads = getattr(fastconv, f"conv_transpose{ndim}d_backward")(g, x, weight, *arguments)
    for ours, theirs in zip(grads, torch.autograd.grad(wanted, leaves, torch.tensor(g)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_padding(kernel, dilation, rng):
    x, weight = rng.standard_normal((2, 3, 14, 15)), rng.standard_normal((2, 3, kernel, 3))
    tensors = torch.tensor(x), torch.tensor(weight)
    for padding in ("same", "valid"):
        with warnings.catch_warnings():  # it warns once that it copies the image for an odd padding
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
            wanted = F.conv2d(*tensors, padding=padding, dilation=dilation)
        result = fastconv.conv2d(x, weight, padding=padding, dilation=dilation)
        np.testing.assert_allclose(result, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_pad_modes(ndim, mode, rng):
    x = rng.standard_normal((2, 3, *(4, 5, 6)[:ndim]))
    pairs = ((1, 2), (3, 0), (2, 1))[:ndim]
    flat = [p for pair in reversed(pairs) for p in pair]  # PyTorch begins with the last axis
    leaf = torch.tensor(x, requires_grad=True)
    wanted = F.pad(leaf, flat, "constant" if mode == "zeros" else mode)
    result = fastconv.pad(x, pairs, mode)
    np.testing.assert_array_equal(result, wanted.detach())
    g = rng.standard_normal(result.shape)
    theirs = torch.autograd.grad(wanted, leaf, torch.tensor(g))[0]
    np.testing.assert_allclose(fastconv.pad_backward(g, x.shape, pairs, mode), theirs, rtol=1e-13, atol=1e-13)


def test_tensors_are_arrays(rng):
    """CPU tensors are taken as they are; one that takes part in differentiation is refused with the reason."""
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    result = fastconv.conv2d(x, weight)
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, fastconv.conv2d(x.numpy(), weight.numpy()))
    last = x.contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(fastconv.conv2d(last, weight), result, rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match=r"weight .* takes no part in automatic differentiation"):
        fastconv.conv2d(x, weight.requires_grad_())
    with pytest.raises((TypeError, ValueError), match="x "):
        fastconv.conv2d(x.to_sparse(), weight.detach())
    with pytest.raises(TypeError, match="x "):
        fastconv.conv2d(x.bfloat16(), weight.detach())


LARGE = [
    simple(2, batch=2, channels=64, filters=64, size=28, padding=1),
    simple(2, batch=4, channels=3, filters=32, size=63, kernel=7, stride=2, padding=3),
    simple(2, batch=2, channels=256, filters=64, size=14, kernel=1),
    simple(2, batch=1, channels=128, filters=128, size=13, padding=1, stride=2),
    simple(2, batch=2, channels=48, filters=48, size=37, padding=1, groups=48),
    simple(2, batch=16, channels=32, filters=32, size=28, kernel=7, padding=3, groups=32),
    simple(2, batch=4, channels=64, filters=64, size=28, padding=1, groups=8),
    simple(2, batch=2, channels=96, filters=24, size=24, kernel=1),
    simple(2, batch=2, channels=32, filters=64, size=17, dilation=2, padding=2, groups=4),
    simple(1, batch=4, channels=32, filters=48, size=300, kernel=9, padding=4),
    simple(3, batch=1, channels=16, filters=24, size=(9, 14, 13), padding=1),
]
LARGE_GROUPS = [simple(2, batch=4, channels=32, filters=32, size=28, padding=1, groups=8)]
"""Cases for dW only: the largest error of dX, 36 terms one by one, is about twice PyTorch's, a little more with AVX2."""


def errors(results, exact):
    """Return the largest and the normwise error, each relative to the largest and the norm of what is right."""
    return [
        (np.abs(r - e).max() / np.abs(e).max(), np.linalg.norm(r - e) / np.linalg.norm(e))
        for r, e in zip(results, exact, strict=True)
    ]


@pytest.mark.skipif(config.DISABLE_JIT, reason="too large for Python's loops")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", LARGE + LARGE_GROUPS, ids=str)
def test_single_precision_is_as_accurate(case, algorithm, rng):
    """Against float64; "at most twice PyTorch's" and not below one rounding of the result itself; or what a row declares."""
    fastconv.set_precision("highest")
    if algorithm == "reference":
        pytest.skip("its plain sums are the specification, not the most accurate order")
    rows = [row for row in plan.TABLE if row.algorithm == algorithm]
    if any(row.objection(case.geometry, np.dtype("float32")) for row in rows):
        pytest.skip("it does not take this case")
    arrays = numbers(rng, case, np.float32)
    exact = by_torch(case, *arrays, dtype=torch.float64)
    for right, other in zip(exact, by_fastconv(case, *(a.astype(np.float64) for a in arrays)), strict=True):
        np.testing.assert_allclose(other, right, rtol=1e-9, atol=1e-10)
    ours, theirs = (
        errors(f(case, *arrays), exact) for f in (lambda *a: by_fastconv(*a, algorithm=algorithm), by_torch)
    )
    rounding = np.finfo(np.float32).eps / 2
    declared = dict.fromkeys(plan.PASSES, 0.0) | {row.computes: row.largest_error(np.dtype(np.float32)) for row in rows}
    for name, own, other in zip(("output", "grad_input", "grad_weight", "grad_bias"), ours, theirs, strict=True):
        if case in LARGE_GROUPS and name != "grad_weight":
            continue
        for kind, a, b in zip(("largest", "normwise"), own, other, strict=True):
            assert a <= max(2 * b, 2 * rounding, declared[name]), f"{name}: {kind} error {a:.2e}, PyTorch's {b:.2e}"
