"""Where layers get their random numbers from."""

from __future__ import annotations

from typing import Any

import numpy as np

from .checks import integer

__all__ = ["default_generator", "generator", "manual_seed"]

_state = {"default": np.random.default_rng(0)}


def manual_seed(seed: int) -> np.random.Generator:
    """Restart the default generator, which layers made without ``rng`` draw from.

    A program that never calls this starts from seed 0, so two runs of it draw the same numbers.

    Parameters
    ----------
    seed : int
        At least 0.

    Returns
    -------
    numpy.random.Generator
        The new default generator.

    Raises
    ------
    TypeError, ValueError
        If seed is no int, or negative.

    Examples
    --------
    >>> from fastconv import nn
    >>> _ = nn.manual_seed(1)
    >>> first = nn.Linear(3, 2).weight
    >>> _ = nn.manual_seed(1)
    >>> bool((nn.Linear(3, 2).weight == first).all())
    True
    """
    _state["default"] = np.random.default_rng(integer("seed", seed, 0))
    return _state["default"]


def default_generator() -> np.random.Generator:
    """Return the default generator; its ``bit_generator.state`` can be saved and restored.

    Examples
    --------
    >>> default_generator() is default_generator()
    True
    """
    return _state["default"]


def generator(rng: Any) -> np.random.Generator:
    """Turn ``rng`` into a generator: None is the default one, an int the seed of a new one.

    Raises
    ------
    TypeError, ValueError
        If rng is none of the three, or a negative seed.
    """
    if rng is None:
        return default_generator()
    if isinstance(rng, np.random.Generator):
        return rng
    try:
        return np.random.default_rng(integer("rng", rng, 0))
    except TypeError:
        raise TypeError(f"rng is {rng!r}: expected an int seed, a numpy.random.Generator or None") from None
