"""Ways to write means: a sum divided by its number of terms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.spellings.spelling import Spelling, rows, total


def pairs(h):
    """(b, n) -> (b, n, n)."""
    return h[:, :, None] * h[:, None, :]


def captured_ones(h, s, n):
    """The ones are a constant of the function, made outside of it."""
    return h @ np.ones((n, 1), np.float32) * (1 / n)


def side_by_side(h, s, n):
    """Both sums are divided at once."""
    both = jnp.concatenate([total(h), total(h * h)], -1) / n
    return both[:, :1] + both[:, 1:] ** 2


def stacked(h, s, n):
    first, second = jnp.stack([h.sum(-1), jnp.cos(h).sum(-1)]) / n
    return first[:, None] * second[:, None]


def stacked_behind(h, s, n):
    both = jnp.stack([h.sum(-1), jnp.cos(h).sum(-1)], -1) * (1 / n)
    return both.prod(-1, keepdims=True)


def padded(h, s, n):
    """The sums are padded with zeros."""
    table = jnp.pad(total(h), ((0, 0), (1, 1))) / n
    return table.sum(-1, keepdims=True)


def updated(h, s, n):
    """The sums are written into an array of zeros."""
    table = jnp.zeros((h.shape[0], 2)).at[:, 0].set(h.sum(-1))
    table = table.at[:, 1].set((h * h).sum(-1)) / n
    return table[:, :1] - table[:, 1:]


def sum_of_heads(h, s, n):
    """First over the entries of a head, then over the heads."""
    heads = h.reshape(-1, n // 2, 2)
    return heads.sum(-1).sum(-1)[:, None] / n


def mean_of_heads(h, s, n):
    heads = h.reshape(-1, n // 2, 2)
    return jnp.tanh(heads).sum((1, 2))[:, None] / (n // 2 * 2)


def heads_only(h, s, n):
    """The mean over heads, for each entry of a head."""
    mean = h.reshape(-1, n // 2, 2).sum(1, keepdims=True) / (n // 2)
    return (h.reshape(-1, n // 2, 2) - mean).reshape(h.shape)


def tokens(h):
    """(b, n) -> (b, 3, n)."""
    return h[:, None] * jnp.asarray([1.0, 0.5, -0.3])[None, :, None]


def tokens_and_units(h, s, n):
    return tokens(h).sum((1, 2))[:, None] / (3 * n)


def tokens_then_units(h, s, n):
    return tokens(h * h).sum(1).sum(-1, keepdims=True) / 3 / n


def mean_of_means(h, s, n):
    return tokens(jnp.cos(h)).mean(-1).mean(-1, keepdims=True)


def unit_sum_token_mean(h, s, n):
    return tokens(h * h).mean(1).sum(-1, keepdims=True) / n


def mixed_precision(h, s, n):
    low = h.astype(jnp.bfloat16)
    return low.sum(-1, keepdims=True, dtype=jnp.float32) / n


def low_precision(dtype):
    def mean(h, s, n):
        low = h.astype(dtype)
        return (total(low) * jnp.asarray(1 / n, dtype)).astype(jnp.float32)

    return mean


def low_precision_division(dtype):
    def mean(h, s, n):
        return (total(h.astype(dtype)) / n).astype(jnp.float32)

    return mean


def spectrum(h, s, n):
    """Over units of complex numbers, from a transform over rows."""
    z = jnp.fft.fft(h, axis=0)
    mean = z.sum(-1, keepdims=True) / n
    return mean.real - mean.imag


def modulus(h, s, n):
    z = lax.complex(h, jnp.sin(h))
    return jnp.abs(total(z) / n)


def squared_modulus(h, s, n):
    z = lax.complex(h, jnp.sin(h))
    return total(z * z.conj()).real / n


def complex_inverse(h, s, n):
    z = lax.complex(h, jnp.sin(h)) * jnp.exp(1j * s[None])
    mean = total(z) * (1 / n)
    return jnp.real(mean) + jnp.imag(mean) ** 2


def complex_mean(h, s, n):
    z = lax.complex(h, jnp.sin(h))
    return jnp.abs(z - z.mean(-1, keepdims=True))


def parts_apart(h, s, n):
    z = lax.complex(total(h), total(jnp.sin(h)))
    return (z / n).real * (z / n).imag


def order_parameter(h, s, n):
    """Kuramoto: the coherence of the phases."""
    return jnp.abs(jnp.sum(jnp.exp(1j * h), -1, keepdims=True)) / n


def by_convolution(h, s, n):
    """Units are the channels of a 1 x 1 convolution with a constant kernel."""
    kernel = jnp.ones((1, n, 1)) / n
    out = lax.conv_general_dilated(
        h[:, None], kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return out[:, 0]


def by_convolution_of_ones(h, s, n):
    image = h[:, None, None]
    out = lax.conv_general_dilated(
        image,
        jnp.ones((1, 1, n, 1)),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out[:, 0, 0] / n


def by_convolution_along(h, s, n):
    """Units are the positions of a constant kernel."""
    kernel = jnp.full((n, 1, 1), 1 / n)
    out = lax.conv_general_dilated(
        h[..., None], kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return out[:, 0]


def by_pooling(h, s, n):
    return lax.reduce_window(h, 0.0, lax.add, (1, n), (1, n), "VALID") / n


def by_strided_pooling(h, s, n):
    """Pairs first, then all of them."""
    pairs = h.reshape(-1, n // 2, 2)
    pooled = lax.reduce_window(pairs, 0.0, lax.add, (1, 1, 2), (1, 1, 2), "VALID")
    return pooled.sum((1, 2))[:, None] / n


def integers(h):
    return jnp.floor(8 * h).astype(jnp.int32)


def integer_lax(h, s, n):
    return lax.div(total(integers(h * h)), jnp.int32(n)).astype(h.dtype)


def integer_divmod(h, s, n):
    quotient, remainder = jnp.divmod(total(integers(h)), n)
    return quotient + 0.1 * remainder


def several_sums(h, s, n):
    """The analysis keeps a sum's facts when sums of its kind are added."""
    sums = total(h) - 2 * total(h * h) + total(jnp.cos(h)) / 3
    return -sums / n


