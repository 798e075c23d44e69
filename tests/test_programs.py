"""Calls share a program only if everything that a trace depends on is equal."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mslice_jax as ms

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 5)).astype(np.float32)
W1 = RNG.normal(size=(5, 12)).astype(np.float32)
W2 = RNG.normal(size=(12, 3)).astype(np.float32)
PARAMS = {"w1": W1, "w2": W2}
HALF = np.tanh(X @ W1[:, :6]) @ W2[:6]


def mlp(p, x):
    return jnp.tanh(x @ p["w1"]) @ p["w2"]


def upgraded(function=mlp, **options):
    return ms.upgrade(function, PARAMS, X, rates=(0.25, 0.5, 1.0), **options)


# -- settings


def draws(p, x):
    return mlp(p, x) + jax.random.uniform(jax.random.key(0), (8, 3))


def promotes(p, x):
    return mlp(p, x) * jnp.ones(3, jnp.float16)[None]


def spreads(p, x):
    return mlp(p, x) * jnp.arange(3.0, dtype=np.float32)


def counts(p, x):
    return mlp(p, x) * jnp.arange(3.0)[None]


SETTINGS = {
    "x64": (counts, lambda on: jax.enable_x64(on), (False, True)),
    "prng": (draws, jax.default_prng_impl, ("threefry2x32", "rbg")),
    "threefry": (draws, jax.threefry_partitionable, (True, False)),
    "dtypes": (promotes, jax.numpy_dtype_promotion, ("standard", "strict")),
    "ranks": (spreads, jax.numpy_rank_promotion, ("allow", "raise")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_call_uses_the_settings_of_the_moment(name):
    """As the function itself does, whichever was traced first."""
    function, setting, values = SETTINGS[name]

    def outcome(run):
        try:
            y = run()
            return str(y.dtype), np.asarray(y, np.float64)
        except (TypeError, ValueError) as error:
            return type(error).__name__, np.zeros(())

    found = []
    with setting(values[0]):
        net = ms.upgrade(function, PARAMS, X, rates=(0.5, 1.0))
    for value in (*values, values[0]):
        with setting(value):
            kind, want = outcome(lambda: function(PARAMS, X))
            got_kind, got = outcome(lambda: ms.slice_apply(net, X, 1.0))
        assert got_kind == kind
        np.testing.assert_allclose(got, want, rtol=1e-5)
        found.append((kind, want.tolist()))
    assert found[0] == found[2] != found[1]  # the setting matters


def test_the_precision_of_the_call_is_used():
    net = upgraded()

    def program():
        return str(jax.make_jaxpr(lambda net: ms.slice_apply(net, X, 0.5))(net))

    assert "HIGHEST" not in program()
    with jax.default_matmul_precision("highest"):
        assert "HIGHEST" in program()
    assert "HIGHEST" not in program()


def test_the_program_is_read_once_for_all_rates():
    traces = []

    def function(p, x):
        traces.append(x.shape)
        return mlp(p, x)

    net = upgraded(function, check=False)
    del traces[:]
    for rate in (0.25, {"*": 0.5}):
        ms.slice_apply(net, X, rate)
        jax.jit(lambda net, rate=rate: ms.slice_apply(net, X, rate))(net)
        ms.slice_apply(ms.extract(net, 0.25), X, 0.25)
    assert traces == [(8, 5)]
    ms.slice_apply(net, X[:4], 0.5)
    jax.clear_caches()
    ms.slice_apply(net, X[:4], 0.25)
    assert traces == [(8, 5), (4, 5), (4, 5)]


# -- meshes


def mesh(count, name, kind=AxisType.Auto):
    devices = jax.devices()[:count]
    return jax.make_mesh((count,), (name,), axis_types=(kind,), devices=devices)


def close(found, want=HALF):
    np.testing.assert_allclose(np.asarray(found), want, rtol=1e-4, atol=1e-5)


def test_inside_of_shard_map_under_one_mesh_after_another():
    net = upgraded()
    small = ms.extract(net, 0.5)
    for one in (mesh(4, "d"), mesh(2, "d"), mesh(2, "e")):
        (axis,) = one.axis_names
        args = {"mesh": one, "in_specs": (P(), P(axis)), "out_specs": P(axis)}
        for from_net in (net, small):
            run = jax.shard_map(lambda n, x: ms.slice_apply(n, x, 0.5), **args)
            close(jax.jit(run)(from_net, X))
    close(ms.slice_apply(net, X, 0.5))


def test_inside_of_shard_map_with_weights_that_vary():
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), upgraded())
    one = mesh(2, "d")

    def run(net, x):
        net = jax.tree.map(lambda a: a[0], net)
        return ms.slice_apply(net, x, 0.5)[None]

    specs = {"in_specs": (P("d"), P()), "out_specs": P("d")}
    both = jax.jit(jax.shard_map(run, mesh=one, **specs))(many, X)
    close(both[0])
    close(both[1], np.tanh(X @ (2 * W1)[:, :6]) @ (2 * W2)[:6])


def test_gradients_inside_of_shard_map():
    net = upgraded()

    def slope(net, x):
        return jax.grad(lambda n: (ms.slice_apply(n, x, 0.5) ** 2).sum())(net)

    specs = {"in_specs": (P(), P("d")), "out_specs": P()}
    run = jax.jit(jax.shard_map(slope, mesh=mesh(4, "d"), **specs))
    narrow = {"w1": W1[:, :6], "w2": W2[:6]}
    want = jax.grad(lambda p: (mlp(p, X) ** 2).sum())(narrow)
    for found in (slope(net, X), run(net, X)):
        close(found.variables["w1"][:, :6], want["w1"])
        close(found.variables["w2"][:6], want["w2"])


def test_pmap_and_shard_map_of_weights_that_they_close_over():
    net, parts = upgraded(), X.reshape(4, 2, 5)
    for _ in range(2):
        run = jax.pmap(lambda x: ms.slice_apply(net, x, 0.5))
        close(run(parts).reshape(8, 3))
        specs = {"in_specs": P("d"), "out_specs": P("d")}
        run = jax.shard_map(
            lambda x: ms.slice_apply(ms.extract(net, 0.5), x, 0.5),
            mesh=mesh(4, "d"), **specs,
        )  # fmt: skip
        close(jax.jit(run)(X))
        close(ms.slice_apply(net, X, 0.5))
        run = jax.pmap(lambda n, x: ms.slice_apply(n, x, 0.5), in_axes=(None, 0))
        close(run(net, parts).reshape(8, 3))


def test_explicit_meshes_one_after_another():
    """A trace, and kept weights, of one mesh are not used under another."""
    net = upgraded()
    for one in (mesh(4, "d", AxisType.Explicit), mesh(2, "e", AxisType.Explicit)) * 2:
        with jax.set_mesh(one):
            dealt = NamedSharding(one, P(one.axis_names[0]))
            there = jax.device_put(net, NamedSharding(one, P()))
            x = jax.device_put(X, dealt)
            close(ms.slice_apply(there, x, 0.5))
            close(ms.slice_apply(ms.extract(there, 0.5), x, 0.5))
            half = jax.jit(lambda n, x: ms.slice_apply(n, x, 0.5))
            assert half(there, x).sharding.is_equivalent_to(dealt, 2)
            close(half.lower(there, x).compile()(there, x))
            # The weights may stay where they are, as in JAX's own functions.
            close(ms.slice_apply(net, x, 0.5))
    close(ms.slice_apply(net, X, 0.5))


def test_weights_that_are_sharded_explicitly():
    one = mesh(2, "d", AxisType.Explicit)
    with jax.set_mesh(one):
        spec = {"w1": P(None, "d"), "w2": P("d", None)}
        places = {name: NamedSharding(one, s) for name, s in spec.items()}
        net = upgraded()
        net = net.replace(jax.device_put(net.variables, places))
        x = jax.device_put(X, NamedSharding(one, P()))

        def gathered(p, x):  # sums over devices must be explicit
            h = jnp.tanh(x @ p["w1"])
            return jnp.einsum("bh,ho->bo", h, p["w2"], out_sharding=P())

        net = ms.upgrade(gathered, net.variables, x, rates=(0.25, 0.5, 1.0))
        close(ms.slice_apply(net, x, 0.5))
        close(jax.jit(lambda n, x: ms.slice_apply(n, x, 0.5))(net, x))


# -- a second upgrade


class Net(nn.Module):
    width: int = 12
    scale: float = 1.0

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.BatchNorm(use_running_average=not train)(nn.Dense(self.width)(x))
        return nn.Dense(3)(nn.relu(h)) * np.copysign(1.0, self.scale)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(5, 12, rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.b = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(nnx.relu(self.norm(self.a(x)))))

    def other(self, p, x):
        return mlp(p, x)


NNX = Model(nnx.Rngs(0))


def linen(module=None, **options):
    module = Net() if module is None else module
    tree = module.init(jax.random.key(0), X)
    return ms.upgrade(module, tree, X, **{"rates": (0.5, 1.0), **options})


MAKERS = {
    "function": upgraded,
    "linen": linen,
    "switchable": lambda: linen(norm="switchable"),
    "sequential": lambda: linen(nn.Sequential([nn.Dense(12), nn.relu, nn.Dense(3)])),
    "method": lambda: upgraded(NNX.other),
    "nnx": lambda: ms.upgrade(NNX, X, rates=(0.5, 1.0)),
    "extracted": lambda: ms.extract(upgraded(), 0.5),
    "reordered": lambda: ms.reorder(upgraded()),
    "with a call": lambda: linen(train=False),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_second_upgrade_of_the_same_model_is_the_same_to_jax(kind):
    traces = []

    @jax.jit
    def run(net, x):
        traces.append(kind)
        return ms.slice_apply(net, x, 0.5)

    first, second = MAKERS[kind](), MAKERS[kind]()
    np.testing.assert_array_equal(run(first, X), run(second, X))
    np.testing.assert_array_equal(run(second, X), run(first, X))
    assert len(traces) == 1
    assert first.plan == second.plan
    assert hash(first.plan) == hash(second.plan)
    total = jax.tree.map(jnp.add, first, second)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(a, 2 * b)


OTHERS = {
    "module": (linen, lambda: linen(Net(width=16))),
    "zero": (lambda: linen(Net(scale=0.0)), lambda: linen(Net(scale=-0.0))),
    "number": (lambda: linen(Net(scale=1)), lambda: linen(Net(scale=1.0))),  # type: ignore
    "rates": (linen, lambda: linen(rates=(0.25, 1.0))),
    "groups": (linen, lambda: linen(groups=4)),
    "norm": (linen, lambda: linen(norm="shared")),
    "exclude": (linen, lambda: linen(exclude="Dense_1/bias")),
    "call": (linen, lambda: linen(train=False)),
    "function": (upgraded, lambda: upgraded(lambda p, x: mlp(p, x))),
    "order": (upgraded, lambda: ms.reorder(upgraded())),
    "rate": (upgraded, lambda: ms.extract(upgraded(), 0.5)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_networks_that_differ_are_not_the_same_to_jax(kind):
    a, b = (make() for make in OTHERS[kind])
    assert jax.tree.structure(a) != jax.tree.structure(b)


def test_programs_of_a_second_upgrade_are_its_own():
    """The second upgrade reads the values of the function anew."""
    box = {"scale": 1.0}

    def function(p, x):
        return mlp(p, x) * box["scale"]

    first = upgraded(function)
    close(ms.slice_apply(first, X, 0.5))
    box["scale"] = 3.0
    second = upgraded(function)
    assert first.definition == second.definition
    close(ms.slice_apply(second, X, 0.5), 3 * HALF)
    close(ms.slice_apply(first, X, 0.5))
