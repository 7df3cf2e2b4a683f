"""Layers under PyTorch: what `convert` changes and what it leaves, and all that models of converted layers are put through."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")

from under_torch import COMPILED, leaf, left  # noqa: E402

from fastconv import torch as ft  # noqa: E402

nn, F = torch.nn, torch.nn.functional

pytestmark = [
    pytest.mark.usefixtures("pytorch"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*:DeprecationWarning"),
]

LAYERS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


def convert(model, **options):
    """Convert all of a model, however small its layers are."""
    return ft.convert(model, least_flops=0, **options)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
@pytest.mark.parametrize("layer", LAYERS[:3])
def test_every_padding_of_a_layer(layer, padding, mode):
    ndim = int(layer[4])
    original = getattr(nn, layer)(4, 6, 3, padding=padding, dilation=2, groups=2, padding_mode=mode).double()
    converted = convert(copy.deepcopy(original))
    assert type(converted) is getattr(ft, layer)
    same_step(original, converted, torch.randn(2, 4, *(6, 7, 5)[:ndim], dtype=torch.float64))


@pytest.mark.parametrize("layer", LAYERS[3:])
def test_transposed_layers(layer):
    ndim = int(layer[-2])
    original = getattr(nn, layer)(4, 6, 3, stride=2, padding=1, groups=2, output_padding=1).double()
    x = torch.randn(2, 4, *(4, 3, 2)[:ndim], dtype=torch.float64)
    converted = convert(copy.deepcopy(original))
    same_step(original, converted, x)
    size = tuple(2 * n - 1 for n in x.shape[2:])
    torch.testing.assert_close(converted(x, size), original(x, size))


def same_step(original, converted, x):
    y, other = converted(x), original(x)
    torch.testing.assert_close(y, other, rtol=1e-11, atol=1e-11)
    grad = torch.randn_like(y)
    y.backward(grad)
    other.backward(grad)
    for a, b in zip(converted.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-11)


def test_convert_changes_nothing_but_the_class(capsys):
    model = net(last=True)
    model[0].register_forward_hook(lambda module, args, y: calls.append(type(module)))
    model[3].weight.requires_grad_(False)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    calls, before = [], dict(model.named_parameters())
    names, state = list(model.state_dict()), {k: v.clone() for k, v in model.state_dict().items()}
    assert convert(model, verbose=True) is model
    assert capsys.readouterr().out.splitlines() == [f"{i}: converted" for i in (0, 3, 4, 6)]
    assert [type(model[i]) for i in (0, 3, 4, 6)] == [ft.Conv2d] * 3 + [ft.ConvTranspose2d]
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert list(model.state_dict()) == names
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimiser.step()
    assert calls == [ft.Conv2d]
    assert not torch.equal(model[0].weight, state["0.weight"])
    assert torch.equal(model[3].weight, state["3.weight"])
    model.load_state_dict(state)
    assert convert(model, verbose=True) is model
    assert capsys.readouterr().out.splitlines()[0] == "0: left to PyTorch: it is converted already"
    assert ft.revert(model) is model
    assert [type(model[i]) for i in (0, 3, 4, 6)] == [nn.Conv2d] * 3 + [nn.ConvTranspose2d]
    assert "fastconv" not in repr(model)


def test_what_convert_leaves(capsys):
    class Mine(nn.Conv2d):
        """Who knows what its forward computes."""

    model = nn.ModuleDict({
        "mine": Mine(1, 1, 1), "short": nn.Conv2d(1, 1, 1).half(), "meta": nn.Conv2d(1, 1, 1, device="meta"),
        "lazy": nn.LazyConv2d(1, 1), "linear": nn.Linear(1, 1), "ours": nn.Conv2d(1, 1, 1),
        "weighted": nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 1)),
    })  # fmt: skip
    model["shared"] = model["ours"]
    kinds = {name: type(module) for name, module in model.items()}
    convert(model, verbose=True)
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["mine"] == "left to PyTorch: it is a Mine, which may compute something else than Conv2d"
    assert lines["short"] == "left to PyTorch: there is no kernel for torch.float16"
    assert lines["meta"] == "left to PyTorch: there is no kernel for the device meta"
    assert "LazyConv2d" in lines["lazy"]
    assert "ParametrizedConv2d" in lines["weighted"]
    assert lines["ours"] == "converted"
    assert "linear" not in lines
    assert {name for name, kind in kinds.items() if type(model[name]) is not kind} == {"ours", "shared"}


def test_copies_and_pickles():
    model, x = convert(net()).eval(), torch.randn(2, 3, 8, 8)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[0]) is ft.Conv2d
        assert torch.equal(other(x), model(x))
        assert other[0].weight.data_ptr() != model[0].weight.data_ptr()
    assert torch.equal(model.double().float()(x), model(x))


def test_a_model_that_changes_its_dtype_stays_correct():
    model, x = convert(nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 5, 5)
    half = left("conv2d", "there is no kernel for torch.bfloat16", lambda: model.bfloat16()(x.bfloat16()))
    torch.testing.assert_close(half.float(), model.float()(x), rtol=0.05, atol=0.05)


def test_weight_norm_by_hooks(recwarn):
    layer = nn.Conv2d(3, 4, 3)
    nn.utils.spectral_norm(layer)  # it sets the weight before each call
    x = torch.randn(1, 3, 5, 5)
    layer.eval()
    torch.testing.assert_close(convert(copy.deepcopy(layer))(x), layer(x))


def test_small_calls_of_layers_are_left_to_pytorch(computed, capsys):
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 4, 3, stride=2))
    x = torch.randn(1, 4, 10, 10)
    limit = 2 * 8 * 4 * 9 * 100  # padding or not: it is an estimate
    for least, wanted in ((limit + 1, []), (limit, ["output"]), (1, ["output", "grad_input"])):
        ft.convert(model, least_flops=least, verbose=True)(x)
        assert (
            capsys.readouterr().out.splitlines()[0]
            == f"0: converted, but for calls of less than {least / 1e6:.1f} MFLOP"
        )
        assert computed == wanted
        computed.clear()
        assert "least_flops" not in vars(ft.revert(model)[0])
    ft.convert(model.double())(x.double())
    assert computed == ["output", "grad_input"]
    with pytest.raises(ValueError, match="least_flops is -1: expected at least 0"):
        ft.convert(model, least_flops=-1)


def test_wide_depthwise_filters_are_left_less_often(capsys):
    model = nn.Sequential(nn.Conv2d(8, 8, 7, groups=8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 7))
    ft.convert(model, verbose=True)
    assert [line.split()[-2] for line in capsys.readouterr().out.splitlines()] == ["0.4", "4.0", "4.0"]
    assert [layer.least_flops for layer in model] == [400_000, 4_000_000, 4_000_000]
    with pytest.raises(TypeError, match="least_flops is True: expected an int or None"):
        ft.convert(model, least_flops=True)


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.full((3, 6, 6), float(index))


@COMPILED
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, if another test has loaded it
def test_data_loader_beside_it():
    """Worker processes that are forked after the kernels' threads have started load images, while the kernels go on."""
    model = convert(nn.Conv2d(3, 4, 3))
    model(torch.randn(64, 3, 6, 6)).sum().backward()
    loader = torch.utils.data.DataLoader(Numbers(), batch_size=2, num_workers=2)
    for _ in range(2):
        for images in loader:
            y = model(images)
            y.sum().backward()
            torch.testing.assert_close(y, F.conv2d(images, model.weight, model.bias), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# What models go through
# ---------------------------------------------------------------------------------------------------------------------


def net(last=False):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding="same", groups=8, padding_mode="reflect"),
        nn.Conv2d(8, 6, 3, stride=2, dilation=2, padding=2, bias=False), nn.ReLU(),
        nn.ConvTranspose2d(6, 3, 3, stride=2, padding=1, output_padding=1),
    )  # fmt: skip
    return model.to(memory_format=torch.channels_last) if last else model


