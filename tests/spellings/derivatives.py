"""Derivatives inside of a function, and custom derivatives."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from tests.spellings.spelling import Spelling, total

EPSILON = 1e-3


# jax.grad and similar, inside.


def energy(h, s, n):
    return jax.grad(lambda v: jnp.sum(jnp.mean(v**2, -1)))(h)


def energy_by_hand(h, s, n):
    return jax.grad(lambda v: jnp.sum(jnp.cos(v).sum(-1) / n))(h)


def energy_times_inverse(h, s, n):
    return jax.grad(lambda v: jnp.sum(v**3) * (1 / (n * v.shape[0])))(h)


def energy_of_terms(h, s, n):
    return n * jax.grad(lambda v: jnp.sum(v**2 / n))(h)


def slope_of_layer_norm(h, s, n):
    def normed(v):
        c = v - total(v) / n
        return jnp.sum(jnp.sin(c * lax.rsqrt(total(c * c) / n + EPSILON)) * s[None])

    return jax.grad(normed)(h)


def slope_of_rms_norm(h, s, n):
    def normed(v):
        return jnp.sum(jnp.cos(v / jnp.linalg.norm(v, axis=-1)[:, None] * n**0.5))

    return jax.grad(normed)(h)


def slope_of_mean_square(h, s, n):
    return jax.grad(lambda v: jnp.mean(jnp.square(v - s[None])))(h)


def score(h, s, n):
    """The score of a Gaussian with the mean and variance of the units."""

    def log_density(v):
        variance = jnp.var(v, -1, keepdims=True) + EPSILON
        return -0.5 * jnp.sum((v - jnp.mean(v, -1, keepdims=True)) ** 2 / variance)

    return jax.grad(log_density)(h)


def free_energy(h, s, n):
    return jax.grad(lambda v: jnp.sum(jax.nn.logsumexp(v, -1) - math.log(n)))(h)


def hopfield(h, s, n):
    """The gradient of a log of a mean."""
    return n * jax.grad(lambda v: jnp.log(jnp.exp(v).sum(-1) / n).sum())(h)


def inner_step(h, s, n):
    """One step on a mean loss before the result, as in meta-learning."""

    def loss(gain):
        return jnp.mean((h * gain[None] - jnp.tanh(h)) ** 2)

    return h * (s - 0.3 * n * jax.grad(loss)(s))[None]


def inner_step_counted(h, s, n):
    def loss(gain):
        return jnp.sum((h * gain[None] - jnp.cos(h)) ** 2) / (n * h.shape[0])

    return h * (s - 0.3 * jax.grad(loss)(s))[None]


def two_inner_steps(h, s, n):
    def step(gain, _):
        slope = jax.grad(lambda g: jnp.sum(jnp.cos(h * g[None])) / n)(gain)
        return gain - 0.1 * slope, None

    return h * lax.scan(step, s, length=2)[0][None]


def directional(h, s, n):
    return jax.jvp(lambda v: total(v * v) / n, (h,), (jnp.cos(h),))[1]


def directional_of_norm(h, s, n):
    def normed(v):
        return v * lax.rsqrt(total(v * v) / n + EPSILON)

    y, slope = jax.jvp(normed, (h,), (jnp.broadcast_to(s, h.shape),))
    return y + slope


def curvature(h, s, n):
    """A Hessian times a vector."""
    slope = jax.grad(lambda v: jnp.sum(jnp.sum(v**3, -1) ** 2) / n**2)
    return jax.jvp(slope, (h,), (jnp.tanh(h),))[1]


def curvature_in_reverse(h, s, n):
    def along(v):
        slope = jax.grad(lambda u: jnp.sum(jnp.mean(u**3, -1) ** 2))(v)
        return jnp.sum(slope * jnp.cos(h))

    return jax.grad(along)(h)


def slope_of_each_row(h, s, n):
    return jax.vmap(jax.grad(lambda row: jnp.sum(row**4) / n))(h)


def value_and_slope(h, s, n):
    loss = lambda v: jnp.sum(total(v * jnp.tanh(v)) / n)  # noqa: E731
    value, slope = jax.value_and_grad(loss)(h)
    return slope * value


def pulled_back(h, s, n):
    y, back = jax.vjp(lambda v: total(v**2) / n, h)
    return back(jnp.cos(y))[0]


def linearised(h, s, n):
    y, push = jax.linearize(lambda v: v - total(v) / n, h)
    return y + push(jnp.cos(h))


def transposed(h, s, n):
    average = jax.linear_transpose(lambda v: total(v) / n, h)
    return h * average(total(h) / n)[0]


def laplacian(h, s, n):
    """The trace of a Hessian, by the random direction s."""
    slope = jax.grad(lambda row: jnp.sum(jnp.cos(row)) / n)

    def one(row):
        return jax.jvp(slope, (row,), (s,))[1] @ s

    return jax.vmap(one)(h)[:, None]


# custom_vjp: the backward pass has its own count.


def with_backward(forward, backward):
    """A function: `forward` gives result and residuals, `backward` the cotangent."""

    @jax.custom_vjp
    def function(x):
        return forward(x)[0]

    function.defvjp(forward, lambda kept, g: (backward(kept, g),))
    return function


def moments(x, n):
    c = x - total(x) / n
    r = lax.rsqrt(total(c * c) / n + EPSILON)
    return c * r, r


def own_layer_norm(h, s, n):
    """dx = r / n (n g - sum g - y sum(g y))."""

    def forward(x):
        y, r = moments(x, n)
        return y, (y, r)

    def backward(kept, g):
        y, r = kept
        return r / n * (n * g - total(g) - y * total(g * y))

    return with_backward(forward, backward)(h + 0.1 * s[None])


def own_layer_norm_of_means(h, s, n):
    def forward(x):
        y, r = moments(x, n)
        return y, (y, r)

    def backward(kept, g):
        y, r = kept
        return r * (g - total(g) / n - y * (total(g * y) / n))

    return with_backward(forward, backward)(h * s[None])


def own_layer_norm_of_jnp_means(h, s, n):
    def forward(x):
        c = x - x.mean(-1, keepdims=True)
        r = lax.rsqrt(jnp.mean(c * c, -1, keepdims=True) + EPSILON)
        return c * r, (c * r, r)

    def backward(kept, g):
        y, r = kept
        means = g.mean(-1, keepdims=True), (g * y).mean(-1, keepdims=True)
        return r * (g - means[0] - y * means[1])

    return with_backward(forward, backward)(h)


def own_layer_norm_with_scale(h, s, n):
    """Two operands, and a cotangent for each."""

    @jax.custom_vjp
    def function(x, scale):
        return moments(x, n)[0] * scale[None]

    def forward(x, scale):
        y, r = moments(x, n)
        return y * scale[None], (y, r, scale)

    def backward(kept, g):
        y, r, scale = kept
        slope = (g * y).sum(0)
        g = g * scale[None]
        return r / n * (n * g - total(g) - y * total(g * y)), slope

    function.defvjp(forward, backward)
    return function(h, s)


def own_rms_norm(h, s, n):
    def forward(x):
        r = lax.rsqrt(total(x * x) / n + EPSILON)
        return x * r, (x, r)

    def backward(kept, g):
        x, r = kept
        return r * g - x * r**3 * total(g * x) / n

    return with_backward(forward, backward)(h)


def own_mean(h, s, n):
    """The transpose: a division before a broadcast, with no sum beside it."""
    mean = with_backward(
        lambda x: (total(x) / n, None),
        lambda kept, g: jnp.broadcast_to(g / n, (g.shape[0], n)),
    )
    return mean(h * s[None])


def own_mean_repeated(h, s, n):
    mean = with_backward(
        lambda x: (total(x) / n, jnp.zeros_like(x)), lambda kept, g: kept + g * (1 / n)
    )
    return mean(jnp.cos(h))


def by_vjp_of_forward(h, s, n):
    def plain(x):
        return moments(x, n)[0]

    function = with_backward(
        lambda x: (plain(x), x), lambda x, g: jax.vjp(plain, x)[1](g)[0]
    )
    return function(h)


def by_kept_vjp(h, s, n):
    """The residual is the backward pass itself."""

    def plain(x):
        return moments(x, n)[0]

    function = with_backward(lambda x: jax.vjp(plain, x), lambda back, g: back(g)[0])
    return function(h)


def kept_sum(h, s, n):
    """A sum is a residual, divided in the backward pass."""

    def forward(x):
        square = total(x * x)
        return x * lax.rsqrt(square / n + EPSILON), (x, square)

    def backward(kept, g):
        x, square = kept
        r = lax.rsqrt(square / n + EPSILON)
        return r * g - x * r**3 * (total(g * x) / n)

    return with_backward(forward, backward)(h)


def kept_count(h, s, n):
    """The count itself is a residual."""

    def forward(x):
        y, r = moments(x, n)
        return y, (y, r, n)

    def backward(kept, g):
        y, r, count = kept
        return r / count * (count * g - total(g) - y * total(g * y))

    return with_backward(forward, backward)(h)


def kept_count_as_array(h, s, n):
    def forward(x):
        count = jnp.float32(n)
        return total(x * x) / count, (x, count)

    return with_backward(forward, lambda kept, g: 2 * kept[0] * g / kept[1])(h)


def count_not_differentiated(h, s, n):
    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def function(x, count):
        return total(x * x) / count

    function.defvjp(
        lambda x, count: (total(x * x) / count, x),
        lambda count, x, g: (2 * x * g / count,),
    )
    return function(jnp.sin(h) + s[None], n)


def count_as_operand(h, s, n):
    """The count is an operand like the others, with a cotangent of zero."""

    @jax.custom_vjp
    def function(x, count):
        return total(x * x) / count

    function.defvjp(
        lambda x, count: (total(x * x) / count, (x, count)),
        lambda kept, g: (2 * kept[0] * g / kept[1], jnp.zeros_like(kept[1])),
    )
    return function(h, jnp.float32(n))


def sum_as_operand(h, s, n):
    """The operand is a sum, divided in both passes."""
    function = with_backward(
        lambda sums: (jnp.sqrt(sums / n), sums),
        lambda sums, g: g * 0.5 / n / jnp.sqrt(sums / n),
    )
    return h / function(total(h * h) + EPSILON)


def straight_through(h, s, n):
    """The backward pass sums over units; the forward pass only repeats."""
    function = with_backward(
        lambda m: (jnp.broadcast_to(m, (m.shape[0], n)), None),
        lambda kept, g: total(g) / n,
    )
    return h * function(total(h) / n)


def centred_backward(h, s, n):
    """Only the cotangent is centred."""
    function = with_backward(
        lambda x: (jnp.tanh(x), None), lambda kept, g: g - total(g) / n
    )
    return function(h * s[None])


def normed_backward(h, s, n):
    """Cotangents are normalized."""
    function = with_backward(
        lambda x: (jnp.tanh(x), None),
        lambda kept, g: g / (jnp.linalg.norm(g, axis=-1)[:, None] + 0.01) * n**0.5,
    )
    return function(h)


def own_logmeanexp(h, s, n):
    def forward(x):
        y = jax.nn.logsumexp(x, -1, keepdims=True) - math.log(n)
        return y, (x, y)

    def backward(kept, g):
        x, y = kept
        return g * jnp.exp(x - y) / n

    return with_backward(forward, backward)(h)


def own_in_scan(h, s, n):
    def forward(x):
        y, r = moments(x, n)
        return y, (y, r)

    def backward(kept, g):
        y, r = kept
        return r / n * (n * g - total(g) - y * total(g * y))

    normed = with_backward(forward, backward)
    return lax.scan(lambda c, k: (normed(c * k + c**2), None), h, jnp.ones(2))[0]


def own_under_vmap(h, s, n):
    function = with_backward(
        lambda row: (row.sum() / n, row), lambda row, g: g * jnp.ones_like(row) / n
    )
    return jax.vmap(function)(h * s[None])


def own_under_remat(h, s, n):
    function = with_backward(
        lambda x: (total(x**2) / n, x), lambda x, g: 2 * x * (g / n)
    )
    return jax.checkpoint(lambda v: function(jnp.cos(v)))(h)


def kept_multiple(h, s, n):
    """2 / n is a residual, beside the operand that it scales."""
    function = with_backward(
        lambda x: (total(x * x) / n, (x, 2.0 / n)),
        lambda kept, g: kept[1] * kept[0] * g,
    )
    return function(h * s[None])


def multiple_first(h, s, n):
    """The count scales a residual before the cotangent does."""
    function = with_backward(
        lambda x: (jnp.square(jnp.sin(x) - x).mean(-1, keepdims=True), x),
        lambda x, g: 2 / n * (jnp.sin(x) - x) * (jnp.cos(x) - 1) * g,
    )
    return function(h)


# custom_jvp.


def own_tangent_of_root(h, s, n):
    """The count scales the divisor of the sum."""

    @jax.custom_jvp
    def function(x):
        return jnp.sqrt(total(x * x) / n)

    @function.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        y = function(x)
        return y, total(x * t) / (n * y)

    return h / function(h)


def own_tangent(h, s, n):
    @jax.custom_jvp
    def function(x):
        return total(x * x) / n

    @function.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        return total(x * x) / n, total(2 * x * t) / n

    return function(h)


def own_tangent_of_norm(h, s, n):
    @jax.custom_jvp
    def function(x):
        return x * lax.rsqrt(total(x * x) / n + EPSILON)

    @function.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        r = lax.rsqrt(total(x * x) / n + EPSILON)
        return x * r, r * t - x * r**3 * total(x * t) / n

    return function(h * s[None])


def own_tangent_not_differentiated(h, s, n):
    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def function(count, x):
        return jnp.sqrt(total(x * x) / count)

    @function.defjvp
    def _(count, primals, tangents):
        (x,), (t,) = primals, tangents
        y = function(count, x)
        return y, total(x * t) / count / y

    return function(n, h)


def own_slope_inside(h, s, n):
    """The custom derivative is taken inside of the function."""
    mean = with_backward(
        lambda x: (total(jnp.cos(x)) / n, x), lambda x, g: -jnp.sin(x) * g / n
    )
    return n * jax.grad(lambda v: jnp.sum(mean(v) ** 2))(h)


DERIVATIVES: dict[str, Spelling] = {
    f.__name__: f
    for f in (
        energy, energy_by_hand, energy_times_inverse, energy_of_terms,
        slope_of_layer_norm, slope_of_rms_norm, slope_of_mean_square, score,
        free_energy, hopfield, inner_step, inner_step_counted, two_inner_steps,
        directional, directional_of_norm, curvature, curvature_in_reverse,
        slope_of_each_row, value_and_slope, pulled_back, linearised, transposed,
        laplacian, own_layer_norm, own_layer_norm_of_means,
        own_layer_norm_of_jnp_means, own_layer_norm_with_scale, own_rms_norm,
        own_mean, own_mean_repeated, by_vjp_of_forward, by_kept_vjp, kept_sum,
        kept_count, kept_count_as_array, kept_multiple,
        multiple_first, own_tangent_of_root, count_not_differentiated, count_as_operand,
        sum_as_operand, straight_through, centred_backward, normed_backward,
        own_logmeanexp, own_in_scan, own_under_vmap, own_under_remat, own_tangent,
        own_tangent_of_norm, own_tangent_not_differentiated, own_slope_inside,
    )
}  # fmt: skip
