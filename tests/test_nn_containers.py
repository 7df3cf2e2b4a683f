"""Sequential and Residual: fused padding, skipped gradients, nesting, names and reprs."""

import itertools
import tracemalloc

import numpy as np
import pytest
from cases import INTERPRETED

from fastconv import arrays, nn, ops
from fastconv.nn import containers, normalisation


def random(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def integers(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def with_integer_weights(module):
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = integers(parameter.shape, seed, parameter.data.dtype)
    return module


def spy(monkeypatch, module, name):
    """Record the keyword arguments of each call of ``module.name``."""
    calls, original = [], getattr(module, name)

    def recorded(*args, **kwargs):
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, recorded)
    return calls


# ---------------------------------------------------------------------------------------------------------------------
# Fused padding


def test_fused_padding_is_the_convolutions_padding_bit_for_bit():
    x = random((2, 3, 7, 6))
    model = nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(3, 4, 3, stride=2, rng=0))
    conv = model[1]
    output = model(x)
    padding = ((0, 3), (1, 2))
    np.testing.assert_array_equal(output, ops.conv2d(x, conv.weight, conv.bias, 2, padding))
    grad = random(output.shape, 1)
    dx = model.backward(grad, input_grad=True)
    expected = ops.conv2d_backward(grad, x, conv.weight, 2, padding)
    np.testing.assert_array_equal(dx, expected.input)
    np.testing.assert_array_equal(conv.grad_weight, expected.weight)
    np.testing.assert_array_equal(conv.grad_bias, expected.bias)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fused_equals_unfused(ndim, dtype):
    conv_class, pad_class = getattr(nn, f"Conv{ndim}d"), getattr(nn, f"ZeroPad{ndim}d")
    pad = pad_class(tuple(range(1, 2 * ndim + 1)))
    conv = with_integer_weights(conv_class(2, 3, 3, stride=2, dtype=dtype))
    x = integers((2, 2, *(5, 4, 3)[:ndim]), 5, dtype)
    expected = conv(pad(x))
    grad = integers(expected.shape, 6, dtype)
    expected_dx = pad.backward(conv.backward(grad))
    gradients = [parameter.grad.copy() for parameter in conv.parameters()]
    conv.zero_grad()
    model = nn.Sequential(pad, conv)
    np.testing.assert_array_equal(model(x), expected)
    np.testing.assert_array_equal(model.backward(grad, input_grad=True), expected_dx)
    for parameter, reference in zip(model.parameters(), gradients, strict=True):
        np.testing.assert_array_equal(parameter.grad, reference)


def test_activations_lie_channels_last_between_layers():
    """Also behind an image of one channel, which lies both ways."""
    model = with_integer_weights(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.ZeroPad2d(1), nn.Conv2d(4, 3, 3)
        )
    )
    x = integers((2, 1, 8, 8))
    output = model(x)
    grad = np.ones((2, 4, 3, 3), np.float32)
    for seen in (output, model[2].backward(grad)):
        assert seen.transpose(0, 2, 3, 1).flags.c_contiguous
    expected = model.fuse(False)(x)
    assert expected.flags.c_contiguous
    np.testing.assert_array_equal(output, expected)


def padded_calls(monkeypatch, model, x):
    """How many times the model pads an array, forward and backward."""
    from fastconv.nn import padding

    forward, backward = spy(monkeypatch, padding, "pad"), spy(monkeypatch, padding, "pad_backward")
    output = model(x)
    model.backward(np.ones_like(output), input_grad=True)
    assert len(forward) == len(backward)
    return len(forward)


