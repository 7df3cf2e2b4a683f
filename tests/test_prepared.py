"""Weights that are prepared: the same results by every row, from a snapshot that nothing changes."""

import copy
import dataclasses
import pickle
import threading

import numpy as np
import pytest
from cases import CASES, data, in_turn, simple

import fastconv
from fastconv import plan, tasks, winograd
from fastconv.geometry import conv_geometry
from fastconv.jit import kernel
from fastconv.programs import output_pixels
from fastconv.simd import APART, run_tasks

ALGORITHMS = ("auto", *dict.fromkeys(row.algorithm for row in plan.TABLE))


def results(case, algorithm, x, weight, grad_output):
    """Output and dX; or None where the algorithm does not do the case."""
    rows = [row for row in plan.TABLE if row.algorithm == algorithm]
    if any(row.objection(case.geometry, x.dtype) for row in rows):
        return None
    forward, backward = getattr(fastconv, f"conv{case.ndim}d"), getattr(fastconv, f"conv{case.ndim}d_backward")
    asked = case.parameters | {"algorithm": algorithm}
    return forward(x, weight, **asked), backward(grad_output, x, weight, **asked).input


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", CASES[::9], ids=str)
def test_results(case, algorithm, rng):
    """By every algorithm, in both layouts, the first time and again."""
    for dtype in in_turn(("float32", "float64"), case.seed):
        x, weight, _, grad_output = data(case, dtype)
        plain = results(case, algorithm, x, weight, grad_output)
        if plain is None:
            return
        prepared = fastconv.prepare(weight, **case.parameters, input_shape=x.shape if rng.integers(2) else None)
        last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -case.ndim - 1, -1)), -1, -case.ndim - 1)
        for images in (x, x, last):
            for result, wanted in zip(results(case, algorithm, images, prepared, grad_output), plain, strict=True):
                largest = max(1.0, np.abs(wanted).max(initial=0))
                error = max(row.largest_error(np.dtype(dtype)) for row in plan.TABLE)
                np.testing.assert_allclose(result, wanted, rtol=0, atol=error * largest)


def test_every_case_needs_no_input_shape(rng):
    for case in CASES:
        weight = data(case, "float32")[1]
        assert fastconv.prepare(weight, **case.parameters).shape == weight.shape


def test_it_is_packed_once(monkeypatch):
    made = []
    panels = fastconv.PreparedWeight.panels

    def counted(self, key, size, make):
        return panels(self, key, size, lambda *arrays: (made.append(key), make(*arrays)))

    monkeypatch.setattr(fastconv.PreparedWeight, "panels", counted)
    x, weight = np.ones((1, 32, 8, 8), np.float32), np.ones((32, 32, 3, 3), np.float32)
    for algorithm in ("direct", "winograd"):
        prepared = fastconv.prepare(weight)
        for _ in range(3):
            fastconv.conv2d(x, prepared, padding=1, algorithm=algorithm)
        assert len(made) == 1, algorithm
        made.clear()
    prepared = fastconv.prepare(weight, padding=1, input_shape=x.shape)
    assert made
    made.clear()
    fastconv.conv2d(x, prepared, padding=1)
    fastconv.conv2d_backward(x, x, prepared, padding=1, output_mask=(True, False, False))
    assert not made
    assert prepared.nbytes > weight.nbytes


@pytest.mark.parametrize(("filters", "channels"), [(1, 40), (40, 1), (1, 1)])
@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_one_filter_or_channel(filters, channels, algorithm):
    """A table of one row, turned round and flattened, is a view that steps back if nobody copies it."""
    case = simple(2, channels=channels, filters=filters, size=9, padding=1)
    x, weight, _, grad_output = data(case, "float32")
    plain = results(case, algorithm, x, weight, grad_output)
    prepared = results(case, algorithm, x, fastconv.prepare(weight, padding=1), grad_output)
    for result, wanted in zip(prepared, plain, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-4 * max(1, np.abs(wanted).max()))


