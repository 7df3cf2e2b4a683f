"""What ``fastconv info`` prints: versions, the CPU, threads, and where compiled code is kept."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path

import llvmlite
import llvmlite.binding
import numba
import numpy as np

import fastconv
from fastconv import jit

__all__ = ["cache_folder", "report"]

FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "neon", "sve")


def report() -> Iterator[str]:
    """Describe this machine, line by line, from what is quick to what takes a compilation.

    Yields
    ------
    str
        ``name  value``.

    Examples
    --------
    >>> lines = report()
    >>> next(lines)  # doctest: +ELLIPSIS
    'fastconv          ...'
    """
    rows = {
        "fastconv": fastconv.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "numpy": np.__version__,
        "numba": numba.__version__,
        "llvmlite": f"{llvmlite.__version__} (LLVM {'.'.join(map(str, llvmlite.binding.llvm_version_info))})",
        "torch": _version("torch"),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cpu": f"{_cpu_model()} (LLVM: {_cpu_name()})",
        "vector features": " ".join(_features()) or "none known",
        "vectors": f"{jit.VECTOR_BYTES} bytes: {jit.VECTOR_BYTES // 4} lanes of float32, "
        f"{jit.VECTOR_BYTES // 8} of float64",
        "jit": "off (NUMBA_DISABLE_JIT)" if numba.config.DISABLE_JIT else "on",
        "threading layer": _threading_layer(),
        "threads": f"{numba.get_num_threads()} of {numba.config.NUMBA_NUM_THREADS}, {_cores()} cores allowed",
    }
    for name, value in rows.items():
        yield _line(name, value)
    folder = cache_folder()
    yield _line(
        "cache", "none: no folder can be written to, so kernels are compiled anew" if folder is None else folder
    )
    if folder is not None and (open_to := _writable_by_others(folder)) is not None:
        yield _line("warning", f"others may write to {open_to}, and so make this cache run their code")


def _line(name: str, value: object) -> str:
    return f"{name:<18}{value}"


def _version(package: str) -> str:
    """Version of an optional package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cpu_name() -> str:
    return str(numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name())


def _features() -> list[str]:
    """Vector features that kernels are compiled for."""
    if numba.config.CPU_FEATURES is not None:
        names = {name.removeprefix("+") for name in numba.config.CPU_FEATURES.split(",") if name.startswith("+")}
    else:
        try:
            names = {name for name, on in llvmlite.binding.get_host_cpu_features().items() if on}
        except RuntimeError:  # LLVM does not know this machine
            names = set()
    return [name for name in FEATURES if name in names]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threading_layer() -> str:
    """Name of the layer; known only after something has run in parallel."""
    if numba.config.DISABLE_JIT:
        return "none"
    x = np.ones((1, 1, 8, 8), np.float32)
    fastconv.conv2d(x, x[:, :, :3, :3])
    try:
        return str(numba.threading_layer())
    except ValueError:  # no kernel needed a second thread
        return f"not started ({numba.config.THREADING_LAYER})"


def cache_folder() -> Path | None:
    """Folder where compiled kernels are kept; None where none can be written."""
    from fastconv.tasks import run_together

    cache = getattr(run_together, "_cache", None)
    path = getattr(cache, "cache_path", None)
    return None if path is None else Path(path)


def _writable_by_others(folder: Path) -> Path | None:
    """Folder, the given one or one above it, in which another user could replace what the cache holds."""
    if os.name != "posix":
        return None
    for path in (folder, *folder.parents):
        try:
            status = path.stat()
        except OSError:
            continue
        replaceable = status.st_mode & stat.S_IWOTH and not (status.st_mode & stat.S_ISVTX and path != folder)
        if replaceable or status.st_uid not in (0, os.getuid()):
            return path
    return None
