"""Training on many devices equals training on one; weights keep their sharding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import mslice_jax as ms
from mslice_jax.train import Placement, TrainState, make_train_step, sgd
from mslice_jax.train.devices import DATA, FSDP
from mslice_jax.train.state import params_of
from tests.train.conftest import RATES, build


def run(net, small, placement, steps=3, **settings):
    """Losses of each step and rate, and the last state."""
    optimizer = sgd(0.1)
    state = TrainState.create(net, optimizer, key=jax.random.key(0))
    step = make_train_step(optimizer, placement=placement, **settings)
    if placement is not None:
        state = placement.state(state)
    losses = []
    for number in range(steps):
        batch = small.batch(number)
        batch = batch if placement is None else placement.batch(batch)
        state, metrics = step(state, batch, RATES[::-1])
        losses += [float(metrics[rate]["loss"]) for rate in RATES]
    return losses, state


def placed(fsdp):
    return Placement(Placement.over(jax.devices()[:4], fsdp=fsdp).mesh, smallest=16)


@pytest.mark.parametrize(
    ("norm", "fsdp"),
    [(None, 1), (None, 2), (None, 4), ("shared", 2), ("switchable", 2)],
)
def test_four_devices_have_the_losses_of_one(small, fsdp, norm):
    net = build(small, norm=norm, shards=fsdp)
    alone, state = run(net, small, None)
    together, spread = run(net, small, placed(fsdp))
    np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        spread.net.variables,
        state.net.variables,
    )


def test_weights_keep_their_sharding(small):
    placement = placed(4)
    net = build(small, shards=4)
    _, state = run(net, small, placement, steps=1)
    kernel = state.net.variables["params"]["hidden2"]["kernel"]
    assert kernel.sharding.spec == P(None, FSDP)
    assert kernel.addressable_shards[0].data.shape == (8, 2)
    momentum = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (8, 8)]
    assert momentum
    assert all(x.sharding.spec == P(None, FSDP) for x in momentum)
    # Small arrays are replicated.
    assert state.net.variables["params"]["logits"]["bias"].sharding.spec in (
        P(),
        P(None),
    )


def test_gradients_are_summed_on_the_devices_of_the_weights(small):
    placement = placed(4)
    state = TrainState.create(build(small, shards=4), sgd(0.1), key=jax.random.key(0))
    step: Any = make_train_step(sgd(0.1), placement=placement)
    zeros = step._zeros(params_of(placement.state(state).net))
    assert zeros["params"]["hidden2"]["kernel"].sharding.spec == P(None, FSDP)


def test_small_arrays_are_replicated():
    mesh = placed(4).mesh
    tree = {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8), "odd": jnp.zeros(99)}
    for smallest, specs in {
        64: {"kernel": P(None, FSDP), "bias": P(None), "odd": P(None)},
        65: {"kernel": P(None, None), "bias": P(None), "odd": P(None)},
    }.items():
        places = Placement(mesh, smallest=smallest).weights(tree)
        assert {name: place.spec for name, place in places.items()} == specs


def test_constrain_sets_the_sharding_inside_jit():
    """Inside of jit, zeros have no sharding until they are given one."""
    placement = placed(4)
    zeros = jax.jit(lambda: placement.constrain({"w": jnp.zeros((8, 8))}))()
    assert zeros["w"].sharding.spec == P(None, FSDP)


def test_no_compilation_after_the_first_steps(small, compilations):
    optimizer, placement = sgd(0.1), placed(2)
    state = TrainState.create(build(small, shards=2), optimizer, key=jax.random.key(0))
    state = placement.state(state)
    step = make_train_step(optimizer, placement=placement)
    batches = [placement.batch(small.batch(number)) for number in range(3)]
    step.compile(state, batches[0], RATES)
    with compilations() as names:
        for batch in batches:
            state, _ = step(state, batch, RATES)
    assert names == []


def test_chunks_of_a_batch_stay_on_their_devices(small):
    net = build(small)
    alone, _ = run(net, small, None, accumulate=2)
    together, _ = run(net, small, placed(1), accumulate=2)
    np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-6)


def test_a_network_on_many_devices_runs_and_is_extracted(small):
    net = build(small, shards=2)
    spread = placed(2).state(net)
    for rate in RATES:
        np.testing.assert_allclose(
            ms.slice_apply(spread, small.x, rate),
            ms.slice_apply(net, small.x, rate),
            rtol=1e-5,
            atol=1e-6,
        )


def test_sharded_weights_come_back_whole(small):
    net, placement = build(small), placed(4)
    whole = placement.local(placement.state(net))
    for found, leaf in zip(jax.tree.leaves(whole), jax.tree.leaves(net), strict=True):
        assert len(found.sharding.device_set) == 1
        np.testing.assert_array_equal(found, leaf)


def test_the_batch_is_sharded_over_all_devices(small):
    images, labels = placed(2).batch(small.batch())
    assert images.sharding.spec == P((DATA, FSDP))
    assert images.addressable_shards[0].data.shape == (2, 5)
    np.testing.assert_array_equal(labels, small.batch()[1])


def test_sizes_that_the_devices_do_not_divide():
    with pytest.raises(ValueError, match="divide the 4 devices, got 3"):
        Placement.over(jax.devices()[:4], fsdp=3)
    with pytest.raises(ValueError, match="over 4 devices, got 6 examples"):
        placed(1).batch(jnp.zeros((6, 2)))


def test_the_moments_of_adam_are_sharded_too(small):
    optimizer, placement = optax.adamw(1e-2), placed(4)
    state = placement.state(
        TrainState.create(build(small), optimizer, key=jax.random.key(0))
    )
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (8, 8)]
    assert len(moments) == 2
    assert all(FSDP in x.sharding.spec for x in moments)