def sums_of_parameters(h, s, n):
    return (total(h) + s.sum()) / n * jnp.cos(h)


def fraction(h, s, n):
    """A count is a sum of ones."""
    return h * (h > 0).sum(-1, keepdims=True) / n


def fraction_of_integers(h, s, n):
    return h * (jnp.count_nonzero(h > 0, axis=-1)[:, None] / n)


def chosen_sums(h, s, n):
    first, second = total(h), total(h * h)
    return jnp.where(first > 0, first, second) / n


def guarded(h, s, n):
    return jnp.where(jnp.isfinite(total(h)), total(h), 0.0) / n


def clip_to_count(h, s, n):
    return jnp.clip(total(h), -n / 1, n / 1) / n


def tokens_masked(h, s, n):
    mask = jnp.asarray([[1], [0], [1], [1]], bool)
    return h - jnp.sum(h, where=mask) / (mask.sum() * n)


def centred_pairs(h, s, n):
    """All differences of units: n squared of them."""
    pairs = h[:, :, None] - jnp.cos(h)[:, None, :]
    return jnp.sum(pairs**2, (1, 2))[:, None] / n**2


def pairs_over_twice(h, s, n):
    pairs = h[:, :, None] * h[:, None, :]
    return pairs.sum((1, 2))[:, None] / n / n


def others(h, s, n):
    """The mean of all other units."""
    return (total(h) - h) / (n - 1)


def moved(h, s, n):
    """Transposes and reshapes between the sum and its count."""
    sums = h.T.sum(0)
    return sums.reshape(1, -1).T / n


def broadcast(h, s, n):
    sums = jnp.broadcast_to(total(h), h.shape)
    return h - sums / jnp.full(h.shape, n, h.dtype)


def products_of_two(h, s, n):
    """Of all pairs of different units, as in a factorisation machine."""
    return (total(h) ** 2 - total(h * h)) / (n * (n - 1))


def products_counted_once(h, s, n):
    return 0.5 * (total(h) ** 2 - total(h * h)) / (n * (n - 1) / 2)


def redundancy(h, s, n):
    """The off-diagonal part of a correlation matrix, for each unit."""
    squares = (h.T @ jnp.cos(h) / rows(h)) ** 2
    diagonal = ((h * jnp.cos(h)).sum(0) / rows(h)) ** 2
    return h * (squares.sum() - diagonal.sum()) / n