def test_it_is_a_snapshot():
    case = simple(2, channels=16, filters=16, size=6, padding=1)
    x, weight, _, _ = data(case, "float32")
    weight = weight.copy()
    wanted = fastconv.conv2d(x, weight, padding=1, algorithm="direct")
    prepared = fastconv.prepare(weight)
    weight[...] = np.nan
    np.testing.assert_array_equal(fastconv.conv2d(x, prepared, padding=1, algorithm="direct"), wanted)
    with pytest.raises(ValueError, match="read-only"):
        prepared.array[...] = 0
    with pytest.raises(AttributeError):
        prepared.shape = (1,)
    assert copy.deepcopy(prepared) is prepared
    again = pickle.loads(pickle.dumps(prepared))
    np.testing.assert_array_equal(again.array, prepared.array)
    assert (prepared.shape, prepared.dtype) == (weight.shape, weight.dtype)
    assert "(16, 16, 3, 3)" in repr(prepared)


def test_it_is_a_weight_everywhere():
    """Also where it saves nothing, and in dtypes that no fast row takes."""
    x, weight = np.arange(50).reshape(1, 2, 5, 5), np.arange(36).reshape(2, 2, 3, 3)
    for dtype in (np.int64, np.float16, np.float32, np.complex64, ">f4"):
        a, b = x.astype(dtype), weight.astype(dtype) / 8 if dtype is not np.int64 else weight
        b = np.asarray(b, dtype)
        prepared = fastconv.prepare(b)
        np.testing.assert_array_equal(fastconv.conv2d(a, prepared), fastconv.conv2d(a, b))
        np.testing.assert_array_equal(fastconv.conv_transpose2d(a, prepared), fastconv.conv_transpose2d(a, b))
        np.testing.assert_array_equal(
            fastconv.conv2d_jvp(a, prepared, x_tangent=a), fastconv.conv2d_jvp(a, b, x_tangent=a)
        )


