"""The NNX section of `docs/frameworks.md`. More is in `tests/functions/test_nnx.py`."""

import jax
import numpy as np

import mslice_jax as ms
from tests.frameworks.document import run


def test_the_code_of_the_document():
    names = run("NNX")
    net, x = names["net"], names["x"]
    np.testing.assert_allclose(names["y"], names["y_small"], atol=1e-6)
    assert names["y_train"].shape == (2, 10)
    mean = names["updates"]["batch_stats"]["norm"]["mean"]
    assert mean.shape == (16,)
    assert np.all(mean[:8] != 0)
    np.testing.assert_array_equal(mean[8:], 0)
    trained = names["trained"]
    assert jax.tree.structure(trained.variables) == jax.tree.structure(net.variables)
    for rate in net.rates:
        assert np.any(ms.slice_apply(trained, x, rate) != ms.slice_apply(net, x, rate))
