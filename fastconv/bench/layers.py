"""Which layers are timed: those of the suites, or of a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..suites import SUITES, TRAINED, Layer

__all__ = ["BenchError", "chosen", "layer_of", "read_shapes"]


PAIRS = ("kernel", "padding")
"""Fields that may have one number for rows and another for columns."""


class BenchError(ValueError):
    """Something that a benchmark cannot go on with; its text is one line for whoever started it."""


def chosen(suites: Sequence[str], shapes: str | None, limit: int | None) -> list[tuple[str, Layer]]:
    """List the layers to time, each with the name of its suite.

    Parameters
    ----------
    suites : sequence of str
        Names of `fastconv.suites.SUITES`; if empty, and without ``shapes``, those of `TRAINED`.
    shapes : str or None
        A JSON file of layers, which make a suite with the file's name.
    limit : int or None
        How many of each suite to take, the first ones; None takes all.

    Raises
    ------
    BenchError
        If a suite is unknown or the file cannot be used.

    Examples
    --------
    >>> [(suite, layer.name) for suite, layer in chosen(["resnet50"], None, 1)]
    [('resnet50', '4x 3->64@224 7x7/2')]
    """
    lists: dict[str, Sequence[Layer]] = {}
    for name in dict.fromkeys(suites or ([] if shapes else TRAINED)):
        if name not in SUITES:
            raise BenchError(f"there is no suite {name!r}: expected one of {', '.join(SUITES)}")
        lists[name] = SUITES[name]
    if shapes is not None:
        lists[Path(shapes).stem] = read_shapes(shapes)
    return [(suite, layer) for suite, layers in lists.items() for layer in layers[:limit]]


def read_shapes(path: str) -> list[Layer]:
    """Read layers from a JSON file: a list of objects with the fields of `fastconv.suites.Layer`.

    Raises
    ------
    BenchError
        If the file holds anything else, or a layer that cannot be.
    OSError
        If it cannot be read.
    """
    try:
        values = json.loads(Path(path).read_bytes())
    except ValueError as error:  # neither text nor JSON
        raise BenchError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, list) or not values:
        raise BenchError(f"{path} holds {_kind(values)}: expected a list of layers")
    return [layer_of(value, f"{path}, layer {number}") for number, value in enumerate(values, 1)]


def layer_of(value: Any, place: str) -> Layer:
    """Make a layer of what a JSON file holds.

    Raises
    ------
    BenchError
        If it is none; the text begins with ``place``.
    """
    fields = dataclasses.fields(Layer)
    names = [field.name for field in fields]
    if not isinstance(value, dict):
        raise BenchError(f"{place} is {_kind(value)}: expected an object with {', '.join(names)}")
    if unknown := [name for name in value if name not in names]:
        raise BenchError(f"{place} has a field {unknown[0]!r}: expected {', '.join(names)}")
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in value]:
        raise BenchError(f"{place} has no field {missing[0]!r}: expected at least {', '.join(needed)}")
    for name, number in value.items():
        least = 0 if name == "padding" else 1
        pair = name in PAIRS and isinstance(number, list) and len(number) == 2
        if any(type(n) is not int or n < least for n in (number if pair else [number])):
            or_two = ", or two of them" if name in PAIRS else ""
            raise BenchError(f"{place}: {name} is {number!r}: expected a whole number of at least {least}{or_two}")
    described: dict[str, Any] = {name: tuple(n) if isinstance(n, list) else n for name, n in value.items()}
    layer = Layer(**described)
    for name in ("channels", "filters"):
        if value[name] % layer.groups:
            raise BenchError(
                f"{place}: {name} is {value[name]}: expected a multiple of groups, which is {layer.groups}"
            )
    try:
        _ = layer.geometry
    except ValueError as error:
        raise BenchError(f"{place}: {error}") from None
    return layer


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an empty list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
