"""Copies: copy, pickle and cloudpickle of networks, states and modules."""

import copy
import pathlib
import pickle
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mslice_jax as ms
from mslice_jax.core.call import Call
from mslice_jax.models import CifarVGG
from mslice_jax.train import TrainState, make_train_step, sgd

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
PARAMS = {
    "w1": np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32),
    "w2": np.random.default_rng(2).normal(size=(12, 3)).astype(np.float32),
}


def mlp(p, x, s=0.0):
    return jnp.tanh(x @ p["w1"]) @ p["w2"]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        h = nn.BatchNorm(use_running_average=not train)(nn.Dense(12)(x))
        return nn.Dense(3)(nn.relu(h))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(5, 12, rngs=rngs)
        self.norm = nnx.BatchNorm(12, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.b = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(nnx.relu(self.norm(self.a(x)))))


def linen(**options):
    tree = Net().init(jax.random.key(0), X)
    return ms.upgrade(Net(), tree, X, rates=(0.25, 0.5, 1.0), **options)


def plain(**options):
    return ms.upgrade(mlp, PARAMS, X, rates=(0.25, 0.5, 1.0), **options)


NETS = {
    "plain": plain,
    "static arguments": lambda: plain(s=-0.0),
    "reordered": lambda: ms.reorder(plain()),
    "linen": linen,
    "switchable": lambda: linen(norm="switchable"),
    "calibrated": lambda: ms.calibrate(linen(norm="shared"), [X]),
    "nnx": lambda: ms.upgrade(Model(nnx.Rngs(0)), X, rates=(0.25, 0.5, 1.0)),
    "extracted": lambda: ms.extract(linen(), {"*": 0.5}),
}


def pickled(x):
    return pickle.loads(pickle.dumps(x))


def by_cloudpickle(x):
    return pickle.loads(pytest.importorskip("cloudpickle").dumps(x))


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "cloudpickle": by_cloudpickle,
}


@pytest.fixture(scope="module")
def nets():
    return {kind: make() for kind, make in NETS.items()}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", NETS)
def test_a_copy_computes_and_reports_the_same(nets, kind, how):
    net = nets[kind]
    want = ms.slice_apply(net, X, 0.5)  # fills programs and kept weights
    other = COPIES[how](net)
    np.testing.assert_array_equal(ms.slice_apply(other, X, 0.5), want)
    np.testing.assert_array_equal(
        ms.slice_apply(other, X, 0.25), ms.slice_apply(net, X, 0.25)
    )
    assert str(ms.report(other)) == str(ms.report(net))
    for a, b in zip(other.plan.fixed, net.plan.fixed, strict=True):
        assert (a.reason.text, a.reason.where) == (b.reason.text, b.reason.where)
    # JAX treats it as the same network.
    assert jax.tree.structure(other) == jax.tree.structure(net)


@pytest.mark.parametrize("how", ("deepcopy", "pickle", "cloudpickle"))
def test_a_copy_shares_no_weights(how):
    net = plain()
    other = COPIES[how](net)
    jax.jit(lambda n: jax.tree.map(lambda a: a + 1, n), donate_argnums=0)(other)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(net))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", ("linen", "switchable", "nnx", "extracted"))
def test_a_copy_of_a_module(nets, kind, how):
    net = nets[kind]
    want = ms.slice_apply(net, X, 0.5)
    other = COPIES[how](net.module)
    if isinstance(other, nnx.Module):
        found = other(X, rate=0.5)
    else:
        found = other.apply(net.variables, X, rate=0.5)
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize("how", ("deepcopy", "pickle", "cloudpickle"))
def test_a_copy_of_a_state_trains_on(nets, how):
    optimizer = sgd(0.1)
    step = make_train_step(optimizer)
    batch = (X, np.array([0, 1, 2, 0]))
    state = TrainState.create(nets["linen"], optimizer, key=jax.random.key(0))
    state, _ = step(state, batch, (0.5, 1.0))
    other = COPIES[how](state)
    state, _ = step(state, batch, (0.5,))
    other, _ = step(other, batch, (0.5,))
    for a, b in zip(
        jax.tree.leaves(state.net), jax.tree.leaves(other.net), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_lambda_needs_cloudpickle():
    net = ms.upgrade(lambda p, x: mlp(p, x) + 1, PARAMS, X, rates=(0.5, 1.0))
    want = ms.slice_apply(net, X, 0.5)
    np.testing.assert_array_equal(ms.slice_apply(by_cloudpickle(net), X, 0.5), want)


def test_another_process_reads_it(tmp_path):
    model = CifarVGG(depth=13)  # a class that the other process can import
    x = np.ones((1, 32, 32, 3), np.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), x)
    net = ms.upgrade(model, tree, x, rates=(0.5, 1.0))
    file = tmp_path / "net.pickle"
    file.write_bytes(pickle.dumps(net))
    script = """
import pathlib, pickle, sys
import jax, mslice_jax as ms
net = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
x = jax.ShapeDtypeStruct((7, 32, 32, 3), "float32")
print(jax.eval_shape(lambda net, x: ms.slice_apply(net, x, 0.5), net, x))
print(ms.report(net))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(file)],
        cwd=pathlib.Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    first, _, report = run.stdout.partition("\n")
    assert "shape=(7, 10)" in first
    assert report.strip() == str(ms.report(net)).strip()


def test_a_call_keeps_its_arguments():
    args = (X, {"a": (1, True, -0.0), "b": None}, "text")
    call, arrays = Call.split(args, {"s": complex(0.0, -0.0)})
    for how in COPIES.values():
        other = how(call)
        assert other == call
        assert hash(other) == hash(call)
        (x, options, text), kwargs = other.join(arrays)
        assert x is X and text == "text"
        assert repr(options) == "{'a': (1, True, -0.0), 'b': None}"
        assert repr(kwargs) == repr({"s": complex(0.0, -0.0)})
