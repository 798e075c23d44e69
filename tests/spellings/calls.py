"""Sums in loops, branches and calls; the count inside, outside or as argument."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from tests.spellings.spelling import Spelling, total


def scan_over_rows(h, s, n):
    sums, _ = lax.scan(lambda c, row: (c + row.sum(), None), 0.0, h)
    return h - sums / h.size


def scan_over_rows_divided(h, s, n):
    sums, _ = lax.scan(lambda c, row: (c + row.sum() / n, None), 0.0, h)
    return h - sums


def scan_each_row(h, s, n):
    _, sums = lax.scan(lambda c, row: (c, row.sum()), None, h)
    return sums[:, None] / n


def scan_pair(h, s, n):
    """Two sums in one carry."""

    def step(carry, row):
        first, second = carry
        return (first + row.sum(), second + (row * row).sum()), None

    (first, second), _ = lax.scan(step, (0.0, 0.0), h)
    mean = first / h.size
    return (h - mean) / jnp.sqrt(second / h.size - mean**2)


def scan_of_steps(h, s, n):
    def step(c, k):
        c = c - total(c) / n
        return c * k, total(c * c)

    c, squares = lax.scan(step, h, jnp.asarray([1.0, 0.5, 2.0]))
    return c / jnp.sqrt(squares.sum(0) / n)


def scan_with_count_as_operand(h, s, n):
    """The number is a constant of the loop."""
    count = jnp.float32(n)
    _, means = lax.scan(lambda c, row: (c, row.sum() / count), None, h)
    return means[:, None]


def scan_with_count_in_carry(h, s, n):
    def step(carry, row):
        sums, count = carry
        return (sums + row.sum(), count), None

    (sums, count), _ = lax.scan(step, (0.0, jnp.float32(n)), h)
    return h - sums / count


def scan_counting(h, s, n):
    """The loop counts the terms of its sum."""

    def step(carry, row):
        sums, count = carry
        return (sums + row.sum(), count + n), None

    (sums, count), _ = lax.scan(step, (0.0, 0.0), h)
    return h - sums / count


def welford(h, s, n):
    """A running mean over units."""

    def step(carry, column):
        count, mean, spread = carry
        count = count + 1
        delta = column - mean
        mean = mean + delta / count
        return (count, mean, spread + delta * (column - mean)), None

    zeros = jnp.zeros(h.shape[0])
    (_, mean, spread), _ = lax.scan(step, (0.0, zeros, zeros), h.T)
    return (h - mean[:, None]) / jnp.sqrt(spread[:, None] / n + 1e-5)


def scan_over_units(h, s, n):
    sums, _ = lax.scan(lambda c, column: (c + column, None), jnp.zeros(h.shape[0]), h.T)
    return sums[:, None] / n


def for_loop(h, s, n):
    sums = lax.fori_loop(
        0, 3, lambda i, c: c + total(h * (i + 1.0)), jnp.zeros((h.shape[0], 1))
    )
    return sums / n


def for_loop_over_rows(h, s, n):
    sums = lax.fori_loop(0, h.shape[0], lambda i, c: c + h[i].sum(), 0.0)
    return h * sums / (n * h.shape[0])


def while_loop(h, s, n):
    still = lax.stop_gradient(h)  # a loop like this has no reverse derivative

    def body(carry):
        i, sums = carry
        return i + 1, sums + total(jnp.cos(i * still))

    _, sums = lax.while_loop(lambda c: c[0] < 3, body, (0, jnp.zeros((h.shape[0], 1))))
    return sums / (3 * n)


def while_mean(h, s, n):
    """The condition reads a mean."""

    def body(carry):
        i, c = carry
        return i + 1, 0.5 * c + total(c) / n

    def going(carry):
        i, c = carry
        return (i < 3) & (jnp.abs(c).sum() / n < 1e6)

    return h * lax.while_loop(going, body, (0, lax.stop_gradient(h)))[1]


def branch(h, s, n):
    return lax.cond(h[0].sum() > 0, lambda: total(h), lambda: total(h * h)) / n


def branch_inside(h, s, n):
    return lax.cond(
        h[0].sum() > 0, lambda v: total(v) / n, lambda v: jnp.cos(total(v) / n), h
    )


def branch_of_zero(h, s, n):
    return lax.cond(h[0].sum() < 9, total, lambda v: jnp.zeros((v.shape[0], 1)), h) / n


def branch_unlike(h, s, n):
    """One branch computes the mean; the other has it already."""
    mean = total(h) / n
    return lax.cond(h[0].sum() > 0, lambda: total(h) / n, lambda: mean)


def switch(h, s, n):
    at = jnp.argmax(h.sum(-1)) % 3
    branches = [total, lambda v: total(v * v), lambda v: -total(v)]
    return lax.switch(at, branches, h) / n


def jitted(h, s, n):
    return jax.jit(total)(h) / n


def jitted_division(h, s, n):
    return jax.jit(lambda sums, count: sums / count)(total(h), n)


def jitted_twice(h, s, n):
    """One function, called with a sum and with another statistic."""
    divide = jax.jit(lambda sums: sums / n)
    return divide(total(h)) + divide(total(h * h))


def jitted_static(h, s, n):
    divide = jax.jit(lambda sums, count: sums * (1 / count), static_argnums=1)
    return divide(total(h), n)


def remat(h, s, n):
    return jax.checkpoint(lambda v: v - total(v) / n)(h)


def remat_of_sum(h, s, n):
    return jax.checkpoint(total)(jnp.cos(h)) / n


def mapped(h, s, n):
    return jax.vmap(lambda row: row - row.sum() / n)(h)


def mapped_twice(h, s, n):
    """Every pair of rows."""
    of_rows = jax.vmap(jax.vmap(lambda a, b: a @ b / n, (0, None)), (None, 0))
    return of_rows(h, h) @ jnp.tanh(h)


def mapped_over_units(h, s, n):
    """vmap with an axis name: a sum over a device axis becomes one over units."""
    centre = lambda column: column - lax.psum(column, "units") / n  # noqa: E731
    return jax.vmap(centre, 1, 1, axis_name="units")(h)


def mapped_over_rows(h, s, n):
    def one(row):
        highest = lax.pmax(lax.stop_gradient(row), "rows")
        return row * lax.pmean(row.sum() / n, "rows") / highest

    return jax.vmap(one, axis_name="rows")(3 + jnp.cos(h))


def in_a_loop(h, s, n):
    return lax.map(lambda row: row * (row @ row) / n, h)


def associative(h, s, n):
    """Cumulative sums of the rows."""
    sums = lax.associative_scan(jnp.add, h.sum(-1))
    return sums[:, None] / n


def accumulated(h, s, n):
    return jnp.cumsum(h.sum(-1))[:, None] / n


def partial(h, s, n):
    return functools.partial(lambda count, v: total(v) / count, n)(h)


def of_rows_in_turn(h, s, n):
    return sum(row.sum() for row in h) / (n * h.shape[0])


def batched_branch(h, s, n):
    """A branch for each row becomes a select."""
    return jax.vmap(
        lambda row: lax.cond(row.sum() > 0, jnp.sum, lambda v: (v * v).sum(), row) / n
    )(h)


def batched_while(h, s, n):
    def one(row):
        return lax.while_loop(
            lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + row.sum()), (0, 0.0)
        )[1]

    return jax.vmap(one)(lax.stop_gradient(h)) / n


def power_iteration(h, s, n):
    """A unit vector after some steps, then scaled."""

    def step(_, u):
        v = jnp.tanh(h).T @ (h @ u)
        return v / jnp.linalg.norm(v)

    u = lax.fori_loop(0, 2, step, s / jnp.linalg.norm(s))
    return h * (u * jnp.sqrt(n))[None]


CALLS: dict[str, Spelling] = {
    f.__name__: f
    for f in (
        scan_over_rows, scan_over_rows_divided, scan_each_row, scan_pair,
        scan_of_steps, scan_with_count_as_operand, scan_with_count_in_carry,
        scan_counting, scan_over_units, welford, for_loop, for_loop_over_rows,
        while_loop, while_mean, branch, branch_inside, branch_of_zero, branch_unlike,
        switch, jitted, jitted_division, jitted_twice, jitted_static, remat,
        remat_of_sum, mapped, mapped_twice, mapped_over_units, mapped_over_rows,
        in_a_loop, associative, accumulated, partial, of_rows_in_turn,
        batched_branch, batched_while, power_iteration,
    )
}  # fmt: skip
