"""Against torchvision itself, where it is installed: pip install torch torchvision.

The same networks have the same logits, full and narrow, in both directions. CI compares
with `tests/golden/torchvision.npz`.
"""

import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax import models
from mslice_jax.models import WeightsError, export_torch
from mslice_jax.models.import_torch import (
    import_network,
    import_state_dict,
    read_state_dict,
)
from tests.torch_weights import images, weights

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

RATES = (0.25, 0.5, 1.0)
SIZE = 64
# The other depths are in the nightly tests.
EVERY_DAY = ("resnet18", "vgg11_bn", "googlenet", "mobilenet_v2", "vit_b_32")
NETWORKS = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    "googlenet",
    "mobilenet_v2",
    "vit_b_16",
    "vit_b_32",
    "vit_l_16",
    "vit_l_32",
]


def each(names: Any) -> Any:
    marks = {True: [], False: [pytest.mark.nightly]}
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=marks[n in EVERY_DAY]) for n in names]
    )


def settings(name: str) -> dict[str, Any]:
    if name == "googlenet":
        return {"num_classes": 10, "transform_input": True}
    if name.startswith("vit"):
        return {"num_classes": 10, "image_size": SIZE}
    return {"num_classes": 10}


def torch_network(name: str, seen: np.ndarray | None = None) -> Any:
    """torchvision's network with random weights and the statistics of a batch."""
    more = {"init_weights": False} if name == "googlenet" else {}
    make = getattr(torchvision.models, name)
    network = make(**settings(name), **more)
    shapes = {key: tuple(x.shape) for key, x in network.state_dict().items()}
    tensors = {key: torch.tensor(x) for key, x in weights(shapes).items()}
    network.load_state_dict(tensors, strict=False)
    if seen is not None:
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the statistics of this batch alone
        with torch.no_grad():
            network.train()(as_torch(seen))
    return network.eval()


def as_torch(x: np.ndarray) -> Any:
    return torch.tensor(x).permute(0, 3, 1, 2).contiguous()


def run(network: Any, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(as_torch(x)).numpy()


def state_of(network: Any) -> dict[str, np.ndarray]:
    return {key: x.numpy() for key, x in network.state_dict().items()}


def size(network: Any) -> int:
    """Parameters, but for auxiliary heads, which evaluation does not read."""
    named = network.named_parameters()
    return sum(p.numel() for name, p in named if not name.startswith("aux"))


def assert_same_logits(found: Any, expected: np.ndarray) -> None:
    assert expected.std() > 0.1
    atol = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@each(NETWORKS)
def test_logits_are_torchvisions(name):
    x = images(SIZE, 4)
    network = torch_network(name, seen=x)
    expected, state = run(network, x), state_of(network)
    del network
    model = getattr(models, name)(**settings(name))
    variables = import_state_dict(state, model)
    assert_same_logits(jax.jit(model.apply)(variables, x), expected)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("mobilenet_v2", "shared"),
        ("resnet18", "group"),
        pytest.param("resnet50", "shared", marks=pytest.mark.nightly),
        pytest.param("resnet18", "shared", marks=pytest.mark.nightly),
        pytest.param("resnet18", "switchable", marks=pytest.mark.nightly),
        pytest.param("googlenet", "shared", marks=pytest.mark.nightly),
        pytest.param("googlenet", "group", marks=pytest.mark.nightly),
        pytest.param("mobilenet_v2", "group", marks=pytest.mark.nightly),
        pytest.param("vgg11_bn", "group", marks=pytest.mark.nightly),
        pytest.param("vgg11", None, marks=pytest.mark.nightly),
        pytest.param("vit_b_32", None, marks=pytest.mark.nightly),
    ],
)
# Fresh statistics, of a network that becomes one of group norms.
@pytest.mark.filterwarnings("ignore::mslice_jax.NormWarning")
def test_a_narrow_network_gives_the_same_logits_in_torchvisions_instance(name, norm):
    x = images(SIZE, 4)
    model = getattr(models, name)(**settings(name))
    network = torch_network(name, seen=x if norm == "shared" else None)
    net = import_network(
        state_of(network), model, rates=RATES, norm=norm, image_size=SIZE
    )
    if norm == "shared":
        net = ms.calibrate(net, [x])
    for rate in RATES[:2]:
        exported = export_torch(net, rate)
        narrow = exported.put(torch_network(name)).eval()
        assert_same_logits(run(narrow, x), np.asarray(ms.slice_apply(net, x, rate)))
        there = narrow.state_dict()
        assert set(exported.state) == {k for k in there if "num_batches" not in k}
        assert size(narrow) < rate * size(network)


