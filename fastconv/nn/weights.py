"""Weights to and from files: ``.npz``, and with the extra ``.safetensors``, which PyTorch reads and writes too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .. import archive
from .checks import as_array
from .module import Module, StateDict

__all__ = ["load", "save"]

SUFFIXES = (".npz", ".safetensors")


def save(model: Module | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the state of a model to a file, whole or not at all.

    Parameters
    ----------
    model : Module or mapping of str to ndarray
        A model, or what its ``state_dict()`` returned.
    path : path
        Ends in ``.npz`` or ``.safetensors``; an existing file is replaced in one step.

    Raises
    ------
    ImportError
        For ``.safetensors`` without the package safetensors.
    OSError
        If the file cannot be written; an existing one is then untouched.
    TypeError, ValueError
        If model is neither, an array is not numeric, or path ends in something else.

    Examples
    --------
    >>> import tempfile
    >>> from fastconv import nn
    >>> model = nn.Sequential(nn.Linear(2, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nn.save(model, folder + "/weights.npz")
    ...     model.load_state_dict(nn.load(folder + "/weights.npz"))
    IncompatibleKeys(missing=[], unexpected=[])
    """
    suffix = _suffix(path)
    if not isinstance(model, (Module, Mapping)):
        raise TypeError(f"model is of type {type(model).__name__}: expected an nn.Module or a mapping of arrays")
    state = model.state_dict() if isinstance(model, Module) else model
    arrays: StateDict = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise TypeError(f"the name {name!r} is of type {type(name).__name__}: expected a str")
        arrays[name] = np.array(as_array(name, value), order="C")
        if arrays[name].dtype.kind not in "biuf":
            raise TypeError(f"{name} has dtype {arrays[name].dtype}: expected numbers")
    if suffix == ".npz":
        archive.write(path, arrays)
        return
    data = _safetensors().save(arrays)
    with archive.atomic_file(path) as stream:
        stream.write(data)


def load(path: str | os.PathLike[str]) -> StateDict:
    """Read the state of a model from a file; nothing in it is ever executed.

    Parameters
    ----------
    path : path
        Ends in ``.npz`` or ``.safetensors``.  A safetensors file may come from PyTorch.

    Returns
    -------
    dict of str to ndarray
        For `Module.load_state_dict`.

    Raises
    ------
    ImportError
        For ``.safetensors`` without the package safetensors.
    ValueError
        If the file does not exist or is damaged, or path ends in something else.
    """
    if _suffix(path) == ".npz":
        return archive.read(path)
    safetensors = _safetensors()
    if not Path(path).is_file():  # a pipe would never end
        raise ValueError(f"{path}: no such file")
    try:
        arrays = dict(safetensors.load_file(os.fspath(path)))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # the package raises a type of its own for a damaged file, others for unknown dtypes
        raise ValueError(
            f"{path}: damaged, or not a safetensors file that NumPy can hold ({' '.join(str(error).split())})"
        ) from None
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":  # a package beside NumPy may have taught it others
            raise ValueError(f"{path}: {name} has dtype {array.dtype}: expected one that NumPy can hold by itself")
    return arrays


def _suffix(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"path is {os.fspath(path)!r}: expected a name ending in {' or '.join(SUFFIXES)}")
    return suffix


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            ".safetensors files need the package safetensors: pip install 'fastconv[safetensors]', or use .npz"
        ) from None
    module: ModuleType = safetensors.numpy
    return module
