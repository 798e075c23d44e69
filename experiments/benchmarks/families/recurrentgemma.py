"""Griffin, the network of RecurrentGemma, in Linen."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from experiments.benchmarks.families.family import Family, Network, load, tokens
from experiments.benchmarks.families.frameworks import from_linen

VOCABULARY, LENGTH = 61, 12


def griffin(*kinds: str) -> tuple[Any, jax.Array, jax.Array]:
    """The module, tokens, and their positions."""
    # It was written for an old typeguard.
    with mock.patch.object(load("typeguard"), "typechecked", lambda function: function):
        common = load("recurrentgemma.common")
    config = common.GriffinConfig(
        vocab_size=VOCABULARY,
        width=64,
        mlp_expanded_width=128,
        num_heads=4,
        block_types=tuple(common.TemporalBlockType[kind] for kind in kinds),
        embeddings_scale_by_sqrt_dim=False,
        attention_window_size=8,
        logits_soft_cap=30.0,
        scan_type=common.ScanType.LINEAR_NATIVE,
    )
    model = load("recurrentgemma.jax.griffin").Griffin(config)
    ids = tokens(2, LENGTH, vocabulary=VOCABULARY)
    return model, ids, jnp.broadcast_to(jnp.arange(LENGTH), ids.shape)


def forward() -> Network:
    """A recurrent block, and one of local attention."""
    model, *inputs = griffin("RECURRENT", "ATTENTION")
    return from_linen(model, *inputs, returns=lambda out: out[0], own=True)


def generation() -> Network:
    """A scan around the network with its states and caches."""
    model, ids, positions = griffin("RECURRENT", "ATTENTION")

    def function(variables: Any, ids: jax.Array) -> jax.Array:
        prompt = positions[:, : ids.shape[1]]
        logits, cache = model.apply(variables, ids, prompt)

        def step(carry: Any, t: jax.Array) -> Any:
            next_ids, cache = carry
            where = jnp.full_like(next_ids, t)
            logits, cache = model.apply(variables, next_ids, where, cache)
            return (jnp.argmax(logits, -1), cache), logits[:, 0]

        start = jnp.argmax(logits[:, -1:], -1), cache
        return jax.lax.scan(step, start, jnp.arange(4, LENGTH))[1]

    variables = from_linen(model, ids, positions, own=True).variables
    return Network(model=function, variables=variables, inputs=(ids[:, :4],))


def _family(name: str, build: Callable[[], Network]) -> Family:
    return Family(
        name=name, package="recurrentgemma", module="recurrentgemma", build=build
    )


FAMILIES = (_family("Griffin", forward), _family("Griffin generation", generation))
