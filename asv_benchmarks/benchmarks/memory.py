"""The largest memory of a process: with its arrays alone, and with a pass over them."""

import dataclasses

from .layers import LAYERS, calls

PASSES = ("output", "grad_input", "grad_weight")


class PeakMemory:
    params = (list(LAYERS), list(PASSES))
    param_names = ("layer", "pass")
    version = "1"
    timeout = 600

    def setup(self, layer, computes):
        """Hold the arrays, and what compiled code takes: the call to measure, on one small image."""
        layer = LAYERS[layer]
        calls(computes, dataclasses.replace(layer, batch=1, size=2 * max(layer.taps)), "float32")[0]()
        self.call, _ = calls(computes, layer, "float32")

    def peakmem_setup_alone(self, layer, computes):
        pass

    def peakmem_pass(self, layer, computes):
        self.call()
