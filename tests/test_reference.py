"""The specification against what is independent of it: NumPy's windows, finite differences, dtypes, adjoints, and itself."""

import numpy as np
import pytest
from cases import CASES, PASSES, data, expected, integers, shapes_3d

import fastconv
from fastconv import reference

SMALL = [case for case in CASES if max(max(case.stride), max(case.dilation)) < 100]


def padded(x, case):
    """Pad the last axes of an array with zeros."""
    return np.pad(x, [(0, 0)] * (x.ndim - case.ndim) + list(case.padding))


def windows(x, case):
    """Return what each output sees, as (N, n_ch, *output, *kernel), by NumPy alone."""
    reach = tuple(d * (f - 1) + 1 for d, f in zip(case.dilation, case.kernel, strict=True))
    seen = np.lib.stride_tricks.sliding_window_view(padded(x, case), reach, tuple(range(-case.ndim, 0)))
    steps = [slice(None, None, s) for s in (*case.stride, *case.dilation)]
    return seen[(..., *steps)]


def by_numpy(case, x, weight, bias, grad_output):
    """All four equations as sums over NumPy's windows, each group apart."""
    if case.batch is None:
        x, grad_output = x[None], grad_output[None]
    spatial, taps = "ijk"[: case.ndim], "xyz"[: case.ndim]
    output, grad_weight = [], []
    grad_x = np.zeros_like(padded(x, case))
    for w, g, image, part in zip(
        np.split(weight, case.groups),
        np.split(grad_output, case.groups, 1),
        np.split(x, case.groups, 1),
        np.split(grad_x, case.groups, 1),  # views
        strict=True,
    ):
        seen = windows(image, case)
        output.append(np.einsum(f"nc{spatial}{taps},fc{taps}->nf{spatial}", seen, w))
        grad_weight.append(np.einsum(f"nc{spatial}{taps},nf{spatial}->fc{taps}", seen, g))
        for tap in np.ndindex(case.kernel):  # scatter: each output gives each tap its share
            at = tuple(
                slice(d * k, d * k + s * (o - 1) + 1, s)
                for d, k, s, o in zip(case.dilation, tap, case.stride, g.shape[2:], strict=True)
            )
            part[(..., *at)] += np.einsum(f"nf{spatial},fc->nc{spatial}", g, w[(..., *tap)])
    inside = tuple(slice(left, left + n) for (left, _), n in zip(case.padding, case.sizes, strict=True))
    return {
        "output": np.concatenate(output, 1) + bias.reshape((-1,) + (1,) * case.ndim),
        "grad_input": grad_x[(..., *inside)],
        "grad_weight": np.concatenate(grad_weight),
        "grad_bias": grad_output.sum(axis=(0, *range(2, 2 + case.ndim))),
    }


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_against_numpy(case):
    wanted = by_numpy(case, *data(case))
    for computes in PASSES:
        result = expected(computes, case)
        np.testing.assert_array_equal(result.reshape(wanted[computes].shape), wanted[computes], err_msg=computes)


# ---------------------------------------------------------------------------------------------------------------------
# The four equations of the source against the general kernels.
# ---------------------------------------------------------------------------------------------------------------------

PLANES = [case for case in SMALL if case.ndim < 3 and len(set(case.stride)) == 1]


def stuffed(weight, dilation):
    """Put zeros between the taps, so that a dilated kernel is a plain, larger one."""
    sizes = tuple(d * (f - 1) + 1 for d, f in zip(dilation, weight.shape[2:], strict=True))
    result = np.zeros(weight.shape[:2] + sizes)
    result[(..., *(slice(None, None, d) for d in dilation))] = weight
    return result


