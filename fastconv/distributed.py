"""Training on many machines: ``fastconv train --distributed``, in processes that torchrun starts.

Each process has the whole model, takes its share of every batch, and all get the mean of their gradients by PyTorch's
DistributedDataParallel with the gloo backend.  A `DistributedTrainer` is a `fastconv.training.Trainer` but for its step: the
model is there a second time as a PyTorch module of fastconv's convolutions, whose parameters, gradients and running means are
the same memory.  So optimiser, schedule, checkpoints and weights are those of a run in one process, and either can go on with
what the other has left.

Only the first process touches the run folder; what it reads there, the others are told.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numba
import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fastconv import data, nn, training
from fastconv import torch as ft
from fastconv.training import RunError, RunFolder, Trainer

__all__ = ["DistributedTrainer", "as_torch", "run"]

Array = np.ndarray[Any, Any]

TIMEOUT = datetime.timedelta(minutes=5)
"""How long a process waits for others that are alive but silent, for example because they still compile.  One that has died is
missed at once."""

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process."""


# ---------------------------------------------------------------------------------------------------------------------
# A model as a PyTorch module
# ---------------------------------------------------------------------------------------------------------------------


class Residual(torch.nn.Module):  # type: ignore[misc]
    """`fastconv.nn.Residual` in PyTorch."""

    def __init__(self, body: Any, shortcut: Any) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Any) -> Any:
        """Compute body(x) + shortcut(x)."""
        return self.body(x) + (x if self.shortcut is None else self.shortcut(x))


def _conv2d(layer: nn.Conv2d) -> Any:
    bias = "bias" in layer._parameters
    made = ft.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, 0, layer.dilation, layer.groups, bias
    )
    made.least_flops = 0
    return made


LAYERS: dict[type[nn.Module], Callable[[Any], Any]] = {
    nn.Conv2d: _conv2d,
    nn.ZeroPad2d: lambda layer: torch.nn.ZeroPad2d(layer.padding),
    nn.ReLU: lambda layer: torch.nn.ReLU(),
    nn.MaxPool2d: lambda layer: torch.nn.MaxPool2d(
        layer.kernel_size, layer.stride, layer.padding, layer.dilation, ceil_mode=layer.ceil_mode
    ),
    nn.AdaptiveAvgPool2d: lambda layer: torch.nn.AdaptiveAvgPool2d(layer.output_size),
    nn.Flatten: lambda layer: torch.nn.Flatten(),
    nn.Linear: lambda layer: torch.nn.Linear(layer.in_features, layer.out_features, "bias" in layer._parameters),
    nn.BatchNorm2d: lambda layer: torch.nn.BatchNorm2d(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    ),
    nn.Sequential: lambda module: torch.nn.Sequential(*map(_structure, module)),
    nn.Residual: lambda module: Residual(
        _structure(module.body), None if module.shortcut is None else _structure(module.shortcut)
    ),
}
"""Layers of `fastconv.models`, each with what makes its counterpart."""


def _structure(module: nn.Module) -> Any:
    if type(module) not in LAYERS:
        raise RunError(f"a {type(module).__name__} has no counterpart in PyTorch that --distributed knows")
    return LAYERS[type(module)](module)


def as_torch(model: nn.Module) -> Any:
    """Make a PyTorch module that computes what a model does, with its parameters, gradients and buffers in the same memory.

    Parameters
    ----------
    model : nn.Module
        Of layers that `fastconv.models` use.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    RunError
        If it has another layer.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 1, rng=0))
    >>> module = as_torch(model)
    >>> with torch.no_grad():
    ...     _ = module[0].weight.fill_(7)
    >>> model[0].weight
    array([[7., 7.]], dtype=float32)
    """
    module = _structure(model)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for name, tensor in module.named_parameters():
        tensor.data = torch.from_numpy(parameters[name].data)
        tensor.grad = torch.from_numpy(parameters[name].grad_buffer(accumulate=True))
    for name, tensor in module.named_buffers():
        tensor.data = torch.from_numpy(buffers[name])
    return module


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class DistributedTrainer(Trainer):
    """A trainer whose batches are shared out among all processes.

    Batch normalisation sees a process's own share, as is the custom; running means are the first process's.

    Parameters
    ----------
    settings : Settings
        The batch size is that of all processes together.
    dataset : Dataset
        The same in every process.

    Attributes
    ----------
    module : DistributedDataParallel
        `as_torch` of the model.

    Raises
    ------
    RunError
        If the images do not suit the model, or a batch has fewer images than there are processes.
    """

    def __init__(self, settings: training.Settings, dataset: data.Dataset) -> None:
        super().__init__(settings, dataset)
        least = len(dataset.x_train) // self.steps
        if least < dist.get_world_size():
            raise _of_all(RunError(f"batches of {least} images are too small for {dist.get_world_size()} processes"))
        self.module = DistributedDataParallel(as_torch(self.model))
        self.share = slice(dist.get_rank(), None, dist.get_world_size())

    def rehearse(self) -> None:
        """Compile every kernel, and wait until all processes have done so."""
        super().rehearse()
        dist.barrier()

    def gradients(self, x: Array, y: Array) -> tuple[float, int]:
        """Leave the gradients of a batch's mean loss in the parameters; return the loss and the number of right answers.

        Raises
        ------
        RunError
            If the loss is no longer finite.
        """
        self.module.zero_grad(set_to_none=False)
        target = torch.from_numpy(y[self.share])
        scores = self.module(torch.from_numpy(x[self.share]))
        loss = F.cross_entropy(scores, target, reduction="sum") / len(y)
        total, right = _sums(float(loss.detach()), int((scores.argmax(1) == target).sum()))
        if not math.isfinite(total):
            raise self._diverged()
        (loss * dist.get_world_size()).backward()  # of which all then get the mean
        for parameter in self.model.parameters():
            parameter.mark_fresh()
        return total, int(right)

    def _step(self, x: Array, y: Array) -> tuple[float, int]:
        loss, right = self.gradients(x, y)
        self.optimiser.step()
        self.schedule.step()
        return loss, right

    def evaluate(self, x: Array, y: Array) -> tuple[float, int]:
        """Mean loss over images, and how many the model gets right; each process looks at its share."""
        images = x[self.share]
        loss, right = super().evaluate(images, y[self.share]) if len(images) else (0.0, 0)
        total, hits = _sums(loss * len(images), right)
        return total / len(x), int(hits)


