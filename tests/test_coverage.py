"""Other people's networks hold the proofs, and the proofs can fail.

The quick families run wherever their package is installed; the others are slow, and the
whole table is made by `python -m experiments.benchmarks.coverage`.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from experiments.benchmarks import coverage
from experiments.benchmarks.families import FAMILIES
from experiments.benchmarks.families.family import (
    Family,
    Network,
    drawn,
    image,
)
from mslice_jax.plan import WidthPlan

TOLERANCE = coverage.Config().tolerance


@pytest.fixture
def unoptimized() -> Iterator[None]:
    """As the table is made: XLA does not optimize, and compiles sooner."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("unoptimized")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family.quick else pytest.mark.slow)
        for family in FAMILIES
    ],
    ids=str,
)
def test_family_holds_every_proof(family: Family) -> None:
    if not coverage.installed(family):
        pytest.skip(f"{family.package} is not installed")
    with jax.numpy_rank_promotion("allow"):  # theirs to decide
        row = coverage.examine(family)
    if not family.quick:
        jax.clear_caches()  # a hundred networks do not fit into memory
    assert {"identity", "rates", "permutation", "influence"} <= set(row.errors)
    assert row.failed(TOLERANCE) == []
    assert 0.05 < row.half <= family.at_most
    assert row.elastic > 0.9 or family.at_most > 0.3


def test_families_are_many_and_have_names_of_their_own() -> None:
    names = [str(family) for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert len({family.name for family in FAMILIES}) >= 60
    quick = {family.package for family in FAMILIES if family.quick}
    assert {"keras", "dm-haiku", "equinox"} <= quick  # what CI installs


# The proofs can fail.


def perceptron(variables: Any, x: jax.Array) -> jax.Array:
    """Two hidden layers of 16 and 32 units: nothing runs over their axes."""
    h = jax.nn.relu(x @ variables["a"])
    return jax.nn.relu(h @ variables["b"]) @ variables["c"]


def normalized(variables: Any, x: jax.Array) -> jax.Array:
    """The same, but the first hidden units are divided by their root mean square."""
    h = jax.nn.relu(x @ variables["a"])
    h = h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 1e-6)
    return jax.nn.relu(h @ variables["b"]) @ variables["c"]


def small(function: Any = perceptron) -> Network:
    sizes = {"a": (4, 16), "b": (16, 32), "c": (32, 3)}
    types = {k: jax.ShapeDtypeStruct(size, np.float32) for k, size in sizes.items()}
    return Network(model=function, variables=drawn(types), inputs=(image(5, 4),))


def failed(errors: dict[str, float], network: Network) -> list[str]:
    family = Family(name="", package="", module="", build=lambda: network)
    row = coverage.Row(
        family=family,
        equations=0,
        parameters=0,
        elastic=0,
        half=0,
        seconds=0,
        errors=errors,
        fixed="",
    )
    return row.failed(TOLERANCE)


def test_proofs_hold_for_a_perceptron() -> None:
    network = small()
    net, equations, seconds = coverage.upgraded(network)
    errors = coverage.prove(network, net, masking=True)
    assert list(errors) == ["identity", "rates", "permutation", "influence", "masking"]
    assert failed(errors, network) == []
    # Three products and two relus; a relu is a call of a call of a maximum.
    assert 5 <= equations <= 11
    assert seconds >= 0


def test_identity_tells_another_function() -> None:
    network = small()
    net, _, _ = coverage.upgraded(network)
    other = dataclasses.replace(
        network, model=lambda variables, x: perceptron(variables, x) * (1 + 2**-20)
    )
    assert failed(coverage.prove(other, net), network) == ["identity"]


def test_rates_tell_a_network_that_does_not_narrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = small()
    net, _, _ = coverage.upgraded(network)
    at_rate = ms.slice_apply
    monkeypatch.setattr(ms, "slice_apply", lambda net, x, rate: at_rate(net, x, 1.0))
    assert "rates" in failed(coverage.prove(network, net), network)


def test_permutation_tells_a_leaf_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def permute(net: ms.Sliceable, orders: dict[str, np.ndarray]) -> ms.Sliceable:
        variables = dict(net.plan.permute(net.variables, orders))
        return net.replace({**variables, "b": net.variables["b"]})

    network = small()
    net, _, _ = coverage.upgraded(network)
    monkeypatch.setattr(ms.Sliceable, "permute", permute)
    assert failed(coverage.prove(network, net), network) == ["permutation"]


