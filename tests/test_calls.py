"""Calls that come again: the same results in arrays that lie alike, and the same refusals."""

import dataclasses
import itertools

import numpy as np
import pytest
from cases import INTERPRETED, integers

import fastconv
from fastconv import calls, plan


@pytest.fixture(autouse=True)
def remembered(monkeypatch):
    """Remember nothing of other tests."""
    monkeypatch.setattr(calls, "_calls", {})
    return calls._calls


def channels_last(array):
    return np.moveaxis(np.moveaxis(array, 1, -1).copy(), -1, 1)


def both(function, *arguments, **named):
    """Return what a call gives when it is checked, and when it is known; forgotten before, it would be checked twice."""
    calls._calls.clear()
    first = function(*arguments, **named)
    assert calls._calls
    return first, function(*arguments, **named)


def alike(a, b):
    assert type(a) is type(b) is np.ndarray
    assert (a.dtype, a.shape, a.strides, a.flags.writeable) == (b.dtype, b.shape, b.strides, b.flags.writeable)
    assert a.tobytes("A") == b.tobytes("A")
    assert not np.shares_memory(a, b)


N, SIDE = (8, 12) if INTERPRETED else (32, 28)
SHAPES = (
    ((2, 3, 9, 8), (5, 3, 3, 3), {"padding": 1}),
    ((1, 1, SIDE, SIDE), (N, 1, 3, 3), {}),
    ((2, N, 8, 8), (N, N, 3, 3), {"padding": 1, "algorithm": "winograd"}),
    ((1, 16, 7, 7), (24, 16, 1, 1), {}),
    ((2, 16, 9, 9), (16, 1, 3, 3), {"groups": 16, "stride": 2, "padding": ((1, 0), (0, 1))}),
    ((1, 8, 1, 1), (4, 8, 1, 1), {}),
    ((1, 1, 6, 5), (1, 1, 5, 5), {"padding": "same"}),
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("x_shape", "weight_shape", "named"), SHAPES)
def test_known_calls_give_the_same(x_shape, weight_shape, named, dtype, rng):
    weight, bias = integers(rng, weight_shape, dtype), integers(rng, weight_shape[:1], dtype)
    for lay, batched in ((np.ascontiguousarray, True), (channels_last, True), (np.ascontiguousarray, False)):
        x = lay(integers(rng, x_shape, dtype))
        x = x if batched else x[0]
        for b, relu in itertools.product((None, bias, bias.reshape(-1, 1, 1, 1)), (False, True)):
            alike(*both(fastconv.conv2d, x, weight, b, **named, relu=relu))
        alike(*both(fastconv.conv2d, x, fastconv.prepare(weight), bias, **named))
        output = fastconv.conv2d(x, weight, **named)
        for mask in itertools.product((False, True), repeat=3):
            for shape, apart in ((None, False), ((weight_shape[0], 1, 1, 1), True)):
                options = {"output_mask": mask, "bias_shape": shape, "per_sample": apart}
                for a, b in zip(*both(fastconv.conv2d_backward, output, x, weight, **named, **options), strict=True):
                    if a is not None or b is not None:
                        alike(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("x_shape", "weight_shape", "named"), SHAPES)
