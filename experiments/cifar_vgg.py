"""Train a sliceable VGG.

    python -m experiments.cifar_vgg
    python -m experiments.cifar_vgg --dataset cifar10 --data-dir DIR

Without arguments: VGG-11, a quarter wide, on scikit-learn's digits. That takes about
two minutes on two CPU cores, and gives an accuracy of about 98 % at full width and 96 %
at a quarter. On CIFAR the defaults are the original's: VGG-13, 300 epochs, which asks
for a GPU. Everything else is as in `experiments.cifar_resnet`.
"""

import sys

from mslice_jax.models import CifarVGG

from .recipe import Recipe, main
from .settings import Defaults

RECIPE = Recipe(
    name="cifar_vgg",
    description="Train a sliceable VGG on digits, CIFAR or your own images.",
    model=CifarVGG,
    # With group norms and no shortcuts it stays at chance unless it starts slowly.
    digits=Defaults(
        depth=11, widen=0.25, epochs=20, batch_size=32, lr=0.03, warmup_epochs=4
    ),
    cifar=Defaults(depth=13),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
