"""Networks of Flax that Qwix quantizes, or gives low-rank adapters."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks.families.family import (
    Family,
    Network,
    image,
    load,
    tokens,
)
from experiments.benchmarks.families.frameworks import from_linen, stirred

VOCABULARY, WIDTH = 61, 64


class Decoder(nn.Module):
    """Two layers of attention and dense layers, in plain Linen."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH)(ids)
        mask = nn.make_causal_mask(ids)
        for _ in range(2):
            y = nn.LayerNorm()(x)
            x += nn.MultiHeadDotProductAttention(4)(y, mask=mask)
            y = nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))
            x += nn.Dense(WIDTH)(nn.gelu(y))
        return nn.Dense(VOCABULARY)(nn.LayerNorm()(x))


class Perceptron(nn.Module):
    """Four dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(3):
            x = nn.relu(nn.Dense(2 * WIDTH)(x))
        return nn.Dense(5)(x)


IDS = (2, 12)


def trained(model: nn.Module, *inputs: jax.Array, **types: Any) -> Network:
    """Quantized training: floating weights, rounded in every call."""
    qwix = load("qwix")
    provider = qwix.QtProvider([qwix.QtRule(module_path=".*", **types)])
    return from_linen(qwix.quantize_model(model, provider), *inputs)


def weights() -> Network:
    """Only the weights are rounded, to eight bits."""
    ids = tokens(*IDS, vocabulary=VOCABULARY)
    return trained(Decoder(), ids, weight_qtype=jnp.int8)


def products() -> Network:
    """Both factors of every product are rounded to eight bits.

    Sums of many layers in another order of units would round to other integers, so this
    network is small.
    """
    types = {"weight_qtype": jnp.int8, "act_qtype": jnp.int8}
    return trained(Perceptron(), image(4, 8), **types)


def stored() -> Network:
    """Weights that are stored as integers of eight bits with their scales."""
    qwix, ids = load("qwix"), tokens(*IDS, vocabulary=VOCABULARY)
    rule = qwix.QuantizationRule(module_path=".*", weight_qtype=jnp.int8)
    model = qwix.quantize_model(Decoder(), qwix.PtqProvider([rule]))
    types = jax.eval_shape(model.init, jax.random.key(0), ids)
    floats = from_linen(Decoder(), ids).variables
    params = qwix.quantize_params(floats["params"], types["params"])
    return Network(model=model, variables={"params": params}, inputs=(ids,))


def adapted() -> Network:
    """Low-rank adapters beside the weights of every dense layer."""
    qwix, ids = load("qwix"), tokens(*IDS, vocabulary=VOCABULARY)
    provider = qwix.LoraProvider([qwix.LoraRule(module_path=".*", rank=4, alpha=8.0)])
    model = qwix.apply_lora_to_model(Decoder(), provider)
    variables = stirred(model.init(jax.random.key(0), ids))
    return Network(model=model, variables=variables, inputs=(ids,))


def _family(name: str, build: Callable[[], Network], **settings: Any) -> Family:
    return Family(name=name, package="qwix", module="qwix", build=build, **settings)


FAMILIES = (
    _family("int8 weights (training)", weights),
    _family("int8 products (training)", products),
    _family("int8 weights (stored)", stored),
    _family("LoRA", adapted),
)
