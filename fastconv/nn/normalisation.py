"""Batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import empty
from ..kernels.normalisation import (
    MEAN,
    ROWS_OF_TABLE,
    grad_input,
    grad_scales,
    grad_sums,
    masked_sums,
    measure,
    moments,
    normalise,
    scales,
)
from ..kernels.sums import joined_rows, rooms_for
from ..limits import require_memory
from ..scratch import buffer
from .checks import Array, check_dtype, check_spatial, check_sum, float_array, float_dtype, integer, number
from .layout import images_of, lie_channels_last, pixels_of
from .module import Layer
from .parameter import ParameterData, ParameterGrad, written_gradients

__all__ = ["BatchNorm2d"]

NOTHING = {char: np.empty((1, 0), char) for char in "fd"}
"""What kernels are passed in place of arrays that are not there."""


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
        self._passed: Array | None = None
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
        """Compute the layer's output, or the sum of that and a shortcut, and the ReLU of either."""
        if shortcut is not None:
            check_sum(x, shortcut)
        rows = self._rows(x)
        table = empty("the scales", (ROWS_OF_TABLE, rows.shape[1]), self.dtype)
        mean, var = self._mean_and_variance(x, rows, table)
        scales(mean, var, self.eps, self._given("weight"), self._given("bias"), table)
        added = NOTHING[self.dtype.char] if shortcut is None else self._rows(shortcut)
        output = empty("the output", rows.shape, self.dtype)
        normalise(rows, table, added, self.dtype.type(0 if with_relu else -np.inf), output)
        adds, last = shortcut is not None, lie_channels_last(x)
        passes = output if with_relu and adds else None
        return images_of(output, x.shape, last), (rows, table, with_relu, adds, passes, last)

    def _rows(self, x: Array) -> Array:
        """Images as rows, each of some pixels: as many for all images of one shape."""
        return joined_rows(pixels_of(x).reshape(-1, self.num_features))[0]

    def _given(self, parameter: str) -> Array:
        return self._parameters[parameter].data if self.affine else NOTHING[self.dtype.char][0]

    def _mean_and_variance(self, x: Array, rows: Array, table: Array) -> Sequence[Array]:
        """Of each channel: the running ones in evaluation, else those of the batch, which the running ones then follow."""
        running = (self._buffers["running_mean"], self._buffers["running_var"]) if self.track_running_stats else None
        if running is not None and not self.training:
            return running
        if x.size // self.num_features <= (1 if self.training else 0):
            raise ValueError(f"x has shape {x.shape}: expected more than one value per channel, for a variance")
        sums = sums_of(rows)
        table[MEAN].reshape(-1, self.num_features)[:] = rows[0, : self.num_features]
        moments(rows, table[MEAN], sums)
        rate = 0.0
        if tracking := self.training and running is not None:
            self._buffers["num_batches_tracked"] += 1
            count = self._buffers["num_batches_tracked"]
            rate = 1 / float(count) if self.momentum is None else self.momentum
        mean, var = buffer("mean and variance", 2 * self.num_features, self.dtype).reshape(2, -1)
        nothing = NOTHING[self.dtype.char][0]
        followed = running if running is not None and tracking else (nothing, nothing)
        measure(sums, len(rows), table, mean, var, rate, followed[0], followed[1])
        return mean, var

    def _backward(
        self, grad_output: Array, *kept: Any, input_grad: bool, overwrites: bool = False
    ) -> Array | None:  # fmt: skip
        """Compute the gradients, one of them in the place of ``grad_output`` if it may be overwritten.

        That is the shortcut's, if it is another, or dX, if there is none.
        """
        rows, table, with_relu, adds, passes, last = kept
        grad, sums = self._rows(grad_output), sums_of(rows)
        least = np.nextafter(self.dtype.type(0), self.dtype.type(1)) if with_relu else self.dtype.type(-np.inf)
        if passes is not None:
            passed = grad if overwrites else empty("the gradient", rows.shape, self.dtype)
            masked_sums(rows, grad, passes, table, passed, sums)
            grad, least = passed, self.dtype.type(-np.inf)
            self._passed = images_of(passed, grad_output.shape, last)
        else:
            grad_sums(rows, grad, table, least, sums)
        nothing = NOTHING[self.dtype.char][0]
        with written_gradients(list(self._parameters.values())) as (grads, accumulate):
            grad_weight, grad_bias = grads or [nothing, nothing]
            grad_scales(sums, len(rows), table, self.num_features, grad_weight, grad_bias, accumulate)
        if not input_grad:
            return None
        dx = grad if overwrites and not adds else empty("dX", rows.shape, self.dtype)
        grad_input(rows, grad, table, least, dx)
        return images_of(dx, grad_output.shape, last)

    def shortcut_grad(self, grad_output: Array) -> Array:
        """Return the gradient of the shortcut, once, after `backward`: that of the sum, as far as it passes the ReLU."""
        passed, self._passed = self._passed, None
        return grad_output if passed is None else passed.reshape(grad_output.shape)

    def _sample_axes(self) -> int:
        return 3

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


def sums_of(rows: Array) -> Array:
    """Return scratch memory for two sums of each lane, of each block of rows."""
    lanes = rows.shape[1]
    return rooms_for(len(rows), 2 * lanes, np.dtype(np.float64)).reshape(-1, 2, lanes)
