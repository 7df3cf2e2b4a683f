"""Refuses interpreters in which Numba's kernels would hang or race: called before anything else is imported."""

import importlib
import sys

__all__ = ["require_main_interpreter"]


def require_main_interpreter() -> None:
    """Raise in an interpreter that is not the main one, or has no global lock.

    Raises
    ------
    ImportError
        There.

    Examples
    --------
    >>> require_main_interpreter()
    """
    for name in ("_interpreters", "_xxsubinterpreters"):  # the newer name, and the older one
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        if interpreters.get_current() != interpreters.get_main():
            raise ImportError("fastconv runs in the main interpreter only: Numba's kernels hang in others")
        break
    importlib.import_module("numba")  # which turns the lock on, where it needs that
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise ImportError("fastconv needs Python's global lock: set PYTHON_GIL=1")