def test_influence_tells_a_unit_that_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = WidthPlan.mask
    monkeypatch.setattr(WidthPlan, "mask", lambda plan, tree, _: mask(plan, tree, 0.25))
    network = small()
    net, _, _ = coverage.upgraded(network)
    assert failed(coverage.prove(network, net), network) == ["influence"]


def test_masking_tells_a_mean_over_the_units() -> None:
    network = small(normalized)
    net, _, _ = coverage.upgraded(network)
    errors = coverage.prove(network, net, masking=True)
    assert failed(errors, network) == ["masking"]


def test_distance() -> None:
    expected = [np.asarray([1.0, -4.0]), np.asarray([[2.0]])]
    assert coverage.distance(expected, expected) == 0
    off = [np.asarray([1.0, -4.0]), np.asarray([[2.5]])]
    assert coverage.distance(off, expected) == 0.25
    off = [np.asarray([2.0, -4.0]), np.asarray([[2.0]])]
    assert coverage.distance(off, expected) == 0.25
    for bad in (np.nan, np.inf):
        off = [np.asarray([1.0, bad]), np.asarray([[2.0]])]
        assert not coverage.distance(off, expected) <= 1
    with pytest.raises(ValueError, match=r"expected an output of shape \(2,\)"):
        coverage.distance([np.zeros(3), np.zeros((1, 1))], expected)


# Random weights.


def test_drawn_variables_are_no_two_alike_and_of_the_right_size() -> None:
    shapes = {"kernel": (3, 3, 40, 50), "scale": (500,), "bias": (500,)}
    types = {k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()}
    types["count"] = jax.ShapeDtypeStruct((), np.int32)
    got = drawn(types)
    assert float(jnp.std(got["kernel"])) == pytest.approx((2 / 360) ** 0.5, rel=0.02)
    assert 0.8 <= got["scale"].min() < got["scale"].max() <= 1.2
    assert abs(float(got["bias"].mean())) < 0.02
    assert got["count"] == 0 and got["count"].dtype == np.int32
    for leaf in (got["kernel"], got["scale"], got["bias"]):
        assert np.unique(leaf).size > 0.99 * leaf.size


# The table.


def test_page_names_what_ran_crashed_and_was_left_out(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def crash() -> Network:
        raise RuntimeError("does not build")

    def family(name: str, build: Any, **where: str) -> Family:
        named = {"package": "numpy", "module": "numpy", **where}
        return Family(name=name, build=build, maskable=True, **named)

    monkeypatch.setattr(
        coverage,
        "FAMILIES",
        (
            family("Perceptron", small),
            family("Normalized", lambda: small(normalized)),
            family("Crash", crash),
            family("Absent", small, package="absent", module="no_such_module"),
            family("Other", small, package="other"),
        ),
    )
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    out = tmp_path / "docs" / "page.md"
    rows = coverage.main(coverage.Config(only="[na]*:*", out=out))
    assert [row.family.name for row in rows] == ["Perceptron", "Normalized"]
    printed = capsys.readouterr().out
    assert "not installed, so left out: absent" in printed
    assert "does not build" in printed
    page = out.read_text()
    assert "3 networks of other people's packages, of 2 names" in page
    assert ": 1 hold every proof" in page
    assert "0 families keep at most 30 %" in page
    assert "more keep Perceptron, Normalized." in page
    # 4 x 16 + 16 x 32 + 32 x 3 numbers; half of the units: 4 x 8 + 8 x 16 + 16 x 3.
    perceptron_line, normalized_line = (
        line for line in page.splitlines() if line.startswith(("| Perc", "| Norm"))
    )
    assert "| 672 | 100.0% | 31.0% |" in perceptron_line
    assert "| all 5 |" in perceptron_line
    assert "| not masking (" in normalized_line
    assert "Not upgraded: numpy:Crash." in page
    assert "Not installed, so left out: absent." in page
    assert "Other" not in page


def test_usual_reasons_are_left_out_of_the_table() -> None:
    reasons = ["input of the function"] * 9 + ["fft: whole", "top_k: x", "fft: whole"]
    assert coverage.unusual(reasons) == "fft: whole (2); top_k: x (1)"