@COMPILED
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, last):
    """In one graph, whose backward pass also is one; without C++, so that no compiler is needed."""
    torch._dynamo.reset()
    model = convert(net(last))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (8, 12):
        x = leaf(2, 3, size, size, dtype=torch.float32, last=last)
        y = compiled(x)
        grads = torch.autograd.grad((y**2).sum(), [x, *model.parameters()])
        wanted = model(x)
        torch.testing.assert_close(y, wanted)
        assert y.stride() == wanted.stride()
        torch.testing.assert_close(grads, torch.autograd.grad((wanted**2).sum(), [x, *model.parameters()]))


@COMPILED
def test_exported():
    model = convert(net()).eval()
    x = torch.randn(2, 3, 8, 8)
    program = torch.export.export(model, (x,))
    assert sum("fastconv" in str(node.target) for node in program.graph.nodes) == 4
    torch.testing.assert_close(program.module()(x), model(x))


def test_inference_mode():
    model, x = convert(net()).eval(), torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        y = model(x)
    assert y.is_inference()
    torch.testing.assert_close(y, model(x), rtol=0, atol=0)


def test_checkpointed():
    from torch.utils.checkpoint import checkpoint

    model, x = convert(net()).eval(), leaf(2, 3, 8, 8, dtype=torch.float32)
    grads = [
        torch.autograd.grad(y.sum(), [x, *model.parameters()])
        for y in (checkpoint(model, x, use_reentrant=False), model(x))
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_autocast_is_left_to_pytorch():
    model = convert(nn.Conv2d(2, 3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        y = left(
            "conv2d",
            r"autocast is on, and there is no kernel for torch\.bfloat16",
            lambda: model(torch.ones(1, 2, 5, 5)),
        )
    assert y.dtype == torch.bfloat16
