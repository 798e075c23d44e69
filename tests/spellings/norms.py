"""Norms and moments: roots and powers of sums over their number of terms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.spellings.spelling import Spelling, total

EPSILON = 1e-5


def norm(h, **options):
    return jnp.linalg.norm(h, axis=-1, keepdims=True, **options)


def mean(h, n):
    return total(h) / n


def centred(h, n):
    return h - total(h) / n


def moment(h, n, power):
    return total(centred(h, n) ** power) / n


def rms_guarded(h, s, n):
    """torch.nn.functional.normalize, as in RMS norms of many repositories."""
    return h / jnp.maximum(norm(h), 1e-12) * n**0.5


def rms_where(h, s, n):
    square = total(h * h)
    safe = jnp.sqrt(jnp.where(square == 0, 1.0, square))
    return h * (n**0.5 / safe)


def rms_epsilon_counted(h, s, n):
    """The epsilon is multiplied with the count."""
    return h * lax.rsqrt(total(h * h) + n * EPSILON) * math.sqrt(n)


def rms_double_where(h, s, n):
    """As optax.safe_norm has it."""
    square = total(h * h)
    small = square < 1e-12
    safe = jnp.where(small, 1.0, square)
    return jnp.where(small, 0.0, jnp.sqrt(n / safe)) * h


def rms_low_precision(h, s, n):
    """As in language models: the statistic in float32, the rest in bfloat16."""
    low = h.astype(jnp.bfloat16)
    wide = low.astype(jnp.float32)
    scale = lax.rsqrt(total(lax.square(wide)) / n + EPSILON)
    return (low * scale.astype(jnp.bfloat16)).astype(jnp.float32) * s[None]


def rms_of_heads(h, s, n):
    """A norm over heads for each entry of a head."""
    heads = h.reshape(-1, n // 2, 2)
    square = jnp.sum(heads**2, 1, keepdims=True) / (n // 2)
    return (heads * lax.rsqrt(square + EPSILON)).reshape(h.shape)


def rms_within_heads(h, s, n):
    """The head size, 2, is fixed."""
    heads = h.reshape(-1, n // 2, 2)
    square = jnp.sum(heads**2, 2, keepdims=True) / 2
    return (heads * lax.rsqrt(square + EPSILON)).reshape(h.shape)


def layer_flax(h, s, n):
    """E[h^2] - E[h]^2, not below 0."""
    variance = jnp.maximum(0.0, mean(h * h, n) - lax.square(mean(h, n)))
    return (h - mean(h, n)) * (lax.rsqrt(variance + EPSILON) * s[None])


def layer_flax_stacked(h, s, n):
    """Both moments concatenated, as Flax reduces them over devices."""
    both = jnp.stack([h, lax.square(h)])
    first, second = both.sum(-1, keepdims=True) / n
    variance = jnp.maximum(0.0, second - lax.square(first))
    return (h - first) * lax.rsqrt(variance + EPSILON)


def layer_equinox(h, s, n):
    def one(row):
        scale = lax.rsqrt(jnp.maximum(jnp.var(row), 0.0) + EPSILON)
        return (row - jnp.mean(row)) * scale * s

    return jax.vmap(one)(h)


def layer_haiku(h, s, n):
    m = jnp.mean(h, -1, keepdims=True)
    variance = jnp.var(h, -1, keepdims=True)
    inverse = s[None] * lax.rsqrt(variance + jnp.asarray(EPSILON))
    return inverse * (h - m)


def layer_torch(h, s, n):
    """The first GPT's: an unbiased deviation, epsilon outside of the root."""
    deviation = jnp.sqrt(total(centred(h, n) ** 2) / (n - 1))
    return s[None] * centred(h, n) / (deviation + 1e-6)


def layer_sums(h, s, n):
    s1, s2 = total(h), total(h * h)
    variance = (s2 - s1**2 / n) / n
    return (h - s1 / n) * lax.rsqrt(variance + EPSILON)


def layer_multiples(h, s, n):
    """Everything times n, divided at the end."""
    s1, s2 = total(h), total(h * h)
    spread = jnp.sqrt(jnp.maximum(n * s2 - s1**2, 1e-6))
    return (n * h - s1) / spread


