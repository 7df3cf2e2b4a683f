"""Modules made of modules: one after the other, or around a shortcut."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .activation import ReLU
from .checks import Array, as_array, check_dtype, check_shape
from .convolution import Convolution, Pairs
from .module import EVALUATED, FAILED, USED_UP, Module
from .normalisation import BatchNorm2d
from .padding import ZeroPadding
from .pooling import MaxPool2d

__all__ = ["Residual", "Sequential"]


class Step(NamedTuple):
    """One call of a `Sequential`: a module, and the zero padding or the ReLU beside it that it takes over."""

    module: Module
    padding: Pairs | None = None
    relu: ReLU | None = None
    fused: bool = True

    def run(self, x: Array) -> Array:
        """Call the module."""
        if self.relu is not None and isinstance(self.module, MaxPool2d | BatchNorm2d):
            self.relu._forget("the last one was part of the layer beside it, whose backward does all the work")
            return self.module.forward_rectified(x)
        if self.fused and isinstance(self.module, Convolution) and type(self.module).forward is Convolution.forward:
            return self.module.forward_channels_last(x, self.padding)
        return self.module(x)


class Container(Module):
    """What containers share: refusing a module that is there twice, and the repr."""

    def _adopt(self) -> None:
        seen: set[int] = set()
        for module in self.modules():
            if id(module) in seen:
                raise ValueError(f"the same {module!r} is there twice: a layer keeps the activations of one call only")
            seen.add(id(module))
        self._name_parameters()

    def _notes(self) -> dict[int, str]:
        """What the repr says behind modules, by their `id`."""
        return {}

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        notes = self._notes()
        for name, child in self.children().items():
            text = f"({name}): {child!r}{notes.get(id(child), '')}"
            if child._parameters:
                shapes = (f"{key} {parameter.shape}" for key, parameter in child._parameters.items())
                text += f"  # {', '.join(shapes)}"
            lines += [f"  {line}" for line in text.splitlines()]
        count = sum(parameter.data.size for parameter in self.parameters())
        return "\n".join([*lines, f")  # {count:,} parameters"])


class Sequential(Container):
    """Modules one after the other.

    A zero padding layer right in front of a convolution of the same dimension is fused into it: the convolution gets
    the padding as an argument, and no padded array is kept or even made here.  A `ReLU` right in front of a `MaxPool2d`,
    or else right behind a `BatchNorm2d`, is computed by that in one go, forward and backward, as the repr says behind it.
    ``fuse(False)`` runs each layer by itself.  Sequentials inside are treated as if their modules stood in their place.

    One sample without a batch axis goes through as a batch of one and comes out without it, where the first layer that
    is not elementwise tells (a convolution, padding, pooling or normalisation of known dimension).

    Parameters
    ----------
    *modules : Module
        Each object at most once.

    Raises
    ------
    TypeError
        If an argument is no module.
    ValueError
        If one is there twice.

    Examples
    --------
    >>> from fastconv import nn
    >>> model = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    >>> model
    Sequential(
      (0): ZeroPad2d((1, 1, 1, 1))
      (1): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))  # weight (4, 1, 3, 3), bias (4,)
      (2): ReLU()
      (3): Flatten()
      (4): Linear(in_features=256, out_features=10, bias=True)  # weight (10, 256), bias (10,)
    )  # 2,610 parameters
    >>> model(np.ones((2, 1, 8, 8), dtype=np.float32)).shape
    (2, 10)
    >>> model.backward(np.ones((2, 10), dtype=np.float32)) is None
    True
    >>> [parameter.name for parameter in model.parameters()]
    ['1.weight', '1.bias', '4.weight', '4.bias']
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        for index, module in enumerate(modules):
            if not isinstance(module, Module):
                raise TypeError(f"module {index} is of type {type(module).__name__}: expected an nn.Module")
        self._modules = modules
        self._ran: tuple[list[Step], bool, tuple[int, ...], np.dtype[Any]] | None = None
        self._adopt()

    def children(self) -> dict[str, Module]:
        """Modules directly inside this one, by their position."""
        return {str(index): module for index, module in enumerate(self._modules)}

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules)

    def __getitem__(self, index: int) -> Module:
        return self._modules[operator.index(index)]

    def forward(self, x: Array) -> Array:
        """Apply the modules in turn.

        Parameters
        ----------
        x : ndarray
            What the first module takes.

        Returns
        -------
        ndarray
            What the last module returns.

        Raises
        ------
        TypeError, ValueError
            Those of the modules.
        """
        self._forget(FAILED)
        x = as_array("x", x)
        single = self._sample_axes() == x.ndim
        steps = list(fused(self._leaves()) if self.fusing else (Step(leaf, fused=False) for leaf in self._leaves()))
        output = x[np.newaxis] if single else x
        for step in steps:
            output = step.run(output)
        if single:
            output = output[0]
        if self.training:
            self._ran = (steps, single, output.shape, output.dtype)
        else:
            self._forget(EVALUATED)
        return output

    def backward(self, grad_output: Array, *, input_grad: bool = False) -> Array | None:
        """Compute the gradients of all parameters for the last forward pass, whose activations it uses up.

        Parameters
        ----------
        grad_output : ndarray
            Gradient of the loss with respect to the output, of the output's shape and dtype.
        input_grad : bool
            Whether the gradient of the input is wanted too.  Without it the first module that has parameters skips its
            part of that, and those in front of it have nothing to do.

        Returns
        -------
        None, or with input_grad an ndarray of the shape and dtype of x

        Raises
        ------
        RuntimeError
            If there is no forward pass in training mode that no backward pass has used yet.
        TypeError, ValueError
            If grad_output has another dtype or shape than the output; the activations are then still there.
        """
        if self._ran is None:
            raise self._nothing_kept()
        steps, single, shape, dtype = self._ran
        grad = as_array("grad_output", grad_output)
        check_shape("grad_output", grad, shape)
        check_dtype("grad_output", grad, dtype, "the output")
        self._forget(USED_UP)
        if single:
            grad = grad[np.newaxis]
        first = next((i for i, step in enumerate(steps) if step.module.parameters()), len(steps))
        for i in range(len(steps) - 1, -1, -1):
            module = steps[i].module
            if input_grad or i > first:
                result = module.backward(grad, input_grad=True)
                if result is None:
                    raise TypeError(
                        f"{type(module).__name__}.backward returned None: expected the gradient of its input"
                    )
                grad = result
            elif i == first:
                module.backward(grad, input_grad=False)
            else:
                forget(module, USED_UP)
        if not input_grad:
            return None
        return grad[0] if single else grad

    def _notes(self) -> dict[int, str]:
        if not self.fusing:
            return {}
        steps = fused(iter(self._modules))
        return {
            id(step.relu): f"  # part of the {type(step.module).__name__}" for step in steps if step.relu is not None
        }

    def _leaves(self) -> Iterator[Module]:
        for module in self._modules:
            if type(module) is Sequential:
                module._forget("the last one was part of an outer Sequential, whose backward does all the work")
                yield from module._leaves()
            else:
                yield module

    def _forget(self, reason: str) -> None:
        super()._forget(reason)
        self._ran = None

    def _sample_axes(self) -> int | None:
        for module in self._modules:
            axes = module._sample_axes()
            if axes is not None:
                return axes
        return None


