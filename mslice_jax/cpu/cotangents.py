"""Products in training on CPU: the cotangent of each is made once, as it is laid out.

Two products read the cotangent of a product: one gives the gradient of the inputs, the
other that of the weight, and JAX writes the second with the cotangent's axes exchanged.
XLA fuses this exchange with all that makes the cotangent, a softmax or a gate, which is
so computed twice, and along the wrong axis; a third of the time of a gated layer and a
softmax over 2,048 words (`experiments/LOG.md`). A barrier leaves the exchange to the
product.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def applies(out: Any) -> bool:
    """Whether a product of this type has a cotangent."""
    return jnp.issubdtype(out.dtype, jnp.floating)


@jax.custom_jvp
def made_once(x: jax.Array) -> jax.Array:
    """The same; nothing that reads its cotangent is fused with what makes it."""
    return x


@made_once.defjvp
def _tangent(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return primals[0], lax.optimization_barrier(tangents[0])
