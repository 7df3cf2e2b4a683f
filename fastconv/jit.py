"""How fastconv's functions are compiled: the only file that sets a Numba option.

``kernel``           a serial compiled function
``parallel_kernel``  the same with one ``prange``, its outermost loop, spread over the threads where `fastconv.threads` allows it
``streaming_kernel`` the same for work that is mostly reading and writing arrays: threads are woken for large ones only
``linked_kernel``    a serial kernel that only others call: machine code is made of it once, and not again for each caller
``inner_kernel``     the same where it is so short that it becomes part of its callers
``callback``         a compiled function that others call by its address: no caller is compiled again with it
``inlined``          a function whose text becomes part of those that call it
``shared``           a small function that Python and the kernels both call

Under ``NUMBA_DISABLE_JIT=1`` all but `callback`, which is then not used, leave the Python function as it is, so every
kernel also runs, and is covered by tests, without the compiler.

The compiled code is kept on disk.  Numba files it under the kernel's own source file, and so would serve a stale
kernel after an edit to a function that it calls; `KernelCache` therefore adds a hash of all sources of compiled code to the key.
And a cache is only ever a help: where it cannot be read or written, the kernel is compiled anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import config, prange, types
from numba.core import sigutils
from numba.core.caching import FunctionCache, NullCache
from numba.core.ccallback import CFunc
from numba.core.codegen import get_host_cpu_features
from numba.core.runtime import rtsys
from numba.extending import register_jitable

from . import threads
from .linking import LinkedCacheImpl, LinkedCompiler

__all__ = [
    "MASKS",
    "ROWS",
    "VECTORS",
    "VECTOR_BYTES",
    "callback",
    "inlined",
    "inner_kernel",
    "kernel",
    "linked_kernel",
    "parallel_kernel",
    "prange",
    "shared",
    "source_hash",
    "streaming_kernel",
    "unsigned",
]

signed: Any = np.int64
"""Type to cast a prange index to before arithmetic: it is unsigned, and with signed numbers would become a float."""

unsigned: Any = np.uintp
"""Type of an index that is known not to be negative: Numba leaves out the wrap-around for it."""


def _vector_bytes() -> int:
    """Width of the widest vector registers that Numba compiles for here, in bytes.

    Where ``NUMBA_CPU_NAME`` names another CPU but not its features, Numba still takes this one's: the width is then that CPU's.
    """
    if config.CPU_FEATURES is None and config.CPU_NAME:
        return _vector_bytes_of(config.CPU_NAME)
    enabled = set((config.CPU_FEATURES or get_host_cpu_features()).split(","))
    if "+avx512f" in enabled:
        return 64
    return 32 if enabled & {"+avx", "+avx2"} else 16


def _vector_bytes_of(cpu: str) -> int:
    """Ask LLVM in which registers a CPU adds wide vectors."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    kind = "<16 x float>"
    module = llvm.parse_assembly(
        f'define {kind} @add({kind} %a, {kind} %b) "min-legal-vector-width"="512" '
        f"{{ %c = fadd {kind} %a, %b ret {kind} %c }}"
    )
    assembly = llvm.Target.from_default_triple().create_target_machine(cpu=cpu).emit_assembly(module)
    return 64 if "zmm" in assembly else 32 if "ymm" in assembly else 16


VECTOR_BYTES = int(os.environ.get("FASTCONV_VECTOR_BYTES", 0)) or _vector_bytes()
"""Bytes of a vector: 64 with AVX-512, 32 with AVX, else 16 (NEON, SSE).  The environment variable is for tests: LLVM splits
vectors that are wider than the machine's."""

MASKS = VECTOR_BYTES == 64
"""Whether loads and stores of some lanes of a vector, by a mask, take no longer than those of all."""

ROWS = 6
"""Rows of the register tile.  Each takes a general register for its address, and there are 15 on x86-64."""

VECTORS = 4 if VECTOR_BYTES == 64 or platform.machine() in ("aarch64", "arm64") else 2
"""Most vectors in a row of the register tile: 6x4 accumulators of 32 registers, 6x2 of 16."""

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = {
    # Kernels touch arrays and integers only, so other Python threads may run meanwhile.
    "nogil": True,
    # `contract` lets a multiplication and an addition become one FMA.  Nothing more: `reassoc` would let a result change
    # with the vector width, `nnan` and `ninf` would break NaN and Inf.
    "fastmath": {"contract"},
    # A division by zero follows IEEE 754 and never raises: kernels do not raise.
    "error_model": "numpy",
}


@functools.cache
def source_hash() -> str:
    """Hash of every source file that compiled code can come from: the only ones that use this file's decorators."""
    package = pathlib.Path(__file__).parent
    files = [
        package / f"{name}.py" for name in ("cook_toom", "dft", "geometry", "jit", "linking", "reference", "tasks")
    ]
    digest = hashlib.sha256()
    for path in sorted([*files, *(package / "simd").glob("*.py"), *(package / "kernels").glob("*.py")]):
        if path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()


class _KeyedCache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function, keyed on the sources of all kernels, the width of a vector and how it is compiled."""

    _impl_class = LinkedCacheImpl

    def __init__(self, func: Callable[..., Any], form: str) -> None:
        super().__init__(func)
        self._form = form

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load code, and of Numba only what runs it: what compiles, SciPy's BLAS with it, takes longer than a first call."""
        rtsys.initialize(target_context)
        return self._load_overload(sig, target_context)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (sig, codegen.magic_tuple(), source_hash(), VECTOR_BYTES, self._form)


