"""The state of an optimizer, cut for training the narrow network alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mslice_jax as ms
from mslice_jax.train import TrainState, make_train_step


def widths(tree):
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.clip(0.1), optax.adam(0.01)),
        optax.lookahead(optax.sgd(0.1, momentum=0.9), 2, 0.5),
        optax.contrib.schedule_free_sgd(0.1),
        optax.inject_hyperparams(optax.adam)(learning_rate=lambda n: 0.01 / (1.0 + n)),
    ],
    ids=["adam", "lookahead", "schedule_free", "inject_hyperparams"],
)
def test_the_extracted_network_continues_like_the_rate(net, small, optimizer):
    """At rate 0.5 alone, everything outside of it has zero gradient and no effect."""
    state = TrainState.create(net, optimizer, key=jax.random.key(7))
    step = make_train_step(optimizer)
    for number in range(2):
        state, _ = step(state, small.batch(number), (0.5,))
    alone = ms.extract(state.net, 0.5)
    begun = TrainState.create(alone, optimizer, key=jax.random.key(7))
    sliced = state.net.slice_state(state.opt_state, 0.5)
    assert widths(sliced) == widths(begun.opt_state)  # the widths of a new state
    alone = dataclasses.replace(begun, opt_state=jax.tree.map(jnp.copy, sliced))
    narrow = make_train_step(optimizer)
    for number in (2, 3):
        state, _ = step(state, small.batch(number), (0.5,))
        alone, _ = narrow(alone, small.batch(number), (0.5,))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        alone.net.variables,
        ms.extract(state.net, 0.5).variables,
    )


def test_leading_entries_are_kept_and_counts_stay(net):
    params = net.variables["params"]
    moment = jax.tree.map(lambda p: np.arange(p.size).reshape(p.shape), params)
    state = (jnp.int32(3), {"mu": moment})
    count, sliced = net.slice_state(state, 0.5)
    assert int(count) == 3
    # hidden2 is 8 x 8; rate 0.5 keeps 4 of both.
    np.testing.assert_array_equal(
        sliced["mu"]["hidden2"]["kernel"], np.arange(64).reshape(8, 8)[:4, :4]
    )
    np.testing.assert_array_equal(
        sliced["mu"]["logits"]["kernel"], np.arange(24).reshape(8, 3)[:4]
    )
    np.testing.assert_array_equal(sliced["mu"]["logits"]["bias"], [0, 1, 2])


def test_a_factored_moment_cannot_be_sliced(net):
    optimizer = optax.adafactor(0.01, min_dim_size_to_factor=2)
    state = optimizer.init(net.variables["params"])
    with pytest.raises(ms.PlanError, match=r"shape .* for params/hidden1/kernel"):
        net.slice_state(state, 0.5)
    whole = optax.adafactor(0.01)  # too small to be factored: single zeros
    net.slice_state(whole.init(net.variables["params"]), 0.5)


def test_a_rate_that_was_not_declared(net):
    with pytest.raises(ms.RateError, match="not declared"):
        net.slice_state((), 0.75)
