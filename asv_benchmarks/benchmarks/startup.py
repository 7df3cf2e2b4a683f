"""What a new process waits for: the import, the compiler, and the first call from a warm cache."""

import os
import subprocess
import sys
import tempfile

ROUNDS = 5

IMPORT = """
from time import perf_counter
start = perf_counter()
import {package}
print(perf_counter() - start)
"""

FIRST_CALL = """
import numpy as np
import fastconv
from time import perf_counter

x, weight = np.ones((1, 3, 8, 8), "{dtype}"), np.ones((4, 3, 3, 3), "{dtype}")
calls = {{
    "output": lambda: fastconv.conv2d(x, weight),
    "grad_input": lambda: fastconv.grad.conv2d_input(x.shape, weight, np.ones((1, 4, 6, 6), x.dtype)),
    "grad_weight": lambda: fastconv.grad.conv2d_weight(x, weight.shape, np.ones((1, 4, 6, 6), x.dtype)),
}}
start = perf_counter()
calls["{computes}"]()
print(perf_counter() - start)
"""


def run(program, cache=None):
    """Run a program that prints its seconds, in a process of its own."""
    environment = os.environ | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    command = [sys.executable, "-c", program]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


class Import:
    version = "1"

    def timeraw_import(self):
        return "import fastconv"

    def track_import_beyond_numba(self):
        """Both in turn, best of the rounds."""
        packages = ("numba", "fastconv")
        rounds = [[run(IMPORT.format(package=package)) for package in packages] for _ in range(ROUNDS)]
        numba, fastconv = (min(times) for times in zip(*rounds, strict=True))
        return fastconv - numba

    track_import_beyond_numba.unit = "s"


class FirstCall:
    params = (["output", "grad_input", "grad_weight"], ["float32", "float64"])
    param_names = ("pass", "dtype")
    version = "1"
    timeout = 600

    def track_from_empty_cache(self, computes, dtype):
        with tempfile.TemporaryDirectory() as cache:
            return run(FIRST_CALL.format(computes=computes, dtype=dtype), cache)

    def track_from_warm_cache(self, computes, dtype):
        program = FIRST_CALL.format(computes=computes, dtype=dtype)
        with tempfile.TemporaryDirectory() as cache:
            run(program, cache)
            return min(run(program, cache) for _ in range(ROUNDS))

    track_from_empty_cache.unit = "s"
    track_from_warm_cache.unit = "s"
