"""Calls with anything in the place of anything: each is answered, or refused with a ValueError, TypeError or MemoryError.

Never does one end the process, change an input, or take memory beyond what is free.  Huge arrays have one element in memory, and
strides of zero; so that they are refused at once on any machine, little memory counts as free.
"""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from conftest import SEED
from hypothesis import given
from hypothesis import strategies as st
from numba import config
from test_malformed import (
    NO_ARRAYS,
    WRONG_ALGORITHMS,
    WRONG_BIAS_SHAPES,
    WRONG_DTYPES,
    WRONG_FLAGS,
    WRONG_INTS,
    WRONG_MASKS,
    WRONG_MODES,
    WRONG_PADDINGS,
    WRONG_SIZES,
    arrays_in,
    pick,
    valid_call,
    wrong_out,
)

import fastconv
from fastconv import ConvGrads, arrays, limits, nn, passes
from fastconv.plan import ALGORITHMS

HERE = os.path.dirname(__file__)
FREE = 2**28
"""Bytes that count as free while calls are fuzzed."""

DTYPES = ("f4", "f8", "f2", "i1", "i4", "u8", "?", "c8", "c16", ">f4", ">i2", "g", "O", "U3", "M8[s]", "V4")
HUGE = (2**31 - 1, 2**31, 2**31 + 1, 2**30, 2**16, 2**15, 46341, 2**40)
NUMBERS = (0, 1, 2, 3, 5, 7, 64, 2**15, 2**30, 2**31 - 2, 2**31 - 1, *WRONG_INTS)
VALUES = (0.0, 1.0, np.nan, np.inf, -np.inf, 1e300, 5e-324)


def huge(array, rng):
    """An array of as many axes, of which one or two are long, with one element in memory."""
    shape = [pick((1, 2, 4, 6, *array.shape), rng) for _ in array.shape]
    for _ in range(int(rng.integers(1, 3))):
        if shape:
            shape[int(rng.integers(len(shape)))] = pick(HUGE, rng)
    return stretched(shape, array.dtype)


def stretched(shape, dtype):
    one = np.ones((1,) * len(shape), dtype)
    try:
        return np.lib.stride_tricks.as_strided(one, shape, (0,) * len(shape))
    except ValueError:  # more than NumPy can count
        return one


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def with_value(array, value):
    array = array.copy()
    if array.size and array.dtype.kind in "fc":
        array.flat[array.size // 2] = value
    return array


def other_array(array, rng):
    changes = (
        lambda a: a[..., ::-1],
        lambda a: np.repeat(a, 2, -1)[..., ::2] if a.ndim else a,
        lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -1, 0)), 0, -1) if a.ndim else a,
        lambda a: a.T,
        misaligned,
        lambda a: np.broadcast_to(a.flat[:1].reshape((1,) * a.ndim), a.shape) if a.size else a,
        lambda a: with_value(a, pick(VALUES, rng)),
        lambda a: a.astype(pick(DTYPES, rng)),
        lambda a: a.reshape(-1),
        lambda a: a[None],
        lambda a: a[0] if a.ndim else a,
        lambda a: a[..., :0],
        lambda a: a[..., :1],
        lambda a: np.resize(a, [int(n) for n in rng.integers(0, 9, int(rng.integers(0, 7)))]),
        lambda a: huge(a, rng),
        lambda a: huge(a.astype(pick(DTYPES[:9], rng)), rng),
        lambda a: pick(NO_ARRAYS, rng)(a),
    )
    return pick(changes, rng)(array)


def numbers(rng):
    kind = int(rng.integers(4))
    if kind < 2:
        return pick(NUMBERS, rng)
    return tuple(pick(NUMBERS[: 11 if kind == 2 else None], rng) for _ in range(int(rng.integers(0, 5))))


def other(key, value, arguments, rng):
    """What else may stand for an argument: wrong, odd or harmless."""
    if isinstance(value, np.ndarray):
        return other_array(value, rng)
    choices = {
        "algorithm": ("auto", *ALGORITHMS, *WRONG_ALGORITHMS),
        "mode": ("zeros", "reflect", "replicate", "circular", *WRONG_MODES),
        "dtype": (*DTYPES, *WRONG_DTYPES),
        "output_mask": ((True, False, True), *WRONG_MASKS),
        "accumulate": (True, *WRONG_FLAGS),
        "per_sample": (True, *WRONG_FLAGS),
        "relu": (True, *WRONG_FLAGS),
        "precision": ("highest", *WRONG_MODES),
        "bias_shape": WRONG_BIAS_SHAPES,
    }
    if key in choices:
        return pick(choices[key], rng)
    if key == "out":
        return wrong_out(arguments, rng) if "weight" in arguments and "x" in arguments else None
    if key in ("input_size", "weight_size", "input_shape", "weight_shape"):
        if rng.integers(4) == 0:
            return pick(WRONG_SIZES, rng)
        return tuple(pick((1, 2, 3, 4, *HUGE, *value), rng) if rng.integers(3) == 0 else n for n in value)
    if key == "padding" and rng.integers(2):
        return pick([*WRONG_PADDINGS, "same", "valid", ((0, 1),), ((2**31 - 1, 0),) * 2, ((2**30, 2**30),)], rng)
    return numbers(rng)


