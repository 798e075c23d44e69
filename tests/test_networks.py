"""The table itself: hand-built networks and hand-written slices fit each other.

These tests use nothing of the library. They show that each citizen's oracle is right,
so a failing proof is a fault of the library.
"""

import functools
import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.citizens.citizen import RATES, Citizen
from tests.networks import everyone, kept_by_hand


@everyone
@pytest.mark.parametrize("rate", (0.25, 0.75))
def test_hand_written_slices_have_the_shapes_of_the_hand_built(
    citizen: Citizen, rate: float
) -> None:
    narrow = citizen.narrow_by_hand(citizen.upgraded_by_hand(), rate)
    model = citizen.by_hand(rate)
    if isinstance(model, nn.Module):
        arguments = {k: v for k, v in citizen.call.items() if k != "rngs"}
        wanted = jax.eval_shape(
            functools.partial(model.init, **arguments),
            jax.random.key(0),
            *citizen.inputs,
        )
        assert jax.tree.map(np.shape, narrow) == jax.tree.map(np.shape, wanted)
    function = citizen.function_by_hand(rate)
    full = citizen.function_by_hand(1.0)
    whole = citizen.narrow_by_hand(citizen.upgraded_by_hand(), 1.0)
    output = jax.eval_shape(function, narrow, *citizen.inputs)
    assert output == jax.eval_shape(full, whole, *citizen.inputs)


@everyone
def test_hand_written_slices_nest(citizen: Citizen) -> None:
    if citizen.norm == "switchable":
        pytest.skip("each rate has its own norms")
    kept = [set(kept_by_hand(citizen, rate).tolist()) for rate in RATES]
    for small, large in itertools.pairwise(kept):
        assert small < large


@everyone
def test_the_narrow_network_is_the_masked_full_one(citizen: Citizen) -> None:
    if citizen.not_maskable:
        pytest.skip(citizen.not_maskable)
    variables = citizen.upgraded_by_hand()
    narrow = citizen.narrow_by_hand(variables, 0.5)
    keep = np.zeros(sum(np.size(leaf) for leaf in jax.tree.leaves(variables)), bool)
    keep[kept_by_hand(citizen, 0.5)] = True
    leaves, structure = jax.tree.flatten(variables)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    masked = [
        np.where(part.reshape(leaf.shape), leaf, 0)
        for leaf, part in zip(leaves, np.split(keep, ends), strict=True)
    ]
    full = citizen.run_by_hand(1.0, jax.tree.unflatten(structure, masked))
    np.testing.assert_allclose(
        full, citizen.run_by_hand(0.5, narrow), rtol=1e-5, atol=1e-5
    )
