"""Exports: some rates of a network as programs that run without this package.

Expected values are NumPy's, of weights that are cut by hand.
"""

import json
import pathlib
import re
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mslice_jax as ms

RATES = (0.25, 0.5, 1.0)
DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"


def weights(**shapes):
    r = np.random.default_rng(1)
    return {n: r.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def mlp(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


P = weights(a=(6, 16), b=(16, 3))
X = weights(x=(4, 6))["x"]


def narrow(p, x, rate, size=16):
    width = int(rate * size)
    return np.tanh(x @ p["a"][:, :width]) @ p["b"][:width]


def manifest(path):
    return json.loads(np.load(path)["manifest.json"])


@pytest.fixture(scope="module")
def net():
    return ms.upgrade(mlp, P, X, rates=RATES)


@pytest.fixture(scope="module")
def files(net, tmp_path_factory):
    """One rate, and all of them."""
    folder = tmp_path_factory.mktemp("exported")
    half = ms.export(net, 0.5, folder / "half.mslice")
    return half, ms.export(net, net.rates, folder / "all.mslice")


# -- what is in the file


def test_one_rate_alone(files):
    with np.load(files[0], allow_pickle=False) as arrays:
        names = sorted(name for name in arrays if name.startswith("arrays/"))
        assert names == ["arrays/a", "arrays/b"]
        np.testing.assert_array_equal(arrays["arrays/a"], P["a"][:, :8])
        np.testing.assert_array_equal(arrays["arrays/b"], P["b"][:8])
    data = manifest(files[0])
    assert data["made_by"] == f"mslice_jax {ms.__version__}"
    assert (data["format_version"], data["jax"]) == (2, jax.__version__)
    programs = data["programs"]
    assert programs["platforms"] == ["cpu", "cuda", "tpu"]
    assert programs["batch"] is None
    assert programs["arrays"] == [
        {"name": "x", "shape": ["batch", 6], "dtype": "float32"}
    ]
    (program,) = programs["each"]
    assert program["rate"] == 0.5
    assert program["outputs"] == [
        {"name": "output", "shape": ["batch", 3], "dtype": "float32"}
    ]
    with np.load(files[0]) as members:
        content = bytearray(members[program["file"]])
    assert jax.export.deserialize(content).platforms == ("cpu", "cuda", "tpu")


def test_nothing_tells_of_the_source(files):
    """No plan, no reasons with lines of the user's code, no files in the programs."""
    for path in files:
        content = path.read_bytes()  # the zip is not compressed
        assert b"test_shipping" not in content
        assert b".py" not in content.replace(b".npy", b"")


def test_the_weights_of_all_rates_are_there_once(files):
    with np.load(files[1], allow_pickle=False) as arrays:
        names = sorted(name for name in arrays if name.startswith("arrays/"))
        assert names == ["arrays/a", "arrays/b"]
        np.testing.assert_array_equal(arrays["arrays/a"], P["a"])


def test_size_from_ten_million_parameters_on(tmp_path):
    p = {name: np.zeros((2240, 2240), np.float32) for name in "ab"}
    full = sum(x.nbytes for x in p.values())
    assert full > 4 * 10_000_000
    net = ms.upgrade(mlp, p, np.zeros((1, 2240), np.float32), rates=RATES)
    size = ms.export(net, net.rates, tmp_path / "all").stat().st_size
    assert full < size < 1.05 * full
    quarter = ms.export(net, 0.25, tmp_path / "quarter").stat().st_size
    assert full / 4 < quarter < 1.05 * full / 4


class Normed(nn.Module):
    @nn.compact
    def __call__(self, image, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(image))
        return {"logits": nn.Dense(3)(nn.relu(x)), "pair": (x.sum(-1), x.mean(-1))}


def test_norms_of_other_rates_stay_behind(tmp_path):
    model = Normed()
    variables = model.init(jax.random.key(0), X)
    net = ms.upgrade(model, variables, X, rates=RATES, norm="switchable")
    path = ms.export(net, 0.5, tmp_path / "half")
    paths = ["/".join(x["path"]) for x in manifest(path)["variables"]["leaves"]]
    norms = [path for path in paths if "BatchNorm" in path]
    assert len(norms) == 4 and all("/0.5/" in path for path in norms)
    alone = ms.load(path)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        alone(0.5, X[:3]),
        ms.slice_apply(net, X[:3], 0.5),
    )
    assert list(alone.inputs) == ["image"]
    shapes = {name: str(x.shape) for name, x in alone.outputs.items()}
    assert shapes == {
        "logits": "(batch, 3)",
        "pair/0": "(batch,)",
        "pair/1": "(batch,)",
    }


def test_a_key_that_nothing_reads_stays_behind(tmp_path):
    net = ms.upgrade(mlp, {**P, "key": jax.random.key(0)}, X, rates=RATES)
    path = ms.export(net, 0.5, tmp_path / "half")
    leaves = manifest(path)["variables"]["leaves"]
    assert [x["path"] for x in leaves] == [["a"], ["b"]]
    got = ms.load(path)(0.5, X)
    np.testing.assert_allclose(got, narrow(P, X, 0.5), rtol=1e-5)


# -- it runs


def test_load_runs_it(files):
    half, whole = map(ms.load, files)
    assert (half.rates, half.rate, whole.rates) == ((0.5,), 0.5, RATES)
    for alone in half, whole:
        assert {n: str(x.shape) for n, x in alone.inputs.items()} == {"x": "(batch, 6)"}
        for rate in alone.rates:
            for x in (X, X[:1], np.concatenate([X, X])):
                got = ms.slice_apply(alone, x, rate)
                np.testing.assert_allclose(got, narrow(P, x, rate), rtol=1e-5)
    with pytest.raises(ms.RateError, match="0.25 was not saved.*takes no model"):
        half(0.25, X)
    with pytest.raises(ms.StorageError, match="is an export.*without the model"):
        ms.load(files[0], mlp)


def test_weights_are_cut_at_loading(files, compilations):
    alone = ms.load(files[1])
    for rate in RATES:
        alone(rate, X)  # compiles the programs, for which the cache has none of others
    again = ms.load(files[1])
    with compilations() as names:
        for rate in RATES:
            again(rate, X)
    assert not [name for name in names if "cut" in name]
    doubled = jax.tree.map(lambda x: 2 * x, again)
    expected = narrow({n: 2 * x for n, x in P.items()}, X, 0.5)
    np.testing.assert_allclose(doubled(0.5, X), expected, rtol=1e-5)


def test_ten_lines_run_it_with_jax_alone(files, tmp_path):
    """Those of the docs, where neither this package nor its others can be imported."""
    text = (DOCS / "ship.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(import json\n.*?)```", text, re.DOTALL)
    lines = found[1].partition("\n\nrun = ")[0]
    assert len(lines.partition("def ")[2].splitlines()) == 10
    half, whole = map(str, files)
    script = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mslice_jax", "flax", "optax", "jaxtyping"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
{lines}
import numpy as np
x = np.load({str(tmp_path / "x.npy")!r})
half, quarter = load({half!r}, 0.5)(x), load({whole!r}, 0.25)(x)
np.savez({str(tmp_path / "y.npz")!r}, *half, *quarter)
"""
    x = np.concatenate([X, X, X])
    np.save(tmp_path / "x.npy", x)
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    with np.load(tmp_path / "y.npz") as y:
        np.testing.assert_allclose(y["arr_0"], narrow(P, x, 0.5), rtol=1e-5)
        np.testing.assert_allclose(y["arr_1"], narrow(P, x, 0.25), rtol=1e-5)


def test_load_needs_no_other_package(files, tmp_path):
    """Of what this package depends on it takes jax, jaxlib, numpy and flatbuffers."""
    script = f"""
        import sys
        others = ("flax", "optax", "orbax", "jaxtyping", "tensorflow_datasets")
        sys.modules.update(dict.fromkeys(others))  # None: they cannot be imported
        import numpy as np, mslice_jax as ms
        y = ms.slice_apply(ms.load({str(files[0])!r}), np.ones((9, 6), "f"), 0.5)
        np.save({str(tmp_path / "y.npy")!r}, y)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=DOCS.parent
    )
    expected = narrow(P, np.ones((9, 6), np.float32), 0.5)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5)


