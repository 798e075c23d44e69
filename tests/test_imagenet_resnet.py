"""ResNets for ImageNet: the parameters of the literature, and slicing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.models import ImageNetResNet
from tests.compiling import QUICK

SMALL = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")


def shapes(**kwargs):
    model = ImageNetResNet(**kwargs)
    return jax.eval_shape(model.init, jax.random.key(0), SMALL)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# From torchvision's documentation.
@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(50, 25_557_032), (101, 44_549_160)],
)
def test_parameters_are_those_of_the_literature(depth, parameters):
    assert count(shapes(depth=depth)["params"]) == parameters


def test_images_are_halved_five_times():
    # By the stem, its pooling, and the first block of the last three stages; the mean
    # then runs over 7 x 7 positions.
    model = ImageNetResNet(depth=50)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    names = [f"layer{stage}_0" for stage in (1, 2, 3, 4)]

    def blocks(key, x):
        variables = model.init(key, x)
        found = model.apply(variables, x, capture_intermediates=True, mutable=True)[1]
        return [found["intermediates"][name]["__call__"][0] for name in names]

    found = jax.eval_shape(blocks, jax.random.key(0), x)
    expected = [(56, 256), (28, 512), (14, 1024), (7, 2048)]
    assert [(y.shape[1], y.shape[3]) for y in found] == expected


@pytest.mark.parametrize("depth", [20, 0, 51])
def test_an_unknown_depth(depth):
    with pytest.raises(ValueError, match="50, 101, 152, got"):
        ImageNetResNet(depth=depth)


def narrow_count(width, classes):
    """Parameters of ResNet-50 whose first stage has `width` channels, by hand."""
    total, channels = 7 * 7 * 3 * width + 2 * width, width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width * 2**stage
        outer = 4 * inner
        for index in range(blocks):
            total += channels * inner + 9 * inner**2 + inner * outer
            total += 2 * (inner + inner + outer)
            if index == 0:
                total += channels * outer + 2 * outer
            channels = outer
    return total + channels * classes + classes


def test_upgraded_it_has_the_parameters_of_the_rate():
    variables = shapes(depth=50)
    assert count(variables["params"]) == narrow_count(64, 1000)
    rates = (0.25, 0.5, 0.75, 1.0)
    model = ImageNetResNet(depth=50)
    net = ms.upgrade(model, variables, SMALL, rates=rates, norm="shared")
    for rate in rates:
        params = ms.extract(net, rate).variables["params"]
        assert count(params) == narrow_count(int(64 * rate), 1000)


@pytest.mark.nightly
def test_upgraded_it_equals_the_narrow_network():
    model = ImageNetResNet(depth=50, num_classes=5, widen=0.25)
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    # Programs that run once: optimizing them takes LLVM longer than they run.
    jit = functools.partial(jax.jit, compiler_options=QUICK)
    variables = jit(model.init)(jax.random.key(0), x)
    net = ms.upgrade(model, variables, x, rates=(0.5, 1.0), norm="shared")
    small = ImageNetResNet(depth=50, num_classes=5, widen=0.125)
    expected = jit(small.apply)(ms.extract(net, 0.5).variables, x)
    assert float(jnp.std(expected)) > 1e-3
    found = jit(lambda net: ms.slice_apply(net, x, 0.5))(net)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
