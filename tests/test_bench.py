"""The benchmark: what it measures, in which order, and what it makes of the figures.  No test asserts a time."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

import fastconv
from fastconv import bench, training
from fastconv.bench import errors, measure, table, worker
from fastconv.bench.contenders import CONTENDERS, PASSES, Fastconv, arrays, channels_last
from fastconv.bench.layers import chosen, read_shapes
from fastconv.bench.processes import Worker
from fastconv.bench.results import OURS, Report, Timing
from fastconv.cli import main
from fastconv.kernels.peak import copy, peak
from fastconv.simd import ACCUMULATORS, lanes
from fastconv.suites import SUITES, TRAINED, Layer

TINY = [
    {"batch": 2, "channels": 3, "size": 6, "filters": 4, "kernel": 3, "padding": 1},
    {"batch": 1, "channels": 4, "size": 5, "filters": 4, "kernel": 2, "stride": 2, "groups": 4},
]
LAYERS = [Layer(**fields) for fields in TINY]
LONG = Layer(2, 3, 8, 5, (1, 5), 1, (0, 2))
PROC = pathlib.Path("/proc")
needs_proc = pytest.mark.skipif(not PROC.joinpath("self", "stat").exists(), reason="looks at processes in /proc")


@pytest.fixture
def shapes(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return str(path)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Let workers find a module of this text when they import that name."""

    def write(name, text):
        folder = tmp_path / "modules"
        folder.mkdir()
        folder.joinpath(f"{name}.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))

    return write


def timing(suite, layer, computes, ours, theirs):
    """A timing with (NCHW, channels-last) seconds of fastconv and of PyTorch, at limits of 100 GFLOP/s and 10 GB/s."""
    seconds = {
        name: {"nchw": [2 * a, a], "channels_last": [b, 2 * b]}
        for name, (a, b) in ((OURS, ours), ("torch", theirs))
        if (a, b) != (None, None)
    }
    limits = {"peak": {"1": [50.0, 49.0], "all": [99.0, 100.0]}, "copy": {"1": [6.0, 7.0], "all": [10.0, 9.0]}}
    return Timing(suite, layer, computes, "direct", 10**9, 10**8, seconds, **limits)


@pytest.fixture
def report():
    a, b = LAYERS
    return Report(
        date="2026-01-02 03:04:05 +0000",
        machine={"cpu": "A CPU", "system": "Linux"},
        versions={OURS: {OURS: "1.2.3", "numba": "4.5"}, "torch": {"torch": "6.7"}},
        dtype="float32",
        threads=2,
        rounds=2,
        ways=["nchw", "best"],
        timings=[
            timing("one", a, "fwd", (0.02, 0.04), (0.08, 0.01)),
            timing("one", b, "fwd", (0.02, 0.01), (0.04, 0.04)),
            timing("two", a, "fwd", (0.02, 0.02), (0.01, 0.02)),
            timing("two", a, "dw", (0.02, 0.02), (0.06, 0.02)),
        ],
    )


# What is timed


def test_all_suites_by_default():
    assert chosen([], None, None) == [(suite, layer) for suite in TRAINED for layer in SUITES[suite]]


def test_limit_counts_in_each_suite(shapes):
    layers = chosen(["small", "vgg16", "small"], shapes, 1)
    assert layers == [("small", SUITES["small"][0]), ("vgg16", SUITES["vgg16"][0]), ("tiny", LAYERS[0])]


def test_shapes_file(shapes):
    assert read_shapes(shapes) == LAYERS
    assert chosen([], shapes, None) == [("tiny", layer) for layer in LAYERS]


GOOD = TINY[0]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is not JSON"),
        (b"\xff\xfe\xfd", "is not JSON"),
        ({}, "holds an object: expected a list of layers"),
        ([], "holds an empty list: expected a list of layers"),
        (3, "holds a number: expected a list of layers"),
        ([GOOD, 3], "layer 2 is a number: expected an object with batch, channels"),
        ([{**GOOD, "strides": 1}], "layer 1 has a field 'strides': expected batch"),
        ([{"batch": 1}], "layer 1 has no field 'channels': expected at least batch"),
        ([{**GOOD, "stride": 0}], "layer 1: stride is 0: expected a whole number of at least 1"),
        ([{**GOOD, "padding": -1}], "layer 1: padding is -1: expected a whole number of at least 0"),
        (
            [{**GOOD, "padding": [0, -1]}],
            "layer 1: padding is [0, -1]: expected a whole number of at least 0, or two of them",
        ),
        (
            [{**GOOD, "kernel": [3, 3, 3]}],
            "layer 1: kernel is [3, 3, 3]: expected a whole number of at least 1, or two",
        ),
        ([{**GOOD, "stride": [1, 1]}], "layer 1: stride is [1, 1]: expected a whole number of at least 1"),
        ([{**GOOD, "batch": True}], "layer 1: batch is True: expected a whole number"),
        ([{**GOOD, "size": 2.5}], "layer 1: size is 2.5: expected a whole number"),
        ([{**GOOD, "groups": 2}], "layer 1: channels is 3: expected a multiple of groups, which is 2"),
        ([{**GOOD, "groups": 3}], "layer 1: filters is 4: expected a multiple of groups, which is 3"),
        ([{**GOOD, "kernel": 9}], "layer 1: "),
        ([{**GOOD, "size": 10**30}], "layer 1: "),
    ],
)
def test_bad_shapes_file(tmp_path, capsys, content, text):
    path = tmp_path / "shapes.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode() if content == "{" else _json(content))
    fails(capsys, ["--shapes", path], f"{path}", text)


def _json(value):
    return json.dumps(value).encode()


def fails(capsys, arguments, *parts, status=2):
    """The command ends with that status, and one line on standard error."""
    capsys.readouterr()
    assert main(["bench", *map(str, arguments)]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastconv: ")
    assert len(err.splitlines()) == 1, err
    for part in parts:
        assert part in err


def test_bad_arguments(tmp_path, capsys, shapes):
    fails(capsys, ["--shapes", tmp_path / "none.json"], "none.json: No such file")
    fails(capsys, ["--suite", "alexnet"], "there is no suite 'alexnet': expected one of resnet50, vgg16")
    fails(capsys, ["--shapes", shapes, "--threads", 10_000], "--threads is 10000: this process may use")
    fails(capsys, ["--shapes", shapes, "--output", tmp_path / "no" / "r.json"], "--output is", "does not exist")
    fails(capsys, ["--shapes", shapes, "--plot", tmp_path / "no" / "r.png"], "--plot is", "does not exist")
    fails(capsys, ["--into", tmp_path / "README.md"], "--into needs --markdown FILE")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--passes", "fwd,db"], "'db' is none of fwd, dx, dw"),
        (["--peers", "tensorflow"], "'tensorflow' is none of torch, compile, jax"),
        (["--layouts", ""], "'' is none of nchw, best"),
        (["--rounds", "0"], "'0' is not a whole number of at least 1"),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
    ],
)
def test_usage(capsys, arguments, text):
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 2
    assert text in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "--help"])
    assert end.value.code == 0
    assert "--peers" in capsys.readouterr().out


