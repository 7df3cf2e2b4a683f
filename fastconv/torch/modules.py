"""Layers, and what puts them into a model: PyTorch's own in all but who computes them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .functions import convolve, objection

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "convert", "revert",
]  # fmt: skip

LEAST_FLOPS = 4_000_000
"""Operations of a pass from which on `convert`'s layers compute it: below, PyTorch's smaller costs of a call decide.

On one thread forward and backward of 104 layers of 0.3 to 38 MFLOP took 1.01 times as long as by the faster of both libraries,
and at worst 1.19 times; with 2 MFLOP 1.07 and 2.0, with 10 MFLOP 1.13 and 3.9."""

LEAST_DEPTHWISE_FLOPS = LEAST_FLOPS // 10
"""The same for depthwise filters of more than three columns, which PyTorch has no fast gradients for."""


def least_flops_of(layer: Any) -> int:
    """Return the operations of a pass from which on a layer had better compute it itself."""
    wide = layer.groups == layer.in_channels > 1 and layer.kernel_size[-1] > 3
    return LEAST_DEPTHWISE_FLOPS if wide else LEAST_FLOPS


class _Converted:
    """What all layers share: one is PyTorch's own in all but who computes it."""

    least_flops = LEAST_FLOPS

    def _get_name(self) -> str:
        return f"fastconv.{type(self).__name__}"

    def _is_small(self: Any, x: Any, positions: int) -> bool:
        """Say whether a pass in single precision, with filters at every so many-th position, is too small to be taken."""
        if self.least_flops == 0 or x.dtype is not torch.float32:
            return False
        return bool(2 * x.numel() * self.weight.numel() < self.least_flops * self.in_channels * positions)


class _Conv(_Converted):
    def _conv_forward(self: Any, input: Any, weight: Any, bias: Any) -> Any:
        if self._is_small(input, math.prod(self.stride)):
            return super()._conv_forward(input, weight, bias)  # type: ignore[misc]
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return convolve(len(self.kernel_size), input, weight, bias, self.stride, padding, self.dilation, self.groups)


class _ConvTranspose(_Converted):
    def forward(self: Any, input: Any, output_size: Any = None) -> Any:
        if self._is_small(input, 1):
            return super().forward(input, output_size)  # type: ignore[misc]
        ndim = len(self.kernel_size)
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, ndim, self.dilation
        )
        return convolve(
            ndim, input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, output_padding
        )  # fmt: skip


class Conv1d(_Conv, nn.Conv1d):  # type: ignore[misc]
    """``torch.nn.Conv1d`` on fastconv's kernels."""


class Conv2d(_Conv, nn.Conv2d):  # type: ignore[misc]
    """``torch.nn.Conv2d`` on fastconv's kernels."""


class Conv3d(_Conv, nn.Conv3d):  # type: ignore[misc]
    """``torch.nn.Conv3d`` on fastconv's kernels."""


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose1d`` on fastconv's kernels."""


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose2d`` on fastconv's kernels."""


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):  # type: ignore[misc]
    """``torch.nn.ConvTranspose3d`` on fastconv's kernels."""


LAYERS = {
    getattr(nn, layer.__name__): layer
    for layer in (Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
}
"""What `convert` makes of PyTorch's layers."""


def convert(model: Any, *, least_flops: int | None = None, verbose: bool = False) -> Any:
    """Let fastconv compute a model's convolutions, in place.

    A layer changes its class and nothing else: parameters, buffers, hooks, dtype, memory layout and the names in
    ``state_dict`` stay as they are, and optimisers that hold the parameters go on.  A layer that is given so little, in
    single precision, that PyTorch computes it faster still lets PyTorch do so.

    Parameters
    ----------
    model : torch.nn.Module
        Of its layers, those that are exactly ``nn.Conv1d`` to ``3d`` or ``nn.ConvTranspose1d`` to ``3d`` are converted.
    least_flops : int or None
        Operations of a pass from which on a layer computes it itself; 0 for every call; None for what was measured: 4 million,
        and a tenth of that for depthwise filters of more than three columns.
    verbose : bool
        Print a line for each convolution: converted, or left to PyTorch and why.

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    TypeError, ValueError
        If the model is no module, or ``least_flops`` no number of at least 0.

    Notes
    -----
    Losses follow the original's about as closely as PyTorch's losses in its two memory formats follow each other.  That holds
    with Winograd's algorithm as without it, so layers compute with the precision that `fastconv.set_precision` has set.

    Examples
    --------
    >>> import torch
    >>> from fastconv.torch import convert
    >>> convert(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 1).half()), verbose=True)
    0: converted, but for calls of less than 4.0 MFLOP
    1: left to PyTorch: there is no kernel for torch.float16
    Sequential(
      (0): fastconv.Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Conv2d(8, 8, kernel_size=(1, 1), stride=(1, 1))
    )
    """
    if isinstance(least_flops, bool) or not isinstance(least_flops, int | None):
        raise TypeError(f"least_flops is {least_flops!r}: expected an int or None")
    if least_flops is not None and least_flops < 0:
        raise ValueError(f"least_flops is {least_flops}: expected at least 0")
    for name, module in _modules(model):
        reason = _reason_to_leave(module)
        said = f"left to PyTorch: {reason}"
        if reason is None:
            module.__class__ = LAYERS[type(module)]
            module.least_flops = least = least_flops_of(module) if least_flops is None else least_flops
            said = f"converted, but for calls of less than {least / 1e6:.1f} MFLOP" if least else "converted"
        if verbose:
            print(f"{name or 'the model'}: {said}")
    return model


def revert(model: Any) -> Any:
    """Undo `convert`: give every layer its own class back, in place.

    Parameters
    ----------
    model : torch.nn.Module
        Converted, trained, loaded or not.

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    TypeError
        If it is no module.

    Examples
    --------
    >>> import torch
    >>> from fastconv.torch import convert, revert
    >>> revert(convert(torch.nn.Conv2d(3, 8, 3)))
    Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    originals = {layer: original for original, layer in LAYERS.items()}
    for _, module in _modules(model):
        module.__class__ = originals.get(type(module), type(module))
        module.__dict__.pop("least_flops", None)
    return model


def _modules(model: Any) -> list[tuple[str, Any]]:
    """List a model's convolutions."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    return [(name, module) for name, module in model.named_modules() if isinstance(module, tuple(LAYERS))]


def _reason_to_leave(module: Any) -> str | None:
    kind = type(module)
    if kind in LAYERS.values():
        return "it is converted already"
    if kind not in LAYERS:
        return f"it is a {kind.__name__}, which may compute something else than {kind.__mro__[1].__name__}"
    return objection(weight=module.weight, bias=module.bias)
