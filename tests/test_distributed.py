"""Training in several processes: the gradients of one, a death that all notice, and a run that goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from numba import config
from test_training import same, stripes, without_times

pytest.importorskip("torch")

from fastconv import checkpoint, cli, data, distributed, training

pytestmark = [
    pytest.mark.skipif(config.DISABLE_JIT, reason="training needs the compiler"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),
]

PROCESSES = 2
TOO_LONG = 240  # seconds after which a process hangs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return stripes(tmp_path_factory.mktemp("data") / "stripes.npz", count=100, side=8)


def start(*command, **more):
    """Start processes as torchrun would, but without its agent, which would end the others when one dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES), "MASTER_PORT": port}
    environment = {**os.environ, **shared, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"} | more
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]


def finish(processes):
    """Wait for all, and return (status, output, errors) of each."""
    try:
        return [(p.wait(), *texts) for p, texts in [(p, p.communicate(timeout=TOO_LONG)) for p in processes]]
    finally:
        for process in processes:
            process.kill()


def train(*options, **more):
    return start("-m", "fastconv", "train", "--distributed", *map(str, options), **more)


GRADIENTS = """
    import sys
    import numpy as np
    from fastconv import data, distributed, training

    path, model, out = sys.argv[1:]
    with distributed._group(None):
        dataset = data.load(path)
        trainer = distributed.DistributedTrainer(training.Settings(model=model, batch_size=100), dataset)
        loss, right = trainer.gradients(dataset.x_train, dataset.y_train)
        rank = distributed.dist.get_rank()
        threads = distributed.torch.get_num_threads(), distributed.numba.get_num_threads()
        grads = {name: p.grad for name, p in trainer.model.named_parameters()}
        np.savez(f"{out}/{rank}.npz", loss=loss, right=right, threads=threads, **grads)
"""


