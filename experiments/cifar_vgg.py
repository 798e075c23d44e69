"""Train a sliceable VGG.

    python -m experiments.cifar_vgg
    python -m experiments.cifar_vgg --dataset cifar10 --data-dir DIR

Without arguments it trains VGG-11, a quarter wide, on scikit-learn's digits: about two
minutes on two CPU cores, and an accuracy of about 98 % at full width and 96 % at a
quarter. On CIFAR the defaults are the original's: VGG-13 and 300 epochs, which needs a
GPU. Everything else is as in `experiments.cifar_resnet`.
"""

import sys

from mslice_jax.models import CifarVGG

from .recipe import Recipe, main
from .settings import Defaults

RECIPE = Recipe(
    name="cifar_vgg",
    description="Train a sliceable VGG on digits, CIFAR or your own images.",
    model=CifarVGG,
    # With group norms and no shortcuts it stays at chance without a warm-up.
    digits=Defaults(
        depth=11, widen=0.25, epochs=20, batch_size=32, lr=0.03, warmup_epochs=4
    ),
    cifar=Defaults(depth=13),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
