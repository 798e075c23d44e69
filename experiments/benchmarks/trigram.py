"""The perplexity of a smoothed trigram on a text, a baseline for language models.

    python -m experiments.benchmarks.trigram
    python -m experiments.benchmarks.trigram --text wikitext-2/ --vocabulary 8000 \
        --held-out test

Interpolated Kneser-Ney with three discounts for each order (Chen and Goodman, 1999,
"An empirical study of smoothing techniques for language modeling", section 3), the
usual baseline for language models. Text, vocabulary and measured tokens (all of the
held-out part but the first) are those of `experiments.language_model` under the same
flags, so the numbers can be compared. It takes seconds, on WikiText-2 too.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from experiments.text import TEXT
from mslice_jax import data

# For a text too small to estimate them.
_DISCOUNTS = np.array([0.0, 0.5, 0.75, 0.9])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of the command, as in `experiments.language_model`."""

    text: Path = TEXT
    """A file, or a folder with files for train, valid and test."""
    tokens: Literal["characters", "words", "spaced"] | None = None
    """The kind of token; characters of a file and spaced of a folder if not given."""
    vocabulary: int | None = None
    """Number of the most frequent tokens in the vocabulary; all if not given."""
    held_out: Literal["valid", "test"] = "valid"
    """The measured part of a folder."""
    order: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """3 for trigrams."""


@dataclasses.dataclass(frozen=True)
class Level:
    """The n-grams of one length, which are contexts of n - 1 tokens with one more.

    Attributes:
      grams: sorted keys of the n-grams, see `keys`.
      shares: of each, the rest of its context's probability after the discount.
      contexts: sorted keys of the contexts.
      rest: of each context the probability that shorter n-grams share.
    """

    grams: np.ndarray
    shares: np.ndarray
    contexts: np.ndarray
    rest: np.ndarray


def keys(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """One integer for each row of tokens (n, length)."""
    found = np.zeros(len(tokens), np.int64)
    for column in tokens.T:
        found = found * vocabulary + column
    return found


def fit(tokens: np.ndarray, vocabulary: int, order: int = 3) -> list[Level]:
    """Levels for n = 1, 2, ..., order.

    Args:
      tokens: (n,), the text to count in.
      vocabulary: number of tokens.
      order: the longest n-gram.

    Raises:
      ValueError: if keys of so long n-grams do not fit into 64 bits, or the text is
        shorter than one.

    Example:
      >>> levels = fit(np.array([0, 1, 0, 1, 0]), vocabulary=3)
      >>> bool(probabilities(levels, np.array([0, 1, 2]), 3)[-1] > 0)  # never seen
      True
    """
    if order < 1 or vocabulary**order >= 2**63:
        raise ValueError(
            f"expected an order from 1 with {vocabulary}^order below 2^63, got {order}."
        )
    if len(tokens) < order:
        raise ValueError(f"expected at least {order} tokens, got {len(tokens)}.")
    windows = np.lib.stride_tricks.sliding_window_view(tokens, order)
    grams, counts = np.unique(keys(windows, vocabulary), return_counts=True)
    levels = []
    for length in range(order, 0, -1):
        levels.append(_level(grams, counts, vocabulary))
        # A shorter one counts as often as it has other tokens before it.
        grams, counts = np.unique(
            grams % vocabulary ** (length - 1), return_counts=True
        )
    return levels[::-1]


def _level(grams: np.ndarray, counts: np.ndarray, vocabulary: int) -> Level:
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    contexts, of = np.unique(grams // vocabulary, return_inverse=True)
    totals = np.bincount(of, counts)
    return Level(
        grams=grams,
        shares=(counts - discounts) / totals[of],
        contexts=contexts,
        rest=np.bincount(of, discounts) / totals,
    )


def _discounts(counts: np.ndarray) -> np.ndarray:
    """The discounts of counts of 0, 1, 2, and 3 or more."""
    often = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    if not all(often[1:5]):
        return _DISCOUNTS
    y = often[1] / (often[1] + 2 * often[2])
    found = [0.0] + [k - (k + 1) * y * often[k + 1] / often[k] for k in (1, 2, 3)]
    return np.clip(found, 0, [0, 1, 2, 3])


def probabilities(
    levels: list[Level], tokens: np.ndarray, vocabulary: int
) -> np.ndarray:
    """The probability of each token but the first, given those before it: (n - 1,)."""
    p = np.full(len(tokens) - 1, 1 / vocabulary)
    for before, level in enumerate(levels):
        # The first tokens of a text have a shorter context.
        start = max(before - 1, 0)
        windows = np.lib.stride_tricks.sliding_window_view(
            tokens[1 - min(before, 1) :], before + 1
        )
        gram = keys(windows, vocabulary)
        shares = _of(level.grams, level.shares, gram, 0.0)
        rest = _of(level.contexts, level.rest, gram // vocabulary, 1.0)
        p[start:] = shares + rest * p[start:]
    return p


def _of(known: np.ndarray, values: np.ndarray, wanted: np.ndarray, other: float):
    """The values of the wanted keys, `other` for unknown ones."""
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, values[at], other)


def perplexity(levels: list[Level], tokens: np.ndarray, vocabulary: int) -> float:
    """exp of the mean of -log p over all tokens but the first."""
    return float(np.exp(-np.log(probabilities(levels, tokens, vocabulary)).mean()))


def main(args: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    flags = tyro.cli(
        Flags,
        prog="python -m experiments.benchmarks.trigram",
        description="The perplexity of smoothed n-grams.",
        args=args,
    )
    try:
        if flags.order < 1:
            raise ValueError(f"expected --order of at least 1, got {flags.order}.")
        text = data.read_text(
            flags.text,
            kind=flags.tokens,
            vocabulary=flags.vocabulary,
            held_out=flags.held_out,
        )
        size = len(text.vocabulary)
        print(text)
        for order in range(1, flags.order + 1):
            found = perplexity(fit(text.train, size, order), text.held_out, size)
            print(f"n = {order}: perplexity {found:.2f}")
    except ValueError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