def test_gradients_are_those_of_the_whole_batch(images, tmp_path):
    for status, _, errors in finish(start("-c", textwrap.dedent(GRADIENTS), images, "lenet", tmp_path)):
        assert status == 0, errors
    dataset = data.load(images)
    assert len(dataset.x_train) == 80
    alone = training.Trainer(training.Settings(batch_size=100), dataset)
    loss = alone.loss(alone.model(dataset.x_train), dataset.y_train)
    alone.model.backward(alone.loss.backward())
    for rank in range(PROCESSES):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert float(found["loss"]) == pytest.approx(float(loss), rel=1e-6)
            share = max(1, config.NUMBA_NUM_THREADS // PROCESSES)
            assert found["threads"].tolist() == [share, share]
            for name, parameter in alone.model.named_parameters():
                largest = np.abs(parameter.grad).max()
                assert largest > 1e-4
                np.testing.assert_allclose(found[name], parameter.grad, rtol=0, atol=2e-6 * largest, err_msg=name)


OWN_MODEL = """
    import sys
    import torch
    import torch.distributed as dist
    from torch import nn
    from fastconv.torch import convert

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten())

    def gradients(model, x):
        model(x).square().mean().backward()
        return [parameter.grad for parameter in model.parameters()]

    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    x = torch.randn(8, 3, 9, 9)
    dist.broadcast(x, 0)
    for last in (torch.contiguous_format, torch.channels_last):
        model = convert(network().to(memory_format=last), least_flops=0)
        shared = nn.parallel.DistributedDataParallel(model)
        own, whole = gradients(shared, x.chunk(count)[rank].contiguous(memory_format=last)), gradients(network(), x)
        for one, other in zip(own, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    dist.destroy_process_group()
"""


def test_gradients_of_a_converted_model():
    """A model of one's own, in PyTorch's wrapper, in both memory formats."""
    for status, _, errors in finish(start("-c", textwrap.dedent(OWN_MODEL))):
        assert status == 0, errors


SILENT = """
    import datetime, os, signal, sys
    from fastconv import cli, distributed

    step, distributed.TIMEOUT = distributed.DistributedTrainer.gradients, datetime.timedelta(seconds=15)

    def stop(trainer, x, y):
        if trainer.epoch and distributed.dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return step(trainer, x, y)

    distributed.DistributedTrainer.gradients = stop
    sys.exit(cli.main(["train", "--distributed", *sys.argv[1:]]))
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no way to make a process silent")
def test_a_silent_process_ends_the_others(images, tmp_path):
    """One that is alive but does nothing, as on a machine that has lost its network."""
    options = ["--data", images, "--epochs", 40, "--batch-size", 10, "--run", tmp_path / "run"]
    first, stopped = start("-c", textwrap.dedent(SILENT), *map(str, options))
    try:
        _, errors = first.communicate(timeout=TOO_LONG)
        assert stopped.poll() is None
    finally:
        for process in (first, stopped):
            process.kill()
            process.communicate()
    assert first.returncode == 2, errors
    assert "fastconv: process 0 of 2 has lost another one" in errors.splitlines()[-1]


def test_torchrun(images, tmp_path):
    """The README's line; it trains as one process does, whose checkpoint it could have written."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES), "-m", "--"]
    options = ["--data", images, "--epochs", "3", "--batch-size", "16", "--model", "resnet8"]
    command = [sys.executable, *launcher, "fastconv", "train", "--distributed", *options]
    done = subprocess.run(
        [*command, "--run", tmp_path / "run"], capture_output=True, text=True, timeout=TOO_LONG, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == done.stderr.count("epoch 3/3") == 1
    together = checkpoint.load(tmp_path / "run/checkpoint.npz")
    assert cli.main(["train", *options, "--run", str(tmp_path / "alone")]) == 0
    alone = checkpoint.load(tmp_path / "alone/checkpoint.npz")
    assert [list(together), list(together["model"])] == [list(alone), list(alone["model"])]
    assert same(together["generator"], alone["generator"])
    assert together["history"][-1]["train_loss"] < together["history"][0]["train_loss"]
    refused = subprocess.run(
        [*command, "--run", tmp_path / "run"], capture_output=True, text=True, timeout=TOO_LONG, check=False
    )
    assert refused.returncode != 0
    assert "holds a run already" in refused.stderr


def test_a_killed_process_ends_the_others_and_the_run_goes_on(images, tmp_path):
    """And in the end it has the bits of a run that nobody has disturbed."""
    epochs = 40
    options = ["--data", images, "--epochs", epochs, "--batch-size", 10]
    processes = train(*options, "--run", tmp_path / "run")
    history = tmp_path / "run/history.json"
    deadline = time.monotonic() + TOO_LONG
    while not (history.exists() and json.loads(history.read_text())["epochs"]) and time.monotonic() < deadline:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    (status, _, errors), killed = finish(processes)
    assert killed[0] == -signal.SIGKILL
    assert status == 2, errors
    assert "fastconv: process 0 of 2 has lost another one" in errors.splitlines()[-1]
    assert "--resume goes on" in errors
    done = checkpoint.load(tmp_path / "run/checkpoint.npz")["epoch"]
    assert 0 < done < epochs

    (status, out, errors), other = finish(train("--run", tmp_path / "run", "--resume"))
    assert (status, other[0]) == (0, 0), errors + other[2]
    assert f"resumed after epoch {done} of {epochs}" in errors
    assert "test accuracy" in out
    assert other[1:] == ("", "")  # one process tells about all
    assert [status for status, *_ in finish(train(*options, "--run", tmp_path / "whole"))] == [0, 0]
    resumed, whole = (checkpoint.load(tmp_path / name / "checkpoint.npz") for name in ("run", "whole"))
    assert same(without_times(resumed), without_times(whole))


def test_two_machines(images, tmp_path):
    """The README's lines for them, both on this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--master-addr", "localhost", "--master-port", port]
    command = ["fastconv", "train", "--distributed", "--data", images, "--epochs", "2"]
    folders = tmp_path / "here", tmp_path / "there"
    machines = [
        subprocess.Popen(
            [sys.executable, *launcher, "--node-rank", str(rank), "-m", "--", *command, "--run", folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]
    (status, out, errors), other = finish(machines)
    assert (status, other[0]) == (0, 0), errors + other[2]
    assert "test accuracy" in out
    assert "test accuracy" not in other[1]
    assert [folder.exists() for folder in folders] == [True, False]


def test_what_only_the_first_process_can_see_all_are_told(images, tmp_path):
    for status, _, errors in finish(train("--run", tmp_path / "absent", "--resume")):
        assert status == 2
        assert f"{tmp_path / 'absent'} holds no checkpoint to resume from" in errors
    assert not (tmp_path / "absent").exists()
    for status, _, errors in finish(train("--data", images, "--batch-size", 1, "--run", tmp_path / "small")):
        assert status == 2
        assert "batches of 1 images are too small for 2 processes" in errors


def test_without_a_launcher(capsys, tmp_path, monkeypatch):
    for name in distributed.LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["train", "--distributed", "--run", str(tmp_path / "run")]) == 2
    assert "--distributed needs RANK, WORLD_SIZE" in capsys.readouterr().err
