"""The Keras section of `docs/frameworks.md`, against a model built narrow by hand."""

import os

import jax
import numpy as np
import pytest

import mslice_jax as ms
from tests.frameworks.document import noise, run

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="Keras is not installed")


def test_the_code_of_the_document():
    if keras.backend.backend() != "jax":
        pytest.skip("Keras is imported already, with another backend than JAX")
    with jax.numpy_rank_promotion("allow"):  # Keras adds biases of rank 1
        names = run("Keras")
        net = names["net"].replace(jax.tree.map(noise, names["net"].variables))
        x = noise(names["x"], seed=1)
        full = jax.jit(names["apply"])(net.variables, x)
        np.testing.assert_array_equal(ms.slice_apply(net, x, 1.0), full)
        params, state = net.variables["params"], net.variables["state"]
        for rate, width in ((0.25, 4), (0.5, 8)):
            narrow = keras.Sequential(
                [
                    keras.Input((8, 8, 3)),
                    keras.layers.Conv2D(width, 3, activation="relu"),
                    keras.layers.BatchNormalization(),
                    keras.layers.GlobalAveragePooling2D(),
                    keras.layers.Dense(10),
                ]
            )
            convolution, norm, _, head = narrow.layers
            full_of = {
                path.rpartition("/")[2]: a for path, a in {**params, **state}.items()
            }
            kernels = {p.split("/")[-2]: a for p, a in params.items() if "kernel" in p}
            biases = {p.split("/")[-2]: a for p, a in params.items() if "bias" in p}
            in_conv = next(name for name in kernels if name.startswith("conv"))
            in_head = next(name for name in kernels if name.startswith("dense"))
            convolution.set_weights(
                [kernels[in_conv][..., :width], biases[in_conv][:width]]
            )
            each = ("gamma", "beta", "moving_mean", "moving_variance")
            norm.set_weights([full_of[name][:width] for name in each])
            head.set_weights([kernels[in_head][:width], biases[in_head]])
            expected = narrow(x, training=False)
            got = ms.slice_apply(net, x, rate)
            np.testing.assert_allclose(got, expected, atol=1e-5)
