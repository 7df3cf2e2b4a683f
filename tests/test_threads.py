"""Threads and forks: on each of Numba's threading layers that is installed, nothing ends a process or changes a bit."""

import importlib.metadata
import os
import subprocess
import sys
import threading
import types

import numba
import numpy as np
import pytest
from numba import config

import fastconv
from fastconv import jit, limits, selftest, threads
from fastconv.kernels.elementwise import rectify

COMPILED = pytest.mark.skipif(bool(config.DISABLE_JIT), reason="without the compiler there are no threads")
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="no system of forks")


def installed(package):
    try:
        return importlib.metadata.version(package) is not None
    except importlib.metadata.PackageNotFoundError:
        return False


WITHOUT_TBB = pytest.mark.skipif(not installed("tbb"), reason="needs the package tbb")
LAYERS = pytest.mark.parametrize("layer", ["workqueue", "omp", pytest.param("tbb", marks=WITHOUT_TBB)])

COMMON = """
import os, signal, sys, threading, time, warnings
import numpy as np
import fastconv
from fastconv import nn, selftest, threads

def pooled():
    x = np.random.default_rng(0).standard_normal((8, 16, 30, 30), np.float32)
    return nn.MaxPool2d(3)(x).tobytes()

def everything():
    return selftest.bits(), pooled()

def child(work):
    '''Fork, and wait for the child's end, which comes soon or not at all; return its status.'''
    pid = os.fork()
    if pid == 0:
        status = 9
        try:
            status = work() or 0
        finally:
            os._exit(status)
    for _ in range(3000):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"

def work(_):
    warnings.simplefilter("ignore")
    return everything()

def same():
    return int(everything() != wanted)

if __name__ == "__main__":
    wanted = everything()
    if len(sys.argv) > 1:
        assert threads.layer() == sys.argv[1], threads.layer()
"""


