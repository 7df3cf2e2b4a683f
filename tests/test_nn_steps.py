"""Whole steps of training: their bits, and their losses beside PyTorch's."""

import dataclasses
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from numba import config

import fastconv
from fastconv import models, nn
from fastconv.bench.models import STEPS, distance
from fastconv.bench.results import OURS
from fastconv.bench.steps import MODELS

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="networks take too long without the compiler")

SHAPES = {"lenet": (1, 28, 28), "resnet8": (3, 32, 32), "vgg11": (3, 32, 32)}


def bits_of_steps(name, make=nn.SGD, batch=8):
    """Hash all that two steps from a seed compute."""
    model = getattr(models, name)(SHAPES[name], 10, rng=0)
    loss, optimiser = nn.CrossEntropyLoss(), make(model.parameters(), lr=0.01, weight_decay=1e-4)
    rng = np.random.default_rng(0)
    digest = hashlib.sha256()
    for _ in range(2):
        x, y = rng.standard_normal((batch, *SHAPES[name]), np.float32), rng.integers(10, size=batch)
        model.zero_grad()
        scores = model(x)
        digest.update(scores.tobytes() + np.float64(loss(scores, y)).tobytes())
        dx = model.backward(loss.backward(), input_grad=True)
        optimiser.step()
        digest.update(dx.tobytes())
        for parameter in model.parameters():
            digest.update(parameter.grad.tobytes() + parameter.data.tobytes())
        for _, buffer in model.named_buffers():
            digest.update(buffer.tobytes())
    return digest.hexdigest()


def bits_for_threads():
    """Hashes of each model and optimiser, and for how many threads: printed by a process that may use three."""
    found = []
    for name in SHAPES:
        for make in (nn.SGD, nn.AdamW) if name == "lenet" else (nn.SGD,):
            hashes = set()
            for threads in (1, 2, 3, 1):
                fastconv.set_num_threads(threads)
                hashes.add(bits_of_steps(name, make))
            found.append(len(hashes))
    print(found)


def test_bits_of_steps_do_not_depend_on_threads():
    program = "import test_nn_steps; test_nn_steps.bits_for_threads()"
    paths = [os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[1, 1, 1, 1]\n"


@pytest.mark.parametrize(
    ("name", "batch"), [("lenet", 32), ("vgg11", 4), pytest.param("resnet8", 16, marks=pytest.mark.long)]
)
def test_losses_are_as_near_to_pytorchs_as_its_layouts_are_to_each_other(name, batch):
    """At most twice as far, over 50 steps from the same weights."""
    pytest.importorskip("torch")
    model = dataclasses.replace(MODELS[name], batch=batch)

    def losses(who, layout):
        step = model.steps[who](model, layout)
        return [step() for _ in range(STEPS)]

    theirs = [losses("torch", layout) for layout in ("nchw", "channels_last")]
    ours = losses(OURS, "nchw")
    assert min(distance(ours, other) for other in theirs) <= 2 * distance(*theirs)
    assert ours[-1] < ours[0] / 2
