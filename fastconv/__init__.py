"""Convolutions and their gradients for CPUs.

>>> import numpy as np
>>> import fastconv
>>> x = np.ones((8, 3, 32, 32), np.float32)
>>> weight = np.ones((16, 3, 3, 3), np.float32)
>>> fastconv.conv2d(x, weight, padding=1).shape
(8, 16, 32, 32)

`fastconv.reference` states the mathematics, `fastconv.ladder` shows how it is vectorised, `fastconv.explain` tells which
kernel computes a call, `fastconv.nn` has layers to train networks with.
"""

import gc

from .interpreter import require_main_interpreter

require_main_interpreter()

# What is imported stays, Numba's hundred thousands of objects, too: to look for what has gone among them, again and again, takes
# a sixth of the time.
_collecting = gc.isenabled()
gc.disable()
try:
    from . import grad, ladder, nn, reference
    from .ops import (
        ConvGrads,
        conv1d,
        conv1d_backward,
        conv1d_jvp,
        conv2d,
        conv2d_backward,
        conv2d_jvp,
        conv3d,
        conv3d_backward,
        conv3d_jvp,
        conv_transpose1d,
        conv_transpose1d_backward,
        conv_transpose2d,
        conv_transpose2d_backward,
        conv_transpose3d,
        conv_transpose3d_backward,
        prepare,
    )
    from .padding import pad, pad_backward
    from .plan import Plan, explain, get_precision, set_precision
    from .prepared import PreparedWeight
    from .threads import get_num_threads, num_threads, set_num_threads
finally:
    if _collecting:
        gc.enable()

__version__ = "0.1.0"

__all__ = [
    "ConvGrads",
    "Plan",
    "PreparedWeight",
    "__version__",
    "conv1d",
    "conv1d_backward",
    "conv1d_jvp",
    "conv2d",
    "conv2d_backward",
    "conv2d_jvp",
    "conv3d",
    "conv3d_backward",
    "conv3d_jvp",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "conv_transpose3d",
    "conv_transpose3d_backward",
    "explain",
    "get_num_threads",
    "get_precision",
    "grad",
    "ladder",
    "nn",
    "num_threads",
    "pad",
    "pad_backward",
    "prepare",
    "reference",
    "set_num_threads",
    "set_precision",
]
