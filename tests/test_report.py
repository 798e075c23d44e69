"""The report: its numbers by hand, its reasons with the primitive and the line."""

import inspect
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
        "channels": {"0.5": 8, "1.0": 16},
        "leaves": ["a:1", "b:0"],
    }


def test_all_that_a_report_says():
    """A network 5 -> 6 -> 3 with a mean; of 3 pairs of units half is rounded to 2."""

    def net(p, x):
        h = x @ p["a"]
        return (h - h.sum(1, keepdims=True) / 6) @ p["b"]

    line = inspect.getsourcelines(net)[1] + 2
    where = f"test_report.py:{line} ({net.__qualname__})"
    found = data(net, weights(a=(5, 6), b=(6, 3)), groups=3, check=False)
    end = {"primitive": "", "where": ""}
    work = {"0.5": 2 * 4 * (5 * 4 + 4 * 3), "1.0": 2 * 4 * (5 * 6 + 6 * 3)}
    assert found == {
        "rates": [0.5, 1.0],
        "parameters": {"0.5": 20 + 12, "1.0": 30 + 18},
        "variables": {"0.5": 20 + 12, "1.0": 30 + 18},
        "contraction_flops": work,
        "flops": work,
        "elastic": {"parameters": 1.0, "flops": 1.0},
        "groups": {
            "a:1": {
                "size": 6, "unit": 2, "span": 1, "widths": {"0.5": 4, "1.0": 6},
                "channels": {"0.5": 4, "1.0": 6}, "leaves": ["a:1", "b:0"],
            }
        },
        "fixed": [
            {"axis": "a:0", "size": 5, "reason": "input of the function", **end},
            {"axis": "b:1", "size": 3, "reason": "output of the function", **end},
        ],
        "products": {},
        "rounded": [{"group": "a:1", "rate": 0.5, "width": 4, "channels": 4}],
        "not_sharded": [],
        "numbers": [
            {
                "value": 6.0, "size": 6, "groups": ["a:1"], "follows": True,
                "open": False, "why": "", "where": where,
            }
        ],
        "own_program": "not comparable: not asked for (check=False)",
        "norms": None,
    }  # fmt: skip


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


def test_details_list_every_axis_and_its_parts():
    def net(p, x):
        gate, up = jnp.split(x @ p["in"], 2, axis=1)
        return (jax.nn.silu(gate) * up) @ p["out"]

    p = weights(**{"in": (5, 32), "out": (16, 3)})
    text = ms.report(ms.upgrade(net, p, X, rates=(0.5, 1.0))).details()
    *_, title, first, second = text.splitlines()
    assert title == "  in:1, 16 in units of 2:"
    assert first == "    in:1 = (16* + 16*)"
    assert second == "    out:0 = 16*"


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (2, 0))])
@pytest.mark.parametrize("strides", [(2, 3), (1, 2)])
def test_flops_of_a_transposed_convolution_leave_out_its_zeros(padding, strides):
    def net(p, x):
        image = x[None, :, :, None] * p["c"][None]
        h = lax.conv_transpose(image, p["k"], strides, padding)
        return h.mean((0, 1, 2)) @ p["o"]

    found = data(net, weights(c=(4, 5, 6), k=(3, 2, 6, 8), o=(8, 3)))
    # Entries of the input that each entry of the kernel meets: a convolution of ones.
    ones, kernel = jnp.ones((1, 4, 5, 1)), jnp.ones((3, 2, 1, 1))
    met = float(lax.conv_transpose(ones, kernel, strides, padding).sum())
    assert found["contraction_flops"] == {
        "0.5": 2 * (met * 3 * 4 + 4 * 3),
        "1.0": 2 * (met * 6 * 8 + 8 * 3),
    }
    if padding == "VALID":  # each entry meets the whole kernel
        assert met == 4 * 5 * 3 * 2
    assert found["flops"] == found["contraction_flops"]


class Switched(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x))
        return {"logits": nn.Dense(3)(x), "more": (x.sum(), nn.Dense(2)(x))}


