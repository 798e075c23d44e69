"""The proofs of the coverage, without anything built by hand.

    identity     rate 1 equals the original, jitted, bit for bit
    rates        every rate runs, gives finite numbers, and not those of the full width
    permutation  units of every group in random order: the full width gives the same
    influence    NaN in everything that rate .5 drops: nothing changes
    extraction   the extracted narrow network gives what rate .5 gives
    nesting      extracting .5, then .25 of it, is extracting .25
    compilation  running all of this again compiles nothing
    gradient     that of rate .5 is zero outside the slice, and inside that of the
                 extracted network (with --gradients, where the original has one)
    masking      zeros there: the full width gives what rate .5 gives (only for networks
                 in which no mean and no softmax runs over an axis that narrows)

Identity, influence, extraction, nesting and compilation have to hold exactly, the
others up to rounding.
"""

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mslice_jax as ms
from experiments.benchmarks.families.family import Network, Tree

RATES = (0.25, 0.5, 1.0)
SMALL = 0.5
"""The rate of the proofs of influence, masking, extraction and gradient."""


def prove(
    network: Network, net: ms.Sliceable, *, seed: int = 0, masking: bool = False
) -> dict[str, float]:
    """The error of each proof, relative to the largest entry of the output.

    Args:
      network: the original.
      net: the same, upgraded with `RATES`.
      seed: of the permutations.
      masking: whether the narrow network equals the full one with zeros.
    """

    def run(net: ms.Sliceable, rate: float) -> list[np.ndarray]:
        return arrays(outputs_of(network, net, rate))

    def original(variables: Tree, *inputs: Any) -> Any:
        return network.function(variables, *inputs, **network.call)

    full = run(net, 1.0)
    errors = {
        "identity": distance(
            full, arrays(jax.jit(original)(network.variables, *network.inputs))
        )
    }
    narrow = {rate: run(net, rate) for rate in RATES[:-1]}
    fine = all(
        np.isfinite(distance(outputs, full)) and distance(outputs, full) > 1e-4
        for outputs in narrow.values()
    )
    errors["rates"] = 0.0 if fine else np.inf

    rng = np.random.default_rng(seed)
    orders = {
        name: rng.permutation(group.size) for name, group in net.plan.groups.items()
    }
    errors["permutation"] = distance(run(net.permute(orders), 1.0), full)

    kept = net.plan.mask(net.variables, SMALL)
    poisoned = net.replace(filled(net.variables, kept, np.nan))
    errors["influence"] = distance(run(poisoned, SMALL), narrow[SMALL])
    if masking:
        masked = net.replace(filled(net.variables, kept, 0.0))
        errors["masking"] = distance(run(masked, 1.0), narrow[SMALL])

    small = ms.extract(net, SMALL)
    errors["extraction"] = distance(run(small, SMALL), narrow[SMALL])
    twice, once = ms.extract(small, RATES[0]), ms.extract(net, RATES[0])
    errors["nesting"] = distance(arrays(twice.variables), arrays(once.variables))
    with compilations() as programs:
        for rate in RATES:
            run(net, rate)
    errors["compilation"] = float(len(programs))
    return errors


def outputs_of(network: Network, net: ms.Sliceable, rate: float) -> Any:
    """The output of the upgraded network at a rate."""
    first, *more = network.inputs
    return ms.slice_apply(net, first, rate, *more, **network.call)


def one_number(outputs: Any) -> jax.Array:
    """A number in which every inexact output has its own weight."""
    total = jnp.zeros(())
    for y in map(jnp.asarray, jax.tree.leaves(outputs)):
        if jnp.issubdtype(y.dtype, jnp.inexact):
            weights = np.random.default_rng(y.size).normal(size=y.shape)
            total += jnp.sum(jnp.real(y * jnp.asarray(weights, y.dtype)))
    return total


def has_gradient(network: Network) -> bool:
    """Whether the original can be differentiated; a while loop cannot."""

    def original(variables: Tree) -> jax.Array:
        outputs = network.function(variables, *network.inputs, **network.call)
        return one_number(outputs)

    try:
        jax.eval_shape(jax.grad(original, allow_int=True), network.variables)
    except Exception:  # each package refuses in its own way
        return False
    return True


def gradient_error(network: Network, net: ms.Sliceable) -> float:
    """The distance of the gradient of `SMALL` from that of the extracted network.

    Infinite where an entry outside of the slice has a gradient, or there is none.
    """

    def gradient(net: ms.Sliceable) -> Tree:
        def loss(net: ms.Sliceable) -> jax.Array:
            return one_number(outputs_of(network, net, SMALL))

        return jax.grad(loss, allow_int=True)(net).variables

    small = ms.extract(net, SMALL)
    try:
        full, narrow = jax.jit(lambda *nets: tuple(map(gradient, nets)))(net, small)
    except Exception:  # the row needs the other proofs
        traceback.print_exc()
        return np.inf
    kept = net.plan.mask(net.variables, SMALL)
    outside = jax.tree.map(
        lambda g, keep: g.dtype != jax.dtypes.float0 and np.any(np.where(keep, 0, g)),
        full,
        kept,
    )
    if any(jax.tree.leaves(outside)):
        return np.inf
    inside = net.plan.slice(floats(full), SMALL)
    return distance(arrays(inside), arrays(floats(narrow)))


def floats(gradient: Tree) -> Tree:
    """A gradient, with zeros for the variables that have none."""
    return jax.tree.map(
        lambda g: np.zeros(g.shape) if g.dtype == jax.dtypes.float0 else g, gradient
    )


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects the name of every program that XLA compiles within the block."""
    names: list[str] = []

    def listen(event: str, duration_secs: float, **about: Any) -> None:
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(about.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def filled(variables: Tree, kept: Tree, value: float) -> Tree:
    """The variables with a value in every inexact entry that is not kept."""

    def fill(leaf: Any, keep: np.ndarray) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return np.where(keep, leaf, np.asarray(value, leaf.dtype))

    return jax.tree.map(fill, variables, kept)


def arrays(output: Any) -> list[np.ndarray]:
    """The arrays of an output; low precision and booleans as float32.

    A complex number stays complex, and a random key counts as its numbers.
    """

    def array(leaf: Any) -> np.ndarray:
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        wide = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        return np.asarray(leaf, np.complex64 if wide else np.float32)

    return [array(leaf) for leaf in jax.tree.leaves(output)]


def distance(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest difference over the largest entry, of the worst array.

    NaN where anything is not finite: that proves nothing.
    """
    worst = 0.0
    for a, b in zip(actual, expected, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"expected an output of shape {b.shape}; got {a.shape}.")
        largest = np.max(np.abs(b), initial=np.finfo(np.float32).tiny)
        worst = np.maximum(worst, np.max(np.abs(a - b), initial=0.0) / largest)
    return float(worst)