def _sums(*values: float) -> list[float]:
    """Add up numbers over all processes."""
    numbers = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(numbers)
    sums: list[float] = numbers.tolist()
    return sums


class SharedFolder(RunFolder):
    """A run folder in the hands of the first process; what it finds or fails at there, all processes do."""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, as `RunFolder.held`."""
        held = super().held
        with contextlib.ExitStack() as stack:
            _by_the_first(lambda: stack.enter_context(held()))
            yield

    def refuse_another_run(self) -> None:
        """Raise a RunError if there is a checkpoint in the folder."""
        _by_the_first(super().refuse_another_run)

    def expect_a_run(self) -> None:
        """Raise a RunError if there is no checkpoint in the folder."""
        _by_the_first(super().expect_a_run)

    def load(self) -> dict[str, Any]:
        """Read the checkpoint, and tell it to all."""
        state: dict[str, Any] = _by_the_first(super().load)
        return state

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint, weights and history: they are the same in all processes."""
        self.saved = trainer.epoch
        if dist.get_rank() == 0:
            super().save(trainer)

    def draw(self, trainer: Trainer) -> bool:
        """Draw the curves."""
        return dist.get_rank() > 0 or super().draw(trainer)


def _by_the_first(call: Callable[[], Any]) -> Any:
    """Let the first process call a function, and all return what it returns, or raise what it raises."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = call()
        except (RunError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise _of_all(outcome[1])
    return outcome[0]


def _of_all(error: Exception) -> Exception:
    """Return an error that all processes end with, once each has got so far: one that left earlier would seem to be lost."""
    dist.barrier()
    return error


@contextlib.contextmanager
def _group(threads: int | None) -> Iterator[None]:
    """Join the other processes, with a share of this machine's threads."""
    if missing := [name for name in LAUNCHER if name not in os.environ]:
        raise RunError(
            f"--distributed needs {', '.join(missing)} in the environment, which torchrun sets: "
            "torchrun --nproc-per-node 2 -m -- fastconv train --distributed"
        )
    share = threads or max(1, numba.config.NUMBA_NUM_THREADS // int(os.environ["LOCAL_WORLD_SIZE"]))
    numba.set_num_threads(share)
    torch.set_num_threads(share)
    try:
        dist.init_process_group("gloo", timeout=TIMEOUT)
        yield
        dist.barrier()  # nobody leaves while another still needs it
        dist.destroy_process_group()
    except RuntimeError as error:  # gloo has no class of its own for what befalls it
        reason = str(error).splitlines()[0]
        raise RunError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} has lost another one ({reason}); "
            "the last epoch is saved: the same command with --resume goes on"
        ) from error


def run(
    given: Mapping[str, Any], folder: str | os.PathLike[str], *, resume: bool = False, threads: int | None = None
) -> Trainer | None:
    """Train in this process and those that were started with it, as `fastconv.training.run` does in one.

    Parameters
    ----------
    given : mapping
        Fields of `fastconv.training.Settings`.
    folder : path
        The run folder, on the first process's machine.
    resume : bool
        Go on from the folder's checkpoint.
    threads : int or None
        Of this process; None shares out the machine's among the processes on it.

    Returns
    -------
    Trainer or None
        After its last epoch; None in all processes but the first.

    Raises
    ------
    RunError
        As `fastconv.training.run`, and if another process has died, or the processes were not started by torchrun.
    """
    with _group(threads), contextlib.ExitStack() as stack:
        first = dist.get_rank() == 0
        if not first:  # one process tells about all
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stderr(silence))
        trainer = training.run(
            given, folder, resume=resume, folder_class=SharedFolder, trainer_class=DistributedTrainer
        )
    return trainer if first else None
