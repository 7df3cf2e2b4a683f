"""The three passes of a convolution: seconds, GFLOP/s, and time relative to NumPy."""

from time import perf_counter, sleep

from .layers import DTYPES, LAYERS, checked_calls

ROUNDS = 5
SHORTEST = 0.02
"""Seconds that one measurement takes at least: short calls are repeated."""
REST = 0.1
"""Seconds before it: the threads of a library go on looking for work for a while, and would disturb those of another."""


def seconds(call):
    """Time one call, as the mean of so many that the clock is no matter."""
    sleep(REST)
    call()
    count, start = 0, perf_counter()
    while True:
        call()
        count += 1
        if (passed := perf_counter() - start) >= SHORTEST:
            return passed / count


class Pass:
    params = (list(LAYERS), list(DTYPES))
    param_names = ("layer", "dtype")
    version = "1"
    timeout = 600

    def setup(self, layer, dtype):
        self.ours, self.theirs = checked_calls(self.computes, LAYERS[layer], dtype)

    def time_pass(self, layer, dtype):
        self.ours()

    def track_speed(self, layer, dtype):
        return LAYERS[layer].geometry.flops / min(seconds(self.ours) for _ in range(ROUNDS)) / 1e9

    def track_time_relative_to_numpy(self, layer, dtype):
        """Both in turn, best of the rounds: what slows the machine down meets both.  Below 1, fastconv is faster."""
        rounds = [(seconds(self.ours), seconds(self.theirs)) for _ in range(ROUNDS)]
        ours, theirs = zip(*rounds, strict=True)
        return min(ours) / min(theirs)

    track_speed.unit = "GFLOP/s"
    track_time_relative_to_numpy.unit = "t(fastconv) / t(NumPy im2col)"


class Output(Pass):
    computes = "output"


class GradInput(Pass):
    computes = "grad_input"


class GradWeight(Pass):
    computes = "grad_weight"


del Pass  # or its methods would be taken for benchmarks
