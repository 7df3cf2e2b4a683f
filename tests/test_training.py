"""Training: checkpoints that come back bit for bit, runs that may be killed at any moment, folders that tell all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastconv import archive, augment, checkpoint, data, models, nn, training
from fastconv.training import RunError, Settings, Trainer

QUICK = {"epochs": 3, "batch_size": 16, "lr": 0.02}


def stripes(path: Path, count: int = 60, side: int = 6) -> str:
    """An archive of images of two classes that are easy to tell apart."""
    rng = np.random.default_rng(0)
    y = np.arange(count) % 2
    x = rng.normal(0, 0.2, (count, side, side))
    x[:, ::2, :] += (y == 0)[:, None, None]
    x[:, :, ::2] += (y == 1)[:, None, None]
    np.savez(path, x=x.astype(np.float32), y=y)
    return str(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


def same(a: object, b: object) -> bool:
    """Whether two states are equal in types, values and bits."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic) and type(a) is type(b):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and repr(a) == repr(b)


def without_times(state: dict) -> dict:
    """A run's state but for what a clock has measured."""
    clocks = ("seconds", "images_per_second")
    history = [{key: value for key, value in entry.items() if key not in clocks} for entry in state["history"]]
    return state | {"history": history}


# Checkpoint files


STATE = {
    "numbers": [1, -2.5, float("inf"), 2**100, True, None, "text ü"],
    "nested": {"a": {"b": np.arange(3, dtype=np.float32)}, "a/b": np.zeros((2, 0))},
    "integers": {0: np.float32(0.1), "0": np.array(1.5)},
    "tuple": (1, (2, [3])),
    "random": np.random.default_rng(5).bit_generator.state,
    "empty": {},
}


def test_checkpoint_round_trip(tmp_path):
    checkpoint.save(tmp_path / "c.npz", STATE)
    assert same(checkpoint.load(tmp_path / "c.npz"), STATE)


def test_sameness_is_strict():
    assert not same(np.float32(1), np.float64(1))
    assert not same([1.0], [1])
    assert not same({"a": np.zeros(2)}, {"a": np.array([0.0, -0.0])})
    assert not same({"a": 1, "b": 2}, {"a": 1})


@pytest.mark.parametrize("value", [object(), {1.5: 2}, {None: 2}, {1, 2}, 1j, b"bytes"])
def test_checkpoint_refuses_other_values(tmp_path, value):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "c.npz", {"value": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [None, "", "[", "7", "[1]", '{"a": 1, "b": 2}', '{"array": "x"}', '{"other": 1}', '{"dict": 3}', '{"dict": [[1]]}',
     "[" * 100_000],
)  # fmt: skip
def test_archives_that_are_no_checkpoints(tmp_path, text):
    archive.write(tmp_path / "c.npz", {"x": np.zeros(1)} if text is None else {"state": np.array(text)})
    with pytest.raises(checkpoint.CheckpointError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "c.npz")


def test_every_truncated_checkpoint_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c.npz", {"a": np.arange(4), "b": 1})
    content = (tmp_path / "c.npz").read_bytes()
    for size in range(len(content)):
        (tmp_path / "c.npz").write_bytes(content[:size])
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load(tmp_path / "c.npz")


# Models and augmentation


def test_lenet_on_28_by_28_is_the_usual_one():
    shapes = [parameter.shape for parameter in models.lenet((1, 28, 28), 10).parameters() if len(parameter.shape) > 1]
    assert shapes == [(32, 1, 3, 3), (64, 32, 3, 3), (128, 1600), (10, 128)]


@pytest.mark.parametrize("model", sorted(models.MODELS))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 5), (2, 17, 16)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_models_take_any_image(model, shape, dtype):
    network = models.build(model, shape, 7, dtype=dtype, rng=0)
    network.eval()
    scores = network(np.zeros((2, *shape), dtype))
    assert scores.shape == (2, 7)
    assert scores.dtype == dtype


