"""Kernels whose machine code their callers share.

Numba gives each caller a copy of what it calls, and optimises the copy and makes machine code of it once more: a function that
is called through three others is compiled four times.  A kernel that is compiled by `LinkedCompiler`, or a function that `link`
is given, keeps its code to itself.  Its callers hold no more than its symbol, which LLVM looks up among the code of the process.

On disk a caller's code therefore comes with all that it is linked with, which is loaded before it: LLVM ends the process where it
does not find a symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from numba.core.caching import CompileResultCacheImpl
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

__all__ = ["LinkedCacheImpl", "LinkedCompiler", "link"]


class _Linked(NamedTuple):
    """Code that is linked: what owns it, the symbols that it needs, and, if it was loaded, what from."""

    library: Any
    needs: tuple[str, ...]
    image: Any


_linked: dict[str, _Linked] = {}
"""What can be linked in this process, by its symbol."""

_kept: list[Any] = []
"""All their code, of which none is ever unloaded: what calls it cannot be known.  A symbol may have been loaded twice."""


def _keep(symbol: str, library: Any, needs: tuple[str, ...], image: Any = None) -> None:
    _kept.append(library)
    _linked.setdefault(symbol, _Linked(library, needs, image))


def _needed_by(library: Any) -> tuple[str, ...]:
    """Find the symbols that code calls and does not hold."""
    functions = library._final_module.functions
    return tuple(function.name for function in functions if function.is_declaration and function.name in _linked)


def _in_order(symbols: Iterable[str], found: dict[str, None] | None = None) -> Iterable[str]:
    """List symbols and all that these need: what is needed before what needs it, and each once."""
    found = {} if found is None else found
    for symbol in symbols:
        if symbol not in found:
            _in_order(_linked[symbol].needs, found)
            found[symbol] = None
    return found


class _LinkedLibrary(JITCodeLibrary):  # type: ignore[misc]
    """A kernel's code, of which callers get nothing."""

    def _optimize_functions(self, module: Any) -> None:
        """Leave to the passes over the whole module what Numba does function by function for what callers are to inline."""
        module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        super().finalize()
        needs = _needed_by(self)
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == llvm.Linkage.external:
                _keep(function.name, self, needs)
        self._shared_module = llvm.parse_assembly("")  # what callers get


def link(codegen: Any, symbol: str, write: Callable[[Any], None]) -> None:
    """Have code linked that no kernel of Numba is: ``write`` emits the function ``symbol`` into an LLVM module."""
    if symbol not in _linked:
        library = _LinkedLibrary(codegen, symbol)
        library.enable_object_caching()
        module = library.create_ir_module(symbol)
        write(module)
        library.add_ir_module(module)
        library.finalize()


class LinkedCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler, for kernels that are linked."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        """Compile a function into a library of its own kind."""
        self.state.library = _LinkedLibrary(self.state.targetctx.codegen(), func.__qualname__)
        self.state.library.enable_object_caching()
        return super().compile_extra(func)


class LinkedCacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    """How a kernel is written to disk: with the linked kernels that it needs."""

    def reduce(self, result: Any) -> Any:
        """Turn a compiled kernel into what can be pickled."""
        own = result.fndesc.mangled_name
        needs = _linked[own].needs if own in _linked else _needed_by(result.library)
        parts = []
        for symbol in _in_order(needs):
            part = _linked[symbol]
            parts.append((symbol, part.needs, part.image or part.library.serialize_using_object_code()))
        return parts, own in _linked, needs, result._reduce()

    def rebuild(self, target_context: Any, payload: Any) -> Any:
        """Load a kernel, and before it those that it needs and that this process does not have yet."""
        parts, is_linked, needs, whole = payload
        codegen = target_context.codegen()
        for symbol, others, image in parts:
            if symbol not in _linked:
                _keep(symbol, codegen.unserialize_library(image), others, image)
        result = super().rebuild(target_context, whole)
        if is_linked:
            _keep(result.fndesc.mangled_name, result.library, needs, whole[0])
        return result
