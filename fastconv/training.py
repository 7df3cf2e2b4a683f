"""Training a small network on labelled images: settings, epochs, checkpoints, and the folder that a run leaves behind.

A run is a function of its `Settings` and its data: the same seed gives the same bits, and a run that was stopped and
resumed gives the bits of one that was not, because a checkpoint holds all that the next epoch depends on (weights,
running means, the optimiser's and the schedule's state, the random generator's state).

A run folder holds

``checkpoint.npz``  all of that, written atomically after every epoch
``weights.npz``     the network's weights, for ``model.load_state_dict`` (`fastconv.nn.load`)
``history.json``    settings and figures of every epoch
``curves.png``      loss and accuracy against the epoch, where matplotlib is installed
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import archive, augment, checkpoint, data, models, nn
from fastconv.progress import Bar, compilation_notice, say

__all__ = ["RunError", "Settings", "Trainer", "default_settings", "run"]

Array = np.ndarray[Any, Any]

FORMAT = 1  # of checkpoint.npz; to be raised when its content changes
EVALUATION_BATCH = 512


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


class RunFolder:
    """The files of one run, in the hands of one process at a time.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    saved : int
        Number of epochs that the last checkpoint written here holds.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.npz"
        self.saved = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, keep other processes out of it while the block runs, and tidy up after a killed one.

        Raises
        ------
        RunError
            If another process is at work in the folder, or it is a file.
        OSError
            If the folder cannot be made.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is not a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(self.path)
        try:
            archive.remove_leftovers(self.path)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def refuse_another_run(self) -> None:
        """Raise a RunError if there is a checkpoint in the folder."""
        if self.checkpoint.exists():
            raise RunError(f"{self.path} holds a run already: --resume goes on with it, or choose another folder")

    def expect_a_run(self) -> None:
        """Raise a RunError if there is no checkpoint in the folder."""
        if not self.checkpoint.exists():
            raise RunError(f"{self.path} holds no checkpoint to resume from")

    def load(self) -> dict[str, Any]:
        """Read the checkpoint.

        Raises
        ------
        RunError
            If it cannot be read, is damaged, or of another version.
        """
        try:
            state = checkpoint.load(self.checkpoint)
        except checkpoint.CheckpointError as error:
            raise RunError(str(error)) from None
        if state.get("format") != FORMAT:
            raise RunError(f"{self.checkpoint} was written by another version of fastconv")
        return state

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint, and then what is for the user to read: weights and history."""
        checkpoint.save(self.checkpoint, trainer.state_dict())
        self.saved = trainer.epoch
        nn.save(trainer.model, self.path / "weights.npz")
        content = {"settings": asdict(trainer.settings), "data": repr(trainer.dataset), "epochs": trainer.history}
        with archive.atomic_file(self.path / "history.json") as stream:
            stream.write((json.dumps(content, indent=1) + "\n").encode())

    def draw(self, trainer: Trainer) -> bool:
        """Draw the curves; False where matplotlib is not installed."""
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator, PercentFormatter
        except ImportError:
            return False
        epochs = [entry["epoch"] for entry in trainer.history]
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        figure.suptitle(f"{trainer.settings.model} on {trainer.dataset.name}, seed {trainer.settings.seed}")
        left, right = figure.subplots(1, 2)
        for axes, name in ((left, "loss"), (right, "accuracy")):
            for part, style in (("train", "C0-"), ("test", "C1-")):
                values = [entry[f"{part}_{name}"] for entry in trainer.history]
                text = "training, as it learns" if part == "train" else f"test, {_percent_or_loss(name, values[-1])}"
                axes.plot(epochs, values, style, marker="." if len(epochs) <= 40 else "", label=text)
            axes.set(xlabel="epoch", title=name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.grid(alpha=0.3)
            axes.legend()
        left.set_yscale("log")
        right.yaxis.set_major_formatter(PercentFormatter(1))
        with archive.atomic_file(self.path / "curves.png") as stream:
            figure.savefig(stream, format="png", dpi=120)
        return True


def _percent_or_loss(name: str, value: float) -> str:
    return f"{value:.2%} at the end" if name == "accuracy" else f"{value:.4f} at the end"


def _lock(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process ends, however it ends."""
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunError(f"another process is at work in {folder}") from None
    except OSError:  # a file system without locks
        pass
    return descriptor


