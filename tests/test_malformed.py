"""Malformed calls: each is refused with a ValueError or a TypeError that names the argument, and changes no input.

A malformed call is a valid one in which one argument has been replaced.  What replaces it knows which arguments the message may
name: the replaced one, or, where arrays do not fit each other, any of those that do not.
"""

import re
import types

import numpy as np
import pytest
from conftest import SEED

import fastconv
from fastconv import ConvGrads, grad

COUNT = 1000


class Sparse:
    """Looks like an array, as sparse matrices do, but is none."""

    shape, dtype, ndim, nnz = (2, 4, 7, 7), np.dtype("float64"), 4, 3

    def toarray(self):
        return np.ones(self.shape)


class OnlyArray:
    def __array__(self, dtype=None, copy=None):
        return np.ones((2, 4, 7, 7))


def with_interface(interface):
    return type("Interface", (), {"__array_interface__": interface})()


def raising(error):
    def method(self, *arguments, **keywords):
        raise error

    return method


def with_dlpack(method):
    return type("DLPack", (), {"__dlpack__": method, "__dlpack_device__": lambda self: (1, 0)})()


MEMORY = np.ones(10)
VALID = MEMORY.__array_interface__

NO_ARRAYS = [
    lambda a: None,
    lambda a: 1.0,
    lambda a: 3,
    lambda a: "text",
    lambda a: b"bytes",
    lambda a: a.tolist(),
    lambda a: (),
    lambda a: {"array": a},
    lambda a: iter(a),
    lambda a: memoryview(a),
    lambda a: object(),
    lambda a: types.SimpleNamespace(shape=a.shape, dtype=a.dtype),
    lambda a: np.ndarray,
    lambda a: np.array(None),
    lambda a: a.astype(object),
    lambda a: a.astype("U8"),
    lambda a: a.astype(np.longdouble),
    lambda a: a.astype(np.clongdouble),
    lambda a: np.zeros(a.shape, "M8[s]"),
    lambda a: np.zeros(a.shape, "m8[s]"),
    lambda a: np.zeros(a.shape, "V8"),
    lambda a: np.zeros(a.shape, [("a", "f8"), ("b", "i4")]),
    lambda a: np.ma.array(a, mask=np.zeros(a.shape, bool)),
    lambda a: Sparse(),
    lambda a: OnlyArray(),
    lambda a: with_interface(None),
    lambda a: with_interface({}),
    lambda a: with_interface("text"),
    lambda a: with_interface({**VALID, "typestr": "nonsense"}),
    lambda a: with_interface({**VALID, "typestr": "|O"}),
    lambda a: with_interface({**VALID, "shape": (-3,)}),
    lambda a: with_interface({**VALID, "shape": "abc"}),
    lambda a: with_interface({**VALID, "strides": (8, 8)}),
    lambda a: with_interface({**VALID, "data": None}),
    lambda a: with_interface(property(raising(AttributeError("gone")))),
    lambda a: with_interface(property(raising(RuntimeError("gone")))),
    lambda a: with_dlpack(raising(RuntimeError("requires grad"))),
    lambda a: with_dlpack(raising(BufferError("on another device"))),
    lambda a: with_dlpack(lambda self, **_: None),
    lambda a: with_dlpack(lambda self, **_: object()),
    lambda a: with_dlpack(lambda self: 3),
    lambda a: with_dlpack(None),
    lambda a: type("CUDA", (), {"__cuda_array_interface__": VALID})(),
]

WRONG_SHAPES = [  # for any array, batch or none
    lambda a: a.reshape(-1) if a.ndim > 1 else a.reshape(1, 1, -1),
    lambda a: a.ravel()[0],
    lambda a: a.ravel()[:1].reshape(()),
    lambda a: a[None, None, None],
    lambda a: a[..., None, None, None, None, None],
    lambda a: a[..., :0],
    lambda a: np.tile(
        a, (2,) * min(2, a.ndim) + (1,) * (a.ndim - 2)
    ),  # twice the channels, whether there is a batch or not
]

OTHER_DTYPES = ["float32", "float16", "int64", "int8", "bool", "complex128", ">f4"]

WRONG_INTS = [
    -1, -7, -(2**31), 2**31, 2**63, 2**64, 10**30, 1.0, 1.5, np.float64(2.0), float("nan"), float("inf"), 1j, None, "",
    "1", "same!", b"1", True, False, np.True_, (), [], [[1]], [None], (1.5,), ("1",), (True,), (1, 1, 1, 1), [1] * 9, {1}, {1: 1},
    object(), int, np.array([1, 1]), np.array([1.0]), np.array("a"), slice(1), range(1), (-1,), (2**31,), ((1,),), lambda: 1,
]  # fmt: skip