def vast_call(rng):
    """A call that is right in all but its size, which no memory holds."""
    ndim, dtype = int(rng.integers(1, 4)), pick(("f4", "f8", "f2", "i1", "c8"), rng)
    n = pick((2**31 - 1, 2**31 - 2, 2**30 + 1), rng)
    ones = (1,) * (ndim - 1)
    conv, grads, transpose = (
        getattr(fastconv, name) for name in (f"conv{ndim}d", f"conv{ndim}d_backward", f"conv_transpose{ndim}d")
    )
    small, one = np.ones((1, 2, *ones, 3), dtype), np.ones((3, 2, *ones, 1), dtype)
    long, far = stretched((1, 2, *ones, n), dtype), (1,) * (ndim - 1) + (2**30,)
    count = (n - 1) // 2**30 + 1
    calls = (
        lambda: conv(long, one),
        lambda: conv(long, one, stride=far),
        lambda: conv(small, one, padding=((0, 0),) * (ndim - 1) + ((n, 0),)),
        lambda: conv(small, stretched((n, 2, *ones, 3), dtype)),
        lambda: conv(stretched((1, n, *ones, 3), dtype), stretched((1, n, *ones, 1), dtype)),
        lambda: conv(stretched((1, n, *ones, 1), dtype), stretched((n, 1, *ones, 1), dtype), groups=n),
        lambda: conv(stretched((n, 2, *ones, 3), dtype), one),
        lambda: conv(small, stretched((3, 2, *ones, n), dtype), padding=((0, 0),) * (ndim - 1) + ((n, 0),)),
        lambda: grads(np.ones((1, 3, *ones, count), dtype), long, one, stride=far),
        lambda: grads(stretched((1, 3, *ones, n), dtype), long, one),
        lambda: grads(np.ones((n > 0, n % 2 + 1, *ones, 3), dtype), small, stretched((n % 2 + 1, 2, *ones, 1), dtype)),
        lambda: transpose(np.ones((1, 3, *ones, 3), dtype), one, stride=far),
        lambda: getattr(fastconv.grad, f"conv{ndim}d_input")(
            long.shape, one, np.ones((1, 3, *ones, count), dtype), far
        ),
        lambda: getattr(fastconv.grad, f"conv{ndim}d_bias")(stretched((1, 3, *ones, n), dtype)),
        lambda: getattr(fastconv, f"conv{ndim}d_jvp")(small, one, padding=((0, 0),) * (ndim - 1) + ((n, 0),)),
        lambda: fastconv.pad(small, ((0, 0),) * (ndim - 1) + ((n, 1),)),
        lambda: fastconv.pad(long, 1 if ndim == 2 else (1,) * ndim, pick(("replicate", "reflect", "circular"), rng)),
        lambda: fastconv.pad_backward(long, (1, 2, *ones, n - 2), ((0, 0),) * (ndim - 1) + ((1, 1),)),
        lambda: str(fastconv.explain(long.shape, one.shape, stride=far)),
        lambda: str(fastconv.explain(long.shape, (3, 2, *ones, n))),
        lambda: str(fastconv.explain((n, 2, *ones, 3), one.shape)),
        lambda: str(fastconv.explain((1, n, *ones, 3), (n, 1, *ones, 1), groups=n)),
    )
    return calls[int(rng.integers(len(calls)))]


def layer_call(rng):
    """A layer, a loss or an optimiser, made and used with numbers and arrays of any kind."""
    layers = ("Conv2d", "ConvTranspose2d", "Conv1d", "Conv3d", "Linear", "BatchNorm2d", "MaxPool2d", "AvgPool2d")
    name = pick(
        (*layers, "AdaptiveAvgPool2d", "ZeroPad2d", "Dropout", "ReLU", "Flatten", "CrossEntropyLoss", "MSELoss"), rng
    )
    sizes = [pick((1, 2, 3, 4), rng) if rng.integers(4) else pick(NUMBERS[:4] + NUMBERS[11:], rng) for _ in range(3)]
    x = np.ones((2, 4, 7, 7), np.float32)
    x = other_array(x, rng) if rng.integers(2) else x
    target = other_array(np.zeros(2, np.int64), rng)

    def call():
        module = getattr(nn, name)(
            *sizes[: 0 if name.endswith("Loss") or name in ("ReLU", "Flatten") else 3 - ("Pool" in name)]
        )
        if name.endswith("Loss"):
            module(x, target)
            module.backward()
            return
        if rng.integers(4) == 0:
            module.eval()(x)
        out = module.train()(x)
        module.backward(
            other_array(out, rng) if rng.integers(2) else out, **({"input_grad": True} if rng.integers(2) else {})
        )

    return call, arrays_in((x, target))


