"""What ``fastconv warmup`` runs: every kernel once, so that the cache holds all of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import fastconv
from fastconv import jit, nn, plan, threads
from fastconv.progress import say

__all__ = ["run", "tasks"]

Task = tuple[str, Callable[[], object]]

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def tasks() -> Iterator[Task]:
    """Everything that is to be compiled, each as a name and a call.

    Every row of the plan's table runs every pass that it can, with and without strides, dilation and groups, on small
    arrays and on large ones (rows may have kernels of their own for each); then the operations and the layers that have
    kernels beside the table.  Some are compiled a second time without threads, for children that a fork leaves with none.
    """
    algorithms = tuple(dict.fromkeys(row.algorithm for row in plan.TABLE))
    for dtype in DTYPES:
        for algorithm in algorithms:
            for ndim in (1, 2, 3):
                yield f"{algorithm}, {ndim}-D, {dtype}", partial(_row, algorithm, ndim, dtype)
            if algorithm != "reference":  # whose kernels are the same for any size, and slow
                yield f"{algorithm}, large, {dtype}", partial(_large, algorithm, dtype)
                yield f"{algorithm}, without threads, {dtype}", partial(_serially, partial(_large, algorithm, dtype))
        yield f"operations, {dtype}", partial(_operations, dtype)
        yield f"layers, {dtype}", partial(_layers, dtype)
        yield f"layers, without threads, {dtype}", partial(_serially, partial(_layers, dtype))
        yield f"layers, with threads, {dtype}", partial(_however_small, partial(_layers, dtype))


def run() -> None:
    """Run all tasks, with a line for each, or on a terminal one that changes."""
    start, live = time.perf_counter(), sys.stderr.isatty()
    everything = list(tasks())
    for index, (name, call) in enumerate(everything):
        text = f"compiling kernels: {index + 1}/{len(everything)} {name}"
        before = time.perf_counter()
        if live:
            print(f"\r\x1b[K{text} ...", end="", file=sys.stderr, flush=True)
        call()
        if not live:
            say(f"{text}, {time.perf_counter() - before:.1f} s")
    if live:
        print("\r\x1b[K", end="", file=sys.stderr)
    say(f"all kernels are compiled and cached, in {time.perf_counter() - start:.1f} s")


def _function(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(fastconv, name)
    return function


def _serially(call: Callable[[], None]) -> None:
    with threads.serially():
        call()


def _however_small(call: Callable[[], None]) -> None:
    """Have kernels wake threads that would run on the calling thread alone, as arrays are small."""
    before, jit.STREAMED_BYTES = jit.STREAMED_BYTES, -1
    try:
        call()
    finally:
        jit.STREAMED_BYTES = before


def _row(algorithm: str, ndim: int, dtype: np.dtype[Any]) -> None:
    """Run one algorithm on tiny arrays, forward and backward, wherever it can."""
    kinds = ((9, 1, 1, 1), (9, 2, 1, 1), (9, 3, 1, 1), (9, 1, 2, 1), (9, 1, 1, 2), (9, 1, 1, 4), (4, 1, 1, 4))
    for size, stride, dilation, groups in kinds:
        x = np.ones((2, 4, *(size,) * ndim), dtype)
        weight = np.ones((4, 4 // groups, *(3,) * ndim), dtype)
        _passes(x, weight, stride=stride, padding=1, dilation=dilation, groups=groups, algorithm=algorithm)


def _large(algorithm: str, dtype: np.dtype[Any]) -> None:
    """Run one algorithm on arrays that are worth several threads: each of more than 100 kB, and 0.2 GFLOP a pass.

    With a weight that was prepared, too: what packs it for all threads may else not run where there are few.  Then on smaller
    ones of the kinds that have kernels of their own: groups of four channels, and images of one or three.
    """
    images = np.ones((8, 64, 20, 20), dtype)
    for x in (images, np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)):
        weight = np.ones((64, 64, 3, 3), dtype)
        if _passes(x, weight, padding=1, algorithm=algorithm):
            fastconv.conv2d(x, fastconv.prepare(weight, padding=1), padding=1, algorithm=algorithm)
        for k in (3, 7):
            _passes(x, np.ones((64, 1, k, k), dtype), padding=k // 2, groups=64, algorithm=algorithm)
    for channels, groups in ((16, 4), (1, 1), (3, 1)):
        x, weight = np.ones((4, channels, 32, 32), dtype), np.ones((16, channels // groups, 3, 3), dtype)
        _passes(x, weight, padding=1, groups=groups, algorithm=algorithm)


def _passes(x: Any, weight: Any, **options: Any) -> bool:
    """Run all passes; say whether the row supports the call: it need not support every one."""
    ndim = x.ndim - 2
    try:
        grad_output = _function(f"conv{ndim}d")(x, weight, np.ones(len(weight), x.dtype), **options)
        for per_sample in (False, True):
            _function(f"conv{ndim}d_backward")(grad_output, x, weight, per_sample=per_sample, **options)
    except ValueError as error:
        if "cannot do this call" not in str(error):
            raise
        return False
    return True


def _operations(dtype: np.dtype[Any]) -> None:
    """Run the transposed forms, the tangents and padding."""
    for ndim in (1, 2, 3):
        x, weight = np.ones((2, 4, *(6,) * ndim), dtype), np.ones((4, 4, *(3,) * ndim), dtype)
        output = _function(f"conv_transpose{ndim}d")(x, weight)
        _function(f"conv_transpose{ndim}d_backward")(output, x, weight)
        _function(f"conv{ndim}d_jvp")(x, weight, x, weight)
    for mode in ("zeros", "reflect", "replicate", "circular"):
        padded = fastconv.pad(x, 1, mode=mode)
        fastconv.pad_backward(padded, x.shape, 1, mode=mode)


def _layers(dtype: np.dtype[Any]) -> None:
    """Run a training step and an evaluation of a network with every kind of layer."""
    model = nn.Sequential(
        nn.AvgPool2d(1),
        nn.ZeroPad2d(1),
        nn.Conv2d(3, 8, 3, dtype=dtype, rng=0),
        nn.BatchNorm2d(8, dtype=dtype),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Residual(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 8, 3, dtype=dtype, rng=0))),
        nn.ReLU(),
        nn.Residual(nn.BatchNorm2d(8, dtype=dtype)),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.ConvTranspose2d(8, 4, 2, stride=2, dtype=dtype, rng=0),
        nn.AdaptiveAvgPool2d(2),
        nn.Dropout(0.5, rng=0),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 10, dtype=dtype, rng=0),
    )
    loss = nn.CrossEntropyLoss()
    x, y = np.ones((4, 3, 16, 16), dtype), np.zeros(4, np.int64)
    loss(model(x), y)
    model.backward(loss.backward(), input_grad=True)
    for optimiser in (nn.SGD(model.parameters(), lr=0.1, momentum=0.9), nn.Adam(model.parameters())):
        optimiser.step()
    model.eval()(x)
