"""What a benchmark has measured, and the ratios that follow from it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..suites import Layer
from .contenders import LAYOUTS, PASSES, PREPARED
from .layers import BenchError, layer_of

__all__ = ["OURS", "WAYS", "Mean", "Report", "Timing"]

OURS = "fastconv"
FORMAT = 1

WAYS = {"nchw": ("nchw",), "best": LAYOUTS}
"""Two ways to compare: all with NCHW arrays, and each with the layout in which it is fastest."""


@dataclass(frozen=True)
class Timing:
    """One layer and pass.

    Attributes
    ----------
    suite, layer, computes : str, Layer, str
        What was timed; ``computes`` is "fwd", "dx" or "dw".
    algorithm : str
        The row of fastconv's plan.
    flops, bytes : int
        Of one pass: operations, and bytes of X, W and O.
    seconds : dict
        ``seconds[contender][layout]``: the best of each round.
    peak, copy : dict
        ``peak["1"]`` and ``peak["all"]``: GFLOP/s in each round, on one thread and on all; ``copy`` the same in GB/s.
    """

    suite: str
    layer: Layer
    computes: str
    algorithm: str
    flops: int
    bytes: int
    seconds: dict[str, dict[str, list[float]]]
    peak: dict[str, list[float]]
    copy: dict[str, list[float]]

    def best(self, contender: str, way: str) -> float:
        """Seconds of a contender, compared in one of `WAYS`."""
        layouts = self.seconds[contender]
        return min(min(layouts[layout]) for layout in WAYS[way] if layout in layouts)

    def gflops(self, contender: str, way: str) -> float:
        """GFLOP/s of a contender."""
        return self.flops / self.best(contender, way) / 1e9

    def ratio(self, peer: str, way: str) -> float:
        """How many times as fast as a peer fastconv is."""
        return self.best(peer, way) / self.best(OURS, way)

    def of_copy(self, way: str) -> float:
        """Share of the bytes that a copy between large arrays could move; above 1 if a cache holds the arrays."""
        return self.bytes / self.best(OURS, way) / 1e9 / max(self.copy["all"])

    @property
    def scaling(self) -> float:
        """What threads gain, over one (the peer "serial"), as a share of what the peak of multiply-adds gains by them."""
        return self.ratio("serial", "best") * max(self.peak["1"]) / max(self.peak["all"])

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes

    @property
    def memory_bound(self) -> bool:
        """Whether moving the arrays takes longer than multiplying, at the machine's limits."""
        return self.bytes / max(self.copy["all"]) > self.flops / max(self.peak["all"])


@dataclass(frozen=True)
class Mean:
    """Ratios of many timings: geometric mean, the worst, and whose that is."""

    count: int
    mean: float
    worst: float
    worst_layer: str
    slower: int

    @classmethod
    def of(cls, timings: Sequence[Timing], peer: str, way: str) -> Mean:
        """Summarise the ratios to a peer."""
        ratios = [timing.ratio(peer, way) for timing in timings]
        worst = min(range(len(ratios)), key=ratios.__getitem__)
        mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
        return cls(len(ratios), mean, ratios[worst], timings[worst].layer.name, sum(ratio < 1 for ratio in ratios))


