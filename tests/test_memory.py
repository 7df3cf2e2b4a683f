"""Where results lie: large ones take the memory of those that are gone, and never that of one that is still seen."""

import gc
import itertools
import subprocess
import sys
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import config

import fastconv
from fastconv import arrays, limits, models, nn

BYTE = np.dtype(np.uint8)

OBJECTS = 2**15
"""Most bytes of Python's objects, some hundred for each array, that a step makes and that live at one time."""


@pytest.fixture(autouse=True)
def _own_pool(monkeypatch):
    monkeypatch.setattr(arrays, "_local", threading.local())


def large(size=arrays.LEAST_POOLED):
    return arrays.empty("result", (size,), BYTE)


def kept_bytes():
    pool = getattr(arrays._local, "pool", None)
    return pool.size if pool else 0


def address(array):
    return array.__array_interface__["data"][0]


def apart(a, b, distance):
    """Lines by which b lies behind a, of those in a distance."""
    return (address(b) - address(a)) % distance // arrays.LINE


DISTANCES = [arrays.PAGE >> n for n in range(5)]


@pytest.mark.parametrize("distance", DISTANCES)
def test_results_begin_apart_from_what_they_are_computed_from(distance):
    """Tiles that write a line behind, modulo a page, what they read next wait for their own stores."""
    memory = np.empty(arrays.LEAST_PLACED + arrays.PAGE, np.uint8)
    for start in range(0, arrays.PAGE, arrays.LINE):
        other = memory[start : start + arrays.LEAST_PLACED]
        for _ in range(2):  # new memory, and the same again
            result = arrays.empty("result", (arrays.LEAST_PLACED,), BYTE, other)
            assert apart(other, result, distance) not in (0, 1, 2), start
            assert address(result) % arrays.LINE == 0
            result[:] = 1
            del result


def test_large_arrays_begin_apart():
    kept = [large(arrays.LEAST_PLACED + 8 * n) for n in range(4)]
    for a, b in itertools.pairwise(kept):
        assert apart(a, b, arrays.PAGE) not in (0, 1)


@pytest.mark.parametrize("channels_last", [False, True])
def test_passes_place_what_they_return(channels_last):
    """When they are first called, and when they are remembered."""
    x = np.ones((2, 64, 28, 28), np.float32)
    if channels_last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    weight = np.ones((64, 1, 3, 3), np.float32)
    for _ in range(3):
        out = fastconv.conv2d(x, weight, padding=1, groups=64)
        dx = fastconv.conv2d_backward(out, x, weight, padding=1, groups=64, output_mask=(True, False, False)).input
        for a, b in ((x, out), (out, dx)):
            assert apart(a, b, arrays.PAGE) == (arrays.PAGE - arrays.APART) // arrays.LINE


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
    assert 0 < kept_bytes() <= arrays.MOST_POOLED


def test_what_is_not_wanted_again_goes_first(monkeypatch):
    """However much waits that fits nothing, the arrays of now are kept."""
    monkeypatch.setattr(arrays, "MOST_POOLED", 20 * arrays.LEAST_POOLED)
    for times in (2, 2, 5):
        kept = [large(times * arrays.LEAST_POOLED) for _ in range(4)]
        kept.clear()
    assert kept_bytes() == arrays.MOST_POOLED
    first = address(large(5 * arrays.LEAST_POOLED))
    assert address(large(5 * arrays.LEAST_POOLED)) == first


def test_threads_do_not_share_memory():
    def work(number):
        for _ in range(300):
            array = large()
            array[::4096] = number
            assert (array[::4096] == number).all()
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))


def test_memory_returns_to_the_thread_that_asked_for_it():
    array = large()
    first, held = address(array), [array]
    del array
    with ThreadPoolExecutor(1) as threads:
        threads.submit(held.clear).result()
        assert address(large()) == first


def test_the_pool_can_be_emptied():
    large()
    assert kept_bytes() == arrays.LEAST_POOLED
    arrays.release()
    assert kept_bytes() == 0


def test_it_is_emptied_before_memory_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "_known", (-np.inf, 0))
    monkeypatch.setattr(limits, "free_memory", lambda: 2**23 - kept_bytes())
    large(2**22)
    large(2**23)
    with pytest.raises(MemoryError):
        large(2**23 + 1)