def test_weights_that_lie_channels_last(x_shape, weight_shape, named, dtype, rng):
    """They are read as they lie, and their gradients lie as they do."""
    weight, bias = integers(rng, weight_shape, dtype), integers(rng, weight_shape[:1], dtype)
    turned = channels_last(weight)
    for x in (integers(rng, x_shape, dtype), channels_last(integers(rng, x_shape, dtype))):
        wanted = fastconv.conv2d(x, weight, bias, **named)
        for result in both(fastconv.conv2d, x, turned, bias, **named):
            alike(result, wanted)
        first, again = both(fastconv.conv2d_backward, wanted, x, turned, **named, output_mask=(True, False, False))
        alike(first.input, again.input)
        grads = fastconv.conv2d_backward(wanted, x, weight, **named)
        alike(first.input, grads.input)
        for apart in (False, True):
            grads = fastconv.conv2d_backward(wanted, x, weight, **named, per_sample=apart)
            others, again = both(fastconv.conv2d_backward, wanted, x, turned, **named, per_sample=apart)
            alike(others.weight, again.weight)
            assert np.moveaxis(others.weight, -3, -1).flags.c_contiguous
            np.testing.assert_array_equal(others.weight, grads.weight)
            np.testing.assert_array_equal(others.bias, grads.bias)
            out = fastconv.ConvGrads(None, np.full_like(others.weight, np.nan), None)
            mask = {"output_mask": (False, True, False), "out": out}
            fastconv.conv2d_backward(wanted, x, turned, **named, per_sample=apart, **mask)
            np.testing.assert_array_equal(out.weight, grads.weight)


@pytest.mark.skipif(INTERPRETED, reason="takes too long without the compiler")
@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_gradients_of_large_weights_that_lie_channels_last(algorithm, rng):
    """Sums of several chunks are added up and turned in the order of the panels, or of the weight."""
    x, weight = integers(rng, (6, 72, 40, 41), "float32"), integers(rng, (70, 72, 3, 3), "float32")
    named = {"padding": 1, "algorithm": algorithm}
    grad_output = integers(rng, (6, 70, 40, 41), "float32")
    grads = fastconv.conv2d_backward(grad_output, x, weight, **named)
    others, again = both(fastconv.conv2d_backward, grad_output, x, channels_last(weight), **named)
    alike(others.weight, again.weight)
    np.testing.assert_array_equal(others.weight, grads.weight)


def test_other_dimensions(rng):
    for ndim in (1, 3):
        x, weight = integers(rng, (2, 3) + (5,) * ndim, "float32"), integers(rng, (4, 3) + (2,) * ndim, "float32")
        first, again = both(getattr(fastconv, f"conv{ndim}d"), x, weight)
        alike(first, again)
        alike(getattr(fastconv, f"conv{ndim}d")(x, channels_last(weight)), first)
        for a, b in zip(*both(getattr(fastconv, f"conv{ndim}d_backward"), first, x, weight), strict=True):
            alike(a, b)
        other = getattr(fastconv, f"conv{ndim}d_backward")(first, x, channels_last(weight))
        for a, b in zip(other, getattr(fastconv, f"conv{ndim}d_backward")(first, x, weight), strict=True):
            np.testing.assert_array_equal(a, b)
        assert np.moveaxis(other.weight, 1, -1).flags.c_contiguous


def test_what_is_known_is_used(rng, monkeypatch):
    """For other arrays of the same form; a call that needs copies is checked each time."""
    x, weight = integers(rng, (2, 3, 9, 9), "float32"), integers(rng, (4, 3, 3, 3), "float32")
    wanted = fastconv.conv2d(-x, -weight)
    monkeypatch.setattr(fastconv.passes, "geometry_of", None)
    np.testing.assert_array_equal(fastconv.conv2d(-x, -weight), wanted)
    for other in (x[:, :, ::-1], x.astype(">f4"), x.view(np.memmap), channels_last(x)):
        with pytest.raises(TypeError, match="not callable"):
            fastconv.conv2d(other, weight)


NO_INTS = (True, 1.0, np.float32(1), 1 + 0j)


@pytest.mark.parametrize("wrong", NO_INTS)
@pytest.mark.parametrize("name", ["stride", "dilation", "groups", "padding"])
def test_what_only_equals_a_known_call_is_refused(name, wrong):
    """1 is True and 1.0, if one asks Python."""
    x, weight = np.ones((1, 2, 5, 5), np.float32), np.ones((3, 2, 3, 3), np.float32)
    one = {"padding": 1}
    output = fastconv.conv2d(x, weight, **one)
    fastconv.conv2d_backward(output, x, weight, **one)
    pairs = {"stride": (1, 1), "dilation": (1, 1), "padding": ((1, 1), (1, 1))}
    for value in (wrong, (wrong, 1), ((wrong, 1), (1, 1))):
        if name in pairs:
            fastconv.conv2d(x, weight, **one | {name: pairs[name]})
        with pytest.raises(TypeError, match=name):
            fastconv.conv2d(x, weight, **one | {name: value})
        with pytest.raises(TypeError, match=name):
            fastconv.conv2d_backward(output, x, weight, **one | {name: value})


