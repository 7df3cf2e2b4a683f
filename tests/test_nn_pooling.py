"""Pooling layers: exact on integers, and PyTorch's ways with NaN, ties, ceil mode and padding."""

import itertools

import numpy as np
import pytest
from cases import INTERPRETED

from fastconv import nn

RNG = np.random.default_rng


def integers(shape, seed, dtype):
    """Few different integers, so that ties are common."""
    return RNG(seed).integers(-3, 4, shape).astype(dtype)


def output_size(n, k, s, p, d, ceil):
    """PyTorch's documented size, by trying outputs one after the other."""
    count = 0
    while True:
        begin = count * s - p
        fits = begin + d * (k - 1) < n + p
        sticks_out = ceil and begin < n and begin + d * (k - 1) - (s - 1) < n + p
        if not (fits or sticks_out):
            return count
        count += 1


def windows(n, k, s, p, d, ceil):
    """For each output, the positions inside the image and how many positions the padded image has."""
    for i in range(output_size(n, k, s, p, d, ceil)):
        taps = [i * s - p + d * t for t in range(k)]
        yield [t for t in taps if 0 <= t < n], sum(-p <= t < n + p for t in taps)


CONFIGURATIONS = [
    (n, k, s, p, d, ceil)
    for n, k, s, p, d, ceil in itertools.product((1, 4, 7), (1, 2, 3), (1, 2, 3), (0, 1), (1, 2), (False, True))
    if p <= k // 2 and n + 2 * p >= d * (k - 1) + 1 and all(inside for inside, _ in windows(n, k, s, p, d, ceil))
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_max_is_exact(dtype):
    assert len(CONFIGURATIONS) > 100
    for seed, (n, k, s, p, d, ceil) in enumerate(CONFIGURATIONS):
        x = integers((2, 2, n, 5), seed, dtype)
        pool = nn.MaxPool2d((k, 2), (s, 1), (p, 1), (d, 1), ceil)
        rows = [inside for inside, _ in windows(n, k, s, p, d, ceil)]
        cols = [inside for inside, _ in windows(5, 2, 1, 1, 1, ceil)]
        output = pool(x)
        grad = integers((2, 2, len(rows), len(cols)), seed + 1, dtype)
        expected, dx = np.empty(grad.shape, dtype), np.zeros(x.shape, dtype)
        for b, c in np.ndindex(2, 2):
            for i, j in np.ndindex(len(rows), len(cols)):
                window = x[b, c][np.ix_(rows[i], cols[j])]
                p_max, q_max = np.unravel_index(window.argmax(), window.shape)  # the first of equals
                expected[b, c, i, j] = window.max()
                dx[b, c, rows[i][p_max], cols[j][q_max]] += grad[b, c, i, j]
        np.testing.assert_array_equal(output, expected, err_msg=str((n, k, s, p, d, ceil)))
        np.testing.assert_array_equal(pool.backward(grad), dx, err_msg=str((n, k, s, p, d, ceil)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_maxima_of_many_channels_are_those_of_each(dtype):
    """Pixels that fill vectors, the last of which overlaps, and those of one channel."""
    for seed, (n, k, s, p, d, ceil) in enumerate(CONFIGURATIONS[::3]):
        x = integers((2, 37, n, 5), seed, dtype)
        x[RNG(1).random(x.shape) < 0.01] = np.nan
        pool = nn.MaxPool2d((k, 2), (s, 1), (p, 1), (d, 1), ceil)
        output = pool(x)
        grad = integers(output.shape, seed + 1, dtype)
        dx = pool.backward(grad)
        for c in (0, 1, 17, 35, 36):
            np.testing.assert_array_equal(pool(x[:, c : c + 1]), output[:, c : c + 1])
            np.testing.assert_array_equal(pool.backward(grad[:, c : c + 1]), dx[:, c : c + 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("include", [True, False])
def test_mean_is_exact(dtype, include):
    for seed, (n, k, s, p, d, ceil) in enumerate(CONFIGURATIONS):
        if d != 1:
            continue
        x = integers((2, 2, n, 5), seed, dtype)
        pool = nn.AvgPool2d((k, 2), (s, 1), (p, 1), ceil, include)
        rows, cols = list(windows(n, k, s, p, 1, ceil)), list(windows(5, 2, 1, 1, 1, ceil))
        output = pool(x)
        # Gradients are multiples of all counts, so that every share is an integer.
        grad = 36 * integers((2, 2, len(rows), len(cols)), seed + 1, dtype)
        expected, dx = np.empty(grad.shape, dtype), np.zeros(x.shape, dtype)
        for i, j in np.ndindex(len(rows), len(cols)):
            (inside_rows, all_rows), (inside_cols, all_cols) = rows[i], cols[j]
            count = all_rows * all_cols if include else len(inside_rows) * len(inside_cols)
            index = (..., *np.ix_(inside_rows, inside_cols))
            expected[:, :, i, j] = x[index].sum(axis=(2, 3)) / dtype(count)
            dx[index] += (grad[:, :, i, j] / count)[:, :, np.newaxis, np.newaxis]
        np.testing.assert_array_equal(output, expected, err_msg=str((n, k, s, p, ceil)))
        np.testing.assert_array_equal(pool.backward(grad), dx, err_msg=str((n, k, s, p, ceil)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adaptive_mean_is_exact(dtype):
    for n, size in itertools.product(range(1, 8), range(1, 9)):
        x = integers((2, 1, n, 4), n, dtype)
        pool = nn.AdaptiveAvgPool2d((size, None))
        output = pool(x)
        spans = [slice(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        expected = np.stack([x[:, :, s].sum(axis=2) / dtype(s.stop - s.start) for s in spans], axis=2)
        np.testing.assert_array_equal(output, expected)
        grad = 840 * integers(output.shape, size, dtype)
        dx = np.zeros(x.shape, dtype)
        for i, s in enumerate(spans):
            dx[:, :, s] += grad[:, :, i : i + 1] / (s.stop - s.start)
        np.testing.assert_array_equal(pool.backward(grad), dx)


def test_sizes_and_values_as_in_pytorch():
    torch = pytest.importorskip("torch")
    x = integers((1, 2, 7, 6), 0, np.float64)
    tx = torch.from_numpy(x)
    count = 0
    for k, s, p, d, ceil in itertools.product((1, 2, 3, 4), (1, 2, 3, 5), (0, 1, 2), (1, 2), (False, True)):
        if p > k // 2:
            continue
        try:
            theirs = torch.nn.MaxPool2d(k, s, p, d, ceil_mode=ceil)(tx).numpy()
        except RuntimeError:
            with pytest.raises(ValueError, match="with padding: expected at least"):
                nn.MaxPool2d(k, s, p, d, ceil)(x)
            continue
        np.testing.assert_array_equal(nn.MaxPool2d(k, s, p, d, ceil)(x), theirs)
        if d == 1:
            for include in (True, False):
                ours = nn.AvgPool2d(k, s, p, ceil, include)(x)
                theirs = torch.nn.AvgPool2d(k, s, p, ceil, include)(tx).numpy()
                np.testing.assert_allclose(ours, theirs, rtol=1e-15)
        count += 1
    assert count > 100


def test_window_larger_than_image_in_ceil_mode():
    torch = pytest.importorskip("torch")
    x = integers((1, 1, 3, 3), 0, np.float64)
    theirs = torch.nn.MaxPool2d(4, 2, ceil_mode=True)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(nn.MaxPool2d(4, 2, ceil_mode=True)(x), theirs)


def test_nan_wins_and_gets_the_gradient():
    torch = pytest.importorskip("torch")
    for seed in range(20):
        x = integers((2, 1, 5, 6), seed, np.float32)
        x[RNG(seed).random(x.shape) < 0.2] = np.nan
        x[RNG(seed + 99).random(x.shape) < 0.2] = -np.inf
        pool, tx = nn.MaxPool2d(3, 2, 1), torch.from_numpy(x).requires_grad_()
        expected = torch.nn.functional.max_pool2d(tx, 3, 2, 1)
        output = pool(x)
        np.testing.assert_array_equal(output, expected.detach().numpy())
        assert np.isnan(output).any()
        grad = integers(output.shape, seed, np.float32)
        (dx,) = torch.autograd.grad(expected, tx, torch.from_numpy(grad))
        np.testing.assert_array_equal(pool.backward(grad), dx.numpy())


def test_only_minus_infinity():
    x = np.full((1, 2, 2), -np.inf)
    pool = nn.MaxPool2d(2)
    np.testing.assert_array_equal(pool(x), [[[-np.inf]]])
    np.testing.assert_array_equal(pool.backward(np.ones((1, 1, 1))), [[[1, 0], [0, 0]]])


def test_same_bits_for_any_number_of_threads():
    numba = pytest.importorskip("numba")
    x = RNG(0).standard_normal((3, 5, 9, 9)).astype(np.float32)
    grad = RNG(1).standard_normal((3, 5, 9, 9)).astype(np.float32)
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            for pool in (nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(9)):
                results.append((threads, pool(x), pool.backward(grad)))
        finally:
            numba.set_num_threads(before)
    half = len(results) // 2
    for one, other in zip(results[:half], results[half:], strict=True):
        np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(one[2], other[2])


@pytest.mark.parametrize(
    "layer", [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(2, 3), nn.AdaptiveAvgPool2d(5)]
)
def test_same_bits_in_any_batch(layer, rng):
    """A small batch is cut into bands of rows of each image, a large one into images."""
    x = rng.standard_normal((70, 3, 13, 11), np.float32)
    output = layer(x)
    grad = rng.standard_normal(output.shape, np.float32)
    dx = layer.backward(grad)
    for some in (slice(0, 1), slice(3, 6), slice(0, 40)):
        np.testing.assert_array_equal(layer(x[some]), output[some])
        np.testing.assert_array_equal(layer.backward(grad[some]), dx[some])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.MaxPool2d(2, padding=2), "padding is 2: expected at most half of the kernel size 2"),
        (lambda: nn.AvgPool2d(1, padding=1), "padding is 1: expected at most half of the kernel size 1"),
        (lambda: nn.MaxPool2d(0), "kernel_size is 0"),
        (lambda: nn.MaxPool2d(2, 0), "stride is 0"),
        (lambda: nn.MaxPool2d(4)(np.ones((1, 3, 5))), "x has 3 rows, 3 with padding: expected at least 4"),
        (lambda: nn.AvgPool2d((1, 4))(np.ones((1, 3, 3))), "x has 3 columns, 3 with padding: expected at least 4"),
        (lambda: nn.MaxPool2d(2, 1, 1, 3)(np.ones((1, 2, 2))), "a window would hold nothing but padding"),
        (lambda: nn.MaxPool2d(1)(np.ones((3, 3))), r"x has shape \(3, 3\): expected \(n_ch, h, w\)"),
        (lambda: nn.MaxPool2d(1)(np.ones((2, 0, 3, 3))), "only the batch may be empty"),
        (lambda: nn.AdaptiveAvgPool2d((1, 2, 3)), "output_size has 3 values"),
        (lambda: nn.AdaptiveAvgPool2d(0), "output_size is 0: expected at least 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [2, 16, 67])
def test_maxima_of_both_layouts_and_of_relu(dtype, channels):
    """Channels-last images give channels-last results, and fused layers what each gives by itself, NaN included."""
    windows = [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((17, 16), 1, (8, 8))]
    if INTERPRETED:  # one each: the larger the fewer outputs
        windows = [{2: ((17, 16), 1, 0), 16: (3, 2, 1), 67: (2, 2, 0)}[channels]]
    for kernel, stride, padding in windows:
        x = integers((2, channels, 18, 17), channels, dtype)
        x[RNG(1).random(x.shape) < 0.01] = np.nan
        relu, pool = nn.ReLU(), nn.MaxPool2d(kernel, stride, padding)
        fused = nn.Sequential(nn.ReLU(), nn.MaxPool2d(kernel, stride, padding))
        expected = pool(relu(x))
        grad = integers(expected.shape, 3, dtype)
        expected_dx = relu.backward(pool.backward(grad))
        for images, gradient in itertools.product((x, channels_last(x)), (grad, channels_last(grad))):
            for mode in (True, False):
                output = fused.fuse(mode)(images)
                dx = fused.backward(gradient, input_grad=True)
                np.testing.assert_array_equal(output, expected)
                np.testing.assert_array_equal(dx, expected_dx)
                assert output.flags.c_contiguous == dx.flags.c_contiguous == images.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3, 67])
def test_means_of_both_layouts(dtype, channels):
    """Windows that tile the image, that overlap, that leave elements out, and the whole image; results lie as images do."""
    x = integers((2, channels, 12, 10), channels, dtype)
    x[1, 0, 3, 4] = np.nan
    for pool in (nn.AvgPool2d((3, 2)), nn.AvgPool2d(4, 2, 1), nn.AvgPool2d(2, 3), nn.AdaptiveAvgPool2d(1)):
        grad = 144 * integers(pool(x).shape, 3, dtype)
        results = []
        for images, gradient in itertools.product((x, channels_last(x)), (grad, channels_last(grad))):
            output = pool(images)
            results.append([output, pool.backward(gradient)])
            for array in results[-1]:
                assert array.shape[2:] == (1, 1) or array.flags.c_contiguous == images.flags.c_contiguous
        for other in results[1:]:
            np.testing.assert_array_equal(results[0][0], other[0])
            np.testing.assert_array_equal(results[0][1], other[1])
        assert np.isnan(results[0][0]).any()
        single = pool(x[0])
        np.testing.assert_array_equal(single, results[0][0][0])
        np.testing.assert_array_equal(pool.backward(grad[0]), results[0][1][0])


def test_tables_follow_the_settings():
    """They are kept from call to call, and made anew where a setting has changed."""
    pool, x = nn.MaxPool2d(2), integers((1, 1, 6, 6), 0, np.float32)
    assert pool(x).shape == (1, 1, 3, 3)
    pool.stride = (1, 1)
    np.testing.assert_array_equal(pool(x), nn.MaxPool2d(2, 1)(x))
    for size in range(2, 60):
        assert nn.Sequential(pool)(np.zeros((1, size, size))).shape == (1, size - 1, size - 1)
