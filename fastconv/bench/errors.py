"""``fastconv bench --errors``: how far results are from those in double precision.

Errors are the largest, as a multiple of the largest result, and that of the norm, as a multiple of the result's norm.  Numbers
are drawn from a normal distribution, those of suites evenly between -0.5 and 0.5.  All that is compared sees the same numbers.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr

import numpy as np

from .. import ops, plan
from ..cook_toom import KERNELS, POINTS, input_matrix, output_matrix, weight_matrix
from ..suites import SUITES, Layer
from ..threads import get_num_threads
from .contenders import CONTENDERS, LAYOUTS, Array, Contender
from .contenders import PASSES as TIMED
from .layers import chosen
from .table import aligned

__all__ = ["text"]

CHANNELS = (16, 32, 64, 128, 256, 512, 1024, 2048)
SIZE, LANES = 14, 32
"""Sides of images, and channels that are not summed up."""

SUMMED = 256
"""Channels of the kernels of several shapes."""

PASSES = ("forward", "dX", "dW")
ALGORITHMS = ("direct", "winograd")

ROUNDING = float(np.finfo(np.float32).eps) / 2
"""Of a number in single precision: less is no error that a library could be measured by."""

CANDIDATES = (
    (1, 2),
    (1 / 2, 1),
    (1 / 2, 3 / 2),
    (1 / 2, 2),
    (2 / 3, 3 / 2),
    (3 / 4, 3 / 2),
    (5 / 8, 5 / 4),
    (POINTS[1], POINTS[3]),
)
"""Points p and q, which stand for 0, p, -p, q, -q and infinity."""

SEEDS = range(5)


def text(
    kinds: Sequence[str], suites: Sequence[str] = (), shapes: str | None = None, limit: int | None = None
) -> str:  # fmt: skip
    """Return the tables of these kinds, of `KINDS`; "suites" are those of all suites, or of the layers that are asked for."""
    layers = chosen(suites or (() if shapes else tuple(SUITES)), shapes, limit)
    tables = KINDS | {"suites": functools.partial(_suites, layers)}
    return "\n\n".join("\n".join(aligned(list(tables[kind]()))) for kind in kinds)


def errors(result: Array, exact: Array) -> tuple[float, float]:
    """Return the largest error and that of the norm."""
    difference = result - exact
    return float(abs(difference).max() / abs(exact).max()), float(np.linalg.norm(difference) / np.linalg.norm(exact))


def _kernels() -> Iterator[list[str]]:
    """The passes of a 3x3 layer, by the length of their sums."""
    yield ["pass", "channels", *(f"{name}, {kind}" for name in ALGORITHMS for kind in ("largest", "norm"))]
    rng = np.random.default_rng(0)
    for computes in PASSES:
        for channels in CHANNELS:
            summed, images = (LANES, channels // 16) if computes == "dW" else (channels, 1)
            x, weight, g = (
                rng.standard_normal(shape, np.float32)
                for shape in ((images, summed, SIZE, SIZE), (LANES, summed, 3, 3), (images, LANES, SIZE, SIZE))
            )

            exact = _run(computes, [array.astype(np.float64) for array in (x, weight, g)], "direct")
            results = (_run(computes, [x, weight, g], algorithm) for algorithm in ALGORITHMS)
            found = [error for result in results for error in errors(result, exact)]
            what = f"{channels}" if computes != "dW" else f"{images} images"
            yield [computes, what, *(f"{error:.1e}" for error in found)]


def _run(computes: str, arrays: list[Array], algorithm: str, stride: int = 1) -> Array:
    x, weight, g = arrays
    padding = tuple(n // 2 for n in weight.shape[2:])
    if computes == "forward":
        return ops.conv2d(x, weight, None, stride, padding, algorithm=algorithm)
    wanted = computes == "dX", computes == "dW", False
    if computes == "dX":  # its sums run over filters
        weight, g = np.ascontiguousarray(weight.swapaxes(0, 1)), x
        x = np.empty((len(g), weight.shape[1], stride * g.shape[2], stride * g.shape[3]), g.dtype)
    grads = ops.conv2d_backward(g, x, weight, stride, padding, output_mask=wanted, algorithm=algorithm)
    result = next(grad for grad in grads if grad is not None)
    return result


def _shapes() -> Iterator[list[str]]:
    """Winograd's algorithm for kernels of all the shapes that it takes."""
    yield ["kernel", *(f"{computes}, {kind}" for computes in PASSES for kind in ("largest", "norm"))]
    rng = np.random.default_rng(0)
    for stride, *taps in sorted((down.stride, down.taps, across.taps) for down, across in KERNELS):
        small = SIZE // stride
        x, weight, g = (
            rng.standard_normal(shape, np.float32)
            for shape in ((2, SUMMED, SIZE, SIZE), (LANES, SUMMED, *taps), (2, LANES, small, small))
        )
        found: list[float] = []
        for computes in PASSES:
            exact = _run(computes, [array.astype(np.float64) for array in (x, weight, g)], "direct", stride)
            found += errors(_run(computes, [x, weight, g], "winograd", stride), exact)
        yield [f"{taps[0]}x{taps[1]}" + f"/{stride}" * (stride > 1), *(f"{error:.1e}" for error in found)]


