"""Any batch, any outputs, any collection, against the same written out by hand."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mslice_jax as ms
import mslice_jax.train
from mslice_jax.train import (
    Arguments,
    Checkpoints,
    Distillation,
    Progress,
    Task,
    TrainState,
    evaluate_task,
    language_model,
    make_train_step,
    token_cross_entropy,
)

STILL = optax.sgd(0.0)
GRADIENT = optax.sgd(1.0)  # its update is the negative gradient
RATES = (0.5, 1.0)
KEY = jax.random.key(7)


def fresh(net, optimizer=STILL, **settings):
    return TrainState.create(net, optimizer, key=KEY, **settings)


class Tower(nn.Module):
    """Two inputs, and a dictionary of outputs."""

    @nn.compact
    def __call__(self, x, *, scale):
        h = nn.tanh(nn.Dense(8)(x))
        return {"mean": nn.Dense(2)(h) * scale, "hidden": jnp.sum(h**2)}


def test_a_tree_of_a_batch_and_a_tree_of_outputs():
    x = jax.random.normal(KEY, (6, 3))
    batch = {"x": x, "scale": jnp.float32(2.0), "y": jnp.ones((6, 2))}
    model = Tower()
    variables = model.init(KEY, x, scale=jnp.float32(1.0))
    net = ms.upgrade(model, variables, x, scale=jnp.float32(1.0), rates=RATES)
    task = Task(
        inputs=lambda batch: Arguments(batch["x"], scale=batch["scale"]),
        targets=lambda batch: batch["y"],
        loss=lambda out, y: jnp.mean((out["mean"] - y) ** 2),
        metrics={"error": lambda out, y: jnp.mean(jnp.abs(out["mean"] - y))},
    )
    state, metrics = make_train_step(GRADIENT, task=task)(
        fresh(net, GRADIENT), batch, (1.0, 0.5)
    )

    def error(params, width):
        first, last = params["Dense_0"], params["Dense_1"]
        h = jnp.tanh(x @ first["kernel"][:, :width] + first["bias"][None, :width])
        out = 2.0 * (h @ last["kernel"][:width] + last["bias"][None])
        return out - 1.0

    def loss(params):
        return jnp.mean(error(params, 8) ** 2) + jnp.mean(error(params, 4) ** 2)

    params = variables["params"]
    expected = jax.tree.map(jnp.subtract, params, jax.grad(loss)(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        state.net.variables["params"],
        expected,
    )
    assert sorted(metrics[0.5]) == ["error", "loss"]
    found = metrics[0.5]["error"]
    np.testing.assert_allclose(found, jnp.abs(error(params, 4)).mean(), rtol=1e-5)
    # An evaluation in two batches is the mean over all.
    parts = [
        {"x": x[:4], "y": batch["y"][:4], "scale": batch["scale"]},
        {"x": x[4:], "y": batch["y"][4:], "scale": batch["scale"]},
    ]
    found = evaluate_task(lambda: parts, task)(net)
    np.testing.assert_allclose(
        found[0.5]["error"], jnp.abs(error(params, 4)).mean(), rtol=1e-5
    )


def test_a_custom_loss_needs_no_classes(net, small):
    x, _ = small.batch()
    target = jnp.zeros((8, 3))
    step = make_train_step(STILL, loss=lambda y, t: jnp.mean((y - t) ** 2))
    _, metrics = step(fresh(net), (x, target), (1.0,))
    assert sorted(metrics[1.0]) == ["loss"]
    out = ms.slice_apply(net, x, 1.0)
    np.testing.assert_allclose(metrics[1.0]["loss"], jnp.mean(out**2), rtol=1e-5)


def test_a_loss_that_is_no_scalar_is_an_error(net, small):
    step = make_train_step(STILL, loss=lambda y, t: jnp.mean(y**2, axis=-1))
    with pytest.raises(ValueError, match=r"scalar, got one of shape \(8,\)"):
        step(fresh(net), small.batch(), (1.0,))


class Words(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(5)(nn.tanh(nn.Dense(8)(nn.Embed(5, 8)(tokens))))


@pytest.fixture(scope="module")
def words():
    tokens = np.random.default_rng(0).integers(0, 5, (4, 3)).astype(np.int32)
    model = Words()
    return ms.upgrade(model, model.init(KEY, tokens), tokens, rates=RATES), tokens


def test_masked_tokens_by_hand():
    logits = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    targets = np.array([[0, 1, -1], [3, -1, -1]])
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(log_p[0, 0, 0] + log_p[0, 1, 1] + log_p[1, 0, 3]) / 3
    found = token_cross_entropy(jnp.array(logits), jnp.array(targets), jnp.array(mask))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    smoothed = token_cross_entropy(
        jnp.array(logits), jnp.array(targets), jnp.array(mask), smoothing=0.2
    )
    rest = -(log_p[0, 0].mean() + log_p[0, 1].mean() + log_p[1, 0].mean()) / 3
    np.testing.assert_allclose(smoothed, 0.8 * expected + 0.2 * rest, rtol=1e-5)
    nothing = token_cross_entropy(jnp.array(logits), jnp.array(targets), 0 * mask)
    assert float(nothing) == 0
    with pytest.raises(ValueError, match="for targets"):
        token_cross_entropy(jnp.array(logits), jnp.array(targets[:, :2]))


def test_a_language_model_counts_tokens_at_any_position(words):
    net, tokens = words
    targets = np.roll(tokens, -1, axis=1)
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], np.float32)
    logits = np.asarray(ms.slice_apply(net, tokens, 0.5), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    loss = (each * mask).sum() / mask.sum()
    right = (logits.argmax(-1) == targets) * mask
    expected = {
        "loss": loss,
        "accuracy": right.sum() / mask.sum(),
        "perplexity": np.exp(loss),
    }
    batch = {"tokens": tokens, "targets": targets, "mask": mask}
    # Two chunks of a batch have 3 and 3 tokens in other sentences: 0, 2 and 1, 3.
    updates = []
    for parts in (1, 2):
        step = make_train_step(GRADIENT, task=language_model(), accumulate=parts)
        state, metrics = step(fresh(net, GRADIENT), batch, (0.5,))
        found = {name: float(value) for name, value in metrics[0.5].items()}
        assert found == pytest.approx(expected, rel=1e-5)
        updates.append(state.net.variables["params"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *updates
    )
    # Batches of 3 and 1 sentences; the second has no token that counts.
    parts = [tuple(x[s] for x in (tokens, targets, mask)) for s in ([0, 1, 3], [2])]
    found = evaluate_task(lambda: parts, language_model())(net)[0.5]
    assert found == pytest.approx(expected, rel=1e-5)


def test_unequal_chunks_weigh_by_their_tokens(words):
    net, tokens = words
    mask = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]], np.float32)  # 6 and 1
    results = []
    for parts in (1, 2):
        step = make_train_step(GRADIENT, task=language_model(), accumulate=parts)
        state, metrics = step(fresh(net, GRADIENT), (tokens, tokens, mask), (1.0,))
        results.append((state.net.variables["params"], metrics[1.0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results
    )


def test_distillation_over_tokens_counts_those_of_the_mask(words):
    net, tokens = words
    mask = np.array([[1, 0, 0]] * 4)
    step = make_train_step(STILL, task=language_model(), distillation=Distillation())
    _, metrics = step(fresh(net), (tokens, tokens, mask), (1.0, 0.5))
    wide, half = (np.asarray(ms.slice_apply(net, tokens, r))[:, 0] for r in (1.0, 0.5))
    p = np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)
    log_q = half - np.log(np.exp(half).sum(-1, keepdims=True))
    np.testing.assert_allclose(
        metrics[0.5]["loss"], -(p * log_q).sum(-1).mean(), rtol=1e-5
    )


def test_train_is_passed_only_where_the_model_takes_it(small):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.relu(nn.Dense(8)(x)))

    class Deterministic(nn.Module):
        @nn.compact
        def __call__(self, x, *, deterministic: bool = True):
            x = nn.relu(nn.Dense(8)(x))
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=deterministic)(x))

    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x, *, train: bool = False):
            x = nn.relu(nn.Dense(8)(x))
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))

    class PassingOn(nn.Module):  # its signature does not show train
        inner: nn.Module

        def __call__(self, x, **more):
            return self.inner(x, **more)

    x, y = small.batch()
    losses = {}
    for kind in (
        Plain,
        Deterministic,
        lambda: PassingOn(Plain()),
        lambda: PassingOn(Dropping()),
    ):
        model = kind()
        net = ms.upgrade(model, model.init(KEY, x), x, rates=RATES)
        step, state = make_train_step(STILL), fresh(net)
        found = []
        for _ in range(2):
            state, metrics = step(state, (x, y), (1.0,))
            found.append(float(metrics[1.0]["loss"]))
        losses[kind] = found
    differ = [first != second for first, second in losses.values()]
    assert differ == [False, True, False, True]  # with dropout

    def function(variables, x):  # takes neither train nor mutable nor rngs
        params = variables["params"]
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params = {"a": jax.random.normal(KEY, (5, 8)), "b": jnp.ones((8, 3))}
    net = ms.upgrade(function, {"params": params}, x, rates=RATES)
    _, metrics = make_train_step(STILL)(fresh(net), (x, y), (1.0, 0.5))
    assert np.isfinite(float(metrics[0.5]["loss"]))


class Counting(nn.Module):
    """Custom collections: a count of calls, and the hidden state of the last batch."""

    @nn.compact
    def __call__(self, x):
        calls = self.variable("calls", "count", lambda: jnp.zeros((), jnp.int32))
        hidden = self.variable("memory", "h", lambda: jnp.zeros((x.shape[0], 8)))
        h = nn.tanh(nn.Dense(8)(x) + hidden.value)
        if not self.is_initializing():
            calls.value += 1
            hidden.value = h
        return nn.Dense(3)(h)


def memory_by_hand(params, batches, width):
    first = params["Dense_0"]
    h = jnp.zeros((8, width))
    for x, _ in batches:
        h = jnp.tanh(x @ first["kernel"][:, :width] + first["bias"][None, :width] + h)
    return h


def test_custom_collections_pass_through_and_each_rate_has_its_own(small, tmp_path):
    model = Counting()
    batches = [small.batch(n) for n in range(3)]
    x = batches[0][0]
    own = ["calls", "memory"]
    net = ms.upgrade(model, model.init(KEY, x), x, rates=RATES, mutable=own)
    params = net.variables["params"]
    state = fresh(net, carry=["memory"])
    step = make_train_step(STILL)
    for batch in batches[:2]:
        state, _ = step(state, batch, (1.0, 0.5))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Progress())
        checkpoints.wait()
        state, _ = checkpoints.restore(fresh(net, carry=["memory"]))
    state, _ = step(state, batches[2], (1.0, 0.5))
    assert int(state.net.variables["calls"]["count"]) == 6
    for rate, width in ((1.0, 8), (0.5, 4)):
        found = state.carried[str(rate)]["memory"]["h"][:, :width]
        expected = memory_by_hand(params, batches, width)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match="accumulate=1"):
        make_train_step(STILL, accumulate=2)(state, batches[0], (1.0,))
    with pytest.raises(ValueError, match=r"of \['calls', 'memory'\]; got \['memories'"):
        fresh(net, carry=["memories"])


def test_collections_made_by_the_call_reach_the_loss(small):
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.relu(nn.Dense(8)(x))
            self.sow("losses", "penalty", jnp.mean(h**2))
            return nn.Dense(3)(h)

    def loss(outputs, labels):
        logits, made = outputs
        penalty = made["losses"]["penalty"][0]
        return ms.train.cross_entropy(logits, labels) + 10 * penalty

    model = Sowing()
    x, y = small.batch()
    variables = {"params": model.init(KEY, x)["params"]}
    net = ms.upgrade(model, variables, x, rates=RATES)
    step = make_train_step(STILL, loss=loss, call_kwargs={"mutable": ["losses"]})
    _, metrics = step(fresh(net), (x, y), (1.0,))
    logits, made = model.apply(variables, x, mutable=["losses"])
    np.testing.assert_allclose(metrics[1.0]["loss"], loss((logits, made), y), rtol=1e-5)


def test_named_streams_are_drawn_from(small):
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            noise = jax.random.normal(self.make_rng("noise"), x.shape)
            return nn.Dense(3)(nn.relu(nn.Dense(8)(x + noise)))

    model = Noisy()
    x, y = small.batch()
    net = ms.upgrade(
        model,
        model.init({"params": KEY, "noise": KEY}, x),
        x,
        rates=RATES,
        rngs={"noise": KEY},
    )
    losses = []
    step, state = make_train_step(STILL, streams=["noise"]), fresh(net)
    for _ in range(3):
        state, metrics = step(state, (x, y), (1.0,))
        losses.append(float(metrics[1.0]["loss"]))
    assert len(set(losses)) == 3
    with pytest.raises(ValueError, match="the same in every step"):
        make_train_step(STILL, call_kwargs={"rngs": {"noise": KEY}})(
            state, (x, y), (1.0,)
        )


def test_an_nnx_model_draws_from_a_stream_of_any_name(small):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(5, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)
            self.drop = nnx.Dropout(0.2, rngs=rngs, rng_collection="noise")

        def __call__(self, x):
            return self.b(self.drop(nnx.relu(self.a(x))))

    x, y = small.batch()
    net = ms.upgrade(Net(nnx.Rngs(params=0, noise=1)), x, rates=RATES)
    step, state, losses = make_train_step(STILL), fresh(net), []
    for _ in range(3):
        state, metrics = step(state, (x, y), (1.0,))
        losses.append(float(metrics[1.0]["loss"]))
    assert len(set(losses)) == 3


class Plain(nn.Module):
    """A batch norm between two layers."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.relu(x))


