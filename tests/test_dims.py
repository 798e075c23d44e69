"""Axes: the indices that a rate keeps, against NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mslice_jax.core import axes as dims
from mslice_jax.core.axes import Concat, Product, Unit, Whole

A, B = Unit(4, "a"), Unit(6, "b")
KEEP = {"a": 2, "b": 3}


@pytest.mark.parametrize(
    ("axis", "kept"),
    [
        (A, [0, 1]),
        (Whole(3), [0, 1, 2]),
        # 2 x 4 entries in rows of 4, the first two of each row
        (Product((Whole(2), A)), [0, 1, 4, 5]),
        # 4 heads of 3, the first two whole
        (Product((A, Whole(3))), [0, 1, 2, 3, 4, 5]),
        # q, k, v concatenated
        (Concat((A, A, B)), [0, 1, 4, 5, 8, 9, 10]),
        # two branches in a group norm of groups of 2
        (Product((Concat((A, B)), Whole(2))), [0, 1, 2, 3, 8, 9, 10, 11, 12, 13]),
    ],
)
def test_kept_indices(axis, kept):
    prefix = {name: np.arange(n) for name, n in KEEP.items()}
    assert dims.indices(axis, prefix).tolist() == kept
    assert dims.width(axis, KEEP) == len(kept)
    x = jnp.arange(dims.width(axis))
    assert dims.slice_array(x, [axis], KEEP).tolist() == kept


def axes():
    leaf = st.one_of(
        st.builds(Unit, st.sampled_from([4]), st.sampled_from(["a"])),
        st.builds(Unit, st.just(6), st.just("b")),
        st.builds(Whole, st.integers(1, 3)),
    )
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=2, max_size=2).map(lambda p: Product(tuple(p))),
            st.lists(inner, min_size=2, max_size=3).map(lambda p: Concat(tuple(p))),
        ),
        max_leaves=4,
    ).filter(lambda axis: dims.width(axis) <= 40)


@settings(max_examples=25, deadline=None)
@given(st.lists(axes(), min_size=1, max_size=2), st.integers(1, 4), st.integers(1, 6))
def test_slices_are_index_sets(all_axes, a, b):
    """slice_array, put_back and nesting against NumPy's fancy indexing."""
    kept = {"a": a, "b": b}
    less = {"a": max(1, a - 1), "b": max(1, b - 2)}
    shape = dims.shape(all_axes)
    x = np.arange(math.prod(shape)).reshape(shape)

    def grid(widths):
        prefix = {name: np.arange(n) for name, n in widths.items()}
        return np.ix_(*(dims.indices(axis, prefix) for axis in all_axes))

    @jax.jit  # one compilation for each drawn shape
    def run(x):
        narrow = dims.slice_array(x, all_axes, kept)
        nested = dims.slice_array(narrow, all_axes, less, source=kept)
        back = dims.put_back(x, -narrow, all_axes, kept)
        partly = dims.put_back(narrow, nested + 1000, all_axes, less, kept)
        return narrow, nested, back, partly

    narrow, nested, back, partly = run(x)
    np.testing.assert_array_equal(narrow, x[grid(kept)])
    np.testing.assert_array_equal(nested, x[grid(less)])
    expected = x.copy()
    expected[grid(kept)] *= -1
    np.testing.assert_array_equal(back, expected)
    expected = x.copy()
    expected[grid(less)] += 1000
    np.testing.assert_array_equal(partly, expected[grid(kept)])


def test_no_gather_forward_or_back():
    axes = [Product((A, Whole(3))), Concat((A, B, A))]
    x = jnp.ones(dims.shape(axes))

    def total(x):
        return (dims.slice_array(x, axes, KEEP) ** 2).sum()

    text = str(jax.make_jaxpr(jax.grad(total))(x))
    assert "gather" not in text
    assert "scatter" not in text


def test_take_permutes():
    order = {"a": np.array([2, 0, 3, 1])}
    x = jnp.arange(8)
    assert dims.take(x, [Product((Whole(2), A))], order).tolist() == [
        2, 0, 3, 1, 6, 4, 7, 5,
    ]  # fmt: skip


def test_take_permutes_one_of_two_groups():
    """Of 2 x 3 units the outer ones are permuted, the inner ones are not."""
    axes = [Product((Unit(2, "a"), Unit(3, "b")))]
    x = np.arange(6)
    assert dims.take(x, axes, {"a": np.array([1, 0])}).tolist() == [3, 4, 5, 0, 1, 2]
    assert dims.take(x, axes, {"b": np.array([2, 0, 1])}).tolist() == [
        2, 0, 1, 5, 3, 4,
    ]  # fmt: skip
    beside = [Concat((Unit(2, "a"), Unit(2, "b")))]
    assert dims.take(np.arange(4), beside, {"b": np.array([1, 0])}).tolist() == [
        0, 1, 3, 2,
    ]  # fmt: skip


def test_take_inside_jit():
    """A captured constant may be traced, without values."""
    order = {"a": np.array([2, 0, 3, 1])}
    taken = jax.jit(lambda x: dims.take(x, [A], order))(jnp.arange(4))
    assert taken.tolist() == [2, 0, 3, 1]


def test_wrong_shape_is_an_error():
    with pytest.raises(ValueError, match=r"expected an array of shape \(4,\)"):
        dims.slice_array(jnp.ones(5), [A], KEEP)


def test_axes_print_the_narrowing_parts():
    assert str(Product((Whole(2), Concat((A, B))))) == "(2 x (4* + 6*))"
