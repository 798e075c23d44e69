"""Random networks hold the proofs; `python -m tests.fuzz` runs more of them."""

import collections
import dataclasses
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings

import mslice_jax as ms
from mslice_jax.core.counts import Counts
from mslice_jax.core.rules import RULES
from mslice_jax.core.rules.base import Narrow, Rule
from tests.fuzz.builder import Network
from tests.fuzz.generate import generate
from tests.fuzz.kept import KEPT
from tests.fuzz.proofs import RATES, Facts, ProofError, check
from tests.fuzz.recipe import numbered

RUN, READ = 6, 12  # how many networks; `.ci/nightly` has more
SEEDS = st.integers(0, 2**16 - 1)
RECIPES = st.lists(SEEDS, min_size=4, max_size=7)


@pytest.mark.slow
def test_random_networks() -> None:
    seen: list[Facts] = []

    @settings(
        max_examples=RUN,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(RECIPES, st.sampled_from(RATES), st.booleans())
    def proofs(recipe: list[int], rate: float, gradient: bool) -> None:
        network = generate(recipe)
        note(str(network))
        seen.append(check(network, rate, gradient=gradient))

    proofs()
    # A proof that no network goes through would prove nothing.
    count = collections.Counter(
        name
        for facts in seen
        for name, true in dataclasses.asdict(facts).items()
        if true
    )
    assert count["narrows"] >= 0.8 * len(seen)
    assert count["permuted"] >= 0.7 * len(seen)
    assert count["by_hand"] >= 0.5 * len(seen)
    assert count["masked"] >= 0.1 * len(seen)  # most have means over what narrows


def test_programs_of_random_networks() -> None:
    seen = [numbered(0, index).check(programs=True) for index in range(READ)]
    assert sum(facts.narrows for facts in seen) >= 0.8 * READ
    assert sum(facts.by_hand for facts in seen) >= 0.5 * READ


@pytest.mark.parametrize("name", KEPT)
def test_kept_network(name: str) -> None:
    assert check(KEPT[name], 0.5).permuted


def test_source_is_python_that_gives_the_network_again() -> None:
    network = generate([3, 1, 4, 1, 5])
    again = eval(str(network), {"Network": Network})
    assert again.source.strip() == network.source.strip()
    assert dataclasses.replace(again, source=network.source) == network
    assert generate([3, 1, 4, 1, 5]) == network


# The proofs have teeth: each planted fault is found.

NORMED = Network(
    source="""
def network(v, x):
    x = dense(x, v["w1"], v["b2"])
    x = layer_norm(x, v["s3"], v["b4"])
    return dense(x, v["w5"], v["b6"])
""",
    weights={
        "w1": (5, 8),
        "b2": (8,),
        "s3": (8,),
        "b4": (8,),
        "w5": (8, 5),
        "b6": (5,),
    },
    x=(2, 5),
    contracted={"w1": (0,), "w5": (0,)},
    not_maskable="a mean over channels",
)
ORDERED = Network(
    source="""
def network(v, x):
    x = jnp.cumsum(dense(x, v["w1"], v["b2"]), axis=-1)
    return dense(x + x[..., ::-1], v["w3"], v["b4"])
""",
    weights={"w1": (5, 8), "b2": (8,), "w3": (8, 5), "b4": (5,)},
    x=(2, 5),
    contracted={"w1": (0,), "w3": (0,)},
)


def test_proofs_hold_without_a_fault() -> None:
    assert check(NORMED, 0.5) == Facts(masked=False, permuted=True, by_hand=True)
    assert not check(ORDERED, 0.5).narrows


def test_finds_a_mean_that_keeps_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counts, "numbers", lambda *where: {})
    with pytest.raises(ProofError, match="source on narrow weights"):
        check(NORMED, 0.5)


def test_finds_an_axis_that_ought_to_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cumsum", "rev"):
        monkeypatch.setitem(RULES, name, Rule(lambda t: [t.ins[0].dims]))
    with pytest.raises(ProofError, match="permuted units"):
        check(dataclasses.replace(ORDERED, not_maskable="on purpose"), 0.5)


def test_finds_a_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(n: Narrow, x: jax.Array) -> jax.Array:
        full = x.shape[-1] == 8
        return jnp.tanh(x if full else x[..., jnp.arange(x.shape[-1])])

    network = Network(
        source="""
def network(v, x):
    return dense(jnp.tanh(dense(x, v["w1"], v["b2"])), v["w3"], v["b4"])
""",
        weights={"w1": (5, 8), "b2": (8,), "w3": (8, 5), "b4": (5,)},
        x=(2, 5),
        contracted={"w1": (0,), "w3": (0,)},
    )
    assert check(network, 0.5) == Facts(masked=True, permuted=True, by_hand=True)
    monkeypatch.setitem(RULES, "tanh", Rule(RULES["tanh"].tie, gathered))
    with pytest.raises(ProofError, match="gather is added"):
        check(network, 0.5)


def test_an_unbiased_variance_of_one_unit_is_not_a_number() -> None:
    # Found by fuzzing: alike by hand, where 1 - 1 > 0 is false and NaN is chosen.
    def network(p: Any, x: jax.Array) -> jax.Array:
        h = x @ p["in"]
        return (h / jnp.sqrt(1e-3 + h.var(-1, keepdims=True, ddof=1))) @ p["out"]

    rng = np.random.default_rng(0)
    p = {"in": rng.normal(size=(5, 8)), "out": rng.normal(size=(8, 3))}
    p = jax.tree.map(np.float32, p)
    x = np.ones((2, 5), np.float32)
    net = ms.upgrade(network, p, x, rates=(0.125, 0.25, 1.0))
    assert np.isnan(ms.slice_apply(net, x, 0.125)).all()
    for rate, kept in ((0.125, 1), (0.25, 2)):
        narrow = {"in": p["in"][:, :kept], "out": p["out"][:kept]}
        by_hand = jax.jit(network)(narrow, x)
        np.testing.assert_allclose(ms.slice_apply(net, x, rate), by_hand, rtol=1e-4)
