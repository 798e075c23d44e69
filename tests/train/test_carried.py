"""Hidden states that are carried over batches: training, resuming, evaluation."""

import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.models import RecurrentLM
from mslice_jax.schedules import random_min_max
from mslice_jax.train import (
    Checkpoints,
    MetricsFile,
    TrainState,
    Watcher,
    evaluate_task,
    language_model,
    make_train_step,
    train,
)
from tests.citizens.language import init

RATES = (0.5, 0.75, 1.0)
VOCAB, ROWS, LENGTH = 7, 3, 4
# A text that repeats at a distance longer than a batch.
TEXT = np.tile(np.arange(40) % 11 % VOCAB, 4).astype(np.int32)
STEPS = data.text_steps(len(TEXT), ROWS, LENGTH)
OPTIMIZER = optax.adam(1e-2)


@functools.cache
def network():
    model = RecurrentLM(vocab=VOCAB, units=8, layers=1, carry=True)
    tokens = np.zeros((ROWS, LENGTH), np.int32)
    variables = init(model, tokens)
    return ms.upgrade(model, variables, tokens, rates=RATES, mutable=["hidden"])


@functools.cache
def step():
    return make_train_step(OPTIMIZER, task=language_model())


def batches(start):
    return data.text_batches(TEXT, ROWS, LENGTH, start=start, vocabulary=VOCAB)


@functools.cache
def measure():
    held_out = functools.partial(data.held_out_batches, TEXT[:50], ROWS, LENGTH)
    return evaluate_task(held_out, language_model(), carry=["hidden"])


def run(folder, watcher=None):
    state = TrainState.create(
        network(), OPTIMIZER, key=jax.random.key(0), carry=["hidden"]
    )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return train(
            state,
            train_step=step(),
            batches=batches,
            schedule=random_min_max(RATES, seed=0),
            evaluate=measure(),
            epochs=2,
            steps_per_epoch=STEPS,
            checkpoints=checkpoints,
            metrics=MetricsFile(folder / "metrics.jsonl"),
            watcher=watcher,
        )


class StopsAt(Watcher):
    def __init__(self, step):
        self.step = step

    def stepped(self, step, losses, examples_per_second):
        if step == self.step:
            signal.raise_signal(signal.SIGINT)


def test_a_resumed_run_carries_the_same_state(tmp_path):
    whole = run(tmp_path / "whole")
    for at in (3, STEPS + 5):
        assert run(tmp_path / "parts", StopsAt(at)).interrupted
    parts = run(tmp_path / "parts")
    assert int(parts.state.step) == 2 * STEPS
    for one, other in zip(
        jax.tree.leaves(whole.state), jax.tree.leaves(parts.state), strict=True
    ):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = map(jax.random.key_data, (one, other))
        np.testing.assert_array_equal(one, other)
    states = [whole.state.carried[str(rate)]["hidden"]["layer0"]["h"] for rate in RATES]
    for narrow, wide in zip(states, states[1:], strict=False):
        assert np.abs(narrow - wide)[:, :4].max() > 1e-3  # each has its own
    # An evaluation begins with the network's own state.
    assert not any(map(np.any, jax.tree.leaves(whole.state.net.variables["hidden"])))


@pytest.mark.parametrize("rate", RATES)
def test_a_held_out_text_is_read_in_one_piece(rate):
    net = network()
    tokens = TEXT[:49]  # three rows of sixteen: four batches
    found = evaluate_task(
        functools.partial(data.held_out_batches, tokens, ROWS, LENGTH),
        language_model(),
        carry=["hidden"],
    )(net)[rate]
    logits = ms.slice_apply(net, tokens[:-1].reshape(ROWS, 16), rate)
    targets = tokens[1:].reshape(ROWS, 16)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    hits = np.mean(np.argmax(logits, -1) == targets)
    assert found["accuracy"] == pytest.approx(hits)


def test_without_what_stands_before_the_numbers_are_others():
    held_out = functools.partial(data.held_out_batches, TEXT[:49], ROWS, LENGTH)
    net = network()
    carried = evaluate_task(held_out, language_model(), carry=["hidden"])(net)[1.0]
    each_anew = evaluate_task(held_out, language_model())(net)[1.0]
    assert abs(carried["loss"] - each_anew["loss"]) > 1e-5
