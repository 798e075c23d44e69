"""NNX models: the tree of variables, the keywords of a call, and the norms.

The proofs of every network are in `tests/test_proofs.py`, with the NNX models of
`tests/citizens/nnx_models.py` among them.
"""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mslice_jax as ms
from mslice_jax.train import TrainState, make_train_step
from tests.citizens import nnx_models
from tests.citizens.citizen import compiled, variables_of, with_variables
from tests.networks import CITIZENS, flat, kept_by_hand
from tests.test_proofs import upgraded

RATES = (0.25, 0.5, 1.0)
NAMED = {citizen.name: citizen for citizen in CITIZENS}
X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
KEY = jax.random.key(5)


def says(*words: str) -> str:
    """A pattern: all the words, in any order, upper or lower case."""
    return "(?is)" + "".join(f"(?=.*{re.escape(word)})" for word in words)


class Net(nnx.Module):
    """Two layers with a norm and dropout between, and a head."""

    def __init__(self, rngs: nnx.Rngs, norm: bool = True, width: int = 16):
        self.first = nnx.Linear(6, width, rngs=rngs)
        batch_norm = nnx.BatchNorm(width, momentum=0.75, rngs=rngs)
        self.norm: Any = batch_norm if norm else nnx.identity
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.drop(nnx.relu(self.norm(self.first(x))))
        return self.head(self.drop(nnx.relu(self.second(x))))


# The tree.


