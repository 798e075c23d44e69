"""Batches of text for truncated backpropagation: each goes on where the last ended.

A text is cut into as many parts of one length as a batch has rows; a batch has the
next tokens of every part. So a state that is carried from batch to batch has seen what
stands before (Mikolov et al., 2010).
"""

from collections.abc import Iterator

import numpy as np

from .dataset import DataError
from .vocabulary import check_range


def text_steps(count: int, batch_size: int, length: int) -> int:
    """How many batches a text of `count` tokens makes; what is left over is not read.

    Raises:
      DataError: if it does not fill a single batch.

    >>> text_steps(1000, batch_size=4, length=20)
    12
    """
    if batch_size < 1 or length < 1:
        raise DataError(
            f"expected at least 1 part and 1 token a batch, got {batch_size} "
            f"(--batch-size) and {length} (--length)."
        )
    steps = (count - 1) // (batch_size * length)
    if steps < 1:
        raise DataError(
            f"a batch of {batch_size} parts (--batch-size) of {length} tokens "
            f"(--length) needs a text of {batch_size * length + 1} tokens; this one "
            f"has {count}. Make one of the two smaller."
        )
    return steps


def text_batches(
    tokens: np.ndarray,
    batch_size: int,
    length: int,
    *,
    start: int = 0,
    host: tuple[int, int] = (0, 1),
    vocabulary: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of tokens and of those that follow them, without end.

    Row i of a batch goes on where row i of the batch before ended; over the end of an
    epoch too, for there row i goes on with the part that row i + 1 has read. (The row
    with the last part begins the text anew.) A batch is a function of its step alone.

    Args:
      tokens: (n,), the text.
      batch_size: rows of a batch.
      length: tokens of a row.
      start: step of the first batch, counted over all epochs (0 is the first).
      host: (number, count) of this host, which gets its rows.
      vocabulary: how many tokens there are, to look for others first.

    Returns:
      Pairs (b, t), (b, t) of the tokens' type.

    Raises:
      DataError: if the text does not fill a batch, hosts do not divide it, or a token
        is out of range.

    Example:
      >>> batches = text_batches(np.arange(9), 2, 2)
      >>> [next(batches)[0].tolist() for _ in range(3)]
      [[[0, 1], [4, 5]], [[2, 3], [6, 7]], [[4, 5], [0, 1]]]
    """
    steps = text_steps(len(tokens), batch_size, length)
    number, hosts = host
    if batch_size % hosts:
        raise DataError(
            f"expected a batch size (--batch-size) that {hosts} hosts divide; got "
            f"{batch_size}."
        )
    if vocabulary is not None:
        check_range(tokens, vocabulary)
    rows = np.arange(batch_size).reshape(hosts, -1)[number]

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        step = start
        while True:
            epoch, at = divmod(step, steps)
            parts = (rows + epoch) % batch_size
            first = (parts * steps + at) * length
            places = first[:, None] + np.arange(length)
            yield tokens[places], tokens[places + 1]
            step += 1

    return batches()


def held_out_batches(
    tokens: np.ndarray, batch_size: int, length: int, *, overlap: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A whole text once, as batches (tokens, targets, mask), all (b, t).

    Every token but the first is a target that counts once, whatever the batch; where
    the mask (float32) is 0 stands what fills a batch up, or what was counted before.
    Rows go on from batch to batch, as those of `text_batches` do.

    Args:
      tokens: (n,), the text.
      batch_size: rows of a batch.
      length: tokens of a row.
      overlap: how many tokens of a row were in the batch before: what a network that
        carries no state sees of the past. A state that is carried wants 0.

    Raises:
      DataError: for an overlap that leaves nothing new, or a text of one token.
    """
    if not 0 <= overlap < length:
        raise DataError(f"expected an overlap from 0 to {length - 1}, got {overlap}.")
    count = len(tokens) - 1
    if count < 1:
        raise DataError(f"expected a text of at least 2 tokens, got {len(tokens)}.")
    each = -(-count // batch_size)
    stride = length - overlap
    windows = max(1, -(-(each - overlap) // stride))

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for window in range(windows):
            column = window * stride + np.arange(length)
            places = np.arange(batch_size)[:, None] * each + column
            counts = (column < each) & (places < count)
            if window:
                counts &= np.arange(length) >= overlap
            seen = np.minimum(places, count - 1)
            yield tokens[seen], tokens[seen + 1], counts.astype(np.float32)

    return batches()
