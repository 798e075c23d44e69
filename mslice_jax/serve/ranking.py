"""A query goes through the stages of a cascade: who is scored, and who is left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .stages import Keep, sizes_after, survivors

Score = Callable[[int, np.ndarray], np.ndarray]
"""(stage, who is left (q, size)) -> their scores (q, size)."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a cascade found for a query.

    Attributes:
      indices: (k,), which candidates are left after the last stage, best first.
      scores: (k,), of the last stage.
      survivors: of each stage, the indices of whom it kept, best first.
      scored: how many candidates each stage scored.
    """

    indices: np.ndarray
    scores: np.ndarray
    survivors: tuple[np.ndarray, ...]
    scored: tuple[int, ...]


def ranked(
    score: Score, keeps: Sequence[Keep], counts: np.ndarray, first: int
) -> list[Ranking]:
    """What is found for each of several queries.

    Args:
      score: scores the candidates of all queries at once.
      keeps: of the stages.
      counts: (q,), how many candidates each query has, the leading ones.
      first: the size of the first stage.
    """
    queries, left, size = len(counts), counts, first
    indices = np.tile(np.arange(first, dtype=np.int32), (queries, 1))
    scores = np.zeros((queries, 0), np.float32)
    scored, survived = [], []
    for stage, keep in enumerate(keeps):
        scored.append(left)
        if left.any():
            scores = score(stage, indices)
            order, left = survivors(scores, left, keep)
            indices = np.take_along_axis(indices, order, axis=1)
            scores = np.take_along_axis(scores, order, axis=1)
            after = sizes_after(keep, size, first)
            size = next(n for n in after if n >= left.max())
        survived.append([i[:k] for i, k in zip(indices, left, strict=True)])
        indices = np.ascontiguousarray(indices[:, :size])
    return [
        Ranking(
            survived[-1][q],
            scores[q, : left[q]],
            tuple(each[q] for each in survived),
            tuple(int(number[q]) for number in scored),
        )
        for q in range(queries)
    ]
