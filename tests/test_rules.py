"""The table of rules: each primitive, sliced, against the same function run narrow.

The functions take every size from their arguments, so the narrow network by hand is the
function itself on weights that NumPy sliced. `H` stands for the hidden axis of 16.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax._src.lax import lax as lax_internal
from jax._src.lax import windowed_reductions
from jax.experimental import compute_on, io_callback, pallas

import mslice_jax as ms
from mslice_jax.core.rules import FIXED, RULES

H = 16
X = (4, 5)


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of weights w1 (5, H), w2 (H, 3) and more, and an input (4, 5)."""

    primitive: str
    hidden: Callable[..., Any]  # the function between the two layers
    more: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


def relu_rule(h, p):
    return jax.nn.relu(h)


def scan(h, p):
    def step(carry, x):
        return jnp.tanh(carry @ p["w"] + x), carry.sum(-1)

    carry, sums = lax.scan(step, h, jnp.stack([h, 2 * h]))
    return carry + sums[0][:, None]


def while_loop(h, p):
    def more(carry):
        return carry[0] < 3

    return lax.while_loop(more, lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"])), (0, h))[
        1
    ]


def cond(h, p):
    return lax.cond(h.sum() > 0, lambda h: h * 2, lambda h: h @ p["w"], h)


def table(h, p):
    return h + jnp.take(p["t"], jnp.array([2, 0, 1, 1]), axis=0)


def written(h, p):
    return p["t"].at[jnp.array([2, 0, 1, 3])].add(h)[:4]


def window(h, p):
    image = jnp.broadcast_to(h[:, None], (h.shape[0], 6, h.shape[1]))
    return lax.reduce_window(
        image, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "SAME"
    ).sum(1)


def depthwise(h, p):
    image = jnp.broadcast_to(h[:, None], (h.shape[0], 6, h.shape[1]))
    out = lax.conv_general_dilated(
        image, p["k"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"),
        feature_group_count=h.shape[1],
    )  # fmt: skip
    return out.mean(1)


def iota(h, p):
    return h * lax.broadcasted_iota(jnp.float32, h.shape, 1)


def unbiased(h, p):
    return h / jnp.std(h, axis=-1, ddof=1, keepdims=True)


def rms(h, p):
    return h * lax.rsqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + 1e-6)


def variance_by_reciprocal(h, p):
    mean = h.sum(-1, keepdims=True) * (1 / h.shape[-1])
    return h - mean


def gates(h, p):
    a, b = jnp.split(jnp.concatenate([h, 2 * h], axis=-1), 2, axis=-1)
    return jax.nn.sigmoid(a) * b


def slices(h, p):
    both = jnp.concatenate([h, h + 1], axis=-1)
    n = h.shape[-1]
    return both[:, n:] * both[:, :n]


def outer_and_back(h, p):
    flat = (h[:, None, :] * jnp.arange(1.0, 4.0)[None, :, None]).reshape(h.shape[0], -1)
    return flat.reshape(h.shape[0], 3, -1).sum(1)


def padded(h, p):
    return jnp.pad(h, ((0, 0), (h.shape[1], 0)))[:, h.shape[1] :]


def batch_of_matrices(h):
    """(4, H) -> (H, 3, 3): well-conditioned, and different for each unit."""
    entries = jnp.stack([jnp.sin((k + 1) * h.mean(0)) for k in range(9)], -1)
    return entries.reshape(h.shape[1], 3, 3) + 4 * jnp.eye(3)[None]


def decomposed(decompose):
    def hidden(h, p):
        a = batch_of_matrices(h)
        sums = [jnp.abs(x).sum(tuple(range(1, x.ndim))) for x in decompose(a)]
        return h + sum(sums)[None].astype(h.dtype)

    return hidden


def symmetric(a):
    return a + jnp.swapaxes(a, 1, 2)


def least_squares(h, p):
    # Columns of the right-hand side are the hidden axis.
    return jnp.linalg.solve(p["a"] + 3 * jnp.eye(4), h)


def triangular(h, p):
    a = jnp.tril(p["a"]) + 3 * jnp.eye(4)
    left = lax.linalg.triangular_solve(a, h, left_side=True, lower=True)
    return left + lax.linalg.triangular_solve(a, h.T, lower=True).T


