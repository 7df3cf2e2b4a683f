"""A worker process: ``python -m fastconv.bench.worker NAME THREADS PARENT``.

It answers requests, one JSON object a line on standard input, with one JSON object a line on standard output::

    {"do": "hello"}                                              versions
    {"do": "describe"}                                           the machine in words (fastconv's worker only)
    {"do": "limits", "dtype": ..., "seconds": ...}               the machine's limits (fastconv's worker only)
    {"do": "prepare", "layer": {...}, "dtype": ..., "layouts": [...]}
    {"do": "prepare_model", "name": ..., "layout": ...}          the loss before the first step
    {"do": "losses", "name": ..., "layout": ..., "steps": 50, "runs": 3}    the losses before these steps, of each run
    {"do": "memory", "name": ..., "layout": ...}                 megabytes that steps take
    {"do": "check", "computes": "fwd", "layout": "nchw"}         some numbers of the result
    {"do": "time", "computes": "fwd", "layout": "nchw", "seconds": 0.02}

A failed request is answered with ``{"error": ...}``, a library that is not installed with ``{"missing": ...}``.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .contenders import CONTENDERS, Call
from .layers import layer_of

__all__ = ["Session", "main", "serve"]

FEWEST, MOST = 2, 1000
"""Calls in one turn."""

SAMPLES = 32
"""Numbers of a result that are compared."""


class Session:
    """What a worker remembers from one request to the next; one method for each.

    Parameters
    ----------
    name : str
        One of `fastconv.bench.contenders.CONTENDERS`.
    threads : int
        For the library to use.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads
        self.model: str | None = None
        self.contender = CONTENDERS[name](threads)
        self.machine: Any = None
        self.calls: dict[str, dict[str, Call]] = {}

    def hello(self) -> dict[str, Any]:
        """Say which versions are loaded."""
        return {"versions": self.contender.versions}

    def describe(self) -> dict[str, Any]:
        """Tell about the machine what ``fastconv info`` tells, without folders."""
        from .. import info

        return {name: value for name, value in info.facts() if name not in ("cache", "memory", "variables", "warning")}

    def limits(self, dtype: str, seconds: float) -> dict[str, Any]:
        """Measure the machine's limits."""
        if self.machine is None:
            from .machine import Machine

            self.machine = Machine(dtype, self.threads)
        measured: dict[str, Any] = self.machine.measure(seconds)
        return measured

    def prepare(self, layer: dict[str, Any], dtype: str, layouts: list[str]) -> dict[str, Any]:
        """Make a layer's arrays, and forget the last one's."""
        self.calls = {}
        described = layer_of(layer, "the layer")
        self.calls = {layout: self.contender.calls(described, dtype, layout) for layout in layouts}
        return {}

    def prepare_model(self, name: str, layout: str) -> dict[str, Any]:
        """Make a model in one more layout, and take its first step, which also compiles."""
        from .steps import MODELS

        if self.model != name:
            self.model, self.calls = name, {}
        step = MODELS[name].steps[self.name](MODELS[name], layout)
        self.calls[layout] = {"step": step}
        return {"loss": step()}

    def losses(self, name: str, layout: str, steps: int, runs: int = 1) -> dict[str, Any]:
        """Train a new model for some steps, several times from other weights."""
        from .steps import MODELS

        losses = []
        for seed in range(runs):
            model = dataclasses.replace(MODELS[name], seed=seed)
            step = model.steps[self.name](model, layout)
            losses += [step() for _ in range(steps)]
        return {"losses": losses}

    def memory(self, name: str, layout: str) -> dict[str, Any]:
        """Measure the memory that a new model's steps take."""
        from .memory import megabytes_of_steps
        from .steps import MODELS

        self.model, self.calls = None, {}
        return {"megabytes": megabytes_of_steps(self.name, MODELS[name], layout)}

    def check(self, computes: str, layout: str) -> dict[str, Any]:
        """Compute a pass, which also warms it up, and return some of its numbers and the largest."""
        result = self.contender.result(computes, layout, self.calls[layout][computes]())
        places = np.unravel_index(np.linspace(0, result.size - 1, SAMPLES).astype(np.int64), result.shape)
        return {
            "shape": list(result.shape),
            "samples": result[places].astype(float).tolist(),
            "largest": float(max(result.max(), -result.min())),
        }

    def time(self, computes: str, layout: str, seconds: float) -> dict[str, Any]:
        """Return the shortest time of a pass, and the number of calls."""
        times = repeat(self.calls[layout][computes], seconds)
        return {"seconds": min(times), "calls": len(times)}


def repeat(call: Call, seconds: float) -> list[float]:
    """Time a call again and again, after one that is not timed: the caches are another's."""
    call()
    times: list[float] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while len(times) < FEWEST or (time.perf_counter() < end and len(times) < MOST):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return times


def serve(name: str, threads: int, lines: Iterable[str], answer: Callable[[str], object]) -> None:
    """Answer requests until there are no more."""
    session: Session | None = None
    for line in lines:
        request: dict[str, Any] = json.loads(line)
        reply: dict[str, Any]
        try:
            session = session or Session(name, threads)
            reply = getattr(session, request.pop("do"))(**request)
        except ImportError as error:
            reply = {"missing": f"{type(error).__name__}: {error}"}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        answer(json.dumps(reply))


def main() -> None:
    """Serve on standard input and output."""
    name, threads, parent = sys.argv[1:]
    if sys.platform == "linux":  # a stopped worker would outlive a killed benchmark
        with contextlib.suppress(OSError, AttributeError):
            pr_set_pdeathsig = 1
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(parent):  # it was killed before we came here
        return
    # Whatever a library prints goes to standard error.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        serve(name, int(threads), sys.stdin, lambda text: print(text, file=out, flush=True))


if __name__ == "__main__":
    main()
