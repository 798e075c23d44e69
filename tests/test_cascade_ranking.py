"""The cascade experiment: what is measured, by hand; and a small run of the command."""

import json

import jax
import numpy as np
import pytest

from experiments.cascade_ranking import main
from experiments.cascading.items import Relevance, drawn
from experiments.cascading.outcome import agreement, measured, summary
from mslice_jax.serve import Ranking


def test_precision_and_aggregate_recall_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])  # nobody asks for 2
    of_0 = (np.array([0, 1, 3, 5]), np.array([0, 5]))
    of_1 = (np.array([4]), np.array([], int))
    found = measured(
        [
            Ranking(of_0[1], np.ones(2), of_0, (6, 4)),
            Ranking(of_1[1], np.ones(0), of_1, (6, 1)),
        ],
        labels,
    )
    assert found["recall"] == [3 / 5, 1 / 5]  # three of 0 and two of 1 are relevant
    assert found["precision"] == [3 / 5, 1 / 2]
    assert found["left"] == [2.5, 1.0]
    assert found["scored"] == [6.0, 2.5]


def test_agreement_and_means_by_hand():
    classes = {0.5: np.array([0, 1, 2, 2]), 1.0: np.array([0, 1, 1, 1])}
    assert agreement(np.zeros(4, int), classes) == [0.5]
    found = summary(
        [{"a": {"b": [1.0, 2.0], "c": 4}}, {"a": {"b": [3.0, 2.0], "c": 6}}]
    )
    assert found["a"]["b"] == {"mean": [2.0, 2.0], "sd": [round(2**0.5, 6), 0.0]}
    assert found["a"]["c"]["mean"] == 5
    assert summary([{"a": 1.0}])["a"]["sd"] == 0


def test_relevance_is_above_0_for_the_category_that_is_told():
    items = drawn(width=4, sharpness=6.0)
    model, x = Relevance(items.body), items.x_test[:5]
    variables = model.init(jax.random.key(0), x)
    logits = np.asarray(model.apply(variables, x))
    for query in (0, 7):
        found = np.asarray(model.apply(variables, x, np.full(5, query)))
        others = np.delete(logits, query, axis=1).max(axis=1)
        np.testing.assert_allclose(found, logits[:, query] - others, atol=1e-6)
    share = np.bincount(items.y_test) / len(items.y_test)
    assert share.min() > 0.05


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rates", "1.0", "0.5", "--shares", "0.5", "0.1"], "ascend"),
        (["--rates", "0.5", "1.0"], "one in (0, 1] for each rate"),
        (["--shares", "0.1", "0.2", "0.1", "0.1"], "none is larger"),
        (["--epochs", "0"], "--epochs is at least 1"),
        (["--batch-size", "9000"], "--batch-size is at most 8000"),
        (["--dataset", "npz"], "npz"),
    ],
)
def test_flags_that_do_not_fit(flags, words, tmp_path, capsys):
    workdir = tmp_path / "new"
    assert main([*flags, "--workdir", str(workdir)]) == 2
    assert words in "".join(capsys.readouterr())
    assert not workdir.exists()


@pytest.mark.nightly
def test_the_command(tmp_path, capsys):
    flags = "--seeds 0 1 --epochs 1 --width 8 --candidates 60"
    flags += " --rates 0.5 1 --shares 0.5 0.1"
    assert main([*flags.split(), "--workdir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["candidates"] == 60
    for seed in found["seeds"]:
        for way in ("filter", "rank"):
            for who in seed[way].values():
                first, last = who["recall"]
                assert 0 <= last <= first <= 1
        for who in seed["rank"].values():
            assert who["left"] == [30, 6]
            assert who["scored"] == [60, 30]
        ranks = list(seed["rank"].values())
        assert ranks[0]["flops"] == ranks[1]["flops"]
    assert (tmp_path / "cascade.png").stat().st_size > 10_000
    assert "trained apart" in "".join(capsys.readouterr())
