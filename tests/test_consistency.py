"""Agreement of the predictions of rates: by hand, and of runs of recipes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from experiments.consistency import compare, main, plot
from experiments.evaluate import network
from experiments.predictions import predict_on
from experiments.recipe import main as train
from mslice_jax import data
from mslice_jax.models import RecurrentLM
from tests.test_recipes import TINY


def test_agreement_and_shared_errors_by_hand(tmp_path):
    labels = np.array([0, 1, 2, 3, 4])
    classes = {
        "a": np.array([0, 1, 2, 0, 0]),  # 3 and 4 are wrong
        "b": np.array([0, 1, 0, 0, 1]),  # 2, 3 and 4
        "c": labels,
    }
    found = compare(labels, classes)
    assert found.accuracy.tolist() == pytest.approx([0.6, 0.4, 1])
    np.testing.assert_allclose(
        found.agreement, [[1, 0.6, 0.6], [0.6, 1, 0.4], [0.6, 0.4, 1]]
    )
    nan = np.nan  # c makes no errors
    np.testing.assert_allclose(found.errors, [[1, 1, 0], [2 / 3, 1, 0], [nan] * 3])
    written = found.as_json()
    assert written["networks"] == ["a", "b", "c"]
    assert written["errors"][2] == [None, None, None]
    assert written["errors"][1][0] == round(2 / 3, 6)
    plot(tmp_path / "x.png", found, title="title")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    args = ["--rates", "1", ".5", "--train-examples", "64", "--workdir", str(workdir)]
    assert train(TINY, args) == 0
    return workdir


def test_the_command_on_a_finished_run(finished, tmp_path, capsys):
    args = [str(finished), "--max-test-examples", "90", "--output", str(tmp_path)]
    assert main(args, TINY) == 0
    found = json.loads((tmp_path / "consistency.json").read_text())
    assert found["examples"] == 90
    assert found["networks"] == ["r = 1", "r = 0.5"]

    # The same from the whole test set, of which the 90 are drawn.
    net = network(finished, recipe=TINY)
    digits = data.load("digits")
    chosen = data.dataset.choose(len(digits.x_test), 90, seed=0)
    images = data.eval_transform(digits)(jnp.asarray(digits.x_test[chosen]))
    one, half = (
        np.asarray(ms.slice_apply(net, images, rate)).argmax(-1) for rate in (1.0, 0.5)
    )
    wrong = (one != digits.y_test[chosen], half != digits.y_test[chosen])
    assert found["accuracy"] == pytest.approx([1 - w.mean() for w in wrong], abs=1e-6)
    same = pytest.approx(np.mean(one == half), abs=1e-6)
    assert found["agreement"] == [[1, same], [same, 1]]
    both = np.sum(wrong[0] & wrong[1])
    assert found["errors"][1][0] == pytest.approx(both / wrong[1].sum(), abs=1e-6)
    assert (tmp_path / "consistency.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert f"{100 * np.mean(one == half):.1f} (" in shown


def test_runs_are_compared_with_each_other(finished, tmp_path, capsys):
    for name in "ab":
        shutil.copytree(finished, tmp_path / name)
    folders = [str(tmp_path / name) for name in "ab"]
    assert main(folders, TINY) == 0
    found = json.loads((tmp_path / "a" / "consistency.json").read_text())
    assert found["networks"] == ["a, r = 1", "a, r = 0.5", "b, r = 1", "b, r = 0.5"]
    agreement = np.array(found["agreement"])
    np.testing.assert_array_equal(agreement[:2, :2], agreement[:2, 2:])  # copies
    assert main([folders[0], folders[0]], TINY) == 2
    assert "is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "expected the folder of a run"),
        ("nowhere", "nowhere is not a folder"),
        ("RUN --max-test-examples 0", "--max-test-examples of at least 1"),
        ("RUN --text x.txt", "--text has no effect on a run of experiments.tiny"),
        ("RUN --checkpoint newest", "invalid choice 'newest'"),
        ("RUN --what", "Unrecognized options: --what"),
    ],
)
def test_settings_that_do_not_fit_end_with_one_line(
    finished, args, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(args.replace("RUN", str(finished)).split(), TINY) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_tokens_that_are_likeliest_when_states_are_carried():
    """Text in pieces, states carried, is the whole text at once."""
    model = RecurrentLM(vocab=9, units=8, layers=1, cell="gru", carry=True)
    text = np.random.default_rng(0).integers(0, 9, 13)
    tokens = jnp.zeros((1, 4), jnp.int32)
    variables = model.init(jax.random.key(0), tokens)
    net = ms.upgrade(model, variables, tokens, rates=(0.5, 1.0), mutable=["hidden"])
    predict = predict_on(
        lambda: data.held_out_batches(text, 1, 4, overlap=0), carry=["hidden"]
    )
    found = predict(net)

    whole = model.clone(carry=False)
    params = {"params": variables["params"]}
    again = ms.upgrade(whole, params, tokens, rates=(0.5, 1.0))
    np.testing.assert_array_equal(found.labels, text[1:])
    for rate in (0.5, 1.0):
        logits = ms.slice_apply(again, jnp.asarray(text[None, :-1]), rate)
        np.testing.assert_array_equal(
            found.classes[rate], np.asarray(logits[0]).argmax(-1)
        )
