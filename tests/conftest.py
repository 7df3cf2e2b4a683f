"""What all tests share: a cache of their own for compiled kernels, seeds, and the line that reruns a failing test."""

import functools
import hashlib
import importlib.util
import inspect
import os
import pathlib
import random
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
import zlib

import pytest

SEED = int(os.environ.get("FASTCONV_SEED", "0"))
KEPT_FOR = 7 * 24 * 3600  # seconds that an unused cache is kept


def cache_folder():
    """Return a folder that only this user can enter, named by the package's sources: no edit ever meets a stale kernel."""
    package = pathlib.Path(importlib.util.find_spec("fastconv").origin).parent
    sources = sorted(package.rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    parent = pathlib.Path(home, "fastconv-tests")
    try:
        folder = parent / digest
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (parent, folder):
            path.chmod(0o700)
            info = path.lstat()
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
                raise PermissionError(path)
        os.utime(folder)
    except OSError:
        return tempfile.mkdtemp(prefix="fastconv-tests-")
    for other in parent.iterdir():
        if other.lstat().st_mtime < time.time() - KEPT_FOR:
            shutil.rmtree(other, ignore_errors=True)
    return str(folder)


# Numba reads the variable when it is imported, which no test module has done yet; processes that tests start inherit it.
if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = cache_folder()

# Threads that wait sleep instead of spinning: several test processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell's background job ignores Ctrl-C, and so would the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

SLOW = [HealthCheck.too_slow]
settings.register_profile("default", max_examples=50, deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("long", max_examples=3000, deadline=None, print_blob=True, suppress_health_check=SLOW)


def pytest_xdist_auto_num_workers(config):
    """Share tests between two processes, but for some that are named: those are done before a second has begun.

    More would help little: each compiles what the others do, and many tests use all processors.
    """
    return 0 if all("::" in argument for argument in config.args) else min(2, os.cpu_count() or 1)


def pytest_configure(config):
    settings.load_profile("long" if config.getoption("markexpr") == "long" else "default")


COMPILE_THEIR_OWN = ("test_house.py", "test_simd.py")
"""Files whose tests compile into caches of their own, or what no others need."""


SKIPS = re.compile(r'importorskip\(("(torch|jax|autograd)"|name\))')
"""What a module, or a test, says to be skipped without a framework."""


@functools.cache
def _module_needs_it(module):
    """Say whether all tests of a module are skipped without a framework."""
    return any(SKIPS.search(line) for line in inspect.getsource(module).splitlines() if not line.startswith(" "))


@functools.cache
def _function_needs_it(function):
    """Say whether a test is skipped without one: of many parameters, all have one source."""
    return SKIPS.search(inspect.getsource(function)) is not None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Let ``-m long`` run the property tests, too, with more examples; and mark what needs frameworks.

    Of two workers, one begins with what compiles its own, and the other in the middle: it fills the cache that both share,
    where they would compile everything twice if they used it at once.
    """
    items.sort(key=lambda item: item.path.name not in COMPILE_THEIR_OWN)
    for item in items:
        function = getattr(item, "function", None)
        if function is not None and (_module_needs_it(item.module) or _function_needs_it(function)):
            item.add_marker("frameworks")
    if config.getoption("markexpr") == "long":
        for item in items:
            if getattr(item.obj, "is_hypothesis_test", False):
                item.add_marker("long")


def pytest_report_header(config):
    return f"FASTCONV_SEED={SEED}, NUMBA_CACHE_DIR={os.environ['NUMBA_CACHE_DIR']}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        switches = [f"FASTCONV_SEED={SEED}"]
        switches += [f"{name}={os.environ[name]}" for name in ("NUMBA_DISABLE_JIT",) if name in os.environ]
        marker = " -m long" if item.get_closest_marker("long") else ""
        line = f"{' '.join(switches)} python -m pytest '{item.nodeid}'{marker}"
        report.sections.append(("rerun", f"seed {SEED}; this test alone: {line}"))


def _entropy(request):
    return [SEED, zlib.crc32(request.node.nodeid.encode())]


@pytest.fixture
def rng(request):
    """Give a test a generator of its own, from the seed and the test's name."""
    return np.random.default_rng(_entropy(request))


@pytest.fixture(autouse=True)
def _as_if_alone(request):
    """Start every test from the same state of the global generators, and undo what it sets for the whole process."""
    seed = zlib.crc32(repr(_entropy(request)).encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    yield
    if "fastconv" in sys.modules:
        sys.modules["fastconv"].set_precision("high")


@pytest.fixture
def pytorch():
    """Seed PyTorch, forget who was warned that PyTorch computes a call, and undo what is set for the whole process."""
    import torch

    from fastconv.torch import functions

    torch.manual_seed(0)
    functions._warned.clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def computed(monkeypatch):
    """List the passes that tensors go through."""
    from fastconv.torch import operators

    passes, compute = [], operators._compute

    def spy(computes, *rest, **options):
        passes.append(computes)
        return compute(computes, *rest, **options)

    monkeypatch.setattr(operators, "_compute", spy)
    return passes
