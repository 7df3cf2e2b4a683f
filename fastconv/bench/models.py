"""``fastconv bench --models``: steps of training whole networks, beside a peer.

A step is a forward pass, the loss, a backward pass and a step of SGD with momentum.  A model's table says who can take steps of
it, and how: an entry of `MODELS` is all that another network needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..progress import say
from .layers import BenchError
from .processes import Worker
from .results import OURS, WAYS

__all__ = ["MODELS", "Model", "ModelReport", "run", "text"]

Step = Callable[[], float]

TOLERANCE = 1e-3
"""Largest difference of two contenders' losses before the first step, as a multiple of the loss."""

WINDOW = 0.5
"""Seconds of one turn of one contender, unless two steps take longer."""


@dataclass(frozen=True)
class Model:
    """A network to train, and on what.

    Attributes
    ----------
    name : str
    batch, classes : int
    image : (int, int, int)
        Channels, height and width.
    steps : dict
        ``steps[contender](model, layout)`` returns a function that takes a step and returns the loss before it: the same
        network with the same weights on the same images, whoever it is and however they lie in memory.
    """

    name: str
    batch: int
    image: tuple[int, int, int]
    classes: int
    steps: Mapping[str, Callable[[Model, str], Step]]

    def __str__(self) -> str:
        return f"{self.name} {' x '.join(map(str, (self.batch, *self.image)))}"


def _in_pytorch(model: Model, layout: str) -> Step:
    """Step of a network of `fastconv.bench.networks`; channels-last images with weights that lie so, too."""
    import torch

    network, x, y = _of_pytorch(model)
    if layout == "channels_last":
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return _step_of(network, x, y)


def _converted(model: Model, layout: str) -> Step:
    """Step of the same network by fastconv, which takes weights as they are."""
    import torch

    import fastconv.torch

    network, x, y = _of_pytorch(model)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    return _step_of(fastconv.torch.convert(network), x, y)


def _of_pytorch(model: Model) -> tuple[Any, Any, Any]:
    import torch

    from .networks import NETWORKS

    torch.manual_seed(0)
    network = NETWORKS[model.name](model.classes)
    return network, torch.randn(model.batch, *model.image), torch.randint(model.classes, (model.batch,))


def _step_of(network: Any, x: Any, y: Any) -> Step:
    from .networks import step_of

    return step_of(network, x, y)


def _of_layers(model: Model) -> tuple[Any, Any, Any]:
    """Return a network of `fastconv.models`, images and classes."""
    from .. import models

    rng = np.random.default_rng(0)
    network = getattr(models, model.name)(model.image, model.classes, rng=0)
    return (
        network,
        rng.standard_normal((model.batch, *model.image), np.float32),
        rng.integers(model.classes, size=model.batch),
    )


def _in_layers(model: Model, layout: str) -> Step:
    """Step of a network of `fastconv.nn`, whose layers lay out activations as they like."""
    from .. import nn

    network, x, y = _of_layers(model)
    if layout == "channels_last":
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    loss_of, optimiser = nn.CrossEntropyLoss(), nn.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step() -> float:
        network.zero_grad()
        loss = loss_of(network(x), y)
        network.backward(loss_of.backward())
        optimiser.step()
        return loss

    return step


def _translated(model: Model, layout: str) -> Step:
    """Step of the same network in PyTorch, with the same weights."""
    import torch

    from .networks import in_torch

    network, images, y = _of_layers(model)
    network, x = in_torch(network), torch.from_numpy(images)
    if layout == "channels_last":
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return _step_of(network, x, torch.from_numpy(y))


OF_LAYERS = {OURS: _in_layers, "torch": _translated}
UNDER_PYTORCH = {OURS: _converted, "torch": _in_pytorch}

MODELS = {
    model.name: model
    for model in (
        Model("lenet", 128, (1, 28, 28), 10, OF_LAYERS),
        Model("resnet8", 64, (3, 32, 32), 10, OF_LAYERS),
        Model("vgg11", 64, (3, 32, 32), 10, OF_LAYERS),
        Model("resnet18", 64, (3, 64, 64), 10, UNDER_PYTORCH),
        Model("mobilenet_v2", 32, (3, 96, 96), 10, UNDER_PYTORCH),
        Model("convnext", 16, (3, 64, 64), 10, UNDER_PYTORCH),
    )
}


