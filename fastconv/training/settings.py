"""What a run depends on, and the error that all of training raises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastconv import augment, data, models

__all__ = ["RunError", "Settings", "default_settings"]


class RunError(ValueError):
    """A run that cannot start, go on or be resumed, and why, in one line."""


@dataclass(frozen=True)
class Settings:
    """All that a run depends on, but for its data.

    Attributes
    ----------
    model : str
        Name of one of `fastconv.models.MODELS`.
    data : str or None
        Where the images come from; None for scikit-learn's digits.
    epochs, batch_size : int
        An epoch's images are dealt into as few batches as that size allows, equal but for one image.
    lr : float
        First learning rate of SGD with Nesterov momentum; it falls to 0 along a cosine, batch by batch.
    momentum, weight_decay : float
    augment : str
        How images change each time they are used for training: one of `fastconv.augment.AUGMENTATIONS`.
    mirror : bool
        Whether left and right then also change places, for every other image on average.
    seed : int
        Of the initial weights, the order of the images, and their augmentation.

    Raises
    ------
    RunError
        If one of them is out of its range.
    """

    model: str = "lenet"
    data: str | None = None
    epochs: int = 30
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: str = "warp"
    mirror: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in models.MODELS:
            raise RunError(f"model is {self.model!r}: expected one of {', '.join(models.MODELS)}")
        if self.augment not in augment.AUGMENTATIONS:
            raise RunError(f"augment is {self.augment!r}: expected one of {', '.join(augment.AUGMENTATIONS)}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise RunError(f"{name} is {value!r}: expected an integer of at least {least}")
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise RunError(f"{name} is {value!r}: expected a number of at least 0")


def default_settings(dataset: data.Dataset, given: Mapping[str, Any]) -> Settings:
    """Complete settings for a dataset.

    Parameters
    ----------
    dataset : Dataset
    given : mapping
        Fields of `Settings`; those that are None or not there get defaults: fewer epochs, larger batches and cheaper
        augmentation where there are 10,000 images or more, and mirroring where the dataset allows it.
    """
    many = len(dataset.x_train) >= 10_000
    defaults = {
        "epochs": 10 if many else 30,
        "batch_size": 128 if many else 32,
        "augment": "shift" if many else "warp",
        "mirror": dataset.mirror,
    }
    return Settings(**(defaults | {name: value for name, value in given.items() if value is not None}))
