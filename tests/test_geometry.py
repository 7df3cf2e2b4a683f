"""Sizes, ranges and phases against brute force and against the reference; the messages of everything that is refused."""

import itertools
import math

import numpy as np
import pytest

from fastconv import geometry, reference
from fastconv.geometry import conv_geometry, gather_range, output_size, phase_taps, tap_range, transposed_geometry
from fastconv.jit import kernel


def axes(count=None, rng=None):
    """Return (n, f, s, d, P, Q) of axes with at least one output, all of a grid or a random part of it."""
    grid = itertools.product(range(1, 10), range(1, 6), range(1, 7), range(1, 7), range(5), range(4))
    fitting = [(n, f, s, d, P, Q) for n, f, s, d, P, Q in grid if n + P + Q >= d * (f - 1) + 1]
    if count is None:
        return fitting
    return [fitting[i] for i in rng.choice(len(fitting), count, replace=False)]


def placements(n, f, s, d, P, Q):
    """Return (outputs, (i, k, p)) by laying the kernel on the padded axis at every s-th place, without any formula."""
    padded = [None] * P + list(range(n)) + [None] * Q
    met, i = [], 0
    for start in range(0, len(padded), s):
        window = range(start, start + d * (f - 1) + 1, d)
        if window[-1] >= len(padded):
            break
        met += [(i, k, padded[at]) for k, at in enumerate(window) if padded[at] is not None]
        i += 1
    return i, met


