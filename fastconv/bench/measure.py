"""The schedule of a benchmark: who is timed when."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from ..plan import explain
from ..progress import say
from ..suites import Layer
from .layers import BenchError
from .processes import Worker
from .results import OURS, WAYS, Report, Timing

__all__ = ["Progress", "measure", "start"]

WINDOW = 0.02
"""Seconds of one turn of one contender, unless two calls take longer."""
LIMIT_WINDOW = 0.006
"""Seconds of one turn of each of the machine's limits."""

ROW_OF = {"fwd": "output", "dx": "grad_input", "dw": "grad_weight", "prepared": "output"}
"""What `fastconv.plan` calls the passes."""

TOLERANCE = {"float32": 2e-4, "float64": 1e-10}
"""Largest difference of two contenders' results, as a multiple of the largest number in them; a wrong kernel is off by far
more, and the exact bounds are for the tests."""


def start(
    stack: contextlib.ExitStack, peers: Sequence[str], dtype: str, threads: int, rounds: int, ways: Sequence[str]
) -> tuple[dict[str, Worker], Report]:
    """Start a worker for fastconv and each peer, and begin a report.  Peers that are not installed are left out."""
    workers: dict[str, Worker] = {}
    versions: dict[str, dict[str, str]] = {}
    for name in (OURS, *peers):
        worker = stack.enter_context(Worker(name, threads))
        reply = worker.ask("hello")
        if "versions" in reply:
            workers[name], versions[name] = worker, reply["versions"]
        elif name == OURS:
            raise BenchError(f"{name} cannot be loaded: {reply['missing']}")
        else:
            say(f"{name} is left out, as it cannot be loaded: {reply['missing']}")
            worker.close()
    date = time.strftime("%Y-%m-%d %H:%M:%S %z")
    machine = workers[OURS].ask("describe")
    workers[OURS].ask("limits", dtype=dtype, seconds=0)
    return workers, Report(date, machine, versions, dtype, threads, rounds, list(ways))


def measure(workers: dict[str, Worker], report: Report, suite: str, layer: Layer, passes: Sequence[str]) -> None:
    """Time one layer, and add the timings to the report.

    Raises
    ------
    BenchError
        If a worker fails, or two of them do not agree on a result.
    """
    layouts = list(dict.fromkeys(layout for way in report.ways for layout in WAYS[way]))
    geometry = layer.geometry
    plan = explain(
        geometry.input_shape, geometry.weight_shape, layer.stride, layer.padding, 1, layer.groups, dtype=report.dtype
    )
    for worker in workers.values():
        _ask(worker, layer.name, "prepare", layer=dataclasses.asdict(layer), dtype=report.dtype, layouts=layouts)
    for computes in passes:
        row = getattr(plan, ROW_OF[computes])
        turns = [(name, layout) for layout in layouts for name in workers]
        checks = {
            turn: _ask(workers[turn[0]], layer.name, "check", computes=computes, layout=turn[1]) for turn in turns
        }
        _compare(checks, f"{layer}, {computes}", TOLERANCE[report.dtype])
        seconds: dict[str, dict[str, list[float]]] = {name: {layout: [] for layout in layouts} for name in workers}
        limits: dict[str, dict[str, list[float]]] = {k: {"1": [], "all": []} for k in ("peak", "copy")}
        for _ in range(report.rounds):
            measured = _ask(workers[OURS], layer.name, "limits", dtype=report.dtype, seconds=LIMIT_WINDOW)
            for kind, threads in limits.items():
                for count, values in threads.items():
                    values.append(measured[kind][count])
            for name, layout in turns:
                reply = _ask(workers[name], layer.name, "time", computes=computes, layout=layout, seconds=WINDOW)
                seconds[name][layout].append(reply["seconds"])
        report.add(
            Timing(
                suite, layer, computes, row.algorithm, geometry.flops, geometry.bytes(4 if "32" in report.dtype else 8),
                seconds, limits["peak"], limits["copy"],
            )
        )  # fmt: skip


def _ask(worker: Worker, place: str, do: str, **request: Any) -> dict[str, Any]:
    try:
        return worker.ask(do, **request)
    except BenchError as error:
        raise BenchError(f"{place}: {error}") from None


def _compare(checks: dict[tuple[str, str], dict[str, Any]], place: str, tolerance: float) -> None:
    """Check that all results are one result."""
    (_, first), *others = checks.items()
    for (name, layout), other in others:
        largest = max(first["largest"], other["largest"])
        pairs = [
            (first["largest"], other["largest"]),
            *zip(first["samples"], other["samples"], strict=True),
        ]
        difference = max((abs(a - b) for a, b in pairs), key=lambda d: math.inf if math.isnan(d) else d)
        if first["shape"] != other["shape"] or not (difference <= tolerance * largest < math.inf):
            raise BenchError(f"{place}: {name} in {layout} computes something else than {OURS} in nchw")


class Progress:
    """A bar on a terminal, where tqdm is installed; else a line for each layer.  All on standard error.

    Parameters
    ----------
    total : int
        Number of layers.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._bar: Any = None
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self._bar = tqdm(total=total, unit=" layers", dynamic_ncols=True, file=sys.stderr)

    def begin(self, suite: str, layer: Layer) -> None:
        """Show what is being timed."""
        if self._bar is not None:
            self._bar.set_description(f"{suite} {layer}")

    def end(self, suite: str, layer: Layer, timings: Sequence[Timing]) -> None:
        """Show what was measured."""
        self.done += 1
        if self._bar is not None:
            self._bar.update()
            return
        figures = ", ".join(f"{t.computes} {t.gflops(OURS, 'best'):.1f}" for t in timings)
        say(f"{self.done}/{self.total} {suite} {layer}: {figures} GFLOP/s")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *ending: object) -> None:
        if self._bar is not None:
            self._bar.close()