def test_resnet8_has_three_blocks():
    network = models.resnet8((3, 32, 32), 10)
    blocks = [module for module in network if isinstance(module, nn.Residual)]
    assert len(blocks) == 3
    kernels = [p.shape for p in network.parameters() if len(p.shape) == 4]
    assert kernels == [
        (32, 3, 3, 3), (32, 32, 3, 3), (32, 32, 3, 3),
        (64, 32, 3, 3), (64, 64, 3, 3), (64, 32, 1, 1),
        (128, 64, 3, 3), (128, 128, 3, 3), (128, 64, 1, 1),
    ]  # fmt: skip


def test_models_that_cannot_be(images):
    with pytest.raises(ValueError, match=r"3 x 8 pixels: lenet needs at least 4 x 4"):
        models.build("lenet", (1, 3, 8), 10)
    with pytest.raises(ValueError, match="no model 'vgg': expected one of lenet, resnet8"):
        models.build("vgg", (1, 8, 8), 10)
    with pytest.raises(TypeError, match="dtype is float16: expected float32 or float64"):
        models.build("lenet", (1, 8, 8), 10, dtype=np.float16)


def test_shift_moves_whole_images():
    x = np.arange(2 * 3 * 5 * 6, dtype=np.float32).reshape(2, 3, 5, 6) + 1
    background = np.array([-1.0, -2.0, -3.0])
    seen = set()
    for seed in range(60):
        moved = augment.shift(x, background, np.random.default_rng(seed))
        for image, original in zip(moved, x, strict=True):
            matches = []
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    expected = np.broadcast_to(background[:, None, None], (3, 7, 8)).astype(np.float32).copy()
                    expected[:, 1 + down : 6 + down, 1 + right : 7 + right] = original
                    if np.array_equal(image, expected[:, 1:6, 1:7]):
                        matches.append((down, right))
            assert len(matches) == 1
            seen.update(matches)
    assert len(seen) == 9


def test_warp_without_change_is_the_identity():
    class Nothing(np.random.Generator):
        def uniform(self, low, high, size):
            return np.zeros(size)

    x = np.random.default_rng(0).normal(size=(3, 2, 8, 9)).astype(np.float32)
    still = augment.warp(x, np.zeros(2), Nothing(np.random.PCG64(0)))
    np.testing.assert_allclose(still, x, rtol=0, atol=1e-6)
    assert still.dtype == np.float32


def test_warp_of_an_inclined_plane_is_an_inclined_plane():
    # Bilinear interpolation is exact on it: every result is the plane at the place that the pixel comes from.
    i, j = np.meshgrid(np.arange(24.0), np.arange(24.0), indexing="ij")
    x = np.broadcast_to(3 * i + 2 * j, (20, 1, 24, 24))
    warped = augment.warp(x, np.zeros(1), np.random.default_rng(0))[:, 0, 8:16, 8:16]
    for image, original in zip(warped, x[:, 0, 8:16, 8:16], strict=True):
        assert not np.allclose(image, original)
        np.testing.assert_allclose(np.diff(image, 2, axis=0), 0, atol=1e-9)
        np.testing.assert_allclose(np.diff(image, 2, axis=1), 0, atol=1e-9)


def test_warp_fills_with_the_background():
    constant = np.full((50, 2, 8, 8), 4.0)
    constant[:, 1] = -7
    np.testing.assert_allclose(augment.warp(constant, np.array([4.0, -7.0]), np.random.default_rng(0)), constant)


