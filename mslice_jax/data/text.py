"""Texts: a file, or a folder in three parts, as numbers of a vocabulary."""

import dataclasses
import lzma
import pathlib
from typing import Literal

import numpy as np

from .dataset import DataError
from .vocabulary import Vocabulary

_ENDINGS = (".txt", ".tokens", ".raw", ".txt.xz", ".tokens.xz", ".raw.xz")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """A text in two parts, as tokens.

    Attributes:
      name: what it was read from.
      train: (n,), int32, tokens to train with, in their order.
      held_out: the same, of what is measured.
      vocabulary: what the tokens stand for.
    """

    name: str
    train: np.ndarray
    held_out: np.ndarray
    vocabulary: Vocabulary

    def __repr__(self) -> str:
        """One line: the arrays themselves would fill the screen."""
        return (
            f"Text({self.name}: {len(self.train)} training and {len(self.held_out)} "
            f"held-out tokens, {self.vocabulary})"
        )


def read_text(
    path: str | pathlib.Path,
    *,
    kind: str | None = None,
    vocabulary: int | Vocabulary | None = None,
    held_out: Literal["valid", "test"] = "valid",
) -> Text:
    """Read a text of any kind into memory.

    Args:
      path: a file in UTF-8, of which the last tenth is held out; or a folder with
        three, in whose names "train", "valid" and "test" stand, such as that of
        WikiText-2. Files that end in .xz are unpacked.
      kind: what a token is: "characters", "words" or "spaced", see `TOKEN_KINDS`; by
        default characters of a file, and "spaced" of a folder, which is what corpora
        are prepared for.
      vocabulary: how many of the most frequent pieces of the training text have a
        number, "<unk>" among them; None is all; or a vocabulary.
      held_out: which part of a folder is measured.

    Raises:
      DataError: if it is missing, empty, or not UTF-8.

    Example:
      >>> import pathlib, tempfile
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "rose.txt"
      >>> _ = file.write_text("a rose is a rose is a rose.\\n" * 10)
      >>> read_text(file, kind="words")
      Text(rose.txt: 90 training and 10 held-out tokens, Vocabulary(6 words))
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        first, second = (_read(_find(path, part)) for part in ("train", held_out))
        kind = kind or "spaced"
    else:
        first, second = _divided(_read(path))
        kind = kind or "characters"
    if not isinstance(vocabulary, Vocabulary):
        vocabulary = Vocabulary.of(first, kind, vocabulary)
    train, rest = vocabulary.encode(first), vocabulary.encode(second)
    for tokens, what in ((train, "train with"), (rest, "hold out")):
        if len(tokens) < 2:
            raise DataError(
                f"{path} has {len(tokens)} tokens to {what}; expected at least 2. Give "
                "a longer text."
            )
    name = path.name or str(path)
    return Text(name=name, train=train, held_out=rest, vocabulary=vocabulary)


def _find(folder: pathlib.Path, part: str) -> pathlib.Path:
    """The file of a part in a folder."""
    found = [
        file
        for file in sorted(folder.iterdir())
        if part in file.name and file.name.endswith(_ENDINGS)
    ]
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(
            f"expected one file in {folder} with {part!r} in its name, that ends in "
            f"{', '.join(_ENDINGS[:3])} (or these and .xz); got {names}."
        )
    return found[0]


def _read(file: pathlib.Path) -> str:
    try:
        data = file.read_bytes()
        if file.suffix == ".xz":
            data = lzma.decompress(data)
    except OSError as error:
        raise DataError(f"cannot read the text {file}: {error.strerror}.") from error
    except lzma.LZMAError as error:
        raise DataError(f"{file} is no xz file, or a damaged one: {error}.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not a text in UTF-8: byte {error.start} is "
            f"{data[error.start]:#04x} ({error.reason}). Save it as UTF-8."
        ) from error
    if not text.strip():
        raise DataError(f"{file} is empty; expected a text.")
    return text.replace("\r\n", "\n")


def _divided(text: str) -> tuple[str, str]:
    """Nine tenths and the last tenth, divided where a line ends, if there are lines."""
    middle = len(text) * 9 // 10
    end = text.find("\n", middle) + 1
    middle = end if 0 < end < len(text) else middle
    return text[:middle], text[middle:]
