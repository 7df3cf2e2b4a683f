"""Algorithms: the passes of a convolution, run by programs that are made once for each geometry and memory layout."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .arrays import Array
from .geometry import ConvGeometry
from .prepared import PreparedWeight
from .programs import Pixels, Program, grad_input_pixels, memory_of, output_pixels

__all__ = ["Algorithm"]


def _as_it_is(g: ConvGeometry, together: bool) -> ConvGeometry:
    return g


@dataclass(frozen=True, eq=False)
class Algorithm:
    """One way to convolve: what makes the programs of its passes.  Arrays have three spatial axes.

    Attributes
    ----------
    pixels : callable
        ``pixels(description)`` makes the program of equation (1) or (2).
    weights : callable
        ``weights(g, per_sample, x_last, grad_last, itemsize)`` makes that of equation (3).
    lay : callable
        ``lay(g, together)`` gives a geometry that computes the same and is easier to cut; ``together`` says that the channels
        of a pixel lie together, so that images lie like one behind the other.
    """

    pixels: Callable[[Pixels], Program]
    weights: Callable[[ConvGeometry, bool, bool, bool, int], Program]
    lay: Callable[[ConvGeometry, bool], ConvGeometry] = _as_it_is

    def output(
        self, g: ConvGeometry, x: Array, weight: Array | PreparedWeight, bias: Array, out: Array, floor: float = -math.inf
    ) -> None:  # fmt: skip
        """Equation (1); what is less than the floor becomes that."""
        self._compute("output", g, x, weight, bias, out, floor)

    def grad_input(
        self, g: ConvGeometry, grad_output: Array, weight: Array | PreparedWeight, out: Array, adds: bool = False
    ) -> None:
        """Equation (2); if it ``adds``, what is there is a term of the sums."""
        self._compute("grad_input", g, grad_output, weight, None, out, -math.inf, adds)

    def grad_weight(
        self, g: ConvGeometry, grad_output: Array, x: Array, out: Array, grad_bias: Array | None = None
    ) -> None:
        """Equation (3), and equation (4) if there is an array for it."""
        if g.batch == 0 or out.size == 0:
            for array in (out,) if grad_bias is None else (out, grad_bias):
                array[...] = 0
            return
        run = self.bind("grad_weight", g, grad_output, x, out)
        run(memory_of(out.reshape(-1, *out.shape[2:]))[0], memory_of(grad_output)[0], memory_of(x)[0], grad_bias)

    def bind(
        self, computes: str, g: ConvGeometry, *arrays: Any, adds: bool = False, window: tuple[int, int] = (0, 0)
    ) -> Callable[..., None]:
        """Return a pass as ``run(out, *inputs)`` with flat arrays, of calls whose arrays lie like these; none may be empty.

        The bias and the floor of equation (1) may be left out, and of equation (3) the array for equation (4); equation (2) may
        add to what is there.  With a ``window``, rows and columns, equation (1) keeps the maxima of windows of pixels: ``out`` is
        flat, and holds these and then their places, see `Pixels`.
        """
        first, second, *_, out = arrays
        last = memory_of(first)[1]
        if computes == "grad_weight":
            x_last, per_sample = memory_of(second)[1], out.shape[0] > 1
            g = self.lay(g, last and x_last and not per_sample)
            return _plan_weights(self, g, per_sample, x_last, last, out.itemsize, not out.flags.c_contiguous).weights
        prepared = isinstance(second, PreparedWeight)
        weight_last = not prepared and not second.flags.c_contiguous
        out_last = window[0] > 0 or memory_of(out)[1]
        if not window[0]:
            g = self.lay(g, last and out_last)
        told = (g, last, out_last, out.itemsize, prepared, adds, window, weight_last)
        return _plan_pixels(self, computes, *told).pixels

    def prepare(self, computes: str, geometry: ConvGeometry, weight: PreparedWeight) -> None:
        """Make of a weight what equation (1) or (2) needs of it, for both layouts of images."""
        for last in (False, True):
            g = self.lay(geometry.volume, last)
            _plan_pixels(self, computes, g, last, last, weight.dtype.itemsize, True).factors(weight)

    def scratch_bytes(self, computes: str, geometry: ConvGeometry, itemsize: int, threads: int = 0) -> int:
        """Bytes of scratch memory that a pass needs when all arrays are NCHW; with all threads, if not told how many."""
        g = self.lay(geometry.volume, False)
        if computes == "grad_weight":
            program = _plan_weights(self, g, False, False, False, itemsize)
        else:
            program = _plan_pixels(self, computes, g, False, False, itemsize, False)
        return program.scratch_bytes(itemsize, threads)

    def _compute(
        self, computes: str, g: ConvGeometry, x: Array, weight: Array | PreparedWeight, bias: Array | None, out: Array,
        floor: float, adds: bool = False,
    ) -> None:  # fmt: skip
        if out.size:
            flat = weight if isinstance(weight, PreparedWeight) else memory_of(weight)[0]
            run = self.bind(computes, g, x, weight, out, adds=adds)
            run(memory_of(out)[0], memory_of(x)[0], flat, bias, floor)


@functools.lru_cache(maxsize=1024)
def _plan_pixels(
    algorithm: Algorithm, computes: str, g: ConvGeometry, in_last: bool, out_last: bool, itemsize: int, prepared: bool,
    adds: bool = False, window: tuple[int, int] = (0, 0), weight_last: bool = False,
) -> Program:  # fmt: skip
    told = (g, in_last, out_last, itemsize, prepared)
    if computes == "output":
        return algorithm.pixels(output_pixels(*told, window, weight_last))
    return algorithm.pixels(grad_input_pixels(*told, adds, weight_last))


@functools.lru_cache(maxsize=512)
def _plan_weights(
    algorithm: Algorithm, g: ConvGeometry, per_sample: bool, x_last: bool, grad_last: bool, itemsize: int,
    weight_last: bool = False,
) -> Program:  # fmt: skip
    program = algorithm.weights(g, per_sample, x_last, grad_last, itemsize)
    if not weight_last:
        return program
    sums = g.batch if per_sample else 1
    return program.channels_last(sums * g.filters, g.channels // g.groups, math.prod(g.kernel))