def test_it_goes_with_its_thread():
    def leave():
        large()
        return weakref.ref(arrays._local.pool)

    with ThreadPoolExecutor(1) as threads:
        pool = threads.submit(leave).result()
        assert pool().size == arrays.LEAST_POOLED
    assert pool() is None


def test_an_array_may_outlive_its_thread():
    with ThreadPoolExecutor(1) as threads:
        array = threads.submit(large).result()
    array[:] = 1
    assert array.all()


def test_memory_may_come_back_while_the_pool_is_at_work():
    """Arrays in a cycle go when the collector comes by, whatever else is being done."""

    class Size(int):
        __hash__ = int.__hash__

        def __gt__(self, other):
            gc.collect()
            return int(self) > other

    large(3 * arrays.LEAST_POOLED)
    large(arrays.LEAST_POOLED)
    pool = arrays._local.pool
    pool._waiting = {Size(size): waiting for size, waiting in pool._waiting.items()}
    cycle = [large(9 * arrays.LEAST_POOLED)]
    cycle.append(cycle)
    gone = weakref.ref(cycle[0])
    del cycle
    assert large(2 * arrays.LEAST_POOLED).size
    assert gone() is None
    assert kept_bytes() == 13 * arrays.LEAST_POOLED


def test_nothing_of_python_runs_when_an_array_goes():
    """Ctrl-C would be lost there: of an exception in a destructor Python only tells, and goes on."""
    seen = []
    array = large()
    sys.setprofile(lambda frame, event, argument: seen.append(frame.f_code.co_name) if event == "call" else None)
    try:
        del array
    finally:
        sys.setprofile(None)
    assert seen == []


def growth(model, image, batch):
    """Bytes by which memory that Python, NumPy and kernels allocate rises above what is kept, in steady steps of training."""
    loss, optimiser = nn.CrossEntropyLoss(), nn.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = np.ones((batch, *image), np.float32), np.zeros(batch, np.int64)

    def step():
        model.zero_grad()
        loss(model(x), y)
        model.backward(loss.backward())
        optimiser.step()

    for _ in range(4):
        step()
    peaks = []
    tracemalloc.start()
    try:
        for _ in range(6):  # in the first ones Python also fills its lists of free objects
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            step()
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return min(peaks)


@pytest.mark.skipif(config.DISABLE_JIT, reason="networks take too long without the compiler")
@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("lenet", (1, 28, 28)),
        pytest.param("resnet8", (3, 32, 32), marks=pytest.mark.slow),
        ("vgg11", (3, 32, 32)),
    ],
)
def test_steps_allocate_nothing(name, image, monkeypatch):
    """From the second on, activations, gradients, sums and tables lie where those of a step before lay.

    What is left are Python's objects, views of arrays among them, and kernels' counters: as many in any batch.
    """
    monkeypatch.setattr(limits, "KEPT_FOR", np.inf)  # or some steps would read files that tell what is free
    model = getattr(models, name)(image, 10, rng=0)
    few, many = (growth(model, image, batch) for batch in (4, 16))
    assert max(few, many) < OBJECTS
    assert many < few + OBJECTS / 8


@pytest.mark.skipif(config.DISABLE_JIT, reason="networks take too long without the compiler")
def test_what_a_model_has_returned_stays_as_it_is():
    """Outputs, of layers inside too, and gradients, whatever is computed after them, and by whom."""

    class Seen(nn.Flatten):
        def forward(self, x):
            self.input = x
            return super().forward(x)

    def steps(seed):
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, rng=0), nn.BatchNorm2d(8), nn.ReLU(), Seen(), nn.Linear(2592, 3, rng=0)
        )
        kept = []
        for _ in range(3):
            output = model(np.random.default_rng(seed).standard_normal((4, 1, 20, 20), np.float32))
            kept += [output, model[3].input, model.backward(np.ones_like(output), input_grad=True)]
            kept += [array.copy() for array in kept[-3:]]
            seed += 1
        return kept

    with ThreadPoolExecutor(2) as threads:
        kept = [array for some in threads.map(steps, range(9)) for array in some]
    for array, copy in zip(*(kept[i::6] + kept[i + 1 :: 6] + kept[i + 2 :: 6] for i in (0, 3)), strict=True):
        np.testing.assert_array_equal(array, copy)


def test_nothing_is_said_at_exit():
    script = (
        "import numpy as np; from fastconv import arrays\n"
        "kept = [arrays.empty('x', (2**22,), np.dtype(np.uint8))]; kept.append(kept)"  # in a cycle, until the very end
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
