"""Which kernel computes which pass: one ordered table, and the choice from it.

A row says what it computes, what it supports, what it costs and how to run it.  The first of the cheapest rows that
support a call is taken; the reference, which supports everything, stands last.  A new algorithm is a function or more
in `fastconv.kernels` and one row here: the tests run over all rows.

`explain` tells what would be chosen, and why, without computing anything.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import engine, fourier, reference, winograd
from .algorithm import Algorithm
from .arrays import KINDS, Array, can_be_convolved, machine_memory
from .geometry import ConvGeometry, conv_geometry
from .kernels import loops
from .prepared import PreparedWeight

__all__ = ["PASSES", "TABLE", "Choice", "Plan", "Row", "choose", "explain", "get_precision", "set_precision"]

MOST_TAPS, MOST_PHASES, MOST_CHANNELS, MOST_PIXELS = 2**12, 2**12, 2**20, 2**30
"""Taps of a filter, phases of dX, channels (times taps) and pixels of a batch up to which fast rows are asked: to make their
tables then takes a second or two at most."""

PASSES = ("output", "grad_input", "grad_weight", "grad_bias")
"""Equations (1) to (4)."""


@dataclass(frozen=True)
class Row:
    """One way to compute one pass.

    Attributes
    ----------
    computes : str
        One of `PASSES`.
    algorithm : str
        What a caller names in ``algorithm=``.
    run : callable
        ``run(geometry, *inputs, out)`` with plain arrays of three spatial axes; for ``output`` the inputs are (x, weight,
        bias), for ``grad_input`` (grad_output, weight), for ``grad_weight`` (grad_output, x), where ``out`` holds one sum
        over all images or one per image, for ``grad_bias`` (grad_output,).
    dtypes : tuple of str
        The dtypes that it takes; empty for all.
    nanoseconds : callable
        ``nanoseconds(geometry, itemsize)``: an estimate that orders rows, not a promise; infinite where a row is not to be taken.
    about : callable
        ``about(geometry, itemsize)``: how it computes a call, as the end of a sentence.
    error : float
        0 if the row adds the same products as direct summation, in whatever order (it is exact on small integers);
        otherwise a bound on its largest error in float32, as a multiple of the largest result.
    scratch : callable
        ``scratch(geometry, itemsize)``: bytes that it needs beside inputs and outputs, when these are NCHW.
    floors : bool
        Whether ``run`` takes a last argument for ``output``: results that are less become it.
    channels_last : bool
        Whether it takes images that lie channels-last, and writes such; if not, they are copied before and after.
    adds : callable
        ``adds(geometry, itemsize, channels_last)`` says whether ``run`` takes a last argument for ``grad_input``: whether to add
        to what ``out`` holds.
    pools : callable
        ``pools(geometry, itemsize)`` says whether ``bind`` takes a ``window`` for ``output``, see `Algorithm.bind`.
    sums : callable
        ``sums(geometry, itemsize)`` says whether ``run`` takes a last argument for ``grad_weight``: an array for ``grad_bias``.
    bind : callable or None
        ``bind(geometry, *inputs, out)`` returns what ``run`` does with arrays that lie like these, none of them empty, as a
        function ``run(out, *inputs)`` of their memory; for ``output`` it may be told no bias, and ``floor``.
    prepare : callable or None
        ``prepare(geometry, weight)`` makes of a `PreparedWeight` what ``run`` then takes in place of the weight.
    limits : callable
        ``limits(geometry)`` says why it cannot do a geometry; None if it can.
    """

    computes: str
    algorithm: str
    run: Callable[..., None]
    dtypes: tuple[str, ...]
    nanoseconds: Callable[[ConvGeometry, int], float]
    about: Callable[[ConvGeometry, int], str]
    error: float = 0.0
    scratch: Callable[[ConvGeometry, int], int] = lambda geometry, itemsize: 0
    floors: bool = False
    channels_last: bool = False
    adds: Callable[[ConvGeometry, int, bool], bool] = lambda geometry, itemsize, channels_last: False
    pools: Callable[[ConvGeometry, int], bool] = lambda geometry, itemsize: False
    sums: Callable[[ConvGeometry, int], bool] = lambda geometry, itemsize: False
    bind: Callable[..., Callable[..., None]] | None = None
    prepare: Callable[[ConvGeometry, PreparedWeight], None] | None = None
    limits: Callable[[ConvGeometry], str | None] = lambda geometry: None

    @property
    def exact(self) -> bool:
        """Whether the row adds the same products as direct summation."""
        return self.error == 0.0

    def largest_error(self, dtype: np.dtype[Any]) -> float:
        """Return the bound on the largest error in a dtype, as a multiple of the largest result."""
        return self.error * float(np.finfo(dtype).eps / np.finfo(np.float32).eps) if self.error else 0.0

    def unable(self, geometry: ConvGeometry, dtype: np.dtype[Any]) -> str | None:
        """Say why the row could not do a call with any amount of memory; None if it could."""
        if self.dtypes and dtype.name not in self.dtypes:
            return f"it computes {' and '.join(self.dtypes)} only, not {dtype}"
        if (reason := self.limits(geometry)) is not None:
            return reason
        if self.dtypes and _is_vast(self.computes, geometry):
            return "its tables would take longer to make than its result"
        return None

    def objection(self, geometry: ConvGeometry, dtype: np.dtype[Any]) -> str | None:
        """Say why the row cannot do a call; None if it can.  This plans the call, to know the memory that it needs."""
        if (reason := self.unable(geometry, dtype)) is not None:
            return reason
        if (needed := self.scratch(geometry, dtype.itemsize)) > machine_memory():
            return f"it needs {needed} bytes of scratch memory, this machine has {machine_memory()}"
        return None


def _is_vast(computes: str, g: ConvGeometry) -> bool:
    """Say whether a convolution is of no practical size along some axis of the tables of fast rows."""
    taps = math.prod(g.kernel)
    phases = math.prod(min(s, n) for s, n in zip(g.stride, g.input, strict=True)) if computes == "grad_input" else 1
    channels = max(g.channels, g.filters, taps * g.channels // g.groups)
    pixels = g.batch * max(math.prod(g.input), math.prod(g.output))
    return taps > MOST_TAPS or phases > MOST_PHASES or channels > MOST_CHANNELS or pixels > MOST_PIXELS


def _with_parameters(kernel: Callable[..., None]) -> Callable[..., None]:
    """Call a kernel with the geometry's numbers: kernels know arrays and integers only."""

    @functools.wraps(kernel)
    def run(geometry: ConvGeometry, *arrays: Array) -> None:
        left = tuple(side[0] for side in geometry.padding)
        kernel(*arrays, geometry.stride, left, geometry.dilation, geometry.groups)

    return run


