"""Blocks of sequences (b, t, c): attention, scans, positions."""

import random

from tests.fuzz.builder import Builder, block


@block(3, often=5)
def attention(n: Builder, r: random.Random) -> None:
    """Fused or separate projections; as many key heads as query heads, or fewer."""
    size, count, c = r.choice((2, 4)), r.choice((2, 4)), n.channels
    all_of_them = size * count
    q, k, u = n.name("q"), n.name("q"), n.name("q")
    fused = r.choice(("no", "no", "split", "reshape", "interleaved", "shared", "one"))
    if fused == "split":
        n.emit(f"{q}, {k}, {u} = jnp.split({n.dense(3 * all_of_them)}, 3, axis=-1)")
        n.emit(f"{q}, {k}, {u} = (heads(y, {size}) for y in ({q}, {k}, {u}))")
    elif fused == "reshape":
        y = n.name("y")
        n.emit(f"{y} = {n.dense(3 * all_of_them)}")
        n.emit(f"{y} = {y}.reshape(*{y}.shape[:2], 3, -1, {size})")
        n.emit(f"{q}, {k}, {u} = ({y}[:, :, i] for i in range(3))")
    elif fused == "interleaved":
        y = f"heads({n.dense(3 * all_of_them)}, {3 * size})"
        n.emit(f"{q}, {k}, {u} = jnp.split({y}, 3, axis=-1)")
    else:
        of_keys = all_of_them
        if fused == "shared" and count > 2:
            of_keys //= 2
        elif fused == "one":
            of_keys = size
        n.emit(f"{q} = heads({n.dense(all_of_them)}, {size})")
        n.emit(f"{k} = heads({n.dense(of_keys)}, {size})")
        n.emit(f"{u} = heads({n.dense(of_keys)}, {size})")
        if fused == "shared" and count > 2:
            n.emit(f"{k}, {u} = (jnp.repeat(y, 2, axis=2) for y in ({k}, {u}))")
        elif of_keys < all_of_them:
            spread = f"jnp.broadcast_to(y, {q}.shape) for y in ({k}, {u})"
            n.emit(f"{k}, {u} = ({spread})")
    if r.random() < 0.3:
        n.emit(f"{q}, {k} = rotate({q}), rotate({k})")
    if r.random() < 0.2:  # each head is normed
        scales = n.vector("s", size), n.vector("s", size)
        n.emit(f"{q}, {k} = rms_norm({q}, {scales[0]}), rms_norm({k}, {scales[1]})")
    causal = r.random() < 0.5
    n.emit(f"{q} = attend({q}, {k}, {u}, causal={causal})")
    y = n.dense_of(all_of_them, c, q)
    n.emit(f"x = x + {y}" if r.random() < 0.7 else f"x = {y}")


@block(3)
def linear_attention(n: Builder, r: random.Random) -> None:
    """Keys by values first; with heads, or without."""
    size, count, c = r.choice((2, 4)), r.choice((2, 4)), n.channels
    q, k, u = n.name("q"), n.name("q"), n.name("q")
    for name in (q, k, u):
        n.emit(f"{name} = jax.nn.elu({n.dense(size * count)}) + 1")
    if r.random() < 0.6:
        n.emit(f"{q}, {k}, {u} = (heads(y, {size}) for y in ({q}, {k}, {u}))")
        n.emit(f"{k} = jnp.einsum('bthd,bthe->bhde', {k}, {u}) / x.shape[1]")
        n.emit(f"{q} = jnp.einsum('bthd,bhde->bthe', {q}, {k})")
        n.emit(f"{q} = {q}.reshape(*{q}.shape[:2], -1)")
    else:
        n.emit(f"{k} = jnp.einsum('btd,bte->bde', {k}, {u}) / x.shape[1]")
        n.emit(f"{q} = jnp.einsum('btd,bde->bte', {q}, {k})")
        n.not_maskable = "a product of activations over channels"
    n.emit(f"x = x + {n.dense_of(size * count, c, q)}")


