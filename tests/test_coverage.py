"""Other people's networks hold the proofs, and the proofs can fail.

The quick families run wherever their package is installed, the others every night;
`python -m experiments.benchmarks.coverage` makes the whole table.
"""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mslice_jax as ms
from experiments.benchmarks import coverage, coverage_page, coverage_proofs
from experiments.benchmarks.coverage_results import Row, Run
from experiments.benchmarks.families import FAMILIES
from experiments.benchmarks.families.family import (
    Family,
    Network,
    drawn,
    image,
)
from experiments.benchmarks.families.frameworks import (
    from_equinox,
    from_linen,
    from_nnx,
    stirred,
)
from mslice_jax.core.plan import WidthPlan

TOLERANCE = coverage.Config().tolerance


@pytest.mark.usefixtures("unoptimized")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family.quick else pytest.mark.nightly)
        for family in FAMILIES
    ],
    ids=str,
)
def test_family_holds_every_proof(family: Family) -> None:
    if not coverage.installed(family):
        pytest.skip(f"{family.package} is not installed")
    with jax.numpy_rank_promotion("allow"):  # a choice of the package
        seen = coverage.examine(family)
    if not family.quick:
        jax.clear_caches()  # a hundred networks do not fit into memory
    assert {"identity", "rates", "permutation", "influence"} <= set(seen.errors)
    assert seen.failed(TOLERANCE) == []
    assert 0.05 < seen.half <= family.at_most
    assert seen.elastic > 0.9 or family.at_most > 0.3


