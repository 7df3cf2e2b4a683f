"""Networks under PyTorch: what is converted takes the original's steps, and the benchmarks that time both."""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
from numba import config

torch = pytest.importorskip("torch")

from fastconv import cli  # noqa: E402
from fastconv.bench import overhead  # noqa: E402
from fastconv.bench.networks import NETWORKS, step_of  # noqa: E402
from fastconv.torch import convert  # noqa: E402

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="too much for Python's loops")

STEPS = 20


class Training(NamedTuple):
    """A network, images of a batch and their sides, a learning rate that halves the loss, and steps that PyTorch takes before."""

    network: str
    batch: int
    side: int
    lr: float
    before: int = 0
    dtype: Any = torch.float32

    def losses(self, seed, *, last=False, converted=False):
        """Train on one batch."""
        torch.manual_seed(seed)
        network = NETWORKS[self.network](10).to(self.dtype)
        x, y = torch.randn(self.batch, 3, self.side, self.side, dtype=self.dtype), torch.randint(10, (self.batch,))
        step = step_of(network, x, y, self.lr)
        for _ in range(self.before):
            step()
        if last:
            network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        if converted:
            convert(network, least_flops=0)
        step = step_of(network, x, y, self.lr)
        return np.array([step() for _ in range(STEPS)])


CALM = {
    "resnet18, begun": Training("resnet18", 8, 64, 0.01, before=3),
    "mobilenet_v2, begun": Training("mobilenet_v2", 8, 64, 0.001, before=30),
    "mobilenet_v2, float64": Training("mobilenet_v2", 8, 64, 0.0001, dtype=torch.float64),
    "convnext": Training("convnext", 4, 32, 0.001),
}
"""Where two runs stay as close together as rounding lets them."""

LONG = {
    "resnet18": (24, Training("resnet18", 8, 64, 0.01)),
    "mobilenet_v2": (8, Training("mobilenet_v2", 8, 64, 0.001)),
    "resnet18, float64": (2, Training("resnet18", 4, 32, 0.01, dtype=torch.float64)),
    "convnext, float64": (2, Training("convnext", 4, 32, 0.001, dtype=torch.float64)),
}
"""In single precision a rounding may take an activation past the bend of a ReLU.  That changes gradients at a stroke, and with
them all steps that follow, so how far one run gets from another is a matter of luck, and many are needed."""


@pytest.mark.parametrize(
    ("seeds", "training"),
    [
        *(pytest.param(2, training, id=name) for name, training in CALM.items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.long) for name, case in LONG.items()),
    ],
)
def test_networks_follow_the_originals(seeds, training):
    """Losses are at most twice as far from the originals' as those of PyTorch's two layouts are from each other.

    Distances are root mean squares over all steps from several seeds.  Those of PyTorch's layouts, for one seed or another:
    ResNet-18 4e-8 to 3e-7 after three steps, 5e-7 to 5e-4 from scratch; MobileNetV2 5e-5 to 1e-4 after 30 steps, 3e-2 from
    scratch, where much could hide, but 5e-15 in double precision.
    """

    def distance(some, others):
        return np.sqrt(np.mean(np.square(some - others)))

    originals = [np.array([training.losses(seed, last=last) for seed in range(1, seeds + 1)]) for last in (False, True)]
    assert (originals[0][:, -1] < originals[0][:, 0] / 2).all()
    rounding = np.spacing(originals[0].max().astype(np.float64 if training.dtype == torch.float64 else np.float32))
    apart = max(distance(*originals), rounding)
    for last, original in zip((False, True), originals, strict=True):
        off = distance(
            np.array([training.losses(seed, last=last, converted=True) for seed in range(1, seeds + 1)]), original
        )
        print(f"channels {'last' if last else 'first'}: off by {off:.2e}, PyTorch's layouts by {apart:.2e}")
        assert off <= 2 * apart


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