@pytest.mark.parametrize(
    ("layers", "count"),
    [
        (lambda: [nn.ZeroPad2d(1), nn.Conv2d(1, 1, 3)], 0),
        (lambda: [nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(1, 1, 3), nn.ReLU()], 0),
        (lambda: [nn.ZeroPad2d(1), nn.ZeroPad2d((1, 0, 2, 0)), nn.Conv2d(1, 1, 3)], 0),
        (lambda: [nn.Sequential(nn.ReLU(), nn.ZeroPad2d(1)), nn.Conv2d(1, 1, 3)], 0),
        (lambda: [nn.ZeroPad2d(1), nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 3)))], 0),
        (lambda: [nn.Residual(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 1, 3)))], 0),
        (lambda: [nn.ZeroPad2d(1), nn.ReLU(), nn.Conv2d(1, 1, 3)], 1),
        (lambda: [nn.ZeroPad2d(1), nn.ConvTranspose2d(1, 1, 3)], 1),
        (lambda: [nn.ReflectionPad2d(1), nn.Conv2d(1, 1, 3)], 1),
        (lambda: [nn.Conv2d(1, 1, 3), nn.ZeroPad2d(1)], 1),
        (lambda: [nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ZeroPad2d(1), nn.Conv2d(1, 1, 3)], 2),
    ],
)
def test_what_is_fused(monkeypatch, layers, count):
    x = integers((2, 1, 4, 4))
    plain = [layer for layer in with_integer_weights(nn.Sequential(*layers()))]
    model = with_integer_weights(nn.Sequential(*layers()))
    expected = x
    for layer in plain:
        expected = layer(expected)
    np.testing.assert_array_equal(model(x), expected)
    expected_dx = integers(expected.shape, 3)
    dx = model.backward(expected_dx, input_grad=True)
    for layer in reversed(plain):
        expected_dx = layer.backward(expected_dx, input_grad=True)
    np.testing.assert_array_equal(dx, expected_dx)
    assert padded_calls(monkeypatch, model, x) == count


def test_no_padded_array_outlives_the_call():
    def kept(model):
        x = np.ones((1, 1, 4, 4))
        model(x)  # compiles
        model.eval().train()  # drops what that call has kept
        arrays.release()  # memory that is used again would not be counted
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            output = model(x)
            assert output.shape == (1, 1, 3, 3)
            return tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()

    def conv():
        return nn.Conv2d(1, 1, 3, stride=100, dtype=np.float64)

    padded = 204 * 204 * 8
    assert kept(nn.Sequential(nn.ZeroPad2d(100), conv())) < padded / 4
    assert kept(nn.Sequential(nn.ZeroPad2d(100), nn.ReLU(), conv())) > padded / 4


# ---------------------------------------------------------------------------------------------------------------------
# Gradients of the input


def test_first_layer_skips_its_input_gradient(monkeypatch):
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    x = random((2, 1, 6, 6))
    calls = spy(monkeypatch, ops, "conv2d_backward")
    grad = np.ones_like(model(x))
    assert model.backward(grad) is None
    wants_dx, others = (True, False, False), (False, True, True)
    assert [call["output_mask"] for call in calls] == [wants_dx, others, others]
    gradients = [parameter.grad.copy() for parameter in model.parameters()]
    model.zero_grad()
    model(x)
    dx = model.backward(grad, input_grad=True)
    assert dx.shape == x.shape
    assert not dx[x < 0].any()
    assert [call["output_mask"] for call in calls[3:]] == [wants_dx, others] * 2
    for parameter, reference in zip(model.parameters(), gradients, strict=True):
        np.testing.assert_array_equal(parameter.grad, reference)


def test_layers_in_front_of_the_first_parameters_do_nothing(monkeypatch):
    first, second = nn.ReLU(), nn.MaxPool2d(2)
    model = nn.Sequential(nn.Sequential(first), second, nn.Conv2d(1, 1, 3))
    output = model(random((1, 1, 8, 8)))
    for layer in (first, second):
        monkeypatch.setattr(layer, "_backward", None)
    model.backward(np.ones_like(output))
    for layer in (first, second):  # and keep no memory either
        assert layer._kept is None


@pytest.mark.parametrize("input_grad", [False, True])
def test_nesting_changes_nothing(input_grad):
    def leaves():
        return [nn.Conv2d(1, 2, 3, rng=0), nn.ReLU(), nn.Conv2d(2, 2, 3, rng=1), nn.Flatten(), nn.Linear(32, 3, rng=2)]

    class Own(nn.Sequential):
        """Not flattened into an outer one."""

    a, b, c, d, e = leaves()
    nested = [
        nn.Sequential(nn.Sequential(nn.Sequential(a), b), nn.Sequential(c, d), nn.Sequential(), e),
        nn.Sequential(*(Own(layer) for layer in leaves())),
        Own(Own(*leaves()[:3]), Own(*leaves()[3:])),
    ]
    x, grad = random((2, 1, 8, 8)), random((2, 3), 1)
    flat = nn.Sequential(*leaves())
    expected = flat(x)
    expected_dx = flat.backward(grad, input_grad=input_grad)
    for model in nested:
        np.testing.assert_array_equal(model(x), expected)
        dx = model.backward(grad, input_grad=input_grad)
        assert (dx is None) == (not input_grad)
        if input_grad:
            np.testing.assert_array_equal(dx, expected_dx)
        for one, other in zip(model.parameters(), flat.parameters(), strict=True):
            np.testing.assert_array_equal(one.grad, other.grad)


