"""What a kernel touches, and what its result depends on: guard pages around every array, and any number of threads."""

import os
import subprocess
import sys

import pytest
from numba import config

pytestmark = pytest.mark.skipif(bool(config.DISABLE_JIT), reason="Python itself checks bounds, and has no threads")

HERE = os.path.dirname(__file__)

GUARDED = """
import ctypes, mmap, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from cases import CASES, PASSES, data, expected, inputs_of, result_shape, shapes_3d
from fastconv import plan
from test_rows import MOST_SCRATCH, channels_last, check_values, memories

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
PAGE = mmap.PAGESIZE


def guard(array, at_end):
    '''Copy an array to where the page behind it, or the one before it, must not be touched.'''
    pages = -(-max(array.nbytes, 1) // PAGE) + 2
    memory = mmap.mmap(-1, pages * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages - 1):
        assert libc.mprotect(address + page * PAGE, PAGE, 0) == 0
    kept.append(memory)
    first = (pages - 1) * PAGE - array.nbytes if at_end else PAGE
    flat = np.frombuffer(memory, array.dtype, array.size, first)
    last = not array.flags.c_contiguous
    view = flat.reshape(np.moveaxis(array, 1, -1).shape if last else array.shape)
    view = np.moveaxis(view, -1, 1) if last else view
    view[...] = array
    return view


def check(row, case, dtype, last, at_end):
    x, weight, bias, grad_output = (a.reshape(s) for a, s in zip(data(case, dtype), shapes_3d(case), strict=True))
    out = np.zeros(result_shape(row.computes, case, 1), dtype)
    if "in" in last:
        x, grad_output = channels_last(x), channels_last(grad_output)
    if "weight" in last:
        weight = channels_last(weight)
    if "out" in last and row.computes in ("output", "grad_input"):
        out = channels_last(out)
    arrays = [guard(array, at_end) for array in (*inputs_of(row.computes, x, weight, bias, grad_output), out)]
    row.run(case.geometry.volume, *arrays)
    check_values(row, arrays[-1], expected(row.computes, case))


count = 0
for row in (row for row in plan.TABLE if row.algorithm != "reference"):
    for number, case in enumerate(CASES[:: int(sys.argv[2])]):
        dtype = ("float32", "float64")[number % 2]
        if row.unable(case.geometry, np.dtype(dtype)) is not None:
            continue
        if row.scratch(case.geometry, np.dtype(dtype).itemsize) > MOST_SCRATCH:
            continue
        for last in memories(row):
            for at_end in (True, False):
                kept = []
                print(row.computes, row.algorithm, case, dtype, last, at_end, file=sys.stderr, flush=True)
                check(row, case, dtype, last, at_end)
                count += 1
if len(sys.argv) > 3:  # see it fail
    kept = []
    array = guard(np.ones(8, np.float32), True)
    print(np.lib.stride_tricks.as_strided(array, (9,))[8])
print(count)
"""


def run(script, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", script, HERE, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made as on Linux")
@pytest.mark.parametrize(
    "every", [pytest.param(1, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.slow), 30]
)
def test_guard_pages(every):
    """No row touches a page before or behind its arrays."""
    done = run(GUARDED, str(every))
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 1000 // every


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages are made as on Linux")
def test_guard_pages_guard():
    """Reading one number beyond an array ends the process."""
    done = run(GUARDED.replace("in plan.TABLE if", "in () if"), "1", "beyond")
    assert done.returncode < 0, done.stderr


BITS = """
import hashlib, itertools, sys
import numba, numpy as np
import fastconv

rng = np.random.default_rng(0)
layers = (
    # batch, channels, size, filters, kernel, stride, padding, groups
    (2, 64, 14, 64, 3, 1, 1, 1), (1, 128, 8, 128, 3, 1, 1, 1), (3, 35, 15, 65, 3, 2, 1, 1), (8, 256, 7, 512, 1, 1, 0, 1),
    (2, 3, 56, 32, 7, 2, 3, 1), (4, 1, 28, 32, 5, 1, 2, 1), (4, 96, 14, 96, 3, 1, 1, 96), (4, 72, 14, 72, 5, 2, 2, 72),
    (2, 48, 12, 64, 3, 1, 1, 4), (3, 64, 30, 64, 3, 1, 1, 1), (2, 35, 13, 65, 5, 1, 2, 1),
    (3, 150, 15, 150, 7, 1, 3, 150), (20, 80, 7, 80, 7, 1, 3, 80),
)
for dtype, algorithm in itertools.product((np.float32, np.float64), ("direct", "winograd", "fft")):
    for n, c, size, f, k, s, p, g in layers:
        if algorithm == "winograd" and ((k, s) not in ((3, 1), (5, 1), (3, 2)) or g == c or (k == 5 and c == 1)):
            continue
        if algorithm == "fft" and k * g != 7 * c:
            continue
        x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((n, c, size, size), (f, c // g, k, k)))
        b = rng.standard_normal(f).astype(dtype)
        for last in (False, True):
            if last:
                x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
            digests = []
            for threads in (*range(1, numba.config.NUMBA_NUM_THREADS + 1), 1):
                numba.set_num_threads(threads)
                for _ in range(2):
                    out = fastconv.conv2d(x, w, b, s, p, 1, g, algorithm=algorithm)
                    grads = fastconv.conv2d_backward(out, x, w, s, p, 1, g, algorithm=algorithm)
                    digests.append([hashlib.sha256(np.ascontiguousarray(a)).hexdigest() for a in (out, *grads)])
            for digest in digests:
                assert digest == digests[0], (n, c, size, f, k, s, p, g, dtype, algorithm, last)
            print(*digests[0])
"""


def test_same_bits_for_any_number_of_threads():
    """Bits do not depend on the number of threads, on that of the process, or on the run."""
    results = [run(BITS, NUMBA_NUM_THREADS=str(threads)) for threads in (1, 3)]
    for done in results:
        assert done.returncode == 0, done.stderr[-2000:]
    assert results[0].stdout == results[1].stdout
    assert len(results[0].stdout.split()) == 2 * (13 + 6 + 2) * 2 * 4
