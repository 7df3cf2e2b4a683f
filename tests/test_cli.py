"""The command line: exit statuses, one clear line for what is wrong, and help."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest

import fastconv
from fastconv import cli, info, kernels, plan, progress, training, warmup
from fastconv.cli import main
from fastconv.tasks import Task


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    np.savez(path, x=rng.normal(size=(40, 6, 6)) + y[:, None, None] * 2, y=y)
    return str(path)


def command(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "fastconv", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, **options)


def fails(capsys: pytest.CaptureFixture, arguments: list[object], *parts: str, status: int = 2) -> None:
    """The command ends with that status and one line on standard error, after at most the line that names the run."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[-1].startswith("fastconv: ")
    assert len(lines) == 1, err
    for part in parts:
        assert part in lines[0], err


# Usage


def test_version():
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fastconv {fastconv.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["warmup", "--help"], ["info", "--help"], ["selftest", "--help"]]
)
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: fastconv")
    if arguments == ["train", "--help"]:
        for option in ("--data", "--model", "--epochs", "--batch-size", "--lr", "--seed", "--run", "--resume"):
            assert option in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--epochs", "0"], "'0' is not a whole number of at least 1"),
        (["train", "--epochs", "ten"], "'ten' is not a whole number of at least 1"),
        (["train", "--batch-size", "-3"], "at least 1"),
        (["train", "--seed", "-1"], "'-1' is not a whole number of at least 0"),
        (["train", "--lr", "0"], "'0' is not a number above 0"),
        (["train", "--lr", "nan"], "'nan' is not a number above 0"),
        (["train", "--lr", "x"], "'x' is not a number above 0"),
        (["train", "--model", "vgg"], "invalid choice: 'vgg'"),
        (["train", "--augment", "noise"], "invalid choice: 'noise'"),
        (["info", "--threads", "0"], "at least 1"),
    ],
)
def test_wrong_usage(arguments, text, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert text in capsys.readouterr().err


def test_resume_needs_a_folder(capsys):
    fails(capsys, ["train", "--resume"], "--resume needs --run DIR")


def test_more_threads_than_there_are(capsys):
    fails(capsys, ["info", "--threads", 10**6], "--threads is 1000000: this process may use")


def test_threads_are_set(images, tmp_path):
    before = numba.get_num_threads()
    try:
        assert main(["train", "--data", images, "--run", str(tmp_path), "--epochs", "1", "--threads", "1"]) == 0
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


def test_help_leaves_optional_packages_alone():
    program = (
        "import sys; from fastconv.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'sklearn', 'matplotlib', 'tqdm', 'fastconv.training'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Training


def test_train_and_resume(images, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "--data", images, "--run", str(folder), "--epochs", "2", "--lr", "0.02"]) == 0
    out, err = capsys.readouterr()
    accuracy, files = out.splitlines()
    assert accuracy.startswith("test accuracy ")
    assert accuracy.endswith("of 8 images)")
    assert files == f"run folder {folder}: checkpoint.npz, curves.png, history.json, weights.npz"
    assert "epoch 2/2: loss" in err
    assert main(["train", "--run", str(folder), "--resume"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [accuracy, files]
    assert "the run is finished" in err
    fails(capsys, ["train", "--run", folder], "holds a run already")


def test_default_folder_is_new(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20250101-120000")
    first = cli._new_folder("lenet")
    first.mkdir(parents=True)
    second = cli._new_folder("lenet")
    assert (first, second) == (Path("runs/20250101-120000-lenet"), Path("runs/20250101-120000-lenet-2"))


def test_relative_paths_are_remembered_whole(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(images).parent)
    assert main(["train", "--data", "images.npz", "--run", str(tmp_path / "run"), "--epochs", "1"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--run", "run", "--resume"]) == 0


def test_bad_data(tmp_path, capsys):
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"PK\x03\x04 not a zip")
    run = ["--run", tmp_path / "run"]
    fails(capsys, ["train", "--data", bad, *run], str(bad))
    fails(capsys, ["train", "--data", tmp_path / "absent", *run], "no such file or folder")
    fails(capsys, ["train", "--data", tmp_path, *run], "expected an .npz archive, a folder of IDX files")
    np.savez(tmp_path / "labels.npz", x=np.zeros((4, 8, 8)), y=[0, 1, 0, 7])
    fails(capsys, ["train", "--data", tmp_path / "labels.npz", *run], "y has label 7")
    assert not (tmp_path / "run").exists()


def test_names_with_line_breaks_stay_on_one_line(tmp_path, capsys):
    fails(capsys, ["train", "--data", tmp_path / "a\nb"], "a b: no such file or folder")


def test_bad_data_from_a_shell(tmp_path):
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(b"\0\0\x08\x03")
    done = command("train", "--data", tmp_path, "--run", tmp_path / "run")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"fastconv: {tmp_path}/train-images-idx3-ubyte: ends after 4 bytes")
    assert not (tmp_path / "run").exists()


def test_conflicts(images, tmp_path, capsys):
    assert main(["train", "--data", images, "--run", str(tmp_path / "run"), "--epochs", "1"]) == 0
    resume = ["train", "--resume", "--run", tmp_path / "run"]
    fails(capsys, [*resume, "--model", "resnet8"], "is a run with model lenet, not resnet8")
    fails(capsys, [*resume, "--epochs", 5], "is a run with epochs 1, not 5")
    fails(capsys, ["train", "--resume", "--run", tmp_path / "none"], "holds no checkpoint")
    (tmp_path / "run" / "checkpoint.npz").write_bytes(b"?")
    fails(capsys, resume, "checkpoint.npz: damaged")


def test_without_scikit_learn(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    fails(capsys, ["train", "--run", tmp_path / "run"], "pip install 'fastconv[train]'")


def test_folders_that_cannot_be_written(images, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    fails(capsys, ["train", "--data", images, "--run", tmp_path / "file" / "run"], "Not a directory")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    fails(capsys, ["train", "--data", images, "--run", tmp_path / "run"], "No space left on device")


def test_out_of_memory(monkeypatch, images, capsys):
    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(training, "run", full)
    fails(capsys, ["train", "--data", images], "not enough memory")


def test_mistakes_in_the_program_are_not_hidden(monkeypatch, images):
    def broken(*arguments, **options):
        raise ValueError("a mistake")

    monkeypatch.setattr(training, "run", broken)
    with pytest.raises(ValueError, match="a mistake"):
        main(["train", "--data", images])


def test_interrupt(images, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "fastconv", "train", "--data", images, "--run", folder, "--epochs", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("fastconv: interrupted; epoch ")
    assert err.splitlines()[-1].endswith(f"of 100000 is saved: fastconv train --run {folder} --resume goes on")
    assert "Traceback" not in err
    state = training.RunFolder(folder).load()
    assert state["epoch"] >= 1  # the line is written before the checkpoint
    assert f"epoch {state['epoch']} of" in err


def test_interrupt_outside_a_run(monkeypatch, capsys, images):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "run", interrupted)
    assert main(["train", "--data", images]) == 130
    assert capsys.readouterr().err == "fastconv: interrupted\n"


def test_a_reader_that_goes_away():
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-m", "fastconv", "info"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    _, err = process.communicate(timeout=120)
    assert err == ""


# Progress


def test_compiling_is_announced(capsys):
    @numba.njit
    def small(x):
        return x + 1

    @numba.njit
    def large(x):
        return small(x) * 2

    with progress.compilation_notice():
        assert capsys.readouterr().err == ""
        assert large(1) == 4
        if not numba.config.DISABLE_JIT:
            assert capsys.readouterr().err == f"{progress._Notice.TEXT} ...\n"
    if numba.config.DISABLE_JIT:
        return
    assert capsys.readouterr().err.startswith("compiled 1 kernels for this machine in ")
    with progress.compilation_notice():
        large(2)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")
def test_compiling_on_a_terminal_shows_the_time(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    @numba.njit
    def first(x):
        return x + 1

    with progress.compilation_notice():
        first(1)
        time.sleep(0.3)
    text = capsys.readouterr().err
    assert f"\r{progress._Notice.TEXT}: 1 so far, " in text
    assert text.endswith("they are cached for the next time\n")


def test_bar_without_a_terminal_is_one_line(capsys):
    with progress.Bar(100, "epoch 1/2") as bar:
        bar.update(50, "loss 2")
        bar.finish("loss 1")
    assert capsys.readouterr().err == "epoch 1/2: loss 1\n"


@pytest.mark.parametrize("installed", [True, False])
def test_bar_on_a_terminal(capsys, monkeypatch, installed):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress.Bar(100, "epoch 1/2") as bar:
        bar.update(50, "loss 2")
        bar.update(50, "loss 2")
        bar.finish("loss 1")
    text = capsys.readouterr().err
    if installed:
        assert "epoch 1/2: 100%" in text
        assert "images/s, loss 1" in text
    else:
        assert text == "epoch 1/2: loss 1\n"


# Information and warm-up


def test_info(capsys):
    assert main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["fastconv"] == fastconv.__version__
    assert lines["numpy"] == np.__version__
    assert lines["numba"] == numba.__version__
    assert {"python", "llvmlite", "torch", "cpu", "vector", "vectors", "threading", "threads", "cache"} <= lines.keys()


def test_info_as_json(capsys):
    assert main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == dict(info.facts()) | {"memory": told["memory"]}
    assert {
        "fastconv",
        "cpu",
        "vector features",
        "threading layer",
        "threads",
        "memory",
        "variables",
        "cache",
    } <= told.keys()


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_caches_that_others_may_write_to(tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    private.chmod(0o700)
    assert info._writable_by_others(private) is None
    private.chmod(0o777)
    assert info._writable_by_others(private) == private
    private.chmod(0o1777)  # a sticky bit keeps files from being replaced, but not from being added
    assert info._writable_by_others(private) == private
    inner = private / "inner"
    inner.mkdir()
    inner.chmod(0o700)
    assert info._writable_by_others(inner) is None
    private.chmod(0o777)
    assert info._writable_by_others(inner) == private
    private.chmod(0o700)
    index = inner / "kernel.py311.nbi"
    index.touch()
    index.chmod(0o644)
    assert info._writable_by_others(inner) is None
    index.chmod(0o666)
    assert info._writable_by_others(inner) == index


def test_info_warns_of_such_a_cache(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.setattr(info, "cache_folder", lambda: tmp_path)
    assert list(info.lines(info.facts()))[-1].startswith(f"warning           others may write to {tmp_path}")
    monkeypatch.setattr(info, "cache_folder", lambda: None)
    assert "no folder can be written to" in list(info.lines(info.facts()))[-1]


def test_warmup_visits_every_row_of_the_plan(monkeypatch):
    names = [name for name, _ in warmup.tasks()]
    for row in plan.TABLE:
        for dtype in ("float32", "float64"):
            assert f"{row.algorithm}, 2-D, {dtype}" in names
    assert "layers, float32" in names


def test_warmup_says_what_it_does(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(
        warmup, "tasks", lambda: iter([("a", lambda: done.append("a")), ("b", lambda: done.append("b"))])
    )
    assert main(["warmup"]) == 0
    assert done == ["a", "b"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("compiling kernels: 1/2 a, ")
    assert lines[-1].startswith("all kernels are compiled and cached, in ")


@pytest.mark.parametrize("threads", [False, pytest.param(True, marks=pytest.mark.long)])
def test_warmup_tasks_run(threads, monkeypatch):
    """In one dtype and two dimensions, all tasks; those that compile a second time, with threads or without, are long."""
    every = {
        name
        for module in pkgutil.iter_modules(kernels.__path__)
        for name, value in vars(importlib.import_module(f"fastconv.kernels.{module.name}")).items()
        if isinstance(value, Task)
    }
    met, run = set(), Task.__call__
    monkeypatch.setattr(Task, "__call__", lambda self, *args, **kw: (met.add(self.__name__), run(self, *args, **kw))[1])
    for name, call in warmup.tasks():
        if "float32" in name and ("2-D" in name or "-D" not in name) and ("threads" in name) == threads:
            call()
    assert threads or met == every


@pytest.mark.long
def test_training_after_a_warmup_compiles_nothing(tmp_path, images):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert command("warmup", env=environment).returncode == 0
    for model in ("lenet", "resnet8"):
        arguments = ["train", "--data", images, "--epochs", "1", "--model", model, "--run", tmp_path / model]
        done = command(*arguments, env=environment)
        assert done.returncode == 0, done.stderr
        assert "compil" not in done.stderr


def test_distributed_needs_pytorch(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("torch", "distributed"):
        monkeypatch.delitem(sys.modules, f"fastconv.{name}", raising=False)
        monkeypatch.delattr(fastconv, name, raising=False)
    assert main(["train", "--distributed", "--run", str(tmp_path / "run")]) == 2
    assert "--distributed needs PyTorch: pip install 'fastconv[torch]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Ends:
    """Is interrupted when it ends."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_is_not_lost_where_an_object_ends(monkeypatch, capsys):
    """Python would ignore the exception there, and tell of it."""

    def run(arguments):
        Ends()
        time.sleep(5)

    monkeypatch.setattr(cli, "_info", run)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr() == ("", "fastconv: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