def test_strict_promotion_and_no_silent_transfers(small):
    x, y = small.batch()
    model = Plain()
    net = ms.upgrade(model, model.init(KEY, x), x, rates=RATES, norm="shared")
    optimizer = ms.train.sgd(0.1)
    state = TrainState.create(
        net, optimizer, key=KEY, average=True, loss_scale=ms.train.LossScale.start()
    )
    step: Any = make_train_step(optimizer, average=0.9, skip_not_finite=True)
    with jax.numpy_dtype_promotion("strict"), jax.transfer_guard("disallow"):
        for _ in range(2):
            state, metrics = step(state, (x, y), (1.0, 0.5))
    assert np.isfinite(float(metrics[0.5]["loss"]))


def test_statistics_keep_their_type_under_x64(small):
    x, y = small.batch()
    model = Plain()
    variables = model.init(KEY, x)  # float32
    with jax.enable_x64(True):
        x = jnp.asarray(x, jnp.float64)
        net = ms.upgrade(model, variables, x, rates=RATES, norm="shared")
        state = fresh(net, optax.adam(0.01))
        types = [leaf.dtype for leaf in jax.tree.leaves(state)]
        step = make_train_step(optax.adam(0.01))
        for _ in range(2):
            state, _ = step(state, (x, jnp.asarray(y)), (1.0, 0.5))
        assert [leaf.dtype for leaf in jax.tree.leaves(state)] == types
    assert state.net.variables["batch_stats"]["BatchNorm_0"]["mean"].dtype == np.float32
