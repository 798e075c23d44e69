"""Where a run's arrays are: one device, or a mesh of many, on one host or several.

The mesh has two axes. Every batch is sharded over both. Weights, optimizer state and
averages are whole on each device of the axis "data", and sharded over the axis
"fsdp" (fully sharded data parallel, as in ZeRO, Rajbhandari et al., 2020). Everything
else follows: under `jit` a mean over the batch is one over all devices, so gradients
and batch statistics agree with those of a single device.

A network whose weights are sharded should be upgraded with ``shards=`` the size of
that axis: then slicing moves no weights between devices.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA, FSDP = "data", "fsdp"


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, and what is where on it.

    Attributes:
      mesh: with the axes "data" and "fsdp".
      smallest: arrays of fewer numbers are whole on every device.

    Example:
      >>> placement = Placement.over()
      >>> dict(placement.mesh.shape)["fsdp"]
      1
    """

    mesh: Mesh
    smallest: int = 2**12

    @classmethod
    def over(
        cls, devices: Sequence[Any] | None = None, *, fsdp: int = 1
    ) -> "Placement":
        """A mesh over these devices, all of every host unless given.

        Args:
          devices: how many the batch is sharded over.
          fsdp: over how many of them the weights are; it divides their number.

        Raises:
          ValueError: if it does not.
        """
        devices = jax.devices() if devices is None else devices
        if fsdp < 1 or len(devices) % fsdp:
            raise ValueError(
                f"expected fsdp to divide the {len(devices)} devices, got {fsdp}."
            )
        # Neighbours share weights: they exchange more than those far from each other.
        grid = np.array(devices).reshape(-1, fsdp)
        return cls(Mesh(grid, (DATA, FSDP)))

    def weights(self, tree: Any) -> Any:
        """The sharding of each array of a state, from its shape."""
        return jax.tree.map(lambda leaf: self._sharding(np.shape(leaf)), tree)

    def state(self, state: Any) -> Any:
        """A state (or any tree of arrays) where it belongs; values stay the same.

        An array that lies there already is returned as it is.

        Every host has to hold the same values, as it does where all start from one
        seed or one checkpoint.
        """
        return jax.tree.map(_global, state, self.weights(state))

    def batch(self, batch: Any) -> Any:
        """This host's part of a batch as a part of the global batch.

        Args:
          batch: a tree of arrays (examples of this host, ...), on every host as many.

        Raises:
          ValueError: if the devices do not divide the global batch.
        """
        sharding = NamedSharding(self.mesh, P((DATA, FSDP)))
        hosts = jax.process_count()

        def place(x: Any) -> jax.Array:
            x = np.asarray(x)
            size = x.shape[0] * hosts
            if size % self.mesh.size:
                raise ValueError(
                    f"expected a batch that divides over {self.mesh.size} devices, got "
                    f"{size} examples."
                )
            return jax.make_array_from_process_local_data(
                sharding, x, (size, *x.shape[1:])
            )

        return jax.tree.map(place, batch)

    def local(self, tree: Any) -> Any:
        """A tree that lies on the mesh, whole and on one device of this host.

        All hosts have to ask for it together.
        """
        whole = NamedSharding(self.mesh, P())
        gathered = jax.jit(lambda tree: tree, out_shardings=whole)(tree)
        return jax.tree.map(lambda x: x.addressable_data(0), gathered)

    def constrain(self, tree: Any) -> Any:
        """Inside jit: the tree, held where `weights` says."""
        return jax.lax.with_sharding_constraint(tree, self.weights(tree))

    def _sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """Over the longest axis that the devices divide; the last one of several."""
        parts = self.mesh.shape[FSDP]
        spec: list[str | None] = [None] * len(shape)
        axes = [i for i, size in enumerate(shape) if size % parts == 0 and size]
        if parts > 1 and axes and math.prod(shape) >= self.smallest:
            spec[max(axes, key=lambda i: (shape[i], i))] = FSDP
        return NamedSharding(self.mesh, P(*spec))


def _global(x: Any, sharding: NamedSharding) -> jax.Array:
    if getattr(x, "sharding", None) == sharding:
        return x
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _global(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    local = np.asarray(x)  # every host has all of it, and gives what its devices hold
    return jax.make_array_from_callback(x.shape, sharding, lambda index: local[index])
