"""What the language models share: checks of tokens, embeddings, logits."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike


def check_tokens(tokens: jax.Array, vocab: int) -> None:
    """Raise ValueError unless `tokens` is (b, t), whole numbers in [0, vocab).

    Their values are looked at where there are any: not under jit, where `data.text`
    has checked what it gives. There a token above the range is embedded as NaN.
    """
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            "expected tokens of shape (batch, length), whole numbers; got "
            f"{tokens.dtype} of shape {tokens.shape}. A single text needs a batch "
            "axis: tokens[None]."
        )
    if isinstance(tokens, jax.core.Tracer) or not tokens.size:
        return
    if not getattr(tokens, "is_fully_addressable", True):  # of several hosts
        return
    low, high = int(np.min(tokens)), int(np.max(tokens))
    if low < 0 or high >= vocab:
        raise ValueError(
            f"expected tokens from 0 to {vocab - 1}, as the vocabulary has {vocab}; "
            f"got {low if low < 0 else high}. Encode the text with the vocabulary of "
            "the network."
        )


def embedding(
    vocab: int, units: int, *, deviation: float, dtype: DTypeLike | None
) -> nn.Embed:
    """A vector for each token, to be looked up or multiplied with."""
    init = nn.initializers.normal(deviation)
    return nn.Embed(vocab, units, dtype=dtype, embedding_init=init, name="embed")


def logits(
    x: jax.Array, embed: nn.Embed, *, tied: bool, dtype: DTypeLike | None
) -> jax.Array:
    """(b, t, units) -> (b, t, vocab), in at least single precision.

    By the embedding itself (Press and Wolf, 2017), or by a dense layer with a bias.
    """
    if tied:
        y = embed.attend(x)
    else:
        y = nn.Dense(embed.num_embeddings, dtype=dtype, name="softmax")(x)
    return y.astype(jnp.promote_types(y.dtype, jnp.float32))