def test_inner_sequential_on_its_own_needs_its_own_forward():
    inner = nn.Sequential(nn.Linear(2, 2))
    outer = nn.Sequential(inner, nn.ReLU())
    x = random((3, 2))
    inner(x)
    outer(x)
    with pytest.raises(RuntimeError, match="part of an outer Sequential"):
        inner.backward(x)
    assert outer.backward(x, input_grad=True).shape == x.shape


def test_residual_in_front_passes_on_that_no_input_gradient_is_wanted(monkeypatch):
    block = nn.Residual(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), nn.Conv2d(1, 1, 1))
    model = nn.Sequential(block, nn.ReLU())
    x = random((2, 1, 3, 3))
    calls = spy(monkeypatch, ops, "conv2d_backward")
    output = model(x)
    assert model.backward(np.ones_like(output)) is None
    assert [call["output_mask"] for call in calls] == [(False, True, True)] * 2
    output = block(x)
    assert block.backward(np.ones_like(output)).shape == x.shape


@pytest.mark.parametrize("shortcut", [None, lambda: nn.Linear(3, 3, rng=2)])
@pytest.mark.parametrize("body", [lambda: nn.ReLU(), lambda: nn.Sequential(nn.Linear(3, 3, rng=1), nn.ReLU())])
def test_residual(body, shortcut):
    x, grad = random((2, 3)), random((2, 3), 1)
    block = nn.Residual(body(), shortcut and shortcut())
    one, other = body(), shortcut() if shortcut else None
    np.testing.assert_array_equal(block(x), one(x) + (other(x) if other else x))
    expected = one.backward(grad, input_grad=True) + (other.backward(grad) if other else grad)
    np.testing.assert_array_equal(block.backward(grad), expected)
    block(x)
    assert block.backward(grad, input_grad=False) is None
    nested = nn.Sequential(block)
    np.testing.assert_array_equal(nested(x), block(x))
    np.testing.assert_array_equal(nested.backward(grad, input_grad=True), expected)


def test_residual_shapes_must_agree():
    with pytest.raises(ValueError, match=r"body\(x\) has shape \(2, 4\).*the shortcut \(2, 3\).*expected the same"):
        nn.Residual(nn.Linear(3, 4))(random((2, 3)))


def test_empty_sequential():
    model, x = nn.Sequential(), random((2, 3))
    np.testing.assert_array_equal(model(x), x)
    np.testing.assert_array_equal(model.backward(x, input_grad=True), x)
    model(x)
    assert model.backward(x) is None


# ---------------------------------------------------------------------------------------------------------------------
# One sample without a batch axis


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: nn.Sequential(nn.ReLU(), nn.Sequential(m))])
def test_one_sample_goes_through_flatten_and_linear(wrap):
    model = wrap(
        nn.Sequential(
            nn.ZeroPad2d(1),
            nn.Residual(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(2, 2, 3, rng=0), nn.BatchNorm2d(2))),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * 3 * 3, 5, rng=0),
        )
    )
    x, grad = random((2, 4, 4)), random((5,), 1)
    output = model(x)
    assert output.shape == (5,)
    dx = model.backward(grad, input_grad=True)
    assert dx.shape == x.shape
    gradients = [parameter.grad.copy() for parameter in model.parameters()]
    model.zero_grad()
    np.testing.assert_array_equal(model(x[np.newaxis]), output[np.newaxis])
    np.testing.assert_array_equal(model.backward(grad[np.newaxis], input_grad=True), dx[np.newaxis])
    for parameter, reference in zip(model.parameters(), gradients, strict=True):
        np.testing.assert_array_equal(parameter.grad, reference)
    loss = nn.CrossEntropyLoss()
    assert loss(model(x), 3) > 0
    assert model.backward(loss.backward()) is None