def test_the_tree_of_variables():
    class Kinds(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List([nnx.Linear(6, 16, rngs=rngs)])
            self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
            self.table = jnp.ones(16)
            self.mask = jnp.array([True, False] * 8)
            self.drop = nnx.Dropout(0.1, deterministic=True, rngs=rngs)
            self.scale = Scale({"a": jnp.ones(16)})
            self.seen = nnx.Variable(jnp.zeros(()))
            self.head = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = self.norm(self.layers[0](x)) * self.scale["a"][None] + self.table[None]
            self.seen[...] += 1
            return self.head(self.drop(jnp.where(self.mask, x, 0)))

    class Scale(nnx.Param):
        """A kind of parameter that Flax does not know."""

    model = Kinds(nnx.Rngs(0))
    net = ms.upgrade(model, X, rates=RATES, norm="shared")
    vector, square = (16,), (6, 16)
    assert jax.tree.map(np.shape, net.variables) == {
        "params": {
            "layers": {"0": {"kernel": square, "bias": vector}},
            "norm": {"scale": vector, "bias": vector},
            "scale": {"a": vector},
            "head": {"kernel": (16, 3), "bias": (3,)},
        },
        "batch_stats": {"norm": {"mean": vector, "var": vector}},
        "constants": {"table": vector},
        "Variable": {"seen": ()},
    }
    np.testing.assert_array_equal(ms.slice_apply(net, X, 1.0), compiled(model, X))
    # A captured mask narrows with what it masks.
    assert ms.slice_apply(net, X, 0.5).shape == (4, 3)
    _, updates = ms.slice_apply(net, X, 0.5, mutable=["Variable"])
    assert updates == {"Variable": {"seen": 1.0}}
    # The upgraded network can be differentiated directly: it has no key.
    jax.grad(lambda net: jnp.sum(ms.slice_apply(net, X, 0.5)))(net)


def test_a_module_used_twice_is_one():
    class Twice(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.enter = nnx.Linear(6, 16, rngs=rngs)
            mix = nnx.Sequential(
                nnx.Linear(16, 16, rngs=rngs),
                nnx.BatchNorm(16, use_running_average=True, rngs=rngs),
            )
            self.layers = nnx.List([mix, mix])
            self.by_name = nnx.Dict(mix=mix)
            self.leave = nnx.Linear(16, 6, rngs=rngs)
            self.tied = self.enter.kernel

        def __call__(self, x: jax.Array) -> jax.Array:
            x = self.by_name["mix"](self.enter(x))
            for layer in self.layers:
                x = nnx.relu(layer(x))
            return self.leave(x) + x @ self.tied[...].T

    model = Twice(nnx.Rngs(0))
    for norm in ("shared", "switchable"):
        net = ms.upgrade(model, X, rates=RATES, norm=norm)
        np.testing.assert_array_equal(ms.slice_apply(net, X, 1.0), compiled(model, X))
        assert net.plan.parameters(1.0) < 1000  # 6 * 16 + 16 * 16 + ..., once each
    net = ms.upgrade(model, X, rates=RATES)  # one group norm replaces one batch norm
    (site,) = net.definition.function.sites  # type: ignore
    norm = net.variables["params"]["by_name"]["mix"]["layers"]["1"]
    assert site == ("by_name", "mix", "layers", "1")
    assert jax.tree.map(np.shape, norm) == {"scale": (16,), "bias": (16,)}
    small = net.to_nnx(0.5)
    assert small.layers[0] is small.layers[1] is small.by_name["mix"]
    assert small.tied is small.enter.kernel
    np.testing.assert_allclose(
        compiled(small, X), ms.slice_apply(net, X, 0.5), atol=1e-5
    )


@pytest.mark.parametrize("norm", ("group", "switchable", "shared"))
def test_the_model_is_not_changed(norm):
    model: Any = Net(nnx.Rngs(0))
    graphdef = nnx.graphdef(model)
    before = jax.tree.leaves(jax.tree.map(np.array, nnx.state(model, nnx.Param)))
    stats = np.array(model.norm.mean)
    count = int(model.drop.rngs.count[...])
    net = ms.upgrade(model, X, rates=RATES, norm=norm)
    ms.slice_apply(net, X, 0.5, train=True, mutable=["batch_stats"], rngs=KEY)
    net.module.train()
    net.to_nnx(0.5)
    assert nnx.graphdef(model) == graphdef
    assert type(model.norm) is nnx.BatchNorm
    assert not model.norm.use_running_average
    assert int(model.drop.rngs.count[...]) == count
    after = jax.tree.leaves(jax.tree.map(np.array, nnx.state(model, nnx.Param)))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model.norm.mean, stats)


def test_a_model_of_types_has_a_plan():
    model: Any = nnx.eval_shape(lambda: Net(nnx.Rngs(0), norm=False))
    model.eval()
    net = ms.upgrade(model, jax.ShapeDtypeStruct((4, 6), jnp.float32), rates=RATES)
    small = ms.extract(net, 0.5).variables["params"]
    assert small["second"]["kernel"].shape == (8, 8)


# The call.


def test_train_and_eval_are_those_of_nnx():
    model: Any = Net(nnx.Rngs(0))
    net = ms.upgrade(model, X, rates=RATES, norm="shared")
    model.eval()
    np.testing.assert_array_equal(
        ms.slice_apply(net, X, 1.0, train=False), compiled(model, X)
    )
    model.train()
    nnx.reseed(model, default=KEY)
    expected = compiled(model, X)
    np.testing.assert_array_equal(
        ms.slice_apply(net, X, 1.0, train=True, rngs=KEY), expected
    )
    # The mode at `upgrade`: training, as NNX builds its layers.
    np.testing.assert_array_equal(ms.slice_apply(net, X, 1.0, rngs=KEY), expected)


def test_a_model_with_a_train_argument_gets_it():
    class Own(Net):
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            x = self.norm(self.first(x), use_running_average=not train)
            return self.head(self.drop(nnx.relu(x), deterministic=not train))

    model = Own(nnx.Rngs(0))
    net = ms.upgrade(model, X, rates=RATES, norm="shared")
    model.eval()
    np.testing.assert_array_equal(ms.slice_apply(net, X, 1.0), compiled(model, X))
    _, updates = ms.slice_apply(net, X, 0.5, train=True, mutable=["batch_stats"])
    mean = (X @ np.asarray(model.first.kernel))[:, :8].mean(0)  # the bias is zero
    new = np.asarray(updates["batch_stats"]["norm"]["mean"])
    np.testing.assert_allclose(new[:8], 0.25 * mean, atol=1e-6)
    np.testing.assert_array_equal(new[8:], 0)


def test_a_sequential_is_put_in_train_mode():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(6, 16, rngs=rngs),
        nnx.BatchNorm(16, rngs=rngs),
        nnx.Linear(16, 2, rngs=rngs),
    )
    net = ms.upgrade(model, X, rates=RATES, norm="shared", train=False)
    model.eval()
    np.testing.assert_array_equal(
        ms.slice_apply(net, X, 1.0, train=False), compiled(model, X)
    )
    assert np.any(ms.slice_apply(net, X, 1.0, train=True) != compiled(model, X))


