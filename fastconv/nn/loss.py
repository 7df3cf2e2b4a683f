"""Losses: called with a prediction and a target they return a float, and ``backward()`` the prediction's gradient."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from ..arrays import empty, plain
from ..kernels.loss import cross_entropy, rooms_of_rows
from ..scratch import buffer
from .checks import Array, as_array, check_dtype, check_shape, float_array, number

__all__ = ["CrossEntropyLoss", "MSELoss"]


class Loss(abc.ABC):
    """Base of the losses.

    Parameters
    ----------
    reduction : "mean" or "sum"
        Over all targets.
    """

    def __init__(self, reduction: str = "mean") -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}: expected 'mean' or 'sum'")
        self.reduction = reduction
        self._gradient: tuple[Any, ...] | None = None

    def __call__(self, pred: Array, target: Array) -> float:
        """Call `forward`."""
        return self.forward(pred, target)

    @abc.abstractmethod
    def forward(self, pred: Array, target: Array) -> float:
        """Compute the loss and keep what `backward` needs."""

    def backward(self) -> Array:
        """Compute the gradient of the last loss with respect to its prediction.

        Returns
        -------
        ndarray of the shape and dtype of pred
            A new array.

        Raises
        ------
        RuntimeError
            If there is no forward pass that no backward pass has used yet.
        """
        if self._gradient is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a call of the loss before each call")
        kept, self._gradient = self._gradient, None
        return self._backward(*kept)

    @abc.abstractmethod
    def _backward(self, *kept: Any) -> Array: ...

    def _reduced(self, total: Any, count: int) -> float:
        return float(total) / (count if self.reduction == "mean" else 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(reduction={self.reduction!r})"


class CrossEntropyLoss(Loss):
    """-log softmax(pred)[target], the usual loss of a classifier.

    Parameters
    ----------
    reduction : "mean" or "sum"
    label_smoothing : float
        Share of each target that is spread evenly over all classes, between 0 and 1.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value.

    Examples
    --------
    >>> loss = CrossEntropyLoss()
    >>> round(loss(np.array([[0.0, 0.0], [0.0, 100.0]]), np.array([0, 1])), 4)
    0.3466
    >>> loss.backward().round(4)
    array([[-0.25,  0.25],
           [ 0.  ,  0.  ]])
    """

    def __init__(self, reduction: str = "mean", label_smoothing: float = 0.0) -> None:
        super().__init__(reduction)
        self.label_smoothing = number("label_smoothing", label_smoothing, 0.0, 1.0)

    def forward(self, pred: Array, target: Array) -> float:
        """Compute the loss.

        Parameters
        ----------
        pred : ndarray of shape (C,), (N, C) or (N, C, ...), float32 or float64
            A score for each class, any real number.
        target : ndarray of shape (), (N,) or (N, ...), of ints
            Classes, 0 to C - 1.

        Returns
        -------
        float

        Raises
        ------
        TypeError, ValueError
            If an argument has the wrong dtype or shape, there is no target at all, or a target is no class.
        """
        pred = float_array("pred", pred)
        if pred.ndim < 1:
            raise ValueError(f"pred has shape {pred.shape}: expected (C,), (N, C) or (N, C, ...)")
        axis = 0 if pred.ndim == 1 else 1
        labels = np.asarray(target) if isinstance(target, (int, np.integer)) else as_array("target", target)
        if labels.dtype.kind not in "iu":
            raise TypeError(f"target has dtype {labels.dtype}: expected integers, the classes")
        check_shape("target", labels, pred.shape[:axis] + pred.shape[axis + 1 :])
        if labels.size == 0:
            raise ValueError(f"target has shape {labels.shape}: expected at least one target")
        classes = pred.shape[axis]
        if labels.min() < 0 or labels.max() >= classes:
            wrong = labels[(labels < 0) | (labels >= classes)].flat[0]
            raise ValueError(f"target holds {wrong}: expected classes 0 to {classes - 1}, as pred has {classes} scores")
        rows = np.moveaxis(pred, axis, -1)
        scores = plain(rows, (labels.size, classes), pred.dtype)
        losses = buffer("losses", labels.size, np.dtype(np.float64))
        grad = empty("the gradient", scores.shape, pred.dtype)
        scale, known = 1 / labels.size if self.reduction == "mean" else 1.0, plain(labels, (-1,), np.dtype(np.int64))
        cross_entropy(scores, known, self.label_smoothing, scale, rooms_of_rows(*scores.shape), losses, grad)
        self._gradient = (np.moveaxis(grad.reshape(rows.shape), -1, axis),)
        return self._reduced(losses.sum(), labels.size)

    def _backward(self, *kept: Any) -> Array:
        (grad,) = kept
        return np.asarray(grad)

    def __repr__(self) -> str:
        return f"CrossEntropyLoss(reduction={self.reduction!r}, label_smoothing={self.label_smoothing})"


class MSELoss(Loss):
    """(pred - target)**2.

    Parameters
    ----------
    reduction : "mean" or "sum"

    Raises
    ------
    ValueError
        If reduction has another value.

    Examples
    --------
    >>> loss = MSELoss()
    >>> loss(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    2.0
    >>> loss.backward()
    array([ 0., -2.])
    """

    def forward(self, pred: Array, target: Array) -> float:
        """Compute the loss.

        Parameters
        ----------
        pred, target : ndarray of one shape and dtype, float32 or float64

        Returns
        -------
        float

        Raises
        ------
        TypeError, ValueError
            If they differ in shape or dtype, are empty, or have another dtype.
        """
        pred, target = float_array("pred", pred), float_array("target", target)
        check_shape("target", target, pred.shape)
        check_dtype("target", target, pred.dtype, "pred")
        if pred.size == 0:
            raise ValueError(f"pred has shape {pred.shape}: expected at least one element")
        difference = empty("the gradient", pred.shape, pred.dtype)
        np.subtract(pred, target, out=difference)
        self._gradient = (difference,)
        squares = buffer("losses", pred.size, np.dtype(np.float64))
        np.square(difference.reshape(-1), out=squares)
        return self._reduced(squares.sum(), pred.size)

    def _backward(self, *kept: Any) -> Array:
        (grad,) = kept
        grad *= grad.dtype.type(2 / grad.size if self.reduction == "mean" else 2)
        return np.asarray(grad)