# -- names


def test_names_of_inputs(tmp_path):
    def call(p, first, *rest, masks, mode=None):
        h = jnp.tanh(first["x"] @ p["a"]) + rest[0]
        return (h @ p["b"]) * masks[0], {"all": h.sum(-1)}

    kwargs = {"masks": (jnp.ones((4, 1)),), "mode": "fast"}
    net = ms.upgrade(call, P, {"x": X}, jnp.ones((4, 1)), rates=RATES, call=kwargs)
    alone = ms.load(ms.export(net, 1.0, tmp_path / "net"))
    assert list(alone.inputs) == ["first/x", "input_1", "masks/0"]
    assert list(alone.outputs) == ["output_0", "output_1/all"]
    path = ms.export(
        net,
        1.0,
        tmp_path / "named",
        inputs=("image", "bias", "mask"),
        outputs=("y", "sums"),
    )
    named = ms.load(path)
    assert list(named.inputs) == ["image", "bias", "mask"]
    assert list(named.outputs) == ["y", "sums"]
    for wrong in (("y",), ("y", "y"), "y"):
        with pytest.raises(ValueError, match="outputs takes a name for each of"):
            ms.export(net, 1.0, tmp_path / "x", outputs=wrong)


def test_names_of_a_file_of_save(net, tmp_path):
    alone = ms.load(ms.save(net, tmp_path / "net"))
    assert (list(alone.inputs), list(alone.outputs)) == (["x"], ["output"])


