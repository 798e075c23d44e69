"""Train a sliceable pre-activation ResNet: the main job.

    python -m experiments.cifar_resnet
    python -m experiments.cifar_resnet --dataset cifar10 --data-dir DIR
    python -m experiments.cifar_resnet --dataset npz --data-dir mine.npz --depth 29

Without arguments it trains ResNet-8, twice as wide, on scikit-learn's digits: about a
minute on two CPU cores, compilation included, and an accuracy of about 99 % at full
width and 97 to 98 % at a quarter. On CIFAR the defaults are the original's: ResNet-164
and 300 epochs, which needs a GPU.

The command ends with a table, and leaves in its workdir (runs/cifar_resnet) the files
that `experiments.recipe` lists. Repeated, it continues the run, or shows the table of
a finished one; ``--config runs/cifar_resnet/settings.json`` stands for its flags.
``python -m experiments.evaluate runs/cifar_resnet`` evaluates the trained network.
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
