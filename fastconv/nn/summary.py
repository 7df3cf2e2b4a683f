"""What a model does to arrays of one shape: layer by layer, and the memory of a step of its training."""

from __future__ import annotations

import copy
import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import arrays, scratch
from ..plan import explain
from .checks import Array, integer
from .containers import Residual, Sequential
from .convolution import Convolution, ConvTranspose2d
from .linear import Linear
from .module import Module
from .padding import ZeroPadding, total_pairs

__all__ = ["LayerSummary", "Summary", "summarise"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerSummary:
    """What one layer does.

    Attributes
    ----------
    name, kind : str
        Its path, as in `Module.state_dict`, and its class.
    input_shape, output_shape : tuple of int
    parameters : int
        Numbers that are trained.
    flops : int
        Multiplications and additions of a forward pass of a convolution or a linear layer; its backward pass has twice as many.
        Others are not counted: they wait for memory.
    bytes : int
        Of input, parameters and output.
    algorithms : tuple of str
        Rows of `fastconv.plan` that compute output, dX and dW; empty for a layer that is no matter of the plan.
    scratch_bytes : int
        Most memory that one of these needs beside its arrays.
    """

    name: str
    kind: str
    input_shape: Shape
    output_shape: Shape
    parameters: int
    flops: int
    bytes: int
    algorithms: tuple[str, ...] = ()
    scratch_bytes: int = 0


@dataclass(frozen=True)
class Summary:
    """What a model does; prints as a table.

    Attributes
    ----------
    layers : tuple of LayerSummary
        In the order in which they run.
    parameters, flops : int
        Of all layers.
    state_bytes : int
        Of parameters, and of buffers such as running means.
    peak_bytes : int
        Most memory that a step of training takes at one time beside these, as measured: activations, gradients and scratch
        memory, but not the batch and what an optimiser keeps.
    """

    layers: tuple[LayerSummary, ...]
    state_bytes: int
    peak_bytes: int

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> int:
        """Operations of a forward pass."""
        return sum(layer.flops for layer in self.layers)

    def __str__(self) -> str:
        head = ("layer", "", "output", "parameters", "MFLOP", "MB", "rows of output, dX, dW", "scratch MB")
        rows = [head, *(_row(layer) for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        left = (0, 1, 2, 6)
        lines = [
            "  ".join(
                cell.ljust(width) if column in left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.append(
            f"{self.parameters:,} parameters, {self.flops / 1e6:,.1f} MFLOP forward and twice as many backward"
        )
        lines.append(
            f"a step takes {self.peak_bytes / 1e6:.1f} MB at most, beside {self.state_bytes / 1e6:.1f} MB of state"
        )
        return "\n".join(lines)


def _row(layer: LayerSummary) -> tuple[str, ...]:
    known = layer.flops > 0
    return (
        layer.name,
        layer.kind,
        " x ".join(map(str, layer.output_shape)),
        f"{layer.parameters:,}" if layer.parameters else "",
        f"{layer.flops / 1e6:,.2f}" if known else "",
        f"{layer.bytes / 1e6:.2f}",
        ", ".join(layer.algorithms),
        f"{layer.scratch_bytes / 1e6:.2f}" if known else "",
    )


def summarise(model: Module, input_shape: Sequence[int]) -> Summary:
    """Run a copy of a model on zeros, layer by layer and then for a step: see `Module.summary`."""
    if isinstance(input_shape, (str, int)) or not isinstance(input_shape, Sequence):
        raise TypeError(f"input_shape is {input_shape!r}: expected a sequence of ints")
    shape = tuple(integer("input_shape", n) for n in input_shape)
    if model._sample_axes() == len(shape):
        shape = (1, *shape)
    twin = copy.deepcopy(model).train()
    dtype = next((parameter.data.dtype for parameter in twin.parameters()), np.dtype(np.float32))
    x = np.zeros(shape, dtype)
    layers: list[LayerSummary] = []
    _walk(twin, x, "", layers)
    state = sum(array.nbytes for array in twin._state().values())
    return Summary(tuple(layers), state, _peak_of_step(copy.deepcopy(model).train(), x))


def _walk(module: Module, x: Array, path: str, layers: list[LayerSummary]) -> Array:
    """Run a module on an array, and note what its layers do."""
    if type(module) is Sequential:
        pads: list[ZeroPadding] = []
        unpadded = x
        for name, child in module.children().items():
            unpadded = unpadded if pads else x
            x = _walk(child, x, f"{path}{name}.", layers)
            if isinstance(child, Convolution) and pads:  # which it takes over
                layers[-1] = _layer(child, f"{path}{name}", unpadded, x, padding=total_pairs(pads))
            pads = [*pads, child] if isinstance(child, ZeroPadding) and module.fusing else []
        return x
    if type(module) is Residual:
        output = _walk(module.body, x, f"{path}body.", layers)
        if module.shortcut is not None:
            _walk(module.shortcut, x, f"{path}shortcut.", layers)
        layers.append(_layer(module, path.removesuffix("."), x, output, own=False))
        return output
    output = module(x)
    layers.append(_layer(module, path.removesuffix("."), x, output))
    return output


def _layer(module: Module, name: str, x: Array, output: Array, *, padding: Any = 0, own: bool = True) -> LayerSummary:
    parameters = [parameter.data for parameter in module.parameters()] if own else []
    plan, passes = _plan(module, x, output, padding)
    choices = [getattr(plan, computes) for computes in passes]
    return LayerSummary(
        name,
        type(module).__name__,
        x.shape,
        output.shape,
        sum(array.size for array in parameters),
        plan.output.flops if plan is not None else 0,
        x.nbytes + output.nbytes + sum(array.nbytes for array in parameters),
        tuple(choice.algorithm for choice in choices),
        max((choice.scratch_bytes for choice in choices), default=0),
    )


def _plan(module: Module, x: Array, output: Array, padding: Any) -> tuple[Any, Sequence[str]]:
    """Return the plan of a layer's convolution, and which passes of it are the layer's output, dX and dW."""
    forward, transposed = ("output", "grad_input", "grad_weight"), ("grad_input", "output", "grad_weight")
    if isinstance(module, Convolution):
        call = (module.stride, padding, module.dilation, module.groups)
        return explain(x.shape, module.weight.shape, *call, dtype=x.dtype), forward
    if isinstance(module, ConvTranspose2d):
        call = (module.stride, module.padding, module.dilation, module.groups)
        return explain(output.shape, module.weight.shape, *call, dtype=x.dtype), transposed
    if isinstance(module, Linear):
        rows = math.prod(x.shape[:-1])
        return explain((rows, module.in_features, 1), (*module.weight.shape, 1), dtype=x.dtype), forward
    return None, ()


def _peak_of_step(model: Module, x: Array) -> int:
    """Measure the most memory that arrays of a step take at one time, gradients and scratch memory included."""
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        for _ in range(2):  # the first one also makes tables that are kept
            scratch.release()
            arrays.release()
            for parameter in model.parameters():
                parameter._buffer = None
                parameter.zero_grad()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            model.backward(np.zeros_like(model(x)))
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        if started:
            tracemalloc.stop()
    return peak - before
