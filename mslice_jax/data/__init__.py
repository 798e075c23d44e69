"""Images and labels, and texts: data sets, the order of batches, augmentation.

A small data set is held in memory as NumPy arrays of raw pixels; crop, flip and
normalization run inside the compiled step. One as large as ImageNet stays on disk:
worker processes read, decode and crop; normalization runs inside the compiled step.
"""

from .augment import crop_and_flip as crop_and_flip
from .augment import eval_transform as eval_transform
from .augment import normalize as normalize
from .augment import train_transform as train_transform
from .batches import epoch_order as epoch_order
from .batches import eval_batches as eval_batches
from .batches import steps_per_epoch as steps_per_epoch
from .batches import train_batch as train_batch
from .batches import train_batches as train_batches
from .dataset import DataError as DataError
from .dataset import Dataset as Dataset
from .folder import read_folder as read_folder
from .imagenet import ImageDataset as ImageDataset
from .imagenet import read_imagenet as read_imagenet
from .images import eval_images as eval_images
from .images import train_images as train_images
from .sources import NAMES as NAMES
from .sources import load as load
from .text import Text as Text
from .text import read_text as read_text
from .text_batches import held_out_batches as held_out_batches
from .text_batches import text_batches as text_batches
from .text_batches import text_steps as text_steps
from .vocabulary import TOKEN_KINDS as TOKEN_KINDS
from .vocabulary import Vocabulary as Vocabulary
