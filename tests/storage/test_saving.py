"""A network in a file: all of it with the model, its programs without."""

import collections
import json
import os
import subprocess
import sys
import textwrap
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mslice_jax as ms
from mslice_jax.storage import archive

RATES = (0.25, 0.5, 1.0)
X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def weights(seed=1, **shapes):
    r = np.random.default_rng(seed)
    return {n: r.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def mlp(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


P = weights(a=(6, 16), b=(16, 3))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        return nn.Dense(3)(nn.relu(x))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(6, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(nnx.relu(self.norm(self.a(x)))))


def linen(norm, trained=False):
    model = Normed()
    variables = jax.tree.map(jnp.asarray, model.init(jax.random.key(0), X))
    if trained:
        variables["batch_stats"] = jax.tree.map(
            lambda x: x + 0.25, variables["batch_stats"]
        )
    return model, ms.upgrade(model, variables, X, rates=RATES, norm=norm)


def nnx_model(norm=None):
    model = Model(nnx.Rngs(0))
    model.eval()
    return model, ms.upgrade(model, X, rates=RATES, norm=norm)


def function(**settings):
    return mlp, ms.upgrade(mlp, P, X, rates=RATES, **settings)


def two_groups():
    def net(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]

    p = weights(a=(6, 16), b=(16, 8), c=(8, 3))
    return net, ms.upgrade(net, p, X, rates=RATES)


def reordered(model, net):
    return model, ms.reorder(net)


def calibrated(model, net):
    return model, ms.calibrate(net, [X])


def extracted(model, net, rate=0.5):
    return model, ms.extract(net, rate)


MADE = {
    "function": function,
    "settings": lambda: function(multiple_of=4, min_width=4, shards=2, groups=4),
    "reordered": lambda: reordered(*function()),
    "extracted": lambda: extracted(*reordered(*function())),
    "mixed": lambda: extracted(*two_groups(), rate={"a:1": 0.25, "b:1": 0.5}),
    "linen group": lambda: linen("group"),
    "linen switchable": lambda: linen("switchable"),
    "linen switchable extracted": lambda: extracted(*linen("switchable")),
    "linen shared": lambda: linen(None, trained=True),
    "linen calibrated": lambda: calibrated(*linen("shared")),
    "linen calibrated extracted": lambda: extracted(*calibrated(*linen("shared"))),
    "nnx group": nnx_model,
    "nnx switchable": lambda: nnx_model("switchable"),
    "nnx extracted": lambda: extracted(*nnx_model("shared")),
}
# Of each kind one, with programs of its own, which take a second or two to make.
QUICK = ("function", "mixed", "linen calibrated", "nnx extracted")


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert getattr(x, "weak_type", False) == getattr(y, "weak_type", False)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("name", MADE)
def test_the_whole_network_comes_back(name, tmp_path):
    model, net = MADE[name]()
    path = ms.save(net, tmp_path / "net", programs=False)
    again = ms.load(path, model=model)
    same(again.variables, net.variables)
    assert again.part == net.part
    assert again.definition == net.definition
    assert hash(again.definition) == hash(net.definition)
    assert again.definition.agreement == net.definition.agreement
    assert ms.report(again).to_dict() == ms.report(net).to_dict()
    for rate in net.rates:
        got = ms.slice_apply(again, X, rate)
        np.testing.assert_array_equal(got, ms.slice_apply(net, X, rate))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.nightly])
        for name in MADE
    ],
)
def test_without_the_model_it_computes_the_same(name, tmp_path):
    _, net = MADE[name]()
    alone = ms.load(ms.save(net, tmp_path / "net"))
    assert alone.rates == net.rates
    assert alone.rate == net.rate
    for rate in {*net.rates, net.rate}:
        for batch in (X, X[:1], np.concatenate([X, X])):
            got = ms.slice_apply(alone, batch, rate)
            np.testing.assert_array_equal(got, ms.slice_apply(net, batch, rate))


