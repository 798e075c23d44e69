"""The recipe for ImageNet's networks as a command, and its networks by name."""

import json
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from experiments import auxiliary, evaluate, imagenet, weights
from experiments.recipe import main
from experiments.settings import parse, resolve
from mslice_jax import models
from mslice_jax.models.import_torch import FACTORIES
from mslice_jax.train import cross_entropy
from tests.citizens.citizen import shaken
from tests.refusals import assert_refused

RECIPE = imagenet.RECIPE
MODELS = get_args(imagenet.Model)
FOLDER = ["--dataset", "folder", "--data-dir"]
SHORT = "--num-random 0 --epochs 1 --train-examples 64"


def run(capsys, workdir, *args):
    """(exit code, standard output, standard error)."""
    code = main(RECIPE, [*map(str, args), "--workdir", str(workdir)])
    return code, *capsys.readouterr()


def resolved(*args):
    settings = parse("imagenet", "", list(args), imagenet.ImageNetSettings)
    return resolve(settings, "imagenet", RECIPE.kind.defaults(RECIPE, settings))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "rates", [[0.5], pytest.param([1, 0.5], marks=pytest.mark.nightly)]
)
def test_a_shortened_default_run(capsys, tmp_path, rates):
    args = [*SHORT.split(), "--max-test-examples", 50, "--rates", *rates]
    code, screen, error = run(capsys, tmp_path, *args)
    assert code == 0, error
    assert "resnet18 x0.125 on Dataset(digits: 64 training and 50 test" in screen
    assert "32 x 32 x 1 uint8" in screen
    rows = [line.split() for line in screen.splitlines() if "│" in line]
    assert [row[1] for row in rows] == [f"{rate:g}" for rate in rates]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["recipe"], summary["model"]) == ("imagenet", "resnet18 x0.125")
    assert (summary["optimizer"], summary["epochs"]) == ("sgd", 1)
    for rate, found in summary["rates"].items():
        assert 0 <= found["accuracy"] <= 1
        # The network built narrow by hand; group norms have a scale and a bias, too.
        narrow = models.resnet18(num_classes=10, widen=float(rate) / 8)
        x = jax.ShapeDtypeStruct((1, 32, 32, 1), "float32")
        params = jax.eval_shape(narrow.init, jax.random.key(0), x)["params"]
        assert found["parameters"] == count(params)
    for picture in ("accuracy_vs_flops.png", "accuracy_over_epochs.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_every_network_of_the_zoo_has_a_name_and_defaults():
    assert tuple(FACTORIES) == MODELS
    for name in MODELS:
        for given in ([], ["--dataset", "folder"], ["--dataset", "cifar10"]):
            if name == "vit_h_14" and "cifar10" in given:
                continue  # patches of 14 do not divide 32
            settings = resolved("--model", name, *given)
            RECIPE.kind.check(RECIPE, settings)
            is_vit = name.startswith("vit")
            assert settings.optimizer == ("adamw" if is_vit else "sgd")
            assert settings.lr == RECIPE.kind.defaults(RECIPE, settings).lr
    # As before: the usual ones of ResNet.
    found = resolved("--model", "resnet50", "--dataset", "imagenet")
    assert (found.epochs, found.batch_size, found.lr) == (100, 256, 0.1)
    assert (found.warmup_epochs, found.widen) == (5, 1.0)


def test_a_narrow_vit_has_narrow_heads():
    model: Any = imagenet.build(
        model="vit_b_16", widen=0.25, num_classes=7, image_size=32, small=True
    )
    # 768, 3072 and 12 heads of 64; patches are half as large for digits.
    sizes = (model.hidden, model.mlp, model.heads, model.patch_size)
    assert sizes == (192, 768, 12, 8)
    assert (model.num_classes, model.image_size, model.layers) == (7, 32, 12)
    usual = imagenet.build(model="vit_b_16", widen=1, num_classes=1000, image_size=224)
    assert usual == models.vit_b_16()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--model", "vgg16", "--norm", "shared"],
            "--norm shared has no effect: --",
        ),
        (
            ["--model", "vit_b_16", "--norm", "switchable"],
            "vit_b_16 has no batch",
        ),
        (["--transform-input"], "--transform-input has no effect: .* is resnet18"),
        (["--widen", "0.3"], "widen=0.3"),
        (
            ["--model", "vit_b_32", "--widen", "0.3"],
            "--widen .* ViT's heads .* 0.3",
        ),
        (
            [
                "--model",
                "vit_b_16",
                "--dataset",
                "folder",
                "--data-dir",
                ".",
                "--image-size",
                "40",
            ],
            "image_size that is a multiple of patch_size, got 40 and 16",
        ),
        (["--image-size", "64"], "--image-size has no effect: .* imagenet or folder"),
        (["--dataset", "folder"], "class folders as --data-dir, .* got none"),
        ([*FOLDER, "none"], "none is not there"),
        ([*FOLDER, "."], "two classes or more in "),
    ],
)
def test_settings_that_do_not_fit_end_with_one_line(
    capsys, tmp_path, monkeypatch, args, message
):
    monkeypatch.chdir(tmp_path)
    done = run(capsys, tmp_path / "work", *args)
    assert_refused(done, message, tmp_path)


