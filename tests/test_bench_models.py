"""The benchmark of whole networks: what it measures, and the tables that it prints.  No test asserts a time."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
from numba import config

from fastconv.bench import memory, models, startup, steps, worker
from fastconv.bench.layers import BenchError
from fastconv.bench.processes import Worker
from fastconv.bench.results import OURS
from fastconv.cli import _parser, main


def model_report():
    seconds = {
        "fastconv": {"nchw": [0.2, 0.1], "channels_last": [0.08]},
        "torch": {"nchw": [0.3], "channels_last": [0.12]},
    }
    versions = {"fastconv": {"fastconv": "1"}, "torch": {"torch": "2"}}
    return models.ModelReport("today", {"cpu": "a CPU"}, versions, 2, 3, ["nchw", "best"], {"resnet18": seconds})


def test_models_table():
    title, _, head, row = models.text(model_report()).splitlines()
    assert title == "a CPU, 2 threads, float32, best of 3 rounds; fastconv 1, torch 2"
    columns = [
        "fastconv nchw, ms",
        "fastconv best, ms",
        "torch nchw, ms",
        "torch best, ms",
        "x torch nchw",
        "x torch best",
    ]
    assert re.split(r"\s{2,}", head) == ["a step", *columns]
    assert re.split(r"\s{2,}", row) == ["resnet18 64 x 3 x 64 x 64", "100.0", "80.0", "300.0", "120.0", "3.00", "1.50"]


def test_a_model_that_not_all_can_train():
    """The table has a place for it: networks of fastconv's own layers need not have a peer."""
    report = model_report()
    del report.seconds["resnet18"]["torch"]
    assert np.isnan(report.ratio("resnet18", "torch", "best"))
    assert "nan" in models.text(report).splitlines()[-1]


def test_models_must_agree_on_the_loss():
    models._compare({("fastconv", "nchw"): 2.3, ("torch", "nchw"): 2.3001}, "m")
    for other in (2.31, float("nan")):
        with pytest.raises(BenchError, match="m: torch in nchw has a loss of"):
            models._compare({("fastconv", "nchw"): 2.3, ("torch", "nchw"): other}, "m")


def test_options_that_do_not_go_with_models(capsys):
    assert main(["bench", "--models", "resnet18", "--suite", "small"]) == 2
    assert capsys.readouterr().err == "fastconv: --suite does not go with --models\n"
    for peer in ("direct", "serial", "jax", "ncnn"):
        assert main(["bench", "--models", "lenet", "--peers", f"torch,{peer}"]) == 2
        message = f"fastconv: --peers has {peer}, which trains no networks: expected torch or compile\n"
        assert capsys.readouterr().err == message
    assert _parser().parse_args(["bench", "--models"]).models == tuple(models.MODELS)
    with pytest.raises(SystemExit):
        main(["bench", "--models", "lenet9000"])
    assert "'lenet9000' is none of lenet, resnet8, vgg11, resnet18" in capsys.readouterr().err


def test_tables_beside_the_times():
    report = model_report()
    report.losses = {
        "resnet18": {
            "fastconv": {"nchw": [2.0, 1.0], "channels_last": [2.0, 1.5]},
            "torch": {"nchw": [2.0, 1.25], "channels_last": [2.0, 1.125]},
        }
    }
    report.megabytes = {"resnet18": {"fastconv": {"nchw": 50.0, "channels_last": 40.0}, "torch": {"nchw": 100.0}}}
    report.first = {"fastconv": [0.75, 0.5], "torch": [2.0, 1.5]}
    report.absent = {"resnet18": {"compile": "no C++ compiler"}}
    *_, last = lines = models.text(report).splitlines()
    rows = {re.split(r"\s{2,}", head)[0]: re.split(r"\s{2,}", row)[1:] for head, row in itertools.pairwise(lines)}
    assert rows["memory of steps"] == ["40", "100", "2.50"]
    assert rows["losses of 3 x 50 steps"] == ["1.1e-01", "1.0e-01", "1.11"]
    assert rows["a process's first step"] == ["0.50", "1.50", "3.00"]
    assert last == "compile could not take a step of resnet18: no C++ compiler"