def test_dropout_depends_on_the_key():
    net = ms.upgrade(Net(nnx.Rngs(0), norm=False), X, rates=RATES)

    def run(**kwargs: Any) -> np.ndarray:
        return np.asarray(ms.slice_apply(net, X, 0.5, train=True, **kwargs))

    first = run(rngs={"dropout": jax.random.key(1)})
    again = run(rngs={"dropout": jax.random.key(1)})
    other = run(rngs={"dropout": jax.random.key(2)})
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    np.testing.assert_array_equal(run(), run())  # deterministic


def test_streams_take_the_key_of_their_name():
    model = Net(nnx.Rngs(params=0, dropout=1), norm=False)
    net = ms.upgrade(model, X, rates=RATES)
    nnx.reseed(model, dropout=KEY)
    expected = compiled(model, X)
    for rngs in ({"dropout": KEY, "other": jax.random.key(0)}, {"default": KEY}, KEY):
        np.testing.assert_array_equal(ms.slice_apply(net, X, 1.0, rngs=rngs), expected)
    unnamed = ms.slice_apply(net, X, 1.0)
    np.testing.assert_array_equal(unnamed, ms.slice_apply(net, X, 1.0, rngs={}))


class Noisy(nnx.Module):
    """Three streams: dropout, noise, and one that a flag enables."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(6, 16, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.noise = rngs["noise"].fork()
        self.more = rngs["more"].fork()
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x: jax.Array, more: bool = False) -> jax.Array:
        h = nnx.relu(self.first(x))
        h = self.drop(h) * jax.random.bernoulli(self.noise(), 0.5, h.shape)
        if more:
            h = h + jax.random.normal(self.more(), (4, 1))
        return self.head(h)


def noisy() -> Noisy:
    return Noisy(nnx.Rngs(params=0, dropout=1, noise=2, more=3))


def test_a_stream_that_is_drawn_from_needs_a_key():
    net = ms.upgrade(noisy(), X, rates=RATES)
    other = jax.random.key(6)
    for rngs, missing in (
        ({"dropout": KEY}, ("noise",)),
        ({"elsewhere": KEY}, ("dropout", "noise")),
    ):
        with pytest.raises(ValueError, match=says("without a key", *missing)):
            ms.slice_apply(net, X, 0.5, rngs=rngs)
    # A stream that this call does not draw from needs none.
    given = {"dropout": KEY, "noise": other}
    model = noisy()
    nnx.reseed(model, **given)
    expected = compiled(model, X)
    np.testing.assert_array_equal(ms.slice_apply(net, X, 1.0, rngs=given), expected)
    with pytest.raises(ValueError, match=says("'more'", "expected a key")):
        ms.slice_apply(net, X, 1.0, True, rngs=given)
    # Streams without their own key use the common one.
    given = {"dropout": other, "default": KEY}
    model = noisy()
    nnx.reseed(model, dropout=other, noise=KEY, more=KEY)
    np.testing.assert_array_equal(
        ms.slice_apply(net, X, 1.0, rngs=given), compiled(model, X)
    )


def test_a_training_step_draws_anew_from_every_stream():
    """Each step and each stream draws anew; a repeated run draws the same."""
    net = ms.upgrade(noisy(), X, rates=RATES)
    labels, still = np.array([0, 1, 2, 0]), optax.sgd(0.0)

    def losses() -> list[float]:
        state = TrainState.create(net, still, key=KEY)
        step, found = make_train_step(still, call_kwargs={"more": True}), []
        for _ in range(3):
            state, metrics = step(state, (X, labels), (1.0,))
            found.append(float(metrics[1.0]["loss"]))
        return found

    first = losses()
    assert len(set(first)) == 3
    assert losses() == first
    seen: list[Any] = []

    def spy(variables: Any, x: jax.Array, *, rngs: Any, mutable: Any) -> Any:
        seen.append(rngs)
        return x @ variables["params"]["a"] @ variables["params"]["b"], {}

    params = {"params": {"a": jnp.ones((6, 16)), "b": jnp.ones((16, 3))}}
    call = {"rngs": {"noise": KEY}, "mutable": ["batch_stats"]}
    plain = ms.upgrade(spy, params, X, rates=RATES, **call)
    state = TrainState.create(plain, still, key=KEY)
    make_train_step(still, call_kwargs={})(state, (X, labels), (1.0,))
    assert set(seen[-1]) == {"dropout", "noise"}


def test_a_model_that_takes_a_key_gets_it():
    class Keyed(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first = nnx.Linear(6, 16, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x: jax.Array, rngs) -> jax.Array:
            h = self.drop(nnx.relu(self.first(x)))
            return self.head(h * jax.random.bernoulli(rngs, 0.5, h.shape))

    model: Any = Keyed(nnx.Rngs(params=0, dropout=1))
    net = ms.upgrade(model, X, rates=RATES, rngs=KEY)
    nnx.reseed(model, dropout=KEY)
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, key: nnx.merge(graphdef, state)(X, rngs=key))
    expected = run(state, KEY)
    np.testing.assert_array_equal(ms.slice_apply(net, X, 1.0, rngs=KEY), expected)


def test_a_model_that_takes_rngs_gets_them():
    class Takes(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first = nnx.Linear(6, 16, rngs=rngs)
            self.drop = nnx.Dropout(0.5)
            self.head = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x: jax.Array, *, rngs: nnx.Rngs) -> jax.Array:
            return self.head(self.drop(self.first(x), rngs=rngs))

    model: Any = Takes(nnx.Rngs(0))
    net = ms.upgrade(model, X, rates=RATES, rngs={"dropout": KEY})
    graphdef, state = nnx.split(model)
    run = jax.jit(
        lambda state: nnx.merge(graphdef, state)(X, rngs=nnx.Rngs(dropout=KEY))
    )
    got = ms.slice_apply(net, X, 1.0, rngs={"dropout": KEY})
    np.testing.assert_array_equal(got, run(state))


def test_stacked_layers_draw_independently():
    class Layer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linear = nnx.Linear(16, 16, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.drop(self.linear(x))

    class Stack(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            make = nnx.split_rngs(splits=3)(nnx.vmap(Layer))
            self.enter = nnx.Linear(6, 16, rngs=rngs)
            self.layers = make(rngs)
            self.leave = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            run = nnx.scan(
                lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry
            )
            return self.leave(run(self.layers, self.enter(x)))

    model = Stack(nnx.Rngs(params=0, dropout=1))
    net = ms.upgrade(model, X, rates=RATES)
    nnx.reseed(model, policy="match_shape", dropout=KEY)
    got = ms.slice_apply(net, X, 1.0, rngs={"dropout": KEY})
    np.testing.assert_array_equal(got, compiled(model, X))
    half = [ms.slice_apply(net, X, 0.5, rngs=jax.random.key(i)) for i in range(2)]
    assert np.any(half[0] != half[1])
    wide = net.module
    assert np.any(wide(X, rate=0.5) != wide(X, rate=0.5))
    still = ms.slice_apply(net, X, 0.5, train=False)
    assert net.to_nnx(0.5).layers.linear.kernel.shape == (3, 8, 8)
    wide.eval()
    np.testing.assert_array_equal(wide(X, rate=0.5), still)


@pytest.mark.parametrize("method", ("features", Net.__dict__["__call__"]))
def test_another_method(method):
    class More(Net):
        def features(self, x: jax.Array) -> jax.Array:
            return self.head(nnx.relu(self.first(x)))

    model: Any = More(nnx.Rngs(0), norm=False)
    net = ms.upgrade(model, X, rates=RATES, method=method, train=False)
    model.eval()
    expected = model.features(X) if method == "features" else model(X)
    got = ms.slice_apply(net, X, 1.0, method=method, train=False)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_one_program_for_each_rate(compilations):
    citizen = NAMED["nnx_cnn_switchable"]
    net = upgraded(citizen)
    x = jnp.asarray(citizen.inputs[0])

    @jax.jit
    def gradient(net: ms.Sliceable, x: jax.Array, key: jax.Array) -> Any:
        def loss(net: ms.Sliceable) -> jax.Array:
            rngs = {"dropout": key}
            return jnp.sum(ms.slice_apply(net, x, 0.5, train=True, rngs=rngs))

        return jax.grad(loss)(net)

    gradient(net, x, jax.random.key(0))
    other = jax.tree.map(lambda leaf: 2 * leaf, net)
    for rate in RATES:
        ms.slice_apply(net, x, rate)
    key = jax.random.key(1)
    with compilations() as names:
        gradient(other, x, key)
        for rate in RATES * 2:
            ms.slice_apply(other, x, rate)
    assert names == []


def test_training_with_the_loop_of_the_package():
    """One step over two rates: the gradients of both, summed, times the step size."""
    model = Net(nnx.Rngs(params=0, dropout=1))
    net = ms.upgrade(model, X, rates=RATES, norm="shared")
    state = TrainState.create(net, optax.sgd(0.5), key=KEY)
    labels = np.array([0, 1, 2, 0])
    state, metrics = make_train_step(optax.sgd(0.5))(state, (X, labels), (0.5, 1.0))
    assert set(metrics) == {0.5, 1.0}
    # By hand, with the keys that the step derives.
    _, dropout = jax.random.split(jax.random.fold_in(KEY, 0))
    params = dict(net.variables["params"])
    stats = jax.tree.map(np.asarray, net.variables["batch_stats"])
    total: Any = jax.tree.map(np.zeros_like, params)
    for width in (8, 16):
        cut = slice(None, width)

        def loss(params: Any, cut: Any = cut) -> jax.Array:
            small = {
                name: {
                    "kernel": params[name]["kernel"],
                    "bias": params[name]["bias"][cut],
                }
                for name in ("first", "second")
            }
            small["first"]["kernel"] = small["first"]["kernel"][:, cut]
            small["second"]["kernel"] = small["second"]["kernel"][cut, cut]
            small["norm"] = {name: a[cut] for name, a in params["norm"].items()}
            small["head"] = {
                "kernel": params["head"]["kernel"][cut],
                "bias": params["head"]["bias"],
            }
            start = {"mean": jnp.zeros(cut.stop), "var": jnp.ones(cut.stop)}
            narrow: Any = with_variables(
                Net(nnx.Rngs(params=0, dropout=1), width=cut.stop),
                {"params": small, "batch_stats": {"norm": start}},
            )
            nnx.reseed(narrow, dropout=dropout)
            logs = jax.nn.log_softmax(narrow(X))
            return -jnp.mean(logs[np.arange(4), labels])

        total = jax.tree.map(np.add, total, jax.jit(jax.grad(loss))(params))
        x = X @ np.asarray(params["first"]["kernel"])[:, cut]
        for name, new in (("mean", x.mean(0)), ("var", x.var(0))):
            old = stats["norm"][name].copy()
            old[cut] = 0.75 * old[cut] + 0.25 * new
            stats["norm"][name] = old
    got = state.net.variables
    wanted = jax.tree.map(lambda p, g: p - 0.5 * g, params, total)
    for a, b in zip(
        jax.tree.leaves(got["params"]), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            got["batch_stats"]["norm"][name], stats["norm"][name], atol=1e-5
        )


# Norms. Values at each rate are compared by the proofs, on nnx_cnn and nnx_stack.


def norms_of(net: ms.Sliceable) -> Any:
    return ms.report(net).to_dict()["norms"]


def test_trained_norms_are_shared_and_fresh_ones_become_group_norms():
    model: Any = Net(nnx.Rngs(0))
    net = ms.upgrade(model, X, rates=RATES)
    assert set(net.variables) == {"params"}
    assert norms_of(net)["strategy"] == "group" and "fresh" in norms_of(net)["why"]
    model(X)  # training mode updates the statistics
    net = ms.upgrade(model, X, rates=RATES)
    assert norms_of(net)["strategy"] == "shared" and "trained" in norms_of(net)["why"]
    model.eval()
    np.testing.assert_array_equal(
        ms.slice_apply(net, X, 1.0, train=False), compiled(model, X)
    )
    with pytest.warns(UserWarning, match="rate 1") as warned:
        net = ms.upgrade(model, X, rates=RATES, norm="group")
    assert len(warned) == 1 and warned[0].filename == __file__
    assert set(net.variables) == {"params"}
    types = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    net = ms.upgrade(types, X, rates=RATES, train=False)
    assert norms_of(net)["strategy"] == "group"
    assert "not at hand" in norms_of(net)["why"]
    assert norms_of(ms.upgrade(Net(nnx.Rngs(0), norm=False), X, rates=RATES)) is None


class Relued(nnx.BatchNorm):
    """A batch norm with its own call."""

    def __call__(self, x: jax.Array, **kwargs: Any) -> jax.Array:
        return nnx.relu(super().__call__(x, **kwargs))


class Slow(nnx.BatchNorm):
    """A batch norm with other settings, and the call of Flax."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        super().__init__(features, momentum=0.999, rngs=rngs)


