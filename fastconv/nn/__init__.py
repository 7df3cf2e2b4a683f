"""Layers with forward and backward passes, losses, optimisers, schedules, and weights in files.

Examples
--------
A network, and one step of its training:

>>> import numpy as np
>>> from fastconv import nn
>>> model = nn.Sequential(
...     nn.ZeroPad2d(1), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 4 * 4, 10)
... )
>>> loss, optimiser = nn.CrossEntropyLoss(), nn.SGD(model.parameters(), lr=0.1, momentum=0.9)
>>> x, y = np.ones((2, 1, 8, 8), dtype=np.float32), np.array([3, 3])
>>> before = loss(model(x), y)
>>> model.zero_grad()
>>> model.backward(loss.backward())
>>> optimiser.step()
>>> loss(model(x), y) < before
True
"""

from .activation import Dropout, Flatten, ReLU
from .containers import Residual, Sequential
from .convolution import Conv1d, Conv2d, Conv3d, ConvTranspose2d
from .generator import default_generator, manual_seed
from .linear import Linear
from .loss import CrossEntropyLoss, MSELoss
from .module import IncompatibleKeys, Layer, Module
from .normalisation import BatchNorm2d
from .optim import SGD, Adam, AdamW
from .padding import (
    CircularPad1d,
    CircularPad2d,
    CircularPad3d,
    ReflectionPad1d,
    ReflectionPad2d,
    ReflectionPad3d,
    ReplicationPad1d,
    ReplicationPad2d,
    ReplicationPad3d,
    ZeroPad1d,
    ZeroPad2d,
    ZeroPad3d,
)
from .parameter import Parameter
from .pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from .schedule import CosineAnnealingLR, StepLR
from .summary import LayerSummary, Summary
from .weights import load, save

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "CosineAnnealingLR",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "IncompatibleKeys",
    "Layer",
    "LayerSummary",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "Residual",
    "Sequential",
    "StepLR",
    "Summary",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
    "default_generator",
    "load",
    "manual_seed",
    "save",
]