def test_mirror_exchanges_left_and_right():
    x = np.random.default_rng(0).normal(size=(64, 1, 3, 4))
    result = augment.mirror(x, np.random.default_rng(1))
    turned = [np.array_equal(a, b[..., ::-1]) for a, b in zip(result, x, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(result, x, strict=True)]
    assert all(t != k for t, k in zip(turned, kept, strict=True))
    assert 16 < sum(turned) < 48


# Settings and trainers


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": "vgg"}, "model is 'vgg': expected one of lenet, resnet8"),
        ({"augment": "noise"}, "augment is 'noise': expected one of none, shift, warp"),
        ({"epochs": 0}, "epochs is 0: expected an integer of at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"seed": -1}, "seed is -1: expected an integer of at least 0"),
        ({"lr": float("nan")}, "lr is nan: expected a number of at least 0"),
        ({"momentum": "0.9"}, "momentum is '0.9'"),
    ],
)
def test_settings_are_checked(changes, text):
    with pytest.raises(RunError, match=text):
        Settings(**changes)


def test_defaults_suit_the_data(images):
    few = training.default_settings(data.load(images), {"lr": None, "seed": 3})
    assert (few.batch_size, few.augment, few.mirror, few.seed) == (32, "warp", False, 3)
    x, y = np.zeros((10_000, 3, 4, 4), np.float32), np.zeros(10_000, np.int64)
    photographs = data.Dataset("photographs", x, y, x[:1], y[:1], 2, np.zeros(3), np.ones(3), mirror=True)
    many = training.default_settings(photographs, {"epochs": 2})
    assert (many.batch_size, many.augment, many.mirror, many.epochs) == (128, "shift", True, 2)


@pytest.mark.parametrize("model", sorted(models.MODELS))
def test_training_learns(images, model):
    dataset = data.load(images)
    given = {"model": model, "epochs": 8, "batch_size": 8, "augment": "shift"}
    trainer = Trainer(training.default_settings(dataset, given), dataset)
    for _ in range(8):
        trainer.train_epoch()
    assert trainer.history[-1]["train_loss"] < trainer.history[0]["train_loss"] / 2
    assert trainer.history[-1]["test_accuracy"] == 1
    assert trainer.history[-1]["test_right"] == 12


@pytest.mark.parametrize("model", sorted(models.MODELS))
def test_a_rehearsal_changes_nothing(images, model):
    dataset = data.load(images)
    trainer = Trainer(training.default_settings(dataset, QUICK | {"model": model}), dataset)
    before = trainer.state_dict()
    trainer.rehearse()
    assert same(trainer.state_dict(), before)


def test_same_seed_same_bits(images):
    dataset = data.load(images)

    def weights(seed: int) -> dict:
        trainer = Trainer(training.default_settings(dataset, QUICK | {"seed": seed}), dataset)
        trainer.train_epoch()
        return without_times(trainer.state_dict())

    assert same(weights(1), weights(1))
    assert not same(weights(1)["model"], weights(2)["model"])


def test_a_loss_that_runs_away_is_reported(images):
    dataset = data.load(images)
    trainer = Trainer(training.default_settings(dataset, QUICK | {"lr": 1e30}), dataset)
    with pytest.raises(RunError, match=r"the loss is no longer finite in epoch 1: try a smaller --lr than 1e\+30"):
        trainer.train_epoch()


def test_batches_that_a_model_cannot_take(images, tmp_path):
    stripes(tmp_path / "tiny.npz", side=4)
    given = {"data": str(tmp_path / "tiny.npz"), "model": "resnet8", "batch_size": 1}
    with pytest.raises(RunError, match="resnet8 cannot be trained on batches of 1 images of 1 x 4 x 4"):
        training.run(given, tmp_path / "run")


# Runs


def test_a_run_folder_tells_all(images, tmp_path, capsys):
    trainer = training.run(QUICK | {"data": images}, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["checkpoint.npz", "curves.png", "history.json", "weights.npz"]
    fresh = models.build("lenet", (1, 6, 6), 2, rng=9)
    fresh.load_state_dict(nn.load(tmp_path / "run" / "weights.npz"))
    assert same(fresh.state_dict(), trainer.model.state_dict())
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert history["epochs"] == trainer.history
    assert history["settings"]["model"] == "lenet"
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in shown if line.startswith("epoch")] == [f"epoch {i}/3" for i in (1, 2, 3)]
    assert "images/s" in shown[-1]


