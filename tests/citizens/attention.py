"""Transformers: fused QKV in three layouts, gated MLP, grouped-query attention."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.citizens.citizen import (
    Citizen,
    Tree,
    beside,
    cut,
    everything,
    kernel,
    lead,
    part_of,
    random_inputs,
    random_tokens,
    vectors,
    within,
)

HEAD = 4  # size of a head; heads narrow, their size is fixed


class Decoder(nn.Module):
    """Causal transformer: embedding, attention, gated MLP, layer norm, vocabulary.

    `fused` is how one Dense(3 d) becomes q, k and v: "split" in three parts, "reshape"
    to (3, heads, head size), "interleaved" to (heads, 3 * head size).
    """

    units: int = 16
    heads: int = 4
    hidden: int = 24
    layers: int = 1
    fused: str = "split"

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(11, self.units, name="embed")(tokens)
        x = x + nn.Embed(8, self.units, name="place")(jnp.arange(tokens.shape[1]))[None]
        for index in range(self.layers):
            y = nn.LayerNorm(name=f"norm{index}a")(x)
            x = x + self.attend(y, f"{index}")
            y = nn.LayerNorm(name=f"norm{index}b")(x)
            y = nn.Dense(2 * self.hidden, name=f"gated{index}")(y)
            gate, value = jnp.split(y, 2, axis=-1)
            x = x + nn.Dense(self.units, name=f"down{index}")(nn.silu(gate) * value)
        return nn.Dense(11, name="head")(nn.LayerNorm(name="norm")(x))

    def attend(self, x: jax.Array, index: str) -> jax.Array:
        """Causal attention, (b, t, units) -> (b, t, units)."""
        batch, time, _ = x.shape
        shape = batch, time, self.heads, HEAD
        fused = nn.Dense(3 * self.heads * HEAD, name=f"qkv{index}")(x)
        if self.fused == "split":
            query, key, value = (
                part.reshape(shape) for part in jnp.split(fused, 3, axis=-1)
            )
        elif self.fused == "reshape":
            parts = fused.reshape(batch, time, 3, self.heads, HEAD)
            query, key, value = parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]
        else:
            parts = fused.reshape(batch, time, self.heads, 3 * HEAD)
            query, key, value = jnp.split(parts, 3, axis=-1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(HEAD)
        past = jnp.tril(jnp.ones((time, time), bool))
        weights = jax.nn.softmax(jnp.where(past, scores, -1e30))
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return nn.Dense(self.units, name=f"out{index}")(out.reshape(batch, time, -1))


def narrow_decoder(layers: int, fused: str) -> Any:
    """16 units in the residual stream, 4 heads of 4, a gate and a value of 24."""

    def narrow(variables: Tree, rate: float) -> Tree:
        params = variables["params"]
        stream, hidden = lead(16, rate), lead(24, rate)
        heads = within(lead(4, rate), HEAD, everything(HEAD))
        if fused == "interleaved":
            qkv = within(lead(4, rate), 3 * HEAD, everything(3 * HEAD))
        else:
            qkv = beside((16, heads), (16, heads), (16, heads))
        narrow = {
            "embed": {"embedding": cut(params["embed"]["embedding"], stream)},
            "place": {"embedding": cut(params["place"]["embedding"], stream)},
            "norm": vectors(params["norm"], stream),
            "head": kernel(params["head"], stream, everything(11)),
        }
        for index in range(layers):
            cuts = {
                f"qkv{index}": (stream, qkv),
                f"out{index}": (heads, stream),
                f"gated{index}": (stream, beside((24, hidden), (24, hidden))),
                f"down{index}": (hidden, stream),
            }
            narrow |= {name: kernel(params[name], *kept) for name, kept in cuts.items()}
            for name in (f"norm{index}a", f"norm{index}b"):
                narrow[name] = vectors(params[name], stream)
        return {"params": narrow}

    return narrow


def decoder(fused: str, layers: int = 1) -> Citizen:
    """A decoder transformer with one of the three QKV layouts."""

    def build(rate: float) -> Decoder:
        sizes = [part_of(size, rate) for size in (16, 4, 24)]
        return Decoder(*sizes, layers=layers, fused=fused)

    return Citizen(
        name=f"decoder_{fused}",
        model=Decoder(layers=layers, fused=fused),
        inputs=(random_tokens(2, 6, below=11),),
        by_hand=build,
        narrow_by_hand=narrow_decoder(layers, fused),
        not_maskable="layer norm takes a mean over the stream",
    )


def rotate(x: jax.Array) -> jax.Array:
    """Rotary embedding of (b, t, ..., head size): halves of a head turn together."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10.0 ** -jnp.arange(half)[None]
    angles = angles.reshape(1, x.shape[1], *[1] * (x.ndim - 3), half)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], -1)


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x over its root mean square along the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def grouped_query_attention(repeat: bool) -> Any:
    """8 query heads share 4 key and value heads; plain function of a dict of arrays."""

    def run(variables: Tree, x: jax.Array) -> jax.Array:
        batch, time, _ = x.shape
        x = x @ variables["enter"]
        y = rms_norm(x, variables["scale"][None, None])
        key = rotate((y @ variables["key"]).reshape(batch, time, -1, HEAD))
        value = (y @ variables["value"]).reshape(batch, time, -1, HEAD)
        shared = key.shape[2]
        query = y @ variables["query"]
        past = jnp.arange(time)[:, None] >= jnp.arange(time)[None]
        if repeat:  # the usual code: each key and value head twice
            query = rotate(query.reshape(batch, time, 2 * shared, HEAD))
            key, value = (jnp.repeat(part, 2, axis=2) for part in (key, value))
            scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * HEAD**-0.5
            weights = jax.nn.softmax(jnp.where(past, scores, -1e30))
            out = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        else:  # (key head, its query heads): two axes
            query = rotate(query.reshape(batch, time, shared, 2, HEAD))
            scores = jnp.einsum("bqhgd,bkhd->bhgqk", query, key) * HEAD**-0.5
            weights = jax.nn.softmax(jnp.where(past, scores, -1e30))
            out = jnp.einsum("bhgqk,bkhd->bqhgd", weights, value)
        x = x + out.reshape(batch, time, -1) @ variables["out"]
        return x @ variables["leave"]

    return run


