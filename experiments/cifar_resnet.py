"""Train a sliceable pre-activation ResNet.

    python -m experiments.cifar_resnet
    python -m experiments.cifar_resnet --dataset cifar10 --depth 164

Without arguments: the embedded digits, on two CPU cores.
"""

import sys

from mslice_jax.models import CifarResNet

from .recipe import Recipe, main
from .settings import Defaults

RECIPE = Recipe(
    name="cifar_resnet",
    description="Train a sliceable pre-activation ResNet (paper: ResNet-164).",
    model=CifarResNet,
    digits=Defaults(depth=8, widen=2, epochs=16, batch_size=32, lr=0.05),
    cifar=Defaults(depth=164),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
