"""The recipe for vision transformers on small images, as a command."""

import json
from typing import Any

import jax
import numpy as np
import pytest

import mslice_jax as ms
from experiments import vit_cifar
from experiments.recipe import main
from experiments.settings import parse, resolve
from mslice_jax.models import CifarResNet
from tests.citizens.citizen import shaken
from tests.refusals import assert_refused

SHORT = "--layers 1 --units 16 --rates 1 0.5 --num-random 0 --epochs 1"
SHORT = [*SHORT.split(), "--train-examples", "200"]


def run(capsys, workdir, *args):
    """(exit code, standard output, standard error)."""
    code = main(vit_cifar.RECIPE, [*map(str, args), "--workdir", str(workdir)])
    return code, *capsys.readouterr()


def resolved(*args):
    kind: Any = vit_cifar.RECIPE.kind
    settings = parse("vit_cifar", "", list(args), kind.settings)
    return resolve(settings, "vit_cifar", kind.defaults(vit_cifar.RECIPE, settings))


def test_a_shortened_default_run(capsys, tmp_path):
    code, screen, error = run(capsys, tmp_path / "work", *SHORT)
    assert code == 0, error
    assert "ViT of 1 x 16 on Dataset(digits: 200 training" in screen
    rows = [line.split() for line in screen.splitlines() if "│" in line]
    assert [row[1] for row in rows] == ["1", "0.5"]
    summary = json.loads((tmp_path / "work" / "summary.json").read_text())
    assert summary["optimizer"] == "adamw"

    def parameters(d: int, heads: int) -> int:
        """By hand: d entries of a token, heads of two, 4 x 4 patches of 2 x 2."""
        attention = 3 * (d * 2 * heads + 2 * heads) + 2 * heads * d + d
        mlp = d * 4 * d + 4 * d + 4 * d * d + d
        embedding = 2 * 2 * d + d + d + 17 * d  # patches, the class token, positions
        return embedding + attention + mlp + 3 * 2 * d + d * 10 + 10  # three norms

    found = {rate: v["parameters"] for rate, v in summary["rates"].items()}
    assert found == {"1.0": parameters(16, 8), "0.5": parameters(8, 4)}
    for picture in ("accuracy_vs_flops.png", "accuracy_over_epochs.png"):
        assert (tmp_path / "work" / picture).read_bytes().startswith(b"\x89PNG")

    # Weights of another network, and of this one.
    file = tmp_path / "other" / "network.mslice"
    file.parent.mkdir()
    x = jax.ShapeDtypeStruct((2, 8, 8, 1), "float32")
    model = CifarResNet(depth=8, num_classes=10)
    variables = shaken(jax.eval_shape(model.init, jax.random.key(0), x))
    other = ms.upgrade(model, variables, x, rates=(0.5, 1.0), norm="shared")
    ms.save(other, file, programs=False)
    args = [*SHORT, "--weights", file.parent]
    code, screen, error = run(capsys, tmp_path / "again", *args)
    assert code == 2
    assert "are those of another network: it lacks params/block0/fc1/bias, " in error
    assert "nothing takes its params/bn1/bias, " in error
    assert len(error) < 1200 and error.count("\n") == 1
    assert not (tmp_path / "again").exists()

    settings = resolved(*SHORT, "--weights", str(tmp_path / "work"))
    dataset = vit_cifar.RECIPE.kind.load(settings)
    begun, _ = vit_cifar.RECIPE.kind.network(vit_cifar.RECIPE, settings, dataset)
    trained = ms.load(tmp_path / "work", vit_cifar.build(
        **settings.sizes(8), num_classes=10
    ))  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, begun.variables, trained.variables)


def test_the_defaults():
    found = resolved("--dataset", "cifar10")
    assert (found.patch_size, found.layers, found.units) == (4, 6, 192)
    assert (found.optimizer, found.cosine, found.warmup_epochs) == ("adamw", True, 10)
    for given in ([], ["--dataset", "cifar100"]):
        settings = resolved(*given)
        vit_cifar.RECIPE.kind.check(vit_cifar.RECIPE, settings)
    assert resolved("--optimizer", "sgd").lr == 0.1
    assert resolved("--optimizer", "lion").lr == 3e-4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--patch-size", "3"], "a multiple of patch_size, got 8 and 3"),
        (["--patch-size", "0"], "--patch-size of at least 1, got 0"),
        (["--heads", "5"], "a hidden size that is a multiple of the heads, got"),
        (["--dropout", "1"], r"--dropout in \[0, 1\), got 1"),
        (["--workers", "2"], "--workers has no effect: .* imagenet or folder"),
        (["--optimizer", "adam", "--weight-decay", "0.1"], "has no effect: .* adamw"),
        (["--weights", "nowhere"], "nowhere"),
    ],
)
def test_settings_that_do_not_fit_end_with_one_line(
    capsys, tmp_path, monkeypatch, args, message
):
    monkeypatch.chdir(tmp_path)
    done = run(capsys, tmp_path / "work", *args)
    assert_refused(done, message, tmp_path)
