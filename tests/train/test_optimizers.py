"""Learning rates and the optimizer, against numbers written out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mslice_jax.train import cosine, multi_step, sgd


def test_multi_step_drops_at_half_and_three_quarters():
    rate = multi_step(0.1, epochs=8, steps_per_epoch=5)
    found = [float(rate(step)) for step in (0, 19, 20, 29, 30, 39)]
    np.testing.assert_allclose(found, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_multi_step_of_an_odd_number_of_epochs_rounds_down_as_the_original():
    # int(6 * 0.75) = 4 and int(6 * 0.5) = 3
    rate = multi_step(1.0, epochs=6, steps_per_epoch=1)
    np.testing.assert_allclose(
        [float(rate(step)) for step in range(6)], [1, 1, 1, 0.1, 0.01, 0.01], rtol=1e-6
    )


def test_multi_step_does_not_drop_before_the_first_step():
    # int(1 * 0.5) = int(1 * 0.75) = 0
    rate = multi_step(1.0, epochs=1, steps_per_epoch=2)
    assert [float(rate(0)), float(rate(1))] == [1.0, 1.0]


def test_warm_up_rises_from_a_tenth_and_does_not_move_the_drops():
    rate = multi_step(1.0, epochs=4, steps_per_epoch=3, warmup_epochs=1)
    found = [float(rate(step)) for step in (0, 1, 2, 3, 5, 6)]
    np.testing.assert_allclose(found, [0.1, 0.4, 0.7, 1, 1, 0.1], rtol=1e-6)


def test_cosine_falls_to_zero_after_the_warm_up():
    rate = cosine(2.0, epochs=3, steps_per_epoch=2, warmup_epochs=1)
    # 2 · (1 + cos(π · t/4)) / 2 for t = 0, 1, 2, 3, 4
    expected = [0.2, 1.1, 2, 1 + np.sqrt(0.5), 1, 1 - np.sqrt(0.5), 0]
    found = [float(rate(step)) for step in range(7)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_sgd_reads_the_schedule_at_its_own_step():
    optimizer = sgd(lambda step: 1.0 + step, momentum=0.0, weight_decay=0.5)
    weight = jnp.array(2.0)
    state = optimizer.init(weight)
    first, state = optimizer.update(jnp.array(3.0), state, weight)
    second, _ = optimizer.update(jnp.array(3.0), state, weight)
    # -(lr) · (gradient + decay · weight)
    np.testing.assert_allclose([first, second], [-1 * (3 + 1), -2 * (3 + 1)])


def test_sgd_clips_the_gradient_first():
    optimizer = sgd(1.0, momentum=0.0, weight_decay=0.5, clip=2.5)
    weights = {"a": jnp.array(2.0), "b": jnp.array(0.0)}
    update, _ = optimizer.update(
        {"a": jnp.array(3.0), "b": jnp.array(4.0)}, optimizer.init(weights), weights
    )
    # A norm of 5 becomes 2.5; the decay is not clipped.
    np.testing.assert_allclose([update["a"], update["b"]], [-(1.5 + 1), -2.0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sgd(0.1, clip=0.0), "to clip"),
        (lambda: multi_step(0.0, epochs=1, steps_per_epoch=1), "learning rate"),
        (
            lambda: cosine(float("nan"), epochs=1, steps_per_epoch=1),
            "learning rate",
        ),
        (lambda: multi_step(0.1, epochs=0, steps_per_epoch=1), "epoch"),
        (lambda: cosine(0.1, epochs=2, steps_per_epoch=1, warmup_epochs=2), "warm-up"),
        (lambda: sgd(0.1, momentum=1.0), "momentum"),
        (lambda: sgd(0.1, weight_decay=-1e-4), "decay"),
    ],
)
def test_numbers_out_of_range_are_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
