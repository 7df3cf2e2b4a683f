"""Tasks: each is run once, whoever runs it, and each worker has scratch memory of its own."""

import numpy as np
import pytest
from numba import config
from numba.core.caching import NullCache

import fastconv
from fastconv import jit, scratch, threads
from fastconv.geometry import ceil_div
from fastconv.jit import kernel
from fastconv.scratch import GAP_BYTES, rooms
from fastconv.simd import APART, MARKS, run_tasks
from fastconv.tasks import task

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ROOM, TURNS = MARKS + 3, 200
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
def run_as(worker, workers, address, tasks, counters, numbers, tables, a, b, c, d, room, room_size):
    run_tasks(address, tasks, counters, worker, workers, numbers, tables, a, b, c, d, room, room_size)


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
    memory, distance = rooms(workers, ROOM, np.dtype(dtype))
    memory[:] = -1
    work(tasks, NUMBERS, tables, runs, faults, source, target, room=ROOM, alone=alone)
    np.testing.assert_array_equal(runs, 1)
    np.testing.assert_array_equal(faults, 0)
    np.testing.assert_array_equal(target, source[tables])
    # What each worker's last task has left, if it had any:
    left = np.stack([memory[worker * distance :][:ROOM] for worker in range(workers)])
    idle = left[:, -1] == -1
    np.testing.assert_array_equal(left[idle, :MARKS], 0)
    left[idle] = -1
    np.testing.assert_array_equal(left, np.repeat(left[:, :1], ROOM, 1))
    assert left.max() >= TURNS
    assert set(left[:, 0]) <= {-1, *range(TURNS, TURNS + tasks)}


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="without the compiler there are no addresses")
@pytest.mark.parametrize("view", [np.s_[::-1], np.s_[::2]], ids=str)
def test_arrays_lie_one_number_behind_the_other(view):
    """What a task finds is read from an address on: a view with steps is refused when it is compiled, not misread."""
    runs = np.zeros(4, np.float32)
    with pytest.raises(TypeError, match="expected an array that is C-contiguous"):
        count(2, NUMBERS, np.arange(8)[view], runs, alone=True)
    np.testing.assert_array_equal(runs, 0)


@pytest.mark.parametrize("n", sorted({1, config.NUMBA_NUM_THREADS}))
def test_room_is_taken_for_the_threads_that_share(n):
    """A thread that is told to work alone pays for no other."""
    runs = np.zeros(100, np.float32)
    scratch.release()
    with fastconv.num_threads(n):
        assert threads.sharing() == fastconv.get_num_threads() == n
        count(100, NUMBERS, NUMBERS, runs, room=ROOM)
    memory, distance = rooms(n, ROOM, np.dtype(np.float32))
    assert scratch._local.buffers["room", "f"].size == memory.size == (n - 1) * distance + ROOM


def test_rooms_lie_apart_and_stay_where_they_are():
    """A core fetches ahead what lies behind its room; a worker alone needs no gap."""
    scratch.release()
    single = np.dtype(np.float32)
    memory, _ = rooms(1, ROOM, single)
    assert memory.size == ROOM
    _, near = rooms(3, 1, single)
    assert near == (64 + GAP_BYTES) // 4
    large, far = rooms(2, 10_000, single)
    assert far >= 10_000 + GAP_BYTES // 4
    memory, distance = rooms(2, ROOM, single)
    assert distance == far
    assert memory.ctypes.data == large.ctypes.data
    with_all, distance = rooms(3, ROOM, single)
    assert (with_all.size, distance) == (2 * far + ROOM, far)


def test_rooms_of_few_do_not_tell_all_where_to_be(monkeypatch):
    """Two workers may have large rooms; as many for all that there are would be more than is kept."""
    scratch.release()
    monkeypatch.setattr(scratch, "LARGEST_KEPT", 20 * GAP_BYTES)
    single = np.dtype(np.float32)
    _, far = rooms(2, GAP_BYTES, single)
    assert far == (4 * GAP_BYTES + GAP_BYTES) // 4
    memory, near = rooms(10, ROOM, single)
    assert near == (ceil_div(ROOM * 4, 64) * 64 + GAP_BYTES) // 4
    assert scratch._local.buffers["room", "f"].ctypes.data == memory.ctypes.data