def test_a_mistyped_model_shows_the_names_that_there_are(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit:
        run(capsys, tmp_path / "work", "--model", "resnet51")
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert "resnet51" in said and "resnet50" in said and "mobilenet_v2" in said
    assert list(tmp_path.iterdir()) == []


# Auxiliary heads.


def test_auxiliary_losses_count_three_tenths():
    main, second, first = jax.random.normal(jax.random.key(0), (3, 4, 5))
    labels = jnp.array([0, 4, 2, 2])
    task = auxiliary.task(smoothing=0.1)
    outputs = models.GoogLeNetOutputs(main, second, first)
    each = [float(cross_entropy(x, labels, smoothing=0.1)) for x in outputs]
    expected = each[0] + 0.3 * each[1] + 0.3 * each[2]
    assert float(task.loss(outputs, labels)) == pytest.approx(expected, rel=1e-6)
    assert float(task.loss(main, labels)) == pytest.approx(each[0], rel=1e-6)
    right = np.mean(np.argmax(np.asarray(main), axis=1) == np.asarray(labels))
    for found in (outputs, main):
        assert float(task.measure(found, labels)["accuracy"]) == right
        np.testing.assert_array_equal(task.logits(found), main)


def test_heads_that_the_weights_lack_stay_as_initialized(monkeypatch):
    def tree(value):
        names = ("conv1", "aux1", "aux2", "fc")
        return {"params": {n: {"kernel": jnp.full((2, 3), value)} for n in names}}

    saved = {
        ("params", name, "kernel"): np.full((2, 5 if name == "fc" else 3), 7.0)
        for name in ("conv1", "fc")
    }
    monkeypatch.setattr(weights, "read", lambda path: saved)
    found: Any = weights.begin("x", tree(1.0), lambda v: v, optional=auxiliary.HEADS)
    ones, sevens = np.ones((2, 3)), np.full((2, 3), 7.0)
    for name, expected in (("conv1", sevens), ("aux1", ones), ("fc", ones)):
        np.testing.assert_array_equal(found["params"][name]["kernel"], expected)
    with pytest.raises(ValueError, match="it lacks params/aux1/kernel, params/aux2"):
        weights.put(saved, tree(1.0), "x")


def test_all_three_logits_begin_anew_for_other_classes():
    def tree(classes):
        shapes = {"conv1": (2, 3), "aux1": (4, classes), "fc": (6, classes)}
        return {"params": {n: {"kernel": np.ones(s, "f4")} for n, s in shapes.items()}}

    leaves = {
        ("params", name, "kernel"): 2 * part["kernel"]
        for name, part in tree(1000)["params"].items()
    }
    found = weights.put(leaves, tree(10), "x")["params"]
    assert [found[n]["kernel"].max() for n in ("conv1", "aux1", "fc")] == [2, 1, 1]
    leaves["params", "aux1", "kernel"] = np.ones((4, 900), "f4")
    with pytest.raises(ValueError, match=r"another network: .*aux1/kernel is \(4,"):
        weights.put(leaves, tree(10), "x")


@pytest.mark.nightly
def test_googlenet_trains_its_heads_and_is_saved_without(capsys, tmp_path):
    args = [*SHORT.split(), "--model", "googlenet", "--max-test-examples", 20]
    args += ["--rates", "1", "0.5"]
    code, _, error = run(capsys, tmp_path, *args)
    assert code == 0, error
    rates = json.loads((tmp_path / "summary.json").read_text())["rates"]
    x = jax.ShapeDtypeStruct((1, 32, 32, 1), "float32")
    whole = models.googlenet(num_classes=10, widen=0.25, aux_logits=False)
    params = jax.eval_shape(whole.init, jax.random.key(0), x)["params"]
    assert rates["1.0"]["parameters"] == count(params)
    # About a quarter; units of four and six channels do not halve alike.
    assert 0.2 < rates["0.5"]["parameters"] / count(params) < 0.35
    net = ms.load(tmp_path, whole)
    logits = ms.slice_apply(net, jnp.ones((2, 32, 32, 1)), 0.5)
    assert logits.shape == (2, 10)
    trained = evaluate.network(tmp_path)  # the checkpoint has the heads
    assert {"aux1", "aux2"} <= set(trained.variables["params"])
    for head in auxiliary.HEADS:  # one that nobody used would be as it began: zeros
        bias = trained.variables["params"][head]["fc2"]["bias"]
        assert float(jnp.abs(bias).max()) > 0
    found = ms.slice_apply(trained, jnp.ones((2, 32, 32, 1)), 0.5)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("resnet18", "shared"),
        ("vgg11", "group"),
        ("vgg11_bn", "shared"),
        ("googlenet", "shared"),
        ("mobilenet_v2", "shared"),
        ("vit_b_32", "group"),
    ],
)
def test_every_network_begins_with_imported_weights(tmp_path, name, norm):
    small = {"widen": 1 / 64} if name.startswith("vit") else {"widen": 1 / 2}
    small = {"widen": 1 / 16} if name.startswith(("vgg", "resnet")) else small
    wide = {**small, "num_classes": 7}
    if name.startswith("vit"):
        wide["image_size"] = 32
    model = imagenet.build(model=name, **wide)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    types = jax.eval_shape(model.init, jax.random.key(0), x)
    # As import_torch saves it: upgraded as for evaluation, statistics shared.
    net = ms.upgrade(model, shaken(types), x, rates=(0.5, 1.0), norm=None)
    ms.save(net, tmp_path / "network.mslice", programs=False)
    args = ["--model", name, "--dataset", "cifar10", "--norm", norm, "--rates", "0.5"]
    args += ["1", "--batch-size", "2", "--widen", str(small["widen"])]
    settings = resolved(*args, "--weights", str(tmp_path))

    class Inputs:
        num_classes, image_shape = 7, (32, 32, 3)

    begun, _ = RECIPE.kind.network(RECIPE, settings, Inputs())
    assert jax.tree.structure(begun.variables) == jax.tree.structure(net.variables)
    jax.tree.map(np.testing.assert_array_equal, begun.variables, net.variables)
