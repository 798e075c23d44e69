"""Networks of different make, ours and PyTorch's: `PAIRS` is the list of them."""

from collections.abc import Callable

from .cifar import resnet29, vgg11
from .fast_cnn import fast_cnn
from .pair import Pair
from .texts import decoder, gru, lstm
from .torchvision_networks import mobilenet_v2, vit
from .unet import unet

PAIRS: dict[str, Callable[[bool], Pair]] = {
    "vgg11": vgg11,
    "resnet29": resnet29,
    "mobilenet_v2": mobilenet_v2,
    "unet": unet,
    "fast_cnn": fast_cnn,
    "vit": vit,
    "decoder": decoder,
    "lstm": lstm,
    "gru": gru,
}
"""(whether a tiny one, for tests) -> the pair."""
