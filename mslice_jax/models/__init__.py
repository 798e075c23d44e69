"""The zoo: plain Flax networks that know nothing of slicing, one family a file."""

from .imagenet_resnet import ImageNetResNet as ImageNetResNet
from .resnet import CifarResNet as CifarResNet
from .vgg import CifarVGG as CifarVGG
