"""Images as arrays of pixels, which is how the kernels of pooling and normalisation take them, and back."""

from __future__ import annotations

import math

import numpy as np

from ..arrays import empty, is_channels_last, plain
from ..kernels.layout import turn
from .checks import Array

__all__ = ["images_of", "lie_channels_last", "pixels_of"]


def lie_channels_last(x: Array) -> bool:
    """Say whether images, or one image, lie so; what lies both ways does not."""
    return is_channels_last(x if x.ndim == 4 else x[np.newaxis], 2)


def pixels_of(x: Array) -> Array:
    """Images, or one image, as a plain array of shape (N, h, w, channels): a copy unless they lie channels-last."""
    images = x if x.ndim == 4 else x[np.newaxis]
    pixels = images.transpose(0, 2, 3, 1)
    if pixels.flags.c_contiguous or not images.flags.c_contiguous:
        return plain(pixels, pixels.shape, x.dtype)
    planes, out = plain(images, images.shape, x.dtype), empty("pixels", pixels.shape, x.dtype)
    n, height, width, channels = pixels.shape
    turn(planes.reshape(n, channels, height * width), out.reshape(n, height * width, channels))
    return out


def images_of(pixels: Array, shape: tuple[int, ...], last: bool) -> Array:
    """Images of this shape from their pixels: a view if they shall lie channels-last, else a copy."""
    *batch, channels, height, width = shape
    if last:
        return np.moveaxis(pixels.reshape(*batch, height, width, channels), -1, -3)
    if channels == 1 or height * width == 1:
        return pixels.reshape(shape)
    out = empty("the output", shape, pixels.dtype)
    n = math.prod(batch)
    turn(pixels.reshape(n, height * width, channels), out.reshape(n, channels, height * width))
    return out
