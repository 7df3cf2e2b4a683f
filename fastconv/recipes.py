"""fastconv under JAX and under HIPS autograd: two recipes, to be used as they are or to be copied and changed.

Each makes a ``conv2d(x, weight)`` that its framework can differentiate, from `fastconv.conv2d` and the gradients in
`fastconv.grad`.  Neither framework is needed to import this file.  What a call costs beside the plain one,
``fastconv bench --overhead`` tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import grad, ops
from .geometry import conv_geometry

__all__ = ["autograd_conv2d", "jax_conv2d"]

Conv = Callable[[Any, Any], Any]


def jax_conv2d(**options: Any) -> Conv:
    """Make a convolution for JAX: ``custom_vjp`` over ``pure_callback``.

    Under ``jit`` XLA calls back into Python for each pass.  Shapes are checked when a function is traced.

    Parameters
    ----------
    **options
        stride, padding, dilation and groups, as in `fastconv.conv2d`.

    Returns
    -------
    callable
        ``conv2d(x, weight)`` of JAX arrays; it can be jitted, batched by ``vmap`` and differentiated once in reverse mode.

    Raises
    ------
    ImportError
        If JAX is not installed.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> conv2d = jax_conv2d(stride=2)
    >>> x, weight = jnp.ones((1, 1, 3, 3)), jnp.ones((1, 1, 2, 2))
    >>> print(jax.jit(jax.grad(lambda x: conv2d(x, weight).sum()))(x))
    [[[[1. 1. 0.]
       [1. 1. 0.]
       [0. 0. 0.]]]]
    >>> try:
    ...     jax.jit(conv2d).trace(x, jnp.ones((1, 2, 2, 2)))
    ... except ValueError as error:
    ...     print(error)
    weight has 2 input channels, x has 1 (groups=1): expected weight of shape (1, 1, 2, 2)
    """
    import jax

    def call(function: Callable[..., Any], shape: tuple[int, ...], *arrays: Any) -> Any:
        result = jax.ShapeDtypeStruct(shape, arrays[0].dtype)
        on_numpy = lambda *given: function(*map(np.asarray, given))  # noqa: E731
        return jax.pure_callback(on_numpy, result, *arrays, vmap_method="sequential")

    @jax.custom_vjp
    def conv2d(x: Any, weight: Any) -> Any:
        shape = conv_geometry(x.shape, weight.shape, **options).output_shape
        return call(lambda x, weight: ops.conv2d(x, weight, **options), shape, x, weight)

    def forward(x: Any, weight: Any) -> Any:
        return conv2d(x, weight), (x, weight)

    def backward(kept: Any, grad_output: Any) -> Any:
        x, weight = kept
        dx = call(lambda g, w: grad.conv2d_input(x.shape, w, g, **options), x.shape, grad_output, weight)
        dw = call(lambda g, x: grad.conv2d_weight(x, weight.shape, g, **options), weight.shape, grad_output, x)
        return dx, dw

    conv2d.defvjp(forward, backward)
    result: Conv = conv2d
    return result


def autograd_conv2d(**options: Any) -> Conv:
    """Make a convolution for HIPS autograd: three primitives that are each other's gradients.

    Parameters
    ----------
    **options
        stride, padding, dilation and groups, as in `fastconv.conv2d`.

    Returns
    -------
    callable
        ``conv2d(x, weight)`` of arrays; it can be differentiated in reverse mode, as often as wanted.

    Raises
    ------
    ImportError
        If autograd is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from autograd import elementwise_grad, grad
    >>> conv2d = autograd_conv2d(padding=1)
    >>> x, weight = np.ones((1, 1, 2, 2)), np.full((1, 1, 3, 3), 2.0)
    >>> grad(lambda weight: (conv2d(x, weight) ** 2).sum())(weight)
    array([[[[16., 32., 16.],
             [32., 64., 32.],
             [16., 32., 16.]]]])
    >>> elementwise_grad(elementwise_grad(lambda x: conv2d(x, weight) ** 2))(x)
    array([[[[128., 128.],
             [128., 128.]]]])
    """
    from autograd.extend import defvjp, primitive

    @primitive  # type: ignore[untyped-decorator]
    def conv2d(x: Any, weight: Any) -> Any:
        return ops.conv2d(x, weight, **options)

    @primitive  # type: ignore[untyped-decorator]
    def grad_input(g: Any, weight: Any, shape: Any) -> Any:
        return grad.conv2d_input(shape, weight, g, **options)

    @primitive  # type: ignore[untyped-decorator]
    def grad_weight(g: Any, x: Any, shape: Any) -> Any:
        return grad.conv2d_weight(x, shape, g, **options)

    defvjp(
        conv2d,
        lambda ans, x, weight: lambda g: grad_input(g, weight, x.shape),
        lambda ans, x, weight: lambda g: grad_weight(g, x, weight.shape),
    )
    defvjp(
        grad_input,
        lambda ans, g, weight, shape: lambda v: conv2d(v, weight),
        lambda ans, g, weight, shape: lambda v: grad_weight(g, v, weight.shape),
        argnums=(0, 1),
    )
    defvjp(
        grad_weight,
        lambda ans, g, x, shape: lambda v: conv2d(x, v),
        lambda ans, g, x, shape: lambda v: grad_input(g, v, x.shape),
        argnums=(0, 1),
    )
    result: Conv = conv2d
    return result
