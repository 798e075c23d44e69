"""The table of networks: each goes through all the proofs.

A new network needs one line here and its citizen in `tests/citizens`; every proof of
`tests/test_proofs.py` then runs on it.
"""

import functools

import jax
import numpy as np
import pytest

from tests.citizens import (
    attention,
    branches,
    convolution,
    dense,
    language,
    modern,
    nnx_models,
    recurrent,
    zoo,
)
from tests.citizens.citizen import Citizen, Tree

CITIZENS = (
    dense.mlp(),
    dense.mlp(
        dropout=0.5,
        call={"train": True, "rngs": {"dropout": jax.random.key(7)}},
        not_maskable="the full network draws other random bits than the narrow one",
        not_permutable="the random bits would have to be permuted with the units",
    ),
    dense.function(),
    dense.position_table(),
    convolution.vgg("group"),
    convolution.vgg("switchable"),
    convolution.vgg("shared"),
    convolution.preactivation(bottleneck=False),
    convolution.preactivation(bottleneck=True),
    branches.inception(),
    branches.squeeze(),
    branches.grouped(),
    attention.decoder("split", layers=2),
    attention.decoder("reshape"),
    attention.decoder("interleaved"),
    attention.grouped_query(repeat=False),
    attention.grouped_query(repeat=True),
    recurrent.lstm(optimized=True),
    recurrent.lstm(optimized=False),
    language.recurrent("lstm", tied=False),
    language.recurrent("gru", tied=True),
    language.recurrent("lstm", tied=True, graded=True),
    language.decoder(),
    modern.scanned_decoder(),
    modern.mixture(),
    modern.shuffle(),
    modern.unet(),
    modern.upsample(blocks=True),
    modern.upsample(blocks=False),
    modern.state_space(),
    nnx_models.cnn("group"),
    nnx_models.cnn("switchable"),
    nnx_models.cnn("shared"),
    nnx_models.decoder(),
    nnx_models.recurrent(),
    nnx_models.stack("group"),
    nnx_models.stack("shared"),
    zoo.vit(),
)
# Deep ones, which take minutes; the zoo's shapes and numbers have quick tests, too.
NIGHTLY = (
    zoo.vit_of_nnx(),
    *(zoo.vgg(n, batch_norm=norm) for n in (11, 13, 16, 19) for norm in (False, True)),
    *(zoo.resnet(n) for n in (18, 34, 50)),
    zoo.mobilenet(),
    zoo.googlenet(),
)

everyone = pytest.mark.parametrize(
    "citizen",
    [
        *CITIZENS,
        *(pytest.param(citizen, marks=pytest.mark.nightly) for citizen in NIGHTLY),
    ],
    ids=str,
)
"""Runs a test for each network of the table."""


def numbered(tree: Tree) -> Tree:
    """The tree with a different integer in each entry of each leaf."""
    leaves, structure = jax.tree.flatten(tree)
    starts = np.cumsum([0] + [np.size(leaf) for leaf in leaves])
    numbers = [
        start + np.arange(np.size(leaf)).reshape(np.shape(leaf))
        for start, leaf in zip(starts, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, numbers)


def flat(tree: Tree) -> np.ndarray:
    """All entries of all leaves in one vector, in the order of `numbered`."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@functools.cache
def kept_by_hand(citizen: Citizen, rate: float) -> np.ndarray:
    """The numbers of the entries that the hand-written slices keep.

    In the order of the narrow leaves, so `flat(full)[kept] == flat(narrow)`. This mask
    does not use the plan.
    """
    full = numbered(citizen.upgraded_by_hand())
    return flat(citizen.narrow_by_hand(full, rate))
