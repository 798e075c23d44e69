"""Weights of PyTorch: torchvision's numbers, the original's, files, errors.

`tests/test_torchvision.py` has the tests that need torchvision.
"""

import json
import os
import struct
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import mslice_jax as ms
from mslice_jax import models
from mslice_jax.models import WeightsError, export_torch, import_torch, vit_nnx
from mslice_jax.models.import_torch import (
    import_network,
    import_state_dict,
    read_state_dict,
)
from mslice_jax.models.torch_names import entries
from mslice_jax.train import restore_narrow
from mslice_jax.train.checkpoints import CheckpointError, Checkpoints
from tests import golden_torchvision, golden_weights
from tests.torch_weights import weights

TINY = {"image_size": 16, "layers": 1, "hidden": 16, "heads": 4, "mlp": 24}


def torch_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a state dict; wrong names or shapes give other logits below."""
    size = size_of(model)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    types = jax.eval_shape(model.init, jax.random.key(0), x)
    leaves = {
        tuple(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(types)
    }
    return {
        entry.key: entry.layout.shape([leaves[path] for path in entry.leaves])
        for entry in entries(model, leaves)
    }


def size_of(model: Any) -> int:
    return getattr(model, "image_size", 32)


def random_state(model: Any) -> dict[str, np.ndarray]:
    """A state dict of the network, with statistics."""
    shapes = torch_shapes(model)
    norms = golden_torchvision.norms(shapes)
    squares = dict.fromkeys(norms, 1.0)
    return weights(shapes) | golden_torchvision.statistics(squares, shapes)


def assert_trees_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# torchvision's numbers.

NIGHTLY = ("resnet50", "vgg16_bn", "googlenet")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] if name in NIGHTLY else [])
        for name in golden_torchvision.NETWORKS
    ],
)
def test_logits_are_torchvisions(name):
    model = golden_torchvision.NETWORKS[name]
    logits, squares, x = golden_torchvision.load(name)
    shapes = torch_shapes(model)
    norms = golden_torchvision.norms(shapes)
    seen = dict(zip(norms, squares.tolist(), strict=True))
    state = weights(shapes) | golden_torchvision.statistics(seen, shapes)
    variables = import_state_dict(state, model)
    found = jax.jit(model.apply)(variables, x)
    tolerance = 1e-4 * np.abs(logits).max()
    np.testing.assert_allclose(found, logits, rtol=0, atol=tolerance)


def test_a_vit_of_nnx_equals_that_of_linen():
    settings = {**TINY, "num_classes": 3}
    linen = models.vit_b_16(**settings, patch_size=8)
    state = random_state(linen)
    variables = import_state_dict(state, linen)
    empty = vit_nnx.vit_b_16(**settings, patch_size=8, rngs=nnx.Rngs(0))
    before = np.array(empty.conv_proj.kernel[...])
    model = import_state_dict(state, empty)
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(
        nnx.jit(lambda model, x: model(x))(model, x),
        jax.jit(linen.apply)(variables, x),
        rtol=1e-5,
        atol=1e-5,
    )
    np.testing.assert_array_equal(empty.conv_proj.kernel[...], before)


def test_older_files_have_other_names_for_a_vits_mlp():
    model = models.vit_b_16(**TINY)
    state = random_state(model)
    old = {
        k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): x
        for k, x in state.items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_2.bias" in old
    found, expected = (import_state_dict(s, model) for s in (old, state))
    assert_trees_equal(found, expected)


# Checkpoints of the original: `golden_weights` makes these trees by other code.


def original(name: str) -> dict[str, np.ndarray]:
    with np.load(golden_weights._FOLDER / f"{name}.npz") as file:
        names = [key for key in file if key.startswith("state/")]
        return {name.removeprefix("state/"): file[name] for name in names}


@pytest.mark.parametrize("name", golden_weights.NAMES)
def test_the_originals_checkpoints_become_networks(name, tmp_path):
    golden = golden_weights.load(name)
    state = original(name) | {"bn1.num_batches_tracked": np.array(7)}
    path = tmp_path / "checkpoint.npz"
    np.savez(path, **{f"module.{key}": x for key, x in state.items()})
    net = import_network(
        read_state_dict(path),
        golden.model,
        rates=golden.rates,
        norm="group" if golden.groups else None,
    )
    assert_trees_equal(
        jax.tree.map(np.asarray, net.variables),
        jax.tree.map(lambda x: np.asarray(x, np.float32), golden.sliceable),
    )


def test_multibn_uses_its_training_rates():
    state, model = original("cifar_resnet11_multibn"), models.CifarResNet(depth=11)
    with pytest.raises(WeightsError, match="more batch norms .* than the 2 rates"):
        import_network(state, model, rates=(0.5, 1.0))
    with pytest.raises(WeightsError, match="has 4 batch norms in each list, for 5"):
        import_network(state, model, rates=(0.2, 0.25, 0.5, 0.75, 1.0))
    with pytest.raises(WeightsError, match=r"at rate 0\.3 is not that.*not \(5,\)"):
        import_network(state, model, rates=(0.3, 0.5, 0.75, 1.0), groups=16)
    with pytest.raises(WeightsError, match="makes norm='switchable'; got"):
        import_network(state, model, rates=(0.25, 0.5, 0.75, 1.0), norm="group")
    with pytest.raises(WeightsError, match="import_network takes lists"):
        import_state_dict(state, model)


def test_group_norms_have_no_statistics_and_have_to_be_named():
    state = original("cifar_resnet11_gn8")
    model = models.CifarResNet(depth=11)
    with pytest.raises(WeightsError, match="import it with norm='group'") as error:
        import_state_dict(state, model)
    assert "layer3.0.downsample.1.running_var" in error.value.missing
    found = import_state_dict(state, model, statistics=False)
    stats = found["batch_stats"]["layer1_0"]["bn2"]
    np.testing.assert_array_equal(stats["mean"], np.zeros(16))
    np.testing.assert_array_equal(stats["var"], np.ones(16))


# Another network.


def test_all_mismatches_are_in_one_error():
    model = models.CifarResNet(depth=8, num_classes=3)
    state = random_state(model)
    del state["layer2.0.conv1.weight"], state["bn1.running_mean"]
    state |= {"fc.bias": np.zeros(4), "aux.weight": np.zeros(2), "more": np.ones(1)}
    with pytest.raises(WeightsError) as error:
        import_state_dict(state, model)
    assert error.value.missing == ("bn1.running_mean", "layer2.0.conv1.weight")
    assert error.value.left_over == ("aux.weight", "more")
    assert error.value.misshapen == {"fc.bias": ((3,), (4,))}
    for text in (
        "not that of this CifarResNet",
        "it lacks bn1.running_mean, layer2.0.conv1.weight",
        "nothing takes its aux.weight, more",
        "fc.bias is (4,), not (3,)",
    ):
        assert text in str(error.value)


def test_only_networks_of_the_zoo_have_names():
    with pytest.raises(TypeError, match="ImageNetResNet.*got Dense"):
        import_state_dict({}, nn.Dense(3))
    with pytest.raises(TypeError, match="such as models.resnet50"):
        import_state_dict({}, "resnet50")


# Files.


def safetensors(header: Any, data: bytes) -> bytes:
    """The documented format: a length, JSON, numbers."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_safetensors_are_read(tmp_path):
    path = tmp_path / "weights"  # the content shows the format
    path.write_bytes(
        safetensors(
            {
                "__metadata__": {"format": "pt"},
                "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [2, 10]},
                "b": {"dtype": "BF16", "shape": [], "data_offsets": [0, 2]},
                "n": {"dtype": "I64", "shape": [1], "data_offsets": [10, 18]},
            },
            b"\xc0\x3f" + struct.pack("<ff", 0.5, -3) + struct.pack("<q", -7),
        )
    )
    found = read_state_dict(path)
    np.testing.assert_array_equal(found["a"], [[0.5], [-3]])
    assert (float(found["b"]), found["n"].tolist()) == (1.5, [-7])
    assert found["a"].dtype == np.float32


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": TENSOR}, b"1234"),  # cut short
        safetensors({"a": {**TENSOR, "shape": [3]}}, b"12345678"),
        safetensors({"a": {**TENSOR, "data_offsets": [-8, 0]}}, b"12345678"),
        safetensors({"a": {**TENSOR, "dtype": "F31"}}, b"12345678"),
        safetensors({"a": 3}, b""),
        struct.pack("<Q", 100) + b'{"a": 1',
        b"PK\x03\x04 and no more of a zip",
        struct.pack("<Q", 99_999) + b'{"a":' + b"[" * 99_994,  # deeper than Python goes
    ],
)
def test_damaged_files_are_refused(content, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read, it may be damaged"):
        read_state_dict(path)


def test_an_npz_with_one_wrong_byte_is_read_or_refused(tmp_path):
    """Zip, zlib and NumPy raise errors of many types, by where the byte is."""
    path = tmp_path / "weights.npz"
    numbers = np.random.default_rng(0).normal(size=(5, 5))
    np.savez_compressed(path, a=numbers, b=np.arange(9))
    content, refused = path.read_bytes(), 0
    for at in range(4, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            read_state_dict(path)
        except WeightsError:
            refused += 1
    assert refused > len(content) / 6  # half of those that were tried


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "weights"
    path.write_text("a text file that is long enough")
    with pytest.raises(WeightsError, match="no torch file, safetensors or npz"):
        read_state_dict(path)
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match="no torch file, safetensors or npz"):
        read_state_dict(path)
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none")


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Any):
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_objects_in_an_npz_are_never_unpickled(tmp_path):
    path, trace = tmp_path / "weights.npz", tmp_path / "trace"
    np.savez(path, a=np.array([Evil(trace)], object))
    with pytest.raises(WeightsError, match="cannot be read"):
        read_state_dict(path)
    assert not trace.exists()