def layer_of_a_norm(h, s, n):
    c = centred(h, n)
    return math.sqrt(n) * c / norm(c)


def layer_products(h, s, n):
    average = jnp.full((n, 1), 1 / n)
    c = h - h @ average
    return c * lax.rsqrt(lax.square(c) @ average + EPSILON)


def layer_einsum(h, s, n):
    c = h - jnp.einsum("bd->b", h)[:, None] / n
    variance = jnp.einsum("bd,bd->b", c, c)[:, None] / n
    return c / jnp.sqrt(variance + EPSILON)


def layer_of_shares(h, s, n):
    """The terms of these sums shrink as their number grows."""
    shares = jax.nn.softmax(h, -1)
    c = centred(shares, n)
    return c * lax.rsqrt(total(c * c) / n + 1e-9)


def layer_of_unit_vectors(h, s, n):
    unit = h / norm(h)
    c = unit - unit.mean(-1, keepdims=True)
    return c / jnp.sqrt(jnp.var(unit, -1, keepdims=True) + 1e-6)


def largest_allowed(h, s, n):
    """Rows longer than the root of their length are scaled down to it."""
    longest, length = n**0.5, norm(h)
    return jnp.where(length > longest, h * (longest / length), h)


def variation_of_load(h, s, n):
    """Of the load of experts."""
    load = jax.nn.softmax(h, -1).sum(0)
    return h * (load.var() / (load.mean() ** 2 + 1e-6))


def layer_float16(h, s, n):
    low = h.astype(jnp.float16)
    c = low - low.mean(-1, keepdims=True)
    return (c / (jnp.sqrt((c * c).mean(-1, keepdims=True)) + 1e-3)).astype(h.dtype)


def layer_newton(h, s, n):
    """The root by Newton's steps, whose numbers are no counts."""
    variance = total(centred(h, n) ** 2) / n + 0.5
    y = 1.0 / (1.0 + variance)
    for _ in range(3):
        y = y * (1.5 - 0.5 * variance * y * y)
    return centred(h, n) * y


