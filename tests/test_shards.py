"""Sharded weights: slicing moves nothing between devices, and gives the same result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import mslice_jax as ms
from tests.citizens.citizen import random_inputs, shaken
from tests.networks import CITIZENS
from tests.test_proofs import assert_close

DEVICES = 4
COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter",
)  # fmt: skip
X = random_inputs(8, 5)


def mlp(p, x):
    h = jnp.tanh(x @ p["first"])
    return jnp.tanh(h @ p["second"]) @ p["third"]


def weights():
    sizes = {"first": (5, 32), "second": (32, 64), "third": (64, 3)}
    return shaken({name: np.zeros(shape, np.float32) for name, shape in sizes.items()})


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()[:DEVICES]), ("fsdp",))


def sharded(mesh, tree):
    """Every array, sharded over its first axis that the devices divide."""

    def place(leaf):
        spec = [None] * np.ndim(leaf)
        for axis, size in enumerate(np.shape(leaf)):
            if size % DEVICES == 0:
                spec[axis] = "fsdp"
                break
        return NamedSharding(mesh, P(*spec))

    return jax.tree.map(place, tree)


def collectives(net, mesh, rate):
    """The collectives of the compiled slicing and putting back."""
    places = sharded(mesh, net.variables)
    small = jax.eval_shape(lambda tree: net.plan.slice(tree, rate), net.variables)
    narrow = jax.tree.map(lambda place, _: place, places, small)

    def there_and_back(tree, part):
        return net.plan.slice(tree, rate), net.plan.put_back(tree, part, rate)

    run = jax.jit(
        there_and_back, in_shardings=(places, narrow), out_shardings=(narrow, places)
    )
    text = run.lower(net.variables, small).compile().as_text()
    return [name for name in COLLECTIVES if name in text]


def test_slicing_a_sharded_axis_moves_nothing(mesh):
    rates = (0.25, 0.5, 1.0)
    plain = ms.upgrade(mlp, weights(), X, rates=rates)
    dealt = ms.upgrade(mlp, weights(), X, rates=rates, shards=DEVICES)
    assert collectives(plain, mesh, 0.5)  # the test finds collectives
    assert collectives(dealt, mesh, 0.5) == []


def test_every_shard_keeps_its_prefix():
    net = ms.upgrade(mlp, weights(), X, rates=(0.5, 1.0), shards=4)
    (first, second) = net.plan.groups.values()
    assert (first.size, first.span, second.size, second.span) == (8, 4, 16, 4)
    p = weights()
    hidden = np.r_[0:4, 8:12, 16:20, 24:28]
    then = np.r_[0:8, 16:24, 32:40, 48:56]
    cut = {
        "first": p["first"][:, hidden],
        "second": p["second"][hidden][:, then],
        "third": p["third"][then],
    }
    small = ms.extract(net, 0.5)
    jax.tree.map(np.testing.assert_array_equal, small.variables, cut)
    assert_close(ms.slice_apply(net, X, 0.5), mlp(cut, X))


def test_units_do_not_narrow_in_parts_of_one():
    """4 units in 4 parts would keep one of one each; so they narrow to a prefix."""

    def narrow_then_wide(p, x):
        return jnp.tanh(jnp.tanh(x @ p["first"]) @ p["second"]) @ p["third"]

    sizes = {"first": (5, 4), "second": (4, 8), "third": (8, 3)}
    p = shaken({name: np.zeros(shape, np.float32) for name, shape in sizes.items()})
    net = ms.upgrade(narrow_then_wide, p, X, rates=(0.5, 1.0), shards=4)
    (first, second) = net.plan.groups.values()
    assert (first.size, first.span, second.size, second.span) == (4, 1, 2, 4)
    then = np.r_[0, 2, 4, 6]
    cut = {
        "first": p["first"][:, :2],
        "second": p["second"][:2][:, then],
        "third": p["third"][then],
    }
    small = ms.extract(net, 0.5)
    jax.tree.map(np.testing.assert_array_equal, small.variables, cut)


def test_a_group_that_is_not_split_is_reported():
    """16 units over 8 shards are parts of two; 8 units would be parts of one."""

    def narrow_then_wide(p, x):
        return jnp.tanh(jnp.tanh(x @ p["first"]) @ p["second"]) @ p["third"]

    sizes = {"first": (5, 8), "second": (8, 16), "third": (16, 3)}
    p = shaken({name: np.zeros(shape, np.float32) for name, shape in sizes.items()})
    net = ms.upgrade(narrow_then_wide, p, X, rates=(0.5, 1.0), shards=8)
    report = ms.report(net)
    assert report.to_dict()["not_sharded"] == ["first:1"]
    assert "so that slicing moves data between devices:\n  first:1" in str(report)
    with pytest.raises(ms.PlanError, match="shards=8 splits.*\n  first:1: 8 units"):
        ms.upgrade(narrow_then_wide, p, X, rates=(0.5, 1.0), shards=8, strict=True)
    fewer = ms.upgrade(narrow_then_wide, p, X, rates=(0.5, 1.0), shards=4, strict=True)
    assert ms.report(fewer).to_dict()["not_sharded"] == []


@pytest.mark.parametrize("name", ["mlp", "vgg_group", "decoder_split", "inception"])
def test_networks_in_shards_permute(name):
    citizen = next(c for c in CITIZENS if c.name == name)
    net = ms.upgrade(
        citizen.model, citizen.variables(), *citizen.inputs,
        rates=(0.5, 1.0), shards=2, **citizen.call,
    )  # fmt: skip
    net = net.replace(shaken(net.variables))
    first, *more = citizen.inputs
    original = citizen.run_by_hand(1.0, citizen.narrow_by_hand(net.variables, 1.0))
    full = ms.slice_apply(net, first, 1.0, *more, **citizen.call)
    np.testing.assert_array_equal(full, original)
    rng = np.random.default_rng(0)
    orders = {n: rng.permutation(g.size) for n, g in net.plan.groups.items()}
    permuted = ms.slice_apply(net.permute(orders), first, 1.0, *more, **citizen.call)
    assert_close(permuted, full)
    mask = net.plan.mask(net.variables, 0.5)
    poisoned = jax.tree.map(
        lambda keep, w: np.where(keep, w, np.float32(np.nan)), mask, net.variables
    )
    half = ms.slice_apply(net, first, 0.5, *more, **citizen.call)
    clean = ms.slice_apply(net.replace(poisoned), first, 0.5, *more, **citizen.call)
    np.testing.assert_array_equal(clean, half)
    assert any(group.span % 2 == 0 for group in net.plan.groups.values())