# -- what cannot be exported


@pytest.mark.parametrize(
    ("rate", "settings", "error", "message"),
    [
        (0.75, {}, ms.RateError, "0.75"),
        ((0.5, 0.75), {}, ms.RateError, "0.75"),
        ((), {}, ms.RateError, "rates is empty"),
        (2.0, {}, ms.RateError, "lies in"),
        (0.5, {"platforms": ("gpu",)}, ValueError, "cpu, cuda, rocm, tpu.*gpu"),
        (0.5, {"platforms": ()}, ValueError, "each once"),
        (0.5, {"to": "pickle"}, ValueError, "stablehlo, onnx, tensorflow"),
        ((0.25, 0.5), {"to": "onnx"}, ValueError, "takes one rate"),
    ],
)
def test_other_requests(net, tmp_path, rate, settings, error, message):
    with pytest.raises(error, match=message):
        ms.export(net, rate, tmp_path / "x", **settings)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_network_or_has_no_values(net, files, tmp_path):
    with pytest.raises(TypeError, match="export expects a network.*got Programs"):
        ms.export(ms.load(files[0]), 0.5, tmp_path / "x")
    with pytest.raises(ValueError, match="export writes arrays.*without values"):
        ms.export(jax.eval_shape(lambda: net), 0.5, tmp_path / "x")


def test_existing_files_are_kept(net, tmp_path):
    path = tmp_path / "below" / "net"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    for to in ("stablehlo", "onnx", "tensorflow"):
        with pytest.raises(FileExistsError, match="exists"):
            ms.export(net, 0.5, path, to=to)
    assert path.read_bytes() == b"mine"
    ms.export(net, 0.5, path, overwrite=True)
    assert ms.load(path).rate == 0.5


def test_a_batch_that_cannot_be_free(tmp_path):
    def odd(p, x):
        return mlp(p, x) * (2.0 if x.shape[0] == 4 else 1.0)

    net = ms.upgrade(odd, P, X, rates=RATES)
    with pytest.raises(ms.StorageError, match="any size: the function is another one"):
        ms.export(net, 0.5, tmp_path / "x")
    path = ms.export(net, 0.5, tmp_path / "x", free_batch=False)
    np.testing.assert_allclose(ms.load(path)(0.5, X), 2 * narrow(P, X, 0.5), rtol=1e-5)
    with pytest.raises(ValueError, match="its batch is fixed: it was exported so"):
        ms.load(path)(0.5, X[:2])


