"""A folder of class folders, as torchvision's `ImageFolder` reads it.

Every file is decoded once before anything starts, so that a file that cannot be read
is known by then, and no batch waits for one on its way.
"""

import dataclasses
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .crops import undecodable
from .dataset import DataError, choose
from .imagenet import ImageDataset
from .images import check_installed

NAME = "folder"

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
"""How names of images end, in small or capital letters; other files are no images."""

_HELD_OUT = ("val", "validation", "test")
_TENTH = 10  # of a folder without held-out images, one in this many is held out
_MOST_UNREADABLE = 0.01  # as a share of all images
_SHOWN = 3  # names in a message
_BLOCK = 256  # files that one thread looks at before it takes more


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Files:
    """Files of images and their labels, an `images.Source`.

    Attributes:
      folder: that the names begin in.
      names: (n,), bytes, the path of each file from there.
      labels: (n,), int32.
      what: of the folder they are, such as "train".
    """

    folder: str
    names: np.ndarray
    labels: np.ndarray
    what: str

    def __len__(self) -> int:
        """How many there are."""
        return len(self.names)

    def __getitems__(self, numbers: Sequence[int], /) -> Sequence[Mapping[str, Any]]:
        """Records with "image" (the bytes of a file), "label" and "file_name"."""
        return [
            {
                "image": _read(self.folder, self.names[number]),
                "label": int(self.labels[number]),
                "file_name": self.names[number],
            }
            for number in numbers
        ]

    def __str__(self) -> str:
        """As messages name it."""
        return f"the {self.what} images in {self.folder}"

    def part(self, numbers: np.ndarray) -> "Files":
        """Those of these numbers."""
        return dataclasses.replace(
            self, names=self.names[numbers], labels=self.labels[numbers]
        )


def read_folder(
    data_dir: str | pathlib.Path | None,
    *,
    train_examples: int | None = None,
    seed: int = 0,
    image_size: int = 224,
    workers: int = 0,
) -> ImageDataset:
    """The images of a folder of class folders.

    Classes are numbered in the order of their names, as torchvision's `ImageFolder`
    numbers them. Images may lie in folders inside of a class folder, and other files
    are left alone.

    Args:
      data_dir: a folder with ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` (also
        "validation" or "test"); or one with ``CLASS/*.jpg``, of which a tenth is held
        out: a hash of each name chooses, so more files do not change what is.
      train_examples: number of training examples to use; None is all.
      seed: chooses them.
      image_size: height and width of the images that it gives, in pixels.
      workers: processes that prepare batches; with 0 this one does.

    Returns:
      The set; files that cannot be decoded are not in it, and are its `skipped`.

    Raises:
      DataError: for a folder of another form, a class without images, folders of
        train and val whose classes differ, or where more than 1 % of the images cannot
        be read. The message says what to do.
    """
    check_installed(workers)
    folder = _folder(data_dir)
    found, skipped = _readable(folder, _classes(folder))
    first = next(iter(found))
    if len(found) > 1:
        train, test = (_files(folder, part, found[part]) for part in found)
    else:
        train, test = _split(_files(folder, first, found[first]), list(found[first]))
    if train_examples is not None:
        train = train.part(choose(len(train), train_examples, seed=seed))
    return ImageDataset(
        name=NAME,
        train=train,
        test=test,
        num_classes=len(found[first]),
        image_size=image_size,
        workers=workers,
        skipped=tuple(skipped),
    )


# For each part of the folder ("train", "val"; "" is the folder itself), and each class,
# the paths of its images from the folder on, as bytes.
_Parts = dict[str, dict[str, list[bytes]]]


def _folder(data_dir: str | pathlib.Path | None) -> pathlib.Path:
    what = "a folder of class folders as --data-dir, with images in each"
    if data_dir is None:
        raise DataError(f"expected {what}; got none. Give it.")
    folder = pathlib.Path(data_dir).expanduser()
    if not folder.is_dir():
        wrong = "is a file" if folder.exists() else "is not there"
        raise DataError(f"expected {what}; {folder} {wrong}.")
    return folder


