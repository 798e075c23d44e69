"""The rules of all tests are in force."""

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

QUICK = "jax_disable_most_optimizations"


def test_four_devices():
    assert len(jax.devices()) == 4


def test_warnings_are_errors():
    with pytest.raises(UserWarning, match="careful"):
        warnings.warn("careful", stacklevel=1)


def test_rank_promotion_raises():
    with pytest.raises(ValueError, match="rank"):
        jnp.add(np.ones((4,)), np.ones((3, 4)))


def test_compilations_are_counted_once_for_each_shape(compilations):
    @jax.jit
    def thrice(x):
        return x * 3 - 1

    with compilations() as names:
        for size in (5, 7, 5, 7):
            thrice(np.zeros(size, np.float32))
    assert len(names) == 2
    assert all("thrice" in name for name in names)
    with compilations() as names:
        thrice(np.ones(5, np.float32))
    assert names == []


def test_compilations_from_the_cache_are_counted(compilations):
    # The cache is keyed by the program, so a second function finds the first one's.
    x = np.zeros(11, np.float32)
    for _ in range(2):
        with compilations() as names:
            jax.jit(lambda x: jnp.sin(x) * 5)(x)
        assert len(names) == 1


def test_shared_skips_with_the_reason(shared):
    with pytest.raises(pytest.skip.Exception, match="shared/no/such"):
        shared("no/such")


def test_xla_optimizes_on_request(request):
    before = jax.config.read(QUICK)
    assert before == (os.environ[QUICK.upper()] == "true")
    request.getfixturevalue("optimized")
    assert not jax.config.read(QUICK)
    request.getfixturevalue("unoptimized")
    assert jax.config.read(QUICK)


def test_nightly_tests_are_left_out(request):
    nightly = [i for i in request.session.items if i.get_closest_marker("nightly")]
    assert not nightly or request.config.getoption("--nightly")
