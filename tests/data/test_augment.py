"""Crop, flip and normalization against NumPy, and their compiled programs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from mslice_jax import data
from mslice_jax.data import crop_and_flip, normalize

HEIGHT, WIDTH = 5, 6


def picture(dtype=np.uint8):
    """An image whose pixels all differ, and none is black."""
    pixels = np.arange(1, HEIGHT * WIDTH * 2 + 1)
    return pixels.reshape(HEIGHT, WIDTH, 2).astype(dtype)


def crops(image, pad, flip):
    """Every possible crop: flip, pad, cut out."""
    for y, x in itertools.product(range(2 * pad + 1), repeat=2):
        for mirror in (False, True) if flip else (False,):
            wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            crop = wide[y : y + HEIGHT, x : x + WIDTH]
            yield crop[:, ::-1] if mirror else crop


@pytest.mark.parametrize(
    ("pad", "flip"), [(0, False), (0, True), (1, False), (1, True), (2, True)]
)
def test_all_crops_and_no_others_equally_often(pad, flip):
    count = 4000
    batch = np.broadcast_to(picture(), (count, *picture().shape))
    output = crop_and_flip(jax.random.key(4), batch, pad=pad, flip=flip)
    assert output.shape == batch.shape
    assert output.dtype == np.uint8
    expected = [crop.tobytes() for crop in crops(picture(), pad, flip)]
    seen = [crop.tobytes() for crop in np.asarray(output)]
    assert set(seen) == set(expected)
    for crop in expected:
        # Hoeffding's bound for one in a million.
        bound = math.sqrt(math.log(2e6) / 2 / count)
        assert seen.count(crop) / count == pytest.approx(1 / len(expected), abs=bound)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
def test_pixels_are_moved_not_changed(dtype):
    values = np.random.default_rng(0).integers(0, 256, (64, HEIGHT, WIDTH, 1))
    images = values.astype(dtype)
    if dtype == np.float32:
        images = images * np.float32(math.pi) - 100
    output = np.asarray(crop_and_flip(jax.random.key(0), images, pad=1, flip=True))
    assert output.dtype == dtype
    for before, after in zip(images, output, strict=True):
        assert after.tobytes() in {crop.tobytes() for crop in crops(before, 1, True)}


def test_crops_depend_on_the_key():
    images = np.broadcast_to(picture(), (16, *picture().shape))
    compiled = jax.jit(lambda key: crop_and_flip(key, images, pad=2, flip=True))
    one, same, other = (compiled(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_no_gather(platform):
    crop = jax.jit(lambda key, x: crop_and_flip(key, x, pad=4, flip=True))
    images = jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8)
    exported = export.export(crop, platforms=[platform])(jax.random.key(0), images)
    module = exported.mlir_module()
    assert "stablehlo.dot_general" in module
    assert "stablehlo.gather" not in module
    assert "stablehlo.dynamic_slice" not in module


def test_normalize():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 2)).astype(np.uint8)
    output = normalize(jnp.asarray(images), (100.0, 30.0), (50.0, 2.0))
    assert output.dtype == np.float32
    np.testing.assert_allclose(output[..., 0], (images[..., 0] - 100.0) / 50, rtol=1e-6)
    np.testing.assert_allclose(output[..., 1], (images[..., 1] - 30.0) / 2, rtol=1e-6)


def test_transforms_of_a_data_set():
    digits = data.load("digits")
    key, images = jax.random.key(0), jnp.asarray(digits.x_train[:32])
    train, evaluation = data.train_transform(digits), data.eval_transform(digits)
    everything = evaluation(jnp.asarray(digits.x_train))
    assert float(jnp.mean(everything)) == pytest.approx(0.0, abs=1e-4)
    assert float(jnp.std(everything)) == pytest.approx(1.0, abs=1e-4)
    # Cropped while the padding is black, then normalized.
    cropped = crop_and_flip(key, images, pad=1, flip=False)
    np.testing.assert_allclose(
        jax.jit(train)(key, images), evaluation(cropped), rtol=1e-6, atol=1e-6
    )
