"""Convolution as NumPy users write it: gather the windows into a matrix, multiply, and scatter back for dX.

Arrays are (N, C, H, W); columns have shape (N, groups, C/groups * rows * columns of a filter, pixels of the output).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def _columns(x, kernel, stride, padding, groups):
    if padding:
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = sliding_window_view(x, kernel, axis=(2, 3))[:, :, ::stride, ::stride]
    n, channels, height, width, rows, columns = windows.shape
    matrix = windows.transpose(0, 1, 4, 5, 2, 3).reshape(n, groups, channels // groups * rows * columns, height * width)
    return matrix, (height, width)


def output(x, weight, stride=1, padding=0, groups=1):
    """Equation (1)."""
    matrix, size = _columns(x, weight.shape[2:], stride, padding, groups)
    filters = weight.reshape(groups, weight.shape[0] // groups, -1)
    return (filters @ matrix).reshape(x.shape[0], weight.shape[0], *size)


def grad_input(input_size, weight, grad_output, stride=1, padding=0, groups=1):
    """Equation (2), scattered: the transposed matrix product, then every column added to where it came from."""
    n, channels, h, w = input_size
    rows, columns = weight.shape[2:]
    height, width = grad_output.shape[2:]
    filters = weight.reshape(groups, weight.shape[0] // groups, -1)
    gradient = grad_output.reshape(n, groups, weight.shape[0] // groups, height * width)
    matrix = (filters.swapaxes(1, 2) @ gradient).reshape(n, channels, rows, columns, height, width)
    result = np.zeros((n, channels, h + 2 * padding, w + 2 * padding), grad_output.dtype)
    for r in range(rows):
        for c in range(columns):
            result[:, :, r : r + stride * height : stride, c : c + stride * width : stride] += matrix[:, :, r, c]
    return result[:, :, padding : padding + h, padding : padding + w]


def grad_weight(x, weight_size, grad_output, stride=1, padding=0, groups=1):
    """Equation (3)."""
    matrix, _ = _columns(x, weight_size[2:], stride, padding, groups)
    gradient = grad_output.reshape(x.shape[0], groups, weight_size[0] // groups, -1)
    return (gradient @ matrix.swapaxes(2, 3)).sum(0).reshape(weight_size)