def _classes(folder: pathlib.Path) -> _Parts:
    """All images by part and class; DataError unless every class has some."""
    inside = _folders_in(folder)
    held_out = next((name for name in _HELD_OUT if name in inside), None)
    if "train" in inside and held_out is None:
        raise DataError(
            f"{folder} has a folder train, and none with held-out images. Name it val; "
            f"or give {folder / 'train'}, of which a tenth is held out."
        )
    parts = ("train", held_out) if "train" in inside and held_out else ("",)
    found: _Parts = {}
    for part in parts:
        classes = _folders_in(folder / part)
        if len(classes) < 2:
            there = f"{classes[0]} alone" if classes else "no folder"
            raise DataError(
                f"expected a folder for each of two classes or more in {folder / part} "
                f"({folder / part / 'CLASS' / 'IMAGE.jpg'}); there is {there}."
            )
        found[part] = {name: _images_in(folder, part, name) for name in classes}
    if len(parts) > 1:
        _check_same(folder, found)
    empty = [
        str(folder / part / name)
        for part in parts
        for name, files in found[part].items()
        if not files
    ]
    if empty:
        none = len(empty) == sum(len(classes) for classes in found.values())
        raise DataError(
            f"{'no class has' if none else 'these classes have no'} images "
            f"({', '.join(SUFFIXES[:3])}, ...): {_some(empty)}. Fill the folders, or "
            "remove them."
        )
    return found


def _check_same(folder: pathlib.Path, found: _Parts) -> None:
    """Raise DataError if the parts have different classes."""
    (train, ours), (held_out, theirs) = found.items()
    lacking = [
        f"{other} lacks {_some(sorted(set(here) - set(there)))}"
        for other, here, there in ((held_out, ours, theirs), (train, theirs, ours))
        if set(here) - set(there)
    ]
    if lacking:
        raise DataError(
            f"expected the same class folders in {folder / train} and "
            f"{folder / held_out}; {'; '.join(lacking)}."
        )


def _folders_in(folder: pathlib.Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return sorted(name for name in names if not name.startswith("."))


def _images_in(folder: pathlib.Path, part: str, name: str) -> list[bytes]:
    found = []
    for place, _, files in os.walk(folder / part / name, followlinks=True):
        inner = os.path.relpath(place, folder)
        found += [
            os.fsencode(os.path.join(inner, file))
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
    return sorted(found)


def _readable(folder: pathlib.Path, found: _Parts) -> tuple[_Parts, list[str]]:
    """Without the images that cannot be decoded; and these, each with the reason."""
    names = [n for part in found.values() for files in part.values() for n in files]

    def wrong(start: int) -> dict[bytes, str]:
        reasons = {}
        for name in names[start : start + _BLOCK]:
            if reason := _wrong(folder, name):
                reasons[name] = reason
        return reasons

    skipped: dict[bytes, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding frees the interpreter
        for reasons in pool.map(wrong, range(0, len(names), _BLOCK)):
            skipped |= reasons
    said = [f"{os.fsdecode(name)} ({reason})" for name, reason in skipped.items()]
    if len(skipped) > _MOST_UNREADABLE * len(names):
        raise DataError(
            f"{len(skipped)} of the {len(names)} images in {folder} cannot be read: "
            f"{_some(said)}. Up to 1 % are skipped; copy them anew, or remove them."
        )
    left = {
        part: {
            name: [n for n in files if n not in skipped]
            for name, files in classes.items()
        }
        for part, classes in found.items()
    }
    lost = [
        str(folder / part / name)
        for part, classes in left.items()
        for name, files in classes.items()
        if not files
    ]
    if lost:
        raise DataError(f"no image can be read of {_some(lost)}.")
    return left, said


def _wrong(folder: pathlib.Path, name: bytes) -> str | None:
    """Why a file cannot be read; None if it can."""
    try:
        return undecodable(_read(str(folder), name))
    except OSError as error:
        return error.strerror or type(error).__name__


def _files(
    folder: pathlib.Path, part: str, classes: Mapping[str, Sequence[bytes]]
) -> Files:
    counts = [len(files) for files in classes.values()]
    return Files(
        folder=str(folder),
        names=np.array([name for files in classes.values() for name in files]),
        labels=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        what=part,
    )


def _split(files: Files, classes: Sequence[str]) -> tuple[Files, Files]:
    """Training images, and the tenth that is held out by its names."""
    hashes = np.array([zlib.crc32(name) for name in files.names.tolist()])
    held_out = hashes % _TENTH == 0
    train = dataclasses.replace(files, what="training").part(~held_out)
    test = dataclasses.replace(files, what="held-out").part(held_out)
    left = set(train.labels.tolist())
    lost = [name for label, name in enumerate(classes) if label not in left]
    if lost or not len(test):
        raise DataError(
            f"{files.folder} has too few images to hold out a tenth by their names: "
            + (f"none is left to train on of {_some(lost)}" if lost else "none is")
            + ". Put them into train/CLASS and val/CLASS."
        )
    return train, test


def _read(folder: str, name: bytes) -> bytes:
    with open(os.path.join(os.fsencode(folder), name), "rb") as file:
        return file.read()


def _some(names: Iterable[str]) -> str:
    """The first ones, and how many more there are."""
    names = list(names)
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
