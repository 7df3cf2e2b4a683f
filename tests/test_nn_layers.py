"""Every layer against finite differences and PyTorch, and the rules that all layers keep."""

import math
import weakref

import numpy as np
import pytest

import fastconv
from fastconv import nn

F64 = np.float64

# Name: (makes the layer, shape of its batched input, makes PyTorch's layer from torch.nn or None)
CASES = {
    "Conv1d": (lambda: nn.Conv1d(2, 4, 3, 2, dtype=F64, rng=1), (2, 2, 8), lambda t: t.Conv1d(2, 4, 3, 2)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), dtype=F64, rng=1), (2, 2, 5, 4), lambda t: t.Conv2d(2, 3, (3, 2))),
    "Conv2d-all": (
        lambda: nn.Conv2d(4, 6, 2, (2, 1), (1, 2), 2, False, dtype=F64, rng=1),
        (2, 4, 5, 5),
        lambda t: t.Conv2d(4, 6, 2, (2, 1), 0, (1, 2), 2, False),
    ),
    "Conv3d": (lambda: nn.Conv3d(1, 2, 2, dtype=F64, rng=1), (2, 1, 3, 3, 4), lambda t: t.Conv3d(1, 2, 2)),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(2, 3, 3, dtype=F64, rng=1),
        (2, 2, 3, 4),
        lambda t: t.ConvTranspose2d(2, 3, 3),
    ),
    "ConvTranspose2d-all": (
        lambda: nn.ConvTranspose2d(4, 2, 3, (2, 3), 1, (1, 0), 2, False, (1, 2), dtype=F64, rng=1),
        (2, 4, 3, 3),
        lambda t: t.ConvTranspose2d(4, 2, 3, (2, 3), 1, (1, 0), 2, False, (1, 2)),
    ),
    "ZeroPad1d": (lambda: nn.ZeroPad1d((1, 2)), (2, 2, 4), lambda t: t.ZeroPad1d((1, 2))),
    "ZeroPad2d": (lambda: nn.ZeroPad2d((1, 2, 0, 3)), (2, 2, 4, 3), lambda t: t.ZeroPad2d((1, 2, 0, 3))),
    "ZeroPad3d": (
        lambda: nn.ZeroPad3d((1, 2, 0, 3, 2, 0)),
        (1, 2, 4, 3, 2),
        lambda t: t.ZeroPad3d((1, 2, 0, 3, 2, 0)),
    ),
    "ReflectionPad1d": (lambda: nn.ReflectionPad1d((3, 2)), (2, 2, 4), lambda t: t.ReflectionPad1d((3, 2))),
    "ReflectionPad2d": (
        lambda: nn.ReflectionPad2d((1, 2, 0, 3)),
        (2, 2, 4, 3),
        lambda t: t.ReflectionPad2d((1, 2, 0, 3)),
    ),
    "ReflectionPad3d": (
        lambda: nn.ReflectionPad3d((1, 0, 2, 1, 0, 2)),
        (1, 2, 3, 3, 2),
        lambda t: t.ReflectionPad3d((1, 0, 2, 1, 0, 2)),
    ),
    "ReplicationPad1d": (lambda: nn.ReplicationPad1d((3, 2)), (2, 2, 4), lambda t: t.ReplicationPad1d((3, 2))),
    "ReplicationPad2d": (
        lambda: nn.ReplicationPad2d((1, 2, 0, 5)),
        (2, 2, 4, 3),
        lambda t: t.ReplicationPad2d((1, 2, 0, 5)),
    ),
    "ReplicationPad3d": (lambda: nn.ReplicationPad3d(2), (1, 2, 3, 2, 2), lambda t: t.ReplicationPad3d(2)),
    "CircularPad1d": (lambda: nn.CircularPad1d((3, 2)), (2, 2, 4), lambda t: t.CircularPad1d((3, 2))),
    "CircularPad2d": (lambda: nn.CircularPad2d((1, 2, 0, 4)), (2, 2, 4, 3), lambda t: t.CircularPad2d((1, 2, 0, 4))),
    "CircularPad3d": (lambda: nn.CircularPad3d(1), (1, 2, 3, 2, 2), lambda t: t.CircularPad3d(1)),
    "ReLU": (nn.ReLU, (3, 2, 4), lambda t: t.ReLU()),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (2, 2, 5, 4), lambda t: t.MaxPool2d(2)),
    "MaxPool2d-all": (
        lambda: nn.MaxPool2d((3, 2), (1, 2), (1, 0), (2, 1), True),
        (2, 2, 6, 5),
        lambda t: t.MaxPool2d((3, 2), (1, 2), (1, 0), (2, 1), ceil_mode=True),
    ),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), (2, 2, 5, 4), lambda t: t.AvgPool2d(2)),
    "AvgPool2d-ceil": (
        lambda: nn.AvgPool2d(3, 2, 1, True),
        (2, 2, 6, 5),
        lambda t: t.AvgPool2d(3, 2, 1, ceil_mode=True),
    ),
    "AvgPool2d-exclude": (
        lambda: nn.AvgPool2d((3, 2), (2, 1), (1, 1), False, False),
        (2, 2, 6, 5),
        lambda t: t.AvgPool2d((3, 2), (2, 1), (1, 1), count_include_pad=False),
    ),
    "AdaptiveAvgPool2d": (
        lambda: nn.AdaptiveAvgPool2d((3, None)),
        (2, 2, 5, 4),
        lambda t: t.AdaptiveAvgPool2d((3, None)),
    ),
    "AdaptiveAvgPool2d-more": (lambda: nn.AdaptiveAvgPool2d(7), (2, 1, 5, 4), lambda t: t.AdaptiveAvgPool2d(7)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3, dtype=F64), (2, 3, 2, 3), lambda t: t.BatchNorm2d(3)),
    "BatchNorm2d-plain": (
        lambda: nn.BatchNorm2d(3, 0.1, None, False, dtype=F64),
        (2, 3, 2, 3),
        lambda t: t.BatchNorm2d(3, 0.1, None, False),
    ),
    "BatchNorm2d-own": (
        lambda: nn.BatchNorm2d(3, track_running_stats=False, dtype=F64),
        (2, 3, 2, 3),
        lambda t: t.BatchNorm2d(3, track_running_stats=False),
    ),
    "Dropout": (lambda: nn.Dropout(0.4, rng=3), (4, 5), None),
    "Flatten": (nn.Flatten, (2, 3, 4), lambda t: t.Flatten()),
    "Flatten-some": (lambda: nn.Flatten(-3, 2), (2, 3, 4, 2), lambda t: t.Flatten(-3, 2)),
    "Linear": (lambda: nn.Linear(4, 3, dtype=F64, rng=1), (2, 4), lambda t: t.Linear(4, 3)),
    "Linear-plain": (lambda: nn.Linear(4, 3, False, dtype=F64, rng=1), (2, 5, 4), lambda t: t.Linear(4, 3, False)),
    "Sequential": (
        lambda: nn.Sequential(
            nn.ReLU(),
            nn.ZeroPad2d((1, 0, 2, 1)),
            nn.Conv2d(2, 3, 3, dtype=F64, rng=1),
            nn.Sequential(nn.BatchNorm2d(3, dtype=F64), nn.ReLU()),
            nn.Flatten(),
            nn.Linear(3 * 5 * 3, 2, dtype=F64, rng=2),
        ),
        (2, 2, 4, 4),
        lambda t: t.Sequential(
            t.ReLU(),
            t.ZeroPad2d((1, 0, 2, 1)),
            t.Conv2d(2, 3, 3),
            t.Sequential(t.BatchNorm2d(3), t.ReLU()),
            t.Flatten(),
            t.Linear(3 * 5 * 3, 2),
        ),
    ),
    "Residual": (
        lambda: nn.Residual(
            nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(2, 3, 3, dtype=F64, rng=1)),
            nn.Conv2d(2, 3, 1, dtype=F64, rng=2),
        ),
        (2, 2, 4, 3),
        None,
    ),
    "Residual-identity": (lambda: nn.Residual(nn.Linear(4, 4, dtype=F64, rng=1)), (2, 4), None),
}
SPATIAL = [name for name, (_, shape, _) in CASES.items() if len(shape) > 3 or name.endswith("1d")]
SPATIAL = [name for name in SPATIAL if "Flatten" not in name]
each_case = pytest.mark.parametrize("name", CASES)


