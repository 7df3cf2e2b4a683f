"""Schedules of the learning rate: call ``step()`` once after each epoch."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from typing import Any

from .checks import integer, number
from .optim import Optimiser

__all__ = ["CosineAnnealingLR", "StepLR"]


class Schedule(abc.ABC):
    """Base of the schedules: the rate is a function of the optimiser's rate at the start and the number of epochs.

    Attributes
    ----------
    optimiser : SGD, Adam or AdamW
        Its ``lr`` is assigned to.
    base_lr : float
        Its learning rate when the schedule was made.
    last_epoch : int
        Number of calls of `step`.
    """

    def __init__(self, optimiser: Optimiser) -> None:
        if not isinstance(optimiser, Optimiser):
            raise TypeError(f"optimiser is of type {type(optimiser).__name__}: expected SGD, Adam or AdamW")
        self.optimiser = optimiser
        self.base_lr = optimiser.lr
        self.last_epoch = 0

    @abc.abstractmethod
    def rate(self, epoch: int) -> float:
        """Learning rate after ``epoch`` steps."""

    def step(self) -> None:
        """Count an epoch and set the optimiser's learning rate for the next one."""
        self.last_epoch += 1
        self.optimiser.lr = self.rate(self.last_epoch)

    def state_dict(self) -> dict[str, float | int]:
        """Numbers to go on from: ``base_lr`` and ``last_epoch``."""
        return {"base_lr": self.base_lr, "last_epoch": self.last_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict` and set the optimiser's learning rate accordingly.

        Raises
        ------
        TypeError, ValueError
            If a key is missing or unexpected, or its value no such number.
        """
        if set(state) != {"base_lr", "last_epoch"}:
            raise ValueError(f"the state of a schedule has the keys {sorted(state)}: expected base_lr and last_epoch")
        base_lr, last_epoch = number("base_lr", state["base_lr"], 0.0), integer("last_epoch", state["last_epoch"], 0)
        self.base_lr, self.last_epoch = base_lr, last_epoch
        self.optimiser.lr = self.rate(last_epoch)


class StepLR(Schedule):
    """Multiply the learning rate by gamma every ``step_size`` epochs.

    Parameters
    ----------
    optimiser : SGD, Adam or AdamW
    step_size : int
    gamma : float

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value.

    Examples
    --------
    >>> from fastconv import nn
    >>> optimiser = nn.SGD(nn.Linear(2, 1).parameters(), lr=0.5)
    >>> schedule = nn.StepLR(optimiser, step_size=2, gamma=0.5)
    >>> rates = []
    >>> for epoch in range(5):
    ...     rates.append(optimiser.lr)
    ...     schedule.step()
    >>> rates
    [0.5, 0.5, 0.25, 0.25, 0.125]
    """

    def __init__(self, optimiser: Optimiser, step_size: int, gamma: float = 0.1) -> None:
        super().__init__(optimiser)
        self.step_size = integer("step_size", step_size)
        self.gamma = number("gamma", gamma, 0.0)

    def rate(self, epoch: int) -> float:
        """Learning rate after ``epoch`` steps: base_lr * gamma**(epoch // step_size)."""
        return self.base_lr * self.gamma ** (epoch // self.step_size)


class CosineAnnealingLR(Schedule):
    """Let the learning rate fall to eta_min along half a cosine wave.

    Parameters
    ----------
    optimiser : SGD, Adam or AdamW
    T_max : int
        Epochs until eta_min is reached; afterwards the rate rises again, as in PyTorch.
    eta_min : float

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or value.

    Examples
    --------
    >>> from fastconv import nn
    >>> optimiser = nn.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    >>> schedule = nn.CosineAnnealingLR(optimiser, 2)
    >>> schedule.step(); round(optimiser.lr, 6)
    0.5
    >>> schedule.step(); round(optimiser.lr, 6)
    0.0
    """

    def __init__(self, optimiser: Optimiser, T_max: int, eta_min: float = 0.0) -> None:
        super().__init__(optimiser)
        self.T_max = integer("T_max", T_max)
        self.eta_min = number("eta_min", eta_min, 0.0)

    def rate(self, epoch: int) -> float:
        """Learning rate after ``epoch`` steps: eta_min + (base_lr - eta_min)*(1 + cos(pi*epoch/T_max))/2."""
        return self.eta_min + (self.base_lr - self.eta_min) * (1 + math.cos(math.pi * epoch / self.T_max)) / 2
