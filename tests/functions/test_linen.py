"""Linen modules as functions: their batch norms, and calls that read a part of them.

Expected values are those of Flax's own layers in place of the batch norms.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mslice_jax as ms
from mslice_jax.adapters.linen.variables import misfits
from mslice_jax.core.call import Call

RATES = (0.5, 1.0)
X = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
KEY = jax.random.key(0)


def cut(params: Any, width: int, hidden: tuple[str, ...] = ("first",)) -> Any:
    """Narrow parameters: the last axis of `hidden` and norms, the first of "head"."""

    def leaf(path: Any, x: Any) -> Any:
        layer = path[0].key
        if layer in hidden or layer == "norm":
            return x[..., :width]
        return x[:width] if layer == "head" and x.ndim > 1 else x

    return jax.tree_util.tree_map_with_path(leaf, params)


class Net(nn.Module):
    """Two layers, a norm of one of three kinds, and calls around it."""

    width: int = 24
    kind: str = "batch"
    spectral: bool = False
    relu_inside: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        first = nn.Dense(self.width, name="first")
        if self.spectral:
            x = nn.SpectralNorm(first, name="spectral")(x, update_stats=train)
        else:
            x = first(x)
        if self.kind == "group":  # units of 3 channels, as in 8 groups of 24
            x = nn.GroupNorm(self.width // 3, epsilon=1e-5, name="norm")(x)
            x = nn.relu(x) if self.relu_inside else x
        else:
            kind = NormWithRelu if self.relu_inside else nn.BatchNorm
            settings = {"axis_name": self.axis_name, "name": "norm"}
            x = kind(use_running_average=not train, **settings)(x)
        return nn.Dense(3, name="head")(x)


class NormWithRelu(nn.BatchNorm):
    """A batch norm whose call extends that of Flax."""

    @nn.compact
    def __call__(self, x, use_running_average=None, **kwargs):
        return nn.relu(super().__call__(x, use_running_average, **kwargs))


class Own(nn.BatchNorm):
    """A batch norm whose call replaces that of Flax."""

    @nn.compact
    def __call__(self, x, use_running_average=None, **kwargs):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        return x - mean.value[None]


def perturbed(tree: Any) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + rng.uniform(0.1, 0.5, x.shape), tree)


def fresh(model: nn.Module) -> Any:
    """Variables with random weights and fresh statistics."""
    tree = model.init(KEY, X)
    return {**tree, "params": perturbed(tree["params"])}


# Group norms need no statistics.


@pytest.mark.parametrize("settings", ({}, {"axis_name": "devices"}), ids=str)
@pytest.mark.parametrize("seen", (True, False))
def test_training_needs_no_mutable(settings, seen):
    """Neither in `upgrade` nor after it; with `mutable` nothing is updated."""
    variables = fresh(Net(**settings))
    net = ms.upgrade(Net(**settings), variables, X, rates=RATES, train=seen)
    assert set(net.variables) == {"params"}
    for rate, width in ((0.5, 12), (1.0, 24)):
        params = {"params": cut(variables["params"], width)}
        expected = Net(width, kind="group").apply(params, X)
        got = ms.slice_apply(net, X, rate, train=True)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        pair = ms.slice_apply(net, X, rate, train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(pair[0], expected, atol=1e-5)
        assert pair[1] == {}


def test_statistics_of_other_modules_remain():
    variables = fresh(Net(spectral=True))
    net = ms.upgrade(Net(spectral=True), variables, X, rates=RATES)
    assert set(net.variables["batch_stats"]) == {"spectral"}
    call: Any = {"train": True, "mutable": ["batch_stats"]}
    expected, updates = Net(kind="group", spectral=True).apply(net.variables, X, **call)
    got, found = ms.slice_apply(net, X, 1.0, **call)
    np.testing.assert_allclose(got, expected, atol=1e-4)  # groups of three amplify
    assert set(found) == {"batch_stats"}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, dict(updates)
    )


def test_a_subclass_that_extends_a_batch_norm_runs():
    variables = fresh(Net(relu_inside=True))
    net = ms.upgrade(Net(relu_inside=True), variables, X, rates=RATES)
    assert set(net.variables) == {"params"}
    for rate, width in ((0.5, 12), (1.0, 24)):
        params = {"params": cut(variables["params"], width)}
        expected = Net(width, kind="group", relu_inside=True).apply(params, X)
        np.testing.assert_allclose(ms.slice_apply(net, X, rate), expected, atol=1e-5)


@pytest.mark.parametrize("lifted", (nn.remat, nn.jit), ids=("remat", "jit"))
def test_batch_norms_within_lifted_modules_become_group_norms(lifted):
    class Block(nn.Module):
        kind: Any = None

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(24, name="first")(x)
            if self.kind is None:
                return nn.GroupNorm(8, epsilon=1e-5, name="norm")(x)
            return self.kind(use_running_average=True, name="norm")(x)

    class Lifted(nn.Module):
        inside: bool

        @nn.compact
        def __call__(self, x):
            kind, block = nn.BatchNorm, lifted(Block)
            if self.inside:
                kind, block = lifted(nn.BatchNorm), Block
            return nn.Dense(3, name="head")(block(kind, name="block")(x))

    class Expected(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head")(Block(name="block")(x))

    for inside in (False, True):
        variables = fresh(Lifted(inside))
        Lifted(inside).apply(variables, X)  # Flax may cache it
        net = ms.upgrade(Lifted(inside), variables, X, rates=RATES)
        expected = Expected().apply({"params": variables["params"]}, X)
        np.testing.assert_allclose(ms.slice_apply(net, X, 1.0), expected, atol=1e-5)


def test_a_subclass_that_replaces_the_call_is_kept():
    class Left(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = Own(name="norm", use_bias=False, use_scale=False)(nn.Dense(16)(x))
            return nn.Dense(3)(nn.relu(x))

    variables = perturbed(Left().init(KEY, X))
    net = ms.upgrade(Left(), variables, X, rates=RATES)
    expected = Left().apply(variables, X)
    np.testing.assert_allclose(ms.slice_apply(net, X, 1.0), expected, atol=1e-5)
    norms = ms.report(net).to_dict()["norms"]
    assert norms["count"] == 0 and norms["left"] == ["norm"]
    assert "no batch norm of Flax that this call reaches" in str(ms.report(net))


def test_batch_norms_behind_the_bridge_are_named():
    class Inner(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(5, 16, rngs=rngs)
            self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
            self.last = nnx.Linear(16, 8, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x))))

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nnx.bridge.ToLinen(Inner, name="inner")(x)
            x = nn.BatchNorm(use_running_average=True, name="norm")(x)
            return nn.Dense(3)(x)

    variables = Outer().init(KEY, X)
    variables["batch_stats"]["inner"] = perturbed(variables["batch_stats"]["inner"])
    net = ms.upgrade(Outer(), variables, X, rates=RATES, norm="shared")
    expected = Outer().apply(variables, X)
    np.testing.assert_allclose(ms.slice_apply(net, X, 1.0), expected, atol=1e-5)
    norms = ms.report(net).to_dict()["norms"]
    assert (norms["count"], norms["left"]) == (1, ["inner/norm"])
    with pytest.warns(UserWarning, match="inner/norm stay what they are"):
        ms.calibrate(net, [X])


def test_a_norm_of_the_training_call_alone():
    """It becomes a group norm, whichever call `upgrade` traced."""

    class Only(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.GroupNorm(8)(nn.Dense(16)(x))
            if train:
                settings: Any = {"use_scale": False, "use_bias": False}
                x = nn.BatchNorm(use_running_average=False, **settings)(x)
            return nn.Dense(3)(x)

    variables = Only().init(KEY, X, train=True)
    evaluated = ms.upgrade(Only(), variables, X, rates=RATES)
    trained = ms.upgrade(Only(), variables, X, rates=RATES, train=True)
    assert ms.report(evaluated).to_dict()["norms"]["left"] == ["BatchNorm_0"]
    for rate in RATES:
        one, two = (
            ms.slice_apply(net, X, rate, train=True) for net in (evaluated, trained)
        )
        np.testing.assert_allclose(one, two, atol=1e-6)


# Calls that read a part of the variables.


class Two(nn.Module):
    """An encoder with a cache, and a decoder; `encode` runs the first of them."""

    def setup(self):
        self.first, self.head = nn.Dense(24), nn.Dense(7)
        self.decoder = [nn.Dense(10), nn.Dense(3)]
        self.seen = self.variable("cache", "seen", jnp.zeros, (24,))

    def __call__(self, x):
        return self.decoder[1](nn.relu(self.decoder[0](self.encode(x))))

    def encode(self, x):
        h = nn.relu(self.first(x))
        seen = self.seen.value
        if self.is_mutable_collection("cache"):
            self.seen.value = seen + h.sum(0)
        return self.head(h + seen[None])


def unread(net: ms.Sliceable) -> set[str]:
    fixed = ms.report(net).to_dict()["fixed"]
    return {f["axis"] for f in fixed if f["reason"] == "not read by the traced call"}


@pytest.mark.parametrize("method", ("encode", Two.encode), ids=("name", "function"))
@pytest.mark.parametrize("cached", (False, True))
def test_a_method_that_reads_a_part(method, cached):
    variables = Two().init(KEY, X)
    variables["cache"] = perturbed(variables["cache"])
    call: Any = {"method": method, **({"mutable": ["cache"]} if cached else {})}
    net = ms.upgrade(Two(), variables, X, rates=RATES, **call)
    layers = {f"params/decoder_{i}/{axis}" for i in (0, 1) for axis in AXES}
    assert unread(net) == layers
    params = jax.tree.map(np.asarray, variables["params"])
    seen = np.asarray(variables["cache"]["seen"])
    for rate, width in ((0.5, 12), (1.0, 24)):
        got = ms.slice_apply(net, X, rate, **call)
        first, head = params["first"], params["head"]
        h = X @ first["kernel"][:, :width] + first["bias"][:width]
        h = np.maximum(h, 0)
        expected = (h + seen[:width]) @ head["kernel"][:width] + head["bias"]
        if not cached:
            np.testing.assert_allclose(got, expected, atol=1e-5)
            continue
        np.testing.assert_allclose(got[0], expected, atol=1e-5)
        moved = got[1]["cache"]["seen"]
        wanted = seen.copy()
        wanted[:width] += h.sum(0)
        np.testing.assert_allclose(moved, wanted, atol=1e-4)


AXES = ("kernel:0", "kernel:1", "bias:0")


def test_a_method_whose_own_variables_do_not_fit():
    variables = Two().init(KEY, X)
    variables["params"]["first"]["kernel"] = jnp.ones((5, 23))
    with pytest.raises(ValueError, match=r"first/kernel: expected \(5, 24\)"):
        ms.upgrade(Two(), variables, X, rates=RATES, method="encode")


class Branches(nn.Module):
    """The arguments choose which layers run besides the main ones."""

    norm: bool = False

    @nn.compact
    def __call__(self, x, aux=True, extra=None):
        h = nn.Dense(24, name="first")(x)
        if self.norm:
            h = nn.BatchNorm(use_running_average=True, name="norm")(h)
        y = nn.Dense(3, name="head")(nn.relu(h))
        if aux:
            y = y + nn.Dense(1, name="aux")(x)
        return y if extra is None else y + nn.Dense(1, name="extra")(extra)


@pytest.mark.parametrize("left_out", ("aux", "extra", "both"))
def test_arguments_that_leave_a_part_out(left_out):
    variables = Branches().init(KEY, X, True, X)
    call: Any = {"aux": left_out == "extra"}
    inputs = (X,) if left_out != "aux" else (X, False, X)
    call = {} if left_out == "aux" else call
    net = ms.upgrade(Branches(), variables, *inputs, rates=RATES, **call)
    got = ms.slice_apply(net, inputs[0], 1.0, *inputs[1:], **call)
    expected = Branches().apply(variables, *inputs, **call)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    names = ("aux", "extra") if left_out == "both" else (left_out,)
    assert {axis.split("/")[1] for axis in unread(net)} == set(names)


@pytest.mark.parametrize("norm", ("group", "switchable", "shared"))
def test_batch_norms_beside_a_part_that_is_left_out(norm):
    """Variables are compared as given, not as the strategy changed them."""
    variables = Branches(norm=True).init(KEY, X)
    model = Branches(norm=True)
    net = ms.upgrade(model, variables, X, rates=RATES, norm=norm, aux=False)
    assert {axis for axis in unread(net) if "aux" in axis}
    assert ms.slice_apply(net, X, 0.5, aux=False).shape == (6, 3)


def test_a_module_of_setup_that_no_call_uses():
    class Declared(nn.Module):
        def setup(self):
            self.first, self.head, self.spare = nn.Dense(16), nn.Dense(3), nn.Dense(9)

        def __call__(self, x):
            return self.head(nn.relu(self.first(x)))

        def everything(self, x):
            return self(x), self.spare(x)

    variables = Declared().init(KEY, X, method="everything")
    net = ms.upgrade(Declared(), variables, X, rates=RATES)
    assert unread(net) == {f"params/spare/{axis}" for axis in AXES}
    variables["params"]["stray"] = variables["params"]["spare"]
    with pytest.raises(ValueError, match="stray/bias: expected nothing"):
        ms.upgrade(Declared(), variables, X, rates=RATES)


class Parts(nn.Module):
    """Layers of `setup`, of which a call reads some; one layer more if it is asked."""

    def setup(self):
        self.first = nn.Dense(4)
        self.heads = [nn.Dense(3), nn.Dense(2), nn.Dense(1)]
        self.spare = nn.Sequential([nn.Dense(7)])

    @nn.compact
    def __call__(self, x, deep=False):
        x = self.first(x)
        x = nn.Dense(4, name="deep")(x) if deep else x
        return self.heads[0](x)


READ = {
    "params/first/kernel": (5, 4), "params/first/bias": (4,),
    "params/heads_0/kernel": (4, 3), "params/heads_0/bias": (3,),
}  # fmt: skip
# What is changed, and the lines that tell of it.
MISFITS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "another shape": (
        {"params/first/bias": (5,)}, ["first/bias: expected (4,), got (5,)"]
    ),
    "nothing there": (
        {"params/first/bias": None}, ["first/bias: expected (4,), got nothing"]
    ),
    "too many": (
        {"params/other/w": (3,)}, ["other/w: expected nothing, got (3,)"]
    ),
    "too many in a layer": (
        {"params/first/w": (3,)}, ["first/w: expected nothing, got (3,)"]
    ),
    "another list": (
        {"params/first_1/w": (3,)}, ["first_1/w: expected nothing, got (3,)"]
    ),
    "two": (
        {"params/other/w": (3,), "params/first/bias": (5,)},
        ["first/bias: expected (4,), got (5,)", "other/w: expected nothing, got (3,)"],
    ),
    "one that is not read": ({"params/spare/layers_0/kernel": (4, 7)}, []),
    "of a list": ({"params/heads_1/bias": (2,), "params/heads_2/kernel": (4, 1)}, []),
    "beyond a list": (
        {"params/heads_3/bias": (2,)}, ["heads_3/bias: expected nothing, got (2,)"]
    ),
    "of another call": ({"params/deep/kernel": (4, 4), "params/deep/bias": (4,)}, []),
    "of another collection": ({"cache/seen/x": (4,)}, []),
    "statistics": (
        {"batch_stats/norm/mean": (4,)},
        ["batch_stats/norm/mean: expected nothing, got (4,)"],
    ),
}  # fmt: skip


def tree(shapes: dict[str, Any]) -> Any:
    variables: Any = {}
    for name, shape in shapes.items():
        *path, leaf = name.split("/")
        branch = variables
        for part in path:
            branch = branch.setdefault(part, {})
        branch[leaf] = np.zeros(shape, np.float32)
    return variables


def found_misfits(model: Any, variables: Any, *args: Any, **kwargs: Any) -> list[str]:
    call, arrays = Call.split(args, kwargs)
    found = misfits(model, variables, call, arrays)
    assert all(line.startswith("  ") for line in found)
    return [line[2:].removeprefix("params/") for line in found]


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit(name):
    changed, expected = MISFITS[name]
    shapes = {k: v for k, v in {**READ, **changed}.items() if v is not None}
    assert found_misfits(Parts(), tree(shapes), X) == expected
    if name == "of another call":  # which reads it
        assert found_misfits(Parts(), tree(shapes), X, deep=True) == []
        assert found_misfits(Parts(), tree(shapes), X, True) == []
        missing = found_misfits(Parts(), tree(READ), X, deep=True)
        assert [line.partition(":")[0] for line in missing] == [
            "deep/bias", "deep/kernel"
        ]  # fmt: skip


def test_where_nothing_can_be_said():
    stray = tree({**READ, "params/other/w": (3,)})
    assert found_misfits(Parts(), stray, X, method="__call__") == []
    assert found_misfits(Parts(), stray) == []  # Python says that x is missing
    assert found_misfits(Parts(), stray, X[:, None], X, X, X, X) == []
    assert found_misfits(Parts(), [], X) == []
    assert found_misfits(lambda p, x: x, stray, X) == []
    assert found_misfits(Parts(), stray, X, rngs=KEY) != []
    assert found_misfits(Parts(), stray, X, mutable=["cache"]) != []
    # Something in place of None could make a call read more.
    shapes = {f"params/first/{k}": v for k, v in (("kernel", (5, 24)), ("bias", (24,)))}
    shapes |= {f"params/head/{k}": v for k, v in (("kernel", (24, 3)), ("bias", (3,)))}
    stray = tree({**shapes, "params/other/w": (3,)})
    assert found_misfits(Branches(), stray, X, aux=False) == []
    assert found_misfits(Branches(), stray, X, aux=False, extra=X) != []


def test_a_norm_without_its_scale():
    model = Net()
    variables = fresh(model)
    del variables["params"]["norm"]["scale"]
    with pytest.raises(ValueError, match="params/norm/scale"):
        ms.upgrade(model, variables, X, rates=RATES)


def test_what_a_call_takes():
    """The keywords of the method that runs, and those of `Module.apply`."""
    function = ms.upgrade(Two(), Two().init(KEY, X), X, rates=RATES).definition.function
    other = ms.upgrade(Net(), fresh(Net()), X, rates=RATES).definition.function
    names = {"mutable", "rngs", "train", "x", "method", "other"}
    for called, kwargs, takes, inputs in (
        (other, {}, {"mutable", "rngs", "train", "x"}, ["x", "train"]),
        (function, {}, {"mutable", "rngs", "x"}, ["x"]),
        (function, {"method": "encode"}, {"mutable", "rngs", "x"}, ["x"]),
        (function, {"method": Two.encode}, {"mutable", "rngs", "x"}, ["x"]),
    ):
        assert {name for name in names if called.takes(name, kwargs)} == takes
        assert called.positional(kwargs) == inputs
        assert not called.takes_any(kwargs)