def test_it_runs_in_a_process_without_the_model(tmp_path):
    """The other process has the file alone; expected values by NumPy."""
    _, net = function()
    path = ms.save(net, tmp_path / "net")
    script = f"""
        import numpy as np, mslice_jax as ms
        net = ms.load({str(path)!r})
        y = ms.slice_apply(net, np.ones((9, 6), "f"), 0.5)
        np.save({str(tmp_path / "y.npy")!r}, y)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    expected = np.tanh(np.ones((9, 6)) @ P["a"][:, :8]) @ P["b"][:8]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5)


def test_a_loaded_network_trains(tmp_path):
    model, net = linen("switchable")
    again = ms.load(ms.save(net, tmp_path / "net", programs=False), model=model)

    def loss(net):
        return (ms.slice_apply(net, X, 0.5) ** 2).mean()

    same(jax.grad(loss)(again), jax.grad(loss)(net))


def test_programs_of_a_call_that_updates_statistics(tmp_path):
    model = Normed()
    call = {"train": True, "mutable": ["batch_stats"]}
    variables = model.init(jax.random.key(0), X)
    net = ms.upgrade(model, variables, X, rates=RATES, norm="shared", call=call)
    alone = ms.load(ms.save(net, tmp_path / "net"))
    got, expected = alone(0.5, X, **call), net(0.5, X, **call)
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        got,
        expected,
    )


def test_weights_are_cut_once_and_under_jit(tmp_path, compilations):
    _, net = function()
    alone = ms.load(ms.save(net, tmp_path / "net"))
    expected = ms.slice_apply(alone, X, 0.5)
    with compilations() as names:
        ms.slice_apply(alone, X, 0.5)
    assert names == []
    got = jax.jit(lambda net, x: ms.slice_apply(net, x, 0.5))(alone, X)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    doubled = jax.tree.map(lambda x: 2 * x, alone)
    other = ms.slice_apply(doubled, X, 0.5)
    expected = np.tanh(X @ (2 * P["a"][:, :8])) @ (2 * P["b"][:8])
    np.testing.assert_allclose(other, expected, rtol=1e-5)


# -- requests that programs cannot serve


@pytest.fixture
def alone(tmp_path):
    return ms.load(ms.save(function()[1], tmp_path / "net"))


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda n: n(0.75, X), ms.RateError, "rate 0.75 was not saved"),
        (lambda n: n({"*": 0.5}, X), ms.RateError, "not at rates of width groups"),
        (lambda n: n(0.5, X[:, :5]), ValueError, r"float32\[batch,6\]\); got"),
        (lambda n: n(0.5, X[0]), ValueError, r"got \(float32\[6\]\)"),
        (lambda n: n(0.5, X[:0]), ValueError, r"got \(float32\[0,6\]\)"),
        (lambda n: n(0.5, X.astype(int)), ValueError, r"got \(int32\[4,6\]\)"),
        (lambda n: n(0.5, X, train=True), ValueError, "train=True"),
        (lambda n: n(0.5, X, X), ValueError, "exported for the call"),
        (lambda n: jax.grad(lambda n: n(0.5, X).sum())(n), TypeError, "be trained"),
        (lambda n: jax.grad(lambda x: n(0.5, x).sum())(X), TypeError, "derivative"),
        (lambda n: ms.extract(n, 0.5), AttributeError, "nothing else"),
        (lambda n: str(ms.report(n)), AttributeError, "nothing else"),
        (lambda n: ms.reorder(n), AttributeError, "nothing else"),
        (lambda n: ms.save(n, "x"), TypeError, "save expects a network"),
    ],
)
def test_other_requests_are_one_line_that_says_what_to_do(alone, ask, error, message):
    with pytest.raises(error, match=message) as found:
        ask(alone)
    assert "\n" not in str(found.value)
    assert "load(path, model=...)" in str(found.value) or "upgrade" in str(found.value)


def test_a_function_that_compares_the_batch_size_fixes_it(tmp_path):
    """`== 4` is false for a free size; the program would be another one."""

    def odd(p, x):
        return mlp(p, x) * (2.0 if x.shape[0] == 4 else 1.0)

    net = ms.upgrade(odd, P, X, rates=RATES)
    alone = ms.load(ms.save(net, tmp_path / "net"))
    np.testing.assert_array_equal(alone(0.5, X), ms.slice_apply(net, X, 0.5))
    with pytest.raises(ValueError, match="its batch is fixed: the function is another"):
        alone(0.5, X[:2])


def test_an_input_without_a_batch(tmp_path):
    net = ms.upgrade(mlp, P, X[0], rates=RATES)  # its first axis is the features
    alone = ms.load(ms.save(net, tmp_path / "net"))
    np.testing.assert_array_equal(alone(0.5, X[0]), ms.slice_apply(net, X[0], 0.5))
    with pytest.raises(ValueError, match="its batch is fixed"):
        alone(0.5, X[0, :5])


def test_a_batch_that_was_free_at_upgrade(tmp_path):
    (n,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, 6), np.float32)
    net = ms.upgrade(mlp, P, x, rates=RATES)
    path = ms.save(net, tmp_path / "net")
    for again in (ms.load(path), ms.load(path, model=mlp)):
        np.testing.assert_array_equal(again(0.5, X), net(0.5, X))
    assert str(ms.load(path, mlp).definition.arrays[0].shape) == "(n, 6)"


def test_keywords_static_values_and_nested_outputs(tmp_path):
    def call(p, x, *, masks, scale, mode=None):
        h = jnp.tanh(x["x"] @ p["a"]) * scale
        return {"y": (h @ p["b"]) * masks[0], "mode": [jnp.ones(2), None, (h.sum(),)]}

    kwargs = {"masks": (jnp.ones((4, 1)),), "scale": -0.0, "mode": "fast"}
    net = ms.upgrade(call, P, {"x": X}, rates=RATES, call=kwargs)
    path = ms.save(net, tmp_path / "net")
    for again in (ms.load(path), ms.load(path, call)):
        same(
            again(0.5, {"x": X}, **kwargs),
            net(0.5, {"x": X}, **kwargs),
        )
    with pytest.raises(ValueError, match=r"scale=-0\.0.*got.*scale=0\.0"):
        ms.load(path)(0.5, {"x": X}, **{**kwargs, "scale": 0.0})


# -- values that JSON cannot hold


Weights = collections.namedtuple("Weights", "a b")


def test_a_tree_of_other_nodes_needs_variables(tmp_path):
    def net(p, x):
        return mlp({"a": p.a, "b": p.b}, x)

    made = ms.upgrade(net, Weights(**P), X, rates=RATES)
    path = ms.save(made, tmp_path / "net")
    np.testing.assert_array_equal(ms.load(path)(0.5, X), made(0.5, X))
    with pytest.raises(ms.StorageError, match="type Weights.*pass variables="):
        ms.load(path, net)
    with pytest.raises(ms.StorageError, match="lacks"):
        ms.load(path, net, variables=P | {"c": X})
    again = ms.load(path, net, variables=jax.eval_shape(lambda: made.variables))
    same(again.variables, made.variables)
    assert again.definition == made.definition


class Two(nn.Module):
    def setup(self):
        self.first = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])

    def __call__(self, x):
        return self.first(x)

    def other(self, x):
        return -self.first(x)


def test_a_call_with_a_function_needs_it_at_load(tmp_path):
    model, method = Two(), Two.other
    variables = model.init(jax.random.key(0), X)
    net = ms.upgrade(model, variables, X, rates=RATES, method=method)
    with pytest.warns(ms.SaveWarning, match="argument 'method' is"):
        path = ms.save(net, tmp_path / "net")
    with pytest.raises(ms.StorageError, match="has no programs.*needs the model"):
        ms.load(path)
    with pytest.raises(ms.StorageError, match="give it again"):
        ms.load(path, model)
    again = ms.load(path, model, inputs=(X,), call={"method": method})
    assert again.definition == net.definition


Pair = collections.namedtuple("Pair", "y z")


def test_an_output_of_a_class_has_no_program(tmp_path):
    net = ms.upgrade(lambda p, x: Pair(mlp(p, x), x), P, X, rates=RATES)
    with pytest.warns(ms.SaveWarning, match="the output is a node of type Pair"):
        ms.save(net, tmp_path / "net")


# -- arrays


def test_every_type_of_array(tmp_path):
    extra = {
        "bf16": jnp.arange(3, dtype=jnp.bfloat16),
        "f8": jnp.arange(3, dtype=jnp.float8_e4m3fn),
        "int4": jnp.arange(-3, 3, dtype=jnp.int4),
        "bool": jnp.array([True, False]),
        "complex": jnp.array([1 + 2j]),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
        "empty": jnp.zeros((0, 4)),
        "scalar": jnp.float32(7),
        "weak": jnp.full((2,), 3.0),
        "weak int": jnp.asarray(3),
        "f16": jnp.arange(3, dtype=jnp.float16),
    }
    assert extra["weak"].weak_type
    net = ms.upgrade(mlp, P, X, rates=RATES)  # types of leaves that are not read
    net = ms.upgrade(mlp, {**P, **extra}, X, rates=RATES)
    path = ms.save(net, tmp_path / "net")
    again = ms.load(path, mlp)
    for name, x in extra.items():
        y = again.variables[name]
        assert x.shape == y.shape, name
        same(x, y)
    np.testing.assert_array_equal(ms.load(path)(0.5, X), net(0.5, X))


def test_names_that_a_zip_cannot_hold(tmp_path):
    p = {"a\0": P["a"], "a\0b": P["b"], "../up": jnp.ones(3), "c/d": {"e": jnp.ones(2)}}

    def net(p, x):
        return mlp({"a": p["a\0"], "b": p["a\0b"]}, x)

    made = ms.upgrade(net, p, X, rates=RATES)
    again = ms.load(ms.save(made, tmp_path / "net", programs=False), net)
    same(again.variables, made.variables)


def test_numpy_reads_the_arrays(tmp_path):
    path = ms.save(function()[1], tmp_path / "net", programs=False)
    with np.load(path, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["arrays/a"], P["a"])


def test_double_precision_without_x64(tmp_path):
    path = tmp_path / "net"
    with jax.enable_x64():
        p = {name: jnp.asarray(x, jnp.float64) for name, x in P.items()}
        net = ms.upgrade(mlp, p, X.astype(np.float64), rates=RATES)
        ms.save(net, path)
        assert ms.load(path, mlp).variables["a"].dtype == np.float64
    for model in (mlp, None):
        with pytest.raises(ms.StorageError, match="jax_enable_x64"):
            ms.load(path, model)


def test_types_tracers_and_deleted_arrays(tmp_path):
    _, net = function()
    with pytest.raises(ValueError, match="a type without values"):
        ms.save(jax.eval_shape(lambda: net), tmp_path / "net")
    with pytest.raises(ValueError, match="is traced"):
        jax.jit(lambda net: ms.save(net, tmp_path / "net"))(net)
    jax.tree.leaves(net)[0].delete()
    with pytest.raises(ValueError, match="was deleted"):
        ms.save(net, tmp_path / "net")
    assert os.listdir(tmp_path) == []


def test_sharded_weights(tmp_path):
    _, net = function()
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    there = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "d"))
    moved = net.replace({**net.variables, "a": jax.device_put(P["a"], there)})
    again = ms.load(ms.save(moved, tmp_path / "net", programs=False), mlp)
    np.testing.assert_array_equal(again.variables["a"], P["a"])


# -- files


def test_existing_files_are_kept(tmp_path, monkeypatch):
    _, net = function()
    path = tmp_path / "below" / "net"
    ms.save(net, path, programs=False)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        ms.save(net, path)
    with pytest.raises(FileExistsError, match="is a folder"):
        ms.save(net, tmp_path, overwrite=True)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(ms.StorageError, match="No space left") as error:
        ms.save(net, path, overwrite=True, programs=False)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["net"]
    monkeypatch.undo()
    ms.save(ms.extract(net, 0.5), path, overwrite=True, programs=False)
    assert ms.load(path, mlp).rate == 0.5
    with pytest.raises(ms.StorageError, match="is no folder"):
        ms.save(net, path / "beneath")


def test_the_same_network_gives_the_same_bytes(tmp_path):
    _, net = function()
    a, b = (ms.save(net, tmp_path / n, programs=False).read_bytes() for n in "ab")
    assert a == b


def test_paths_of_a_home_folder_and_a_bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, net = function()
    assert ms.save(net, "~/net", programs=False) == tmp_path / "net"
    assert ms.load("~/net", mlp).rate == 1.0
    for path in ("gs://bucket/net", "s3://bucket/net"):
        with pytest.raises(ms.StorageError, match="path on this machine"):
            ms.save(net, path)
        with pytest.raises(ms.StorageError, match="path on this machine"):
            ms.load(path)
    with pytest.raises(TypeError, match="expects a path"):
        ms.load(net)
    with pytest.raises(FileNotFoundError, match="there is no"):
        ms.load(tmp_path / "nothing")


def test_a_folder_holds_its_network_under_one_name(tmp_path):
    ms.save(function()[1], tmp_path / "network.mslice", programs=False)
    assert ms.load(tmp_path, mlp).rate == 1.0


def foreign_files(folder):
    np.savez(folder / "npz.npz", **P)
    (folder / "text").write_text("weights")
    (folder / "empty").write_bytes(b"")
    (folder / "pickle").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with zipfile.ZipFile(folder / "other", "w") as file:
        file.writestr("manifest.json", json.dumps({"format": "another"}))
    return sorted(folder.iterdir())


def test_files_of_other_kinds(tmp_path):
    for path in foreign_files(tmp_path):
        with pytest.raises(ms.StorageError, match=r"is no file of mslice_jax\.save"):
            ms.load(path)


def rewritten(path, target, change):
    """A valid zip with some members replaced."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def with_manifest(path, target, **changes):
    def change(name, content):
        if name != "manifest.json":
            return content
        return json.dumps({**json.loads(content), **changes})

    return rewritten(path, target, change)


