"""Counts in logarithms, exponents and products."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from tests.spellings.spelling import Spelling, total


def entropy(h):
    p = jax.nn.softmax(h, -1)
    return -total(p * jnp.log(p))


def log_sum(h):
    return jax.nn.logsumexp(h, -1, keepdims=True)


def log_sum_by_hand(h, s, n):
    top = lax.stop_gradient(h.max(-1, keepdims=True))
    return top + jnp.log(total(jnp.exp(h - top))) - jnp.log(n)


def divergence(h, s, n):
    """From a softmax to the uniform distribution."""
    p = jax.nn.softmax(h, -1)
    return total(p * (jnp.log(p) - math.log(1 / n)))


def divergence_of_product(h, s, n):
    p = jax.nn.softmax(h, -1)
    return total(p * jnp.log(p * n))


def smoothed(h, s, n):
    """Labels that are spread over all classes."""
    p = 0.9 * jax.nn.softmax(h, -1) + 0.1 / n
    return h * p * n


def positive(h):
    return 0.5 + jax.nn.sigmoid(h)


def in_logarithms(h, s, n):
    """logaddexp.reduce, as in state spaces."""
    sums = lax.reduce(h, -jnp.inf, jnp.logaddexp, (1,))
    return sums[:, None] - math.log(n)


LOGARITHMS: dict[str, Spelling] = {
    "logmeanexp": lambda h, s, n: log_sum(h) - math.log(n),
    "logmeanexp_jnp": lambda h, s, n: log_sum(h) - jnp.log(n),
    "logmeanexp_plus": lambda h, s, n: -math.log(n) + log_sum(h),
    "logmeanexp_of_inverse": lambda h, s, n: log_sum(h) + math.log(1 / n),
    "logmeanexp_inside": lambda h, s, n: log_sum(h - math.log(n)),
    "logmeanexp_weighted": lambda h, s, n: jax.nn.logsumexp(
        h, -1, b=1 / n, keepdims=True
    ),
    "logmeanexp_by_hand": log_sum_by_hand,
    "logmeanexp_temperature": lambda h, s, n: (log_sum(3 * h) - math.log(n)) / 3,
    "log_of_mean": lambda h, s, n: jnp.log(total(jnp.exp(h)) / n),
    "log_of_jnp_mean": lambda h, s, n: jnp.log(jnp.exp(h).mean(-1, keepdims=True)),
    "log_of_sum": lambda h, s, n: jnp.log(total(jnp.exp(h))) - math.log(n),
    "log1p_of_sum": lambda h, s, n: jnp.log1p(total(h * h) / n),
    "log2": lambda h, s, n: jnp.log2(total(jnp.exp(h))) - math.log2(n),
    "log_of_two": lambda h, s, n: jnp.log(total(h * h) / total(jnp.exp(h))),
    "log_of_norm": lambda h, s, n: (
        jnp.log(jnp.linalg.norm(h, axis=-1, keepdims=True)) - 0.5 * math.log(n)
    ),
    "log_softmax": lambda h, s, n: jax.nn.log_softmax(h, -1) + math.log(n),
    "softmax": lambda h, s, n: n * jax.nn.softmax(h, -1),
    "softmax_behind": lambda h, s, n: h * jax.nn.softmax(h, -1) * n,
    "softmax_by_hand": lambda h, s, n: jnp.exp(h) / total(jnp.exp(h)) * n,
    "softmax_over_inverse": lambda h, s, n: jax.nn.softmax(h, -1) / (1 / n),
    "softmax_of_tokens": lambda h, s, n: h * jax.nn.softmax(h, 0) * h.shape[0],
    "entropy": lambda h, s, n: h * entropy(h) / math.log(n),
    "entropy_jnp": lambda h, s, n: h * entropy(h) / jnp.log(n),
    "entropy_inverse": lambda h, s, n: h * entropy(h) * (1 / math.log(n)),
    "entropy_gap": lambda h, s, n: h * (math.log(n) - entropy(h)),
    "perplexity": lambda h, s, n: h * jnp.exp(entropy(h)) / n,
    "effective_number": lambda h, s, n: h / (n * total(jax.nn.softmax(h, -1) ** 2)),
    "divergence": divergence,
    "divergence_of_product": divergence_of_product,
    "smoothed": smoothed,
    "product": lambda h, s, n: positive(h).prod(-1, keepdims=True) ** (1 / n),
    "product_power": lambda h, s, n: jnp.power(
        jnp.prod(positive(h), -1, keepdims=True), 1 / n
    ),
    "geometric": lambda h, s, n: jnp.exp(total(jnp.log(positive(h))) / n),
    "geometric_mean": lambda h, s, n: jnp.exp(
        jnp.mean(jnp.log(positive(h)), -1, keepdims=True)
    ),
    "geometric_terms": lambda h, s, n: jnp.prod(positive(h) ** (1 / n), -1)[:, None],
    "harmonic": lambda h, s, n: n / total(1 / positive(h)),
    "harmonic_mean": lambda h, s, n: 1 / (total(1 / positive(h)) / n),
    "power_mean": lambda h, s, n: (total(positive(h) ** 3) / n) ** (1 / 3),
    "power_mean_apart": lambda h, s, n: (
        jnp.cbrt(total(positive(h) ** 3)) / n ** (1 / 3)
    ),
    "likelihood": lambda h, s, n: total(-0.5 * h**2 - 0.5 * math.log(2 * math.pi)) / n,
    "log_determinant": lambda h, s, n: (
        h + jnp.log(jnp.abs(s) + 0.1).sum() / n - total(h**2) / (2 * n)
    ),
    "in_logarithms": in_logarithms,
}
