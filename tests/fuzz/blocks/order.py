"""Blocks where a place has a meaning: codes, look-ups, captured random numbers."""

import random

from tests.fuzz import prelude
from tests.fuzz.builder import WIDTHS, Builder, block


@block(2, 3, 4)
def embedded_classes(n: Builder, r: random.Random) -> None:
    """One-hot codes of classes pick rows of a table, which stays whole."""
    classes, kind = r.choice((5, 8, 16)), r.choice(prelude.CODES)
    w, y = n.kernel(classes, n.channels, contracted=()), n.name("y")
    count = r.choice((str(classes), f"{w}.shape[0]"))
    n.emit(f"{y} = coded(classes(x, {count}), {count}, {kind!r})")
    n.emit(f"x = x + {y} @ {w}")
    n.not_maskable = "which class it is depends on a sum over channels"


@block(2, 3, 4, often=1)
def told_apart(n: Builder, r: random.Random) -> None:
    """Channels that are told apart by their place stay whole."""
    last = len(n.shape) - 1
    line = f"({', '.join(['1'] * last)}, -1)"
    c = n.channels
    n.emit(
        r.choice(
            (
                f"x = jnp.where(jnp.arange({c}.0).reshape{line} < {c // 2}, x, -x)",
                f"x = x * (np.arange({c}) % 2).reshape{line}",
                f"x = jnp.where(jnp.arange({c}).reshape{line} == 3, x, jnp.cos(x))",
                f"x = x @ jnp.eye({c}, k=1)",
                f"x = x @ jnp.tril(jnp.ones(({c}, {c}))) / 4",
                f"x = x * np.linspace(0, 1, {c}).reshape{line}",
                f"x = x + coded(classes(x, {c}), {c}, 'float')",
            )
        )
    )
    n.not_permutable = "a captured table would have to be permuted"
    n.not_by_hand = "a captured table has the full size"
    n.not_maskable = "which class it is depends on a sum over channels"
    width = r.choice(WIDTHS)
    n.emit(f"x = {n.dense(width)}", width)


@block(3, often=3)
def looked_up(n: Builder, r: random.Random) -> None:
    """Each row at a place of its own in time."""
    at = "places(x)"
    kind = r.choice(("roll", "slice", "update", "index", "take", "set", "add", "one"))
    t = n.shape[1]
    if kind == "roll":
        n.emit(f"x = jax.vmap(lambda y, i: jnp.roll(y, i, axis=0))(x, {at})")
    elif kind == "slice" and t > 2:
        cut = f"lambda y, i: lax.dynamic_slice_in_dim(y, i, {t - 1}, axis=0)"
        n.emit(f"x = jax.vmap({cut})(x, {at})")
        n.shape = n.shape[0], t - 1, n.channels
    elif kind == "update":
        put = "lax.dynamic_update_slice_in_dim(y, 2 * y[:1], i, axis=0)"
        n.emit(f"x = jax.vmap(lambda y, i: {put})(x, {at})")
    elif kind == "index":
        n.emit(f"x = x + jax.vmap(lambda y, i: y[i])(x, {at})[:, None]")
    elif kind == "take":
        order = f"({at}[:, None] + jnp.arange({t})[None]) % {t}"
        n.emit(f"x = jnp.take_along_axis(x, ({order})[..., None], axis=1)")
    elif kind == "set":
        n.emit(f"x = x.at[jnp.arange(x.shape[0]), {at}].set(jnp.cos(x[:, 0]))")
    elif kind == "add":
        n.emit(f"x = jax.vmap(lambda y, i: y.at[i].add(y[0]))(x, {at})")
    else:
        cut = f"lax.dynamic_index_in_dim(x, {at}[1], axis=1)"
        n.emit(f"x = x - {cut}")


@block(2, 3, 4)
def random_constant(n: Builder, r: random.Random) -> None:
    """Numbers drawn from a fixed key: along channels, or a kernel."""
    kind, c = r.choice(prelude.DRAWS), n.channels
    n.not_permutable = "a captured table would have to be permuted"
    n.not_by_hand = "another shape draws other numbers"
    if r.random() < 0.6:
        lead = ", ".join(["1"] * (len(n.shape) - 1))
        n.emit(f"x = x * drawn({kind!r}, {lead}, {c})")
    else:
        width = r.choice(WIDTHS)
        n.emit(f"x = jnp.sin(x @ drawn({kind!r}, {c}, {width}) / 3)", width)
        n.not_maskable = "a captured kernel"
        n.emit(f"x = {n.dense(width)}")
