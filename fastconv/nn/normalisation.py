"""Batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..limits import require_memory
from .checks import Array, check_dtype, check_spatial, float_array, float_dtype, integer, number
from .module import Layer
from .parameter import ParameterData, ParameterGrad

__all__ = ["BatchNorm2d"]

AXES = (0, 2, 3)


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

    def _forward(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        images = x if x.ndim == 4 else x[np.newaxis]
        if not self.training and self.track_running_stats:
            mean, var = self._buffers["running_mean"], self._buffers["running_var"]
            normal = images - _column(mean)
        else:
            if images.size <= (self.num_features if self.training else 0):
                raise ValueError(f"x has shape {x.shape}: expected more than one value per channel, for a variance")
            mean = images.mean(axis=AXES)
            normal = images - _column(mean)
            var = np.square(normal).mean(axis=AXES)
        inverse = 1 / np.sqrt(var + self.dtype.type(self.eps))
        normal *= _column(inverse)
        if self.training and self.track_running_stats:
            count = images.size // self.num_features
            self._track(mean, var * self.dtype.type(count / (count - 1)))
        output = normal
        if self.affine:
            output = normal * _column(self.weight)
            output += _column(self.bias)
        elif self.training:
            output = normal.copy()  # the caller may change what was returned, backward needs the values
        return output.reshape(x.shape), (normal, inverse)

    def _track(self, mean: Array, var: Array) -> None:
        self._buffers["num_batches_tracked"] += 1
        rate = 1 / float(self._buffers["num_batches_tracked"]) if self.momentum is None else self.momentum
        for name, batch in (("running_mean", mean), ("running_var", var)):
            running = self._buffers[name]
            running *= self.dtype.type(1 - rate)
            running += self.dtype.type(rate) * batch

    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array | None:
        # With z = (x - mean)/sqrt(var + eps) and g = dL/dz:  dX = (g - mean(g) - z*mean(g*z)) / sqrt(var + eps)
        normal, inverse = kept
        grad = grad_output.reshape(normal.shape)
        sums, products = grad.sum(axis=AXES), (grad * normal).sum(axis=AXES)
        factor = inverse
        if self.affine:
            factor = inverse * self.weight
            self._parameters["weight"].add_grad(products)
            self._parameters["bias"].add_grad(sums)
        if not input_grad:
            return None
        count = self.dtype.type(normal.size // self.num_features)
        normal *= _column(-products / count)  # kept for this pass alone, so it can become dX in place
        normal += grad
        normal -= _column(sums / count)
        normal *= _column(factor)
        return np.asarray(normal).reshape(grad_output.shape)

    def _sample_axes(self) -> int:
        return 3

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


def _column(per_channel: Array) -> Array:
    return per_channel[:, np.newaxis, np.newaxis]