@pytest.mark.parametrize("case", PLANES, ids=str)
def test_general_kernels_are_the_equations(case):
    """On explicitly padded images, weights with zeros between the taps, and each group by itself."""
    x, weight, bias, grad_output = data(case)
    if case.batch is None:
        x, grad_output = x[None], grad_output[None]
    images, filters = padded(x, case), stuffed(weight, case.dilation)
    if case.ndim == 1:  # one row
        images, filters, grad_output = images[:, :, None], filters[:, :, None], grad_output[:, :, None]
    s = case.stride[0]
    (h, w), (f_r, f_c) = images.shape[2:], filters.shape[2:]
    output = np.zeros(grad_output.shape)
    grad_images, grad_filters, grad_bias = np.zeros(images.shape), np.zeros(filters.shape), np.zeros(case.filters)
    for n in range(len(images)):
        for c, f in zip(
            np.split(np.arange(case.channels), case.groups), np.split(np.arange(case.filters), case.groups), strict=True
        ):
            output[n, f] = reference.output(images[n, c], filters[f], bias[f], s)
            grad_images[n, c] = reference.grad_input(grad_output[n, f], filters[f], h, w, s)
            grad_filters[f] += reference.grad_weight(grad_output[n, f], images[n, c], f_r, f_c, s)
            grad_bias[f] += reference.grad_bias(grad_output[n, f])
    rows = (slice(None),) if case.ndim == 1 else ()
    inside = tuple(slice(left, left + n) for (left, _), n in zip(case.padding, case.sizes, strict=True))
    results = {
        "output": output,
        "grad_input": grad_images[(..., *rows, *inside)],
        "grad_weight": grad_filters[(..., *rows, *(slice(None, None, d) for d in case.dilation))],
        "grad_bias": grad_bias,
    }
    for computes, result in results.items():
        wanted = expected(computes, case)
        np.testing.assert_array_equal(result.reshape(wanted.shape), wanted, err_msg=computes)


@pytest.mark.parametrize("s", [1, 2, 3])
@pytest.mark.parametrize(("h", "w", "f_r", "f_c"), [(7, 8, 3, 2), (5, 4, 1, 1), (6, 9, 2, 4), (4, 4, 4, 4)])
def test_the_equations_by_finite_differences(h, w, f_r, f_c, s, rng):
    """The loss is a random weighting of O, so its gradient with respect to O is that weighting."""
    X, W, b = rng.standard_normal((2, h, w)), rng.standard_normal((3, 2, f_r, f_c)), rng.standard_normal(3)
    dO = rng.standard_normal(reference.output(X, W, b, s).shape)

    def loss(X, W, b):
        return np.sum(reference.output(X, W, b, s) * dO)

    gradients = (
        reference.grad_input(dO, W, h, w, s),
        reference.grad_weight(dO, X, f_r, f_c, s),
        reference.grad_bias(dO),
    )
    arrays = [X, W, b]
    for position, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            change = np.zeros(gradient.shape)
            change[index] = 0.5  # the loss is linear in each argument: any step will do
            up, down = list(arrays), list(arrays)
            up[position], down[position] = arrays[position] + change, arrays[position] - change
            assert loss(*up) - loss(*down) == pytest.approx(gradient[index], rel=1e-10, abs=1e-10)


def test_rows_that_no_output_sees_have_gradient_zero(rng):
    dX = reference.grad_input(rng.standard_normal((2, 3, 2)), rng.standard_normal((2, 1, 3, 1)), 8, 6, 2)
    assert (dX[:, 7] == 0).all()
    assert (dX[:, :, 1] == 0).all()  # between the columns that a kernel of one column visits
    assert (dX[:, :7, 0] != 0).all()
    assert not np.signbit(dX[dX == 0]).any()


# ---------------------------------------------------------------------------------------------------------------------
# dtypes
# ---------------------------------------------------------------------------------------------------------------------

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float16", "float32", "float64"]
DTYPES += ["complex64", "complex128"]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, order):
    """Every dtype in both byte orders, through the four equations and through the public functions."""
    case = next(
        case for case in PLANES if case.ndim == 2 and case.batch == 2 and case.groups == 1 and case.stride[0] == 2
    )
    arrays = [np.abs(a) for a in data(case)] if dtype[0] in "bu" else data(case)
    if dtype == "bool":
        arrays = [array % 2 for array in arrays]
    wanted = by_numpy(case, *arrays)
    given = [array.astype(np.dtype(dtype).newbyteorder(order)) for array in arrays]
    x, weight, bias, grad_output = given
    result_dtype = np.int64 if given[0].dtype.kind in "biu" else np.dtype(dtype)
    output = fastconv.conv2d(x, weight, bias, **case.parameters)
    grads = fastconv.conv2d_backward(grad_output, x, weight, **case.parameters)
    for result, computes in zip((output, *grads), PASSES, strict=True):
        assert result.dtype == result_dtype
        assert result.dtype.isnative
        np.testing.assert_array_equal(result, wanted[computes].astype(result_dtype))
    s = 2
    summed = {"f2": np.float32}.get(given[0].dtype.str[1:], result_dtype)
    wanted = reference.output(*(array.real.astype(np.float64) for array in (x[0], weight, bias)), s)
    result = reference.output(x[0], weight, bias, s)
    assert result.dtype == summed
    np.testing.assert_array_equal(result, wanted)
    dO = given[3][0, :, : wanted.shape[1], : wanted.shape[2]]
    dO = np.resize(dO, wanted.shape).astype(given[0].dtype)
    h, w = x.shape[2:]
    plain = [array.real.astype(np.float64) for array in (dO, weight, x[0])]
    for result, wanted in (
        (reference.grad_input(dO, weight, h, w, s), reference.grad_input(plain[0], plain[1], h, w, s)),
        (reference.grad_weight(dO, x[0], *case.kernel, s), reference.grad_weight(plain[0], plain[2], *case.kernel, s)),
        (reference.grad_bias(dO), reference.grad_bias(plain[0])),
    ):
        assert result.dtype == summed
        np.testing.assert_array_equal(result, wanted)