def test_a_look_up_leaves_the_batch_free(tmp_path):
    """It fills in NaN for ids that are not there, and NaN is not NaN."""

    def looked_up(p, ids):
        return jnp.tanh(p["table"].at[ids].get(mode="fill")) @ p["b"]

    p = weights(table=(10, 16), b=(16, 3))
    net = ms.upgrade(looked_up, p, jnp.zeros((4,), jnp.int32), rates=RATES)
    alone = ms.load(ms.export(net, 0.5, tmp_path / "x"))
    ids = np.arange(7, dtype=np.int32)
    expected = np.tanh(p["table"][ids, :8]) @ p["b"][:8]
    np.testing.assert_allclose(alone(0.5, ids), expected, rtol=1e-5)


INDEXED = {
    "first": (lambda h: h[:, 0], lambda h: h[:, 0]),
    "last": (lambda h: h[:, -1], lambda h: h[:, -1]),
    "halves": (
        lambda h: h[..., :2, :].sum(1) * h[:, 1:].mean(1),
        lambda h: h[:, :2].sum(1) * h[:, 1:].mean(1),
    ),
}


@pytest.mark.parametrize("name", INDEXED)
def test_indexing_leaves_the_batch_free(tmp_path, name):
    """JAX writes it otherwise then, and the programs differ, but not their answers."""
    call, by_numpy = INDEXED[name]
    x = weights(x=(4, 3, 6))["x"]
    net = ms.upgrade(
        lambda p, x: call(jnp.tanh(x @ p["a"])) @ p["b"], P, x, rates=RATES
    )
    alone = ms.load(ms.export(net, net.rates, tmp_path / "x"))
    several = np.concatenate([x, 2 * x])
    for rate, k in ((0.5, 8), (1.0, 16)):
        expected = by_numpy(np.tanh(several @ P["a"][:, :k])) @ P["b"][:k]
        np.testing.assert_allclose(alone(rate, several), expected, rtol=1e-4, atol=1e-5)
    assert ms.load(ms.save(net, tmp_path / "net")).saved.batch is None


def test_a_branch_on_the_size_of_the_batch_is_found_behind_a_layer_of_zeros(tmp_path):
    """With such weights the answers are zeros, whatever the function does."""

    def odd(p, x):
        h = jnp.tanh(x @ p["a"])
        return (h[:, 0] if x.shape[0] == 4 else h[:, 1]) @ p["b"]

    p, x = {**P, "b": np.zeros_like(P["b"])}, weights(x=(4, 3, 6))["x"]
    net = ms.upgrade(odd, p, x, rates=RATES)
    with pytest.raises(ms.StorageError, match="the function is another one"):
        ms.export(net, 0.5, tmp_path / "x")


def test_len_of_a_free_batch_is_told_in_words(tmp_path):
    net = ms.upgrade(
        lambda p, x: mlp(p, x.reshape(len(x), -1)), P, weights(x=(4, 2, 3))["x"],
        rates=RATES,
    )  # fmt: skip
    with pytest.raises(
        ms.StorageError, match=r"len\(x\) of its array.* write x.shape\[0"
    ):
        ms.export(net, 0.5, tmp_path / "x")