@dataclass
class Report:
    """All timings of one run, and what is to be known about it.

    Attributes
    ----------
    date : str
        When it began.
    machine : dict of str to str
        What ``fastconv info`` tells.
    versions : dict
        ``versions[contender][package]``.
    dtype, threads, rounds : str, int, int
        As asked for.
    ways : list of str
        Which of `WAYS` are compared.
    timings : list of Timing
        In the order of the suites.
    """

    date: str
    machine: dict[str, str]
    versions: dict[str, dict[str, str]]
    dtype: str
    threads: int
    rounds: int
    ways: list[str]
    timings: list[Timing] = field(default_factory=list)

    @property
    def peers(self) -> list[str]:
        """Whom fastconv is compared with."""
        return [name for name in self.versions if name != OURS]

    @property
    def suites(self) -> list[str]:
        """Names of the suites, in their order."""
        return list(dict.fromkeys(timing.suite for timing in self.timings))

    @property
    def passes(self) -> list[str]:
        """Passes that were timed, in the order of the equations."""
        return [name for name in (*PASSES, PREPARED) if any(timing.computes == name for timing in self.timings)]

    @property
    def machine_name(self) -> str:
        """The CPU."""
        return self.machine.get("cpu", "an unknown CPU")

    def of(self, suite: str | None = None, computes: str | None = None) -> list[Timing]:
        """Timings of a suite, of a pass, or of both."""
        return [t for t in self.timings if suite in (None, t.suite) and computes in (None, t.computes)]

    def limit(self, kind: str, threads: str = "all") -> float:
        """The machine's "peak" or "copy" at its best in this run."""
        return max(max((t.peak if kind == "peak" else t.copy)[threads]) for t in self.timings)

    def of_peak(self, timing: Timing, way: str) -> float:
        """Share of the multiply-adds that the machine could do in the same turns.

        Clocks drift by some 10 %; where less than nine tenths of the run's best was measured, something disturbed it, and nine
        tenths are taken.
        """
        return timing.gflops(OURS, way) / max(*timing.peak["all"], 0.9 * self.limit("peak"))

    def means(self) -> Iterator[tuple[str, str, str, str, Mean]]:
        """Summaries, as (suite, pass, peer, way, mean); the suite "all" stands for all together.

        Yields
        ------
        tuple
            One for each combination.
        """
        suites = self.suites
        for suite in [*suites, *(["all"] if len(suites) > 1 else [])]:
            for computes in self.passes:
                for peer in self.peers:
                    for way in self.ways:
                        timings = self.of(None if suite == "all" else suite, computes)
                        if timings:
                            yield suite, computes, peer, way, Mean.of(timings, peer, way)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file: all that was measured, and for reading also the ratios and their means."""
        values = {"format": FORMAT, **dataclasses.asdict(self)}
        for value, timing in zip(values["timings"], self.timings, strict=True):
            value["name"] = timing.layer.name
            value["gflops"] = {c: {way: timing.gflops(c, way) for way in self.ways} for c in timing.seconds}
            value["of_peak"] = {way: self.of_peak(timing, way) for way in self.ways}
            value["of_copy"] = {way: timing.of_copy(way) for way in self.ways}
            value["ratio"] = {peer: {way: timing.ratio(peer, way) for way in self.ways} for peer in self.peers}
        values["means"] = [
            {"suite": suite, "computes": computes, "peer": peer, "way": way, **dataclasses.asdict(mean)}
            for suite, computes, peer, way, mean in self.means()
        ]
        path = Path(path)
        unfinished = path.with_name(f"{path.name}.part")
        unfinished.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read what `save` has written.

        Raises
        ------
        BenchError
            If the file holds something else.
        OSError
            If it cannot be read.
        """
        try:
            values = json.loads(Path(path).read_bytes())
            if values["format"] != FORMAT:
                raise BenchError(f"{path} has format {values['format']!r}: expected {FORMAT}")
            timings = []
            for value in values["timings"]:
                known = {f.name: value[f.name] for f in dataclasses.fields(Timing)}
                timings.append(Timing(**{**known, "layer": layer_of(value["layer"], f"{path}, {value['name']}")}))
            report = cls(**{**{f.name: values[f.name] for f in dataclasses.fields(cls)}, "timings": timings})
        except BenchError:
            raise
        except (ValueError, KeyError, TypeError):
            raise BenchError(f"{path} holds no results: expected what fastconv bench --output has written") from None
        if not timings:
            raise BenchError(f"{path} holds no timings: expected at least one")
        return report

    def add(self, timing: Timing) -> None:
        """Take one more timing."""
        self.timings.append(timing)
