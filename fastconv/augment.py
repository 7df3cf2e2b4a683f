"""Random changes to training images that leave their class alone, so that a network sees each image differently."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["AUGMENTATIONS", "augment", "mirror", "shift", "warp"]

Array = np.ndarray[Any, Any]

ANGLE = np.deg2rad(10)  # largest rotation of a warped image
STRETCH = 0.1  # largest logarithm of its scale, each axis for itself

REACH = 1 / 16  # largest shift, of an image's shorter side


def shift(x: Array, background: Array, generator: np.random.Generator) -> Array:
    """Move each image by whole pixels, up to a sixteenth of its size but at least by one, each way.

    Parameters
    ----------
    x : ndarray of shape (N, C, H, W)
    background : ndarray of shape (C,)
        What comes in from outside.
    generator : numpy.random.Generator

    Returns
    -------
    ndarray of shape (N, C, H, W)
        Of the dtype of x.

    Examples
    --------
    >>> x = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> shift(x, np.zeros(1), np.random.default_rng(3))
    array([[[[0., 3.],
             [0., 0.]]]])
    """
    n, _, h, w = x.shape
    far = max(1, round(REACH * min(h, w)))
    windows = np.lib.stride_tricks.sliding_window_view(_framed(x, background, far), (h, w), axis=(2, 3))
    down, right = generator.integers(0, 2 * far + 1, (2, n))
    return np.ascontiguousarray(windows[np.arange(n), :, down, right])


def warp(x: Array, background: Array, generator: np.random.Generator) -> Array:
    """Rotate, stretch and move each image a little, with bilinear interpolation.

    By up to 10 degrees, 10 % along each axis, and a sixteenth of its size each way.

    Parameters
    ----------
    x : ndarray of shape (N, C, H, W), floats
    background : ndarray of shape (C,)
        What comes in from outside.
    generator : numpy.random.Generator

    Returns
    -------
    ndarray of shape (N, C, H, W)
        Of the dtype of x.
    """
    n, c, h, w = x.shape
    far = REACH * min(h, w)
    angle = generator.uniform(-ANGLE, ANGLE, n)
    scale = np.exp(generator.uniform(-STRETCH, STRETCH, (2, n)))
    offset = generator.uniform(-far, far, (2, n))
    # Where each pixel of the result comes from: rotated about the middle, then stretched, then moved.
    i, j = np.meshgrid(np.arange(h) - (h - 1) / 2, np.arange(w) - (w - 1) / 2, indexing="ij")
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    rows = (cos * i - sin * j) * scale[0][:, None, None] + offset[0][:, None, None] + (h - 1) / 2
    columns = (sin * i + cos * j) * scale[1][:, None, None] + offset[1][:, None, None] + (w - 1) / 2
    # In a frame of background, so that all four neighbours of every place are there.
    rows = np.clip(rows + 1, 0, h + 0.999)
    columns = np.clip(columns + 1, 0, w + 0.999)
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    down, right = (rows - top)[:, None].astype(x.dtype), (columns - left)[:, None].astype(x.dtype)
    framed = _framed(x, background, 1).reshape(-1)
    image = np.arange(n * c).reshape(n, c, 1, 1) * ((h + 2) * (w + 2))
    corner = image + (top * (w + 2) + left)[:, None]
    upper = framed[corner] * (1 - right) + framed[corner + 1] * right
    lower = framed[corner + (w + 2)] * (1 - right) + framed[corner + (w + 3)] * right
    result: Array = upper * (1 - down) + lower * down
    return result


def mirror(x: Array, generator: np.random.Generator) -> Array:
    """Exchange left and right in every other image, on average.

    Parameters
    ----------
    x : ndarray of shape (N, C, H, W)
    generator : numpy.random.Generator
    """
    return np.where(generator.random((len(x), 1, 1, 1)) < 0.5, x[..., ::-1], x)


def _framed(x: Array, background: Array, width: int) -> Array:
    n, c, h, w = x.shape
    framed = np.empty((n, c, h + 2 * width, w + 2 * width), x.dtype)
    framed[:] = background[:, None, None]
    framed[:, :, width : width + h, width : width + w] = x
    return framed


AUGMENTATIONS = {"none": None, "shift": shift, "warp": warp}


def augment(kind: str, x: Array, background: Array, generator: np.random.Generator) -> Array:
    """Apply the augmentation of that name, one of `AUGMENTATIONS`."""
    function = AUGMENTATIONS[kind]
    return x if function is None else function(x, background, generator)
