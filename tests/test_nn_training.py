"""Losses, optimisers and schedules: finite differences, PyTorch's numbers, and states that can be restored."""

import copy
import pickle

import numpy as np
import pytest

from fastconv import archive, nn
from fastconv.kernels import updates


def random(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Losses

CROSS_ENTROPY = [
    {"reduction": reduction, "label_smoothing": smoothing}
    for reduction in ("mean", "sum")
    for smoothing in (0.0, 0.1, 1.0)
]


def check_slope(loss, pred, target):
    loss(pred, target)
    grad = loss.backward()
    direction = random(pred.shape, 9)
    step = 1e-5
    slope = (loss(pred + step * direction, target) - loss(pred - step * direction, target)) / (2 * step)
    assert np.vdot(grad, direction) == pytest.approx(slope, rel=1e-6, abs=1e-9)
    assert grad.shape == pred.shape
    assert grad.dtype == pred.dtype


@pytest.mark.parametrize("options", CROSS_ENTROPY)
@pytest.mark.parametrize("shape", [(4,), (6, 3), (2, 3, 4, 2)])
def test_cross_entropy(options, shape):
    pred = random(shape)
    target = np.random.default_rng(1).integers(
        0, shape[min(1, len(shape) - 1)], shape[:1] + shape[2:] if shape[1:] else ()
    )
    loss = nn.CrossEntropyLoss(**options)
    check_slope(loss, pred, target)
    torch = pytest.importorskip("torch")
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        scores = pred.astype(dtype)
        theirs = torch.from_numpy(scores).requires_grad_()
        expected = torch.nn.CrossEntropyLoss(**options)(theirs, torch.as_tensor(target))
        expected.backward()
        value = loss(scores, target)
        assert type(value) is float
        assert value == pytest.approx(expected.item(), rel=tolerance)
        np.testing.assert_allclose(loss.backward(), theirs.grad.numpy(), rtol=tolerance, atol=tolerance)


def test_cross_entropy_of_extreme_scores():
    loss = nn.CrossEntropyLoss()
    pred = np.array([[1e4, -1e4, 0.0], [-1e4, 3e4, 3e4]], np.float32)
    assert loss(pred, np.array([0, 1])) == pytest.approx(np.log(2) / 2)
    np.testing.assert_allclose(loss.backward(), [[0, 0, 0], [0, -0.25, 0.25]], atol=1e-7)
    assert loss(pred, np.array([1, 0])) == pytest.approx((2e4 + 4e4 + np.log(2)) / 2)
    pred = np.array([[0, -np.inf, 0], [-1e4, 0, -np.inf]])  # some are ruled out
    assert loss(pred, np.array([0, 1])) == pytest.approx(np.log(2) / 2)
    np.testing.assert_array_equal(loss.backward(), [[-0.25, 0, 0.25], [0, 0, 0]])


@pytest.mark.parametrize("classes", [2, 7, 1500])
def test_cross_entropy_of_many_rows_is_that_of_each(classes):
    """However many are computed at once; what is no number stays in its own row."""
    loss = nn.CrossEntropyLoss("sum", 0.1)
    pred, target = 30 * random((300, classes), dtype=np.float32), np.random.default_rng(1).integers(0, classes, 300)
    pred[7, -1] = np.nan
    assert np.isnan(loss(pred, target))
    grad = loss.backward()
    for i in range(len(pred)):
        loss(pred[i], target[i])
        np.testing.assert_array_equal(grad[i], loss.backward())
    assert np.isnan(grad[7]).all()
    assert np.isfinite(np.delete(grad, 7, axis=0)).all()
    shares = np.exp(pred[:7].astype(np.float64) - pred[:7].max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(7), target[:7]] -= 0.9
    np.testing.assert_allclose(grad[:7], shares - 0.1 / classes, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mean_squared_error(reduction):
    pred, target = random((3, 4)), random((3, 4), 1)
    loss = nn.MSELoss(reduction)
    check_slope(loss, pred, target)
    difference = pred - target
    assert loss(pred, target) == pytest.approx(getattr(np, reduction)(difference**2))
    np.testing.assert_allclose(loss.backward(), 2 * difference / (12 if reduction == "mean" else 1))
    np.testing.assert_array_equal(pred, random((3, 4)))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss()])
def test_backward_of_a_loss_needs_a_call(loss):
    with pytest.raises(RuntimeError, match="backward needs a call of the loss"):
        loss.backward()
    pred = random((2, 3))
    target = np.array([0, 1]) if isinstance(loss, nn.CrossEntropyLoss) else pred
    loss(pred, target)
    first = loss.backward()
    copy = first.copy()
    with pytest.raises(RuntimeError, match="backward needs a call of the loss"):
        loss.backward()
    loss(pred * 3, target)
    loss.backward()
    np.testing.assert_array_equal(first, copy)


P = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.CrossEntropyLoss("none"), ValueError, "reduction is 'none': expected 'mean' or 'sum'"),
        (lambda: nn.CrossEntropyLoss(label_smoothing=2), ValueError, r"label_smoothing is 2\.0"),
        (lambda: nn.CrossEntropyLoss()(P, np.array([0, 3])), ValueError, "target holds 3: expected classes 0 to 2"),
        (lambda: nn.CrossEntropyLoss()(P, np.array([-1, 0])), ValueError, "target holds -1"),
        (lambda: nn.CrossEntropyLoss()(P, np.array([0.0, 1.0])), TypeError, "target has dtype float64"),
        (lambda: nn.CrossEntropyLoss()(P, np.array([0])), ValueError, r"target has shape \(1,\): expected \(2,\)"),
        (lambda: nn.CrossEntropyLoss()(P[:0], np.array([], int)), ValueError, "expected at least one target"),
        (lambda: nn.CrossEntropyLoss()(P.astype(int), np.array([0, 1])), TypeError, "pred has dtype int64"),
        (lambda: nn.MSELoss()(P, P[:1]), ValueError, r"target has shape \(1, 3\): expected \(2, 3\)"),
        (lambda: nn.MSELoss()(P, P.astype(np.float32)), TypeError, "target has dtype float32, pred float64"),
        (lambda: nn.MSELoss()(P[:0], P[:0]), ValueError, "expected at least one element"),
    ],
)
def test_errors_of_losses(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers

OPTIMISERS = {
    "SGD": (nn.SGD, {"lr": 0.1}),
    "momentum": (nn.SGD, {"lr": 0.1, "momentum": 0.9}),
    "dampening": (nn.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    "Nesterov": (nn.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "Adam": (nn.Adam, {"lr": 0.01}),
    "Adam-decay": (nn.Adam, {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.1}),
    "AdamW": (nn.AdamW, {"lr": 0.01}),
    "AdamW-decay": (nn.AdamW, {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.1}),
}
each_optimiser = pytest.mark.parametrize("name", OPTIMISERS)
SHAPES = [(4, 3), (5,), (2, 1, 3, 3)]


def parameters(dtype=np.float64):
    return [nn.Parameter(f"p{i}", random(shape, i, dtype)) for i, shape in enumerate(SHAPES)]


def gradient(step, i, dtype=np.float64):
    """Gradient of parameter i; the second has none in every third step."""
    return None if i == 1 and step % 3 == 0 else random(SHAPES[i], 100 * step + i + 10, dtype)


@each_optimiser
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_parameters_as_pytorch_after_20_steps(name, dtype):
    torch = pytest.importorskip("torch")
    make, options = OPTIMISERS[name]
    ours = parameters(dtype)
    theirs = [torch.nn.Parameter(torch.from_numpy(parameter.data.copy())) for parameter in ours]
    optimiser, reference = make(ours, **options), getattr(torch.optim, make.__name__)(theirs, **options)
    for step in range(20):
        optimiser.zero_grad()
        reference.zero_grad()
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            value = gradient(step, i, dtype)
            if value is not None:
                one.add_grad(value)
                other.grad = torch.from_numpy(value)
        optimiser.step()
        reference.step()
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one.data.dtype == dtype
        assert np.abs(one.data - random(SHAPES[i], i)).max() > 0.05  # it has moved
        scale = np.abs(other.detach().numpy()).max()
        np.testing.assert_allclose(one.data, other.detach().numpy(), rtol=1e-6, atol=1e-6 * scale)


@each_optimiser
def test_restored_optimiser_goes_on_bit_for_bit(name, tmp_path):
    make, options = OPTIMISERS[name]

    def run(optimiser, steps):
        for step in steps:
            optimiser.zero_grad()
            for i, parameter in enumerate(optimiser.parameters):
                value = gradient(step, i)
                if value is not None:
                    parameter.add_grad(value)
            optimiser.step()

    whole = make(parameters(), **options)
    run(whole, range(8))
    first = make(parameters(), **options)
    run(first, range(4))
    archive.write(tmp_path / "state.npz", {key: np.asarray(value) for key, value in first.state_dict().items()})
    rest = make([nn.Parameter(p.name, p.data) for p in first.parameters], lr=0.5)
    rest.load_state_dict(archive.read(tmp_path / "state.npz"))
    assert repr(rest) == repr(whole)
    run(rest, range(4, 8))
    for one, other in zip(rest.parameters, whole.parameters, strict=True):
        np.testing.assert_array_equal(one.data, other.data)
    for key, value in rest.state_dict().items():
        np.testing.assert_array_equal(value, whole.state_dict()[key])
        assert type(value) is type(whole.state_dict()[key])


@each_optimiser
def test_stale_parameters_are_skipped_and_gradients_only_read(name):
    make, options = OPTIMISERS[name]
    ours = parameters()
    arrays = [parameter.data for parameter in ours]
    optimiser = make(ours, **options)
    for parameter in ours[:2]:
        parameter.add_grad(np.ones(parameter.shape))
    ours[1].zero_grad()
    before = [array.copy() for array in arrays]
    optimiser.step()
    assert (arrays[0] != before[0]).all()
    for i in (1, 2):
        np.testing.assert_array_equal(arrays[i], before[i])
    np.testing.assert_array_equal(ours[0].grad, np.ones(SHAPES[0]))
    assert all(parameter.data is array for parameter, array in zip(ours, arrays, strict=True))


@each_optimiser
def test_pieces_of_all_parameters(name):
    """Parameters of several pieces, of one number and of another dtype: each as if it were alone."""
    make, options = OPTIMISERS[name]
    sizes = [3 * updates.PIECE + 5, 1, updates.PIECE, 7]
    dtypes = [np.float32, np.float32, np.float64, np.float32]

    def trained(indices):
        ours = {i: nn.Parameter(f"p{i}", random((sizes[i],), i, dtypes[i])) for i in indices}
        optimiser = make(list(ours.values()), **options)
        for step in range(3):
            for i, parameter in ours.items():
                parameter.grad = random((sizes[i],), 10 * step + i + 20, dtypes[i])
            optimiser.step()
        return {i: parameter.data for i, parameter in ours.items()}

    together = trained(range(4))
    for i, data in together.items():
        np.testing.assert_array_equal(data, trained([i])[i])
        assert (data != random((sizes[i],), i, dtypes[i])).all()


@each_optimiser
def test_a_copy_has_parameters_and_a_state_of_its_own(name):
    make, options = OPTIMISERS[name]
    ours = parameters()
    optimiser = make(ours, **options)
    for parameter in ours:
        parameter.grad = np.ones(parameter.shape)
    optimiser.step()
    before = [parameter.data.copy() for parameter in ours]
    twin = pickle.loads(pickle.dumps(copy.deepcopy(optimiser)))
    twin.step()
    for parameter, data, other in zip(ours, before, twin.parameters, strict=True):
        np.testing.assert_array_equal(parameter.data, data)
        assert (other.data != data).all()
    optimiser.step()
    for parameter, other in zip(ours, twin.parameters, strict=True):
        np.testing.assert_array_equal(parameter.data, other.data)


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 1, rng=0), nn.Linear(2, 3, rng=0)])
def test_stale_gradients_are_overwritten(layer):
    """They are not zeroed first: what is no number is gone all the same, and the array is the one that was there."""
    x = np.ones((2, 2, 1, 1) if isinstance(layer, nn.Conv2d) else (2, 2), np.float32)
    for parameter in layer.parameters():
        parameter.grad = np.full(parameter.shape, np.nan, np.float32)
    arrays = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    assert all(np.isnan(array).all() for array in arrays)
    layer.backward(np.ones_like(layer(x)))
    for parameter, array in zip(layer.parameters(), arrays, strict=True):
        assert parameter.grad is array
        np.testing.assert_array_equal(array, 2)
    layer.backward(np.ones_like(layer(x)))
    assert all((array == 4).all() for array in arrays)


