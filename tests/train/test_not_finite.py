"""Numbers that are not finite end a run, or are skipped; they are never saved."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mslice_jax.schedules import static
from mslice_jax.train import (
    Checkpoints,
    LossScale,
    MetricsFile,
    NotFiniteError,
    Progress,
    TrainState,
    make_evaluate,
    make_train_step,
    train,
)

KEY = jax.random.key(3)


def spoiled(small, at):
    """The batches, some of them (by step, 0 is the first) with a NaN."""

    def batches(start):
        step = start
        while True:
            x, y = small.batch(step)
            if at(step):
                x = np.array(x)
                x[0, 0] = np.nan
            yield x, y
            step += 1

    return batches


def run(net, small, folder, batches, *, skip=False, **settings):
    optimizer = optax.sgd(0.1)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return train(
            TrainState.create(net, optimizer, key=KEY),
            train_step=make_train_step(optimizer, skip_not_finite=skip),
            batches=batches,
            schedule=static((0.5, 1.0)),
            steps_per_epoch=small.steps_per_epoch,
            checkpoints=checkpoints,
            metrics=MetricsFile(folder / "metrics.jsonl"),
            log_every=1,
            **{"evaluate": make_evaluate(small.x, small.y), "epochs": 2, **settings},
        )


def test_a_loss_that_is_not_finite_ends_the_run_with_step_and_rate(
    net, small, tmp_path
):
    with pytest.raises(
        NotFiniteError, match=r"step 6 is nan at rate 1, nan at rate 0.5"
    ):
        run(net, small, tmp_path, spoiled(small, lambda step: step == 5))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == (4,)


def test_no_state_after_it_is_saved(net, small, tmp_path):
    batches = spoiled(small, lambda step: step == 1)
    with pytest.raises(NotFiniteError, match="step 2"):
        run(net, small, tmp_path, batches, save_every_steps=1)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == (1,)


def test_skipped_steps_change_only_the_step_number(net, small, tmp_path):
    outcome = run(
        net, small, tmp_path, spoiled(small, lambda step: step == 5), skip=True
    )
    step = make_train_step(optax.sgd(0.1))
    state = TrainState.create(net, optax.sgd(0.1), key=KEY)
    for number in (n for n in range(8) if n != 5):
        state, _ = step(state, small.batch(number), (1.0, 0.5))
    assert int(outcome.state.step) == 8
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        outcome.state.net.variables,
        state.net.variables,
    )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    lines = {x["step"]: x for x in map(json.loads, text.splitlines()) if "loss" in x}
    assert lines[6]["loss"] == {"1.0": None, "0.5": None}
    assert lines[7]["loss"]["1.0"] > 0


def test_statistics_of_a_skipped_step_are_dropped(build_net, small):
    net = build_net(norm="shared")
    before = jax.tree.map(np.array, net.variables)
    x, y = small.batch()
    step = make_train_step(optax.sgd(0.1), skip_not_finite=True)
    state = TrainState.create(net, optax.sgd(0.1), key=KEY)
    state, _ = step(state, (np.full_like(x, np.inf), y), (1.0, 0.5))
    assert int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, state.net.variables, before)


def test_a_hundred_skipped_steps_in_a_row_end_the_run(net, small, tmp_path):
    with pytest.raises(NotFiniteError, match="step 102 .* as in the 99 steps before"):
        run(
            net,
            small,
            tmp_path,
            spoiled(small, lambda step: step >= 2),
            skip=True,
            epochs=50,
            evaluate=lambda net: {1.0: 0.5},
        )


@pytest.mark.parametrize("nan_first", [True, False])
def test_an_evaluation_of_nan_is_not_the_best(net, small, tmp_path, nan_first):
    found = iter([math.nan, 0.6, 0.2] if nan_first else [0.6, math.nan, 0.2])
    outcome = run(
        net,
        small,
        tmp_path,
        spoiled(small, lambda step: False),
        evaluate=lambda net: {1.0: next(found)},
        epochs=3,
    )
    assert outcome.progress.best_accuracy == 0.6
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        best, _ = checkpoints.restore_best(outcome.state)
    assert int(best.step) == (8 if nan_first else 4)


def test_a_score_of_nan_removes_no_checkpoint(net, tmp_path):
    state = TrainState.create(net, optax.sgd(0.1), key=KEY)
    scores = (0.9, math.nan, math.inf, 0.4, 0.3)
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in enumerate(scores):
            numbered = TrainState(
                step=jnp.int32(step), net=net, opt_state=state.opt_state, key=KEY
            )
            checkpoints.save(numbered, Progress(), accuracy=score)
        assert checkpoints.steps() == (0, 3, 4)
        assert int(checkpoints.restore_best(state)[0].step) == 0


def test_the_best_by_loss_is_the_lowest(net, small, tmp_path):
    losses = iter([3.0, 2.0, 2.5])
    outcome = run(
        net,
        small,
        tmp_path,
        spoiled(small, lambda step: False),
        evaluate=lambda net: {1.0: {"loss": next(losses), "perplexity": 9.0}},
        epochs=3,
    )
    assert outcome.progress.best_accuracy == -2.0
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert int(checkpoints.restore_best(outcome.state)[0].step) == 8
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    held_out = [line["loss_test"] for line in lines if "loss_test" in line]
    assert held_out == [{"1.0": 3.0}, {"1.0": 2.0}, {"1.0": 2.5}]


# -- float16


def test_float16_needs_a_loss_scale(net, small):
    state = TrainState.create(net, optax.sgd(0.1), key=KEY)
    step = make_train_step(optax.sgd(0.1), compute_dtype=jnp.float16)
    with pytest.raises(ValueError, match=r"LossScale.start\(\)"):
        step(state, small.batch(), (1.0,))


def test_the_loss_scale_preserves_small_gradients(net, small):
    """A loss of a millionth: its gradients are below the smallest float16 (6e-8)."""
    x, y = small.batch()

    def loss(logits, labels):
        return (
            1e-6
            * optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        )

    def moved(scale, dtype):
        optimizer = optax.sgd(1.0)
        state = TrainState.create(net, optimizer, key=KEY, loss_scale=scale)
        step = make_train_step(optimizer, loss=loss, compute_dtype=dtype)
        state, metrics = step(state, (x, y), (1.0, 0.5))
        before, after = (
            n.variables["params"]["hidden1"]["kernel"] for n in (net, state.net)
        )
        return np.asarray(after, np.float64) - before, metrics, state

    expected, whole, _ = moved(None, None)
    found, metrics, state = moved(LossScale.start(2.0**15), jnp.float16)
    lost, _, _ = moved(LossScale.start(1.0), jnp.float16)
    size = np.abs(expected).max()
    assert np.abs(found - expected).max() < 0.1 * size + 3e-8  # spacing of the weights
    np.testing.assert_allclose(metrics[1.0]["loss"], whole[1.0]["loss"], rtol=1e-2)
    assert float(state.loss_scale.scale) == 2.0**15
    assert int(state.loss_scale.finite) == 1
    del lost


def test_an_overflow_changes_the_scale_alone(net, small):
    x, y = small.batch()
    optimizer = optax.adam(0.1)
    start = LossScale.start(2.0**24, interval=2)
    state = TrainState.create(net, optimizer, key=KEY, loss_scale=start)
    step = make_train_step(optimizer, compute_dtype=jnp.float16)
    scales = []
    before = jax.tree.map(np.array, (net.variables, state.opt_state))
    state, _ = step(state, (x, y), (1.0, 0.5))
    scales.append(float(state.loss_scale.scale))
    jax.tree.map(
        np.testing.assert_array_equal, (state.net.variables, state.opt_state), before
    )
    for _ in range(12):
        state, _ = step(state, (x, y), (1.0, 0.5))
        scales.append(float(state.loss_scale.scale))
    assert scales[0] == 2.0**23  # 2**24 times anything overflows 65504
    # The scale falls until it fits; two finite steps later it tries the double.
    low = scales.index(min(scales))
    assert scales[low : low + 3] == [min(scales), min(scales), 2 * min(scales)]
    after = jax.tree.map(np.array, state.net.variables["params"])
    changed = jax.tree.map(lambda a, b: np.any(a != b), after, before[0]["params"])
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("scale", [0.0, 3.0, 2.0**25, math.inf])
def test_a_scale_is_a_power_of_two(scale):
    with pytest.raises(ValueError, match="power of two"):
        LossScale.start(scale)