def test_plot_without_matplotlib(capsys, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    fails(capsys, ["--shapes", shapes, "--plot", tmp_path / "r.png"], "--plot needs matplotlib: pip install")


# A whole run


def children(pid):
    path = PROC / str(pid) / "task" / str(pid) / "children"
    return [int(child) for child in path.read_text().split()]


def state(pid):
    """A process's state, "T" when it is stopped; None if it is no more."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_run(capsys, shapes, tmp_path):
    pytest.importorskip("matplotlib")
    output, plot = tmp_path / "results.json", tmp_path / "roofline.png"
    arguments = ["--shapes", shapes, "--rounds", 2, "--threads", 1, "--output", output, "--plot", plot]
    assert main(["bench", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 2
    assert "2/2 tiny" in err

    values = json.loads(output.read_text())
    assert values["threads"] == 1
    assert values["rounds"] == 2
    assert values["dtype"] == "float32"
    assert values["ways"] == ["nchw", "best"]
    assert set(values["versions"]) == {OURS}
    assert {"fastconv", "numba", "llvmlite", "numpy", "python"} <= set(values["versions"][OURS])
    assert {"cpu", "system", "vectors", "vector features"} <= set(values["machine"])
    assert "cache" not in values["machine"]
    assert values["means"] == []
    rows = [(value["suite"], value["layer"], value["computes"]) for value in values["timings"]]
    assert rows == [("tiny", dataclasses.asdict(layer), computes) for layer in LAYERS for computes in PASSES]
    for value, layer in zip(values["timings"], np.repeat(np.array(LAYERS, object), 3), strict=True):
        assert value["flops"] == layer.geometry.flops
        assert value["bytes"] == layer.geometry.bytes(4)
        assert value["algorithm"]
        assert set(value["seconds"]) == {OURS}
        for times in (*value["seconds"][OURS].values(), *value["peak"].values(), *value["copy"].values()):
            assert len(times) == 2
            assert all(isinstance(t, float) and t > 0 for t in times)
        assert set(value["seconds"][OURS]) == {"nchw", "channels_last"}
        assert set(value["peak"]) == set(value["copy"]) == {"1", "all"}

    assert out.count("direct") + out.count("loops") >= 1
    for layer in LAYERS:
        assert out.count(layer.name) == 3
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))

    assert main(["bench", "--markdown", str(output)]) == 0
    block = capsys.readouterr().out
    assert block == table.markdown([Report.load(output)])
    assert LAYERS[0].name in block


def test_only_what_is_asked_for(capsys, shapes, tmp_path):
    output = tmp_path / "results.json"
    arguments = ["--shapes", shapes, "--rounds", 1, "--limit", 1, "--passes", "dw", "--dtype", "float64"]
    assert main(["bench", *map(str, arguments), "--layouts", "nchw", "--output", str(output)]) == 0
    (value,) = json.loads(output.read_text())["timings"]
    assert (value["computes"], value["bytes"]) == ("dw", LAYERS[0].geometry.bytes(8))
    assert set(value["seconds"][OURS]) == set(value["gflops"][OURS]) - {"best"} == {"nchw"}
    assert "best" not in capsys.readouterr().out.partition("pass")[2]


def test_peers(capsys, shapes, tmp_path, module):
    pytest.importorskip("torch")
    module("jax", "raise ModuleNotFoundError(\"No module named 'jax'\")")
    output = tmp_path / "results.json"
    assert main(["bench", "--shapes", shapes, "--rounds", "1", "--peers", "torch,jax", "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    assert "jax is left out, as it cannot be loaded: ModuleNotFoundError: No module named 'jax'" in err
    report = Report.load(output)
    assert report.peers == ["torch"]
    assert all(set(t.seconds["torch"]) == {"nchw", "channels_last"} for t in report.timings)
    means = json.loads(output.read_text())["means"]
    assert [(m["suite"], m["computes"], m["peer"], m["way"], m["count"]) for m in means] == [
        ("tiny", computes, "torch", way, 2) for computes in PASSES for way in ("nchw", "best")
    ]
    assert "x torch best" in out
    assert "Times as fast as torch" in table.markdown([report])


def test_no_worker_is_left(capsys, shapes, module):
    """A worker that dies while it is loaded ends the run with one line, and takes the others with it."""
    module("jax", "import os, sys\nprint('out of luck', file=sys.stderr, flush=True)\nos._exit(3)")
    fails(
        capsys,
        ["--shapes", shapes, "--peers", "jax"],
        "the worker process of jax died (exit status 3) when asked to hello: out of luck",
    )
    if PROC.joinpath("self", "stat").exists():
        assert not children(os.getpid())


# Worker processes


def wait_until(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("nothing happened for a minute")


def test_worker_that_dies():
    with Worker(OURS, 1) as process:
        assert process.ask("hello")["versions"][OURS]
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(
            bench.BenchError, match=r"the worker process of fastconv died .killed by SIGKILL. when asked"
        ):
            process.ask("hello")


def test_worker_that_cannot():
    with (
        Worker(OURS, 1) as process,
        pytest.raises(bench.BenchError, match="fastconv could not check: KeyError: 'nchw'"),
    ):
        process.ask("check", computes="fwd", layout="nchw")


@needs_proc
def test_idle_workers_are_stopped():
    with Worker(OURS, 1) as process:
        process.ask("hello")
        wait_until(lambda: state(process.pid) == "T")
        pid = process.pid
    assert state(pid) is None


@needs_proc
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, -15)])
def test_ended_benchmark_leaves_no_worker(shapes, number, status, tmp_path, module):
    module("jax", "import time\ntime.sleep(600)")
    argv = [sys.executable, "-m", "fastconv", "bench", "--shapes", shapes, "--peers", "jax"]
    with open(tmp_path / "errors", "w+") as errors:
        process = subprocess.Popen(argv, stderr=errors, process_group=0)
        try:
            wait_until(lambda: len(children(process.pid)) == 2)
            idle, loading = children(process.pid)
            wait_until(lambda: state(idle) == "T")
            assert state(loading) != "T"
            process.send_signal(number)
            assert process.wait(60) == status
            wait_until(lambda: {state(idle), state(loading)} <= {None, "Z"})
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        assert errors.read() == ("fastconv: interrupted\n" if number == signal.SIGINT else "")


def ask(*requests, name=OURS):
    """Let a session in this process answer."""
    replies = []
    worker.serve(name, 1, map(json.dumps, requests), lambda text: replies.append(json.loads(text)))
    return replies


def prepare(layer, layouts=("nchw", "channels_last")):
    return {"do": "prepare", "layer": dataclasses.asdict(layer), "dtype": "float64", "layouts": list(layouts)}


@pytest.mark.parametrize("layer", LAYERS)
def test_session(layer):
    checks = [
        {"do": "check", "computes": computes, "layout": layout}
        for computes in PASSES
        for layout in ("nchw", "channels_last")
    ]
    times = {"do": "time", "computes": "fwd", "layout": "nchw", "seconds": 0}
    hello, empty, *replies, timed = ask({"do": "hello"}, prepare(layer), *checks, times)
    assert hello["versions"][OURS]
    assert empty == {}
    assert timed["calls"] == worker.FEWEST
    assert timed["seconds"] > 0
    shapes = layer.geometry.output_shape, layer.geometry.input_shape, layer.geometry.weight_shape
    for check, reply in zip(checks, replies, strict=True):
        assert tuple(reply["shape"]) == shapes[PASSES.index(check["computes"])]
        assert len(reply["samples"]) == worker.SAMPLES
    for nchw, other in zip(replies[::2], replies[1::2], strict=True):
        np.testing.assert_allclose(nchw["samples"], other["samples"], rtol=0, atol=1e-13 * nchw["largest"])


def test_session_describes_the_machine():
    (reply,) = ask({"do": "describe"})
    assert {"cpu", "system", "vectors"} <= set(reply)


def test_session_reports_errors():
    assert ask({"do": "time", "computes": "fwd", "layout": "nchw", "seconds": 0}) == [{"error": "KeyError: 'nchw'"}]


@pytest.mark.parametrize("name", ["torch", "jax", "direct", "serial"])
@pytest.mark.parametrize("layer", [*LAYERS, LONG], ids=str)
def test_peers_compute_the_same(name, layer):
    if name not in ("direct", "serial"):
        pytest.importorskip(name)
    # In a process of its own: it changes settings of the library.
    with Worker(name, 1) as process:
        process.ask("hello")
        request = prepare(layer)
        process.ask(**request)
        for computes in PASSES:
            (_, ours) = ask(request, {"do": "check", "computes": computes, "layout": "nchw"})
            for layout in ("nchw", "channels_last"):
                theirs = process.ask("check", computes=computes, layout=layout)
                assert theirs["shape"] == ours["shape"]
                np.testing.assert_allclose(theirs["samples"], ours["samples"], rtol=0, atol=1e-13 * ours["largest"])


def test_layouts():
    layer = LAYERS[0]
    x, _, _ = arrays(layer, "float32")
    y = channels_last(x)
    assert (x.dtype, x.flags.c_contiguous) == (np.float32, True)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(x, y)
    assert list(CONTENDERS) == [OURS, "direct", "serial", "torch", "compile", "jax", "ncnn"]
    contender = Fastconv(1)
    for layout, last in (("nchw", False), ("channels_last", True)):
        calls = contender.calls(layer, "float32", layout)
        assert calls["fwd"]().transpose(0, 2, 3, 1).flags.c_contiguous is last
        assert calls["dx"]().transpose(0, 2, 3, 1).flags.c_contiguous is last


def check(**changes):
    return {"shape": [2, 3], "samples": [1.0, -2.0], "largest": 2.0, **changes}


@pytest.mark.parametrize(
    "other",
    [
        check(shape=[3, 2]),
        check(samples=[1.0, -2.1]),
        check(samples=[math.nan, -2.0]),
        check(samples=[1.0, math.nan]),
        check(largest=2.5),
        check(largest=math.nan),
        check(samples=[math.inf, -2.0], largest=math.inf),
    ],
)
def test_results_must_agree(other):
    with pytest.raises(bench.BenchError, match="a layer, dw: torch in nchw computes something else than fastconv"):
        measure._compare({(OURS, "nchw"): check(), ("torch", "nchw"): other}, "a layer, dw", 1e-4)
    measure._compare({(OURS, "nchw"): check(), ("torch", "nchw"): check(samples=[1.0001, -2.0])}, "", 1e-4)


# The machine's limits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_peak_tile(dtype):
    width, tasks, count, margin = lanes(np.dtype(dtype).itemsize), 3, 5, 64
    numbers = np.linspace(-1, 1, (1 + ACCUMULATORS) * width).astype(dtype)
    room = np.full(tasks * ACCUMULATORS * width + 2 * margin, np.nan, dtype)
    peak(numbers, count, room[margin:-margin], tasks)
    factor, sums = np.tile(numbers[:width].astype(float), ACCUMULATORS), numbers[width:].astype(float)
    for _ in range(count):
        sums = sums * factor + factor
    np.testing.assert_allclose(room[margin:-margin].reshape(tasks, -1), np.tile(sums, (tasks, 1)), rtol=1e-5)
    assert np.isnan(room[:margin]).all()
    assert np.isnan(room[-margin:]).all()


@pytest.mark.parametrize("tasks", [1, 2, 3, 20])
def test_copy(tasks):
    source, target = np.arange(17.0), np.full(27, np.nan)
    copy(source, target[5:-5], tasks)
    np.testing.assert_array_equal(target[5:-5], source)
    assert np.isnan(target[:5]).all()
    assert np.isnan(target[-5:]).all()


def test_limits(monkeypatch):
    from fastconv.bench import machine

    monkeypatch.setattr(machine, "_copy_bytes", lambda: 8000)
    (limits,) = ask({"do": "limits", "dtype": "float64", "seconds": 0})
    assert set(limits) == {"peak", "copy"}
    for kind in limits.values():
        assert set(kind) == {"1", "all"}
        assert all(value > 0 for value in kind.values())


def test_copied_arrays_are_larger_than_the_caches():
    from fastconv.bench import machine

    assert 2**20 <= machine._copy_bytes() <= 2**36


# Ratios and means


def test_ratios(report):
    t = report.timings[0]
    assert t.best(OURS, "nchw") == t.best(OURS, "best") == 0.02
    assert (t.best("torch", "nchw"), t.best("torch", "best")) == (0.08, 0.01)
    assert (t.ratio("torch", "nchw"), t.ratio("torch", "best")) == (4, 0.5)
    assert t.gflops(OURS, "nchw") == pytest.approx(50)
    assert report.of_peak(t, "best") == pytest.approx(0.5)
    assert t.of_copy("best") == pytest.approx(0.5)
    assert t.intensity == 10
    assert not t.memory_bound
    assert dataclasses.replace(t, bytes=10**8 + 1).memory_bound


def test_a_disturbed_peak(report):
    """Nothing is faster than the peak because another program ran while that was measured."""
    first, second = report.timings[:2]
    disturbed = dataclasses.replace(first, peak={"1": [1.0], "all": [10.0]})
    whole = dataclasses.replace(report, timings=[disturbed, second])
    assert whole.of_peak(disturbed, "best") == pytest.approx(
        first.gflops(OURS, "best") / (0.9 * max(second.peak["all"]))
    )


def test_means(report):
    means = {key: mean for *key, mean in report.means() for key in [tuple(key)]}
    assert list(means)[:2] == [("one", "fwd", "torch", "nchw"), ("one", "fwd", "torch", "best")]
    one = means["one", "fwd", "torch", "nchw"]
    assert (one.count, one.worst, one.slower) == (2, 2, 0)
    assert one.mean == pytest.approx(math.sqrt(8))
    together = means["all", "fwd", "torch", "best"]
    assert (together.count, together.worst, together.worst_layer, together.slower) == (3, 0.5, LAYERS[0].name, 2)
    assert together.mean == pytest.approx((0.5 * 4 * 0.5) ** (1 / 3))
    assert ("one", "dw", "torch", "best") not in means
    assert means["all", "dw", "torch", "nchw"].mean == pytest.approx(3)
    assert report.limit("peak") == 100
    assert report.limit("copy", "1") == 7


def test_report_survives_a_file(report, tmp_path):
    path = tmp_path / "r.json"
    report.save(path)
    assert Report.load(path) == report


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda v: 3, "holds no results"),
        (lambda v: {}, "holds no results"),
        (lambda v: {**v, "format": 99}, "has format 99: expected 1"),
        (lambda v: {**v, "timings": [{}]}, "holds no results"),
        (lambda v: {**v, "timings": [{**v["timings"][0], "layer": {"batch": 1}}]}, "has no field 'channels'"),
        (lambda v: {**v, "timings": []}, "holds no timings"),
        (lambda v: {name: value for name, value in v.items() if name != "machine"}, "holds no results"),
    ],
)
def test_bad_results_file(report, tmp_path, capsys, change, text):
    path = tmp_path / "r.json"
    report.save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    fails(capsys, ["--markdown", path], str(path), text)
    path.write_text("[")
    fails(capsys, ["--markdown", path], "holds no results")


def test_text(report):
    lines = bench.text(report).splitlines()
    assert lines[0] == "A CPU, 2 threads, float32, best of 2 rounds; GFLOP/s"
    assert lines[1].startswith("peak 100 GFLOP/s (50 on one thread), copy 10.0 GB/s (7.0)")
    assert lines[3].split("  ")[0] == "one"
    (row,) = (line for line in lines if line.startswith(LAYERS[1].name))
    assert row.split("  ")[-1] == "4.00"
    assert max(map(len, lines)) < 160
    assert any(line.startswith("torch, best") and line.endswith(LAYERS[0].name) for line in lines)


def test_scaling(report):
    """Beside what the peak gains, which is twofold here; layers that take no time or wait for memory do not count."""
    assert "gain by threads" not in bench.text(report)
    report.versions["serial"] = report.versions.pop("torch")
    for t in report.timings:
        t.seconds["serial"] = t.seconds.pop("torch")
    small, bound = (dataclasses.replace(report.timings[0], **other) for other in ({"flops": 10**8}, {"bytes": 10**9}))
    report.timings += [small, bound]
    *_, head, forward, weight = bench.text(report).splitlines()
    assert head.split("  ")[0] == "gain by threads / the peak's"
    assert forward.split() == ["fwd", "3", "0.25", "0.25", *LAYERS[0].name.split()]
    assert weight.split() == ["dw", "1", "0.50", "0.50", *LAYERS[0].name.split()]


def test_markdown(report):
    block = table.markdown([report, report])
    assert block.startswith(table.BEGIN)
    assert block.endswith(f"{table.END}\n")
    assert block.count("A CPU") == block.count("beside torch 6.7") == 2
    assert "fastconv 1.2.3 (numba 4.5)" in block
    assert "| one | 2 | 2.83 (2.00) | 1.41 (**0.50**) |  |  |" in block
    assert "| all | 3 | 1.59 (**0.50**) | 1.00 (**0.50**) | 3.00 (3.00) | 1.00 (1.00) |" in block
    assert "fastconv is slower than torch (best layouts) in 2 of 4 timings" in block
    assert f"| {LAYERS[0].name} | 50 (50 % of peak) | 4.00 / **0.50** |" in block
    assert f"| {LAYERS[1].name} | 100 (100 % of peak) | 2.00 / 4.00 |" in block


def test_markdown_names_the_limit_that_counts(report):
    report.timings = [dataclasses.replace(report.timings[0], flops=10**8)]
    assert f"| {LAYERS[0].name} | 5.0 (50 % of copy) |" in table.markdown([report])


def test_readme_is_filled(report, tmp_path, capsys):
    results, readme = tmp_path / "r.json", tmp_path / "README.md"
    report.save(results)
    readme.write_text(f"before\n\n{table.BEGIN}\nold\n{table.END}\n\nafter\n")
    for _ in range(2):
        assert main(["bench", "--markdown", str(results), "--into", str(readme)]) == 0
        assert readme.read_text() == f"before\n\n{table.markdown([report])}\nafter\n"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["", table.BEGIN, table.END + table.BEGIN, 2 * (table.BEGIN + table.END)])
def test_readme_without_markers(report, tmp_path, capsys, text):
    results, readme = tmp_path / "r.json", tmp_path / "README.md"
    report.save(results)
    readme.write_text(text)
    fails(capsys, ["--markdown", results, "--into", readme], "does not have the lines", table.BEGIN)
    assert readme.read_text() == text


@pytest.mark.parametrize("peers", [(), ("torch",)])
def test_plot(report, tmp_path, peers):
    pytest.importorskip("matplotlib")
    from fastconv.bench.plot import draw

    report.versions = {name: versions for name, versions in report.versions.items() if name in (OURS, *peers)}
    draw(report, tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 10_000
    report.threads, report.ways = 1, ["nchw"]
    draw(report, tmp_path / "r.png")


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def test_errors(monkeypatch, capsys):
    monkeypatch.setattr(errors, "CHANNELS", (16, 32))
    monkeypatch.setattr(errors, "SIZE", 6)
    monkeypatch.setattr(errors, "SUMMED", 16)
    assert main(["bench", "--errors"]) == 0
    kernels, shapes, depthwise, points = (table.splitlines() for table in capsys.readouterr().out.strip().split("\n\n"))
    assert [line.split()[0] for line in kernels[1:]] == ["forward"] * 2 + ["dX"] * 2 + ["dW"] * 2
    for line in kernels[1:]:
        direct, _, winograd, _ = map(float, line.split()[-4:])
        assert 0 < direct < 1e-6
        assert 0 < winograd < 1e-5
    assert len(shapes) == 1 + 4 * 4 - 2 + 1
    assert all(0 < float(error) < 2e-5 for line in shapes[1:] for error in line.split()[1:])
    assert [line.split()[0] for line in depthwise[1:]] == ["3x3", "6x6", "12x12", "24x24"]
    assert all(0 < float(error) < 2e-6 for line in depthwise[1:] for error in line.split()[1:])
    assert len(points) == 1 + len(errors.CANDIDATES)
    assert all(0 < float(line.split()[-1]) < 1e-5 for line in points[1:])


def test_errors_of_suites(capsys, tmp_path):
    layers = (Layer(1, 3, 9, 5, 3, 1, 1), Layer(2, 4, 8, 4, 3, 1, 1, 4), Layer(9, 9, 99, 99, 3, 1, 1))
    (tmp_path / "one.json").write_text(json.dumps([dataclasses.asdict(layer) for layer in layers]))
    assert main(["bench", "--errors", "suites", "--shapes", str(tmp_path / "one.json"), "--limit", "2"]) == 0
    first, *rows = (line.split() for line in capsys.readouterr().out.strip().splitlines())
    assert [row[:2] for row in rows] == [["one", name] for name in PASSES]
    assert all(0 < float(number) < 1e-6 for row in rows for number in row[2:4])
    if "layer" in first:  # PyTorch is installed
        import torch

        assert all(float(ratio) < 10 for row in rows for ratio in row[4:6])
        assert torch.is_grad_enabled()  # as before


def test_errors_of_training(monkeypatch, capsys):
    seen = []

    def run(given, folder):
        seen.append((given["seed"], fastconv.get_precision()))
        return types.SimpleNamespace(history=[{"test_accuracy": 0.98 + 0.01 * (seen[-1][1] == "high")}])

    monkeypatch.setattr(training, "run", run)
    assert main(["bench", "--errors", "digits"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["mean", "99.00", "98.00", "+1.00"]
    assert seen == [(seed, precision) for seed in range(5) for precision in ("high", "highest")]
    assert fastconv.get_precision() == "high"


@pytest.mark.parametrize("layer", [Layer(1, 3, 9, 5, 3, 1, 1), Layer(1, 3, 9, 5, (5, 1), 1, (2, 0))], ids=str)
def test_ncnn_computes_the_same(layer):
    pytest.importorskip("ncnn")
    results = [
        contender(1).result("prepared", "nchw", contender(1).calls(layer, "float32", "nchw")["prepared"]())
        for contender in (Fastconv, CONTENDERS["ncnn"])
    ]
    np.testing.assert_allclose(*results, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="ncnn takes batches of one image"):
        CONTENDERS["ncnn"](1).calls(LAYERS[0], "float64", "nchw")