def test_losses_apart():
    assert models.distance([1.0, 3.0], [1.0, 2.0]) == 0.5
    assert models.distance([1.0], [1.0]) == 0


class Stand:
    """Stands for a worker whose steps are counted and take no time."""

    def __init__(self, name, fails=False):
        self.name, self.fails, self.asked = name, fails, []

    def ask(self, do, **request):
        self.asked.append(do)
        if self.fails:
            raise BenchError("no C++ compiler\nand a long story")
        return {"loss": 2.0, "seconds": 0.1, "losses": [2.0, 1.0], "megabytes": 10.0}


def test_who_cannot_compile_is_left_out_and_told():
    workers = {name: Stand(name, fails=name == "compile") for name in (OURS, "torch", "compile")}
    report = model_report()
    report.versions["compile"] = {"compile": "2"}
    models._measure("resnet18", workers, ["nchw", "channels_last"], report)
    assert report.absent == {"resnet18": {"compile": "no C++ compiler"}}
    assert set(report.seconds["resnet18"]) == set(report.megabytes["resnet18"]) == {OURS, "torch"}
    assert workers["compile"].asked == ["prepare_model"]
    assert workers["torch"].asked == [*["prepare_model"] * 2, *["time"] * 6, *["losses"] * 2, *["memory"] * 2]
    assert "nan" in models.text(report)
    workers["torch"].fails = True
    with pytest.raises(BenchError, match="no C"):
        models._measure("resnet18", workers, ["nchw"], report)


def test_torch_compile_takes_the_same_steps():
    pytest.importorskip("torch")
    losses = []
    for name in ("torch", "compile"):
        with Worker(name, 1) as process:
            try:
                losses.append(process.ask("losses", name="lenet", layout="nchw", steps=2)["losses"])
            except BenchError as error:
                pytest.skip(f"torch.compile cannot run here: {error}")
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_layers_are_not_compiled(capsys):
    pytest.importorskip("torch")
    assert main(["bench", "--suite", "small", "--limit", "1", "--peers", "compile"]) == 2
    assert "torch.compile is timed on whole networks only, with --models" in capsys.readouterr().err


def counting(model, layout):
    """Return a step that keeps 64 MB."""
    kept = []

    def step():
        kept[:] = [np.ones(8_000_000)]
        return 1.0

    return step


def test_memory_of_steps(monkeypatch):
    model = dataclasses.replace(steps.MODELS["lenet"], steps={OURS: counting})
    megabytes = memory.megabytes_of_steps(OURS, model, "nchw")
    if megabytes is not None:
        assert 60 <= megabytes <= 140  # a step makes its array before the last one's is gone
    monkeypatch.setattr(memory, "PROC", memory.PROC / "nowhere")
    assert memory.megabytes_of_steps(OURS, model, "nchw") is None


def test_a_worker_trains_and_measures(monkeypatch):
    model = dataclasses.replace(steps.MODELS["lenet"], batch=2, image=(1, 8, 8))
    monkeypatch.setitem(steps.MODELS, "lenet", model)
    session = worker.Session(OURS, 1)
    losses = session.losses("lenet", "nchw", 3)["losses"]
    assert losses[2] < losses[0]
    both = session.losses("lenet", "nchw", 2, runs=2)["losses"]
    assert both[:2] == losses[:2]
    assert both[2:] != losses[:2]
    assert session.prepare_model("lenet", "channels_last")["loss"] == pytest.approx(losses[0])
    assert set(session.memory("lenet", "nchw")) == {"megabytes"}


def test_first_steps(monkeypatch):
    monkeypatch.setattr(startup, "PROGRAMS", {OURS: "print('a loss')", "torch": "raise OSError('no luck')"})
    seconds = startup.seconds_to_first_step([OURS], 1, 2)
    assert len(seconds[OURS]) == 2
    with pytest.raises(BenchError, match="the first step of torch failed: OSError: no luck"):
        startup.seconds_to_first_step([OURS, "torch"], 1, 1)


@pytest.mark.skipif(config.DISABLE_JIT, reason="networks take too long without the compiler")
@pytest.mark.parametrize("who", [OURS, "torch"])
def test_programs_of_first_steps(who):
    if who == "torch":
        pytest.importorskip("torch")
    assert startup._seconds(who, 1) > 0
