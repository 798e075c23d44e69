"""A Sliceable as a pytree, as a Flax module, and the cache of slice_apply."""

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mslice_jax as ms

RATES = (0.25, 0.5, 1.0)


class Net(nn.Module):
    """A batch norm, dropout, and a switch for both."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(16)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


def inputs(batch=4):
    return np.random.default_rng(0).normal(size=(batch, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def net():
    tree = Net().init(jax.random.key(0), inputs())
    return ms.upgrade(Net(), tree, inputs(), rates=RATES, norm="switchable")


def test_tree(net):
    assert [len(jax.tree.leaves(t)) for t in (net, net.variables)] == [4 + 3 * 4] * 2
    path, _ = jax.tree_util.tree_leaves_with_path(net)[0]
    assert jax.tree_util.keystr(path).startswith(".variables['batch_stats']")
    doubled = jax.tree.map(lambda x: 2 * x, net)
    assert isinstance(doubled, ms.Sliceable)
    assert doubled.plan is net.plan
    assert "0.25, 0.5, 1.0" in repr(net)


def test_optax_takes_it(net):
    optimizer = optax.sgd(0.1)
    grads = jax.grad(lambda net: ms.slice_apply(net, inputs(), 0.5).sum())(net)
    updates, _ = optimizer.update(grads, optimizer.init(net), net)
    stepped = optax.apply_updates(net, updates)
    kernel = stepped.variables["params"]["Dense_0"]["kernel"]
    old = net.variables["params"]["Dense_0"]["kernel"]
    assert np.any(kernel[:, :8] != old[:, :8])
    np.testing.assert_array_equal(kernel[:, 8:], old[:, 8:])


def test_vmap_over_inputs_and_over_networks(net):
    x = inputs()
    one = ms.slice_apply(net, x, 0.5)
    np.testing.assert_allclose(
        jax.vmap(lambda row: ms.slice_apply(net, row[None], 0.5)[0])(x), one, atol=1e-6
    )
    pair = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), net)
    both = jax.vmap(lambda net: ms.slice_apply(net, x, 0.5))(pair)
    np.testing.assert_allclose(both[0], one, atol=1e-6)


def test_weights_are_cut_once_outside_of_jit(net, compilations):
    fresh = net.replace(net.variables)
    x = inputs()
    ms.slice_apply(fresh, x, 0.5)
    kept = fresh._narrow._kept[fresh.plan.resolve(0.5)]
    with compilations() as names:
        for _ in range(3):
            ms.slice_apply(fresh, x, 0.5)
    assert names == []
    assert fresh._narrow._kept[fresh.plan.resolve(0.5)] is kept
    # Other weights are another network: the cache does not mix them.
    other = jax.tree.map(lambda a: 2 * a, fresh)
    assert not np.array_equal(
        ms.slice_apply(other, x, 0.5), ms.slice_apply(fresh, x, 0.5)
    )


def test_weights_that_a_trace_holds_as_constants_are_cut_outside_of_it(net):
    fresh, x = net.replace(net.variables), inputs()
    inside = jax.jit(lambda x: ms.slice_apply(fresh, x, 0.5))(x)
    np.testing.assert_allclose(inside, ms.slice_apply(fresh, x, 0.5), atol=1e-6)
    small = jax.jit(lambda x: ms.slice_apply(ms.extract(fresh, 0.25), x, 0.25))(x)
    np.testing.assert_allclose(small, ms.slice_apply(fresh, x, 0.25), atol=1e-6)


def test_export_with_a_free_batch_size(net):
    """One exported program for any batch, for three platforms, without a gather."""
    (b,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(
        jax.jit(lambda net, x: ms.slice_apply(net, x, 0.5)),
        platforms=["cpu", "cuda", "tpu"],
    )(net, jax.ShapeDtypeStruct((b, 5), jnp.float32))
    assert "gather" not in exported.mlir_module()
    for batch in (3, 7):
        x = inputs(batch)
        np.testing.assert_allclose(
            exported.call(net, x), ms.slice_apply(net, x, 0.5), atol=1e-6
        )


def test_numpy_leaves_are_copied(net):
    """An array that its owner changes later must not change the network."""
    tree = jax.tree.map(np.array, net.variables)
    mine = net.replace(tree)
    before = ms.slice_apply(mine, inputs(), 1.0)
    tree["params"]["Dense_0"]["kernel"][:] = 0
    np.testing.assert_array_equal(ms.slice_apply(mine, inputs(), 1.0), before)


def test_types_in_place_of_arrays(net):
    types = jax.eval_shape(lambda: net.variables)
    abstract = net.replace(types)
    assert abstract.variables == types
    half = jax.eval_shape(lambda net: ms.slice_apply(net, inputs(), 0.5), abstract)
    assert half.shape == (4, 3)


def test_parameters_with_a_norm_for_each_rate(net):
    """At 0.5: a layer of 5 x 8 and 8, one norm of 8 and 8, a layer of 8 x 3 and 3."""
    assert net.definition.parameters(0.5) == 5 * 8 + 8 + 2 * 8 + 8 * 3 + 3


def test_dropout_keys_and_training_mode(net):
    x = inputs(64)

    def run(seed):
        return ms.slice_apply(
            net, x, 0.5, train=True, mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(seed)},
        )[0]  # fmt: skip

    np.testing.assert_array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))


def test_another_batch_size_follows_the_plan(net):
    tall = ms.slice_apply(net, inputs(7), 0.5)
    np.testing.assert_allclose(
        tall[:4], ms.slice_apply(net, inputs(7)[:4], 0.5), atol=1e-6
    )


def test_static_arguments_are_distinguished_by_type():
    """1, 1.0 and True are equal, and give results of other types."""

    def scaled(p, x, factor):
        return jnp.asarray(factor) * (x @ p["a"] @ p["b"]).astype(int)

    p = {"a": jnp.ones((5, 16)), "b": jnp.ones((16, 2))}
    net = ms.upgrade(scaled, p, inputs(), 1, rates=RATES)
    kinds = [ms.slice_apply(net, inputs(), 0.5, f).dtype.kind for f in (1, 1.0, True)]
    assert kinds == ["i", "f", "i"]
    with pytest.raises(TypeError, match="hashable"):
        ms.slice_apply(net, inputs(), 0.5, {1, 2})


def test_half_precision_weights(net):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), net)
    assert (
        ms.slice_apply(half, inputs().astype(jnp.bfloat16), 0.5).dtype == jnp.bfloat16
    )


def test_extract_of_extract_is_extract(net):
    twice = ms.extract(ms.extract(net, 0.5), 0.25)
    once = ms.extract(net, 0.25)
    for a, b in zip(jax.tree.leaves(twice), jax.tree.leaves(once), strict=True):
        np.testing.assert_array_equal(a, b)
    assert once.rates == (0.25,)
    with pytest.raises(ms.RateError, match="wider than this network"):
        ms.slice_apply(once, inputs(), 0.5)


def test_extracted_network_trains_and_updates_its_own_statistics(net):
    small = ms.extract(net, 0.5)
    _, updates = ms.slice_apply(
        small, inputs(), 0.25, train=True, mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )  # fmt: skip
    got = updates["batch_stats"]["BatchNorm_0"]
    assert got["0.25"]["mean"].shape == (8,)
    assert np.any(got["0.25"]["mean"][:4])
    assert not np.any(got["0.25"]["mean"][4:])


def test_sown_intermediates_come_narrow():
    class Sows(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Dense(16)(x)
            self.sow("intermediates", "h", h)
            return nn.Dense(2)(h)

    tree = Sows().init(jax.random.key(0), inputs())
    net = ms.upgrade(Sows(), {"params": tree["params"]}, inputs(), rates=RATES)
    _, sown = ms.slice_apply(net, inputs(), 0.25, mutable=["intermediates"])
    assert sown["intermediates"]["h"][0].shape == (4, 4)


def test_a_call_that_needs_other_widths_names_them():
    """A slice in training mode alone would cut a unit of the plan in two."""

    class Moody(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            h = nn.Dense(16)(x)
            if train:
                h = jnp.sort(h, axis=-1)
            return nn.Dense(2)(h)

    tree = Moody().init(jax.random.key(0), inputs())
    net = ms.upgrade(Moody(), tree, inputs(), rates=RATES)
    with pytest.raises(ms.PlanError, match=r"Dense_0/kernel:1.*sort.*test_sliceable"):
        ms.slice_apply(net, inputs(), 0.5, train=True)


def test_module_runs_and_initialises(net):
    module, x = net.module, inputs()
    np.testing.assert_array_equal(
        module.apply(net.variables, x, rate=0.5), ms.slice_apply(net, x, 0.5)
    )
    fresh = module.init(jax.random.key(1), x)
    same = jax.tree.map(lambda a, b: a.shape == b.shape, fresh, net.variables)
    assert all(jax.tree.leaves(same))
    assert not np.array_equal(
        fresh["params"]["Dense_0"]["kernel"],
        net.variables["params"]["Dense_0"]["kernel"],
    )


def test_module_writes_statistics_and_draws_dropout(net):
    y, updates = net.module.apply(
        net.variables, inputs(), rate=0.5, train=True, mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )  # fmt: skip
    assert y.shape == (4, 3)
    old, new = net.variables["batch_stats"], updates["batch_stats"]
    assert jax.tree.map(np.shape, old) == jax.tree.map(np.shape, new)
    assert np.any(new["BatchNorm_0"]["0.5"]["mean"])


def test_modules_compose(net):
    class Pair(nn.Module):
        inner: nn.Module

        @nn.compact
        def __call__(self, x, rate):
            return nn.Dense(2)(self.inner(x, rate=rate))

    pair = Pair(net.module)
    tree = pair.init(jax.random.key(0), inputs(), 1.0)
    assert set(tree["params"]) == {"Dense_0", "inner"}
    assert pair.apply(tree, inputs(), 0.25).shape == (4, 2)


def test_upgrade_needs_types_only():
    """A plan for a network without weights."""
    types = jax.eval_shape(lambda: Net().init(jax.random.key(0), inputs()))
    x = jax.ShapeDtypeStruct((4, 5), jnp.float32)
    net = ms.upgrade(Net(), types, x, rates=RATES)
    assert net.plan.widths(0.25) == {"Dense_0/kernel:1": 2}  # of 8 groups
    assert net.plan.parameters(0.25) == 5 * 4 + 3 * 4 + 4 * 3 + 3
    small = ms.extract(net, 0.25).variables["params"]
    assert small["Dense_0"]["kernel"] == jax.ShapeDtypeStruct((5, 4), jnp.float32)


def test_report(net):
    data = ms.report(net).to_dict()
    group = data["groups"]["Dense_0/kernel:1"]
    assert (group["size"], group["unit"]) == (16, 2)
    assert group["widths"] == {"0.25": 4, "0.5": 8, "1.0": 16}
    text = str(ms.report(net))
    assert "8 x 2" in text
    assert "input of the function: params/Dense_0/kernel:0 (5)" in text
    assert "output of the function" in text


def test_a_plain_function_puts_its_statistics_back():
    def net(variables, x, mutable=()):
        p, stats = variables["params"], variables["batch_stats"]
        h = x @ p["in"]
        new = {"mean": 0.9 * stats["mean"] + 0.1 * h.mean(0)}
        y = jnp.tanh(h - (new if mutable else stats)["mean"][None]) @ p["out"]
        return (y, {"batch_stats": new}) if mutable else y

    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 5)).astype(np.float32)
    p = {"in": rng.normal(size=(5, 16)), "out": rng.normal(size=(16, 3))}
    variables = jax.tree.map(
        np.float32, {"params": p, "batch_stats": {"mean": rng.normal(size=16)}}
    )
    sliceable = ms.upgrade(net, variables, x, rates=(0.5, 1.0))
    y, updates = ms.slice_apply(sliceable, x, 0.5, mutable=["batch_stats"])
    mean = variables["batch_stats"]["mean"]
    h = x @ variables["params"]["in"][:, :8]
    new = 0.9 * mean[:8] + 0.1 * h.mean(0)
    np.testing.assert_allclose(
        updates["batch_stats"]["mean"], np.r_[new, mean[8:]], rtol=1e-5, atol=1e-6
    )
    by_hand = np.tanh(h - new) @ variables["params"]["out"][:8]
    np.testing.assert_allclose(y, by_hand, rtol=1e-4, atol=1e-5)
    # Without it there is the output alone.
    by_hand = np.tanh(h - mean[:8]) @ variables["params"]["out"][:8]
    y = ms.slice_apply(sliceable, x, 0.5)
    np.testing.assert_allclose(y, by_hand, rtol=1e-4, atol=1e-5)


def test_the_module_of_an_extracted_network(net):
    x = inputs()
    small = ms.extract(net, 0.5)
    expected = ms.slice_apply(small, x, 0.5)
    for rate in (None, 0.5):
        found = small.module.apply(small.variables, x, rate=rate)
        np.testing.assert_array_equal(found, expected)
    fresh = small.module.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, small.variables)


@pytest.mark.parametrize("norm", ["switchable", "shared"])
def test_a_module_is_initialised_in_training_mode(norm):
    """As in Flax: the statistics of the first call are not kept."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            norm = nn.BatchNorm(use_running_average=not train)
            return nn.Dense(3)(norm(nn.Dense(8)(x)))

    x = jax.random.normal(jax.random.key(0), (4, 5))
    variables = Net().init(jax.random.key(0), x)
    net = ms.upgrade(Net(), variables, x, rates=(0.5, 1.0), norm=norm)
    fresh = net.module.init(jax.random.key(1), x, train=True)
    for mean in jax.tree.leaves(fresh["batch_stats"]):
        assert set(np.unique(mean)) <= {0.0, 1.0}
