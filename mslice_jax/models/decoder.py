"""A decoder transformer, as language models of today are built."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from .tokens import check_tokens, embedding, logits


class Decoder(nn.Module):
    """RMS norms, rotary positions, grouped-query attention, a gated MLP.

    Before attention and before the MLP there is a norm (Zhang and Sennrich, 2019), and
    one at the end; positions turn queries and keys (Su et al., 2021); heads share keys
    and values in groups (Ainslie et al., 2023); the MLP is SwiGLU (Shazeer, 2020). No
    layer has a bias. Heads are dropped whole, with their group: `kv_heads` is the
    number of units that attention narrows by.

    Attributes:
      vocab: how many tokens there are.
      units: size of the stream.
      layers: how many.
      heads: of queries.
      kv_heads: of keys and values; has to divide `heads`.
      head_size: of each head; even. None is units / heads.
      hidden: of the MLP; None is 8/3 of `units`, up to the next multiple of 8.
      max_length: the longest text, and the length of the cache.
      dropout: share of the embedding's and of each branch's outputs that is dropped.
      tied: whether the softmax uses the embedding's weights.
      scan: whether layers run in one `nn.scan`, their weights stacked: compiles in the
        time of one layer.
      dtype: what layers compute in; None is the type of the parameters, float32.

    Raises:
      ValueError: at construction for sizes that do not fit; at a call for tokens out of
        range, or for a text that is longer than `max_length`.

    Example:
      >>> import jax
      >>> from mslice_jax.models import Decoder
      >>> model = Decoder(vocab=100, units=32, layers=2, heads=4, kv_heads=2)
      >>> tokens = jax.numpy.zeros((4, 16), int)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)[0].shape
      (4, 16, 100)
    """

    vocab: int
    units: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    head_size: int | None = None
    hidden: int | None = None
    max_length: int = 1024
    dropout: float = 0.0
    tied: bool = True
    scan: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(
                f"expected kv_heads that divides heads={self.heads}, got "
                f"{self.kv_heads}."
            )
        if self.head_size is None and self.units % self.heads:
            raise ValueError(
                f"expected heads that divide units={self.units}, got {self.heads}; or "
                "give head_size."
            )
        if self._head_size % 2:
            raise ValueError(
                f"expected heads of an even size, got {self._head_size}: positions "
                "turn pairs."
            )
        super().__post_init__()

    @property
    def _head_size(self) -> int:
        return self.head_size or self.units // self.heads

    @nn.nowrap
    def __check_call__(self, tokens: Any = None, *more: Any, **call: Any) -> None:
        """Raises ValueError for tokens out of range, which a trace does not see."""
        del more, call
        if tokens is not None:
            check_tokens(tokens, self.vocab)

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b t"], *, train: bool = False, decode: bool = False
    ) -> Float[Array, "b t vocab"]:
        """Tokens (b, t) -> logits (b, t, vocab) of the token that follows each.

        With ``train=True`` and dropout a random stream "dropout" is needed. With
        ``decode=True`` the tokens follow those of earlier calls, whose keys and values
        are in the collection "cache", which has to be mutable: (b, max_length,
        kv_heads, head_size) for each layer. ``init(..., decode=True)`` makes an empty
        one, and so does the first call where there is none. What would follow position
        `max_length` has logits that are NaN.
        """
        check_tokens(tokens, self.vocab)
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"expected at most max_length={self.max_length} tokens, got a text of "
                f"{length}. Cut it, or build the network with a larger max_length."
            )
        start = jnp.zeros((), jnp.int32)
        if decode:
            index = self.variable("cache", "index", lambda: jnp.zeros((), jnp.int32))
            start = index.value
            if not self.is_initializing():
                index.value = start + length
        # With it tied logits begin with variance 1; norms follow, so nothing is small.
        deviation = self.units**-0.5
        embed = embedding(self.vocab, self.units, deviation=deviation, dtype=self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(embed(tokens))
        sizes = {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_size": self._head_size,
            "hidden": self.hidden or -(-self.units // 3) * 8,
            "max_length": self.max_length,
            "dropout": 0.0 if not train else self.dropout,
            "decode": decode,
            "dtype": self.dtype,
        }
        if self.scan:
            stack = nn.scan(
                _Block,
                variable_axes={"params": 0, "cache": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,  # type: ignore[arg-type]  # as Flax has it
                length=self.layers,
            )
            x, _ = stack(**sizes, name="layers")(x, start)
        else:
            for layer in range(self.layers):
                x, _ = _Block(**sizes, name=f"layer{layer}")(x, start)
        x = nn.RMSNorm(dtype=self.dtype, name="norm")(x)
        y = logits(x, embed, tied=self.tied, dtype=self.dtype)
        if decode:  # where the cache ends is known too late for an error
            y = jnp.where(start + length <= self.max_length, y, jnp.nan)
        return y


class _Block(nn.Module):
    """(b, t, units) -> the same: attention, then the MLP, each added to the stream."""

    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    max_length: int
    dropout: float
    decode: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)
        y = nn.RMSNorm(dtype=self.dtype, name="norm_attention")(x)
        x = x + drop(self._attention(y, start))
        y = nn.RMSNorm(dtype=self.dtype, name="norm_mlp")(x)
        y = nn.silu(self._dense(self.hidden, "gate")(y)) * self._dense(
            self.hidden, "up"
        )(y)
        return x + drop(self._dense(x.shape[-1], "down")(y)), None

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, use_bias=False, dtype=self.dtype, name=name)

    def _attention(self, x: jax.Array, start: jax.Array) -> jax.Array:
        b, t, units = x.shape
        kv, each, size = self.kv_heads, self.heads // self.kv_heads, self.head_size
        # Of an axis that is split the outer factor narrows: groups of heads.
        query = self._dense(kv * each * size, "query")(x).reshape(b, t, kv, each, size)
        key = self._dense(kv * size, "key")(x).reshape(b, t, kv, size)
        value = self._dense(kv * size, "value")(x).reshape(b, t, kv, size)
        positions = start + jnp.arange(t)
        query = _turned(query, positions[:, None, None])
        key = _turned(key, positions[:, None])
        key, value = self._remembered(key, value, start)
        scores = jnp.einsum("btkgd,bskd->bkgts", query, key) * size**-0.5
        past = positions[:, None] >= jnp.arange(key.shape[1])[None]
        scores = jnp.where(past[None, None, None], scores, jnp.finfo(scores.dtype).min)
        y = jnp.einsum("bkgts,bskd->btkgd", nn.softmax(scores), value)
        return self._dense(units, "out")(y.reshape(b, t, kv * each * size))

    def _remembered(
        self, key: jax.Array, value: jax.Array, start: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values of all positions so far; the rest of the cache is zeros."""
        if not self.decode:
            return key, value
        b, _, kv, size = key.shape
        found = []
        for name, new in (("keys", key), ("values", value)):
            kept = self.variable(
                "cache",
                name,
                lambda new=new: jnp.zeros((b, self.max_length, kv, size), new.dtype),
            )
            if kept.value.shape[0] != b:
                raise ValueError(
                    f"expected {kept.value.shape[0]} texts, as many as the cache has; "
                    f"got {b}."
                )
            whole = jax.lax.dynamic_update_slice(
                kept.value, new.astype(kept.value.dtype), (0, start, 0, 0)
            )
            if not self.is_initializing():
                kept.value = whole
            found.append(whole)
        return found[0], found[1]


def _turned(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Pairs of a head's entries (..., size), turned by angles of the position.

    Entry i and entry i + size / 2 are a pair; it turns by 10000^(-2i / size) a token.
    """
    half = x.shape[-1] // 2
    speed = 10000.0 ** (-jnp.arange(half) / half)
    angle = positions[..., None].astype(jnp.float32) * speed.reshape(
        (1,) * positions.ndim + (half,)
    )
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[None], sin[None]
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