# ---------------------------------------------------------------------------------------------------------------------
# Names, reprs and mistakes


def test_names_are_pytorchs():
    block = nn.Residual(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), nn.Conv2d(1, 1, 1, bias=False))
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(1, 1)), block)
    names = ["1.0.weight", "1.0.bias", "2.body.0.weight", "2.body.0.bias", "2.body.1.weight", "2.body.1.bias"]
    assert [parameter.name for parameter in model.parameters()] == [*names, "2.shortcut.weight"]
    assert [name for name, _ in model.named_parameters()] == [*names, "2.shortcut.weight"]
    statistics = [f"2.body.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
    assert list(model.state_dict()) == [*names, *statistics, "2.shortcut.weight"]
    assert [name for name, _ in model.named_buffers()] == statistics
    assert model.state_dict()["2.body.1.num_batches_tracked"].dtype == np.int64
    assert model.state_dict()["2.body.1.num_batches_tracked"].shape == ()


def test_access():
    layers = [nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers)
    assert len(model) == 2
    assert list(model) == layers
    assert model[-1] is layers[1]
    with pytest.raises(TypeError):
        model["0"]
    assert model.train() is model.eval() is model
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())


def test_repr_of_nested_modules():
    block = nn.Residual(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)))
    assert repr(nn.Sequential(nn.Conv2d(1, 4, 3), block, nn.MaxPool2d(2))) == (
        """Sequential(
  (0): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))  # weight (4, 1, 3, 3), bias (4,)
  (1): Residual(
    (body): Sequential(
      (0): ZeroPad2d((1, 1, 1, 1))  # part of the Conv2d
      (1): Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), bias=False)  # weight (4, 4, 3, 3)
      (2): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)  # weight (4,), bias (4,)
    )  # 152 parameters, the BatchNorm2d adds the shortcut
  )  # 152 parameters
  (2): MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))
)  # 192 parameters"""
    )