def test_a_narrow_network_of_torchvision_trains():
    model = models.mobilenet_v2(**settings("mobilenet_v2"))
    network = torch_network("mobilenet_v2", seen=images(SIZE, 4))
    net = import_network(state_of(network), model, rates=(0.5, 1.0), image_size=SIZE)
    narrow = export_torch(net, 0.5).put(network.train())
    assert narrow is network and narrow.training
    assert all(module.training for module in narrow.modules())
    narrow(as_torch(images(SIZE, 4))).sum().backward()
    assert all(p.grad is not None for p in narrow.parameters())


def test_another_instance_is_refused_and_unchanged():
    model = models.mobilenet_v2(num_classes=10)
    state = state_of(torch_network("mobilenet_v2"))
    net = import_network(state, model, rates=(0.5, 1.0), norm="shared")
    other = torchvision.models.resnet18(num_classes=10)
    before = state_of(other)
    with pytest.raises(WeightsError, match="this ResNet is another network"):
        export_torch(net, 0.5).put(other)
    after = state_of(other)
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_attention_that_pytorch_does_not_support():
    sizes = {"image_size": 32, "patch_size": 8, "num_classes": 3}
    network = torchvision.models.VisionTransformer(
        **sizes, num_layers=1, num_heads=3, hidden_dim=24, mlp_dim=16
    )
    model = models.VisionTransformer(**sizes, layers=1, heads=3, hidden=24, mlp=16)
    net = import_network(state_of(network), model, rates=(0.5, 1.0), groups=4)
    # Half of three heads are two of eight, but half of 24 units are 12.
    with pytest.raises(WeightsError, match="2 heads of 8 for tokens of 12"):
        export_torch(net, 0.5).put(network)


# Files.


def test_torch_files_are_read(tmp_path):
    model = torch.nn.Linear(2, 3).bfloat16()
    expected = {k: x.float().numpy() for k, x in model.state_dict().items()}
    prefixed = {f"module.{k}": x for k, x in model.state_dict().items()}
    kinds = {
        "alone": model.state_dict(),
        "original": {"epoch": 3, "model_state": prefixed, "best_err1": 31.4},
        "lightning": {"state_dict": model.state_dict(), "optimizer": {"lr": 0.1}},
    }
    for name, content in kinds.items():
        for new in (True, False):
            path = tmp_path / name
            torch.save(content, path, _use_new_zipfile_serialization=new)
            found = read_state_dict(path)
            assert set(found) == set(expected), name
            for key, x in expected.items():
                np.testing.assert_array_equal(found[key], x)


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: pathlib.Path):
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_that_would_run_code_never_does(new, tmp_path):
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    content = {"model_state": {"fc.bias": torch.zeros(3)}, "evil": Evil(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(WeightsError, match=r"would run code .*mkdir"):
        read_state_dict(path)
    assert not trace.exists()
    run = subprocess.run(
        [
            *(sys.executable, "-m", "mslice_jax.models.import_torch"),
            *(str(path), str(tmp_path / "out"), "--model", "resnet18"),
        ],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
        check=False,
    )
    assert run.returncode == 2 and "would run code" in run.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pt"]


def test_torch_files_without_a_state_dict(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"epoch": 1}, path)
    with pytest.raises(WeightsError, match="no state dict in it"):
        read_state_dict(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(WeightsError, match="no state dict in it"):
        read_state_dict(path)
    torch.save({"a": torch.zeros(300)}, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(WeightsError, match="cannot be read, it may be damaged"):
        read_state_dict(path)


@pytest.mark.parametrize("new", [True, False])
def test_a_torch_file_with_one_wrong_byte_is_read_or_refused(new, tmp_path):
    path, said = tmp_path / "weights.pt", []
    torch.save({"a": torch.zeros(3, 2)}, path, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    for at in range(2, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            read_state_dict(path)
        except WeightsError as error:
            said.append(str(error))
    damaged = [text for text in said if "may be damaged" in text]
    assert len(damaged) > 20
    # The others are names that a changed byte made of torch's.
    assert all("GLOBAL" in text for text in said if "would run code" in text)


def test_safetensors_are_read_as_their_own_package_wrote_them(tmp_path):
    package = pytest.importorskip("safetensors.torch")
    tensors = {"a": torch.randn(3, 2), "b": torch.randn(4).bfloat16()}
    package.save_file(tensors, tmp_path / "weights")
    found = read_state_dict(tmp_path / "weights")
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(found[key], tensor.float().numpy())