MEANS: dict[str, Spelling] = {
    # The number.
    "over": lambda h, s, n: total(h) / n,
    "over_float": lambda h, s, n: total(h) / float(n),
    "times_inverse": lambda h, s, n: total(h) * (1 / n),
    "inverse_first": lambda h, s, n: (1 / n) * total(h),
    "times_power": lambda h, s, n: total(h) * n**-1,
    "over_twice": lambda h, s, n: total(h) / (2 * n),
    "times_half": lambda h, s, n: total(h) * (0.5 / n),
    "over_minus": lambda h, s, n: total(h) / -n,
    "minus_inverse": lambda h, s, n: -(1 / n) * total(h),
    "times_three": lambda h, s, n: total(h) * 3 / n,
    "over_jnp_float": lambda h, s, n: total(h) / jnp.float32(n),
    "over_np_float": lambda h, s, n: total(h) / np.float32(n),
    "over_jnp_array": lambda h, s, n: total(h) / jnp.array(n),
    "over_integer_array": lambda h, s, n: total(h) / jnp.asarray([[n]], jnp.int32),
    "over_column": lambda h, s, n: total(h) / jnp.full((h.shape[0], 1), n, h.dtype),
    "over_full_like": lambda h, s, n: lax.div(total(h), jnp.full_like(total(h), n)),
    "reciprocal": lambda h, s, n: total(h) * jnp.reciprocal(jnp.float32(n)),
    "exponential": lambda h, s, n: total(h) * math.exp(-math.log(n)),
    "two_roots": lambda h, s, n: total(h) / jnp.sqrt(n) / jnp.sqrt(n),
    "root_and_power": lambda h, s, n: total(h) * n**-0.5 * lax.rsqrt(float(n)),
    "counted_ones": lambda h, s, n: total(h) / jnp.ones(n).sum(),
    "counted_ones_like": lambda h, s, n: total(h) / total(jnp.ones_like(h)),
    "counted_cast": lambda h, s, n: total(h) / jnp.int32(n).astype(jnp.float32),
    "numpy_scalar": lambda h, s, n: total(h) * np.reciprocal(np.float64(n)).item(),
    # The sum.
    "einsum": lambda h, s, n: jnp.einsum("bd->b", h)[:, None] / n,
    "einsum_squares": lambda h, s, n: jnp.einsum("bd,bd->b", h, h)[:, None] / n,
    "vecdot": lambda h, s, n: jnp.vecdot(h, h)[:, None] / n,
    "vdot": lambda h, s, n: jax.vmap(jnp.vdot)(h, h)[:, None] / n,
    "dot_general": lambda h, s, n: (
        lax.dot_general(h, h, (((1,), (1,)), ((0,), (0,))))[:, None] / n
    ),
    "ones_dot": lambda h, s, n: (h @ jnp.ones((n, 1))) / n,
    "ones_dot_inverse": lambda h, s, n: (h @ jnp.ones((n, 1))) * (1 / n),
    "averages_dot": lambda h, s, n: (h @ jnp.full((n,), 1 / n))[:, None],
    "averages_divided": lambda h, s, n: h @ (jnp.ones((n, 1)) / n),
    "averages_einsum": lambda h, s, n: jnp.einsum("h,bh->b", jnp.ones(n) / n, h)[
        :, None
    ],
    "trace": lambda h, s, n: jax.vmap(jnp.trace)(pairs(h)) / n,
    "repeated_letter": lambda h, s, n: jnp.einsum("bii->b", pairs(h)) / n,
    "repeated_letter_kept": lambda h, s, n: (
        jnp.einsum("bii->bi", pairs(h)).sum(-1, keepdims=True) / n
    ),
    "times_identity": lambda h, s, n: (pairs(h) * jnp.eye(n)[None]).sum((1, 2)) / n,
    "times_mean_of_identity": lambda h, s, n: (pairs(h) * (jnp.eye(n) / n)[None]).sum(
        (1, 2)
    ),
    "contracted_identity": lambda h, s, n: (
        jnp.einsum("bij,ij->b", pairs(h), jnp.eye(n)) / n
    ),
    "identity_then_mean": lambda h, s, n: (h @ (jnp.eye(n) / n)).sum(-1),
    "mean_of_identity": lambda h, s, n: h * jnp.eye(n).sum(0)[None] - total(h) / n,
    "pairs_of_others": lambda h, s, n: (
        (pairs(h) * (1 - jnp.eye(n))[None]).sum((1, 2)) / (n * (n - 1))
    ),
    "all_others": lambda h, s, n: (
        jnp.where(jnp.eye(n, dtype=bool)[None], 0, pairs(h)).sum(2) / (n - 1)
    ),
    "square_less_squares": lambda h, s, n: (
        (total(h) ** 2 - total(h**2)) / (n * (n - 1))
    ),
    "square_less_trace": lambda h, s, n: (
        (pairs(h).sum((1, 2)) - jax.vmap(jnp.trace)(pairs(h))) / n
    ),
    "averages_everywhere": lambda h, s, n: h - h @ jnp.full((n, n), 1 / n),
    "projection": lambda h, s, n: h @ (jnp.eye(n) - jnp.ones((n, n)) / n),
    "captured_ones": captured_ones,
    "lax_reduce": lambda h, s, n: lax.reduce(h, 0.0, lax.add, (1,))[:, None] / n,
    "lax_reduce_sum": lambda h, s, n: lax.reduce_sum(h, (1,))[:, None] / n,
    "convolution": by_convolution,
    "convolution_of_ones": by_convolution_of_ones,
    "convolution_along": by_convolution_along,
    "pooling": by_pooling,
    "strided_pooling": by_strided_pooling,
    "sum_of_two": lambda h, s, n: (total(h) + total(jnp.cos(h))) / n,
    "difference": lambda h, s, n: (total(h) - total(h * h)) / n,
    "several": several_sums,
    "of_parameters": sums_of_parameters,
    "of_a_parameter": lambda h, s, n: h * (s.sum() / n),
    "of_squares_of_a_parameter": lambda h, s, n: h * jnp.sqrt(jnp.dot(s, s) / n),
    "side_by_side": side_by_side,
    "stacked": stacked,
    "stacked_behind": stacked_behind,
    "padded": padded,
    "updated": updated,
    "moved": moved,
    "broadcast": broadcast,
    "others": others,
    # The terms, or their factors, are divided.
    "terms_over": lambda h, s, n: total(h / n),
    "terms_times": lambda h, s, n: total(h * (1 / n)),
    "terms_over_root_squared": lambda h, s, n: total((h / jnp.sqrt(n)) ** 2),
    "terms_of_a_product": lambda h, s, n: total((h / n) * jnp.cos(h)),
    "terms_of_a_later_sum": lambda h, s, n: total(jnp.abs(h / n - 0.0)),
    "product_over": lambda h, s, n: h * total(h) / n,
    "product_of_sums": lambda h, s, n: total(h) * total(h * h) / n**2,
    "product_of_sums_in_turn": lambda h, s, n: (total(h) / n) * total(h * h) / n,
    "quotient_of_sums": lambda h, s, n: total(h) ** 2 / (n * total(h * h)),
    "multiple_less_sum": lambda h, s, n: (n * h - total(h)) / n,
    "multiple_less_sum_times": lambda h, s, n: (h * n - total(h)) * (1 / n),
    "multiple_of_parameter": lambda h, s, n: (n * s[None] - total(h)) / n,
    "square_of_sum": lambda h, s, n: total(h) ** 2 / n**2,
    "power_of_quotient": lambda h, s, n: (total(h) / n) ** 3,
    "cube": lambda h, s, n: total(h) ** 3 / n**3,
    "pairs": centred_pairs,
    "pairs_in_turn": pairs_over_twice,
    "products_of_two": products_of_two,
    "products_counted_once": products_counted_once,
    "redundancy": redundancy,
    # Operations between the sum and its count.
    "clip_of_sum": lambda h, s, n: jnp.clip(total(h), -20, 20) / n,
    "clip_of_mean": lambda h, s, n: jnp.clip(total(h) / n, -1, 1),
    "clip_to_count": clip_to_count,
    "largest_and_zero": lambda h, s, n: jnp.maximum(total(h), 0) / n,
    "relu": lambda h, s, n: jax.nn.relu(total(h)) / n,
    "leaky_relu": lambda h, s, n: jax.nn.leaky_relu(total(h)) / n,
    "smaller_of_two": lambda h, s, n: jnp.minimum(total(h), total(h * h)) / n,
    "absolute": lambda h, s, n: jnp.abs(total(h)) / n,
    "sign": lambda h, s, n: jnp.sign(total(h)) * jnp.abs(total(h)) / n,
    "chosen": lambda h, s, n: jnp.where(h > 0, total(h), 0) / n,
    "chosen_sums": chosen_sums,
    "guarded": guarded,
    "barrier": lambda h, s, n: lax.optimization_barrier(total(h)) / n,
    "stopped": lambda h, s, n: lax.stop_gradient(total(h)) / n * jnp.cos(h),
    "added_epsilon": lambda h, s, n: (total(h * h) + 1e-6) / n,
    "gated": lambda h, s, n: total(h) * jax.nn.sigmoid(h) / n,
    "cast_there_and_back": lambda h, s, n: (
        total(h).astype(jnp.float16).astype(jnp.float32) / n
    ),
    # Masks and weights.
    "where": lambda h, s, n: jnp.mean(h, -1, keepdims=True, where=h > -9),
    "where_over_all": lambda h, s, n: jnp.sum(h, -1, keepdims=True, where=h > 0) / n,
    "average": lambda h, s, n: jnp.average(h, axis=-1)[:, None],
    "average_weighted": lambda h, s, n: jnp.average(
        h, axis=-1, weights=jnp.broadcast_to(jnp.abs(s), h.shape)
    )[:, None],
    "weights_normalised": lambda h, s, n: (
        total(h * jnp.exp(s)[None]) / jnp.exp(s).sum()
    ),
    "fraction": fraction,
    "fraction_of_integers": fraction_of_integers,
    "fraction_as_mean": lambda h, s, n: h * jnp.mean(h > 0, -1, keepdims=True),
    "tokens_masked": tokens_masked,
    # Several axes.
    "batch_and_units": lambda h, s, n: h.sum() / (rows(h) * n),
    "batch_then_units": lambda h, s, n: h.sum() / rows(h) / n,
    "units_then_batch": lambda h, s, n: h.sum() / n / rows(h),
    "inverse_of_both": lambda h, s, n: h.sum() * (1 / (rows(h) * n)),
    "sum_of_sums": lambda h, s, n: h.sum(0).sum() / n,
    "units_of_all": lambda h, s, n: h.sum() / n,
    "mean_of_all": lambda h, s, n: h - h.mean(),
    "mean_of_sum": lambda h, s, n: h.sum(-1).mean() / n,
    "sum_of_heads": sum_of_heads,
    "mean_of_heads": mean_of_heads,
    "heads_only": heads_only,
    "tokens_and_units": tokens_and_units,
    "tokens_then_units": tokens_then_units,
    "mean_of_means": mean_of_means,
    "unit_sum_token_mean": unit_sum_token_mean,
    # Integers are truncated.
    "integer_positive": lambda h, s, n: h * (total(integers(h * h)) // n),
    "integer_negative": lambda h, s, n: h * (total(integers(-h * h)) // n),
    "integer_both": lambda h, s, n: h * (total(integers(h)) // n),
    "integer_lax": integer_lax,
    "integer_divmod": integer_divmod,
    "integer_remainder": lambda h, s, n: h * (total(integers(h)) % n),
    "floor": lambda h, s, n: h * (total(8 * h) // n),
    "integer_true": lambda h, s, n: h * (total(integers(h)) / n),
    # Types.
    "bfloat16": low_precision(jnp.bfloat16),
    "float16": low_precision(jnp.float16),
    "bfloat16_division": low_precision_division(jnp.bfloat16),
    "float16_division": low_precision_division(jnp.float16),
    "bfloat16_mean": lambda h, s, n: (
        h.astype(jnp.bfloat16).mean(-1, keepdims=True).astype(jnp.float32)
    ),
    "mixed_precision": mixed_precision,
    "spectrum": spectrum,
    "modulus": modulus,
    "squared_modulus": squared_modulus,
    "complex_inverse": complex_inverse,
    "complex_mean": complex_mean,
    "parts_apart": parts_apart,
    "order_parameter": order_parameter,
}
