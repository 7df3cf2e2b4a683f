"""The folder that a run leaves behind: its checkpoint, and what is for the user to read."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastconv import archive, checkpoint, nn

from .profile import Profile
from .settings import RunError
from .trainer import FORMAT, Trainer

__all__ = ["RunFolder"]


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
        self.write("history.json", json.dumps(content, indent=1) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        with archive.atomic_file(self.path / name) as stream:
            stream.write(text.encode())

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

    def draw_profile(self, profile: Profile) -> bool:
        """Draw where a step's time went; False where matplotlib is not installed."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return False
        rows = profile.rows()
        names = [f"{row.name} {row.kind}".strip() for row in rows]
        figure = Figure(figsize=(8, 1.2 + 0.25 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.barh(names, [row.forward for row in rows], color="C0", label="forward")
        axes.barh(
            names, [row.backward for row in rows], left=[row.forward for row in rows], color="C1", label="backward"
        )
        axes.invert_yaxis()
        axes.set(xlabel="ms of a step", title=f"{profile.milliseconds:.2f} ms a step, mean of {profile.steps}")
        axes.grid(axis="x", alpha=0.3)
        axes.legend()
        with archive.atomic_file(self.path / "profile.png") as stream:
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
