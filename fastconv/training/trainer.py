"""A network, its optimiser and its data, moved on epoch by epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fastconv import augment, data, models, nn
from fastconv.progress import Bar

from .settings import RunError, Settings

__all__ = ["FORMAT", "Trainer"]

Array = np.ndarray[Any, Any]

FORMAT = 1
"""Of checkpoints; to be raised when their content changes."""

EVALUATION_BATCH = 512


class Trainer:
    """A network, its optimiser and its data, moved on epoch by epoch.

    Parameters
    ----------
    settings : Settings
    dataset : Dataset

    Attributes
    ----------
    model : nn.Sequential
    epoch : int
        Epochs done.
    history : list of dict
        Figures of each of them.

    Raises
    ------
    RunError
        If the images do not suit the model.
    """

    def __init__(self, settings: Settings, dataset: data.Dataset) -> None:
        self.settings = settings
        self.dataset = dataset
        self.steps = math.ceil(len(dataset.x_train) / settings.batch_size)
        self.model = self._build()
        self.loss = nn.CrossEntropyLoss()
        self.optimiser = self._optimiser(self.model)
        self.schedule = nn.CosineAnnealingLR(self.optimiser, settings.epochs * self.steps)
        self.generator = np.random.default_rng([settings.seed, 1])
        self.epoch = 0
        self.history: list[dict[str, Any]] = []

    def _build(self) -> nn.Sequential:
        random = np.random.default_rng([self.settings.seed, 0])
        try:
            return models.build(self.settings.model, self.dataset.image_shape, self.dataset.classes, rng=random)
        except ValueError as error:
            raise RunError(str(error)) from None

    def _optimiser(self, model: nn.Sequential) -> nn.SGD:
        s = self.settings
        return nn.SGD(model.parameters(), lr=s.lr, momentum=s.momentum, nesterov=True, weight_decay=s.weight_decay)

    def rehearse(self) -> None:
        """Run one step and one evaluation on a copy that is thrown away: afterwards every kernel is compiled.

        Raises
        ------
        RunError
            If the model cannot be trained on batches of this shape.
        """
        model, loss = self._build(), nn.CrossEntropyLoss()
        optimiser = self._optimiser(model)
        size = math.ceil(len(self.dataset.x_train) / self.steps)
        x, y = self.dataset.x_train[:size], self.dataset.y_train[:size]
        try:
            for count in sorted({len(self.dataset.x_train) // self.steps, size}):
                model.zero_grad()
                loss(model(x[:count]), y[:count])
                model.backward(loss.backward())
                optimiser.step()
            model.eval()
            model(self.dataset.x_test[:EVALUATION_BATCH])
        except ValueError as error:
            c, h, w = self.dataset.image_shape
            shape = f"batches of {size} images of {c} x {h} x {w}"
            raise RunError(f"{self.settings.model} cannot be trained on {shape}: {error}") from None

    def train_epoch(self) -> dict[str, Any]:
        """Train on every image once, then test; returns the epoch's figures, which also join the history.

        Raises
        ------
        RunError
            If the loss stops being a number.  The trainer is then of no more use.
        """
        start, lr = time.perf_counter(), float(self.optimiser.lr)
        count, total, right = 0, 0.0, 0
        order = self.generator.permutation(len(self.dataset.x_train))
        label = f"epoch {self.epoch + 1}/{self.settings.epochs}"
        self.model.train()
        with Bar(len(order), label) as bar:
            for chosen in np.array_split(order, self.steps):
                loss, hits = self._step(self._augmented(self.dataset.x_train[chosen]), self.dataset.y_train[chosen])
                count, total, right = count + len(chosen), total + loss * len(chosen), right + hits
                bar.update(len(chosen), f"loss {total / count:.4f}, accuracy {right / count:.2%}")
            seconds = time.perf_counter() - start
            test_loss, test_right = self.evaluate(self.dataset.x_test, self.dataset.y_test)
            if not math.isfinite(test_loss):
                raise self._diverged()
            self.epoch += 1
            figures: dict[str, Any] = {
                "epoch": self.epoch,
                "lr": lr,
                "train_loss": total / count,
                "train_accuracy": right / count,
                "test_loss": test_loss,
                "test_accuracy": test_right / len(self.dataset.y_test),
                "test_right": test_right,
                "seconds": round(seconds, 3),
                "images_per_second": round(count / seconds, 1),
            }
            bar.finish(
                f"loss {total / count:.4f}, accuracy {right / count:.2%}, "
                f"test accuracy {figures['test_accuracy']:.2%}, {count / seconds:.0f} images/s"
            )
        self.history.append(figures)
        return figures

    def _step(self, x: Array, y: Array) -> tuple[float, int]:
        """One step of the optimiser and of the schedule; returns the batch's loss and its number of right answers."""
        with np.errstate(over="ignore", invalid="ignore"):  # a loss that runs away is reported below
            self.model.zero_grad()
            scores = self.model(x)
            loss = float(self.loss(scores, y))
            if not math.isfinite(loss):
                raise self._diverged()
            self.model.backward(self.loss.backward())
            self.optimiser.step()
        self.schedule.step()
        return loss, int((scores.argmax(1) == y).sum())

    def _diverged(self) -> RunError:
        lr = self.settings.lr
        return RunError(f"the loss is no longer finite in epoch {self.epoch + 1}: try a smaller --lr than {lr:g}")

    def _augmented(self, x: Array) -> Array:
        black = -self.dataset.mean / self.dataset.std
        x = augment.augment(self.settings.augment, x, black, self.generator)
        return augment.mirror(x, self.generator) if self.settings.mirror else x

    def evaluate(self, x: Array, y: Array) -> tuple[float, int]:
        """Mean loss over images, and how many the model gets right.

        Parameters
        ----------
        x : ndarray of shape (N, C, H, W), float32
        y : ndarray of shape (N,), int64
        """
        self.model.eval()
        loss, total, right = nn.CrossEntropyLoss(), 0.0, 0
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(x), EVALUATION_BATCH):
                part = slice(start, start + EVALUATION_BATCH)
                scores = self.model(x[part])
                total += float(loss(scores, y[part])) * len(scores)
                right += int((scores.argmax(1) == y[part]).sum())
        return total / len(x), right

    def state_dict(self) -> dict[str, Any]:
        """All that a later `Trainer` needs to go on as if it were this one."""
        return {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "data": self.dataset.fingerprint,
            "epoch": self.epoch,
            "history": self.history,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of another trainer with the same settings and data.

        Raises
        ------
        KeyError, TypeError, ValueError
            If the state does not fit.
        """
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.bit_generator.state = state["generator"]
        self.epoch, self.history = int(state["epoch"]), list(state["history"])
