"""What this process may take: processors and memory, as the machine, the affinity mask and its control groups allow.

A container's limits are those of a control group, of version 1 or 2; each group above it may set narrower ones.  Where a system
says nothing, nothing is limited.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["processors", "require_memory", "reserves"]

ROOT = Path("/")
"""Where ``proc`` is to be found, and the folders that it names."""

UNLIMITED = 2**62
"""Limits from here on are none: version 1 writes the largest multiple of a page that 63 bits hold."""

KEPT_FOR = 1.0
"""Seconds for which free memory is believed, less what has been taken since."""

SMALL = 2**22
"""Bytes that are not worth the question."""

reserves: list[Callable[[], None]] = []
"""What gives back memory that is kept for later, before any is refused."""


def processors() -> int:
    """Count the processors that the calling thread may use: by its affinity mask, and by its groups' shares of time.

    Examples
    --------
    >>> processors() >= 1
    True
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _groups("cpu"):
        quota = _numbers(folder / "cpu.max") or _numbers(folder / "cpu.cfs_quota_us") + _numbers(
            folder / "cpu.cfs_period_us"
        )
        if len(quota) == 2 and min(quota) > 0:
            count = min(count, math.ceil(quota[0] / quota[1]))
    return max(1, count)


def free_memory() -> int:
    """Bytes that may still be taken: what the machine has available, or what a group leaves of its limit."""
    free = UNLIMITED
    for line in _text(ROOT / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for folder in _groups("memory"):
        for limit_name, used_name, cached_name in (
            ("memory.max", "memory.current", "inactive_file "),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
        ):
            limit, used = _numbers(folder / limit_name), _numbers(folder / used_name)
            if limit and used and limit[0] < UNLIMITED:
                # The system drops cached files before it refuses memory.
                cached = [
                    int(line.split()[1])
                    for line in _text(folder / "memory.stat").splitlines()
                    if line.startswith(cached_name)
                ]
                free = min(free, max(0, limit[0] - used[0] + sum(cached)))
    return free


_known = (-math.inf, 0)
"""When free memory was last asked for, and how much of it has not been taken since."""


def require_memory(what: str, size: int) -> None:
    """Raise unless so many bytes can be had: a system may grant more than it has, and end the process that uses it.

    Raises
    ------
    MemoryError
        If fewer are free.

    Examples
    --------
    >>> require_memory("a result", 2**60)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    MemoryError: a result takes 1152921504606846976 bytes, ... are free
    """
    global _known
    if size < SMALL:
        return
    now, (asked, free) = time.monotonic(), _known
    if now - asked > KEPT_FOR or 8 * size > free:
        asked, free = now, free_memory()
    if size > free and reserves:
        for give_back in reserves:
            give_back()
        asked, free = now, free_memory()
    if size > free:
        raise MemoryError(f"{what} takes {size} bytes, {free} are free")
    _known = asked, free - size


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that bind this process, from its own up to the outermost that can be seen."""
    places = {}
    for line in _text(ROOT / "proc/self/cgroup").splitlines():
        names, _, path = line.partition(":")[2].partition(":")
        places[names] = path
    for line in _text(ROOT / "proc/self/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        *_, shown, mounted = ["", "", *head.split(" ")[:5]]
        kind, _, options = (*tail.split(" ", 2), "", "")[:3]
        if kind == "cgroup2":
            found = [path for names, path in places.items() if not names]
        elif kind == "cgroup" and controller in options.split(","):
            found = [path for names, path in places.items() if controller in names.split(",")]
        else:
            found = []
        if not found:
            continue
        top, own = ROOT / mounted.lstrip("/"), Path("/", found[0])
        # In a container the mount may show a part of the tree only, or the path be told as from outside.
        inside = own.relative_to(shown) if own.is_relative_to(shown) else Path()
        for folder in (top / inside, *(top / inside).parents):
            if folder.is_relative_to(top):
                yield folder


def _text(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text(errors="replace")
    return ""


def _numbers(path: Path) -> list[int]:
    """Numbers in a file; none where it says that there is no limit, or is not there."""
    try:
        return [int(word) for word in _text(path).split()]
    except ValueError:  # "max"
        return []
