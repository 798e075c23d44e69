"""The zoo: plain Flax networks that know nothing of slicing, one family a file."""

from .resnet import CifarResNet as CifarResNet
from .vgg import CifarVGG as CifarVGG
