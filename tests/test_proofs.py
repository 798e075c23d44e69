"""The eight proofs of the design, over every network in the table.

Expected values never come from the plan: they are the original network, the network
built narrow by hand with weights cut by hand, or the full network with zeros. Upgraded
networks and compiled programs are shared between proofs, so that each rate of each
network compiles once.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from tests.citizens.citizen import RATES, Citizen, Tree, shaken
from tests.citizens.dense import Mlp
from tests.networks import CITIZENS, everyone, flat, kept_by_hand, numbered

NAMED = {citizen.name: citizen for citizen in CITIZENS}
RUN = (0.25, 0.5, 1.0)
"""The rates that every network runs at; 0.75 runs for a few (`test_odd_rate`).

The network built by hand runs at 0.25 for its output, at 0.5 with its gradient, and at
1.0 as the original.
"""


@functools.cache
def upgraded(citizen: Citizen) -> ms.Sliceable:
    """The citizen as a sliceable network, with random weights in every leaf."""
    net = ms.upgrade(
        *citizen.arguments(),
        rates=RATES,
        groups=citizen.groups,
        norm=citizen.norm,
        **citizen.call,
    )
    return net.replace(variables=jax.tree.map(jnp.asarray, shaken(net.variables)))


def run(net: ms.Sliceable, citizen: Citizen, rate: float) -> np.ndarray:
    """The output outside jit: one compiled program for each rate."""
    first, *more = citizen.inputs
    return np.asarray(ms.slice_apply(net, first, rate, *more, **citizen.call))


@functools.cache
def output(citizen: Citizen, rate: float) -> np.ndarray:
    """The output of the upgraded network at a rate."""
    return run(upgraded(citizen), citizen, rate)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Equal up to rounding, measured against the largest expected entry."""
    scale = float(np.max(np.abs(expected)))
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


