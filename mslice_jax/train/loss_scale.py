"""Loss scaling, without which small gradients are zero in float16."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossScale:
    """What losses are multiplied with before gradients are taken; it adapts itself.

    After `interval` steps of finite gradients it doubles. A step whose gradients are
    not finite changes nothing but this: it is halved (Micikevicius et al., ICLR 2018).
    Gradients are divided by it before anything else sees them. It is a power of two,
    so both are exact.

    Attributes:
      scale: float32 scalar.
      finite: int32 scalar, steps of finite gradients since it last changed.
      interval: steps from one doubling to the next.

    Example:
      >>> scale = LossScale.start(2.0**10, interval=2)
      >>> float(scale.after(jnp.array(False)).scale)
      512.0
      >>> float(scale.after(jnp.array(True)).after(jnp.array(True)).scale)
      2048.0
    """

    scale: jax.Array
    finite: jax.Array
    interval: int = dataclasses.field(default=2000, metadata={"static": True})

    @classmethod
    def start(cls, scale: float = 2.0**15, *, interval: int = 2000) -> "LossScale":
        """The scale of a run's first step.

        Raises:
          ValueError: for a scale that is no power of two from 1 to 2**24, or an
            interval below 1.
        """
        if scale not in [2.0**n for n in range(25)]:
            raise ValueError(
                f"expected a scale that is a power of two from 1 to 2**24, got {scale}."
            )
        if interval < 1:
            raise ValueError(f"expected an interval of 1 step or more, got {interval}.")
        return cls(jnp.array(scale, jnp.float32), jnp.array(0, jnp.int32), interval)

    def after(self, finite: jax.Array) -> "LossScale":
        """The scale after a step, by whether its gradients were finite."""
        count = self.finite + 1
        grows = finite & (count >= self.interval)
        up = jnp.minimum(self.scale * 2, 2.0**24)
        down = jnp.maximum(self.scale / 2, 1.0)
        scale = jnp.where(finite, jnp.where(grows, up, self.scale), down)
        return LossScale(
            scale,
            jnp.where(finite & ~grows, count, jnp.zeros_like(count)),
            self.interval,
        )


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite; a boolean scalar."""
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.array(True)
