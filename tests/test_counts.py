"""Numbers that count follow the width, however a function spells them.

Each spelling runs both ways: with sizes from its arrays, and with fixed sizes, as a
module holds them in its attributes. The narrow network by hand is the same code, with
the narrow number of units, on weights that NumPy cut.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mslice_jax as ms
from mslice_jax.core.counts import NumberWarning
from mslice_jax.core.errors import PlanError
from tests.compiling import QUICK
from tests.spellings import FOLLOWS, MAY_BE_WHOLE, ONLY_OWN, REPORTED, STAYS

H, ROWS = 24, 4
CHECKS = (True, False)
WAYS = ("from arrays", "held fixed")
HELD = "the function holds it fixed"
TOLERANCE = {"16": 3e-2, "precision": 3e-2}  # by a part of the name: half precision


def weights(full, size=None):
    """Weights of a network with `full` hidden units, cut to the leading `size`."""
    rng = np.random.default_rng(0)
    w1 = rng.normal(size=(5, full)) / 2
    w2 = rng.normal(size=(full, 3)) / np.sqrt(full)
    s = 0.3 * rng.normal(size=full) + 0.5
    cut = {"w1": w1[:, :size], "w2": w2[:size], "s": s[:size]}
    return {name: w.astype(np.float32) for name, w in cut.items()}


def inputs(rows=ROWS):
    return np.random.default_rng(1).normal(size=(rows, 5)).astype(np.float32)


def network(spelling, n=None):
    """p, x -> y; the spelling is given `n`, or the number of units."""

    def apply(p, x):
        h = x @ p["w1"] + p["s"][None]
        y = spelling(h, p["s"], n or h.shape[-1])
        if y.ndim == 1:
            y = y[:, None]
        if y.shape != h.shape:
            y = h + y
        return y @ p["w2"]

    return apply


def upgraded(apply, p, x, rates, check):
    return ms.upgrade(apply, p, x, rates=(*rates, 1.0), check=check)


def value(apply):
    def run(p, x):
        return apply(p, x), None

    return run


def value_and_slopes(apply):
    def loss(p, x):
        y = apply(p, x)
        return jnp.sum(jnp.cos(y)), y

    def run(p, x):
        (_, y), slopes = jax.value_and_grad(loss, has_aux=True)(p, x)
        return y, slopes

    return run


def compare(net, x, by_hand, sizes, tolerance=2e-4, way="", what=value_and_slopes):
    """Value and gradient at each rate against `by_hand[rate]` on cut weights."""
    rates = [rate for rate in sizes if rate != 1.0]
    for rate in rates:
        kept = net.plan.mask(weights(sizes[1.0]), rate)["w1"][0]
        assert kept[: sizes[rate]].all() and kept.sum() == sizes[rate], "what narrows"
    cut = {rate: weights(sizes[1.0], sizes[rate]) for rate in rates}

    def both(net, cut, x):
        return {
            rate: (
                what(lambda p, x, r=rate: ms.slice_apply(p, x, r))(net, x),
                what(by_hand[rate])(cut[rate], x),
            )
            for rate in rates
        }

    results = jax.jit(both, compiler_options=QUICK)(net, cut, x)
    for rate, ((y, slopes), (y_by_hand, wanted)) in results.items():
        assert np.isfinite(y_by_hand).all()
        near(y, y_by_hand, tolerance, f"value at {rate} {way}")
        if wanted is None:
            continue
        largest = max(np.abs(w).max() for w in wanted.values())
        assert np.isfinite(largest)
        slopes = net.plan.slice(slopes.variables, rate)
        for name, slope in wanted.items():
            near(
                slopes[name],
                slope,
                tolerance,
                f"slope of {name}, {rate} {way}",
                largest,
            )


def near(actual, wanted, tolerance, what, scale=0.0):
    scale = max(scale, float(np.abs(wanted).max()), 1e-3)
    np.testing.assert_allclose(
        actual, wanted, rtol=0, atol=tolerance * scale, err_msg=what
    )


def follows(name, full, kept, slopes=True):
    """A spelling at `kept` (by rate) of `full` units: both ways, by analysis and proof.

    Without `slopes` its gradient is compared only where a derivative is custom.

    Most often all of them give one program, which is run once. A function that runs on
    narrow arrays and still has the full number there contradicts itself: it is reported
    where the analysis does not know whether the number follows.
    """
    spelling, seen = FOLLOWS[name], set()
    tolerance = next((t for part, t in TOLERANCE.items() if part in name), 2e-4)
    sizes = {**kept, 1.0: full}
    by_hand = {rate: network(spelling, size) for rate, size in sizes.items()}
    # Read alone, without a proof, both ways are the same equations.
    for way, check in (WAYS[0], True), (WAYS[1], True), (WAYS[1], False):
        fixed = way == "held fixed"
        if name in ONLY_OWN and fixed:
            continue
        apply = network(spelling, full if fixed else None)
        try:
            net = upgraded(apply, weights(full), inputs(), kept, check)
        except PlanError as error:
            if name in MAY_BE_WHOLE and "narrow" in str(error):
                return
            raise
        except NumberWarning as warning:
            if fixed and check and HELD in str(warning):
                continue
            raise
        programs = tuple(program(net, rate) for rate in kept)
        if programs not in seen:
            seen.add(programs)
            custom = any("custom_" in each for each in programs)
            what = value_and_slopes if slopes or custom else value
            compare(net, inputs(), by_hand, sizes, tolerance, f"{way}, {check}", what)


def program(net, rate):
    """A program as text; with the gradient where a derivative is custom."""

    def text(run):
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(run)(net, inputs())))

    def apply(p, x):
        return ms.slice_apply(p, x, rate)

    forward = text(apply)
    return text(value_and_slopes(apply)) if "custom_" in forward else forward


@pytest.mark.parametrize("name", FOLLOWS)
def test_a_number_that_counts_follows(name):
    """Where the value is right, so is the gradient: of every fourth, here."""
    follows(name, H, {0.25: 6}, slopes=list(FOLLOWS).index(name) % 4 == 0)


# 16 is a power of two and four, 66 is three times 22.
OTHER_WIDTHS = ((H, {0.5: 12}), (16, {0.5: 8}), (66, {1 / 3: 22}))


@pytest.mark.nightly
@pytest.mark.parametrize(("full", "kept"), OTHER_WIDTHS)
@pytest.mark.parametrize("name", FOLLOWS)
def test_the_width_changes_no_verdict(name, full, kept):
    follows(name, full, kept)


@pytest.mark.parametrize("at", range(0, len(FOLLOWS), 20))
def test_the_width_changes_no_verdict_of_every_twentieth(at):
    """The three widths in turn; all of them every night."""
    full, kept = OTHER_WIDTHS[at // 20 % len(OTHER_WIDTHS)]
    follows(list(FOLLOWS)[at], full, kept)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", STAYS)
def test_a_number_that_counts_nothing_stays(name, check):
    """No warning is raised: warnings are errors here."""
    apply = network(STAYS[name], H)
    net = upgraded(apply, weights(H), inputs(), (0.25,), check)
    compare(net, inputs(), {0.25: apply}, {0.25: 6, 1.0: H})


@pytest.mark.parametrize("name", REPORTED)
def test_a_number_that_may_be_a_count_is_a_warning(name):
    apply = network(REPORTED[name], H)
    with pytest.warns(NumberWarning, match=r"stays at stays.py:\d+"):
        net = upgraded(apply, weights(H), inputs(), (0.25,), False)
    compare(net, inputs(), {0.25: apply}, {0.25: 6, 1.0: H})
    assert "stays" in str(ms.report(net))
    with pytest.raises(PlanError):
        ms.upgrade(
            apply, weights(H), inputs(), rates=(0.25, 1.0), check=False, strict=True
        )


def test_a_scaled_embedding_is_a_warning():
    def apply(p, ids):
        return jnp.tanh(p["table"][ids] * math.sqrt(H)) @ p["w2"]

    rng = np.random.default_rng(0)
    p = {"table": rng.normal(size=(7, H)), "w2": rng.normal(size=(H, 3))}
    p = {name: w.astype(np.float32) for name, w in p.items()}
    ids = np.array([0, 3, 6])
    with pytest.warns(NumberWarning, match="test_counts.py"):
        net = ms.upgrade(apply, p, ids, rates=(0.25, 1.0), check=False)
    narrow = {"table": p["table"][:, :6], "w2": p["w2"][:6]}
    near(ms.slice_apply(net, ids, 0.25), apply(narrow, ids), 1e-5, "value")


@pytest.mark.parametrize("name", REPORTED)
def test_the_function_itself_decides(name):
    """A function that runs on narrow arrays computes its narrow numbers itself."""
    apply = network(REPORTED[name])
    net = upgraded(apply, weights(H), inputs(), (0.25,), True)
    compare(net, inputs(), {0.25: apply}, {0.25: 6, 1.0: H})


# Cases that only the function itself decides.
OWN = {
    "times_root": lambda h, s, n: h * math.sqrt(n),
    "variance_times": lambda h, s, n: h * jnp.var(h, -1, keepdims=True) * n,
    "bessel": lambda h, s, n: h * jnp.var(h, -1, keepdims=True) * (n / (n - 1)),
    "standard_error": lambda h, s, n: h / (jnp.std(h, -1, keepdims=True) / n**0.5),
    "gaussian": lambda h, s, n: (
        h
        * (-0.5 * (h * h).sum(-1, keepdims=True) - 0.5 * n * math.log(2 * math.pi))
        / n
    ),
    "cosine": lambda h, s, n: (
        h + n**0.5 * (h @ s[:, None]) / jnp.linalg.norm(h, axis=-1, keepdims=True)
    ),
    "third": lambda h, s, n: h.sum(-1, keepdims=True) / (n / 3),
    "larger_by_one": lambda h, s, n: h * (1 + 1 / n),
    "fourth_root": lambda h, s, n: h * n**0.25,
    "logarithm_beside": lambda h, s, n: jnp.tanh(h) * math.log(n),
    "sparsity": lambda h, s, n: (
        h
        * (n**0.5 - jnp.abs(h).sum(-1, keepdims=True) / jnp.linalg.norm(h))
        / (n**0.5 - 1)
    ),
    "remainder": lambda h, s, n: h * (n % 5 + 1),
    "line": lambda h, s, n: h * jnp.full((1, n), 3 / (n + 2)),
}


@pytest.mark.parametrize("name", OWN)
def test_numbers_that_only_the_function_decides(name):
    apply = network(OWN[name])
    net = upgraded(apply, weights(H), inputs(), (0.25, 0.5), True)
    compare(net, inputs(), {0.25: apply, 0.5: apply}, {0.25: 6, 0.5: 12, 1.0: H})


TOLD_APART = (
    "means-over", "means-times_inverse", "means-einsum", "means-batch_and_units",
    "means-mean_of_all", "norms-layer_sums", "norms-rms_einsum", "norms-instance_norm",
    "norms-rms_root_before", "logarithms-logmeanexp", "calls-scan_each_row",
    "derivatives-energy_by_hand", "derivatives-own_layer_norm",
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TOLD_APART)
def test_a_batch_as_large_as_the_width(name, way, check):
    """The number of rows is the same; the summed axis distinguishes them."""
    spelling, fixed = FOLLOWS[name], way == "held fixed"
    apply = network(spelling, H if fixed else None)
    by_hand = {0.25: network(spelling, 6 if fixed else None)}
    try:
        net = upgraded(apply, weights(H), inputs(H), (0.25,), check)
    except NumberWarning as warning:
        assert fixed and check and HELD in str(warning)
        return
    for rows in (H, 6, 5):
        compare(net, inputs(rows), by_hand, {0.25: 6, 1.0: H})


def test_a_number_of_two_meanings_is_a_warning():
    """The user has to say whether it counts rows or units."""
    apply = network(FOLLOWS["means-sum_of_sums"], H)
    with pytest.warns(NumberWarning, match="24"):
        upgraded(apply, weights(H), inputs(H), (0.25,), False)


@pytest.mark.parametrize("name", ("means-batch_then_units", "means-units_then_batch"))
def test_a_number_of_two_meanings(name):
    """Rows and units: both divide, so their order does not matter."""
    apply = network(FOLLOWS[name], H)
    by_hand = {0.25: network(FOLLOWS[name], 6)}
    net = upgraded(apply, weights(H), inputs(H), (0.25,), False)
    compare(net, inputs(H), by_hand, {0.25: 6, 1.0: H})


def test_a_sum_over_rows_of_the_same_number_stays():
    """Over rows alone it is no count of units."""
    apply = network(lambda h, s, n: h - h.sum(0, keepdims=True) / 24)
    net = upgraded(apply, weights(H), inputs(H), (0.25,), True)
    compare(net, inputs(H), {0.25: apply}, {0.25: 6, 1.0: H})


@pytest.mark.parametrize("full", [2, 4])
def test_a_share_that_is_kept_is_no_count(full):
    """Dropout keeps .5 of the entries; beside a width of 2 or 4 that is no finding."""

    def dropped(h, s, n):
        keep = jax.random.bernoulli(jax.random.key(0), 0.5, h.shape[:1])
        return jnp.where(keep[:, None], h / 0.5, 0.0) * 0.25

    apply = network(dropped)
    net = upgraded(apply, weights(full), inputs(), (0.5,), True)
    compare(net, inputs(), {0.5: apply}, {0.5: full // 2, 1.0: full})


@pytest.mark.parametrize("check", CHECKS)
def test_seven_times_a_softmax_of_eight(check):
    apply = network(lambda h, s, n: 7 * jax.nn.softmax(h, -1))
    net = upgraded(apply, weights(8), inputs(), (0.5,), check)
    compare(net, inputs(), {0.5: apply}, {0.5: 4, 1.0: 8})


@pytest.mark.parametrize("way", WAYS)
def test_the_last_of_the_sums_so_far(way):
    """Units in an order are fixed, and so is their number; others narrow."""

    def apply(p, x, n=None):
        h = x @ p["w1"] + p["s"][None]
        h = h - jnp.cumsum(h, -1)[:, -1:] / (n or h.shape[-1])
        return jnp.tanh(h @ p["k"]) @ p["w2"]

    p = weights(H)
    p["k"] = np.random.default_rng(2).normal(size=(H, H)).astype(np.float32) / 5
    n = H if way == "held fixed" else None
    net = ms.upgrade(lambda p, x: apply(p, x, n), p, inputs(), rates=(0.25, 1.0))
    small = ms.extract(net, 0.25).variables
    assert small["w1"].shape == (5, H) and small["k"].shape == (H, 6)
    narrow = {**p, "k": p["k"][:, :6], "w2": p["w2"][:6]}
    near(ms.slice_apply(net, inputs(), 0.25), apply(narrow, inputs()), 1e-5, "value")


# Kernels between layers: the fan-in narrows.


def kernel_network(kernel_of):
    def apply(p, x, n=None):
        h = jnp.tanh(x @ p["w1"] + p["s"][None])
        n = n or h.shape[-1]
        return jnp.sin(h @ kernel_of(p["k"], n)) @ p["w2"]

    return apply


def standardised(k, n):
    c = k - k.sum(0, keepdims=True) / n
    return c / (jnp.sqrt((c * c).sum(0, keepdims=True) / n) + 1e-3)


def of_unit_columns(k, n):
    return k / jnp.linalg.norm(k, axis=0, keepdims=True) * n**0.5


def quantised(k, n):
    """One bit, and a scale: the mean of the magnitudes."""
    scale = jnp.abs(k).sum(0, keepdims=True) / n
    return lax.stop_gradient(jnp.sign(k)) * scale


KERNELS = (standardised, of_unit_columns, quantised)


@pytest.mark.parametrize(
    ("way", "check"), [(WAYS[0], True), (WAYS[0], False), (WAYS[1], False)]
)
@pytest.mark.parametrize("kernel_of", KERNELS, ids=lambda f: f.__name__)
def test_means_over_the_inputs_of_a_kernel(kernel_of, way, check):
    apply, fixed = kernel_network(kernel_of), way == "held fixed"
    k = np.random.default_rng(2).normal(size=(H, 16)).astype(np.float32)
    w2 = np.random.default_rng(3).normal(size=(16, 3)).astype(np.float32)
    p = {**weights(H), "k": k, "w2": w2}
    narrow = {**weights(H, 6), "k": k[:6, :4], "w2": w2[:4]}
    x = inputs()
    net = upgraded(lambda p, x: apply(p, x, H if fixed else None), p, x, (0.25,), check)

    def both(net, narrow, x):
        ours = value_and_slopes(lambda p, x: ms.slice_apply(p, x, 0.25))(net, x)
        n = 6 if fixed else None
        return ours, value_and_slopes(lambda p, x: apply(p, x, n))(narrow, x)

    run = jax.jit(both, compiler_options=QUICK)
    (y, slopes), (y_by_hand, wanted) = run(net, narrow, x)
    near(y, y_by_hand, 1e-4, "value")
    slopes = net.plan.slice(slopes.variables, 0.25)
    largest = max(np.abs(slope).max() for slope in wanted.values())
    for name, slope in wanted.items():
        near(slopes[name], slope, 1e-4, f"slope of {name}", largest)
