"""Checkpoints: a nested state of plain values and arrays in one ``.npz``, written atomically, read without trust."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastconv import archive

__all__ = ["CheckpointError", "load", "save"]

TREE = "state"  # the archive's member that holds the nesting, as JSON


class CheckpointError(ValueError):
    """A file is not a checkpoint, or is damaged or of another version."""


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a nested state, so that `path` holds either the old state or the new one, whenever the process dies.

    Parameters
    ----------
    path : path
    state : mapping
        Mappings (with keys of text or integers), lists, tuples, text, numbers, None, and NumPy arrays and scalars.

    Raises
    ------
    TypeError
        When the state holds anything else.
    OSError
        When the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/c.npz", {"step": 3, "momentum": {0: np.zeros(2)}})
    ...     load(f"{folder}/c.npz")
    {'step': 3, 'momentum': {0: array([0., 0.])}}
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    tree = json.dumps(_pack(state, "", arrays))
    archive.write(path, {TREE: np.array(tree), **arrays})


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save` has written: equal values of the same types, arrays with the same bits.

    Raises
    ------
    CheckpointError
        In one line, naming the file, when it is no checkpoint.
    """
    try:
        arrays = archive.read(path)
    except archive.ArchiveError as error:
        raise CheckpointError(str(error)) from None
    try:
        state = _unpack(json.loads(str(arrays[TREE][()])), arrays)
    except (KeyError, ValueError, TypeError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: an archive, but not a checkpoint of fastconv")
    return state


def _pack(value: Any, path: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """Turn a value into JSON; arrays go to `arrays`, under the path that leads to them."""
    if isinstance(value, np.ndarray | np.generic):
        name = f"{TREE}{path}"
        while name == TREE or name in arrays:  # keys 0 and "0", or "a/b" and "a" with "b" in it
            name += "'"
        arrays[name] = np.asarray(value)
        return {"array" if isinstance(value, np.ndarray) else "scalar": name}
    if isinstance(value, Mapping):
        if not all(type(key) in (str, int) for key in value):
            raise TypeError(f"{path or 'the state'} has keys that are neither text nor integers")
        return {"dict": [[key, _pack(item, f"{path}/{key}", arrays)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}: a checkpoint holds plain values and arrays")


def _unpack(value: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content]
    if kind == "scalar":
        return arrays[content][()]
    if kind == "tuple":
        return tuple(_unpack(item, arrays) for item in content)
    if kind == "dict":
        return {key: _unpack(item, arrays) for key, item in content}
    raise ValueError(kind)
