"""Calls that come again: the same results in arrays that lie alike, and the same refusals."""

import dataclasses
import itertools

import numpy as np
import pytest
from cases import INTERPRETED, integers

import fastconv
from fastconv import calls, limits, plan


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


def strided(array):
    """Lay an array into memory with gaps: kernels cannot write to it as it lies."""
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


LAYS = (np.copy, channels_last, strided)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("x_shape", "weight_shape", "named"), SHAPES)
@pytest.mark.parametrize("apart", [False, True])
def test_known_calls_write_to_the_same_arrays(x_shape, weight_shape, named, apart, dtype, rng):
    """However these lie: what cannot be written to at once is checked each time."""
    first, weight, bias = (integers(rng, shape, dtype) for shape in (x_shape, weight_shape, weight_shape[:1]))
    error = max(row.largest_error(np.dtype(dtype)) for row in plan.TABLE) if "algorithm" in named else 0

    def check(made, wanted, old=0):  # Winograd's sums are not exact, and each layout has its own
        np.testing.assert_allclose(made, wanted + old, rtol=0, atol=2 * error * np.abs(wanted).max())

    output = fastconv.conv2d(first, weight, bias, **named)
    grad_output = np.rint(output)
    grads = fastconv.conv2d_backward(grad_output, first, weight, **named, per_sample=apart)
    before = fastconv.ConvGrads(*(integers(rng, grad.shape, dtype) for grad in grads))
    for lay, x in itertools.product(LAYS, (first, channels_last(first))):
        out = lay(np.full_like(output, np.nan))
        calls._calls.clear()
        for _ in range(2):
            out[...] = np.nan
            assert fastconv.conv2d(x, weight, bias, **named, out=out) is out
            check(out, output)
        for mask, adds in itertools.product(itertools.product((False, True), repeat=3), (False, True)):
            calls._calls.clear()
            for _ in range(2):
                given = fastconv.ConvGrads(
                    *(
                        (lay(a) if a.ndim > 1 else a.copy()) if wanted else None
                        for wanted, a in zip(mask, before, strict=True)
                    )
                )
                options = {"output_mask": mask, "out": given, "accumulate": adds}
                made = fastconv.conv2d_backward(grad_output, x, weight, **named, **options, per_sample=apart)
                for a, b, grad, old in zip(made, given, grads, before, strict=True):
                    assert a is b
                    if b is not None:
                        check(b, grad, old if adds else 0)


def test_arrays_to_write_to_are_known(rng, monkeypatch):
    """Neither of them is checked again, nor what is added to them."""
    x, weight = integers(rng, (2, 3, 9, 9), "float32"), integers(rng, (4, 3, 3, 3), "float32")
    out = fastconv.conv2d(x, weight)
    grads = fastconv.conv2d_backward(out, x, weight)
    fastconv.conv2d(x, weight, out=np.empty_like(out))
    for adds in (False, True):
        fastconv.conv2d_backward(out, x, weight, out=grads, accumulate=adds)
    monkeypatch.setattr(fastconv.passes, "geometry_of", None)
    fastconv.conv2d(x, weight, out=out)
    for adds in (False, True):
        fastconv.conv2d_backward(out, x, weight, out=grads, accumulate=adds)
    with pytest.raises(TypeError, match="not callable"):
        fastconv.conv2d(x, weight, out=strided(out))