def test_threads_share_one():
    x, weight = np.ones((2, 64, 12, 12), np.float32), np.ones((64, 64, 3, 3), np.float32)
    prepared, found = fastconv.prepare(weight), []
    threads = [threading.Thread(target=lambda: found.append(fastconv.conv2d(x, prepared, padding=1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found:
        np.testing.assert_array_equal(result, found[0])
    assert len(found) == 8


def test_bad_input():
    weight = np.ones((4, 2, 3, 3), np.float32)
    for arguments, error, text in (
        ((np.ones(3),), ValueError, r"weight has shape \(3,\): expected 3, 4 or 5 axes"),
        (("weight",), TypeError, "weight is 'weight'"),
        ((weight, 0), ValueError, "stride is 0"),
        ((weight, 1, -1), ValueError, "padding is -1"),
        ((weight, 1, 0, 0), ValueError, "dilation is 0"),
        ((weight, 1, 0, 1, 3), ValueError, "groups is 3: expected a divisor"),
        ((weight, 1, 0, 1, "2"), TypeError, "groups"),
        ((weight, 1, 0, 1, 1, (3, 8, 8)), ValueError, "input_shape has 3"),
        ((weight, 1, 0, 1, 1, 7), TypeError, "input_shape is 7"),
    ):
        with pytest.raises(error, match=text):
            fastconv.prepare(*arguments)


def test_layers_prepare_in_evaluation(rng):
    """And never serve what was prepared of a weight that has changed since, however it was changed."""
    layer = fastconv.nn.Conv2d(16, 16, 3, rng=0)
    x = rng.standard_normal((1, 16, 9, 9)).astype(np.float32)

    def fresh():
        return fastconv.conv2d(x, layer.weight.copy(), layer.bias)

    view = layer.weight[3:5]
    layer.eval()
    np.testing.assert_allclose(layer(x), fresh(), atol=1e-4)
    first = layer._prepared
    layer(x)
    assert layer._prepared is first
    for change in (
        lambda: view.__setitem__(..., -view),  # through a view that was taken before
        lambda: layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()}),
        lambda: setattr(layer, "weight", layer.weight[::-1].copy()),
        lambda: layer.weight.__setitem__((0, 0, 0, 0), np.nan),
        lambda: layer.weight.__setitem__((0, 0, 0, 0), 0.0),
        lambda: layer.weight.__setitem__((0, 0, 0, 0), -0.0),
    ):
        last = layer._prepared
        change()
        np.testing.assert_allclose(layer(x), fresh(), atol=1e-4)
        assert layer._prepared is not last
    again = copy.deepcopy(layer)
    np.testing.assert_array_equal(again(x), layer(x))
    layer.train()
    layer(x)
    assert layer._prepared is None


def keeping(shape, filters, groups=1):
    """Both programs of a convolution by Winograd's algorithm: as it is made, and without a `Keeping`."""
    channels = shape[1] // groups
    geometry = conv_geometry(shape, (filters, channels, 3, 3), padding=1, groups=groups).volume
    program = winograd.WINOGRAD.pixels(output_pixels(geometry, True, True, 4))
    return program, dataclasses.replace(program, keeping=None)


@pytest.mark.parametrize("layout", ["as they are", "channels-last"])
@pytest.mark.parametrize("groups", [1, 2])
def test_workers_that_keep_what_they_pack_compute_the_same(groups, layout, rng):
    shape, filters = (4, 64 * groups, 28, 28), 128 * groups
    kept, shared = keeping(shape, filters, groups)
    assert kept.keeping.workers >= 2
    x = rng.standard_normal((4, 28, 28, shape[1])).astype(np.float32).reshape(-1)
    weight = rng.standard_normal((filters, shape[1] // groups, 3, 3)).astype(np.float32).reshape(-1)
    turns = None if layout == "as they are" else (filters, 9, shape[1] // groups)
    results = [np.full(4 * 28 * 28 * filters, np.nan, np.float32) for _ in range(3)]
    for out, program in zip(results, (kept, shared, kept), strict=True):
        dataclasses.replace(program, turns=turns, starts={}).pixels(out, x, weight)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    assert np.isfinite(results[0]).all()


def test_workers_keep_weights_where_that_is_little_work():
    """Not where each would evaluate much, and not of weights that would fill the caches twice."""
    assert keeping((4, 64, 56, 56), 64)[0].keeping.workers >= 2
    assert keeping((32, 64, 56, 56), 64)[0].keeping.workers > keeping((4, 64, 56, 56), 64)[0].keeping.workers
    large = keeping((64, 512, 28, 28), 512)[0].keeping
    assert large is None or large.workers == 1
    program, shared = keeping((4, 64, 56, 56), 64)
    few, many = program.scratch_bytes(4, 2), program.scratch_bytes(4, 64)
    assert few == 4 * 2 * program.keeping.room
    assert many == shared.scratch_bytes(4, 64)


@kernel
def run_out_of_order(address, tasks, worker, workers, numbers, tables, a, b, c, d, scratch, room):
    """Run all tasks as one of several workers, whom the others have left theirs: its own share first."""
    counters = np.zeros(APART * workers, np.int64)
    run_tasks(address, tasks, counters, worker, workers, numbers, tables, a, b, c, d, scratch, room)


@pytest.mark.parametrize(("worker", "workers"), [(2, 5), (1, 2), (6, 7)])
def test_what_a_worker_has_kept_is_never_taken_for_something_else(worker, workers, monkeypatch, rng):
    """Tasks that are taken from others come in another order."""

    def alone(address, tasks, _, numbers, tables, a, b, c, d, scratch, room):
        rooms = np.full(max(1, workers * room), np.nan, a.dtype)
        run_out_of_order(address, tasks, worker, workers, numbers, tables, a, b, c, d, rooms, room)

    for channels, size in ((64, 12), (144, 12), (160, 9)):
        x = rng.standard_normal((3, channels, size, size)).astype(np.float32)
        weight = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32)
        last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
        for images in (x, last):
            results = []
            for run in (tasks.run_together, alone):
                with monkeypatch.context() as patch:
                    patch.setattr(tasks, "run_together", run)
                    output = fastconv.conv2d(images, weight, padding=1, algorithm="winograd")
                    grads = fastconv.conv2d_backward(images, images, weight, padding=1, algorithm="winograd")
                results.append((output, *grads))
            for result, wanted in zip(*results[::-1], strict=True):
                np.testing.assert_array_equal(result, wanted)
                assert np.isfinite(wanted).all()
