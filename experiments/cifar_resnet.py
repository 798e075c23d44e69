"""Train a sliceable pre-activation ResNet: the main job.

    python -m experiments.cifar_resnet
    python -m experiments.cifar_resnet --dataset cifar10 --data-dir DIR
    python -m experiments.cifar_resnet --dataset npz --data-dir mine.npz --depth 29

Without arguments: ResNet-8, twice as wide, on scikit-learn's digits. That takes about a
minute on two CPU cores, compilation included, and gives an accuracy of about 99 % at
full width and 97 to 98 % at a quarter. On CIFAR the defaults are the
original's: ResNet-164, 300 epochs, which asks for a GPU.

The command ends with a table, and leaves in its workdir (runs/cifar_resnet) the files
that `experiments.recipe` lists. Given again, it goes on where it was stopped, or shows
the table of the finished run; ``--config runs/cifar_resnet/settings.json`` stands for
its flags. ``python -m experiments.evaluate runs/cifar_resnet`` measures it again.
``--help`` explains the flags.
"""

import sys

from mslice_jax.models import CifarResNet

from .recipe import Recipe, main
from .settings import Defaults

RECIPE = Recipe(
    name="cifar_resnet",
    description="Train a sliceable pre-activation ResNet on digits, CIFAR or your own "
    "images.",
    model=CifarResNet,
    digits=Defaults(depth=8, widen=2, epochs=16, batch_size=32, lr=0.05),
    cifar=Defaults(depth=164),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
