"""Results as tables: for a terminal, and for a README."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from .layers import BenchError
from .results import OURS, Report, Timing

__all__ = ["BEGIN", "END", "aligned", "insert", "markdown", "text"]

PASS_NAMES = {"fwd": "forward", "dx": "dX", "dw": "dW", "prepared": "forward, prepared"}
WAY_NAMES = {"nchw": "NCHW", "best": "best layouts"}

LARGE = 500_000_000
"""Operations from which on a layer tells how well threads share the work."""

BEGIN = "<!-- benchmarks: begin (made by fastconv bench --markdown) -->"
END = "<!-- benchmarks: end -->"


# ---------------------------------------------------------------------------------------------------------------------
# For a terminal
# ---------------------------------------------------------------------------------------------------------------------


def text(report: Report) -> str:
    """Return the tables that ``fastconv bench`` prints: one line per layer and pass, then the means."""
    lines = [_conditions(report), ""]
    for suite in report.suites:
        lines += [*aligned([[suite, *_head(report)], *_rows(report, suite)]), ""]
    if report.peers:
        lines += aligned(
            [["times as fast as", "", "", "layers", "mean", "worst", "slower", "worst layer"], *_means(report)]
        )
        lines.append("")
    if "serial" in report.peers:
        lines += [
            *aligned([["gain by threads / the peak's", "layers", "median", "worst", "worst layer"], *_scaling(report)]),
            "",
        ]
    return "\n".join(lines)


def _conditions(report: Report) -> str:
    return "\n".join(
        [
            f"{report.machine_name}, {_threads(report)}, {report.dtype}, best of {_rounds(report)}; GFLOP/s",
            f"peak {report.limit('peak'):.0f} GFLOP/s ({report.limit('peak', '1'):.0f} on one thread), "
            f"copy {report.limit('copy'):.1f} GB/s ({report.limit('copy', '1'):.1f}); % of both at {OURS}'s best",
        ]
    )


def _threads(report: Report) -> str:
    return f"{report.threads} thread{'s' if report.threads > 1 else ''}"


def _rounds(report: Report) -> str:
    return f"{report.rounds} round{'s' if report.rounds > 1 else ''}"


def _head(report: Report) -> list[str]:
    ways = report.ways
    return [
        "pass", "row", "GFLOP", *(f"{c} {way}" for c in (OURS, *report.peers) for way in ways),
        "peak %", "copy %", *(f"x {peer} {way}" for peer in report.peers for way in ways),
    ]  # fmt: skip


def _rows(report: Report, suite: str) -> Iterator[list[str]]:
    way = report.ways[-1]
    for t in report.of(suite):
        yield [
            t.layer.name, t.computes, t.algorithm, f"{t.flops / 1e9:.3f}",
            *(f"{t.gflops(c, way):.1f}" for c in (OURS, *report.peers) for way in report.ways),
            f"{100 * report.of_peak(t, way):.0f}", f"{100 * t.of_copy(way):.0f}",
            *(f"{t.ratio(peer, way):.2f}" for peer in report.peers for way in report.ways),
        ]  # fmt: skip


def _means(report: Report) -> Iterator[list[str]]:
    for suite, computes, peer, way, mean in report.means():
        figures = [str(mean.count), f"{mean.mean:.2f}", f"{mean.worst:.2f}", str(mean.slower), mean.worst_layer]
        yield [f"{peer}, {way}", suite, computes, *figures]


def _scaling(report: Report) -> Iterator[list[str]]:
    """Of layers that take long, and whose time goes to multiplying."""
    for computes in report.passes:
        timings = [t for t in report.of(computes=computes) if t.flops >= LARGE and not t.memory_bound]
        if timings:
            worst = min(timings, key=lambda t: t.scaling)
            median = statistics.median(t.scaling for t in timings)
            yield [computes, str(len(timings)), f"{median:.2f}", f"{worst.scaling:.2f}", worst.layer.name]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Put cells under each other: numbers to the right."""
    lines = []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = [all(_is_number(cell) for cell in column[1:]) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numbers, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return lines


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()


# ---------------------------------------------------------------------------------------------------------------------
# For a README
# ---------------------------------------------------------------------------------------------------------------------


def markdown(reports: Sequence[Report]) -> str:
    """Return the tables of one or more runs in Markdown, between the lines `BEGIN` and `END`.

    Every layer stands in it; where fastconv is slower, the ratio is bold.
    """
    blocks = [block for report in reports for block in _markdown(report)]
    return "\n\n".join([BEGIN, *blocks, END]) + "\n"


def _markdown(report: Report) -> Iterator[str]:
    peers = ", ".join(f"{name} {report.versions[name][name]}" for name in report.peers)
    packages = ", ".join(f"{name} {version}" for name, version in report.versions[OURS].items() if name != OURS)
    yield (
        f"**{report.dtype}, {_threads(report)}**: {report.machine_name}, {report.machine.get('system', '')}; "
        f"measured in this run: {report.limit('peak'):.0f} GFLOP/s of multiply-adds in registers, "
        f"{report.limit('copy'):.1f} GB/s copied between large arrays. "
        f"fastconv {report.versions[OURS][OURS]} ({packages}){f', beside {peers}' if peers else ''}; "
        f"best of {_rounds(report)} in turn, {report.date[:10]}."
    )
    for peer in report.peers:
        yield from _markdown_means(report, peer)
    for suite in report.suites:
        table = _markdown_suite(report, suite)
        yield f"<details><summary>{suite}: every layer</summary>\n\n{table}\n\n</details>"


def _markdown_means(report: Report, peer: str) -> Iterator[str]:
    means = {(suite, computes, way): mean for suite, computes, name, way, mean in report.means() if name == peer}
    pairs = [(computes, way) for computes in report.passes for way in report.ways]
    rows = [["suite", "layers", *(f"{PASS_NAMES[computes]}, {WAY_NAMES[way]}" for computes, way in pairs)]]
    for suite in dict.fromkeys(suite for suite, _, _ in means):
        cells = [means.get((suite, *pair)) for pair in pairs]
        layers = max(mean.count for mean in cells if mean)
        rows.append([suite, str(layers), *(f"{m.mean:.2f} ({_bold(m.worst)})" if m else "" for m in cells)])
    yield f"Times as fast as {peer}, geometric mean (and the worst layer):"
    yield _markdown_table(rows)
    way = report.ways[-1]
    slower = sum(timing.ratio(peer, way) < 1 for timing in report.timings)
    yield f"fastconv is slower than {peer} ({WAY_NAMES[way]}) in {slower} of {len(report.timings)} timings, bold below."


def _markdown_suite(report: Report, suite: str) -> str:
    ways = " / ".join(WAY_NAMES[way] for way in report.ways)
    rows = [["layer"]]
    for computes in report.passes:
        rows[0] += [f"{PASS_NAMES[computes]}, GFLOP/s", *(f"× {peer}, {ways}" for peer in report.peers)]
    timings = {(timing.layer.name, timing.computes): timing for timing in report.of(suite)}
    for name in dict.fromkeys(name for name, _ in timings):
        row = [name]
        for computes in report.passes:
            timing = timings.get((name, computes))
            if timing is None:  # a run that was interrupted
                row += [""] * (1 + len(report.peers))
                continue
            row.append(_with_limit(report, timing, report.ways[-1]))
            row += [" / ".join(_bold(timing.ratio(peer, way)) for way in report.ways) for peer in report.peers]
        rows.append(row)
    return _markdown_table(rows)


def _with_limit(report: Report, timing: Timing, way: str) -> str:
    """GFLOP/s, and the share of what limits the machine at this intensity."""
    limit = (
        f"{100 * timing.of_copy(way):.0f} % of copy"
        if timing.memory_bound
        else f"{100 * report.of_peak(timing, way):.0f} % of peak"
    )
    gflops = timing.gflops(OURS, way)
    return f"{gflops:.{0 if gflops >= 10 else 1}f} ({limit})"


def _bold(ratio: float) -> str:
    """A ratio, bold where fastconv is slower, also if it rounds to 1."""
    return f"**{ratio:.2f}**" if ratio < 1 else f"{ratio:.2f}"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|---{'|---:' * (len(rows[0]) - 1)}|", *body])


def insert(block: str, path: str) -> None:
    """Put what `markdown` returns into a file, in place of what stands between its markers.

    Raises
    ------
    BenchError
        If the file does not have each marker once, in their order.
    OSError
        If it cannot be read or written.
    """
    whole = Path(path).read_text(encoding="utf-8")
    first, last = whole.find(BEGIN), whole.find(END)
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or last < first:
        raise BenchError(f"{path} does not have the lines {BEGIN} and {END} once each, in this order")
    Path(path).write_text(whole[:first] + block.rstrip("\n") + whole[last + len(END) :], encoding="utf-8")