def test_a_later_version_and_jax(tmp_path):
    path = ms.save(function()[1], tmp_path / "net")
    later = with_manifest(path, tmp_path / "later", format_version=3, made_by="a 9.9")
    with pytest.raises(ms.StorageError, match=r"up to 2. Update.*made by a 9\.9"):
        ms.load(later)
    odd = with_manifest(path, tmp_path / "odd", kind="Keras model")
    with pytest.raises(ms.StorageError, match="does not know"):
        ms.load(odd, mlp)
    lost = with_manifest(path, tmp_path / "lost", definition={})
    with pytest.raises(ms.StorageError, match="makes no sense"):
        ms.load(lost, mlp)
    unread = rewritten(
        path,
        tmp_path / "unread",
        lambda name, content: b"later" if "stablehlo" in name else content,
    )
    with pytest.raises(ms.StorageError, match=r"cannot read them.*model=\.\.\."):
        ms.load(unread)
    assert ms.load(unread, mlp).rate == 1.0


def test_programs_of_a_later_stablehlo(tmp_path, monkeypatch):
    """JAX reads the header of a program, and fails at its contents."""
    path = ms.save(function()[1], tmp_path / "net")

    def fail(self):
        raise ValueError("failed to deserialize StableHLO")

    monkeypatch.setattr(jax.export.Exported, "mlir_module", fail)
    with pytest.raises(ms.StorageError, match=r"exported by jax.*cannot read them"):
        ms.load(path)


