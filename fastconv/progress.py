"""What a long command shows while it works: a notice while kernels compile, and a bar or a line an epoch.

Everything goes to standard error; on a terminal lines are redrawn, elsewhere each is written once.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from numba.core import event

__all__ = ["Bar", "compilation_notice", "say"]


def say(text: str) -> None:
    """Write a line to standard error."""
    print(text, file=sys.stderr, flush=True)


class _Notice(event.Listener):  # type: ignore[misc]
    """Says that kernels are being compiled, from the first one that the cache does not have."""

    TEXT = "compiling kernels for this machine (once; they are cached)"

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.start: float | None = None
        self.count = 0
        self._depth = 0
        self._done = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def on_start(self, event: Any) -> None:
        self._depth += 1
        if self._depth == 1:
            self.count += 1
        if self.start is None:
            self.start = time.perf_counter()
            if self.live:
                self._ticker.start()
            else:
                say(f"{self.TEXT} ...")

    def on_end(self, event: Any) -> None:
        self._depth -= 1

    def _tick(self) -> None:
        while not self._done.wait(0.2):
            elapsed = time.perf_counter() - (self.start or 0)
            print(f"\r{self.TEXT}: {self.count} so far, {elapsed:.0f} s ", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Say how many kernels were compiled in what time, if any were."""
        if self.start is None:
            return
        elapsed = time.perf_counter() - self.start
        if self.live:
            self._done.set()
            self._ticker.join()
            print("\r\x1b[K", end="", file=sys.stderr)
        say(f"compiled {self.count} kernels for this machine in {elapsed:.1f} s; they are cached for the next time")


@contextlib.contextmanager
def compilation_notice() -> Iterator[None]:
    """While the block runs, say so if kernels are being compiled (nothing when all come from the cache)."""
    notice = _Notice()
    with event.install_listener("numba:compile", notice):
        try:
            yield
        finally:
            notice.finish()


class Bar:
    """A progress bar, where tqdm is installed and standard error is a terminal; elsewhere, one line when it is done.

    Parameters
    ----------
    total : int
        Images in an epoch.
    label : str
        What stands in front.
    """

    def __init__(self, total: int, label: str) -> None:
        self.label = label
        self.figures = ""
        self._bar: Any = None
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self._bar = tqdm(total=total, desc=label, unit=" images", dynamic_ncols=True, file=sys.stderr)

    def update(self, images: int, figures: str) -> None:
        """Advance by a batch."""
        self.figures = figures
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(images)

    def finish(self, figures: str) -> None:
        """Show an epoch's final figures."""
        self.figures = figures
        if self._bar is None:
            say(f"{self.label}: {figures}")
        else:
            self._bar.set_postfix_str(figures)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
