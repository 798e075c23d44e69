"""Numbers that stay, though some are equal to the number of units.

`n` is the full number of units here, at every rate.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from tests.spellings.spelling import Spelling, total


def attention(h, s, n):
    """Over tokens, with one head of all units: its scale is no mean's."""
    t = h[:, None] * jnp.asarray([1.0, 0.5, -0.3])[None, :, None]
    scores = jnp.einsum("bqd,bkd->bqk", t, t) / math.sqrt(n)
    return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores, -1), t)[:, 0]


def decayed(h, s, n):
    """A moving average over time; .5 is no share of units."""

    def step(c, row):
        c = 0.5 * c + 0.5 * row
        return c, c

    return lax.scan(step, h[0], h)[1]


def momentum(h, s, n):
    mean = total(h) / h.shape[-1]
    return 0.9 * h + (1 - 0.9) * mean


def temperature_beside_a_mean(h, s, n):
    return jax.nn.softmax((h - h.mean(-1, keepdims=True)) / 24.0, 0)


STAYS: dict[str, Spelling] = {
    "half": lambda h, s, n: h * 0.5,
    "quarter": lambda h, s, n: jnp.tanh(h) / 4.0,
    "half_of_a_sum": lambda h, s, n: h + 0.5 * total(h),
    "gelu": lambda h, s, n: jax.nn.gelu(h),
    "temperature": lambda h, s, n: jnp.tanh(h / n),
    "temperature_of_exponents": lambda h, s, n: jnp.exp(-(h**2) / n),
    "temperature_beside_a_mean": temperature_beside_a_mean,
    "rows": lambda h, s, n: h - h.sum(0, keepdims=True) / h.shape[0],
    "rows_of_squares": lambda h, s, n: h + jnp.sum(h * h) / h.shape[0],
    "some_number": lambda h, s, n: h * total(h) / 17.0,
    "exponent": lambda h, s, n: (0.5 + jax.nn.sigmoid(h)) ** 24.0,
    "added": lambda h, s, n: jnp.sin(h + n),
    "clipped": lambda h, s, n: jnp.clip(h, -n / 1, n / 1),
    "compared": lambda h, s, n: jnp.where(h * n > n, h, -h),
    "attention_over_rows": lambda h, s, n: jax.nn.softmax(h @ h.T / 2.0, -1) @ h,
    "softmax_times_seven": lambda h, s, n: 7 * jax.nn.softmax(h, -1),
    "decayed": decayed,
    "momentum": momentum,
    "angle": lambda h, s, n: jnp.sin(2 * math.pi * h / n),
    "literal_in_activation": lambda h, s, n: 24 * jnp.tanh(h / 24),
}
"""They cancel nothing that is known of the values: no warning."""

REPORTED: dict[str, Spelling] = {
    "parameter_times_root": lambda h, s, n: h * (s * math.sqrt(n))[None],
    "parameter_over_root": lambda h, s, n: h * (s / math.sqrt(n))[None],
    "sum_over_root": lambda h, s, n: jnp.tanh(h) * total(h) / math.sqrt(n),
    "contraction_over_root": lambda h, s, n: h + (h @ s[:, None]) / math.sqrt(n),
    "contraction_over": lambda h, s, n: h + (h @ s[:, None]) / n,
    "contraction_times": lambda h, s, n: jnp.einsum("bd,d->b", h, s)[:, None] * (1 / n),
    "parameter_over": lambda h, s, n: h @ (s / n)[:, None],
    "contraction_of_two": lambda h, s, n: jnp.vecdot(h, jnp.cos(h))[:, None] / n,
    "terms_of_a_contraction": lambda h, s, n: jnp.vecdot(h / n, jnp.cos(h))[:, None],
    "attention": attention,
}
"""They meet a sum, or a parameter, along the axis, and are no mean's: they stay and
the user is warned, unless the function itself decides."""
