"""The networks of torchvision: their parameters, their parts, and errors.

Tests against torchvision's numbers: `test_import_torch.py` and `test_torchvision.py`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mslice_jax as ms
from mslice_jax import models
from mslice_jax.models import layers, vit_nnx
from mslice_jax.models.import_torch import FACTORIES

KEY = jax.random.key(0)

# As torchvision counts them (`sum(p.numel() for p in model.parameters())`).
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "googlenet": 13_004_888,
    "mobilenet_v2": 3_504_872,
    "vit_b_16": 86_567_656,
    "vit_b_32": 88_224_232,
    "vit_l_16": 304_326_632,
    "vit_l_32": 306_535_400,
    "vit_h_14": 632_045_800,
}


def types(model: Any, size: int = 224, **call: Any) -> Any:
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    init = functools.partial(model.init, **call)
    return jax.eval_shape(init, {"params": KEY, "dropout": KEY}, x)


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)


# The table.


# The others are deeper ones of the same make.
EVERY_DAY = {"resnet18", "resnet50", "vgg11", "vgg11_bn", "googlenet", "mobilenet_v2"}
EVERY_DAY |= {"vit_b_16"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in EVERY_DAY else pytest.mark.nightly)
        for name in PARAMETERS
    ],
)
def test_parameters_are_torchvisions(name):
    model = getattr(models, name)()
    variables = types(model)
    assert count(variables["params"]) == PARAMETERS[name]
    x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    logits = jax.eval_shape(model.apply, variables, x)
    assert (logits.shape, logits.dtype) == ((2, 1000), jnp.float32)


def test_the_table_has_every_network():
    assert set(PARAMETERS) == set(FACTORIES)
    assert all(getattr(models, name) is make for name, make in FACTORIES.items())


@pytest.mark.parametrize(
    "name",
    [
        "vit_b_32",
        *(
            pytest.param(n, marks=pytest.mark.nightly)
            for n in ("vit_b_16", "vit_l_16", "vit_l_32")
        ),
    ],
)
def test_vits_of_nnx_have_the_same_parameters(name):
    make = getattr(vit_nnx, name)
    model = nnx.eval_shape(lambda: make(layers=1, rngs=nnx.Rngs(0)))
    linen = types(getattr(models, name)(layers=1))
    assert count(nnx.state(model, nnx.Param)) == count(linen["params"])


# Each rate of the full network is the network built narrow.

NARROW_EVERY_DAY = {"resnet18", "vgg13"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in NARROW_EVERY_DAY else pytest.mark.nightly)
        for n in PARAMETERS
        if not n.startswith("vit")
    ],
)
def test_each_rate_is_the_network_built_narrow(name):
    size, settings = 32, {"aux_logits": False} if name == "googlenet" else {}
    make, rates = getattr(models, name), (0.25, 0.5, 0.75, 1.0)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    full = types(make(**settings), size)
    net = ms.upgrade(make(**settings), full, x, rates=rates, groups=4, norm="shared")
    for rate in rates:
        narrow = types(make(widen=rate, **settings), size)
        assert shapes(ms.extract(net, rate).variables) == shapes(narrow)
        assert count(narrow["params"]) < rate * count(full["params"]) or rate == 1
        y = jax.eval_shape(lambda net, x, r=rate: ms.slice_apply(net, x, r), net, x)
        assert y.shape == (1, 1000)


def test_heads_and_units_of_each_rate_of_a_vit():
    sizes = {"heads": 12, "hidden": 768, "mlp": 3072}
    model, x = models.vit_b_16(layers=1), jax.ShapeDtypeStruct((1, 224, 224, 3), "f4")
    net = ms.upgrade(model, types(model), x, rates=(0.25, 0.5, 0.75, 1.0))
    for rate in net.rates:
        narrow = {key: int(n * rate) for key, n in sizes.items()}
        expected = types(models.vit_b_16(layers=1, **narrow))
        assert shapes(ms.extract(net, rate).variables) == shapes(expected)


# GoogLeNet's auxiliary heads.


def test_auxiliary_heads_are_in_both_modes_and_run_in_training_alone():
    model = models.googlenet(num_classes=5, widen=0.125)
    variables = types(model, 64)
    assert shapes(variables) == shapes(types(model, 64, train=True))
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    assert jax.eval_shape(model.apply, variables, x).shape == (2, 5)
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    out, _ = jax.eval_shape(
        lambda v, x: train(v, x, rngs={"dropout": KEY}), variables, x
    )
    assert isinstance(out, models.GoogLeNetOutputs)
    assert [y.shape for y in out] == [(2, 5)] * 3
    without = types(models.googlenet(aux_logits=False))
    assert count(without["params"]) == 6_624_904


@pytest.mark.nightly
def test_upgraded_in_training_mode_the_auxiliary_heads_narrow_too():
    def make(widen):
        return models.googlenet(num_classes=5, widen=widen)

    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    call = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": KEY}}
    net = ms.upgrade(
        make(0.5),
        types(make(0.5), 64),
        x,
        rates=(0.5, 1.0),
        groups=4,
        norm="shared",
        call=call,
    )
    assert shapes(ms.extract(net, 0.5).variables) == shapes(types(make(0.25), 64))
    y = jax.eval_shape(lambda net, x: ms.slice_apply(net, x, 0.5), net, x)
    assert y.shape == (2, 5)


# Pooling, against PyTorch's definition written out with loops.


@pytest.mark.parametrize(("n", "size"), [(7, 7), (14, 7), (14, 4), (1, 7), (5, 3)])
def test_adaptive_mean_is_the_mean_of_each_window(n, size):
    x = np.random.default_rng(0).normal(size=(2, n, n + 1, 3)).astype(np.float32)
    expected = np.zeros((2, size, size, 3))
    for i in range(size):
        for j in range(size):
            rows = slice(int(np.floor(i * n / size)), int(np.ceil((i + 1) * n / size)))
            m = n + 1
            columns = slice(
                int(np.floor(j * m / size)), int(np.ceil((j + 1) * m / size))
            )
            expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(
        layers.adaptive_mean(jnp.asarray(x), size), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("n", "window"), [(112, 3), (7, 3), (8, 3), (7, 2), (8, 2)])
def test_the_last_window_crosses_the_edge(n, window):
    x = np.random.default_rng(0).normal(size=n).astype(np.float32)
    starts = [i for i in range(0, n, 2) if i == 0 or i + window - 2 < n]
    expected = [x[i : i + window].max() for i in starts]
    image = jnp.tile(jnp.asarray(x)[None, :, None, None], (1, 1, n, 1))
    pooled = layers.max_pool_ceil(image, window, 2)[0, :, 0, 0]
    np.testing.assert_array_equal(pooled, np.array(expected))


# Dropout, initialization, types.


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (models.vgg11(widen=1 / 64, num_classes=3), 32),
        (
            models.VisionTransformer(
                patch_size=8,
                layers=1,
                heads=2,
                hidden=16,
                mlp=32,
                image_size=16,
                dropout=0.1,
                attention_dropout=0.1,
            ),
            16,
        ),
    ],
    ids=["vgg", "vit"],
)
def test_training_draws_and_evaluation_does_not(model, size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 3)), "float32")
    random = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(np.float32),
        types(model, size),
    )

    @functools.partial(jax.jit, static_argnames="train")
    def run(key, train):
        return model.apply(variables, x, train=train, rngs={"dropout": key})

    first, second = jax.random.split(KEY)
    np.testing.assert_array_equal(run(first, False), run(second, False))
    assert not np.allclose(run(first, True), run(second, True))
    np.testing.assert_array_equal(run(first, True), run(first, True))


def test_weights_begin_as_torchvisions():
    resnet = jax.jit(models.resnet18(widen=0.125, num_classes=2).init)
    kernel = resnet(KEY, jnp.zeros((1, 8, 8, 3)))["params"]["conv1"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (49 * 8)), rtol=0.05)
    vit = models.vit_b_16(image_size=16, layers=1, hidden=96, heads=4, mlp=64)
    params = jax.jit(vit.init)(KEY, jnp.zeros((1, 16, 16, 3)))["params"]
    qkv = params["block0"]["self_attention"]
    for name in ("query", "key", "value"):  # Xavier's bound on a (3 x 96, 96) matrix
        bound = np.sqrt(6 / (4 * 96))
        largest = np.abs(qkv[name]["kernel"]).max()
        assert 0.98 * bound < largest <= bound * 1.0001
    out = np.abs(qkv["out"]["kernel"]).max()
    assert 0.98 * 96**-0.5 < out <= 96**-0.5 * 1.0001
    assert np.count_nonzero(params["head"]["kernel"]) == 0
    np.testing.assert_allclose(np.std(params["pos_embedding"]), 0.02, rtol=0.2)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vgg11_bn", {}),
        ("mobilenet_v2", {}),
        ("vit_b_32", {"layers": 1}),
    ],
)
def test_half_precision_keeps_parameters_and_logits(name, settings):
    model = getattr(models, name)(dtype=jnp.bfloat16, **settings)
    variables = types(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(model.apply, variables, x).dtype == jnp.float32
    jaxpr = str(jax.make_jaxpr(model.apply)(variables, x))
    convs = [line for line in jaxpr.splitlines() if "= conv_general_dilated" in line]
    assert convs and all("bf16" in line for line in convs)


# Errors.


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: models.ImageNetVGG(depth=12), "11, 13, 16, 19, got 12"),
        (lambda: models.vgg11(widen=0.3), r"64 x 0\.3 = 19\.2 channels"),
        (lambda: models.googlenet(widen=0.3), r"8 x 0\.3 = 2\.4 channels"),
        (lambda: models.mobilenet_v2(widen=0), "= 0 channels"),
        (lambda: models.vit_b_16(image_size=100), "multiple of patch_size, got 100"),
        (lambda: models.vit_b_16(heads=7), "multiple of the heads, got 768 and 7"),
        (
            lambda: vit_nnx.vit_b_16(heads=7, rngs=nnx.Rngs(0)),
            "multiple of the heads, got 768 and 7",
        ),
    ],
)
def test_impossible_settings_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("name", "shape", "match"),
    [
        ("vgg11", (1, 31, 64, 3), "32 x 32 pixels"),
        ("googlenet", (1, 14, 14, 3), "15 x 15 pixels"),
        ("mobilenet_v2", (32, 32, 3), r"x\[None\]"),
        ("vit_b_16", (1, 256, 256, 3), "224 x 224 pixels"),
        ("vit_b_16", (224, 224, 3), r"\(batch, height, width, channels\)"),
    ],
)
def test_images_of_another_shape_are_refused(name, shape, match):
    model = getattr(models, name)()
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct(shape, jnp.float32))