def test_flags_and_shapes_of_known_calls_are_refused():
    x, weight = np.ones((1, 2, 5, 5), np.float32), np.ones((3, 2, 3, 3), np.float32)
    output = fastconv.conv2d(x, weight)
    fastconv.conv2d_backward(output, x, weight)
    with pytest.raises(TypeError, match="relu is 0"):
        fastconv.conv2d(x, weight, relu=0)
    for wrong in ({"accumulate": 0}, {"per_sample": 0}, {"output_mask": (1, 1, 1)}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            fastconv.conv2d_backward(output, x, weight, **wrong)
    for shape in ((), (1,), (3, 1, 1)):
        with pytest.raises(ValueError, match="bias_shape"):
            fastconv.conv2d_backward(output, x, weight, bias_shape=shape)
    for other in (weight.astype("float64"), weight.astype(np.int32)):
        with pytest.raises(TypeError, match="dtype"):
            fastconv.conv2d(x, other)
    with pytest.raises(ValueError, match="grad_output has shape"):
        fastconv.conv2d_backward(output[:, :, 1:].copy(), x, weight)


def test_inputs_that_may_not_be_written_to_are_read(rng):
    x, weight = integers(rng, (1, 2, 5, 5), "float32"), integers(rng, (3, 2, 3, 3), "float32")
    wanted = fastconv.conv2d(x, weight)
    x.flags.writeable = weight.flags.writeable = False
    np.testing.assert_array_equal(fastconv.conv2d(x, weight), wanted)


def test_the_precision_counts():
    x, weight = np.ones((8, 32, 16, 16), np.float32) * np.float32(0.1), np.ones((32, 32, 3, 3), np.float32)
    assert plan.explain(x.shape, weight.shape).output.algorithm == "winograd"
    for _ in range(2):
        fastconv.set_precision("high")
        fast = fastconv.conv2d(x, weight)
        fastconv.set_precision("highest")
        assert (fast != fastconv.conv2d(x, weight)).any()


def test_the_table_counts(monkeypatch):
    """What is known is from one table."""
    x, weight = np.ones((1, 5), np.float32), np.ones((1, 1, 3), np.float32)
    fastconv.conv1d(x, weight)
    called = []
    row = plan.ROWS["output", "reference"]
    other = dataclasses.replace(row, run=lambda *arguments: called.append(row.run(*arguments)))
    monkeypatch.setattr(plan, "TABLE", (other,))
    plan._select.cache_clear()
    try:
        fastconv.conv1d(x, weight)
        fastconv.conv1d(x, weight)
        assert len(called) == 2
    finally:
        plan._select.cache_clear()


def test_few_are_remembered(monkeypatch, rng):
    monkeypatch.setattr(calls, "MOST", 3)
    weight = np.ones((1, 1, 2), np.float32)
    for size in range(2, 12):
        np.testing.assert_array_equal(
            fastconv.conv1d(np.ones((1, size), np.float32), weight), np.full((1, size - 1), 2)
        )
        assert 1 <= len(calls._calls) <= 3


def test_a_shape_that_is_an_array_is_refused_by_name():
    """Its truth value is none, which must not be what the caller hears of."""
    x, weight = np.ones((1, 2, 5, 5), np.float32), np.ones((3, 2, 3, 3), np.float32)
    with pytest.raises(TypeError, match="bias_shape"):
        fastconv.conv2d_backward(fastconv.conv2d(x, weight), x, weight, bias_shape=np.array([3, 1, 1, 1]))