class Own(nn.Module):
    """A module of one's own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.second = nn.Linear(3, 2)

    def forward(self, x):
        return self.second(self.first(x))

    def backward(self, grad_output, *, input_grad=True):
        return self.first.backward(self.second.backward(grad_output), input_grad=input_grad)


def test_module_of_ones_own():
    model, x = nn.Sequential(Own(), nn.ReLU()), random((4, 2))
    assert list(model.state_dict()) == [
        f"0.{layer}.{name}" for layer in ("first", "second") for name in ("weight", "bias")
    ]
    output = model(x)
    assert model.backward(output) is None
    assert all(parameter.grad is not None for parameter in model.parameters())
    model(x)
    assert model.backward(output, input_grad=True).shape == x.shape
    model.eval()(x)
    with pytest.raises(RuntimeError, match="evaluation mode"):
        model[0].backward(x)


def test_mistakes():
    layer = nn.ReLU()
    with pytest.raises(TypeError, match=r"module 1 is of type int: expected an nn\.Module"):
        nn.Sequential(layer, 3)
    with pytest.raises(ValueError, match=r"the same ReLU\(\) is there twice"):
        nn.Sequential(layer, nn.Sequential(layer))
    with pytest.raises(ValueError, match="is there twice"):
        nn.Residual(layer, layer)
    with pytest.raises(TypeError, match="body is of type NoneType"):
        nn.Residual(None)
    with pytest.raises(TypeError, match="shortcut is of type str"):
        nn.Residual(layer, "x")
    model = nn.Sequential(nn.Linear(2, 1))
    with pytest.raises(TypeError, match=r"x is \[1\.0, 2\.0\] \(list\)"):
        model([1.0, 2.0])


# ---------------------------------------------------------------------------------------------------------------------
# Layers that are computed in one go


def convolution(ndim, dtype):
    pad, conv = getattr(nn, f"ZeroPad{ndim}d")(1), getattr(nn, f"Conv{ndim}d")
    return [pad, conv(3, 4, 3, stride=2, dtype=dtype), nn.ReLU()]


def block(dtype, shortcut=None):
    """A residual block whose body ends with a normalisation, and is nothing else, as convolutions of fractions are inexact."""
    body = nn.Sequential(nn.Sequential(), nn.Sequential(nn.BatchNorm2d(3, dtype=dtype)))
    return nn.Residual(body, shortcut)


# For each row: the shape of a batch, the layers, and what the repr says.
FUSED = {
    "conv1d": ((2, 3, 9), lambda dtype: convolution(1, dtype), ["part of the Conv1d"] * 2),
    "conv2d": ((2, 3, 9, 8), lambda dtype: convolution(2, dtype), ["part of the Conv2d"] * 2),
    "conv3d": ((2, 3, 4, 5, 6), lambda dtype: convolution(3, dtype), ["part of the Conv3d"] * 2),
    "no padding": ((2, 3, 9, 8), lambda dtype: convolution(2, dtype)[1:], ["part of the Conv2d"]),
    "linear": ((40, 3), lambda dtype: [nn.Linear(3, 5, dtype=dtype), nn.ReLU()], ["part of the Linear"]),
    "convolution and pool": (
        (2, 3, 30, 22), lambda dtype: [nn.ZeroPad2d(1), nn.Conv2d(3, 20, 3, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2)],
        ["part of the Conv2d"] * 3,
    ),
    "pool without ReLU": (
        (2, 3, 30, 22), lambda dtype: [nn.Conv2d(3, 70, (1, 3), dtype=dtype), nn.MaxPool2d((3, 4))], ["part of the Conv2d"]
    ),
    "pool of pixels": (
        (3, 5, 31, 23), lambda dtype: [nn.Conv2d(5, 16, 1, dtype=dtype), nn.MaxPool2d((1, 2)), nn.ReLU()], ["part of the Conv2d"]
    ),
    "pool of groups": (
        (2, 12, 9, 10), lambda dtype: [nn.Conv2d(12, 40, 3, groups=2, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2)],
        ["part of the Conv2d"] * 2,
    ),
    "pool of few channels": (
        (2, 3, 9, 8), lambda dtype: [*convolution(2, dtype), nn.MaxPool2d(2)], ["part of the Conv2d"] * 3
    ),
    "pool of single channels": (
        (2, 4, 21, 18), lambda dtype: [nn.Conv2d(4, 4, 3, groups=4, dtype=dtype), nn.ReLU(), nn.MaxPool2d((2, 1))],
        ["part of the Conv2d"] * 2,
    ),
    "overlapping pool": (
        (2, 3, 9, 8), lambda dtype: [*convolution(2, dtype), nn.MaxPool2d(2, 1)],
        ["part of the Conv2d", "part of the MaxPool2d"],
    ),
    "normalisation": ((2, 3, 20, 20), lambda dtype: [nn.BatchNorm2d(3, dtype=dtype), nn.ReLU()], ["part of the BatchNorm2d"]),
    "wide normalisation": (
        (3, 300, 4, 5), lambda dtype: [nn.BatchNorm2d(300, affine=False, dtype=dtype), nn.ReLU()], ["part of the BatchNorm2d"]
    ),
    "normalisation and pool": (
        (2, 3, 6, 6), lambda dtype: [nn.BatchNorm2d(3, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2)], ["part of the MaxPool2d"]
    ),
    "sum": ((2, 3, 6, 6), lambda dtype: [block(dtype)], ["the BatchNorm2d adds the shortcut"]),
    "sum and ReLU": (
        (2, 3, 6, 6), lambda dtype: [block(dtype), nn.ReLU()], ["the BatchNorm2d adds the shortcut", "part of the Residual"]
    ),
    "shortcut": (
        (2, 3, 20, 20), lambda dtype: [block(dtype, nn.Conv2d(3, 3, 1, dtype=dtype)), nn.ReLU()],
        ["the BatchNorm2d adds the shortcut", "part of the Residual"],
    ),
    "shortcut with a stride": (
        (2, 9, 7, 8),
        lambda dtype: [
            nn.Residual(
                nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(9, 4, 3, stride=2, dtype=dtype)),
                nn.Conv2d(9, 4, 1, stride=2, dtype=dtype),
            ),
            nn.ReLU(),
        ],
        ["its gradient is added to the body's in place", "part of the Residual"],
    ),
    "sum of a convolution": (
        (2, 9, 6, 5), lambda dtype: [nn.Residual(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(9, 9, 3, dtype=dtype)))],
        ["part of the Conv2d"],
    ),
    "other body": (
        (2, 3, 6, 6), lambda dtype: [nn.Residual(nn.Conv2d(3, 3, 1, dtype=dtype)), nn.ReLU()], ["part of the Residual"]
    ),
}  # fmt: skip


def channels_last(x):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def kind(result):
    """Of a batch or of a single image, in training or in evaluation."""
    return result[0].ndim, len(result)


@pytest.mark.parametrize("dtype", [np.float32] if INTERPRETED else [np.float32, np.float64])
@pytest.mark.parametrize("name", FUSED)
def test_layers_in_one_go_equal_each_by_itself_bit_for_bit(name, dtype):
    shape, layers, notes = FUSED[name]
    batch = integers(shape, 1, dtype)
    results = []
    for x, mode in itertools.product((batch, channels_last(batch), batch[0]), (True, False)):
        model = with_integer_weights(nn.Sequential(*layers(dtype))).fuse(mode)
        if x.ndim < batch.ndim and "Linear" in repr(model):
            continue
        for note in notes:
            assert (note in repr(model)) == mode
        output = model(x)
        for grad in (integers(output.shape, 2, dtype), channels_last(integers(output.shape, 2, dtype))):
            model.zero_grad()
            output = model(x)
            dx = model.backward(grad, input_grad=True)
            buffers = [buffer for name, buffer in model.named_buffers() if "num" not in name]
            results.append([x, output, dx, *(p.grad.copy() for p in model.parameters()), *buffers])
            with pytest.raises(RuntimeError, match="needs a forward pass"):
                model.backward(grad)
        results.append([x, model.eval()(x)])
        assert output.any()
        assert not output.all()
    for _, group in itertools.groupby(sorted(results, key=kind), kind):
        first, *others = group
        for other in others:
            for one, same in zip(first[1:], other[1:], strict=True):
                np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize("name", FUSED)
def test_what_is_no_number_passes_in_one_go_as_it_does_by_itself(name):
    shape, layers, _ = FUSED[name]
    x = integers(shape, 1)
    x[np.random.default_rng(2).random(shape) < 0.02] = np.nan
    x.flat[2] = np.nan
    results = []
    for mode in (True, False):
        model = with_integer_weights(nn.Sequential(*layers(np.float32))).fuse(mode)
        output = model(x)
        results.append([output, model.backward(np.ones_like(output), input_grad=True)])
    for one, same in zip(*results, strict=True):
        np.testing.assert_array_equal(one, same)
    assert np.isnan(results[0][0]).any()


def test_only_the_librarys_own_layers_are_fused():
    """A layer of one's own may do something else."""

    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Shifted(nn.ReLU):
        def forward(self, x):
            return super().forward(x - 1)

    x = integers((2, 1, 4, 4))
    conv, doubled = (with_integer_weights(kind(1, 2, 3)) for kind in (nn.Conv2d, Doubled))
    for layers in ([doubled, nn.ReLU()], [conv, Shifted()], [conv, Shifted(), nn.MaxPool2d(2)]):
        model = nn.Sequential(*layers)
        assert "part of" not in repr(model)
        np.testing.assert_array_equal(model(x), model.fuse(False)(x))
    assert "adds" not in repr(nn.Residual(nn.BatchNorm2d(2), doubled).fuse(False))