class Residual(Container):
    """body(x) + shortcut(x), or body(x) + x without a shortcut.

    Parameters
    ----------
    body : Module
    shortcut : Module, optional
        Must return the same shape as body.

    Attributes
    ----------
    body, shortcut : Module
        Under these names in `state_dict`, as in a PyTorch module with attributes of these names.

    Raises
    ------
    TypeError, ValueError
        If an argument is no module, or both hold the same one; on a call, if the two shapes differ.

    Examples
    --------
    >>> from fastconv import nn
    >>> block = nn.Residual(nn.Linear(2, 2))
    >>> block(np.zeros((1, 2), dtype=np.float32)).shape
    (1, 2)
    >>> list(block.state_dict())
    ['body.weight', 'body.bias']
    """

    def __init__(self, body: Module, shortcut: Module | None = None) -> None:
        super().__init__()
        for name, module in (("body", body), ("shortcut", shortcut)):
            if not (isinstance(module, Module) or (name == "shortcut" and module is None)):
                raise TypeError(f"{name} is of type {type(module).__name__}: expected an nn.Module")
        self.body = body
        self.shortcut = shortcut
        self._adopt()

    def forward(self, x: Array) -> Array:
        """Compute body(x) + shortcut(x).

        Parameters
        ----------
        x : ndarray
            What both modules take.

        Returns
        -------
        ndarray
            A new array.

        Raises
        ------
        TypeError, ValueError
            Those of the modules, and if the two results have different shapes or dtypes.
        """
        x = as_array("x", x)
        output = self.body(x)
        other = x if self.shortcut is None else self.shortcut(x)
        if output.shape != other.shape or output.dtype != other.dtype:
            given = "x" if self.shortcut is None else "shortcut(x)"
            raise ValueError(
                f"body(x) has shape {output.shape} and dtype {output.dtype}, {given} {other.shape} and {other.dtype}: "
                f"expected the same, so that they can be added"
            )
        return output + other

    def backward(self, grad_output: Array, *, input_grad: bool = True) -> Array | None:
        """Compute the gradients of both modules and return their sum.

        Parameters
        ----------
        grad_output : ndarray
            Gradient of the loss with respect to the output, of the output's shape and dtype.
        input_grad : bool
            Whether the gradient of the input is wanted; those of the parameters always are.

        Returns
        -------
        ndarray of the shape and dtype of x, or None without input_grad

        Raises
        ------
        RuntimeError, TypeError, ValueError
            Those of the modules.
        """
        dx = self.body.backward(grad_output, input_grad=input_grad)
        other: Array | None = as_array("grad_output", grad_output)
        if self.shortcut is not None:
            other = self.shortcut.backward(grad_output, input_grad=input_grad)
        return None if dx is None or other is None or not input_grad else dx + other

    def _sample_axes(self) -> int | None:
        axes = self.body._sample_axes()
        return axes if axes is not None or self.shortcut is None else self.shortcut._sample_axes()


