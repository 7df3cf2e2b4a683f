"""The list of layers that benchmarks time: sizes, batches and names."""

import dataclasses

import pytest

from fastconv.suites import SUITES, Layer, pair, with_largest_batch

LAYERS = [pytest.param(suite, layer, id=f"{suite}-{layer}") for suite, layers in SUITES.items() for layer in layers]


def test_suites_have_their_layers():
    assert {suite: len(layers) for suite, layers in SUITES.items()} == {
        "resnet50": 18,
        "vgg16": 7,
        "mobile": 19,
        "small": 3 * 8,
        "inference": 6,
        "inception": 10,
        "narrow": 18,
    }


@pytest.mark.parametrize("suite", SUITES)
def test_names_are_unique(suite):
    assert len({layer.name for layer in SUITES[suite]}) == len(SUITES[suite])


@pytest.mark.parametrize(("suite", "layer"), LAYERS)
def test_batch_is_the_largest_that_keeps_a_pass_at_one_gflop(suite, layer):
    if suite == "small":
        assert layer.batch in (1, 16, 128)
        return
    if suite == "inference":
        assert layer.batch == 1
        return
    assert layer.batch in (1, 2, 4, 8, 16, 32)
    assert layer.batch == 1 or layer.geometry.flops <= 10**9
    assert layer.batch == 32 or dataclasses.replace(layer, batch=2 * layer.batch).geometry.flops > 10**9


@pytest.mark.parametrize(("suite", "layer"), LAYERS)
def test_padding_keeps_the_size_unless_said(suite, layer):
    geometry = layer.geometry
    assert geometry.input_shape == (layer.batch, layer.channels, layer.size, layer.size)
    without = suite == "small" and layer.size in (28, 13)
    assert pair(layer.padding) == ((0, 0) if without else tuple(n // 2 for n in layer.taps))
    size = (layer.size - layer.taps[0]) // layer.stride + 1 if without else -(-layer.size // layer.stride)
    assert geometry.output == (size, size)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (Layer(4, 3, 224, 64, 7, 2, 3), "4x 3->64@224 7x7/2"),
        (Layer(1, 64, 56, 64, 1), "1x 64->64@56 1x1"),
        (Layer(16, 32, 13, 64, 3), "16x 32->64@13 3x3 p0"),
        (Layer(32, 96, 56, 96, 7, 1, 3, 96), "32x dw 96@56 7x7"),
        (Layer(2, 8, 9, 16, 3, 1, 1, 4), "2x 8->16 g4@9 3x3"),
        (Layer(2, 8, 9, 16, (1, 7), 1, (0, 3)), "2x 8->16@9 1x7"),
        (Layer(2, 8, 9, 16, (5, 3), 2, (2, 0)), "2x 8->16@9 5x3/2 p2,0"),
    ],
)
def test_name(layer, name):
    assert layer.name == str(layer) == name


@pytest.mark.parametrize("channels", [1, 64, 4096])
def test_largest_batch(channels):
    layer = with_largest_batch(Layer(7, channels, 64, channels, 3, padding=1))
    assert layer.batch == {1: 32, 64: 2, 4096: 1}[channels]


def test_layer_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SUITES["small"][0].batch = 2
