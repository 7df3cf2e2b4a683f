"""``fastconv bench --overhead``: what a call costs beside its arithmetic, under each framework.

A layer so small that its arithmetic takes no time shows what checks, tables and differentiation cost; growing ones show from
which size on that no longer matters.  All run in this process, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import ops
from .table import aligned
from .worker import repeat

__all__ = ["text"]

Call = Callable[[], Any]

SECONDS = 0.3
"""Of each timing, of which the best call counts."""

TINY = (1, 1, 6, 6), (1, 1, 3, 3)
"""Shapes of X and W: 288 multiply-adds."""

GROWING = [(1, 8, 8), (1, 16, 16), (1, 32, 16), (1, 32, 32), (4, 32, 32), (16, 32, 32), (16, 64, 32)]
"""Images, channels and sides of layers of 3 x 3 filters, as many as there are channels."""


def text() -> str:
    """Time what is installed, and return the tables that ``fastconv bench --overhead`` prints."""
    rows = [["one tiny layer, us", "forward", "forward and backward", "per pass, beyond NumPy's"]]
    plain = None
    for name, forward, step in _frameworks():
        times = [1e6 * min(repeat(call, SECONDS)) for call in (forward, step)]
        plain = plain or times[1]
        rows.append([name, *(f"{t:.1f}" for t in times), f"{(times[1] - plain) / 3:.1f}"])
    lines = aligned(rows)
    growing = list(_growing())
    if growing:
        head = ["layer", "MFLOP of a pass", "fastconv.torch, us", "torch, us", "x torch"]
        lines += ["", "forward and backward under PyTorch's autograd", *aligned([head, *growing])]
    return "\n".join(lines)


def _arrays(x_shape: Any, weight_shape: Any) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, np.float32) for shape in (x_shape, weight_shape))
    return x, weight, np.ones_like(ops.conv2d(x, weight))


def _frameworks() -> Iterator[tuple[str, Call, Call]]:
    """Name each framework that is installed, with a forward pass and one with both gradients."""
    x, weight, g = _arrays(*TINY)

    def step() -> None:
        ops.conv2d(x, weight)
        ops.conv2d_backward(g, x, weight, output_mask=(True, True, False))

    yield "NumPy: fastconv.conv2d", lambda: ops.conv2d(x, weight), step
    for name, function in _of_pytorch().items():
        yield name, *_under_pytorch(function, x, weight, g)
    try:
        import jax

        from ..recipes import jax_conv2d
    except ImportError:
        pass
    else:
        on_jax = jax_conv2d()
        forward = jax.jit(on_jax)
        both = jax.jit(lambda x, weight, g: jax.vjp(on_jax, x, weight)[1](g))
        given = tuple(map(jax.device_put, (x, weight, g)))
        yield (
            "JAX: the recipe",
            lambda: forward(*given[:2]).block_until_ready(),
            lambda: jax.block_until_ready(both(*given)),
        )
    try:
        from autograd import make_vjp

        from ..recipes import autograd_conv2d
    except ImportError:
        pass
    else:
        on_autograd = autograd_conv2d()
        pair = make_vjp(lambda both: on_autograd(*both))
        yield "autograd: the recipe", lambda: on_autograd(x, weight), lambda: pair((x, weight))[0](g)


def _of_pytorch() -> dict[str, Call]:
    """Name both functions that PyTorch's autograd knows; none if it is not installed."""
    try:
        import torch

        from ..torch import conv2d
    except ImportError:
        return {}
    return {"PyTorch: fastconv.torch": conv2d, "PyTorch: its own": torch.nn.functional.conv2d}


def _under_pytorch(function: Any, *arrays: Any) -> tuple[Call, Call]:
    import torch

    x, weight, g = map(torch.from_numpy, arrays)
    leaves = x.requires_grad_(), weight.requires_grad_()
    return lambda: function(*leaves), lambda: torch.autograd.grad(function(*leaves), leaves, g)


def _growing() -> Iterator[list[str]]:
    functions = _of_pytorch().values()
    for images, channels, side in GROWING if functions else ():
        arrays = _arrays((images, channels, side, side), (channels, channels, 3, 3))
        steps = [_under_pytorch(f, *arrays)[1] for f in functions] * 3  # in turn
        times = [1e6 * min(repeat(step, SECONDS / 3)) for step in steps]
        ours, theirs = min(times[::2]), min(times[1::2])
        flops = 2 * arrays[2].size * channels * 9
        name = f"{images}x {channels}->{channels}@{side} 3x3 p0"
        yield [name, f"{flops / 1e6:.1f}", f"{ours:.0f}", f"{theirs:.0f}", f"{theirs / ours:.2f}"]