def tridiagonal(h, p):
    band = jnp.ones(4)
    below, above = band.at[0].set(0), band.at[3].set(0)
    return lax.linalg.tridiagonal_solve(below, 4 * band, above, h)


def linear_solve(h, p):
    """(2 I + w w') x = h', by conjugate gradients: the system narrows with h."""
    w = p["b"]
    x, _ = jax.scipy.sparse.linalg.cg(
        lambda x: 2 * x + w[:, None] * (w @ x)[None], h.T, maxiter=3
    )
    return x.T


def experts(h, p):
    sizes = jnp.array([1, 3], jnp.int32)
    return jnp.tanh(lax.ragged_dot(h, p["e"], sizes))


def expert_gradient(h, p):
    """The mode that contracts the rows of each group, as in a backward pass."""
    sizes = jnp.array([1, 3], jnp.int32)
    grads = jax.grad(lambda e: jnp.sum(lax.ragged_dot(h, e, sizes) ** 2))(p["e"])
    return h + grads.sum((0, 1))[None] * 1e-2


def pooled_gradient(h, p):
    image = h.reshape(2, 2, -1) * jnp.arange(1.0, 3.0)[:, None, None]

    def pooled(image):
        out = lax.reduce_window(image, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID")
        return jnp.sum(out**2)

    return jax.grad(pooled)(image).reshape(h.shape)


def pooled_tangent(h, p):
    image = h.reshape(2, 2, -1)

    def pooled(image):
        return lax.reduce_window(
            image, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID"
        )

    return jnp.tile(jax.jvp(pooled, (image,), (jnp.cos(image),))[1][:, 0], (2, 1))


def select_and_scatter(h, p):
    image = h.reshape(2, 2, -1)
    source = jnp.cos(image[:, :1])
    out = windowed_reductions._select_and_scatter(  # no public function makes it
        image, lax.ge, (1, 2, 1), (1, 2, 1), ((0, 0),) * 3, source, jnp.float32(0),
        lax.add,
    )  # fmt: skip
    return out.reshape(h.shape)


def depthwise_gradient(h, p):
    def out(k):
        return jnp.sum(depthwise(h, {"k": k}) ** 2)

    return h + jax.grad(out)(p["k"]).sum((0, 1))[None]


def transposed_convolution(h, p):
    image = h.reshape(2, 2, -1)
    out = lax.conv_transpose(
        image, p["k"], (2,), "SAME", rhs_dilation=(2,),
        dimension_numbers=("NHC", "HIO", "NHC"),
    )  # fmt: skip
    return out[:, :2].reshape(h.shape)


def associative_scan(h, p):
    long = jnp.concatenate([h, 2 * h, h - 1])[:11]

    def step(left, right):
        (a, b), (c, d) = left, right
        return a * c, b * c + d

    return lax.associative_scan(step, (jax.nn.sigmoid(long), long))[1][7:]


def while_with_constants(h, p):
    limit, table = h.sum() * 0 + 3, p["t"][:4]
    return lax.while_loop(
        lambda c: c[0] < limit, lambda c: (c[0] + 1, jnp.tanh(c[1] + table)), (0.0, h)
    )[1]


def platform(h, p):
    return lax.platform_dependent(
        h, cpu=lambda h: h + p["b"][None], default=lambda h: h - p["b"][None]
    )


def attention(h, p):
    q, k, v = (h[None, :, :, None] * s for s in (1.0, 0.5, 2.0))  # one unit per head
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")[0, :, :, 0]


def resized(h, p):
    image = h.reshape(2, 2, -1)
    return jax.image.resize(image, (4, 1, h.shape[1]), "bilinear")[:, 0]


def routed(h, p):
    """Each row's two best of three experts."""
    weight, which = lax.top_k(jax.nn.softmax(h @ p["r"]), 2)
    gates = jnp.sum(jax.nn.one_hot(which, 3) * weight[..., None], 1)
    return jnp.einsum("be,ehk,bh->bk", gates, p["e"], h)


@jax.custom_batching.custom_vmap
def shifted(h, b):
    return h + b


@shifted.def_vmap
def _shifted_vmap(size, batched, h, b):
    h, b = (
        x if moved else jnp.broadcast_to(x, (size, *x.shape))
        for x, moved in zip((h, b), batched, strict=True)
    )
    return h + b, True


def linear_call(h, p):
    return jax.custom_derivatives.linear_call(
        lambda b, h: h * b[None], lambda b, g: 7 * g * b[None], p["b"], h
    )


def on_the_device_of_the_host(h, p):
    wrap = getattr(compute_on, "compute_on2", compute_on.compute_on)  # jax 0.10, 0.11
    return wrap(
        lambda h: jnp.tanh(h) * 2,
        compute_type="device_host",
        out_memory_spaces=jax.memory.Space.Device,
    )(h)


def general_reduction(h, p):
    """The largest of each column, and the sum of its squares, in one pass."""

    def step(left, right):
        return jnp.maximum(left[0], right[0]), left[1] + right[1]

    first = jnp.float32(-jnp.inf), jnp.float32(0)
    largest, squares = lax.reduce((h, h * h), first, step, (0,))
    return h * (largest + squares)[None]


def sunk(h, p):
    lax_internal.dce_sink(h * 2)  # public in jax 0.10 alone
    return h + p["b"][None]


def barrier(h, p):
    h, b = lax.optimization_barrier((h, p["b"]))
    return h + b[None]


CASES = [
    Case("add", lambda h, p: h + p["b"][None], {"b": ("H",)}),
    Case("select_n", lambda h, p: jnp.where(h > 0, h, p["b"][None]), {"b": ("H",)}),
    Case("clamp", lambda h, p: lax.clamp(0.0, h, 6.0)),
    Case("convert_element_type", lambda h, p: h.astype(jnp.bfloat16).astype(h.dtype)),
    Case("custom_jvp_call", relu_rule),
    Case("remat2", lambda h, p: jax.checkpoint(lambda h: jnp.tanh(h @ p["w"]))(h), {"w": ("H", "H")}),  # noqa: E501
    Case("jit", lambda h, p: jax.jit(lambda h: jax.nn.silu(h))(h)),
    Case("scan", scan, {"w": ("H", "H")}),
    Case("while", while_loop, {"w": ("H", "H")}),
    Case("cond", cond, {"w": ("H", "H")}),
    Case("gather", table, {"t": (3, "H")}),
    Case("scatter-add", written, {"t": (6, "H")}),
    Case("dynamic_slice", lambda h, p: h + lax.dynamic_slice_in_dim(p["t"], 1, 4), {"t": (6, "H")}),  # noqa: E501
    Case("dynamic_update_slice", lambda h, p: lax.dynamic_update_slice_in_dim(p["t"], h, 1, 0)[:4], {"t": (6, "H")}),  # noqa: E501
    Case("reduce_window_max", window),
    Case("conv_general_dilated", depthwise, {"k": (3, 1, "H")}),
    Case("iota", iota),
    Case("div", unbiased),
    Case("div", rms),
    Case("mul", variance_by_reciprocal),
    Case("reduce_max", lambda h, p: h - h.max(-1, keepdims=True)),
    Case("concatenate", gates),
    Case("slice", slices),
    Case("reshape", outer_and_back),
    Case("tile", lambda h, p: jnp.tile(h, (1, 3)).reshape(h.shape[0], 3, -1)[:, 0]),
    Case("pad", padded),
    Case("transpose", lambda h, p: (h.T * p["b"][:, None]).T, {"b": ("H",)}),
    Case("unstack", lambda h, p: jnp.unstack(jnp.stack([h, 2 * h], 1), axis=1)[1]),
    Case("random_bits", lambda h, p: h * (jax.random.uniform(jax.random.key(0), h.shape) < 2)),  # noqa: E501
    Case("squeeze", lambda h, p: jnp.squeeze(h[:, None], 1)),
    Case("sort", lambda h, p: lax.sort(h, dimension=0)),
    Case("cumsum", lambda h, p: jnp.cumsum(h, axis=0)),
    Case("rev", lambda h, p: h[::-1]),
    Case("argmax", lambda h, p: h * jnp.argmax(h, 0)[None]),
    Case("stop_gradient", lambda h, p: h + lax.stop_gradient(h)),
    Case("dot_general", lambda h, p: jnp.einsum("bh,bk,hk->bk", h, h, p["w"]), {"w": ("H", "H")}),  # noqa: E501
    Case("dot_general", lambda h, p: jnp.einsum("bh,hk,hk,b->bk", h, p["w"], p["w"], h.mean(1)), {"w": ("H", "H")}),  # noqa: E501
    Case("dot_general", lambda h, p: lax.dot_general(h, p["w"], (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32), {"w": ("H", "H")}),  # noqa: E501
    Case("cholesky", decomposed(lambda a: [jnp.linalg.cholesky(symmetric(a))])),
    Case("lu", decomposed(lambda a: jax.scipy.linalg.lu_factor(a))),
    Case("lu_pivots_to_permutation", decomposed(lambda a: [lax.linalg.lu_pivots_to_permutation(lax.linalg.lu(a)[1], 4)])),  # noqa: E501
    Case("qr", decomposed(lambda a: lax.linalg.qr(a))),
    Case("geqrf", decomposed(lambda a: jnp.linalg.qr(a, mode="raw"))),
    Case("qr", decomposed(lambda a: lax.linalg.qr(a, pivoting=True))),
    Case("householder_product", decomposed(lambda a: [lax.linalg.householder_product(a, a[..., 0])])),  # noqa: E501
    Case("ormqr", decomposed(lambda a: [lax.linalg.ormqr(a, a[..., 0], a)])),
    Case("eigh", decomposed(lambda a: [jnp.linalg.eigvalsh(symmetric(a))])),
    Case("svd", decomposed(lambda a: [jnp.linalg.svd(a, compute_uv=False)])),
    Case("schur", decomposed(lambda a: [lax.linalg.schur(symmetric(a))[0]])),
    Case("hessenberg", decomposed(lambda a: lax.linalg.hessenberg(a))),
    Case("tridiagonal", decomposed(lambda a: lax.linalg.tridiagonal(symmetric(a))[1:3])),  # noqa: E501
    Case("symmetric_product", decomposed(lambda a: [lax.linalg.symmetric_product(a, symmetric(a))])),  # noqa: E501
    Case("triangular_solve", triangular, {"a": (4, 4)}),
    Case("tridiagonal_solve", tridiagonal),
    Case("custom_linear_solve", least_squares, {"a": (4, 4)}),
    Case("custom_linear_solve", linear_solve, {"b": ("H",)}),
    Case("ragged_dot_general", experts, {"e": (2, "H", "H")}),
    Case("ragged_dot_general", expert_gradient, {"e": (2, "H", "H")}),
    Case("select_and_scatter_add", pooled_gradient),
    Case("select_and_gather_add", pooled_tangent),
    Case("select_and_scatter", select_and_scatter),
    Case("compute_on", on_the_device_of_the_host),
    Case("reduce", general_reduction),
    Case("eig", decomposed(lambda a: [lax.linalg.eig(a)[0]])),
    Case("cholesky_update", lambda h, p: h * lax.linalg.cholesky_update(3 * jnp.eye(3), jnp.sin(h.mean()) * jnp.ones(3)).sum()),  # noqa: E501
    Case("reduce_max", lambda h, p: h / jnp.linalg.norm(h, jnp.inf, axis=1, keepdims=True)),  # noqa: E501
    Case("sort", lambda h, p: h - jnp.median(h, axis=0, keepdims=True)),
    Case("cumprod", lambda h, p: jnp.cumprod(jnp.cos(h), axis=0)),
    Case("copy", lambda h, p: jnp.array(h, copy=True)),
    Case("dce_sink", sunk, {"b": ("H",)}),
    Case("conv_general_dilated", depthwise_gradient, {"k": (3, 1, "H")}),
    Case("conv_general_dilated", transposed_convolution, {"k": (3, "H", "H")}),
    Case("slice", associative_scan),
    Case("while", while_with_constants, {"t": (6, "H")}),
    Case("platform_index", platform, {"b": ("H",)}),
    Case("dot_general", attention),
    Case("dot_general", resized),
    Case("top_k", routed, {"r": ("H", 3), "e": (3, "H", "H")}),
    Case("approx_top_k", lambda h, p: jnp.tile(lax.approx_max_k(h.T, 2)[0].T, (2, 1))),
    Case("sort", lambda h, p: jnp.take_along_axis(h, jnp.argsort(h, 0), 0)),
    Case("scatter-add", lambda h, p: jax.ops.segment_sum(h, jnp.array([1, 0, 1, 3]), 4)),  # noqa: E501
    Case("gather", lambda h, p: jnp.interp(h, jnp.linspace(-3, 3, 5), jnp.arange(5.0) ** 2)),  # noqa: E501
    *(
        [Case("polynomial", lambda h, p: lax.polynomial(h, [1.0, 0.5, h]))]
        if hasattr(lax, "polynomial")  # from jax 0.12 on
        else []
    ),
    Case("fft", lambda h, p: jnp.fft.fft(h, axis=0).real),
    Case("fft", lambda h, p: jnp.fft.rfft(h.T, n=6).imag.T),
    Case("cumlogsumexp", lambda h, p: lax.cumlogsumexp(h, 0)),
    Case("reduce_precision", lambda h, p: lax.reduce_precision(h, 5, 7)),
    Case("optimization_barrier", barrier, {"b": ("H",)}),
    Case("erf_inv", lambda h, p: jax.scipy.special.erfinv(jnp.tanh(h) / 2)),
    Case("mulhi", lambda h, p: lax.mulhi((h * 2**20).astype(jnp.int32), jnp.int32(2**20)).astype(h.dtype)),  # noqa: E501
    Case("random_gamma", lambda h, p: h + jax.random.gamma(jax.random.key(0), jnp.exp(p["a"]), (4, 1)), {"a": (4, 1)}),  # noqa: E501
    Case("custom_vmap_call", lambda h, p: shifted(h, p["b"][None]), {"b": ("H",)}),
    Case("linear_call", linear_call, {"b": ("H",)}),
    Case("reduce_max", lambda h, p: jax.nn.softmax(h, -1) + jax.nn.logsumexp(h, -1, keepdims=True)),  # noqa: E501
    Case("mul", lambda h, p: jax.nn.glu(jnp.concatenate([h, -h], -1))),
    Case("div", lambda h, p: jax.nn.standardize(h, -1)),
]  # fmt: skip


def function(case):
    def apply(p, x):
        return case.hidden(x @ p["w1"], p) @ p["w2"]

    return apply


def weights(case, size=H):
    shapes = {"w1": (5, "H"), "w2": ("H", 3), **case.more}
    rng = np.random.default_rng(0)
    full = {
        name: rng.normal(size=[H if n == "H" else n for n in shape]).astype(np.float32)
        for name, shape in shapes.items()
    }
    return {
        name: full[name][tuple(slice(size) if n == "H" else slice(None) for n in shape)]
        for name, shape in shapes.items()
    }


def primitives(jaxpr):
    """The names of all primitives in a jaxpr and in those that it calls."""
    names = set()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        names.add(eqn.primitive.name)
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                names |= primitives(inner)
    return names


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.primitive)
def test_rule(case):
    assert case.primitive in RULES
    x = np.random.default_rng(1).normal(size=X).astype(np.float32)
    fn = function(case)
    assert case.primitive in primitives(jax.make_jaxpr(fn)(weights(case), x))
    net = ms.upgrade(fn, weights(case), x, rates=(0.25, 1.0))
    assert {g.size for g in net.plan.groups.values()} == {H}
    for rate, size in ((0.25, 4), (1.0, 16)):
        sliced = ms.slice_apply(net, x, rate)
        by_hand = jax.jit(fn)(weights(case, size), x)
        np.testing.assert_allclose(sliced, by_hand, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(
        ms.slice_apply(net, x, 1.0), jax.jit(fn)(weights(case), x)
    )


FIXES = {
    "sort": lambda h: lax.sort(h, dimension=1),
    "cumsum": lambda h: jnp.cumsum(h, axis=1),
    "rev": lambda h: h[:, ::-1],
    "argmax": lambda h: h * jnp.argmax(h, 1, keepdims=True),
    "slice": lambda h: h * h[:, ::5].sum(1, keepdims=True),
    "top_k": lambda h: h * lax.top_k(h, 1)[0],
    "dynamic_slice": lambda h: h * lax.dynamic_slice_in_dim(h, 3, 1, axis=1),
    "gather": lambda h: h * h[:, jnp.array([1])],
    "fft": lambda h: jnp.fft.fft(h).real,
    "unstack": lambda h: jnp.stack(jnp.unstack(h, axis=1), axis=1),
    "eigh": lambda h: h @ jnp.linalg.eigh(h.T @ h)[1],
    "triangular_solve": lambda h: lax.linalg.triangular_solve(h.T @ h, h),
    "ragged_dot_general": lambda h: (
        h
        * lax.ragged_dot(h.T, jnp.ones((2, 4, 3)), jnp.array([9, 7], jnp.int32)).sum(1)[
            None
        ]
    ),
}


@pytest.mark.parametrize("name", FIXES)
def test_axes_with_an_order_are_fixed_with_the_reason(name):
    def apply(p, x):
        return FIXES[name](x @ p["w1"]) @ p["w2"]

    case = Case(name, lambda h, p: h)
    with pytest.raises(ms.PlanError) as error:
        ms.upgrade(apply, weights(case), np.ones(X, np.float32), rates=(0.5, 1.0))
    assert f"{name}:" in str(error.value)
    assert "test_rules.py" in str(error.value)


def kernel(h):
    def double(source, target):
        target[...] = 2 * source[...]

    shape = jax.ShapeDtypeStruct(h.shape, h.dtype)
    return pallas.pallas_call(double, out_shape=shape, interpret=True)(h)


def on_the_host(h):
    return jax.pure_callback(lambda h: 2 * np.asarray(h), h, h)


def on_the_host_with_effects(h):
    return io_callback(lambda h: 2 * np.asarray(h), h, h)


def exported(h):
    doubled = jax.export.export(jax.jit(lambda h: 2 * h))
    return doubled(jax.ShapeDtypeStruct(h.shape, h.dtype)).call(h)


def mutable(h):
    ref = jax.new_ref(h)
    ref[1:] = ref[1:] + ref[1:]
    ref[0] += ref[0]
    return jax.freeze(ref)


FOREIGN = {
    "pallas_call": kernel,
    "pure_callback": on_the_host,
    "io_callback": on_the_host_with_effects,
    "call_exported": exported,
    "new_ref": mutable,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_opaque_primitives_are_fixed_with_their_own_reason(name):
    """Axes on both sides of it are fixed; those before and after narrow."""

    def apply(p, x):
        h = FOREIGN[name](jnp.tanh(x @ p["w1"]) @ p["w"])
        return jnp.tanh(h @ p["v"]) @ p["w2"]

    def by_hand(p, x):  # all of them double
        return jnp.tanh(2 * (jnp.tanh(x @ p["w1"]) @ p["w"]) @ p["v"]) @ p["w2"]

    rng = np.random.default_rng(0)
    shapes = {"w1": (5, H), "w": (H, 7), "v": (7, H), "w2": (H, 3)}
    p = {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    x = rng.normal(size=X).astype(np.float32)
    net = ms.upgrade(apply, p, x, rates=(0.25, 1.0), strict=True)
    assert {group.size for group in net.plan.groups.values()} == {H}
    reasons = {str(f.reason) for f in net.plan.fixed if f.size == 7}
    assert any(name in reason for reason in reasons)
    assert any(FIXED[name] in reason for reason in reasons)
    half = {
        "w1": p["w1"][:, :4], "w": p["w"][:4], "v": p["v"][:, :4], "w2": p["w2"][:4]
    }  # fmt: skip
    np.testing.assert_allclose(
        ms.slice_apply(net, x, 0.25), by_hand(half, x), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        ms.slice_apply(net, x, 1.0), by_hand(p, x), rtol=1e-5, atol=1e-5
    )


def test_a_later_call_that_would_fix_a_unit_names_the_reason():
    def apply(p, x, watched=False):
        h = jnp.tanh(x @ p["w1"])
        return (on_the_host(h) if watched else 2 * h) @ p["w2"]

    p = {"w1": np.ones((5, H), np.float32), "w2": np.ones((H, 3), np.float32)}
    x = np.ones(X, np.float32)
    net = ms.upgrade(apply, p, x, rates=(0.25, 1.0))
    ms.slice_apply(net, x, 0.25)
    with pytest.raises(ms.PlanError, match="pure_callback.*Python function"):
        ms.slice_apply(net, x, 0.25, watched=True)


@pytest.mark.parametrize("ordered", [False, True])
def test_debug_print_prints_narrow_arrays(capsys, ordered):
    def apply(p, x):
        h = x @ p["w1"]
        jax.debug.print("hidden: {h}", h=h[0], ordered=ordered)
        return h @ p["w2"]

    p = {"w1": np.ones((5, H), np.float32), "w2": np.ones((H, 3), np.float32)}
    net = ms.upgrade(apply, p, np.ones(X, np.float32), rates=(0.25, 1.0))
    ms.slice_apply(net, np.ones(X, np.float32), 0.25).block_until_ready()
    jax.effects_barrier()
    assert capsys.readouterr().out == "hidden: [5. 5. 5. 5.]\n"


def test_debug_callback_gets_narrow_arrays():
    seen = []

    def apply(p, x):
        h = x @ p["w1"]
        jax.debug.callback(lambda h: seen.append(h.shape), h)
        return h @ p["w2"]

    p = {"w1": np.ones((5, H), np.float32), "w2": np.ones((H, 3), np.float32)}
    net = ms.upgrade(apply, p, np.ones(X, np.float32), rates=(0.25, 1.0))
    ms.slice_apply(net, np.ones(X, np.float32), 0.25).block_until_ready()
    jax.effects_barrier()
    assert seen == [(4, 4)]


def test_a_branch_for_another_platform_need_not_compile_here():
    """The kernel is for TPUs; on other machines the plain function runs."""

    def apply(p, x):
        h = lax.platform_dependent(
            x @ p["w1"],
            tpu=lambda h: _tpu_only(h),
            default=lambda h: 2 * h,
        )
        return jnp.tanh(h @ p["v"]) @ p["w2"]

    rng = np.random.default_rng(0)
    shapes = {"w1": (5, 7), "v": (7, H), "w2": (H, 3)}
    p = {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    x = rng.normal(size=X).astype(np.float32)
    net = ms.upgrade(apply, p, x, rates=(0.25, 1.0))
    expected = np.tanh(2 * x @ p["w1"] @ p["v"][:, :4]) @ p["w2"][:4]
    np.testing.assert_allclose(
        ms.slice_apply(net, x, 0.25), expected, rtol=1e-4, atol=1e-4
    )


def _tpu_only(h):
    def double(source, target):
        target[...] = 2 * source[...]

    shape = jax.ShapeDtypeStruct(h.shape, h.dtype)
    return pallas.pallas_call(double, out_shape=shape)(h)


def scaled_by_blocks(p, x):
    """A dot with one scale for each 32 entries."""
    h = jnp.tanh(x @ p["w1"])
    blocks = p["s"].shape[0]
    scales = jnp.max(jnp.abs(h.reshape(h.shape[0], blocks, -1)), -1)
    h = h / jnp.repeat(scales, h.shape[1] // blocks, 1)
    return lax.scaled_dot(
        h, p["w2"], lhs_scale=scales, rhs_scale=p["s"],
        preferred_element_type=jnp.float32,
    )  # fmt: skip


def test_a_scaled_dot_narrows_by_whole_blocks():
    rng = np.random.default_rng(0)
    shapes = {"w1": (5, 128), "s": (4, 3), "w2": (128, 3)}
    p = {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    x = rng.normal(size=X).astype(np.float32)
    net = ms.upgrade(scaled_by_blocks, p, x, rates=(0.5, 1.0))
    half = {"w1": p["w1"][:, :64], "s": p["s"][:2], "w2": p["w2"][:64]}
    # The factors of the product are rounded to bfloat16.
    np.testing.assert_allclose(
        ms.slice_apply(net, x, 0.5), scaled_by_blocks(half, x), rtol=1e-2, atol=5e-2
    )


def test_tiled_copies_all_narrow():
    """w2 reads two copies of the hidden axis: rows 0..3 and 16..19 of 32 at r = 1/4."""

    def apply(p, x):
        return jnp.tile(x @ p["w1"], (1, 2)) @ p["w2"]

    rng = np.random.default_rng(0)
    p = {"w1": rng.normal(size=(5, H)), "w2": rng.normal(size=(2 * H, 3))}
    x = rng.normal(size=X).astype(np.float32)
    net = ms.upgrade(apply, p, x, rates=(0.25, 1.0))
    h = x @ p["w1"][:, :4]
    expected = h @ p["w2"][:4] + h @ p["w2"][16:20]
    np.testing.assert_allclose(ms.slice_apply(net, x, 0.25), expected, rtol=1e-5)


@pytest.mark.parametrize("how", ["one_hot", "eye"])
def test_an_indexed_axis_is_fixed(how):
    """Tokens above a narrow vocabulary would have no embedding."""

    def apply(p, tokens):
        codes = jax.nn.one_hot(tokens, 11) if how == "one_hot" else jnp.eye(11)[tokens]
        return jnp.tanh(codes @ p["table"]) @ p["w"]

    p = {"table": np.ones((11, H), np.float32), "w": np.ones((H, 3), np.float32)}
    net = ms.upgrade(apply, p, np.array([1, 9, 10]), rates=(0.25, 1.0))
    assert {group.size for group in net.plan.groups.values()} == {H}
    assert net.plan.slice(net.variables, 0.25)["table"].shape == (11, 4)


def test_captured_constant_is_sliced_like_a_parameter():
    """A captured position table: rows 0..3 of an H-wide table."""
    positions = np.random.default_rng(2).normal(size=(4, H)).astype(np.float32)

    def apply(p, x, size=H):
        return jnp.tanh(x @ p["w1"] + positions[:, :size]) @ p["w2"]

    case = Case("const", lambda h, p: h)
    x = np.ones(X, np.float32)
    net = ms.upgrade(lambda p, x: apply(p, x), weights(case), x, rates=(0.25, 1.0))
    by_hand = apply(weights(case, 4), x, size=4)
    np.testing.assert_allclose(ms.slice_apply(net, x, 0.25), by_hand, rtol=1e-6)


def test_every_rule_has_a_picture():
    for name, rule in RULES.items():
        assert rule.picture, name


def test_a_loop_with_a_length_for_each_example():
    def apply(p, x):
        def halve(h):
            return lax.while_loop(lambda h: (h**2).sum() > 1, lambda h: h / 2, h)

        return jax.vmap(halve)(x @ p["first"]) @ p["second"]

    rng = np.random.default_rng(0)
    p = {"first": rng.normal(size=(3, 8)), "second": rng.normal(size=(8, 2))}
    p = {name: w.astype(np.float32) for name, w in p.items()}
    x = (rng.normal(size=(4, 3)) * [[0.1], [1], [10], [100]]).astype(np.float32)
    net = ms.upgrade(apply, p, x, rates=(0.5, 1.0))
    np.testing.assert_array_equal(ms.slice_apply(net, x, 1.0), jax.jit(apply)(p, x))
    half = {"first": p["first"][:, :4], "second": p["second"][:4]}
    np.testing.assert_allclose(ms.slice_apply(net, x, 0.5), apply(half, x), rtol=1e-6)


def test_a_composed_primitive_that_may_have_its_own_derivative_is_fixed():
    hijax = pytest.importorskip(
        "jax.experimental.hijax", reason="this JAX has no composed primitives"
    )
    if not hasattr(hijax, "HiPrim"):
        pytest.skip("composed primitives are of this kind from jax 0.12 on")

    class Twice(hijax.HiPrim):
        def __init__(self, aval):
            self.in_avals, self.out_aval, self.params = (aval,), aval, {}
            super().__init__()

        def expand(self, x):
            return 2 * x

    def fn(p, x):
        h = jnp.tanh(x @ p["a"]) @ p["b"]
        return Twice(jax.typeof(h))(h) @ p["c"]

    rng = np.random.default_rng(0)
    shapes = {"a": (5, 8), "b": (8, 8), "c": (8, 3)}
    p = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    x = rng.normal(size=(4, 5)).astype(np.float32)
    net = ms.upgrade(fn, p, x, rates=(0.5, 1.0))
    assert list(net.plan.groups) == ["a:1"]
    assert "Twice has rules of its own" in str(ms.report(net))
    by_hand = 2 * np.tanh(x @ p["a"][:, :4]) @ p["b"][:4] @ p["c"]
    np.testing.assert_allclose(ms.slice_apply(net, x, 0.5), by_hand, rtol=1e-5)
