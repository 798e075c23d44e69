"""The zoo: plain Flax networks that know nothing of slicing, one family a file."""

from .decoder import Decoder as Decoder
from .generation import generate as generate
from .imagenet_resnet import ImageNetResNet as ImageNetResNet
from .recurrent import RecurrentLM as RecurrentLM
from .recurrent import gru_lm as gru_lm
from .recurrent import lstm_lm as lstm_lm
from .resnet import CifarResNet as CifarResNet
from .vgg import CifarVGG as CifarVGG