def test_a_program_that_is_not_for_a_platform(tmp_path):
    from jax.experimental import pallas as pl

    def double(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    def on_tpu(p, x):
        y = mlp(p, x)
        return pl.pallas_call(double, out_shape=jax.ShapeDtypeStruct(y.shape, y.dtype))(
            y
        )

    net = ms.upgrade(on_tpu, P, jnp.ones((8, 6)), rates=RATES)
    with pytest.raises(ms.StorageError, match="no program for cpu") as error:
        ms.export(net, 0.5, tmp_path / "x", free_batch=False, platforms=("cpu", "tpu"))
    assert "\n" not in str(error.value)
    assert "platforms=('tpu',)" in str(error.value)


# -- other forms


def test_onnx(net, tmp_path):
    pytest.importorskip("jax2onnx", reason="needs the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    path = ms.export(net, 0.5, tmp_path / "half.onnx", to="onnx", outputs=("logits",))
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == ("x", ["batch", 6], "tensor(float)")
    for x in (X, X[:1]):
        (y,) = session.run(["logits"], {"x": x})
        np.testing.assert_allclose(y, ms.slice_apply(net, x, 0.5), rtol=1e-4, atol=1e-5)


class Pooled(nn.Module):
    """Windows that reach over the edge; before it a function of its own."""

    @nn.compact
    def __call__(self, x):
        x = jax.jit(lambda x: nn.max_pool(x, (2, 2), (2, 2)))(nn.Conv(8, (3, 3))(x))
        x = nn.max_pool(x, (3, 2), (1, 2), ((2, 0), (0, 1)))
        return nn.Dense(3)(x.mean((1, 2)))


def test_onnx_of_a_network_that_pools(tmp_path):
    """jax2onnx pools over batch and channels too, which onnxruntime does not have."""
    pytest.importorskip("jax2onnx", reason="needs the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    x, model = weights(x=(2, 8, 8, 3))["x"], Pooled()
    net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=RATES)
    path = ms.export(net, 0.5, tmp_path / "half.onnx", to="onnx")
    x = np.concatenate([x, -x, x[:1]])
    (y,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    np.testing.assert_allclose(y, ms.slice_apply(net, x, 0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", ["other", "broken"])
def test_an_onnx_model_that_is_another_function(net, tmp_path, monkeypatch, wrong):
    jax2onnx = pytest.importorskip("jax2onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    right, says = jax2onnx.to_onnx, "output 'output' of a made-up batch is not what"

    def other(function, *args, **settings):
        return right(lambda x: [1.01 * y for y in function(x)], *args, **settings)

    def broken(*args, **settings):
        model = right(*args, **settings)
        model.graph.node[0].op_type = "NoSuchOperation"
        return model

    if wrong == "broken":
        says = "onnxruntime does not run what jax2onnx made of it"
    monkeypatch.setattr(jax2onnx, "to_onnx", {"other": other, "broken": broken}[wrong])
    with pytest.raises(ms.StorageError, match=says):
        ms.export(net, 0.5, tmp_path / "x", to="onnx")
    assert list(tmp_path.iterdir()) == []
    assert ms.export(net, 0.5, tmp_path / "x", to="onnx", check=False).is_file()


def test_tensorflow(net, tmp_path):
    """In a process of its own: TensorFlow changes what logs and signals do."""
    pytest.importorskip("tensorflow", reason="needs the extra tf")
    script = f"""
        import numpy as np, tensorflow as tf, mslice_jax as ms
        from tests.storage.test_shipping import P, RATES, X, mlp
        net = ms.upgrade(mlp, P, X, rates=RATES)
        path = ms.export(net, 0.5, {str(tmp_path / "half")!r}, to="tensorflow")
        serve = tf.saved_model.load(path).signatures["serving_default"]
        for n in (1, 4):
            np.save({str(tmp_path)!r} + f"/y{{n}}.npy", serve(x=X[:n])["output"])
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        cwd=DOCS.parent,
    )
    for n in (1, 4):
        y = np.load(tmp_path / f"y{n}.npy")
        np.testing.assert_allclose(y, narrow(P, X[:n], 0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", ["onnx", "tensorflow"])
def test_a_package_that_is_not_there(net, tmp_path, monkeypatch, to):
    package = {"onnx": "jax2onnx", "tensorflow": "tensorflow"}[to]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "mslice_jax\['):
        ms.export(net, 0.5, tmp_path / "x", to=to)
    assert list(tmp_path.iterdir()) == []
