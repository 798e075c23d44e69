"""The model that was given against the programs of the file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.serve.independence import apart
from mslice_jax.serve.same_model import SameModel
from mslice_jax.storage import saving

RATES = (0.5, 1.0)


def mlp(p, x):
    return {"y": jnp.tanh(x @ p["w1"]) @ p["w2"]}


def linear(p, x):
    return {"y": (x @ p["w1"]) @ p["w2"]}


def scaled(share):
    return lambda p, x: {"y": (1 + share) * mlp(p, x)["y"]}


def few_bits(share):
    """Like `mlp` in bfloat16, but for its output."""

    def half(p, x):
        p, x = jax.tree.map(lambda v: v.astype(jnp.bfloat16), (p, x))
        return {"y": (1 + share) * mlp(p, x)["y"].astype(jnp.float32)}

    return half


def noisy(p, x, key):
    h = jnp.tanh(x @ p["w1"])
    return (h + jax.random.normal(key, (x.shape[0], 1))) @ p["w2"]


def guess(p, x):
    return {"class": jnp.argmax(mlp(p, x)["y"], -1), "y": x.T.T}


def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (3, 8), "w2": (8, 2)}
    return {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}


def net_of(function, *inputs):
    return ms.upgrade(function, weights(), jnp.ones((1, 3)), *inputs, rates=RATES)


def check(path, model, rates=RATES):
    """What is said of the model."""
    said = []
    SameModel(path, rates, said.append).check(ms.load(path, model))
    return said


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("same") / "net.mslice"
    return ms.save(net_of(mlp), path)


def test_the_model_that_was_saved(file, compilations):
    same, net = SameModel(file, RATES, pytest.fail), ms.load(file, mlp)
    same.check(net)
    again = ms.load(file, mlp)
    with compilations() as names:
        same.check(again)  # of the same programs
    assert names == []


@pytest.mark.parametrize(("share", "fits"), [(5e-4, True), (2e-3, False)])
def test_rounding_is_allowed_and_more_is_not(file, share, fits):
    if fits:
        assert check(file, scaled(share)) == []
        return
    with pytest.raises(ValueError, match=r"rate 0\.5 its output 'y' is 0\.002 times"):
        check(file, scaled(share))


def test_another_function_is_told_by_how_much(file):
    # The input is drawn as the check draws it; the rest by NumPy.
    x = np.random.default_rng(0).normal(size=(2, 3))
    p = {name: np.asarray(w, np.float64) for name, w in weights().items()}
    h = x @ p["w1"]
    far = np.abs(np.tanh(h) @ p["w2"] - h @ p["w2"]).max()
    far /= np.abs(np.tanh(h) @ p["w2"]).max()
    with pytest.raises(ValueError, match="is another one than that of") as error:
        check(file, linear, (1.0,))
    assert f"at rate 1.0 its output 'y' is {far:.2g} times" in str(error.value)


def test_less_than_single_precision_is_compared_more_kindly(tmp_path):
    path = ms.save(net_of(few_bits(0)), tmp_path / "net.mslice")
    assert check(path, few_bits(0.01), (1.0,)) == []
    with pytest.raises(ValueError, match="rounding: up to 0.03"):
        check(path, few_bits(0.1), (1.0,))


def test_random_numbers_of_a_key_are_the_same_on_both_sides(tmp_path):
    path = ms.save(net_of(noisy, jax.random.key(3)), tmp_path / "net.mslice")
    assert check(path, noisy) == []
    with pytest.raises(ValueError, match="another one"):
        check(path, lambda p, x, key: noisy(p, x, jax.random.split(key)[0]))


def test_whole_numbers_are_the_same_or_not(tmp_path):
    path = ms.save(net_of(guess), tmp_path / "net.mslice")
    assert check(path, guess) == []
    with pytest.raises(ValueError, match="output 'class' is inf times"):
        check(path, lambda p, x: {**guess(p, x), "class": 1 - guess(p, x)["class"]})


def test_what_cannot_be_compared_is_said(tmp_path, monkeypatch):
    bare = ms.save(net_of(mlp), tmp_path / "bare.mslice", programs=False)
    (said,) = check(bare, linear)
    assert said.startswith("The model is not compared") and "has no programs" in said
    monkeypatch.setattr(saving, "PLATFORMS", ("tpu",))
    other = ms.save(net_of(mlp), tmp_path / "other.mslice")
    (said,) = check(other, linear)
    assert "whose programs do not run here" in said and "tpu" in said


def test_a_rate_without_a_program_is_passed_over(file):
    assert check(file, linear, (0.75,)) == []


def test_how_far_apart():
    nan, inf = np.nan, np.inf
    one = np.array([1.0, -4.0, nan, inf])
    assert apart(one, one) == 0
    assert apart(one, np.array([1.0, -3.0, nan, inf])) == 0.25
    for other in ([1.0, nan, nan, inf], [1.0, -4.0, 0.0, inf], [1.0, -4.0, nan, -inf]):
        assert apart(one, np.array(other)) == inf
    assert apart(np.zeros(2), np.ones(2)) == inf
    assert apart(np.array([1, 2]), np.array([1, 3])) == inf