def stop_after(monkeypatch, epoch: int) -> None:
    """Let the user interrupt in the middle of the epoch after that one."""
    step, begun = Trainer._step, []

    def interrupted(self, x, y):
        if self.epoch == epoch:
            begun.append(1)
            if len(begun) == 2:
                raise KeyboardInterrupt
        return step(self, x, y)

    monkeypatch.setattr(Trainer, "_step", interrupted)


@pytest.mark.parametrize("model", sorted(models.MODELS))
@pytest.mark.parametrize("done", [0, 1, 2])
def test_resumed_equals_uninterrupted(images, tmp_path, monkeypatch, model, done):
    given = QUICK | {"data": images, "model": model, "seed": 4}
    whole = training.run(given, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, done)
        with pytest.raises(KeyboardInterrupt, match=f"epoch {done} of 3 is saved: .*--resume goes on"):
            training.run(given, tmp_path / "parts")
    parts = training.run({}, tmp_path / "parts", resume=True)
    assert same(without_times(parts.state_dict()), without_times(whole.state_dict()))
    assert (tmp_path / "parts/weights.npz").read_bytes() == (tmp_path / "whole/weights.npz").read_bytes()
    saved = [checkpoint.load(tmp_path / name / "checkpoint.npz") for name in ("parts", "whole")]
    assert same(*map(without_times, saved))


def test_a_finished_run_says_so(images, tmp_path, capsys):
    first = training.run(QUICK | {"data": images}, tmp_path)
    (tmp_path / "weights.npz").unlink()
    capsys.readouterr()
    again = training.run({}, tmp_path, resume=True)
    assert same(again.state_dict(), first.state_dict())
    assert "the run is finished: all 3 epochs are done" in capsys.readouterr().err
    assert (tmp_path / "weights.npz").exists()


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    training.run(QUICK | {"data": images, "epochs": 1}, folder)
    return folder


def test_runs_that_cannot_start_or_go_on(images, finished, tmp_path):
    def refused(text, given, folder, *, resume):
        before = sorted((path.name, path.read_bytes()) for path in Path(folder).glob("*"))
        with pytest.raises(RunError, match=text) as caught:
            training.run(given, folder, resume=resume)
        assert "\n" not in str(caught.value)
        assert sorted((path.name, path.read_bytes()) for path in Path(folder).glob("*")) == before

    refused("holds a run already: --resume", {"data": images}, finished, resume=False)
    refused("holds no checkpoint to resume from", {}, tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()
    refused("is a run with model lenet, not resnet8", {"model": "resnet8"}, finished, resume=True)
    refused("is a run with epochs 1, not 2", {"epochs": 2}, finished, resume=True)
    other = stripes(tmp_path / "other.npz", count=40)
    refused("is a run on other data than .*other.npz", {"data": other}, finished, resume=True)
    (tmp_path / "file").write_text("")
    refused("is not a folder", {"data": images}, tmp_path / "file", resume=False)
    assert training.run({"epochs": 1, "data": images, "model": "lenet"}, finished, resume=True).epoch == 1


def test_data_that_have_moved(images, finished, tmp_path):
    moved = tmp_path / "moved.npz"
    moved.write_bytes(Path(images).read_bytes())
    assert training.run({"data": str(moved)}, finished, resume=True).epoch == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("settings"),
        lambda state: state["settings"].update(epochs="many"),
        lambda state: state["settings"].update(model="vgg"),
        lambda state: state["model"].popitem(),
        lambda state: state["model"].update({"0.weight": np.zeros(3)}),
        lambda state: state["optimiser"].update(lr="fast"),
        lambda state: state.update(optimiser=[]),
        lambda state: state.update(schedule={"last_epoch": "?"}),
        lambda state: state["generator"].update(state=7),
        lambda state: state.update(generator=None),
        lambda state: state.update(epoch="one"),
        lambda state: state.update(history=3),
        lambda state: state.update(format=99),
        lambda state: state.pop("data"),
    ],
)
def test_checkpoints_with_something_wrong_in_them(finished, tmp_path, change):
    state = checkpoint.load(finished / "checkpoint.npz")
    change(state)
    checkpoint.save(tmp_path / "checkpoint.npz", state)
    with pytest.raises(RunError):
        training.run({}, tmp_path, resume=True)


