"""Batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import empty
from ..kernels.normalisation import grad_input, grad_sums, moments, normalise
from ..kernels.sums import blocks_of, joined_rows
from ..limits import require_memory
from .checks import Array, check_dtype, check_spatial, check_sum, float_array, float_dtype, integer, number
from .layout import images_of, lie_channels_last, pixels_of
from .module import Layer
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

    def _forward(
        self, x: Array, with_relu: bool = False, shortcut: Array | None = None
    ) -> tuple[Array, tuple[Any, ...]]:
        """Compute the layer's output, or the sum of that and a shortcut, and the ReLU of either.

        The gradient that `backward` is given has passed the ReLU of a sum already, as the shortcut's has, too.
        """
        if shortcut is not None:
            check_sum(x, shortcut)
        rows, repeat = self._rows(x)
        count = len(rows) * repeat
        if not self.training and self.track_running_stats:
            mean, var = self._buffers["running_mean"], self._buffers["running_var"]
        else:
            if count <= (1 if self.training else 0):
                raise ValueError(f"x has shape {x.shape}: expected more than one value per channel, for a variance")
            mean, var = (each.astype(self.dtype) for each in mean_and_variance(rows, repeat))
        inverse = 1 / np.sqrt(var + self.dtype.type(self.eps))
        if self.training and self.track_running_stats:
            self._track(mean, var * self.dtype.type(count / (count - 1)))
        factor = inverse * self.weight if self.affine else inverse
        mean, factor, bias = tiled(repeat, mean, factor, self.bias if self.affine else np.zeros_like(inverse))
        added = np.empty((0, 0), self.dtype) if shortcut is None else self._rows(shortcut)[0]
        output = empty("the output", rows.shape, self.dtype)
        normalise(rows, mean, factor, bias, added, self.dtype.type(0 if with_relu else -np.inf), output)
        relu, last = with_relu and shortcut is None, lie_channels_last(x)
        return images_of(output, x.shape, last), (rows, mean, factor, bias, inverse, relu, last)

    def _rows(self, x: Array) -> tuple[Array, int]:
        """Images as rows, each of as many pixels as the second result says."""
        return joined_rows(pixels_of(x).reshape(-1, self.num_features))

    def _track(self, mean: Array, var: Array) -> None:
        self._buffers["num_batches_tracked"] += 1
        rate = 1 / float(self._buffers["num_batches_tracked"]) if self.momentum is None else self.momentum
        for name, batch in (("running_mean", mean), ("running_var", var)):
            running = self._buffers[name]
            running *= self.dtype.type(1 - rate)
            running += self.dtype.type(rate) * batch

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array | None:
        rows, mean, factor, bias, inverse, relu, last = kept
        grad, repeat = self._rows(grad_output)
        least = np.nextafter(self.dtype.type(0), self.dtype.type(1)) if relu else self.dtype.type(-np.inf)
        sums = np.empty((blocks_of(rows), 2, rows.shape[1]))
        grad_sums(rows, grad, mean, factor, bias, least, sums)
        total, product = added_up(sums, repeat)
        if self.affine:
            self._parameters["weight"].add_grad((product * inverse).astype(self.dtype))
            self._parameters["bias"].add_grad(total.astype(self.dtype))
        if not input_grad:
            return None
        scale = -factor[: self.num_features] / (len(rows) * repeat)
        slope, offset = tiled(repeat, scale * np.square(inverse) * product, scale * total)
        dx = empty("dX", rows.shape, self.dtype)
        grad_input(rows, grad, mean, factor, bias, least, slope.astype(self.dtype), offset.astype(self.dtype), dx)
        return images_of(dx, grad_output.shape, last)

    def _sample_axes(self) -> int:
        return 3

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


def mean_and_variance(rows: Array, repeat: int) -> tuple[Array, Array]:
    """Of each channel, in double precision."""
    shift = rows[0, : rows.shape[1] // repeat]
    sums = np.empty((blocks_of(rows), 2, rows.shape[1]))
    moments(rows, np.tile(shift, repeat), sums)
    mean, square = added_up(sums, repeat) / (len(rows) * repeat)
    return shift + mean, np.maximum(square - np.square(mean), 0)


def added_up(sums: Array, repeat: int) -> Array:
    """Two sums per channel, from those of blocks of rows of several pixels."""
    total: Array = sums.sum(axis=0).reshape(2, repeat, -1).sum(axis=1)
    return total


def tiled(repeat: int, *channels: Array) -> list[Any]:
    """Repeat what holds for each channel, for rows of several pixels."""
    return [np.tile(each, repeat) for each in channels]
