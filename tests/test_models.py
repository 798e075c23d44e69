"""The CIFAR networks are those of the original, and refuse other arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mslice_jax.models import CifarResNet, CifarVGG
from tests import golden_weights, oracle

KEY = jax.random.key(0)
CIFAR = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def init_shapes(model, image=(32, 32, 3)) -> Any:
    """Variables as jax.ShapeDtypeStruct."""
    x = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    return jax.eval_shape(model.init, KEY, x)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def scrambled(tree):
    """Random leaves, all positive so as to serve as variances."""
    leaves, structure = jax.tree.flatten(tree)
    random = np.random.default_rng(0)
    return structure.unflatten(
        [random.uniform(0.1, 1.0, leaf.shape).astype(np.float32) for leaf in leaves]
    )


# The original's numbers at full width.


def test_plain_network_with_batch_norm_equals_the_original():
    golden = golden_weights.load("cifar_resnet11_multibn")
    logits = jax.jit(golden.model.apply)(golden.variables, golden.x)
    np.testing.assert_allclose(logits, golden.logits[1.0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["cifar_resnet11_gn8", "cifar_vgg11_w025_gn8"])
def test_plain_network_with_group_norm_in_place_equals_the_original(name):
    golden = golden_weights.load(name)
    group_norm = oracle.group_norm(golden.groups)

    def swap(call, args, kwargs, context):
        if not isinstance(context.module, nn.BatchNorm):
            return call(*args, **kwargs)
        params = context.module.variables["params"]
        return group_norm("", args[0], dict(params))

    @jax.jit
    def apply(variables, x):
        with nn.intercept_methods(swap):
            return golden.model.apply(variables, x)

    logits = apply(golden.sliceable, golden.x)
    np.testing.assert_allclose(logits, golden.logits[1.0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", golden_weights.NAMES)
def test_the_original_weights_fit_the_networks(name):
    golden = golden_weights.load(name)
    assert golden.x.shape == (4, 32, 32, 3)
    assert shapes(golden.variables) == shapes(init_shapes(golden.model))
    assert shapes(golden.grads) == shapes(golden.sliceable["params"])


# Structures without numbers of the original, against networks written by hand.


@pytest.mark.parametrize(
    ("depth", "block", "channels", "bottleneck"),
    [(14, "auto", (16, 32, 64), False), (20, "auto", (16, 32, 64), True)],
)
def test_deeper_resnets_equal_the_hand_written(depth, block, channels, bottleneck):
    model = CifarResNet(depth=depth, block=block)
    x = jax.random.normal(KEY, (2, 8, 8, 3))
    variables = scrambled(init_shapes(model, (8, 8, 3)))
    params, statistics = variables["params"], variables["batch_stats"]
    assert len(params) == 3 + 3 * 2  # conv1, bn1, fc, and two blocks in each stage

    by_name = {"bn1": statistics["bn1"]}
    for block_name, block_statistics in statistics.items():
        if block_name != "bn1":
            for norm_name, leaf in block_statistics.items():
                by_name[f"{block_name}/{norm_name}"] = leaf
    cut = oracle.cut_resnet(params, channels, bottleneck=bottleneck)
    assert shapes(cut) == shapes(params)
    expected = oracle.resnet(cut, x, oracle.batch_norm(by_name))
    logits = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_vgg_pools_after_the_first_and_the_second_stage():
    model = CifarVGG(depth=16, widen=0.25)

    def conv_outputs(key, x):
        _, state = model.init_with_output(key, x, capture_intermediates=True)
        return state["intermediates"]

    outputs = jax.eval_shape(conv_outputs, KEY, CIFAR)
    found = [outputs[f"conv{index}"]["__call__"][0].shape[1:] for index in range(13)]
    assert found == [
        *[(32, 32, 16)] * 2,
        *[(32, 32, 32)] * 2,
        *[(16, 16, 64)] * 3,
        *[(8, 8, 128)] * 6,
    ]


# Parameters, counted by hand.


def test_resnet11_has_the_parameters_counted_by_hand():
    # (inputs, inner channels, outputs) of the three bottlenecks, each with a shortcut:
    # three convolutions, the projection, and scale and bias of four norms.
    blocks = [(16, 16, 64), (64, 32, 128), (128, 64, 256)]
    expected = 3 * 9 * 16 + 2 * 256 + 256 * 10 + 10
    for inputs, inner, outputs in blocks:
        expected += inputs * inner + 9 * inner * inner + inner * outputs
        expected += inputs * outputs
        expected += 2 * (inputs + inner + inner + outputs)
    assert expected == 127_642
    assert count(init_shapes(CifarResNet(depth=11))["params"]) == expected


def test_basic_resnet8_has_the_parameters_counted_by_hand():
    # The first block has neither stride nor other channels, so no projection.
    expected = 3 * 9 * 16 + 2 * 9 * 16 * 16 + 2 * (16 + 16)
    for inputs, outputs in [(16, 32), (32, 64)]:
        expected += 9 * inputs * outputs + 9 * outputs * outputs + inputs * outputs
        expected += 2 * (inputs + outputs + outputs)
    expected += 2 * 64 + 64 * 10 + 10
    assert count(init_shapes(CifarResNet(depth=8))["params"]) == expected


@pytest.mark.parametrize(
    ("depth", "channels"),
    [
        (11, [64, 128, 256, 256, *[512] * 4]),
        (13, [64, 64, 128, 128, 256, 256, *[512] * 4]),
        (16, [64, 64, 128, 128, *[256] * 3, *[512] * 6]),
        (19, [64, 64, 128, 128, *[256] * 4, *[512] * 8]),
    ],
)
def test_vgg_has_the_parameters_counted_by_hand(depth, channels):
    expected, inputs = 0, 3
    for outputs in channels:
        expected += 9 * inputs * outputs + outputs + 2 * outputs
        inputs = outputs
    expected += 512 * 100 + 100
    variables = init_shapes(CifarVGG(depth=depth, num_classes=100))
    assert count(variables["params"]) == expected


def test_widen_equals_cutting_by_hand():
    resnet = init_shapes(CifarResNet(depth=11))["params"]
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), resnet)
    cut = oracle.cut_resnet(zeros, (8, 16, 32), bottleneck=True)
    half = init_shapes(CifarResNet(depth=11, widen=0.5))["params"]
    assert shapes(half) == shapes(cut)

    vgg = init_shapes(CifarVGG(depth=11))["params"]
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), vgg)
    cut = oracle.cut_vgg(zeros, (16, 32, 64, 64, 128, 128, 128, 128))
    quarter = init_shapes(CifarVGG(depth=11, widen=0.25))["params"]
    assert shapes(quarter) == shapes(cut)

    double = init_shapes(CifarResNet(depth=11, widen=2))["params"]
    assert double["fc"]["kernel"].shape == (512, 10)


# Initialization, training mode, types.


def test_parameters_start_as_in_pytorch():
    model = CifarVGG(depth=11, widen=0.25)
    key = jax.random.key(0, impl="rbg")  # Compiles faster than the default.
    params = jax.jit(model.init)(key, jnp.zeros((1, 8, 8, 3)))["params"]
    for name, fan_in in [("conv0", 27), ("conv3", 9 * 64), ("classifier", 128)]:
        for leaf in (params[name]["kernel"], params[name]["bias"]):
            bound = fan_in**-0.5
            assert np.abs(leaf).max() <= bound
            assert np.abs(leaf).max() > 0.75 * bound
    np.testing.assert_array_equal(params["bn0"]["scale"], 1)
    np.testing.assert_array_equal(params["bn0"]["bias"], 0)


def test_training_mode_updates_statistics_by_a_tenth():
    model = CifarResNet(depth=8)
    x = jax.random.normal(KEY, (4, 8, 8, 3))
    variables = scrambled(init_shapes(model))

    @jax.jit
    def train(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, updates = train(variables, x)
    assert logits.shape == (4, 10)
    first = jax.lax.conv_general_dilated(
        x,
        variables["params"]["conv1"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    before = variables["batch_stats"]["layer1_0"]["bn1"]
    after = updates["batch_stats"]["layer1_0"]["bn1"]
    for name, batch in [("mean", first.mean((0, 1, 2))), ("var", first.var((0, 1, 2)))]:
        expected = 0.9 * before[name] + 0.1 * batch
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("make", [CifarResNet, CifarVGG])
def test_half_precision_keeps_parameters_and_logits_in_float32(make):
    model = make(depth=11, num_classes=7, widen=0.25, dtype=jnp.bfloat16)
    variables = init_shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(model.apply, variables, CIFAR)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    jaxpr = str(jax.make_jaxpr(model.apply)(variables, CIFAR))
    convs = [line for line in jaxpr.splitlines() if "= conv_general_dilated" in line]
    assert convs and all("bf16" in line for line in convs)


# Errors.


@pytest.mark.parametrize(("depth", "blocks"), [(11, 1), (20, 2), (29, 3), (164, 18)])
def test_depth_makes_bottlenecks_where_possible(depth, blocks):
    params = init_shapes(CifarResNet(depth=depth, widen=0.25))["params"]
    assert len(params) == 3 + 3 * blocks
    assert "conv3" in params["layer1_0"]


@pytest.mark.parametrize(
    ("depth", "block", "blocks"), [(8, "auto", 1), (14, "auto", 2), (20, "basic", 3)]
)
def test_depth_makes_basic_blocks_otherwise_or_on_request(depth, block, blocks):
    params = init_shapes(CifarResNet(depth=depth, block=block))["params"]
    assert len(params) == 3 + 3 * blocks
    assert "conv3" not in params["layer1_0"]


@pytest.mark.parametrize(
    ("depth", "block", "near"),
    [
        (12, "auto", ["11 and 20 (bottleneck)", "8 and 14 (basic)"]),
        (14, "bottleneck", ["11 and 20 (bottleneck)"]),
        (29, "basic", ["26 and 32 (basic)"]),
        (2, "auto", ["11 and 20 (bottleneck)", "8 and 14 (basic)"]),
    ],
)
def test_an_impossible_depth_names_the_near_ones(depth, block, near):
    with pytest.raises(ValueError, match=f"got {depth}") as error:
        CifarResNet(depth=depth, block=block)
    for words in near:
        assert words in str(error.value)


def test_other_arguments_are_refused_with_the_expected_ones():
    with pytest.raises(ValueError, match="11, 13, 16, 19, got 12"):
        CifarVGG(depth=12)
    with pytest.raises(ValueError, match="got 'wide'"):
        CifarResNet(depth=11, block="wide")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"16 x 0\.3 = 4\.8 channels"):
        CifarResNet(depth=11, widen=0.3)
    with pytest.raises(ValueError, match="= 0 channels"):
        CifarVGG(depth=11, widen=0)


def test_images_of_another_shape_are_refused():
    model = CifarVGG(depth=11, widen=0.25)
    with pytest.raises(ValueError, match=r"got \(32, 32, 3\).*x\[None\]"):
        model.init(KEY, jnp.zeros((32, 32, 3)))
    with pytest.raises(ValueError, match=r"4 x 4 pixels.*got \(1, 3, 32, 32\)"):
        model.init(KEY, jnp.zeros((1, 3, 32, 32)))