def run(tmp_path, program, layer=None, first="", **variables):
    path = tmp_path / "program.py"
    path.write_text(first + COMMON + program)
    environment = os.environ | ({"NUMBA_THREADING_LAYER": layer} if layer else {}) | variables
    environment.pop("LD_LIBRARY_PATH", None)  # a TBB that pip has installed is found without
    done = subprocess.run(
        [sys.executable, str(path), *([layer] if layer else [])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Several threads, several processes
# ---------------------------------------------------------------------------------------------------------------------


@COMPILED
@LAYERS
def test_any_number_of_threads_may_call(tmp_path, layer):
    program = """
    found = []
    callers = [threading.Thread(target=lambda: found.append(everything())) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [wanted] * 8
"""
    run(tmp_path, program, layer)


@COMPILED
@WITHOUT_TBB
@pytest.mark.parametrize(
    ("beside", "chosen", "taken"), [("", "default", 1), ("torch", "default", 0), ("torch", "tbb", 1)]
)
def test_tbb_is_not_taken_beside_pytorch_unless_asked_for(tmp_path, beside, chosen, taken):
    first = f"import sys, types\nsys.modules |= {{name: types.ModuleType(name) for name in {beside.split()}}}\n"
    layer = run(tmp_path, "    print(threads.layer())", first=first, NUMBA_THREADING_LAYER=chosen).strip()
    assert (layer == "tbb") == taken


@COMPILED
@FORKS
@LAYERS
def test_a_forked_child_computes(tmp_path, layer):
    """And its child, and a child that another thread forks: serially, with one warning, where the layer would not survive."""
    program = """
    def heard():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if same() or same() or child(same):
                return 1
        texts = [str(w.message) for w in told if "kernels run serially here" in str(w.message)]
        serially = fastconv.get_num_threads() == 1
        return 0 if len(texts) == serially == (threads._serial_because is not None) else 2

    print(child(heard), threads._serial_because)
    if threads.layer() == "omp":
        assert child(lambda: 10 + (threads._serial_because is None)) == 10 << 8
    result = []
    forker = threading.Thread(target=lambda: result.append(child(heard)))
    forker.start()
    forker.join()
    print(*result)
    assert everything() == wanted
"""
    assert run(tmp_path, program, layer).split() == ["0", "None", "0"]


@COMPILED
@FORKS
@LAYERS
def test_a_fork_may_come_while_kernels_run(tmp_path, layer):
    program = """
    stop, found, begun = [], [], threading.Event()
    x, w = np.ones((8, 64, 32, 32), np.float32), np.ones((64, 64, 3, 3), np.float32)
    out = fastconv.conv2d(x, w).tobytes()
    def busy():
        while not stop:
            fastconv.conv2d(x, w)
            begun.set()
    def convolve():
        if threads.layer() != "workqueue" and fastconv.get_num_threads() > 1:
            return 2  # it might do well, or hang
        return int(fastconv.conv2d(x, w).tobytes() != out)
    caller = threading.Thread(target=busy)
    caller.start()
    begun.wait()  # until then one thread alone has run kernels, and a child of TBB may use threads
    for _ in range(40):
        found.append(child(convolve))
        if found[-1]:
            break
    stop.append(True)
    caller.join()
    assert found == [0] * 40, found
    assert everything() == wanted
"""
    run(tmp_path, program, layer, PYTHONWARNINGS="ignore")


@COMPILED
@FORKS
def test_a_fork_may_come_while_something_is_compiled(tmp_path):
    program = """
    import numba
    stop, begun = [], []
    def busy():
        while not stop:
            begun.append(True)
            numba.njit(lambda a: a * 2.0 + a.sum())(np.ones(3))
    compiling = threading.Thread(target=busy)
    compiling.start()
    while not begun:
        time.sleep(0.01)
    def compile_too():
        return int(numba.njit(lambda a: a + 1)(1) != 2)
    found = [child(compile_too)]
    while len(found) < 4 and not found[-1]:
        found.append(child(compile_too))
    stop.append(True)
    compiling.join()
    assert found == [0] * 4, found
"""
    run(tmp_path, program, PYTHONWARNINGS="ignore")


@COMPILED
def test_without_threads_the_bits_are_the_same():
    """Whatever the layer, the forms of kernels that children may have to use."""
    wanted = selftest.bits()
    with threads.serially():
        assert fastconv.get_num_threads() == 1
        assert selftest.bits() == wanted
    assert threads._serial_because is None


@COMPILED
@LAYERS
def test_start_methods(tmp_path, layer):
    program = """
    import multiprocessing
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(2) as pool:
            for found in pool.map(work, range(4)):
                assert found == wanted, method
"""
    run(tmp_path, program, layer)


@COMPILED
@FORKS
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(tmp_path, method):
    pytest.importorskip("torch")
    program = f"""
    import torch.utils.data
    loader = torch.utils.data.DataLoader(range(4), num_workers=2, collate_fn=work, multiprocessing_context={method!r})
    for _ in range(2):
        for found in loader:
            assert found == wanted
"""
    run(tmp_path, program, PYTHONWARNINGS="ignore")


@COMPILED
@pytest.mark.parametrize("order", ["torch, sklearn.cluster, fastconv", "fastconv, sklearn.cluster, torch"])
def test_beside_pytorch_and_scikit_learn(tmp_path, order):
    """One after the other, and all at once: the same results, and an end."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    program = """
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((8, 32, 28, 28), np.float32), rng.standard_normal((32, 32, 3, 3), np.float32)
    square, points = rng.standard_normal((300, 300)), rng.standard_normal((500, 8))
    jobs = (
        lambda: fastconv.conv2d(x, w).tobytes(),
        lambda: torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w)).numpy().round(2).tobytes(),
        lambda: (square @ square).round(6).tobytes(),
        lambda: sklearn.cluster.KMeans(3, n_init=1, random_state=0).fit(points).labels_.tobytes(),
    )
    first = [job() for job in jobs]
    for _ in range(5):
        assert [job() for job in jobs] == first
    found = []
    def repeat(job, result):
        found.append(all(job() == result for _ in range(10)))
    callers = [threading.Thread(target=repeat, args=pair) for pair in zip(jobs, first)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [True] * 4
    assert everything() == wanted
"""
    run(tmp_path, program, first=f"import {order}")


# ---------------------------------------------------------------------------------------------------------------------
# How many threads
# ---------------------------------------------------------------------------------------------------------------------


def test_the_count_belongs_to_the_calling_thread():
    before, most = fastconv.get_num_threads(), config.NUMBA_NUM_THREADS
    seen = []
    with fastconv.num_threads(1):
        assert fastconv.get_num_threads() == numba.get_num_threads() == 1
        other = threading.Thread(target=lambda: seen.append(fastconv.get_num_threads()))
        other.start()
        other.join()
        with fastconv.num_threads(most):
            assert fastconv.get_num_threads() == most
        assert fastconv.get_num_threads() == 1
        with pytest.raises(KeyError), fastconv.num_threads(most):
            raise KeyError
        assert fastconv.get_num_threads() == 1
    assert fastconv.get_num_threads() == before
    assert seen == [threads._default()]
    fastconv.set_num_threads(np.int64(1))
    assert fastconv.get_num_threads() == 1
    fastconv.set_num_threads(before)


def test_a_question_starts_no_threads():
    """Else a process that only explains could not fork without care."""
    program = "import fastconv; from fastconv import threads; threads.sharing(); "
    program += "fastconv.explain((8, 64, 32, 32), (64, 64, 3, 3)); print(threads.layer())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@pytest.mark.parametrize("wrong", [0, -1, 10**6, 2**70, 1.0, "1", None, True, [1], np.float64(1)])
def test_counts_that_are_refused(wrong):
    before = fastconv.get_num_threads()
    for call in (fastconv.set_num_threads, lambda n: fastconv.num_threads(n).__enter__()):
        with pytest.raises((ValueError, TypeError), match=r"^n is .*: expected "):
            call(wrong)
    assert fastconv.get_num_threads() == before


@COMPILED
@pytest.mark.parametrize("order", ["torch, fastconv", "fastconv, torch"])
@LAYERS
def test_the_count_of_pytorch_is_left_alone(tmp_path, layer, order):
    pytest.importorskip("torch")
    program = f"""
import {order}
import sys, threading
import numpy as np
x, w = np.ones((8, 64, 32, 32), np.float32), np.ones((64, 64, 3, 3), np.float32)
def counts():
    found = []
    for n in (3, 1, 2):
        torch.set_num_threads(n)
        fastconv.conv2d(x, w)
        found.append(torch.get_num_threads())
        with fastconv.num_threads(1):
            fastconv.conv2d(x, w)
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())
    assert found == [3] * 3 + [1] * 3 + [2] * 3, found
