"""Modules made of modules: one after the other, or around a shortcut."""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .activation import ReLU
from .checks import Array, as_array, check_dtype, check_shape, check_sum, float_array
from .convolution import Convolution
from .elementwise import passed, summed
from .linear import Linear
from .module import EVALUATED, FAILED, USED_UP, Module
from .normalisation import BatchNorm2d
from .padding import ZeroPadding, total_pairs
from .pooling import MaxPool2d, Pooling

__all__ = ["Residual", "Sequential"]


class Step(NamedTuple):
    """One call of a `Sequential`: a module, the layers beside it that it takes over, and what it is told of them.

    Attributes
    ----------
    module, taken, joined
        These.
    fresh : bool
        Whether its backward returns an array that nobody else has.
    overwrites : bool
        Whether its backward can be told that the gradient it is given is not needed any more.
    """

    module: Module
    taken: tuple[Module, ...] = ()
    joined: dict[str, Any] = {}  # noqa: RUF012
    fresh: bool = False
    overwrites: bool = False

    def run(self, x: Array, **joined: Any) -> Array:
        """Call the module."""
        for layer in self.taken:
            layer._forget("the last one was part of the layer beside it, whose backward does all the work")
        module: Any = self.module
        joined |= self.joined
        output: Array = module.fused_forward(x, **joined) if joined else module(x)
        return output


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
            text = f"({name}): {child!r}"
            remarks = [f"{key} {parameter.shape}" for key, parameter in child._parameters.items()]
            remarks += [notes[id(child)]] if id(child) in notes else []
            if remarks:
                text += (", " if isinstance(child, Container) else "  # ") + ", ".join(remarks)
            lines += [f"  {line}" for line in text.splitlines()]
        count = sum(parameter.data.size for parameter in self.parameters())
        return "\n".join([*lines, f")  # {count:,} parameters"])


