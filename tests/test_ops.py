"""What the public functions promise beside the numbers: their arguments, what they return, what they refuse."""

import dataclasses
import inspect
import itertools

import numba
import numpy as np
import pytest
from cases import CASES, PASSES, data, expected, inputs_of, integers, result_shape, shapes_3d, simple
from numba import config

import fastconv
from fastconv import ConvGrads, dft, explain, grad, plan, reference, tiles, winograd

DIMENSIONS = (1, 2, 3)
CONV = {n: getattr(fastconv, f"conv{n}d") for n in DIMENSIONS}
BACKWARD = {n: getattr(fastconv, f"conv{n}d_backward") for n in DIMENSIONS}
TRANSPOSE = {n: getattr(fastconv, f"conv_transpose{n}d") for n in DIMENSIONS}
TRANSPOSE_BACKWARD = {n: getattr(fastconv, f"conv_transpose{n}d_backward") for n in DIMENSIONS}
JVP = {n: getattr(fastconv, f"conv{n}d_jvp") for n in DIMENSIONS}
ALGORITHMS = ("auto", *dict.fromkeys(row.algorithm for row in plan.TABLE))


@pytest.fixture(autouse=True)
def _exact_auto():
    fastconv.set_precision("highest")


def same(result, wanted):
    np.testing.assert_array_equal(result, wanted.reshape(result.shape))


ORDINARY = simple(2, channels=4, filters=6, size=(7, 6), padding=((1, 2), (0, 1)), stride=(2, 1), groups=2)

# ---------------------------------------------------------------------------------------------------------------------
# Signatures
# ---------------------------------------------------------------------------------------------------------------------

SIGNATURES = {
    "conv{}d": "x weight bias stride padding dilation groups * out relu algorithm",
    "conv{}d_backward": "grad_output x weight stride padding dilation groups * output_mask bias_shape out accumulate "
    "per_sample algorithm",
    "conv_transpose{}d": "x weight bias stride padding output_padding groups dilation",
    "conv_transpose{}d_backward": "grad_output x weight stride padding output_padding groups dilation * output_mask "
    "bias_shape",
    "conv{}d_jvp": "x weight x_tangent weight_tangent bias_tangent stride padding dilation groups",
    "grad.conv{}d_input": "input_size weight grad_output stride padding dilation groups",
    "grad.conv{}d_weight": "input weight_size grad_output stride padding dilation groups",
    "grad.conv{}d_bias": "grad_output",
}


@pytest.mark.parametrize("ndim", DIMENSIONS)
@pytest.mark.parametrize("name", SIGNATURES)
def test_names_and_order_of_arguments(name, ndim):
    module, function = (grad, name[5:]) if name.startswith("grad.") else (fastconv, name)
    parameters = inspect.signature(getattr(module, function.format(ndim))).parameters.values()
    plain = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert " ".join([*plain, *(["*", *keyword] if keyword else [])]) == SIGNATURES[name]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    common = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0, "algorithm": "auto"}
    assert all(defaults[key] == value for key, value in common.items() if key in defaults)


def test_everything_public_exists():
    for name in fastconv.__all__:
        assert hasattr(fastconv, name)


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", DIMENSIONS)
def test_positional_arguments(ndim):
    case = simple(ndim, channels=4, filters=6, size=6, stride=2, padding=1, groups=2)
    x, weight, bias, grad_output = data(case)
    same(CONV[ndim](x, weight, bias, 2, 1, 1, 2), expected("output", case))
    grads = BACKWARD[ndim](grad_output, x, weight, 2, 1, 1, 2)
    assert type(grads) is ConvGrads
    assert (grads.input.shape, grads.weight.shape, grads.bias.shape) == (x.shape, weight.shape, bias.shape)
    for result, computes in zip(grads, PASSES[1:], strict=True):
        same(result, expected(computes, case))


@pytest.mark.parametrize("ndim", DIMENSIONS)
def test_without_a_batch(ndim):
    case = simple(ndim, batch=None)
    x, weight, bias, grad_output = data(case)
    for lead in ((), (None,)):
        result = CONV[ndim](x[lead], weight, bias)
        assert result.ndim == ndim + 1 + len(lead)
        same(result, expected("output", case))
        grads = BACKWARD[ndim](grad_output[lead], x[lead], weight)
        assert grads.input.shape == x[lead].shape
        same(grads.input, expected("grad_input", case))
        apart = BACKWARD[ndim](grad_output[lead], x[lead], weight, per_sample=True)
        assert apart.weight.shape == (1, *weight.shape)
    with pytest.raises(ValueError, match="grad_output has shape"):
        BACKWARD[ndim](grad_output, x[None], weight)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "complex64"])
@pytest.mark.parametrize("ndim", DIMENSIONS)
def test_empty_batch(ndim, dtype, algorithm):
    case = simple(ndim, batch=0)
    x, weight, bias, grad_output = data(case, dtype)
    rows = [row for row in plan.TABLE if row.algorithm == algorithm]
    if any(row.objection(case.geometry, np.dtype(dtype)) for row in rows):
        return
    result = CONV[ndim](x, weight, bias, algorithm=algorithm)
    assert result.shape == case.output_shape
    grads = BACKWARD[ndim](grad_output, x, weight, algorithm=algorithm)
    assert grads.input.shape == x.shape
    assert grads.weight.shape == weight.shape
    assert (grads.weight == 0).all()
    assert (grads.bias == 0).all()
    assert BACKWARD[ndim](grad_output, x, weight, per_sample=True, algorithm=algorithm).weight.shape == (
        0,
        *weight.shape,
    )


