"""Weights in files: round trips, damage, and exchange with PyTorch."""

import json
import os
import struct
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastconv import nn


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(seed=0):
    """Uses every layer that has a state, and names at two depths."""
    body = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 6, 3, bias=False, rng=seed), nn.BatchNorm2d(6))
    return nn.Sequential(
        nn.ZeroPad2d((1, 2, 0, 1)),
        nn.Conv2d(2, 4, 3, stride=2, groups=2, rng=seed),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Residual(body, nn.Conv2d(4, 6, 1, rng=seed + 1)),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(6, 3, 2, 2, rng=seed),
        nn.AvgPool2d(2),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5, rng=seed),
    )


def torch_model(torch):
    t = torch.nn

    class Residual(t.Module):
        def __init__(self, body, shortcut):
            super().__init__()
            self.body = body
            self.shortcut = shortcut

        def forward(self, x):
            return self.body(x) + self.shortcut(x)

    body = t.Sequential(t.ZeroPad2d(1), t.Conv2d(4, 6, 3, bias=False), t.BatchNorm2d(6))
    return t.Sequential(
        t.ZeroPad2d((1, 2, 0, 1)),
        t.Conv2d(2, 4, 3, stride=2, groups=2),
        t.BatchNorm2d(4),
        t.ReLU(),
        Residual(body, t.Conv2d(4, 6, 1)),
        t.MaxPool2d(2),
        t.ConvTranspose2d(6, 3, 2, 2),
        t.AvgPool2d(2),
        t.Dropout(0.3),
        t.AdaptiveAvgPool2d(2),
        t.Flatten(),
        t.Linear(12, 5),
    )


@pytest.fixture(params=[".npz", ".safetensors"])
def path(request, tmp_path):
    if request.param == ".safetensors":
        pytest.importorskip("safetensors")
    return tmp_path / f"weights{request.param}"


def test_round_trip(path):
    one, other, x = model(0), model(5), random((3, 2, 9, 9))
    one(x)  # moves the running means
    nn.save(one, path)
    other.load_state_dict(nn.load(path))
    np.testing.assert_array_equal(other.eval()(x), one.eval()(x))
    state, loaded = one.state_dict(), nn.load(str(path))
    assert set(state) == set(loaded)
    for key, value in state.items():
        np.testing.assert_array_equal(loaded[key], value)
        assert loaded[key].dtype == value.dtype
        assert loaded[key].shape == value.shape  # () of num_batches_tracked, too
    assert os.listdir(path.parent) == [path.name]


def test_states_of_any_names_and_layouts(path):
    state = {"file": random((2, 3)).T, "a/b.c": np.zeros((0, 3)), "scalar": np.array(3), "flag": np.array([True])}
    state["allow_pickle"] = random((4, 4))[::2, ::-1]
    nn.save(state, path)
    loaded = nn.load(path)
    for key, value in state.items():
        np.testing.assert_array_equal(loaded[key], value)
        assert loaded[key].shape == value.shape


def test_numpy_reads_what_is_written(tmp_path):
    nn.save(model(), tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz", allow_pickle=False) as file:
        assert set(file) == set(model().state_dict())


def test_nothing_is_pickled(tmp_path):
    with pytest.raises(TypeError, match="x has dtype object"):
        nn.save({"x": np.array([{}])}, tmp_path / "w.npz")
    np.savez(tmp_path / "w.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="nothing is unpickled"):
        nn.load(tmp_path / "w.npz")


def test_failed_writing_leaves_the_old_file(path, monkeypatch):
    nn.save({"x": np.zeros(2)}, path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        nn.save({"x": np.ones(2)}, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_damaged_files(path):
    nn.save(model(), path)
    data = path.read_bytes()
    for damaged in (b"", data[:7], data[: len(data) // 2], data[:-1], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=path.name):
            nn.load(path)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name}: .*[Nn]o such file"):
        nn.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_is_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{path.name}: no such file"):
        nn.load(path)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_damage_is_one_clear_error_or_sound_arrays(path, data):
    nn.save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.int64)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 60)) % len(content)
        kind = data.draw(st.integers(0, 2))
        if kind == 0 and at:
            del content[at:]
        elif kind == 1:
            content[at] ^= data.draw(st.integers(1, 255))
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(content)
    try:
        arrays = nn.load(path)
    except ValueError as error:
        text = str(error)
    else:
        assert all(array.dtype.kind in "biufcU" and array.size <= len(content) for array in arrays.values())
        return
    assert path.name in text
    assert "\n" not in text


LIES = {
    "a length": struct.pack("<Q", 2**40) + b"{}",
    "a size": {"x": {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 2**33]}},
    "no size": {"x": {"dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 0]}},
    "a dtype": {"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}},
    "depth": b"[" * 10**5,
}


@pytest.mark.parametrize("name", LIES)
def test_no_memory_for_false_claims_of_safetensors(tmp_path, name):
    pytest.importorskip("safetensors")
    content = LIES[name]
    if isinstance(content, dict):
        content = json.dumps(content).encode()
        content = struct.pack("<Q", len(content)) + content + b"12"
    (tmp_path / "w.safetensors").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"w\.safetensors: damaged, or not a safetensors file") as caught:
            nn.load(tmp_path / "w.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match=r"expected a name ending in \.npz or \.safetensors"):
        nn.save(model(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"expected a name ending in"):
        nn.load(tmp_path / "weights")
    with pytest.raises(TypeError, match="model is of type list"):
        nn.save([1], tmp_path / "w.npz")
    with pytest.raises(TypeError, match="the name 3 is of type int"):
        nn.save({3: np.zeros(1)}, tmp_path / "w.npz")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    message = r"need the package safetensors: pip install 'fastconv\[safetensors\]'"
    with pytest.raises(ImportError, match=message):
        nn.save(model(), tmp_path / "w.safetensors")
    with pytest.raises(ImportError, match=message):
        nn.load(tmp_path / "w.safetensors")


def test_from_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    theirs, x = torch_model(torch), random((3, 2, 9, 9))
    theirs(torch.from_numpy(x))
    safetensors.save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    ours = model()
    assert ours.load_state_dict(nn.load(tmp_path / "w.safetensors")) == ([], [])
    expected = theirs.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours.eval()(x), expected, rtol=1e-4, atol=1e-5)


def test_to_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    ours, x = model(), random((3, 2, 9, 9))
    ours(x)
    nn.save(ours, tmp_path / "w.safetensors")
    theirs = torch_model(torch)
    theirs.load_state_dict(safetensors.load_file(tmp_path / "w.safetensors"))
    expected = theirs.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours.eval()(x), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_from_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    ours = nn.Sequential(nn.Linear(3, 2))
    safetensors.save_file(torch.nn.Sequential(torch.nn.Linear(3, 2)).half().state_dict(), tmp_path / "w.safetensors")
    ours.load_state_dict(nn.load(tmp_path / "w.safetensors"))
    assert ours[0].weight.dtype == np.float32
    bad = {"x": torch.zeros(2, dtype=torch.bfloat16)}
    safetensors.save_file(bad, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="NumPy can hold"):
        nn.load(tmp_path / "w.safetensors")
