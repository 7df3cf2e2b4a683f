"""Networks in PyTorch to time and to compare: ResNet-18, MobileNetV2 and ConvNeXt-T, as their papers describe them.

>>> convolutions = [m for m in resnet18(10).modules() if isinstance(m, nn.Conv2d)]
>>> len(convolutions)
20
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["NETWORKS", "convnext", "in_torch", "mobilenet_v2", "resnet18", "step_of"]


class Sum(nn.Module):  # type: ignore[misc]
    """A branch, added to its input or to what a shortcut makes of it."""

    def __init__(self, branch: Any, shortcut: Any = None) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()

    def forward(self, x: Any) -> Any:
        """Add."""
        return self.branch(x) + self.shortcut(x)


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: Any = None) -> Any:
    """Return a convolution that keeps the size, and batch normalisation."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


def _classifier(channels: int, classes: int) -> list[Any]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def resnet18(classes: int) -> Any:
    """Make ResNet-18 (He et al., 2015)."""
    layers = [_normed(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for outputs, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        branch = nn.Sequential(_normed(inputs, outputs, 3, stride, act=nn.ReLU), _normed(outputs, outputs, 3))
        shortcut = None if inputs == outputs else _normed(inputs, outputs, 1, stride)
        layers += [Sum(branch, shortcut), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, *_classifier(512, classes))


def mobilenet_v2(classes: int) -> Any:
    """Make MobileNetV2 (Sandler et al., 2018), without dropout."""
    layers = [_normed(3, 32, 3, 2, act=nn.ReLU6)]
    inputs = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, outputs, repeats, first_stride in stages:
        for i in range(repeats):
            stride, wide = first_stride if i == 0 else 1, expansion * inputs
            branch = nn.Sequential(
                *([_normed(inputs, wide, 1, act=nn.ReLU6)] if expansion > 1 else []),
                _normed(wide, wide, 3, stride, groups=wide, act=nn.ReLU6),
                _normed(wide, outputs, 1),
            )
            layers.append(Sum(branch) if stride == 1 and inputs == outputs else branch)
            inputs = outputs
    return nn.Sequential(*layers, _normed(inputs, 1280, 1, act=nn.ReLU6), *_classifier(1280, classes))


class ChannelNorm(nn.LayerNorm):  # type: ignore[misc]
    """Layer normalisation of images along their channels; the result lies as they do."""

    def forward(self, x: Any) -> Any:
        """Normalise."""
        y = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y.contiguous() if x.is_contiguous() else y


class Scale(nn.Module):  # type: ignore[misc]
    """One factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: Any) -> Any:
        """Multiply."""
        return x * self.factors


def convnext(classes: int) -> Any:
    """Make ConvNeXt-T (Liu et al., 2022), without stochastic depth; pixels' linear layers are 1 x 1 convolutions."""
    layers: list[Any] = [nn.Conv2d(3, 96, 4, 4), ChannelNorm(96)]
    inputs = 96
    for width, depth in ((96, 3), (192, 3), (384, 9), (768, 3)):
        if width != inputs:
            layers += [ChannelNorm(inputs), nn.Conv2d(inputs, width, 2, 2)]
        for _ in range(depth):
            branch = nn.Sequential(
                nn.Conv2d(width, width, 7, padding=3, groups=width), ChannelNorm(width),
                nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1), Scale(width),
            )  # fmt: skip
            layers.append(Sum(branch))
        inputs = width
    return nn.Sequential(*layers, ChannelNorm(inputs), *_classifier(inputs, classes))


NETWORKS: dict[str, Callable[[int], Any]] = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2, "convnext": convnext}


def in_torch(module: Any) -> Any:
    """Translate a network of `fastconv.nn` layers, weights included; a convolution gets the zero padding in front of it."""
    name = type(module).__name__
    if name == "Sequential":
        layers, padding = [], (0, 0)
        for child in module:
            if type(child).__name__ == "ZeroPad2d":
                padding = tuple(left for left, _ in child.pairs)
                continue
            layers.append(in_torch(child))
            if isinstance(layers[-1], nn.Conv2d):
                layers[-1].padding, padding = padding, (0, 0)
        return nn.Sequential(*layers)
    if name == "Residual":
        return Sum(in_torch(module.body), module.shortcut and in_torch(module.shortcut))
    arguments = {
        "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride"),
        "BatchNorm2d": ("num_features",), "Linear": ("in_features", "out_features"),
        "MaxPool2d": ("kernel_size",), "AdaptiveAvgPool2d": ("output_size",),
    }.get(name, ())  # fmt: skip
    bias = {"bias": module.bias is not None} if name in ("Conv2d", "Linear") else {}
    layer = getattr(nn, name)(*(getattr(module, argument) for argument in arguments), **bias)
    layer.load_state_dict(
        {key: torch.from_numpy(array.copy()) for key, array in module.state_dict().items()}, assign=True
    )
    return layer


def step_of(network: Any, x: Any, y: Any, lr: float = 0.01, *, compiled: bool = False) -> Callable[[], float]:
    """Return a function that takes one step of training on a batch and returns the loss before it.

    With ``compiled``, ``torch.compile`` gets network and loss in one piece, and with them their backward passes.
    """
    loss_of, optimiser = nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)

    def forward() -> Any:
        return loss_of(network(x), y)

    if compiled:
        forward = torch.compile(forward)

    @torch.enable_grad()
    def step() -> float:
        optimiser.zero_grad()
        loss = forward()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    taken: Callable[[], float] = step
    return taken