def check_axis(n, f, s, d, P, Q):
    n_out, met = placements(n, f, s, d, P, Q)
    assert output_size(n, f, s, d, P, Q) == n_out
    for k in range(f):
        first, last = tap_range(k, n, n_out, s, d, P)
        assert list(range(first, last + 1)) == [i for i, tap, _ in met if tap == k]
    for p in range(n):
        first, last = gather_range(p, f, n_out, s, d, P)
        # The window of output i reaches from s*i - P to s*i - P + d*(f-1).
        assert list(range(first, last + 1)) == [i for i in range(n_out) if s * i - P <= p <= s * i - P + d * (f - 1)]
        by_distance = [
            (i, (p + P - s * i) // d) for i in range(first, last + 1) if (p + P - s * i) % d == 0
        ]  # fmt: skip
        wanted = [(i, k) for i, k, at in met if at == p]
        assert by_distance == wanted
        first_tap, step = phase_taps(p, s, d, P)
        taps = range(first_tap, f, step) if first_tap >= 0 else range(0)
        assert all((p + P - d * k) % s == 0 for k in taps)
        by_phase = [((p + P - d * k) // s, k) for k in taps]
        assert sorted((i, k) for i, k in by_phase if 0 <= i < n_out) == wanted
    seen = {p for _, _, p in met}
    unseen = conv_geometry((1, 1, n), (1, 1, f), s, ((P, Q),), d).unseen
    assert unseen == (n - 1 - max(seen, default=-1),)


def test_ranges_by_brute_force(rng):
    for axis in axes(4000, rng):
        check_axis(*axis)


@pytest.mark.long
def test_all_ranges_by_brute_force():
    for axis in axes():
        check_axis(*axis)


@kernel
def compiled_ranges(cases, out):
    for row in range(len(cases)):
        n, f, s, d, P, Q, p, k = cases[row]
        n_out = output_size(n, f, s, d, P, Q)
        out[row, 0] = n_out
        out[row, 1], out[row, 2] = tap_range(k, n, n_out, s, d, P)
        out[row, 3], out[row, 4] = gather_range(p, f, n_out, s, d, P)
        out[row, 5], out[row, 6] = phase_taps(p, s, d, P)
        out[row, 7] = geometry.ceil_div(p - f, s)


def test_ranges_are_the_same_in_a_kernel(rng):
    cases = np.array([(*axis, rng.integers(axis[0]), rng.integers(axis[1])) for axis in axes(3000, rng)])
    huge = 2**31 - 1
    cases = np.append(cases, [(huge, 2, huge, huge, huge, huge, huge - 1, 1), (5, 2, 3, huge, huge, 9, 4, 1)], axis=0)
    out = np.empty((len(cases), 8), np.int64)
    compiled_ranges(cases, out)
    for row, wanted in zip(cases.tolist(), out.tolist(), strict=True):
        n, f, s, d, P, Q, p, k = row
        n_out = output_size(n, f, s, d, P, Q)
        ranges = (*tap_range(k, n, n_out, s, d, P), *gather_range(p, f, n_out, s, d, P), *phase_taps(p, s, d, P))
        assert [n_out, *ranges, geometry.ceil_div(p - f, s)] == wanted, row


def test_ceil_div():
    for a in range(-40, 41):
        for b in range(1, 9):
            assert geometry.ceil_div(a, b) == math.ceil(a / b)


UNPADDED = [(f, s, h, p) for f in range(1, 6) for s in range(1, 5) for h in range(f, 15) for p in range(1, h + 1)]


def test_gather_range_is_the_specification():
    """The reference counts from 1 and knows neither padding nor dilation."""
    for f, s, h, p in UNPADDED:
        h_new = (h - f) // s + 1
        lower, upper = reference.i_lower(p, f, s), reference.i_upper(p, h_new, s)
        assert gather_range(p - 1, f, h_new, s, 1, 0) == (lower - 1, upper - 1)
        # The definition: row r = p - (i-1)s of the weight exists.
        assert list(range(lower, upper + 1)) == [i for i in range(1, h_new + 1) if 1 <= p - (i - 1) * s <= f]


def test_the_published_bound_fails():
    """With floor in place of ceil the sum gains a row of the weight that does not exist."""
    failures = 0
    for f, s, h, p in UNPADDED:
        h_new = (h - f) // s + 1
        published = (p - f) // s + 1
        upper = reference.i_upper(p, h_new, s)
        rows = [p - (i - 1) * s for i in range(max(1, published), upper + 1)]
        wrong = any(not 1 <= row <= f for row in rows)
        assert wrong == (p > f and (p - f) % s != 0)
        if wrong:
            assert f + 1 <= max(rows) <= f + s - 1
            assert published == reference.i_lower(p, f, s) - 1
        failures += wrong
    assert (len(UNPADDED), failures) == (2020, 696)
    smallest = (3, 2, 4)  # rows, stride, p
    assert ((4 - 3) // 2 + 1, reference.i_lower(4, 3, 2)) == (1, 2), smallest


def test_geometry_of_all_axes():
    g = conv_geometry((2, 4, 9, 8, 7), (6, 2, 3, 2, 1), (1, 2, 3), ((0, 1), (2, 0), (1, 1)), (3, 2, 1), 2)
    assert (g.batch, g.channels, g.filters, g.groups, g.ndim) == (2, 4, 6, 2, 3)
    assert (g.input, g.kernel, g.output) == ((9, 8, 7), (3, 2, 1), (4, 4, 3))
    assert (g.input_shape, g.weight_shape, g.output_shape) == ((2, 4, 9, 8, 7), (6, 2, 3, 2, 1), (2, 6, 4, 4, 3))
    assert g.flops == 2 * (2 * 6 * 4 * 4 * 3) * (2 * 3 * 2)
    assert g.bytes(4) == 4 * (2 * 4 * 9 * 8 * 7 + 6 * 2 * 3 * 2 + 2 * 6 * 4 * 4 * 3)
    assert g.volume == g
    assert hash(g) == hash(
        conv_geometry([2, 4, 9, 8, 7], [6, 2, 3, 2, 1], [1, 2, 3], [[0, 1], [2, 0], (1, 1)], (3, 2, 1), 2)
    )
    with pytest.raises(AttributeError):
        g.batch = 3


def test_volume():
    g = conv_geometry((4, 9), (6, 4, 3), 2, 1, 3).volume
    assert g.input_shape == (1, 4, 1, 1, 9)
    assert g.weight_shape == (6, 4, 1, 1, 3)
    assert g.output_shape == (1, 6, 1, 1, 3)
    assert (g.stride, g.dilation, g.padding) == ((1, 1, 2), (1, 1, 3), ((0, 0), (0, 0), (1, 1)))


@pytest.mark.parametrize(
    ("padding", "pairs"),
    [
        (2, ((2, 2), (2, 2))),
        (np.int64(2), ((2, 2), (2, 2))),
        ((1,), ((1, 1), (1, 1))),
        ([1, 2], ((1, 1), (2, 2))),
        (((1, 2),), ((1, 2), (1, 2))),
        (((1, 2), (0, 3)), ((1, 2), (0, 3))),
        ([3, (0, 1)], ((3, 3), (0, 1))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 1), (1, 2))),
    ],
)
def test_forms_of_padding(padding, pairs):
    assert conv_geometry((1, 9, 9), (1, 1, 3, 4), padding=padding).padding == pairs


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("f", [1, 2, 3, 4, 5])
def test_same_keeps_the_size(f, dilation):
    g = conv_geometry((1, 1, 20), (1, 1, f), padding="same", dilation=dilation)
    assert g.output == g.input
    ((left, right),) = g.padding
    assert 0 <= right - left <= 1  # the odd one is on the right, as in PyTorch


X, W = (2, 4, 9, 9), (6, 4, 3, 3)
REFUSED = [
    (dict(x_shape=(4, 9)), ValueError, r"x has shape \(4, 9\): expected \(n_ch, height, width\) or \(N, n_ch, height, width\)"),
    (dict(x_shape=(1, 1, 4, 9, 9)), ValueError, "x has shape"),
    (dict(x_shape=(2, 0, 9, 9)), ValueError, r"x has shape \(2, 0, 9, 9\): only the batch may be empty"),
    (dict(x_shape=(2, 4, 9, 0)), ValueError, "only the batch may be empty"),
    (dict(x_shape=(-1, 4, 9, 9)), ValueError, "x "),
    (dict(x_shape=(2.0, 4, 9, 9)), TypeError, "x holds 2.0"),
    (dict(x_shape="abc"), TypeError, "x is 'abc'"),
    (dict(x_shape=7), TypeError, "x is 7"),
    (dict(x_shape=None), TypeError, "x is None"),
    (dict(x_shape=(2**40, 4, 9, 9)), ValueError, "x "),
    (dict(weight_shape=(6, 4, 3)), ValueError, r"weight has shape \(6, 4, 3\): expected 4 axes"),
    (dict(weight_shape=(6, 4, 0, 3)), ValueError, "weight has shape .* no axis may be empty"),
    (dict(weight_shape=(6, 4, -3, 3)), ValueError, "weight "),
    (dict(weight_shape=(6, 3, 3, 3)), ValueError, r"weight has 3 input channels, x has 4 .* shape \(6, 4, 3, 3\)"),
    (dict(weight_shape=(6, 4, 10, 3)), ValueError, r"weight reaches over 10 along the height .* x has 9 \+ 0 \+ 0"),
    (dict(weight_shape=(6, 4, 3, 10)), ValueError, "along the width"),
    (dict(dilation=5), ValueError, r"weight reaches over 11 along the height \(kernel 3, dilation 5\)"),
    (dict(stride=0), ValueError, "stride is 0: expected 1 to"),
    (dict(stride=-1), ValueError, "stride is -1"),
    (dict(stride=2**31), ValueError, "stride is 2147483648"),
    (dict(stride=(1, 2, 3)), ValueError, "stride has 3 values: expected 1 or 2"),
    (dict(stride=()), ValueError, "stride has 0 values"),
    (dict(stride=1.0), TypeError, "stride is 1.0"),
    (dict(stride=(1, 1.0)), TypeError, "stride holds 1.0"),
    (dict(stride=True), TypeError, "stride is True"),
    (dict(stride=None), TypeError, "stride is None"),
    (dict(stride="2"), TypeError, "stride is '2'"),
    (dict(dilation=0), ValueError, "dilation is 0"),
    (dict(dilation=[[1], [1]]), TypeError, "dilation holds"),
    (dict(padding=-1), ValueError, "padding is -1: expected 0 to"),
    (dict(padding=((0, -1), (0, 0))), ValueError, "padding is -1"),
    (dict(padding=((0, 1, 2), (0, 0))), ValueError, r"padding holds \(0, 1, 2\): expected a \(left, right\) pair"),
    (dict(padding=(1, 1, 1)), ValueError, "padding has 3 values"),
    (dict(padding=1.5), TypeError, "padding is 1.5"),
    (dict(padding=(1.5, 1)), TypeError, "padding is 1.5"),
    (dict(padding=((1, None), 1)), TypeError, "padding holds None"),
    (dict(padding="full"), ValueError, "padding is 'full': expected 'valid', 'same' or numbers"),
    (dict(padding="same", stride=2), ValueError, "padding is 'same', stride is"),
    (dict(groups=0), ValueError, "groups is 0"),
    (dict(groups=-2), ValueError, "groups is -2"),
    (dict(groups=3), ValueError, "groups is 3: expected a divisor of the 4 channels of x"),
    (dict(groups=4), ValueError, "groups is 4: expected a divisor of the 6 filters of weight"),
    (dict(groups=2), ValueError, r"weight has 4 input channels, x has 4 \(groups=2\): expected weight of shape \(6, 2, 3, 3\)"),
    (dict(groups=1.0), TypeError, "groups holds 1.0"),
    (dict(groups=True), TypeError, "groups is True"),
    (dict(groups=None), TypeError, "groups holds None"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "message"), REFUSED, ids=lambda value: str(value) if type(value) is dict else ""
)
def test_refused(changes, error, message):
    arguments = {"x_shape": X, "weight_shape": W} | changes
    with pytest.raises(error, match=message):
        conv_geometry(**arguments, ndim=2)


def test_names_in_messages():
    with pytest.raises(ValueError, match="kernel has 3 input channels, image has 4"):
        conv_geometry((4, 9), (2, 3, 3), x_name="image", weight_name="kernel")
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3\): expected 3, 4 or 5 axes"):
        conv_geometry((4, 9), (2, 3))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_transposed_size(ndim):
    """Against the formula, and back: the convolution that is transposed has the transposed one's input as its output."""
    for n, f, s, d, P, Q, e in itertools.product((1, 2, 5), (1, 2, 4), (1, 2, 3), (1, 2, 4), (0, 1), (0, 2), (0, 1, 3)):
        size = (n - 1) * s - P - Q + d * (f - 1) + e + 1
        if e >= max(s, d) or size < 1:
            continue
        g = transposed_geometry((2, 4) + (n,) * ndim, (4, 3) + (f,) * ndim, s, ((P, Q),) * ndim, e, 1, d, ndim=ndim)
        assert g.input_shape == (2, 3) + (size,) * ndim
        assert g.output_shape == (2, 4) + (n,) * ndim
        assert g.weight_shape == (4, 3) + (f,) * ndim
        if e < s:
            assert conv_geometry(g.input_shape, g.weight_shape, s, g.padding, d) == g


TRANSPOSED_REFUSED = [
    (dict(x_shape=(4,)), ValueError, "x has shape"),
    (dict(x_shape=(2, 4, 0, 5)), ValueError, "x has shape .* only the batch may be empty"),
    (dict(x_shape=(2, 3, 5, 5)), ValueError, r"weight has 4 input channels, x has 3: expected weight of shape \(3, 3, 3, 3\)"),
    (dict(x_shape=None), TypeError, "x is None"),
    (dict(weight_shape=(4, 3, 3)), ValueError, "weight has shape .* expected 4 axes"),
    (dict(weight_shape=(4, 0, 3, 3)), ValueError, "weight has shape .* no axis may be empty"),
    (dict(stride=0), ValueError, "stride is 0"),
    (dict(stride="1"), TypeError, "stride is '1'"),
    (dict(stride=2**31 - 1), ValueError, "stride|output"),
    (dict(dilation=(1, 0)), ValueError, "dilation is 0"),
    (dict(dilation=None), TypeError, "dilation is None"),
    (dict(padding="same"), TypeError, "padding is 'same'"),
    (dict(padding=-1), ValueError, "padding is -1"),
    (dict(padding=4), ValueError, r"padding is 4: it leaves an output of size -1, expected at least 1"),
    (dict(output_padding=-1), ValueError, "output_padding is -1"),
    (dict(output_padding=1), ValueError, "output_padding is 1: expected less than the stride 1 or the dilation 1"),
    (dict(output_padding=(0, 0, 0)), ValueError, "output_padding has 3 values"),
    (dict(output_padding=0.5), TypeError, "output_padding is 0.5"),
    (dict(groups=0), ValueError, "groups is 0"),
    (dict(groups=3), ValueError, "groups is 3: expected a divisor of the 4 input channels of weight"),
    (dict(groups=False), TypeError, "groups is False"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "message"), TRANSPOSED_REFUSED, ids=lambda value: str(value) if type(value) is dict else ""
)
def test_transposed_refused(changes, error, message):
    arguments = {"x_shape": (2, 4, 5, 5), "weight_shape": (4, 3, 3, 3)} | changes
    with pytest.raises(error, match=message):
        transposed_geometry(**arguments, ndim=2)
