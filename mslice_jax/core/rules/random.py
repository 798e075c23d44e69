"""Random numbers: arrays made from a key and a shape.

A narrow array draws its own numbers. They are not the leading part of the wide draw:
dropout at a rate is a fresh mask of the narrow shape. But where no argument reaches the
key, what is drawn is a constant: the whole is drawn, and what is kept is cut from it.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..axes import put_back, shape, take
from .base import Dim, Dims, Narrow, Tie, rule
from .folding import cut

_OWN_KEY = "no argument reaches the key"


def _note_own_key(t: Tie) -> None:
    order = t.ins[0].order
    if order is not None and not order.reached:
        t.note(_OWN_KEY)


def _narrow_bits(n: Narrow, key: Any) -> Any:
    (out,) = n.eqn.outvars
    if n.note is _OWN_KEY:
        return cut(n, out, n.bind(key), key.ndim)
    return n.bind(key, shape=n.shape(out)[key.ndim :])


@rule("random_bits", narrow=_narrow_bits)
def tie_bits(t: Tie) -> Sequence[Dims]:
    """key (k) -> (k, a, b): new axes; of a key of the program's own, constants."""
    _note_own_key(t)
    return [[*t.ins[0].dims, *(Dim(size) for size in t.params["shape"])]]


def _narrow_generator(n: Narrow, key: Any) -> Any:
    out = n.eqn.outvars[1]
    if n.note is _OWN_KEY:
        key, bits = n.bind(key)
        return key, cut(n, out, bits)
    return n.bind(key, shape=n.shape(out))


@rule("rng_bit_generator", narrow=_narrow_generator)
def tie_generator(t: Tie) -> Sequence[Dims]:
    """key -> key, (a, b): new axes."""
    _note_own_key(t)
    t.fix(t.ins[0].dims, "the state of a generator")
    return [t.ins[0].dims, [Dim(size) for size in t.params["shape"]]]


def _narrow_uniform(n: Narrow, *bounds: Any) -> Any:
    return n.bind(*bounds, shape=n.shape(n.eqn.outvars[0]))


@rule("rng_uniform", narrow=_narrow_uniform)
def tie_uniform(t: Tie) -> Sequence[Dims]:
    """bounds -> (a, b): new axes."""
    return [[Dim(size) for size in t.params["shape"]]]


def _narrow_gamma(n: Narrow, key: Any, a: Any) -> Any:
    variable = n.eqn.invars[1]
    if n.note is not _OWN_KEY:
        return n.bind(key, a)
    axes = n.axes(variable)
    full = put_back(jnp.ones(shape(axes), a.dtype), a, axes, n.widths)
    back = {group: np.argsort(order) for group, order in n.analysis.orders.items()}
    drawn = n.bind(key, take(full, axes, back))
    return cut(n, n.eqn.outvars[0], drawn)


@rule("random_gamma", narrow=_narrow_gamma)
def tie_gamma(t: Tie) -> Sequence[Dims]:
    """key (k), (k, a) -> (k, a): a draw for each entry; see random_bits."""
    _note_own_key(t)
    key, a = (value.dims for value in t.ins)
    t.equate(key, a[: len(key)])
    return [a]


@rule(
    "from_edtype",
    "random_clone",
    "random_fold_in",
    "random_seed",
    "random_split",
    "random_unwrap",
    "random_wrap",
    "to_edtype",
)
def tie_keys(t: Tie) -> Sequence[Dims]:
    """keys -> keys: fixed."""
    text = "keys of a random number generator"
    for value in t.ins:
        t.fix(value.dims, text)
    return [[t.fixed(size, text) for size in aval.shape] for aval in t.outs]
