"""Inputs of free length: buckets, what fills up shorter rows, masks."""

import jax.numpy as jnp
import numpy as np
import pytest

from mslice_jax.serve import Executor, InvalidRequest, Lengths
from tests.serve.networks import (
    causal,
    counted_mean,
    embedded,
    language_net,
    masked_mean,
    plain_mean,
)

MASK, COUNT = jnp.ones((1, 4)), jnp.ones((1,), jnp.int32)


def tokens(rows, length, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, (rows, length)).astype(np.int32)


# Lengths that are buckets, that are not, and rows of several lengths in one batch.
BATCHES = [[(1, 2)], [(2, 5)], [(1, 3)], [(1, 1), (2, 5)], [(1, 2), (1, 4), (1, 3)]]


@pytest.fixture(scope="module")
def masked():
    net = language_net(masked_mean, MASK)
    lengths = Lengths((2, 5), mask="mask", pad_value=4)
    return Executor(net, batch_sizes=(1, 3), lengths=lengths).prepare()


def test_a_mask_is_no_input_of_a_request(masked):
    assert [(x.name, x.shape) for x in masked.inputs] == [("tokens", (-1, -1))]
    shapes = {x.name: x.shape for x in masked.outputs}
    assert shapes == {"mean": (-1, 2), "each": (-1, -1, 2)}
    assert masked.lengths == (2, 5)


@pytest.mark.parametrize("batch", BATCHES)
def test_what_fills_up_a_row_is_masked(masked, batch):
    asked = [tokens(*shape, seed=i) for i, shape in enumerate(batch)]
    answers, _ = masked.run(0.5, [{"tokens": x} for x in asked])
    for answer, x in zip(answers, asked, strict=True):
        h = embedded(x, 0.5)
        np.testing.assert_allclose(answer["mean"], h.mean(1), atol=1e-5)
        np.testing.assert_allclose(answer["each"], h, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "lengths", "expected"),
    [
        (
            lambda: language_net(counted_mean, COUNT),
            Lengths((2, 5), count="count"),
            lambda h: h.mean(1),
        ),
        (lambda: language_net(causal), (5,), lambda h: h.cumsum(1)),
    ],
)
def test_lengths_as_an_input_and_a_network_that_needs_none(net, lengths, expected):
    found = Executor(net(), rates=[0.5], batch_sizes=(3,), lengths=lengths).prepare()
    asked = [tokens(1, 3), tokens(2, 5, seed=1)]
    answers, _ = found.run(0.5, [{"tokens": x} for x in asked])
    for answer, x in zip(answers, asked, strict=True):
        wanted = expected(embedded(x, 0.5))
        np.testing.assert_allclose(answer["output"], wanted, atol=1e-5)


@pytest.mark.parametrize("buckets", [(2, 5), (5,)])
def test_a_network_that_sees_what_fills_up_is_refused(buckets):
    net = language_net(plain_mean)
    refused = Executor(net, rates=[0.5], batch_sizes=(1,), lengths=buckets)
    with pytest.raises(ValueError, match="fills up a row changes its result"):
        refused.prepare()


def test_a_mask_that_is_ignored_is_refused():
    def ignores(p, tokens, mask):
        return plain_mean(p, tokens) + 0 * mask.sum(1)[:, None]

    net = language_net(ignores, MASK)
    lengths = Lengths((2, 5), mask="mask")
    with pytest.raises(ValueError, match="fills up a row changes its result"):
        Executor(net, rates=[0.5], batch_sizes=(1,), lengths=lengths).prepare()


def test_exact_lengths():
    net, lengths = language_net(plain_mean), Lengths((2, 5), exact=True)
    found = Executor(net, rates=[0.5], batch_sizes=(2,), lengths=lengths).prepare()
    (answer,), _ = found.run(0.5, [{"tokens": tokens(1, 2)}])
    wanted = embedded(tokens(1, 2), 0.5).mean(1)
    np.testing.assert_allclose(answer["output"], wanted, atol=1e-5)
    with pytest.raises(InvalidRequest, match=r"lengths \[2, 5\], got 3"):
        found.check({"tokens": tokens(1, 3)})
    with pytest.raises(ValueError, match="same length where lengths are exact"):
        found.run(0.5, [{"tokens": tokens(1, 2)}, {"tokens": tokens(1, 5)}])


@pytest.mark.parametrize("length", [0, 6])
def test_lengths_beyond_the_buckets(masked, length):
    with pytest.raises(InvalidRequest, match=f"length of 1 to 5, got {length}"):
        masked.check({"tokens": tokens(1, length)})


def test_every_length_has_its_times(masked):
    assert {key[2] for key in masked.times(1)} == {2, 5}


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (Lengths((0,)), "lengths are positive"),
        (Lengths((2,), mask="masks"), "'masks': expected an input"),
        (Lengths((2,), count="mask"), "'mask': expected an input with an axis for the"),
        (Lengths((2,), axes={"tokens": 0}), "no such free axes"),
        (Lengths((2,), axes={"token": 1}), "axes of Lengths name"),
    ],
)
def test_lengths_that_cannot_be(lengths, message):
    with pytest.raises(ValueError, match=message):
        Executor(language_net(masked_mean, MASK), lengths=lengths)


def test_an_output_of_another_length_is_refused():
    def pairs(p, tokens):
        h = jnp.tanh(p["table"][tokens]) @ p["out"]
        return h.reshape(h.shape[0], -1)

    with pytest.raises(ValueError, match="nothing else can be cut back"):
        Executor(language_net(pairs), lengths=(2, 4))
