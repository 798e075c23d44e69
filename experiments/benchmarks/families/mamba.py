"""Mamba-2 and Mamba-3, in NNX, from the packages of that name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.benchmarks.families.family import Family, Network, load, tokens
from experiments.benchmarks.families.frameworks import from_nnx

VOCABULARY, LENGTH = 61, 16


def language_model(version: int) -> Network:
    """Two layers over chunks of four tokens."""
    return from_nnx(
        _model(version),
        tokens(2, LENGTH, vocabulary=VOCABULARY),
        returns=lambda outputs: outputs["logits"],
    )


def generation() -> Network:
    """Mamba-2 generates: a scan around the model with its states as a cache."""
    package = load("mamba2_jax")

    def generate(model: Any, first: jax.Array) -> jax.Array:
        graphdef, state = nnx.split(model)

        def step(carry: Any, _: None) -> Any:
            ids, cache = carry
            outputs = nnx.merge(graphdef, state)(ids, cache=cache)
            logits = outputs["logits"]
            return (jnp.argmax(logits, -1), outputs["cache"]), logits[:, 0]

        start = first, package.create_empty_cache(model.cfg, first.shape[0])
        return jax.lax.scan(step, start, length=8)[1]

    return from_nnx(_model(2), tokens(2, 1, vocabulary=VOCABULARY), method=generate)


def _model(version: int) -> Any:
    package = load(f"mamba{version}_jax")
    config = getattr(package, f"Mamba{version}Config")(
        vocab_size=VOCABULARY,
        hidden_size=64,
        state_size=16,
        head_dim=16,
        chunk_size=4,
        num_hidden_layers=2,
    )
    return getattr(package, f"Mamba{version}ForCausalLM")(config, rngs=nnx.Rngs(0))


def _family(name: str, version: int, build: Callable[[], Network]) -> Family:
    return Family(
        name=name,
        package=f"mamba{version}-jax",
        module=f"mamba{version}_jax",
        build=build,
    )


FAMILIES = (
    _family("Mamba-2", 2, lambda: language_model(2)),
    _family("Mamba-2 generation", 2, generation),
    _family("Mamba-3", 3, lambda: language_model(3)),
)
