"""Sums of norms on CPU: the same numbers, from another program."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mslice_jax as ms
from mslice_jax.cpu import sums
from tests.convolutions import assert_close, own_programs

# shape, summed axes, whether it is an inner sum, and the shape that is summed last
SUMS = {
    "group_norm": ((2, 3, 4, 5, 6), (1, 2, 4), True, (2, 5, 6)),
    "short_rows": ((2, 3, 4, 2, 3), (1, 2, 4), True, (2, 4, 2, 3)),
    "unsorted": ((2, 3, 4, 2, 3), (4, 2, 1), True, (2, 4, 2, 3)),
    "two_last": ((3, 4, 5, 2, 3), (0, 3, 4), True, (4, 5, 2, 3)),
    "negative_free": ((4, 5, 6), (2, 0), True, (5, 6)),
    "batch_norm": ((2, 3, 4, 5), (0, 1, 2), False, None),
    "layer_norm": ((2, 3, 4, 5), (1, 2, 3), False, None),
    "all": ((2, 3), (0, 1), False, None),
    "one_group": ((2, 3, 4, 1, 6), (1, 2, 4), False, None),
    "long": ((2, 2, 64), (0, 2), False, None),
    "little": ((2, 2, 2), (0, 2), False, None),
}


@pytest.fixture
def at_any_size(monkeypatch):
    monkeypatch.setattr(sums, "_LARGE", 20)


@pytest.mark.usefixtures("at_any_size")
@pytest.mark.parametrize("name", SUMS)
def test_sums(name):
    shape, axes, applies, between = SUMS[name]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert sums.is_inner_sum(jnp.asarray(x), {"axes": axes}) == applies
    if not applies:
        return
    for dtype, tolerance in ((jnp.float32, 1e-6), (jnp.bfloat16, 3e-2)):
        y = sums.sum_in_two(jnp.asarray(x, dtype), {"axes": axes})
        assert y.dtype == dtype
        assert_close(y.astype(np.float32), x.astype(np.float64).sum(axes), tolerance)
    text = jax.jit(functools.partial(sums.sum_in_two, params={"axes": axes}))
    barrier = next(
        x for x in text.lower(x).as_text().splitlines() if "optimization_barrier" in x
    )
    assert barrier.endswith(f"tensor<{'x'.join(map(str, between))}xf32>")


def test_sums_of_few_or_of_whole_numbers_stay():
    assert not sums.is_inner_sum(jnp.ones((8, 8, 8)), {"axes": (0, 2)})
    whole = jnp.ones((64, 64, 32), jnp.int32)
    assert not sums.is_inner_sum(whole, {"axes": (0, 2)})
    assert sums.is_inner_sum(whole.astype(jnp.float32), {"axes": (0, 2)})


class Norms(nn.Module):
    """A convolution between a group norm of Flax and one that a user writes."""

    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.GroupNorm(4)(nn.Conv(16, (3, 3))(x)))
        x = nn.Conv(16, (1, 1))(x)
        y = x.reshape(*x.shape[:-1], 4, -1)
        y = y - y.mean((1, 2, 4), keepdims=True)
        y = y / jnp.sqrt(jnp.square(y).mean((1, 2, 4), keepdims=True) + 1e-3)
        return nn.Conv(2, (1, 1))(jnp.tanh(y.reshape(x.shape)))


@pytest.fixture(scope="module")
def net_and_images():
    x = jax.random.normal(jax.random.key(0), (4, 6, 5, 3))
    model = Norms()
    variables = model.init(jax.random.key(1), x)
    return ms.upgrade(model, variables, x, rates=(0.5, 1.0), groups=4), x


def derivatives(net, x):
    def loss(net, x):
        return jnp.square(ms.slice_apply(net, x, 0.5)).sum()

    def by_x(x):
        return loss(net, x)

    def again(total, x):
        return total + jax.grad(jax.checkpoint(by_x))(x).sum(), None

    parts = x.reshape(2, 2, *x.shape[1:])
    return (
        jax.grad(loss, argnums=(0, 1))(net, x),
        jax.jvp(by_x, (x,), (jnp.cos(x),)),
        jax.jvp(jax.grad(by_x), (x,), (jnp.cos(x),)),
        jax.vmap(jax.grad(by_x))(parts),
        jax.lax.scan(again, 0.0, parts)[0],
    )


@pytest.mark.usefixtures("at_any_size")
def test_derivatives(net_and_images):
    own, plain = (jit(derivatives)(*net_and_images) for jit in (ms.jit, jax.jit))
    assert_close(own, plain, 1e-4)


@own_programs
def test_a_norm_sums_along_channels_first(net_and_images):
    net, _ = net_and_images
    x = jnp.ones((1, 32, 30, 3))

    def forward(net, x):
        return ms.slice_apply(net, x, 0.5)

    # Of each norm two sums, of two groups of four channels: over columns of 32 pixels,
    # then over rows of 30. XLA does not make one of the two, though 960 bytes are left.
    text = ms.jit(forward).lower(net, x).compile().as_text()
    sums_of = re.findall(r"= f32\[([\d,]+)\]\S* reduce\(", text)
    assert sums_of.count("1,30,2,4") == 4
    assert sums_of.count("1,2") == 4