def test_a_torch_file_without_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError, match=r'pip install "mslice_jax\[pytorch\]"'):
        read_state_dict(path)


# The command.


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Any:
    path = tmp_path_factory.mktemp("torch") / "resnet8.npz"
    model = models.CifarResNet(depth=8, num_classes=3, widen=0.5)
    np.savez(path, **random_state(model))
    return path


def command(*args: Any) -> int:
    return import_torch.main([*map(str, args)])


def test_the_command_writes_files_for_load_and_restore_narrow(file, tmp_path, capsys):
    out = tmp_path / "new" / "resnet8"
    flags = ("--model", "cifar_resnet8", "--widen", 0.5, "--rates", 1, 0.5)
    assert command(file, out, *flags) == 0
    assert "cifar_resnet8: 47 tensors" in capsys.readouterr().out
    model = models.CifarResNet(depth=8, num_classes=3, widen=0.5)
    expected = import_state_dict(read_state_dict(file), model)
    net = ms.load(out, model)
    assert net.rates == (0.5, 1.0)
    assert_trees_equal(net.variables, expected)
    small = restore_narrow(out / "checkpoints", net, 0.5)
    assert_trees_equal(small.variables, ms.extract(net, 0.5).variables)
    assert [path.name for path in out.parent.iterdir()] == ["resnet8"]
    one = tmp_path / "resnet8.mslice"
    assert command(file, one, *flags) == 0
    assert_trees_equal(ms.load(one, model).variables, expected)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ("--model", "cifar_resnet14", "--widen", 0.5),
            "it lacks layer1.1.bn1.bias, lay",
        ),
        (("--model", "cifar_resnet8"), "conv1.weight is (8, 3, 3, 3), not (16, 3,"),
        (("--model", "resnet51"), "expected a --model of resnet18, resnet34"),
        (("--model", "cifar_resnet8", "--widen", 0.5, "--rates", 2), "rate"),
        (("--model", "resnet18"), "it lacks layer1.1.bn1.bias, lay"),
    ],
)
def test_a_mismatch_leaves_no_file(flags, text, file, tmp_path, capsys):
    assert command(file, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and text in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (CheckpointError("no space left"), 2, "no space left"),
        (KeyboardInterrupt(), 130, "Interrupted; nothing was written."),
    ],
)
def test_a_write_that_fails_or_is_stopped_leaves_no_file(
    error, code, text, file, tmp_path, monkeypatch, capsys
):
    def stop(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Checkpoints, "save", stop)
    flags = ("--model", "cifar_resnet8", "--widen", 0.5)
    assert command(file, tmp_path / "out", *flags) == code
    assert text in "".join(capsys.readouterr())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(file, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert command(file, tmp_path / "out", "--model", "cifar_resnet8") == 2
    assert "name another OUT" in capsys.readouterr().err


# And back.


@pytest.mark.parametrize(
    "model",
    [
        models.vgg11_bn(num_classes=3, widen=1 / 16),
        models.vgg13(num_classes=3, widen=1 / 16),
        models.vit_b_16(num_classes=3, **TINY),
        pytest.param(
            models.googlenet(num_classes=3, widen=0.125), marks=pytest.mark.nightly
        ),
        models.mobilenet_v2(num_classes=3, widen=0.125),
        models.CifarVGG(depth=13, widen=1 / 16),
        models.resnet18(num_classes=3, widen=1 / 16),
    ],
    ids=lambda model: type(model).__name__,
)
def test_imported_weights_are_exported_again(model):
    state = random_state(model)
    net = import_network(state, model, rates=(0.5, 1.0), image_size=size_of(model))
    exported = export_torch(net, 1.0).state
    assert set(exported) == set(state)
    for key, x in state.items():
        np.testing.assert_array_equal(exported[key], x, err_msg=key)
        assert exported[key].flags.c_contiguous


def test_narrow_tensors_are_those_cut_by_hand():
    model = models.vgg11(num_classes=3, widen=1 / 16)  # 4 to 32 channels, 256 units
    state = random_state(model)
    net = import_network(
        state, model, rates=(0.5, 1.0), image_size=32, groups=4, norm="shared"
    )
    narrow = export_torch(net, 0.5).state
    np.testing.assert_array_equal(
        narrow["features.3.weight"], state["features.3.weight"][:4, :2]
    )
    flat = state["classifier.0.weight"].reshape(256, 32, 49)[:128, :16]
    np.testing.assert_array_equal(
        narrow["classifier.0.weight"], flat.reshape(128, 16 * 49)
    )
    vit = models.vit_b_16(num_classes=3, **TINY)
    state = random_state(vit)
    net = import_network(state, vit, rates=(0.5, 1.0))
    narrow = export_torch(net, 0.5).state
    name = "encoder.layers.encoder_layer_0.self_attention"
    # Two of four heads of 4 entries, for queries, keys and values alike.
    qkv = state[f"{name}.in_proj_weight"].reshape(3, 16, 16)[:, :8, :8]
    np.testing.assert_array_equal(narrow[f"{name}.in_proj_weight"], qkv.reshape(24, 8))
    np.testing.assert_array_equal(
        narrow[f"{name}.out_proj.weight"], state[f"{name}.out_proj.weight"][:8, :8]
    )


def test_only_networks_of_the_zoo_are_exported():
    w = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
    net = ms.upgrade(
        lambda p, x: x @ p["w1"] @ p["w2"], w, jnp.ones((1, 3)), rates=(0.5, 1.0)
    )
    with pytest.raises(TypeError, match="got a plain function"):
        export_torch(net, 0.5)
