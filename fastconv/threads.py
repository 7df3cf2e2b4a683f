"""Who may start threads, and how many: what stands between a call and Numba's threading layer.

Numba runs a parallel loop on one of three layers, of which each has a trap:

``workqueue``  ends the process when two threads enter it: here they take turns, and a fork waits for its own
``omp``        (GNU's OpenMP) ends a forked child that enters it: there kernels run serially, which is said once
``tbb``        can hang in a child whose parent ran loops in several threads (one child in two hundred did): there, too

A layer is started by the first parallel loop, of whatever library.  A fork also waits for what is being compiled: its child could
never take the compiler's lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numba
from numba import config
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel

from .limits import processors

__all__ = ["get_num_threads", "layer", "num_threads", "run", "serially", "set_num_threads", "sharing"]

_local = threading.local()
"""``turn``: the lock that the thread holds while it runs a parallel loop."""

_turns: weakref.WeakSet[Any] = weakref.WeakSet()
_register = threading.RLock()
_shared_turn = threading.RLock()

_serial_because: str | None = None
"""Why this process must not start threads."""

_warned = False
_starter: int | None = None
"""The thread that was seen to start the layer."""


def run(threaded: Callable[..., Any], serial: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Run a parallel loop: on all threads where that is safe, else as the same loop without threads."""
    try:
        turn = _local.turn
    except AttributeError:
        turn = _enter()
    with turn:
        if _serial_because is None:
            return threaded(*arguments)
    _warn()
    return serial(*arguments)


def _enter() -> Any:
    """Make the calling thread one that runs parallel loops; return the lock for its turns."""
    _start()
    with _register:
        turn = _local.turn = _shared_turn if layer() == "workqueue" else threading.RLock()
        _turns.add(turn)
    if _serial_because is None and numba.get_num_threads() == config.NUMBA_NUM_THREADS:
        numba.set_num_threads(_default())
    return turn


def _default() -> int:
    """Threads of a caller who has not said how many: all that Numba has, but no more than there are processors for them."""
    if "NUMBA_NUM_THREADS" in os.environ:
        return int(config.NUMBA_NUM_THREADS)
    return min(int(config.NUMBA_NUM_THREADS), processors())


def _start() -> None:
    """Start Numba's threading layer, if nobody has."""
    global _starter
    with _register:
        if parallel._is_initialized:
            return
        _load_tbb()
        # Numba sets OpenMP's own count, of which PyTorch's is one, to that of its threads.
        torch: Any = sys.modules.get("torch")
        count = torch.get_num_threads() if hasattr(torch, "get_num_threads") else None
        numba.get_num_threads()
        _starter = threading.get_ident()
        if count is not None:
            torch.set_num_threads(count)


def _load_tbb() -> None:
    """Load a TBB that pip has installed: Numba looks for it where the system's libraries lie.

    Beside PyTorch, whose threads are OpenMP's, only where it was asked for: the two would take each other's cores.
    """
    layer = str(config.THREADING_LAYER).lower()
    if layer in ("omp", "workqueue") or sys.platform == "win32" or (layer == "default" and "torch" in sys.modules):
        return
    with contextlib.suppress(Exception):  # there is none, or none that can be loaded: Numba takes another layer
        for file in importlib.metadata.files("tbb") or ():
            if file.name in ("libtbb.so.12", "libtbb.12.dylib"):
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)


def layer() -> str | None:
    """Name of the threading layer; None before the first parallel loop.

    Examples
    --------
    >>> layer() in (None, "tbb", "omp", "workqueue")
    True
    """
    return parallel._threading_layer if parallel._is_initialized else None


def set_num_threads(n: int) -> None:
    """Set how many threads share a call that the calling thread makes.

    Other threads, and the counts of other libraries, stay as they are.  At first a thread's calls use as many threads as
    ``NUMBA_NUM_THREADS`` says; without that variable, as many as the process may use processors: by its affinity mask when Numba
    was imported, and by the CPU quota of its container.

    Parameters
    ----------
    n : int
        From 1 to what ``NUMBA_NUM_THREADS`` says, which is by default the number of processors in the affinity mask.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is out of that range.

    Examples
    --------
    >>> import fastconv
    >>> before = fastconv.get_num_threads()
    >>> fastconv.set_num_threads(1)
    >>> fastconv.get_num_threads()
    1
    >>> fastconv.set_num_threads(before)
    """
    n = _checked(n)
    if getattr(_local, "turn", None) is None:
        _enter()
    if _serial_because is None:
        numba.set_num_threads(n)


def get_num_threads() -> int:
    """Return how many threads share a call that the calling thread makes.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.get_num_threads() >= 1
    True
    """
    if getattr(_local, "turn", None) is None:
        _enter()
    return 1 if _serial_because is not None else int(numba.get_num_threads())


def sharing() -> int:
    """Return the same without starting the threading layer: a fork that comes before it is started is free.

    Examples
    --------
    >>> sharing() == get_num_threads()
    True
    """
    if _serial_because is not None:
        return 1
    return int(parallel._get_num_threads()) if hasattr(_local, "turn") else _default()


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Set how many threads share the calling thread's calls, for as long as a block runs.

    Parameters
    ----------
    n : int
        As for `set_num_threads`.

    Examples
    --------
    >>> import fastconv
    >>> with fastconv.num_threads(1):
    ...     fastconv.get_num_threads()
    1
    """
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


@contextlib.contextmanager
def serially() -> Iterator[None]:
    """Have the whole process run parallel loops without threads while a block runs, as a forked child may have to.

    Examples
    --------
    >>> with serially():
    ...     get_num_threads()
    1
    """
    global _serial_because, _warned
    before = _serial_because, _warned
    _serial_because, _warned = "it was asked for", True
    try:
        yield
    finally:
        _serial_because, _warned = before


def _checked(n: Any) -> int:
    most = int(config.NUMBA_NUM_THREADS)
    if isinstance(n, bool) or not hasattr(type(n), "__index__"):
        raise TypeError(f"n is {n!r}: expected an integer from 1 to {most}")
    if not 1 <= int(n) <= most:
        raise ValueError(
            f"n is {n}: expected 1 to {most}; NUMBA_NUM_THREADS, set before Numba is imported, admits more"
        )
    return int(n)


# ---------------------------------------------------------------------------------------------------------------------
# Forks
# ---------------------------------------------------------------------------------------------------------------------

_held: list[Any] = []


def _before_fork() -> None:
    """Wait for the parallel loops that run and for the compiler, and let none begin."""
    _register.acquire()
    for turn in list(_turns):
        turn.acquire()
        _held.append(turn)
    global_compiler_lock.acquire()


def _after_fork() -> None:
    global_compiler_lock.release()
    while _held:
        _held.pop().release()
    _register.release()


def _after_fork_in_child() -> None:
    global _serial_because
    if layer() == "omp" and _vendor() == "GNU":
        _serial_because = "a child cannot use GNU's OpenMP, on which kernels had run before the fork"
    elif layer() == "tbb" and (_starter != threading.get_ident() or len(_turns) > 1):
        _serial_because = "a child cannot use TBB, on which kernels of several threads had run before the fork"
    _after_fork()


def _vendor() -> str | None:
    vendor: str | None = getattr(importlib.import_module("numba.np.ufunc.omppool"), "openmp_vendor", None)
    return vendor


def _warn() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"kernels run serially here: {_serial_because}.  Other ways out: the start methods spawn and forkserver, "
            "NUMBA_THREADING_LAYER=workqueue, or the package tbb",
            RuntimeWarning,
            stacklevel=4,
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
