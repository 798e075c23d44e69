"""Images on disk: ImageNet, or any set of images and labels that TFDS prepared.

Only numbers and labels are ever in memory as a whole; see `images` for what is done
with an image on its way.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from . import tfds
from .dataset import DataError, choose
from .images import Source, eval_images, train_images

NAME = "imagenet"

# The name in TFDS, where the data set is not given by its folder.
_TFDS_NAME = "imagenet2012"

# Mean and standard deviation of the training pixels of ImageNet, 0..255.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The encoded images and labels of one split, an `images.Source`.

    It opens its files where it is first read, so that it travels to workers as little
    more than a name.

    Attributes:
      folder: with the files of TFDS for this version of the data set.
      name: such as "train".
      chosen: numbers of the examples that are used, ascending; None is all.
    """

    folder: str
    name: str
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        """How many examples are used."""
        return len(self._records) if self.chosen is None else len(self.chosen)

    def __getitems__(self, numbers: Sequence[int], /) -> Sequence[Mapping[str, Any]]:
        """Records of TFDS; their images are bytes."""
        if self.chosen is not None:
            numbers = self.chosen[list(numbers)].tolist()
        return self._records.__getitems__(list(numbers))

    def __str__(self) -> str:
        """As messages name it."""
        part = "" if self.chosen is None else f"{len(self.chosen)} examples chosen of "
        return f"{part}the split {self.name!r} in {self.folder}"

    def part(self, numbers: np.ndarray) -> "Split":
        """Those of these numbers, ascending."""
        chosen = numbers if self.chosen is None else self.chosen[numbers]
        return dataclasses.replace(self, chosen=chosen)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files."""
        fields = (field.name for field in dataclasses.fields(self))
        return {name: getattr(self, name) for name in fields}

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(self.folder)
        decoders = {"image": tfds.decode.SkipDecoding()}
        return builder.as_data_source(split=self.name, decoders=decoders)


class Examples(Source, Protocol):
    """A `Source` of which parts can be taken."""

    def part(self, numbers: np.ndarray) -> "Examples":
        """Those of these numbers, ascending."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageDataset:
    """Images on disk, with the methods and names of `Dataset` that training uses.

    Attributes:
      name: what it was loaded as.
      train, test: its examples.
      num_classes: how many classes the labels name.
      image_size: height and width of the images that it gives, in pixels.
      workers: processes that prepare batches.
      mean, std: for each channel; a normalized image is (image - mean) / std.
      skipped: files that cannot be read and are in neither, each with the reason.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    image_size: int = 224
    workers: int = 0
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    skipped: tuple[str, ...] = ()

    # Images arrive cropped and mirrored.
    pad = 0
    flip = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.image_size, self.image_size, 3

    def __repr__(self) -> str:
        """One line."""
        skipped = ""
        if self.skipped:
            count, first = len(self.skipped), self.skipped[0]
            files = "1 file" if count == 1 else f"{count} files"
            which = f": {first}" if count == 1 else f", such as {first}"
            skipped = f"; skipped {files} that cannot be read{which}"
        return (
            f"ImageDataset({self.name}: {len(self.train)} training and "
            f"{len(self.test)} test images, given as {self.image_size} x "
            f"{self.image_size} x 3 uint8, {self.num_classes} classes{skipped})"
        )

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        host: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`images.train_images` of the training examples."""
        return train_images(
            self.train,
            batch_size=batch_size,
            image_size=self.image_size,
            seed=seed,
            start=start,
            workers=self.workers,
            host=host,
        )

    def eval_batches(
        self, batch_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """`images.eval_images` of the test examples."""
        return eval_images(
            self.test,
            batch_size=batch_size,
            image_size=self.image_size,
            workers=self.workers,
        )


def read_imagenet(
    data_dir: str | pathlib.Path | None = None,
    *,
    train_examples: int | None = None,
    seed: int = 0,
    image_size: int = 224,
    workers: int = 0,
) -> ImageDataset:
    """The set that TFDS prepared in a folder; no image is read yet.

    Args:
      data_dir: folder of one version of any data set with the features "image" and
        "label" and a split "train" (the one with the file dataset_info.json), or the
        folder of TFDS that has imagenet2012 in it; None is TFDS' own default. The
        held-out examples are those of "validation", else those of "test".
      train_examples: how many of the training examples to use; None is all.
      seed: chooses them.
      image_size: height and width of the images that it gives, in pixels.
      workers: processes that prepare batches; with 0 this one does.

    Raises:
      DataError: if there is no such set, or it has another form. The message says what
        to do.
    """
    folder = None if data_dir is None else pathlib.Path(data_dir).expanduser()
    if folder is not None:
        tfds.refuse_a_file(NAME, folder)
    if folder is None or not (folder / "dataset_info.json").is_file():
        folder = tfds.prepared(_TFDS_NAME, folder).data_path
    folder = str(folder)
    try:
        import tensorflow_datasets

        info: Any = tensorflow_datasets.builder_from_directory(folder).info
        sizes = {name: split.num_examples for name, split in info.splits.items()}
        features = set(info.features)
        file_format = info.file_format.value
    except Exception as error:  # what TFDS raises for files that were changed
        raise DataError(
            f"the data set in {folder} cannot be read; a file may be damaged or "
            f"missing ({type(error).__name__}: {error}). Prepare it again."
        ) from error
    held_out = next((name for name in ("validation", "test") if name in sizes), None)
    if "train" not in sizes or held_out is None or not {"image", "label"} <= features:
        raise DataError(
            f"{folder}: expected the splits train and validation (or test) with the "
            f"features image and label; there are {', '.join(sizes) or 'no splits'} "
            f"with {', '.join(sorted(features))}."
        )
    tfds.check_format(
        file_format,
        f"the data set in {folder}",
        "tfds.builder(NAME, file_format='array_record').download_and_prepare()",
    )
    chosen = None
    if train_examples is not None:
        chosen = choose(sizes["train"], train_examples, seed=seed)
    return ImageDataset(
        name=NAME,
        train=Split(folder=folder, name="train", chosen=chosen),
        test=Split(folder=folder, name=held_out),
        num_classes=info.features["label"].num_classes,
        image_size=image_size,
        workers=workers,
    )