def test_families_are_many_and_have_unique_names() -> None:
    names = [str(family) for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert len({family.name for family in FAMILIES}) >= 60
    quick = {family.package for family in FAMILIES if family.quick}
    assert {"dm-haiku", "equinox"} <= quick  # what CI installs, and takes seconds


# The proofs can fail.


def perceptron(variables: Any, x: jax.Array) -> jax.Array:
    """Two hidden layers of 16 and 32 units, without an operation over their axes."""
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


def row(**seen: Any) -> Row:
    """A row of a network with these results."""
    nothing = {"equations": 0, "parameters": 0, "elastic": 0.0, "half": 0.25}
    untold = {"fixed": "", "own_trace": None, "numbers": None, "wall": 0.0}
    named = {"package": "numpy", "name": "MLP", "seconds": 0.0, "errors": {}}
    return Row(**{**nothing, **untold, **named, **seen})


def failed(errors: dict[str, float]) -> list[str]:
    return row(errors=errors).failed(TOLERANCE)


def test_proofs_hold_for_a_perceptron() -> None:
    network = small()
    net, equations, seconds = coverage.upgraded(network)
    errors = coverage_proofs.prove(network, net, masking=True)
    assert set(errors) == {
        *("identity", "rates", "permutation", "influence"),
        *("masking", "extraction", "nesting", "compilation"),
    }
    assert failed(errors) == []
    # Three products and two relus; a relu is a call of a call of a maximum.
    assert 5 <= equations <= 11
    assert seconds >= 0


def test_identity_finds_another_function() -> None:
    network = small()
    net, _, _ = coverage.upgraded(network)
    other = dataclasses.replace(
        network, model=lambda variables, x: perceptron(variables, x) * (1 + 2**-20)
    )
    assert failed(coverage_proofs.prove(other, net)) == ["identity"]


def test_rates_find_a_network_that_does_not_narrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = small()
    net, _, _ = coverage.upgraded(network)
    at_rate = ms.slice_apply
    monkeypatch.setattr(
        ms, "slice_apply", lambda net, x, rate: at_rate(net, x, net.rate)
    )
    assert "rates" in failed(coverage_proofs.prove(network, net))


def test_permutation_finds_a_leaf_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def permute(net: ms.Sliceable, orders: dict[str, np.ndarray]) -> ms.Sliceable:
        variables = dict(net.plan.permute(net.variables, orders))
        return net.replace({**variables, "b": net.variables["b"]})

    network = small()
    net, _, _ = coverage.upgraded(network)
    monkeypatch.setattr(ms.Sliceable, "permute", permute)
    assert failed(coverage_proofs.prove(network, net)) == ["permutation"]


def test_influence_finds_a_unit_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = WidthPlan.mask
    monkeypatch.setattr(WidthPlan, "mask", lambda plan, tree, _: mask(plan, tree, 0.25))
    network = small()
    net, _, _ = coverage.upgraded(network)
    assert failed(coverage_proofs.prove(network, net)) == ["influence"]


def test_masking_finds_a_mean_over_the_units() -> None:
    network = small(normalized)
    net, _, _ = coverage.upgraded(network)
    errors = coverage_proofs.prove(network, net, masking=True)
    assert failed(errors) == ["masking"]


def test_extraction_finds_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    extract = ms.extract

    def scaled(net: ms.Sliceable, rate: float) -> ms.Sliceable:
        small = extract(net, rate)
        return small.replace(jax.tree.map(lambda x: x * (1 + 2**-20), small.variables))

    network = small()
    net, _, _ = coverage.upgraded(network)
    monkeypatch.setattr(ms, "extract", scaled)
    # Both extracts are scaled twice, so they do not nest either.
    told = failed(coverage_proofs.prove(network, net))
    assert told == ["extraction", "nesting"]


def test_compilation_finds_a_program_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    at_rate = ms.slice_apply

    def anew(net: ms.Sliceable, x: jax.Array, rate: float) -> jax.Array:
        return jax.jit(lambda net: at_rate(net, x, rate))(net)

    network = small()
    net, _, _ = coverage.upgraded(network)
    monkeypatch.setattr(ms, "slice_apply", anew)
    errors = coverage_proofs.prove(network, net)
    assert errors["compilation"] == len(coverage_proofs.RATES)
    assert "compilation" in failed(errors)


def test_gradient_holds_for_a_perceptron_and_finds_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = small(normalized)
    net, _, _ = coverage.upgraded(network)
    assert coverage_proofs.has_gradient(network)
    assert coverage_proofs.gradient_error(network, net) < TOLERANCE
    outputs = coverage_proofs.outputs_of
    with monkeypatch.context() as patch:  # 1.5 times it in the extracted network
        patch.setattr(
            coverage_proofs,
            "outputs_of",
            lambda network, net, rate: (2 - net.rate) * outputs(network, net, rate),
        )
        error = coverage_proofs.gradient_error(network, net)
        assert error == pytest.approx(1 / 3, rel=1e-3)
    mask = WidthPlan.mask
    monkeypatch.setattr(WidthPlan, "mask", lambda plan, tree, _: mask(plan, tree, 0.25))
    assert coverage_proofs.gradient_error(network, net) == np.inf


def test_a_gradient_that_raises_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("no derivative")

    network = small()
    net, _, _ = coverage.upgraded(network)
    monkeypatch.setattr(ms, "slice_apply", refuse)
    assert coverage_proofs.gradient_error(network, net) == np.inf
    assert "no derivative" in capsys.readouterr().err


def test_a_while_loop_has_no_gradient() -> None:
    def loop(variables: Any, x: jax.Array) -> jax.Array:
        def longer(h: jax.Array) -> jax.Array:
            return h + jax.nn.relu(h @ variables["b"]) @ variables["b"].T

        h = jax.lax.while_loop(lambda h: jnp.sum(h) < 9, longer, x @ variables["a"])
        return h @ variables["b"] @ variables["c"]

    assert not coverage_proofs.has_gradient(small(loop))


def test_distance() -> None:
    expected = [np.asarray([1.0, -4.0]), np.asarray([[2.0]])]
    assert coverage_proofs.distance(expected, expected) == 0
    off = [np.asarray([1.0, -4.0]), np.asarray([[2.5]])]
    assert coverage_proofs.distance(off, expected) == 0.25
    off = [np.asarray([2.0, -4.0]), np.asarray([[2.0]])]
    assert coverage_proofs.distance(off, expected) == 0.25
    for bad in (np.nan, np.inf):
        off = [np.asarray([1.0, bad]), np.asarray([[2.0]])]
        assert not coverage_proofs.distance(off, expected) <= 1
    with pytest.raises(ValueError, match=r"expected an output of shape \(2,\)"):
        coverage_proofs.distance([np.zeros(3), np.zeros((1, 1))], expected)


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


def test_stirred_variables_stay_near_their_start_and_are_no_two_alike() -> None:
    start = {
        "knots": np.linspace(-1, 1, 9, dtype=np.float32),
        "bias": np.zeros(300, np.float32),
        "kernel": np.ones((100, 300), np.complex64),
        "ids": np.arange(5),
        "none": np.zeros((0, 3), np.float32),
    }
    got = stirred(start)
    assert (np.diff(got["knots"]) > 0).all()
    assert 0.08 < float(jnp.std(got["bias"])) < 0.12
    # A twentieth of itself, and 0.1 / sqrt(100) in both parts.
    assert np.abs(got["kernel"] - 1).max() < 0.2
    assert float(jnp.std(got["kernel"].imag)) == pytest.approx(0.01, rel=0.05)
    for name in ("bias", "kernel"):
        assert np.unique(got[name]).size > 0.99 * got[name].size
    np.testing.assert_array_equal(got["ids"], start["ids"])
    assert got["kernel"].dtype == np.complex64 and got["none"].shape == (0, 3)


# Frameworks.


class LinenPair(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, twice: bool) -> dict[str, jax.Array]:
        y = nn.Dense(3)(nn.relu(nn.Dense(16)(x)))
        return {"y": 2 * y if twice else y}


class NnxPair(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.a, self.b = nnx.Linear(4, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        return {"y": self.b(nnx.relu(self.a(x)))}


def forward(outputs: Any) -> Any:
    return outputs["y"]


def batch(module: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(module)(x)


def equinox_pair() -> eqx.nn.MLP:
    return eqx.nn.MLP(4, 3, 16, 1, key=jax.random.key(0))


X = image(5, 4)
PAIRS: dict[str, Callable[[], Network]] = {
    "linen": lambda: from_linen(LinenPair(), X, twice=False),
    "linen, own": lambda: from_linen(
        LinenPair(), X, returns=forward, own=True, twice=True
    ),
    "nnx": lambda: from_nnx(NnxPair(nnx.Rngs(0)), X),
    "nnx, returns": lambda: from_nnx(NnxPair(nnx.Rngs(0)), X, returns=forward),
    "equinox": lambda: from_equinox(equinox_pair(), batch, X),
    "equinox, drawn": lambda: from_equinox(equinox_pair(), batch, X, own=False),
}
"""Two dense layers, 4 x 16 and 16 x 3 and their biases, in every framework."""


@pytest.mark.parametrize("name", PAIRS)
def test_module_of_a_framework_holds_every_proof(name: str) -> None:
    network = PAIRS[name]()
    net, _, _ = coverage.upgraded(network)
    errors = coverage_proofs.prove(network, net, masking=True)
    assert len(errors) == 8 and failed(errors) == []
    parameters = ms.report(net).to_dict()["parameters"]
    assert parameters["1.0"] == 4 * 16 + 16 + 16 * 3 + 3
    assert parameters["0.5"] == 4 * 8 + 8 + 8 * 3 + 3
    outputs = network.function(network.variables, *network.inputs, **network.call)
    assert isinstance(outputs, dict) == (name in ("linen", "nnx"))


def test_nnx_model_of_a_network_equals_its_function() -> None:
    network = PAIRS["nnx"]()
    np.testing.assert_array_equal(
        network.function(network.variables, *network.inputs)["y"],
        network.model(*network.inputs)["y"],
    )


def test_outputs_are_compared_by_type() -> None:
    mixed = {
        "b": jnp.asarray([True]),
        "c": jnp.asarray([1 + 2j]),
        "k": jax.random.key(7),
    }
    booleans, numbers, keys = coverage_proofs.arrays(mixed)
    assert booleans.dtype == np.float32 and booleans.tolist() == [1.0]
    assert numbers.dtype == np.complex64 and numbers.tolist() == [1 + 2j]
    np.testing.assert_array_equal(keys, jax.random.key_data(jax.random.key(7)))
    # Only the imaginary part differs.
    assert (
        coverage_proofs.distance([np.asarray([4 + 2j])], [np.asarray([4 + 0j])]) == 0.5
    )


def test_complex_weights_are_filled_with_nan_too() -> None:
    kept = {"w": np.asarray([True, False]), "n": np.asarray([True, False])}
    weights = {"w": jnp.asarray([1j, 2j]), "n": jnp.asarray([1, 2])}
    got = coverage_proofs.filled(weights, kept, np.nan)
    assert got["w"][0] == 1j and np.isnan(got["w"][1])
    np.testing.assert_array_equal(got["n"], [1, 2])


# The table.


@pytest.mark.nightly
def test_run_is_written_and_made_into_a_page(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def crash() -> Network:
        raise RuntimeError("does not build\nfor a reason")

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
    monkeypatch.setattr("sys.argv", ["somewhere/coverage.py", "--only", "[na]*:*"])
    out = tmp_path / "made" / "run.json"
    run = coverage.main(coverage.Config(only="[na]*:*", out=out))
    assert [row.name for row in run.rows] == ["Perceptron", "Normalized"]
    printed = capsys.readouterr().out
    assert "not installed, so left out: absent" in printed
    assert "does not build" in printed
    assert Run.read(out) == run

    page = tmp_path / "docs" / "page.md"
    coverage_page.main(coverage_page.Config(runs=(out,), out=page))
    text = page.read_text()
    assert "3 networks of other people's packages, of 1 packages and 2 names" in text
    # Of three one failed, one crashed; none keeps so little.
    assert f"jax {jax.__version__}, " in text
    assert "| `python -m experiments.benchmarks.coverage --only '[na]*:*'` |" in text
    assert " minutes | 3 | 1 | 0 |" in text
    assert "keep numpy:Perceptron, numpy:Normalized." in text
    # 4 x 16 + 16 x 32 + 32 x 3 numbers; half of the units: 4 x 8 + 8 x 16 + 16 x 3.
    perceptron_line, normalized_line = (
        line for line in text.splitlines() if line.startswith(("| Perc", "| Norm"))
    )
    assert "| 672 | 100.0% | 31.0% |" in perceptron_line
    assert "| all 8 |" in perceptron_line
    assert "| not masking (" in normalized_line
    assert f"## numpy {np.__version__}" in text
    assert "numpy:Crash (RuntimeError: does not build)." in text
    assert "so left out: absent." in text
    assert "Other" not in text


def a_run(*rows: Row, **what: Any) -> Run:
    versions = {"jax": what.pop("jax", "1.0"), "numpy": what.pop("numpy", "2.0")}
    nothing = {"command": "run", "date": "2026-01-02", "python": "3", "crashed": {}}
    numbers = {"cores": 2, "minutes": 3.4, "tolerance": 1e-5, "rates": (0.5, 1.0)}
    whole = {**nothing, **numbers, "absent": (), "versions": versions, **what}
    return Run(rows=rows, **whole)


def test_page_of_two_runs_has_the_differences() -> None:
    fine = {"errors": {"identity": 0.0}, "own_trace": "same", "numbers": 0}
    first = a_run(
        row(name="A", **fine),
        row(name="B", **{**fine, "own_trace": "sizes | attributes"}),
        row(name="C", **fine),
        row(name="D", **{**fine, "own_trace": "ValueError"}),
    )
    second = a_run(
        row(name="A", **fine),
        row(name="B", **{**fine, "half": 0.31, "errors": {"identity": 0.5}}),
        row(name="C", **{**fine, "numbers": 2}),
        jax="1.2",
        numpy="2.1",
        crashed={"numpy:D": "no"},
    )
    text = coverage_page.markdown([first, second])
    lines = {line[2]: line for line in text.splitlines() if line[:2] == "| "}
    assert lines["A"].endswith("| all 1 | same | 0 | same |  |")
    assert "| sizes / attributes | 0 |" in lines["B"]
    assert "| not identity (5.0e-01), 31.0%, own trace: same |" in lines["B"]
    assert "| same | 0 | 2 numbers |" in lines["C"]
    assert "| ValueError | 0 | not upgraded |" in lines["D"]
    assert "## numpy 2.0 (jax 1.0), 2.1 (jax 1.2)" in text
    assert "same for 2 of 4 networks (50%). Not comparable: the model" in text
    assert "an error for others (1); sizes | attributes (1)." in text
    assert "| `run` | 2026-01-02, Python 3, jax 1.0, 2 CPU cores, 3 minutes" in text
    assert "2 CPU cores, 3 minutes | 4 | 4 | 4 |" in text
    assert "2 CPU cores, 3 minutes | 4 | 2 | 2 |" in text  # one of four crashed


def test_warnings_of_numbers_are_counted_and_others_are_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stays(UserWarning):
        pass

    def warn(kind: type[Warning], module: str) -> None:
        warnings.warn_explicit("told", kind, f"{module}.py", 1, module=module)

    monkeypatch.setattr(coverage, "NUMBER_WARNING", Stays)
    with coverage.others_warnings_ignored(), coverage.numbers_told() as told:
        warn(Stays, "mslice_jax.numbers")
        warn(Stays, "somebody")
        warn(UserWarning, "somebody")
        with pytest.raises(UserWarning):
            warn(UserWarning, "mslice_jax.plan")
    assert [told.category for told in told] == [Stays, Stays]


def test_usual_reasons_are_left_out_of_the_table() -> None:
    reasons = ["input of the function"] * 9 + ["fft: whole", "top_k: x", "fft: whole"]
    assert coverage.unusual(reasons) == "fft: whole (2); top_k: x (1)"
