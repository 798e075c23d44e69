"""Text from a language model: token by token, each call going on where the last ended.

It needs no more of the model than a function, so it serves whole and narrow networks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .tokens import check_tokens


def generate(
    call: Callable[[Any, jax.Array], tuple[jax.Array, Any]],
    state: Any,
    prompt: Int[Array, "b t"],
    count: int,
    *,
    temperature: float = 0.0,
    key: jax.Array | None = None,
    max_length: int | None = None,
) -> Int[Array, "b count"]:
    """What follows a prompt.

    Args:
      call: (state, tokens (b, t)) -> (logits (b, t, vocab), new state). It is traced
        twice: with the prompt, and with one token in a loop.
      state: before the prompt: the empty cache of a `Decoder`, the hidden state of a
        `RecurrentLM`.
      prompt: (b, t), at least one token each.
      count: how many tokens to add.
      temperature: 0 takes the most likely token; otherwise tokens are drawn from the
        softmax of logits / temperature.
      key: for drawing; needed where the temperature is not 0.
      max_length: what prompt and continuation have to fit into, such as the decoder's.

    Returns:
      The continuation alone.

    Raises:
      ValueError: for an empty prompt, a token out of range, a count below 1, a
        temperature below 0 or without a key, or a text that becomes longer than
        `max_length`.

    Example:
      >>> import jax
      >>> from mslice_jax.models import Decoder, generate
      >>> model = Decoder(vocab=9, units=8, layers=1, heads=2, kv_heads=1, max_length=8)
      >>> prompt = jax.numpy.array([[1, 2, 3]])
      >>> start = model.init(jax.random.key(0), prompt, decode=True)
      >>> def call(cache, tokens):
      ...     variables = {"params": start["params"], **cache}
      ...     return model.apply(variables, tokens, decode=True, mutable=["cache"])
      >>> generate(call, {"cache": start["cache"]}, prompt, 5, max_length=8).shape
      (1, 5)
    """
    if prompt.ndim != 2 or not prompt.shape[1]:
        raise ValueError(
            "expected a prompt (batch, length) of at least one token, got one of "
            f"shape {prompt.shape}."
        )
    if count < 1:
        raise ValueError(f"expected to add at least 1 token, got count={count}.")
    if temperature < 0 or (temperature and key is None):
        raise ValueError(
            "expected a temperature of 0, or one above it together with a key; got "
            f"{temperature} and {'a' if key is not None else 'no'} key."
        )
    # The last token that is added is not read again.
    needed = prompt.shape[1] + count - 1
    if max_length is not None and needed > max_length:
        raise ValueError(
            f"a prompt of {prompt.shape[1]} and {count} tokens more need a model of "
            f"max_length {needed}, and this one has {max_length}. Ask for fewer."
        )

    def chosen(logits: jax.Array, key: Any) -> jax.Array:
        if not temperature:
            return jnp.argmax(logits[:, -1], axis=-1).astype(prompt.dtype)
        drawn = jax.random.categorical(key, logits[:, -1] / temperature)
        return drawn.astype(prompt.dtype)

    def step(carry: Any, key: Any) -> Any:
        state, token = carry
        logits, state = call(state, token[:, None])
        return (state, token := chosen(logits, key)), token

    keys = None if key is None else jax.random.split(key, count)
    logits, state = call(state, prompt)
    check_tokens(prompt, logits.shape[-1])
    first = chosen(logits, None if keys is None else keys[0])
    more = None if keys is None else keys[1:]
    _, rest = jax.lax.scan(step, (state, first), more, length=count - 1)
    return jnp.concatenate([first[:, None], rest.T], axis=1)
