"""Tasks: each is run once, whoever runs it, and each worker has scratch memory of its own."""

import numpy as np
import pytest
from numba import config
from numba.core.caching import NullCache

import fastconv
from fastconv import jit, scratch, threads
from fastconv.jit import kernel
from fastconv.scratch import buffer
from fastconv.simd import run_tasks
from fastconv.tasks import GAP_BYTES, rooms_size, task

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ROOM, TURNS = 11, 200
NUMBERS = np.array([ROOM, TURNS])


@pytest.fixture(autouse=True)
def _uncached(monkeypatch):
    """Keep the tasks below out of the cache, whose key knows the package's sources only."""
    monkeypatch.setattr(jit, "KernelCache", lambda func, form: NullCache())


@task
def count(task, room, numbers, tables, runs, _, __, ___):
    runs[task] += 1


@task
def work(task, room, numbers, tables, runs, faults, source, target):
    """Use the room for a while, and count the numbers in it that somebody else has changed."""
    for k in range(numbers[0]):
        room[k] = task
    for _ in range(numbers[1]):
        for k in range(numbers[0]):
            room[k] += 1
    for k in range(numbers[0]):
        if room[k] != task + numbers[1]:
            faults[task] += 1
    runs[task] += 1
    target[task] = source[tables[task]]


@kernel
def run_as(worker, address, tasks, counter, numbers, tables, a, b, c, d, room, room_size):
    run_tasks(address, tasks, counter, worker, numbers, tables, a, b, c, d, room, room_size)


@DTYPES
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("tasks", [0, 1, 2, 1000])
def test_each_task_is_run_once(tasks, alone, dtype):
    runs = np.zeros(tasks + 2, dtype)
    count(tasks, NUMBERS, NUMBERS, runs, alone=alone)
    np.testing.assert_array_equal(runs, [1] * tasks + [0, 0])


@DTYPES
@pytest.mark.parametrize("alone", [False, True])
def test_tasks_have_arrays_and_a_room(alone, dtype, rng):
    tasks = 100
    workers = 1 if alone else threads.sharing()
    source, tables = rng.permutation(tasks).astype(dtype), rng.permutation(tasks)
    runs, faults, target = np.zeros((3, tasks), dtype)
    rooms = buffer("room", rooms_size(workers, ROOM, np.dtype(dtype).itemsize), np.dtype(dtype))
    rooms[:] = -1
    work(tasks, NUMBERS, tables, runs, faults, source, target, room=ROOM, alone=alone)
    np.testing.assert_array_equal(runs, 1)
    np.testing.assert_array_equal(faults, 0)
    np.testing.assert_array_equal(target, source[tables])
    left = rooms.reshape(workers, -1)[:, :ROOM]  # what each worker's last task has left, if it had any
    np.testing.assert_array_equal(left, np.repeat(left[:, :1], ROOM, 1))
    assert left.max() == tasks - 1 + TURNS


@pytest.mark.parametrize("n", sorted({1, config.NUMBA_NUM_THREADS}))
def test_room_is_taken_for_the_threads_that_share(n):
    """A thread that is told to work alone pays for no other."""
    runs = np.zeros(100, np.float32)
    scratch.release()
    with fastconv.num_threads(n):
        assert threads.sharing() == fastconv.get_num_threads() == n
        count(100, NUMBERS, NUMBERS, runs, room=ROOM)
    assert scratch._local.buffers["room", "f"].size == rooms_size(n, ROOM, 4)


def test_rooms_lie_apart():
    """A core fetches ahead what lies behind its room; a worker alone needs no gap, and no room none either."""
    assert rooms_size(1, ROOM, 4) == ROOM
    assert rooms_size(3, 0, 4) == 0
    assert rooms_size(3, 16, 4) == rooms_size(3, 1, 4) == 3 * (64 + GAP_BYTES) // 4


@DTYPES
def test_each_worker_has_its_own_room(dtype):
    """Workers take turns here, so that it is known who runs what: some tasks, none, and the rest."""
    runs, faults, source, target = np.zeros((4, 9), dtype)
    rooms, tables, counter = np.full(5 * ROOM, -1, dtype), np.arange(9), np.zeros(1, np.int64)
    first, expected = 0, np.full((5, ROOM), -1)
    for worker, until in ((2, 3), (0, 5), (3, 5), (1, 9)):
        counter[0] = first
        address = work._address(np.dtype(dtype).char)
        run_as(worker, address, until, counter, NUMBERS, tables, runs, faults, source, target, rooms, ROOM)
        assert counter[0] >= until
        if until > first:
            expected[worker] = until - 1 + TURNS
        first = until
    np.testing.assert_array_equal(rooms.reshape(5, ROOM), expected)
    np.testing.assert_array_equal(runs, 1)
    np.testing.assert_array_equal(faults, 0)
