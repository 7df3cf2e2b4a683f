"""The roofline: GFLOP/s over FLOP per byte, below what the machine can do."""

from __future__ import annotations

import math
import os
from typing import Any

from .results import OURS, Report

__all__ = ["draw"]

COLOURS = {OURS: "#0b5fa5", "torch": "#e0652b", "jax": "#3c9a5f"}
TITLES = {"fwd": "forward", "dx": "dX", "dw": "dW", "prepared": "forward, prepared"}
INK, GRID = "#333333", "#dddddd"


def draw(report: Report, path: str | os.PathLike[str]) -> None:
    """Draw one panel per pass, with one point per layer and contender, each in its best layout.

    Lines are the machine's limits, measured in the same run: on all threads, and thinner on one.  A point above the slope
    comes from a cache that holds the layer's arrays.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    passes, contenders, way = report.passes, [*report.peers, OURS], report.ways[-1]
    x_range = _range([timing.intensity for timing in report.timings])
    roof = report.limit("peak")
    heights = [timing.gflops(name, way) for timing in report.timings for name in contenders]
    y_range = min(min(heights) / 1.4, roof / 10), max(roof, *heights) * 1.8

    figure = Figure(figsize=(max(7.0, 4.6 * len(passes)), 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(passes), sharex=True, sharey=True, squeeze=False)[0]
    for computes, panel in zip(passes, panels, strict=True):
        panel.set(xscale="log", yscale="log", xlim=x_range, ylim=y_range)
        panel.set_title(TITLES[computes], fontsize=11, color=INK)
        panel.set_xlabel("FLOP per byte of X, W and O", color=INK)
        panel.grid(True, which="major", color=GRID, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.tick_params(colors=INK)
        panel.spines[["top", "right"]].set_visible(False)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())
        _draw_limits(panel, report, x_range, named=panel is panels[-1])
        timings = report.of(computes=computes)
        for timing in timings:  # a thin line joins what is compared
            pair = [timing.gflops(name, way) for name in contenders]
            panel.plot([timing.intensity] * 2, [min(pair), max(pair)], color="#bbbbbb", linewidth=0.7, zorder=2)
        for name in contenders:
            colour = COLOURS[name]
            panel.plot(
                [timing.intensity for timing in timings],
                [timing.gflops(name, way) for timing in timings],
                linestyle="none",
                marker="o",
                markersize=5.5,
                markeredgewidth=1.2 if name != OURS else 0.6,
                markerfacecolor=colour if name == OURS else "white",
                markeredgecolor="white" if name == OURS else colour,
                label=f"{name} {report.versions[name][name]}",
                zorder=4 if name == OURS else 3,
            )
    panels[0].set_ylabel("GFLOP/s", color=INK)
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    layouts = "each in its best layout" if way == "best" else "NCHW"
    figure.suptitle(
        f"{', '.join(report.suites)}: {report.dtype}, {threads}, {layouts}\n{report.machine_name}",
        fontsize=11,
        color=INK,
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path)


def _draw_limits(panel: Any, report: Report, x_range: tuple[float, float], named: bool) -> None:
    """Draw the machine's limits as lines; write what they are at their ends if they are to be named."""
    for threads, width, style in (("1", 0.9, (0, (4, 3))), ("all", 1.5, "solid")):
        if threads == "1" and report.threads == 1:
            continue
        peak, copy = report.limit("peak", threads), report.limit("copy", threads)
        corner = min(max(peak / copy, x_range[0]), x_range[1])
        xs = [x_range[0], corner, x_range[1]]
        panel.plot(xs, [min(peak, copy * x) for x in xs], color=INK, linewidth=width, linestyle=style, zorder=1)
        if named:
            label = f"peak\n{peak:.0f} GFLOP/s" if threads == "all" else f"one thread\n{peak:.0f} GFLOP/s"
            height = min(peak, copy * x_range[1])
            panel.annotate(
                label, (x_range[1], height), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK
            )
        if threads == "all" and corner > 2.5 * x_range[0]:
            # Along the slope, in its middle; the angle is that of the data, which the axes then turn.
            x = math.sqrt(x_range[0] * corner)
            panel.text(
                x, copy * x * 1.1, f"copy {copy:.1f} GB/s", fontsize=8, color=INK, ha="center", va="bottom",
                rotation=math.degrees(math.atan(copy)), rotation_mode="anchor", transform_rotates_text=True,
            )  # fmt: skip


def _range(values: list[float]) -> tuple[float, float]:
    """Limits of an axis around values, at least a factor of 30 apart."""
    low, high = min(values) / 1.6, max(values) * 1.6
    widen = math.sqrt(max(1.0, 30 * low / high))
    return low / widen, high * widen
