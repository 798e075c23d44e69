"""Writes the files of `test_golden.py`, one for each version of the format.

    python -m tests.storage.golden

An existing file is never written again: it shows that older files can still be read.
After a new version of the format this adds its file.
"""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import mslice_jax as ms
from mslice_jax.storage.archive import VERSION

FOLDER = pathlib.Path(__file__).parent / "golden"
RATES = (0.25, 0.5, 1.0)


class Net(nn.Module):
    """A dense layer, a batch norm, and another dense layer."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return {"logits": nn.Dense(2)(nn.relu(x))}


def arrays() -> tuple[np.ndarray, dict]:
    """The input, and variables written out, since random draws may change."""
    count = iter(range(1, 99))

    def numbers(*shape: int) -> jnp.ndarray:
        size = int(np.prod(shape))
        return jnp.asarray(np.cos(next(count) * np.arange(1, size + 1)), "f").reshape(
            shape
        )

    params = {
        "Dense_0": {"kernel": numbers(3, 8), "bias": numbers(8)},
        "BatchNorm_0": {"scale": numbers(8), "bias": numbers(8)},
        "Dense_1": {"kernel": numbers(8, 2), "bias": numbers(2)},
    }
    stats = {"BatchNorm_0": {"mean": numbers(8), "var": 1 + numbers(8) ** 2}}
    x = np.cos(np.arange(12)).astype("f").reshape(4, 3)
    return x, {"params": params, "batch_stats": stats}


def network() -> ms.Sliceable:
    """The network of the files: calibrated, with its units in another order."""
    x, variables = arrays()
    net = ms.upgrade(Net(), variables, x, rates=RATES, norm="shared", train=False)
    return ms.calibrate(ms.reorder(net), [x], train=False)


def write(version: int) -> None:
    """Writes the file of a version: 1 is a saved network, 2 an exported one."""
    path = FOLDER / f"format_{version}.mslice"
    if path.exists():
        return
    net = network()
    print(ms.save(net, path) if version == 1 else ms.export(net, RATES, path))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    for version in range(1, VERSION + 1):
        write(version)
