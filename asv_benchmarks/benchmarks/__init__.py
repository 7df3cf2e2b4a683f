"""Benchmarks of fastconv, for airspeed velocity.

One timing is one layer, one pass and one dtype, at the thread count of its environment.  ``passes`` times the
convolution passes beside NumPy, ``startup`` what a new process waits for, ``memory`` what a pass holds.

By default a handful of layers is timed; FASTCONV_LAYERS names suites of `fastconv.suites` to time instead, separated by
commas, or "all" of them.
"""

import os

# NumPy's matrix products get as many threads as fastconv.  The library that computes them reads this while NumPy is
# imported.
for _variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    if "NUMBA_NUM_THREADS" in os.environ:
        os.environ[_variable] = os.environ["NUMBA_NUM_THREADS"]