def test_nothing_is_unpickled(tmp_path):
    """An array of objects would be unpickled if allowed."""
    path = ms.save(function()[1], tmp_path / "net", programs=False)
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    content = (tmp_path / "o.npy").read_bytes()
    bad = rewritten(
        path, tmp_path / "bad", lambda n, old: content if n.endswith("a.npy") else old
    )
    with pytest.raises(ms.StorageError, match="Object arrays cannot be loaded"):
        ms.load(bad, mlp)
    source = "\n".join(
        file.read_text() for file in archive.Path(archive.__file__).parent.glob("*.py")
    )
    assert "import pickle" not in source


@pytest.mark.parametrize("model", [mlp, None])
def test_every_cut_and_changed_byte_is_noticed(tmp_path, model):
    _, net = function()
    path = ms.save(net, tmp_path / "net", programs=model is None)
    content = path.read_bytes()
    expected = np.asarray(net(0.5, X))
    bad = tmp_path / "bad"
    for end in np.linspace(1, len(content) - 1, 40).astype(int):
        bad.write_bytes(content[:end])
        with pytest.raises(ms.StorageError):
            ms.load(bad, model)
    noticed, places = 0, np.linspace(0, len(content) - 1, 250).astype(int)
    for turn, at in enumerate(places):
        bad.write_bytes(
            content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
        )  # fmt: skip
        try:
            found = ms.load(bad, model)
        except ms.StorageError as error:
            noticed += 1
            assert "\n" not in str(error)
            continue
        # Some bytes, such as dates, carry no data.
        if turn % 40 == 0:  # of those that load
            np.testing.assert_array_equal(found(0.5, X), expected)
        for got, x in zip(
            jax.tree.leaves(found), jax.tree.leaves(net.variables), strict=True
        ):
            np.testing.assert_array_equal(got, x)
    assert noticed > 0.8 * len(places)


