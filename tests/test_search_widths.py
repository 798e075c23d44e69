"""The experiment of searched widths: what is measured, by hand; a small run of it."""

import json
import math

import jax
import numpy as np
import pytest

from experiments.search_widths import main
from experiments.searching.images import split
from experiments.searching.outcome import compared, over_seeds
from mslice_jax import data

SMALL = (
    "--images 100 40 60 --noise 0.5 --draws 2 --rates 0.5 1.0 --budgets 0.5 "
    "--channels 16 16 16 --strides 2 2 --epochs 2 --drawn 1 --generations 1 "
    "--population 4"
)


def test_differences_are_paired_and_draws_are_one_image():
    # Two images, three draws each: the first image gains .1, .2 and .3, the second
    # loses .1 each time, so the mean is .05 and the error |.2 - -.1| / 2.
    uniform = np.array([1.0, 2.0, 1.0, 2.0, 1.0, 2.0]), np.zeros(6, bool)
    gained = np.array([0.1, -0.1, 0.2, -0.1, 0.3, -0.1])
    right = np.array([True, False, True, False, False, False])
    found = compared((uniform[0] - gained, right), uniform, 3)
    assert found["loss"] == pytest.approx(
        {"mean": 1.45, "difference": -0.05, "error": 0.15}
    )
    assert found["accuracy"] == pytest.approx(
        {"mean": 1 / 3, "difference": 1 / 3, "error": 1 / 3}
    )


def test_the_error_of_an_accuracy_is_that_of_mcnemar():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 400)) < np.array([[0.8], [0.7]])
    found = compared((np.zeros(400), a), (np.zeros(400), b), 1)["accuracy"]
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    mcnemar = (only_a - only_b) ** 2 / (only_a + only_b)
    # The variance is around the mean there, with 399 in place of 400.
    square = (found["difference"] / found["error"]) ** 2
    assert 400 * square / (399 + square) == pytest.approx(mcnemar)


def test_means_over_seeds_by_hand():
    def seed(loss, accuracy):
        about = {"mean": 0.5, "error": 0.3}
        return {
            "loss": about | {"difference": loss},
            "accuracy": about | {"difference": accuracy},
        }

    found = over_seeds([seed(-0.1, 0.02), seed(-0.3, -0.01), seed(0.1, 0.05)])
    assert found["loss"] == pytest.approx(
        {
            "mean": 0.5,
            "difference": -0.1,
            "error": 0.3 / math.sqrt(3),
            "error_of_seeds": 0.2 / math.sqrt(3),
            "better": 2,
        }
    )
    assert found["accuracy"]["better"] == 2
    assert over_seeds([seed(-0.1, 0.02)])["loss"]["error_of_seeds"] is None


def test_parts_share_no_image():
    settings = {"counts": (200, 100, 150), "draws": 3, "seed": 4}
    found = split("digits", None, noise=0.0, **settings)
    digits = data.load("digits")
    stored = np.concatenate([digits.x_train, digits.x_test])
    labels = np.concatenate([digits.y_train, digits.y_test])
    label = {x.tobytes(): y for x, y in zip(stored, labels, strict=True)}
    parts = [(found.x_train, found.y_train)]
    for part, count in ((found.validation, 100), (found.held_out, 150)):
        assert part.x.shape == (3 * count, 8, 8, 1)
        np.testing.assert_array_equal(part.x[:count], part.x[-count:])
        raw = np.rint(part.x * digits.std + digits.mean).astype(np.uint8)
        parts.append((raw[:count], part.y[-count:]))
    assert [len(x) for x, _ in parts] == [200, 100, 150]
    each = [[x.tobytes() for x in images] for images, _ in parts]
    assert len({x for images in each for x in images}) == 450
    for images, (_, y) in zip(each, parts, strict=True):
        assert [label[x] for x in images] == y.tolist()
    noisy = split("digits", None, noise=0.5, **settings).held_out.x
    noise = (noisy - found.held_out.x).reshape(3, -1)
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.1  # each draw has its own


def test_training_images_are_varied_and_normal():
    found = split("digits", None, counts=(200, 9, 9), noise=0.5, draws=1, seed=4)
    first, second = (
        np.asarray(found.vary(jax.random.key(key), found.x_train)) for key in (0, 1)
    )
    assert abs(first.mean()) < 0.2 and first.shape == (200, 8, 8, 1)
    assert first.var() == pytest.approx(1 + 0.5**2, rel=0.1)
    assert np.abs(first - second).mean() > 0.3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--budgets 0.3", "budgets that are rates"),
        ("--seeds", "at least one seed"),
        ("--channels 16 16", "strides of each convolution; got 2 and 4"),
        ("--batch-size 700", "from 1 to the 600 training images"),
        ("--images 600 600 600", "at most the 1797 images of digits in all"),
        ("--dataset digit", "no data set 'digit'"),
    ],
)
def test_flags_that_do_not_fit(flags, words, tmp_path, capsys):
    assert main([*flags.split(), "--workdir", str(tmp_path)]) == 2
    assert words in " ".join("".join(capsys.readouterr()).split())
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys):
    assert main([*SMALL.split(), "--seeds", "1", "--workdir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    [seed] = found["each"]
    assert set(seed["held_out"]) == set(found["over_seeds"]) == {"searched", "anew"}

    # 8 x 8 to 4 x 4 and 2 x 2 by 3 x 3 kernels, then two dense layers.
    def flops(a, b, c):
        return 2 * (16 * 9 * a + 4 * 9 * a * b + b * c + 10 * c)

    assert seed["flops"]["0.5"] == flops(8, 8, 8)
    for way in ("greedy", "evolution"):
        widths = [int(16 * rate) for rate in seed["chosen"][way]["0.5"].values()]
        assert flops(*widths) <= flops(8, 8, 8)
    for training, ways in (
        ("searched", ("greedy", "evolution")),
        ("anew", ("evolution",)),
    ):
        held_out = seed["held_out"][training]["0.5"]
        over_seeds = found["over_seeds"][training]["0.5"]
        assert set(held_out) == set(over_seeds) == {"uniform", *ways}
        uniform = held_out["uniform"]
        assert uniform["accuracy"]["difference"] == uniform["loss"]["error"] == 0
        for way in ways:
            for name in ("loss", "accuracy"):
                one = held_out[way][name]
                assert one["mean"] - uniform[name]["mean"] == pytest.approx(
                    one["difference"], abs=1e-9
                )
                assert over_seeds[way][name]["difference"] == one["difference"]
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    assert "Trained anew, at the widths" in capsys.readouterr().out
