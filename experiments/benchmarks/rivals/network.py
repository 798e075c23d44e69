"""The network that all of them serve, its weights, and the answers it has to give."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import mslice_jax as ms
from mslice_jax.models.vit import VisionTransformer

RATES = (0.25, 0.5, 0.75, 1.0)
SHAPE = (32, 32, 3)
_IMAGES = 16

# Large enough for 10 ms on an idle core, and wide rather than deep, so that matrix
# products take most of the time at each rate.
WIDE = VisionTransformer(
    patch_size=4,
    layers=7,
    heads=8,
    hidden=384,
    mlp=1536,
    image_size=SHAPE[0],
    num_classes=10,
)
# To try the script with.
TINY = VisionTransformer(
    patch_size=16,
    layers=1,
    heads=4,
    hidden=16,
    mlp=16,
    image_size=SHAPE[0],
    num_classes=10,
)


def network(model: VisionTransformer) -> ms.Sliceable:
    """The network with random weights; trained ones take as long."""
    x = jnp.zeros((1, *SHAPE))
    leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(0), x))
    # Those that begin as zeros, too: else the head, and all answers, would be 0.
    rng = np.random.default_rng(1)
    noise = [0.05 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    variables = tree.unflatten([a + b for a, b in zip(leaves, noise, strict=True)])
    return ms.upgrade(model, variables, x, rates=RATES)


def images() -> np.ndarray:
    """What is asked for, (16, 32, 32, 3)."""
    rng = np.random.default_rng(2)
    return rng.normal(size=(_IMAGES, *SHAPE)).astype(np.float32)


def prepare(folder: pathlib.Path, name: str) -> None:
    """Writes the checkpoint and the right answers, unless they are there."""
    answers = folder / "logits.npy"
    if answers.exists():
        return
    net = network(globals()[name])
    ms.save(net, folder / "network.mslice", programs=False, overwrite=True)
    np.save(answers, np.asarray(ms.slice_apply(net, images(), 1.0)))
