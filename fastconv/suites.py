"""The layers that fastconv is timed on: one list for all benchmarks.

Sizes are those of well-known networks; `small` holds what is trained on small images.  Shapes outside these lists are
worth timing too: a library tuned to a list shows only there.

>>> for layer in SUITES["resnet50"][:3]:
...     print(layer, f"{layer.geometry.flops / 1e9:.2f} GFLOP")
4x 3->64@224 7x7/2 0.94 GFLOP
32x 64->64@56 1x1 0.82 GFLOP
4x 64->64@56 3x3 0.92 GFLOP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .geometry import ConvGeometry, conv_geometry

__all__ = ["SUITES", "TRAINED", "Layer"]

LARGEST_BATCH = 32
LARGEST_PASS = 10**9
"""FLOP of one pass: enough to time, little enough to repeat."""
SMALL_BATCHES = (1, 16, 128)


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution of square images; its string is its name.

    Attributes
    ----------
    batch, channels, size : int
        N, n_ch, and h = w.
    filters : int
        n_f.
    kernel : int or tuple of int
        (f_r, f_c), or both in one.
    stride, groups : int
    padding : int or tuple of int
        As in `fastconv.conv2d`.
    """

    batch: int
    channels: int
    size: int
    filters: int
    kernel: int | tuple[int, int]
    stride: int = 1
    padding: int | tuple[int, int] = 0
    groups: int = 1

    @property
    def taps(self) -> tuple[int, int]:
        """(f_r, f_c)."""
        return pair(self.kernel)

    @property
    def name(self) -> str:
        """What tells it from other layers, for people: ``4x 3->64@224 7x7/2``; ``dw`` stands for depthwise.

        Padding is told only where it is not half of the kernel.
        """
        if self.groups == 1:
            channels = f"{self.channels}->{self.filters}"
        elif self.groups == self.channels == self.filters:
            channels = f"dw {self.channels}"
        else:
            channels = f"{self.channels}->{self.filters} g{self.groups}"
        stride = f"/{self.stride}" if self.stride > 1 else ""
        rows, columns = pair(self.padding)
        at_half = (rows, columns) == tuple(n // 2 for n in self.taps)
        padding = "" if at_half else f" p{rows}" if rows == columns else f" p{rows},{columns}"
        return f"{self.batch}x {channels}@{self.size} {self.taps[0]}x{self.taps[1]}{stride}{padding}"

    def __str__(self) -> str:
        return self.name

    @property
    def geometry(self) -> ConvGeometry:
        """Sizes of all arrays, FLOPs and bytes."""
        x_shape = (self.batch, self.channels, self.size, self.size)
        weight_shape = (self.filters, self.channels // self.groups, *self.taps)
        return conv_geometry(x_shape, weight_shape, self.stride, self.padding, 1, self.groups)

    @property
    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of `fastconv.conv2d` and its gradients."""
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups}


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Return a value for rows and one for columns.

    >>> pair(3), pair((1, 7))
    ((3, 3), (1, 7))
    """
    rows, columns = value if isinstance(value, tuple) else (value, value)
    return rows, columns


def with_largest_batch(layer: Layer) -> Layer:
    """Take the largest power of two, at most 32, that keeps a pass at 1 GFLOP or less; at least 1.

    >>> with_largest_batch(Layer(1, 512, 14, 512, 3, padding=1)).batch  # 0.92 GFLOP an image
    1
    """
    flops = dataclasses.replace(layer, batch=1).geometry.flops
    batch = LARGEST_BATCH
    while batch > 1 and batch * flops > LARGEST_PASS:
        batch //= 2
    return dataclasses.replace(layer, batch=batch)


def _dense(size: int, *rows: tuple[int, ...]) -> list[Layer]:
    """Layers at one image size; a row is (channels, filters, kernel) or (channels, filters, kernel, stride)."""
    rows = tuple((*row, 1)[:4] for row in rows)
    return [Layer(1, channels, size, filters, k, stride, k // 2) for channels, filters, k, stride in rows]


def _depthwise(kernel: int, *rows: tuple[int, ...]) -> list[Layer]:
    """Depthwise layers; a row is (channels, size) or (channels, size, stride)."""
    rows = tuple((*row, 1)[:3] for row in rows)
    return [Layer(1, n, size, n, kernel, stride, kernel // 2, n) for n, size, stride in rows]


def _groups(groups: int, *rows: tuple[int, ...]) -> list[Layer]:
    """3x3 layers of so many groups; a row is (channels, size) or (channels, size, stride)."""
    rows = tuple((*row, 1)[:3] for row in rows)
    return [Layer(1, n, size, n, 3, stride, 1, groups) for n, size, stride in rows]


def _suite(*parts: Sequence[Layer]) -> tuple[Layer, ...]:
    return tuple(with_largest_batch(layer) for part in parts for layer in part)


SUITES: dict[str, tuple[Layer, ...]] = {
    "resnet50": _suite(
        _dense(224, (3, 64, 7, 2)),
        _dense(
            56,
            (64, 64, 1), (64, 64, 3), (64, 256, 1), (256, 64, 1), (256, 128, 1, 2), (256, 512, 1, 2), (128, 128, 3, 2),
        ),
        _dense(28, (128, 128, 3), (128, 512, 1), (512, 128, 1), (512, 1024, 1, 2)),
        _dense(14, (256, 256, 3), (256, 1024, 1), (1024, 256, 1)),
        _dense(7, (512, 512, 3), (512, 2048, 1), (2048, 512, 1)),
    ),
    "vgg16": _suite(
        _dense(224, (3, 64, 3), (64, 64, 3)),
        _dense(112, (64, 128, 3), (128, 128, 3)),
        _dense(56, (256, 256, 3)),
        _dense(28, (512, 512, 3)),
        _dense(14, (512, 512, 3)),
    ),
    "mobile": _suite(
        _depthwise(3, (32, 112), (64, 112, 2), (128, 56), (256, 28), (512, 14), (1024, 7)),
        _depthwise(5, (72, 28, 2), (240, 14)),
        _depthwise(7, (96, 56), (192, 28), (384, 14), (768, 7)),
        _dense(112, (32, 64, 1)),
        _dense(56, (128, 128, 1), (96, 384, 1), (384, 96, 1)),
        _dense(28, (256, 256, 1)),
        _dense(14, (512, 512, 1)),
        _dense(7, (1024, 1024, 1)),
    ),
    "small": tuple(
        dataclasses.replace(layer, batch=batch)
        for layer in (
            Layer(1, 1, 28, 32, 3),
            Layer(1, 1, 28, 32, 5),
            Layer(1, 32, 13, 64, 3),
            *_dense(32, (3, 32, 3), (32, 32, 3)),
            *_dense(16, (64, 64, 3), (64, 128, 3, 2)),
            *_dense(8, (128, 128, 3)),
        )
        for batch in SMALL_BATCHES
    ),
    "inference": tuple(
        Layer(1, channels, size, filters, 3, 1, 1)
        for channels, size, filters in (
            (64, 56, 64), (128, 28, 128), (256, 14, 256), (512, 7, 512), (64, 112, 128), (256, 56, 256),
        )
    ),
    "inception": _suite([
        Layer(1, channels, size, filters, (rows, columns), 1, (rows // 2, columns // 2))
        for channels, size, filters, rows, columns in (
            (48, 35, 64, 5, 5), (128, 17, 128, 1, 7), (128, 17, 128, 7, 1), (192, 17, 192, 1, 7), (192, 17, 192, 7, 1),
            (384, 8, 384, 1, 3), (384, 8, 384, 3, 1), (64, 56, 64, 1, 5), (64, 56, 64, 5, 1), (64, 27, 192, 5, 5),
        )
    ]),
    "narrow": _suite(
        _dense(112, (32, 16, 1), (16, 96, 1)),
        _dense(56, (96, 24, 1), (24, 144, 1), (144, 24, 1), (72, 24, 1)),
        _dense(28, (144, 32, 1), (32, 192, 1), (40, 120, 1), (120, 40, 1)),
        _dense(14, (240, 80, 1), (80, 240, 1)),
        _groups(32, (128, 56), (256, 56, 2), (256, 28), (512, 28, 2), (512, 14), (1024, 7)),
    ),
}  # fmt: skip
"""The layers of ResNet-50, of VGG-16, of mobile networks, and small ones at batch sizes 1, 16 and 128; for inference those 3x3
layers of the first two that are met with single images; those of Inception-v3 and others whose kernels have other shapes; and
narrow ones, of mobile networks and ResNeXt-50, that have few channels, or few in a group."""

TRAINED = ("resnet50", "vgg16", "mobile", "small")
"""Suites that are timed unless others are asked for."""
