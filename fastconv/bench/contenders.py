"""Who is timed: fastconv and its peers, each as the passes of one layer in one memory layout.

Every contender runs in a worker process of its own, so this file imports none of them before it is asked to.

=================  ==================================================================================================
layout             arrays
=================  ==================================================================================================
``nchw``           all contiguous, (N, C, H, W)
``channels_last``  what the library likes best of those whose channels lie together: fastconv takes images so, and weights
                   contiguous; PyTorch takes all arrays so; JAX takes images as (N, H, W, C), weights as (H, W, in, out)
=================  ==================================================================================================
"""

from __future__ import annotations

import importlib
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import arrays as memory
from ..suites import Layer, pair

__all__ = ["CONTENDERS", "LAYOUTS", "PASSES", "PREPARED", "Contender", "arrays"]

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]

PASSES = ("fwd", "dx", "dw")
"""Equations (1), (2) and (3)."""
PREPARED = "prepared"
"""Equation (1) with a weight that was prepared beforehand, as for inference: timed on request only."""
LAYOUTS = ("nchw", "channels_last")


class Contender(Protocol):
    """A library, loaded and told how many threads to use."""

    versions: dict[str, str]

    def calls(self, layer: Layer, dtype: str, layout: str) -> dict[str, Call]:
        """Return for each pass a function without arguments that computes it."""
        ...

    def result(self, computes: str, layout: str, value: Any) -> Array:
        """Return a pass's result as an array whose shape is that of `nchw`."""
        ...


def arrays(layer: Layer, dtype: str) -> tuple[Array, Array, Array]:
    """X, W and dO: the same numbers in every process and dtype."""
    rng = np.random.default_rng(0)
    geometry = layer.geometry
    x, weight, grad_output = (
        from_line((rng.random(shape, np.float32) - np.float32(0.5)).astype(dtype))
        for shape in (geometry.input_shape, geometry.weight_shape, geometry.output_shape)
    )
    return x, weight, grad_output


def from_line(array: Array) -> Array:
    """Copy an array to memory that begins with a line of the cache, as that of PyTorch's arrays and of fastconv's results."""
    copy = memory.from_line(np.empty(array.nbytes + memory.LINE, np.uint8), array.nbytes).view(array.dtype)
    copy = copy.reshape(array.shape)
    copy[...] = array
    return copy


def channels_last(array: Array) -> Array:
    """View (N, C, H, W) of memory that is (N, H, W, C)."""
    return from_line(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


class Fastconv:
    """Our own."""

    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, threads: int) -> None:
        import llvmlite
        import numba

        import fastconv

        fastconv.set_num_threads(threads)
        self.fastconv: Any = fastconv
        self.versions = {
            "fastconv": fastconv.__version__,
            "numba": numba.__version__,
            "llvmlite": llvmlite.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }

    def calls(self, layer: Layer, dtype: str, layout: str) -> dict[str, Call]:
        """Return for each pass a function without arguments that computes it."""
        x, weight, grad_output = arrays(layer, dtype)
        if layout == "channels_last":
            x, grad_output = channels_last(x), channels_last(grad_output)
        forward, backward = self.fastconv.conv2d, self.fastconv.conv2d_backward
        dx, dw, options = (True, False, False), (False, True, False), layer.parameters | self.options
        prepared = self.fastconv.prepare(weight, **layer.parameters)
        return {
            PREPARED: lambda: forward(x, prepared, **options),
            "fwd": lambda: forward(x, weight, **options),
            "dx": lambda: backward(grad_output, x, weight, output_mask=dx, **options).input,
            "dw": lambda: backward(grad_output, x, weight, output_mask=dw, **options).weight,
        }

    def result(self, computes: str, layout: str, value: Any) -> Array:
        """Return a pass's result as an array whose shape is that of `nchw`."""
        return np.asarray(value)


class Direct(Fastconv):
    """Our own, with direct sums only."""

    options = {"algorithm": "direct"}  # noqa: RUF012

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.versions = {"direct": self.versions["fastconv"]}


class Serial(Fastconv):
    """Our own, on one thread."""

    def __init__(self, threads: int) -> None:
        super().__init__(1)
        self.versions = {"serial": self.versions["fastconv"]}


class Torch:
    """PyTorch, whose convolutions are mostly oneDNN's."""

    def __init__(self, threads: int) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        self.torch.set_grad_enabled(False)
        self.versions = {"torch": self.torch.__version__}

    def calls(self, layer: Layer, dtype: str, layout: str) -> dict[str, Call]:
        """Return for each pass a function without arguments that computes it."""
        memory_format = self.torch.channels_last if layout == "channels_last" else self.torch.contiguous_format
        x, weight, grad_output = (
            self.torch.from_numpy(array).clone().contiguous(memory_format=memory_format)
            for array in arrays(layer, dtype)
        )
        conv2d, backward = self.torch.nn.functional.conv2d, self.torch.ops.aten.convolution_backward
        stride, padding, groups = [layer.stride] * 2, list(pair(layer.padding)), layer.groups
        rest = (None, stride, padding, [1, 1], False, [0, 0], groups)
        return {
            PREPARED: lambda: conv2d(x, weight, None, stride, padding, 1, groups),  # it has no such weights
            "fwd": lambda: conv2d(x, weight, None, stride, padding, 1, groups),
            "dx": lambda: backward(grad_output, x, weight, *rest, [True, False, False])[0],
            "dw": lambda: backward(grad_output, x, weight, *rest, [False, True, False])[1],
        }

    def result(self, computes: str, layout: str, value: Any) -> Array:
        """Return a pass's result as an array whose shape is that of `nchw`."""
        array: Array = value.numpy()
        return array