def any_call(rng):
    """Return a call without arguments, and its arrays."""
    kind = int(rng.integers(12))
    if kind == 0:
        return vast_call(rng), []
    if kind == 1:
        return layer_call(rng)
    if kind == 2:
        value = pick(NUMBERS, rng)
        return lambda: fastconv.num_threads(value).__enter__(), []
    function, _, arguments = valid_call(rng)
    if "accumulate" in arguments and rng.integers(4) == 0:  # outs of its own
        arguments["out"] = ConvGrads(*(np.zeros_like(arguments[k]) for k in ("x", "weight")), np.zeros(6))
    changed = dict(arguments)
    for _ in range(int(rng.integers(1, 4))):
        key = pick(tuple(arguments), rng)
        changed[key] = other(key, arguments[key], arguments, rng)
    inputs = [v for key, value in changed.items() if key != "out" for v in arrays_in(value)]
    return lambda: function(**changed), inputs


def in_memory(array):
    """The bytes that an array has in memory; of a stretched one, its only element."""
    return array.tobytes() if array.size <= 10**6 else array[(0,) * array.ndim].tobytes() if array.size else b""


def check(rng):
    """Make a call; return whether it was answered."""
    call, inputs = any_call(rng)
    before = [in_memory(array) for array in inputs]
    threads = fastconv.get_num_threads()
    try:
        with np.errstate(all="ignore"):
            call()
        answered = True
    except (ValueError, TypeError, MemoryError):
        answered = False
    finally:
        fastconv.set_precision("high")
        fastconv.set_num_threads(threads)
    assert [in_memory(array) for array in inputs] == before, "it changed an input"
    return answered


def most_resident():
    """The most bytes that the process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(first, count):
    """Make many calls, each announced beforehand, and watch the memory that they take, without what is kept for later ones."""
    limits.free_memory = lambda: FREE
    arrays.MOST_POOLED = 0
    for warm in range(200):
        check(np.random.default_rng([SEED, 7, warm]))
    start = most_resident()
    answered = 0
    for number in range(first, first + count):
        print(number, file=sys.stderr, flush=True)
        answered += check(np.random.default_rng([SEED, number]))
    print(answered, most_resident() - start)


@pytest.mark.skipif(
    bool(config.DISABLE_JIT), reason="a kernel without the compiler takes minutes where there are millions of taps"
)
@pytest.mark.parametrize(("first", "count"), [(0, 3000), pytest.param(3000, 20000, marks=pytest.mark.long)])
def test_any_call(first, count):
    program = f"import sys; sys.path.insert(0, {HERE!r}); import test_fuzz; test_fuzz.run({first}, {count})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-X", "faulthandler", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode} at call\n{done.stderr[-3000:]}"
    answered, grown = map(int, done.stdout.split())
    assert count / 20 < answered < count / 2  # some are harmless, most are not
    assert grown < 2 * FREE


class Drawn:
    """Hypothesis in the place of a random generator."""

    def __init__(self, data):
        self.data = data

    def integers(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        if size is not None:
            return [self.integers(low, high) for _ in range(size)]
        return self.data.draw(st.integers(low, high - 1))

    def random(self):
        return self.data.draw(st.floats(0, 1))


@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
def test_any_call_that_hypothesis_thinks_of(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "free_memory", lambda: FREE)
        check(Drawn(data))


def test_memory_is_asked_for_before_it_is_taken(monkeypatch):
    """Results, copies and scratch memory, all together."""
    x, weight = np.ones((8, 64, 64, 64), np.float32), np.ones((64, 64, 3, 3), np.float32)
    scratch = fastconv.explain(x.shape, weight.shape, padding=1).output.scratch_bytes
    assert scratch > 0
    taken = []
    monkeypatch.setattr(passes, "target", lambda *arguments: taken.append(arguments))
    for images, free in ((x, x.nbytes), (x, x.nbytes + scratch), (x[:, ::-1], 2 * x.nbytes + scratch), (x, 0)):
        monkeypatch.setattr(limits, "_known", (-np.inf, 0))
        monkeypatch.setattr(limits, "free_memory", lambda free=free: free - 1)
        with pytest.raises(
            MemoryError, match=r"^output of shape \(8, 64, 1, 64, 64\).* takes [0-9]+ bytes, -?[0-9]+ are free$"
        ):
            fastconv.conv2d(images, weight, padding=1)
    assert not taken
