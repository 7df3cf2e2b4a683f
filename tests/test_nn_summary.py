"""Summaries: the numbers are those of the layers as they run, and the model stays as it was."""

import tracemalloc

import numpy as np
import pytest
from numba import config

import fastconv
from fastconv import models, nn


def small():
    return nn.Sequential(
        nn.ZeroPad2d((1, 2, 0, 3)),
        nn.ZeroPad2d(1),
        nn.Conv2d(2, 4, 3, stride=2, groups=2, rng=0),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(
            nn.Residual(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3, rng=0)), nn.Conv2d(4, 4, 1, rng=0))
        ),
        nn.ConvTranspose2d(4, 3, 2, stride=2, rng=0),
        nn.Flatten(),
        nn.Linear(3 * 12 * 10, 5, bias=False, rng=0),
    )


def test_layers_as_they_run():
    summary = small().summary((2, 2, 8, 7))
    layers = {layer.name: layer for layer in summary.layers}
    assert list(layers) == ["0", "1", "2", "3", "4", "5.0.body.0", "5.0.body.1", "5.0.shortcut", "5.0", "6", "7", "8"]
    assert [layer.kind for layer in summary.layers][-4:] == ["Residual", "ConvTranspose2d", "Flatten", "Linear"]
    shapes = {name: layer.output_shape for name, layer in layers.items()}
    assert shapes["1"] == (2, 2, 13, 12)
    assert shapes["2"] == shapes["5.0"] == shapes["5.0.shortcut"] == (2, 4, 6, 5)
    assert shapes["6"] == (2, 3, 12, 10)
    assert shapes["8"] == (2, 5)
    # The convolution takes over both paddings: its input is the batch itself, and so is its plan.
    assert layers["2"].input_shape == (2, 2, 8, 7)
    plan = fastconv.explain((2, 2, 8, 7), (4, 1, 3, 3), 2, ((1, 4), (2, 3)), groups=2)
    choices = (plan.output, plan.grad_input, plan.grad_weight)
    assert layers["2"].algorithms == tuple(choice.algorithm for choice in choices)
    assert layers["2"].scratch_bytes == max(choice.scratch_bytes for choice in choices)
    assert layers["2"].flops == plan.output.flops == 2 * 9 * 2 * 4 * 6 * 5
    assert layers["2"].bytes == 4 * (2 * 2 * 8 * 7 + 4 * 9 + 4 + 2 * 4 * 6 * 5)
    assert layers["6"].flops == 2 * (2 * 4 * 6 * 5) * 3 * 4
    assert layers["8"].flops == 2 * 2 * 360 * 5
    assert layers["4"].flops == layers["5.0"].parameters == 0
    assert summary.parameters == sum(parameter.data.size for parameter in small().parameters())
    assert summary.flops == sum(layer.flops for layer in summary.layers)
    assert summary.state_bytes == 4 * (summary.parameters + 8) + 8  # running means, variances, and the count of batches


def test_without_fusing_the_padding_is_a_layer_of_its_own():
    layer = small().fuse(False).summary((2, 2, 8, 7)).layers[2]
    assert layer.input_shape == (2, 2, 13, 12)


def test_nothing_changes():
    model = small()
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 7)).astype(np.float32)
    output = model(x)
    before, parts = model.state_dict(), repr(model)
    model.summary((2, 2, 8, 7))
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert repr(model) == parts
    assert all(parameter.grad is None for parameter in model.parameters())
    model.backward(np.ones_like(output))  # its activations are still there
    assert not tracemalloc.is_tracing()
    model.eval().summary((2, 2, 8, 7))
    assert not model[2].training


def test_a_sample_is_a_batch_of_one():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0), nn.ReLU())
    assert model.summary((1, 5, 5)).layers == model.summary((1, 1, 5, 5)).layers


@pytest.mark.skipif(config.DISABLE_JIT, reason="networks take too long without the compiler")
def test_peak_memory_grows_with_the_batch():
    """Outputs of two convolutions and their gradients are there at one time, and nothing as large beside them."""
    model = nn.Sequential(nn.Conv2d(8, 16, 1, rng=0), nn.Conv2d(16, 8, 1, rng=0))
    few, many = (model.summary((n, 8, 64, 64)).peak_bytes for n in (8, 16))
    channel = 4 * 64 * 64
    assert (many - few) / 8 == pytest.approx((16 + 8 + 8 + 16) * channel, rel=0.03)
    tracemalloc.start()
    try:
        assert model.summary((8, 8, 64, 64)).peak_bytes == pytest.approx(few, rel=0.05)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


def test_table():
    summary = models.lenet((1, 8, 8), 10, rng=0).summary((4, 1, 8, 8))
    head, *rows, counts, memory = str(summary).splitlines()
    assert head.split()[:2] == ["layer", "output"]
    assert len(rows) == len(summary.layers)
    assert rows[1].split()[:2] == ["1", "Conv2d"]
    assert "direct" in rows[1]
    assert counts.startswith(f"{summary.parameters:,} parameters, ")
    assert memory == (
        f"a step takes {summary.peak_bytes / 1e6:.1f} MB at most, beside {summary.state_bytes / 1e6:.1f} MB of state"
    )


def test_bad_shapes():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, rng=0))
    for shape, error, message in (
        (8, TypeError, "input_shape is 8: expected a sequence of ints"),
        ("8", TypeError, "input_shape is '8'"),
        ((1, 1, 8, 0.5), TypeError, r"input_shape is 0\.5: expected an int"),
        ((1, 1, 8, 0), ValueError, "input_shape is 0: expected at least 1"),
        ((1, 2, 8, 8), ValueError, "x has 2 channels"),
    ):
        with pytest.raises(error, match=message):
            model.summary(shape)