def group_norm(h, s, n):
    """Groups of two units."""
    grouped = h.reshape(-1, n // 2, 2)
    c = grouped - grouped.sum(-1, keepdims=True) / 2
    variance = (c**2).sum(-1, keepdims=True) / 2
    return (c / jnp.sqrt(variance + 0.1)).reshape(h.shape) * s[None]


def group_norm_of_one(h, s, n):
    """One group of all units, over three tokens."""
    image = h[:, None] * jnp.asarray([1.0, -0.5, 0.3])[None, :, None]
    c = image - image.sum((1, 2), keepdims=True) / (3 * n)
    variance = (c**2).sum((1, 2), keepdims=True) / (3 * n)
    return (c / jnp.sqrt(variance + EPSILON))[:, 1]


def instance_norm(h, s, n):
    """Over rows, whose number is fixed."""
    c = h - h.sum(0, keepdims=True) / h.shape[0]
    return c * lax.rsqrt((c * c).sum(0, keepdims=True) / h.shape[0] + EPSILON)


def skewness(h, s, n):
    return h + moment(h, n, 3) / moment(h, n, 2) ** 1.5


def kurtosis(h, s, n):
    c = centred(h, n)
    return h + n * total(c**4) / total(c**2) ** 2 - 3


def correlation(h, s, n):
    a, b = centred(h, n), s[None] - s.sum() / n
    product = total(a * b) / n
    spread = jnp.sqrt(total(a * a) / n) * jnp.sqrt(total(b * b) / n)
    return h * product / spread


def correlation_of_sums(h, s, n):
    """Pearson's, from sums alone."""
    a, b = h, jnp.cos(h)
    above = n * total(a * b) - total(a) * total(b)
    below = (n * total(a * a) - total(a) ** 2) * (n * total(b * b) - total(b) ** 2)
    return h * above / jnp.sqrt(below)


def covariance_of_sums(h, s, n):
    return h * (total(h * jnp.cos(h)) - total(h) * total(jnp.cos(h)) / n) / (n - 1)


def gram(h, s, n):
    """Rows with rows."""
    return (h @ h.T / n) @ jnp.tanh(h)


def gram_normalised(h, s, n):
    unit = h / norm(h)
    return (unit @ unit.T) @ h


def standardised_kernel(h, s, n):
    """The parameter is normalised over the contracted axis."""
    c = s - s.sum() / n
    kernel = c / jnp.sqrt((c * c).sum() / n + EPSILON)
    return jnp.tanh(h) * (h @ kernel[:, None])


def scaled_by_its_norm(h, s, n):
    return h * (s / jnp.linalg.norm(s) * math.sqrt(n))[None]


def distance(h, s, n):
    """Between rows, per unit."""
    squares = total(h * h)
    return ((squares + squares.T - 2 * h @ h.T) / n) @ jnp.tanh(h)


def radial(h, s, n):
    difference = h[:, None] - h[None]
    return jnp.exp(-jnp.sum(difference**2, -1) / (2 * n)) @ h


def dice(h, s, n):
    p = jax.nn.sigmoid(h)
    return h * (2 * total(p * p) / (total(p) + p.sum(-1, keepdims=True)))


NORMS: dict[str, Spelling] = {
    "rms": lambda h, s, n: h * lax.rsqrt(total(h * h) / n + EPSILON),
    "rms_mean": lambda h, s, n: (
        h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True) + EPSILON)
    ),
    "rms_einsum": lambda h, s, n: (
        h * lax.rsqrt(jnp.einsum("bd,bd->b", h, h)[:, None] / n + EPSILON)
    ),
    "rms_vecdot": lambda h, s, n: h / jnp.sqrt(jnp.vecdot(h, h)[:, None] / n),
    "rms_vdot": lambda h, s, n: jax.vmap(
        lambda row: row / jnp.sqrt(jnp.vdot(row, row) / n)
    )(h),
    "rms_norm_over_root": lambda h, s, n: h / (norm(h) / jnp.sqrt(n)),
    "rms_norm_times_root": lambda h, s, n: h / (norm(h) * n**-0.5 + 1e-6),
    "rms_root_behind": lambda h, s, n: h / norm(h) * jnp.sqrt(n),
    "rms_root_before": lambda h, s, n: jnp.sqrt(n) * h / norm(h),
    "rms_root_inside": lambda h, s, n: h * math.sqrt(n) / norm(h),
    "rms_root_over_norm": lambda h, s, n: h * (n**0.5 / norm(h)),
    "rms_root_in_gain": lambda h, s, n: (s * math.sqrt(n))[None] * (h / norm(h)),
    "rms_root_in_gain_of_one": lambda h, s, n: h / norm(h) * ((1 + s) * n**0.5)[None],
    "rms_later_root": lambda h, s, n: (
        h / norm(h) * jnp.cos(h) * s[None] * jnp.sqrt(jnp.float32(n))
    ),
    "rms_reciprocal_root": lambda h, s, n: h / norm(h) / lax.rsqrt(float(n)),
    "rms_over_inverse_root": lambda h, s, n: h / norm(h) / (1 / jnp.sqrt(n)),
    "rms_power": lambda h, s, n: h * jnp.power(total(h * h) / n, -0.5),
    "rms_norm_of_parts": lambda h, s, n: h / norm(h / jnp.sqrt(n)),
    "rms_sum_of_parts": lambda h, s, n: h * lax.rsqrt(total((h / math.sqrt(n)) ** 2)),
    "rms_epsilon_counted": rms_epsilon_counted,
    "rms_guarded": rms_guarded,
    "rms_where": rms_where,
    "rms_double_where": rms_double_where,
    "rms_low_precision": rms_low_precision,
    "rms_of_heads": rms_of_heads,
    "rms_within_heads": rms_within_heads,
    "rms_lax_reduce": lambda h, s, n: (
        h / jnp.sqrt(lax.reduce(h * h, 0.0, lax.add, (1,))[:, None] / n)
    ),
    "rms_ones_dot": lambda h, s, n: h * lax.rsqrt((h * h) @ jnp.ones((n, 1)) / n),
    "rms_matrix_norm": lambda h, s, n: h / jnp.linalg.norm(h) * jnp.sqrt(h.size),
    "rms_exp_log": lambda h, s, n: h * jnp.exp(-0.5 * jnp.log(total(h * h) / n)),
    "rms_logs_apart": lambda h, s, n: (
        h * jnp.exp(-0.5 * (jnp.log(total(h * h)) - math.log(n)))
    ),
    "rms_numpy_root": lambda h, s, n: h / norm(h) * np.sqrt(n).astype(np.float32),
    "rms_exponent": lambda h, s, n: h / (norm(h) / n ** (1 / 2)),
    "cosine": lambda h, s, n: h + total(h * s[None]) / (norm(h) * jnp.linalg.norm(s)),
    "unit": lambda h, s, n: 5 * h / norm(h),
    "first_norm": lambda h, s, n: h / (norm(h, ord=1) / n),
    "first_norm_behind": lambda h, s, n: h * n / norm(h, ord=1),
    "third_norm": lambda h, s, n: h / (norm(h, ord=3) / n ** (1 / 3)),
    "largest_norm": lambda h, s, n: h / norm(h, ord=jnp.inf),
    "pixel_norm": lambda h, s, n: h / jnp.sqrt(total(h**2) / n + 1e-8),
    "layer_flax": layer_flax,
    "layer_flax_stacked": layer_flax_stacked,
    "layer_equinox": layer_equinox,
    "layer_haiku": layer_haiku,
    "layer_torch": layer_torch,
    "layer_sums": layer_sums,
    "layer_multiples": layer_multiples,
    "layer_of_a_norm": layer_of_a_norm,
    "layer_products": layer_products,
    "layer_einsum": layer_einsum,
    "layer_of_shares": layer_of_shares,
    "layer_of_unit_vectors": layer_of_unit_vectors,
    "variation_of_load": variation_of_load,
    "largest_allowed": largest_allowed,
    "no_less_than": lambda h, s, n: h * n**0.5 / jnp.maximum(norm(h), n**0.5),
    "layer_float16": layer_float16,
    "layer_newton": layer_newton,
    "layer_standardize": lambda h, s, n: jax.nn.standardize(h, axis=-1),
    "group_norm": group_norm,
    "group_norm_of_one": group_norm_of_one,
    "instance_norm": instance_norm,
    "textbook_variance": lambda h, s, n: h * (total(h * h) - total(h) ** 2 / n) / n,
    "textbook_unbiased": lambda h, s, n: (
        h * (total(h * h) - total(h) ** 2 / n) / (n - 1)
    ),
    "expectations": lambda h, s, n: h * (total(h * h) / n - (total(h) / n) ** 2),
    "expectations_squared": lambda h, s, n: (
        h * (total(h * h) / n - total(h) ** 2 / n**2)
    ),
    "expectations_multiplied": lambda h, s, n: (
        h * (n * total(h * h) - total(h) ** 2) / n**2
    ),
    "expectations_unbiased": lambda h, s, n: (
        h * (n * total(h * h) - total(h) ** 2) / (n * (n - 1))
    ),
    "unbiased": lambda h, s, n: h * total(centred(h, n) ** 2) / (n - 1),
    "unbiased_inverse": lambda h, s, n: h * (total(centred(h, n) ** 2) * (1 / (n - 1))),
    "unbiased_jnp": lambda h, s, n: h * jnp.var(h, -1, ddof=1, keepdims=True),
    "deviation": lambda h, s, n: h * jnp.std(h, -1, keepdims=True),
    "deviation_of_all": lambda h, s, n: h / jnp.std(h, ddof=1),
    "absolute_deviation": lambda h, s, n: h * total(jnp.abs(centred(h, n))) / n,
    "skewness": skewness,
    "kurtosis": kurtosis,
    "covariance": lambda h, s, n: total(centred(h, n) * centred(jnp.cos(h), n)) / n,
    "covariance_of_sums": covariance_of_sums,
    "covariance_jnp": lambda h, s, n: jnp.cov(h) @ jnp.tanh(h),
    "correlation": correlation,
    "correlation_of_sums": correlation_of_sums,
    "correlation_jnp": lambda h, s, n: jnp.corrcoef(h) @ h,
    "gram": gram,
    "gram_normalised": gram_normalised,
    "distance": distance,
    "radial": radial,
    "dice": dice,
    "standardised_kernel": standardised_kernel,
    "scaled_by_its_norm": scaled_by_its_norm,
}
