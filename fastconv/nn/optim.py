"""Optimisers with PyTorch's update rules.

Each reads ``grad`` and updates ``data`` of its parameters in place, those of all parameters in one parallel loop.  A parameter
whose gradient is stale or was never computed is skipped.
"""

from __future__ import annotations

import abc
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..kernels import updates
from ..scratch import buffer
from ..tasks import Task
from .checks import Array, as_array, check_shape, number
from .parameter import Parameter

__all__ = ["SGD", "Adam", "AdamW"]


NO_NUMBERS = np.zeros(1, np.int64)
"""What is passed to a task that needs none."""


class Optimiser(abc.ABC):
    """Base of the optimisers.

    Attributes
    ----------
    parameters : list of Parameter
    lr : float
        Learning rate; schedules assign to it.
    """

    settings: ClassVar[tuple[str, ...]]
    """Attributes that are numbers and belong to the state."""
    slots: ClassVar[tuple[str, ...]]
    """Names of the arrays of each parameter that belong to the state."""

    def __init__(self, parameters: Iterable[Parameter], lr: float) -> None:
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("parameters is empty: expected at least one nn.Parameter")
        for parameter in self.parameters:
            if not isinstance(parameter, Parameter):
                raise TypeError(f"parameters holds a {type(parameter).__name__}: expected nn.Parameter objects")
        if len({id(parameter) for parameter in self.parameters}) < len(self.parameters):
            raise ValueError("parameters holds the same parameter twice")
        self.lr = number("lr", lr, 0.0)
        self._arrays: list[dict[str, Array]] = [{} for _ in self.parameters]
        self._steps = [0] * len(self.parameters)
        self._tables: dict[
            str, tuple[list[list[Array]], Array]
        ] = {}  # of each dtype, and the arrays whose addresses they hold

    def zero_grad(self) -> None:
        """Mark all gradients stale."""
        for parameter in self.parameters:
            parameter.zero_grad()

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        fresh = [index for index, parameter in enumerate(self.parameters) if parameter.grad is not None]
        dtypes = dict.fromkeys(self.parameters[index].data.dtype for index in fresh)
        for index in fresh:
            self._steps[index] += 1
        for dtype in dtypes:
            self._update([index for index in fresh if self.parameters[index].data.dtype == dtype])

    @abc.abstractmethod
    def _update(self, indices: Sequence[int]) -> None:
        """Update these parameters, which have one dtype and fresh gradients."""

    def _slot(self, index: int, name: str) -> Array:
        """Return an array of a parameter's state, at first of zeros."""
        arrays = self._arrays[index]
        if name not in arrays:
            arrays[name] = np.zeros_like(self.parameters[index].data)
        return arrays[name]

    def _run(
        self, task: Task, indices: Sequence[int], slots: Sequence[str], factors: Sequence[Sequence[float]]
    ) -> None:
        """Run a task of `fastconv.kernels.updates` on these parameters, each with its row of ``factors``."""
        arrays = []
        for index in indices:
            parameter = self.parameters[index]
            arrays.append(
                [parameter.data, parameter.grad_buffer(accumulate=True), *(self._slot(index, s) for s in slots)]
            )
        dtype = arrays[0][0].dtype
        known, tables = self._tables.get(dtype.char, ([], NO_NUMBERS))
        if not _same(arrays, known):
            tables = _tables_of(arrays)
            self._tables[dtype.char] = arrays, tables
        alone = tables[:, 1].sum() <= updates.PIECE
        numbers = buffer("factors", len(factors) * len(factors[0]), dtype)
        numbers.reshape(len(factors), -1)[:] = factors
        task(len(tables), NO_NUMBERS, tables.reshape(-1), numbers, alone=alone)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}  # a copy's arrays lie elsewhere

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on but the parameters: a flat dict of numbers and copied arrays.

        Keys are settings such as ``"lr"``, and for each parameter, by its position, ``"step.0"`` and arrays such as
        ``"momentum.0"``.
        """
        state: dict[str, Any] = {name: getattr(self, name) for name in self.settings}
        for index, arrays in enumerate(self._arrays):
            state[f"step.{index}"] = self._steps[index]
            state.update({f"{name}.{index}": array.copy() for name, array in arrays.items()})
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`, the settings included; on an error, nothing has changed.

        Parameters
        ----------
        state : mapping of str to number or ndarray
            Numbers may have become arrays of shape (), as they do in a file.

        Raises
        ------
        TypeError, ValueError
            If the state is of another kind of optimiser or does not fit the parameters.
        """
        needed = {*self.settings, *(f"step.{index}" for index in range(len(self.parameters)))}
        allowed = needed | {f"{name}.{index}" for name in self.slots for index in range(len(self.parameters))}
        wrong = sorted((needed - state.keys()) | (state.keys() - allowed))
        if wrong:
            raise ValueError(
                f"the state does not fit this {type(self).__name__} with {len(self.parameters)} parameters: "
                f"{', '.join(repr(key) for key in wrong)} {'is' if len(wrong) == 1 else 'are'} missing or unexpected"
            )
        settings = {name: type(getattr(self, name))(number(name, state[name], 0.0)) for name in self.settings}
        steps = [int(number(f"step.{index}", state[f"step.{index}"], 0.0)) for index in range(len(self.parameters))]
        loaded: list[dict[str, Array]] = []
        for index, parameter in enumerate(self.parameters):
            arrays = {}
            for name in self.slots:
                key = f"{name}.{index}"
                if key in state:
                    array = as_array(key, state[key])
                    check_shape(key, array, parameter.shape)
                    arrays[name] = np.array(array, dtype=parameter.data.dtype, order="C")
            loaded.append(arrays)
        for name, value in settings.items():
            setattr(self, name, value)
        self._steps, self._arrays = steps, loaded

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)}" for name in self.settings)
        return f"{type(self).__name__}({len(self.parameters)} parameters, {settings})"