def test_integers_do_not_overflow():
    x, weight = np.full((1, 300, 3, 3), -128, np.int8), np.full((2, 300, 3, 3), -128, np.int8)
    g = np.full((1, 2, 1, 1), 127, np.int8)
    assert (fastconv.conv2d(x, weight) == 128 * 128 * 2700).all()
    grads = fastconv.conv2d_backward(g, x, weight)
    assert (grads.input == -128 * 127 * 2).all()
    assert (grads.weight == -128 * 127).all()
    many = np.full((1, 1, 70000), 2**31 - 1, np.int32)
    assert fastconv.grad.conv1d_bias(many)[0] == 70000 * (2**31 - 1)
    assert reference.output(x[0], weight, np.zeros(2, np.int8))[0, 0, 0] == 128 * 128 * 2700


def test_half_precision_is_summed_in_single():
    """2,048 + 1 + 1 + ... would stay at 2,048 in half precision."""
    x = np.ones((1, 4000), np.float16)
    assert fastconv.conv1d(x, np.ones((1, 1, 4000), np.float16))[0, 0] == 4000
    assert fastconv.grad.conv1d_bias(x)[0] == 4000


def test_complex_is_not_conjugated(rng):
    case = next(case for case in PLANES if case.ndim == 2 and case.batch == 2 and case.groups == 1)
    arrays = [integers(rng, a.shape) + 1j * integers(rng, a.shape) for a in data(case)]
    wanted = by_numpy(case, *arrays)
    x, weight, bias, grad_output = arrays
    np.testing.assert_array_equal(fastconv.conv2d(x, weight, bias, **case.parameters), wanted["output"])
    grads = fastconv.conv2d_backward(grad_output, x, weight, **case.parameters)
    for result, computes in zip(grads, PASSES[1:], strict=True):
        np.testing.assert_array_equal(result, wanted[computes])
    X, W = np.array([[[1j]]]), np.array([[[[1j]]]])
    assert reference.output(X, W, np.zeros(1))[0, 0, 0] == -1
    assert reference.grad_input(X, W, 1, 1)[0, 0, 0] == -1
    assert reference.grad_weight(X, X, 1, 1)[0, 0, 0, 0] == -1


@pytest.mark.parametrize("dtype", ["U3", "O", "M8[s]", "m8[s]", "longdouble", "clongdouble", "S2", [("a", "f4")]])
def test_dtypes_that_cannot_be_added(dtype):
    with pytest.raises(TypeError, match="cannot be convolved"):
        reference.grad_bias(np.zeros((1, 1, 1), dtype))


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in SMALL if case.batch != 0][::3], ids=str)
def test_adjoints(case):
    """<conv(x, w), g> = <x, dX> = <w, dW>, exactly: all are sums of the same integers."""
    x, weight, bias, grad_output = (array.reshape(s) for array, s in zip(data(case), shapes_3d(case), strict=True))
    output = expected("output", case) - bias.reshape(-1, 1, 1, 1)
    product = np.vdot(output, grad_output)
    assert product == np.vdot(x, expected("grad_input", case))
    assert product == np.vdot(weight, expected("grad_weight", case)[0])
    assert np.vdot(bias, grad_output.sum(axis=(0, 2, 3, 4))) == np.vdot(bias, expected("grad_bias", case))