class Sequential(Container):
    """Modules one after the other.

    What layers compute in one go, forward and backward, the repr says behind those that have become part of another; with
    ``fuse(False)`` each runs by itself.  These are zero padding and the convolution of the same dimension behind it, so that no
    padded array is ever made; a 2-D convolution, the `ReLU` behind it and a `MaxPool2d` whose windows lie side by side, so that
    only maxima leave the cache; a ReLU and any other MaxPool2d behind it; or else a ReLU and the convolution, `Linear`,
    `BatchNorm2d` or `Residual` in front.  Sequentials inside are treated as if their modules stood in their place.

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
      (0): ZeroPad2d((1, 1, 1, 1))  # part of the Conv2d
      (1): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))  # weight (4, 1, 3, 3), bias (4,)
      (2): ReLU()  # part of the Conv2d
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
        self._known: tuple[bool, list[Module], list[Step]] = (True, [], [])
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
        return self.fused_forward(x)

    def fused_forward(self, x: Array, shortcut: Array | None = None, with_relu: bool = False) -> Array:
        """Compute `forward`; with a shortcut, their sum, or its ReLU, as part of the last module, which must be able to."""
        self._forget(FAILED)
        x = as_array("x", x)
        single = self._sample_axes() == x.ndim
        steps = self._steps()
        output = x[np.newaxis] if single else x
        for step in steps if shortcut is None else steps[:-1]:
            output = step.run(output)
        if shortcut is not None:
            output = steps[-1].run(output, shortcut=shortcut[np.newaxis] if single else shortcut, with_relu=with_relu)
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
        return self.fused_backward(grad_output, input_grad=input_grad)

    def fused_backward(
        self, grad_output: Array, *, input_grad: bool = False, added: Array | None = None, overwrites: bool = False
    ) -> Array | None:
        """Compute `backward`; the first module, which must be able to, adds its gradient to what is ``added``, in place.

        If it ``overwrites``, ``grad_output`` is not needed any more.
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
            added = None if added is None else added[np.newaxis]
        first = next((i for i, step in enumerate(steps) if step.module.parameters()), len(steps))
        for i in range(len(steps) - 1, -1, -1):
            module: Any = steps[i].module
            if i < first and not input_grad:
                forget(module, USED_UP)
                continue
            joined: dict[str, Any] = {"overwrites": True} if overwrites and steps[i].overwrites else {}
            if i == 0 and added is not None:
                joined["added"] = added
            wanted = input_grad or i > first
            result = (module.fused_backward if joined else module.backward)(grad, input_grad=wanted, **joined)
            if wanted and result is None:
                raise TypeError(f"{type(module).__name__}.backward returned None: expected the gradient of its input")
            grad, overwrites = result, steps[i].fresh
        if not input_grad:
            return None
        return grad[0] if single else grad

    def _notes(self) -> dict[int, str]:
        steps = fused(self._modules) if self.fusing else ()
        return {id(layer): f"part of the {type(step.module).__name__}" for step in steps for layer in step.taken}

    def _steps(self) -> list[Step]:
        """Fuse the modules, or take what is known of the very same ones."""
        leaves = list(self._leaves())
        fusing, known, steps = self._known
        if fusing != self.fusing or len(known) != len(leaves) or not all(map(operator.is_, known, leaves)):
            steps = list(fused(leaves) if self.fusing else map(Step, leaves))
            self._known = self.fusing, leaves, steps
        return steps

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

    Where the body is a `BatchNorm2d`, or a `Sequential` that ends with one, that adds the shortcut in one go, as the repr says;
    with ``fuse(False)`` the sum is computed by itself.

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
        self._rectified: Array | None = None
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
        return self.fused_forward(x)

    def fused_forward(self, x: Array, with_relu: bool = False) -> Array:
        """Compute `forward`, or the ReLU of that; `backward` then takes the gradient of it."""
        self._forget(FAILED)
        x = as_array("x", x)
        if self._body_adds():
            shortcut = x if self.shortcut is None else self.shortcut(x)
            add: Any = self.body
            added: Array = add.fused_forward(x, shortcut=shortcut, with_relu=with_relu)
            return added
        output = float_array("body(x)", self.body(x))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        check_sum(output, shortcut)
        output = summed(output, shortcut, with_relu=with_relu)
        if with_relu and self.training:
            self._rectified = output
        return output

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
        return self.fused_backward(grad_output, input_grad=input_grad)

    def fused_backward(
        self, grad_output: Array, *, input_grad: bool = True, overwrites: bool = False
    ) -> Array | None:  # fmt: skip
        """Compute `backward`; if it ``overwrites``, ``grad_output`` is not needed any more."""
        grad_output = as_array("grad_output", grad_output)
        if self._rectified is not None:
            check_shape("grad_output", grad_output, self._rectified.shape)
            check_dtype("grad_output", grad_output, self._rectified.dtype, "the output")
            grad_output = passed(grad_output, self._rectified)
            self._forget(USED_UP)
        body: Any = self.body
        joined: dict[str, Any] = {"overwrites": True} if overwrites and self._body_adds() else {}
        dx = (body.fused_backward if joined else body.backward)(grad_output, input_grad=input_grad, **joined)
        last = last_leaf(self.body)
        given = last.shortcut_grad(grad_output) if isinstance(last, BatchNorm2d) else grad_output
        if input_grad and self._shortcut_adds():
            add: Any = self.shortcut
            joined = {"overwrites": True} if given is not grad_output and type(add) is Sequential else {}
            total: Array | None = add.fused_backward(given, input_grad=True, added=dx, **joined)
            return total
        other = given if self.shortcut is None else self.shortcut.backward(given, input_grad=input_grad)
        if dx is None or other is None or not input_grad:
            return None
        return summed(dx, other, in_place=begins_with_convolution(self.body))

    def _body_adds(self) -> bool:
        """Say whether the body ends with a layer that can add the shortcut."""
        return self.fusing and self.body.fusing and is_own(last_leaf(self.body), BatchNorm2d)

    def _shortcut_adds(self) -> bool:
        """Say whether the shortcut can add its gradient to the body's, which is a new array that nobody else has."""
        return (
            self.fusing
            and self.shortcut is not None
            and self.shortcut.fusing
            and begins_with_convolution(self.shortcut)
            and begins_with_convolution(self.body)
        )

    def _notes(self) -> dict[int, str]:
        notes = {id(self.body): "the BatchNorm2d adds the shortcut"} if self._body_adds() else {}
        if self._shortcut_adds():
            notes[id(self.shortcut)] = "its gradient is added to the body's in place"
        return notes

    def _forget(self, reason: str) -> None:
        super()._forget(reason)
        self._rectified = None

    def _sample_axes(self) -> int | None:
        axes = self.body._sample_axes()
        return axes if axes is not None or self.shortcut is None else self.shortcut._sample_axes()