def _same(arrays: Sequence[Sequence[Array]], others: Sequence[Sequence[Array]]) -> bool:
    """Say whether these are the very same arrays."""
    return len(arrays) == len(others) and all(
        len(some) == len(same) and all(map(operator.is_, some, same)) for some, same in zip(arrays, others, strict=True)
    )


def _tables_of(arrays: Sequence[Sequence[Array]]) -> Array:
    """Cut parameters into pieces, and say where those lie that go with them, as `fastconv.kernels.updates` asks for it."""
    rows = np.zeros((len(arrays), updates.COLUMNS), np.int64)
    for row, some in enumerate(arrays):
        addresses = (array.__array_interface__["data"][0] for array in some)
        rows[row, : 2 + len(some)] = (row, some[0].size, *addresses)
    pieces = -(-rows[:, 1] // updates.PIECE)
    tables = np.repeat(rows, pieces, axis=0)
    first = updates.PIECE * (np.arange(len(tables)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    tables[:, 1] = np.minimum(updates.PIECE, tables[:, 1] - first)
    tables[:, 2 : 2 + len(arrays[0])] += first[:, np.newaxis] * arrays[0][0].itemsize
    return tables


class SGD(Optimiser):
    """Stochastic gradient descent.

    With g = grad + weight_decay*data, and m = g in the first step: ``m = momentum*m + (1 - dampening)*g``, then
    ``data -= lr*m``, or with Nesterov's rule ``data -= lr*(g + momentum*m)``.

    Parameters
    ----------
    parameters : iterable of Parameter
    lr, momentum, dampening, weight_decay : float
        At least 0.
    nesterov : bool
        Needs a momentum and no dampening.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value.

    Examples
    --------
    >>> from fastconv import nn
    >>> layer = nn.Linear(1, 1, bias=False, dtype=np.float64)
    >>> optimiser = nn.SGD(layer.parameters(), lr=0.5)
    >>> layer.weight, layer.grad_weight = np.array([[1.0]]), np.array([[0.5]])
    >>> optimiser.step()
    >>> layer.weight
    array([[0.75]])
    """

    settings = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    slots = ("momentum",)

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr)
        self.momentum = number("momentum", momentum, 0.0)
        self.dampening = number("dampening", dampening, 0.0)
        self.weight_decay = number("weight_decay", weight_decay, 0.0)
        self.nesterov = bool(nesterov)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"nesterov needs a momentum above 0 and dampening 0: they are {self.momentum} and {self.dampening}"
            )

    def _update(self, indices: Sequence[int]) -> None:
        factors = []
        for index in indices:
            begun = "momentum" in self._arrays[index]
            keep, gain = (self.momentum, 1 - self.dampening) if begun else (0.0, 1.0)
            factors.append((self.lr, self.weight_decay, self.momentum, keep, gain, self.nesterov))
        self._run(updates.sgd, indices, self.slots if self.momentum else (), factors)


class Adam(Optimiser):
    """Adam (Kingma and Ba, 2015): steps scaled by running means of the gradient and of its square.

    With g = grad + weight_decay*data, in step t: ``m = beta1*m + (1 - beta1)*g``, ``v = beta2*v + (1 - beta2)*g*g``,
    ``data -= lr * (m/(1 - beta1**t)) / (sqrt(v/(1 - beta2**t)) + eps)``.

    Parameters
    ----------
    parameters : iterable of Parameter
    lr : float
    betas : (float, float)
        At least 0, below 1.
    eps, weight_decay : float

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value.

    Examples
    --------
    >>> from fastconv import nn
    >>> layer = nn.Linear(1, 1, bias=False, dtype=np.float64)
    >>> optimiser = nn.Adam(layer.parameters(), lr=0.5)
    >>> layer.weight, layer.grad_weight = np.array([[1.0]]), np.array([[0.25]])
    >>> optimiser.step()
    >>> layer.weight.round(6)
    array([[0.5]])
    """

    settings = ("lr", "beta1", "beta2", "eps", "weight_decay")
    slots = ("mean", "square")
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"betas is {betas!r}: expected two numbers")
        self.beta1, self.beta2 = (number("betas", beta, 0.0, 1.0, open_end=True) for beta in betas)
        self.eps = number("eps", eps, 0.0)
        self.weight_decay = number("weight_decay", weight_decay, 0.0)

    def _update(self, indices: Sequence[int]) -> None:
        decay, shrink = self.weight_decay, 1.0
        if self.decoupled:
            decay, shrink = 0.0, 1 - self.lr * self.weight_decay
        rest = (1 - self.beta1, self.beta2, 1 - self.beta2, self.eps)
        factors = []
        for index in indices:
            step = self._steps[index]
            root = math.sqrt(1 - self.beta2**step)
            factors.append((self.lr / (1 - self.beta1**step), decay, shrink, root, *rest))
        self._run(updates.adam, indices, self.slots, factors)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019): ``data -= lr*weight_decay*data`` on its own.

    Parameters
    ----------
    parameters : iterable of Parameter
    lr, betas, eps, weight_decay
        As for `Adam`; the weight decay is 0.01 if not given.

    Examples
    --------
    >>> from fastconv import nn
    >>> nn.AdamW(nn.Linear(2, 1).parameters(), lr=0.01)
    AdamW(2 parameters, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.01)
    """

    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)