def test_gaps_do_not_count_where_large_buffers_are_given_up(monkeypatch):
    scratch.release()
    monkeypatch.setattr(scratch, "LARGEST_KEPT", 2 * GAP_BYTES)
    single = np.dtype(np.float32)
    first, _ = rooms(8, ROOM, single)
    again, _ = rooms(8, ROOM, single)
    assert first.ctypes.data == again.ctypes.data
    assert ("room", "f") in scratch._local.buffers
    scratch.release()
    rooms(8, GAP_BYTES, single)
    assert ("room", "f") not in scratch._local.buffers


@task
def leave_mark(task, room, numbers, tables, found, _, __, ___):
    found[task] = room[tables[task]]
    room[tables[task]] += 1


@DTYPES
@pytest.mark.parametrize("alone", [False, True])
def test_workers_find_what_they_have_marked(alone, dtype):
    """No mark is left from the last call, and each counts the tasks of one worker."""
    tables = np.arange(200) % MARKS
    for _ in range(3):
        found = np.full(tables.size, -1, dtype)
        leave_mark(tables.size, NUMBERS, tables, found, room=1, alone=alone)
        workers = 1 if alone else threads.sharing()
        for mark in range(MARKS):
            counted = found[tables == mark]
            first = np.count_nonzero(counted == 0)
            assert 1 <= first <= workers
            assert counted.max() >= counted.size / workers - 1
            assert (np.bincount(counted.astype(int)) <= first).all()


@DTYPES
def test_each_worker_has_its_own_room(dtype):
    """Workers take turns here, so that it is known who runs what: some tasks of a share, none, and the rest."""
    workers, tasks = 4, 10  # shares: 0 and 1, 2 to 4, 5 and 6, 7 to 9
    runs, faults, source, target = np.zeros((4, tasks), dtype)
    rooms, tables = np.full(workers * ROOM, -1, dtype), np.arange(tasks)
    counters = np.full(APART * workers, -1)
    arguments = NUMBERS, tables, runs, faults, source, target, rooms, ROOM
    address = work._address(np.dtype(dtype).char)
    expected = np.full((workers, ROOM), -1)
    for taken, worker, ran in (
        ((2, 3, 2, 1), 3, [8, 9]),  # of its own share what is left
        ((0, 3, 2, 3), 2, [0, 1]),  # of others, if nothing is
        ((0, 0, 2, 3), 1, [2, 3, 4, 0, 1]),  # its own first
        ((2, 3, 2, 3), 0, []),  # none
    ):
        counters[::APART] = taken
        runs[:] = 0
        run_as(worker, workers, address, tasks, counters, *arguments)
        np.testing.assert_array_equal(np.flatnonzero(runs), sorted(ran))
        assert runs.max(initial=0) <= 1
        expected[worker, :MARKS] = 0
        if ran:
            expected[worker] = ran[-1] + TURNS
        np.testing.assert_array_equal(rooms.reshape(workers, ROOM), expected)
        np.testing.assert_array_equal(faults, 0)
    assert (counters.reshape(workers, APART)[:, 1:] == -1).all()


@DTYPES
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("tasks", [0, 1, 5, 100])
def test_shares_hold_each_task_once(tasks, workers, dtype):
    """Whoever comes first finds all; those behind it find none."""
    runs, faults, source, target = np.zeros((4, max(1, tasks)), dtype)
    rooms, counters = np.zeros(workers * ROOM, dtype), np.zeros(APART * workers, np.int64)
    address = work._address(np.dtype(dtype).char)
    for worker in range(workers - 1, -1, -1):
        run_as(
            worker, workers, address, tasks, counters, NUMBERS, np.arange(max(1, tasks)), runs, faults, source, target, rooms,
            ROOM,
        )  # fmt: skip
        np.testing.assert_array_equal(runs[:tasks], 1)
