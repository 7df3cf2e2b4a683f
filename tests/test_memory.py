"""Where results lie: large ones take the memory of those that are gone, and never that of one that is still seen."""

import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import config

from fastconv import arrays, models, nn

BYTE = np.dtype(np.uint8)


@pytest.fixture(autouse=True)
def _own_pool(monkeypatch):
    monkeypatch.setattr(arrays, "_pool", [])


def large(size=arrays.LEAST_POOLED):
    return arrays.empty("result", (size,), BYTE)


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("size", [arrays.LEAST_POOLED, arrays.LEAST_POOLED + 8])
def test_begins_with_a_line(size):
    for dtype in (np.float32, np.float64):
        array = arrays.empty("result", (size // np.dtype(dtype).itemsize,), np.dtype(dtype))
        assert address(array) % arrays.LINE == 0
        assert array.flags.carray


def test_memory_is_used_again():
    first = address(large())
    assert address(large()) == first
    assert address(large(3 * arrays.LEAST_POOLED)) != first  # it does not fit


def test_the_last_is_taken_first():
    """It may still be in the cache."""
    first, second = large(), large()
    wanted = address(first)
    del second, first
    assert address(large()) == wanted


def test_a_view_keeps_its_memory():
    view = large()[100:200].reshape(10, 10).T
    assert not np.shares_memory(view, large())


def test_the_pool_is_bounded(monkeypatch):
    monkeypatch.setattr(arrays, "MOST_POOLED", 3 * arrays.LEAST_POOLED)
    kept = [large() for _ in range(5)]
    kept.clear()
    assert 0 < sum(memory.nbytes for memory in arrays._pool) <= arrays.MOST_POOLED


def test_threads_do_not_share_memory():
    def work(number):
        for _ in range(300):
            array = large()
            array[::4096] = number
            assert (array[::4096] == number).all()
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))


def test_the_pool_can_be_emptied():
    large()
    assert arrays._pool
    arrays.release()
    assert not arrays._pool


@pytest.mark.skipif(config.DISABLE_JIT, reason="networks take too long without the compiler")
@pytest.mark.parametrize(("name", "shape", "batch"), [("lenet", (1, 28, 28), 128), ("vgg11", (3, 32, 32), 8)])
def test_steps_take_no_new_memory(name, shape, batch):
    """From the second on, arrays lie where those of the step before lay; what is left are small ones and copies."""
    model = getattr(models, name)(shape, 10, rng=0)
    loss, optimiser = nn.CrossEntropyLoss(), nn.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = np.ones((batch, *shape), np.float32), np.zeros(batch, np.int64)
    peaks = []
    for _ in range(4):
        tracemalloc.start()
        model.zero_grad()
        loss(model(x), y)
        model.backward(loss.backward())
        optimiser.step()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[-1] < peaks[0] / 15, peaks


def test_nothing_is_said_at_exit():
    script = (
        "import numpy as np; from fastconv import arrays\n"
        "kept = [arrays.empty('x', (2**22,), np.dtype(np.uint8))]; kept.append(kept)"  # in a cycle, until the very end
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
