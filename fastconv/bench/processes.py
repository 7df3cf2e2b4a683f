"""Worker processes, of which at most one runs at a time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

from .layers import BenchError

__all__ = ["Worker"]

THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Worker:
    """A process that loads one library and answers requests.

    It is stopped by a signal except while it works on a request: threads that spin while they wait for work, as those of
    OpenMP do, would take time from whoever is timed.  It is in a process group of its own, so that Ctrl-C reaches only the
    process that started it, which then kills it.

    Parameters
    ----------
    name : str
        One of `fastconv.bench.contenders.CONTENDERS`.
    threads : int
        For the library to use.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        # It lives as long as the worker, so no with-block.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastconv.bench.worker", name, str(threads), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))},
            process_group=0,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Let the process work on one request, and return its answer.

        Raises
        ------
        BenchError
            If it could not do that, or died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.send_signal(signal.SIGCONT)
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchError(self._obituary(do))
        self._process.send_signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BenchError(f"{self.name} could not {do}: {reply['error']}")
        return reply

    def _obituary(self, do: str) -> str:
        status = self._process.wait()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
        return f"the worker process of {self.name} died ({how}) when asked to {do}{last}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
