"""What all layers are made of: parameters, modules, and the life of the activations between forward and backward.

A module maps ``x`` to ``forward(x)`` and ``dL/d(output)`` to ``backward(grad_output)``, which returns dL/dx and leaves
dL/d(parameter) in its parameters.  `Layer` is the base of every module that computes something itself; containers are
in `fastconv.nn.containers`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from .checks import Array, as_array, check_dtype, check_shape, float_array
from .parameter import Parameter

if TYPE_CHECKING:
    from .summary import Summary

__all__ = ["IncompatibleKeys", "Layer", "Module", "StateDict"]

StateDict = dict[str, Array]

# Why there are no activations.
USED_UP = "an earlier backward has used up the activations of the last one"
EVALUATED = "the last one ran in evaluation mode, which keeps no activations"
FAILED = "the last one failed"


class IncompatibleKeys(NamedTuple):
    """Names that `Module.load_state_dict` could not match."""

    missing: list[str]
    unexpected: list[str]


class Module(abc.ABC):
    """Base of layers and containers.

    A module of one's own defines ``forward(x)`` and ``backward(grad_output, *, input_grad=True)`` and keeps other
    modules as attributes, whose names then stand in `state_dict`.  A module is not meant for two threads at once.
    """

    def __init__(self) -> None:
        self.training = True
        self.fusing = True
        self._parameters: dict[str, Parameter] = {}
        self._buffers: dict[str, Array] = {}
        self._reason = "forward has not been called"

    def __call__(self, x: Array) -> Array:
        """Call `forward`."""
        return self.forward(x)

    @abc.abstractmethod
    def forward(self, x: Array) -> Array:
        """Compute the output; in training mode, also keep what `backward` will need."""

    @abc.abstractmethod
    def backward(self, grad_output: Array, *, input_grad: bool = True) -> Array | None:
        """Add to the parameters' gradients and return the gradient of the last input, None without ``input_grad``."""

    def children(self) -> dict[str, Module]:
        """Modules directly inside this one, by name."""
        # As `isinstance`, which takes ten times as long for abstract classes.
        return {name: value for name, value in vars(self).items() if Module in type(value).__mro__}

    def modules(self) -> Iterator[Module]:
        """Go through this module and all modules inside it, outermost first."""
        yield self
        for child in self.children().values():
            yield from child.modules()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Names as PyTorch gives them, and parameters."""
        for name, parameter in self._parameters.items():
            yield prefix + name, parameter
        for name, child in self.children().items():
            yield from child.named_parameters(f"{prefix}{name}.")

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        """Names and arrays that belong to the state and are not trained, such as running means."""
        for name, buffer in self._buffers.items():
            yield prefix + name, buffer
        for name, child in self.children().items():
            yield from child.named_buffers(f"{prefix}{name}.")

    def parameters(self) -> list[Parameter]:
        """All parameters, outermost and first layers first."""
        return [parameter for module in self.modules() for parameter in module._parameters.values()]

    def zero_grad(self) -> None:
        """Mark all gradients stale: the next backward pass overwrites them, later ones add."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode (or, with False, to evaluation) and return the module."""
        for module in self.modules():
            module.training = bool(mode)
            if not mode:
                module._forget("eval() has dropped its activations")
        return self

    def fuse(self, mode: bool = True) -> Self:
        """Let a `Sequential` compute layers that follow each other in one go (or, with False, each by itself).

        Returns the module.

        Examples
        --------
        >>> from fastconv import nn
        >>> nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
        Sequential(
          (0): ReLU()  # part of the MaxPool2d
          (1): MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))
        )  # 0 parameters
        >>> nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)).fuse(False)
        Sequential(
          (0): ReLU()
          (1): MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))
        )  # 0 parameters
        """
        for module in self.modules():
            module.fusing = bool(mode)
        return self

    def eval(self) -> Self:
        """Switch to evaluation: no activations are kept, those that are there are dropped.  Returns the module."""
        return self.train(False)

    def state_dict(self) -> StateDict:
        """Copy all parameters and buffers, under PyTorch's names.

        Examples
        --------
        >>> from fastconv import nn
        >>> list(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)).state_dict())
        ['0.weight', '0.bias', '2.weight']
        """
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy a state into the parameters and buffers; all of it, or on an error nothing.

        Parameters
        ----------
        state : mapping of str to array
            Arrays of the right shapes.  Floats are rounded to the layer's dtype.
        strict : bool
            Refuse missing and unexpected names; otherwise only report them.

        Returns
        -------
        IncompatibleKeys
            The lists ``missing`` and ``unexpected``, empty if strict.

        Raises
        ------
        TypeError
            If state is no mapping, or an array's dtype cannot be rounded to the layer's.
        ValueError
            If a shape differs, or with strict a name is missing or unexpected.

        Examples
        --------
        >>> from fastconv import nn
        >>> nn.Linear(2, 3).load_state_dict(nn.Linear(2, 3, bias=False).state_dict())
        Traceback (most recent call last):
            ...
        ValueError: the state does not fit this Linear: missing 'bias'
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state is of type {type(state).__name__}: expected a mapping of names to arrays")
        own = self._state()
        keys = IncompatibleKeys([n for n in own if n not in state], [n for n in state if n not in own])
        problems = []
        if strict:
            problems += [f"missing {_listed(keys.missing)}"] if keys.missing else []
            problems += [f"unexpected {_listed(keys.unexpected)}"] if keys.unexpected else []
        values = {name: as_array(name, state[name]) for name in own if name in state}
        problems += [
            f"{name!r} has shape {value.shape}, expected {own[name].shape}"
            for name, value in values.items()
            if value.shape != own[name].shape
        ]
        if problems:
            raise ValueError(f"the state does not fit this {type(self).__name__}: {'; '.join(problems)}")
        for name, value in values.items():
            if not np.can_cast(value.dtype, own[name].dtype, "same_kind"):
                raise TypeError(f"{name!r} has dtype {value.dtype}: expected {own[name].dtype}")
        for name, value in values.items():
            np.copyto(own[name], value, casting="same_kind")
        return keys

    def summary(self, input_shape: Sequence[int]) -> Summary:
        """Tell what the model does to arrays of a shape: a table, and an object with its numbers.

        It runs on zeros, as a copy: nothing changes here.

        Parameters
        ----------
        input_shape : sequence of int
            Of a batch, or of one sample where the model can tell.

        Returns
        -------
        Summary
            Of each layer shapes, parameters, operations, bytes, the rows of `fastconv.explain` and scratch memory; and the most
            memory that a step of training takes.

        Raises
        ------
        TypeError, ValueError
            If input_shape is no shape, or none that the model takes.

        Examples
        --------
        >>> from fastconv import nn
        >>> summary = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).summary((2, 1, 8, 8))
        >>> [layer.output_shape for layer in summary.layers]
        [(2, 4, 6, 6), (2, 4, 6, 6), (2, 144), (2, 10)]
        >>> summary.parameters, summary.flops
        (1490, 10944)
        """
        from .summary import summarise

        return summarise(self, input_shape)

    def _state(self) -> StateDict:
        state: StateDict = {}
        for name, parameter in self._parameters.items():
            state[name] = parameter.data
        state.update(self._buffers)
        for name, child in self.children().items():
            state.update({f"{name}.{key}": array for key, array in child._state().items()})
        return state

    def _add_parameter(self, name: str, data: Array) -> Parameter:
        parameter = self._parameters[name] = Parameter(name, data)
        return parameter

    def _name_parameters(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.name = name

    def _forget(self, reason: str) -> None:
        """Drop the activations of this module alone; backward will give the reason."""
        self._reason = reason

    def _nothing_kept(self) -> RuntimeError:
        return RuntimeError(
            f"{type(self).__name__}.backward needs a forward pass in training mode before each call: {self._reason}"
        )

    def _sample_axes(self) -> int | None:
        """Axes that one sample must have: None for any number, 0 if the module cannot tell."""
        return 0

    def extra_repr(self) -> str:
        """Arguments to show in the repr."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


class Layer(Module):
    """A module that computes something itself: it has ``_forward`` and ``_backward``, checked and remembered here.

    In training mode `forward` keeps what `backward` needs, by reference where that is an input or an output: do not
    change those arrays in between.  `backward` uses it up.  Arrays that either has returned are never written again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[tuple[int, ...], np.dtype[Any], tuple[Any, ...]] | None = None

    def forward(self, x: Array) -> Array:
        """Compute the layer's output.

        Parameters
        ----------
        x : ndarray of float32 or float64
            One sample or a batch, see the class.

        Returns
        -------
        ndarray
            Of the dtype of x.

        Raises
        ------
        TypeError, ValueError
            If x has a dtype or a shape that the layer cannot take.
        """
        return self.fused_forward(x)

    def fused_forward(self, x: Array, **joined: Any) -> Array:
        """Compute `forward` together with what a container has joined to this layer: keyword arguments of ``_forward``.

        `backward` then takes the gradient of the result of all, and returns that of ``x``.
        """
        self._forget(FAILED)  # and frees its memory before more is taken
        compute: Any = self._forward
        return self._remember(*compute(self._checked(x), **joined))

    def backward(self, grad_output: Array, *, input_grad: bool = True) -> Array | None:
        """Compute the gradients for the last forward pass, whose activations it uses up.

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
        RuntimeError
            If there is no forward pass in training mode that no backward pass has used yet.
        TypeError, ValueError
            If grad_output has another dtype or shape than the output; the activations are then still there.
        """
        return self.fused_backward(grad_output, input_grad=input_grad)

    def fused_backward(self, grad_output: Array, *, input_grad: bool = True, **joined: Any) -> Array | None:
        """Compute `backward` together with what a container has joined to it: keyword arguments of ``_backward``."""
        if self._kept is None:
            raise self._nothing_kept()
        shape, dtype, kept = self._kept
        grad_output = as_array("grad_output", grad_output)
        check_shape("grad_output", grad_output, shape)
        check_dtype("grad_output", grad_output, dtype, "the output")
        self._forget(USED_UP)
        if not (input_grad or self._parameters):
            return None
        compute: Any = self._backward
        gradient: Array | None = compute(grad_output, *kept, input_grad=input_grad, **joined)
        return gradient

    def _checked(self, x: Array) -> Array:
        return float_array("x", x)

    @abc.abstractmethod
    def _forward(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        """Return the output and the arguments that ``_backward`` will get after grad_output."""

    @abc.abstractmethod
    def _backward(self, grad_output: Array, *kept: Any, input_grad: bool) -> Array | None:
        """Return dX; without ``input_grad`` it may be None."""

    def _remember(self, output: Array, kept: tuple[Any, ...]) -> Array:
        if self.training:
            self._kept = (output.shape, output.dtype, kept)
        else:
            self._forget(EVALUATED)
        return output

    def _forget(self, reason: str) -> None:
        super()._forget(reason)
        self._kept = None
