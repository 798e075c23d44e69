"""Train a sliceable VGG.

    python -m experiments.cifar_vgg
    python -m experiments.cifar_vgg --dataset cifar10 --depth 13

Without arguments: the embedded digits, on two CPU cores.
"""

import sys

from mslice_jax.models import CifarVGG

from .recipe import Recipe, main
from .settings import Defaults

RECIPE = Recipe(
    name="cifar_vgg",
    description="Train a sliceable VGG (paper: VGG-13).",
    model=CifarVGG,
    digits=Defaults(depth=11, widen=0.25, epochs=16, batch_size=32, lr=0.05),
    cifar=Defaults(depth=13),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
