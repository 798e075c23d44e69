"""The Haiku section of `docs/frameworks.md`, against a network built narrow by hand."""

import jax
import numpy as np
import pytest

import mslice_jax as ms
from tests.frameworks.document import noise, run

hk = pytest.importorskip("haiku", reason="Haiku is not installed")


def test_the_code_of_the_document():
    with jax.numpy_rank_promotion("allow"):  # Haiku adds biases of rank 1
        names = run("Haiku")
        net = names["net"]
        variables = jax.tree.map(noise, net.variables)
        net, x = net.replace(variables), noise(names["x"], seed=1)
        full = jax.jit(names["apply"])(variables, x)
        np.testing.assert_array_equal(ms.slice_apply(net, x, 1.0), full)
        for rate, width in ((0.25, 4), (0.5, 8)):

            def forward(x, width=width):
                x = jax.nn.relu(hk.Conv2D(width, 3)(x))
                norm = hk.BatchNorm(True, True, decay_rate=0.9)
                return hk.Linear(10)(norm(x, is_training=False).mean((1, 2)))

            narrow = hk.without_apply_rng(hk.transform_with_state(forward))
            params = dict(variables["params"])
            for name in ("conv2_d", "batch_norm"):
                arrays = params[name].items()
                params[name] = {key: array[..., :width] for key, array in arrays}
            params["linear"] = {
                "w": params["linear"]["w"][:width],
                "b": params["linear"]["b"],
            }
            state = {
                name: {
                    key: a[..., :width] if np.ndim(a) else a for key, a in part.items()
                }
                for name, part in variables["batch_stats"].items()
            }
            expected, _ = narrow.apply(params, state, x)
            got = ms.slice_apply(net, x, rate)
            np.testing.assert_allclose(got, expected, atol=1e-5)
