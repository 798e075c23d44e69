"""Train an elastic network for CIFAR-10 within minutes of a GPU, or hours of a CPU.

    python -m experiments.cifar_speedrun
    python -m experiments.cifar_speedrun --dataset cifar10 --data-dir DIR
    python -m experiments.cifar_speedrun --dataset cifar10 --data-dir DIR --width .5
    python -m experiments.compare_schedules --recipe cifar_speedrun \\
        --schemes independent static --dataset cifar10 --data-dir DIR --seeds 0

The network and its training are those of the public speed runs, which reach 94 % in
eight to ten epochs: David Page's ResNet for DAWNBench, tysam's hlb-CIFAR10, and above
all Keller Jordan's airbench94 (arXiv 2404.00498) and airbench94_muon. The first layer
whitens patches and is not trained; convolutions begin as the identity; images are
mirrored in every second epoch. Here one such network is trained at all of --rates.

Without arguments it trains a quarter of the width on scikit-learn's digits, enlarged to
16 x 16, to 97 to 99 % (at r = .25, where groups have 4 and 16 channels, to 82 %).
Everything else is as in `experiments.cifar_resnet`.
"""

import sys

from .recipe import Recipe, main
from .speedrun import settings
from .speedrun.kind import SpeedImages, optimization
from .speedrun.network import SpeedNet

ENLARGE = 2
"""Digits of 8 x 8 pixels become 16 x 16, the least that three poolings take."""

RECIPE = Recipe(
    name="cifar_speedrun",
    description="Train an elastic network for CIFAR-10 in a few epochs, as the public "
    "speed runs do.",
    model=SpeedNet,
    digits=lambda given: settings.defaults(given, batch_size=128, width=0.25, epochs=6),
    cifar=settings.defaults,
    kind=SpeedImages(enlarge=ENLARGE),
    optimizer=optimization,
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