class KernelCache(NullCache):  # type: ignore[misc]
    """A kernel's cache on disk, in which every failure is only a miss.

    It is opened on the kernel's first call: to open one, Numba writes a file into the folder to see whether it can.
    """

    def __init__(self, func: Callable[..., Any], form: str) -> None:
        self._func, self._form = func, form

    @functools.cached_property
    def _on_disk(self) -> Any:
        try:
            return _KeyedCache(self._func, self._form)
        except (RuntimeError, OSError):  # no folder that may be written to
            return NullCache()

    @property
    def cache_path(self) -> Any:
        return self._on_disk.cache_path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = self._on_disk.load_overload(sig, target_context)
        except Exception:  # a truncated or foreign file can raise anything while it is unpickled: compile instead
            return None
        # Two processes that write at once can leave the code for one signature under the other's name.
        return found if found is not None and found.signature.args == sigutils.normalize_signature(sig)[0] else None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk, or a folder turned read-only: the code in memory is good
            try:
                self._on_disk.save_overload(sig, data)
            except OSError:
                raise
            except Exception:  # a truncated or foreign index cannot be added to: begin a new one
                self._on_disk.flush()
                self._on_disk.save_overload(sig, data)

    def flush(self) -> None:
        self._on_disk.flush()


def _compiled(func: F, form: str, **options: Any) -> F:
    dispatcher: Any = numba.njit(**OPTIONS, **options)(func)
    if not config.DISABLE_JIT:
        dispatcher._cache = KernelCache(func, form)
        dispatcher.get_call_template = functools.partial(_for_any_number, dispatcher.get_call_template)
    return dispatcher  # type: ignore[no-any-return]


def _compiled_for_kernels(func: F, form: str, **options: Any) -> F:
    """Compile without what Python would need to call it."""
    dispatcher: Any = _compiled(func, form, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)
    if not config.DISABLE_JIT:

        def refuse(*_: Any, **__: Any) -> None:
            raise TypeError(f"{func.__name__} is for kernels, and cannot be called from Python")

        # What Numba would call from Python goes into a table of its own; kernels look into this one.
        dispatcher.add_overload = lambda result: dispatcher.overloads.update({tuple(result.signature.args): result})
        dispatcher._compile_for_args = refuse
    return dispatcher  # type: ignore[no-any-return]


def _for_any_number(get_call_template: Callable[..., Any], args: Any, kws: Any) -> Any:
    """Have a kernel that another calls with numbers from its text compiled once, for any numbers, not once for each.

    Truths stay: what they exclude is left out.
    """
    args = [arg if isinstance(arg, types.BooleanLiteral) else types.unliteral(arg) for arg in args]
    return get_call_template(args, {name: types.unliteral(arg) for name, arg in kws.items()})


def kernel(func: F) -> F:
    """Compile a serial kernel on its first call, or take it from the cache."""
    return _compiled(func, "serial")


def linked_kernel(func: F) -> F:
    """Compile a kernel that only others call once for all of them: see `fastconv.linking`."""
    return _compiled_for_kernels(func, "linked", pipeline_class=LinkedCompiler)


def inner_kernel(func: F) -> F:
    """Compile a short kernel that only others call: LLVM makes it part of them."""
    return _compiled_for_kernels(func, "inner")


def parallel_kernel(func: F) -> F:
    """Compile a kernel whose outermost loop is a ``prange``, spread over the threads; without them where it must be."""
    if config.DISABLE_JIT:
        return func
    threaded, serial, run = _compiled(func, "parallel", parallel=True), _compiled(func, "serial"), threads.run

    @functools.wraps(func)
    def call(*arguments: Any) -> Any:
        return run(threaded, serial, arguments)

    call.threaded, call.serial = threaded, serial  # type: ignore[attr-defined]
    result: Any = call
    return result  # type: ignore[no-any-return]


STREAMED_BYTES = 2**18
"""Up to this many bytes in its arrays, a streaming kernel runs on the calling thread alone: waking others takes longer."""


def streaming_kernel(func: F) -> F:
    """Compile a parallel kernel that reads and writes each of its arrays about once, and does little else."""
    if config.DISABLE_JIT:
        return func
    parallel: Any = parallel_kernel(func)

    @functools.wraps(func)
    def call(*arguments: Any) -> Any:
        moved = 0
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                moved += argument.nbytes
        return (parallel if moved > STREAMED_BYTES else parallel.serial)(*arguments)

    call.threaded, call.serial = parallel.threaded, parallel.serial  # type: ignore[attr-defined]
    result: Any = call
    return result  # type: ignore[no-any-return]


def inlined(func: F) -> F:
    """Have a function's text compiled into each function that calls it."""
    result: F = numba.njit(inline="always", **OPTIONS)(func)
    return result


def callback(func: Callable[..., None], name: str, *kinds: Any) -> int:
    """Compile a function of these types, or take it from the cache; return its address, where C would call it.

    ``name`` tells it from others that stand at the same place in the source.
    """
    options = {name: value for name, value in OPTIONS.items() if name != "nogil"}  # the caller has released the GIL
    compiled: Any = CFunc(func, sigutils.normalize_signature(types.void(*kinds)), {}, {"nopython": True, **options})
    compiled._cache = KernelCache(func, name)
    compiled.compile()
    _callbacks.append(compiled)
    address: int = compiled.address
    return address


_callbacks: list[Any] = []
"""What owns the code at the addresses that were given out."""


def shared(func: F) -> F:
    """Let kernels call a plain Python function."""
    wrapped: F = register_jitable(func)
    return wrapped