@block(3)
def places(n: Builder, r: random.Random) -> None:
    """A learnt table of positions, or a learnt token before the others."""
    t = n.shape[1]
    if r.random() < 0.5 or t > 16:
        table = n.kernel(t, n.channels, contracted=())
        n.emit(f"x = x + {table}[None]")
    else:
        token = f"jnp.broadcast_to(row({n.vector('b')}, x), x[:, :1].shape)"
        n.emit(f"x = jnp.concatenate([{token}, x], axis=1)")
        n.shape = n.shape[0], t + 1, n.channels


@block(3, often=3)
def recurrent(n: Builder, r: random.Random) -> None:
    """A scan along time: plain, gated with fused gates, or an LSTM."""
    width = r.choice((8, 16))
    kind = r.choice(("plain", "gated", "lstm"))
    count = {"plain": 1, "gated": 2, "lstm": 4}[kind]
    y, step = n.name("y"), n.name("step")
    n.emit(f"{y} = {n.dense(count * width)}")
    w = n.kernel(width, count * width)
    zeros = f"jnp.zeros((x.shape[0], {w}.shape[0]), x.dtype)"
    if r.random() < 0.3:
        start = f"{n.vector('b', width)}[None]"
        zeros = f"jnp.broadcast_to({start}, (x.shape[0], {w}.shape[0]))"
    n.emit(f"def {step}(carry, y):")
    if kind == "plain":
        n.emit(f"    h = jnp.tanh(y + carry @ {w})")
        n.emit("    return h, h")
    elif kind == "gated":
        n.emit(f"    gate, new = jnp.split(y + carry @ {w}, 2, axis=-1)")
        n.emit("    gate = jax.nn.sigmoid(gate)")
        n.emit("    h = gate * carry + (1 - gate) * jnp.tanh(new)")
        n.emit("    return h, h")
    else:
        n.emit("    c, h = carry")
        n.emit(f"    i, f, g, o = jnp.split(y + h @ {w}, 4, axis=-1)")
        n.emit("    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)")
        n.emit("    h = jax.nn.sigmoid(o) * jnp.tanh(c)")
        n.emit("    return (c, h), h")
        zeros = f"({zeros}, {zeros})"
    n.emit(f"x = along_time({step}, {zeros}, {y})", width)


@block(3, often=1)
def state_space(n: Builder, r: random.Random) -> None:
    decay = f"jax.nn.sigmoid(row({n.vector('b')}, x)) * jnp.ones_like(x)"
    if r.random() < 0.5:
        decay = f"jax.nn.sigmoid({n.dense(n.channels)})"
    n.emit(f"x = linear_recurrence({decay}, x)")


@block(3)
def mixed_in_time(n: Builder, r: random.Random) -> None:
    """Layers along time; time is an axis of the input, so it stays whole."""
    t = n.shape[1]
    kind = r.choice(("layer", "cumsum", "shift", "depthwise"))
    if kind == "layer":
        w = n.kernel(t, t, contracted=())
        n.emit(f"x = x + jnp.swapaxes(jnp.swapaxes(x, 1, 2) @ {w}, 1, 2)")
    elif kind == "cumsum":
        n.emit("x = jnp.cumsum(x, axis=1) / 4")
    elif kind == "shift":
        n.emit("x = x + jnp.pad(x, [(0, 0), (1, 0), (0, 0)])[:, :-1]")
    else:
        w = n.kernel(1, 3, 1, n.channels)
        n.emit(f"x = conv(x[:, None], {w}, groups=x.shape[-1])[:, 0]")


@block(3, often=1)
def constant_table(n: Builder, r: random.Random) -> None:
    """A captured table of positions, cut like a parameter."""
    if n.not_permutable:
        return
    t, c = n.shape[1:]
    y = n.name("y")
    n.emit(f"{y} = jnp.arange({t})[None, :, None] * (1 + jnp.arange({c})[None, None])")
    n.emit(f"x = x + jnp.sin({y})")
    n.not_permutable = "a captured table would have to be permuted"
    n.not_by_hand = "a captured table has the full size"