def _without_parameters(kernel: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(kernel)
    def run(geometry: ConvGeometry, *arrays: Array) -> None:
        kernel(*arrays)

    return run


FAST = ("float32", "float64")

PREPARED = ("output", "grad_input")
"""Passes that a weight can be prepared for."""


def _direct_cost(computes: str, geometry: ConvGeometry, itemsize: int) -> float:
    """Suppose 100 GFLOP/s in float32, lanes without a channel included, and 2 numbers of the weight packed in a nanosecond."""
    weights = math.prod(geometry.weight_shape)
    return 20_000 + engine.lane_flops(computes, geometry, itemsize) * itemsize / 400.0 + weights / 2


def _row(
    computes: str, name: str, algorithm: Algorithm, cost: Callable[[str, ConvGeometry, int], float],
    describe: Callable[[str, ConvGeometry, int], str], **more: Any,
) -> Row:  # fmt: skip
    """Return the row of a pass that an `Algorithm` runs."""
    return Row(
        computes,
        name,
        getattr(algorithm, computes),
        FAST,
        functools.partial(cost, computes),
        functools.partial(describe, computes),
        scratch=functools.partial(algorithm.scratch_bytes, computes),
        floors=computes == "output",
        channels_last=True,
        bind=functools.partial(algorithm.bind, computes),
        prepare=functools.partial(algorithm.prepare, computes) if computes in PREPARED else None,
        **more,
    )


_direct = functools.partial(_row, name="direct", algorithm=engine.DIRECT, cost=_direct_cost, describe=engine.describe)
_winograd = functools.partial(
    _row, name="winograd", algorithm=winograd.WINOGRAD, cost=winograd.nanoseconds, describe=winograd.describe,
    error=2e-5, limits=winograd.objection,
)  # fmt: skip
_fft = functools.partial(
    _row, name="fft", algorithm=fourier.FOURIER, cost=fourier.nanoseconds, describe=fourier.describe, error=4e-6,
    limits=fourier.objection,
)  # fmt: skip


def _sums_cost(geometry: ConvGeometry, itemsize: int) -> float:
    return 20_000 + geometry.flops * itemsize / 400.0


def _loops_cost(geometry: ConvGeometry, itemsize: int) -> float:
    return 25_000 + geometry.flops / 5.0


def _reference_cost(geometry: ConvGeometry, itemsize: int) -> float:
    return 35_000 + geometry.flops / 0.5


def _parallel(geometry: ConvGeometry, itemsize: int) -> str:
    return "parallel loops that add whole rows"


def _sums(geometry: ConvGeometry, itemsize: int) -> str:
    others = (
        ", in the pass of grad_weight if that is asked for, too" if engine.sums_gradients(geometry, itemsize) else ""
    )
    return f"sums side by side in vectors{others}"


def _plain(geometry: ConvGeometry, itemsize: int) -> str:
    return "the plain loops of the specification, for any dtype"


TABLE = (
    _winograd("output", pools=lambda geometry, itemsize: True),
    _winograd("grad_input"),
    _winograd("grad_weight", sums=winograd.sums_gradients),
    _fft("output"),
    _fft("grad_input"),
    _fft("grad_weight"),
    _direct("output", pools=engine.pools),
    _direct("grad_input", adds=engine.adds_to),
    _direct("grad_weight", sums=engine.sums_gradients),
    Row(
        "grad_bias", "direct", engine.grad_bias, FAST, _sums_cost, _sums, channels_last=True, bind=engine.bind_grad_bias
    ),
    Row("output", "loops", _with_parameters(loops.output), FAST, _loops_cost, _parallel),
    Row("grad_input", "loops", _with_parameters(loops.grad_input), FAST, _loops_cost, _parallel),
    Row("grad_weight", "loops", _with_parameters(loops.grad_weight), FAST, _loops_cost, _parallel),
    Row("grad_bias", "loops", _without_parameters(loops.grad_bias), FAST, _loops_cost, _parallel),
    Row("output", "reference", _with_parameters(reference.general_output), (), _reference_cost, _plain),
    Row("grad_input", "reference", _with_parameters(reference.general_grad_input), (), _reference_cost, _plain),
    Row("grad_weight", "reference", _with_parameters(reference.general_grad_weight), (), _reference_cost, _plain),
    Row("grad_bias", "reference", _without_parameters(reference.general_grad_bias), (), _reference_cost, _plain),
)

ALGORITHMS = tuple(dict.fromkeys(row.algorithm for row in TABLE))
ROWS = {(row.computes, row.algorithm): row for row in TABLE}

_precision = "high"


def set_precision(precision: str) -> None:
    """Choose which rows ``algorithm="auto"`` may take, in the whole process.

    Parameters
    ----------
    precision : {"high", "highest"}
        "highest" admits exact rows only: those that add the same products as direct summation.  "high", the default,
        also admits rows with a larger, documented error.  A call that names an algorithm is not bound by it.

    Raises
    ------
    ValueError
        If the precision is another.
    """
    if precision not in ("high", "highest"):
        raise ValueError(f"precision is {precision!r}: expected 'high' or 'highest'")
    global _precision
    _precision = precision


def get_precision() -> str:
    """Return what `set_precision` has set; "high" at first."""
    return _precision


@dataclass(frozen=True)
class Choice:
    """What was chosen for one pass.

    Attributes
    ----------
    computes, algorithm : str
        The pass and the row.
    reason : str
        Why this row, in a sentence.
    passed_over : dict of str to str
        The other rows, each with the reason against it.
    flops, bytes, scratch_bytes : int
        Operations of the pass, bytes of X, W and O together, and memory needed beside them.
    """

    computes: str
    algorithm: str
    reason: str
    passed_over: dict[str, str]
    flops: int
    bytes: int
    scratch_bytes: int


@functools.lru_cache(maxsize=4096)
def _select(
    computes: str, geometry: ConvGeometry, dtype: np.dtype[Any], algorithm: str, precision: str
) -> tuple[Row, str, dict[str, str]]:
    """The row for a call, the reason for it, and the reasons against the others."""
    candidates, against = [], {}
    for row in (row for row in TABLE if row.computes == computes):
        if algorithm not in ("auto", row.algorithm):
            against[row.algorithm] = f"algorithm={algorithm!r} was asked for"
        elif (objection := row.objection(geometry, dtype)) is not None:
            against[row.algorithm] = objection
        elif algorithm == "auto" and precision == "highest" and not row.exact:
            against[row.algorithm] = "it is not exact, and the precision is 'highest'"
        elif algorithm == "auto" and math.isinf(row.nanoseconds(geometry, dtype.itemsize)):
            against[row.algorithm] = "its scratch memory would be out of proportion"
        else:
            candidates.append(row)
    if not candidates:
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm is {algorithm!r}: expected 'auto', {', '.join(map(repr, ALGORITHMS))}")
        reason = against.get(algorithm, f"it has no row for {computes}")
        raise ValueError(f"algorithm is {algorithm!r}, which cannot do this call: {reason}")
    row = min(candidates, key=lambda row: row.nanoseconds(geometry, dtype.itemsize))
    for other in candidates:
        if other is not row:
            times = other.nanoseconds(geometry, dtype.itemsize) / row.nanoseconds(geometry, dtype.itemsize)
            against[other.algorithm] = f"estimated to take {times:.1f} times as long"
    about = row.about(geometry, dtype.itemsize)
    if algorithm != "auto":
        reason = f"{row.algorithm} was asked for: {about}"
    elif len(candidates) == 1:
        reason = f"{row.algorithm} is the only row that can: {about}"
    else:
        reason = f"{row.algorithm} is estimated to be the fastest: {about}"
    return row, reason, against


def choose(computes: str, geometry: ConvGeometry, dtype: np.dtype[Any], algorithm: str = "auto") -> Row:
    """Return the row of the table that computes a pass.

    Raises
    ------
    TypeError
        If the algorithm is no string.
    ValueError
        If there is no such algorithm, or it cannot do this call.
    """
    return _chosen(computes, geometry, dtype, algorithm)[0]


def _chosen(
    computes: str, geometry: ConvGeometry, dtype: np.dtype[Any], algorithm: str
) -> tuple[Row, str, dict[str, str]]:
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm is {algorithm!r}: expected a string")
    if computes == "grad_bias" and algorithm in ALGORITHMS and (computes, algorithm) not in ROWS:
        algorithm = "auto"  # a sum is a sum, by whatever algorithm the products of the other passes are formed
    return _select(computes, geometry, dtype, algorithm, _precision)


@dataclass(frozen=True)
class Plan:
    """What `explain` found: read its fields, or print it.

    Attributes
    ----------
    geometry : ConvGeometry
        Sizes and parameters.
    dtype : str
        Of all arrays.
    output, grad_input, grad_weight, grad_bias : Choice
        The row for each pass.
    unseen : tuple of int
        Trailing rows and columns of the input that no output sees, one count per axis; dX is 0 there.
    """

    geometry: ConvGeometry
    dtype: str
    output: Choice
    grad_input: Choice
    grad_weight: Choice
    grad_bias: Choice

    @property
    def unseen(self) -> tuple[int, ...]:
        """Trailing rows and columns of the input that no output sees."""
        return self.geometry.unseen

    def __str__(self) -> str:
        g = self.geometry
        lines = [f"{g.input_shape} * {g.weight_shape} -> {g.output_shape}, {self.dtype}"]
        if any(self.unseen):
            axes = ("depths", "rows", "columns")[3 - g.ndim :]
            seen = ", ".join(f"{n} {axis}" for n, axis in zip(self.unseen, axes, strict=True) if n)
            lines.append(f"no output sees the input's last {seen}")
        lines.append(f"{'pass':<12}{'row':<12}{'GFLOP':>9}{'MB':>9}{'scratch MB':>12}  reason")
        for name in PASSES:
            c: Choice = getattr(self, name)
            lines.append(
                f"{name:<12}{c.algorithm:<12}{c.flops / 1e9:>9.3f}{c.bytes / 1e6:>9.2f}{c.scratch_bytes / 1e6:>12.2f}  {c.reason}"
            )
            lines += [f"{'':<12}{'not ' + other:<42}  {why}" for other, why in c.passed_over.items()]
        return "\n".join(lines)


def explain(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    dtype: Any = "float32",
    algorithm: str = "auto",
) -> Plan:
    """Tell which kernel would compute each pass of a convolution, and why.

    Parameters
    ----------
    input_shape : sequence of int
        (n_ch, *spatial) or (N, n_ch, *spatial).
    weight_shape : sequence of int
        (n_f, n_ch / groups, *kernel), with one to three kernel axes.
    stride, padding, dilation, groups
        As in `conv2d`.
    dtype : dtype
        Of all arrays.
    algorithm : str
        As in `conv2d`.

    Returns
    -------
    Plan
        One `Choice` for each pass; prints as a table.

    Raises
    ------
    TypeError, ValueError
        As `conv2d` would.

    Examples
    --------
    >>> plan = explain((4, 64, 56, 56), (64, 64, 3, 3), stride=2)
    >>> plan.output.flops
    214990848
    >>> plan.unseen
    (1, 1)
    """
    geometry = conv_geometry(
        input_shape, weight_shape, stride, padding, dilation, groups, x_name="input_shape", weight_name="weight_shape"
    )
    try:
        kind = np.dtype(dtype)
    except Exception:  # NumPy parses text, too, and has several ways not to understand it
        kind = None
    if dtype is None or kind is None or not can_be_convolved(kind):
        raise TypeError(f"dtype is {dtype!r}: expected {KINDS}")
    choices = {}
    for computes in PASSES:
        row, reason, against = _chosen(computes, geometry, kind, algorithm)
        choices[computes] = Choice(
            computes,
            row.algorithm,
            reason,
            dict(against),
            geometry.flops if computes != "grad_bias" else int(np.prod(geometry.output_shape)),
            geometry.bytes(kind.itemsize),
            row.scratch(geometry, kind.itemsize),
        )
    return Plan(geometry, kind.name, **choices)
