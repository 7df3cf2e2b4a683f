"""fastconv under PyTorch: convolutions that its autograd knows, and `convert`, which puts them into a model.

>>> import torch
>>> import fastconv.torch
>>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
>>> model = fastconv.torch.convert(model)
>>> model(torch.zeros(1, 3, 32, 32)).shape
torch.Size([1, 8, 32, 32])

`operators` holds the three operators that all is made of and their derivatives, `functions` the convolutions of tensors,
`modules` the layers and `convert`.
"""

from __future__ import annotations

from .functions import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from .modules import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, convert, revert

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convert", "revert",
]  # fmt: skip
