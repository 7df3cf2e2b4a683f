"""``fastconv bench``: fastconv beside its peers, layer by layer and pass by pass.

==============  =====================================================================================================
`layers`        which layers: a suite of `fastconv.suites`, or a JSON file
`contenders`    who is timed, and on what arrays
`machine`       what the machine could do at best
`worker`        the loop of a worker process, which holds one contender
`processes`     starting, asking and ending worker processes, one of which runs at a time
`measure`       the schedule: contenders in turn (A B A B), and the machine's limits in the same turns
`models`        whole networks instead of layers: times, losses, memory; `networks` has some in PyTorch
`steps`         who can take a step of which network
`memory`        how much memory steps take
`startup`       from the start of a process to its first step
`overhead`      what a call costs beside its arithmetic
`errors`        how far results are from those in double precision
`results`       what was measured, its ratios and means, as a JSON file
`table`, `plot` tables for a terminal and a README, and the roofline
==============  =====================================================================================================

Only the best time of several rounds counts: what disturbs a timing makes it longer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from .layers import BenchError
from .models import MODELS, ModelReport
from .results import OURS, Report
from .table import insert, markdown, text

__all__ = ["MODELS", "BenchError", "publish", "run", "run_models", "text"]


def run(
    *,
    suites: Sequence[str] = (),
    shapes: str | None = None,
    passes: Sequence[str] = ("fwd", "dx", "dw"),
    peers: Sequence[str] = (),
    dtype: str = "float32",
    threads: int | None = None,
    rounds: int = 5,
    ways: Sequence[str] = ("nchw", "best"),
    limit: int | None = None,
    output: str | None = None,
    plot: str | None = None,
) -> Report:
    """Run a benchmark, show its progress on standard error, and write what is asked for.

    Parameters
    ----------
    suites : sequence of str
        Names of `fastconv.suites.SUITES`; if empty, and without ``shapes``, those of `TRAINED`.
    shapes : str or None
        A JSON file of layers: a list of objects with the fields of `fastconv.suites.Layer`.
    passes : sequence of str
        Of "fwd", "dx", "dw" and "prepared".
    peers : sequence of str
        Of "torch", "compile" (with `run_models`), "jax", "ncnn", "direct" (fastconv with direct sums only) and
        "serial" (fastconv on one thread).
    dtype : {"float32", "float64"}
        Of all arrays.
    threads : int or None
        For every library; None takes all.
    rounds : int
        Turns of every contender; the best counts.
    ways : sequence of str
        "nchw": all with NCHW arrays; "best": each with the layout in which it is fastest.
    limit : int or None
        How many layers of each suite to time; None times all.
    output, plot : str or None
        Files for the results (JSON; it is written anew after each layer) and the roofline (PNG).

    Returns
    -------
    Report
        What was measured.

    Raises
    ------
    BenchError
        If an argument cannot be used, or a worker process fails.
    OSError
        If a file cannot be read or written.
    """
    from . import measure
    from .layers import chosen

    layers = chosen(suites, shapes, limit)
    threads = _threads(threads)
    _check_files({"--output": output, "--plot": plot})
    if plot is not None and find_spec("matplotlib") is None:
        raise BenchError("--plot needs matplotlib: pip install 'fastconv[train]'")
    with contextlib.ExitStack() as stack:
        workers, report = measure.start(
            stack, peers, dtype, threads, rounds, [w for w in ("nchw", "best") if w in ways]
        )
        progress = stack.enter_context(measure.Progress(len(layers)))
        for suite, layer in layers:
            progress.begin(suite, layer)
            before = len(report.timings)
            measure.measure(workers, report, suite, layer, passes)
            progress.end(suite, layer, report.timings[before:])
            if output is not None:
                report.save(output)
    if plot is not None:
        from .plot import draw

        draw(report, plot)
    return report


def run_models(
    names: Sequence[str],
    *,
    peers: Sequence[str] = (),
    threads: int | None = None,
    rounds: int = 5,
    ways: Sequence[str] = ("nchw", "best"),
    output: str | None = None,
) -> ModelReport:
    """Time steps of training whole networks, and show progress on standard error.

    Parameters
    ----------
    names : sequence of str
        Of `MODELS`.
    peers : sequence of str
        Of "torch" and "compile".
    threads, rounds, ways, output
        As in `run`.

    Returns
    -------
    ModelReport
        What was measured.

    Raises
    ------
    BenchError, OSError
        As `run`.
    """
    from . import models

    able = [name for name in MODELS[models.FIRST_STEP].steps if name != OURS]
    for peer in peers:
        if peer not in able:
            raise BenchError(f"--peers has {peer}, which trains no networks: expected {' or '.join(able)}")
    _check_files({"--output": output})
    return models.run(names, peers, _threads(threads), rounds, [w for w in ("nchw", "best") if w in ways], output)


def _threads(threads: int | None) -> int:
    import numba

    available: int = numba.config.NUMBA_NUM_THREADS
    if threads is not None and threads > available:
        raise BenchError(f"--threads is {threads}: this process may use {available}")
    return threads or available


def _check_files(files: Mapping[str, str | None]) -> None:
    for option, path in files.items():
        if path is not None and not os.access(Path(path).absolute().parent, os.W_OK):
            raise BenchError(f"{option} is {path}: its folder does not exist or cannot be written to")


def publish(results: Sequence[str], into: str | None) -> str:
    """Return the README's tables from files that ``--output`` has written; put them into a file, if one is named.

    Raises
    ------
    BenchError
        If a file holds no results, or the file to write has no place for them.
    OSError
        If a file cannot be read or written.
    """
    block = markdown([Report.load(path) for path in results])
    if into is not None:
        insert(block, into)
    return block
