"""Where a step's time goes: every part is told, nothing else changes."""

import sys

import pytest
from test_training import images, same, without_times  # noqa: F401

from fastconv import cli, data, training
from fastconv.training import Profile, Settings, Trainer

QUICK = Settings(epochs=2, batch_size=16, lr=0.02)


def trained(path, profile=None):
    trainer = Trainer(QUICK, data.load(path))
    if profile is None:
        trainer.train_epoch()
        return trainer
    with profile.watch(trainer):
        trainer.train_epoch()
    return trainer


def test_a_watched_trainer_computes_the_same(images):  # noqa: F811
    profile = Profile()
    plain, watched = trained(images), trained(images, profile)
    assert same(without_times(plain.state_dict()), without_times(watched.state_dict()))
    assert profile.steps == plain.steps
    for module in watched.model.modules():
        assert not any(name.startswith(("forward", "_forward", "backward")) for name in vars(module))
    watched.train_epoch()
    assert profile.steps == plain.steps  # it is no longer watched


def test_parts_make_up_the_step(images, monkeypatch):  # noqa: F811
    """With a clock that ticks once at each look, each call takes the looks between its two."""
    ticks = iter(range(10**6))
    monkeypatch.setattr("fastconv.training.profile.time.perf_counter", lambda: next(ticks))
    profile = Profile()
    trained(images, profile)
    rows = profile.rows()
    names = [(row.name, row.kind) for row in rows]
    assert {("1", "Conv2d"), ("3", "MaxPool2d")} <= set(names)
    for kind in ("Linear", "CrossEntropyLoss", "SGD", "images, changed", "all else", "Sequential"):
        assert kind in [row.kind for row in rows]
    assert all(row.forward >= 0 and row.backward >= 0 for row in rows)
    assert profile.milliseconds == pytest.approx(sum(row.forward + row.backward for row in rows))
    convolution = next(row for row in rows if row.kind == "Conv2d")
    assert convolution.backward > 0
    *lines, last = profile.table().splitlines()
    assert len(lines) == len(rows) + 1
    assert last.endswith(f"mean of {profile.steps}")


def test_profile_of_a_run(images, tmp_path, capsys, monkeypatch):  # noqa: F811
    pytest.importorskip("matplotlib")
    folder = tmp_path / "run"
    arguments = ["train", "--data", images, "--epochs", "1", "--run", str(folder), "--profile"]
    assert cli.main(arguments) == 0
    table = (folder / "profile.txt").read_text()
    assert "Conv2d" in table
    out, err = capsys.readouterr()
    assert table in err
    assert "profile.png, profile.txt" in out
    assert (folder / "profile.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    training.run({"data": images, "epochs": 1}, tmp_path / "other", profile=True)
    assert "no curves.png and profile.png, for matplotlib is not installed" in capsys.readouterr().err
    assert (tmp_path / "other/profile.txt").exists()


def test_profile_of_distributed_training_is_refused(capsys, images, tmp_path):  # noqa: F811
    assert cli.main(["train", "--data", images, "--run", str(tmp_path / "run"), "--distributed", "--profile"]) == 2
    assert "--profile does not go with --distributed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
