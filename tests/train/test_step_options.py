"""Options of a step beyond the original, against the same written out by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import mslice_jax as ms
from mslice_jax.train import Distillation, TrainState, cross_entropy, make_train_step
from tests.train.conftest import label_loss, narrow_logits

GRADIENT = optax.sgd(1.0)  # its update is the negative gradient


def gradients(net, batch, rates, **settings):
    """The summed gradients of a step, and its metrics."""
    state = TrainState.create(net, GRADIENT, key=jax.random.key(7))
    step = make_train_step(GRADIENT, **settings)
    state, metrics = step(state, batch, rates)
    params = net.variables["params"]
    found = jax.tree.map(jnp.subtract, params, state.net.variables["params"])
    return found, metrics


def rate_step(net, batch, **settings):
    """The jaxpr of the half network's part of a step."""
    state = TrainState.create(net, GRADIENT, key=jax.random.key(7))
    step = make_train_step(GRADIENT, **settings)
    zeros = step.zeros(net.variables["params"])
    function = functools.partial(step.rate_step, rate=0.5)
    return jax.make_jaxpr(function)(state, zeros, batch, None).jaxpr


def equations(jaxpr, name):
    """The equations of a primitive, also within others."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            found.append(equation)
        for value in jax.tree.leaves(list(equation.params.values())):
            if hasattr(value, "eqns"):
                found += equations(value, name)
    return found


def assert_close(found, expected, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        found,
        expected,
    )


def test_label_smoothing_by_hand():
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.array(
        [[0.8 + 0.2 / 3, 0.2 / 3, 0.2 / 3], [0.2 / 3, 0.2 / 3, 0.8 + 0.2 / 3]]
    )
    expected = -(targets * log_p).sum(1).mean()
    found = cross_entropy(jnp.array(logits), jnp.array([0, 2]), smoothing=0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_distillation_loss_by_hand():
    logits, taught = np.array([[2.0, -1.0, 0.5]]), np.array([[1.0, 1.0, -2.0]])
    soft = np.exp(taught / 3) / np.exp(taught / 3).sum()
    log_p = logits / 3 - np.log(np.exp(logits / 3).sum())
    found = Distillation(temperature=3.0).loss(jnp.array(logits), jnp.array(taught))
    np.testing.assert_allclose(found, -9 * (soft * log_p).sum(), rtol=1e-6)


@pytest.mark.parametrize("rates", [(1.0, 0.5), (0.5, 1.0)])
def test_the_widest_teaches_the_others(net, small, rates):
    x, y = small.batch()
    share, temperature = 0.75, 2.0

    def student_loss(params):
        taught = narrow_logits(net.variables["params"], x, 8)  # without a gradient
        targets = jax.nn.softmax(taught / temperature)
        log_p = jax.nn.log_softmax(narrow_logits(params, x, 4) / temperature)
        soft = -jnp.mean(jnp.sum(targets * log_p, axis=1)) * temperature**2
        return (1 - share) * label_loss(params, x, y, 4) + share * soft

    params = net.variables["params"]
    student, slope = jax.value_and_grad(student_loss)(params)
    teacher, widest = jax.value_and_grad(label_loss)(params, x, y, 8)
    found, metrics = gradients(
        net,
        (x, y),
        rates,
        distillation=Distillation(weight=share, temperature=temperature),
    )
    assert_close(found, jax.tree.map(jnp.add, slope, widest))
    np.testing.assert_allclose(metrics[0.5]["loss"], student, rtol=1e-6)
    np.testing.assert_allclose(metrics[1.0]["loss"], teacher, rtol=1e-6)


def test_an_external_teacher_teaches_all_rates(net, small):
    x, y = small.batch()
    table = jnp.array(
        [[1.0, -1.0, 0.0], [0.0, 2.0, 0.0], [0.5] * 3, [0.0] * 3, [1.0] * 3]
    )

    def teacher(images):
        return images @ table

    def loss(params, width):
        log_p = jax.nn.log_softmax(narrow_logits(params, 2 * x, width))
        return -jnp.mean(jnp.sum(jax.nn.softmax(teacher(2 * x)) * log_p, axis=1))

    slopes = [jax.grad(loss)(net.variables["params"], width) for width in (8, 4)]
    found, _ = gradients(
        net,
        (x, y),
        (1.0, 0.5),
        transform=lambda key, images: 2 * images,
        distillation=Distillation(teacher=teacher),
    )
    assert_close(found, jax.tree.map(jnp.add, *slopes))


def test_a_teacher_that_begins_later(net, small):
    x, y = small.batch()
    params = net.variables["params"]

    def student_loss(params, share):
        targets = jax.nn.softmax(narrow_logits(net.variables["params"], x, 8))
        log_p = jax.nn.log_softmax(narrow_logits(params, x, 4))
        soft = -jnp.mean(jnp.sum(targets * log_p, axis=1))
        return (1 - share) * label_loss(params, x, y, 4) + share * soft

    late = Distillation(weight=lambda step: 0.25 * (step >= 3))
    train_step = make_train_step(GRADIENT, distillation=late)
    start = TrainState.create(net, GRADIENT, key=jax.random.key(7))
    for step, share in ((2, 0.0), (3, 0.25)):
        state = dataclasses.replace(
            jax.tree.map(jnp.copy, start), step=jnp.asarray(step, jnp.int32)
        )
        state, metrics = train_step(state, (x, y), (1.0, 0.5))
        moved = state.net.variables["params"]
        expected = jax.tree.map(
            lambda p, wide, narrow: p - wide - narrow,
            params,
            jax.grad(label_loss)(params, x, y, 8),
            jax.grad(student_loss)(params, share),
        )
        assert_close(moved, expected)
        loss = student_loss(params, share)
        np.testing.assert_allclose(metrics[0.5]["loss"], loss, rtol=1e-6)


def test_loss_weights(net, small):
    x, y = small.batch()
    params = net.variables["params"]
    expected = jax.tree.map(
        lambda wide, narrow: wide + 3 * narrow,
        jax.grad(label_loss)(params, x, y, 8),
        jax.grad(label_loss)(params, x, y, 4),
    )
    found, metrics = gradients(net, (x, y), (1.0, 0.5), loss_weights={0.5: 3.0})
    assert_close(found, expected)
    # The reported losses are not weighted.
    loss = label_loss(params, x, y, 4)
    np.testing.assert_allclose(metrics[0.5]["loss"], loss, rtol=1e-6)


def test_chunks_of_a_batch_add_up(net, small):
    x, y = small.batch()
    whole, metrics = gradients(net, (x, y), (1.0, 0.5))
    for parts in (2, 8):
        found, same = gradients(net, (x, y), (1.0, 0.5), accumulate=parts)
        assert_close(found, whole)
        assert_close(same, metrics)
    taught = Distillation(weight=0.5)
    whole, _ = gradients(net, (x, y), (1.0, 0.5), distillation=taught)
    found, _ = gradients(net, (x, y), (1.0, 0.5), distillation=taught, accumulate=4)
    assert_close(found, whole)


def test_batch_norms_see_one_chunk_after_the_other(build_net, small):
    net = build_net(norm="switchable")
    x, y = small.batch()
    state = TrainState.create(net, GRADIENT, key=jax.random.key(7))
    step = make_train_step(GRADIENT, accumulate=2)
    after, _ = step(state, (x, y), (1.0,))
    first = net.variables["params"]["hidden1"]
    h = x @ first["kernel"] + first["bias"][None]
    mean = 0.0  # a chunk is every second example
    for part in (h[0::2], h[1::2]):
        mean = 0.9 * mean + 0.1 * part.mean(0)
    found = after.net.variables["batch_stats"]["BatchNorm_0"]["1.0"]["mean"]
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


def test_remat_computes_the_same(net, small):
    whole, _ = gradients(net, small.batch(), (1.0, 0.5))
    found, _ = gradients(net, small.batch(), (1.0, 0.5), remat=True)
    assert_close(found, whole)


def test_remat_keeps_the_results_of_dense_layers_alone(net, small):
    plain = rate_step(net, small.batch())
    again = rate_step(net, small.batch(), remat=True)
    dots = [len(equations(jaxpr, "dot_general")) for jaxpr in (plain, again)]
    # Three layers forward; backward twice as many, less the gradient of the images.
    assert dots == [3 + 2 * 3 - 1] * 2
    relus = [len(equations(jaxpr, "max")) for jaxpr in (plain, again)]
    assert relus[1] > relus[0] > 0


def test_bfloat16_is_used_in_the_network_alone(net, small):
    x, y = small.batch()
    whole, _ = gradients(net, (x, y), (1.0, 0.5))
    found, metrics = gradients(net, (x, y), (1.0, 0.5), compute_dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    assert metrics[0.5]["loss"].dtype == jnp.float32
    assert_close(found, whole, tolerance=0.03)  # eight bits of mantissa
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), found, whole)
    assert all(jax.tree.leaves(differs))


def test_every_dense_layer_computes_in_bfloat16(net, small):
    jaxpr = rate_step(net, small.batch(), compute_dtype=jnp.bfloat16)
    dots = equations(jaxpr, "dot_general")
    assert len(dots) == 8
    assert all(v.aval.dtype == jnp.bfloat16 for dot in dots for v in dot.outvars)


class Dropping(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(8)(x)))
        return nn.Dense(3)(x)


def test_dropout_differs_between_steps_and_repeats_in_a_repeated_step(small):
    x, _ = small.batch()
    model, frozen = Dropping(), optax.sgd(0.0)  # the same weights in every step
    net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))

    def losses(accumulate=1):
        state = TrainState.create(net, frozen, key=jax.random.key(7))
        step = make_train_step(frozen, accumulate=accumulate)
        found = []
        for _ in range(2):
            state, metrics = step(state, small.batch(), (1.0,))
            found.append(float(metrics[1.0]["loss"]))
        return found

    first, second = losses()
    assert abs(first - second) > 1e-3
    assert losses() == [first, second]
    assert abs(losses(accumulate=2)[0] - first) > 1e-3


def test_dropout_differs_between_chunks_of_a_batch(small):
    x, y = small.batch()
    model = Dropping()
    net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))
    state = TrainState.create(net, GRADIENT, key=jax.random.key(7))
    # A chunk is every second example, so these two are the same four.
    batch = np.repeat(x[:4], 2, axis=0), np.repeat(y[:4], 2)
    taught = Distillation(weight=0.0)  # so that the step returns its logits
    step = make_train_step(GRADIENT, accumulate=2, distillation=taught)
    zeros = step.zeros(net.variables["params"])
    logits = np.array(step.rate_step(state, zeros, batch, None, rate=1.0)[3])
    assert np.abs(logits[0::2] - logits[1::2]).max() > 1e-3


def test_moving_average_by_hand(net, small):
    optimizer = optax.sgd(0.1)
    state = TrainState.create(net, optimizer, key=jax.random.key(7), average=True)
    step = make_train_step(optimizer, average=0.15)
    mean = net.variables["params"]["logits"]["kernel"]
    for number, decay in enumerate((1 / 10, 0.15)):  # (1 + n) / (10 + n), at most 0.15
        state, _ = step(state, small.batch(number), (1.0,))
        new = state.net.variables["params"]["logits"]["kernel"]
        mean = decay * mean + (1 - decay) * new
        found = state.eval_net.variables["params"]["logits"]["kernel"]
        np.testing.assert_allclose(found, mean, rtol=1e-6)
    without = TrainState.create(net, optimizer, key=jax.random.key(7))
    assert without.eval_net is without.net


def test_programs_compiled_beforehand_are_used(net, small, compilations):
    for settings in ({}, {"distillation": Distillation(), "accumulate": 2}):
        state = TrainState.create(net, GRADIENT, key=jax.random.key(7))
        step = make_train_step(GRADIENT, **settings)
        with compilations() as names:
            seconds = step.compile(state, small.batch(), (1.0, 0.5))
        assert sum("rate_step" in name for name in names) == 2
        assert seconds > 0
        with compilations() as names:
            for number in range(2):
                state, _ = step(state, small.batch(number), (1.0, 0.5))
        assert names == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accumulate": 0}, "at least 1 part"),
        ({"average": 1.0}, r"in \(0, 1\)"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        make_train_step(GRADIENT, **settings)


def test_bad_label_smoothing():
    for smoothing in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"label smoothing in \[0, 1\), got"):
            cross_entropy(jnp.zeros((2, 3)), jnp.array([0, 1]), smoothing=smoothing)


def test_loss_weights_of_a_rate_that_the_network_does_not_have(net, small):
    state = TrainState.create(net, GRADIENT, key=jax.random.key(7))
    step = make_train_step(GRADIENT, loss_weights={0.5: 1.0, 0.3: 9.0})
    for call in (step, step.compile):
        with pytest.raises(ValueError, match=r"rates \(0.5, 1.0\), got .* 0.3"):
            call(state, small.batch(), (1.0,))


@pytest.mark.parametrize("settings", [{"weight": 1.5}, {"temperature": 0.0}])
def test_bad_distillation(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Distillation(**settings)


def test_bad_states_and_batches(net, small):
    state = TrainState.create(net, GRADIENT, key=jax.random.key(7))
    with pytest.raises(ValueError, match="equal parts, got 8 examples"):
        make_train_step(GRADIENT, accumulate=3)(state, small.batch(), (1.0,))
    with pytest.raises(ValueError, match="average=True"):
        make_train_step(GRADIENT, average=0.9)(state, small.batch(), (1.0,))