@dataclass
class ModelReport:
    """What was measured.

    Attributes
    ----------
    date : str
    machine, versions : dict
        As in `fastconv.bench.results.Report`.
    threads, rounds : int
    ways : list of str
    seconds : dict
        ``seconds[model][contender][layout]``: the best step of each round.
    """

    date: str
    machine: dict[str, str]
    versions: dict[str, dict[str, str]]
    threads: int
    rounds: int
    ways: list[str]
    seconds: dict[str, dict[str, dict[str, list[float]]]] = dataclasses.field(default_factory=dict)

    def best(self, model: str, contender: str, way: str) -> float:
        """Seconds of a step, compared in one of `WAYS`; NaN for who cannot take it."""
        layouts = self.seconds[model].get(contender, {})
        return min((min(layouts[layout]) for layout in WAYS[way] if layout in layouts), default=math.nan)

    def ratio(self, model: str, peer: str, way: str) -> float:
        """How many times as fast as a peer fastconv is."""
        return self.best(model, peer, way) / self.best(model, OURS, way)

    def save(self, path: str) -> None:
        """Write a JSON file."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")


def run(
    names: Sequence[str], peers: Sequence[str], threads: int, rounds: int, ways: Sequence[str], output: str | None
) -> ModelReport:
    """Time steps of some models, contenders in turn, each in a process of its own.

    Raises
    ------
    BenchError
        If a worker fails, or two of them do not compute the same loss.
    """
    layouts = list(dict.fromkeys(layout for way in ways for layout in WAYS[way]))
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, threads)) for name in (OURS, *peers)}
        versions = {}
        for name, worker in workers.items():
            reply = worker.ask("hello")
            if "missing" in reply:
                raise BenchError(f"{name} cannot be loaded: {reply['missing']}")
            versions[name] = reply["versions"]
        report = ModelReport(
            time.strftime("%Y-%m-%d %H:%M:%S %z"), workers[OURS].ask("describe"), versions, threads, rounds, list(ways)
        )
        for name in names:
            turns = [(who, layout) for layout in layouts for who in workers if who in MODELS[name].steps]
            _compare({turn: _first_loss(workers[turn[0]], name, turn[1]) for turn in turns}, name)
            times = report.seconds[name] = {who: {layout: [] for layout in layouts} for who, _ in turns}
            for _ in range(rounds):
                for who, layout in turns:
                    reply = workers[who].ask("time", computes="step", layout=layout, seconds=WINDOW)
                    times[who][layout].append(reply["seconds"])
            say(f"{MODELS[name]}: {_figures(report, name)}")
            if output is not None:
                report.save(output)
    return report


def _first_loss(worker: Worker, name: str, layout: str) -> float:
    reply = worker.ask("prepare_model", name=name, layout=layout)
    if "missing" in reply:
        raise BenchError(f"{name} needs what cannot be loaded: {reply['missing']}")
    loss: float = reply["loss"]
    return loss


def _compare(losses: dict[tuple[str, str], float], name: str) -> None:
    """Check that all have one loss."""
    (_, first), *others = losses.items()
    for (who, layout), loss in others:
        if not abs(loss - first) <= TOLERANCE * abs(first):
            raise BenchError(f"{name}: {who} in {layout} has a loss of {loss}, {OURS} in nchw one of {first}")


def _figures(report: ModelReport, name: str) -> str:
    way = report.ways[-1]
    return ", ".join(f"{who} {1000 * report.best(name, who, way):.0f} ms" for who in report.seconds[name])


def text(report: ModelReport) -> str:
    """Return the table that ``fastconv bench --models`` prints."""
    from .table import aligned

    peers = [name for name in report.versions if name != OURS]
    head = ["a step", *(f"{who} {way}, ms" for who in (OURS, *peers) for way in report.ways)]
    rows = [[*head, *(f"x {peer} {way}" for peer in peers for way in report.ways)]]
    for name in report.seconds:
        row = [str(MODELS[name])]
        row += [f"{1000 * report.best(name, who, way):.1f}" for who in (OURS, *peers) for way in report.ways]
        rows.append([*row, *(f"{report.ratio(name, peer, way):.2f}" for peer in peers for way in report.ways)])
    versions = ", ".join(f"{who} {report.versions[who][who]}" for who in report.versions)
    threads, rounds = (
        f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((report.threads, "thread"), (report.rounds, "round"))
    )
    title = f"{report.machine.get('cpu', 'an unknown CPU')}, {threads}, float32, best of {rounds}; {versions}"
    return "\n".join([title, "", *aligned(rows)])