def test_a_folder_belongs_to_one_process(finished):
    program = "import sys; from fastconv import training; training.run({}, sys.argv[1], resume=True)"
    with training.RunFolder(finished).held():
        with pytest.raises(RunError, match="another process is at work in"):
            training.run({}, finished, resume=True)
        done = subprocess.run([sys.executable, "-c", program, finished], capture_output=True, text=True, check=False)
    assert "RunError: another process is at work in" in done.stderr
    assert training.run({}, finished, resume=True).epoch == 1


def test_leftovers_of_a_killed_run_go(finished):
    (finished / ".checkpoint.npz.1-00000000.tmp").write_bytes(b"half")
    training.run({}, finished, resume=True)
    assert not list(finished.glob(".*"))


def test_a_failed_save_keeps_the_last_checkpoint(images, tmp_path, monkeypatch):
    replace, count = os.replace, []

    def full(source, target):
        count.append(1)
        if len(count) > 4:  # three files before the first epoch, and the checkpoint after it
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            training.run(QUICK | {"data": images}, tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert checkpoint.load(tmp_path / "checkpoint.npz")["epoch"] == 1
    assert training.run({}, tmp_path, resume=True).epoch == 3


def test_without_matplotlib(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    training.run(QUICK | {"data": images, "epochs": 1}, tmp_path)
    assert not (tmp_path / "curves.png").exists()
    assert "no curves.png, for matplotlib is not installed" in capsys.readouterr().err


def start(folder: Path, given: dict, *, resume: bool = False) -> subprocess.Popen:
    argv = [sys.executable, "-m", "fastconv", "train", "--run", str(folder)]
    for name, value in given.items():
        argv += [f"--{name.replace('_', '-')}", str(value)]
    with open(f"{folder}.log", "w") as log:
        return subprocess.Popen([*argv, *["--resume"] * resume], stderr=log, stdout=subprocess.DEVNULL)


def epochs_saved(folder: Path) -> int:
    if not (folder / "checkpoint.npz").exists():
        return -1
    return int(checkpoint.load(folder / "checkpoint.npz")["epoch"])  # there is never a damaged one to be seen


def epochs_told(folder: Path) -> int:
    """The last epoch that a run has said it had done, or found done."""
    text = Path(f"{folder}.log").read_text()
    return max(
        (int(n) for n in re.findall(r"^(?:epoch|resumed after epoch) ([0-9]+)\b", text, re.MULTILINE)), default=0
    )


def check_files(folder: Path) -> None:
    """What a reader may open is whole, or not there yet."""
    for name, read in (("weights.npz", nn.load), ("history.json", lambda path: json.loads(path.read_text()))):
        if (folder / name).exists():
            assert read(folder / name)


def stopped_and_resumed(tmp_path: Path, images: str, epochs: int, stops: int, how: signal.Signals) -> list[float]:
    """Stop a run at random moments and go on; return the seconds that it took to end each time."""
    given = QUICK | {"data": images, "epochs": epochs, "seed": 2}
    rng = np.random.default_rng(0)
    folder, reached, seconds = tmp_path / "run", -1, []
    for _ in range(stops):
        process = start(folder, given, resume=reached >= 0)
        try:
            while process.poll() is None and epochs_saved(folder) <= reached:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.2))
        finally:
            process.send_signal(how)
            sent = time.perf_counter()
            status = process.wait(60)
            seconds.append(time.perf_counter() - sent)
        # Python may still end by the signal, where it interrupted an exec(): to a shell that is status 130, too.
        assert status in ((-how,) if how == signal.SIGKILL else (130, -how)), Path(f"{folder}.log").read_text()
        assert "Traceback" not in Path(f"{folder}.log").read_text()
        assert epochs_saved(folder) > reached
        assert epochs_saved(folder) >= epochs_told(folder) - 1  # an epoch is told of before it is saved
        reached = epochs_saved(folder)
        check_files(folder)
    resumed = training.run({}, folder, resume=True)
    whole = training.run(given, tmp_path / "whole")
    assert same(without_times(resumed.state_dict()), without_times(whole.state_dict()))
    assert not list(folder.glob(".*"))
    return seconds