def sample(shape, seed=0, dtype=F64):
    """Numbers in random order that are all at least 0.05 apart and away from 0: no kink is near."""
    size = int(np.prod(shape))
    values = (np.arange(size) - size // 2 + 0.5) * 0.1
    return np.random.default_rng(seed).permutation(values).reshape(shape).astype(dtype)


def backward(layer, grad):
    return layer.backward(grad, input_grad=True)


def read_only(array):
    array.flags.writeable = False
    return array


@each_case
def test_gradients_are_the_slopes_of_the_output(name):
    make, shape, _ = CASES[name]
    rng = np.random.default_rng(7)
    layer, x = make(), sample(shape)
    state = layer.state_dict()
    for key in state:  # batch normalisation starts at 1 and 0, where a wrong factor could hide
        if key.endswith(("weight", "bias")):
            state[key] += rng.uniform(0.1, 0.5, state[key].shape)
    layer.load_state_dict(state)
    grad = rng.standard_normal(layer(x).shape)
    dx = backward(layer, grad)
    analytic = {key: parameter.grad for key, parameter in layer.named_parameters()}

    def value(x, state):
        fresh = make()
        fresh.load_state_dict(state)
        return np.vdot(grad, fresh(x))

    def slope(direction, at, step=1e-5):
        return (at(step * direction) - at(-step * direction)) / (2 * step)

    assert dx.shape == x.shape
    for _ in range(3):
        direction = rng.standard_normal(shape)
        expected = slope(direction, lambda change: value(x + change, state))
        assert np.vdot(dx, direction) == pytest.approx(expected, rel=1e-6, abs=1e-8)
        for key, gradient in analytic.items():
            direction = rng.standard_normal(state[key].shape)
            expected = slope(direction, lambda change, key=key: value(x, state | {key: state[key] + change}))
            assert gradient.shape == state[key].shape
            assert np.vdot(gradient, direction) == pytest.approx(expected, rel=1e-6, abs=1e-8), key


@each_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_as_pytorch(name, dtype):
    torch = pytest.importorskip("torch")
    make, shape, make_torch = CASES[name]
    if make_torch is None:
        pytest.skip("PyTorch has no such layer, or draws other numbers")
    theirs = make_torch(torch.nn).to(getattr(torch, dtype))
    layer = make()
    if dtype == "float32":
        layer = as_float32(layer)
    layer.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == "float64" else {"rtol": 2e-4, "atol": 2e-5}

    def compare(ours, reference):
        reference = reference.detach().numpy()
        assert ours.dtype == reference.dtype
        assert ours.shape == reference.shape
        np.testing.assert_allclose(ours, reference, **tolerance)

    for seed in range(2):
        x = sample(shape, seed, dtype)
        tx = torch.from_numpy(x).requires_grad_()
        expected = theirs(tx)
        output = layer(x)
        compare(output, expected)
        grad = np.random.default_rng(seed).standard_normal(output.shape).astype(dtype)
        layer.zero_grad()
        dx = backward(layer, grad)
        names = [key for key, _ in theirs.named_parameters()]
        gradients = torch.autograd.grad(expected, [tx, *theirs.parameters()], torch.from_numpy(grad))
        compare(dx, gradients[0])
        assert [key for key, _ in layer.named_parameters()] == names
        for parameter, reference in zip(layer.parameters(), gradients[1:], strict=True):
            compare(parameter.grad, reference)
    assert list(layer.state_dict()) == list(theirs.state_dict())
    for key, reference in theirs.state_dict().items():  # the running mean and variance, too
        compare(layer.state_dict()[key], reference)
    layer.eval(), theirs.eval()
    compare(layer(x), theirs(tx))
    if name in ("Conv2d", "Conv2d-all", "ZeroPad2d", "ReLU", "Linear"):
        assert str(layer) == str(theirs)


def as_float32(layer):
    """The same layer made anew in float32."""
    for module in layer.modules():
        if hasattr(module, "dtype"):
            module.dtype = np.dtype(np.float32)
        for key, parameter in module._parameters.items():
            module._parameters[key] = nn.Parameter(parameter.name, parameter.data.astype(np.float32))
        for key, buffer in module._buffers.items():
            if buffer.dtype == F64:
                module._buffers[key] = buffer.astype(np.float32)
    return layer


@pytest.mark.parametrize("name", SPATIAL)
def test_one_sample_without_batch_axis(name):
    make, shape, _ = CASES[name]
    single, batched, x = make(), make(), sample(shape)[:1]
    output, expected = single(x[0]), batched(x)
    assert output.shape == expected.shape[1:]
    np.testing.assert_array_equal(output, expected[0])
    grad = np.random.default_rng(1).standard_normal(expected.shape)
    np.testing.assert_array_equal(backward(single, grad[0]), backward(batched, grad)[0])
    for one, other in zip(single.parameters(), batched.parameters(), strict=True):
        np.testing.assert_array_equal(one.grad, other.grad)


@pytest.mark.parametrize("name", [name for name in CASES if "BatchNorm" not in name and name != "Sequential"])
def test_empty_batch(name):
    make, shape, _ = CASES[name]
    layer = make()
    output = layer(np.empty((0, *shape[1:])))
    assert output.shape[0] == 0
    assert backward(layer, np.empty(output.shape)).shape == (0, *shape[1:])
    assert all(not parameter.grad.any() for parameter in layer.parameters())


@each_case
def test_inputs_and_returned_arrays_are_never_written(name):
    make, shape, _ = CASES[name]
    layer, returned = make(), []
    for seed in range(3):
        x = read_only(sample(shape, seed))
        output = layer(x)
        grad = read_only(np.random.default_rng(seed).standard_normal(output.shape))
        dx = backward(layer, grad)
        returned += [(array, array.copy()) for array in (output, dx, x, grad)]
        if layer.parameters():
            nn.SGD(layer.parameters(), lr=0.1).step()
        layer.eval()(x)
        layer.train()
    for array, copy in returned:
        np.testing.assert_array_equal(array, copy)


@each_case
def test_parameters_do_not_share_memory_with_what_is_returned(name):
    make, shape, _ = CASES[name]
    layer = make()
    output = layer(sample(shape))
    dx = backward(layer, np.ones(output.shape))
    state = layer.state_dict()
    for parameter in layer.parameters():
        for array in (output, dx, *state.values()):
            assert not np.shares_memory(parameter.data, array)
            assert not np.shares_memory(parameter.grad, array)


@each_case
def test_evaluation_keeps_no_activations(name):
    make, shape, _ = CASES[name]
    layer = make().eval()
    x = sample(shape)
    output = layer(x)
    references = [weakref.ref(x), weakref.ref(output)]
    shape_of_grad = output.shape
    del x, output
    assert [reference() for reference in references] == [None, None]
    with pytest.raises(RuntimeError, match=r"backward needs a forward pass in training mode.*evaluation mode"):
        backward(layer, np.ones(shape_of_grad))


def test_training_does_keep_activations_until_eval():
    layer, x = nn.Linear(3, 3, dtype=F64), sample((1, 3))
    layer(x)
    reference = weakref.ref(x)
    del x
    assert reference() is not None
    layer.eval()
    assert reference() is None


@each_case
def test_backward_without_activations(name):
    make, shape, _ = CASES[name]
    layer, x = make(), sample(shape)
    with pytest.raises(RuntimeError, match="forward has not been called"):
        backward(layer, x)
    output = layer(x)
    grad = np.ones(output.shape)
    with pytest.raises(ValueError, match=r"grad_output has shape \(7,\): expected"):
        backward(layer, np.ones(7))
    with pytest.raises(TypeError, match="grad_output has dtype float32"):
        backward(layer, grad.astype(np.float32))
    backward(layer, grad)  # a refused gradient has used nothing up
    with pytest.raises(RuntimeError, match="an earlier backward has used up"):
        backward(layer, grad)
    layer(x)
    layer.eval()(x)
    with pytest.raises(RuntimeError, match="evaluation mode"):
        backward(layer.train(), grad)


def test_failed_forward_leaves_nothing_for_backward():
    layer = nn.Linear(2, 1)
    layer(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="x has shape"):
        layer(np.ones((3, 4), np.float32))
    with pytest.raises(RuntimeError, match="the last one failed"):
        layer.backward(np.ones((3, 1), np.float32))


@each_case
def test_any_memory_layout(name):
    make, shape, _ = CASES[name]
    layer, x = make(), sample(shape)
    output = layer(x)
    grad = np.random.default_rng(1).standard_normal(output.shape)
    dx = backward(layer, grad)
    for convert in (
        reverse,
        np.asfortranarray,
        lambda a: a.astype(">f8"),
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    ):
        other = make()
        np.testing.assert_allclose(other(convert(x)), output, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(backward(other, convert(grad)), dx, rtol=1e-12, atol=1e-14)


def reverse(array):
    """The same array with negative strides."""
    return array[..., ::-1].copy()[..., ::-1]


def test_what_is_dropped_depends_on_the_place_alone():
    """Not on the memory layout or on the number of threads; and neighbours have nothing to do with each other."""
    x = np.random.default_rng(0).standard_normal((16, 40, 33, 21), np.float32)
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    results = []
    for array, threads in ((x, 1), (last, 1), (last, 2), (x[:9], 2)):
        dropout = nn.Dropout(0.3, rng=1)
        with fastconv.num_threads(min(threads, fastconv.get_num_threads())):
            results.append((dropout(array), dropout.backward(array)))
    for y, dx in results:
        np.testing.assert_array_equal(y, results[0][0][: len(y)])
        np.testing.assert_array_equal(dx, y)
    assert results[1][0].transpose(0, 2, 3, 1).flags.c_contiguous
    kept = (results[0][0] != 0).reshape(-1) - 0.7
    deviation = math.sqrt(0.21 / kept.size)
    assert abs(kept.mean()) < 4 * deviation
    for distance in (1, 2, 21, 693, 1024):
        assert abs((kept[distance:] * kept[:-distance]).mean()) < 4 * 0.21 / math.sqrt(kept.size)


def test_other_array_libraries():
    torch = pytest.importorskip("torch")
    output = nn.ReLU()(torch.tensor([-1.0, 2.0]))
    np.testing.assert_array_equal(output, np.array([0, 2], np.float32))


def test_dropout():
    dropout, x = nn.Dropout(0.25, rng=0), np.ones(10_000, np.float32)
    y = dropout(x)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert np.mean(y == 0) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(dropout.backward(x), y)
    assert (dropout(x) != y).any()
    np.testing.assert_array_equal(nn.Dropout(0.25, rng=0)(x), y)
    assert not nn.Dropout(1)(np.full(5, np.inf)).any()
    np.testing.assert_array_equal(nn.Dropout(0)(x), x)
    assert nn.Dropout()(np.ones((2, 0, 3, 3), np.float32)).shape == (2, 0, 3, 3)
    layer = nn.Dropout()
    nn.manual_seed(5)
    first = layer(x)
    nn.manual_seed(5)
    np.testing.assert_array_equal(layer(x), first)


def test_relu_keeps_nan_and_its_gradient():
    torch = pytest.importorskip("torch")
    x = np.array([np.nan, -np.inf, np.inf, 0.0, -0.0])
    grad = np.array([1.0, np.inf, np.nan, np.nan, 1.0])
    relu, tx = nn.ReLU(), torch.from_numpy(x).requires_grad_()
    expected = torch.relu(tx)
    np.testing.assert_array_equal(relu(x), expected.detach().numpy())
    (dx,) = torch.autograd.grad(expected, tx, torch.from_numpy(grad))
    np.testing.assert_array_equal(relu.backward(grad), dx.numpy())


@pytest.mark.parametrize(
    ("make", "fan_in"),
    [
        (lambda rng: nn.Conv2d(8, 64, 3, groups=2, rng=rng), 4 * 9),
        (lambda rng: nn.ConvTranspose2d(8, 64, 3, groups=2, rng=rng), 32 * 9),
        (lambda rng: nn.Linear(50, 400, rng=rng), 50),
    ],
)
def test_initial_values(make, fan_in):
    layer, bound = make(0), fan_in**-0.5
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    for values in (layer.weight, layer.bias):
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.9 * bound
    assert np.mean(layer.weight) == pytest.approx(0, abs=0.05 * bound)
    assert np.std(layer.weight) == pytest.approx(bound / 3**0.5, rel=0.05)
    np.testing.assert_array_equal(make(0).weight, layer.weight)
    np.testing.assert_array_equal(make(np.random.default_rng(0)).weight, layer.weight)
    assert (make(1).weight != layer.weight).any()
    nn.manual_seed(0)
    np.testing.assert_array_equal(make(None).weight, layer.weight)


X = np.ones((2, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Conv2d(1, 2, 3, padding=1), TypeError, r"takes no padding.*nn\.ZeroPad2d.*fastconv\.conv2d"),
        (lambda: nn.Conv1d(1, 2, 3, padding_mode="zeros"), TypeError, r"takes no padding.*nn\.ZeroPad1d"),
        (lambda: nn.Conv2d(1, 2, 3, strides=2), TypeError, "unexpected keyword argument 'strides'"),
        (lambda: nn.Conv2d(1, 2, 3, bias=1), TypeError, "bias is 1: expected True or False"),
        (lambda: nn.Conv2d(0, 2, 3), ValueError, "in_channels is 0: expected at least 1"),
        (lambda: nn.Conv2d(1, True, 3), TypeError, "out_channels is True: expected an int"),
        (lambda: nn.Conv2d(1, 2, 2.5), TypeError, r"kernel_size is 2\.5"),
        (lambda: nn.Conv2d(1, 2, (3, 3, 3)), ValueError, "kernel_size has 3 values: expected 1 or 2"),
        (lambda: nn.Conv2d(1, 2, 3, stride=0), ValueError, "stride is 0"),
        (
            lambda: nn.Conv2d(3, 4, 3, groups=2),
            ValueError,
            "groups is 2: expected a divisor of in_channels, which is 3",
        ),
        (lambda: nn.Conv2d(1, 2, 3, dtype=int), TypeError, "dtype is int64: expected float32 or float64"),
        (lambda: nn.Conv2d(1, 2, 3, rng="a"), TypeError, "rng is 'a': expected an int seed"),
        (lambda: nn.Conv2d(1, 2, 3, rng=-1), ValueError, "rng is -1"),
        (lambda: nn.Conv2d(3, 2, 3)(X.astype(F64)), TypeError, "x has dtype float64, the layer float32"),
        (lambda: nn.Conv2d(3, 2, 3)(X.astype(int)), TypeError, "x has dtype int64: expected float32 or float64"),
        (lambda: nn.Conv2d(3, 2, 3)([1.0]), TypeError, r"x is \[1\.0\] \(list\): expected an ndarray"),
        (
            lambda: nn.Conv2d(3, 2, 3)(X[0, 0]),
            ValueError,
            r"x has shape \(8, 8\): expected \(3, h, w\) or \(N, 3, h, w\)",
        ),
        (lambda: nn.Conv2d(4, 2, 3)(X), ValueError, r"x has 3 channels.*expected \(4, h, w\) or \(N, 4, h, w\)"),
        (lambda: nn.Conv2d(3, 2, 9)(X), ValueError, "9"),
        (lambda: nn.Conv2d(3, 2, 1)(X[:, :, :0]), ValueError, "only the batch may be empty"),
        (lambda: nn.ConvTranspose2d(3, 2, 2, output_padding=1), ValueError, "output_padding is 1: expected less than"),
        (lambda: nn.ConvTranspose2d(4, 2, 2)(X), ValueError, "x has 3 channels"),
        (lambda: nn.ZeroPad2d((1, 2)), ValueError, r"padding has 2 values.*4 as \(left, right, top, bottom\)"),
        (lambda: nn.ZeroPad2d(-1), ValueError, "padding is -1: expected at least 0"),
        (lambda: nn.ReflectionPad2d(8)(X), ValueError, "8"),
        (lambda: nn.CircularPad1d(1)(X), ValueError, r"x has shape .* expected \(n_ch, w\) or \(N, n_ch, w\)"),
        (lambda: nn.BatchNorm2d(4)(X), ValueError, "x has 3 channels"),
        (lambda: nn.BatchNorm2d(3)(X[:1, :, :1, :1]), ValueError, "expected more than one value per channel"),
        (lambda: nn.BatchNorm2d(3, momentum=2), ValueError, r"momentum is 2\.0: expected .* between 0\.0 and 1\.0"),
        (lambda: nn.Dropout(1.5), ValueError, r"p is 1\.5"),
        (lambda: nn.Dropout("a"), TypeError, "p is 'a': expected a number"),
        (lambda: nn.Dropout(float("nan")), ValueError, "p is nan"),
        (lambda: nn.Linear(3, 2)(X), ValueError, r"x has shape \(2, 3, 8, 8\): expected \(\.\.\., 3\)"),
        (lambda: nn.Linear(8, 2)(X.astype(F64)), TypeError, "x has dtype float64, the layer float32"),
        (lambda: nn.Flatten(2, 1)(X), ValueError, "expected axes 2 to 1 to exist"),
        (lambda: nn.manual_seed("a"), TypeError, "seed is 'a'"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_linear_is_exact_and_has_the_same_bits_for_any_number_of_threads():
    layer = nn.Linear(300, 70, rng=0)
    x, grad = (np.random.default_rng(seed).standard_normal((64, n), np.float32) for seed, n in ((1, 300), (2, 70)))
    results = []
    for threads in (1, fastconv.get_num_threads()):
        with fastconv.num_threads(threads):
            layer.zero_grad()
            results.append([layer(x), layer.backward(grad), layer.grad_weight.copy(), layer.grad_bias.copy()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    layer.weight, layer.bias = np.round(8 * layer.weight), np.arange(70, dtype=np.float32)
    x, grad = np.round(x), np.round(grad)
    layer.weight = np.round(100 * layer.weight)
    layer.zero_grad()
    np.testing.assert_array_equal(layer(x), x @ layer.weight.T + layer.bias)
    np.testing.assert_array_equal(layer.backward(grad), grad @ layer.weight)
    np.testing.assert_array_equal(layer.grad_weight, grad.T @ x)
    np.testing.assert_array_equal(layer.grad_bias, grad.sum(axis=0))
