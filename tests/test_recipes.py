"""The recipes for other frameworks: values and gradients are the library's, and so are the complaints."""

import numpy as np
import pytest

import fastconv
from fastconv import recipes

OPTIONS = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}
SHAPES = (2, 4, 6, 7), (6, 2, 3, 2)


def arrays(rng, dtype):
    x, weight = (rng.integers(-3, 4, shape).astype(dtype) for shape in SHAPES)  # small integers: all sums are exact
    out = fastconv.conv2d(x, weight, **OPTIONS)
    return x, weight, out, rng.integers(-3, 4, out.shape).astype(dtype)


def test_jax(rng):
    jax = pytest.importorskip("jax")
    x, weight, out, g = arrays(rng, np.float32)
    conv2d = recipes.jax_conv2d(**OPTIONS)
    np.testing.assert_array_equal(jax.jit(conv2d)(x, weight), out)
    loss = jax.jit(jax.grad(lambda x, weight: (conv2d(x, weight) * g).sum(), argnums=(0, 1)))
    grads = fastconv.conv2d_backward(g, x, weight, **OPTIONS)
    for ours, wanted in zip(loss(x, weight), grads[:2], strict=True):
        np.testing.assert_array_equal(ours, wanted)
    many = jax.vmap(conv2d, (0, None))(np.stack([x, 2 * x]), weight)
    np.testing.assert_array_equal(many, np.stack([out, 2 * out]))
    with pytest.raises(ValueError, match="weight has 3 input channels, x has 4"):
        jax.jit(conv2d).trace(x, np.ones((6, 3, 3, 2), np.float32))


def test_autograd(rng):
    autograd = pytest.importorskip("autograd")
    from autograd.test_util import check_grads

    x, weight, out, g = arrays(rng, np.float64)
    conv2d = recipes.autograd_conv2d(**OPTIONS)
    np.testing.assert_array_equal(conv2d(x, weight), out)
    grads = fastconv.conv2d_backward(g, x, weight, **OPTIONS)
    for place in (0, 1):
        ours = autograd.grad(lambda *a: (conv2d(*a) * g).sum(), place)(x, weight)
        np.testing.assert_array_equal(ours, grads[place])
    check_grads(conv2d, modes=["rev"], order=2)(x, weight)
