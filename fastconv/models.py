"""The networks that ``fastconv train`` knows, and one more to time, for images with any number of channels and classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv import nn
from fastconv.nn.generator import generator

__all__ = ["MODELS", "build", "lenet", "resnet8", "vgg11"]


def _normed(rng: Any, dtype: Any) -> Callable[..., list[nn.Module]]:
    """Return what makes a zero-padded convolution of this size, 3 or 1, and the batch normalisation behind it."""

    def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
        # No bias: batch normalisation would take it out again.
        layer = nn.Conv2d(inputs, outputs, size, stride=stride, bias=False, dtype=dtype, rng=rng)
        return [*([nn.ZeroPad2d(1)] if size == 3 else []), layer, nn.BatchNorm2d(outputs, dtype=dtype)]

    return conv


def lenet(
    image_shape: tuple[int, int, int], classes: int, *, dtype: Any = np.float32, rng: Any = None
) -> nn.Sequential:
    """Make a network of two convolutions, each with ReLU and max-pooling, and two linear layers.

    Convolutions are 3 x 3, to 32 and 64 channels; the hidden linear layer has 128 units.  Images of less than 16 pixels
    are padded with zeros before each convolution, so that 8 x 8 leaves 2 x 2 for the linear layers (28 x 28, unpadded,
    leaves 5 x 5: 1600 inputs).

    Raises
    ------
    ValueError
        If an image has less than 4 x 4 pixels.

    Examples
    --------
    >>> lenet((1, 28, 28), 10)[-3].weight.shape
    (128, 1600)
    """
    channels, *sides = image_shape
    if min(sides) < 4:
        raise ValueError(f"images have {sides[0]} x {sides[1]} pixels: lenet needs at least 4 x 4")
    pad = 1 if min(sides) < 16 else 0
    random = generator(rng)
    layers: list[nn.Module] = []
    for width in (32, 64):
        if pad:
            layers.append(nn.ZeroPad2d(pad))
        layers += [nn.Conv2d(channels, width, 3, dtype=dtype, rng=random), nn.ReLU(), nn.MaxPool2d(2)]
        channels, sides = width, [(side + 2 * pad - 2) // 2 for side in sides]
    layers += [nn.Flatten(), nn.Linear(channels * sides[0] * sides[1], 128, dtype=dtype, rng=random), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, classes, dtype=dtype, rng=random))


def resnet8(
    image_shape: tuple[int, int, int], classes: int, *, dtype: Any = np.float32, rng: Any = None
) -> nn.Sequential:
    """Make a residual network of eight layers: a convolution, three residual blocks, and a linear layer.

    The blocks have 32, 64 and 128 channels, the latter two stride 2.  Each is convolution, batch normalisation, ReLU,
    convolution, batch normalisation, plus its input (through a 1 x 1 convolution and batch normalisation where the
    shapes differ), then ReLU.  Convolutions are 3 x 3 on zero-padded images; each channel is averaged before the
    linear layer.
    """
    random = generator(rng)
    conv = _normed(random, dtype)

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        body = nn.Sequential(*conv(inputs, outputs, stride=stride), nn.ReLU(), *conv(outputs, outputs))
        shortcut = (
            None if inputs == outputs and stride == 1 else nn.Sequential(*conv(inputs, outputs, size=1, stride=stride))
        )
        return [nn.Residual(body, shortcut), nn.ReLU()]

    return nn.Sequential(
        *conv(image_shape[0], 32),
        nn.ReLU(),
        *block(32, 32, 1),
        *block(32, 64, 2),
        *block(64, 128, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, classes, dtype=dtype, rng=random),
    )


def vgg11(
    image_shape: tuple[int, int, int], classes: int, *, dtype: Any = np.float32, rng: Any = None
) -> nn.Sequential:
    """Make VGG-11 with batch normalisation for small images: eight 3 x 3 convolutions, five max-poolings, a linear layer.

    The sides of an image are halved five times.

    Examples
    --------
    >>> vgg11((3, 32, 32), 10)[-1].weight.shape
    (10, 512)
    """
    random = generator(rng)
    conv = _normed(random, dtype)
    channels, *sides = image_shape
    layers: list[nn.Module] = []
    for width, pooled in ((64, 1), (128, 1), (256, 0), (256, 1), (512, 0), (512, 1), (512, 0), (512, 1)):
        layers += [*conv(channels, width), nn.ReLU(), *([nn.MaxPool2d(2)] if pooled else [])]
        channels = width
    features = channels * (sides[0] // 32) * (sides[1] // 32)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes, dtype=dtype, rng=random))


MODELS: dict[str, Callable[..., nn.Sequential]] = {"lenet": lenet, "resnet8": resnet8}


def build(
    name: str, image_shape: tuple[int, int, int], classes: int, *, dtype: Any = np.float32, rng: Any = None
) -> nn.Sequential:
    """Make the network of that name; see `MODELS`, whose functions take the other arguments.

    Parameters
    ----------
    name : str
    image_shape : (int, int, int)
        Channels, height and width.
    classes : int
    dtype : float32 or float64
        Of parameters, images and scores.
    rng : int, numpy.random.Generator or None
        What the initial weights are drawn from, as in `fastconv.nn`.

    Returns
    -------
    nn.Sequential
        From images of shape (N, C, H, W) to scores of shape (N, classes).

    Raises
    ------
    ValueError
        If there is no such network, or images are too small for it.
    TypeError
        If dtype is another one.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}: expected one of {', '.join(MODELS)}")
    return MODELS[name](image_shape, classes, dtype=dtype, rng=rng)