def _one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """Keep NumPy's matrix products to one thread, where threadpoolctl is installed (it comes with scikit-learn).

    The linear layers are small, and the BLAS library's threads, which go on spinning after each product, would take the
    cores from the kernels' threads: a step of lenet on digits took up to 40 times as long on two busy cores.
    """
    try:
        control = importlib.import_module("threadpoolctl")
    except ImportError:
        return contextlib.nullcontext()
    limits: contextlib.AbstractContextManager[object] = control.threadpool_limits(1, user_api="blas")
    return limits


def run(
    given: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    folder_class: type[RunFolder] = RunFolder,
    trainer_class: type[Trainer] = Trainer,
) -> Trainer:
    """Train, or go on training, and leave a run folder behind.

    Parameters
    ----------
    given : mapping
        Fields of `Settings`.  Those that are None or not there get defaults, or, with `resume`, the run's own values.
    folder : path
        The run folder.
    resume : bool
        Go on from the folder's checkpoint.
    folder_class, trainer_class : type
        Who keeps the folder, and who trains.

    Returns
    -------
    Trainer
        After its last epoch.

    Raises
    ------
    DataError
        If the data cannot be used.
    RunError
        If the folder holds a run already, or, with `resume`, none, or one that `given` contradicts.
    KeyboardInterrupt
        If the user interrupts, with a text that says how to go on.
    OSError
        If the folder cannot be written to.
    """
    place = folder_class(folder)
    given = {name: value for name, value in given.items() if value is not None}
    if resume:
        place.expect_a_run()
        with place.held():
            trainer = _resumed(place, given, trainer_class)
            say(f"resumed after epoch {trainer.epoch} of {trainer.settings.epochs}")
            return _finish(trainer, place)
    place.refuse_another_run()  # at once, and again when no other process can put one there
    dataset = data.load(given.get("data"))
    trainer = trainer_class(default_settings(dataset, given), dataset)
    with place.held():
        place.refuse_another_run()
        place.save(trainer)  # from here on the run can be resumed
        return _finish(trainer, place)


def _resumed(place: RunFolder, given: Mapping[str, Any], trainer_class: type[Trainer]) -> Trainer:
    """Make a trainer from a checkpoint, unless `given` contradicts it."""
    state = place.load()
    try:
        settings = Settings(**{field.name: state["settings"][field.name] for field in fields(Settings)})
        for name, value in given.items():
            if name != "data" and getattr(settings, name) != value:
                raise RunError(f"{place.path} is a run with {name} {getattr(settings, name)}, not {value}")
        dataset = data.load(given.get("data", settings.data))
        if dataset.fingerprint != state["data"]:
            raise RunError(f"{place.path} is a run on other data than {dataset.name} holds now")
        trainer = trainer_class(settings, dataset)
        trainer.load_state_dict(state)
    except (RunError, data.DataError):
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{place.checkpoint} does not fit this version of fastconv ({error})") from None
    place.saved = trainer.epoch
    return trainer


def _finish(trainer: Trainer, place: RunFolder) -> Trainer:
    """Train for the epochs that are left, with a checkpoint after each, and write what a finished run has."""
    total = trainer.settings.epochs
    try:
        say(f"{trainer.settings.model} on {trainer.dataset!r}; run folder {place.path}")
        if trainer.epoch < total:
            with _one_blas_thread():
                with compilation_notice():
                    trainer.rehearse()
                while trainer.epoch < total:
                    trainer.train_epoch()
                    place.save(trainer)
        else:
            say(f"the run is finished: all {total} epochs are done")
            place.save(trainer)
        if not place.draw(trainer):
            say("no curves.png, for matplotlib is not installed: pip install 'fastconv[train]'")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; epoch {place.saved} of {total} is saved: fastconv train --run {place.path} --resume goes on"
        ) from None
    return trainer
