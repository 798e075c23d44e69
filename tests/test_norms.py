"""Batch norms under the three strategies, and the statistics of `calibrate`."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms
from mslice_jax.adapters.norms import NormWarning, choose, group_count, group_norm

RATES = (0.25, 0.5, 1.0)


class Net(nn.Module):
    """Two layers, a batch norm, and a head."""

    features: int = 16

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(self.features, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.75, name="norm")(x)
        return nn.Dense(3, name="head")(nn.relu(x))


def inputs(seed=0, batch=8):
    return np.random.default_rng(seed).normal(size=(batch, 5)).astype(np.float32)


def variables():
    tree = Net().init(jax.random.key(0), inputs())
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda x: np.asarray(x) + rng.uniform(0.1, 0.5, x.shape).astype(np.float32),
        tree,
    )


def upgraded(norm, **kwargs):
    """The network with trained statistics and a strategy."""
    asked = norm == "group"
    warned = pytest.warns(NormWarning) if asked else contextlib.nullcontext()
    with warned:
        return ms.upgrade(
            Net(), variables(), inputs(), rates=RATES, norm=norm, **kwargs
        )


def hidden(tree, x, width):
    """The first layer of the narrow network, in NumPy."""
    first = tree["params"]["first"]
    return (
        x @ np.asarray(first["kernel"])[:, :width] + np.asarray(first["bias"])[:width]
    )


def head(tree, x, width):
    layer = tree["params"]["head"]
    return np.maximum(x, 0) @ np.asarray(layer["kernel"])[:width] + layer["bias"]


# The choice of the strategy.


class Two(nn.Module):
    """Two layers with a norm after each, and a head."""

    @nn.compact
    def __call__(self, x, *, train=False):
        for i in range(2):
            x = nn.Dense(16, name=f"layer{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name=f"bn{i}")(x))
        return nn.Dense(3, name="head")(x)


def stats(tree, **changes):
    """The variables with other statistics: of one norm, `bn1_var=...`, other values."""
    changed = jax.tree.map(lambda x: x, tree)
    for name, value in changes.items():
        norm, leaf = name.split("_")
        old = changed["batch_stats"][norm][leaf]
        changed["batch_stats"][norm][leaf] = jnp.full_like(old, value)
    return changed


def norms_of(net):
    return ms.report(net).to_dict()["norms"]


def test_fresh_norms_become_group_norms():
    """For any scale and bias."""
    tree = stats(Two().init(jax.random.key(0), inputs()))
    tree["params"] = jax.tree.map(lambda x: x + 0.3, tree["params"])
    net = ms.upgrade(Two(), tree, inputs(), rates=RATES)
    assert set(net.variables) == {"params"}
    found = norms_of(net)
    assert (found["count"], found["strategy"]) == (2, "group")
    assert "fresh" in found["why"] and found["left"] == []
    assert "batch norms (2) are group norms: their running statistics are fresh" in str(
        ms.report(net)
    )


@pytest.mark.parametrize("change", ({"bn0_mean": 0.1}, {"bn1_var": 0.9}), ids=str)
def test_trained_norms_are_shared(change):
    """Rate 1 equals Flax; others use the leading part of the statistics."""
    tree = stats(Two().init(jax.random.key(0), inputs()), **change)
    net, x = ms.upgrade(Two(), tree, inputs(), rates=RATES), inputs()
    np.testing.assert_array_equal(
        ms.slice_apply(net, x, 1.0), jax.jit(Two().apply)(tree, x)
    )
    h, width = x, 8
    for i in range(2):
        layer = tree["params"][f"layer{i}"]
        mean, var = (np.asarray(tree["batch_stats"][f"bn{i}"][k]) for k in MOMENTS)
        h = h @ np.asarray(layer["kernel"])[: h.shape[1] if i else None, :width]
        h = np.maximum((h - mean[:width]) / np.sqrt(var[:width] + 1e-5), 0)
    expected = h @ np.asarray(tree["params"]["head"]["kernel"])[:width]
    np.testing.assert_allclose(ms.slice_apply(net, x, 0.5), expected, atol=1e-5)
    found = norms_of(net)
    assert (found["count"], found["strategy"]) == (2, "shared")
    assert "trained" in found["why"] and "rate 1" in found["why"]
    assert "calibrate(net, batches)" in str(ms.report(net))
    measured = ms.calibrate(net, [x])
    assert "measured for each" in norms_of(measured)["why"]
    assert "calibrate" not in str(ms.report(measured))


MOMENTS = ("mean", "var")


def test_values_that_are_not_at_hand_make_group_norms():
    tree = stats(Two().init(jax.random.key(0), inputs()), bn0_mean=0.1)
    types = jax.eval_shape(lambda: tree)
    net = ms.upgrade(Two(), types, inputs(), rates=RATES)
    assert norms_of(net)["strategy"] == "group"
    assert "not at hand" in norms_of(net)["why"]

    @jax.jit
    def traced(tree):
        net = ms.upgrade(Two(), tree, inputs(), rates=RATES)
        assert norms_of(net)["strategy"] == "group"
        return ms.slice_apply(net, inputs(), 0.5)

    assert traced(tree).shape == (8, 3)
    # A trace that closes over the values has them at hand.
    found = []
    jax.jit(lambda: found.append(ms.upgrade(Two(), tree, inputs(), rates=RATES)))()
    assert norms_of(found[0])["strategy"] == "shared"


FRESH = {"mean": np.zeros(3), "var": np.ones(3)}
TRAINED = {"mean": np.zeros(3), "var": np.array([1, 1, 2])}
TYPES = jax.eval_shape(lambda: FRESH)
# What is asked for, statistics, why it cannot be a group norm -> strategy, reason.
CHOICES = {
    "fresh": (None, [FRESH], None, "group", "running statistics are fresh"),
    "trained": (None, [TRAINED], None, "shared", "are trained, so rate 1 is kept"),
    "one trained": (None, [FRESH, TRAINED], None, "shared", "are trained"),
    "a mean": (None, [{**FRESH, "mean": np.ones(3)}], None, "shared", "are trained"),
    "types": (None, [FRESH, TYPES], None, "group", "are not at hand"),
    "types, and one trained": (None, [TYPES, TRAINED], None, "shared", "are trained"),
    "of one the variance": (
        None, [{**FRESH, "mean": TYPES["mean"]}], None, "group", "are not at hand"
    ),
    "a trained variance": (
        None, [{**TRAINED, "mean": TYPES["mean"]}], None, "shared", "are trained"
    ),
    "without": (None, [FRESH, {}], None, "shared", "lack running statistics"),
    "no norms": (None, [], None, "group", "running statistics are fresh"),
    "unfit": (None, [FRESH], "n takes a mask", "shared", "n takes a mask"),
    "asked": ("switchable", [TRAINED], None, "switchable", "as asked"),
    "asked, unfit": ("group", [FRESH], "n takes a mask", "group", "as asked"),
    "asked, of types": ("group", [TYPES], None, "group", "as asked"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_the_strategy_that_is_chosen(name):
    asked, statistics, unfit, expected, words = CHOICES[name]
    strategy, why = choose(asked, statistics, unfit)
    assert strategy.name == expected and words in why


def test_trained_norms_that_are_to_become_group_norms():
    with pytest.warns(ms.NormWarning, match="something else than before"):
        strategy, why = choose("group", [FRESH, TRAINED])
    assert strategy.name == "group" and "so rate 1 changes" in why


def test_an_explicit_strategy_is_used_with_one_warning():
    tree = stats(Two().init(jax.random.key(0), inputs()), bn0_mean=0.1)
    with pytest.warns(UserWarning) as warned:
        net = ms.upgrade(Two(), tree, inputs(), rates=RATES, norm="group")
    (one,) = warned
    assert one.filename == __file__
    assert "rate 1" in str(one.message) and "norm='shared'" in str(one.message)
    assert set(net.variables) == {"params"}
    assert "rate 1 changes" in norms_of(net)["why"]
    # The others keep rate 1, and fresh statistics lose nothing.
    for norm in ("shared", "switchable"):
        net = ms.upgrade(Two(), tree, inputs(), rates=RATES, norm=norm)
        assert (norms_of(net)["strategy"], norms_of(net)["why"]) == (norm, "as asked")
    fresh = Two().init(jax.random.key(0), inputs())
    net = ms.upgrade(Two(), fresh, inputs(), rates=RATES, norm="group")
    assert norms_of(net)["why"] == "as asked"


def test_a_network_without_batch_norms_gives_no_warning():
    model = nn.Sequential([nn.Dense(16), nn.LayerNorm(), nn.Dense(2)])
    tree = model.init(jax.random.key(0), inputs())
    for norm in (None, "group", "shared"):
        net = ms.upgrade(model, tree, inputs(), rates=RATES, norm=norm)
        assert norms_of(net) is None
        assert "norm" not in str(ms.report(net))


@pytest.mark.parametrize("rate", RATES)
def test_group_norm(rate):
    """8 groups of 2, cut at the rate, normalised in NumPy."""
    net, width = upgraded("group"), round(16 * rate)
    assert set(net.variables) == {"params"}
    tree, x = variables(), inputs()
    h = hidden(tree, x, width).reshape(8, width // 2, 2)
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    norm = tree["params"]["norm"]
    h = h.reshape(8, width) * norm["scale"][:width] + norm["bias"][:width]
    expected = head(tree, h, width)
    np.testing.assert_allclose(ms.slice_apply(net, x, rate), expected, atol=2e-5)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "two_passes"])
@pytest.mark.parametrize(
    ("shape", "scale", "bias", "dtype"),
    [
        ((4, 5, 6, 12), True, True, None),
        ((4, 5, 6, 12), False, True, None),
        ((4, 12), True, False, None),
        pytest.param((2, 3, 4, 5, 12), False, False, None, marks=pytest.mark.nightly),
        ((4, 5, 6, 12), True, True, jnp.bfloat16),
        pytest.param((0, 5, 6, 12), True, True, None, marks=pytest.mark.nightly),
    ],
    ids=["images", "no_scale", "vectors", "volumes", "bfloat16", "empty"],
)
def test_group_norm_is_that_of_flax(shape, scale, bias, dtype, fast):
    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.normal(size=shape).astype(np.float32)
    names = ["scale"] * scale + ["bias"] * bias
    params = {name: rng.normal(size=12).astype(np.float32) for name in names}
    flax = nn.GroupNorm(
        4,
        epsilon=1e-3,
        dtype=dtype,
        use_scale=scale,
        use_bias=bias,
        use_fast_variance=fast,
    )

    def ours(params, x):
        return group_norm(
            x,
            params.get("scale"),
            params.get("bias"),
            groups=4,
            epsilon=1e-3,
            fast_variance=fast,
            dtype=dtype,
        )

    def theirs(params, x):
        return flax.apply({"params": params}, x)

    found, expected = ours(params, x), theirs(params, x)
    assert found.dtype == expected.dtype
    tolerance = 2e-5 if dtype is None else 2e-2  # bfloat16 has eight bits
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    weights = rng.normal(size=shape).astype(np.float32)
    slopes = [
        jax.grad(lambda p, x, f=f: (f(p, x) * weights).sum(), argnums=(0, 1))(params, x)
        for f in (ours, theirs)
    ]
    for a, b in zip(*map(jax.tree.leaves, slopes), strict=True):
        np.testing.assert_allclose(a, b, rtol=10 * tolerance, atol=10 * tolerance)


def test_group_norm_along_another_axis():
    """A batch norm over axis 1 (channels first) is the same network transposed."""

    class First(nn.Module):
        axis: int

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(16)(x)
            x = jnp.moveaxis(x, -1, self.axis)
            x = nn.BatchNorm(use_running_average=True, axis=self.axis)(x)
            return nn.Dense(2)(jnp.moveaxis(x, self.axis, -1))

    x = inputs().reshape(2, 4, 5)
    tree = First(-1).init(jax.random.key(0), x)
    outs = [
        ms.slice_apply(ms.upgrade(First(axis), tree, x, rates=RATES), x, 0.5)
        for axis in (1, -1)
    ]
    np.testing.assert_allclose(*outs, atol=1e-6)


def test_switchable_norms_are_independent():
    """Changing the set of one rate changes that rate alone."""
    net, x = upgraded("switchable"), inputs()
    before = {rate: ms.slice_apply(net, x, rate) for rate in RATES}
    tree = jax.tree.map(lambda a: a, net.variables)
    tree["params"]["norm"]["0.5"]["scale"] += 1
    changed = net.replace(tree)
    for rate in RATES:
        same = np.array_equal(before[rate], ms.slice_apply(changed, x, rate))
        assert same == (rate != 0.5)


def test_switchable_statistics_of_one_rate_are_updated():
    net, x = upgraded("switchable"), inputs()
    _, updates = ms.slice_apply(net, x, 0.5, train=True, mutable=["batch_stats"])
    before = net.variables["batch_stats"]["norm"]
    after = updates["batch_stats"]["norm"]
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, before)
    expected = hidden(variables(), x, 8).mean(0)
    old = np.asarray(before["0.5"]["mean"])
    np.testing.assert_allclose(
        after["0.5"]["mean"][:8], 0.75 * old[:8] + 0.25 * expected, atol=1e-6
    )
    np.testing.assert_array_equal(after["0.5"]["mean"][8:], old[8:])
    for rate in ("0.25", "1.0"):
        np.testing.assert_array_equal(after[rate]["mean"], before[rate]["mean"])


def test_shared_statistics_are_updated_in_the_leading_part():
    net, x = upgraded("shared"), inputs()
    _, updates = jax.jit(
        lambda net: ms.slice_apply(net, x, 0.25, train=True, mutable=["batch_stats"])
    )(net)
    old = np.asarray(net.variables["batch_stats"]["norm"]["mean"])
    new = np.asarray(updates["batch_stats"]["norm"]["mean"])
    expected = hidden(variables(), x, 4).mean(0)
    np.testing.assert_allclose(new[:4], 0.75 * old[:4] + 0.25 * expected, atol=1e-6)
    np.testing.assert_array_equal(new[4:], old[4:])


def test_units_in_another_order_need_another_calibration():
    net = upgraded("shared")
    ms.reorder(net)  # before calibration there is nothing to warn of
    with pytest.warns(ms.NormWarning, match="Calibrate again"):
        ms.reorder(ms.calibrate(net, [inputs(1)]))


def test_calibrate():
    """Statistics over all batches as over one, for each rate separately."""
    net = upgraded("shared")
    batches = [inputs(1), inputs(2, batch=4), inputs(3)]
    calibrated = ms.calibrate(net, batches)
    everything = np.concatenate(batches)
    for rate, width in zip(RATES, (4, 8, 16), strict=True):
        stats = calibrated.variables["batch_stats"]["norm"][str(rate)]
        h = hidden(variables(), everything, width)
        np.testing.assert_allclose(stats["mean"][:width], h.mean(0), atol=1e-5)
        np.testing.assert_allclose(stats["var"][:width], h.var(0), rtol=1e-4)
        norm = variables()["params"]["norm"]
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
        h = h * norm["scale"][:width] + norm["bias"][:width]
        got = ms.slice_apply(calibrated, everything, rate)
        np.testing.assert_allclose(got, head(variables(), h, width), atol=1e-4)
    # The weights are unchanged, and a second call changes nothing.
    assert calibrated.variables["params"] is net.variables["params"]
    again = ms.calibrate(calibrated, batches)
    for a, b in zip(
        jax.tree.leaves(calibrated.variables),
        jax.tree.leaves(again.variables),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_calibrating_again_compiles_nothing(compilations):
    net = upgraded("shared")
    ms.slice_apply(ms.calibrate(net, [inputs()]), inputs(), 0.5)
    other = jax.tree.map(lambda a: 2 * a, net)
    with compilations() as names:
        ms.slice_apply(ms.calibrate(other, [inputs()]), inputs(), 0.5)
    assert not [name for name in names if "run" in name]


def test_errors_of_calibrate():
    with pytest.raises(ValueError, match="norm='shared'"):
        ms.calibrate(upgraded("group"), [inputs()])
    with pytest.raises(ValueError, match="at least one batch"):
        ms.calibrate(upgraded("shared"), [])
    with pytest.raises(ValueError, match="rate 0.5"):
        ms.calibrate(ms.extract(upgraded("shared"), 0.5), [inputs()])


def test_extract_leaves_out_the_norms_of_wider_rates():
    small = ms.extract(upgraded("switchable"), 0.5)
    assert set(small.variables["params"]["norm"]) == {"0.25", "0.5"}
    assert small.variables["params"]["norm"]["0.25"]["scale"].shape == (8,)


def test_unknown_strategy():
    with pytest.raises(ValueError, match="group, switchable, shared"):
        upgraded("batch")


@pytest.mark.parametrize(
    ("features", "groups", "count"), [(64, 8, 8), (12, 8, 6), (13, 8, 1), (4, 8, 4)]
)
def test_group_count(features, groups, count):
    assert group_count(features, groups) == count


class Masked(nn.Module):
    """A batch norm over two axes, or under a mask, given by keyword."""

    axis: int | tuple[int, ...] = -1

    @nn.compact
    def __call__(self, x, mask=None, train=False):
        norm = nn.BatchNorm(use_running_average=not train, axis=self.axis)
        x = nn.Dense(8)(x)
        return nn.Dense(3)(norm(x=x, mask=mask))


def test_calibrate_measures_the_unmasked_part():
    x = jax.random.normal(jax.random.key(0), (6, 5))
    mask = jnp.arange(6)[:, None] < 2
    variables = Masked().init(jax.random.key(1), x)
    net = ms.upgrade(Masked(), variables, x, rates=(0.5, 1), mask=mask)
    assert norms_of(net)["strategy"] == "shared"  # a group norm takes no mask
    assert norms_of(net)["why"] == "BatchNorm_0 takes a mask"
    with pytest.raises(ValueError, match="one axis without a mask, but BatchNorm_0"):
        ms.upgrade(Masked(), variables, x, rates=(0.5, 1), norm="group", mask=mask)
    net = ms.calibrate(net, [x], mask=mask)
    dense = jax.tree.map(np.asarray, variables["params"]["Dense_0"])
    hidden = np.asarray(x[:2]) @ dense["kernel"] + dense["bias"]
    found = net.variables["batch_stats"]["BatchNorm_0"]["1.0"]
    np.testing.assert_allclose(found["mean"], hidden.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"], hidden.var(0), rtol=1e-4, atol=1e-6)


def test_calibrate_a_norm_over_two_axes():
    model = Masked(axis=(1, 2))
    x = jax.random.normal(jax.random.key(0), (6, 4, 5))
    net = ms.upgrade(model, model.init(jax.random.key(1), x), x, rates=(0.5, 1))
    assert norms_of(net)["why"] == "BatchNorm_0 is over the axes (1, 2)"
    found = ms.calibrate(net, [x]).variables["batch_stats"]["BatchNorm_0"]["1.0"]
    dense = jax.tree.map(np.asarray, net.variables["params"]["Dense_0"])
    hidden = np.asarray(x) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(found["mean"], hidden.mean(0), rtol=1e-5, atol=1e-6)


def test_a_norm_called_by_keyword_becomes_a_group_norm():
    x = jax.random.normal(jax.random.key(0), (6, 5))
    net = ms.upgrade(Masked(), Masked().init(jax.random.key(1), x), x, rates=(0.5, 1))
    assert ms.slice_apply(net, x, 0.5).shape == (6, 3)
