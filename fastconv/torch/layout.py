"""How tensors lie in memory: planes of channels, or channels-last, a pixel's channels side by side."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

__all__ = ["FORMATS", "LIKE", "Ints", "lies_channels_last", "memory_format", "steps_of"]

Ints = tuple[int, ...]

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""What PyTorch calls channels-last, by the number of axes; there is none for one spatial axis."""

LIKE = {
    (ndim, last): np.empty((2,) * (ndim + 2)).transpose((0, ndim + 1, *range(1, ndim + 1)) if last else None)
    for ndim in (1, 2, 3)
    for last in (False, True)
}
"""Arrays whose layouts results take."""


def lies_channels_last(tensor: Any) -> bool:
    """Say whether PyTorch takes a tensor's strides for channels-last ones."""
    sizes, steps = tensor.shape, tensor.stride()
    if len(sizes) not in FORMATS or steps[-1] < steps[1] or steps[1] == 0:  # nearly all that do not
        return False
    least = 0
    for axis in (1, *range(len(sizes) - 1, 1, -1), 0):
        if sizes[axis] == 0 or steps[axis] < least or (axis == 0 and least == steps[1]):
            return False
        least = steps[axis] * max(sizes[axis], 1)
    return True


def memory_format(axes: int, channels_last: bool) -> Any:
    """Return PyTorch's name for a layout."""
    return FORMATS[axes] if channels_last else torch.contiguous_format


@functools.lru_cache(maxsize=1024)
def steps_of(shape: Ints, channels_last: bool) -> Ints:
    """Return the strides that PyTorch gives a new tensor."""
    layout = memory_format(len(shape), channels_last)
    steps: Ints = torch.empty(shape, device="meta", memory_format=layout).stride()
    return steps
