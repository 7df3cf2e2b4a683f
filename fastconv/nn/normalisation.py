"""Batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import empty, is_channels_last, plain
from ..kernels.normalisation import ROWS, grad_input, grad_sums, normalise, squares, totals
from ..limits import require_memory
from .checks import Array, check_dtype, check_spatial, float_array, float_dtype, integer, number
from .module import FAILED, Layer
from .parameter import ParameterData, ParameterGrad

__all__ = ["BatchNorm2d"]


class BatchNorm2d(Layer):
    """y = (x - mean)/sqrt(var + eps) * weight + bias, with mean and variance per channel.

    In training they are those of the batch, and the running ones follow them:
    ``running = (1 - momentum)*running + momentum*batch``, with the unbiased variance.  In evaluation they are the
    running ones.  Shapes (N, n_ch, h, w), or (n_ch, h, w) for a batch of one.

    Parameters
    ----------
    num_features : int
        n_ch.
    eps : float
    momentum : float or None
        None makes the running values the plain means over all batches.
    affine : bool
        Whether there are a weight and a bias, at first 1 and 0.
    track_running_stats : bool
        Without it, evaluation also uses the batch's own values.
    dtype : float32 or float64

    Attributes
    ----------
    weight, bias : ndarray of shape (n_ch,), or None
    grad_weight, grad_bias : ndarray of shape (n_ch,), or None
    running_mean, running_var : ndarray of shape (n_ch,), or None
        Updated in place by each forward pass in training.
    num_batches_tracked : ndarray of shape (), int64, or None

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value; on a call in training, if a channel has a single value.

    Examples
    --------
    >>> layer = BatchNorm2d(1)
    >>> layer(np.array([[[-1.0, 1.0]]], dtype=np.float32)).round(3)
    array([[[-1.,  1.]]], dtype=float32)
    >>> layer.running_var
    array([1.1], dtype=float32)

    Notes
    -----
    Like every layer, it keeps nothing in evaluation mode, so it has no backward pass there.
    """

    weight = ParameterData("weight")
    bias = ParameterData("bias")
    grad_weight = ParameterGrad("weight")
    grad_bias = ParameterGrad("bias")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__()
        self.num_features = integer("num_features", num_features)
        self.eps = number("eps", eps, 0.0)
        self.momentum = None if momentum is None else number("momentum", momentum, 0.0, 1.0)
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.dtype = float_dtype(dtype)
        require_memory(f"parameters of {self.num_features} features", 4 * self.dtype.itemsize * self.num_features)
        if affine:
            self._add_parameter("weight", np.ones(self.num_features, self.dtype))
            self._add_parameter("bias", np.zeros(self.num_features, self.dtype))
        if track_running_stats:
            self._buffers["running_mean"] = np.zeros(self.num_features, self.dtype)
            self._buffers["running_var"] = np.ones(self.num_features, self.dtype)
            self._buffers["num_batches_tracked"] = np.zeros((), np.int64)

    @property
    def running_mean(self) -> Array | None:
        """Mean per channel that evaluation uses."""
        return self._buffers.get("running_mean")

    @property
    def running_var(self) -> Array | None:
        """Variance per channel that evaluation uses."""
        return self._buffers.get("running_var")

    @property
    def num_batches_tracked(self) -> Array | None:
        """Number of forward passes in training."""
        return self._buffers.get("num_batches_tracked")

    def _checked(self, x: Array) -> Array:
        x = float_array("x", x)
        check_spatial(x, 2, self.num_features)
        check_dtype("x", x, self.dtype, "the layer")
        return x

    def forward_rectified(self, x: Array) -> Array:
        """Compute ``ReLU()(forward(x))`` in one go; `backward` then takes the gradient of that."""
        self._forget(FAILED)
        return self._remember(*self._forward(self._checked(x), rectified=True))

    def _forward(self, x: Array, rectified: bool = False) -> tuple[Array, tuple[Any, ...]]:
        last, pixels = as_pixels(x)
        count = len(pixels)
        if not self.training and self.track_running_stats:
            mean, var = self._buffers["running_mean"], self._buffers["running_var"]
        else:
            if count <= (1 if self.training else 0):
                raise ValueError(f"x has shape {x.shape}: expected more than one value per channel, for a variance")
            sums = np.empty((-(-count // ROWS), self.num_features))
            totals(pixels, sums)
            mean = (sums.sum(axis=0) / count).astype(self.dtype)
            squares(pixels, mean, sums)
            var = (sums.sum(axis=0) / count).astype(self.dtype)
        inverse = 1 / np.sqrt(var + self.dtype.type(self.eps))
        if self.training and self.track_running_stats:
            self._track(mean, var * self.dtype.type(count / (count - 1)))
        weight = self.weight if self.affine else np.ones_like(inverse)
        bias = self.bias if self.affine else np.zeros_like(inverse)
        output = empty("the output", pixels.shape, self.dtype)
        mask = empty("a mask", pixels.shape if rectified else (0,), np.dtype(np.uint8))
        lowest = self.dtype.type(0 if rectified else -np.inf)
        normalise(pixels, mean, inverse, weight, bias, lowest, output, mask)
        return from_pixels(output, x.shape, last), (pixels, mask, mean, inverse, last)

    def _track(self, mean: Array, var: Array) -> None:
        self._buffers["num_batches_tracked"] += 1
        rate = 1 / float(self._buffers["num_batches_tracked"]) if self.momentum is None else self.momentum
        for name, batch in (("running_mean", mean), ("running_var", var)):
            running = self._buffers[name]
            running *= self.dtype.type(1 - rate)
            running += self.dtype.type(rate) * batch

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array | None:
        pixels, mask, mean, inverse, last = kept
        _, grad = as_pixels(grad_output)
        sums = np.empty((-(-len(pixels) // ROWS), 2, self.num_features))
        grad_sums(pixels, grad, mask, mean, inverse, sums)
        total, product = sums.sum(axis=0)
        factor = inverse
        if self.affine:
            factor = inverse * self.weight
            self._parameters["weight"].add_grad(product.astype(self.dtype))
            self._parameters["bias"].add_grad(total.astype(self.dtype))
        if not input_grad:
            return None
        mean_grad, mean_product = ((each / len(pixels)).astype(self.dtype) for each in (total, product))
        dx = empty("dX", pixels.shape, self.dtype)
        grad_input(pixels, grad, mask, mean, inverse, factor, mean_grad, mean_product, dx)
        return from_pixels(dx, grad_output.shape, last)

    def _sample_axes(self) -> int:
        return 3

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


def as_pixels(x: Array) -> tuple[bool, Array]:
    """Images as (pixels, channels), a copy unless they lie channels-last; and whether they do."""
    images = x if x.ndim == 4 else x[np.newaxis]
    pixels = images.transpose(0, 2, 3, 1)
    return is_channels_last(images, 2), plain(pixels, (pixels.size // pixels.shape[3], pixels.shape[3]), x.dtype)


def from_pixels(pixels: Array, shape: tuple[int, ...], last: bool) -> Array:
    """Images of this shape from (pixels, channels): lying channels-last, or copied into the order of their axes."""
    *batch, channels, height, width = shape
    images = np.moveaxis(pixels.reshape(*batch, height, width, channels), -1, -3)
    return images if last else np.ascontiguousarray(images)
