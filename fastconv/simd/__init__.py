"""Vector words and register tiles: the only package that knows LLVM.

A tile is a matrix of accumulators that stay in vector registers over a whole sum.  It knows nothing of convolution: every
index map (stride, padding, dilation, groups, phases, dimension) lies in the offset tables that a driver gives it::

    for each k:  acc[m][v] += vectors[columns[k] + v*lanes ...] * scalars[rows[m] + offsets[k]]
    at the end:  out[targets[m] + v*lanes ...] = acc[m][v]

m counts the tile's ROWS, v its vectors, and ``...`` stands for the lanes of a vector.  One load of a vector serves ROWS
multiplications, one load of a scalar as many as there are vectors.

In equation (1) the rows are pixels and k counts the pairs of a channel and a tap; in equation (3) it is the other way round,
with the same tables.  Where there are fewer channels than lanes, the rows are channels and the vectors hold pixels.  Where
channels do not mix, each lane has a factor of its own: a tile slides along a row of pixels.  Or, in planes, lanes are pixels, and
a tile slides down their columns, of planes with zeros around them or of bare ones, or holds a small plane as a whole and moves
it; or it multiplies vectors of two planes and sums these products over their rows.

Each tile has a twin in plain Python with the same signature, which takes its place under ``NUMBA_DISABLE_JIT=1``.
"""

from ..jit import ROWS, VECTORS
from .bare import BARE, SUM_BARE, bare_column_tile, sum_bare_column_tile
from .columns import COLUMNS, column_tile, sum_column_tile
from .copying import FETCH_AHEAD, clear, copy, copy_tile, narrow_tile, pad_tile, take_tile
from .dot import DOT_FILTERS, dot_tile
from .maps import gradient_map, input_map, output_map, weight_gradient_map, weight_map
from .outer import FETCH_BYTES, FEW_ROWS, FEW_VECTORS, SHORT, TERMS, TURN, far_tile, near_tile, outer_tile, short_tile
from .peak import ACCUMULATORS, peak_tile
from .pooling import NOWHERE, pool_tile
from .shift import holds_plane, shift_tile, sum_shift_tile
from .slide import (
    GROUPED,
    MEMBERS,
    SLIDES,
    SPAN,
    TALL,
    group_slide_tile,
    slide_tile,
    sum_group_slide_tile,
    sum_slide_tile,
)
from .spectra import FETCHED_LINES, evaluate_taps_tile, evaluate_tile, interpolate_tile, multiply_tile
from .sums import lane_sum_tile, sum_tile
from .tasks import APART, MARKS, compact, run_tasks
from .transpose import (
    gather_tile,
    scatter_edge_tile,
    scatter_tile,
    transpose_edge_tile,
    transpose_lines_tile,
    transpose_tile,
)
from .walk import MOST_SIDE, walk_tile
from .words import lanes, line_parts

__all__ = [
    "ACCUMULATORS",
    "APART",
    "BARE",
    "COLUMNS",
    "DOT_FILTERS",
    "FETCHED_LINES",
    "FETCH_AHEAD",
    "FETCH_BYTES",
    "FEW_ROWS",
    "FEW_VECTORS",
    "GROUPED",
    "MARKS",
    "MEMBERS",
    "MOST_SIDE",
    "NOWHERE",
    "ROWS",
    "SHORT",
    "SLIDES",
    "SPAN",
    "SUM_BARE",
    "TALL",
    "TERMS",
    "TURN",
    "VECTORS",
    "bare_column_tile",
    "clear",
    "column_tile",
    "compact",
    "copy",
    "copy_tile",
    "dot_tile",
    "evaluate_taps_tile",
    "evaluate_tile",
    "far_tile",
    "gather_tile",
    "gradient_map",
    "group_slide_tile",
    "holds_plane",
    "input_map",
    "interpolate_tile",
    "lane_sum_tile",
    "lanes",
    "line_parts",
    "multiply_tile",
    "narrow_tile",
    "near_tile",
    "outer_tile",
    "output_map",
    "pad_tile",
    "peak_tile",
    "pool_tile",
    "run_tasks",
    "scatter_edge_tile",
    "scatter_tile",
    "shift_tile",
    "short_tile",
    "slide_tile",
    "sum_bare_column_tile",
    "sum_column_tile",
    "sum_group_slide_tile",
    "sum_shift_tile",
    "sum_slide_tile",
    "sum_tile",
    "take_tile",
    "transpose_edge_tile",
    "transpose_lines_tile",
    "transpose_tile",
    "walk_tile",
    "weight_gradient_map",
    "weight_map",
]
