"""Equivariant networks from the modules of E3x, in Linen: energies of molecules."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.benchmarks.families.family import Family, Network, image, load
from experiments.benchmarks.families.frameworks import from_linen

ATOMS, FEATURES, DEGREE = 5, 64, 1


class Energies(nn.Module):
    """Messages between the atoms of a molecule, with features of degree 0 and 1."""

    mix: str

    @nn.compact
    def __call__(self, numbers: jax.Array, positions: jax.Array) -> jax.Array:
        e3x = load("e3x")
        to, of = e3x.ops.sparse_pairwise_indices(ATOMS)
        basis = e3x.nn.basis(
            positions[of] - positions[to],
            num=8,
            max_degree=DEGREE,
            radial_fn=e3x.nn.reciprocal_bernstein,
            cutoff_fn=e3x.nn.smooth_cutoff,
        )
        x = e3x.nn.Embed(10, FEATURES)(numbers)
        for _ in range(2):
            if self.mix == "messages":
                y = e3x.nn.MessagePass(max_degree=DEGREE)(
                    x, basis, dst_idx=to, src_idx=of
                )
            else:
                y = e3x.nn.SelfAttention(max_degree=DEGREE, num_heads=4)(
                    x, basis, dst_idx=to, src_idx=of, num_segments=ATOMS
                )
            y = e3x.nn.silu(e3x.nn.Dense(FEATURES)(e3x.nn.add(x, y)))
            x = e3x.nn.add(x, e3x.nn.TensorDense(FEATURES, max_degree=DEGREE)(y))
        scalars = e3x.nn.change_max_degree_or_type(
            x, max_degree=0, include_pseudotensors=False
        )
        return e3x.nn.Dense(1)(scalars).sum()


def energies(mix: str) -> Network:
    """The energy of one molecule."""
    numbers = jnp.asarray([1, 6, 8, 1, 7])
    return from_linen(Energies(mix), numbers, 3 * image(ATOMS, 3))


def forces() -> Network:
    """The energy and its gradient over the positions."""
    network = energies("messages")

    def function(variables: Any, numbers: jax.Array, positions: jax.Array) -> Any:
        return jax.value_and_grad(network.model.apply, argnums=2)(
            variables, numbers, positions
        )

    return Network(model=function, variables=network.variables, inputs=network.inputs)


def _family(name: str, build: Callable[[], Network]) -> Family:
    return Family(name=name, package="e3x", module="e3x", build=build)


FAMILIES = (
    _family("messages", lambda: energies("messages")),
    _family("attention", lambda: energies("attention")),
    _family("forces", forces),
)
