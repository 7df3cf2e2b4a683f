"""``fastconv bench --models``: steps of training whole networks, beside peers.

Steps are timed, contenders in turn.  Beside PyTorch, the losses of many steps tell whether both train the same network: rounding
drives any two of them apart, as it does PyTorch with itself in another memory layout.  Then the memory that steps take, and for
LeNet the time from the start of a process to the end of the first step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..progress import say
from .layers import BenchError
from .processes import Worker
from .results import OURS, WAYS
from .startup import seconds_to_first_step
from .steps import COMPILED, MODELS

__all__ = ["MODELS", "ModelReport", "distance", "run", "text"]

TOLERANCE = 1e-3
"""Largest difference of two contenders' losses before the first step, as a multiple of the loss."""

WINDOW = 0.5
"""Seconds of one turn of one contender, unless two steps take longer."""

STEPS, RUNS = 50, 3
"""Steps whose losses are compared, and runs from other weights: what is far apart is a matter of chance in a single one."""

FIRST_STEP = "lenet"
"""The network of `fastconv.bench.startup`."""


@dataclass
class ModelReport:
    """What was measured.

    Attributes
    ----------
    date : str
    machine, versions : dict
        As in `fastconv.bench.results.Report`.
    threads, rounds : int
    ways : list of str
    seconds : dict
        ``seconds[model][contender][layout]``: the best step of each round.
    losses : dict
        ``losses[model][contender][layout]``: before each of `STEPS` steps from the same weights, of all `RUNS`.
    megabytes : dict
        ``megabytes[model][contender][layout]`` that steps take; None where the system does not tell.
    first : dict
        ``first[contender]``: seconds to the first step, of each round.
    absent : dict
        ``absent[model][contender]``: why it could not take steps.
    """

    date: str
    machine: dict[str, str]
    versions: dict[str, dict[str, str]]
    threads: int
    rounds: int
    ways: list[str]
    seconds: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    losses: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    megabytes: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    first: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def peers(self) -> list[str]:
        """Contenders but fastconv."""
        return [name for name in self.versions if name != OURS]

    def best(self, model: str, contender: str, way: str) -> float:
        """Seconds of a step, compared in one of `WAYS`; NaN for who cannot take it."""
        layouts = self.seconds[model].get(contender, {})
        return min((min(layouts[layout]) for layout in WAYS[way] if layouts.get(layout)), default=math.nan)

    def ratio(self, model: str, peer: str, way: str) -> float:
        """How many times as fast as a peer fastconv is."""
        return self.best(model, peer, way) / self.best(model, OURS, way)

    def memory(self, model: str, contender: str) -> float:
        """Megabytes that steps take in the layout that takes least; NaN where that is not known."""
        known = (value for value in self.megabytes[model].get(contender, {}).values() if value is not None)
        return min(known, default=math.nan)

    def save(self, path: str) -> None:
        """Write a JSON file."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")


def distance(losses: Sequence[float], others: Sequence[float]) -> float:
    """Largest difference of two runs' losses, as a multiple of the loss.

    Examples
    --------
    >>> distance([2.0, 1.0], [2.0, 1.25])
    0.2
    """
    return max(abs(a - b) / abs(b) for a, b in zip(losses, others, strict=True))


def run(
    names: Sequence[str], peers: Sequence[str], threads: int, rounds: int, ways: Sequence[str], output: str | None
) -> ModelReport:
    """Measure some models, contenders in turn, each in a process of its own.

    Raises
    ------
    BenchError
        If a worker fails, or two of them do not compute the same loss.
    """
    layouts = list(dict.fromkeys(layout for way in ways for layout in WAYS[way]))
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, threads)) for name in (OURS, *peers)}
        versions = {}
        for name, worker in workers.items():
            reply = worker.ask("hello")
            if "missing" in reply:
                raise BenchError(f"{name} cannot be loaded: {reply['missing']}")
            versions[name] = reply["versions"]
        report = ModelReport(
            time.strftime("%Y-%m-%d %H:%M:%S %z"), workers[OURS].ask("describe"), versions, threads, rounds, list(ways)
        )
        for name in names:
            _measure(name, workers, layouts, report)
            say(f"{MODELS[name]}: {_figures(report, name)}")
            if output is not None:
                report.save(output)
    if FIRST_STEP in names:  # when no worker is there any more
        who = [name for name in (OURS, *peers) if name != COMPILED]
        report.first = seconds_to_first_step(who, threads, rounds)
        if output is not None:
            report.save(output)
    return report


def _measure(name: str, workers: Mapping[str, Worker], layouts: Sequence[str], report: ModelReport) -> None:
    """Time steps of one model, compare losses with PyTorch, and measure the memory."""
    losses: dict[tuple[str, str], float] = {}
    absent = report.absent[name] = {}
    for layout in layouts:
        for who, worker in workers.items():
            if who in MODELS[name].steps and who not in absent:
                try:
                    losses[who, layout] = _first_loss(worker, name, layout)
                except BenchError as error:
                    if who != COMPILED:  # which needs a C++ compiler when it runs
                        raise
                    absent[who] = str(error).splitlines()[0]
    turns = [turn for turn in losses if turn[0] not in absent]
    _compare({turn: losses[turn] for turn in turns}, name)
    times = report.seconds[name] = {who: {} for who, _ in turns}
    for _ in range(report.rounds):
        for who, layout in turns:
            reply = workers[who].ask("time", computes="step", layout=layout, seconds=WINDOW)
            times[who].setdefault(layout, []).append(reply["seconds"])
    trained = report.losses[name] = {who: {} for who, _ in turns if "torch" in times and who != COMPILED}
    taken = report.megabytes[name] = {who: {} for who, _ in turns}
    for who, layout in turns:
        if who in trained:
            reply = workers[who].ask("losses", name=name, layout=layout, steps=STEPS, runs=RUNS)
            trained[who][layout] = reply["losses"]
    for who, layout in turns:
        taken[who][layout] = workers[who].ask("memory", name=name, layout=layout)["megabytes"]


def _first_loss(worker: Worker, name: str, layout: str) -> float:
    reply = worker.ask("prepare_model", name=name, layout=layout)
    if "missing" in reply:
        raise BenchError(f"{name} needs what cannot be loaded: {reply['missing']}")
    loss: float = reply["loss"]
    return loss


def _compare(losses: dict[tuple[str, str], float], name: str) -> None:
    """Check that all have one loss."""
    (_, first), *others = losses.items()
    for (who, layout), loss in others:
        if not abs(loss - first) <= TOLERANCE * abs(first):
            raise BenchError(f"{name}: {who} in {layout} has a loss of {loss}, {OURS} in nchw one of {first}")


def _figures(report: ModelReport, name: str) -> str:
    way = report.ways[-1]
    return ", ".join(f"{who} {1000 * report.best(name, who, way):.0f} ms" for who in report.seconds[name])


def text(report: ModelReport) -> str:
    """Return the tables that ``fastconv bench --models`` prints."""
    from .table import aligned

    versions = ", ".join(f"{who} {report.versions[who][who]}" for who in report.versions)
    threads, rounds = (
        f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((report.threads, "thread"), (report.rounds, "round"))
    )
    title = f"{report.machine.get('cpu', 'an unknown CPU')}, {threads}, float32, best of {rounds}; {versions}"
    tables = [_times(report), _memory(report), _losses(report), _first_steps(report)]
    lines = [title]
    for table in tables:
        if len(table) > 1:
            lines += ["", *aligned(table)]
    for name, reasons in report.absent.items():
        lines += [f"{who} could not take a step of {name}: {reason}" for who, reason in reasons.items()]
    return "\n".join(lines)


def _times(report: ModelReport) -> list[list[str]]:
    whom = (OURS, *report.peers)
    head = ["a step", *(f"{who} {way}, ms" for who in whom for way in report.ways)]
    rows = [[*head, *(f"x {peer} {way}" for peer in report.peers for way in report.ways)]]
    for name in report.seconds:
        row = [str(MODELS[name])]
        row += [f"{1000 * report.best(name, who, way):.1f}" for who in whom for way in report.ways]
        rows.append([*row, *(f"{report.ratio(name, peer, way):.2f}" for peer in report.peers for way in report.ways)])
    return rows


def _memory(report: ModelReport) -> list[list[str]]:
    """The largest resident set of the process while it takes steps, less that without the network."""
    rows = [["memory of steps", *(f"{who}, MB" for who in (OURS, *report.peers)), *(f"x {p}" for p in report.peers)]]
    for name in report.megabytes:
        ours, *theirs = (report.memory(name, who) for who in (OURS, *report.peers))
        figures = [f"{megabytes:.0f}" for megabytes in (ours, *theirs)]
        rows.append([str(MODELS[name]), *figures, *(f"{megabytes / ours:.2f}" for megabytes in theirs)])
    return rows


def _losses(report: ModelReport) -> list[list[str]]:
    """How far losses are from those of PyTorch's nearer layout, beside how far its two are from each other."""
    rows = [[f"losses of {RUNS} x {STEPS} steps", "fastconv from torch", "torch's layouts apart", "x as far"]]
    for name, trained in report.losses.items():
        if set(trained.get("torch", {})) == {"nchw", "channels_last"}:
            theirs = trained["torch"]
            ours = min(distance(trained[OURS]["nchw"], losses) for losses in theirs.values())
            apart = distance(theirs["channels_last"], theirs["nchw"])
            times = ours / apart if apart else math.inf if ours else 1.0
            rows.append([str(MODELS[name]), f"{ours:.1e}", f"{apart:.1e}", f"{times:.2f}"])
    return rows


def _first_steps(report: ModelReport) -> list[list[str]]:
    peers = [who for who in report.first if who != OURS]
    rows = [["a process's first step", *(f"{who}, s" for who in report.first), *(f"x {who}" for who in peers)]]
    if report.first:
        best = {who: min(seconds) for who, seconds in report.first.items()}
        figures = [f"{seconds:.2f}" for seconds in best.values()]
        rows.append([str(MODELS[FIRST_STEP]), *figures, *(f"{best[who] / best[OURS]:.2f}" for who in peers)])
    return rows