def test_a_wrong_gradient_of_a_sum_and_its_relu_leaves_the_activations():
    block = nn.Residual(nn.BatchNorm2d(2))
    model = nn.Sequential(block, nn.ReLU())
    output = model(integers((2, 2, 3, 3)))
    with pytest.raises(ValueError, match="grad_output has shape"):
        block.backward(output[:1])
    with pytest.raises(TypeError, match="grad_output has dtype float64"):
        block.backward(output.astype(np.float64))
    grad = integers(output.shape, 2)
    dx = block.backward(grad)
    assert block._rectified is None  # and no memory is kept
    unfused = nn.Sequential(nn.Residual(nn.BatchNorm2d(2)), nn.ReLU()).fuse(False)
    unfused(integers((2, 2, 3, 3)))
    np.testing.assert_array_equal(dx, unfused.backward(grad, input_grad=True))
    with pytest.raises(RuntimeError, match="used up"):
        block.backward(output)
    with pytest.raises(ValueError, match=r"body\(x\) has shape .* the shortcut \(2, 2, 1, 3\).*expected the same"):
        nn.Residual(nn.BatchNorm2d(2), nn.Conv2d(2, 2, (3, 1)))(output)


def test_a_block_takes_one_image():
    """By itself, too, where no Sequential around it makes that a batch."""
    x, grad = integers((3, 6, 6), 1), integers((3, 6, 6), 2)
    results = []
    for model in (block(np.float32), block(np.float32).fuse(False)):
        results.append([model(x), model.backward(grad)])
        assert results[-1][0].shape == x.shape
    for one, same in zip(*results, strict=True):
        np.testing.assert_array_equal(one, same)


