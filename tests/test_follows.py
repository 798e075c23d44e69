"""Which numbers follow the width, and what they are then: read off the trace alone.

A network 5 -> 24 -> 2 and what stands between its layers. `FOLLOWS` gives by hand the
numbers that follow, at 24 units and at 6. Nothing is compiled; `test_counts` runs the
like.
"""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Literal

import mslice_jax as ms
from mslice_jax.core.axes import Unit, Whole
from mslice_jax.core.counts.flow import one_meaning
from mslice_jax.core.growth import Follow, Match
from tests.spellings.calls import CALLS
from tests.spellings.derivatives import DERIVATIVES

N, K, ROWS = 24, 6, 3
ROOT, ROOTS = math.sqrt(24), (math.sqrt(24), math.sqrt(6))
LOG, LOGS = math.log(24), (math.log(24), math.log(6))
SIZE, INVERSE = (24, 6), (1 / 24, 1 / 6)
SHARES = np.full((24, 1), 1 / 24, np.float32)


def read(hidden, n=N, rows=ROWS):
    """[(number, narrow number)] that follow, and {(number, why it matters)} told."""

    def apply(p, x):
        h = jnp.tanh(x @ p["a"])
        return hidden(h, p["s"]) @ p["b"]

    shapes = {"a": (5, n), "s": (n,), "b": (n, 2)}
    p = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ms.NumberWarning)
        net = ms.upgrade(
            apply, p, np.ones((rows, 5), "f"), rates=(0.25, 1.0), check=False
        )
    definition = net.definition
    (group,) = net.plan.groups
    program = definition.program(
        net.plan.resolve(1.0), definition.call, net.variables, definition.arrays
    )
    counts = program.analysis.counts
    follows = [
        (counts.values[use], follow.at(counts.values[use], {group: n // 4}))
        for use, follow in counts.follows.items()
    ]
    told = {(seen.value, seen.meets) for seen in counts.seen.values() if seen.meets}
    return sorted(follows), told


def total(x):
    return x.sum(-1, keepdims=True)


def norm(x):
    return jnp.sqrt(total(x * x))


def lse(h):
    return jnp.log(total(jnp.exp(h)))


def entropy(h):
    p = jnp.exp(h) / total(jnp.exp(h))
    return -total(p * jnp.log(p))


def reduced(f, h, s):
    """By a reduction whose initial value is no number of the program."""
    start = 0 * s[0] + (f is lax.mul)
    return lax.reduce(h, start, f, (1,))[:, None]


def slope(f):
    return lambda h, s: jax.grad(lambda h: f(h).sum())(h)


FOLLOWS = {
    # a number beside a sum
    "mean": (lambda h, s: h - total(h) / 24, [SIZE]),
    "mean by an inverse": (lambda h, s: h - total(h) * (1 / 24), [INVERSE]),
    "number over a sum": (lambda h, s: 24 / total(h) * h, [SIZE]),
    "less one": (lambda h, s: h / (total(h) / 23), [(23, 5)]),
    "twice": (lambda h, s: h - total(h) / 48, [(48, 12)]),
    "half": (lambda h, s: h - total(h) / 12, [(12, 3)]),
    "minus": (lambda h, s: h + total(h) / -24, [(-24, -6)]),
    "norm": (lambda h, s: h / (norm(h) / ROOT), [ROOTS]),
    "norm by rsqrt": (lambda h, s: h * lax.rsqrt(total(h * h)) * ROOT, [ROOTS]),
    "norm by squares": (lambda h, s: h * lax.rsqrt(total(h * h) / 24), [SIZE]),
    "fourth root": (lambda h, s: h / (total(h**4) ** 0.25 / 24**0.25),
                    [(24**0.25, 6**0.25)]),
    "square of a sum": (lambda h, s: h + jnp.square(total(h)) / 576, [(576, 36)]),
    "cube of a sum": (lambda h, s: h + total(h) ** 3 / 24**3, [(24**3, 6**3)]),
    "pairs": (lambda h, s: h + (total(h) ** 2 - total(h * h)) / (24 * 23),
              [(24 * 23, 6 * 5)]),
    "half of the pairs": (lambda h, s: h + (total(h) ** 2 - total(h * h)) / (12 * 23),
                          [(12 * 23, 3 * 5)]),
    "beside a parameter": (lambda h, s: h * (total(h) / (24 * s[None])), [SIZE]),
    "remainder": (lambda h, s: h + lax.rem(total(h), 24.0) / 24, [SIZE, SIZE]),
    "in two roots": (lambda h, s: h - total(h) / ROOT / ROOT, [ROOTS, ROOTS]),
    "mean, and once more": (lambda h, s: h - total(h) / 24 / 24, [SIZE]),
    "in two roots, and once more": (
        lambda h, s: h - total(h) / ROOT / ROOT / 24,
        [ROOTS, ROOTS],
    ),
    # before a sum
    "before": (lambda h, s: h - total(h / 24), [SIZE]),
    "before, by an inverse": (lambda h, s: h - total(h * (1 / 24)), [INVERSE]),
    "before, squared": (lambda h, s: h - total(jnp.square(h / ROOT)), [ROOTS]),
    "before, in two roots": (lambda h, s: h - total(h / ROOT / ROOT), [ROOTS, ROOTS]),
    "before a sum of two": (lambda h, s: h - total(h / 24 + h * h / 24), [SIZE, SIZE]),
    "before, with a small one": (lambda h, s: h - total(h / 24 + 1e-6), [SIZE]),
    # sums of sums
    "small one added": (lambda h, s: h / ((total(h * h) + 1e-6) / 24), [SIZE]),
    "size added": (lambda h, s: h / ((total(h) + 24) / 24), [SIZE, SIZE]),
    "two sums": (lambda h, s: h - (total(h) + total(h * h)) / 24, [SIZE]),
    "all but one": (lambda h, s: (total(h) - h) / 23, [(23, 5)]),
    "one of two": (lambda h, s: jnp.where(h > 0, total(h), total(h * h)) / 24, [SIZE]),
    "as much of another": (
        lambda h, s: h + (24 * h.max(-1, keepdims=True) - total(h)) / 24,
        [SIZE, SIZE],
    ),
    "less as much of another": (
        lambda h, s: h + (total(h) - 24 * h.max(-1, keepdims=True)) / 24,
        [SIZE, SIZE],
    ),
    # of what was summed some, in another order, or as one part of more
    "one of many": (lambda h, s: h - total(h).max(0, keepdims=True) / 24, [SIZE]),
    "looked up": (lambda h, s: h - total(h)[jnp.array([2, 1, 0])] / 24, [SIZE]),
    "sorted": (lambda h, s: h - jnp.sort(total(h), 0) / 24, [SIZE]),
    "sorted with others": (
        lambda h, s: h - lax.sort((total(h), total(h * h)), 0)[1] / 24, [SIZE]),
    "rounded": (lambda h, s: h - jnp.round(total(h)) / 24, [SIZE]),
    "pinned": (
        lambda h, s: h - lax.optimization_barrier((total(h), h))[0] / 24, [SIZE]),
    "concatenated": (
        lambda h, s: h
        - jnp.concatenate([total(h), total(h * h)], 1).max(1, keepdims=True) / 24,
        [SIZE],
    ),
    "padded": (
        lambda h, s: h
        - lax.pad(total(h), 0 * s[0], [(0, 0, 0), (0, 1, 0)])[:, :1] / 24,
        [SIZE],
    ),
    "written into": (
        lambda h, s: h
        - lax.dynamic_update_slice(total(h), total(h * h)[:1], (0, 0)) / 24,
        [SIZE],
    ),
    "scattered": (
        lambda h, s: h - total(h).at[jnp.array([0])].set(total(h * h)[:1]) / 24,
        [SIZE],
    ),
    "clamped by sums": (
        lambda h, s: h - lax.clamp(-total(h * h), total(h), total(h * h)) / 24, [SIZE]),
    "complex": (
        lambda h, s: h - jnp.abs(lax.complex(total(h), total(h * h))) / 24, [SIZE]),
    # other sums
    "of rows and units": (lambda h, s: h - h.sum() / 72, [(72, 18)]),
    "of rows so far": (lambda h, s: h - total(jnp.cumsum(h, 0)) / 72, [(72, 18)]),
    "of a window of rows": (
        lambda h, s: h
        - total(lax.reduce_window(h, 0.0, lax.add, (3, 1), (3, 1), "VALID")) / 72,
        [(72, 18)],
    ),
    "reduced": (lambda h, s: h - reduced(lax.add, h, s) / 24, [SIZE]),
    "reduced product": (
        lambda h, s: h - reduced(lax.mul, h * h, s) ** (1 / 24), [INVERSE]),
    "reduced largest": (
        lambda h, s: h - reduced(lax.max, total(h), s) / 24, [SIZE]),
    "reduced smallest": (
        lambda h, s: h - reduced(lax.min, total(h), s) / 24, [SIZE]),
    "by a number that is counted": (
        lambda h, s: h - total(h) / jnp.ones((4, 6)).sum(), [SIZE]),
    "with ones": (lambda h, s: h - (h @ jnp.ones((24, 1))) / 24, [SIZE]),
    "with shares": (lambda h, s: h - h @ jnp.full((24, 1), -1 / 24),
                    [(-1 / 24, -1 / 6)]),
    "with captured shares": (lambda h, s: h - h @ SHARES, [INVERSE]),
    "with captured numbers": (lambda h, s: h - h @ (SHARES * 0 + 3) / 24, [SIZE]),
    # bounds
    "equal": (lambda h, s: h * (total(h) == 24), [SIZE]),
    "norm beyond": (lambda h, s: h * (norm(h) >= ROOT), [ROOTS]),
    "not less": (lambda h, s: h * lax.clamp(-24.0, total(h), 1e9), [(-24, -6)]),
    "at most": (lambda h, s: h * jnp.minimum(total(h), 24.0), [SIZE]),
    "at least": (lambda h, s: h * jnp.maximum(ROOT, norm(h)), [ROOTS]),
    "clamped": (lambda h, s: h * lax.clamp(0.0, total(h), 24.0), [SIZE]),
    "compared": (lambda h, s: h * (total(h) > 24), [SIZE]),
    "compared with": (lambda h, s: h * (total(h) < 24), [SIZE]),
    # logarithms
    "log of a mean": (lambda h, s: h - (lse(h) - LOG), [LOGS]),
    "log from a mean": (lambda h, s: h + (LOG - lse(h)), [LOGS]),
    "log with a minus": (lambda h, s: h - (lse(h) + -LOG), [(-LOGS[0], -LOGS[1])]),
    "log of the inverse": (lambda h, s: h + (-lse(h) + LOG), [LOGS]),
    "log of a square": (lambda h, s: h - (2 * lse(h) - 2 * LOG),
                        [(2 * LOGS[0], 2 * LOGS[1])]),
    "log to base 2": (lambda h, s: h - (jnp.log2(total(h * h)) - math.log2(24)),
                      [(math.log2(24), math.log2(6))]),
    "entropy": (lambda h, s: h * (entropy(h) / LOG), [LOGS]),
    "log of two sums": (lambda h, s: h - (lse(h) + lse(2 * h) - 2 * LOG),
                        [(2 * LOGS[0], 2 * LOGS[1])]),
    "entropy with a minus": (
        lambda h, s: h * (total(jax.nn.softmax(h) * jax.nn.log_softmax(h)) / -LOG),
        [(-LOGS[0], -LOGS[1])],
    ),
    "cube root": (lambda h, s: h - jnp.cbrt(total(h) ** 3 / 24**3), [(24**3, 6**3)]),
    "entropy by an inverse": (lambda h, s: h * (entropy(h) * (1 / LOG)),
                              [(1 / LOGS[0], 1 / LOGS[1])]),
    "back from a logarithm": (lambda h, s: h - jnp.exp(lse(h)) / 24, [SIZE]),
    "back from base 2": (
        lambda h, s: h - jnp.exp2(jnp.log2(total(h * h))) / 24, [SIZE]),
    # products over units
    "geometric mean": (
        lambda h, s: h - jnp.exp(total(jnp.log(h * h)) / 24), [SIZE]
    ),
    "root of a product": (
        lambda h, s: h - jnp.prod(h * h, -1, keepdims=True) ** (1 / 24), [INVERSE]
    ),
    "log of a product": (
        lambda h, s: h - jnp.log(jnp.prod(h * h, -1, keepdims=True)) / 24, [SIZE]
    ),
    "root of an exponential": (
        lambda h, s: h - jnp.exp(total(h)) ** (1 / 24), [INVERSE]
    ),
    # terms that shrink as they become more
    "mean under a softmax": (
        lambda h, s: h - total(jax.nn.softmax(h) * h) / 24, [SIZE]),
    "softmax times the size": (lambda h, s: jax.nn.softmax(h) * 24, [SIZE]),
    # backward passes
    "spread": (lambda h, s: h + jnp.full(h.shape, 1 / 24), [INVERSE]),
    "slope of a mean": (
        lambda h, s: h * slope(lambda h: jnp.sin(total(h) / 24))(h, s),
        [SIZE, SIZE],
    ),
    "slope of a mean of squares": (slope(lambda h: total(h * h) / 24), [INVERSE]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWS)
def test_numbers_that_follow(name):
    hidden, expected = FOLLOWS[name]
    follows, told = read(hidden)
    assert [a for a, _ in follows] == pytest.approx([a for a, _ in sorted(expected)])
    assert [b for _, b in follows] == pytest.approx([b for _, b in sorted(expected)])
    assert not told


def table(frequency):
    """Sine and cosine side by side, made at full width and cut."""
    angles = jnp.arange(3)[:, None] * jnp.exp(jnp.arange(12) * frequency)[None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(3, 24)


STAYS = {
    "factor": (lambda h, s: h * 24, None),
    "of a sum, the wrong way": (lambda h, s: h - total(h) * 24, None),
    "no power": (lambda h, s: h - total(h) / 120, None),
    "wrong sign of a log": (lambda h, s: h - (lse(h) + LOG), None),
    "entropy times log": (lambda h, s: h * entropy(h) * LOG, None),
    "more than small": (lambda h, s: h - total(h / 24 + 0.1), None),
    "two that differ": (lambda h, s: h - total(h / 24 + h * h / 23), None),
    "another bound": (lambda h, s: h * jnp.minimum(total(h), 23.5), None),
    "reduced squares": (
        lambda h, s: h - reduced(lambda a, b: a + b * b, h, s) / 24, None),
    "logs that cancel": (lambda h, s: h - (lse(h) - lse(2 * h) - LOG), None),
    "roots of two factors": (
        lambda h, s: jnp.tanh((h / 24**0.25) @ (jnp.sin(h) / 24**0.25).T) @ h, None),
    "a factor and its inverse": (
        lambda h, s: jnp.tanh((h * 24) @ (jnp.sin(h) / 24).T) @ h, None),
    "largest": (lambda h, s: h - h.max(-1, keepdims=True) / 24, None),
    "table": (lambda h, s: h + table(-0.3), None),
    # what is told
    "root beside a sum": (lambda h, s: h - total(h) / ROOT, "is a sum over the axis"),
    "parameter": (lambda h, s: h + s[None] * 24, "it scales a parameter"),
    "queries": (lambda h, s: jnp.tanh((h / ROOT) @ jnp.sin(h).T) @ h,
                "what it scales is contracted over the axis"),
    "table of the size": (lambda h, s: h + table(-8 / 24), "of a table"),
    "positions": (lambda h, s: h * jnp.sin(jnp.arange(24) / 24)[None], "positions"),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_numbers_that_stay(name):
    hidden, meets = STAYS[name]
    follows, told = read(hidden)
    assert not follows
    assert [text for _, text in told if meets and meets in text] or not told
    assert bool(told) == bool(meets)


# In loops, branches and calls: 24 units, or 3 rows of them; how often it stands there.
OF_CALLS = {
    24: "scan_over_rows_divided scan_each_row scan_with_count_as_operand "
    "scan_with_count_in_carry for_loop branch branch_of_zero switch jitted remat "
    "jitted_division remat_of_sum mapped mapped_twice mapped_over_units "
    "mapped_over_rows in_a_loop associative accumulated partial batched_branch "
    "batched_while",
    (24, 24): "scan_of_steps while_mean branch_inside branch_unlike jitted_twice",
    72: "scan_over_rows for_loop_over_rows while_loop of_rows_in_turn",
    (72, 72): "scan_pair",
    (): "scan_counting",  # which ONLY_OWN tells
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [(name, full) for full, names in OF_CALLS.items() for name in names.split()],
)
def test_numbers_that_follow_in_calls(name, expected):
    def hidden(h, s):
        y = CALLS[name](h, s, N)
        y = y[:, None] if y.ndim == 1 else y
        return y if y.shape == h.shape else h + y

    follows, told = read(hidden)
    full = expected if isinstance(expected, tuple) else (expected,)
    assert follows == [(number, pytest.approx(number / 4)) for number in full]
    assert not told


# Calls with derivatives of their own.
BACKWARD = (
    "own_layer_norm", "own_layer_norm_of_means", "own_layer_norm_of_jnp_means",
    "own_layer_norm_with_scale", "own_rms_norm", "own_mean", "own_mean_repeated",
    "own_logmeanexp", "kept_sum", "sum_as_operand", "straight_through",
    "normed_backward",
)  # fmt: skip


@pytest.mark.parametrize("name", BACKWARD)
def test_numbers_of_a_backward_pass(name):
    """Those of the narrow program are those of the same code with 6 in place of 24."""
    rng = np.random.default_rng(0)
    shapes = {"a": (5, N), "s": (N,), "b": (N, 2)}
    full = {n: rng.normal(size=shape).astype("f") for n, shape in shapes.items()}
    narrow = {"a": full["a"][:, :K], "s": full["s"][:K], "b": full["b"][:K]}
    x = np.ones((ROWS, 5), "f")

    def of(n):
        def apply(p, x):
            h = x @ p["a"]
            y = DERIVATIVES[name](h, p["s"], n)
            return (y if y.shape == h.shape else h + y) @ p["b"]

        return apply

    def numbers(run, p):
        """The numbers of a program and of its gradient."""
        program = jax.make_jaxpr(jax.grad(lambda p: run(p).sum()))(p)
        return sorted(set(literals(program.jaxpr)) - {0.0, 1.0})

    net = ms.upgrade(of(N), full, x, rates=(K / N, 1.0), check=False)
    found = numbers(lambda net: ms.slice_apply(net, x, K / N), net)
    assert found == pytest.approx(numbers(lambda p: of(K)(p, x), narrow))


def literals(jaxpr):
    for eqn in jaxpr.eqns:
        for var in eqn.invars:
            if isinstance(var, Literal) and np.issubdtype(var.aval.dtype, np.floating):
                yield float(var.val)
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from literals(getattr(value, "jaxpr", value))


def is_jaxpr(x):
    return hasattr(getattr(x, "jaxpr", x), "eqns")


def test_a_number_that_could_stand_for_several_axes_is_told():
    def apply(p, x):
        h, k = jnp.tanh(x @ p["a"]), jnp.tanh(x @ p["c"])
        both = (h[:, :, None] * k[:, None, :]).sum((1, 2)) / 24
        return both[:, None] + h @ p["b"] + k @ p["d"]

    shapes = {"a": (5, 24), "b": (24, 2), "c": (5, 24), "d": (24, 2)}
    p = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with pytest.warns(ms.NumberWarning, match="24 beside .* stays .* sum over"):
        ms.upgrade(apply, p, np.ones((3, 5), "f"), rates=(0.25, 1.0), check=False)


def test_of_axes_of_one_size_the_units_are_counted():
    """As many rows as units: what is constant along both is a mean over one."""
    follows, _ = read(lambda h, s: h + jnp.full(h.shape, 1 / 24), rows=24)
    assert follows == [pytest.approx(INVERSE)]
    follows, _ = read(lambda h, s: h - h.sum(0, keepdims=True) / 24, rows=24)
    assert not follows


def test_a_quarter_is_a_number_of_many_meanings():
    follows, _ = read(lambda h, s: h + jnp.full(h.shape, 0.25), n=4)
    assert not follows


def test_one_meaning():
    """Ways are one where what narrows changes alike, whatever else they cancel."""
    a, b, whole = Unit(24, "a"), Unit(24, "b"), Whole(24)
    of = {
        name: Match(cancels, Follow(()))
        for name, cancels in {
            "a": {a: 1.0}, "b": {b: 1.0}, "root": {a: 0.5},
            "both": {a: 1.0, whole: 1.0}, "whole": {whole: 1.0},
        }.items()
    }  # fmt: skip
    assert one_meaning([of["a"]]) and one_meaning([of["a"], of["both"]])
    for other in ("b", "root", "whole"):
        assert not one_meaning([of["a"], of[other]])
