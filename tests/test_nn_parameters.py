"""Parameters and their gradients: in-place assignment, staleness, state dicts."""

import copy
import pickle

import numpy as np
import pytest

from fastconv import nn

F32 = np.float32
LAYERS = {
    "Conv2d": (lambda: nn.Conv2d(2, 3, 3, rng=0), (2, 2, 5, 5)),
    "Conv1d-plain": (lambda: nn.Conv1d(2, 3, 3, bias=False, rng=0), (2, 2, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 3, rng=0), (2, 2, 3, 3)),
    "Linear": (lambda: nn.Linear(4, 3, rng=0), (5, 4)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(2), (3, 2, 4, 4)),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def gradients(layer, x, seed=1):
    layer.backward(random(layer(x).shape, seed))
    return [parameter.grad.copy() for parameter in layer.parameters()]


@each_layer
def test_gradients_overwrite_when_stale_and_add_otherwise(name):
    make, shape = LAYERS[name]
    layer, x = make(), random(shape)
    assert [parameter.grad for parameter in layer.parameters()] == [None] * len(layer.parameters())
    once = gradients(layer, x)
    arrays = [parameter.grad for parameter in layer.parameters()]
    twice = gradients(layer, x)
    for one, two in zip(once, twice, strict=True):
        np.testing.assert_allclose(two, 2 * one, rtol=1e-5, atol=1e-6)
    layer.zero_grad()
    assert layer.grad_weight is None
    assert all(parameter.grad is None for parameter in layer.parameters())
    for array in arrays:
        array.fill(np.nan)  # a stale gradient is never read
    again = gradients(layer, x)
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for array, parameter in zip(arrays, layer.parameters(), strict=True):
        assert parameter.grad is array  # no new memory from step to step
        assert array.shape == parameter.shape
        assert array.dtype == parameter.data.dtype


@each_layer
def test_one_stale_gradient_beside_a_fresh_one(name):
    make, shape = LAYERS[name]
    layer, x = make(), random(shape)
    once = gradients(layer, x)
    if len(once) < 2:
        pytest.skip("has no bias")
    layer.grad_bias = None
    weight, bias = gradients(layer, x)
    np.testing.assert_allclose(weight, 2 * once[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bias, once[1], rtol=1e-6)


@each_layer
def test_assignment_copies_in_place(name):
    make, shape = LAYERS[name]
    layer = make()
    gradients(layer, random(shape))
    weight, grad = layer.weight, layer.grad_weight
    new = random(weight.shape, 5)
    layer.weight = new
    layer.grad_weight = 2 * new
    assert layer.weight is weight is layer.parameters()[0].data
    assert layer.grad_weight is grad is layer.parameters()[0].grad
    np.testing.assert_array_equal(weight, new)
    np.testing.assert_array_equal(grad, 2 * new)
    assert not np.shares_memory(weight, new)
    layer.weight *= 2
    np.testing.assert_array_equal(weight, 2 * new)
    layer.weight = new[::-1]
    np.testing.assert_array_equal(weight, new[::-1])
    layer.zero_grad()
    layer.grad_weight = new  # now it is fresh again
    np.testing.assert_array_equal(layer.grad_weight, new)


def test_assignment_is_checked():
    layer = nn.Conv2d(1, 2, 3, bias=False)
    with pytest.raises(ValueError, match=r"weight has shape \(2, 1, 3\): expected \(2, 1, 3, 3\)"):
        layer.weight = np.zeros((2, 1, 3), F32)
    with pytest.raises(TypeError, match="weight has dtype float64, its parameter float32"):
        layer.weight = np.zeros((2, 1, 3, 3))
    with pytest.raises(TypeError, match=r"weight is 0\.0 \(float\): expected an ndarray"):
        layer.weight = 0.0
    with pytest.raises(ValueError, match=r"the gradient of weight has shape \(1,\)"):
        layer.grad_weight = np.zeros(1, F32)
    assert layer.bias is None
    assert layer.grad_bias is None
    with pytest.raises(ValueError, match="this Conv2d was made without bias"):
        layer.bias = np.zeros(2, F32)
    with pytest.raises(TypeError, match="dtype int64"):
        nn.Parameter("p", np.zeros(2, int))


def test_parameter():
    data = np.ones((2, 3), F32)
    parameter = nn.Parameter("p", data)
    data[0] = 5
    np.testing.assert_array_equal(parameter.data, np.ones((2, 3)))
    assert repr(parameter) == "Parameter('p', shape=(2, 3), dtype=float32, without gradient)"
    parameter.grad = data
    assert "with gradient" in repr(parameter)
    parameter.grad = None
    assert parameter.grad is None
    assert nn.Parameter("p", np.asfortranarray(data)).data.flags.c_contiguous
    assert nn.Parameter("p", data.astype(">f4")).data.dtype.isnative


def model(seed=0):
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, rng=seed), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2, rng=seed)
    )


def test_state_round_trip():
    one, other = model(0), model(1)
    x = random((3, 1, 4, 4))
    one(x)
    state = one.state_dict()
    arrays = [parameter.data for parameter in other.parameters()]
    mean = other[1].running_mean
    assert other.load_state_dict(state) == ([], [])
    assert all(parameter.data is array for parameter, array in zip(other.parameters(), arrays, strict=True))
    assert other[1].running_mean is mean
    assert other[1].num_batches_tracked == 1
    np.testing.assert_array_equal(one.eval()(x), other.eval()(x))
    one[0].weight = 0 * one[0].weight
    assert state["0.weight"].any()  # a state is a copy
    for key, value in other.state_dict().items():
        np.testing.assert_array_equal(value, state[key])
        assert value.dtype == state[key].dtype


def test_state_is_loaded_whole_or_not_at_all():
    target = model(0)
    before = target.state_dict()
    state = model(1).state_dict()
    bad = [
        ({**state, "4.bias": np.zeros(3, F32)}, ValueError, r"'4\.bias' has shape \(3,\), expected \(2,\)"),
        ({**state, "9.x": np.zeros(1)}, ValueError, r"unexpected '9\.x'"),
        ({k: v for k, v in state.items() if k != "1.running_var"}, ValueError, r"missing '1\.running_var'"),
        ({"0.weight": state["0.weight"], "a": 1}, ValueError, "missing .*; unexpected 'a'"),
        ({**state, "4.bias": np.zeros(2, complex)}, TypeError, r"'4\.bias' has dtype complex128: expected float32"),
        ({**state, "1.num_batches_tracked": np.zeros(())}, TypeError, "num_batches_tracked' has dtype float64"),
        ({**state, "4.bias": "text"}, TypeError, r"4\.bias is 'text' \(str\)"),
        ([1, 2], TypeError, "state is of type list: expected a mapping"),
    ]
    for wrong, error, message in bad:
        with pytest.raises(error, match=message):
            target.load_state_dict(wrong)
    for key, value in target.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


def test_state_not_strict():
    target = model(0)
    keys = target.load_state_dict({"4.bias": np.array([1, 2], np.float64), "x": np.zeros(1)}, strict=False)
    assert keys.unexpected == ["x"]
    assert keys.missing[0] == "0.weight"
    np.testing.assert_array_equal(target[4].bias, np.array([1, 2], F32))
    with pytest.raises(ValueError, match="has shape"):
        target.load_state_dict({"4.bias": np.zeros(1)}, strict=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_model(duplicate):
    one, x = model(), random((3, 1, 4, 4))
    other = duplicate(one)
    output = one(x)
    np.testing.assert_array_equal(other(x), output)
    other.backward(output)
    assert one[0].grad_weight is None
    assert other[0].grad_weight is not None
