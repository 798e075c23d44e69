"""Vocabularies: a text as numbers, by its characters or its most frequent words."""

import collections
import dataclasses
import functools
import operator
import re
from collections.abc import Iterable, Mapping

import numpy as np

from .dataset import DataError

TOKEN_KINDS = ("characters", "words", "spaced")
"""What a token can be: a character; a word or a mark; what stands between spaces."""

UNKNOWN, END = "<unk>", "<eos>"

# A name in angle brackets, a word with its apostrophes, or one mark.
_WORD = re.compile(r"<\w+>|\w+(?:['\u2019]\w+)*|[^\w\s]")


def split(text: str, kind: str) -> list[str]:
    """The text in pieces; the end of a line is one too.

    Raises:
      DataError: for a kind that there is not.

    >>> split("He's here,\\nnow.", "words")
    ["He's", 'here', ',', '<eos>', 'now', '.']
    """
    if kind == "characters":
        return list(text)
    if kind not in TOKEN_KINDS:
        raise DataError(
            f"expected a kind of token of {', '.join(TOKEN_KINDS)}; got {kind!r}."
        )
    pieces = []
    for line in text.splitlines(keepends=True):
        pieces += line.split() if kind == "spaced" else _WORD.findall(line)
        if line.splitlines()[0] != line:
            pieces.append(END)
    return pieces


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The pieces of text that have a number, and the number of all others.

    Attributes:
      entries: what number 0, 1, ... stands for; number 0 is "<unk>".
      kind: what a token is, one of `TOKEN_KINDS`.
    """

    entries: tuple[str, ...]
    kind: str

    @classmethod
    def of(
        cls, text: str, kind: str = "words", size: int | None = None
    ) -> "Vocabulary":
        """The most frequent pieces of a text; of equally frequent ones the first.

        Args:
          text: what is counted.
          kind: one of `TOKEN_KINDS`.
          size: how many entries, "<unk>" among them; None is all there are.

        Raises:
          DataError: for a kind that there is not, or a size below 2.

        Example:
          >>> vocabulary = Vocabulary.of("a rose is a rose", size=3)
          >>> vocabulary.entries
          ('<unk>', 'a', 'rose')
          >>> vocabulary.encode("a rose was a rose").tolist()
          [1, 2, 0, 1, 2]
        """
        if size is not None and operator.index(size) < 2:
            raise DataError(
                f"expected a vocabulary of at least 2 entries, got {size}: one is "
                f"{UNKNOWN}."
            )
        counts = collections.Counter(split(text, kind))
        del counts[UNKNOWN]
        chosen = counts.most_common(None if size is None else size - 1)
        return cls((UNKNOWN, *(piece for piece, _ in chosen)), kind)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} {self.kind})"

    @functools.cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {piece: number for number, piece in enumerate(self.entries)}

    def encode(self, text: str) -> np.ndarray:
        """The text as numbers (n,), int32."""
        numbers = self._numbers
        pieces = split(text, self.kind)
        return np.fromiter((numbers.get(p, 0) for p in pieces), np.int32, len(pieces))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text again, words with a space between them.

        Raises:
          DataError: for a token out of range.
        """
        tokens = np.asarray(tokens if hasattr(tokens, "__len__") else list(tokens))
        check_range(tokens, len(self))
        pieces = [self.entries[token] for token in tokens]
        if self.kind == "characters":
            return "".join(pieces)
        lines = " ".join("\n" if piece == END else piece for piece in pieces)
        return lines.replace(" \n", "\n").replace("\n ", "\n")


def check_range(tokens: np.ndarray, size: int) -> None:
    """Raise DataError unless all tokens are whole numbers in [0, size)."""
    if not np.issubdtype(tokens.dtype, np.integer) and tokens.size:
        raise DataError(f"expected tokens that are whole numbers, got {tokens.dtype}.")
    wrong = np.flatnonzero((tokens < 0) | (tokens >= size))
    if len(wrong):
        first = wrong[0]
        raise DataError(
            f"expected tokens from 0 to {size - 1}, as the vocabulary has {size}; "
            f"token {first} is {np.ravel(tokens)[first]}. Encode the text with the "
            "vocabulary of the network."
        )
