"""What the tests under PyTorch share."""

import pytest
import torch
from numba import config

from fastconv import torch as ft
from fastconv.torch.layout import FORMATS

COMPILED = pytest.mark.skipif(config.DISABLE_JIT, reason="too much for Python's loops")
OURS = {
    name: getattr(ft, name)
    for name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
}


def leaf(*shape, dtype=torch.float64, last=False):
    tensor = torch.randn(shape, dtype=dtype)
    if last:
        tensor = tensor.contiguous(memory_format=FORMATS[len(shape)])
    return tensor.requires_grad_()


def left(what, reason, call):
    with pytest.warns(UserWarning, match=reason) as caught:
        result = [call(), call()][0]
    assert [str(w.message).split(":")[0] for w in caught] == [f"{what} is left to PyTorch"]  # once
    return result
