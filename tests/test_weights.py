"""Initial weights of a recipe (``--weights``)."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from experiments import cifar_resnet, weights
from experiments.images import Images
from experiments.settings import Settings, resolve
from mslice_jax.models import CifarResNet
from tests.citizens.citizen import shaken

X = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


def saved(path: Any, classes: int = 3, norm: str = "shared") -> ms.Sliceable:
    """A file with random weights, and its network."""
    model = CifarResNet(depth=8, num_classes=classes, widen=0.5)
    types = jax.eval_shape(model.init, jax.random.key(0), X)
    net = ms.upgrade(model, shaken(types), X, rates=(0.5, 1.0), norm=norm)
    ms.save(net, path, programs=False)
    return net


def begun(path: Any, norm: Any, **changes: Any) -> ms.Sliceable:
    """The network that the recipe begins with."""
    settings = Settings(
        weights=path, norm=norm, rates=(1.0, 0.5), depth=8, widen=0.5, batch_size=2
    )
    settings = dataclasses.replace(settings, **changes)
    settings = resolve(settings, "cifar_resnet", cifar_resnet.RECIPE.digits)
    inputs: Any = SimpleNamespace(num_classes=3, image_shape=(8, 8, 3))
    net, _ = Images().network(cifar_resnet.RECIPE, settings, inputs)
    return net


def assert_trees_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("norm", ["shared", "switchable"])
def test_a_recipe_begins_with_the_saved_weights(norm, tmp_path):
    net = saved(tmp_path / "network.mslice", norm=norm)
    assert_trees_equal(begun(tmp_path, norm).variables, net.variables)


def test_other_classes_begin_with_a_new_last_layer(tmp_path):
    path = tmp_path / "network.mslice"
    net = saved(path, classes=7)
    params = begun(path, "shared").variables["params"]
    assert params["fc"]["kernel"].shape == (32, 3)
    for name in set(params) - {"fc"}:
        assert_trees_equal(params[name], net.variables["params"][name])


@pytest.mark.parametrize(
    ("norm", "changes", "match"),
    [
        ("shared", {"depth": 14}, "it lacks .*params/layer1_1/bn1/bias"),
        ("shared", {"widen": 1.0}, r"params/conv1/kernel is \(3, 3, 3, 8\), not"),
        ("switchable", {}, "nothing takes its .*bn1/0.5/bias"),
    ],
)
def test_weights_of_another_network_are_refused(norm, changes, match, tmp_path):
    path = tmp_path / "network.mslice"
    saved(path, norm=norm)
    with pytest.raises(ValueError, match=f"another network: .*{match}"):
        begun(path, "shared", **changes)
    leaves = weights.read(path)
    assert ("params", "conv1", "kernel") in leaves


def test_missing_weights_are_an_error_before_any_work(tmp_path):
    with pytest.raises(OSError, match="none"):
        begun(tmp_path / "none", "shared")
