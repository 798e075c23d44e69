"""The training step, against gradients and updates written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mslice_jax.train import TrainState, cross_entropy, make_train_step, sgd
from tests.train.conftest import label_loss


def fresh(net, optimizer):
    return TrainState.create(net, optimizer, key=jax.random.key(7))


def test_gradients_are_summed_over_the_rates_of_a_step(net, small):
    x, y = small.batch()
    params = net.variables["params"]
    expected = jax.tree.map(
        jnp.add,
        jax.grad(label_loss)(params, x, y, 8),
        jax.grad(label_loss)(params, x, y, 4),
    )
    plain = optax.sgd(1.0)  # the update is the negative gradient
    state, metrics = make_train_step(plain)(fresh(net, plain), (x, y), (1.0, 0.5))
    found = jax.tree.map(jnp.subtract, params, state.net.variables["params"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected
    )
    for rate, width in ((1.0, 8), (0.5, 4)):
        np.testing.assert_allclose(
            metrics[rate]["loss"], label_loss(params, x, y, width), rtol=1e-6
        )
    assert int(state.step) == 1


def test_two_steps_are_pytorch_nesterov_sgd(net, small):
    lr, momentum, decay = 0.1, 0.9, 0.01
    weights = net.variables["params"]
    buffers = jax.tree.map(jnp.zeros_like, weights)
    optimizer = sgd(lr, momentum=momentum, weight_decay=decay)
    step, state = make_train_step(optimizer), fresh(net, optimizer)
    for number in range(2):
        x, y = small.batch(number)
        grads = jax.grad(label_loss)(weights, x, y, 8)
        grads = jax.tree.map(lambda g, w: g + decay * w, grads, weights)
        buffers = jax.tree.map(lambda b, g: momentum * b + g, buffers, grads)
        weights = jax.tree.map(
            lambda w, b, g: w - lr * (g + momentum * b), weights, buffers, grads
        )
        state, _ = step(state, (x, y), (1.0,))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        state.net.variables["params"],
        weights,
    )


def test_one_compilation_for_each_rate_whatever_the_combination(
    net, small, compilations
):
    optimizer = sgd(0.1)
    step, state = make_train_step(optimizer), fresh(net, optimizer)
    with compilations() as names:
        for rates in ((1.0,), (1.0, 0.5), (0.5,), (0.5, 1.0)):
            state, _ = step(state, small.batch(), rates)
    assert sum("rate_step" in name for name in names) == 2
    assert sum("apply_updates" in name for name in names) == 1


def test_all_rates_of_a_step_see_the_same_images_and_the_next_step_others(net, small):
    seen = []

    def transform(key, images):
        images = images + jax.random.normal(key, images.shape)
        jax.debug.callback(lambda x: seen.append(np.array(x)), images)
        return images

    optimizer = sgd(0.1)
    step, state = make_train_step(optimizer, transform=transform), fresh(net, optimizer)
    for _ in range(2):
        state, _ = step(state, small.batch(), (1.0, 0.5))
    jax.effects_barrier()
    first, second, third, fourth = seen
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(third, fourth)
    assert np.abs(first - third).max() > 0.1


def test_batch_statistics_are_updated_by_the_rates_in_order(build_net, small):
    net = build_net(norm="shared")
    x, y = small.batch()
    hidden = net.variables["params"]["hidden1"]
    mean = np.mean(x @ hidden["kernel"] + hidden["bias"][None], axis=0)

    optimizer = sgd(0.1)
    state, _ = make_train_step(optimizer)(fresh(net, optimizer), (x, y), (1.0, 0.5))

    # From zero: 0.1 of the batch's mean. Then again, for the half of rate 0.5.
    expected = np.where(np.arange(8) < 4, 0.9 * 0.1 + 0.1, 0.1) * mean
    found = state.net.variables["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_rate_that_was_not_trained_keeps_its_own_norms_statistics(build_net, small):
    net = build_net(norm="switchable")
    optimizer = sgd(0.1)
    state, _ = make_train_step(optimizer)(fresh(net, optimizer), small.batch(), (0.5,))
    before = net.variables["batch_stats"]["BatchNorm_0"]
    after = state.net.variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_array_equal(after["1.0"]["mean"], before["1.0"]["mean"])
    assert np.abs(after["0.5"]["mean"] - before["0.5"]["mean"]).max() > 0


def test_a_step_donates_its_state_and_keeps_the_callers_weights(net, small):
    optimizer = sgd(0.1)
    state = fresh(net, optimizer)
    make_train_step(optimizer)(state, small.batch(), (1.0,))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.net))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(net))


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    found = cross_entropy(logits, jnp.array([0, 2]))
    np.testing.assert_allclose(found, -(np.log(0.5) + np.log(0.8)) / 2, rtol=1e-6)


def test_a_step_without_rates_is_an_error(net, small):
    optimizer = sgd(0.1)
    with pytest.raises(ValueError, match="at least one rate"):
        make_train_step(optimizer)(fresh(net, optimizer), small.batch(), ())


def test_variables_without_params_are_an_error(net):
    with pytest.raises(ValueError, match="params"):
        TrainState.create(net.replace({"weights": jnp.ones(3)}), sgd(0.1), key=None)
