"""Networks to take steps with, and who can take them: an entry of `MODELS` is all that another network needs.

A step is a forward pass, the loss, a backward pass and a step of SGD with momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .results import OURS

__all__ = ["COMPILED", "MODELS", "Model", "Step"]

Step = Callable[[], float]

COMPILED = "compile"
"""The contender that is PyTorch with ``torch.compile``."""


@dataclass(frozen=True)
class Model:
    """A network to train, and on what.

    Attributes
    ----------
    name : str
    batch, classes : int
    image : (int, int, int)
        Channels, height and width.
    steps : dict
        ``steps[contender](model, layout)`` returns a function that takes a step and returns the loss before it: the same
        network with the same weights on the same images, whoever it is and however they lie in memory.
    seed : int
        Of the weights and the images.
    dtype : str
        Of the weights and the images: float32 or, for networks of `fastconv.models`, float64.
    """

    name: str
    batch: int
    image: tuple[int, int, int]
    classes: int
    steps: Mapping[str, Callable[[Model, str], Step]]
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"

    def __str__(self) -> str:
        return f"{self.name} {' x '.join(map(str, (self.batch, *self.image)))}"


def _of_pytorch(model: Model) -> tuple[Any, Any, Any]:
    """Return a network of `fastconv.bench.networks`, images and classes."""
    import torch

    from .networks import NETWORKS

    torch.manual_seed(model.seed)
    network = NETWORKS[model.name](model.classes)
    return network, torch.randn(model.batch, *model.image), torch.randint(model.classes, (model.batch,))


def _of_layers(model: Model) -> tuple[Any, Any, Any]:
    """Return a network of `fastconv.models`, images and classes."""
    from .. import models

    rng = np.random.default_rng(model.seed)
    network = getattr(models, model.name)(model.image, model.classes, dtype=model.dtype, rng=model.seed)
    return (
        network,
        rng.standard_normal((model.batch, *model.image), model.dtype),
        rng.integers(model.classes, size=model.batch),
    )


def _translated(model: Model) -> tuple[Any, Any, Any]:
    """Return the same network in PyTorch, with the same weights."""
    import torch

    from .networks import in_torch

    network, x, y = _of_layers(model)
    return in_torch(network), torch.from_numpy(x), torch.from_numpy(y)


def _in_pytorch(made: Callable[[Model], tuple[Any, Any, Any]], compiled: bool = False) -> Callable[[Model, str], Step]:
    """Return who takes steps in PyTorch; with channels-last images weights lie so, too."""

    def step_in(model: Model, layout: str) -> Step:
        import torch

        from .networks import step_of

        network, x, y = made(model)
        if layout == "channels_last":
            network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        return step_of(network, x, y, compiled=compiled)

    return step_in


def _converted(model: Model, layout: str) -> Step:
    """Step of a network of PyTorch by fastconv, which takes weights as they are."""
    import torch

    import fastconv.torch

    from .networks import step_of

    network, x, y = _of_pytorch(model)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    return step_of(fastconv.torch.convert(network), x, y)


def _in_layers(model: Model, layout: str) -> Step:
    """Step of a network of `fastconv.nn`, whose layers lay out activations as they like."""
    from .. import nn

    network, x, y = _of_layers(model)
    if layout == "channels_last":
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    loss_of, optimiser = nn.CrossEntropyLoss(), nn.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step() -> float:
        network.zero_grad()
        loss = loss_of(network(x), y)
        network.backward(loss_of.backward())
        optimiser.step()
        return loss

    return step


OF_LAYERS = {OURS: _in_layers, "torch": _in_pytorch(_translated), COMPILED: _in_pytorch(_translated, compiled=True)}
UNDER_PYTORCH = {OURS: _converted, "torch": _in_pytorch(_of_pytorch), COMPILED: _in_pytorch(_of_pytorch, compiled=True)}

MODELS = {
    model.name: model
    for model in (
        Model("lenet", 128, (1, 28, 28), 10, OF_LAYERS),
        Model("resnet8", 64, (3, 32, 32), 10, OF_LAYERS),
        Model("vgg11", 64, (3, 32, 32), 10, OF_LAYERS),
        Model("resnet18", 64, (3, 64, 64), 10, UNDER_PYTORCH),
        Model("mobilenet_v2", 32, (3, 96, 96), 10, UNDER_PYTORCH),
        Model("convnext", 16, (3, 64, 64), 10, UNDER_PYTORCH),
    )
}
