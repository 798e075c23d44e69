r"""Other kinds of trees of variables: FrozenDict, slashes in names, boxes of Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict, freeze

import mslice_jax as ms
from mslice_jax.core.paths import path_names

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 5)).astype(np.float32)
W1 = RNG.normal(size=(5, 12)).astype(np.float32)
W2 = RNG.normal(size=(5, 12)).astype(np.float32)
OUT = RNG.normal(size=(12, 3)).astype(np.float32)
RATES = (0.5, 1.0)


def close(found, want):
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_names_with_slashes_are_distinguished():
    """{'a/b'} and {'a': {'b'}} read alike, and are different arrays."""
    tree = {"a/b": W1, "a": {"b": OUT}}

    def net(p, x):
        return jnp.tanh(x @ p["a/b"]) @ p["a"]["b"]

    want = np.tanh(X @ W1[:, :6]) @ OUT[:6]
    sliceable = ms.upgrade(net, tree, X, rates=RATES)
    close(ms.slice_apply(sliceable, X, 0.5), want)
    small = ms.extract(sliceable, 0.5)
    assert small.variables["a/b"].shape == (5, 6)
    assert small.variables["a"]["b"].shape == (6, 3)
    close(ms.slice_apply(small, X, 0.5), want)
    kept = sliceable.plan.mask(tree, 0.5)
    assert [kept["a/b"].sum(), kept["a"]["b"].sum()] == [5 * 6, 6 * 3]
    close(ms.slice_apply(ms.reorder(sliceable), X, 1.0), net(tree, X))
    (group,) = sliceable.plan.groups.values()
    assert sorted(group.leaves) == [("a/b", 0), (r"a\/b", 1)]
    details = ms.report(sliceable).details()
    assert r"a\/b:1 = 12*" in details
    assert "a/b:0 = 12*" in details


def test_names_with_slashes_of_one_shape_follow_their_patterns():
    tree = {"a/b": W1, "a": {"b": W2}, "c": {"d/e": OUT}, "f": OUT}

    def net(p, x):
        first = jnp.tanh(x @ p["a/b"]) @ p["c"]["d/e"]
        return first + jnp.tanh(x @ p["a"]["b"]) @ p["f"]

    for exclude, widths in ((r"a\/b", (12, 6)), ("a/b", (6, 12))):
        sliceable = ms.upgrade(net, tree, X, rates=RATES, exclude=exclude)
        first, second = widths
        want = np.tanh(X @ W1[:, :first]) @ OUT[:first]
        want += np.tanh(X @ W2[:, :second]) @ OUT[:second]
        close(ms.slice_apply(sliceable, X, 0.5), want)
    assert sliceable.plan.leaf("c/d/e") is not None  # an unambiguous name is unchanged


def test_updates_of_names_with_slashes():
    def net(variables, x, mutable=()):
        p, s = variables["params"], variables["stats"]
        h = x @ p["w"]
        new = {"m/n": s["m/n"] + h.sum(0), "m": {"n": s["m"]["n"] - 1}}
        y = h @ p["v"]
        return (y, {"stats": new}) if mutable else y

    stats = {"m/n": np.zeros(12, "f"), "m": {"n": np.ones((12, 2), "f")}}
    variables = {"params": {"w": W1, "v": OUT}, "stats": stats}
    sliceable = ms.upgrade(net, variables, X, rates=RATES, mutable=["stats"])
    _, updates = ms.slice_apply(sliceable, X, 0.5, mutable=["stats"])
    want = np.r_[(X @ W1[:, :6]).sum(0), np.zeros(6)]
    close(updates["stats"]["m/n"], want)
    assert updates["stats"]["m"]["n"].shape == (12, 2)


def test_no_two_paths_have_one_name():
    paths = [
        ("a/b",),
        ("a", "b"),
        ("a\\", "b"),
        ("a\\/b",),
        ("c/d", "e"),
        ("c", "d", "e"),
    ]
    names = path_names(paths)
    assert len(set(names)) == len(paths)
    assert path_names([("x/y", "z"), ("x", "y")]) == ["x/y/z", "x/y"]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        h = nn.BatchNorm(use_running_average=not train)(nn.Dense(12)(x))
        return nn.Dense(3)(nn.relu(h))


@pytest.mark.parametrize("norm", ("group", "switchable", "shared"))
def test_frozen_dicts_at_any_depth(norm):
    tree = Net().init(jax.random.key(0), X)
    net = ms.upgrade(Net(), tree, X, rates=RATES, norm=norm)
    want = ms.slice_apply(net, X, 0.5)
    deep = {"params": {k: freeze(v) for k, v in tree["params"].items()}}
    stats = {"batch_stats": freeze(tree["batch_stats"])}
    for frozen in (freeze(tree), {**tree, **stats}, {**deep, **stats}):
        again = ms.upgrade(Net(), frozen, X, rates=RATES, norm=norm)
        close(ms.slice_apply(again, X, 0.5), want)
        nodes = jax.tree.leaves(
            again.variables, is_leaf=lambda x: isinstance(x, FrozenDict)
        )
        assert not any(isinstance(node, FrozenDict) for node in nodes)
        assert jax.tree.structure(again) == jax.tree.structure(net)
    # Given later they keep their type.
    later = net.replace({k: freeze(v) for k, v in net.variables.items()})
    close(ms.slice_apply(later, X, 0.5), want)
    close(ms.slice_apply(ms.extract(later, 0.5), X, 0.5), want)
    close(net.module.apply(freeze(net.variables), X, rate=0.5), want)
    if norm != "group":
        call = {"train": True, "mutable": ["batch_stats"]}
        (_, ours), (_, theirs) = (
            ms.slice_apply(n, X, 0.5, **call) for n in (later, net)
        )
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            close(a, b)


class Boxed(nn.Module):
    """Kernels with names of mesh axes, and an unread parameter."""

    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        h = nn.tanh(nn.Dense(12, kernel_init=init, use_bias=False)(x))
        if self.is_initializing():
            self.param("idle", nn.initializers.ones, (7,))
        return nn.Dense(3, kernel_init=init, use_bias=False)(h)


@pytest.mark.parametrize("boxed", (True, False))
def test_variables_in_boxes_and_out_of_them(boxed):
    tree = Boxed().init(jax.random.key(0), X)
    plain = nn.unbox(tree)["params"]
    w1, w2 = (np.asarray(plain[f"Dense_{i}"]["kernel"]) for i in range(2))
    want = np.tanh(X @ w1[:, :6]) @ w2[:6]
    net = ms.upgrade(Boxed(), tree if boxed else nn.unbox(tree), X, rates=RATES)
    close(ms.slice_apply(net, X, 0.5), want)
    small = ms.extract(net, 0.5)
    close(ms.slice_apply(small, X, 0.5), want)
    kernel = small.variables["params"]["Dense_0"]["kernel"]
    assert isinstance(kernel, nn.Partitioned) == boxed
    spec = nn.get_partition_spec(small.variables)["params"]["Dense_0"]["kernel"]
    assert spec == (jax.P(None, "model") if boxed else jax.P())
    close(ms.slice_apply(ms.reorder(net), X, 1.0), Boxed().apply(tree, X))
    close(net.module.apply(net.variables, X, rate=0.5), want)
    fresh = net.module.init(jax.random.key(0), X)
    assert jax.tree.structure(fresh) == jax.tree.structure(net.variables)
    by_name = {"Dense_0/kernel:1": 0.5}
    close(ms.slice_apply(net, X, by_name), want)
    with pytest.raises(ms.PlanError, match="nothing in this network can narrow"):
        ms.upgrade(Boxed(), tree, X, rates=RATES, exclude="Dense_0/kernel:1")