def test_arrays_that_overlap_are_refused_again():
    """That two arrays lie apart is not in their form."""
    memory = np.zeros(1000, np.float32)
    x, weight, out = (
        memory[:50].reshape(1, 2, 5, 5),
        np.ones((2, 2, 3, 3), np.float32),
        np.empty((1, 2, 3, 3), np.float32),
    )
    fastconv.conv2d(x, weight, out=out)
    with pytest.raises(ValueError, match="out overlaps x"):
        fastconv.conv2d(x, weight, out=memory[40:58].reshape(1, 2, 3, 3))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        fastconv.conv2d(x, weight, out=out)
    grads = fastconv.conv2d_backward(out, x, weight)
    mask = {"output_mask": (True, True, False)}
    fastconv.conv2d_backward(out, x, weight, out=fastconv.ConvGrads(*grads[:2], None), **mask)
    for at, wrong in ((30, "out.input overlaps x"), (500, "out.weight overlaps out.input")):
        dx, dw = memory[at : at + 50].reshape(x.shape), memory[510:546].reshape(weight.shape)
        with pytest.raises(ValueError, match=wrong):
            fastconv.conv2d_backward(out, x, weight, out=fastconv.ConvGrads(dx, dw, None), **mask)
    for wrong in (None, (), (grads.input, grads.weight), [*grads[:2], None]):
        with pytest.raises((TypeError, ValueError), match="out is"):
            fastconv.conv2d_backward(out, x, weight, out=wrong, accumulate=True, **mask)
    nothing = {"output_mask": (False, False, False), "accumulate": True}
    fastconv.conv2d_backward(out, x, weight, out=fastconv.ConvGrads(None, None, None), **nothing)
    with pytest.raises(ValueError, match="out is None"):
        fastconv.conv2d_backward(out, x, weight, **nothing)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_transposed_convolutions(dtype, rng):
    for ndim, named in itertools.product((1, 2, 3), ({}, {"stride": 2, "padding": 1, "output_padding": 1})):
        shape, taps = (2, 4, 5, 4, 3)[: ndim + 2], (3,) * ndim
        images, weight, bias = (integers(rng, s, dtype) for s in (shape, (4, 3, *taps), (3,)))
        convolve, backward = (getattr(fastconv, f"conv_transpose{ndim}d{kind}") for kind in ("", "_backward"))
        for x, w, b in itertools.product(
            (images, channels_last(images), images[0]),
            (weight, fastconv.prepare(weight)),
            (None, bias, bias.reshape(3, 1, *[1] * ndim)),
        ):
            first, again = both(convolve, x, w, b, **named)
            alike(first, again)
            exact = (None if a is None else a.astype(int) for a in (x, weight, b))
            np.testing.assert_array_equal(first, convolve(*exact, **named))
            for mask in itertools.product((False, True), repeat=3):
                for a, c in zip(*both(backward, first, x, w, **named, output_mask=mask), strict=True):
                    if a is not None or c is not None:
                        alike(a, c)


def test_gradients_one_by_one(rng):
    x, weight = integers(rng, (2, 3, 7, 6), "float32"), integers(rng, (4, 3, 3, 3), "float32")
    output = fastconv.conv2d(x, weight, stride=2)
    grads = fastconv.conv2d_backward(output, x, weight, stride=2)
    calls = (
        (fastconv.grad.conv2d_input, (x.shape, weight, output, 2)),
        (fastconv.grad.conv2d_input, (x.shape, fastconv.prepare(weight), output, 2)),
        (fastconv.grad.conv2d_weight, (x, weight.shape, output, 2)),
        (fastconv.grad.conv2d_bias, (output,)),
    )
    for (function, arguments), wanted in zip(calls, (grads.input, *grads), strict=True):
        first, again = both(function, *arguments)
        alike(first, again)
        np.testing.assert_array_equal(first, wanted)


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


def test_known_calls_are_held_against_free_memory(monkeypatch):
    """A call with a large result is remembered, too; memory may be short the next time."""
    x, weight = np.ones((1, 16, 300, 300), np.float32), np.ones((16, 16, 1, 1), np.float32)
    result = fastconv.conv2d(x, weight)
    assert result.nbytes > limits.SMALL
    monkeypatch.setattr(fastconv.passes, "geometry_of", None)  # it would be asked for if the call were not known
    np.testing.assert_array_equal(fastconv.conv2d(x, weight), result)
    monkeypatch.setattr(limits, "_known", (-np.inf, 0))
    monkeypatch.setattr(limits, "free_memory", lambda: 2**22)
    with pytest.raises(MemoryError, match=r"output of shape .*, with scratch memory, takes .* are free"):
        fastconv.conv2d(x, weight)


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


def test_a_prepared_weight_is_an_array_too(rng):
    """Where images are expected it is read as one, each time."""
    weight = integers(rng, (2, 2, 3, 3), "float32")
    prepared = fastconv.prepare(weight)
    for arguments in ((prepared, weight), (prepared, prepared)):
        for result in both(fastconv.conv2d, *arguments):
            np.testing.assert_array_equal(result, fastconv.conv2d(weight, weight))
        for result in both(fastconv.conv_transpose2d, *arguments):
            np.testing.assert_array_equal(result, fastconv.conv_transpose2d(weight, weight))
    grad_output = integers(rng, (2, 2, 1, 1), "float32")
    wanted = fastconv.conv2d_backward(grad_output, weight, weight)
    for grads in both(fastconv.conv2d_backward, grad_output, prepared, prepared):
        for grad, other in zip(grads, wanted, strict=True):
            np.testing.assert_array_equal(grad, other)