class Linen(nn.Module):
    """A batch norm between two layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.BatchNorm(use_running_average=True, name="norm")(nn.Dense(16)(x))
        return nn.Dense(6)(nn.relu(x))


@pytest.mark.parametrize("norm", (None, "group", "shared", "switchable"))
def test_batch_norms_that_stay_are_named(norm):
    """Batch norms of Linen behind the bridge, and those with their own call."""

    class Both(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.linen = nnx.bridge.ToNNX(Linen(), rngs=rngs).lazy_init(X)
            self.first = nnx.Linear(6, 16, rngs=rngs)
            self.own, self.slow = Relued(16, rngs=rngs), Slow(16, rngs=rngs)
            self.head = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(self.slow(self.own(self.first(self.linen(x)))))

    model: Any = Both(nnx.Rngs(0))
    model.own.mean[...] = jnp.linspace(-1, 1, 16)
    model.linen.norm["mean"][...] = jnp.linspace(-1, 1, 16)
    model.eval()
    net = ms.upgrade(model, X, rates=RATES, norm=norm)
    found = norms_of(net)
    assert (found["count"], found["left"]) == (1, ["linen/norm", "own"])
    assert found["strategy"] == norm or (norm is None and found["strategy"] == "group")
    assert "linen/norm, own" in str(ms.report(net))
    if norm in ("shared", "switchable"):
        expected = compiled(model, X)
    else:
        h = model.own(model.first(model.linen(X)))
        group: Any = nnx.GroupNorm(16, 8, epsilon=1e-5, rngs=nnx.Rngs(0))
        expected = model.head(group(h))
    np.testing.assert_allclose(ms.slice_apply(net, X, 1.0), expected, atol=1e-5)
    if norm == "shared":
        with pytest.warns(UserWarning, match="linen/norm, own stay what they are"):
            ms.calibrate(net, [X])


def test_a_linen_module_behind_the_bridge_draws_with_the_keys_given():
    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Dropout(0.5, deterministic=False)(nn.Dense(16)(x))
            return nn.Dense(3)(x)

    rngs = nnx.Rngs(params=0, dropout=1)
    net = ms.upgrade(
        nnx.bridge.ToNNX(Dropped(), rngs=rngs).lazy_init(X), X, rates=RATES
    )
    one, two, again = (
        ms.slice_apply(net, X, 0.5, rngs={"dropout": jax.random.key(seed)})
        for seed in (1, 2, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.any(one != two)


def test_calibrate_a_norm_with_an_axis_name():
    model: Any = Net(nnx.Rngs(0))
    model.norm.axis_name = "devices"
    net = ms.upgrade(model, X, rates=RATES, norm="shared", train=False)
    found = ms.calibrate(net, [X], train=False).variables["batch_stats"]["norm"]["0.5"]
    expected = (X @ np.asarray(model.first.kernel)[:, :8]).mean(0)
    np.testing.assert_allclose(found["mean"][:8], expected, atol=1e-6)


@pytest.mark.parametrize("name", ("nnx_cnn_shared", "nnx_stack_shared"))
def test_training_puts_the_narrow_statistics_back(name):
    citizen, rate = NAMED[name], 0.5
    net = upgraded(citizen)
    (x,) = citizen.inputs
    kwargs = {"train": True, "mutable": ["batch_stats"]}
    got, updates = ms.slice_apply(net, x, rate, **kwargs)
    narrow = citizen.narrow_by_hand(net.variables, rate)
    wanted, statistics = citizen.function_by_hand(rate)(narrow, x, **kwargs)
    if "cnn" not in name:  # its dropout differs at another width
        np.testing.assert_allclose(got, wanted, atol=2e-5)
    expected = flat(net.variables)
    new = flat(statistics["batch_stats"])
    expected[kept_by_hand(citizen, rate)[: new.size]] = new
    result = flat({**net.variables, **updates})
    np.testing.assert_allclose(result, expected, atol=2e-5)
    assert np.any(result != flat(net.variables))


def test_switchable_statistics_of_one_rate_are_updated():
    model: Any = Net(nnx.Rngs(0))
    net = ms.upgrade(model, X, rates=RATES, norm="switchable")
    kwargs = {"train": True, "mutable": ["batch_stats"], "rngs": KEY}
    _, updates = ms.slice_apply(net, X, 0.5, **kwargs)
    new = updates["batch_stats"]["norm"]
    mean = (X @ np.asarray(model.first.kernel)).mean(0)
    expected = np.where(np.arange(16) < 8, 0.25 * mean, 0)
    np.testing.assert_allclose(new["0.5"]["mean"], expected, atol=1e-6)
    for rate in ("0.25", "1.0"):
        np.testing.assert_array_equal(new[rate]["mean"], np.zeros(16))
    small = ms.extract(net, 0.5)
    assert set(small.variables["params"]["norm"]) == {"0.25", "0.5"}


@pytest.mark.parametrize("axis", (1, -1, 2))
def test_group_norm_along_another_axis(axis):
    class Moved(nnx.Module):
        def __init__(self, axis: int, rngs: nnx.Rngs):
            self.first = nnx.Linear(6, 16, rngs=rngs)
            self.norm = nnx.BatchNorm(16, axis=axis, rngs=rngs)
            self.head = nnx.Linear(16, 3, rngs=rngs)
            self.axis = axis

        def __call__(self, x: jax.Array) -> jax.Array:
            x = jnp.moveaxis(self.first(x), -1, self.axis)
            x = self.norm(x, use_running_average=True)
            return self.head(jnp.moveaxis(x, self.axis, -1))

    x = X.reshape(2, 2, 6)
    model: Any = Moved(axis, nnx.Rngs(0))
    model.norm.scale[...] = jnp.linspace(0.5, 2, 16)
    model.norm.bias[...] = jnp.linspace(-1, 1, 16)
    net = ms.upgrade(model, x, rates=RATES)
    for rate, width in zip(RATES, (4, 8, 16), strict=True):
        h = x @ np.asarray(model.first.kernel)[:, :width]
        h = h.reshape(2, 2, width // 2, 2)  # 8 groups of 2, cut at the rate
        mean, var = (f(h, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
        h = ((h - mean) / np.sqrt(var + 1e-5)).reshape(2, 2, width)
        h = h * np.linspace(0.5, 2, 16)[:width] + np.linspace(-1, 1, 16)[:width]
        expected = h @ np.asarray(model.head.kernel)[:width]
        np.testing.assert_allclose(ms.slice_apply(net, x, rate), expected, atol=3e-5)
        np.testing.assert_allclose(net.to_nnx(rate)(x), expected, atol=3e-5)


def test_calibrate():
    """Statistics over all batches as over one, for each rate separately."""
    model: Any = Net(nnx.Rngs(0))
    model.norm.scale[...] = jnp.linspace(0.5, 2, 16)
    net = ms.upgrade(model, X, rates=RATES, norm="shared", train=False)
    rng = np.random.default_rng(1)
    batches = [rng.normal(size=(n, 6)).astype(np.float32) for n in (8, 4, 8)]
    calibrated = ms.calibrate(net, batches, train=False)
    x = np.concatenate(batches)
    first, second, head = (
        np.asarray(layer.kernel) for layer in (model.first, model.second, model.head)
    )
    for rate, width in zip(RATES, (4, 8, 16), strict=True):
        stats = calibrated.variables["batch_stats"]["norm"][str(rate)]
        h = x @ first[:, :width]
        np.testing.assert_allclose(stats["mean"][:width], h.mean(0), atol=1e-5)
        np.testing.assert_allclose(stats["var"][:width], h.var(0), rtol=1e-4)
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * np.linspace(0.5, 2, 16)[:width]
        h = np.maximum(np.maximum(h, 0) @ second[:width, :width], 0)
        expected = h @ head[:width]
        got = ms.slice_apply(calibrated, x, rate, train=False)
        np.testing.assert_allclose(got, expected, atol=2e-5)
        # The narrow model has the statistics of its rate, in a plain batch norm.
        small = calibrated.to_nnx(rate)
        small.eval()
        np.testing.assert_allclose(small(x), expected, atol=2e-5)
        np.testing.assert_array_equal(small.norm.mean, stats["mean"][:width])
    assert calibrated.variables["params"] is net.variables["params"]


def test_calibrate_ignores_the_mode_of_the_call():
    class Fixed(Net):
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(self.norm(self.first(x), use_running_average=True))

    model = Fixed(nnx.Rngs(0))
    net = ms.upgrade(model, X, rates=RATES, norm="shared")
    stats = ms.calibrate(net, [X]).variables["batch_stats"]["norm"]["0.5"]
    expected = (X @ np.asarray(model.first.kernel)[:, :8]).mean(0)
    np.testing.assert_allclose(stats["mean"][:8], expected, atol=1e-6)


# Bad input.


def test_the_model_is_given_with_variables():
    model: Any = Net(nnx.Rngs(0))
    for variables in (variables_of(model), nnx.state(model), nnx.graphdef(model)):
        with pytest.raises(
            ValueError, match=says("own variables", "upgrade(model, *in")
        ):
            ms.upgrade(model, variables, X, rates=RATES)


@pytest.mark.parametrize("kind", (Net, nn.Dense))
def test_a_class_instead_of_a_model(kind):
    with pytest.raises(TypeError, match=says(f"class {kind.__name__}", "first")):
        ms.upgrade(kind, X, rates=RATES)


def test_a_linen_module_without_variables():
    with pytest.raises(
        ValueError, match=says("module.init", "got Array", "variables, *")
    ):
        ms.upgrade(nn.Dense(3), X, rates=RATES)


def test_a_model_of_an_unknown_type():
    with pytest.raises(TypeError, match=says("Linen or NNX", "function", "int")):
        ms.upgrade(3, X, rates=RATES)


def test_streams_instead_of_keys():
    net = ms.upgrade(Net(nnx.Rngs(0)), X, rates=RATES)
    with pytest.raises(TypeError, match=says("rngs", "key", "rngs.dropout()")):
        ms.slice_apply(net, X, 0.5, rngs=nnx.Rngs(0))


def test_a_batch_norm_that_cannot_be_a_group_norm():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(6, 16, rngs=rngs),
        nnx.BatchNorm(16, axis=(1,), rngs=rngs),  # type: ignore
    )
    with pytest.raises(ValueError, match=says("one axis", "(1,)", "switchable")):
        ms.upgrade(model, X, rates=RATES, norm="group")

    class Masked(Net):
        def __call__(self, x: jax.Array) -> jax.Array:
            mask = jnp.ones((4, 1), bool)
            return self.head(self.norm(self.first(x), mask=mask))

    with pytest.raises(ValueError, match=says("without a mask", "switchable")):
        ms.upgrade(Masked(nnx.Rngs(0)), X, rates=RATES, norm="group")
    net = ms.upgrade(Masked(nnx.Rngs(0)), X, rates=RATES)  # by default shared
    norms = ms.report(net).to_dict()["norms"]
    assert norms["strategy"] == "shared" and "16 features takes a mask" in norms["why"]


def test_the_helpers_restore_every_array():
    model = nnx_models.Cnn()
    tree = jax.tree.map(lambda x: np.asarray(x) + 1, variables_of(model))
    back = variables_of(with_variables(model, tree))
    jax.tree.map(np.testing.assert_array_equal, back, tree)
