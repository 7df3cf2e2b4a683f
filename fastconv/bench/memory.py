"""How much memory steps take: the largest resident set while they run, less that of the same process without the network.

Before the network is made a second time, the first has gone and free memory has been given back, but what had to be loaded and
compiled for it is there: only the network, its batch and what its steps need count.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

from .steps import Model

__all__ = ["megabytes_of_steps"]

PROC = Path("/proc/self")


def megabytes_of_steps(contender: str, model: Model, layout: str, steps: int = 3) -> float | None:
    """Measure the memory of some steps after the first; None where the system does not tell."""
    if not (PROC / "clear_refs").exists():
        return None
    step = model.steps[contender](model, layout)
    for _ in range(2):
        step()
    del step
    _give_back()
    before = _kilobytes("VmRSS")
    step = model.steps[contender](model, layout)
    step()
    (PROC / "clear_refs").write_text("5")  # the largest resident set counts from here on
    for _ in range(steps):
        step()
    return (_kilobytes("VmHWM") - before) / 1000


def _give_back() -> None:
    """Give free memory back to the system."""
    from .. import arrays, scratch

    if "torch._dynamo" in sys.modules:
        import torch

        torch._dynamo.reset()
    gc.collect()
    scratch.release()
    arrays.release()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(field: str) -> int:
    lines = (PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