counts()
other = threading.Thread(target=counts)
other.start()
other.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"NUMBA_THREADING_LAYER": layer},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@COMPILED
def test_the_count_follows_the_variable_and_the_affinity_mask(tmp_path):
    program = """
    if hasattr(os, "sched_setaffinity"):
        print(fastconv.get_num_threads(), fastconv.limits.processors())
"""
    assert run(tmp_path, program, NUMBA_NUM_THREADS="3").split()[:1] == ["3"]
    if not hasattr(os, "sched_setaffinity"):
        return
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_NUM_THREADS"}
    first = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, {{{first}}}); import fastconv; print(fastconv.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


V2 = ["/ /sys/fs/cgroup rw shared:1 - cgroup2 cgroup2 rw"]
V1 = [
    "/ /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
    "/ /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
    "/ /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
]
DOCKER = [line.replace("/ /sys", "/docker/12 /sys", 1) for line in V1]
IN_V1 = ["5:cpu,cpuacct:/docker/12", "4:memory:/docker/12", "0::/"]
CPU, MEMORY = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory"
GIB = 2**30

QUOTAS = {
    "none": ([], [], {}, 8),
    "v2, in a container": (V2, ["0::/"], {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "v2, no quota": (V2, ["0::/a"], {"sys/fs/cgroup/a/cpu.max": "max 100000\n"}, 8),
    "v2, a part": (V2, ["0::/a"], {"sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 2),
    "v2, less than one": (V2, ["0::/a"], {"sys/fs/cgroup/a/cpu.max": "1000 100000\n"}, 1),
    "v2, of a group above": (
        V2,
        ["0::/a/b"],
        {"sys/fs/cgroup/a/cpu.max": "300000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"},
        3,
    ),
    "v2, of a group beside": (V2, ["0::/a"], {"sys/fs/cgroup/b/cpu.max": "100000 100000\n"}, 8),
    "v1": (
        V1,
        IN_V1,
        {f"{CPU}/docker/12/cpu.cfs_quota_us": "400000\n", f"{CPU}/docker/12/cpu.cfs_period_us": "100000\n"},
        4,
    ),
    "v1, in a container": (
        DOCKER,
        IN_V1,
        {f"{CPU}/cpu.cfs_quota_us": "50000\n", f"{CPU}/cpu.cfs_period_us": "25000\n"},
        2,
    ),
    "v1, no quota": (
        V1,
        IN_V1,
        {f"{CPU}/docker/12/cpu.cfs_quota_us": "-1\n", f"{CPU}/docker/12/cpu.cfs_period_us": "100000\n"},
        8,
    ),
    "nonsense": (["x"], ["y", "::"], {"sys/fs/cgroup/cpu.max": "a b"}, 8),
}


def lay_out(folder, mounts, groups, files):
    """Lay out what a system tells of control groups."""
    files = files | {
        "proc/self/mountinfo": "".join(f"1 2 0:3 {line}\n" for line in mounts),
        "proc/self/cgroup": "".join(f"{line}\n" for line in groups),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


@pytest.mark.parametrize("name", QUOTAS)
def test_the_quota_of_a_container(tmp_path, monkeypatch, name):
    *system, expected = QUOTAS[name]
    lay_out(tmp_path, *system)
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    monkeypatch.setattr(limits, "os", types.SimpleNamespace(sched_getaffinity=lambda _: set(range(8))))
    assert limits.processors() == expected


def test_the_count_follows_the_quota(monkeypatch):
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "processors", lambda: 1)
    seen = []
    other = threading.Thread(target=lambda: seen.append(fastconv.get_num_threads()))
    other.start()
    other.join()
    assert seen == [1]
    monkeypatch.setenv("NUMBA_NUM_THREADS", str(config.NUMBA_NUM_THREADS))
    assert threads._default() == config.NUMBA_NUM_THREADS


MEMORIES = {
    "none": ([], [], {}, limits.UNLIMITED),
    "the machine's": ([], [], {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   1048576 kB\n"}, GIB),
    "v2": (
        V2,
        ["0::/a"],
        {
            "proc/meminfo": "MemAvailable:   8388608 kB\n",
            "sys/fs/cgroup/a/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/a/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7\n",
        },
        2 * GIB,
    ),
    "v2, of a group above": (
        V2,
        ["0::/a/b"],
        {
            "sys/fs/cgroup/a/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/a/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": "17\n",
        },
        GIB,
    ),
    "v1": (
        V1,
        IN_V1,
        {
            f"{MEMORY}/docker/12/memory.limit_in_bytes": f"{2 * GIB}\n",
            f"{MEMORY}/docker/12/memory.usage_in_bytes": f"{2 * GIB}\n",
            f"{MEMORY}/docker/12/memory.stat": "inactive_file 1\ntotal_inactive_file 4096\n",
            f"{MEMORY}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{MEMORY}/memory.usage_in_bytes": "123\n",
        },
        4096,
    ),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_the_memory_of_a_container(tmp_path, monkeypatch, name):
    *system, expected = MEMORIES[name]
    lay_out(tmp_path, *system)
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    assert limits.free_memory() == expected


@COMPILED
def test_small_arrays_wake_no_threads():
    """A kernel that streams arrays compiles, and runs, the form with threads for large ones only."""
    x = np.arange(-3, 3, dtype=np.int16)  # which nobody else gives to this kernel
    forms = [rectify.serial, rectify.threaded]
    before = [len(form.signatures) for form in forms]
    for repeats, compiled in ((1, [1, 0]), (jit.STREAMED_BYTES, [1, 1])):
        many = np.tile(x, repeats)
        out = np.empty_like(many)
        rectify(many, out)
        np.testing.assert_array_equal(out, np.maximum(many, 0))
        assert [len(form.signatures) - count for form, count in zip(forms, before, strict=True)] == compiled
