"""What ``fastconv selftest`` runs: whether this machine computes rightly, whatever threads and forks do.

Four checks over every row of the plan's table:

``integers``  on small integers, where every order of summation is exact, a row's result is the reference's
``adjoint``   <conv(x, w), g> = <x, dX> = <w, dW> for real numbers, on a layer that keeps all threads busy
``threads``   the bits are the same for one thread and for all, and for callers in several threads at once
``fork``      a forked child computes the same bits
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fastconv import plan, threads
from fastconv.geometry import ConvGeometry, conv_geometry

__all__ = ["CHECKS", "bits", "run"]

Array = np.ndarray[Any, Any]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

CALLERS = 4
"""Threads that call at once."""

ROUNDINGS = 4
"""Units of rounding by which two products may differ, of their largest possible size: so many errors cancel that 0.2 are seen."""

PATIENCE = 120
"""Seconds after which a child is taken to hang."""

SMALL = (
    conv_geometry((2, 3, 9), (4, 3, 3), 2, 1),
    conv_geometry((2, 3, 7, 9), (5, 3, 3, 2), 1, ((1, 0), (2, 1))),
    conv_geometry((1, 4, 11, 8), (6, 2, 3, 3), (2, 3), 1, 2, 2),
    conv_geometry((2, 20, 7, 7), (20, 1, 3, 3), 1, 1, 1, 20),
    conv_geometry((2, 20, 9, 8), (20, 1, 7, 7), 1, 3, 1, 20),
    conv_geometry((1, 17, 6, 19), (33, 17, 1, 1)),
    conv_geometry((3, 1, 12, 12), (32, 1, 5, 5)),
    conv_geometry((2, 16, 10, 10), (16, 16, 3, 3), 1, 1),
    conv_geometry((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), (1, 2, 1), 1),
)
LARGE = (
    conv_geometry((4, 24, 28, 28), (40, 24, 3, 3), 1, 1),
    conv_geometry((4, 32, 28, 28), (32, 1, 5, 5), 2, 2, 1, 32),
    conv_geometry((4, 40, 28, 28), (40, 1, 7, 7), 1, 3, 1, 40),
)

Fault = str


def run(say: Callable[[str], None]) -> bool:
    """Run all checks, telling the outcome of each; return whether all have passed.

    Examples
    --------
    >>> run(print)  # doctest: +SKIP
    integers  passed: 288 results, 0.3 s
    adjoint   passed: 24 products, 0.4 s
    threads   passed: 192 results, 1.2 s
    fork      passed: 48 results, 0.2 s
    True
    """
    sound = True
    for name, check in CHECKS.items():
        start, count, faults = time.perf_counter(), 0, []
        for fault in check():
            count += 1
            if fault is not None:
                faults.append(fault)
        seconds = time.perf_counter() - start
        outcome = f"FAILED: {len(faults)} of" if faults else "passed:"
        say(f"{name:<10}{outcome} {count} results, {seconds:.1f} s")
        for fault in faults[:10]:
            say(f"{'':<10}{fault}")
        sound = sound and not faults
    return sound


def _integers() -> Iterator[Fault | None]:
    for geometry in SMALL:
        for dtype in DTYPES:
            arrays = _arrays(geometry, dtype, whole=True)
            for row, last in _rows(geometry, dtype):
                wanted = _result(plan.ROWS[row.computes, "reference"], geometry, arrays, False)
                found = _result(row, geometry, arrays, last)
                worst = np.max(np.abs(found - wanted), initial=0.0)
                # What is not finite has not been written, or was read outside the inputs.
                if not worst <= row.error * np.max(np.abs(wanted), initial=0.0):
                    yield f"{_name(row, geometry, dtype, last)}: differs from the reference by {worst:g}"
                else:
                    yield None


def _adjoint() -> Iterator[Fault | None]:
    for geometry in LARGE:
        for dtype in DTYPES:
            arrays = _arrays(geometry, dtype, whole=False)
            x, weight, bias, grad_output = arrays
            bias[:] = 0
            products = []
            for row, last in _rows(geometry, dtype):
                if row.computes == "grad_bias":
                    continue
                other = {"output": grad_output, "grad_input": x, "grad_weight": weight}[row.computes]
                result = _result(row, geometry, arrays, last).reshape(other.shape)
                product = float(np.vdot(result.astype(np.float64), other.astype(np.float64)))
                products.append((row, last, product, float(np.linalg.norm(result) * np.linalg.norm(other))))
            wanted = products[-1][2]  # the reference's
            for row, last, product, scale in products:
                if not abs(product - wanted) <= (row.error + ROUNDINGS * np.finfo(dtype).eps) * scale:
                    yield f"{_name(row, geometry, dtype, last)}: its product is {product:.9g}, the reference's {wanted:.9g}"
                else:
                    yield None


def _threads() -> Iterator[Fault | None]:
    wanted = bits()
    with threads.num_threads(1):
        yield from _compare(bits(), wanted, "one thread")
    with ThreadPoolExecutor(CALLERS) as callers:
        for found in callers.map(lambda _: bits(), range(CALLERS)):
            yield from _compare(found, wanted, f"{CALLERS} callers at once")


def _fork() -> Iterator[Fault | None]:
    if not hasattr(os, "fork"):
        return
    wanted = bits()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the process has threads, and that kernels run serially
        child = os.fork()
        if child == 0:
            try:
                os.close(reader)
                with os.fdopen(writer, "w") as stream:
                    stream.writelines(f"{line}\n" for line in bits().values())
            finally:
                os._exit(0)
    os.close(writer)
    lines, status = _answer(reader, child)
    if len(lines) != len(wanted):
        yield f"a forked child {'hangs' if status == signal.SIGKILL else f'ended with status {status}'}"
    else:
        yield from _compare(dict(zip(wanted, lines, strict=True)), wanted, "a forked child")


def _answer(reader: int, child: int) -> tuple[list[str], int]:
    """Read what a child writes until its end, which comes after a while in any case; return its status, too."""
    with ThreadPoolExecutor(1) as waiting, os.fdopen(reader) as stream:
        answer = waiting.submit(stream.read)
        try:
            text = answer.result(PATIENCE)
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            text = answer.result()
    return text.split(), os.waitpid(child, 0)[1]


CHECKS = {"integers": _integers, "adjoint": _adjoint, "threads": _threads, "fork": _fork}


def bits() -> dict[str, str]:
    """Hash what every row makes of real numbers, on layers of which some are worth several threads.

    Returns
    -------
    dict of str to str
        By row, dtype and layer.
    """
    return {
        _name(row, geometry, dtype, last): hashlib.sha256(_result(row, geometry, arrays, last).tobytes()).hexdigest()
        for geometry in (*SMALL[1:4], *LARGE)
        for dtype in DTYPES
        for arrays in [_arrays(geometry, dtype, whole=False)]
        for row, last in _rows(geometry, dtype)
        if row.algorithm != "reference"  # which has no threads, and takes its time
    }


def _compare(found: dict[str, str], wanted: dict[str, str], who: str) -> Iterator[Fault | None]:
    for name, digest in wanted.items():
        yield None if found[name] == digest else f"{name}: other bits with {who}"


def _rows(geometry: ConvGeometry, dtype: np.dtype[Any]) -> Iterator[tuple[plan.Row, bool]]:
    """Rows that can do a call, and whether images lie channels-last: no, or both for those that take such."""
    for row in plan.TABLE:
        if row.objection(geometry, dtype) is None:
            yield from ((row, last) for last in ((False, True) if row.channels_last else (False,)))


def _arrays(geometry: ConvGeometry, dtype: np.dtype[Any], *, whole: bool) -> list[Array]:
    """Return x, weight, bias and grad_output of a layer: small integers or real numbers, the same each time."""
    g, generator = geometry.volume, np.random.default_rng(0)
    shapes = (g.input_shape, g.weight_shape, (g.filters,), g.output_shape)
    if whole:
        return [generator.integers(-4, 5, shape).astype(dtype) for shape in shapes]
    return [generator.standard_normal(shape).astype(dtype) for shape in shapes]


def _result(row: plan.Row, geometry: ConvGeometry, arrays: list[Array], last: bool) -> Array:
    g = geometry.volume
    x, weight, bias, grad_output = arrays
    shape = {
        "output": g.output_shape, "grad_input": g.input_shape, "grad_weight": (1, *g.weight_shape), "grad_bias": (g.filters,),
    }[row.computes]  # fmt: skip
    out = np.full(shape, np.nan, x.dtype)
    if last:
        x, grad_output = _channels_last(x), _channels_last(grad_output)
        out = out if row.computes in ("grad_weight", "grad_bias") else _channels_last(out)
    inputs = {
        "output": (x, weight, bias), "grad_input": (grad_output, weight), "grad_weight": (grad_output, x),
        "grad_bias": (grad_output,),
    }[row.computes]  # fmt: skip
    row.run(g, *inputs, out)
    return out


def _channels_last(array: Array) -> Array:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def _name(row: plan.Row, geometry: ConvGeometry, dtype: np.dtype[Any], last: bool) -> str:
    layout = ", channels-last" if last else ""
    return f"{row.algorithm} {row.computes} of {geometry.input_shape} * {geometry.weight_shape}, {dtype}{layout}"