def test_a_model_that_does_not_fit(tmp_path):
    model, net = linen("group")
    path = ms.save(net, tmp_path / "net", programs=False)

    class Wider(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(nn.relu(nn.Dense(17)(x)))

    for other in (Wider(), nn.Dense(3)):
        with pytest.raises(ms.StorageError, match="the model does not fit") as error:
            ms.load(path, other)
        assert "\n" not in str(error.value)
    with pytest.raises(ms.StorageError, match="made of a Linen module; the model is a"):
        ms.load(path, mlp)
    with pytest.raises(ms.StorageError, match="made of a Linen module; the model is a"):
        ms.load(path, Model(nnx.Rngs(0)))


def test_batch_norms_elsewhere_than_saved(tmp_path):
    """A layer norm has arrays of the same names and shapes as a group norm."""
    _, net = nnx_model("group")
    path = ms.save(net, tmp_path / "net", programs=False)
    other = Model(nnx.Rngs(0))
    other.norm = nnx.LayerNorm(16, rngs=nnx.Rngs(0))
    other.eval()
    said = r"batch norms at \[\['norm'\]\]; the model has them at \[\]"
    with pytest.raises(ms.StorageError, match=said):
        ms.load(path, other)


def test_load_uses_only_the_code_of_a_trained_nnx_model(tmp_path):
    model, net = nnx_model("group")
    path = ms.save(net, tmp_path / "net", programs=False)
    model.norm.mean[...] = jnp.ones(16)  # no warning: its weights are not used
    before = jax.tree.map(jnp.copy, nnx.state(model))
    same(ms.load(path, model).variables, net.variables)
    same(nnx.state(model), before)
