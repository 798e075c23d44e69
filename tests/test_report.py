"""The report: its numbers by hand, its reasons with the primitive and the line."""

import inspect
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import mslice_jax as ms

X = np.ones((4, 5), np.float32)


def weights(**shapes):
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


def data(function, p, x=X, **settings):
    net = ms.upgrade(function, p, x, rates=(0.5, 1.0), **settings)
    result = ms.report(net).to_dict()
    assert json.loads(json.dumps(result)) == result
    return result


def test_parameters_and_flops_of_dense_layers():
    def mlp(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"] + (x @ p["c"])

    found = data(mlp, weights(a=(5, 16), b=(16, 3), c=(5, 3)))
    assert found["parameters"] == {"0.5": 40 + 24 + 15, "1.0": 80 + 48 + 15}
    assert found["flops"] == {
        "0.5": 2 * 4 * (5 * 8 + 8 * 3 + 5 * 3),
        "1.0": 2 * 4 * (5 * 16 + 16 * 3 + 5 * 3),
    }
    assert found["elastic"] == {
        "parameters": (80 + 48) / (80 + 48 + 15),
        "flops": (80 + 48) / (80 + 48 + 15),
    }
    (group,) = found["groups"].values()
    assert group == {
        "size": 16,
        "unit": 2,
        "span": 1,
        "widths": {"0.5": 8, "1.0": 16},
        "leaves": ["a:1", "b:0"],
    }


def test_flops_of_convolutions_loops_and_branches():
    def net(p, x):
        image = lax.conv_general_dilated(
            x[None, :, :, None], p["k"], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        h = image.mean((0, 1, 2))[None]

        def step(h, _):
            return jnp.tanh(h @ p["r"]), None

        h, _ = lax.scan(step, h, length=7)
        once = lambda h: h @ p["r"]  # noqa: E731
        h = lax.cond(h.sum() > 0, lambda h: once(once(h)), once, h)
        return h @ p["o"]

    found = data(net, weights(k=(3, 3, 1, 8), r=(8, 8), o=(8, 3)))
    image = 4 * 5 * 9  # positions times the window
    assert found["flops"]["1.0"] == 2 * (image * 8 + 7 * 64 + 2 * 64 + 8 * 3)
    assert found["flops"]["0.5"] == 2 * (image * 4 + 7 * 16 + 2 * 16 + 4 * 3)


def test_flops_of_a_batched_and_a_grouped_contraction():
    def net(p, x):
        h = jnp.einsum("bi,ihd->bhd", x, p["q"])
        h = jnp.einsum("bhd,hde->bhe", h, p["w"])
        image = lax.conv_general_dilated(
            h.reshape(4, 1, 24), p["k"], (1,), "SAME",
            dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=4,
        )  # fmt: skip
        return image.reshape(4, 4, 12).sum(2) @ p["o"]

    found = data(net, weights(q=(5, 4, 6), w=(4, 6, 6), k=(1, 6, 48), o=(4, 3)))
    assert found["flops"] == {
        str(heads / 4): 2
        * 4
        * (5 * heads * 6 + heads * 36 + 6 * 12 * heads + heads * 3)
        for heads in (2, 4)
    }
    (group,) = found["groups"].values()
    assert group["span"] >= 6


def test_reason_names_the_primitive_and_the_line():
    def net(p, x):
        h = x @ p["a"]
        h = jnp.cumsum(h, axis=1)
        return h @ p["b"] @ p["c"]

    lines, start = inspect.getsourcelines(net)
    found = data(net, weights(a=(5, 16), b=(16, 8), c=(8, 3)))
    fixed = {f["axis"]: f for f in found["fixed"]}
    assert fixed["a:1"]["primitive"] == "cumsum"
    assert "order" in fixed["a:1"]["reason"]
    line = start + next(i for i, text in enumerate(lines) if "cumsum" in text)
    assert fixed["a:1"]["where"] == f"test_report.py:{line} ({net.__qualname__})"
    assert fixed["a:0"] == {
        "axis": "a:0",
        "size": 5,
        "reason": "input of the function",
        "primitive": "",
        "where": "",
    }


def test_details_list_every_axis_and_what_it_is_made_of():
    def net(p, x):
        gate, up = jnp.split(x @ p["in"], 2, axis=1)
        return (jax.nn.silu(gate) * up) @ p["out"]

    p = weights(**{"in": (5, 32), "out": (16, 3)})
    text = ms.report(ms.upgrade(net, p, X, rates=(0.5, 1.0))).details()
    *_, title, first, second = text.splitlines()
    assert title == "  in:1, 16 in units of 2:"
    assert first == "    in:1 = (16* + 16*)"
    assert second == "    out:0 = 16*"


def test_a_free_batch_size_counts_once():
    def mlp(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 5), np.float32)
    found = data(mlp, weights(a=(5, 16), b=(16, 3)), x)
    assert found["flops"]["1.0"] == 2 * (5 * 16 + 16 * 3)


def test_a_unit_is_no_larger_than_its_axis():
    net = ms.upgrade(
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"],
        weights(a=(5, 8), b=(8, 3)),
        X,
        rates=(0.5, 1),
        multiple_of=64,
    )
    (group,) = net.plan.groups.values()
    assert (group.size, group.unit, group.width(0.5)) == (8, 8, 8)


def test_an_extracted_network_with_norms_for_each_rate():
    """Of those it holds its own and the narrower ones."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            norm = nn.BatchNorm(use_running_average=not train)
            return nn.Dense(3)(norm(nn.Dense(8)(x)))

    variables = Net().init(jax.random.key(0), X)
    net = ms.upgrade(Net(), variables, X, rates=(0.5, 1.0), norm="switchable")
    report = ms.report(ms.extract(net, 0.5)).to_dict()
    assert report["groups"]
