"""The self-test: it passes here, and each of its checks fails for the row that deserves it."""

import dataclasses
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba import config

import fastconv
from fastconv import plan, selftest
from fastconv.cli import main

COMPILED = pytest.mark.skipif(
    bool(config.DISABLE_JIT), reason="without the compiler there are no threads, and no haste"
)


@COMPILED
def test_it_passes_here():
    done = subprocess.run([sys.executable, "-m", "fastconv", "selftest"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, integers, adjoint, threads, fork, verdict = done.stdout.splitlines()
    for line, name in ((integers, "integers"), (adjoint, "adjoint"), (threads, "threads"), (fork, "fork")):
        assert line.startswith(f"{name:<10}passed: ")
        assert int(line.split()[2]) >= 40
    assert verdict.startswith("all is well, ")


def test_it_visits_every_row():
    visited = {
        (row.computes, row.algorithm, dtype.name)
        for geometry in (*selftest.SMALL, *selftest.LARGE)
        for dtype in selftest.DTYPES
        for row, _ in selftest._rows(geometry, dtype)
    }
    assert visited == {(*key, dtype.name) for key in plan.ROWS for dtype in selftest.DTYPES}


def with_row(monkeypatch, change, **fields):
    """Let the table hold the reference, and a row "spoilt" for dX that changes its result."""
    reference = [row for row in plan.TABLE if row.algorithm == "reference"]
    loops = plan.ROWS["grad_input", "loops"]

    def run(geometry, *arrays):
        loops.run(geometry, *arrays)
        change(arrays[-1])

    spoilt = dataclasses.replace(loops, algorithm="spoilt", run=run, **fields)
    monkeypatch.setattr(plan, "TABLE", (spoilt, *reference))


PROCESS = os.getpid()


def one_more(out):
    out.flat[out.size // 2] += 1


def a_little_more(out):
    out.flat[out.size // 2] += 1e-3 * np.abs(out).max()


def unwritten(out):
    out.flat[-1] = np.nan


def by_the_threads(out):
    out.flat[0] += numba.get_num_threads()


def by_the_process(out, process=PROCESS):
    out.flat[0] += os.getpid() != process


def by_its_end(out, process=PROCESS):
    if os.getpid() != process:
        os.kill(os.getpid(), 15)


CHECKS = {"integers": one_more, "adjoint": one_more, "threads": by_the_threads, "fork": by_the_process}


@COMPILED
@pytest.mark.parametrize(
    ("check", "change"),
    [
        *CHECKS.items(),
        ("integers", unwritten),
        ("adjoint", unwritten),
        ("integers", a_little_more),
        ("fork", by_its_end),
    ],
)
def test_each_check_finds_its_fault(monkeypatch, capsys, check, change):
    if check == "threads" and config.NUMBA_NUM_THREADS < 2:
        pytest.skip("there is one thread only")
    monkeypatch.setattr(selftest, "CHECKS", {check: selftest.CHECKS[check]})
    with_row(monkeypatch, lambda out: None)
    assert main(["selftest"]) == 0
    capsys.readouterr()
    with_row(monkeypatch, change)
    assert main(["selftest"]) == 1
    out = capsys.readouterr().out
    assert f"{check:<10}FAILED: " in out
    assert "spoilt grad_input of " in out or ("fork" in out and "a forked child ended with status 15" in out)
    assert "reference" not in out.replace("the reference", "")
    assert out.splitlines()[-1].startswith("FAILED: do not trust results of this machine, ")


def test_a_row_may_have_the_error_that_it_declares(monkeypatch):
    with_row(monkeypatch, a_little_more, error=2e-3)
    assert all(fault is None for fault in selftest._integers())
    with_row(monkeypatch, a_little_more, error=0.5e-3)
    assert any(fault is not None for fault in selftest._integers())


@COMPILED
def test_a_child_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(selftest, "PATIENCE", 0.5)
    process = os.getpid()

    def hang(out):
        while os.getpid() != process:
            pass

    with_row(monkeypatch, hang)
    assert list(selftest._fork()) == ["a forked child hangs"]


@COMPILED
def test_threads_are_left_as_they_were():
    before = fastconv.get_num_threads()
    list(selftest._threads())
    assert fastconv.get_num_threads() == before
