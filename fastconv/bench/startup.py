"""From the start of a process to the end of LeNet's first step, in programs as users write them.

Each is run once without being timed: kernels that it compiles are then in the cache, and files in memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from .layers import BenchError
from .processes import THREAD_VARIABLES
from .results import OURS

__all__ = ["PROGRAMS", "seconds_to_first_step"]

PROGRAMS = {
    OURS: """
import numpy as np
from fastconv import models, nn

model = models.lenet((1, 28, 28), 10)
loss, optimiser = nn.CrossEntropyLoss(), nn.SGD(model.parameters(), lr=0.01, momentum=0.9)
x, y = np.ones((128, 1, 28, 28), np.float32), np.zeros(128, np.int64)
print(loss(model(x), y))
model.backward(loss.backward())
optimiser.step()
""",
    "torch": """
import torch
from torch import nn

model = nn.Sequential(
    nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10),
)
loss_of, optimiser = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
x, y = torch.ones(128, 1, 28, 28), torch.zeros(128, dtype=torch.int64)
loss = loss_of(model(x), y)
print(float(loss))
loss.backward()
optimiser.step()
""",
}
"""What each contender runs."""

DONE = "\nprint('done', flush=True)\n"


def seconds_to_first_step(contenders: Sequence[str], threads: int, rounds: int) -> dict[str, list[float]]:
    """Time the programs in turn; the end of a process does not count.

    Raises
    ------
    BenchError
        If one fails.
    """
    for who in contenders:
        _seconds(who, threads)
    seconds: dict[str, list[float]] = {who: [] for who in contenders}
    for _ in range(rounds):
        for who in contenders:
            seconds[who].append(_seconds(who, threads))
    return seconds


def _seconds(who: str, threads: int) -> float:
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have theirs
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAMS[who] + DONE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "done\n":
            seconds = time.perf_counter() - start
            process.communicate()
            return seconds
    _, errors = process.communicate()
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "no output")
    raise BenchError(f"the first step of {who} failed: {last}")