WRONG_PADDINGS = [
    *(value for value in WRONG_INTS if repr(value) not in ("[[1]]", "((1,),)")),
    "full", "SAME", "valid ", ((0, -1),), ((0, 1, 2),), ((),), ((0, None),), ((0, 1.0),), (("a", "b"),), [(0, True)],
    ((0, 2**31),), ((0, 1),) * 4, [[[0, 1]]],
]  # fmt: skip

WRONG_SIZES = [
    None, 7, 1.5, "abcd", b"abcd", (), [], (2,), (1,) * 7, True, object(), {"n": 2}, {2, 3}, np.array([2, 4, 7, 7]), iter([2, 4]),
]  # fmt: skip


def changed_sizes(size, rng):
    """Replace one size, but for the batch: what then may be meant by it?"""
    at = int(rng.integers(1, len(size)))
    new = [0, -1, -(2**40), 2**31, 10**30, 1.0, 2.5, None, "3", True, (2,), float("nan")]
    return (*size[:at], new[rng.integers(len(new))], *size[at + 1 :])


WRONG_FLAGS = [None, "yes", "", 1, 0, 1.0, [], [True], object(), np.array([True])]
WRONG_MASKS = [
    None,
    True,
    3,
    "abc",
    (),
    (True,),
    (True, True),
    (True,) * 4,
    (1, 1, 1),
    (True, True, None),
    ["a"] * 3,
    {True},
    {},
]
WRONG_ALGORITHMS = [None, "", "fft", "Auto", "loops ", b"auto", 3, True, ["auto"], ("loops",), object(), 1.5]
WRONG_MODES = [None, "", "constant", "Reflect", b"zeros", 3, ["zeros"], object()]
WRONG_DTYPES = [
    None,
    "object",
    object,
    "nonsense",
    "f3",
    ",",
    "U3",
    "M8[s]",
    np.longdouble,
    3,
    1.5,
    [("a", "f4")],
    "f4,f4",
    [],
    {},
]
WRONG_BIAS_SHAPES = [
    3,
    "x",
    b"\x06",
    (),
    (5,),
    (6, 1),
    (6.0,),
    (6, 1, 1, 1, 1, 1),
    (None,),
    ("6",),
    (-6,),
    [[6]],
    True,
    (6, 1.0, 1, 1),
    6.5,
]