def fused(modules: Iterable[Module]) -> Iterator[Step]:
    """Join zero padding with the convolution behind it, and ReLU with the max-pooling behind it or the layer in front."""
    rest = deque(modules)
    while rest:
        pads: list[Any] = list(itertools.takewhile(lambda layer: isinstance(layer, ZeroPadding), rest))
        if not (len(pads) < len(rest) and pads_of(rest[len(pads)], pads)):
            pads = []
        for _ in pads:
            rest.popleft()
        module, taken = rest.popleft(), list[Module](pads)
        joined: dict[str, Any] = {}
        if is_own(module, Convolution):
            joined = {"channels_last": True, "padding": total_pairs(pads)}
        if (pool := pool_behind(module, rest)) is not None:
            joined["pool"] = pool
            taken += [rest.popleft() for _ in range(1 + (type(rest[0]) is ReLU))]
        elif type(module) is ReLU and rest and is_own(rest[0], MaxPool2d):
            taken.append(module)
            module = rest.popleft()
        elif any(is_own(module, kind) for kind in (Convolution, Linear, BatchNorm2d, Residual)) and (
            rest and type(rest[0]) is ReLU and not (len(rest) > 1 and is_own(rest[1], MaxPool2d))
        ):
            taken.append(rest.popleft())
        if any(type(layer) is ReLU for layer in taken):
            joined["with_relu"] = True
        fresh, overwrites = (any(is_own(module, kind) for kind in kinds) for kinds in (FRESH, OVERWRITING))
        yield Step(module, tuple(taken), joined, fresh, overwrites)


FRESH: tuple[type[Module], ...] = (Convolution, BatchNorm2d, Pooling, Residual)
OVERWRITING = BatchNorm2d, Residual
"""What a `Step` tells of modules, by their kinds."""


def is_own(module: Module, kind: type[Module]) -> bool:
    """Say whether a module is of this kind, and its passes are those of the kind."""
    return isinstance(module, kind) and all(
        getattr(type(module), name) is getattr(kind, name) for name in ("forward", "backward")
    )


def pads_of(module: Module, pads: list[Any]) -> bool:
    """Say whether a module is a convolution that can take over these padding layers."""
    return (
        isinstance(module, Convolution) and is_own(module, Convolution) and all(pad.ndim == module.ndim for pad in pads)
    )


def pool_behind(module: Module, rest: Sequence[Module]) -> MaxPool2d | None:
    """Find the max-pooling that a convolution can take over, alone or with the ReLU between them."""
    behind = next((layer for layer in itertools.islice(rest, 2) if type(layer) is not ReLU), None)
    can = is_own(module, Convolution) and getattr(module, "ndim", 0) == 2
    return behind if can and isinstance(behind, MaxPool2d) and is_own(behind, MaxPool2d) and behind.window else None


def last_leaf(module: Module) -> Module:
    """Find the module that ends a Sequential, or is it."""
    while type(module) is Sequential and len(module):
        module = module[-1]
    return module


def begins_with_convolution(module: Module) -> bool:
    """Say whether what a module computes first, with its neighbours, is a convolution."""
    if type(module) is Sequential and len(module):
        module = module._steps()[0].module
    return is_own(module, Convolution)


def forget(module: Module, reason: str) -> None:
    """Drop the activations of a module and all that is in it."""
    for inner in module.modules():
        inner._forget(reason)
