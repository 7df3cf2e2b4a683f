"""Networks under PyTorch: what is converted takes the original's steps, and the benchmarks that time both."""

import copy
import functools
import json
from typing import NamedTuple

import numpy as np
import pytest
from numba import config

torch = pytest.importorskip("torch")

from fastconv import cli  # noqa: E402
from fastconv.bench import overhead  # noqa: E402
from fastconv.bench.networks import NETWORKS, step_of  # noqa: E402
from fastconv.torch import convert  # noqa: E402

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="too much for Python's loops")

STEPS = 10


class Training(NamedTuple):
    """A network, images of a batch and their sides, a learning rate that lowers the loss, and steps that PyTorch takes before."""

    network: str
    batch: int
    side: int
    lr: float
    before: int = 0

    def losses(self, seed, dtype, *, last=False, converted=False):
        """Train on one batch."""
        network, x, y = copy.deepcopy(begun(self, seed))
        network, x = network.to(dtype), x.to(dtype)
        if last:
            network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        if converted:
            convert(network, least_flops=0)
        step = step_of(network, x, y, self.lr)
        return np.array([step() for _ in range(STEPS)])


@functools.cache
def begun(training, seed):
    """Return the network and a batch, for all that go on from there."""
    torch.manual_seed(seed)
    network = NETWORKS[training.network](10)
    x, y = torch.randn(training.batch, 3, training.side, training.side), torch.randint(10, (training.batch,))
    step = step_of(network, x, y, training.lr)
    for _ in range(training.before):
        step()
    return network, x, y


CALM = {
    "resnet18, begun": Training("resnet18", 8, 64, 0.01, before=3),
    "mobilenet_v2, begun": Training("mobilenet_v2", 8, 64, 0.001, before=30),
    "convnext": Training("convnext", 4, 32, 0.001),
}
"""Where runs stay as close to the exact one as rounding lets them."""

LONG = {
    "resnet18": (24, Training("resnet18", 8, 64, 0.01)),
    "mobilenet_v2": (8, Training("mobilenet_v2", 8, 64, 0.001)),
}
"""In single precision a rounding may take an activation past the bend of a ReLU.  That changes gradients at a stroke, and with
them all steps that follow, so how far a run gets from the exact one is a matter of luck, and many are needed."""

DOUBLE = {
    "mobilenet_v2": Training("mobilenet_v2", 8, 64, 0.0001),
    "resnet18": Training("resnet18", 4, 32, 0.01),
    "convnext": Training("convnext", 4, 32, 0.001),
}


def distance(some, exact):
    """Root mean square over all steps of several runs."""
    return np.sqrt(np.mean(np.square(np.array(some) - exact)))


@pytest.mark.parametrize(
    ("seeds", "training"),
    [
        *(pytest.param(2, training, id=name) for name, training in CALM.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.long) for name, case in LONG.items()),
    ],
)
def test_networks_are_as_exact_as_the_originals(seeds, training):
    """Losses are at most twice as far from those of double precision as PyTorch's are, over both layouts and all seeds.

    PyTorch's distances are, for one seed and layout or another: ResNet-18 2e-8 to 1e-7 after three steps, MobileNetV2 1e-5 to
    5e-5 after 30, ConvNeXt 6e-8 to 2e-7.
    """
    runs = [(seed, last) for seed in range(1, seeds + 1) for last in (False, True)]
    exact = np.repeat([training.losses(seed, torch.float64) for seed in range(1, seeds + 1)], 2, axis=0)
    assert (exact[:, -1] < 0.8 * exact[:, 0]).all()
    theirs, ours = (
        distance([training.losses(seed, torch.float32, last=last, converted=who) for seed, last in runs], exact)
        for who in (False, True)
    )
    print(f"off by {ours:.2e}, PyTorch by {theirs:.2e}")
    assert ours <= 2 * theirs


@pytest.mark.parametrize(
    "training",
    [pytest.param(t, id=name, marks=[pytest.mark.long] * (name != "mobilenet_v2")) for name, t in DOUBLE.items()],
)
def test_networks_follow_the_originals_in_double_precision(training):
    """Losses are 1e-16 to 3e-13 apart: what is wrong, by however little, cannot hide behind rounding."""
    exact = training.losses(1, torch.float64)
    assert exact[-1] < 0.8 * exact[0]
    for last in (False, True):
        off = distance(training.losses(1, torch.float64, last=last, converted=True), exact)
        print(f"channels {'last' if last else 'first'}: off by {off:.2e}")
        assert off <= 1e-11


def test_benchmark_of_models(capsys, tmp_path):
    """Both take the same step: the benchmark compares their losses before it times them."""
    out = tmp_path / "models.json"
    options = ["--models", "mobilenet_v2", "--peers", "torch", "--layouts", "nchw", "--rounds", "1", "--output"]
    assert cli.main(["bench", *options, str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("mobilenet_v2 32 x 3 x 96 x 96")
    seconds = json.loads(out.read_text())["seconds"]["mobilenet_v2"]
    assert [list(layouts) for layouts in seconds.values()] == [["nchw"], ["nchw"]]
    assert list(seconds) == ["fastconv", "torch"]


def test_overhead(monkeypatch):
    monkeypatch.setattr(overhead, "SECONDS", 0.01)
    monkeypatch.setattr(overhead, "GROWING", overhead.GROWING[:1])
    lines = overhead.text().splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == [
        "NumPy: fastconv.conv2d", "PyTorch: fastconv.torch", "PyTorch: its own",
    ]  # fmt: skip
    assert lines[-1].startswith("1x 8->8@8 3x3 p0")