def _depthwise() -> Iterator[list[str]]:
    """7x7 kernels of channels that do not mix, which sums of Fourier transforms compute: for images of several sizes."""
    yield ["size", *(f"{computes}, {name}" for computes in PASSES for name in ("direct", "fft"))]
    rng = np.random.default_rng(0)
    for size in (SIZE // 2, SIZE, 2 * SIZE, 4 * SIZE):
        x, g = (rng.standard_normal((4, LANES, size, size), np.float32) for _ in range(2))
        weight = rng.standard_normal((LANES, 1, 7, 7), np.float32)
        arrays = [array.astype(np.float64) for array in (x, weight, g)]
        exact = _depthwise_passes(arrays, "direct")
        results = [_depthwise_passes([x, weight, g], algorithm) for algorithm in ("direct", "fft")]
        found = [errors(one[k], exact[k])[0] for k in range(len(PASSES)) for one in results]
        yield [f"{size}x{size}", *(f"{error:.1e}" for error in found)]


def _depthwise_passes(arrays: list[Array], algorithm: str) -> list[Array]:
    """Compute the three passes of a layer whose channels do not mix, by an algorithm."""
    x, weight, g = arrays
    grads = ops.conv2d_backward(g, x, weight, padding=3, groups=len(weight), algorithm=algorithm)
    output = ops.conv2d(x, weight, padding=3, groups=len(weight), algorithm=algorithm)
    assert grads.input is not None
    assert grads.weight is not None
    return [output, grads.input, grads.weight]


def _points() -> Iterator[list[str]]:
    """A forward pass with other points, by NumPy in single precision: 256 channels."""
    yield ["points 0, +-p, +-q, infinity", "largest", "norm"]
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((256, 26, 26), np.float32), rng.standard_normal((16, 256, 3, 3), np.float32)
    exact = ops.conv2d(x.astype(np.float64), weight.astype(np.float64), algorithm="direct")
    tiles = np.lib.stride_tricks.sliding_window_view(x, (6, 6), axis=(1, 2))[:, ::4, ::4]
    for p, q in CANDIDATES:
        points = (0.0, p, -p, q, -q)
        b, a, g = (
            m.astype(np.float32)
            for m in (input_matrix(6, points), output_matrix(4, 6, points), weight_matrix(3, points))
        )
        u = np.einsum("ia,fcab,jb->ijfc", g, weight, g, optimize=True)
        v = np.einsum("ia,cyxab,jb->ijcyx", b, tiles, b, optimize=True)
        products = np.einsum("ijfc,ijcyx->ijfyx", u, v, optimize=True)
        y = np.einsum("ai,ijfyx,bj->fyaxb", a, products, a, optimize=True).reshape(exact.shape)
        yield [f"{p:.4g}, {q:.4g}", *(f"{error:.1e}" for error in errors(y, exact))]


def _suites(layers: Sequence[tuple[str, Layer]]) -> Iterator[list[str]]:
    """Direct summation of layers, suite by suite, at its worst, and in proportion to PyTorch where that is installed."""
    threads = get_num_threads()
    ours = CONTENDERS["direct"](threads)
    beside = importlib.util.find_spec("torch") is not None
    yield ["suite", "pass", "largest", "norm", *(("x torch, largest", "x torch, norm", "layer") if beside else ())]
    for suite, group in itertools.groupby(layers, key=lambda pair: pair[0]):
        with _pytorch(threads) if beside else nullcontext() as peer:
            found = {layer: _layer_errors(layer, ours, peer) for _, layer in group}
        for computes in TIMED:
            largest, norm, *ratios = (
                max(column) for column in zip(*(row[computes] for row in found.values()), strict=True)
            )
            worst = max(found, key=lambda layer: max(found[layer][computes][2:], default=0))
            yield [
                suite, computes, f"{largest:.1e}", f"{norm:.1e}", *(f"{ratio:.2f}" for ratio in ratios),
                *([str(worst)] if beside else ()),
            ]  # fmt: skip


@contextmanager
def _pytorch(threads: int) -> Iterator[Contender]:
    """Yield PyTorch as a contender, and undo what that sets for the whole process."""
    import torch

    before = torch.get_num_threads(), torch.is_grad_enabled()
    try:
        yield CONTENDERS["torch"](threads)
    finally:
        torch.set_num_threads(before[0])
        torch.set_grad_enabled(before[1])


def _layer_errors(layer: Layer, ours: Contender, peer: Contender | None) -> dict[str, list[float]]:
    """Return for each pass the errors in the worse layout, and in proportion to those of a peer, if there is one."""

    def results(contender: Contender, dtype: str, layout: str) -> dict[str, Array]:
        calls = contender.calls(layer, dtype, layout)
        return {name: contender.result(name, layout, calls[name]()) for name in TIMED}

    exact = results(ours, "float64", LAYOUTS[0])
    both = [results(ours, "float32", layout) for layout in LAYOUTS]
    theirs = results(peer, "float32", LAYOUTS[0]) if peer else None
    found = {}
    for name, right in exact.items():
        own = [max(pair) for pair in zip(*(errors(one[name], right) for one in both), strict=True)]
        other = errors(theirs[name], right) if theirs else ()
        found[name] = own + [mine / max(its, ROUNDING) for mine, its in zip(own, other, strict=False)]
    return found


def _digits() -> Iterator[list[str]]:
    """Training on scikit-learn's digits, by seed: test accuracy in percent."""
    from .. import training

    yield ["seed", *(f"{precision} precision" for precision in ("high", "highest")), "difference"]
    before, sums = plan.get_precision(), np.zeros(2)
    try:
        for seed in SEEDS:
            accuracy = []
            for precision in ("high", "highest"):
                plan.set_precision(precision)
                with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
                    trainer = training.run({"seed": seed}, f"{folder}/run")
                accuracy.append(100 * trainer.history[-1]["test_accuracy"])
            sums += accuracy
            yield [str(seed), *(f"{a:.2f}" for a in accuracy), f"{accuracy[0] - accuracy[1]:+.2f}"]
    finally:
        plan.set_precision(before)
    high, highest = sums / len(SEEDS)
    yield ["mean", f"{high:.2f}", f"{highest:.2f}", f"{high - highest:+.2f}"]


KINDS: dict[str, Callable[[], Iterator[list[str]]]] = {
    "kernels": _kernels,
    "shapes": _shapes,
    "depthwise": _depthwise,
    "points": _points,
    "digits": _digits,
}
"""What can be asked for beside "suites", the layers of these: the passes of 3x3 kernels, kernels of other shapes, those of
channels that do not mix, other points, and what becomes of a network."""