@pytest.mark.parametrize(
    ("epochs", "stops"), [(40, 2), pytest.param(500, 50, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_killed_and_resumed(images, tmp_path, epochs, stops):
    stopped_and_resumed(tmp_path, images, epochs, stops, signal.SIGKILL)


@pytest.mark.parametrize(
    ("epochs", "stops"), [(40, 2), pytest.param(250, 20, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_interrupted_and_resumed(images, tmp_path, epochs, stops):
    """Ctrl-C at random moments ends a run within a second; here within three, as others may use the machine."""
    assert max(stopped_and_resumed(tmp_path, images, epochs, stops, signal.SIGINT)) < 3


INTERRUPTED = """
import time, numpy as np, fastconv
fastconv.set_precision("highest")  # so that the result is exact
x, w = np.ones((8, 64, 56, 56), np.float32), np.ones((64, 64, 3, 3), np.float32)
fastconv.conv2d(x, w)
try:
    print("ready", flush=True)
    for _ in range(100_000):  # a minute or more, and an end even if nobody is left to interrupt it
        fastconv.conv2d(x, w)
except KeyboardInterrupt:
    out = fastconv.conv2d(x, w)
    print((out == 576).all())
"""


def test_ctrl_c_stops_a_loop_of_calls():
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "True\n")
    assert time.perf_counter() - start < 3


LEAKS = """
import gc, sys, numpy as np
from fastconv import nn

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

rng = np.random.default_rng(0)
model = nn.Sequential(
    nn.ZeroPad2d(1), nn.Conv2d(1, 8, 3, rng=0), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(8, 16, 3, rng=0), nn.ReLU(), nn.AvgPool2d(2), nn.Dropout(0.2, rng=0), nn.Flatten(),
    nn.Linear(16 * 6 * 6, 10, rng=0),
)
loss, optimiser = nn.CrossEntropyLoss(), nn.SGD(model.parameters(), lr=0.01, momentum=0.9)
schedule = nn.CosineAnnealingLR(optimiser, int(sys.argv[1]))
sizes = []
for step in range(int(sys.argv[1])):
    n = int(rng.integers(1, 33))
    x, y = rng.standard_normal((n, 1, 28, 28), np.float32), rng.integers(0, 10, n)
    if len(sys.argv) > 2:
        kept = globals().setdefault("kept", [])
        kept.append(x)
    model.zero_grad()
    loss(model(x), y)
    model.backward(loss.backward())
    optimiser.step()
    schedule.step()
    if step == int(sys.argv[1]) // 3:
        before = resident()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as on Linux")
@pytest.mark.parametrize("steps", [400, pytest.param(10_000, marks=pytest.mark.long)])
def test_training_leaks_nothing(steps):
    """Two thirds of the steps, with batches of all sizes, add no more than a batch takes; kept batches would be seen."""
    command, environment = [sys.executable, "-c", LEAKS, str(steps)], os.environ | {"NUMBA_NUM_THREADS": "1"}
    flat, grown = (
        int(subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=True).stdout)
        for more in ([], ["kept"])
    )
    assert flat < 4 * 2**20
    assert grown > 8 * 2**20


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_digits_reach_98_percent(tmp_path, seed):
    trainer = training.run({"seed": seed}, tmp_path)
    assert trainer.history[-1]["test_accuracy"] >= 0.98