def test_optimiser_state_is_a_copy_and_checked():
    ours = parameters()
    optimiser = nn.SGD(ours, 0.1, 0.9)
    for parameter in ours:
        parameter.add_grad(np.ones(parameter.shape))
    optimiser.step()
    state = optimiser.state_dict()
    optimiser.step()
    np.testing.assert_array_equal(state["momentum.0"], np.ones(SHAPES[0]))
    assert state["lr"] == 0.1
    assert state["step.0"] == 1
    before = optimiser.state_dict()
    for wrong, error, message in [
        ({**state, "momentum.0": np.zeros(2)}, ValueError, r"momentum\.0 has shape \(2,\): expected \(4, 3\)"),
        ({**state, "x": 1}, ValueError, "'x' is missing or unexpected"),
        ({key: value for key, value in state.items() if key != "lr"}, ValueError, "'lr' is missing or unexpected"),
        ({**state, "lr": "a"}, TypeError, "lr is 'a': expected a number"),
        (nn.Adam(ours).state_dict(), ValueError, "does not fit this SGD with 3 parameters"),
    ]:
        with pytest.raises(error, match=message):
            optimiser.load_state_dict(wrong)
    for key, value in optimiser.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.SGD([], 0.1), ValueError, "parameters is empty"),
        (lambda: nn.SGD([np.zeros(2)], 0.1), TypeError, "parameters holds a ndarray: expected nn.Parameter"),
        (lambda: nn.SGD(parameters()[:1] * 2), ValueError, "the same parameter twice"),
        (lambda: nn.SGD(parameters(), -0.1), ValueError, r"lr is -0\.1: expected a finite number at least 0"),
        (lambda: nn.SGD(parameters(), float("inf")), ValueError, "lr is inf"),
        (lambda: nn.SGD(parameters(), "0.1"), TypeError, r"lr is '0\.1': expected a number"),
        (lambda: nn.SGD(parameters(), nesterov=True), ValueError, "nesterov needs a momentum above 0"),
        (lambda: nn.SGD(parameters(), momentum=0.9, dampening=0.1, nesterov=True), ValueError, "nesterov needs"),
        (lambda: nn.Adam(parameters(), betas=(0.9, 1.0)), ValueError, r"betas is 1\.0.*\(excluded\)"),
        (lambda: nn.Adam(parameters(), betas=0.9), ValueError, r"betas is 0\.9: expected two numbers"),
        (lambda: nn.StepLR(None, 1), TypeError, "optimiser is of type NoneType"),
        (lambda: nn.StepLR(nn.SGD(parameters()), 0), ValueError, "step_size is 0"),
        (lambda: nn.CosineAnnealingLR(nn.SGD(parameters()), 2.5), TypeError, r"T_max is 2\.5: expected an int"),
    ],
)
def test_errors_of_optimisers_and_schedules(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---------------------------------------------------------------------------------------------------------------------
# Schedules

SCHEDULES = [(nn.StepLR, (3, 0.5)), (nn.CosineAnnealingLR, (10, 0.01)), (nn.CosineAnnealingLR, (7,))]


@pytest.mark.parametrize(("make", "arguments"), SCHEDULES)
def test_same_rates_as_pytorch(make, arguments):
    torch = pytest.importorskip("torch")
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = getattr(torch.optim.lr_scheduler, make.__name__)(reference, *arguments)
    optimiser = nn.SGD(parameters(), lr=0.3)
    ours = make(optimiser, *arguments)
    for _ in range(25):
        assert optimiser.lr == pytest.approx(reference.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        reference.step()
        theirs.step()
        ours.step()


@pytest.mark.parametrize(("make", "arguments"), SCHEDULES)
def test_restored_schedule_goes_on(make, arguments):
    whole = make(nn.SGD(parameters(), lr=0.3), *arguments)
    for _ in range(5):
        whole.step()
    rest = make(nn.SGD(parameters(), lr=0.1), *arguments)
    rest.load_state_dict({key: np.asarray(value) for key, value in whole.state_dict().items()})
    assert rest.optimiser.lr == whole.optimiser.lr
    whole.step()
    rest.step()
    assert rest.optimiser.lr == whole.optimiser.lr
    assert rest.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match="expected base_lr and last_epoch"):
        rest.load_state_dict({"base_lr": 1.0})


# ---------------------------------------------------------------------------------------------------------------------
# All together


def train(seed=0):
    rng = np.random.default_rng(seed)
    model = nn.Sequential(
        nn.ZeroPad2d(1),
        nn.Conv2d(1, 4, 3, rng=rng),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Residual(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3, rng=rng), nn.ReLU())),
        nn.Flatten(),
        nn.Dropout(0.1, rng=rng),
        nn.Linear(4 * 3 * 3, 3, rng=rng),
    )
    x = rng.standard_normal((24, 1, 6, 6)).astype(np.float32)
    y = rng.integers(0, 3, 24)
    x[np.arange(24), 0, y] += 2  # the class is the bright row
    loss, optimiser = nn.CrossEntropyLoss(), nn.SGD(model.parameters(), lr=0.1, momentum=0.9)
    values = []
    for _ in range(15):
        model.zero_grad()
        values.append(loss(model(x), y))
        model.backward(loss.backward())
        optimiser.step()
    return values, np.mean(model.eval()(x).argmax(axis=1) == y), model.state_dict()


def test_a_small_network_learns_and_does_so_twice_the_same():
    values, accuracy, state = train()
    assert values[-1] < 0.3 * values[0]
    assert accuracy > 0.9
    again, _, same = train()
    assert values == again
    for key, value in state.items():
        np.testing.assert_array_equal(value, same[key])