def test_parameters_agree_with_profile_and_variables_count_all_numbers():
    model = Switched()
    variables = model.init(jax.random.key(0), X)
    net = ms.upgrade(model, variables, X, rates=(0.5, 1.0), norm="switchable")
    found = ms.report(net).to_dict()
    # Two dense layers with bias; after the first, scale and bias of one norm.
    each = {w: 5 * w + w + w * 3 + 3 + w * 2 + 2 + 2 * w for w in (4, 8)}
    assert found["parameters"] == {"0.5": each[4], "1.0": each[8]}
    costs = ms.profile.profile(net, X, repeats=1)
    assert {str(r): c.parameters for r, c in costs.items()} == found["parameters"]
    assert {str(r): c.contraction_flops for r, c in costs.items()} == found["flops"]
    # The tree holds the other rate's norm too, and both have a mean and a variance.
    assert found["variables"] == {"0.5": each[4] + 6 * 4, "1.0": each[8] + 6 * 8}
    text = str(ms.report(net))
    (row,) = [line for line in text.splitlines() if "all variables" in line]
    assert row.split()[2:] == [str(each[4] + 24), str(each[8] + 48)]


def test_the_reason_names_the_leaf_of_the_output():
    model = Switched()
    net = ms.upgrade(model, model.init(jax.random.key(0), X), X, rates=(0.5, 1.0))
    reasons = {f["axis"]: f["reason"] for f in ms.report(net).to_dict()["fixed"]}
    assert reasons["params/Dense_1/bias:0"] == "output of the function (logits)"
    assert reasons["params/Dense_2/bias:0"] == "output of the function (more/1)"
    call = {"mutable": ["s"]}

    def plain(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    found = data(plain, weights(a=(5, 16), b=(16, 3)))
    assert {f["axis"]: f["reason"] for f in found["fixed"]}["b:1"] == (
        "output of the function"
    )

    def both(p, x, mutable):
        return [plain(p, x)], {"s": p["s"]}

    net = ms.upgrade(
        both, weights(a=(5, 16), b=(16, 3), s=(4,)), X, rates=(0.5, 1.0), call=call
    )
    reasons = {f["axis"]: f["reason"] for f in ms.report(net).to_dict()["fixed"]}
    assert reasons["b:1"] == "output of the function (0)"


def test_the_table_has_channels():
    """Not groups of a group norm, heads, or positions of a flattened image."""

    def net(p, x):
        h = (x @ p["a"]).reshape(4, 8, 8)  # groups of 8 channels narrow
        h = (h - h.mean(2, keepdims=True)).reshape(4, 64)
        heads = jnp.einsum("bhd,hde->bhe", (h @ p["q"]).reshape(4, 4, 6), p["w"])
        image = lax.conv_general_dilated(
            x[:, :, None], p["k"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
        )  # (4, 5, 16)
        return heads.reshape(4, 24) @ p["o"] + image.reshape(4, 80) @ p["f"]

    p = weights(a=(5, 64), q=(64, 24), w=(4, 6, 6), o=(24, 3), k=(3, 1, 16), f=(80, 3))
    report = ms.report(ms.upgrade(net, p, X, rates=(0.5, 1.0)))
    lines = filter(None, map(str.split, str(report).splitlines()))
    rows = {first: rest for first, *rest in lines}
    assert rows["a:1"][:5] == ["8", "x", "8", "32", "64"]
    assert rows["q:1"][:5] == ["4", "x", "6", "12", "24"]
    assert rows["k:2"][:5] == ["8", "x", "2", "8", "16"]
    found = report.to_dict()["groups"]
    assert found["q:1"]["widths"] == {"0.5": 2, "1.0": 4}
    assert found["q:1"]["channels"] == {"0.5": 12, "1.0": 24}


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
    """It holds its own norms and the narrower ones."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            norm = nn.BatchNorm(use_running_average=not train)
            return nn.Dense(3)(norm(nn.Dense(8)(x)))

    variables = Net().init(jax.random.key(0), X)
    net = ms.upgrade(Net(), variables, X, rates=(0.5, 1.0), norm="switchable")
    report = ms.report(ms.extract(net, 0.5)).to_dict()
    assert report["groups"]
