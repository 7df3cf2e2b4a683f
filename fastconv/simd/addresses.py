"""Arrays by their address, for kernels that work on any number of them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numba import config, types
from numba.extending import intrinsic

from .words import Array

__all__ = ["pointer_at"]


@intrinsic
def _pointer_at_intrinsic(typingctx, address, like):  # type: ignore[no-untyped-def]
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.int64, like), codegen


def _pointer_at_twin(address: int, like: Array) -> Any:
    return ctypes.cast(int(address), ctypes.POINTER(np.ctypeslib.as_ctypes_type(like.dtype)))


pointer_at = _pointer_at_twin if config.DISABLE_JIT else _pointer_at_intrinsic
"""Make a pointer, for ``numba.carray``, to numbers of the dtype of ``like`` at an address."""
