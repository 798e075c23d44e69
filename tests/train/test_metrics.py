"""Accuracy, and the file of JSON lines."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from mslice_jax.train import MetricsFile, make_evaluate


def test_accuracy_counts_every_example_once(net, small, compilations):
    # A network that always predicts class 1: zero weights, and a bias for class 1.
    params = net.variables["params"]
    zero = {name: {k: 0 * v for k, v in leaf.items()} for name, leaf in params.items()}
    zero["logits"]["bias"] = jnp.array([0.0, 1.0, 0.0])
    net = net.replace({"params": zero})
    labels = np.array([1, 1, 0, 2, 1, 0, 1], np.int32)
    # Batches of 3, 3 and 1: the last is padded.
    evaluate = make_evaluate(small.x[:7], labels, batch_size=3)
    with compilations() as names:
        assert evaluate(net) == {0.5: pytest.approx(4 / 7), 1.0: pytest.approx(4 / 7)}
    assert sum("correct" in name for name in names) == 2


def test_normalization_comes_before_the_network(net, small):
    plain = make_evaluate(small.x, small.y)(net)
    scaled = make_evaluate(small.x * 4, small.y, normalize=lambda x: x / 4)(net)
    assert plain == scaled


def test_labels_that_do_not_fit_are_an_error(small):
    with pytest.raises(ValueError, match="32 images and 31 labels"):
        make_evaluate(small.x, small.y[1:])


def test_lines_after_the_restored_step_are_dropped(tmp_path):
    metrics = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    metrics.rewind(0)  # nothing there yet
    for step in (10, 20, 30):
        metrics.write(step=step, loss=step / 10)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "los')  # killed in the middle of a line
    metrics.rewind(20)
    metrics.write(step=21, loss=0.5)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20, 21]
