"""Train a sliceable ResNet-50 (-101, -152) on ImageNet.

    python -m experiments.imagenet_resnet --dataset imagenet --data-dir DIR --bfloat16

DIR is the folder of TFDS with imagenet2012 in it, prepared as array_record, or the
folder of any other set that TFDS prepared with the features image and label. Reading it
needs the extra "imagenet". The defaults are the usual ones: 100 epochs, batches of 256,
a learning rate of 0.1 after five epochs of warm-up; that needs several GPUs. For larger
batches give a learning rate in proportion: ``--batch-size 1024 --lr 0.4``.

Images are prepared by --workers processes; if the device waits for them, ask for more.
Without arguments it trains a ResNet-50 an eighth as wide on scikit-learn's digits: a
check that everything works, and no more. Everything else is as in
`experiments.cifar_resnet`.
"""

import sys

from mslice_jax.models import ImageNetResNet

from .recipe import Recipe, main
from .settings import Defaults

RECIPE = Recipe(
    name="imagenet_resnet",
    description="Train a sliceable ResNet on ImageNet or your own large images.",
    model=ImageNetResNet,
    digits=Defaults(depth=50, widen=0.125, epochs=2, batch_size=32, lr=0.05),
    cifar=Defaults(depth=50, epochs=100, batch_size=256, lr=0.1, warmup_epochs=5),
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