def assert_trees_equal(actual: Tree, expected: Tree) -> None:
    """Same structure, same entries, bit for bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# 1. Rate 1 is the original.


@everyone
def test_upgrade_gives_the_documented_tree(citizen: Citizen) -> None:
    net = upgraded(citizen)
    assert_trees_equal(net.variables, citizen.upgraded_by_hand())
    assert net.rates == RATES
    assert net.rate == 1.0


@everyone
def test_rate_one_is_the_original_bit_for_bit(citizen: Citizen) -> None:
    variables = citizen.narrow_by_hand(upgraded(citizen).variables, 1.0)
    original = citizen.run_by_hand(1.0, variables)
    np.testing.assert_array_equal(output(citizen, 1.0), original)


@pytest.mark.parametrize("name", ("mlp", "vgg_group", "decoder_split", "nnx_cnn_group"))
def test_rate_one_is_the_original_under_optimisation(name, optimized) -> None:
    citizen = NAMED[name]
    net = upgraded(citizen)
    weights = citizen.narrow_by_hand(net.variables, 1.0)
    jit = functools.partial(jax.jit, compiler_options=optimized)
    original = jit(citizen.function_by_hand(1.0))(weights, *citizen.inputs)

    @jit
    def at_one(net: ms.Sliceable, first: jax.Array, *more: jax.Array) -> jax.Array:
        return ms.slice_apply(net, first, 1.0, *more, **citizen.call)

    np.testing.assert_array_equal(at_one(net, *citizen.inputs), original)


# 2. Narrow is the extracted network, and the one built by hand.


@everyone
def test_narrow_equals_extracted_and_hand_built(citizen: Citizen) -> None:
    rate, net = 0.25, upgraded(citizen)
    small = ms.extract(net, rate)
    assert small.rate == rate
    np.testing.assert_array_equal(run(small, citizen, rate), output(citizen, rate))
    by_hand = citizen.narrow_by_hand(net.variables, rate)
    np.testing.assert_array_equal(
        citizen.run_by_hand(rate, by_hand), output(citizen, rate)
    )


@functools.cache
def slices_of_numbers(citizen: Citizen) -> tuple[dict[Any, Tree], dict[Any, Tree]]:
    """The numbered tree at each rate, and sliced twice: by (source, rate)."""
    plan = upgraded(citizen).plan

    @jax.jit  # one compilation for all slices
    def slices(tree: Tree) -> tuple[dict[Any, Tree], dict[Any, Tree]]:
        once = {rate: plan.slice(tree, rate) for rate in RATES}
        twice = {
            (source, rate): plan.slice(once[source], rate, source=source)
            for rate, source in itertools.combinations_with_replacement(RATES, 2)
        }
        return once, twice

    return slices(numbered(upgraded(citizen).variables))


@everyone
@pytest.mark.parametrize("rate", RATES)
def test_narrow_weights_are_those_cut_by_hand(citizen: Citizen, rate: float) -> None:
    # On numbers instead of weights, which shows the entries and their order.
    full = numbered(upgraded(citizen).variables)
    narrow = jax.tree.map(np.asarray, slices_of_numbers(citizen)[0][rate])
    if citizen.norm == "switchable":  # the plan has the norms of other rates too
        by_hand = flat(citizen.narrow_by_hand(full, rate))
        assert set(by_hand.tolist()) <= set(flat(narrow).tolist())
    else:
        assert_trees_equal(narrow, citizen.narrow_by_hand(full, rate))


@pytest.mark.parametrize("name", ("mlp", "vgg_group", "vgg_switchable", "inception"))
def test_odd_rate(name: str) -> None:
    citizen, rate = NAMED[name], 0.75
    weights = citizen.narrow_by_hand(upgraded(citizen).variables, rate)
    by_hand = citizen.run_by_hand(rate, weights)
    np.testing.assert_array_equal(by_hand, output(citizen, rate))


@everyone
def test_rates_differ(citizen: Citizen) -> None:
    outputs = [output(citizen, rate) for rate in RUN]
    for small, large in itertools.pairwise(outputs):
        assert np.max(np.abs(small - large)) > 1e-3


def test_inside_jit_is_outside_jit() -> None:
    citizen = NAMED["decoder_split"]
    jitted = jax.jit(lambda net, x: ms.slice_apply(net, x, 0.5))
    inside = jitted(upgraded(citizen), *citizen.inputs)
    assert_close(inside, output(citizen, 0.5))


# 3. Slicing nests.


@everyone
def test_slicing_nests(citizen: Citizen) -> None:
    once, twice = slices_of_numbers(citizen)
    for (_, rate), tree in twice.items():
        assert_trees_equal(tree, once[rate])


@everyone
def test_extracts_nest(citizen: Citizen) -> None:
    net = upgraded(citizen)
    large = ms.extract(net, 0.75)
    small = ms.extract(large, 0.5)
    assert_trees_equal(small.variables, ms.extract(net, 0.5).variables)
    assert small.rates == RATES[:2]
    np.testing.assert_array_equal(run(large, citizen, 0.5), output(citizen, 0.5))
    np.testing.assert_array_equal(run(small, citizen, 0.5), output(citizen, 0.5))


@everyone
def test_put_back_is_the_inverse_of_slice(citizen: Citizen) -> None:
    net = upgraded(citizen)
    other = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, net.variables)

    @jax.jit
    def there_and_back(tree: Tree, other: Tree) -> Tree:
        return net.plan.put_back(other, net.plan.slice(tree, 0.5), 0.5)

    full = there_and_back(net.variables, other)
    mask = net.plan.mask(net.variables, 0.5)
    wanted = jax.tree.map(np.where, mask, net.variables, other)
    assert_trees_equal(full, wanted)


# 4. Dropped units have no influence.


def numbered_mask(tree: Tree, kept: np.ndarray) -> Tree:
    """A tree of bool arrays, true at the kept numbers (see `networks.numbered`)."""
    leaves, structure = jax.tree.flatten(tree)
    keep = np.zeros(sum(np.size(leaf) for leaf in leaves), bool)
    keep[kept] = True
    parts = np.split(keep, np.cumsum([np.size(leaf) for leaf in leaves])[:-1])
    shaped = [
        part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, shaped)


@everyone
@pytest.mark.parametrize("rate", (0.25, 0.5))
def test_dropped_units_have_no_influence(citizen: Citizen, rate: float) -> None:
    net = upgraded(citizen)
    by_hand = numbered_mask(net.variables, kept_by_hand(citizen, rate))
    for mask in (net.plan.mask(net.variables, rate), by_hand):
        poisoned = jax.tree.map(
            lambda keep, leaf: np.where(keep, leaf, np.float32(np.nan)),
            mask,
            net.variables,
        )
        assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(poisoned))
        poisoned_output = run(net.replace(variables=poisoned), citizen, rate)
        np.testing.assert_array_equal(poisoned_output, output(citizen, rate))


# 5. Masking.


def outgoing(path: Any, mask: np.ndarray) -> np.ndarray:
    """True where a weight leaves a kept unit: the rows of a (..., in, out) kernel.

    Weights that enter a dropped unit stay, so the unit is alive, but nothing reads it.
    """
    if mask.ndim < 2 or "embedding" in jax.tree_util.keystr(path):
        return np.ones_like(mask)
    return np.broadcast_to(mask.any(axis=-1, keepdims=True), mask.shape)


@everyone
@pytest.mark.parametrize("rate", RUN[:2])
def test_units_that_nothing_reads_are_dropped_units(
    citizen: Citizen, rate: float
) -> None:
    if citizen.not_maskable:
        pytest.skip(citizen.not_maskable)
    net = upgraded(citizen)
    mask = jax.tree_util.tree_map_with_path(
        outgoing, numbered_mask(net.variables, kept_by_hand(citizen, rate))
    )
    masked = jax.tree.map(
        lambda keep, leaf: np.where(keep, leaf, np.float32(0)), mask, net.variables
    )
    full = run(net.replace(variables=masked), citizen, 1.0)
    assert_close(full, output(citizen, rate))


# 6. Gradients.


@everyone
def test_gradient_is_the_narrow_one_inside_and_zero_outside(citizen: Citizen) -> None:
    rate, net = 0.5, upgraded(citizen)
    first, *more = citizen.inputs
    shape = output(citizen, rate).shape
    towards = np.random.default_rng(3).normal(size=shape).astype(np.float32)

    def loss(net: ms.Sliceable) -> tuple[jax.Array, jax.Array]:
        y = ms.slice_apply(net, first, rate, *more, **citizen.call)
        return jnp.sum(towards * y), y

    def loss_by_hand(variables: Tree) -> tuple[jax.Array, jax.Array]:
        y = citizen.function_by_hand(rate)(variables, *citizen.inputs)
        return jnp.sum(towards * y), y

    @jax.jit  # both at once: one compilation
    def gradients(net: ms.Sliceable, variables: Tree) -> Any:
        by_hand = jax.grad(loss_by_hand, has_aux=True)(variables)
        return jax.grad(loss, has_aux=True)(net), by_hand

    weights = citizen.narrow_by_hand(net.variables, rate)
    (sliced, y), (by_hand, y_by_hand) = gradients(net, weights)
    np.testing.assert_array_equal(y, y_by_hand)
    full, narrow = flat(sliced.variables), flat(by_hand)
    kept = kept_by_hand(citizen, rate)
    assert_close(full[kept], narrow)
    assert np.count_nonzero(narrow) > 0.2 * narrow.size  # relus and dropout
    np.testing.assert_array_equal(np.delete(full, kept), 0.0)


@pytest.mark.parametrize("rate", (0.5, 1.0))
def test_relu_keeps_its_own_derivative_at_zero(rate: float) -> None:
    # jax.nn.relu has its own rule: 0 at 0, where maximum(x, 0) would have 1/2.
    model, x = Mlp(), np.zeros((2, 12), np.float32)
    variables = model.init(jax.random.key(0), x)  # biases are zero
    net = ms.upgrade(model, variables, x, rates=(0.5, 1.0))
    gradient = jax.jit(jax.grad(lambda net: jnp.sum(ms.slice_apply(net, x, rate))))(net)
    np.testing.assert_array_equal(gradient.variables["params"]["Dense_1"]["bias"], 0)
    np.testing.assert_array_equal(gradient.variables["params"]["Dense_0"]["bias"], 0)
    np.testing.assert_array_equal(gradient.variables["params"]["Dense_2"]["bias"], 2)


@pytest.mark.parametrize("name", ("vgg_shared", "vgg_switchable"))
def test_training_puts_the_narrow_statistics_back(name: str) -> None:
    citizen, rate = NAMED[name], 0.5
    net = upgraded(citizen)
    (x,) = citizen.inputs
    got, updates = ms.slice_apply(net, x, rate, train=True, mutable=["batch_stats"])
    wanted, narrow = citizen.function_by_hand(rate)(
        citizen.narrow_by_hand(net.variables, rate),
        x,
        train=True,
        mutable=["batch_stats"],
    )
    assert_close(got, wanted)
    # Put the narrow network's new statistics by hand where the old ones were cut out;
    # in a flat tree "batch_stats" comes before "params".
    statistics = flat(narrow["batch_stats"])
    expected = flat(net.variables)
    expected[kept_by_hand(citizen, rate)[: statistics.size]] = statistics
    assert_close(flat({**net.variables, **updates}), expected)


# 7. Permutation.


@everyone
def test_permuted_units_give_the_same_output(citizen: Citizen) -> None:
    if citizen.not_permutable:
        pytest.skip(citizen.not_permutable)
    net, rng = upgraded(citizen), np.random.default_rng(5)
    permutations = {
        name: rng.permutation(group.size) for name, group in net.plan.groups.items()
    }
    new = net.permute(permutations)
    assert_close(run(new, citizen, 1.0), output(citizen, 1.0))
    for group in net.plan.groups.values():
        assert group.leaves
    # Every leaf that narrows was permuted.
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), new.variables, net.variables
    )
    narrows = jax.tree.map(
        lambda keep: not keep.all(), net.plan.mask(net.variables, 0.25)
    )
    if citizen.norm != "switchable":  # a rate drops whole norms of other rates
        assert moved == narrows


def test_permutation_by_hand() -> None:
    citizen = NAMED["mlp"]
    net = upgraded(citizen)
    (group,) = (name for name, group in net.plan.groups.items() if group.size == 32)
    order = np.random.default_rng(6).permutation(32)
    params = dict(net.variables["params"])
    first, second = params["Dense_0"], params["Dense_1"]
    params["Dense_0"] = {
        "kernel": first["kernel"][:, order],
        "bias": first["bias"][order],
    }
    params["Dense_1"] = {"kernel": second["kernel"][order], "bias": second["bias"]}
    assert_trees_equal(
        net.plan.permute(net.variables, {group: order}), {"params": params}
    )
    # The proof can fail: a leaf left out changes the output.
    params["Dense_1"] = second
    wrong = run(net.replace(variables={"params": params}), citizen, 1.0)
    assert np.max(np.abs(wrong - output(citizen, 1.0))) > 1e-2


# 8. One compilation for each rate, none later.


compiled = pytest.mark.parametrize("name", ("mlp", "vgg_switchable"))


@compiled
def test_one_compilation_for_each_rate_inside_jit(name: str, compilations: Any) -> None:
    citizen = NAMED[name]
    net = upgraded(citizen)
    x = jnp.asarray(citizen.inputs[0])

    @functools.partial(jax.jit, static_argnames="rate")
    def step(net: ms.Sliceable, x: jax.Array, rate: float) -> ms.Sliceable:
        gradient = jax.grad(lambda net: jnp.sum(ms.slice_apply(net, x, rate)))(net)
        return jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, net, gradient)

    rates = RUN[1:]
    with compilations() as first:
        for rate in rates:
            net = step(net, x, rate)
    assert len(first) == len(rates)
    with compilations() as later:
        for rate in rates * 2:
            net = step(net, x, rate)
    assert later == []


@compiled
def test_no_compilation_later_outside_jit(name: str, compilations: Any) -> None:
    citizen = NAMED[name]
    net = upgraded(citizen)
    x = jnp.asarray(citizen.inputs[0])
    other = net.replace(variables=jax.tree.map(lambda leaf: leaf * 2, net.variables))
    for rate in RUN:
        ms.slice_apply(net, x, rate)
    with compilations() as later:
        for rate in RUN * 2:
            ms.slice_apply(net, x, rate)
            ms.slice_apply(other, x, rate)
    assert later == []
