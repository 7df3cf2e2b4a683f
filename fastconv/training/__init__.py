"""Training a small network on labelled images: settings, epochs, checkpoints, and the folder that a run leaves behind.

A run is a function of its `Settings` and its data: the same seed gives the same bits, and a run that was stopped and
resumed gives the bits of one that was not, because a checkpoint holds all that the next epoch depends on (weights,
running means, the optimiser's and the schedule's state, the random generator's state).

A run folder holds

``checkpoint.npz``  all of that, written atomically after every epoch
``weights.npz``     the network's weights, for ``model.load_state_dict`` (`fastconv.nn.load`)
``history.json``    settings and figures of every epoch
``curves.png``      loss and accuracy against the epoch, where matplotlib is installed
``profile.txt``     where the time of a step went, layer by layer, and as ``profile.png``, if that was asked for
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fastconv import data
from fastconv.progress import compilation_notice, say

from .folder import RunFolder
from .profile import Profile
from .settings import RunError, Settings, default_settings
from .trainer import Trainer

__all__ = ["Profile", "RunError", "RunFolder", "Settings", "Trainer", "default_settings", "run"]


def run(
    given: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    profile: bool = False,
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
    profile : bool
        Find out where the time of a step goes, layer by layer; see `Profile`.
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
            return _finish(trainer, place, Profile() if profile else None)
    place.refuse_another_run()  # at once, and again when no other process can put one there
    dataset = data.load(given.get("data"))
    trainer = trainer_class(default_settings(dataset, given), dataset)
    with place.held():
        place.refuse_another_run()
        place.save(trainer)  # from here on the run can be resumed
        return _finish(trainer, place, Profile() if profile else None)


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


def _finish(trainer: Trainer, place: RunFolder, profile: Profile | None) -> Trainer:
    """Train for the epochs that are left, with a checkpoint after each, and write what a finished run has."""
    total = trainer.settings.epochs
    try:
        say(f"{trainer.settings.model} on {trainer.dataset!r}; run folder {place.path}")
        if trainer.epoch < total:
            with compilation_notice():
                trainer.rehearse()
            with contextlib.nullcontext() if profile is None else profile.watch(trainer):
                while trainer.epoch < total:
                    trainer.train_epoch()
                    place.save(trainer)
        else:
            say(f"the run is finished: all {total} epochs are done")
            place.save(trainer)
        missing = [] if place.draw(trainer) else ["curves.png"]
        if profile is not None and profile.steps:
            place.write("profile.txt", profile.table() + "\n")
            missing += [] if place.draw_profile(profile) else ["profile.png"]
            say(profile.table())
        if missing:
            say(f"no {' and '.join(missing)}, for matplotlib is not installed: pip install 'fastconv[train]'")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; epoch {place.saved} of {total} is saved: fastconv train --run {place.path} --resume goes on"
        ) from None
    return trainer