def fused(modules: Iterator[Any]) -> Iterator[Step]:
    """Join zero padding with the convolution behind it, ReLU with the max-pooling behind or the normalisation in front."""
    waiting: list[Any] = []  # zero padding layers, or a normalisation, or a ReLU
    for module in itertools.chain(modules, [None]):
        pads = [pad for pad in waiting if isinstance(pad, ZeroPadding)]
        last = type(waiting[-1]) if waiting else None
        if pads and _can_pad(module, pads[0].ndim) and all(pad.ndim == pads[0].ndim for pad in pads):
            sides = zip(*(pad.pairs for pad in pads), strict=True)  # for each axis, the pairs of all pads
            yield Step(module, tuple((sum(p[0] for p in axis), sum(p[1] for p in axis)) for axis in sides))
            waiting = []
            continue
        if last is ReLU and type(module) is MaxPool2d:
            yield from map(Step, waiting[:-1])
            yield Step(module, relu=waiting[-1])
            waiting = []
            continue
        if (pads and isinstance(module, ZeroPadding)) or (last is BatchNorm2d and type(module) is ReLU):
            waiting.append(module)
            continue
        if last is ReLU and type(waiting[0]) is BatchNorm2d:
            yield Step(waiting[0], relu=waiting[1])
        else:
            yield from map(Step, waiting)
        waiting = []
        if isinstance(module, ZeroPadding) or type(module) in (ReLU, BatchNorm2d):
            waiting = [module]
        elif module is not None:
            yield Step(module)


def _can_pad(module: Any, ndim: int) -> bool:
    return isinstance(module, Convolution) and module.ndim == ndim and type(module).forward is Convolution.forward


def forget(module: Module, reason: str) -> None:
    """Drop the activations of a module and all that is in it."""
    for inner in module.modules():
        inner._forget(reason)