def objection_to(case, algorithm):
    """Say why an algorithm does not do a case; None if it does."""
    rows = (row for row in plan.TABLE if row.algorithm == algorithm)
    return next(filter(None, (row.objection(case.geometry, np.dtype("float32")) for row in rows)), None)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_per_sample(algorithm):
    if objection_to(ORDINARY, algorithm):
        pytest.skip("the row does not take this case")
    x, weight, _, grad_output = data(ORDINARY)
    apart = BACKWARD[2](grad_output, x, weight, **ORDINARY.parameters, per_sample=True, algorithm=algorithm)
    assert apart.weight.shape == (ORDINARY.batch, *weight.shape)
    for n in range(ORDINARY.batch):
        alone = BACKWARD[2](grad_output[n], x[n], weight, **ORDINARY.parameters, algorithm="reference")
        same(apart.weight[n], alone.weight)
    same(apart.weight.sum(axis=0), expected("grad_weight", ORDINARY))
    same(apart.input, expected("grad_input", ORDINARY))
    same(apart.bias, expected("grad_bias", ORDINARY))


@pytest.mark.parametrize("mask", list(itertools.product((True, False), repeat=3)))
def test_output_mask(mask):
    x, weight, _, grad_output = data(ORDINARY)
    every = BACKWARD[2](grad_output, x, weight, **ORDINARY.parameters)
    some = BACKWARD[2](grad_output, x, weight, **ORDINARY.parameters, output_mask=mask)
    outs = ConvGrads(*(np.full(a.shape, np.nan) if m else None for a, m in zip(every, mask, strict=True)))
    written = BACKWARD[2](grad_output, x, weight, **ORDINARY.parameters, output_mask=list(mask), out=outs)
    for wanted, asked, result, out, place in zip(every, mask, some, written, outs, strict=True):
        if asked:
            same(result, wanted)
            same(out, wanted)
            assert out is place
        else:
            assert result is None
            assert out is None


@pytest.mark.parametrize("ndim", DIMENSIONS)
def test_bias_shapes(ndim):
    case = simple(ndim)
    x, weight, bias, grad_output = data(case)
    column = (case.filters,) + (1,) * (ndim + 1)
    same(CONV[ndim](x, weight, bias.reshape(column)), expected("output", case))
    assert BACKWARD[ndim](grad_output, x, weight).bias.shape == (case.filters,)
    grads = BACKWARD[ndim](grad_output, x, weight, bias_shape=column)
    assert grads.bias.shape == column
    same(grads.bias, expected("grad_bias", case))
    out = ConvGrads(None, None, np.full(column, np.nan))
    BACKWARD[ndim](grad_output, x, weight, bias_shape=list(column), output_mask=(False, False, True), out=out)
    same(out.bias, expected("grad_bias", case))
    assert BACKWARD[ndim](grad_output, x, weight, bias_shape=(case.filters,)).bias.shape == (case.filters,)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "complex128"])
def test_accumulate(dtype, rng):
    x, weight, _, grad_output = data(ORDINARY, dtype)
    wanted = BACKWARD[2](grad_output, x, weight, **ORDINARY.parameters)
    first = [rng.integers(-9, 9, a.shape).astype(a.dtype) for a in wanted]
    out = ConvGrads(*(a.copy() for a in first))
    for turn in (1, 2):
        result = BACKWARD[2](grad_output, x, weight, **ORDINARY.parameters, out=out, accumulate=True)
        for array, place, start, once in zip(result, out, first, wanted, strict=True):
            assert array is place
            same(array, start + turn * once)
    BACKWARD[2](grad_output, x, weight, **ORDINARY.parameters, out=out)
    for array, once in zip(out, wanted, strict=True):
        same(array, once)


