"""Where the time of a step of training goes: layer by layer, forward and backward."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastconv import nn

from .trainer import Trainer

__all__ = ["Profile", "Row"]

PASS = re.compile("_?(?:fused_)?(forward|backward)")
"""How the methods begin that compute a module's passes, fused or not."""


@dataclass
class Row:
    """Time of one part of a step.

    Attributes
    ----------
    name : str
        Path of the module, as in its parameters' names.
    kind : str
        Its class, or what else is done.
    forward, backward : float
        Milliseconds of a step, without the modules inside.
    """

    name: str
    kind: str
    forward: float = 0.0
    backward: float = 0.0


class Profile:
    """The time that each part of a trainer's steps takes by itself: all parts together take what the steps take.

    What layers compute in one go counts for the one that computes it.

    Attributes
    ----------
    steps : int
        Watched so far.

    Examples
    --------
    >>> from fastconv import data, training
    >>> trainer = training.Trainer(training.Settings(epochs=1, batch_size=128), data.load(None))
    >>> profile = training.Profile()
    >>> with profile.watch(trainer):
    ...     figures = trainer.train_epoch()
    >>> profile.steps == trainer.steps
    True
    >>> profile.rows()[0].name, profile.rows()[0].kind
    ('1', 'Conv2d')
    """

    def __init__(self) -> None:
        self.steps = 0
        self._rows: list[Row] = []
        self._inner: list[float] = []

    @contextlib.contextmanager
    def watch(self, trainer: Trainer) -> Iterator[None]:
        """Time the steps that the trainer takes while the block runs."""
        watched: list[tuple[Any, str]] = []

        def time_calls(owner: Any, method: str, row: Row, kind: str, outermost: bool = False) -> None:
            setattr(owner, method, self._timed(getattr(owner, method), row, kind, outermost))
            watched.append((owner, method))

        for path, module in _named_modules(trainer.model):
            row = self._row(path, type(module).__name__)
            for method in dir(type(module)):
                if (match := PASS.match(method)) is not None:
                    time_calls(module, method, row, match[1])
        loss = self._row("", type(trainer.loss).__name__)
        given, trainer.loss = trainer.loss, _Loss(self._timed(trainer.loss, loss, "forward"), trainer.loss)  # type: ignore[assignment]
        time_calls(trainer.loss, "backward", loss, "backward")
        time_calls(trainer.optimiser, "step", self._row("", type(trainer.optimiser).__name__), "backward")
        time_calls(trainer, "_augmented", self._row("", "images, changed"), "forward", outermost=True)
        time_calls(trainer, "_step", self._row("", "all else"), "forward", outermost=True)
        try:
            yield
        finally:
            for owner, method in watched:
                delattr(owner, method)
            trainer.loss = given

    def _row(self, name: str, kind: str) -> Row:
        self._rows.append(Row(name, kind))
        return self._rows[-1]

    def _timed(self, method: Callable[..., Any], row: Row, kind: str, outermost: bool = False) -> Callable[..., Any]:
        """Let calls add to a row what they take without timed calls inside; those outside of a step do not count."""

        def timed(*arguments: Any, **options: Any) -> Any:
            if not (outermost or self._inner):
                return method(*arguments, **options)
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                elapsed = time.perf_counter() - start
                setattr(row, kind, getattr(row, kind) + elapsed - self._inner.pop())
                if self._inner:
                    self._inner[-1] += elapsed
                elif row is self._rows[-1]:
                    self.steps += 1

        return timed

    def rows(self) -> list[Row]:
        """Milliseconds of a step of all parts that took any."""
        scale = 1000 / max(1, self.steps)
        rows = (Row(row.name, row.kind, row.forward * scale, row.backward * scale) for row in self._rows)
        return [row for row in rows if row.forward + row.backward > 0]

    @property
    def milliseconds(self) -> float:
        """Of a step."""
        return sum(row.forward + row.backward for row in self.rows())

    def table(self) -> str:
        """Return the parts as text, one a line."""
        lines = [f"{'':<18}{'':<20}{'forward, ms':>12}{'backward, ms':>14}{'share':>8}"]
        for row in self.rows():
            share = (row.forward + row.backward) / self.milliseconds
            lines.append(f"{row.name:<18}{row.kind:<20}{row.forward:>12.3f}{row.backward:>14.3f}{share:>8.1%}")
        return "\n".join([*lines, f"a step takes {self.milliseconds:.2f} ms, mean of {self.steps}"])


class _Loss:
    """Stands for a loss whose calls are timed."""

    def __init__(self, call: Callable[..., Any], loss: Any) -> None:
        self._call, self._loss = call, loss

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def backward(self) -> Any:
        return self._loss.backward()


def _named_modules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.children().items():
        yield from _named_modules(child, f"{path}.{name}" if path else name)
    yield path, module