def init_grouped_query(key: jax.Array) -> Tree:
    """Zeros of the right shapes; the values are drawn later."""
    del key
    shapes = {
        "enter": (12, 16),
        "scale": (16,),
        "query": (16, 32),
        "key": (16, 16),
        "value": (16, 16),
        "out": (32, 16),
        "leave": (16, 5),
    }
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def narrow_grouped_query(variables: Tree, rate: float) -> Tree:
    """Key heads narrow, each with its two query heads."""
    stream = lead(16, rate)
    shared = within(lead(4, rate), HEAD, everything(HEAD))
    queries = within(lead(4, rate), 2 * HEAD, everything(2 * HEAD))
    cuts = {
        "enter": (everything(12), stream),
        "scale": (stream,),
        "query": (stream, queries),
        "key": (stream, shared),
        "value": (stream, shared),
        "out": (queries, stream),
        "leave": (stream, everything(5)),
    }
    return {name: cut(variables[name], *kept) for name, kept in cuts.items()}


def grouped_query(repeat: bool) -> Citizen:
    """Grouped-query attention with rotary embedding and RMS norm."""
    run = grouped_query_attention(repeat)
    return Citizen(
        name="grouped_query_repeat" if repeat else "grouped_query",
        model=run,
        init=init_grouped_query,
        inputs=(random_inputs(2, 6, 12),),
        by_hand=lambda rate: run,
        narrow_by_hand=narrow_grouped_query,
        not_maskable="RMS norm takes a mean over the stream",
    )
