"""A network without its model: its programs, behind the executor."""

import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.serve import Executor
from tests.serve.networks import (
    RATES,
    expected,
    request,
    two_inputs,
    two_inputs_net,
    weights,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for seed in (0, 1):
        ms.save(two_inputs_net(seed), folder / f"{seed}.mslice")
    return folder


@pytest.fixture(scope="module")
def executor(saved):
    return Executor(ms.load(saved / "0.mslice"), batch_sizes=(1, 4)).prepare()


def test_it_answers_as_the_network_does(executor):
    assert executor.rates == RATES
    assert [x.name for x in executor.inputs] == ["x", "more.shift"]
    assert [x.name for x in executor.outputs] == ["twice.0", "twice.1", "y"]
    for rate in RATES:
        asked = [request(1, 1), request(2, 2)]
        before = executor.compilations
        answers, _ = executor.run(rate, asked)
        for answer, each in zip(answers, asked, strict=True):
            np.testing.assert_allclose(answer["y"], expected(each, rate), atol=1e-5)
        assert executor.compilations == before


def test_other_weights_of_the_same_network(saved):
    executor = Executor(ms.load(saved / "0.mslice"), batch_sizes=(1,)).prepare()
    before, asked = executor.compilations, request(1, 3)
    executor.swap(ms.load(saved / "1.mslice"))
    for rate in RATES:
        answers, _ = executor.run(rate, [asked])
        wanted = expected(asked, rate, seed=1)
        np.testing.assert_allclose(answers[0]["y"], wanted, atol=1e-5)
    assert executor.compilations == before


def test_another_network_with_the_same_weights_is_refused(executor, tmp_path):
    def other(p, x, more):  # the same shapes in and out
        out = two_inputs(p, x, more)
        return {**out, "y": -out["y"]}

    x, more = jnp.ones((1, 3)), {"shift": jnp.ones((1, 2))}
    net = ms.upgrade(other, weights(), x, more, rates=RATES)
    ms.save(net, tmp_path / "other.mslice")
    with pytest.raises(ValueError, match="got another one"):
        executor.swap(ms.load(tmp_path / "other.mslice"))
    with pytest.raises(ValueError, match="got another one"):
        executor.swap(two_inputs_net())


def test_fewer_rates_and_those_that_were_not_saved(saved):
    net = ms.load(saved / "0.mslice")
    executor = Executor(net, rates=(0.25,), batch_sizes=(1,), check=False)
    assert executor.rates == (0.25,)
    with pytest.raises(ms.RateError, match="rate 0.7 was not saved"):
        Executor(net, rates=(0.7,))


def test_a_batch_of_fixed_size_is_refused(tmp_path):
    def one(p, x):  # what it computes depends on the size of the batch
        return jnp.tanh(x @ p["w1"]) @ p["w2"] * (2 if len(x) == 1 else 1)

    p = {"w1": jnp.ones((3, 8)), "w2": jnp.ones((8, 2))}
    net = ms.upgrade(one, p, jnp.ones((1, 3)), rates=(0.5, 1.0))
    ms.save(net, tmp_path / "fixed.mslice")
    with pytest.raises(ValueError, match="have a batch of fixed size"):
        Executor(ms.load(tmp_path / "fixed.mslice"))