@pytest.mark.parametrize("ndim", DIMENSIONS)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_same_and_valid(ndim, dilation, kernel):
    total = dilation * (kernel - 1)
    case = simple(ndim, size=7, kernel=kernel, dilation=dilation, padding=((total // 2, total - total // 2),) * ndim)
    x, weight, bias, grad_output = data(case)
    result = CONV[ndim](x, weight, bias, padding="same", dilation=dilation)
    assert result.shape[2:] == x.shape[2:]
    same(result, expected("output", case))
    same(BACKWARD[ndim](grad_output, x, weight, padding="same", dilation=dilation).input, expected("grad_input", case))
    same(CONV[ndim](x, weight, padding="valid", dilation=dilation), CONV[ndim](x, weight, dilation=dilation))
    with pytest.raises(ValueError, match="padding is 'same', stride is"):
        CONV[ndim](x, weight, stride=2, padding="same")


def some_case(algorithm):
    """Return a small case that an algorithm can compute."""
    cases = simple(2, channels=4, filters=16), simple(2, channels=4, filters=4, size=9, kernel=7, groups=4)
    able = (case for case in cases if plan.ROWS["output", algorithm].unable(case.geometry, np.dtype("float64")) is None)
    return next(able)


@pytest.mark.parametrize("algorithm", ALGORITHMS[1:])
def test_results_are_new_arrays(algorithm):
    """No result shares memory with an input, with another result, or with that of an earlier call."""
    case = some_case(algorithm)
    x, weight, bias, grad_output = (array.copy() for array in data(case))
    kept = [x, weight, bias, grad_output]
    for _ in range(2):
        output = fastconv.conv2d(x, weight, bias, groups=case.groups, algorithm=algorithm)
        grads = fastconv.conv2d_backward(grad_output, x, weight, groups=case.groups, algorithm=algorithm)
        transposed = fastconv.conv_transpose2d(output, weight, groups=case.groups)
        tangent = fastconv.conv2d_jvp(x, weight, bias_tangent=bias, groups=case.groups)
        padded = fastconv.pad(x, 0), fastconv.pad_backward(x, x.shape, 0)
        for result in (output, *grads, transposed, tangent, *padded):
            assert result.flags.writeable
            assert not any(np.shares_memory(result, other) for other in kept)
            kept.append(result)


# ---------------------------------------------------------------------------------------------------------------------
# Transposed convolutions
# ---------------------------------------------------------------------------------------------------------------------

TRANSPOSED = [
    (ndim, stride, padding, output_padding, groups, dilation)
    for ndim in DIMENSIONS
    for stride, padding, output_padding, groups, dilation in (
        (1, 0, 0, 1, 1), (2, 1, 1, 1, 1), (3, ((0, 1),) * ndim, 2, 2, 1), (2, 1, 1, 4, 3), (1, 2, 2, 1, 3), (2, 0, 3, 2, 4),
    )
]  # fmt: skip


@pytest.mark.parametrize(("ndim", "stride", "padding", "output_padding", "groups", "dilation"), TRANSPOSED)
def test_transpose(ndim, stride, padding, output_padding, groups, dilation, rng):
    """Against its definition: each input element spreads the weight over the output, output_padding rows stay at the bias."""
    n_in, per_group, n, f = 4, 3, 3, 2
    x = rng.integers(-4, 5, (2, n_in) + (n,) * ndim).astype(float)
    weight = rng.integers(-4, 5, (n_in, per_group) + (f,) * ndim).astype(float)
    bias = rng.integers(-4, 5, per_group * groups).astype(float)
    full = np.zeros((2, per_group * groups) + ((n - 1) * stride + dilation * (f - 1) + output_padding + 1,) * ndim)
    for tap in np.ndindex((f,) * ndim):
        at = tuple(slice(dilation * k, dilation * k + stride * (n - 1) + 1, stride) for k in tap)
        for g in range(groups):
            ins, outs = slice(g * n_in // groups, (g + 1) * n_in // groups), slice(g * per_group, (g + 1) * per_group)
            full[(slice(None), outs, *at)] += np.einsum("ni...,io->no...", x[:, ins], weight[(ins, slice(None), *tap)])
    left, right = padding[0] if isinstance(padding, tuple) else (padding, padding)
    wanted = full[(..., *(slice(left, full.shape[-1] - right),) * ndim)] + bias.reshape((-1,) + (1,) * ndim)
    arguments = (stride, padding, output_padding, groups, dilation)
    for dtype in ("float64", "float32", "int64", "uint64", "float16"):
        given = [np.abs(a).astype(dtype) if dtype == "uint64" else a.astype(dtype) for a in (x, weight, bias)]
        result = TRANSPOSE[ndim](*given, *arguments)
        assert result.shape == wanted.shape
        assert result.dtype == (np.int64 if "int" in dtype else np.dtype(dtype))
        if dtype != "uint64":
            same(result, wanted)
    same(TRANSPOSE[ndim](x[0], weight, bias.reshape((-1,) + (1,) * (ndim + 1)), *arguments), wanted[0])
    same(TRANSPOSE[ndim](x, weight, None, *arguments), wanted - bias.reshape((-1,) + (1,) * ndim))
    assert TRANSPOSE[ndim](x[:0], weight, bias, *arguments).shape == (0, *wanted.shape[1:])

    # It is linear in each argument: its gradients are its adjoints.
    g = rng.integers(-4, 5, wanted.shape).astype(float)
    grads = TRANSPOSE_BACKWARD[ndim](g, x, weight, *arguments)
    without_bias = TRANSPOSE[ndim](x, weight, None, *arguments)
    for name, gradient, primal in (("x", grads.input, x), ("weight", grads.weight, weight)):
        assert gradient.shape == primal.shape
        assert np.vdot(without_bias, g) == np.vdot(gradient, primal), name
        other = rng.integers(-4, 5, primal.shape).astype(float)
        changed = {"x": x, "weight": weight} | {name: other}
        assert np.vdot(TRANSPOSE[ndim](*changed.values(), None, *arguments), g) == np.vdot(gradient, other), name
    same(grads.bias, g.sum(axis=(0, *range(2, 2 + ndim))))
    column = (per_group * groups,) + (1,) * (ndim + 1)
    some = TRANSPOSE_BACKWARD[ndim](g, x, weight, *arguments, output_mask=(False, False, True), bias_shape=column)
    assert (some.input, some.weight) == (None, None)
    assert some.bias.shape == column
    alone = TRANSPOSE_BACKWARD[ndim](g[0], x[0], weight, *arguments)
    same(alone.input, grads.input[0])


# ---------------------------------------------------------------------------------------------------------------------
# Tangents, and the gradients one by one
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", list(itertools.product((True, False), repeat=3)))
@pytest.mark.parametrize("ndim", DIMENSIONS)
def test_jvp(ndim, given, rng):
    """Against a central difference, which is exact as the product of two steps cancels."""
    case = simple(ndim, channels=4, filters=6, size=6, padding=1, stride=2, groups=2)
    x, weight, bias, _ = data(case)
    tangents = [
        rng.integers(-4, 5, a.shape).astype(float) if g else None for a, g in zip((x, weight, bias), given, strict=True)
    ]
    result = JVP[ndim](x, weight, *tangents, 2, 1, 1, 2)
    dx, dw, db = (np.zeros(a.shape) if t is None else t for t, a in zip(tangents, (x, weight, bias), strict=True))
    up = CONV[ndim](x + dx, weight + dw, bias + db, **case.parameters)
    down = CONV[ndim](x - dx, weight - dw, bias - db, **case.parameters)
    same(result, (up - down) / 2)
    assert result.dtype == x.dtype
    for dtype in ("int32", "uint64", "float16", "complex64"):
        cast = [None if t is None else np.abs(t).astype(dtype) for t in tangents]
        other = JVP[ndim](np.abs(x).astype(dtype), np.abs(weight).astype(dtype), *cast, **case.parameters)
        assert other.shape == result.shape
    if tangents[2] is not None:
        tangents[2] = tangents[2].reshape((-1,) + (1,) * (ndim + 1))
    same(JVP[ndim](x[0], weight, None if tangents[0] is None else tangents[0][0], *tangents[1:], 2, 1, 1, 2), result[0])


@pytest.mark.parametrize(
    "case", [simple(1, stride=2), ORDINARY, simple(3, batch=None, padding=1), simple(2, batch=0)], ids=str
)
def test_grad(case):
    x, weight, _, grad_output = data(case)
    functions = [getattr(grad, f"conv{case.ndim}d_{name}") for name in ("input", "weight", "bias")]
    parameters = tuple(case.parameters.values())
    for size in (x.shape, list(x.shape), tuple(np.int64(n) for n in x.shape)):
        result = functions[0](size, weight, grad_output, *parameters)
        assert result.shape == x.shape
        same(result, expected("grad_input", case))
    result = functions[1](x, weight.shape, grad_output, *parameters)
    assert result.shape == weight.shape
    same(result, expected("grad_weight", case))
    same(functions[2](grad_output), expected("grad_bias", case))


# ---------------------------------------------------------------------------------------------------------------------
# Padding
# ---------------------------------------------------------------------------------------------------------------------

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@pytest.mark.parametrize("batch", [(2,), (), (0,)])
@pytest.mark.parametrize("ndim", DIMENSIONS)
@pytest.mark.parametrize("mode", MODES)
def test_pad(mode, ndim, batch, rng):
    sizes = (5, 4, 6)[:ndim]
    x = rng.standard_normal((*batch, 3, *sizes))
    if not batch and ndim == 1:
        forms = [((2, 2),), ((0, 3),)]
    else:
        forms = [((2, 2),) * ndim, ((0, 3), (2, 1), (0, 0))[:ndim]]
    for pairs in forms:
        result = fastconv.pad(x, pairs, mode)
        lead = x.ndim - ndim
        np.testing.assert_array_equal(result, np.pad(x, [(0, 0)] * lead + list(pairs), MODES[mode]))
        assert result.flags.c_contiguous
        g = rng.standard_normal(result.shape)
        back = fastconv.pad_backward(g, x.shape, pairs, mode)
        assert back.shape == x.shape
        assert np.vdot(result, g) == pytest.approx(np.vdot(x, back), rel=1e-12)
    np.testing.assert_array_equal(fastconv.pad(x, (1,) * ndim), np.pad(x, [(0, 0)] * lead + [(1, 1)] * ndim))


def test_pad_by_one_number():
    assert fastconv.pad(np.ones((2, 5)), 1).shape == (2, 7)
    assert fastconv.pad(np.ones((2, 5, 5)), 1).shape == (2, 7, 7)
    assert fastconv.pad(np.ones((2, 2, 5, 5)), 1).shape == (2, 2, 7, 7)
    assert fastconv.pad(np.ones((2, 2, 5, 5, 5)), 1).shape == (2, 2, 7, 7, 7)
    assert fastconv.pad(np.ones((2, 5), ">f4"), 1).dtype == np.float32
    assert fastconv.pad(np.ones((2, 5), ">f4"), 1).dtype.isnative


# ---------------------------------------------------------------------------------------------------------------------
# The plan
# ---------------------------------------------------------------------------------------------------------------------


def test_explain():
    found = explain((4, 64, 56, 56), (32, 64, 3, 3), 2, ((1, 0), (0, 0)), dtype="float64")
    assert found.geometry == fastconv.geometry.conv_geometry((4, 64, 56, 56), (32, 64, 3, 3), 2, ((1, 0), (0, 0)))
    assert found.dtype == "float64"
    assert found.unseen == (0, 1)
    for computes in PASSES:
        choice = getattr(found, computes)
        row = plan.choose(computes, found.geometry, np.dtype("float64"))
        assert (choice.computes, choice.algorithm) == (computes, row.algorithm)
        assert choice.algorithm in choice.reason
        assert set(choice.passed_over) == {r.algorithm for r in plan.TABLE if r.computes == computes} - {row.algorithm}
        assert all(choice.passed_over.values())
        assert choice.scratch_bytes == row.scratch(found.geometry, 8)
        assert choice.bytes == 8 * (4 * 64 * 56 * 56 + 32 * 64 * 9 + 4 * 32 * 28 * 27)
        assert choice.flops == (4 * 32 * 28 * 27 if computes == "grad_bias" else 2 * 4 * 32 * 28 * 27 * 64 * 9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.dtype = "float32"


def test_explain_prints_a_table():
    text = str(explain((4, 64, 56, 56), (32, 64, 3, 3), 2))
    lines = text.splitlines()
    assert lines[0] == "(4, 64, 56, 56) * (32, 64, 3, 3) -> (4, 32, 27, 27), float32"
    assert "no output sees the input's last 1 rows, 1 columns" in text
    for computes in PASSES:
        (line,) = (line for line in lines if line.startswith(computes + " "))
        choice = getattr(explain((4, 64, 56, 56), (32, 64, 3, 3), 2), computes)
        assert choice.algorithm in line
        assert choice.reason in line
    assert "no output" not in str(explain((1, 8, 8), (1, 1, 3, 3)))


@pytest.mark.parametrize("dtype", ["int8", "complex64", "float16", bool, np.int64, np.dtype(">c16")])
def test_other_dtypes_run_the_reference(dtype):
    found = explain((1, 5), (1, 1, 3), dtype=dtype)
    assert all(getattr(found, computes).algorithm == "reference" for computes in PASSES)
    assert "only, not" in found.output.passed_over["loops"]


def test_the_dimension_of_explain():
    for ndim in DIMENSIONS:
        assert explain((2, 1) + (5,) * ndim, (1, 1) + (3,) * ndim).geometry.ndim == ndim


def inexact_row():
    row = plan.ROWS["output", "loops"]
    return dataclasses.replace(row, algorithm="rough", error=1e-5, nanoseconds=lambda *_: 1.0)


def test_precision(monkeypatch):
    """Under "highest" only exact rows are taken, unless an algorithm is named."""
    table = (inexact_row(), *plan.TABLE)
    monkeypatch.setattr(plan, "TABLE", table)
    monkeypatch.setattr(plan, "ALGORITHMS", ("rough", *plan.ALGORITHMS))
    monkeypatch.setattr(plan, "ROWS", {(row.computes, row.algorithm): row for row in table})
    plan._select.cache_clear()
    try:
        shapes = (1, 5), (1, 1, 3)
        fastconv.set_precision("high")
        assert fastconv.get_precision() == "high"
        assert explain(*shapes).output.algorithm == "rough"
        fastconv.set_precision("highest")
        assert fastconv.get_precision() == "highest"
        assert explain(*shapes).output.algorithm != "rough"
        assert "not exact" in explain(*shapes).output.passed_over["rough"]
        geometry = explain(*shapes).geometry
        assert plan.choose("output", geometry, np.dtype("float32"), "rough").algorithm == "rough"
        assert plan.choose("grad_bias", geometry, np.dtype("float32"), "rough").exact
        x = np.ones(shapes[0])
        fastconv.conv1d(x, np.ones(shapes[1]), algorithm="rough")
        with pytest.raises(
            ValueError, match="algorithm is 'rough', which cannot do this call: it has no row for grad_input"
        ):
            fastconv.conv1d_backward(np.ones((1, 3)), x, np.ones(shapes[1]), algorithm="rough")
    finally:
        plan._select.cache_clear()


@pytest.mark.parametrize("wrong", ["low", "HIGH", "", None, 1, ["high"]])
def test_precision_refuses(wrong):
    with pytest.raises((ValueError, TypeError), match="precision is"):
        fastconv.set_precision(wrong)
    assert fastconv.get_precision() == "highest"


def test_scratch_memory_is_in_proportion():
    """Where "auto" takes Winograd's rows, two threads need at most 4 times the memory of the arrays."""
    fastconv.set_precision("high")
    taken = 0
    shapes = itertools.product((1, 4, 32), (16, 64, 256), (16, 64, 256), (4, 7, 14, 56))
    for (batch, channels, filters, size), (kernel, stride) in zip(
        shapes, itertools.cycle((((3, 3), 1), ((5, 5), 1), ((1, 3), 1), ((3, 3), 2), ((3, 3), 2))), strict=False
    ):
        geometry = fastconv.geometry.conv_geometry(
            (batch, channels, size, size), (filters, channels, *kernel), stride, padding=1
        )
        for computes in PASSES[:3]:
            row = plan.choose(computes, geometry, np.dtype("float32"))
            if row.algorithm == "winograd":
                scratch = winograd.WINOGRAD.scratch_bytes(computes, geometry, 4, threads=2)
                assert scratch <= 4 * geometry.bytes(4)
                taken += 1
    assert taken > 100
    small = fastconv.explain((32, 16, 4, 4), (16, 16, 3, 3), padding=1).grad_weight
    assert small.passed_over["winograd"] == "its scratch memory would be out of proportion"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
@pytest.mark.parametrize("algorithm", ["auto", *dict.fromkeys(row.algorithm for row in plan.TABLE)])
def test_relu(algorithm, dtype, rng):
    """As the outputs are written, by rows that can do so, or after."""
    shapes, groups = ((2, 20, 6, 7), (5, 20, 3, 3), (5,)), 1
    if algorithm == "fft":
        shapes, groups = ((2, 20, 6, 7), (20, 1, 7, 7), (20,)), 20
    x, weight, bias = (integers(rng, shape, dtype) for shape in shapes)
    if algorithm not in ("auto", "reference") and dtype not in ("float32", "float64"):
        return
    options = {"padding": weight.shape[2] // 2, "groups": groups, "algorithm": algorithm}
    plain = fastconv.conv2d(x, weight, bias, **options)
    assert plain.min() < 0 < plain.max()
    np.testing.assert_array_equal(
        fastconv.conv2d(x, weight, bias, relu=True, **options), np.maximum(plain, 0), strict=True
    )
    out = np.empty_like(plain)
    assert fastconv.conv2d(x, weight, bias, relu=True, out=out, **options) is out
    np.testing.assert_array_equal(out, np.maximum(plain, 0))


@pytest.mark.parametrize("algorithm", ["direct", "winograd", "loops"])
def test_relu_keeps_nan(algorithm):
    x, weight = np.ones((1, 16, 6, 6), np.float32), -np.ones((1, 16, 3, 3), np.float32)
    x[0, 0, 0, 0] = np.nan
    result = fastconv.conv2d(x, weight, relu=True, algorithm=algorithm)
    assert np.isnan(result[0, 0, 0, 0])
    assert (result[0, 0, :, -1] == 0).all() or algorithm == "winograd"


def test_relu_refuses():
    x, weight = np.ones((1, 5), np.complex64), np.ones((1, 1, 3), np.complex64)
    with pytest.raises(TypeError, match="relu is True, the arrays are complex64: expected real numbers"):
        fastconv.conv1d(x, weight, relu=True)
    with pytest.raises(TypeError, match="relu is 1: expected a bool"):
        fastconv.conv1d(x, weight, relu=1)


def test_algorithm_errors():
    x, weight = np.ones((1, 5), np.int32), np.ones((1, 1, 3), np.int32)
    with pytest.raises(
        ValueError, match="algorithm is 'loops', which cannot do this call: it computes float32 and float64 only"
    ):
        fastconv.conv1d(x, weight, algorithm="loops")
    with pytest.raises(ValueError, match=r"algorithm is 'fast': expected 'auto', .*'loops', 'reference'"):
        fastconv.conv1d(x, weight, algorithm="fast")
    with pytest.raises(TypeError, match="algorithm is None: expected a string"):
        fastconv.conv1d(x, weight, algorithm=None)
    with pytest.raises(TypeError, match=r"algorithm is \['loops'\]"):
        fastconv.conv1d_backward(np.ones((1, 3), np.int32), x, weight, algorithm=["loops"])


def test_the_named_algorithm_runs(monkeypatch):
    called = []

    def spied(row):
        def run(*arguments):
            called.append((row.computes, row.algorithm))
            row.run(*arguments)

        return dataclasses.replace(row, run=run)

    monkeypatch.setattr(plan, "TABLE", tuple(map(spied, plan.TABLE)))
    plan._select.cache_clear()
    try:
        for algorithm in ALGORITHMS[1:]:
            case = some_case(algorithm)
            x, weight, bias, grad_output = data(case)
            called.clear()
            fastconv.conv2d(x, weight, bias, groups=case.groups, algorithm=algorithm)
            fastconv.conv2d_backward(grad_output, x, weight, groups=case.groups, algorithm=algorithm)
            assert called[:3] == [(computes, algorithm) for computes in PASSES[:3]]
            together = plan.ROWS["grad_weight", algorithm].sums(case.geometry, x.itemsize)
            assert together == (algorithm in ("winograd", "direct"))
            assert [computes for computes, _ in called[3:]] == ([] if together else ["grad_bias"])
    finally:
        plan._select.cache_clear()


# ---------------------------------------------------------------------------------------------------------------------
# Results that are written in place
# ---------------------------------------------------------------------------------------------------------------------


def test_out_is_refused():
    x, weight, bias, _ = (array.copy() for array in data(ORDINARY))
    shape, parameters = ORDINARY.output_shape, ORDINARY.parameters
    locked = np.empty(shape)
    locked.flags.writeable = False
    repeated = np.lib.stride_tricks.as_strided(np.zeros(1), shape, (0,) * 4, writeable=True)
    shifted = np.lib.stride_tricks.as_strided(np.zeros(99), shape, (8,) * 4, writeable=True)
    for out, error, message in (
        (np.empty(shape, np.float32), TypeError, "out has dtype float32: expected float64"),
        (np.empty(shape, ">f8"), TypeError, "out has dtype >f8: expected float64"),
        (np.empty(shape[1:]), ValueError, "out has shape .*: expected"),
        (locked, ValueError, "out is read-only"),
        (repeated, ValueError, "out has strides"),
        (shifted, ValueError, "out has strides"),
        ([0.0], TypeError, r"out is \[0.0\] \(list\): expected an ndarray"),
        (np.ma.zeros(shape), TypeError, "out is a masked array"),
    ):
        with pytest.raises(error, match=message):
            fastconv.conv2d(x, weight, bias, **parameters, out=out)


def test_out_that_overlaps_is_refused():
    memory = np.zeros(200)
    x, weight = memory[:50].reshape(2, 25), np.ones((2, 2, 1))
    for start in (0, 10, 49):
        with pytest.raises(ValueError, match="out overlaps x: expected an array of its own"):
            fastconv.conv1d(x, weight, out=memory[start : start + 50].reshape(2, 25))
    fastconv.conv1d(x, weight, out=memory[50:100].reshape(2, 25))
    both = memory[:100].reshape(2, 50)
    fastconv.conv1d(both[:, ::2], weight, out=both[:, 1::2])  # interleaved, without a common element
    with pytest.raises(ValueError, match="out overlaps weight"):
        fastconv.conv1d(np.ones((2, 25)), memory[40:44].reshape(2, 2, 1), out=memory[:50].reshape(2, 25))
    with pytest.raises(ValueError, match="out overlaps bias"):
        fastconv.conv1d(np.ones((2, 25)), weight, memory[48:50], out=memory[:50].reshape(2, 25))


def test_outs_of_backward_are_refused():
    x, weight, bias, grad_output = (array.copy() for array in data(ORDINARY))

    def call(*outs, **more):
        return BACKWARD[2](
            grad_output, x, weight, **ORDINARY.parameters, out=outs[0] if len(outs) == 1 else outs, **more
        )

    dx, dw, db = np.zeros_like(x), np.zeros_like(weight), np.zeros_like(bias)
    memory = np.zeros(x.size + 3)
    for outs, more, error, message in (
        ((dx,), {}, TypeError, "out is a ndarray: expected a ConvGrads"),
        ((dx, dw), {}, TypeError, "out is a tuple"),
        (([dx, dw, db],), {}, TypeError, "out is a list"),
        ((None, dw, db), {}, ValueError, "out.input is None: output_mask asks for an array"),
        (
            (dx, dw, db),
            {"output_mask": (True, True, False)},
            ValueError,
            "out.bias is an array: output_mask asks for None",
        ),
        ((dx, dx, db), {}, ValueError, "out.weight has shape"),
        ((dx, dw.astype("f4"), db), {}, TypeError, "out.weight has dtype float32"),
        ((dx, dw, 1.0), {}, TypeError, r"out.bias is 1.0 \(float\)"),
        ((x, dw, db), {}, ValueError, "out.input overlaps x"),
        ((dx, weight, db), {}, ValueError, "out.weight overlaps weight"),
        ((memory[: x.size].reshape(x.shape), dw, memory[-8:-2]), {}, ValueError, "out.bias overlaps out.input"),
    ):
        with pytest.raises(error, match=message):
            call(*outs, **more)
    with pytest.raises(ValueError, match="accumulate is True, out is None"):
        BACKWARD[2](grad_output, x, weight, **ORDINARY.parameters, accumulate=True)
    for name, wrong in (("accumulate", "yes"), ("accumulate", None), ("per_sample", 1.0), ("per_sample", "no")):
        with pytest.raises(TypeError, match=f"{name} is {wrong!r}: expected a bool"):
            call(dx, dw, db, **{name: wrong})


# ---------------------------------------------------------------------------------------------------------------------
# The same bits, whatever the threads; NaN and infinity
# ---------------------------------------------------------------------------------------------------------------------

ROWS = pytest.mark.parametrize("row", plan.TABLE, ids=lambda row: f"{row.computes}-{row.algorithm}")
FLAT = simple(2, batch=3, channels=8, filters=12, size=(13, 19), padding=1, groups=2)


def run_row(row, case, arrays, dtype):
    x, weight, bias, grad_output = (a.astype(dtype).reshape(s) for a, s in zip(arrays, shapes_3d(case), strict=True))
    out = np.full(result_shape(row.computes, case), np.nan, dtype)
    row.run(case.geometry.volume, *inputs_of(row.computes, x, weight, bias, grad_output), out)
    return out


@pytest.mark.skipif(config.DISABLE_JIT, reason="there are no threads without the compiler")
@pytest.mark.skipif(config.NUMBA_NUM_THREADS < 2, reason="there is one thread only")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@ROWS
def test_same_bits_for_any_number_of_threads(row, dtype, rng):
    cases = [FLAT, simple(2, batch=1, channels=3, filters=17, size=(23, 29), kernel=5, stride=2, padding=2)]
    cases += [simple(3, channels=5, filters=6, size=(5, 6, 7)), simple(2, channels=24, filters=24, size=9, groups=24)]
    before = numba.get_num_threads()
    for case in cases:
        if row.objection(case.geometry, np.dtype(dtype)):
            continue
        arrays = [rng.standard_normal(shape) for shape in shapes_3d(case)]
        try:
            bits = []
            for threads in (1, 2, config.NUMBA_NUM_THREADS, 1, 2):
                numba.set_num_threads(threads)
                bits += [run_row(row, case, arrays, dtype).tobytes() for _ in range(3)]
        finally:
            numba.set_num_threads(before)
        assert len(set(bits)) == 1


MEETS_PADDING = {("output", "weight"), ("grad_input", "weight"), ("grad_weight", "grad_output")}
OWN_AXES = {"output": (1,), "grad_input": (1,), "grad_weight": (0, 1)}  # sums over filters or channels of their own


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "case",
    [
        simple(2, channels=4, filters=6, size=(7, 9), padding=1, groups=2),
        simple(2, size=9, stride=3, kernel=2, padding=1),
        simple(2, size=(11, 6), padding=1),
        simple(2, size=(7, 9), kernel=(1, 5), padding=(0, 1)),
        simple(2, size=(13, 26), stride=2, padding=((1, 1), (0, 2))),
        simple(1, size=40, kernel=7, padding=2),
        simple(1, size=40, dilation=2),
        simple(2, channels=3, filters=3, size=(10, 20), kernel=7, padding=(3, (2, 0)), groups=3),
    ],
    ids=str,
)
@ROWS
def test_what_is_not_finite_stays_in_its_windows(row, case, value, rng):
    """NaN and infinity reach each result whose sum holds them, and no other; rows that are not exact spread them over tiles."""
    if row.objection(case.geometry, np.dtype("float32")):
        pytest.skip("the row does not take this case")
    ones = [np.ones(shape) for shape in shapes_3d(case)]
    names = ("x", "weight", "bias", "grad_output")
    for position, others in itertools.product(inputs_of(row.computes, 0, 1, 2, 3), (1, 0, 1)):
        at = tuple(int(rng.integers(n)) for n in ones[position].shape)
        marked = [np.zeros_like(a) if n in (position, 2) else a for n, a in enumerate(ones)]
        marked[position][at] = 1
        if names[position] == "bias":
            marked[0] = np.zeros_like(marked[0])
        # Where the sum of products holds the marked element, counted by the reference.
        holds = run_row(plan.ROWS[row.computes, "reference"], case, marked, "float64") != 0
        arrays = [others * a for a in ones]  # what is not finite stays so when it is multiplied by zero
        arrays[position][at] = value
        with np.errstate(invalid="ignore"):  # zero times infinity; without the compiler NumPy would warn
            result = run_row(row, case, arrays, "float32")
        reached = ~np.isfinite(result)
        assert reached[holds].all(), names[position]
        if (row.computes, names[position]) in MEETS_PADDING:
            # It also multiplies zeros on padding, as in the equations, where padding is a part of the image.
            apart = tuple(axis for axis in range(result.ndim) if axis not in OWN_AXES[row.computes])
            holds = holds.any(axis=apart, keepdims=True) & np.ones(result.shape, bool)
        if not row.exact:
            holds = over_tiles(holds, *tiles_of(row, case.geometry.volume))
        assert not reached[~holds].any(), names[position]


def tiles_of(row, g):
    """Return where the first tile begins and its size, along the last two axes."""
    computes = row.computes
    if row.algorithm == "fft":
        return (0, 0), (dft.SPAN, 2 * dft.SPAN)
    if computes == "grad_weight":
        return (0, 0), g.kernel[1:]
    form = tiles.form_of(g, computes == "grad_input")
    first = tiles.cells(g)[1][1:] if computes == "grad_input" else (0, 0)
    return first, [n * step for n, step in zip(form.tile, form.made.steps, strict=True)]


def over_tiles(holds, first, sizes):
    """Spread True over the whole of each tile of the last two axes."""
    holds = holds.copy()
    places = (range(at, n, size) for at, n, size in zip(first, holds.shape[-2:], sizes, strict=True))
    for y, x in itertools.product(*places):
        tile = holds[..., max(0, y) : y + sizes[0], max(0, x) : x + sizes[1]]
        tile[...] = tile.any(axis=(-2, -1), keepdims=True)
    return holds


@ROWS
def test_the_smallest_numbers_are_kept(row):
    """Multiples of the smallest number above zero: nothing is flushed to zero."""
    if not row.exact:
        pytest.skip("its products are other ones")
    for dtype in ("float32", "float64"):
        smallest = np.finfo(dtype).smallest_subnormal
        x, weight, bias, grad_output = (array.astype(dtype) for array in data(FLAT))
        scaled = run_row(row, FLAT, (x * smallest, weight, bias * smallest, grad_output), dtype)
        if row.computes == "grad_input":
            scaled = run_row(row, FLAT, (x, weight * smallest, bias, grad_output), dtype)
        if row.computes == "grad_bias":
            scaled = run_row(row, FLAT, (x, weight, bias, grad_output * smallest), dtype)
        wanted = expected(row.computes, FLAT)
        assert np.abs(wanted).max() > 0
        np.testing.assert_array_equal(scaled, wanted.astype(dtype) * smallest)


def test_the_reference_is_not_what_it_checks():
    """The expectations of these tests come from functions that no public function wraps."""
    assert plan.ROWS["output", "reference"].run.__wrapped__ is reference.general_output
    assert len(CASES) > 300
