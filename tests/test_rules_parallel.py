"""Programs for several devices, sliced: against the same function run narrow by hand.

Four virtual devices. H is the hidden axis; where it is sharded, each device keeps the
leading part of its own shard.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mslice_jax as ms

H = 32
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 5)).astype(np.float32)
W = {
    "w1": RNG.normal(size=(5, H)).astype(np.float32),
    "b": RNG.normal(size=(1, H)).astype(np.float32),
    "w2": RNG.normal(size=(H, 3)).astype(np.float32),
}


@pytest.fixture(scope="module")
def mesh():
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    return jax.make_mesh((2, 2), ("x", "y"), (AxisType.Auto, AxisType.Auto))


def prefix(size):
    """The kept indices of a plain hidden axis."""
    return np.arange(size)


def shares(size, devices):
    """The kept indices of a sharded axis: the prefix of each device's shard."""
    per_device = H // devices
    starts = per_device * np.arange(devices)
    return (starts[:, None] + np.arange(size // devices)).reshape(-1)


def narrow(kept):
    return {"w1": W["w1"][:, kept], "b": W["b"][:, kept], "w2": W["w2"][kept]}


def mapped(mesh, f, in_specs, out_specs, **how):
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **how)


def data_parallel(mesh):
    """Examples are sharded; the hidden axis is replicated."""

    def body(p, x):
        y = jax.nn.relu(x @ p["w1"] + p["b"]) @ p["w2"]
        return y - lax.pmean(y.mean(0, keepdims=True), "x")

    return lambda p, x: mapped(mesh, body, (P(), P("x")), P("x"))(p, x)


def tensor_parallel(mesh):
    """The hidden axis is sharded; the partial results are summed."""
    specs = {"w1": P(None, "y"), "b": P(None, "y"), "w2": P("y")}

    def body(p, x):
        h = jax.nn.gelu(x @ p["w1"] + p["b"])
        h = h - lax.pmean(h.mean(-1, keepdims=True), "y")
        return lax.psum(h @ p["w2"], "y")

    return lambda p, x: mapped(mesh, body, (specs, P()), P())(p, x)


def norms_over_shards(mesh):
    """An RMS norm over the full hidden axis, written in two ways."""
    specs = {"w1": P(None, "y"), "b": P(None, "y"), "w2": P("y")}

    def body(p, x):
        h = x @ p["w1"] + p["b"]
        count = h.shape[-1] * lax.axis_size("y")
        h = h * lax.rsqrt(lax.psum(jnp.sum(h * h, -1, keepdims=True), "y") / count)
        h = h + lax.pmean(jnp.sum(h, -1, keepdims=True), "y") / h.shape[-1]
        return lax.psum(h @ p["w2"], "y")

    return lambda p, x: mapped(mesh, body, (specs, P()), P())(p, x)


def both_axes_of_the_mesh(mesh):
    specs = {"w1": P(None, ("x", "y")), "b": P(None, ("x", "y")), "w2": P(("x", "y"))}

    def body(p, x):
        return lax.psum(jnp.tanh(x @ p["w1"] + p["b"]) @ p["w2"], ("x", "y"))

    return lambda p, x: mapped(mesh, body, (specs, P()), P())(p, x)


def gathered_weights(mesh):
    """Weights are sharded, and gathered where they are used (FSDP)."""
    specs = {"w1": P(None, "y"), "b": P(None, "y"), "w2": P("y")}

    def body(p, x):
        w1 = lax.all_gather(p["w1"], "y", axis=1, tiled=True)
        b = lax.all_gather(p["b"], "y").reshape(1, -1)
        h = jax.nn.relu(x @ w1 + b)
        part = lax.psum_scatter(h, "y", scatter_dimension=1, tiled=True) / 2
        return lax.psum(part @ p["w2"], "y")

    return lambda p, x: mapped(mesh, body, (specs, P()), P(), check_vma=False)(p, x)


def scattered_apart(mesh):
    """A sum of which each device gets one part, by an axis of as many parts."""
    specs = {"w1": P(), "b": P(), "w2": P("y")}

    def body(p, x):
        h = (x @ p["w1"] + p["b"]).reshape(len(x), 2, -1)
        part = lax.psum_scatter(h, "y", scatter_dimension=1) / 2
        return lax.psum(jnp.tanh(part) @ p["w2"], "y")

    return lambda p, x: mapped(mesh, body, (specs, P()), P(), check_vma=False)(p, x)


def rows_exchanged(mesh):
    """Rows are permuted and resharded; the hidden axis is replicated."""

    def body(p, x):
        h = jnp.tanh(x @ p["w1"] + p["b"])
        h = lax.ppermute(h, "x", [(0, 1), (1, 0)])
        h = lax.all_to_all(h, "x", split_axis=0, concat_axis=0, tiled=True)
        return h @ p["w2"]

    return lambda p, x: mapped(mesh, body, (P(), P("x")), P("x"))(p, x)


def result_of_shards(mesh):
    """The hidden axis leaves in shards and is used outside."""

    def body(w, x):
        return jnp.tanh(x @ w)

    def apply(p, x):
        h = mapped(mesh, body, (P(None, "y"), P("x")), P("x", "y"))(p["w1"], x)
        return (h + p["b"]) @ p["w2"]

    return apply


def one_axis_by_hand(mesh):
    """'y' is manual; 'x' is left to the compiler."""
    specs = {"w1": P(None, "y"), "b": P(None, "y"), "w2": P("y")}

    def body(p, x):
        return lax.psum(jnp.tanh(x @ p["w1"] + p["b"]) @ p["w2"], "y")

    return lambda p, x: mapped(mesh, body, (specs, P()), P(), axis_names={"y"})(p, x)


def scanned(mesh):
    specs = {"w1": P(None, "y"), "b": P(None, "y"), "w2": P("y")}

    def body(p, x):
        def step(h, _):
            return jax.checkpoint(lambda h: jax.nn.silu(h + p["b"]))(h), h.sum()

        h, sums = lax.scan(step, x @ p["w1"], None, length=3)
        return lax.psum(h @ p["w2"] + sums.sum(), "y")

    return lambda p, x: mapped(mesh, body, (specs, P()), P())(p, x)


CASES = {
    "data_parallel": (data_parallel, prefix(8)),
    "tensor_parallel": (tensor_parallel, shares(8, 2)),
    "norms_over_shards": (norms_over_shards, shares(8, 2)),
    "both_axes_of_the_mesh": (both_axes_of_the_mesh, shares(8, 4)),
    "gathered_weights": (gathered_weights, shares(8, 2)),
    "scattered_apart": (scattered_apart, shares(8, 2)),
    "rows_exchanged": (rows_exchanged, prefix(8)),
    "result_of_shards": (result_of_shards, shares(8, 2)),
    "one_axis_by_hand": (one_axis_by_hand, shares(8, 2)),
    "scanned": (scanned, shares(8, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_shard_map(mesh, name):
    make, kept = CASES[name]
    apply = jax.jit(make(mesh))
    net = ms.upgrade(apply, W, X, rates=(0.25, 1.0))
    assert len(net.plan.groups) == 1
    sliced = ms.slice_apply(net, X, 0.25)
    np.testing.assert_allclose(sliced, apply(narrow(kept), X), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(
        ms.slice_apply(net, X, 1.0), apply(W, X), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("name", ["one_axis_by_hand", "gathered_weights"])
def test_what_a_shard_map_says_stays(mesh, name):
    """The mesh, its axes by hand, how arrays are partitioned, and what is checked."""
    make, kept = CASES[name]
    apply = make(mesh)
    net = ms.upgrade(apply, W, X, rates=(0.25, 1.0), check=False)

    def says(run, p):
        (eqn,) = found(jax.make_jaxpr(run)(p).jaxpr)
        return {k: v for k, v in eqn.params.items() if k != "jaxpr"}

    def found(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "shard_map":
                yield eqn
            elif "jaxpr" in eqn.params:
                yield from found(eqn.params["jaxpr"].jaxpr)

    narrow_ = says(lambda net: ms.slice_apply(net, X, 0.25), net)
    assert narrow_ == says(lambda p: apply(p, X), narrow(kept))


def test_a_number_that_counts_units_of_all_devices(mesh):
    """sqrt(32) of two times 16 units is sqrt(8) of two times 4; read off the trace."""
    specs = {"w1": P(None, "y"), "b": P(None, "y"), "w2": P("y")}

    def body(p, x):
        h = x @ p["w1"] + p["b"]
        norm = jnp.sqrt(lax.psum(jnp.sum(h * h, -1, keepdims=True), "y"))
        return lax.psum((h / (norm / np.sqrt(32))) @ p["w2"], "y")

    apply = mapped(mesh, body, (specs, P()), P())
    net = ms.upgrade(apply, W, X, rates=(0.25, 1.0), check=False)
    for rate, number in ((0.25, "2.8284"), (1.0, "5.6568")):
        program = jax.make_jaxpr(lambda net, r=rate: ms.slice_apply(net, X, r))(net)
        assert f" {number}" in str(program)


@pytest.mark.parametrize("name", ["data_parallel", "tensor_parallel", "scanned"])
def test_gradients_through_shard_map(mesh, name):
    make, kept = CASES[name]
    apply = make(mesh)
    net = ms.upgrade(apply, W, X, rates=(0.25, 1.0))
    grads = jax.jit(
        jax.grad(lambda net: jnp.sum(jnp.cos(ms.slice_apply(net, X, 0.25))))
    )(net).variables
    by_hand = jax.jit(jax.grad(lambda p: jnp.sum(jnp.cos(apply(p, X)))))(narrow(kept))
    for leaf, axis in (("w1", 1), ("b", 1), ("w2", 0)):
        full = np.asarray(grads[leaf])
        np.testing.assert_allclose(
            np.take(full, kept, axis), by_hand[leaf], rtol=1e-5, atol=1e-5
        )
        assert not np.any(np.delete(full, kept, axis))


def test_a_sharding_constraint_is_kept(mesh):
    """Also on an axis that narrows; the narrow program has it too."""
    spec = NamedSharding(mesh, P("x", "y"))

    def apply(p, x):
        h = lax.with_sharding_constraint(jnp.tanh(x @ p["w1"] + p["b"]), spec)
        return h @ p["w2"]

    net = ms.upgrade(apply, W, X, rates=(0.25, 1 / 16, 1.0))
    program = jax.make_jaxpr(lambda net: ms.slice_apply(net, X, 0.25))(net)
    assert "sharding_constraint" in str(program)
    for rate, size in ((0.25, 8), (1 / 16, 4), (1.0, H)):
        np.testing.assert_allclose(
            ms.slice_apply(net, X, rate),
            jnp.tanh(X @ W["w1"][:, :size] + W["b"][:, :size]) @ W["w2"][:size],
            rtol=1e-5,
            atol=1e-5,
        )


def test_explicit_shardings():
    """Shardings that are part of the types: reshard, and dots that name theirs."""
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    mesh = jax.make_mesh((2, 2), ("x", "y"), (AxisType.Explicit, AxisType.Explicit))

    def apply(p, x):
        x = jax.sharding.reshard(x, P("x", None))
        w1 = jax.sharding.reshard(p["w1"], P(None, "y"))
        h = jnp.dot(x, w1, out_sharding=P("x", "y"))
        h = jnp.tanh(h + jax.sharding.reshard(p["b"], P(None, "y")))
        return jnp.dot(
            jax.sharding.reshard(h, P("x", None)), p["w2"], out_sharding=P("x", None)
        )

    with jax.set_mesh(mesh):
        net = ms.upgrade(apply, W, X, rates=(0.25, 1.0))
        sliced = ms.slice_apply(net, X, 0.25)
        by_hand = jax.jit(apply)(narrow(prefix(8)), X)
    np.testing.assert_allclose(sliced, by_hand, rtol=2e-6, atol=2e-6)


def test_a_later_call_on_devices_does_not_fit_a_plan_made_without(mesh):
    """A plain plan keeps a prefix of the whole axis, not one of each shard."""
    sharded = tensor_parallel(mesh)

    def apply(p, x, parallel=False):
        if parallel:
            return sharded(p, x)
        return jnp.tanh(x @ p["w1"] + p["b"]) @ p["w2"]

    net = ms.upgrade(apply, W, X, rates=(0.25, 1.0))
    with pytest.raises(ms.PlanError, match="splits it .shard_map"):
        ms.slice_apply(net, X, 0.25, parallel=True)
    # The other way round the plan fits both.
    net = ms.upgrade(apply, W, X, rates=(0.25, 1.0), parallel=True)
    kept = narrow(shares(8, 2))
    plain = np.tanh(X @ kept["w1"] + kept["b"]) @ kept["w2"]
    np.testing.assert_allclose(
        ms.slice_apply(net, X, 0.25, parallel=False), plain, rtol=1e-5, atol=1e-5
    )


def test_inside_of_shard_map(mesh):
    """slice_apply of a function that uses collectives."""

    def apply(p, x):
        y = jnp.tanh(x @ p["w1"] + p["b"]) @ p["w2"]
        return y - lax.pmean(y.mean(0, keepdims=True), "x")

    def plain(p, x):
        y = jnp.tanh(x @ p["w1"] + p["b"]) @ p["w2"]
        return y - y.mean(0, keepdims=True)

    def body(p, x):
        net = ms.upgrade(apply, p, x, rates=(0.25, 1.0))
        return ms.slice_apply(net, x, 0.25)

    out = jax.jit(mapped(mesh, body, (P(), P("x")), P("x"), check_vma=False))(W, X)
    np.testing.assert_allclose(out, plain(narrow(prefix(8)), X), rtol=1e-5, atol=1e-5)