def test_statistics_do_not_cancel_far_from_zero():
    x = 1e6 + integers((4, 2, 8, 8), 1, np.float32)
    layer = nn.BatchNorm2d(2, momentum=1.0)
    layer(x)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(layer.running_mean, exact.mean(axis=(0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(layer.running_var, exact.var(axis=(0, 2, 3), ddof=1), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients in the place of others


class Keeper(nn.Module):
    """Passes everything on, and keeps the gradient that it is handed."""

    def forward(self, x):
        return x

    def backward(self, grad_output, *, input_grad=True):
        self.kept, self.copy = grad_output, grad_output.copy()
        return grad_output


def residual_layers():
    """Blocks with and without ReLU and a shortcut of their own, behind all kinds of layers."""

    def convolution(channels, filters, kernel=3, stride=1):
        return [nn.ZeroPad2d(kernel // 2), nn.Conv2d(channels, filters, kernel, stride, bias=False, rng=filters)]

    return [
        *convolution(3, 8), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Residual(nn.Sequential(*convolution(8, 8), nn.BatchNorm2d(8), nn.ReLU(), *convolution(8, 8), nn.BatchNorm2d(8))),
        nn.ReLU(),
        nn.Residual(
            nn.Sequential(*convolution(8, 16, 3, 2), nn.BatchNorm2d(16)),
            nn.Sequential(*convolution(8, 16, 1, 2), nn.BatchNorm2d(16)),
        ),
        nn.BatchNorm2d(16), nn.MaxPool2d(2),
        nn.Residual(nn.Sequential(*convolution(16, 16), nn.BatchNorm2d(16)), nn.BatchNorm2d(16)),
        nn.ReLU(), nn.Residual(nn.BatchNorm2d(16)), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
    ]  # fmt: skip


def gradients_of(model, x, grad):
    model.zero_grad()
    model(x)
    return [model.backward(grad, input_grad=True), *(parameter.grad.copy() for parameter in model.parameters())]


def test_what_is_overwritten_changes_no_gradient(monkeypatch):
    x, grad, places = random((4, 3, 18, 18)), random((4, 16, 1, 1), 1), []
    kernel = normalisation.grad_input

    def recorded(rows, gradient, table, least, dx):
        places.append(dx is gradient)
        kernel(rows, gradient, table, least, dx)

    monkeypatch.setattr(normalisation, "grad_input", recorded)
    results = gradients_of(nn.Sequential(*residual_layers()), x, grad)
    assert any(places)
    assert not all(places)  # where a block has no ReLU, its shortcut needs the gradient, too
    monkeypatch.setattr(containers, "FRESH", ())
    places.clear()
    for one, same in zip(results, gradients_of(nn.Sequential(*residual_layers()), x, grad), strict=True):
        np.testing.assert_array_equal(one, same)
    assert not any(places)


@pytest.mark.parametrize("place", range(len(residual_layers()) + 1))
def test_what_others_are_handed_is_not_overwritten(place):
    layers, keeper, grad = residual_layers(), Keeper(), random((4, 16, 1, 1), 1)
    before = grad.copy()
    model = nn.Sequential(*layers[:place], keeper, *layers[place:])
    gradients_of(model, random((4, 3, 18, 18)), grad)
    np.testing.assert_array_equal(keeper.kept, keeper.copy)
    np.testing.assert_array_equal(grad, before)
