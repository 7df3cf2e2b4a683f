"""What fastconv and PyTorch cost each other in one process: threads that wait by spinning take cores that others could use."""

import os
import subprocess
import sys

PROGRAM = """
import torch, fastconv
import numpy as np
from time import perf_counter

x, weight = np.ones((8, 32, 28, 28), np.float32), np.ones((32, 32, 3, 3), np.float32)
images, filters = torch.from_numpy(x), torch.from_numpy(weight)
ours, theirs = (lambda: fastconv.conv2d(x, weight)), (lambda: torch.nn.functional.conv2d(images, filters))

def seconds(*calls):
    times = []
    for _ in range(5):
        start = perf_counter()
        for _ in range(100):
            for call in calls:
                call()
        times.append(perf_counter() - start)
    return min(times[1:])

alone = seconds(ours) + seconds(theirs)
print(seconds(ours, theirs) / alone)
"""


class Alternating:
    """Time of alternating calls, by that of the same calls one library after the other."""

    params = (["unset", "PASSIVE"],)
    param_names = ("OMP_WAIT_POLICY",)
    version = "1"
    unit = "times"

    def setup(self, policy):
        try:
            import torch  # noqa: F401
        except ImportError:
            raise NotImplementedError("PyTorch is not installed") from None

    def track_alternating_calls(self, policy):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        if policy != "unset":
            environment["OMP_WAIT_POLICY"] = policy
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True
        )
        return float(done.stdout)