def wrong_outs(shape, dtype):
    """What cannot take a result of this shape and dtype."""
    locked = np.zeros(shape, dtype)
    locked.flags.writeable = False
    return [
        1.0, "out", [0.0], (), object(), Sparse(), np.zeros(shape, dtype).tolist(), memoryview(np.zeros(shape, dtype)),
        np.zeros(shape, "f4"), np.zeros(shape, "i8"), np.zeros(shape, object), np.zeros(shape, dtype.newbyteorder("S")),
        np.zeros((*shape, 1), dtype), np.zeros(shape[1:], dtype), np.zeros((*shape[:-1], shape[-1] + 1), dtype),
        np.zeros((), dtype), np.zeros(0, dtype), locked, np.broadcast_to(np.zeros(1, dtype), shape),
        np.lib.stride_tricks.as_strided(np.zeros(99, dtype), shape, (4,) * len(shape)), np.ma.zeros(shape, dtype),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Valid calls
# ---------------------------------------------------------------------------------------------------------------------

INTS = ("stride", "dilation", "output_padding")
SIZES = ("input_size", "weight_size", "input_shape", "weight_shape")
FLAGS = ("accumulate", "per_sample", "relu")


def valid_call(rng):
    """Return a function, its name and a dictionary of good arguments; channels 4, filters 6, groups 1 or 2."""
    ndim, batch, groups = int(rng.integers(1, 4)), (2, None)[rng.integers(2)], int(rng.integers(1, 3))
    lead = () if batch is None else (batch,)
    n, f, channels, filters = 7, 3, 4, 6
    x = np.ones((*lead, channels) + (n,) * ndim)
    weight = np.ones((filters, channels // groups) + (f,) * ndim)
    bias = np.ones(filters)
    stride, padding, dilation = 2, 1, 1
    grad_output = np.ones((*lead, filters) + ((n + 2 * padding - f) // stride + 1,) * ndim)
    common = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    backward = {"output_mask": (True, True, True), "bias_shape": (filters,)}
    # As a transposed convolution x has the filters, and the result the channels.
    transposed = {**common, "output_padding": 0}
    calls = {
        f"conv{ndim}d": {
            "x": x, "weight": weight, "bias": bias, **common, "out": None, "relu": False, "algorithm": "loops",
        },
        f"conv{ndim}d_backward": {
            "grad_output": grad_output, "x": x, "weight": weight, **common, **backward, "out": None, "accumulate": False,
            "per_sample": False, "algorithm": "loops",
        },
        f"conv_transpose{ndim}d": {"x": grad_output, "weight": weight, "bias": np.ones(channels), **transposed},
        f"conv_transpose{ndim}d_backward": {
            "grad_output": x, "x": grad_output, "weight": weight, **transposed, "output_mask": (True, True, True),
            "bias_shape": (channels,),
        },
        f"conv{ndim}d_jvp": {
            "x": x, "weight": weight, "x_tangent": x + 1, "weight_tangent": weight + 1, "bias_tangent": bias, **common,
        },
        f"grad.conv{ndim}d_input": {"input_size": x.shape, "weight": weight, "grad_output": grad_output, **common},
        f"grad.conv{ndim}d_weight": {"input": x, "weight_size": weight.shape, "grad_output": grad_output, **common},
        f"grad.conv{ndim}d_bias": {"grad_output": grad_output},
        "pad": {"x": x, "padding": ((1, 2),) * ndim, "mode": ("zeros", "reflect", "replicate", "circular")[rng.integers(4)]},
        "pad_backward": {
            "grad_output": np.ones(x.shape[: x.ndim - ndim] + (n + 3,) * ndim), "input_size": x.shape,
            "padding": ((1, 2),) * ndim, "mode": ("zeros", "reflect", "replicate", "circular")[rng.integers(4)],
        },
        "explain": {
            "input_shape": x.shape, "weight_shape": weight.shape, **common, "dtype": "float32", "algorithm": "loops",
        },
        "set_precision": {"precision": "high"},
    }  # fmt: skip
    name = tuple(calls)[rng.integers(len(calls))]
    function = getattr(grad, name[5:]) if name.startswith("grad.") else getattr(fastconv, name)
    return function, name, calls[name]


def pick(values, rng):
    return values[int(rng.integers(len(values)))]


def malformed_call(rng):
    """Return a function, its arguments of which one is wrong, that one's name, and the names that the message may hold."""
    function, name, arguments = valid_call(rng)
    kind = rng.random()
    if kind < 0.02:
        return function, {**arguments, "colour": 3}, "colour", {"colour"}
    required = [key for key in arguments if key in ("x", "weight", "grad_output", *SIZES, "input", "precision")]
    if kind < 0.04:
        missing = pick(required, rng)
        return function, {k: v for k, v in arguments.items() if k != missing}, missing, {missing}
    key = pick([k for k in arguments for _ in range(2 if k in required or k == "out" else 1)], rng)
    value, names = wrong_value(name, key, arguments, rng)
    return function, {**arguments, key: value}, key, names


def wrong_value(name, key, arguments, rng):
    good = arguments[key]
    arrays = {k for k, v in arguments.items() if isinstance(v, np.ndarray)}
    if key == "out":
        return wrong_out(arguments, rng), {"out"}
    if isinstance(good, np.ndarray):
        turn = rng.integers(4)
        if turn == 0 and len(arrays) > 1:
            return good.astype(pick(OTHER_DTYPES, rng)), {key}
        if turn == 1:
            # Where there is but one array, any number of channels and pixels fits.
            value = pick(
                WRONG_SHAPES[:-2] if arrays == {key} and not set(arguments) & set(SIZES) else WRONG_SHAPES, rng
            )(good)
            # What no longer fits may be said of any that it does not fit to.
            return value, arrays | {"groups", *(set(arguments) & set(SIZES))}
        optional = key in ("bias", "x_tangent", "weight_tangent", "bias_tangent")
        return pick(NO_ARRAYS[1:] if optional else NO_ARRAYS, rng)(good), {key}
    if key in SIZES:
        if rng.integers(2):
            return pick(WRONG_SIZES, rng), {key}
        # A size that is possible by itself contradicts the other arguments.
        return changed_sizes(good, rng), {key, *(set(arguments) & {*SIZES, "grad_output"})}
    if key in INTS:
        if key != "output_padding" and rng.integers(6) == 0:
            return 0, {key}
        if key == "output_padding" and rng.integers(3) == 0:
            return pick([2, 5, (2**31 - 1,)], rng), {key}
        return pick(WRONG_INTS, rng), {key}
    if key == "padding":
        if name.startswith("conv_transpose") and rng.integers(3) == 0:
            return pick(["same", "valid", 99, ((0, 99),)], rng), {key}
        if not name.startswith(("conv_transpose", "pad")) and rng.integers(6) == 0:
            return "same", {key}  # with stride 2
        if name in ("conv1d", "conv2d", "conv3d") and rng.integers(6) == 0:
            return 2**31 - 1, {"output"}  # beyond any memory
        return pick(WRONG_PADDINGS, rng), {key, "x", "input_size"} if name.startswith("pad") else {key}
    if key == "groups":
        if name.startswith("conv_transpose") and rng.integers(9) == 0:
            return 3, {key, "bias", "grad_output"}  # it divides the channels of x, and multiplies those of the result
        return pick([*WRONG_INTS, 0, 4, 5, 2**31 - 1], rng), {key}
    choices = {
        "algorithm": WRONG_ALGORITHMS, "mode": WRONG_MODES, "dtype": WRONG_DTYPES, "output_mask": WRONG_MASKS,
        **dict.fromkeys(FLAGS, WRONG_FLAGS), "precision": WRONG_MODES, "bias_shape": WRONG_BIAS_SHAPES,
    }  # fmt: skip
    return pick(choices[key], rng), {key}


def wrong_out(arguments, rng):
    if "grad_output" not in arguments:
        ndim = arguments["weight"].ndim - 2
        n = arguments["x"].shape[-1]
        shape = (*arguments["x"].shape[: -ndim - 1], 6) + ((n - 1) // 2 + 1,) * ndim
        overlapping = np.frombuffer(arguments["x"].data, count=np.prod(shape)).reshape(shape)
        return pick([*wrong_outs(shape, np.dtype("float64")), overlapping], rng)
    good = [np.zeros_like(arguments["x"]), np.zeros_like(arguments["weight"]), np.zeros(6)]
    if rng.integers(3) == 0:
        return pick([1.0, "out", good, tuple(good[:2]), (*good, None), good[0], (None,) * 3, object(), {}], rng)
    at = int(rng.integers(3))
    overlapping = (arguments["x"], arguments["weight"], arguments["weight"].reshape(-1)[:6])[at]
    good[at] = pick([*wrong_outs(good[at].shape, np.dtype("float64")), overlapping, None], rng)
    return ConvGrads(*good)


def arrays_in(value):
    if type(value) in (tuple, list, ConvGrads):
        return [array for part in value for array in arrays_in(part)]
    return [value] if isinstance(value, np.ndarray) and value.dtype != object else []


def check_refused(function, arguments, key, names):
    before = [(array, array.tobytes()) for value in arguments.values() for array in arrays_in(value)]
    shown = repr(arguments.get(key, "missing"))[:200]
    print(f"{function.__name__} with {key}={shown}")  # shown if it is taken
    with pytest.raises((ValueError, TypeError, MemoryError)) as caught:
        function(**arguments)
    message = str(caught.value)
    assert caught.type in (ValueError, TypeError) or (caught.type is MemoryError and names == {"output"}), message
    assert any(re.search(rf"\b{name}\b", message) for name in names), f"{key}={shown} is said to be: {message}"
    for array, values in before:
        assert array.tobytes() == values


def is_malformed(number):
    return malformed_call(np.random.default_rng([SEED, number]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", range(COUNT))
def test_malformed(number):
    """Though the call that was changed has been made, so that its form is known."""
    function, _, good = valid_call(np.random.default_rng([SEED, number]))
    if "out" not in good:
        function(**good)
    check_refused(*is_malformed(number))


@pytest.mark.long
@pytest.mark.parametrize("block", range(100))
def test_many_malformed(block):
    for number in range((block + 1) * COUNT, (block + 2) * COUNT):
        check_refused(*is_malformed(number))


def test_what_is_changed_was_good():
    """The calls are refused for the argument that was replaced, and for nothing else."""
    seen = set()
    for number in range(200):
        function, name, arguments = valid_call(np.random.default_rng([SEED, number]))
        if name not in seen:
            seen.add(name)
            function(**arguments)
    assert len(seen) >= 26


def test_every_kind_of_argument_is_replaced():
    """Of the thousand calls."""
    calls = [is_malformed(number) for number in range(COUNT)]
    assert {function.__name__ for function, *_ in calls} == {
        f"conv{n}d{what}" for n in (1, 2, 3) for what in ("", "_backward", "_jvp", "_input", "_weight", "_bias")
    } | {f"conv_transpose{n}d{what}" for n in (1, 2, 3) for what in ("", "_backward")} | {
        "pad", "pad_backward", "explain", "set_precision"
    }  # fmt: skip
    assert {key for _, _, key, _ in calls} == {
        "x", "weight", "bias", "grad_output", "input", "x_tangent", "weight_tangent", "bias_tangent", "stride", "padding",
        "dilation", "groups", "output_padding", *SIZES, "out", "output_mask", "bias_shape", *FLAGS, "algorithm", "mode", "dtype",
        "precision", "colour",
    }  # fmt: skip
