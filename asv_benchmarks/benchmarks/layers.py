"""What is timed: layers, passes, and the arrays of a call."""

import os
from functools import partial

import numpy as np

import fastconv
from fastconv.suites import SUITES

from . import im2col

REPRESENTATIVE = (
    "4x 3->64@224 7x7/2",  # few channels, large images
    "4x 64->64@56 3x3",  # the common case
    "8x 256->64@56 1x1",  # a matrix product
    "4x 512->512@7 3x3",  # many channels, small images
    "32x dw 128@56 3x3",  # depthwise
    "16x 1->32@28 5x5 p0",  # the first layer of a small network
)


def chosen():
    """Layers to time, by name."""
    suites = [name.strip() for name in os.environ.get("FASTCONV_LAYERS", "").split(",") if name.strip()]
    known = {layer.name: layer for layers in SUITES.values() for layer in layers}
    if not suites:
        return {name: known[name] for name in REPRESENTATIVE}
    if suites == ["all"]:
        return known
    return {layer.name: layer for suite in suites for layer in SUITES[suite]}


LAYERS = chosen()
DTYPES = ("float32", "float64")
SMALL = 5_000_000
"""FLOP that the reference's plain loops do in no time."""


def arrays(layer, dtype):
    """X, W and dO of small integers: sums are exact in every dtype and order, so results can be compared bit by bit."""
    rng = np.random.default_rng(0)
    shapes = layer.geometry.input_shape, layer.geometry.weight_shape, layer.geometry.output_shape
    return [rng.integers(-2, 3, shape, np.int8).astype(dtype) for shape in shapes]


def calls(computes, layer, dtype):
    """Return one pass as functions without arguments: by fastconv, and by im2col in NumPy."""
    x, weight, grad_output = arrays(layer, dtype)
    parameters = layer.parameters
    if computes == "output":
        ours = partial(fastconv.conv2d, x, weight, **parameters)
        theirs = partial(im2col.output, x, weight, **parameters)
    elif computes == "grad_input":
        ours = partial(fastconv.grad.conv2d_input, x.shape, weight, grad_output, **parameters)
        theirs = partial(im2col.grad_input, x.shape, weight, grad_output, **parameters)
    else:
        ours = partial(fastconv.grad.conv2d_weight, x, weight.shape, grad_output, **parameters)
        theirs = partial(im2col.grad_weight, x, weight.shape, grad_output, **parameters)
    return ours, theirs


def reference(computes, layer, dtype):
    """Compute one pass by the loops of the specification."""
    x, weight, grad_output = arrays(layer, dtype)
    if computes == "output":
        return fastconv.conv2d(x, weight, **layer.parameters, algorithm="reference")
    mask = (computes == "grad_input", computes == "grad_weight", False)
    grads = fastconv.conv2d_backward(
        grad_output, x, weight, **layer.parameters, output_mask=mask, algorithm="reference"
    )
    return grads.input if mask[0] else grads.weight


def checked_calls(computes, layer, dtype):
    """Return both ways to compute one pass, compiled, warm, and seen to agree exactly."""
    ours, theirs = calls(computes, layer, dtype)
    expected = theirs()
    np.testing.assert_array_equal(ours(), expected)
    if layer.geometry.flops <= SMALL:
        np.testing.assert_array_equal(expected, reference(computes, layer, dtype))
    return ours, theirs
