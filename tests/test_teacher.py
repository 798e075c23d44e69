"""Who teaches in a run (``--distill``, ``--distill-from``, ``--teacher``)."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mslice_jax as ms
from experiments.distillation import distillation


class Half(nn.Module):
    """A layer that only training drops outputs of."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(8, name="hidden")(x))
        return nn.Dense(3, name="logits")(x)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: Any) -> tuple[Path, Any]:
    """A workdir with a network, and its parameters."""
    folder, x = tmp_path_factory.mktemp("teacher"), jnp.ones((1, 5))
    variables = Half().init(jax.random.key(0), x)
    net = ms.upgrade(Half(), variables, x, rates=(0.5, 1.0))
    ms.save(net, folder / "network.mslice")
    return folder, variables["params"]


def flags(**given: Any) -> Any:
    default = {"distill": 0.25, "temperature": 2.0, "distill_from": 0, "teacher": None}
    return SimpleNamespace(**{**default, **given})


ONE = np.ones((1, 5), np.float32)


def test_the_network_of_another_run_teaches(teacher):
    folder, params = teacher
    found = distillation(flags(teacher=folder), 10, ONE, 3)
    assert found is not None and found.teacher is not None
    assert (found.weight, found.temperature) == (0.25, 2.0)
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    params = jax.tree.map(np.asarray, params)
    h = x @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    expected = h @ params["logits"]["kernel"] + params["logits"]["bias"]
    for call in (found.teacher, jax.jit(found.teacher)):
        np.testing.assert_allclose(call(x), expected, rtol=1e-5, atol=1e-6)


def test_it_begins_after_some_epochs():
    found = distillation(flags(distill_from=3), 10, ONE, 3)
    assert found is not None
    shares = [float(found.share(jnp.asarray(step))) for step in (0, 29, 30, 99)]
    assert shares == [0, 0, 0.25, 0.25]
    assert distillation(flags(distill=0.0), 10, ONE, 3) is None


@pytest.mark.parametrize(
    ("example", "classes", "words"),
    [
        (ONE, 4, "tells 3 classes or words apart, and the data has 4"),
        (np.ones((1, 6), np.float32), 3, "does not take what is trained on: .*6"),
    ],
)
def test_a_teacher_of_something_else(teacher, example, classes, words):
    with pytest.raises(ValueError, match=words):
        distillation(flags(teacher=teacher[0]), 10, example, classes)