class Compiled(Torch):
    """PyTorch with ``torch.compile``, for whole networks only."""

    def __init__(self, threads: int) -> None:
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no processes that would run beside others' turns
        super().__init__(threads)
        self.versions = {"compile": self.torch.__version__}

    def calls(self, layer: Layer, dtype: str, layout: str) -> dict[str, Call]:
        """Refuse: one convolution is the same library call, compiled or not."""
        raise ValueError("torch.compile is timed on whole networks only, with --models")


class Jax:
    """JAX, compiled by XLA."""

    def __init__(self, threads: int) -> None:
        # XLA has no setting for its threads: it takes one for each CPU that the process may use when it starts.
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        os.environ["JAX_PLATFORMS"] = "cpu"
        self.jax: Any = importlib.import_module("jax")
        self.jax.config.update("jax_enable_x64", True)
        self.versions = {"jax": self.jax.__version__}

    def calls(self, layer: Layer, dtype: str, layout: str) -> dict[str, Call]:
        """Return for each pass a function without arguments that computes it."""
        jax = self.jax
        x, weight, grad_output = arrays(layer, dtype)
        names: tuple[str, str, str] = ("NCHW", "OIHW", "NCHW")
        if layout == "channels_last":
            x, grad_output, weight = (
                array.transpose(order) for array, order in ((x, LAST), (grad_output, LAST), (weight, (2, 3, 1, 0)))
            )
            names = ("NHWC", "HWIO", "NHWC")
        x, weight, grad_output = (jax.device_put(np.ascontiguousarray(array)) for array in (x, weight, grad_output))

        def convolve(x: Any, weight: Any) -> Any:
            return jax.lax.conv_general_dilated(
                x, weight, (layer.stride,) * 2, [(p, p) for p in pair(layer.padding)], dimension_numbers=names,
                feature_group_count=layer.groups,
            )  # fmt: skip

        fwd = jax.jit(convolve)  # it has no weights that are prepared
        dx = jax.jit(lambda x, weight, g: jax.vjp(lambda x: convolve(x, weight), x)[1](g)[0])
        dw = jax.jit(lambda x, weight, g: jax.vjp(lambda weight: convolve(x, weight), weight)[1](g)[0])
        return {
            PREPARED: lambda: fwd(x, weight).block_until_ready(),
            "fwd": lambda: fwd(x, weight).block_until_ready(),
            "dx": lambda: dx(x, weight, grad_output).block_until_ready(),
            "dw": lambda: dw(x, weight, grad_output).block_until_ready(),
        }

    def result(self, computes: str, layout: str, value: Any) -> Array:
        """Return a pass's result as an array whose shape is that of `nchw`."""
        if layout == "nchw":
            return np.asarray(value)
        return np.asarray(value).transpose((3, 2, 0, 1) if computes == "dw" else (0, 3, 1, 2))


class Ncnn:
    """ncnn, which computes single images forward, with weights that it prepares when it loads them."""

    def __init__(self, threads: int) -> None:
        self.ncnn: Any = importlib.import_module("ncnn")
        self.threads = threads
        self.versions = {"ncnn": self.ncnn.__version__}

    def calls(self, layer: Layer, dtype: str, layout: str) -> dict[str, Call]:
        """Return the one pass that it has; it has a layout of its own."""
        (rows, columns), (top, left) = layer.taps, pair(layer.padding)
        if layer.batch != 1 or layer.groups != 1 or dtype != "float32":
            raise ValueError("ncnn takes batches of one image, one group and float32")
        x, weight, _ = arrays(layer, dtype)
        net = self.ncnn.Net()
        net.opt.num_threads = self.threads
        what = f"0={layer.filters} 1={columns} 11={rows} 3={layer.stride} 4={left} 14={top} 5=0 6={weight.size}"
        text = f"7767517\n2 2\nInput in 0 1 in\nConvolution conv 1 1 in out {what}\n"
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "param").write_text(text)
            Path(folder, "bin").write_bytes(bytes(4) + weight.tobytes())
            net.load_param(f"{folder}/param")
            net.load_model(f"{folder}/bin")
        image = x[0]
        matrix = self.ncnn.Mat(image)

        def forward() -> Any:
            extractor = net.create_extractor()
            extractor.input("in", matrix)
            return extractor.extract("out")[1]

        forward.arrays = image, net  # type: ignore[attr-defined]  # what the matrix and the result lie in
        return {PREPARED: forward}

    def result(self, computes: str, layout: str, value: Any) -> Array:
        """Return a pass's result as an array whose shape is that of `nchw`."""
        return np.array(value)[None]


LAST = (0, 2, 3, 1)

CONTENDERS: dict[str, Callable[[int], Contender]] = {
    "fastconv": Fastconv,
    "direct": Direct,
    "serial": Serial,
    "torch": Torch,
    "compile": Compiled,
    "jax": Jax,
    "ncnn": Ncnn,
}
