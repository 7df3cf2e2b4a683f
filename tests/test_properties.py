"""Whatever the shape, the parameters and the layout: equal to the reference on integers, and adjoint to each other."""

import numpy as np
from cases import Case, integers
from hypothesis import assume, given, note
from hypothesis import strategies as st
from test_rows import ALGORITHMS, LAYOUTS, check_public

import fastconv
from fastconv import grad, plan


@st.composite
def convolutions(draw, most=9):
    ndim = draw(st.integers(1, 3))
    most = {1: 3 * most, 2: most, 3: most // 2}[ndim]

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    groups = draw(st.sampled_from((1, 1, 2, 3)))
    kernel, dilation = each(1, 4), each(1, 3)
    padding = tuple(zip(each(0, 4), each(0, 4), strict=True))
    reach = (d * (f - 1) + 1 - sum(p) for f, d, p in zip(kernel, dilation, padding, strict=True))
    sizes = tuple(max(1, least) + draw(st.integers(0, most)) for least in reach)
    channels, filters = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 5))
    batch = draw(st.sampled_from((None, 0, 1, 1, 2, 3)))
    return Case(batch, channels, filters, sizes, kernel, each(1, 4), padding, dilation, groups)


@given(
    case=convolutions(),
    dtype=st.sampled_from(("float32", "float64")),
    algorithm=st.sampled_from(ALGORITHMS),
    layouts=st.lists(st.sampled_from(tuple(LAYOUTS)), min_size=4, max_size=4),
)
def test_equal_to_the_reference(case, dtype, algorithm, layouts):
    check_public(case, dtype, algorithm, layouts)


@given(case=convolutions(), seed=st.integers(0, 99))
def test_adjoint(case, seed):
    """<conv(x, w), g> = <x, dX> = <w, dW>, and <b, db> beside it, for real numbers."""
    assume(case.batch != 0)
    rng = np.random.default_rng(seed)
    x, weight, g = (rng.standard_normal(shape) for shape in (case.x_shape, case.weight_shape, case.output_shape))
    grads = getattr(fastconv, f"conv{case.ndim}d_backward")(g, x, weight, **case.parameters)
    output = getattr(fastconv, f"conv{case.ndim}d")(x, weight, **case.parameters)
    product, size = np.vdot(output, g), np.vdot(np.abs(output), np.abs(g)) + 1e-300
    note(f"{product} {np.vdot(x, grads.input)} {np.vdot(weight, grads.weight)}")
    scale = (
        size + np.linalg.norm(x) * np.linalg.norm(grads.input) + np.linalg.norm(weight) * np.linalg.norm(grads.weight)
    )
    for other in (np.vdot(x, grads.input), np.vdot(weight, grads.weight)):
        assert abs(product - other) <= 1e-12 * scale
    axes = tuple(axis for axis in range(g.ndim) if axis != g.ndim - 1 - case.ndim)
    np.testing.assert_allclose(grads.bias, g.sum(axis=axes), rtol=1e-11, atol=1e-11)


@given(case=convolutions(most=5))
def test_the_ways_to_a_gradient_agree(case):
    """grad.*, the transposed convolution, per-sample gradients and tangents say what the backward pass says."""
    rng = np.random.default_rng(case.seed)
    fastconv.set_precision("highest")
    x, weight, g = (integers(rng, shape) for shape in (case.x_shape, case.weight_shape, case.output_shape))
    n, parameters = case.ndim, case.parameters
    backward = getattr(fastconv, f"conv{n}d_backward")
    grads = backward(g, x, weight, **parameters)
    np.testing.assert_array_equal(getattr(grad, f"conv{n}d_input")(x.shape, weight, g, **parameters), grads.input)
    np.testing.assert_array_equal(getattr(grad, f"conv{n}d_weight")(x, weight.shape, g, **parameters), grads.weight)
    np.testing.assert_array_equal(getattr(grad, f"conv{n}d_bias")(g), grads.bias)
    apart = backward(g, x, weight, **parameters, per_sample=True, output_mask=(False, True, False))
    np.testing.assert_array_equal(apart.weight.sum(axis=0), grads.weight)
    tangents = integers(rng, x.shape), integers(rng, weight.shape)
    tangent = getattr(fastconv, f"conv{n}d_jvp")(x, weight, *tangents, **parameters)
    assert np.vdot(tangent, g) == np.vdot(tangents[0], grads.input) + np.vdot(tangents[1], grads.weight)
    geometry = case.geometry
    extra = tuple(
        size - ((o - 1) * s - left - right + d * (f - 1) + 1)
        for size, o, s, d, f, (left, right) in zip(
            geometry.input, geometry.output, case.stride, case.dilation, case.kernel, case.padding, strict=True
        )
    )
    transposed = getattr(fastconv, f"conv_transpose{n}d")(
        g, weight, None, case.stride, case.padding, extra, case.groups, case.dilation
    )
    np.testing.assert_array_equal(transposed, grads.input)


@given(case=convolutions(most=5), seed=st.integers(0, 9))
def test_padding_is_a_layer_of_its_own(case, seed):
    """Convolving with padding is padding and then convolving; explain counts what no output sees."""
    rng = np.random.default_rng(seed)
    fastconv.set_precision("highest")
    x, weight, g = (integers(rng, shape) for shape in (case.x_shape, case.weight_shape, case.output_shape))
    forward, backward = (getattr(fastconv, f"conv{case.ndim}d{what}") for what in ("", "_backward"))
    rest = {**case.parameters, "padding": 0}
    padded = fastconv.pad(x, case.padding)
    np.testing.assert_array_equal(forward(padded, weight, **rest), forward(x, weight, **case.parameters))
    grads, inner = backward(g, x, weight, **case.parameters), backward(g, padded, weight, **rest)
    np.testing.assert_array_equal(fastconv.pad_backward(inner.input, x.shape, case.padding), grads.input)
    np.testing.assert_array_equal(inner.weight, grads.weight)
    unseen = plan.explain(case.x_shape, case.weight_shape, **case.parameters).unseen
    for axis, count in enumerate(unseen, x.ndim - case.ndim):
        assert not np.take(grads.input, range(x.shape[axis] - count, x.shape[axis]), axis).any()
