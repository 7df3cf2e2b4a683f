"""What ``fastconv info`` prints: versions, the CPU, threads, and where compiled code is kept."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import llvmlite
import llvmlite.binding
import numba
import numpy as np

import fastconv
from fastconv import jit, limits, threads

__all__ = ["cache_folder", "facts", "lines"]

FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "neon", "sve")
VARIABLES = ("NUMBA_", "FASTCONV_", "OMP_", "GOMP_", "KMP_", "TBB_", "OPENBLAS_NUM", "MKL_NUM")


def facts(*names: str) -> Iterator[tuple[str, str]]:
    """Describe this machine, from what is quick to what takes a compilation.

    Parameters
    ----------
    *names : str
        What to tell; everything if none is given.

    Yields
    ------
    name, value : str

    Examples
    --------
    >>> dict(facts("fastconv", "vectors")).keys()
    dict_keys(['fastconv', 'vectors'])
    """
    for name, ask in FACTS.items():
        if (not names or name in names) and (value := ask()) is not None:
            yield name, value


def lines(known: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Lay out facts for a reader, one a line."""
    for name, value in known:
        yield f"{name:<18}{value}"


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


def _threading_layer() -> str:
    """Name of the layer, which is known once it is started."""
    if numba.config.DISABLE_JIT:
        return "none"
    fastconv.get_num_threads()
    return str(threads.layer())


def _cache() -> str:
    folder = cache_folder()
    return "none: no folder can be written to, so kernels are compiled anew" if folder is None else str(folder)


def _warning() -> str | None:
    folder = cache_folder()
    if folder is None or (open_to := _writable_by_others(folder)) is None:
        return None
    return f"others may write to {open_to}, and so make this cache run their code"


def cache_folder() -> Path | None:
    """Folder where compiled kernels are kept; None where none can be written."""
    from fastconv.tasks import run_together

    cache = getattr(getattr(run_together, "threaded", None), "_cache", None)
    path = getattr(cache, "cache_path", None)
    return None if path is None else Path(path)


def _writable_by_others(folder: Path) -> Path | None:
    """Folder, the given one or one above it, or file in which another user could replace what the cache holds."""
    if os.name != "posix":
        return None
    for path in (folder, *folder.parents, *sorted(folder.glob("*.nb?"))):
        try:
            status = path.stat()
        except OSError:
            continue
        replaceable = status.st_mode & stat.S_IWOTH and not (status.st_mode & stat.S_ISVTX and path != folder)
        if replaceable or status.st_uid not in (0, os.getuid()):
            return path
    return None


FACTS: dict[str, Callable[[], str | None]] = {
    "fastconv": lambda: fastconv.__version__,
    "python": lambda: f"{platform.python_version()} ({platform.python_implementation()})",
    "numpy": lambda: np.__version__,
    "numba": lambda: numba.__version__,
    "llvmlite": lambda: f"{llvmlite.__version__} (LLVM {'.'.join(map(str, llvmlite.binding.llvm_version_info))})",
    "torch": lambda: _version("torch"),
    "tbb": lambda: _version("tbb"),
    "system": lambda: f"{platform.system()} {platform.release()}, {platform.machine()}",
    "cpu": lambda: f"{_cpu_model()} (LLVM: {_cpu_name()})",
    "vector features": lambda: " ".join(_features()) or "none known",
    "vectors": lambda: (
        f"{jit.VECTOR_BYTES} bytes: {jit.VECTOR_BYTES // 4} lanes of float32, {jit.VECTOR_BYTES // 8} of float64"
    ),
    "memory": lambda: f"{limits.free_memory() / 2**30:.1f} GiB may be taken",
    "variables": lambda: (
        " ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)) or "none"
    ),
    "jit": lambda: "off (NUMBA_DISABLE_JIT)" if numba.config.DISABLE_JIT else "on",
    "threading layer": _threading_layer,
    "threads": lambda: (
        f"{fastconv.get_num_threads()} of {numba.config.NUMBA_NUM_THREADS}, {limits.processors()} processors allowed"
    ),
    "cache": _cache,
    "warning": _warning,
}
"""What is told, and how it is found out."""
